"""Latent diffusion: counterfactual scenes of 64 x 64 pixels, and what latents should be like.

**Counterfactuals.** Scenes whose SCM is known (`data.scene`), a ball that has pushed a block under
a lamp. Each of the seven labels is set to values of other rows (`inside`), and to values that were
hardly seen (`outside`); answers are compared with the true counterfactual over the pixels that
truly change. The labels have the flows of CausalDiffAE, the same for all models; the image is made
by a diffusion over an autoencoder's latents, 16 x 16 x 4, or by a conditional VAE of pixels, with
two weights of its KL. All are trained for the same CPU time, all that belongs to it included: the
choice of learning rates on validation rows, and the first stage.

**Latents.** Autoencoders trained for equal steps: plain; with EQ-VAE's term; with ReaLS' term,
whose features are those of a network that was trained to read the labels; with both. Then a
diffusion over each one's latents, given the labels, for equal steps, without code; `Frechet` is
between true pictures and pictures made for their labels, decoded without residual noise, in
features of another network of the teacher's kind, with a seed of its own. `probe`: ridge regression
of the labels on training rows' latents, averaged over 4 x 4 positions. `dimension`: the intrinsic
one of latents, from the ratios of distances to two neighbours (Facco, d'Errico, Rodriguez and Laio,
2017, https://doi.org/10.1038/s41598-017-11873-y).

    python benchmarks/proof/latent.py --seeds 0 1 2 --seconds 900 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.bench.budget import tuned
from subjunctive.bench.recipes import PlainVAE
from subjunctive.data.scene import Scene
from subjunctive.diffusion import DDIM, Cosine
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, draw, seeded
from subjunctive.mechanisms import Autoencoder, Categorical, ConditionalFlow, Latent
from subjunctive.metrics.distance import changed, mae
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.questions import questions
from subjunctive.metrics.realism import frechet
from subjunctive.objectives import Equivariant, Projection, Represented, equivariance
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import Objective, fit
from subjunctive.variable import Batch, Variable

OURS, COPY = "latent diffusion", "copy"
RIVALS = {"conditional VAE": 1.0, "conditional VAE, beta 5": 5.0}  # weight of the KL
PLAIN, EQ, REALS, BOTH = "plain", "EQ-VAE", "ReaLS", "both"
KINDS = (PLAIN, EQ, REALS, BOTH)
SHARE = 0.4  # of the time, for the first stage
GRID = {"lr": [1.5e-3, 4e-3]}
HOW: dict[str, Any] = {"batch_size": 64, "ema": 0.99, "precision": "bf16"}
RATE = 3e-3  # where steps are equal
WIDTHS, CHANNELS = (24, 48), 4
INNER: dict[str, Any] = {"code": 16, "width": 32, "multipliers": (1, 2, 4), "beta": 5.0}
WEIGHTS = {EQ: 1.0, REALS: 0.5}
CALLS = 20  # of the sampler
SUPPORTS = ("inside", "outside")  # targets that are other rows' values, or hardly seen


class Alone(nn.Module):
    """A mechanism that learns without its model; in rows its values stand by their names."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        own = self.mechanism
        values = {v.name: batch.values[v.name] for v in (own.variable, *own.parents)}
        return own.loss(values.pop(own.variable.name), values)


class Trunk(nn.Module):
    """The last feature map of a network that reads labels, for standardised images."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.layers = predictor.encoder.layers[:-2]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def standard(data: Scene, rows: Batch) -> Batch:
    """Return standardised values of rows."""
    return Batch({n: v.standardise(rows.values[n]) for n, v in data.variables.items()})


def above(data: Scene) -> list[Variable]:
    """Return the image's parents."""
    return [data.variables[p] for p in data.graph.parents("image")]


def flows(data: Scene, steps: int, seed: int) -> dict[str, Mechanism]:
    """Return the labels' mechanisms, as CausalDiffAE has them, trained."""
    names = [n for n in data.graph.nodes if n != "image"]
    kinds = {"categorical": Categorical, "continuous": ConditionalFlow}
    with seeded(seed):
        built: dict[str, Mechanism] = {}
        for n in names:
            parents = [data.variables[p] for p in data.graph.parents(n)]
            built[n] = kinds[data.variables[n].kind](data.variables[n], parents)
    fit(SCM(data.graph.subgraph(names), built), data.train.only(names), steps=steps, batch_size=256,
        lr=5e-3, ema=0.99, seed=seed, progress=False)  # fmt: skip
    return built


# Counterfactuals ----------------------------------------------------------------------------------


def latent(data: Scene, seconds: float, seed: int) -> tuple[Latent, dict[str, Any]]:
    """Train both stages for a CPU time; the inner one on latents that are encoded once."""
    train, valid = standard(data, data.train), standard(data, data.valid)
    began = time.process_time()

    def first() -> tuple[nn.Module, Objective | None]:
        return Alone(Autoencoder.of(data.variables["image"], CHANNELS, WIDTHS)), None

    how: dict[str, Any] = {"seed": seed, "clock": "cpu", "how": HOW}
    one = tuned(first, train, valid, SHARE * seconds, GRID, **how)
    autoencoder: Any = one.model.mechanism
    done = Latent.of(autoencoder, above(data), **INNER).freeze(train.values["image"])

    def encoded(rows: Batch) -> Batch:
        with torch.no_grad():
            parts = [done.encode(x) for x in rows.values["image"].split(250)]
        return Batch({**rows.values, "z": torch.cat(parts)})

    def second() -> tuple[nn.Module, Objective | None]:
        return Alone(Latent.of(autoencoder, above(data), **INNER).inner), None

    z = encoded(train), encoded(valid)
    two = tuned(second, *z, seconds - (time.process_time() - began), GRID, **how)
    inner: Any = two.model.mechanism
    spent = time.process_time() - began
    found: dict[str, Any] = {"steps": f"{one.steps} + {two.steps}", "seconds": spent}
    found["parameters"] = sum(p.numel() for p in [*autoencoder.parameters(), *inner.parameters()])
    found["rates"] = f"{one.chosen['lr']:g}, {two.chosen['lr']:g}"
    return Latent(autoencoder, inner).freeze(train.values["image"]).eval(), found


def rival(data: Scene, beta: float, seconds: float, seed: int) -> tuple[Mechanism, dict[str, Any]]:
    """Train the VAE for a CPU time."""
    train, valid = standard(data, data.train), standard(data, data.valid)

    def build() -> tuple[nn.Module, Objective | None]:
        return Alone(PlainVAE(data.variables["image"], above(data), beta=beta)), None  # type: ignore[arg-type]

    done = tuned(build, train, valid, seconds, GRID, seed=seed, clock="cpu", how=HOW)
    own: Any = done.model.mechanism
    found = {"steps": str(done.steps), "seconds": done.cpu, "rates": f"{done.chosen['lr']:g}"}
    return own.eval(), {**found, "parameters": sum(p.numel() for p in own.parameters())}


def compared(
    data: Scene, part: Batch, models: Mapping[str, SCM], seed: int
) -> list[dict[str, Any]]:
    """Return, for every intervention and model, how far answers lie from the truth."""
    graph, rows = data.graph, []
    factual, known = part.values["image"], data.oracle.abduct(part)
    for asked in questions(data, None, "image", len(part), seed):
        truth = data.oracle.predict(known, asked.do)["image"]
        moved = changed(truth, factual)
        answers = {COPY: factual}
        for name, model in models.items():
            made = counterfactual(model, part.only(graph.nodes), asked.do, seed=seed)["image"]
            answers[name] = made.clamp(0, 1)
        for name, answer in answers.items():
            errors = mae(answer, truth, moved).nanmean(), mae(answer, truth, ~moved).nanmean()
            task = f"{asked.name}, {asked.support}"
            where = {"task": task, "model": name, "seed": seed, "support": asked.support}
            rows.append({**where, "changed": float(errors[0]), "unchanged": float(errors[1])})
    return rows


def first_task(task: tuple[int, str, float, int, int, str]) -> list[dict[str, Any]]:
    """Train one model and compare its counterfactuals with the truth; a copy's come with ours."""
    seed, name, seconds, asked, label_steps, split = task
    torch.set_num_threads(1)
    data = Scene(size=64, seed=seed, progress=False)
    part: Batch = getattr(data, split)
    part = part[torch.arange(min(asked, len(part)))]
    labels = flows(data, label_steps, seed)
    made, how = (
        latent(data, seconds, seed) if name == OURS else rival(data, RIVALS[name], seconds, seed)
    )
    model = SCM(data.graph, {**labels, "image": made}).eval()
    found = compared(data, part, {name: model}, seed)
    rows = []
    for who, more in ((name, how), (COPY, {})):
        own = [r for r in found if r["model"] == who]
        rows += own
        for support in SUPPORTS:
            mean = average([r for r in own if r["support"] == support])
            rows.append({"task": support, "model": who, "seed": seed, **mean, **more})
    copied = {r["task"]: r["changed"] for r in rows if r["model"] == COPY}
    rows = [{**r, "to copy's": r["changed"] / copied[r["task"]]} for r in rows]
    return [r for r in rows if r["model"] == name or name == OURS]


def average(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean over interventions."""
    return {k: sum(r[k] for r in rows) / len(rows) for k in ("changed", "unchanged")}


# Latents ------------------------------------------------------------------------------------------


def reader(data: Scene, steps: int, seed: int) -> Predictor:
    """Train a network that reads the labels off pictures."""
    with seeded(seed):
        network = Predictor(data.variables["image"], above(data))
    return fit_predictor(network, data.train.values["image"], data.train.values, steps=steps,
                         seed=seed)  # fmt: skip


def shaping(kind: str, teacher: Predictor) -> Objective | None:
    """Return what an autoencoder is trained by."""
    objective: Objective | None = None
    if kind in (EQ, BOTH):
        objective = Equivariant("image", weight=WEIGHTS[EQ])
    if kind in (REALS, BOTH):
        trunk, outputs = Trunk(teacher), teacher.widths[-1]
        weight, projection = WEIGHTS[REALS], Projection(CHANNELS, outputs)
        objective = Represented(trunk, projection, "image", weight, objective)
    return objective


def probe(z: dict[str, Tensor], rows: dict[str, Batch], labels: list[Variable]) -> dict[str, float]:
    """Return how well ridge regression reads labels: R2 of numbers, accuracy of the material.

    It reads averages of latents over 4 x 4 positions: of all of them, it reads nearly everything
    from any autoencoder. Its weight is the best on validation rows.
    """
    coarse = {k: F.avg_pool2d(v, 4).flatten(1).double() for k, v in z.items()}
    flat = {k: F.pad(v, (0, 1), value=1.0) for k, v in coarse.items()}
    goal = {k: targets(r, labels) for k, r in rows.items()}
    gram, cross = flat["train"].mT @ flat["train"], flat["train"].mT @ goal["train"]
    eye, best = torch.eye(len(gram), dtype=gram.dtype), (torch.inf, torch.zeros(()))
    for weight in 10.0 ** torch.arange(-1, 5):
        w = torch.linalg.solve(gram + weight * eye, cross)
        error = float((flat["valid"] @ w - goal["valid"]).square().mean())
        best = min(best, (error, w), key=lambda b: b[0])
    found, true = flat["test"] @ best[1], goal["test"]
    lost = (found - true).square().mean(0) / true.var(0)
    kinds = len(labels[0].categories)
    right = found[:, :kinds].argmax(1) == true[:, :kinds].argmax(1)
    return {
        "probe R2": float(1 - lost[kinds:].mean()),
        "probe, material": float(right.float().mean()),
    }


def targets(rows: Batch, labels: list[Variable]) -> Tensor:
    """Return what is regressed: the material's codes, one-hot, then the numbers."""
    material = F.one_hot(rows.values["material"].long(), len(labels[0].categories))
    numbers = [v.standardise(rows.values[v.name]) for v in labels if not v.discrete]
    return torch.cat([material.double(), torch.stack(numbers, 1).double()], 1)


def dimension(z: Tensor) -> float:
    """Return the intrinsic dimension of rows, from the ratios of their two nearest distances."""
    near = torch.cdist(z.flatten(1), z.flatten(1)).topk(3, largest=False).values
    ratio = (near[:, 2] / near[:, 1].clamp(min=1e-9)).log().sort().values
    kept = ratio[: int(0.9 * len(ratio))]  # the largest ratios are outliers
    share = torch.arange(1, len(kept) + 1, dtype=kept.dtype) / len(ratio)
    rise = -torch.log1p(-share)
    return float((kept @ rise) / kept.square().sum())


@torch.no_grad()
def described(data: Scene, made: Latent, split: str) -> dict[str, float]:
    """Return what the latents of held-out rows are like."""
    rows = {"train": data.train, "valid": data.valid, "test": getattr(data, split)}
    images = {k: made.variable.standardise(r.values["image"]) for k, r in rows.items()}
    z = {k: torch.cat([made.encode(p) for p in x.split(250)]) for k, x in images.items()}
    own, test, pixels = made.autoencoder, images["test"], made.variable.scale
    errors = [equivariance(own, test, turns, tall).mean()
              for turns, tall in ((1, 16), (2, 16), (3, 16), (0, 12), (0, 8))]  # fmt: skip
    lost = equivariance(own, test, 0, 16).mean()
    found = {"reconstruction": float(lost.sqrt()) * pixels, "dimension": dimension(z["test"])}
    found["equivariance"] = float(torch.stack(errors).mean().sqrt()) * pixels
    return found | probe(z, rows, sorted(above(data), key=lambda v: v.name != "material"))


def second_task(task: tuple[int, str, int, int, int, str]) -> dict[str, Any]:
    """Train one kind of first stage and a diffusion on it, for equal steps."""
    seed, kind, first, second, reading, split = task
    torch.set_num_threads(1)
    data = Scene(size=64, seed=seed, progress=False)
    teacher, judge = (reader(data, reading, seed + k) for k in (1000, 2000))
    with seeded(seed):
        own = Autoencoder.of(data.variables["image"], CHANNELS, WIDTHS)
        objective = shaping(kind, teacher)
    how: dict[str, Any] = {**HOW, "lr": RATE, "seed": seed, "progress": False}
    alone = SCM(Graph.parse("image"), {"image": own})
    fit(alone, data.train.only(["image"]), objective, steps=first, **how)
    sampler = DDIM(Cosine(), CALLS)
    with seeded(seed):
        plain = {**INNER, "code": 0, "beta": 1.0, "anchor": 0.0, "drop": 0.0}
        made = Latent.of(own, above(data), sampler=sampler, **plain)
    train = standard(data, data.train)
    made.freeze(train.values["image"])
    with torch.no_grad():
        z = torch.cat([made.encode(x) for x in train.values["image"].split(250)])
    fit(Alone(made.inner), Batch({**train.values, "z": z}), steps=second, **how)
    held = getattr(data, split)
    test = standard(data, held)
    parents = {v.name: test.values[v.name] for v in made.parents}
    with seeded(seed), torch.no_grad():
        u = draw(made.inner.prior(), len(test))
        pictures = made.variable.restore(made.decode(made.inner(u, parents))).clamp(0, 1)
    real = judge.features(held.values["image"])
    found = {
        "Frechet": frechet(judge.features(pictures), real).value,
        **described(data, made, split),
    }
    return {"task": "latents", "model": kind, "seed": seed, **found}


# The record ---------------------------------------------------------------------------------------


def claims(record: Record, seconds: float) -> None:
    """Add what the rows say."""

    def column(task: str, model: str, what: str) -> list[float]:
        return [
            next(r[what] for r in record.rows
                 if (r["task"], r["model"], r["seed"]) == (task, model, seed))
            for seed in record.seeds
        ]  # fmt: skip

    def over(a: list[float], b: list[float]) -> list[float]:
        return [x / y for x, y in zip(a, b, strict=True)]

    for support in SUPPORTS:
        error = f"{support}: error to the true picture on changed pixels"
        copied = column(support, OURS, "to copy's")
        record.claim(f"{error}, over a copy's", copied, 0.5, unit="times")
        for rival in RIVALS:
            pair = (column(support, m, "changed") for m in (OURS, rival))
            record.claim(f"{error}, over the {rival}'s", over(*pair), 1.0, unit="times")
            pair = (column(support, m, "unchanged") for m in (OURS, rival))
            said = f"{support}: error on pixels that do not change, over the {rival}'s"
            record.claim(said, over(*pair), unit="times")
    spent = [max(t) for t in zip(*(column(SUPPORTS[0], m, "seconds") for m in (OURS, *RIVALS)),
                                 strict=True)]  # fmt: skip
    what = "CPU seconds of training a model, the longest"
    record.claim(what, spent, 1.1 * seconds, unit="s")
    bounds: dict[str, dict[str, float | None]] = {
        EQ: {"equivariance": 1.0, "dimension": 1.0, "reconstruction": 1.1, "Frechet": 1.0},
        REALS: {"Frechet": 0.9, "reconstruction": 1.1},
        BOTH: {"Frechet": None, "reconstruction": None},
    }
    for kind, asked in bounds.items():
        for what, bound in asked.items():
            ratio = over(column("latents", kind, what), column("latents", PLAIN, what))
            record.claim(f"{kind}: {what} over the plain autoencoder's", ratio, bound, unit="times")
    for what in ("probe R2", "probe, material"):
        gain = [a - b for a, b in zip(*(column("latents", k, what) for k in (REALS, PLAIN)),
                                      strict=True)]  # fmt: skip
        record.claim(f"ReaLS: {what} less the plain autoencoder's", gain, 0.0, at_most=False)


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=900, help="of CPU, a model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows that are asked")
    parser.add_argument("--label-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, nargs=2, default=[1500, 2000], help="of two stages")
    parser.add_argument("--reader-steps", type=int, default=1000)
    parser.add_argument("--only", choices=["counterfactuals", "latents"], help="writes no record")
    parser.add_argument("--split", default="test", choices=["test", "valid"], help="valid: to try")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [
        f"--{key.replace('_', '-')} {' '.join(map(str, value)) if key == 'steps' else value}"
        for key, value in vars(a).items()
        if key not in ("seeds", "seconds", "jobs") and value != parser.get_default(key)
    ]
    record = Record(
        "latent",
        "Latent diffusion: counterfactual scenes, and latents that are easy to learn",
        "Scenes of 64 x 64 pixels in colour. `changed`, `unchanged`: mean absolute error to the "
        "true counterfactual, pixels from 0 to 1, over the pixels that truly change and over the "
        f"others; {a.rows} held-out rows, labels known, all noise kept; {a.seconds:g} CPU-seconds "
        f"of training an image mechanism, one thread each. `latents`: {a.steps[0]:,} steps of the "
        f"autoencoder, {a.steps[1]:,} of a diffusion over its latents given the labels. "
        "`reconstruction` and `equivariance`: root mean squares, pixels from 0 to 1, the latter "
        "over three turns and two sizes of the latent against those of the picture.",
        " ".join(["python benchmarks/proof/latent.py --seeds", *map(str, a.seeds),
                  f"--seconds {a.seconds:g} --jobs {a.jobs}", *words]),
        "latent diffusion",
        seeds=a.seeds,
        group=["task", "model"],
        table=["changed", "unchanged", "to copy's", "Frechet", "reconstruction", "equivariance",
               "dimension", "probe R2", "probe, material", "seconds", "parameters"],
    )  # fmt: skip
    for seed in a.seeds:
        Scene(size=64, seed=seed)  # drawn and kept, before processes need it
    one = [(s, name, a.seconds, a.rows, a.label_steps, a.split)
           for s in a.seeds for name in (OURS, *RIVALS)]  # fmt: skip
    two = [(s, kind, *a.steps, a.reader_steps, a.split) for s in a.seeds for kind in KINDS]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = [] if a.only == "latents" else [pool.submit(first_task, t) for t in one]
        more = [] if a.only == "counterfactuals" else [pool.submit(second_task, t) for t in two]
        for job in found:
            record.rows += job.result()
        record.rows += [job.result() for job in more]
    if a.only or a.split != "test":
        for row in record.rows:
            sys.stdout.write(f"{row}\n")
        return
    claims(record, a.seconds)
    kept = [r for r in record.rows if r["task"] == SUPPORTS[0] and r["model"] != COPY]
    record.notes.append(
        "Learning rates: the better of "
        + " and ".join(f"{r:g}" for r in GRID["lr"])
        + " on validation rows, for each stage and model. Rates and steps: "
        + "; ".join(f"{r['model']}, seed {r['seed']}: {r['rates']}, {r['steps']}" for r in kept)
        + "."
    )
    record.save()


if __name__ == "__main__":
    main()
