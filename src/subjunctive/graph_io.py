"""How a `Graph` is read and written: edges, arrows text, DOT, GML, networkx, pandas.

These functions are the class's methods of the same name. `adjacency[i, j]` is i -> j in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from subjunctive.marks import ARROW, CIRCLE, TAIL, cycle_error
from subjunctive.variable import nearest

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from subjunctive.graph import Graph, NodeKind

Edges = list[tuple[str, str, str]]
_ENDS = {"": TAIL, "<": ARROW, ">": ARROW, "o": CIRCLE}
_TEXT = re.compile(
    r"""(?P<space>[^\S\n]+|\#[^\n]*)
    |(?P<end>[;\n])|(?P<comma>,)
    |(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<kind>(?<=\s)\[(?:observed|latent|selection|context)\](?=[\s,;\#]|$))
    |(?P<edge>(?<!\S)[o<]?--?[o>]?(?!\S)|<--?>?|--?>|--)
    |(?P<name>(?!["'])(?:\[[^\]\n]*\]|(?!<-|->|--)[^\s,;\#])+)
    |(?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)
_DOT = re.compile(
    r"""(?:\s|//[^\n]*|/\*.*?\*/|^\s*\#[^\n]*)+
    |(?P<quoted>"(?:[^"\\]|\\.)*")
    |(?P<edge>[<@]?--?[>@]?(?!\d)) |(?P<punctuation>[{}\[\];,=:])
    |(?P<name>[\w.\x80-\uffff]+|-\.?\d[\d.]*) |(?P<bad>.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def from_edges(
    cls: type[Graph],
    edges: Iterable[Sequence[str]],
    nodes: Iterable[str] | Mapping[str, NodeKind] = (),
    allow_cycles: bool = False,
) -> Graph:
    """Build a graph from pairs `(cause, effect)` and triples `(a, "<->", b)`.

    `nodes`, if given, come first and in their order; as a mapping it gives their kinds.

    >>> from subjunctive.graph import Graph
    >>> print(Graph.from_edges([("t", "x"), ("t", "<->", "y")]))
    t -> x; t <-> y
    """
    triples = [(e[0], "->", e[1]) if len(e) == 2 else tuple(e) for e in edges]
    names = tuple(dict.fromkeys([*nodes, *(n for a, _, b in triples for n in (a, b))]))
    index = {name: i for i, name in enumerate(names)}
    marks = np.zeros((len(names), len(names)), np.int8)
    bidirected = np.zeros_like(marks, dtype=bool)
    for a, mark, b in triples:
        i, j, ends = index[a], index[b], re.fullmatch(r"([o<]?)--?([o>]?)", mark)
        if not ends:
            hint = nearest(mark, ("->", "<-", "<->", "o->", "o-o", "--"))
            raise ValueError(f"{mark!r} between {a!r} and {b!r} is no edge.{hint}")
        new = _ENDS[ends[1]], _ENDS[ends[2]]
        old = int(marks[j, i]), int(marks[i, j])
        if i == j or (new == old[::-1] and set(new) == {ARROW, TAIL}):
            raise cycle_error([a, a] if i == j else [a, b, a])
        if new == (ARROW, ARROW):
            bidirected[i, j] = bidirected[j, i] = True
        elif marks[i, j] and old != new:
            raise ValueError(f"two different edges stand between {a!r} and {b!r}; keep one")
        else:
            marks[j, i], marks[i, j] = new
    kinds = nodes if isinstance(nodes, Mapping) else None
    return cls(names, marks, bidirected, kinds, allow_cycles)


def from_adjacency(
    cls: type[Graph],
    matrix: ArrayLike,
    names: Iterable[str] | None = None,
    allow_cycles: bool = False,
) -> Graph:
    """Build a graph from `matrix[i, j] != 0` meaning i -> j; names are "x0", "x1", ... by default.

    >>> from subjunctive.graph import Graph
    >>> print(Graph.from_adjacency([[0, 1], [0, 0]], ["cause", "effect"]))
    cause -> effect
    """
    values = np.asarray(matrix)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"an adjacency matrix is square, got shape {values.shape}")
    if np.isnan(values.astype(float)).any():
        raise ValueError("the adjacency matrix holds NaN; write 0 where no edge is")
    nodes = [f"x{i}" for i in range(len(values))] if names is None else list(names)
    if len(nodes) != len(values):
        raise ValueError(f"{len(nodes)} names for {len(values)} rows of the adjacency matrix")
    pairs = [(nodes[i], nodes[j]) for i, j in np.argwhere(values != 0)]
    return cls.from_edges(pairs, nodes, allow_cycles)


# Arrows text -----------------------------------------------------------------------------------


def parse(cls: type[Graph], text: str, allow_cycles: bool = False) -> Graph:
    """Read arrows, `->`, `<-`, `<->`, `o->`, `o-o`, `--` or ` - `, between `;` or line ends.

    Chains (`a -> b -> c`), lists (`t, i -> x`), lone nodes, `# comments`, quoted names (where a
    name has spaces) and a kind behind a name (`u [latent] -> x`). `str(graph)` writes it.

    >>> from subjunctive.graph import Graph
    >>> print(Graph.parse("u [latent] -> i; t, i -> x; 'blood pressure' <-> x"))
    u [latent], i, t, x, "blood pressure"; u -> i; i -> x; t -> x; x <-> "blood pressure"
    """
    nodes: dict[str, NodeKind] = {}
    edges: Edges = []
    before: list[str] = []
    group: list[str] = []
    mark, name, ready = "", "", False  # ready: a name stands right before the next token
    for token in _TEXT.finditer(text + "\n"):
        kind, word = token.lastgroup, token.group()
        if kind in ("name", "quoted"):
            if ready:
                raise ValueError(
                    f"graph text: {name!r} and {word!r} stand side by side; put an edge, ',' or "
                    f"';' between them, or quotes around a name with spaces: {text!r}"
                )
            name, ready = word if kind == "name" else _unquote(word), True
            nodes.setdefault(name, "observed")
            group.append(name)
        elif kind == "kind" and ready:
            nodes[name] = word[1:-1]  # type: ignore[assignment]
        elif kind == "comma" and ready:
            ready = False
        elif (kind == "edge" and ready) or (kind == "end" and (ready or not (mark or group))):
            edges.extend((a, mark, b) for a in before for b in group)
            before, group = (group if kind == "edge" else []), []
            mark, ready = (word if kind == "edge" else ""), False
        elif kind != "space":
            what = "the statement ends" if kind == "end" else f"{word!r} stands"
            raise ValueError(f"graph text: {what} where a node's name was expected: {text!r}")
    return cls.from_edges(edges, nodes, allow_cycles)


def to_text(graph: Graph) -> str:
    """Return the arrows text of a graph; nodes come first where the edges would not order them."""
    edges = [f"{_quote(a)} {mark} {_quote(b)}" for a, mark, b in graph.edges]
    seen = dict.fromkeys(end for a, _, b in graph.edges for end in (a, b))
    if tuple(seen) != graph.nodes or set(graph.kinds) - {"observed"}:
        kinds = ("" if k == "observed" else f" [{k}]" for k in graph.kinds)
        edges.insert(0, ", ".join(_quote(n) + k for n, k in zip(graph.nodes, kinds, strict=True)))
    return "; ".join(edges)


def _quote(name: str, always: bool = False) -> str:
    """Return the name, in quotes unless it reads as one bare name."""
    token = _TEXT.match(f" {name}", 1)
    if not always and token and token.lastgroup == "name" and token.group() == name:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text[1:-1], flags=re.DOTALL)


# networkx, GML, pandas -------------------------------------------------------------------------


def from_networkx(cls: type[Graph], graph: nx.Graph) -> Graph:
    """Read a networkx graph; edge attribute `edge` ("<->") and node attribute `kind` count.

    Nodes that are no strings are named by their `str`; `observed="no"` is read as latent.
    """
    usual = "->" if graph.is_directed() else "--"
    nodes: dict[str, NodeKind] = {}
    for node, data in graph.nodes(data=True):
        if str(node) in nodes:
            raise ValueError(f"two nodes are called {str(node)!r}; rename one")
        hidden = str(data.get("observed", "")).lower() in ("no", "false")
        nodes[str(node)] = data.get("kind", "latent" if hidden else "observed")
    edges = [(str(a), data.get("edge", usual), str(b)) for a, b, data in graph.edges(data=True)]
    return cls.from_edges(edges, nodes)


def to_networkx(graph: Graph) -> nx.DiGraph:
    """Return a networkx `DiGraph`, or a `MultiDiGraph` where edges other than `->` stand."""
    import networkx as nx

    plain = all(mark == "->" for _, mark, _ in graph.edges)
    found = nx.DiGraph() if plain else nx.MultiDiGraph()
    for node, kind in zip(graph.nodes, graph.kinds, strict=True):
        found.add_node(node, kind=kind)
    for a, mark, b in graph.edges:
        found.add_edge(a, b, edge=mark)
    return found


def from_gml(cls: type[Graph], text: str) -> Graph:
    """Read GML text; nodes are named by their label, or by their id where none has one."""
    import networkx as nx

    label = "label" if re.search(r"\blabel\b", text) else "id"
    return cls.from_networkx(nx.parse_gml(text, label=label))


def to_gml(graph: Graph) -> str:
    """Return GML text."""
    import networkx as nx

    return "\n".join(nx.generate_gml(graph.to_networkx()))


def from_pandas(cls: type[Graph], frame: pd.DataFrame) -> Graph:
    """Read a square DataFrame, row -> column: numbers are an adjacency, texts are edges."""
    names = [str(c) for c in frame.columns]
    if [str(i) for i in frame.index] != names:
        raise ValueError("rows and columns of the DataFrame must have the same names, in one order")
    values = frame.to_numpy()
    if values.dtype.kind in "biuf":
        return cls.from_adjacency(values, names)
    cells = [(i, j, str(values[i, j]).split()) for i, j in np.ndindex(values.shape)]
    return cls.from_edges([(names[i], m, names[j]) for i, j, cell in cells for m in cell], names)


def to_pandas(graph: Graph) -> pd.DataFrame:
    """Return the adjacency as a DataFrame of 0 and 1, or of texts where other edges stand.

    >>> from subjunctive.graph import Graph
    >>> Graph.parse("a -> b; a <-> b").to_pandas().loc["a", "b"]
    '-> <->'
    """
    import pandas as pd

    if all(mark == "->" for _, mark, _ in graph.edges):
        return pd.DataFrame(graph.adjacency.astype(int), graph.nodes, graph.nodes)
    found = pd.DataFrame("", graph.nodes, graph.nodes)
    for a, mark, b in graph.edges:
        back = mark[::-1].translate(str.maketrans("<>", "><"))
        found.loc[a, b] = f"{found.loc[a, b]} {mark}".strip()
        found.loc[b, a] = f"{found.loc[b, a]} {back}".strip()
    return found


# DOT -------------------------------------------------------------------------------------------


def to_dot(graph: Graph) -> str:
    """Return DOT text; `<->` is `[dir=both]`, a circle is an arrow of shape `odot`.

    >>> from subjunctive.graph import Graph
    >>> print(Graph.parse("a -> b; a <-> c").to_dot())
    digraph {
      "a";
      "b";
      "c";
      "a" -> "b";
      "a" -> "c" [dir=both, arrowtail=normal, arrowhead=normal];
    }
    """
    shape = {"<": "normal", ">": "normal", "o": "odot", "-": "none"}
    lines = []
    for name, kind in zip(graph.nodes, graph.kinds, strict=True):
        note = "" if kind == "observed" else f" [kind={kind}, style=dashed]"
        lines.append(f"  {_quote(name, True)}{note};")
    for a, mark, b in graph.edges:
        note = f" [dir=both, arrowtail={shape[mark[0]]}, arrowhead={shape[mark[-1]]}]"
        lines.append(f"  {_quote(a, True)} -> {_quote(b, True)}{'' if mark == '->' else note};")
    return "\n".join(["digraph {", *lines, "}"])


def from_dot(cls: type[Graph], text: str) -> Graph:
    """Read DOT text: nodes, edges, chains, groups `{a b} -> c`, `dir`, `arrowhead`, `arrowtail`.

    Attributes of looks are passed over; dagitty's `dag { u [latent]; a <-> b }` is read too.

    >>> from subjunctive.graph import Graph
    >>> print(Graph.from_dot("digraph g { rankdir=LR; {a b} -> c -> d; a -> d [dir=both] }"))
    a, b, c, d; a -> c; a <-> d; b -> c; c -> d
    """
    found = [m for m in _DOT.finditer(text) if m.lastgroup]
    tokens = [(m.group(), m.lastgroup or "") for m in found]
    start = next((k for k, token in enumerate(tokens) if token[0] == "{"), None)
    head = [word.lower() for word, _ in tokens[:start]] if start is not None else []
    if not {"digraph", "graph", "dag", "mag", "pag", "pdag"} & set(head):
        raise ValueError(f"DOT text starts with 'digraph {{' or 'graph {{', got {text[:40]!r}")
    reader = _Dot(tokens[(start or 0) + 1 :], text)
    reader.block()
    return cls.from_edges(reader.edges, reader.nodes)


class _Dot:
    """A reader of the statements of DOT, by recursive descent."""

    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self.tokens, self.text = tokens[::-1], text
        self.nodes: dict[str, NodeKind] = {}
        self.edges: Edges = []

    def peek(self, depth: int = 1) -> str:
        """Return the next word, empty if it is quoted or there is none."""
        word, kind = self.tokens[-depth] if len(self.tokens) >= depth else ("", "bad")
        return "" if kind == "quoted" else word

    def name(self) -> str:
        """Take the next word, which must be a name."""
        word, kind = self.tokens.pop() if self.tokens else ("the end", "bad")
        if kind not in ("name", "quoted"):
            raise ValueError(f"DOT text: {word!r} where a name was expected: {self.text[:200]!r}")
        return word if kind == "name" else _unquote(word)

    def block(self) -> list[str]:
        """Read statements up to the closing brace; return the nodes they name."""
        named: list[str] = []
        while self.peek() != "}":
            if self.peek() in (";", ","):
                self.tokens.pop()
            elif self.peek() in ("graph", "node", "edge") and self.peek(2) == "[":
                self.tokens.pop()
                self.attributes()
            elif self.peek(2) == "=":
                self.name()
                self.tokens.pop()
                self.name()
            else:
                named += self.statement()
        self.tokens.pop()
        return named

    def statement(self) -> list[str]:
        """Read a node, or a chain of edges between groups of nodes, with its attributes."""
        groups, arrows = [self.group()], []
        while self.tokens and self.tokens[-1][1] == "edge":
            arrows.append(self.tokens.pop()[0].replace("@", "o"))
            groups.append(self.group())
        notes = self.attributes()
        for before, arrow, group in zip(groups, arrows, groups[1:], strict=False):
            self.edges += [(a, _dot_mark(arrow, notes), b) for a in before for b in group]
        if not arrows:
            hidden = "latent" in notes or notes.get("observed", "").lower() in ("no", "false")
            kind = notes.get("kind", "latent" if hidden else "")
            self.nodes |= dict.fromkeys(groups[0], kind) if kind else {}  # type: ignore[arg-type]
        return [name for group in groups for name in group]

    def group(self) -> list[str]:
        """Read one node, or the nodes of `{ ... }` or `subgraph name { ... }`."""
        if self.peek() == "subgraph":
            self.tokens.pop()
            if self.peek() != "{":
                self.name()
        if self.peek() == "{":
            self.tokens.pop()
            return self.block()
        found = self.name()
        while self.peek() == ":":  # a port
            self.tokens.pop()
            self.name()
        self.nodes.setdefault(found, "observed")
        return [found]

    def attributes(self) -> dict[str, str]:
        """Read `[a=b, c]` groups; an attribute without a value is given the value ""."""
        notes = {}
        while self.peek() == "[":
            self.tokens.pop()
            while self.peek() != "]":
                if self.peek() in (",", ";"):
                    self.tokens.pop()
                    continue
                key, value = self.name(), ""
                if self.peek() == "=":
                    self.tokens.pop()
                    value = self.name()
                notes[key] = value
            self.tokens.pop()
        return notes


def _dot_mark(arrow: str, notes: Mapping[str, str]) -> str:
    """Return the edge that an arrow of DOT and its attributes draw."""
    if arrow not in ("->", "--"):
        return arrow
    drawn = notes.get("dir", "forward" if arrow == "->" else "none")
    heads = []
    for side, when, mark in (("arrowtail", "back", "<"), ("arrowhead", "forward", ">")):
        shape = notes.get(side, "normal") if drawn in (when, "both") else "none"
        heads.append("o" if shape in ("odot", "dot", "o") else "" if shape == "none" else mark)
    return f"{heads[0]}-{heads[1]}"
