r"""`distil`: a model's diffusion mechanism becomes a few jumps; graph, encoder and SCM stay as they are.

    before   x from D(x_t, t; pa, c) along tens of steps, each guided by a second evaluation
    after    x = J(e, z; pa, c) + s r,  J one to four jumps to clean data, with noise z in between

The jumps start from the denoiser's own weights, whose condition they share, and are taught by its
road, guidance included. Code and labels keep their encoders, so that a factual's code means what it
meant. Where J is a single jump, a small network learns beside it to undo it in one evaluation; with
more, the later noise explains the factual, and no network is needed.
"""  # noqa: E501

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from subjunctive.mechanism import seeded
from subjunctive.mechanisms.consistency import Consistency
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.nn import UNet
from subjunctive.objectives.consistency import consistency
from subjunctive.objectives.distilled import PCM
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import known

ROWS = 4096  # of the model's own draws, where no data are given


def distil(
    model: SCM,
    data: Any = None,
    steps: int = 1,
    *,
    updates: int = 2000,
    node: str | None = None,
    stops: tuple[float, ...] | None = None,
    edges: tuple[float, ...] = (0.0,),
    intervals: int = 32,
    inverse: nn.Module | bool | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    **how: Any,
) -> SCM:
    """Return the few-step twin of a model with a diffusion mechanism.

    Args:
        model: trained; it is left as it is. An SCM with one `Diffusion` mechanism, as
            `CausalDiffAE` returns it, or the one at `node`.
        data: rows that saw the node; some labels may be missing. None for 4,096 draws of the model.
        steps: jumps an answer, one evaluation each.
        updates: of the jumps' weights.
        node: whose mechanism is distilled.
        stops: the times that jumps start from, falling from 1; evenly spaced if not given. The same
            weights serve other stops, and other numbers of them: `few`.
        edges: where jumps land. With several, as many as steps, the twin is a phased model: from
            edge to edge nothing is drawn.
        intervals: of the teacher's road from noise to data.
        inverse: a network for `Consistency`; True for a small U-Net beside a U-Net; False for none:
            the start is then drawn. If not given, True for one jump, or jumps from edge to edge.
        batch_size, lr, seed, how: for `fit`.

    Raises:
        ValueError: for a model without such a mechanism, or stops or edges that are not as many as
            steps.

    Example:
        >>> from subjunctive.models import CausalDiffAE
        >>> model, batch = CausalDiffAE.card.example()
        >>> twin = distil(model, batch, steps=2, updates=2, batch_size=32, progress=False)
        >>> type(twin.mechanisms["x"]).__name__, twin.mechanisms["x"].stops
        ('Consistency', (1.0, 0.5))
        >>> from subjunctive.query import counterfactual
        >>> counterfactual(twin, batch, {"t": 3.0}, seed=0)["x"].shape
        torch.Size([64, 1, 8, 8])
    """
    name, own = _diffusion(model, node)
    phased = len(edges) > 1
    stops = stops or tuple(1 - k / max(steps, 1) for k in range(1 if phased else steps))
    if steps < 1 or steps != max(len(stops), len(edges)):
        raise ValueError(
            f"distil() was given steps={steps}, stops={stops} and edges={edges}; one stop a "
            "step, or one edge a step"
        )
    mechanisms = {n: copy.deepcopy(m) for n, m in model.mechanisms.items() if n != name}
    body = Diffusion(
        own.variable,
        own.parents,
        copy.deepcopy(own.denoiser),
        copy.deepcopy(own.encoder),
        own.code,
        drop=own.drop,
        anchor=own.anchor,
        beta=own.beta,
    )
    body.log_scale.data.copy_(own.log_scale.data)
    with seeded(seed):
        wanted = (steps == 1 or phased) if inverse is None else inverse
        back = _inverse(own) if wanted is True else (wanted or None)
    jumps = Consistency(body, stops, edges, 0.0 if phased else 1.0, inverse=back)
    twin = SCM(model.graph, {**mechanisms, name: jumps}, copy.deepcopy(model.encoder))
    moving = {id(p) for p in jumps.parameters()}
    if body.encoder is not None:
        moving -= {id(p) for p in body.encoder.parameters()}
    frozen = [p for p in twin.parameters() if p.requires_grad and id(p) not in moving]
    for p in frozen:
        p.requires_grad_(False)
    rows = model.sample(ROWS, seed=seed) if data is None else data
    try:
        objective = PCM(jumps, own, intervals=intervals)
        fit(twin, rows, objective, steps=updates, batch_size=batch_size, lr=lr, seed=seed, **how)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return twin


def few(twin: SCM, *stops: float) -> SCM:
    """Return a distilled model that jumps from other stops, its weights shared.

    Args:
        twin: by `distil`, not phased.
        stops: falling from 1.

    Raises:
        ValueError: for a model without one consistency mechanism, or stops that do not fall from 1.
    """
    own = consistency(twin)
    jumps = Consistency(
        own.diffusion, stops, own.edges, own.gamma, own.strength, own.inverse, own.beta
    )
    mechanisms = {**twin.mechanisms, own.variable.name: jumps}
    return SCM(twin.graph, mechanisms, twin.encoder).train(twin.training)


def _diffusion(model: SCM, node: str | None) -> tuple[str, Diffusion]:
    found = {n: m for n, m in model.mechanisms.items() if isinstance(m, Diffusion)}
    if node is not None:
        known(node, model.graph.nodes, "distil(node=)")
        found = {n: m for n, m in found.items() if n == node}
    if len(found) != 1:
        raise ValueError(
            f"distil() needs one Diffusion mechanism{'' if node is None else f' at {node!r}'}; the "
            f"model has {sorted(found) or 'none'}" + (": name one with node=" if found else "")
        )
    return next(iter(found.items()))


def _inverse(own: Diffusion) -> nn.Module | None:
    """Return a U-Net of half the width that is asked for the start's mean and log-variance."""
    like = own.denoiser.network
    if not isinstance(like, UNet):
        return None
    return UNet(
        like.channels,
        2 * like.channels,
        like.condition,
        max(like.width // 2, 8),
        like.multipliers,
        like.blocks,
        like.attention,
        like.unshuffle,
        size=like.size,
        layout=like.layout,
        modulating=like.modulating,
    )
