"""A critical-difference diagram: models on an axis of mean ranks, those alike joined by a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE, INK = 0.32, "#222222"  # inches between names; of all lines


def ranks(
    ranks: Mapping[str, float],
    difference: float | None = None,
    alike: Sequence[Sequence[str]] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw mean ranks as Demsar does: the best model leftmost, groups that are alike joined.

    Args:
        ranks: model -> mean rank.
        difference: the critical difference, drawn as a scale; None for none.
        alike: groups of models that cannot be told apart, each a bar.
        ax: where; a new figure's axes if None.

    Raises:
        ValueError: for fewer than two models.

    Example:
        >>> ax = ranks({"flow": 1.2, "linear": 2.6, "additive": 2.2}, 1.0, [("linear", "additive")])
        >>> [text.get_text() for text in ax.texts[:3]]
        ['1', '2', '3']
    """
    if len(ranks) < 2:
        raise ValueError(f"a diagram compares two models or more, got {list(ranks)}")
    names = sorted(ranks, key=lambda name: ranks[name])
    half = (len(names) + 1) // 2
    depth = 0.35 + 0.22 * len(alike)  # below the axis, where names begin; inches
    if ax is None:
        from matplotlib.figure import Figure

        figure = Figure((7.0, 0.75 + depth + LINE * half))
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    last = len(names)
    margin = 0.45 * (last - 1)  # room for names on both sides, in ranks
    ax.set(xlim=(1 - margin, last + margin), ylim=(-depth - LINE * half, 0.75))
    ax.axis("off")
    ax.plot([1, last], [0, 0], color=INK, linewidth=1)
    for rank in range(1, last + 1):
        ax.plot([rank, rank], [0, 0.07], color=INK, linewidth=1)
        ax.text(rank, 0.1, str(rank), ha="center", va="bottom", fontsize=9)
    for i, name in enumerate(names):
        left = i < half
        level = -depth - LINE * (i if left else last - 1 - i)
        edge = 1 - 0.06 * (last - 1) if left else last + 0.06 * (last - 1)
        x = ranks[name]
        ax.plot([x, x, edge], [0, level, level], color=INK, linewidth=0.8, clip_on=False)
        label = f"{name}  {x:.2f}" if left else f"{x:.2f}  {name}"
        ax.text(edge, level, f" {label} ", ha="right" if left else "left", va="center", fontsize=9)
    for i, group in enumerate(alike):
        ends = [ranks[name] for name in group]
        level, beyond = -0.2 - 0.22 * i, 0.015 * (last - 1)
        ax.plot([min(ends) - beyond, max(ends) + beyond], [level, level], color=INK, linewidth=3.5,
                solid_capstyle="butt")  # fmt: skip
    if difference is not None:
        shown = min(difference, last - 1 + margin)
        ax.plot([1, 1 + shown], [0.5, 0.5], color=INK, linewidth=1, marker="|", markersize=6)
        ax.text(1 + shown / 2, 0.53, f"critical difference {difference:.2f}", ha="center",
                va="bottom", fontsize=8)  # fmt: skip
    return ax
