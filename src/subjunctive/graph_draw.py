"""The picture of a `Graph`: longest-path layers, rounded labels, marks at the ends of edges.

A node's layer is the longest directed path that leads to it, and a root stands one layer above its
highest child; within a layer nodes are ordered by the mean position of their neighbours above
and below in turn (Sugiyama, Tagawa and Toda, 1981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from subjunctive.marks import ARROW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from subjunctive.graph import Graph

Position = tuple[float, float]


def layout(graph: Graph) -> dict[str, Position]:
    """Return a position a node: causes above effects, layers one unit apart.

    >>> from subjunctive.graph import Graph
    >>> layout(Graph.parse("a, b -> c"))
    {'a': (-0.5, 0.0), 'b': (0.5, 0.0), 'c': (0.0, -1.0)}
    """
    n = len(graph)
    adjacency = (graph.marks == ARROW) & (graph.marks.T != ARROW)  # o-> goes downwards too
    level = np.zeros(n, int)
    for _ in range(n):  # a cycle stops at n rounds
        level = np.where(adjacency.any(0), np.where(adjacency, level[:, None] + 1, 0).max(0), 0)
    lowest = np.where(adjacency, level, n + 1).min(1, initial=n + 1)
    free = ~adjacency.any(0) & adjacency.any(1)
    level = np.where(free, lowest - 1, level)
    layers = [list(np.flatnonzero(level == k)) for k in np.unique(level)]
    x, wide = np.zeros(n), max([1.0, *(0.3 + 2 * _half(name) for name in graph.nodes)])
    for sweep in range(9):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            if sweep:
                others = graph.skeleton & (level[:, None] != level[None])
                pull = [x[others[i]].mean() if others[i].any() else x[i] for i in layer]
                layer[:] = [layer[k] for k in np.argsort(pull, kind="stable")]
            x[layer] = wide * (np.arange(len(layer)) - (len(layer) - 1) / 2)
    return {name: (float(x[i]), 0.0 - float(level[i])) for i, name in enumerate(graph.nodes)}


def draw(
    graph: Graph,
    ax: Axes | None = None,
    positions: Mapping[str, Position] | None = None,
    labels: Mapping[str, str] | None = None,
    fontsize: float = 11.0,
) -> Axes:
    """Draw the graph with matplotlib and return the axes; save it by `axes.figure.savefig(path)`.

    Latent nodes are grey and dashed, selection nodes thickly framed, context nodes square;
    bidirected edges are dashed curves.

    Args:
        ax: where to draw; a new figure's axes if None.
        positions: node -> (x, y); `layout(graph)` if None.
        labels: node -> what to write in its place.
        fontsize: of the labels, in points.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    place = dict(layout(graph) if positions is None else positions)
    missing = [name for name in graph.nodes if name not in place]
    if missing:
        raise ValueError(f"positions lack {missing[0]!r}; give (x, y) for every node")
    spots = np.array([place[name] for name in graph.nodes]).reshape(-1, 2)
    texts = [(labels or {}).get(name, name) for name in graph.nodes]
    boxes = np.array([(_half(text), 0.2) for text in texts]).reshape(-1, 2)
    corners = np.concatenate([spots - boxes, spots + boxes] if len(spots) else [np.zeros((1, 2))])
    low, high = corners.min(0) - 0.2, corners.max(0) + 0.2
    if ax is None:
        ax = Figure(tuple(1.2 * (high - low)), layout="constrained").subplots()
    ax.margins(0)
    ax.update_datalim([low, high])
    ax.set_aspect("equal", adjustable="datalim")
    ax.autoscale_view()
    ax.set_axis_off()
    frames = {}
    for name, kind, text in zip(graph.nodes, graph.kinds, texts, strict=True):
        frames[name] = _label(ax, place[name], text, kind, fontsize)
    for a, mark, b in graph.edges:
        both = mark == "<->"
        arrow = FancyArrowPatch(
            place[a],
            place[b],
            patchA=frames[a],
            patchB=frames[b],
            shrinkA=1,
            shrinkB=1,
            connectionstyle=f"arc3,rad={_bend(spots, boxes, place[a], place[b], both)}",
            arrowstyle=_style(mark),  # type: ignore[arg-type]
            mutation_scale=fontsize,
            linestyle="dashed" if both else "solid",
            color="0.35" if both else "black",
            zorder=3,  # after the frames, whose size is known once they are drawn
        )
        ax.add_patch(arrow)
    return ax


def _label(ax: Axes, at: Position, text: str, kind: str, fontsize: float) -> Any:
    """Write a node's label and return its frame."""
    style = {"selection": "round4", "context": "square"}.get(kind, "round")
    latent = kind == "latent"
    frame = {
        "boxstyle": f"{style},pad=0.35",
        "facecolor": "0.88" if latent else "white",
        "edgecolor": "0.45" if latent else "black",
        "linestyle": "dashed" if latent else "solid",
        "linewidth": 2.0 if kind == "selection" else 1.0,
    }
    label = ax.text(*at, text, ha="center", va="center", fontsize=fontsize, bbox=frame, zorder=2)
    label.set_parse_math(False)
    return label.get_bbox_patch()


def _half(text: str) -> float:
    """Return about half the width of a label, in units of the layout."""
    return 0.11 + 0.036 * max(len(line) for line in text.split("\n"))


def _bend(spots: np.ndarray, boxes: np.ndarray, a: Position, b: Position, both: bool) -> float:
    """Return the least curvature with which an edge crosses the fewest labels."""
    start, end = np.array(a), np.array(b)
    side = np.array([end[1] - start[1], start[0] - end[0]])
    others = (np.abs(spots - start).max(1) > 1e-9) & (np.abs(spots - end).max(1) > 1e-9)
    t = np.linspace(0, 1, 41)[:, None]

    def crossed(bend: float) -> int:
        middle = (start + end) / 2 + bend * side
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        inside = np.abs(curve[:, None] - spots[others]) < boxes[others] + 0.06
        return int(inside.all(-1).any(0).sum())

    steps = np.array([0.35, -0.35, 0.6, -0.6, 0.9, -0.9])
    steps = steps if both else np.array([0.0, 0.2, -0.2, *steps])
    outward = side @ ((start + end) / 2 - spots.mean(0)) >= 0
    return float(min(steps if outward else -steps, key=crossed))


def _style(mark: str) -> Callable[..., Any]:
    """Return an arrow style that draws the two marks of an edge: arrow, circle or nothing."""
    from matplotlib.path import Path

    def style(path: Path, size: float, width: float, aspect: float = 1.0) -> tuple[list, list]:
        points = np.array(path.vertices, float)  # in pixels, cut at the labels' frames
        paths, filled = [], []
        for sign, tip, near in ((mark[0], 0, 1), (mark[-1], -1, -2)):
            back = points[near] - points[tip]
            back = size * back / max(float(np.linalg.norm(back)), 1e-9)
            side, at = 0.3 * np.array([-back[1], back[0]]), points[tip].copy()
            if sign == "o":
                paths.append(Path.circle(tuple(at + 0.25 * back), 0.25 * size))
                points[tip] = at + 0.5 * back
            elif sign in "<>":
                corners = [at, at + 0.8 * back + side, at + 0.8 * back - side, at]
                paths.append(Path(np.array(corners), closed=True))
                points[tip] = at + 0.5 * back
            filled += [sign != "o"] if sign in "<>o" else []
        return [Path(points, path.codes), *paths], [False, *filled]

    return style
