"""One loop for every objective, on one device or many processes.

    theta_k <- AdamW(theta_k, grad_{theta_k} mean_rows sum_terms L_k(model, batch))   player k = ...

The mean is over the rows of all processes: each takes its slice of the same batch, and gradients
are summed. What a step draws follows from the seed and the step's number alone, so that a run that
was stopped goes on to the same last bit. At the end the model holds the average of its weights,

    a <- d a + (1 - d) theta,    d = min(ema, (1 + step) / (10 + step)).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from subjunctive import checkpoint
from subjunctive.mechanism import seeded
from subjunctive.training.feed import Feed
from subjunctive.training.journal import Diverged as Diverged
from subjunctive.training.loop import Run
from subjunctive.training.objective import ModelLoss as ModelLoss
from subjunctive.training.objective import Objective as Objective
from subjunctive.training.objective import Player as Player
from subjunctive.training.objective import check_players
from subjunctive.training.plan import Decay, Plan, Precision
from subjunctive.training.plan import Fit as Fit
from subjunctive.training.plan import Moment as Moment
from subjunctive.training.process import few_threads, interrupts


def fit(
    model: nn.Module,
    data: Any,
    objective: Objective | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 100,
    decay: Decay = "cosine",
    clip: float | None = 1.0,
    ema: float | None = 0.999,
    precision: Precision = "no",
    valid: Any = None,
    valid_every: int | None = None,
    patience: int | None = None,
    directory: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = False,
    seed: int = 0,
    trackers: Sequence[Any] = (),
    progress: bool = True,
    callbacks: Sequence[Callable[[Moment], Any]] = (),
) -> Fit:
    """Train a model in place; it ends on the device, in evaluation mode, with averaged weights.

    The device, and the processes started by `accelerate launch` or `torchrun`, are those that
    accelerate finds (`ACCELERATE_USE_CPU=true` keeps it on the CPU).

    Args:
        model: a module with `loss(batch)`, or whatever the objective needs.
        data: rows in memory (`Batch`, DataFrame, dictionary of columns), or an iterable of batches
            (a DataLoader), the same in every process.
        objective: who minimises what; the model's own loss by default.
        steps, epochs: how long; give one of them.
        batch_size: rows a step over all processes together, for data in memory.
        lr: learning rate of AdamW, of players that have none of their own.
        weight_decay: of parameters with two axes or more.
        warmup: steps of linear warm-up; at most half of the run.
        decay: of the learning rate after that: `cosine`, to zero, or `constant`.
        clip: largest norm of a player's gradient, in each of the model's `parts` (an SCM's
            mechanisms and encoder) on its own; None for no limit.
        ema: decay of the average of the model's weights; None to keep the last weights.
        precision: `no` (as the weights are), `bf16`, or `fp16` with a scaled loss.
        valid: held-out rows or batches; the first player's loss of the averaged model is recorded.
        valid_every: steps between validations; a twentieth of the run by default.
        patience: validations without a better one before the run ends; the best weights are kept.
        directory: for checkpoints, the last two and the best, and for `log.csv`, the losses by
            step; of one run at a time.
        save_every: steps between checkpoints; a tenth of the run by default.
        resume: go on from the last checkpoint in the directory, if there is one.
        seed: of the order of rows and of all draws; torch's own generators are left as found.
        trackers: names of accelerate's trackers, or its `GeneralTracker`s.
        progress: whether to show a bar.
        callbacks: called after each step, in every process; one that returns True ends the run.

    Raises:
        ValueError: for bad arguments, before anything is touched.
        Diverged: if a term is not finite; names it and the last checkpoint.
        KeyboardInterrupt: on SIGINT, after the step is done and a checkpoint is written; SIGTERM
            is likewise delivered after that.

    Example:
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.scm import SCM
        >>> from subjunctive.variable import Batch, Variable
        >>> import torch
        >>> model = SCM(Graph.parse("t"), {"t": LinearGaussian(Variable("t"))})
        >>> data = Batch({"t": torch.linspace(4.0, 6.0, 64)})
        >>> done = fit(model, data, steps=300, batch_size=32, lr=0.1, progress=False)
        >>> done.steps, bool((model.sample(1000, seed=0)["t"].mean() - 5).abs() < 0.1)
        (300, True)
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"fit() trains an nn.Module, got a {type(model).__name__}")
    if objective is None and not callable(getattr(model, "loss", None)):
        raise ValueError(f"{type(model).__name__} has no loss(batch): give fit an objective")
    objective = objective or ModelLoss()
    check_players(objective.players(model), model, objective)
    variables = getattr(model, "variables", None)
    columns = list(variables.values()) if isinstance(variables, Mapping) else None
    feed = Feed(data, batch_size, seed, columns)
    held_out = None if valid is None else Feed(valid, 1, seed, columns, "valid")
    length = _length(feed, steps, epochs)
    plan = Plan(
        steps=length,
        lr=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        decay=decay,
        clip=clip,
        ema=ema,
        precision=precision,
        valid_every=max(1, length // 20) if valid_every is None else valid_every,
        patience=patience,
        save_every=max(1, length // 10) if save_every is None else save_every,
        seed=seed,
    )
    if patience is not None and valid is None:
        raise ValueError("patience counts validations: give valid, too")
    place = _place(directory, resume)
    claim = checkpoint.claimed(place if os.environ.get("RANK", "0") == "0" else None)
    with claim, few_threads(), seeded(seed), interrupts() as caught:
        return Run(
            *(model, objective, plan, feed, held_out, place, resume, progress),
            *(trackers, callbacks, caught),
        ).go()


def _length(feed: Feed, steps: int | None, epochs: float | None) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError(f"give steps or epochs, one of them; got steps={steps}, epochs={epochs}")
    if epochs is None:
        return steps  # type: ignore[return-value]
    if not epochs > 0:
        raise ValueError(f"epochs must be positive, got {epochs!r}")
    return feed.steps(epochs)


def _place(directory: str | os.PathLike[str] | None, resume: bool) -> Path | None:
    """Refuse a directory that would be spoilt, or that there is nothing to resume from."""
    if directory is None:
        if resume:
            raise ValueError("resume=True needs the directory of the run to go on with")
        return None
    place = Path(directory)
    if place.exists() and not place.is_dir():
        raise ValueError(f"directory {place} is a file; give a directory for checkpoints")
    if checkpoint.steps(place) and not resume:
        raise ValueError(
            f"directory {place} holds a run already (at step {max(checkpoint.steps(place))}); "
            "pass resume=True to go on with it, or give another directory"
        )
    return place
