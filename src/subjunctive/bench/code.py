"""The package's code as hashes: a result is of the code that it needs, as it was then.

What a result needs are some modules, what they import, and so on, read from the source without
running it; a name that is taken from a room's index leads to the module where it stands. A module's
hash is that of its syntax tree without docstrings: a changed comment makes no result old, nor does
a new name in an index.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import subjunctive

TOP = "subjunctive"
ROOT = Path(subjunctive.__file__).parent


class Module(NamedTuple):
    """A module's hash, the names it imports (module, name or ""), and whether it is an index."""

    hash: str
    imports: tuple[tuple[str, str], ...]
    is_index: bool


@cache
def modules(root: Path = ROOT) -> Mapping[str, Module]:
    """Return all modules of the package by name, read from their files."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        index = parts[-1] == "__init__"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = tuple(dict.fromkeys(_imported(tree, index)))
        name = ".".join(parts[:-1] if index else parts)
        found[name] = Module(_hash(tree), names, index)
    return found


def _hash(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imported(tree: ast.AST, typed: bool) -> Iterator[tuple[str, str]]:
    """Yield what is imported from the package, (module, name), also as `sj.room.name`.

    Args:
        tree: of a file.
        typed: whether imports for a type checker count, as in an index.
    """
    aliases = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import)
               for a in n.names if a.name == TOP}  # fmt: skip
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not typed and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == TOP:
            yield from ((str(node.module), a.name) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.startswith(f"{TOP}."))
        elif isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in aliases and len(rest) <= 2:
                yield ".".join([TOP, *rest[:-1]]), rest[-1]


def _home(module: str, name: str) -> str | None:
    """Return the module in which a name stands that is imported from a module; None if nowhere."""
    known = modules()
    if f"{module}.{name}" in known and not known[f"{module}.{name}"].is_index:
        return f"{module}.{name}"
    if module in known and known[module].is_index:
        lines = known[module].imports
        return next((home for home, there in lines if there == name and home != module), None)
    return module if module in known else None


def needed(names: Iterable[str], files: Iterable[Path] = ()) -> list[str]:
    """Return some modules and all that they import, at any depth; indexes left out.

    Args:
        names: of modules, with or without the package's own in front.
        files: of a user's modules, whose imports count, too.

    Example:
        >>> found = needed(["mechanisms.linear"])
        >>> "subjunctive.mechanism" in found, "subjunctive.mechanisms.vae" in found
        (True, False)
    """
    known = modules()
    waiting = [n if n.split(".")[0] == TOP else f"{TOP}.{n}" for n in names]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        waiting += [h for pair in _imported(tree, True) if (h := _home(*pair))]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in known and name not in found and not known[name].is_index:
            found.add(name)
            waiting += [h for pair in known[name].imports if (h := _home(*pair))]
    return sorted(found)


def code_hash(names: Iterable[str], files: Iterable[Path] = ()) -> str:
    """Return one hash of the code that some modules need, and of a user's files."""
    files = list(files)
    parts = [modules()[n].hash for n in needed(names, files)]
    parts += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def source(module: str) -> Path:
    """Return the file of a user's module.

    Raises:
        ValueError: if there is no such module, or it has no file.
    """
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"there is no module {module!r}: {error}") from error
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise ValueError(f"the module {module!r} has no file whose text could be compared")
    return Path(found.origin)
