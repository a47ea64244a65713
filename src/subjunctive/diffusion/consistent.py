r"""What consistency training draws and how it measures: grids of times, and distances.

A grid cuts [0, 1] into N intervals, even in time (for `EDM` that is Karras' spacing). A row is
given one of them, from u up to t, and the jump from x_t is to land where the one from x_u does. Few
intervals bias what is learned and let it settle; many are exact in the limit, and noisy: N grows
with the steps taken. How often an interval is drawn follows the density of its log noise level,
rho = sigma / alpha,

    p(u, t) ~ Phi((log rho_t - m) / d) - Phi((log rho_u - m) / d).

A distance is of one row's difference v, over all of its entries:

    squared |v|^2,    pseudo-Huber sqrt(|v|^2 + c^2) - c,    Cauchy log(1 + |v|^2 / (2 c^2)).

The further down this list, the less an outlier counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from subjunctive.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Grid:
    """How many intervals there are after how many steps, and how often each is drawn.

    Reference: Improved Techniques for Training Consistency Models (Song and Dhariwal, 2024),
    https://arxiv.org/abs/2310.14189: intervals double from `first` to `last`, each number is kept
    for the same share of the steps; the older `root` growth: Consistency Models (Song et al.,
    2023), https://arxiv.org/abs/2303.01469.

    Args:
        first, last: numbers of intervals.
        steps: over which they grow; None for `last` from the beginning.
        noise: mean and deviation of the log noise level; None for every interval alike.
        root: let the square of the number grow linearly instead.

    Raises:
        ValueError: for numbers that do not grow from 2.

    Example:
        >>> [Grid(10, 1280, steps=800).intervals(k) for k in (0, 99, 100, 799, 9999)]
        [10, 10, 20, 1280, 1280]
    """

    first: int = 10
    last: int = 1280
    steps: int | None = None
    noise: tuple[float, float] | None = (-1.1, 2.0)
    root: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 2 <= self.first <= self.last or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"a grid has 2 intervals or more, grows, and does so over 1 step or more; got "
                f"first={self.first}, last={self.last}, steps={self.steps}"
            )
        if self.noise is not None and not self.noise[1] > 0:
            raise ValueError(f"the deviation of the log noise level is positive, not {self.noise}")

    def intervals(self, step: int) -> int:
        """Return N after that many steps."""
        if self.steps is None:
            return self.last
        done = min(step / self.steps, 1.0)
        if self.root:
            return min(round(math.sqrt(self.first**2 + done * (self.last**2 - self.first**2))),
                       self.last)  # fmt: skip
        stages = math.floor(math.log2(self.last / self.first)) + 1
        return min(int(self.first * 2 ** math.floor(done * stages)), self.last)

    def draw(
        self, rows: int, step: int, schedule: Schedule, like: Tensor, skip: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return times t and u < t of each row, `(B,)`; the device and dtype are `like`'s.

        Args:
            rows, step: how many rows; after how many steps.
            schedule: for the noise levels.
            like: any tensor.
            skip: how many intervals lie between u and t, as far as there are so many.
        """
        n = self.intervals(step)
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        weight = torch.ones(n, dtype=torch.float64)
        if self.noise is not None:
            mean, deviation = self.noise
            level = -schedule.log_snr(times) / 2
            weight = torch.special.ndtr((level - mean) / deviation).diff()
        high = 1 + torch.multinomial(weight.to(like), rows, replacement=True)
        among = times.to(like)
        return among[high], among[(high - skip).clamp(min=0)]


class Distance(ABC):
    """A distance of rows from zero, `(B, ...) -> (B,)`, that may hang on the grid's fineness."""

    @abstractmethod
    def __call__(self, v: Tensor, intervals: int) -> Tensor:
        """Return the distance of each row."""


class Squared(Distance):
    """`|v|^2`."""

    def __call__(self, v: Tensor, intervals: int) -> Tensor:
        """Return the distance of each row."""
        return _square(v)


class PseudoHuber(Distance):
    """`sqrt(|v|^2 + c^2) - c`: squared near zero, |v| far away.

    Args:
        c: where it turns; `0.00054 sqrt(entries)` if None, as iCT has it.

    Example:
        >>> PseudoHuber(1.0)(torch.tensor([[0.0, 0.0], [30.0, 40.0]]), 10).round(decimals=2)
        tensor([ 0.0000, 49.0100])
    """

    def __init__(self, c: float | None = None) -> None:
        self.c = c

    def __call__(self, v: Tensor, intervals: int) -> Tensor:
        """Return the distance of each row."""
        c = 0.00054 * math.sqrt(v[0].numel()) if self.c is None else self.c
        return (_square(v) + c**2).sqrt() - c


class Cauchy(Distance):
    """`log(1 + |v|^2 / (2 c^2))`: what is far away hardly counts.

    Args:
        c: the scale; if None `exp(-1.18 log(N - 1) - 0.72)` with N intervals, which shrinks as the
            grid gets finer and with it the differences.

    Reference: Improved Training Technique for Latent Consistency Models (Dao, Doan, Liu, Le and
    Metaxas, 2025), https://arxiv.org/abs/2502.01441

    Example:
        >>> Cauchy(1.0)(torch.tensor([[0.0, 0.0], [30.0, 40.0]]), 10).round(decimals=2)
        tensor([0.0000, 7.1300])
    """

    def __init__(self, c: float | None = None) -> None:
        self.c = c

    def __call__(self, v: Tensor, intervals: int) -> Tensor:
        """Return the distance of each row."""
        c = math.exp(-1.18 * math.log(max(intervals - 1, 1)) - 0.72) if self.c is None else self.c
        return torch.log1p(_square(v) / (2 * c**2))


def _square(v: Tensor) -> Tensor:
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return wide.square().reshape(len(v), -1).sum(1)
