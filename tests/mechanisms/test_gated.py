"""Gates: what they cut, what they are worth, and what is left when they are decided."""

import pytest
import torch

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import GAN, Categorical, Gated, LinearGaussian, Ordinal, decided
from subjunctive.mechanisms.gated import SPEED, columns, hold
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.variable import Variable

A, B, K = Variable("a"), Variable("b"), Variable("k", kind="categorical", categories=("u", "v"))
X = Variable("x")


def linear(start=0.75):
    """x = 2 a - b + [3, 5][k] + u, behind gates."""
    inner = LinearGaussian.of(X, columns([A, B, K]), weights=[2.0, -1.0, 3.0, 5.0])
    return Gated(inner, [A, B, K], start)


def rows(n=4):
    with seeded(0):
        return {"a": torch.randn(n), "b": torch.randn(n), "k": torch.arange(n) % 2}


def shut(mechanism, *names):
    with torch.no_grad():
        for j, p in enumerate(mechanism.parents):
            mechanism.raw[j] = -1.0 if p.name in names else 1.0
    return mechanism


def test_a_gate_that_is_shut_cuts_its_parent_and_no_other():
    pa, u = rows(), torch.zeros(4)
    full = 2 * pa["a"] - pa["b"] + torch.tensor([3.0, 5.0])[pa["k"]]
    mechanism = shut(linear()).eval()
    assert torch.allclose(mechanism(u, pa), full)
    assert torch.allclose(shut(mechanism, "b")(u, pa), full + pa["b"])
    assert torch.allclose(shut(mechanism, "k", "a")(u, pa), -pa["b"])
    assert torch.allclose(mechanism.abduct(-pa["b"] + 1, pa), torch.ones(4))


def test_in_training_a_gate_is_open_as_often_as_it_says():
    mechanism = linear(start=0.3).train()
    pa = {"a": torch.ones(20000), "b": torch.zeros(20000), "k": torch.zeros(20000).long()}
    with seeded(0), torch.no_grad():
        x = mechanism(torch.zeros(20000), pa)
    assert set(x.round().unique().tolist()) == {0.0, 2.0, 3.0, 5.0}  # a and k, each open or shut
    assert float((x.round() % 3 == 2).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((x.round() >= 3).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_the_slope_of_a_gate_is_what_its_parent_is_worth():
    mechanism, n = linear(start=0.5).train(), 200_000
    with seeded(0):
        pa = {"a": torch.randn(n), "b": torch.randn(n), "k": torch.zeros(n).long()}
        x = pa["a"] + 0.5 + torch.randn(n)
        found = mechanism.loss(x, pa)["nll"]
        (slope,) = torch.autograd.grad(found.mean(), mechanism.raw)
    # with e = 1 / 2: the error is a (1 - 2 g_a) + g_b b + 1/2 - 3 g_k + u, its square's mean
    # 1 + 1 for either g_a, g_b = 0 or 1, and 1/4 or 25/4 for g_k; a slope in l is p (1 - p) of it
    want = torch.tensor([0.0, 0.5, 3.0]) / 4 * SPEED
    assert torch.allclose(slope, want, atol=0.1)
    assert float(found.mean().detach()) == pytest.approx(2.875 + 0.919, abs=0.02)


def test_gates_at_rest_are_drawn_and_do_not_learn():
    mechanism, pa = linear(start=0.5).train(), rows(200)
    hold(mechanism, True)
    with seeded(0):
        x = mechanism(torch.zeros(200), pa)
        loss = mechanism.loss(torch.zeros(200), pa)["nll"].sum()
    assert len(x.unique()) > 100
    loss.backward()
    assert mechanism.raw.grad is None
    assert mechanism.mechanism.weight.grad is not None
    hold(mechanism, False)
    with seeded(0):
        mechanism.loss(torch.zeros(200), pa)["nll"].sum().backward()
    assert bool(mechanism.raw.grad.abs().min() > 0)


def test_what_is_decided_has_fewer_parents_and_answers_the_same(tmp_path):
    graph = Graph.parse("a, b, k -> x")
    own = {"a": LinearGaussian(A), "b": LinearGaussian(B), "k": Categorical(K)}
    model = SCM(graph, {**own, "x": shut(linear(), "b")}).eval()
    less = decided(model)
    assert less.graph == Graph.from_edges([("a", "x"), ("k", "x")], graph.nodes)
    noise = model.noise(50)
    full, small = model.predict(noise, {"a": 1.0}), less.predict(noise, {"a": 1.0})
    assert all(torch.equal(full[n], small[n]) for n in graph.nodes)
    assert [p.name for p in less.mechanisms["x"].parents] == ["a", "k"]
    assert less.mechanisms["x"].raw is None
    less.save(tmp_path / "less")
    again = load(tmp_path / "less").predict(noise)
    assert all(torch.equal(again[n], v) for n, v in less.predict(noise).items())
    only = decided(model, Graph.parse("a, b, k, x; b -> x"))
    assert only.graph.parents("x") == ("b",)


def test_the_mechanism_behind_the_gates_suits_the_node():
    stage = Variable("s", kind="ordinal", categories=("i", "ii", "iii"))
    assert isinstance(Gated.of(K, [A]).mechanism, Categorical)
    assert isinstance(Gated.of(stage, [A]).mechanism, Ordinal)
    assert Gated.of(X, [K]).mechanism.parents == (Variable("k", (2,)),)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"takes Variable\(name='a', shape=\(\).*columns"):
        Gated(LinearGaussian(X, [A]), [A])
    with pytest.raises(KeyError, match="unknown node 'b'"):
        Gated(LinearGaussian(X, columns([A])), [B])
    with pytest.raises(ValueError, match="start at 0; give a probability above 0"):
        Gated.of(X, [A], start=0)
    with pytest.raises(ValueError, match="GAN of 'x' has no density"):
        Gated(GAN(X))
    with pytest.raises(KeyError, match=r"decided\(\) of 'x' names unknown node 'c'"):
        linear().decided(["c"])
