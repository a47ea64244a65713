"""The loop itself: turns of players, averaged weights, validation, checkpoints, interruptions."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from subjunctive import checkpoint
from subjunctive.checkpoint import StoreError
from subjunctive.feed import Feed, reseed
from subjunctive.journal import Journal, Losses, gathered, open_trackers, summed
from subjunctive.objective import Objective, Player, alone, check_players
from subjunctive.plan import Fit, Moment, Plan
from subjunctive.variable import Batch


@contextmanager
def few_threads() -> Iterator[None]:
    """Use no more threads than this process has cores, and restore their number afterwards."""
    from joblib import cpu_count

    before = torch.get_num_threads()
    cores = max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(min(before, cores))
    try:
        yield
    finally:
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


class Average:
    """An exponential average of parameters, `a <- d a + (1 - d) theta`."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Let the average follow; it follows faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.values, [p.detach() for p in self.parameters], None)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters."""
        for p, a in zip(self.parameters, self.values, strict=True):
            mine = p.clone()
            p.copy_(a)
            a.copy_(mine)


class Run:
    """One run of `fit`: its state is the weights, the moments, the average and a step's number.

    Args:
        model, objective, plan: what is trained, for what, and how; checked.
        feed, valid: the batches, and those to validate on.
        place: the directory of checkpoints.
        resume: whether to go on from the last one.
        show: whether to show a bar.
        trackers, callbacks: as for `fit`.
        caught: fills with the signals that ask the run to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        plan: Plan,
        feed: Feed,
        valid: Feed | None,
        place: Path | None,
        resume: bool,
        show: bool,
        trackers: Sequence[Any],
        callbacks: Sequence[Callable[[Moment], Any]],
        caught: list[int],
    ) -> None:
        from accelerate import PartialState

        self.state = PartialState()
        self.device = self.state.device
        self.rank, self.world = self.state.process_index, self.state.num_processes
        if self.device.type == "cpu" and plan.precision == "fp16":
            raise ValueError("precision='fp16' needs an accelerator; use 'bf16' on a CPU")
        if isinstance(feed.data, Batch) and feed.batch_size < self.world:
            raise ValueError(f"batch_size is {feed.batch_size}, less than {self.world} processes")
        self.model, self.objective, self.plan = model, objective, plan
        self.feed, self.valid, self.place = feed, valid, place
        self.callbacks, self.caught = callbacks, caught
        self.both = nn.ModuleDict({"model": model, "objective": objective}).to(self.device)
        self.players = objective.players(model)
        self.own = check_players(self.players, model, objective)
        self.all = [p for p in self.both.parameters() if p.requires_grad]
        pairs = zip(self.players, self.own, strict=True)
        self.optimisers = [_adamw(player, own, plan) for player, own in pairs]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        self._share_weights()
        averaged = [p for p in model.parameters() if p.requires_grad]
        self.average = None if plan.ema is None else Average(averaged, plan.ema)
        self.step, self.whole, self.stale, self.fit = 0, True, 0, Fit()
        self.kept: dict[str, Tensor] | None = None
        self.settings = {
            "seed": plan.seed,
            "batch_size": feed.batch_size,
            "rows": len(feed.data) if isinstance(feed.data, Batch) else None,
            "players": ", ".join(player.name for player in self.players),
            "averaged": plan.ema is not None,
        }
        left = self._restore() if resume else "No checkpoint was written yet."
        opened = open_trackers(trackers, place, {**asdict(plan), **self.settings}, self.state)
        self.journal = Journal(
            self.state, self.fit.records, len(self.players) > 1, plan.steps, self.step, show, opened
        )
        self.journal.left = left

    def go(self) -> Fit:
        """Train to the end, or to where the run is stopped."""
        self.both.train()
        self.clock = time.perf_counter()
        try:
            self._loop()
            self._save()
        except KeyboardInterrupt:
            if self.whole and self.world == 1:
                self._save()
            raise
        finally:
            self.journal.close()
            if self.kept is not None:
                self.model.load_state_dict(self.kept)
            elif self.average:
                self.average.swap()
            self.both.eval()
        return self.fit

    def _loop(self) -> None:
        stream = self.feed.batches(self.step, self.rank, self.world)
        for step, (batch, rows) in zip(range(self.step, self.plan.steps), stream, strict=False):
            reseed(self.device, self.plan.seed, step, self.rank)
            batch = batch if self.device.type == "cpu" else batch.to(self.device)
            self.whole = False
            for k, player in enumerate(self.players):
                if step % player.every == 0:
                    self._turn(k, batch, rows)
            if self.average:
                self.average.update(step)
            self.step, self.whole = step + 1, True
            self.fit.steps, self.fit.rows = self.step, self.fit.rows + rows
            if self._ends():
                return

    def _ends(self) -> bool:
        """Do what follows a step; return whether the run ends with it."""
        last = self.step == self.plan.steps
        if last or self.step % self.journal.lag == 0:
            self._flush()
        if self.valid and (last or self.step % self.plan.valid_every == 0):
            self._validate(self.valid)
        if self.step % self.plan.save_every == 0:
            self._save()
        moment = Moment(self.step, self.model, self.fit.records)
        if any([callback(moment) is True for callback in self.callbacks]):
            self.fit.reason = "callback"
        if self.plan.patience is not None and self.stale >= self.plan.patience:
            self.fit.reason = "patience"
        asked = bool(self.caught)
        if self.world > 1:
            due = self.step % self.journal.lag == 0
            asked = due and any(gathered(self.state, asked))
        return asked or self.fit.reason != "steps"

    def _turn(self, k: int, batch: Batch, rows: int) -> None:
        """Let a player make one step on its own parameters."""
        player, own, optimiser = self.players[k], self.own[k], self.optimisers[k]
        with alone(own, self.all):
            terms = self._terms(player, batch)
            means = {n: t.sum(dtype=_wide(t)) / rows for n, t in terms.items()}
            values = torch.stack([m.detach().float() for m in means.values()])
            self.journal.add(self.step + 1, player.name, list(means), values)
            total = sum(means.values(), torch.zeros((), device=self.device))
            if total.requires_grad:
                self.scaler.scale(total).backward()
            elif self.world == 1:
                raise ValueError(
                    f"the loss of player {player.name!r} does not depend on its parameters"
                )
        if self.world > 1:
            self._sum_gradients(own)
        self.scaler.unscale_(optimiser)
        if self.plan.clip is not None:
            nn.utils.clip_grad_norm_(own, self.plan.clip)
        pace = self.plan.pace(self.step)
        for group in optimiser.param_groups:
            group["lr"] = pace * (self.plan.lr if player.lr is None else player.lr)
        self.scaler.step(optimiser)
        self.scaler.update()
        optimiser.zero_grad(set_to_none=True)

    def _terms(self, player: Player, batch: Batch) -> dict[str, Tensor]:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.plan.precision)
        with torch.autocast(self.device.type, half) if half else nullcontext():
            terms = self.objective.loss(self.model, batch, player.name, self.step)
        if not terms:
            raise ValueError(f"the loss of player {player.name!r} has no term")
        for name, term in terms.items():
            found = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            if found != (len(batch),):
                raise ValueError(
                    f"the term {name!r} of player {player.name!r} is {found}; it must be one "
                    f"number a row, ({len(batch)},)"
                )
        return terms

    # Many processes ---------------------------------------------------------------------------

    def _share_weights(self) -> None:
        """Let every process start from the weights of the first."""
        if self.world > 1:
            from accelerate.utils import broadcast

            for tensor in self.both.state_dict().values():
                broadcast(tensor)

    def _sum_gradients(self, own: list[nn.Parameter]) -> None:
        """Add up the gradients of all processes; none where no process has one."""
        from accelerate.utils import reduce

        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        has = torch.tensor([float(p.grad is not None) for p in own], device=self.device)
        total = reduce(torch.cat([*(g.reshape(-1) for g in parts), has]), "sum")
        *sums, has = total.split([*(p.numel() for p in own), len(own)])
        there = (has > 0).tolist() if any(p.grad is None for p in own) else [True] * len(own)
        for p, g, some in zip(own, sums, there, strict=True):
            p.grad = g.reshape(p.shape).to(p.dtype) if some else None

    # What stands beside the steps -------------------------------------------------------------

    def _tick(self) -> None:
        now = time.perf_counter()
        self.fit.seconds, self.clock = self.fit.seconds + now - self.clock, now

    def _flush(self) -> None:
        self._tick()
        self.journal.flush(self.step, self.fit.rows_per_second)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights, in evaluation mode, off the clock."""
        self._tick()
        for _ in self.both.eval().children() if self.average is None else (self.average.swap(),):
            pass
        try:
            yield
        finally:
            self.both.train()
            self.clock = time.perf_counter()
