"""Counterfactuals of real digits in one and two evaluations, beside the long road and its rivals.

Everyone has the same CPU time. `CausalDiffAE` spends a part of it on a diffusion autoencoder whose
denoiser learns all times (`anchor` 0.7), the rest on distilling it (`distil`). Asked are

    one, two        the twin, one and two jumps; the second one's noise explains the factual
    undistilled     `CausalDiffAE` as the demo trains it, for all of the time, in one evaluation
    two, plain      the same weights read as two jumps without distillation
    long road       the teacher's 100 steps of DDIM, backward and forward
    CVAE, HVAE      in the same SCM

of the same held-out digits: what the renderer measures on their pixels, the error to the rendered
truth, what the digit is read as. `bare` is an answer without the factual's residual, `fresh` a
sample without residual whose latents are drawn; sharpness is the energy of the pixels' gradient
over the truth's, Frechet distance and coverage (5 neighbours) are over features of a classifier of
digits. The latents' law given the parents is fitted alike for the twin, the undistilled model and
the CVAE (`Freed`), out of the same time.

    python benchmarks/proof/consistency.py --seeds 0 1 2 --seconds 300 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.demo import CODE, GUIDANCE, WIDTH
from subjunctive.diffusion import DDIM
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import HVAE, VAE, Consistency, Freed
from subjunctive.metrics import evaluate
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.realism import frechet
from subjunctive.models import CausalDiffAE, distil, few
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.training.objective import Objective, Player
from subjunctive.variable import Batch, Variable

ONE, TWO, LONG = "one", "two", "long road"
UNDISTILLED, PLAIN = "undistilled", "two, plain"
CVAE, LADDER = "CVAE", "HVAE"
RIVALS = (UNDISTILLED, CVAE, LADDER)
SECOND = 0.15  # the second stop, chosen on other digits' validation rows
SHARES = {"teacher": 0.65, "distil": 0.25}  # of the time; what is left is for the code's law
BATCH, RATE = 128, 2e-3
DIGIT = Variable("digit", kind="categorical", categories=tuple("0123456789"))
SOUND = ("effectiveness", "distance", "ratio", "identity", "composition", "reversibility")


def paced(run: Any, seconds: float) -> int:
    """Return how many steps fit into some CPU seconds; `run(steps)` is tried on ten."""
    run(3)
    began = time.process_time()
    run(10)
    return max(int(10 * seconds / (time.process_time() - began)), 10)


def train(model: SCM, data: MorphoDigits, seconds: float, seed: int) -> SCM:
    """Train a model by its own loss."""
    start = {k: w.clone() for k, w in model.state_dict().items()}

    def run(steps: int) -> None:
        model.load_state_dict(start)
        fit(model, data.train, steps=steps, batch_size=BATCH, lr=RATE, ema=0.99, precision="bf16",
            seed=seed, progress=False)  # fmt: skip

    run(paced(run, seconds))
    return model


class Law(Objective):
    """The flow of a freed latent alone learns."""

    def __init__(self, freed: Freed) -> None:
        super().__init__()
        self.own = [freed]  # not a part of the objective: its flow is the model's

    def players(self, model: Any) -> list[Player]:
        return [Player("law", self.own[0].flow.parameters())]

    def loss(self, model: Any, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        own = self.own[0]
        with torch.no_grad():
            values = model.complete(batch).values
            parents = {p.name: values[p.name] for p in own.parents}
            z = own.mechanism.abduct(values["image"], parents)[own.part]
        return own.flow.loss(z, parents)


def freed(model: SCM, part: str, data: MorphoDigits, seconds: float, seed: int) -> SCM:
    """Return a model whose image's latent has a law of its own given the parents."""
    inner = model.mechanisms["image"].requires_grad_(False)
    with seeded(seed):
        own = Freed.of(inner, part, hidden=(96, 96))
    found = SCM(model.graph, {**model.mechanisms, "image": own}, model.encoder)
    found.requires_grad_(False)
    own.flow.requires_grad_(True)
    start = {k: w.clone() for k, w in own.flow.state_dict().items()}

    def run(steps: int) -> None:
        own.flow.load_state_dict(start)
        fit(found, data.train, Law(own), steps=steps, batch_size=BATCH, lr=RATE, ema=0.99,
            seed=seed, progress=False)  # fmt: skip

    run(paced(run, seconds))
    return found.eval()


def again(model: SCM, own: Any) -> SCM:
    """Return a model with another mechanism of the image."""
    return SCM(model.graph, {**model.mechanisms, "image": own}, model.encoder).eval()


def build(name: str, data: MorphoDigits, seed: int) -> SCM:
    """Return a model with fresh weights."""
    x = data.variables["image"]
    parents = [data.variables[p] for p in data.graph.parents("image")]
    with seeded(seed):
        other = {}
        if name == CVAE:
            other = {"image": VAE.of(x, parents, 32, widths=(24, 48, 96))}
        if name == LADDER:
            other = {"image": HVAE.of(x, parents)}
        anchor = 0.7 if name == TWO else 0.95
        return CausalDiffAE(
            data.graph, data.variables, code=CODE, width=WIDTH, anchor=anchor, mechanisms=other
        )


def run(task: tuple[int, str, float, int]) -> list[dict[str, Any]]:
    """Train one of them and judge it; return a row a way of asking it."""
    seed, name, seconds, rows = task
    torch.set_num_threads(1)
    data = MorphoDigits(seed=seed, progress=False)
    reader = read(data, seed)
    model = build(name, data, seed)
    asked: dict[str, SCM] = {}
    if name == TWO:
        train(model, data, SHARES["teacher"] * seconds, seed)
        model.mechanisms["image"].guidance = GUIDANCE

        def distilled(updates: int) -> SCM:
            return distil(model, data.train, 2, stops=(1.0, SECOND), updates=updates,
                          batch_size=BATCH, precision="bf16", ema=0.99, seed=seed,
                          progress=False)  # fmt: skip

        twin = distilled(paced(distilled, SHARES["distil"] * seconds))
        left = (1 - sum(SHARES.values())) * seconds
        law = freed(twin, "code", data, left, seed).mechanisms["image"].flow
        for way, stops in ((ONE, (1.0,)), (TWO, (1.0, SECOND)),
                           ("four", (1.0, 2 * SECOND, SECOND, SECOND / 2))):  # fmt: skip
            jumps = few(twin, *stops)
            asked[way] = again(twin, Freed(jumps.mechanisms["image"], law, "code"))
        asked[LONG] = model
    elif name == UNDISTILLED:
        train(model, data, 0.9 * seconds, seed)
        own = model.mechanisms["image"]
        own.guidance = GUIDANCE
        asked[name] = freed(model, "code", data, 0.1 * seconds, seed)
        law = asked[name].mechanisms["image"].flow
        asked[PLAIN] = again(model, Freed(Consistency(own, stops=(1.0, SECOND)), law, "code"))
    elif name == CVAE:
        train(model, data, 0.9 * seconds, seed)
        asked[name] = freed(model, "z", data, 0.1 * seconds, seed)
    else:
        asked[name] = train(model, data, seconds, seed).eval()
    found = []
    for way, scm in asked.items():
        if way == LONG:
            own = scm.mechanisms["image"]
            own.sampler = DDIM(own.denoiser.schedule, 100, sigma_data=0.7, refine=0)
        many = rows // 4 if way == LONG else rows
        found.append({"seed": seed, "model": way, **judge(scm, data, reader, many, seed)})
    return found


def read(data: MorphoDigits, seed: int) -> Predictor:
    """Train the network that features are taken from."""
    with seeded(seed):
        reader = Predictor(data.variables["image"], [DIGIT])
    rows = data.train
    fit_predictor(reader, rows.values["image"], {"digit": rows.context["digit"]}, steps=500,
                  seed=seed)  # fmt: skip
    return reader.eval()


def energy(x: Tensor) -> float:
    """Return the mean squared difference of neighbouring pixels."""
    down, right = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return float(down.square().mean() + right.square().mean())


def coverage(real: Tensor, drawn: Tensor, k: int = 5) -> float:
    """Return the share of real rows that have a drawn one nearer than their k-th real neighbour."""
    radius = torch.cdist(real, real).kthvalue(k + 1, 1).values
    return float((torch.cdist(real, drawn).min(1).values < radius).float().mean())


def judge(
    model: SCM, data: MorphoDigits, reader: Predictor, rows: int, seed: int
) -> dict[str, float]:
    """Return the figures of one model."""
    frame = evaluate(model, data, rows=rows, metrics=SOUND, predictor=reader, seed=seed,
                     progress=False)  # fmt: skip
    frame = frame[(frame.method == "model") & (frame.support != "outside")]

    def value(do: str, metric: str, node: str) -> float:
        at = (frame.intervention == do) & (frame.metric == metric) & (frame.node == node)
        return float(frame[at].value.iloc[0])

    thick, ink = "do(thickness)", "do(intensity)"
    row = {
        "px": value(thick, "effectiveness", "thickness"),
        "ink": value(thick, "effectiveness", "intensity"),
        "ink, done": value(ink, "effectiveness", "intensity"),
        "to copy, far": value(thick, "ratio to copy and rescale, far", "image"),
        "identity": value(thick, "identity gap", "digit"),
        "reversibility": value(thick, "reversibility", "image"),
        "composition": value("do()", "composition", "image"),
    }
    with torch.no_grad():
        return row | pictures(model, data, reader, rows, seed)


def pictures(
    model: SCM, data: MorphoDigits, reader: Predictor, rows: int, seed: int
) -> dict[str, float]:
    """Return the figures of pictures as pictures, and what an answer costs."""
    row = {}
    batch = data.test[torch.arange(min(rows, len(data.test)))]
    seen = batch.only(data.graph.nodes)
    with seeded(seed):
        u = model.abduct(seen)
        fresh = bare(model.noise(len(seen)))
        do = {"thickness": seen.values["thickness"][torch.randperm(len(seen))]}
    truth = data.oracle.predict(data.oracle.abduct(batch), do)["image"].clamp(0, 1)
    kept, naked = (model.predict(v, do)["image"].clamp(0, 1) for v in (u, bare(u)))
    drawn = model.predict(fresh)["image"].clamp(0, 1)
    real, true = reader.features(seen.values["image"]), reader.features(truth)
    row |= {
        "error": float((kept - truth).square().mean()),
        "error, bare": float((naked - truth).square().mean()),
        "sharp": energy(kept) / energy(truth),
        "sharp, bare": energy(naked) / energy(truth),
        "sharp, fresh": energy(drawn) / energy(seen.values["image"]),
    }
    for what, images, against in (("bare", naked, true), ("fresh", drawn, real)):
        features = reader.features(images)
        row[f"Frechet, {what}"] = frechet(features, against).value
        row[f"coverage, {what}"] = coverage(against, features)
    part = seen[torch.arange(min(128, len(seen)))]
    counterfactual(model, part, {"thickness": 3.0}, seed=0)
    began = time.process_time()
    counterfactual(model, part, {"thickness": 3.0}, seed=0)
    row["milliseconds"] = 1000 * (time.process_time() - began) / len(part)
    return row


def bare(u: dict[str, Any]) -> dict[str, Any]:
    """Return noise whose residual of the image, where there is one, is none."""
    own = u["image"]
    if not isinstance(own, dict) or "residual" not in own:
        return u
    return {**u, "image": {**own, "residual": torch.zeros_like(own["residual"])}}


def claims(record: Record) -> None:
    """Add what the rows say."""

    def of(model: str, what: str) -> list[float]:
        return [
            next(r[what] for r in record.rows if (r["seed"], r["model"]) == (seed, model))
            for seed in record.seeds
        ]

    def over(a: list[float], b: list[float]) -> list[float]:
        return [p / q for p, q in zip(a, b, strict=True)]

    slower = over(of(LONG, "milliseconds"), of(TWO, "milliseconds"))
    record.claim("time of the long road's counterfactual over two jumps'", slower, 50, False,
                 "times")  # fmt: skip
    for what in ("px", "ink", "ink, done", "to copy, far", "error"):
        ratio = over(of(TWO, what), of(LONG, what))
        record.claim(f"two jumps' {what} over the long road's", ratio, 1.0, unit="times")
    for model, px, ink in ((TWO, 0.20, 5.0), (ONE, 0.22, 6.0)):
        record.claim(
            f"{model}: thickness error after do(thickness)", of(model, "px"), px, unit="px"
        )
        record.claim(f"{model}: intensity error, the worse of both",
                     [max(p) for p in zip(of(model, "ink"), of(model, "ink, done"), strict=True)],
                     ink, unit="of 255")  # fmt: skip
    record.claim("two: digit accuracy lost against the truth's",
                 [-100 * v for v in of(TWO, "identity")], 1, unit="points")  # fmt: skip
    record.claim("two: error over copy-and-rescale's, far", of(TWO, "to copy, far"), 0.6)
    for rival in RIVALS:
        for what, better in (("error", 1), ("error, bare", 1), ("sharp, bare", -1),
                             ("sharp, fresh", -1), ("Frechet, bare", 1), ("Frechet, fresh", 1),
                             ("coverage, bare", -1), ("coverage, fresh", -1)):  # fmt: skip
            record.claim(f"two jumps' {what} over {rival}'s", over(of(TWO, what), of(rival, what)),
                         1.0, better == 1, "times")  # fmt: skip
    record.claim("counterfactuals a second on one core, one jump",
                 [1000 / v for v in of(ONE, "milliseconds")], 250, False)  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300, help="of CPU, a model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    record = Record(
        "consistency",
        "Few-step counterfactuals: real digits in one and two evaluations",
        "`px`, `ink`: what is measured on the pixels after do(thickness) against what should be, "
        "pixels and 255ths; `to copy, far`: error to the truth over copy-and-rescale's where "
        "thickness moves by 0.7 px or more. `sharp`: gradient energy over the truth's. "
        f"{a.seconds:g} CPU-seconds of training a model, one thread each; a quarter of the rows "
        "for the long road.",
        f"python benchmarks/proof/consistency.py --seeds {' '.join(map(str, a.seeds))} --seconds "
        f"{a.seconds:g} --jobs {a.jobs}",
        "few-step counterfactuals",
        seeds=a.seeds,
        group=["model"],
        table=["px", "ink", "ink, done", "to copy, far", "error", "error, bare", "sharp, bare",
               "sharp, fresh", "Frechet, bare", "Frechet, fresh", "coverage, fresh",
               "milliseconds"],
    )  # fmt: skip
    tasks = [(s, name, a.seconds, a.rows) for s in a.seeds for name in (TWO, *RIVALS)]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        for rows in pool.map(run, tasks):
            record.rows += rows
            for r in rows:
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()},
                      flush=True)  # fmt: skip
    claims(record)
    record.notes.append(
        f"Second stop {SECOND}, chosen on digits of another seed. An intervention's strength "
        f"{GUIDANCE} is the demo's; the twin has it distilled in."
    )
    record.save()


if __name__ == "__main__":
    main()
