"""Tables as text: an evaluation cut into readable parts, and any table as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def sections(frame: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Cut an evaluation into one table an intervention and support, methods side by side.

    Args:
        frame: what `metrics.evaluate` returned.

    Returns:
        title -> a row a metric, node and unit, a column a method, `value ± standard error`.

    Example:
        >>> from subjunctive import Linear, evaluate
        >>> data = Linear("t -> y", train=100, test=20)
        >>> frame = evaluate(data.oracle, data, rows=20, metrics=["distance"], progress=False)
        >>> title, part = next(sections(frame))
        >>> title, list(part.columns)
        ('do(t), inside', ['model', 'oracle', 'copy'])
    """
    from subjunctive.metrics import table

    wide = table(frame)
    for intervention, support in dict.fromkeys((a, b) for a, b, _ in wide.index):
        part = wide.loc[(intervention, support)].T
        yield f"{intervention}, {support}", part[(part != "").any(axis=1)]


def markdown(frame: DataFrame, corner: str = "") -> str:
    """Return a table as Markdown, the index first.

    Args:
        frame: its cells are written as they print.
        corner: the head of the index's column.

    Example:
        >>> import pandas
        >>> print(markdown(pandas.DataFrame({"a": [1]}, index=["x|y"]), "row"))
        | row | a |
        |---|---|
        | x\\|y | 1 |
    """
    head = [corner, *frame.columns]
    rows = [head, *([index, *cells] for index, *cells in frame.itertuples())]
    lines = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
