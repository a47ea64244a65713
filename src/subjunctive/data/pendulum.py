"""A pendulum before a lamp: its angle and the light's direction decide where the shadow falls.

The pivot stands at P = (10, 10.5). At the angle a from the vertical, the ball hangs at P + 8 e and
the far tip is P + 9.5 e, with e = (sin a, -cos a). Light of direction l (degrees from the ground)
carries a point (x, y) along its ray to the height h,

    cast(x, y; h) = x + (h - y) cot(l),

so that the sun stands at cast(P; 20.5) and the shadow reaches, on the ground at h = -0.5, from
A = cast(P) to B = cast(tip):

    length = max(3, |A - B|) exp(0.1 u_length),      position = (A + B) / 2 + 0.5 u_position,

    angle, light -> length, position;     angle, light, length, position -> image.

The image shows the window [-1, 21] x [-1, 21]. Its own noise, five numbers uniform in [0, 1], tints
the sky (three channels), shifts the ball's colour, and enlarges the ball. All noise at zero is the
deterministic original: there |A - B| is clipped at 3 in 39.6 % of the images.

Reference: Yang, Liu, Chen, Shen, Hao and Wang, "CausalVAE: Disentangled Representation Learning via
Neural Structural Causal Models", 2021, https://arxiv.org/abs/2004.08697.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from subjunctive.data.oracle import Equation, Oracle
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable

PIVOT = (10.0, 10.5)
ANGLES, LIGHTS = (-36.0, 38.7), (54.0, 132.3)  # degrees: 0.9 times the original's indices
LEFT, BOTTOM, WIDTH = -1.0, -1.0, 22.0  # the window, in units of the scene
SPREAD = {"length": 0.1, "position": 0.5}  # of the logarithm; in units
INK = {"rod": (0.0, 0.0, 0.0), "sun": (1.0, 0.647, 0.0), "ground": (0.86, 0.82, 0.74)}
BALL, RUST = (0.698, 0.133, 0.133), (0.45, 0.25, 0.05)  # the ball's colour without and with noise
FAINT = 0.1  # what differs from the sky by less is no ink


def shadow(angle: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shadow's length and position without noise, in units of the scene.

    Args:
        angle: of the pendulum from the vertical, degrees, `(B,)`.
        light: direction of the light from the ground, degrees, `(B,)`.

    Example:
        >>> length, position = shadow(torch.tensor([30.0]), torch.tensor([90.0]))
        >>> length, position  # light from straight above: the shadow of 9.5 sin(30 degrees)
        (tensor([4.7500]), tensor([12.3750]))
    """
    a, cot = torch.deg2rad(angle), 1 / torch.tan(torch.deg2rad(light))
    pivot = PIVOT[0] - (PIVOT[1] + 0.5) * cot
    tip = PIVOT[0] + 9.5 * a.sin() - (PIVOT[1] + 0.5 - 9.5 * a.cos()) * cot
    return (pivot - tip).abs().clamp(min=3.0), (pivot + tip) / 2


def sun(light: Tensor) -> Tensor:
    """Return where the sun stands, as x in units of the scene, at the height 20.5."""
    return PIVOT[0] + 10 / torch.tan(torch.deg2rad(light))


def _grid(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels' centres: x `(S,)` to the right, y `(S, 1)` from the top down."""
    at = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (WIDTH / size)
    return LEFT + at, (BOTTOM + WIDTH - at)[:, None]


def covers(values: Mapping[str, Tensor], noise: Tensor, size: int) -> dict[str, Tensor]:
    """Return which share of every pixel each shape covers, `(B, S, S)`, in painting order.

    Discs and the rod by the signed distance of the pixel's centre; ground and shadow exactly.

    Args:
        values: "angle", "light" in degrees, "length", "position" in units, each `(B,)`.
        noise: the image's own, `(B, 5)`.
        size: pixels along a side.
    """
    x, y = _grid(size, noise)
    step = WIDTH / size
    column = {k: values[k][:, None, None] for k in ("angle", "light", "length", "position")}
    a = torch.deg2rad(column["angle"])
    right, down = x - PIVOT[0], PIVOT[1] - y
    along, across = right * a.sin() + down * a.cos(), right * a.cos() - down * a.sin()
    ball = torch.hypot(along - 8, across) - 1.5 * (1 + 0.2 * noise[:, 4, None, None])
    rod = torch.maximum(across.abs() - 0.54, (along - 4).abs() - 4)
    disc = torch.hypot(x - sun(column["light"]), y - 20.5) - 3
    half = column["length"].clamp(min=0) / 2
    start = torch.maximum(column["position"] - half, x - step / 2)
    end = torch.minimum(column["position"] + half, x + step / 2)
    ground = ((0 - y) / step + 0.5).clamp(0, 1)
    shapes = {k: (0.5 - d / step).clamp(0, 1) for k, d in (("rod", rod), ("ball", ball))}
    return shapes | {
        "sun": (0.5 - disc / step).clamp(0, 1),
        "ground": ground.expand(len(noise), size, size),
        "shadow": ((end - start) / step).clamp(0, 1) * ground,
    }


def render(
    values: Mapping[str, Tensor],
    noise: Tensor | None = None,
    size: int = 32,
    colour: bool = True,
) -> Tensor:
    """Draw the scene, antialiased, `(B, 3, size, size)` or `(B, 1, size, size)`, in [0, 1].

    Args:
        values: "angle", "light" in degrees, "length", "position" in units, each `(B,)`.
        noise: the image's own, `(B, 5)` in [0, 1]; zeros, the original's look, if not given.
        size: pixels along a side.
        colour: three channels, or their mean.

    Example:
        >>> scene = {"angle": 10.0, "light": 60.0, "length": 5.0, "position": 9.0}
        >>> render({k: torch.tensor([v]) for k, v in scene.items()}, size=64).shape
        torch.Size([1, 3, 64, 64])
    """
    rows = len(values["angle"])
    u = values["angle"].new_zeros(rows, 5) if noise is None else noise
    pictures = u.new_empty(rows, 3 if colour else 1, size, size)
    chunk = max(1, 2**18 // size**2)
    for i in range(0, rows, chunk):
        part = slice(i, i + chunk)
        pictures[part] = _paint({k: v[part] for k, v in values.items()}, u[part], size, colour)
    return pictures


def _paint(values: Mapping[str, Tensor], u: Tensor, size: int, colour: bool) -> Tensor:
    cover = {k: c[:, None] for k, c in covers(values, u, size).items()}

    def ink(rgb: tuple[float, ...]) -> Tensor:
        return u.new_tensor(rgb)[None, :, None, None]

    sky = (1 - 0.2 * u[:, :3])[:, :, None, None]
    ball = ink(BALL) + (ink(RUST) - ink(BALL)) * u[:, 3, None, None, None]
    inks = {"sky": sky, "ball": ball} | {k: ink(rgb) for k, rgb in INK.items()}
    if not colour:
        inks = {k: v.mean(1, keepdim=True) for k, v in inks.items()}
    picture = inks["sky"] * (1 - cover["rod"])
    for shape in ("ball", "sun"):
        picture = torch.lerp(picture, inks[shape], cover[shape])
    # the shadow lies within the ground: exact where a pixel is part sky, part ground
    return picture * (1 - cover["ground"]) + inks["ground"] * (cover["ground"] - cover["shadow"])


def measure(images: Tensor) -> dict[str, Tensor]:
    """Read angle, light, length and position from the pixels, whatever drew them.

    Three bands of rows hold one object each. The centroid of what differs from the sky gives the
    angle (below the pivot: rod and ball lie on one ray) and the light (the sun's rows; a sun cut by
    the window's edge is looked up in a table of centroids of rendered suns). What is dark of the
    ground's rows gives the shadow's length and centroid; what lies outside the window is not seen.
    Where nothing is drawn, x = 10 and length 0 are returned.

    Args:
        images: `(B, 3, S, S)` or `(B, 1, S, S)` in [0, 1], S at least 24.

    Returns:
        "angle" and "light" in degrees, "length" and "position" in units, each `(B,)`.

    Raises:
        ValueError: for images of another shape.

    Example:
        >>> scene = {"angle": 10.0, "light": 60.0, "length": 5.0, "position": 9.0}
        >>> read = measure(render({k: torch.tensor([v]) for k, v in scene.items()}))
        >>> all(abs(float(read[k]) - scene[k]) < 0.15 for k in scene)
        True
    """
    size = images.shape[-1]
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.shape[2] != size or size < 24:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; measure needs (B, 1 or 3, S, S), S >= 24"
        )
    x, y = (c.flatten() for c in _grid(size, images))
    step = WIDTH / size
    sky = images[:, :, (y > 12) & (y < 17)].mean((2, 3))[:, :, None, None]

    def ink(rows: Tensor) -> Tensor:
        strength = (images[:, :, rows] - sky).abs().amax(1)
        return strength * (strength > FAINT)

    swing = ink((y > step / 2) & (y < 12))
    below = PIVOT[1] - y[(y > step / 2) & (y < 12)]
    angle = torch.atan2((swing.sum(1) * (x - PIVOT[0])).sum(1), (swing.sum(2) * below).sum(1))
    high = _middle(ink(y > 17).sum(1), x)
    places = torch.linspace(LEFT - 2, LEFT + WIDTH + 2, 256, device=x.device, dtype=x.dtype)
    disc = 3 - torch.hypot(x - places[:, None, None], y[y > 17, None] - 20.5)
    table = _middle((disc / step + 0.5).clamp(0, 1).sum(1), x)
    after = torch.searchsorted(table, high.contiguous()).clamp(1, len(table) - 1)
    share = (high - table[after - 1]) / (table[after] - table[after - 1])
    place = torch.lerp(places[after - 1], places[after], share.clamp(0, 1))
    soil = images.new_tensor(INK["ground"]).mean()
    dark = 1 - images[:, :, y + step / 2 <= 1e-4].mean((1, 2)) / soil
    dark = dark.clamp(max=1) * (dark > FAINT)
    return {
        "angle": torch.rad2deg(angle),
        "light": torch.rad2deg(torch.atan2(torch.full_like(place, 10), place - PIVOT[0])),
        "length": dark.sum(1) * step,
        "position": _middle(dark, x),
    }


def _middle(mass: Tensor, x: Tensor) -> Tensor:
    """Return the centroid of mass `(B, S)` along x, and the pivot's x where there is none."""
    total = mass.sum(1)
    return PIVOT[0] + (mass * (x - PIVOT[0])).sum(1) / total.clamp(min=1e-6)


class Pendulum:
    """Pictures of a pendulum, a sun and a shadow, from a known SCM with true counterfactuals.

    Angle and light are uniform on the original's ranges, -36 to 38.7 and 54 to 132.3 degrees.
    Setting length or position moves the shadow alone, whatever pendulum and sun would cast.

    Args:
        size: pixels along a side, at least 24.
        train, valid, test: rows of each split, at least 2; `grid` has its own train and test.
        noise: whether length, position and image have noise of their own; without it they are
            deterministic, as in the original.
        colour: three channels, or their mean in one.
        grid: the original's 84 x 87 angles and lights, every fourth picture to test: 5,482 and
            1,826. It has no validation split: `valid`, as the oracle's own draws, lies between
            the grid's points.
        seed: of all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches; `context` holds the true noises, "u.<node>". Roots are their
            own noise; those of length and position are standard normal.
        graph, variables, oracle: the causal graph, its variables, and the true model.

    Raises:
        ValueError: for a size or a number of rows below these.

    Reference: CausalVAE: Disentangled Representation Learning via Neural Structural Causal Models
    (Yang, Liu, Chen, Shen, Hao and Wang, 2021), https://arxiv.org/abs/2004.08697

    Example:
        >>> data = Pendulum(train=8, valid=2, test=4)
        >>> data.train.values["image"].shape
        torch.Size([8, 3, 32, 32])
        >>> swung = data.oracle.predict(data.oracle.abduct(data.test), do={"light": 90.0})
        >>> bool((data.measure(swung["image"])["light"] - 90).abs().max() < 0.5)
        True
    """

    def __init__(
        self,
        size: int = 32,
        train: int = 5000,
        valid: int = 500,
        test: int = 1000,
        noise: bool = True,
        colour: bool = True,
        grid: bool = False,
        seed: int = 0,
    ) -> None:
        if size < 24:
            raise ValueError(f"size is {size}; the shadow needs a row of pixels: at least 24")
        for what, rows in (("train", train), ("valid", valid), ("test", test)):
            if rows < 2:
                raise ValueError(f"{what} is {rows}; draw at least 2 rows")
        self.size, self.noise, self.colour, self.grid, self.seed = size, noise, colour, grid, seed
        self.given = {"train": train, "valid": valid, "test": test}  # to write the configuration
        self.graph = Graph.parse(
            "angle, light -> length, position; angle, light, length, position -> image"
        )
        units = {"angle": "degrees", "light": "degrees", "length": "units", "position": "units"}
        self.variables = {name: Variable(name, unit=unit) for name, unit in units.items()}
        shape = (3 if colour else 1, size, size)
        self.variables["image"] = Variable("image", shape, loc=0.5, scale=0.5, low=0.0, high=1.0)
        self.oracle = Oracle(self.graph, self.variables, self._equations(), self._priors())
        roots = _grid_split() if grid else {}
        with seeded(seed):  # test first: it is the same rows whatever the size of train
            self.test = self._draw(test, roots.get("test"))
            self.valid = self._draw(valid)
            self.train = self._draw(train, roots.get("train"))
        for name in units:
            self.variables[name] = self.variables[name].fit(self.train.values[name])
        self.oracle.variables.update(self.variables)

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Read the attributes from pixels, `(B, C, S, S)` of any size, as `measure` does.

        Mean absolute errors on true pictures of 32 px: angle 0.07 degrees, light 0.03 (0.11 in
        one channel), length 0.01 and position 0.01 units.
        """
        return measure(images)

    def regions(
        self, values: Mapping[str, Tensor], noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return which pixels the shapes touch, node-like names -> boolean `(B, S, S)`.

        All pixels that change under an intervention lie in the union of the factual's and the
        counterfactual's regions.

        Args:
            values: node -> value, as in a batch or as the oracle predicts.
            noise: the image's own, `(B, 5)`, `context["u.image"]`; it matters for the ball's size.

        Returns:
            masks of "rod", "ball", "sun", "ground" and "shadow".
        """
        u = values["angle"].new_zeros(len(values["angle"]), 5) if noise is None else noise
        return {k: c > 0 for k, c in covers(values, u, self.size).items()}

    def _draw(self, rows: int, roots: dict[str, Tensor] | None = None) -> Batch:
        noise = self.oracle.noise(len(roots["angle"]) if roots else rows) | (roots or {})
        return Batch(self.oracle.predict(noise), context={f"u.{k}": u for k, u in noise.items()})

    def _equations(self) -> dict[str, Equation]:
        def length(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
            return shadow(parents["angle"], parents["light"])[0] * torch.exp(SPREAD["length"] * u)

        def position(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
            return shadow(parents["angle"], parents["light"])[1] + SPREAD["position"] * u

        def image(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
            return render(parents, u, self.size, self.colour)

        def root(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
            return u

        own: dict[str, Equation] = {"length": length, "position": position, "image": image}
        return {"angle": root, "light": root} | own

    def _priors(self) -> dict[str, Callable[[int], Tensor]]:
        def uniform(low: float, high: float, *shape: int) -> Callable[[int], Tensor]:
            return lambda n: low + (high - low) * torch.rand(n, *shape)

        own: dict[str, Callable[[int], Tensor]] = {
            "length": torch.randn if self.noise else torch.zeros,
            "position": torch.randn if self.noise else torch.zeros,
            "image": uniform(0.0, float(self.noise), 5),
        }
        return {"angle": uniform(*ANGLES), "light": uniform(*LIGHTS)} | own


def _grid_split() -> dict[str, dict[str, Tensor]]:
    """Return the original's angles and lights in its order, every fourth to test."""
    i, j = torch.arange(-40, 44), torch.arange(60, 148)
    pairs = torch.cartesian_prod(i, j[j != 100]) * 0.9
    every = torch.arange(len(pairs))
    held = (every % 4 == 0) & (every > 0)
    parts = {"train": pairs[~held], "test": pairs[held]}
    return {k: {"angle": p[:, 0].clone(), "light": p[:, 1].clone()} for k, p in parts.items()}
