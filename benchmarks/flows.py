"""Tables by normalising flows, beside the packages causalflows and tramdag.

All fit the same 5,000 rows of systems whose answers are known, one thread each, in turn: the
packages in a process of an interpreter of their own (`flows_rival.py`). Ours is what a user types,
`TabularSCM(graph).fit(table)`, one conditional spline flow a node, with its default settings. The
packages' settings are chosen on validation rows, twice: trained for the CPU time of our fit, and,
for the first seed, as their own page says, until nothing is gained or 300 epochs have gone by.

    triangle, simpson             the kind of causalflows (Javaloy et al., 2023)
    bimodal, cubic, logistic      the kind of tramdag (Sick and Durr, 2025, section 5 and 6.1):
                                  a root of two modes; Laplace noise; logistic noise

Asked is do(node = its mean and a deviation) of a node within the graph, of held-out rows: what each
would have been, as mean distance from the truth, and what rows would then be, as the Wasserstein
distance to as many true draws, node by node; both over what lies below, in standard deviations.

References: Causal normalizing flows: from theory to practice (Javaloy, Sanchez-Martin and Valera,
2023), https://arxiv.org/abs/2306.05415; Interpretable Neural Causal Models with TRAM-DAGs (Sick and
Durr, 2025), https://arxiv.org/abs/2503.16206

    python benchmarks/flows.py --rival PYTHON --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from interpreter import ask
from record import Record
from timing import timed

from subjunctive.data.systems import Node, System
from subjunctive.data.tabular import Nonlinear
from subjunctive.estimator import TabularSCM

RIVAL = Path(__file__).with_name("flows_rival.py")
OURS, RIDGE, PACKAGES = "ours", "ours, ridge", ("causalflows", "tramdag")
MODES, EQUAL = ("equal", "documented"), ("equal",)
ROWS, DRAWS = 5000, 20_000


def laplace(n: int) -> Tensor:
    """Return draws of the Laplace law of unit variance."""
    return torch.distributions.Laplace(0.0, 0.5**0.5).sample((n,))


def logistic(n: int) -> Tensor:
    """Return draws of the standard logistic law."""
    return torch.rand(n).logit()


def two_modes(low: tuple[float, float], high: tuple[float, float]) -> Any:
    """Return draws of either of two Gaussians, of these means and deviations."""

    def draws(n: int) -> Tensor:
        first = torch.rand(n) < 0.5
        mean, scale = (torch.where(first, a, b) for a, b in zip(low, high, strict=True))
        return mean + scale * torch.randn(n)

    return draws


def plain(prior: Any = torch.randn) -> Node:
    """Return a root that is its noise."""
    return Node(lambda u, pa: u, prior, lambda x, pa: x)


def shifted(mean: Any, prior: Any = torch.randn, scale: float = 1.0) -> Node:
    """Return x = mean(parents) + scale u."""
    return Node(lambda u, pa: mean(pa) + scale * u, prior, lambda x, pa: (x - mean(pa)) / scale)


SYSTEMS: dict[str, tuple[System | str, str]] = {  # and the node that is set
    "triangle": ("triangle", "x2"),
    "simpson": ("simpson", "x3"),
    "bimodal": (
        System(
            "x1 -> x2; x1, x2 -> x3",
            {
                "x1": plain(two_modes((-2.0, 1.5**0.5), (1.5, 1.0))),
                "x2": shifted(lambda pa: -pa["x1"]),
                "x3": shifted(lambda pa: pa["x1"] + pa["x2"] / 4),
            },
        ),
        "x2",
    ),
    "cubic": (
        System(
            "x1, x2 -> x3; x1, x2 -> x4",
            {
                "x1": plain(laplace),
                "x2": plain(laplace),
                "x3": shifted(lambda pa: pa["x1"] + pa["x2"] ** 3 / 2, laplace),
                "x4": shifted(lambda pa: pa["x1"] ** 2 / 2 - pa["x2"], laplace),
            },
        ),
        "x2",
    ),
    "logistic": (
        System(
            "x1 -> x2; x1, x2 -> x3",
            {
                "x1": plain(two_modes((0.25, 0.1), (0.73, 0.05))),
                "x2": shifted(lambda pa: -0.4 * pa["x1"], logistic, 0.2),
                "x3": shifted(
                    lambda pa: (0.2 * pa["x1"] + 0.75 * torch.atan(5 * (pa["x2"] + 0.12))) / 0.63,
                    logistic,
                    1 / 0.63,
                ),
            },
        ),
        "x2",
    ),
}


def frame(values: Any) -> pandas.DataFrame:
    """Return a DataFrame of a batch's values."""
    return pandas.DataFrame({n: v.double().numpy() for n, v in values.items()})


class Case:
    """A system's rows, the question, and the truth."""

    def __init__(self, name: str, seed: int) -> None:
        system, self.node = SYSTEMS[name]
        self.seed, self.data = seed, Nonlinear(system, ROWS, ROWS // 5, ROWS, seed=seed)
        data = self.data
        self.train, self.valid, self.test = (
            frame(b.values) for b in (data.train, data.valid, data.test)
        )
        self.graph = "; ".join(f"{p} -> {n}" for n in data.graph for p in data.graph.parents(n))
        self.names, self.scale = list(self.test.columns), self.train.std()
        self.value = float(self.train[self.node].mean() + self.scale[self.node])
        do = {self.node: self.value}
        self.truth = frame(data.oracle.predict(data.oracle.abduct(data.test), do))
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            fresh = [frame(data.oracle.predict(data.oracle.noise(DRAWS), do)) for _ in range(2)]
        self.draws, self.other = fresh
        self.below = [n for n in self.names if self.node in data.graph.ancestors(n)]

    def judged(self, answer: pandas.DataFrame, draws: pandas.DataFrame) -> dict[str, float]:
        """Return the errors of counterfactuals and of draws, in standard deviations."""
        names, scale = self.below, self.scale[self.below]
        gap = (answer[names] - self.truth[names]).abs() / scale
        apart = np.abs(np.sort(draws[names], 0) - np.sort(self.draws[names], 0)) / scale.to_numpy()
        return {
            "counterfactual error": float(gap.to_numpy().mean()),
            "intervention error": float(apart.mean()),
        }

    def ours(self, mechanism: str, repeats: int) -> dict[str, Any]:
        """Return our times and errors."""

        def fitted(steps: int = 1000) -> TabularSCM:
            how: dict[str, Any] = {"mechanism": mechanism, "steps": steps, "seed": self.seed}
            return TabularSCM(self.graph, **how).fit(self.train)

        do = {self.node: self.value}
        fitted(2).counterfactual(self.test[:2], do)
        wall, cpu, model = timed(fitted, repeats)
        asked, spent, answer = timed(lambda: model.counterfactual(self.test, do), 3)
        row = {"fit": wall, "fit CPU": cpu, "answer": asked, "answer CPU": spent}
        row |= self.judged(answer, model.sample(DRAWS, do, seed=0))
        return row | {"log-likelihood": model.score(self.test)}

    def theirs(self, python: str, mode: str, seconds: float, epochs: int) -> tuple[Any, Any]:
        """Return the packages' times and errors, and their versions."""
        mean, names = self.train.mean(), self.names
        graph = self.data.graph
        held = {k: ((getattr(self, k) - mean) / self.scale)[names].to_numpy()
                for k in ("train", "valid", "test")}  # fmt: skip
        held |= {"nodes": np.array(names), "node": np.array(self.node)}
        held["value"] = np.array((self.value - mean[self.node]) / self.scale[self.node])
        held |= {"seed": np.array(self.seed), "draws": np.array(DRAWS)}
        held["adjacency"] = np.array([[p in graph.parents(n) for n in names] for p in names])
        options = ("--mode", mode, "--seconds", f"{seconds:.3f}", "--epochs", epochs)
        told, answers = ask(python, RIVAL, held, *options)
        frames = {
            k: pandas.DataFrame(v, columns=names) * self.scale + mean for k, v in answers.items()
        }
        jacobian = float(np.log(self.scale[names]).sum())
        for who, row in told["rows"].items():
            row["log-likelihood"] -= jacobian
            row |= self.judged(frames[f"{who}/counterfactual"], frames[f"{who}/sample"])
        return told["rows"], told["versions"]


def keep(record: Record, seed: int, where: str, who: str, row: dict[str, Any]) -> None:
    """Add a row, in milliseconds."""
    shown = {TIMES.get(k, k): 1e3 * v if k in TIMES else v for k, v in row.items()}
    record.rows.append({"seed": seed, "table": where, "model": who} | shown)


TIMES = {
    "fit": "fit in ms",
    "fit CPU": "fit, CPU ms",
    "answer": "counterfactuals in ms",
    "answer CPU": "counterfactuals, CPU ms",
}


def claims(record: Record, modes: list[str], systems: list[str]) -> None:
    """Add what the rows say: a seed's figure is the geometric mean over the systems."""

    def ratio(seed: int, who: str, key: str) -> float:
        rows = {(r["table"], r["model"]): r for r in record.rows if r["seed"] == seed}
        logs = [np.log(rows[w, OURS][key] / rows[w, who][key]) for w in systems]
        return float(np.exp(np.mean(logs)))

    for mode in modes:
        for package in PACKAGES:
            who = f"{package}, {mode}"
            keys = ["counterfactual error", "intervention error"]
            keys += ["fit, CPU ms"] * (mode == "documented")
            keys += ["counterfactuals, CPU ms"] * (mode == "equal")
            for key in keys:
                seeds = record.seeds if mode == "equal" else record.seeds[:1]
                values = [ratio(s, who, key) for s in seeds]
                what = f"{key}, ours over that of {package}, trained "
                what += "as documented" if mode == "documented" else "as long as ours"
                record.claim(what, values, 1.0, unit="times")


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rival", required=True, help="a Python that has causalflows and tramdag")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=1, help="fits of ours; the median is taken")
    parser.add_argument("--epochs", type=int, default=300, help="at most, as documented")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS], default=[*SYSTEMS])
    parser.add_argument("--dry", action="store_true", help="print, and keep nothing")
    a = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    words = ["python benchmarks/flows.py --rival PYTHON --seeds", *map(str, a.seeds)]
    words += [f"--repeats {a.repeats}"] * (a.repeats != 1)
    words += ["--systems", *a.systems] * (len(a.systems) < len(SYSTEMS))
    words += [f"--epochs {a.epochs}"] * (a.epochs != 300)
    record = Record(
        "flows",
        "Tables by flows, beside causalflows and tramdag",
        f"{ROWS:,} rows to fit and as many held out, one thread, in turn. Errors, in standard "
        "deviations, over what lies below the node that is set: mean distance of counterfactuals "
        "from the truth, and Wasserstein distance of draws from as many true ones. `equal`: the "
        "package was trained for the CPU time of our fit; `documented`: as its page says, until "
        "nothing is gained. Claims are geometric means over the systems.",
        " ".join(words),
        "tabular flows",
        seeds=a.seeds,
        group=["table", "model"],
        table=[
            *("fit, CPU ms", "counterfactuals, CPU ms", "log-likelihood"),
            *("counterfactual error", "intervention error"),
        ],
    )
    for seed in a.seeds:
        for name in a.systems:
            case = Case(name, seed)
            mine = case.ours("flow", a.repeats)
            keep(record, seed, name, OURS, mine)
            keep(record, seed, name, RIDGE, case.ours("ridge", a.repeats))
            for mode in a.modes if seed == a.seeds[0] else EQUAL:
                found, versions = case.theirs(a.rival, mode, mine["fit CPU"], a.epochs)
                for who, row in found.items():
                    keep(record, seed, name, f"{who}, {mode}", row)
            keep(record, seed, name, "oracle", case.judged(case.truth, case.other))
    claims(record, a.modes, a.systems)
    record.notes += [
        "The packages: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ". Their learning "
        "rates (1e-3 or 3e-3; 1e-2 or 3e-2) and tramdag's edges (`ci`, `cs`) are chosen on "
        "validation rows, and only the chosen fit's time is counted; ours has its defaults.",
        "The oracle's intervention error is that of another true sample of this size.",
        "As documented, packages are trained for the first seed alone. `ours, ridge` is no flow "
        "and stands in no claim: additive noise, fitted in closed form.",
    ]
    if a.dry:
        for row in record.rows:
            sys.stdout.write(json.dumps(row) + "\n")
        for claim in record.claims:
            sys.stdout.write(f"{claim['what']}: {claim['values']}\n")
        return
    record.save()


if __name__ == "__main__":
    main()
