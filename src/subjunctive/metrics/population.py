r"""Are two populations of cells alike: as wholes, gene by gene, and in what changed most?

    E-distance      2 E|a - b| - E|a - a'| - E|b - b'|                     in the data's own unit
    MMD^2           E k(a, a') + E k(b, b') - 2 E k(a, b)                  k a mean of Gaussians
    Wasserstein     W_g = int_0^1 |F_g^-1(q) - G_g^-1(q)| dq               a gene at a time
    bimodality      the share of a gene's variance that one threshold explains: the largest
                    p (1 - p) (m_1 - m_0)^2 / s^2 over cuts; 2 / pi for a normal, 1 for two points
    R^2 of change   1 - sum_g (d^_g - d_g)^2 / sum_g d_g^2                 over the genes that
                    change most, d_g the true change of the mean

Means alone do not see heterogeneity: half the cells silent and half at 2 is not all cells at 1. The
first four see whole distributions. In the last, no change scores 0, and worse than that is negative.

Reference: scPerturb: harmonized single-cell perturbation data (Peidli et al., 2024),
https://doi.org/10.1038/s41592-023-02144-y (E-distance); A Kernel Two-Sample Test (Gretton, Borgwardt,
Rasch, Schoelkopf and Smola, 2012), https://jmlr.org/papers/v13/gretton12a.html; A Threshold Selection
Method from Gray-Level Histograms (Otsu, 1979), https://doi.org/10.1109/TSMC.1979.4310076; changes
instead of means: Deep-learning-based gene perturbation effect prediction does not yet outperform simple
linear baselines (Ahlmann-Eltze, Huber and Anders, 2025), https://doi.org/10.1038/s41592-025-02772-6
"""  # noqa: E501

from __future__ import annotations

import torch
from torch import Tensor

from subjunctive.metrics.discrepancy import Discrepancy, _compare, _pooled
from subjunctive.metrics.estimate import Estimate, jackknife

WIDTHS = (0.5, 1.0, 2.0)  # of the kernels, in median distances


def e_distance(
    a: Tensor, b: Tensor, groups: int = 20, permutations: int = 0, seed: int = 0, most: int = 1000
) -> Discrepancy:
    """Return the E-distance of two populations, in the data's unit; 0 if they are equal.

    It is unbiased, hence below zero about half the time where they are equal.

    Args:
        a, b: `(N, ...)` and `(M, ...)`, flattened to columns that share a unit.
        groups, permutations, seed, most: as for `kernel_mmd`.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> e_distance(x[:200], x[200:] + 9).value > 10 > e_distance(x[:200], x[200:]).value
        True
    """
    pooled, n = _pooled(a, b, most)
    return _compare(-torch.cdist(pooled, pooled), n, groups, permutations, seed, False)


def gaussian_mmd(
    a: Tensor, b: Tensor, groups: int = 20, permutations: int = 0, seed: int = 0, most: int = 1000
) -> Discrepancy:
    """Return the unbiased MMD^2 under Gaussians of half, one and two median distances.

    Args:
        a, b: `(N, ...)` and `(M, ...)`, flattened to columns that share a unit. The median is that
            of distances within b: let it be the truth, so that answers share their kernel.
        groups, permutations, seed, most: as for `kernel_mmd`.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> gaussian_mmd(x[:200], x[200:] + 1).value > 10 * gaussian_mmd(x[:200], x[200:]).value
        True
    """
    pooled, n = _pooled(a, b, most)
    square = torch.cdist(pooled, pooled).square()
    within = square[n:, n:]
    middle = within[~torch.eye(len(within), dtype=torch.bool, device=within.device)].median()
    middle = middle.clamp(min=1e-12)
    gram = torch.stack([torch.exp(-square / (2 * w**2 * middle)) for w in WIDTHS]).mean(0)
    return _compare(gram, n, groups, permutations, seed, False)


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance W_1 between two populations, gene by gene, `(G,)`, in their unit.

    Args:
        a, b: `(N, G)` and `(M, G)`.

    Example:
        >>> a, b = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 1.0]])
        >>> wasserstein(a, b)  # the same means: a point at 1 is no two points at 0 and 2
        tensor([1., 0.])
    """
    a, b = _columns(a, b)
    x, order = torch.cat([a, b]).sort(0)
    steps = torch.cat([a.new_full((len(a),), 1 / len(a)), a.new_full((len(b),), -1 / len(b))])
    ahead = steps[order].cumsum(0)[:-1]  # F - G between neighbours
    return (ahead.abs() * x.diff(dim=0)).sum(0).float()


def bimodality(x: Tensor) -> Tensor:
    """Return the share of every gene's variance that its best threshold explains, `(G,)`.

    About 0.64 for a normal, 0.75 for a uniform, 1 for two points; 0 for a constant.

    Args:
        x: `(N, G)`.

    Example:
        >>> bimodality(torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]]))
        tensor([1., 0.])
    """
    x, _ = _columns(x, x)
    n, ordered = len(x), x.sort(0).values
    below = ordered.cumsum(0)[:-1]
    k = torch.arange(1, n, dtype=x.dtype, device=x.device)[:, None]
    apart = (ordered.sum(0) - below) / (n - k) - below / k
    between = (k * (n - k) / n**2 * apart.square()).amax(0)
    variance = ordered.var(0, correction=0)
    return torch.where(variance > 1e-12, between / variance.clamp(min=1e-12), 0.0).float()


def changed_most(control: Tensor, truth: Tensor, most: int = 20) -> Tensor:
    """Return the numbers of the genes whose mean truly changes most, most first.

    Args:
        control, truth: populations `(N, G)` and `(M, G)`.
        most: how many.
    """
    control, truth = _columns(control, truth)
    return (truth.mean(0) - control.mean(0)).abs().argsort(descending=True, stable=True)[:most]


def change_r2(
    answer: Tensor, truth: Tensor, control: Tensor, most: int = 20, groups: int = 10
) -> Estimate:
    """Return R^2 of the change of the means, over the genes that truly change most.

    Args:
        answer, truth, control: populations `(N, G)`, `(M, G)`, `(L, G)`.
        most: how many genes; chosen once, by the truth.
        groups: of rows that the jackknife leaves out for the standard error.

    Raises:
        ValueError: if nothing truly changes.

    Example:
        >>> control = torch.zeros(4, 2)
        >>> truth, half = control + torch.tensor([2.0, 0.0]), control + torch.tensor([1.0, 0.0])
        >>> change_r2(half, truth, control).value, change_r2(control, truth, control).value
        (0.75, 0.0)
    """
    genes = changed_most(control, truth, most)
    a, b, c = (x.detach().double()[:, genes] for x in (answer, truth, control))
    if float((b.mean(0) - c.mean(0)).abs().max()) == 0:
        raise ValueError("no gene's mean changes: there is no change to explain; leave it out")

    def statistic(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        change = b.mean(0) - c.mean(0)
        return 1 - (a.mean(0) - b.mean(0)).square().sum() / change.square().sum()

    return jackknife(statistic, a, b, c, groups=groups)


def _columns(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(
            f"populations have shapes {tuple(a.shape)} and {tuple(b.shape)}; they need to be "
            "(N, G) and (M, G), of the same genes"
        )
    return a.detach().double(), b.detach().double()
