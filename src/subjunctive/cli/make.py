"""Commands that make models and judge them: demo, config, fit, evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from subjunctive.cli.app import Overwrite, Seed, app, load_model, may_write, show

STEPS = 1500
Table = Annotated[Path | None, typer.Option(help="Your own rows (.csv, .tsv, .parquet).")]
Arrows = Annotated[str | None, typer.Option(help="What causes what: 'a -> b; a, b -> image'.")]
Pictures = Annotated[Path | None, typer.Option(help="Folder or archive that --table names.")]
HEADLINES = ("effectiveness", "distance", "distance, far", "identity")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("demo"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Held-out digits to judge.", min=10)] = 500,
    digits: Annotated[int, typer.Option(help="Real digits to use.", min=30)] = 5000,
    missing: Annotated[float, typer.Option(help="Share of labels to hide.", min=0, max=0.99)] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train on real digits; write counterfactuals of held-out ones, and how sound they are."""
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} holds files; give another --out, or --overwrite")
    from subjunctive.demo import demo as run

    made = run(out, seed, steps, rows, digits, missing=missing, progress=sys.stderr.isatty())
    frame = made.frame
    show(frame[(frame.support == "inside") & frame.metric.isin(HEADLINES)])
    for what, path in made.paths.items():
        typer.echo(f"{what:10} {path}")


@app.command()
def config(
    method: Annotated[str | None, typer.Argument(help="One that `methods` lists.")] = None,
    table: Table = None,
    graph: Arrows = None,
    images: Pictures = None,
    steps: Annotated[int, typer.Option(help="Training steps, with --table.", min=1)] = STEPS,
    out: Annotated[Path | None, typer.Option(help="A .yaml to write instead.")] = None,
) -> None:
    """Print an experiment to start from: of a method, with its defaults, or of your own --table."""
    from subjunctive.cli.starter import own, starter

    _one_of(("METHOD", method), table, graph, images)
    if table is None:
        text = starter(str(method))
    else:
        import yaml

        text = yaml.safe_dump(own(table, graph, images, steps), sort_keys=False)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise ValueError(f"{out} exists; give another --out")
    out.write_text(text, encoding="utf-8")
    typer.echo(out)


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="Directory for the model.")],
    config: Annotated[Path | None, typer.Argument(help="YAML: data, model and fit.")] = None,
    table: Table = None,
    graph: Arrows = None,
    images: Pictures = None,
    steps: Annotated[int, typer.Option(help="Training steps, with --table.", min=1)] = STEPS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a saved model.")] = False,
    checkpoints: Annotated[Path | None, typer.Option(help="Directory for checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last one.")] = False,
) -> None:
    """Fit the model of a YAML file, or one to your own --table and --images, and save it."""
    from subjunctive.cli.starter import own
    from subjunctive.experiment import located, read_experiment, read_yaml
    from subjunctive.store import CONFIG, WEIGHTS, StoreError, save

    held = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not (overwrite and held == {CONFIG, WEIGHTS}):  # as save() would, later
        raise StoreError(f"{out} exists; give another --out, or --overwrite a saved model")
    if resume and checkpoints is None:
        raise ValueError("--resume needs --checkpoints, the directory of the run to go on with")
    _one_of(("CONFIG", config), table, graph, images)
    if config is not None:
        with located(config):
            experiment = read_experiment(read_yaml(config))
    elif table is not None:
        experiment = read_experiment(own(table, graph, images, steps))
        size = experiment.options["batch_size"]
        experiment.options["batch_size"] = min(size, len(experiment.data.train))  # a small set
    out.parent.mkdir(parents=True, exist_ok=True)  # rather than find after the fit that it cannot
    kept = {} if checkpoints is None else {"directory": checkpoints, "resume": resume}
    done = experiment.run(progress=sys.stderr.isatty(), **kept)
    save(experiment.model, out, overwrite=overwrite)
    loss = next((r["loss"] for r in reversed(done.records) if "loss" in r), float("nan"))
    typer.echo(
        f"{done.steps} steps, {done.rows_per_second:.0f} rows a second, loss {loss:.4g}: {out}"
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Directory of a saved model.")],
    data: Annotated[str, typer.Option(help="A simulator (morpho, pendulum, ...), or a YAML file.")],
    rows: Annotated[int, typer.Option(help="Held-out rows to judge.", min=10)] = 500,
    out: Annotated[Path | None, typer.Option(help="A .csv to write, too.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure how sound a model's counterfactuals are, against the truth where it is known."""
    import subjunctive as sj
    from subjunctive.experiment import located, named_data, read_data, read_yaml
    from subjunctive.training.process import few_threads

    if out is not None:
        if out.suffix.lower() != ".csv":
            raise ValueError(f"--out {out} is no .csv")
        may_write(out, overwrite)
    loaded = load_model(model)
    file = Path(data).suffix.lower() in (".yaml", ".yml")
    if file:
        with located(data):
            found = read_data(read_yaml(data))
    else:
        found = named_data(data)
    theirs, ours = found.graph.nodes, loaded.graph.nodes
    if set(theirs) != set(ours):
        raise ValueError(f"--data {data} has nodes {theirs}, the model {ours}; they must be equal")
    for node in ours:
        for what in ("kind", "shape", "categories"):
            there, here = (getattr(m.variables[node], what) for m in (found, loaded))
            if there != here:
                raise ValueError(f"{node!r} has {what} {there} in the data, {here} in the model")
    with few_threads():
        frame = sj.evaluate(loaded, found, rows=rows, seed=seed, progress=sys.stderr.isatty())
    show(frame)
    if out is not None:
        frame.to_csv(out, index=False)
        typer.echo(out)


def _one_of(first: tuple[str, Any], table: Any, graph: Any, images: Any) -> None:
    """Refuse both or none of a file (or method) and a table of one's own.

    Raises:
        ValueError: naming what is there twice, or lacks.
    """
    name, given = first
    if (given is None) == (table is None):
        found = "both" if table is not None else "none"
        raise ValueError(f"give {name} or your own --table, one of them; got {found}")
    if table is None and (graph is not None or images is not None):
        raise ValueError(f"--graph and --images go with --table; {name} says its own")
