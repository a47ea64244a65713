r"""One mechanism at several nodes: a transition shared by all time slices.

Unrolled in time, a stationary process has the same equation in every slice,

    x[t] = f(u[t], x[t-1], a[t-1])   for all t,   with u[t] independent,

so one mechanism, with one set of parameters, stands at x[1], x[2], ...; parents match by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Noise, Parents, Prior, parts
from subjunctive.mechanisms.linear import LinearGaussian, check, check_parents, own_samples
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    act = Variable("a[0]", kind="categorical", categories=("rest", "run"))
    transition = LinearGaussian.of(
        Variable("x[1]"), [Variable("x[0]"), act], weights=[0.7, -0.5, 1.0], bias=0.2, scale=0.6
    )
    mechanism = Tied(transition, Variable("x[2]"), [Variable("x[1]"), act.rename("a[1]")])
    return mechanism, own_samples(mechanism)


class Tied(Mechanism):
    """A mechanism that stands at another node with the same parameters.

    Reference:
        Dynamic Bayesian Networks: Representation, Inference and Learning (Murphy, 2002),
        https://www.cs.ubc.ca/~murphyk/Thesis/thesis.html

    Args:
        mechanism: what is shared; it may stand at a node of its own, too.
        variable: the other node, alike but for its name.
        parents: its parents, alike and in the order of the mechanism's.

    The result is a `Density` if the mechanism is.

    Raises:
        ValueError: if a variable differs from the one it stands in for.

    Example:
        >>> step = LinearGaussian.of(Variable("x[1]"), [Variable("x[0]")], weights=[2.0])
        >>> again = Tied(step, Variable("x[2]"), [Variable("x[1]")])
        >>> isinstance(again, Density), next(again.parameters()) is next(step.parameters())
        (True, True)
    """

    card: ClassVar[Card] = Card(
        name="Tied mechanism",
        summary="One mechanism, with one set of parameters, at several nodes of an unrolled graph.",
        title="Dynamic Bayesian Networks: Representation, Inference and Learning",
        authors="Murphy, Kevin P.",
        year=2002,
        url="https://www.cs.ubc.ca/~murphyk/Thesis/thesis.html",
        assumptions=("the equation is the same at every node that shares it (stationarity)",),
        needs="what the shared mechanism needs",
        example=_example,
    )

    def __init__(
        self, mechanism: Mechanism, variable: Variable, parents: Sequence[Variable] = ()
    ) -> None:
        super().__init__(variable, parents)
        self.mechanism = mechanism
        # What is shared decides what this is, so that `isinstance` tells the truth.
        if isinstance(mechanism, Density):
            self.__class__ = TiedDensity
        if len(self.parents) != len(mechanism.parents):
            raise ValueError(
                f"{variable.name!r} has {len(self.parents)} parents, the mechanism tied to it "
                f"{len(mechanism.parents)}; they are matched by position"
            )
        pairs = zip(
            (variable, *self.parents), (mechanism.variable, *mechanism.parents), strict=True
        )
        for ours, theirs in pairs:
            for field in ("shape", "kind", "categories", "loc", "scale"):
                a, b = getattr(ours, field), getattr(theirs, field)
                if a != b:
                    raise ValueError(
                        f"{ours.name!r} stands in for {theirs.name!r}, but their {field} differs "
                        f"({a!r}, {b!r}); make it by Variable.rename"
                    )

    def _rename(self, parents: Parents, rows: int) -> dict[str, Tensor]:
        check_parents(self, parents, rows)
        pairs = zip(self.parents, self.mechanism.parents, strict=True)
        return {theirs.name: parents[ours.name] for ours, theirs in pairs}

    def prior(self) -> Prior:
        """Return the density of the shared mechanism's noise."""
        return self.mechanism.prior()

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x from this node's own noise and parents, `(B, *shape)`."""
        x: Tensor = self.mechanism(u, self._rename(parents, len(next(parts(u))[1])))
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of this node's noise."""
        check(x, self.variable)
        return self.mechanism.abduct(x, self._rename(parents, len(x)))

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the shared mechanism's terms at this node."""
        check(x, self.variable)
        return self.mechanism.loss(x, self._rename(parents, len(x)))


class TiedDensity(Tied, Density):
    """A tied mechanism whose conditional density is known; `Tied(...)` makes it."""

    mechanism: Density

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        check(x, self.variable)
        return self.mechanism.log_prob(x, self._rename(parents, len(x)))
