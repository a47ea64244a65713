"""causalflows and tramdag on the tables of `flows.py`, which runs this with their interpreter.

It knows nothing of `subjunctive`. Columns come standardised, as both advise. Each package is
trained for a CPU time that is given (`equal`, with the learning rate decayed to nothing, which does
both of them good), and as its own page says, until the held-out rows gain nothing (`documented`).

    causalflows    CausalNSF over the graph, the network of its page, Adam; page: 1e-3, constant
    tramdag        every edge `ci`, or every edge `cs`; Adam; page: 1e-2, plateau and freezing

Settings (the learning rate, the edges) are chosen by the likelihood of held-out validation rows;
only the chosen fit's time is counted.

    PYTHON benchmarks/flows_rival.py TABLES.npz ANSWERS.npz --seconds 6 --mode equal
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import torch
from causalflows.flows import CausalNSF
from timing import timed
from tramdag import CausalFlowDAG, ContinuousNode

WIDTHS = [128, 128, 128]  # the page's own network
BATCH, PATIENCE = 256, 30
Table = dict[str, Any]


def causal(given: Table, rate: float, seconds: float | None, epochs: int) -> Any:
    """Fit a causal spline flow, for some CPU seconds or until it gains nothing."""
    torch.manual_seed(int(given["seed"]))
    train, valid = (torch.tensor(given[k], dtype=torch.float32) for k in ("train", "valid"))
    adjacency = torch.tensor(given["adjacency"]).T | torch.eye(train.shape[1]).bool()
    flow = CausalNSF(train.shape[1], 0, adjacency=adjacency, hidden_features=WIDTHS)
    optimiser = torch.optim.Adam(flow.parameters(), lr=rate)
    best, waited, began = (math.inf, None), 0, time.process_time()
    for epoch in range(epochs):
        for rows in torch.randperm(len(train)).split(BATCH):
            loss = -flow().log_prob(train[rows]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if seconds is not None:
                share = (time.process_time() - began) / seconds
                if share >= 1:
                    return flow
                for group in optimiser.param_groups:
                    group["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        if seconds is None:
            with torch.no_grad():
                found = float(-flow().log_prob(valid).mean())
            waited = 0 if found < best[0] - 1e-4 else waited + 1
            if found < best[0]:
                best = (found, {k: v.clone() for k, v in flow.state_dict().items()})
            if waited >= PATIENCE or epoch == epochs - 1:
                flow.load_state_dict(best[1])
                return flow
    return flow


def tram(given: Table, rate: float, term: str, seconds: float | None, epochs: int) -> Any:
    """Fit a TRAM-DAG, for about some CPU seconds or until its nodes are frozen."""
    torch.manual_seed(int(given["seed"]))
    names, edges = given["names"], given["adjacency"]
    parents = {n: [p for i, p in enumerate(names) if edges[i, j]] for j, n in enumerate(names)}
    spec = {n: ContinuousNode(parents=dict.fromkeys(parents[n], term)) for n in names}
    train, valid = (pd.DataFrame(given[k], columns=names) for k in ("train", "valid"))
    if seconds is None:
        return CausalFlowDAG(spec).fit(
            train, valid, epochs, rate, schedule="plateau", plateau_patience=30,
            freeze_patience=120, verbose=0,
        )  # fmt: skip
    _, each, _ = timed(lambda: CausalFlowDAG(spec).fit(train, valid, 2, verbose=0), 1)
    number = max(int(2 * seconds / each), 1)
    return CausalFlowDAG(spec).fit(train, valid, number, rate, schedule="cosine", verbose=0)


class Fitted:
    """What both packages answer, under one name each."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model, self.names = model, names
        self.tram = isinstance(model, CausalFlowDAG)

    @torch.no_grad()
    def log_prob(self, rows: np.ndarray) -> float:
        """Return the mean log-density."""
        if self.tram:
            return float(self.model.log_prob(pd.DataFrame(rows, columns=self.names)).mean())
        return float(self.model().log_prob(torch.tensor(rows, dtype=torch.float32)).mean())

    @torch.no_grad()
    def counterfactual(self, rows: np.ndarray, node: str, value: float) -> np.ndarray:
        """Return every row under do(node = value)."""
        if self.tram:
            u = self.model.abduct(pd.DataFrame(rows, columns=self.names))
            return self.model.sample(do={node: value}, u=u)[self.names].to_numpy()
        x = torch.tensor(rows, dtype=torch.float32)
        found = self.model().compute_counterfactual(x, self.names.index(node), value)
        return found.numpy()

    @torch.no_grad()
    def sample(self, n: int, node: str, value: float) -> np.ndarray:
        """Return n draws under do(node = value)."""
        torch.manual_seed(0)
        if self.tram:
            return self.model.sample(n, do={node: value})[self.names].to_numpy()
        index = self.names.index(node)
        return self.model().sample_interventional(index, value, torch.Size((n,))).numpy()


def main() -> None:
    """Fit and answer; figures go to standard output, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables")
    parser.add_argument("answers")
    parser.add_argument("--seconds", type=float, default=6.0, help="of CPU, of each equal fit")
    parser.add_argument("--mode", choices=["equal", "documented"], default="equal")
    parser.add_argument("--epochs", type=int, default=300, help="at most, as documented")
    a = parser.parse_args()
    torch.set_num_threads(1)
    held = np.load(a.tables)
    given: Table = {k: held[k] for k in held} | {"names": [str(n) for n in held["nodes"]]}
    names, node, value = given["names"], str(given["node"]), float(given["value"])
    equal = a.mode == "equal"
    seconds, epochs = (a.seconds, 10**9) if equal else (None, a.epochs)
    tries: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "causalflows": [
            (f"rate {r:g}", lambda r=r: causal(given, r, seconds, epochs))
            for r in ((1e-3, 3e-3) if equal else (1e-3,))
        ],
        "tramdag": [
            (f"{t}, rate {r:g}", lambda r=r, t=t: tram(given, r, t, seconds, epochs))
            for t, r in (
                (("ci", 1e-2), ("ci", 3e-2), ("cs", 1e-2))
                if equal
                else (("ci", 1e-2), ("cs", 1e-2))
            )
        ],
    }
    rows, answers = {}, {}
    for who, options in tries.items():
        found = []
        for name, make in options:
            wall, cpu, model = timed(make, 1)
            fitted = Fitted(model, names)
            found.append((fitted.log_prob(given["valid"]), name, wall, cpu, fitted))
        _, name, wall, cpu, fitted = max(found, key=lambda f: f[0])
        test = given["test"]
        fitted.counterfactual(test[:2], node, value)
        asked, spent, answer = timed(lambda f=fitted, x=test: f.counterfactual(x, node, value), 3)
        answers[f"{who}/counterfactual"] = answer
        answers[f"{who}/sample"] = fitted.sample(int(given["draws"]), node, value)
        rows[who] = {"fit": wall, "fit CPU": cpu, "answer": asked, "answer CPU": spent}
        rows[who] |= {"log-likelihood": fitted.log_prob(test), "chosen": name}
    np.savez(a.answers, **answers)
    versions = {name: metadata.version(name) for name in ("causalflows", "tramdag", "zuko")}
    print(json.dumps({"rows": rows, "versions": versions}))


if __name__ == "__main__":
    main()
