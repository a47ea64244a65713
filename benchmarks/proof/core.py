"""The core's exactness and cost: closed forms, round trips, the import and the command line.

python benchmarks/proof/core.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.tabular import Linear
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import ConditionalFlow, LinearGaussian
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.training.process import few_threads
from subjunctive.variable import Variable


def linear(seed: int) -> float:
    """Return the largest error of an SCM's counterfactuals against the closed form, relative."""
    data = Linear(nodes=8, degree=3, train=100, valid=10, test=1000, seed=seed)
    graph = data.graph
    plain = {n: Variable(n) for n in graph.nodes}
    place = {n: i for i, n in enumerate(graph.nodes)}
    mechanisms = {}
    for n in graph.nodes:
        parents = graph.parents(n)
        weights = [float(data.weights[place[p], place[n]]) for p in parents]
        mechanisms[n] = LinearGaussian.of(
            plain[n],
            [plain[p] for p in parents],
            weights,
            float(data.bias[place[n]]),
            float(data.scale[place[n]]),
        )
    model = SCM(graph, mechanisms)
    seen = data.test.only(graph.nodes)
    do = {graph.order[0]: 1.5}
    answer, truth = counterfactual(model, seen, do), data.counterfactual(seen.values, do)
    errors = [(answer[n] - truth[n]).abs() / (1 + truth[n].abs()) for n in graph.nodes]
    return float(torch.stack(errors).max())


def flow(seed: int) -> float:
    """Return the largest round-trip error of a spline flow on its own samples, float32."""
    with seeded(seed), torch.no_grad():
        parent = Variable("t")
        mechanism = ConditionalFlow(Variable("x"), [parent])
        parents = {"t": torch.randn(10_000)}
        x = mechanism(draw(mechanism.prior(), 10_000), parents)
        again = mechanism(mechanism.abduct(x, parents), parents)
    return float(((again - x).abs() / (1 + x.abs())).max())


def seconds(code: str) -> float:
    """Return the wall time of a fresh interpreter that runs the code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = parser.parse_args()
    record = Record(
        "core",
        "The core: exactness and cost",
        "Random linear-Gaussian SCMs over eight nodes against their closed form; a spline flow's "
        "round trip on 10,000 of its own samples; fresh interpreters for the import and `--help`.",
        "python benchmarks/proof/core.py --seeds " + " ".join(map(str, a.seeds)),
        "core",
        seeds=a.seeds,
    )
    record.claim("linear-Gaussian counterfactuals, largest relative error",
                 [linear(s) for s in a.seeds], 1e-5)  # fmt: skip
    record.claim("flow round trip in float32, largest relative error",
                 [flow(s) for s in a.seeds], 1e-5)  # fmt: skip
    seconds("import torch, subjunctive")
    pairs = [(seconds("import torch"), seconds("import torch, subjunctive")) for _ in range(7)]
    record.claim("`import subjunctive` over torch's own", [b - t for t, b in pairs], 0.3, unit="s")
    core = "import torch, subjunctive as s; s.Graph, s.SCM, s.counterfactual, s.fit"
    record.claim("the same with graph, SCM, queries and fit in use",
                 [seconds(core) - t for t, _ in pairs[:3]], unit="s")  # fmt: skip
    shown = (
        "import sys; sys.argv = ['subjunctive', '--help']; from subjunctive.cli import app; app()"
    )
    record.claim("`subjunctive --help`", [seconds(shown) for _ in range(7)], 0.5, unit="s")
    with few_threads():
        record.claim(
            "torch threads over cores", [torch.get_num_threads() / len(os.sched_getaffinity(0))], 1
        )
    record.save()


if __name__ == "__main__":
    main()
