"""`subjunctive bench counterfactual`: what it says, and what it hands on."""

import pandas
import pytest
from typer.testing import CliRunner

from subjunctive import bench, cli


def run(*words, code=0):
    done = CliRunner().invoke(cli.app, ["bench", *map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


def test_a_plan_is_told_without_any_work(tmp_path):
    out = tmp_path / "out"
    said, _ = run("counterfactual", "--plan", "--out", out, "--seeds", 0, "--seeds", 5)
    assert "12 cells, 0.15 core-hours" in said
    assert "images: VAE, pendulum, seed 5, 45 s" in said
    assert not out.exists()


def test_mistakes_are_one_line(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("preset: quick\nsecnds: 3\n")
    _, said = run("counterfactual", path, code=2)
    assert f"{path}, line 2" in " ".join(said.split())
    assert "Did you mean 'seconds'" in " ".join(said.split())
    _, said = run("counterfactul", code=2)
    assert "counterfactual" in said
    _, said = run("counterfactual", "--preset", "quik", code=2)
    assert "Did you mean 'quick'" in " ".join(said.split())


@pytest.mark.parametrize("status", ["done", "failed"])
def test_options_are_handed_on_and_failures_are_told(tmp_path, monkeypatch, status):
    asked = {}

    def fake(config, out, **options):
        asked.update(options, config=config, out=out)
        row = {"track": "t", "model": "m", "data": "d", "seed": 0, "status": status, "error": "no"}
        return bench.Benchmark(None, out, pandas.DataFrame(), pandas.DataFrame([row]))

    monkeypatch.setattr(bench, "benchmark", fake)
    words = ("--out", tmp_path, "--seconds", 3, "--jobs", 2, "--class", "collections.OrderedDict")
    said, failed = run("counterfactual", *words, code=int(status == "failed"))
    assert str(tmp_path / "report.html") in said.replace("\n", "")
    assert ("failed: t: m, d, seed 0: no" in failed) == (status == "failed")
    assert asked["seconds"] == 3
    assert asked["jobs"] == 2
    assert asked["classes"] == ["collections.OrderedDict"]
    assert asked["seeds"] is None
