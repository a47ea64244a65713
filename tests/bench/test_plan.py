"""A benchmark's file: what may stand in it, what is refused, and what a cell's key hangs on."""

import pytest

from subjunctive.bench import read_plan
from subjunctive.bench.entrants import imported
from subjunctive.experiment import located

DATA = {"$class": "data.tabular.Nonlinear", "system": "chain"}
FLOW = {"$class": "mechanisms.flow.ConditionalFlow"}


def config(data=DATA, model=FLOW, **options):
    return {"tracks": {"tables": {"data": {"d": data}, "models": {"m": model}}}, **options}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"preset": "quik"}, "config.preset: .*quick.*Did you mean 'quick'"),
        (config(secnds=3), "config.secnds: .*Did you mean 'seconds'"),
        (config(seconds=0), "config.seconds: a number above 0, got 0"),
        (config(seconds="long"), "config.seconds: a number above 0, got 'long'"),
        (config(share=1.0), "config.share: .*below 1"),
        (config(grid={"lrr": [1]}), "config.grid: there is no 'lrr'.*batch_size, lr"),
        (config(grid={"lr": 0.1}), "config.grid.lr: a list of values"),
        (config(fit={"steps": 3}), "config.fit: there is no 'steps'"),
        (config(clock="sun"), "config.clock: there is no 'sun'; there are wall, cpu"),
        (config(metrics=["distanse"]), "Did you mean 'distance'"),
        (config(metrics="distance"), "config.metrics: several are asked for"),
        (config(reader={"step": 3}), "config.reader: .*Did you mean 'steps'"),
        (config(seeds=[]), "config.seeds: a list of whole numbers"),
        (config(seeds=[0.5]), "config.seeds: a list of whole numbers"),
        (config(data={**DATA, "systm": "fork"}), r"data\.d\.systm: Nonlinear has no .*'system'"),
        (config(data={"$class": "data.tabular.Nonlinar"}), "Did you mean 'data.tabular.Nonlinear'"),
        (config(model={"$class": "mechanisms.flow.ConditionalFlw"}), r"models\.m\.\$class: "),
        (config(model={"$class": "mechanisms.quantised.Quantised", "mechanism":
                       {**FLOW, "binss": 3}}), r"models\.m\.mechanism\.binss: .*'bins'"),
        (config(model={"$class": "mechanisms.quantised.Quantised"}), "needs the argument 'mechan"),
        (config(model="flow"), r"models\.m: say which class"),
        (config(model={"$class": "Mine"}), r"models\.m\.\$class: .*classes="),
        (config(classes=["os.nope"]), "config.classes: os has no class 'nope'"),
        (config(classes=["collections.OrderdDict"]), "Did you mean 'OrderedDict'"),
        (config(classes=["Mine"]), "'Mine' is no dotted path; say module.Mine"),
        (config(classes=["no_such_module.Mine"]), "cannot be imported.*PYTHONPATH"),
        ({"tracks": {"t": {"data": {"d": DATA}}}}, "a track has `data` and `models`"),
        ({"preset": "quick", "tracks": {"images": {"dta": {}}}}, "Did you mean 'data'"),
        ({"preset": "quick", "tracks": {"images": {"grid": {"rl": [1]}}}}, r"images\.grid: "),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place_and_the_nearest_name(given, says):
    with pytest.raises(ValueError, match=says):
        read_plan(given)


def test_a_file_s_mistake_is_told_with_its_line(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("preset: quick\nseconds: 1e1\ntracks:\n  images:\n    models:\n"
                    "      wide: {$class: bench.recipes.PlainVAE, latnt: 3}\n")  # fmt: skip
    with pytest.raises(ValueError, match=r"bench.yaml, line 6: .*latnt.*'latent'"), located(path):
        read_plan(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is no YAML"):
        read_plan(path)
    path.write_text("quick")
    with pytest.raises(ValueError, match="holds no settings"):
        read_plan(path)


def test_a_file_is_laid_over_a_preset_and_options_over_both(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("preset: quick\nseconds: 1e1\nseeds: [4]\ntracks:\n  images:\n    models:\n"
                    "      wide: {$class: bench.recipes.PlainVAE, latent: 64}\n"
                    "      Real NVP:\n")  # fmt: skip
    plan = read_plan(path, seeds=[7])
    assert list(plan.tracks["images"].models) == ["VAE", "CausalDiffAE", "wide"]
    assert set(plan.tracks["images"].data) == {"digits", "pendulum"}
    assert (plan.seconds, plan.seeds) == (10.0, [7])
    assert list(read_plan().tracks) == ["images"]


def test_presets_ask_for_what_they_say():
    quick, full = read_plan(preset="quick"), read_plan(preset="full")
    cells = [c for c in quick.cells if c.model]
    assert len(cells) == 3 * 2 * 1
    assert len({c.key for c in quick.cells}) == len(quick.cells)
    assert sum(c.settings["seconds"] for c in cells) / 2 < 10 * 60  # two cores, time to judge
    assert full.hours == pytest.approx((4 * 6 * 3 * 45 + 5 * 3 * 3 * 8) / 3600)
    tables = [c for c in full.cells if c.model and c.track == "tables"]
    assert {c.settings["seconds"] for c in tables} == {8}
    assert {str(c.settings["grid"]) for c in full.cells if c.model} == {str(dict(full.grid))}


def test_every_entry_of_the_presets_can_be_built():
    from subjunctive.bench.entrants import assemble, load

    small = {"MorphoDigits": {"digits": 30, "copies": 1}, "Pendulum": {"train": 4, "test": 4}}
    built = set()
    for name in ("quick", "full"):
        for track in read_plan(preset=name).tracks.values():
            first = next(iter(track.data.values()))
            plain = first.get("data", first)
            few = small.get(plain["$class"].rpartition(".")[2], {"train": 20, "test": 20})
            plain = {**plain, **few}
            data = load({**first, "data": plain} if "data" in first else plain, seed=0)
            for config in track.models.values():
                if str(config) not in built:
                    model, _ = assemble(config, data)
                    terms = model.loss(data.train[:2])
                    assert sum(terms.values()).isfinite().all(), config
                    built.add(str(config))
    assert len(built) == 9


def test_a_key_hangs_on_the_source_of_the_classes_that_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from subjunctive.mechanisms.flow import ConditionalFlow\n\n\nclass Mine:\n    {}\n"
    body = "def __new__(cls, variable, parents):\n        return ConditionalFlow(variable, parents)"
    module = tmp_path / "mine_of_plan.py"
    module.write_text(text.format(body))
    plan = config(model={"$class": "Mine"}, classes=["mine_of_plan.Mine"])
    plan["tracks"]["tables"]["models"]["flow"] = FLOW
    before = [c.key for c in read_plan(plan).cells]
    assert before == [c.key for c in read_plan(plan).cells]
    module.write_text(text.format(body) + "# changed\n")
    after = [c.key for c in read_plan(plan).cells]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_classes_are_given_as_paths_or_as_classes_that_a_process_can_import():
    from collections import OrderedDict

    assert read_plan(config(), classes=[OrderedDict]).classes == ["collections.OrderedDict"]
    assert imported(["collections.OrderedDict"]) == [OrderedDict]

    class Local:
        pass

    with pytest.raises(ValueError, match=r"Local.*cannot import it; put it at the top of a module"):
        read_plan(config(), classes=[Local])


def test_reading_a_file_imports_nothing_that_the_user_did_not_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_of_plan.py").write_text("raise SystemExit('ran')\n")
    for name in ("evil_of_plan.Evil", "evil_of_plan"):
        with pytest.raises(ValueError, match="may be named"):
            read_plan(config(model={"$class": name}))
    path = tmp_path / "bench.yaml"
    path.write_text("preset: quick\nseeds: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ValueError, match="is no YAML"):
        read_plan(path)
