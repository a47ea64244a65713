"""The application that the commands join, and what they share: errors as lines, models, tables."""

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

MISTAKES = (ValueError, KeyError, OSError, ArithmeticError, ModuleNotFoundError)


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


def load_model(place: Path) -> Any:
    """Return the model saved at a place, one that answers causal queries."""
    from subjunctive.scm import Model
    from subjunctive.store import StoreError, load

    model = load(place)
    if not isinstance(model, Model):
        raise StoreError(f"{place} holds a {type(model).__name__}, which answers no causal query")
    return model


def show(frame: DataFrame) -> None:
    """Print an evaluation, one table an intervention."""
    from subjunctive.plot import sections

    for name, part in sections(frame):
        table = Table("metric: node", *map(str, part.columns), title=name, title_justify="left")
        for index, *cells in part.itertuples():
            table.add_row(str(index), *map(str, cells))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
