"""Nonlinear SCMs as plain equations: node by node, `x = f(u, parents)`, its noise, its inverse.

    additive         x = m(pa) + s u                          u = (x - m(pa)) / s
    multiplicative   x = m(pa) exp(s u)                       u = log(x / m(pa)) / s
    categorical      x = argmax_k logits_k(pa) + u_k          (Gumbel-max)
    ordinal          x = sum_k [u > sigmoid(cut_k - m(pa))]   (inverse CDF)

Reference: Causal normalizing flows: from theory to practice (Javaloy, Sanchez-Martin and Valera,
2023), https://arxiv.org/abs/2306.05415 (the equations of chain, triangle, fork and simpson).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from subjunctive.data.oracle import Equation
from subjunctive.variable import Kind

Values = Mapping[str, Tensor]
Prior = Callable[[int], Tensor]


@dataclass(frozen=True)
class Node:
    """One node of a `System`: its equation, its noise and, where there is one, the inverse.

    Args:
        equation: `f(u, parents)`; parents that are categories come as integer codes.
        prior: `n -> u`, n draws of the noise.
        inverse: `(x, parents) -> u`; None where many noises give one value.
        kind, categories: of the node's `Variable`.
    """

    equation: Equation
    prior: Prior = torch.randn
    inverse: Equation | None = None
    kind: Kind = "continuous"
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """A graph's arrows and every node's equation.

    Example:
        >>> from subjunctive.data.tabular import Nonlinear
        >>> square = Node(lambda u, pa: pa["t"] ** 2 + u, inverse=lambda y, pa: y - pa["t"] ** 2)
        >>> data = Nonlinear(System("t -> y", {"t": Node(lambda u, pa: u), "y": square}), train=9)
        >>> data.train.values["y"].shape, list(data.invert(data.train.values))
        (torch.Size([9]), ['y'])
    """

    graph: str
    nodes: Mapping[str, Node]


def _additive(mean: Callable[[Values], Tensor | float], scale: float = 1.0) -> Node:
    """Return x = mean(parents) + scale u."""
    return Node(lambda u, pa: mean(pa) + scale * u, inverse=lambda x, pa: (x - mean(pa)) / scale)


def _multiplicative(size: Callable[[Values], Tensor], spread: float) -> Node:
    """Return x = size(parents) exp(spread u), positive."""
    return Node(
        lambda u, pa: size(pa) * torch.exp(spread * u),
        inverse=lambda x, pa: torch.log(x / size(pa)) / spread,
    )


def _gumbel(logits: Callable[[Values], Tensor], categories: tuple[str, ...]) -> Node:
    """Return argmax(logits(parents) + u), u of the standard Gumbel law, `(B, K)`."""
    return Node(
        lambda u, pa: (logits(pa) + u).argmax(1),
        lambda n: -torch.log(torch.empty(n, len(categories)).exponential_()),
        kind="categorical",
        categories=categories,
    )


def _threshold(
    mean: Callable[[Values], Tensor], cuts: tuple[float, ...], categories: tuple[str, ...]
) -> Node:
    """Return how many of F_k(parents) = sigmoid(cut_k - mean) lie below u, uniform in [0, 1]."""

    def equation(u: Tensor, pa: Values) -> Tensor:
        return (u[:, None] > torch.sigmoid(u.new_tensor(cuts) - mean(pa)[:, None])).sum(1)

    return Node(equation, torch.rand, kind="ordinal", categories=categories)


_root = _additive(lambda pa: 0.0)
SYSTEMS: dict[str, System] = {
    "chain": System(
        "x1 -> x2 -> x3",
        {
            "x1": _root,
            "x2": _additive(lambda pa: torch.exp(pa["x1"] / 2), 0.25),
            "x3": _additive(lambda pa: (pa["x2"] - 5) ** 3 / 15),
        },
    ),
    "triangle": System(
        "x1 -> x2; x1 -> x3; x2 -> x3",
        {
            "x1": _root,
            "x2": _additive(lambda pa: 2 * pa["x1"] ** 2),
            "x3": _additive(lambda pa: 20 * torch.sigmoid(pa["x2"] ** 2 - pa["x1"])),
        },
    ),
    "fork": System(
        "x1, x2 -> x3 -> x4",
        {
            "x1": _root,
            "x2": _root,
            "x3": _additive(lambda pa: 4 * torch.sigmoid(pa["x1"] + pa["x2"]) - pa["x2"] ** 2, 0.5),
            "x4": _additive(lambda pa: 20 * torch.sigmoid(pa["x3"] - pa["x3"] ** 2 / 2)),
        },
    ),
    "simpson": System(
        "x1 -> x2; x1, x2 -> x3 -> x4",
        {
            "x1": _root,
            "x2": _additive(lambda pa: softplus(1 - pa["x1"]), 0.15**0.5),
            "x3": Node(
                lambda u, pa: torch.tanh(2 * pa["x2"]) + 1.5 * pa["x1"] - 1 + torch.tanh(u),
                inverse=lambda x, pa: torch.atanh(
                    (x - torch.tanh(2 * pa["x2"]) - 1.5 * pa["x1"] + 1).clamp(-1, 1)
                ),
            ),
            "x4": _additive(lambda pa: (pa["x3"] - 4) / 5 + 3, 0.1**0.5),
        },
    ),
    "diamond": System(
        "a -> b; a -> c; b, c -> d",
        {
            "a": _root,
            "b": _multiplicative(lambda pa: softplus(pa["a"]), 0.5),
            "c": _additive(lambda pa: 2 * torch.sin(pa["a"]), 0.5),
            "d": Node(
                lambda u, pa: pa["b"] * pa["c"] + torch.exp(pa["c"] / 2) * u,
                inverse=lambda x, pa: (x - pa["b"] * pa["c"]) * torch.exp(-pa["c"] / 2),
            ),
        },
    ),
    "mixed": System(
        "age -> site; age, site -> stage; age, stage -> dose; site, stage, dose -> outcome",
        {
            "age": Node(lambda u, pa: 60 + 10 * u, inverse=lambda x, pa: (x - 60) / 10),
            "site": _gumbel(
                lambda pa: (pa["age"][:, None] - 60) / 10 * pa["age"].new_tensor([0.8, 0.0, -0.8]),
                ("north", "middle", "south"),
            ),
            "stage": _threshold(
                lambda pa: (
                    (pa["age"] - 60) / 10 + pa["age"].new_tensor([0.0, 1.0, -1.0])[pa["site"]]
                ),
                (-1.5, 0.0, 1.5),
                ("I", "II", "III", "IV"),
            ),
            "dose": _multiplicative(
                lambda pa: 0.5 + pa["stage"] + softplus((70 - pa["age"]) / 10), 0.3
            ),
            "outcome": _additive(
                lambda pa: (
                    3 * torch.tanh(pa["dose"] / 2)
                    - pa["stage"] ** 1.5
                    + pa["dose"].new_tensor([0.5, 0.0, -0.5])[pa["site"]]
                ),
                0.5,
            ),
        },
    ),
}
