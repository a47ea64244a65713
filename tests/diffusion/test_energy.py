"""Energy-guided noise against laws that are known, and the samplers that miss them."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Laplace, Normal

from subjunctive.diffusion import DDIM, Ancestral, Cosine, Denoiser, energy_guided
from subjunctive.graph import Graph
from subjunctive.intervention import Shift
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Categorical, Known, LinearGaussian
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.variable import Variable

CHAINS = 3000


# A linear-Gaussian mechanism and a quadratic energy ---------------------------------------------


SEES = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0]])
SEEN, WEIGHT = torch.tensor([2.0, -1.0, 0.5]), 2.0
SPREAD, MIDDLE = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, -1.0])


def linear():
    return LinearGaussian.of(Variable("x", (3,)), scale=SPREAD, bias=MIDDLE)


def misfit(x, chains):
    return (x @ SEES.T - SEEN).square().sum(1) / 2


def without_prior(x, chains):
    """The energy less what the prior adds: its law is exp(-WEIGHT misfit) alone."""
    return misfit(x, chains) - ((x - MIDDLE) / SPREAD).square().sum(1) / (2 * WEIGHT)


def posterior():
    """u ~ N(0, I), SEEN = SEES (MIDDLE + SPREAD u) + N(0, 1 / WEIGHT)."""
    a = SEES * SPREAD
    covariance = (torch.eye(3) + WEIGHT * a.T @ a).inverse()
    return WEIGHT * covariance @ a.T @ (SEEN - SEES @ MIDDLE), covariance


def misses(u, mean, covariance):
    """How many standard errors the chains' mean and covariance are away, the worst entry."""
    n, spread = len(u), covariance.diagonal()
    first = (u.mean(0) - mean) / (spread / n).sqrt()
    second = (u.T.cov() - covariance) / (
        (torch.outer(spread, spread) + covariance.square()) / n
    ).sqrt()
    return max(float(first.abs().max()), float(second.abs().max()))


def test_the_law_of_a_linear_mechanism_is_reached_and_broken_twins_miss_it():
    options = {"n": CHAINS, "weight": WEIGHT, "batch_size": CHAINS, "seed": 0}
    found = energy_guided(linear(), misfit, **options)
    assert misses(found.noise, *posterior()) < 5
    assert 0.4 < found.accepted < 0.75
    assert torch.allclose(found.energy, misfit(found.values, None), atol=1e-4)
    assert torch.allclose(found.values, linear()(found.noise, {}), atol=1e-5)
    assert found.trace[0] > 2 * found.trace[-50:].mean()

    fixed = options | {"step_size": 0.08, "steps": 100}
    unadjusted = energy_guided(linear(), misfit, adjust=False, **fixed)
    assert misses(unadjusted.noise, *posterior()) > 20
    assert unadjusted.accepted == 1
    assert misses(energy_guided(linear(), without_prior, **options).noise, *posterior()) > 20


def test_small_steps_need_no_adjustment():
    found = energy_guided(linear(), misfit, n=CHAINS, weight=WEIGHT, batch_size=CHAINS, seed=0,
                          step_size=0.002, steps=600, adjust=False)  # fmt: skip
    assert misses(found.noise, *posterior()) < 5


def test_an_energy_without_a_gradient_has_the_same_law():
    found = energy_guided(linear(), lambda x, i: misfit(x.detach(), i), n=CHAINS, weight=WEIGHT,
                          batch_size=CHAINS, steps=400, seed=0)  # fmt: skip
    assert misses(found.noise, *posterior()) < 5


# The prior ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.1, 1.0])
def test_without_an_energy_any_step_keeps_the_prior(step_size):
    x = LinearGaussian.of(Variable("x", (500,)))
    found = energy_guided(x, lambda x, i: 0 * x.sum(1), n=20, steps=20, step_size=step_size,
                          warmup=0, seed=0)  # fmt: skip
    assert found.accepted == 1
    assert stats.kstest(found.noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_acceptance_does_not_fall_with_the_number_of_entries():
    def accepted(size):
        x = LinearGaussian.of(Variable("x", (size,)))
        return energy_guided(x, lambda x, i: (x[:, 0] - 1).square(), n=200, steps=30, warmup=0,
                             step_size=0.3, batch_size=200, seed=0).accepted  # fmt: skip

    few, many = accepted(1), accepted(5000)
    assert 0.5 < few < 0.95
    assert many == pytest.approx(few, abs=0.03)


def test_noise_that_is_not_normal_keeps_its_own_prior():
    prior = {"a": Laplace(0.0, 1.0), "b": Normal(1.0, 2.0)}
    x = Known(Variable("x"), [], lambda u, _: u["a"] + u["b"], noise=prior)
    found = energy_guided(x, lambda x, i: (x - 4).square() / 2, n=CHAINS, steps=300,
                          batch_size=CHAINS, seed=0)  # fmt: skip
    a, b = torch.meshgrid(torch.linspace(-15, 15, 601), torch.linspace(-12, 14, 601), indexing="ij")
    log_p = -a.abs() - ((b - 1) / 2).square() / 2 - (a + b - 4).square() / 2
    p = log_p.flatten().double().softmax(0)
    for name, grid in (("a", a), ("b", b)):
        value = grid.flatten().double()
        mean = float(p @ value)
        variance = float(p @ (value - mean).square())
        u = found.noise[name].double()
        assert abs(float(u.mean()) - mean) < 5 * math.sqrt(variance / CHAINS), name
        assert float(u.var()) == pytest.approx(variance, rel=0.15), name


def test_a_forbidden_region_is_never_entered():
    x = LinearGaussian.of(Variable("x"))

    def wall(x, chains):
        return torch.where(x > 0.5, 0.0, torch.inf)

    found = energy_guided(x, wall, n=CHAINS, steps=100, batch_size=CHAINS, seed=0)
    assert bool((found.values > 0.5).all())
    tail = stats.truncnorm(0.5, math.inf)
    assert stats.kstest(found.values.numpy(), tail.cdf).pvalue > 1e-3


# Models -------------------------------------------------------------------------------------------


def three():
    arm = Variable("arm", kind="categorical", categories=("a", "b", "c"))
    t, x = Variable("t", loc=1.0), Variable("x", loc=10.0, scale=2.0)
    with seeded(0):
        root = Categorical(arm)
        with torch.no_grad():
            for parameter in root.parameters():
                parameter.copy_(torch.randn_like(parameter))
    mechanisms = {
        "arm": root,
        "t": LinearGaussian.of(t),
        "x": LinearGaussian.of(x, [arm, t], weights=[-1.0, 0.0, 1.0, 0.5], scale=0.5),
    }
    return SCM(Graph.parse("arm -> x; t -> x"), mechanisms)


def test_an_scm_infers_its_causes_from_an_energy_of_what_they_make():
    model = three()
    found = energy_guided(model, lambda v, i: (v["x"] - 12).square() / 2, n=CHAINS, steps=300,
                          batch_size=CHAINS, seed=0)  # fmt: skip
    prior = model.mechanisms["arm"].logits({}, 1)[0].detach().log_softmax(0)
    effect = torch.tensor([-2.0, 0.0, 2.0])  # x = 10 + effect + N(0, (2 / 2)^2 + (2 / 2)^2)
    exact = (prior - (2 - effect).square() / (2 * 3)).softmax(0)
    share = torch.bincount(found.values["arm"], minlength=3) / CHAINS
    assert (share - exact).abs().max() < 5 * 0.5 / math.sqrt(CHAINS)
    means = exact @ ((2 - effect) / 3)  # of the part that t adds, hence of its own noise
    assert float(found.noise["t"].mean()) == pytest.approx(float(means), abs=0.1)


def test_interventions_hold_and_cut():
    model, t = three(), torch.linspace(-2, 2, 40)
    found = energy_guided(model, lambda v, i: 20 * (v["x"] - 12).square(), {"t": t, "arm": "b"},
                          40, steps=100, seed=0)  # fmt: skip
    assert torch.allclose(found.values["t"], t)
    assert bool((found.values["arm"] == 1).all())
    assert (found.values["x"] - 12).abs().mean() < 0.3
    shifted = energy_guided(model, lambda v, i: v["x"].square(), {"t": Shift(1.0)}, 4, steps=3)
    noise = {k: v.clone() for k, v in shifted.noise.items()}
    assert torch.allclose(model.predict(noise, {"t": Shift(1.0)})["x"], shifted.values["x"])


def test_each_chain_may_have_parents_and_a_target_of_its_own():
    x = LinearGaussian.of(Variable("x"), [Variable("t")], weights=[1.0], scale=1.0)
    t, target = torch.randn(60), torch.randn(60)
    found = energy_guided(x, lambda x, i: 500 * (x - target[i]).square(), {"t": t}, 60, steps=400,
                          batch_size=7, seed=0)  # fmt: skip
    assert (found.values - target).abs().mean() < 0.1
    assert torch.allclose(found.values, t + found.noise, atol=1e-5)


class Exact(nn.Module):
    """The denoiser of N(mean, variance) under a schedule of unit variance, no condition."""

    def __init__(self, mean=0.0, variance=1.0):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x, noise, condition):
        alpha2 = torch.sigmoid(4 * noise)[:, None]
        gain = alpha2.sqrt() * self.variance / (alpha2 * self.variance + 1 - alpha2)
        return self.mean + gain * (x - alpha2.sqrt() * self.mean)


@pytest.mark.parametrize("cls", [DDIM, Ancestral])
def test_the_law_is_reached_through_a_sampler(cls):
    """Whatever the sampler's steps, it is linear here: x = m + a u, seen as 3 with variance 1/2."""
    sampler = cls(Cosine(), 6)
    x = Diffusion(Variable("x", (1,)), [], Denoiser(Exact(0.5, 2.0), Cosine()), sampler=sampler)
    u = {k: torch.zeros(1, *d.event_shape, requires_grad=True) for k, d in x.prior().items()}
    m = x(u, {})
    a = torch.cat([g.flatten() for g in torch.autograd.grad(m.sum(), list(u.values()))])
    covariance = (torch.eye(len(a)) + 2 * torch.outer(a, a)).inverse()
    mean = 2 * covariance @ a * (3 - m.detach()[0, 0])
    found = energy_guided(x, lambda x, i: (x[:, 0] - 3).square(), n=CHAINS, steps=150,
                          batch_size=CHAINS, checkpointing=False, seed=0)  # fmt: skip
    flat = torch.cat([part.reshape(CHAINS, -1) for part in found.noise.values()], 1)
    assert misses(flat, mean, covariance) < 5


def picture():
    with seeded(0):
        network = UNet(1, condition=1, width=8, multipliers=(1,), size=8)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, Cosine())
    return Diffusion(Variable("x", (1, 8, 8)), [], denoiser, sampler=DDIM(Cosine(), 5))


def test_checkpoints_and_small_batches_change_nothing_but_memory():
    x, kept = picture(), []

    def guided(**options):
        size = [0]

        def count(t):
            size[0] += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            found = energy_guided(x, lambda x, i: (x - 1).square().sum((1, 2, 3)), n=6, steps=4,
                                  seed=0, **options)  # fmt: skip
        kept.append(size[0])
        return found.values

    every = [guided(), guided(checkpointing=False), guided(batch_size=2)]
    assert all(torch.allclose(every[0], other, atol=1e-4) for other in every[1:])
    assert kept[0] < kept[1] / 5
    assert "forward" not in vars(x.denoiser)
    assert all(p.grad is None for p in x.parameters())


def test_chains_begin_where_they_are_told_and_leave_the_generator():
    x, state = picture(), torch.get_rng_state()
    start = draw(x.prior(), 3)
    torch.set_rng_state(state)
    found = energy_guided(x, lambda x, i: 1e6 * x.square().sum((1, 2, 3)), n=3, steps=2, warmup=0,
                          step_size=0.5, start=start, seed=0)  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert found.accepted == 0
    assert torch.equal(found.noise["start"], start["start"])


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": 1.5}, "step_size=1.5"),
        ({"n": 0}, "n=0"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"steps": 3, "warmup": 4}, "warmup=4"),
        ({"energy": lambda x, i: x.sum()}, r"shape \(\); it must be one number a row, \(2,\)"),
        ({"do": {"t": torch.zeros(3)}}, "2 chains need 2 values of 't', got 3"),
    ],
)
def test_mistakes_are_told(options, said):
    x = LinearGaussian(Variable("x"), [Variable("t")])
    given = {"energy": lambda x, i: x.square(), "do": {"t": torch.zeros(2)}, "n": 2} | options
    with pytest.raises(ValueError, match=said):
        energy_guided(x, **given)


def test_models_and_interventions_that_do_not_fit_are_told():
    with pytest.raises(TypeError, match="noise has a known prior; got Linear"):
        energy_guided(nn.Linear(1, 1), lambda x, i: x.sum(1))
    with pytest.raises(ValueError, match="2 chains need one value of 't' or 2, got 3"):
        energy_guided(three(), lambda v, i: v["x"], {"t": torch.zeros(3)}, 2)
