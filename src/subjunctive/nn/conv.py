"""From an image to a vector: convolutions that halve the resolution, then one affine map.

The last feature map is flattened, not averaged, so that *where* something is stays readable. A
pixel-unshuffle stem, `(C, H, W) -> (C k^2, H/k, W/k)`, lets the first convolution run on fewer
positions without losing a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def check_size(size: Sequence[int], multiple: int, who: str, remedy: str) -> None:
    """Raise a `ValueError` that teaches if a height or width is not a multiple.

    >>> check_size((28, 28), 8, "UNet", "use unshuffle=1")
    Traceback (most recent call last):
    ValueError: UNet needs height and width that are multiples of 8, got 28x28; pad to 32x32 or use unshuffle=1
    """  # noqa: E501
    if any(s < 1 or s % multiple for s in size):
        padded = "x".join(str(max(-(-s // multiple), 1) * multiple) for s in size)
        raise ValueError(
            f"{who} needs height and width that are multiples of {multiple}, got "
            f"{'x'.join(map(str, size))}; pad to {padded} or {remedy}"
        )


def groups(channels: int, most: int = 8) -> int:
    """Return the largest number of groups, at most `most`, that divides the channels."""
    return max(g for g in range(1, most + 1) if channels % g == 0)


class ConvEncoder(nn.Module):
    """Convolutional features of an image.

    Args:
        channels: of the image.
        size: height and width of the image in pixels; one number for a square.
        outputs: the width of the feature vector.
        widths: channels of each stage; every stage but the first halves the resolution.
        unshuffle: factor of the pixel-unshuffle stem; 1 for none.
        norm: whether a group norm follows every convolution.

    Raises:
        ValueError: if the size is not a multiple of `unshuffle * 2 ** (len(widths) - 1)`.

    Example:
        >>> import torch
        >>> ConvEncoder(1, 32, 10)(torch.zeros(4, 1, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        outputs: int,
        widths: Sequence[int] = (16, 32, 64),
        unshuffle: int = 2,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.size, self.outputs = channels, size, outputs
        self.widths, self.unshuffle, self.norm = tuple(widths), unshuffle, norm
        height, width = (size, size) if isinstance(size, int) else size
        factor = unshuffle * 2 ** (len(self.widths) - 1)
        check_size((height, width), factor, "ConvEncoder", "use fewer widths or unshuffle=1")
        layers: list[nn.Module] = [nn.PixelUnshuffle(unshuffle)]
        for i, (a, b) in enumerate(pairwise((channels * unshuffle**2, *self.widths))):
            layers.append(nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1))
            layers += [*([nn.GroupNorm(groups(b), b)] if norm else []), nn.SiLU()]
        flat = self.widths[-1] * (height // factor) * (width // factor)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(B, channels, *size)` to features `(B, outputs)`."""
        y: Tensor = self.layers(x)
        return y
