"""Which decoder gives sound counterfactuals, and at what cost: every family in the same SCM.

Each family is trained on the same rows for the same CPU time, which holds the choice of the better
of two learning rates on validation rows (`budget.py`), a thread each; the labels' flows are trained
once a seed and shared. Pictures have 256 levels. All are asked the same questions by
`metrics.evaluate`, beside the true model and the trivial answers. Finished parts lie in a folder
(`--keep`); a run that was ended goes on from there, and so does one with a family more.

    python benchmarks/families.py --seconds 120 --seeds 0 1 2 --jobs 2 --keep FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas
import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from bits import nats
from budget import trained
from families_models import (
    DIFFUSION,
    FAMILIES,
    FLOW,
    LADDER,
    LOGISTIC,
    STEPS,
    assemble,
    label_model,
    label_names,
    largest_null,
    load,
    settings,
    trainee,
    values,
)
from record import Record, code_hash, is_stale
from timing import timed

from subjunctive.mechanism import seeded
from subjunctive.metrics.evaluate import evaluate
from subjunctive.metrics.predictors import predictor_for
from subjunctive.query import counterfactual
from subjunctive.variable import Batch

RATES = (1.5e-3, 4e-3)
BATCH, ASKED = 64, 64  # rows of a training step; rows whose counterfactuals are timed
LABELS, FLAT, READER, TRIVIAL = "labels", "labels, no arrows", "reader", "trivial"
TITLES = {"morpho": "MorphoDigits", "pendulum": "Pendulum"}
DOS = {"morpho": ("thickness", "intensity"), "pendulum": ("angle", "light", "length", "position")}
FULL = {True: LABELS, False: FLAT}  # arrows -> what the labels' flows are called


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

    def key(self) -> str:
        """Return a hash of all that the result hangs on, but the code of the package."""
        family = FAMILIES.get(self.name)
        own = {k: v for k, v in asdict(self).items() if k != "keep"}
        told = [str(own | ({} if self.what == "judge" else {"rows": 0})), settings(family)]
        if self.what == "judge":
            before = [self.path("json", "read", READER)]
            if family is not None:
                names = (FULL[family.arrows], family.weights or self.name)
                before += [self.path("json", "train", n) for n in names]
            told += [str([json.loads(p.read_text())[k] for k in ("key", "code")]) for p in before]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def train(task: Task) -> dict[str, Any]:
    """Fit a family's image mechanism, or the labels' flows, for a CPU time."""
    data = load(task.data, task.seed)
    if task.name in FAMILIES:
        build: Callable[[], nn.Module] = lambda: trainee(data, FAMILIES[task.name])  # noqa: E731
        names, batch = data.graph.nodes, BATCH
    else:
        build, names, batch = lambda: label_model(data, task.name == LABELS), label_names(data), 256
    train, valid = (rows.only(names) for rows in (data.train, data.valid))
    before = peak(reset=True)
    done = trained(build, train, valid, task.seconds, RATES, task.seed, batch_size=batch, ema=0.99,
                   precision="bf16")  # fmt: skip
    save_file(done.model.state_dict(), task.path("safetensors"))
    size = sum(p.numel() for p in done.model.parameters())
    about = {"rate": done.rate, "steps": done.steps, "seconds": done.seconds, "parameters": size}
    return about | {"training MB": peak() - before}


def read(task: Task) -> dict[str, Any]:
    """Train the network that reads pictures for the metrics that need one; render the digits."""
    data = load(task.data, task.seed)
    network = predictor_for(data, "image", seed=task.seed)
    save_file(network.state_dict(), task.path("safetensors"))
    return {}


def peak(reset: bool = False) -> float:
    """Return megabytes that this process has had at most, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def restored(task: Task, data: Any) -> tuple[Any, nn.Module]:
    """Return a family's whole model and its part that makes the image, with their weights."""
    family = FAMILIES[task.name]
    labels, own = label_model(data, family.arrows), trainee(data, family)
    labels.load_state_dict(load_file(task.path("safetensors", "train", FULL[family.arrows])))
    weights = load_file(task.path("safetensors", "train", family.weights or task.name))
    own.load_state_dict(weights)
    built = getattr(own, "mechanism", own)
    return assemble(labels.eval(), built.eval()), built


def cost(model: Any, built: nn.Module, network: str, rows: Batch, do: Any) -> dict[str, float]:
    """Return what a counterfactual takes: evaluations, CPU milliseconds a row, peak megabytes."""
    calls: list[int] = []
    hook = built.get_submodule(network).register_forward_hook(lambda *_: calls.append(1))
    counterfactual(model, rows[:2], {n: v[:2] for n, v in do.items()}, seed=0)
    calls.clear()
    before = peak(reset=True)
    answer = counterfactual(model, rows, do, seed=0)
    kept = sum(d.numel() * d.element_size() for d in answer.draws.values()) / 2**20
    found = {"query MB": peak() - before - kept, "evaluations": len(calls)}
    hook.remove()
    _, spent, _ = timed(lambda: counterfactual(model, rows, do, seed=0), 3)
    return found | {"ms": 1e3 * spent / len(rows)}


@torch.no_grad()
def likelihood(built: Any, data: Any) -> float | None:
    """Return the bits of a number of a held-out picture, at most; None without a bound."""
    if not hasattr(built, "prior"):
        return None
    total, own = [], built.variable
    with seeded(0):
        for i in torch.arange(len(data.test)).split(250):
            inner = values(data.test[i], data.variables)
            found = nats(built, inner["image"], {p.name: inner[p.name] for p in built.parents})
            total.append(found)
    if any(t is None for t in total):
        return None
    return -float(torch.cat(total).mean()) / (own.width * torch.log(torch.tensor(2.0)).item())


def judge(task: Task) -> dict[str, Any]:
    """Ask a family everything, or the trivial answers."""
    data = load(task.data, task.seed)
    reader = predictor_for(data, "image", seed=task.seed, steps=1)
    reader.load_state_dict(load_file(task.path("safetensors", "read", READER)))
    found, models = {}, {}
    if task.name != TRIVIAL:
        model, built = restored(task, data)
        first = data.test[torch.arange(ASKED)].only(model.graph.nodes)
        do = {n: data.train.values[n][:ASKED] for n in label_names(data)[:1]}
        found = cost(model, built, FAMILIES[task.name].network, first, do)
        some = data.test[torch.arange(task.rows)].only(model.graph.nodes)
        found["null, largest"] = max(largest_null(model, some[i]) for i in
                                     torch.arange(task.rows).split(ASKED))  # fmt: skip
        inner = getattr(built, "mechanism", None)
        if inner is not None:  # without the grid that hides small errors
            own = assemble(model.ancestral(label_names(data)), inner)
            found["null, no grid"] = largest_null(own, some[:ASKED])
        found["bits"] = likelihood(built, data)
        models = {task.name: model}
    frame = evaluate(models, data, rows=task.rows, few=min(task.rows, 100), seed=task.seed,
                     predictor=reader, baselines=not models, progress=False)  # fmt: skip
    frame.to_csv(task.path("csv"), index=False)
    kept = [task.name] if models else list(dict.fromkeys(frame.method))
    rows = {n: compact(frame[frame.method == n], data) for n in kept}
    return {"cost": found, "rows": rows}


def compact(frame: pandas.DataFrame, data: Any) -> dict[str, float]:
    """Return an evaluation in few numbers: means over interventions, and over labels.

    `do(n)` is the error of all labels as read from the picture, in training standard deviations;
    `do(n), own` that of the node itself, in its unit; both of targets within the training range.
    """
    inner, found = frame[frame.support != "outside"], {}

    def mean(part: pandas.DataFrame, column: str = "value") -> float | None:
        return float(part[column].mean()) if part[column].notna().any() else None

    scale = {n: data.variables[n].scale for n in label_names(data)}
    for place, part in (("", inner), (", outside", frame[frame.support == "outside"])):
        read = part[part.metric == "effectiveness"]
        read = read.assign(value=read.value / read.node.map(scale))
        for n in scale:
            found[f"do({n}){place}"] = mean(read[read.intervention == f"do({n})"])
        found[f"changed{place}"] = mean(part[part.metric == "distance, changed"])
    for n in scale:
        own = inner[(inner.metric == "effectiveness") & (inner.node == n)]
        found[f"do({n}), own"] = mean(own[own.intervention == f"do({n})"])
    pictures = inner[inner.node == "image"]
    for metric in (
        *("distance", "distance, far", "composition", "composition, redrawn", "reversibility"),
        *("minimality", "realism, Frechet", "realism, kernel", "agreement"),
        *("agreement, own samples", "exogeneity, residual share"),
    ):
        found[metric] = mean(pictures[pictures.metric == metric])
    for metric in ("ratio to copy", "ratio to copy and rescale"):
        found[metric] = mean(pictures[pictures.metric == metric])
    for metric in ("identity", "identity gap"):
        found[metric] = mean(inner[inner.metric == metric])
    parts = inner[inner.node.str.startswith("image")]
    for name, start in (("R2", "exogeneity, R2"), ("misfit", "exogeneity, misfit")):
        some = parts[parts.metric.str.startswith(start)]
        worst = some.loc[[(some.value - some.floor).idxmax()]] if len(some) else some
        found[name], found[f"{name}, null"] = mean(worst), mean(worst, "floor")
    return {k: float(f"{v:.4g}") for k, v in found.items() if v is not None}


WORK = {"train": train, "read": read, "judge": judge}


def work(task: Task) -> dict[str, Any]:
    """Do a task in this process; also say which modules it ran."""
    torch.set_num_threads(1)
    found = WORK[task.what](task)
    return found | {"modules": sorted(m for m in sys.modules if m.startswith("subjunctive"))}


def done(tasks: list[Task], jobs: int, hashes: dict[str, str]) -> dict[Task, dict[str, Any]]:
    """Do what is not kept already, and return all results; each is kept once it is there."""
    from tqdm import tqdm

    found: dict[Task, dict[str, Any]] = {}
    for task in tasks:
        path = task.path("json")
        old = json.loads(path.read_text()) if path.exists() else {}
        if old.get("key") == task.key() and not is_stale(old, hashes):
            found[task] = old
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {pool.submit(work, t): t for t in tasks if t not in found}
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting)):
                task, new = waiting[future], future.result()
                new["modules"] = [m for m in new["modules"] if m in hashes]
                new |= {"key": task.key(), "code": code_hash(new["modules"], hashes)}
                task.path("json").write_text(json.dumps(new))
                found[task] = new
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def claims(record: Record) -> None:
    """Add what the rows say: null interventions, exogeneity, bits."""

    def column(key: str, name: str) -> list[float]:
        rows = {r["seed"]: r for r in record.rows if r["family"] == name}
        return [rows[s][key] for s in record.seeds if rows[s].get(key) is not None]

    for name, family in FAMILIES.items():
        for key, what in (("null, largest", ""), ("null, no grid", ", without its grid")):
            if values := column(key, name):
                said = f"null intervention: largest change of a pixel in [0, 1], {name}{what}"
                record.claim(said, values, family.null)
    for name in FAMILIES:
        pairs = zip(column("R2", name), column("R2, null", name), strict=True)
        if values := [r2 - null for r2, null in pairs]:
            record.claim(f"R2 of a label from abducted noise less its null, {name}", values)
    for name in FAMILIES:
        if values := column("bits", name):
            record.claim(f"bits of a number of held-out pictures, {name}", values)
    pairs = zip(column("bits", LOGISTIC), column("bits", LADDER), strict=True)
    record.claim(f"bits, {LOGISTIC} less {LADDER}", [a - b for a, b in pairs], 0.0, at_most=False)


def table(name: str, a: argparse.Namespace, keep: str) -> Record:
    """Do all work about one data set and return its record."""
    plain = {"rows": 300}
    given = [f"--{k} {getattr(a, k)}" for k, v in plain.items() if getattr(a, k) != v]
    record = Record(
        f"families-{name}",
        f"Families of image mechanisms: {TITLES[name]}",
        f"Every family in the same SCM, 32 x 32, 256 levels, {a.seconds:g} CPU-seconds of training "
        f"each, choice of the rate included; {a.rows} held-out rows, targets from the training "
        "marginals. do(n): error of all labels, read from the picture, in training standard "
        "deviations. changed: mean absolute error (of 1) to the truth where the picture truly "
        "changes. composition, reversibility: pixels. identity gap: accuracy of a classifier above "
        "its own on the truth. R2: how well the image's noise tells a label, the worst part and "
        "label, and its null. share: of the picture's variance that hangs on the pixels' noise. "
        "evaluations of the decoder, CPU ms and peak MB of a counterfactual.",
        f"python benchmarks/families.py --data {name} --seconds {a.seconds:g} --seeds "
        + " ".join([*map(str, a.seeds), f"--jobs {a.jobs}", *given]),
        f"families, {TITLES[name]}",
        seeds=a.seeds,
        group=["family"],
        table=[*(f"do({n})" for n in DOS[name]), "changed", "composition", "reversibility",
               *(["identity gap"] if name == "morpho" else []), "Frechet", "R2", "R2, null",
               "share", "bits", "seconds", "parameters", "evaluations", "ms", "MB"],
    )  # fmt: skip
    hashes = record._hashes

    def tasks(what: str, *names: str) -> list[Task]:
        return [Task(what, name, s, n, a.seconds, a.rows, keep) for s in a.seeds for n in names]

    done(tasks("read", READER), a.jobs, hashes)  # first: it renders what others read
    own = [n for n, f in FAMILIES.items() if not f.weights]
    fitted = done(tasks("train", LABELS, FLAT, *own), a.jobs, hashes)
    judged = done(tasks("judge", *FAMILIES, TRIVIAL), a.jobs, hashes)
    fits = {(t.seed, t.name): found for t, found in fitted.items()}
    short = {"realism, Frechet": "Frechet", "exogeneity, residual share": "share", "query MB": "MB"}
    for task in tasks("judge", *FAMILIES, TRIVIAL):
        family = FAMILIES.get(task.name)
        fit = fits[task.seed, family.weights or task.name] if family else {}
        costs = {k: fit[k] for k in ("seconds", "parameters", "steps", "rate", "training MB")
                 if k in fit} | judged[task]["cost"]  # fmt: skip
        costs = {k: v if v is None else float(f"{v:.4g}") for k, v in costs.items()}
        if family:
            costs["parameters"] = fit["parameters"]
        for who, cells in judged[task]["rows"].items():
            row = {"seed": task.seed, "family": who} | cells | costs
            record.rows.append({short.get(k, k): v for k, v in row.items()})
    claims(record)
    record.notes += [
        f"The two samplers, and the autoencoder without an SCM, take the weights of {DIFFUSION}, "
        f"of whose training rows 95 % are at the last time, for one evaluation; {STEPS} steps "
        "each, DDIM's inversion implicit. Without an SCM the labels have no arrows between them.",
        f"Learning rate: the better of {RATES[0]:g} and {RATES[1]:g} on validation rows, by each "
        "family's own loss; the labels' flows are trained apart, for as long, and shared. "
        f"{FLOW}: `null` is that of bytes, `without its grid` that of the flow.",
        "Trivial answers have true labels; their `do` is what reading the wrong picture costs.",
    ]
    return record


def main() -> None:
    """Run all data sets and keep the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120, help="CPU time of each training")
    parser.add_argument("--rows", type=int, default=300, help="held-out rows that are judged")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, a thread each")
    parser.add_argument("--keep", help="folder of finished parts, to go on from")
    a = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as place:
        keep = Path(a.keep or place)
        keep.mkdir(parents=True, exist_ok=True)
        for name in a.data:
            table(name, a, str(keep.resolve())).save()


if __name__ == "__main__":
    main()
