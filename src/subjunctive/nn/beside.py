"""Two inputs, one after the other: features of x, and a vector that joins them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Beside(nn.Module):
    """A network of x whose features a vector joins before the last layers: head(network(x), c).

    Args:
        network: from x to features `(B, F)`.
        head: from features and vector, `(B, F + C)`, to what comes out.

    Example:
        >>> both = Beside(nn.Flatten(), nn.Linear(6, 4))
        >>> both(torch.zeros(5, 1, 2, 2), torch.zeros(5, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x `(B, ...)` and a vector `(B, C)` to what the head gives."""
        y: Tensor = self.head(torch.cat([self.network(x), c], dim=1))
        return y
