"""Commands that tell what there is: methods, cite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from subjunctive.cli.app import app, load_model

if TYPE_CHECKING:
    from subjunctive.card import Card

MARKS = "<!-- methods: begin -->", "<!-- methods: end -->"


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's card.")] = None,
    into: Annotated[Path | None, typer.Option(help="Renew the marked table of this file.")] = None,
) -> None:
    """List the methods that this version has, each from its card."""
    from subjunctive.card import walk

    cards = sorted(walk().values(), key=lambda card: card.name.lower())
    if name is not None:
        _card(next((c for c in cards if c.name.lower() == name.lower()), None), name, cards)
    elif into is not None:
        into.write_text(renewed(into.read_text(encoding="utf-8"), cards), encoding="utf-8")
        typer.echo(into)
    else:
        table = Table("method", "what it does", "rung", "abduction", "from")
        for card in cards:
            origin = f"{_family(card)}, {card.year}"
            table.add_row(card.name, card.summary, str(card.rung), card.abduction, origin)
        Console().print(table)


@app.command()
def cite(
    model: Annotated[Path, typer.Argument(help="Directory of a saved model.")],
) -> None:
    """Print the BibTeX entries of the methods that a saved model is made of."""
    from subjunctive.citation import cite as entries

    typer.echo(entries(load_model(model)))


def renewed(text: str, cards: list[Card]) -> str:
    """Return a page with the table between its marks made anew from the cards.

    Raises:
        ValueError: if the page has no marks.
    """
    if any(mark not in text for mark in MARKS):
        raise ValueError(f"the file has no marks {MARKS[0]} and {MARKS[1]} to write between")
    rows = [
        f"| {c.name} | {c.summary} | {c.rung} | {c.abduction} | "
        f"{f'[{_family(c)}, {c.year}]({c.url})' if c.url else f'{_family(c)}, {c.year}'} |"
        for c in cards
    ]
    head = ["| Method | What it does | Rung | Abduction | From |", "|---|---|---|---|---|"]
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    return "\n".join([before + MARKS[0], *head, *rows, MARKS[1] + after])


def _family(card: Card) -> str:
    """Return the authors as they are cited: one, two, or the first and others."""
    families = [author.split(",")[0] for author in card.authors.split(" and ")]
    if len(families) > 2 or families[-1] == "others":
        return f"{families[0]} et al."
    return " and ".join(families)


def _card(card: Card | None, name: str, cards: list[Card]) -> None:
    from subjunctive.variable import nearest

    if card is None:
        hint = nearest(name, [c.name for c in cards])
        raise ValueError(f"no method is called {name!r}.{hint}")
    typer.echo(f"{card.name}: {card.summary}\n")
    for head, text in (
        ("assumes", "; ".join(card.assumptions)),
        ("needs", card.needs),
        ("rung", f"{card.rung}, abduction {card.abduction}"),
    ):
        if text:
            typer.echo(f"{head:8} {text}")
    typer.echo(f"\n{card.bibtex()}")
