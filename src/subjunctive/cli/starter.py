"""A YAML experiment to start from: of a method, by its signature, or of a user's own data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = (bool, int, float, str, type(None), tuple)
OWN = {"graph", "variables", "variable", "parents", "mechanisms"}  # what the data say
FIT = ("batch_size", "lr", "ema", "seed")


def starter(name: str) -> str:
    """Return an experiment with a method, every plain argument at its default.

    Args:
        name: a method's name or its class's, case aside.

    Raises:
        ValueError: for a name that is none's, with the nearest; or for a part that cannot be built
            from plain values.

    Example:
        >>> print(starter("LinearGaussian").splitlines()[0])
        # Linear-Gaussian mechanism: A node is a weighted sum of its parents plus Gaussian noise; all in closed form.
    """  # noqa: E501
    from subjunctive.card import walk
    from subjunctive.mechanism import Mechanism
    from subjunctive.variable import nearest

    cards = walk()
    names = {c.__name__.lower(): c for c in cards} | {k.name.lower(): c for c, k in cards.items()}
    if name.lower() not in names:
        known = sorted(c.__name__ for c in cards)
        raise ValueError(
            f"no method is called {name!r}; there are {', '.join(known)}.{nearest(name, known)}"
        )
    cls = names[name.lower()]
    card = cards[cls]
    lacks = [
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.name not in OWN and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if lacks:
        raise ValueError(
            f"{cls.__name__} is a part that needs {', '.join(lacks)}: build it in Python, or start "
            "from a whole model, such as CausalDiffAE"
        )
    single = issubclass(cls, Mechanism)
    lines = [f"# {card.name}: {card.summary}", *(_single(cls) if single else _whole(cls))]
    from subjunctive.train import fit

    takes = inspect.signature(fit).parameters
    lines += ["fit:", "  steps: 1000"]
    lines += [f"  {key}: {_text(takes[key].default)}" for key in FIT]
    return "\n".join(lines) + "\n"


def own(table: Path, graph: str | None, images: Path | None, steps: int) -> dict[str, Any]:
    """Return the sections of an experiment with a user's own table, and pictures if there are.

    Args:
        table: the file of rows; with pictures, of their attributes.
        graph: arrows over the columns, and `image`; None for pictures: every column a cause.
        images: the folder or archive of pictures, for a CausalDiffAE.
        steps: of training.

    Raises:
        ValueError: for a table without a graph, or one that cannot be read.
    """
    from subjunctive.data import Table
    from subjunctive.mechanisms import Categorical, ConditionalFlow, Ordinal

    said: dict[str, Any] = {} if graph is None else {"graph": graph}
    if images is not None:
        data = {"$class": "data.images.Images", "folder": str(images), "table": str(table), **said}
        model: dict[str, Any] = {"$class": "models.causal_diffae.CausalDiffAE"}
    elif graph is None:
        raise ValueError(f"--table {table} needs --graph, such as 'age -> dose; dose -> outcome'")
    else:
        data = {"$class": "data.table.Table", "source": str(table), **said}
        kinds = {"continuous": ConditionalFlow, "categorical": Categorical, "ordinal": Ordinal}
        chosen = {n: kinds[v.kind] for n, v in Table(table, graph).variables.items()}
        named = {n: {"$class": _name(cls)} for n, cls in chosen.items()}
        model = {"$class": "scm.SCM", "mechanisms": named}
    return {"data": data, "model": model, "fit": {"steps": steps, "batch_size": 64, "lr": 2e-3}}


def _name(cls: type) -> str:
    return f"{cls.__module__.removeprefix('subjunctive.')}.{cls.__name__}"


def _single(cls: type) -> list[str]:
    """Return data and an SCM whose nodes all have the mechanism, on data that it can take."""
    from subjunctive.mechanisms import Categorical, LinearGaussian, Ordinal

    mixed = {"site": Categorical, "stage": Ordinal}
    discrete = next((node for node, kind in mixed.items() if kind is cls), None)
    nodes = {n: LinearGaussian for n in ("age", "dose", "outcome")} | mixed
    shown = [discrete] if discrete else ["dose", "outcome"]
    lines = [
        "data:",
        "  $class: data.tabular.Nonlinear",
        "  system: mixed",
        "# Your own table instead:",
        "#   $class: data.table.Table",
        "#   source: rows.csv",
        "#   graph: age -> dose; age, dose -> outcome",
        "model:",
        "  $class: scm.SCM",
        "  mechanisms:",
    ]
    for node, usual in nodes.items():
        chosen = cls if node in shown else usual
        lines += [f"    {node}:", *_arguments(chosen, "      ")]
    return lines


def _whole(cls: type) -> list[str]:
    return [
        "data:",
        "  $class: data.morpho.MorphoDigits",
        "# Your own pictures instead:",
        "#   $class: data.images.Images",
        "#   folder: pictures",
        "#   table: attributes.csv",
        "#   graph: age -> size; age, size -> image",
        "model:",
        *_arguments(cls, "  "),
    ]


def _arguments(cls: type, indent: str) -> list[str]:
    lines = [f"{indent}$class: {_name(cls)}"]
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(cls).parameters
    for p in parameters.values():
        if p.name in OWN or p.default is p.empty or not isinstance(p.default, PLAIN):
            continue
        if p.default is None:
            lines.append(f"{indent}# {p.name}: null")
        else:
            lines.append(f"{indent}{p.name}: {_text(p.default)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"'{value}'" if isinstance(value, str) else str(value)
