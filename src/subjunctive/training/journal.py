"""What is written down while a model trains: losses, a progress bar, a table, trackers.

Losses stay on the device until a few steps of them are packed into one transfer; then every number
is checked, averaged over these steps and over processes, and shown.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from subjunctive.training.process import gathered
from subjunctive.variable import nearest

if TYPE_CHECKING:
    from accelerate import PartialState

Losses = dict[str, float]


class Diverged(ArithmeticError):
    """A term of a loss is not finite."""


def summed(parts: Iterable[Losses]) -> Losses:
    """Add losses of the same name.

    >>> summed([{"a": 1.0}, {"a": 2.0, "b": 3.0}])
    {'a': 3.0, 'b': 3.0}
    """
    total: Losses = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


class Journal:
    """Collects the losses of a run into records, a row a transfer.

    Args:
        state: which process this is.
        records: rows from before a resumption; new ones are appended.
        several: whether there is more than one player, so that columns need their names.
        steps, done: how many steps the run has, and how many are done.
        progress: whether the main process shows a bar.
        trackers: from `open_trackers`.
    """

    def __init__(
        self,
        state: PartialState,
        records: list[dict[str, Any]],
        several: bool,
        steps: int,
        done: int,
        progress: bool,
        trackers: Iterable[Any],
    ) -> None:
        from tqdm import tqdm

        self.state, self.records, self.several = state, records, several
        self.at_once = state.device.type == "cpu" and state.num_processes == 1
        self.lag = 1 if self.at_once else 10
        self.trackers = list(trackers)
        self.left = "No checkpoint was written."  # what is there to go back to
        self.bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            disable=not (progress and state.is_main_process),
        )
        self._waiting: list[tuple[int, str, list[str], Tensor]] = []
        self._taken: list[Losses] = []

    def add(self, step: int, player: str, names: list[str], values: Tensor) -> None:
        """Keep a player's terms `(len(names),)` of a step until the next transfer.

        Raises:
            Diverged: naming a term that is not finite; where numbers are on the CPU already, before
                it reaches a weight.
        """
        self._waiting.append((step, player, names, values.detach()))
        if self.at_once:
            self._take()

    def _take(self) -> None:
        if not self._waiting:
            return
        numbers = torch.cat([values for *_, values in self._waiting]).tolist()
        mine = []
        for step, player, names, _ in self._waiting:
            terms, numbers = dict(zip(names, numbers, strict=False)), numbers[len(names) :]
            mine.append((step, player, terms))
        self._waiting.clear()
        for group in zip(*gathered(self.state, mine), strict=True):
            step, player, _ = group[0]
            terms = summed(terms for *_, terms in group)
            for name, value in terms.items():
                if not math.isfinite(value):
                    raise Diverged(
                        f"the term {name!r} of player {player!r} is {value} at step {step}; "
                        f"lower lr, lengthen warmup, or set clip. {self.left}"
                    )
            terms = {**terms, "loss": sum(terms.values())}
            prefix = f"{player}/" if self.several else ""
            self._taken.append({f"{prefix}{name}": value for name, value in terms.items()})

    def flush(self, step: int, rate: float) -> None:
        """Transfer what waits, and write a record of its averages."""
        self._take()
        if not self._taken:
            return
        counts = summed(dict.fromkeys(taken, 1.0) for taken in self._taken)
        means = {k: v / counts[k] for k, v in summed(self._taken).items()}
        self._taken.clear()
        if not self.bar.disable:
            shown = {k: f"{v:.4g}" for k, v in list(means.items())[:8]}
            self.bar.set_postfix({"rows/s": f"{rate:.3g}", **shown}, refresh=False)
            self.bar.update(step - self.bar.n)
        self.note({"step": step, **means})

    def note(self, record: dict[str, Any]) -> None:
        """Append a record and send it to the trackers."""
        self.records.append(record)
        values = {k: v for k, v in record.items() if k != "step"}
        for tracker in self.trackers:
            tracker.log(values, step=record["step"])

    def table(self, place: Path) -> None:
        """Write all records as a CSV, a column a name, in the place of the one before."""
        columns = list(dict.fromkeys(name for record in self.records for name in record))
        beside = place.with_name(f".{place.name}")
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.records)
        os.replace(beside, place)

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        for tracker in self.trackers:
            tracker.finish()


def open_trackers(
    trackers: Iterable[Any], directory: Path | None, config: dict[str, Any], main: bool
) -> list[Any]:
    """Start the main process's trackers.

    Args:
        trackers: names that accelerate knows ("tensorboard"), or its `GeneralTracker`s.
        directory: for those that write files.
        config: told to each tracker.
        main: whether this is the main process.

    Raises:
        ValueError: for a tracker that is unknown, not installed, or needs a directory.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

    named: list[Any] = [trackers] if isinstance(trackers, str) else list(trackers)
    opened = []
    for tracker in named:
        if not isinstance(tracker, GeneralTracker):
            known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
            if tracker not in known:
                raise ValueError(
                    f"tracker {tracker!r} is unknown; accelerate has {known}."
                    f"{nearest(tracker, known)}"
                )
            if tracker not in [str(name) for name in get_available_trackers()]:
                package = f"'subjunctive[{tracker}]'" if tracker == "tensorboard" else tracker
                raise ValueError(f"tracker {tracker!r} is not installed: pip install {package}")
            kind = LOGGER_TYPE_TO_CLASS[tracker]
            if kind.requires_logging_directory and directory is None:
                raise ValueError(
                    f"tracker {tracker!r} writes files: give fit a directory "
                    "(--checkpoints on the command line)"
                )
            place = (str(directory),) if kind.requires_logging_directory else ()
            tracker = kind("subjunctive", *place) if main else None
        if main:
            tracker.start()
            tracker.store_init_configuration(config)
            opened.append(tracker)
    return opened
