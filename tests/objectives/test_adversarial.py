"""The game of DEAR on laws that are known: what it moves, what it is least at, what it refuses."""

import math

import pytest
import torch
from torch import nn

from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import GAN, Gated, LinearGaussian
from subjunctive.mechanisms.gated import columns
from subjunctive.objectives import Adversarial, critic
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

A, X = Variable("a"), Variable("x", (2,))


def model(seed=0, residual=True):
    """a -> x, labels read from x."""
    with seeded(seed):
        mechanisms = {"a": LinearGaussian(A), "x": GAN(X, [A], 1, widths=(24,), residual=residual)}
        reader = nn.Sequential(nn.Linear(2, 24), nn.SiLU())
        return SCM(Graph.parse("a -> x"), mechanisms, Regression(X, [A], reader, 24))


def rows(n=2000, share=0.3, seed=0):
    """x = (a + 0.5 z, a - 0.5 z), and few labels."""
    with seeded(seed):
        a, z = 0.5 + 0.8 * torch.randn(n), torch.randn(n)
        seen = torch.rand(n) < share
    x = torch.stack([a + 0.5 * z, a - 0.5 * z], 1)
    return Batch({"a": torch.where(seen, a, torch.nan), "x": x}, {"a": seen}), a, z


def game(seed=0, **options):
    with seeded(seed):
        return Adversarial("x", critic(X, [A], 1, (32, 32)), **options)


def test_it_learns_causes_code_and_generator_from_a_few_labels():
    data, a, _ = rows()
    scm, rules = model(), game()
    fit(scm, data, rules, steps=500, batch_size=64, lr=3e-3, ema=0.98, warmup=10, progress=False)
    sample = scm.sample(4000, seed=0)
    truth = data.values["x"]
    assert torch.allclose(sample["x"].mean(0), truth.mean(0), atol=0.15)
    assert torch.allclose(torch.cov(sample["x"].T), torch.cov(truth.T), atol=0.2)
    assert float(sample["a"].mean()) == pytest.approx(0.5, abs=0.1)
    done = counterfactual(scm, data.only(["x"])[:500], {"a": a[:500] + 1}, seed=0)
    moved = done["x"] - truth[:500]
    assert torch.allclose(moved.mean(0), torch.ones(2), atol=0.15)
    with torch.no_grad():
        q = scm.encoder({"x": truth}, {})("a", {})
    assert float((q.mean - a).abs().mean()) < 0.15


def test_the_critic_tells_the_log_ratio_of_the_two_laws():
    data, _, _ = rows(share=1.0)
    scm, rules = model(), game(penalty=0.0)
    for p in scm.parameters():
        p.requires_grad_(False)

    class Still(Adversarial):
        """The critic's game alone."""

        def players(self, model):
            return super().players(model)[:1]

    rules.__class__ = Still
    with torch.no_grad():  # the model's law is the data's, but that its causes are 0.5 lower
        scm.mechanisms["a"].log_scale.fill_(math.log(0.8))
    pair = scm.mechanisms["x"]
    pair.generator, pair.encoder = Pair(), Reader()
    fit(scm, data, rules, steps=600, batch_size=500, lr=5e-3, ema=None, warmup=10, progress=False)
    with torch.no_grad(), seeded(1):
        values = data.values
        x, parents, code = rules._real(pair, values)
        said = rules._say(pair, x, parents, code)
    q, p = torch.distributions.Normal(0.5, 0.8), torch.distributions.Normal(0.0, 0.8)
    want = q.log_prob(values["a"]) - p.log_prob(values["a"])
    assert float((said - want).abs().mean()) < 0.2
    assert float(said.mean()) == pytest.approx(float(want.mean()), abs=0.1)


class Pair(nn.Module):
    """The true generator, (a + 0.5 z, a - 0.5 z), of z and a."""

    def forward(self, both):
        z, a = both[:, 0], both[:, 1]
        return torch.stack([a + 0.5 * z, a - 0.5 * z], 1)


class Reader(nn.Module):
    """The true code, x_0 - x_1, with almost no spread."""

    def forward(self, x, c):
        code = (x[:, :1] - x[:, 1:]) + 0 * c
        return torch.cat([code, torch.full_like(code, -10.0)], 1)


def test_the_scm_learns_by_the_likelihood_of_what_is_drawn():
    data, _, _ = rows()
    scm, rules = model(), game()
    with seeded(3):
        terms = rules.loss(scm, data, "model", 0)
    with seeded(3):
        drawn = scm.complete(data, reparametrised=True).values["a"]
    want = -scm.mechanisms["a"].log_prob(drawn, {})
    assert torch.allclose(terms["a.prior"], want, atol=1e-5)
    own = list(scm.mechanisms["a"].parameters())
    total = torch.stack([t.mean() for t in terms.values()]).sum()
    slope = torch.autograd.grad(total, own, retain_graph=True)
    alone = torch.autograd.grad(want.mean(), own)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(slope, alone, strict=True))
    label = torch.autograd.grad(terms["a.prior"].sum(), scm.encoder.parameters(), allow_unused=True)
    assert all(g is None for g in label)  # the prior is no reason to read a picture otherwise


def test_the_paper_alone_is_the_game_with_other_weights_zero():
    data, _, _ = rows(64)
    with seeded(0):
        gan = GAN(X, [A], 1, widths=(8,), cycle=0.0)
        scm = SCM(Graph.parse("a -> x"), {"a": LinearGaussian(A), "x": gan},
                  Regression(X, [A], nn.Linear(2, 4), 4))  # fmt: skip
    rules = game(clip=1.0)
    with seeded(0):
        terms = rules.loss(scm, data, "model", 0)
    assert set(terms) == {"encoder", "generator", "x.cycle", "a.label", "a.prior"}
    assert float(terms["x.cycle"].detach().abs().max()) == 0
    held = rules.eval()
    assert "slope" not in held.loss(scm, data, "critic", 0)
    with seeded(0):
        fake = held.loss(scm, data, "model", 0)
    assert torch.allclose(fake["generator"], terms["generator"])


def test_the_slope_of_the_critic_is_paid_for_lazily():
    data, _, _ = rows(8, share=1.0)
    scm = model()
    rules = Adversarial("x", nn.Linear(1, 1), penalty=3.0, lazy=2)

    class Steep(nn.Module):
        """D = 2 x_0 - x_1: its slope is (2, -1)."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0, -1.0]))

        def forward(self, x, beside):
            return (x @ self.w)[:, None]

    rules.critic = Steep()
    assert torch.allclose(rules.loss(scm, data, "critic", 0)["slope"], torch.full((8,), 15.0))
    assert "slope" not in rules.loss(scm, data, "critic", 1)


def test_gates_rest_pay_their_price_and_shut():
    b = Variable("b")
    with seeded(0):
        values = {"a": torch.randn(400), "b": torch.randn(400)}
        values["x"] = torch.stack([values["a"], values["b"]], 1)
        inner = LinearGaussian(b, columns([A]))
        nodes = {"a": LinearGaussian(A), "b": Gated(inner, [A]), "x": GAN(X, [A, b], 1)}
        scm = SCM(Graph.parse("a -> b; a, b -> x"), nodes)
        rules = Adversarial("x", critic(X, [A, b], 1), price=0.5, rest=10)
    assert "edges" not in rules.loss(scm, Batch(values), "model", 9)
    terms = rules.loss(scm, Batch(values), "model", 10)
    assert torch.allclose(terms["edges"], torch.full((400,), 0.5 * 0.75))
    fit(scm, Batch(values), rules, steps=120, lr=0.02, ema=None, warmup=10, progress=False)
    assert scm.mechanisms["b"].probabilities()["a"] < 0.1


def test_what_does_not_fit_is_refused():
    data, _, _ = rows(8)
    rules = game()
    for name in ("game", "label", "penalty", "price"):
        with pytest.raises(ValueError, match=f"needs {name} of at least 0, got -1"):
            game(**{name: -1.0})
    with pytest.raises(ValueError, match=r"clip >= 1 and lazy >= 1, got 0\.5 and 4"):
        game(clip=0.5)
    with pytest.raises(ValueError, match="trains an SCM, got a Linear"):
        rules.loss(nn.Linear(1, 1), data, "model", 0)
    plain = SCM(Graph.parse("a -> x"), {"a": LinearGaussian(A), "x": LinearGaussian(X, [A])})
    with pytest.raises(ValueError, match="trains a GAN at 'x', which has a LinearGaussian"):
        rules.loss(plain, data, "model", 0)
    with pytest.raises(KeyError, match="unknown node 'y'"):
        Adversarial("y", nn.Linear(1, 1)).loss(plain, data, "model", 0)
    with pytest.raises(ValueError, match="needs rows that saw 'x'; not all did"):
        rules.loss(model(), data.only(["a"]), "model", 0)
    b = Variable("b", (2,))
    twice = SCM(Graph.parse("b -> x"), {"b": GAN(b), "x": GAN(X, [b], 1)})
    with pytest.raises(ValueError, match="'b' is a GAN, which has no density; beside the GAN of"):
        Adversarial("x", critic(X, [b], 1)).loss(
            twice, Batch({"b": torch.zeros(2, 2), "x": torch.zeros(2, 2)}), "model", 0
        )
    rules.critic = nn.Bilinear(2, 2, 3)
    with pytest.raises(ValueError, match=r"critic gave \(8, 3\); it says one number a row"):
        rules.loss(model(), data, "model", 0)
