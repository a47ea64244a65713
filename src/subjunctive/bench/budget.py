"""Training for a time, the same for every model, the settings the best of a grid.

The pace of each setting is taken from a few steps. Each then gets an equal part of a share of the
time; the one that does best on validation rows by its objective's own loss is kept, and a fresh
model is trained with it for what is left. The number of steps is settled before, so that the
learning rate ends its decay when the time ends; a run that is much slower than its pace is cut.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from subjunctive.mechanism import evaluating, seeded
from subjunctive.train import Diverged, Fit, ModelLoss, Moment, Objective, fit
from subjunctive.variable import Batch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
FIRST, TIMED = 3, 9  # steps that only a new process needs, and steps whose time is taken
GRACE = 1.1  # of the time, after which a run is cut


@dataclass(frozen=True)
class Tuned:
    """A model that was trained for a time.

    Args:
        model: with averaged weights, in evaluation mode.
        chosen: the setting of the grid. steps: with it. cut: whether time ended before them.
        seconds, cpu: of the wall's clock and of the processor, the choice included.
        tried: one dictionary a setting, with its `valid` loss after its part of the time.
    """

    model: nn.Module
    chosen: dict[str, Any]
    steps: int
    cut: bool
    seconds: float
    cpu: float
    tried: list[dict[str, Any]]


def settings(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid.

    >>> settings({"lr": [1, 2], "clip": [None]})
    [{'lr': 1, 'clip': None}, {'lr': 2, 'clip': None}]
    """
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def tuned(
    build: Callable[[], tuple[nn.Module, Objective | None]],
    train: Batch,
    valid: Batch,
    seconds: float,
    grid: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
    share: float = 0.2,
    clock: str = "wall",
    how: Mapping[str, Any] | None = None,
) -> Tuned:
    """Train for some seconds, with the best setting of a grid.

    Args:
        build: returns a fresh model, whose weights `seed` draws, and its objective or None.
        train, valid: rows; the choice is made on `valid`.
        seconds: all trials included.
        grid: argument of `fit` -> values to choose from.
        seed: of weights, batches and draws.
        share: of the time that goes into the choice, where there is one.
        clock: `wall`, or `cpu` on a machine that others use, too.
        how: further arguments of `fit`.

    Raises:
        Diverged: if the model does, whatever the setting.

    Example:
        >>> from subjunctive import Linear, SCM
        >>> from subjunctive.mechanisms import LinearGaussian
        >>> data = Linear("t", train=64, valid=32)
        >>> def build():
        ...     return SCM(data.graph, {"t": LinearGaussian(data.variables["t"])}), None
        >>> done = tuned(build, data.train, data.valid, 0.3, {"lr": [1e-3, 1e-1]})
        >>> sorted(t["lr"] for t in done.tried), done.chosen["lr"] in (1e-3, 1e-1)
        ([0.001, 0.1], True)
    """
    now = CLOCKS[clock]
    began, spent = now(), (time.perf_counter(), time.process_time())
    fixed = {"progress": False, "seed": seed, **(how or {})}
    options = settings(grid)

    def run(option: Mapping[str, Any], steps: int, until: float = math.inf) -> Run:
        start, ticks = now(), [0.0]

        def late(moment: Moment) -> bool:
            ticks.append(now())
            return ticks[-1] > until

        with seeded(seed):
            model, objective = build()
        given: dict[str, Any] = fixed | dict(option)
        done = fit(model, train, objective, steps=steps, callbacks=[late], **given)
        return Run(model, objective or ModelLoss(), done, ticks[1:], now() - start)

    first = [run(option, FIRST + TIMED) for option in options]
    tried = []
    if len(options) > 1:
        part = share * seconds / len(options)
        for i, option in enumerate(options):
            try:
                trial = run(option, first[i].within(part), now() + GRACE * part)
                loss = held_out(trial.model, trial.objective, valid, seed)
            except Diverged:
                loss = math.inf
            else:
                first[i] = trial if trial.done.steps > FIRST + TIMED else first[i]
            tried.append({**option, "valid": loss})
    best = min(range(len(tried)), key=lambda i: tried[i]["valid"]) if tried else 0
    left = seconds - (now() - began)
    last = run(options[best], first[best].within(left), began + GRACE * seconds)
    wall, cpu = time.perf_counter() - spent[0], time.process_time() - spent[1]
    cut = last.done.reason != "steps"
    return Tuned(last.model, options[best], last.done.steps, cut, wall, cpu, tried)


@dataclass
class Run:
    """A run of `fit`, when each step was done, and what all took."""

    model: nn.Module
    objective: Objective
    done: Fit
    ticks: list[float]
    seconds: float

    def within(self, seconds: float) -> int:
        """Return how many steps fit into some seconds, what is not steps taken away."""
        pace = (self.ticks[-1] - self.ticks[FIRST - 1]) / (len(self.ticks) - FIRST)
        beside = self.seconds - pace * len(self.ticks)
        return max(int((seconds - beside) / pace), 1)


@torch.no_grad()
def held_out(
    model: nn.Module, objective: Objective, rows: Batch, seed: int, size: int = 250
) -> float:
    """Return the first player's mean loss of rows, all terms together; infinite if not finite."""
    total, player = 0.0, objective.players(model)[0].name
    device = next(model.parameters()).device
    with seeded(seed), evaluating(model):
        for index in torch.arange(len(rows)).split(size):
            terms = objective.loss(model, rows[index].to(device), player, 0)
            total += sum(float(term.sum()) for term in terms.values())
    return total / len(rows) if math.isfinite(total) else math.inf
