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
import importlib
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import hvae
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms import HVAE, DiscretisedGaussian
from subjunctive.metrics import evaluate
from subjunctive.scm import SCM
from subjunctive.variable import Variable, as_matrix

OURS, THEIRS = "ours", "the paper's code"
RATES = (1e-3, 3e-3)
ASKED = ("effectiveness", "distance", "reversibility", "composition, redrawn")


def network(path: Path) -> nn.Module:
    """Return the paper's network for two parents, with fresh weights."""
    sys.path.insert(0, str(path / "src"))
    kept, sys.argv = sys.argv, ["hvae", "--hps", "morphomnist"]  # it reads its sizes from there
    try:
        hps, vae = importlib.import_module("hps"), importlib.import_module("vae")
        parser = argparse.ArgumentParser()
        hps.add_arguments(parser)
        settings = hps.setup_hparams(parser)
        settings.context_dim = len(hvae.PARENTS)
        built: nn.Module = vae.HVAE(settings)
    finally:
        sys.argv = kept
        sys.path.remove(str(path / "src"))
    return built


class Reference(Mechanism):
    """The paper's HVAE as a mechanism: latents, and the pixels' residual of their Gaussian."""

    def __init__(self, variable: Variable, parents: list[Variable], path: Path) -> None:
        super().__init__(variable, parents)
        self.model: Any = network(path)
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
        levels = DiscretisedGaussian.of(image)
        return HVAE.of(image, parents, levels, widths=(32, 64, 80, 96),
                       latents=((16,), (16, 16), (16, 16), (16, 16)))  # fmt: skip


def train(task: tuple[int, str, float, float, Path]) -> tuple[float, int, dict[str, Any]]:
    """Fit one model; return validation bits, steps and weights."""
    seed, name, rate, seconds, path = task
    torch.set_num_threads(1)
    data = hvae.digits(seed)
    model = hvae.alone(build(name, data, seed, path), data)
    own: Any = model.mechanisms["image"]
    steps = hvae.spend(model, data.train.only(model.graph.nodes), None, seconds, rate, seed)
    bits = hvae.bits(own.eval(), data, data.valid)
    bits = bits if math.isfinite(bits) else math.inf
    return bits, steps, {k: w.numpy() for k, w in own.state_dict().items()}


def judge(task: tuple[int, dict[str, Any], int, Path]) -> list[dict[str, Any]]:
    """Ask both models, beside a copy."""
    seed, found, rows, path = task
    torch.set_num_threads(1)
    data = hvae.digits(seed)
    flows = hvae.labels(data, seed)
    images = {n: hvae.loaded(build(n, data, seed, path), f[2]) for n, f in found.items()}
    models = {n: SCM(data.graph, {**flows, "image": own}).eval() for n, own in images.items()}
    asked = ["effectiveness", "composition", "reversibility", "distance"]
    frame = evaluate(models, data, rows=rows, metrics=asked, seed=seed, progress=False)
    frame = frame[frame.support != "outside"]
    out = []
    for name in (*images, "copy"):
        own = frame[frame.method == name]

        def mean(metric: str, node: str = "image", own: Any = own) -> float | None:
            values = own[(own.metric == metric) & (own.node == node)].value
            return float(values.mean()) if len(values) else None

        row: dict[str, Any] = {"seed": seed, "model": name}
        row |= {m: mean(m) for m in ("composition", *ASKED[1:])}
        row["effectiveness"] = sum(
            (mean("effectiveness", p) or 0.0) / data.variables[p].scale for p in hvae.PARENTS
        ) / len(hvae.PARENTS)
        if name in images:
            row |= {"bits": hvae.bits(images[name], data, data.test), "steps": found[name][1]}
            row["parameters"] = sum(p.numel() for p in images[name].parameters())
        out.append(row)
    return out


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
    path = a.reference.resolve()
    tasks = [(s, n, r, a.seconds, path) for s in a.seeds for n in (OURS, THEIRS) for r in RATES]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        best: dict[tuple[int, str], Any] = {}
        for (seed, name, *_), found in zip(tasks, pool.map(train, tasks), strict=True):
            best[seed, name] = min(best.get((seed, name), found), found, key=lambda f: f[0])
        asked = [(s, {n: best[s, n] for n in (OURS, THEIRS)}, a.rows, path) for s in a.seeds]
        for rows in pool.map(judge, asked):
            record.rows += rows

    def column(model: str, what: str) -> list[float]:
        return [r[what] for r in record.rows if r["model"] == model]

    for what in ("bits", *ASKED):
        ratio = [x / y for x, y in zip(column(THEIRS, what), column(OURS, what), strict=True)]
        record.claim(f"{what}, the paper's code over ours", ratio, 1.0, at_most=False, unit="times")
    record.notes.append(
        f"Learning rates: the better of {RATES[0]:g} and {RATES[1]:g} by validation bits, for each "
        "model and seed."
    )
    record.save()


if __name__ == "__main__":
    main()
