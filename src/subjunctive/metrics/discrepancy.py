"""How far two samples are from one distribution: kernel distances with a null beside them.

For a kernel k, the squared maximum mean discrepancy has the unbiased estimate

    MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j).

With k(x, y) = -|x - y| it is the energy distance, zero if and only if the distributions are equal,
with no width to choose; divided by 2 E|a - b| it lies between 0 and 1 (the energy coefficient).
The 95 % quantile over random relabellings of the pooled rows says what chance alone gives.

Reference: A Kernel Two-Sample Test (Gretton, Borgwardt, Rasch, Schoelkopf and Smola, 2012),
https://jmlr.org/papers/v13/gretton12a.html; Energy statistics: A class of statistics based on
distances (Szekely and Rizzo, 2013), https://doi.org/10.1016/j.jspi.2013.03.018
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subjunctive.metrics.estimate import Estimate


@dataclass(frozen=True)
class Discrepancy(Estimate):
    """A distance between two samples, and what chance alone gives.

    Args:
        null: 95 % quantile of the distance between random halves of the pooled rows; NaN if it was
            not asked for.
        p_value: share of random relabellings at least as far apart; NaN likewise.
    """

    null: float = float("nan")
    p_value: float = float("nan")


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel `(a . b / D + 1)^3` of the kernel inception distance, `(N, M)`."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def thin(rows: Tensor, most: int) -> Tensor:
    """Take at most `most` rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).round().long()]


def _pooled(a: Tensor, b: Tensor, most: int) -> tuple[Tensor, int]:
    a, b = (thin(s.reshape(len(s), -1), most).double() for s in (a, b))
    if min(len(a), len(b)) < 4 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"two samples of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: "
            "they need the same columns and at least 4 rows each"
        )
    return torch.cat([a, b]), len(a)


def _parts(gram: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return MMD^2 and the mean of k(a, b) for rows of indicators `(R, N)` of each sample."""
    diagonal, n, m = gram.diagonal(), a.sum(1), b.sum(1)
    to_a, to_b = a @ gram, b @ gram
    within_a = ((to_a * a).sum(1) - a @ diagonal) / (n * (n - 1))
    within_b = ((to_b * b).sum(1) - b @ diagonal) / (m * (m - 1))
    between = (to_a * b).sum(1) / (n * m)
    return within_a + within_b - 2 * between, between


def _compare(
    gram: Tensor, n: int, groups: int, permutations: int, seed: int, coefficient: bool
) -> Discrepancy:
    total = len(gram)
    in_a = (torch.arange(total) < n).double()[None]

    def statistic(a: Tensor, b: Tensor) -> Tensor:
        value, between = _parts(gram, a.to(gram), b.to(gram))
        return (value / (-2 * between).clamp(min=1e-300) if coefficient else value).cpu()

    value = float(statistic(in_a, 1 - in_a))
    variance = 0.0
    for sample, size in ((in_a, n), (1 - in_a, total - n)):
        cuts = min(groups, size // 2)
        index = (sample.cumsum(1) - 1) % cuts
        kept = 1 - sample * (index == torch.arange(cuts)[:, None]).double()
        left = statistic(in_a * kept, (1 - in_a) * kept)
        variance += float((left - left.mean()).square().sum()) * (cuts - 1) / cuts
    null = p = float("nan")
    if permutations:
        draw = torch.Generator().manual_seed(seed)
        order = torch.rand(permutations, total, generator=draw).argsort(1)
        shuffled = (order < n).double()
        chance = statistic(shuffled, 1 - shuffled)
        null = float(chance.quantile(0.95))
        p = (1 + int((chance >= value).sum())) / (1 + permutations)
    return Discrepancy(value, variance**0.5, n, "", null, p)


def kernel_mmd(
    a: Tensor, b: Tensor, groups: int = 20, permutations: int = 0, seed: int = 0, most: int = 2000
) -> Discrepancy:
    """Return the unbiased MMD^2 of two samples under the cubic polynomial kernel.

    Args:
        a, b: `(N, ...)` and `(M, ...)`, flattened to columns.
        groups: groups of rows that the jackknife leaves out for the standard error.
        permutations: random relabellings for the null; 0 for none.
        seed: of the relabellings; the global generator is left alone.
        most: rows taken of each sample, evenly spread: memory grows with its square.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> kernel_mmd(x[:100], x[100:]).value < kernel_mmd(x[:100], x[100:] + 1).value
        True
    """
    pooled, n = _pooled(a, b, most)
    return _compare(polynomial(pooled, pooled), n, groups, permutations, seed, False)


def energy(
    a: Tensor,
    b: Tensor,
    groups: int = 20,
    permutations: int = 100,
    seed: int = 0,
    most: int = 500,
) -> Discrepancy:
    """Return the energy coefficient of two samples: 0 for equal distributions, at most 1.

    `(2 E|a-b| - E|a-a'| - E|b-b'|) / (2 E|a-b|)`, unbiased in the numerator, hence below zero
    about half the time where the distributions are equal. Two normals that differ by d standard
    deviations give about d^2/4 for small d.

    Args:
        a, b: `(N, ...)` and `(M, ...)`, flattened to columns that share a unit.
        groups, permutations, seed, most: as for `kernel_mmd`.

    Example:
        >>> x = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> same, moved = energy(x[:100], x[100:]), energy(x[:100], x[100:] + 1)
        >>> same.value < same.null, moved.value > moved.null, moved.p_value < 0.05
        (True, True, True)
    """
    pooled, n = _pooled(a, b, most)
    return _compare(-torch.cdist(pooled, pooled), n, groups, permutations, seed, True)
