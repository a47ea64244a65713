import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from subjunctive.metrics.realism import frechet, frechet_gaussian, kernel_distance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_commuting_gaussians_have_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator()).double())
    found = frechet_gaussian(
        torch.zeros(3).double(), turn @ a.diag() @ turn.T, shift, turn @ b.diag() @ turn.T
    )
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_gaussians_that_do_not_commute_agree_with_scipys_root() -> None:
    roots = torch.randn(2, 5, 5, generator=generator(1)).double()
    a, b = (r @ r.T for r in roots)
    zero = torch.zeros(5).double()
    cross = np.trace(sqrtm(a.numpy() @ b.numpy()).real)
    expected = float(a.trace() + b.trace()) - 2 * cross
    assert float(frechet_gaussian(zero, a, zero, b)) == pytest.approx(expected, rel=1e-6)


def test_fewer_rows_than_features_stay_real_and_symmetric() -> None:
    a, b = torch.randn(2, 12, 30, generator=generator(2)).unbind(0)
    forth, back = frechet(a, b), frechet(b, a)
    assert forth.value == pytest.approx(back.value, rel=1e-8)
    assert forth.value > 0
    assert abs(frechet(a, a).value) < 1e-6


def test_samples_approach_the_distance_of_their_gaussians() -> None:
    a = torch.randn(4000, 2, generator=generator(3))
    b = torch.randn(4000, 2, generator=generator(4)) * torch.tensor([2.0, 1.0]) + 1
    found = frechet(a, b)
    assert found.value == pytest.approx(3.0, abs=4 * found.standard_error)
    assert 0 < found.standard_error < 0.2


def test_the_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    draw = generator(5)
    values = np.array(
        [
            kernel_distance(*torch.randn(2, 50, 4, generator=draw).unbind(0)).value
            for _ in range(200)
        ]
    )
    assert abs(values.mean()) < 4 * values.std() / 200**0.5
    moved = kernel_distance(
        *(torch.randn(2, 50, 4, generator=draw) + torch.tensor([0, 1.0])[:, None, None]).unbind(0)
    )
    assert moved.value > 3 * moved.standard_error


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="frechet needs"):
        frechet(torch.zeros(5, 2), torch.zeros(5, 3))
