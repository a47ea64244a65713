"""The ladder's three paths: shapes, where they start, who hears whom, and what learns."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from subjunctive.mechanism import seeded
from subjunctive.nn import Ladder
from subjunctive.nn.ladder import Block

SIZES = {"widths": (4, 6, 8), "scales": (2, 4, 8), "latents": ((1,), (), (2, 3))}


def made(condition=2, conditional=False, stir=0.2, **sizes):
    with seeded(0):
        ladder = Ladder(1, (8, 16), 2, condition, conditional, **{**SIZES, **sizes})
        with torch.no_grad():
            for p in ladder.parameters():
                p.add_(stir * torch.randn_like(p))
        return ladder, torch.randn(5, 1, 8, 16), torch.randn(5, condition)


def walk(ladder, x, c, told=None):
    """Go down with the posterior's mean as noise; return z, the priors and the posteriors."""
    g, features, z, priors, posteriors = ladder.begin(len(x)), ladder.read(x), [], [], []
    for n in range(len(ladder.shapes)):
        posteriors.append(ladder.posterior(n, g, features, c))
        mean, log_scale, g = ladder.prior(n, g, c if told is None else told)
        priors.append((mean, log_scale))
        z.append(mean + log_scale.exp() * posteriors[-1][0])
        g = ladder.add(n, g, z[-1])
    return z, priors, posteriors


def test_the_constructor_is_the_config_and_groups_go_from_coarse_to_fine():
    ladder, x, c = made()
    read = {name: getattr(ladder, name) for name in inspect.signature(Ladder).parameters}
    again = Ladder(**read)
    again.load_state_dict(ladder.state_dict())
    assert ladder.shapes == ((2, 1, 2), (3, 1, 2), (1, 4, 8))
    assert [tuple(f.shape[1:]) for f in ladder.read(x)] == [(4, 4, 8), (6, 2, 4), (8, 1, 2)]
    z, priors, posteriors = walk(ladder, x, c)
    for found in (z, *zip(*priors, strict=True), *zip(*posteriors, strict=True)):
        assert tuple(tuple(t.shape[1:]) for t in found) == ladder.shapes
    assert ladder.decode(z, c).shape == (5, 2, 8, 16)
    torch.testing.assert_close(again.decode(z, c), ladder.decode(z, c))


def test_an_untrained_ladder_is_the_prior_and_decodes_zero():
    ladder, x, c = made(stir=0.0)
    z, priors, posteriors = walk(ladder, x, c)
    assert not any(t.any() for pair in priors + posteriors for t in pair)
    assert not ladder.decode([torch.randn_like(t) for t in z], c).any()


def test_a_block_is_its_formula():
    with seeded(0):
        block, x, e = Block(3, 5, 4, 3, 0.5, told=True), torch.randn(2, 3, 6, 6), torch.randn(2, 64)
    scale, shift = block.film(e).chunk(2, 1)
    inner = (1 + scale[:, :, None, None]) * block.first(F.silu(x)) + shift[:, :, None, None]
    torch.testing.assert_close(block(x, e), block.second(F.silu(inner)))


def test_what_a_block_adds_falls_with_the_root_of_the_depth():
    widths = {"widths": (16, 16, 16), "stir": 0.0}
    added = []
    for blocks in (1, 25):
        ladder, _, _ = made(blocks=blocks, **widths)
        layers = [b.second.weight for paths in (ladder.reading, ladder.making) for b in paths[0]]
        added.append(float(torch.stack(layers).detach().square().mean().sqrt()))
    assert added[0] / added[1] == pytest.approx(5, rel=0.1)


def test_who_hears_whom():
    ladder, x, c = made(conditional=False)
    other = c + 1
    z, priors, posteriors = walk(ladder, x, c)
    torch.testing.assert_close(walk(ladder, x, c, told=other)[1], priors)  # the prior is deaf
    assert (walk(ladder, x, other)[2][0][0] - posteriors[0][0]).abs().max() > 1e-4
    assert (walk(ladder, x + 1, c)[2][0][0] - posteriors[0][0]).abs().max() > 1e-4
    assert (ladder.decode(z, other) - ladder.decode(z, c)).abs().max() > 1e-4
    for n in range(len(z)):  # every group reaches the image, and the priors of those below it
        moved = [t + 1.0 if i == n else t for i, t in enumerate(z)]
        assert (ladder.decode(moved, c) - ladder.decode(z, c)).abs().max() > 1e-4
    told, _, _ = made(conditional=True)
    assert (walk(told, x, c, told=other)[1][0][0] - walk(told, x, c)[1][0][0]).abs().max() > 1e-4


def test_a_group_places_the_groups_below_it():
    ladder, _, c = made()
    g = ladder.begin(5)
    for n in range(2):
        _, _, on = ladder.prior(n, g, c)
        near, far = (ladder.add(n, on, torch.full((5, *ladder.shapes[n]), v)) for v in (0.0, 2.0))
        assert near.shape[2:] == ladder.shapes[n + 1][1:]
        below = [ladder.prior(n + 1, path, c)[0] for path in (near, far)]
        assert (below[0] - below[1]).abs().max() > 1e-4
        g = near
    assert ladder.add(2, g, torch.randn(5, 1, 4, 8)) is g  # nothing comes after the last


@pytest.mark.parametrize(
    "sizes",
    [{}, {"conditional": True}, {"condition": 0}, {"latents": ((), (), (2,)), "blocks": 2},
     {"latents": ((), (1, 1), (2,))}],
)  # fmt: skip
def test_everything_learns_and_rows_are_alone(sizes):
    ladder, x, c = made(**sizes)
    z, priors, posteriors = walk(ladder, x, c)
    found = [ladder.decode(z, c), *(t for pair in priors + posteriors for t in pair)]
    sum(t.square().sum() for t in found).backward()
    assert [n for n, p in ladder.named_parameters() if p.grad is None or not p.grad.any()] == []
    one, _, _ = walk(ladder, x[:1], c[:1])
    torch.testing.assert_close(ladder.decode(one, c[:1]), found[0][:1])


def test_wrong_sizes_are_named():
    def build(**sizes):
        return Ladder(1, 8, 1, **{**SIZES, **sizes})

    with pytest.raises(ValueError, match=r"multiples of 8, got 12x12; pad to 16x16 or give other"):
        Ladder(1, 12, 1, **SIZES)
    with pytest.raises(ValueError, match=r"scales=\(2, 3, 8\); each must divide the next"):
        build(scales=(2, 3, 8))
    with pytest.raises(ValueError, match=r"a width, a scale and latents for each .*widths=\(4,\)"):
        build(widths=(4,))
    with pytest.raises(ValueError, match="and blocks=0"):
        build(blocks=0)
    with pytest.raises(ValueError, match="the last, coarsest resolution needs a group"):
        build(latents=((1,), (1,), ()))
    with pytest.raises(ValueError, match="each group a channel"):
        build(latents=((0,), (1,), (1,)))
    with pytest.raises(ValueError, match="conditional Ladder needs condition >= 1, got 0"):
        build(conditional=True)
