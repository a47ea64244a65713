"""The shape of the house: which way it is imported, what it costs, and what it must not contain."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import subjunctive
from subjunctive.card import walk

ROOT = Path(subjunctive.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
FACES = {
    "bench",
    "plot",
    "app",
    "cli",
    "demo",
    "experiment",
    "hub",
    "estimator",
    "evidence",
    "__main__",
    "export",
}
ROOMS = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
CORE_ROOMS = {"checks", "training"}
HEAVY = ["pandas", "matplotlib", "scipy", "sklearn", "skimage", "typer", "networkx"]


def name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def floor(module):
    """0 core, 1 families, 2 models, 3 faces; the package's own index is above all."""
    room = module.split(".")[0]
    if room in FACES:
        return 3
    if room == "":
        return 4
    if room == "models":
        return 2
    return 1 if room in ROOMS - CORE_ROOMS else 0


def imports(path):
    """Every module of the package that a file imports, at any depth, types and functions too."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "subjunctive":
                yield from (a.name for a in node.names)
            elif node.module.startswith("subjunctive."):
                yield node.module.removeprefix("subjunctive.")
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{name(path)} imports relatively")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("subjunctive."):
                    yield alias.name.removeprefix("subjunctive.")


def ids(paths):
    return [name(p) or "subjunctive" for p in paths]


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_imports_point_one_way(path):
    here = floor(name(path))
    above = [m for m in imports(path) if m.split(".")[0] in KNOWN and floor(m) > here]
    assert not above, f"{name(path)} is on floor {here} and imports {above} from above"


KNOWN = {name(p).split(".")[0] for p in FILES}


@pytest.mark.parametrize("path", [p for p in FILES if floor(name(p)) == 2], ids=name)
def test_a_recipe_imports_no_other_recipe(path):
    if path.name != "__init__.py":
        assert not [m for m in imports(path) if m.startswith("models.")]


def test_the_walls_of_the_test_itself_stand():
    assert [floor(m) for m in ("scm", "checks.law", "mechanisms.flow", "models.x", "cli", "")] == [
        0, 0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert "graph" in set(imports(ROOT / "scm.py"))
    assert "identify" in set(imports(ROOT / "query.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_name_of_a_lazy_index_is_its_modules_own(room):
    """Python binds a submodule that was imported in the index, where the name would stand."""
    path = ROOT / room / "__init__.py"
    if "lazy(__name__)" in path.read_text():
        lines = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.ImportFrom)]
        taken = {a.asname for n in lines for a in n.names} & {p.stem for p in path.parent.glob("*")}
        assert not taken, f"{taken}: import these at once, or rename the module"


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_files_are_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or node.end_lineno - body[0].lineno < 60, node.name


def calls(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_nothing_is_printed_unpickled_or_seeded_globally(path):
    forbidden = {"print", "torch.load", "torch.save", "pickle.load", "pickle.loads", "eval", "exec"}
    forbidden |= {"np.random.seed", "numpy.random.seed", "random.seed"}
    seeds = {"torch.manual_seed"} if path.name != "mechanism.py" else set()
    assert not forbidden.union(seeds) & set(calls(path))
    top = {m.split(".")[0] for n in ast.walk(TREES[path]) if isinstance(n, ast.Import)
           for m in [a.name for a in n.names]}  # fmt: skip
    assert not top & {"pickle", "dill", "cloudpickle", "joblib.externals"}


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_errors_are_neither_asserted_nor_swallowed_and_no_device_is_named(path):
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise an error that teaches"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            allowed = caught not in ("everything", "Exception", "BaseException")
            assert allowed, f"line {node.lineno} catches {caught}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value != "cuda"
            assert not node.value.startswith("cuda:")


def test_every_card_has_an_example_and_its_paper():
    for cls, card in walk().items():
        assert card.example is not None, cls
        assert card.title, cls
        assert card.authors, cls
        assert card.year > 1900, cls


PROBE = """
import json, sys
import torch
from torch.distributions import Distribution
before = Distribution._validate_args
seed = torch.get_rng_state()
import subjunctive
light = sorted(m for m in {heavy} if m in sys.modules)
subjunctive.Graph, subjunctive.SCM, subjunctive.counterfactual
core = sorted(m for m in {heavy} if m in sys.modules)
from subjunctive.card import modules
count = sum(1 for _ in modules())
print(json.dumps(dict(
    light=light, core=core, count=count, before=before, after=Distribution._validate_args,
    threads=torch.get_num_threads() == {threads},
    generator=bool((seed == torch.get_rng_state()).all()),
)))
"""


@pytest.fixture(scope="module")
def probe():
    """What a fresh interpreter sees after importing the package, and then every module of it."""
    import torch

    code = PROBE.format(heavy=HEAVY, threads=torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_import_is_cheap(probe):
    assert probe["light"] == []
    assert probe["core"] == []


def test_importing_every_module_leaves_torch_as_it_was(probe):
    assert probe["count"] >= len(FILES) - 5
    assert probe["after"] is probe["before"]
    assert probe["generator"]
    assert probe["threads"]
