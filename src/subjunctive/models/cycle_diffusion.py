"""CycleDiffusion: images of several domains, each with a diffusion model, joined by their noise.

    domain d, labels pa          as their mechanisms say
    image    x = f_d(u, pa),     a stochastic sampler of D_d(x_t, t; pa),  u ~ N(0, I)

A stochastic sampler draws a noise z at each of its steps, `x_s = mean(x_t, D) + std z`. Along any
path x_T, ..., x_0 each z is known, so that the *DPM-Encoder* is abduction: draw the path from
q(x_t | x_0), read off `z = (x_s - mean(x_t, D)) / std`, and the sampler gives x_0 again, to the last
digits, however good D is (`diffusion.DDIM` with eta > 0). Replaying z under another domain's D is
unpaired translation; under another condition of the same D it is editing. Both are counterfactuals,
`counterfactual(model, seen, {"domain": "dog"})`.

Where this differs from the paper's code, on purpose: the last step has a noise of its own (sigma
is not zero at t = 0), where there it is the mean, so that x_0 comes back but for its fine detail;
the path's noise counts from the image, which carries that last noise already; and what encodes is
what decodes, guidance included, so that doing nothing changes nothing. (The paper encodes with
guidance 1 and decodes with more: `translate(model, with_sampler(model, guidance=3.0), x)`.)
"""  # noqa: E501

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from subjunctive.card import Card
from subjunctive.diffusion import DDIM, Cosine, Denoiser, Sampler, Schedule
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.discrete import Categorical, Ordinal
from subjunctive.mechanisms.domains import Domains
from subjunctive.mechanisms.flow import ConditionalFlow
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[SCM, Batch]:
    variables = {
        "domain": Variable("domain", kind="categorical", categories=("cat", "dog")),
        "x": Variable("x", (1, 8, 8), loc=0.5, scale=0.5),
    }
    graph = Graph.parse("domain -> x")
    with seeded(0):
        model = CycleDiffusion(graph, variables, steps=4, width=8, multipliers=(1,))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model, Batch(model.sample(64))


class CycleDiffusion:
    """The recipe: calling it returns an `SCM`.

    Reference: Unifying Diffusion Models' Latent Space, with Applications to CycleDiffusion and
    Guidance (Wu and De la Torre, 2022), https://arxiv.org/abs/2210.05559

    Args:
        graph: a DAG in which the domain is a parent of the image, and the image a leaf.
        variables: node -> `Variable`, standardised (`Variable.fit`).
        domain: the domain's node; `domain` by default.
        image: the image's node; the one node with three dimensions if not given.
        shared: whether one network reads the domain as a condition, which guidance exaggerates,
            instead of a network a domain, which shares nothing.
        steps: of the sampler.
        eta: how much of each step's noise is drawn, in (0, 1]; less keeps more of the image.
        start: below 1, the image is encoded from here on and the rest of it is left as it is; then
            images can be translated but, without one, not sampled.
        guidance: the strength of the condition; 1 is the plain model.
        width: channels of a network at its finest resolution.
        multipliers: of the width, one a level; each level halves the resolution.
        schedule: of the diffusion.
        drop: share of training rows in which the condition is declared absent.
        sigma_data: standard deviation of the standardised images.
        mechanisms: node -> mechanism, where a node should have another one than these.

    Raises:
        KeyError: for an unknown node.
        ValueError: if there is no image, it is no leaf, or the domain is no parent of it.

    Example:
        >>> domain = Variable("domain", kind="categorical", categories=("cat", "dog"))
        >>> variables = {"domain": domain, "x": Variable("x", (1, 16, 16))}
        >>> model = CycleDiffusion(Graph.parse("domain -> x"), variables, steps=5, width=8)
        >>> model.sample(2, do={"domain": "cat"}, seed=0)["x"].shape
        torch.Size([2, 1, 16, 16])
    """

    def __new__(  # type: ignore[misc]
        cls,
        graph: Graph,
        variables: Mapping[str, Variable],
        domain: str = "domain",
        image: str | None = None,
        shared: bool = False,
        steps: int = 50,
        eta: float = 1.0,
        start: float = 1.0,
        guidance: float = 1.0,
        width: int = 24,
        multipliers: tuple[int, ...] = (1, 2, 4),
        schedule: Schedule | None = None,
        drop: float = 0.1,
        sigma_data: float = 0.7,
        mechanisms: Mapping[str, Mechanism] | None = None,
    ) -> SCM:
        """Build the SCM."""
        image = _image(graph, variables, domain, image)
        schedule = schedule or Cosine()
        if not 0 < eta <= 1:
            raise ValueError(
                f"CycleDiffusion has eta={eta}; it must lie in (0, 1]: with 0 nothing is drawn, "
                "and images are inverted by DDIM(eta=0)"
            )
        sampler = DDIM(schedule, steps, eta, start, sigma_data)
        x, parents = variables[image], [variables[p] for p in graph.parents(image)]

        def diffusion(parents: list[Variable]) -> Mechanism:
            network = UNet(
                x.shape[0],
                condition=condition_width(parents, 0),
                width=width,
                multipliers=multipliers,
                blocks=(0, 1),
                attention=False,
                size=x.shape[1:],  # type: ignore[arg-type]
            )
            denoiser = Denoiser(network, schedule, "velocity", sigma_data)
            return Diffusion(x, parents, denoiser, sampler=sampler, guidance=guidance, drop=drop,
                             anchor=0.05)  # fmt: skip

        built: dict[str, Mechanism] = dict(mechanisms or {})
        kinds = {"continuous": ConditionalFlow, "categorical": Categorical, "ordinal": Ordinal}
        for name in graph.nodes:
            if name not in built and name != image:
                above = [variables[p] for p in graph.parents(name)]
                built[name] = kinds[variables[name].kind](variables[name], above)
        if image not in built and shared:
            built[image] = diffusion(parents)
        elif image not in built:
            others = [p for p in parents if p.name != domain]
            each = [diffusion(others) for _ in variables[domain].categories]
            built[image] = Domains(x, parents, domain, each)
        return SCM(graph, built)

    card = Card(
        name="CycleDiffusion",
        summary="A diffusion model a domain, joined by the noise of their stochastic samplers: "
        "unpaired translation and editing as counterfactuals.",
        title="Unifying Diffusion Models' Latent Space, with Applications to CycleDiffusion and "
        "Guidance",
        authors="Wu, Chen Henry and De la Torre, Fernando",
        year=2022,
        url="https://arxiv.org/abs/2210.05559",
        assumptions=(
            "the same noise means the same in every domain",
            "the denoisers are good enough that abducted noise follows N(0, I)",
        ),
        needs="images of every domain, without pairs",
        abduction="approximate",
        tolerance=1e-4,
        of=(313,),
        example=_example,
    )


def _image(graph: Graph, variables: Mapping[str, Variable], domain: str, image: str | None) -> str:
    """Return the image's node, or say what is wrong with it."""
    pictures = [n for n in graph.nodes if len(variables[n].shape) == 3]
    if image is None and len(pictures) != 1:
        raise ValueError(
            f"the image is the one node of shape (C, H, W); here {pictures} are: name it with "
            "image="
        )
    image = image or pictures[0]
    known(image, graph.nodes, "CycleDiffusion(image=)")
    known(domain, graph.nodes, "CycleDiffusion(domain=)")
    if graph.children(image) or domain not in graph.parents(image):
        raise ValueError(
            f"{image!r} has parents {graph.parents(image)} and children {graph.children(image)}; "
            f"CycleDiffusion needs {domain!r} among its parents, and no children"
        )
    return image


def with_sampler(
    mechanism: Diffusion, sampler: Sampler | None = None, guidance: float | None = None
) -> Diffusion:
    """Return a diffusion mechanism with another sampler or guidance; it shares all weights.

    Args:
        mechanism: what was trained.
        sampler: steps, start and eta are a choice of the moment; the mechanism's own if None.
        guidance: the strength of the condition; the mechanism's own if None.

    Example:
        >>> model, _ = CycleDiffusion.card.example()
        >>> cat = model.mechanisms["x"].mechanisms[0]
        >>> half = with_sampler(cat, DDIM(Cosine(), 10, eta=0.1, start=0.5))
        >>> half.prior()["steps"].event_shape[0], half.denoiser is cat.denoiser
        (10, True)
    """
    other = copy.copy(mechanism)
    other.sampler = mechanism.sampler if sampler is None else sampler
    other.guidance = mechanism.guidance if guidance is None else guidance
    return other
