r"""Does the picture move evenly along a walk through the noise? Interpolation standard deviation.

Between two starts a walk of n even steps, on the sphere of noise rather than through its middle,

    u_k = sin((1 - w) phi) / sin(phi) a + sin(w phi) / sin(phi) b,   w = k / n,  cos(phi) = a.b / |a||b|,

and the distances between neighbouring pictures, `d_k = |f(u_k) - f(u_{k-1})|`, k = 1 .. n. Then

    ISTD         E_pairs[ sd_k(d_k) ]                in units of the picture; falls if f just moves less
    relative     E_pairs[ sd_k(d_k) / mean_k(d_k) ]  free of units: a model that moves less gains nothing
    length       E_pairs[ sum_k d_k ]
    uniformity   (E d)^2 / E d^2                     over pairs and steps; 1 if f's speed is one everywhere

The standard deviation is that of the n distances themselves (divided by n). The ISTD sees a walk's
own unevenness alone; uniformity sees, too, that one walk is longer than another.

Reference: Smooth Diffusion: Crafting Smooth Latent Spaces in Diffusion Models (Guo et al., 2024),
https://arxiv.org/abs/2312.04410; on the sphere: Sampling Generative Networks (White, 2016),
https://arxiv.org/abs/1609.04468
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from subjunctive.mechanism import Noise, each
from subjunctive.metrics.distance import l2
from subjunctive.metrics.estimate import Estimate, ratio


@dataclass(frozen=True)
class Interpolation:
    """How evenly pictures move along walks through the noise, over pairs of starts.

    Args:
        istd: mean over pairs of the standard deviation of a walk's steps, in the picture's unit.
        relative: the same, each walk's deviation over its own mean step.
        uniformity: squared mean over mean square of all steps of all walks, at most 1.
        length: mean over pairs of a walk's length.
    """

    istd: Estimate
    relative: Estimate
    uniformity: Estimate
    length: Estimate


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return the point between rows of a and b `(B, *shape)` on the arc that joins them.

    Their lengths are interpolated on the way; parallel rows are joined by a line.

    Args:
        a, b: the ends, where the weight is 0 and 1; no row of zeros.
        weight: from 0 to 1, the share of the angle.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[0.7071, 0.7071]])
    """
    x, y = a.reshape(len(a), -1).double(), b.reshape(len(b), -1).double()
    long_x, long_y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    unit_x, unit_y = x / long_x, y / long_y
    # by the half-angle's tangent, which is exact where the cosine is flat
    phi = 2 * torch.atan2((unit_x - unit_y).norm(dim=1), (unit_x + unit_y).norm(dim=1))[:, None]
    sine = phi.sin()
    flat = sine < 1e-9
    safe = torch.where(flat, 1.0, sine)
    on_x = torch.where(flat, 1 - weight, ((1 - weight) * phi).sin() / safe)
    on_y = torch.where(flat, weight, (weight * phi).sin() / safe)
    length = (1 - weight) * long_x + weight * long_y
    return (length * (on_x * unit_x + on_y * unit_y)).reshape(a.shape).to(a)


def lerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return the point between rows of a and b on the straight line.

    >>> lerp(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
    tensor([[0.2500, 0.2500]])
    """
    return torch.lerp(a, b, weight)


@torch.no_grad()
def steps_between(
    generate: Callable[[Noise], Tensor],
    first: Noise,
    last: Noise,
    steps: int = 8,
    between: Callable[[Tensor, Tensor, float], Tensor] = slerp,
    distance: Callable[[Tensor, Tensor], Tensor] = l2,
) -> Tensor:
    """Return the distances between neighbouring pictures on walks, `(B, steps)`.

    Args:
        generate: noise of B rows -> data `(B, *shape)`, the same rows at every step: a mechanism
            under fixed parents, say.
        first, last: noises of the same structure, where the walks begin and end.
        steps: how many even steps from the first to the last.
        between: how tensors are interpolated: `slerp` or `lerp`.
        distance: of two batches of pictures, one number a row.

    Raises:
        ValueError: for fewer than two steps, which have no spread.

    Example:
        >>> double = lambda u: 2 * u
        >>> steps_between(double, torch.zeros(1, 1), torch.ones(1, 1), 4, lerp)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if steps < 2:
        raise ValueError(f"a walk needs 2 steps or more for their spread, got steps={steps}")
    found, before = [], generate(first)
    for k in range(1, steps + 1):
        weight = k / steps
        here = last if k == steps else each(lambda a, b, w=weight: between(a, b, w), first, last)
        now = generate(here)
        found.append(distance(now, before))
        before = now
    return torch.stack(found, 1)


def interpolation(
    generate: Callable[[Noise], Tensor],
    first: Noise,
    last: Noise,
    steps: int = 8,
    between: Callable[[Tensor, Tensor, float], Tensor] = slerp,
    distance: Callable[[Tensor, Tensor], Tensor] = l2,
) -> Interpolation:
    """Measure how evenly pictures move along walks between pairs of starts.

    A generator that does not move at all has an ISTD of 0: read it beside the length, and beside a
    distance to the data. Its relative deviation and uniformity are undefined: such walks are left
    out, and an error is raised if all are such.

    Args:
        generate, first, last, steps, between, distance: see `steps_between`.

    Raises:
        ValueError: for fewer than two steps, or if no walk moves.

    Example:
        >>> square = lambda u: u.square()  # steps of 1, 3, 5, 7 sixteenths
        >>> found = interpolation(square, torch.zeros(1, 1), torch.ones(1, 1), 4, lerp)
        >>> round(found.istd.value * 16, 4), round(found.uniformity.value, 4)
        (2.2361, 0.7619)
    """
    moved = steps_between(generate, first, last, steps, between, distance).double()
    deviation, mean = moved.std(1, correction=0), moved.mean(1)
    if not bool((mean > 0).any()):
        raise ValueError("no walk moves the picture: generate() returns the same for all noise")
    relative = torch.where(mean > 0, deviation / mean, torch.nan)
    return Interpolation(
        Estimate.of(deviation),
        Estimate.of(relative),
        uniformity(moved),
        Estimate.of(moved.sum(1)),
    )


def uniformity(moved: Tensor) -> Estimate:
    """Return the squared mean over the mean square of walks' steps `(B, n)`, at most 1.

    Rows are independent of each other, steps within a row are not: the error is by the delta method
    over rows, `(2 m m_i - u q_i) / q - u` with m and q the means of steps and of their squares.

    Example:
        >>> uniformity(torch.tensor([[1.0, 1.0], [3.0, 3.0]])).value
        0.8
    """
    mean, square = moved.double().mean(1), moved.double().square().mean(1)
    centre = mean.mean()
    found = ratio(2 * centre * mean - centre.square(), square)
    return Estimate(float(centre.square() / square.mean()), found.standard_error, len(moved))
