"""Training for a CPU time: the same for every model, the learning rate the better of a grid.

The pace is measured on a few steps. Each rate gets a share of the time; the one whose model does
best on held-out rows by its own loss is kept, and a fresh model is trained at it for what is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from subjunctive.mechanism import evaluating, seeded
from subjunctive.train import Diverged, fit
from subjunctive.variable import Batch

SHARE = 0.08  # of the time, for each rate that is tried
FIRST, TIMED = 3, 12  # steps that only a new process needs, and steps whose time is taken


@dataclass(frozen=True)
class Trained:
    """A model that was trained for a CPU time.

    Args:
        model: with averaged weights, in evaluation mode.
        rate: of learning. steps: at this rate. seconds: of the processor, trials included.
        tried: rate -> held-out loss after its share of the time.
    """

    model: Any
    rate: float
    steps: int
    seconds: float
    tried: dict[str, float]


@torch.no_grad()
def held_out(model: Any, rows: Batch, size: int = 250) -> float:
    """Return the mean loss of rows, all terms together, from draws that are always the same."""
    total = 0.0
    with seeded(0), evaluating(model):
        for index in torch.arange(len(rows)).split(size):
            total += sum(float(term.sum()) for term in model.loss(rows[index]).values())
    return total / len(rows) if math.isfinite(total) else math.inf


def trained(
    build: Callable[[], nn.Module],
    train: Batch,
    valid: Batch,
    seconds: float,
    rates: Sequence[float],
    seed: int,
    share: float = SHARE,
    **how: Any,
) -> Trained:
    """Train for some CPU seconds, at the better of the rates.

    Args:
        build: returns a fresh model, of weights that `seed` draws.
        train, valid: rows.
        seconds: of the processor, all trials included.
        rates: of learning, to choose from.
        seed: of weights, batches and draws.
        share: of the time that each rate is given in the choice.
        how: further arguments of `fit`.
    """
    began = time.process_time()

    def run(steps: int, rate: float) -> Any:
        with seeded(seed):
            model = build()
        fit(model, train, steps=max(steps, 1), lr=rate, seed=seed, progress=False, **how)
        return model

    run(FIRST, min(rates))
    start = time.process_time()
    run(TIMED, min(rates))
    pace, tried = (time.process_time() - start) / TIMED, {}
    for rate in rates if len(rates) > 1 else ():
        try:
            tried[rate] = held_out(run(int(share * seconds / pace), rate), valid)
        except Diverged:
            tried[rate] = math.inf
    rate = min(tried, key=lambda r: tried[r]) if tried else rates[0]
    steps = max(int((seconds - (time.process_time() - began)) / pace), 1)
    model = run(steps, rate)
    spent = time.process_time() - began
    return Trained(model, rate, steps, spent, {f"{r:g}": loss for r, loss in tried.items()})
