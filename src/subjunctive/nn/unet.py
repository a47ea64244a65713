"""A U-Net that is quick on a CPU: image, noise level and condition to image.

Resolution falls and rises again: level l has `width * multipliers[l]` channels at `2^-l` of the
resolution, and what was there on the way down is added back on the way up. A pixel-unshuffle stem
and a pixel-shuffle head keep all convolutions off the full resolution, and attention runs at the
coarsest one only, so that its cost stays small. Noise level and condition enter every residual
block as a scale and a shift of each channel, `(1 + s(e)) norm(h) + b(e)`, with e made of sines of
the noise level and of the condition. Last convolutions start at zero: every block starts as the
identity. A scale and a shift of a channel cannot say *where*; with `layout` the condition also
enters as a map, one number for every channel and position of the coarsest level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.nn.conv import check_size, groups


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a convolution's weights to zero, so that it starts by adding nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Sines(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, features: int, low: float = 0.25, high: float = 16.0) -> None:
        super().__init__()
        self.features, self.low, self.high = features, low, high
        spaced = torch.linspace(math.log(low), math.log(high), features // 2).exp()
        self.register_buffer("frequencies", spaced, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B,)` to `(B, features)`."""
        angle = x[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Block(nn.Module):
    """A residual block: two convolutions, the second one modulated by the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(groups(outputs), outputs, affine=False)
        self.drop = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` and the embedding `(B, E)` to `(B, outputs, H, W)`."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.conv2(self.drop(F.silu(h)))
        return self.skip(x) + h


class Stage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, widths: Sequence[int], embedding: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(a, b, embedding, dropout) for a, b in pairwise(widths))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Map `(B, widths[0], H, W)` to `(B, widths[-1], H, W)`."""
        for block in self.blocks:
            x = block(x, e)
        return x


class Attention(nn.Module):
    """Residual self-attention over positions."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Let every position of `(B, C, H, W)` look at all others."""
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(x.shape))


class UNet(nn.Module):
    """A U-Net conditioned on a noise level and a vector.

    Reference: U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer
    and Brox, 2015), https://arxiv.org/abs/1505.04597; its modulated blocks: Diffusion Models Beat
    GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233.

    Args:
        channels: of the image that goes in.
        outputs: channels of the image that comes out; `channels` if not given.
        condition: the width F of the condition vector; 0 for none.
        width: channels at the finest level.
        multipliers: of the width, one a level; each level halves the resolution.
        blocks: residual blocks a level, on the way down and on the way up; one number for both.
            With 0 on the way down, one plain convolution changes the channels.
        attention: whether positions attend to each other at the coarsest level.
        unshuffle: factor of the pixel-unshuffle stem and the pixel-shuffle head; 1 for none.
        dropout: probability of dropping an activation within a block.
        size: height and width in pixels, if known: checked at once instead of at the first call.
        layout: whether the condition also enters as a map at the coarsest level; needs `size`.
        modulating: how many leading entries of the condition scale and shift channels; all if not
            given. The others enter by the layout alone.

    Raises:
        ValueError: if height or width is not a multiple of `unshuffle * 2 ** (levels - 1)`, or the
            condition is not of the stated width, or `layout` has no size or condition, or what does
            not modulate has no layout to enter by, or there is no block on the way up.

    Example:
        >>> unet = UNet(1, condition=3, width=8)
        >>> unet(torch.zeros(2, 1, 32, 32), torch.zeros(2), torch.zeros(2, 3)).shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(
        self,
        channels: int,
        outputs: int | None = None,
        condition: int = 0,
        width: int = 24,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | tuple[int, int] = 1,
        attention: bool = True,
        unshuffle: int = 2,
        dropout: float = 0.0,
        size: int | tuple[int, int] | None = None,
        layout: bool = False,
        modulating: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.outputs, self.condition = channels, outputs, condition
        self.width, self.multipliers, self.blocks = width, tuple(multipliers), blocks
        self.attention, self.unshuffle, self.dropout = attention, unshuffle, dropout
        self.size, self.layout, self.modulating = size, layout, modulating
        self.multiple = unshuffle * 2 ** (len(self.multipliers) - 1)
        if size is not None:
            self._check((size, size) if isinstance(size, int) else size)
        if modulating is not None and not (modulating == condition or layout):
            raise ValueError(
                f"UNet with modulating={modulating} of condition={condition} would ignore the "
                "rest; set layout=True"
            )
        widths, e = [width * m for m in self.multipliers], 4 * width
        self.sines = Sines(32)
        self.embed = nn.Sequential(
            nn.Linear(32 + (condition if modulating is None else modulating), e),
            nn.SiLU(),
            nn.Linear(e, e),
            nn.SiLU(),
        )
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(unshuffle), nn.Conv2d(channels * unshuffle**2, width, 3, padding=1)
        )
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        falling, rising = (blocks, blocks) if isinstance(blocks, int) else blocks
        if rising < 1 or falling < 0:
            raise ValueError(f"UNet has blocks={blocks}; at least one is needed on the way up")
        for i, w in enumerate(widths):
            finer = widths[max(i - 1, 0)]
            plain = nn.Conv2d(finer, w, 3, padding=1) if i else nn.Identity()
            self.down.append(Stage([finer, *[w] * falling], e, dropout) if falling else plain)
            self.up.insert(0, Stage([*[w] * rising, finer], e, dropout))
        self.map = self._map(widths[-1]) if layout else None
        heads = groups(widths[-1], max(widths[-1] // 32, 1))
        self.middle = Attention(widths[-1], heads) if attention else None
        last = zero(nn.Conv2d(width, (outputs or channels) * unshuffle**2, 3, padding=1))
        self.head = nn.Sequential(
            nn.GroupNorm(groups(width), width), nn.SiLU(), last, nn.PixelShuffle(unshuffle)
        )

    def _map(self, channels: int) -> nn.Module:
        if self.size is None or not self.condition:
            raise ValueError(
                f"UNet with layout=True needs size and condition, got size={self.size} and "
                f"condition={self.condition}"
            )
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        shape = channels, height // self.multiple, width // self.multiple
        return nn.Sequential(nn.Linear(self.condition, math.prod(shape)), nn.Unflatten(1, shape))

    def _check(self, size: Sequence[int]) -> None:
        check_size(size, self.multiple, "UNet", "use fewer multipliers or unshuffle=1")

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map images to images of the same height and width.

        Args:
            x: images `(B, channels, H, W)`, about unit variance.
            noise: the noise level `(B,)`, a quarter of the log-SNR or another number of order one.
            condition: `(B, F)`, given if and only if the network was built with one.
        """
        self._check(x.shape[-2:])
        e = self.sines(noise.to(x))
        found = 0 if condition is None else condition.shape[-1]
        if found != self.condition:
            raise ValueError(
                f"UNet was built with condition={self.condition} and got a condition of width "
                f"{found}; build it with condition={found}"
            )
        if condition is not None:
            condition = condition.to(e)
            e = torch.cat([e, condition[:, : self.modulating]], dim=1)
        e = self.embed(e)
        h, kept = self.stem(x), []
        for i, stage in enumerate(self.down):
            h = F.avg_pool2d(h, 2) if i else h
            h = stage(h, e) if isinstance(stage, Stage) else stage(h)
            kept.append(h)
        h = h + self.map(condition) if self.map is not None else h
        h = self.middle(h) if self.middle is not None else h
        for i, stage in enumerate(self.up):
            h = stage(F.interpolate(h, scale_factor=2) + kept[-1 - i] if i else h, e)
        y: Tensor = self.head(h)
        return y
