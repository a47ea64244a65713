r"""Regression on random features, with noise of any shape, fitted in closed form.

    x = w . phi(pa) + b + s g(u),   u ~ N(0, 1),   phi(pa) = [m(pa), silu(V m(pa) + c)]

V and c are drawn once: directions at random, steepness from 1/2 to 8, each hinge at a row of the
data. Then w, b is a ridge regression, whose penalty minimises the generalised cross-validation

    GCV(penalty) = RSS / n / (1 - df / n)^2,      df = sum_k l_k / (l_k + penalty),

l_k the eigenvalues of the features' scatter. The noise's shape g is piecewise linear and monotone:
its knots map quantiles of the normal law to those of the residuals, its tails go on with the slope
that makes the rows beyond most likely. Where this does not pay for its numbers (BIC), g(u) = u.
All is exact: `u = g^-1((x - w . phi - b) / s)`, and `log p(x | pa) = log N(u) - log g'(u) - log s`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.linear import check, context, continuous, own_samples
from subjunctive.variable import Batch, Variable

ROWS = 4096  # whose features are in memory at once, while solving
STEEPNESS = (0.5, 8.0)
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-12, 3))  # a row
EACH = 20  # rows a piece of the noise's shape needs
STEEPEST = 100.0  # slopes beyond it, or below 1 / it, are those of repeated values


def _example() -> tuple[Mechanism, Batch]:
    site = Variable("site", kind="ordinal", categories=("low", "mid", "high"))
    with seeded(0):
        mechanism = Ridge(Variable("x", shape=(2,)), [Variable("dose"), site], features=16, bins=4)
        dose, u = torch.randn(512), torch.randn(512, 2).exp()
        x = torch.stack([dose.square(), dose.sin()], 1) + 0.3 * u
        mechanism.solve(x, {"dose": dose, "site": torch.randint(3, (512,))})
    return mechanism, own_samples(mechanism)


class Ridge(Density):
    r"""A smooth function of the parents plus noise of any shape, fitted without gradients.

    It is fitted in milliseconds by `solve`, which `TabularSCM` calls; gradients (`fit`) may refine
    its weights afterwards. Features and the noise's shape are kept, but not trained.

    Reference:
        Weighted Sums of Random Kitchen Sinks: Replacing minimization with randomization in learning
        (Rahimi and Recht, 2008), https://papers.nips.cc/paper/3495; the penalty: Generalized
        Cross-Validation as a Method for Choosing a Good Ridge Parameter (Golub, Heath and Wahba,
        1979), https://doi.org/10.1080/00401706.1979.10489751

    Args:
        variable: the node, continuous, of any shape; the noise of its entries is independent.
        parents: the parents' variables.
        features: how many random features of the parents there are.
        bins: pieces of the noise's shape; 1 for a Gaussian.

    Raises:
        ValueError: for a discrete node, or counts below one.

    Example:
        >>> m, t = Ridge(Variable("x"), [Variable("t")]), torch.linspace(-2, 2, 200)
        >>> m.solve(t.square(), {"t": t})
        >>> m(torch.zeros(2), {"t": torch.tensor([0.0, 1.5])}).round(decimals=2).abs().tolist()
        [0.0, 2.25]
    """

    card: ClassVar[Card] = Card(
        name="Ridge regression on random features",
        summary="A smooth function of the parents plus noise of any shape, fitted in closed form.",
        title="Weighted Sums of Random Kitchen Sinks: Replacing minimization with randomization "
        "in learning",
        authors="Rahimi, Ali and Recht, Benjamin",
        year=2008,
        url="https://papers.nips.cc/paper/3495",
        assumptions=("the noise is added to a smooth function of the parents",),
        needs="rows of the node and its parents",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        features: int = 128,
        bins: int = 16,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if features < 1 or bins < 1:
            raise ValueError(
                f"{variable.name!r} needs at least one feature and one bin, got features="
                f"{features}, bins={bins}"
            )
        self.features, self.bins = features, bins
        size, width = variable.width, sum(p.width for p in self.parents)
        low, high = map(math.log, STEEPNESS)
        steep = (low + (high - low) * torch.rand(features)).exp()
        drawn = nn.functional.normalize(torch.randn(width, features), dim=0) * steep
        self.directions: Tensor
        self.centres: Tensor
        self.register_buffer("directions", drawn)
        self.register_buffer("centres", torch.randn(features, width))
        self.weight = (
            nn.Parameter(torch.randn(width + features, size) / features) if width else None
        )
        self.bias = nn.Parameter(torch.zeros(size))
        self.log_scale = nn.Parameter(torch.zeros(size))
        normal = torch.special.ndtri(torch.arange(1, bins, dtype=torch.float64) / bins)
        self.normal: Tensor  # the knots in u, those in g(u), and the slopes of g^-1 around them
        self.knots: Tensor
        self.slopes: Tensor
        self.register_buffer("normal", normal.to(torch.get_default_dtype()).repeat(size, 1))
        self.register_buffer("knots", self.normal.clone())
        self.register_buffer("slopes", torch.ones(size, bins))

    def _phi(self, c: Tensor) -> Tensor:
        shift = (self.centres.T * self.directions).sum(0).to(c)
        return torch.cat([c, nn.functional.silu(c @ self.directions.to(c) - shift)], 1)

    def _mean(self, parents: Parents, rows: int) -> Tensor:
        if self.weight is None:
            return self.bias.expand(rows, -1)
        return self._phi(context(self, parents, rows)) @ self.weight + self.bias

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `w . phi(pa) + b + s g(u)`, `(B, *shape)`."""
        flat = check(u, self.variable).reshape(len(u), -1)
        shaped = _bend(flat, self.normal, self.knots, 1 / self.slopes)[0]
        return (self._mean(parents, len(u)) + self.log_scale.exp() * shaped).reshape(u.shape)

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `g^-1((x - w . phi(pa) - b) / s)`, `(B, *shape)`."""
        return self._explain(x, parents)[0].reshape(x.shape)

    def _explain(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        """Return u and the slopes of g^-1, `(B, D)` each."""
        flat = check(x, self.variable).reshape(len(x), -1)
        rest = (flat - self._mean(parents, len(x))) * (-self.log_scale).exp()
        return _bend(rest, self.knots, self.normal, self.slopes)

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        u, slopes = self._explain(x, parents)
        return self.prior().log_prob(u.reshape(x.shape)) + (slopes.log() - self.log_scale).sum(1)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}

    @torch.no_grad()
    def solve(self, x: Tensor, parents: Parents) -> None:
        """Fit the weights by ridge regression and the noise's shape to what is left, in place.

        Args:
            x: standardised values `(B, *shape)`.
            parents: theirs, `(B, ...)` each.
        """
        y = check(x, self.variable).reshape(len(x), -1).double()
        mean, left = y.mean(0), y.new_ones(())
        rest = y - mean
        if self.weight is not None:
            c = context(self, parents, len(x)).double()
            at = torch.linspace(0, len(c) - 1, self.features, device=c.device).long()
            self.centres.copy_(c[at])
            weight, middle, left = _ridge(lambda: map(self._phi, c.split(ROWS)), rest)
            rest -= torch.cat([(f - middle) @ weight for f in map(self._phi, c.split(ROWS))])
            self.weight.copy_(weight)
            mean = mean - middle @ weight
        self.bias.copy_(mean)
        scale = rest.square().mean(0).sqrt().clamp(min=1e-6)
        for d, column in enumerate((rest / scale).T):
            self.knots[d], self.slopes[d] = _shape(column, self.normal[d].double())
        self.log_scale.copy_(scale.log() - left.log() / 2)


def _bend(value: Tensor, knots: Tensor, to: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Map `(B, D)` by the lines through (knots, to), `(D, K)`; return it and the slopes there."""
    if not knots.numel():
        return value * slopes[:, 0], slopes[:, 0].expand_as(value)
    piece = torch.searchsorted(knots, value.detach().T.contiguous())  # (D, B), 0 to K
    near = (piece - 1).clamp(min=0)
    slope = slopes.gather(1, piece).T
    return to.gather(1, near).T + slope * (value - knots.gather(1, near).T), slope


def _ridge(blocks: Callable[[], Iterable[Tensor]], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regress on features that come in blocks of rows, each output with a penalty of its own.

    Args:
        blocks: gives the features `(rows, F)`, block by block.
        y: `(B, D)`, of mean zero.

    Returns:
        the weights `(F, D)`, the features' means `(F,)`, and the share of degrees of freedom that
        the fit left, `(D,)`.
    """
    n, start = len(y), 0
    total = scatter = product = y.new_zeros(())
    for f in blocks():
        total, scatter = total + f.sum(0), scatter + f.T @ f
        product, start = product + f.T @ y[start : start + len(f)], start + len(f)
    middle = total / n
    values, vectors = torch.linalg.eigh(scatter - n * torch.outer(middle, middle))
    values, inner = values.clamp(min=0), (vectors.T @ product)[..., None]  # (F,), (F, D, 1)
    penalties = n * y.new_tensor(PENALTIES)
    shrunk = values[:, None] / (values[:, None] + penalties)  # (F, P)
    left = (1 - shrunk.sum(0) / n).clamp(min=1 / n)
    gain = inner.square() * (1 - (1 - shrunk).square())[:, None]
    gain = (gain / values.clamp(min=1e-12 * n)[:, None, None]).sum(0)  # (D, P)
    gcv = (y.square().sum(0)[:, None] - gain).clamp(min=0) / left**2
    best = gcv.argmin(1)
    return vectors @ (inner[..., 0] / (values[:, None] + penalties[best])), middle, left[best]


def _shape(rest: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the knots and slopes of a noise's shape, those of a Gaussian where it does not pay.

    Args:
        rest: standardised residuals `(B,)`.
        normal: the normal law's quantiles at 1 / K, ..., (K - 1) / K.
    """
    n, bins = len(rest), len(normal) + 1
    plain = normal, rest.new_ones(bins)
    if bins == 1 or n < EACH * bins:
        return plain
    ordered = rest.sort().values
    cuts = torch.arange(1, bins, device=rest.device) * n // bins
    knots = ordered[cuts]
    first = _tail(ordered[: cuts[0]] - knots[0], normal[0])
    last = _tail(ordered[cuts[-1] :] - knots[-1], normal[-1])
    slopes = torch.cat([first, normal.diff() / knots.diff(), last])
    if not bool(((slopes > 1 / STEEPEST) & (slopes < STEEPEST)).all()):
        return plain
    u, steep = _bend(rest[:, None], knots[None], normal[None], slopes[None])
    gain = (steep.log() - u.square() / 2 + rest[:, None].square() / 2).sum()
    return (knots, slopes) if float(gain) > bins / 2 * math.log(n) else plain


def _tail(beyond: Tensor, edge: Tensor) -> Tensor:
    """Return the slope b that maximises sum log N(edge + b d) + log b over the rows d, `(1,)`."""
    first, second = edge * beyond.sum(), beyond.square().sum()
    return ((first.square() + 4 * len(beyond) * second).sqrt() - first)[None] / (2 * second)
