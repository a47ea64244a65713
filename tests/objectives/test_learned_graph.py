"""Graphs recovered with and without an order, alone and beneath a picture, and what is refused."""

import pytest
import torch
from torch import nn

from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import LinearGaussian
from subjunctive.models import CausalDiffAE
from subjunctive.objectives import LearnedGraph, candidates, dagma, notears
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

NAMES = list("abcde")
TRUTH = {("a", "b"): 0.9, ("a", "c"): -0.7, ("b", "d"): 0.6, ("c", "d"): 0.8, ("d", "e"): -0.5}


def linear(rows=1000, seed=0):
    """Rows of a linear SCM, noise of deviation 0.8."""
    graph, values = Graph.from_edges(TRUTH, NAMES), {}
    with seeded(seed):
        for n in NAMES:
            mean = sum((TRUTH[p, n] * values[p] for p in graph.parents(n)), torch.zeros(rows))
            values[n] = mean + 0.8 * torch.randn(rows)
    return Batch(values)


def flat(variables):
    return SCM(Graph([v.name for v in variables]), {v.name: LinearGaussian(v) for v in variables})


def test_candidates_follow_an_order_or_a_graph():
    variables = [Variable(n) for n in "abc"]
    free = candidates(variables)
    assert [p.name for p in free["b"].parents] == ["a", "c"]
    chain = candidates(variables, within=Graph.parse("a -> b -> c"))
    assert {n: [p.name for p in m.parents] for n, m in chain.items()} == {
        "a": [], "b": ["a"], "c": ["b"],
    }  # fmt: skip
    with pytest.raises(ValueError, match="names each of"):
        candidates(variables, order=["a", "b"])
    with pytest.raises(KeyError, match="unknown node 'd'"):
        candidates(variables, order=["a", "b", "d"])


# Graphs that are recovered ------------------------------------------------------------------------


def test_a_linear_scm_is_recovered_with_its_order():
    data = linear()
    variables = [Variable(n) for n in NAMES]
    with seeded(0):
        rule = LearnedGraph(candidates(variables, order=NAMES, kind=LinearGaussian), rest=100)
    model = flat(variables)
    fit(model, data, rule, steps=300, batch_size=200, lr=0.03, ema=None, warmup=10, progress=False)
    found = rule.scm(model)
    assert found.graph == Graph.from_edges(TRUTH, NAMES)
    assert rule.potentials is None  # nothing is left to order
    assert float(rule.penalty(rule.probabilities()).detach()) == pytest.approx(0.0, abs=1e-6)
    for (cause, effect), weight in TRUTH.items():
        noise = {n: torch.zeros(2) for n in NAMES}
        held = {n: 0.0 for n in NAMES if n not in (cause, effect)}
        with torch.no_grad():
            moved = found.predict(noise, {cause: torch.tensor([0.0, 1.0]), **held})[effect]
        assert float(moved[1] - moved[0]) == pytest.approx(weight, abs=0.08)


def test_a_nonlinear_graph_is_recovered_without_an_order():
    with seeded(0):
        a = 4 * torch.rand(1500) - 2
        c = torch.sin(2 * a) + 0.2 * torch.randn(1500)
        d = c.square() + 0.2 * torch.randn(1500)
    values = {"d": d, "c": c, "a": a}
    variables = [Variable(n).fit(v) for n, v in values.items()]
    with seeded(1):
        rule = LearnedGraph(candidates(variables), price=0.1, rest=250)
    model = flat(variables)
    fit(model, Batch(values), rule, steps=600, batch_size=200, lr=0.01, ema=None, warmup=10,
        progress=False)  # fmt: skip
    assert rule.scm(model).graph == Graph.from_edges([("a", "c"), ("c", "d")], "dca")


# With the latent models ---------------------------------------------------------------------------


def test_a_diffusion_autoencoder_gets_its_graph_from_names_alone(tmp_path):
    size = 8
    variables = {n: Variable(n) for n in "ab"} | {"x": Variable("x", (1, size, size))}
    with seeded(0):
        a = torch.rand(400) * 2 - 1
        b = 2 * a.square() - 0.7 + 0.2 * torch.randn(400)
        x = torch.randn(400, 1, size, size) * 0.1 + a[:, None, None, None]
        x[:, :, : size // 2] += b[:, None, None, None]
        seen = torch.rand(400) < 0.8
    variables = {n: v.fit(t) for (n, v), t in zip(variables.items(), (a, b, x), strict=True)}
    with seeded(1):
        graph = Graph.parse("a, b -> x")
        model = CausalDiffAE(graph, variables, code=2, width=4, multipliers=(1, 2))
        rule = LearnedGraph(candidates([variables["a"], variables["b"]]), rest=150)
    data = Batch({"a": a, "b": torch.where(seen, b, torch.nan), "x": x}, {"b": seen})
    fit(model, data, rule, steps=300, batch_size=40, lr=0.01, ema=None, warmup=10, progress=False)
    found = rule.scm(model)
    assert found.graph == Graph.parse("a -> b; a, b -> x")
    assert isinstance(found, SCM)
    found.save(tmp_path / "model")
    again, rows = load(tmp_path / "model"), data[:4].only(["x"])
    do = {"a": 0.5}
    first, other = (counterfactual(m, rows, do, seed=0) for m in (found, again))
    assert torch.equal(first["x"], other["x"])
    moved = counterfactual(found, Batch({"a": a, "b": b, "x": x})[:50], {"a": -a[:50]}, seed=0)
    assert float((moved["b"] - b[:50]).abs().mean()) < 0.25  # even in a


def test_missing_labels_pay_their_kl_and_seen_ones_their_likelihood():
    a, x = Variable("a"), Variable("x", (3,))
    with seeded(0):
        model = SCM(Graph.parse("a -> x"), {"a": LinearGaussian(a), "x": LinearGaussian(x, [a])},
                    Regression(x, [a], nn.Linear(3, 4), 4))  # fmt: skip
        rule = LearnedGraph(candidates([a], kind=LinearGaussian))
        rows = torch.randn(6, 3)
    seen = torch.tensor([True, False] * 3)
    batch = Batch({"a": torch.ones(6), "x": rows}, {"a": seen})
    rule.gated[0].mechanism.load_state_dict(model.mechanisms["a"].state_dict())
    with seeded(1):
        ours = rule.loss(model, batch, "model", 0)
    with seeded(1):
        own = model.loss(batch)
    for name in ("a.label", "a.kl", "a.nll", "x.nll"):
        assert torch.allclose(ours[name], own[name], atol=1e-6), name
    assert float(ours["edges"].abs().max()) == 0


@pytest.mark.parametrize("penalty", [notears, dagma])
def test_gates_alone_lose_their_cycle_to_the_lagrangian_and_are_resumed(tmp_path, penalty):
    with seeded(0):
        a = torch.randn(300)
        values = {"a": a, "b": a + 0.5 * torch.randn(300)}  # either direction fits as well
    variables = [Variable(n) for n in "ab"]
    done = {}
    for steps in ([200], [120, 200]):
        with seeded(0):
            rule = LearnedGraph(candidates(variables, kind=LinearGaussian), penalty=penalty,
                                ordering=False, rest=20, every=20)  # fmt: skip
        model = flat(variables)
        for i, until in enumerate(steps):
            fit(model, Batch(values), rule, steps=200, lr=0.02, ema=None, warmup=10, progress=False,
                directory=tmp_path / f"{len(steps)}", resume=i > 0, save_every=60, decay="constant",
                callbacks=[lambda moment, until=until: moment.step >= until])  # fmt: skip
        done[len(steps)] = rule
    strengths = done[1].probabilities().detach()
    assert float(strengths.max()) > 0.5
    assert float(strengths[0, 1] * strengths[1, 0]) < 0.1
    assert float(done[1].multiplier) > 0
    assert len(done[1].graph().edges) == 1
    for name, value in done[1].state_dict().items():
        assert torch.equal(value, done[2].state_dict()[name]), name


def test_an_edge_is_as_likely_as_it_is_drawn():
    variables = [Variable(n) for n in "abc"]
    with seeded(0):
        rule = LearnedGraph(candidates(variables, kind=LinearGaussian)).train()
        with torch.no_grad():
            rule.potentials.copy_(torch.tensor([0.1, 0.0, -0.1]))
            drawn, chance = rule._order(40000)
            edges = drawn.clone()
            for i, name in enumerate(rule.nodes):
                gate = rule.mechanism(name)
                edges[:, rule._places(gate), i] *= gate.gates(40000)
            assert torch.allclose(edges.mean(0), rule.probabilities(), atol=0.015)
    assert bool((torch.linalg.matrix_power(edges, 3) == 0).all())  # every row's graph is acyclic
    for which in drawn.unique(dim=0):  # the chance of an order is how often it comes
        rows = (drawn == which).all(2).all(1)
        assert float(rows.float().mean()) == pytest.approx(float(chance[rows][0].exp()), abs=0.01)
    decided = rule.eval()._order(1)[0][0]
    assert torch.equal(decided, torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]))


def test_a_model_that_does_not_fit_is_refused():
    a, b, x = Variable("a"), Variable("b"), Variable("x")
    rule = LearnedGraph(candidates([a], kind=LinearGaussian))
    with pytest.raises(ValueError, match="learns edges of an SCM, got a Linear"):
        rule.loss(nn.Linear(1, 1), Batch({"a": torch.zeros(2)}), "model", 0)
    mechanisms = {"b": LinearGaussian(b), "a": LinearGaussian(a, [b])}
    below = SCM(Graph.parse("b -> a"), mechanisms)
    with pytest.raises(ValueError, match=r"'a' has the parents \['b'\], which are not learned"):
        rule.scm(below)
    with pytest.raises(KeyError, match="unknown node 'a'"):
        rule.scm(SCM(Graph(["x"]), {"x": LinearGaussian(x)}))
    other = Variable("a", loc=1.0)
    with pytest.raises(ValueError, match="built with another Variable"):
        rule.scm(SCM(Graph(["a"]), {"a": LinearGaussian(other)}))
    with pytest.raises(ValueError, match="every >= 1, growth > 1"):
        LearnedGraph({}, growth=1.0)
    with pytest.raises(KeyError, match="the gates of 'b' names unknown node 'a'"):
        LearnedGraph({"b": candidates([a, b])["b"]})
