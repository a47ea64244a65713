"""Which code a result needs, read from sources; checked against what Python truly imports."""

import subprocess
import sys

import pytest

from subjunctive.bench import code
from subjunctive.bench.code import code_hash, needed, source


def test_what_is_needed_is_what_python_imports_and_no_more_than_rooms_bring():
    script = "import sys, subjunctive.bench.judge\nprint(*sys.modules)"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = {m for m in done.stdout.split() if m in code.modules()}
    found = set(needed(["bench.judge"]))
    rooms = {m for m, module in code.modules().items() if module.is_index}
    lazy = "subjunctive.index"  # which only finds names
    eager = {"data", "encoders", "metrics", "nn"}  # whose indexes import all that is in them
    missed = {m for m in loaded - found - rooms - {lazy} if m.split(".")[1] not in eager}
    assert not missed
    assert "subjunctive.metrics.evaluate" in found
    assert not {m for m in found if m.startswith(("subjunctive.plot", "subjunctive.cli"))}


def test_indexes_lead_to_the_module_where_a_name_stands(tmp_path):
    assert "subjunctive.mechanisms.discrete" in needed(["bench.entrants"])
    assert "subjunctive.mechanisms.hvae" not in needed(["bench.entrants"])
    assert "subjunctive.mechanisms.realnvp" in needed(["bench.recipes"])
    mine = tmp_path / "mine.py"
    mine.write_text("import subjunctive as sj\nx = sj.Pendulum\ny = sj.mechanisms.RealNVP\n")
    found = needed([], [mine])
    assert {"subjunctive.data.pendulum", "subjunctive.mechanisms.realnvp"} <= set(found)
    assert "subjunctive.mechanisms.hvae" not in found


def test_training_does_not_need_what_judges():
    rooms = {m.split(".")[1] for m in needed(["bench.fitted"])}
    assert {"training", "mechanisms", "scm"} <= rooms
    assert not rooms & {"metrics", "plot", "cli", "query"}


def test_comments_and_docstrings_are_not_code_and_files_of_a_user_are(tmp_path):
    a, b = tmp_path / "subjunctive", tmp_path / "other" / "subjunctive"
    for place, text in ((a, '"""Old."""\nx = 1\n'), (b, '"""New."""\n# why\nx = 1\n')):
        place.mkdir(parents=True)
        (place / "thing.py").write_text(text)
    assert code.modules(a)["subjunctive.thing"] == code.modules(b)["subjunctive.thing"]
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n")
    before = code_hash(["graph"], [mine])
    assert before == code_hash(["subjunctive.graph"], [mine]) != code_hash(["graph"])
    mine.write_text("x = 2\n")
    assert code_hash(["graph"], [mine]) != before


def test_a_module_without_a_file_is_refused():
    assert source("json").name == "__init__.py"
    for name in ("sys", "no_such_module", "no.such"):
        with pytest.raises(ValueError, match=r"no module|no file"):
            source(name)
