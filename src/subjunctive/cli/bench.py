"""The command that compares models: bench."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from subjunctive.cli.app import app


class What(StrEnum):
    """What is compared."""

    counterfactual = "counterfactual"


@app.command()
def bench(
    what: Annotated[What, typer.Argument(help="What is asked of the models.")],
    config: Annotated[Path | None, typer.Argument(help="YAML: budget, data and models.")] = None,
    out: Annotated[Path, typer.Option(help="Folder; what is finished there stays.")] = Path(
        "bench"
    ),
    preset: Annotated[str | None, typer.Option(help="quick (the default) or full.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="A seed; several, several times.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Of training, each cell.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Your class, module.Name; it is imported.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Cells at once; -1 for one a core.")] = -1,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and stop.")] = False,
) -> None:
    """Compare models on data sets at one budget, each cell a process; goes on where it was ended.

    A failed cell is told and does not stop the others; it is tried again by the next run.
    """
    from contextlib import nullcontext

    from subjunctive.bench import benchmark, read_plan
    from subjunctive.experiment import located

    given: dict[str, Any] = {"preset": preset, "classes": classes or ()}
    given |= {"seeds": seeds or None, "seconds": seconds}
    with located(config) if config is not None else nullcontext():
        asked = read_plan(config, **given)
    cells = [cell for cell in asked.cells if cell.model]
    typer.echo(f"{len(cells)} cells, {asked.hours:.2f} core-hours of training; {out}")
    if plan:
        for cell in cells:
            typer.echo(f"{cell.track}: {cell.name}, {cell.settings['seconds']:g} s")
        return
    with _cluster(dask) if dask else nullcontext():
        at_once = None if dask else jobs
        done = benchmark(config, out, **given, jobs=at_once, progress=sys.stderr.isatty())
    bad = done.cells[done.cells.status != "done"]
    for cell in bad.itertuples():
        name = f"{cell.model or 'the data'}, {cell.data}, seed {cell.seed}"
        typer.echo(f"failed: {cell.track}: {name}: {cell.error}", err=True)
    typer.echo(done.folder / "report.html")
    if len(bad):
        raise typer.Exit(1)


def _cluster(address: str) -> Any:
    """Let joblib hand work to the workers of a Dask cluster, which must see the folder, too."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ModuleNotFoundError("--dask needs Dask: pip install distributed") from error
    from joblib import parallel_config

    return parallel_config(backend="dask", client=Client(address))
