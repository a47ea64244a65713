"""Linear-Gaussian SCMs in several units, and what matrix algebra says of them (an oracle)."""

from dataclasses import dataclass

import numpy as np
import torch

from subjunctive.completion import Encoder
from subjunctive.graph import Graph
from subjunctive.mechanisms import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.variable import Variable

GRAPH = Graph.parse("z -> t; t -> m; z -> y; m -> y; t -> y; y -> w")
UNITS = {"z": (5.0, 2.0), "t": (-1.0, 0.5), "m": (100.0, 20.0), "y": (0.0, 3.0), "w": (7.0, 0.1)}
EDGES = {
    ("z", "t"): 0.8,
    ("z", "y"): -0.5,
    ("t", "m"): 1.2,
    ("m", "y"): 0.7,
    ("t", "y"): 0.4,
    ("y", "w"): 0.9,
}
BIAS = {"z": 0.1, "t": -0.2, "m": 0.3, "y": 0.0, "w": -0.4}
NOISE = {"z": 1.0, "t": 0.6, "m": 0.5, "y": 0.8, "w": 0.3}


def variables(**more):
    return {n: Variable(n, loc=loc, scale=scale, **more) for n, (loc, scale) in UNITS.items()}


def mechanism(name, kinds):
    parents = GRAPH.parents(name)
    return LinearGaussian.of(
        kinds[name],
        [kinds[p] for p in parents],
        weights=[EDGES[p, name] for p in parents],
        bias=BIAS[name],
        scale=NOISE[name],
    )


def scm(encoder=None):
    kinds = variables()
    return SCM(GRAPH, {n: mechanism(n, kinds) for n in GRAPH.nodes}, encoder)


@dataclass
class Truth:
    """x = c + B x + D u in the user's units, rows by `GRAPH.nodes`."""

    nodes: tuple
    coefficients: np.ndarray
    constant: np.ndarray
    spread: np.ndarray

    @classmethod
    def make(cls):
        nodes = GRAPH.nodes
        n = len(nodes)
        b, c, d = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        for i, node in enumerate(nodes):
            loc, scale = UNITS[node]
            c[i], d[i] = loc + scale * BIAS[node], scale * NOISE[node]
            for j, parent in enumerate(nodes):
                if (parent, node) in EDGES:
                    b[i, j] = scale * EDGES[parent, node] / UNITS[parent][1]
                    c[i] -= b[i, j] * UNITS[parent][0]
        return cls(nodes, b, c, d)

    def do(self, **values):
        b, c, d = self.coefficients.copy(), self.constant.copy(), self.spread.copy()
        for node, value in values.items():
            i = self.nodes.index(node)
            b[i], c[i], d[i] = 0, value, 0
        return Truth(self.nodes, b, c, d)

    @property
    def inverse(self):
        return np.linalg.inv(np.eye(len(self.nodes)) - self.coefficients)

    @property
    def mean(self):
        return self.inverse @ self.constant

    @property
    def covariance(self):
        half = self.inverse * self.spread
        return half @ half.T

    def noise(self, rows):
        """u from rows of x `(B, nodes)`."""
        return (rows - self.constant - rows @ self.coefficients.T) / self.spread

    def solve(self, u):
        """x from rows of u."""
        return (self.constant + u * self.spread) @ self.inverse.T

    def condition(self, seen, values):
        """Return indices of the rest, their conditional mean `(B, rest)` and covariance."""
        a = [self.nodes.index(n) for n in seen]
        r = [i for i in range(len(self.nodes)) if i not in a]
        s = self.covariance
        gain = s[np.ix_(r, a)] @ np.linalg.inv(s[np.ix_(a, a)])
        mean = self.mean[r] + (values - self.mean[a]) @ gain.T
        return r, mean, s[np.ix_(r, r)] - gain @ s[np.ix_(a, r)]


TRUTH = Truth.make()


def rows(values, nodes=GRAPH.nodes):
    """Lay a dict of tensors side by side in double precision."""
    return np.stack([values[n].detach().double().numpy() for n in nodes], axis=1)


class Exact(Encoder):
    """p(unseen | seen), exactly, node after node; `inflate` makes it wrong on purpose."""

    def __init__(self, nodes, inputs, shift=0.0, inflate=1.0):
        super().__init__()
        self.nodes, self.inputs = tuple(n for n in GRAPH.order if n in nodes), tuple(inputs)
        self.shift, self.inflate = shift, inflate
        self.slack = torch.nn.Parameter(torch.zeros(()))

    def forward(self, values, seen):
        def posterior(name, so_far):
            before = [*self.inputs, *self.nodes[: self.nodes.index(name)]]
            given = np.stack(
                [so_far[n].detach().double().numpy() * UNITS[n][1] + UNITS[n][0] for n in before], 1
            )
            rest, mean, covariance = TRUTH.condition(before, given)
            i = rest.index(GRAPH.nodes.index(name))
            loc, scale = UNITS[name]
            mean = torch.tensor((mean[:, i] - loc) / scale, dtype=torch.get_default_dtype())
            spread = float(covariance[i, i] ** 0.5 / scale) * self.inflate
            return torch.distributions.Normal(mean + self.shift + self.slack, spread)

        return posterior
