"""What the loading of data costs of a training step, at the size of the demonstration.

The demonstration's model trains on its digits with its settings (`subjunctive.demo`), once from
memory and once from files, a `.npy` a node, that `Stream` reads and mixes; a flow of every node
trains on a table of the same number of rows. Within `fit`, the time until the next batch is there
is taken apart from the rest of the step. A share is the sum over all steps of a run, the first few
left out; what a pass costs once (its order, a block of a file) is in it as often as it comes.

    python benchmarks/loading.py --steps 60 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from record import Record

from subjunctive.data.morpho import MorphoDigits
from subjunctive.data.stream import Stream
from subjunctive.data.tabular import Linear
from subjunctive.demo import BATCH, CODE, GUIDANCE, LR, WIDTH
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import ConditionalFlow
from subjunctive.models import CausalDiffAE
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.training.feed import Feed

COLUMNS, TABLE_BATCH = 10, 256
FIRST = 5  # steps that are not counted: what is loaded and compiled once


@contextmanager
def watched() -> Iterator[list[float]]:
    """Fill a list with the seconds that each batch took to come, while `fit` runs."""
    original, waits = Feed.batches, list[float]()

    def batches(self: Feed, *args: Any) -> Iterator[Any]:
        stream = original(self, *args)
        while True:
            began = time.perf_counter()
            item = next(stream)
            waits.append(time.perf_counter() - began)
            yield item

    Feed.batches = batches  # type: ignore[method-assign]
    try:
        yield waits
    finally:
        Feed.batches = original  # type: ignore[method-assign]


def share(model: nn.Module, data: Any, steps: int, seed: int, **how: Any) -> dict[str, float]:
    """Train for some steps; return milliseconds of a step and of its loading, and their ratio."""
    ends: list[float] = []
    with watched() as waits:
        fit(
            model,
            data,
            steps=steps + FIRST,
            seed=seed,
            progress=False,
            callbacks=[lambda _: ends.append(time.perf_counter())],
            **how,
        )
    step = (ends[-1] - ends[FIRST - 1]) / steps
    load = sum(waits[FIRST : FIRST + steps]) / steps
    return {"step in ms": 1e3 * step, "loading in ms": 1e3 * load, "share in %": 100 * load / step}


def one(seed: int, data: MorphoDigits, place: Path, steps: int) -> list[dict[str, Any]]:
    """Measure all sources once."""

    def digits() -> SCM:
        with seeded(seed):
            return CausalDiffAE(
                data.graph, data.variables, code=CODE, width=WIDTH, guidance=GUIDANCE
            )

    how: dict[str, Any] = {"lr": LR, "precision": "bf16"}
    files = Stream(place, list(data.variables.values()), batch_size=BATCH, seed=seed)
    table = Linear(nodes=COLUMNS, train=len(data.train), seed=seed)
    with seeded(seed):
        parents = {n: [table.variables[p] for p in table.graph.parents(n)] for n in table.graph}
        flows = SCM(
            table.graph, {n: ConditionalFlow(v, parents[n]) for n, v in table.variables.items()}
        )
    rows = {
        "digits in memory": share(digits(), data.train, steps, seed, batch_size=BATCH, **how),
        "digits in files": share(digits(), files, steps, seed, **how),
        f"a table of {COLUMNS} columns": share(
            flows, table.train, steps, seed, batch_size=TABLE_BATCH
        ),
    }
    return [{"seed": seed, "data": name} | row for name, row in rows.items()]


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    data = MorphoDigits(progress=False)
    record = Record(
        "loading",
        "Loading of data within a training step",
        f"The demonstration's model and settings (batch {BATCH}, width {WIDTH}, bfloat16) on "
        f"{len(data.train):,} digits, from memory and from files that are mixed as they are read; "
        f"flows on a table of as many rows, batch {TABLE_BATCH}. Wall time, sums over the steps of "
        "a run.",
        f"python benchmarks/loading.py --steps {a.steps} --seeds " + " ".join(map(str, a.seeds)),
        "loading",
        seeds=a.seeds,
        group=["data"],
        table=["step in ms", "loading in ms", "share in %"],
    )
    with tempfile.TemporaryDirectory() as place:
        for name in data.graph.nodes:
            np.save(Path(place, f"{name}.npy"), data.train.values[name].numpy())
        for seed in a.seeds:
            record.rows += one(seed, data, Path(place), a.steps)
    for name in dict.fromkeys(row["data"] for row in record.rows):
        shares = [row["share in %"] for row in record.rows if row["data"] == name]
        record.claim(f"share of a training step, {name}", shares, 10, unit="%")
    record.notes.append(f"{torch.get_num_threads()} threads.")
    record.save()


if __name__ == "__main__":
    main()
