"""A run that is killed, or whose disk is full, leaves checkpoints that load."""

import os
import random
import resource
import signal

import pytest
import torch

from subjunctive import checkpoint
from subjunctive.checkpoint import STATE, StoreError
from subjunctive.graph import Graph
from subjunctive.mechanisms import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and forks")


def sound(place):
    """Return the last step of a directory, after reading every checkpoint in it."""
    found = checkpoint.steps(place)
    for step, path in found.items():
        document, files = checkpoint.read(path, STATE)
        assert document["step"] == document["fit"] == step
        assert (files["weights.safetensors"]["a"] == step).all()
    return max(found, default=0)


def fork(work):
    """Run `work` in a forked child, which never returns to the tests."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return child


@posix
def test_killed_at_a_hundred_instants_every_checkpoint_loads(tmp_path):
    draws, last = random.Random(0), 0

    def write():
        step = last
        while True:
            step += 1
            tensors = {"a": torch.full((64, 64), float(step))}
            checkpoint.put(tmp_path, step, {"fit": step}, {"weights.safetensors": tensors})

    moved = 0
    for _ in range(100):
        child = fork(write)
        # The instant is drawn in work done by the child, not in seconds of a busy machine.
        goal = last + draws.randint(0, 2)
        while max(checkpoint.steps(tmp_path), default=0) < goal:
            pass
        for _ in range(draws.randint(0, 400)):
            os.getpid()
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        now = sound(tmp_path)
        assert now >= goal
        moved += now > last
        last = now
    assert moved > 20
    kept = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert 1 <= len(kept) <= 3


@posix
def test_the_test_itself_sees_a_checkpoint_that_was_written_in_place(tmp_path):
    def write():
        place = tmp_path / "step-000000001"
        place.mkdir()
        (place / STATE).write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(write), 0)
    with pytest.raises(StoreError, match="not JSON"):
        sound(tmp_path)


@posix
def test_a_full_disk_loses_nothing(tmp_path):
    tensors = {"a": torch.full((64, 64), 1.0)}
    checkpoint.put(tmp_path, 1, {"fit": 1}, {"weights.safetensors": tensors})

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # less than the weights need
        big = {"a": torch.full((64, 64), 2.0)}
        try:
            checkpoint.put(tmp_path, 2, {"fit": 2}, {"weights.safetensors": big})
        except OSError:
            return 7
        return 0

    _, status = os.waitpid(fork(write), 0)
    assert os.WEXITSTATUS(status) == 7  # it was said, not swallowed
    assert list(checkpoint.steps(tmp_path)) == [1]
    assert sound(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def line():
    graph = Graph.parse("t")
    return SCM(graph, {"t": LinearGaussian(Variable("t"))}), Batch(
        {"t": torch.linspace(4.0, 6.0, 64)}
    )


@posix
def test_a_second_run_into_one_directory_is_refused_and_spoils_nothing(tmp_path):
    place = tmp_path / "run"

    def intrude(moment):
        model, data = line()
        with pytest.raises(StoreError, match=r"another run is writing to .*run.*another directory"):
            fit(model, data, steps=2, directory=place, progress=False)
        with pytest.raises(StoreError, match="another run"):
            fit(model, data, steps=2, directory=place, resume=True, progress=False)
        fit(model, data, steps=2, directory=tmp_path / "other", progress=False)
        return True

    model, data = line()
    options = {"save_every": 2, "progress": False}  # so that nothing lies there yet
    fit(model, data, steps=2, directory=place, callbacks=[intrude], **options)
    done = fit(model, data, steps=2, directory=place, resume=True, progress=False)
    assert done.steps == 2  # the claim ended with the run


@posix
def test_a_killed_run_leaves_no_claim(tmp_path):
    def work():
        with checkpoint.claimed(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(work), 0)
    with checkpoint.claimed(tmp_path):
        pass


def test_a_model_whose_replacement_was_killed_half_way_is_said_to_be_beside(tmp_path):
    place = tmp_path / "model"
    checkpoint.write(place, STATE, {"kind": "x"}, {})
    os.replace(place, tmp_path / ".model.1f.old")  # the instant between the two renames
    with pytest.raises(StoreError, match=r"\.model\.1f\.old is what stood there.*rename it"):
        checkpoint.read(place, STATE)
