r"""Acyclicity as a smooth penalty, and the acyclic graph of the strongest edges.

For a matrix A >= 0 of edge strengths, A[i, j] that of i -> j, two penalties are zero where A has no
cycle and positive where it has one, because tr A^k sums over the closed walks of length k:

    NOTEARS    h(A) = tr exp(A) - d                       = sum_k tr A^k / k!
    DAGMA      h(A) = -log det(s I - A) + d log s         = sum_k tr A^k / (k s^k),   rho(A) < s

The first grows like an exponential of A and its gradient dies with the length of a cycle; the
second needs its domain, the M-matrices, which s > d - 1 guarantees for A in [0, 1]. Signed weights
enter as W o W. `objectives.learned_graph` uses them.

Reference: DAGs with NO TEARS: Continuous Optimization for Structure Learning (Zheng, Aragam,
Ravikumar and Xing, 2018), https://arxiv.org/abs/1803.01422; DAGMA: Learning DAGs via M-matrices and
a Log-Determinant Acyclicity Characterization (Bello, Aragam and Ravikumar, 2022),
https://arxiv.org/abs/2209.08037
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subjunctive.graph import Graph

Penalty = Callable[[Tensor], Tensor]


def _square(strengths: Tensor) -> None:
    if strengths.dim() != 2 or strengths.shape[0] != strengths.shape[1]:
        raise ValueError(f"strengths of edges are a square matrix, got {tuple(strengths.shape)}")
    if bool((strengths < 0).any()):
        raise ValueError(
            "strengths of edges are not negative: give probabilities, or weights squared"
        )


def notears(strengths: Tensor) -> Tensor:
    """Return tr exp(A) - d, zero if and only if no cycle stands.

    Args:
        strengths: A `(d, d)`, not negative; A[i, j] is of i -> j.

    Raises:
        ValueError: for another shape, or a negative strength.

    Example:
        >>> notears(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), notears(torch.ones(2, 2)) > 0
        (tensor(0.), tensor(True))
    """
    _square(strengths)
    return strengths.matrix_exp().trace() - len(strengths)


def dagma(strengths: Tensor, s: float | None = None) -> Tensor:
    """Return -log det(s I - A) + d log s, zero if and only if no cycle stands.

    Args:
        strengths: A `(d, d)`, not negative, with all eigenvalues within s.
        s: the domain's size; d, which holds all probabilities without self-loops, if None.

    Raises:
        ValueError: for another shape, a negative strength, or an A outside the domain.

    Example:
        >>> dagma(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), dagma(torch.full((2, 2), 0.5)) > 0
        (tensor(0.), tensor(True))
    """
    _square(strengths)
    size = float(len(strengths)) if s is None else s
    radius = float(torch.linalg.eigvals(strengths.detach()).abs().max()) if len(strengths) else 0.0
    if not radius < size:
        raise ValueError(
            f"dagma() needs eigenvalues below s={size:g}, the largest is {radius:.3g}: give a "
            "larger s, or shrink the strengths"
        )
    eye = torch.eye(len(strengths), dtype=strengths.dtype, device=strengths.device)
    return 0 - torch.linalg.slogdet(eye - strengths / size).logabsdet


def strongest(strengths: Any, names: Sequence[str], threshold: float = 0.5) -> Graph:
    """Return the acyclic graph of the strongest edges above a threshold.

    Edges enter from the strongest to the weakest; one that would close a cycle is left out.

    Args:
        strengths: `(d, d)`, [i, j] of names[i] -> names[j].
        names: of the nodes.
        threshold: an edge is stronger than this.

    Raises:
        ValueError: if strengths and names do not fit, or a strength is NaN.

    Example:
        >>> print(strongest([[0.0, 0.9, 0.0], [0.8, 0.0, 0.7], [0.0, 0.2, 0.0]], ["a", "b", "c"]))
        a -> b; b -> c
    """
    matrix = np.asarray(torch.as_tensor(strengths).detach().double().cpu())
    d = len(names)
    if matrix.shape != (d, d) or np.isnan(matrix).any():
        raise ValueError(f"{d} names need strengths of shape {(d, d)} without NaN, got "
                         f"{matrix.shape}")  # fmt: skip
    reach = np.eye(d, dtype=bool)  # reach[i, j]: a path leads from i to j
    edges = []
    for i, j in zip(*np.unravel_index(np.argsort(-matrix, axis=None, kind="stable"), (d, d)),
                    strict=True):  # fmt: skip
        if matrix[i, j] > threshold and not reach[j, i]:
            edges.append((names[i], names[j]))
            reach |= np.outer(reach[:, i], reach[j])
    return Graph.from_edges(edges, names)
