r"""DEAR: a cause moves its effect in the picture, with few labels, and the arrows are learned.

**Interventions.** Pendulums of 24 x 24 grey pixels; every model sees all 5,000 pictures and the
labels of some of them. DEAR is given an order of the four causes and learns which of its six edges
stand; its rival is the same GAN, trained by the same game, whose prior has no arrow between causes.
Held-out pictures, without their labels, are asked what do(angle) and do(light) would have made of
them. What follows is the shadow: its position and length are measured on the pixels of the answer
(`effect`) and read from the values that the answer gives them (`said`). The share of a true
movement that an answer tells is

    told  =  1 - sum (answer - truth)^2 / sum (factual - truth)^2        1: as the truth; 0: unmoved

A generator whose causes are independent may still draw a shadow from angle and light, as it sees
no other in the data; then length and position move nothing. `cause` is the share told of what was
set itself, over all four causes.

**Edges.** The structural Hamming distance of the learned graph to the true one, four edges: DEAR's
gates, which have the order, and, without an order, `LearnedGraph` under a VAE of the same pictures.
Chance tosses a coin for every pair and, without an order, for the arrow's direction; the
independent prior has no edge. The shadow's length and position are almost functions of angle and
light, and hardly one order explains them better than another; so `LearnedGraph` is also asked for
the graphs of random nonlinear SCMs of five nodes, standardised, with and without their order.

    python benchmarks/proof/dear.py --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.pendulum import Pendulum
from subjunctive.data.random_scm import RandomSCM
from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import GAN, VAE, LinearGaussian, decided
from subjunctive.models import DEAR
from subjunctive.nn import MLP, Beside
from subjunctive.objectives import Adversarial, LearnedGraph, candidates
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

LABELS = ("angle", "light", "length", "position")
ALL = Graph.parse(
    "angle -> light; angle, light -> length; angle, light, length -> position; "
    "angle, light, length, position -> image"
)
NONE = Graph.parse("angle, light, length, position -> image")
OURS, FREE, ALONE = "DEAR", "independent prior", "DEAR without its critic"
FOUND = "no order given"  # on the pendulum
RANDOM = {"random SCM, order given": True, "random SCM, no order given": False}
SHARES = (0.01, 0.03, 0.1, 1.0)
LATENT, HIDDEN = 4, (256, 256)


# Models -------------------------------------------------------------------------------------------


def reader(x: Variable, variables: dict[str, Variable]) -> Regression:
    """Return the encoder of labels, the same in every model."""
    look = nn.Sequential(nn.Flatten(), MLP(x.width, 64, HIDDEN))
    return Regression(x, [variables[n] for n in LABELS], look, 64)


def dear(data: Pendulum, graph: Graph, a: argparse.Namespace) -> tuple[SCM, Adversarial]:
    """Return a model over a super-graph and the game that trains it, of perceptrons."""
    x, causes = data.variables["image"], [data.variables[n] for n in LABELS]
    generator = MLP(LATENT + 4, x.width, HIDDEN)
    encoder = Beside(nn.Flatten(), MLP(x.width + 4, 2 * LATENT, HIDDEN))
    picture = GAN(x, causes, LATENT, generator, encoder, residual=False, cycle=a.cycle)
    eye = reader(x, data.variables)
    model = DEAR(graph, data.variables, mechanisms={"image": picture}, encoder=eye)
    critic = Beside(nn.Flatten(), MLP(x.width + 4 + LATENT, 1, HIDDEN))
    return model, Adversarial("image", critic, game=a.game, price=a.price)


def searched(data: Pendulum, a: argparse.Namespace) -> tuple[SCM, LearnedGraph]:
    """Return a VAE of the pictures beneath causes without arrows, and the search for them."""
    x, causes = data.variables["image"], [data.variables[n] for n in LABELS]
    encoder = Beside(nn.Flatten(), MLP(x.width + 4, 2 * LATENT, HIDDEN))
    picture = VAE(x, causes, LATENT, encoder=encoder, decoder=MLP(LATENT + 4, x.width, HIDDEN))
    own = {v.name: LinearGaussian(v) for v in causes}
    model = SCM(NONE, {**own, "image": picture}, reader(x, data.variables))
    return model, LearnedGraph(candidates(causes), price=a.price, rest=a.steps // 4)


def rows(data: Pendulum, share: float, seed: int) -> Batch:
    """Return all pictures, and the labels of a share of them; nested, the fewer in the more."""
    with seeded(1000 + seed):  # not the numbers that the data were drawn from
        seen = torch.rand(len(data.train)).argsort().argsort() < share * len(data.train)
    values = {n: torch.where(seen, data.train.values[n], torch.nan) for n in LABELS}
    return Batch(values | {"image": data.train.values["image"]}, dict.fromkeys(LABELS, seen))


# Answers ------------------------------------------------------------------------------------------


def answers(model: SCM, data: Pendulum, batch: Batch, seed: int) -> dict[str, float]:
    """Return what a model tells of the movements that follow do(angle) and do(light)."""
    generator = torch.Generator().manual_seed(seed)
    noise, before = data.oracle.abduct(batch), data.measure(batch.values["image"])
    told: dict[str, float] = {}
    said: list[float] = []
    for do in LABELS:
        pick = torch.randint(len(data.train), (len(batch),), generator=generator)
        target = {do: data.train.values[do][pick]}
        want = data.measure(data.oracle.predict(noise, target)["image"])
        answer = counterfactual(model, batch.only(["image"]), target, seed=seed)
        got = data.measure(answer["image"].clamp(0, 1))
        for node in LABELS:
            moves = node in data.graph.children(do)
            if moves or node == do:
                told[f"{node}, do({do})"] = explained(got[node], want[node], before[node])
            if moves:
                said.append(explained(answer[node], want[node], before[node]))
    own = [told[f"{n}, do({n})"] for n in LABELS]
    effects = [v for k, v in told.items() if v not in own]
    return told | {"effect": sum(effects) / 4, "said": sum(said) / 4, "cause": sum(own) / 4}


def explained(got: Tensor, want: Tensor, before: Tensor) -> float:
    """Return the share of a true movement that an answer tells."""
    return float(1 - (got - want).square().sum() / (before - want).square().sum())


def apart(found: Graph, truth: Graph, names: Sequence[str] = LABELS) -> int:
    """Return the structural Hamming distance: pairs of nodes that differ."""
    a, b = (g.subgraph(names).adjacency for g in (found, truth))
    return int(((a != b) | (a.T != b.T))[np.triu_indices(len(names), 1)].sum())


def random_graph(seed: int, name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Learn the graph of a random SCM; return its distance, the empty graph's and chance's."""
    began = time.process_time()
    data = RandomSCM(nodes=5, degree=2, train=2000, seed=20 + seed)
    nodes, edges = data.graph.nodes, len(data.graph.edges)
    variables = [data.variables[n] for n in nodes]
    order = data.graph.order if RANDOM[name] else None
    with seeded(seed):
        rule = LearnedGraph(candidates(variables, order=order), price=0.1, rest=a.steps // 4)
        model = SCM(Graph(nodes), {v.name: LinearGaussian(v) for v in variables})
    fit(model, data.train.only(nodes), rule, steps=a.steps, batch_size=128, lr=5e-3, ema=None,
        seed=seed, progress=False)  # fmt: skip
    pairs = len(nodes) * (len(nodes) - 1) / 2
    chance = pairs / 2 + (0 if RANDOM[name] else edges / 4)
    row = {"seed": seed, "model": name, "labels": 1.0, "empty": edges, "chance": chance}
    row |= {"SHD": apart(rule.graph(), data.graph, nodes), "graph": str(rule.graph())}
    return row | {"seconds": time.process_time() - began}


def run(task: tuple[int, str, float, argparse.Namespace]) -> dict[str, Any]:
    """Train one model and ask it."""
    seed, name, share, a = task
    torch.set_num_threads(1)
    if name in RANDOM:
        return random_graph(seed, name, a)
    data = Pendulum(size=24, colour=False, seed=seed)
    given = argparse.Namespace(**vars(a) | ({"game": 0.0} if name == ALONE else {}))
    began = time.process_time()
    with seeded(seed):
        rule: Any
        if name == FOUND:
            model, rule = searched(data, given)
        else:
            model, rule = dear(data, NONE if name == FREE else ALL, given)
    fit(model, rows(data, share, seed), rule, steps=a.steps, batch_size=a.batch, lr=a.lr,
        ema=0.99, seed=seed, progress=False)  # fmt: skip
    model = rule.scm(model) if name == FOUND else decided(model)
    held = data.test if a.split == "test" else data.valid
    batch = held[torch.arange(min(a.rows, len(held)))]
    row = {"seed": seed, "model": name, "labels": share, "SHD": apart(model.graph, data.graph)}
    row |= {"graph": str(model.graph.subgraph(LABELS)), **answers(model, data, batch, seed)}
    return row | {"seconds": time.process_time() - began}


# Claims -------------------------------------------------------------------------------------------


def claims(record: Record) -> None:
    """Add what the rows say."""

    def cell(seed: int, model: str, share: float, column: str) -> float:
        (row,) = [r for r in record.rows
                  if (r["seed"], r["model"], r["labels"]) == (seed, model, share)]  # fmt: skip
        return float(row[column])

    def every(model: str, share: float, column: str) -> list[float]:
        return [cell(s, model, share, column) for s in record.seeds]

    what = "share of the shadow's true movement that is told"
    for share in (1.0, 0.1):
        text = f"{share:.0%} of labels, "
        ours, free = (every(name, share, "effect") for name in (OURS, FREE))
        record.claim(f"{what}, {text}{OURS}", ours, 0.8, at_most=False)
        record.claim(f"{what}, {text}{FREE}", free)
        missed = [(1 - b) / (1 - a) for a, b in zip(ours, free, strict=True)]
        record.claim(f"what the {FREE} leaves untold over what {OURS} does, {text}".strip(", "),
                     missed, 3.0, at_most=False, unit="times")  # fmt: skip
        for name, bound in ((OURS, 0.8), (FREE, 0.1)):
            said = every(name, share, "said")
            record.claim(f"the same in the answer's own values, {text}{name}", said, bound,
                         at_most=name == FREE)  # fmt: skip
    record.claim(f"{what}, 10% of labels, {ALONE}", every(ALONE, 0.1, "effect"))
    for share in SHARES[:-1]:
        part = [cell(s, OURS, share, "effect") / cell(s, OURS, 1.0, "effect") for s in record.seeds]
        bound = 0.8 if share == 0.1 else None
        text = f"of what all labels tell, {share:.0%} of them suffice for"
        record.claim(text, part, bound, at_most=False)
    for name, model, chance in (("order given", OURS, 3), (FOUND, FOUND, 4)):
        for share in (1.0, 0.1):
            text = f"edges that differ from the truth (chance {chance}, no edge 4), "
            found = every(model, share, "SHD")
            record.claim(f"{text}{name}, {share:.0%} of labels", found, chance / 2)
    for name in RANDOM:
        trios = [[cell(s, name, 1.0, k) for k in ("SHD", "empty", "chance")] for s in record.seeds]
        text = f"{name}: edges that differ over those of the empty graph or chance, the fewer"
        record.claim(text, [row[0] / min(row[1:]) for row in trios], 0.5)


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, a thread each")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--game", type=float, default=1.0, help="weight of the critic's word")
    parser.add_argument("--cycle", type=float, default=1.0, help="weight of x -> z -> x")
    parser.add_argument("--price", type=float, default=0.2, help="of an edge, nats a row")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--only", nargs=2, help="model and share: print one row, keep nothing")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if a.only:
        for seed in a.seeds:
            print(run((seed, a.only[0], float(a.only[1]), a)), flush=True)
        return
    said = [f"--{k} {v}" for k, v in vars(a).items()
            if k != "seeds" and v != parser.get_default(k)]  # fmt: skip
    record = Record(
        "dear",
        "DEAR: a cause moves its effect, from few labels",
        f"24x24 grey pendulums, {a.rows} held-out pictures without labels. `effect` is the share "
        "of the shadow's true movement, in position and length under do(angle) and do(light), "
        "that an answer's pixels tell: 1 is the truth, 0 an unmoved shadow; `said` is that of the "
        "answer's own values, `cause` that of what was set. SHD counts pairs of causes whose edge "
        "differs from the truth's.",
        " ".join(["python benchmarks/proof/dear.py --seeds", *map(str, a.seeds), *said]),
        "DEAR",
        method=304,
        seeds=a.seeds,
        group=["model", "labels"],
        table=["effect", "said", "cause", "SHD", "seconds"],
    )
    cells = [(OURS, s) for s in SHARES] + [(FREE, 0.1), (FREE, 1.0), (ALONE, 0.1)]
    cells += [(FOUND, 0.1), (FOUND, 1.0), *((name, 1.0) for name in RANDOM)]
    tasks = [(seed, name, share, a) for seed in a.seeds for name, share in cells]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        record.rows += pool.map(run, tasks)
    claims(record)
    record.notes.append(
        "Settings were tried on validation rows of seeds 0 and 1, a run or two of each: prices of "
        "an edge of 0.05 and 0.2, 300 to 1,500 steps; no learning rate was. The bounds were set "
        "after that. Random SCMs are those of seeds 20 and up; seeds 0, 1, 10 and 11 were looked "
        "at before, with a price of 0.1. Without "
        "an order the pendulum's graph was not found in any setting tried: Gaussian or flow "
        "mechanisms, prices of 0.1 to 0.4, 800 to 1,200 steps. With Gaussian mechanisms an order "
        "from position to light has the better likelihood (10.2 nats a row against 10.4), and "
        "with flows all orders tie (10.03 to 10.10)."
    )
    record.save()


if __name__ == "__main__":
    main()
