"""Bridges between populations whose maps are known."""

import pytest
import torch

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Domains, LinearGaussian, Silent
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.models import Bridge
from subjunctive.models.bridge import lay_out
from subjunctive.query import counterfactual
from subjunctive.store import load, save
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

GRAPH = Graph.parse("perturbation -> cells")
KINDS = ("control", "A", "B")
NETWORK = [("A", "B", 1.0), ("B", "C", -1.0)]


def variables(**options):
    return {
        "perturbation": Variable("perturbation", kind="categorical", categories=KINDS),
        "cells": Variable("cells", (3,), **options),
    }


def built(given=None, **options):
    options = {"steps": 5, "width": 16, "blocks": 1, **options}
    with seeded(0):
        return Bridge(GRAPH, given or variables(loc=2.0), ("A", "B", "C"), NETWORK, **options)


def test_two_sides_share_their_noise_and_the_perturbed_one_all_knock_outs():
    cells = built().mechanisms["cells"]
    assert isinstance(cells, Domains)
    still, *moved = cells.mechanisms
    assert all(m is moved[0] for m in moved)
    assert still is not moved[0]
    assert [len(m.parents) for m in (still, moved[0])] == [0, 1]
    assert isinstance(still, Silent)
    one = built(shared=True, silent=False).mechanisms["cells"]
    assert isinstance(one, Diffusion)


def shifted(rows):
    """Cells that are 2 + noise, and one less in the second gene if A is knocked out; B is rare."""
    kind = torch.arange(rows) % 2
    x = 3 + 0.5 * torch.randn(rows, 3)
    x[:, 1] -= 1.0 * kind
    return Batch({"perturbation": kind, "cells": x.clamp(min=0.01)})


@pytest.mark.parametrize("shared", [True, False])
def test_a_bridge_finds_a_shift_cell_by_cell(shared):
    with seeded(1):
        data, new = shifted(3000), shifted(100)
    model = built(variables(loc=2.5, scale=0.5), shared=shared, silent=False)
    fit(model, data, steps=250, batch_size=250, lr=1e-2, ema=0.98, progress=False)
    still = new[new.values["perturbation"] == 0]
    x = still.values["cells"]
    y = counterfactual(model, still, {"perturbation": "A"}, seed=0)["cells"]
    assert torch.allclose(counterfactual(model, still, {}, seed=0)["cells"], x, atol=1e-3)
    truth = x - torch.tensor([0.0, 1.0, 0.0])
    error, copied = ((v - truth).square().mean().sqrt() for v in (y, x))
    assert error < 0.4 * copied
    correlation = torch.corrcoef(torch.stack([y[:, 1], truth[:, 1]]))[0, 1]
    assert correlation > 0.9  # the same cell, not any cell


def test_a_knock_out_without_rows_acts_by_its_place_alone():
    model = built(shared=True, silent=False)
    network = model.mechanisms["cells"].denoiser.network
    effects = network.propagate.effects().abs().sum(2)
    assert (effects[1] != 0).all()
    assert (effects[2] != 0).tolist() == [False, True, True]


def test_names_are_laid_out_with_those_that_are_not_measured():
    marks, arrows, places = lay_out(("none", "B+R"), ("A", "B"), [("R", "S", 0.5)], "none")
    assert marks.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]
    assert arrows.nonzero().tolist() == [[2, 3]]
    assert places == [0, 1]


def test_a_saved_bridge_answers_the_same(tmp_path):
    model = built()
    save(model, tmp_path / "bridge")
    again = load(tmp_path / "bridge")
    cells = model.sample(8, seed=0)
    ask = {"perturbation": "B"}
    first, second = (counterfactual(m, cells, ask, seed=1)["cells"] for m in (model, again))
    assert torch.equal(first, second)
    moved = again.mechanisms["cells"].mechanisms
    assert moved[1] is moved[2]


def test_other_nodes_and_mechanisms_have_their_place():
    given = variables() | {"batch": Variable("batch")}
    graph = Graph.parse("perturbation, batch -> cells")
    with seeded(0):
        own = {"batch": LinearGaussian(given["batch"])}
        model = Bridge(graph, given, ("A", "B", "C"), NETWORK, steps=3, width=8, mechanisms=own)
    assert model.mechanisms["batch"] is own["batch"]
    assert [len(m.parents) for m in model.mechanisms["cells"].mechanisms[:2]] == [1, 2]
    assert model.sample(4, seed=0)["cells"].shape == (4, 3)


def test_mistakes_are_explained():
    with pytest.raises(KeyError, match=r"Bridge\(control='none'\) names no category of 'perturb"):
        built(control="none")
    with pytest.raises(ValueError, match=r"'cells' has shape \(3,\) and genes= names 2 of them"):
        Bridge(GRAPH, variables(), ("A", "B"))
    with pytest.raises(KeyError, match=r"Bridge\(cells=\) names unknown node 'cell'"):
        built(cells="cell")
    wrong = Graph.parse("cells -> perturbation")
    with pytest.raises(ValueError, match="Bridge needs 'perturbation' among its parents, and no"):
        Bridge(wrong, variables(), ("A", "B", "C"))
