"""What goes to the Hub and what comes from it, up to the network and no further."""

import inspect
import pickle
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects
from linear_gaussian import scm
from torch import nn

from subjunctive.data.tabular import Linear
from subjunctive.graph import Graph
from subjunctive.hub import HubError, cite, from_hub, model_card, push_to_hub
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import Categorical, ConditionalFlow, Known, LinearGaussian, Tied
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.metrics import evaluate
from subjunctive.models import CausalDiffAE
from subjunctive.plot import sections
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import StoreError
from subjunctive.variable import Batch, Variable

http = sys.modules[HTTPError.__module__.partition(".")[0]]  # httpx or its successor
REPO = "some-one/tiny.model"
REAL = {
    "create_repo": inspect.signature(huggingface_hub.HfApi.create_repo),
    "upload_folder": inspect.signature(huggingface_hub.HfApi.upload_folder),
    "snapshot_download": inspect.signature(huggingface_hub.snapshot_download),
}


class Hub:
    """A Hub on disk with the real one's signatures and file patterns; records what it is asked."""

    def __init__(self, root):
        self.root, self.calls, self.asked, self.folders, self.error = root, [], [], [], {}
        self.commit = None  # what it gives, whatever was asked for

    def note(self, name, *args, **kwargs):
        REAL[name].bind(*([None] if "self" in REAL[name].parameters else []), *args, **kwargs)
        self.calls.append((name, kwargs))
        if name in self.error:
            raise self.error[name]

    def api(self, token=None):
        self.calls.append(("HfApi", {"token": token}))
        return self

    def create_repo(self, **kwargs):
        self.note("create_repo", **kwargs)
        (self.root / kwargs["repo_id"]).mkdir(parents=True, exist_ok=kwargs["exist_ok"])
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{kwargs['repo_id']}")

    def upload_folder(self, **kwargs):
        folder = Path(kwargs["folder_path"])
        self.folders.append(folder)
        self.note("upload_folder", **kwargs)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=kwargs.get("allow_patterns")):
            shutil.copy(folder / name, self.root / kwargs["repo_id"] / name)

    def snapshot_download(self, repo_id, **kwargs):
        self.note("snapshot_download", repo_id, **kwargs)
        commit = self.commit or kwargs["revision"] or "main"
        held, place = self.root / repo_id, self.root / "cache" / str(len(self.calls)) / commit
        names = [str(p.relative_to(held)) for p in held.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=kwargs.get("allow_patterns")):
            self.asked.append(name)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(held / name, place / name)
        return str(place)

    def of(self, name):
        return [kwargs for called, kwargs in self.calls if called == name]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", made.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def line(text, start):
    return next(row for row in text.splitlines() if row.startswith(start))


def section(text, name):
    return text.split(f"## {name}\n")[1].split("\n## ")[0]


def block(text, language):
    return re.search(rf"^(```+){language}\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)[2]


def double(u, parents):
    return 2 * u


class Half(Mechanism):
    """A user's own mechanism, without a card."""

    def prior(self):
        return self.standard_normal(*self.variable.shape)

    def forward(self, u, parents):
        return u / 2 + sum(parents[p.name] for p in self.parents)

    def abduct(self, x, parents):
        return 2 * (x - sum(parents[p.name] for p in self.parents))

    def loss(self, x, parents):
        return {"square": self.abduct(x, parents) ** 2}


T = Variable("pH.1", unit="of 14", loc=7.0, low=6.123456, high=7.5)
ARM = Variable("a|b", kind="categorical", categories=("placebo", "drug"))
Y = Variable("it's `y`", loc=2.0)


def mixed(last=LinearGaussian):
    with seeded(0):
        parts = {T.name: LinearGaussian(T), ARM.name: Categorical(ARM, [T])}
        graph = Graph(
            [T.name, ARM.name, Y.name],
            [[0, 2, 2], [3, 0, 2], [3, 3, 0]],
            kinds={ARM.name: "context"},
        )
        return SCM(graph, {**parts, Y.name: last(Y, [T, ARM])}).eval()


def own():
    t, y = Variable("t"), Variable("y")
    return SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t), "y": Half(y, [t])}).eval()


def known():
    t, y = Variable("t"), Variable("y")
    both = {"t": Known(t, [], double), "y": LinearGaussian(y, [t])}
    return SCM(Graph.parse("t -> y"), both).eval()


def pictures():
    x = Variable("x", (1, 2, 2))
    return SCM(Graph(["x"]), {"x": LinearGaussian(x)}).eval()


# Up and down --------------------------------------------------------------------------------------


def test_three_files_go_up_and_the_same_answers_come_down(hub):
    model = scm().eval()
    url = push_to_hub(model, REPO, token="secret", private=True, message="First")
    assert url == f"https://huggingface.co/{REPO}"
    assert type(url) is str
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]
    assert hub.of("HfApi") == [{"token": "secret"}]
    assert hub.of("create_repo") == [{"repo_id": REPO, "private": True, "exist_ok": True}]
    assert hub.of("upload_folder")[0]["commit_message"] == "First"
    held = sorted(p.name for p in (hub.root / REPO).iterdir())
    assert held == ["README.md", "config.json", "model.safetensors"]
    assert not hub.folders[0].exists()
    again = from_hub(REPO, revision="v1", token="secret", cache_dir=hub.root / "c")
    (asked,) = hub.of("snapshot_download")
    assert (asked["revision"], asked["token"]) == ("v1", "secret")
    assert asked["cache_dir"] == str(hub.root / "c")
    rows = model.sample(6, seed=3)
    assert identical(rows, again.sample(6, seed=3))
    for do in ({}, {"t": 1.0}, {"z": 4.0, "m": 90.0}):
        a, b = (counterfactual(m, rows, do, seed=1) for m in (model, again))
        assert identical(dict(a), dict(b))
    push_to_hub(model, REPO)  # what is there makes way
    assert hub.of("create_repo")[1]["private"] is False


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_code_and_pickles_in_a_repository_are_never_asked_for(hub):
    push_to_hub(scm(), REPO)
    held = hub.root / REPO
    (held / "code").mkdir()
    for name in ("modeling.py", "code/__init__.py", "conftest.py", "setup.json.py"):
        (held / name).write_text("raise SystemExit('code ran')")
    for name in ("model.pkl", "pytorch_model.bin", "config.json.pkl", "model.pt", "a.safetensors~"):
        (held / name).write_bytes(pickle.dumps(Trap()))
    for name in ("tokenizer.json", "part-1.safetensors", "code/config.json"):  # not asked for
        (held / name).write_text("{}")
    assert isinstance(from_hub(REPO), SCM)
    assert sorted(hub.asked) == ["config.json", "model.safetensors"]
    assert hub.of("snapshot_download")[0]["allow_patterns"] == ["config.json", "model.safetensors"]


def test_what_is_no_sound_model_is_refused_by_the_name_of_its_repository(hub):
    push_to_hub(own(), REPO)
    with pytest.raises(StoreError, match=r"tiny\.model gave no model: .*'Half'.*classes="):
        from_hub(REPO)
    assert isinstance(from_hub(REPO, classes=[Half]).mechanisms["y"], Half)
    weights = hub.root / REPO / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(StoreError, match=r"tiny\.model at 'v2' gave no .*SHA-256 differs"):
        from_hub(REPO, revision="v2", classes=[Half])
    (hub.root / REPO / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(StoreError, match="was not written by subjunctive"):
        from_hub(REPO)


def test_a_commit_that_was_asked_for_is_the_one_that_came(hub):
    push_to_hub(scm(), REPO)
    asked, other = "0123456789abcdef" * 2 + "01234567", "f" * 40
    assert isinstance(from_hub(REPO, revision=asked), SCM)
    hub.commit = other
    with pytest.raises(HubError, match=f"at '{asked}' is not what came, which is {other}; clear"):
        from_hub(REPO, revision=asked)
    for branch in (None, "main", "abc1234"):  # names that move are the Hub's to resolve
        assert isinstance(from_hub(REPO, revision=branch), SCM)


@pytest.mark.parametrize("token", ["hf_secret\n", " hf_secret", "hf_sécret", "hf secret", "", True])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(hub, token):
    for ask in (lambda: push_to_hub(scm(), REPO, token=token), lambda: from_hub(REPO, token=token)):
        with pytest.raises(ValueError, match=r"give token\.strip\(\)") as caught:
            ask()
        assert "secret" not in str(caught.value)
    assert hub.calls == []


def test_neither_token_nor_path_is_written(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    push_to_hub(own(), REPO, token="hf_secret", message="Add it")
    for file in (hub.root / REPO).iterdir():
        content = file.read_bytes()
        assert b"hf_secret" not in content
        for place in (tmp_path, Path(__file__).parent, *hub.folders):
            assert str(place).encode() not in content


# Failures -----------------------------------------------------------------------------------------


def refused(status, kind=HfHubHTTPError):
    request = http.Request("POST", "https://huggingface.co/api")
    return kind(f"{status} Client Error", response=http.Response(status, request=request))


ERRORS = [
    refused(403),
    refused(401, RepositoryNotFoundError),
    http.ConnectError("no route\nto host"),
    http.ReadTimeout("slow"),
    LocalEntryNotFoundError("not cached"),
    RuntimeError("xet"),
    ValueError("Invalid metadata in README.md"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("when", ["create_repo", "upload_folder"])
def test_a_network_that_fails_is_one_error_that_says_how_to_keep_the_model(hub, error, when):
    hub.error[when] = error
    with pytest.raises(HubError) as caught:
        push_to_hub(scm(), REPO)
    text = str(caught.value)
    assert f"'{REPO}' was not uploaded ({type(error).__name__}: " in text
    assert str(error).split()[0] in text
    assert "save(model, directory)" in text
    assert "\n" not in text
    assert caught.value.__cause__ is error
    assert hub.of("upload_folder") == [] or when == "upload_folder"
    assert not any(folder.exists() for folder in hub.folders)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_download_that_fails_is_one_error_too(hub, error):
    hub.error["snapshot_download"] = error
    with pytest.raises(HubError, match=f"{REPO} at 'main' could not be read .*token"):
        from_hub(REPO, revision="main")


def test_a_stop_by_the_user_is_no_error_of_the_hub(hub):
    hub.error["upload_folder"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        push_to_hub(scm(), REPO)


LONG, ABSENT = f"a/{'b' * 97}", None
BAD = [
    "digits",
    "me/my digits",
    "a/b/c",
    "/b",
    "a/",
    "",
    "a/b.git",
    "a--b/c",
    "a/..",
    "-a/b",
    "a/b-",
]
BAD += ["a/b\n", "mé/b", "https://huggingface.co/a/b", LONG, ABSENT, Path("a/b")]


@pytest.mark.parametrize("repo", BAD)
def test_a_bad_name_is_refused_before_any_work(hub, monkeypatch, repo):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not even this is asked for
    for ask in (lambda: push_to_hub(nn.Identity(), repo), lambda: from_hub(repo)):
        with pytest.raises(ValueError, match="a name looks like 'owner/my-model'"):
            ask()
    assert hub.calls == []


@pytest.mark.parametrize("repo", ["a/b", "A-1_x.y/b", f"a/{'b' * 96}", "_a/0"])
def test_good_names_pass(hub, repo):
    push_to_hub(pictures(), repo)
    assert hub.of("create_repo")[0]["repo_id"] == repo


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for ask in (lambda: push_to_hub(scm(), REPO), lambda: from_hub(REPO)):
        with pytest.raises(ModuleNotFoundError, match="pip install huggingface_hub"):
            ask()


def unsaved():
    t = Variable("t")
    return SCM(Graph(["t"]), {"t": Known(t, [], lambda u, p: u)})


@pytest.mark.parametrize(
    ("model", "more", "error", "says"),
    [
        (unsaved, {}, StoreError, "<lambda> has no name"),
        (nn.Identity, {}, ValueError, "an SCM above all; Identity is no module"),
        (lambda: LinearGaussian(T), {}, ValueError, "LinearGaussian is no module with graph"),
        (scm, {"evaluation": 3}, ValueError, "a int that metrics.evaluate did not return"),
        (scm, {"tags": "digits"}, ValueError, "tags is 'digits'; give a list"),
        (scm, {"examples": {"t": 1.0}}, ValueError, "one intervention.*give a list"),
        (scm, {"examples": [{"tt": 1.0}]}, KeyError, "unknown node 'tt'"),
        (scm, {"examples": [{"t": "high"}]}, ValueError, "'t' is continuous"),
        (scm, {"examples": [{"t": torch.ones(1)}]}, ValueError, "'t' is a Tensor, which code"),
        (scm, {"examples": [{"t": float("inf")}]}, ValueError, "not finite"),
    ],
)
def test_nothing_is_uploaded_if_anything_before_fails(hub, model, more, error, says):
    with pytest.raises(error, match=says):
        push_to_hub(model(), REPO, **more)
    assert hub.calls == []


# The card -----------------------------------------------------------------------------------------


def test_the_front_matter_is_yaml_of_what_the_hub_knows():
    _, front, text = model_card(mixed(), licence="Apache-2.0", tags=["a: b", "é", "é"]).split(
        "---\n", 2
    )
    read = yaml.safe_load(front)
    assert read["library_name"] == "subjunctive"
    assert read["license"] == "apache-2.0"
    assert read["tags"][-2:] == ["a: b", "é"]
    assert "causality" in read["tags"]
    assert set(read) == {"library_name", "license", "tags"}
    assert text.lstrip().startswith("# my-model\n")
    assert "license" not in yaml.safe_load(model_card(mixed()).split("---\n")[1])


def test_every_node_stands_in_the_table_and_among_the_mechanisms():
    model = mixed()
    text = model_card(model)
    graph = section(text, "Graph")
    assert Graph.parse(block(graph, "")) == model.graph
    assert line(graph, "| `pH.1` |") == "| `pH.1` | continuous | of 14 | number | 6.123 to 7.5 |"
    arm = r"| `a\|b` | categorical, context |  | number | placebo, drug |"
    assert line(graph, r"| `a\|b`") == arm
    assert line(graph, "| `` it's") == "| `` it's `y` `` | continuous |  | number |  |"
    made = section(text, "Mechanisms")
    last = "- `` it's `y` ``: Linear-Gaussian mechanism (`LinearGaussian`) of `pH.1`, `a|b`"
    assert line(made, "- `` it's") == last
    assert "Gumbel-max categorical mechanism" in line(made, "- `a|b`")
    assert "1 x 2 x 2" in line(model_card(pictures()), "| `x`")
    for node in scm().graph.nodes:
        assert f"\n| `{node}` | continuous |" in model_card(scm())


def test_summaries_and_assumptions_are_those_of_the_parts_each_once():
    text = model_card(mixed())
    used = [LinearGaussian.card, Categorical.card]
    about, assumed = section(text, "What it is"), section(text, "Assumptions")
    assert [row for row in about.splitlines() if row.startswith("- ")] == [
        f"- **{card.name}.** {card.summary}" for card in used
    ]
    assert [row[2:] for row in assumed.splitlines() if row.startswith("- ")] == [
        a for card in used for a in card.assumptions
    ]
    assert f"{sum(p.numel() for p in mixed().parameters()):,} parameters" in about


def tied():
    a = Variable("a")
    step = Categorical(Variable("b", kind="categorical", categories=("0", "1")), [a])
    again = Variable("c", kind="categorical", categories=("0", "1"))
    mechanisms = {"a": LinearGaussian(a), "b": step, "c": Tied(step, again, [a])}
    return SCM(Graph.parse("a -> b; a -> c"), mechanisms)


@pytest.mark.parametrize(
    ("model", "rung", "weakest", "rows"),
    [
        (scm, 3, "exact", {"exact": ["z", "t", "m", "y", "w"]}),
        (mixed, 3, "convention", {"exact": ["pH.1"], "convention": ["a|b"]}),
        (tied, 3, "convention", {"exact": ["a"], "convention": ["b", "c"]}),
        (known, 2, "none", {"none": ["t"], "exact": ["y"]}),
        (own, 3, "unstated", {"exact": ["t"], "unstated": ["y"]}),
        (
            lambda: CausalDiffAE.card.example()[0],
            3,
            "convention",
            {"exact": ["t", "i"], "approximate": ["x"], "convention": ["k"]},
        ),
    ],
)
def test_abduction_is_as_exact_as_the_weakest_part(model, rung, weakest, rows):
    text = section(model_card(model()), "Rung and abduction")
    assert f"up to rung {rung} of" in text
    assert f"Abduction is **{weakest}**" in text
    for word, nodes in rows.items():
        stated = line(text, f"- {word}: ")
        assert all(f"`{node}`" in stated for node in nodes)
    assert sum(row.startswith("- ") for row in text.splitlines()) == len(rows)
    assert ("encoder infers" in text) == (getattr(model(), "encoder", None) is not None)


@pytest.mark.parametrize("make", [scm, mixed, tied, lambda: CausalDiffAE.card.example()[0]])
def test_papers_are_cited_each_once_and_in_a_stable_order(make, hub):
    model = make()
    text = block(model_card(model), "bibtex")
    keys = re.findall(r"^@\w+\{(.*),$", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) > 0
    titles = {type(m).card.title for m in model.mechanisms.values()}
    assert {t for t in titles if f"title = {{{t}}}" in text} == titles
    assert text == cite(model) == cite(make())
    push_to_hub(model, REPO)
    assert cite(from_hub(REPO)) == text


def test_a_recipes_model_cites_the_papers_of_its_mechanisms():
    text = cite(CausalDiffAE.card.example()[0])
    for cls in (ConditionalFlow, Categorical, Diffusion):
        assert f"title = {{{cls.card.title}}}" in text
    assert LinearGaussian.card.title not in text
    with pytest.raises(ValueError, match="no part of this Identity has a card"):
        cite(nn.Identity())


def test_a_model_without_cards_says_so():
    y = Variable("y")
    text = model_card(SCM(Graph(["y"]), {"y": Half(y)}))
    assert "## Citation" not in text
    assert "no card says" in section(text, "Assumptions")
    assert "- `y`: `Half`" in text


@pytest.mark.parametrize(
    ("make", "treatment", "outcome"),
    [
        (scm, "z", "w"),
        (mixed, "pH.1", "it's `y`"),
        (own, "t", "y"),
        (lambda: CausalDiffAE.card.example()[0], "t", "x"),
    ],
)
def test_the_program_in_the_card_runs_and_answers_as_the_model(hub, make, treatment, outcome):
    model = make().eval()
    push_to_hub(model, REPO)
    code = block((hub.root / REPO / "README.md").read_text(), "python")
    found = {}
    exec(code, found)
    (do,) = found["worlds"]
    assert list(do) == [treatment]
    v = model.variables[treatment]
    assert v.low is None or v.low <= do[treatment] <= v.high
    rows = model.sample(4, seed=0)
    assert identical(rows, found["rows"])
    assert identical(found["done"][0], model.sample(4, do=do, seed=0))
    answer = counterfactual(model, rows, do, seed=0)
    assert torch.equal(found["after"], answer[outcome])
    assert torch.equal(found["before"], rows[outcome])
    assert not torch.equal(found["before"], found["after"])


def test_the_program_shows_the_examples_that_are_given(hub):
    given = [{"a|b": "drug", "pH.1": 7}, {}]
    push_to_hub(mixed(), REPO, examples=given)
    found = {}
    exec(block((hub.root / REPO / "README.md").read_text(), "python"), found)
    assert found["worlds"] == given
    assert bool((found["done"][0]["a|b"] == 1).all())
    assert len(found["answers"]) == 2


def test_the_program_asks_nothing_that_the_model_cannot_answer(hub):
    push_to_hub(known(), REPO)
    found = {}
    exec(block((hub.root / REPO / "README.md").read_text(), "python"), found)
    assert "done" in found
    assert "answers" not in found
    push_to_hub(pictures(), "a/pictures")
    found = {}
    exec(block((hub.root / "a/pictures/README.md").read_text(), "python"), found)
    assert found["rows"]["x"].shape == (4, 1, 2, 2)
    assert "worlds" not in found


def test_a_range_of_many_digits_is_kept():
    narrow = Variable("n", loc=1000.015, scale=0.01, low=1000.01, high=1000.02)
    wide = Variable("n", low=-float("inf"), high=3.5)
    for v in (narrow, wide):
        code = block(model_card(SCM(Graph(["n"]), {"n": LinearGaussian(v)})), "python")
        value = float(re.search(r"worlds = \[\{'n': (.*)\}\]", code)[1])
        assert v.low < value < v.high


def test_marks_in_a_name_do_not_break_the_page():
    bad = Variable("a```\n# b")
    text = model_card(SCM(Graph([bad.name]), {bad.name: LinearGaussian(bad)}))
    assert not [row for row in text.splitlines() if row.startswith("# b")]
    assert Graph.parse(block(section(text, "Graph"), "")).nodes == (bad.name,)
    assert repr(bad.name) in block(text, "python")
    compile(block(text, "python"), "card", "exec")


def test_the_evaluation_is_shown_part_by_part(hub):
    data = Linear("t -> y", train=100, valid=2, test=20)
    frame = evaluate(data.oracle, data, rows=20, metrics=["distance"], progress=False)
    graph = Graph.parse("t -> y")
    t, y = data.variables["t"], data.variables["y"]
    model = SCM(graph, {"t": LinearGaussian(t), "y": LinearGaussian(y, [t])})
    push_to_hub(model, REPO, evaluation=frame)
    text = section((hub.root / REPO / "README.md").read_text(), "Evaluation")
    assert "on 20 held-out rows" in text
    assert f"*inside*: {frame.attrs['inside']}." in text
    parts = dict(sections(frame))
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == list(parts)
    for part in parts.values():
        for index, *cells in part.itertuples():
            assert f"| {index} | {' | '.join(cells)} |" in text
    assert "## Evaluation" not in model_card(model)


def test_a_card_leaves_model_and_generator_alone():
    model = scm().train()
    state = torch.random.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model_card(model) == model_card(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert identical(before, dict(model.state_dict()))
    assert model.training
    assert Batch(model.sample(2, seed=0))
