"""The application that the commands join, and what they share: errors as lines, models, tables."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pandas import DataFrame

MISTAKES = (ValueError, KeyError, OSError, ArithmeticError, ImportError)
FAULTS = (TypeError, AttributeError, RuntimeError, MemoryError)  # of what was given, or our own
USAGE: Any = typer.BadParameter.__base__  # a command or an option that there is not


class Commands(TyperGroup):
    """Runs a command; what went wrong becomes one line instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept `--debug` before and after the command's name."""
        words = sorted(args, key=lambda word: word != "--debug")
        try:
            return super().parse_args(ctx, words)
        except USAGE as error:
            if not args:  # which shows the help
                raise
            _misuse(error)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; show warnings as lines, and errors as one."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _warn
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except USAGE as error:
                _misuse(error)
            except (*MISTAKES, *FAULTS) as error:
                if ctx.params.get("debug"):
                    raise
                text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
                mistake = isinstance(error, MISTAKES)
                kind = "" if mistake else f"{type(error).__name__} (--debug shows where): "
                _say("error", kind + text)
                raise typer.Exit(2 if mistake else 1) from error


app = typer.Typer(
    cls=Commands,
    help="Causal generative models: what is, what if, what would have been.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Seed = Annotated[int, typer.Option(help="Seed of all draws.", min=0, max=2**63 - 1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")]


def may_write(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, to replace a file unasked, and make the directory it is to be in.

    Raises:
        ValueError: for a file that is there, or a directory. OSError: where none can be made.
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a directory; name a file in it")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; give another --out, or --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)


def _misuse(error: Any) -> NoReturn:
    """Say in one line what is wrong with the words of a command."""
    where = error.ctx.command_path if error.ctx else "subjunctive"
    _say("error", f"{error.format_message().rstrip('.')}; see {where} --help")
    raise typer.Exit(2) from error


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
