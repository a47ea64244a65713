"""From an image to a grid of vectors and back: convolutions without a layer of fixed size.

    encoder   (C, H, W) -> (outputs, H / f, W / f),     decoder   the same way backwards

with f the factor of a pixel-unshuffle stem times 2 for every width but the first. Residual blocks
run at the coarsest resolution, where they are cheap. Nothing is normalised over positions: a vector
of the grid depends on the pixels around it alone, and images of any size that f divides will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from subjunctive.nn.conv import check_size


class _Block(nn.Module):
    """A residual block that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.layers = nn.Sequential(nn.SiLU(), layers[0], nn.SiLU(), layers[1])
        for parameter in layers[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, width, H, W)` to the same shape."""
        y: Tensor = x + self.layers(x)
        return y


class GridEncoder(nn.Module):
    """A grid of vectors from an image of any size.

    Args:
        channels: of the image.
        outputs: the width of a vector of the grid.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks at the coarsest resolution.
        unshuffle: factor of the pixel-unshuffle stem; 1 for none.

    Raises:
        ValueError: for an image whose height or width is not a multiple of `factor`.

    Example:
        >>> import torch
        >>> encoder = GridEncoder(3, 8)
        >>> encoder.factor, encoder(torch.zeros(2, 3, 64, 32)).shape
        (4, torch.Size([2, 8, 16, 8]))
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        unshuffle: int = 2,
    ) -> None:
        super().__init__()
        self.channels, self.outputs, self.widths = channels, outputs, tuple(widths)
        self.blocks, self.unshuffle = blocks, unshuffle
        self.factor = unshuffle * 2 ** (len(self.widths) - 1)
        first = nn.Conv2d(channels * unshuffle**2, self.widths[0], 3, padding=1)
        layers: list[nn.Module] = [nn.PixelUnshuffle(unshuffle), first]
        for a, b in pairwise(self.widths):
            layers += [nn.SiLU(), nn.Conv2d(a, b, 4, stride=2, padding=1)]
        layers += [_Block(self.widths[-1]) for _ in range(blocks)]
        last = nn.Conv2d(self.widths[-1], outputs, 3, padding=1)
        self.layers = nn.Sequential(*layers, nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(B, channels, H, W)` to grids `(B, outputs, H / factor, W / factor)`."""
        check_size(x.shape[-2:], self.factor, "GridEncoder", "use fewer widths or unshuffle=1")
        y: Tensor = self.layers(x)
        return y


class GridDecoder(nn.Module):
    """An image from a grid of vectors of any size.

    Args:
        inputs: the width of a vector of the grid.
        channels: of the image.
        widths: channels of each stage, the finest first, as `GridEncoder` has them.
        blocks: residual blocks at the coarsest resolution.
        shuffle: factor of the pixel-shuffle head; 1 for none.

    Example:
        >>> import torch
        >>> GridDecoder(4, 3)(torch.zeros(2, 4, 16, 8)).shape
        torch.Size([2, 3, 64, 32])
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        shuffle: int = 2,
    ) -> None:
        super().__init__()
        self.inputs, self.channels, self.widths = inputs, channels, tuple(widths)
        self.blocks, self.shuffle = blocks, shuffle
        self.factor = shuffle * 2 ** (len(self.widths) - 1)
        layers: list[nn.Module] = [nn.Conv2d(inputs, self.widths[-1], 3, padding=1)]
        layers += [_Block(self.widths[-1]) for _ in range(blocks)]
        for a, b in pairwise(self.widths[::-1]):
            layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1)]
        last = nn.Conv2d(self.widths[0], channels * shuffle**2, 3, padding=1)
        self.layers = nn.Sequential(*layers, nn.SiLU(), last, nn.PixelShuffle(shuffle))

    def forward(self, z: Tensor) -> Tensor:
        """Map grids `(B, inputs, h, w)` to images `(B, channels, factor h, factor w)`."""
        x: Tensor = self.layers(z)
        return x
