"""Direct, indirect and total effects on pictures, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike, NDArray

from subjunctive.plot.pictures import grid

HEADS = {"treated": "total effect", "direct": "direct effect", "indirect": "indirect effect"}


def unit_mediation(
    found: Mapping[str, ArrayLike],
    truth: Mapping[str, ArrayLike] | None = None,
    *,
    unit: str = "grey level, 0 to 1",
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw a row a unit: the factual and, for each effect, the world it leads to and the effect.

    Effects are differences to the factual in the diverging colours of `grid`; where the truth is
    given, each effect has the true one beside it.

    Args:
        found: what `unit_mediation` of `subjunctive.unit_effect` returned for pictures
            `(B, C, H, W)` in [0, 1], C one or three.
        truth: likewise, of a model that knows.
        unit: of the pictures' values.
        axes: where to draw, `(B, 7)`, or `(B, 13)` with the truth; a new figure's if None.

    Raises:
        ValueError: for what is no such answer, and as `grid` does.

    Example:
        >>> from subjunctive import Pendulum
        >>> from subjunctive import unit_mediation as split
        >>> data = Pendulum(train=100, valid=2, test=2)
        >>> found = split(data.oracle, data.test, "light", "image", ["length", "position"], 90.0)
        >>> axes = unit_mediation(found)
        >>> [ax.get_title() for ax in axes[0]][:3]
        ['factual', 'counterfactual', 'minus factual']
    """
    for what, answer in (("found", found), ("truth", truth)):
        lack = [] if answer is None else [w for w in ("factual", *HEADS) if w not in answer]
        if lack:
            raise ValueError(
                f"{what} has no {lack}; it has {list(answer or ())}. Give what "
                "subjunctive.unit_mediation returned"
            )
    shown = {}
    for world, head in HEADS.items():
        shown[head] = found[world]
        if truth is not None:
            shown[f"{head}, truth"] = truth[world]
    return grid(found["factual"], shown, unit=unit, axes=axes)
