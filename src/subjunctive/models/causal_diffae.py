"""CausalDiffAE: an SCM over labels whose leaf is an image made by a diffusion autoencoder.

    labels   z_i = f_i(u_i, z_pa(i)),  one scalar node a label, conditional flows
    image    x from D(x_t, t; z_pa(x), c), c a code of what the labels do not say
    encoder  q(z | x), trained by the likelihood of the labels where a row saw them

A counterfactual is abduction of the labels' noise, of the code and of the pixels' noise, action on
any set of labels, and prediction in topological order from the parents' *values*.

Where this differs from the paper and its code, on purpose: mechanisms read the parents' values,
not their noise, so that an effect travels along every hop; a label is one scalar node, and what
else the image carries is the image's own noise, not a block of the label's; the pixels' noise is
abducted (there it is drawn anew); labels are standardised, and their likelihood is learned, not
N(y, 1); a missing label is missing in the data, not simulated by zeroing the latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from subjunctive.card import Card
from subjunctive.diffusion import Cosine, Denoiser, Sampler, Schedule
from subjunctive.encoders.regression import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.discrete import Categorical, Ordinal
from subjunctive.mechanisms.flow import ConditionalFlow
from subjunctive.nn import ConvEncoder, UNet
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[SCM, Batch]:
    graph = Graph.parse("t -> i; t -> x; i -> x; k -> x")
    variables = {
        "t": Variable("t", loc=2.0, scale=0.5, unit="px"),
        "i": Variable("i", loc=100.0, scale=20.0),
        "k": Variable("k", kind="categorical", categories=("a", "b", "c")),
        "x": Variable("x", (1, 8, 8), loc=0.5, scale=0.5),
    }
    with seeded(0):
        model = CausalDiffAE(graph, variables, code=4, width=8, multipliers=(1, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model, Batch(model.sample(64))


class CausalDiffAE:
    """The recipe: calling it returns an `SCM`.

    Reference: Causal Diffusion Autoencoders: Toward Counterfactual Generation via Diffusion
    Probabilistic Models (Komanduri, Zhao, Chen and Wu, 2024), https://arxiv.org/abs/2404.17735

    Args:
        graph: a DAG over the labels and the image; the image is a leaf.
        variables: node -> `Variable`, standardised (`Variable.fit`).
        image: the image's node; the one node with three dimensions if not given.
        code: width of the semantic code.
        width: channels of the decoder at its finest resolution.
        multipliers: of the width, one a level; each level halves the resolution.
        schedule: of the diffusion.
        sampler: how pixels spend their noise; None for one evaluation and the residual.
        guidance: the strength of an intervention; 1 is the plain model.
        drop, anchor, beta: see `mechanisms.diffusion.Diffusion`.
        mechanisms: node -> mechanism, where a label should have another one than a conditional
            spline flow (continuous), Gumbel-max (categorical) or inverse CDF (ordinal).

    Raises:
        KeyError: for an unknown image node. ValueError: if there is no image or it is no leaf.

    Example:
        >>> t, x = Variable("t"), Variable("x", (1, 16, 16))
        >>> model = CausalDiffAE(Graph.parse("t -> x"), {"t": t, "x": x}, code=8, width=8)
        >>> model.sample(2, do={"t": 1.0}, seed=0)["x"].shape
        torch.Size([2, 1, 16, 16])
    """

    def __new__(  # type: ignore[misc]
        cls,
        graph: Graph,
        variables: Mapping[str, Variable],
        image: str | None = None,
        code: int = 64,
        width: int = 24,
        multipliers: tuple[int, ...] = (1, 2, 4),
        schedule: Schedule | None = None,
        sampler: Sampler | None = None,
        guidance: float = 1.0,
        drop: float = 0.03,
        anchor: float = 0.95,
        beta: float = 5.0,
        mechanisms: Mapping[str, Mechanism] | None = None,
    ) -> SCM:
        """Build the SCM."""
        pictures = [n for n in graph.nodes if len(variables[n].shape) == 3]
        if image is None and len(pictures) != 1:
            raise ValueError(
                f"the image is the one node of shape (C, H, W); here {pictures} are: name "
                "it with image="
            )
        image = image or pictures[0]
        known(image, graph.nodes, "CausalDiffAE(image=)")
        if graph.children(image):
            raise ValueError(
                f"{image!r} has children {graph.children(image)}; an image is a leaf here"
            )
        built: dict[str, Mechanism] = dict(mechanisms or {})
        kinds = {"continuous": ConditionalFlow, "categorical": Categorical, "ordinal": Ordinal}
        for name in graph.nodes:
            if name not in built and name != image:
                parents = [variables[p] for p in graph.parents(name)]
                built[name] = kinds[variables[name].kind](variables[name], parents)
        x, parents = variables[image], [variables[p] for p in graph.parents(image)]
        channels, height, across = x.shape
        network = UNet(
            channels,
            condition=condition_width(parents, code),
            width=width,
            multipliers=multipliers,
            blocks=(0, 1),
            attention=False,
            size=(height, across),
            layout=True,
            modulating=condition_width(parents, 0),
        )
        denoiser = Denoiser(network, schedule or Cosine(), sigma_data=0.7, wiener=True)
        encoder = ConvEncoder(
            channels, (height, across), 2 * code, widths=tuple(width * m for m in multipliers)
        )
        built.setdefault(
            image,
            Diffusion(x, parents, denoiser, encoder, code, sampler, guidance, drop, anchor, beta),
        )
        labels = [variables[n] for n in graph.order if n != image]
        reader = ConvEncoder(
            channels, (height, across), 32, widths=tuple(8 * m for m in multipliers)
        )
        return SCM(graph, built, Regression(x, labels, reader, 32))

    card = Card(
        name="CausalDiffAE",
        summary="Causal labels of an image, their SCM, and a diffusion decoder: counterfactual "
        "images.",
        title="Causal Diffusion Autoencoders: Toward Counterfactual Generation via Diffusion "
        "Probabilistic Models",
        authors="Komanduri, Aneesh and Zhao, Chen and Chen, Feng and Wu, Xintao",
        year=2024,
        url="https://arxiv.org/abs/2404.17735",
        assumptions=(
            "the graph is right and has no hidden confounder",
            "the image's code and residual are independent of its labels",
        ),
        needs="images with labels, some of which may be missing; a DAG over the labels",
        abduction="approximate",
        tolerance=1e-4,
        of=(0,),
        example=_example,
    )
