"""Schedules: how much of the data is left and how much noise is there at time t.

A diffusion adds noise to data over a time t in [0, 1], from clean at t = 0 to noise at t = 1,

    x_t = alpha_t x_0 + sigma_t e,    e ~ N(0, I),

so that a schedule is two functions, alpha and sigma. All that matters of them is their ratio, the
log-SNR lambda_t = 2 log(alpha_t / sigma_t), which falls with t: two schedules with the same
lambda differ by a scale of x_t alone.

Neither end is reached exactly, because there the log-SNR is infinite: sigma_0 is small, not zero,
and so is alpha_1. Differences below sigma_0 are treated as if they were noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """Two functions of the time t in [0, 1], elementwise on tensors."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the data, falling from about 1 (or constant)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise, rising from about 0."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the logarithm of the signal-to-noise ratio, `2 log(alpha_t / sigma_t)`."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def times(self, steps: int, start: float = 1.0) -> Tensor:
        """Return the `steps + 1` times, in float64, at which a sampler stops, from `start` to 0.

        >>> VPLinear().times(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
        """
        if steps < 1 or not 0 < start <= 1:
            raise ValueError(
                f"a sampler needs at least one step and a start in (0, 1]; got steps={steps}, "
                f"start={start}"
            )
        return torch.linspace(start, 0.0, steps + 1, dtype=torch.float64)


def _between(name: str, low: float, value: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{name}={value} must lie between {low} and {high}, ends excluded")


class VPLinear(Schedule):
    """The variance-preserving schedule of DDPM, whose rate of noising grows linearly.

    With s = epsilon + (1 - epsilon) t, `alpha^2 = exp(-beta_min s - (beta_max - beta_min) s^2 / 2)`
    and `sigma^2 = 1 - alpha^2`.

    Reference: Score-Based Generative Modeling through Stochastic Differential Equations (Song,
    Sohl-Dickstein, Kingma, Kumar, Ermon and Poole, 2021), https://arxiv.org/abs/2011.13456.

    Args:
        beta_min, beta_max: the rate at both ends, per unit of time.
        epsilon: where on the unclipped schedule t = 0 lies; `sigma_0` is about
            `sqrt(beta_min * epsilon)`.

    Example:
        >>> VPLinear().sigma(torch.tensor([0.0, 1.0]))
        tensor([0.0105, 1.0000])
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, epsilon: float = 1e-3
    ) -> None:
        _between("epsilon", 0, epsilon, 1)
        _between("beta_min", 0, beta_min, beta_max)
        self.beta_min, self.beta_max, self.epsilon = beta_min, beta_max, epsilon

    def _exponent(self, t: Tensor) -> Tensor:
        s = self.epsilon + (1 - self.epsilon) * t
        return self.beta_min * s + (self.beta_max - self.beta_min) * s.square() / 2

    def alpha(self, t: Tensor) -> Tensor:
        """Return `exp(-B(t) / 2)` with the integrated rate B."""
        return torch.exp(-self._exponent(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Return `sqrt(1 - exp(-B(t)))`."""
        return torch.expm1(-self._exponent(t)).neg().sqrt()


class Cosine(Schedule):
    """The cosine schedule: time is an angle, `alpha = cos(phi_t)` and `sigma = sin(phi_t)`.

    Reference: Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021),
    https://arxiv.org/abs/2102.09672.

    Args:
        floor: `sigma_0`, and `alpha_1`.

    Example:
        >>> Cosine().alpha(torch.tensor(0.5)) ** 2
        tensor(0.5000)
    """

    def __init__(self, floor: float = 0.005) -> None:
        _between("floor", 0, floor, 0.5)
        self.floor = floor

    def _angle(self, t: Tensor) -> Tensor:
        first = math.asin(self.floor)
        return first + (math.pi / 2 - 2 * first) * t

    def alpha(self, t: Tensor) -> Tensor:
        """Return the cosine of the angle."""
        return self._angle(t).cos()

    def sigma(self, t: Tensor) -> Tensor:
        """Return the sine of the angle."""
        return self._angle(t).sin()


class RectifiedFlow(Schedule):
    """The straight line from data to noise, `alpha = 1 - t` and `sigma = t`.

    Reference: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
    (Liu, Gong and Liu, 2023), https://arxiv.org/abs/2209.03003; Flow Matching for Generative
    Modeling (Lipman, Chen, Ben-Hamu, Nickel and Le, 2023), https://arxiv.org/abs/2210.02747.

    Args:
        floor: `sigma_0`, and `alpha_1`.

    Example:
        >>> RectifiedFlow().alpha(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000, 0.5025, 0.0050])
    """

    def __init__(self, floor: float = 0.005) -> None:
        _between("floor", 0, floor, 0.5)
        self.floor = floor

    def alpha(self, t: Tensor) -> Tensor:
        """Return `1 - (1 - floor) t`."""
        return 1 - (1 - self.floor) * t

    def sigma(self, t: Tensor) -> Tensor:
        """Return `floor + (1 - floor) t`."""
        return self.floor + (1 - self.floor) * t


class EDM(Schedule):
    """The variance-exploding schedule of EDM: `alpha = 1`, and `sigma^(1/rho)` is linear in t.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras, Aittala,
    Aila and Laine, 2022), https://arxiv.org/abs/2206.00364.

    Args:
        sigma_min, sigma_max: the noise at both ends, in units of the data.
        rho: how much the steps concentrate at low noise.

    Example:
        >>> EDM().sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([2.0000e-03, 2.5152e+00, 8.0000e+01])
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _between("sigma_min", 0, sigma_min, sigma_max)
        _between("rho", 0, rho, math.inf)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def alpha(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + (high - low) * t) ** self.rho
