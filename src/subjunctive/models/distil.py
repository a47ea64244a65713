r"""`distil`: a model's diffusion mechanism becomes a few jumps; graph, encoder and SCM stay as they are.

    before   x from D(x_t, t; pa, c) along tens of steps, each guided by a second evaluation
    after    x = J(e; pa, c) + s r,  J one to four jumps, each from edge to edge of the same road

The jumps start from the denoiser's own weights, whose condition they share, and are taught by its
road, guidance included (`objectives.distilled.PCM`: with one jump this is plain consistency
distillation). Code and labels keep their encoders, so that a factual's code means what it meant. Beside
them a small network learns to undo J in one evaluation, for abduction.
"""  # noqa: E501

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from subjunctive.mechanism import seeded
from subjunctive.mechanisms.consistency import Consistency
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.nn import UNet
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
    edges: tuple[float, ...] | None = None,
    intervals: int = 32,
    inverse: nn.Module | bool = True,
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
        edges: where jumps land, rising from 0, as many as steps; evenly spaced if not given.
        intervals: of the teacher's road from noise to data.
        inverse: a network for `Consistency`; True for a small U-Net beside a U-Net, and none
            elsewhere; False for none: the start is then drawn, and the residual carries more.
        batch_size, lr, seed, how: for `fit`.

    Raises:
        ValueError: for a model without such a mechanism, or edges that are not as many as steps.

    Example:
        >>> from subjunctive.models import CausalDiffAE
        >>> model, batch = CausalDiffAE.card.example()
        >>> twin = distil(model, batch, steps=2, updates=2, batch_size=32, progress=False)
        >>> type(twin.mechanisms["x"]).__name__, twin.mechanisms["x"].edges
        ('Consistency', (0.0, 0.5))
        >>> from subjunctive.query import counterfactual
        >>> counterfactual(twin, batch, {"t": 3.0}, seed=0)["x"].shape
        torch.Size([64, 1, 8, 8])
    """
    name, own = _diffusion(model, node)
    edges = tuple(k / max(steps, 1) for k in range(steps)) if edges is None else tuple(edges)
    if steps < 1 or len(edges) != steps:
        raise ValueError(f"distil() was given steps={steps} and edges={edges}; one edge a step")
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
        back = _inverse(own) if inverse is True else (inverse or None)
    jumps = Consistency(body, edges=edges, gamma=0.0 if steps > 1 else 1.0, inverse=back)
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
