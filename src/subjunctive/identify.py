"""Is a causal query determined by the graph and the law of the observed nodes, and how?

On rung 2 the latent nodes are projected out, and P(y | do(x), z) is looked for in turn: no path,
conditioning, back-door adjustment, front-door, and at last the complete ID and IDC algorithms.

On rung 3, P(y_x | evidence) is one of three things: without evidence on the treatment or below it,
the rung-2 answer; with the treatment's own value x', an effect on the treated, read from the
c-factors of the graph in which the edges out of X carry x while X itself is x'; and a
counterfactual of single units otherwise, which no graph and no data determine without a functional
form of the mechanisms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from subjunctive.cfactors import Hedge, conditional, factor
from subjunctive.estimand import Estimand, Prob, Renamed, product, ratio, total
from subjunctive.graph import Graph, Names
from subjunctive.variable import known

Nodes = tuple[str, ...]
_GRAPH = "the graph lacks no edge and no common cause"
_FORM = (
    "the model's functional form: every mechanism below the treatment is known, additive in its "
    "noise, or monotone in a scalar noise, so that evidence determines the noise"
)


@dataclass(frozen=True)
class Identification:
    """The answer of `identify`; true where the query is identified.

    Args:
        identified: whether the observed law determines the query.
        formula: the estimand, readable; empty where there is none.
        strategy: "no path", "conditioning", "backdoor", "frontdoor", "ID", "IDC", "treated",
            "functional form", or "none".
        adjustment: the nodes adjusted for, where the strategy is an adjustment.
        assumptions: what the answer rests on; where not identified, what would identify it.
        reason: why not, naming the hedge.
        estimand: the formula as a tree, `estimand.evaluate(table)`.

    Example:
        >>> print(identify(Graph.parse("x -> m -> y; x <-> y"), "y", "x"))
        identified (frontdoor): sum_{m} P(m | x) sum_{x'} P(y | x', m) P(x'); assuming...
    """

    identified: bool
    formula: str = ""
    strategy: str = "none"
    adjustment: Nodes | None = None
    assumptions: tuple[str, ...] = ()
    reason: str = ""
    estimand: Estimand | None = None

    def __bool__(self) -> bool:
        return self.identified

    def __str__(self) -> str:
        if not self.identified:
            return f"not identified: {self.reason}"
        formula = f": {self.formula}" if self.formula else ""
        return f"identified ({self.strategy}){formula}; assuming {'; '.join(self.assumptions)}"


def identify(
    graph: Graph,
    outcome: Names,
    treatment: Names,
    given: Names = (),
    rung: int = 2,
    observed: Names | None = None,
    functional_form: bool = False,
) -> Identification:
    """Return whether a query is identified, by which formula, under which assumptions.

    Reference: Complete Identification Methods for the Causal Hierarchy, Shpitser and Pearl, 2008,
    https://jmlr.org/papers/v9/shpitser08a.html; On the Testable Implications of Causal Models with
    Hidden Variables, Tian and Pearl, 2002, https://arxiv.org/abs/1301.0608

    Args:
        graph: a DAG or ADMG, latent nodes included.
        outcome, treatment, given: names or one name: P(outcome | do(treatment), given). On rung 3
            `given` is the evidence, treatment and outcome allowed: P(outcome_treatment | given).
        rung: 1 for P(outcome | treatment, given), 2 or 3.
        observed: the nodes whose joint law is known; all that are not latent by default.
        functional_form: rung 3: whether the form of the mechanisms may be relied on.

    Raises:
        KeyError: for an unknown node.
        ValueError: for overlapping sets, another rung, or a graph with undetermined marks.

    Example:
        >>> g = Graph.parse("z -> x -> y; z -> y")
        >>> print(identify(g, "y", "x").formula)
        sum_{z} P(y | x, z) P(z)
        >>> print(identify(g, "y", "x", observed=["x", "y"]).reason)
        hedge ({x, y}, {y}): in the district {x, y} nothing tells the effect of x on y from...
        >>> print(identify(g, "y", "x", given="x", rung=3).formula)
        sum_{z} P(y | x, z) P(z | x')
    """
    if not graph.is_admg:
        raise ValueError("identify() needs a DAG or ADMG; orient the other marks, or use member()")
    if rung not in (1, 2, 3):
        raise ValueError(f"rung is 1 (see), 2 (do) or 3 (imagine), got {rung!r}")
    hidden = graph.of_kind("latent")
    seen = [n for n in graph.nodes if n not in hidden] if observed is None else observed
    y, x, z, seen = (_nodes(graph, names) for names in (outcome, treatment, given, seen))
    if not y:
        raise ValueError("identify() needs an outcome")
    if set(x) & set(y) or (rung < 3 and set(z) & {*x, *y}):
        raise ValueError(f"outcome, treatment and given must be disjoint, got {y}, {x}, {z}")
    for name in (*y, *x, *z):
        if name not in seen:
            return Identification(False, reason=f"{name!r} is not observed")
    if selected := ", ".join(graph.of_kind("selection")):
        return Identification(False, reason=f"rows are selected by {selected}: no rule covers it")
    g = graph.latent_projection(seen)
    if rung == 1 or not x:
        return _found("conditioning", Prob(y, _sorted(g, {*x, *z} - set(y))))
    if rung == 2:
        return _effect(g, y, x, z)
    return _counterfactual(g, y, x, z, functional_form)


# Rung 2 ----------------------------------------------------------------------------------------


def _effect(g: Graph, y: Nodes, x: Nodes, z: Nodes) -> Identification:
    """Return the identification of P(y | do(x), z) in an ADMG over observed nodes."""
    free = set(x) - set(g.ancestors(z)) if z else set(x)
    if g.cut(into=free).m_separated(y, x, z):
        return _found("no path", Prob(y, z))
    adjusted = _adjustment(g, y, x, z)
    if adjusted is not None:
        inner = product([Prob(y, (*x, *z, *adjusted)), *([Prob(adjusted, z)] if adjusted else [])])
        strategy = "backdoor" if adjusted else "conditioning"
        return replace(_found(strategy, total(adjusted, inner)), adjustment=adjusted)
    if g.cut(out_of=x).m_separated(y, x, z):
        return _found("conditioning", Prob(y, (*x, *z)))
    if not z and (mediators := _mediators(g, y, x)):
        back = total(x, product([Prob(y, (*x, *mediators)), Prob(x)]))
        return _found("frontdoor", total(mediators, product([Prob(mediators, x), back])))
    try:
        return _found("IDC" if z else "ID", conditional(g, y, x, z))
    except Hedge as hedge:
        return Identification(False, reason=_hedge(hedge, x) + _instruments(g, y, x))


def _hedge(hedge: Hedge, x: Nodes) -> str:
    """Say in words why a hedge stands in the way."""
    among = [n for n in x if n in hedge.outer] or list(x)
    return (
        f"{hedge}: in the district {{{', '.join(hedge.outer)}}} nothing tells the effect of "
        f"{', '.join(among)} on {', '.join(hedge.inner)} from their latent common causes"
    )


def _adjustment(g: Graph, y: Nodes, x: Nodes, z: Nodes) -> Nodes | None:
    """Return a minimal set that, with z, satisfies the adjustment criterion, or None.

    Reference: Complete Graphical Characterization and Construction of Adjustment Sets in Markov
    Equivalence Classes of Ancestral Graphs, Perkovic et al., 2018, https://arxiv.org/abs/1606.06903
    """
    below = {*x, *g.descendants(x)}
    if z:  # all before the treatment: P(z) and P(w | z) do not change
        forbidden, cut = below, g.cut(out_of=x)
        if below & set(z):
            return None
    else:  # the edges from x that start a causal path to y are cut, and their ends' descendants out
        causal = set(g.do(x).descendants(x)) & {*y, *g.cut(out_of=x).ancestors(y)}
        forbidden = {*x, *causal, *g.descendants(causal)}
        kept = [e for e in g.edges if not (e[1] == "->" and e[0] in x and e[2] in causal)]
        cut = Graph.from_edges(kept, g.nodes)
    found = [n for n in g.order if n in g.ancestors((*x, *y, *z)) and n not in {*forbidden, *y, *z}]
    return _least(found, lambda w: cut.m_separated(y, x, (*w, *z)))


def _least(nodes: Iterable[str], separates: Callable[[Nodes], bool]) -> Nodes | None:
    """Return a minimal subset that separates, later nodes kept first; None if all do not."""
    found = tuple(nodes)
    if not separates(found):
        return None
    for name in found:
        fewer = tuple(n for n in found if n != name)
        if separates(fewer):
            found = fewer
    return found


def _mediators(g: Graph, y: Nodes, x: Nodes) -> Nodes | None:
    """Return one or two nodes that satisfy the front-door criterion, or None."""
    between = [n for n in g.descendants(x) if n in g.ancestors(y)]
    for m in (m for size in (1, 2) for m in combinations(between, size)):
        pierced = set(y) & set(g.cut(into=m).descendants(x))
        if (
            not pierced
            and g.cut(out_of=x).m_separated(x, m)
            and g.cut(out_of=m).m_separated(y, m, x)
        ):
            return m
    return None


def _instruments(g: Graph, y: Nodes, x: Nodes) -> str:
    """Name an instrument, with which a parametric model would identify the effect."""
    for name in g.nodes:
        if (
            name not in (*x, *y, *g.descendants(x))
            and g.cut(out_of=x).m_separated(name, y)
            and (not g.m_separated(name, x))
        ):
            return f" ({name} is an instrument: a linear or additive model would identify it)"
    return ""


# Rung 3 ----------------------------------------------------------------------------------------


def _counterfactual(g: Graph, y: Nodes, x: Nodes, z: Nodes, form: bool) -> Identification:
    """Return the identification of P(y_x | z), with the evidence z in the factual world."""
    below = set(g.descendants(x))
    y = tuple(n for n in y if n in below or n not in z)  # the evidence tells the others
    names = _primes(g, [n for n in x if n in z])
    if not y:
        return Identification(True, "the factual value", "no path", assumptions=(_GRAPH,))
    if not below & set(y):
        return _found("no path", Renamed(Prob(y, z), names))
    worlds, real, other = _twin(g, x)
    ends = [other.get(n, real[n]) for n in y]
    for name in z:  # evidence that tells nothing of y_x
        rest = tuple(n for n in z if n != name)
        if worlds.m_separated(real[name], ends, [real[n] for n in rest]):
            z = rest
    before = tuple(n for n in z if n not in below and n not in x)
    if before == z:
        return _effect(g, y, x, z)
    names = tuple(pair for pair in names if pair[0] in z)
    asked = {real[n] for n in (*x, *z) if n not in before}
    near = set(g.ancestors((*x, *y, *z))) - {*y, *below}
    maybe = [n for n in g.order if n in near]
    adjusted = _least(
        maybe, lambda w: worlds.m_separated(asked, ends, [real[n] for n in (*w, *before)])
    )
    if adjusted is not None:
        weight = [Renamed(Prob(adjusted, z), names)] if adjusted else []
        inner = product([Prob(y, (*x, *before, *adjusted)), *weight])
        return replace(_found("treated", total(adjusted, inner)), adjustment=adjusted)
    if not below & set(z):
        return _treated(g, y, x, z, names)
    return _unit(g, y, x, z, form)


def _unit(g: Graph, y: Nodes, x: Nodes, z: Nodes, form: bool) -> Identification:
    """Return what is known of P(y_x | z) where z holds descendants of x."""
    below, wanted = set(g.descendants(x)), {*y, *z}
    asked = f"P({', '.join(y)} had {', '.join(x)} been set | {', '.join(z)})"
    relevant = {*wanted, *x, *g.ancestors(wanted)}
    for a, b in ((n, s) for n in g.order if n in below & relevant for s in g.siblings(n)):
        if b in relevant:
            return Identification(
                False,
                reason=f"no rule here identifies {asked}: {a} and {b} have a latent common cause, "
                "so that the form of the mechanisms may not suffice either",
            )
    if form:
        return Identification(True, "", "functional form", assumptions=(_GRAPH, _FORM))
    carried = [n for n in z if n in below & {*y, *g.ancestors(y)}]
    why = (
        f"{asked} is of single units: {', '.join(carried)} stands between treatment and outcome, "
        "and models with one graph and one law of the data differ in it"
        if carried
        else f"no rule here identifies {asked} from graph and data"
    )
    remedy = "; an assumed functional form (additive, or monotone in a scalar noise) identifies it"
    return Identification(False, assumptions=(_FORM,), reason=why + remedy)


def _twin(g: Graph, x: Nodes) -> tuple[Graph, dict[str, str], dict[str, str]]:
    """Return the factual world beside that of do(x), and the names of nodes in each.

    Nodes that x does not change are shared; a node and its counterfactual share their noise.

    Reference: Counterfactual Probabilities: Computational Methods, Bounds and Applications, Balke
    and Pearl, 1994, https://arxiv.org/abs/1302.6784
    """
    real = {n: f"{i}" for i, n in enumerate(g.nodes)}
    other = {n: f"{i}*" for n, i in real.items() if n in g.descendants(x)}
    edges = [(real[n], "<->", copy) for n, copy in other.items()]
    for a, mark, b in g.edges:
        a_too, b_too = other.get(a, real[a]), other.get(b, real[b])
        edges.append((real[a], mark, real[b]))
        if mark == "<->":
            edges += [(real[a], mark, b_too), (a_too, mark, real[b]), (a_too, mark, b_too)]
        elif b in other and a not in x:
            edges.append((a_too, mark, b_too))
    return Graph.from_edges(edges, real.values()), real, other


def _treated(
    g: Graph, y: Nodes, x: Nodes, z: Nodes, names: tuple[tuple[str, str], ...]
) -> Identification:
    """Return P(y_x | x', z) by c-factors, z holding x and nodes that it does not change.

    Reference: Effects of Treatment on the Treated: Identification and Generalization, Shpitser and
    Pearl, 2009, https://arxiv.org/abs/1205.2615
    """
    if len(x) > 1:
        return Identification(
            False, reason="no rule here identifies it for several treatments and their own values"
        )
    split = g.cut(out_of=x)
    kept = split.subgraph({*y, *z, *split.ancestors((*y, *z))})
    factors = []
    for part in kept.districts:
        children = [n for n in g.children(x) if n in part and x[0] in part]
        if children:
            simple = _effect(g, y, x, tuple(n for n in z if n not in x))
            binary = "; for a binary treatment it follows from P(outcome | do(treatment))"
            return Identification(
                False,
                reason=f"{x[0]} and its child {children[0]} are in one district "
                f"{{{', '.join(part)}}}: the value that the treatment had tells of latent causes "
                f"of its effect{binary if simple else ''}",
            )
        try:
            factors.append(factor(g, part))
        except Hedge as hedge:
            return Identification(False, reason=_hedge(hedge, x))
        if x[0] in part:
            factors[-1] = Renamed(factors[-1], names)
    joint = total([n for n in kept.nodes if n not in {*y, *z, *x}], product(factors))
    return _found("treated", ratio(joint, total(y, joint)))


def _primes(g: Graph, nodes: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return each node with a name for its second value, which no node has."""
    found = []
    for name in nodes:
        prime = f"{name}'"
        while prime in g:
            prime += "'"
        found.append((name, prime))
    return tuple(found)


# What both return ------------------------------------------------------------------------------


def _found(strategy: str, estimand: Estimand) -> Identification:
    formula = str(estimand)
    positive: tuple[str, ...] = ()
    if "|" in formula or "/" in formula:
        positive = ("positivity: every condition in the formula has probability above zero",)
    return Identification(
        True, formula, strategy, assumptions=(_GRAPH, *positive), estimand=estimand
    )


def _nodes(graph: Graph, names: Names) -> Nodes:
    listed = (names,) if isinstance(names, str) else tuple(names)
    for name in listed:
        known(name, graph.nodes, "identify()")
    return _sorted(graph, listed)


def _sorted(graph: Graph, names: Iterable[str]) -> Nodes:
    chosen = set(names)
    return tuple(n for n in graph.nodes if n in chosen)
