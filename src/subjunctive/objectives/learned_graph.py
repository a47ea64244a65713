r"""Learning which causes which among named variables of an SCM, while the rest of it is trained.

With gates (`mechanisms.gated`) whose logits are l_ij, and a price an edge,

    min  E[-log p(x)] + price sum_ij A[i, j]     subject to   h(A) = 0,    A[i, j] = p(i -> j),

h a penalty of cycles (`objectives.acyclicity`), by the augmented Lagrangian: each round minimises
F + a h + (r / 2) h^2, then a <- a + r h, and r grows unless h has fallen by half. The price says by
how many nats a row an edge must pay.

**An order is learned with the gates.** Gates alone weigh `both arrows` against `one`, not an arrow
against its reverse, and are soon caught in a wrong order. So every row draws an order, by
potentials q_i and Gumbel noise e_i: i comes before j where q_i - e_i < q_j - e_j. A difference of
Gumbels is logistic, hence

    A[i, j] = p(i -> j) = sigmoid(l_ij) sigmoid(q_j - q_i)

exactly; every row's graph is acyclic, and the expected loss, a mean over DAGs, is least at the best
of them. The order is a Plackett-Luce draw, each next node with probability proportional to
exp(-q_i) among those left, and its gradient is estimated as that of the gates, from two draws a
row. The penalty has the order decide itself. With an order of the variables, or a graph that holds
all edges that may be, no cycle can arise, and none of this has anything to say.

What is left of cycles at the end is cut: edges enter from the likeliest to the least, and one that
would close a cycle is left out, so that the graph is acyclic for sure.

Reference: Differentiable DAG Sampling (Charpentier, Kibler and Günnemann, 2022),
https://arxiv.org/abs/2203.08509; DAGs with NO TEARS: Continuous Optimization for Structure Learning
(Zheng, Aragam, Ravikumar and Xing, 2018), https://arxiv.org/abs/1803.01422
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subjunctive.encoders.reordered import fitting
from subjunctive.graph import Graph
from subjunctive.mechanism import Density, Mechanism
from subjunctive.mechanisms.gated import SPEED, Gated, hold, leave_one_out, twice
from subjunctive.objectives.acyclicity import Penalty, dagma, strongest
from subjunctive.scm import SCM
from subjunctive.train import Objective
from subjunctive.variable import Batch, Variable, known


def candidates(
    variables: Sequence[Variable],
    within: Graph | None = None,
    order: Sequence[str] | None = None,
    kind: Any = None,
    start: float = 0.75,
    **options: Any,
) -> dict[str, Gated]:
    """Return a gated mechanism for every variable, with its candidate parents.

    Args:
        variables: among which edges are sought.
        within: a graph that holds every edge that may be; all pairs if None.
        order: names of all variables, causes before effects: candidates come before.
        kind, start, options: for `Gated.of`.

    Raises:
        ValueError: if the order does not name each variable once. KeyError: for unknown names.

    Example:
        >>> found = candidates([Variable("a"), Variable("b")], order=["b", "a"])
        >>> {name: [p.name for p in m.parents] for name, m in found.items()}
        {'a': ['b'], 'b': []}
    """
    names = [v.name for v in variables]
    for name in [*(order or ()), *(within or ())]:
        known(name, names, "the order" if within is None else "the graph of candidates")
    if order is not None and sorted(order) != sorted(names):
        raise ValueError(f"an order names each of {names} once, got {list(order)}")

    def may(cause: str, effect: str) -> bool:
        if cause == effect or (within is not None and cause not in within.parents(effect)):
            return False
        return order is None or list(order).index(cause) < list(order).index(effect)

    return {
        v.name: Gated.of(v, [p for p in variables if may(p.name, v.name)], kind, start, **options)
        for v in variables
    }


class LearnedGraph(Objective):
    """Learn the edges among some nodes of an SCM while everything else of it is trained.

    The model is any SCM in which these nodes have no parents outside them: `CausalDiffAE` on the
    graph "a, b, c -> image", say. Their own mechanisms there are placeholders, which `scm` replaces
    by the gated ones. Rows that miss a value are completed by the model's encoder; the terms are
    those of `SCM.loss`, but that a category drawn by the encoder passes no gradient.

    Args:
        mechanisms: node -> gated mechanism, see `candidates`.
        price: nats a row that an edge must be worth.
        penalty: `dagma` or `notears`, of the matrix of probabilities.
        ordering: whether an order is learned with the gates, where cycles could arise.
        rest: steps at the start in which mechanisms learn under gates that do not.
        every: steps a round of the augmented Lagrangian.
        growth: of the penalty's weight after a round in which h did not fall by half.
        weight: of the penalty's square at the start.

    Raises:
        ValueError: for numbers that are not positive (the price may be zero), a node whose gates
            have a candidate that is not learned, and, in training, a model that does not fit.

    Example:
        >>> from subjunctive.mechanisms import LinearGaussian
        >>> from subjunctive.train import fit
        >>> a, b = Variable("a"), Variable("b")
        >>> flat = SCM(Graph(["a", "b"]), {"a": LinearGaussian(a), "b": LinearGaussian(b)})
        >>> rows = Batch({"a": torch.arange(200) / 200, "b": torch.arange(200) % 2})
        >>> gates = candidates([a, b], order=["a", "b"], kind=LinearGaussian)
        >>> rule = LearnedGraph(gates, price=0.1, rest=10)
        >>> done = fit(flat, rows, rule, steps=100, lr=0.03, ema=None, progress=False)
        >>> print(rule.scm(flat).graph)
        a, b
    """

    multiplier: Tensor
    rigour: Tensor
    last: Tensor
    potentials: nn.Parameter | None

    def __init__(
        self,
        mechanisms: Mapping[str, Gated],
        price: float = 0.02,
        penalty: Penalty = dagma,
        ordering: bool = True,
        rest: int = 200,
        every: int = 50,
        growth: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if price < 0 or every < 1 or not growth > 1 or not 0 < weight < math.inf:
            raise ValueError(
                "LearnedGraph needs price >= 0, every >= 1, growth > 1 and weight > 0, got "
                f"price={price}, every={every}, growth={growth} and weight={weight}"
            )
        self.nodes = tuple(mechanisms)
        for name, mechanism in mechanisms.items():
            for p in mechanism.parents:
                known(p.name, self.nodes, f"the gates of {name!r}")
        self.gated = nn.ModuleList(mechanisms.values())
        self.price, self.penalty, self.every, self.growth = price, penalty, every, growth
        self.ordering, self.rest, self.weight = ordering, rest, weight
        self.potentials = None
        with torch.no_grad():
            cyclic = bool(mechanisms) and float(dagma(self.probabilities())) > 1e-6
        if ordering and cyclic:
            self.potentials = nn.Parameter(torch.zeros(len(self.nodes)))
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("rigour", torch.tensor(float(weight)))
        self.register_buffer("last", torch.tensor(math.inf))

    def mechanism(self, name: str) -> Gated:
        """Return a node's gated mechanism."""
        known(name, self.nodes, "LearnedGraph")
        return self.gated[self.nodes.index(name)]  # type: ignore[return-value]

    def probabilities(self) -> Tensor:
        """Return the probability of every edge, `(d, d)`, with its gradient; [i, j] is i -> j."""
        columns = []
        for name in self.nodes:
            gate = self.mechanism(name)
            column = gate.origin.new_zeros(len(self.nodes))
            column = column.index_put((self._places(gate),), gate.edges())
            columns.append(column)
        strengths = torch.stack(columns, 1)
        if self.potentials is None:
            return strengths
        q = SPEED * self.potentials
        return strengths * (q[None, :] - q[:, None]).sigmoid()

    def _places(self, gate: Gated) -> Tensor:
        """Return where a gated mechanism's candidates stand among the nodes."""
        return torch.tensor([self.nodes.index(p.name) for p in gate.parents], dtype=torch.long)

    def _order(self, rows: int) -> tuple[Tensor, Tensor]:
        """Draw orders: which node comes before which, `(B, d, d)`, and their log-chance `(B,)`."""
        if self.potentials is None:
            ones = self.last.new_ones(rows, len(self.nodes), len(self.nodes))
            return ones, self.last.new_zeros(rows)
        worth = (-SPEED * self.potentials).expand(rows, -1)
        late = worth.detach()
        if self.training:
            e = torch.rand(late.shape).to(late).clamp(1e-6, 1 - 1e-6)
            late = late - (-e.log()).log()
        first = late.argsort(1, descending=True)
        ranked = worth.gather(1, first)
        left = ranked.flip(1).logcumsumexp(1).flip(1)  # of those that were still to come
        return (late[:, :, None] > late[:, None, :]).to(late), (ranked - left).sum(1)

    def graph(self, threshold: float = 0.5) -> Graph:
        """Return the graph among the nodes: edges likelier than the threshold, without a cycle."""
        return strongest(self.probabilities(), self.nodes, threshold)

    def scm(self, model: SCM, threshold: float = 0.5) -> SCM:
        """Return the ordinary SCM: the learned graph, its mechanisms, and the rest of the model.

        Parts are shared with the model and with this objective, not copied. Where the encoder has
        its labels in another order than the graph, it is `Reordered`.
        """
        self._fits(model)
        graph = self.graph(threshold)
        rest = [(p, n) for n in model.graph.nodes if n not in self.nodes
                for p in model.graph.parents(n)]  # fmt: skip
        kinds = dict(zip(model.graph.nodes, model.graph.kinds, strict=True))
        edges = [(a, b) for a, _, b in graph.edges] + rest
        chosen: dict[str, Mechanism] = dict(model.mechanisms)
        chosen |= {n: self.mechanism(n).decided(graph.parents(n)) for n in self.nodes}
        whole = Graph.from_edges(edges, kinds)
        return SCM(whole, chosen, fitting(model.encoder, whole))

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return each node's terms, `edges`, their price, and `cycles`, the Lagrangian's part."""
        scm = self._fits(model)
        hold(self, step < self.rest)
        terms = self._rows(scm, scm.batch(batch), step < self.rest)
        strengths = self.probabilities()
        h = self.penalty(strengths)
        if step < self.rest:
            strengths, h = strengths.detach(), h.detach()
        elif self.training and step % self.every == 0:
            self._round(h.detach())
        held = self.multiplier * h + self.rigour / 2 * h.square()
        shared = {"edges": self.price * strengths.sum(), "cycles": held}
        return terms | {k: v.expand(len(batch)) for k, v in shared.items()}

    @torch.no_grad()
    def _round(self, h: Tensor) -> None:
        """End a round: raise the multiplier, and the weight of the square where h fell too little.

        The weight stops at 10^6: what is left of cycles then is cut by `strongest`.
        """
        self.multiplier += self.rigour * h
        if float(h) > 0.5 * float(self.last):
            self.rigour.copy_((self.rigour * self.growth).clamp(max=1e6))
        self.last.copy_(h)

    def _rows(self, model: SCM, batch: Batch, held: bool) -> dict[str, Tensor]:
        """Return the terms of every node, as `SCM.loss` has them."""
        done = model.complete(batch, reparametrised=True)
        beta = model.encoder.beta if model.encoder is not None else 1.0
        terms: dict[str, Tensor] = {}
        values = {n: twice(done.values[n]) for n in self.nodes}
        order, chance = self._order(2 * len(batch))
        total = torch.zeros_like(chance)
        for name, value in done.values.items():
            seen, drawn = batch.mask(name), done.inferred.get(name)
            if name in done.log_q:
                terms[f"{name}.label"] = torch.where(seen & done.ready, -done.log_q[name], 0.0)
            nll: Tensor | None = None
            if name in self.nodes:
                both, own_chance = self._gated(name, values, order)
                total = total + torch.where(twice(seen), both.detach(), beta * both.detach())
                nll = leave_one_out(both, own_chance)
                terms[f"{name}.nll"] = torch.where(seen, nll, 0.0)
            else:
                own = model.mechanisms[name]
                parents = {p.name: done.values[p.name] for p in own.parents}
                for key, term in own.loss(value, parents).items() if bool(seen.any()) else ():
                    terms[f"{name}.{key}"] = torch.where(seen, term, 0.0)
                if isinstance(own, Density):
                    nll = -own.log_prob(value, parents)
            if drawn is not None and bool(drawn.any()) and nll is not None:
                terms[f"{name}.kl"] = torch.where(drawn, beta * (done.log_q[name] + nll), 0.0)
        if self.potentials is not None:  # worth nothing but its gradient
            terms["order"] = leave_one_out(total, chance.detach() if held else chance)
            terms["order"] = terms["order"] - terms["order"].detach()
        return terms

    def _gated(
        self, name: str, values: Mapping[str, Tensor], order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return -log p of a node behind gates and orders, and the gates' log-chance, `(2 B,)`."""
        gate = self.mechanism(name)
        gates, place = gate.gates(len(order)), self.nodes.index(name)
        given = {p.name: values[p.name] for p in gate.parents}
        mask = order[:, self._places(gate), place]
        seen = gate.behind(given, gates * mask.to(gates))
        return -gate.mechanism.log_prob(values[name], seen), gate.chance(gates)

    def _fits(self, model: nn.Module) -> SCM:
        if not isinstance(model, SCM):
            raise ValueError(f"LearnedGraph learns edges of an SCM, got a {type(model).__name__}")
        for name in self.nodes:
            known(name, model.graph.nodes, "LearnedGraph")
            if model.variables[name] != self.mechanism(name).variable:
                raise ValueError(f"the gates of {name!r} were built with another Variable than "
                                 "the model's")  # fmt: skip
            above = set(model.graph.parents(name)) - set(self.nodes)
            if above:
                raise ValueError(
                    f"{name!r} has the parents {sorted(above)}, which are not learned: learn them "
                    "too, or leave it out"
                )
        return model
