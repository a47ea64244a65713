"""Invertible maps: inverses, volumes against the Jacobian, and principal components."""

import pytest
import torch

from subjunctive.mechanism import seeded
from subjunctive.nn import Affine, Couplings, Leaky, Tail


def layers():
    with seeded(0):
        mixed = Affine.of(torch.randn(5, 5), torch.randn(5))
        moved, odd = Couplings(5, steps=3, width=8), Couplings(2, steps=1, width=4, blocks=2)
        for module in (moved, odd):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    tail = Tail(Affine.of(torch.randn(2, 2), torch.ones(2)), 2)
    found = {"affine": (mixed, 5), "leaky": (Leaky(0.3), 4), "couplings": (moved, 5)}
    return found | {"one coupling": (odd, 2), "tail": (tail, 5)}


@pytest.mark.parametrize("name", layers())
def test_a_layer_is_inverted_and_its_volume_is_that_of_its_jacobian(name):
    layer, size = layers()[name]
    draw = torch.Generator().manual_seed(0)
    layer, x = layer.double(), torch.randn(9, size, dtype=torch.float64, generator=draw)
    z, volume = layer(x)
    assert torch.allclose(layer.inverse(z), x, atol=1e-9)
    stay = {"one coupling": 1, "tail": 3}.get(name, 0)  # numbers that keep their place
    assert (z != x).any(0).tolist() == [False] * stay + [True] * (size - stay)
    for row, told in zip(x, volume.expand(9), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: layer(r[None])[0][0], row)
        assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, told, atol=1e-9)


def test_what_has_learned_nothing_is_the_identity():
    x = torch.randn(3, 4)
    for layer in (Affine(4), Couplings(4), Leaky(1.0)):
        z, volume = layer(x)
        assert torch.equal(z, x)
        assert not volume.any()


def test_an_affine_map_of_known_numbers():
    mix, shift = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([1.0, -1.0])
    layer = Affine.of(mix, shift)
    assert torch.allclose(layer.inverse(torch.tensor([[1.0, 2.0]])), torch.tensor([[3.0, 6.0]]))
    assert float(layer(torch.zeros(1, 2))[1].detach().exp()) == pytest.approx(1 / 6)


def test_whitening_gives_components_of_unit_variance_the_largest_last():
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.tensor([0.1, 5.0, 1.0]) + torch.tensor([1.0, 2.0, 3.0])
    layer = Affine.whitening(rows.reshape(4000, 3, 1))
    z, _ = layer(rows)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(z.T.cov(correction=0), torch.eye(3), atol=1e-3)
    tilt = torch.linalg.inv(layer.unmix.detach())[:, 2]  # where the largest component points
    assert abs(float(tilt[1])) == pytest.approx(5.0, rel=0.05)
    flat = Affine.whitening(torch.cat([rows, rows[:, :1]], 1), floor=1e-3)
    assert torch.isfinite(flat.unmix).all()  # two columns are the same


def test_what_cannot_be_inverted_is_told():
    with pytest.raises(ValueError, match=r"slope -0\.5; it is inverted"):
        Leaky(-0.5)
    with pytest.raises(ValueError, match="size >= 2 and steps >= 1, got 1 and 4"):
        Couplings(1)
