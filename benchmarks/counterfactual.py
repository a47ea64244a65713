"""The preset `full` of `subjunctive bench counterfactual`, kept as a table.

72 cells of pictures and 45 of tables are trained for the same time, one thread each.

Cells that a folder holds are not done again, so that a run which is stopped goes on. Time is the
processor's here, one thread a cell, so that what else the machine does favours no one.

    python benchmarks/counterfactual.py --jobs 2 --out FOLDER
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from record import Record

from subjunctive.bench import benchmark, compare, read_plan, summary
from subjunctive.bench.digest import TRIVIAL, blocks
from subjunctive.bench.run import Benchmark, collect

SHOWN = (
    *("distance", "distance, changed", "effectiveness", "composition", "reversibility"),
    *("minimality", "realism, Frechet", "identity lost", "exogeneity, R2"),
)
RANKED = ("distance", "effectiveness", "reversibility", "exogeneity, R2")
CHANGES = {"clock": "cpu"}


def rows(done: Benchmark) -> list[dict[str, Any]]:
    """Return a row a data set, model and seed, the trivial answers last."""
    digest = summary(done.scores)
    wide = digest.pivot(
        index=["track", "data", "model", "seed"], columns="metric", values="value"
    ).reset_index()
    cost = done.cells[["data", "model", "seed", "milliseconds", "steps"]]
    wide = wide.merge(cost, how="left", on=["data", "model", "seed"])
    models = [m for t in done.plan.tracks.values() for m in t.models]
    data = [d for t in done.plan.tracks.values() for d in t.data]
    order = {name: i for i, name in enumerate([*models, *TRIVIAL])}
    wide = wide.sort_values(
        ["data", "model", "seed"],
        key=lambda c: c.map({**order, **{d: i for i, d in enumerate(data)}}).fillna(c),
    )
    return [{k: None if v != v else v for k, v in row.items()} for row in wide.to_dict("records")]


def ranked(done: Benchmark) -> list[str]:
    """Return what the data sets of each track say about its models, a line a metric."""
    digest, found = summary(done.scores), []
    for name, track in done.plan.tracks.items():
        for metric in RANKED:
            try:
                said = compare(blocks(digest, name, metric, track.models))
            except ValueError as error:
                found.append(f"{name}, {metric}: not compared, {error}.")
                continue
            order = ", ".join(f"{m} {r:.2f}" for m, r in said.ranks.items())
            found.append(
                f"{name}, mean ranks by {metric} over {said.datasets} data sets: {order}; critical "
                f"difference {said.difference:.2f} (Nemenyi, 5 %), Friedman p = {said.p_value:.3g}."
            )
    return found


def main() -> None:
    """Do what is not done, and keep the table when all is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, a thread each")
    parser.add_argument("--kept", action="store_true", help="do nothing; tell what is there")
    a = parser.parse_args()
    torch.set_num_threads(1)
    plan = read_plan(CHANGES, preset="full")
    done = collect(plan, a.out) if a.kept else benchmark(CHANGES, a.out, preset="full", jobs=a.jobs)
    missing = done.cells[done.cells.status == "missing"]
    if len(missing):
        raise SystemExit(f"{len(missing)} of {len(done.cells)} cells are not done; run again")
    named = done.cells[done.cells.model != ""]
    failed = named[named.status == "failed"]
    budgets = ", ".join(
        f"{track}: {dict(track_plan.budget).get('seconds', plan.seconds):g} s"
        for track, track_plan in plan.tracks.items()
    )
    record = Record(
        "counterfactual",
        "The benchmark: ways to a counterfactual at one budget",
        f"The preset `full`, {plan.hours:.2f} core-hours of training, one thread a cell, choice of "
        f"the learning rate included ({budgets}). Smaller is better in every column: errors of "
        "labels in training standard deviations, pixels from 0 to 1; milliseconds of CPU a "
        f"counterfactual. {datetime.now(UTC):%d %B %Y}.",
        f"python benchmarks/counterfactual.py --jobs {a.jobs} --out FOLDER",
        "the benchmark",
        seeds=list(plan.seeds),
        group=["data", "model"],
        table=[*SHOWN, "milliseconds"],
    )
    record.rows = rows(done)
    record.notes += ranked(done)
    record.notes.append(
        f"Cells that failed: {len(failed)} of {len(named)}"
        + "".join(f"; {r.model} on {r.data}, seed {r.seed}: {r.error}" for r in failed.itertuples())
        + "."
    )
    codes = named.dropna(subset="code").groupby("model", sort=False).code.unique()
    record.notes.append(
        "Code of the cells: " + ", ".join(f"{m} {' '.join(c)}" for m, c in codes.items()) + "."
    )
    record.save()


if __name__ == "__main__":
    main()
