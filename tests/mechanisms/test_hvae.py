"""The HVAE against a linear ladder whose every density is known, and as an image in an SCM."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from subjunctive.checks import check_mechanism
from subjunctive.checks.law import LawBroken, same_law, unpredictable
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, parts, seeded
from subjunctive.mechanisms import (
    HVAE,
    Bernoulli,
    Categorical,
    DiscretisedGaussian,
    DiscretisedLogistic,
    Gaussian,
    LinearGaussian,
)
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

T = Variable("t", loc=2.0, scale=0.5)
KIND = Variable("k", kind="categorical", categories=("a", "b", "c"))
WIDTH, SCALE = 4, 0.5  # numbers of x, and its residual's standard deviation


# A linear ladder: z_1 = a_1 t + eps_1, z_2 = a_2 t + c z_1 + s eps_2, x = W z + v t + b ----------


def hard(log_scale, limit):
    """What the mechanism's soft limit turns into the log-scale."""
    return limit * torch.atanh(log_scale / limit)


class Line(nn.Module):
    """z = A eps + a t, x = W z + v t + b + r, with the posterior of eps in closed form."""

    shapes = ((1,), (1,))

    def __init__(self, mediator, deaf=False):
        super().__init__()
        with seeded(1):
            self.weight, self.v, self.b = torch.randn(WIDTH, 2), torch.randn(WIDTH), torch.ones(4)
        self.a = torch.tensor([0.8, -0.5]) * mediator
        self.A = torch.tensor([[1.0, 0.0], [0.6, 0.7]])
        self.deaf = deaf
        m = self.weight @ self.A
        self.cov = torch.linalg.inv(torch.eye(2) + m.T @ m / SCALE**2)
        self.to_mean = self.cov @ m.T / SCALE**2
        self.full = m @ m.T + SCALE**2 * torch.eye(WIDTH)

    def read(self, x):
        return x

    def begin(self, rows):
        return torch.zeros(rows, 0)

    def prior(self, n, g, c):
        mean = 0.6 * g[:, :1] if n else torch.zeros(len(g), 1)
        mean = mean + c * self.a[n] if c.shape[1] else mean
        return mean, hard(torch.full_like(mean, [1.0, 0.7][n]).log(), 3), g

    def posterior(self, n, g, x, c):
        c = 0 * c if self.deaf else c
        mean = (
            x - c @ (self.direct() + self.weight @ self.place())[None] - self.b
        ) @ self.to_mean.T
        if n == 0:
            return mean[:, :1], hard(self.cov[0, 0].sqrt().log().expand(len(x), 1), 7)
        first = g[:, :1] - c * self.a[0] - mean[:, :1]
        mean = mean[:, 1:] + self.cov[1, 0] / self.cov[0, 0] * first
        left = self.cov[1, 1] - self.cov[1, 0] ** 2 / self.cov[0, 0]
        return mean, hard(left.sqrt().log().expand(len(x), 1), 7)

    def direct(self):
        return self.v

    def place(self):
        """How z moves with t in all, (2,)."""
        return torch.stack([self.a[0], self.a[1] + 0.6 * self.a[0]])

    def add(self, n, g, z):
        return torch.cat([g, z], 1)

    def decode(self, z, c):
        return torch.cat(z, 1) @ self.weight.T + c @ self.v[None] + self.b


def line(mediator=True, deaf=False):
    ladder = Line(mediator, deaf)
    t = Variable("t")
    return HVAE(Variable("x", (WIDTH,)), [t], ladder, Gaussian(SCALE), mediator), ladder


@pytest.mark.parametrize("mediator", [False, True])
def test_with_the_analytic_posterior_every_draw_of_the_bound_is_the_likelihood(mediator):
    hvae, ladder = line(mediator)
    x, t = 3 * torch.randn(200, WIDTH), torch.randn(200)
    mean = t[:, None] * (ladder.v + ladder.weight @ ladder.place()) + ladder.b
    exact = MultivariateNormal(mean, ladder.full).log_prob(x)
    with torch.no_grad():
        for draws in (1, 3):
            found = hvae.bound(x, {"t": t}, draws)
            assert torch.allclose(found, exact, rtol=1e-4, atol=1e-3)
        elbo = -WIDTH * torch.stack([sum(hvae.loss(x, {"t": t}).values()) for _ in range(200)])
    assert ((exact - elbo.mean(0)).abs() / (elbo.std(0) / 200**0.5)).max() < 5


def test_with_another_encoder_the_bound_is_below_and_rises_with_more_draws():
    hvae, ladder = line(deaf=True)
    rows = own_samples(hvae, rows=300).values
    mean = rows["t"][:, None] * (ladder.v + ladder.weight @ ladder.place()) + ladder.b
    exact = MultivariateNormal(mean, ladder.full).log_prob(rows["x"]).mean()
    with torch.no_grad():
        found = [
            torch.stack([hvae.bound(rows["x"], rows, k).mean() for _ in range(4)]).mean()
            for k in (1, 10, 100)
        ]
    assert found[0] < found[1] < found[2] < exact + 0.01
    assert exact - found[0] > 0.1
    assert exact - found[2] < 0.5 * (exact - found[0])


def exogenous(hvae):
    """The two laws of exogeneity on a mechanism's own samples, which ask for exact abduction."""
    rows = own_samples(hvae, rows=2000).values
    with seeded(3), torch.no_grad():
        found = dict(parts(hvae.abduct(rows["x"], rows)))
        fresh = dict(parts(draw(hvae.prior(), 2000)))
    same_law({name: (u, fresh[name]) for name, u in found.items()})
    for name, u in found.items():
        unpredictable(name, u, rows["t"][:, None])


@pytest.mark.parametrize("mediator", [False, True])
def test_abducted_noise_is_exogenous_layer_by_layer(mediator):
    exogenous(line(mediator)[0])
    with pytest.raises(LawBroken):
        exogenous(line(mediator, deaf=True)[0])


def test_direct_indirect_and_total_effects_are_those_of_the_equations():
    hvae, ladder = line()
    rows = own_samples(hvae, rows=50).values
    x, pa, other = rows["x"], {"t": rows["t"]}, {"t": rows["t"] + 2.0}
    with torch.no_grad():
        u = hvae.abduct(x, pa)
        here, there = hvae.latents(u, pa), hvae.latents(u, other)
        found = [
            hvae.decode(z, given, u["residual"]) - x
            for z, given in ((here, other), (there, pa), (there, other), (here, pa))
        ]
    through = ladder.weight @ ladder.place()
    for effect, truth in zip(
        found, (ladder.v, through, ladder.v + through, 0 * through), strict=True
    ):
        assert torch.allclose(effect, (2 * truth).expand(50, WIDTH), atol=1e-4)
    moved = torch.cat([b - a for a, b in zip(here, there, strict=True)], 1)
    assert torch.allclose(moved, 2 * ladder.place().expand(50, 2), atol=1e-5)


def test_an_exogenous_prior_leaves_no_indirect_effect():
    hvae = stirred(HVAE.of(PICTURE, [T, KIND], **SMALL), 0.3)
    u, pa = draw(hvae.prior(), 9), {"t": torch.randn(9), "k": torch.randint(3, (9,))}
    other = {"t": pa["t"] + 1, "k": (pa["k"] + 1) % 3}
    here, there = hvae.latents(u, pa), hvae.latents(u, other)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert not torch.equal(hvae(u, pa), hvae(u, other))
    told = stirred(HVAE.of(PICTURE, [T, KIND], mediator=True, **SMALL), 0.3)
    pairs = list(zip(told.latents(u, pa), told.latents(u, other), strict=True))
    assert all((a - b).abs().max() > 1e-3 for a, b in pairs)


# The Kullback-Leibler term -----------------------------------------------------------------------


PICTURE = Variable("x", (1, 8, 8), loc=0.5, scale=0.5, low=0.0, high=1.0)
SMALL = {"widths": (8, 8, 8), "scales": (2, 4, 8), "latents": ((1,), (2, 1), (3,))}


def test_the_kl_is_that_of_z_from_its_place_layer_by_layer():
    hvae = stirred(HVAE.of(PICTURE, [T], mediator=True, beta=2.5, **SMALL), 0.3)
    x, pa = torch.rand(6, 1, 8, 8), {"t": torch.randn(6)}
    c, ladder = pa["t"][:, None], hvae.ladder
    with torch.no_grad():
        with seeded(4):
            loss = hvae.loss(x, pa)
        with seeded(4):
            eps = list(hvae.abduct(x, pa)["z"].values())
        g, features, total = ladder.begin(6), ladder.read(x), 0.0
        for n, e in enumerate(eps):
            d, log_r = ladder.posterior(n, g, features, c)
            mean, log_s, g = ladder.prior(n, g, c)
            s, r = (3 * torch.tanh(log_s / 3)).exp(), (7 * torch.tanh(log_r / 7)).exp()
            kl = kl_divergence(Normal(mean + s * d, s * r), Normal(mean, s))
            total = total + kl.flatten(1).sum(1)
            g = ladder.add(n, g, mean + s * e)
    torch.testing.assert_close(loss["kl"], 2.5 * total / 64, rtol=1e-3, atol=1e-5)
    assert total.min() > 0.1


def test_the_bound_of_one_draw_is_minus_the_loss_on_average():
    hvae = stirred(HVAE.of(PICTURE, [T], **SMALL), 0.1)
    x, pa = torch.rand(6, 1, 8, 8), {"t": torch.randn(6)}
    with torch.no_grad():
        many = torch.stack([hvae.bound(x, pa) for _ in range(40)])
        elbo = -64 * torch.stack([sum(hvae.loss(x, pa).values()) for _ in range(40)])
        error = (many.var(0) / 40 + elbo.var(0) / 40).sqrt()
        assert ((many.mean(0) - elbo.mean(0)).abs() / error).max() < 5


def test_free_bits_leave_cheap_groups_alone():
    hvae = stirred(HVAE.of(PICTURE, [T], **SMALL), 0.1)
    x, pa = torch.rand(8, 1, 8, 8), {"t": torch.randn(8)}
    with torch.no_grad(), seeded(0):
        plain = hvae.loss(x, pa)["kl"]
    hvae.free_bits = 1e4
    loss = hvae.loss(x, pa)["kl"]
    torch.testing.assert_close(loss, torch.full((8,), 4 * 1e4 / 64))
    assert not any(
        g.any()
        for g in torch.autograd.grad(loss.sum(), [*hvae.ladder.rungs[0].posterior.parameters()])
    )
    hvae.free_bits = 1e-9
    with torch.no_grad(), seeded(0):
        torch.testing.assert_close(hvae.loss(x, pa)["kl"], plain)


# The laws, for every likelihood and kind of parent -----------------------------------------------


BUILDS = {
    "predicted scale": ([T, KIND], {"likelihood": Gaussian("predicted"), "mediator": True}),
    "bits": ([T], {"likelihood": Bernoulli.of(PICTURE), "free_bits": 0.1}),
    "levels": ([KIND], {"likelihood": DiscretisedLogistic.of(PICTURE, 8), "mediator": True}),
    "normal levels, no parents": ([], {"likelihood": DiscretisedGaussian.of(PICTURE, 8)}),
}


@pytest.mark.parametrize("build", BUILDS)
def test_the_laws_hold(build):
    parents, options = BUILDS[build]
    with seeded(0):
        hvae = stirred(HVAE.of(PICTURE, parents, **SMALL, **options), 0.1)
    report = check_mechanism(hvae, own_samples(hvae, rows=50))
    for law in ("round_trip", "every_parameter_learns", "saved_and_loaded", "batch_of_one"):
        assert report[law] == "holds"


# An image in an SCM ------------------------------------------------------------------------------


def scene(likelihood, mediator=False):
    with seeded(0):
        hvae = stirred(HVAE.of(PICTURE, [T, KIND], likelihood, mediator, **SMALL), 0.1)
        mechanisms = {"t": LinearGaussian(T), "k": Categorical(KIND), "x": hvae}
        return SCM(Graph.parse("t -> x; k -> x"), mechanisms).eval()


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli.of(PICTURE),
                                        DiscretisedLogistic.of(PICTURE)],
                         ids=lambda v: type(v).__name__)  # fmt: skip
def test_doing_nothing_returns_the_picture_and_doing_something_another(likelihood, tmp_path):
    model = scene(likelihood, mediator=True)
    seen = model.sample(64, seed=1)
    if not isinstance(likelihood, Gaussian):
        levels = 1 if isinstance(likelihood, Bernoulli) else 255
        seen["x"] = torch.randint(levels + 1, (64, 1, 8, 8)).float() / levels
    same = counterfactual(model, seen, {}, seed=2)
    assert (same["x"] - seen["x"]).abs().max() < 1e-6
    other = counterfactual(model, seen, {"k": "b", "t": 4.0}, seed=2)
    assert (other["x"] - seen["x"]).abs().max() > 0.01
    model.save(tmp_path / "m")
    again = counterfactual(load(tmp_path / "m"), seen, {"k": "b", "t": 4.0}, seed=2)
    assert torch.equal(again["x"], other["x"])


@pytest.mark.parametrize("mediator", [False, True])
@pytest.mark.parametrize("likelihood", [Gaussian("predicted"), DiscretisedGaussian.of(PICTURE)],
                         ids=lambda v: type(v).__name__)  # fmt: skip
def test_what_is_imagined_is_the_counterfactual_with_a_gradient(likelihood, mediator):
    hvae = scene(likelihood, mediator).mechanisms["x"]
    x, pa = torch.randint(256, (9, 1, 8, 8)) / 127.5 - 1, {"t": torch.randn(9)}
    pa["k"] = torch.randint(3, (9,))
    other = {"t": pa["t"] + 2, "k": (pa["k"] + 1) % 3}
    with seeded(1), torch.no_grad():
        plain = hvae(hvae.abduct(x, pa), other)
    with seeded(1):
        found = hvae.imagine(x, pa, other)
    torch.testing.assert_close(found.detach(), plain, rtol=0, atol=1e-6)
    found.square().sum().backward()
    grads = [p.grad for p in hvae.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)
    told = [*hvae.ladder.rungs[0].posterior.parameters(), *hvae.ladder.head.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in told)
    hvae.zero_grad()  # with the factual parents x stays, whatever the weights
    hvae.imagine(x, pa, pa).sum().backward()
    assert max(float(p.grad.abs().max()) for p in told) < 1e-3 * max(
        float(g.abs().max()) for g in grads
    )


def test_it_learns_what_a_parent_does_and_what_the_noise_is():
    """x = 0.3 t A + 0.3 w B + noise: do(t) adds A alone, to the picture that has its own w."""
    with seeded(0):
        a, b = torch.randn(2, 1, 8, 8)
        t, w = torch.randn(2, 2000, 1, 1, 1)
        x = 0.3 * (t * a + w * b) + 0.03 * torch.randn(2000, 1, 8, 8)
    image = Variable("x", (1, 8, 8), scale=0.4)
    cause = Variable("t")
    with seeded(0):
        hvae = HVAE.of(image, [cause], widths=(8, 8, 16), scales=(2, 4, 8),
                       latents=((), (2,), (4,)))  # fmt: skip
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(cause), "x": hvae})
    rows = Batch({"t": t[:, 0, 0, 0], "x": x})
    fit(model, rows, steps=100, batch_size=32, lr=1e-2, ema=0.95, warmup=20, progress=False)
    seen = rows[:200]
    found = counterfactual(model, seen, {"t": seen.values["t"] + 1.5}, seed=0)["x"]
    moved = found - seen.values["x"]
    assert (moved - 0.45 * a).square().mean() < 0.1 * (0.45 * a).square().mean()


def test_it_trains_in_half_precision():
    model = scene(DiscretisedLogistic.of(PICTURE))
    seen = model.sample(8, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(seen)
    assert {t.dtype for n, t in terms.items() if n.startswith("x.")} == {torch.float32}
    torch.stack([t.mean() for t in terms.values()]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.mechanisms["x"].parameters())


def test_the_mean_is_the_picture_without_its_residual():
    hvae = scene(Gaussian()).mechanisms["x"]
    u, pa = draw(hvae.prior(), 40), {"t": torch.randn(40), "k": torch.randint(3, (40,))}
    z = hvae.latents(u, pa)
    clean = hvae.decode(z, pa)
    assert torch.equal(hvae.decode(z, pa, 0 * u["residual"]), clean)
    for name, part in u["z"].items():  # every layer acts
        moved = hvae({**u, "z": {**u["z"], name: part + 1}}, pa)
        assert (moved - hvae(u, pa)).abs().flatten(1).max(1).values.min() > 1e-4


# Mistakes ----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="needs a continuous node; 'k' is categorical"):
        HVAE(KIND)
    with pytest.raises(ValueError, match=r"'x' needs beta >= 0 and free_bits >= 0, got beta=-1"):
        HVAE(PICTURE, beta=-1.0)
    with pytest.raises(ValueError, match=r"beta=1\.0 and free_bits=-2"):
        HVAE(PICTURE, free_bits=-2.0)
    with pytest.raises(ValueError, match="'x' has no parents between which and x its latents"):
        HVAE(PICTURE, mediator=True)
    with pytest.raises(ValueError, match=r"'v' has shape \(3,\): give ladder=..., or use VAE"):
        HVAE(Variable("v", (3,)))
    with pytest.raises(ValueError, match="multiples of 32, got 8x8; pad to 32x32"):
        HVAE(PICTURE)
    with pytest.raises(ValueError, match="draws of at least 1, got 0"):
        line()[0].bound(torch.zeros(1, WIDTH), {"t": torch.zeros(1)}, draws=0)
    with pytest.raises(ValueError, match=r"'x' has 2 groups of latents, got 1: give all"):
        line()[0].decode([torch.zeros(3, 1)], {"t": torch.zeros(3)})


def test_a_ladder_of_another_shape_is_named():
    hvae, ladder = line()
    x, pa = torch.zeros(3, WIDTH), {"t": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"'x' needs values of shape \(B, 4\), got \(3, 5\)"):
        hvae.loss(torch.zeros(3, 5), pa)
    with pytest.raises(KeyError, match="'x' needs its parent 't'"):
        hvae.loss(x, {})
    ladder.decode = lambda z, c: torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"decoded \(3, 5\), Gaussian needs \(3, 1, 4\)"):
        hvae.abduct(x, pa)
    ladder.prior = lambda n, g, c: (torch.zeros(3, 2), torch.zeros(3, 1), g)
    with pytest.raises(ValueError, match=r"gave \(3, 2\) for group 1, which needs \(3, 1\)"):
        hvae.abduct(x, pa)
