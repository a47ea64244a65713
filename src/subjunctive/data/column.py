"""One column of a table: what it holds, and its numbers or codes, NaN where an entry is missing.

Text that is meant to be numbers or dates, names, and numbers that cannot be standardised are
refused with what to do, in words that follow the column's name.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from subjunctive.variable import Kind, Variable

if TYPE_CHECKING:
    from pandas import Series

# What pandas reads as missing; spelled out, so that a category in `ordinal` may be called "None".
GAPS = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
GAPS |= {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")  # words of pandas
TEXTS = ("string", "mixed", "mixed-integer")
DATE = re.compile(r"(\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[./]\d\d?[./]\d{2,4})([ T].*)?")
# 1,5 and 1.234,5 and 1 234 and 12 %: numbers to people, and text to pandas
WRITTEN = re.compile(r"[-+]?\d{1,3}(([., ']\d{3})+|\d*)([.,]\d+)?( ?%)?")
NUMERIC = 0.9  # text of which more than this share is numbers is meant to be numbers
NOTHING = "has no entry that is not missing: leave it out"
MANY = 50  # text with more different entries than this, and than half the rows, is names


def held(column: Series) -> str:
    """Return pandas' word for what a column holds, missing entries aside."""
    from pandas.api.types import infer_dtype

    return str(infer_dtype(column, skipna=True))


def as_numbers(texts: Any) -> Series:
    """Return texts as numbers, NaN where one is none."""
    import pandas

    return pandas.to_numeric(pandas.Series(texts, dtype=object), errors="coerce")


def label(value: Any) -> str:
    """Return an entry as text; 1.0, which 1 becomes beside a missing entry, as "1"."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def labels(values: NDArray[Any], variable: Variable) -> NDArray[Any]:
    """Return the entries of a table as labels, where numbers are among the variable's labels."""
    wholes = any(c.lstrip("-").replace(".", "", 1).isdecimal() for c in variable.categories)
    if not wholes and {"True", "False"}.isdisjoint(variable.categories):
        return values
    return np.array([label(value) for value in values.tolist()], object)


def masked(column: Series, hidden: set[str]) -> Series:
    """Return a column without the texts or numbers that stand for a missing entry."""
    word = held(column)
    if word == "categorical":
        left = [c for c in column.cat.categories if label(c) not in hidden]
        return column.cat.set_categories(left)
    if not hidden or word == "boolean":
        return column
    some = as_numbers(sorted(hidden)).dropna().tolist()
    hit = column.isin(some if word in NUMBERS else [*hidden, *some])
    return column.mask(hit) if hit.any() else column


def numbers(column: Series) -> NDArray[np.float64]:
    """Return a column as float64 with NaN where missing; refuse what cannot be standardised."""
    values: NDArray[np.float64] = column.to_numpy(dtype=float, na_value=np.nan)
    whole = torch.from_numpy(np.require(values, requirements="W"))
    low, high = map(float, whole.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN if one is
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise ValueError(
                f"has {len(infinite)} infinite entries, the first in row {infinite[0]}: correct "
                "them, or make them missing"
            )
        whole = whole[~whole.isnan()]
        if not len(whole):
            raise ValueError(NOTHING)
        low, high = map(float, whole.aminmax())
    dtype = torch.get_default_dtype()
    if low == high:
        raise ValueError(f"is constant (all are {low:g}): leave it out")
    span, size, known = high - low, max(-low, high), torch.finfo(dtype)
    if size > known.max or size * known.eps > span / 1000:  # else none is
        refuse_rounding(float((whole - whole.to(dtype).double()).abs().max()), span, dtype)
    return values


def refuse_rounding(lost: float, span: float, dtype: Any) -> None:
    """Refuse numbers that a dtype cannot tell apart within the range that they span."""
    if lost > span / 1000:
        raise ValueError(
            f"is rounded by {lost:g} within {span:g} as {dtype}: subtract its mean, change its "
            "unit, or torch.set_default_dtype"
        )


def codes(
    column: Series, kind: Kind | None, order: list[str] | None
) -> tuple[NDArray[Any], tuple[str, ...], Kind]:
    """Return codes, NaN where missing, their categories, and the kind where none is given.

    Args:
        column: with an entry or more that is not missing.
        kind: `categorical` or `ordinal` where that is said; None to refuse what looks otherwise.
        order: the categories, where they are given.
    """
    import pandas

    word = held(column)
    try:
        found, values = pandas.factorize(column)  # -1 where missing
    except TypeError as error:
        raise ValueError(f"holds entries that are no labels ({error}): leave it out") from error
    if kind is None and word in TEXTS:
        _refuse_texts(found, values)
    texts, own = [label(v) for v in values], word == "categorical"
    if len(set(texts)) < 2:
        raise ValueError(f"is constant (all are {texts[0]!r}): leave it out")
    wanted = order or list(
        dict.fromkeys(map(label, column.cat.categories) if own else sorted(texts))
    )
    if not own and not order and (numeric := as_numbers(wanted)).notna().all():
        wanted = [wanted[i] for i in numeric.argsort()]
    at = {c: i for i, c in enumerate(wanted)}
    lacking = [c for c in texts if c not in at][:5]
    if lacking:
        row = np.flatnonzero(found == texts.index(lacking[0]))[0]
        raise ValueError(
            f"holds {lacking} (first in row {row}), which ordinal={order} lacks: add, correct, or "
            f"missing={tuple(lacking)}"
        )
    found = np.array([*(at[c] for c in texts), -1])[found]
    kind, gaps = kind or ("ordinal" if own and column.cat.ordered else "categorical"), found < 0
    return np.where(gaps, np.nan, found) if gaps.any() else found, tuple(wanted), kind


def _refuse_texts(found: NDArray[Any], values: Any) -> None:
    """Refuse texts that are meant to be numbers, dates, or names, and empty ones."""
    rows, some, named = np.count_nonzero(found >= 0), str(values[0]), "or name it in categorical"
    bad = np.append(as_numbers(values).isna().to_numpy(), False)[found]  # False where missing
    if bad.sum() < (1 - NUMERIC) * rows:
        odd = {int(r): str(values[found[r]]) for r in np.flatnonzero(bad)[:5]}
        cure = ", ".join(f"{text!r} in row {r}" for r, text in odd.items())
        cure = f"correct {cure}, or missing={sorted(set(odd.values()))}" if odd else "convert it"
        raise ValueError(f"is text that pandas.to_numeric reads: {cure}, {named}")
    for code, text in enumerate(map(str, values)):
        if not text.strip() or text in GAPS:
            row = np.flatnonzero(found == code)[0]
            raise ValueError(f"has {text!r} (first in row {row}), which files have for a gap: say "
                             f"missing=({text!r},), {named}")  # fmt: skip
    first = [str(v) for v in values[:100]]
    if all(map(DATE.fullmatch, first)):
        raise ValueError(f"is dates written as text ({some!r}): convert them to numbers of days")
    if sum(map(bool, map(WRITTEN.fullmatch, first))) > NUMERIC * len(first):
        raise ValueError(
            f"is numbers written for people ({some!r}): convert them, as "
            f"pandas.read_csv(path, decimal=',') does, {named}"
        )
    if len(values) > max(MANY, rows / 2):
        raise ValueError(
            f"has {len(values)} different texts in {rows} rows, such as {some!r}, as names do: "
            f"leave it out, {named}"
        )
