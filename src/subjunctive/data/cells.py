r"""Cells of a gene network with knock-outs: bimodal and silent genes, and true counterfactuals.

Genes g = 1, ..., G in topological order, each with arrows from a few before it, weights w, and its own
noise, e ~ N(0, 1) and s ~ logistic. With what arrives, a_g = sum_p w_pg (x_p - 2), a gene is

    graded     x_g = max(0, m_g + a_g + 0.4 e_g)
    switched   x_g = max(0, m_g + 0.3 e_g)  if s_g < b_g + 3 a_g, else 0: bimodal, on or silent
    knocked    x_g = 0

in units of log expression. Every row has its own cell: none is seen both with a knock-out and without,
but the simulator can say what it would have been.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from subjunctive.data.oracle import Oracle
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable

CONTROL = "control"
MIDDLE = 2.0  # about what a gene expresses
NOISE, SWITCHED_NOISE, GAIN = 0.4, 0.3, 3.0


class GeneCells:
    """Unpaired control and knocked-out cells of a random gene network, with the truth beside them.

    Args:
        genes: how many; a third of them regulates and can be knocked out.
        cells: training cells a knock-out; there are four times as many controls.
        test: cells of every kind in `test`; `valid` has half as many.
        hold_out: how many knock-outs have cells in `test` alone.
        seed: of the network and all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches of `perturbation` and `cells` (`(B, G)`); `context` holds the
            true noises, `u.perturbation` (its code) and `u.cells` (`(B, G, 2)`).
        graph, variables, oracle: `perturbation -> cells`, and the true model.
        genes, perturbations, held_out: names; `control` is the first perturbation.
        bimodal: which genes are switched, boolean `(G,)`.
        arrows: the true weights, `(G, G)`.

    Raises:
        ValueError: for fewer than 6 genes, 2 rows, or a knock-out left for training.

    Example:
        >>> data = GeneCells(genes=9, cells=20, test=10, hold_out=1)
        >>> data.perturbations, data.held_out, data.train.values["cells"].shape
        (('control', 'g1', 'g2', 'g3'), ('g3',), torch.Size([120, 9]))
        >>> still = data.test[data.test.values["perturbation"] == 0]
        >>> done = data.oracle.predict(data.oracle.abduct(still), {"perturbation": "g1"})["cells"]
        >>> bool((done[:, 0] == 0).all())
        True
    """

    def __init__(
        self, genes: int = 30, cells: int = 500, test: int = 400, hold_out: int = 3, seed: int = 0
    ) -> None:
        regulators = genes // 3
        if genes < 6 or min(cells, test) < 2 or not 0 <= hold_out < regulators:
            raise ValueError(
                f"GeneCells has genes={genes}, cells={cells}, test={test}, hold_out={hold_out}: it "
                "needs 6 genes, 2 cells of a kind, and a knock-out of the first third left to train"
            )
        self.size, self.cells, self.hold_out, self.seed = genes, cells, hold_out, seed
        self.genes = tuple(f"g{i + 1}" for i in range(genes))
        self.perturbations = (CONTROL, *self.genes[:regulators])
        with seeded(seed):
            self._draw_network(genes, regulators)
            out = torch.randperm(regulators)[:hold_out].sort().values + 1
            self.held_out = tuple(self.perturbations[i] for i in out.tolist())
            self.graph = Graph.parse("perturbation -> cells")
            kinds = self.perturbations
            self.variables = {
                "perturbation": Variable("perturbation", kind="categorical", categories=kinds),
                "cells": Variable("cells", (genes,), unit="log expression"),
            }
            self.oracle = Oracle(
                self.graph,
                self.variables,
                {"perturbation": lambda u, pa: u, "cells": self._cells},
                {"perturbation": lambda n: torch.randint(len(kinds), (n,)), "cells": self._noise},
            )
            every = torch.arange(len(kinds))
            self.test = self._draw(every.repeat_interleave(test))
            seen = every[~torch.isin(every, out)]
            self.valid = self._draw(seen.repeat_interleave(max(test // 2, 1)))
            often = torch.where(seen == 0, 4 * cells, cells)
            self.train = self._draw(seen.repeat_interleave(often))
        x = self.train.values["cells"]
        scale = float(x.std(0).square().mean().sqrt())
        fitted = Variable("cells", (genes,), unit="log expression", loc=float(x.mean()),
                          scale=scale, low=0.0, high=float(x.max()))  # fmt: skip
        self.variables["cells"] = self.oracle.variables["cells"] = fitted

    def network(self) -> list[tuple[str, str, float]]:
        """Return who regulates whom, `(from, to, sign)`: not how strongly."""
        return [
            (self.genes[i], self.genes[j], float(self.arrows[i, j].sign()))
            for i, j in self.arrows.nonzero().tolist()
        ]

    def _draw_network(self, genes: int, regulators: int) -> None:
        self.arrows = torch.zeros(genes, genes)
        for g in range(1, genes):
            few = min(g, regulators, 1 + int(torch.randint(2 if g < regulators else 3, ())))
            above = torch.randperm(min(g, regulators))[:few]
            sign = torch.where(torch.rand(few) < 0.65, 1.0, -1.0)
            self.arrows[above, g] = sign * (0.4 + 0.5 * torch.rand(few)) / few**0.5
        self.bimodal = torch.rand(genes) < 0.4
        self.bimodal[0] = False
        self.level = torch.where(self.bimodal, 2.5, MIDDLE) + 0.6 * (torch.rand(genes) - 0.5)
        self.bias = 1.5 * torch.rand(genes)

    def _noise(self, n: int) -> Tensor:
        v = torch.rand(n, self.size).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.randn(n, self.size), v.logit()], 2)

    def _cells(self, u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
        columns: list[Tensor] = []
        for g in range(self.size):
            arrives = u.new_zeros(len(u))
            for p in self.arrows[:, g].nonzero()[:, 0].tolist():
                arrives = arrives + self.arrows[p, g] * (columns[p] - MIDDLE)
            if self.bimodal[g]:
                on = u[:, g, 1] < self.bias[g] + GAIN * arrives
                x = (self.level[g] + SWITCHED_NOISE * u[:, g, 0]).clamp(min=0) * on
            else:
                x = (self.level[g] + arrives + NOISE * u[:, g, 0]).clamp(min=0)
            columns.append(torch.where(parents["perturbation"] == g + 1, 0.0, x))
        return torch.stack(columns, 1)

    def _draw(self, kinds: Tensor) -> Batch:
        noise = {"perturbation": kinds, "cells": self._noise(len(kinds))}
        return Batch(self.oracle.predict(noise), context={f"u.{k}": u for k, u in noise.items()})
