"""Rows that miss values: those that say something about a mechanism, and its fit on these.

    theta_i <- argmin sum over {rows that saw x_i and pa_i} of -log p(x_i | pa_i; theta_i)

No value is drawn, and no posterior is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from subjunctive.mechanism import Parents
from subjunctive.scm import SCM
from subjunctive.train import Objective
from subjunctive.variable import Batch


class AvailableCases(Objective):
    """Each mechanism's own loss, in the rows that saw its node and all its parents."""

    def loss(self, model: Any, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return `node.term`, zero in the rows that do not count."""
        terms, zero = {}, model.origin.repeat(len(batch))
        for name, rows, x, given in cases(model, model.batch(batch)):
            for key, term in model.mechanisms[name].loss(x, given).items():
                terms[f"{name}.{key}"] = zero.masked_scatter(rows, term)
        return terms or {"nothing": zero}


def all_seen(batch: Batch, nodes: Iterable[str]) -> Tensor:
    """Return which rows saw all the nodes, `(B,)`."""
    anything = torch.ones_like(batch.mask(""))
    return torch.stack([anything, *(batch.mask(n) for n in nodes)]).all(0)


def cases(model: SCM, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor, Parents]]:
    """Yield node, rows that saw it and its parents, and its and its parents' values there."""
    values = model.standard(batch)
    for name in model.graph.nodes:
        parents = model.graph.parents(name)
        rows = all_seen(batch, (name, *parents))
        if bool(rows.any()):
            yield name, rows, values[name][rows], {p: values[p][rows] for p in parents}
