"""What training needs of its processes: few threads, signals that wait, sums over all of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import PartialState


@contextmanager
def few_threads() -> Iterator[None]:
    """Use no more threads than this process has cores, and restore their number afterwards.

    Cores are those that affinity and control groups leave, shared by the processes of a machine.
    """
    from joblib import cpu_count

    before = torch.get_num_threads()
    cores = max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if cores < before:
        torch.set_num_threads(cores)
    try:
        yield
    finally:
        if cores < before:
            torch.set_num_threads(before)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of acting on them, and deliver them afterwards.

    A second one acts at once. Outside the main thread nothing is noted.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if caught:
        signal.raise_signal(caught[0])


def gathered(state: PartialState, value: Any) -> list[Any]:
    """Return every process's value."""
    if state.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    values: list[Any] = gather_object([value])
    return values


def share(state: PartialState, tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if state.num_processes > 1:
        from accelerate.utils import broadcast

        for tensor in tensors:
            broadcast(tensor.detach())


def sum_gradients(state: PartialState, parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes; a parameter that has none in any keeps none."""
    if state.num_processes == 1:
        return
    from accelerate.utils import reduce

    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=state.device)
    total = reduce(torch.cat([*(g.reshape(-1) for g in parts), has]), "sum")
    *sums, has = total.split([*(p.numel() for p in parameters), len(parts)])
    some = [True] * len(parts)
    if any(p.grad is None for p in parameters):
        some = (has > 0).tolist()
    for p, g, there in zip(parameters, sums, some, strict=True):
        p.grad = g.reshape(p.shape).to(p.dtype) if there else None
