"""Refined mechanisms against closed forms, the processes as papers write them, and training."""

import copy

import pytest
import torch
from torch import nn

from subjunctive.checks import check_mechanism
from subjunctive.diffusion import DDIM, Cosine, Denoiser
from subjunctive.diffusion.denoise import column
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, draw, parts, seeded
from subjunctive.mechanisms import VAE, Bernoulli, ConditionalFlow, LinearGaussian, Refined
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.mechanisms.refined import Overlay, expect, infer
from subjunctive.nn import UNet
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

T = Variable("t", loc=2.0, scale=0.5)
PICTURE = Variable("x", (1, 8, 8), loc=0.5, scale=0.5, low=0.0, high=1.0)
GUIDE = Variable("guide", (1, 8, 8))
FORMULATIONS = ("conditioned", "residual")


def vae(variable=PICTURE, parents=(T,), **options):
    widths = (8, 8) if len(variable.shape) == 3 else (16,)
    return VAE.of(variable, parents, 3, widths=widths, **options)


def refined(formulation="residual", sampler=None, first=None, stir=0.2, **options):
    with seeded(0):
        made = Refined.of(
            first or vae(), sampler, formulation, width=8, multipliers=(1,), **options
        )
    return stirred(made, stir)


# A first stage and a denoiser that are known ------------------------------------------------------


class Twice(Mechanism):
    """x = 2 v t + s r, with the two methods of a first stage of its own."""

    def __init__(self, variable, parents, scale=0.5):
        super().__init__(variable, parents)
        self.scale = scale

    def prior(self):
        return {"v": self.standard_normal(3), "residual": self.standard_normal(3)}

    def expect(self, u, parents):
        return 2 * u["v"] * parents["t"][:, None]

    def infer(self, x, parents):
        return {"v": x / (2 * parents["t"][:, None])}

    def forward(self, u, parents):
        return self.expect(u, parents) + self.scale * u["residual"]

    def abduct(self, x, parents):
        raise AssertionError("infer says all that is asked")

    def loss(self, x, parents):
        return {"nothing": 0 * x.sum(1)}


class Ideal(nn.Module):
    """E[x | x_t] of N(m, s^2), m = x_hat from the condition or, for a residual, zero."""

    def __init__(self, formulation, scale=0.3):
        super().__init__()
        self.formulation, self.scale, self.schedule = formulation, scale, Cosine()

    def forward(self, x_t, t, condition):
        m = condition[:, 1:4] if self.formulation == "conditioned" else torch.zeros_like(x_t)
        a, s = column(self.schedule.alpha(t), x_t), column(self.schedule.sigma(t), x_t)
        gain = a * self.scale**2 / (a**2 * self.scale**2 + s**2)
        return m + gain * (x_t - a * m)


VECTOR = Variable("x", (3,))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_an_ideal_denoiser_adds_just_the_spread_that_is_left(formulation):
    guide = Variable("guide", (3,))
    sampler = DDIM(Cosine(), steps=300)
    refiner = Diffusion(VECTOR, [T, guide], Ideal(formulation), sampler=sampler)
    mechanism = Refined(Twice(VECTOR, [T]), refiner, formulation).double()
    u, parents = draw(mechanism.prior(), 50), {"t": torch.rand(50).double() + 0.5}
    x, x_hat = mechanism(u, parents), 2 * u["first"]["v"] * parents["t"][:, None]
    # the flow of N(m, s^2) keeps every quantile: from N(a m, a^2 s^2 + sigma^2) at the start
    a, s = 0.005, (1 - 0.005**2) ** 0.5
    spread = ((0.3 * a) ** 2 + s**2) ** 0.5
    begin = spread if formulation == "residual" else 1.0
    begin = DDIM(Cosine()).levels()[0].scale / spread * u["refiner"]["start"]
    begin = begin - (a / spread * x_hat if formulation == "conditioned" else 0)
    assert (x - x_hat - 0.3 * begin).abs().max() < 0.02
    again = mechanism.abduct(x, parents)
    assert torch.allclose(again["first"]["v"], x / (2 * parents["t"][:, None]))
    assert (mechanism(again, parents) - x).abs().max() < 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_residual_is_the_shifted_process(eta):
    """x_t = alpha x + (1 - alpha) x_hat + sigma e, written out step by step."""
    sampler = DDIM(Cosine(), 5, eta)
    mechanism = refined("residual", sampler).double().eval()
    with torch.no_grad():
        u, parents = draw(mechanism.prior(), 4), {"t": torch.randn(4).double()}
        x_hat, levels = mechanism.x_hat(u, parents), sampler.levels()
        told, start = {**parents, "expected x": x_hat}, levels[0].scale * u["refiner"]["start"]
        residual = mechanism.refiner.denoise(told, None, 4)
        x_t = x_hat + start
        for i in range(5):
            t, s = levels[i], levels[i + 1]
            x = x_hat + t.denoise(residual, x_t - x_hat)
            e = (x_t - t.alpha * x - (1 - t.alpha) * x_hat) / t.sigma
            fresh = eta * s.sigma * (1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2) ** 0.5
            x_t = s.alpha * x + (1 - s.alpha) * x_hat + (s.sigma**2 - fresh**2) ** 0.5 * e
            if eta:
                x_t = x_t + fresh * u["refiner"]["steps"][:, i]
        found = x_hat + (x_t - x_hat) / levels[-1].alpha
        assert torch.allclose(mechanism(u, parents), found, atol=1e-10)


def test_the_papers_second_formulation_is_the_first_in_other_coordinates():
    """x_t = alpha x + x_hat + sigma e, its transitions from a posterior mean, x_hat off at last."""
    sampler = DDIM(Cosine(), 5, eta=1.0)
    mechanism = refined("conditioned", sampler).double().eval()
    with torch.no_grad():
        u, parents = draw(mechanism.prior(), 4), {"t": torch.randn(4).double()}
        x_hat, levels = mechanism.x_hat(u, parents), sampler.levels()
        denoise = mechanism.refiner.denoise({**parents, "expected x": x_hat}, None, 4)
        x_t = x_hat + levels[0].scale * u["refiner"]["start"]
        for i in range(5):
            t, s = levels[i], levels[i + 1]
            x = t.denoise(denoise, x_t - x_hat)  # by a network that sees x_t and x_hat
            a = t.alpha / s.alpha
            b = t.sigma**2 - (a * s.sigma) ** 2
            of_x, of_x_t = s.alpha * b / t.sigma**2, a * s.sigma**2 / t.sigma**2
            mean = of_x * x + of_x_t * x_t + (1 - of_x_t) * x_hat
            x_t = mean + s.sigma / t.sigma * b**0.5 * u["refiner"]["steps"][:, i]
        assert torch.allclose(mechanism(u, parents), (x_t - x_hat) / levels[-1].alpha, atol=1e-10)


# What the refiner is given ------------------------------------------------------------------------


class Spy(LinearGaussian):
    """A refiner that keeps what it was given."""

    def loss(self, x, parents):
        self.given = x, dict(parents)
        return super().loss(x, parents)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_refiner_sees_what_the_first_stage_expects_of_the_same_draw(formulation):
    first = vae()
    mechanism = Refined(first, Spy(PICTURE, [T, GUIDE]), formulation)
    x, parents = torch.randn(5, 1, 8, 8), {"t": torch.randn(5), "other": torch.zeros(5)}
    with seeded(1):
        q = first.posterior(x, parents)
        first.requires_grad_(False)
        z = q.rsample()
    with seeded(1):
        terms = mechanism.loss(x, parents)
    y, told = mechanism.refiner.given
    x_hat = first.likelihood.mean(first.decode(z, parents))
    assert torch.allclose(told["guide"], x_hat, atol=1e-6)
    assert torch.allclose(y, x - x_hat if formulation == "residual" else x, atol=1e-6)
    assert list(terms) == ["refiner.nll"]
    assert torch.equal(terms["refiner.nll"], mechanism.refiner.loss(y, told)["nll"])


def test_jitter_is_part_of_what_is_refined():
    mechanism = Refined(vae(), Spy(PICTURE, [T, GUIDE]), jitter=0.5)
    mechanism.first.requires_grad_(False)
    x, parents, seen = torch.randn(50, 1, 8, 8), {"t": torch.randn(50)}, []
    for jitter in (0.5, 0.0):
        mechanism.jitter = jitter
        with seeded(1):
            mechanism.loss(x, parents)
        y, told = mechanism.refiner.given
        assert torch.allclose(y + told["guide"], x, atol=1e-6)
        seen.append(told["guide"])
    noise = seen[0] - seen[1]
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    u = draw(mechanism.prior(), 50)
    mechanism.jitter = 0.5
    assert torch.equal(mechanism(u, parents), mechanism(u, parents))


def test_a_linear_refiner_is_the_regression_of_x_on_its_first_stage():
    guide = Variable("guide", (3,))
    weights = torch.cat([torch.zeros(3, 1), 0.5 * torch.eye(3)], 1)
    refiner = LinearGaussian.of(VECTOR, [T, guide], weights, bias=1.0, scale=0.1)
    for formulation, factor in (("conditioned", 0.5), ("residual", 1.5)):
        mechanism = Refined(Twice(VECTOR, [T]), refiner, formulation)
        u, parents = draw(mechanism.prior(), 9), {"t": torch.rand(9) + 0.5}
        x_hat = 2 * u["first"]["v"] * parents["t"][:, None]
        expected = factor * x_hat + 1 + 0.1 * u["refiner"]
        assert torch.allclose(mechanism(u, parents), expected, atol=1e-6)


class Echo(nn.Module):
    def forward(self, x, noise, condition):
        self.got = x, condition
        return x[:, :1]


@pytest.mark.parametrize("place", [(4, 4), ()], ids=["picture", "vector"])
def test_the_network_sees_what_is_shown_beside_its_input_and_the_rest_as_condition(place):
    overlay = Overlay(Echo(), (2, *place), start=1)
    x, shown, rest = torch.randn(3, 1, *place), torch.randn(3, 2, *place), torch.randn(3, 3)
    whole = torch.cat([rest[:, :1], shown.flatten(1), rest[:, 1:]], 1)
    assert torch.equal(overlay(x, torch.zeros(3), whole), x)
    seen, left = overlay.network.got
    assert torch.equal(seen, torch.cat([x, shown], 1))
    assert torch.equal(left, rest)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_abduction_is_as_exact_as_the_samplers(eta):
    mechanism = refined("residual", DDIM(Cosine(), 12, eta=eta, refine=60), stir=0.1)
    x, parents = torch.randn(6, 1, 8, 8), {"t": torch.randn(6)}
    u = mechanism.abduct(x, parents)
    assert "residual" not in u["first"]
    torch.testing.assert_close(mechanism(u, parents), x, atol=1e-4, rtol=0)


# First stages -------------------------------------------------------------------------------------


def test_a_vae_needs_no_value_that_its_likelihood_knows():
    mechanism = refined(first=vae(likelihood=Bernoulli.of(PICTURE)))
    mechanism.first.requires_grad_(False)
    grey, parents = torch.rand(6, 1, 8, 8), {"t": torch.randn(6)}  # no bits
    u = mechanism.abduct(grey, parents)
    assert (mechanism(u, parents) - grey).abs().max() < 1e-5
    z = u["first"]["z"]
    h = mechanism.first.decode(z, parents)
    assert torch.allclose(mechanism.x_hat(u, parents), 2 * h[:, 0].sigmoid() - 1, atol=1e-5)
    assert all(torch.isfinite(v).all() for v in mechanism.loss(grey, parents).values())


def test_other_mechanisms_expect_their_value_at_no_residual():
    width = condition_width([T], 0)
    first = Diffusion(PICTURE, [T], Denoiser(UNet(1, condition=width, width=8), Cosine()))
    stirred(first, 0.2)
    mechanism = refined(first=first)
    x, parents = torch.randn(4, 1, 8, 8), {"t": torch.randn(4)}
    u = mechanism.abduct(x, parents)
    assert set(u["first"]) == {"start"}
    assert set(u["refiner"]) == {"start", "residual"}
    mean = first.denoise(parents, None, 4)(u["first"]["start"], torch.ones(4))
    assert torch.allclose(mechanism.x_hat(u, parents), mean, atol=1e-6)
    assert (mechanism(u, parents) - x).abs().max() < 1e-5
    assert torch.equal(expect(first, u["first"], parents, 4), mechanism.x_hat(u, parents))
    assert set(infer(first, x, parents)) == {"start"}


# Training -----------------------------------------------------------------------------------------


def gradients(mechanism, x, parents, terms=lambda name: True):
    mechanism.zero_grad()
    with seeded(1):
        found = mechanism.loss(x, parents)
    torch.stack([v.mean() for k, v in found.items() if terms(k)]).sum().backward()
    return {n: p.grad for n, p in mechanism.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_refiners_gradient_ends_at_the_first_stage_unless_asked(formulation):
    mechanism = refined(formulation)
    x, parents = torch.randn(8, 1, 8, 8), {"t": torch.randn(8)}
    joint = gradients(mechanism, x, parents)
    with seeded(1):
        own = torch.stack([v.mean() for v in mechanism.first.loss(x, parents).values()]).sum()
    mechanism.zero_grad()
    own.backward()
    for name, p in mechanism.first.named_parameters():
        assert torch.allclose(joint[f"first.{name}"], p.grad, atol=1e-7)
    made = gradients(mechanism, x, parents, lambda k: k.startswith("refiner."))
    assert not [n for n in made if n.startswith("first.")]
    mechanism.through = True
    made = gradients(mechanism, x, parents, lambda k: k.startswith("refiner."))
    for part in ("first.encoder", "first.decoder", "refiner"):
        assert any(g.abs().max() > 0 for n, g in made.items() if n.startswith(part))


def test_a_frozen_first_stage_stays_and_the_other_learns():
    data = Batch({"x": torch.rand(64, 1, 8, 8).round(), "t": torch.randn(64)})
    for frozen in (True, False):
        mechanism = refined(anchor=0.5)
        mechanism.first.requires_grad_(not frozen)
        model = SCM(Graph.parse("t -> x"), {"t": ConditionalFlow(T), "x": mechanism})
        before = copy.deepcopy(mechanism.state_dict())
        with seeded(2):
            first = sum(
                float(v.detach().mean()) for k, v in model.loss(data).items() if "refiner" in k
            )
        fit(model, data, steps=30, batch_size=32, lr=1e-2, ema=0.5, progress=False)
        with seeded(2):
            last = sum(
                float(v.detach().mean()) for k, v in model.loss(data).items() if "refiner" in k
            )
        assert last < first
        moved = {n for n, w in mechanism.state_dict().items() if not torch.equal(w, before[n])}
        assert any(n.startswith("refiner") for n in moved)
        assert any(n.startswith("first") for n in moved) is not frozen


# The laws, and an SCM -----------------------------------------------------------------------------


def linear(formulation):
    with seeded(0):
        first = vae(VECTOR)
        return Refined(first, LinearGaussian(VECTOR, [T, Variable("guide", (3,))]), formulation)


BUILDS = {
    "residual, half drawn": lambda: refined("residual", DDIM(Cosine(), 3, eta=0.5)),
    "conditioned, DDPM": lambda: refined("conditioned", DDIM(Cosine(), 3, eta=1.0)),
    "conditioned, one evaluation": lambda: refined("conditioned", jitter=0.1),
    "vector, linear refiner": lambda: stirred(linear("residual")),
    "no parents": lambda: refined(first=vae(parents=())),
}


@pytest.mark.parametrize("build", BUILDS)
def test_the_laws_hold(build):
    mechanism = BUILDS[build]()
    report = check_mechanism(mechanism, own_samples(mechanism, rows=32))
    for law in ("round_trip", "every_parameter_learns", "saved_and_loaded", "noise_is_used"):
        assert report[law] == "holds"


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_doing_nothing_returns_the_picture_and_an_edit_goes_through(formulation, eta, tmp_path):
    mechanism = refined(formulation, DDIM(Cosine(), 3, eta))
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": mechanism}).eval()
    seen = model.sample(16, seed=1)
    same = counterfactual(model, seen, {}, seed=2)
    assert (same["x"] - seen["x"]).abs().max() < 1e-4
    other = counterfactual(model, seen, {"t": 4.0}, seed=2)
    assert (other["x"] - seen["x"]).abs().max() > 0.01
    model.save(tmp_path / "m")
    assert torch.equal(
        counterfactual(load(tmp_path / "m"), seen, {"t": 4.0}, seed=2)["x"], other["x"]
    )
    u, parents = draw(mechanism.prior(), 8), {"t": torch.randn(8)}
    edited = {**u, "first": {"z": u["first"]["z"] + 1}}
    for made in (mechanism.x_hat, mechanism):
        moved = made(edited, parents) - made(u, parents)
        assert moved.abs().flatten(1).max(1).values.min() > 1e-3
    assert {name for name, _ in parts(u)} >= {"first.z", "refiner.start"}


# Mistakes -----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    first, refiner = vae(), LinearGaussian(PICTURE, [T, GUIDE])
    with pytest.raises(ValueError, match=r"formulation='residul'.*Did you mean 'residual'\?"):
        Refined(first, refiner, "residul")
    with pytest.raises(ValueError, match=r"'x' has jitter=-1; a standard deviation is 0 or more"):
        Refined(first, refiner, jitter=-1)
    with pytest.raises(ValueError, match=r"makes 'x' of shape \(3,\); 'x' has \(1, 8, 8\)"):
        Refined(first, LinearGaussian(VECTOR, [T, GUIDE]))
    for parents, listed in (
        ((), r"\[\]"),
        ([GUIDE], r"\['guide'\]"),
        ([GUIDE, T], r"\['guide', 't'\]"),
        ([T, Variable("guide", (3,))], r"\['t', 'guide'\]"),
    ):
        with pytest.raises(ValueError, match=rf"has the parents {listed}; it needs.*\['t'\]"):
            Refined(first, LinearGaussian(PICTURE, parents))
    twin = Variable("x", (3,))
    with pytest.raises(ValueError, match="it needs the first stage's"):
        Refined(vae(twin, [GUIDE]), LinearGaussian(twin, [GUIDE, Variable("guide", (3,))]))
    with pytest.raises(ValueError, match="LinearGaussian has the noise of one part: the first"):
        Refined(LinearGaussian(PICTURE, [T]), refiner)
    with pytest.raises(ValueError, match=r"'x' has shape \(3,\): give the class a refiner"):
        Refined.of(vae(VECTOR))


def test_what_is_refined_is_no_first_stage():
    once = refined("residual", DDIM(Cosine(), 3))
    with pytest.raises(ValueError, match=r"has the noise \['first', 'refiner'\]: the first stage"):
        Refined.of(once, width=8, multipliers=(1,))
