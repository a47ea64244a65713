"""Variables say what a node is; a batch says what was seen of it.

A node has a shape, a kind and a unit. Users give and get values in their own units; mechanisms see
standardised ones, `(v - loc) / scale`, and categories as integer codes. Whether a value is *latent*
is a property of a row, not of a node: `Batch.seen[name][row]` is true where the row saw the node.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Kind = Literal["continuous", "categorical", "ordinal"]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def known(name: str, names: Iterable[str], where: str) -> None:
    """Raise a `KeyError` that teaches if `name` is not one of `names`.

    >>> known("thicknes", ["thickness", "x"], "do()")
    Traceback (most recent call last):
    KeyError: "do() names unknown node 'thicknes'; the graph has 'thickness', 'x'. Did you mean 'thickness'?"
    """  # noqa: E501
    names = list(names)
    if name not in names:
        listed = ", ".join(repr(n) for n in names[:20]) + (", ..." if len(names) > 20 else "")
        hint = nearest(name, names)
        raise KeyError(f"{where} names unknown node {name!r}; the graph has {listed}.{hint}")


@dataclass(frozen=True)
class Variable:
    """What one node of a graph holds.

    Args:
        name: the node's name; any non-empty string (`type` and `pH.1` are fine).
        shape: the shape of one value, `()` for a scalar, `(C, H, W)` for an image.
        kind: `continuous`; `categorical` (unordered) or `ordinal` (ordered) integer codes.
        categories: the labels of the codes, in the order of the codes.
        loc, scale: what standardises a continuous value, `(v - loc) / scale`.
        unit: the unit of the values, for people.
        low, high: the range seen in training; an intervention far outside it is warned about.

    Example:
        >>> t = Variable("thickness", loc=2.5, scale=0.5, unit="px")
        >>> t.standardise(torch.tensor([3.0]))
        tensor([1.])
        >>> Variable("arm", kind="categorical", categories=("placebo", "drug")).encode("drug")
        tensor(1)
    """

    name: str
    shape: tuple[int, ...] = ()
    kind: Kind = "continuous"
    categories: tuple[str, ...] = ()
    loc: float = 0.0
    scale: float = 1.0
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no node can be."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "categories", tuple(str(c) for c in self.categories))
        if not self.name or not isinstance(self.name, str) or not isinstance(self.unit, str):
            raise ValueError(
                f"a Variable needs a non-empty name and a unit that are texts, got {self.name!r} "
                f"and {self.unit!r}"
            )
        for key in ("loc", "scale", "low", "high"):
            value = getattr(self, key)
            bound = key in ("low", "high")
            if not isinstance(value, Real) and not (bound and value is None):
                raise ValueError(f"{self.name!r} has {key} {value!r}, which is no number")
            if bound and value != value:
                raise ValueError(f"{self.name!r} has {key} {value!r}; leave it out if unknown")
        if self.kind not in get_args(Kind):
            hint = nearest(self.kind, get_args(Kind))
            raise ValueError(
                f"{self.name!r} has kind {self.kind!r}, not one of {get_args(Kind)}.{hint}"
            )
        if not (self.scale > 0 and np.isfinite(self.scale) and np.isfinite(self.loc)):
            raise ValueError(
                f"{self.name!r} has scale {self.scale}, loc {self.loc}: a constant column "
                "cannot be standardised; drop it or give scale=1"
            )
        if self.discrete and len(self.categories) < 2:
            raise ValueError(f"{self.name!r} is {self.kind}: name at least two categories")
        if self.discrete and self.shape:
            raise ValueError(
                f"{self.name!r} is {self.kind} with shape {self.shape}: use one node each"
            )

    @property
    def discrete(self) -> bool:
        """Whether values are integer codes of categories."""
        return self.kind != "continuous"

    @property
    def width(self) -> int:
        """How many columns the value takes in a matrix of parents."""
        return len(self.categories) if self.discrete else math.prod(self.shape)

    def encode(self, value: Any) -> Tensor:
        """Turn labels, numbers or arrays into a tensor in the user's units.

        Raises:
            ValueError: for a category that the variable does not have, a code out of range, or what
                is no number.
        """
        if not self.discrete:
            return value if isinstance(value, Tensor) else self._numbers(value)
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind == "O" and all(isinstance(v, int | float) for v in array.ravel()):
            array = array.astype(float)
        if array.dtype.kind in "OUS":
            code = {c: i for i, c in enumerate(self.categories)}
            flat = [str(v) for v in array.ravel()]
            unseen = next((v for v in flat if v not in code), None)
            if unseen is not None:
                raise ValueError(
                    f"{self.name!r} has no category {unseen!r}; it has "
                    f"{self.categories}.{nearest(unseen, self.categories)}"
                )
            array = np.array([code[v] for v in flat], dtype=np.int64).reshape(array.shape)
        codes = torch.as_tensor(np.require(array, requirements="W"))
        if codes.is_floating_point() and not bool((codes == codes.round()).all()):
            raise ValueError(f"{self.name!r} is {self.kind}: its codes are integers, got {codes}")
        codes = codes.long()
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= len(self.categories)):
            raise ValueError(
                f"{self.name!r} has {len(self.categories)} categories, coded 0 to "
                f"{len(self.categories) - 1}; got {int(codes.min())} to {int(codes.max())}"
            )
        return codes.to(value.device) if isinstance(value, Tensor) else codes

    def _numbers(self, value: Any) -> Tensor:
        try:
            array = np.asarray(value)
            array = array.astype(float) if array.dtype.kind == "O" else array
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name!r} needs numbers: {error}") from error
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"{self.name!r} is continuous and needs numbers, got {array.ravel()[:3]}; convert "
                "them, or give the Variable kind='categorical' and its categories"
            )
        return torch.as_tensor(np.require(array, requirements="W"))

    def standardise(self, value: Tensor) -> Tensor:
        """Turn a value in the user's units into what a mechanism sees."""
        return value.long() if self.discrete else (value - self.loc) / self.scale

    def restore(self, value: Tensor) -> Tensor:
        """Turn what a mechanism made into the user's units: the inverse of `standardise`."""
        return value if self.discrete else value * self.scale + self.loc

    def fit(self, values: Tensor, seen: Tensor | None = None) -> Variable:
        """Return this variable with `loc`, `scale`, `low` and `high` of the seen values.

        Raises:
            ValueError: if no value was seen, all seen values are the same, or one is not finite.
        """
        values = values if seen is None else values[seen]
        if not len(values):
            raise ValueError(
                f"{self.name!r} has no seen value; leave it out of the data or the graph"
            )
        if self.discrete:
            if len(self.encode(values).unique()) < 2:
                raise ValueError(f"{self.name!r} has one category in all rows; drop it")
            return self
        values = values.double()
        low, high = map(float, values.aminmax())  # NaN if one is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"{self.name!r} has NaN or infinite values in rows that are not declared missing; "
                "mask them: fit(values, seen)"
            )
        if low == high:
            raise ValueError(f"{self.name!r} is constant ({low}); drop it")
        scale, loc = map(float, torch.std_mean(values))
        return replace(self, loc=loc, scale=scale, low=low, high=high)

    def rename(self, name: str) -> Variable:
        """Return the same variable under another name."""
        return replace(self, name=name)


def as_matrix(values: Mapping[str, Tensor], variables: Sequence[Variable]) -> Tensor:
    """Lay standardised values side by side: continuous ones flat, categories one-hot.

    Ordinal codes become thermometers, `code >= k` for k = 1, 2, ..., behind a leading one.

    Args:
        values: name -> standardised value, batch first; a scalar node has shape `(B,)`.
        variables: which, in which order; at least one.

    Returns:
        a matrix `(B, sum of widths)`.
    """
    columns = []
    for v in variables:
        value = values[v.name]
        if v.kind == "categorical":
            columns.append(torch.nn.functional.one_hot(value.long(), v.width).float())
        elif v.kind == "ordinal":
            steps = torch.arange(v.width, device=value.device)
            columns.append((value.long()[:, None] >= steps).float())
        else:
            columns.append(value.reshape(len(value), -1))
    dtype = next((c.dtype for c, v in zip(columns, variables, strict=True) if not v.discrete), None)
    return torch.cat([c.to(dtype) if dtype else c for c in columns], dim=1)


@dataclass(frozen=True)
class Batch:
    """Rows of values by node, and what was seen of them.

    Args:
        values: node -> tensor, batch first. Values of unseen rows are ignored.
        seen: node -> boolean mask `(B,)`; a node in `values` without a mask is wholly seen, a node
            absent from `values` is wholly unseen.
        targets: environment's intervened nodes -> boolean mask `(B,)`.
        context: whatever else belongs to a row (environment, row number of a simulator).

    Example:
        >>> batch = Batch({"t": torch.tensor([1.0, 2.0])}, seen={"t": torch.tensor([True, False])})
        >>> len(batch), batch.mask("t"), batch[1:].values["t"]
        (2, tensor([ True, False]), tensor([2.]))
    """

    values: dict[str, Tensor]
    seen: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse rows that do not line up and masks of nothing."""
        sizes: dict[str, int] = {}
        for kind, group in self._groups():
            for name, tensor in group.items():
                if not isinstance(tensor, Tensor) or tensor.dim() == 0:
                    raise ValueError(
                        f"{kind}[{name!r}] must be a tensor with the batch first, "
                        f"got {type(tensor).__name__}; use Batch.of for other data"
                    )
                sizes[f"{kind}[{name!r}]"] = len(tensor)
        if not sizes:
            raise ValueError("a Batch needs at least one node's values")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"rows do not line up: {sizes}; give every tensor the same batch size")
        for name, mask in self.seen.items():
            if name not in self.values:
                raise ValueError(
                    f"seen names {name!r}, which has no values.{nearest(name, self.values)}"
                )
            if mask.dtype != torch.bool or mask.dim() != 1:
                raise ValueError(
                    f"seen[{name!r}] must be boolean of shape (B,), got {mask.dtype} "
                    f"{tuple(mask.shape)}"
                )

    def _groups(self) -> list[tuple[str, dict[str, Tensor]]]:
        return [
            ("values", self.values),
            ("seen", self.seen),
            ("targets", self.targets),
            ("context", self.context),
        ]

    @classmethod
    def of(cls, data: Any, variables: Sequence[Variable] | None = None) -> Batch:
        """Make a batch of a Batch, a dict of arrays, tensors or numbers, or a DataFrame.

        With `variables`, labels are encoded, scalars become rows, dtypes and shapes are checked,
        and `None`/NaN/NA in a DataFrame's column are unseen rows. In dicts a NaN is an error.
        """
        if isinstance(data, Batch):
            return data
        frame = hasattr(data, "columns")
        by_name = {v.name: v for v in variables or ()}
        values, seen = {}, {}
        for name in list(data.columns) if frame else list(data):
            column, variable = data[name], by_name.get(name)
            if variable is None and by_name:
                known(name, by_name, "the data")
            if frame:
                present = column.notna().to_numpy()
                if not present.all():
                    seen[name] = torch.as_tensor(present.copy())
                    some = column[present]
                    fill = some.iloc[0] if len(some) else 0
                    column = column.where(present, fill) if len(some) else np.zeros(len(column))
                column = np.asarray(column)
            if variable is not None:
                tensor = variable.encode(column)
            elif isinstance(column, Tensor):
                tensor = column
            else:
                tensor = torch.as_tensor(np.require(column, requirements="W"))
            if tensor.dtype == torch.float64 and not isinstance(column, Tensor):
                tensor = tensor.to(torch.get_default_dtype())
            values[name] = (
                tensor if tensor.dim() > len(variable.shape if variable else ()) else tensor[None]
            )
        return cls(values, seen)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.values.values() or self.context.values())))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of nodes that have values."""
        return iter(self.values)

    def mask(self, name: str) -> Tensor:
        """Return which rows saw the node, a boolean tensor `(B,)`."""
        if name in self.seen:
            return self.seen[name]
        value = next(iter(self.values.values() or self.context.values()))
        return torch.full((len(self),), name in self.values, device=value.device)

    def map(self, function: Any) -> Batch:
        """Apply a function of one tensor to every tensor of the batch."""
        return Batch(*({k: function(t) for k, t in group.items()} for _, group in self._groups()))

    def __getitem__(self, rows: Any) -> Batch:
        """Take rows by slice, mask or index tensor."""
        return self.map(lambda t: t[rows])

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move every tensor to a device; a dtype is applied to floating-point ones alone."""
        return self.map(
            lambda t: (
                t.to(*args, **kwargs)
                if t.is_floating_point()
                else t.to(
                    *[a for a in args if not isinstance(a, torch.dtype)],
                    **{k: v for k, v in kwargs.items() if k != "dtype"},
                )
            )
        )

    def only(self, names: Iterable[str]) -> Batch:
        """Keep the values of the named nodes alone; the others become unseen."""
        keep = set(names)
        return Batch(
            {k: v for k, v in self.values.items() if k in keep},
            {k: v for k, v in self.seen.items() if k in keep},
            self.targets,
            self.context,
        )

    def repeat(self, times: int) -> Batch:
        """Repeat every row `times` times, draws of a row side by side."""
        return self.map(lambda t: t.repeat_interleave(times, dim=0))
