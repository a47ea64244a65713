"""Solve one equation a row, `function(x) = target`, without derivatives.

The iteration `x <- x + r`, `r = gain (target - function(x))`, converges where the slope of
`gain function` lies between 0 and 2, and slowly near the ends. Anderson's acceleration finds the
combination of the last changes of r that cancels r best, takes the same combination of the changes
of x, and so solves equations that bend in few directions in few iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def solve(
    function: Callable[[Tensor], Tensor],
    target: Tensor,
    guess: Tensor,
    gain: float,
    refine: int,
    tolerance: float,
    memory: int = 5,
) -> Tensor:
    """Solve `function(x) = target` for every row by Anderson-accelerated fixed-point iteration.

    Iterates `x + gain (target - function(x))`, corrected by the combination of the last changes
    that leaves the smallest residual, and returns each row's best.

    Reference: Anderson Acceleration for Fixed-Point Iterations (Walker and Ni, 2011),
    https://doi.org/10.1137/10078356X.

    Args:
        function: maps `(B, *shape)` to the same shape, row by row.
        target, guess: `(B, *shape)`.
        gain: one over a typical slope of the function.
        refine: how many corrections at most; 0 returns the guess.
        tolerance: root mean square of the last correction below which a row is done.
        memory: how many past changes are combined.

    Example:
        >>> solve(lambda x: x + x.cos() / 2, torch.ones(1, 1), torch.ones(1, 1), 1.0, 9, 1e-7)
        tensor([[0.5824]])
    """
    x = best = guess.reshape(len(guess), -1)
    least = torch.full_like(x[:, 0], math.inf)
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for k in range(refine + 1 if refine else 0):
        r = gain * (target - function(x.reshape(guess.shape))).reshape(x.shape)
        size = r.square().mean(1).sqrt()
        best = torch.where((size < least)[:, None], x, best)
        least = torch.minimum(least, size)
        if k == refine or bool((least <= tolerance).all()):
            break
        points, residuals = [*points[-memory:], x], [*residuals[-memory:], r]
        x = x + r
        if k:
            dr = torch.stack([q - p for p, q in pairwise(residuals)], 1)
            dx = torch.stack([q - p for p, q in pairwise(points)], 1)
            norm = dr.norm(dim=2, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            dr, dx = dr / norm, dx / norm
            gram = dr @ dr.mT + 1e-6 * torch.eye(dr.shape[1]).to(dr)
            share = torch.linalg.solve(gram, dr @ r[:, :, None])
            x = x - ((dx + dr).mT @ share)[:, :, 0]
    return best.reshape(guess.shape)
