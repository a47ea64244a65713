"""Perturbation bridges: cells of a simulated network, and Papalexi's knock-outs held out.

**Simulated.** Cells of a random gene network of 30 genes, bimodal and silent ones among them
(`GeneCells`). Ten knock-outs, three of them without a training cell; cells are unpaired. Each
answer is given for the same control cells, and judged by its error a cell against the true
counterfactual, and as a population against other cells that truly have the knock-out.

**Papalexi.** 25 real knock-outs in three folds, so that each is held out once; a seed is a fold.
There is no true counterfactual of a cell: answers are judged as populations. The network has the
pathway's textbook arrows and the co-expression of control cells.

Rivals: no change; the mean of all training perturbations, the same for each cell; mean shift, a
control plus the change of the mean (its own where the knock-out was seen, else that of all); a
linear model, a control plus a ridge regression of the changes of the means on the knock-outs'
steps over the network (the penalty by leaving one out); random pairs, a perceptron from a control
cell and the propagated knock-out to a random perturbed cell, by least squares, with our budget.

    python benchmarks/proof/perturbation.py --seeds 0 1 2 --jobs 2     (data: $SUBJUNCTIVE_DATA)
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.cells import GeneCells
from subjunctive.data.perturb import Papalexi
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import Domains
from subjunctive.metrics.population import (
    bimodality,
    change_r2,
    changed_most,
    e_distance,
    gaussian_mmd,
    wasserstein,
)
from subjunctive.models.bridge import Bridge, lay_out
from subjunctive.nn import Knocked, Propagate
from subjunctive.query import intervene
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch

Data = GeneCells | Papalexi
Answer = Callable[[Tensor, str], Tensor]  # control cells, a knock-out -> cells
OURS, SHARED = "Bridge", "Bridge, one network"
BARE, FREE = "Bridge without mask", "Bridge without network"
STILL, ALL, SHIFT = "no change", "mean of all", "mean shift"
LINEAR, PAIRS = "linear model", "random pairs"
SIMULATED: dict[str, dict[str, Any]] = {
    OURS: {},
    SHARED: {"shared": True},
    BARE: {"silent": False},
    FREE: {"network": []},
}
REAL: dict[str, dict[str, Any]] = {OURS: {}, SHARED: {"shared": True}}
RATES = (1e-3, 4e-3)
BIMODAL = 0.85  # of a gene's variance that one threshold explains
PENALTIES = tuple(10.0**k for k in range(-4, 3))


def cells(data: Data, part: Batch, kind: str) -> Tensor:
    """Return the cells of one kind, in the user's unit."""
    code = data.perturbations.index(kind)
    return part.values["cells"][part.values["perturbation"] == code]


def seen(data: Data) -> list[str]:
    """Return the knock-outs that have training cells."""
    return [k for k in data.perturbations[1:] if len(cells(data, data.train, k))]


# Rivals -------------------------------------------------------------------------------------------


def linear(data: Data, changes: dict[str, Tensor], depth: int = 3) -> dict[str, Tensor]:
    """Return every knock-out's change of the mean by ridge regression on its steps.

    A gene's features are what arrives at it after 0, 1, ..., `depth` arrows, and a constant; the
    weights are the same for all genes, but for the constant.
    """
    kinds = data.perturbations
    marks, arrows, places = lay_out(kinds, data.genes, data.network())
    arrows = arrows / arrows.abs().sum(0).clamp(min=1.0)
    steps = [marks]
    for _ in range(depth):
        steps.append(steps[-1] @ arrows)
    x = torch.stack([s[:, places] for s in steps], 2).double()  # (K, G, depth + 1)
    known = list(changes)

    def solve(names: list[str], penalty: float) -> tuple[Tensor, Tensor]:
        rows = [kinds.index(n) for n in names]
        y = torch.stack([changes[n] for n in names]).double()
        middle, base = x[rows].mean(0), y.mean(0)
        a = (x[rows] - middle).flatten(0, 1)
        square = a.T @ a + penalty * len(names) * torch.eye(a.shape[1], dtype=a.dtype)
        weight = torch.linalg.solve(square, a.T @ (y - base).flatten())
        return weight, base - middle @ weight

    def left_out(penalty: float) -> float:
        total = 0.0
        for name in known:
            weight, base = solve([n for n in known if n != name], penalty)
            said = base + x[kinds.index(name)] @ weight
            total += float((said - changes[name]).square().sum())
        return total

    weight, base = solve(known, min(PENALTIES, key=left_out))
    return {n: (base + x[i] @ weight).float() for i, n in enumerate(kinds)}


class Pairs(nn.Module):
    """A perturbed cell from a control cell that was paired with it at random, by least squares."""

    def __init__(self, data: Data, width: int) -> None:
        super().__init__()
        marks, arrows, places = lay_out(data.perturbations, data.genes, data.network())
        self.kinds, kinds = len(marks), len(marks) + 1
        self.variable = data.variables["cells"]
        self.network = Knocked(len(places), kinds, Propagate(marks, arrows, places), width, 2)
        self.register_buffer("control", cells(data, data.train, data.perturbations[0]))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Return the expected perturbed cells, in the user's unit."""
        hot = nn.functional.one_hot(code, self.kinds).to(x)
        condition = torch.cat([hot, hot.new_ones(len(x), 1)], 1)
        x = self.variable.standardise(x)
        return self.variable.restore(x + self.network(x, x.new_zeros(len(x)), condition))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.values["cells"]
        pair = self.control[torch.randint(len(self.control), (len(x),))]
        error = self(pair, batch.values["perturbation"]) - x
        return {"square": error.square().mean(1)}


def simple(data: Data) -> dict[str, Answer]:
    """Return the rivals that need no training."""
    still = cells(data, data.train, data.perturbations[0]).mean(0)
    means = {k: cells(data, data.train, k).mean(0) for k in seen(data)}
    changes = {k: m - still for k, m in means.items()}
    every = torch.stack(list(changes.values())).mean(0)
    said = linear(data, changes)
    return {
        STILL: lambda x, k: x,
        ALL: lambda x, k: (still + every).expand_as(x),
        SHIFT: lambda x, k: x + changes.get(k, every),
        LINEAR: lambda x, k: x + said[k],
    }


# Training -----------------------------------------------------------------------------------------


def trained(model: nn.Module, rows: Batch, seconds: float, rate: float, seed: int) -> int:
    """Fit for a CPU time; return the updates."""

    def run(steps: int) -> float:
        began = time.process_time()
        fit(model, rows, steps=steps, batch_size=256, lr=rate, ema=0.995, seed=seed,
            progress=False)  # fmt: skip
        return time.process_time() - began

    run(3)
    steps = max(int(20 * seconds / run(20)), 20)
    run(steps)
    return steps


def bridge(
    data: Data, options: dict[str, Any], seconds: float, rate: float, seed: int, width: int
) -> Answer:
    """Return a fitted bridge's answers; its two sides share the time if they are two."""
    options = {"network": data.network(), "width": width, **options}
    with seeded(seed):
        model = Bridge(data.graph, data.variables, data.genes, **options)
    rows, root = Batch(data.train.values), model.mechanisms["perturbation"]
    code, both = rows.values["perturbation"], model.mechanisms["cells"]

    def side(mechanism: Mechanism, rows: Batch, share: float) -> None:
        text = "perturbation -> cells" if mechanism.parents else "cells"
        there = {"cells": mechanism} | ({"perturbation": root} if mechanism.parents else {})
        trained(SCM(Graph.parse(text), there), rows.only(there), share * seconds, rate, seed)

    if isinstance(both, Domains):
        side(both.mechanisms[0], rows[code == 0], 0.5)
        side(both.mechanisms[1], rows[code != 0], 0.5)
    else:
        side(both, rows, 1.0)
    kept: dict[int, Any] = {}

    def answer(x: Tensor, kind: str) -> Tensor:
        if id(x) not in kept:  # abducted once for all knock-outs; x itself is held, so is its id
            with torch.no_grad(), seeded(seed):
                zero = torch.zeros(len(x), dtype=torch.long)
                kept[id(x)] = x, model.abduct(Batch({"perturbation": zero, "cells": x}))
        with torch.no_grad():
            return intervene(model, {"perturbation": kind}).predict(kept[id(x)][1])["cells"]

    return answer


def pairs(
    data: Data, options: dict[str, Any], seconds: float, rate: float, seed: int, width: int
) -> Answer:
    """Return the answers of the regression on random pairs."""
    with seeded(seed):
        model = Pairs(data, width)
    rows = Batch(data.train.values)
    trained(model, rows[rows.values["perturbation"] != 0], seconds, rate, seed)

    def answer(x: Tensor, kind: str) -> Tensor:
        code = torch.full((len(x),), data.perturbations.index(kind))
        with torch.no_grad():
            return model(x, code)

    return answer


def best(make: Callable[..., Answer], data: Data, options: dict[str, Any], a: argparse.Namespace,
         seed: int) -> Answer:  # fmt: skip
    """Return the answers of the learning rate that is best on validation cells."""
    control = cells(data, data.valid, data.perturbations[0])

    def score(answer: Answer) -> float:
        return statistics.fmean(
            e_distance(answer(control, k), cells(data, data.valid, k), most=300).value
            for k in seen(data) if len(cells(data, data.valid, k)) >= 20
        )  # fmt: skip

    tried = [make(data, options, a.seconds, rate, seed, a.width) for rate in a.rates]
    return min(tried, key=score) if len(tried) > 1 else tried[0]


# Judgement ----------------------------------------------------------------------------------------


def judged(answer: Tensor, truth: Tensor, control: Tensor) -> dict[str, float]:
    """Return how near an answer's population is to cells that truly have the knock-out."""
    top = changed_most(control, truth, 20)
    there, found = bimodality(truth) > BIMODAL, bimodality(answer) > BIMODAL
    either = (there | found).sum().clamp(min=1)
    return {
        "E-distance": e_distance(answer, truth).value,
        "MMD2": gaussian_mmd(answer, truth).value,
        "R2 of changes": change_r2(answer, truth, control).value,
        "W1, top genes": float(wasserstein(answer, truth)[top].mean()),
        "bimodal kept": float((there & found).sum() / either),
    }


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    """Average measures over knock-outs."""
    return {k: statistics.fmean(f[k] for f in found) for k in found[0]} if found else {}


def simulated(seed: int, a: argparse.Namespace) -> list[dict[str, Any]]:
    """Return every model's measures on simulated cells."""
    data = GeneCells(seed=seed)
    answers = simple(data) | {PAIRS: best(pairs, data, {}, a, seed)}
    for name, options in SIMULATED.items():
        answers[name] = best(bridge, data, options, a, seed)
    code = data.test.values["perturbation"]
    still = data.test[code == 0]
    control, noise, rows = still.values["cells"], data.oracle.abduct(still), []
    truths = {
        k: data.oracle.predict(noise, {"perturbation": k})["cells"] for k in data.perturbations[1:]
    }
    answers["oracle"] = lambda x, k: truths[k]
    for which in ("seen", "held out"):
        kinds = [k for k in truths if (k in data.held_out) == (which == "held out")]
        for name, answer in answers.items():
            found = []
            for k in kinds:
                said = answer(control, k)
                error = float((said - truths[k]).square().mean().sqrt())
                found.append(
                    {"error a cell": error} | judged(said, cells(data, data.test, k), control)
                )
            rows.append({"seed": seed, "data": "simulated", "knock-outs": which, "model": name,
                         **mean(found)})  # fmt: skip
    return rows


def real(fold: int, a: argparse.Namespace) -> list[dict[str, Any]]:
    """Return every model's measures on the knock-outs of one fold, which no model saw."""
    kinds = Papalexi(genes=1).perturbations[1:]
    out = [k for i, k in enumerate(kinds) if i % 3 == fold % 3]
    data = Papalexi(genes=a.genes, hold_out=out, seed=fold)
    answers = simple(data) | {PAIRS: best(pairs, data, {}, a, fold)}
    for name, options in REAL.items():
        answers[name] = best(bridge, data, options, a, fold)
    control = cells(data, data.test, data.perturbations[0])
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for k in out:
        truth = cells(data, data.test, k)
        moved = e_distance(control, truth, permutations=200).p_value < 0.01
        for name, answer in answers.items():
            one = judged(answer(control, k), truth, control)
            for which in ("held out, all", *(["held out, with an effect"] if moved else [])):
                found.setdefault((which, name), []).append(one)
    return [
        {"seed": fold, "data": "Papalexi", "knock-outs": which, "model": name, "n": len(members),
         **mean(members)}
        for (which, name), members in found.items()
    ]  # fmt: skip


# Runs ---------------------------------------------------------------------------------------------


def measure(task: tuple[int, argparse.Namespace]) -> list[dict[str, Any]]:
    """Return one seed's rows."""
    seed, a = task
    torch.set_num_threads(1)
    rows = simulated(seed, a) if "simulated" in a.data else []
    return rows + (real(seed, a) if "papalexi" in a.data else [])


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(data: str, which: str, model: str, what: str) -> list[float]:
        key = (data, which, model)
        found = [r for r in record.rows if (r["data"], r["knock-outs"], r["model"]) == key]
        return [r[what] for r in found]

    for which, model in product(("seen", "held out"), (OURS, SHARED)):
        for what, rival in product(("E-distance", "error a cell"), (SHIFT, PAIRS, LINEAR)):
            ours = column("simulated", which, model, what)
            their = column("simulated", which, rival, what)
            times = [t / max(o, 1e-6) for t, o in zip(their, ours, strict=True)]
            asked = 1.0 if rival != LINEAR else None
            if times:
                record.claim(f"simulated, {which}: {what} of {rival} over that of: {model}", times,
                             asked, at_most=False, unit="times")  # fmt: skip
        kept = column("simulated", which, model, "bimodal kept")
        if kept:
            record.claim(f"simulated, {which}: bimodal genes that stay so, of those that are so in "
                         f"truth or answer, {model}", kept, 0.8, at_most=False)  # fmt: skip
    which = "held out, with an effect"
    for what in ("E-distance", "MMD2", "W1, top genes"):
        for model, rival in product((OURS, SHARED), (STILL, ALL, SHIFT, LINEAR)):
            ours = column("Papalexi", which, model, what)
            their = column("Papalexi", which, rival, what)
            times = [t / max(o, 1e-6) for t, o in zip(their, ours, strict=True)]
            if times:
                record.claim(f"Papalexi, {which}: {what} of {rival} over that of: {model}", times,
                             unit="times")  # fmt: skip
    for model in (ALL, SHIFT, LINEAR, OURS, SHARED):
        found = column("Papalexi", which, model, "R2 of changes")
        if found:
            record.claim(f"Papalexi, {which}: R2 of the 20 largest changes, {model}", found)


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=12, help="CPU seconds a model and rate")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--width", type=int, default=128, help="of all networks")
    parser.add_argument("--genes", type=int, default=100, help="of Papalexi's that are kept")
    parser.add_argument("--data", nargs="+", default=["simulated", "papalexi"])
    parser.add_argument("--jobs", type=int, default=1)
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [
        f"--{k} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for k, v in vars(a).items()
        if k not in ("seeds", "jobs") and v != parser.get_default(k)
    ]
    record = Record(
        "perturbation",
        "Perturbation bridges: unpaired cells, simulated and real, with knock-outs held out",
        "Cells of a simulated gene network, whose counterfactuals are known, and of Papalexi's "
        f"screen, {a.genes} genes; {a.seconds:g} CPU-seconds a model and learning rate, of which "
        "the better on validation cells. Means over knock-outs. E-distance and W1 in units of log "
        "expression; bimodal kept: of the genes that are bimodal in truth or answer, the share "
        "that is in both.",
        " ".join(["python benchmarks/proof/perturbation.py --seeds", *map(str, a.seeds), *words]),
        "Perturbation bridges",
        method=275,
        seeds=a.seeds,
        group=["data", "knock-outs", "model"],
        table=["error a cell", "E-distance", "MMD2", "R2 of changes", "W1, top genes",
               "bimodal kept", "n"],
    )  # fmt: skip
    tasks = [(seed, a) for seed in a.seeds]
    if a.jobs > 1:
        with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(measure, tasks))
    else:
        found = [measure(task) for task in tasks]
    record.rows = [row for rows in found for row in rows]
    claims(record)
    record.notes.append(
        "On Papalexi a seed is a fold of knock-outs; an effect is an E-distance to control cells "
        "beyond chance (200 relabellings, p < 0.01); R2 of all knock-outs, most of which change "
        "nothing, is that of noise."
    )
    record.save()


if __name__ == "__main__":
    main()
