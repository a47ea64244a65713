"""The Perturb-seq loader, on a small file of the same layout."""

import numpy as np
import pytest
import torch

from subjunctive.data.perturb import PATHWAY, Papalexi, normalise

GENES = np.array(["QUIET", "STAT1", "LOUD", "JAK2"])
TARGETS = ("non-targeting", "STAT1", "JAK2")


@pytest.fixture
def place(tmp_path):
    draw = np.random.default_rng(0)
    counts = draw.poisson([0.05, 2.0, 9.0, 0.01], (90, 4))
    counts[:, 2] += 1  # no empty cell
    counts[:, 1] = counts[:, 2]  # wholly co-expressed
    rows, columns = counts.nonzero()
    np.savez(
        tmp_path / "papalexi2021.npz",
        data=counts[rows, columns].astype(np.int16),
        indices=columns.astype(np.int32),
        indptr=np.searchsorted(rows, np.arange(91)).astype(np.int32),
        shape=np.array([90, 4]),
        genes=GENES,
        target=np.array(TARGETS)[np.arange(90) % 3],
    )
    return tmp_path, torch.from_numpy(counts)


def everything(data):
    return torch.cat([p.context["counts"] for p in (data.train, data.valid, data.test)])


def test_counts_are_those_of_the_file_and_cells_their_logarithm(place):
    data = Papalexi(place[0])
    found = everything(data)
    assert data.perturbations == ("control", "JAK2", "STAT1")
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, place[1].float().tolist()))
    library = torch.cat([p.context["library"] for p in (data.train, data.valid, data.test)])
    assert torch.equal(library, found.sum(1))
    cells = torch.cat([p.values["cells"] for p in (data.train, data.valid, data.test)])
    assert torch.allclose(cells, normalise(found, library))
    assert torch.allclose(cells.expm1().sum(1), library.median().expand(90), rtol=1e-4)


def test_every_kind_is_split_in_proportion_and_held_out_kinds_are_test_alone(place):
    data = Papalexi(place[0], hold_out=["JAK2"])
    counts = [torch.bincount(p.values["perturbation"], minlength=3).tolist()
              for p in (data.train, data.valid, data.test)]  # fmt: skip
    assert counts == [[24, 0, 24], [3, 0, 3], [3, 30, 3]]


def test_the_most_expressed_genes_are_kept_and_those_perturbed_first(place):
    assert Papalexi(place[0], genes=3).genes == ("STAT1", "LOUD", "JAK2")
    data = Papalexi(place[0], genes=3)
    assert torch.equal(data.train.context["library"] >= data.train.context["counts"].sum(1),
                       torch.ones(len(data.train), dtype=torch.bool))  # fmt: skip


def test_the_network_has_the_pathway_and_what_controls_co_express(place):
    found = {(a, b): w for a, b, w in Papalexi(place[0]).network(least=0.9)}
    assert set(PATHWAY) <= set(found)
    assert found["STAT1", "LOUD"] == pytest.approx(1.0, abs=0.01)
    assert not [arrow for arrow in found if "JAK2" in arrow and arrow not in PATHWAY]


def test_mistakes_are_explained(place):
    with pytest.raises(FileNotFoundError, match=r"no data found for 'papalexi2021_MIT'.*Give data"):
        Papalexi("/nowhere")
    with pytest.raises(KeyError, match=r"Papalexi\(hold_out=\) names unknown node 'JAK3'.*'JAK2'"):
        Papalexi(place[0], hold_out=["JAK3"])
    with pytest.raises(ValueError, match="genes is 0; keep at least one gene"):
        Papalexi(place[0], genes=0)
