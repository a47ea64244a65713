import pytest
import torch

from subjunctive.mechanism import seeded
from subjunctive.nn import GridDecoder, GridEncoder


def networks():
    with seeded(0):
        pair = GridEncoder(2, 6, (6, 8)), GridDecoder(3, 2, (6, 8))
        for network in pair:
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pair


@torch.no_grad()
def test_any_size_that_the_factor_divides_will_do():
    encoder, decoder = networks()
    for height, width in ((8, 16), (32, 4)):
        z = encoder(torch.randn(3, 2, height, width))
        assert z.shape == (3, 6, height // encoder.factor, width // encoder.factor)
        assert decoder(z[:, :3]).shape == (3, 2, height, width)
    with pytest.raises(ValueError, match="multiples of 4, got 6x8; pad to 8x8"):
        encoder(torch.zeros(1, 2, 6, 8))


@torch.no_grad()
def test_a_shift_of_the_grid_is_a_shift_of_the_image_away_from_the_border():
    encoder, decoder = networks()
    with seeded(1):
        x = torch.randn(2, 2, 64, 64)
    shifted = encoder(x.roll(8, 3))[..., 6:-6, 8:-6]
    torch.testing.assert_close(shifted, encoder(x).roll(2, 3)[..., 6:-6, 8:-6])
    z = encoder(x)[:, :3]
    inside = (..., slice(24, -24), slice(32, -24))
    torch.testing.assert_close(decoder(z.roll(2, 3))[inside], decoder(z).roll(8, 3)[inside])


@torch.no_grad()
def test_a_vector_of_the_grid_depends_on_the_pixels_around_it_alone():
    encoder, _ = networks()
    x = torch.zeros(1, 2, 64, 64)
    other = x.clone()
    other[..., 48:, 48:] = 1.0
    moved = (encoder(other) - encoder(x)).abs().amax(1)[0]
    assert moved[-1, -1] > 0
    assert not moved[:6, :6].any()


def test_everything_learns():
    encoder, decoder = networks()
    decoder(encoder(torch.randn(3, 2, 16, 16))[:, :3]).square().sum().backward()
    used = [*decoder.parameters(), *encoder.parameters()]
    assert all(p.grad.any() for p in used)
