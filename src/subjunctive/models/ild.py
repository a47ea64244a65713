"""Invertible latent domain models (ILD): what would this sample have been in another domain?

    domain d    x = g(f_d(u)),  u ~ N(0, I),  g invertible, f_d a linear latent SCM

in three forms, of which the theory (`mechanisms.canonical`) recommends the first:

    sparse         the last k latents' mechanisms differ by domain, g is the same
    dense          all latents' mechanisms differ by domain, g is the same
    independent    f_d and g differ by domain: a flow a domain, joined by nothing but u ~ N(0, I)

All three have an exact density and are inverted exactly, so that the domain counterfactual
g_e(f_e(u)), u = f_d^-1(g_d^-1(x)), is `counterfactual(model, seen, {"domain": e})`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from subjunctive.card import Card
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.canonical import LatentSCM, last
from subjunctive.mechanisms.discrete import Categorical
from subjunctive.mechanisms.domains import Domains
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn.invertible import Affine, Couplings
from subjunctive.query import Answer, counterfactual
from subjunctive.scm import SCM, Model
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[SCM, Batch]:
    domain = Variable("domain", kind="categorical", categories=("cat", "dog"))
    variables = {"domain": domain, "x": Variable("x", (4,), loc=1.0, scale=2.0)}
    with seeded(0):
        model = ILD(Graph.parse("domain -> x"), variables, k=2, couplings=2, width=8)
    for mechanism in model.mechanisms.values():
        stirred(mechanism)
    return model, Batch(model.sample(64, seed=0))


class ILD:
    """The recipe: calling it returns an `SCM`.

    Reference: Towards Characterizing Domain Counterfactuals For Invertible Latent Causal Models
    (Zhou, Bai, Kulinski, Kocaoglu and Inouye, 2024), https://arxiv.org/abs/2306.11281

    Args:
        graph: two nodes, `domain -> x`.
        variables: node -> `Variable`, standardised (`Variable.fit`).
        k: how many latents' mechanisms differ by domain, the last ones; None for all (dense).
        shared: whether all domains have one observation function; False for a model a domain.
        layers: the observation function from latents to x, copied; by default an affine map,
            couplings, and an affine map. `Affine.whitening(rows)` as the last is a good start.
        couplings: how many there are by default. width: of their networks.
        mechanisms: node -> mechanism, where a node should have another one than these.

    Raises:
        ValueError: for another graph, or a k that does not fit.

    Example:
        >>> domain = Variable("domain", kind="categorical", categories=("cat", "dog"))
        >>> variables = {"domain": domain, "x": Variable("x", (6,))}
        >>> model = ILD(Graph.parse("domain -> x"), variables, k=2)
        >>> seen = model.sample(3, seed=0)
        >>> counterfactual(model, seen, {"domain": "dog"})["x"].shape
        torch.Size([3, 6])
    """

    def __new__(  # type: ignore[misc]
        cls,
        graph: Graph,
        variables: Mapping[str, Variable],
        k: int | None = 2,
        shared: bool = True,
        layers: Sequence[nn.Module] | None = None,
        couplings: int = 6,
        width: int = 64,
        mechanisms: Mapping[str, Mechanism] | None = None,
    ) -> SCM:
        """Build the SCM."""
        edges = [(p, n) for n in graph.nodes for p in graph.parents(n)]
        if len(graph) != 2 or len(edges) != 1:
            raise ValueError(f"ILD needs a graph 'domain -> x'; this one is {graph}")
        domain, x = (variables[n] for n in edges[0])
        size = x.width
        default = [Affine(size), Couplings(size, couplings, width), Affine(size)]
        observe = nn.ModuleList(default if layers is None else copy.deepcopy([*layers]))
        if shared:
            chosen = None if k is None else last(size, k)
            node: Mechanism = LatentSCM(x, [domain], list(observe), chosen)
        else:
            one = [LatentSCM(x, (), copy.deepcopy(list(observe))) for _ in domain.categories]
            node = Domains(x, [domain], domain.name, one)
        built = {domain.name: Categorical(domain), x.name: node} | dict(mechanisms or {})
        return SCM(graph, built)

    card = Card(
        name="Invertible latent domain model (ILD)",
        summary="What a sample would have been in another domain: one invertible observation "
        "function, one latent SCM a domain that differs in few mechanisms.",
        title="Towards Characterizing Domain Counterfactuals For Invertible Latent Causal Models",
        authors="Zhou, Zeyu and Bai, Ruqi and Kulinski, Sean and Kocaoglu, Murat and "
        "Inouye, David I.",
        year=2024,
        url="https://arxiv.org/abs/2306.11281",
        assumptions=(
            "x is an invertible function, the same in every domain, of as many latents",
            "at most k latents' mechanisms differ by domain, and they are linear in a basis that "
            "can be learned",
        ),
        needs="rows of every domain, without pairs",
        of=(1,),
        example=_example,
    )


def every_domain(
    model: Model, evidence: Any, domain: str = "domain", **how: Any
) -> dict[str, Answer]:
    """Ask what each row would have been in every domain, all from the same abducted noise.

    Args:
        model: any `Model` with a categorical domain.
        evidence: what was seen, its domain too.
        domain: its node.
        how: `draws`, `seed`, `batch_size` and `progress` of `counterfactual`.

    Returns:
        category -> answer.

    Raises:
        KeyError: for an unknown node. ValueError: for one without categories.

    Example:
        >>> model, batch = ILD.card.example()
        >>> answers = every_domain(model, batch)
        >>> list(answers), answers["dog"]["x"].shape
        (['cat', 'dog'], torch.Size([64, 4]))
    """
    known(domain, model.variables, "every_domain(domain=)")
    names = model.variables[domain].categories
    if not names:
        raise ValueError(f"{domain!r} is {model.variables[domain].kind}: it names no domains")
    answers = counterfactual(model, evidence, [{domain: name} for name in names], **how)
    return dict(zip(names, answers, strict=True))
