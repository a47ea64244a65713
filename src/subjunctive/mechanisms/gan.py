r"""A generator and its encoder as a mechanism: a bidirectional GAN, with a declared residual.

    x = G(z, pa) + s r,     z ~ N(0, I),  r ~ N(0, I),        abduction: z ~ E(. | x, pa),
                                                              r = (x - G(z, pa)) / s

G and E have no density between them. A critic tells pairs (x, E(x)) of the data from pairs
(G(z), z) of the model, and where it cannot, E is the posterior of G (`objectives.adversarial`).
Short of that E is a learned inverse, and no critic says how far it is off: G(E(x)) is not x. What
it leaves out is declared, not hidden: the residual r is noise of this node, of the scale s that
makes what E leaves most likely, so that doing nothing changes nothing and an answer keeps what the
pair could not say. With `residual=False` it is dropped: answers are the generator's own, G(E(x)),
and composition holds as far as E is right (the card of such a mechanism says so).

A critic of the pairs leaves the conditional entropy H(x | z) free. What bounds it is the round
x -> z -> x, the `cycle` of ALICE, which is the mechanism's own `loss`:

    H(x | z, pa)  <=  E -log N(x; G(z, pa), s^2),     z ~ E(. | x, pa)

Reference: Adversarial Feature Learning (Donahue, Krähenbühl and Darrell, 2017),
https://arxiv.org/abs/1605.09782; Adversarially Learned Inference (Dumoulin et al., 2017),
https://arxiv.org/abs/1606.00704; ALICE: Towards Understanding Adversarial Learning for Joint
Distribution Matching (Li et al., 2017), https://arxiv.org/abs/1709.01215
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.mechanisms.vae import networks
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with seeded(0):
        image = Variable("x", (1, 8, 8))
        mechanism = GAN(image, [Variable("t"), kind], latent=3, widths=(8, 8))
    return stirred(mechanism), own_samples(mechanism, rows=256)


class GAN(Mechanism):
    """A bidirectional GAN, conditional on its parents, as the mechanism of a node.

    Reference: Adversarial Feature Learning (Donahue, Krähenbühl and Darrell, 2017),
    https://arxiv.org/abs/1605.09782

    Args:
        variable: a continuous node of any shape, an image `(C, H, W)` above all.
        parents: any variables.
        latent: the width of z.
        generator: called with z and the parents' matrix side by side, `(B, latent + C)`; gives the
            node's numbers in any shape; by `vae.networks` if None.
        encoder: called with x, `(B, D)` or an image as it is, and the parents' matrix; gives mean
            and log-variance of E(z | x, pa), `(B, 2 latent)`; by `vae.networks` if None.
        widths: of the plain networks' convolutions or hidden layers.
        residual: whether what the encoder leaves is noise of the node, so that composition holds;
            without it the answers are approximate, and the card of the mechanism says so.
        cycle: weight of the loss.

    Raises:
        ValueError: for a discrete node, a latent without width, a negative weight, and, when they
            are called, networks that give another shape.

    Example:
        >>> gan = GAN(Variable("x", (1, 8, 8)), [Variable("t")], latent=4, widths=(8, 8))
        >>> x, parents = torch.rand(2, 1, 8, 8), {"t": torch.zeros(2)}
        >>> u = gan.abduct(x, parents)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'z': (2, 4), 'residual': (2, 1, 8, 8)}
        >>> torch.allclose(gan(u, parents), x, atol=1e-6)
        True
        >>> GAN(Variable("x"), residual=False).card.tolerance
        inf
    """

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        latent: int = 8,
        generator: nn.Module | None = None,
        encoder: nn.Module | None = None,
        widths: Sequence[int] | None = None,
        residual: bool = True,
        cycle: float = 1.0,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if latent < 1 or not 0 <= cycle < math.inf:
            raise ValueError(
                f"the GAN of {variable.name!r} needs latent >= 1 and cycle >= 0, got latent="
                f"{latent} and cycle={cycle}"
            )
        self.latent, self.widths, self.residual, self.cycle = latent, widths, residual, cycle
        if generator is None or encoder is None:
            plain = networks(variable, self.parents, latent, 1, widths)
        self.generator = plain[1] if generator is None else generator
        self.encoder = plain[0] if encoder is None else encoder
        self.log_scale = nn.Parameter(torch.tensor(-2.0))
        if not residual:
            said = f"{self.card.summary[:-1]}; without a residual: composition is approximate."
            self.card = replace(type(self).card, tolerance=math.inf, summary=said)  # type: ignore[misc]

    def prior(self) -> Prior:
        """Return N(0, I) for z and, where there is one, for the residual."""
        own = {"z": self.standard_normal(self.latent)}
        if self.residual:
            own["residual"] = self.standard_normal(*self.variable.shape)
        return own

    def generate(self, z: Tensor, parents: Parents) -> Tensor:
        """Return G(z, pa), `(B, *shape)`: the value without its residual.

        Raises:
            ValueError: if the generator gives another number of entries.
        """
        h: Tensor = self.generator(torch.cat([z, context(self, parents, len(z))], dim=1))
        if len(h) != len(z) or h.numel() != len(z) * self.variable.width:
            raise ValueError(
                f"the generator of {self.variable.name!r} gave {tuple(h.shape)}; it needs "
                f"{(len(z), *self.variable.shape)} or the same numbers in another shape"
            )
        return h.reshape(len(z), *self.variable.shape).to(self.origin.dtype)

    def posterior(self, x: Tensor, parents: Parents) -> Distribution:
        """Return E(z | x, pa), of batch shape `(B,)` and event shape `(latent,)`.

        Raises:
            ValueError: if the encoder gives another shape than `(B, 2 latent)`.
        """
        check(x, self.variable)
        rows = x if x.dim() > 2 else x.reshape(len(x), -1)
        out: Tensor = self.encoder(rows, context(self, parents, len(x)))
        if tuple(out.shape) != (len(x), 2 * self.latent):
            raise ValueError(
                f"the encoder of {self.variable.name!r} gave {tuple(out.shape)}; a latent of width "
                f"{self.latent} needs {(len(x), 2 * self.latent)}"
            )
        mean, log_variance = out.to(self.origin.dtype).chunk(2, dim=1)
        scale = torch.exp(log_variance.clamp(-10.0, 2.0) / 2)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: G(z, pa), and s r where there is a residual."""
        x = self.generate(u["z"], parents)
        return x + self.log_scale.exp() * u["residual"] if self.residual else x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw z from the encoder; the residual, if there is one, gives x exactly."""
        z = self.posterior(x, parents).sample()
        if not self.residual:
            return {"z": z}
        return {"z": z, "residual": (x - self.generate(z, parents)) / self.log_scale.exp()}

    def missed(self, x: Tensor, again: Tensor) -> Tensor:
        """Return -log N(x; again, s^2), mean over the entries, `(B,)`."""
        square = ((x - again) * torch.exp(-self.log_scale)).square().reshape(len(x), -1).mean(1)
        return square / 2 + self.log_scale + math.log(2 * math.pi) / 2

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `cycle`, weighted, in nats an entry of x; what x looks like, a critic teaches."""
        again = self.generate(self.posterior(x, parents).rsample(), parents)
        return {"cycle": self.cycle * self.missed(x, again)}

    card = Card(
        name="Bidirectional GAN mechanism",
        summary="A node, images above all, from a generator that a critic trains; its encoder "
        "abducts the latent, and what the encoder leaves is a declared residual.",
        title="Adversarial Feature Learning",
        authors="Donahue, Jeff and Krähenbühl, Philipp and Darrell, Trevor",
        year=2017,
        url="https://arxiv.org/abs/1605.09782",
        assumptions=(
            "the latent and the residual are independent of the parents",
            "the encoder inverts the generator: no likelihood says how far it does not",
        ),
        needs="a continuous node and its parents' values; an adversarial objective",
        abduction="approximate",
        tolerance=2e-6,
        example=_example,
    )
