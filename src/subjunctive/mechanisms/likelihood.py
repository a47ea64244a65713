r"""Likelihoods of a decoder's output, each with its own residual noise.

A decoder says what every entry of x may be, p(x | h), h its output for that entry; the residual r
says which of these it is:

    x = f(h, r),   r ~ a density that knows nothing of h,   abduction: a draw of p(r | x, h)

    Gaussian       x = m + s r                       r normal,   r = (x - m) / s
    Bernoulli      x = high if r > -l, else low      r logistic, cut off at -l given x
    Discretised    x = v_k for t_k < r <= t_{k+1}    r logistic or normal, within the cell given x

with levels v_0 < ... < v_{K-1}, evenly spaced, and t_k = ((v_{k-1} + v_k) / 2 - m) / s, open at
both ends: the level next to m + s r. This is the levels' inverse CDF at a uniform noise F(r), told
by r, which in float32 reaches far into the tails. Forward and abduction compare r with thresholds
that are computed alike. A decoder's last digits hang on the batch that a row is in; so what is
abducted keeps clear of the thresholds, and gives x again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from subjunctive.mechanisms.truncated import LogisticNoise, NormalNoise, Symmetric
from subjunctive.variable import Variable, nearest

CLEAR = 2.0**-10  # of a cell, at either end: what is abducted comes no nearer to the next level


def soft(raw: Tensor, low: float, high: float) -> Tensor:
    """Keep a number within (low, high), nearly as it is about the middle.

    >>> soft(torch.tensor([0.0, 1.0, 100.0]), -7, 7)
    tensor([0.0000, 0.9933, 7.0000])
    """
    middle, half = (low + high) / 2, (high - low) / 2
    return middle + half * torch.tanh((raw - middle) / half)


def _sum(entries: Tensor) -> Tensor:
    return entries.reshape(len(entries), -1).sum(1)


class Likelihood(nn.Module, ABC):
    """p(x | h), independent for every entry of x, and the residual r of x = f(h, r).

    `width` is how many numbers an entry the decoder gives: h has shape `(B, width, *shape)`, x and
    r have `(B, *shape)`. All values are standardised.
    """

    width: int

    @abstractmethod
    def prior(self, zero: Tensor) -> Distribution:
        """Return the residual's density, of the event shape, device and dtype of `zero`."""

    @abstractmethod
    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Return x, deterministic."""

    @abstractmethod
    def abduct(self, h: Tensor, x: Tensor) -> Tensor:
        """Return a draw of p(r | x, h)."""

    @abstractmethod
    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | h), `(B,)`, in nats."""

    @abstractmethod
    def mean(self, h: Tensor) -> Tensor:
        """Return E[x | h]: the value without its residual."""


class Gaussian(Likelihood):
    """x = m + s r, r ~ N(0, 1).

    Args:
        scale: s itself, in standard deviations of the node; `learned`, one for all entries; or
            `predicted`, by the decoder for every entry, within e^-7 and e^7.

    Raises:
        ValueError: for another word, or a number that is not positive.

    Example:
        >>> likelihood, h = Gaussian(0.5), torch.zeros(1, 1, 3)
        >>> likelihood(h, likelihood.abduct(h, torch.tensor([[0.0, 1.0, 2.0]])))
        tensor([[0., 1., 2.]])
    """

    def __init__(self, scale: float | Literal["learned", "predicted"] = "learned") -> None:
        super().__init__()
        if isinstance(scale, str):
            if scale not in ("learned", "predicted"):
                hint = nearest(scale, ("learned", "predicted"))
                raise ValueError(
                    f"Gaussian has scale={scale!r}: no number, nor a word for one.{hint}"
                )
        elif not 0 < scale < math.inf:
            raise ValueError(f"Gaussian has scale={scale}; a standard deviation is positive")
        self.scale = scale
        self.width = 2 if scale == "predicted" else 1
        self.log_scale = nn.Parameter(torch.tensor(-1.0)) if scale == "learned" else None

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-scale."""
        if self.log_scale is not None:
            return h[:, 0], self.log_scale
        return h[:, 0], soft(h[:, 1], -7, 7) if self.width == 2 else h.new_tensor(self.scale).log()

    def prior(self, zero: Tensor) -> Distribution:
        """Return N(0, I)."""
        return NormalNoise().prior(zero)

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Return m + s r."""
        mean, log_scale = self._split(h)
        return mean + log_scale.exp() * r

    def abduct(self, h: Tensor, x: Tensor) -> Tensor:
        """Return (x - m) / s, the only residual that gives x."""
        mean, log_scale = self._split(h)
        return (x - mean) / log_scale.exp()

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """Return log N(x; m, s^2), summed over the entries."""
        mean, log_scale = self._split(h)
        square = ((x - mean) * torch.exp(-log_scale)).square()
        return -_sum(square / 2 + log_scale + math.log(2 * math.pi) / 2)

    def mean(self, h: Tensor) -> Tensor:
        """Return m."""
        return h[:, 0]


class Levels(Likelihood):
    """What likelihoods of evenly spaced levels share: `levels` of them, from `low` to `high`."""

    def __init__(self, levels: int, low: float, high: float) -> None:
        super().__init__()
        if not 2 <= levels <= 65536:
            raise ValueError(
                f"{type(self).__name__} has levels={levels}; give 2 to 65536 (16 bits)"
            )
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"{type(self).__name__} needs low < high, got {low} and {high}")
        self.levels, self.low, self.high = levels, low, high
        self.step = (high - low) / (levels - 1)

    def value(self, k: Tensor) -> Tensor:
        """Return the levels of these numbers 0, 1, ..., given in floating point."""
        last = self.levels - 1
        return (self.low * (last - k) + self.high * k) / last

    def level(self, x: Tensor) -> Tensor:
        """Return the number of the level that every entry is, in floating point.

        Raises:
            ValueError: if an entry is at none.
        """
        k = ((x - self.low) / self.step).round().clamp(0, self.levels - 1)
        slack = 16 * torch.finfo(torch.float32).eps * max(abs(self.low), abs(self.high))
        off = ~((x - self.value(k)).abs() <= slack)
        if bool(off.any()):
            raise ValueError(
                f"{type(self).__name__} knows {self.levels} levels from {self.low:g} to "
                f"{self.high:g}, in standardised units; {int(off.sum())} of {x.numel()} entries "
                f"are at none, {float(x[off][0]):g} for one. Give the levels that the data have "
                f"({type(self).__name__}.of(variable) reads low and high), or take "
                "Gaussian() for values between them"
            )
        return k


def _ends(variable: Variable, what: str) -> tuple[float, float]:
    """Return a variable's standardised range."""
    if variable.low is None or variable.high is None:
        raise ValueError(
            f"{what}.of reads the levels from low and high of {variable.name!r}, which has low="
            f"{variable.low}, high={variable.high}; give it both, in its own unit"
        )
    low, high = ((end - variable.loc) / variable.scale for end in (variable.low, variable.high))
    return low, high


class Bernoulli(Levels):
    """x is one of two values: high where r > -l, r logistic, hence with probability sigmoid(l).

    Args:
        low, high: the two values, standardised.

    Example:
        >>> likelihood, x = Bernoulli(), torch.tensor([[0.0, 1.0]])
        >>> h = torch.tensor([[[30.0, -30.0]]])
        >>> likelihood(h, likelihood.abduct(h, x)), likelihood.log_prob(h, x)
        (tensor([[0., 1.]]), tensor([-60.]))
    """

    noise: ClassVar[Symmetric] = LogisticNoise()
    width = 1

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(2, low, high)

    @classmethod
    def of(cls, variable: Variable) -> Bernoulli:
        """Return the likelihood of a variable that is either at its low or at its high end."""
        return cls(*_ends(variable, cls.__name__))

    def prior(self, zero: Tensor) -> Distribution:
        """Return independent standard logistics."""
        return self.noise.prior(zero)

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Return high where r > -l, low elsewhere."""
        return self.value((r > -h[:, 0]).to(r.dtype))

    def abduct(self, h: Tensor, x: Tensor) -> Tensor:
        """Return logistics that are cut off at -l, clear of it by `CLEAR`."""
        up, cut = self.level(x) > 0, -h[:, 0]
        clear = CLEAR / 64 * (1 + cut.abs())
        low = torch.where(up, cut + clear, -torch.inf)
        return self.noise.between(low, torch.where(up, torch.inf, cut - clear))

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """Return log sigmoid(l) where x is high, log sigmoid(-l) where it is low, summed."""
        return _sum(F.logsigmoid(torch.where(self.level(x) > 0, h[:, 0], -h[:, 0])))

    def mean(self, h: Tensor) -> Tensor:
        """Return low + (high - low) sigmoid(l)."""
        return self.value(h[:, 0].sigmoid())


class Discretised(Levels):
    """What both discretised likelihoods share: x = v_k for t_k < r <= t_{k+1}.

    The decoder gives a location, within two ranges beyond either end, and a log-scale, of an eighth
    of a step to eight ranges, for every entry.
    """

    noise: ClassVar[Symmetric]
    width = 2

    def __init__(self, levels: int = 256, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(levels, low, high)

    @classmethod
    def of(cls, variable: Variable, levels: int = 256) -> Self:
        """Return the likelihood of levels from a variable's low to its high end.

        >>> image = Variable("x", (1, 8, 8), loc=0.5, scale=0.5, low=0.0, high=1.0)
        >>> likelihood = DiscretisedLogistic.of(image)
        >>> likelihood.levels, likelihood.low, likelihood.high
        (256, -1.0, 1.0)
        """
        return cls(levels, *_ends(variable, cls.__name__))

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale."""
        span = self.high - self.low
        loc = soft(h[:, 0], self.low - 2 * span, self.high + 2 * span)
        return loc, soft(h[:, 1], math.log(self.step / 8), math.log(8 * span)).exp()

    def _edge(self, k: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Return t_k: below it lie the levels before k."""
        t = (self.value(k - 0.5) - loc) / scale
        return t.masked_fill(k <= 0, -torch.inf).masked_fill(k >= self.levels, torch.inf)

    def prior(self, zero: Tensor) -> Distribution:
        """Return independent standard noise."""
        return self.noise.prior(zero)

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Return the level next to m + s r."""
        loc, scale = self._split(h)
        k = ((loc + scale * r - self.low) / self.step).round().clamp(0, self.levels - 1)
        # rounding may have taken it across a threshold: these decide, here as in abduction
        k = k - (r <= self._edge(k, loc, scale)).to(k)
        k = k + (r > self._edge(k + 1, loc, scale)).to(k)
        return self.value(k)

    def abduct(self, h: Tensor, x: Tensor) -> Tensor:
        """Return noise within the cell of x, clear of its ends by `CLEAR`."""
        (loc, scale), k = self._split(h), self.level(x)
        low, high = self._edge(k, loc, scale), self._edge(k + 1, loc, scale)
        clear = CLEAR * self.step / scale
        return self.noise.between(low + clear, high - clear)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """Return log P(t_k < r <= t_{k+1}), summed over the entries."""
        (loc, scale), k = self._split(h), self.level(x)
        a, b = self._edge(k, loc, scale), self._edge(k + 1, loc, scale)
        return _sum(self.noise.log_mass(a, b, self.step / scale))

    def mean(self, h: Tensor) -> Tensor:
        """Return low + step sum_k P(r > t_k)."""
        (loc, scale), total = self._split(h), torch.zeros_like(h[:, 0])
        for k in range(1, self.levels):
            edge = (self.low + (k - 0.5) * self.step - loc) / scale
            total = total + self.noise.log_cdf(-edge).exp()
        return self.low + self.step * total


class DiscretisedLogistic(Discretised):
    """Evenly spaced levels, logistic about the decoder's location.

    Reference: PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and
    Other Modifications (Salimans, Karpathy, Chen and Kingma, 2017),
    https://arxiv.org/abs/1701.05517

    Args:
        levels: how many; 256 for 8 bits.
        low, high: the first and the last, standardised.

    Raises:
        ValueError: for fewer than two levels, or more than 65,536, or an empty range.

    Example:
        >>> likelihood, h = DiscretisedLogistic(levels=3), torch.zeros(1, 2, 2)
        >>> x = torch.tensor([[0.0, 0.5]])
        >>> likelihood(h, likelihood.abduct(h, x))
        tensor([[0.0000, 0.5000]])
    """

    noise = LogisticNoise()


class DiscretisedGaussian(Discretised):
    """Evenly spaced levels, normal about the decoder's location.

    Reference: Denoising Diffusion Probabilistic Models, section 3.3 (Ho, Jain and Abbeel, 2020),
    https://arxiv.org/abs/2006.11239

    Args:
        levels: how many; 256 for 8 bits.
        low, high: the first and the last, standardised.

    Raises:
        ValueError: for fewer than two levels, or more than 65,536, or an empty range.

    Example:
        >>> likelihood, h = DiscretisedGaussian(levels=3), torch.zeros(1, 2, 2)
        >>> x = torch.tensor([[0.0, 0.5]])
        >>> likelihood(h, likelihood.abduct(h, x))
        tensor([[0.0000, 0.5000]])
    """

    noise = NormalNoise()
