"""dowhy.gcm on the tables of `tabular.py`, which runs this with an interpreter that has dowhy.

It knows nothing of `subjunctive`. Additive noise models with its own regressors: least squares, a
polynomial of degree 2, boosted trees, or what it chooses by itself by cross-validation. It has no
log-likelihood of its own, as its noises are drawn from the residuals. It gets one a node: of a
Gaussian or of a kernel density estimate, both of the training residuals, whichever does better on
the held-out rows. It runs on one core in one process, which is faster here than its several.

    PYTHON benchmarks/tabular_rival.py TABLES.npz ANSWERS.npz KIND ... --repeats 3
"""

from __future__ import annotations

import argparse
import json
import resource
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from dowhy import gcm
from dowhy.graph import get_ordered_predecessors, is_root_node
from scipy import stats
from timing import timed

CENTRES = 5000  # residuals of a kernel density estimate, at most
REGRESSORS: dict[str, Callable[[], Any]] = {
    "linear": gcm.ml.create_linear_regressor,
    "polynomials": gcm.ml.create_polynom_regressor,
    "trees": gcm.ml.create_hist_gradient_boost_regressor,
}


def build(edges: list[tuple[str, str]], kind: str, train: pd.DataFrame) -> Any:
    """Return a model with a mechanism at every node, not fitted."""
    model = gcm.InvertibleStructuralCausalModel(nx.DiGraph(edges))
    if kind == "chosen":
        gcm.auto.assign_causal_mechanisms(model, train)
        return model
    for node in model.graph.nodes:
        root = is_root_node(model.graph, node)
        own = gcm.EmpiricalDistribution() if root else gcm.AdditiveNoiseModel(REGRESSORS[kind]())
        model.set_causal_mechanism(node, own)
    return model


def log_likelihood(model: Any, train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Return the mean log-density of the held-out rows, the better of two densities a node."""
    total, draw = 0.0, np.random.default_rng(0)
    for node in model.graph.nodes:
        parents = get_ordered_predecessors(model.graph, node)
        noises = []
        for frame in (train, test):
            x = frame[node].to_numpy()
            if parents:
                mechanism = model.causal_mechanism(node)
                x = mechanism.estimate_noise(x, frame[parents].to_numpy()).reshape(-1)
            noises.append(x)
        seen, new = noises
        some = draw.choice(seen, min(len(seen), CENTRES), replace=False)
        kernels = np.log(np.maximum(stats.gaussian_kde(some)(new), 1e-300)).mean()
        total += max(kernels, stats.norm.logpdf(new, seen.mean(), seen.std()).mean())
    return float(total)


def main() -> None:
    """Measure every kind of mechanism; figures go to standard output, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables")
    parser.add_argument("answers")
    parser.add_argument("kinds", nargs="+", choices=[*REGRESSORS, "chosen"])
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    gcm.config.disable_progress_bars()
    gcm.config.set_default_n_jobs(1)
    given = np.load(a.tables)
    names = [str(n) for n in given["nodes"]]
    edges = [(str(p), str(c)) for p, c in given["edges"]]
    train, test = (pd.DataFrame(given[k], columns=names) for k in ("train", "test"))
    node, value = str(given["node"]), float(given["value"])
    rows, answers = {}, {}
    for kind in a.kinds:
        small = train[:200]
        gcm.fit(build(edges, kind, small), small)  # what is loaded once
        choice = timed(lambda k=kind: build(edges, k, train), a.repeats if kind == "chosen" else 1)
        chosen = choice[2]

        def fitted(kind: str = kind, model: Any = chosen) -> Any:
            model = model if kind == "chosen" else build(edges, kind, train)
            gcm.fit(model, train)
            return model

        wall, cpu, model = timed(fitted, a.repeats)
        if kind == "chosen":
            wall, cpu = wall + choice[0], cpu + choice[1]
        do = {node: lambda _: value}
        asked, spent, found = timed(
            lambda m=model, do=do: gcm.counterfactual_samples(m, do, observed_data=test), a.repeats
        )
        answers[kind] = found[names].to_numpy()
        rows[kind] = {"fit": wall, "fit CPU": cpu, "answer": asked, "answer CPU": spent}
        rows[kind]["log-likelihood"] = log_likelihood(model, train, test)
        rows[kind]["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(a.answers, **answers)
    versions = {name: metadata.version(name) for name in ("dowhy", "scikit-learn", "numpy")}
    print(json.dumps({"rows": rows, "versions": versions}))


if __name__ == "__main__":
    main()
