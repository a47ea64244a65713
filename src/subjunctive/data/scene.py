"""A ball that has pushed a block along a table, under a lamp: colour, occlusion, light and shadow.

A ball of some material was rolled on a curved track against a block that slides on a rail:

    material  m    paper (30 %), rubber (40 %) or steel (30 %)
    size      r = 0.24 + 0.30 sigmoid(a_m + 0.6 u),  a = (1, 0, -1)             radius, dm
    angle     g = 80 tanh(7 (r - 0.38) + 0.8 u)                                 where it rests, degrees
    slide     s = sigmoid(1.6 log(d_m (r / 0.38)^3) + 0.4 u),  d = (0.4, 1, 3)  share of the rail
    lamp      e ~ U(22, 62)                                                     height, degrees
    warmth    w = sigmoid((42 - e) / 7 + 0.6 u)                                 of its light
    hue       h = 20 + 200 sigmoid(4 (0.5 - s) + (42 - e) / 14 + 0.5 u)         of the block, degrees

    material -> size, slide;  size -> angle, slide;  lamp -> warmth, hue;  slide -> hue;  all -> image

A heavy ball pushes far, but heavy stuff makes small balls: the two ways from material to slide
work against each other. The block's paint shows heat, from friction and from the lamp, from blue to
orange. At angles below zero the ball lies behind the rail, where the block can hide it, above zero
in front, where it can hide the block. The lamp's height and warmth show in all that is lit, and in
the shadows' length. The image's own noise: the wall's hue and brightness, the phase of the table's
grain and the block's height. All equations are known, so every counterfactual is true.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subjunctive.data import raster
from subjunctive.data.oracle import Equation, Oracle
from subjunctive.data.scene_measure import measure
from subjunctive.data.source import cached
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable

GRAPH = (
    "material -> size, slide; size -> angle, slide; lamp -> warmth, hue; slide -> hue; "
    "material, size, angle, slide, lamp, warmth, hue -> image"
)
MATERIALS = ("paper", "rubber", "steel")
SHARES, SWELL, DENSITY = (0.3, 0.4, 0.3), (1.0, 0.0, -1.0), (0.4, 1.0, 3.0)
UNITS = {
    "size": "dm",
    "angle": "degrees",
    "slide": "share",
    "lamp": "degrees",
    "warmth": "",
    "hue": "degrees",
}
LAMPS = (22.0, 62.0)
CHUNK = 4  # so few rows that their rays stay in the processor's cache
VERSION = 2  # of the pictures, in the cache's key


def material(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return the material's code, by the inverse of the distribution function at u in [0, 1)."""
    return torch.bucketize(u, u.new_tensor([SHARES[0], SHARES[0] + SHARES[1]]), right=True)


def size(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return the ball's radius, between 0.24 and 0.54 dm."""
    return 0.24 + 0.30 * (u.new_tensor(SWELL)[parents["material"]] + 0.6 * u).sigmoid()


def angle(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return where on its track the ball rests: -80 behind, 0 to the left, 80 in front."""
    return 80 * torch.tanh(7 * (parents["size"] - 0.38) + 0.8 * u)


def slide(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return how far along its rail the block was pushed, between 0 and 1."""
    volume = (parents["size"].clamp(min=1e-3) / 0.38) ** 3
    mass = u.new_tensor(DENSITY)[parents["material"]] * volume
    return (1.6 * mass.log() + 0.4 * u).sigmoid()


def warmth(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return how warm the light is, between 0 and 1: the lower the lamp, the warmer."""
    return ((42 - parents["lamp"]) / 7 + 0.6 * u).sigmoid()


def hue(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return the block's hue, between 20 (orange, hot) and 220 degrees (blue, cold)."""
    cold = 4 * (0.5 - parents["slide"]) + (42 - parents["lamp"]) / 14
    return 20 + 200 * (cold + 0.5 * u).sigmoid()


def arrange(values: Mapping[str, Tensor], u: Tensor) -> dict[str, Tensor]:
    """Return what `raster.paint` draws, from the labels' values and the image's noise `(B, 4)`."""
    turn, radius = torch.deg2rad(values["angle"]), values["size"].clamp(min=1e-3)
    middle, wide, deep = raster.TRACK
    return {
        "centre": torch.stack([middle - wide * turn.cos(), radius, deep * turn.sin()], 1),
        "radius": radius,
        "ball": u.new_tensor(raster.BALLS)[values["material"]],
        "block": raster.RAIL + values["slide"],
        "height": 0.5 + 0.2 * u[:, 3],
        "wall": raster.rainbow(150 + 140 * u[:, 0], 0.32, 0.70 + 0.16 * u[:, 1, None]),
        "grain": u[:, 2],
        "lamp": values["lamp"].clamp(1, 89),
        "warmth": values["warmth"],
        "hue": values["hue"],
    }


def render(
    values: Mapping[str, Tensor],
    noise: Tensor | None = None,
    size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Draw scenes in 256 levels, `(B, 3, size, size)` in [0, 1].

    Args:
        values: "material" (codes), "size", "angle", "slide", "lamp" (drawn as 1 below 1 degree,
            as 89 above 89), "warmth", "hue", `(B,)` each.
        noise: the image's own, `(B, 4)` in [0, 1]; one half if not given.
        size: pixels along a side.
        progress: show a bar when drawing takes more than two seconds.

    Example:
        >>> scene = {"size": 0.4, "angle": 60.0, "slide": 0.5, "lamp": 30.0, "warmth": 0.8}
        >>> scene = {k: torch.tensor([v]) for k, v in ({"hue": 200.0} | scene).items()}
        >>> render({"material": torch.tensor([1])} | scene, size=64).shape
        torch.Size([1, 3, 64, 64])
    """
    from tqdm import trange

    rows = len(values["size"])
    u = values["size"].new_full((rows, 4), 0.5) if noise is None else noise
    scene, pictures = arrange(values, u), u.new_empty(rows, 3, size, size)
    with torch.no_grad():
        for i in trange(0, rows, CHUNK, desc="render", delay=2, disable=not progress):
            part = slice(i, i + CHUNK)
            pictures[part] = raster.paint({k: v[part] for k, v in scene.items()}, size)
    return (255 * pictures).round() / 255


EQUATIONS: dict[str, Equation] = {
    "material": material,
    "size": size,
    "angle": angle,
    "slide": slide,
    "lamp": lambda u, parents: u,
    "warmth": warmth,
    "hue": hue,
}


class Scene:
    """Pictures of a ball, a block, and light, from a known SCM with true counterfactuals.

    Args:
        size: pixels along a side, at least 24.
        train, valid, test: rows of each split, at least 2.
        seed: of all draws; the global generator is left alone.
        cache: keep what is drawn in `$XDG_CACHE_HOME/subjunctive` or `~/.cache/subjunctive`.
        progress: show a bar when drawing takes more than two seconds.

    Attributes:
        train, valid, test: batches; `context` holds the true noises, "u.<node>": material's is
            uniform in [0, 1), the lamp is its own, the image's are four numbers uniform in [0, 1);
            the others' are standard normal.
        graph, variables, oracle: the causal graph, its variables, and the true model.
        rescale_node: the node that a mere rescaling of the pixels sets.

    Raises:
        ValueError: for a size or a number of rows below these.

    Example:
        >>> data = Scene(train=8, valid=2, test=4)
        >>> data.train.values["image"].shape
        torch.Size([8, 3, 32, 32])
        >>> heavy = data.oracle.predict(data.oracle.abduct(data.test), do={"material": "steel"})
        >>> bool((data.measure(heavy["image"])["slide"] - heavy["slide"]).abs().max() < 0.1)
        True
    """

    rescale_node: ClassVar[str] = "lamp"

    def __init__(
        self,
        size: int = 32,
        train: int = 5000,
        valid: int = 500,
        test: int = 1000,
        seed: int = 0,
        cache: bool = True,
        progress: bool = True,
    ) -> None:
        if size < 24:
            raise ValueError(f"size is {size}; the ball needs pixels to be seen: at least 24")
        for what, rows in (("train", train), ("valid", valid), ("test", test)):
            if rows < 2:
                raise ValueError(f"{what} is {rows}; draw at least 2 rows")
        self.size, self.seed, self.cache, self.progress = size, seed, cache, progress
        self.given = {"train": train, "valid": valid, "test": test}  # to write the configuration
        self.graph = Graph.parse(GRAPH)
        self.variables = {name: Variable(name, unit=unit) for name, unit in UNITS.items()} | {
            "material": Variable("material", (), "categorical", MATERIALS),
            "image": Variable("image", (3, size, size), loc=0.5, scale=0.5, low=0.0, high=1.0),
        }
        equations = {**EQUATIONS, "image": self._image}
        self.oracle = Oracle(self.graph, self.variables, equations, self._priors())
        with seeded(seed):  # test first: it is the same rows whatever the size of train
            self.test, self.valid, self.train = (self._draw(n) for n in (test, valid, train))
        for name in UNITS:
            self.variables[name] = self.variables[name].fit(self.train.values[name])
        self.oracle.variables.update(self.variables)

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Read every label from pixels, `(B, 3, S, S)` of any size from 24 on, as `measure` does.

        Mean absolute errors on true pictures: `subjunctive.data.scene_measure.measure` states them.
        """
        return measure(images)

    def regions(
        self, values: Mapping[str, Tensor], noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return which pixels show the ball and the block, boolean `(B, S, S)` each.

        Args:
            values: node -> value, as in a batch or as the oracle predicts.
            noise: the image's own, `context["u.image"]`; it matters for the block's height.
        """
        u = values["size"].new_full((len(values["size"]), 4), 0.5) if noise is None else noise
        found: dict[str, list[Tensor]] = {"ball": [], "block": []}
        scene = arrange(values, u)
        for i in range(0, len(u), CHUNK):
            hit = raster.trace({k: v[i : i + CHUNK] for k, v in scene.items()}, self.size)
            for name, parts in found.items():
                parts.append(raster.average(getattr(hit, name).float(), self.size) > 0)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _image(self, u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
        return render(parents, u, self.size, self.progress)

    def _draw(self, rows: int) -> Batch:
        noise = self.oracle.noise(rows)

        def make() -> dict[str, NDArray[np.generic]]:
            values = self.oracle.predict(noise)
            values["image"] = (255 * values["image"]).round().to(torch.uint8)
            return {name: value.numpy() for name, value in values.items()}

        key = (VERSION, self.size, *(u.numpy().tobytes() for u in noise.values()))
        held = cached("scene", key, make) if self.cache else make()
        values = {name: torch.as_tensor(array) for name, array in held.items()}
        values["image"] = values["image"].float() / 255
        return Batch(values, context={f"u.{name}": u for name, u in noise.items()})

    def _priors(self) -> dict[str, Callable[[int], Tensor]]:
        normal: Callable[[int], Tensor] = torch.randn
        return dict.fromkeys(EQUATIONS, normal) | {
            "material": torch.rand,
            "lamp": lambda n: LAMPS[0] + (LAMPS[1] - LAMPS[0]) * torch.rand(n),
            "image": lambda n: torch.rand(n, 4),
        }
