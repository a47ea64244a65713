"""What the README and the guide for contributors say is what happens."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import subjunctive
from subjunctive import cli, experiment
from subjunctive.card import walk
from subjunctive.mechanism import seeded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks(README, "python"), ids=["digits", "table"])
def test_python_of_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with seeded(0):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out
    if "savefig" in code:
        assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_has_twelve_lines():
    lines = [line for line in blocks(README, "python")[0].splitlines() if line.strip()]
    assert len(lines) == 12


def test_yaml_of_the_readme_is_an_experiment():
    config = yaml.safe_load(blocks(README, "yaml")[0])
    config["data"] |= {"digits": 30, "copies": 1}
    config["model"]["width"] = 8
    config["fit"] |= {"steps": 2, "batch_size": 8, "lr": float(config["fit"]["lr"])}
    made = experiment.read_experiment(config)
    done = made.run(progress=False)
    assert done.steps == 2
    assert made.model.mechanisms["image"].code == 16


def test_commands_of_the_readme_exist():
    group = typer.main.get_command(cli.app)
    lines = re.findall(r"^subjunctive (.*)$", "\n".join(blocks(README, "sh")), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        name, *words = line.split()
        options = {o for p in group.commands[name].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, line


def test_makefile_has_the_targets_that_are_named():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in (README, GUIDE):
        for name in re.findall(r"\bmake ([a-z]+)\b(?=[ `])", page):
            assert name in targets, name


def test_table_of_methods_is_made_from_the_cards():
    cards = sorted(walk().values(), key=lambda card: card.name.lower())
    assert cli.renewed(README, cards) == README, "run `make readme`"


def test_links_of_the_pages_lead_somewhere():
    for page in (README, GUIDE):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
            assert (ROOT / link).exists(), link


def test_guide_names_every_room_and_no_other():
    rooms = {p.parent.name for p in (ROOT / "src" / "subjunctive").glob("*/__init__.py")}
    named = set(re.findall(r"^\| `(\w+)/`", GUIDE, re.MULTILINE))
    assert named == rooms


def test_a_method_is_added_in_one_file(tmp_path):
    package = tmp_path / "subjunctive"
    shutil.copytree(
        Path(inspect.getfile(subjunctive)).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    [code] = blocks(GUIDE, "python")
    (package / "mechanisms" / "laplace.py").write_text(code, encoding="utf-8")
    script = """
import torch
import subjunctive as sj
from subjunctive.card import walk
[(cls, card)] = [(k, c) for k, c in walk().items() if k.__module__.endswith(".laplace")]
report = sj.check_mechanism(*card.example())
assert sum(v == "holds" for v in report.values()) > 8, report
x = torch.randn(4)
mechanism, batch = card.example()
other = torch.distributions.Laplace(0.0, 1.0).log_prob(mechanism.abduct(x, {"t": x}))
assert torch.allclose(mechanism.log_prob(x, {"t": x}), other - mechanism.log_scale, atol=1e-5)
print(cls.__name__)
"""
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "LaplaceLinear"
