r"""Conditional normalising flows: any conditional density, inverted exactly.

    x = T_pa(u),   u ~ N(0, I),   log p(x | pa) = log N(T_pa^-1(x); 0, I) + log |det d T_pa^-1 / dx|

T_pa^-1 is a chain of monotone maps whose parameters are networks of the parents and, for a node of
several numbers, of the numbers before (autoregressive, in turn from the front and from the back):
first an affine map, then, for `spline`, monotone rational-quadratic splines on [-bound, bound],
the identity outside. A spline's slope at its knots stays within 0.01 and 100, which keeps float32
round trips tight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.variable import Batch, Variable, nearest

Shape = Literal["spline", "affine"]


@contextmanager
def validation_kept() -> Iterator[None]:
    """Restore torch's default for validating distributions, which importing zuko turns off."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _example() -> tuple[Mechanism, Batch]:
    sex = Variable("sex", kind="categorical", categories=("f", "m"))
    with seeded(0):
        mechanism = ConditionalFlow(Variable("x", shape=(2,)), [Variable("age"), sex], hidden=(16,))
    return stirred(mechanism), own_samples(mechanism)


class ConditionalFlow(Density):
    r"""A node with any continuous conditional density, and an exact inverse: `x = T_pa(u)`.

    Reference:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032; as mechanisms:
        Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski et al.,
        2020), https://arxiv.org/abs/2006.06485

    Args:
        variable: the node, continuous, of any shape; D numbers. Prediction takes D passes.
        parents: the parents' variables.
        kind: `spline` (one affine map, then splines) or `affine` (affine maps alone).
        transforms: how many splines or affine maps.
        hidden: the widths of the networks that give the parameters.
        bins: the bins of a spline.
        bound: where a spline ends, in standard deviations.

    Raises:
        ValueError: for a discrete node, an unknown kind, or counts below one.

    Example:
        >>> flow = ConditionalFlow(Variable("x"), [Variable("t")])
        >>> x, t = torch.randn(4), {"t": torch.randn(4)}
        >>> bool((flow(flow.abduct(x, t), t) - x).abs().max() < 1e-5)
        True
    """

    card: ClassVar[Card] = Card(
        name="Conditional normalising flow",
        summary="A node is a monotone map of its noise that its parents shape; inverted exactly.",
        title="Neural Spline Flows",
        authors="Durkan, Conor and Bekasov, Artur and Murray, Iain and Papamakarios, George",
        year=2019,
        url="https://arxiv.org/abs/1906.04032",
        assumptions=("x is monotone in its noise (for several numbers: each given those before)",),
        needs="rows of the node and its parents",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        kind: Shape = "spline",
        transforms: int = 1,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if kind not in get_args(Shape):
            hint = nearest(kind, get_args(Shape))
            raise ValueError(
                f"kind of {variable.name!r} is {kind!r}, not one of {get_args(Shape)}.{hint}"
            )
        if transforms < 1 or bins < 2 or not bound > 0:
            raise ValueError(
                f"the flow of {variable.name!r} needs transforms >= 1, bins >= 2 and bound > 0, "
                f"got {transforms}, {bins}, {bound}"
            )
        self.kind, self.transforms, self.hidden = kind, transforms, tuple(hidden)
        self.bins, self.bound = bins, bound
        self.chain = nn.ModuleList(self._layers())

    def _layers(self) -> list[nn.Module]:
        with validation_kept():
            from zuko.flows import MaskedAutoregressiveTransform
            from zuko.transforms import MonotonicRQSTransform

        size = self.variable.width
        build = partial(
            MaskedAutoregressiveTransform,
            features=size,
            context=sum(p.width for p in self.parents),
            hidden_features=self.hidden,
            activation=nn.SiLU,
        )
        spline = {
            "univariate": partial(MonotonicRQSTransform, bound=self.bound, slope=1e-2),
            "shapes": [(self.bins,), (self.bins,), (self.bins - 1,)],
        }
        splines = self.transforms if self.kind == "spline" else 0
        layers: list[dict[str, Any]] = [{}] * (1 if splines else self.transforms) + [
            spline
        ] * splines
        orders = [torch.arange(size), torch.arange(size).flip(0)]
        built = [build(order=orders[i % 2], **layer) for i, layer in enumerate(layers)]
        with torch.no_grad():  # zuko starts a scalar root far from the identity
            for layer in built:
                for phi in getattr(layer, "phi", ()):
                    phi.mul_(0.1)
        return built

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def _context(self, parents: Parents, rows: int) -> Tensor | None:
        c = context(self, parents, rows)
        return c if self.parents else None

    def _explain(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        check(x, self.variable)
        c = self._context(parents, len(x))
        u, total = x.reshape(len(x), -1).to(self.origin.dtype), self.origin
        for layer in self.chain:
            u, ladj = layer(c).call_and_ladj(u)
            total = total + ladj
        return u.reshape(x.shape), total

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `T_pa(u)`, `(B, *shape)`."""
        check(u, self.variable)
        c = self._context(parents, len(u))
        x = u.reshape(len(u), -1).to(self.origin.dtype)
        for layer in reversed(self.chain):
            x = layer(c).inv(x)
        return x.reshape(u.shape)

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `T_pa^-1(x)`, `(B, *shape)`."""
        return self._explain(x, parents)[0]

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        u, ladj = self._explain(x, parents)
        return self.prior().log_prob(u) + ladj

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}
