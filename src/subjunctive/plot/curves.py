"""How training went: one small picture a term of the loss, all over the same steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series

    from subjunctive.train import Fit

WINDOWS = 50  # a curve is smoothed over this share of its steps
TRAIN, VALID = "#1f5396", "#b5600a"  # dark blue and orange, as dark as each other


def training(history: DataFrame | Fit, axes: NDArray[Any] | None = None) -> NDArray[Any]:
    """Draw every term of a loss over the steps: pale as it was, dark as a running mean.

    Held-out values (columns that begin with `valid/`) are orange points in the picture of their
    term. The scale leaves out the first steps' extremes, beyond the 1 % and 98 % quantiles.

    Args:
        history: a row a step with the column `step`, as `fit(...).history`, or what `fit` returned.
        axes: one for every term; a new figure's if None.

    Returns:
        the axes, one a term, the whole loss first.

    Raises:
        ValueError: if there is no column `step`, nothing to draw, or too few axes.

    Example:
        >>> import pandas
        >>> steps = {"step": [1, 2], "y.nll": [2.0, 1.0], "loss": [2.0, 1.0]}
        >>> [ax.get_title() for ax in training(pandas.DataFrame(steps))]
        ['loss', 'y.nll']
    """
    given: Any = history
    frame: DataFrame = getattr(given, "history", given)
    if "step" not in frame or len(frame.columns) < 2:
        raise ValueError(f"training() needs a column 'step' and losses; got {list(frame.columns)}")
    names = dict.fromkeys(str(c).removeprefix("valid/") for c in frame.columns if c != "step")
    terms = sorted(names, key=lambda name: name.split("/")[-1] != "loss")
    axes = _new_axes(len(terms)) if axes is None else np.asarray(axes, object).ravel()
    if len(axes) < len(terms):
        raise ValueError(f"there are {len(terms)} terms but {len(axes)} axes; terms: {terms}")
    for ax, term in zip(axes, terms, strict=False):
        _curve(ax, frame, term)
    axes[0].legend(fontsize=7, frameon=False)
    return axes


def _curve(ax: Axes, frame: DataFrame, term: str) -> None:
    ax.set_title(term, fontsize=9)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    shown: list[Series] = []
    if term in frame:
        values = frame.set_index("step")[term].dropna()
        smooth = values.rolling(max(1, len(values) // WINDOWS), min_periods=1, center=True).mean()
        ax.plot(values.index, values, color=TRAIN, alpha=0.25, linewidth=0.7)
        ax.plot(smooth.index, smooth, color=TRAIN, linewidth=1.4, label="training")
        shown.append(values)
    if f"valid/{term}" in frame:
        values = frame.set_index("step")[f"valid/{term}"].dropna()
        ax.plot(values.index, values, "o--", color=VALID, markersize=3, lw=1, label="held out")
        shown.append(values)
    low = min(float(v.quantile(0.01)) for v in shown)
    high = max(float(v.quantile(0.98)) for v in shown)
    if high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def _new_axes(terms: int) -> NDArray[Any]:
    from matplotlib.figure import Figure

    rows = -(-terms // 4)
    columns = -(-terms // rows)
    figure = Figure((2.6 * columns, 1.9 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for ax in axes[terms:]:
        ax.set_axis_off()
    for ax in axes[terms - columns : terms]:
        ax.tick_params(labelbottom=True)  # the lowest of its column, above an empty place or not
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("mean over rows", fontsize=9)
    return np.array(axes[:terms])
