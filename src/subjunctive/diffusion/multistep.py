r"""Second order at one evaluation a step: a sampler that remembers its last estimate.

In y = x / alpha and s = sigma / alpha a step from t to s is `x_s = a x_t + b mean(D)`, as in `sample.py`,
the mean over 1/s. Heun's rule evaluates D at both ends. Its slope is known without that: D was
evaluated one step before, at r. With h = log(s_t / s_s) and h' = log(s_r / s_t),

    x_s = a x_t + b (D_t + k (D_t - D_r)),    k = h / (2 h').

The first step has no r, and the last one, which in log s is by far the longest, is not where a straight
line should be drawn on: both are DDIM's. Two steps of order one leave the whole of order two.

**Backward.** x_s follows from x_t and from what was before it, so that no step can be undone alone.
Where D goes straight on, `k (D_t - D_r) = (D_s - D_t) / 2`: the trapezoid's step, which knows no r and
is undone by solving it for x_t. That is a first path. On a path the D_r are known, and each step can
be solved for its x_t again; these sweeps from data to noise contract, and where they end the path is
the sampler's own, so that the round trip is exact up to the solver's tolerance.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from subjunctive.diffusion.denoise import Denoise
from subjunctive.diffusion.sample import Level, Sampler, ddim_step, mix, part
from subjunctive.diffusion.schedule import Schedule
from subjunctive.diffusion.solve import solve


class Multistep(Sampler):
    """DPM-Solver++(2M): deterministic, second order, one evaluation of the denoiser a step.

    The noise is `start`.

    Reference: DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu,
    Zhou, Bao, Chen, Li and Zhu, 2022), https://arxiv.org/abs/2211.01095.

    Args:
        schedule, steps, start, sigma_data: see `Sampler`.
        refine: how many corrections a step of the inversion gets at most in each sweep, each an
            evaluation of the denoiser; 0 for the explicit inversion, DDIM's.
        sweeps: how many sweeps at most, after the first.
        tolerance: relative correction at which it stops.

    Raises:
        ValueError: for a negative number of sweeps.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> sampler = Multistep(Cosine(), steps=8)
        >>> denoise = lambda x, t: x * Cosine().alpha(t)[:, None]  # of data that are N(0, I)
        >>> noise = {"start": torch.tensor([[0.5, -1.0]])}
        >>> sampler.invert(denoise, sampler(denoise, noise))
        {'start': tensor([[ 0.5000, -1.0000]])}
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int = 20,
        start: float = 1.0,
        sigma_data: float = 1.0,
        refine: int = 10,
        sweeps: int = 10,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(schedule, steps, start, sigma_data)
        if sweeps < 0:
            raise ValueError(f"Multistep has sweeps={sweeps}; it must be 0 or more")
        self.refine, self.sweeps, self.tolerance = refine, sweeps, tolerance

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of `start`."""
        return {"start": tuple(event_shape)}

    def shares(self) -> list[float]:
        """Return k of every step: by how much of its last change the estimate is carried on."""
        logs = [math.log(level.sigma / level.alpha) for level in self.levels()]
        gaps = [a - b for a, b in pairwise(logs)]
        inner = [h / (2 * before) for before, h in pairwise(gaps)]
        return [0.0, *inner[:-1], 0.0][: self.steps]

    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        levels = self.levels()
        x = levels[0].scale * part(noise, "start")
        before = torch.zeros_like(x)
        for (t, s), k in zip(pairwise(levels), self.shares(), strict=True):
            a, b = mix(t, s)
            now = t.denoise(denoise, x)
            x = a * x + b * (torch.lerp(before, now, 1 + k) if k else now)
            before = now
        return x / levels[-1].alpha

    @torch.no_grad()
    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return the noise that `__call__` turns into x_0."""
        levels, shares = self.levels(), self.shares()
        end = levels[-1].alpha * x_0
        path, ahead = [end], end
        for (s, t), k in zip(pairwise(levels[::-1]), shares[::-1], strict=True):
            guess = ddim_step(denoise, path[-1], s, t)
            found = self._undo(denoise, path[-1], t, s, -0.5 if k else 0.0, ahead, guess)
            path.append(found)
            ahead = t.denoise(denoise, found) if k or t is levels[-2] else ahead
        scale = end.new_tensor([t.scale for t in levels[:-1]])
        scale = scale.reshape(-1, *[1] * (end.dim() - 1))

        def sweep(scaled: Tensor) -> Tensor:
            """Return how far every x_t is from where its step, given the others, says it was."""
            path = (scale * scaled).unbind(1)
            known = [t.denoise(denoise, x) for t, x in zip(levels[:-1], path, strict=True)]
            x, moved = end, list(path)
            for i in reversed(range(self.steps)):
                t, s = levels[i], levels[i + 1]
                x = self._undo(denoise, x, t, s, shares[i], known[i - 1], path[i])
                moved[i] = x
            return scaled - torch.stack(moved, 1) / scale

        first = torch.stack(path[:0:-1], 1) / scale
        sweeps = self.sweeps if self.refine else 0
        found = solve(sweep, torch.zeros_like(first), first, 1.0, sweeps, self.tolerance)
        return {"start": found[:, 0]}

    def _undo(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, k: float, other: Tensor,
        guess: Tensor,
    ) -> Tensor:  # fmt: skip
        """Solve `x = a x_t + b (D_t + k (D_t - other))` for x_t."""
        a, b = mix(t, s)

        def step(x_t: Tensor) -> Tensor:
            now = t.denoise(denoise, x_t)
            return a * x_t + b * (now + k * (now - other) if k else now)

        slope = a + b * (1 + k) * t.alpha * (t.sigma_data / t.scale) ** 2  # on Gaussian data
        return solve(step, x, guess, 1 / slope, self.refine, self.tolerance * t.scale)
