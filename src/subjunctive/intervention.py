"""Interventions: what may be done to a node, each in the node's own units.

Hard: `Set(v)` replaces the equation by a constant, `do(X = v)`. Soft: `Shift(a)` and `Scale(b)`
change what the equation gives, `f(u, pa) + a` and `b f(u, pa)`; `Replace(mechanism)` swaps it.
Stochastic: `Draw(distribution)` gives every unit its own draw, independent of the evidence, and
`Policy(g)` lets the value follow the parents, `g(pa)`. One may follow another on the same node.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from subjunctive.mechanism import Mechanism, Parents
from subjunctive.variable import Variable, known


class OutsideSupport(UserWarning):
    """An intervention sets a node far outside the range seen in training."""


class Intervention(ABC):
    """What is done to one node."""

    @property
    def hard(self) -> bool:
        """Whether the node no longer listens to its parents."""
        return False

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

    @property
    def length(self) -> int | None:
        """How many rows it has a value for; None if any number will do."""
        return None


@dataclass(frozen=True)
class Set(Intervention):
    """The node takes this value, whatever its parents: a number, a label, or one value a row."""

    value: Any

    @property
    def hard(self) -> bool:
        """It cuts the node from its parents."""
        return True

    @property
    def length(self) -> int | None:
        """How many values it has, if more than one."""
        return _length(self.value)

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
        value = variable.encode(self.value)
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
        _warn_outside(value, variable)
        return Set(value)


@dataclass(frozen=True)
class Shift(Intervention):
    """The node's own equation, plus an amount, for all or one a row `(B,)`: `f(u, pa) + a`."""

    amount: float | Tensor

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the natural value plus the amount."""
        value = natural()
        return value + _by_row(self.amount, value, "Shift")

    def rows(self, index: Tensor) -> Shift:
        """Take the rows' own amounts, where each row has its own."""
        return Shift(_pick(self.amount, index))

    @property
    def length(self) -> int | None:
        """How many amounts it has, if more than one."""
        return _length(self.amount)

    def check(self, variable: Variable) -> Intervention:
        """Refuse categories, which cannot be added to."""
        return _continuous(self, variable)


@dataclass(frozen=True)
class Scale(Intervention):
    """The node's own equation, times a factor, for all or one a row `(B,)`: `b f(u, pa)`."""

    factor: float | Tensor

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the natural value times the factor."""
        value = natural()
        return value * _by_row(self.factor, value, "Scale")

    def rows(self, index: Tensor) -> Scale:
        """Take the rows' own factors, where each row has its own."""
        return Scale(_pick(self.factor, index))

    @property
    def length(self) -> int | None:
        """How many factors it has, if more than one."""
        return _length(self.factor)

    def check(self, variable: Variable) -> Intervention:
        """Refuse categories, which cannot be multiplied."""
        return _continuous(self, variable)


@dataclass(frozen=True)
class Draw(Intervention):
    """Every unit gets its own draw, independent of the evidence and of the parents."""

    distribution: Distribution

    @property
    def hard(self) -> bool:
        """It cuts the node from its parents."""
        return True

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return one draw a row."""
        return self.distribution.sample((rows,))


@dataclass(frozen=True)
class Policy(Intervention):
    """The value follows a stated rule of the parents (name -> tensor, in their units)."""

    rule: Callable[[Parents], Tensor]

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return the rule's value."""
        value = torch.as_tensor(self.rule(parents))
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
        foreign = [p.name for p in self.mechanism.parents if p.name not in parents]
        if foreign:
            raise ValueError(
                f"Replace() gives {self.mechanism.variable.name!r} a mechanism that reads "
                f"{foreign}; its parents are {sorted(parents)}: build an SCM with another graph"
            )
        return natural(mechanism=self.mechanism, keep_noise=self.keep_noise)

    def check(self, variable: Variable) -> Replace:
        """Refuse a mechanism that was built for another variable."""
        if self.mechanism.variable != variable:
            raise ValueError(
                f"Replace() gives {variable.name!r} a mechanism built for "
                f"{self.mechanism.variable}; build it from the model's own {variable}"
            )
        return self


@dataclass(frozen=True)
class Then(Intervention):
    """One intervention after another on a node: the second takes what the first gives for natural.

    >>> Then(Set(torch.tensor([1.0])), Shift(2.0)).apply(lambda: torch.zeros(3), {}, 3)
    tensor([3., 3., 3.])
    """

    first: Intervention
    second: Intervention

    @property
    def hard(self) -> bool:
        """Whether the second is hard, or leaves a hard first one in force."""
        return self.second.hard or (self.first.hard and isinstance(self.second, Shift | Scale))

    @property
    def length(self) -> int | None:
        """How many rows either has a value for."""
        return self.second.length or self.first.length

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        """Return what the second makes of what the first gives."""

        def before(mechanism: Mechanism | None = None, keep_noise: bool = True) -> Tensor:
            if mechanism is not None:
                return natural(mechanism=mechanism, keep_noise=keep_noise)
            return self.first.apply(natural, parents, rows)

        return self.second.apply(before, parents, rows)

    def check(self, variable: Variable) -> Then:
        """Check both."""
        return Then(self.first.check(variable), self.second.check(variable))

    def rows(self, index: Tensor) -> Then:
        """Take the rows of both."""
        return Then(self.first.rows(index), self.second.rows(index))


def _length(amount: Any) -> int | None:
    own = isinstance(amount, Tensor) and amount.dim() > 0 and len(amount) > 1
    return len(amount) if own else None


def _pick(amount: float | Tensor, index: Tensor) -> float | Tensor:
    """Take these rows' amounts, where each row has its own."""
    if isinstance(amount, Tensor) and _length(amount) is not None:
        return amount[index.to(amount.device)]
    return amount


def _by_row(amount: float | Tensor, value: Tensor, what: str) -> float | Tensor:
    """Shape amounts `(B,)` so that each meets its own row."""
    if not isinstance(amount, Tensor) or amount.dim() == 0:
        return amount
    if len(amount) not in (1, len(value)) or amount.dim() > value.dim():
        raise ValueError(
            f"{what}() has amounts of shape {tuple(amount.shape)} for values of shape "
            f"{tuple(value.shape)}; give one, or one a row"
        )
    return amount.reshape(*amount.shape, *[1] * (value.dim() - amount.dim())).to(value.device)


def _warn_outside(value: Tensor, variable: Variable) -> None:
    """Warn, and say how far, where a value is far outside the training range."""
    if variable.low is None or variable.high is None or not value.numel():
        return
    low, high, span = float(value.min()), float(value.max()), variable.high - variable.low
    beyond, worst = max((variable.low - low, low), (high - variable.high, high))
    if beyond > 0.1 * span:
        warnings.warn(
            f"do() sets {variable.name!r} to {worst:g}, "
            f"{beyond / span if span else math.inf:.1f} ranges outside the training support "
            f"[{variable.low:g}, {variable.high:g}]; the answer extrapolates",
            OutsideSupport,
            stacklevel=3,
        )


def _continuous(intervention: Intervention, variable: Variable) -> Intervention:
    if variable.discrete:
        raise ValueError(
            f"{type(intervention).__name__} needs a continuous node; {variable.name!r} is "
            f"{variable.kind}: use Set, Draw or Policy"
        )
    return intervention


class Checked(dict[str, Intervention]):
    """Interventions that have been checked; `as_do` neither checks them nor warns again."""


def as_do(do: Mapping[str, Any], variables: Mapping[str, Variable]) -> Checked:
    """Turn `{node: value or Intervention}` into checked interventions.

    Raises:
        KeyError: for an unknown node, with the nearest name.
        ValueError: for a value of the wrong shape, kind or range.

    Example:
        >>> as_do({"t": 3.0}, {"t": Variable("t")})
        {'t': Set(value=tensor([3.]))}
    """
    if isinstance(do, Checked):
        return do
    checked = Checked()
    for name, what in do.items():
        known(name, variables, "do()")
        checked[name] = (what if isinstance(what, Intervention) else Set(what)).check(
            variables[name]
        )
    return checked


def act(
    intervention: Intervention,
    variable: Variable,
    natural: Callable[..., Tensor],
    parents: Parents,
    rows: int,
) -> Tensor:
    """Apply an intervention and check that the variable can hold what it gives.

    Raises:
        ValueError: for a value of the wrong shape, or that is no code of a category.
    """
    value = intervention.apply(natural, parents, rows)
    need = (rows, *variable.shape)
    if tuple(value.shape) != need:
        raise ValueError(
            f"{type(intervention).__name__}() gives {variable.name!r} values of shape "
            f"{tuple(value.shape)}; it needs {need}, batch first"
        )
    return variable.encode(value)
