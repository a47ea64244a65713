"""A card says what a method is: where it comes from, what it assumes, and how to run its laws.

Every method's class carries one as `card`. `walk()` imports the package and collects them; the
list of methods, their pages, `cite` and the parameters of the law tests all come from there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Abduction = Literal["exact", "approximate", "convention", "none"]


@dataclass(frozen=True)
class Card:
    """What a method is and how to check it.

    Args:
        name: the field's name of the method.
        summary: one sentence on what it does.
        title, authors, year, url: the paper it comes from; authors as "Family, Given and ...".
        assumptions: what must hold for its answers to be right.
        needs: the data it needs.
        rung: the highest rung of the ladder of causation that it answers (1 see, 2 do, 3 imagine).
        abduction: `exact`; `approximate`, a learned or truncated inverse; `convention`, where no
            data can tell the noise (categories); `none`.
        tolerance: largest absolute error of `forward(abduct(x))`, standardised units, float32.
        of: the method's ids in the list of methods that it stands for, if any.
        example: `() -> (model, batch)`, small, untrained or quickly fitted; the laws run on it.
    """

    name: str
    summary: str
    title: str
    authors: str
    year: int
    url: str = ""
    assumptions: tuple[str, ...] = ()
    needs: str = ""
    rung: Literal[1, 2, 3] = 3
    abduction: Abduction = "exact"
    tolerance: float = 1e-5
    of: tuple[int, ...] = ()
    example: Callable[[], tuple[Any, Any]] | None = field(default=None, repr=False)

    def bibtex(self) -> str:
        """Return the paper's BibTeX entry.

        >>> Card("Demo", "Shows.", "A Title", "Doe, Jane", 2020).bibtex().splitlines()[0]
        '@article{doe2020title,'
        """
        family = re.sub(r"\W", "", self.authors.split(",")[0]).lower()
        words = [w for w in re.findall(r"[a-z]+", self.title.lower()) if len(w) > 3]
        lines = [
            f"@article{{{family}{self.year}{words[0] if words else ''},",
            f"  title = {{{self.title}}},",
            f"  author = {{{self.authors}}},",
            f"  year = {{{self.year}}},",
        ]
        if self.url:
            lines.append(f"  url = {{{self.url}}},")
        return "\n".join([*lines, "}"])


def modules() -> Iterator[Any]:
    """Import and yield every module of the package except the command line's entry point."""
    import subjunctive

    for info in pkgutil.walk_packages(subjunctive.__path__, "subjunctive."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def walk() -> dict[type, Card]:
    """Return every class of the package that carries a card of its own, by module and name."""
    found = {}
    for module in modules():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and isinstance(cls.__dict__.get("card"), Card):
                found[cls] = cls.__dict__["card"]
    return dict(sorted(found.items(), key=lambda item: (item[0].__module__, item[0].__name__)))
