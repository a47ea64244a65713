"""Denoisers: the mean of the data given its noisy version.

All that a diffusion model learns is `D(x_t, t) = E[x_0 | x_t]`, the minimiser of `E |D(x_t, t) - x_0|^2`.
By Tweedie's formula it is the score, `grad log p_t(x_t) = (alpha_t D(x_t, t) - x_t) / sigma_t^2`, and
it makes the noise's estimate, `e(x_t, t) = (x_t - alpha_t D(x_t, t)) / sigma_t`. A network F learns it
best with inputs and outputs of about unit variance, hence

    D(x_t, t) = c_skip x_t + c_out F(c_in x_t, lambda_t / 4),

where `c_in = (alpha^2 sigma_data^2 + sigma^2)^(-1/2)`, and where the target says what F stands for:

    clean      c_skip = 0                           c_out = 1                             F = x_0
    noise      c_skip = 1 / alpha                   c_out = -sigma / alpha                F = e
    velocity   c_skip = alpha / (alpha^2 + sigma^2) c_out = -sigma / sqrt(alpha^2 + sigma^2)
               F = (alpha e - sigma x_0) / sqrt(alpha^2 + sigma^2)
    edm        c_skip = alpha sigma_data^2 c_in^2   c_out = sigma sigma_data c_in         F of unit variance

An optimal F gives the same D whatever the target; they differ in which errors training makes small.

With `wiener` the network sees instead the best linear estimate of the data, `alpha sigma_data^2 c_in^2
x_t`, which fades as noise drowns the data: where the condition says nearly all, at t = 1, the network
has no noise to see through.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from subjunctive.diffusion.schedule import Schedule
from subjunctive.variable import nearest

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> E[x_0 | x_t]
Target = Literal["clean", "noise", "velocity", "edm"]
Weighting = Literal["min-snr", "edm", "sigmoid", "uniform"]


def column(a: Tensor, x: Tensor) -> Tensor:
    """Reshape one number a row, `(B,)`, so that it multiplies rows of x of any shape."""
    return a.reshape(-1, *[1] * (x.dim() - 1))


class Denoiser(nn.Module):
    """The conditional mean of the data, `E[x_0 | x_t, condition]`, made from a network.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras, Aittala,
    Aila and Laine, 2022), https://arxiv.org/abs/2206.00364 (preconditioning, `edm` weighting);
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022),
    https://arxiv.org/abs/2202.00512 (velocity); Efficient Diffusion Training via Min-SNR Weighting
    Strategy (Hang et al., 2023), https://arxiv.org/abs/2303.09556; Understanding Diffusion
    Objectives as the ELBO with Simple Data Augmentation (Kingma and Gao, 2023),
    https://arxiv.org/abs/2303.00848 (sigmoid).

    Args:
        network: called as `network(x, noise, condition)` with x `(B, *shape)`, noise `(B,)`, a
            quarter of the log-SNR, and the condition as it was given (`None` for none).
        schedule: alpha and sigma as functions of time.
        target: what the network stands for: the clean data, the noise, the velocity, or the mix of
            them that has unit variance at every noise level.
        sigma_data: the standard deviation of the data.
        weighting: how the squared error of D counts at each noise level, with time uniform:
            `min-snr`: `min(SNR, 5)`; `edm`: `SNR + 1 / sigma_data^2` times the log-normal density
            of the noise level; `sigmoid`: `SNR / (1 + SNR / e^2)`; `uniform`: the network's own
            squared error against its target, `1 / c_out^2`.
        wiener: whether the network sees the best linear estimate of the data instead of x_t at unit
            variance.

    Raises:
        ValueError: for an unknown target or weighting.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> from subjunctive.nn import UNet
        >>> denoiser = Denoiser(UNet(1, width=8), Cosine())
        >>> x = torch.randn(2, 1, 8, 8)
        >>> denoiser(x, torch.tensor(0.5)).shape, denoiser.loss(x).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        target: Target = "clean",
        sigma_data: float = 1.0,
        weighting: Weighting = "min-snr",
        wiener: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("target", target, get_args(Target)),
            ("weighting", weighting, get_args(Weighting)),
        ):
            if value not in known:
                raise ValueError(
                    f"Denoiser has {name}={value!r}, not one of {known}.{nearest(value, known)}"
                )
        self.network, self.schedule, self.target = network, schedule, target
        self.sigma_data, self.weighting, self.wiener = sigma_data, weighting, wiener

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scale of the input, `c_skip` and `c_out`, elementwise in t."""
        a, s, d = self.schedule.alpha(t), self.schedule.sigma(t), self.sigma_data
        unit = (a.square() * d**2 + s.square()).rsqrt()
        c_in = a * d**2 * unit.square() if self.wiener else unit
        if self.target == "clean":
            return c_in, torch.zeros_like(a), torch.ones_like(a)
        if self.target == "noise":
            return c_in, 1 / a, -s / a
        if self.target == "velocity":
            turn = (a.square() + s.square()).rsqrt()
            return c_in, a * turn.square(), -s * turn
        return c_in, a * d**2 * unit.square(), s * d * unit

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `E[x_0 | x_t, condition]`, of the shape of x_t.

        Args:
            x_t: noisy data `(B, *shape)`.
            t: time `(B,)`, or one number for all rows.
            condition: what the network is conditioned on.
        """
        t = t.to(x_t).expand(len(x_t))
        c_in, c_skip, c_out = (column(c, x_t) for c in self.coefficients(t))
        output = self.network(c_in * x_t, self.schedule.log_snr(t) / 4, condition)
        return c_skip * x_t + c_out * output

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of the squared error of D, elementwise in t."""
        log_snr = self.schedule.log_snr(t)
        snr = log_snr.exp()
        if self.weighting == "min-snr":
            return snr.clamp(max=5.0)
        if self.weighting == "sigmoid":
            return snr * torch.sigmoid(2.0 - log_snr)
        if self.weighting == "edm":
            density = torch.exp(-(((-log_snr / 2 + 1.2) / 1.2).square()) / 2)
            return (snr + self.sigma_data**-2) * density
        return self.coefficients(t)[2].square().reciprocal()

    def loss(
        self,
        x_0: Tensor,
        condition: Tensor | None = None,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted squared error of a row, mean over its entries, `(B,)`.

        Args:
            x_0: clean data `(B, *shape)`.
            condition: what the network is conditioned on.
            t: times `(B,)`; if not given, uniform and stratified over the batch.
            noise: of the shape of x_0; drawn if not given.
        """
        rows = len(x_0)
        if t is None:
            strata = torch.randperm(rows, device=x_0.device) + torch.rand(
                rows, device=x_0.device, dtype=x_0.dtype
            )
            t = strata / rows
        noise = torch.randn_like(x_0) if noise is None else noise
        t = t.to(x_0).expand(rows)
        alpha, sigma = column(self.schedule.alpha(t), x_0), column(self.schedule.sigma(t), x_0)
        error = self(alpha * x_0 + sigma * noise, t, condition) - x_0
        return self.weight(t) * error.square().reshape(rows, -1).mean(1)
