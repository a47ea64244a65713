"""The VAE against models whose likelihood has a closed form, and as an image in an SCM."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from subjunctive.checks import check_mechanism
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import (
    VAE,
    Bernoulli,
    Categorical,
    DiscretisedGaussian,
    DiscretisedLogistic,
    Gaussian,
    GaussianMixture,
    LinearGaussian,
)
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.nn import MLP, Beside
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

T = Variable("t", loc=2.0, scale=0.5)
KIND = Variable("k", kind="categorical", categories=("a", "b", "c"))


# A linear decoder, whose marginal is Gaussian ----------------------------------------------------


def linear(weight, s=0.5):
    """x = W z + V t + b + s r and its exact posterior as encoder, right if W^T W is diagonal."""
    width, latent = weight.shape
    v, b = torch.randn(width), torch.randn(width)
    decoder, encoder = nn.Linear(latent + 1, width), nn.Linear(width + 1, 2 * latent)
    precision = torch.eye(latent) + weight.T @ weight / s**2
    to_mean = torch.linalg.solve(precision, weight.T) / s**2
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([weight, v[:, None]], 1))
        decoder.bias.copy_(b)
        mean = torch.cat([to_mean, -(to_mean @ v)[:, None]], 1)
        encoder.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
        encoder.bias.copy_(torch.cat([-to_mean @ b, -precision.diagonal().log()]))
    x, t = Variable("x", (width,)), Variable("t")
    vae = VAE(x, [t], latent, Gaussian(s), Beside(nn.Flatten(), encoder), decoder)
    covariance = weight @ weight.T + s**2 * torch.eye(width)

    def exact(x, t):
        return MultivariateNormal(t[:, None] * v + b, covariance).log_prob(x)

    return vae, exact


def test_with_the_analytic_posterior_every_draw_of_the_bound_is_the_likelihood():
    weight = torch.linalg.qr(torch.randn(5, 3)).Q * torch.tensor([2.0, 1.0, 0.3])
    vae, exact = linear(weight)
    x, t = 3 * torch.randn(200, 5), torch.randn(200)
    with torch.no_grad():
        for draws in (1, 3):
            found = vae.bound(x, {"t": t}, draws)
            assert torch.allclose(found, exact(x, t), rtol=1e-4, atol=1e-3)
        elbo = -5 * torch.stack([sum(vae.loss(x, {"t": t}).values()) for _ in range(500)])
    gap = exact(x, t) - elbo.mean(0)
    assert (gap.abs() / (elbo.std(0) / 500**0.5)).max() < 5


def test_with_another_encoder_the_bound_is_below_and_rises_with_more_draws():
    vae, exact = linear(torch.randn(5, 3))
    x = own_samples(vae, rows=300).values
    truth = exact(x["x"], x["t"]).mean()
    with torch.no_grad():
        found = [
            torch.stack([vae.bound(x["x"], x, k).mean() for _ in range(20)]).mean()
            for k in (1, 10, 100)
        ]
    assert found[0] < found[1] < found[2] < truth + 0.01
    assert truth - found[0] > 0.1
    assert truth - found[2] < 0.2 * (truth - found[0])


def test_it_learns_a_linear_model_to_its_likelihood():
    true, exact = linear(torch.linalg.qr(torch.randn(6, 2)).Q * torch.tensor([2.0, 1.0]))
    rows = own_samples(true, rows=2000)
    x, t = true.variable, true.parents[0]
    encoder = Beside(nn.Flatten(), MLP(7, 4, hidden=()))
    vae = VAE(x, [t], 2, encoder=encoder, decoder=MLP(3, 6, hidden=()))
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(t), "x": vae})
    fit(model, rows, steps=300, batch_size=250, lr=0.03, ema=0.98, progress=False)
    test = own_samples(true, rows=1000, seed=5).values
    with torch.no_grad():
        gap = exact(test["x"], test["t"]).mean() - vae.bound(test["x"], test).mean()
    assert gap < 0.1


# The Kullback-Leibler term -----------------------------------------------------------------------


def unit_mixture(width):
    """The standard normal as a mixture of one."""
    mixture = GaussianMixture(width, 1)
    with torch.no_grad():
        mixture.mean.zero_()
    return mixture


def test_the_kl_is_torchs_and_is_weighted():
    vae = stirred(VAE(Variable("x", (4,)), [T], latent=3, beta=2.5))
    x, t = torch.randn(50, 4), {"t": torch.randn(50)}
    q = vae.posterior(x, t).base_dist
    expected = kl_divergence(q, Normal(torch.zeros(3), torch.ones(3))).sum(1)
    assert torch.allclose(vae.loss(x, t)["kl"], 2.5 * expected / 4, rtol=1e-4, atol=1e-6)
    vae.base = unit_mixture(3)
    with torch.no_grad():
        many = torch.stack([vae.loss(x, t)["kl"] for _ in range(500)])
        error = (many.mean(0) - 2.5 * expected / 4).abs() / (many.std(0) / 500**0.5)
        assert error.max() < 5
    with torch.no_grad(), seeded(1):
        mixed = vae.bound(x, t, 3)
    vae.base = None
    with torch.no_grad(), seeded(1):
        assert torch.allclose(mixed, vae.bound(x, t, 3), atol=1e-4)


def test_a_prior_that_follows_the_parents_is_the_conditional_vae_of_the_books():
    vae = stirred(
        VAE.of(Variable("x", (4,)), [T], 3, Gaussian(0.7), attributes=True, beta=1.0), 0.3
    )
    x, t = torch.randn(50, 4), {"t": torch.randn(50)}
    with torch.no_grad():
        shift, log_scale = vae.prior_network(t["t"][:, None]).chunk(2, 1)
        scale = (7 * torch.tanh(log_scale / 7)).exp()
        q = vae.posterior(x, t).base_dist
        moved = Normal(shift + scale * q.loc, scale * q.scale)
        expected = kl_divergence(moved, Normal(shift, scale)).sum(1)
        assert torch.allclose(vae.loss(x, t)["kl"], expected / 4, rtol=1e-3, atol=1e-5)
        z = q.sample()
        decoded = vae.decoder(torch.cat([shift + scale * z, t["t"][:, None]], 1))
        assert torch.allclose(vae.decode(z, t)[:, 0], decoded, atol=1e-5)
        assert (shift[1:] - shift[:-1]).abs().max() > 1e-2
    assert VAE.of(Variable("x"), attributes=True).prior_network is None


def test_a_mixture_draws_what_it_says():
    mixture = stirred(GaussianMixture(1, 3), 1.0).double()
    with torch.no_grad():
        grid = torch.linspace(-30, 30, 6001).double()
        p = mixture.distribution().log_prob(grid[:, None]).exp()
        assert torch.trapezoid(p, grid) == pytest.approx(1, abs=1e-4)
        z = mixture.distribution().sample((20_000,))
        assert z.mean() == pytest.approx(float(torch.trapezoid(p * grid, grid)), abs=0.1)


# The laws, for every likelihood and shape --------------------------------------------------------


PICTURE = Variable("x", (1, 8, 8), loc=0.5, scale=0.5, low=0.0, high=1.0)
BUILDS = {
    "image, predicted scale": (PICTURE, [T, KIND], {"likelihood": Gaussian("predicted")}),
    "image of bits": (PICTURE, [T], {"likelihood": Bernoulli.of(PICTURE)}),
    "image of levels": (PICTURE, [KIND], {"likelihood": DiscretisedLogistic.of(PICTURE, 8)}),
    "vector of levels": (
        Variable("x", (5,)),
        [T],
        {"likelihood": DiscretisedGaussian(8, -2.0, 2.0), "attributes": True},
    ),
    "scalar root": (Variable("x"), [], {"base": GaussianMixture(2, 3)}),
    "matrix": (Variable("x", (2, 3)), [Variable("pair", (2,)), T], {}),
}


@pytest.mark.parametrize("build", BUILDS)
def test_the_laws_hold(build):
    variable, parents, options = BUILDS[build]
    widths = (8, 8) if len(variable.shape) == 3 else (16,)
    with seeded(0):
        vae = stirred(VAE.of(variable, parents, 2, widths=widths, **options), 0.2)
    report = check_mechanism(vae, own_samples(vae, rows=200))
    for law in ("round_trip", "every_parameter_learns", "saved_and_loaded", "batch_of_one"):
        assert report[law] == "holds"
    if not parents:
        assert report["parents_are_used"] == "not applicable: it has no parents"


# An image in an SCM ------------------------------------------------------------------------------


def scene(likelihood):
    with seeded(0):
        vae = stirred(VAE.of(PICTURE, [T, KIND], 3, likelihood, widths=(8, 8)), 0.2)
        mechanisms = {"t": LinearGaussian(T), "k": Categorical(KIND), "x": vae}
        return SCM(Graph.parse("t -> x; k -> x"), mechanisms).eval()


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli.of(PICTURE),
                                        DiscretisedLogistic.of(PICTURE)],
                         ids=lambda v: type(v).__name__)  # fmt: skip
def test_doing_nothing_returns_the_picture_and_doing_something_another(likelihood, tmp_path):
    model = scene(likelihood)
    seen = model.sample(64, seed=1)
    if not isinstance(likelihood, Gaussian):
        levels = 1 if isinstance(likelihood, Bernoulli) else 255
        seen["x"] = torch.randint(levels + 1, (64, 1, 8, 8)).float() / levels
    same = counterfactual(model, seen, {}, seed=2)
    assert (same["x"] - seen["x"]).abs().max() < 1e-6
    other = counterfactual(model, seen, {"k": "b", "t": 4.0}, seed=2)
    assert (other["x"] - seen["x"]).abs().max() > 0.01
    if not isinstance(likelihood, Gaussian):
        assert (other["x"] * levels - (other["x"] * levels).round()).abs().max() < 1e-3
    model.save(tmp_path / "m")
    again = counterfactual(load(tmp_path / "m"), seen, {"k": "b", "t": 4.0}, seed=2)
    assert torch.equal(again["x"], other["x"])


def test_a_picture_between_the_levels_is_refused_by_name():
    model = scene(DiscretisedLogistic.of(PICTURE))
    seen = model.sample(4, seed=0) | {"x": torch.rand(4, 1, 8, 8)}
    for call in (lambda: model.loss(seen), lambda: counterfactual(model, seen, {"t": 1.0})):
        with pytest.raises(ValueError, match=r"256 levels from -1 to 1.*take Gaussian\(\)"):
            call()


def test_z_and_the_residual_are_exogenous_and_both_act():
    vae = scene(Gaussian()).mechanisms["x"]
    u, parents = draw(vae.prior(), 40), {"t": torch.randn(40), "k": torch.randint(3, (40,))}
    x = vae(u, parents)
    for part in u:
        moved = vae({**u, part: u[part] + 1}, parents)
        assert (moved - x).abs().reshape(40, -1).max(1).values.min() > 1e-3
    clean = vae.likelihood.mean(vae.decode(u["z"], parents))
    assert torch.equal(vae({**u, "residual": 0 * u["residual"]}, parents), clean)


# Mistakes ----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    x = Variable("x", (4,))
    with pytest.raises(ValueError, match="needs a continuous node; 'k' is categorical"):
        VAE(KIND)
    with pytest.raises(ValueError, match="'x' needs latent >= 1 and beta >= 0, got latent=0"):
        VAE(x, latent=0)
    with pytest.raises(ValueError, match=r"got latent=2 and beta=-1\.0"):
        VAE(x, latent=2, beta=-1.0)
    with pytest.raises(ValueError, match="'x' has no parents that its prior could follow"):
        VAE(x, prior_network=nn.Linear(1, 32))
    with pytest.raises(ValueError, match=r"base of 'x' draws \(3,\), its latent has \(2,\)"):
        VAE(x, latent=2, base=GaussianMixture(3, 2))
    with pytest.raises(ValueError, match="multiples of 8, got 28x28; pad to 32x32"):
        VAE(Variable("x", (1, 28, 28)))
    with pytest.raises(ValueError, match="draws of at least 1, got 0"):
        VAE(x).bound(torch.zeros(1, 4), {}, draws=0)


def test_networks_of_another_shape_are_named():
    x, values = Variable("x", (4,)), torch.zeros(3, 4)
    encoder = Beside(nn.Flatten(), nn.Linear(4, 6))
    vae = VAE(x, latent=2, encoder=encoder, decoder=nn.Linear(2, 5))
    with pytest.raises(ValueError, match=r"encoder of 'x' gave \(3, 6\); .* 2 needs \(3, 4\)"):
        vae.abduct(values, {})
    with pytest.raises(
        ValueError, match=r"decoder of 'x' gave \(3, 5\), Gaussian needs \(3, 1, 4\)"
    ):
        vae(draw(vae.prior(), 3), {})
    with pytest.raises(ValueError, match=r"'x' needs values of shape \(B, 4\), got \(3, 5\)"):
        vae.loss(torch.zeros(3, 5), {})
    with pytest.raises(KeyError, match="'x' needs its parent 't'"):
        VAE(x, [T]).loss(values, {})


def test_a_batch_of_missing_pictures_pays_for_the_seen_ones_alone():
    model = scene(Gaussian())
    seen = model.sample(6, seed=0)
    mask = torch.tensor([True, False] * 3)
    terms = model.loss(Batch(seen, {"x": mask}))
    assert (terms["x.nll"][~mask] == 0).all()
    assert (terms["x.nll"][mask] != 0).all()
