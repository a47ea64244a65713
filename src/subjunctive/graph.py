"""One immutable graph for what is drawn in causality: DAG, CPDAG, MAG, PAG and ADMG.

An edge between i and j has a mark at each end: `marks[i, j]` is the mark at j (0 no edge, 1 circle,
2 arrow, 3 tail), so that i -> j is `marks[i, j] = 2, marks[j, i] = 3`. An ADMG may hold i -> j and
i <-> j at once, so `bidirected` is a symmetric matrix of its own; where i <-> j is the pair's only
edge, both marks are arrows too. What a graph is (`is_dag`, `is_pag`, ...) is a predicate.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from subjunctive import graph_draw, graph_io, marks
from subjunctive.marks import ARROW, CIRCLE, NONE, TAIL, Bools, Marks, NodeKind, checked
from subjunctive.variable import known

Names = str | Iterable[str]


class Graph:
    """An immutable, hashable graph with endpoint marks.

    Args:
        nodes: the names, distinct non-empty strings; their order is that of the matrices.
        marks: `(n, n)` endpoint marks; `marks[i, j]` is the mark at j of the edge between i and j.
        bidirected: `(n, n)` boolean, symmetric: edges i <-> j, also where i -> j stands in `marks`.
        kinds: "observed", "latent", "selection" or "context", by name or one a node; observed.
        allow_cycles: whether directed cycles may stand; they are refused otherwise wherever all
            edges are directed or bidirected.

    Raises:
        ValueError: for a directed cycle, which is named; marks that are no edge; equal names.

    Example:
        >>> g = Graph.parse("t -> i; t -> x; i -> x")
        >>> g.order, g.parents("x"), g.is_dag
        (('t', 'i', 'x'), ('t', 'i'), True)
        >>> g.do("i").d_separated("t", "i")
        True
        >>> Graph.parse("a -> b -> c -> a")
        Traceback (most recent call last):
        ValueError: a directed cycle: a -> b -> c -> a; remove an edge, or unroll time into names...
    """

    nodes: tuple[str, ...]
    marks: Marks
    bidirected: Bools
    kinds: tuple[NodeKind, ...]

    def __init__(
        self,
        nodes: Iterable[str],
        marks: ArrayLike | None = None,
        bidirected: ArrayLike | None = None,
        kinds: Mapping[str, NodeKind] | Sequence[NodeKind] | None = None,
        allow_cycles: bool = False,
    ) -> None:
        names = tuple(nodes)
        m, b, k = checked(names, marks, bidirected, kinds)
        self.__dict__.update(nodes=names, marks=m, bidirected=b, kinds=k)
        if not allow_cycles and not self._has_other_edges:
            self._refuse_cycle()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Graph is immutable: build a new one to change {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Graph is immutable: build a new one to drop {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph, (self.nodes, self.marks, self.bidirected, self.kinds, True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"Graph.parse({str(self)!r})"

    def __str__(self) -> str:
        return graph_io.to_text(self)

    # Readers and writers: graph_io --------------------------------------------------------------

    parse = classmethod(graph_io.parse)
    from_edges = classmethod(graph_io.from_edges)
    from_adjacency = classmethod(graph_io.from_adjacency)
    from_networkx = classmethod(graph_io.from_networkx)
    from_dot = classmethod(graph_io.from_dot)
    from_gml = classmethod(graph_io.from_gml)
    from_pandas = classmethod(graph_io.from_pandas)
    to_networkx = graph_io.to_networkx
    to_dot = graph_io.to_dot
    to_gml = graph_io.to_gml
    to_pandas = graph_io.to_pandas
    draw = graph_draw.draw

    # What it is ------------------------------------------------------------------------------

    @property
    def edges(self) -> tuple[tuple[str, str, str], ...]:
        """All edges as `(a, "->", b)`, by node order; directed ones start at the cause."""
        found = marks.edges(self.marks, self.bidirected)
        return tuple((self.nodes[i], mark, self.nodes[j]) for i, mark, j in found)

    @cached_property
    def adjacency(self) -> Bools:
        """The directed edges: `adjacency[i, j]` is i -> j; read-only."""
        found = marks.directed(self.marks)
        found.setflags(write=False)
        return found

    @property
    def undirected(self) -> Bools:
        """The edges with two tails; symmetric."""
        return marks.undirected(self.marks)

    @property
    def skeleton(self) -> Bools:
        """Which pairs have an edge of any kind; symmetric."""
        return self.marks != NONE

    @property
    def is_dag(self) -> bool:
        """Whether all edges are directed and no cycle stands."""
        return self.is_admg and not self.bidirected.any()

    @property
    def is_admg(self) -> bool:
        """Whether all edges are directed or bidirected and no cycle stands."""
        return not self._has_other_edges and not self._cycle

    @property
    def is_cpdag(self) -> bool:
        """Whether this is the completed pattern of a DAG's Markov equivalence class."""
        found = marks.member(self.marks, self.bidirected)
        if found is None or not Graph(self.nodes, found, allow_cycles=True).is_dag:
            return False
        return np.array_equal(marks.pattern(marks.directed(found)), self.marks)

    @property
    def is_mag(self) -> bool:
        """Whether this is a maximal ancestral graph; one edge a pair, no circles."""
        m, b = self.marks, self.bidirected
        return marks.is_ancestral(m, b) and marks.is_maximal(m, b)

    @property
    def is_pag(self) -> bool:
        """Whether orienting the circles as Zhang (2008) does gives a MAG: necessary for a PAG."""
        found = self.member()
        return found is not None and found.is_mag

    def cpdag(self) -> Graph:
        """Return the completed pattern of a DAG's Markov equivalence class.

        >>> print(Graph.parse("a -> b -> c; d -> c -> e").cpdag())
        a, b, c, d, e; a -- b; b -> c; c -> e; d -> c
        """
        if not self.is_dag:
            raise ValueError("cpdag() is of a DAG; member() gives a DAG of a class")
        return Graph(self.nodes, marks.pattern(self.adjacency), kinds=self.kinds)

    def member(self) -> Graph | None:
        """Return a DAG or MAG of the class that a CPDAG or PAG stands for; None if there is none.

        >>> Graph.parse("a -- b; b -- c").member().is_dag
        True
        """
        found = marks.member(self.marks, self.bidirected)
        if found is None:
            return None
        return Graph(self.nodes, found, self.bidirected, self.kinds, True)

    # Relations -------------------------------------------------------------------------------

    def parents(self, nodes: Names) -> tuple[str, ...]:
        """Return the nodes with a directed edge into any of `nodes`, in node order."""
        if isinstance(nodes, str) and nodes in self._parents:
            return self._parents[nodes]
        return self._pick(self.adjacency[:, self._mask(nodes, "parents()")].any(1))

    def children(self, nodes: Names) -> tuple[str, ...]:
        """Return the nodes that a directed edge joins from any of `nodes`, in node order."""
        return self._pick(self.adjacency[self._mask(nodes, "children()")].any(0))

    def siblings(self, nodes: Names) -> tuple[str, ...]:
        """Return the nodes with a bidirected edge to any of `nodes`, in node order."""
        return self._pick(self.bidirected[self._mask(nodes, "siblings()")].any(0))

    def ancestors(self, nodes: Names) -> tuple[str, ...]:
        """Return the nodes outside `nodes` from which a directed path leads to one of them."""
        start = self._mask(nodes, "ancestors()")
        return self._pick(marks.reach(self.adjacency.T, start) & ~start)

    def descendants(self, nodes: Names) -> tuple[str, ...]:
        """Return the nodes outside `nodes` to which a directed path leads from one of them."""
        start = self._mask(nodes, "descendants()")
        return self._pick(marks.reach(self.adjacency, start) & ~start)

    def of_kind(self, kind: NodeKind) -> tuple[str, ...]:
        """Return the nodes of one kind, in node order."""
        return tuple(n for n, k in zip(self.nodes, self.kinds, strict=True) if k == kind)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The nodes, causes before effects; ties stand in node order. A cycle raises."""
        self._refuse_cycle()
        adjacency = self.adjacency
        waiting = adjacency.sum(0)
        ready, found = [int(i) for i in np.flatnonzero(waiting == 0)], []
        while ready:
            found.append(heapq.heappop(ready))
            below = np.flatnonzero(adjacency[found[-1]])
            waiting[below] -= 1
            for j in below[waiting[below] == 0]:
                heapq.heappush(ready, int(j))
        return tuple(self.nodes[i] for i in found)

    @cached_property
    def districts(self) -> tuple[tuple[str, ...], ...]:
        """The c-components: nodes joined by bidirected paths."""
        each = (marks.reach(self.bidirected, row) for row in np.eye(len(self), dtype=bool))
        return tuple(dict.fromkeys(self._pick(district) for district in each))

    # Separation ------------------------------------------------------------------------------

    def d_separated(self, a: Names, b: Names, given: Names = ()) -> bool:
        """Return whether `given` blocks every path between `a` and `b` of a DAG or CPDAG.

        >>> g = Graph.parse("a -> m <- b; m -> d")
        >>> g.d_separated("a", "b"), g.d_separated("a", "b", given="d")
        (True, False)
        """
        if self.bidirected.any() or (self.marks == CIRCLE).any():
            raise ValueError("d-separation is of DAGs and CPDAGs; use m_separated here")
        return self.m_separated(a, b, given)

    def m_separated(self, a: Names, b: Names, given: Names = ()) -> bool:
        """Return whether `given` blocks every path between `a` and `b`.

        A CPDAG or PAG is asked through a member of its class: all members answer alike.

        >>> g = Graph.parse("a -> b <-> c <- d")
        >>> g.m_separated("a", "d", given="b"), g.m_separated("a", "d", given=["b", "c"])
        (True, False)

        Raises:
            ValueError: if sets overlap, a cycle stands, or no DAG or MAG has these marks.
        """
        sets = start, end, z = [self._mask(s, "m_separated()") for s in (a, b, given)]
        if (np.sum(sets, axis=0) > 1).any():
            raise ValueError(f"m_separated() needs disjoint sets, got {a!r}, {b!r} and {given!r}")
        self._refuse_cycle()
        determined = marks.is_determined(self.marks)
        found = self.marks if determined else marks.member(self.marks, self.bidirected)
        if found is None:
            raise ValueError("no DAG or MAG has these marks, so that separation is not defined")
        return marks.separated(found, self.bidirected, start, end, z)

    # New graphs ------------------------------------------------------------------------------

    def do(self, targets: Names) -> Graph:
        """Return the graph without the edges that have an arrow at a target.

        >>> print(Graph.parse("z -> t -> y; t <-> y").do("t"))
        z, t, y; t -> y
        """
        return self.cut(into=targets)

    def cut(self, into: Names = (), out_of: Names = ()) -> Graph:
        """Return the graph without edges with an arrow at `into`, or directed out of `out_of`."""
        if not marks.is_determined(self.marks):
            raise ValueError("surgery needs known marks; take a member() of the class first")
        heads, tails = self._mask(into, "do()"), self._mask(out_of, "cut()")
        drop = ((self.marks == ARROW) & heads) | (self.adjacency & tails[:, None])
        left = np.where(drop | drop.T, NONE, self.marks)
        both = self.bidirected & ~heads & ~heads[:, None]
        return Graph(self.nodes, left, both, self.kinds, True)

    def subgraph(self, nodes: Names) -> Graph:
        """Return the graph of these nodes, in node order, and of the edges between them."""
        keep = np.flatnonzero(self._mask(nodes, "subgraph()"))
        names, kinds = [self.nodes[i] for i in keep], [self.kinds[i] for i in keep]
        box = np.ix_(keep, keep)
        return Graph(names, self.marks[box], self.bidirected[box], kinds, True)

    def rename(self, names: Mapping[str, str]) -> Graph:
        """Return the graph with nodes renamed, old name -> new name."""
        self._mask(names, "rename()")
        renamed = [names.get(n, n) for n in self.nodes]
        return Graph(renamed, self.marks, self.bidirected, self.kinds, True)

    def moralize(self) -> Graph:
        """Return the undirected moral graph: joined are nodes that an edge or colliders join.

        >>> print(Graph.parse("a -> c <- b").moralize())
        a -- c; a -- b; c -- b
        """
        joined = self.skeleton
        for district in self.districts:
            clique = self._mask((*district, *self.parents(district)), "moralize()")
            joined = joined | (clique & clique[:, None])
        joined &= ~np.eye(len(self), dtype=bool)
        return Graph(self.nodes, np.where(joined, TAIL, NONE), kinds=self.kinds)

    def latent_projection(self, observed: Names) -> Graph:
        """Return the ADMG over `observed` with the same m-separations and ancestors.

        i -> j where a directed path has nodes outside `observed` alone between; i <-> j where two
        such paths come from one node outside, or from the two ends of a bidirected edge.

        >>> print(Graph.parse("u -> t; u -> m -> y; t -> y").latent_projection(["t", "y"]))
        t -> y; t <-> y
        """
        if not self.is_admg:
            raise ValueError("a latent projection is of a DAG or ADMG")
        keep = self._mask(observed, "latent_projection()")
        along, both = marks.project(self.adjacency, self.bidirected, keep)
        kinds = [k for k, kept in zip(self.kinds, keep, strict=True) if kept]
        found = np.where(along, ARROW, np.where(along.T, TAIL, NONE))
        return Graph(self._pick(keep), found, both, kinds)

    def canonical(self) -> Graph:
        """Return the DAG with a latent root `u[a,b]` for every bidirected edge a <-> b.

        >>> print(Graph.parse("a -> b; a <-> b").canonical())
        a, b, u[a,b] [latent]; a -> b; u[a,b] -> a; u[a,b] -> b
        """
        if not self.is_admg:
            raise ValueError("only an ADMG has a canonical DAG; take a member() first")
        nodes, edges = dict(zip(self.nodes, self.kinds, strict=True)), []
        for a, mark, b in self.edges:
            root = f"u[{a},{b}]"
            while mark == "<->" and root in nodes:
                root += "'"
            edges += [(root, a), (root, b)] if mark == "<->" else [(a, b)]
            nodes |= {root: "latent"} if mark == "<->" else {}
        return Graph.from_edges(edges, nodes)

    # Inside ----------------------------------------------------------------------------------

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return self.nodes, self.marks.tobytes(), self.bidirected.tobytes(), self.kinds

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.nodes)}

    @cached_property
    def _parents(self) -> dict[str, tuple[str, ...]]:
        return {name: self._pick(self.adjacency[:, i]) for i, name in enumerate(self.nodes)}

    @cached_property
    def _cycle(self) -> list[str]:
        return [self.nodes[i] for i in marks.find_cycle(self.adjacency)]

    @property
    def _has_other_edges(self) -> bool:
        known_ends = self.adjacency | self.adjacency.T | self.bidirected
        return bool((self.skeleton & ~known_ends).any())

    def _refuse_cycle(self) -> None:
        if self._cycle:
            raise marks.cycle_error(self._cycle)

    def _mask(self, nodes: Names, where: str) -> Bools:
        mask = np.zeros(len(self), bool)
        for name in [nodes] if isinstance(nodes, str) else nodes:
            if name not in self._index:
                known(name, self.nodes, where)
            mask[self._index[name]] = True
        return mask

    def _pick(self, mask: ArrayLike) -> tuple[str, ...]:
        return tuple(self.nodes[i] for i in np.flatnonzero(np.asarray(mask)))
