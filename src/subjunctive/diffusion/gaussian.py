r"""Gaussian data: their denoiser and their whole flow in closed form, and samplers that begin with it.

Let the data be N(m, C), C with eigenvectors u_k and eigenvalues v_k. Then x_t ~ N(alpha m, alpha^2 C +
sigma^2 I), and by Bayes' rule the denoiser is, one direction at a time,

    u_k . (D(x_t, t) - m) = alpha v_k / (alpha^2 v_k + sigma^2)  u_k . (x_t - alpha m).

Put into the probability-flow ODE, `d(y / s) = D d(1 / s)` of `sample.py`, this is one linear equation a
direction, whose solution keeps every standardised coordinate:

    u_k . (x_t - alpha_t m) / sqrt(alpha_t^2 v_k + sigma_t^2)   is the same at all t.

On the variance-preserving schedules alpha = cos and sigma = sin of an angle phi, and in a direction
with v_k = 0 what is not yet the mean is sigma times a constant: x_t turns from x_1 towards the mean
that it is to become. Directions of large v_k settle first (where alpha^2 v_k > sigma^2), small ones
last: first the outline, then the details.

Of any data the marginals at high noise are nearly those of the Gaussian with their mean and covariance,
so that the early part of the flow is known without a network. `HeadStart` carries the noise from the
first level to where a sampler begins by the formula above, and undoes it as exactly.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.diffusion.denoise import Denoise, Denoiser, column
from subjunctive.diffusion.sample import DDIM, Level, Sampler, part
from subjunctive.diffusion.schedule import Cosine, Schedule
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.variable import Batch, Variable


class GaussianData:
    """N(m, C) with `C = basis diag(variance) basis^T + rest (I - basis basis^T)`.

    Args:
        mean: m, of the data's shape.
        basis: orthonormal directions, `(R, *shape)`.
        variance: along each of them, `(R,)`.
        rest: variance along every other direction.

    Raises:
        ValueError: for shapes that do not fit, directions that are not orthonormal, or a negative
            variance.

    Example:
        >>> data = GaussianData.of(torch.randn(500, 3) * torch.tensor([3.0, 1.0, 1.0]), rank=1)
        >>> data.basis.abs().argmax(), 2.5 < data.variance.sqrt() < 3.5, 0.8 < data.rest < 1.2
        (tensor(0), tensor([True]), True)
    """

    def __init__(self, mean: Tensor, basis: Tensor, variance: Tensor, rest: float) -> None:
        if basis.shape[1:] != mean.shape or variance.shape != basis.shape[:1]:
            raise ValueError(
                f"GaussianData has a mean of shape {tuple(mean.shape)}, a basis of shape "
                f"{tuple(basis.shape)} and variances of shape {tuple(variance.shape)}; it needs "
                "(*shape), (R, *shape) and (R,)"
            )
        flat = basis.double().flatten(1)
        if len(basis) and float((flat @ flat.T - torch.eye(len(flat))).abs().max()) > 1e-3:
            raise ValueError(
                "GaussianData needs a basis of orthonormal directions; give torch.linalg.qr(...)"
            )
        if rest < 0 or bool((variance < 0).any()):
            raise ValueError(
                f"GaussianData has variance={variance.tolist()} and rest={rest}; a variance is 0 "
                "or more"
            )
        self.mean, self.basis, self.variance, self.rest = mean, basis, variance, rest

    @classmethod
    def of(cls, x: Tensor, rank: int | None = None) -> GaussianData:
        """Fit rows: their mean, their principal directions, and what is left, as likely as can be.

        Probabilistic Principal Component Analysis (Tipping and Bishop, 1999),
        https://doi.org/10.1111/1467-9868.00196: `rest` is the mean of the eigenvalues left out.

        Args:
            x: rows of data `(N, *shape)`, standardised as the denoiser's.
            rank: how many directions are kept; all that the rows span if None.

        Raises:
            ValueError: for fewer than two rows, or a rank that the data do not have.
        """
        rows, width = len(x), math.prod(x.shape[1:])
        most = min(rows - 1, width)
        if rows < 2 or not 0 <= (most if rank is None else rank) <= most:
            raise ValueError(
                f"GaussianData.of was given {rows} rows of {width} numbers and rank={rank}; it "
                "needs two rows or more, and a rank from 0 to the smaller of rows - 1 and numbers"
            )
        kept, flat = most if rank is None else rank, x.detach().double().reshape(rows, width)
        mean = flat.mean(0)
        centred = flat - mean
        variance, basis = torch.linalg.eigh(centred.T @ centred / rows)
        variance = variance.clamp(min=0.0).flip(0)
        rest = float(variance[kept:].mean()) if kept < width else 0.0
        chosen = basis.flip(1)[:, :kept].T.reshape(kept, *x.shape[1:])
        return cls(mean.reshape(x.shape[1:]).to(x), chosen.to(x), variance[:kept].to(x), rest)

    def denoise(self, schedule: Schedule) -> Denoise:
        """Return `(x_t, t) -> E[x_0 | x_t]` along a schedule, exact for data that are N(m, C)."""

        def exact(x_t: Tensor, t: Tensor) -> Tensor:
            a, s = (f(t.double())[:, None] for f in (schedule.alpha, schedule.sigma))
            away = x_t - column(a[:, 0], x_t).to(x_t) * self.mean.to(x_t)
            gain = a * self._variances() / (a.square() * self._variances() + s.square())
            return self.mean.to(x_t) + self._scaled(away, gain.to(x_t))

        return exact

    def carry(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """Move x from level t to level s, in either direction, along the flow of N(m, C).

        Args:
            x: `(B, *shape)`, as noisy as level t.
            t, s: `Sampler.levels()` gives such.
        """
        v, mean = self._variances(), self.mean.to(x)
        before = t.alpha**2 * v + t.sigma**2
        gain = ((s.alpha**2 * v + s.sigma**2) / before).sqrt().to(x)
        return s.alpha * mean + self._scaled(x - t.alpha * mean, gain[None])

    def _variances(self) -> Tensor:
        """Return all variances, the rest's last, `(R + 1,)`."""
        return torch.cat([self.variance.double().cpu(), torch.tensor([self.rest]).double()])

    def _scaled(self, x: Tensor, gain: Tensor) -> Tensor:
        """Scale rows along every direction, `gain` `(B or 1, R + 1)`, the rest's last."""
        basis, flat = self.basis.to(x).flatten(1), x.reshape(len(x), -1)
        other = gain[:, -1:]
        return (other * flat + ((gain[:, :-1] - other) * (flat @ basis.T)) @ basis).reshape(x.shape)


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.mechanisms.diffusion import Diffusion, condition_width
    from subjunctive.mechanisms.linear import own_samples, stirred
    from subjunctive.nn import UNet

    with seeded(0):
        image, t = Variable("x", (1, 8, 8)), Variable("t")
        network = UNet(1, condition=condition_width([t], 0), width=8, multipliers=(1,))
        data = GaussianData.of(torch.randn(40, 1, 8, 8).cumsum(3) / 3, rank=4)
        sampler = HeadStart(DDIM(Cosine(), 5, eta=0.5, start=0.7), data)
        mechanism = Diffusion(image, [t], Denoiser(network, Cosine()), sampler=sampler, drop=0.0)
    return stirred(mechanism), own_samples(mechanism, rows=128)


class HeadStart(Sampler):
    """A sampler whose first steps are taken by the flow of Gaussian data, without a network.

    The noise is that of the sampler, N(0, I) at the level where the formula begins.

    Reference: Diffusion Models Generate Images Like Painters: an Analytical Theory of Outline
    First, Details Later (Wang and Vastola, 2023), https://arxiv.org/abs/2303.02490.

    Args:
        sampler: begins at its own `start`, below 1, where the formula hands over.
        data: the data's mean and covariance, standardised as the denoiser's.
        begin: the time from which the formula carries the noise.

    Raises:
        ValueError: if the sampler does not start after `begin`.

    Example:
        >>> data = GaussianData.of(torch.randn(500, 3) * torch.tensor([3.0, 1.0, 0.5]))
        >>> denoise, noise = data.denoise(Cosine()), {"start": torch.randn(2, 3)}
        >>> whole = DDIM(Cosine(), steps=200)(denoise, noise)
        >>> short = HeadStart(DDIM(Cosine(), steps=100, start=0.5), data)(denoise, noise)
        >>> torch.allclose(short, whole, atol=0.05)
        True
    """

    def __init__(self, sampler: Sampler, data: GaussianData, begin: float = 1.0) -> None:
        self.sampler, self.data, self.begin = sampler, data, begin
        super().__init__(sampler.schedule, sampler.steps, sampler.start, sampler.sigma_data)
        if not sampler.start < begin <= 1:
            raise ValueError(
                f"HeadStart begins at {begin} and its sampler at start={sampler.start}; the "
                "sampler's start must come after, such as 0.7 after 1"
            )

    def noise_shape(self, event_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sampler's noise."""
        return self.sampler.noise_shape(event_shape)

    def ends(self) -> tuple[Level, Level]:
        """Return the level where the formula begins, and the one where the sampler does."""
        first = DDIM(self.schedule, 1, start=self.begin, sigma_data=self.sigma_data).levels()[0]
        return first, self.sampler.levels()[0]

    def __call__(self, denoise: Denoise, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the data `(B, *event_shape)` that the noise stands for."""
        first, hand = self.ends()
        x = self.data.carry(first.scale * part(noise, "start"), first, hand)
        return self.sampler(denoise, {**noise, "start": x / hand.scale})

    def invert(self, denoise: Denoise, x_0: Tensor) -> dict[str, Tensor]:
        """Return noise that `__call__` turns into x_0, as exactly as the sampler inverts."""
        first, hand = self.ends()
        noise = self.sampler.invert(denoise, x_0)
        x = self.data.carry(hand.scale * noise["start"], hand, first)
        return {**noise, "start": x / first.scale}

    card = Card(
        name="Gaussian head start",
        summary="A sampler whose early steps are the closed-form flow of data with the same mean "
        "and covariance, without a network.",
        title="Diffusion Models Generate Images Like Painters: an Analytical Theory of Outline "
        "First, Details Later",
        authors="Wang, Binxu and Vastola, John J.",
        year=2023,
        url="https://arxiv.org/abs/2303.02490",
        assumptions=("at high noise the data look Gaussian to the denoiser",),
        needs="a diffusion mechanism that is trained, and rows of its data",
        abduction="approximate",
        tolerance=1e-4,
        of=(253,),
        example=_example,
    )


def plane(path: Tensor) -> Tensor:
    """Return the share of a path's length that lies in the plane of its ends, `(B,)`.

    Along the flow of N(m, C) with m = 0 and a C whose eigenvalues are few, x_t turns from x_1 to
    x_0 in the plane of both: of a share near 1 the whole path is known by its ends.

    Args:
        path: `(S, B, *shape)`, x_t at S levels, the first and the last of which span the plane.

    Raises:
        ValueError: for fewer than three levels.

    Example:
        >>> angle = torch.linspace(0, 1.5, 20)[:, None, None]
        >>> turn = torch.cat([angle.cos(), angle.sin(), 0 * angle], dim=2)
        >>> bent = turn + torch.eye(3)[2] * (2 * angle).sin()
        >>> plane(turn).round(decimals=4), plane(bent).round(decimals=1)
        (tensor([1.]), tensor([0.7000]))
    """
    if path.dim() < 3 or len(path) < 3:
        raise ValueError(
            f"plane() was given a path of shape {tuple(path.shape)}; it needs (S, B, *shape) with "
            "three levels or more"
        )
    flat = path.flatten(2).transpose(0, 1).double()
    q, _ = torch.linalg.qr(flat[:, [0, -1]].mT)
    return ((flat @ q).square().sum((1, 2)) / flat.square().sum((1, 2))).to(path)
