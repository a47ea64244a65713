r"""Bridges between unpaired cells: what would this control cell have been under that knock-out?

    perturbation   a category: control, or the genes that are knocked out ("STAT1", "STAT1+JAK2")
    cells          x = f_control(u)   or   f_perturbed(u; c),    u ~ N(0, I), the same for both

A cell is measured once, hence no cell is seen both with and without a knock-out. Each of two
diffusion models is fitted to its own cells; a deterministic sampler makes each of them a map from the
same Gaussian noise, which can be run backward. To abduct a control cell's noise by the one and to
replay it by the other is a bridge between the two distributions, and the counterfactual
`counterfactual(model, cell, {"perturbation": "STAT1"})`.

The perturbed cells' model reads c: the knock-out propagated over a network of genes to each of them
(`nn.Propagate`), by one rule for all genes, so that one that was never tried acts by its place in the
network. A mask decides which genes are silent (`mechanisms.Silent`).

Where this differs from the paper and its code, on purpose: a knock-out is a mark that travels over
the network, zero without one, where there a gene's learned embedding is set to zero before a graph
attention, so that what an untried gene's embedding would have meant was never learned; the mask's
noise is kept and reads the cell, where there it is drawn anew from a control's mean; and the model
may be one network for all cells (`shared`), whose noise means the same on both sides by construction.
What a bridge does to one cell is a convention: the data show distributions alone.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.diffusion import Cosine, Denoiser, Heun, Schedule
from subjunctive.diffusion.denoise import Target
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.discrete import Categorical, Ordinal
from subjunctive.mechanisms.domains import Domains
from subjunctive.mechanisms.flow import ConditionalFlow
from subjunctive.mechanisms.silent import Silent
from subjunctive.nn.propagate import Expressed, Knocked, Propagate
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable, known

Arrow = tuple[str, str, float]  # from, to, signed weight


def _example() -> tuple[SCM, Batch]:
    kinds = ("control", "A", "B", "A+B")
    variables = {
        "perturbation": Variable("perturbation", kind="categorical", categories=kinds),
        "cells": Variable("cells", (3,), loc=1.0),
    }
    with seeded(0):
        model = Bridge(
            Graph.parse("perturbation -> cells"), variables, ("A", "B", "C"),
            [("A", "B", 1.0), ("B", "C", -1.0)], steps=4, width=8, blocks=1,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model, Batch(model.sample(64))


class Bridge:
    """The recipe: calling it returns an `SCM`.

    Reference: Unlasting: Unpaired Single-Cell Multi-Perturbation Estimation by Dual Conditional
    Diffusion Implicit Bridges (Chi et al., 2025), https://arxiv.org/abs/2506.21107; the bridge:
    Dual Diffusion Implicit Bridges for Image-to-Image Translation (Su, Song, Meng and Ermon, 2022),
    https://arxiv.org/abs/2203.08382

    Args:
        graph: a DAG in which the perturbation is a parent of the cells, and these a leaf.
        variables: node -> `Variable`; the cells' is a vector `(G,)` of log-normalised expression,
            never negative in its own unit.
        genes: the names of its G entries.
        network: arrows `(from, to, weight)` between genes, those of knock-outs that are not
            measured included; what arrives at a gene is scaled to a sum of one.
        perturbation, cells, control: the names of the two nodes and of the category of cells that
            nothing was done to. Another category names what is knocked out, joined by `+`.
        shared: whether one network makes all cells, instead of one each for control and perturbed
            cells, which share nothing but the noise.
        silent: whether a mask makes exact zeros.
        own: whether a perturbation that has rows may also act beyond the network; see `Knocked`.
        depth: how many arrows of the network an effect can follow.
        steps: of the sampler, second order.
        width, blocks: of the networks.
        schedule, target: of the diffusion.
        sigma_data: standard deviation of the standardised cells, all genes together.
        mechanisms: node -> mechanism, where a node should have another one than these.

    Raises:
        KeyError: for an unknown node or category.
        ValueError: if the cells are no vector of these genes, or no leaf under the perturbation.

    Example:
        >>> knocked = Variable("perturbation", kind="categorical", categories=("control", "A", "B"))
        >>> variables = {"perturbation": knocked, "cells": Variable("cells", (2,), loc=1.0)}
        >>> graph = Graph.parse("perturbation -> cells")
        >>> model = Bridge(graph, variables, ("A", "B"), [("A", "B", 1.0)], steps=4, width=8)
        >>> model.sample(5, do={"perturbation": "A"}, seed=0)["cells"].shape
        torch.Size([5, 2])
    """

    def __new__(  # type: ignore[misc]
        cls,
        graph: Graph,
        variables: Mapping[str, Variable],
        genes: Sequence[str],
        network: Sequence[Arrow] = (),
        perturbation: str = "perturbation",
        cells: str = "cells",
        control: str = "control",
        shared: bool = False,
        silent: bool = True,
        own: bool = True,
        depth: int = 3,
        steps: int = 10,
        width: int = 128,
        blocks: int = 2,
        schedule: Schedule | None = None,
        target: Target = "edm",
        sigma_data: float = 1.0,
        mechanisms: Mapping[str, Mechanism] | None = None,
    ) -> SCM:
        """Build the SCM."""
        x, kinds = _nodes(graph, variables, genes, perturbation, cells, control)
        schedule = schedule or Cosine()
        marks, arrows, places = lay_out(kinds, genes, network, control)
        first = variables[perturbation]
        others = [variables[p] for p in graph.parents(cells) if p != perturbation]

        def propagate() -> Propagate:
            return Propagate(marks, arrows, places, depth)

        def made(parents: list[Variable], knocks: bool) -> Mechanism:
            size, more = len(genes), condition_width(parents, 0)
            inner = Knocked(size, more, propagate() if knocks else None, width, blocks, own)
            denoiser = Denoiser(inner, schedule, target, sigma_data)
            sampler = Heun(schedule, steps, sigma_data=sigma_data)
            made = Diffusion(x, parents, denoiser, sampler=sampler, drop=0.0, anchor=0.05)
            if not silent:
                return made
            return Silent(made, Expressed(size))

        built: dict[str, Mechanism] = dict(mechanisms or {})
        for name in graph.nodes:
            if name not in built and name != cells:
                above = [variables[p] for p in graph.parents(name)]
                built[name] = KINDS[variables[name].kind](variables[name], above)
        if cells not in built and shared:
            built[cells] = made([first, *others], True)
        elif cells not in built:
            still, moved = made(others, False), made([first, *others], True)
            each = [still if kind == control else moved for kind in kinds]
            parents = [variables[p] for p in graph.parents(cells)]
            built[cells] = Domains(x, parents, perturbation, each)
        return SCM(graph, built)

    card = Card(
        name="Perturbation bridges (Unlasting)",
        summary="Two diffusion models of cells, with and without knock-outs, joined by their "
        "noise: unpaired perturbation counterfactuals over a gene network.",
        title="Unlasting: Unpaired Single-Cell Multi-Perturbation Estimation by Dual Conditional "
        "Diffusion Implicit Bridges",
        authors="Chi, Changxi and Xia, Jun and Huang, Yufei and Zhou, Jingbo and Li, Siyuan and "
        "Liu, Yunfan and Yu, Chang and Li, Stan Z.",
        year=2025,
        url="https://arxiv.org/abs/2506.21107",
        assumptions=(
            "the same noise means the same cell with and without a knock-out",
            "perturbations were given to cells at random",
            "a knock-out that was never tried acts through the arrows of the given network",
        ),
        needs="control and perturbed cells, unpaired, log-normalised; a network of genes",
        abduction="approximate",
        tolerance=1e-3,
        of=(275,),
        example=_example,
    )


KINDS: dict[Literal["continuous", "categorical", "ordinal"], type[Mechanism]] = {
    "continuous": ConditionalFlow,
    "categorical": Categorical,
    "ordinal": Ordinal,
}


def lay_out(
    kinds: Sequence[str], genes: Sequence[str], network: Sequence[Arrow], control: str = "control"
) -> tuple[Tensor, Tensor, list[int]]:
    """Return marks `(K, N)`, the network `(N, N)` and the measured genes' numbers.

    The N nodes are the genes, then whatever else the network or a category names.

    Args:
        kinds: the perturbation's categories; `A+B` knocks out both.
        genes: what is measured.
        network: arrows `(from, to, weight)`.
        control: the category that knocks out nothing.

    Example:
        >>> marks, arrows, places = lay_out(("control", "R"), ("A",), [("R", "A", -1.0)])
        >>> marks.tolist(), arrows.tolist(), places
        ([[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [-1.0, 0.0]], [0])
    """
    touched = [() if kind == control else tuple(kind.split("+")) for kind in kinds]
    ends = [end for arrow in network for end in arrow[:2]]
    names = dict.fromkeys([*genes, *ends, *(n for each in touched for n in each)])
    at = {name: i for i, name in enumerate(names)}
    marks, arrows = torch.zeros(len(kinds), len(at)), torch.zeros(len(at), len(at))
    for row, each in enumerate(touched):
        marks[row, [at[name] for name in each]] = 1.0
    for a, b, weight in network:
        arrows[at[a], at[b]] = weight
    return marks, arrows, [at[g] for g in genes]


def _nodes(
    graph: Graph, variables: Mapping[str, Variable], genes: Sequence[str], perturbation: str,
    cells: str, control: str,
) -> tuple[Variable, tuple[str, ...]]:  # fmt: skip
    """Return the cells' variable and the perturbation's categories, or say what is wrong."""
    known(cells, graph.nodes, "Bridge(cells=)")
    known(perturbation, graph.nodes, "Bridge(perturbation=)")
    x, kinds = variables[cells], variables[perturbation].categories
    if control not in kinds:
        raise KeyError(
            f"Bridge(control={control!r}) names no category of {perturbation!r}, which has {kinds}"
        )
    if x.shape != (len(genes),) or len(set(genes)) != len(genes):
        raise ValueError(
            f"{cells!r} has shape {x.shape} and genes= names {len(set(genes))} of them: give a "
            "vector and one name an entry"
        )
    if graph.children(cells) or perturbation not in graph.parents(cells):
        raise ValueError(
            f"{cells!r} has parents {graph.parents(cells)} and children {graph.children(cells)}; "
            f"Bridge needs {perturbation!r} among its parents, and no children"
        )
    return x, kinds
