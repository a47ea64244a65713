"""Laws of a model, for whatever answers `noise`, `abduct` and `predict`.

    composition      M_x = m implies Y_x = Y_(x, m): doing what happens anyway changes nothing
    effectiveness    X_x = x
    reversibility    what is done and undone, by the same noise, leaves everything as it was

Reference: Causality (Pearl, 2009), section 7.3; Axiomatizing Causal Reasoning (Halpern, 2000),
https://arxiv.org/abs/1106.5277
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from subjunctive.checks.law import (
    LawBroken,
    NotApplicable,
    abduction_needed,
    clone,
    demand,
    gap,
    same_law,
    shapes,
)
from subjunctive.mechanism import Noise, parts
from subjunctive.query import counterfactual
from subjunctive.variable import Batch

MOST = 32
EXACT = 1e-5
Values = dict[str, Tensor]


def _world(model: Any, batch: Batch) -> tuple[Noise, Values]:
    """Return noise for as many rows as the batch has, and what it gives."""
    noise = model.noise(len(batch))
    return noise, model.predict(clone(noise))


def _moved(values: Values, name: str) -> Tensor:
    """Return other values for a node, each row's the one of the row before."""
    return values[name].roll(1, 0)


def _stays(model: Any, a: Values, b: Values, name: str, why: str, within: float = EXACT) -> None:
    demand(gap(a[name], b[name], model.variables[name]), within, f"{name!r} {why}")


def noise_has_one_structure(model: Any, batch: Batch) -> None:
    """Abducted noise has the parts and shapes of the model's own."""
    abduction_needed(model)
    fresh, found = shapes(model.noise(len(batch))), shapes(model.abduct(batch))
    if fresh != found:
        raise LawBroken(f"noise() draws {fresh}, abduct gives {found}")


def composition(model: Any, batch: Batch) -> None:
    """Doing nothing returns the factual, in every draw, on what was seen."""
    tolerance = abduction_needed(model)
    answer = counterfactual(model, batch, {}, draws=2)
    for name, value in batch.values.items():
        seen = batch.mask(name)
        for draw in answer.draws[name][:, seen]:
            size = gap(draw, value[seen], model.variables[name])
            demand(size, tolerance, f"{name!r} after doing nothing")


def effectiveness(model: Any, batch: Batch) -> None:
    """A node that is set takes its value."""
    noise, values = _world(model, batch)
    for name in model.graph.nodes:
        target = _moved(values, name)
        done = model.predict(clone(noise), {name: target})
        _stays(model, done, {name: target}, name, "from what it was set to")


def reversibility(model: Any, batch: Batch) -> None:
    """What is done and undone leaves everything as it was.

    By the same noise always; under abduction from the counterfactual where abduction is exact and
    draws nothing.
    """
    noise, values = _world(model, batch)
    invertible = _invertible(model, values)
    for name in model.graph.nodes:
        done = model.predict(noise, {name: _moved(values, name)})
        again = model.predict(noise)
        for other in model.graph.nodes:
            _stays(model, again, values, other, f"after doing and undoing {name!r}")
        if invertible:
            back = model.predict(model.abduct(Batch(done)), {name: values[name]})
            within = 10 * abduction_needed(model)
            for other in model.graph.nodes:
                why = f"after undoing the counterfactual of {name!r}"
                _stays(model, back, values, other, why, within)


def _invertible(model: Any, values: Values) -> bool:
    """Whether abduction is exact and draws nothing."""
    try:
        abduction_needed(model, exact=True)
    except NotApplicable:
        return False
    first, again = (dict(parts(model.abduct(Batch(dict(values))))) for _ in range(2))
    return all(torch.equal(u, again[name]) for name, u in first.items())


def non_descendants_stay(model: Any, batch: Batch) -> None:
    """An intervention moves no node that is not below it."""
    noise, values = _world(model, batch)
    for name in model.graph.nodes:
        done = model.predict(clone(noise), {name: _moved(values, name)})
        below = {name, *model.graph.descendants(name)}
        for other in model.graph.nodes:
            if other not in below:
                _stays(model, done, values, other, f"is not below {name!r}, but its value")


def doing_what_was_changes_nothing(model: Any, batch: Batch) -> None:
    """Setting a node to the value that it has leaves all others as they are."""
    noise, values = _world(model, batch)
    for name in model.graph.nodes:
        done = model.predict(clone(noise), {name: values[name]})
        for other in model.graph.nodes:
            if other != name:
                why = f"after setting {name!r} to its own value"
                _stays(model, done, values, other, why, 10 * EXACT)


def effects_travel(model: Any, batch: Batch) -> None:
    """On a path a -> m -> y, y hears of do(a) what m passes on: Y_a = Y_(a, m) for m = M_a."""
    graph = model.graph
    paths = ((a, m, y) for a in graph.nodes for m in graph.children(a) for y in graph.children(m))
    picked = list(islice(paths, MOST))
    if not picked:
        raise NotApplicable("its graph has no path of two edges")
    noise, values = _world(model, batch)
    for a, m, y in picked:
        do = {a: _moved(values, a)}
        done = model.predict(clone(noise), do)
        held = model.predict(clone(noise), do | {m: done[m]})
        why = f"under do({a!r}), with {m!r} held where that puts it and without,"
        _stays(model, held, done, y, why, 10 * EXACT)


def _alone(model: Any, noise: Noise, values: Values, name: str, moved: set[str]) -> Tensor:
    """Return a node's value with all others set, some of them elsewhere."""
    do = {n: _moved(values, n) if n in moved else values[n] for n in model.graph.nodes if n != name}
    found: Tensor = model.predict(clone(noise), do)[name]
    return found


def edges_act(model: Any, batch: Batch) -> None:
    """Every edge of the graph carries an effect, with all other nodes held."""
    noise, values = _world(model, batch)
    edges = [(p, n) for n in model.graph.nodes for p in model.graph.parents(n)]
    if not edges:
        raise NotApplicable("its graph has no edge")
    for parent, name in edges:
        still = _alone(model, noise, values, name, set())
        size = gap(_alone(model, noise, values, name, {parent}), still, model.variables[name])
        if not size > EXACT:
            raise LawBroken(
                f"{parent!r} -> {name!r} carries nothing: other values of {parent!r}, all else "
                f"held, move {name!r} by {size:.3g} in {len(batch)} rows"
            )


def nothing_acts_off_the_edges(model: Any, batch: Batch) -> None:
    """With its parents held, no other node moves a node: the Jacobian is zero off the parents."""
    noise, values = _world(model, batch)
    for name in model.graph.nodes:
        others = set(model.graph.nodes) - {name, *model.graph.parents(name)}
        if others:
            still = _alone(model, noise, values, name, set())
            moved = _alone(model, noise, values, name, others)
            size = gap(moved, still, model.variables[name])
            demand(size, EXACT, f"{name!r}, when what is not its parent moves,")


def rungs_agree(model: Any, batch: Batch) -> None:
    """Counterfactuals of a model's own samples follow its interventional distribution."""
    abduction_needed(model, exact=True)
    _, values = _world(model, batch)
    fresh = model.noise(len(batch))
    causes = [n for n in model.graph.order if model.graph.children(n)][:4]
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in causes:
        do = {name: values[name][:1]}
        would = model.predict(model.abduct(Batch(dict(values))), do)
        does = model.predict(clone(fresh), do)
        pairs |= {
            f"{n} under do({name})": (would[n], does[n]) for n in model.graph.nodes if n != name
        }
    same_law(pairs)


def smaller_questions_agree(model: Any, batch: Batch) -> None:
    """A node's answer needs its ancestors alone: the model of these gives the same."""
    if not hasattr(model, "ancestral"):
        raise NotApplicable("it has no smaller model to ask")
    noise, values = _world(model, batch)
    for name in model.graph.nodes[:MOST]:
        small = model.ancestral([name])
        root = small.graph.order[0]
        for do in ({}, {root: _moved(values, root)}):
            own = {n: clone(noise[n]) for n in small.graph.nodes}
            a, b = small.predict(own, do), model.predict(clone(noise), do)
            _stays(model, a, b, name, "asked of its ancestors alone")


STRUCTURE_LAWS = (
    noise_has_one_structure,
    composition,
    effectiveness,
    reversibility,
    non_descendants_stay,
    doing_what_was_changes_nothing,
    effects_travel,
    edges_act,
    nothing_acts_off_the_edges,
    rungs_agree,
    smaller_questions_agree,
)
