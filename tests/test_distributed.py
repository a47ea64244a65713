"""Two processes that share every batch end where one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from subjunctive.checkpoint import read, steps
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch


class Halves(nn.Module):
    """Two lines, one a half-space: a process whose rows lie in one of them has one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.never = (nn.Linear(2, 1) for _ in range(3))
        for line in (self.left, self.right, self.never):
            nn.init.constant_(line.weight, 0.1)
            nn.init.zeros_(line.bias)


class Game(Objective):
    """Each half has a player; a term stands only where it has rows."""

    def players(self, model: nn.Module) -> list[Player]:
        left = [*model.left.parameters(), *model.never.parameters()]
        return [Player("left", left), Player("right", model.right.parameters(), every=2)]

    def loss(self, model, batch, player, step):
        x, y = batch.values["x"], batch.values["y"]
        mine = (x[:, 0] < 0) == (player == "left")
        terms = {"zero": torch.zeros(len(y))}
        if bool(mine.any()):
            line = model.left if player == "left" else model.right
            terms["error"] = torch.where(mine, (line(x)[:, 0] - y).square(), 0.0)
        return terms


def data(n: int, seed: int) -> Batch:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=make)
    return Batch({"x": x, "y": x.abs().sum(1)})


def train(directory: Path) -> dict:
    model = Halves()
    if os.environ.get("RANK") == "1":  # the first process's weights count
        nn.init.ones_(model.left.weight)
    done = fit(
        model,
        data(21, 0),
        Game(),
        steps=30,
        batch_size=3,
        lr=0.05,
        weight_decay=0.3,
        valid=data(7, 1),
        valid_every=10,
        save_every=30,
        directory=directory,
        progress=False,
    )
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    return {"weights": weights, "best": done.best, "rows": done.rows, "last": done.records[-1]}


def launch(rank: int, port: int, directory: Path) -> subprocess.Popen:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    ours |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    environment |= {name: str(value) for name, value in ours.items()}
    command = [sys.executable, "-W", "ignore", __file__, str(directory)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_give_the_weights_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [launch(rank, port, tmp_path / "two") for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second
    one = train(tmp_path / "one")
    for name, value in one["weights"].items():
        got = torch.tensor(first["weights"][name])
        torch.testing.assert_close(got, torch.tensor(value), atol=1e-5, rtol=1e-4)
    assert first["rows"] == one["rows"] == 90
    assert first["best"] == {
        "step": one["best"]["step"],
        "loss": pytest.approx(one["best"]["loss"], rel=1e-4),
    }
    assert first["last"] == pytest.approx(one["last"], rel=1e-4)
    never = first["weights"]["never.weight"][0]
    assert never == pytest.approx([0.1, 0.1])  # no gradient in any process: not even decayed
    for kind in ("one", "two"):
        assert max(steps(tmp_path / kind)) == 30
    files = [read(steps(tmp_path / kind)[30], "state.json")[1] for kind in ("one", "two")]
    a, b = (file["weights.safetensors"] for file in files)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    found = train(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
    sys.stdout.write("\n" + json.dumps(found) + "\n")
