"""What a `Stream` reads: directories of arrays, tables, datasets, functions; in blocks of rows."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from subjunctive.data.column import GAPS, labels, refuse_rounding
from subjunctive.data.table import SEPARATORS
from subjunctive.variable import Batch, Variable, known, nearest

Variables = Sequence[Variable] | Mapping[str, Variable]
Array = NDArray[Any]
Order = np.random.Generator | None  # None: as they come


class Source(NamedTuple):
    """What is read.

    Args:
        name: what it is called in errors.
        nodes: the variables, by name.
        form: the dtype of a row: its "values", and what was "seen", by node.
        rows: how many; None if it does not say.
        anywhere: whether blocks can be read in any order.
        blocks: yields the rows of a pass, so many at a time; none is kept while others are read.
    """

    name: str
    nodes: dict[str, Variable]
    form: np.dtype[Any]
    rows: int | None
    anywhere: bool
    blocks: Callable[[Source, int, Order], Iterator[Array]]

    def batch(self, rows: Array) -> Batch:
        """Return rows as a batch: numbers in torch's default dtype, categories as codes."""
        values, seen = {}, {}
        for name, v in self.nodes.items():
            tensor = torch.from_numpy(rows["values"][name].copy())  # of strides that torch takes
            values[name] = tensor if v.discrete else tensor.to(torch.get_default_dtype())
            if not rows["seen"][name].all():
                seen[name] = torch.from_numpy(rows["seen"][name].copy())
        return Batch(values, seen)

    def block(self, first: int, columns: Mapping[str, tuple[Any, Array]]) -> Array:
        """Return rows, from each node's seen values and the mask of the rows that saw it."""
        rows = np.zeros(len(next(iter(columns.values()))[1]), self.form)
        for name, (some, seen) in columns.items():
            variable, kept = self.nodes[name], rows["values"][name]
            try:
                value = variable.encode(some).numpy()
            except ValueError as error:
                raise ValueError(f"{self._span(first, rows)}: {error}") from error
            with np.errstate(over="ignore"):
                kept[seen], rows["seen"][name] = value, seen
            wrong = seen & ~np.isfinite(kept).all(axis=tuple(range(1, kept.ndim)))
            if wrong.any():
                raise ValueError(
                    f"row {first + wrong.argmax()} of {self.name} has NaN or infinite values of "
                    f"{name!r} as {kept.dtype}: correct them, or declare them unseen (None in "
                    f"dictionaries, {name}.seen.npy)"
                )
            if value.dtype != kept.dtype and variable.low is not None and variable.high is not None:
                lost = float(np.abs(value - kept[seen]).max(initial=0))
                try:
                    refuse_rounding(lost, variable.high - variable.low, kept.dtype)
                except ValueError as error:
                    span = self._span(first, rows)
                    raise ValueError(f"{span}: {name!r} {error}") from error
        return rows

    def _span(self, first: int, rows: Sequence[Any] | Array) -> str:
        return f"rows {first} to {first + len(rows) - 1} of {self.name}"

    def from_frame(self, first: int, frame: Any) -> Array:
        """Return the rows of a DataFrame."""
        columns = {}
        for name, variable in self.nodes.items():
            seen = frame[name].notna().to_numpy()
            some = frame[name][seen].to_numpy()
            columns[name] = labels(some, variable) if variable.discrete else some, seen
        return self.block(first, columns)

    def from_dicts(self, first: int, dicts: Iterable[Any]) -> Array:
        """Return the rows of dictionaries node -> value."""
        found: dict[str, list[Array | None]] = {name: [] for name in self.nodes}
        for i, row in enumerate(dicts, first):
            where = f"row {i} of {self.name}"
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{where} is a {type(row).__name__}; let it be a dictionary node -> value"
                )
            for name, variable in self.nodes.items():
                if name not in row:
                    raise KeyError(_lacks(where, "node", name, row))
                found[name].append(_value(row[name], variable, where))
        columns = {}
        for name, column in found.items():
            some = [value for value in column if value is not None]
            if len({value.dtype.kind in "OUS" for value in some}) > 1:  # stacked, all were labels
                span = self._span(first, column)
                raise ValueError(f"{span} have labels and codes of {name!r}; give one of them")
            seen = np.array([value is not None for value in column], bool)
            columns[name] = np.stack(some) if some else np.zeros((0, *self.nodes[name].shape)), seen
        return self.block(first, columns)


def _value(value: Any, variable: Variable, where: str) -> Array | None:
    """Return a node's value in one row; None where it is missing."""
    if value is None:
        return None
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has no array as {variable.name!r}: {error}") from error
    if array.shape != variable.shape:
        raise ValueError(
            f"{where} has {variable.name!r} of shape {array.shape}; the variable has "
            f"{variable.shape}: reshape it in the data set, or correct the Variable"
        )
    lone = not array.shape and array.dtype.kind == "f"
    return None if lone and np.isnan(array) else array


def open_source(source: Any, nodes: dict[str, Variable]) -> Source:
    """Return what is to be read, and refuse what cannot be; no row is read."""
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source).expanduser(), nodes)
    name, form = f"the {type(source).__name__}", _form(nodes)
    if isinstance(source, Batch | Mapping) or hasattr(source, "columns"):
        raise ValueError(f"{name} is in memory: give it to fit() as it is, without a Stream")
    if has_length(source):
        return Source(name, nodes, form, len(source), True, partial(_dataset, source))
    if isinstance(source, Iterable):
        if iter(source) is source:
            raise ValueError(
                f"{name} can be iterated once only; give a function that returns a new one"
            )
    elif not callable(source):
        raise ValueError(
            f"{name} is no source; give a path, a dataset of dictionaries node -> value, or a "
            "function that returns an iterator of these"
        )
    return Source(name, nodes, form, None, False, partial(_iterable, source))


def _open_path(path: Path, nodes: dict[str, Variable]) -> Source:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if path.is_dir():
        values = {name: array for name, (array, _) in _arrays(path, nodes).items()}
        form, rows = _form(nodes, values), len(next(iter(values.values())))
        return Source(str(path), nodes, form, rows, True, partial(_directory, path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no data at {path}")
    if path.suffix.lower() == ".parquet":
        with _parquet_file(path) as file:
            columns, rows = file.schema_arrow.names, file.metadata.num_rows
        source = Source(str(path), nodes, _form(nodes), rows, False, partial(_parquet, path))
    elif suffix in SEPARATORS:
        with _reading(path):
            columns = _read_text(path, {}, header=None, nrows=1, dtype=str).iloc[0].tolist()
        source = Source(str(path), nodes, _form(nodes), None, False, partial(_text, path))
    else:
        raise ValueError(
            f"{path} is no directory of .npy files and no .csv, .tsv or .parquet; give a function "
            "that returns an iterator of its rows, dictionaries node -> value"
        )
    for name, variable in nodes.items():
        if name not in columns:
            raise KeyError(_lacks(str(path), "column", name, columns))
        if columns.count(name) > 1:
            raise ValueError(f"{path} has {columns.count(name)} columns {name!r}; rename them")
        if variable.shape:
            raise ValueError(
                f"{path} is a table, with one number a cell, but {name!r} has shape "
                f"{variable.shape}; write a directory of .npy files, with memmap()"
            )
    return source


def has_length(source: Any) -> bool:
    """Return whether the rows of a source are known before it is read."""
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        return path.is_dir() or path.suffix.lower() == ".parquet"
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return sized and not isinstance(source, IterableDataset)  # which has a __getitem__, too


def _form(nodes: Mapping[str, Variable], arrays: Mapping[str, Array] | None = None) -> Any:
    """Return the dtype of a row; bytes and halves stay as small as they are in files."""
    usual, fields = torch.empty(0).numpy().dtype, []
    for name, v in nodes.items():
        small = arrays is not None and arrays[name].dtype in (np.uint8, np.float16)
        number = arrays[name].dtype if arrays is not None and small else usual
        fields.append((name, np.int64 if v.discrete else number, v.shape))
    return np.dtype([("values", fields), ("seen", [(name, bool) for name in nodes])])


def _directory(path: Path, source: Source, size: int, order: Order) -> Iterator[Array]:
    opened = _arrays(path, source.nodes)

    def read(first: int) -> Array:
        columns = {}
        for name, (array, mask) in opened.items():
            part = array[first : first + size]
            seen = np.ones(len(part), bool) if mask is None else mask[first : first + size]
            some = part if mask is None else part[seen]
            columns[name] = some.astype(some.dtype.newbyteorder("="), copy=False), seen
        return source.block(first, columns)

    return map(read, _starts(source, size, order))


def _arrays(path: Path, nodes: Mapping[str, Variable]) -> dict[str, tuple[Array, Array | None]]:
    """Map a directory's files into memory: each node's values, and its mask where it has one."""
    names = [p.name.removesuffix(".npy") for p in sorted(path.glob("*.npy"))]
    masks = [n.removesuffix(".seen") for n in names if n.endswith(".seen")]
    names = [n for n in names if not n.endswith(".seen")]
    opened: dict[str, tuple[Array, Array | None]] = {}
    sizes = {}
    for name in masks:
        known(name, names, f"the file '{name}.seen.npy' in {path}")
    for name, variable in nodes.items():
        if name not in names:
            files = [f"{n}.npy" for n in names]
            raise FileNotFoundError(_lacks(str(path), "file", f"{name}.npy", files))
        array = _mapped(path / f"{name}.npy")
        mask = _mapped(path / f"{name}.seen.npy") if name in masks else None
        if array.shape[1:] != variable.shape or not array.ndim:
            needed = "".join(f", {n}" for n in variable.shape)
            raise ValueError(
                f"{path / name}.npy has shape {array.shape}, {name!r} needs (rows{needed}): "
                "correct the file or the Variable"
            )
        if mask is not None and (mask.dtype != bool or mask.ndim != 1):
            raise ValueError(
                f"{path / name}.seen.npy is {mask.dtype} of shape {mask.shape}; a mask is bool, "
                "(rows,)"
            )
        sizes[f"{name}.npy"] = len(array)
        if mask is not None:
            sizes[f"{name}.seen.npy"] = len(mask)
        opened[name] = array, mask
    if len(set(sizes.values())) > 1:
        raise ValueError(f"rows of {path} do not line up: {sizes}; write all files anew")
    return opened


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be mapped into memory: {error} Arrays of objects are not read, as they "
            "are pickles, which may run code: save numbers, np.save(path, array.astype(float)), "
            "with a mask of what is missing"
        ) from error
    return array


def _dataset(data: Any, source: Source, size: int, order: Order) -> Iterator[Array]:
    def read(first: int) -> Array:
        index = range(first, min(first + size, source.rows or 0))
        many = getattr(data, "__getitems__", None)
        return source.from_dicts(first, many(list(index)) if many else (data[i] for i in index))

    return map(read, _starts(source, size, order))


def _starts(source: Source, size: int, order: Order) -> Iterator[int]:
    starts = np.arange(0, source.rows or 0, size)
    if order is not None:
        order.shuffle(starts)
    return map(int, starts)


def _iterable(data: Any, source: Source, size: int, order: Order) -> Iterator[Array]:
    given = data if isinstance(data, Iterable) else data()
    if not isinstance(given, Iterable):
        raise ValueError(
            f"{source.name} returns a {type(given).__name__}; let it return an iterator"
        )
    rows = iter(given)
    blocks = (source.from_dicts(first, islice(rows, size)) for first in count(0, size))
    return takewhile(len, blocks)


def _text(path: Path, source: Source, size: int, order: Order) -> Iterator[Array]:
    with _reading(path):
        frames = _read_text(path, source.nodes, chunksize=size)

    def read(first: int) -> Array:
        with _reading(path):
            frame = next(frames, None)
        return source.from_frame(first, frame) if frame is not None else np.empty(0)

    with frames:
        yield from takewhile(len, map(read, count(0, size)))


def _read_text(path: Path, nodes: Mapping[str, Variable], **how: Any) -> Any:
    import pandas

    kinds = {name: str for name, v in nodes.items() if v.discrete}  # "01" stays
    return pandas.read_csv(
        path,
        **{"dtype": kinds, **how},
        sep=SEPARATORS[Path(path.name.lower().removesuffix(".gz")).suffix],
        na_values={name: sorted(GAPS.difference(v.categories)) for name, v in nodes.items()},
        keep_default_na=False,
        skipinitialspace=True,
        index_col=False,
        low_memory=False,
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say what text should be like where it cannot be read."""
    from pandas import errors

    wrong = errors.ParserError, errors.ParserWarning, errors.EmptyDataError, UnicodeDecodeError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", errors.ParserWarning)  # lines too long
            yield
    except (*wrong, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read: {' '.join(str(error).split())}. It should be UTF-8 text, a "
            "line of names first, with as many fields in each line"
        ) from error


def _parquet(path: Path, source: Source, size: int, order: Order) -> Iterator[Array]:
    with _parquet_file(path) as file:
        groups = list(range(file.num_row_groups))
        sizes = [file.metadata.row_group(g).num_rows for g in groups]
        if order is not None:
            order.shuffle(groups)
        for group in groups:
            first, names = sum(sizes[:group]), list(source.nodes)
            for part in file.iter_batches(size, row_groups=[group], columns=names):
                yield source.from_frame(first, part.to_pandas(ignore_metadata=True))
                first += part.num_rows


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore
    except ImportError as error:
        raise ImportError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


# Arguments ------------------------------------------------------------------------------------


def whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def by_name(variables: Variables) -> dict[str, Variable]:
    """Return node -> Variable."""
    listed = list(variables.values() if isinstance(variables, Mapping) else variables)
    if not listed or not all(isinstance(v, Variable) for v in listed):
        raise ValueError(f"variables must be Variables, or node -> Variable; got {variables!r}")
    names = [v.name for v in listed]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"variables has {twice[0]!r} twice; give each node once")
    return dict(zip(names, listed, strict=True))


def _lacks(where: str, what: str, name: str, names: Iterable[Any]) -> str:
    listed = [str(n) for n in names]
    few = ", ".join(map(repr, listed[:20])) + (", ..." if len(listed) > 20 else "")
    return f"{where} has no {what} {name!r}; it has {few or 'none'}.{nearest(name, listed)}"
