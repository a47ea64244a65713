import numpy as np
import pytest
import torch
from scipy import stats

from subjunctive.metrics.discrepancy import energy, kernel_mmd, thin


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_kernel_mmd_is_the_mean_over_pairs() -> None:
    a = torch.randn(9, 3, generator=generator(), dtype=torch.float64)
    b = torch.randn(7, 3, generator=generator(1), dtype=torch.float64)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [
        np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (a, b)
    ]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel_mmd(a, b).value == pytest.approx(expected, rel=1e-9)


def test_the_energy_coefficient_agrees_with_scipy() -> None:
    a = torch.randn(80, generator=generator(2)).double()
    b = 0.5 + 2 * torch.randn(60, generator=generator(3)).double()
    biased = stats.energy_distance(a.numpy(), b.numpy()) ** 2  # SciPy keeps the zero diagonals
    within = [float(torch.cdist(s[:, None], s[:, None]).sum()) for s in (a, b)]
    between = float(torch.cdist(a[:, None], b[:, None]).mean())
    shrunk = sum(w / (n * n * (n - 1)) for w, n in zip(within, (80, 60), strict=True))
    expected = (biased - shrunk) / (2 * between)
    assert energy(a, b, permutations=0).value == pytest.approx(expected, rel=1e-6)


def test_normals_a_little_apart_have_a_quarter_of_the_squared_distance() -> None:
    a = torch.randn(2000, generator=generator(4))
    found = energy(a, torch.randn(2000, generator=generator(5)) + 0.4, permutations=0, most=2000)
    assert found.value == pytest.approx(0.04, abs=4 * found.standard_error)
    assert found.standard_error < 0.01


def test_under_the_null_the_estimate_has_no_bias_and_the_test_keeps_its_level() -> None:
    draw = generator(6)
    found = [
        energy(*torch.randn(2, 40, 2, generator=draw).unbind(0), permutations=60)
        for _ in range(200)
    ]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    rejected = np.mean([f.p_value < 0.05 for f in found])
    assert rejected < 0.05 + 4 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean([f.value > f.null for f in found]) == pytest.approx(0.05, abs=0.06)


@pytest.mark.parametrize("change", [lambda x: x + 0.5, lambda x: 2 * x, lambda x: x.abs()])
def test_a_change_of_location_scale_or_shape_is_seen(change: object) -> None:
    a, b = torch.randn(2, 300, generator=generator(7)).unbind(0)
    assert energy(a, change(b)).p_value < 0.02  # type: ignore[operator]


def test_the_error_is_the_spread_over_repetitions() -> None:
    draw = generator(8)
    found = [
        kernel_mmd(
            torch.randn(60, 2, generator=draw), 1 + torch.randn(60, 2, generator=draw), groups=10
        )
        for _ in range(150)
    ]
    spread = np.std([f.value for f in found])
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.3)


def test_the_seed_decides_and_the_users_generator_is_left_alone() -> None:
    a, b = torch.randn(2, 30, generator=generator(9)).unbind(0)
    before = torch.random.get_rng_state()
    assert energy(a, b, seed=3) == energy(a, b, seed=3)
    assert energy(a, b, seed=3).null != energy(a, b, seed=4).null
    assert torch.equal(before, torch.random.get_rng_state())


def test_thinning_keeps_both_ends_and_samples_must_fit() -> None:
    assert thin(torch.arange(100), 4).tolist() == [0, 33, 66, 99]
    with pytest.raises(ValueError, match="same columns"):
        energy(torch.zeros(5, 2), torch.zeros(5, 3))
