r"""A mechanism whose formula is known: a simulator's equation, or a law of physics.

    x = fn(u, pa),   u = inverse(x, pa),   log p(x | pa) = log p(u) - log |det d fn / d u|

The determinant is given (`log_abs_det`) or taken from the D x D Jacobian by automatic
differentiation, one backward pass for each of the node's D numbers. Without `inverse` the
mechanism predicts, but neither abducts nor has a density; `Known(...)` is a `Density` where it can
be: for a continuous node with an inverse whose noise has D numbers or whose `log_abs_det` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.mechanism import (
    Density,
    Mechanism,
    Noise,
    Parents,
    Prior,
    each,
    parts,
    prior_log_prob,
)
from subjunctive.mechanisms.linear import check, check_parents, own_samples
from subjunctive.variable import Batch, Variable


def _dose_response(u: Tensor, parents: Parents) -> Tensor:
    return torch.asinh(2 * u) * torch.exp(0.3 * parents["dose"]) + parents["sex"] - parents["dose"]


def _dose_response_inverse(x: Tensor, parents: Parents) -> Tensor:
    return (
        torch.sinh((x - parents["sex"] + parents["dose"]) * torch.exp(-0.3 * parents["dose"])) / 2
    )


def _example() -> tuple[Mechanism, Batch]:
    sex = Variable("sex", kind="categorical", categories=("f", "m"))
    mechanism = Known(
        Variable("x"), [Variable("dose"), sex], _dose_response, _dose_response_inverse
    )
    return mechanism, own_samples(mechanism)


class Known(Mechanism):
    r"""A node computed by a formula that is known: `x = fn(u, pa)`.

    Reference:
        Causality: Models, Reasoning, and Inference, chapter 7 (Pearl, 2009),
        https://bayes.cs.ucla.edu/BOOK-2K/

    Args:
        variable: the node.
        parents: the parents' variables.
        fn: `(u, parents) -> x`, batch first, in standardised values (give simulators' variables
            `loc=0, scale=1` to write their equations in natural units); may be a module.
        inverse: `(x, parents) -> u`; where x is a code or has fewer numbers than u, a draw of
            `u ~ p(u | x, parents)`.
        noise: the density of u, one distribution or a dictionary of them; N(0, I) of the
            variable's shape if None.
        log_abs_det: `(u, parents) -> log |det d fn / d u|`, `(B,)`; by automatic differentiation
            if None.

    Example:
        >>> m = Known(Variable("x"), [Variable("t")], lambda u, p: u.exp() + p["t"],
        ...           lambda x, p: (x - p["t"]).log())
        >>> m.abduct(torch.tensor([3.0]), {"t": torch.tensor([2.0])})
        tensor([0.])
    """

    card: ClassVar[Card] = Card(
        name="Known mechanism",
        summary="A node computed by a formula that a simulator or a theory supplies.",
        title="Causality: Models, Reasoning, and Inference",
        authors="Pearl, Judea",
        year=2009,
        url="https://bayes.cs.ucla.edu/BOOK-2K/",
        assumptions=("the formula and the density of its noise are right",),
        needs="nothing: it is not fitted, unless the formula is a module with parameters",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable],
        fn: Callable[[Noise, Parents], Tensor],
        inverse: Callable[[Tensor, Parents], Noise] | None = None,
        noise: Prior | None = None,
        log_abs_det: Callable[[Noise, Parents], Tensor] | None = None,
    ) -> None:
        super().__init__(variable, parents)
        self.fn, self.inverse, self.noise, self.log_abs_det = fn, inverse, noise, log_abs_det
        # What the arguments allow decides what this is, so that `isinstance` tells the truth.
        enough = noise is None or _size(noise) == variable.width or log_abs_det is not None
        if inverse is not None and enough and not variable.discrete:
            self.__class__ = KnownDensity

    def prior(self) -> Prior:
        """Return the stated density of u; N(0, I) of the variable's shape if none was."""
        return self.standard_normal(*self.variable.shape) if self.noise is None else self.noise

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return `fn(u, parents)`, `(B, *shape)`."""
        rows = len(next(parts(u))[1])
        check_parents(self, parents, rows)
        return check(self.fn(u, parents), self.variable, rows)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return `inverse(x, parents)`.

        Raises:
            ValueError: if no inverse was given.
        """
        if self.inverse is None:
            raise ValueError(
                f"{self.variable.name!r} cannot be abducted: its Known mechanism has no inverse; "
                "give Known(..., inverse=g) with u = g(x, parents), or a draw of it; or take a "
                "family that abducts: AdditiveNoise or ConditionalFlow for a number, Categorical "
                "or Ordinal for categories, VAE, HVAE, RealNVP or Diffusion for an image"
            )
        check(x, self.variable)
        check_parents(self, parents, len(x))
        return self.inverse(x, parents)

    def _learns(self, *noises: Noise) -> bool:
        given = [t for noise in noises for _, t in parts(noise)]
        learned = any(t.requires_grad for t in [*given, *self.parameters()])
        return learned and torch.is_grad_enabled()

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `{"nll": (B,)}`, or nothing where there is no density and nothing to learn.

        Raises:
            ValueError: if something is to be learned through a mechanism without a density.
        """
        if isinstance(self, Density):
            return {"nll": -self.log_prob(x, parents)}
        if self._learns({p.name: parents[p.name] for p in self.parents}):
            raise ValueError(
                f"{self.variable.name!r} has no likelihood to learn from: its Known mechanism has "
                "no inverse, or no density; give an inverse, or another mechanism"
            )
        return {}


class KnownDensity(Known, Density):
    """A known mechanism whose density is known too; `Known(...)` makes it."""

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | parents), `(B,)`, in nats."""
        u = self.abduct(x, parents)
        stretch = self.log_abs_det or self._stretch
        return prior_log_prob(self.prior(), u) - stretch(u, parents)

    def _stretch(self, u: Noise, parents: Parents) -> Tensor:
        learns = self._learns(u, {p.name: parents[p.name] for p in self.parents})
        with torch.enable_grad():
            u = each(lambda t: t if learns and t.requires_grad else t.detach().requires_grad_(), u)
            leaves = [leaf for _, leaf in parts(u)]
            jacobian = []
            for column in self.fn(u, parents).reshape(len(leaves[0]), -1).unbind(1):
                grads = torch.autograd.grad(
                    column.sum(),
                    leaves,
                    retain_graph=True,
                    create_graph=learns,
                    materialize_grads=True,
                )
                jacobian.append(torch.cat([g.reshape(len(g), -1) for g in grads], dim=1))
        return torch.linalg.slogdet(torch.stack(jacobian, dim=1)).logabsdet


def _size(prior: Prior) -> int:
    if isinstance(prior, dict):
        return sum(_size(p) for p in prior.values())
    return prior.batch_shape.numel() * prior.event_shape.numel()
