"""The multistep solver: its order, its cost, and a way back through steps that remember."""

import inspect

import numpy as np
import pytest
import torch

from subjunctive.diffusion import DDIM, EDM, Cosine, Heun, Multistep, RectifiedFlow, VPLinear

ROUGH = [VPLinear(epsilon=0.1), Cosine(0.1), RectifiedFlow(0.1), EDM(0.1, 20.0)]
by_name = {"ids": lambda s: type(s).__name__}


def start(n, dtype=torch.float64):
    return {"start": torch.randn(n, 2, dtype=dtype)}


@pytest.mark.parametrize("schedule", ROUGH, **by_name)
def test_it_is_of_second_order(schedule, mixture):
    """Towards its own limit, which is the flow by the test below."""
    denoise, noise = mixture.denoiser(schedule), start(100)
    exact = Multistep(schedule, 1600)(denoise, noise)
    errors = [
        float((Multistep(schedule, n)(denoise, noise) - exact).square().mean().sqrt())
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    assert abs(-np.diff(np.log2(errors)) - 2).max() < 0.4


def test_at_equal_evaluations_it_is_nearer_to_the_flow_than_the_others(schedule, mixture):
    denoise, noise = mixture.denoiser(schedule), start(200)
    exact = Heun(schedule, 300)(denoise, noise)
    ours, first, heun = (
        float((cls(schedule, n)(denoise, noise) - exact).square().mean().sqrt())
        for cls, n in ((Multistep, 20), (DDIM, 20), (Heun, 10))
    )
    assert ours < 0.7 * min(first, heun)


def test_a_step_is_the_papers(mixture):
    """x_s = s_s/s_t x_t - alpha_s (e^-h - 1) [(1 + 1/2r) D_t - 1/2r D_r], r = h'/h; lambda."""
    schedule = Cosine(0.05)
    denoise, noise = mixture.denoiser(schedule), start(30)
    sampler = Multistep(schedule, 5)
    levels = sampler.levels()
    lam = [np.log(level.alpha / level.sigma) for level in levels]
    x, before = levels[0].scale * noise["start"], None
    for i in range(5):
        t, s, h = levels[i], levels[i + 1], lam[i + 1] - lam[i]
        now = t.denoise(denoise, x)
        d = now
        if 0 < i < 4:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * now - before / (2 * r)
        x, before = s.sigma / t.sigma * x - s.alpha * np.expm1(-h) * d, now
    expected = x / levels[-1].alpha
    torch.testing.assert_close(sampler(denoise, noise), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_inversion_is_exact_there_and_back(steps, schedule, mixture):
    denoise, x = mixture.denoiser(schedule), mixture.sample(60).float()
    sampler = Multistep(schedule, steps, refine=30, sweeps=20)
    noise = sampler.invert(denoise, x)
    assert (sampler(denoise, noise) - x).abs().max() < 1e-4
    if steps == 12:
        for rough in (
            Multistep(schedule, steps, refine=30, sweeps=0),
            Multistep(schedule, steps, refine=0),
        ):
            assert (rough(denoise, rough.invert(denoise, x)) - x).abs().max() > 1e-2


def test_inversion_finds_the_noise(schedule, gaussian):
    denoise = gaussian([0.3, -0.2], [0.9, 0.4]).denoiser(schedule)
    noise, sampler = start(50), Multistep(schedule, 15, refine=30, sweeps=30, tolerance=1e-10)
    found = sampler.invert(denoise, sampler(denoise, noise))
    torch.testing.assert_close(found["start"], noise["start"], rtol=0, atol=1e-5)


def test_evaluations_and_gradients():
    calls, scale = [], torch.tensor(0.9, requires_grad=True)

    def denoise(x, t):
        calls.append(float(t[0]))
        return scale * x

    sampler = Multistep(Cosine(), 7)
    x = sampler(denoise, start(3))
    assert calls == sorted(set(calls), reverse=True)
    assert len(calls) == 7
    (slope,) = torch.autograd.grad(x.sum(), scale)
    assert slope != 0
    assert not sampler.invert(denoise, x)["start"].requires_grad


def test_rows_do_not_see_each_other(mixture):
    sampler, x = Multistep(Cosine(), 8, refine=20), mixture.sample(20).float()
    denoise = mixture.denoiser(Cosine())
    together, alone = (sampler.invert(denoise, rows)["start"] for rows in (x, x[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-3)


def test_constructor_is_the_config():
    built = Multistep(Cosine(), 5, start=0.5, sweeps=3)
    read = {k: getattr(built, k) for k in inspect.signature(Multistep).parameters}
    assert (read["steps"], read["start"], read["sweeps"]) == (5, 0.5, 3)
    with pytest.raises(ValueError, match="sweeps=-1; it must be 0 or more"):
        Multistep(Cosine(), sweeps=-1)
    with pytest.raises(KeyError, match="no part 'start'"):
        built(lambda x, t: x, {})
