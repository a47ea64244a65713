"""Graph: against networkx, brute force over all small graphs, and its own round trips."""

import copy
import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from subjunctive.graph import Graph
from subjunctive.marks import ARROW, CIRCLE, TAIL

MIXED = """
u [latent], s [selection]   # kinds
u -> 'blood pressure'; pH.1, type -> x[t-1] -> "x[t]"
type <-> pH.1; type -> "a \\"b\\"; c"; x[t] -> s
type <-> x[t-1]             # beside type -> x[t-1]
context [context] -> type; alone
"""
PAG = "a o-> b <-> c; c o-o d; d -- e; f o-- d; f"


def random_dag(generator: np.random.Generator, n: int, density: float = 0.4) -> Graph:
    upper = np.triu(generator.random((n, n)) < density, 1)
    order = generator.permutation(n)
    return Graph.from_adjacency(upper[np.ix_(order, order)], [f"n{i}" for i in range(n)])


def random_admg(generator: np.random.Generator, n: int, density: float = 0.4) -> Graph:
    dag = random_dag(generator, n, density)
    both = np.triu(generator.random((n, n)) < 0.3, 1)
    return Graph(dag.nodes, dag.marks, both | both.T)


def subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [s for k in range(len(names) + 1) for s in itertools.combinations(names, k)]


def all_dags(n: int) -> list[Graph]:
    pairs = list(itertools.combinations(range(n), 2))
    found = []
    for choice in itertools.product(("", "->", "<-"), repeat=len(pairs)):
        edges = [(f"n{i}", m, f"n{j}") for (i, j), m in zip(pairs, choice, strict=True) if m]
        graph = Graph.from_edges(edges, [f"n{i}" for i in range(n)], allow_cycles=True)
        found += [graph] if graph.is_dag else []
    return found


# Text ------------------------------------------------------------------------------------------


def test_text_says_what_it_says() -> None:
    g = Graph.parse(MIXED)
    assert g.nodes == (
        *("u", "s", "blood pressure", "pH.1", "type", "x[t-1]", "x[t]", 'a "b"; c'),
        *("context", "alone"),
    )
    assert g.parents("x[t-1]") == ("pH.1", "type")
    assert g.siblings("type") == ("pH.1", "x[t-1]")
    assert g.children("type") == ("x[t-1]", 'a "b"; c')
    assert [g.kinds[g.nodes.index(n)] for n in ("u", "s", "context", "type")] == [
        *("latent", "selection", "context", "observed")
    ]
    assert g.is_admg
    assert not g.is_dag


def test_marks_are_at_the_right_end() -> None:
    g = Graph.parse(PAG)
    i = {n: k for k, n in enumerate(g.nodes)}

    def ends(a: str, b: str) -> tuple[int, int]:
        return int(g.marks[i[b], i[a]]), int(g.marks[i[a], i[b]])

    assert ends("a", "b") == (CIRCLE, ARROW)
    assert ends("b", "c") == (ARROW, ARROW)
    assert ends("c", "d") == (CIRCLE, CIRCLE)
    assert ends("d", "e") == (TAIL, TAIL)
    assert ends("f", "d") == (CIRCLE, TAIL)
    assert ends("a", "c") == (0, 0)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a->b->c", "a -> b; b -> c"),
        ("a <- b\n\nb <-> c", "b -> a; b <-> c"),
        ("a - b", "a -- b"),
        ("a -o b; o -> b", "a -o b; o -> b"),
        ("a, b -> c, d", "a -> c; a -> d; b -> c; b -> d"),
        ("age-group -> x.y_z", "'age-group' -> 'x.y_z'"),
    ],
)
def test_ways_to_write_one_graph(text: str, same: str) -> None:
    one, other = Graph.parse(text), Graph.parse(same)
    assert set(one.nodes) == set(other.nodes)
    assert {(a, m, b) for a, m, b in one.edges} == {(a, m, b) for a, m, b in other.edges}


@pytest.mark.parametrize(
    "text",
    [
        "a ->",
        "-> a",
        "a b -> c",
        "a -> -> b",
        "a, -> b",
        "a -> b,",
        ",a",
        "a [latent] b",
        "'a -> b",
    ],
)
def test_broken_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="graph text"):
        Graph.parse(text)


# Round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [MIXED, PAG, "b -> a", "", "only", "a -> b; a <-> b; c -> b", "1 -> 2"]
)
def test_round_trips(text: str) -> None:
    g = Graph.parse(text)
    assert Graph.parse(str(g)) == g
    assert eval(repr(g), {"Graph": Graph}) == g
    assert Graph.from_networkx(g.to_networkx()) == g
    assert Graph.from_dot(g.to_dot()) == g
    assert Graph.from_gml(g.to_gml()) == g
    plain = Graph(g.nodes, g.marks, g.bidirected)  # a DataFrame has no kinds
    assert Graph.from_pandas(g.to_pandas()) == plain
    assert copy.deepcopy(g) == g


def test_round_trips_of_odd_names() -> None:
    odd = ["->", "[latent]", "a\nb", 'quote"', "back\\slash", "#", " ", "o", "x;y", "é", "--", "'"]
    g = Graph.from_edges(itertools.pairwise(odd))
    for back in (
        Graph.parse(str(g)),
        Graph.from_dot(g.to_dot()),
        Graph.from_gml(g.to_gml()),
        Graph.from_networkx(g.to_networkx()),
        Graph.from_pandas(g.to_pandas()),
    ):
        assert back == g


def test_every_converter_keeps_the_direction() -> None:
    g = Graph.parse("cause -> effect")
    assert g.adjacency.tolist() == [[False, True], [False, False]]
    assert g == Graph.from_adjacency([[0, 1], [0, 0]], ["cause", "effect"])
    assert g == Graph.from_networkx(nx.DiGraph([("cause", "effect")]))
    assert g == Graph.from_dot("digraph { cause -> effect }")
    assert g == Graph.from_edges([("effect", "<-", "cause")], ["cause", "effect"])
    frame = pd.DataFrame([[0, 1.5], [0, 0]], ["cause", "effect"], ["cause", "effect"])
    assert g == Graph.from_pandas(frame)
    assert g.to_pandas().loc["cause", "effect"] == 1
    assert list(g.to_networkx().edges) == [("cause", "effect")]
    assert nx.parse_gml(g.to_gml()).has_edge("cause", "effect")
    assert '"cause" -> "effect"' in g.to_dot()
    one_way = Graph.parse("a o-> b")
    assert one_way.to_pandas().loc["a", "b"] == "o->"
    assert one_way.to_pandas().loc["b", "a"] == "<-o"


def test_dot_of_others() -> None:
    text = """
    // made by hand
    strict digraph "my graph" {
        graph [rankdir=LR, label="x -> y"]; node [shape=box]
        edge [color=red];
        subgraph cluster_0 { a; b -> c:port [weight=2, dir=back]; label="in"; }
        {a b} -> "blood pressure" /* twice */ -> -1.5;
        U [observed=no]; U -> a; U -> b [arrowtail=odot dir=both]
    }
    """
    g = Graph.from_dot(text)
    assert g == Graph.from_edges(
        [
            *(("c", "b"), ("a", "blood pressure"), ("b", "blood pressure")),
            *(("blood pressure", "-1.5"), ("U", "a"), ("U", "o->", "b")),
        ],
        {"a": "observed", "b": "observed", "c": "observed", "blood pressure": "observed"}
        | {"-1.5": "observed", "U": "latent"},
    )
    dagitty = Graph.from_dot('dag { bb="0,0,1,1" u [latent,pos="1,2"] u -> x; x <-> y; x @-> z }')
    assert dagitty == Graph.parse("u [latent], x, y, z; u -> x; x <-> y; x o-> z")
    assert Graph.from_dot("graph { a -- b -- c }") == Graph.parse("a -- b -- c")


@pytest.mark.parametrize(
    "text", ["a -> b", "digraph { a -> }", "digraph { a [b", "digraph { a -> b"]
)
def test_broken_dot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="DOT text"):
        Graph.from_dot(text)


# What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cycle"),
    [
        ("a -> b -> c -> a; r -> a; c -> leaf", "a -> b -> c -> a"),
        ("a -> b; b -> a", "a -> b -> a|b -> a -> b"),
        ("a -> a", "a -> a"),
        ("z -> y -> x -> z; x <-> y", "z -> y -> x -> z"),
    ],
)
def test_a_cycle_is_named(text: str, cycle: str) -> None:
    with pytest.raises(ValueError, match=f"directed cycle: ({cycle});"):
        Graph.parse(text)


def test_cycles_by_leave() -> None:
    g = Graph.parse("a -> b -> c -> a", allow_cycles=True)
    assert not g.is_dag
    assert not g.is_admg
    assert g.ancestors("a") == ("b", "c")
    with pytest.raises(ValueError, match="a -> b -> c -> a"):
        _ = g.order
    with pytest.raises(ValueError, match="a -> b -> c -> a"):
        g.m_separated("a", "b")
    mixed = Graph.parse("a -> b -> c -> a; c -- d")  # a pattern that data contradicted
    assert not mixed.is_cpdag
    assert not mixed.is_mag
    assert not mixed.is_pag


def test_unknown_names_teach() -> None:
    g = Graph.parse("thickness -> intensity")
    for ask in (
        g.parents,
        g.descendants,
        g.do,
        g.subgraph,
        lambda n: g.m_separated(n, "intensity"),
    ):
        with pytest.raises(KeyError, match="Did you mean 'thickness'"):
            ask("thicknes")
    with pytest.raises(KeyError, match="Did you mean 'thickness'"):
        g.rename({"thicknes": "t"})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Graph(["a", "a"]), "'a'"),
        (lambda: Graph([""]), "non-empty"),
        (lambda: Graph(["a", "b"], [[0, 2], [0, 0]]), "both ends"),
        (lambda: Graph(["a", "b"], [[0, 7], [7, 0]]), "marks are"),
        (lambda: Graph(["a"], [[0, 1], [1, 0]]), "shape"),
        (lambda: Graph(["a", "b"], None, [[0, 1], [0, 0]]), "symmetric"),
        (lambda: Graph(["a"], None, [[True]]), "a -> a"),
        (lambda: Graph(["a"], kinds=["hidden"]), "hidden"),
        (lambda: Graph.parse("a -- b; a <-> b"), "beside a directed edge"),
        (lambda: Graph.parse("a -- b; a -> b"), "two different edges"),
        (lambda: Graph.from_edges([("a", "=>", "b")]), "'=>'"),
        (lambda: Graph.from_adjacency([[0, 1]]), "square"),
        (lambda: Graph.from_adjacency([[0, np.nan], [0, 0]]), "NaN"),
        (lambda: Graph.from_adjacency([[0]], ["a", "b"]), "2 names for 1"),
        (lambda: Graph.from_pandas(pd.DataFrame([[0, 1], [0, 0]], ["a", "b"], ["b", "a"])), "same"),
        (lambda: Graph.parse("a -> b").m_separated("a", "b", "a"), "disjoint"),
        (lambda: Graph.parse("a <-> b").d_separated("a", "b"), "m_separated"),
        (lambda: Graph.parse("a o-> b").do("b"), "member"),
        (lambda: Graph.parse("a <-> b").cpdag(), "DAG"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_immutable_and_hashable() -> None:
    g = Graph.parse("a -> b")
    with pytest.raises(AttributeError, match="immutable"):
        g.nodes = ("c",)  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del g.marks
    with pytest.raises(ValueError, match="read-only"):
        g.marks[0, 1] = 0
    with pytest.raises(ValueError, match="read-only"):
        g.bidirected[0, 1] = True
    given = np.zeros((2, 2), np.int8)
    made = Graph(["a", "b"], given)
    given[:] = 1
    assert not made.marks.any()
    twin = Graph.parse("a -> b")
    assert hash(g) == hash(twin)
    assert {g: 1}[twin] == 1
    assert g != Graph.parse("b -> a")
    assert g != Graph.parse("a [latent] -> b")
    assert g != Graph.parse("a -> b; a <-> b")
    assert g != "a -> b"


# Relations -------------------------------------------------------------------------------------


def test_relations_agree_with_networkx() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        g = random_dag(generator, 8, 0.3)
        other = nx.DiGraph([(a, b) for a, _, b in g.edges])
        other.add_nodes_from(g.nodes)
        assert nx.is_directed_acyclic_graph(other)
        for n in g.nodes:
            assert set(g.parents(n)) == set(other.predecessors(n))
            assert set(g.children(n)) == set(other.successors(n))
            assert set(g.ancestors(n)) == nx.ancestors(other, n)
            assert set(g.descendants(n)) == nx.descendants(other, n)
        key = {n: i for i, n in enumerate(g.nodes)}
        assert list(g.order) == list(nx.lexicographical_topological_sort(other, key=key.get))
        moral = nx.moral_graph(other)
        assert {frozenset((a, b)) for a, _, b in g.moralize().edges} == set(
            map(frozenset, moral.edges)
        )


def test_order_is_stable() -> None:
    assert Graph.parse("c, b, a").order == ("c", "b", "a")
    assert Graph.parse("x, t, i; t -> i -> x; t -> x").order == ("t", "i", "x")


def test_districts_are_the_bidirected_components() -> None:
    g = Graph.parse("a <-> b; c -> d; b <-> d; e")
    assert g.districts == (("a", "b", "d"), ("c",), ("e",))


def test_sets_of_names() -> None:
    g = Graph.parse("a -> b -> c; d -> c")
    assert g.ancestors(["b", "c"]) == ("a", "d")
    assert g.parents({"b", "c"}) == ("a", "b", "d")
    assert g.descendants(()) == ()
    assert g.do({"c": 1.0}).parents("c") == ()


# Separation ------------------------------------------------------------------------------------


def test_d_separation_agrees_with_networkx() -> None:
    generator = np.random.default_rng(1)
    for _ in range(60):
        g = random_dag(generator, 7)
        other = nx.DiGraph([(a, b) for a, _, b in g.edges])
        other.add_nodes_from(g.nodes)
        for _ in range(8):
            role = generator.integers(0, 4, len(g))
            a, b, z = ({n for n, r in zip(g.nodes, role, strict=True) if r == k} for k in (1, 2, 3))
            if a and b:
                assert g.d_separated(a, b, z) == nx.is_d_separator(other, a, b, z)


def test_m_separation_is_d_separation_in_the_canonical_dag() -> None:
    generator = np.random.default_rng(2)
    outcomes = []
    for _ in range(60):
        g = random_admg(generator, 6, 0.3)
        dag = g.canonical()
        assert dag.is_dag
        other = nx.DiGraph([(a, b) for a, _, b in dag.edges])
        other.add_nodes_from(dag.nodes)
        for _ in range(8):
            role = generator.integers(0, 4, len(g))
            a, b, z = ({n for n, r in zip(g.nodes, role, strict=True) if r == k} for k in (1, 2, 3))
            if a and b:
                outcomes.append(g.m_separated(a, b, z))
                assert outcomes[-1] == nx.is_d_separator(other, a, b, z)
                moral = g.subgraph({*a, *b, *z, *g.ancestors({*a, *b, *z})}).moralize()
                cut = nx.Graph([(p, q) for p, _, q in moral.edges])
                cut.add_nodes_from([*a, *b])
                cut.remove_nodes_from(z & set(cut))
                joined = set().union(*(nx.node_connected_component(cut, n) for n in a))
                assert outcomes[-1] == (not joined & b)
    assert 0.1 < np.mean(outcomes) < 0.9


def test_canonical_and_latent_projection_are_inverse() -> None:
    generator = np.random.default_rng(3)
    for _ in range(30):
        g = random_admg(generator, 6)
        assert g.canonical().latent_projection(g.nodes) == g


def test_latent_projection_keeps_separations_and_ancestors() -> None:
    generator = np.random.default_rng(4)
    for _ in range(15):
        g = random_admg(generator, 6, 0.35)
        kept = [n for n in g.nodes if generator.random() < 0.6]
        small = g.latent_projection(kept)
        assert small.nodes == tuple(kept)
        for a, b in itertools.combinations(kept, 2):
            assert (a in small.ancestors(b)) == (a in g.ancestors(b))
            for z in subsets([n for n in kept if n not in (a, b)]):
                assert small.m_separated(a, b, z) == g.m_separated(a, b, z)


def test_new_names_of_latent_roots_do_not_meet() -> None:
    g = Graph.parse("'u[a,b]' -> a; a <-> b")
    assert len(g.canonical()) == 4


# Surgery ---------------------------------------------------------------------------------------


def test_do_removes_what_points_at_the_target() -> None:
    g = Graph.parse("z -> t -> y; t <-> y; z <-> t; t <-> w; y <-> w; w -> t")
    cut = g.do("t")
    assert set(cut.edges) == {("t", "->", "y"), ("y", "<->", "w")}
    assert cut.nodes == g.nodes
    assert g.do(()) == g
    assert g.cut(out_of="t").edges == tuple(e for e in g.edges if e != ("t", "->", "y"))


def test_subgraph_and_rename() -> None:
    g = Graph.parse("u [latent] -> a; a -> b -> c; a <-> b")
    assert g.subgraph(["b", "u", "a"]) == Graph.parse("u [latent] -> a; a -> b; a <-> b")
    assert g.rename({"a": "type", "b": "a"}) == Graph.parse(
        "u [latent] -> type; type -> a -> c; type <-> a"
    )
    with pytest.raises(ValueError, match="two nodes"):
        g.rename({"a": "b"})


# Equivalence classes ---------------------------------------------------------------------------


def test_cpdags_are_the_markov_equivalence_classes_of_all_dags_of_four_nodes() -> None:
    dags = all_dags(4)
    assert len(dags) == 543
    classes: dict[Graph, set] = {}
    for g in dags:
        a = g.adjacency
        collider = frozenset(
            (i, j, k)
            for i, k in itertools.combinations(range(4), 2)
            for j in range(4)
            if a[i, j] and a[k, j] and not g.skeleton[i, k]
        )
        classes.setdefault(g.cpdag(), set()).add((g.skeleton.tobytes(), collider))
    assert len(classes) == 185  # known: Gillispie and Perlman (2001)
    assert all(len(kinds) == 1 for kinds in classes.values())
    assert len({next(iter(kinds)) for kinds in classes.values()}) == 185
    members: dict[Graph, list[Graph]] = {}
    for g in dags:
        members.setdefault(g.cpdag(), []).append(g)
    for pattern, those in members.items():
        assert pattern.is_cpdag
        assert pattern.member() in those
        directed = np.all([g.adjacency for g in those], axis=0)
        assert np.array_equal(pattern.adjacency, directed)


def test_separation_of_a_pattern_is_that_of_its_dag() -> None:
    generator = np.random.default_rng(5)
    for _ in range(30):
        g = random_dag(generator, 6, 0.5)
        pattern = g.cpdag()
        for a, b in itertools.combinations(g.nodes, 2):
            z = [n for n in g.nodes if n not in (a, b) and generator.random() < 0.4]
            assert pattern.d_separated(a, b, z) == g.d_separated(a, b, z)


@pytest.mark.parametrize(
    "text", ["a -> b -- c", "a -> b -> c", "a -- b -- c -- d -- a", "a o-o b", "a <-> b"]
)
def test_what_is_no_cpdag(text: str) -> None:
    assert not Graph.parse(text).is_cpdag


def test_mags_by_brute_force() -> None:
    generator = np.random.default_rng(6)
    seen = []
    for _ in range(150):
        g = random_admg(generator, 4, 0.5)
        one_edge = not (g.bidirected & (g.adjacency | g.adjacency.T)).any()
        ancestral = not any(a in g.ancestors(b) for a in g.nodes for b in g.siblings(a))
        maximal = all(
            any(g.m_separated(a, b, z) for z in subsets([n for n in g.nodes if n not in (a, b)]))
            for (i, a), (j, b) in itertools.combinations(enumerate(g.nodes), 2)
            if not g.skeleton[i, j]
        )
        seen.append(one_edge and ancestral and maximal)
        assert g.is_mag == seen[-1]
    assert 0.1 < np.mean(seen) < 0.9
    assert not Graph.parse("a -> b <-> c <-> d; b -> d; c -> d; c -> a").is_mag
    assert Graph.parse("a -- b; b -- c; a -- c").is_mag
    assert not Graph.parse("a -- b <- c").is_mag


def test_an_inducing_path_makes_a_graph_not_maximal() -> None:
    text = "a <-> b <-> c <-> d; b -> d; c -> a"  # Richardson and Spirtes (2002), figure 7
    assert not Graph.parse(text).is_mag
    assert Graph.parse(f"{text}; a <-> d").is_mag


def test_pags() -> None:
    g = Graph.parse("a o-> c <-o b; c -> d")
    assert g.is_pag
    assert g.m_separated("a", "b")
    assert not g.m_separated("a", "b", "d")
    assert g.m_separated("a", "d", "c")
    chain = Graph.parse("a o-o b; b o-o c")
    assert chain.is_pag
    assert not chain.m_separated("a", "c")
    assert chain.m_separated("a", "c", "b")
    assert not Graph.parse("a o-o b; b o-o c; c o-o d; d o-o a").is_pag
    with pytest.raises(ValueError, match="no DAG or MAG"):
        Graph.parse("a o-o b; b o-o c; c o-o d; d o-o a").m_separated("a", "c")


# Drawing ---------------------------------------------------------------------------------------


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.mark.parametrize("text", [MIXED, PAG, "a -> b; a <-> b", "", "alone"])
def test_a_picture_has_every_node_and_edge(axes, text: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    g = Graph.parse(text)
    assert g.draw(axes) is axes
    axes.figure.draw_without_rendering()
    assert [t.get_text() for t in axes.texts] == list(g.nodes)
    arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    assert len(arrows) == len(g.edges)
    dashed = [a.get_linestyle() in ("--", "dashed") for a in arrows]
    assert sum(dashed) == sum(m == "<->" for _, m, _ in g.edges)
    heads = sum((m[0] in "<o") + (m[-1] in ">o") for _, m, _ in g.edges)
    paths = [a._get_path_in_displaycoord()[0] for a in arrows]
    assert sum(len(p) - 1 for p in paths) == heads


@pytest.mark.parametrize("text", ["", "a -> b"])
def test_a_picture_of_its_own_holds_all_labels(text: str) -> None:
    own = Graph.parse(text).draw(positions={"a": (50.0, 9.0), "b": (50.0, 8.0)})
    own.figure.draw_without_rendering()
    frame = own.get_window_extent()
    for label in own.texts:
        box = label.get_window_extent()
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
    assert np.ptp(own.get_xlim()) < 10


def test_causes_stand_above_effects_and_labels_apart(axes) -> None:
    from subjunctive.graph_draw import layout

    generator = np.random.default_rng(7)
    for _ in range(20):
        g = random_dag(generator, 8, 0.3)
        place = layout(g)
        assert all(place[a][1] >= place[b][1] + 1 for a, _, b in g.edges)
        assert all(
            np.hypot(*np.subtract(p, q)) > 0.9 for p, q in itertools.combinations(place.values(), 2)
        )
    with pytest.raises(ValueError, match="'b'"):
        Graph.parse("a -> b").draw(axes, positions={"a": (0.0, 0.0)})


def test_an_edge_goes_round_a_label_in_its_way(axes) -> None:
    Graph.parse("a -> b -> c; a -> c").draw(axes)
    bends = {p.get_connectionstyle().rad for p in axes.patches}
    assert len(bends) == 2
    assert 0.0 in bends
