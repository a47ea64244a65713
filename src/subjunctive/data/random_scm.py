r"""Nonlinear SCMs drawn at random over any graph, with every counterfactual known.

    x_j = m_j(pa) + s_j(pa) u_j,    u_j ~ N(0, 1),    u_j = (x_j - m_j(pa)) / s_j(pa),
    m_j(pa) = a sqrt(2 / K) sum_k cos(w_jk . pa + b_jk),
    s_j(pa) = s exp(tanh(v_j . pa + c_j) / 2)

A sum of K random waves is, for large K, a draw from a Gaussian process with a squared-exponential
kernel (Random Features for Large-Scale Kernel Machines, Rahimi and Recht, 2007). The noise's scale
follows the parents, so that neither a line nor additive noise is the truth.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from subjunctive.data.systems import Node, System, Values
from subjunctive.data.tabular import Nonlinear, _random_dag
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded

SACHS = (
    "PKC -> Raf, Mek, Jnk, P38, PKA; PKA -> Raf, Mek, Erk, Akt, Jnk, P38; "
    "Raf -> Mek -> Erk -> Akt; Plcg -> PIP3, PIP2; PIP3 -> PIP2"
)
WAVES, AMPLITUDE, NOISE = 16, 1.5, 0.4


class RandomSCM:
    """A nonlinear SCM drawn at random, over a random graph or a given one, and rows of it.

    Args:
        graph: a DAG, its arrows, or "sachs": eleven proteins of a cell's signalling and the
            seventeen arrows that are agreed on. None for a random graph.
        nodes: how many nodes a random graph has.
        degree: how many neighbours a node of a random graph has on average.
        additive: keep the noise's scale constant.
        train, valid, test: rows of each split, at least 2.
        seed: of the graph, the equations and the rows; the global generator is left alone.

    Attributes:
        train, valid, test: batches; `context` holds the true noises, "u.<node>".
        graph, variables, oracle: the causal graph, its variables, and the true model.
        system: the equations. invert, ate: as for `Nonlinear`.

    Raises:
        ValueError: for a graph that is no DAG, or a random one of fewer than two nodes.

    Reference: Causal Protein-Signaling Networks Derived from Multiparameter Single-Cell Data
    (Sachs, Perez, Pe'er, Lauffenburger and Nolan, 2005), https://doi.org/10.1126/science.1105809
    (the graph "sachs"; the equations are not the cell's).

    Example:
        >>> data = RandomSCM("sachs", train=100, test=20)
        >>> len(data.graph.nodes), data.graph.parents("Erk")
        (11, ('Mek', 'PKA'))
        >>> error = data.invert(data.test.values)["Akt"] - data.test.context["u.Akt"]
        >>> bool(error.abs().max() < 1e-3)
        True
    """

    def __init__(
        self,
        graph: Graph | str | None = None,
        nodes: int = 8,
        degree: float = 3.0,
        additive: bool = False,
        train: int = 5000,
        valid: int = 500,
        test: int = 1000,
        seed: int = 0,
    ) -> None:
        self.nodes, self.degree, self.additive, self.seed = nodes, degree, additive, seed
        self.given: dict[str, Any] = {"graph": graph, "train": train, "valid": valid, "test": test}
        with seeded(seed):
            if graph is None:
                self.graph = Graph.from_adjacency(_random_dag(nodes, degree).numpy())
            else:
                text = SACHS if graph == "sachs" else graph
                self.graph = Graph.parse(text) if isinstance(text, str) else text
            if not self.graph.is_dag:
                raise ValueError("RandomSCM needs a DAG; orient the edges or name the latent roots")
            equations = {n: self._node(self.graph.parents(n)) for n in self.graph.order}
        ordered = {n: equations[n] for n in self.graph.nodes}
        self.system = System(str(self.graph), ordered)
        drawn = Nonlinear(self.system, train, valid, test, seed)
        self.train, self.valid, self.test = drawn.train, drawn.valid, drawn.test
        self.variables, self.oracle = drawn.variables, drawn.oracle
        self.invert, self.ate = drawn.invert, drawn.ate

    def _node(self, parents: tuple[str, ...]) -> Node:
        """Draw one node's equation; a root is its own noise."""
        if not parents:
            return Node(lambda u, pa: u, inverse=lambda x, pa: x)
        p = len(parents)
        waves, phases = torch.randn(p, WAVES) / math.sqrt(p), 2 * math.pi * torch.rand(WAVES)
        slopes, start = torch.randn(p) / math.sqrt(p), torch.randn(())

        def mean(pa: Values) -> torch.Tensor:
            x = torch.stack([pa[n] for n in parents], 1)
            size = AMPLITUDE * math.sqrt(2 / WAVES)
            return size * torch.cos(x @ waves.to(x) + phases.to(x)).sum(1)

        def scale(pa: Values) -> torch.Tensor | float:
            if self.additive:
                return NOISE
            x = torch.stack([pa[n] for n in parents], 1)
            return NOISE * torch.exp(torch.tanh(x @ slopes.to(x) + start.to(x)) / 2)

        return Node(
            lambda u, pa: mean(pa) + scale(pa) * u,
            inverse=lambda x, pa: (x - mean(pa)) / scale(pa),
        )
