"""The families of the table `families.py`: what is built, what is trained, and on which data.

A family is one line of `FAMILIES`: how its image's mechanism is built from a data set, and which of
its networks one evaluation of the decoder calls once. Labels have the same flows in all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rivals import CausalVAE
from torch import Tensor, nn

from subjunctive.data.morpho import MorphoDigits
from subjunctive.data.pendulum import Pendulum
from subjunctive.diffusion import DDIM, Ancestral, Cosine, Sampler
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism
from subjunctive.mechanisms import (
    HVAE,
    VAE,
    ConditionalFlow,
    DiscretisedLogistic,
    Interpolant,
    Quantised,
    RealNVP,
    Refined,
    Regressed,
)
from subjunctive.models import CausalDiffAE
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

LEVELS, STEPS = 256, 10  # grey values of a pixel; steps of a sampler
WIDTHS = (24, 48, 96)  # of the convolutions of a VAE: as many parameters as the diffusion's, about
CODES: dict[str, dict[str, Any]] = {  # settled on validation rows, by `demo` and `proof/pendulum`
    "morpho": {"code": 64},
    "pendulum": {"code": 6, "beta": 30.0},
}


def rounded(images: Tensor) -> Tensor:
    """Return images in [0, 1] on 256 levels."""
    return (images * (LEVELS - 1)).round() / (LEVELS - 1)


def load(name: str, seed: int) -> Any:
    """Return a simulator whose pictures, and whose true answers, have 256 levels."""
    if name == "morpho":
        data: Any = MorphoDigits(seed=seed, progress=False, jobs=1)
    else:
        data = Pendulum(size=32, seed=seed)
    for part in (data.train, data.valid, data.test):
        part.values["image"] = rounded(part.values["image"])
    equation = data.oracle.equations["image"]
    data.oracle.equations["image"] = lambda u, parents: rounded(equation(u, parents))
    data.name = name
    return data


def label_names(data: Any) -> list[str]:
    """Return the data's labels, causes first."""
    return [n for n in data.graph.order if n != "image"]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Args:
        build: data -> the image's mechanism, or a model of all nodes.
        network: the submodule that one evaluation of the decoder calls once.
        weights: the family whose trained weights it takes; its own if empty.
        arrows: whether labels cause each other.
        null: what the null intervention may change in a pixel, if that was asked.
    """

    build: Callable[[Any], nn.Module]
    network: str
    weights: str = ""
    arrows: bool = True
    null: float | None = None


def told(data: Any) -> list[Variable]:
    """Return the parents of the image."""
    return [data.variables[n] for n in label_names(data)]


def diffusion(data: Any, sampler: Sampler | None = None) -> Mechanism:
    """Return the image's mechanism of CausalDiffAE."""
    settings = CODES[data.name]
    model = CausalDiffAE(data.graph, data.variables, sampler=sampler, **settings)
    return model.mechanisms["image"]


def vae(data: Any, levels: bool = False, alone: bool = False) -> Mechanism:
    """Return a VAE, of a discretised likelihood or a Gaussian one, with parents or without."""
    image = data.variables["image"]
    likelihood = DiscretisedLogistic.of(image) if levels else None
    return VAE.of(image, [] if alone else told(data), 16, likelihood, WIDTHS)


def flow(data: Any) -> Mechanism:
    """Return a dequantised Real NVP."""
    image = data.variables["image"]
    return Quantised(RealNVP(image, told(data), levels=2, width=24, alpha=0.05), LEVELS)


def ladder(data: Any) -> Mechanism:
    """Return a hierarchical VAE of a discretised likelihood."""
    image = data.variables["image"]
    return HVAE.of(image, told(data), DiscretisedLogistic.of(image))


def refined(data: Any, formulation: Any) -> Mechanism:
    """Return a DiffuseVAE: a VAE, and a diffusion that sees what it expects."""
    scale = {"residual": 0.3, "conditioned": 0.7}[formulation]
    sampler = DDIM(Cosine(), STEPS, sigma_data=scale)
    return Refined.of(vae(data), sampler, formulation, sigma_data=scale)


def interpolant(data: Any) -> Mechanism:
    """Return an interpolant whose base is what the labels tell of the picture."""
    image, parents = data.variables["image"], told(data)
    built = Interpolant.of(image, parents, Regressed(image, parents), sigma_data=0.7)
    net = built.denoiser
    sampler = DDIM(net.schedule, STEPS, sigma_data=net.sigma_data)
    return Interpolant(image, parents, net, built.base, sampler)


DIFFUSION, GAUSSIAN, LOGISTIC, FLOW = "CausalDiffAE", "VAE, Gaussian", "VAE, logistic", "Real NVP"
LADDER = "HVAE, logistic"
FAMILIES = {
    DIFFUSION: Family(diffusion, "denoiser.network"),
    f"{DIFFUSION}, DDIM {STEPS}": Family(
        lambda data: diffusion(data, DDIM(Cosine(), STEPS, sigma_data=0.7)),
        "denoiser.network",
        weights=DIFFUSION,
    ),
    f"{DIFFUSION}, DPM-Encoder {STEPS}": Family(
        lambda data: diffusion(data, Ancestral(Cosine(), STEPS, sigma_data=0.7)),
        "denoiser.network",
        weights=DIFFUSION,
        null=1e-4,
    ),
    GAUSSIAN: Family(vae, "decoder", null=1e-6),
    LOGISTIC: Family(lambda data: vae(data, levels=True), "decoder", null=1e-6),
    LADDER: Family(ladder, "ladder.head", null=1e-6),
    f"DiffuseVAE, residual, DDIM {STEPS}": Family(
        lambda data: refined(data, "residual"), "refiner.denoiser.network"
    ),
    f"DiffuseVAE, conditioned, DDIM {STEPS}": Family(
        lambda data: refined(data, "conditioned"), "refiner.denoiser.network"
    ),
    f"interpolant, DDIM {STEPS}": Family(interpolant, "denoiser.network"),
    FLOW: Family(flow, "mechanism.chain.0.network", null=1e-5),
    "DiffAE, no SCM": Family(diffusion, "denoiser.network", weights=DIFFUSION, arrows=False),
    "CausalVAE, linear": Family(lambda data: CausalVAE(data.graph, data.variables), "decoder"),
    "VAE, no parents": Family(lambda data: vae(data, alone=True), "decoder", null=1e-6),
}


class Alone(nn.Module):
    """A mechanism trained by itself: p(image | labels) of rows in their own units.

    Args:
        mechanism: of the image.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism

    def loss(self, rows: Batch) -> dict[str, Tensor]:
        """Return the mechanism's own loss."""
        own = self.mechanism
        parents = {v.name: v.standardise(rows.values[v.name]) for v in own.parents}
        return own.loss(own.variable.standardise(rows.values["image"]), parents)


def trainee(data: Any, family: Family) -> nn.Module:
    """Return what a family trains."""
    built = family.build(data)
    return Alone(built) if isinstance(built, Mechanism) else built


def label_model(data: Any, arrows: bool) -> SCM:
    """Return flows of the labels, with the data's arrows between them or without."""
    names = label_names(data)
    graph = data.graph.subgraph(names) if arrows else Graph.parse("; ".join(names))
    flows = {
        n: ConditionalFlow(data.variables[n], [data.variables[p] for p in graph.parents(n)])
        for n in names
    }
    return SCM(graph, flows)


def assemble(labels: SCM, built: nn.Module) -> Any:
    """Return the whole model: the image's mechanism below the labels' own."""
    if not isinstance(built, Mechanism):
        return built
    pairs = [(p, n) for n in labels.graph.nodes for p in labels.graph.parents(n)]
    pairs += [(p.name, "image") for p in built.parents]
    text = "; ".join([*labels.graph.nodes, "image", *(f"{a} -> {b}" for a, b in pairs)])
    return SCM(Graph.parse(text), {**labels.mechanisms, "image": built})


def settings(family: Family | None) -> str:
    """Return the source of what is built, by which kept weights are known to be of it."""
    shared = (load, label_model, told, diffusion, vae, flow, ladder, refined, interpolant)
    text = [inspect.getsource(f) for f in shared] + [repr((LEVELS, STEPS, WIDTHS, CODES))]
    if family is not None:
        text += [inspect.getsource(family.build), repr((family.weights, family.arrows))]
    return "\n".join(text)


def values(rows: Batch, variables: Mapping[str, Variable]) -> dict[str, Tensor]:
    """Return standardised values of all nodes."""
    return {n: v.standardise(rows.values[n]) for n, v in variables.items()}


@torch.no_grad()
def largest_null(model: Any, rows: Batch) -> float:
    """Return by how much doing nothing changes a pixel at most."""
    answer = model.predict(model.abduct(rows), {})["image"]
    return float((answer - rows.values["image"]).abs().max())
