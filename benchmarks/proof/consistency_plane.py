"""The consistency family on the plane, where the density, the score and the flow are known.

**Data**: a mixture of eight Gaussians on a ring, of unequal weights and widths; its exact denoiser is
the teacher. Every model has the same network and the same CPU time. Error is the sliced Wasserstein
distance (order 2) between 40,000 draws and as many of the data, over that of two draws of the data:
1 is perfect. What is compared is what the papers say of each other, with as many jumps as they say.

**Outliers**: one row in a hundred is pushed ten times as far out; the error is to the mixture without
them. **Guidance**: the mixture's left and right half are a parent; the error is to the teacher guided
with the same strength along 50 steps.

    python benchmarks/proof/consistency_plane.py --seeds 0 1 2 --jobs 2
"""  # noqa: E501

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.diffusion import EDM, Cauchy, Denoiser, Grid, PseudoHuber, Squared
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Consistency
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import MLP, Beside, Timed
from subjunctive.nn.unet import Sines
from subjunctive.objectives import CTM, ICT, LCM, PCM, SLCT, SCott, Teacher, plain, scaleless
from subjunctive.objectives.consistency import Alone
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, SIDE = Variable("x", (2,)), Variable("side", kind="categorical", categories=("left", "right"))
SCHEDULE, ROWS, DRAWS, BATCH, RATE = EDM(), 20_000, 40_000, 256, 2e-3
STEPS = (1, 2, 4, 8)
STRENGTH = 2.0
ANGLE = torch.arange(8) * math.pi / 4
MEAN = 1.25 * torch.stack([ANGLE.cos(), ANGLE.sin()], 1)
SCALE = torch.tensor([0.08, 0.2]).repeat(4)[:, None].expand(8, 2) * torch.tensor([1.0, 0.6])
WEIGHT = torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 2.0, 1.0]) / 12
RIGHT = MEAN[:, 0] > -0.01


class Known(nn.Module):
    """The mixture's exact denoiser; told a side, that of its half."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.sigma_data = SCHEDULE, 1.0

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        s = self.schedule.sigma(t)[:, None, None]
        variance = SCALE**2 + s**2
        away = x[:, None] - MEAN
        log = WEIGHT.log() - (away**2 / variance + variance.log()).sum(2) / 2
        if condition.shape[1] == 3:  # left, right, and whether it is there
            side = condition[:, :1] * ~RIGHT + condition[:, 1:2] * RIGHT
            log = torch.where((side > 0) | (condition[:, 2:] == 0), log, -torch.inf)
        means = MEAN + SCALE**2 / variance * away
        return (log.softmax(1)[..., None] * means).sum(1)


class Normed(nn.Module):
    """A perceptron with norms, for what a norm's scale does."""

    def __init__(self, condition: int) -> None:
        super().__init__()
        self.sines, self.layers = Sines(32), MLP(34 + condition, 2, (96, 96, 96), norm=True)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = self.layers(torch.cat([x, self.sines(noise), condition], 1))
        return y


def data(seed: int, outliers: float = 0.0, rows: int = ROWS) -> Batch:
    """Draw rows; the side beside them."""
    with seeded(seed):
        which = torch.multinomial(WEIGHT, rows, replacement=True)
        x = MEAN[which] + SCALE[which] * torch.randn(rows, 2)
        x = torch.where(torch.rand(rows, 1) < outliers, 10 * x, x)
    return Batch({"x": x, "side": RIGHT[which].long()})


def teacher(guided: bool = False) -> Diffusion:
    """Return the exact denoiser as a mechanism."""
    return Diffusion(X, [SIDE] if guided else [], Known(), guidance=STRENGTH)  # type: ignore[arg-type]


def student(told: int = 0, normed: bool = False, guided: bool = False, **jumps: Any) -> Consistency:
    """Return a mechanism at random."""
    parents = [SIDE] if guided else []
    width = condition_width(parents, 0) + told
    network = Normed(width) if normed else Timed(2, width, width=96, blocks=3)
    body = Diffusion(X, parents, Denoiser(network, SCHEDULE, "edm", sigma_data=0.9))
    return Consistency(body, **jumps)


def critic(beside: int = 1) -> nn.Module:
    """Return a plain critic."""
    return Beside(nn.Flatten(), MLP(2 + beside, 1, (64, 64)))


def edges(phases: int) -> tuple[float, ...]:
    """Return edges that cut time evenly."""
    return tuple(k / phases for k in range(phases))


def halves(steps: int) -> tuple[float, ...]:
    """Return stops that cut time evenly."""
    return tuple(1 - k / steps for k in range(steps))


def ict(steps: int, **other: Any) -> Any:
    """Return iCT whose grid ends at 160 intervals, as many as short training can use."""
    grid = {"grid": Grid(10, 160, steps)}
    return ICT(steps, **(grid | other))


Make = Callable[[Consistency, int], Any]
FLAT = {"edges": None, "gamma": 0.0}
MODELS: dict[str, tuple[Make, dict[str, Any]]] = {
    "CT": (plain, {}),
    "iCT": (lambda own, n: ict(n), {}),
    "iCT, squared distance": (lambda own, n: ict(n, distance=Squared()), {}),
    "iCT, noise levels alike": (lambda own, n: ict(n, grid=Grid(10, 160, n, noise=None)), {}),
    "iCT, averaged target": (lambda own, n: ict(n, target=own), {}),
    "iCT, grid fixed at 160": (lambda own, n: ict(n, grid=Grid(160, 160)), {}),
    "iCT, not weighted": (lambda own, n: ict(n, weighted=False), {}),
    "CD": (lambda own, n: plain(own, n, teacher()), {}),
    "CTM": (lambda own, n: CTM(own, teacher()), {"told": 1, **FLAT}),
    "SCott": (lambda own, n: SCott(own, teacher(), critic()), {}),
    "SCott, no noise, no critic": (lambda own, n: SCott(own, teacher(), noise=0.0), {}),
    **{
        f"PCM, {m} phases": (lambda own, n: PCM(own, teacher()), {"edges": edges(m)}) for m in STEPS
    },
    "PCM, 4 phases, critic": (lambda own, n: PCM(own, teacher(), critic()), {"edges": edges(4)}),
    "LCM": (
        lambda own, n: LCM(own, teacher(True), strengths=(1.0, 3.0), intervals=64, skip=2),
        {"told": 1, "guided": True, "strength": STRENGTH},
    ),
}
ROBUST = "sLCT"
OUTLIERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "iCT, outliers": (lambda own, n: ict(n), {"normed": True}),
    ROBUST: (lambda own, n: slct(own, n), {"normed": True, "scaleless": True}),
    f"{ROBUST}, pseudo-Huber": (
        lambda own, n: slct(own, n, distance=PseudoHuber()),
        {"normed": True, "scaleless": True},
    ),
    f"{ROBUST}, no early loss": (
        lambda own, n: slct(own, n, early=0.0),
        {"normed": True, "scaleless": True},
    ),
    f"{ROBUST}, noise not coupled": (
        lambda own, n: slct(own, n, couple=False),
        {"normed": True, "scaleless": True},
    ),
    f"{ROBUST}, scaled norms": (lambda own, n: slct(own, n), {"normed": True}),
    f"{ROBUST}, fixed c": (
        lambda own, n: slct(own, n, distance=Cauchy(0.03)),
        {"normed": True, "scaleless": True},
    ),
}


def slct(own: Consistency, steps: int, **other: Any) -> Any:
    """Return sLCT with iCT's grid."""
    return SLCT(own, steps, **({"grid": Grid(10, 160, steps)} | other))


def distance(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """Return the sliced Wasserstein distance of order 2 over 256 directions."""
    angle = torch.linspace(0, math.pi, 257)[:-1]
    way = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ way).sort(0).values - (b @ way).sort(0).values).square().mean().sqrt())


@torch.no_grad()
def drawn(own: Consistency, seed: int, side: Tensor | None = None) -> Tensor:
    """Draw from the jumps alone, without the residual."""
    with seeded(1000 + seed):
        u = draw(own.prior(), DRAWS)
    return own.landed(u, {} if side is None else {"side": side})


def again(own: Consistency, steps: int, gamma: float | None = None) -> Consistency:
    """Return the mechanism with another number of jumps."""
    gamma = own.gamma if gamma is None else gamma
    return Consistency(own.diffusion, halves(steps), own.edges, gamma, own.strength)


def run(task: tuple[int, str, float]) -> list[dict[str, Any]]:
    """Train one model; return its figures, a row a number of jumps."""
    seed, name, seconds = task
    torch.set_num_threads(1)
    make, jumps = {**MODELS, **OUTLIERS}[name]
    flat, rows = name in OUTLIERS, data(seed, 0.01 if name in OUTLIERS else 0.0)
    guided = bool(jumps.get("guided"))
    rows = rows if guided else rows.only(["x"])

    def trained(steps: int) -> Consistency:
        with seeded(seed):
            own = student(**{k: v for k, v in jumps.items() if k != "scaleless"})
            if jumps.get("scaleless"):
                scaleless(own.diffusion.denoiser.network)
            objective = make(own, steps)
        fit(Alone(own), rows, objective, steps=steps, batch_size=BATCH, lr=RATE, ema=0.995,
            seed=seed, progress=False)  # fmt: skip
        return own.eval()

    trained(3)
    began = time.process_time()
    trained(30)
    number = max(int(30 * seconds / (time.process_time() - began)), 30)
    own = trained(number)
    truth, other = (data(2000 + k + 10 * seed, rows=DRAWS).values["x"] for k in (0, 1))
    floor = distance(truth, other)
    row = {"seed": seed, "model": name, "updates": number, "floor": floor}
    if guided:
        return [{**row, "jumps": n, **with_guidance(again(own, n), seed)} for n in STEPS]
    found = []
    if own.edges is not None and len(own.edges) > 1:
        found = [(len(own.edges), own)]
    elif flat or name.startswith(("iCT,", "SCott")):
        found = [(n, again(own, n)) for n in (1, 2)]
    else:
        found = [(n, again(own, n)) for n in STEPS]
    told = [{**row, "jumps": n, "error": distance(drawn(m, seed), truth) / floor} for n, m in found]
    if name == "CTM":
        told += [
            {**row, "model": "CTM, gamma 1", "jumps": n,
             "error": distance(drawn(again(own, n, 1.0), seed), truth) / floor}
            for n in STEPS[1:]
        ]  # fmt: skip
        told[0]["score"] = score_error(own, truth)
    for r, (_, m) in zip(told, found, strict=False):
        r["modes"] = coverage(drawn(m, seed))
    return told


@torch.no_grad()
def score_error(own: Consistency, truth: Tensor) -> float:
    """Return the relative error of the score of jumps of no length, at noise from 0.05 to 5."""
    with seeded(7):
        sigma = torch.exp(torch.empty(len(truth)).uniform_(math.log(0.05), math.log(5.0)))
        noise = torch.randn_like(truth)
    low, high = (SCHEDULE.sigma(torch.tensor(v).double()) ** (1 / 7) for v in (0.0, 1.0))
    t = ((sigma.double() ** (1 / 7) - low) / (high - low)).float()
    x = truth + sigma[:, None] * noise
    exact = (Known()(x, t, torch.ones(len(x), 1)) - x) / sigma[:, None] ** 2
    ours = (own.estimate({}, None, len(x))(x, t, t) - x) / sigma[:, None] ** 2
    weight = sigma[:, None] ** 2
    return float((weight * (ours - exact).square()).sum() / (weight * exact.square()).sum()) ** 0.5


def coverage(x: Tensor) -> float:
    """Return how evenly the modes are met: the smallest ratio of a mode's share to its weight."""
    nearest = ((x[:, None] - MEAN) / SCALE).square().sum(2)
    near = torch.bincount(nearest.argmin(1)[nearest.min(1).values < 9], minlength=8) / len(x)
    return float((near / WEIGHT).min())


def with_guidance(own: Consistency, seed: int) -> dict[str, float]:
    """Return the error to the guided teacher's 50 steps, and how often the side is obeyed."""
    side = (torch.arange(DRAWS) % 2).long()
    road = Teacher(teacher(True), parts=50)
    with seeded(1000 + seed), torch.no_grad():
        start = torch.randn(2, DRAWS, 2) * math.hypot(80.0, 0.9)
    one = torch.ones(DRAWS)
    ends = [road.tell(s, {"side": side}, None).road(s, one, 0 * one) for s in start]  # type: ignore[misc]
    found = drawn(own, seed, side)
    floor = distance(ends[0], ends[1])

    def obeyed(x: Tensor) -> float:
        return float(((x[:, 0] > -0.01) == (side > 0)).float().mean())

    return {
        "error": distance(found, ends[0]) / floor,
        "side obeyed": obeyed(found),
        "side obeyed by the teacher": obeyed(ends[0]),
    }


def claims(record: Record) -> None:
    """Add what the rows say."""

    def error(model: str, jumps: int, what: str = "error") -> list[float]:
        return [
            next(r[what] for r in record.rows
                 if (r["seed"], r["model"], r["jumps"]) == (seed, model, jumps))
            for seed in record.seeds
        ]  # fmt: skip

    def ratio(a: list[float], b: list[float]) -> list[float]:
        return [p / q for p, q in zip(a, b, strict=True)]

    def worst(series: list[list[float]]) -> list[float]:
        """The largest growth from one number of jumps to the next."""
        pairs = [ratio(after, before) for before, after in pairwise(series)]
        return [max(values) for values in zip(*pairs, strict=True)]

    record.claim("iCT's error over CT's, one jump", ratio(error("iCT", 1), error("CT", 1)), 0.5,
                 unit="times")  # fmt: skip
    record.claim("iCT's error with two jumps over one", ratio(error("iCT", 2), error("iCT", 1)),
                 1.0, unit="times")  # fmt: skip
    for name in MODELS:
        if name.startswith("iCT, "):
            record.claim(f"{name}: error over iCT's, one jump",
                         ratio(error(name, 1), error("iCT", 1)), 1.0, False, "times")  # fmt: skip
    record.claim("CTM's error over CD's, one jump", ratio(error("CTM", 1), error("CD", 1)), 1.0,
                 unit="times")  # fmt: skip
    record.claim("CTM: largest growth of the error from 1 to 2, 4, 8 jumps",
                 worst([error("CTM", n) for n in STEPS]), 1.05, unit="times")  # fmt: skip
    phased = [error(f"PCM, {n} phases", n) for n in STEPS]
    record.claim("PCM: largest growth of the error from 1 to 2, 4, 8 phases", worst(phased), 1.05,
                 unit="times")  # fmt: skip
    over = [ratio(p, error("CD", n)) for n, p in zip(STEPS, phased, strict=True)]
    record.claim("PCM's error over CD's at as many jumps, worst of 2, 4, 8",
                 [max(v) for v in zip(*over[1:], strict=True)], 1.0, unit="times")  # fmt: skip
    record.claim("CD: error with 8 jumps over its best (it degrades)",
                 [e / min(b) for e, b in zip(error("CD", 8), zip(*(error("CD", n) for n in STEPS),
                                                                 strict=True), strict=True)],
                 1.0, False, "times")  # fmt: skip
    record.claim("CTM with all noise drawn anew: error with 8 jumps over gamma 0's",
                 ratio(error("CTM, gamma 1", 8), error("CTM", 8)), 1.0, False, "times")  # fmt: skip
    record.claim("CTM's score: relative error to the exact one", error("CTM", 1, "score"), 0.1)
    for n in (1, 2):
        record.claim(f"SCott's error over the deterministic road's, {n} jumps",
                     ratio(error("SCott", n), error("SCott, no noise, no critic", n)), 1.0,
                     unit="times")  # fmt: skip
    gap = [
        a - b
        for a, b in zip(
            error("SCott", 1, "modes"),
            error("SCott, no noise, no critic", 1, "modes"),
            strict=True,
        )
    ]
    record.claim("SCott: rarest mode's share, gain over the deterministic road", gap, 0.0, False)
    lost = [
        b - a
        for a, b in zip(
            error("LCM", 4, "side obeyed"),
            error("LCM", 4, "side obeyed by the teacher"),
            strict=True,
        )
    ]
    record.claim(
        "LCM, 4 jumps: share of draws that obey, less than the guided teacher's", lost, 0.1
    )
    for n in (1, 2):
        record.claim(f"sLCT's error over iCT's among outliers, {n} jumps",
                     ratio(error(ROBUST, n), error("iCT, outliers", n)), 1.0,
                     unit="times")  # fmt: skip
    for name in OUTLIERS:
        if name.startswith(f"{ROBUST},"):
            record.claim(f"{name}: error over sLCT's, one jump",
                         ratio(error(name, 1), error(ROBUST, 1)), 1.0, False, "times")  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="of CPU, a model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    record = Record(
        "consistency-plane",
        "The consistency family on the plane",
        "A mixture of eight Gaussians, its exact denoiser as teacher. `error`: sliced Wasserstein "
        "distance to the data over that of two draws of the data (LCM: to the guided teacher's 50 "
        "steps); 1 is perfect. `modes`: the rarest mode's share over its weight. "
        f"{a.seconds:g} CPU-seconds of training a model, one thread each.",
        f"python benchmarks/proof/consistency_plane.py --seeds {' '.join(map(str, a.seeds))} "
        f"--seconds {a.seconds:g} --jobs {a.jobs}",
        "consistency models on the plane",
        method=63,
        seeds=a.seeds,
        group=["model", "jumps"],
        table=["error", "modes", "side obeyed"],
    )
    tasks = [(s, name, a.seconds) for s in a.seeds for name in (*MODELS, *OUTLIERS)]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        for rows in pool.map(run, tasks):
            record.rows += rows
            print(*(f"{r['model']}, {r['jumps']}: {r['error']:.2f}" for r in rows), flush=True)
    claims(record)
    floors = [r["floor"] for r in record.rows]
    record.notes.append(
        f"Distance of two draws of the data: {statistics.median(floors):.4f}. Published: iCT at "
        "least twice as good as CT; CTM at or below consistency models, and not worse with more "
        "jumps, where consistency models degrade; phased models below LCM at every number of "
        "jumps. Of methods 63, 7, 182, 78, 386 and 77."
    )
    record.save()


if __name__ == "__main__":
    main()
