"""A page a method, made from its card, its docstrings and what was measured of it.

`written` returns the pages as text; `setup` has Sphinx write them to `methods/`, which git ignores.
Nothing but `setup` needs Sphinx.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docstring

RUNGS = {1: "1, see", 2: "2, see and do", 3: "3, see, do and imagine"}
ABDUCTION = {
    "exact": "The noise behind a value is computed, not guessed: where the assumptions hold and "
    "the fit is good, abduction adds no error of its own.",
    "approximate": "The noise behind a value comes from a learned or truncated inverse. Doing "
    "nothing returns the factual within the tolerance above; all the same a counterfactual may "
    "keep too much of the factual, or too little. {doc}`evaluate <../guides/compare_decoders>` "
    "tells how much.",
    "convention": "Many noises give one category, and no data can tell which of them it was. What "
    "is seen and what is done (rungs 1 and 2) does not hang on the choice; what would have been "
    "(rung 3) does. It is then the convention's answer, not the data's.",
    "none": "It finds no noise behind a value: it answers rungs 1 and 2 alone.",
}
GRAPH = (
    "The graph is taken as given. An arrow that is missing, or a common cause that nobody saw, "
    "makes answers on rungs 2 and 3 wrong, and nothing in the fit shows it."
)


class Proof(NamedTuple):
    """A result that was kept: where it stands, and how many of its bounds hold."""

    title: str
    link: str
    holds: int
    asked: int

    @property
    def verdict(self) -> str:
        """What came out, in words."""
        if not self.asked:
            return "measured, no bound was asked for"
        return f"{self.holds} of {self.asked} bounds that were asked for hold"


def anchor(title: str) -> str:
    """Return a heading's anchor, as myst-parser makes it.

    >>> anchor("Pendulum: counterfactual images")
    'pendulum-counterfactual-images'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def proofs(results: Path, page: str) -> dict[int, list[Proof]]:
    """Return the kept results by the id of the method that they are of.

    Args:
        results: the directory of JSON files.
        page: the text of the page of proofs; one that it has no section for is linked as a whole.
    """
    found: dict[int, list[Proof]] = {}
    for path in sorted(results.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("method") is not None:
            title, bounds = kept["title"], [c["holds"] for c in kept["claims"]]
            bounds = [b for b in bounds if b is not None]
            link = f"#{anchor(title)}" if f"\n## {title}\n" in page else ""
            proof = Proof(title, f"../proof.md{link}", sum(bounds), len(bounds))
            found.setdefault(kept["method"], []).append(proof)
    return found


def name_of(cls: type) -> str:
    """Return the name of a class's page, without the suffix."""
    module = cls.__module__.removeprefix("subjunctive.").replace(".", "_")
    return f"{module}_{cls.__name__}"


def cited(card: Any) -> str:
    """Return the authors as they are cited: one, two, or the first and others."""
    families = [author.split(",")[0] for author in card.authors.split(" and ")]
    if len(families) > 2 or families[-1] == "others":
        return f"{families[0]} et al."
    return " and ".join(families)


def page(cls: type, card: Any, proved: Mapping[int, Sequence[Proof]]) -> str:
    """Return a method's page as Markdown."""
    own = docstring.sections(cls.__doc__ or "")
    module = docstring.sections(sys.modules[cls.__module__].__doc__ or "")[""]
    lead, references = _parted(own[""])
    references += [own["Reference"]] if own.get("Reference") else []
    title = f"[{card.title}]({card.url})" if card.url else card.title
    results = [proof for of in card.of for proof in proved.get(of, ())]
    parts = [
        f"# {card.name}",
        docstring.markdown(card.summary),
        f"`{cls.__module__}.{cls.__name__}`, from {cited(card)}, {title}, {card.year}.",
        "\n".join(_facts(card)),
        "## What it does",
        docstring.markdown(lead),
        "## How a value comes about, and how its noise is found",
        docstring.markdown(module),
        "## What it assumes",
        _listed(card.assumptions) or "Nothing beyond the graph.",
        "## When it fails",
        "Where an assumption does not hold, the model answers all the same, and nothing says that "
        "the answer is wrong. " + GRAPH,
        ABDUCTION[card.abduction],
        "## How to build it",
        *_built(cls, card, own),
        "## What was measured",
        *_measured(results),
        "## To cite",
        *(docstring.markdown(" ".join(text.split())) for text in references),
        f"```bibtex\n{card.bibtex()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _parted(text: str) -> tuple[str, list[str]]:
    """Return a docstring's text without the paragraphs of references, and these."""
    paragraphs = text.split("\n\n")
    marked = [p for p in paragraphs if p.startswith("Reference: ")]
    kept = "\n\n".join(p for p in paragraphs if p not in marked)
    return kept, [p.removeprefix("Reference: ") for p in marked]


def _facts(card: Any) -> list[str]:
    rows = {
        "Rung": RUNGS[card.rung],
        "Abduction": card.abduction,
        "Tolerance": f"{card.tolerance:g}, largest error of a round trip, standardised units",
        "Needs": card.needs,
    }
    cells = [f"| {k} | {docstring.markdown(v)} |" for k, v in rows.items() if v]
    return ["| | |", "|---|---|", *cells]


def _listed(items: Sequence[str]) -> str:
    return "\n".join(f"- {docstring.markdown(item)}" for item in items)


def _built(cls: type, card: Any, own: Mapping[str, str]) -> list[str]:
    """Return the call, its arguments, and the docstring's example, or the card's."""
    parameters = inspect.signature(cls).parameters.values()
    words = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    call = f"{cls.__name__}({', '.join(words)})"
    if len(call) > 80:
        call = "\n    ".join([f"{cls.__name__}(", *(f"{word}," for word in words)]) + "\n)"
    parts = [f"```python\n{call}\n```"]
    arguments = docstring.entries(own.get("Args", ""))
    listed = [f"- `{name}`: {docstring.markdown(text)}" for name, text in arguments]
    parts += ["\n".join(listed)] if listed else []
    if own.get("Example"):
        parts += [
            f"With the names of `{cls.__module__}`:",
            f"```pycon\n{own['Example']}\n```",
        ]
    elif card.example is not None:
        parts += [
            "The card holds a small one, on which the laws are run:",
            f"```python\nfrom {cls.__module__} import {cls.__name__}\n\n"
            f"model, batch = {cls.__name__}.card.example()\n```",
        ]
    return parts


def _measured(results: Sequence[Proof]) -> list[str]:
    if not results:
        return [
            "No experiment of its own is kept. It obeys the [laws](../glossary.md#laws) that apply "
            "to it, which the tests run on the card's example."
        ]
    lines = [f"- [{docstring.markdown(p.title)}]({p.link}): {p.verdict}" for p in results]
    return ["\n".join(lines)]


def index(cards: Mapping[type, Any]) -> str:
    """Return the list of all methods."""
    ordered = sorted(cards.items(), key=lambda item: item[1].name.lower())
    rows = [
        f"| [{card.name}]({name_of(cls)}.md) | {docstring.markdown(card.summary)} | {card.rung} | "
        f"{card.abduction} | {cited(card)}, {card.year} |"
        for cls, card in ordered
    ]
    return "\n".join(
        [
            "# Methods",
            "",
            "Each page is made from the method's card and docstrings. *Rung*: 1 see, 2 do, "
            "3 imagine. *Abduction*: how the noise behind a value is found.",
            "",
            "| Method | What it does | Rung | Abduction | From |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *(name_of(cls) for cls, _ in ordered),
            "```",
            "",
        ]
    )


def written(cards: Mapping[type, Any], proved: Mapping[int, Sequence[Proof]]) -> dict[str, str]:
    """Return file name -> text, for all methods and their list."""
    pages = {f"{name_of(cls)}.md": page(cls, card, proved) for cls, card in cards.items()}
    return {"index.md": index(cards), **pages}


def setup(app: Any) -> dict[str, bool]:
    """Have Sphinx write the pages before it looks for pages."""
    from subjunctive.card import walk

    def write(app: Any) -> None:
        source = Path(app.srcdir)
        folder, results = source / "methods", source.parent / "benchmarks" / "results"
        measured = (source / "proof.md").read_text(encoding="utf-8")
        pages = written(walk(), proofs(results, measured))
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.md"):
            if path.name not in pages:
                path.unlink()
        for name, text in pages.items():
            path = folder / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")  # Sphinx reads anew what changed

    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
