"""Samplers: from noise to data and, step for step, back again.

Given `D(x_t, t) = E[x_0 | x_t]`, the probability-flow ODE carries noise to data without a draw. In
the coordinates y = x / alpha and s = sigma / alpha, where every schedule looks alike, it reads

    dy/ds = (y - D) / s,    or, divided by s,    d(y / s) = D d(1 / s).

From t to an earlier time, with r = s_t / s_s the ratio of the noise levels, its solution is

    x_s = a x_t + b mean(D),    a = sigma_s / sigma_t,    b = alpha_s - alpha_t a,

where D is averaged over 1/s. With D at the start of the step this is DDIM, of order one. With D linear
in log s between both ends the average is `D_t + c (D_s - D_t)`, `c = r / (r - 1) - 1 / log r`, of order
two; here D_s is taken at DDIM's x_s, as in Heun's rule. (EDM lets the noise estimate be linear in
s instead, `c = r / 2`: the same for short steps, but without bound for long ones.)

**Backward.** A step is a map `x_s = step(x_t)`. Running the ODE backward explicitly gives an x_t whose
step misses x_s, and misses add up. Here that x_t is only the first guess for solving `step(x_t) = x_s`,
so the round trip is exact up to the solver's tolerance, whatever the number of steps.

**Stochastic.** With eta > 0 part of the noise estimate is replaced by a draw z of its own,
`x_s = mean(x_t, D) + std z`. A path of x_t drawn from q( . | x_0) then determines every
`z = (x_s - mean(x_t, D)) / std`: noise that reproduces x_0 exactly, however good D is.
"""  # noqa: E501

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from subjunctive.diffusion.denoise import Denoise
from subjunctive.diffusion.schedule import Schedule
from subjunctive.diffusion.solve import solve


@dataclass(frozen=True)
class Level:
    """The numbers of a schedule at one time."""

    t: float
    alpha: float
    sigma: float
    sigma_data: float

    @property
    def scale(self) -> float:
        """Return the standard deviation of x_t."""
        return math.hypot(self.alpha * self.sigma_data, self.sigma)

    def since(self, first: Level) -> Level:
        """Return what has been kept and what noise has been added since a less noisy level."""
        kept = self.alpha / first.alpha
        added = math.sqrt(max(self.sigma**2 - (kept * first.sigma) ** 2, 0.0))
        return Level(self.t, kept, added, self.sigma_data)

    def denoise(self, denoise: Denoise, x: Tensor) -> Tensor:
        """Return the estimate of the data for rows x that are as noisy as this level."""
        return denoise(x, x.new_full((len(x),), self.t))


Step = Callable[..., Tensor]  # (denoise, x, t, s) -> x at s


def mix(t: Level, s: Level) -> tuple[float, float]:
    """Return a and b of DDIM's step `x_s = a x_t + b D`."""
    a = s.sigma / t.sigma
    return a, s.alpha - t.alpha * a


def ddim_step(denoise: Denoise, x: Tensor, t: Level, s: Level) -> Tensor:
    """Move x from level t to level s with the estimate at t; s may be the noisier one."""
    a, b = mix(t, s)
    return a * x + b * t.denoise(denoise, x)


def heun_step(denoise: Denoise, x: Tensor, t: Level, s: Level) -> Tensor:
    """Move x from level t to level s with the estimates at both; s may be the noisier one."""
    a, b = mix(t, s)
    r = t.sigma * s.alpha / (s.sigma * t.alpha)
    c = r / (r - 1) - 1 / math.log(r)
    first = t.denoise(denoise, x)
    ahead = a * x + b * first
    return ahead + b * c * (s.denoise(denoise, ahead) - first)


class Sampler(ABC):
    """A way from noise to data along a schedule, deterministic in its noise, and its way back.

    Args:
        schedule: alpha and sigma as functions of time; the denoiser's own.
        steps: how many steps from `start` to 0.
        start: the time to begin at; below 1, part of the data is in the noise, which is x_start
            over its standard deviation `sqrt(alpha^2 sigma_data^2 + sigma^2)`.
        sigma_data: the standard deviation of the data.
    """

    def __init__(self, schedule: Schedule, steps: int, start: float, sigma_data: float) -> None:
        self.schedule, self.steps, self.start, self.sigma_data = schedule, steps, start, sigma_data
        self.levels()

    def levels(self) -> list[Level]:
        """Return the `steps + 1` levels to stop at, from `start` to 0."""
        return [Level(t, alpha, sigma, self.sigma_data) for t, alpha, sigma in self.numbers()]

    def numbers(self) -> list[list[float]]:
        """Return t, alpha and sigma of the levels."""
        times = self.schedule.times(self.steps, self.start)
        table = torch.stack([times, self.schedule.alpha(times), self.schedule.sigma(times)], 1)
        numbers: list[list[float]] = table.tolist()
        return numbers

    @abstractmethod
    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape, without the batch, of every part of the noise; each is N(0, I)."""

    @abstractmethod
    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for.

        Args:
            denoise: `(x_t, t) -> E[x_0 | x_t]` with x_t `(B, *event_shape)` and t `(B,)`.
            noise: part by name, `(B, *shape)` with the shapes of `noise_shape`.
        """

    @abstractmethod
    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return noise that `__call__` turns into x_0 `(B, *event_shape)`; keeps no gradients."""


def follow(sampler: Sampler, step: Step, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
    """Take all steps of a deterministic sampler from its noise to the data."""
    levels = sampler.levels()
    x = levels[0].scale * part(noise, "start")
    for t, s in pairwise(levels):
        x = step(denoise, x, t, s)
    return x / levels[-1].alpha


@torch.no_grad()
def retrace(
    sampler: Sampler, step: Step, denoise: Denoise, x_0: Tensor, refine: int, tolerance: float
) -> dict[str, Tensor]:
    """Undo all steps of a deterministic sampler, each solved for where it came from."""
    levels = sampler.levels()
    x = levels[-1].alpha * x_0
    for s, t in pairwise(reversed(levels)):
        a, b = mix(t, s)
        slope = a + b * t.alpha * (t.sigma_data / t.scale) ** 2  # of a step on Gaussian data
        guess, again = step(denoise, x, s, t), partial(step, denoise, t=t, s=s)
        x = solve(again, x, guess, 1 / slope, refine, tolerance * t.scale)
    return {"start": x / levels[0].scale}


def part(noise: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a part of the noise, or raise a `KeyError` that says what was given."""
    if name not in noise:
        raise KeyError(f"the sampler's noise has no part {name!r}, only {sorted(noise)}")
    return noise[name]


class DDIM(Sampler):
    """First order; deterministic at `eta = 0`, DDPM's ancestral sampling at `eta = 1`.

    `std = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)` of every step is drawn, and
    the noise estimate makes up the rest of sigma_s. The noise is `start`, and with eta > 0 `steps`,
    one draw a step.

    Reference: Denoising Diffusion Implicit Models (Song, Meng and Ermon, 2021),
    https://arxiv.org/abs/2010.02502; inversion with eta > 0: Unifying Diffusion Models' Latent Space
    (CycleDiffusion; Wu and De la Torre, 2022), https://arxiv.org/abs/2210.05559, or, `independent`,
    An Edit Friendly DDPM Noise Space (Huberman-Spiegelglas, Kulikov and Michaeli, 2024),
    https://arxiv.org/abs/2304.06140.

    Args:
        schedule, steps, start, sigma_data: see `Sampler`.
        eta: how much of each step's noise is drawn.
        refine: with eta = 0, how many corrections a step of the inversion gets at most, each an
            evaluation of the denoiser; 0 is the usual first-order inversion.
        tolerance: relative correction at which it stops.
        independent: with eta > 0, whether the path to be explained has all x_t drawn
            independently given x_0 (step noises larger than N(0, I), so more of x_0 is in them)
            instead of along the sampler's own path (N(0, I) for a perfect denoiser).

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> ddim = DDIM(Cosine(), steps=8)
        >>> denoise = lambda x, t: x * Cosine().alpha(t)[:, None]  # of data that are N(0, I)
        >>> noise = {"start": torch.tensor([[0.5, -1.0]])}
        >>> ddim.invert(denoise, ddim(denoise, noise))
        {'start': tensor([[ 0.5000, -1.0000]])}
    """  # noqa: E501

    def __init__(
        self,
        schedule: Schedule,
        steps: int = 50,
        eta: float = 0.0,
        start: float = 1.0,
        sigma_data: float = 1.0,
        refine: int = 10,
        tolerance: float = 1e-6,
        independent: bool = False,
    ) -> None:
        super().__init__(schedule, steps, start, sigma_data)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM has eta={eta}; it must lie between 0 and 1")
        self.eta, self.refine, self.tolerance = eta, refine, tolerance
        self.independent = independent

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of `start`, and with eta > 0 of `steps`."""
        steps = {"steps": (self.steps, *event_shape)} if self.eta else {}
        return {"start": tuple(event_shape), **steps}

    def _mean(self, x: Tensor, x_0: Tensor, t: Level, s: Level) -> tuple[Tensor, float]:
        r = t.sigma * s.alpha / (s.sigma * t.alpha)
        std = self.eta * s.sigma * math.sqrt(1 - r**-2)
        kept = math.sqrt(s.sigma**2 - std**2) / t.sigma
        return kept * x + (s.alpha - t.alpha * kept) * x_0, std

    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        if not self.eta:
            return follow(self, ddim_step, denoise, noise)
        levels, draws = self.levels(), part(noise, "steps")
        x = levels[0].scale * part(noise, "start")
        if draws.shape[:2] != (len(x), self.steps):
            raise ValueError(
                f"the noise 'steps' has shape {tuple(draws.shape)}; it needs (B, steps, "
                f"*event_shape) = {(len(x), self.steps, *x.shape[1:])}"
            )
        for (t, s), z in zip(pairwise(levels), draws.unbind(1), strict=True):
            mean, std = self._mean(x, t.denoise(denoise, x), t, s)
            x = mean + std * z
        return x / levels[-1].alpha

    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return noise that `__call__` turns into x_0: a draw with eta > 0."""
        if not self.eta:
            return retrace(self, ddim_step, denoise, x_0, self.refine, self.tolerance)
        return self._explain(denoise, x_0)

    @torch.no_grad()
    def _explain(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        levels, draws = self.levels(), []
        first = levels[-1].alpha * x_0  # carries the last level's noise, as all samples do
        path = [level.since(levels[-1]) for level in levels]
        x = path[0].alpha * first + path[0].sigma * torch.randn_like(first)
        start = x / levels[0].scale
        for (t, s), (p, q) in zip(pairwise(levels), pairwise(path), strict=True):
            if s is levels[-1]:
                ahead = first
            elif self.independent:
                ahead = q.alpha * first + q.sigma * torch.randn_like(x)
            else:
                mean, std = self._mean(x, first, p, q)
                ahead = mean + std * torch.randn_like(x)
            mean, std = self._mean(x, t.denoise(denoise, x), t, s)
            draws.append((ahead - mean) / std)
            x = mean + std * draws[-1]
        return {"start": start, "steps": torch.stack(draws, 1)}


class Ancestral(Sampler):
    """DDPM's ancestral sampling, stochastic in every step: `DDIM` with `eta = 1`.

    The noise is `start` and `steps`, one draw a step.

    Reference: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020),
    https://arxiv.org/abs/2006.11239.

    Args:
        schedule, steps, start, sigma_data: see `Sampler`.
        independent: how the inversion draws its path; see `DDIM`.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> Ancestral(Cosine(), steps=8).noise_shape((2,))
        {'start': (2,), 'steps': (8, 2)}
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int = 50,
        start: float = 1.0,
        sigma_data: float = 1.0,
        independent: bool = False,
    ) -> None:
        super().__init__(schedule, steps, start, sigma_data)
        self.independent = independent
        self._ddim = DDIM(schedule, steps, 1.0, start, sigma_data, independent=independent)

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `start` and `steps`."""
        return self._ddim.noise_shape(event_shape)

    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        return self._ddim(denoise, noise)

    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return a draw of noise that `__call__` turns into x_0."""
        return self._ddim.invert(denoise, x_0)


class Heun(Sampler):
    """Second order and deterministic, two evaluations of the denoiser a step.

    The noise is `start`.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras, Aittala,
    Aila and Laine, 2022), https://arxiv.org/abs/2206.00364; D linear in log s: DPM-Solver++: Fast
    Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
    https://arxiv.org/abs/2211.01095.

    Args:
        schedule, steps, start, sigma_data: see `Sampler`.
        refine: how many corrections a step of the inversion gets at most, each two evaluations
            of the denoiser; 0 is the explicit inversion.
        tolerance: relative correction at which it stops.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> heun = Heun(Cosine(), steps=8)
        >>> denoise = lambda x, t: x * Cosine().alpha(t)[:, None]  # of data that are N(0, I)
        >>> noise = {"start": torch.tensor([[0.5, -1.0]])}
        >>> heun.invert(denoise, heun(denoise, noise))
        {'start': tensor([[ 0.5000, -1.0000]])}
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int = 20,
        start: float = 1.0,
        sigma_data: float = 1.0,
        refine: int = 10,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(schedule, steps, start, sigma_data)
        self.refine, self.tolerance = refine, tolerance

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of `start`."""
        return {"start": tuple(event_shape)}

    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        return follow(self, heun_step, denoise, noise)

    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return the noise that `__call__` turns into x_0."""
        return retrace(self, heun_step, denoise, x_0, self.refine, self.tolerance)
