"""Rows for a training loop: the batch of a step depends on the data, the seed and the step alone.

In memory, the stream of rows is one permutation after another, cut into batches of equal size; a
batch may cross from one permutation into the next, so that every row is seen equally often and
none is left out. Step s can be asked for directly, which makes resuming exact. Every process cuts
its own slice from the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subjunctive.variable import Batch, Variable

ROWS = "a dataset of rows is read by Stream(dataset, variables, batch_size=...)"


def key(*numbers: int) -> int:
    """Return a seed made of several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def reseed(device: torch.device, *numbers: int) -> None:
    """Start torch's default generators afresh from several numbers; for use within `seeded`."""
    seed = key(*numbers)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@dataclass(frozen=True)
class Feed:
    """Data as batches by step.

    Args:
        data: rows in memory (a `Batch`, a dictionary of columns, a DataFrame), or an iterable of
            batches that can be iterated again, such as a DataLoader.
        batch_size: rows a step over all processes; of no effect on an iterable.
        seed: of the permutations.
        variables: encode the columns of dictionaries and DataFrames.
        name: what the data is called in errors.

    Raises:
        ValueError: if there is no row, or fewer than a batch.

    Example:
        >>> feed = Feed(Batch({"x": torch.arange(5)}), batch_size=2)
        >>> stream = feed.batches()
        >>> sorted(int(i) for _ in range(5) for i in next(stream)[0].values["x"])
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    data: Any
    batch_size: int
    seed: int = 0
    variables: Sequence[Variable] | None = None
    name: str = "data"

    def __post_init__(self) -> None:
        """Bring what is in memory into a `Batch`, and refuse what cannot be fed."""
        data, size = self.data, self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {size!r}")
        if isinstance(data, Mapping) or hasattr(data, "columns"):
            data = Batch.of(data, self.variables)
            object.__setattr__(self, "data", data)
        if isinstance(data, Batch):
            if not len(data):
                raise ValueError(f"{self.name} is empty: it has no row")
            if self.batch_size > len(data):
                raise ValueError(
                    f"batch_size is {self.batch_size}, but {self.name} has {len(data)} rows; "
                    f"give batch_size={len(data)} or less"
                )
        elif not isinstance(data, Iterable):
            raise ValueError(
                f"{self.name} is a {type(data).__name__}; give a Batch, a DataFrame, a dictionary "
                f"of columns, or an iterable of these; {ROWS}"
            )
        elif iter(data) is data:
            raise ValueError(
                f"{self.name} can be iterated once only; give a list or a DataLoader, or a class "
                "with __iter__, which starts again"
            )
        elif isinstance(data, Sized) and not len(data):
            raise ValueError(f"{self.name} is empty: it has no batch")

    def steps(self, epochs: float) -> int:
        """Return how many steps that many passes over the data take."""
        if isinstance(self.data, Batch):
            return math.ceil(epochs * len(self.data) / self.batch_size)
        if not isinstance(self.data, Sized):
            raise ValueError(f"{self.name} has no length: give steps instead of epochs")
        return math.ceil(epochs * len(self.data))

    def batches(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple[Batch, int]]:
        """Yield this process's slice of every step's batch, and how many rows the batch has.

        Args:
            start: the first step.
            rank, world: which process this is, of how many.
        """
        if isinstance(self.data, Batch):
            order = lru_cache(maxsize=2)(self._order)
            for step in count(start):
                epoch, first = divmod(step * self.batch_size, len(self.data))
                index = order(epoch)[first : first + self.batch_size]
                if (more := self.batch_size - len(index)) > 0:
                    index = torch.cat([index, order(epoch + 1)[:more]])
                yield self.data[index.tensor_split(world)[rank]], self.batch_size
        else:
            for batch in self._again(start):
                yield _slice(batch, rank, world), len(batch)

    def once(self, size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Batch, int]]:
        """Yield all batches of one pass, in order, with the rows of each; `size` in memory."""
        if isinstance(self.data, Batch):
            for index in torch.arange(len(self.data)).split(size):
                yield self.data[index.tensor_split(world)[rank]], len(index)
        else:
            reseed(torch.device("cpu"), self.seed, 0)  # shuffled rows: one order in all processes
            for raw in self.data:
                batch = self._batch(raw)
                yield batch[torch.arange(len(batch)).tensor_split(world)[rank]], len(batch)

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(key(self.seed, epoch))
        return torch.randperm(len(self.data), generator=generator)

    def _again(self, start: int) -> Iterator[Batch]:
        """Yield batches of pass after pass; draws made in fetching one follow from its step."""
        cpu = torch.device("cpu")
        whole = len(self.data) if isinstance(self.data, Sized) else 0
        step = start // whole * whole if whole else 0
        while True:
            first = step
            reseed(cpu, self.seed, step)
            for raw in self.data:
                if step >= start:
                    yield self._batch(raw)
                step += 1
                reseed(cpu, self.seed, step)
            if step == first:
                raise ValueError(f"{self.name} is empty: iterating it gave no batch")

    def _batch(self, raw: Any) -> Batch:
        if isinstance(raw, Mapping) and not all(map(np.ndim, raw.values())):
            raise ValueError(f"{self.name} gives single rows where batches are needed; {ROWS}")
        if isinstance(raw, Mapping) and all(isinstance(v, Tensor) for v in raw.values()):
            raw = Batch(dict(raw))
        elif not isinstance(raw, Batch | Mapping) and not hasattr(raw, "columns"):
            raise ValueError(
                f"{self.name} gives a {type(raw).__name__}; let it give a Batch, or a dictionary "
                "of node -> tensor (a DataLoader's collate_fn does that)"
            )
        return Batch.of(raw, self.variables)


def _slice(batch: Batch, rank: int, world: int) -> Batch:
    if len(batch) < world:
        raise ValueError(f"a batch has {len(batch)} rows for {world} processes; use drop_last=True")
    return batch if world == 1 else batch[torch.arange(len(batch)).tensor_split(world)[rank]]
