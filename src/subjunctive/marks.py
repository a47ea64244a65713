"""The mathematics of endpoint marks, on matrices: separation, projection, equivalence classes.

`marks[i, j]` is the mark at j of the edge between i and j; i -> j is ARROW there and TAIL at
`marks[j, i]`. Separation is reachability over walks: a walk passes node v between two edges if v is
a collider (an arrow at v from both) with v in An(Z), or a non-collider outside Z; such a walk
between two nodes exists if and only if an m-connecting path does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subjunctive.variable import known, nearest

NodeKind = Literal["observed", "latent", "selection", "context"]
Bools = NDArray[np.bool_]
Marks = NDArray[np.int8]
NONE, CIRCLE, ARROW, TAIL = range(4)


def cycle_error(cycle: Sequence[str]) -> ValueError:
    """Return the error that names a directed cycle."""
    path = " -> ".join(cycle)
    return ValueError(
        f'a directed cycle: {path}; remove an edge, or unroll time into names ("x[t-1]")'
    )


def checked(
    names: Sequence[str],
    marks: ArrayLike | None,
    bidirected: ArrayLike | None,
    kinds: Mapping[str, NodeKind] | Sequence[NodeKind] | None,
) -> tuple[Marks, Bools, tuple[NodeKind, ...]]:
    """Return read-only marks and bidirected edges that agree with each other, and a kind a name.

    Raises:
        ValueError: for empty or equal names, wrong shapes and codes, one-sided edges, a node joined
            to itself, and an unknown kind.
    """
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a node's name is a non-empty string, got {name!r}")
    for name in names if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise ValueError(f"two nodes are called {name!r}; rename one")
    n = len(names)
    m = np.zeros((n, n), np.int8) if marks is None else np.array(marks)
    b = np.zeros((n, n), bool) if bidirected is None else np.array(bidirected).astype(bool)
    for what, matrix in (("marks", m), ("bidirected", b)):
        if matrix.shape != (n, n):
            raise ValueError(f"{what} has shape {matrix.shape}; {n} nodes need {(n, n)}")
    if not np.isin(m, range(4)).all() or ((m == NONE) != (m == NONE).T).any():
        raise ValueError("marks are 0, 1 (circle), 2 (arrow) or 3 (tail), at both ends or neither")
    if (b != b.T).any():
        raise ValueError("bidirected must be symmetric")
    for i in np.flatnonzero((np.diag(m) != NONE) | np.diag(b)):
        raise cycle_error([names[int(i)]] * 2)
    m = np.where(b & (m == NONE), ARROW, m).astype(np.int8)
    b |= (m == ARROW) & (m.T == ARROW)
    for i, j in np.argwhere(b & ~(directed(m) | directed(m).T | (m == ARROW))):
        raise ValueError(f"{names[i]!r} <-> {names[j]!r} can stand beside a directed edge only")
    m.setflags(write=False)
    b.setflags(write=False)
    return m, b, _checked_kinds(names, {} if kinds is None else kinds)


def _checked_kinds(
    names: Sequence[str], kinds: Mapping[str, NodeKind] | Sequence[NodeKind]
) -> tuple[NodeKind, ...]:
    """Return one known kind a node; "observed" where a mapping gives none."""
    if isinstance(kinds, Mapping):
        for name in kinds:
            known(name, names, "kinds")
        kinds = [kinds.get(name, "observed") for name in names]
    found = tuple(kinds)
    if len(found) != len(names):
        raise ValueError(f"{len(found)} kinds for {len(names)} nodes")
    for kind in found:
        if kind not in get_args(NodeKind):
            hint = nearest(kind, get_args(NodeKind))
            raise ValueError(f"a node is one of {get_args(NodeKind)}, not {kind!r}.{hint}")
    return found


def edges(marks: Marks, bidirected: Bools) -> list[tuple[int, str, int]]:
    """Return every edge once, as (i, "->", j), sorted; a directed one starts at the cause."""
    found = [(int(i), "<->", int(j)) for i, j in np.argwhere(np.triu(bidirected))]
    for i, j in np.argwhere(marks != NONE):
        ends = marks[j, i], marks[i, j]
        if ends == (TAIL, ARROW) or (i < j and ends not in ((ARROW, TAIL), (ARROW, ARROW))):
            left, right = ("", "o", "<", "")[ends[0]], ("", "o", ">", "")[ends[1]]
            found.append((int(i), f"{left}-{right}" if left or right else "--", int(j)))
    return sorted(found, key=lambda edge: (edge[0], edge[2], edge[1]))


def directed(marks: Marks) -> Bools:
    """Return the adjacency of the directed edges: `[i, j]` is i -> j."""
    return (marks == ARROW) & (marks.T == TAIL)


def undirected(marks: Marks) -> Bools:
    """Return the edges with a tail at both ends."""
    return (marks == TAIL) & (marks.T == TAIL)


def reach(adjacency: Bools, start: Bools) -> Bools:
    """Return which nodes a path leads to from `start`, itself included.

    >>> reach(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool), np.array([False, True, False]))
    array([False,  True,  True])
    """
    reached = new = start
    while new.any():
        new = adjacency[new].any(0) & ~reached
        reached = reached | new
    return reached


def find_cycle(adjacency: Bools) -> list[int]:
    """Return a directed cycle, its first node repeated at the end, or an empty list.

    >>> find_cycle(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], bool))
    [0, 1, 2, 0]
    """
    left = np.ones(len(adjacency), bool)
    while (roots := left & ~adjacency[left].any(0)).any():
        left &= ~roots
    if not left.any():
        return []
    walk = [int(np.argmax(left))]  # every node left has a parent that is left: walk back
    while (back := int(np.argmax(adjacency[:, walk[-1]] & left))) not in walk:
        walk.append(back)
    loop = walk[walk.index(back) :][::-1]
    first = loop.index(min(loop))
    return [*loop[first:], *loop[:first], loop[first]]


def is_determined(marks: Marks) -> bool:
    """Return whether no circle stands, nor an arrow at an end of an undirected edge."""
    heads = (marks == ARROW).any(0)
    return not ((marks == CIRCLE).any() or (undirected(marks).any(0) & heads).any())


def separated(marks: Marks, bidirected: Bools, start: Bools, end: Bools, given: Bools) -> bool:
    """Return whether `given` m-separates `start` and `end`; the marks are determined.

    Reference: Ancestral Graph Markov Models, Richardson and Spirtes, 2002,
    https://doi.org/10.1214/aos/1031689015
    """
    along, level = directed(marks), undirected(marks)
    opens = reach(along.T, given)
    # came[0]: reached with a tail at the node, as the start is; came[1]: with an arrow at it
    came = new = np.stack([start, np.zeros_like(start)])
    while new.any():
        by_tail = new.any(0) & ~given
        by_arrow = (new[0] & ~given) | (new[1] & opens)
        step = [
            level[by_tail].any(0) | along[:, by_arrow].any(1),
            along[by_tail].any(0) | bidirected[by_arrow].any(0),
        ]
        new = np.stack(step) & ~came
        came = came | new
    return not bool((came.any(0) & end).any())


def is_ancestral(marks: Marks, bidirected: Bools) -> bool:
    """Return whether no node with an arrow at it is joined so to its own ancestor or descendant."""
    along = directed(marks)
    if not is_determined(marks) or find_cycle(along) or (bidirected & along).any():
        return False
    return not any(reach(along.T, row)[i] for i, row in enumerate(bidirected))


def is_maximal(marks: Marks, bidirected: Bools) -> bool:
    """Return whether the anterior nodes of every pair without an edge separate it."""
    back = directed(marks).T | undirected(marks)
    one = np.eye(len(marks), dtype=bool)
    for i, j in np.argwhere(np.triu(marks == NONE, 1)):
        pair = one[i] | one[j]
        if not separated(marks, bidirected, one[i], one[j], reach(back, pair) & ~pair):
            return False
    return True


def project(along: Bools, bidirected: Bools, keep: Bools) -> tuple[Bools, Bools]:
    """Return the directed and bidirected edges of the latent projection on `keep`.

    Reference: Equivalence and Synthesis of Causal Models, Verma and Pearl, 1990,
    https://arxiv.org/abs/1304.1108
    """
    hidden = ~keep
    through = np.eye(len(keep), dtype=bool)  # [i, j]: a path that leaves hidden nodes alone
    step = along & hidden[:, None]
    while (longer := through | (through @ step)).sum() > through.sum():
        through = longer
    spread = through.T @ (bidirected | np.diag(hidden)) @ through
    np.fill_diagonal(spread, False)
    box = np.ix_(np.flatnonzero(keep), np.flatnonzero(keep))
    return (along @ through)[box], spread[box]


def pattern(along: Bools) -> Marks:
    """Return the marks of a DAG's CPDAG: v-structures, then Meek's rules 1 to 3.

    Reference: Causal Inference and Causal Explanation with Background Knowledge, Meek, 1995,
    https://arxiv.org/abs/1302.4972
    """
    joined = along | along.T
    apart = ~joined & ~np.eye(len(along), dtype=bool)
    compelled = along & (apart @ along)  # i -> j <- k with i and k apart
    while True:
        free = joined & ~compelled & ~compelled.T
        found = compelled.T @ apart  # k -> i - j, k and j apart
        found |= compelled @ compelled  # i -> k -> j, i - j
        for j in range(len(along)):  # i - k -> j, i - l -> j, i - j, k and l apart
            into = compelled[:, j]
            found[:, j] |= ((free[:, into] @ apart[np.ix_(into, into)]) & free[:, into]).any(1)
        if not (found & free).any():
            return np.where(compelled, ARROW, np.where(joined, TAIL, NONE)).astype(np.int8)
        compelled |= found & free


def extend(along: Bools, free: Bools) -> Bools | None:
    """Orient `free` edges without a cycle or a new v-structure; None if that cannot be.

    Reference: A Simple Algorithm to Construct a Consistent Extension of a Partially Oriented Graph,
    Dor and Tarsi, 1992, https://ftp.cs.ucla.edu/pub/stat_ser/r185-dor-tarsi.pdf
    """
    found, left, free = along.copy(), np.ones(len(along), bool), free.copy()
    joined = along | along.T | free | np.eye(len(along), dtype=bool)
    while left.any():
        for i in np.flatnonzero(left & ~along[:, left].any(1)):  # sinks among those left
            if joined[np.ix_(free[i], joined[i] & left)].all():
                found[free[i], i] = True
                left[i] = free[:, i] = free[i] = False
                break
        else:
            return None
    return found


def member(marks: Marks, bidirected: Bools) -> Marks | None:
    """Return the marks of a DAG or MAG of the class that the marks stand for; None if none has.

    In a CPDAG the undirected edges are oriented; in a PAG o-> becomes ->, o-- becomes <-- and the
    edges o-o are oriented without new v-structures.

    Reference: On the Completeness of Orientation Rules for Causal Discovery in the Presence of
    Latent Confounders and Selection Bias, Zhang, 2008, https://doi.org/10.1016/j.artint.2008.08.001
    """
    circle = marks == CIRCLE
    if circle.any():
        found = marks.copy()
        found[circle & (marks.T == ARROW)] = TAIL
        found[circle & (marks.T == TAIL)] = ARROW
        free = circle & circle.T
        oriented = extend(np.zeros_like(free), free)
    else:
        found, free = marks.copy(), undirected(marks)
        oriented = None if bidirected.any() else extend(directed(marks), free)
        if oriented is None and is_determined(marks):
            return found
    if oriented is None:
        return None
    found[oriented & free], found[oriented.T & free] = ARROW, TAIL
    return found
