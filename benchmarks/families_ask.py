"""What the table `families.py` asks of a model: its costs, its bits, its null, and a summary."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas
import torch
from bits import bits
from families_models import label_names, standard
from timing import timed
from torch import nn

from subjunctive.mechanism import Mechanism, seeded
from subjunctive.query import counterfactual
from subjunctive.variable import Batch


def peak(reset: bool = False) -> float:
    """Return megabytes that this process has had at most, since the last reset."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cost(model: Any, built: nn.Module, network: str, rows: Batch, do: Any) -> dict[str, float]:
    """Return what a counterfactual takes: evaluations, CPU milliseconds a row, peak megabytes."""
    calls: list[int] = []
    counterfactual(model, rows[:2], {n: v[:2] for n, v in do.items()}, seed=0)
    hook = built.get_submodule(network).register_forward_hook(lambda *_: calls.append(1))
    before = peak(reset=True)
    _, spent, answer = timed(lambda: counterfactual(model, rows, do, seed=0), 1)
    kept = sum(d.numel() * d.element_size() for d in answer.draws.values()) / 2**20
    hook.remove()
    found = {"evaluations": len(calls), "ms": 1e3 * spent / len(rows)}
    return found | {"MB": max(peak() - before - kept, 0.0)}


@torch.no_grad()
def likelihood(built: Any, data: Any) -> float | None:
    """Return the bits of a number of held-out pictures, at most; None without a bound."""
    if not isinstance(built, Mechanism):
        return None
    total = []
    with seeded(0):
        for i in torch.arange(len(data.test)).split(250):
            inner = standard(data.test[i], data.variables)
            given = {p.name: inner[p.name] for p in built.parents}
            found = bits(built, inner["image"], given)
            if found is None:
                return None
            total.append(found)
    return float(torch.cat(total).mean())


@torch.no_grad()
def largest_null(model: Any, built: Any, rows: Batch) -> dict[str, float]:
    """Return by how much doing nothing changes a pixel at most, in [0, 1].

    `null` is that of the image's mechanism under the parents that were seen (of what `Quantised`
    rounds, too, before it is); `whole` that of the model, whose labels come back by their flows.
    """
    x = rows.values["image"]
    found = {"whole": model.predict(model.abduct(rows), {})["image"] - x}
    if isinstance(built, Mechanism):
        inner = standard(rows, model.variables)
        given = {p.name: inner[p.name] for p in built.parents}
        for name, own in (("null", built), ("no grid", getattr(built, "mechanism", built))):
            again = own(own.abduct(inner["image"], given), given)
            found[name] = own.variable.restore(again) - x
    largest = {name: float(gap.abs().max()) for name, gap in found.items()}
    null = max(largest.get("null", largest["whole"]), largest.get("no grid", 0.0))
    return {"null": null, "null, whole": largest["whole"]}


def compact(frame: pandas.DataFrame, data: Any) -> dict[str, float]:
    """Return an evaluation in few numbers: means over interventions, and over labels.

    `do(n)` is the effectiveness of one intervention; `outside` is of targets beyond the training
    range, all else of targets within.
    """

    def mean(part: pandas.DataFrame, column: str = "value") -> float | None:
        return float(part[column].mean()) if part[column].notna().any() else None

    found: dict[str, float | None] = {}
    scale = {n: data.variables[n].scale for n in label_names(data)}
    outside, inner = frame[frame.support == "outside"], frame[frame.support != "outside"]
    for place, part in (("", inner), (", outside", outside)):
        told = part[part.metric == "effectiveness"]
        told = told.assign(value=told.value / told.node.map(scale))
        found[f"effectiveness{place}"] = mean(told)
        found |= {f"do({n}){place}": mean(told[told.intervention == f"do({n})"]) for n in scale}
        found[f"changed{place}"] = mean(part[part.metric == "distance, changed"])
    pictures = inner[inner.node == "image"]
    for metric, short in (
        *((m, m) for m in ("distance", "distance, far", "composition", "reversibility")),
        *((m, m) for m in ("minimality", "agreement", "agreement, own samples")),
        *((m, m) for m in ("ratio to copy", "ratio to copy and rescale")),
        *(("composition, redrawn", "redrawn"), ("exogeneity, residual share", "share")),
        *(("realism, Frechet", "Frechet"), ("realism, kernel", "kernel distance")),
    ):
        found[short] = mean(pictures[pictures.metric == metric])
    for metric in ("identity", "identity gap"):
        found[metric] = mean(inner[inner.metric == metric])
    parts = inner[inner.node.str.startswith("image")]
    for short, start in (("R2", "exogeneity, R2"), ("misfit", "exogeneity, misfit")):
        some = parts[parts.metric.str.startswith(start)]
        worst = some.loc[[(some.value - some.floor).idxmax()]] if len(some) else some
        found[short], found[f"{short}, null"] = mean(worst), mean(worst, "floor")
    return {k: v for k, v in found.items() if v is not None}
