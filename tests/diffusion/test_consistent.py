"""Grids and distances against their formulas."""

import math

import pytest
import torch

from subjunctive.diffusion import EDM, Cauchy, Cosine, Grid, PseudoHuber, Squared
from subjunctive.mechanism import seeded


def test_the_older_grid_grows_with_the_root():
    grid = Grid(2, 150, steps=1000, root=True)
    squares = [grid.intervals(k) ** 2 for k in (0, 250, 500, 1000)]
    assert (squares[0], squares[-1]) == (4, 150**2)
    assert squares[1] == pytest.approx(4 + (150**2 - 4) / 4, rel=0.02)
    assert squares[2] == pytest.approx(4 + (150**2 - 4) / 2, rel=0.02)


def test_every_doubling_lasts_as_long():
    grid = Grid(10, 1280, steps=800)
    lasts = [sum(grid.intervals(k) == 10 * 2**i for k in range(800)) for i in range(8)]
    assert lasts == [100] * 8


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=lambda s: type(s).__name__)
def test_noise_levels_are_log_normal(schedule):
    grid, like = Grid(400, 400), torch.zeros(1).double()
    with seeded(0):
        t, u = grid.draw(50_000, 0, schedule, like)
    assert bool((t > u).all())
    assert torch.allclose(t - u, torch.full_like(t, 1 / 400))
    level = -schedule.log_snr((t + u) / 2) / 2
    ends = -schedule.log_snr(torch.tensor([0.0, 1.0]).double()) / 2
    normal = torch.distributions.Normal(-1.1, 2.0)
    low, high = normal.cdf(ends)
    for q in (0.1, 0.5, 0.9):
        wanted = normal.icdf(low + q * (high - low))
        assert float(level.quantile(q)) == pytest.approx(float(wanted), abs=0.08)
    with seeded(0):  # the broken twin: every interval alike
        flat, _ = Grid(400, 400, noise=None).draw(50_000, 0, schedule, like)
    wanted = float(normal.icdf(low + 0.1 * (high - low)))
    assert abs(float((-schedule.log_snr(flat) / 2).quantile(0.1)) - wanted) > 0.3


def test_a_road_that_skips_ends_at_clean_data_at_the_latest():
    with seeded(0):
        t, u = Grid(10, 10).draw(1000, 0, Cosine(), torch.zeros(1).double(), skip=4)
    assert torch.allclose(t - u, torch.minimum(t, torch.full_like(t, 0.4)))


def test_distances_are_their_formulas_and_outliers_count_less_and_less():
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e3, 4e3]]).double().requires_grad_()
    assert Squared()(v, 9).tolist() == [25.0, 0.0, 25e6]
    huber = PseudoHuber(2.0)(v, 9)
    assert huber[0].item() == pytest.approx(math.sqrt(29) - 2)
    cauchy = Cauchy(2.0)(v, 9)
    assert cauchy[0].item() == pytest.approx(math.log(1 + 25 / 8))
    pull = [
        float(torch.autograd.grad(d(v, 9)[2], v)[0][2].norm())
        for d in (Squared(), PseudoHuber(2.0), Cauchy(2.0))
    ]
    assert pull[0] > 5e3
    assert pull[1] == pytest.approx(1.0, abs=1e-3)
    assert pull[2] < 1e-3


def test_the_cauchy_scale_shrinks_with_the_grid():
    v = torch.ones(1, 1)
    near, far = (float(Cauchy()(v, n)) for n in (11, 101))
    assert near == pytest.approx(math.log1p(0.5 / math.exp(-1.18 * math.log(10) - 0.72) ** 2))
    assert far > near


@pytest.mark.parametrize("wrong", [{"first": 1}, {"first": 20, "last": 10}, {"steps": 0},
                                   {"noise": (0.0, 0.0)}])  # fmt: skip
def test_grids_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"interval|deviation"):
        Grid(**wrong)
