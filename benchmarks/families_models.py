"""The families of the table `families.py`: what is built, what is trained, and on which data.

A family is one line of `FAMILIES`: how its image's mechanism is built from a data set, and which of
its networks one evaluation of the decoder calls once. Labels have the same flows in all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rivals import CausalVAE
from torch import Tensor, nn

from subjunctive.data.morpho import MorphoDigits
from subjunctive.data.pendulum import Pendulum
from subjunctive.diffusion import DDIM, Cosine, Denoiser
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism
from subjunctive.mechanisms import (
    HVAE,
    VAE,
    ConditionalFlow,
    DiscretisedGaussian,
    DiscretisedLogistic,
    Interpolant,
    Quantised,
    RealNVP,
    Refined,
    Regressed,
)
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.likelihood import Discretised
from subjunctive.models import CausalDiffAE
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

LEVELS, LATENT = 256, 32  # grey values of a pixel; width of a VAE's latent
WIDTHS = (24, 48, 96)  # of the convolutions of a VAE: as many parameters as the diffusion's, about
STEPS, REFINE = 10, 4  # of a sampler, and corrections of a step when it is run backward
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
        null: what doing nothing may change in a pixel, if that was asked.
    """

    build: Callable[[Any], nn.Module]
    network: str
    weights: str = ""
    arrows: bool = True
    null: float | None = None


def told(data: Any) -> list[Variable]:
    """Return the parents of the image."""
    return [data.variables[n] for n in label_names(data)]


def autoencoder(data: Any) -> Mechanism:
    """Return the image's mechanism of CausalDiffAE: one evaluation and a residual."""
    model = CausalDiffAE(data.graph, data.variables, **CODES[data.name])
    return model.mechanisms["image"]


def diffusion(data: Any, eta: float) -> Mechanism:
    """Return a diffusion of all times without a code, as `CycleDiffusion` has it."""
    image, parents = data.variables["image"], told(data)
    width = condition_width(parents, 0)
    network = UNet(image.shape[0], condition=width, multipliers=(1, 2, 4), blocks=(0, 1),
                   attention=False, size=image.shape[1:])  # fmt: skip
    denoiser = Denoiser(network, Cosine(), "velocity", 0.7)
    sampler = DDIM(Cosine(), STEPS, eta, sigma_data=0.7, refine=REFINE)
    return Diffusion(image, parents, denoiser, sampler=sampler, anchor=0.05)


def vae(data: Any, likelihood: type[Discretised] | None = None, alone: bool = False) -> VAE:
    """Return a VAE of levels, or of a Gaussian with one scale, with parents or without."""
    image = data.variables["image"]
    levels = None if likelihood is None else likelihood.of(image)
    return VAE.of(image, [] if alone else told(data), LATENT, levels, WIDTHS)


def hvae(data: Any) -> Mechanism:
    """Return a ladder of latents, with the VAE's logistic levels."""
    image = data.variables["image"]
    levels = DiscretisedLogistic.of(image)
    return HVAE.of(image, told(data), levels, widths=(24, 32, 48, 64))


def flow(data: Any) -> Mechanism:
    """Return a dequantised Real NVP."""
    image = data.variables["image"]
    return Quantised(RealNVP(image, told(data), levels=2, width=24, alpha=0.05), LEVELS)


def refined(data: Any, formulation: Any) -> Mechanism:
    """Return DiffuseVAE: the Gaussian VAE and a diffusion of what it expects, trained together."""
    sampler = DDIM(Cosine(), STEPS, refine=REFINE)
    spread = 0.5 if formulation == "residual" else 1.0
    return Refined.of(vae(data), sampler, formulation, multipliers=(1, 2), sigma_data=spread)


def linear(data: Any) -> nn.Module:
    """Return a VAE whose latent is a linear SCM."""
    return CausalVAE(data.graph, data.variables)


def interpolant(data: Any) -> Mechanism:
    """Return a flow to the image from what a regression on the labels expects."""
    image, parents = data.variables["image"], told(data)
    found = Interpolant.of(image, parents, Regressed(image, parents), multipliers=(1, 2))
    found.sampler = DDIM(found.denoiser.schedule, STEPS, refine=REFINE)
    return found


DIFFAE, DPM, GAUSSIAN = "CausalDiffAE", "DPM-Encoder", "VAE, Gaussian"
LOGISTIC, HIERARCHY, FLOW = "VAE, logistic", "HVAE, logistic", "Real NVP"
FAMILIES = {
    GAUSSIAN: Family(vae, "decoder", null=1e-6),
    LOGISTIC: Family(partial(vae, likelihood=DiscretisedLogistic), "decoder", null=1e-6),
    "VAE, normal levels": Family(
        partial(vae, likelihood=DiscretisedGaussian), "decoder", null=1e-6
    ),
    HIERARCHY: Family(hvae, "ladder.head", null=1e-6),
    FLOW: Family(flow, "mechanism.chain.0.network", null=1e-5),
    DIFFAE: Family(autoencoder, "denoiser.network"),
    DPM: Family(partial(diffusion, eta=1.0), "denoiser.network", null=1e-4),
    "DDIM inversion": Family(partial(diffusion, eta=0.0), "denoiser.network", weights=DPM),
    "DiffuseVAE, conditioned": Family(
        partial(refined, formulation="conditioned"), "refiner.denoiser.network"
    ),
    "DiffuseVAE, residual": Family(
        partial(refined, formulation="residual"), "refiner.denoiser.network"
    ),
    "interpolant": Family(interpolant, "denoiser.network"),
    "DiffAE, no SCM": Family(autoencoder, "denoiser.network", weights=DIFFAE, arrows=False),
    "CausalVAE, linear": Family(linear, "decoder"),
    "VAE, no parents": Family(
        partial(vae, likelihood=DiscretisedLogistic, alone=True), "decoder", null=1e-6
    ),
}


class Alone(nn.Module):
    """A mechanism trained by itself, p(x | parents), of rows in their own units."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism

    def loss(self, rows: Batch) -> dict[str, Tensor]:
        """Return the mechanism's own loss."""
        own = self.mechanism
        inner = standard(rows, {v.name: v for v in (own.variable, *own.parents)})
        return own.loss(inner[own.variable.name], {v.name: inner[v.name] for v in own.parents})


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
    """Return what is built in words, by which kept weights are known to be of it."""
    shared: list[Any] = [rounded, load, told, vae, label_model, CausalVAE]
    words = repr((LEVELS, LATENT, WIDTHS, STEPS, REFINE, CODES))
    if family is not None:
        build = family.build
        if isinstance(build, partial):
            words, build = words + repr(sorted(build.keywords.items())), build.func
        shared.append(build)
        words += repr((family.weights, family.arrows))
    return "\n".join([words, *map(inspect.getsource, shared)])


def standard(rows: Batch, variables: Mapping[str, Variable]) -> dict[str, Tensor]:
    """Return standardised values of all nodes."""
    return {n: v.standardise(rows.values[n]) for n, v in variables.items()}
