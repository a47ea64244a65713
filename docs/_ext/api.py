"""The reference: marks in a page become what autodoc makes of a module's public names.

`<!-- public: subjunctive.nn -->` stands for the module's docstring and one directive a name that
the module offers: those in `__all__`, or else those that it imports under their own name
(`from a import b as b`) or defines. A name of the package's top is described there alone.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import docstring

MARK = re.compile(r"^<!-- public: ([\w.]+) -->$", re.MULTILINE)
TOP = "subjunctive"


def public(module: ModuleType) -> list[str]:
    """Return the names that a module offers, in its own order.

    >>> import subjunctive.encoders
    >>> public(subjunctive.encoders)
    ['Regression', 'Reordered']
    """
    if hasattr(module, "__all__"):
        return list(module.__all__)
    names = []
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.name == a.asname]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
    return names


def entry(module: str, name: str) -> list[str]:
    """Return the lines that describe one name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        bases = [] if value.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. {kind}:: {module}.{name}", "   :members:", *bases, ""]
    if inspect.isfunction(value):
        return [f".. autofunction:: {module}.{name}", ""]
    said = str(value).replace("collections.abc.", "").replace("typing.", "")
    return [f".. py:data:: {module}.{name}", "", f"   Stands for ``{said}``.", ""]


def block(module: str, names: list[str]) -> list[str]:
    """Return the names of a module as a block of Markdown."""
    lines = [line for name in names for line in entry(module, name)]
    return ["```{eval-rst}", *lines, "```", ""] if names else []


def overview(module: ModuleType, names: list[str]) -> list[str]:
    """Return a table of names, each linked, with the first sentence on it.

    >>> import subjunctive
    >>> overview(subjunctive, ["Batch"])[2].split(" | ")[0]
    '| {py:obj}`Batch <subjunctive.Batch>`'
    """
    rows = []
    for name in names:
        value = getattr(module, name)
        said = inspect.cleandoc(value.__doc__ or "") if callable(value) else ""
        first = docstring.markdown(" ".join(said.split("\n\n")[0].split()))
        rows.append(f"| {{py:obj}}`{name} <{module.__name__}.{name}>` | {first} |")
    return ["| name | what it is |", "|---|---|", *sorted(rows, key=str.lower), ""]


def described(name: str) -> str:
    """Return what stands for a mark: the module, and all that it offers."""
    module = importlib.import_module(name)
    top = importlib.import_module(TOP)
    offered = public(module)
    if name == TOP:
        parts = [overview(top, offered), *_by_home(top, offered)]
        return "\n".join(line for part in parts for line in part)
    elsewhere = [n for n in offered if _same(top, module, n)]
    lines = [docstring.markdown(docstring.sections(module.__doc__ or "")[""]), ""]
    if elsewhere:
        links = ", ".join(f"{{py:obj}}`{n} <{TOP}.{n}>`" for n in elsewhere)
        lines += [f"Of this room, but at the top: {links}.", ""]
    return "\n".join([*lines, *block(name, [n for n in offered if n not in elsewhere])])


def _same(top: ModuleType, module: ModuleType, name: str) -> bool:
    return name in public(top) and getattr(top, name) is getattr(module, name)


def _by_home(top: ModuleType, names: list[str]) -> list[list[str]]:
    """Return the names of the package's top under the modules that they are defined in."""

    def home(name: str) -> str:
        value: Any = getattr(top, name)
        return str(value.__module__)

    parts = []
    for where, group in groupby(sorted(names, key=home), home):
        module = inspect.getmodule(getattr(top, (held := list(group))[0]))
        first = docstring.sections((module and module.__doc__) or "")[""].split("\n\n")[0]
        heading = where.removeprefix(f"{TOP}.")
        parts.append([f"### {heading}", "", docstring.markdown(first), "", *block(TOP, held)])
    return parts


def expand(text: str) -> str:
    """Return a page with every mark replaced."""
    return MARK.sub(lambda mark: described(mark[1]), text)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx to expand pages before it parses them, and docstrings before napoleon does."""

    def source_read(app: Any, name: str, content: list[str]) -> None:
        content[0] = expand(content[0])

    def process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
        lines[:] = docstring.autodoc(lines)

    def resolved(app: Any, doctree: Any, name: str) -> None:
        from docutils import nodes  # type: ignore

        for dash in list(doctree.findall(lambda n: isinstance(n, nodes.Text) and n == " -- ")):
            dash.parent.replace(dash, nodes.Text(" \N{EN DASH} "))  # between a field and its text

    app.connect("source-read", source_read)
    app.connect("doctree-resolved", resolved)
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True}
