"""What to cite for a model: the papers of the methods that it is made of, each once."""

from __future__ import annotations

from torch import nn

from subjunctive.card import Card


def cards(model: nn.Module) -> list[Card]:
    """Return the cards of a model and its parts, each once, in the order of the parts."""
    found: dict[str, Card] = {}
    for module in model.modules():
        card = getattr(type(module), "card", None)
        if isinstance(card, Card):
            found.setdefault(card.name, card)
    return list(found.values())


def cite(model: nn.Module) -> str:
    """Return the BibTeX entries of the methods that a model is made of, each paper once.

    Args:
        model: any module; parts without a card are passed over.

    Raises:
        ValueError: if no part has a card.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms import LinearGaussian
        >>> from subjunctive.scm import SCM
        >>> from subjunctive.variable import Variable
        >>> t, y = Variable("t"), Variable("y")
        >>> mechanisms = {"t": LinearGaussian(t), "y": LinearGaussian(y, [t])}
        >>> cite(SCM(Graph.parse("t -> y"), mechanisms)).count("@article")
        1
    """
    entries = list(dict.fromkeys(card.bibtex() for card in cards(model)))
    if not entries:
        raise ValueError(
            f"no part of this {type(model).__name__} has a card, so that it names no paper to cite"
        )
    return "\n\n".join(entries)
