"""Interventions: what may be done to a node, each in the node's own units.

Hard: `Set(v)` replaces the equation by a constant, `do(X = v)`. Soft: `Shift(a)` and `Scale(b)`
change what the equation gives, `f(u, pa) + a` and `b f(u, pa)`; `Replace(mechanism)` swaps it.
Stochastic: `Draw(distribution)` gives every unit its own draw, independent of the evidence, and
`Policy(g)` lets the value follow the parents, `g(pa)`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from subjunctive.mechanism import Mechanism, Parents
from subjunctive.variable import Variable, known


class OutsideSupport(UserWarning):
    """An intervention sets a node far outside the range seen in training."""


class Intervention(ABC):
    """What is done to one node.

    `hard` says that the node no longer listens to its parents.
    """

    hard: ClassVar[bool] = False

    @abstractmethod
    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the node's value `(rows, *shape)`, in the user's units.

        Args:
            natural: called with nothing, computes what the node's own equation gives; called with
                `mechanism` and `keep_noise`, what another mechanism gives in its place.
            parents: the parents' values in the user's units.
            rows: the batch size.
        """

    def check(self, variable: Variable) -> Intervention:
        """Return this intervention in the variable's own terms, or raise."""
        return self

    def rows(self, index: Tensor) -> Intervention:
        """Return the intervention for these rows alone."""
        return self


@dataclass(frozen=True)
class Set(Intervention):
    """The node takes this value, whatever its parents: a number, a label, or one value a row."""

    value: Any
    hard: ClassVar[bool] = True

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the constant, one a row."""
        value: Tensor = self.value
        if len(value) not in (1, rows):
            raise ValueError(
                f"an intervention has {len(value)} values for {rows} rows; give one or one a row"
            )
        return value.expand(rows, *value.shape[1:])

    def rows(self, index: Tensor) -> Set:
        """Take the values of these rows; one value for all stays as it is."""
        return self if len(self.value) == 1 else Set(self.value[index.to(self.value.device)])

    def check(self, variable: Variable) -> Set:
        """Encode labels, check the shape, and warn far outside the training range."""
        try:
            value = variable.encode(self.value)
        except TypeError as error:
            raise ValueError(
                f"do() sets {variable.name!r} to {self.value!r}, which is no number; "
                "give a number, a tensor or an Intervention"
            ) from error
        if not variable.discrete:
            value = value.to(torch.get_default_dtype()) if not value.is_floating_point() else value
            if value.dtype == torch.float64 and not isinstance(self.value, Tensor):
                value = value.to(torch.get_default_dtype())
        event = len(variable.shape)
        value = value if value.dim() > event else value[None]
        if value.dim() != event + 1 or tuple(value.shape[1:]) != variable.shape:
            raise ValueError(
                f"do() gives {variable.name!r} a value of shape {tuple(value.shape)}; it "
                f"needs {variable.shape}, or one a row (B, *{variable.shape})"
            )
        if not variable.discrete and not bool(torch.isfinite(value).all()):
            raise ValueError(f"do() sets {variable.name!r} to a value that is not finite")
        if variable.low is not None and variable.high is not None and value.numel():
            span, low, high = variable.high - variable.low, float(value.min()), float(value.max())
            beyond = max(variable.low - low, high - variable.high)
            if beyond > 0.1 * span:
                warnings.warn(
                    f"do() sets {variable.name!r} to {high if high > variable.high else low:g}, "
                    f"{beyond / span:.1f} ranges outside the training support "
                    f"[{variable.low:g}, {variable.high:g}]; the answer extrapolates",
                    OutsideSupport,
                    stacklevel=2,
                )
        return Set(value)


@dataclass(frozen=True)
class Shift(Intervention):
    """The node's own equation, plus an amount: `f(u, pa) + a`."""

    amount: float | Tensor

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the natural value plus the amount."""
        return natural() + self.amount

    def rows(self, index: Tensor) -> Shift:
        """Take the rows' own amounts, where each row has its own."""
        own = isinstance(self.amount, Tensor) and self.amount.dim() > 0
        return Shift(self.amount[index]) if own else self  # type: ignore[index]

    def check(self, variable: Variable) -> Intervention:
        """Refuse categories, which cannot be added to."""
        return _continuous(self, variable)


@dataclass(frozen=True)
class Scale(Intervention):
    """The node's own equation, times a factor: `b f(u, pa)`."""

    factor: float | Tensor

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the natural value times the factor."""
        return natural() * self.factor

    def rows(self, index: Tensor) -> Scale:
        """Take the rows' own factors, where each row has its own."""
        own = isinstance(self.factor, Tensor) and self.factor.dim() > 0
        return Scale(self.factor[index]) if own else self  # type: ignore[index]

    def check(self, variable: Variable) -> Intervention:
        """Refuse categories, which cannot be multiplied."""
        return _continuous(self, variable)


@dataclass(frozen=True)
class Draw(Intervention):
    """Every unit gets its own draw, independent of the evidence and of the parents."""

    distribution: Distribution
    hard: ClassVar[bool] = True

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return one draw a row."""
        return self.distribution.sample((rows,))


@dataclass(frozen=True)
class Policy(Intervention):
    """The value follows a stated rule of the parents (name -> tensor, in their units)."""

    rule: Callable[[Parents], Tensor]

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the rule's value."""
        value = self.rule(parents)
        return value.expand(rows, *value.shape[1:]) if value.dim() else value.expand(rows)


@dataclass(frozen=True)
class Replace(Intervention):
    """Another mechanism takes the node's place.

    Args:
        mechanism: built from the same variable and parents among the node's parents.
        keep_noise: whether the abducted noise is handed to it (its prior must have the same
            structure), or drawn anew from its own prior.
    """

    mechanism: Mechanism
    keep_noise: bool

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return what the other mechanism gives."""
        return natural(mechanism=self.mechanism, keep_noise=self.keep_noise)


def _continuous(intervention: Intervention, variable: Variable) -> Intervention:
    if variable.discrete:
        raise ValueError(
            f"{type(intervention).__name__} needs a continuous node; {variable.name!r} is "
            f"{variable.kind}: use Set, Draw or Policy"
        )
    return intervention


def as_do(do: Mapping[str, Any], variables: Mapping[str, Variable]) -> dict[str, Intervention]:
    """Turn `{node: value or Intervention}` into checked interventions.

    Raises:
        KeyError: for an unknown node, with the nearest name.
        ValueError: for a value of the wrong shape, kind or range.

    Example:
        >>> as_do({"t": 3.0}, {"t": Variable("t")})
        {'t': Set(value=tensor([3.]))}
    """
    checked = {}
    for name, what in do.items():
        known(name, variables, "do()")
        checked[name] = (what if isinstance(what, Intervention) else Set(what)).check(
            variables[name]
        )
    return checked
