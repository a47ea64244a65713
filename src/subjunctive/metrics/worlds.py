"""Abduction and prediction over many rows, a batch at a time, on noise that is kept.

    u ~ p(u | x) once,     x_do = f_do(u) for as many interventions as wanted.

Keeping u allows what a finished answer cannot: to draw one *part* of it anew, and to look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from subjunctive.effect import happened as happened
from subjunctive.intervention import as_do
from subjunctive.mechanism import Noise, each, evaluating, parts
from subjunctive.scm import Model
from subjunctive.variable import Batch, nearest


def size(noise: Noise) -> int:
    """Return how many rows a noise has."""
    return len(next(parts(noise))[1])


@torch.no_grad()
def explain(model: Model, batch: Batch, batch_size: int = 256) -> Noise:
    """Return one noise a row from p(u | what was seen).

    Args:
        model: any `Model`.
        batch: rows in the user's units; nodes that the model does not have are left out.
        batch_size: rows at once; bounds the memory.
    """
    rows = torch.arange(len(batch)).split(batch_size)
    evidence = batch.only(model.graph.nodes)
    with evaluating(model):
        chunks = [model.abduct(evidence[index]) for index in rows]
    return each(lambda *tensors: torch.cat(tensors), *chunks)


@torch.no_grad()
def imagine(
    model: Model, noise: Noise, do: Mapping[str, Any] | None = None, batch_size: int = 256
) -> dict[str, Tensor]:
    """Return every node under an intervention, `(B, *shape)`, in the user's units, on the CPU.

    Args:
        model: any `Model`.
        noise: of all rows.
        do: node -> value, one for all or one a row, or `Intervention`.
        batch_size: rows at once; bounds the memory.
    """
    checked, chunks = as_do(do or {}, model.variables), []
    with evaluating(model):
        for index in torch.arange(size(noise)).split(batch_size):
            own = each(lambda t, i=index: t[i.to(t.device)], noise)
            values = model.predict(own, {n: a.rows(index) for n, a in checked.items()})
            chunks.append({n: v.cpu() for n, v in values.items()})
    return {n: torch.cat([c[n] for c in chunks]) for n in chunks[0]}


def as_evidence(answer: Mapping[str, Tensor], batch: Batch) -> Batch:
    """Take an answer as new evidence: the nodes and rows that were seen before, and no others."""
    return Batch({n: answer[n] for n in batch if n in answer}, batch.seen, context=batch.context)


def _named(dotted: str, names: Sequence[str]) -> bool:
    return any(f".{name}." in f".{dotted}." for name in names)


def redraw(model: Model, noise: Noise, names: Sequence[str]) -> Noise:
    """Return the noise with the named parts drawn anew from their prior.

    Args:
        model: whose noise it is.
        noise: of all rows.
        names: whole steps of dotted part names: "residual" names "image.residual", "image" names
            every part of the image's noise.

    Raises:
        KeyError: if a name names no part.
    """
    dotted = [d for d, _ in parts(noise)]
    for name in names:
        if not any(_named(d, [name]) for d in dotted):
            steps = sorted({step for d in dotted for step in (d, *d.split("."))})
            raise KeyError(
                f"the noise has no part {name!r}; it has {dotted}.{nearest(name, steps)}"
            )
    return _swap(noise, model.noise(size(noise)), names, "")


def _swap(noise: Noise, fresh: Noise, names: Sequence[str], at: str) -> Noise:
    if isinstance(noise, dict):
        return {k: _swap(u, fresh[k], names, f"{at}.{k}" if at else k) for k, u in noise.items()}
    return fresh if _named(at, names) else noise


def pixel_parts(noise: Noise, node: str) -> tuple[str, ...]:
    """Return the parts of a node's noise that explain pixels, not what the picture shows.

    All parts but the one called "code", where there is one; else the one called "residual"; no part
    of a noise that is not divided.

    Example:
        >>> noise = {"x": {"code": torch.zeros(2, 8), "residual": torch.zeros(2, 1, 4, 4)}}
        >>> pixel_parts(noise, "x")
        ('x.residual',)
    """
    own = noise.get(node) if isinstance(noise, dict) else None
    if not isinstance(own, dict):
        return ()
    if "code" in own:
        return tuple(f"{node}.{key}" for key in own if key != "code")
    return (f"{node}.residual",) if "residual" in own else ()
