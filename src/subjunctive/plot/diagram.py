"""The graph of a model or of data, drawn with the unit of every node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subjunctive.variable import Variable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from subjunctive.graph import Graph


def graph(
    graph: Graph,
    ax: Axes | None = None,
    variables: Mapping[str, Variable] | None = None,
    **options: Any,
) -> Axes:
    """Draw a graph and return the axes.

    Args:
        graph: what to draw.
        ax: where; a new figure's axes if None.
        variables: node -> Variable, whose unit is written below the node's name.
        options: passed on to `Graph.draw`: `positions`, `labels`, `fontsize`.

    Example:
        >>> from subjunctive.graph import Graph
        >>> ax = graph(Graph.parse("t -> i; t, i -> x"))
        >>> sorted(text.get_text() for text in ax.texts)
        ['i', 't', 'x']
    """
    if variables is not None:
        units = {n: v.unit for n, v in variables.items() if v.unit and n in graph}
        options["labels"] = {n: f"{n}\n{u}" for n, u in units.items()} | options.get("labels", {})
    return graph.draw(ax, **options)
