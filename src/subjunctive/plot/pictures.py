"""Pictures side by side: factual, counterfactual, truth, difference, for several interventions.

The difference has a map of its own whose lightness never falls from -1 to 1, dark blue over grey to
pale orange: blue and orange are told apart by every common form of colour vision, and printed in
grey the sign is still read, darker for less and lighter for more.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subjunctive.intervention import Intervention, Scale, Set, Shift
from subjunctive.variable import Variable, known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

DARK_TO_LIGHT = ("#06204f", "#1f5396", "#6e8195", "#8f8f8f", "#b8977a", "#f0a860", "#ffe3b8")
SIDE, GAP, HEAD = 0.85, 0.15, 0.65  # of a picture, between groups, above the rows; inches


class Column(NamedTuple):
    """One column of the grid: whose group it is of, its head, its pictures and their captions."""

    group: str
    head: str
    images: NDArray[Any]
    captions: Sequence[str]
    signed: bool = False


def difference_map() -> Colormap:
    """Return the diverging map of differences, monotone in lightness."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("difference", DARK_TO_LIGHT)


def title(do: Mapping[str, Any], variables: Mapping[str, Variable]) -> str:
    """Return an intervention as a title, with units.

    >>> title({"t": 3.0}, {"t": Variable("t", unit="px")})
    'do(t = 3 px)'
    >>> title({"t": Shift(-0.5)}, {"t": Variable("t", unit="px")})
    'do(t - 0.5 px)'
    """
    parts = []
    for name, what in do.items():
        known(name, variables, "title()")
        unit = f" {variables[name].unit}" if variables[name].unit else ""
        sign, amount = "=", what
        if isinstance(what, Set):
            amount = what.value
        elif isinstance(what, Shift):
            negative = np.size(np.asarray(what.amount)) == 1 and float(what.amount) < 0
            sign, amount = ("-", -what.amount) if negative else ("+", what.amount)
        elif isinstance(what, Scale):
            sign, amount, unit = "\N{MULTIPLICATION SIGN}", what.factor, ""
        parts.append(f"{name} {sign} {_short(amount, variables[name])}{unit}")
    return f"do({', '.join(parts)})"


def _short(amount: Any, variable: Variable) -> str:
    if isinstance(amount, str):
        return amount
    if isinstance(amount, Intervention):
        return type(amount).__name__
    if np.size(np.asarray(amount)) != 1:
        return "..."
    number = np.asarray(amount).item()
    return variable.categories[int(number)] if variable.discrete else f"{number:g}"


def grid(
    factual: ArrayLike,
    counterfactuals: Mapping[str, ArrayLike],
    truth: Mapping[str, ArrayLike] | None = None,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    unit: str = "grey level, 0 to 1",
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw one row a picture and, for every intervention, its answer beside the truth.

    The columns are the factual and, for each intervention, counterfactual, truth (where given) and
    difference: counterfactual minus truth, or minus the factual where there is no truth.

    Args:
        factual: `(B, C, H, W)` in [0, 1], C one or three.
        counterfactuals: title (see `title`) -> pictures of the same shape.
        truth: title -> true counterfactuals, for all or some of the titles.
        captions: "factual" or a title -> a text a row, written below the picture; a truth's
            captions stand under `"truth of " + title`.
        unit: of the pictures' values, for the scale of the differences.
        axes: where to draw, `(B, columns)`; a new figure's if None.

    Returns:
        the axes, `(B, columns)`.

    Raises:
        ValueError: for pictures of unlike shapes, a truth without its counterfactual, or axes of
            the wrong shape.

    Example:
        >>> digits = np.zeros((2, 1, 8, 8))
        >>> axes = grid(digits, {"do(t = 3 px)": digits + 0.5}, {"do(t = 3 px)": digits + 0.4})
        >>> axes.shape, [ax.get_title() for ax in axes[0]]
        ((2, 4), ['factual', 'counterfactual', 'truth', 'minus truth'])
    """
    columns = list(_columns(factual, counterfactuals, truth or {}, captions or {}))
    shape, scale = (len(columns[0].images), len(columns)), None
    if axes is None:
        axes, scale = _new_axes(shape[0], columns)
    if np.shape(axes) != shape:
        raise ValueError(f"this grid needs axes of shape {shape}, got {np.shape(axes)}")
    colours, drawn = difference_map(), None
    for j, column in enumerate(columns):
        for i, image in enumerate(column.images):
            ax: Axes = axes[i, j]
            ax.set(xticks=[], yticks=[])
            if column.signed:
                drawn = ax.imshow(image.mean(-1), cmap=colours, vmin=-1, vmax=1)
            else:
                ax.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1)
            if column.captions:
                ax.set_xlabel(column.captions[i], fontsize=6.5, labelpad=2)
        axes[0, j].set_title(column.head, fontsize=8, pad=3)
    _name_groups(axes[0], [column.group for column in columns])
    bar = axes[0, 0].figure.colorbar(drawn, ax=None if scale else axes, cax=scale)
    bar.set_label(f"difference ({unit})", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return axes


def _columns(
    factual: ArrayLike,
    counterfactuals: Mapping[str, ArrayLike],
    truth: Mapping[str, ArrayLike],
    captions: Mapping[str, Sequence[str]],
) -> Iterator[Column]:
    if not counterfactuals:
        raise ValueError("grid() needs at least one intervention's counterfactuals")
    for name in truth:
        if name not in counterfactuals:
            raise ValueError(f"truth names {name!r}; there are {list(counterfactuals)}")
    start = _pictures(factual, "factual")
    yield Column("", "factual", start, captions.get("factual", ()))
    for name, values in counterfactuals.items():
        answer, base, head = _pictures(values, name), start, "minus factual"
        if answer.shape != start.shape:
            raise ValueError(f"{name!r} has shape {answer.shape}, the factual {start.shape}")
        yield Column(name, "counterfactual", answer, captions.get(name, ()))
        if name in truth:
            base, head = _pictures(truth[name], name), "minus truth"
            if answer.shape != base.shape:
                raise ValueError(f"the truth of {name!r} has shape {base.shape}: {start.shape}?")
            yield Column(name, "truth", base, captions.get(f"truth of {name}", ()))
        yield Column(name, head, answer - base, (), True)


def _pictures(values: ArrayLike, what: str) -> NDArray[Any]:
    """Return pictures with the channels last, `(B, H, W, C)`."""
    array = np.asarray(values, dtype=np.float32)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise ValueError(f"{what!r} has shape {array.shape}; pictures are (B, 1 or 3, H, W)")
    return np.moveaxis(array, 1, -1)


def _new_axes(rows: int, columns: Sequence[Column]) -> tuple[NDArray[Any], Axes]:
    """Return `(rows, columns)` axes, placed in inches with a gap between groups, and the scale's.

    A grid of squares with texts around them is what layout engines place badly.
    """
    from matplotlib.figure import Figure

    lines = max((c.count("\n") + 1 for column in columns for c in column.captions), default=0)
    step = SIDE + 0.04 + 0.13 * lines
    left, x = [], 0.1
    for before, column in pairwise([columns[0], *columns]):
        x += GAP * (before.group != column.group)
        left.append(x)
        x += SIDE + 0.04
    wide, high = x + 0.75, max(rows * step + HEAD + 0.05, 2.0)
    figure, top = Figure((wide, high)), high - HEAD
    axes = np.empty((rows, len(columns)), object)
    for i, j in np.ndindex(axes.shape):
        bottom = top - i * step - SIDE
        place = (left[j] / wide, bottom / high, SIDE / wide, SIDE / high)
        axes[i, j] = figure.add_axes(place)
    tall = rows * step - (step - SIDE)
    place = ((x + 0.05) / wide, (top - tall) / high, 0.1 / wide, tall / high)
    return axes, figure.add_axes(place)


def _name_groups(top: NDArray[Any], groups: Sequence[str]) -> None:
    """Write each intervention above the middle of its columns, over a rule as wide as they are."""
    starts = [j for j, name in enumerate(groups) if name and (j == 0 or groups[j - 1] != name)]
    for first, end in pairwise([*starts, len(groups)]):
        style = {"xycoords": top[first].transAxes, "textcoords": top[end - 1].transAxes}
        rule = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        top[first].annotate("", (0, 1.24), (1, 1.24), arrowprops=rule, **style)
        top[(first + end - 1) // 2].annotate(
            textwrap.fill(groups[first], 15 * (end - first)),
            (0.5 if (end - first) % 2 else 1.0, 1.27),
            xycoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=8.5,
        )
