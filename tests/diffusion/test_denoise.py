import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from subjunctive.diffusion import EDM, Cosine, Denoiser
from subjunctive.diffusion.denoise import Target, Weighting

TARGETS, WEIGHTINGS = get_args(Target), get_args(Weighting)


class Affine(nn.Module):
    """A network that is affine in x, blind to the noise level; it remembers what it was given."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x, noise, condition=None):
        self.given = x, noise, condition
        return self.layer(x)


class Says(nn.Module):
    """A network that says what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, noise, condition=None):
        return self.answer


@pytest.mark.parametrize("target", TARGETS)
def test_the_perfect_network_gives_the_data(schedule, target):
    x, e = 0.5 * torch.randn(2, 64, 3, dtype=torch.float64)
    t = torch.rand(64, dtype=torch.float64)
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    noisy, norm = a * x + s * e, (a**2 * 0.25 + s**2).sqrt()
    answer = {
        "clean": x,
        "noise": e,
        "velocity": (a * e - s * x) / (a**2 + s**2).sqrt(),
        "edm": (x - 0.25 * a / norm**2 * noisy) * norm / (0.5 * s),
    }[target]
    denoiser = Denoiser(Says(answer), schedule, target, sigma_data=0.5)
    torch.testing.assert_close(denoiser(noisy, t), x, rtol=0, atol=1e-8)


def test_preconditioning_is_the_papers():
    schedule, d = EDM(), 0.7
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    s = schedule.sigma(t)
    c_in, c_skip, c_out = Denoiser(Says(None), schedule, "edm", sigma_data=d).coefficients(t)
    torch.testing.assert_close(c_in, 1 / (s**2 + d**2).sqrt())
    torch.testing.assert_close(c_skip, d**2 / (s**2 + d**2))
    torch.testing.assert_close(c_out, s * d / (s**2 + d**2).sqrt())


def test_inputs_and_edm_targets_have_unit_variance(schedule):
    d, t = 0.7, torch.linspace(0, 1, 20, dtype=torch.float64)
    a, s = schedule.alpha(t), schedule.sigma(t)
    c_in, c_skip, c_out = Denoiser(Says(None), schedule, "edm", sigma_data=d).coefficients(t)
    one = torch.ones_like(t)
    torch.testing.assert_close(c_in**2 * (a**2 * d**2 + s**2), one)
    of_x, of_e = (1 - c_skip * a) / c_out, -c_skip * s / c_out
    torch.testing.assert_close(of_x**2 * d**2 + of_e**2, one)


def test_a_wiener_input_is_the_best_linear_estimate(schedule):
    d, t = 0.7, torch.linspace(0, 1, 20, dtype=torch.float64)
    x, e = torch.randn(2, 20, 50_000, dtype=torch.float64)
    x_t = schedule.alpha(t)[:, None] * d * x + schedule.sigma(t)[:, None] * e
    slope = (d * x * x_t).mean(1) / x_t.square().mean(1)
    c_in, *rest = Denoiser(Says(None), schedule, "edm", d, wiener=True).coefficients(t)
    torch.testing.assert_close(c_in, slope, rtol=0, atol=0.02)
    plain = Denoiser(Says(None), schedule, "edm", d).coefficients(t)[1:]
    assert all(torch.equal(a, b) for a, b in zip(rest, plain, strict=True))


def test_with_unit_variance_edm_is_velocity(schedule):
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    edm, velocity = (Denoiser(Says(None), schedule, k).coefficients(t) for k in ("edm", "velocity"))
    torch.testing.assert_close(edm[1], velocity[1])
    torch.testing.assert_close(edm[2], -velocity[2])


@pytest.mark.parametrize(("target", "weighting"), itertools.product(TARGETS, WEIGHTINGS))
def test_minimising_the_loss_gives_the_conditional_mean(schedule, target, weighting):
    """At one time and for Gaussian data the best affine denoiser is E[x_0 | x_t], whatever F is."""
    mix = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)
    mean, time = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.45
    n = 20_000
    x = torch.randn(n, 2, dtype=torch.float64) @ mix.T + mean
    e = torch.randn(n, 2, dtype=torch.float64)
    network = Affine(2).double()
    denoiser = Denoiser(network, schedule, target, weighting=weighting)
    optimiser = torch.optim.LBFGS(network.parameters(), line_search_fn="strong_wolfe", max_iter=60)

    def closure():
        optimiser.zero_grad()
        loss = denoiser.loss(x, t=torch.tensor(time), noise=e).mean()
        loss = loss / denoiser.weight(torch.tensor(time, dtype=torch.float64))
        loss.backward()
        return loss

    optimiser.step(closure)
    t = torch.tensor(time, dtype=torch.float64)
    a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
    cov = mix @ mix.T
    gain = a * cov @ torch.linalg.inv(a**2 * cov + s**2 * torch.eye(2))
    x_t = a * x[:50] + s * e[:50]
    exact = mean + (x_t - a * mean) @ gain.T
    with torch.no_grad():
        assert (denoiser(x_t, t) - exact).abs().max() < 0.06


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_is_the_weighted_error(schedule, weighting):
    network = Affine(3)
    denoiser = Denoiser(network, schedule, "velocity", sigma_data=0.6, weighting=weighting)
    x, e, t = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    condition = torch.randn(5, 2)
    x_t = schedule.alpha(t)[:, None] * x + schedule.sigma(t)[:, None] * e
    error = (denoiser(x_t, t, condition) - x).square().mean(1)
    torch.testing.assert_close(
        denoiser.loss(x, condition, t, e), denoiser.weight(t) * error, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(network.given[1], schedule.log_snr(t) / 4)
    torch.testing.assert_close(network.given[0], denoiser.coefficients(t)[0][:, None] * x_t)
    assert network.given[2] is condition


def test_weights_are_the_papers(schedule):
    t = torch.linspace(0.02, 1, 30, dtype=torch.float64)
    snr, d = np.exp(schedule.log_snr(t).numpy()), 0.5
    weight = {
        (k, w): Denoiser(Says(None), schedule, k, d, w).weight(t).numpy()
        for k, w in itertools.product(TARGETS, WEIGHTINGS)
    }
    for k in TARGETS:
        np.testing.assert_allclose(weight[k, "min-snr"], np.minimum(snr, 5))
        np.testing.assert_allclose(weight[k, "sigmoid"], snr / (1 + snr / np.exp(2)))
        level = snr**-0.5
        density = stats.norm.pdf(np.log(level), -1.2, 1.2) * 1.2 * np.sqrt(2 * np.pi)
        papers = (level**2 + d**2) / (level * d) ** 2 * density
        np.testing.assert_allclose(weight[k, "edm"], papers, rtol=1e-8)
    np.testing.assert_allclose(weight["noise", "uniform"], snr)
    np.testing.assert_allclose(weight["clean", "uniform"], 1)
    np.testing.assert_allclose(weight["edm", "uniform"], snr + d**-2)


def test_uniform_weighting_is_the_networks_own_error():
    x, e, t = torch.randn(6, 3), torch.randn(6, 3), torch.rand(6)
    answer = torch.randn(6, 3)
    loss = Denoiser(Says(answer), Cosine(), "noise", weighting="uniform").loss(x, None, t, e)
    torch.testing.assert_close(loss, (answer - e).square().mean(1), rtol=1e-3, atol=1e-5)


def test_drawn_times_fill_every_stratum():
    network = Affine(2)
    schedule = Cosine()
    Denoiser(network, schedule).loss(torch.randn(64, 2))
    t = torch.linspace(0, 1, 65)
    edges = schedule.log_snr(t) / 4
    drawn = network.given[1].sort(descending=True).values
    assert ((drawn < edges[:-1] + 1e-4) & (drawn > edges[1:] - 1e-4)).all()
    first = network.given[1]
    assert not torch.equal(first, first.sort(descending=True).values)


def test_scalars_and_one_time_for_all():
    class Times(nn.Module):
        def forward(self, x, noise, condition=None):
            return x * noise

    denoiser = Denoiser(Times(), Cosine())
    x = torch.randn(4)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.3)), denoiser(x, torch.full((4,), 0.3)))
    assert denoiser.loss(x).shape == (4,)


def test_misspelt_names_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'velocity'"):
        Denoiser(Says(None), Cosine(), "velocty")
    with pytest.raises(ValueError, match="Did you mean 'min-snr'"):
        Denoiser(Says(None), Cosine(), weighting="minsnr")
