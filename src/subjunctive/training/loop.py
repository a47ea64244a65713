"""The loop itself: turns of the players, averaged weights, validation and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from subjunctive import checkpoint
from subjunctive.checkpoint import StoreError
from subjunctive.training.feed import Feed, reseed
from subjunctive.training.journal import Diverged, Journal, open_trackers, summed
from subjunctive.training.objective import Objective, Player, alone, apart, check_players
from subjunctive.training.plan import Fit, Moment, Plan
from subjunctive.training.process import gathered, share, sum_gradients
from subjunctive.variable import Batch

LOG = "log.csv"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Average:
    """An exponential average of parameters, `a <- d a + (1 - d) theta`; d grows to `decay`."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Let the average follow the parameters."""
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
        from accelerate.utils import parse_flag_from_env

        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self.state = PartialState(cpu=on_cpu)  # so that torchrun's processes meet on a CPU, too
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
        share(self.state, self.both.state_dict().values())
        self.players = objective.players(model)
        self.own = check_players(self.players, model, objective)
        self.all = [p for p in self.both.parameters() if p.requires_grad]
        pairs = zip(self.players, self.own, strict=True)
        self.optimisers = [_adamw(player, own, plan) for player, own in pairs]
        names = [player.name for player in self.players]
        self.parts = {n: apart(model, own) for n, own in zip(names, self.own, strict=True)}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        averaged = [p for p in model.parameters() if p.requires_grad]
        self.average = None if plan.ema is None else Average(averaged, plan.ema)
        self.kept: dict[str, Tensor] | None = None
        self.moved: set[str] = set()
        self.step, self.whole, self.stale, self.fit = 0, True, 0, Fit()
        settings = asdict(plan) | self._settings()
        opened = open_trackers(trackers, place, settings, self.state.is_main_process)
        left = self._restore() if resume else ""
        self.journal = Journal(
            self.state, self.fit.records, len(self.players) > 1, plan.steps, self.step, show, opened
        )
        self.journal.left = left or self.journal.left

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
        except Diverged:
            self._log()  # how it came to that
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
            for player, own, optimiser in zip(self.players, self.own, self.optimisers, strict=True):
                if step % player.every == 0:
                    self._turn(player, own, optimiser, batch, rows)
            if self.average:
                self.average.update(step)
            self.step, self.whole = step + 1, True
            self.fit.steps, self.fit.rows = self.step, self.fit.rows + rows
            if self._ends():
                return

    def _ends(self) -> bool:
        """Do what follows a step; return whether the run ends with it."""
        last, due = self.step == self.plan.steps, self.step % self.journal.lag == 0
        if last or due:
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
        if self.world > 1:  # all must stop at the same step
            asked = due and any(gathered(self.state, asked))
        return asked or self.fit.reason != "steps"

    def _turn(
        self,
        player: Player,
        own: list[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        batch: Batch,
        rows: int,
    ) -> None:
        """Let a player make one step on its own parameters."""
        with alone(own, self.all):
            means = {name: total / rows for name, total in self._sums(player, batch).items()}
            values = torch.stack([mean.detach().float() for mean in means.values()])
            self.journal.add(self.step + 1, player.name, list(means), values)
            loss = sum(means.values(), torch.zeros((), device=self.device))
            if loss.requires_grad:
                self.scaler.scale(loss).backward()
        sum_gradients(self.state, own)
        if all(p.grad is None for p in own):  # these rows say nothing to this player
            if player.name not in self.moved and self.step + 1 >= min(100, self.plan.steps):
                raise ValueError(
                    f"the loss of player {player.name!r} does not depend on its parameters"
                )
            return
        self.moved.add(player.name)
        self.scaler.unscale_(optimiser)
        if self.plan.clip is not None:
            for part in self.parts[player.name]:
                nn.utils.clip_grad_norm_(part, self.plan.clip)
        rate = self.plan.lr if player.lr is None else player.lr
        for group in optimiser.param_groups:
            group["lr"] = rate * self.plan.pace(self.step)
        self.scaler.step(optimiser)
        self.scaler.update()
        optimiser.zero_grad(set_to_none=True)

    def _sums(self, player: Player, batch: Batch) -> dict[str, Tensor]:
        """Return the player's terms, summed over the rows of this process."""
        half = HALF.get(self.plan.precision)
        with torch.autocast(self.device.type, half) if half else nullcontext():
            terms = self.objective.loss(self.model, batch, player.name, self.step)
        if not terms:
            raise ValueError(f"the loss of player {player.name!r} has no term")
        sums = {}
        for name, term in terms.items():
            found = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            if found != (len(batch),):
                raise ValueError(
                    f"the term {name!r} of player {player.name!r} is {found}; it must be one "
                    f"number a row, ({len(batch)},)"
                )
            wide = torch.promote_types(term.dtype, torch.float32)
            sums[name] = term.sum(dtype=wide)
        return sums

    # What stands beside the steps -------------------------------------------------------------

    def _flush(self) -> None:
        now = time.perf_counter()
        self.fit.seconds, self.clock = self.fit.seconds + now - self.clock, now
        self.journal.flush(self.step, self.fit.rows_per_second)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights, in evaluation mode."""
        self.both.eval()
        if self.average:
            self.average.swap()
        try:
            yield
        finally:
            if self.average:
                self.average.swap()
            self.both.train()

    def _validate(self, valid: Feed) -> None:
        """Record the averaged model's loss on held-out rows, with the same draws every time."""
        self._flush()
        reseed(self.device, self.plan.seed, self.rank, 0, 0)
        sums: list[dict[str, float]] = []
        rows = 0
        with self._averaged(), torch.no_grad():
            for batch, size in valid.once(self.feed.batch_size, self.rank, self.world):
                rows += size
                if len(batch):
                    found = self._sums(self.players[0], batch.to(self.device))
                    sums.append({name: float(value) for name, value in found.items()})
            total = summed(gathered(self.state, summed(sums)))
            loss = sum(total.values()) / rows
            means = {name: value / rows for name, value in total.items()} | {"loss": loss}
            shown = {f"valid/{k}": v if math.isfinite(v) else None for k, v in means.items()}
            self.journal.note({"step": self.step, **shown})
            self.stale += 1
            if math.isfinite(loss) and (self.fit.best is None or loss < self.fit.best["loss"]):
                self.stale, self.fit.best = 0, {"step": self.step, "loss": loss}
                if self.plan.patience is not None:
                    self.kept = {n: t.clone() for n, t in self.model.state_dict().items()}
                self._put({"model.safetensors": self.model.state_dict()}, "best")
        self.clock = time.perf_counter()

    # Checkpoints ------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """Return what must not change between a run and its resumption."""
        return {
            "seed": self.plan.seed,
            "batch_size": self.feed.batch_size,
            "rows": len(self.feed.data) if isinstance(self.feed.data, Batch) else 0,
            "players": ", ".join(player.name for player in self.players),
            "averaged": self.average is not None,
        }

    def _save(self) -> None:
        if self.place is None:
            return
        self._flush()
        average = self.average.values if self.average else []
        files = {
            "weights.safetensors": self.both.state_dict(),
            "average.safetensors": {str(i): t for i, t in enumerate(average)},
            **{f"moments{k}.safetensors": checkpoint.moments(o) for k, o in self._numbered()},
        }
        self._put(files, "step")
        self._log()
        self.clock = time.perf_counter()

    def _log(self) -> None:
        if self.place and self.place.is_dir() and self.state.is_main_process:
            self.journal.table(self.place / LOG)

    def _numbered(self) -> Iterable[tuple[int, torch.optim.Optimizer]]:
        return enumerate(self.optimisers)

    def _put(self, files: dict[str, Any], kind: str) -> None:
        if self.place is None:
            return
        document = {
            "settings": self._settings(),
            "fit": {**asdict(self.fit), "reason": "steps"},
            "stale": self.stale,
            "scaler": self.scaler.state_dict(),
        }
        if self.state.is_main_process:
            path = checkpoint.put(self.place, self.step, document, files, kind)
            self.journal.left = f"The last checkpoint is {path}."
        self.state.wait_for_everyone()

    def _restore(self) -> str:
        """Take up the last checkpoint, if there is one; return where it is."""
        found = checkpoint.steps(self.place) if self.place else {}
        if not found:
            return ""
        path = found[max(found)]
        try:
            document, files = checkpoint.read(path, checkpoint.STATE)
        except StoreError as error:
            raise StoreError(f"{error}; or delete {path} to go on from an older one") from error
        for name, value in self._settings().items():
            old = document.get("settings", {}).get(name)
            if old != value:
                raise StoreError(
                    f"{path} is of a run with {name}={old!r}, not {value!r}; pass what that run "
                    "had, or give another directory"
                )
        average = files["average.safetensors"]
        try:
            self.both.load_state_dict(files["weights.safetensors"])
            for i, value in enumerate(self.average.values if self.average else []):
                value.copy_(average[str(i)])
        except (RuntimeError, KeyError) as error:
            raise StoreError(f"{path} is of another model: {error}") from error
        for k, optimiser in self._numbered():
            checkpoint.restore_moments(optimiser, files[f"moments{k}.safetensors"])
        self.fit, self.stale = Fit(**document["fit"]), document["stale"]
        self.scaler.load_state_dict(document["scaler"])
        self.step = self.fit.steps
        self._recall()
        return f"The last checkpoint is {path}."

    def _recall(self) -> None:
        """Take up the best weights so far; where they are gone, the search for them starts anew."""
        if self.place is None or self.fit.best is None:
            return
        if self.state.is_main_process:
            checkpoint.forget(self.place, self.step)
        self.state.wait_for_everyone()
        path = checkpoint.steps(self.place, "best").get(int(self.fit.best["step"]))
        if path is None:
            self.fit.best, self.stale = None, 0
        elif self.plan.patience is not None:
            kept = checkpoint.read(path, checkpoint.STATE)[1]["model.safetensors"]
            self.kept = {name: tensor.to(self.device) for name, tensor in kept.items()}


def _adamw(player: Player, own: list[nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    """Return the player's optimiser, fused where the device can; vectors are not decayed."""
    matrices, vectors = [p for p in own if p.dim() > 1], [p for p in own if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate = plan.lr if player.lr is None else player.lr
    kept = [group for group in groups if group["params"]]
    try:
        return torch.optim.AdamW(kept, lr=rate, betas=player.betas, fused=True)
    except RuntimeError:  # no fused kernel for this device or dtype
        return torch.optim.AdamW(kept, lr=rate, betas=player.betas, foreach=True)
