"""What latents should be like: an equivariant autoencoder, one that is not, and features."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Autoencoder, Latent, LinearGaussian
from subjunctive.objectives import Equivariant, Projection, Represented, equivariance
from subjunctive.objectives.latent_space import resize, transform
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X = Variable("x", (1, 32, 32))


@pytest.fixture(autouse=True)
def same_draws():
    with seeded(0):
        yield


class Pool(nn.Module):
    """The mean over 4 x 4 pixels as the latent, almost without doubt, moved along by `roll`."""

    def __init__(self, roll=0):
        super().__init__()
        self.roll = roll

    def forward(self, x):
        mean = F.avg_pool2d(x, 4).roll(self.roll, 3)
        return torch.cat([mean, torch.full_like(mean, -20.0)], 1)


class Repeat(nn.Module):
    def __init__(self, roll=0):
        super().__init__()
        self.roll = roll

    def forward(self, z):
        return F.interpolate(z.roll(-self.roll, 3), scale_factor=4)


def pair(roll=0):
    """An autoencoder of block pictures that loses nothing, equivariant unless it rolls."""
    return Autoencoder(X, (1, 8, 8), Pool(roll), Repeat(roll), beta=0.0)


def blocks(rows=20):
    """Pictures that are constant over 8 x 8 pixels."""
    return F.interpolate(torch.randn(rows, 1, 4, 4), scale_factor=8)


def model(autoencoder):
    return SCM(Graph.parse("x"), {"x": autoencoder})


def test_sizes_are_averages_over_boxes():
    x = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(resize(x, 6, 2), F.avg_pool2d(x, (2, 4)))
    torch.testing.assert_close(resize(x, 12, 8), x)
    third = resize(torch.arange(3.0).reshape(1, 1, 1, 3), 1, 2).flatten()
    torch.testing.assert_close(third, torch.tensor([1 / 3, 5 / 3]))
    flat = torch.ones(1, 1, 12, 12)
    torch.testing.assert_close(resize(flat, 7, 11), torch.ones(1, 1, 7, 11))
    torch.testing.assert_close(resize(x, 7, 5).mean((2, 3)), x.mean((2, 3)))


def test_turns_are_undone_by_turns():
    x = torch.randn(2, 3, 12, 8)
    once = transform(x, 1, 12, 8)
    assert once.shape == (2, 3, 8, 12)
    assert torch.equal(transform(once, 3, 8, 12), x)


@pytest.mark.parametrize(("turns", "height"), [(1, 8), (2, 8), (3, 8), (0, 4), (1, 4), (3, 4)])
def test_averages_are_equivariant_and_a_roll_is_not(turns, height):
    x = blocks()
    assert equivariance(pair(), x, turns, height).max() < 1e-10
    broken = pair(roll=1)
    assert equivariance(broken, x, 0, 8).max() < 1e-10  # it loses nothing of the picture itself
    assert equivariance(broken, x, turns, height).min() > 0.05


def test_a_row_that_is_flat_is_equivariant_at_every_size():
    x = torch.randn(5, 1, 1, 1).expand(5, 1, 32, 32)
    assert max(equivariance(pair(), x, 1, h).max() for h in range(1, 9)) < 1e-10


def test_the_term_is_the_nll_of_what_was_transformed():
    autoencoder, x = pair(roll=1), blocks()
    loss = Equivariant("x", low=1.0, share=0.6, weight=2.0)
    found, exact = [], pair()
    for _ in range(20):
        terms = loss.loss(model(autoencoder), Batch({"x": x}), "model", 0)
        found.append(terms["x.equivariance"])
        assert not terms["x.equivariance"][12:].any()
    least = 2.0 * exact.nll(x, x)[0]
    paid = torch.stack(found)[:, :12]
    turned = (paid - least).mean(1) > 0.01  # three turns of four
    assert 8 < int(turned.sum()) < 20
    torch.testing.assert_close(paid[~turned], least.expand_as(paid[~turned]), atol=1e-4, rtol=0)
    errors = torch.stack([equivariance(autoencoder, x[:12], k, 8) for k in (1, 2, 3)])
    there = 2.0 * errors * torch.exp(-2 * autoencoder.log_scale) / 2 + least
    gaps = (paid[turned][:, None] - there).abs().amax(2).amin(1)
    assert gaps.max() < 0.05


def test_training_makes_a_latent_equivariant_without_losing_the_picture():
    x = F.interpolate(torch.randn(512, 1, 2, 2), scale_factor=4)
    errors, lost = {}, {}
    for name, objective in (("plain", None), ("ours", Equivariant("x"))):
        with seeded(0):
            image = Variable("x", (1, 8, 8))
            autoencoder = Autoencoder.of(image, channels=2, widths=(8, 8), beta=0.01)
        fit(model(autoencoder), Batch({"x": x}), objective, steps=120, lr=2e-2, ema=None,
            progress=False)  # fmt: skip
        with torch.no_grad():
            errors[name] = float(equivariance(autoencoder, x, 1, 2).mean())
            lost[name] = float(equivariance(autoencoder, x, 0, 2).mean())
    assert errors["ours"] < 0.3 * errors["plain"]
    assert max(lost.values()) < 0.2


class Teacher(nn.Module):
    """Features that are known: the picture's means over a grid, or their cosine and sine."""

    def __init__(self, grid=True):
        super().__init__()
        self.grid = grid
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        found = self.scale * F.avg_pool2d(x, 4 if self.grid else 32)
        found = torch.cat([found.cos(), found.sin()], 1)
        return found if self.grid else found.flatten(1)


class Same(nn.Module):
    """The projection that gives the teacher's features of Pool's latents, or their negative."""

    def __init__(self, sign=1.0, mean=False):
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))
        self.mean = mean

    def forward(self, z):
        z = z.mean((2, 3), keepdim=True) if self.mean else z
        return 3 * self.sign * torch.cat([z.cos(), z.sin()], 1)


@pytest.mark.parametrize("grid", [True, False])
def test_the_cosine_is_one_for_the_features_themselves(grid):
    x, autoencoder = blocks(), pair()
    z = autoencoder.encode(x)
    for sign in (1.0, -1.0):
        aligned = Represented(Teacher(grid), Same(sign, not grid), "x")
        torch.testing.assert_close(aligned.cosine(x, z), torch.full((20,), sign))
        paid = aligned.loss(model(autoencoder), Batch({"x": x}), "model", 0)["x.represented"]
        torch.testing.assert_close(paid, torch.full((20,), 1 - sign), atol=1e-4, rtol=0)


def test_the_features_are_moved_by_nobody_and_the_projection_by_the_first_player():
    teacher, projection = Teacher(), Projection(1, 2, width=8)
    aligned = Represented(teacher, projection, "x", objective=Equivariant("x"))
    network = model(Autoencoder.of(Variable("x", (1, 32, 32)), channels=1, widths=(4, 4)))
    rows, before = Batch({"x": blocks(64)}), projection.layers[0].weight.clone()
    done = fit(network, rows, aligned, steps=3, progress=False)
    assert done.steps == 3
    assert float(aligned.features.scale.detach()) == 1.0
    assert not torch.equal(projection.layers[0].weight, before)
    terms = aligned.loss(network, rows, "model", 0)
    assert {"x.nll", "x.kl", "x.equivariance", "x.represented"} == set(terms)
    twice = Represented(Teacher(), Same(), "x", objective=Represented(Teacher(), Same(-1.0), "x"))
    paid = twice.loss(model(pair()), rows, "model", 0)["x.represented"]
    torch.testing.assert_close(paid, torch.full((64,), 2.0), atol=1e-4, rtol=0)  # 0 + 2, both paid


def test_the_latent_learns_to_tell_the_features():
    x = F.interpolate(torch.randn(256, 1, 2, 2), scale_factor=8)
    found = {}
    for weight in (0.0, 1.0):
        with seeded(0):
            autoencoder = Autoencoder.of(Variable("x", (1, 16, 16)), 2, (6, 6), beta=0.1)
            aligned = Represented(Teacher(), Projection(2, 2, width=4), "x", weight)
        fit(model(autoencoder), Batch({"x": x}), aligned, steps=60, lr=1e-2, ema=None,
            progress=False)  # fmt: skip
        with torch.no_grad():
            found[weight] = float(aligned.cosine(x, autoencoder.encode(x)).mean())
    assert found[1.0] > max(0.8, found[0.0] + 0.2)


def test_a_latents_first_stage_and_unseen_rows_are_known():
    autoencoder = pair()
    latent = Latent(autoencoder, LinearGaussian(Variable("z", (1, 8, 8))))
    hidden = torch.arange(20) % 2 == 0
    rows = Batch({"x": blocks()}, {"x": ~hidden})
    terms = Equivariant("x", share=1.0).loss(model(latent), rows, "model", 0)
    assert not terms["x.equivariance"][hidden].any()
    assert terms["x.equivariance"][~hidden].all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="low=0"):
        Equivariant("x", low=0)
    with pytest.raises(ValueError, match="weight of at least 0, got -1"):
        Represented(Teacher(), Same(), "x", weight=-1)
    rows, linear = Batch({"x": blocks(2)}), SCM(Graph.parse("x"), {"x": LinearGaussian(X)})
    with pytest.raises(ValueError, match="LinearGaussian, the mechanism of 'x', is no Autoencoder"):
        Equivariant("x").loss(linear, rows, "model", 0)
    with pytest.raises(KeyError, match="Equivariant"):
        Equivariant("y").loss(linear, rows, "model", 0)
    with pytest.raises(ValueError, match="give it 2 outputs"):
        Represented(Teacher(), Projection(1, 3), "x").loss(model(pair()), rows, "model", 0)
