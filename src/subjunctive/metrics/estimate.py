"""A number and how far to trust it: means, ratios of means, and anything else by jackknife.

The mean of n rows has the standard error s / sqrt(n). A ratio r = mean(a) / mean(b) of paired rows
has, to first order, that of the rows `(a_i - r b_i) / mean(b)`. Any smooth statistic T has one by
leaving out groups of rows: `se^2 = (g - 1)/g sum_k (T_(k) - mean T_(.))^2`, summed over samples
that are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number measured on rows.

    Args:
        value: the estimate.
        standard_error: of the estimate over rows taken as independent; NaN for a single row.
        n: how many rows it rests on.
        unit: of the value.
    """

    value: float
    standard_error: float
    n: int
    unit: str = ""

    @classmethod
    def of(cls, rows: Tensor, unit: str = "") -> Estimate:
        """Return the mean over rows `(B,)`; NaN marks a row that has nothing to say.

        Raises:
            ValueError: if no row is left.

        Example:
            >>> Estimate.of(torch.tensor([1.0, 3.0, float("nan")]), "px")
            Estimate(value=2.0, standard_error=1.0, n=2, unit='px')
        """
        rows = rows.detach().double().reshape(-1)
        rows = rows[~rows.isnan()]
        if not len(rows):
            raise ValueError("there is no row to average: none has anything to compare")
        return cls(float(rows.mean()), _error(rows), len(rows), unit)


def _error(rows: Tensor) -> float:
    return float(rows.std() / len(rows) ** 0.5) if len(rows) > 1 else float("nan")


def ratio(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Return mean(numerator) / mean(denominator) over paired rows, its error by the delta method.

    Args:
        numerator, denominator: `(B,)`; rows where either is NaN are left out.

    Raises:
        ValueError: if no row is left, or the denominator's mean is zero.

    Example:
        >>> ratio(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
        Estimate(value=0.5, standard_error=0.0, n=2, unit='')
    """
    a, b = numerator.detach().double().reshape(-1), denominator.detach().double().reshape(-1)
    kept = ~(a.isnan() | b.isnan())
    a, b = a[kept], b[kept]
    if not len(a) or float(b.mean()) == 0:
        raise ValueError("a ratio needs rows, and a denominator whose mean is not zero")
    value = a.mean() / b.mean()
    return Estimate(float(value), _error((a - value * b) / b.mean()), len(a))


def jackknife(
    statistic: Callable[..., Tensor | float], *samples: Tensor, groups: int = 10
) -> Estimate:
    """Return a statistic of independent samples, its error by leaving out groups of rows.

    Args:
        statistic: a smooth function of the samples.
        samples: each with its rows first; rows i, i + groups, ... form a group.
        groups: how many groups each sample is cut into; at most its rows.

    Reference: Jackknife, Bootstrap and Other Resampling Methods in Regression Analysis (Wu, 1986),
    https://doi.org/10.1214/aos/1176350142

    Example:
        >>> rows = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> found, exact = jackknife(torch.mean, rows, groups=200), Estimate.of(rows)
        >>> abs(found.standard_error - exact.standard_error) < 1e-6
        True
    """
    smallest = min(len(s) for s in samples)
    if smallest < 2:
        raise ValueError(f"the jackknife needs at least 2 rows a sample, got {smallest}")
    variance = 0.0
    for k, sample in enumerate(samples):
        cuts = min(groups, len(sample))
        group = torch.arange(len(sample), device=sample.device) % cuts
        left = torch.tensor(
            [
                float(statistic(*samples[:k], sample[group != g], *samples[k + 1 :]))
                for g in range(cuts)
            ],
            dtype=torch.float64,
        )
        variance += float((left - left.mean()).square().sum()) * (cuts - 1) / cuts
    return Estimate(float(statistic(*samples)), variance**0.5, smallest)
