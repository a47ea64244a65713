"""From a vector to an image: an affine map, then convolutions that double the resolution.

The way of `ConvEncoder` backwards. Resolution doubles by repeating each pixel before a convolution,
which leaves no checkerboard; a pixel-shuffle head, `(C k^2, H/k, W/k) -> (C, H, W)`, keeps all
convolutions off the full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from subjunctive.nn.conv import check_size, groups


class ConvDecoder(nn.Module):
    """An image from a vector.

    Args:
        inputs: the width of the vector.
        channels: of the image.
        size: height and width of the image in pixels; one number for a square.
        widths: channels of each stage, the finest first, as `ConvEncoder` has them.
        shuffle: factor of the pixel-shuffle head; 1 for none.
        norm: whether a group norm precedes every activation.

    Raises:
        ValueError: if the size is not a multiple of `shuffle * 2 ** (len(widths) - 1)`.

    Example:
        >>> import torch
        >>> ConvDecoder(10, 3, 32)(torch.zeros(4, 10)).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        size: int | tuple[int, int],
        widths: Sequence[int] = (16, 32, 64),
        shuffle: int = 2,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.channels, self.size = inputs, channels, size
        self.widths, self.shuffle, self.norm = tuple(widths), shuffle, norm
        height, width = (size, size) if isinstance(size, int) else size
        factor = shuffle * 2 ** (len(self.widths) - 1)
        check_size((height, width), factor, "ConvDecoder", "use fewer widths or shuffle=1")
        coarse = (self.widths[-1], height // factor, width // factor)
        layers: list[nn.Module] = [nn.Linear(inputs, coarse[0] * coarse[1] * coarse[2])]
        layers += [nn.Unflatten(1, coarse), *self._activation(coarse[0])]
        for a, b in pairwise(self.widths[::-1]):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1)]
            layers += self._activation(b)
        last = nn.Conv2d(self.widths[0], channels * shuffle**2, 3, padding=1)
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(shuffle))

    def _activation(self, channels: int) -> list[nn.Module]:
        return [*([nn.GroupNorm(groups(channels), channels)] if self.norm else []), nn.SiLU()]

    def forward(self, z: Tensor) -> Tensor:
        """Map vectors `(B, inputs)` to images `(B, channels, *size)`."""
        y: Tensor = self.layers(z)
        return y
