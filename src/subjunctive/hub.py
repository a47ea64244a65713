"""Models on the Hugging Face Hub: shared with a card that says what they are, loaded without code.

    push_to_hub    model -> config.json, model.safetensors (`save`), README.md (`model_card`) -> Hub
    from_hub       Hub -> config.json, model.safetensors and nothing else -> `load`

Everything that can fail without the network is done before the network is touched.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from subjunctive.card import Card
from subjunctive.citation import cards
from subjunctive.citation import cite as cite
from subjunctive.config import Writer
from subjunctive.intervention import as_do
from subjunctive.mechanisms.known import Known
from subjunctive.scm import Model
from subjunctive.store import CONFIG, WEIGHTS, StoreError, load, save
from subjunctive.variable import Variable

if TYPE_CHECKING:
    from pandas import DataFrame

    from subjunctive.graph import Graph

README, PATTERNS = "README.md", (CONFIG, WEIGHTS)  # the latter are all that is ever asked for
TAGS = ("causality", "counterfactuals", "structural-causal-model")
COMMIT, TOKEN = re.compile("[0-9a-f]{40}"), re.compile("[!-~]+")
NAME = re.compile(r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
EXACTNESS = {  # from the strongest to the weakest
    "exact": "the noise behind a value is computed exactly",
    "approximate": "the noise comes from a learned or truncated inverse",
    "convention": "no data can tell the noise; counterfactuals rest on a convention",
    "none": "the noise cannot be recovered, and no counterfactual is answered",
    "unstated": "the mechanism carries no card that says",
}
WORDS = list(EXACTNESS)
Worlds = Sequence[Mapping[str, Any]]


class HubError(OSError):
    """The Hub could not be reached, or refused what was asked."""


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    evaluation: DataFrame | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Add model",
    tags: Sequence[str] = (),
    licence: str | None = None,
    examples: Worlds | None = None,
) -> str:
    """Save a model, write its card, upload both (three files), and return the URL.

    Args:
        model: an SCM, or another module that is a `Model`.
        repo: `owner/name`; it is made if it is not there.
        private: whether a repository that is made now is hidden from others.
        token: an access token that may write; that of `hf auth login` if not given.
        message: of the commit.
        evaluation, tags, licence, examples: see `model_card`.

    Raises:
        ValueError: for a name that no repository has, or a model of which there is no card.
        StoreError: if the model cannot be saved. ModuleNotFoundError: without huggingface_hub.
        HubError: if the Hub cannot be reached or refuses. Before it, nothing is uploaded.

    Example:
        >>> push_to_hub(nn.Identity(), "my digits")
        Traceback (most recent call last):
        ValueError: 'my digits' is no name of a repository; ...
    """
    _check(repo, token)
    hub = _library()
    card = model_card(model, evaluation, licence, tags, repo=repo, examples=examples)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        save(model, place)
        (place / README).write_text(card, encoding="utf-8")
        remedy = (
            "the Hub may hold a part of it, or nothing. Keep the model by save(model, directory), "
            "see that the token may write, and push again"
        )
        with _network(f"{repo!r} was not uploaded", remedy):
            api = hub.HfApi(token=token)
            url = api.create_repo(repo_id=repo, private=private, exist_ok=True)
            files = {"folder_path": str(place), "allow_patterns": [*PATTERNS, README]}
            api.upload_folder(repo_id=repo, commit_message=message, **files)
    return str(url)


def from_hub(
    repo: str,
    *,
    revision: str | None = None,
    classes: Iterable[Any] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> nn.Module:
    """Return a model from the Hub, on the CPU and in evaluation mode; no code of it is ever run.

    Args:
        repo: `owner/name`.
        revision: a branch, a tag, or a commit's hash of 40 digits: it alone names one model for
            ever, and what comes is checked to be of it.
        classes: classes and functions from outside this package that the model is made of.
        cache_dir: where downloads are kept; the Hub's own cache if not given.
        token: an access token, for a repository that is private.

    Raises:
        ValueError: for a name that no repository has, or no token. HubError: if it cannot be
            reached, or gives another commit. StoreError: if it holds no model of this library, or
            a damaged one. ModuleNotFoundError: without huggingface_hub.

    Example:
        >>> from_hub("digits")
        Traceback (most recent call last):
        ValueError: 'digits' is no name of a repository; a name looks like 'owner/my-model': ...
    """
    _check(repo, token)
    hub = _library()
    at = repo if revision is None else f"{repo} at {revision!r}"
    with _network(f"{at} could not be read", "check its name, the connection and the token"):
        place = hub.snapshot_download(
            repo,
            revision=revision,
            cache_dir=None if cache_dir is None else str(cache_dir),
            token=token,
            allow_patterns=list(PATTERNS),
        )
    if COMMIT.fullmatch(revision or "") and (found := Path(place).name) != revision:
        raise HubError(f"{at} is not what came, which is {found}; clear the cache and ask again")
    try:
        return load(place, classes=classes)
    except StoreError as error:
        raise StoreError(f"{at} gave no model: {error}") from error


def _check(repo: str, token: str | None) -> None:
    """Raise a `ValueError` that says what a name looks like, or a token, if this is none."""
    owner, slash, name = repo.partition("/") if isinstance(repo, str) else ("", "", "")
    sound = slash and NAME.fullmatch(owner) and NAME.fullmatch(name) and not name.endswith(".git")
    if not sound or "--" in repo or ".." in repo:
        raise ValueError(
            f"{repo!r} is no name of a repository; a name looks like 'owner/my-model': two parts "
            "of letters, digits, '-', '_' and '.', with one slash between and no spaces"
        )
    if token is not None and not (isinstance(token, str) and TOKEN.fullmatch(token)):
        raise ValueError("token is none: it has a space, a line end or worse; give token.strip()")


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the Hub needs the package huggingface_hub: pip install huggingface_hub, or share what "
            "save(model, directory) writes"
        ) from error
    return huggingface_hub


@contextmanager
def _network(what: str, remedy: str) -> Iterator[None]:
    """Turn the many errors of a connection into one `HubError`."""
    from huggingface_hub import errors

    # The HTTP library's errors, which are no OSErrors in all versions, are found where it has them.
    names = ("HTTPError", "XetDownloadError")
    own = tuple(getattr(errors, name) for name in names if hasattr(errors, name))
    try:
        yield
    except (OSError, ValueError, RuntimeError, *own) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise HubError(f"{what} ({told}); {remedy}") from error


def model_card(
    model: Any,
    evaluation: DataFrame | None = None,
    licence: str | None = None,
    tags: Sequence[str] = (),
    *,
    repo: str = "owner/my-model",
    examples: Worlds | None = None,
) -> str:
    """Return a model's card as Markdown with a YAML front matter.

    Args:
        model: an SCM, or another module that is a `Model`.
        evaluation: what `metrics.evaluate` returned.
        licence: the Hub's identifier of one, such as `apache-2.0`.
        tags: words to find the model by, beside `TAGS`.
        repo: `owner/name`, where it will be.
        examples: interventions that the card's code shows, each node -> number or label; one on a
            cause, within the range seen in training, if not given.

    Raises:
        ValueError: for what is no `Model`, no evaluation, or an example that code cannot show.
        KeyError: for an example's unknown node.

    Example:
        >>> from subjunctive.models import CausalDiffAE
        >>> text = model_card(CausalDiffAE.card.example()[0], tags=["digits"])
        >>> heads = [line for line in text.splitlines() if line.startswith("## ")]
        >>> heads[0], heads[-1]
        ('## What it is', '## Citation')
    """
    if not (isinstance(model, Model) and isinstance(model, nn.Module)):
        what = f"{type(model).__name__} is no module with graph, noise, abduct and predict"
        raise ValueError(f"a card is of a model that answers queries, an SCM above all; {what}")
    used, worlds, exact = cards(model), _worlds(model, examples), _abductions(model)
    deepest = 2 if "none" in exact.values() else 3
    rung = min([deepest, *(card.rung for card in used)])
    size = sum(p.numel() for p in model.parameters())
    what = f"{type(model).__name__}: {len(model.graph)} nodes, {size:,} parameters"
    assumed = dict.fromkeys(a for card in used for a in card.assumptions)
    lines = [_front_matter(licence, tags), f"# {repo.partition('/')[2]}", "## What it is"]
    lines += [f"{what}; made with subjunctive {version('subjunctive')}."]
    lines += [_list(f"**{card.name}.** {card.summary}" for card in used)] if used else []
    lines += ["## Graph", _fence(str(model.graph)), _nodes(model.graph, model.variables)]
    lines += ["## Mechanisms", _list(_mechanisms(model)), "## Assumptions"]
    lines += ["Every answer rests on the graph above being right, and on this:"]
    lines += [_list(assumed or ["what its author assumed; no card says"])]
    lines += ["## Rung and abduction", *_rung(model, rung, exact)]
    lines += ["## How to ask it", _fence(_code(model, repo, worlds, rung), "python")]
    lines += [] if evaluation is None else _evaluation(evaluation)
    lines += ["## Citation", _fence(cite(model), "bibtex")] if used else []
    return "\n\n".join(lines) + "\n"


def _front_matter(licence: str | None, tags: Sequence[str]) -> str:
    import yaml

    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"tags is {tags!r}; give a list of words")
    front: dict[str, Any] = {"library_name": "subjunctive"}
    front["tags"] = [*dict.fromkeys((*TAGS, *tags))]
    if licence is not None:
        front["license"] = licence.lower()  # the Hub's key, and its identifiers
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _nodes(graph: Graph, variables: Mapping[str, Variable]) -> str:
    import pandas

    from subjunctive.plot.tables import markdown

    rows = {}
    for name, role in zip(graph.nodes, graph.kinds, strict=True):
        v = variables[name]
        ends = " to ".join("?" if end is None else f"{end:.4g}" for end in (v.low, v.high))
        rows[_span(name)] = {
            "kind": v.kind if role == "observed" else f"{v.kind}, {role}",
            "unit": v.unit,
            "shape": " x ".join(map(str, v.shape)) or "number",
            "range": ", ".join(v.categories) if v.discrete else ends.replace("? to ?", ""),
        }
    return markdown(pandas.DataFrame.from_dict(rows, orient="index"), "node")


def _mechanisms(model: Any) -> Iterator[str]:
    for name, mechanism in (getattr(model, "mechanisms", None) or {"all nodes": model}).items():
        what, card = f"`{type(mechanism).__name__}`", _card(mechanism)
        what = f"{card.name} ({what})" if card else what
        above = model.graph.parents(name) if name in model.graph else ()
        yield f"{_span(name)}: {what}" + (f" of {', '.join(map(_span, above))}" if above else "")


def _abductions(model: Any) -> dict[str, str]:
    """Return how exactly each node's noise is abducted: the weakest word of its parts' cards."""
    mechanisms = getattr(model, "mechanisms", {}) or dict.fromkeys(model.graph.nodes, model)
    found: dict[str, list[str]] = {}
    for name, mechanism in mechanisms.items():
        found[name] = [] if _card(mechanism) else ["unstated"]
        for part in mechanism.modules():
            own = [card.abduction for card in [_card(part)] if card]
            # Known's card is of a formula that has an inverse.
            found[name] += ["none"] if isinstance(part, Known) and part.inverse is None else own
    return {name: max(words, key=WORDS.index) for name, words in found.items()}


def _card(part: nn.Module) -> Card | None:
    card = getattr(type(part), "card", None)
    return card if isinstance(card, Card) else None


def _rung(model: Any, rung: int, exact: Mapping[str, str]) -> Iterator[str]:
    yield (
        f"Questions up to rung {rung} of the ladder of causation (1 see, 2 do, 3 imagine) are "
        f"answered. Abduction is **{max(exact.values(), key=WORDS.index)}**, the weakest of these:"
    )
    at = {word: ", ".join(_span(n) for n in exact if exact[n] == word) for word in WORDS}
    yield _list(f"{word}: {EXACTNESS[word]} ({names})" for word, names in at.items() if names)
    if getattr(model, "encoder", None) is not None:
        read = ", ".join(map(_span, model.encoder.nodes))
        yield f"What a row did not see of {read}, the encoder infers: approximate."


def _code(model: Any, repo: str, worlds: Worlds, rung: int) -> str:
    """Return a program that loads the model and asks it a question of each rung."""
    writer = Writer({})
    writer.write(model, "model")
    lines = ["import subjunctive as sj", "from subjunctive.hub import from_hub"]
    for name, cls in sorted(writer.outside.items()):
        found = cls.__module__ != "__main__" and cls.__qualname__ == name
        lines.append(f"from {cls.__module__} import {name}" if found else f"# define {name} first")
    given = f", classes=[{', '.join(sorted(writer.outside))}]" if writer.outside else ""
    lines += ["", f"model = from_hub({repo!r}{given})", "", "# what is"]
    lines += ["rows = sj.intervene(model, {}).sample(4, seed=0)"]
    if worlds and rung >= 2:
        lines += ["", "# what if", f"worlds = {[dict(do) for do in worlds]!r}"]
        lines += ["done = [sj.intervene(model, do).sample(4, seed=0) for do in worlds]"]
    if worlds and rung == 3:
        graph = model.graph
        below = [n for n in graph.nodes if n in graph.descendants(list(worlds[0]))]
        asked = (below or graph.nodes)[-1]
        lines += ["", "# what would have been"]
        lines += ["answers = sj.counterfactual(model, rows, worlds, seed=0)"]
        lines += [f"before, after = rows[{asked!r}], answers[0][{asked!r}]"]
    return "\n".join(lines)


def _worlds(model: Any, examples: Worlds | None) -> Worlds:
    """Return the interventions to show: those given, checked, or one on the first cause."""
    if examples is None:
        graph, variables = model.graph, model.variables
        scalar = [n for n in graph.nodes if variables[n].shape == ()]
        causes = [n for n in scalar if graph.children(n)] or scalar
        return [{n: _within(variables[n])} for n in causes[:1]]
    if isinstance(examples, Mapping):
        raise ValueError(f"examples is one intervention, {dict(examples)}; give a list of them")
    for do in examples:
        as_do(do, model.variables)
        for name, value in do.items():
            if type(value) not in (int, float, str):
                what = f"the example {name!r} is a {type(value).__name__}"
                raise ValueError(f"{what}, which code cannot show; give a number or a label")
    return examples


def _within(variable: Variable) -> float | str:
    """Return a value that a scalar variable takes, of few digits where that is possible."""
    if (v := variable).discrete:
        return v.categories[-1]
    if v.low is None or v.high is None or not math.isfinite(v.high - v.low):
        return float(f"{v.loc + v.scale:.3g}")
    value = v.low + 0.75 * (v.high - v.low)
    short = float(f"{value:.3g}")
    return short if v.low <= short <= v.high else value


def _evaluation(frame: DataFrame) -> Iterator[str]:
    from subjunctive.metrics.evaluate import KEYS
    from subjunctive.plot.tables import markdown, sections

    need = {"method", *KEYS, "value", "standard_error", "unit"}
    if not need <= set(getattr(frame, "columns", ())):
        what = f"evaluation is a {type(frame).__name__} that metrics.evaluate did not return"
        raise ValueError(f"{what}: it needs the columns {', '.join(sorted(need))}")
    rows = f" on {frame.attrs['rows']} held-out rows" if "rows" in frame.attrs else ""
    yield "## Evaluation"
    yield f"Value ± standard error{rows}."
    for support in sorted({"inside", "outside"} & set(frame.attrs) & set(frame.support)):
        yield f"*{support}*: {frame.attrs[support]}."
    for title, part in sections(frame):
        yield f"### {title}"
        yield markdown(part, "metric: node")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _span(name: str) -> str:
    """Return a name as code, so that nothing in it reads as Markdown."""
    name = name.replace("\n", " ")
    return f"`{name}`" if "`" not in name else f"`` {name} ``"


def _fence(text: str, language: str = "") -> str:
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
