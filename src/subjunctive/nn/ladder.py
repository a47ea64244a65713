r"""The networks of a ladder of latents: up from an image, down the latents, down to an image.

Resolutions are numbered from the finest. Three paths lead through them:

    read     e_i = block(down(e_{i-1}))                        up, from the image
    prior    (m, log s, f) = P(g[, c]),   (d, log r) = Q(g, e_i, c),   g <- g + f + A z
             at every group of latents, coarse to fine, and g <- up(g) between resolutions
    decode   h <- block(up(h) + B_i z_i, c),   outputs = head(h)

with `z = m + s eps`: P speaks of z, and Q of its noise eps, relative to P; an untrained Q is the
prior. The path to the image starts from z alone, so that it can be walked under another condition
than the one that z came from.

A block has two convolutions and no norm: a row's answer does not depend on the rows beside it, and
sizes are not lost. Last weights are divided by the root of the depth at the start; those of P, Q
and the head are zero. A pixel-unshuffle stem keeps all convolutions off the full resolution.

Reference: Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby and Winther, 2016),
https://arxiv.org/abs/1602.02282; posteriors relative to the prior: NVAE: A Deep Hierarchical
Variational Autoencoder (Vahdat and Kautz, 2020), https://arxiv.org/abs/2007.03898; the root of the
depth: Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images (Child,
2021), https://arxiv.org/abs/2011.10650
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.nn.conv import check_size
from subjunctive.nn.mlp import MLP

EMBEDDED = 64  # width of the condition once it is embedded


def scaled(layer: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Multiply a convolution's weights by a number."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(gain)
    return layer


class Block(nn.Module):
    """Two convolutions: B silu((1 + s(e)) A silu(x) + b(e)), e the embedded condition.

    Args:
        inputs, outputs, middle: channels of x, of the result, and between.
        kernel: size of both convolutions.
        gain: of B at the start.
        told: whether there is a condition.
    """

    def __init__(
        self, inputs: int, outputs: int, middle: int, kernel: int, gain: float, told: bool
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, middle, kernel, padding=kernel // 2)
        self.second = scaled(nn.Conv2d(middle, outputs, kernel, padding=kernel // 2), gain)
        self.film = nn.Linear(EMBEDDED, 2 * middle) if told else None

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        h = self.first(F.silu(x))
        if self.film is not None:
            scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        y: Tensor = self.second(F.silu(h))
        return y


class Rung(nn.Module):
    """A group of latents: its prior, its posterior, and how it joins the path; the last does not.

    Args:
        width: channels of the path. latent: of the group.
        kernel: size of the convolutions.
        gain: of what joins the path, at the start.
        told, conditional: whether the posterior and the prior hear a condition.
        last: whether nothing comes after.
    """

    def __init__(
        self,
        width: int,
        latent: int,
        kernel: int,
        gain: float,
        told: bool,
        conditional: bool,
        last: bool,
    ) -> None:
        super().__init__()
        on = 0 if last else width
        self.prior = Block(width, 2 * latent + on, width, kernel, 0.0, conditional)
        self.posterior = Block(2 * width, 2 * latent, width, kernel, 0.0, told)
        self.add = None if last else scaled(nn.Conv2d(latent, width, 1), gain)


class Ladder(nn.Module):
    """Networks between an image and a ladder of latents.

    Args:
        channels: of the image.
        size: height and width of the image in pixels; one number for a square.
        outputs: channels of what is decoded, at the image's size.
        condition: the width C of the condition; 0 for none.
        conditional: whether the prior hears it, too.
        widths: channels at each resolution, the finest first.
        scales: how many pixels a position measures at each resolution; the first is the factor of
            the stem, each is a multiple of the one before.
        latents: channels of the groups of latents at each resolution; `()` for none.
        blocks: residual blocks a resolution, on the way up and on the way to the image.

    Attributes:
        shapes: of the groups of latents, coarse to fine, `(channels, height, width)` each.

    Raises:
        ValueError: for lists of different lengths, scales that do not divide each other or the
            image, or a coarsest resolution without latents.

    Example:
        >>> ladder = Ladder(1, 32, 2, condition=3, latents=((), (4,), (4, 4), (16,)))
        >>> ladder.shapes
        ((16, 1, 1), (4, 4, 4), (4, 4, 4), (4, 8, 8))
        >>> z = [torch.randn(5, *shape) for shape in ladder.shapes]
        >>> ladder.decode(z, torch.randn(5, 3)).shape
        torch.Size([5, 2, 32, 32])
    """

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        outputs: int,
        condition: int = 0,
        conditional: bool = False,
        widths: Sequence[int] = (32, 48, 64, 96),
        scales: Sequence[int] = (2, 4, 8, 32),
        latents: Sequence[Sequence[int]] = ((), (8,), (8, 8), (32,)),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.size, self.outputs, self.condition = channels, size, outputs, condition
        self.widths, self.scales, self.blocks = tuple(widths), tuple(scales), blocks
        self.latents, self.conditional = tuple(tuple(groups) for groups in latents), conditional
        height, width = (size, size) if isinstance(size, int) else size
        self._check((height, width))
        sides = [(height // s, width // s) for s in self.scales]
        order = [(i, z) for i in range(len(sides))[::-1] for z in self.latents[i]]
        self.places = tuple(i for i, _ in order)  # the resolution of every group
        self.shapes = tuple((z, *sides[i]) for i, z in order)
        self._build(sides, order)

    def _check(self, size: tuple[int, int]) -> None:
        lengths = {len(self.widths), len(self.scales), len(self.latents)}
        if len(lengths) > 1 or not self.widths or self.blocks < 1:
            raise ValueError(
                f"Ladder needs a width, a scale and latents for each resolution, and blocks >= 1; "
                f"got widths={self.widths}, scales={self.scales}, latents={self.latents} and "
                f"blocks={self.blocks}"
            )
        if any(b % a or b == a for a, b in pairwise(self.scales)):
            raise ValueError(f"Ladder has scales={self.scales}; each must divide the next")
        check_size(size, self.scales[-1], "Ladder", "give other scales")
        if not self.latents[-1] or min(z for groups in self.latents for z in groups) < 1:
            raise ValueError(
                f"Ladder has latents={self.latents}; the last, coarsest resolution needs a group, "
                "and each group a channel"
            )
        if self.conditional and not self.condition:
            raise ValueError("a conditional Ladder needs condition >= 1, got 0")

    def _build(self, sides: list[tuple[int, int]], order: list[tuple[int, int]]) -> None:
        """Make the layers of the three paths."""
        widths, told, last = self.widths, bool(self.condition), len(order) - 1
        kernels = [1 if max(side) == 1 else 3 for side in sides]
        factors = [b // a for a, b in pairwise(self.scales)]
        steps = [(*pair, f) for pair, f in zip(pairwise(widths), factors, strict=True)]
        gain = (self.blocks * len(widths)) ** -0.5
        self.embed = MLP(self.condition, EMBEDDED, (EMBEDDED,)) if told else None

        def residual(told: bool) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(Block(w, w, w, k, gain, told) for _ in range(self.blocks))
                for w, k in zip(widths, kernels, strict=True)
            )

        def rising(first: int) -> nn.ModuleList:
            layers = (nn.ConvTranspose2d(b, a, f, stride=f) for a, b, f in steps[first:])
            return nn.ModuleList(layers)

        pixels = self.channels * self.scales[0] ** 2
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, f, stride=f) for a, b, f in steps)
        self.reading = residual(False)
        self.start, self.root = (
            nn.Parameter(a * torch.randn(1, widths[-1], *sides[-1])) for a in (1.0, 0.0)
        )
        self.rungs = nn.ModuleList(
            Rung(widths[i], z, kernels[i], len(order) ** -0.5, told, self.conditional, n == last)
            for n, (i, z) in enumerate(order)
        )
        self.rise = rising(self.places[-1])  # beyond the finest latents the prior has no say
        self.join = nn.ModuleList(
            nn.Conv2d(sum(groups), w, 1) if groups else nn.Identity()
            for w, groups in zip(widths, self.latents, strict=True)
        )
        self.up, self.making = rising(0), residual(told)
        self.head = Block(
            widths[0], self.outputs * self.scales[0] ** 2, widths[0], kernels[0], 0.0, told
        )

    def _embedded(self, c: Tensor) -> Tensor | None:
        return None if self.embed is None else F.silu(self.embed(c))

    def read(self, x: Tensor) -> list[Tensor]:
        """Return features of an image `(B, channels, H, W)`, finest first."""
        h, features = self.stem(F.pixel_unshuffle(x, self.scales[0])), []
        for i, blocks in enumerate(self.reading):
            h = self.down[i - 1](h) if i else h
            for block in cast(nn.ModuleList, blocks):
                h = h + block(h, None)
            features.append(h)
        return features

    def begin(self, rows: int) -> Tensor:
        """Return the path g before the first group, `(rows, ...)`."""
        return self.start.expand(rows, -1, -1, -1)

    def prior(self, n: int, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log-scale of group n, and the path g that leads on."""
        rung, z = cast(Rung, self.rungs[n]), self.shapes[n][0]
        out = rung.prior(g, self._embedded(c) if self.conditional else None)
        mean, log_scale, on = out.split([z, z, out.shape[1] - 2 * z], dim=1)
        return mean, log_scale, g + on if on.shape[1] else g

    def posterior(
        self, n: int, g: Tensor, features: Sequence[Tensor], c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-scale of group n's noise, given the path and an image's features."""
        both = torch.cat([g, features[self.places[n]]], dim=1)
        rung = cast(Rung, self.rungs[n])
        mean, log_scale = rung.posterior(both, self._embedded(c)).chunk(2, dim=1)
        return mean, log_scale

    def add(self, n: int, g: Tensor, z: Tensor) -> Tensor:
        """Return the path with group n, at the next group's resolution."""
        layer = cast(Rung, self.rungs[n]).add
        if layer is None:
            return g
        g = g + layer(z)
        for i in range(self.places[n + 1], self.places[n])[::-1]:
            g = self.rise[i - self.places[-1]](g)
        return g

    def decode(self, z: Sequence[Tensor], c: Tensor) -> Tensor:
        """Return `(B, outputs, H, W)` from all groups, coarse to fine."""
        e, h = self._embedded(c), self.root
        for i, blocks in reversed(list(enumerate(self.making))):
            h = h if i == len(self.widths) - 1 else self.up[i](h)
            if self.latents[i]:
                own = [group for group, place in zip(z, self.places, strict=True) if place == i]
                h = h + self.join[i](torch.cat(own, dim=1))
            for block in cast(nn.ModuleList, blocks):
                h = h + block(h, e)
        return F.pixel_shuffle(self.head(h, e), self.scales[0])
