"""A network of vectors that knows how noisy they are: what a `Denoiser` calls where nothing is an image.

Noise level and condition, embedded together, modulate the blocks of a residual network that starts
at zero.
"""  # noqa: E501

from __future__ import annotations

import torch
from torch import Tensor, nn

from subjunctive.nn.residual import Residual
from subjunctive.nn.unet import Sines


class Timed(nn.Module):
    """A residual network of vectors, modulated by a noise level and a condition.

    Args:
        inputs: numbers a row, of what goes in and of what comes out.
        condition: the width F of the condition; 0 for none.
        width: numbers within.
        blocks: residual blocks.

    Raises:
        ValueError: when it is called with a condition of another width.

    Example:
        >>> Timed(2, condition=3, width=8)(torch.ones(5, 2), torch.zeros(5), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, inputs: int, condition: int = 0, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.inputs, self.condition, self.width, self.blocks = inputs, condition, width, blocks
        self.sines = Sines(32)
        self.embed = nn.Sequential(
            nn.Linear(32 + condition, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.network = Residual(inputs, inputs, width, width, blocks, image=False)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map rows to rows of the same shape.

        Args:
            x: `(B, *shape)`, `inputs` numbers a row, of about unit variance.
            noise: the noise level `(B,)`, a quarter of the log-SNR.
            condition: `(B, F)`, given if and only if the network was built with one.
        """
        found = 0 if condition is None else condition.shape[-1]
        if found != self.condition:
            raise ValueError(
                f"Timed was built with condition={self.condition} and got a condition of width "
                f"{found}; build it with condition={found}"
            )
        e = self.sines(noise.to(x))
        e = e if condition is None else torch.cat([e, condition.to(e)], dim=1)
        y: Tensor = self.network(x.reshape(len(x), -1), self.embed(e))
        return y.reshape(x.shape)
