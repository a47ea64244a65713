"""A benchmark as one page of HTML: what was asked, tables, ranks, pictures, failures, hashes."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subjunctive.bench.digest import ABOUT, HEADS, blocks, summary, wide
from subjunctive.bench.kept import PICTURES, Kept
from subjunctive.bench.plan import Plan
from subjunctive.bench.ranks import Comparison, compare

if TYPE_CHECKING:
    from pandas import DataFrame

    from subjunctive.bench.run import Benchmark

PAGE = "report.html"
ABREAST = 3  # models side by side in a picture
DRAWN = ("distance", "distance, changed", "effectiveness")  # whose ranks are drawn, too
COSTS = {
    "seconds": "training, s",
    "cpu": "training, CPU s",
    "process": "in all, CPU s",
    "steps": "steps",
    "chosen": "chosen",
    "parameters": "parameters",
    "milliseconds": "counterfactual, CPU ms a row",
    "MB": "peak MB",
}
STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .45rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; max-width: 6.2rem; font-size: 12px; line-height: 1.2; }
th:first-child, td:first-child { text-align: left; } tr.trivial { background: var(--mark); }
.scroll { overflow-x: auto; } figure { margin: 1rem 0; } figcaption, .note { font-size: 13px; }
img { max-width: 100%; height: auto; background: #fff; } .failed { color: #c33; }
code, pre { font-size: 12px; } pre { overflow-x: auto; padding: .6rem; background: var(--mark); }
"""


def report(done: Benchmark) -> Path:
    """Write the page and return where it is."""
    digest = summary(done.scores)
    parts = [*_head(done), *_failures(done)]
    for track in done.plan.tracks:
        parts += _track(done, digest, track)
    parts += _foot(done)
    title = "Counterfactuals: a benchmark"
    text = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>\n"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    path = done.folder / PAGE
    path.write_text(text, encoding="utf-8")
    return path


def _head(done: Benchmark) -> Iterator[str]:
    plan, cells = done.plan, done.cells[done.cells.model != ""]
    status = cells.status.value_counts()
    dates = sorted(d for d in done.cells.get("date", ()) if isinstance(d, str))
    when = f"{dates[0][:10]} to {dates[-1][:10]}" if dates else "not yet"
    said = ", ".join(f"{n} {word}" for word, n in status.items())
    grid = "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in plan.grid.items())
    yield _p(
        f"{len(cells)} cells (model, data set, seed): {said}. Seeds {list(plan.seeds)}; "
        f"{plan.rows} held-out rows; {when}; subjunctive {version('subjunctive')}."
    )
    yield _p(
        f"Every model has the same {plan.clock} time for training, {plan.seconds:g} s (a track may "
        f"say otherwise for all of its own), {100 * plan.share:g} % of it for the choice, on "
        f"validation rows, of {grid}; {plan.threads} thread(s). Smaller is better in every column, "
        "the best model bold. Errors of labels and of a table's columns are in training standard "
        "deviations, of categories shares, of pixels grey levels from 0 to 1. Shaded rows are the "
        "true model and trivial answers, whose other nodes are true: no model is good that does "
        "not beat them."
    )


def _failures(done: Benchmark) -> Iterator[str]:
    bad = done.cells[done.cells.status != "done"]
    if len(bad):
        yield "<h2 class='failed'>What did not come out</h2><ul>"
        for cell in bad.itertuples():
            said = cell.error or "not done yet"
            name = f"{cell.track}: {cell.model or 'the data'}, {cell.data}, seed {cell.seed}"
            yield f"<li><b>{_e(name)}</b>: {_e(said)} <code>failed/{_e(cell.key)}.txt</code></li>"
        yield "</ul>"


def _track(done: Benchmark, digest: DataFrame, track: str) -> Iterator[str]:
    models = list(done.plan.tracks[track].models)
    yield f"<h2>{_e(track)}</h2>"
    for data in done.plan.tracks[track].data:
        table = wide(digest, track, data, models)
        yield f"<h3>{_e(data)}</h3>"
        yield _table(
            table, [m for m in table.index if m not in models], _best(digest, track, data, models)
        )
        yield from _pictures(done, track, data)
    heads = [h for h in HEADS if h in set(digest[digest.track == track].metric)]
    yield "<h3>Over data sets</h3>"
    yield from _comparisons(digest, track, models, heads)
    yield "<h3>What it cost</h3>"
    yield _table(_costs(done.cells, track))
    yield "<p class='note'>" + "; ".join(f"<b>{_e(h)}</b>: {_e(ABOUT[h])}" for h in heads) + ".</p>"


def _comparisons(
    digest: DataFrame, track: str, models: list[str], heads: list[str]
) -> Iterator[str]:
    """Yield mean ranks by every metric as a table, and the diagrams of some."""
    import pandas

    rows, index, drawn = [], [], []
    refused: dict[str, list[str]] = {}
    for metric in heads:
        try:
            found = compare(blocks(digest, track, metric, models))
        except ValueError as error:
            refused.setdefault(str(error), []).append(metric)
            continue
        row = {m: f"{found.ranks[m]:.2f}" if m in found.ranks else "left out" for m in models}
        row["critical difference"] = f"{found.difference:.2f}"
        row["Friedman, p"] = "" if math.isnan(found.p_value) else f"{found.p_value:.3g}"
        rows.append(row | {"data sets": str(found.datasets)})
        index.append(metric)
        if metric in DRAWN:
            drawn.append((metric, found))
    if rows:
        yield _table(pandas.DataFrame(rows, index=pandas.Index(index, name="mean ranks by")))
        yield _p(
            "Seeds are averaged. Two models whose mean ranks differ by less than the critical "
            "difference (Nemenyi, 5 %) cannot be told apart; a model without a result on some "
            "data set is left out. With fewer than about six data sets hardly any difference "
            "can be shown."
        )
    for metric, found in drawn:
        yield _drawn(metric, found)
    for why, metrics in refused.items():
        yield _p(f"Not compared by {'; '.join(metrics)}: {why}.")


def _drawn(metric: str, found: Comparison) -> str:
    from subjunctive.plot import ranks

    ax = ranks(found.ranks, found.difference, found.alike)
    order = ", ".join(f"{m} {r:.2f}" for m, r in found.ranks.items())
    pairs = "; ".join(f"{a} and {b} {p:.3g}" for (a, b), p in found.pairs.items())
    text = (f"{metric}: mean ranks over {found.datasets} data sets; models joined by a bar cannot "
            f"be told apart. Wilcoxon's test of pairs, p adjusted by Holm: {pairs}.")  # fmt: skip
    return _figure(ax.figure, f"Mean ranks by {metric}: {order}", text)


def _costs(cells: DataFrame, track: str) -> DataFrame:
    """Return a row a model and data set: medians over seeds, what was chosen by each."""
    import pandas

    own = cells[(cells.track == track) & (cells.model != "") & (cells.status == "done")]
    rows, index = [], []
    for (model, data), part in own.groupby(["model", "data"], sort=False):
        medians: dict[str, str] = {}
        for name, head in COSTS.items():
            if name not in part:
                continue
            if name == "chosen":
                held = [json.loads(c) for c in part[name]]
                medians[head] = "; ".join(", ".join(f"{k} {v}" for k, v in c.items()) for c in held)
            else:
                value = float(part[name].median())
                medians[head] = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        rows.append(medians)
        index.append(f"{model}, {data}")
    return pandas.DataFrame(rows, index=pandas.Index(index, name="model"))


def _pictures(done: Benchmark, track: str, data: str) -> Iterator[str]:
    """Draw factual, counterfactual, truth and difference, for each intervention, a seed of each."""
    kept, held = Kept(done.folder / "cells"), {}
    for cell in done.plan.cells:
        if (cell.track, cell.data) == (track, data) and cell.model and cell.model not in held:
            path = kept.find(cell.key)
            if path is not None and (path / PICTURES).is_file():
                with np.load(path / PICTURES, allow_pickle=False) as arrays:
                    held[cell.model] = {n: arrays[n] for n in arrays.files}
    if not held:
        return
    first = next(iter(held.values()))
    for title in [n for n in first if n.startswith("do(")]:
        node = title[3:-1]
        for start in range(0, len(held), ABREAST):
            some = dict(list(held.items())[start : start + ABREAST])
            names = ", ".join(some)
            text = (f"{title}: each row a held-out picture, {node} set to "
                    f"{', '.join(f'{v:.3g}' for v in first[f'to {node}'])}.")  # fmt: skip
            yield _figure(_grid(some, title), f"Counterfactuals of {data} by {names}", text)


def _grid(held: dict[str, Any], title: str) -> Any:
    from subjunctive.plot import grid

    first = next(iter(held.values()))
    answers = {model: arrays[title] for model, arrays in held.items()}
    true = {m: a[f"truth of {title}"] for m, a in held.items() if f"truth of {title}" in a}
    return grid(first["factual"], answers, true)[0, 0].figure


def _foot(done: Benchmark) -> Iterator[str]:
    finished = done.cells[done.cells.status == "done"]
    yield "<h2>What it was run on</h2>"
    if "versions" in finished:
        for text, n in finished.versions.value_counts().items():
            held = ", ".join(f"{k} {v}" for k, v in json.loads(str(text)).items())
            yield _p(f"{n} cells with {held}.")
        if finished.versions.nunique() > 1:
            yield "<p class='failed'>Cells were run with different versions.</p>"
    yield _p("Code of the package, a hash a kind of cell: "
             + ", ".join(sorted(set(map(str, finished.get("code", ()))))) + ".")  # fmt: skip
    yield f"<pre>{_e(_settings(done.plan))}</pre>"


def _settings(plan: Plan) -> str:
    """Return a plan as YAML that asks for the same again."""
    import yaml

    names = [f.name for f in fields(plan) if f.name != "tracks"]
    whole = json.loads(json.dumps({name: getattr(plan, name) for name in names}))
    whole["tracks"] = {
        name: json.loads(json.dumps({**track.budget, "data": track.data, "models": track.models}))
        for name, track in plan.tracks.items()
    }
    return str(yaml.safe_dump(whole, sort_keys=False, default_flow_style=None, width=100))


def _best(digest: DataFrame, track: str, data: str, models: list[str]) -> set[tuple[str, str]]:
    """Return which model is best by each metric, (model, metric), where one alone is."""
    part = digest[(digest.track == track) & (digest.data == data) & digest.model.isin(models)]
    found = set()
    for metric, own in part.groupby("metric"):
        medians = own.groupby("model").value.median().round(6)
        first = medians[medians == medians.min()]
        if len(first) == 1 and len(medians) > 1:
            found.add((str(first.index[0]), str(metric)))
    return found


def _table(
    frame: DataFrame, shaded: Sequence[str] = (), best: Collection[tuple[str, str]] = ()
) -> str:
    def cell(index: str, column: str, text: str) -> str:
        inner = f"<b>{_e(text)}</b>" if (index, column) in best else _e(text)
        return f"<td>{inner}</td>"

    head = "".join(f"<th>{_e(str(c))}</th>" for c in [frame.index.name or "", *frame.columns])
    rows = [
        f"<tr{' class=trivial' if index in shaded else ''}>"
        + f"<td>{_e(index)}</td>"
        + "".join(cell(index, c, t) for c, t in zip(frame.columns, cells, strict=True))
        + "</tr>"
        for index, *cells in frame.itertuples()
    ]
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _figure(figure: Any, alt: str, text: str) -> str:
    held = io.BytesIO()
    figure.savefig(held, dpi=110, format="png")
    data = base64.b64encode(held.getvalue()).decode()
    return (f"<figure><img alt='{_e(alt)}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{_e(text)}</figcaption></figure>")  # fmt: skip


def _p(text: str) -> str:
    return f"<p>{_e(text)}</p>"


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)
