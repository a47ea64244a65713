import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Laplace, Normal

from subjunctive.mechanism import Density, draw, prior_log_prob
from subjunctive.mechanisms import Known
from subjunctive.variable import Variable

T = Variable("t")


def grow(u, parents):
    return torch.exp(u) * parents["t"]


def shrink(x, parents):
    return torch.log(x / parents["t"])


def test_density_by_differentiation_is_scipys_lognormal():
    m = Known(Variable("x"), [T], grow, shrink)
    x, t = torch.rand(2, 20, dtype=torch.float64) + 0.1
    expected = stats.lognorm.logpdf(x, s=1.0, scale=t)
    assert np.allclose(m.double().log_prob(x, {"t": t}), expected)
    given = Known(Variable("x"), [T], grow, shrink, log_abs_det=lambda u, p: u + p["t"].log())
    assert np.allclose(given.double().log_prob(x, {"t": t}), expected)


def test_density_of_several_numbers_has_the_whole_jacobian():
    mix = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    m = Known(
        Variable("x", shape=(2,)),
        [],
        lambda u, _: torch.stack([u["a"], u["b"]], dim=1) @ mix.T,
        lambda x, _: dict(zip("ab", (x @ mix.inverse().T).unbind(1), strict=True)),
        noise={"a": Normal(0.0, 1.0), "b": Normal(0.0, 1.0)},
    )
    x = torch.randn(5, 2, dtype=torch.float64)
    expected = stats.multivariate_normal([0, 0], mix @ mix.T).logpdf(x)
    assert np.allclose(m.log_prob(x, {}), expected)


def test_another_noise_is_drawn_and_scored():
    laplace = Independent(Laplace(torch.zeros(3), torch.ones(3)), 1)
    m = Known(Variable("x", shape=(3,)), [], lambda u, _: 2 * u, lambda x, _: x / 2, laplace)
    x = m(draw(m.prior(), 7), {})
    expected = prior_log_prob(laplace, x / 2) - 3 * np.log(2)
    assert torch.allclose(m.log_prob(x, {}), expected, atol=1e-5)


def test_gradients_reach_parents_values_and_the_formulas_parameters():
    slope = nn.Linear(1, 1, dtype=torch.float64)

    class Formula(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = slope

        def forward(self, u, parents):
            return torch.sinh(u) * self.slope(parents["t"][:, None])[:, 0].exp()

    def inverse(x, parents):
        return torch.asinh(x * (-slope(parents["t"][:, None])[:, 0]).exp())

    m = Known(Variable("x"), [T], Formula(), inverse)
    assert len(list(m.parameters())) == 2
    x, t = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda x, t, *_: m.log_prob(x, {"t": t}), (x, t, *slope.parameters())
    )
    with torch.no_grad():
        assert not m.log_prob(x, {"t": t}).requires_grad


def test_without_an_inverse_it_predicts_and_says_what_is_missing():
    m = Known(Variable("height"), [T], grow)
    t = torch.ones(2)
    assert m(torch.zeros(2), {"t": t}).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"'height' cannot be abducted.*inverse=g"):
        m.abduct(t, {"t": t})
    assert m.loss(t, {"t": t}) == {}
    with pytest.raises(ValueError, match="'height' has no likelihood to learn from"):
        m.loss(t, {"t": t.clone().requires_grad_()})


def test_it_is_a_density_where_it_can_be():
    code = Variable("x", kind="categorical", categories=("a", "b"))
    coin = Known(code, [], lambda u, _: (u > 0).long(), lambda x, _: x - 0.5)
    x = torch.tensor([0, 1])
    assert coin(coin.abduct(x, {}), {}).tolist() == [0, 1]
    assert coin.loss(x, {}) == {}
    pair = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    added = Known(
        Variable("x"), [], lambda u, _: u.sum(1), lambda x, _: x[:, None].repeat(1, 2) / 2, pair
    )
    dense = Known(Variable("x"), [T], grow, inverse=shrink)
    assert [isinstance(m, Density) for m in (coin, added, Known(T, [], grow), dense)] == [
        False,
        False,
        False,
        True,
    ]
    assert isinstance(copy.deepcopy(dense), Density)


def test_a_formula_of_the_wrong_shape_is_named():
    m = Known(Variable("x"), [T], lambda u, p: u[:, None] + p["t"], shrink)
    with pytest.raises(ValueError, match=r"'x' needs values of shape \(B,\), got \(3, 3\)"):
        m(torch.zeros(3), {"t": torch.zeros(3)})
