"""Identification: formulas against the truth of random models, and the textbook's graphs."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from subjunctive.estimand import Prob, Product, Ratio, Renamed, Sum, Table, product, ratio, total
from subjunctive.graph import Graph
from subjunctive.identify import Identification, identify

STATES = 3  # of every node's own noise


class Worlds:
    """A random binary SCM, all states of its noise listed: a latent bit an edge <->."""

    def __init__(self, graph: Graph, generator: np.random.Generator) -> None:
        dag = graph.canonical()
        self.graph, roots = dag, dag.nodes[len(graph) :]
        sizes = [2] * len(roots) + [STATES] * len(graph)
        grid = np.indices(sizes).reshape(len(sizes), -1)
        chances = [generator.dirichlet(np.full(s, 3.0)) for s in sizes]
        self.weight = np.prod([c[g] for c, g in zip(chances, grid, strict=True)], axis=0)
        self.roots = dict(zip(roots, grid, strict=False))
        self.noise = dict(zip(graph.nodes, grid[len(roots) :], strict=True))
        self.names, self.tables = graph.nodes, {}
        for name in graph.nodes:  # every row of a mechanism takes both values
            rows = 2 ** len(dag.parents(name))
            table = np.argsort(generator.random((rows, STATES)), 1) < generator.integers(
                1, STATES, (rows, 1)
            )
            self.tables[name] = table.astype(int)

    def run(self, do: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return every node's value in every state of the noise."""
        values = dict(self.roots)
        for name in self.graph.order:
            if name in do:
                values[name] = np.full_like(self.weight, do[name], dtype=int)
            elif name not in self.roots:
                row = np.zeros_like(self.weight, dtype=int)
                for parent in self.graph.parents(name):
                    row = 2 * row + values[parent]
                values[name] = self.tables[name][row, self.noise[name]]
        return values

    def table(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Return the joint table of some columns of values."""
        found = np.zeros([2] * len(columns))
        np.add.at(found, tuple(columns), self.weight)
        return found

    def joint(self) -> Table:
        """Return the observational law."""
        values = self.run({})
        return Table(self.names, self.table([values[n] for n in self.names]))

    def truth(
        self, y: Sequence[str], do: Mapping[str, int], evidence: Mapping[str, int], real: bool
    ):
        """Return P(y_do | evidence) over y; the evidence is factual, or of the world of do."""
        values, facts = self.run(do), self.run({})
        keep = np.ones_like(self.weight, dtype=bool)
        for name, value in evidence.items():
            keep &= (facts if real else values)[name] == value
        found = np.zeros([2] * len(y))
        np.add.at(found, tuple(values[n][keep] for n in y), self.weight[keep])
        return found / found.sum()


def random_admg(generator: np.random.Generator, n: int, both: int) -> Graph:
    names = [f"v{i}" for i in range(n)]
    order = generator.permutation(n)
    upper = np.triu(generator.random((n, n)) < 0.5, 1)[np.ix_(order, order)]
    pairs = list(itertools.combinations(names, 2))
    chosen = generator.permutation(len(pairs))[:both]
    edges = [(*pairs[k][:1], "<->", *pairs[k][1:]) for k in chosen]
    return Graph.from_edges([*Graph.from_adjacency(upper, names).edges, *edges], names)


def agrees(found: Identification, worlds: Worlds, y, x, z, real: bool = False) -> None:
    """Check an identified formula at all values of all that it is a function of."""
    assert found.estimand is not None
    table = found.estimand.evaluate(worlds.joint())
    assert set(y) <= set(table.names)
    rest = [n for n in table.names if n not in y]
    for codes in itertools.product((0, 1), repeat=len(rest)):
        fixed = dict(zip(rest, codes, strict=True))
        for values in itertools.product((0, 1), repeat=len(x) + len(z)):
            do = dict(zip(x, values[: len(x)], strict=True))
            evidence = dict(zip(z, values[len(x) :], strict=True))
            asked = {**{n: v for n, v in evidence.items() if n not in x}, **do}
            asked |= {f"{n}'": v for n, v in evidence.items() if n in x}
            if any(fixed.get(n, v) != v for n, v in asked.items()):
                continue
            truth = worlds.truth(y, do, evidence, real)
            got = table.at(fixed)
            values_ = got.values.transpose([got.names.index(n) for n in y])
            np.testing.assert_allclose(values_, truth, atol=1e-9)


def pick(
    generator: np.random.Generator, names: Sequence[str], *sizes: int
) -> list[tuple[str, ...]]:
    shuffled = [names[i] for i in generator.permutation(len(names))]
    ends = np.cumsum([0, *sizes])
    return [tuple(shuffled[a:b]) for a, b in itertools.pairwise(ends)]


# The formulas against the truth --------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0), (1, 2, 1), (2, 1, 1)]
)
def test_effects_equal_the_truncated_factorisation(sizes: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(sum(s * 10**k for k, s in enumerate(sizes)))
    used: dict[str, int] = {}
    for _ in range(40):
        g = random_admg(generator, int(generator.integers(4, 6)), int(generator.integers(1, 5)))
        y, x, z = pick(generator, g.nodes, *sizes)
        found = identify(g, y, x, z)
        used[found.strategy] = used.get(found.strategy, 0) + 1
        if found:
            agrees(found, Worlds(g, generator), y, x, z)
    assert used["none"] < 30
    assert len(used) > 3
    assert "IDC" in used or "ID" in used


def test_hidden_nodes_are_projected_out() -> None:
    generator = np.random.default_rng(11)
    identified = 0
    for _ in range(30):
        g = random_admg(generator, 6, 1)
        hidden = g.nodes[:2]
        seen = [n for n in g.nodes if n not in hidden]
        y, x = pick(generator, seen, 1, 1)
        found = identify(g, y, x, observed=seen)
        if found:
            identified += 1
            assert not found.estimand.free & set(hidden)  # type: ignore[union-attr]
            agrees(found, Worlds(g, generator), y, x, ())
        kinds = dict(zip(g.nodes, ("latent",) * 2 + ("observed",) * 4, strict=True))
        marked = Graph(g.nodes, g.marks, g.bidirected, kinds)  # type: ignore[arg-type]
        assert identify(marked, y, x) == found
    assert identified > 8


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_counterfactuals_equal_those_of_the_model(extra: int) -> None:
    generator = np.random.default_rng(20 + extra)
    used: dict[str, int] = {}
    while sum(used.values()) < 40:
        g = random_admg(generator, 5, int(generator.integers(0, 3)))
        y, x, z = pick(generator, g.nodes, 1, 1, extra)
        if y[0] in g.descendants(x) or generator.random() < 0.05:
            z = (*x, *z) if generator.random() < 0.7 else z
            found = identify(g, y, x, z, rung=3)
            used[found.strategy] = used.get(found.strategy, 0) + 1
            if found:
                agrees(found, Worlds(g, generator), y, x, z, real=True)
    assert used["treated"] > 1
    assert used["none"] > 2


def test_an_effect_on_the_treated_that_no_adjustment_gives() -> None:
    g = Graph.parse("x -> m -> y; x <-> y")
    found = identify(g, "y", "x", "x", rung=3)
    assert found.strategy == "treated"
    assert found.adjustment is None
    agrees(found, Worlds(g, np.random.default_rng(3)), ("y",), ("x",), ("x",), real=True)


# What is not identified: two models prove it -------------------------------------------------


def models(g: Graph, generator: torch.Generator):
    """Return parameters, and the law and all effects as functions of them, latents of 3 states."""
    latents = [(a, b) for a, mark, b in g.edges if mark == "<->"]
    axis = {n: i for i, n in enumerate([*g.nodes, *latents])}
    sizes = [2] * len(g) + [3] * len(latents)
    scopes = {n: [n, *g.parents(n), *(e for e in latents if n in e)] for n in axis if n in g}
    scopes |= {e: [e] for e in latents}
    shapes = {n: [sizes[axis[m]] for m in scope] for n, scope in scopes.items()}
    start = torch.cat(
        [
            torch.randn(int(np.prod(s)), generator=generator, dtype=torch.double)
            for s in shapes.values()
        ]
    )

    def joint(parameters: torch.Tensor, without: str = "") -> torch.Tensor:
        """Return the product of all mechanisms but one, latents summed out."""
        whole, k = torch.ones(sizes, dtype=torch.double), 0
        for name, shape in shapes.items():
            part = parameters[k : k + int(np.prod(shape))].reshape(shape).softmax(0)
            k += part.numel()
            if name != without:
                axes = [axis[m] for m in scopes[name]]
                ordered = part.permute(*np.argsort(axes).tolist())
                wide = [sizes[i] if i in axes else 1 for i in range(len(sizes))]
                whole = whole * ordered.reshape(wide)
        return whole.sum(tuple(range(len(g), len(sizes)))) if latents else whole

    return start, joint


@pytest.mark.parametrize("size", [3, 4])
def test_identified_means_determined_by_the_law_and_the_reverse(size: int) -> None:
    """A query that the law determines does not move where the law stands still: a rank test.

    The gradient of P(y | do(x)) by the parameters of a random model lies in the span of the law's
    gradients if and only if the query is (locally) identified.
    """
    generator = torch.Generator().manual_seed(size)
    pairs = list(itertools.combinations("abcd"[:size], 2))
    choices = list(itertools.product((0, 1), repeat=2 * len(pairs)))
    if size == 4:
        choices = [choices[i] for i in np.random.default_rng(0).permutation(len(choices))[:40]]
    answers = []
    for choice in choices:
        edges = [(a, "->", b) for (a, b), on in zip(pairs, choice, strict=False) if on]
        edges += [
            (a, "<->", b) for (a, b), on in zip(pairs, choice[len(pairs) :], strict=True) if on
        ]
        g = Graph.from_edges(edges, "abcd"[:size])
        start, joint = models(g, generator)
        law = torch.autograd.functional.jacobian(lambda p, f=joint: f(p).flatten(), start)
        basis = torch.linalg.svd(law, full_matrices=False)
        span = basis.Vh[basis.S > 1e-9]
        for x, y in [("a", "c"), ("b", "c")] if size == 3 else [("a", "d"), ("b", "d"), ("c", "d")]:
            i, j = g.nodes.index(x), g.nodes.index(y)

            def effect(p: torch.Tensor, f=joint, x=x, i=i, j=j) -> torch.Tensor:
                return f(p, without=x).select(i, 1).movedim(j - 1, 0)[1].sum()

            gradient = torch.autograd.functional.jacobian(effect, start)
            outside = gradient - span.T @ (span @ gradient)
            determined = bool(outside.norm() < 1e-7 * max(1e-3, float(gradient.norm())))
            assert bool(identify(g, y, x)) == determined, (str(g), x, y)
            answers.append(determined)
    assert 0.1 < np.mean(answers) < 0.9


def responses(g: Graph, generator: torch.Generator):
    """Return parameters, a run of all response types, and their weights; latents of 3 states."""
    latents = [(a, b) for a, mark, b in g.edges if mark == "<->"]
    sizes = [2**2 ** len(g.parents(n)) for n in g.nodes] + [3] * len(latents)
    axes = [[len(g) + k] for k in range(len(latents))]
    axes += [[i, *(len(g) + k for k, e in enumerate(latents) if n in e)] for i, n in enumerate(g)]
    shapes = [[sizes[k] for k in a] for a in axes]
    size = sum(int(np.prod(s)) for s in shapes)
    types = dict(zip(g.nodes, np.indices(sizes[: len(g)]).reshape(len(g), -1), strict=True))

    def run(do: Mapping[str, int]) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for name in g.order:
            row = np.zeros_like(types[name])
            for parent in g.parents(name):
                row = 2 * row + values[parent]
            values[name] = np.full_like(row, do[name]) if name in do else types[name] >> row & 1
        return values

    def weight(parameters: torch.Tensor) -> torch.Tensor:
        whole, k = torch.ones(sizes, dtype=torch.double), 0
        for shape, where in zip(shapes, axes, strict=True):
            part = parameters[k : k + int(np.prod(shape))].reshape(shape).softmax(0)
            k += part.numel()
            whole = whole * part.reshape([s if i in where else 1 for i, s in enumerate(sizes)])
        return whole.flatten(len(g)).sum(-1).flatten() if latents else whole.flatten()

    return torch.randn(size, generator=generator, dtype=torch.double), run, weight


def test_counterfactuals_identified_are_those_determined_by_the_law() -> None:
    """The rank test for P(y_x | evidence) on graphs of three nodes, over all response types."""
    torch_generator, generator = torch.Generator().manual_seed(0), np.random.default_rng(0)
    answers = []
    while len(answers) < 90:
        g = random_admg(generator, 3, int(generator.integers(0, 3)))
        x, y = pick(generator, g.nodes, 2)[0]
        if y not in g.descendants(x):
            continue
        z = [n for n in g.nodes if generator.random() < 0.4]
        start, run, weight = responses(g, torch_generator)
        facts, other = run({}), run({x: 1})
        states = itertools.product((0, 1), repeat=3)
        cells = [np.all([facts[n] == v for n, v in zip(g, s, strict=True)], 0) for s in states]
        events = [
            np.all([facts[n] == v for n, v in zip(z, s, strict=True)] or [facts[x] >= 0], 0)
            for s in itertools.product((0, 1), repeat=len(z))
        ]

        def chance(p: torch.Tensor, sets: list[np.ndarray], weight=weight) -> torch.Tensor:
            return torch.as_tensor(np.array(sets), dtype=torch.double) @ weight(p)

        def asked(p: torch.Tensor, events=events, hit=other[y] == 1, chance=chance) -> torch.Tensor:
            return chance(p, [e & hit for e in events]) / chance(p, events)

        jacobian = torch.autograd.functional.jacobian
        law = torch.linalg.svd(jacobian(lambda p, f=chance, c=cells: f(p, c), start))
        span = law.Vh[: len(law.S)][law.S > 1e-9]
        gradient = jacobian(asked, start)
        outside = gradient - gradient @ span.T @ span
        determined = bool(outside.norm() < 1e-7 * max(1e-3, float(gradient.norm())))
        assert bool(identify(g, y, x, z, rung=3)) == determined, (str(g), x, y, z)
        answers.append(determined)
    assert 0.1 < np.mean(answers) < 0.9


# The textbook --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "strategy", "formula"),
    [
        ("x -> y", "conditioning", "P(y | x)"),
        ("y -> x", "no path", "P(y)"),
        ("z -> x -> y; z -> y", "backdoor", "sum_{z} P(y | x, z) P(z)"),
        ("x -> m -> y; x <-> y", "frontdoor", "sum_{m} P(m | x) sum_{x'} P(y | x', m) P(x')"),
        (  # a butterfly: z alone opens a - z - b
            "a -> x -> y; b -> y; a -> z <- b; x <- z -> y",
            "backdoor",
            "sum_{b, z} P(y | x, b, z) P(b, z)",
        ),
        ("x <-> z <-> y; x -> y", "conditioning", "P(y | x)"),  # M-bias: adjust for nothing
        ("x -> m -> y", "conditioning", "P(y | x)"),
    ],
)
def test_textbook_formulas(text: str, strategy: str, formula: str) -> None:
    found = identify(Graph.parse(text), "y", "x")
    assert (found.strategy, found.formula) == (strategy, formula)
    assert str(found.estimand) == formula
    assert bool(found)


def test_the_napkin() -> None:
    g = Graph.parse("w -> r -> x -> y; w <-> x; w <-> y")
    found = identify(g, "y", "x")
    assert found.strategy == "ID"
    assert found.formula == (
        "(sum_{w} P(w) P(x | w, r) P(y | w, r, x)) / (sum_{w} P(w) P(x | w, r))"
    )
    agrees(found, Worlds(g, np.random.default_rng(0)), ("y",), ("x",), ())
    treated = identify(g, "y", "x", "x", rung=3)
    assert not treated
    assert "child y" in treated.reason
    assert "binary" in treated.reason


@pytest.mark.parametrize(
    ("text", "outer", "inner"),
    [
        ("x -> y; x <-> y", "{x, y}", "{y}"),
        ("z -> x -> y; x <-> y", "{x, y}", "{y}"),
        ("x -> m -> y; x <-> m", "{x, m}", "{m}"),
        ("x -> m -> y; x <-> m <-> y", "{x, m, y}", "{m, y}"),
        ("x -> z -> y; x <-> z; z <-> y", "{x, z, y}", "{z, y}"),
    ],
)
def test_hedges_are_named(text: str, outer: str, inner: str) -> None:
    found = identify(Graph.parse(text), "y", "x")
    assert not found
    assert found.formula == ""
    assert f"hedge ({outer}, {inner})" in found.reason
    assert found.reason in str(found)


def test_an_instrument_is_named_not_used() -> None:
    found = identify(Graph.parse("z -> x -> y; x <-> y"), "y", "x")
    assert not found
    assert "z is an instrument" in found.reason
    assert "instrument" not in identify(Graph.parse("x -> y; x <-> y; x -> w"), "y", "x").reason


def test_the_adjustment_set_is_minimal_and_valid() -> None:
    generator = np.random.default_rng(8)
    sizes = []
    for _ in range(60):
        g = random_admg(generator, 6, 1)
        y, x = pick(generator, g.nodes, 1, 1)
        found = identify(g, y, x)
        if not found.adjustment:
            continue
        sizes.append(len(found.adjustment))
        cut = g.cut(out_of=x)
        if not set(found.adjustment) & set(g.descendants(x)):
            assert cut.m_separated(x, y, found.adjustment)
            for k in range(len(found.adjustment)):
                for fewer in itertools.combinations(found.adjustment, k):
                    assert not cut.m_separated(x, y, fewer)
    assert max(sizes) > 1


def test_conditional_effects() -> None:
    g = Graph.parse("z -> x -> y; z -> y; w -> y")
    assert identify(g, "y", "x", "w").formula == "sum_{z} P(y | x, w, z) P(z | w)"
    assert identify(g, "y", "x", "z").formula == "P(y | x, z)"
    assert identify(g, "y", "x", ["z", "w"], rung=1).formula == "P(y | z, x, w)"


# Rung 3 --------------------------------------------------------------------------------------


def test_rungs_of_one_graph() -> None:
    g = Graph.parse("z -> x -> y; z -> y")
    assert identify(g, "y", "x", "x", rung=3).formula == "sum_{z} P(y | x, z) P(z | x')"
    assert identify(g, "y", "x", "z", rung=3) == identify(g, "y", "x", "z")
    assert identify(g, "y", "x", rung=3) == identify(g, "y", "x")
    unit = identify(g, "y", "x", ["x", "y"], rung=3)
    assert not unit
    assert "single units" in unit.reason
    assert any("functional form" in a for a in unit.assumptions)
    known = identify(g, "y", "x", ["x", "y"], rung=3, functional_form=True)
    assert known
    assert known.strategy == "functional form"
    assert any("functional form" in a for a in known.assumptions)
    confounded = Graph.parse("x -> y; x <-> y")
    assert not identify(confounded, "y", "x", ["x", "y"], rung=3, functional_form=True)


def test_unit_counterfactuals_differ_between_models_of_one_law() -> None:
    """y = x xor u and y = u, with u a fair coin, have one law and disagree on y_x given (x, y)."""
    x, u = (v.ravel() for v in np.indices((2, 2)))
    one, other = x ^ u, u
    for a, b in itertools.product((0, 1), repeat=2):
        assert np.mean((x == a) & (one == b)) == np.mean((x == a) & (other == b))
    seen_one, seen_other = (x == 0) & (one == 0), (x == 0) & (other == 0)
    assert np.mean((1 ^ u)[seen_one]) != np.mean(u[seen_other])
    assert not identify(Graph.parse("x -> y"), "y", "x", ["x", "y"], rung=3)


def test_no_effect_is_the_fact() -> None:
    g = Graph.parse("y -> x; x <-> y; x -> d")
    assert identify(g, "y", "x", "y", rung=3).formula == "the factual value"
    assert identify(g, "y", "x", "d", rung=3).formula == "P(y | d)"


def test_evidence_that_tells_nothing_is_dropped() -> None:
    g = Graph.parse("x -> y; x -> d")
    assert identify(g, "y", "x", ["x", "d"], rung=3).formula == "P(y | x)"
    shared = identify(Graph.parse("x -> y; x -> d; d <-> y"), "y", "x", ["x", "d"], rung=3)
    assert not shared
    assert "no rule" in shared.reason


def test_evidence_below_the_treatment_that_adjustment_answers() -> None:
    g = Graph.parse("z -> x -> y; z -> y; x -> d")
    found = identify(g, "y", "x", "d", rung=3)
    assert found.formula == "sum_{z} P(y | x, z) P(z | d)"
    agrees(found, Worlds(g, np.random.default_rng(2)), ("y",), ("x",), ("d",), real=True)


# Estimands -----------------------------------------------------------------------------------


def test_tables_are_computed_by_name() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(24)).reshape(2, 3, 4)
    joint = Table(("a", "b", "c"), p)
    got = Prob(("c",), ("a",)).evaluate(joint)
    assert got.names == ("a", "c")
    np.testing.assert_allclose(got.values, p.sum(1) / p.sum((1, 2))[:, None])
    inner = total(["b"], product([Prob(("a",), ("b",)), Prob(("b",)), Prob(("c",), ("b",))]))
    expected = np.einsum(
        "ab,b,bc->ac", p.sum(2) / p.sum((0, 2)), p.sum((0, 2)), p.sum(0) / p.sum((0, 2))[:, None]
    )
    np.testing.assert_allclose(inner.evaluate(joint).values, expected)
    second = product([Prob(("c",), ("a",)), Renamed(Prob(("a",)), (("a", "a'"),))]).evaluate(joint)
    assert second.names == ("a", "c", "a'")
    np.testing.assert_allclose(second.values[1, 2], p[1].sum(0)[2] / p[1].sum() * p.sum((1, 2)))
    with pytest.raises(KeyError, match="'d'"):
        Prob(("d",)).evaluate(joint)
    with pytest.raises(ValueError, match="axes"):
        Table(("a",), p)


def test_simplification_keeps_the_value() -> None:
    p = Table(("a", "b", "c"), np.random.default_rng(1).dirichlet(np.ones(8)).reshape(2, 2, 2))
    parts = (Prob(("a", "b"), ("c",)), Prob(("c",)))
    for over in itertools.chain.from_iterable(itertools.combinations("abc", k) for k in range(4)):
        short, long = total(over, product(parts)), Sum(over, Product(parts))
        assert len(str(short)) < len(str(long)) or not {*over} & {*"ab"}
        np.testing.assert_allclose(short.evaluate(p).values, long.evaluate(p).values)
    whole = product([*parts, Prob(("a",))])
    np.testing.assert_allclose(
        ratio(whole, Prob(("a",))).evaluate(p).values,
        Ratio(whole, Prob(("a",))).evaluate(p).values,
    )
    assert str(ratio(whole, Prob(("a",)))) == "P(a, b | c) P(c)"
    twice = total(["c"], Prob(("a",)))  # a sum over what the term does not hold counts its states
    np.testing.assert_allclose(twice.evaluate(p).values, 2 * p.values.sum((1, 2)))


def test_impossible_conditions() -> None:
    p = Table(("z", "x", "y"), np.array([[[0.2, 0.3], [0.1, 0.4]], [[0, 0], [0, 0]]]))
    found = identify(Graph.parse("z -> x -> y; z -> y"), "y", "x").estimand
    assert found is not None
    np.testing.assert_allclose(found.evaluate(p).values, [[0.4, 0.6], [0.2, 0.8]])  # z=1 never is
    p.values[1, 0] = p.values[0, 0] / 2
    p.values[0, 0] /= 2  # z=1, x=1 is never seen, though z=1 is
    got = found.evaluate(p).at(x=1).values
    assert np.isnan(got).all()
    assert any("positivity" in a for a in identify(Graph.parse("x -> y"), "y", "x").assumptions)


# What is refused -----------------------------------------------------------------------------


def test_bad_questions() -> None:
    g = Graph.parse("treatment -> outcome; u [latent] -> outcome")
    with pytest.raises(KeyError, match="Did you mean 'treatment'"):
        identify(g, "outcome", "treatmnt")
    with pytest.raises(KeyError, match="'nothing'"):
        identify(g, "outcome", "treatment", observed=["nothing"])
    with pytest.raises(ValueError, match="disjoint"):
        identify(g, "outcome", "treatment", "outcome")
    with pytest.raises(ValueError, match="rung"):
        identify(g, "outcome", "treatment", rung=4)
    with pytest.raises(ValueError, match="an outcome"):
        identify(g, (), "treatment")
    with pytest.raises(ValueError, match="DAG or ADMG"):
        identify(Graph.parse("a o-> b"), "b", "a")
    assert "not observed" in identify(g, "outcome", "u").reason
    selected = Graph.parse("s [selection]; x -> y -> s")
    assert "selected by s" in identify(selected, "y", "x").reason
