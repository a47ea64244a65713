"""What a cell does, here in this process, on pictures and tables small enough for it."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch

from subjunctive.bench import (
    Benchmark,
    benchmark,
    cell,
    collect,
    digest,
    fitted,
    read_plan,
    summary,
)
from subjunctive.bench.entrants import assemble, load
from subjunctive.bench.kept import PICTURES, SCORES, Kept
from subjunctive.bench.report import report
from subjunctive.bench.run import CODE

PENDULUM = {"$class": "data.pendulum.Pendulum", "size": 24, "train": 60, "valid": 10, "test": 30}
SMALL = {"$class": "bench.recipes.PlainVAE", "latent": 2, "widths": [4, 8]}
TINY = {"seconds": 0.2, "rows": 20, "few": 10, "reader": {"steps": 3}, "pictures": 2,
        "grid": {"lr": [0.001]}, "fit": {"batch_size": 16}}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A benchmark of one small VAE on small pendulums, done cell after cell in this process."""
    place = tmp_path_factory.mktemp("pictures")
    models = {"VAE": SMALL}
    plan = read_plan({"tracks": {"images": {"data": {"p": PENDULUM}, "models": models}}, **TINY})
    for one in plan.cells:
        cell.work(one.key, one.settings, Kept(place / "cells"))
    return collect(plan, place)


def test_a_cell_leaves_scores_pictures_and_what_it_cost(pictures):
    done: Benchmark = pictures
    assert done.cells.status.tolist() == ["done", "done"]
    own = done.cells.iloc[1]
    assert json.loads(own.chosen) == {"lr": 0.001}
    assert own.parameters > 100
    assert own.milliseconds > 0
    assert own.MB > 50
    assert set(done.scores.model) == {"VAE", "oracle", "copy", "retrieval"}
    true = done.scores[(done.scores.model == "oracle") & (done.scores.metric == "distance")]
    assert float(true.value.max()) == 0.0
    data = load(PENDULUM, 0)
    angle = done.scores[done.scores.node == "angle"]
    assert set(angle.scale) == {data.variables["angle"].scale}
    assert set(done.scores[done.scores.node == "image"].scale) == {1.0}


def test_pictures_are_the_answers_beside_the_truth(pictures):
    path = Kept(pictures.folder / "cells").folder / pictures.cells.key[1] / PICTURES
    data = load(PENDULUM, 0)
    with np.load(path) as held:
        assert np.allclose(held["factual"], data.test.values["image"][:2].numpy())
        low, high = (float(data.train.values["light"].quantile(q)) for q in (0.1, 0.9))
        assert all(min(abs(to - low), abs(to - high)) < 1e-3 for to in held["to light"])
        some = data.test[:2]
        do = {"light": torch.from_numpy(held["to light"])}
        true = data.oracle.predict(data.oracle.abduct(some), do)["image"]
        assert np.allclose(held["truth of do(light)"], true.numpy(), atol=1e-6)
        assert held["do(light)"].shape == true.shape


def test_what_is_asked_anew_is_not_trained_anew(pictures, monkeypatch, tmp_path):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(fitted, "tuned", never)
    asked = dict(pictures.plan.cells[1].settings) | {"rows": 15, "metrics": ["composition"]}
    kept = Kept(pictures.folder / "cells")
    cell.work("again", asked, kept)
    frame = pandas.read_parquet(kept.folder / "again" / SCORES)
    assert set(frame.metric) <= {"composition", "composition, redrawn"}
    assert set(frame.n) == {15}
    before = kept.document(pictures.cells.key[1])
    assert kept.document("again")["steps"] == before["steps"]
    with pytest.raises(AssertionError, match="trained again"):
        cell.work("third", asked | {"seconds": 0.3}, kept)


def test_the_page_shows_factual_counterfactual_truth_and_difference(pictures):
    path = report(pictures)
    page = path.read_text()
    for words in ("<h2>images</h2>", "do(angle): each row", "copy", "effectiveness", "retrieval",
                  "Code of the package", "PlainVAE", "two data sets and two models"):  # fmt: skip
        assert words in page, words
    assert page.count("<img ") == 4  # one an intervention
    assert all(f"alt='{a}" in page for a in ("Counterfactuals of p by VAE",))
    assert "src='http" not in page
    assert "nan" not in page.lower().split("</style>")[1].split("base64")[0]


def test_a_table_s_cells_know_no_pictures(tmp_path):
    data = {"$class": "data.tabular.Nonlinear", "system": "mixed", "train": 60, "test": 40}
    model = {"$class": "mechanisms.additive.AdditiveNoise"}
    plan = read_plan({"tracks": {"t": {"data": {"d": data}, "models": {"m": model}}}, **TINY})
    for one in plan.cells:
        cell.work(one.key, one.settings, Kept(tmp_path / "cells"))
    done = collect(plan, tmp_path)
    assert not list(tmp_path.rglob(PICTURES))
    found = summary(done.scores).set_index(["model", "metric"]).value
    assert found["oracle", "distance"] == 0
    assert found["m", "distance"] > 0
    report(done)


def test_a_recipe_and_an_objective_come_from_the_text():
    data = load({**PENDULUM, "train": 4, "test": 4}, seed=1)
    recipe = {"$class": "models.causal_diffae.CausalDiffAE", "code": 4, "width": 8}
    model, objective = assemble(recipe, data)
    assert model.graph == data.graph
    assert objective is None
    both = {"model": SMALL, "objective": {"$class": "training.objective.ModelLoss"}}
    model, objective = assemble(both, data)
    assert type(model.mechanisms["image"]).__name__ == "VAE"
    assert type(model.mechanisms["length"]).__name__ == "ConditionalFlow"
    assert type(objective).__name__ == "ModelLoss"
    with pytest.raises(ValueError, match="no 'graph', so it is no data set"):
        load({"$class": "variable.Variable", "name": "t"}, 0)
    with pytest.raises(ValueError, match="a Variable is no model"):
        assemble({"$class": "variable.Variable", "name": "t"}, data)


def test_levels_are_those_of_pictures_and_of_true_answers():
    plain = {**PENDULUM, "train": 4, "test": 4}
    data = load({"$class": "bench.entrants.Levels", "data": plain, "levels": 16}, seed=1)
    assert torch.equal(data.train.values["angle"], load(plain, 1).train.values["angle"])
    true = data.oracle.predict(data.oracle.abduct(data.test), {"light": 90.0})["image"]
    for pixels in (data.valid.values["image"], true):
        assert torch.allclose(pixels * 15, (pixels * 15).round(), atol=1e-4)
        assert len(pixels.unique()) > 8
    assert data.measure(true)["light"].shape == (4,)
    with pytest.raises(ValueError, match="has no picture"):
        load({"$class": "bench.entrants.Levels", "data": {"$class": "data.tabular.Linear"}}, 0)


def test_the_seed_draws_the_data_unless_the_text_does():
    a, b = (load({**PENDULUM, "train": 4, "test": 4}, s) for s in (0, 1))
    assert not torch.equal(a.train.values["angle"], b.train.values["angle"])
    c = load({**PENDULUM, "train": 4, "test": 4, "seed": 0}, 1)
    assert torch.equal(a.train.values["angle"], c.train.values["angle"])


def test_a_cell_ends_when_nobody_waits_for_it(tmp_path):
    data = {"$class": "data.tabular.Linear", "train": 100}
    model = {"$class": "mechanisms.linear.LinearGaussian"}
    plan = read_plan({"tracks": {"t": {"data": {"d": data}, "models": {"m": model}}},
                      "seconds": 900})  # fmt: skip
    one = plan.cells[1]
    task = {"key": one.key, "settings": dict(one.settings), "folder": str(tmp_path)}
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", CODE], input=json.dumps(task) + "\n", text=True,
                          env={**os.environ, "PYTHONPATH": path}, check=False)  # fmt: skip
    assert done.returncode == 3
    assert not list(tmp_path.iterdir())


MINE = '''
"""A user's own model and data set, each a class without decoration."""

from subjunctive import Linear
from subjunctive.mechanisms import LinearGaussian


class Mine:
    def __new__(cls, variable, parents, start=0.0):
        made = LinearGaussian(variable, parents)
        made.bias.data.fill_(start)
        return made


class Rows:
    def __init__(self, seed=0):
        made = Linear("t -> m -> y", train=100, valid=30, test=40, seed=seed)
        self.graph, self.variables, self.oracle = made.graph, made.variables, made.oracle
        self.train, self.valid, self.test = made.train, made.valid, made.test
'''


def test_a_class_and_a_line_of_yaml_join(tmp_path, monkeypatch):
    """The real thing: processes, a file, a user's own model and data set."""
    (tmp_path / "mine_of_cell.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "bench.yaml"
    path.write_text(
        "tracks: {t: {data: {rows: {$class: Rows}}, models: {mine: {$class: Mine, start: 0.5}}}}\n"
    )
    classes = ["mine_of_cell.Mine", "mine_of_cell.Rows"]
    how = {"seconds": 0.3, "rows": 20, "few": 10, "progress": False, "classes": classes}
    done = benchmark(path, tmp_path / "out", **how)
    assert done.cells.status.tolist() == ["done", "done"], done.cells.error.tolist()
    assert done.new == 2
    assert {"mine", "oracle", "copy"} == set(done.scores.model)
    cells = pandas.read_parquet(tmp_path / "out" / "cells.parquet")
    assert json.loads(cells.chosen[1])["lr"] in (1.5e-3, 4e-3)
    assert benchmark(path, tmp_path / "out", **how).new == 0


def test_summaries_are_in_comparable_units_and_smaller_is_better():
    base = {"track": "t", "data": "d", "model": "m", "seed": 0, "support": "inside",
            "intervention": "do(a)", "floor": 0.0, "unit": "", "scale": 1.0,
            "image": "x"}  # fmt: skip
    rows = [
        {"metric": "effectiveness", "node": "a", "value": 3.0, "scale": 2.0, "unit": "px"},
        {"metric": "effectiveness", "node": "k", "value": 0.9, "unit": "accuracy"},
        {"metric": "effectiveness", "node": "a", "value": 99.0, "support": "outside"},
        {"metric": "identity gap", "node": "k", "value": -0.2, "unit": "accuracy"},
        {"metric": "distance", "node": "x", "value": 0.1},
        {"metric": "distance", "node": "a", "value": 4.0, "scale": 2.0},
        {"metric": "composition", "node": "a", "value": 5.0},
        {"metric": "composition", "node": "x", "value": 0.3},
        {"metric": "exogeneity, R2 of a", "node": "x", "value": 0.5, "floor": 0.1},
        {"metric": "exogeneity, R2 of k", "node": "x", "value": 0.2, "floor": 0.3},
        {"metric": "no such", "node": "x", "value": 1.0},
    ]
    found = summary(pandas.DataFrame([base | r for r in rows])).set_index("metric").value
    assert found.to_dict() == pytest.approx(
        {
            "effectiveness": (1.5 + 0.1) / 2,
            "identity lost": 0.2,
            "distance": 0.1,
            "distance, labels": 2.0,
            "composition": 0.3,
            "exogeneity, R2": 0.4,
        }
    )
    assert set(found.index) <= set(digest.ABOUT)
    assert set(digest.HEADS) == set(digest.ABOUT)
