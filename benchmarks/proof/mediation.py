"""Mediation on images: direct, indirect and total effects against the renderer's own.

On the pendulum the angle (or the light) moves the ball (or the sun) by itself and the shadow
through its length and position; on real digits thickness widens strokes by itself and brightens
them through intensity. The renderer tells each held-out unit's true TE, NDE and NIE, images all. A
family of decoders answers by `unit_mediation`, and two models of the same family that ignore the
mediators answer as they believe, NDE = TE and NIE = 0:

    cut       the very same trained decoder in a graph without the arrows treatment -> mediators
    left out  a decoder without the mediators among its parents, trained as long

The first is right about the direct effect whenever ours is, and has no indirect one; the second
learns the total effect and cannot split it. A further row gives our decoder the oracle's M(b), so
that what the decoder and what the mediators' mechanisms miss are told apart.

    python benchmarks/proof/mediation.py --seconds 300 --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.data.pendulum import Pendulum
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import VAE, ConditionalFlow, LinearGaussian
from subjunctive.models import CausalDiffAE
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.unit_effect import unit_mediation
from subjunctive.variable import Batch, Variable

PENDULUM, DIGITS = "Pendulum", "MorphoDigits"
ASKED: dict[str, dict[str, tuple[str, ...]]] = {  # data -> treatment -> mediators
    PENDULUM: {"angle": ("length", "position"), "light": ("length", "position")},
    DIGITS: {"thickness": ("intensity",)},
}
EFFECTS = ("TE", "NDE", "NIE")
PIXELS = ("changed pixels", "all pixels")
CHANGED = 0.02  # of 1: an effect of less in all channels is none

Variables = Mapping[str, Variable]
Build = Callable[[str, Graph, Variables], SCM]


# The families -------------------------------------------------------------------------------------


def with_flows(graph: Graph, variables: Variables, image: Mechanism) -> SCM:
    """Return an SCM whose labels have the flows that the recipe of CausalDiffAE gives them."""
    parents = {n: [variables[p] for p in graph.parents(n)] for n in graph.nodes if n != "image"}
    flows = {n: ConditionalFlow(variables[n], p) for n, p in parents.items()}
    return SCM(graph, {**flows, "image": image})


def diffae(data: str, graph: Graph, variables: Variables) -> SCM:
    """Return the model of `benchmarks/proof/pendulum.py`, or the demo's."""
    if data == PENDULUM:
        return CausalDiffAE(graph, variables, code=6, beta=30.0)
    return CausalDiffAE(graph, variables, code=64, width=24, guidance=1.04)


def vae(data: str, graph: Graph, variables: Variables) -> SCM:
    """Return a VAE as the image's mechanism."""
    parents = [variables[p] for p in graph.parents("image")]
    image = VAE.of(variables["image"], parents, latent=16, widths=(32, 64, 128))
    return with_flows(graph, variables, image)


# A family more is a line more here, and its settings below.
FAMILIES: dict[str, Build] = {"CausalDiffAE": diffae, "VAE": vae}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("CausalDiffAE", PENDULUM): {"batch_size": 64, "lr": 4e-3, "precision": "bf16"},
    ("CausalDiffAE", DIGITS): {"batch_size": 128, "lr": 2e-3, "precision": "bf16"},
    ("VAE", PENDULUM): {"batch_size": 64, "lr": 2e-3, "precision": "bf16"},
    ("VAE", DIGITS): {"batch_size": 128, "lr": 2e-3, "precision": "bf16"},
}


# Training -----------------------------------------------------------------------------------------


def load(name: str, seed: int, digits: int, jobs: int = 1) -> Pendulum | MorphoDigits:
    """Return a data set; rendered digits are kept in the user's cache."""
    if name == PENDULUM:
        return Pendulum(size=32, seed=seed)
    return MorphoDigits(digits=digits, seed=seed, jobs=jobs, progress=False)


def graphs(name: str, graph: Graph) -> dict[str, Graph]:
    """Return the graphs that are trained: the true one, and the one without the mediators."""
    gone = {m for mediators in ASKED[name].values() for m in mediators}
    return {"ours": graph, "left out": graph.subgraph([n for n in graph.nodes if n not in gone])}


def build(family: str, name: str, which: str, seed: int, data: Pendulum | MorphoDigits) -> SCM:
    """Return a model with fresh weights."""
    with seeded(seed):
        return FAMILIES[family](name, graphs(name, data.graph)[which], data.variables)


def train(task: tuple[int, str, str, str, argparse.Namespace]) -> tuple[int, dict[str, Any]]:
    """Fit one model for a CPU time, measured on forty steps; return steps and weights."""
    seed, name, family, which, a = task
    torch.set_num_threads(1)
    data = load(name, seed, a.digits)
    model = build(family, name, which, seed, data)
    how = SETTINGS[family, name] | ({"lr": a.lr} if a.lr else {})
    rows = data.train.only(model.graph.nodes)

    def steps(number: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(model, rows, steps=number, ema=ema, seed=seed, progress=False, **how)
        return time.process_time() - began

    steps(5)  # what only the first steps of a process cost
    number = max(int(40 * a.seconds / steps(40)), 1)
    steps(number, ema=0.99)
    return number, {k: w.numpy() for k, w in model.state_dict().items()}


# Answers ------------------------------------------------------------------------------------------


def effects(worlds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return TE, NDE and NIE, images of differences, from the worlds' images in [0, 1]."""
    start = worlds["factual"].clamp(0, 1)
    pairs = zip(EFFECTS, ("treated", "direct", "indirect"), strict=True)
    return {name: worlds[world].clamp(0, 1) - start for name, world in pairs}


def unmediated(model: SCM, batch: Batch, do: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Return what a model believes in whose graph no mediator listens to the treatment."""
    rows = batch.only(model.graph.nodes)
    start, treated = (a["image"] for a in counterfactual(model, rows, [{}, do], seed=seed))
    worlds = {"factual": start, "treated": treated, "direct": treated, "indirect": start}
    return effects(worlds)


def cut(model: SCM, treatment: str, mediators: Sequence[str]) -> SCM:
    """Return the model without the arrows treatment -> mediators: its decoder is the same.

    What a mediator's own mechanism is does not matter there: it was seen, and nobody moves it.
    """
    gone = {(treatment, m) for m in mediators}
    graph = Graph.from_edges([(a, b) for a, _, b in model.graph.edges if (a, b) not in gone])
    own = {
        m: LinearGaussian(model.variables[m], [model.variables[p] for p in graph.parents(m)])
        for m in mediators
    }
    return SCM(graph, {n: own.get(n, model.mechanisms[n]) for n in graph.nodes}, model.encoder)


def answers(
    models: Mapping[str, Mapping[str, SCM]],
    data: Pendulum | MorphoDigits,
    batch: Batch,
    treatment: str,
    mediators: Sequence[str],
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Return every model's effects, the truth first; targets come from the training marginal."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(data.train), (len(batch),), generator=generator)
    b = data.train.values[treatment][pick]

    def split(model: Any, rows: Batch) -> dict[str, Tensor]:
        asked = (treatment, "image", mediators, b)
        return effects(unit_mediation(model, rows, *asked, seed=seed))

    found = {"oracle": split(data.oracle, batch)}
    found["copy"] = {e: torch.zeros_like(v) for e, v in found["oracle"].items()}
    moved = data.oracle.predict(data.oracle.abduct(batch), {treatment: b})
    given = {m: moved[m] for m in mediators}
    for family, own in models.items():
        ours, rows = own["ours"], batch.only(data.graph.nodes)
        found[family] = split(ours, rows)
        dos = [{}, {treatment: b, **given}, {treatment: b, **only(rows, mediators)}, given]
        images = [a["image"] for a in counterfactual(ours, rows, dos, seed=seed)]
        worlds = dict(zip(("factual", "treated", "direct", "indirect"), images, strict=True))
        found[f"{family}, oracle's mediators"] = effects(worlds)
        blind = cut(ours, treatment, mediators)
        found[f"{family}, cut"] = unmediated(blind, batch, {treatment: b}, seed)
        found[f"{family}, left out"] = unmediated(own["left out"], batch, {treatment: b}, seed)
    return found


def only(batch: Batch, nodes: Sequence[str]) -> dict[str, Tensor]:
    """Return the values of some nodes."""
    return {n: batch.values[n] for n in nodes}


def judge(
    seed: int, name: str, done: Mapping[tuple[str, str], tuple[int, Any]], a: argparse.Namespace
) -> list[dict[str, Any]]:
    """Ask every trained model of a seed and a data set, and compare with the truth."""
    data = load(name, seed, a.digits, a.jobs)
    models: dict[str, dict[str, SCM]] = {}
    for (family, which), (_, weights) in done.items():
        model = build(family, name, which, seed, data)
        model.load_state_dict({k: torch.as_tensor(w) for k, w in weights.items()})
        models.setdefault(family, {})[which] = model.eval()
    part = data.valid if a.valid else data.test
    batch, out = part[torch.arange(min(a.rows, len(part)))], []
    for treatment, mediators in ASKED[name].items():
        found = answers(models, data, batch, treatment, mediators, seed)
        for (model_name, images), effect in ((f, e) for e in EFFECTS for f in found.items()):
            truth = found["oracle"][effect]
            gap = (images[effect] - truth).abs().mean(1)
            changed = (truth.abs() > CHANGED).any(1)
            row = {"seed": seed, "data": name, "treatment": treatment, "effect": effect}
            row |= {"model": model_name, PIXELS[0]: float(gap[changed].mean())}
            row |= {PIXELS[1]: float(gap.mean()), "share changed": float(changed.float().mean())}
            family, _, which = model_name.partition(", ")
            if family in models:
                key = (family, "left out" if which == "left out" else "ours")
                row["steps"] = done[key][0]
                image = models[family][key[1]].mechanisms["image"]
                row["parameters"] = sum(p.numel() for p in image.parameters())
            out.append(row)
    return out


def claims(record: Record, families: Sequence[str]) -> None:
    """Add what the rows say: errors of the models that ignore the mediators, over ours."""

    def error(seed: int, name: str, model: str, pixels: str, effects: Sequence[str]) -> float:
        rows = [r for r in record.rows if (r["seed"], r["data"], r["model"]) == (seed, name, model)]
        cells = [r[pixels] for r in rows if r["effect"] in effects]
        return sum(cells) / len(cells)

    def claim(
        name: str, family: str, pixels: str, effects: Sequence[str], *rivals: str, asked: bool
    ) -> None:
        values = []
        for seed in record.seeds:
            theirs = min(error(seed, name, f"{family}, {r}", pixels, effects) for r in rivals)
            values.append(theirs / error(seed, name, family, pixels, effects))
        what = f"{name}, {family}, {pixels}: error of {' and '.join(effects)}, "
        what += f"the better of {' and '.join(rivals)}" if len(rivals) > 1 else rivals[0]
        record.claim(what + ", over ours", values, 1.0 if asked else None, False, "times")

    for name in dict.fromkeys(r["data"] for r in record.rows):
        for about in ((family, pixels) for family in families for pixels in PIXELS):
            # of the indirect effect both say the same, that there is none
            claim(name, *about, ["NIE"], "cut", asked=True)
            claim(name, *about, ["NDE", "NIE"], "cut", "left out", asked=True)
            for rival in ("cut", "left out"):
                claim(name, *about, ["NDE"], rival, asked=False)
                claim(name, *about, ["TE"], rival, asked=False)
            claim(name, *about, ["NIE"], "oracle's mediators", asked=False)


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="of training a model, CPU")
    parser.add_argument("--rows", type=int, default=500, help="held-out rows that are judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, a thread each")
    parser.add_argument("--digits", type=int, default=5000, help="source digits")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--data", nargs="+", default=list(ASKED), choices=list(ASKED))
    parser.add_argument("--lr", type=float, help="of every model, in the place of its own")
    parser.add_argument("--valid", action="store_true", help="show validation rows, keep nothing")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [
        f"--{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in vars(a).items()
        if key not in ("seeds", "seconds", "valid") and value != parser.get_default(key)
    ]
    record = Record(
        "mediation",
        "Mediation: direct and indirect effects on images against the renderer's",
        "32x32 images. Mean absolute error (of 1) of each unit's TE, NDE and NIE, images of "
        "differences, on the pixels that the true effect changes by more than "
        f"{CHANGED:g}, and on all; {a.rows} held-out rows, targets from the training marginals; "
        f"{a.seconds:g} CPU-seconds of training a model, one thread each. `cut`: the same trained "
        "decoder, no arrows from treatment to mediators; `left out`: a decoder without the "
        "mediators, trained as long; both say NDE = TE and NIE = 0. `copy`: no effect at all.",
        f"python benchmarks/proof/mediation.py --seconds {a.seconds:g} --seeds "
        + " ".join([*map(str, a.seeds), *words]),
        "mediation",
        method=301,
        seeds=a.seeds,
        group=["data", "treatment", "effect", "model"],
        table=[*PIXELS, "share changed", "steps"],
    )
    for seed in a.seeds if DIGITS in a.data else ():
        load(DIGITS, seed, a.digits, a.jobs)  # rendered once, by all workers
    tasks = [
        (seed, name, family, which, a)
        for seed in a.seeds for name in a.data for family in a.families
        for which in ("ours", "left out")
    ]  # fmt: skip
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        done = dict(zip([t[:4] for t in tasks], pool.map(train, tasks), strict=True))
    for seed in a.seeds:
        for name in a.data:
            found = {t[2:]: d for t, d in done.items() if t[:2] == (seed, name)}
            record.rows += judge(seed, name, found, a)
    claims(record, a.families)
    sizes = {(r["data"], r["model"]): r.get("parameters") for r in record.rows}
    record.notes += [
        "Parameters of what makes the image: "
        + "; ".join(f"{d}, {m} {sizes[d, m]:,}" for d in a.data for m in a.families) + ".",
        "Where only the mediators' arrows are cut, the direct effect is the same model's and the "
        "ratio of NDE is 1; the identity TE(a->b) = NDE(a->b) - NIE(b->a) holds by construction "
        "and is no evidence.",
    ]  # fmt: skip
    if not a.valid:
        record.save()
        return
    for r in record.rows:
        print(*(r[k] for k in record.group), *(f"{r[p]:.4f}" for p in PIXELS), r.get("steps", ""))


if __name__ == "__main__":
    main()
