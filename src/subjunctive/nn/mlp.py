"""A multilayer perceptron: `h <- activation(norm(W h + b))` a hidden width, then `W h + b`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """A multilayer perceptron on vectors.

    Args:
        inputs, outputs: the widths of what goes in and what comes out.
        hidden: the widths in between; `()` makes it an affine map.
        activation: the class of the non-linearity.
        norm: whether a layer norm stands before every activation.

    Raises:
        ValueError: for a width below one.

    Example:
        >>> import torch
        >>> MLP(3, 2, hidden=(8,))(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: type[nn.Module] = nn.SiLU,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.hidden = inputs, outputs, tuple(hidden)
        self.activation, self.norm = activation, norm
        widths = (inputs, *self.hidden)
        if min(*widths, outputs) < 1:
            raise ValueError(f"MLP has widths {(*widths, outputs)}; every one must be at least 1")
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., inputs)` to `(..., outputs)`."""
        y: Tensor = self.layers(x)
        return y
