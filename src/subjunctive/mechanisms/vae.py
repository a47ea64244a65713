r"""The variational autoencoder as a mechanism: a node from its parents, a latent and a residual.

    x = f(decoder(z, pa), r),   z ~ p(z),   r the residual noise of a stated likelihood p(x | z, pa)

An encoder q(z | x, pa) stands for the posterior, which has no closed form, and

    log p(x | pa) >= E_q log p(x | z, pa) - KL(q(z | x, pa) || p(z))

is what both are trained by, with a draw z = m + s e, e ~ N(0, I), that lets the gradient pass. In
abduction z is drawn from the encoder and r from p(r | x, z, pa), so that the round trip is exact
whatever the encoder is worth. Whether its draws of z, over all rows, follow p(z) and ignore the
parents is a matter of training; `metrics.exogeneity` measures it.

**Attributes.** z is exogenous: it knows nothing of the parents. A prior that follows them,
N(m(pa), s(pa)^2), is here the decoder's first step, m(pa) + s(pa) z with z ~ N(0, I). The KL is the
same number, and under an intervention on the parents z is kept while its place follows them. A
weight `beta` of the KL above 1 buys independence of z and parents for less detail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.likelihood import Gaussian, Likelihood, soft
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.nn import MLP, Beside, ConvDecoder, ConvEncoder
from subjunctive.variable import Batch, Variable


class GaussianMixture(nn.Module):
    """A learned mixture of Gaussians of diagonal covariance, as the density of a latent.

    Args:
        width: of the latent.
        components: how many Gaussians.

    Example:
        >>> GaussianMixture(2, components=3).distribution().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.width, self.components = width, components
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, width))
        self.log_scale = nn.Parameter(torch.zeros(components, width))

    def distribution(self) -> Distribution:
        """Return the mixture; it depends on nothing but its parameters."""
        scale = soft(self.log_scale, -7, 7).exp()
        parts = Independent(Normal(self.mean, scale, validate_args=False), 1, validate_args=False)
        weights = Categorical(logits=self.logits, validate_args=False)
        return MixtureSameFamily(weights, parts, validate_args=False)


def networks(
    variable: Variable,
    parents: Sequence[Variable],
    latent: int,
    numbers: int,
    widths: Sequence[int] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Return a plain encoder and decoder: convolutions for `(C, H, W)`, perceptrons otherwise.

    Args:
        variable, parents: the node's and its parents'.
        latent: the latent's width.
        numbers: how many numbers an entry the likelihood needs.
        widths: of the convolutions, (16, 32, 64) by default, or of the hidden layers, (64, 64).
    """
    beside = sum(p.width for p in parents)
    if len(variable.shape) == 3:
        channels, height, width = variable.shape
        widths = tuple(widths or (16, 32, 64))
        features = 2 * widths[-1]
        network = nn.Sequential(ConvEncoder(channels, (height, width), features, widths), nn.SiLU())
        encoder = Beside(network, MLP(features + beside, 2 * latent, (features,)))
        size = (height, width)
        return encoder, ConvDecoder(latent + beside, numbers * channels, size, widths)
    hidden = (64, 64) if widths is None else tuple(widths)
    encoder = Beside(nn.Flatten(), MLP(variable.width + beside, 2 * latent, hidden))
    return encoder, MLP(latent + beside, numbers * variable.width, hidden)


def _example() -> tuple[Mechanism, Batch]:
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with seeded(0):
        mechanism = VAE.of(
            Variable("x", (1, 8, 8)),
            [Variable("t"), kind],
            latent=3,
            widths=(8, 8),
            base=GaussianMixture(3, 2),
            attributes=True,
            beta=2.0,
        )
    return stirred(mechanism), own_samples(mechanism, rows=256)


class VAE(Mechanism):
    """A variational autoencoder, conditional on its parents, as the mechanism of a node.

    Reference: Auto-Encoding Variational Bayes (Kingma and Welling, 2013),
    https://arxiv.org/abs/1312.6114; a prior that follows the parents and a weighted KL: Learning
    Structured Output Representations from Attributes using Deep Conditional Generative Models
    (Debbagh, 2023), https://arxiv.org/abs/2305.00980, after Learning Structured Output
    Representation using Deep Conditional Generative Models (Sohn, Lee and Yan, 2015).

    Args:
        variable: a continuous node of any shape, an image `(C, H, W)` above all.
        parents: any variables.
        latent: the width of z.
        likelihood: p(x | z, pa), entry by entry, with its residual noise; `Gaussian()` if None.
        encoder: called with x, `(B, D)` or an image as it is, and the parents' matrix `(B, C)`;
            gives `(B, 2 latent)`, mean and log-variance of q(z | x, pa); by `networks` if None.
        decoder: called with z and the parents' matrix side by side, `(B, latent + C)`; gives
            `likelihood.width` numbers an entry, `(B, width * D)` in any shape, the first number of
            all entries first; by `networks` if None.
        base: a module whose `distribution()` is p(z), such as `GaussianMixture`; N(0, I) if None.
        prior_network: maps the parents' matrix to `(B, 2 latent)`, location and log-scale that z is
            given before it is decoded; None to decode it as it is.
        beta: weight of the KL.

    Raises:
        ValueError: for a discrete node, a latent without width, a negative weight, a prior network
            without parents, and, when they are called, networks that give another shape.

    Example:
        >>> image, t = Variable("x", (1, 8, 8)), Variable("t")
        >>> vae = VAE.of(image, [t], latent=4, widths=(8, 8))
        >>> x, parents = torch.rand(2, 1, 8, 8), {"t": torch.zeros(2)}
        >>> u = vae.abduct(x, parents)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'z': (2, 4), 'residual': (2, 1, 8, 8)}
        >>> torch.allclose(vae(u, parents), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        latent: int = 16,
        likelihood: Likelihood | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        base: nn.Module | None = None,
        prior_network: nn.Module | None = None,
        beta: float = 1.0,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if latent < 1 or not 0 <= beta < math.inf:
            raise ValueError(
                f"the VAE of {variable.name!r} needs latent >= 1 and beta >= 0, got latent="
                f"{latent} and beta={beta}"
            )
        if prior_network is not None and not self.parents:
            raise ValueError(
                f"{variable.name!r} has no parents that its prior could follow; leave out "
                "prior_network"
            )
        self.latent, self.beta = latent, beta
        self.likelihood = Gaussian() if likelihood is None else likelihood
        if encoder is None or decoder is None:
            plain = networks(variable, self.parents, latent, self.likelihood.width)
        self.encoder = plain[0] if encoder is None else encoder
        self.decoder = plain[1] if decoder is None else decoder
        self.base, self.prior_network = base, prior_network
        event = self._density().event_shape
        if tuple(event) != (latent,):
            raise ValueError(
                f"the base of {variable.name!r} draws {tuple(event)}, its latent has ({latent},)"
            )

    @classmethod
    def of(
        cls,
        variable: Variable,
        parents: Sequence[Variable] = (),
        latent: int = 16,
        likelihood: Likelihood | None = None,
        widths: Sequence[int] | None = None,
        attributes: bool = False,
        base: nn.Module | None = None,
        beta: float = 1.0,
    ) -> VAE:
        """Build the mechanism with plain networks.

        Args:
            variable, parents, latent, likelihood, base, beta: as for the class.
            widths: of the convolutions or hidden layers; see `networks`.
            attributes: whether the prior of what is decoded follows the parents.
        """
        likelihood = Gaussian() if likelihood is None else likelihood
        encoder, decoder = networks(variable, parents, latent, likelihood.width, widths)
        beside = sum(p.width for p in parents)
        follow = MLP(beside, 2 * latent, (32,)) if attributes and beside else None
        return cls(variable, parents, latent, likelihood, encoder, decoder, base, follow, beta)

    def _density(self) -> Distribution:
        if self.base is None:
            return self.standard_normal(self.latent)
        density: Distribution = self.base.distribution()  # type: ignore[operator]
        return density

    def prior(self) -> Prior:
        """Return the densities of z and of the likelihood's residual."""
        residual = self.likelihood.prior(self.origin.expand(self.variable.shape))
        return {"z": self._density(), "residual": residual}

    def decode(self, z: Tensor, parents: Parents) -> Tensor:
        """Return what the likelihood needs, `(B, likelihood.width, *shape)`.

        Raises:
            ValueError: if the decoder gives another number of entries.
        """
        c = context(self, parents, len(z))
        if self.prior_network is not None:
            shift, log_scale = self.prior_network(c).to(z).chunk(2, dim=1)
            z = shift + soft(log_scale, -7, 7).exp() * z
        h: Tensor = self.decoder(torch.cat([z, c], dim=1))
        need = (len(z), self.likelihood.width, *self.variable.shape)
        if len(h) != len(z) or h.numel() != math.prod(need):
            raise ValueError(
                f"the decoder of {self.variable.name!r} gave {tuple(h.shape)}, "
                f"{type(self.likelihood).__name__} needs {need} or the same numbers in another "
                "shape; change the decoder's outputs"
            )
        return h.reshape(need).to(self.origin.dtype)

    def posterior(self, x: Tensor, parents: Parents) -> Distribution:
        """Return q(z | x, pa), of batch shape `(B,)` and event shape `(latent,)`.

        Raises:
            ValueError: if the encoder gives another shape than `(B, 2 latent)`.
        """
        check(x, self.variable)
        rows = x if x.dim() > 2 else x.reshape(len(x), -1)
        out: Tensor = self.encoder(rows, context(self, parents, len(x)))
        if tuple(out.shape) != (len(x), 2 * self.latent):
            raise ValueError(
                f"the encoder of {self.variable.name!r} gave {tuple(out.shape)}; a latent of width "
                f"{self.latent} needs {(len(x), 2 * self.latent)}; change its outputs"
            )
        mean, log_variance = out.to(self.origin.dtype).chunk(2, dim=1)
        scale = torch.exp(log_variance.clamp(-20.0, 6.0) / 2)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: the decoder's likelihood at the residual."""
        x: Tensor = self.likelihood(self.decode(u["z"], parents), u["residual"])
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw z from the encoder, and the residual that gives x exactly."""
        z = self.posterior(x, parents).sample()
        return {"z": z, "residual": self.likelihood.abduct(self.decode(z, parents), x)}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `nll`, and `kl` times its weight, in nats an entry of x, `(B,)` each."""
        q, entries = self.posterior(x, parents), self.variable.width
        z = q.rsample()
        if self.base is None:
            normal = q.base_dist  # type: ignore[attr-defined]
            square = normal.loc.square() + normal.scale.square()
            kl = (square / 2 - normal.scale.log() - 0.5).sum(1)
        else:
            kl = q.log_prob(z) - self._density().log_prob(z)
        nll = -self.likelihood.log_prob(self.decode(z, parents), x)
        return {"nll": nll / entries, "kl": self.beta * kl / entries}

    def bound(self, x: Tensor, parents: Parents, draws: int = 1) -> Tensor:
        """Return log mean_k p(x, z_k | pa) / q(z_k | x, pa), z_k ~ q, in nats, `(B,)`.

        Its mean over draws is the evidence lower bound for `draws=1`, and grows to log p(x | pa)
        with more. Of a standardised x, as `Density.log_prob`.

        Reference: Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015),
        https://arxiv.org/abs/1509.00519

        Raises:
            ValueError: for fewer than one draw.
        """
        if draws < 1:
            raise ValueError(f"bound() needs draws of at least 1, got {draws}")
        q, prior = self.posterior(x, parents), self._density()
        weights = []
        for _ in range(draws):
            z = q.rsample()
            joint = self.likelihood.log_prob(self.decode(z, parents), x) + prior.log_prob(z)
            weights.append(joint - q.log_prob(z))
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    card = Card(
        name="Variational autoencoder mechanism",
        summary="A node, images above all, from its parents, a latent and a residual of a stated "
        "likelihood; an encoder abducts the latent.",
        title="Auto-Encoding Variational Bayes",
        authors="Kingma, Diederik P. and Welling, Max",
        year=2013,
        url="https://arxiv.org/abs/1312.6114",
        assumptions=(
            "the latent and the residual are independent of the parents",
            "given the latent and the parents, the entries are independent",
        ),
        needs="a continuous node and its parents' values",
        abduction="approximate",
        tolerance=2e-6,
        of=(24, 28),
        example=_example,
    )
