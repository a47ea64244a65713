import numpy as np
import pytest
import torch

from subjunctive.metrics.estimate import Estimate, jackknife, ratio


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mean_has_the_textbook_error_and_leaves_nan_rows_out() -> None:
    rows = torch.randn(50, generator=generator())
    found = Estimate.of(torch.cat([rows, torch.full((7,), torch.nan)]))
    assert found.n == 50
    assert found.value == pytest.approx(float(rows.mean()), abs=1e-6)
    expected = float(np.std(rows.numpy(), ddof=1) / 50**0.5)
    assert found.standard_error == pytest.approx(expected, rel=1e-5)


def test_no_row_is_an_error_and_one_row_has_no_known_error() -> None:
    with pytest.raises(ValueError, match="no row"):
        Estimate.of(torch.full((3,), torch.nan))
    assert np.isnan(Estimate.of(torch.ones(1)).standard_error)


def test_the_error_of_a_ratio_is_its_spread_over_repetitions() -> None:
    draw = generator(1)
    found, values = [], []
    for _ in range(400):
        b = 2 + torch.rand(60, generator=draw)
        a = 0.7 * b + 0.3 * torch.randn(60, generator=draw)
        one = ratio(a, b)
        values.append(one.value)
        found.append(one.standard_error)
    assert np.mean(values) == pytest.approx(0.7, abs=0.005)
    assert np.mean(found) == pytest.approx(np.std(values), rel=0.12)


def test_a_ratio_refuses_a_zero_denominator() -> None:
    with pytest.raises(ValueError, match="denominator"):
        ratio(torch.ones(3), torch.zeros(3))


def test_the_jackknife_of_two_samples_adds_their_variances() -> None:
    a, b = torch.randn(40, generator=generator(2)), 3 * torch.randn(90, generator=generator(3))
    found = jackknife(lambda x, y: x.mean() - y.mean(), a, b, groups=90)
    exact = (Estimate.of(a).standard_error ** 2 + Estimate.of(b).standard_error ** 2) ** 0.5
    assert found.standard_error == pytest.approx(exact, rel=1e-4)
    assert found.value == pytest.approx(float(a.mean() - b.mean()), abs=1e-6)
