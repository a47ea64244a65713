"""Do the answers look like data? Distances between features of answers and of observed images.

The Frechet distance fits a Gaussian to the features of each set,

    d^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2),

with symmetric roots by eigenvalues, which never turn complex. Its bias falls with the number of
rows, so that only distances from equally many rows compare. The kernel distance is an unbiased
MMD^2. The feature function is passed in: here, the last hidden layer of a network that was trained
to read labels (`Predictor.features`), because features learned on photographs do not fit.

Reference: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
(Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, 2017), https://arxiv.org/abs/1706.08500;
Demystifying MMD GANs (Binkowski, Sutherland, Arbel and Gretton, 2018),
https://arxiv.org/abs/1801.01401
"""

from __future__ import annotations

import torch
from torch import Tensor

from subjunctive.metrics.discrepancy import Discrepancy, kernel_mmd
from subjunctive.metrics.estimate import Estimate, jackknife


def _roots(values: Tensor) -> Tensor:
    """Return the roots of eigenvalues, those that are zero but for rounding set to zero."""
    least = values.max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > least, values, 0.0).sqrt()


def _root(matrix: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * _roots(values)) @ vectors.T


def frechet_gaussian(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> Tensor:
    """Return the squared Frechet (2-Wasserstein) distance between two Gaussians.

    Args:
        mean_a, mean_b: `(D,)`.
        covariance_a, covariance_b: `(D, D)`, symmetric and positive semi-definite.

    Example:
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> frechet_gaussian(zero, one, zero + 3, 4 * one)  # 3^2 + 3^2 + 2 (1 - 2)^2
        tensor(20.)
    """
    root = _root(covariance_a)
    cross = _roots(torch.linalg.eigvalsh(root @ covariance_b @ root)).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * cross
    return (mean_a - mean_b).square().sum() + spread


def frechet(features_a: Tensor, features_b: Tensor, groups: int = 10) -> Estimate:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    Args:
        features_a, features_b: `(N, D)` and `(M, D)`.
        groups: groups of rows that the jackknife leaves out for the standard error.

    Raises:
        ValueError: for sets of other shapes, or of fewer than three rows.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> round(frechet(x, x + torch.tensor([3.0, 0.0])).value, 6)
        9.0
    """
    a, b = features_a.detach().double(), features_b.detach().double()
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 3:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; frechet needs (N, D) "
            "and (M, D), of at least 3 rows each"
        )

    def statistic(x: Tensor, y: Tensor) -> Tensor:
        return frechet_gaussian(x.mean(0), _covariance(x), y.mean(0), _covariance(y))

    return jackknife(statistic, a, b, groups=groups)


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def kernel_distance(features_a: Tensor, features_b: Tensor, groups: int = 20) -> Discrepancy:
    """Return the unbiased MMD^2 of features under the cubic kernel `(a . b / D + 1)^3`.

    Args:
        features_a, features_b: `(N, D)` and `(M, D)`, of unit scale; at most 1,000 rows are used.
        groups: groups of rows that the jackknife leaves out for the standard error.

    Example:
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> kernel_distance(x[:150], x[150:] + 2).value > 1
        True
    """
    return kernel_mmd(features_a, features_b, groups, most=1000)
