"""The HVAE's soundness on `MorphoDigits` beside that of the paper's own code, at equal cost.

The paper's network (its settings for Morpho-MNIST, two parents) and ours of as many parameters and
latents, both with discretised Gaussian pixels, are trained on the same rows by the same loop for
the same CPU time, at the better of the same learning rates by validation bits. Their answers are
made as their code makes them: latents from the encoder, `(x - mean) / scale` of the pixels kept,
mean and scale of the new parents, clamped. Labels are given by the same flows.

    python benchmarks/proof/hvae_reference.py --reference PATH --seeds 0 1 2 --jobs 2

PATH is a checkout of https://github.com/biomedia-mira/causal-gen.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import hvae
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.variable import Variable, as_matrix

OURS, THEIRS = "ours", "the paper's code"
ASKED = ("effectiveness", "distance", "reversibility", "composition, redrawn")


class Reference(Mechanism):
    """The paper's HVAE as a mechanism: latents, and the pixels' residual of their Gaussian."""

    def __init__(self, variable: Variable, parents: list[Variable], path: Path) -> None:
        super().__init__(variable, parents)
        self.model: Any = hvae.network(path, len(parents))
        with torch.no_grad():
            zero = torch.zeros(1, len(parents), *variable.shape[1:])
            latents = self.model.abduct(torch.zeros(1, *variable.shape), zero)
        self.shapes = [z.shape[1:] for z in latents]

    def given(self, parents: Parents) -> Tensor:
        columns = as_matrix(parents, self.parents)[:, :, None, None]
        return columns.expand(-1, -1, *self.variable.shape[1:]).contiguous()

    def theirs(self, x: Tensor) -> Tensor:
        return 2 * self.variable.restore(x) - 1

    def prior(self) -> Prior:
        """Return N(0, I) of the pixels' residual, and of latents, which stands for their own."""
        width = sum(map(math.prod, self.shapes))
        return {n: self.standard_normal(*shape)
                for n, shape in (("z", (width,)), ("residual", self.variable.shape))}  # fmt: skip

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        raw, pa = self.theirs(x), self.given(parents)
        latents = self.model.abduct(raw, pa)
        mean, scale = self.model.forward_latents(latents, pa)
        residual = (raw - mean) / scale.clamp(min=1e-12)
        return {"z": torch.cat([z.flatten(1) for z in latents], 1), "residual": residual}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        named: Any = u
        parts = named["z"].split([math.prod(shape) for shape in self.shapes], 1)
        latents = [z.unflatten(1, shape) for z, shape in zip(parts, self.shapes, strict=True)]
        mean, scale = self.model.forward_latents(latents, self.given(parents))
        made = (mean + scale * named["residual"]).clamp(-1, 1)
        return self.variable.standardise((made + 1) / 2)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        done = self.model(self.theirs(x), self.given(parents))
        return {k: done[k].expand(len(x)) for k in ("nll", "kl")}

    def bound(self, x: Tensor, parents: Parents) -> Tensor:
        """Return the bound in nats, the mean of the rows, `(B,)`."""
        return -sum(self.loss(x, parents).values()) * self.variable.width


def build(name: str, data: MorphoDigits, seed: int, path: Path) -> Mechanism:
    """Return either model of the image with fresh weights."""
    image, parents = data.variables["image"], [data.variables[p] for p in hvae.PARENTS]
    with seeded(seed):
        if name == THEIRS:
            return Reference(image, parents, path)
        return hvae.as_large(image, parents, hvae.AS_MANY)


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of their code")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=75, help="CPU time, a model and rate")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, a thread each")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = "".join(f" --{k} {v:g}" for k, v in (("seconds", a.seconds), ("rows", a.rows))
                    if v != parser.get_default(k))  # fmt: skip
    record = Record(
        "hvae-reference",
        "HVAE: soundness beside the paper's code",
        f"32x32 digits of 256 levels; {a.seconds:g} CPU-seconds of training a model and learning "
        f"rate. {a.rows} held-out rows: effectiveness in training standard deviations, the others "
        "mean absolute, of 1, on the image; bits a pixel, at most, on all held-out digits.",
        "python benchmarks/proof/hvae_reference.py --reference PATH --seeds "
        + " ".join(map(str, a.seeds)) + words,
        "HVAE beside the paper's",
        method=301,
        seeds=a.seeds,
        group=["model"],
        table=["bits", *ASKED, "composition", "steps", "parameters"],
    )  # fmt: skip
    make = partial(build, path=a.reference.resolve())
    tasks = [(s, n, r, a.seconds) for s in a.seeds for n in (OURS, THEIRS) for r in hvae.RATES]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        best: dict[tuple[int, str], Any] = {}
        fitted = pool.map(partial(hvae.train, make=make), tasks)
        for (seed, name, *_), found in zip(tasks, fitted, strict=True):
            best[seed, name] = min(best.get((seed, name), found), found, key=lambda f: f[0])
        asked = [{n: best[s, n] for n in (OURS, THEIRS)} for s in a.seeds]
        for rows in pool.map(partial(hvae.judge, rows=a.rows, make=make), a.seeds, asked):
            record.rows += rows

    def column(model: str, what: str) -> list[float]:
        return [r[what] for r in record.rows if r["model"] == model]

    for what in ("bits", *ASKED):
        ratio = [x / y for x, y in zip(column(THEIRS, what), column(OURS, what), strict=True)]
        record.claim(f"{what}, the paper's code over ours", ratio, 1.0, at_most=False, unit="times")
    rates = " and ".join(f"{r:g}" for r in hvae.RATES)
    record.notes.append(
        f"Learning rates: the better of {rates} by validation bits, for each model and seed."
    )
    record.save()


if __name__ == "__main__":
    main()
