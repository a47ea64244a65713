"""Reading the labels of a `Scene` from its pixels, whatever drew them.

Pixels are squared to be proportional to light, I = a (ambient + direct). The labels follow in an
order in which each needs only those before it:

    lamp, warmth   the table's front edge, where nothing stands, gives its light E = I / a
    hue            of what is saturated: the hue h of least |I - a(h) (ambient + k tint)|, any k
    slide          where what has this hue ends on the right, as the ball's track is on the left
    angle, size    the disc that holds most of what is neither block nor table nor wall, lit or
                   shaded, and least of these; what the block hides counts neither way
    material       the colour of that disc, in the light E
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from subjunctive.data.raster import (
    AMBIENT,
    BOTTOM,
    FACING,
    HORIZON,
    LEFT,
    OUT,
    RAIL,
    SATURATION,
    SIDE,
    SUN,
    TABLE,
    TRACK,
    UP,
    VALUE,
    WIDTH,
    YAW,
    rainbow,
    screen,
    tint,
)

REACH = SIDE / 2 * (math.cos(YAW) + math.sin(YAW))  # from the block's middle to its right edge


def measure(images: Tensor) -> dict[str, Tensor]:
    """Return material, size, angle, slide, lamp, warmth and hue of pictures, `(B,)` each.

    Mean (largest) errors on 1,000 true pictures, every label uniform over its range by itself:

        size    0.011 (0.04) at 32 px    0.006 (0.04) at 64 px    of 0.24 to 0.54
        angle   1.2   (5)                0.7   (4)                of -80 to 80 degrees
        slide   0.017 (0.10)             0.006 (0.04)             of 0 to 1
        lamp    0.07  (0.4)              0.04  (0.3)              of 22 to 62 degrees
        warmth  0.003 (0.02)             0.002 (0.01)             of 0 to 1
        hue     0.6   (5)                0.5   (5)                of 20 to 220 degrees

    and no material is mistaken. Where there is no block its slide is read as one half; where there
    is no ball, any number within the range is read.

    Args:
        images: `(B, 3, S, S)` in [0, 1], S at least 24.

    Raises:
        ValueError: for images of another shape.

    Example:
        >>> from subjunctive.data.scene import Scene
        >>> data = Scene(train=8, valid=2, test=4)
        >>> read = measure(data.test.values["image"])
        >>> torch.equal(read["material"], data.test.values["material"])
        True
    """
    size = images.shape[-1]
    if images.dim() != 4 or images.shape[1:] != (3, size, size) or size < 24:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; measure needs (B, 3, S, S), S >= 24"
        )
    parts = [_read(part.detach().float().clamp(0, 1)) for part in images.split(64)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _read(seen: Tensor) -> dict[str, Tensor]:
    light = seen.square()
    lamp, warmth, shine = _lamp(light)
    share, hue = _block(light, shine, warmth)
    strange = _strange(light, shine, lamp, warmth)
    hidden = max_pool2d(share[:, None], 3, 1, 1)[:, 0] > 0.3
    disc = _disc(torch.where(hidden, 0.0, _closed(strange)))
    material = _material(light, warmth, disc.pop("inside") * (strange > 0))
    return disc | {
        "material": material,
        "lamp": lamp,
        "warmth": warmth,
        "hue": hue,
        "slide": _right(share, seen),
    }


def _lamp(light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lamp's height and warmth, and the light on the table `(B, 3)`."""
    _, y = screen(light.shape[-1])
    shine = light[:, :, y < BOTTOM + 0.2].mean((2, 3)).clamp(min=1e-3) / light.new_tensor(TABLE)
    direct = ((shine - light.new_tensor(AMBIENT)) / SUN).clamp(min=1e-3)
    ratio = direct[:, 2] / direct[:, 1]
    warmth = ((1.05 - ratio) / (0.62 - 0.10 * ratio)).clamp(0, 1)
    sine = (direct[:, 1] / (1 - 0.10 * warmth)).clamp(0.05, 0.999)
    return torch.rad2deg(sine.asin()), warmth, shine


def _saturation(albedo: Tensor) -> Tensor:
    return 1 - albedo.amin(1) / albedo.amax(1).clamp(min=1e-4)


def _block(light: Tensor, shine: Tensor, warmth: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each pixel is the block's, `(B, S, S)` from 0 to 1, and its hue."""
    albedo = light / shine[:, :, None, None]
    # the rubber ball is as saturated, but its blue lies between its red and green
    rosy = (albedo[:, 0] > albedo[:, 2]) & (albedo[:, 2] > albedo[:, 1] * 1.25)
    share = ((_saturation(albedo) - 0.6) / 0.1).clamp(0, 1) * ~rosy * (light.amax(1) > 0.04)
    weight = (share >= 1).float()
    mean = (light * weight[:, None]).sum((2, 3)) / weight.sum((1, 2)).clamp(min=1)[:, None]
    hues = torch.linspace(10, 230, 221, device=light.device)
    colours = rainbow(hues, SATURATION, VALUE)
    dark = 0.78 * colours * light.new_tensor(AMBIENT)
    bright = colours * tint(warmth)[:, None]
    k = (((mean[:, None] - dark) * bright).sum(2) / bright.square().sum(2)).clamp(min=0)
    miss = (mean[:, None] - dark - k[:, :, None] * bright).square().sum(2)
    return share, _peak(-miss, hues)


def _peak(score: Tensor, at: Tensor) -> Tensor:
    """Return where a score `(B, K)` over evenly spaced places `(K,)` is largest, by a parabola."""
    best = score.argmax(1).clamp(1, len(at) - 2)
    a, b, c = (score.gather(1, (best + d)[:, None])[:, 0] for d in (-1, 0, 1))
    bend = (2 * b - a - c).clamp(min=1e-12)
    return at[best] + (at[1] - at[0]) * ((c - a) / (2 * bend)).clamp(-0.5, 0.5)


def _right(share: Tensor, seen: Tensor) -> Tensor:
    """Return how far the block has slid, from its right edge, which is upright.

    In the edge's rows two pixels mix the block, seen before them, and what is seen after them.
    """
    n, rows = share.shape[-1], torch.arange(len(share), device=share.device)
    last = torch.where(share.amax(1) > 0.5, torch.arange(n, device=share.device), -1).amax(1)
    at = [(last + d).clamp(0, n - 1) for d in (-1, 0, 1, 2)]
    inner, edge, next_, outer = (seen[rows, :, :, j] for j in at)
    line = inner - outer
    size = line.square().sum(1).clamp(min=1e-6)
    part = sum((((c - outer) * line).sum(1) / size).clamp(0, 1) for c in (edge, next_))
    weight = size * share[rows, :, at[1]] ** 4 * (share[rows, :, at[0]] > 0.9) + 1e-12
    mixed = (weight * part).sum(1) / weight.sum(1)
    mixed = torch.where(last < n - 2, mixed, share.amax(1)[rows, at[1]])  # at the window's edge
    place = LEFT + WIDTH / n * (last + mixed) - REACH - RAIL
    return torch.where(last < 0, 0.5, place)


def _strange(light: Tensor, shine: Tensor, lamp: Tensor, warmth: Tensor) -> Tensor:
    """Return whether colours lie off the way from shade to light, from -1, on it, to 1."""
    n, ambient = light.shape[-1], light.new_tensor(AMBIENT)
    sun = tint(warmth)
    upright = (torch.deg2rad(lamp).cos() * FACING)[:, None]
    wall = light[:, :, : max(1, n // 28)].mean((2, 3))  # its upper edge, where nothing stands
    table = shine * light.new_tensor(TABLE)
    above = ((screen(n)[1].to(light) - HORIZON) * (n / WIDTH) + 0.5).clamp(0, 1)[:, None]

    def mixed(low: Tensor, high: Tensor) -> Tensor:
        return torch.lerp(low.sqrt()[..., None, None], high.sqrt()[..., None, None], above).square()

    lit = mixed(table, wall)
    dark = mixed(table * ambient / shine, wall * 0.72 * ambient / (0.72 * ambient + sun * upright))
    line = lit - dark
    size = line.square().sum(1, keepdim=True).clamp(min=1e-6)
    t = ((light - dark) * line).sum(1, keepdim=True) / size
    on = (dark + t.clamp(0, 1.1) * line).clamp(min=0)
    off = (light.sqrt() - on.sqrt()).norm(dim=1)
    around = max_pool2d(off[:, None], 3, 1, 1)[:, 0]  # half of it is reached at the ball's rim
    return (off / (around / 2).clamp(0.045, 0.07) - 1).clamp(-1, 1)


def _closed(evidence: Tensor) -> Tensor:
    """Close gaps of a pixel or two, where the ball looks like the table."""
    side = 2 * round(evidence.shape[-1] / 32) + 1
    wide = max_pool2d(evidence[:, None], side, 1, side // 2)
    return -max_pool2d(-wide, side, 1, side // 2)[:, 0]


def _disc(evidence: Tensor) -> dict[str, Tensor]:
    """Return angle, size and the share of each pixel that is in the disc with most evidence."""
    n = evidence.shape[-1]
    x, y = (c.to(evidence) for c in screen(n))
    angles = torch.linspace(-90, 90, 61).to(evidence)
    radii = torch.linspace(0.18, 0.60, 22).to(evidence)
    turn, r = torch.deg2rad(angles)[:, None], radii[None]
    middle, wide, deep = TRACK
    cx = (middle - wide * turn.cos()).expand(len(angles), len(radii))[..., None, None]
    cy = (r * OUT - deep * turn.sin() * UP)[..., None, None]
    rim = torch.hypot(x - cx, y[:, None] - cy) - r[..., None, None]
    discs = (0.5 - rim * (n / WIDTH)).clamp(0, 1).flatten(0, 1)
    score = evidence.flatten(1) @ discs.flatten(1).T
    best, rows = score.argmax(1), torch.arange(len(score), device=score.device)
    table = score.unflatten(1, (len(angles), len(radii)))
    angle = _peak(table[rows, :, best % len(radii)], angles)
    radius = _peak(table[rows, best // len(radii)], radii)
    return {"angle": angle, "size": radius, "inside": discs[best]}


def _material(light: Tensor, warmth: Tensor, inside: Tensor) -> Tensor:
    """Return the code: rubber is rosy, paper bright, steel neither."""
    mean = (light * inside[:, None]).sum((2, 3)) / inside.sum((1, 2)).clamp(min=1e-6)[:, None]
    albedo = mean / (light.new_tensor(AMBIENT) + 0.6 * tint(warmth))
    return torch.where(_saturation(albedo) > 0.5, 1, torch.where(albedo.mean(1) > 0.65, 0, 2))
