r"""A node whose values lie on a grid, such as pixels of 8 bits: a continuous mechanism, rounded.

    y = f(u, pa),   x = the value of the grid nearest to y

A grid has no density: a model of it could put all its mass on the grid's values and be infinitely
likely. P(x | pa) is the integral of p(y | pa) over the cell of x, of width w in each of D numbers,
and by Jensen, for r drawn from the cell,

    log P(x | pa) >= E[log p(x + r | pa)] + D log w,    r ~ U(-w/2, w/2)^D.

Minus the right side, with one draw, is the loss (uniform dequantisation). Cells at the two ends of
the grid reach to infinity, for which the bound holds as well.

The noise is that of f. Abduction draws r and takes the noise of x + r: rounding gives x again,
whatever was drawn. The exact posterior has r from p(x + r | pa) instead of from the uniform, hence
the abduction is approximate; its error is within a cell.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Noise, Parents, Prior
from subjunctive.mechanisms.linear import LinearGaussian, check, own_samples
from subjunctive.variable import Batch, Variable

INNER = 0.98  # share of a cell that abduction draws from: rounding errors must not leave the cell


def _example() -> tuple[Mechanism, Batch]:
    score = Variable("x", (2,), low=-4.0, high=4.0)
    weights = torch.tensor([[0.8], [-0.5]])
    mechanism = Quantised(LinearGaussian.of(score, [Variable("t")], weights), values=9)
    return mechanism, own_samples(mechanism)


class Quantised(Mechanism):
    r"""A mechanism whose values are rounded to a grid: `x = round(f(u, pa))`.

    Reference: A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016),
    https://arxiv.org/abs/1511.01844

    Args:
        mechanism: of the continuous value; its variable's `low` and `high` are the first and the
            last value of the grid (0 and 1 for bytes over 255), whether or not the data reach them.
        values: how many values the grid has, evenly spaced; 256 for 8 bits.

    Raises:
        ValueError: for a mechanism without a density, a grid without ends or of fewer than two
            values, or a value off the grid.

    Example:
        >>> pixel = Variable("x", (1, 2, 2), low=0.0, high=1.0)
        >>> mechanism = Quantised(LinearGaussian(pixel))
        >>> x = torch.randint(256, (5, 1, 2, 2)) / 255
        >>> torch.allclose(mechanism(mechanism.abduct(x, {}), {}), x)
        True
    """

    card: ClassVar[Card] = Card(
        name="Quantised mechanism",
        summary="A continuous mechanism rounded to a grid, such as 8 bits; its likelihood's bound.",
        title="A Note on the Evaluation of Generative Models",
        authors="Theis, Lucas and van den Oord, Aäron and Bethge, Matthias",
        year=2016,
        url="https://arxiv.org/abs/1511.01844",
        assumptions=("values are a rounded continuous quantity",),
        needs="values on an even grid whose ends are known, and the parents' values",
        abduction="approximate",
        example=_example,
    )

    def __init__(self, mechanism: Density, values: int = 256) -> None:
        super().__init__(mechanism.variable, mechanism.parents)
        self.mechanism, self.values = mechanism, values
        v = self.variable
        if not isinstance(mechanism, Density) or v.discrete:
            raise ValueError(
                f"Quantised rounds a continuous node with a density; the {type(mechanism).__name__}"
                f" of {v.name!r} ({v.kind}) is none"
            )
        if values < 2 or v.low is None or v.high is None or not v.low < v.high:
            raise ValueError(
                f"the grid of {v.name!r} needs values >= 2 and the variable's low < high, got "
                f"{values} and {v.low}, {v.high}: give the Variable the grid's two ends"
            )
        self.start = (v.low - v.loc) / v.scale
        self.step = (v.high - v.low) / v.scale / (values - 1)

    def prior(self) -> Prior:
        """Return the density of the continuous mechanism's noise."""
        return self.mechanism.prior()

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return the grid's values nearest to `f(u, pa)`, `(B, *shape)`."""
        place = (self.mechanism(u, parents) - self.start) / self.step
        return self.start + self.step * place.round().clamp(0, self.values - 1)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return the noise of a value drawn from the cell of x."""
        return self.mechanism.abduct(self._drawn(x, INNER), parents)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return a bound on -log P(x | pa) with one draw, in nats, `{"nll": (B,)}`."""
        return {"nll": -self._bound(x, parents)}

    def bits(self, x: Tensor, parents: Parents, draws: int = 1) -> Tensor:
        """Return a bound on -log2 P(x | pa) a number of x, `(B,)`: bits per dimension.

        Args:
            x: standardised values on the grid.
            parents: theirs.
            draws: from each cell; the bound tightens as they grow (importance weighting).

        Example:
            >>> from torch.distributions import Independent, Uniform
            >>> from subjunctive.mechanisms.known import Known
            >>> even = Independent(Uniform(torch.full((3,), -0.5), torch.full((3,), 255.5)), 1)
            >>> byte = Variable("x", (3,), low=0.0, high=255.0)
            >>> same = Known(byte, [], lambda u, p: 1 * u, lambda x, p: x, even)
            >>> Quantised(same).bits(torch.randint(256, (2, 3)).float(), {})
            tensor([8., 8.])
        """
        found = torch.stack([self._bound(x, parents) for _ in range(draws)])
        log_p = found.logsumexp(0) - math.log(draws)
        return -log_p / (self.variable.width * math.log(2))

    def _bound(self, x: Tensor, parents: Parents) -> Tensor:
        log_p = self.mechanism.log_prob(self._drawn(x), parents)
        return log_p + self.variable.width * math.log(self.step)

    def _drawn(self, x: Tensor, share: float = 1.0) -> Tensor:
        """Return x plus a draw from its cell, after checking that x is on the grid."""
        check(x, self.variable)
        x = x.to(self.origin.dtype)
        place = (x - self.start) / self.step
        off = float((place - place.round().clamp(0, self.values - 1)).abs().max())
        if not off < 0.02:
            v = self.variable
            raise ValueError(
                f"{v.name!r} has values off its grid of {self.values} from {v.low} to {v.high}, by "
                f"up to {off:.2g} of a step: correct values, low and high, or leave out Quantised "
                "for a continuous node"
            )
        return x + share * self.step * (torch.rand_like(x) - 0.5)
