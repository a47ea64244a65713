"""The flow prior against targets whose denoiser and density are known, and what it may not move."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from subjunctive.diffusion import Cosine, Denoiser, RectifiedFlow
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, LinearGaussian
from subjunctive.nn import Timed
from subjunctive.objectives import Aligned, FlowPrior
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch, Variable


@pytest.fixture(autouse=True)
def same_draws():
    with seeded(0):
        yield


class Ring(nn.Module):
    """E[x | x_t] and log p(x) of Gaussians of one scale on a circle, by Bayes' rule."""

    def __init__(self, schedule=None, modes=6, radius=2.0, scale=0.3, centre=0.0):
        super().__init__()
        self.schedule, self.scale = schedule or RectifiedFlow(), scale
        angle = 2 * torch.pi * torch.arange(modes) / modes
        self.mean = nn.Parameter(radius * torch.stack([angle.cos(), angle.sin()], 1) + centre)

    def forward(self, x_t, t, condition=None):
        alpha, sigma = (f(t)[:, None, None] for f in (self.schedule.alpha, self.schedule.sigma))
        total = alpha**2 * self.scale**2 + sigma**2
        away = x_t[:, None] - alpha * self.mean
        weight = (-away.square().sum(2, keepdim=True) / total / 2).softmax(1)
        return (weight * (self.mean + alpha * self.scale**2 / total * away)).sum(1)

    def log_prob(self, x):
        normal = torch.distributions.Normal(self.mean, self.scale)
        return normal.log_prob(x[:, None]).sum(2).logsumexp(1) - torch.tensor(6.0).log()


# What the loss is --------------------------------------------------------------------------------


def test_read_as_a_likelihood_it_is_the_exact_density():
    ring, x = Ring(), 1.5 * torch.randn(40, 2)
    runs = torch.stack([2 * FlowPrior(ring, "likelihood", 300).loss(x) for _ in range(12)])
    error = runs.mean(0) + ring.log_prob(x).detach()
    assert (error.abs() / (runs.std(0) / 12**0.5)).median() < 1.5
    assert error.abs().median() < 0.2
    assert runs.mean(0).std() > 1


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(0.02)], ids=["straight", "cosine"])
def test_read_as_a_flow_it_is_the_squared_error_of_the_velocity(schedule):
    ring, x = Ring(schedule), torch.tensor([[2.0, 0.0], [0.3, -0.2], [3.0, 1.0]])
    found = torch.stack([FlowPrior(ring, draws=500).loss(x) for _ in range(12)])
    t = torch.linspace(0, 1, 4001).double()
    t, e = ((t[1:] + t[:-1]) / 2).repeat(3), torch.randn(3 * 4000, 2).double()
    rows = x.double().repeat_interleave(4000, 0)
    ring = ring.double()
    h = 1e-6

    def rate(f):
        return ((f(t + h) - f(t - h)) / (2 * h))[:, None]

    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_t = alpha * rows + sigma * e
    d = ring(x_t, t)
    velocity = rate(schedule.alpha) * d + rate(schedule.sigma) * (x_t - alpha * d) / sigma
    ideal = rate(schedule.alpha) * rows + rate(schedule.sigma) * e
    error = (velocity - ideal).square().mean(1).reshape(3, 4000)
    spread = (error.var(1) / 4000 + found.var(0) / 12).sqrt()
    assert ((found.mean(0) - error.mean(1)).abs() / spread).max() < 4
    assert (spread / error.mean(1)).max() < 0.1


@pytest.mark.parametrize(("reading", "least"), [("flow", 0.9), ("likelihood", 0.95)])
def test_it_ranks_points_as_the_exact_density_does(reading, least):
    ring, x = Ring(radius=1.5, scale=0.5), 6 * torch.rand(200, 2) - 3
    found = FlowPrior(ring, reading, draws=500).loss(x)
    exact = -ring.log_prob(x)
    assert spearmanr(found.detach(), exact.detach()).statistic > least


def test_its_gradient_pulls_points_to_where_the_target_is_dense():
    ring, x = Ring(), torch.randn(100, 2, requires_grad=True)
    prior, before = FlowPrior(ring, draws=8), -ring.log_prob(x).mean()
    optimiser = torch.optim.Adam([x], lr=0.05)
    for _ in range(80):
        optimiser.zero_grad()
        prior.loss(x).mean().backward()
        optimiser.step()
    after = -ring.log_prob(x).mean()
    assert before - after > 1
    nearest = torch.cdist(x.detach(), ring.mean.detach())
    assert (nearest.min(1).values < 0.5).float().mean() > 0.9
    assert len(nearest.argmin(1).unique()) == 6  # a row goes to its own mode


def test_more_draws_say_the_same_more_surely():
    ring, x = Ring(), torch.randn(4, 2)
    one, many = (torch.stack([FlowPrior(ring, draws=k).loss(x) for _ in range(200)]).detach()
                 for k in (1, 20))  # fmt: skip
    assert torch.allclose(one.mean(0), many.mean(0), rtol=0.25)
    assert (many.var(0) < one.var(0) / 10).all()


# What may move, and what not ---------------------------------------------------------------------


def test_the_prior_is_a_frozen_copy():
    network = Timed(2, width=8)
    network.embed.append(nn.Dropout(0.5))
    denoiser = Denoiser(network, RectifiedFlow(), "velocity")
    prior = FlowPrior(denoiser, draws=2).train()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1.0)
    z = torch.randn(5, 2, requires_grad=True)
    with seeded(1):
        loss = prior.loss(z)
    with seeded(1):
        assert torch.equal(loss, prior.loss(z))  # no activation is dropped
    loss.mean().backward()
    assert z.grad.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in prior.parameters())
    assert all(p.requires_grad for p in denoiser.parameters())
    pairs = zip(prior.denoiser.parameters(), denoiser.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


X, T = Variable("x", (4,), loc=1.0, scale=2.0), Variable("t")


def autoencoder():
    vae = VAE.of(X, [T], latent=2, widths=(32,), beta=0.0)
    return SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": vae})


def rows(n=256):
    z, t = torch.randn(n, 2), torch.randn(n)
    x = torch.cat([z, z.square()], 1) + 0.1 * t[:, None]
    return Batch({"t": t, "x": X.restore(x)})


def test_latents_go_to_the_target_and_still_tell_the_picture():
    model, data = autoencoder(), rows(512)
    ring = Ring(modes=1, radius=0.0, scale=0.5, centre=3.0)
    objective = Aligned(FlowPrior(ring), "x", weight=0.1)
    before = ring.mean.clone()
    fit(model, data, objective, steps=300, batch_size=128, lr=0.02, ema=0.98, progress=False)
    vae, values = model.mechanisms["x"], model.standard(model.batch(data))
    with torch.no_grad():
        z = vae.posterior(values["x"], values).mean
        left = vae.decode(z, values)[:, 0] - values["x"]
    assert (z.mean(0) - 3).abs().max() < 0.2
    assert (z.std(0) < 0.9).all()
    assert (z.std(0) > 0.1).all()  # it has not fallen to the mode
    assert left.square().mean() < 0.3 * values["x"].var()
    assert torch.equal(objective.prior.denoiser.mean, before)


def test_the_first_player_pays_for_the_rows_that_saw_the_node():
    class Two(Objective):
        def players(self, model):
            own = [*model.mechanisms["x"].parameters()]
            return [Player("one", own), Player("two", model.mechanisms["t"].parameters())]

        def loss(self, model, batch, player, step):
            return {"own": torch.zeros(len(batch))}

    model, data = autoencoder(), rows(6)
    objective = Aligned(FlowPrior(Ring()), "x", weight=2.0, objective=Two())
    assert [p.name for p in objective.players(model)] == ["one", "two"]
    assert set(objective.loss(model, data, "two", 0)) == {"own"}
    mask = torch.tensor([True, False] * 3)
    with seeded(1):
        terms = objective.loss(model, Batch(data.values, {"x": mask}), "one", 0)
    assert set(terms) == {"own", "x.align"}
    assert (terms["x.align"][~mask] == 0).all()
    assert (terms["x.align"][mask] != 0).all()
    single = Aligned(FlowPrior(Ring()), "x", weight=1.0, objective=Two())
    with seeded(1):
        assert torch.allclose(2 * single.loss(model, Batch(data.values, {"x": mask}), "one", 0)[
            "x.align"], terms["x.align"])  # fmt: skip


# Mistakes ----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    ring = Ring()
    with pytest.raises(ValueError, match=r"reading='flwo', not one of .*Did you mean 'flow'"):
        FlowPrior(ring, "flwo")
    with pytest.raises(ValueError, match="draws of at least 1, got 0"):
        FlowPrior(ring, draws=0)
    with pytest.raises(ValueError, match=r"weight of at least 0, got -1\.0"):
        Aligned(FlowPrior(ring), "x", weight=-1.0)
    with pytest.raises(KeyError, match=r"Aligned names unknown node 'xx'.*Did you mean 'x'"):
        Aligned(FlowPrior(ring), "xx").posterior(autoencoder(), rows(4))
    with pytest.raises(ValueError, match="LinearGaussian, the mechanism of 't', has no posterior"):
        Aligned(FlowPrior(ring), "t").posterior(autoencoder(), rows(4))
    with pytest.raises(ValueError, match="in an SCM, not in a Linear; for another model write"):
        Aligned(FlowPrior(ring), "x").posterior(nn.Linear(1, 1), rows(4))
