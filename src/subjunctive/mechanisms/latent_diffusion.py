r"""Latent diffusion as a mechanism: an image made by a mechanism of an autoencoder's latents.

    z = a + b * f(u, pa)        the inner mechanism f makes standardised latents, (C', h, w)
    x = decode(z) + s r         r ~ N(0, I), s the autoencoder's own

The noise of x is (u, r). Abduction reads z = encode(x), the posterior's mean, explains (z - a) / b
by the inner mechanism, and leaves r = (x - decode(z)) / s: whatever the autoencoder is worth, the
round trip is as exact as the inner one's, because f returns z and r returns the rest.

Two stages. First the autoencoder learns, by its own loss, which knows no parents. Then its latents
are measured, a and b the mean and standard deviation of each channel over rows and positions, it is
frozen, and the inner mechanism learns the latents by its own loss, f x f times fewer positions than
pixels. What the parents say enters by f alone. All that the decoder cannot show, r, is kept as it
was by a counterfactual, with s small where the autoencoder is good.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subjunctive.card import Card
from subjunctive.diffusion import Cosine, Denoiser, Sampler
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, evaluating, seeded
from subjunctive.mechanisms.autoencoder import Autoencoder
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.nn import ConvEncoder, UNet
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with seeded(0):
        image, parents = Variable("x", (1, 16, 16)), [Variable("t"), kind]
        autoencoder = Autoencoder.of(image, channels=2, widths=(6, 8))
        mechanism = Latent.of(autoencoder, parents, code=3, width=8, multipliers=(1, 1))
        stirred(mechanism, 0.2)
        mechanism.freeze(torch.randn(64, 1, 16, 16))
    return mechanism, own_samples(mechanism, rows=128)


def _keep_frozen(module: nn.Module, keys: object) -> None:
    """Freeze what was frozen when its weights were saved: weights do not say who learns."""
    if isinstance(module, Latent):
        module.autoencoder.requires_grad_(not module.frozen)


class Latent(Mechanism):
    """An image whose latents, an autoencoder's, are made by a mechanism of their own.

    Reference: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach, Blattmann,
    Lorenz, Esser and Ommer, 2022), https://arxiv.org/abs/2112.10752

    Train the autoencoder alone, a node without parents (`Equivariant` and `Represented` of
    `objectives` shape its latents), call `freeze` with its data, and fit this. An autoencoder that
    is not frozen learns on beside the inner mechanism, which never moves it, and its latents drift
    away from the scale that was measured. A model that is loaded is frozen if it was when saved.

    Args:
        autoencoder: of the image.
        inner: a mechanism of a continuous node of the latent's shape, `Diffusion` above all; its
            parents are the image's.

    Raises:
        ValueError: for an inner mechanism of another shape.

    Example:
        >>> image, t = Variable("x", (3, 16, 16)), Variable("t")
        >>> autoencoder = Autoencoder.of(image, widths=(8, 8))
        >>> latent = Latent.of(autoencoder, [t], code=4, width=8, multipliers=(1,))
        >>> x, parents = torch.rand(2, 3, 16, 16), {"t": torch.zeros(2)}
        >>> latent = latent.freeze(x)
        >>> {name: tuple(part.shape) for name, part in latent.abduct(x, parents)["z"].items()}
        {'code': (2, 4), 'start': (2, 4, 4, 4), 'residual': (2, 4, 4, 4)}
        >>> torch.allclose(latent(latent.abduct(x, parents), parents), x, atol=1e-5)
        True
    """

    loc: Tensor
    scale: Tensor
    frozen: Tensor

    def __init__(self, autoencoder: Autoencoder, inner: Mechanism) -> None:
        super().__init__(autoencoder.variable, inner.parents)
        if inner.variable.shape != autoencoder.shape or inner.variable.discrete:
            raise ValueError(
                f"the inner mechanism of {self.variable.name!r} is of {inner.variable.kind} values "
                f"{inner.variable.shape}; the latent is a continuous {autoencoder.shape}: build it "
                f"for Variable('z', {autoencoder.shape})"
            )
        self.autoencoder, self.inner = autoencoder, inner
        self.register_buffer("loc", torch.zeros(autoencoder.shape[0], 1, 1))
        self.register_buffer("scale", torch.ones(autoencoder.shape[0], 1, 1))
        self.register_buffer("frozen", torch.tensor(False))
        self.register_load_state_dict_post_hook(_keep_frozen)

    @classmethod
    def of(
        cls,
        autoencoder: Autoencoder,
        parents: Sequence[Variable],
        code: int = 32,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        sampler: Sampler | None = None,
        drop: float = 0.03,
        anchor: float = 0.95,
        beta: float = 1.0,
    ) -> Latent:
        """Build the inner diffusion, too.

        Args:
            autoencoder, parents: as for the class.
            code: width of the semantic code that is read from the latent; 0 for none.
            width, multipliers: of the U-Net over the latent's grid.
            sampler, drop, anchor, beta: see `Diffusion`.
        """
        channels, *size = autoencoder.shape
        condition, z = condition_width(parents, code), Variable("z", autoencoder.shape)
        network = UNet(
            channels,
            condition=condition,
            width=width,
            multipliers=multipliers,
            blocks=(0, 1),
            attention=False,
            unshuffle=1,
            size=(size[0], size[1]),
            layout=True,
            modulating=condition,
        )
        denoiser = Denoiser(network, Cosine(), wiener=True)
        widths = [width * m for m in multipliers]
        encoder = ConvEncoder(channels, (size[0], size[1]), 2 * code, widths, 1) if code else None
        inner = Diffusion(z, parents, denoiser, encoder, code, sampler, 1.0, drop, anchor, beta)
        return cls(autoencoder, inner)

    @torch.no_grad()
    def freeze(self, x: Tensor, batch_size: int = 256) -> Latent:
        """End the first stage: measure the latents' channels and freeze the autoencoder, in place.

        Args:
            x: standardised images `(N, C, H, W)` that it was trained on.
            batch_size: rows encoded at once.

        Raises:
            ValueError: if a channel of the latent does not vary.
        """
        with evaluating(self.autoencoder):
            rows = x.to(self.origin).split(batch_size)
            z = torch.cat([self.autoencoder.encode(r).double() for r in rows])
        scale, loc = torch.std_mean(z, dim=(0, 2, 3), correction=0, keepdim=True)
        if not bool((scale > 0).all()):
            still = [i for i, s in enumerate(scale.flatten().tolist()) if not s > 0]
            raise ValueError(
                f"channels {still} of the latent of {self.variable.name!r} are the same in all "
                f"{len(x)} rows; train the autoencoder first, or give it fewer channels"
            )
        self.loc.copy_(loc[0])
        self.scale.copy_(scale[0])
        self.frozen.fill_(True)
        self.autoencoder.requires_grad_(False)
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Return standardised latents of images, `(B, C', h, w)`."""
        return (self.autoencoder.encode(x) - self.loc) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Return what is expected of the image given standardised latents, `(B, C, H, W)`."""
        return self.autoencoder.decode(self.loc + self.scale * z)

    def prior(self) -> Prior:
        """Return the inner mechanism's prior as `z`, and N(0, I) for the residual."""
        return {"z": self.inner.prior(), "residual": self.standard_normal(*self.variable.shape)}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, C, H, W)`: the latent from its noise, decoded, and the residual."""
        z = self.inner(u["z"], parents)
        return self.decode(z) + self.autoencoder.log_scale.exp() * u["residual"]

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Explain the encoder's latent by the inner mechanism, and x by what is left."""
        z = self.encode(x)
        residual = (x - self.decode(z)) / self.autoencoder.log_scale.exp()
        return {"z": self.inner.abduct(z, parents), "residual": residual}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the inner mechanism's terms, and the autoencoder's unless frozen, `(B,)` each."""
        terms = {}
        if not self.frozen:
            found = self.autoencoder.loss(x, {})
            terms = {f"autoencoder.{k}": v for k, v in found.items()}
        with torch.no_grad():
            z = self.encode(x)
        return terms | {f"z.{k}": v for k, v in self.inner.loss(z, parents).items()}

    card = Card(
        name="Latent diffusion mechanism",
        summary="An image from its parents by a mechanism, a diffusion above all, of the latents "
        "of an autoencoder that was trained first.",
        title="High-Resolution Image Synthesis with Latent Diffusion Models",
        authors="Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and "
        "Ommer, Bjorn",
        year=2022,
        url="https://arxiv.org/abs/2112.10752",
        assumptions=(
            "the latent's noise and the residual are independent of the parents",
            "what the autoencoder does not show does not depend on the parents",
        ),
        needs="images and their parents' values; images without them for the first stage, too",
        abduction="approximate",
        tolerance=1e-4,
        example=_example,
    )
