r"""Nodes that hold counts: the negative binomial, with a size factor and with extra zeros.

    log m = f(pa) + log size
    P(k) = C(k + t - 1, k) (t / (t + m))^t (m / (t + m))^k,     k = 0, 1, 2, ...

has mean m and variance m + m^2 / t: a Poisson count whose rate is gamma distributed, t -> infinity
a Poisson count. `size` is how much was looked at: a cell's library, a district's inhabitants.

**Noise.** By the inverse CDF, k = #{j : v > F(j)}, v uniform: among the ways to write a count by
its noise, the one that is monotone, a convention which no data can test. v is told by its logit r,
which is logistic, so that both tails keep their digits:

    k = #{j >= 0 : r > c_j},    c_j = log F(j) - log(1 - F(j)),    F(j) = I_{t/(t+m)}(t, j + 1).

Given k, r is logistic within (c_{k-1}, c_k]: exact. The thresholds come from the regularised
incomplete beta function I and its complement in float64; beyond what that holds, a tail is its
first term times a geometric series. Forward finds k by doubling and halving with the same
thresholds as abduction does.

**Extra zeros.** x = d k with d = 1 if w > logit(p), w logistic: a value drops out with probability
p, whatever its count. Given x > 0, w lies above. Given x = 0, it dropped out with probability
p / (p + (1 - p) P(k = 0)), and then r is free; else w lies above and r below c_0. Both are drawn:
the abduction is a draw of the exact posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Noise, Parents, Prior, draw, seeded
from subjunctive.mechanisms.additive import Constant, predictor
from subjunctive.mechanisms.linear import check, check_parents, continuous, stirred
from subjunctive.mechanisms.truncated import LogisticNoise, uniform
from subjunctive.variable import Batch, Variable, as_matrix, known

NOISE = LogisticNoise()


def _example(kind: Callable[..., Density]) -> tuple[Mechanism, Batch]:
    library = Variable("library", loc=8.0, scale=2.0)
    with seeded(0):
        mechanism = stirred(kind(Variable("x", (2,)), [Variable("t"), library], "library"))
        parents = {"t": torch.randn(512), "library": torch.rand(512) - 0.5}
        with torch.no_grad():
            x = mechanism(draw(mechanism.prior(), 512), parents)
    return mechanism, Batch({"x": x, **parents})


def thresholds(
    j: Tensor, mean: Tensor, theta: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the logit of P(k <= j); minus infinity below zero.

    Args:
        j: whole numbers, float64.
        mean, theta: of the negative binomial, of the same shape.
        dtype: of what is returned: that of the noise, which is compared with it.

    Example:
        >>> one = torch.ones(3, dtype=torch.float64)  # P(k <= j) = 1 - 2^-(j+1)
        >>> thresholds(torch.tensor([-1.0, 0.0, 1.0]).double(), one, one).exp().round()
        tensor([0., 1., 3.], dtype=torch.float64)
    """
    from scipy.special import betainc

    j0 = j.clamp(min=0)
    p = theta / (theta + mean)
    a, b, q = (t.detach().cpu().numpy() for t in (theta, j0 + 1, p))
    q_ = (mean / (theta + mean)).detach().cpu().numpy()
    low, high = (torch.from_numpy(t).to(j.device) for t in (betainc(a, b, q), betainc(b, a, q_)))
    # far out both are zero: there the first term and the ratio to its neighbour
    down = (j0 / (j0 + theta - 1).clamp(min=1e-9) / (1 - p)).clamp(max=1 - 1e-9)
    up = ((j0 + 1 + theta) / (j0 + 2) * (1 - p)).clamp(max=1 - 1e-9)
    log_low = torch.where(low > 1e-290, low.log(), log_pmf(j0, mean, theta) - torch.log1p(-down))
    log_high = log_pmf(j0 + 1, mean, theta) - torch.log1p(-up)
    log_high = torch.where(high > 1e-290, high.log(), log_high)
    return (log_low - log_high).masked_fill(j < 0, -torch.inf).to(dtype)


def log_pmf(k: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Return log P(k) of the negative binomial, elementwise; float64 keeps its digits.

    Example:
        >>> log_pmf(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(1.0)).exp()
        tensor(0.1250)
    """
    choose = torch.lgamma(k + theta) - torch.lgamma(theta) - torch.lgamma(k + 1)
    none = -theta * torch.log1p(mean / theta)
    return choose + none + torch.xlogy(k, mean / (theta + mean))


def quantile(r: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Return the least whole number k with r <= c_k, float64, by doubling and halving.

    Args:
        r: logits of uniform noise, whose dtype the thresholds take.
        mean, theta: of the negative binomial, of the same shape.

    Example:
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> quantile(torch.tensor([0.0, 0.1]).double(), one, one)  # c_0 = 0
        tensor([0., 1.], dtype=torch.float64)
    """

    def above(j: Tensor) -> Tensor:
        return r > thresholds(j, mean, theta, r.dtype)

    low, high = torch.full_like(mean, -1.0), mean.ceil()  # c_low < r, and soon r <= c_high
    while bool((short := above(high)).any()):
        low, high = torch.where(short, high, low), torch.where(short, 2 * high + 1, high)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()  # low itself, where nothing lies between
        below = above(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle.clamp(low + 1))
    return high


class NegativeBinomial(Density):
    r"""A node of counts: k = F^-1(v; m, t), `log m = f(pa) + log size`.

    Values are counts, 0, 1, 2, ..., of any shape; the entries' noise is independent.

    Reference: Moderated estimation of fold change and dispersion for RNA-seq data with DESeq2
    (Love, Huber and Anders, 2014), https://doi.org/10.1186/s13059-014-0550-8 (size factors)

    Args:
        variable: the node, continuous; its values are whole numbers in its own unit.
        parents: the parents' variables.
        size: the name of a parent, a positive number in its own unit, to which the mean is
            proportional; None for none.
        network: maps the other parents' matrix `(B, width)` to log m without its size, `(B, D)`; an
            MLP if None.

    Raises:
        KeyError: if the size is no parent.
        ValueError: for a discrete node, values that are no counts, or a size that is not positive.

    Example:
        >>> node, library = Variable("k"), Variable("library", unit="molecules")
        >>> m, x = NegativeBinomial(node, [library], "library"), torch.tensor([0.0, 3.0, 250.0])
        >>> given = {"library": torch.tensor([1.0, 2.0, 100.0])}
        >>> m(m.abduct(x, given), given).tolist()
        [0.0, 3.0, 250.0]
    """

    card: ClassVar[Card] = Card(
        name="Negative binomial mechanism",
        summary="A count by the inverse CDF of one noise, its mean in proportion to a size factor.",
        title="Moderated estimation of fold change and dispersion for RNA-seq data with DESeq2",
        authors="Love, Michael I. and Huber, Wolfgang and Anders, Simon",
        year=2014,
        url="https://doi.org/10.1186/s13059-014-0550-8",
        assumptions=(
            "given the parents, counts are negative binomial of one dispersion an entry",
            "the count is monotone in one noise: a convention, which no data can test",
        ),
        needs="whole numbers from zero, and the parents' values",
        abduction="convention",
        example=lambda: _example(NegativeBinomial),
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        size: str | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        self.size = size
        if size is not None:
            known(size, [p.name for p in self.parents], f"{type(self).__name__}(size=)")
            self.sized = next(p for p in self.parents if p.name == size)
            if self.sized.discrete or self.sized.shape:
                raise ValueError(f"the size {size!r} is {self.sized}; it is to be one number a row")
        self.others = tuple(p for p in self.parents if p.name != size)
        self.network = predictor(self.others, variable.width) if network is None else network
        self.log_theta = nn.Parameter(torch.zeros(variable.shape))

    def run(self, network: nn.Module, parents: Parents, rows: int) -> Tensor:
        """Run a network on the parents other than the size; return `(rows, D)`."""
        check_parents(self, parents, rows)
        matrix = self.origin.new_zeros(rows, 0)
        if self.others:
            matrix = as_matrix(parents, self.others).to(self.origin.dtype)
        found: Tensor = network(matrix)
        if found.shape != (rows, self.variable.width):
            raise ValueError(
                f"a network of {self.variable.name!r} gave {tuple(found.shape)}, not the "
                f"{(rows, self.variable.width)} that its counts need; change its outputs"
            )
        return found

    def rates(self, parents: Parents, rows: int) -> tuple[Tensor, Tensor]:
        """Return mean and theta, `(rows, *shape)` each, float64."""
        log_mean = self.run(self.network, parents, rows).double()
        if self.size is not None:
            size = self.sized.restore(parents[self.size].double())
            if not bool((size > 0).all()):
                raise ValueError(
                    f"the size {self.size!r} of {self.variable.name!r} is {float(size.min()):.3g} "
                    "in a row; it is to be positive, in its own unit: not its logarithm"
                )
            log_mean = log_mean + size.log()[:, None]
        mean = log_mean.clamp(-20.0, 20.0).exp().reshape(rows, *self.variable.shape)
        return mean, self.log_theta.double().clamp(-10.0, 10.0).exp().expand_as(mean)

    def prior(self) -> Prior:
        """Return independent standard logistics, the logits of uniform noise."""
        return NOISE.prior(self.origin.expand(self.variable.shape))

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return counts `(B, *shape)`, standardised."""
        check(u, self.variable)
        with torch.no_grad():  # a count has no gradient
            k = quantile(u, *self.rates(parents, len(u)))
        return self.variable.standardise(k).to(self.origin.dtype)

    def whole(self, x: Tensor) -> Tensor:
        """Return the counts that standardised values stand for, float64, after checking them."""
        raw = self.variable.restore(check(x, self.variable).double())
        k = raw.round()
        slack = 1e-6 * (abs(self.variable.loc) + raw.abs()) + 1e-5 * self.variable.scale + 1e-9
        off = ~((raw - k).abs() <= slack) | (k < 0)
        if bool(off.any()):
            raise ValueError(
                f"{self.variable.name!r} holds counts, 0, 1, 2, ...; {int(off.sum())} of "
                f"{off.numel()} values are none, {float(raw[off][0]):g} for one. Give raw counts, "
                "not normalised ones, or another mechanism"
            )
        return k

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return logistic noise within the cell of every count, `(B, *shape)`."""
        k = self.whole(x)
        with torch.no_grad():
            rates = self.rates(parents, len(k))
            ends = (thresholds(j, *rates, self.origin.dtype) for j in (k - 1, k))
            return NOISE.between(*ends)

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log P(x | pa), `(B,)`, in nats."""
        k = self.whole(x)
        found = log_pmf(k, *self.rates(parents, len(k)))
        return found.reshape(len(k), -1).sum(1).to(self.origin.dtype)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}


class ZeroInflated(Density):
    r"""Counts that may drop out: x = k where w > logit(p), else 0.

    Reference: Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing
    (Lambert, 1992), https://doi.org/10.2307/1269547

    Args:
        counts: the mechanism of the counts that would be there.
        network: maps its parents' matrix, without the size, to logit(p) `(B, D)`; one number an
            entry, whatever the parents, if None.

    Example:
        >>> node = Variable("k", (2,))
        >>> m, x = ZeroInflated(NegativeBinomial(node)), torch.tensor([[0.0, 3.0], [2.0, 0.0]])
        >>> u = m.abduct(x, {})
        >>> sorted(u), m(u, {}).tolist()
        (['count', 'drop'], [[0.0, 3.0], [2.0, 0.0]])
    """

    card: ClassVar[Card] = Card(
        name="Zero-inflated negative binomial mechanism",
        summary="A count that drops out to zero by a noise of its own, or is negative binomial.",
        title="Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing",
        authors="Lambert, Diane",
        year=1992,
        url="https://doi.org/10.2307/1269547",
        assumptions=(
            "whether a count drops out does not depend on what it would have been",
            "the count is monotone in one noise, and so is the drop: a convention",
        ),
        needs="whole numbers from zero, more zeros than a negative binomial has",
        abduction="convention",
        example=lambda: _example(lambda *a: ZeroInflated(NegativeBinomial(*a))),
    )

    def __init__(self, counts: NegativeBinomial, network: nn.Module | None = None) -> None:
        super().__init__(counts.variable, counts.parents)
        self.counts = counts
        self.network = Constant(counts.variable.width) if network is None else network

    def logit(self, parents: Parents, rows: int) -> Tensor:
        """Return the logit of the probability of dropping out, `(rows, *shape)`."""
        return self.counts.run(self.network, parents, rows).reshape(rows, *self.variable.shape)

    def prior(self) -> Prior:
        """Return independent standard logistics for counts and drops."""
        return {"count": self.counts.prior(), "drop": self.counts.prior()}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return counts `(B, *shape)`, standardised, zero where they dropped out."""
        x = self.counts(u["count"], parents)
        kept = check(u["drop"], self.variable) > self.logit(parents, len(x))
        return torch.where(kept, x, self.variable.standardise(torch.zeros_like(x)))

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of both noises: whether a zero dropped out is drawn by its probability."""
        k = self.counts.whole(x)
        with torch.no_grad():
            rates, cut = self.counts.rates(parents, len(k)), self.logit(parents, len(k))
            odds = cut - log_pmf(torch.zeros_like(k), *rates).to(cut.dtype)  # dropped or not, at 0
            dropped = (k == 0) & (uniform(odds).logit() < odds)
            low, high = (thresholds(j, *rates, cut.dtype) for j in (k - 1, k))
            count = NOISE.between(
                torch.where(dropped, -torch.inf, low), torch.where(dropped, torch.inf, high)
            )
            drop = NOISE.between(
                torch.where(dropped, -torch.inf, cut), torch.where(dropped, cut, torch.inf)
            )
        return {"count": count, "drop": drop}

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log P(x | pa), `(B,)`, in nats."""
        k = self.counts.whole(x)
        cut = self.logit(parents, len(k)).double()
        kept = F.logsigmoid(-cut) + log_pmf(k, *self.counts.rates(parents, len(k)))
        found = torch.where(k == 0, torch.logaddexp(F.logsigmoid(cut), kept), kept)
        return found.reshape(len(k), -1).sum(1).to(self.origin.dtype)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}
