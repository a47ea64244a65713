"""A mixture fitted to latents: it finds the density, and a VAE takes it."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, LatentMixture
from subjunctive.mechanisms.linear import stirred
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.variable import Batch, Variable

LOG_2PI = math.log(2 * math.pi)


def rings(n, centres=((-4.0, 0.0), (4.0, 1.0))):
    """Draws of two tilted Gaussians, a quarter from the first, and their log-density."""
    tilt = torch.tensor([[1.0, 0.0], [0.9, 0.2]])
    parts = [MultivariateNormal(torch.tensor(c), scale_tril=tilt) for c in centres]
    with seeded(0):
        first = torch.rand(n) < 0.25
        z = torch.where(first[:, None], *(p.sample((n,)) for p in parts))

    def log_density(x):
        said = torch.stack([p.log_prob(x) for p in parts]) + torch.tensor([[0.25], [0.75]]).log()
        return said.logsumexp(0)

    return z, log_density


def test_it_finds_the_density_and_how_many_gaussians_it_has():
    z, truth = rings(2000)
    mixture = LatentMixture.fit(z, components=[1, 2])
    fresh, _ = rings(3000)
    assert mixture.components == 2
    lost = truth(fresh) - mixture.distribution().log_prob(fresh)
    assert abs(float(lost.mean())) < 0.02
    blunt = LatentMixture.fit(z, components=[1]).distribution()
    assert float((truth(fresh) - blunt.log_prob(fresh)).mean()) > 0.5


def test_held_out_latents_decide_against_too_many():
    with seeded(1):
        z = torch.randn(120, 6)
    assert LatentMixture.fit(z, components=[1, 40]).components == 1


@torch.no_grad()
def test_a_vae_takes_it_and_its_bound_rises_by_what_the_latents_gain():
    with seeded(0):
        vae, rows = stirred(VAE.of(Variable("x", (5,)), latent=2)), 3 * torch.randn(3000, 5) + 2
        z = vae.abduct(rows, {})["z"]
        fitted = LatentMixture.fit(z)
    bounds = []
    for base in (None, fitted):
        vae.base = base
        with seeded(1):
            bounds.append(vae.bound(rows, {}).mean())
    with seeded(1):
        fresh = vae.posterior(rows, {}).sample()
    gain = fitted.distribution().log_prob(fresh) + (fresh.square() / 2).sum(1) + LOG_2PI
    assert gain.mean() > 0.1
    assert torch.allclose(bounds[1] - bounds[0], gain.mean(), atol=1e-4)


def test_it_is_saved_with_its_vae(tmp_path):
    vae = VAE.of(Variable("x", (5,)), latent=2)
    vae.base = LatentMixture.fit(rings(500)[0], components=[3])
    model = SCM(Graph.parse("x"), {"x": vae})
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(again.sample(20, seed=0)["x"], model.sample(20, seed=0)["x"])
    assert Batch(again.sample(3, seed=0))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="width and components of at least 1, got 0, 3"):
        LatentMixture(0, 3)
    with pytest.raises(ValueError, match=r"z has shape \(4,\); LatentMixture.fit takes finite"):
        LatentMixture.fit(torch.zeros(4))
    with pytest.raises(ValueError, match="takes finite latents"):
        LatentMixture.fit(torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match=r"components=\(9,\) of 5 latents, 1 of them held out"):
        LatentMixture.fit(torch.randn(5, 2), components=[9])
