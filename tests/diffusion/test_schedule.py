import inspect
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from subjunctive.diffusion import EDM, Cosine, RectifiedFlow, VPLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_grows_and_data_fade(schedule, dtype):
    t = torch.linspace(0, 1, 201, dtype=dtype)
    alpha, sigma, log_snr = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    assert alpha.dtype == sigma.dtype == log_snr.dtype == dtype
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() >= 0).all()
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close((alpha / sigma) ** 2, log_snr.exp(), rtol=1e-4, atol=0)


def test_ends_are_nearly_clean_and_nearly_noise(schedule):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (a0, a1), (s0, s1) = schedule.alpha(ends).tolist(), schedule.sigma(ends).tolist()
    assert 0.999 < a0 <= 1
    assert 0 < s0 < 0.011
    assert 0 < a1 / s1 < 0.013
    assert math.isfinite(float(schedule.log_snr(ends).abs().max()))


def test_each_keeps_its_identity():
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    for vp in (VPLinear(), Cosine()):
        torch.testing.assert_close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t))
    flow = RectifiedFlow(0.01)
    torch.testing.assert_close(flow.alpha(t) + flow.sigma(t), torch.full_like(t, 1.01))
    angle = torch.atan2(Cosine().sigma(t), Cosine().alpha(t))
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(49))


def test_floors_are_where_they_say():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for cls in (Cosine, RectifiedFlow):
        assert cls(0.02).sigma(ends)[0] == pytest.approx(0.02)
        assert cls(0.02).alpha(ends)[1] == pytest.approx(0.02)
    assert EDM(0.1, 10).sigma(ends).tolist() == pytest.approx([0.1, 10])


def test_linear_rate_is_integrated_right():
    schedule = VPLinear(0.2, 15.0, epsilon=0.01)
    for t in (0.0, 0.3, 1.0):
        integral, _ = quad(lambda s: 0.2 + (15.0 - 0.2) * s, 0, 0.01 + 0.99 * t)
        alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        assert alpha == pytest.approx(math.exp(-integral / 2))


def test_edm_stops_where_the_paper_does():
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    i = np.arange(n)
    paper = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    schedule = EDM(low, high, rho)
    np.testing.assert_allclose(schedule.sigma(schedule.times(n - 1)), paper, rtol=1e-12)


def test_times_go_from_start_to_zero(schedule):
    times = schedule.times(7, start=0.6)
    assert len(times) == 8
    assert (times[0], times[-1]) == (0.6, 0.0)
    assert (times.diff() < 0).all()


@pytest.mark.parametrize(("steps", "start"), [(0, 1.0), (5, 0.0), (5, 1.5)])
def test_times_that_make_no_sense_are_refused(schedule, steps, start):
    with pytest.raises(ValueError, match=f"steps={steps}, start={start}"):
        schedule.times(steps, start)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Cosine(0.0),
        lambda: RectifiedFlow(0.7),
        lambda: EDM(2.0, 1.0),
        lambda: VPLinear(30.0),
    ],
)
def test_ends_out_of_order_are_refused(build):
    with pytest.raises(ValueError, match="must lie between"):
        build()


def test_constructor_is_the_config(schedule):
    read = {k: getattr(schedule, k) for k in inspect.signature(type(schedule)).parameters}
    t = torch.linspace(0, 1, 9)
    assert torch.equal(type(schedule)(**read).log_snr(t), schedule.log_snr(t))
