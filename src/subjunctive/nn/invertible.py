r"""Invertible maps of vectors, the layers of an observation function: `x = g(z)`, g^-1, log-volume.

    affine       z = V (x - b)                          log |det dz/dx| = log |det V|
    leaky        z_i = x_i, or x_i / slope below zero   = -log slope, for each that is below
    couplings    z_b = x_b exp(s(x_a)) + t(x_a)         = the sum of s; z_a = x_a, then by turns

A layer's `forward` goes from x to z and gives the log-determinant, `inverse` goes from z to x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from subjunctive.nn.residual import Residual


class Affine(nn.Module):
    """Any invertible affine map, `x = V^-1 z + b`, which starts as the identity.

    Args:
        size: how many numbers a vector has.

    Example:
        >>> z, volume = Affine.whitening(torch.tensor([[0.0], [2.0], [4.0]]))(torch.ones(1, 1))
        >>> round(z.item(), 4), round(volume.exp().item(), 4)
        (-0.6124, 0.6124)
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.unmix = nn.Parameter(torch.eye(size))
        self.shift = nn.Parameter(torch.zeros(size))

    @classmethod
    def of(cls, mix: Tensor, shift: Tensor) -> Affine:
        """Return `x = mix z + shift`, of a matrix `(m, m)` and a vector `(m,)`."""
        self = cls(len(mix)).to(mix.dtype)
        with torch.no_grad():
            self.unmix.copy_(torch.linalg.inv(mix))
            self.shift.copy_(shift)
        return self

    @classmethod
    def whitening(cls, rows: Tensor, floor: float = 1e-6) -> Affine:
        """Return the map whose z are the rows' principal components, the largest one last.

        Args:
            rows: `(B, ...)`, flattened; z then has zero mean and unit covariance.
            floor: the least variance of a component, as a share of the largest.
        """
        flat = rows.reshape(len(rows), -1).double()
        centred = flat - flat.mean(0)
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(flat))
        mix = axes * variance.clamp(min=floor * float(variance[-1])).sqrt()
        return cls.of(mix, flat.mean(0)).to(rows.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z `(B, m)` and the log-determinant, one for all rows."""
        return (x - self.shift) @ self.unmix.T, torch.linalg.slogdet(self.unmix).logabsdet

    def inverse(self, z: Tensor) -> Tensor:
        """Return x `(B, m)`."""
        x: Tensor = torch.linalg.solve(self.unmix, z.T).T + self.shift
        return x


class Leaky(nn.Module):
    """A leaky rectifier of each number, `x = z` above zero and `slope z` below.

    Args:
        slope: positive.

    Raises:
        ValueError: for a slope that is not positive, which has no inverse.

    Example:
        >>> Leaky(0.5).inverse(torch.tensor([[-2.0, 2.0]]))
        tensor([[-1.,  2.]])
    """

    def __init__(self, slope: float = 0.5) -> None:
        super().__init__()
        self.slope = slope
        if not slope > 0:
            raise ValueError(f"Leaky has slope {slope}; it is inverted only if that is positive")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z `(B, m)` and the log-determinant `(B,)`."""
        below = x < 0
        return torch.where(below, x / self.slope, x), -math.log(self.slope) * below.sum(1).to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Return x `(B, m)`."""
        return torch.where(z < 0, z * self.slope, z)


class Couplings(nn.Module):
    """Affine couplings of a vector's halves by turns, which start as the identity.

    Args:
        size: how many numbers a vector has, two or more.
        steps: couplings. width: of their networks. blocks: residual blocks of each.

    Example:
        >>> layer, x = Couplings(5, steps=3, width=8), torch.randn(4, 5)
        >>> bool((layer.inverse(layer(x)[0]) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, size: int, steps: int = 4, width: int = 64, blocks: int = 1) -> None:
        super().__init__()
        self.size, self.steps, self.width, self.blocks = size, steps, width, blocks
        if size < 2 or steps < 1:
            raise ValueError(f"Couplings need size >= 2 and steps >= 1, got {size} and {steps}")
        ends = [slice(k % 2, None, 2) for k in range(steps)]  # what is kept: even or odd places
        kept = [len(range(size)[end]) for end in ends]
        self.networks = nn.ModuleList(
            Residual(n, 2 * (size - n), width=width, blocks=blocks, image=False) for n in kept
        )

    def _map(self, step: int, h: Tensor) -> tuple[Tensor, Tensor, slice]:
        raw, shift = self.networks[step](h[:, step % 2 :: 2], h[:, :0]).chunk(2, 1)
        return 2 * torch.tanh(raw / 2), shift, slice(1 - step % 2, None, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z `(B, m)` and the log-determinant `(B,)`."""
        h, total = x, x.new_zeros(len(x))
        for step in range(self.steps):
            s, t, moved = self._map(step, h)
            h = _put(h, h[:, moved] * s.exp() + t, moved)
            total = total + s.sum(1)
        return h, total

    def inverse(self, z: Tensor) -> Tensor:
        """Return x `(B, m)`."""
        h = z
        for step in reversed(range(self.steps)):
            s, t, moved = self._map(step, h)
            h = _put(h, (h[:, moved] - t) * torch.exp(-s), moved)
        return h


class Tail(nn.Module):
    """A layer that is applied to the last numbers of a vector; the others stay.

    Args:
        layer: an invertible map of vectors of fewer numbers. size: how many.

    Example:
        >>> Tail(Leaky(0.5), 1).inverse(torch.tensor([[-2.0, -2.0]]))
        tensor([[-2., -1.]])
    """

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z `(B, m)` and the log-determinant `(B,)`."""
        z, volume = self.layer(x[:, -self.size :])
        return torch.cat([x[:, : -self.size], z], 1), volume

    def inverse(self, z: Tensor) -> Tensor:
        """Return x `(B, m)`."""
        return torch.cat([z[:, : -self.size], self.layer.inverse(z[:, -self.size :])], 1)  # type: ignore[operator]


def _put(h: Tensor, values: Tensor, at: slice) -> Tensor:
    """Return a copy of h with these columns replaced."""
    h = h.clone()
    h[:, at] = values
    return h
