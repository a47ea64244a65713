"""Which interventions an evaluation asks, and where their targets come from.

- `inside`: targets drawn from the node's own training values, its observational marginal.
- `outside`: half of the targets uniform between the lowest training value and the 1 % quantile,
  half between the 99 % quantile and the highest: values that are possible but were hardly seen.
- `given`: targets of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subjunctive.intervention import as_do
from subjunctive.mechanism import seeded
from subjunctive.variable import known


@dataclass(frozen=True)
class Question:
    """One intervention, one target a row.

    Args:
        node: what is set.
        support: `inside`, `outside` or `given`.
        targets: `(B, *shape)`, in the node's unit.
    """

    node: str
    support: str
    targets: Tensor

    @property
    def do(self) -> dict[str, Tensor]:
        """The intervention."""
        return {self.node: self.targets}

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"do({self.node})"


def intervenable(data: Any, image: str | None) -> list[str]:
    """Return the nodes worth setting: the image's ancestors; in a table, all that have children."""
    graph = data.graph
    latent = graph.of_kind("latent")
    if image is not None:
        above = set(graph.ancestors(image)) - {image}
    else:
        above = {p for n in graph.nodes for p in graph.parents(n)}
    return [n for n in graph.order if n in above and n not in latent]


def _seen(data: Any, node: str) -> Tensor:
    values: Tensor = data.train.values[node][data.train.mask(node)]
    return values


def inside(data: Any, node: str, rows: int) -> Tensor:
    """Draw targets from the node's training values, `(rows, *shape)`."""
    values = _seen(data, node)
    return values[torch.randint(len(values), (rows,))]


def outside(data: Any, node: str, rows: int) -> Tensor | None:
    """Draw targets beyond the 1 % and 99 % quantiles of training, `(rows,)`; None if it has none.

    Args:
        data: with `train` and `variables`.
        node: a continuous scalar; categories and vectors have no outside.
        rows: how many; even ones lie low, odd ones high.
    """
    variable, values = data.variables[node], _seen(data, node)
    if variable.discrete or variable.shape:
        return None
    low, first, last, high = values.double().quantile(
        torch.tensor([0, 0.01, 0.99, 1], dtype=torch.float64)
    )
    bands = [(a, b) for a, b in ((low, first), (last, high)) if b > a]
    if not bands:
        return None
    edges = torch.tensor(bands).repeat(-(-rows // len(bands)), 1)[:rows]
    return torch.lerp(edges[:, 0], edges[:, 1], torch.rand(rows).double()).to(values)


def questions(
    data: Any,
    do: Sequence[str] | Mapping[str, Any] | None,
    image: str | None,
    rows: int,
    seed: int,
) -> list[Question]:
    """Return the questions of an evaluation.

    Args:
        data: with `graph`, `train` and `variables`.
        do: nodes to set, or node -> targets, one for all or one a row; all that are worth setting
            if not given.
        image: the image's node, if there is one.
        rows: how many rows are asked about.
        seed: of the targets.

    Raises:
        KeyError: for an unknown node. ValueError: if there is nothing to ask.
    """
    asked = []
    with seeded(seed):
        if isinstance(do, Mapping):
            for node, action in as_do(do, data.variables).items():
                value = action.apply(lambda: torch.empty(0), {}, rows)
                asked.append(Question(node, "given", value.clone()))
        else:
            for node in intervenable(data, image) if do is None else do:
                known(node, data.graph.nodes, "do")
                asked.append(Question(node, "inside", inside(data, node, rows)))
                beyond = outside(data, node, rows)
                if beyond is not None:
                    asked.append(Question(node, "outside", beyond))
    if not asked:
        raise ValueError(f"there is nothing to do in {data.graph}: name nodes in do=")
    return asked
