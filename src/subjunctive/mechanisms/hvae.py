r"""The hierarchical variational autoencoder as a mechanism: a ladder of latents, and a residual.

    z_l = m_l(z_<l[, pa]) + s_l(z_<l[, pa]) eps_l,   eps_l ~ N(0, I),   l = 1 ... L, coarse to fine
    x = f(decoder(z_1 ... z_L, pa), r),   r the residual noise of a likelihood p(x | z, pa)

The noise u = (eps_1 ... eps_L, r) knows nothing of the parents; a layer's place follows what lies
above it. The encoder speaks of the noise too, q(eps_l | z_<l, x, pa) = N(d_l, r_l^2), so that a
layer's divergence from its prior p(z_l | z_<l) = N(m_l, s_l^2) is, wherever that lies,

    KL_l = sum (d_l^2 + r_l^2 - 1) / 2 - log r_l,
    log p(x | pa) >= E_q [log p(x | z, pa) - sum_l KL_l].

Abduction goes down the ladder: eps_1 from q, hence z_1; eps_2 from q given z_1, and so on; at last
the residual that gives x. The round trip is exact whatever the encoder is worth.

**Exogenous prior** (`mediator=False`): p(z_l | z_<l) does not hear the parents. z is a function of
the noise alone: an intervention leaves it as it was, and acts through the decoder.

**Conditional prior** (`mediator=True`): p(z_l | z_<l, pa). z is a variable between pa and x, an
endogenous mediator: under an intervention the noise is kept and z moves. An effect on the image has
then two ways, pa -> x and pa -> z -> x. With z(pa) = `latents(u, pa)` and the residual kept,

    direct    decode(z(pa),  pa', r) - x      the parents act, z stays
    indirect  decode(z(pa'), pa,  r) - x      z moves, the decoder's parents stay
    total     decode(z(pa'), pa', r) - x
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.likelihood import Discretised, Gaussian, Levels, Likelihood, soft
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.nn.ladder import Ladder
from subjunctive.variable import Batch, Variable


def networks(
    variable: Variable, parents: Sequence[Variable], numbers: int, mediator: bool, *sizes: Any
) -> Ladder:
    """Return the ladder of an image, of which `numbers` an entry are decoded.

    Args:
        variable, parents: the node's and its parents'.
        numbers: how many numbers an entry the likelihood needs.
        mediator: whether the prior follows the parents.
        sizes: `widths`, `scales`, `latents` and `blocks` of `Ladder`.

    Raises:
        ValueError: for another shape than an image's.
    """
    if len(variable.shape) != 3:
        raise ValueError(
            f"HVAE builds networks for an image (C, H, W); {variable.name!r} has shape "
            f"{variable.shape}: give ladder=..., or use VAE"
        )
    channels, height, width = variable.shape
    told = sum(p.width for p in parents)
    return Ladder(channels, (height, width), numbers * channels, told, mediator, *sizes)


def _unrounded(likelihood: Levels, h: Tensor, r: Tensor) -> Tensor:
    """Return the value that is rounded to a level; of two levels, their mean."""
    if not isinstance(likelihood, Discretised):
        return likelihood.mean(h)
    loc, scale = likelihood._split(h)
    return (loc + scale * r).clamp(likelihood.low, likelihood.high)


def _example() -> tuple[Mechanism, Batch]:
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with seeded(0):
        mechanism = HVAE.of(
            Variable("x", (1, 8, 8)),
            [Variable("t"), kind],
            mediator=True,
            beta=1.5,
            widths=(8, 8, 8),
            scales=(2, 4, 8),
            latents=((), (2, 1), (3,)),
        )
    return stirred(mechanism), own_samples(mechanism, rows=256)


class HVAE(Mechanism):
    """A ladder of latents, conditional on the parents, as the mechanism of an image.

    Reference: High Fidelity Image Counterfactuals with Probabilistic Causal Models (De Sousa
    Ribeiro, Xia, Monteiro, Pawlowski and Glocker, 2023), https://arxiv.org/abs/2306.15764; free
    bits: Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
    https://arxiv.org/abs/1606.04934

    Args:
        variable: a continuous node, an image `(C, H, W)` unless a ladder of your own is given.
        parents: any variables.
        ladder: the networks: a `Ladder`, or a module that has its `shapes` and the methods `read`,
            `begin`, `prior`, `posterior`, `add` and `decode`; a `Ladder` of its default sizes if
            None. It decodes `likelihood.width` numbers an entry, the first of all entries first.
        likelihood: p(x | z, pa), entry by entry, with its residual noise; `Gaussian()` if None.
        mediator: whether the prior of z follows the parents, which makes z a mediator.
        beta: weight of the KL.
        free_bits: nats of every group of latents that cost nothing, on average over a batch: where
            its KL is less, it is not pushed further down.

    Raises:
        ValueError: for a discrete node, another shape than an image's without a ladder, a mediator
            without parents, weights that are negative, and, when they are called, networks that
            give another shape.

    Example:
        >>> image, t = Variable("x", (1, 32, 32)), Variable("t")
        >>> hvae = HVAE(image, [t], mediator=True)
        >>> x, pa, other = torch.rand(2, 1, 32, 32), {"t": torch.zeros(2)}, {"t": torch.ones(2)}
        >>> u = hvae.abduct(x, pa)
        >>> {name: tuple(part.shape) for name, part in u["z"].items()}
        {'1': (2, 32, 1, 1), '2': (2, 8, 4, 4), '3': (2, 8, 4, 4), '4': (2, 8, 8, 8)}
        >>> torch.allclose(hvae(u, pa), x, atol=1e-6)
        True
        >>> direct = hvae.decode(hvae.latents(u, pa), other, u["residual"]) - x
        >>> indirect = hvae.decode(hvae.latents(u, other), pa, u["residual"]) - x
    """

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        ladder: Ladder | None = None,
        likelihood: Likelihood | None = None,
        mediator: bool = False,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if not (0 <= beta < math.inf and 0 <= free_bits < math.inf):
            raise ValueError(
                f"the HVAE of {variable.name!r} needs beta >= 0 and free_bits >= 0, got beta="
                f"{beta} and free_bits={free_bits}"
            )
        if mediator and not self.parents:
            raise ValueError(
                f"{variable.name!r} has no parents between which and x its latents could mediate; "
                "leave out mediator=True"
            )
        self.likelihood = Gaussian() if likelihood is None else likelihood
        self.mediator, self.beta, self.free_bits = mediator, beta, free_bits
        self.ladder = ladder or networks(variable, self.parents, self.likelihood.width, mediator)

    @classmethod
    def of(
        cls,
        variable: Variable,
        parents: Sequence[Variable] = (),
        likelihood: Likelihood | None = None,
        mediator: bool = False,
        beta: float = 1.0,
        free_bits: float = 0.0,
        widths: Sequence[int] = (32, 48, 64, 96),
        scales: Sequence[int] = (2, 4, 8, 32),
        latents: Sequence[Sequence[int]] = ((), (8,), (8, 8), (32,)),
        blocks: int = 1,
    ) -> HVAE:
        """Build the mechanism with networks of these sizes.

        Args:
            variable, parents, likelihood, mediator, beta, free_bits: as for the class.
            widths, scales, latents, blocks: as for `Ladder`.
        """
        likelihood = Gaussian() if likelihood is None else likelihood
        sizes = (tuple(widths), tuple(scales), tuple(map(tuple, latents)), blocks)
        ladder = networks(variable, parents, likelihood.width, mediator, *sizes)
        return cls(variable, parents, ladder, likelihood, mediator, beta, free_bits)

    def prior(self) -> Prior:
        """Return N(0, I) for every group's noise, coarse to fine, and the residual's density."""
        groups = {str(n + 1): self.standard_normal(*s) for n, s in enumerate(self.ladder.shapes)}
        residual = self.likelihood.prior(self.origin.expand(self.variable.shape))
        return {"z": groups, "residual": residual}

    def latents(self, u: Noise, parents: Parents) -> list[Tensor]:
        """Return z_1 ... z_L, coarse to fine: where the noise lies under these parents.

        With an exogenous prior they are the same under all parents.

        Args:
            u: noise as `prior` draws it; the residual plays no part.
            parents: those that the prior of z follows.
        """
        groups: Mapping[str, Tensor] = u["z"]
        c = context(self, parents, len(next(iter(groups.values()))))
        return self._descend(c, lambda n, g: groups[str(n + 1)])

    def decode(
        self, z: Sequence[Tensor], parents: Parents, residual: Tensor | None = None
    ) -> Tensor:
        """Return x `(B, *shape)` from z under these parents, wherever z came from.

        Args:
            z: what `latents` returned.
            parents: those that act on x directly.
            residual: the likelihood's noise; None for the mean E[x | z, pa].

        Raises:
            ValueError: for another number of groups.
        """
        if len(z) != len(self.ladder.shapes):
            raise ValueError(
                f"{self.variable.name!r} has {len(self.ladder.shapes)} groups of latents, got "
                f"{len(z)}: give all that latents() returned"
            )
        h = self._numbers(z, context(self, parents, len(z[0])))
        x: Tensor = self.likelihood.mean(h) if residual is None else self.likelihood(h, residual)
        return x

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: latents, then the decoder's likelihood at the residual."""
        return self.decode(self.latents(u, parents), parents, u["residual"])

    def infer(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of the latents' noise given x, without the residual."""
        eps, _, _ = self._ascend(x, context(self, parents, len(x)))
        return {"z": {str(n + 1): e for n, e in enumerate(eps)}}

    def expect(self, u: Noise, parents: Parents) -> Tensor:
        """Return E[x | z, pa] `(B, *shape)`: the value without its residual."""
        return self.decode(self.latents(u, parents), parents)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw every group's noise from the encoder, coarse to fine, then the residual."""
        c = context(self, parents, len(x))
        eps, _, z = self._ascend(x, c)
        groups = {str(n + 1): e for n, e in enumerate(eps)}
        return {"z": groups, "residual": self.likelihood.abduct(self._numbers(z, c), x)}

    def imagine(self, x: Tensor, parents: Parents, others: Parents) -> Tensor:
        """Return what x would have been under other parents, by one draw that passes gradients on.

        It is `forward` of abducted noise. Where x has levels, its gradient is that of what was
        rounded to them, less that of the factual, which x holds in place.

        Args:
            x, parents: the factual values.
            others: the parents' counterfactual values.
        """
        c, d = context(self, parents, len(x)), context(self, others, len(x))
        eps, _, z = self._ascend(x, c)
        moved = self._descend(d, lambda n, g: eps[n]) if self.mediator else z
        h, other = self._numbers(z, c), self._numbers(moved, d)
        if not isinstance(self.likelihood, Levels):
            answer: Tensor = self.likelihood(other, self.likelihood.abduct(h, x))
            return answer
        with torch.no_grad():
            r = self.likelihood.abduct(h, x)
            answer = self.likelihood(other, r)
        way = _unrounded(self.likelihood, other, r) - _unrounded(self.likelihood, h, r)
        return answer + way - way.detach()

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `nll`, and `kl` times its weight, in nats an entry of x, `(B,)` each."""
        c, entries = context(self, parents, len(x)), self.variable.width
        _, posteriors, z = self._ascend(x, c)
        kl = self.origin.expand(len(x))
        for mean, log_scale in posteriors:
            square = mean.square() + (2 * log_scale).exp()
            own = ((square - 1) / 2 - log_scale).flatten(1).sum(1)
            if self.free_bits > 0:
                own = torch.where(own.mean() > self.free_bits, own, self.free_bits)
            kl = kl + own
        nll = -self.likelihood.log_prob(self._numbers(z, c), x)
        return {"nll": nll / entries, "kl": self.beta * kl / entries}

    def bound(self, x: Tensor, parents: Parents, draws: int = 1) -> Tensor:
        """Return log mean_k p(x, z_k | pa) / q(z_k | x, pa), z_k ~ q, in nats, `(B,)`.

        Its mean over draws is the evidence lower bound for `draws=1`, and grows to log p(x | pa)
        with more. Of a standardised x, as `Density.log_prob`; without `beta` and `free_bits`.

        Reference: Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015),
        https://arxiv.org/abs/1509.00519

        Raises:
            ValueError: for fewer than one draw.
        """
        if draws < 1:
            raise ValueError(f"bound() needs draws of at least 1, got {draws}")
        c, weights = context(self, parents, len(x)), []
        for _ in range(draws):
            eps, posteriors, z = self._ascend(x, c)
            weight = self.likelihood.log_prob(self._numbers(z, c), x)
            for e, (mean, log_scale) in zip(eps, posteriors, strict=True):
                inner = (e - mean) * torch.exp(-log_scale)
                weight = weight + ((inner.square() - e.square()) / 2 + log_scale).flatten(1).sum(1)
            weights.append(weight)
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    def _descend(self, c: Tensor, noise: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """Return all z; `noise(n, g)` gives the noise of group n where the path g has come to."""
        told = c if self.mediator else c[:, :0]
        g, z = self.ladder.begin(len(c)), []
        for n in range(len(self.ladder.shapes)):
            eps = noise(n, g)
            mean, log_scale, g = self.ladder.prior(n, g, told)
            scale = soft(self._fits(n, log_scale, eps), -3, 3).exp()
            z.append(self._fits(n, mean, eps) + scale * eps)
            g = self.ladder.add(n, g, z[-1])
        return z

    def _ascend(
        self, x: Tensor, c: Tensor
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Return drawn noise, its posteriors' means and log-scales, and z, group by group."""
        features = self.ladder.read(check(x, self.variable))
        eps: list[Tensor] = []
        posteriors: list[tuple[Tensor, Tensor]] = []

        def draw(n: int, g: Tensor) -> Tensor:
            mean, log_scale = self.ladder.posterior(n, g, features, c)
            fresh = self.origin.new_empty(len(x), *self.ladder.shapes[n]).normal_()
            mean, log_scale = (self._fits(n, t, fresh) for t in (mean, log_scale))
            posteriors.append((mean, soft(log_scale, -7, 7)))
            eps.append(mean + posteriors[-1][1].exp() * fresh)
            return eps[-1]

        return eps, posteriors, self._descend(c, draw)

    def _fits(self, n: int, found: Tensor, need: Tensor) -> Tensor:
        if found.shape != need.shape:
            raise ValueError(
                f"the ladder of {self.variable.name!r} gave {tuple(found.shape)} for group {n + 1},"
                f" which needs {tuple(need.shape)}; change its outputs or its shapes"
            )
        return found.to(self.origin.dtype)  # lower under autocast

    def _numbers(self, z: Sequence[Tensor], c: Tensor) -> Tensor:
        """Return what the likelihood needs, `(B, likelihood.width, *shape)`."""
        h = self.ladder.decode(z, c)
        need = (len(c), self.likelihood.width, *self.variable.shape)
        if len(h) != len(c) or h.numel() != math.prod(need):
            raise ValueError(
                f"the ladder of {self.variable.name!r} decoded {tuple(h.shape)}, "
                f"{type(self.likelihood).__name__} needs {need} or the same numbers in another "
                "shape; change its outputs"
            )
        return h.reshape(need).to(self.origin.dtype)

    card = Card(
        name="Hierarchical variational autoencoder mechanism",
        summary="An image from its parents, a ladder of latents from coarse to fine, and a "
        "residual; an encoder abducts a layer at a time, and the latents may mediate.",
        title="High Fidelity Image Counterfactuals with Probabilistic Causal Models",
        authors="De Sousa Ribeiro, Fabio and Xia, Tian and Monteiro, Miguel and Pawlowski, Nick "
        "and Glocker, Ben",
        year=2023,
        url="https://arxiv.org/abs/2306.15764",
        assumptions=(
            "the noise of all layers and the residual are independent of the parents",
            "given the latents and the parents, the entries are independent",
            "which part of an effect passes through latents that mediate rests on the model",
        ),
        needs="an image and its parents' values",
        abduction="approximate",
        tolerance=2e-6,
        of=(301,),
        example=_example,
    )
