"""Which decoder gives sound counterfactuals, and at what cost: every family in the same SCM.

Each family is trained on the same rows for the same CPU time, which holds the choice of the better
of two learning rates on validation rows (`budget.py`), a thread each; the labels' flows are trained
once a seed, for a quarter of it, and shared. Pictures have 256 levels. All are asked the same
questions by `metrics.evaluate`, beside the true model and the trivial answers. Every part of the
work is kept once it is done, in a folder (`--keep`): a run that was ended goes on from there, and
so does one with a family more. A part that fails is named in the record, and tried again next time.

    python benchmarks/families.py --seconds 25 --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import bits
import budget
import families_ask
from families_ask import compact, cost, largest_null, likelihood, peak
from families_models import (
    DIFFAE,
    DPM,
    FAMILIES,
    FLOW,
    HIERARCHY,
    LOGISTIC,
    STEPS,
    assemble,
    label_model,
    label_names,
    load,
    settings,
    trainee,
)
from record import Record, code_hash, is_stale

from subjunctive.metrics.evaluate import evaluate
from subjunctive.metrics.predictors import predictor_for

RATES = (1.5e-3, 4e-3)
BATCH, ASKED = 64, 32  # rows of a training step; rows whose counterfactuals are timed
LABELS, FLAT, READER, TRIVIAL = "labels", "labels, no arrows", "reader", "trivial"
TITLES = {"morpho": "MorphoDigits", "pendulum": "Pendulum"}
FULL = {True: LABELS, False: FLAT}  # arrows -> what the labels' flows are called
TABLE = [
    *("effectiveness", "distance", "changed", "composition", "redrawn", "reversibility"),
    *("minimality", "identity gap", "Frechet", "R2", "R2, null", "misfit", "share", "agreement"),
    *("bits", "null", "seconds", "parameters", "evaluations", "ms", "MB"),
]
ABOUT = (
    "Every family in the same SCM, 32 x 32, 256 levels, {seconds:g} CPU-seconds of training each, "
    "choice of the rate included; {rows} held-out rows, targets from the training marginals, means "
    "over interventions. effectiveness: error of all labels, read from the picture, in training "
    "standard deviations. distance: mean absolute error (of 1) of pixels to the truth; changed: "
    "where the picture truly changes. composition, redrawn (pixels' noise drawn anew), "
    "reversibility: pixels. identity gap: accuracy of a classifier above its own on the truth. R2: "
    "how well the image's noise tells a label, the worst part and label, beside its null; misfit: "
    "of that noise to its prior, the worst part. share: of the picture's variance that hangs on "
    "the pixels' noise. bits: of a number of held-out pictures, at most. null: largest change of a "
    "pixel (of 1) by doing nothing, parents as seen. seconds: of training. evaluations of the "
    "decoder, CPU ms and peak MB of a counterfactual."
)


@dataclass(frozen=True)
class Task:
    """One part of the work, done in a process of its own: `what` to do about `name`."""

    what: str
    data: str
    seed: int
    name: str
    seconds: float
    rows: int
    keep: str

    def path(self, ending: str, what: str = "", name: str = "") -> Path:
        """Return the file in which something is kept."""
        words = (what or self.what, self.data, self.seed, name or self.name)
        plain = "-".join(str(w).lower().replace(", ", "-").replace(" ", "-") for w in words)
        return Path(self.keep, f"{plain}.{ending}")

    def needs(self) -> list[Path]:
        """Return the results that this one stands on."""
        if self.what != "judge":
            return []
        names, family = [], FAMILIES.get(self.name)
        if family is not None:
            names = [FULL[family.arrows], family.weights or self.name]
        paths = [self.path("json", "train", n) for n in names]
        return [self.path("json", "read", READER), *paths]

    def key(self) -> str:
        """Return a hash of all that the result hangs on, but the code of the package."""
        own = asdict(self) | {"keep": "", "rows": self.rows if self.what == "judge" else 0}
        told = [str(own), settings(FAMILIES.get(self.name))]
        told += [inspect.getsource(part) for part in SOURCES[self.what]]
        for path in self.needs():
            before = json.loads(path.read_text())
            told.append(before["key"] + before["code"])
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def train(task: Task) -> dict[str, Any]:
    """Fit a family's image mechanism, or the labels' flows, for a CPU time."""
    data, family = load(task.data, task.seed), FAMILIES.get(task.name)

    def build() -> nn.Module:
        return label_model(data, task.name == LABELS) if family is None else trainee(data, family)

    names = label_names(data) if family is None else data.graph.nodes
    share, batch = (0.25, 256) if family is None else (1.0, BATCH)
    rows, valid = data.train.only(names), data.valid.only(names)
    before = peak(reset=True)
    done = budget.trained(build, rows, valid, share * task.seconds, RATES, task.seed,
                          batch_size=batch, ema=0.99, precision="bf16")  # fmt: skip
    found = {"rate": done.rate, "steps": done.steps, "seconds": done.seconds, "tried": done.tried}
    found |= {"parameters": sum(p.numel() for p in done.model.parameters())}
    save_file(done.model.state_dict(), task.path("safetensors"))
    return found | {"training MB": peak() - before}


def read(task: Task) -> dict[str, Any]:
    """Train the network that reads pictures for the metrics that need one; render the digits."""
    network = predictor_for(load(task.data, task.seed), "image", seed=task.seed)
    save_file(network.state_dict(), task.path("safetensors"))
    return {}


def restored(task: Task, data: Any) -> tuple[Any, Any]:
    """Return a family's whole model and its part that makes the image, with their weights."""
    family = FAMILIES[task.name]
    labels, own = label_model(data, family.arrows), trainee(data, family)
    labels.load_state_dict(load_file(task.path("safetensors", "train", FULL[family.arrows])))
    own.load_state_dict(load_file(task.path("safetensors", "train", family.weights or task.name)))
    built = getattr(own, "mechanism", own).eval()
    return assemble(labels.eval(), built), built


def judge(task: Task) -> dict[str, Any]:
    """Ask a family everything, or the trivial answers; return rows, a method each."""
    data, models = load(task.data, task.seed), {}
    costs: dict[str, float | None] = {}
    reader = predictor_for(data, "image", seed=task.seed, steps=1)
    reader.load_state_dict(load_file(task.path("safetensors", "read", READER)))
    if task.name != TRIVIAL:
        model, built = restored(task, data)
        models[task.name] = model
        rows = data.test[torch.arange(ASKED)].only(model.graph.nodes)
        do = {n: data.train.values[n][:ASKED] for n in label_names(data)[:1]}
        costs |= cost(model, built, FAMILIES[task.name].network, rows, do)
        costs |= largest_null(model, built, rows) | {"bits": likelihood(built, data)}
    frame = evaluate(models, data, rows=task.rows, few=min(task.rows, 40), seed=task.seed,
                     predictor=reader, baselines=not models, progress=False)  # fmt: skip
    frame.to_csv(task.path("csv"), index=False)
    kept = list(models) or list(dict.fromkeys(frame.method))
    return {"rows": {n: compact(frame[frame.method == n], data) | costs for n in kept}}


WORK: dict[str, Callable[[Task], dict[str, Any]]] = {"train": train, "read": read, "judge": judge}
SOURCES: dict[str, list[Any]] = {
    "train": [train, budget],
    "read": [read],
    "judge": [judge, assemble, families_ask, bits],
}


def work(task: Task) -> dict[str, Any]:
    """Do a task in this process; also say which modules it ran."""
    torch.set_num_threads(1)
    found = WORK[task.what](task)
    return found | {"modules": sorted(m for m in sys.modules if m.startswith("subjunctive"))}


def done(
    tasks: list[Task], jobs: int, hashes: dict[str, str], lost: dict[Task, str]
) -> dict[Task, dict[str, Any]]:
    """Do what is not kept already, and return all results; each is kept once it is there.

    What cannot be done is added to `lost`, and so is what stands on it.
    """
    from tqdm import tqdm

    found: dict[Task, dict[str, Any]] = {}
    gone = {t.path("json") for t in lost}
    for task in tasks:
        path = task.path("json")
        if gone & {*task.needs()}:
            lost[task] = "what it stands on is not there"
            continue
        old = json.loads(path.read_text()) if path.exists() else {}
        if old.get("key") == task.key() and not is_stale(old, hashes):
            found[task] = old
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {pool.submit(work, t): t for t in tasks if t not in found and t not in lost}
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting)):
                task = waiting[future]
                try:
                    new = future.result()
                except Exception as error:
                    traceback.print_exception(error)
                    lost[task] = f"{type(error).__name__}: {error}"
                    continue
                new["modules"] = [m for m in new["modules"] if m in hashes]
                new |= {"key": task.key(), "code": code_hash(new["modules"], hashes)}
                part = task.path("part")
                part.write_text(json.dumps(new))
                part.replace(task.path("json"))
                found[task] = new
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def fill(record: Record, a: argparse.Namespace, keep: str) -> None:
    """Do all work and add its rows to the record."""
    hashes, lost = record._hashes, dict[Task, str]()

    def tasks(what: str, *names: str) -> list[Task]:
        cells = [(data, seed) for data in a.data for seed in a.seeds]
        return [Task(what, d, s, n, a.seconds, a.rows, keep) for d, s in cells for n in names]

    own = [n for n, f in FAMILIES.items() if not f.weights]
    done(tasks("read", READER), a.jobs, hashes, lost)  # first: it renders what others read
    fitted = done(tasks("train", LABELS, FLAT, *own), a.jobs, hashes, lost)
    judged = done(tasks("judge", *FAMILIES, TRIVIAL), a.jobs, hashes, lost)
    fits = {(t.data, t.seed, t.name): found for t, found in fitted.items()}
    wanted = ("seconds", "parameters", "steps", "rate", "training MB")
    for task in tasks("judge", *FAMILIES, TRIVIAL):
        if task not in judged:
            continue
        family = FAMILIES.get(task.name)
        fit = fits[task.data, task.seed, family.weights or task.name] if family else {}
        for who, cells in judged[task]["rows"].items():
            cells = cells | {k: fit[k] for k in wanted if k in fit}
            cells = {k: rounded(v) for k, v in cells.items()}
            record.rows.append(
                {"seed": task.seed, "data": TITLES[task.data], "family": who} | cells
            )
    record.notes += [
        f"Not there: {TITLES[t.data]}, seed {t.seed}, {t.name}, {t.what}: {why}"
        for t, why in lost.items()
    ]


def rounded(value: Any) -> Any:
    """Return four digits of a number that is no count."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def claims(record: Record) -> None:
    """Add what the rows say: null interventions, exogeneity, bits."""
    rows = {(r["data"], r["seed"], r["family"]): r for r in record.rows}
    cells = list(dict.fromkeys((r["data"], r["seed"]) for r in record.rows))

    def worst(what: Callable[[dict[str, Any]], float | None], *names: str) -> list[float]:
        """Return the largest value over families and data sets, seed by seed."""
        found = []
        for seed in record.seeds:
            own = [what(rows[d, s, n]) for d, s in cells for n in names
                   if s == seed and (d, s, n) in rows]  # fmt: skip
            found += [max(v for v in own if v is not None)] if {*own} - {None} else []
        return found

    def add(what: str, values: list[float], *bound: Any, **how: Any) -> None:
        if values:
            record.claim(what, values, *bound, **how)

    for who, bound in (("VAEs and HVAE", 1e-6), (FLOW, 1e-5), (DPM, 1e-4)):
        names = [n for n, f in FAMILIES.items() if f.null == bound]
        add(f"doing nothing, largest change of a pixel (of 1), parents as seen, {who}",
            worst(lambda r: r["null"], *names), bound)  # fmt: skip
    add(
        "the same of the whole model, labels back by their flows, VAEs and HVAE",
        worst(lambda r: r["null, whole"], *[n for n, f in FAMILIES.items() if f.null == 1e-6]),
    )
    for data in dict.fromkeys(d for d, _ in cells):
        for rival, least in ((LOGISTIC, 0.0), (FLOW, None)):
            pairs = [[rows.get((data, s, n)) for n in (rival, HIERARCHY)] for s in record.seeds]
            gaps = [one["bits"] - two["bits"] for one, two in pairs if one and two]
            add(f"{data}: bits of a number, {rival} less {HIERARCHY}", gaps, least, at_most=False)
    for name in FAMILIES:
        add(
            f"R2 of a label from abducted noise less its null, {name}",
            worst(lambda r: r["R2"] - r["R2, null"] if "R2" in r else None, name),
        )


def main() -> None:
    """Run all data sets and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=25, help="CPU time of each training")
    parser.add_argument("--rows", type=int, default=150, help="held-out rows that are judged")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, a thread each")
    parser.add_argument("--keep", type=Path, help="folder of finished parts, to go on from",
                        default=Path(tempfile.gettempdir(), "subjunctive-families"))  # fmt: skip
    a = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [f"--{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in vars(a).items()
             if k in ("data", "rows") and v != parser.get_default(k)]  # fmt: skip
    record = Record(
        "families",
        "Families of image mechanisms",
        ABOUT.format(seconds=a.seconds, rows=a.rows),
        " ".join([f"python benchmarks/families.py --seconds {a.seconds:g} --seeds",
                  *map(str, a.seeds), f"--jobs {a.jobs}", *words]),
        "families",
        seeds=a.seeds,
        group=["data", "family"],
        table=TABLE,
    )  # fmt: skip
    a.keep.mkdir(parents=True, exist_ok=True)
    fill(record, a, str(a.keep.resolve()))
    claims(record)
    record.notes += [
        f"DDIM inversion takes the weights of {DPM}, {STEPS} steps each, the first solved step by "
        f"step; DiffAE, no SCM those of {DIFFAE}, and its labels have no arrows between them. "
        "DiffuseVAE: first stage and refiner together. Interpolant: from a regression on labels.",
        f"Learning rate: the better of {RATES[0]:g} and {RATES[1]:g} on validation rows, by each "
        "family's own loss. Trivial answers have true labels; their effectiveness is what reading "
        "the wrong picture costs.",
    ]
    record.save()


if __name__ == "__main__":
    main()
