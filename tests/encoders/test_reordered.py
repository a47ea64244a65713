"""An encoder asked in another order: the same draws, the same law, and who needs it."""

import torch
from torch import nn

from subjunctive.encoders import Regression, Reordered
from subjunctive.encoders.reordered import fitting
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Gated, LinearGaussian, decided
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.variable import Batch, Variable

A, B, X = Variable("a"), Variable("b"), Variable("x", (3,))
K = Variable("k", kind="categorical", categories=("u", "v"))


def encoder():
    with seeded(0):
        return Regression(X, [B, K, A], nn.Linear(3, 4), 4)


def test_draws_and_densities_are_the_encoders_own():
    inner, seen = encoder(), {"b": torch.tensor([True, False, True, False, False])}
    with seeded(1):
        values = {"x": torch.randn(5, 3), "b": torch.randn(5)}
    with seeded(2):
        posterior, own = inner(values, seen), dict(values)
        own["b"] = torch.where(seen["b"], values["b"], posterior("b", own).rsample())
        own["k"] = posterior("k", own).sample()
        own["a"] = posterior("a", own).rsample()
        want = {n: posterior(n, own).log_prob(own[n]) for n in "abk"}
    with seeded(2):
        asked, found = Reordered(inner)(values, seen), {}
        for name in "akb":
            law = asked(name, {})
            found[name] = law.rsample() if law.has_rsample else law.sample()
            if name != "b":
                assert torch.equal(found[name], own[name])
            assert torch.allclose(law.log_prob(own[name]), want[name])
    assert torch.equal(found["b"][~seen["b"]], own["b"][~seen["b"]])
    assert found["a"].requires_grad
    assert not asked("a", {}).sample().requires_grad
    assert not asked("k", {}).has_rsample
    assert torch.equal(asked("a", {}).mean, posterior("a", own).mean)


def test_only_an_encoder_of_another_order_is_reordered():
    inner = encoder()
    assert fitting(inner, Graph.parse("b -> k; k -> a; a, b, k -> x")) is inner
    turned = fitting(inner, Graph.parse("a -> b; k, a, b -> x"))
    assert isinstance(turned, Reordered)
    assert (turned.nodes, turned.inputs, turned.beta) == (inner.nodes, inner.inputs, inner.beta)
    assert fitting(turned, Graph.parse("a -> b; b -> k; k -> x")) is turned
    assert fitting(None, Graph.parse("a -> b")) is None


def test_a_graph_that_was_decided_is_asked_of_pictures_alone(tmp_path):
    own = {"a": Gated.of(A, [B]), "b": LinearGaussian(B), "x": LinearGaussian(X, [A, B])}
    graph = Graph.from_edges([("b", "a"), ("a", "x"), ("b", "x")], ["a", "b", "x"])
    with seeded(0):
        model = SCM(graph, own, Regression(X, [B, A], nn.Linear(3, 4), 4))
    model.mechanisms["a"].raw.data.fill_(-1.0)  # no edge is left: the order is that of the names
    less = decided(model)
    rows = Batch({"x": torch.randn(6, 3)})
    first = counterfactual(less, rows, {"b": 1.0}, seed=0)
    assert torch.equal(first["b"], torch.ones(6))
    less.save(tmp_path / "less")
    assert torch.equal(counterfactual(load(tmp_path / "less"), rows, {"b": 1.0}, seed=0)["x"],
                       first["x"])  # fmt: skip


def test_a_loss_has_gradients_through_the_draws():
    graph = Graph.from_edges([("a", "x"), ("b", "x")], ["a", "b", "x"])
    own = {"a": LinearGaussian(A), "b": LinearGaussian(B), "x": LinearGaussian(X, [A, B])}
    with seeded(0):
        reader = Regression(X, [B, A], nn.Linear(3, 4), 4)
        model = SCM(graph, own, fitting(reader, graph))
    terms = model.loss(Batch({"x": torch.randn(4, 3)}))
    sum(t.sum() for t in terms.values()).backward()
    assert all(p.grad is not None for p in reader.parameters())
