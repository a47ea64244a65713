"""Commands that ask a saved model: sample, counterfactual, effect, info, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from subjunctive.cli.app import Overwrite, Seed, app, load_model, may_write

Saved = Annotated[Path, typer.Argument(help="Directory of a saved model.")]
Do = Annotated[list[str], typer.Option(help="node=value, node+=amount or node*=factor.")]
Out = Annotated[Path, typer.Option(help="A .png for pictures, .csv or .parquet, or .npz.")]


@app.command()
def sample(
    model: Saved,
    out: Out,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows.", min=1)] = 100,
    do: Do = [],  # noqa: B006  typer reads the default
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw rows from the model, under interventions where --do is given, a world each."""
    import subjunctive as sj
    from subjunctive.cli.write import check_out, read_worlds, write
    from subjunctive.query import Answer

    check_out(out, overwrite)
    loaded = load_model(model)
    answers = {}
    for name, world in (read_worlds(do, loaded.variables) or {"sample": {}}).items():
        drawn = sj.intervene(loaded, world).sample(rows, seed=seed)
        answers[name] = Answer({k: v[None] for k, v in drawn.items()}, loaded.variables)
    write(out, answers)
    typer.echo(out)


@app.command()
def counterfactual(
    model: Saved,
    evidence: Annotated[list[Path], typer.Option(help="Pictures, or one .csv or .npz.")],
    do: Do,
    out: Out,
    draws: Annotated[int, typer.Option(help="Draws of the noise a row.", min=1)] = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Ask what would have been. Each --do is a world of its own; commas join what is done in one.

    Labels that the evidence lacks are read from the picture by the model's encoder. A cell that is
    empty is drawn, in the factual world too: --draws 100 gives the mean and a 90 % interval.
    """
    import subjunctive as sj
    from subjunctive.cli.write import check_out, read_worlds, write
    from subjunctive.evidence import read_evidence

    check_out(out, overwrite)
    loaded = load_model(model)
    worlds = {"factual": {}, **read_worlds(do, loaded.variables)}
    batch = read_evidence(evidence, loaded.variables)
    answers = sj.counterfactual(
        loaded, batch, [*worlds.values()], draws=draws, seed=seed, progress=sys.stderr.isatty()
    )
    write(out, dict(zip(worlds, answers, strict=True)), batch)
    typer.echo(out)


@app.command()
def effect(
    model: Saved,
    treatment: Annotated[str, typer.Option(help="The node that is set.")],
    outcome: Annotated[str, typer.Option(help="The node that is looked at.")],
    values: Annotated[tuple[str, str], typer.Option(help="From and to.")],
    given: Annotated[list[str], typer.Option(help="node=value, for the effect among these.")] = [],  # noqa: B006
    through: Annotated[list[str], typer.Option(help="Mediators: split the effect.")] = [],  # noqa: B006
    draws: Annotated[int, typer.Option(help="Monte-Carlo draws.", min=2)] = 10_000,
    seed: Seed = 0,
) -> None:
    """Estimate an effect, E[outcome under the second value] less that under the first."""
    import subjunctive as sj
    from subjunctive.evidence import read_do
    from subjunctive.intervention import Intervention

    loaded = load_model(model)
    variables = loaded.variables
    a, b = (read_do(f"{treatment}={value}", variables)[treatment] for value in values)
    fixed = {} if not given else read_do(",".join(given), variables)
    if any(isinstance(seen, Intervention) for seen in fixed.values()):
        raise ValueError(f"--given {', '.join(given)}: it says what is seen, node=value")
    sj.variable.known(outcome, variables, "effect")
    unit = f" {variables[outcome].unit}".rstrip()
    identified = sj.identify(loaded.graph, outcome, treatment)
    if through:
        if fixed:
            raise ValueError("--given and --through do not go together; ask one after the other")
        frame = sj.mediation(loaded, treatment, outcome, through, (a, b), draws=draws, seed=seed)
        typer.echo(identified)
        for name, estimate, error in frame.itertuples():
            typer.echo(f"{name:12} {estimate:.4g} \N{PLUS-MINUS SIGN} {error:.2g}{unit}")
        return
    found = sj.effect(loaded, treatment, outcome, (a, b), given=fixed, draws=draws, seed=seed)
    if found.estimate.dim():
        raise ValueError(f"{outcome!r} has shape {tuple(found.estimate.shape)}; use --outcome of a "
                         "scalar node, or subjunctive.effect in Python")  # fmt: skip
    low, high = (float(x) for x in found.interval())
    typer.echo(identified)
    typer.echo(
        f"{found.kind}(values {values[0]} to {values[1]}) on {outcome}: {float(found.estimate):.4g}"
        f"{unit}, 95 % interval {low:.4g} to {high:.4g} (of the draws; the model's own error is "
        f"not in it), effective draws {found.ess:.0f}"
    )


@app.command()
def info(model: Saved) -> None:
    """Tell what a saved model is: its graph, nodes, parts and their size."""
    from rich.console import Console
    from rich.table import Table

    loaded = load_model(model)
    total = sum(p.numel() for p in loaded.parameters())
    typer.echo(f"{type(loaded).__name__}, {total:,} parameters\n{loaded.graph}\n")
    table = Table("node", "kind", "values", "parents", "mechanism", "abduction", "parameters")
    mechanisms = getattr(loaded, "mechanisms", {})
    for name, v in loaded.variables.items():
        own = mechanisms.get(name)
        card = getattr(own, "card", None)
        span = "" if v.low is None or v.high is None else f"{v.low:.4g} to {v.high:.4g} {v.unit}"
        size = "" if own is None else f"{sum(p.numel() for p in own.parameters()):,}"
        table.add_row(
            name,
            v.kind + (f" {v.shape}" if v.shape else ""),
            ", ".join(v.categories) if v.discrete else span.strip(),
            ", ".join(loaded.graph.parents(name)),
            getattr(card, "name", type(own).__name__ if own is not None else ""),
            getattr(card, "abduction", ""),
            size,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def export(
    model: Saved,
    out: Annotated[Path, typer.Option(help="A .pt2 (torch.export) or an .onnx file.")],
    node: Annotated[str | None, typer.Option(help="Whose mechanism; the picture's.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a node's mechanism, noise and parents in, value out, for other programs."""
    from subjunctive.evidence import image_node
    from subjunctive.export import write_mechanism
    from subjunctive.variable import known

    loaded: Any = load_model(model)
    node = node or image_node(loaded.variables)
    if node is None:
        raise ValueError(f"name --node; there are {', '.join(loaded.variables)}")
    known(node, loaded.variables, "--node")
    may_write(out, overwrite)
    write_mechanism(loaded, node, out)
    typer.echo(out)
