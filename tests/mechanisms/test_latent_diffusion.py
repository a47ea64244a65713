"""Latent diffusion: exact round trips and standardisation, two stages, effects of parents."""

import pytest
import torch
from torch import nn

from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Autoencoder, Latent, LinearGaussian
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, T = Variable("x", (1, 8, 8)), Variable("t")
Z = Variable("z", (2, 4, 4))


class Halves(nn.Module):
    """An encoder of known latents: the average over 2 x 2 pixels, and their difference by row."""

    def forward(self, x):
        a, b = x[:, :, ::2].unfold(3, 2, 2).mean(-1), x[:, :, 1::2].unfold(3, 2, 2).mean(-1)
        mean = torch.cat([(a + b) / 2, 5 + 10 * (a - b)], 1)
        return torch.cat([mean, torch.full_like(mean, -14.0)], 1)


class Back(nn.Module):
    """The decoder that undoes `Halves` for pictures that are constant along a row's pairs."""

    def forward(self, z):
        mean, half = z[:, :1], (z[:, 1:] - 5) / 20
        rows = torch.stack([mean + half, mean - half], 3).flatten(2, 3)
        return rows.repeat_interleave(2, dim=3)


def pictures(rows=2000, seed=0):
    """Rows of pictures that the pair above loses nothing of, of brightness t."""
    with seeded(seed):
        t = torch.randn(rows)
        x = 0.3 * torch.randn(rows, 1, 8, 4).repeat_interleave(2, 3) + t[:, None, None, None]
    return Batch({"t": t, "x": x})


def known():
    """A latent mechanism whose inner one is linear, over a lossless autoencoder."""
    autoencoder = Autoencoder(X, Z.shape, Halves(), Back())
    with seeded(0):
        return Latent(autoencoder, LinearGaussian(Z, [T]))


@torch.no_grad()
def test_latents_are_standardised_exactly():
    x = pictures().values["x"]
    latent = known().freeze(x, batch_size=300)
    z = latent.encode(x).double()
    assert z.mean((0, 2, 3)).abs().max() < 1e-6
    assert (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    raw = latent.autoencoder.encode(x)
    torch.testing.assert_close(latent.loc + latent.scale * latent.encode(x), raw)
    assert latent.scale.flatten()[1] > 2 * latent.scale.flatten()[0]  # a channel on its own
    torch.testing.assert_close(latent.decode(latent.encode(x)), x, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_round_trip_is_exact_and_the_residual_is_what_the_decoder_loses():
    rows = pictures(64)
    latent, parents = known().freeze(rows.values["x"]), {"t": rows.values["t"]}
    u = latent.abduct(rows.values["x"], parents)
    assert u["residual"].abs().max() < 1e-4  # nothing is lost
    with seeded(3):
        rough = torch.randn(64, 1, 8, 8)
    u = latent.abduct(rough, parents)
    torch.testing.assert_close(latent(u, parents), rough, atol=1e-5, rtol=0)
    lost = rough - latent.autoencoder.decode(latent.autoencoder.encode(rough))
    scale = latent.autoencoder.log_scale.exp()
    torch.testing.assert_close(scale * u["residual"], lost, atol=1e-5, rtol=0)


def test_two_fits_learn_the_law_of_latents_and_a_counterfactual_is_the_truth():
    rows = pictures()
    autoencoder = Autoencoder(X, Z.shape, Halves(), Back())
    alone = SCM(Graph.parse("x"), {"x": autoencoder})
    fit(alone, Batch({"x": rows.values["x"]}), steps=300, lr=0.02, ema=None, progress=False)
    assert autoencoder.log_scale.item() < -3  # it learned that nothing is lost
    latent = Latent(autoencoder, LinearGaussian(Z, [T])).freeze(rows.values["x"])
    before = autoencoder.log_scale.clone()
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": latent})
    fit(model, rows, steps=300, lr=0.03, batch_size=256, ema=None, progress=False)
    assert torch.equal(autoencoder.log_scale, before)
    some = rows[torch.arange(100)]
    with torch.no_grad():
        answer = model.predict(model.abduct(some), {"t": some.values["t"] + 1.0})["x"]
    truth = some.values["x"] + 1.0
    assert (answer - truth).abs().mean() < 0.05
    assert (some.values["x"] - truth).abs().mean() > 0.9


def learned(seed=0):
    """A small latent diffusion of untrained networks, frozen."""
    with seeded(seed):
        autoencoder = Autoencoder.of(Variable("x", (1, 16, 16)), channels=2, widths=(6, 8))
        latent = Latent.of(autoencoder, [T], code=3, width=8, multipliers=(1, 1))
        stirred(latent, 0.2)
        return latent.freeze(torch.randn(64, 1, 16, 16))


@torch.no_grad()
def test_parents_matter_through_the_latent_alone():
    latent = learned()
    with seeded(1):
        u, t = draw(latent.prior(), 6), torch.randn(6)
    moved = latent(u, {"t": t}) - latent(u, {"t": t + 1})
    z, other = latent.inner(u["z"], {"t": t}), latent.inner(u["z"], {"t": t + 1})
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(moved, latent.decode(z) - latent.decode(other))


def test_a_frozen_first_stage_stays_one_and_its_loss_is_gone(tmp_path):
    latent = learned()
    batch = own_samples(latent, rows=8)
    x, parents = batch.values["x"], {"t": batch.values["t"]}
    assert set(latent.loss(x, parents)) == {"z.nll", "z.kl", "z.denoise"}
    save(latent, tmp_path / "m")
    again = load(tmp_path / "m")
    assert set(again.loss(x, parents)) == {"z.nll", "z.kl", "z.denoise"}
    assert not any(p.requires_grad for p in again.autoencoder.parameters())
    assert torch.equal(again.scale, latent.scale)
    fresh = Latent(Autoencoder.of(X, 2, (6, 8)), LinearGaussian(Variable("z", (2, 2, 2)), [T]))
    terms = fresh.loss(torch.randn(4, 1, 8, 8), {"t": torch.zeros(4)})
    assert {"autoencoder.nll", "autoencoder.kl", "z.nll"} == set(terms)
    terms["z.nll"].sum().backward()
    assert all(p.grad is None for p in fresh.autoencoder.parameters())


def test_the_autoencoders_loss_is_minus_a_bound():
    """Halves and Back: q is a point, x exact, so that the bound's parts are known."""
    autoencoder, x = Autoencoder(X, Z.shape, Halves(), Back(), beta=0.5), pictures(50).values["x"]
    with torch.no_grad():
        terms = autoencoder.loss(x, {})
        z = autoencoder.encode(x)
        exact = torch.distributions.Normal(x, autoencoder.log_scale.exp()).log_prob(x)
        q = torch.distributions.Normal(z, torch.tensor(-7.0).exp())
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms["nll"], -exact.mean((1, 2, 3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(terms["kl"], 0.5 * kl.sum((1, 2, 3)) / 64)


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 4, 4, 4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"a continuous \(2, 4, 4\): build it for Variable\('z'"):
        Latent(Autoencoder(X, Z.shape, Halves(), Back()), LinearGaussian(Variable("z", (4,)), [T]))
    with pytest.raises(ValueError, match="takes a continuous image"):
        Autoencoder(Variable("x", (5,)), Z.shape, Halves(), Back())
    with pytest.raises(ValueError, match="needs beta >= 0"):
        Autoencoder(X, Z.shape, Halves(), Back(), beta=-1.0)
    with pytest.raises(ValueError, match=r"gave \(2, 4, 4, 4\); a latent of shape \(3, 4, 4\)"):
        Autoencoder(X, (3, 4, 4), Halves(), Back()).encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"gave \(2, 1, 8, 8\) for an image \(2, 1, 8, 16\)"):
        Autoencoder(X, Z.shape, Halves(), Back()).nll(torch.zeros(2, 1, 8, 16),
                                                      torch.zeros(2, 1, 8, 8))  # fmt: skip
    dead = Latent(Autoencoder(X, Z.shape, Constant(), Back()), LinearGaussian(Z, [T]))
    with pytest.raises(ValueError, match=r"channels \[0, 1\] .* are the same in all 5 rows"):
        dead.freeze(torch.randn(5, 1, 8, 8))
