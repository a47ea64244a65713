r"""Jumps along the probability-flow ODE: from any time to an earlier one in a single evaluation.

In `sample.py` the ODE's solution from x_t to an earlier time s is, exactly,

    x_s = a x_t + b E,    a = sigma_s / sigma_t,    b = alpha_s - alpha_t a,

with E the mean of the denoiser along the way, over alpha / sigma. A sampler approximates E by
denoisers at points of the way; a jump learns it, as `E = g(x_t, t, s)`:

    G(x_t, t, s) = a x_t + b g(x_t, t, s).

At s = t it is the identity whatever g is, the boundary condition that consistency models need, and
the slope of G in s is the ODE's there if and only if g(x_t, t, t) is the denoiser. What differs
from one family to the next is where jumps may land:

    consistency model   at 0
    phased              at the next of a few edges e_0 = 0 < e_1 < ... below t
    trajectory model    anywhere; g is told s

Several jumps make a sampler: from each stop t_k to where the next one, t_k+1, has noise left to be
added,

    land at the time whose sigma / alpha is sqrt(1 - gamma^2) that of t_k+1, and add gamma of its noise.

With gamma = 1 all noise is drawn anew at every stop, with gamma = 0 none is. What noise of a stop x
may have come from is plain where all of it is new: x itself, noised to that stop's level, less what
the jump before had left there.

Reference: Consistency Models (Song, Dhariwal, Chen and Sutskever, 2023),
https://arxiv.org/abs/2303.01469; Consistency Trajectory Models: Learning Probability Flow ODE
Trajectory of Diffusion (Kim et al., 2024), https://arxiv.org/abs/2310.02279; Phased Consistency Models
(Wang et al., 2024), https://arxiv.org/abs/2405.18407
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from subjunctive.diffusion.denoise import Denoise, column
from subjunctive.diffusion.sample import part
from subjunctive.diffusion.schedule import Schedule

# (x_t (B, ...), t (B,), s (B,)) -> the mean of the denoiser on the way from t to s
Estimate: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def jump(estimate: Estimate, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return G(x, t, s), `(B, ...)`, of rows at times t to times s, `(B,)` each.

    >>> from subjunctive.diffusion import Cosine
    >>> x, t = torch.ones(2, 3), torch.full((2,), 0.5)
    >>> torch.equal(jump(lambda x, t, s: 7 * x, Cosine(), x, t, t), x)
    True
    """
    a = schedule.sigma(s) / schedule.sigma(t)
    b = schedule.alpha(s) - schedule.alpha(t) * a
    return column(a, x) * x + column(b, x) * estimate(x, t, s)


def carry(
    denoise: Denoise, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, parts: int = 1,
    heun: bool = False, noise: float = 0.0,
) -> Tensor:  # fmt: skip
    """Carry rows from times t to times s with a denoiser, each row with steps of its own.

    Args:
        denoise: `(x_t, t) -> E[x_0 | x_t]`.
        schedule: its own.
        x: `(B, ...)`.
        t, s: `(B,)`.
        parts: how many steps, even in time.
        heun: whether a step is of second order, as in `Heun`, at two evaluations.
        noise: eta of `DDIM`: 0 is the ODE, 1 the ancestral SDE; drawn here.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> x, t = torch.ones(2, 1), torch.tensor([0.5, 0.9])
        >>> gauss = lambda x, t: x * Cosine().alpha(t)[:, None]  # of data that are N(0, I)
        >>> carry(gauss, Cosine(), x, t, 0 * t, 30, heun=True).round(decimals=2)
        tensor([[1.],
                [1.]])
    """
    for k in range(parts):
        u, v = t + (s - t) * (k / parts), t + (s - t) * ((k + 1) / parts)
        first = denoise(x, u)
        a, b = _mix(schedule, u, v)
        if noise:
            r = schedule.sigma(u) / schedule.alpha(u) * schedule.alpha(v) / schedule.sigma(v)
            std = noise * schedule.sigma(v) * (1 - r.clamp(min=1.0) ** -2).sqrt()
            a = (schedule.sigma(v).square() - std.square()).sqrt() / schedule.sigma(u)
            b = schedule.alpha(v) - schedule.alpha(u) * a
            drawn = column(std, x) * torch.randn_like(x)
            x = column(a, x) * x + column(b, x) * first + drawn
            continue
        ahead = column(a, x) * x + column(b, x) * first
        if heun:
            log = ((schedule.log_snr(v) - schedule.log_snr(u)) / 2).clamp(min=1e-4)
            c = 1 / (1 - (-log).exp()) - 1 / log
            ahead = ahead + column(b * c, x) * (denoise(ahead, v) - first)
        x = ahead
    return x


def _mix(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    a = schedule.sigma(s) / schedule.sigma(t)
    return a, schedule.alpha(s) - schedule.alpha(t) * a


def time_of(schedule: Schedule, log_snr: float) -> float:
    """Return the time at which a schedule has a log-SNR, or the nearest end.

    >>> from subjunctive.diffusion import Cosine
    >>> round(time_of(Cosine(), 0.0), 6)
    0.5
    """
    low, high = 0.0, 1.0  # the log-SNR falls with time
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64)
        if float(schedule.log_snr(middle)) > log_snr:
            low = float(middle)
        else:
            high = float(middle)
    return low if low < 1e-12 else (low + high) / 2


def edge_below(edges: Sequence[float], t: Tensor) -> Tensor:
    """Return the largest edge below each time, `(B,)`; at 0 it is 0.

    >>> edge_below((0.0, 0.5), torch.tensor([0.0, 0.5, 0.6, 1.0]))
    tensor([0.0000, 0.0000, 0.5000, 0.5000])
    """
    among = torch.tensor(edges, dtype=t.dtype, device=t.device)
    return among[(torch.searchsorted(among, t.contiguous()) - 1).clamp(min=0)]


@dataclass(frozen=True)
class _Stop:
    """A later stop: its alpha and sigma, what is there before noise is added, and how much is."""

    alpha: float
    sigma: float
    kept: Tensor
    added: float


class Jumps:
    """A few jumps from noise to data, deterministic in their noise.

    Args:
        schedule: alpha and sigma as functions of time; the estimate's own.
        stops: the times to jump from, falling, the first of them 1. With several edges there is
            no choice: jumps go from 1 through all of them.
        edges: where jumps may land, rising from 0; None for anywhere.
        gamma: the share of a later stop's noise that is drawn anew there: 1 where jumps land at 0
            alone, from 0 to 1 if they land anywhere. Going from edge to edge nothing is drawn.
        sigma_data: the standard deviation of the data.

    Raises:
        ValueError: for stops, edges and gamma that do not go together.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> jumps = Jumps(Cosine(), stops=(1.0, 0.6))
        >>> jumps.noise_shape((2,))
        {'start': (2,), 'steps': (1, 2)}
        >>> exact = lambda x, t, s: torch.ones_like(x)  # of data that are all 1
        >>> noise = {"start": torch.zeros(1, 2), "steps": torch.zeros(1, 1, 2)}
        >>> jumps(exact, noise).round(decimals=1)
        tensor([[1., 1.]])
    """

    def __init__(
        self,
        schedule: Schedule,
        stops: Sequence[float] = (1.0,),
        edges: Sequence[float] | None = (0.0,),
        gamma: float = 1.0,
        sigma_data: float = 1.0,
    ) -> None:
        self.schedule, self.gamma, self.sigma_data = schedule, gamma, sigma_data
        self.stops, self.edges = tuple(stops), None if edges is None else tuple(edges)
        falling = all(a > b for a, b in pairwise(self.stops)) and min(self.stops, default=0) > 0
        if not falling or self.stops[0] != 1.0:
            raise ValueError(f"jumps start from stops that fall from 1 and stay above 0; got "
                             f"stops={self.stops}")  # fmt: skip
        if not 0 <= gamma <= 1:
            raise ValueError(f"jumps have gamma={gamma}; it is a share, from 0 to 1")
        if self.edges is None:
            return
        if self.edges[:1] != (0.0,) or not all(a < b < 1 for a, b in pairwise(self.edges)):
            raise ValueError(f"edges rise from 0 and stay below 1; got edges={self.edges}")
        if len(self.stops) > 1 and self.edges == (0.0,) and gamma < 1:
            raise ValueError(
                f"jumps that land at 0 alone draw all noise anew: gamma=1, not {gamma}; let them "
                "land anywhere (edges=None) or at edges"
            )
        if len(self.edges) > 1 and len(self.stops) > 1:
            raise ValueError(
                f"jumps with edges={self.edges} go from 1 through all of them; leave out stops="
                f"{self.stops}"
            )

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape, without the batch, of every part of the noise; each is N(0, I)."""
        later = len(self.stops) - 1
        steps = {"steps": (later, *event_shape)} if later and self.gamma else {}
        return {"start": tuple(event_shape), **steps}

    def ways(self) -> list[tuple[float, float]]:
        """Return from which time to which each jump goes."""
        if self.edges is not None and len(self.edges) > 1:
            return list(pairwise([1.0, *reversed(self.edges)]))
        lands = []
        for stop in self.stops[1:]:
            if self.edges is not None or self.gamma == 1:
                lands.append(0.0)
            else:
                there = float(self.schedule.log_snr(torch.tensor(stop, dtype=torch.float64)))
                left = there - math.log1p(-(self.gamma**2))
                lands.append(time_of(self.schedule, left) if self.gamma else stop)
        return list(zip(self.stops, [*lands, 0.0], strict=True))

    def __call__(self, estimate: Estimate, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        return self._walk(estimate, part(noise, "start"), lambda k, _: part(noise, "steps")[:, k])

    def explain(
        self, estimate: Estimate, start: Tensor, x: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draw later noise such that every later stop is x, noised; return it and where it leads.

        A stop's noise carries what x has and the jump before has not, as loudly as the noise level
        lets it through. Where jumps lead to x anyway it is a draw of N(0, I).

        Args:
            estimate: of the jumps.
            start: the first noise, `(B, *shape)`.
            x: the data to be explained, of the same shape.
        """
        found: list[Tensor] = []

        def pick(k: int, at: _Stop) -> Tensor:
            noised = at.alpha * x + at.sigma * torch.randn_like(x)
            found.append((noised - at.kept) / at.added)
            return found[-1]

        landed = self._walk(estimate, start, pick)
        return {"steps": torch.stack(found, 1)} if found else {}, landed

    def _walk(
        self, estimate: Estimate, start: Tensor, pick: Callable[[int, _Stop], Tensor]
    ) -> Tensor:
        level = {t: self._numbers(t) for way in self.ways() for t in way}
        alpha, sigma = level[1.0]
        x = math.hypot(alpha * self.sigma_data, sigma) * start
        for k, (t, s) in enumerate(ways := self.ways()):
            x = jump(estimate, self.schedule, x, _all(x, t), _all(x, s))
            if k + 1 < len(ways) and (then := ways[k + 1][0]) != s:
                alpha, sigma = level[then]
                kept = alpha / level[s][0]
                added = math.sqrt(max(sigma**2 - (kept * level[s][1]) ** 2, 0.0))
                x = kept * x
                x = x + added * pick(k, _Stop(alpha, sigma, x, added))
        return x / level[0.0][0]

    def _numbers(self, t: float) -> tuple[float, float]:
        time = torch.tensor(t, dtype=torch.float64)
        return float(self.schedule.alpha(time)), float(self.schedule.sigma(time))


def _all(x: Tensor, t: float) -> Tensor:
    return x.new_full((len(x),), t)
