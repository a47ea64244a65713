"""The simulated cells: their truth, their silence, and what is held out."""

import pytest
import torch

from subjunctive.data.cells import GeneCells


@pytest.fixture(scope="module")
def data():
    return GeneCells(cells=100, test=200, seed=1)


def control(data):
    return data.test[data.test.values["perturbation"] == 0]


def test_rows_are_what_the_equations_make_of_their_noise(data):
    assert torch.equal(data.oracle.predict(data.oracle.abduct(data.test))["cells"],
                       data.test.values["cells"])  # fmt: skip


def test_a_knock_out_silences_its_gene_and_moves_descendants_alone(data):
    still = control(data)
    noise, x = data.oracle.abduct(still), still.values["cells"]
    reach = torch.linalg.inv(torch.eye(30) - (data.arrows != 0).float()) > 0.5
    for kind in data.perturbations[1:]:
        y = data.oracle.predict(noise, {"perturbation": kind})["cells"]
        g = data.genes.index(kind)
        assert bool((y[:, g] == 0).all())
        moved = (y != x).any(0)
        assert not (moved & ~reach[g]).any()
        if (data.arrows[g] != 0).any():
            assert moved.sum() > 1


def test_switched_genes_are_bimodal_and_some_genes_silent(data):
    x = control(data).values["cells"]
    on = (x > 0).float().mean(0)
    assert bool(((on[data.bimodal] > 0.1) & (on[data.bimodal] < 0.999)).any())
    low = (x[:, data.bimodal] > 0) & (x[:, data.bimodal] < 1)
    assert float(low.float().mean()) < 0.02  # nothing between silent and on


def test_held_out_knock_outs_have_test_cells_alone(data):
    out = [data.perturbations.index(k) for k in data.held_out]
    assert len(out) == 3
    for part, there in ((data.train, False), (data.valid, False), (data.test, True)):
        found = torch.isin(part.values["perturbation"], torch.tensor(out)).any()
        assert bool(found) is there
    counts = torch.bincount(data.train.values["perturbation"])
    assert counts[0] == 400
    assert set(counts[1:].tolist()) == {0, 100}


def test_the_network_says_who_and_which_way_not_how_much(data):
    found = data.network()
    assert len(found) == int((data.arrows != 0).sum())
    assert {w for _, _, w in found} == {-1.0, 1.0}


def test_seeds_decide_and_the_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b = (GeneCells(genes=9, cells=5, test=4, hold_out=1, seed=3) for _ in range(2))
    assert torch.equal(a.train.values["cells"], b.train.values["cells"])
    assert torch.equal(before, torch.get_rng_state())


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"genes=9, cells=500, test=400, hold_out=3: it needs"):
        GeneCells(genes=9)
