"""Tables from SCMs whose answers are known: linear in closed form, nonlinear by simulation.

Linear, in rows, with W[i, j] the weight of i -> j and u ~ N(0, I):

    x = x W + b + u S      =>      x = (b + u S) M,      M = (I - W)^-1,      Cov(x) = M' S^2 M.

M[i, j] sums the products of weights along all paths from i to j: the total effect. Under do(T = t)
the columns of W that enter T are cut, and b, S there become t and 0. The factual x and the
counterfactual x* are linear in one u, hence jointly Gaussian, so that for any seen part x_E

    E[x* | x_E] = mu* + (x_E - mu_E) Cov(x_E)^-1 Cov(x_E, x*).

Reference: Causality (Pearl, 2009), chapters 5 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import MultivariateNormal

from subjunctive.data.oracle import Equation, Oracle
from subjunctive.data.systems import SYSTEMS, Prior, System, Values
from subjunctive.graph import Graph
from subjunctive.intervention import Set, as_do
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable, known, nearest


def _simulate(oracle: Oracle, rows: Mapping[str, int]) -> dict[str, Batch]:
    """Draw the splits and fit the oracle's variables on "train"."""
    batches = {}
    for split in ("test", "valid", "train"):  # test is the same whatever the size of train
        if rows[split] < 2:
            raise ValueError(f"{split} is {rows[split]}; draw at least 2 rows")
        noise = oracle.noise(rows[split])
        context = {f"u.{name}": u for name, u in noise.items()}
        batches[split] = Batch(oracle.predict(noise), context=context)
    fitted = {n: v.fit(batches["train"].values[n]) for n, v in oracle.variables.items()}
    oracle.variables.update(fitted)
    return batches


class Linear:
    """A linear-Gaussian SCM over any DAG, with every answer in closed form.

    `x_j = sum_i weights[i, j] x_i + bias[j] + scale[j] u_j`, `u_j ~ N(0, 1)`. Matrices and vectors
    follow `graph.nodes`. What is not given is drawn: a random DAG (Erdos-Renyi over a random
    order), weights of either sign and size 0.5 to 1.5, bias -1 to 1, scale 0.5 to 1.5.

    Args:
        graph: a DAG or its arrows; from the weights, or random, if not given.
        weights: `(d, d)`, `weights[i, j]` of i -> j, zero where the graph has no edge.
        bias: `(d,)`.
        scale: standard deviations of the noises, `(d,)`, positive.
        nodes: how many nodes a random graph has.
        degree: how many neighbours a node of a random graph has on average.
        train, valid, test: rows of each split, at least 2.
        seed: of all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches; `context` holds the true noises, "u.<node>".
        graph, variables, oracle: the causal graph, its variables, and the true model.
        weights, bias, scale: the parameters, float64.

    Raises:
        ValueError: for a graph that is no DAG, or parameters that do not fit it.

    Reference: Causality (Pearl, 2009), chapter 5.

    Example:
        >>> data = Linear("t -> m -> y; t -> y", [[0, 2, 1], [0, 0, 3], [0, 0, 0]])
        >>> data.ate("t", "y"), data.direct_effect("t", "y"), data.indirect_effect("t", "y")
        (7.0, 1.0, 6.0)
        >>> seen = {"t": torch.tensor([0.0]), "m": torch.tensor([1.0]), "y": torch.tensor([5.0])}
        >>> data.counterfactual(seen, do={"t": 1.0})["y"]
        tensor([12.])
    """

    def __init__(
        self,
        graph: Graph | str | None = None,
        weights: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        scale: ArrayLike | Tensor | None = None,
        nodes: int = 5,
        degree: float = 2.0,
        train: int = 5000,
        valid: int = 500,
        test: int = 1000,
        seed: int = 0,
    ) -> None:
        self.nodes, self.degree, self.seed = nodes, degree, seed
        self.given = {"graph": graph, "weights": weights, "bias": bias, "scale": scale}
        self.given |= {"train": train, "valid": valid, "test": test}  # to write the configuration
        with seeded(seed):
            if graph is None:
                edges = _random_dag(nodes, degree) if weights is None else torch.as_tensor(weights)
                graph = Graph.from_adjacency(edges.numpy())
            self.graph = Graph.parse(graph) if isinstance(graph, str) else graph
            if not self.graph.is_dag:
                raise ValueError("Linear needs a DAG; orient the edges or name the latent roots")
            d, edges = len(self.graph), torch.from_numpy(self.graph.adjacency.copy())
            size, sign = 0.5 + torch.rand(d, d), torch.rand(d, d).round() * 2 - 1
            drawn = {"bias": 2 * torch.rand(d) - 1, "scale": 0.5 + torch.rand(d)}
            self.weights = _parameter("weights", weights, edges * size * sign)
            self.bias = _parameter("bias", bias, drawn["bias"])
            self.scale = _parameter("scale", scale, drawn["scale"])
            self._check(edges)
            variables = {n: Variable(n) for n in self.graph.nodes}
            equations = {n: self._equation(n) for n in self.graph.nodes}
            priors: dict[str, Prior] = {n: torch.randn for n in self.graph.nodes}
            self.oracle = Oracle(self.graph, variables, equations, priors)
            batches = _simulate(self.oracle, {"train": train, "valid": valid, "test": test})
        self.train, self.valid, self.test = (batches[s] for s in ("train", "valid", "test"))
        self.variables = dict(self.oracle.variables)

    def _check(self, edges: Tensor) -> None:
        loose = ((self.weights != 0) & ~edges).nonzero()
        if len(loose):
            i, j = (self.graph.nodes[k] for k in loose[0])
            raise ValueError(
                f"weights give {i!r} -> {j!r} a weight, which is no edge of {self.graph}; "
                "weights[i, j] belongs to i -> j in the order of graph.nodes"
            )
        if not bool((self.scale > 0).all()):
            raise ValueError(f"scale must be positive, got {self.scale.tolist()}")

    def _equation(self, name: str) -> Equation:
        j = self.graph.nodes.index(name)
        terms = [(p, float(self.weights[self._at(p), j])) for p in self.graph.parents(name)]
        bias, scale = float(self.bias[j]), float(self.scale[j])

        def equation(u: Tensor, parents: Values) -> Tensor:
            return sum((w * parents[p] for p, w in terms), bias + scale * u)

        return equation

    def _at(self, name: str) -> int:
        known(name, self.graph.nodes, "the question")
        return self.graph.nodes.index(name)

    def _cut(self, targets: Iterable[str] = ()) -> tuple[Tensor, Tensor]:
        """Return M of the graph without the edges into the targets, and which nodes keep noise."""
        kept = torch.ones(len(self.graph), dtype=torch.float64)
        kept[[self._at(t) for t in targets]] = 0
        return torch.linalg.inv(torch.eye(len(kept)).double() - self.weights * kept), kept

    def _means(self, do: Mapping[str, Any] | None) -> tuple[Tensor, tuple[str, ...]]:
        """Return the means under hard interventions, `(1 or B, d)`, and the targets."""
        actions = as_do(do or {}, self.variables)
        paths, kept = self._cut(actions)
        start = (self.bias * kept)[None]
        for name, action in actions.items():
            if not isinstance(action, Set):
                raise ValueError(
                    f"the closed form is of hard interventions; {name!r} has a "
                    f"{type(action).__name__}: ask the oracle"
                )
            column = torch.zeros(len(kept), dtype=torch.float64)
            column[self._at(name)] = 1
            start = start + action.value.double()[:, None] * column
        return start @ paths, tuple(actions)

    def ate(
        self, treatment: str, outcome: str, treated: float = 1.0, control: float = 0.0
    ) -> float:
        """Return E[outcome | do(treatment = treated)] - E[outcome | do(treatment = control)].

        The sum over directed paths of the products of their weights, times the contrast.
        """
        i, j = self._at(treatment), self._at(outcome)
        return float(self._cut()[0][i, j]) * (treated - control)

    def direct_effect(
        self, treatment: str, outcome: str, treated: float = 1.0, control: float = 0.0
    ) -> float:
        """Return the natural direct effect: the edge's weight, times the contrast."""
        i, j = self._at(treatment), self._at(outcome)
        return float(self.weights[i, j]) * (treated - control)

    def indirect_effect(
        self, treatment: str, outcome: str, treated: float = 1.0, control: float = 0.0
    ) -> float:
        """Return the natural indirect effect: all paths of two edges or more."""
        pair = treatment, outcome, treated, control
        return self.ate(*pair) - self.direct_effect(*pair)

    def mean(self, do: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Return every node's mean, also under hard interventions."""
        return dict(zip(self.graph.nodes, self._means(do)[0][0].tolist(), strict=True))

    def covariance(self, do: Iterable[str] = ()) -> Tensor:
        """Return the covariance of all nodes, `(d, d)`, also where nodes in `do` are set."""
        paths, kept = self._cut(do)
        return paths.T @ torch.diag(kept * self.scale**2) @ paths

    def log_prob(self, values: Values) -> Tensor:
        """Return the log-density of the given nodes, the others integrated out, `(B,)`, in nats."""
        at = [self._at(n) for n in values]
        mean, covariance = self._means(None)[0][0, at], self.covariance()[at][:, at]
        rows = torch.stack([v.double() for v in values.values()], 1)
        return MultivariateNormal(mean, covariance).log_prob(rows)

    def counterfactual(self, values: Values, do: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what every node would have been, given what was seen: E[x* | x_E].

        Exact a row where all nodes are seen; a mean, with `counterfactual_covariance`, otherwise.

        Args:
            values: seen node -> `(B,)`, at least one; a node left out was not seen.
            do: node -> number, or one a row.
        """
        means, targets = self._means(do)
        at, gain, _ = self._given(values, targets)
        rows = torch.stack([v.double() for v in values.values()], 1)
        answer = means + (rows - self._means(None)[0][:, at]) @ gain
        kind = next(iter(values.values())).dtype
        return {n: answer[:, j].to(kind) for j, n in enumerate(self.graph.nodes)}

    def counterfactual_covariance(self, seen: Iterable[str], do: Iterable[str]) -> Tensor:
        """Return Cov(x* | x_E), `(d, d)`, the same whatever was seen: zero if all nodes were."""
        do = tuple(do)
        _, gain, cross = self._given(seen, do)
        return self.covariance(do) - cross.T @ gain

    def _given(self, seen: Iterable[str], do: Iterable[str]) -> tuple[list[int], Tensor, Tensor]:
        """Return the seen nodes, Cov(x_E)^-1 Cov(x_E, x*), and Cov(x_E, x*)."""
        at = [self._at(n) for n in seen]
        if not at:
            raise ValueError("a counterfactual needs evidence: give the values of a node")
        (factual, _), (other, kept) = self._cut(), self._cut(do)
        cross = factual[:, at].T @ torch.diag(kept * self.scale**2) @ other
        return at, torch.linalg.solve(self.covariance()[at][:, at], cross), cross


def _parameter(name: str, given: ArrayLike | Tensor | None, drawn: Tensor) -> Tensor:
    value = drawn.double() if given is None else torch.as_tensor(given, dtype=torch.float64)
    if value.shape != drawn.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; the graph needs {tuple(drawn.shape)}"
        )
    return value


def _random_dag(nodes: int, degree: float) -> Tensor:
    """Return the adjacency of an Erdos-Renyi graph, oriented along a random order."""
    if nodes < 2:
        raise ValueError(f"a random graph has {nodes} nodes; ask for at least 2")
    present = torch.triu(torch.rand(nodes, nodes) < degree / (nodes - 1), 1)
    order = torch.randperm(nodes)
    return present[order][:, order]


class Nonlinear:
    """A nonlinear SCM with simulated truth; several stand ready, and you may bring your own.

    `chain`, `triangle`, `fork` and `simpson` are equations of the literature with additive noise
    (`simpson`: in part through a tanh); `diamond` has multiplicative noise; `mixed` has a
    categorical node (Gumbel-max) and an ordinal one (inverse CDF) among continuous ones.

    Args:
        system: a name in `systems.SYSTEMS`, or a `System` of your own.
        train, valid, test: rows of each split, at least 2.
        seed: of all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches; `context` holds the true noises, "u.<node>".
        graph, variables, oracle: the causal graph, its variables, and the true model.

    Raises:
        KeyError: for an unknown system, with the nearest name.

    Reference: Causal normalizing flows: from theory to practice (Javaloy, Sanchez-Martin and
    Valera, 2023), https://arxiv.org/abs/2306.05415; VACA: Design of Variational Graph Autoencoders
    for Interventional and Counterfactual Queries (Sanchez-Martin, Rateike and Valera, 2021),
    https://arxiv.org/abs/2110.14690

    Example:
        >>> data = Nonlinear("triangle", train=100)
        >>> truth = data.ate("x1", "x2", treated=2.0, control=1.0)  # E[2 x1^2 + u] changes by 6
        >>> round(truth["ate"], 4), truth["error"] < 1e-4
        (6.0, True)
        >>> bool(((data.invert(data.test.values)["x2"] - data.test.context["u.x2"]) < 1e-4).all())
        True
    """

    def __init__(
        self,
        system: System | str = "triangle",
        train: int = 5000,
        valid: int = 500,
        test: int = 1000,
        seed: int = 0,
    ) -> None:
        if isinstance(system, str) and system not in SYSTEMS:
            hint = nearest(system, SYSTEMS)
            raise KeyError(f"no system is called {system!r}; there are {tuple(SYSTEMS)}.{hint}")
        self.system = SYSTEMS[system] if isinstance(system, str) else system
        self.seed, self.graph = seed, Graph.parse(self.system.graph)
        self.given = {"system": system, "train": train, "valid": valid, "test": test}
        nodes = self.system.nodes
        self.oracle = Oracle(
            self.graph,
            {n: Variable(n, kind=v.kind, categories=v.categories) for n, v in nodes.items()},
            {n: v.equation for n, v in nodes.items()},
            {n: v.prior for n, v in nodes.items()},
        )
        with seeded(seed):
            batches = _simulate(self.oracle, {"train": train, "valid": valid, "test": test})
        self.train, self.valid, self.test = (batches[s] for s in ("train", "valid", "test"))
        self.variables = dict(self.oracle.variables)

    def invert(self, values: Values) -> dict[str, Tensor]:
        """Return the noises that explain the values of all nodes, by the inverse equations.

        Nodes without an inverse are left out: many noises give the same category.

        Args:
            values: node -> `(B,)`, every node.
        """
        nodes = self.system.nodes.items()
        return {n: v.inverse(values[n], values) for n, v in nodes if v.inverse is not None}

    def ate(
        self,
        treatment: str,
        outcome: str,
        treated: float | str = 1.0,
        control: float | str = 0.0,
        draws: int = 100_000,
        seed: int = 0,
    ) -> dict[str, float]:
        """Return the average effect by Monte Carlo: both worlds share their noise.

        Args:
            treatment, outcome: nodes; the outcome is no category (codes of ordinal ones count).
            treated, control: values or labels of the treatment.
            draws: rows.
            seed: of the draws.

        Returns:
            "ate", E[outcome | do(treated)] - E[outcome | do(control)], and "error", its standard
            error.
        """
        for name in (treatment, outcome):
            known(name, self.graph.nodes, "ate()")
        if self.variables[outcome].kind == "categorical":
            raise ValueError(f"{outcome!r} is categorical: the mean of its codes says nothing")
        with seeded(seed):
            noise = self.oracle.noise(draws)
            worlds = [
                self.oracle.predict(noise, {treatment: v})[outcome] for v in (treated, control)
            ]
        change = worlds[0].double() - worlds[1].double()
        return {"ate": float(change.mean()), "error": float(change.std() / draws**0.5)}
