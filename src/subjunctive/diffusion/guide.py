"""Guidance: how strongly a condition is obeyed.

By Bayes' rule the score of the condition is a difference of two scores,
`grad log p(c | x_t) = grad log p(x_t | c) - grad log p(x_t)`. Counting it w times instead of once
gives the score of `p(x_t) p(c | x_t)^w`. Scores are affine in the denoised estimate, so

    D_w(x_t, t) = D(x_t, t) + w (D(x_t, t, c) - D(x_t, t)).

w = 0 forgets the condition, w = 1 is the plain conditional model, w > 1 exaggerates. Both estimates
come from one network that has seen rows with the condition declared absent in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subjunctive.diffusion.denoise import Denoise, column


def guided(conditional: Denoise, unconditional: Denoise, weight: float | Tensor) -> Denoise:
    """Return a denoiser that obeys the condition `weight` times as strongly.

    Reference: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022),
    https://arxiv.org/abs/2207.12598 (whose w is `weight - 1` here).

    Args:
        conditional, unconditional: `(x_t, t) -> E[x_0 | x_t]`, with the condition and without.
        weight: 1 for the conditional estimate and 0 for the unconditional one (then the other is
            not evaluated), or one number a row, `(B,)`.

    Example:
        >>> d = guided(lambda x, t: x + 1, lambda x, t: x, weight=2.0)
        >>> d(torch.zeros(1, 1), torch.zeros(1))
        tensor([[2.]])
    """
    if not isinstance(weight, Tensor) and weight in (0, 1):
        return conditional if weight else unconditional

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        without = unconditional(x_t, t)
        return _extrapolate(conditional(x_t, t), without, weight)

    return denoise


def guided_together(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    condition: Tensor,
    absent: Tensor,
    weight: float | Tensor,
) -> Denoise:
    """Return the guided denoiser that evaluates both estimates in one pass of twice the batch.

    Args:
        denoiser: `(x_t, t, condition) -> E[x_0 | x_t, condition]`.
        condition: what to obey, `(B, F)`.
        absent: the condition that says that there is none, `(F,)` or `(B, F)`.
        weight: as in `guided`.

    Example:
        >>> d = guided_together(lambda x, t, c: x + c, torch.ones(3, 1), torch.zeros(1), 2.0)
        >>> d(torch.zeros(3, 1), torch.zeros(3)).flatten()
        tensor([2., 2., 2.])
    """
    absent = absent.expand_as(condition)
    if not isinstance(weight, Tensor) and weight in (0, 1):
        only = condition if weight else absent
        return lambda x_t, t: denoiser(x_t, t, only)
    both = torch.cat([condition, absent])

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        rows, x_0 = len(x_t), denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        return _extrapolate(x_0[:rows], x_0[rows:], weight)

    return denoise


def _extrapolate(with_it: Tensor, without: Tensor, weight: float | Tensor) -> Tensor:
    w = column(weight.to(without), without) if isinstance(weight, Tensor) else weight
    return without + w * (with_it - without)
