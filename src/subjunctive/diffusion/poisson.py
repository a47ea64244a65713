r"""The Poisson kernel: noise whose radius varies more than a Gaussian's, as in electric fields.

Put data y of N entries as charges on the hyperplane r = 0 of a space with D further dimensions. The
field at (x, r), r the norm of the D coordinates, adds up over the charges with weights
`(|x - y|^2 + r^2)^(-(N + D) / 2)`, and its lines lead from far away, where they are spread evenly, to
the data. So with x drawn from the kernel

    p_r(x | y) propto (|x - y|^2 + r^2)^(-(N + D) / 2),

the line through x has the slope dx/dr = E[x - y | x] / r, and E[y | x] is what a denoiser learns from
pairs: `E |D(x, r) - y|^2` is unbiased, no field is ever summed.

**As a noise.** With r = sigma sqrt(D) and x = y + sigma e the kernel no longer knows sigma, and the
line is the ODE of every sampler here,

    p(e) propto (1 + |e|^2 / D)^(-(N + D) / 2),    dx/dsigma = (x - D(x, sigma)) / sigma,

for e held fixed is the velocity of `y + sigma e`, whatever e's law. As D grows p(e) tends to
N(0, I): what was tuned there (levels, weights, scales) is kept, sigma for sigma.

**Its draws.** The direction of e is uniform, and its radius R has `R^2 / (R^2 + D) ~ Beta(N/2, D/2)`,
a ratio of gammas. Hence with z ~ N(0, I) and V ~ chi^2_D, |z|^2 / (|z|^2 + V) being such a Beta,

    e = z / sqrt(V / D),

Student's t in N dimensions: a Gaussian whose scale is drawn once for all entries. Its standard
deviation is sqrt(D / (D - 2)); its radius, relative to its middle, spreads by about
sqrt(1/(2N) + 1/(2D)), where a Gaussian's spreads by sqrt(1/(2N)).
"""  # noqa: E501

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints


class PoissonKernel(Distribution):
    """The density of PFGM++'s noise e, one event of dependent entries.

    Reference: PFGM++: Unlocking the Potential of Physics-Inspired Generative Models (Xu, Liu, Tian,
    Tong, Tegmark and Jaakkola, 2023), https://arxiv.org/abs/2302.04265.

    Args:
        zero: zeros, whose shape, device and dtype the draws take.
        augmented: D, the number of further dimensions; any positive number, N(0, I) if infinite.

    Raises:
        ValueError: for a D that is not positive.

    Example:
        >>> PoissonKernel(torch.zeros(1, 8, 8), augmented=128.0).sample((3,)).shape
        torch.Size([3, 1, 8, 8])
        >>> PoissonKernel(torch.zeros(()), 1.0).log_prob(torch.zeros(1)).exp() * torch.pi  # Cauchy
        tensor([1.0000])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, zero: Tensor, augmented: float = math.inf) -> None:
        if not augmented > 0:
            raise ValueError(
                f"PoissonKernel has augmented={augmented}; the number of further dimensions is "
                "positive, 128 or 2048 for one, or infinite for Gaussian noise"
            )
        super().__init__(event_shape=zero.shape, validate_args=False)
        self.zero, self.augmented = zero, float(augmented)

    @property
    def support(self) -> Any:
        """Everywhere."""
        return constraints.independent(constraints.real, self.zero.dim())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of the given shape, before the event's own."""
        z = torch.randn_like(self.zero.expand((*sample_shape, *self.zero.shape)))
        return self.spread(z)

    def spread(self, z: Tensor) -> Tensor:
        """Return noise with the directions of Gaussian z `(..., *event_shape)`: z / sqrt(V / D)."""
        if math.isinf(self.augmented):
            return z
        rows = z.shape[: z.dim() - self.zero.dim()]
        half = z.new_full(rows, self.augmented / 2)
        mean_square = Gamma(half, half, validate_args=False).sample()  # V / D
        return z / mean_square.sqrt().reshape(*rows, *[1] * self.zero.dim())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of events, in nats, without their shape."""
        n, d = self.zero.numel(), self.augmented
        rows = value.shape[: value.dim() - self.zero.dim()]
        square = value.reshape(*rows, -1).square().sum(-1)
        if math.isinf(d):
            return -square / 2 - n / 2 * math.log(2 * math.pi)
        norm = math.lgamma((n + d) / 2) - math.lgamma(d / 2) - n / 2 * math.log(d * math.pi)
        return norm - (n + d) / 2 * torch.log1p(square / d)
