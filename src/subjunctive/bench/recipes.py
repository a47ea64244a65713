"""Mechanisms of pictures with plain networks, as classes that take only numbers, for YAML."""

from __future__ import annotations

from collections.abc import Sequence

from subjunctive.diffusion import DDIM, Cosine
from subjunctive.mechanism import Mechanism
from subjunctive.mechanisms import VAE, Quantised, RealNVP, Refined, Regressed
from subjunctive.mechanisms import Interpolant as Interpolated
from subjunctive.variable import Variable


class PlainVAE:
    """A VAE of plain networks, as a class that takes only numbers."""

    def __new__(  # type: ignore[misc]
        cls,
        variable: Variable,
        parents: Sequence[Variable],
        latent: int = 16,
        widths: Sequence[int] = (24, 48, 96),
        beta: float = 1.0,
    ) -> Mechanism:
        """Build the mechanism."""
        return VAE.of(variable, parents, latent, widths=widths, beta=beta)


class Flow:
    """A Real NVP of a picture of 256 levels, dequantised."""

    def __new__(  # type: ignore[misc]
        cls,
        variable: Variable,
        parents: Sequence[Variable],
        levels: int = 2,
        width: int = 24,
        alpha: float = 0.05,
        values: int = 256,
    ) -> Mechanism:
        """Build the mechanism."""
        flow = RealNVP(variable, parents, levels=levels, width=width, alpha=alpha)
        return Quantised(flow, values)


class DiffuseVAE:
    """A VAE of a picture and a diffusion that refines what it expects; both learn together."""

    def __new__(  # type: ignore[misc]
        cls,
        variable: Variable,
        parents: Sequence[Variable],
        latent: int = 16,
        widths: Sequence[int] = (24, 48, 96),
        width: int = 24,
        steps: int = 0,
    ) -> Mechanism:
        """Build the mechanism; `steps` of the refiner's sampler, 0 for one evaluation."""
        first = VAE.of(variable, parents, latent, widths=widths)
        return Refined.of(first, DDIM(Cosine(), steps) if steps else None, width=width)


class Interpolant:
    """An interpolant of a picture whose base is what is expected of it, given its parents."""

    def __new__(  # type: ignore[misc]
        cls,
        variable: Variable,
        parents: Sequence[Variable],
        width: int = 24,
        steps: int = 10,
    ) -> Mechanism:
        """Build the mechanism."""
        base = Regressed(variable, parents) if parents else None
        return Interpolated.of(variable, parents, base, width, steps=steps)
