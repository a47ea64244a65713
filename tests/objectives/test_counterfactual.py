"""Counterfactual tuning against an optimum on paper: the constraint binds, and nothing leaks."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from subjunctive.completion import Encoder
from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import (
    HVAE,
    VAE,
    AdditiveNoise,
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    LinearGaussian,
    Quantised,
)
from subjunctive.mechanisms.linear import stirred
from subjunctive.metrics.predictors import Predictor
from subjunctive.objectives import CounterfactualTuning
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

T, X = Variable("t"), Variable("x")


class Half(Encoder):
    """q(t | x) = N(x / 2, 1/2), right for x = t + e, both of variance one."""

    nodes, inputs = ("t",), ("x",)

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, values, seen):
        return lambda name, so_far: Normal(self.slope * values["x"], 0.5**0.5)


class Unbound(CounterfactualTuning):
    """The broken twin: the same without its constraint."""

    def loss(self, model, batch, player, step):
        terms = super().loss(model, batch, player, step)
        return {k: 0 * v if k == "bound" else v for k, v in terms.items()}


def line(v):
    """x = v t + e, in which v alone may move, beside rows of v = 1 and moments that are exact."""
    with seeded(0):
        t, e = (
            torch.linalg.qr(torch.cat([torch.ones(400, 1), torch.randn(400, 2)], 1)).Q[:, 1:].T * 20
        )
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T),
                                        "x": LinearGaussian.of(X, [T], [v])})  # fmt: skip
    model.requires_grad_(False)
    model.mechanisms["x"].weight.requires_grad_(True)
    return model, Batch({"t": t, "x": t + e})


def tune(objective, model, rows, steps=200):
    fit(model, rows, objective, steps=steps, batch_size=len(rows), lr=2e-2, ema=0.98, warmup=10,
        progress=False)  # fmt: skip
    return model.mechanisms["x"].weight.item()


@torch.no_grad()
def measured(model, rows):
    """Return the mean log-likelihood of x, and -log q(t* | x*) for all pairs of rows."""
    own, t, x = model.mechanisms["x"], rows.values["t"], rows.values["x"]
    star = x + own.weight.item() * (t[:, None] - t)
    return own.log_prob(x, {"t": t}).mean(), -Normal(star / 2, 0.5**0.5).log_prob(t[:, None]).mean()


def test_the_constraint_binds_where_it_should_and_its_multiplier_is_the_price():
    """With E t^2 = E e^2 = 1 and t* independent of t, x* = (1 - v) t + e + v t*:

        E[-log q] = ((v/2 - 1)^2 + ((1 - v)/2)^2 + 1/4) + ...,  least at v = 3/2,
        E[log p]  = -(v - 1)^2 / 2 - ...,                       that of v = 0.9 again at v = 1.1,

    where a nat of likelihood costs (3/2 - v) / (v - 1) = 4.
    """
    model, rows = line(0.9)
    before = measured(model, rows)
    tuning = CounterfactualTuning(Half(), model.mechanisms["x"], rate=0.1)
    assert tune(tuning, model, rows) == pytest.approx(1.1, abs=0.01)
    after = measured(model, rows)
    assert after[0] > before[0] - 2e-3
    assert after[1] < before[1] - 0.05
    assert tuning.multiplier.item() == pytest.approx(4.0, rel=0.25)
    model, _ = line(0.9)
    free = Unbound(Half(), model.mechanisms["x"])
    assert tune(free, model, rows, steps=100) == pytest.approx(1.5, abs=0.03)
    assert measured(model, rows)[0] < before[0] - 0.1  # the twin pays with likelihood


def test_slack_is_what_the_bound_may_lose():
    model, rows = line(1.0)
    before = measured(model, rows)
    tuning = CounterfactualTuning(Half(), model.mechanisms["x"], slack=0.02, rate=0.03)
    assert tune(tuning, model, rows) == pytest.approx(1.2, abs=0.03)  # 0.2^2 / 2
    assert before[0] - measured(model, rows)[0] == pytest.approx(0.02, abs=5e-3)


# Images ------------------------------------------------------------------------------------------


PICTURE = Variable("x", (1, 8, 8), loc=0.5, scale=0.5, low=0.0, high=1.0)
KIND = Variable("k", kind="categorical", categories=("a", "b"))
SMALL = {"widths": (8, 8, 8), "scales": (2, 4, 8), "latents": ((), (1,), (3,))}


def scene(mechanism=None):
    """k -> t -> x <- k, a picture of levels."""
    with seeded(0):
        own = HVAE.of(PICTURE, [T, KIND], DiscretisedLogistic.of(PICTURE), True, **SMALL)
        nodes = {"k": Categorical(KIND), "t": AdditiveNoise(T, [KIND]), "x": mechanism or own}
        model = SCM(Graph.parse("k -> t -> x; k -> x"), nodes)
        stirred(model.mechanisms["x"])
    for name in "kt":
        model.mechanisms[name].requires_grad_(False)
    rows = model.sample(40, seed=1)
    return model, Batch(rows | {"x": torch.randint(256, (40, 1, 8, 8)) / 255})


def predictors():
    return {
        "Predictor": Predictor(PICTURE, [KIND, T], (4, 4), hidden=8),
        "Regression": Regression(PICTURE, [KIND, T], nn.Sequential(nn.Flatten(), nn.Dropout(0.5),
                                                                   nn.Linear(64, 4)), 4),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Predictor", "Regression"])
def test_the_mechanism_alone_moves_and_every_part_of_it(kind):
    model, rows = scene()
    predictor = predictors()[kind]
    tuning = CounterfactualTuning(predictor, model.mechanisms["x"])
    parts = {"x": model.mechanisms["x"], "model": model, "tuning": tuning}
    kept = {(k, n): p.clone() for k, m in parts.items() for n, p in m.named_parameters()}
    done = fit(model, rows, tuning, steps=3, batch_size=20, lr=1e-2, ema=None, progress=False)
    now = {(k, n): p for k, m in parts.items() for n, p in m.named_parameters()}
    moved = [key for key, p in kept.items() if not torch.equal(p, now[key])]
    own = [key for key in kept if key[0] == "x"]
    assert [key for key in moved if key[0] == "x"] == own
    assert len([key for key in moved if key[0] == "model"]) == len(own)
    assert {key for key in moved if key[0] == "tuning"} <= {("tuning", "multiplier")}
    assert all(p.requires_grad for p in predictor.parameters())
    assert all(p.grad is None for p in tuning.predictor.parameters())
    assert {"mechanism/predictor", "mechanism/bound", "multiplier/multiplier"} <= set(done.history)


def test_before_anything_has_moved_the_bound_has_lost_nothing():
    model, rows = scene()
    tuning = CounterfactualTuning(predictors()["Predictor"], model.mechanisms["x"])
    terms = tuning.loss(model, rows, "mechanism", 0)
    assert not terms["bound"].any()
    assert tuning.gap == 0
    tuning.multiplier.data.fill_(2.0)
    with torch.no_grad():
        stirred(model.mechanisms["x"], 0.02, seed=3)
    with seeded(5):
        terms = tuning.loss(model, rows, "mechanism", 0)
    x, pa = 2 * rows.values["x"] - 1, rows.values
    with seeded(5), torch.no_grad(), seeded(int(torch.randint(2**62, ()))):
        now = model.mechanisms["x"].bound(x, pa)
    with seeded(5), torch.no_grad(), seeded(int(torch.randint(2**62, ()))):
        lost = tuning.before.bound(x, pa) - now
    weight = max(0.0, 2.0 + float(lost.mean()))
    torch.testing.assert_close(terms["bound"], weight * lost, rtol=1e-4, atol=1e-3)
    (gradient,) = torch.autograd.grad(
        tuning.loss(model, rows, "multiplier", 0)["multiplier"].mean(), [tuning.multiplier]
    )
    assert gradient == -tuning.gap  # it climbs


def test_what_is_read_is_the_counterfactual_of_one_ancestor():
    """k has no predictor's label here: under do(k) the label t follows its mechanism."""
    model, rows = scene()
    seen = []

    class Spy(nn.Module):
        labels = (T,)

        def loss(self, images, values):
            seen.append((images, values))
            return images.flatten(1).mean(1)

    tuning = CounterfactualTuning(Spy(), model.mechanisms["x"])
    for seed in range(6):
        with seeded(seed):
            tuning.loss(model, rows, "mechanism", 0)
    t, k = rows.values["t"], rows.values["k"]
    noise = model.mechanisms["t"].abduct(t, {"k": k})
    under = set()
    for images, values in seen:
        assert images.requires_grad
        assert not values["t"].requires_grad
        if torch.equal(values["k"], k):  # do(t): values of other rows
            under.add("t")
            torch.testing.assert_close(values["t"].sort()[0], t.sort()[0])
            assert not torch.equal(values["t"], t)
        else:
            under.add("k")
            expected = model.mechanisms["t"](noise, {"k": values["k"]})
            torch.testing.assert_close(values["t"], expected)
    assert under == {"t", "k"}


# Mistakes ----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    model, rows = scene()
    own = model.mechanisms["x"]
    with pytest.raises(ValueError, match="Quantised has neither a bound nor a log_prob to keep"):
        CounterfactualTuning(Half(), Quantised(LinearGaussian(PICTURE)))
    bits = VAE.of(PICTURE, likelihood=Bernoulli.of(PICTURE), widths=(4, 4))
    with pytest.raises(ValueError, match=r"levels of 'x': give its VAE a Gaussian\(\) likelihood"):
        CounterfactualTuning(Half(), bits)
    with pytest.raises(ValueError, match=r"slack >= 0, damping >= 0 and rate > 0, got slack=-1"):
        CounterfactualTuning(Half(), own, slack=-1.0)
    other = Predictor(PICTURE, [Variable("tt")], (4, 4))
    with pytest.raises(ValueError, match=r"reads 'tt' from 'x', whose .* Did you mean 't'"):
        CounterfactualTuning(other, own).players(model)
    tuning = CounterfactualTuning(Half(), own)
    with pytest.raises(ValueError, match="tunes an SCM, got a Linear"):
        tuning.players(nn.Linear(1, 1))
    half = Batch(rows.values, {"t": torch.arange(40) < 20})
    with pytest.raises(ValueError, match="needs rows that saw 't'; not all did"):
        tuning.loss(model, half, "mechanism", 0)
    free = copy.deepcopy(model).requires_grad_(True)
    with pytest.raises(ValueError, match=r"no player owns model\..*or freeze it"):
        fit(free, rows, tuning, steps=1, progress=False)
