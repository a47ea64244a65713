"""Keep what a proof or benchmark measured, and write `docs/proof.md` from all that was kept.

A run calls `Record(...)`, adds rows and claims, and saves `benchmarks/results/<name>.json`: the
command, seeds, versions, machine, and a hash of the package's code that it ran on (the syntax trees
of the modules it imported, without docstrings, cards, indexes and the words of errors, on which
nothing measured hangs: a changed comment or a new public name does not make a proof stale).

    python benchmarks/record.py          writes docs/proof.md anew; stale results are marked
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, SOURCE = ROOT / "benchmarks" / "results", ROOT / "docs" / "proof.md", ROOT / "src"
README = ROOT / "README.md"
MAIN = ("digits", "pendulum", "throughput")  # results that the README shows in full
SHOWN = 2  # bounds that fail, of a job that the README tells in short
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
VERSIONS = ("subjunctive", "torch", "zuko", "numpy", "scipy", "scikit-image", "scikit-learn")


def module_hashes() -> dict[str, str]:
    """Return module -> a hash of its syntax tree, bare of what only tells; no indexes."""
    hashes = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if path.name == "__init__.py" and is_index(path, tree):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                node.exc = node.exc.func
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [n for n in body if not tells(n)]  # type: ignore[attr-defined]
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        hashes[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return hashes


def tells(node: ast.stmt) -> bool:
    """Tell whether a statement is a docstring or a card, on which nothing measured hangs."""
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="card")]):
            return True
    return False


def is_index(path: Path, tree: ast.Module) -> bool:
    """Tell whether a package's file only names what stands in others."""
    plain = ast.Import | ast.ImportFrom | ast.Expr | ast.Assign
    body = [line for node in tree.body for line in getattr(node, "body", [node])]
    return path.parent.parent == SOURCE or all(isinstance(node, plain) for node in body)


def code_hash(modules: list[str], hashes: dict[str, str]) -> str:
    """Return one hash of the modules, or `gone` if one is no more."""
    if not set(modules) <= set(hashes):
        return "gone"
    return hashlib.sha256("".join(hashes[m] for m in sorted(modules)).encode()).hexdigest()[:16]


def is_stale(kept: dict[str, Any], hashes: dict[str, str]) -> bool:
    """Tell whether the code that a result ran on has changed since."""
    return code_hash(kept["modules"], hashes) != str(kept["code"])


@dataclass
class Record:
    """One proof: its rows, by seed, and what they claim.

    Args:
        name: of the JSON file. title, about: of its section in the page. short: in the README.
        command: what reproduces it, from the repository's root.
        method: the method's id in the list of methods, if it proves one.
    """

    name: str
    title: str
    about: str
    command: str
    short: str
    method: int | None = None
    seeds: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember the code as it is now: it may be edited while the run goes on."""
        self._hashes = module_hashes()

    def claim(
        self,
        what: str,
        values: list[float],
        bound: float | None = None,
        at_most: bool = True,
        unit: str = "",
    ) -> None:
        """Add a figure: median and spread over seeds, and whether it keeps its bound."""
        median = statistics.median(values)
        holds = None if bound is None else (median <= bound if at_most else median >= bound)
        self.claims.append(
            {
                "what": what,
                "values": values,
                "median": median,
                "bound": bound,
                "at_most": at_most,
                "holds": holds,
                "unit": unit,
            }
        )

    def save(self) -> Path:
        """Write the JSON and the page."""
        modules = sorted(m for m in sys.modules if m in self._hashes)
        kept = asdict(self) | {
            "modules": modules,
            "code": code_hash(modules, self._hashes),
            "versions": {v: metadata.version(v) for v in VERSIONS},
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python "
            f"{platform.python_version()}",
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(kept, indent=1) + "\n")
        write_page()
        return path


def number(value: float) -> str:
    """Write a number with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(values: list[float]) -> str:
    """Write a median and the range around it."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def section(kept: dict[str, Any], hashes: dict[str, str]) -> list[str]:
    """Write one result as Markdown."""
    lines = [f"## {kept['title']}", "", kept["about"], ""]
    if is_stale(kept, hashes):
        lines += ["**Stale**: the code has changed since this was measured.", ""]
    lines += [
        "```",
        kept["command"],
        "```",
        "",
        f"Seeds {kept['seeds']}; {kept['machine']}; code {kept['code']}; "
        + ", ".join(f"{k} {v}" for k, v in kept["versions"].items())
        + ".",
        "",
    ]
    if kept["claims"]:
        lines += ["| what | median (range over seeds) | asked | |", "|---|---|---|---|"]
        lines += [f"| {c['what']} | {claimed(c)} |" for c in kept["claims"]]
        lines.append("")
    if kept["rows"]:
        lines += grouped(kept["rows"], kept["group"], kept["table"])
    lines += [note + "\n" for note in kept["notes"]]
    return lines


def grouped(rows: list[dict[str, Any]], keys: list[str], columns: list[str]) -> list[str]:
    """Write rows as a table: one line a combination of the keys, median and range over seeds."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in keys), []).append(row)
    lines = ["| " + " | ".join([*keys, *columns]) + " |", "|" + "---|" * (len(keys) + len(columns))]
    for key, members in found.items():
        cells = []
        for column in columns:
            values = [m[column] for m in members if m.get(column) is not None]
            cells.append(spread(values) if values else "")
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return [*lines, ""]


def figures(results: list[dict[str, Any]], hashes: dict[str, str]) -> list[str]:
    """Write two tables for the README: what was asked of the main job, and all else in short."""
    lines = ["| | measured (range over seeds) | asked | |", "|---|---|---|---|"]
    short = ["| | bounds that hold | what fails |", "|---|---|---|"]
    for kept in results:
        old = ", stale" if is_stale(kept, hashes) else ""
        asked = [c for c in kept["claims"] if c["bound"] is not None]
        if kept["name"] in MAIN:
            lines += [f"| {kept['short']}: {c['what']} | {claimed(c)}{old} |" for c in asked]
            continue
        failed = [
            f"{c['what']}: {' | '.join(claimed(c).split(' | ')[:2])}"
            for c in asked
            if not c["holds"]
        ]
        told = "; ".join(f.replace(" | ", ", asked ") for f in failed[:SHOWN])
        told += f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        share = f"{len(asked) - len(failed)} of {len(asked)}"
        short.append(
            f"| [{kept['short']}](docs/proof.md#{anchor(kept['title'])}) | {share}{old} | {told} |"
        )
    return [*lines, "", "What else was measured, and what did not come out:", "", *short]


def claimed(c: dict[str, Any]) -> str:
    """Write what was found, what was asked and the verdict as three cells of a table."""
    bound = "" if c["bound"] is None else f"{'≤' if c['at_most'] else '≥'} {number(c['bound'])}"
    found = f"{spread(c['values'])} {c['unit']}".strip()
    return f"{found} | {bound} | { {True: 'holds', False: '**fails**', None: ''}[c['holds']] }"


def anchor(title: str) -> str:
    """Return the anchor that GitHub and MyST give to a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def write_page() -> None:
    """Write `docs/proof.md` and the README's figures from every result."""
    lines = [
        "# What was measured",
        "",
        "Every figure below was written by the command above it, with the seeds, the versions and "
        "a hash of the code that it ran on. Medians, with the range over seeds in brackets. What "
        "did not come out is listed as it came out.",
        "",
    ]
    hashes = module_hashes()
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for kept in results:
        lines += section(kept, hashes)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    README.write_text("\n".join([before + BEGIN, *figures(results, hashes), END + after]))


if __name__ == "__main__":
    write_page()
