import inspect
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from subjunctive.diffusion import DDIM, EDM, Ancestral, Cosine, Heun, RectifiedFlow, VPLinear

ROUGH = [VPLinear(epsilon=0.1), Cosine(0.1), RectifiedFlow(0.1), EDM(0.1, 20.0)]
by_name = {"ids": lambda s: type(s).__name__}


def start(n, dtype=torch.float32):
    return {"start": torch.randn(n, 2, dtype=dtype)}


def flow_of_gaussian(schedule, mean, std, noise, start=1.0):
    """The probability-flow ODE's own map: x_t keeps its standardised value."""
    t = torch.tensor([start, 0.0], dtype=torch.float64)
    (a1, a0), (s1, s0) = schedule.alpha(t), schedule.sigma(t)
    mean, std = torch.tensor(mean), torch.tensor(std)
    x = (a1**2 + s1**2).sqrt() * noise
    z = (x - a1 * mean) / (a1**2 * std**2 + s1**2).sqrt()
    return (a0 * mean + (a0**2 * std**2 + s0**2).sqrt() * z) / a0


@pytest.mark.parametrize(("cls", "order"), [(DDIM, 1), (Heun, 2)])
@pytest.mark.parametrize("schedule", ROUGH, **by_name)
def test_deterministic_samplers_converge_to_the_flow(cls, order, schedule, gaussian):
    mean, std = [0.5, -1.0], [0.6, 0.3]
    denoise = gaussian(mean, std).denoiser(schedule)
    noise = start(50, torch.float64)
    exact = flow_of_gaussian(schedule, mean, std, noise["start"])
    errors = [
        float((cls(schedule, n)(denoise, noise) - exact).square().mean().sqrt())
        for n in (100, 200, 400)
    ]
    assert errors[-1] < 0.02
    rates = -np.diff(np.log2(errors))
    assert abs(rates - order).max() < 0.2 * order


def test_they_converge_to_an_independent_solution(mixture):
    schedule = VPLinear(epsilon=0.05)
    denoise = mixture.denoiser(schedule)
    noise = start(6, torch.float64)

    def velocity(t, x):
        """dx/dt = -beta (x + score) / 2, Song et al.'s form."""
        x, t = torch.tensor(x).reshape(6, 2), torch.full((6,), t, dtype=torch.float64)
        a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        beta = (0.1 + 19.9 * (0.05 + 0.95 * t[:, None])) * 0.95
        return (-beta / 2 * (x + (a * denoise(x, t) - x) / s**2)).flatten().numpy()

    x_1 = noise["start"].flatten().numpy()
    solution = solve_ivp(velocity, (1, 0), x_1, method="DOP853", rtol=1e-8, atol=1e-8)
    exact = solution.y[:, -1].reshape(6, 2) / float(schedule.alpha(torch.zeros(())))
    coarse = np.abs(Heun(schedule, 40)(denoise, noise).numpy() - exact).max()
    fine = np.abs(Heun(schedule, 320)(denoise, noise).numpy() - exact).max()
    assert fine < 2e-3
    assert fine < coarse / 15
    assert np.abs(DDIM(schedule, 640)(denoise, noise).numpy() - exact).max() < 0.02


@pytest.mark.parametrize(
    "build",
    [
        lambda s: DDIM(s, 100),
        lambda s: DDIM(s, 100, eta=0.5),
        lambda s: Ancestral(s, 100),
        lambda s: Heun(s, 30),
    ],
    ids=["DDIM", "DDIM-0.5", "Ancestral", "Heun"],
)
def test_samples_have_the_datas_moments(build, schedule, mixture):
    sampler, n = build(schedule), 4000
    noise = {k: torch.randn(n, *shape) for k, shape in sampler.noise_shape((2,)).items()}
    x = sampler(mixture.denoiser(schedule), noise).double()
    data = mixture.sample(100_000)
    assert (x.mean(0) - data.mean(0)).abs().max() < 0.08
    assert (x.T.cov() - data.T.cov()).abs().max() < 0.1


@pytest.mark.parametrize("cls", [DDIM, Heun])
def test_inversion_is_exact_there_and_back(cls, schedule, mixture):
    denoise, x = mixture.denoiser(schedule), mixture.sample(100).float()
    sampler = cls(schedule, 20, refine=30)
    noise = sampler.invert(denoise, x)
    assert (sampler(denoise, noise) - x).abs().max() < 1e-4
    first_order = cls(schedule, 20, refine=0)
    assert (first_order(denoise, first_order.invert(denoise, x)) - x).abs().max() > 1e-2


@pytest.mark.parametrize("cls", [DDIM, Heun])
def test_inversion_finds_the_noise(cls, schedule, gaussian):
    denoise = gaussian([0.3, -0.2], [0.9, 0.4]).denoiser(schedule)
    noise, sampler = start(50, torch.float64), cls(schedule, 20, refine=30, tolerance=1e-10)
    found = sampler.invert(denoise, sampler(denoise, noise))
    torch.testing.assert_close(found["start"], noise["start"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("begin", [1.0, 0.5])
@pytest.mark.parametrize("cls", [DDIM, Heun])
def test_inverted_noise_of_gaussian_data_is_standard_normal(cls, begin, schedule, gaussian):
    data = gaussian([0.0, 0.0], [1.0, 1.0])
    angle = torch.tensor(0.6)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
    x = data.sample(2000) @ turn
    sampler = cls(schedule, 60, start=begin, refine=3)
    u = sampler.invert(data.denoiser(schedule), x)["start"]
    assert (u.T.cov() - torch.eye(2)).abs().max() < 0.1
    for column in u.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_noise_is_standardised_by_the_datas_scale(scale, schedule, gaussian):
    data = gaussian([0.0, 0.0], [scale, scale])
    sampler = Heun(schedule, 60, start=0.4, sigma_data=scale)
    u = sampler.invert(data.denoiser(schedule), data.sample(2000))["start"]
    assert (u.T.cov() - torch.eye(2)).abs().max() < 0.1


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("begin", [1.0, 0.6])
def test_stochastic_inversion_is_exact_for_any_denoiser(independent, eta, begin, schedule):
    def wrong(x, t):
        return torch.tanh(3 * x.flip(1)) + t[:, None]

    x = torch.randn(20, 2)
    sampler = DDIM(schedule, 12, eta, begin, independent=independent)
    noise = sampler.invert(wrong, x)
    assert {k: v.shape[1:] for k, v in noise.items()} == sampler.noise_shape((2,))
    assert (sampler(wrong, noise) - x).abs().max() < 1e-4
    again = sampler.invert(wrong, x)
    assert (again["steps"] - noise["steps"]).abs().max() > 0.1


def test_ancestral_is_ddim_with_all_noise_drawn(schedule, mixture):
    denoise = mixture.denoiser(schedule)
    ancestral, ddim = Ancestral(schedule, 9, 0.8), DDIM(schedule, 9, 1.0, 0.8)
    noise = {k: torch.randn(5, *shape) for k, shape in ancestral.noise_shape((2,)).items()}
    assert torch.equal(ancestral(denoise, noise), ddim(denoise, noise))
    found = ancestral.invert(denoise, mixture.sample(5).float())
    assert found.keys() == noise.keys()


def test_a_step_draws_from_the_posterior_of_the_forward_process(schedule):
    """q(x_s | x_t, x_0) by Bayes' rule: q(x_s | x_0) times q(x_t | x_s)."""
    t = torch.tensor([0.7, 0.0], dtype=torch.float64)
    (at, a0), (st, s0) = schedule.alpha(t).tolist(), schedule.sigma(t).tolist()
    forward = at / a0
    noise = st**2 - forward**2 * s0**2
    precision = 1 / s0**2 + forward**2 / noise
    x_0, start, z = 0.4, 1.3, -0.7
    x_t = math.hypot(at, st) * start
    mean = (a0 * x_0 / s0**2 + forward * x_t / noise) / precision
    sampler = Ancestral(schedule, 1, start=0.7)
    parts = {"start": torch.tensor([[start]]).double(), "steps": torch.tensor([[[z]]]).double()}
    x = sampler(lambda x, t: torch.full_like(x, x_0), parts)
    assert float(x) == pytest.approx((mean + z / math.sqrt(precision)) / a0, abs=1e-9)


def test_steps_that_explain_the_samplers_own_data_are_standard_normal(gaussian):
    """Exogeneity: uncorrelated, with variance one but for what a step of finite length leaves out.

    That is the spread of x_0 given x_t, `1 + b^2 Var[x_0 | x_t] / std^2`. Along a path of
    independent draws they are much larger and follow from each other.
    """
    schedule, data, n, steps = RectifiedFlow(0.05), gaussian([0.0], [1.0]), 4000, 150
    denoise, chance = data.denoiser(schedule), 5 / math.sqrt(n)
    noise = {"start": torch.randn(n, 1), "steps": torch.randn(n, steps, 1)}
    x = Ancestral(schedule, steps)(denoise, noise)
    found = Ancestral(schedule, steps).invert(denoise, x)
    z = torch.cat([found["start"], found["steps"][..., 0]], 1).double()

    times = schedule.times(steps)
    a, s = schedule.alpha(times), schedule.sigma(times)
    std2 = s[1:] ** 2 * (1 - (a[:-1] * s[1:] / (a[1:] * s[:-1])) ** 2)
    b = a[1:] - a[:-1] * (s[1:] ** 2 - std2).sqrt() / s[:-1]
    variance = 1 + b**2 / std2 * s[:-1] ** 2 / (a[:-1] ** 2 + s[:-1] ** 2)
    assert (z.var(0) - torch.cat([torch.ones(1), variance])).abs().max() < 1.5 * chance
    assert (z.T.corrcoef() - torch.eye(steps + 1)).abs().max() < chance

    apart = Ancestral(schedule, steps, independent=True).invert(denoise, x)["steps"][..., 0]
    assert apart.var(0).mean() > 2
    assert torch.corrcoef(apart[:, 70:72].T)[0, 1] < -0.3


@pytest.mark.parametrize(("cls", "each"), [(DDIM, 1), (Heun, 2)])
def test_evaluations_and_gradients(cls, each, gaussian):
    calls, scale = [], torch.tensor(0.9, requires_grad=True)

    def denoise(x, t):
        calls.append(t)
        return scale * x

    sampler = cls(Cosine(), 7, refine=0)
    x = sampler(denoise, start(3))
    assert len(calls) == 7 * each
    (slope,) = torch.autograd.grad(x.sum(), scale)
    assert slope != 0
    noise = sampler.invert(denoise, x)
    assert len(calls) == 14 * each
    assert not noise["start"].requires_grad


def test_rows_do_not_see_each_other(mixture):
    schedule = Cosine()
    sampler, x = Heun(schedule, 10, refine=20), mixture.sample(30).float()
    denoise = mixture.denoiser(schedule)
    together = sampler.invert(denoise, x)["start"]
    alone = sampler.invert(denoise, x[:1])["start"]
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cls", [DDIM, Ancestral, Heun])
def test_constructor_is_the_config(cls):
    built = cls(Cosine(), 5, start=0.5)
    read = {k: getattr(built, k) for k in inspect.signature(cls).parameters}
    assert (read["steps"], read["start"]) == (5, 0.5)
    assert cls(**read).noise_shape((3, 2)) == built.noise_shape((3, 2))


def test_wrong_noise_is_refused():
    sampler, x = Ancestral(Cosine(), 5), torch.zeros(2, 3)
    with pytest.raises(KeyError, match=r"no part 'steps', only \['start'\]"):
        sampler(lambda x, t: x, {"start": x})
    with pytest.raises(ValueError, match=r"needs \(B, steps, \*event_shape\) = \(2, 5, 3\)"):
        sampler(lambda x, t: x, {"start": x, "steps": torch.zeros(2, 4, 3)})


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        DDIM(Cosine(), 5, eta=1.5)
    with pytest.raises(ValueError, match="steps=0"):
        Heun(Cosine(), 0)
