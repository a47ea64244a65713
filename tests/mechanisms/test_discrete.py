import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from subjunctive.mechanism import draw
from subjunctive.mechanisms import Categorical, Ordinal
from subjunctive.mechanisms.discrete import Logistic
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn.mlp import MLP
from subjunctive.variable import Variable

T = Variable("t")
BLOOD = Variable("x", kind="categorical", categories=("0", "A", "B", "AB"))
STAGE = Variable("x", kind="ordinal", categories=("I", "II", "III", "IV"))


class Slopes(nn.Module):
    """A linear map of the one parent, without learning."""

    def __init__(self, *slopes):
        super().__init__()
        self.slopes = torch.tensor([slopes])

    def forward(self, c):
        return c * self.slopes.to(c)


@pytest.mark.parametrize("variable", [BLOOD, STAGE])
def test_categories_come_as_often_as_the_model_says(variable):
    m = stirred((Categorical if variable is BLOOD else Ordinal)(variable, [T]), 0.3)
    parents = {"t": torch.full((20000,), 0.8)}
    x = m(draw(m.prior(), 20000), parents)
    with torch.no_grad():
        probability = m.log_prob(torch.arange(4), {"t": parents["t"][:4]}).exp()
    assert probability.sum() == pytest.approx(1.0, abs=1e-5)
    found = np.bincount(x, minlength=4)
    assert (
        stats.chisquare(found, probability.double().numpy() * 20000, sum_check=False).pvalue > 1e-3
    )


def test_softmax_and_cumulative_logits_are_scipys():
    m = Categorical(BLOOD, [T], Slopes(1.0, -1.0, 0.5, 2.0)).double()
    t, x = torch.randn(4, dtype=torch.float64), torch.arange(4)
    weights = np.exp(np.outer(t, [1.0, -1.0, 0.5, 2.0]))
    expected = np.log(weights[x, x] / weights.sum(1))
    assert np.allclose(m.log_prob(x, {"t": t}), expected)
    o = Ordinal(STAGE, [T], Slopes(1.5)).double()
    cuts = np.concatenate([[-np.inf], o.cuts.detach(), [np.inf]])
    cdf = stats.logistic.cdf(cuts[None] - 1.5 * t.numpy()[:, None])
    assert np.allclose(o.log_prob(x, {"t": t}).detach(), np.log(np.diff(cdf)[x, x]))


@pytest.mark.parametrize("code", [0, 1, 2, 3])
@pytest.mark.parametrize("variable", [BLOOD, STAGE])
def test_abduction_draws_what_rejection_keeps(variable, code):
    m = (
        Categorical(BLOOD, [T], Slopes(0.5, -0.8, 0.3, 1.0))
        if variable is BLOOD
        else Ordinal(STAGE, [T], Slopes(0.7))
    )
    parents = {"t": torch.ones(30000)}
    u = draw(m.prior(), 30000)
    kept = u[m(u, parents) == code].reshape(-1, u[0].numel())
    with torch.no_grad():
        drawn = m.abduct(torch.full((5000,), code), {"t": torch.ones(5000)}).reshape(5000, -1)
    assert len(kept) > 1000
    for ours, theirs in zip(drawn.T, kept.T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4
    if variable is BLOOD:
        assert np.allclose(np.cov(drawn.T), np.cov(kept.T), atol=0.15)


@pytest.mark.parametrize("height", [1.0, 30.0, 3e4])
@pytest.mark.parametrize("variable", [BLOOD, STAGE])
def test_even_improbable_categories_are_explained(variable, height):
    m = (
        Categorical(BLOOD, [T], Slopes(height, -height, 0.0, 0.0))
        if variable is BLOOD
        else Ordinal(STAGE, [T], Slopes(height))
    )
    x, t = torch.randint(4, (100000,)), torch.randn(100000)
    u = m.abduct(x, {"t": t})
    assert torch.isfinite(u).all()
    assert torch.equal(m(u, {"t": t}), x)
    assert torch.isfinite(m.log_prob(x, {"t": t})).all()


def test_a_category_does_not_win_because_it_became_less_likely():
    m = Categorical(BLOOD, [T], Slopes(0.5, -0.8, 0.3, 1.0))
    t, after = torch.randn(2, 5000)
    x = torch.randint(4, (5000,))
    y = m(m.abduct(x, {"t": t}), {"t": after})
    ratio = (m.logits({"t": after}, 5000) - m.logits({"t": t}, 5000)).detach()
    factual, counterfactual = (ratio.gather(1, v[:, None])[:, 0] for v in (x, y))
    changed = x != y
    assert changed.any()
    assert (counterfactual[changed] >= factual[changed]).all()


def test_raising_eta_never_lowers_the_category():
    m = Ordinal(STAGE, [T], Slopes(2.0))
    x, t = torch.randint(4, (5000,)), torch.randn(5000)
    u = m.abduct(x, {"t": t})
    previous = x
    for step in (0.1, 0.5, 2.0, 20.0):
        y = m(u, {"t": t + step})
        assert (y >= previous).all()
        previous = y
    assert (previous == 3).all()
    assert (m(u, {"t": t - 0.5}) <= x).all()


def test_cut_points_are_ordered_whatever_the_parameters():
    m = stirred(Ordinal(STAGE), amount=20.0)
    assert (m.cuts.diff() > 0).all()
    start = Ordinal(STAGE).double().log_prob(torch.arange(4), {}).exp()
    assert torch.allclose(start, torch.full((4,), 0.25).double(), atol=1e-3)


def test_logistic_noise_is_scipys():
    y = torch.linspace(-40, 40, 81, dtype=torch.float64)
    noise = Logistic(torch.zeros((), dtype=torch.float64))
    assert np.allclose(noise.log_prob(y), stats.logistic.logpdf(y))
    assert np.allclose(noise.cdf(y), stats.logistic.cdf(y))
    assert stats.kstest(noise.sample((5000,)), "logistic").pvalue > 1e-3
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(noise.log_prob, x)


@pytest.mark.parametrize("variable", [BLOOD, STAGE])
def test_fitting_recovers_the_slopes(variable):
    truth = (
        Categorical(BLOOD, [T], Slopes(1.0, -1.0, 0.5, 0.0))
        if variable is BLOOD
        else Ordinal(STAGE, [T], Slopes(1.5))
    )
    outputs = 4 if variable is BLOOD else 1
    m = type(truth)(variable, [T], MLP(1, outputs, hidden=()))
    t = torch.randn(6000)
    x = truth(draw(truth.prior(), 6000), {"t": t})
    optimiser = torch.optim.Adam(m.parameters(), lr=0.1)
    for _ in range(120):
        optimiser.zero_grad()
        m.loss(x, {"t": t})["nll"].mean().backward()
        optimiser.step()
    grid, codes = (
        {"t": torch.linspace(-1.5, 1.5, 8).repeat(4)},
        torch.arange(4).repeat_interleave(8),
    )
    with torch.no_grad():
        error = m.log_prob(codes, grid).exp() - truth.log_prob(codes, grid).exp()
    assert error.abs().max() < 0.05


def test_wrong_nodes_and_noises_are_named():
    with pytest.raises(ValueError, match="Categorical needs a node of categories; 't' is cont"):
        Categorical(T)
    with pytest.raises(ValueError, match=r"noise of 'x' is \(B, 4\), got \(3,\)"):
        Categorical(BLOOD)(torch.zeros(3), {})
    with pytest.raises(ValueError, match=r"noise of 'x' is \(B,\), got \(3, 4\)"):
        Ordinal(STAGE)(torch.zeros(3, 4), {})
