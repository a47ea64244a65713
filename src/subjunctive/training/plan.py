"""What is asked of a run of training, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from subjunctive.variable import nearest

if TYPE_CHECKING:
    import pandas as pd

Decay = Literal["cosine", "constant"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass
class Fit:
    """What a run of `fit` did.

    Args:
        records: one dictionary a row of `history`.
        steps: steps done, those before a resumption included.
        rows: rows seen, over all processes.
        seconds: spent training; validation and checkpoints not counted.
        best: step and loss of the best validation; None without one.
        reason: why the run ended: `steps`, `patience` or `callback`.
    """

    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    best: dict[str, float] | None = None
    reason: str = "steps"

    @property
    def history(self) -> pd.DataFrame:
        """The losses: a row a step (where steps are quick to ask), a column a term."""
        import pandas

        return pandas.DataFrame(self.records)

    @property
    def rows_per_second(self) -> float:
        """Training throughput over all processes; images per second for images."""
        return self.rows / self.seconds if self.seconds else float("nan")


@dataclass
class Moment:
    """What a callback gets after a step: steps done, the model as it is, and the newest records."""

    step: int
    model: nn.Module
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """The numbers of a run, checked; see `fit`."""

    steps: int
    lr: float
    weight_decay: float
    warmup: int
    decay: Decay
    clip: float | None
    ema: float | None
    precision: Precision
    valid_every: int
    patience: int | None
    save_every: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse numbers out of range, by name."""
        least_of = {"steps": 1, "warmup": 0, "valid_every": 1, "save_every": 1, "seed": 0}
        if self.patience is not None:
            least_of["patience"] = 1
        for name, least in least_of.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        for name, ok, need in (
            ("lr", self.lr > 0, "positive"),
            ("weight_decay", self.weight_decay >= 0, "zero or more"),
            ("clip", self.clip is None or self.clip > 0, "positive, or None"),
            ("ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, or None"),
        ):
            value = getattr(self, name)
            if not ok or (value is not None and not math.isfinite(value)):
                raise ValueError(f"{name} must be {need}, got {value!r}")
        for name, options in (("decay", get_args(Decay)), ("precision", get_args(Precision))):
            value = getattr(self, name)
            if value not in options:
                raise ValueError(
                    f"{name} must be one of {options}, got {value!r}.{nearest(value, options)}"
                )

    def pace(self, step: int) -> float:
        """Return what the learning rate is multiplied by: a linear warm-up, then the decay."""
        warm = min(self.warmup, self.steps // 2)
        if step < warm:
            return (step + 1) / warm
        if self.decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (self.steps - warm)))
