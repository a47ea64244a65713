"""The command line: `subjunctive demo | fit | counterfactual | evaluate | methods`.

Heavy libraries are imported by the command that needs them, so that `--help` is quick. A mistake of
the user's is one line on standard error and exit code 2; `--debug` shows where it was found.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pandas import DataFrame

    from subjunctive.card import Card
    from subjunctive.query import Answer
    from subjunctive.variable import Batch

MISTAKES = (ValueError, KeyError, OSError, ArithmeticError, ModuleNotFoundError)
HEADLINES = ("effectiveness", "distance", "distance, far", "identity")
MARKS = "<!-- methods: begin -->", "<!-- methods: end -->"


class Commands(TyperGroup):
    """Runs a command; what the user can mend becomes one line instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept `--debug` before and after the command's name."""
        return super().parse_args(ctx, sorted(args, key=lambda word: word != "--debug"))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; show warnings as lines, and errors as one."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _warn
            try:
                return super().invoke(ctx)
            except MISTAKES as error:
                if ctx.params.get("debug"):
                    raise
                text = error.args[0] if isinstance(error, KeyError) and error.args else error
                _say("error", str(text))
                raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    help="Causal generative models: what is, what if, what would have been.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]


def _say(kind: str, text: str) -> None:
    style = {"error": "bold red", "warning": "yellow"}[kind]
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{kind}:", style=style, end=" ")
    console.print(" ".join(text.split()), markup=False)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning", str(message))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"subjunctive {version('subjunctive')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Causal generative models: what is, what if, what would have been."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("demo"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Held-out digits to judge.", min=10)] = 500,
    digits: Annotated[int, typer.Option(help="Real digits to use.", min=30)] = 5000,
    missing: Annotated[float, typer.Option(help="Share of labels to hide.", min=0, max=0.99)] = 0,
) -> None:
    """Train on real digits; write counterfactuals of held-out ones, and how sound they are."""
    from subjunctive.demo import demo as run

    show = sys.stderr.isatty()
    made = run(out, seed, steps, rows, digits, missing=missing, progress=show)
    frame = made.frame
    _show(frame[(frame.support == "inside") & frame.metric.isin(HEADLINES)])
    for what, path in made.paths.items():
        typer.echo(f"{what:10} {path}")


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="YAML: sections data, model and fit.")],
    out: Annotated[Path, typer.Option(help="Directory for the model.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a saved model.")] = False,
) -> None:
    """Fit the model of a YAML file and save it."""
    from subjunctive.experiment import read_experiment, read_yaml
    from subjunctive.store import StoreError, save

    if out.exists() and not (overwrite and (out / "config.json").is_file()):
        raise StoreError(f"{out} exists; give another --out, or --overwrite a saved model")
    experiment = read_experiment(read_yaml(config))
    done = experiment.run(progress=sys.stderr.isatty())
    save(experiment.model, out, overwrite=overwrite)
    loss = next((r["loss"] for r in reversed(done.records) if "loss" in r), float("nan"))
    typer.echo(
        f"{done.steps} steps, {done.rows_per_second:.0f} rows a second, loss {loss:.4g}: {out}"
    )


@app.command()
def counterfactual(
    model: Annotated[Path, typer.Argument(help="Directory of a saved model.")],
    evidence: Annotated[list[Path], typer.Option(help="Pictures, or one .csv or .npz.")],
    do: Annotated[list[str], typer.Option(help="node=value, node+=amount or node*=factor.")],
    out: Annotated[Path, typer.Option(help="A .png for pictures, .csv for a table, or .npz.")],
    draws: Annotated[int, typer.Option(help="Draws of the noise a row.", min=1)] = 1,
    seed: Seed = 0,
) -> None:
    """Ask what would have been. Each --do is a world of its own; commas join what is done in one.

    Labels that the evidence lacks are read from the picture by the model's encoder.
    """
    import subjunctive as sj
    from subjunctive.evidence import read_do, read_evidence
    from subjunctive.plot import title

    if out.suffix.lower() not in (".png", ".csv", ".npz"):
        raise ValueError(f"--out {out} ends in neither .png, .csv nor .npz")
    loaded = _load(model)
    batch = read_evidence(evidence, loaded.variables)
    worlds = [read_do(text, loaded.variables) for text in do]
    names = [title(world, loaded.variables) for world in worlds]
    answers = sj.counterfactual(
        loaded, batch, [{}, *worlds], draws=draws, seed=seed, progress=sys.stderr.isatty()
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".csv":
        _tidy(dict(zip(["factual", *names], answers, strict=True))).to_csv(out, index=False)
    elif out.suffix.lower() == ".png":
        _pictures(out, batch, answers[0], dict(zip(names, answers[1:], strict=True)))
    else:
        _arrays(out, dict(zip(["factual", *names], answers, strict=True)))
    typer.echo(out)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Directory of a saved model.")],
    data: Annotated[str, typer.Option(help="A simulator (morpho, pendulum, ...), or a YAML file.")],
    rows: Annotated[int, typer.Option(help="Held-out rows to judge.", min=10)] = 500,
    out: Annotated[Path | None, typer.Option(help="A .csv to write, too.")] = None,
    seed: Seed = 0,
) -> None:
    """Measure how sound a model's counterfactuals are, against the truth where it is known."""
    import subjunctive as sj
    from subjunctive.experiment import named_data, read_data, read_yaml
    from subjunctive.training.process import few_threads

    loaded = _load(model)
    file = Path(data).suffix.lower() in (".yaml", ".yml")
    found = read_data(read_yaml(data)) if file else named_data(data)
    theirs, ours = found.graph.nodes, loaded.graph.nodes
    if set(theirs) != set(ours):
        raise ValueError(f"--data {data} has nodes {theirs}, the model {ours}; they must be equal")
    for node in ours:
        if found.variables[node].shape != loaded.variables[node].shape:
            shapes = found.variables[node].shape, loaded.variables[node].shape
            raise ValueError(
                f"{node!r} has shape {shapes[0]} in the data, {shapes[1]} in the model"
            )
    with few_threads():
        frame = sj.evaluate(loaded, found, rows=rows, seed=seed, progress=sys.stderr.isatty())
    _show(frame)
    if out is not None:
        frame.to_csv(out, index=False)
        typer.echo(out)


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


def _load(place: Path) -> Any:
    from subjunctive.scm import Model
    from subjunctive.store import StoreError, load

    model = load(place)
    if not isinstance(model, Model):
        raise StoreError(f"{place} holds a {type(model).__name__}, which answers no causal query")
    return model


def _show(frame: DataFrame) -> None:
    from subjunctive.plot import sections

    for name, part in sections(frame):
        table = Table("metric: node", *map(str, part.columns), title=name, title_justify="left")
        for index, *cells in part.itertuples():
            table.add_row(str(index), *map(str, cells))
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def _tidy(answers: dict[str, Answer]) -> DataFrame:
    """Return a row a world and row of evidence; with draws, 90 % intervals beside the answers."""
    import pandas

    frames = []
    for name, answer in answers.items():
        frame = answer.frame()
        for node in list(frame.columns):
            draws = answer.draws[node]
            if len(draws) > 1 and not answer.variables[node].discrete:
                low, high = answer.interval(node)
                frame[f"{node}.low"] = low.cpu().numpy()
                frame[f"{node}.high"] = high.cpu().numpy()
        frame.insert(0, "row", range(len(frame)))
        frame.insert(0, "world", name)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def _pictures(out: Path, batch: Batch, factual: Answer, answers: dict[str, Answer]) -> None:
    from subjunctive.evidence import image_node
    from subjunctive.plot import grid

    node = image_node(factual.variables)
    if node is None:
        raise ValueError(f"--out {out} wants pictures, and the model has none; write a .csv")
    seen = batch.values[node] if bool(batch.mask(node).all()) else factual[node]
    captions = {name: _labels(answer) for name, answer in {"factual": factual, **answers}.items()}
    shown = {name: answer[node].cpu() for name, answer in answers.items()}
    grid(seen.cpu(), shown, captions=captions)[0, 0].figure.savefig(out, dpi=160)


def _labels(answer: Answer) -> list[str]:
    """Return each row's scalar values with their units, a line each."""
    frame, variables = answer.frame(), answer.variables
    columns = [
        [
            f"{node} {value if variables[node].discrete else format(value, '.3g')} {unit}".strip()
            for value in frame[node]
        ]
        for node, unit in ((node, variables[node].unit) for node in frame.columns)
    ]
    return ["\n".join(row) for row in zip(*columns, strict=True)]


def _arrays(out: Path, answers: dict[str, Answer]) -> None:
    """Write every node as `(worlds, rows, *shape)`, and the worlds' titles."""
    import numpy

    worlds: dict[str, Any] = {"worlds": numpy.array(list(answers))}
    for node in next(iter(answers.values())):
        worlds[node] = numpy.stack([answer[node].cpu().numpy() for answer in answers.values()])
    numpy.savez_compressed(out, **worlds)
