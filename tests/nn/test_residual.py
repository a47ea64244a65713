import pytest
import torch
from torch.nn import functional as F

from subjunctive.mechanism import seeded
from subjunctive.nn import Residual


def made(image, condition=3, blocks=2):
    with seeded(0):
        network = Residual(2, 4, condition, width=6, blocks=blocks, image=image)
        for parameter in network.head.parameters():
            torch.nn.init.normal_(parameter)
        x = torch.randn(5, 2, 4, 6) if image else torch.randn(5, 2)
        return network, x, torch.randn(5, condition)


@pytest.mark.parametrize("image", [True, False])
def test_it_is_the_formula_and_rows_are_alone(image):
    network, x, c = made(image, blocks=1)
    scale, shift = network.film[0](c).chunk(2, 1)
    if image:
        scale, shift = scale[:, :, None, None], shift[:, :, None, None]
    h = network.stem(x)
    h = h + network.second[0](F.silu((1 + scale) * network.first[0](F.silu(h)) + shift))
    torch.testing.assert_close(network(x, c), network.head(F.silu(h)))
    torch.testing.assert_close(network(x[:1], c[:1]), network(x, c)[:1])


@pytest.mark.parametrize("image", [True, False])
def test_it_starts_at_zero_and_everything_learns(image):
    assert not Residual(2, 4, 3, image=image)(*made(image)[1:]).any()
    network, x, c = made(image)
    network(x, c).square().sum().backward()
    assert all(p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("image", [True, False])
def test_it_needs_no_condition(image):
    network, x, c = made(image, condition=0)
    assert c.shape == (5, 0)
    assert network(x, c).shape == (5, 4, *x.shape[2:])
