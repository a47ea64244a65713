"""Likelihoods against independent formulas, and their residuals far into the tails."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from subjunctive.mechanism import seeded
from subjunctive.mechanisms import (
    Bernoulli,
    DiscretisedGaussian,
    DiscretisedLogistic,
    Gaussian,
)
from subjunctive.mechanisms.truncated import LogisticNoise, NormalNoise
from subjunctive.variable import Variable

DISCRETE = [DiscretisedLogistic, DiscretisedGaussian]
ALL = [
    Gaussian(0.3),
    Gaussian(),
    Gaussian("predicted"),
    Bernoulli(-1.0, 1.0),
    DiscretisedLogistic(16, -1.0, 1.0),
    DiscretisedGaussian(16, -1.0, 1.0),
]


def name(likelihood):
    return type(likelihood).__name__ + str(getattr(likelihood, "scale", ""))


def log_cdf(likelihood, t):
    """log F(t) in double precision, by scipy."""
    if isinstance(likelihood, DiscretisedGaussian):
        return special.log_ndtr(t)
    return -np.logaddexp(0, -t)


def reference(likelihood, h, k):
    """log P(level k | h) in double precision, from differences of scipy's CDFs."""
    loc, scale = (v.double().numpy() for v in likelihood._split(h.double()))
    k = k.double().numpy()
    middle = likelihood.low + (k - 0.5) * likelihood.step
    a, b = (middle - loc) / scale, (middle + likelihood.step - loc) / scale
    a = np.where(k == 0, -np.inf, a)
    b = np.where(k == likelihood.levels - 1, np.inf, b)
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    return log_cdf(likelihood, b) + np.log(
        -np.expm1(log_cdf(likelihood, a) - log_cdf(likelihood, b))
    )


# Probabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", DISCRETE)
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_the_levels_probabilities_sum_to_one(cls, levels):
    likelihood = cls(levels, -1.0, 1.5)
    h = torch.cartesian_prod(torch.linspace(-4, 4, 9), torch.linspace(-12, 4, 9)).T[None]
    k = torch.arange(levels, dtype=torch.float32)[:, None].expand(-1, 81)
    loc, scale = likelihood._split(h)
    edges = [likelihood._edge(k + side, loc, scale) for side in (0, 1)]
    single = likelihood.noise.log_mass(*edges, likelihood.step / scale)
    assert single.logsumexp(0).abs().max() < 2e-4
    rows = likelihood.log_prob(h.expand(levels, -1, -1), likelihood.value(k))
    assert torch.allclose(rows, single.sum(1))


@pytest.mark.parametrize("cls", DISCRETE)
@pytest.mark.parametrize("levels", [16, 256, 4096])
def test_log_prob_is_that_of_double_precision_far_into_the_tails(cls, levels):
    likelihood = cls(levels, -2.0, 3.0)
    h = torch.stack([8 * torch.randn(4000), 6 * torch.randn(4000) - 3], 1)
    k = torch.randint(levels, (4000,)).float()
    k[:200], k[200:400] = 0, levels - 1
    found = likelihood.log_prob(h, likelihood.value(k))
    expected = torch.from_numpy(reference(likelihood, h, k))
    assert expected.min() < -300
    assert ((found - expected) / (1 + expected.abs())).abs().max() < 2e-4


@pytest.mark.parametrize("cls", DISCRETE)
def test_its_gradient_is_right_and_finite_far_into_the_tails(cls):
    likelihood = cls(256, 0.0, 1.0)
    k = torch.arange(256.0)
    h = torch.stack([torch.linspace(-3, 4, 256).roll(100), torch.linspace(-9, 3, 256).roll(31)], 1)
    single, double = h.clone().requires_grad_(), h.double().requires_grad_()
    likelihood.log_prob(single, likelihood.value(k)).sum().backward()
    likelihood.log_prob(double, likelihood.value(k.double())).sum().backward()
    scale = 1 + double.grad.abs()
    assert ((single.grad - double.grad) / scale).abs().max() < 1e-2
    x = likelihood.value(k.double())[::8]
    assert torch.autograd.gradcheck(lambda h: likelihood.log_prob(h, x), double[::8], rtol=1e-3)


def test_gaussian_and_bernoulli_are_torchs():
    x, h = torch.randn(50, 2, 3), torch.randn(50, 2, 2, 3)
    for likelihood, scale in [
        (Gaussian(0.3), torch.tensor(0.3)),
        (Gaussian(), torch.tensor(-1.0).exp()),
        (Gaussian("predicted"), (7 * torch.tanh(h[:, 1] / 7)).exp()),
    ]:
        expected = Normal(h[:, 0], scale).log_prob(x).sum((1, 2))
        assert torch.allclose(likelihood.log_prob(h, x), expected, rtol=1e-4)
    bits = (x > 0).float()
    expected = TorchBernoulli(logits=h[:, 0]).log_prob(bits).sum((1, 2))
    assert torch.allclose(Bernoulli().log_prob(h, bits), expected, rtol=1e-4)
    assert torch.allclose(Bernoulli(-1.0, 3.0).log_prob(h, 4 * bits - 1), expected, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ALL, ids=name)
def test_samples_have_the_stated_mean_and_frequencies(likelihood):
    h = torch.tensor([[0.4, -1.2], [-0.3, 0.8]])[:, : likelihood.width]
    many = h.repeat_interleave(20_000, 0)
    with torch.no_grad():
        r = likelihood.prior(torch.zeros(())).sample((len(many),))
        x = likelihood(many, r).reshape(2, -1)
        assert (x.mean(1) - likelihood.mean(h)).abs().max() < 5 * x.std(1).max() / 20_000**0.5
        if isinstance(likelihood, Gaussian):
            return
        for value in x.unique():
            p = likelihood.log_prob(h, value.expand(2)).exp()
            spread = (p * (1 - p) / 20_000).sqrt()
            assert ((x == value).float().mean(1) - p).abs().max() < 5 * spread.max()


# Residuals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ALL, ids=name)
def test_abducted_residuals_of_own_samples_follow_the_prior_and_ignore_the_decoder(likelihood):
    h = torch.randn(6000, likelihood.width)
    with torch.no_grad():
        prior = likelihood.prior(torch.zeros(()))
        r = likelihood.abduct(h, likelihood(h, prior.sample((6000,))))
    assert stats.ks_2samp(r.numpy(), prior.sample((6000,)).numpy()).pvalue > 1e-3
    assert stats.kstest(r.numpy(), "norm" if isinstance(likelihood, Gaussian | DiscretisedGaussian)
                        else "logistic").pvalue > 1e-3  # fmt: skip
    for column in h.T:
        assert stats.spearmanr(r, column).pvalue > 1e-3


@pytest.mark.parametrize("cls", DISCRETE)
@pytest.mark.parametrize("levels", [2, 3, 256, 65536])
def test_what_was_abducted_gives_x_again_whatever_the_decoder_says(cls, levels):
    likelihood = cls(levels, -1.0, 1.0)
    k = torch.randint(levels, (5000,)).float()
    for size in (0.0, 1.0, 10.0, 1e3, 1e6):
        h, x = size * torch.randn(5000, 2), likelihood.value(k)
        r = likelihood.abduct(h, x)
        assert r.isfinite().all()
        assert torch.equal(likelihood(h, r), x)
        assert likelihood.log_prob(h, x).isfinite().all()


def test_a_bit_that_is_all_but_impossible_comes_back():
    h = torch.tensor([0.0, 5.0, 50.0, 500.0, 1e6]).repeat(2)[:, None]
    x = torch.tensor([0.0] * 5 + [1.0] * 5)
    h[5:] *= -1
    r = Bernoulli().abduct(h, x)
    assert r.isfinite().all()
    assert torch.equal(Bernoulli()(h, r), x)
    assert torch.allclose(Bernoulli().log_prob(h, x)[2:5], -h[2:5, 0])


@pytest.mark.parametrize("clear", [None, 0.0], ids=["clear", "broken twin: up to the threshold"])
@pytest.mark.parametrize("cls", [Bernoulli, *DISCRETE])
def test_last_digits_of_the_decoder_move_no_level(cls, clear, monkeypatch):
    """Convolutions differ by some 1e-6 from batch to batch: abduct in one, predict in another."""
    if clear is not None:
        monkeypatch.setattr("subjunctive.mechanisms.likelihood.CLEAR", clear)
    likelihood = cls(low=-1.0, high=1.0)
    with seeded(0):
        h = torch.randn(2_000_000, likelihood.width)
        h[:, 1:] -= 5  # scales of a cell or less
        x = likelihood(h, likelihood.prior(torch.zeros(())).sample((len(h),)))
        moved = h + 1e-5 * (torch.rand_like(h) - 0.5)
        changed = likelihood(moved, likelihood.abduct(h, x)) != x
    assert bool(changed.any()) == (clear is not None)


@pytest.mark.parametrize("scale", [0.1, 1.0, "learned", "predicted"])
def test_a_gaussian_residual_gives_x_again(scale):
    likelihood, x = Gaussian(scale), 4 * torch.randn(1000)
    h = 3 * torch.randn(1000, 2)
    assert (likelihood(h, likelihood.abduct(h, x)) - x).abs().max() < 5e-6


ENDS = [(-1.0, 0.5), (3.0, 3.001), (6.0, np.inf), (-np.inf, -8.0), (-12.0, -11.5), (-0.2, np.inf)]


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("noise", [LogisticNoise(), NormalNoise()], ids=["logistic", "normal"])
def test_draws_within_an_interval_are_truncated_draws(noise, ends):
    a, b = (torch.full((4000,), end) for end in ends)
    e = noise.between(a, b).double().numpy()
    assert ((e > ends[0]) & (e <= ends[1])).all()
    flip = sum(ends) > 0  # scipy's own CDF is precise in the lower tail
    e, (a, b) = (-e, (-ends[1], -ends[0])) if flip else (e, ends)
    cdf = stats.norm.cdf if isinstance(noise, NormalNoise) else stats.logistic.cdf
    v = (cdf(e) - cdf(a)) / (cdf(b) - cdf(a))
    assert stats.kstest(v, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("far", [20.0, 300.0, 7000.0])
def test_far_out_the_draws_leave_the_near_end_exponentially(far):
    a = torch.full((4000,), far)
    beyond = NormalNoise().between(a.double(), a.double() + torch.inf) - far
    assert stats.kstest((far * beyond).numpy(), "expon").statistic < 0.03
    single = NormalNoise().between(a, a + torch.inf)
    assert (single > a).all()
    assert (single - far).mean() == pytest.approx(1 / far, rel=0.1, abs=far * 1e-7)


# Levels -------------------------------------------------------------------------------------------


def test_levels_are_read_from_the_variable_in_standardised_units():
    image = Variable("x", (1, 4, 4), loc=127.5, scale=64.0, low=0.0, high=255.0)
    bytes_ = torch.arange(256.0)
    for cls in DISCRETE:
        likelihood = cls.of(image)
        assert torch.equal(likelihood.level(image.standardise(bytes_)), bytes_)
        assert torch.allclose(image.restore(likelihood.value(bytes_)), bytes_, atol=1e-4)
    bit = Bernoulli.of(image)
    assert torch.equal(bit.level(image.standardise(torch.tensor([0.0, 255.0]))), bytes_[:2])
    for cls in (*DISCRETE, Bernoulli):
        with pytest.raises(ValueError, match=r"low and high of 'y'.*low=None.*give it both"):
            cls.of(Variable("y"))


@pytest.mark.parametrize("likelihood", [Bernoulli(), DiscretisedLogistic(), DiscretisedGaussian()],
                         ids=name)  # fmt: skip
def test_values_at_no_level_are_refused_with_the_remedy(likelihood):
    h = torch.zeros(2, 2)
    for bad in (0.1234, 1.5, -0.01, float("nan")):
        x = torch.tensor([0.0, bad])
        for call in (likelihood.abduct, likelihood.log_prob):
            with pytest.raises(ValueError, match=r"1 of 2 entries are at none.*take Gaussian\(\)"):
                call(h, x)
    many = torch.arange(256.0) / 255 if likelihood.levels > 2 else torch.tensor([0.0, 1.0])
    assert likelihood.level(many.double()).unique().numel() == likelihood.levels


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"scale='learnt'.*Did you mean 'learned'"):
        Gaussian("learnt")
    with pytest.raises(ValueError, match=r"scale=0\.0; a standard deviation is positive"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="DiscretisedLogistic has levels=1; give 2 to 65536"):
        DiscretisedLogistic(1)
    with pytest.raises(
        ValueError, match=r"DiscretisedGaussian needs low < high, got 1\.0 and 1\.0"
    ):
        DiscretisedGaussian(low=1.0)
