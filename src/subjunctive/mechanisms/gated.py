r"""Gates over candidate parents: a node whose parents are learned with its mechanism.

    x = f(u, g_1 m(pa_1), ..., g_k m(pa_k)),     g_j ~ Bernoulli(p_j) in training, one a row,

with m(pa_j) the columns of a candidate parent. A gate is open or shut, never half open, so that f
cannot make good by its weights what a gate has shrunk: p_j is the probability of the edge j -> x.
The expected loss L(p) = E_g[-log p(x | g o pa)] is linear in each p_j, with the slope

    dL / dp_j  =  E[-log p with g_j = 1]  -  E[-log p with g_j = 0]  =  - what j is worth,

in nats a row. With a price a row for every edge, p_j goes to 1 where the parent is worth more and
to 0 where it is worth less. The slope is that difference, not a derivative in g, which no network
has learned; it is estimated without bias from two draws g, g' a row (leave-one-out):

    grad L  =  E[ (l(g) - l(g')) / 2  grad (log q(g) - log q(g')) ],    l = -log p(x | g o pa)

In evaluation a gate is open where p > 1/2: the mechanism is then an ordinary one, deterministic
given u.

Reference: Masked Gradient-Based Causal Structure Learning (Ng, Zhu, Fang, Li, Chen and Wang, 2022),
https://arxiv.org/abs/1910.08527; the estimate: Buy 4 REINFORCE Samples, Get a Baseline for Free!
(Kool, van Hoof and Welling, 2019), https://openreview.net/forum?id=r1lgTGL5DE
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.encoders.reordered import fitting
from subjunctive.graph import Graph
from subjunctive.mechanism import Density, Mechanism, Noise, Parents, Prior, parts, seeded
from subjunctive.mechanisms.additive import AdditiveNoise
from subjunctive.mechanisms.discrete import Categorical, Ordinal
from subjunctive.mechanisms.linear import check_parents, own_samples, stirred
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable, as_matrix, known

# a logit is five times its parameter: Adam moves both alike, and a gate has far to go
SPEED = 5.0


def _example() -> tuple[Mechanism, Batch]:
    site = Variable("site", kind="categorical", categories=("a", "b", "c"))
    candidates = [Variable("dose"), site, Variable("pair", (2,))]
    with seeded(0):
        mechanism = Gated.of(Variable("x"), candidates, AdditiveNoise, start=0.9)
    return stirred(mechanism, 0.05), own_samples(mechanism)


def twice(value: Tensor) -> Tensor:
    """Return rows, and the same rows again."""
    return torch.cat([value, value])


def leave_one_out(value: Tensor, chance: Tensor) -> Tensor:
    """Return the mean of two draws a row, whose gradient knows how the draws were made.

    Args:
        value: of both draws, `(2 B,)`.
        chance: their log-probabilities, `(2 B,)`.

    Example:
        >>> logit = torch.zeros(1, requires_grad=True)
        >>> drawn = torch.bernoulli(torch.full((200_000,), 0.5))
        >>> chance = torch.where(drawn > 0, logit.sigmoid().log(), (-logit).sigmoid().log())
        >>> leave_one_out(3 * drawn, chance).mean().backward()  # E = 3 sigmoid(logit)
        >>> bool((logit.grad - 0.75).abs() < 0.02)
        True
    """
    (a, b), (p, q) = value.chunk(2), chance.chunk(2)
    score = (a - b).detach() / 2 * (p - q)
    return (a + b) / 2 + score - score.detach()


def columns(parents: Iterable[Variable]) -> list[Variable]:
    """Return what a gated mechanism's own mechanism sees: every parent as a vector of columns.

    >>> [(v.name, v.shape) for v in columns([Variable("t"), Variable("pair", (2,))])]
    [('t', (1,)), ('pair', (2,))]
    """
    return [Variable(p.name, (p.width,)) for p in parents]


class Gated(Density):
    """A mechanism that learns which of its candidate parents it needs.

    Reference: Masked Gradient-Based Causal Structure Learning (Ng, Zhu, Fang, Li, Chen and Wang,
    2022), https://arxiv.org/abs/1910.08527

    Args:
        mechanism: of the same variable, with the parents `columns(candidates)`; a `Density`.
        parents: candidates that have a gate; the mechanism's other parents are held at zero.
        start: the gates' probability at the start; 1 for parents that are decided, whose gates
            stay open and are not learned.

    Raises:
        ValueError: if the mechanism is no density, has not these parents as columns, or `start` is
            no probability above 0.

    Example:
        >>> mechanism = Gated.of(Variable("x"), [Variable("a"), Variable("b")])
        >>> mechanism.probabilities()
        {'a': 0.75, 'b': 0.75}
    """

    def __init__(
        self, mechanism: Mechanism, parents: Sequence[Variable] = (), start: float = 0.75
    ) -> None:
        super().__init__(mechanism.variable, parents)
        if not isinstance(mechanism, Density):
            raise ValueError(
                f"gates weigh a parent by what it is worth in likelihood; the "
                f"{type(mechanism).__name__} of {mechanism.variable.name!r} has no density"
            )
        if not 0 < start <= 1:
            raise ValueError(
                f"the gates of {mechanism.variable.name!r} start at {start}; give a probability "
                "above 0, or 1 to leave them open"
            )
        need = {v.name: v for v in columns(self.parents)}
        have = {v.name: v for v in mechanism.parents}
        for name, variable in need.items():
            known(name, have, f"the mechanism behind the gates of {mechanism.variable.name!r}")
            if have[name] != variable:
                raise ValueError(
                    f"the mechanism behind the gates of {mechanism.variable.name!r} takes "
                    f"{have[name]}; a gate gives it {variable}: build it on columns(parents)"
                )
        self.mechanism: Density = mechanism
        self.start = start
        self.held = False  # by `hold`: gates are drawn, but pass no gradient
        raw = torch.full((len(self.parents),), math.log(start / (1 - start)) / SPEED if start < 1
                         else math.inf)  # fmt: skip
        learned = start < 1 and len(self.parents) > 0
        self.raw = nn.Parameter(raw) if learned else None

    @classmethod
    def of(
        cls,
        variable: Variable,
        candidates: Sequence[Variable] = (),
        kind: Any = None,
        start: float = 0.75,
        **options: Any,
    ) -> Gated:
        """Build the mechanism behind the gates, too.

        Args:
            variable, candidates: the node's and its candidate parents'.
            kind: the class of the mechanism, called with the variable and its parents; by default
                `AdditiveNoise` whose scale follows the parents, `Categorical` or `Ordinal`.
            start: the gates' probability at the start.
            options: for the mechanism.
        """
        if kind is None and not variable.discrete:
            kind, options = AdditiveNoise, {"scale": "parents", **options}
        kinds = {"categorical": Categorical, "ordinal": Ordinal}
        build = kinds[variable.kind] if kind is None else kind
        return cls(build(variable, columns(candidates), **options), candidates, start)

    @property
    def logits(self) -> Tensor:
        """The log-odds of every gate, in the order of the parents."""
        if self.raw is None:
            return self.origin.new_full((len(self.parents),), math.inf)
        return SPEED * self.raw

    def edges(self) -> Tensor:
        """Return the probability of every gate, with its gradient, `(candidates,)`."""
        return self.logits.sigmoid()

    def probabilities(self) -> dict[str, float]:
        """Return candidate -> the probability of its edge."""
        pairs = zip(self.parents, self.edges().tolist(), strict=True)
        return {p.name: round(value, 6) for p, value in pairs}

    def decided(self, keep: Iterable[str]) -> Gated:
        """Return the mechanism with these parents alone, their gates open for good; it is shared.

        Raises:
            KeyError: for a name that is no candidate.
        """
        keep = set(keep)
        for name in keep:
            known(name, [p.name for p in self.parents], f"decided() of {self.variable.name!r}")
        return Gated(self.mechanism, [p for p in self.parents if p.name in keep], 1.0)

    def gates(self, rows: int) -> Tensor:
        """Return the gates of every row, `(rows, candidates)`: drawn in training, else decided."""
        if self.raw is None:
            return self.origin.new_ones(rows, len(self.parents))
        if not self.training:
            return (self.logits > 0).to(self.origin).expand(rows, -1)
        return torch.bernoulli(self.edges().detach().expand(rows, -1))

    def chance(self, gates: Tensor) -> Tensor:
        """Return log q(gates), `(B,)`, with its gradient unless the gates rest."""
        logits = self.logits.detach() if self.held else self.logits
        return torch.where(gates > 0, F.logsigmoid(logits), F.logsigmoid(-logits)).sum(1)

    def behind(self, parents: Parents, gates: Tensor) -> dict[str, Tensor]:
        """Return what the mechanism sees: columns behind their gates, zeros where there is none."""
        check_parents(self, parents, len(gates))
        found = {}
        for j, p in enumerate(self.parents):
            found[p.name] = gates[:, j : j + 1] * as_matrix(parents, [p]).to(self.origin.dtype)
        for p in self.mechanism.parents:
            if p.name not in found:
                found[p.name] = self.origin.new_zeros(len(gates), *p.shape)
        return found

    def _expected(
        self, terms: Callable[[Tensor, Parents], dict[str, Tensor]], x: Tensor, parents: Parents
    ) -> dict[str, Tensor]:
        """Return terms behind the gates; in training their mean over two draws, and its slope."""
        if self.raw is None or not self.training:
            return terms(x, self.behind(parents, self.gates(len(x))))
        gates = self.gates(2 * len(x))
        found = terms(twice(x), self.behind({k: twice(v) for k, v in parents.items()}, gates))
        return {k: leave_one_out(v, self.chance(gates)) for k, v in found.items()}

    def prior(self) -> Prior:
        """Return the density of the mechanism's noise."""
        return self.mechanism.prior()

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x, `(B, *shape)`, from the parents behind their gates."""
        x: Tensor = self.mechanism(u, self.behind(parents, self.gates(len(next(parts(u))[1]))))
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of the noise, given the parents behind their gates."""
        return self.mechanism.abduct(x, self.behind(parents, self.gates(len(x))))

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | g o pa), `(B,)`, in nats; in training the gates are drawn."""
        own = self.mechanism.log_prob
        return self._expected(lambda x, pa: {"": own(x, pa)}, x, parents)[""]

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the mechanism's own terms, given the parents behind their gates."""
        return self._expected(self.mechanism.loss, x, parents)

    card = Card(
        name="Gated mechanism",
        summary="A node that learns which of its candidate parents it needs, with any density "
        "behind the gates.",
        title="Masked Gradient-Based Causal Structure Learning",
        authors="Ng, Ignavier and Zhu, Shengyu and Fang, Zhuangyan and Li, Haoyang and Chen, "
        "Zhitang and Wang, Jun",
        year=2022,
        url="https://arxiv.org/abs/1910.08527",
        assumptions=(
            "the true parents are among the candidates",
            "a parent is worth more likelihood than the price of an edge",
        ),
        needs="rows of the node and its candidate parents",
        example=_example,
    )


def hold(module: nn.Module, held: bool) -> None:
    """Let the gates within a module rest, or learn again.

    At rest they are drawn as ever, so that the mechanisms meet every choice of parents; a gate that
    moved while its mechanism was still untrained would shut out what it has not yet understood.
    """
    for part in module.modules():
        if isinstance(part, Gated):
            part.held = held


def decided(model: SCM, graph: Graph | None = None) -> SCM:
    """Return the ordinary SCM of a model over a super-graph: the edges whose gates are open.

    Mechanisms and encoder are shared, not copied; nodes without gates keep all their parents. Where
    the graph that is left has another order than the encoder's labels, these are `Reordered`.

    Args:
        model: an SCM, some of whose mechanisms are `Gated`.
        graph: which edges to keep, in the place of the gates' own verdict; within the model's.

    Example:
        >>> a, b = Variable("a"), Variable("b")
        >>> model = SCM(Graph.parse("a -> b"), {"a": Gated.of(a), "b": Gated.of(b, [a])})
        >>> model.mechanisms["b"].raw.data.fill_(-1.0)
        tensor([-1.])
        >>> print(decided(model).graph)
        a, b
    """
    keep: dict[str, Sequence[str]] = {}
    for name, mechanism in model.mechanisms.items():
        keep[name] = model.graph.parents(name)
        if isinstance(mechanism, Gated):
            if graph is not None:
                keep[name] = [p.name for p in mechanism.parents if p.name in graph.parents(name)]
            else:
                keep[name] = [p for p, value in mechanism.probabilities().items() if value > 0.5]
    edges = [(p, n) for n, parents in keep.items() for p in parents]
    kinds = dict(zip(model.graph.nodes, model.graph.kinds, strict=True))
    chosen: Mapping[str, Mechanism] = {
        n: m.decided(keep[n]) if isinstance(m, Gated) else m for n, m in model.mechanisms.items()
    }
    left = Graph.from_edges(edges, kinds)
    return SCM(left, chosen, fitting(model.encoder, left))
