"""The bidirectional GAN: what its noise holds, what its terms are least at, what is refused."""

import math

import pytest
import torch
from torch import nn

from subjunctive.checks import LawBroken, check_mechanism
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import GAN
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.store import load, save
from subjunctive.variable import Variable

T, X = Variable("t"), Variable("x", (2,))


class Column(nn.Module):
    """E of x = (z + t, 0): its mean is x_0 - t, its variance given."""

    def __init__(self, log_variance=-6.0):
        super().__init__()
        self.log_variance = log_variance

    def forward(self, x, c):
        return torch.cat([x[:, :1] - c, torch.full_like(c, self.log_variance)], 1)


class Sum(nn.Module):
    """G(z, t) = (z + t, 0)."""

    def forward(self, both):
        return torch.stack([both.sum(1), 0 * both[:, 0]], 1)


def exact(**options):
    """A pair whose encoder inverts its generator."""
    return GAN(X, [T], 1, Sum(), Column(), **options)


def rows(n=500):
    with seeded(0):
        return torch.randn(n, 2), {"t": torch.randn(n)}


def test_what_the_encoder_leaves_is_the_residual_and_is_kept():
    x, parents = rows()
    gan = exact()
    with seeded(1):
        u = gan.abduct(x, parents)
    scale = float(gan.log_scale.detach().exp())
    assert torch.allclose(u["residual"][:, 1], x[:, 1] / scale)
    assert torch.allclose(gan(u, parents), x, atol=1e-5)
    other = gan(u, {"t": parents["t"] + 2})
    assert torch.allclose(other - x, torch.tensor([2.0, 0.0]).expand_as(x), atol=1e-5)


def test_without_a_residual_it_says_that_it_is_approximate():
    x, parents = rows()
    gan = exact(residual=False)
    u = gan.abduct(x, parents)
    assert set(u) == {"z"} == set(draw(gan.prior(), 3))
    assert torch.allclose(gan(u, parents)[:, 1], torch.zeros(500))
    assert gan.card.tolerance == math.inf
    assert "approximate" in gan.card.summary
    assert gan.card.abduction == GAN.card.abduction == "approximate"
    assert GAN.card.tolerance < 1e-5
    plain = stirred(GAN(X, [T], 2, residual=False))
    assert check_mechanism(plain, own_samples(plain))["round_trip"] == "holds"
    plain.card = GAN.card  # what it would be held to, did it not say so
    with pytest.raises(LawBroken, match="round_trip"):
        check_mechanism(plain, own_samples(plain))


def test_its_loss_is_least_where_the_encoder_inverts_the_generator():
    x, parents = rows(4000)
    x = torch.stack([x[:, 0], 0.3 * x[:, 1]], 1)
    gan = exact()
    with torch.no_grad():
        gan.log_scale.fill_(math.log(0.3 / 2**0.5))
        best = gan.loss(x, parents)
    # the encoder's draws have the deviation exp(-3): what is missed is that, and x_1
    square = (0.5 * math.exp(-6) + 0.5 * 0.09) / 0.045
    want = square / 2 + math.log(0.045) / 2 + math.log(2 * math.pi) / 2
    assert float(best["cycle"].mean()) == pytest.approx(want, abs=0.03)

    class Wrong(Column):
        def forward(self, x, c):
            return super().forward(x, -c)

    worse = GAN(X, [T], 1, Sum(), Wrong())
    with torch.no_grad():
        worse.log_scale.copy_(gan.log_scale)
        found = worse.loss(x, parents)
    assert float(found["cycle"].mean()) > float(best["cycle"].mean()) + 1


def test_its_weight_scales_it():
    x, parents = rows()
    found = []
    for cycle in (1.0, 2.0):
        with seeded(0):
            found.append(exact(cycle=cycle).loss(x, parents)["cycle"])
    assert torch.allclose(found[1], 2 * found[0])


def test_what_does_not_fit_is_refused():
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with pytest.raises(ValueError, match="GAN needs a continuous node"):
        GAN(kind)
    with pytest.raises(ValueError, match="latent >= 1 and cycle >= 0, got latent=0"):
        GAN(X, latent=0)
    with pytest.raises(ValueError, match="cycle=-1"):
        GAN(X, cycle=-1)
    x, parents = rows(3)
    wrong = GAN(X, [T], 1, nn.Linear(2, 3), Column())
    with pytest.raises(ValueError, match=r"generator of 'x' gave \(3, 3\); it needs \(3, 2\)"):
        wrong.abduct(x, parents)
    wrong = GAN(X, [T], 3, None, Column())
    with pytest.raises(ValueError, match=r"encoder of 'x' gave \(3, 2\); a latent of width 3"):
        wrong.posterior(x, parents)


def test_it_is_saved_with_and_without_a_residual(tmp_path):
    x, parents = rows(5)
    for residual in (True, False):
        gan = stirred(GAN(X, [T], 2, widths=(8,), residual=residual))
        save(gan, tmp_path / str(residual))
        again = load(tmp_path / str(residual))
        assert again.residual == residual
        with seeded(0):
            u = gan.abduct(x, parents)
        assert torch.equal(gan(u, parents), again(u, parents))
