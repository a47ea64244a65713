"""Rows that miss values: those that say something about a mechanism, and its fit on these.

    theta_i <- argmin sum over {rows that saw x_i and pa_i} of -log p(x_i | pa_i; theta_i)

No value is drawn, and no posterior is needed. A mechanism that has a closed form is solved, the
others are left to gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from subjunctive.mechanism import Parents
from subjunctive.scm import SCM
from subjunctive.train import Objective
from subjunctive.variable import Batch


class AvailableCases(Objective):
    """Each mechanism's own loss, in the rows that saw its node and all its parents.

    Args:
        nodes: whose mechanisms; of all nodes if None.
    """

    def __init__(self, nodes: Iterable[str] | None = None) -> None:
        super().__init__()
        self.nodes = None if nodes is None else tuple(nodes)

    def loss(self, model: Any, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return `node.term`, zero in the rows that do not count."""
        terms, zero = {}, model.origin.repeat(len(batch))
        for name, rows, x, given in cases(model, model.batch(batch), self.nodes):
            for key, term in model.mechanisms[name].loss(x, given).items():
                terms[f"{name}.{key}"] = zero.masked_scatter(rows, term)
        return terms or {"nothing": zero}


def all_seen(batch: Batch, nodes: Iterable[str]) -> Tensor:
    """Return which rows saw all the nodes, `(B,)`."""
    rows = ~batch.mask("")  # which nobody saw
    for name in nodes:
        if name in batch.seen or name not in batch.values:
            rows = rows & batch.mask(name)
    return rows


def solved(model: SCM, batch: Batch) -> list[str]:
    """Fit in place what has a closed form, and return the nodes that are left.

    Args:
        model: on the CPU. batch: rows as its `batch` returns them.

    Raises:
        ValueError: for a node that no row saw together with all its parents.
    """
    left, lacking = [], {*model.graph.nodes}
    for name, _, x, given in cases(model, batch):
        lacking.remove(name)
        solve = getattr(model.mechanisms[name], "solve", None)
        if solve is None:
            left.append(name)
        else:
            solve(x, given)
    for node in sorted(lacking):
        raise ValueError(f"no row saw {node!r} and all its parents; it cannot be fitted")
    return left


def cases(
    model: SCM, batch: Batch, nodes: Iterable[str] | None = None
) -> Iterator[tuple[str, Tensor, Tensor, Parents]]:
    """Yield node, rows that saw it and its parents, and its and its parents' values there."""
    values = model.standard(batch)
    for name in model.graph.nodes if nodes is None else nodes:
        parents = model.graph.parents(name)
        rows = all_seen(batch, (name, *parents))
        if bool(rows.all()):
            yield name, rows, values[name], {p: values[p] for p in parents}
        elif bool(rows.any()):
            yield name, rows, values[name][rows], {p: values[p][rows] for p in parents}
