"""A table of one's own: a file or a DataFrame becomes a graph, variables and batches.

A column of numbers is continuous, one of words categorical, an ordered one ordinal. A missing entry
is a mask, `Batch.seen`, and never a number. Variables are fitted on training rows alone. What is
wrong is said of all columns at once; rows count from 0, header and blank lines aside.
"""

from __future__ import annotations

import inspect
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subjunctive.checkpoint import StoreError
from subjunctive.data.column import (
    GAPS,
    NOTHING,
    NUMBERS,
    TEXTS,
    as_numbers,
    codes,
    held,
    label,
    masked,
    numbers,
)
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Kind, Variable, known, nearest

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Table:
    """The rows of a file or a DataFrame, split at random into train, valid and test.

    Args:
        source: a path to text (`.csv`, `.tsv`, also with `.gz`) or Parquet (`.parquet`, which needs
            pyarrow), or a DataFrame, whose index is ignored.
        graph: a Graph or arrows, "age -> arm; age, arm -> outcome"; None: no arrow, all columns.
        categorical: columns that are categories though they hold numbers. A model that is asked
            takes a number for a code, 0 for the first category, and a text for a label: ask "2".
        ordinal: column -> its categories, from the lowest to the highest.
        units: column -> its unit, for people.
        missing: further entries that stand for a missing one, such as "?" or "-999".
        drop: columns to do without.
        valid, test: shares of the rows; a share of 0 leaves None.
        seed: of the split; the global generator is left alone.

    Attributes:
        graph, variables: the causal graph, and its variables, fitted on the training rows.
        train, valid, test: batches in random order, or, where train is all rows, in the table's;
            `context["row"]` is each row's number.
        left_out: columns that neither the graph nor `drop` names.

    Raises:
        ValueError: for a file that is no table, and, at once, for all columns of no use.

    Example:
        >>> import pandas
        >>> rows = {"age": [61.0, None, *range(50, 58)], "arm": ["drug", "placebo"] * 5, "id": 1}
        >>> table = Table(pandas.DataFrame(rows), "age -> arm", units={"age": "years"})
        >>> len(table.train), len(table.valid), len(table.test), table.left_out
        (8, 1, 1, ('id',))
        >>> int(table.describe().loc["age", "missing"])
        1
        >>> table.frame({"age": torch.tensor([55.0]), "arm": torch.tensor([1])})
            age      arm
        0  55.0  placebo
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | DataFrame,
        graph: Graph | str | None = None,
        *,
        categorical: Sequence[str] = (),
        ordinal: Mapping[str, Sequence[str]] | None = None,
        units: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
        drop: Sequence[str] = (),
        valid: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.source, self.drop, self.missing, self.seed = source, drop, missing, seed
        self.categorical, self.ordinal, self.units = categorical, ordinal, units
        self.shares = {"test": test, "valid": valid}  # the attributes `test`, `valid` are batches
        self._check()
        self._hidden = {str(m) for m in _names(missing)}
        self._orders = {n: [label(c) for c in _names(o)] for n, o in (ordinal or {}).items()}
        drawn = Graph.parse(graph) if isinstance(graph, str) else graph
        if not isinstance(drawn, Graph | None):
            raise ValueError(f"graph is a {type(graph).__name__}: give a Graph, or its arrows, "
                             "such as 'age -> arm'")  # fmt: skip
        where, columns, frame = self._open()
        if not len(frame):
            raise ValueError(f"{where} has no rows; give a table with lines of data")
        nodes = [c for c in dict.fromkeys(columns) if c not in _names(drop)]
        problems = self._misnamed(columns, nodes, drawn)
        read: dict[str, tuple[NDArray[Any], Variable]] = {}
        parts = [column for _, column in frame.items()]  # by position, as two names may be equal
        for name in nodes if drawn is None else [n for n in drawn.nodes if n in nodes]:
            try:
                if not name or columns.count(name) > 1:
                    raise ValueError(f"names no single column: rename it, or drop=({name!r},)")
                read[name] = self._column(name, parts[columns.index(name)])
            except ValueError as error:
                problems.append(f"{name!r} {error}")
        problems += self._split(len(frame), read)
        if problems:
            raise ValueError("\n  - ".join([f"{where} cannot be used as it is:", *problems]))
        self.graph = Graph(nodes) if drawn is None else drawn
        self.left_out = tuple(n for n in nodes if n not in self.graph)

    def _check(self) -> None:
        """Refuse arguments of a wrong kind, which a configuration may hold."""
        test, valid = self.shares.values()
        sound = all(isinstance(s, Real) and s >= 0 for s in (valid, test)) and valid + test < 1
        if not sound:
            raise ValueError(f"valid={valid!r}, test={test!r}: give shares, together less than 1")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ValueError(f"seed={self.seed!r}: give a whole number")
        for what, given in (("ordinal", self.ordinal), ("units", self.units)):
            if not isinstance(given, Mapping | None):
                raise ValueError(f"{what}={given!r}: give a mapping, column -> what it has")

    def _open(self) -> tuple[str, list[str], DataFrame]:
        """Return what the table is called, the names of its columns, and its rows."""
        import pandas

        if isinstance(self.source, pandas.DataFrame):
            return "the DataFrame", [str(c) for c in self.source.columns], self.source
        if not isinstance(self.source, str | os.PathLike):
            raise ValueError(f"source is a path or a DataFrame, not a {type(self.source).__name__}")
        path = Path(self.source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no table at {path}")
        suffix = Path(path.name.lower().removesuffix(".gz")).suffix
        if suffix in SEPARATORS:
            return str(path), *self._read_text(path, SEPARATORS[suffix])
        if suffix != ".parquet":
            raise ValueError(f"{path} is no .csv, .tsv (or .gz of these) or .parquet file; read it "
                             "with pandas and give the DataFrame")  # fmt: skip
        try:
            frame = pandas.read_parquet(path, engine="pyarrow")
        except ImportError as error:
            raise ImportError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        return str(path), [str(c) for c in frame.columns], frame

    def _read_text(self, path: Path, separator: str) -> tuple[list[str], DataFrame]:
        import pandas

        how = {"sep": separator, "skipinitialspace": True, "keep_default_na": False}
        wrong = pandas.errors.ParserError, pandas.errors.ParserWarning, UnicodeDecodeError
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pandas.errors.ParserWarning)  # lines too long
                head = pandas.read_csv(path, header=None, nrows=1, dtype=str, **how)
                columns = [c.strip() for c in head.iloc[0]]
                other = [s for s in ";\t|," if s in columns[0] and len(columns) == 1]
                if other:
                    raise ValueError(f"{path} seems to have {other[0]!r} between its fields; give "
                                     f"pandas.read_csv(path, sep={other[0]!r})")  # fmt: skip
                labels = {*_names(self.categorical), *self._orders}
                gaps = [(GAPS | self._hidden).difference(self._orders.get(c, ())) for c in columns]
                frame = pandas.read_csv(
                    path,
                    header=0,
                    names=list(range(len(columns))),  # positions, as two names may be equal
                    index_col=False,
                    dtype={i: str for i, c in enumerate(columns) if c in labels},  # "01" stays
                    na_values={i: sorted(g) for i, g in enumerate(gaps)},
                    low_memory=False,  # in chunks, whether "01" is read as 1 hangs on the chunk
                    **how,
                )
        except pandas.errors.EmptyDataError as error:
            raise ValueError(f"{path} is empty; its first line must name the columns") from error
        except (*wrong, OSError, EOFError, zlib.error) as error:
            why = " ".join(str(error).split()).strip(".")
            why += f". It must be UTF-8 text with {separator!r} between fields, names first; give "
            raise ValueError(f"{path} cannot be read: {why}a DataFrame if it is not") from error
        return columns, frame

    def _misnamed(self, columns: list[str], nodes: list[str], graph: Graph | None) -> list[str]:
        """Say which names, given or in the graph, are no column's."""
        listed = f" The columns are {', '.join(map(repr, columns[:30]))}."
        problems = [
            f"{what} names {name!r}, which is no column.{nearest(name, columns) or listed}"
            for what in ("categorical", "ordinal", "units", "drop")
            for name in _names(getattr(self, what))
            if name not in columns
        ]
        for name in self._orders.keys() & set(_names(self.categorical)):
            problems.append(f"{name!r} stands in categorical and in ordinal: keep one")
        if not len(nodes if graph is None else graph):
            problems.append(f"no column is left: name some in the graph, or drop fewer.{listed}")
        for name in () if graph is None else graph.nodes:
            if name not in columns:
                hint = (nearest(name, columns) or listed) + " A Table has no latent nodes: give it"
                hint += " graph.latent_projection([its columns])"
                problems.append(f"the graph names {name!r}, which is no column.{hint}")
            elif name not in nodes:
                problems.append(f"{name!r} stands in the graph and in drop: take it out of one")
        return problems

    def _column(self, name: str, column: Series) -> tuple[NDArray[Any], Variable]:
        """Return a column's numbers or codes, NaN where missing, and its variable, not fitted."""
        order, unit = self._orders.get(name), (self.units or {}).get(name, "")
        if order is not None and (len(order) < 2 or len(set(order)) < len(order)):
            raise ValueError(f"has ordinal={order}: list two categories or more, each once")
        named: Kind | None = "categorical" if name in _names(self.categorical) else None
        kind = "ordinal" if order else named
        given, column = column, masked(column, self._hidden.difference(order or ()))
        if kind is None and column is not given and held(column) in TEXTS:
            read = as_numbers(column)  # the "?" is gone that had made texts of numbers
            column = read if read.count() == column.count() else column
        word = held(column)
        if kind is None and word in NUMBERS:
            return numbers(column), Variable(name, unit=unit)
        if not column.notna().any():
            raise ValueError(NOTHING)
        if kind is None and word not in (*TEXTS, "boolean", "categorical"):
            raise ValueError(f"holds {word} ({column.dtype}), no numbers or labels: convert it, as "
                             "(column - column.min()).dt.days does dates")  # fmt: skip
        found, categories, kind = codes(column, kind, order)
        return found, Variable(name, kind=kind, categories=categories, unit=unit)

    def _split(self, rows: int, read: Mapping[str, tuple[NDArray[Any], Variable]]) -> list[str]:
        """Set batches and variables; say which columns or rows do not suffice to train on."""
        sizes = {name: round(share * rows) for name, share in self.shares.items()}
        sizes["train"] = rows - sum(sizes.values())
        least = {name: int(share > 0) for name, share in self.shares.items()} | {"train": 2}
        short = [f"{sizes[n]} for {n}, where {k} must be" for n, k in least.items() if sizes[n] < k]
        if short or not read:
            few = f"{rows} rows are too few: {', '.join(short)}; give more, or other shares (or 0)"
            return [few] if short else []
        self.variables, problems = {n: v for n, (_, v) in read.items()}, []
        whole = _batch(read, rows)
        if sizes["train"] == rows:
            self.test, self.valid, self.train = None, None, whole
        else:
            with seeded(self.seed):
                parts = torch.randperm(rows).split(list(sizes.values()))
            self.test, self.valid = (whole[p] if len(p) else None for p in parts[:2])
            self.train = whole[parts[2]]
        for name, variable in list(self.variables.items()):
            values, seen = self.train.values[name], self.train.seen.get(name)
            try:
                self.variables[name] = variable.fit(values, seen)
            except ValueError as error:
                problems.append(f"in the {len(values)} training rows, {error}, or change the seed")
        return problems

    def frame(self, rows: Batch | Mapping[str, Tensor]) -> DataFrame:
        """Return rows as a DataFrame in the user's units and labels; NaN where missing.

        Args:
            rows: a Batch, or node -> `(B,)` as queries answer; the rows keep their order.
        """
        import pandas

        values = rows.values if isinstance(rows, Batch) else rows
        columns: dict[str, Any] = {}
        for name in values:
            known(name, self.variables, "frame()")
            v, value = self.variables[name], values[name].detach().cpu()
            if value.dim() != 1:
                raise ValueError(f"{name!r} has shape {tuple(value.shape)}; frame() needs (B,)")
            seen = rows.mask(name).cpu() if isinstance(rows, Batch) else ~value.isnan()
            if v.discrete:
                at = v.encode(value.where(seen, 0)).where(seen, -1).numpy()
                labels = pandas.CategoricalDtype(list(v.categories), v.kind == "ordinal")
                columns[name] = pandas.Categorical.from_codes(at, dtype=labels)
            else:
                columns[name] = np.where(seen.numpy(), value.numpy(), np.nan)
        return pandas.DataFrame({n: columns[n] for n in self.variables if n in columns})

    def describe(self) -> DataFrame:
        """Return a row a column: kind, unit, categories or training range, what is missing."""
        import pandas

        batches = [b for b in (self.train, self.valid, self.test) if b is not None]
        rows, found = sum(map(len, batches)), []
        for name, v in self.variables.items():
            gaps = rows - sum(int(b.mask(name).sum()) for b in batches)
            found.append((v.kind, v.unit, v.categories, v.low, v.high, gaps, gaps / rows))
        heads = ["kind", "unit", "categories", "low", "high", "missing", "missing share"]
        return pandas.DataFrame(found, index=list(self.variables), columns=heads)

    def to_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; a DataFrame as the source cannot be written."""
        if not isinstance(self.source, str | os.PathLike):
            raise StoreError("a Table of a DataFrame cannot be written: save the rows by "
                             "to_csv(path, index=False), and give the path")  # fmt: skip
        kept = ("graph", "categorical", "ordinal", "units", "missing", "drop", "seed")
        return {n: getattr(self, n) for n in kept} | self.shares | {"source": str(self.source)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Table:
        """Return the table of these arguments."""
        takes = inspect.signature(cls).parameters
        for key in config.keys() - takes.keys():
            raise ValueError(f"Table has no argument {key!r}: {list(takes)}.{nearest(key, takes)}")
        return cls(**config)


def _batch(read: Mapping[str, tuple[NDArray[Any], Variable]], rows: int) -> Batch:
    """Return columns as tensors, NaN as masks, with the number of each row."""
    values, seen = {}, {}
    for name, (array, variable) in read.items():
        column = torch.from_numpy(np.require(array, requirements="W"))
        if column.is_floating_point() and bool((gaps := column.isnan()).any()):
            seen[name] = ~gaps
            column = torch.where(gaps, column[seen[name]][0], column)
        kind = torch.long if variable.discrete else torch.get_default_dtype()
        values[name] = column.to(kind)
    return Batch(values, seen, context={"row": torch.arange(rows)})


def _names(given: Any) -> tuple[Any, ...]:
    """Return names as a tuple; a text is one name, not its letters, and so is a number."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
