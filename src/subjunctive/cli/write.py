"""What a question's words ask for, and its answers as a file: a table, pictures, or arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subjunctive.cli.app import may_write

if TYPE_CHECKING:
    from pandas import DataFrame

    from subjunctive.query import Answer
    from subjunctive.variable import Batch, Variable

SUFFIXES = (".png", ".csv", ".parquet", ".npz")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a file that no answer can be written to, before any work.

    Raises:
        ValueError: for another suffix, or a file that is there.
        ModuleNotFoundError: if Parquet's library is missing.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {out} ends in none of {', '.join(SUFFIXES)}")
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ModuleNotFoundError("Parquet needs pyarrow: pip install pyarrow, or write a .csv")
    may_write(out, overwrite)


def read_worlds(texts: Sequence[str], variables: Mapping[str, Variable]) -> dict[str, Any]:
    """Return the worlds that `--do` asks for, name -> what is done in it.

    Raises:
        ValueError: if two of them are one.
    """
    from subjunctive.evidence import read_do
    from subjunctive.plot import title

    done = [read_do(text, variables) for text in texts]
    names = [title(world, variables) for world in done]
    if len({*names}) < len(names):  # titles round
        names = [f"do({' '.join(text.split())})" for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two worlds are {name}; give each --do once")
    return dict(zip(names, done, strict=True))


def write(out: Path, answers: Mapping[str, Answer], evidence: Batch | None = None) -> None:
    """Write what was answered, world by world; the first is the factual one."""
    kind, worlds = out.suffix.lower(), dict(answers)
    if kind == ".csv":
        _tidy(worlds).to_csv(out, index=False)
    elif kind == ".parquet":
        _tidy(worlds).to_parquet(out, index=False)
    elif kind == ".npz":
        _arrays(out, worlds)
    elif evidence is None:
        _sheet(out, worlds)
    else:
        first = next(iter(worlds))
        _pictures(out, evidence, worlds.pop(first), worlds)


def _picture(out: Path, answer: Answer) -> str:
    from subjunctive.evidence import image_node

    node = image_node(answer.variables)
    if node is None:
        raise ValueError(f"--out {out} wants pictures, and the model has none; write a .csv")
    return node


def _sheet(out: Path, answers: dict[str, Answer]) -> None:
    """Draw all pictures of each world, a column a world, the rows on the same noise."""
    from matplotlib.figure import Figure

    node = _picture(out, next(iter(answers.values())))
    rows = min(len(next(iter(answers.values()))[node]), 64)
    figure = Figure((1.1 * len(answers) + 0.4, rows * 1.0 + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(answers), squeeze=False)
    for j, (name, answer) in enumerate(answers.items()):
        axes[0, j].set_title(name, fontsize=8)
        for i, image in enumerate(answer[node][:rows].cpu()):
            axes[i, j].imshow(image.clamp(0, 1).permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
    figure.savefig(out, dpi=100)


def _reserved(nodes: Iterable[str], names: Iterable[str], out: str) -> None:
    """Refuse nodes whose names the file needs for itself."""
    for node in nodes:
        if node in names:
            raise ValueError(f"a node is called {node!r}, which {out} needs for itself: ask in "
                             "Python, or write another kind of file")  # fmt: skip


def _tidy(answers: dict[str, Answer]) -> DataFrame:
    """Return a row a world and row of evidence; with draws, 90 % intervals beside the answers."""
    import pandas

    frames = []
    for name, answer in answers.items():
        frame = answer.frame()
        nodes = list(frame.columns)
        ends = (f"{node}.{end}" for node in nodes for end in ("low", "high"))
        _reserved(nodes, {"world", "row", *ends}, "a table")
        for node in nodes:
            draws = answer.draws[node]
            if len(draws) > 1 and not answer.variables[node].discrete:
                low, high = answer.interval(node)
                frame[f"{node}.low"] = low.cpu().numpy()
                frame[f"{node}.high"] = high.cpu().numpy()
        frame.insert(0, "row", range(len(frame)))
        frame.insert(0, "world", name)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def _pictures(out: Path, batch: Batch, factual: Answer, answers: dict[str, Answer]) -> None:
    from subjunctive.plot import grid

    node = _picture(out, factual)
    seen = batch.values[node] if bool(batch.mask(node).all()) else factual[node]
    captions = {name: _labels(answer) for name, answer in {"factual": factual, **answers}.items()}
    shown = {name: answer[node].cpu() for name, answer in answers.items()}
    grid(seen.cpu(), shown, captions=captions)[0, 0].figure.savefig(out, dpi=160)


def _labels(answer: Answer) -> list[str]:
    """Return each row's scalar values with their units, a line each."""
    frame, variables = answer.frame(), answer.variables
    columns = [
        [
            f"{node} {value if variables[node].discrete else format(value, '.3g')} {unit}".strip()
            for value in frame[node]
        ]
        for node, unit in ((node, variables[node].unit) for node in frame.columns)
    ]
    return ["\n".join(row) for row in zip(*columns, strict=True)]


def _arrays(out: Path, answers: dict[str, Answer]) -> None:
    """Write every node as `(worlds, rows, *shape)`, and the worlds' titles."""
    import numpy

    worlds: dict[str, Any] = {"worlds": numpy.array(list(answers))}
    nodes = list(next(iter(answers.values())))
    _reserved(nodes, {"worlds", "file", "allow_pickle"}, "an .npz")
    for node in nodes:
        worlds[node] = numpy.stack([answer[node].cpu().numpy() for answer in answers.values()])
    numpy.savez_compressed(out, **worlds)
