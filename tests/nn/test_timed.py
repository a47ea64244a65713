"""The network of vectors that a denoiser calls."""

import pytest
import torch

from subjunctive.nn import Timed


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_it_keeps_the_shape_and_reads_all_that_it_is_given(shape):
    torch.manual_seed(0)
    network = Timed(max(torch.Size(shape).numel(), 1), condition=2, width=8)
    x, noise, c = torch.randn(5, *shape), torch.randn(5), torch.randn(5, 2)
    assert torch.equal(network(x, noise, c), torch.zeros(5, *shape))  # it starts at zero
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    y = network(x, noise, c)
    assert y.shape == x.shape
    for other in ((x + 1, noise, c), (x, noise + 1, c), (x, noise, c + 1)):
        assert (network(*other) - y).abs().max() > 1e-3
    assert torch.allclose(network(x[:1], noise[:1], c[:1]), y[:1], atol=1e-6)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_condition_of_another_width_is_named():
    with pytest.raises(ValueError, match="built with condition=2 and got a condition of width 3"):
        Timed(1, condition=2)(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="condition of width 0; build it with condition=0"):
        Timed(1, condition=2)(torch.zeros(4, 1), torch.zeros(4))
