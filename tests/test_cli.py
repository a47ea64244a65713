"""The command line, command by command, on models small enough to be fitted here."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import subjunctive as sj
from subjunctive import cli, evidence, experiment

TABLE = """
data:
  $class: data.tabular.Nonlinear
  system: mixed
  train: 200
model:
  $class: scm.SCM
  mechanisms:
    age: {$class: mechanisms.linear.LinearGaussian}
    site: {$class: mechanisms.discrete.Categorical}
    stage: {$class: mechanisms.discrete.Ordinal}
    dose: {$class: mechanisms.linear.LinearGaussian}
    outcome: {$class: mechanisms.linear.LinearGaussian}
fit: {steps: 20, lr: 1e-2, seed: 3}
"""
SMALL = {
    "data": {"$class": "data.morpho.MorphoDigits", "digits": 30, "copies": 1, "jobs": 1},
    "model": {
        "$class": "models.causal_diffae.CausalDiffAE",
        "code": 4,
        "width": 8,
        "multipliers": [1, 2],
    },
    "fit": {"steps": 3, "batch_size": 8},
}


def run(*words, code=0):
    """Run a command; return what it printed and what it said on standard error."""
    done = CliRunner().invoke(cli.app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a fitted table model, a picture model, and their evidence."""
    place = tmp_path_factory.mktemp("cli")
    (place / "table.yaml").write_text(TABLE)
    run("fit", place / "table.yaml", "--out", place / "table")
    made = experiment.read_experiment(SMALL)
    made.run(progress=False)
    sj.save(made.model, place / "digits")
    for i, image in enumerate(made.data.test.values["image"][:2, 0]):
        Image.fromarray((255 * image.numpy()).round().astype(np.uint8)).save(place / f"{i}.png")
    data = sj.Nonlinear("mixed", train=2, test=4)
    frame = sj.observe(data.oracle, data.test).frame()
    frame.loc[1, "outcome"] = None
    frame.to_csv(place / "rows.csv", index=False)
    return place


def test_help_and_version_import_nothing_heavy():
    script = """
import sys
from subjunctive.cli import app
for words in (["--help"], ["fit", "--help"], ["--version"]):
    app(words, standalone_mode=False)
heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "counterfactual" in done.stdout
    assert f"subjunctive {sj.__version__}" in done.stdout


def test_import_costs_nothing_until_a_name_is_asked_for():
    script = """
import sys
import subjunctive as sj
assert "torch" not in sys.modules
assert sj.effect.__name__ == "effect"
import subjunctive.identify, subjunctive.effect
assert callable(sj.effect) and callable(sj.identify)
assert set(sj.__all__) <= set(dir(sj))
assert all(getattr(sj, name).__name__ for name in sj.__all__)
assert sj.mechanisms.Known.__name__ == "Known"
late = {"pandas", "sklearn", "skimage", "matplotlib", "typer"} & set(sys.modules)
assert not late, late
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_public_names_are_those_that_type_checkers_see():
    import ast

    tree = ast.parse(Path(sj.__file__).read_text())
    seen = {
        (node.module.removeprefix("subjunctive."), alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subjunctive.")
        for alias in node.names
    }
    assert seen == {(home, name) for name, home in sj._HOME.items()}
    with pytest.raises(AttributeError, match="Did you mean 'counterfactual'"):
        sj.counterfactul  # noqa: B018


def test_fit_saves_what_was_fitted(place, tmp_path):
    model, twin = sj.load(place / "table"), experiment.read_experiment(experiment.read_yaml(
        place / "table.yaml"
    ))  # fmt: skip
    fresh = [p.clone() for p in twin.model.parameters()]
    assert twin.options == {"steps": 20, "lr": 0.01, "seed": 3}
    twin.run(progress=False)
    assert any((a != b).any() for a, b in zip(fresh, twin.model.parameters(), strict=True))
    for a, b in zip(model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(a, b)  # the seed of the text makes the same model again
    _, said = run("fit", place / "table.yaml", "--out", place / "table", code=2)
    assert "exists" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    run("fit", place / "table.yaml", "--out", tmp_path / "mine", "--overwrite", code=2)
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    run("fit", place / "table.yaml", "--out", place / "table", "--overwrite")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps", "step", "config.fit.step: .* Did you mean 'steps'"),
        ("system", "sistem", "config.data.sistem: .* Did you mean 'system'"),
        ("model:", "modle:", "unknown section 'modle'.* Did you mean 'model'"),
        ("outcome:", "outcom:", "unknown node 'outcom'.* Did you mean 'outcome'"),
        ("linear.Linear", "linear.Linar", "LinarGaussian.* Did you mean"),
        ("scm.SCM", "variable.Batch", "config.model.mechanisms: Batch has no argument"),
        ("data:\n", "data: 3\nother:\n", "the section 'data' holds no keys"),
        ("  $class: scm.SCM\n", "", "'\\$class' is missing"),
        ("lr: 1e-2", "lr: fast", "config.fit.lr: 'fast' is no number"),
        ("fit:", "fit: [", "is no YAML"),
    ],
)
def test_fit_names_the_key_that_is_wrong(tmp_path, old, new, says):
    (tmp_path / "c.yaml").write_text(TABLE.replace(old, new, 1))
    _, said = run("fit", tmp_path / "c.yaml", "--out", tmp_path / "m", code=2)
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert re.search(says, said), said
    assert not (tmp_path / "m").exists()


def test_counterfactual_of_a_table(place, tmp_path):
    out = tmp_path / "deep" / "cf.csv"
    words = ["--do", "stage=IV", "--do", "dose+=1,site=south", "--draws", 50, "--out", out]
    run("counterfactual", place / "table", "--evidence", place / "rows.csv", *words)
    frame, rows = pandas.read_csv(out), pandas.read_csv(place / "rows.csv")
    worlds = {name: part.reset_index(drop=True) for name, part in frame.groupby("world")}
    assert list(frame.world.unique()) == ["factual", "do(stage = IV)", "do(dose + 1, site = south)"]
    factual, late, dosed = (worlds[name] for name in frame.world.unique())
    seen = rows.outcome.notna()
    assert np.allclose(factual.outcome[seen], rows.outcome[seen], atol=1e-4)
    assert (factual["outcome.low"] < factual["outcome.high"])[~seen].all()
    assert (late.stage == "IV").all()
    assert (late.site == rows.site).all()
    assert (dosed.site == "south").all()
    # The model is linear: what was seen of the outcome is followed exactly.
    model = sj.load(place / "table")
    again = sj.counterfactual(model, rows, {"stage": 3})
    assert np.allclose(late.outcome[seen], again["outcome"][torch.tensor(seen)], atol=1e-4)


def test_counterfactual_of_pictures_reads_their_labels(place, tmp_path):
    words = ["--evidence", place / "0.png", "--evidence", place / "1.png", "--do", "thickness=3"]
    for name in ("grid.png", "a.npz", "b.npz"):
        run("counterfactual", place / "digits", *words, "--do", "intensity*=0.9", "--out",
            tmp_path / name)  # fmt: skip
    with Image.open(tmp_path / "grid.png") as image:
        assert np.asarray(image)[..., :3].std() > 20
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert a["image"].shape == (3, 2, 1, 32, 32)
    assert a["worlds"][0] == "factual"
    shown = [np.asarray(Image.open(place / f"{i}.png")) / 255 for i in (0, 1)]
    assert np.allclose(a["image"][0, :, 0], shown, atol=1e-5)
    assert np.allclose(a["thickness"][1], 3.0)
    assert np.allclose(a["intensity"][2], 0.9 * a["intensity"][0], rtol=1e-4)
    assert all((a[k] == b[k]).all() for k in a.files)
    run("counterfactual", place / "digits", "--evidence", tmp_path / "a.npz", "--do",
        "thickness=3", "--out", tmp_path / "c.npz", code=2)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "given", "do", "out", "says"),
    [
        ("table", "rows.csv", "stag=IV", "o.csv", "unknown node 'stag'.* Did you mean 'stage'"),
        ("table", "rows.csv", "stage=V", "o.csv", "no category 'V'"),
        ("table", "rows.csv", "dose=much", "o.csv", "'much' is no number"),
        ("table", "rows.csv", "dose", "o.csv", "'dose' is no intervention"),
        ("table", "rows.csv", "dose=1,dose=2", "o.csv", "two things to 'dose'"),
        ("table", "rows.csv", "stage+=1", "o.csv", "Shift needs a continuous node"),
        ("table", "rows.csv", "dose=inf", "o.csv", "not finite"),
        ("table", "rows.csv", "dose=1", "o.png", "the model has none"),
        ("table", "rows.csv", "dose=1", "o.txt", "none of .png, .csv, .parquet, .npz"),
        ("table", "0.png", "dose=1", "o.csv", "0 nodes that are"),
        ("table", "table.yaml", "dose=1", "o.csv", "0 nodes that are"),
        ("table", "none.csv", "dose=1", "o.csv", "there is no evidence at"),
        ("rows.csv", "rows.csv", "dose=1", "o.csv", "rows.csv"),
        ("digits", "table.yaml", "thickness=3", "o.png", "no picture that can be read"),
        ("digits", "rows.csv", "thickness=3", "o.png", "unknown node 'age'"),
        ("digits", "0.png", "image=3", "o.png", "set a scalar node"),
    ],
)
def test_counterfactual_names_what_is_wrong(place, tmp_path, model, given, do, out, says):
    words = ["--evidence", place / given, "--do", do, "--out", tmp_path / out]
    _, said = run("counterfactual", place / model, *words, code=2)
    assert len(said.splitlines()) == 1
    assert re.search(says, said), said
    assert not (tmp_path / out).exists()


def test_counterfactual_far_outside_warns_and_answers(place, tmp_path):
    words = ["--evidence", place / "rows.csv", "--do", "age=500", "--out", tmp_path / "o.csv"]
    _, said = run("counterfactual", place / "table", *words)
    assert said.startswith("warning: do() sets 'age' to 500")
    assert "outside the training support" in said
    assert (tmp_path / "o.csv").exists()


def test_debug_shows_the_traceback(place, tmp_path):
    words = ["fit", place / "none.yaml", "--out", tmp_path / "m", "--debug"]
    done = CliRunner().invoke(cli.app, [str(w) for w in words])
    assert isinstance(done.exception, FileNotFoundError)


def test_evaluate_compares_with_the_truth(place, tmp_path):
    words = ["--data", place / "table.yaml", "--rows", 50, "--out", tmp_path / "e.csv"]
    shown, _ = run("evaluate", place / "table", *words)
    frame = pandas.read_csv(tmp_path / "e.csv", keep_default_na=False)
    assert {"model", "oracle", "copy"} <= set(frame.method)
    assert "do(age), inside" in shown
    for name, says in (
        ("linear", "they must be equal"),
        ("pendulm", "Did you mean 'pendulum'"),
        ("", "no data are called ''"),
    ):
        _, said = run("evaluate", place / "table", "--data", name, code=2)
        assert says in said


def test_names_of_data_are_those_of_the_room():
    found = {cls.__name__ for cls in experiment._simulators()}
    assert {"MorphoDigits", "Pendulum", "Linear", "Nonlinear"} <= found
    assert type(experiment.named_data("nonl")).__name__ == "Nonlinear"


def test_methods_are_the_cards(tmp_path):
    shown, _ = run("methods")
    assert "CausalDiffAE" in shown
    shown, _ = run("methods", "causaldiffae")
    assert "@article{komanduri2024causal," in shown
    _, said = run("methods", "CausalDifAE", code=2)
    assert "Did you mean 'CausalDiffAE'" in said
    page = tmp_path / "page.md"
    page.write_text(
        f"before\n{cli.catalogue.MARKS[0]}\nstale row\n{cli.catalogue.MARKS[1]}\nafter\n"
    )
    run("methods", "--into", page)
    assert page.read_text().startswith(f"before\n{cli.catalogue.MARKS[0]}\n| Method |")
    assert page.read_text().endswith(f"{cli.catalogue.MARKS[1]}\nafter\n")
    assert "stale row" not in page.read_text()
    page.write_text("no marks")
    run("methods", "--into", page, code=2)


@pytest.mark.parametrize("shape", [(), (3,), (4,), (2,)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_kind_become_the_models(tmp_path, shape, channels):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (6, 5), dtype=np.uint8)
    pixels = np.stack([grey] * shape[0], -1) if shape else grey
    if shape in ((2,), (4,)):
        pixels[..., -1] = 255
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    x = sj.Variable("x", (channels, 6, 5))
    files = [tmp_path / "p.png", tmp_path / "wide.png"]
    found = evidence.read_evidence(files, {"x": x}).values["x"]
    assert found.shape == (2, channels, 6, 5)
    assert torch.allclose(found, torch.from_numpy(grey / 255).float().expand(found.shape))
    for other in ((channels, 5, 6), (4, 6, 5)):
        with pytest.raises(ValueError, match=r"is 5 x 6 pixels; .* is 6 x 5|4 channels"):
            evidence.read_evidence(files, {"x": sj.Variable("x", other)})


def test_tables_are_read_with_what_is_missing(tmp_path):
    arm = sj.Variable("arm", kind="categorical", categories=("7", "8"))
    v = {"t": sj.Variable("t"), "arm": arm, "x": sj.Variable("x", (1, 2, 2))}
    path = tmp_path / "t.csv"
    path.write_text("t,arm\n1.5,8\n,7\n2,\n")
    batch = evidence.read_evidence([path], v)
    assert batch.values["arm"].tolist()[:2] == [1, 0]
    assert batch.mask("t").tolist() == [True, False, True]
    assert batch.mask("arm").tolist() == [True, True, False]
    for text, says in (
        ("t,arm\n1,9\n", "no category '9'"),
        ("t\nfast\n", "'t' holds 'fast', no number"),
        ("t,x\n1,2\n", "use .npz"),
        ("t\n", "has no rows"),
        ("", "is no table"),
        ("u\n1\n", "unknown node 'u'"),
    ):
        path.write_text(text)
        with pytest.raises((ValueError, KeyError), match=says):
            evidence.read_evidence([path], v)
    np.savez(tmp_path / "t.npz", t=np.array([1.0, 2.0]), x=np.zeros((2, 1, 2, 2)))
    batch = evidence.read_evidence([tmp_path / "t.npz"], v)
    assert batch.values["x"].shape == (2, 1, 2, 2)
    np.savez(tmp_path / "o.npz", t=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no arrays of numbers"):
        evidence.read_evidence([tmp_path / "o.npz"], v)
    with pytest.raises(ValueError, match="give it alone"):
        evidence.read_evidence([path, path], v)


def test_demo_writes_what_it_says_and_says_where(tmp_path, monkeypatch):
    def quick(model, data, **options):
        return sj.evaluate(model, data, **(options | {"metrics": ["effectiveness"]}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subjunctive.demo.evaluate", quick)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    shown, _ = run("demo", "--steps", 3, "--digits", 30, "--rows", 10)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "effectiveness" in shown
    names = {"grid.png", "graph.png", "training.png", "table.md", "table.csv", "model"}
    assert {p.name for p in (tmp_path / "demo").iterdir()} == names
    assert all(re.search(rf"^\w+ +demo/{name}$", shown, re.MULTILINE) for name in names)
    for what in ("grid", "graph", "training"):
        with Image.open(tmp_path / "demo" / f"{what}.png") as image:
            assert np.asarray(image)[..., :3].std() > 5
    page = (tmp_path / "demo" / "table.md").read_text()
    assert "3 training steps" in page
    assert "| effectiveness: thickness [px] |" in page
    assert sj.load(tmp_path / "demo" / "model").graph.parents("image") == ("thickness", "intensity")
    frame = pandas.read_csv(tmp_path / "demo" / "table.csv")
    assert (frame[frame.method == "oracle"].value < 0.1).all()


def test_sample_draws_from_the_model_under_interventions(place, tmp_path):
    out = tmp_path / "s.csv"
    run("sample", place / "table", "-n", 50, "--do", "dose=1", "--seed", 3, "--out", out)
    frame, model = pandas.read_csv(out), sj.load(place / "table")
    drawn = sj.intervene(model, {"dose": 1.0}).sample(50, seed=3)
    assert (frame.dose == 1).all()
    assert np.allclose(frame.outcome, drawn["outcome"], atol=1e-4)
    run("sample", place / "digits", "-n", 2, "--out", tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        assert np.asarray(image)[..., :3].std() > 10
    _, said = run("sample", place / "table", "-n", 2, "--out", tmp_path / "t.png", code=2)
    assert "the model has none" in said


def test_effect_is_that_of_the_library(place):
    words = ["effect", place / "table", "--treatment", "dose", "--outcome", "outcome"]
    words += ["--values", "0", "1", "--draws", 500, "--seed", 1]
    out, _ = run(*words)
    model = sj.load(place / "table")
    found = sj.effect(model, "dose", "outcome", (0.0, 1.0), draws=500, seed=1)
    assert f"{float(found.estimate):.4g}" in out
    assert "effective draws 500" in out
    through, _ = run(*[w if w != "dose" else "age" for w in words], "--through", "dose")
    assert [line.split()[0] for line in through.splitlines()[-4:]] == ["TE", "NDE", "NIE", "NIE"]
    _, said = run(*[w if w != "outcome" else "outcom" for w in words], code=2)
    assert "Did you mean 'outcome'" in said


def test_info_names_every_node_and_counts_parameters(place):
    out, _ = run("info", place / "table")
    model = sj.load(place / "table")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in out
    assert all(node in out for node in model.graph.nodes)


def test_an_exported_mechanism_answers_as_the_model_does(place, tmp_path):
    from subjunctive.export import standalone

    run("export", place / "digits", "--out", tmp_path / "d.pt2")
    program = torch.export.load(tmp_path / "d.pt2").module()
    model = sj.load(place / "digits")
    _, values = standalone(model, "image")
    with sj.seeded(5):
        noise = model.noise(5)
    world = model.predict(noise)
    given = [noise["image"][k] for k in ("code", "start", "residual")]
    parents = [world[v.name] for v in model.mechanisms["image"].parents]
    with torch.no_grad():
        assert torch.allclose(program(*given, *parents), world["image"], atol=1e-4)
    assert len(values) == len(given) + len(parents)
    _, said = run("export", place / "table", "--out", tmp_path / "d.pt2", code=2)
    assert "name --node" in said
    _, said = run("export", place / "digits", "--out", tmp_path / "d.txt", code=2)
    assert "neither .pt2 nor .onnx" in said


@pytest.mark.parametrize("method", ["LinearGaussian", "Ordinal", "ConditionalFlow", "CausalDiffAE"])
def test_a_config_to_start_from_starts(tmp_path, method):
    text, _ = run("config", method)
    (tmp_path / "c.yaml").write_text(text)
    config = experiment.read_yaml(tmp_path / "c.yaml")
    config["data"] |= {"digits": 30, "copies": 1} if method == "CausalDiffAE" else {"train": 50}
    made = experiment.read_experiment(config)
    assert made.run(steps=1, batch_size=8, progress=False).steps == 1
    assert method in str([type(m).__name__ for m in made.model.modules()]) + text


def test_two_commands_lead_from_a_folder_of_pictures_to_a_counterfactual_one(tmp_path):
    (tmp_path / "pictures").mkdir()
    grey = np.linspace(40, 200, 24).round()
    for i, level in enumerate(grey):
        Image.new("L", (16, 16), int(level)).save(tmp_path / "pictures" / f"{i}.png")
    rows = pandas.DataFrame({"file": [f"{i}.png" for i in range(24)], "grey": grey})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    own = ["--table", tmp_path / "rows.csv", "--images", tmp_path / "pictures", "--steps", 1]
    text, _ = run("config", *own, "--graph", "grey -> image")
    (tmp_path / "c.yaml").write_text(text.replace("batch_size: 64", "batch_size: 8"))
    made = experiment.read_experiment(experiment.read_yaml(tmp_path / "c.yaml"))
    assert made.run(progress=False).steps == 1
    run("fit", *own, "--out", tmp_path / "a")
    asked = ["--evidence", tmp_path / "pictures/3.png", "--do", "grey=180"]
    run("counterfactual", tmp_path / "a", *asked, "--out", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100


def test_two_commands_lead_from_a_table_to_a_counterfactual_row(tmp_path):
    draws = np.random.default_rng(0)
    frame = pandas.DataFrame({"age": draws.normal(60, 10, 100), "site": ["a", "b"] * 50})
    frame["dose"] = frame.age * 0.1 + draws.normal(0, 1, 100)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    graph = "age -> dose; site -> dose"
    run(
        "fit",
        "--table",
        tmp_path / "rows.csv",
        "--graph",
        graph,
        "--steps",
        2,
        "--out",
        tmp_path / "m",
    )
    kinds = {n: type(m).__name__ for n, m in sj.load(tmp_path / "m").mechanisms.items()}
    assert kinds == {"age": "ConditionalFlow", "site": "Categorical", "dose": "ConditionalFlow"}
    frame.head(2).to_csv(tmp_path / "two.csv", index=False)
    asked = ["--evidence", tmp_path / "two.csv", "--do", "age=70"]
    run("counterfactual", tmp_path / "m", *asked, "--out", tmp_path / "o.csv")
    answer = pandas.read_csv(tmp_path / "o.csv")
    assert (answer[answer.world != "factual"].age == 70).all()
    assert answer.site.tolist() == ["a", "b"] * 2


def test_config_says_what_there_is(tmp_path):
    _, said = run("config", "LinearGausian", code=2)
    assert "Did you mean 'LinearGaussian'" in said
    _, said = run("config", "Known", code=2)
    assert "a part that needs fn" in said


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("steps", "step", 14), ("system", "sistem", 4), ("outcome:", "outcom:", 13),
     ("linear.Linear", "linear.Linar", 9)],
)  # fmt: skip
def test_errors_name_the_line(tmp_path, old, new, line):
    (tmp_path / "c.yaml").write_text(TABLE.replace(old, new, 1))
    _, said = run("fit", tmp_path / "c.yaml", "--out", tmp_path / "m", code=2)
    assert f"c.yaml, line {line}: " in said, said


def test_a_fit_goes_on_from_its_checkpoints(place, tmp_path):
    words = ["fit", place / "table.yaml", "--checkpoints", tmp_path / "run"]
    run(*words, "--out", tmp_path / "a")
    _, said = run(*words, "--out", tmp_path / "b", code=2)
    assert "holds a run already" in said
    run(*words, "--out", tmp_path / "b", "--resume")
    a, b = sj.load(tmp_path / "a"), sj.load(tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    _, said = run("fit", place / "table.yaml", "--out", tmp_path / "c", "--resume", code=2)
    assert "--resume needs --checkpoints" in said


def test_cite_names_each_paper_of_a_model_once(place):
    out, _ = run("cite", place / "table")
    titles = re.findall(r"title = {(.*)}", out)
    used = {type(m).card.title for m in sj.load(place / "table").mechanisms.values()}
    assert sorted(titles) == sorted(used)
    assert len(used) == 3


def refused(*words, code=2):
    """Run a command that must fail; return the one line that it says."""
    shown, said = run(*words, code=code)
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in shown + said
    return said


MISUSED = {
    "nosuch": "No such command 'nosuch'; see .* --help",
    "smaple": "No such command 'smaple'. Did you mean 'sample'",
    "--nosuch": "No such option: --nosuch.*; see .* --help",
    "fit": "Missing option '--out'; see .* fit --help",
    "fit --out m": "give CONFIG or your own --table, one of them; got none",
    "fit c.yaml --out m --table t.csv": "give CONFIG or your own --table, one of them; got both",
    "fit c.yaml --out m --images p": "--graph and --images go with --table",
    "fit --out m --table t.csv": "--table t.csv needs --graph, such as 'age -> dose",
    "config": "give METHOD or your own --table, one of them; got none",
    "fit c.yaml": "Missing option '--out'",
    "fit c.yaml --out m --nosuch": "No such option: --nosuch",
    "fit c.yaml --out m more": "unexpected extra argument",
    "sample m --out o.csv -n 0": "'-n': .*1",
    "sample m --out o.csv -n many": "'-n': .*integer",
    "sample m --out o.csv --seed -1": "'--seed': .*0",
    "sample m --out o.csv --seed 99999999999999999999": "'--seed': .*9223372036854775807",
    "effect m --treatment t --outcome y --values 0": "'--values' requires 2 arguments",
    "demo --missing 2": "'--missing': .*0.99",
}


@pytest.mark.parametrize("words", MISUSED)
def test_what_is_no_command_is_one_line(words):
    assert re.search(MISUSED[words], refused(*words.split()))


def test_no_command_at_all_shows_the_help():
    shown, said = run(code=2)
    assert "counterfactual" in shown + said
    assert "error" not in shown + said


def test_what_went_wrong_within_is_one_line_too(place, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory:\n  tried\n  to allocate")

    monkeypatch.setattr("subjunctive.query.Intervened.sample", broken)
    words = ["sample", place / "table", "--out", tmp_path / "o.csv"]
    said = refused(*words, code=1)
    assert said == "error: RuntimeError (--debug shows where): out of memory: tried to allocate\n"
    done = CliRunner().invoke(cli.app, [str(w) for w in [*words, "--debug"]])
    assert isinstance(done.exception, RuntimeError)
    (tmp_path / "c.yaml").write_text(TABLE.replace("seed: 3", "directory: 3"))
    said = refused("fit", tmp_path / "c.yaml", "--out", tmp_path / "m", code=1)
    assert "TypeError (--debug shows where): " in said


def test_parquet_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").touch()
    data = {"$class": "data.table.Table", "source": str(tmp_path / "rows.parquet")}
    (tmp_path / "c.yaml").write_text(f"data: {data}\nmodel: {{$class: scm.SCM}}\n")
    said = refused("fit", tmp_path / "c.yaml", "--out", tmp_path / "m")
    assert "pip install pyarrow" in said


def test_a_reader_who_closes_the_pipe_is_no_error(monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("subjunctive.cli.catalogue.Table.add_row", closed)
    assert run("methods", code=1) == ("", "")


def test_no_file_is_replaced_unasked(place, tmp_path):
    (tmp_path / "kept.csv").write_text("mine")
    (tmp_path / "kept.pt2").write_text("mine")
    ask = ["--evidence", place / "rows.csv", "--do", "dose=1"]
    commands = {
        "kept.csv": [
            ["sample", place / "table", "-n", 2],
            ["counterfactual", place / "table", *ask],
            ["evaluate", place / "table", "--data", place / "table.yaml", "--rows", 10],
        ],
        "kept.pt2": [["export", place / "table", "--node", "age"]],
    }
    for name, several in commands.items():
        for words in several:
            said = refused(*words, "--out", tmp_path / name)
            assert f"{name} exists; give another --out, or --overwrite" in said
            assert (tmp_path / name).read_text() == "mine"
    run(*commands["kept.csv"][0], "--out", tmp_path / "kept.csv", "--overwrite")
    assert len(pandas.read_csv(tmp_path / "kept.csv")) == 2
    run(*commands["kept.pt2"][0], "--out", tmp_path / "kept.pt2", "--overwrite")
    assert (tmp_path / "kept.pt2").read_bytes()[:2] == b"PK"
    mine = tmp_path / "demo" / "grid.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert "holds files; give another --out, or --overwrite" in refused(
        "demo", "--out", mine.parent
    )
    assert mine.read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(place, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "subjunctive.experiment.Experiment.run", lambda *_, **__: pytest.fail("ran")
    )
    monkeypatch.setattr("subjunctive.store.load", lambda *_: pytest.fail("read"))
    file, model = tmp_path / "file", tmp_path / "model"
    file.touch()
    refused("fit", place / "table.yaml", "--out", file / "m")
    refused("sample", place / "table", "--out", file / "o.csv")
    evaluated = ["evaluate", place / "table", "--data", "nonlinear", "--out"]
    refused(*evaluated, file / "e.csv")
    assert "is no .csv" in refused(*evaluated, tmp_path / "e.txt")
    model.mkdir()
    for name in ("config.json", "model.safetensors", "letter"):  # save() would leave it alone
        (model / name).touch()
    assert "exists" in refused("fit", place / "table.yaml", "--out", model, "--overwrite")


def test_worlds_that_round_to_one_title_stay_apart(place, tmp_path):
    words = ["--do", "dose=1.0000001", "--do", "dose=1.0000002", "--do", "dose=2"]
    run("sample", place / "table", "-n", 2, *words, "--out", tmp_path / "s.csv")
    names = list(pandas.read_csv(tmp_path / "s.csv").world.unique())
    assert names == ["do(dose=1.0000001)", "do(dose=1.0000002)", "do(dose=2)"]
    ask = ["counterfactual", place / "table", "--evidence", place / "rows.csv"]
    said = refused(*ask, "--do", "dose=1", "--do", "dose=1", "--out", tmp_path / "c.csv")
    assert "two worlds are do(dose=1); give each --do once" in said


def test_what_is_given_to_an_effect_is_seen_and_not_done(place):
    words = ["effect", place / "table", "--treatment", "dose", "--outcome", "outcome"]
    words += ["--values", "0", "1"]
    assert "it says what is seen, node=value" in refused(*words, "--given", "age+=1")
    said = refused(*words, "--given", "age=60", "--given", "age=61")
    assert "two things to 'age'" in said
    shown, _ = run(*words, "--given", "age=60", "--given", "site=south", "--draws", 100)
    assert shown.splitlines()[1].startswith("CATE(values 0 to 1) on outcome: ")


def test_a_model_is_judged_on_data_of_its_own_categories_alone(place, tmp_path):
    frame = pandas.read_csv(place / "rows.csv").sample(200, replace=True, random_state=0)
    frame["site"] = ["north", "south"] * 100
    frame.to_csv(tmp_path / "rows.csv", index=False)
    text = f"data: {{$class: data.table.Table, source: {tmp_path / 'rows.csv'}}}"
    (tmp_path / "d.yaml").write_text(text)
    said = refused("evaluate", place / "table", "--data", tmp_path / "d.yaml")
    assert "'site' has categories ('north', 'south') in the data, ('north', 'middle', " in said


@pytest.mark.parametrize(
    ("name", "suffix"), [("row", "csv"), ("y.low", "csv"), ("worlds", "npz"), ("file", "npz")]
)
def test_nodes_called_as_the_files_own_parts_are_refused(tmp_path, name, suffix):
    y, other = sj.Variable("y"), sj.Variable(name)
    graph = sj.Graph(["y", name])
    mechanisms = {v.name: sj.mechanisms.LinearGaussian(v) for v in (y, other)}
    sj.save(sj.SCM(graph, mechanisms), tmp_path / "m")
    out = tmp_path / f"o.{suffix}"
    assert f"called {name!r}, which" in refused("sample", tmp_path / "m", "--out", out)
    assert not out.exists()


def test_a_row_that_misses_what_it_saw_the_effects_of_is_refused(place, tmp_path):
    frame = pandas.read_csv(place / "rows.csv")
    frame.loc[0, "age"] = None
    frame.to_csv(tmp_path / "gap.csv", index=False)
    ask = ["counterfactual", place / "table", "--evidence", tmp_path / "gap.csv", "--do", "dose=1"]
    assert "1 rows miss 'age' but saw a node below it" in refused(*ask, "--out", tmp_path / "o.csv")


def test_a_parent_may_have_the_noises_name():
    from subjunctive.export import standalone

    v = {name: sj.Variable(name) for name in ("u", "y")}
    graph = sj.Graph.parse("u -> y")
    parts = {n: sj.mechanisms.LinearGaussian(v[n], [v[p] for p in graph.parents(n)]) for n in v}
    model = sj.SCM(graph, parts)
    assert standalone(model, "y")[0].inputs == ["noise", "u"]
    assert standalone(model, "u")[0].inputs == ["u"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, while it writes ONNX
def test_onnx_answers_as_the_model_does(place, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs what is exported")
    for name, node in (("digits", "image"), ("table", "outcome")):
        out = tmp_path / f"{node}.onnx"
        run("export", place / name, "--node", node, "--out", out)
        program = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        given, [answer] = program.get_inputs(), program.get_outputs()
        model = sj.load(place / name)
        assert answer.name == node
        assert [i.name for i in given if i.name[:1] != "u"] == [*model.graph.parents(node)]
        for rows in (1, 5):
            with sj.seeded(rows):
                noise = model.noise(rows)
            world = model.predict(noise)
            own = noise[node] if isinstance(noise[node], dict) else {"": noise[node]}
            values = {f"u.{k}".rstrip("."): v for k, v in own.items()} | world
            fed = {i.name: values[i.name].detach().numpy() for i in given}
            [found] = program.run(None, fed)
            assert np.allclose(found, world[node].detach(), atol=1e-4, rtol=1e-4), (node, rows)


@pytest.mark.parametrize("part", ["additive", "guidance", "sampler"])
def test_what_a_model_may_be_made_of_can_be_exported(tmp_path, part):
    from subjunctive.diffusion import DDIM, Cosine
    from subjunctive.export import standalone, write_mechanism
    from subjunctive.mechanisms import AdditiveNoise

    t, x = sj.Variable("t", loc=3.0, scale=2.0), sj.Variable("x", (1, 8, 8))
    graph, small = sj.Graph.parse("t -> x"), {"code": 2, "width": 8, "multipliers": (1, 2)}
    with sj.seeded(0):
        if part == "additive":
            model = sj.SCM(graph, {"t": AdditiveNoise(t), "x": AdditiveNoise(x, [t])})
        else:
            more = {"guidance": 1.5} if part == "guidance" else {"sampler": DDIM(Cosine(), steps=2)}
            model = sj.CausalDiffAE(graph, {"t": t, "x": x}, **small, **more)
        with torch.no_grad():
            for parameter in model.parameters():  # what begins at zero would prove nothing
                parameter.add_(0.1 * torch.randn_like(parameter))
    program = torch.export.load(write_mechanism(model, "x", tmp_path / "x.pt2")).module()
    function, _ = standalone(model, "x")
    with sj.seeded(1), torch.no_grad():
        rows = model.noise(5)
        own = rows["x"] if isinstance(rows["x"], dict) else {"": rows["x"]}
        names = [name.removeprefix("u").removeprefix(".") for name in function.inputs[:-1]]
        given = [own[name] for name in names] + [model.predict(rows)["t"]]
        assert torch.allclose(program(*given), model.predict(rows)["x"], atol=1e-4)
