"""A residual network, of images or of vectors, that starts at zero and that a condition modulates.

    h = A x,   h <- h + C silu((1 + s(c)) B silu(h) + b(c))  a block,   y = D silu(h),  D = 0

A, B, C, D are 3 x 3 convolutions for images and affine maps for vectors. There is no normalisation,
so that a row's answer does not depend on the rows beside it and sizes are not lost.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A residual network modulated by a condition.

    Args:
        inputs, outputs: channels of an image, or numbers of a vector.
        condition: the width F of the condition; 0 for none.
        width: channels within. blocks: residual blocks.
        image: whether it maps images, of any size, or vectors.

    Example:
        >>> import torch
        >>> Residual(2, 6, condition=3, width=8)(torch.ones(5, 2, 4, 4), torch.ones(5, 3)).shape
        torch.Size([5, 6, 4, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int = 0,
        width: int = 32,
        blocks: int = 1,
        image: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.condition = inputs, outputs, condition
        self.width, self.blocks, self.image = width, blocks, image
        layer = partial(nn.Conv2d, kernel_size=3, padding=1) if image else nn.Linear
        self.stem, self.head = layer(inputs, width), layer(width, outputs)
        self.first = nn.ModuleList(layer(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(layer(width, width) for _ in range(blocks))
        films = (nn.Linear(condition, 2 * width) for _ in range(blocks if condition else 0))
        self.film = nn.ModuleList(films)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map `(B, inputs, ...)` and the condition `(B, F)` to `(B, outputs, ...)`."""
        h = self.stem(x)
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            inner = first(F.silu(h))
            if self.condition:
                film = self.film[i](c)
                scale, shift = film.reshape(*film.shape, *[1] * (h.dim() - 2)).chunk(2, 1)
                inner = (1 + scale) * inner + shift
            h = h + second(F.silu(inner))
        y: Tensor = self.head(F.silu(h))
        return y
