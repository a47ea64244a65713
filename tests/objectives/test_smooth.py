"""The regulariser against denoisers whose Jacobian is known, and what it may and may not move."""

import pytest
import torch
from torch import nn

from subjunctive.diffusion import Cosine, Denoiser, RectifiedFlow
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, LinearGaussian
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import MLP, UNet
from subjunctive.objectives import Smooth, variation
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch, Variable


@pytest.fixture(autouse=True)
def same_draws():
    with seeded(0):
        yield


class Linear(nn.Module):
    """D(x_t) = W x_t whatever the time, called as a `Denoiser` is; sigma W is its Jacobian."""

    def __init__(self, matrix, schedule=None):
        super().__init__()
        self.matrix, self.schedule = nn.Parameter(matrix), schedule or Cosine()

    def forward(self, x_t, t, condition=None):
        return x_t @ self.matrix.T

    def weight(self, t):
        return torch.ones_like(t)


class Cubic(nn.Module):
    """A denoiser whose slope depends on where it is: D(x_t) = w x_t^3."""

    schedule = Cosine()

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t, t, condition=None):
        return self.scale * x_t**3

    def weight(self, t):
        return torch.ones_like(t)


def model(denoiser, shape=(3,), **kwargs):
    x, t = Variable("x", shape), Variable("t")
    mechanism = Diffusion(x, [t], denoiser, anchor=0.0, **kwargs)
    return SCM(Graph.parse("t -> x"), {"t": LinearGaussian(t), "x": mechanism})


def rows(n, shape=(3,)):
    return Batch({"t": torch.randn(n), "x": torch.randn(n, *shape)})


def unet(condition):
    network = UNet(1, condition=condition, width=8, multipliers=(1,), size=8)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


# What is measured --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=["cosine", "straight"])
def test_a_linear_denoiser_has_the_closed_form(schedule):
    denoiser, t = Linear(torch.randn(3, 3), schedule), torch.rand(50)
    y = torch.randn(50, 3)
    found = variation(denoiser, schedule, torch.randn(50, 3), t, torch.randn(50, 3), 7 * y)
    unit = y / y.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, schedule.sigma(t) * (unit @ denoiser.matrix).norm(dim=1))
    assert not torch.allclose(found, schedule.sigma(t) * (unit @ denoiser.matrix.T).norm(dim=1))


def test_a_denoiser_with_attention_agrees_with_its_whole_jacobian():
    denoiser = Denoiser(unet(0), Cosine()).double()
    x, e, y = torch.randn(3, 2, 1, 8, 8).double()
    t = torch.tensor([0.3, 0.7]).double()
    found = variation(denoiser, Cosine(), x, t, e, y)

    def shown(noise):
        alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
        return denoiser(alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise, t)

    whole = torch.autograd.functional.jacobian(shown, e)
    for i in range(2):
        jacobian, unit = whole[i, :, :, :, i].reshape(64, 64), y[i].reshape(64)
        torch.testing.assert_close(found[i], (jacobian.T @ (unit / unit.norm())).norm())


def test_over_directions_its_square_is_the_mean_square_of_singular_values():
    matrix, n = torch.randn(5, 5), 40_000
    t = torch.full((n,), 0.5)
    found = variation(
        Linear(matrix), Cosine(), torch.zeros(n, 5), t, *torch.randn(2, n, 5)
    ).detach()
    exact = 0.5 * matrix.square().sum() / 5
    assert float(found.square().mean()) == pytest.approx(float(exact), rel=0.02)


# What is minimised -------------------------------------------------------------------------------


def test_the_term_is_the_squared_distance_from_the_running_mean():
    scaled = 0.6 * torch.linalg.qr(torch.randn(3, 3))[0]  # |J^T y| = 0.6 sigma whatever y
    smooth, scm, batch = Smooth("x", weight=3.0), model(Linear(scaled)), rows(64)
    term = smooth.loss(scm, batch, "model", 0)["x.smooth"].detach()
    # sigma of stratified uniform times: mean and variance of a sine over a quarter turn
    mean = 0.6 * 2 / torch.pi
    spread = 0.36 * (0.5 - 4 / torch.pi**2)
    assert float(smooth.mean) == pytest.approx(mean, rel=0.01)
    assert float(term.mean()) == pytest.approx(3 * spread, rel=0.03)
    levels = Smooth("x", weight=3.0, levels=4)
    assert levels.loss(scm, batch, "model", 0)["x.smooth"].mean() < term.mean() / 5
    middle = (torch.arange(4) + 0.5) / 4
    torch.testing.assert_close(levels.mean, 0.6 * Cosine().sigma(middle), rtol=0.03, atol=0)


def test_an_even_jacobian_costs_nothing_and_an_uneven_one_does():
    class Even(Linear):
        def forward(self, x_t, t, condition=None):
            return super().forward(x_t, t) / self.schedule.sigma(t)[:, None]

    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    even = Smooth("x").loss(model(Even(turn)), rows(64), "model", 0)["x.smooth"].detach()
    bent = turn * torch.tensor([0.1, 1.0, 2.0])
    uneven = Smooth("x").loss(model(Even(bent)), rows(64), "model", 0)["x.smooth"].detach()
    assert float(even.max()) < 1e-10
    assert float(uneven.mean()) > 0.05


def test_the_running_mean_is_the_plain_mean_first_and_exponential_later():
    smooth, found = Smooth("x", decay=0.9, levels=2), torch.rand(30, 8)
    for row in found[:5]:
        smooth.follow(row, torch.zeros(8).long())
    assert float(smooth.mean[0]) == pytest.approx(float(found[:5].mean()), rel=1e-5)
    before = smooth.mean.clone()
    for row in found[5:]:
        smooth.follow(row, torch.zeros(8).long())
    last = smooth.mean.clone()
    smooth.follow(torch.full((8,), 5.0), torch.zeros(8).long())
    torch.testing.assert_close(smooth.mean[0], 0.9 * last[0] + 0.1 * 5.0)
    assert smooth.mean[1] == before[1] == 0  # no row was there


def test_evaluation_leaves_the_running_mean_alone_and_needs_no_gradient():
    smooth, scm = Smooth("x"), model(Linear(torch.eye(3)))
    smooth.loss(scm, rows(16), "model", 0)
    kept = smooth.mean.clone()
    smooth.eval()
    with torch.no_grad():
        term = smooth.loss(scm, rows(16), "model", 1)["x.smooth"]
    assert torch.equal(smooth.mean, kept)
    assert not term.requires_grad
    assert term.mean() > 0


def test_rows_that_did_not_see_the_node_neither_pay_nor_count():
    smooth, scm, batch = Smooth("x"), model(Cubic()), rows(40)
    here = torch.arange(40) < 20
    x = torch.where(here[:, None], batch.values["x"], torch.nan)
    term = smooth.loss(scm, Batch({"t": batch.values["t"], "x": x}, {"x": here}), "model", 0)
    price = term["x.smooth"]
    assert torch.isfinite(smooth.mean).all()
    assert (price[20:] == 0).all()
    assert (price[:20] > 0).all()


# What moves --------------------------------------------------------------------------------------


def test_gradients_reach_the_denoiser_and_not_the_encoder():
    image, width = Variable("x", (1, 8, 8)), condition_width([], 4)
    encoder = nn.Sequential(nn.Flatten(), MLP(64, 8, (16,)))
    mechanism = Diffusion(image, [], Denoiser(unet(width), Cosine()), encoder, code=4, anchor=0.0)
    scm = SCM(Graph.parse("x"), {"x": mechanism})
    term = Smooth("x").loss(scm, Batch({"x": torch.randn(6, 1, 8, 8)}), "model", 0)["x.smooth"]
    term.sum().backward()
    for name, p in mechanism.denoiser.named_parameters():
        # an offset after the last nonlinearity is no part of the Jacobian
        assert (p.grad is not None and bool(p.grad.any())) or name.endswith("bias"), name
    assert all(p.grad is None for p in encoder.parameters())


def test_training_evens_the_jacobian_where_the_unpriced_twin_stays_uneven():
    def spread(weight):
        with seeded(1):
            network = MLP(4, 3, (32,))
            denoiser = Denoiser(Joined(network), Cosine())
            scm, batch = model(denoiser), rows(256)
        smooth = Smooth("x", weight)
        fit(scm, batch, smooth, steps=100, lr=2e-2, progress=False, ema=None)
        with seeded(2):
            found = smooth.measure(scm, rows(512))[0].detach()
        return float(found.std() / found.mean())

    assert spread(300.0) < 0.8 * spread(0.0)


class Joined(nn.Module):
    """A plain network of x and the noise level."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, noise, condition=None):
        return self.network(torch.cat([x, noise[:, None]], 1))


def test_it_is_lazy_and_the_first_player_pays():
    class Two(Objective):
        def players(self, model):
            first, *rest = model.parameters()
            return [Player("one", rest), Player("two", [first])]

        def loss(self, model, batch, player, step):
            return {"own": torch.zeros(len(batch))}

    scm, batch = model(Linear(torch.eye(3))), rows(8)
    smooth = Smooth("x", lazy=3, objective=Two())
    due = [sorted(smooth.loss(scm, batch, "one", step)) for step in range(4)]
    assert due == [["own", "x.smooth"], ["own"], ["own"], ["own", "x.smooth"]]
    assert list(smooth.loss(scm, batch, "two", 0)) == ["own"]
    with seeded(3):
        paid = Smooth("x", lazy=3).loss(scm, batch, "model", 0)["x.smooth"]
    with seeded(3):
        plain = Smooth("x").loss(scm, batch, "model", 0)["x.smooth"]
    torch.testing.assert_close(paid, 3 * plain)


def test_errors_teach():
    with pytest.raises(ValueError, match="weight=-1"):
        Smooth("x", weight=-1.0)
    with pytest.raises(ValueError, match="decay=1"):
        Smooth("x", decay=1.0)
    with pytest.raises(ValueError, match="Linear"):
        Smooth("x").measure(nn.Linear(1, 1), rows(4))
    with pytest.raises(KeyError, match="'xx'"):
        Smooth("xx").measure(model(Linear(torch.eye(3))), rows(4))
    x = Variable("x", (3,))
    with pytest.raises(ValueError, match="VAE"):
        Smooth("x").measure(SCM(Graph.parse("x"), {"x": VAE(x, latent=2)}), rows(4).only(["x"]))
