r"""A latent freed from the parents: what depends on them goes to a flow, what is left is noise.

    z = T_pa(e),  e ~ N(0, I),        T a conditional flow of the latent
    x = g(z, rest; pa)                the mechanism as it was

An encoder's latents of data have the law q(z | pa) = mean over rows with pa of q(z | x, pa). The
prior of a trained mechanism is what they should have; what they have differs with pa, and then z
tells the parents: a counterfactual keeps their trace, and what is drawn for other parents lies where
the decoder has met no latents. Fit T to the latents by likelihood, given the parents, and e is
N(0, I) whatever the parents are, as far as T fits. Abduction takes z as before and e = T_pa^-1(z); an
intervention moves z to where its new parents' latents lie, at the same place within them.

With one parent and one latent this matches quantiles; with more, T fixes one of the many maps that
fit, as every flow does. In likelihood nothing is lost, for z has the density of T in the prior's place:

    log p(x | pa) >= E_q [log p(x | z, pa) + log T_pa(z) - log q(z | x, pa)].
"""  # noqa: E501

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.flow import ConditionalFlow
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.mechanisms.vae import VAE

    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with seeded(0):
        vae = VAE.of(Variable("x", (1, 8, 8)), [Variable("t"), kind], latent=3, widths=(8, 8))
        mechanism = Freed.of(vae, hidden=(16,))
    return stirred(mechanism), own_samples(mechanism, rows=256)


class Freed(Mechanism):
    """A mechanism one part of whose noise, a latent, has a conditional flow of its own.

    Reference: Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019),
    https://arxiv.org/abs/1903.05789, whose second stage models the first one's latents; here it is
    a flow, so that it can be inverted, and is given the parents.

    Train the mechanism, freeze it (`mechanism.requires_grad_(False)`) and fit this; one that is not
    frozen learns on beside the flow, which never moves it.

    Args:
        mechanism: with parents, whose noise has named parts.
        flow: the latent's, a `Density` with the same parents.
        part: which part of the noise.

    Raises:
        KeyError: for a part that the noise has not.
        ValueError: for a flow of another shape or with other parents.

    Example:
        >>> from subjunctive.mechanisms import VAE
        >>> vae = VAE.of(Variable("x", (5,)), [Variable("t")], latent=2)
        >>> freed, t = Freed.of(vae.requires_grad_(False)), {"t": torch.zeros(4)}
        >>> u = freed.abduct(torch.randn(4, 5), t)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'z': (4, 2), 'residual': (4, 5)}
        >>> list(freed.loss(torch.randn(4, 5), t))
        ['z.nll']
    """

    def __init__(self, mechanism: Mechanism, flow: Density, part: str = "z") -> None:
        super().__init__(mechanism.variable, mechanism.parents)
        self.mechanism, self.flow, self.part = mechanism, flow, part
        shape = _shape(mechanism, part)
        if flow.variable.shape != shape or flow.parents != self.parents:
            raise ValueError(
                f"the flow of {self.variable.name!r} is of shape {flow.variable.shape} with the "
                f"parents {[p.name for p in flow.parents]}; its part {part!r} has shape {shape}, "
                f"its parents are {[p.name for p in self.parents]}"
            )

    @classmethod
    def of(
        cls, mechanism: Mechanism, part: str = "z", transforms: int = 2, **options: Any
    ) -> Freed:
        """Build the flow, too.

        Args:
            mechanism, part: as for the class.
            transforms, options: for `ConditionalFlow`.
        """
        latent = Variable(f"{part} of {mechanism.variable.name}", _shape(mechanism, part))
        flow = ConditionalFlow(latent, mechanism.parents, transforms=transforms, **options)
        return cls(mechanism, flow, part)

    def prior(self) -> Prior:
        """Return the mechanism's prior, with the flow's noise for the part."""
        return {**self.mechanism.prior(), self.part: self.flow.prior()}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: the latent from its noise, then the mechanism."""
        x: Tensor = self.mechanism({**u, self.part: self.flow(u[self.part], parents)}, parents)
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw the mechanism's noise given x, and undo the flow of the part."""
        u = self.mechanism.abduct(x, parents)
        return {**u, self.part: self.flow.abduct(u[self.part], parents)}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the flow's terms on a draw of the latent; and the mechanism's, if it learns."""
        terms = {}
        if any(p.requires_grad for p in self.mechanism.parameters()):
            terms = self.mechanism.loss(x, parents)
        with torch.no_grad():
            z = self.mechanism.abduct(x, parents)[self.part]
        return terms | {f"{self.part}.{k}": v for k, v in self.flow.loss(z, parents).items()}

    def bound(self, x: Tensor, parents: Parents) -> Tensor:
        """Return one draw of a bound on log p(x | pa), in nats, `(B,)`: the mechanism's, freed.

        Raises:
            AttributeError: for a mechanism without a `bound`.
        """
        own: Any = self.mechanism
        z, prior = own.abduct(x, parents)[self.part], own.prior()[self.part]
        found: Tensor = own.bound(x, parents) - prior.log_prob(z) + self.flow.log_prob(z, parents)
        return found

    card = Card(
        name="Latent freed from the parents",
        summary="A trained mechanism whose latent gets a conditional flow, so that what is left as "
        "its noise tells nothing of the parents.",
        title="Diagnosing and Enhancing VAE Models",
        authors="Dai, Bin and Wipf, David",
        year=2019,
        url="https://arxiv.org/abs/1903.05789",
        assumptions=("the noise is independent of the parents once the latent is freed",),
        needs="a trained mechanism with parents and a latent, and its data",
        abduction="approximate",
        tolerance=1e-4,
        example=_example,
    )


def _shape(mechanism: Mechanism, part: str) -> tuple[int, ...]:
    prior = mechanism.prior()
    named = prior if isinstance(prior, dict) else {}
    known(part, named, f"the noise of {mechanism.variable.name!r}")
    density = named[part]
    if isinstance(density, dict):
        raise ValueError(f"{part!r} has parts {sorted(density)} of its own; free a single latent")
    return tuple(density.event_shape)
