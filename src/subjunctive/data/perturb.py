r"""Perturb-seq: single cells, each with one gene knocked out or none, and its counts of molecules.

Papalexi et al. knocked out 25 genes, most of the interferon-gamma pathway, in THP-1 cells that were
stimulated with interferon-gamma, and counted molecules of 299 genes in 20,729 cells. A cell is
measured once: which knock-out it has was drawn at random, and no cell is seen both with and without.

    library   l_i = sum_g k_ig, over the genes of the file
    cells     x_ig = log(1 + k_ig median(l) / l_i)

Reference: Characterizing the molecular regulation of inhibitory immune checkpoints with multimodal
single-cell screens (Papalexi et al., 2021), https://doi.org/10.1038/s41588-021-00778-2; the counts as
in the R package `sceptredata` (MIT licence), `papalexi2021.npz`: a sparse matrix (`data`, `indices`,
`indptr`, `shape`), `genes` and each cell's `target`.
"""  # noqa: E501

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from subjunctive.data.source import find, missing
from subjunctive.graph import Graph
from subjunctive.variable import Batch, Variable, known

NAME, FILE = "papalexi2021_MIT", "papalexi2021.npz"
CONTROL, FILE_CONTROL = "control", "non-targeting"
# textbook arrows of the interferon-gamma pathway, which reach genes that the file does not measure
PATHWAY = (
    *(("IFNGR1", "JAK2"), ("IFNGR2", "JAK2"), ("JAK2", "STAT1"), ("JAK2", "STAT3")),
    *(("JAK2", "STAT5A"), ("STAT1", "IRF1"), ("STAT1", "UBE2L6"), ("STAT1", "PSMB9")),
    *(("IRF1", "PSMB9"), ("STAT2", "UBE2L6")),
)


class Papalexi:
    """Cells under 25 knock-outs and none, from a file that the user has.

    Args:
        data_dir: where the file lies; by default what `$SUBJUNCTIVE_DATA` names.
        genes: how many genes to keep, those that most cells express; all if None. Perturbed genes
            that were measured are kept whatever they count.
        hold_out: knock-outs whose cells are all in `test`.
        seed: of the split; of what is not held out, 80 % is for training, 10 % each for the others.

    Attributes:
        train, valid, test: batches of `perturbation` and `cells` (`(B, G)`, log-normalised), with
            `counts` (`(B, G)`, molecules) and `library` (`(B,)`, molecules) in `context`.
        graph, variables: `perturbation -> cells`.
        genes, perturbations: names; `control` is the first perturbation.

    Raises:
        FileNotFoundError: if the file is not there.
        KeyError: for a knock-out that is none.
        ValueError: for a number of genes below one.

    Example:
        >>> Papalexi(data_dir="/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no data found for 'papalexi2021_MIT': ...
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        genes: int | None = None,
        hold_out: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        counts, names, target = read(data_dir)
        if genes is not None and genes < 1:
            raise ValueError(f"genes is {genes}; keep at least one gene, or all by genes=None")
        self.hold_out, self.seed = tuple(hold_out), seed
        kinds = (CONTROL, *sorted(set(target) - {FILE_CONTROL}))
        for name in self.hold_out:
            known(name, kinds[1:], "Papalexi(hold_out=)")
        self.perturbations = kinds
        library = counts.sum(1)
        kept = np.arange(len(names))
        if genes is not None:
            share = (counts > 0).mean(0) + np.isin(names, kinds)  # the perturbed ones come first
            kept = np.sort(np.argsort(-share, kind="stable")[:genes])
        self.genes = tuple(str(n) for n in names[kept])
        code = {kind: i for i, kind in enumerate(kinds)} | {FILE_CONTROL: 0}
        codes = torch.tensor([code[t] for t in target])
        molecules = torch.from_numpy(counts[:, kept]).float()
        size = torch.from_numpy(library).float()
        rows = Batch(
            {"perturbation": codes, "cells": normalise(molecules, size)},
            context={"counts": molecules, "library": size},
        )
        parts = self._split(codes)
        self.train, self.valid, self.test = (rows[torch.from_numpy(p)] for p in parts)
        self.graph = Graph.parse("perturbation -> cells")
        cells = Variable("cells", (len(kept),), unit="log(1 + molecules)")
        x = self.train.values["cells"]
        spread = float(x.std(0).square().mean().sqrt())  # within genes, not between them
        self.variables = {
            "perturbation": Variable("perturbation", kind="categorical", categories=kinds),
            "cells": replace(
                cells, loc=float(x.mean()), scale=spread, low=0.0, high=float(x.max())
            ),
        }

    def _split(self, codes: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of each split, every perturbation in proportion."""
        draw, parts = np.random.default_rng(self.seed), ([], [], [])  # type: ignore[var-annotated]
        for i, kind in enumerate(self.perturbations):
            rows = draw.permutation(np.flatnonzero(codes.numpy() == i))
            cuts = [0, 0] if kind in self.hold_out else [len(rows) * 8 // 10, len(rows) * 9 // 10]
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        train, valid, test = (np.sort(np.concatenate(p)) for p in parts)
        return train, valid, test

    def network(self, least: float = 0.15) -> list[tuple[str, str, float]]:
        """Return arrows between genes: the pathway's, and co-expression in control training cells.

        Co-expressed genes have an arrow each way, weighted by their correlation; nothing is read
        from cells with a knock-out.

        Args:
            least: correlation, in absolute value, below which there is no arrow.
        """
        x = self.train.values["cells"][self.train.values["perturbation"] == 0].double()
        x = x - x.mean(0)
        x = x / x.norm(dim=0).clamp(min=1e-12)
        r = (x.T @ x).fill_diagonal_(0.0)
        found = {
            (self.genes[i], self.genes[j]): float(r[i, j])
            for i, j in (r.abs() > least).nonzero().tolist()
        }
        return [(a, b, w) for (a, b), w in (found | dict.fromkeys(PATHWAY, 1.0)).items()]


def read(
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts `(N, G)`, the genes' names and each cell's target, as the file has them.

    Raises:
        FileNotFoundError: if the file is not there.
    """
    paths = find(NAME, [FILE], data_dir)
    if paths is None:
        remedy = "Give data_dir=, or set the variable, to the folder that holds it"
        raise missing(NAME, [FILE], data_dir, remedy)
    with np.load(paths[FILE], allow_pickle=False) as held:
        counts = np.zeros(tuple(held["shape"]), np.int64)
        rows = np.repeat(np.arange(len(counts)), np.diff(held["indptr"]))
        counts[rows, held["indices"]] = held["data"]
        return counts, held["genes"], held["target"]


def normalise(counts: Tensor, library: Tensor) -> Tensor:
    """Return log(1 + k median(library) / library) of counts `(B, G)` and library sizes `(B,)`.

    Example:
        >>> normalise(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 8.0])).exp() - 1
        tensor([[1.], [1.]])
    """
    return torch.log1p(counts * (library.median() / library)[:, None])
