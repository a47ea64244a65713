r"""Standard noise within an interval (a, b]: its probability and its draws, far into the tails.

    log P(a < e <= b),     e = F^-1(F(a) + v (F(b) - F(a))) given a < e <= b,  v ~ uniform(0, 1)

for the logistic and the normal. Both are symmetric, so that an interval above zero is mirrored, and
all is done with log F in the lower tail, where float32 keeps its digits: F itself would be zero
below -104 (logistic) and -14 (normal).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.nn import functional as F


def uniform(like: Tensor) -> Tensor:
    """Draw from (0, 1), both ends excluded, of the shape and dtype of `like`."""
    info = torch.finfo(like.dtype)
    return torch.rand_like(like).clamp(info.tiny, 1 - info.eps)


class Logistic(Distribution):
    """Independent standard logistics, whose CDF is the sigmoid.

    Args:
        zero: zeros, whose shape, device and dtype the draws take.

    Example:
        >>> Logistic(torch.zeros(2)).log_prob(torch.zeros(3, 2)).exp()[0]
        tensor([0.2500, 0.2500])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, zero: Tensor) -> None:
        super().__init__(zero.shape, validate_args=False)
        self.zero = zero

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of the given shape, before the distribution's own."""
        v = uniform(self.zero.expand((*sample_shape, *self.zero.shape)))
        return v.log() - torch.log1p(-v)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, of the value's shape."""
        return F.logsigmoid(value) + F.logsigmoid(-value)


class Symmetric(ABC):
    """A standard distribution, symmetric about zero, by the logarithm of its CDF F."""

    @abstractmethod
    def prior(self, zero: Tensor) -> Distribution:
        """Return independent draws' density, of the shape, device and dtype of `zero`."""

    @abstractmethod
    def log_cdf(self, t: Tensor) -> Tensor:
        """Return log F(t)."""

    @abstractmethod
    def quantile(self, log_v: Tensor) -> Tensor:
        """Return F^-1(v) for log v < 0."""

    @abstractmethod
    def log_mass(self, a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
        """Return log P(a < e <= b); one end may be infinite, `gap` is b - a where none is."""

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Draw e given a < e <= b; one end may be infinite. Every draw keeps to the interval."""
        flip = a + b > 0
        low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
        top = self.log_cdf(high)
        v = uniform(top)
        e = self.quantile(top + torch.log(v + (1 - v) * torch.exp(self.log_cdf(low) - top)))
        return torch.where(flip, -e, e).maximum(a.nextafter(b)).minimum(b)


class LogisticNoise(Symmetric):
    """The standard logistic: log F(t) = -log(1 + e^-t).

    Example:
        >>> a = torch.tensor([-1000.0, 3.0])
        >>> e = LogisticNoise().between(a, a + 1)
        >>> bool(((a < e) & (e <= a + 1)).all())
        True
    """

    def prior(self, zero: Tensor) -> Distribution:
        """Return independent standard logistics."""
        return Independent(Logistic(zero), zero.dim(), validate_args=False)

    def log_cdf(self, t: Tensor) -> Tensor:
        """Return the logarithm of the sigmoid."""
        return F.logsigmoid(t)

    def quantile(self, log_v: Tensor) -> Tensor:
        """Return log v - log(1 - v)."""
        return log_v - torch.log(-torch.expm1(log_v))

    def log_mass(self, a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
        """Return log F(b) + log F(-a) + log(1 - e^-(b - a)), which cancels nowhere."""
        closed = a.isfinite() & b.isfinite()
        rest = torch.where(closed, torch.log(-torch.expm1(-gap)), 0.0)
        return F.logsigmoid(b) + F.logsigmoid(-a) + rest


class NormalNoise(Symmetric):
    """The standard normal.

    Example:
        >>> a = torch.tensor([-1000.0, 3.0])
        >>> e = NormalNoise().between(a, a + 1)
        >>> bool(((a < e) & (e <= a + 1)).all())
        True
    """

    def prior(self, zero: Tensor) -> Distribution:
        """Return N(0, I)."""
        return Independent(
            Normal(zero, torch.ones_like(zero), validate_args=False),
            zero.dim(),
            validate_args=False,
        )

    def log_cdf(self, t: Tensor) -> Tensor:
        """Return log F(t), by the scaled complementary error function below zero."""
        # torch.special.log_ndtr has the right value, but not the right gradient, below -100
        low, high = t.clamp(max=0) / math.sqrt(2), t.clamp(min=0) / math.sqrt(2)
        tail = torch.log(torch.special.erfcx(-low) / 2) - low.square()
        return torch.where(t < 0, tail, torch.log1p(-torch.erfc(high) / 2))

    def quantile(self, log_v: Tensor) -> Tensor:
        """Return F^-1(v), far out by two steps of Newton on log F(e) = log v."""
        s = (-2 * log_v).clamp(min=80) - math.log(2 * math.pi)
        tail = -torch.sqrt(s - s.log())
        for _ in range(2):
            slope = math.sqrt(2 / math.pi) / torch.special.erfcx(-tail / math.sqrt(2))
            tail = tail - (self.log_cdf(tail) - log_v.clamp(max=-40)) / slope
        return torch.where(log_v < -40, tail, torch.special.ndtri(log_v.exp()))

    def log_mass(self, a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
        """Return log F(b) + log(1 - F(a) / F(b)), or the density's integral where that is narrow.

        About the middle m, the integral is p(m) gap (1 + gap^2 (m^2 - 1) / 24).
        """
        flip = a + b > 0
        low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
        closed = low.isfinite()
        low = torch.where(closed, low, high - 1)  # an infinite end would make a gradient NaN
        top, least = self.log_cdf(high), -torch.finfo(gap.dtype).eps
        rest = torch.log(-torch.expm1((self.log_cdf(low) - top).clamp(max=least)))
        wide = top + torch.where(closed, rest, 0.0)
        middle = (low + high) / 2
        near = gap.log() - middle.square() / 2 - math.log(2 * math.pi) / 2
        near = near + gap.square() * (middle.square() - 1) / 24
        return torch.where(closed & (gap * (1 + middle.abs()) < 0.05), near, wide)
