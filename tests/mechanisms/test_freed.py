"""A latent freed from its parents: exact where the law is known, and rid of the parents' trace."""

import pytest
import torch
from torch import nn

from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import VAE, ConditionalFlow, Freed, LinearGaussian
from subjunctive.mechanisms.linear import stirred
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, T = Variable("x", (2,)), Variable("t")


class Eye(nn.Module):
    """An encoder that reads z = x_0 off the picture, almost without doubt."""

    def forward(self, x, c):
        return torch.cat([x[:, :1], torch.full_like(x[:, :1], -14.0)], 1)


class Hand(nn.Module):
    """A decoder that writes z into x_0 and the parent into x_1."""

    def forward(self, zc):
        return zc


def leaking():
    """A VAE whose latent of the data is 2 t + 0.5 e: all that its N(0, 1) does not say."""
    with seeded(0):
        vae = VAE(X, [T], 1, encoder=Eye(), decoder=Hand())
        t = torch.randn(3000)
        x = torch.stack([2 * t + 0.5 * torch.randn(3000), t], 1)
    return vae, {"t": t}, x


def correlation(a, b):
    return abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))


@pytest.fixture(scope="module")
def freed():
    vae, parents, x = leaking()
    mechanism = Freed.of(vae.requires_grad_(False), transforms=1, hidden=(16,))
    roots = {"t": LinearGaussian(T).requires_grad_(False), "x": mechanism}
    model = SCM(Graph.parse("t -> x"), roots)
    rows = Batch({"t": parents["t"], "x": x})
    fit(model, rows, steps=300, batch_size=256, lr=0.02, seed=0, ema=None, progress=False)
    return mechanism.eval(), parents, x


@torch.no_grad()
def test_the_noise_keeps_no_trace_of_the_parents(freed):
    mechanism, parents, x = freed
    before = mechanism.mechanism.abduct(x, parents)["z"][:, 0]
    after = mechanism.abduct(x, parents)["z"][:, 0]
    assert correlation(before, parents["t"]) > 0.9
    assert correlation(after, parents["t"]) < 0.06
    assert abs(float(after.std()) - 1) < 0.1


@torch.no_grad()
def test_a_counterfactual_keeps_the_place_within_the_parents_law(freed):
    mechanism, parents, x = freed
    rows = parents["t"].abs() < 1
    u = mechanism.abduct(x[rows], {"t": parents["t"][rows]})
    other = {"t": parents["t"][rows] + 0.5}
    truth = x[rows, 0] + 2 * 0.5  # 2 t + 0.5 e at the other t
    assert float((mechanism(u, other)[:, 0] - truth).abs().mean()) < 0.15
    plain = mechanism.mechanism
    kept = plain(plain.abduct(x[rows], {"t": parents["t"][rows]}), other)[:, 0]
    assert float((kept - truth).abs().mean()) > 0.5


@torch.no_grad()
def test_its_latents_are_drawn_as_those_of_the_data_are(freed):
    mechanism, parents, x = freed
    with seeded(1):
        z = mechanism.flow(draw(mechanism.prior(), len(x))["z"], parents)[:, 0]
    left = z - 2 * parents["t"]
    assert abs(float(left.mean())) < 0.05
    assert abs(float(left.std()) - 0.5) < 0.05
    assert correlation(left, parents["t"]) < 0.1


@torch.no_grad()
def test_the_bound_gains_what_the_flow_says_of_the_latent(freed):
    mechanism, parents, x = freed
    with seeded(2):
        ours = mechanism.bound(x, parents).mean()
    with seeded(2):
        plain = mechanism.mechanism.bound(x, parents).mean()
    t = parents["t"]
    truth = torch.distributions.Normal(2 * t, 0.5).log_prob(x[:, 0])
    gain = (truth - torch.distributions.Normal(0, 1).log_prob(x[:, 0])).mean()
    assert abs(float(ours - plain - gain)) < 0.1


def test_the_flow_moves_nothing_but_itself():
    vae, parents, x = leaking()
    mechanism = Freed.of(stirred(VAE.of(X, [T], latent=2)))
    terms = mechanism.loss(x, parents)
    assert {"nll", "kl", "z.nll"} == set(terms)
    mechanism.zero_grad()
    terms["z.nll"].mean().backward()
    assert all(p.grad is None for p in mechanism.mechanism.parameters())
    assert any(p.grad is not None for p in mechanism.flow.parameters())
    frozen = Freed.of(vae.requires_grad_(False))
    assert set(frozen.loss(x, parents)) == {"z.nll"}


def test_it_is_saved(tmp_path):
    mechanism = stirred(Freed.of(VAE.of(X, [T], latent=2)))
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": mechanism})
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(again.sample(9, seed=0)["x"], model.sample(9, seed=0)["x"])


def test_bad_input_is_named():
    vae = VAE.of(X, [T], latent=2)
    with pytest.raises(KeyError, match="the noise of 'x'"):
        Freed.of(vae, part="zz")
    with pytest.raises(ValueError, match=r"of shape \(3,\).*has shape \(2,\)"):
        Freed(vae, ConditionalFlow(Variable("z", (3,)), [T]))
    with pytest.raises(ValueError, match=r"with the parents \[\]"):
        Freed(vae, ConditionalFlow(Variable("z", (2,))))
