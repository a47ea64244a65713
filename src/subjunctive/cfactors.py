"""The ID and IDC algorithms in c-factors: P(y | do(x), z) from an ADMG over observed nodes.

For a set S of nodes write Q[S] = P(s | do(all others)). With D = An(Y) in G without X, and D_1, ...
the districts of G_D,

    P(y | do(x)) = sum_{D - Y} prod_j Q[D_j].

Q of a district of G is prod_v P(v | Markov pillow of v). Q[C] for C inside a district T comes from
Q[T] by turns of summing out what is no ancestor of C in G_T, and of splitting into districts by
Q[T'] = prod_{i in T'} Q[first i nodes] / Q[first i - 1 nodes]. Where neither makes T smaller,
(T, C) is a hedge: two models agree on P and differ on P(y | do(x)).

Reference: Identification of Joint Interventional Distributions in Recursive Semi-Markovian Causal
Models, Shpitser and Pearl, 2006, https://cdn.aaai.org/AAAI/2006/AAAI06-191.pdf; On the Testable
Implications of Causal Models with Hidden Variables, Tian and Pearl, 2002,
https://arxiv.org/abs/1301.0608
"""

from __future__ import annotations

from subjunctive.estimand import Estimand, Prob, product, ratio, total
from subjunctive.graph import Graph

Nodes = tuple[str, ...]


class Hedge(Exception):
    """Raised where the c-factor of `inner` cannot be told from that of the district `outer`."""

    def __init__(self, outer: Nodes, inner: Nodes) -> None:
        super().__init__(f"hedge ({{{', '.join(outer)}}}, {{{', '.join(inner)}}})")
        self.outer, self.inner = outer, inner


def conditional(g: Graph, y: Nodes, x: Nodes, z: Nodes) -> Estimand:
    """Return P(y | do(x), z): conditions that act as interventions are made so, then Bayes.

    Raises:
        Hedge: where it is not identified.
    """
    for name in z:
        rest = tuple(n for n in z if n != name)
        if g.cut(into=x, out_of=name).m_separated(y, name, (*x, *rest)):
            return conditional(g, y, (*x, name), rest)
    joint = interventional(g, (*y, *z), x)
    return ratio(joint, total(y, joint)) if z else joint


def interventional(g: Graph, y: Nodes, x: Nodes) -> Estimand:
    """Return P(y | do(x)).

    Raises:
        Hedge: where it is not identified.

    Example:
        >>> print(interventional(Graph.parse("x -> m -> y; x <-> y"), ("y",), ("x",)))
        sum_{m} P(m | x) sum_{x'} P(x') P(y | x', m)
    """
    left = g.subgraph([n for n in g.nodes if n not in x])
    needed = (*y, *left.ancestors(y))
    factors = [factor(g, part) for part in left.subgraph(needed).districts]
    return total([n for n in needed if n not in y], product(factors))


def factor(g: Graph, part: Nodes) -> Estimand:
    """Return Q[part], from the district of G that holds it; part is joined by bidirected paths.

    Raises:
        Hedge: where it is not identified.
    """
    district = next(d for d in g.districts if set(part) <= set(d))
    factors: list[Estimand] = []
    for i, name in enumerate(g.order):
        if name in district:
            before = g.subgraph(g.order[: i + 1])
            near = next(d for d in before.districts if name in d)
            pillow = {*near, *before.parents(near)} - {name}
            factors.append(Prob((name,), tuple(n for n in g.order if n in pillow)))
    return _narrow(g, part, district, product(factors))


def _narrow(g: Graph, part: Nodes, whole: Nodes, q: Estimand) -> Estimand:
    """Return Q[part] from q = Q[whole], both joined by bidirected paths."""
    inside = g.subgraph(whole)
    above = {*part, *inside.ancestors(part)}
    if above == set(part):
        return total([n for n in whole if n not in part], q)
    if above == set(whole):
        raise Hedge(whole, part)
    margin = total([n for n in whole if n not in above], q)
    smaller = inside.subgraph(above)
    district = next(d for d in smaller.districts if set(part) <= set(d))
    order, factors = smaller.order, []
    for i, name in enumerate(order):
        if name in district:
            upto = total(order[i + 1 :], margin)
            factors.append(ratio(upto, total(order[i:], margin)) if i else upto)
    return _narrow(g, part, district, product(factors))
