"""What was seen and what is done, read from files and from text.

Evidence is pictures, a table (`.csv` or `.tsv`, also with `.gz`: one column a node) or arrays
(`.npz`, one array a node, rows first). Pictures and tables are read by the rules by which
`data.images.Images` and `data.table.Table` read those that a model is fitted to: transparency is
laid on white, and an empty cell or one such as "NA" is missing, unless a category is called so.
What is done is `node=value`, `node+=amount` or `node*=factor`, several of them with commas between.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subjunctive.data.pictures import look_at, opened, pixels_of
from subjunctive.data.table import GAPS, SEPARATORS
from subjunctive.intervention import Scale, Shift
from subjunctive.variable import Batch, Variable, known

DO = re.compile(r"\s*(?P<node>.+?)\s*(?P<sign>[+*]?=)\s*(?P<value>.*?)\s*")


def image_node(variables: Mapping[str, Variable]) -> str | None:
    """Return the one node of shape `(C, H, W)`; None if there is no such node, or several.

    >>> image_node({"t": Variable("t"), "x": Variable("x", (1, 8, 8))})
    'x'
    """
    pictures = [name for name, v in variables.items() if len(v.shape) == 3]
    return pictures[0] if len(pictures) == 1 else None


def read_evidence(
    paths: Sequence[str | os.PathLike[str]], variables: Mapping[str, Variable]
) -> Batch:
    """Read rows of evidence from one table, one file of arrays, or one picture or more.

    Args:
        paths: the files.
        variables: node -> Variable, a model's.

    Raises:
        FileNotFoundError: for a file that is not there.
        KeyError: for a column of an unknown node, with the nearest name.
        ValueError: for pictures of the wrong size or that are to be turned, text where numbers
            belong, damaged files.
    """
    files = [Path(p) for p in paths]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no evidence at {file}")
    tables = [f for f in files if _suffix(f) in (*SEPARATORS, ".npz")]
    if tables and len(files) > 1:
        raise ValueError(f"{tables[0]} is a table; give it alone, or pictures alone")
    if tables:
        read = _read_npz if _suffix(tables[0]) == ".npz" else _read_text
        return read(tables[0], variables)
    node = image_node(variables)
    if node is None:
        pictures = [n for n, v in variables.items() if len(v.shape) == 3]
        raise ValueError(
            f"{files[0]} is a picture, but the model has {len(pictures)} nodes that are: "
            "give a table (.csv) or arrays (.npz)"
        )
    return Batch({node: torch.stack([_read_picture(file, variables[node]) for file in files])})


def read_do(text: str, variables: Mapping[str, Variable]) -> dict[str, Any]:
    """Read an intervention from text.

    Args:
        text: `node=value`, `node+=amount`, `node*=factor`, with commas between several.
        variables: node -> Variable, a model's.

    Raises:
        KeyError: for an unknown node, with the nearest name. ValueError: for what is no
            intervention, or no number where one is needed.

    Example:
        >>> read_do("t=3, arm=drug", {"t": Variable("t"), "arm": Variable("arm", kind="categorical",
        ...                           categories=("placebo", "drug"))})
        {'t': 3.0, 'arm': 'drug'}
    """
    done: dict[str, Any] = {}
    for part in text.split(","):
        match = DO.fullmatch(part)
        if match is None or not match["value"]:
            raise ValueError(
                f"{part.strip()!r} is no intervention; say node=value, or node+=amount"
            )
        node, sign, value = match["node"], match["sign"], match["value"]
        known(node, variables, "do")
        if variables[node].shape:
            raise ValueError(f"{node!r} has shape {variables[node].shape}; set a scalar node")
        if node in done:
            raise ValueError(f"{text!r} does two things to {node!r}")
        if sign == "=" and variables[node].discrete:
            done[node] = value
            continue
        try:
            number = float(value)
        except ValueError as error:
            raise ValueError(f"{part.strip()!r}: {value!r} is no number") from error
        done[node] = {"=": number, "+=": Shift(number), "*=": Scale(number)}[sign]
    return done


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read_text(path: Path, variables: Mapping[str, Variable]) -> Batch:
    import pandas

    wrong = pandas.errors.ParserError, pandas.errors.ParserWarning, pandas.errors.EmptyDataError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # lines too long
            frame = pandas.read_csv(
                path,
                sep=SEPARATORS[_suffix(path)],
                dtype={n: str for n, v in variables.items() if v.discrete},  # "01" stays
                na_values={n: sorted(GAPS.difference(v.categories)) for n, v in variables.items()},
                keep_default_na=False,
                skipinitialspace=True,
                index_col=False,
            )
    except (*wrong, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no table: {' '.join(str(error).split())}") from error
    if not len(frame):
        raise ValueError(f"{path} has no rows")
    for name in frame.columns:
        known(name, variables, str(path))
        if variables[name].shape:
            raise ValueError(f"{path}: {name!r} has shape {variables[name].shape}; use .npz arrays")
        if not variables[name].discrete and frame[name].dtype.kind not in "ifub":
            bad = pandas.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
            raise ValueError(f"{path}: {name!r} holds {frame[name][bad].iloc[0]!r}, no number")
    return Batch.of(frame, list(variables.values()))


def _read_npz(path: Path, variables: Mapping[str, Variable]) -> Batch:
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no arrays of numbers: {error}") from error
    for name in arrays:
        known(name, variables, str(path))
    return Batch.of(arrays, list(variables.values()))


def _read_picture(path: Path, variable: Variable) -> Tensor:
    """Return a picture `(C, H, W)` in [0, 1]: grey where the model's is."""
    channels, height, width = variable.shape
    if channels not in (1, 3):
        raise ValueError(f"{variable.name!r} has {channels} channels: give it as .npz arrays")
    try:
        with opened(path) as image:
            look, values = look_at(image), pixels_of(image, channels)
    except ValueError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    if look.size != (height, width):
        raise ValueError(
            f"{path} is {look.size[1]} x {look.size[0]} pixels; the model's "
            f"{variable.name!r} is {width} x {height}: crop, pad or resize it first"
        )
    return torch.tensor(values, dtype=torch.float32).div_(255).expand(variable.shape)
