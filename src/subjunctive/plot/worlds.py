"""Worlds side by side: rows along one intervention, still or moving, and what `do` shifts.

Every function asks the model once for its noise, so that the worlds of a picture differ by the
intervention alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subjunctive.evidence import image_node
from subjunctive.intervention import as_do
from subjunctive.mechanism import evaluating, seeded, where
from subjunctive.plot.curves import TRAIN
from subjunctive.plot.pictures import title
from subjunctive.query import counterfactual
from subjunctive.scm import SCM, Model
from subjunctive.variable import Batch, Variable, known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

SIDE, GAP, HEAD, FOOT = 0.85, 0.12, 0.42, 0.2  # a picture, after the factual, texts; inches
LETTER = 0.072  # the width of a letter of a head
BINS, ABREAST = 40, 4  # of a histogram; pictures in a row
STRIP, BETWEEN = 18, 128  # a frame's line of text, pixels; the grey between two pictures
BEFORE, AFTER = "0.78", TRAIN  # pale and filled, dark


class Worlds(NamedTuple):
    """Pictures `(B, C, H, W)` of the factual world and of one world a value, and their titles."""

    batch: Batch
    factual: Tensor
    answers: list[Tensor]
    titles: list[str]


def traversal(
    model: Model,
    evidence: Any,
    node: str,
    values: Sequence[Any],
    *,
    image: str | None = None,
    seed: int | None = 0,
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw rows along one intervention: the factual picture, then one for each value of a node.

    All values are answered from the same abducted noise. Where a row did not see the picture, the
    factual one is the model's own draw. The factual value of the node stands below the factual
    picture where the row saw it.

    Args:
        model: any `Model` with a node that is a picture, `(1 or 3, H, W)` in [0, 1].
        evidence: what was seen, one or several rows, in the user's units.
        node: what is set.
        values: numbers in the node's unit, labels, or interventions; a column each.
        image: which node is drawn; the only picture if None.
        seed: for draws that do not touch the user's generator.
        axes: where to draw, `(rows, 1 + len(values))`; a new figure's if None.

    Returns:
        the axes, `(rows, 1 + len(values))`.

    Raises:
        KeyError: for an unknown node, with the nearest name.
        ValueError: if there is no picture, or several and none is named; for no values, or axes of
            the wrong shape.

    Example:
        >>> from subjunctive.data.pendulum import Pendulum
        >>> data = Pendulum(size=24, train=8, valid=2, test=4)
        >>> axes = traversal(data.oracle, data.test[:2], "light", [70.0, 90.0])
        >>> axes.shape, axes[0, 0].get_title()
        ((2, 3), 'factual')
    """
    worlds = _worlds("traversal()", model, evidence, node, values, image, seed)
    columns = [worlds.factual, *worlds.answers]
    heads = ["factual", *(t.replace(f"do({node} ", f"do({node}\n", 1) for t in worlds.titles)]
    shape = (len(worlds.factual), len(columns))
    if axes is None:
        letters = max(len(line) for head in heads for line in head.split("\n"))
        ratio = worlds.factual.shape[-2] / worlds.factual.shape[-1]
        axes = _new_axes(*shape, ratio, LETTER * letters)
    if np.shape(axes) != shape:
        raise ValueError(f"this traversal needs axes of shape {shape}, got {np.shape(axes)}")
    for j, pictures in enumerate(columns):
        shown = pictures.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        for i, picture in enumerate(shown):
            axes[i, j].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
    for i in range(shape[0]):
        axes[i, 0].set_xlabel(_factual(worlds.batch, model.variables[node], i), fontsize=7)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=8, pad=3)
    return axes


def animate(
    model: Model,
    evidence: Any,
    node: str,
    values: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    image: str | None = None,
    seed: int | None = 0,
    seconds: float = 0.1,
    scale: int = 4,
    progress: bool = False,
) -> Path:
    """Write a traversal as an animated GIF that goes through the values and back, for ever.

    A frame is one value: a line that says what was done, and below it the rows' pictures side by
    side. The file is written beside its place and moved there whole.

    Args:
        model, evidence, node, values, image, seed: as for `traversal`.
        path: where to write; ends in `.gif`. Its directory is made.
        seconds: how long a frame stands; a GIF counts hundredths.
        scale: screen pixels a pixel of the picture, along each side.
        progress: show a bar where it takes over two seconds.

    Returns:
        the path.

    Raises:
        KeyError, ValueError: as `traversal`; for a path that does not end in `.gif`, and for times
            and scales that no GIF has.

    Example:
        >>> import tempfile
        >>> from subjunctive.data.pendulum import Pendulum
        >>> data = Pendulum(size=24, train=8, valid=2, test=4)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = f"{place}/light.gif"
        ...     animate(data.oracle, data.test[:2], "light", [70.0, 90.0], path).name
        'light.gif'
    """
    out = Path(path)
    if out.suffix.lower() != ".gif" or out.is_dir():
        raise ValueError(f"animate() writes a GIF; {out} should be a file that ends in .gif")
    if seconds < 0.01 or scale < 1 or scale != int(scale):
        raise ValueError(
            f"animate() needs seconds of at least 0.01 and a whole scale of at least 1; got "
            f"{seconds} and {scale}"
        )
    worlds = _worlds("animate()", model, evidence, node, values, image, seed, progress)
    there = _frames(worlds, int(scale))
    first, *rest = [*there, *there[-2:0:-1]]
    beside = out.with_name(f".{out.name}.{os.getpid()}.gif")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        first.save(
            beside, save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0
        )
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def shift(
    model: Model,
    do: Mapping[str, Any],
    *,
    nodes: Sequence[str] | None = None,
    n: int = 2000,
    seed: int | None = 0,
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw how `do` shifts the distributions of what lies below it: pale before, dark after.

    Both worlds have the same n draws of exogenous noise, and both histograms of a node the same
    bins: heights are shares of the draws and sum to one. Categories have a pair of bars each.

    Args:
        model: any `Model`.
        do: node -> value in the node's unit, label, or `Intervention`.
        nodes: which scalar nodes to draw; all scalar descendants of the intervened ones if None.
        n: draws.
        seed: for draws that do not touch the user's generator.
        axes: one for every node; a new figure's if None.

    Returns:
        the axes, one a node, causes first.

    Raises:
        KeyError: for an unknown node, with the nearest name.
        ValueError: if nothing is done, nothing scalar lies below it, a named node is no scalar, or
            there are too few axes or draws.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> m -> y", train=100)
        >>> [ax.get_xlabel() for ax in shift(data.oracle, {"t": 1.0})]
        ['m', 'y']
    """
    actions = as_do(do, model.variables)
    if not actions or n < 2:
        raise ValueError(
            f"shift() needs an intervention and at least 2 draws, got do={dict(do)} and n={n}"
        )
    names, variables = _moved(model, list(actions), nodes), model.variables
    axes = _row_of_axes(len(names)) if axes is None else np.asarray(axes, object).ravel()
    if len(axes) < len(names):
        raise ValueError(f"there are {len(names)} nodes but {len(axes)} axes; nodes: {names}")
    if isinstance(model, SCM):  # what lies below or beside costs time alone
        model = model.ancestral([*actions, *names])
    with torch.no_grad(), seeded(seed), evaluating(model):
        noise = model.noise(n)
        before, after = model.predict(noise), model.predict(noise, actions)
    labels = ("before", title(do, variables))
    for k, (ax, name) in enumerate(zip(axes, names, strict=False)):
        pair = [world[name].detach().cpu().numpy() for world in (before, after)]
        draw = _categories if variables[name].discrete else _histograms
        draw(ax, variables[name], pair, labels)
        unit = f" ({variables[name].unit})" if variables[name].unit else ""
        ax.set_xlabel(f"{name}{unit}", fontsize=9)
        ax.set_ylabel("" if k % ABREAST else "share of draws", fontsize=9)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes[0].legend(fontsize=7, frameon=False, ncols=2, **place)
    return axes


def _worlds(
    where_from: str,
    model: Model,
    evidence: Any,
    node: str,
    values: Sequence[Any],
    image: str | None,
    seed: int | None,
    progress: bool = False,
) -> Worlds:
    variables = model.variables
    known(node, variables, where_from)
    image = _picture(where_from, variables, image)
    if not len(values):
        raise ValueError(f"{where_from} needs at least one value of {node!r}")
    batch = Batch.of(evidence, list(variables.values()))
    dos: list[dict[str, Any]] = [{node: v} for v in values]
    seen = bool(batch.mask(image).all())
    answers = counterfactual(
        model, batch, dos if seen else [*dos, {}], seed=seed, progress=progress
    )
    pictures = [answer[image].detach().cpu() for answer in answers]
    factual = batch.values[image].detach().cpu() if seen else pictures.pop()
    if not seen and image in batch:
        factual = where(batch.mask(image).cpu(), batch.values[image].detach().cpu(), factual)
    titles = [title({node: _neat(v)}, variables) for v in values]
    return Worlds(batch, factual, pictures, titles)


def _picture(where_from: str, variables: Mapping[str, Variable], image: str | None) -> str:
    """Return the node to draw."""
    pictures = [name for name, v in variables.items() if len(v.shape) == 3]
    name = image_node(variables) if image is None else image
    if name is None:
        what = f"several, {pictures}: name one, image=..." if pictures else "none: see plot.shift"
        raise ValueError(f"{where_from} draws a node of shape (C, H, W); the model has {what}")
    known(name, variables, where_from)
    shape = variables[name].shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"{where_from} draws pictures (1 or 3, H, W); {name!r} has shape {shape}; pictures of "
            f"the model: {pictures}"
        )
    return name


def _neat(value: Any) -> Any:
    """Return a number with three digits; anything else as it is."""
    return float(f"{float(value):.3g}") if isinstance(value, Real) else value


def _factual(batch: Batch, variable: Variable, row: int) -> str:
    """Return a row's value of a scalar node with its unit; nothing where the row did not see it."""
    if variable.shape or variable.name not in batch or not bool(batch.mask(variable.name)[row]):
        return ""
    value = batch.values[variable.name][row].item()
    text = variable.categories[int(value)] if variable.discrete else f"{value:.3g}"
    return f"{text} {variable.unit}".strip()


def _new_axes(rows: int, columns: int, ratio: float, room: float) -> NDArray[Any]:
    """Return `(rows, columns)` axes, placed in inches, the first column a little apart.

    Args:
        rows, columns: how many.
        ratio: height of a picture over its width.
        room: the width of the widest head.
    """
    from matplotlib.figure import Figure

    tall, step = SIDE * ratio, max(SIDE + 0.04, room)
    wide, high = columns * step + GAP + 0.16, HEAD + rows * (tall + FOOT) + 0.04
    figure, axes = Figure((wide, high)), np.empty((rows, columns), object)
    for i, j in np.ndindex(axes.shape):
        left = 0.1 + j * step + (step - SIDE) / 2 + GAP * (j > 0)
        bottom = high - HEAD - i * (tall + FOOT) - tall
        place = (left / wide, bottom / high, SIDE / wide, tall / high)
        axes[i, j] = figure.add_axes(place)
    return axes


def _frames(worlds: Worlds, scale: int) -> list[Image]:
    """Return one picture a value: its title, and the rows side by side below it."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)
    room = max(int(font.getlength(text)) for text in worlds.titles) + 8
    frames = []
    for pictures, text in zip(worlds.answers, worlds.titles, strict=True):
        shown = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        edged = np.pad(shown, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=BETWEEN)
        sheet = np.concatenate(list(edged), axis=1)[:, :-1]
        sheet = sheet.repeat(scale, 0).repeat(scale, 1)
        picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
        size = (max(picture.width, room), picture.height + STRIP)
        frame = Image.new(picture.mode, size, "white")
        frame.paste(picture, (0, STRIP))
        ImageDraw.Draw(frame).text((4, 2), text, fill="black", font=font)
        frames.append(frame)
    return frames


def _moved(model: Model, done: list[str], nodes: Sequence[str] | None) -> list[str]:
    """Return the scalar nodes to draw, in topological order unless they are named."""
    if nodes is not None:
        for name in nodes:
            known(name, model.variables, "shift()")
        odd = [n for n in nodes if model.variables[n].shape]
        if odd or not nodes:
            raise ValueError(
                f"shift() draws scalar nodes, at least one; {odd} are none: see plot.traversal"
            )
        return list(nodes)
    below = set(model.graph.descendants(done))
    found = [n for n in model.graph.order if n in below and not model.variables[n].shape]
    if not found:
        raise ValueError(
            f"no scalar node lies below {done}, so that nothing shifts; below are {sorted(below)}, "
            "and nodes=[...] draws any"
        )
    return found


def _row_of_axes(count: int) -> NDArray[Any]:
    from matplotlib.figure import Figure

    rows = -(-count // ABREAST)
    columns = -(-count // rows) if rows == 1 else ABREAST
    figure = Figure((2.6 * columns + 0.3, 2.1 * rows + 0.1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    return np.array(axes[:count])


def _histograms(
    ax: Axes, variable: Variable, pair: list[NDArray[Any]], labels: tuple[str, str]
) -> None:
    edges = np.histogram_bin_edges(np.concatenate(pair), BINS)
    before, after = (np.histogram(values, edges)[0] / len(values) for values in pair)
    ax.stairs(before, edges, fill=True, color=BEFORE, label=labels[0])
    ax.stairs(after, edges, color=AFTER, linewidth=1.6, label=labels[1])
    ax.set_ylim(bottom=0)


def _categories(
    ax: Axes, variable: Variable, pair: list[NDArray[Any]], labels: tuple[str, str]
) -> None:
    before, after = (np.bincount(v, minlength=variable.width) / len(v) for v in pair)
    at = np.arange(variable.width)
    ax.bar(at - 0.2, before, 0.4, color=BEFORE, edgecolor="0.45", label=labels[0])
    ax.bar(at + 0.2, after, 0.4, color=AFTER, edgecolor="white", hatch="//", label=labels[1])
    ax.set_xticks(at, variable.categories)
