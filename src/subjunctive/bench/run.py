"""Run a benchmark: every cell a process of its own, as many at once as the user's backend gives.

joblib hands cells out; by itself it keeps threads that only wait for their processes, and under
`joblib.parallel_config(backend="dask")` or `"ray"` a cluster's workers do, to whom the folder must
be visible. What a cell cannot survive (an exception, a signal, too much time or memory) is noted
and told; the others go on, and the next run tries that cell again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subjunctive.bench.kept import SCORES, Kept
from subjunctive.bench.plan import Cell, Plan, read_plan
from subjunctive.checkpoint import claimed

if TYPE_CHECKING:
    from pandas import DataFrame

CELLS, FAILED, RUNNING = "cells", "failed", ".running"
CODE = "from subjunctive.bench.cell import main; main()"
LATEST = 0.5  # seconds until a cell is ended whose benchmark is no more
MEMORY = " (the system does so when memory runs out)"


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Args:
        plan: what was asked.
        folder: where everything is: `scores.parquet`, `cells.parquet`, `report.html`.
        scores: the rows of `evaluate` of every finished cell, with track, data, model and seed.
        cells: a row a model, data set and seed: `status` (done, failed or missing), `error`, what
            was chosen, and what it took.
        new: how many cells this run did.
    """

    plan: Plan
    folder: Path
    scores: DataFrame
    cells: DataFrame
    new: int = 0


def benchmark(
    config: str | Path | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] = "bench",
    *,
    preset: str | None = None,
    classes: Sequence[str | type] = (),
    jobs: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Benchmark:
    """Do the cells that are not finished, and write tables and a page about all of them.

    Args:
        config: a YAML file, or what it would hold; see `plan`.
        out: a folder, of this benchmark or of an earlier one that goes on: what is finished there,
            of the same settings and code, is not done again.
        preset: `quick` or `full`; see `read_plan`.
        classes: your own classes that the config names: dotted paths, or classes.
        jobs: cells at once; -1 for one a core. None for what `joblib.parallel_config` says.
        progress: show a bar.
        options: settings that come before the file's, such as `seeds` and `seconds`.

    Raises:
        ValueError: for a config that is wrong, before anything is done.
        ModuleNotFoundError: if Parquet's library is missing.
        StoreError: if another benchmark is writing to the folder.
    """
    if find_spec("pyarrow") is None:
        raise ModuleNotFoundError("results are kept as Parquet: pip install 'subjunctive[bench]'")
    plan = read_plan(config, preset=preset, classes=classes, **options)
    place = Path(out).absolute()
    kept, new = Kept(place / CELLS), 0
    with _running(place) as token:
        for shared in (True, False):
            todo = _todo(plan, kept, shared)
            for cell in todo if not shared else ():
                if kept.find(cell.needs) is None:
                    _note(place, cell.key, f"what all models need of {cell.data} failed")
            todo = [c for c in todo if shared or kept.find(c.needs) is not None]
            new += _parallel(todo, place, token, jobs, progress)
        found = collect(plan, place)
        from subjunctive.bench.report import report

        done = Benchmark(plan, place, found.scores, found.cells, new)
        report(done)
    return done


def _todo(plan: Plan, kept: Kept, shared: bool) -> list[Cell]:
    """Return the cells of one kind that are not finished, each once."""
    cells = {c.key: c for c in plan.cells if bool(c.model) != shared}
    return [c for c in cells.values() if kept.find(c.key) is None]


def _parallel(
    cells: Sequence[Cell], place: Path, token: str, jobs: int | None, progress: bool
) -> int:
    """Do cells, on whatever joblib's backend is; return how many ended well."""
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend
    from tqdm import tqdm

    if not cells:
        return 0
    lazily = get_active_backend()[0].supports_return_generator
    how: dict[str, Any] = {} if jobs is None else {"n_jobs": jobs}
    how["return_as"] = "generator_unordered" if lazily else "list"
    work = Parallel(prefer="threads", batch_size=1, **how)
    settings = [(c.key, dict(c.settings), c.limit) for c in cells]
    done = work(delayed(run_cell)(*s, str(place), token, CODE) for s in settings)
    what = "cells" if cells[0].model else "data sets"
    bar = tqdm(done, desc=what, total=len(cells), delay=2, disable=not progress)
    return sum(error is None for error in bar)


def run_cell(
    key: str, settings: Mapping[str, Any], limit: float, place: str, token: str, code: str = CODE
) -> str | None:
    """Do a cell in a process of its own; return what went wrong, if something did.

    Args:
        key, settings: the cell's.
        limit: seconds after which it is ended.
        place: the benchmark's folder.
        token: of the run; when the folder has another or none, nobody waits for the cell.
        code: the program that is run.
    """
    folder = Path(place)
    (folder / FAILED).mkdir(parents=True, exist_ok=True)
    log, note = (folder / FAILED / f"{key}.{end}" for end in ("txt", "json"))
    threads = str(settings["threads"])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads)}
    environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    task = {"key": key, "settings": dict(settings), "folder": str(folder / CELLS)}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        ended = _waited(process, json.dumps(task), limit, folder / RUNNING, token)
    if ended is None and process.returncode:
        ended = _why(process.returncode, log)
    elif ended is None and Kept(folder / CELLS).find(key) is None:
        ended = "ended well, but left no result"
    if ended is not None:
        _note(folder, key, ended)
        return ended
    log.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return None


def _waited(
    process: subprocess.Popen[bytes], task: str, limit: float, running: Path, token: str
) -> str | None:
    """Wait for a cell's process; end it when it is late, or when its benchmark is no more."""
    began = time.monotonic()
    try:
        if process.stdin is not None:
            try:
                process.stdin.write(f"{task}\n".encode())
                process.stdin.flush()  # it stays open: its end is the sign that we are gone
            except BrokenPipeError:
                pass  # it died at once; its exit code says why
        while True:
            try:
                process.wait(LATEST)
                return None
            except subprocess.TimeoutExpired:
                if time.monotonic() - began > limit:
                    return f"took more than {limit:g} s, its limit"
                if _token(running) != token:
                    return "the benchmark was ended"
    finally:
        if process.poll() is None:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            else:
                process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _why(code: int, log: Path) -> str:
    """Return what ended a process, in a line."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}{MEMORY if name == 'SIGKILL' else ''}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def _note(place: Path, key: str, error: str) -> None:
    (place / FAILED).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"error": error})
    (place / FAILED / f"{key}.json").write_text(text, encoding="utf-8")


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def _running(place: Path) -> Iterator[str]:
    """Keep a folder to one benchmark, and say in it that this one is running."""
    with claimed(place):
        token = uuid.uuid4().hex
        (place / RUNNING).write_text(token, encoding="utf-8")
        try:
            yield token
        finally:
            (place / RUNNING).unlink(missing_ok=True)


def collect(plan: Plan, out: str | os.PathLike[str]) -> Benchmark:
    """Read what a folder holds of a plan, write it as two tables, and return it.

    Args:
        plan: whose cells are looked for; those of other settings or other code are left out.
        out: the benchmark's folder.
    """
    import pandas

    place = Path(out).absolute()
    kept, scores, rows = Kept(place / CELLS), [], []
    for cell in plan.cells:
        path, about = kept.find(cell.key), kept.document(cell.key) or {}
        row: dict[str, Any] = {"track": cell.track, "data": cell.data, "model": cell.model,
                               "seed": cell.seed}  # fmt: skip
        if path is not None:
            frame = pandas.read_parquet(path / SCORES)
            frame.insert(0, "seed", cell.seed)
            frame["method"] = cell.model or frame.method
            frame = frame.rename(columns={"method": "model"})
            frame.insert(0, "data", cell.data)
            frame.insert(0, "track", cell.track)
            scores.append(frame)
        note = place / FAILED / f"{cell.key}.json"
        failed = json.loads(note.read_text(encoding="utf-8"))["error"] if note.exists() else ""
        status = "done" if path is not None else "failed" if failed else "missing"
        row |= {"status": status, "error": "" if status == "done" else failed, "key": cell.key}
        if path is not None:
            row |= {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in about.items()
                    if k != "tried"} | {"code": cell.settings["code"]}  # fmt: skip
        rows.append(row)
    filled = [f for f in scores if len(f)]
    table = pandas.concat(filled, ignore_index=True) if filled else pandas.DataFrame()
    cells = pandas.DataFrame(rows)
    place.mkdir(parents=True, exist_ok=True)
    table.to_parquet(place / SCORES, index=False)
    cells.to_parquet(place / "cells.parquet", index=False)
    return Benchmark(plan, place, table, cells)
