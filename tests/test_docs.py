"""The pages of docs/: what they use exists, what they link to is there; Sphinx is not needed."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import typer
import yaml

import subjunctive as sj
from subjunctive import cli
from subjunctive.card import Card, walk
from subjunctive.checks import MECHANISM_LAWS, MODEL_LAWS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(DOCS / "_ext"))
    api, cards, docstring, run = map(importlib.import_module, ("api", "cards", "docstring", "run"))

PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")])
}
GUIDES = [name for name in PAGES if name.startswith("guides/")]
RUN = re.compile(r"^```\{run\}\n((?::[^\n]*\n)*)(.*?)^```$", re.DOTALL | re.MULTILINE)
ROOMS = [
    "mechanisms",
    "diffusion",
    "encoders",
    "nn",
    "data",
    "metrics",
    "plot",
    "checks",
    "estimator",
]


def blocks(text):
    """Options, code and first line of every `{run}` block."""
    for found in RUN.finditer(text):
        options = dict(re.findall(r"^:([\w-]+): *(.*)$", found[1], re.MULTILINE))
        yield options, found[2], text[: found.start(2)].count("\n") + 1


@pytest.fixture(scope="module")
def methods():
    proved = cards.proofs(ROOT / "benchmarks" / "results", PAGES["proof.md"])
    return cards.written(walk(), proved)


# Code in pages --------------------------------------------------------------------------------


def test_there_are_guides_and_their_code_is_run():
    assert {"guides/own_table.md", "guides/own_images.md", "guides/compare_decoders.md"} <= {*PAGES}
    for name in GUIDES:
        assert len(list(blocks(PAGES[name]))) > 3, name
        assert "```python" not in PAGES[name], f"{name} has code that is not run"


@pytest.mark.parametrize("name", PAGES)
def test_blocks_compile_fit_the_page_and_describe_their_figures(name):
    for options, code, line in blocks(PAGES[name]):
        compile(code, f"{name}:{line}", "exec")
        assert set(options) <= {"figure", "alt", "output", "hide-code"}, (name, line)
        assert ("figure" in options) == ("alt" in options), (name, line)
        assert len(options.get("alt", "x" * 30)) >= 30, (name, line)
        wide = [row for row in code.splitlines() if len(row) > 88]
        assert not wide or "hide-code" in options, (name, line, wide)


class Names(ast.NodeVisitor):
    """Follows imports and constructed objects through the blocks of a page."""

    def __init__(self):
        self.known, self.made, self.checked = {}, {}, 0

    def visit_Import(self, node):
        for alias in node.names:
            module = importlib.import_module(alias.name)
            self.known[alias.asname or alias.name] = module

    def visit_ImportFrom(self, node):
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name) and hasattr(module, "__path__"):
                importlib.import_module(f"{node.module}.{alias.name}")
            self.known[alias.asname or alias.name] = getattr(module, alias.name)

    def find(self, node):
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            value = self.find(node.value)
            return None if value is None else getattr(value, node.attr)
        return None

    def visit_Assign(self, node):
        self.generic_visit(node)
        value = self.find(node.value.func) if isinstance(node.value, ast.Call) else None
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.made.pop(target.id, None)
                self.known.pop(target.id, None)
                if inspect.isclass(value) and value is not sj.CausalDiffAE:  # it makes an SCM
                    self.made[target.id] = value

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in self.made:
            cls = self.made[node.value.id]
            if cls.__module__.startswith("subjunctive."):
                own = rf"self\.{node.attr}\b|^    {node.attr}:"
                there = hasattr(cls, node.attr) or re.search(own, inspect.getsource(cls), re.M)
                assert there, f"line {node.lineno}: {cls.__name__} has no {node.attr!r}"
                self.checked += 1
        elif self.find(node.value) is not None:
            self.find(node)

    def visit_Call(self, node):
        self.generic_visit(node)
        called = self.find(node.func)
        ours = getattr(called, "__module__", None) or ""
        starred = [a for a in (*node.args, *node.keywords) if isinstance(a, ast.Starred)]
        if ours.startswith("subjunctive.") and not starred:
            words = {k.arg: None for k in node.keywords if k.arg}
            try:
                inspect.signature(called).bind(*[None] * len(node.args), **words)
            except TypeError as error:
                pytest.fail(f"line {node.lineno}: {ast.unparse(node.func)}: {error}")
            self.checked += 1


@pytest.mark.parametrize("name", [n for n in PAGES if "```{run}" in PAGES[n]])
def test_every_name_and_argument_that_a_page_uses_exists(name):
    names = Names()
    for _, code, line in blocks(PAGES[name]):
        names.visit(ast.parse("\n" * (line - 1) + code))
    for word in re.findall(r"`(sj(?:\.\w+)+)", PAGES[name]):
        value = sj
        for part in word.split(".")[1:]:
            value = getattr(value, part)
    assert names.checked > 3 or name in ("glossary.md", "command_line.md")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("sj.evaluate(m, d, metric=[])", pytest.fail.Exception),
        ("sj.counterfactual(m)", pytest.fail.Exception),
        ("sj.counterfact(m)", AttributeError),
        ("from subjunctive.diffusion import Ddim", ModuleNotFoundError),
        ("d = sj.Pendulum()\nd.trian", AssertionError),
    ],
)
def test_a_name_or_argument_that_does_not_exist_is_found(code, error):
    with pytest.raises(error):
        Names().visit(ast.parse(f"import subjunctive as sj\n{code}"))


def classes(config):
    """Every part of a YAML experiment that names a class."""
    if isinstance(config, dict):
        if "$class" in config:
            yield config
        for value in config.values():
            yield from classes(value)


def test_experiments_in_pages_name_classes_and_their_arguments():
    found = 0
    for name, text in PAGES.items():
        for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            config = yaml.safe_load(block)
            assert set(config) == {"data", "model", "fit"}, name
            assert set(config["fit"]) <= set(inspect.signature(sj.fit).parameters), name
            for part in classes(config):
                module, _, cls = part["$class"].rpartition(".")
                made = getattr(importlib.import_module(f"subjunctive.{module}"), cls)
                assert {*part} - {"$class"} <= set(inspect.signature(made).parameters), name
                found += 1
    assert found >= 8


def test_commands_in_pages_exist():
    group, found = typer.main.get_command(cli.app), 0
    for text in PAGES.values():
        for line in re.findall(r"^subjunctive (.*)$", text, re.MULTILINE):
            name, *words = line.split()
            options = {o for p in group.commands[name].params for o in p.opts}
            assert {w for w in words if w.startswith("--")} <= options, line
            found += 1
    assert found >= 3


def test_the_page_of_commands_has_every_command_and_option():
    session = run.Session("command_line.md")
    try:
        said = "".join(session.run(code, n).stdout for _, code, n in blocks(PAGES[session.page]))
    finally:
        session.close()
    for name, command in typer.main.get_command(cli.app).commands.items():
        part = said.split(f"### subjunctive {name}\n")[1].split("\n### ")[0]
        for p in command.params:
            shown = p.name.upper() if p.param_type_name == "argument" else p.opts[0]
            assert p.name == "help" or f"`{shown}" in part, (name, p.name)


# Links ----------------------------------------------------------------------------------------


def anchors(text):
    return {cards.anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def listed(text):
    """The pages that the trees of a page name."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^([\w/]+)$", "\n".join(trees), re.MULTILINE)


def test_internal_links_lead_somewhere(methods):
    pages = PAGES | {f"methods/{name}": text for name, text in methods.items()}
    terms = {t.lower() for t in glossary()}
    found = 0
    for name, text in pages.items():
        here = (DOCS / name).parent
        links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
        links += [f"{t}.md" for t in re.findall(r"\{doc\}`[^<`]*<([^>`]+)>`", text)]
        links += [f"{line}.md" for line in listed(text)]
        for link in links:
            path, _, at = link.partition("#")
            target = (here / path).resolve().relative_to(DOCS).as_posix() if path else name
            assert target in pages or (DOCS / target).is_file(), (name, link)
            assert not at or at in anchors(pages[target]), (name, link)
            found += 1
        for term in re.findall(r"\{term\}`(?:[^<`]*<)?([^>`]+)>?`", text):
            assert term.lower() in terms, (name, term)
    assert found > 30


def test_every_page_is_in_the_tree(methods):
    assert {*PAGES} - {"index.md"} <= {f"{line}.md" for line in listed(PAGES["index.md"])}
    assert {*methods} - {"index.md"} == {f"{line}.md" for line in listed(methods["index.md"])}


def test_pages_ask_the_network_for_nothing():
    for path in (DOCS / "conf.py", *(DOCS / "_static").iterdir()):
        assert "http" not in path.read_text(encoding="utf-8"), path
    for name, text in PAGES.items():
        assert not re.search(r"!\[[^\]]*\]\(http", text), name


# Glossary -------------------------------------------------------------------------------------

TERMS = """abduct, ATE, CATE, composition, confounder, consistency, counterfactual, CPDAG, DCI,
decoder, denoiser, do, effectiveness, encoder, environment, estimand, evidence, exogeneity,
factual, instrument, ITE, latent, MCC, mechanism, mediator, MIG, minimality, noise, order,
outcome, PAG, parents, posterior, predict, prior, realism, residual, reversibility, round trip,
rung, rungs agree, sampler, schedule, score, SCM, SHD, SID, skeleton, soft, targets, treatment"""


def glossary():
    """Term -> what it means."""
    parts = re.findall(r"^```\{glossary\}\n(.*?)^```", PAGES["glossary.md"], re.DOTALL | re.M)
    found = {}
    for entry in re.split(r"\n\n+", "\n\n".join(part.strip() for part in parts)):
        term, *lines = entry.splitlines()
        assert all(line.startswith("  ") for line in lines), entry
        assert term not in found, term
        found[term] = " ".join(line.strip() for line in lines)
    return found


def test_the_glossary_has_every_term_in_a_sentence_or_three():
    found = glossary()
    assert {term.strip() for term in re.split(r",\s*", TERMS)} <= set(found)
    for term, meaning in found.items():
        assert meaning.endswith((".", "?")), term
        assert 1 <= len(re.findall(r"[.?](?:\s|$)", meaning)) <= 3, term


def test_the_glossary_names_every_law():
    [(_, code, line)] = blocks(PAGES["glossary.md"])
    session = run.Session("glossary.md")
    try:
        said = session.run(code, line).stdout
    finally:
        session.close()
    for law in (*MECHANISM_LAWS, *MODEL_LAWS):
        [row] = [r for r in said.splitlines() if r.endswith(f"| {law.__doc__.splitlines()[0]} |")]
        assert row.startswith(f"| `{law.__name__}` |")


# Pages of methods -----------------------------------------------------------------------------


def test_every_card_has_a_page_that_says_what_the_card_says(methods):
    found = walk()
    assert len(methods) == len(found) + 1
    for cls, card in found.items():
        text = methods[f"{cards.name_of(cls)}.md"]
        assert text.startswith(f"# {card.name}\n")
        assert f"```bibtex\n{card.bibtex()}\n```" in text
        assert f"[{card.title}]({card.url})" in text
        assert f"| Rung | {card.rung}" in text
        assert f"{card.tolerance:g}" in text
        assert cards.ABDUCTION[card.abduction] in text
        plain = re.sub(r"\\(?=\W)", "", text)
        for said in (*card.assumptions, card.summary, card.needs):
            assert " ".join(said.split()) in plain, (card.name, said)
        module = inspect.cleandoc(inspect.getmodule(cls).__doc__)
        formulas = re.findall(r"(?<=\n\n)    (.+)", module)
        assert all(line.strip() in text for line in formulas), card.name
        assert ">>> " in text or f"{cls.__name__}.card.example()" in text
        assert f"[{card.name}]({cards.name_of(cls)}.md)" in methods["index.md"]


def test_a_page_escapes_what_is_no_markup_and_links_what_was_measured():
    class Method:
        """Takes a*b and `a*b` of [x]_t.

        Reference: Other (Doe, 2021), https://example.org/a.

        Args:
            graph: what, `(B, *shape)`: and
                more.
        """

        def __init__(self, graph, width=8):
            pass

    Method.__module__ = "subjunctive.mechanisms.linear"
    card = Card("Demo", "Shows.", "A Title", "Doe, Jane and Roe, Jo", 2020, abduction="convention",
                of=(7,), assumptions=("p(x*) = q",))  # fmt: skip
    proof = cards.Proof("What came out", "../proof.md#what-came-out", 2, 3)
    text = cards.page(Method, card, {7: [proof], 8: [proof._replace(title="Other")]})
    assert "Takes a\\*b and `a*b` of \\[x\\]\\_t." in text
    assert "Method(graph, width=8)" in text
    assert "- `graph`: what, `(B, *shape)`: and more." in text
    assert "- p(x\\*) = q" in text
    assert "from Doe and Roe, A Title, 2020." in text
    assert "[What came out](../proof.md#what-came-out): 2 of 3 bounds" in text
    assert "[Other]" not in text
    assert "## To cite\n\nOther (Doe, 2021), <https://example.org/a>." in text
    assert "no data can tell which of them it was" in text
    assert "No experiment of its own" in cards.page(Method, card, {})


def test_results_are_linked_to_their_sections(tmp_path):
    kept = '{"title": "The core: cost", "method": %s, "claims": [{"holds": %s}, {"holds": null}]}'
    (tmp_path / "a.json").write_text(kept % ("0", "false"))
    (tmp_path / "b.json").write_text(kept % ("null", "true"))
    found = cards.proofs(tmp_path, "# Page\n\n## The core: cost\n\nText.\n")
    link = "../proof.md#the-core-cost"
    assert found == {0: [cards.Proof("The core: cost", link, 0, 1)]}
    assert cards.proofs(tmp_path, "# Page\n")[0][0].link == "../proof.md"


# The reference --------------------------------------------------------------------------------


def test_every_public_name_is_described_once():
    text = api.expand(PAGES["api.md"])
    assert "<!-- public" not in text
    described = re.findall(r"^\.\. (?:auto\w+|py:data):: subjunctive\.([\w.]+)$", text, re.M)
    assert sorted(n for n in described if "." not in n) == sorted(sj.__all__)
    assert len(described) == len(set(described))
    prose = re.sub(r"^\| .*$", "", text, flags=re.MULTILINE)  # the list of all names left out
    for room in ROOMS:
        module = importlib.import_module(f"subjunctive.{room}")
        for name in api.public(module):
            linked = f"{{py:obj}}`{name} <subjunctive.{name}>`" in prose
            assert (f"{room}.{name}" in described) != linked, (room, name)


def test_the_reference_opens_with_every_name_and_what_it_is():
    text = api.expand(PAGES["api.md"])
    rows = dict(re.findall(r"^\| \{py:obj\}`(\w+) <subjunctive\.\1>` \| (.*) \|$", text, re.M))
    assert set(rows) == set(sj.__all__)
    assert list(rows) == sorted(rows, key=str.lower)
    for name, first in rows.items():
        assert first.endswith(".") or not callable(getattr(sj, name)), name


def test_docstrings_become_text_that_sphinx_reads():
    lines = docstring.autodoc(
        [
            "Sums `x`s, *all* of a*b and x_.",
            "",
            "    y = a * b",
            "",
            "Args:",
            "    a, b: `(B, *s)` and",
            "        more.",
            "",
            "Returns:",
            '    law -> "holds: why".',
            "",
            "Attributes:",
            "    u, v: two.",
            "",
            "Example:",
            "    >>> 1",
            "    1",
        ]
    )
    text = "\n".join(lines)
    assert text.startswith("Sums ``x``\\ s, *all* of a\\*b and x\\_.\n\n::\n\n    y = a * b\n")
    assert ".. rubric:: Arguments\n\n- ``a, b``: ``(B, *s)`` and more." in text
    assert ':returns: law -> "holds: why".' in text
    assert "- ``u, v``: two." in text
    assert ".. rubric:: Example\n\n>>> 1\n1" in text


@pytest.mark.parametrize("module", [api, cards, docstring, run], ids=lambda m: m.__name__)
def test_examples_of_the_extensions_run(module):
    assert doctest.testmod(module).failed == 0


# The session of a page ------------------------------------------------------------------------


@pytest.fixture
def session():
    made = run.Session("page.md")
    yield made
    made.close()


def test_blocks_share_names_and_a_directory_of_their_own(session):
    before = Path.cwd()
    first = session.run(
        "from pathlib import Path\na = 2\nprint('one')\nPath('kept.txt').write_text('x')"
    )
    second = session.run("print(a, Path('kept.txt').read_text())")
    assert (first.stdout, second.stdout) == ("one\n", "2 x\n")
    assert Path.cwd() == before
    assert not (before / "kept.txt").exists()
    folder = Path(session.folder.name)
    assert (folder / "kept.txt").exists()
    session.close()
    assert not folder.exists()


def test_what_a_block_names_is_a_figure(session):
    code = """
import numpy as np
from matplotlib.figure import Figure
one = Figure((3, 2))
ax = one.subplots()
many = Figure().subplots(2, 2)
part = Figure().subfigures(1, 2)[0].subplots()
"""
    done = session.run(code, figures=["one", "ax", "many", "part"])
    names = session.namespace
    assert done.figures["one"] is names["one"] is done.figures["ax"]
    assert done.figures["many"] is names["many"][1, 1].figure
    assert hasattr(done.figures["part"], "savefig")


@pytest.mark.parametrize(
    ("code", "figures", "words"),
    [
        ("x = 1\nraise ValueError('no x')", (), r"^page\.md:21: ValueError: no x"),
        ("def f():\n    return 1 / 0\n\nf()", (), r"^page\.md:21: ZeroDivisionError"),
        ("x = 1\n\nx = = 2", (), r"^page\.md:22: SyntaxError"),
        ("import warnings\nwarnings.warn('far out')", (), r"^page\.md:21: UserWarning: far out"),
        ("import sys\nsys.exit(2)", (), r"^page\.md:21: SystemExit"),
        ("axes = 1", ("axis",), r"^page\.md:20: no variable is called 'axis'.*'axes'"),
        ("axes = 1", ("axes",), r"^page\.md:20: 'axes' is a int, no figure"),
    ],
)
def test_what_does_not_run_is_told_with_page_and_line(session, code, figures, words):
    before = Path.cwd()
    with pytest.raises(run.PageError, match=words):
        session.run(code, line=20, figures=figures)
    assert Path.cwd() == before


def test_an_error_below_the_page_is_told_at_the_line_of_the_page(session):
    with pytest.raises(run.PageError, match=r"^page\.md:3: KeyError.*thicknes"):
        session.run("import subjunctive as sj\n\nsj.Linear('thickness -> y').ate('thicknes', 'y')")
