import math

import numpy as np
import pytest
import torch
from scipy import stats

from subjunctive.mechanisms import Ridge
from subjunctive.mechanisms import ridge as module
from subjunctive.mechanisms.linear import context
from subjunctive.variable import Variable

X, T, S = Variable("x"), Variable("t"), Variable("s")
ARM = Variable("arm", kind="categorical", categories=("a", "b"))


def parents(n: int) -> dict[str, torch.Tensor]:
    return {"t": torch.randn(n), "arm": torch.arange(n) % 2}


def mean(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(given["arm"] == 0, torch.sin(2 * given["t"]), given["t"].square() / 2)


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (torch.randn, stats.norm()),
        (lambda n: torch.empty(n).exponential_() - 1, stats.expon(-1)),
        (lambda n: torch.rand(n) - 0.5, stats.uniform(-0.5, 1)),
    ],
    ids=["gaussian", "exponential", "uniform"],
)
def test_held_out_rows_are_almost_as_likely_as_under_the_truth(noise, law):
    seen, new = parents(4000), parents(4000)
    u, v = noise(4000), noise(4000)
    m = Ridge(X, [T, ARM])
    m.solve(mean(seen) + 0.3 * u, seen)
    with torch.no_grad():
        found = m.log_prob(mean(new) + 0.3 * v, new).mean()
    truth = np.mean(law.logpdf(v)) - math.log(0.3)
    assert truth - 0.15 < found < truth + 0.02
    plain = bool((m.slopes == 1).all())  # a Gaussian stays one, others must pay
    assert plain == (law.dist.name == "norm")
    gaussian = Ridge(X, [T, ARM], bins=1)
    gaussian.solve(mean(seen) + 0.3 * u, seen)
    with torch.no_grad():
        assert found >= gaussian.log_prob(mean(new) + 0.3 * v, new).mean() - 0.01


def test_the_density_integrates_to_one_and_is_that_of_its_draws():
    t = torch.randn(1000)
    m = Ridge(X, [T])
    m.solve(t + torch.randn(1000).exp(), {"t": t})
    grid = torch.linspace(-30, 120, 300_001)
    at = {"t": torch.full_like(grid, 0.7)}
    with torch.no_grad():
        p = m.log_prob(grid, at).exp()
        assert abs(float(torch.trapezoid(p, grid)) - 1) < 1e-3
        drawn = m(torch.randn(20_000), {"t": torch.full((20_000,), 0.7)})
    centre = float(torch.trapezoid(p * grid, grid))
    assert abs(float(drawn.mean()) - centre) < 0.1
    cdf = torch.cumulative_trapezoid(p, grid)
    distance = stats.kstest(drawn, lambda x: np.interp(x, grid[1:], cdf)).statistic
    assert distance < 0.02


def test_the_fit_is_the_ridge_of_the_least_generalised_cross_validation():
    n, t, s = 300, *torch.randn(2, 300)
    x = torch.stack([torch.sin(3 * t) * s + 0.5 * torch.randn(n), 0.1 * t + torch.randn(n)], 1)
    m = Ridge(Variable("x", shape=(2,)), [T, S], features=20)
    m.solve(x, {"t": t, "s": s})
    with torch.no_grad():
        phi = m._phi(context(m, {"t": t, "s": s}, n)).double().numpy()
        found = m._mean({"t": t, "s": s}, n).numpy()
    phi, chosen = phi - phi.mean(0), []
    for d in range(2):
        y, fits = x[:, d].double().numpy(), []
        for penalty in module.PENALTIES:
            hat = phi @ np.linalg.solve(phi.T @ phi + n * penalty * np.eye(22), phi.T)
            fit = y.mean() + hat @ (y - y.mean())
            gcv = np.mean((y - fit) ** 2) / (1 - np.trace(hat) / n) ** 2
            fits.append((gcv, penalty, fit))
        _, penalty, fit = min(fits, key=lambda f: f[0])
        chosen.append(penalty)
        assert np.allclose(found[:, d], fit, atol=2e-3)
    assert chosen[0] < chosen[1]  # each output has its own


def test_a_root_has_the_shape_of_its_values_and_repeated_values_that_of_a_gaussian():
    x = torch.randn(2000).exp()
    m = Ridge(X)
    m.solve((x - x.mean()) / x.std(), {})
    drawn = m(torch.randn(5000), {}).detach() * x.std() + x.mean()
    assert stats.kstest(drawn, "lognorm", args=(1.0,)).statistic < 0.05
    m.solve((x > 1).float(), {})
    assert bool((m.slopes == 1).all())
    assert torch.allclose(m.bias, (x > 1).float().mean())
    m.solve(x[:100], {})
    assert bool((m.slopes == 1).all())  # too few rows for sixteen pieces


def test_blocks_of_rows_change_nothing(monkeypatch):
    t, a, b = torch.randn(500), Ridge(X, [T]), Ridge(X, [T])
    b.load_state_dict(a.state_dict())
    a.solve(t.cos(), {"t": t})
    monkeypatch.setattr(module, "ROWS", 99)
    b.solve(t.cos(), {"t": t})
    assert torch.allclose(a(torch.zeros(500), {"t": t}), b(torch.zeros(500), {"t": t}), atol=1e-4)


def test_bad_arguments_are_named():
    with pytest.raises(
        ValueError, match="'x' needs at least one feature and one bin, got features=0"
    ):
        Ridge(X, [T], features=0)
    with pytest.raises(ValueError, match="'arm' is categorical: use Categorical or Ordinal"):
        Ridge(ARM)
