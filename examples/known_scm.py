"""Perturb a model whose equations are known: set a node, shift it, scale it, replace its law.

A cart of some mass is pushed by a force for three seconds. Newton's law is known; what it leaves
out is noise. At the end one equation is forgotten and learned from rows instead.

python examples/known_scm.py
"""

import argparse
from collections.abc import Callable
from typing import Any

import pandas
import torch
from torch.distributions import Normal

import subjunctive as sj
from subjunctive.mechanisms import Known, LinearGaussian

UNITS = {"mass": "kg", "force": "N", "acceleration": "m/s^2", "distance": "m"}
V = {name: sj.Variable(name, unit=unit) for name, unit in UNITS.items()}  # as they are: scale 1
GRAPH = sj.Graph.parse("mass, force -> acceleration; acceleration -> distance")


def known(node: str, rule: Callable[[dict[str, torch.Tensor]], Any], spread: float) -> Known:
    """Return the mechanism of `rule(parents) + u`, u normal, which knows its own noise."""
    parents = [V[p] for p in GRAPH.parents(node)]
    noise = Normal(torch.tensor(0.0), torch.tensor(spread))
    return Known(V[node], parents, lambda u, pa: rule(pa) + u, lambda x, pa: x - rule(pa), noise)


def main() -> None:
    """Ask what would have been of one cart, what happens to all, and learn what is not known."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=500, help="training steps")
    steps = words.parse_args().steps

    laws = {
        "mass": known("mass", lambda pa: 4.0, 0.5),
        "force": known("force", lambda pa: 12.0, 2.0),
        "acceleration": known("acceleration", lambda pa: pa["force"] / pa["mass"], 0.2),
        "distance": known("distance", lambda pa: pa["acceleration"] * 3.0**2 / 2, 0.5),
    }
    model = sj.SCM(GRAPH, laws)
    ice = known("acceleration", lambda pa: pa["force"] / pa["mass"] - 0.8, 0.2)
    worlds = {
        "as it is": {},
        "hard: force = 20 N": {"force": 20.0},
        "soft: force + 4 N": {"force": sj.Shift(4.0)},
        "soft: half the acceleration": {"acceleration": sj.Scale(0.5)},
        "another law: on ice": {"acceleration": sj.Replace(ice, keep_noise=True)},
    }
    cart = {"mass": 4.0, "force": 12.0, "acceleration": 2.8, "distance": 13.0}
    would = sj.counterfactual(model, cart, list(worlds.values()), seed=0)
    means = [sj.intervene(model, do).sample(10_000, seed=0) for do in worlds.values()]
    frame = pandas.concat([answer.frame() for answer in would]).set_axis(list(worlds))
    frame["mean of all carts"] = [float(world["distance"].mean()) for world in means]
    print(frame.round(2).to_string())

    rows = sj.Batch(model.sample(2000, seed=1))
    learner = LinearGaussian(V["distance"], [V["acceleration"]])
    learned = sj.SCM(GRAPH, {**laws, "distance": learner})
    sj.fit(learned, rows, steps=steps, lr=0.1)
    again = sj.counterfactual(learned, cart, {"force": 20.0})["distance"]
    print(f"\nhad the force been 20 N, with the last law learned: {again.item():.2f} m")


if __name__ == "__main__":
    main()
