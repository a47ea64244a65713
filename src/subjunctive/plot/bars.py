"""Effects, arrows and evaluations as bars and lines, with how far to trust them.

Colours come from the map of differences, whose lightness never falls, and every kind of bar has its
own hatch: printed in grey, and by every common form of colour vision, they are told apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subjunctive.effect import strengths as measured
from subjunctive.graph_draw import layout
from subjunctive.metrics.trivial import NAMES as TRIVIAL
from subjunctive.plot.curves import VALID
from subjunctive.plot.diagram import graph
from subjunctive.plot.pictures import difference_map
from subjunctive.scm import Model
from subjunctive.variable import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

HATCHES = ("///", "...", "xxx", "\\\\\\")
PARTS = {
    "TE": "total",
    "NDE": "natural\ndirect",
    "NIE": "natural\nindirect",
    "NIE reversed": "natural\nindirect,\nreversed",
}
WIDE = np.array([2.5, 1.0])  # a label's sides
FLOOR = "noise floor"


def mediation(result: DataFrame, ax: Axes | None = None, *, unit: str = "") -> Axes:
    """Draw the total, natural direct and natural indirect effects with their standard errors.

    The total effect is the direct one *minus the reversed indirect one*, TE = NDE - NIE(b -> a); it
    is the sum of NDE and NIE only where treatment and mediators do not interact.

    Args:
        result: what `mediation` of `subjunctive.effect` returned.
        ax: where; a new figure's axes if None.
        unit: of the outcome.

    Raises:
        ValueError: for a table that is no such result.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> from subjunctive.effect import mediation as split
        >>> data = Linear("t -> m -> y; t -> y", train=100)
        >>> ax = mediation(split(data.oracle, "t", "y", ["m"], draws=100, seed=0))
        >>> [text.get_text().replace("\\n", " ") for text in ax.get_xticklabels()][:3]
        ['total', 'natural direct', 'natural indirect']
    """
    shown = [name for name in PARTS if name in result.index]
    if not {"estimate", "standard_error"} <= set(result.columns) or not shown:
        raise ValueError(
            f"mediation() draws what effect.mediation returned, rows {list(PARTS)} with estimate "
            f"and standard_error; got rows {list(result.index)} and columns {list(result.columns)}"
        )
    ax = _new_axes(0.75 * len(shown) + 1.1) if ax is None else ax
    colours = difference_map()([0.1, 0.33, 0.75, 0.95])
    for x, (name, colour) in enumerate(zip(shown, colours, strict=False)):
        row = result.loc[name]
        hatch = ("", *HATCHES)[list(PARTS).index(name)]
        _bar(ax, [x], [row.estimate], [row.standard_error], 0.7, colour, hatch)
    ax.set_xticks(range(len(shown)), [PARTS[name] for name in shown], fontsize=8)
    _frame(ax, "effect on the outcome", unit)
    return ax


def evaluation(
    frame: DataFrame,
    metric: str,
    *,
    node: str | None = None,
    support: str = "inside",
    ax: Axes | None = None,
) -> Axes:
    """Draw one metric of an evaluation: a bar a method, in groups by what was done.

    Error bars are standard errors. A dashed line over a group is its noise floor: what the metric
    says of the truth, or what chance alone gives; where methods have floors of their own, each bar
    has its line. Trivial answers are pale and hatched, models dark and plain.

    Args:
        frame: what `metrics.evaluate` returned.
        metric: a value of its column `metric`.
        node: which node, where the metric is of several.
        support: `inside`, `outside`, `given`, or `observed` where nothing was done.
        ax: where; a new figure's axes if None.

    Raises:
        ValueError: for a metric, support or node that the frame does not have, with the nearest
            name; where several nodes are measured and none is named, or a method twice.

    Example:
        >>> from subjunctive import Linear, evaluate
        >>> data = Linear("t -> y", train=100, test=20)
        >>> frame = evaluate(data.oracle, data, rows=20, metrics=["distance"], progress=False)
        >>> ax = evaluation(frame, "distance")
        >>> ax.get_ylabel(), [text.get_text() for text in ax.get_xticklabels()]
        ('distance of y', ['do(t)'])
    """
    part = _chosen(frame, metric, node, support)
    methods, groups = (list(dict.fromkeys(part[c])) for c in ("method", "intervention"))
    width = 0.8 / len(methods)
    ax = _new_axes(max(3.2, len(groups) * (0.3 + 0.22 * len(methods)) + 0.9)) if ax is None else ax
    styles = _styles(methods)
    at = {group: k for k, group in enumerate(groups)}
    offset = {m: (k - (len(methods) - 1) / 2) * width for k, m in enumerate(methods)}
    for method in methods:
        own = part[part.method == method]
        x = [at[group] + offset[method] for group in own.intervention]
        _bar(ax, x, own.value, own.standard_error, width, *styles[method], label=method)
    label = FLOOR
    for group in groups:
        own = part[part.intervention == group]
        pairs = zip(own.method, own.floor.round(12), strict=True)
        for floor, run in groupby(pairs, key=lambda pair: pair[1]):
            spots = [at[group] + offset[method] for method, _ in run]
            if np.isfinite(floor):
                ends = (min(spots) - width / 2, max(spots) + width / 2)
                line = ax.hlines(floor, *ends, VALID, "dashed", linewidth=1.6, label=label)
                line.set(path_effects=_halo(), zorder=4)
                label = "_none"  # one entry in the legend
    ax.set_xticks(range(len(groups)), groups, fontsize=8)
    _frame(ax, f"{metric} of {part.node.iloc[0]}", part.unit.iloc[0])
    entries = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    ordered = sorted(entries, key=lambda name: name == FLOOR)
    ax.legend(
        [entries[name] for name in ordered],
        ordered,
        fontsize=7,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, int(ax.bbox.width / ax.figure.dpi / 1.2)),
    )
    return ax


def strengths(model: Model, *, n: int = 1000, seed: int | None = 0, ax: Axes | None = None) -> Axes:
    """Draw a model's graph with, on each arrow, how much the child answers to the parent.

    What is written is `strengths` of `subjunctive.effect`: the standardised coefficient where the
    child is linear in its parents. Numbers with a sign are written with it. Lines are as wide as
    |s|, up to 1.5, on one scale for all models; solid, or dashed where s is negative.

    Args:
        model: an SCM.
        n: rows of its own samples.
        seed: for draws that do not touch the user's generator.
        ax: where; a new figure's axes if None.

    Raises:
        ValueError: for a model without a mechanism a node, or fewer than 2 rows.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.scm import SCM
        >>> from subjunctive.variable import Variable
        >>> t, y = Variable("t"), Variable("y")
        >>> equation = LinearGaussian.of(y, [t], weights=[-3.0], scale=4.0)
        >>> ax = strengths(SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t), "y": equation}))
        >>> ax.texts[-1].get_text()[:4]
        '-0.6'
    """
    found = measured(model, n=n, seed=seed)
    places = {name: (1.3 * x, 1.4 * y) for name, (x, y) in layout(model.graph).items()}
    ax = graph(model.graph, ax, model.variables, positions=places)
    arrows: Any = ax.patches[len(ax.patches) - len(found) :]
    curves = []
    for arrow, (parent, child) in zip(arrows, found, strict=True):
        start, end = np.array(places[parent]), np.array(places[child])
        side = np.array([end[1] - start[1], start[0] - end[0]])
        bend = (start + end) / 2 + arrow.get_connectionstyle().rad * side
        t = np.linspace(0, 1, 41)[:, None]
        curves.append((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)
    taken = list(places.values())
    for k, (arrow, strength) in enumerate(zip(arrows, found.values(), strict=True)):
        shown = round(strength.value, 2) + 0.0  # no minus before a zero
        width = 0.6 + 2.4 * min(abs(strength.value), 1.5)
        dashes: Any = (0, (3.5, 1.5)) if shown < 0 else "-"
        arrow.set(linewidth=width, linestyle=dashes, mutation_scale=9 + 2 * width)
        arrow.shrinkB = 1 + width  # a wide line's tip would reach into the frame
        spot = _free(curves, k, taken)
        taken.append(spot)
        text = f"{shown:+.2f}" if strength.signed else f"{shown:.2f}"
        box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.12"}
        ax.text(*spot, text, ha="center", va="center", fontsize=8, bbox=box, zorder=5)
    return ax


def _free(curves: Sequence[NDArray[Any]], k: int, taken: Sequence[Any]) -> tuple[float, float]:
    """Return the spot on a curve, near its middle, that lies farthest from all else."""
    others = np.concatenate([*curves[:k], *curves[k + 1 :], np.reshape(taken, (-1, 2))])

    def room(at: int) -> float:
        away = np.abs(others - curves[k][at]) / WIDE  # a label is wider than it is high
        return min(float(np.linalg.norm(away, axis=1).min()), 0.2)

    x, y = curves[k][max(sorted(range(12, 29, 2), key=lambda at: abs(at - 20)), key=room)]
    return float(x), float(y)


def _chosen(frame: DataFrame, metric: str, node: str | None, support: str) -> DataFrame:
    """Return the rows of one metric, support and node, one a method and intervention."""
    need = ["method", "intervention", "support", "metric", "node"]
    need += ["value", "standard_error", "floor", "unit"]
    lack = [c for c in need if c not in frame.columns]
    if lack:
        raise ValueError(f"evaluation() draws what evaluate() returned; the frame lacks {lack}")
    part = _pick(frame, "metric", metric, "the evaluation")
    part = _pick(part, "support", support, f"{metric!r}")
    if node is None:
        several = list(dict.fromkeys(part.node))
        if len(several) > 1:
            raise ValueError(f"{metric!r} is of several nodes, {several}; name one: node=...")
        node = several[0]
    part = _pick(part, "node", node, f"{metric!r}, {support},")
    twice = part[part.duplicated(["method", "intervention"])]
    if len(twice):
        raise ValueError(
            f"{twice.method.iloc[0]!r} has several rows of {metric!r} under "
            f"{twice.intervention.iloc[0]}; draw one evaluation at a time"
        )
    return part


def _pick(frame: DataFrame, column: str, wanted: str, of: str) -> DataFrame:
    there = list(dict.fromkeys(frame[column]))
    if wanted not in there:
        raise ValueError(
            f"{of} has no {column} {wanted!r}; it has {there}.{nearest(wanted, there)}"
        )
    return frame[frame[column] == wanted]


def _styles(methods: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return method -> colour and hatch: models dark, trivial answers pale and hatched."""
    colours, trivial = difference_map(), [m for m in methods if m in TRIVIAL]
    models = [m for m in methods if m not in TRIVIAL]
    dark = dict(zip(models, colours(np.linspace(0.1, 0.5, len(models))), strict=True))
    pale = dict(zip(trivial, colours(np.linspace(0.8, 1.0, len(trivial))), strict=True))
    hatch = dict(zip(TRIVIAL, HATCHES, strict=True))
    return {m: ((dark | pale)[m], hatch.get(m, "")) for m in methods}


def _bar(
    ax: Axes,
    x: Sequence[float],
    heights: Iterable[float],
    errors: Iterable[float],
    width: float,
    colour: Any,
    hatch: str,
    label: str | None = None,
) -> None:
    """Draw bars with error bars that are seen on pale and dark alike."""
    tall = list(heights)
    bars = ax.bar(x, tall, width, color=[colour], hatch=hatch, label=label or "")
    for bar in bars:
        bar.set(edgecolor="black", linewidth=0.6)
    error = ax.errorbar(x, tall, list(errors), fmt="none", ecolor="black", elinewidth=1, capsize=2)
    for line in (*error.lines[1], *error.lines[2]):
        line.set(path_effects=_halo(), zorder=3)


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]


def _new_axes(wide: float) -> Axes:
    from matplotlib.figure import Figure

    axes: Axes = Figure((wide, 2.8), layout="constrained").subplots()
    return axes


def _frame(ax: Axes, label: str, unit: str) -> None:
    ax.axhline(0, color="black", linewidth=0.8, clip_on=False)
    label = f"{label} ({unit})" if unit else label
    ax.set_ylabel(textwrap.fill(label, 26), fontsize=9)
    ax.tick_params(axis="y", labelsize=7)
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
