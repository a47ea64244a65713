r"""Reuse of a U-Net's encoder: most steps of a sampler run the decoder alone.

A U-Net is a decoder of features, `F(x_t, t) = dec(enc(x_t, t), t)`. From step to step of a sampler the
encoder's features change little, while the decoder's output changes with t. At *key* steps both run;
until the next key the features stay those of the last one, k,

    F_j = dec(enc(x_k, t_k), t_j),     D_j = c_skip(t_j) x_j + c_out(t_j) F_j.

**Backward.** A stochastic sampler's noise is read off a path that is walked from noise to data, keys
before the steps that use them, so that it reproduces x_0 exactly as without reuse. A deterministic one
is undone from key to key: all steps in between are one map of x_k, which is solved for its x_k.

What is left out of the paper: a little of x_1 added to the state in late steps, against smooth
textures. Its place would be in the sampler, and it makes the way back an equation in x_1.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subjunctive.diffusion.denoise import Denoise, Denoiser, column
from subjunctive.diffusion.sample import (
    DDIM,
    Ancestral,
    Heun,
    Level,
    ddim_step,
    heun_step,
    retrace,
)
from subjunctive.nn import UNet
from subjunctive.nn.unet import Stage

NEAR = 1e-6  # times that differ by less are one


def encode(unet: UNet, x: Tensor, noise: Tensor, condition: Tensor | None) -> list[Tensor]:
    """Return the features of a U-Net's way down, finest first, and what the coarsest became.

    Example:
        >>> unet, x, noise = UNet(1, width=8), torch.randn(2, 1, 8, 8), torch.zeros(2)
        >>> torch.equal(decode(unet, encode(unet, x, noise, None), noise, None), unet(x, noise))
        True
    """
    e, h, kept = embed(unet, x, noise, condition), unet.stem(x), []
    for i, stage in enumerate(unet.down):
        h = F.avg_pool2d(h, 2) if i else h
        h = stage(h, e) if isinstance(stage, Stage) else stage(h)
        kept.append(h)
    if unet.map is not None and condition is not None:
        h = h + unet.map(condition.to(e))
    return [*kept, unet.middle(h) if unet.middle is not None else h]


def decode(unet: UNet, kept: Sequence[Tensor], noise: Tensor, condition: Tensor | None) -> Tensor:
    """Return the image `(B, outputs, H, W)` that a U-Net makes of features at a noise level."""
    *down, h = kept
    e = embed(unet, h, noise, condition)
    for i, stage in enumerate(unet.up):
        h = stage(F.interpolate(h, scale_factor=2) + down[-1 - i] if i else h, e)
    y: Tensor = unet.head(h)
    return y


def embed(unet: UNet, x: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
    """Return the embedding of noise levels `(B,)` and conditions that modulates every block."""
    e: Tensor = unet.sines(noise.to(x))
    if condition is not None:
        e = torch.cat([e, condition.to(e)[:, : unet.modulating]], dim=1)
    y: Tensor = unet.embed(e)
    return y


class Run:
    """A denoiser during one run of a sampler: it keeps the last key's features.

    Args:
        denoiser: of a `UNet`.
        times: of the sampler's levels, falling.
        keys: which of them run the encoder, the first among them.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> denoiser, sampler = Denoiser(UNet(1, width=8), Cosine()), DDIM(Cosine(), steps=6)
        >>> run = Run(denoiser, [level.t for level in sampler.levels()], keys=[0, 2, 4])
        >>> sampler(run, {"start": torch.randn(2, 1, 8, 8)}).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, denoiser: Denoiser, times: Sequence[float], keys: Sequence[int]) -> None:
        self.denoiser = denoiser
        self.groups = [list(times[i:j]) for i, j in pairwise([*keys, len(times)])]
        self.group: list[float] = []  # the times that share features
        self.kept: list[Tensor] = []  # the features
        self.made: dict[int, Tensor] = {}  # what they were decoded to at a time of the group

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `E[x_0 | x_t, condition]`, by the last key's features where t is no key."""
        denoiser, now = self.denoiser, float(t.reshape(-1)[0])
        network: Any = denoiser.network
        t = t.to(x_t).expand(len(x_t))
        c_in, c_skip, c_out = (column(c, x_t) for c in denoiser.coefficients(t))
        noise = denoiser.schedule.log_snr(t) / 4
        group = next((g for g in self.groups if g[0] + NEAR >= now >= g[-1] - NEAR), [now])
        at = min(range(len(group)), key=lambda i: abs(group[i] - now))
        if at == 0 or group is not self.group or len(self.kept[0]) != len(x_t):
            self.kept = encode(network, c_in * x_t, noise, condition)
            self.group, self.made = group, {}
        if at not in self.made:
            self.made[at] = decode(network, self.kept, noise, condition)
        return c_skip * x_t + c_out * self.made[at]


def indices(keys: int | Sequence[int], levels: int) -> list[int]:
    """Return at which levels the encoder runs.

    Args:
        keys: their numbers, 0 the first; or how many levels a key serves, its own among them.
        levels: at how many the sampler evaluates its denoiser.

    Raises:
        ValueError: for numbers that do not rise from 0 to below `levels`.

    Example:
        >>> indices(3, 8), indices([0, 1, 4], 8)
        ([0, 3, 6], [0, 1, 4])
    """
    found = list(range(0, levels, max(keys, 1)) if isinstance(keys, int) else keys)
    rising = all(i < j for i, j in pairwise(found)) and found[:1] == [0] and found[-1] < levels
    if not rising or (isinstance(keys, int) and keys < 1):
        raise ValueError(
            f"keys={keys!r} are no keys among {levels} levels: give their numbers, rising from 0 "
            f"to {levels - 1} at most, or how many levels a key serves, 1 or more"
        )
    return found


def evaluated(sampler: DDIM | Ancestral | Heun) -> int:
    """Return at how many levels a sampler evaluates its denoiser."""
    return sampler.steps + isinstance(sampler, Heun)


class Backward:
    """A deterministic sampler, undone from key to key.

    Args:
        sampler: `DDIM` with eta = 0, or `Heun`.
        keys: which of its steps run the encoder.
    """

    def __init__(self, sampler: DDIM | Heun, keys: Sequence[int]) -> None:
        self.sampler, self.keys = sampler, keys
        self.step = heun_step if isinstance(sampler, Heun) else ddim_step

    def levels(self) -> list[Level]:
        """Return the levels of the keys, and the last."""
        levels = self.sampler.levels()
        return [*(levels[i] for i in self.keys if i < self.sampler.steps), levels[-1]]

    def across(self, denoise: Denoise, x: Tensor, t: Level, s: Level) -> Tensor:
        """Move x from key to key by all steps in between; the other way in one, for a guess."""
        if t.t < s.t:
            return self.step(denoise, x, t, s)
        for p, q in pairwise(level for level in self.sampler.levels() if t.t >= level.t >= s.t):
            x = self.step(denoise, x, p, q)
        return x

    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return the noise that the sampler turns into x_0."""
        refine, tolerance = self.sampler.refine, self.sampler.tolerance
        levels: Any = self  # all that is asked of a sampler here
        return retrace(levels, self.across, denoise, x_0, refine, tolerance)
