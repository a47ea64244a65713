r"""Mechanisms of categories: Gumbel-max for unordered ones, the inverse CDF for ordered ones.

**Categorical.** `x = argmax_k [l_k(pa) + u_k]` with u_k ~ Gumbel(0, 1) has P(x = k) = softmax(l)_k.
Given x, with l normalised, the largest sum Z is Gumbel(0, 1) whatever x is; the others are Gumbels
of location l_k cut off at Z: `-log(e^-Z + e^-G_k)`, G_k ~ Gumbel(l_k) (top-down construction). No
data tell this noise from another with the same probabilities: Gumbel-max is counterfactually stable
(a category does not win because it became less likely), a convention all the same.

**Ordinal.** `P(x <= k) = F_k = 1 / (1 + e^(eta(pa) - c_k))` with cuts c_0 < c_1 < ...; the inverse
CDF is `x = #{k : v > F_k}`, v uniform. Its logit u = log [v / (1 - v)] is logistic and keeps its
digits in the tails: `x = #{k : u > c_k - eta}`. Raising eta never lowers x. Given x, u is logistic
within the cell of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Gumbel, Independent, constraints
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.additive import outcome, predictor
from subjunctive.mechanisms.linear import check, own_samples, stirred
from subjunctive.variable import Batch, Variable


def _example(kind: type[Mechanism], node: Variable) -> tuple[Mechanism, Batch]:
    parents = [Variable("t"), Variable("arm", kind="categorical", categories=("a", "b"))]
    with seeded(0):
        mechanism = kind(node, parents)
    return stirred(mechanism), own_samples(mechanism)


def _categorical_example() -> tuple[Mechanism, Batch]:
    blood = Variable("x", kind="categorical", categories=("0", "A", "B", "AB"))
    return _example(Categorical, blood)


def _ordinal_example() -> tuple[Mechanism, Batch]:
    stage = Variable("x", kind="ordinal", categories=("none", "mild", "severe", "fatal"))
    return _example(Ordinal, stage)


def _uniform(like: Tensor) -> Tensor:
    """Draw from (0, 1), both ends excluded, of the shape and dtype of `like`."""
    info = torch.finfo(like.dtype)
    return torch.rand_like(like).clamp(info.tiny, 1 - info.eps)


class Categorical(Density):
    r"""A node of unordered categories, chosen by Gumbel-max: `x = argmax_k [l_k(pa) + u_k]`.

    Reference:
        Counterfactual Off-Policy Evaluation with Gumbel-Max Structural Causal Models (Oberst and
        Sontag, 2019), https://arxiv.org/abs/1905.05824

    Args:
        variable: the node, of K categories.
        parents: the parents' variables.
        network: maps the parents' matrix `(B, width)` to logits `(B, K)`; an MLP if None.

    Raises:
        ValueError: for a continuous node.

    Example:
        >>> arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
        >>> m, x = Categorical(arm), torch.tensor([0, 1, 1])
        >>> m(m.abduct(x, {}), {})
        tensor([0, 1, 1])
    """

    card: ClassVar[Card] = Card(
        name="Gumbel-max categorical mechanism",
        summary="A category wins if its log-probability plus its own Gumbel noise is the largest.",
        title="Counterfactual Off-Policy Evaluation with Gumbel-Max Structural Causal Models",
        authors="Oberst, Michael and Sontag, David",
        year=2019,
        url="https://arxiv.org/abs/1905.05824",
        assumptions=(
            "counterfactual stability: no category wins because it became less likely; rung-3 "
            "answers about categories rest on this convention, which no data can test",
        ),
        needs="rows of the node and its parents",
        abduction="convention",
        example=_categorical_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(variable, parents)
        _discrete(self)
        self.network = predictor(self.parents, variable.width) if network is None else network

    def logits(self, parents: Parents, rows: int) -> Tensor:
        """Return log P(x = k | pa), `(rows, K)`."""
        out = outcome(self, self.network, parents, (rows, self.variable.width))
        return out.log_softmax(dim=1)

    def prior(self) -> Distribution:
        """Return K independent standard Gumbels."""
        zero = self.origin.expand(self.variable.width)
        return Independent(Gumbel(zero, torch.ones_like(zero), validate_args=False), 1)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `argmax_k [l_k(pa) + u_k]`, codes `(B,)`."""
        if tuple(u.shape[1:]) != (self.variable.width,):
            raise ValueError(
                f"the noise of {self.variable.name!r} is (B, {self.variable.width}), "
                f"got {tuple(u.shape)}"
            )
        return (self.logits(parents, len(u)) + u).argmax(dim=1)

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return a draw of the Gumbels given that x won, `(B, K)`."""
        check(x, self.variable)
        logits = self.logits(parents, len(x))
        wins = F.one_hot(x.long(), self.variable.width).bool()
        top = -(-_uniform(logits[:, :1]).log()).log()
        gumbel = logits - (-_uniform(logits).log()).log()
        sums = torch.where(wins, top, -torch.logaddexp(-top, -gumbel))
        u = sums - logits
        # Rounding may let a near-tie win: push those that came within a few ulps below the winner.
        winner = (logits + u).masked_fill(~wins, -torch.inf).amax(dim=1, keepdim=True)
        slack = 8 * torch.finfo(u.dtype).eps * (1 + winner.abs() + logits.abs())
        return torch.where(wins, u, u - (logits + u - winner + slack).clamp(min=0))

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log P(x | pa), `(B,)`, in nats."""
        check(x, self.variable)
        return self.logits(parents, len(x)).gather(1, x.long()[:, None])[:, 0]

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the cross-entropy, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}


class Logistic(Distribution):
    """The standard logistic distribution, whose CDF is the sigmoid.

    Args:
        origin: a zero, whose device and dtype the draws take.

    Example:
        >>> Logistic(torch.zeros(())).log_prob(torch.tensor(0.0)).exp()
        tensor(0.2500)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, origin: Tensor) -> None:
        super().__init__(validate_args=False)
        self.origin = origin

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of the given shape."""
        v = _uniform(self.origin.expand(sample_shape))
        return v.log() - torch.log1p(-v)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, of the value's shape."""
        return -F.softplus(value) - F.softplus(-value)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the sigmoid of the value."""
        return value.sigmoid()


class Ordinal(Density):
    r"""A node of ordered categories with proportional odds: `x = #{k : u > c_k - eta(pa)}`.

    Reference:
        Regression Models for Ordinal Data (McCullagh, 1980), https://www.jstor.org/stable/2984952

    Args:
        variable: the node, of K ordered categories.
        parents: the parents' variables.
        network: maps the parents' matrix `(B, width)` to eta `(B, 1)`; an MLP if None.

    Raises:
        ValueError: for a continuous node.

    Example:
        >>> stage = Variable("stage", kind="ordinal", categories=("I", "II", "III"))
        >>> m, x = Ordinal(stage), torch.tensor([0, 2, 1])
        >>> m(m.abduct(x, {}), {})
        tensor([0, 2, 1])
    """

    card: ClassVar[Card] = Card(
        name="Proportional-odds ordinal mechanism",
        summary="An ordered category is the inverse CDF of one uniform noise; parents shift it.",
        title="Regression Models for Ordinal Data",
        authors="McCullagh, Peter",
        year=1980,
        url="https://www.jstor.org/stable/2984952",
        assumptions=(
            "the parents multiply the odds of exceeding any category alike (proportional odds)",
            "the category is monotone in one noise: a convention, which no data can test",
        ),
        needs="rows of the node and its parents",
        abduction="convention",
        example=_ordinal_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(variable, parents)
        _discrete(self)
        self.network = predictor(self.parents, 1) if network is None else network
        even = torch.linspace(0, 1, variable.width + 1)[1:-1].logit()
        steps = even.diff().clamp(min=1e-2)
        self.first = nn.Parameter(even[:1].clone())
        self.steps = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))

    @property
    def cuts(self) -> Tensor:
        """The cut points c_0 < c_1 < ..., `(K - 1,)`, ordered by construction."""
        return torch.cat([self.first, self.first + (F.softplus(self.steps) + 1e-3).cumsum(0)])

    def eta(self, parents: Parents, rows: int) -> Tensor:
        """Return what the parents add to the noise, `(rows, 1)`."""
        return outcome(self, self.network, parents, (rows, 1))

    def prior(self) -> Distribution:
        """Return the standard logistic."""
        return Logistic(self.origin)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `#{k : u > c_k - eta(pa)}`, codes `(B,)`."""
        if u.dim() != 1:
            raise ValueError(f"the noise of {self.variable.name!r} is (B,), got {tuple(u.shape)}")
        return (u[:, None] > self.cuts - self.eta(parents, len(u))).sum(dim=1)

    def _cell(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        check(x, self.variable)
        ends = F.pad(self.cuts - self.eta(parents, len(x)), (1, 0), value=-torch.inf)
        ends = F.pad(ends, (0, 1), value=torch.inf)
        code = x.long()[:, None]
        return ends.gather(1, code)[:, 0], ends.gather(1, code + 1)[:, 0]

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return a draw of the logistic noise within the cell of x, `(B,)`."""
        low, high = self._cell(x, parents)
        # Work in the lower tail, where probabilities keep their digits: the logistic is symmetric.
        flip = low > 0
        a, b = torch.where(flip, -high, low).sigmoid(), torch.where(flip, -low, high).sigmoid()
        info = torch.finfo(a.dtype)
        v = (a + (b - a) * _uniform(a)).clamp(info.tiny, 1 - info.eps)
        u = v.log() - torch.log1p(-v)
        u = torch.where(flip, -u, u)
        return torch.minimum(torch.maximum(u, low.nextafter(high)), high)

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `log [F_x - F_(x-1)]`, `(B,)`, in nats."""
        low, high = self._cell(x, parents)
        return F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the cross-entropy, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}


def _discrete(mechanism: Mechanism) -> None:
    if not mechanism.variable.discrete:
        raise ValueError(
            f"{type(mechanism).__name__} needs a node of categories; "
            f"{mechanism.variable.name!r} is continuous: name its kind and categories"
        )
