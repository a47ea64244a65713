import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression

from subjunctive.mechanisms import LinearGaussian
from subjunctive.mechanisms.linear import context
from subjunctive.variable import Variable

T, S = Variable("t"), Variable("s")
ARM = Variable("arm", kind="categorical", categories=("a", "b", "c"))
STAGE = Variable("stage", kind="ordinal", categories=("I", "II", "III"))


def test_log_prob_is_scipys_normal():
    m = LinearGaussian.of(Variable("x"), [T, S], weights=[2.0, -1.0], bias=0.5, scale=0.7).double()
    t, s, x = torch.randn(3, 20, dtype=torch.float64)
    expected = stats.norm.logpdf(x, 2 * t - s + 0.5, 0.7)
    assert np.allclose(m.log_prob(x, {"t": t, "s": s}).detach(), expected, atol=1e-5)


def test_counterfactual_is_the_closed_form():
    m = LinearGaussian.of(Variable("x"), [T], weights=[2.0], bias=0.5, scale=0.7)
    t, x = torch.randn(2, 20)
    answer = m(m.abduct(x, {"t": t}), {"t": t + 3.0})
    assert torch.allclose(answer, x + 6.0, atol=1e-5)


def test_least_squares_is_where_the_loss_is_flat():
    rng = np.random.default_rng(0)
    parents = rng.normal(size=(200, 2))
    y = parents @ rng.normal(size=(2, 3)) + 0.3 + rng.normal(size=(200, 3)) * [0.2, 1.0, 2.0]
    ols = LinearRegression().fit(parents, y)
    scale = (y - ols.predict(parents)).std(0)
    m = LinearGaussian(Variable("x", shape=(3,)), [T, S]).double()
    with torch.no_grad():
        m.weight.copy_(torch.as_tensor(ols.coef_))
        m.bias.copy_(torch.as_tensor(ols.intercept_))
        m.log_scale.copy_(torch.as_tensor(scale).log())
    values = {"t": torch.as_tensor(parents[:, 0]), "s": torch.as_tensor(parents[:, 1])}
    m.loss(torch.as_tensor(y), values)["nll"].mean().backward()
    assert max(p.grad.abs().max() for p in m.parameters()) < 1e-12


def test_solve_is_where_the_loss_is_flat_in_the_units_of_any_parent():
    arm = torch.arange(300) % 3
    t, s = torch.randn(2, 300)
    x = torch.stack([t - 2 * s + arm, 5.0 + 0 * t], 1) + torch.randn(300, 2) * torch.tensor(
        [2, 0.1]
    )
    values = {"t": t, "s": 1e-3 * s + 7, "arm": arm}
    m = LinearGaussian(Variable("x", shape=(2,)), [T, S, ARM]).double()
    m.solve(x.double(), {k: v if k == "arm" else v.double() for k, v in values.items()})
    m.loss(x.double(), values)["nll"].mean().backward()
    assert max(p.grad.abs().max() for p in m.parameters()) < 1e-5
    assert bool((m.weight[:, 2:].sum(1).abs() < 1e-6).all())  # of all solutions, the smallest


def test_solve_of_an_exact_relation_leaves_a_scale_that_is_not_zero():
    m, t = LinearGaussian(Variable("x"), [T]), torch.randn(50)
    m.solve(3 * t, {"t": t})
    assert 0 < float(m.scale.detach()) < 1e-5
    assert torch.allclose(m(torch.zeros(50), {"t": t}), 3 * t, atol=1e-4)
    root = LinearGaussian(Variable("x"))
    root.solve(t, {})
    assert torch.allclose(root.bias, t.mean())
    assert torch.allclose(root.scale, t.std(correction=0))


def test_categories_enter_one_hot_and_stages_as_thermometers():
    m = LinearGaussian.of(Variable("x"), [ARM, STAGE], weights=[1.0, 2.0, 4.0, 10.0, 20.0, 40.0])
    parents = {"arm": torch.tensor([0, 1, 2]), "stage": torch.tensor([0, 1, 2])}
    assert m(torch.zeros(3), parents).tolist() == [11.0, 32.0, 74.0]
    assert context(m.double(), parents, 3).dtype == torch.float64


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"weights of shape \(1, 2\), got \(3,\)"):
        LinearGaussian.of(Variable("x"), [T, S], weights=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="positive scale, got -1"):
        LinearGaussian.of(Variable("x"), scale=-1)
    with pytest.raises(ValueError, match="'arm' is categorical: use Categorical or Ordinal"):
        LinearGaussian(ARM)
