"""Jumps and roads against the flow of Gaussian data, which is known in closed form."""

import math

import pytest
import torch

from subjunctive.diffusion import EDM, Cosine, Jumps
from subjunctive.diffusion.denoise import column
from subjunctive.diffusion.jump import carry, edge_below, jump, time_of
from subjunctive.mechanism import seeded

MEAN, SCALE = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.5]).double()


def flow(schedule, x, t, s):
    """Where the probability-flow ODE of N(MEAN, SCALE^2) carries x from t to s."""

    def spread(time):
        return torch.hypot(column(schedule.alpha(time), x) * SCALE, column(schedule.sigma(time), x))

    away = x - column(schedule.alpha(t), x) * MEAN
    return column(schedule.alpha(s), x) * MEAN + away * spread(s) / spread(t)


def exact(schedule):
    """The estimate whose jump is the flow: E = (flow - a x) / b."""

    def estimate(x, t, s):
        a = schedule.sigma(s) / schedule.sigma(t)
        b = schedule.alpha(s) - schedule.alpha(t) * a
        return (flow(schedule, x, t, s) - column(a, x) * x) / column(b, x)

    return estimate


def denoiser(schedule):
    def denoise(x, t):
        a, s = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        return MEAN + a * SCALE**2 / (a**2 * SCALE**2 + s**2) * (x - a * MEAN)

    return denoise


@pytest.fixture
def rows():
    with seeded(0):
        return torch.randn(64, 2).double()


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"edges": (0.0, 0.3, 0.6)},
        {"edges": None, "stops": (1.0, 0.7, 0.2), "gamma": 0.0},
    ],
    ids=["one", "phased", "anywhere"],
)
def test_jumps_that_draw_nothing_are_one_and_the_same_map(schedule, how, rows):
    answer = Jumps(schedule, **how)(exact(schedule), {"start": rows})
    one, zero = torch.ones(64).double(), torch.zeros(64).double()
    level = math.hypot(float(schedule.alpha(one[0])), float(schedule.sigma(one[0])))
    wanted = flow(schedule, level * rows, one, zero) / schedule.alpha(zero[0])
    torch.testing.assert_close(answer, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("how", [{}, {"edges": None, "gamma": 0.6}], ids=["anew", "a share"])
def test_noise_drawn_anew_leaves_the_law_as_it_is(how):
    jumps = Jumps(Cosine(), stops=(1.0, 0.7, 0.3), **how)
    with seeded(1):
        noise = {"start": torch.randn(12_000, 2).double()}
        noise["steps"] = torch.randn(12_000, *jumps.noise_shape((2,))["steps"]).double()
    found = jumps(exact(Cosine()), noise)
    assert (found.mean(0) - MEAN).abs().max() < 0.03
    assert (found.std(0) / SCALE - 1).abs().max() < 0.02
    # the broken twin adds all of a stop's noise to what already has some of it
    twice = {**noise, "steps": 2 * noise["steps"]}
    assert (jumps(exact(Cosine()), twice).std(0) / SCALE - 1).abs().max() > 0.05


def test_a_stop_draws_noise_of_its_own_so_that_later_stops_forget_the_start():
    with seeded(0):
        start, steps = torch.randn(2, 500, 2).double(), torch.randn(500, 1, 2).double()
    late = Jumps(Cosine(), stops=(1.0, 0.95))
    kept = Jumps(Cosine(), stops=(1.0, 0.95), edges=None, gamma=0.0)
    apart = [
        float((j(exact(Cosine()), {"start": start[0], "steps": steps})
               - j(exact(Cosine()), {"start": start[1], "steps": steps})).abs().mean())
        for j in (late, kept)
    ]  # fmt: skip
    assert apart[0] < 0.25 * apart[1]


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_a_road_has_the_order_of_its_steps(heun, order, rows):
    schedule = Cosine(0.05)
    with seeded(2):
        t = 0.4 + 0.5 * torch.rand(64).double()
    s = t / 3
    wanted = flow(schedule, rows, t, s)
    error = [
        float((carry(denoiser(schedule), schedule, rows, t, s, n, heun) - wanted).abs().mean())
        for n in (8, 16)
    ]
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.25)


def test_a_noisy_road_keeps_the_marginals_and_a_mistaken_one_does_not():
    schedule = Cosine()
    t, s = torch.full((12_000,), 0.6).double(), torch.full((12_000,), 0.3).double()

    def spread(time):
        return torch.hypot(schedule.alpha(time[0]) * SCALE, schedule.sigma(time[0]))

    with seeded(0):
        x = schedule.alpha(t[0]) * MEAN + spread(t) * torch.randn(12_000, 2).double()
        there = carry(denoiser(schedule), schedule, x, t, s, 25, noise=1.0)
    assert (there.std(0) / spread(s) - 1).abs().max() < 0.02
    assert (there.mean(0) - schedule.alpha(s[0]) * MEAN).abs().max() < 0.03
    with seeded(0):
        idle = carry(lambda x, t: 0 * x + MEAN, schedule, x, t, s, 25, noise=1.0)
    assert (idle.std(0) / spread(s) - 1).abs().max() > 0.1


def test_a_jump_of_no_length_is_none_whatever_the_network(rows):
    t = torch.rand(64).double()
    assert torch.equal(jump(lambda x, t, s: 1e3 * x, EDM(), rows, t, t), rows)


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=lambda s: type(s).__name__)
def test_a_time_is_found_from_its_noise(schedule):
    wanted = float(schedule.log_snr(torch.tensor(0.37, dtype=torch.float64)))
    assert time_of(schedule, wanted) == pytest.approx(0.37, abs=1e-9)
    assert time_of(schedule, 1e9) == 0.0
    assert time_of(schedule, -1e9) == pytest.approx(1.0)


def test_the_edge_below_an_edge_is_the_next_one():
    found = edge_below((0.0, 0.25, 0.5), torch.tensor([0.0, 0.1, 0.25, 0.26, 0.5, 1.0]))
    assert found.tolist() == [0.0, 0.0, 0.0, 0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"stops": (0.9,)}, "fall from 1"),
        ({"stops": (1.0, 1.0)}, "fall from 1"),
        ({"stops": ()}, "fall from 1"),
        ({"gamma": 1.5}, "share"),
        ({"edges": (0.1, 0.5)}, "rise from 0"),
        ({"edges": (0.0, 1.0)}, "stay below 1"),
        ({"stops": (1.0, 0.5), "gamma": 0.0}, "edges=None"),
        ({"stops": (1.0, 0.5), "edges": (0.0, 0.5)}, "leave out stops"),
    ],
)
def test_what_does_not_go_together_is_refused(how, says):
    with pytest.raises(ValueError, match=says):
        Jumps(Cosine(), **how)


def test_later_noise_is_explained_by_the_data_and_follows_the_prior(rows):
    """Every stop is the data, noised; on the model's own draws that is a draw of N(0, I)."""
    jumps, seen = Jumps(Cosine(), stops=(1.0, 0.6)), []

    def watched(x, t, s):
        seen.append(x)
        return exact(Cosine())(x, t, s)

    with seeded(0):
        start = torch.randn(4000, 2).double()
        x = MEAN + SCALE * torch.randn(4000, 2).double()
        noise, landed = jumps.explain(watched, start, x)
    torch.testing.assert_close(jumps(exact(Cosine()), {"start": start, **noise}), landed)
    a, s = (f(torch.tensor(0.6, dtype=torch.float64)) for f in (Cosine().alpha, Cosine().sigma))
    left = (seen[1] - a * x) / s  # the second stop is x noised by what is left
    assert float(left.mean().abs()) < 0.03
    assert float(left.std()) == pytest.approx(1.0, abs=0.03)
    assert float(torch.corrcoef(torch.stack([left[:, 1], x[:, 1]]))[0, 1].abs()) < 0.05
    # the answer is closer to x than one of noise that was drawn anew, the broken twin
    fresh = jumps(exact(Cosine()), {"start": start, "steps": torch.randn_like(noise["steps"])})
    assert float((landed - x).abs().mean()) < 0.75 * float((fresh - x).abs().mean())
    # nothing to explain, nothing explained: data that are where the jump had led
    with seeded(1):
        own, _ = jumps.explain(
            exact(Cosine()), start, Jumps(Cosine())(exact(Cosine()), {"start": start})
        )
    assert float(own["steps"].std()) == pytest.approx(1.0, abs=0.02)
