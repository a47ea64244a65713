import math

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Independent, Uniform

from subjunctive.mechanisms import Categorical, Known, LinearGaussian, Quantised, RealNVP
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.variable import Variable

T = Variable("t")
BYTE = Variable("x", (4,), loc=0.3, scale=0.25, low=0.0, high=1.0)


def gaussian(values=9, scale=0.7):
    x = Variable("x", loc=1.0, scale=2.0, low=-7.0, high=9.0)  # -4 to 4 standardised
    return Quantised(LinearGaussian.of(x, [T], [1.5], 0.2, scale), values)


def truth(x, t, step=1.0, scale=0.7):
    """log P(x | t) by the normal CDF; the end cells reach to infinity."""
    mean = 1.5 * t + 0.2
    upper = torch.where(x > 4 - step / 2, math.inf, x + step / 2)
    lower = torch.where(x < -4 + step / 2, -math.inf, x - step / 2)
    return torch.as_tensor(norm.cdf(upper, mean, scale) - norm.cdf(lower, mean, scale)).log()


def test_values_are_the_nearest_of_the_grid():
    mechanism = gaussian()
    t = torch.zeros(6)
    u = (torch.tensor([-99.0, -2.6, -2.4, 0.4, 1.6, 99.0]) - 0.2) / 0.7
    assert mechanism(u, {"t": t}).tolist() == [-4, -3, -2, 0, 2, 4]


@pytest.mark.parametrize("values", [9, 33])
def test_the_loss_bounds_the_probability_of_the_cell_and_draws_close_the_gap(values):
    mechanism = gaussian(values).double()
    t = torch.linspace(-1, 1, 40).double()
    step = 8 / (values - 1)
    x = ((1.5 * t + 0.7 * torch.randn(40).double()) / step).round() * step
    exact = truth(x, t, step)
    many = {"t": t.repeat(500)}
    with torch.no_grad():
        drawn = -mechanism.loss(x.repeat(500), many)["nll"].reshape(500, 40)
        tight = -mechanism.bits(x, {"t": t}, draws=2000) * math.log(2)
    bound, error = drawn.mean(0), drawn.std(0) / 500**0.5
    assert (bound < exact + 4 * error).all()
    assert exact.mean() - step**2 < bound.mean() < exact.mean() - step**2 / 20
    assert (tight - exact)[x.abs() < 4 - step / 2].abs().max() < 0.1
    assert (tight < exact + 0.1).all()


@pytest.mark.parametrize(("values", "bits"), [(256, 8.0), (2, 1.0)])
def test_even_noise_costs_all_bits_in_any_unit(values, bits):
    for loc, scale in ((0.0, 1.0), (0.3, 0.25)):
        v = Variable("x", (4,), loc=loc, scale=scale, low=0.0, high=1.0)
        half = 0.5 / (values - 1)
        ends = [torch.full((4,), (e - loc) / scale).double() for e in (-half, 1 + half)]
        even = Independent(Uniform(*ends, validate_args=False), 1)
        same = Known(v, [], lambda u, p: 1 * u, lambda x, p: x, even)
        mechanism = Quantised(same, values).double()
        x = v.standardise(torch.randint(values, (50, 4)).double() / (values - 1))
        assert torch.allclose(mechanism.bits(x, {}), torch.full((50,), bits).double(), atol=1e-9)


def test_bytes_come_back_whatever_was_drawn_and_the_noise_lies_within_the_cell():
    inner = stirred(RealNVP(BYTE, [T], steps=2, width=8, alpha=0.05), 0.3)
    mechanism, t = Quantised(inner), {"t": torch.randn(256)}
    x = BYTE.standardise(torch.arange(256).float()[:, None].expand(256, 4) / 255)
    again = [mechanism.abduct(x, t) for _ in range(20)]
    for u in again:
        assert torch.allclose(mechanism(u, t), x, atol=1e-6)
        assert ((inner(u, t) - x).abs() <= 0.495 * mechanism.step).all()
    assert not torch.equal(again[0], again[1])


def test_a_counterfactual_moves_by_whole_steps():
    mechanism, t = gaussian(), torch.zeros(200)
    x = torch.randint(-1, 2, (200,)).float()
    moved = mechanism(mechanism.abduct(x, {"t": t}), {"t": t + 1}) - x  # the mean moves by 1.5
    assert set(moved.tolist()) == {1.0, 2.0}


def test_own_samples_have_the_probability_of_their_cells():
    x = own_samples(gaussian(), 4000).values
    t, found = x["t"], x["x"]
    for value in (-4.0, 0.0, 3.0):
        p = truth(torch.full_like(t, value), t).exp()
        error = float((p * (1 - p)).sum() ** 0.5)
        assert abs(float((found == value).sum() - p.sum())) < 4 * error + 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Quantised(LinearGaussian(T)), "low < high, got 256 and None, None: give the Var"),
        (lambda: Quantised(LinearGaussian(BYTE), 1), "needs values >= 2 .* got 1 and 0.0, 1.0"),
        (
            lambda: Quantised(Categorical(Variable("k", kind="categorical", categories="ab"))),
            r"the Categorical of 'k' \(categorical\) is none",
        ),
        (lambda: Quantised(Diffusion(BYTE, [], None)), "a density; the Diffusion of 'x'"),
    ],
)
def test_wrong_settings_are_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_values_off_the_grid_are_named():
    mechanism, t = gaussian(), {"t": torch.zeros(2)}
    for x in ([0.0, 0.25], [5.0, 0.0], [0.0, math.nan]):
        with pytest.raises(ValueError, match=r"'x' has values off its grid of 9 from -7.0 to 9.0"):
            mechanism.loss(torch.tensor(x), t)
    with pytest.raises(ValueError, match=r"up to 0.25 of a step.* leave out Quantised"):
        mechanism.abduct(torch.tensor([0.0, 0.25]), t)
