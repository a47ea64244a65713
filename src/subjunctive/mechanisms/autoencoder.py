r"""A convolutional autoencoder as a mechanism: an image from a grid of latents and a residual.

    x = decode(z) + s r,     z ~ N(0, I) of shape (C', h, w),     r ~ N(0, I) of x's own shape

    log p(x) >= E_q [log N(x; decode(z), s^2)] - beta KL(q(z | x) || N(0, I)),   q = N(m(x), v(x))

with s learned, so that a good decoder makes s small and the KL, which is counted in the same nats,
smaller still beside it: the latents keep what is seen, on a scale that the KL holds near one. It is
a VAE whose latent is a picture, C' numbers for f x f pixels; N(0, I) is a poor density of such
latents, which is what a second mechanism is for (`Latent`). In abduction z is drawn from q and
r = (x - decode(z)) / s, hence the round trip is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.linear import check, own_samples, stirred
from subjunctive.nn import GridDecoder, GridEncoder
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    with seeded(0):
        mechanism = Autoencoder.of(Variable("x", (1, 8, 8)), channels=2, widths=(6, 8))
    return stirred(mechanism), own_samples(mechanism, rows=256)


class Autoencoder(Mechanism):
    """An image without parents, from a grid of latents: the first stage of a latent mechanism.

    Reference: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach, Blattmann,
    Lorenz, Esser and Ommer, 2022), https://arxiv.org/abs/2112.10752 (the autoencoder with a KL);
    its learned scale: Simple and Effective VAE Training with Calibrated Decoders (Rybkin,
    Daniilidis and Levine, 2021), https://arxiv.org/abs/2006.13202.

    Args:
        variable: an image `(C, H, W)`.
        shape: of its latent, `(C', h, w)`.
        encoder: x -> `(B, 2 C', h, w)`, mean and log-variance of q(z | x).
        decoder: z -> `(B, C, H, W)`.
        beta: weight of the KL.

    Raises:
        ValueError: for a node that is no continuous image, a latent that is no grid, or a negative
            weight; when they are called, for networks that give another shape.

    Example:
        >>> autoencoder = Autoencoder.of(Variable("x", (3, 16, 16)), widths=(8, 8))
        >>> x = torch.rand(2, 3, 16, 16)
        >>> autoencoder.encode(x).shape
        torch.Size([2, 4, 4, 4])
        >>> torch.allclose(autoencoder(autoencoder.abduct(x, {}), {}), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        variable: Variable,
        shape: Sequence[int],
        encoder: nn.Module,
        decoder: nn.Module,
        beta: float = 1.0,
    ) -> None:
        super().__init__(variable)
        self.shape = tuple(shape)
        if variable.discrete or len(variable.shape) != 3 or len(self.shape) != 3:
            raise ValueError(
                f"{variable.name!r} is {variable.kind} of shape {variable.shape}, its latent of "
                f"shape {self.shape}; an autoencoder takes a continuous image (C, H, W) to a grid "
                "(C', h, w)"
            )
        if not 0 <= beta < math.inf:
            raise ValueError(f"the autoencoder of {variable.name!r} needs beta >= 0, got {beta}")
        self.encoder, self.decoder, self.beta = encoder, decoder, beta
        self.log_scale = nn.Parameter(torch.tensor(-3.0))  # of what is left of a good picture

    @classmethod
    def of(
        cls,
        variable: Variable,
        channels: int = 4,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        beta: float = 1.0,
    ) -> Autoencoder:
        """Build the mechanism with plain networks.

        Args:
            variable, beta: as for the class.
            channels: of the latent.
            widths, blocks: of both networks; the latent is `2 ** len(widths)` times smaller.
        """
        encoder = GridEncoder(variable.shape[0], 2 * channels, widths, blocks)
        height, width = (n // encoder.factor for n in variable.shape[1:])
        decoder = GridDecoder(channels, variable.shape[0], widths, blocks)
        return cls(variable, (channels, height, width), encoder, decoder, beta)

    def prior(self) -> Prior:
        """Return N(0, I) for the latent and for the residual."""
        shape = self.variable.shape
        return {"z": self.standard_normal(*self.shape), "residual": self.standard_normal(*shape)}

    def posterior(self, x: Tensor) -> Distribution:
        """Return q(z | x), of batch shape `(B,)` and event shape `(C', h, w)`.

        x may have another height and width than the variable's where the encoder takes them.

        Raises:
            ValueError: if the encoder gives another number of channels than `2 C'`.
        """
        out: Tensor = self.encoder(x)
        if out.dim() != 4 or out.shape[1] != 2 * self.shape[0]:
            raise ValueError(
                f"the encoder of {self.variable.name!r} gave {tuple(out.shape)}; a latent of shape "
                f"{self.shape} needs {(len(x), 2 * self.shape[0], *self.shape[1:])}: change its "
                "outputs"
            )
        mean, log_variance = out.to(self.origin.dtype).chunk(2, dim=1)
        scale = torch.exp(log_variance.clamp(-20.0, 6.0) / 2)
        return Independent(Normal(mean, scale, validate_args=False), 3, validate_args=False)

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x), `(B, C', h, w)`."""
        return self.posterior(x).mean

    def decode(self, z: Tensor) -> Tensor:
        """Return what is expected of x given z, `(B, C, H, W)`."""
        x: Tensor = self.decoder(z)
        return x

    def nll(self, x: Tensor, expected: Tensor) -> Tensor:
        """Return -log N(x; expected, s^2) in nats an entry of x, `(B,)`; of any height and width.

        Raises:
            ValueError: if the two are not of one shape.
        """
        if x.shape != expected.shape:
            raise ValueError(
                f"the decoder of {self.variable.name!r} gave {tuple(expected.shape)} for an image "
                f"{tuple(x.shape)}; change its outputs, or make it convolutional throughout"
            )
        square = (x - expected).square().reshape(len(x), -1).mean(1)
        misfit = square * torch.exp(-2 * self.log_scale) / 2
        return misfit + self.log_scale + math.log(2 * math.pi) / 2

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x = decode(z) + s r, `(B, C, H, W)`."""
        return self.decode(u["z"]) + self.log_scale.exp() * u["residual"]

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw z from the encoder, and the residual that gives x exactly."""
        z = self.posterior(check(x, self.variable)).sample()
        return {"z": z, "residual": (x - self.decode(z)) / self.log_scale.exp()}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `nll`, and `kl` times its weight, in nats an entry of x, `(B,)` each."""
        q = self.posterior(check(x, self.variable))
        normal = q.base_dist  # type: ignore[attr-defined]
        square = normal.loc.square() + normal.scale.square()
        kl = (square / 2 - normal.scale.log() - 0.5).reshape(len(x), -1).sum(1)
        nll = self.nll(x, self.decode(q.rsample()))
        return {"nll": nll, "kl": self.beta * kl / self.variable.width}

    card = Card(
        name="Convolutional autoencoder mechanism",
        summary="An image from a grid of latents and a residual, without parents: the first stage "
        "of a latent mechanism.",
        title="High-Resolution Image Synthesis with Latent Diffusion Models",
        authors="Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and "
        "Ommer, Bjorn",
        year=2022,
        url="https://arxiv.org/abs/2112.10752",
        assumptions=("given the latent, the pixels are independent",),
        needs="continuous images",
        abduction="approximate",
        tolerance=1e-5,
        example=_example,
    )
