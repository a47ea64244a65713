import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from subjunctive.mechanisms import AdditiveNoise
from subjunctive.nn.mlp import MLP
from subjunctive.variable import Variable

T = Variable("t")


class Curve(nn.Module):
    """Mean t^2, raw log-scale 0.5 t."""

    def forward(self, c):
        return torch.cat([c**2, 0.5 * c], dim=1)


def test_location_scale_density_is_scipys_normal():
    m = AdditiveNoise(Variable("x"), [T], Curve(), scale="parents")
    x, t = torch.randn(2, 20, dtype=torch.float64)
    sd = (7 * np.tanh(0.5 * t / 7)).exp()
    assert np.allclose(m.double().log_prob(x, {"t": t}), stats.norm.logpdf(x, t**2, sd))


def test_constant_noise_is_carried_over_as_it_is():
    m = AdditiveNoise(Variable("x"), [T])
    x, t = torch.randn(2, 20)
    zero = torch.zeros(20)
    moved = m(m.abduct(x, {"t": t}), {"t": t + 1})
    means = m(zero, {"t": t + 1}) - m(zero, {"t": t})
    assert torch.allclose(moved - x, means, atol=1e-5)
    assert means.abs().max() > 1e-3


def test_parents_noise_is_scaled_by_their_ratio():
    m = AdditiveNoise(Variable("x"), [T], Curve(), scale="parents")
    answer = m(m.abduct(torch.tensor([3.0]), {"t": torch.ones(1)}), {"t": torch.zeros(1)})
    assert float(answer) == pytest.approx(2 * np.exp(-7 * np.tanh(0.5 / 7)), abs=1e-5)


def test_fitting_recovers_mean_and_spread():
    truth = AdditiveNoise(Variable("x"), [T], Curve(), scale="parents")
    t = torch.rand(2000) * 3 - 1.5
    x = truth(torch.randn(2000), {"t": t})
    m = AdditiveNoise(Variable("x"), [T], MLP(1, 2, hidden=(32,)), scale="parents")
    optimiser = torch.optim.Adam(m.parameters(), lr=0.03)
    for _ in range(100):
        optimiser.zero_grad()
        m.loss(x, {"t": t})["nll"].mean().backward()
        optimiser.step()
    grid = {"t": torch.linspace(-1.2, 1.2, 50)}
    zero, one = torch.zeros(50), torch.ones(50)
    with torch.no_grad():
        assert (m(zero, grid) - truth(zero, grid)).abs().max() < 0.25
        spread = (m(one, grid) - m(zero, grid)) / (truth(one, grid) - truth(zero, grid))
    assert spread.log().abs().max() < 0.25


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"'parent'.*Did you mean 'parents'"):
        AdditiveNoise(Variable("x"), [T], scale="parent")
    m = AdditiveNoise(Variable("x"), [T], MLP(1, 2))
    with pytest.raises(ValueError, match=r"gave \(3, 2\), not the \(3, 1\) that AdditiveNoise"):
        m(torch.zeros(3), {"t": torch.zeros(3)})
