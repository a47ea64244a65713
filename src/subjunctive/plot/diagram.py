"""The graph of a model or of data, drawn with the unit of every node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subjunctive.graph_draw import layout
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
    from matplotlib.figure import Figure

    if variables is not None:
        units = {n: v.unit for n, v in variables.items() if v.unit and n in graph}
        options["labels"] = {n: f"{n}\n{u}" for n, u in units.items()} | options.get("labels", {})
    if ax is None:
        places = list((options.get("positions") or layout(graph)).values())
        wide, high = (max(p[i] for p in places) - min(p[i] for p in places) for i in (0, 1))
        ax = Figure((1.2 * wide + 2.2, 1.2 * high + 1.2), layout="constrained").subplots()
    return graph.draw(ax, **options)
