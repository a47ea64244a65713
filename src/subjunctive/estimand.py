"""Estimands: formulas of observational probabilities, to be read and to be computed.

A formula is a tree of `P(of | given)`, products, ratios and sums. `str` writes it; `evaluate`
computes it from a discrete joint table. Names in a formula are the nodes' own; a name with a prime
is either the variable of a sum inside another's scope, or a second value of the same node
(`Renamed`), as in P(y_x | x').
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from subjunctive.variable import known


@dataclass(frozen=True, eq=False)
class Table:
    """A table of probabilities with a named axis a discrete variable.

    Args:
        names: the variables, one an axis.
        values: the probabilities, `values[i, j, ...]` at code i of the first variable and so on.

    Example:
        >>> t = Table(("x", "y"), np.array([[0.1, 0.4], [0.3, 0.2]]))
        >>> Prob(("y",), ("x",)).evaluate(t).at(x=0).values.round(2).tolist()
        [0.2, 0.8]
    """

    names: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        """Refuse axes without a name."""
        if np.ndim(self.values) != len(self.names) or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"a table of {np.ndim(self.values)} axes needs as many different names, "
                f"got {self.names}"
            )

    def at(self, codes: Mapping[str, int] | None = None, **more: int) -> Table:
        """Return the table where some variables have the given codes."""
        fixed = {**(codes or {}), **more}
        for name in fixed:
            known(name, self.names, "at()")
        index = tuple(fixed.get(name, slice(None)) for name in self.names)
        return Table(tuple(n for n in self.names if n not in fixed), self.values[index])


class Estimand(ABC):
    """A formula of observational probabilities: a tree of the classes below."""

    @property
    @abstractmethod
    def free(self) -> frozenset[str]:
        """The variables that the formula is a function of."""

    @abstractmethod
    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write the formula; `shown` renames variables, `taken` are names in use outside."""

    @abstractmethod
    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Compute the formula; all axes are kept, of size one where it is no function of them."""

    def __str__(self) -> str:
        """Return the formula in words of the field, `sum_{z} P(y | x, z) P(z)`."""
        return self.text({}, self.free)

    def evaluate(self, joint: Table) -> Table:
        """Compute the formula from a joint table; its axes are the free variables.

        A variable that stands free though the answer does not depend on it ("for any w") keeps its
        axis. Where a condition has probability zero, and the term is not void, the answer is NaN.

        Args:
            joint: the probabilities of all variables of the formula; sums to one.

        Raises:
            KeyError: if a variable is missing from the table.
        """
        second = sorted(_second(self))
        axes = {name: i for i, name in enumerate([*joint.names, *second])}
        for name in sorted(self.free):
            known(name, axes, "the formula")
        values = self.array(joint.values.reshape(*joint.values.shape, *([1] * len(second))), axes)
        names = [n for n in axes if n in self.free]
        return Table(
            tuple(names),
            values.transpose(_order(axes, names)).reshape([values.shape[axes[n]] for n in names]),
        )


def _order(axes: Mapping[str, int], names: Sequence[str]) -> list[int]:
    return [axes[n] for n in names] + [i for n, i in axes.items() if n not in names]


def _second(estimand: Estimand) -> set[str]:
    """Return the names of second values in a formula."""
    found = {new for _, new in estimand.names} if isinstance(estimand, Renamed) else set()
    return found.union(*(_second(part) for part in _parts(estimand)))


def _parts(estimand: Estimand) -> Sequence[Estimand]:
    if isinstance(estimand, Product):
        return estimand.factors
    if isinstance(estimand, Ratio):
        return estimand.above, estimand.below
    return (estimand.inner,) if isinstance(estimand, Sum | Renamed) else ()


@dataclass(frozen=True)
class Prob(Estimand):
    """The observational probability `P(of | given)`.

    >>> str(Prob(("y",), ("x", "z")))
    'P(y | x, z)'
    """

    of: tuple[str, ...]
    given: tuple[str, ...] = ()

    @property
    def free(self) -> frozenset[str]:
        """All its variables."""
        return frozenset(self.of + self.given)

    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write `P(of | given)`."""
        of, given = (", ".join(shown.get(n, n) for n in part) for part in (self.of, self.given))
        return f"P({of} | {given})" if given else f"P({of})"

    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Compute the margin of all its variables over that of the given ones."""

        def margin(names: Iterable[str]) -> np.ndarray:
            kept = {axes[n] for n in names}
            return joint.sum(tuple(i for i in range(joint.ndim) if i not in kept), keepdims=True)

        return _divide(margin(self.free), margin(self.given))


@dataclass(frozen=True)
class Product(Estimand):
    """The product of formulas; build it with `product`."""

    factors: tuple[Estimand, ...]

    @property
    def free(self) -> frozenset[str]:
        """The variables of any factor."""
        return frozenset().union(*(f.free for f in self.factors))

    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write the factors, sums last or in brackets."""
        words = [f.text(shown, taken) for f in self.factors]
        last = len(words) - 1
        for i, factor in enumerate(self.factors):
            inner = factor.inner if isinstance(factor, Renamed) else factor
            if isinstance(inner, Ratio) or (isinstance(inner, Sum) and i < last):
                words[i] = f"[{words[i]}]"
        return " ".join(words) or "1"

    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Multiply; a factor of zero makes undefined ones void."""
        return reduce(
            _times, (f.array(joint, axes) for f in self.factors), np.ones([1] * joint.ndim)
        )


@dataclass(frozen=True)
class Sum(Estimand):
    """The sum of a formula over variables; build it with `total`."""

    over: tuple[str, ...]
    inner: Estimand

    @property
    def free(self) -> frozenset[str]:
        """The variables not summed over."""
        return self.inner.free - set(self.over)

    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write `sum_{v} ...`, with a prime to v where v has a meaning outside the sum."""
        shown = dict(shown)
        for name in self.over:
            fresh = name
            while fresh in taken:
                fresh += "'"
            shown[name], taken = fresh, taken | {fresh}
        over = ", ".join(shown[name] for name in self.over)
        return f"sum_{{{over}}} {self.inner.text(shown, taken)}"

    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Sum over the axes of the variables."""
        over = tuple(axes[n] for n in self.over)
        inner = self.inner.array(joint, axes)
        shape = [joint.shape[i] if i in over else size for i, size in enumerate(inner.shape)]
        return np.broadcast_to(inner, shape).sum(over, keepdims=True)


@dataclass(frozen=True)
class Ratio(Estimand):
    """One formula over another; build it with `ratio`."""

    above: Estimand
    below: Estimand

    @property
    def free(self) -> frozenset[str]:
        """The variables of both."""
        return self.above.free | self.below.free

    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write `(above) / (below)`."""
        words = []
        for part in (self.above, self.below):
            word = part.text(shown, taken)
            words.append(word if isinstance(part, Prob) else f"({word})")
        return " / ".join(words)

    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Divide; NaN where the lower one is zero."""
        return _divide(self.above.array(joint, axes), self.below.array(joint, axes))


@dataclass(frozen=True)
class Renamed(Estimand):
    """A formula at second values of some nodes: `names` are pairs of a node and its second name.

    >>> str(Renamed(Prob(("z",), ("x",)), (("x", "x'"),)))
    "P(z | x')"
    """

    inner: Estimand
    names: tuple[tuple[str, str], ...]

    @property
    def free(self) -> frozenset[str]:
        """The variables of the formula, under their second names."""
        second = dict(self.names)
        return frozenset(second.get(n, n) for n in self.inner.free)

    def text(self, shown: Mapping[str, str], taken: frozenset[str]) -> str:
        """Write the formula with the second names."""
        second = {old: shown.get(new, new) for old, new in self.names}
        return self.inner.text({**shown, **second}, taken)

    def array(self, joint: np.ndarray, axes: Mapping[str, int]) -> np.ndarray:
        """Compute the formula and move the nodes' axes to those of the second names."""
        values = self.inner.array(joint, axes)
        for old, new in self.names:
            values = values.swapaxes(axes[old], axes[new])
        return values


def product(factors: Iterable[Estimand]) -> Estimand:
    """Multiply formulas: nested products are laid flat, sums come last."""
    flat: list[Estimand] = []
    for factor in factors:
        flat += factor.factors if isinstance(factor, Product) else [factor]
    flat.sort(key=lambda factor: isinstance(factor, Sum))
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def total(over: Iterable[str], inner: Estimand) -> Estimand:
    """Sum a formula over variables, dropping probabilities that sum to one.

    >>> str(total(["z"], product([Prob(("y",), ("x",)), Prob(("z",), ("y",))])))
    'P(y | x)'
    """
    names = list(dict.fromkeys(over))
    if isinstance(inner, Sum) and not set(names) & set(inner.over):
        names, inner = [*names, *inner.over], inner.inner
    factors = list(inner.factors) if isinstance(inner, Product) else [inner]
    while True:
        for name in names:
            holding = [f for f in factors if name in f.free]
            if len(holding) == 1 and isinstance(only := holding[0], Prob) and name in only.of:
                break
        else:
            break
        rest = tuple(n for n in only.of if n != name)
        i = factors.index(only)
        factors[i : i + 1] = [Prob(rest, only.given)] if rest else []
        names.remove(name)
    outside = [f for f in factors if not f.free & set(names)]
    inside = [f for f in factors if f.free & set(names)]
    return product([*outside, Sum(tuple(names), product(inside))] if names else factors)


def ratio(above: Estimand, below: Estimand) -> Estimand:
    """Divide formulas, cancelling the factors that both have.

    >>> x, y = Prob(("x",)), Prob(("y",), ("x",))
    >>> str(ratio(product([x, y]), x))
    'P(y | x)'
    """
    tops = list(above.factors) if isinstance(above, Product) else [above]
    lows = list(below.factors) if isinstance(below, Product) else [below]
    for factor in list(lows):
        if factor in tops:
            tops.remove(factor)
            lows.remove(factor)
    return Ratio(product(tops), product(lows)) if lows else product(tops)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) | (b == 0), 0.0, a * b)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b == 0, np.nan, a / b)
