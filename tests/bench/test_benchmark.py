"""Cells as processes: what one of them does wrong stays its own, and what is finished stays.

The cells here do no work: a few lines of Python take their task and end as they are told to, by a
number in their model's settings. Real cells are run in `test_cell.py` and `test_bench_command.py`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import joblib
import pandas
import pytest

from subjunctive.bench import benchmark, code, run
from subjunctive.checkpoint import StoreError

FINE, RAISES, KILLED, HANGS = 8, 9, 10, 11  # bins of a flow, by which a cell knows what to do
TEMPLATE = """
import json, os, shutil, signal, sys
from pathlib import Path
from subjunctive.bench.kept import Kept
task = json.loads(sys.stdin.readline())
place, settings = Path(task["folder"]).parent, task["settings"]
with (place / "log").open("a") as log:
    log.write(task["key"] + "\\n")
what = settings.get("model", settings["data"]).get("bins", 8)
if what == 9:
    raise ValueError("the model is no good")
if what == 10:
    os.kill(os.getpid(), signal.SIGKILL)
if what == 11:
    while os.read(0, 1):
        pass
    (place / "orphan ended").touch()
    sys.exit(3)
def files(path):
    shutil.copy({template!r}, path / "scores.parquet")
Kept(task["folder"]).put(task["key"], {"chosen": {"lr": 0.1}, "seconds": 1.0}, files)
"""
DATA = {"$class": "data.tabular.Linear", "graph": "t -> y"}


def flow(bins=FINE, **options):
    return {"$class": "mechanisms.flow.ConditionalFlow", "bins": bins, **options}


def config(models, **options):
    data = options.pop("data", {"one": DATA})
    return {"tracks": {"tables": {"data": data, "models": models}}, **options}


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Cells that do no work; returns the text of their program."""
    template = tmp_path / "template.parquet"
    row = {"method": "model", "intervention": "do(t)", "support": "inside", "metric": "distance",
           "node": "y", "value": 1.0, "floor": 0.0, "unit": "", "scale": 1.0,
           "image": ""}  # fmt: skip
    pandas.DataFrame([row]).to_parquet(template)
    text = TEMPLATE.replace("{template!r}", repr(str(template)))
    monkeypatch.setattr(run, "CODE", text)
    return text


@pytest.fixture
def place(tmp_path):
    return tmp_path / "out"


def did(place):
    """How many times each key was worked on."""
    lines = (place / "log").read_text().split()
    return {key: lines.count(key) for key in lines}


def go(plan, place, **options):
    return benchmark(plan, place, progress=False, **options)


def test_a_failure_is_told_and_not_contagious(stub, place):
    models = {"fine": flow(), "raises": flow(RAISES), "killed": flow(KILLED), "hangs": flow(HANGS)}
    asked = config(models, limit=0.6)
    done = go(asked, place, jobs=2)
    cells = done.cells.set_index("model")
    assert cells.status.to_dict() == {"": "done", "fine": "done", "raises": "failed",
                                      "killed": "failed", "hangs": "failed"}  # fmt: skip
    assert cells.error["raises"] == "ValueError: the model is no good"
    assert "SIGKILL" in cells.error["killed"]
    assert "memory" in cells.error["killed"]
    assert cells.error["hangs"] == "took more than 0.6 s, its limit"
    assert done.new == 2
    page = (place / "report.html").read_text()
    assert "ValueError: the model is no good" in page
    assert set(done.scores.model) == {"fine", "model"}  # the template's row, of the data's cell
    tracebacks = (place / "failed" / f"{cells.key['raises']}.txt").read_text()
    assert "Traceback" in tracebacks

    again = go(asked, place, jobs=2)  # what failed is tried again, what is finished is not
    assert again.new == 0
    assert did(place) == {k: 1 if m in ("", "fine") else 2 for m, k in cells.key.items()}


def test_a_cell_that_fails_no_more_is_finished(stub, place, monkeypatch):
    asked = config({"raises": flow(RAISES)})
    go(asked, place)
    monkeypatch.setattr(run, "CODE", stub.replace("what == 9", "False"))
    done = go(asked, place)
    assert done.cells.status.tolist() == ["done", "done"]
    assert not list((place / "failed").iterdir())


def test_without_its_data_no_model_is_tried(stub, place, monkeypatch):
    monkeypatch.setattr(run, "CODE", stub.replace('settings["data"])', '{"bins": 9})'))
    done = go(config({"fine": flow()}), place)
    assert done.cells.status.tolist() == ["failed", "failed"]
    assert done.cells.error[1] == "what all models need of one failed"
    assert len(did(place)) == 1


def test_a_seed_more_computes_only_new_cells(stub, place):
    asked = config({"a": flow(), "b": flow(transforms=2)})
    first = go(asked, place, seeds=[0])
    before = did(place)
    both = go(asked, place, seeds=[0, 3])
    assert (first.new, both.new) == (3, 3)
    assert did(place).items() >= before.items()
    assert set(both.scores.seed) == {0, 3}
    assert len(both.cells) == 6


def test_only_what_a_result_hangs_on_makes_it_old(stub, place, monkeypatch):
    models = {"a": flow(), "b": flow(transforms=2)}
    asked = config(models)
    go(asked, place)
    assert go(asked, place).new == 0
    assert go(config(dict(zip("xy", models.values(), strict=True))), place).new == 0  # new names
    assert go(config(models, limit=77.0), place).new == 0
    assert go(config(models, seconds=77.0), place).new == 2  # the data's own cell has no budget
    assert go(config(models, rows=77), place).new == 3
    changed = dict(code.modules())
    monkeypatch.setattr(code, "modules", lambda: changed)
    for name, new in (("mechanisms.vae", 0), ("mechanisms.flow", 3), ("metrics.scores", 3)):
        module = f"subjunctive.{name}"  # labels of pictures have flows, too
        changed[module] = changed[module]._replace(hash="other")
        assert go(asked, place).new == new, name


def await_it(happened):
    """Wait for what another process does; for minutes, should the machine be busy."""
    tick = threading.Event()
    for _ in range(6000):
        if happened():
            return
        tick.wait(0.05)
    pytest.fail("it never happened")


START = """
import sys
from subjunctive.bench import benchmark, run
run.CODE = {stub!r}
benchmark({config!r}, {place!r}, jobs=2, progress=False)
"""


def test_a_killed_benchmark_resumes_and_leaves_no_orphan(stub, place, monkeypatch):
    asked = config({"fine": flow(), "hangs": flow(HANGS)})
    script = START.format(stub=stub, config=asked, place=str(place))
    path = os.pathsep.join(filter(None, sys.path))
    running = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}
    )
    plan = run.read_plan(asked)
    fine = next(c.key for c in plan.cells if c.model == "fine")
    await_it(lambda: run.Kept(place / "cells").find(fine) and len(did(place)) == 3)
    with pytest.raises(StoreError, match="another run is writing"):
        go(asked, place)
    running.send_signal(signal.SIGKILL)
    running.wait()
    await_it((place / "orphan ended").exists)  # its standard input has closed
    monkeypatch.setattr(run, "CODE", stub.replace("what == 11", "False"))
    done = go(asked, place)
    assert done.new == 1
    assert done.cells.status.tolist() == ["done"] * 3
    assert sorted(did(place).values()) == [1, 1, 2]


def test_a_cell_that_leaves_nothing_has_failed(stub, place, monkeypatch):
    monkeypatch.setattr(run, "CODE", stub.replace("Kept(task", "Kept(str(place) + task"))
    done = go(config({"fine": flow()}), place)
    assert done.cells.error[0].startswith("ended well, but left no")


def test_a_cell_ends_when_its_benchmark_was_ended(stub, tmp_path):
    asked = run.read_plan(config({"hangs": flow(HANGS)}))
    cell = asked.cells[-1]
    (tmp_path / run.RUNNING).write_text("another run")
    said = run.run_cell(cell.key, dict(cell.settings), 60.0, str(tmp_path), "this run", stub)
    assert said == "the benchmark was ended"


def test_threads_and_paths_reach_the_cell(stub, place, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    told = '(place / "e").write_text(json.dumps(dict(os.environ)))'
    monkeypatch.setattr(run, "CODE", stub.replace("what =", f"{told}\nwhat =", 1))
    go(config({"a": flow()}, threads=3), place)
    seen = json.loads((place / "e").read_text())
    assert seen["OMP_NUM_THREADS"] == "3"
    assert str(tmp_path / "mine") in seen["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_the_user_chooses_who_hands_cells_out(stub, place, backend):
    models = {"fine": flow(), "raises": flow(RAISES)}
    if backend == "loky":
        with joblib.parallel_config(backend="loky", n_jobs=1):
            done = go(config(models), place)
    else:
        distributed = pytest.importorskip("distributed")
        alone = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
        with (
            distributed.LocalCluster(**alone, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
            joblib.parallel_config(backend="dask", client=client),
        ):
            done = go(config(models), place)
    assert done.cells.status.tolist() == ["done", "done", "failed"]
    assert done.new == 2


def test_parquet_is_asked_for_before_any_work(monkeypatch, place):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"subjunctive\[bench\]"):
        go(config({"a": flow()}), place)
    assert not Path(place).exists()
