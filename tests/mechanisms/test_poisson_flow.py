"""Poisson flows as mechanisms: their infinite D is the diffusion itself; what they refuse."""

import math

import pytest
import torch
from scipy import stats

from subjunctive.diffusion import DDIM, EDM, Cosine, Denoiser, Heun
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, prior_log_prob, seeded
from subjunctive.mechanisms import LinearGaussian, PoissonFlow
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn import ConvEncoder, Timed, UNet
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, T = Variable("x", (1, 8, 8)), Variable("t")


def inner(sampler=None, **options):
    with seeded(0):
        network = UNet(1, condition=condition_width([T], 0), width=8, multipliers=(1,))
        denoiser = Denoiser(network, Cosine(), "velocity")
        sampler = sampler or Heun(Cosine(), 5)
        return stirred(Diffusion(X, [T], denoiser, sampler=sampler, **options))


def test_without_an_end_of_dimensions_it_is_the_diffusion_to_the_last_bit():
    diffusion = inner(anchor=0.0, drop=0.3)
    flow = PoissonFlow(diffusion, math.inf)
    x, parents = torch.randn(6, 1, 8, 8), {"t": torch.randn(6)}
    with seeded(1):
        theirs = diffusion.loss(x, parents)["denoise"]
    with seeded(1):
        ours = flow.loss(x, parents)["denoise"]
    assert torch.equal(ours, theirs)
    with seeded(2):
        u = draw(flow.prior(), 6)
    with seeded(2):
        assert torch.equal(draw(diffusion.prior(), 6)["start"], u["start"])
    assert torch.equal(flow(u, parents), diffusion(u, parents))
    gap = prior_log_prob(flow.prior(), u) - prior_log_prob(diffusion.prior(), u)
    assert float(gap.abs().max()) < 1e-4


def test_the_noise_is_as_its_prior_states():
    with seeded(3):
        u = draw(PoissonFlow(inner(), 8.0).prior(), 4000)["start"]
    square = u.flatten(1).square().sum(1)
    assert stats.kstest((square / (square + 8)).numpy(), stats.beta(32, 4).cdf).pvalue > 1e-3


def test_it_learns_heavy_tails_of_noise():
    """At a point of data the best estimate is known; the ODE carries the kernel's noise to it."""
    pair, schedule = Variable("x", (2,)), EDM(0.02, 20.0)
    with seeded(0):
        denoiser = Denoiser(Timed(2, condition=1, width=32), schedule, "edm", weighting="uniform")
        flow = PoissonFlow(Diffusion(pair, (), denoiser, sampler=Heun(schedule, 12), drop=0.0), 4.0)
    sides = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(500, 1)
    model, data = SCM(Graph.parse("x"), {"x": flow}), Batch({"x": sides})
    fit(model, data, steps=250, batch_size=256, lr=0.01, warmup=20, ema=0.95, progress=False)
    found = model.sample(1000, seed=1)["x"]
    near = torch.cdist(found, sides[:2]).min(1)
    assert float((near.values < 0.2).float().mean()) > 0.95
    assert 0.4 < float(near.indices.float().mean()) < 0.6


def test_a_counterfactual_keeps_the_noise_and_it_is_saved(tmp_path):
    flow = PoissonFlow(inner(drop=0.0), 16.0)
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": flow}).eval()
    seen = model.sample(4, seed=0)
    same = counterfactual(model, seen, {}, seed=0)
    assert float((same["x"] - seen["x"]).abs().max()) < 1e-4
    other = counterfactual(model, seen, {"t": 2.0}, seed=0)["x"]
    assert float((other - seen["x"]).abs().max()) > 1e-3
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(counterfactual(again, seen, {"t": 2.0}, seed=0)["x"], other)
    assert again.mechanisms["x"].augmented == 16.0


def test_what_is_right_for_gaussian_noise_alone_is_refused():
    with pytest.raises(ValueError, match=r"sampler DDIM, eta=0\.5; a Poisson flow is a Diffusion"):
        PoissonFlow(inner(DDIM(Cosine(), 5, eta=0.5)))
    one = inner()
    one.sampler = None
    with pytest.raises(ValueError, match="the sampler NoneType, eta=0; a Poisson flow"):
        PoissonFlow(one)
    with pytest.raises(ValueError, match="LinearGaussian of 't' has code=None"):
        PoissonFlow(LinearGaussian(T))
    with seeded(0):
        network = UNet(1, condition=condition_width([T], 4), width=8, multipliers=(1,))
        coded = Diffusion(
            X, [T], Denoiser(network, Cosine()), ConvEncoder(1, 8, 8, widths=(8, 8)), 4,
            DDIM(Cosine(), 4),
        )  # fmt: skip
    with pytest.raises(ValueError, match="has code=4"):
        PoissonFlow(coded)
    with pytest.raises(ValueError, match=r"augmented=-1\.0; the number"):
        PoissonFlow(inner(), -1.0)
