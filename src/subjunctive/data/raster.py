"""A ball and a block on a table before a wall, seen and lit by parallel rays.

A pixel is the mean of a few rays. With V the direction to the viewer, the ray of the screen's
point o meets at depth s, in o + s V,

    the ball     |o + s V - C| = r                  at the nearer root
    the block    lo_k <= (o + s V) . e_k <= hi_k    where the last of three slabs is entered
    the table    y = 0, or behind it the wall, z = BACK,

and what has the largest s is seen: nearer things hide farther ones. From the point p there, with
L the direction to the lamp, the ray p + t L asks what stands before the light. The ball lets light
pass by the ray's distance from its rim, over a penumbra that widens with t, the block by the length
of the ray's way within it. With the normal n, the albedo a, h half-way from L to V and a gloss g,

    colour = sqrt(a (ambient (0.72 + 0.28 n_y) + lit tint max(n . L, 0)) + g tint max(n . h, 0)^32).

The root is the display's; measuring undoes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

PITCH = math.radians(36.0)  # of the camera, down
UP, OUT = math.sin(PITCH), math.cos(PITCH)
VIEW = (0.0, UP, OUT)
LEFT, BOTTOM, WIDTH = -1.66, -1.22, 3.06  # the window on the screen, in units of the scene
BACK = -1.55  # the wall's z
HORIZON = -BACK * UP  # where the table ends on the screen
TRACK = (0.2, 1.25, 1.0)  # the ball's half ellipse: its middle's x, its half axes
RAIL = -0.05  # where the block's centre begins, as x
SIDE, YAW = 0.54, math.radians(28.0)  # of the block
AZIMUTH = math.radians(42.0)  # of the lamp, from the viewer to the left
FACING = math.cos(AZIMUTH)  # how far it shines on the wall
AMBIENT, SUN = (0.30, 0.33, 0.41), 1.05
TABLE = (0.68, 0.54, 0.40)
SATURATION, VALUE = 0.82, 0.86  # of the block's colour
WAVES = 4  # of the table's grain across the window: their mean over a row is one
BALLS = (  # albedo and gloss of paper, rubber, steel
    (0.92, 0.90, 0.86, 0.0),
    (0.72, 0.09, 0.36, 0.2),
    (0.06, 0.075, 0.10, 0.9),
)

Point = tuple[Tensor, Tensor, Tensor]
Things = Mapping[str, Tensor]


class Hit(NamedTuple):
    """What rays meet first: where, the surface's normal, and which thing it is, `(B, rays)`."""

    point: Point
    normal: Point
    ball: Tensor
    block: Tensor
    table: Tensor


def lattice(size: int) -> tuple[Tensor, Tensor]:
    """Return where in a pixel its rays lie, to the right and down, each from 0 to 1.

    n points at (k, a k mod n) / n, with n and a of Fibonacci's: no two share a row or a column.

    >>> lattice(64)[1] * 5
    tensor([0.5000, 2.5000, 4.5000, 1.5000, 3.5000])
    >>> len(lattice(32)[0]), len(lattice(24)[0])
    (8, 13)
    """
    n, a = (13, 5) if size < 32 else (8, 3) if size < 64 else (5, 2)
    k = torch.arange(n)
    return (k + 0.5) / n, (a * k % n + 0.5) / n


def rainbow(hue: Tensor, saturation: float, value: float | Tensor) -> Tensor:
    """Return the colours `(B, 3)` of hues in degrees `(B,)`.

    >>> rainbow(torch.tensor([0.0, 120.0]), 1.0, 1.0)
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    k = (hue[:, None] / 60 + hue.new_tensor([5.0, 3.0, 1.0])) % 6
    return value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1))


def tint(warmth: Tensor) -> Tensor:
    """Return the lamp's light `(B, 3)` at a warmth from 0, cold, to 1."""
    return SUN * torch.stack([1 + 0.22 * warmth, 1 - 0.10 * warmth, 1.05 - 0.62 * warmth], 1)


def screen(size: int) -> tuple[Tensor, Tensor]:
    """Return the screen's coordinates of pixels, x `(S,)` and y from the top down `(S,)`."""
    at = (torch.arange(size) + 0.5) * (WIDTH / size)
    return LEFT + at, BOTTOM + WIDTH - at


def paint(scene: Things, size: int) -> Tensor:
    """Draw rows, `(B, 3, size, size)` in [0, 1].

    Args:
        scene: "centre" and "wall" (an albedo), `(B, 3)`; "ball", a row of `BALLS`, `(B, 4)`;
            "radius", "block" (its x), "height", "hue", "lamp" (degrees), "warmth" and "grain" (a
            phase from 0 to 1), `(B,)`.
        size: pixels along a side.
    """
    hit = trace(scene, size)
    height = torch.deg2rad(scene["lamp"])[:, None]
    flat = height.cos()
    light: Point = (-flat * math.sin(AZIMUTH), height.sin(), flat * math.cos(AZIMUTH))
    lit = _past_ball(scene, hit.point, light) * _past_block(scene, hit.point, light)
    direct = lit * _dot(hit.normal, light).clamp(min=0)
    ambient = 0.72 + 0.28 * hit.normal[1]
    half: Point = (light[0], light[1] + UP, light[2] + OUT)
    gloss = (_dot(hit.normal, half) / _dot(half, half).sqrt()).clamp(min=0)
    for _ in range(5):
        gloss = gloss.square()
    gloss = torch.where(hit.ball, scene["ball"][:, 3:] * gloss, 0.0)
    tones = 2 * math.pi * (WAVES * (hit.point[0] - LEFT) / WIDTH + scene["grain"][:, None])
    wood = 1 + 0.05 * torch.sin(tones + torch.sin(2.5 * hit.point[2]))
    lamp, block = tint(scene["warmth"]), rainbow(scene["hue"], SATURATION, VALUE)
    planes = []
    for k in range(3):
        albedo = torch.where(hit.table, TABLE[k] * wood, scene["wall"][:, k : k + 1])
        albedo = torch.where(hit.block, block[:, k : k + 1], albedo)
        albedo = torch.where(hit.ball, scene["ball"][:, k : k + 1], albedo)
        sun = lamp[:, k : k + 1]
        glow = albedo * (AMBIENT[k] * ambient + sun * direct) + gloss * sun
        planes.append(glow.clamp(0, 1).sqrt())
    return average(torch.stack(planes, 1), size)


def average(rays: Tensor, size: int) -> Tensor:
    """Return the pixels `(..., S, S)` of rays `(..., n S S)`, n in each."""
    return rays.unflatten(-1, (-1, size, size)).mean(-3)


def trace(scene: Things, size: int) -> Hit:
    """Follow every ray from the screen to what is seen of the scene, as `paint` takes it."""
    x, y = (c.to(scene["radius"]) for c in screen(size))
    right, down = ((c.to(x) - 0.5) * (WIDTH / size) for c in lattice(size))
    grid = len(right), size, size
    sx = (x + right[:, None, None]).expand(grid).flatten()
    sy = (y[:, None] - down[:, None, None]).expand(grid).flatten()
    origin: Point = (sx, sy * OUT, -sy * UP)
    centre, radius = _columns(scene["centre"]), scene["radius"][:, None]
    table, wall = -sy * OUT / UP, (BACK + sy * UP) / OUT
    away = _minus(origin, centre)
    along = away[1] * UP + away[2] * OUT
    rest = radius.square() - _dot(away, away) + along.square()
    ball = torch.where(rest > 0, rest.clamp(min=0).sqrt() - along, -torch.inf)
    enters, leaves = _slabs(scene, origin, _columns(sx.new_tensor([VIEW])))
    near = leaves.amin(0)  # V points to the viewer: the largest s is the nearest
    block = torch.where(near > enters.amax(0), near, -torch.inf)
    depth = torch.maximum(torch.maximum(ball, block), torch.maximum(table, wall))
    point: Point = (sx, origin[1] + depth * UP, origin[2] + depth * OUT)
    on_ball, on_block, on_table = ball >= depth, block >= depth, table >= depth
    left, top = (near == leaves[0]).float(), (near == leaves[1]).float()
    right = 1 - left - top
    c, s = math.cos(YAW), math.sin(YAW)
    faces = (s * right - c * left, top, s * left + c * right)
    flat = (0.0 * sx, on_table.float(), 1 - on_table.float())
    round_ = tuple(d / radius for d in _minus(point, centre))
    nx, ny, nz = (
        torch.where(on_ball, b, torch.where(on_block, f, p))
        for b, f, p in zip(round_, faces, flat, strict=True)
    )
    return Hit(point, (nx, ny, nz), on_ball, on_block & ~on_ball, on_table)


def _past_ball(scene: Things, p: Point, light: Point) -> Tensor:
    """Return which share of the light passes the ball on its way to p."""
    way = _minus(_columns(scene["centre"]), p)
    along = _dot(way, light)
    miss = (_dot(way, way) - along.square()).clamp(min=0).sqrt() - scene["radius"][:, None]
    share = (miss / (0.02 + 0.10 * along.clamp(min=0)) + 0.5).clamp(0, 1)
    return torch.where(along > 0, share, 1.0)


def _past_block(scene: Things, p: Point, light: Point) -> Tensor:
    """Return which share of the light passes the block on its way to p."""
    enters, leaves = _slabs(scene, p, light)
    first = enters.amax(0).clamp(min=1e-3)  # not what p itself lies on
    return 1 - ((leaves.amin(0) - first) / (0.03 + 0.10 * first)).clamp(0, 1)


def _slabs(scene: Things, p: Point, way: Point) -> tuple[Tensor, Tensor]:
    """Return where p + t way enters and leaves the block's slabs, left, up and right, as t."""
    c, s = math.cos(YAW), math.sin(YAW)
    x, high = p[0] - scene["block"][:, None], scene["height"][:, None]
    middle = torch.stack([s * p[2] - c * x, (p[1] - high / 2).expand_as(x), s * x + c * p[2]])
    pace = torch.stack([s * way[2] - c * way[0], way[1], s * way[0] + c * way[2]])
    half = torch.stack([torch.full_like(high, SIDE / 2), high / 2, torch.full_like(high, SIDE / 2)])
    at, width = -middle / pace, (half / pace).abs()
    return at - width, at + width


def _columns(values: Tensor) -> Point:
    x, y, z = values[:, :, None].unbind(1)
    return x, y, z


def _minus(a: Point, b: Point) -> Point:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _dot(a: Point, b: Point) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
