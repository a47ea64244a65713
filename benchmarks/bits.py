"""Bits per dimension of 256 levels, one number for every mechanism that has a bound.

On the levels themselves the bound is that of the likelihood. Of a density p, by dequantisation, for
r drawn from the cell of width w in each of D numbers,

    log P(x | pa) >= E[log p(x + r | pa)] + D log w,

where log p may in turn be a lower bound: of a VAE, or of a diffusion with one evaluation, whose
start e is drawn from its prior and whose code c from the encoder,

    log p(x | pa) >= E_{e, q(c | x)} log N(x; m(e, pa, c), s^2) - KL(q(c | x) || N(0, I)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from subjunctive.mechanism import Parents
from subjunctive.mechanisms import Quantised
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.mechanisms.likelihood import Levels


def diffusion_bound(mechanism: Diffusion, x: Tensor, parents: Parents) -> Tensor | None:
    """Return the bound of one evaluation, in nats, `(B,)`; None for a sampler."""
    if mechanism.sampler is not None:
        return None
    code, kl = None, x.new_zeros(len(x))
    if mechanism.encoder is not None:
        mean, log_variance = mechanism.posterior(x)
        code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
    m = mechanism.denoise(parents, code, len(x))(torch.randn_like(x), x.new_ones(len(x)))
    scale = mechanism.log_scale
    square = ((x - m) * torch.exp(-scale)).square() + math.log(2 * math.pi)
    return -(square / 2 + scale).flatten(1).sum(1) - kl


def bits(mechanism: Any, x: Tensor, parents: Parents, levels: int = 256) -> Tensor | None:
    """Return an upper bound on the bits of a number of standardised levels, one draw, `(B,)`.

    None where the mechanism has no bound.
    """
    v = mechanism.variable
    if isinstance(mechanism, Quantised):
        return mechanism.bits(x, parents)
    if isinstance(getattr(mechanism, "likelihood", None), Levels):
        log_p: Tensor | None = mechanism.bound(x, parents)
    else:
        width = (v.high - v.low) / v.scale / (levels - 1)
        drawn = x + width * (torch.rand_like(x) - 0.5)
        if isinstance(mechanism, Diffusion):
            log_p = diffusion_bound(mechanism, drawn, parents)
        else:
            bound = getattr(mechanism, "bound", None)
            log_p = None if bound is None else bound(drawn, parents)
        log_p = None if log_p is None else log_p + v.width * math.log(width)
    return None if log_p is None else -log_p / (v.width * math.log(2))
