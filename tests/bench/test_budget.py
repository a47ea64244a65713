"""Training for a time, by a clock that counts what is done instead of seconds."""

import math

import pytest
import torch
from torch import nn

from subjunctive.bench import budget
from subjunctive.bench.budget import tuned
from subjunctive.graph import Graph
from subjunctive.mechanisms import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.train import Diverged, Objective
from subjunctive.variable import Batch, Variable

T = Variable("t")
ROWS = Batch({"t": torch.linspace(1.0, 3.0, 64)})


class Clock:
    """A second for each look at it, which a step costs once."""

    def __init__(self):
        self.time, self.pace = 0.0, 1.0

    def __call__(self):
        self.time += self.pace
        return self.time


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setitem(budget.CLOCKS, "wall", made)
    return made


def build():
    return SCM(Graph.parse("t"), {"t": LinearGaussian(T)}), None


def test_the_time_is_spent_and_the_better_rate_is_chosen(clock):
    done = tuned(build, ROWS, ROWS, 500.0, {"lr": [1e-6, 0.1]}, how={"warmup": 0})
    assert done.chosen == {"lr": 0.1}
    assert [t["lr"] for t in done.tried] == [1e-6, 0.1]
    assert done.tried[1]["valid"] < done.tried[0]["valid"]
    assert 450 < clock.time <= 500 * budget.GRACE
    assert 300 < done.steps < 500 * 0.8  # a fifth went into the choice
    assert not done.cut
    assert float(done.model.sample(500, seed=0)["t"].mean()) == pytest.approx(2.0, abs=0.2)


def test_one_setting_needs_no_choice_and_a_seed_gives_the_same(clock):
    runs = []
    for _ in range(2):
        clock.time = 0.0
        runs.append(tuned(build, ROWS, ROWS, 100.0, {"lr": [0.01]}, seed=3))
    assert [r.tried for r in runs] == [[], []]
    assert runs[0].steps == runs[1].steps > 75
    a, b = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in runs)
    assert torch.equal(a, b)


def test_every_setting_of_a_grid_is_tried(clock):
    grid = {"lr": [0.01, 0.1], "batch_size": [16, 32]}
    done = tuned(build, ROWS, ROWS, 300.0, grid)
    tried = [(t["lr"], t["batch_size"]) for t in done.tried]
    assert tried == [(0.01, 16), (0.01, 32), (0.1, 16), (0.1, 32)]
    assert set(done.chosen) == {"lr", "batch_size"}


class Brittle(nn.Module):
    """Its loss is not finite once its parameter has gone far, as a high rate lets it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        broken = self.a.detach().abs() > 0.5
        return {"x": (self.a - batch.values["t"]).square() * (math.nan if broken else 1.0)}


def test_a_rate_that_diverges_is_not_chosen_and_without_another_it_is_told(clock):
    how = {"warmup": 0, "decay": "constant", "clip": None}
    done = tuned(lambda: (Brittle(), None), ROWS, ROWS, 300.0, {"lr": [1e-4, 3e-2]}, how=how)
    assert done.chosen == {"lr": 1e-4}
    assert done.tried[1]["valid"] == math.inf
    with pytest.raises(Diverged):
        tuned(lambda: (Brittle(), None), ROWS, ROWS, 300.0, {"lr": [3e-2]}, how=how)


def test_a_run_that_is_slower_than_its_pace_is_cut(clock):
    class Slowing(nn.Module):
        steps = 0

        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))

        def loss(self, batch):
            Slowing.steps += 1
            clock.pace = 1.0 if Slowing.steps < 30 else 5.0
            return {"x": (self.a - batch.values["t"]).square()}

    done = tuned(lambda: (Slowing(), None), ROWS, ROWS, 200.0, {"lr": [0.01]})
    assert done.cut
    assert done.steps < 80
    assert clock.time <= 200 * budget.GRACE + 4 * 5.0


class Twice(Objective):
    """The model's own loss, shifted: what is minimised, and what choices are made by."""

    def loss(self, model, batch, player, step):
        return {"shifted": sum(model.loss(batch).values()) + 1000.0}


def test_an_objective_of_its_own_is_minimised_and_judged_by(clock):
    done = tuned(lambda: (build()[0], Twice()), ROWS, ROWS, 100.0, {"lr": [0.01, 0.1]})
    assert all(t["valid"] > 1000 for t in done.tried)
