"""Knock-outs travel along arrows, no further and nowhere else."""

import pytest
import torch

from subjunctive.mechanism import seeded
from subjunctive.nn import Knocked, Propagate

CHAIN = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
MARKS = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])


def made(network=CHAIN, **options):
    with seeded(0):
        return Propagate(MARKS, network, [0, 1, 2, 3], **options)


def test_effects_follow_the_arrows_as_far_as_depth_allows():
    for depth in (1, 2, 3):
        reached = made(depth=depth).effects().abs().sum(2) != 0
        assert reached[0].tolist() == [False] * 4
        assert reached[1].tolist() == [True] + [i <= depth for i in (1, 2, 3)]
        assert reached[2].tolist() == [False, True] + [i <= depth + 1 for i in (2, 3)]


def test_a_sign_turns_an_effect_around_and_weights_are_scaled():
    a, b = made(CHAIN, depth=1), made(-CHAIN, depth=1)
    assert torch.allclose(a.effects()[1, 1], -b.effects()[1, 1])
    assert torch.allclose(made(7 * CHAIN).effects(), made(CHAIN).effects())


def test_a_table_row_a_condition_withheld_in_half_of_the_rows_of_training():
    with seeded(0):
        network = Knocked(4, 5, made(), width=8)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    hot = torch.tensor([0.0, 0, 1, 0, 1]).expand(400, 5)
    y = network(torch.ones(400, 4), torch.zeros(400), hot)
    y.sum().backward()
    assert network.table.grad.abs().sum(1).nonzero()[:, 0].tolist() == [2]
    network.eval()
    with torch.no_grad():
        told = network(torch.ones(1, 4), torch.zeros(1), hot[:1])
        network.table.zero_()
        withheld = network(torch.ones(1, 4), torch.zeros(1), hot[:1])
    near = [(y.detach() - v).abs().sum(1) < 1e-4 for v in (told, withheld)]
    assert bool((near[0] ^ near[1]).all())
    assert 150 < int(near[0].sum()) < 250


def outputs(network):
    """What a network of four genes makes of each of the four conditions, from the same cell."""
    with torch.no_grad(), seeded(1):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        hot = torch.cat([torch.eye(4), torch.ones(4, 1)], 1)
        return network(torch.ones(4, 4), torch.zeros(4), hot)


def test_without_a_table_only_reached_genes_move():
    y = outputs(Knocked(4, 5, made(depth=1), width=8, own=False))
    assert (y != y[0]).tolist()[1:] == [
        [True, True, False, False], [False, True, True, False], [True, True, True, False],
    ]  # fmt: skip


def test_untried_knock_outs_share_the_rule():
    """Trained to silence the first gene alone, the network silences another one too."""
    none = torch.zeros(4, 4)
    with seeded(0):
        network = Knocked(4, 5, Propagate(MARKS, none, [0, 1, 2, 3]), width=8, own=False)
    hot = torch.cat([torch.eye(4), torch.ones(4, 1)], 1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    target = torch.ones(2, 4)
    target[1, 0] = -2.0  # gene 0 is knocked out
    for _ in range(150):
        optimiser.zero_grad()
        y = network(torch.zeros(2, 4), torch.zeros(2), hot[:2])
        (y - target).square().sum().backward()
        optimiser.step()
    with torch.no_grad():
        y = network(torch.zeros(1, 4), torch.zeros(1), hot[2:3])
    assert torch.allclose(y, torch.tensor([[1.0, -2.0, 1.0, 1.0]]), atol=0.3)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"marks \(4, 4\) and a network \(3, 3\); give marks"):
        Propagate(MARKS, torch.zeros(3, 3), [0])
    with pytest.raises(ValueError, match="reads 1 genes of 4 nodes, with depth 3; give numbers"):
        Propagate(MARKS, CHAIN, [4])
    with pytest.raises(ValueError, match="Knocked was built with condition=5 and got one of widt"):
        Knocked(4, 5, made())(torch.ones(2, 4), torch.ones(2), torch.ones(2, 4))
