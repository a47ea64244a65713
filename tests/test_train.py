"""`fit` against an independent loop, and what must hold when it is stopped, fooled or misused."""

import contextlib
import math
import os
import shutil
import signal

import joblib
import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from subjunctive.checkpoint import StoreError, read, steps
from subjunctive.graph import Graph
from subjunctive.mechanisms.linear import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.train import Diverged, Objective, Player, fit
from subjunctive.training import loop
from subjunctive.training.feed import Feed
from subjunctive.training.objective import alone
from subjunctive.variable import Batch, Variable


class Regression(nn.Module):
    """y = x w + b, with dropout on x if asked, so that a step draws."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop, self.line = nn.Dropout(dropout), nn.Linear(3, 1)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        guess = self.line(self.drop(batch.values["x"]))[:, 0]
        noise = 0.1 * torch.randn(len(batch)) if self.drop.p else 0.0
        return {
            "error": (guess + noise - batch.values["y"]).square(),
            "size": 0.01 * self.line.weight.square().sum().expand(len(batch)),
        }


def rows(n: int = 64, seed: int = 0) -> Batch:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=make)
    noise = 0.1 * torch.randn(n, generator=make)
    return Batch({"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + noise})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def quiet(model, data, objective=None, **kwargs):
    return fit(model, data, objective, **{"progress": False, "batch_size": 16, **kwargs})


# What it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
def test_weights_are_those_of_a_loop_written_by_hand(ema):
    data, model, twin = rows(32), Regression(), Regression()
    n, warm, lr = 30, 10, 0.05
    quiet(model, data, steps=n, batch_size=32, lr=lr, warmup=warm, clip=0.7, ema=ema)
    adam = torch.optim.Adam(twin.parameters())
    average = weights(twin)
    for step in range(n):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (n - warm)))
        adam.param_groups[0]["lr"] = lr * ((step + 1) / warm if step < warm else cosine)
        adam.zero_grad()
        sum(twin.loss(data).values()).mean().backward()
        norm = torch.cat([p.grad.reshape(-1) for p in twin.parameters()]).norm()
        for p in twin.parameters():
            p.grad *= min(1.0, 0.7 / float(norm))
        adam.step()
        d = min(ema or 0.0, (1 + step) / (10 + step))
        average = d * average + (1 - d) * weights(twin)
    assert not model.training
    torch.testing.assert_close(weights(model), average, atol=2e-6, rtol=1e-4)


def test_it_finds_the_least_squares_solution():
    data, model = rows(256), Regression()
    done = quiet(model, data, epochs=40, lr=0.05, ema=0.99)
    x = np.c_[data.values["x"].numpy(), np.ones(256)]
    ridge = np.diag([0.01, 0.01, 0.01, 0.0])
    exact = np.linalg.solve(x.T @ x / 256 + ridge, x.T @ data.values["y"].numpy() / 256)
    np.testing.assert_allclose(weights(model).numpy(), exact, atol=2e-3)
    assert (done.steps, done.rows) == (640, 640 * 16)


def test_history_holds_the_means_over_rows():
    data, model = rows(32), Regression()
    start = {k: v.detach().mean().item() for k, v in model.loss(data).items()}
    history = quiet(model, data, steps=3, batch_size=32).history
    assert list(history.columns) == ["step", "error", "size", "loss"]
    assert history["error"][0] == pytest.approx(start["error"], rel=1e-5)
    np.testing.assert_allclose(history["loss"], history["error"] + history["size"], rtol=1e-6)


def test_matrices_alone_are_decayed():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))
            self.vector = nn.Parameter(torch.ones(2))

        def loss(self, batch):
            return {"nothing": 0.0 * (self.matrix.sum() + self.vector.sum()).expand(len(batch))}

    model = Still()
    quiet(model, rows(), steps=2, lr=0.1, weight_decay=0.5, warmup=0, decay="constant", ema=None)
    torch.testing.assert_close(model.matrix.detach(), torch.full((2, 2), 0.95**2))
    torch.testing.assert_close(model.vector.detach(), torch.ones(2))


def test_an_scm_learns_its_two_equations():
    make = torch.Generator().manual_seed(1)
    t = torch.randn(512, generator=make)
    y = 2 * t + 1 + 0.5 * torch.randn(512, generator=make)
    data = {"t": t.numpy(), "y": y.numpy()}
    a, b = Variable("t"), Variable("y")
    model = SCM(Graph.parse("t -> y"), {"t": LinearGaussian(a), "y": LinearGaussian(b, [a])})
    done = quiet(model, data, steps=400, batch_size=64, lr=0.05)
    y_of = model.mechanisms["y"]
    slope, intercept = np.polyfit(data["t"], data["y"], 1)
    assert y_of.weight.item() == pytest.approx(slope, abs=0.02)
    assert y_of.bias.item() == pytest.approx(intercept, abs=0.02)
    assert {"t.nll", "y.nll"} <= set(done.history.columns)


# Players ------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """x = shift + scale z."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.log = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.shift + self.log.exp() * z


class Adversarial(Objective):
    """The non-saturating game; the critic belongs to the objective."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))
        self.clean: list[bool] = []  # whether no gradient was left over, a turn

    def players(self, model):
        slow = {"betas": (0.5, 0.9), "lr": 0.02}
        return [
            Player("critic", self.critic.parameters(), **slow),
            Player("generator", model.parameters(), **slow),
        ]

    def loss(self, model, batch, player, step):
        def judge(v):
            return self.critic(v[:, None])[:, 0]

        fake = model(torch.randn_like(batch.values["x"]))
        everyone = [*model.parameters(), *self.critic.parameters()]
        self.clean.append(all(p.grad is None for p in everyone))
        if player == "critic":
            return {"real": F.softplus(-judge(batch.values["x"])), "fake": F.softplus(judge(fake))}
        return {"fooled": F.softplus(-judge(fake))}


def play() -> tuple[float, Adversarial]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, game = Generator(), Adversarial()
        data = Batch({"x": 3 + 0.5 * torch.randn(512)})
    settings = {"warmup": 0, "decay": "constant", "ema": 0.99}
    quiet(model, data, game, steps=600, batch_size=64, **settings)
    with torch.no_grad():
        return float(model(torch.randn(4096)).mean()), game


def test_a_two_player_game_finds_the_distribution():
    mean, game = play()
    assert mean == pytest.approx(3, abs=0.5)
    assert all(game.clean)


def test_the_game_fails_where_gradients_leak(monkeypatch):
    monkeypatch.setattr(loop, "alone", lambda own, everyone: contextlib.nullcontext())
    mean, game = play()
    assert abs(mean - 3) > 0.5
    assert not all(game.clean)


def test_a_turn_lets_nothing_leak_and_restores_what_was():
    a, b, frozen = (nn.Linear(1, 1) for _ in range(3))
    frozen.requires_grad_(False)
    everyone = [p for m in (a, b, frozen) for p in m.parameters()]
    with contextlib.suppress(ZeroDivisionError), alone(a.parameters(), everyone):
        b(a(torch.ones(1, 1))).sum().backward()
        raise ZeroDivisionError
    assert all(p.grad is not None for p in a.parameters())
    assert all(p.grad is None for p in b.parameters())
    assert [p.requires_grad for p in everyone] == [True] * 4 + [False] * 2


class TwoHeads(Objective):
    """Two networks in a model, each with a player; `how` says what is wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.turns = how, []
        self.elsewhere = [nn.Linear(1, 1)]  # a list: not registered

    def players(self, model):
        a, b = list(model.a.parameters()), list(model.b.parameters())
        b = {
            "orphan": b[:1],
            "twice": [*b, a[0]],
            "shared": [*b, a[0]],
            "lost": [*b, *self.elsewhere[0].parameters()],
        }.get(self.how, b)
        shared = self.how == "shared"
        return [Player("a", a, shared=shared), Player("b", b, every=3, shared=shared)]

    def loss(self, model, batch, player, step):
        self.turns.append((player, step))
        x = batch.values["x"][:, :1]
        return {"out": (model.a if player == "a" else model.b)(x)[:, 0] + 0.0 * model.a.weight[0]}


def two() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("orphan", r"no player owns model\.b\.bias"),
        ("twice", r"players 'a' and 'b' both own 'model\.a\.weight'"),
        ("lost", r"player 'b' owns parameters of a network that is in neither"),
    ],
)
def test_ownership_is_checked(how, says):
    with pytest.raises(ValueError, match=says):
        quiet(two(), rows(), TwoHeads(how), steps=1)


def test_a_player_moves_every_so_often_and_columns_carry_its_name():
    game = TwoHeads("shared")
    history = quiet(two(), rows(), game, steps=5).history
    assert [s for p, s in game.turns if p == "b"] == [0, 3]
    assert [s for p, s in game.turns if p == "a"] == [0, 1, 2, 3, 4]
    assert {"a/out", "b/out"} <= set(history.columns)
    assert history["b/out"].notna().tolist() == [True, False, False, True, False]


def test_frozen_parameters_stay():
    model = Regression()
    model.line.bias.requires_grad_(False)
    quiet(model, rows(), steps=3, weight_decay=0.1)
    assert float(model.line.bias) == 0.0
    assert bool((model.line.weight != 0).all())


# Randomness, interruption, resumption -------------------------------------------------------------


def test_same_seed_same_weights_and_the_users_generator_is_untouched():
    runs = []
    for seed in (0, 0, 1):
        model = Regression(dropout=0.3)
        quiet(model, rows(), steps=8, seed=seed)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    model = Regression(dropout=0.3)
    before = torch.get_rng_state()
    quiet(model, rows(), steps=3, valid=rows(20, 1))
    assert torch.equal(before, torch.get_rng_state())


def loader() -> DataLoader:
    data = rows()
    pairs = [{"x": x, "y": y} for x, y in zip(data.values["x"], data.values["y"], strict=True)]
    return DataLoader(pairs, batch_size=12, shuffle=True)


def stop_at(step: int):
    def callback(moment):
        if moment.step == step:
            raise KeyboardInterrupt

    return callback


def logged(place):
    """The records of a run's table, without its empty cells."""
    frame = pandas.read_csv(place / "log.csv", float_precision="round_trip")
    return [{k: v for k, v in r.items() if v == v} for r in frame.to_dict("records")]


@pytest.mark.parametrize("data", [rows, loader], ids=["memory", "loader"])
@pytest.mark.parametrize("ema", [None, 0.99])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, data, ema):
    settings = {"steps": 20, "ema": ema, "lr": 0.1, "valid": rows(16, 1), "valid_every": 4}
    whole, parts = Regression(dropout=0.3), Regression(dropout=0.3)
    first = quiet(whole, data(), **settings)
    with pytest.raises(KeyboardInterrupt):
        quiet(parts, data(), directory=tmp_path, callbacks=[stop_at(10)], **settings)
    assert max(steps(tmp_path)) == 10
    parts = Regression(dropout=0.3)
    second = quiet(parts, data(), directory=tmp_path, resume=True, **settings)
    assert torch.equal(weights(whole), weights(parts))
    assert first.records == second.records == logged(tmp_path)
    assert (first.steps, first.rows, first.best) == (second.steps, second.rows, second.best)


def test_a_resumed_game_ends_in_the_same_bits(tmp_path):
    def start():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Generator(), Adversarial()

    settings = {"steps": 20, "batch_size": 8}
    data = Batch({"x": torch.linspace(2, 4, 32)})
    whole, parts = start(), start()
    quiet(whole[0], data, whole[1], **settings)
    stop = {"callbacks": [stop_at(7)]}
    with pytest.raises(KeyboardInterrupt):
        quiet(parts[0], data, parts[1], directory=tmp_path, **stop, **settings)
    parts = start()
    quiet(parts[0], data, parts[1], directory=tmp_path, resume=True, **settings)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(weights(a), weights(b))


def test_a_finished_run_can_be_made_longer(tmp_path):
    settings = {"decay": "constant", "warmup": 0, "directory": tmp_path}
    whole, parts = Regression(dropout=0.3), Regression(dropout=0.3)
    quiet(whole, rows(), steps=20, decay="constant", warmup=0)
    quiet(parts, rows(), steps=10, **settings)
    quiet(parts, rows(), steps=20, resume=True, **settings)
    assert torch.equal(weights(whole), weights(parts))
    again = quiet(Regression(), rows(), steps=20, resume=True, **settings)
    assert again.steps == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_step_and_its_checkpoint(tmp_path, number):
    heard = []
    before = signal.signal(number, lambda n, frame: heard.append((n, sorted(steps(tmp_path)))))
    try:
        done = quiet(
            Regression(),
            rows(),
            steps=50,
            save_every=50,
            directory=tmp_path,
            callbacks=[lambda m: os.kill(os.getpid(), number) if m.step == 6 else None],
        )
        assert signal.getsignal(number) is not signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert heard == [(number, [6])]
    assert done.steps == 6


def test_a_callback_can_end_the_run():
    done = quiet(Regression(), rows(), steps=50, callbacks=[lambda m: m.step == 4])
    assert (done.steps, done.reason) == (4, "callback")


# Checkpoints --------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path):
    valid = rows(32, 1)
    (tmp_path / ".step-000000003.cut-off").mkdir()
    (tmp_path / "notes").mkdir()
    done = quiet(
        Regression(), rows(), steps=12, save_every=3, valid=valid, valid_every=2, directory=tmp_path
    )
    names = sorted(p.name for p in tmp_path.iterdir())
    best = f"best-{done.best['step']:09d}"
    assert names == [best, "log.csv", "notes", "step-000000009", "step-000000012"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path):
    whole = Regression()
    quiet(whole, rows(), steps=12)
    quiet(Regression(), rows(), steps=12, save_every=4, directory=tmp_path)
    last = tmp_path / "step-000000012"
    file = last / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    settings = {"steps": 12, "resume": True, "directory": tmp_path}
    with pytest.raises(StoreError, match=r"weights\.safetensors.*delete .*step-000000012"):
        quiet(Regression(), rows(), **settings)
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    again = Regression()
    quiet(again, rows(), **settings)
    assert torch.equal(weights(whole), weights(again))


def test_no_checkpoint_holds_a_pickle(tmp_path):
    quiet(Regression(), rows(), steps=2, directory=tmp_path)
    found = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {".json", ".safetensors", ".csv"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch_size": 8}, "batch_size=16, not 8"),
        ({"ema": None}, "averaged=True, not False"),
        ({"data": rows(80)}, "rows=64, not 80"),
        ({"model": nn.Linear(3, 1)}, "another model"),
    ],
)
def test_a_run_goes_on_as_it_began(tmp_path, change, says):
    class Sum(Objective):
        def loss(self, model, batch, player, step):
            return {"out": sum(p.sum() for p in model.parameters()).expand(len(batch))}

    settings = {"model": Regression(), "data": rows(), "objective": Sum(), "steps": 2}
    quiet(**settings, directory=tmp_path)
    with pytest.raises(StoreError, match=says):
        quiet(**{**settings, **change}, directory=tmp_path, resume=True)


# Validation ---------------------------------------------------------------------------------------


def test_validation_is_of_the_averaged_model_and_the_last_is_what_you_get():
    valid, model = rows(50, 1), Regression()
    seen = []

    class Spy(Objective):
        def loss(self, model, batch, player, step):
            seen.append((model.training, torch.is_grad_enabled(), len(batch)))
            return model.loss(batch)

    done = quiet(model, rows(), Spy(), steps=10, lr=0.1, valid=valid, valid_every=5)
    exact = sum(v.mean().item() for v in model.loss(valid).values())
    assert done.history["valid/loss"].dropna().iloc[-1] == pytest.approx(exact, rel=1e-5)
    assert [n for training, _, n in seen if not training] == [16, 16, 16, 2] * 2
    assert all(training == grad for training, grad, _ in seen)


def test_patience_ends_the_run_with_the_best_weights():
    train, valid = rows(16), rows(16, seed=1)
    valid = Batch({"x": valid.values["x"], "y": -valid.values["y"]})  # training makes it worse
    model = Regression()
    settings = {"valid": valid, "valid_every": 1, "patience": 3, "ema": None}
    done = quiet(model, train, steps=200, lr=0.05, **settings)
    assert (done.reason, done.steps) == ("patience", done.best["step"] + 3)
    losses = done.history["valid/loss"].dropna()
    assert done.best["loss"] == losses.min()
    exact = sum(v.mean().item() for v in model.loss(valid).values())
    assert exact == pytest.approx(done.best["loss"], rel=1e-5)


def test_patience_holds_over_a_resumption(tmp_path):
    valid = rows(16, seed=1)
    valid = Batch({"x": valid.values["x"], "y": -valid.values["y"]})
    settings = {"valid": valid, "valid_every": 1, "patience": 4, "steps": 200, "lr": 0.05}
    whole, parts = Regression(), Regression()
    first = quiet(whole, rows(), **settings)
    stop = {"callbacks": [stop_at(first.steps - 2)]}
    with pytest.raises(KeyboardInterrupt):
        quiet(parts, rows(), directory=tmp_path, **stop, **settings)
    parts = Regression()
    second = quiet(parts, rows(), directory=tmp_path, resume=True, **settings)
    assert (first.steps, first.best) == (second.steps, second.best)
    assert torch.equal(weights(whole), weights(parts))


def test_a_best_from_beyond_the_checkpoint_is_not_trusted(tmp_path):
    settings = {"valid": rows(16, 1), "valid_every": 1, "patience": 5, "steps": 12}
    quiet(Regression(), rows(), directory=tmp_path, save_every=5, lr=0.05, **settings)
    shutil.rmtree(tmp_path / "step-000000012")  # as if the power went off before it was written
    assert list(steps(tmp_path, "best")) == [12]
    model = Regression()
    done = quiet(model, rows(), directory=tmp_path, resume=True, lr=0.02, **settings)
    assert done.best["step"] == 12
    kept = read(steps(tmp_path, "best")[12], "state.json")[1]["model.safetensors"]
    assert torch.equal(kept["line.weight"], model.line.weight)


# Precision, threads, faces ------------------------------------------------------------------------


def test_mixed_precision_computes_in_halves_and_keeps_whole_weights():
    found = set()

    class Spy(Objective):
        def loss(self, model, batch, player, step):
            found.add(model.line(batch.values["x"]).dtype)
            return model.loss(batch)

    model = Regression()
    done = quiet(model, rows(), Spy(), steps=60, lr=0.05, precision="bf16")
    assert found == {torch.bfloat16}
    assert model.line.weight.dtype == torch.float32
    assert done.history["error"].iloc[-5:].mean() < 0.2 * done.history["error"][0]
    with pytest.raises(ValueError, match="'bf16' on a CPU"):
        quiet(Regression(), rows(), steps=1, precision="fp16")


def test_double_precision_is_kept():
    model, data = Regression().double(), rows().to(torch.float64)
    quiet(model, data, steps=3)
    assert model.line.weight.dtype == torch.float64


def test_no_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(5)
        quiet(
            Regression(),
            rows(),
            steps=1,
            callbacks=[lambda m: found.append(torch.get_num_threads())],
        )
        assert (found, torch.get_num_threads()) == ([2], 5)
    finally:
        torch.set_num_threads(before)


def test_the_bar_shows_terms_and_can_be_turned_off(capsys):
    fit(Regression(), rows(), steps=3, batch_size=16, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(Regression(), rows(), steps=3, batch_size=16)
    shown = capsys.readouterr().err
    assert "rows/s" in shown
    assert "error=" in shown


def test_trackers_get_every_record():
    from accelerate.tracking import GeneralTracker

    class Kept(GeneralTracker):
        name, requires_logging_directory = "kept", False

        def __init__(self):
            super().__init__()
            self.config, self.rows, self.closed = {}, [], False

        @property
        def tracker(self):
            return self.rows

        def store_init_configuration(self, values):
            self.config = values

        def log(self, values, step=None, **kwargs):
            self.rows.append({"step": step, **values})

        def finish(self):
            self.closed = True

    tracker = Kept()
    done = quiet(Regression(), rows(), steps=4, trackers=[tracker])
    assert tracker.rows == done.records
    assert tracker.config["lr"] == 1e-3
    assert tracker.closed
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        quiet(Regression(), rows(), steps=1, trackers=["tensorbord"])


def test_tensorboard_gets_the_terms_by_name(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"trackers": ["tensorboard"], "directory": tmp_path, "valid": rows(16, 1)}
    quiet(Regression(), rows(), steps=3, valid_every=3, **settings)
    done = quiet(Regression(), rows(), steps=6, valid_every=3, resume=True, **settings)
    events = EventAccumulator(str(tmp_path / "subjunctive"))
    events.Reload()
    history = done.history.set_index("step")
    assert {"error", "size", "loss", "valid/error", "valid/loss"} <= set(events.Tags()["scalars"])
    for term in events.Tags()["scalars"]:
        told = {e.step: e.value for e in events.Scalars(term)}
        kept = history[term].dropna()
        assert list(told) == list(kept.index), term  # over the resumption, too
        np.testing.assert_allclose(list(told.values()), kept, rtol=1e-6)
    assert "lr: 0.001" in next(tmp_path.rglob("hparams.yml")).read_text()
    with pytest.raises(ValueError, match="'tensorboard' writes files: give fit a directory"):
        quiet(Regression(), rows(), steps=1, trackers=["tensorboard"])
    assert sorted(steps(tmp_path)) == [5, 6]  # what the tracker writes is no checkpoint


def test_a_tracker_that_is_not_installed_says_what_to_install(monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    model = Regression()
    for name in ("wandb", "tensorboard"):
        with pytest.raises(ValueError, match=rf"'{name}' is not installed: pip install .*{name}"):
            quiet(model, rows(), steps=1, trackers=[name])
    assert bool((weights(model) == 0).all())


# Bad input ----------------------------------------------------------------------------------------


class Spoilt(Regression):
    """A term turns infinite at step 5."""

    def loss(self, batch):
        self.count = getattr(self, "count", 0) + 1
        bad = math.inf if self.count == 5 else 0.0
        return {**super().loss(batch), "kl": torch.full((len(batch),), bad)}


def test_divergence_names_the_term_the_step_and_the_checkpoint(tmp_path):
    model = Spoilt()
    with pytest.raises(Diverged, match=r"'kl'.* inf at step 5.*step-000000004"):
        quiet(model, rows(), steps=9, save_every=2, directory=tmp_path)
    assert bool(torch.isfinite(weights(model)).all())
    assert [record["step"] for record in logged(tmp_path)] == [1, 2, 3, 4]
    with pytest.raises(Diverged, match="No checkpoint"):
        quiet(Spoilt(), rows(), steps=9)


def test_a_directory_with_a_run_is_left_alone(tmp_path):
    quiet(Regression(), rows(), steps=3, directory=tmp_path)
    model = Regression()
    with pytest.raises(ValueError, match=r"holds a run already \(at step 3\).*resume=True"):
        quiet(model, rows(), steps=3, directory=tmp_path)
    assert bool((weights(model) == 0).all())


def frozen() -> nn.Module:
    return Regression().requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": None}, "give steps or epochs"),
        ({"epochs": 1}, "give steps or epochs"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"steps": None, "epochs": -1}, "epochs must be positive"),
        ({"batch_size": 65}, "batch_size is 65, but data has 64 rows; give batch_size=64"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be zero or more"),
        ({"warmup": -1}, "warmup must be"),
        ({"decay": "cosin"}, "Did you mean 'cosine'"),
        ({"precision": "bf15"}, "Did you mean 'bf16'"),
        ({"clip": 0.0}, "clip must be positive, or None"),
        ({"ema": 1.0}, "ema must be between 0 and 1, or None"),
        ({"patience": 0, "valid": rows()}, "patience must be"),
        ({"patience": 1}, "give valid"),
        ({"valid_every": 0}, "valid_every must be"),
        ({"save_every": 0}, "save_every must be"),
        ({"seed": -1}, "seed must be"),
        ({"resume": True}, "needs the directory"),
        ({"directory": __file__}, "is a file"),
        ({"data": rows()[:0]}, "data is empty"),
        ({"data": []}, "data is empty"),
        ({"data": iter([rows()])}, "iterated once only"),
        ({"data": 3}, "data is a int"),
        ({"data": [torch.ones(2)]}, "gives a Tensor"),
        ({"valid": rows()[:0]}, "valid is empty"),
        ({"model": frozen()}, "nothing to fit"),
        ({"model": nn.Linear(1, 1)}, r"no loss\(batch\)"),
        ({"model": lambda: 0}, "trains an nn.Module"),
    ],
)
def test_bad_input_is_named_before_any_work(change, says):
    settings = {"model": Regression(), "data": rows(), "steps": 3, **change}
    with pytest.raises(ValueError, match=says):
        quiet(**settings)
    if isinstance(settings["model"], Regression):
        assert bool((weights(settings["model"]) == 0).all())


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        (lambda w, n: {}, "has no term"),
        (lambda w, n: {"a": w.sum()}, r"term 'a' of player 'model' is \(\); .* \(16,\)"),
        (lambda w, n: {"a": 3.0}, "term 'a' of player 'model' is float"),
        (lambda w, n: {"a": torch.ones(n)}, "does not depend on its parameters"),
    ],
)
def test_losses_must_be_rows_of_the_parameters(terms, says):
    class Odd(Objective):
        def loss(self, model, batch, player, step):
            return terms(model.line.weight, len(batch))

    with pytest.raises(ValueError, match=says):
        quiet(Regression(), rows(), Odd(), steps=1)


# Feed ---------------------------------------------------------------------------------------------


def test_every_row_is_seen_equally_often_and_slices_make_up_the_batch():
    data = Batch({"x": torch.arange(10)})
    stream = Feed(data, 4, seed=3).batches()
    seen = [next(stream)[0].values["x"] for _ in range(5)]
    assert torch.equal(torch.cat(seen).bincount(), torch.full((10,), 2))
    first, second = torch.cat(seen).split(10)
    assert not torch.equal(first, torch.arange(10))
    assert not torch.equal(first, second)
    late = Feed(data, 4, seed=3).batches(start=3)
    assert torch.equal(next(late)[0].values["x"], seen[3])
    parts = [Feed(data, 4, seed=3).batches(0, rank, 3) for rank in range(3)]
    for whole in seen:
        pieces = [next(part) for part in parts]
        assert torch.equal(torch.cat([p.values["x"] for p, _ in pieces]), whole)
        assert {size for _, size in pieces} == {4}


def test_steps_of_a_pass():
    assert Feed(rows(), 48).steps(3) == 4
    assert Feed([rows(), rows()], 1).steps(1.5) == 3
    endless = type("Endless", (), {"__iter__": lambda self: iter([rows()])})()
    with pytest.raises(ValueError, match="give steps instead of epochs"):
        Feed(endless, 1).steps(1)
    empty = type("Empty", (), {"__iter__": lambda self: iter([])})()
    with pytest.raises(ValueError, match="gave no batch"):
        quiet(Regression(), empty, steps=1)
