"""Data larger than memory: files and datasets as batches, in another order every pass.

Rows are read in blocks. What can be read anywhere gives its blocks in random order, what is read
from the front as they come. Batches are drawn without replacement from a pool, which the next block
fills up again, so that it holds fewer than buffer + block rows, however many there are:

    pool <- pool + block,    batch ~ pool,  pool <- pool - batch  while |pool| >= buffer.

`fit_variables` merges the mean m and the squares S of n values with those of the next batch,

    d = m' - m,    m <- m + d n' / (n + n'),    S <- S + S' + d^2 n n' / (n + n').
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subjunctive.data.stream_source import (
    Array,
    Order,
    Variables,
    by_name,
    has_length,
    open_source,
    whole,
)
from subjunctive.variable import Batch, Variable, known

PARTS = 16  # blocks in a buffer: fewer and more is read in one go, more and rows mix better


class Stream:
    """Rows of files or of a dataset as batches; every iteration is a pass in another order.

    The order of pass k follows from (seed, k); no global generator is drawn from. A seed given to
    torch since the stream was made is mixed in, and passes count from it: it is read, as `fit`
    gives one before every pass, so that a run that was stopped goes on with the same rows.

    What is None, NaN in a table, or a lone NaN in a dictionary is unseen. Categories are labels or
    codes; a number in a table is a label where the variable's labels are numbers. `Stream(...)` is
    a `SizedStream`, with a length, where the source knows its rows: not for text and what can only
    be iterated, with which `fit` needs steps, and reads all passes again when it is resumed.

    Args:
        source: a directory with a file `<node>.npy` a node, rows first, and `<node>.seen.npy`,
            boolean, where rows did not see it; a table (.csv, .tsv, also with .gz; .parquet, which
            needs pyarrow); a map-style or iterable dataset of dictionaries node -> value; a
            function that returns a new iterator of these. What no variable names is left out.
        variables: what is read: Variables, or node -> Variable; none that is latent.
        batch_size: rows a batch.
        shuffle: whether rows are mixed; give held-out ones without.
        buffer: rows from which a batch is drawn. Blocks have a sixteenth of it, but at least a
            batch where the source is read from the front.
        drop_last: whether a pass leaves out the rows that do not fill a batch.
        seed: of the orders.

    Raises:
        FileNotFoundError: for no source, or a node without its file. ImportError: without pyarrow.
        KeyError: for a node that is no column or not in a row, and a mask of an unknown node.
        ValueError: for arguments or values that cannot be; names the row, counted from 0.

    Example:
        >>> rows = [{"t": float(i), "arm": "drug" if i else None} for i in range(10)]
        >>> arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
        >>> stream = Stream(rows, [Variable("t"), arm], batch_size=4, drop_last=False)
        >>> len(stream), [len(batch) for batch in stream], next(stream.once()).mask("arm")
        (3, [4, 4, 2], tensor([False,  True,  True,  True]))
    """

    def __new__(cls, source: Any = None, *_: Any, **__: Any) -> Stream:
        """Make a stream with a length where the source has one."""
        return super().__new__(SizedStream if cls is Stream and has_length(source) else cls)

    def __init__(
        self,
        source: Any,
        variables: Variables,
        *,
        batch_size: int = 64,
        shuffle: bool = True,
        buffer: int = 10_000,
        drop_last: bool = True,
        seed: int = 0,
    ) -> None:
        self.source, self.variables, self.batch_size = source, variables, batch_size
        self.shuffle, self.buffer, self.drop_last, self.seed = shuffle, buffer, drop_last, seed
        for name, least in {"batch_size": 1, "buffer": 1, "seed": 0}.items():
            whole(name, getattr(self, name), least)
        self._source = open_source(source, by_name(variables))
        if self._source.rows is not None:
            self._enough(self._source.rows, drop_last)
        self._born = self._given = torch.initial_seed()
        self._passes = self._since = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what torch was seeded with in this process for the beginning."""
        self.__dict__.update(state)
        self._born = self._given = torch.initial_seed()

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next pass."""
        before, self._given = self._given, torch.initial_seed()
        if self._given == self._born:
            number, self._passes = [self._passes], self._passes + 1
        else:
            self._since = self._since + 1 if self._given == before else 0
            number = [self._given, self._since]
        order = np.random.default_rng([self.seed, *number]) if self.shuffle else None
        return self._batches(order, self.drop_last)

    def once(self) -> Iterator[Batch]:
        """Yield every row once, in the order of the source; no pass is counted."""
        return self._batches(None, False)

    def _batches(self, order: Order, drop_last: bool) -> Iterator[Batch]:
        size, source, held, found = self.batch_size, self._source, 0, 0
        keep = size if order is None else max(size, self.buffer)
        block = max(self.buffer // PARTS, 1 if order is not None and source.anywhere else size)
        pool = np.empty(min(keep + block, source.rows or keep + block), source.form)
        for rows in source.blocks(source, block, order):
            pool[held : held + len(rows)] = rows
            found, held = found + len(rows), held + len(rows)
            del rows  # or the block would stay in memory twice while its batches are given
            while held >= keep:
                yield source.batch(_take(pool, held, size, order))
                held -= size
        self._enough(found, drop_last)
        while held >= (size if drop_last else 1):
            yield source.batch(_take(pool, held, min(size, held), order))
            held -= min(size, held)

    def _enough(self, rows: int, drop_last: bool) -> None:
        if not rows:
            hint = "; let it return a new iterator at every call" if callable(self.source) else ""
            raise ValueError(f"{self._source.name} is empty: it gives no row{hint}")
        if drop_last and rows < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but {self._source.name} has {rows} rows; give "
                f"batch_size={rows} or less, or drop_last=False"
            )


class SizedStream(Stream):
    """A stream that knows how many batches a pass has."""

    def __len__(self) -> int:
        """Return the number of batches of a pass."""
        rows = self._source.rows or 0
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)


def _take(pool: Array, held: int, size: int, order: Order) -> Array:
    """Return rows of the first `held`, at random or the first; the others close up."""
    left = held - size
    if order is None:
        taken = pool[:size].copy()
        pool[:left] = pool[size:held]
        return taken
    at = order.choice(held, size, replace=False)
    taken = pool[at]
    pool[at[at < left]] = pool[np.setdiff1d(np.arange(left, held), at)]
    return taken


def memmap(
    directory: str | os.PathLike[str], batches: Iterable[Any], rows: int, *, progress: bool = False
) -> Path:
    """Write batches to a directory that `Stream` reads, one at a time; return the directory.

    The files are written beside the place and moved there whole; contexts are left out.

    Args:
        directory: where to; there must be nothing yet.
        batches: Batches, or what `Batch.of` reads; shapes and dtypes are those of the first.
        rows: how many they have together.
        progress: whether a bar is shown.

    Raises:
        FileExistsError: if there is something. KeyError: for a node that other batches lack.
        ValueError: for what is no number, for targets, and for another number of rows.

    Example:
        >>> import tempfile
        >>> parts = [{"t": torch.arange(4.0) + 4 * i} for i in range(3)]
        >>> with tempfile.TemporaryDirectory() as home:
        ...     len(Stream(memmap(f"{home}/rows", parts, 12), [Variable("t")], batch_size=6))
        2
    """
    from tqdm import tqdm

    place = Path(directory).expanduser()
    whole("rows", rows, 1)
    if place.exists():
        raise FileExistsError(f"{place} exists already; delete it, or give another directory")
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    beside.mkdir(parents=True)
    try:
        _write(beside, tqdm(batches, "batches", delay=2, disable=not progress), rows)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def _write(place: Path, batches: Iterable[Any], rows: int) -> None:
    """Write each node's file, and a mask's from the first row on that did not see its node."""
    files: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    done = 0
    for i, raw in enumerate(batches):
        try:
            batch = Batch.of(raw)
        except TypeError as error:
            remedy = "encode it first: Batch.of(data, variables)"
            raise ValueError(f"batch {i} holds no numbers ({error}); {remedy}") from error
        if batch.targets:
            raise ValueError(f"batch {i} has targets, which the files do not hold; leave it out")
        start, done = done, done + len(batch)
        if done > rows:
            raise ValueError(f"rows is {rows}, but batch {i} has row {done - 1}; give all rows")
        for name in (*batch.values, *files) if files else ():
            known(name, files if name in batch.values else batch.values, f"batch {i}")
        for name, tensor in batch.values.items():
            value = tensor.detach().cpu().numpy()
            if name not in files:
                if Path(name).name != name or name.endswith(".seen"):
                    raise ValueError(f"{name!r} cannot be the name of a file; rename the node")
                files[name] = _new(place, name, value.dtype, (rows, *value.shape[1:]))
            held = files[name]
            if (value.dtype, value.shape[1:]) != (held.dtype, held.shape[1:]):
                raise ValueError(
                    f"batch {i} has {name!r} as {value.dtype} of shape {value.shape[1:]}, the "
                    f"first as {held.dtype} of {held.shape[1:]}; bring them to one"
                )
            held[start:done] = value
            if name in batch.seen and name not in masks:
                masks[name] = _new(place, f"{name}.seen", np.dtype(bool), (rows,))
                masks[name][:] = True
            if name in batch.seen:
                masks[name][start:done] = batch.seen[name].cpu().numpy()
    if done < rows:
        raise ValueError(f"rows is {rows}, but the batches have {done}; give rows={done}")


def _new(place: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return np.lib.format.open_memmap(place / f"{name}.npy", "w+", dtype, shape)


def fit_variables(
    stream: Iterable[Any], variables: Variables, *, progress: bool = False
) -> dict[str, Variable]:
    """Return the variables with `loc`, `scale`, `low` and `high` of all seen rows, in one pass.

    They are those of `Variable.fit` on the whole, in float64.

    Args:
        stream: a `Stream`, all rows of which are read in order, or other batches.
        variables: which.
        progress: whether a bar is shown.

    Raises:
        KeyError: for a node that no batch has. ValueError: as `Variable.fit`, for a node that no
            row saw, that is constant, or that is not finite.

    Example:
        >>> rows = [{"t": float(i)} for i in range(101)]
        >>> fitted = fit_variables(Stream(rows, [Variable("t")]), [Variable("t")])["t"]
        >>> fitted.loc, round(fitted.scale, 2), fitted.high
        (50.0, 29.3, 100.0)
    """
    from tqdm import tqdm

    nodes, found = by_name(variables), set[str]()
    moments = {name: Moments() for name in nodes}
    batches = stream.once() if isinstance(stream, Stream) else stream
    for raw in tqdm(batches, "batches", delay=2, disable=not progress):
        batch = Batch.of(raw, list(nodes.values()))
        found.update(batch.values)
        for name in nodes.keys() & batch.values.keys():
            values = batch.values[name][batch.mask(name)]
            if len(values):
                moments[name].add(nodes[name], values)
    for name in nodes:
        known(name, found, "fit_variables()")
    return {name: moments[name].fit(variable) for name, variable in nodes.items()}


@dataclass
class Moments:
    """What is kept of a node's values: how many, mean, squares about it, ends, categories."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    ends: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, variable: Variable, values: Tensor) -> None:
        """Merge with those of further values."""
        if variable.discrete:
            self.ends = torch.cat([self.ends, variable.encode(values).cpu()]).unique()
            return
        values = values.double()
        if not bool(torch.isfinite(values).all()):
            variable.fit(values)  # which says so
        new, mean = values.numel(), float(values.mean())
        whole, shift = self.count + new, mean - self.mean
        self.squares += float((values - mean).square().sum())
        self.squares += shift**2 * self.count * new / whole
        self.mean, self.count = self.mean + shift * new / whole, whole
        ends = torch.stack(values.aminmax()).cpu()
        self.ends = torch.stack(torch.cat([self.ends, ends]).aminmax())

    def fit(self, variable: Variable) -> Variable:
        """Return the variable, fitted; what is wrong with it is said in its own words."""
        fitted = variable.fit(self.ends)
        if variable.discrete:
            return fitted
        return replace(fitted, loc=self.mean, scale=math.sqrt(self.squares / (self.count - 1)))
