"""Random nonlinear SCMs: what is drawn is what is told, and their truth is the truth."""

import pytest
import torch

from subjunctive.data import RandomSCM
from subjunctive.graph import Graph

FEW = {"train": 500, "valid": 10, "test": 200}


def test_sachs_has_the_arrows_that_are_agreed_on():
    data = RandomSCM("sachs", **FEW)
    assert len(data.graph.nodes) == 11
    assert int(data.graph.adjacency.sum()) == 17
    assert data.graph.is_dag
    assert set(data.graph.parents("Akt")) == {"Erk", "PKA"}
    assert set(data.graph.children("PKC")) == {"Raf", "Mek", "Jnk", "P38", "PKA"}


@pytest.mark.parametrize("graph", [None, "sachs", "a -> b; a, b -> c"])
def test_noises_explain_rows_and_counterfactuals_follow_the_equations(graph):
    data = RandomSCM(graph, seed=3, **FEW)
    found = data.invert(data.test.values)
    for node, u in found.items():
        assert torch.allclose(u, data.test.context[f"u.{node}"], atol=2e-3), node
    root = next(n for n in data.graph.order if data.graph.children(n))
    do = {root: data.test.values[root] + 0.2}
    true = data.oracle.predict(data.oracle.abduct(data.test), do)
    below = set(data.graph.descendants(root))
    for node, value in true.items():
        same = torch.equal(value, data.test.values[node])
        assert same == (node not in below | {root}), node
    # the noise that explains the counterfactual is the one that explained the row
    for node, u in data.invert(true).items():
        if node != root:
            assert torch.allclose(u, found[node], atol=4e-3), node


def test_a_seed_draws_graph_equations_and_rows():
    a, b, c = (RandomSCM(nodes=6, seed=s, **FEW) for s in (0, 0, 1))
    assert a.graph == b.graph
    assert all(torch.equal(a.train.values[n], b.train.values[n]) for n in a.graph.nodes)
    assert str(a.graph) != str(c.graph)
    same = [RandomSCM("a -> b", seed=s, **FEW) for s in (0, 1)]
    x = {"a": torch.linspace(-2, 2, 5)}
    means = [d.oracle.equations["b"](torch.zeros(5), x) for d in same]
    assert not torch.allclose(*means)


def test_effects_are_no_lines_and_noise_follows_the_parents_unless_it_is_additive():
    x = {"a": torch.linspace(-3, 3, 41)}
    for additive in (False, True):
        f = RandomSCM("a -> b", additive=additive, **FEW).oracle.equations["b"]
        mean = f(torch.zeros(41), x)
        bends = mean[2:] - 2 * mean[1:-1] + mean[:-2]
        assert float(bends.abs().max()) > 0.005
        spread = f(torch.ones(41), x) - mean
        assert (float(spread.std()) < 1e-6) == additive
        assert bool((spread > 0).all())


def test_what_is_no_graph_is_refused():
    with pytest.raises(ValueError, match="needs a DAG"):
        RandomSCM(Graph.parse("a -- b"), **FEW)
    with pytest.raises(ValueError, match="at least 2"):
        RandomSCM(nodes=1, **FEW)
