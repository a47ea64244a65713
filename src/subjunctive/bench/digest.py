"""A benchmark in few numbers: one a model, data set, seed and metric, smaller is better in all.

Errors of labels and table columns count in their training standard deviations, those of categories
as shares, pixels in grey levels from 0 to 1; interventions beyond the training range are left out;
what is measured at several nodes or under several interventions is averaged over them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

KEYS = ["track", "data", "model", "seed"]
TRIVIAL = ("oracle", "copy", "copy and rescale", "retrieval")
HEADS = (
    *("distance", "distance, changed", "distance, labels", "effectiveness", "composition"),
    *("reversibility", "minimality", "realism, Frechet", "realism, kernel", "identity lost"),
    *("exogeneity, R2", "exogeneity, misfit", "agreement", "agreement, own samples"),
)
ABOUT = {
    "distance": "mean absolute error to the true counterfactual",
    "distance, changed": "the same where the true picture changes",
    "distance, labels": "the same of a picture's labels",
    "effectiveness": "error of what is read from the picture, against the true value",
    "composition": "what doing nothing changes",
    "reversibility": "what doing and undoing changes",
    "minimality": "how much more than asked is changed, in a reader's features",
    "realism, Frechet": "Frechet distance of a reader's features to those of training pictures",
    "realism, kernel": "kernel distance of the same",
    "identity lost": "how much less often than on true answers a classifier sees the same class",
    "exogeneity, R2": "how well abducted noise tells a parent, beyond chance; the worst part",
    "exogeneity, misfit": "how far abducted noise is from its prior, beyond chance; the worst part",
    "agreement": "how far counterfactuals, averaged, are from interventions, beyond chance",
    "agreement, own samples": "the same on the model's own samples",
}


def summary(scores: DataFrame) -> DataFrame:
    """Return tidy headline numbers: `track`, `data`, `model`, `seed`, `metric`, `value`.

    Args:
        scores: of `collect`; of a track that it names, all models and seeds.

    Example:
        >>> import pandas
        >>> row = {"track": "t", "data": "d", "model": "m", "seed": 0, "intervention": "do(a)",
        ...        "support": "inside", "metric": "distance", "node": "b", "value": 3.0,
        ...        "floor": 0.0, "unit": "px", "scale": 2.0, "image": ""}
        >>> summary(pandas.DataFrame([row])).value.tolist()
        [1.5]
    """
    import pandas

    if not len(scores):
        return pandas.DataFrame(columns=[*KEYS, "metric", "value"])
    rows = scores[scores.support != "outside"].copy()
    share = rows.unit == "accuracy"
    rows["value"] = (rows.value / rows.scale).where(~share, 1 - rows.value)
    lost = rows.metric == "identity gap"
    rows.loc[lost, "value"] = rows.value[lost] - 1  # an accuracy less another: minus the gap
    rows["metric"] = rows.metric.replace("identity gap", "identity lost")
    leaks = rows.metric.str.startswith("exogeneity, R2 of ")
    rows.loc[leaks, "metric"] = "exogeneity, R2"
    beyond = rows.metric.isin(["exogeneity, R2", "exogeneity, misfit"])
    beyond |= rows.metric.str.startswith("agreement")
    rows.loc[beyond, "value"] = (rows.value - rows.floor)[beyond].clip(lower=0)
    pictured = (rows.image != "") & (rows.node != rows.image)
    labels = pictured & (rows.metric == "distance")
    rows.loc[labels, "metric"] = "distance, labels"
    rows = rows[~(pictured & rows.metric.isin(["composition", "reversibility"]))]
    rows = rows[rows.metric.isin(HEADS)]
    worst = rows.metric.str.startswith("exogeneity")
    keys = [*KEYS, "metric"]
    found = [
        rows[~worst].groupby(keys, sort=False).value.mean(),
        rows[worst].groupby(keys, sort=False).value.max(),
    ]
    return pandas.concat([f for f in found if len(f)]).reset_index()


def wide(digest: DataFrame, track: str, data: str, models: Iterable[str]) -> DataFrame:
    """Return a data set's table of text, a row a model: the median, and the range over seeds."""
    import pandas

    part = digest[(digest.track == track) & (digest.data == data)]
    heads = [h for h in HEADS if h in set(part.metric)]
    there = [*models, *(t for t in TRIVIAL if t in set(part.model))]

    def cell(model: str, metric: str) -> str:
        found = part[(part.model == model) & (part.metric == metric)].value.dropna()
        if not len(found):
            return ""
        text = f"{found.median():.3g}"
        return text if len(found) < 2 else f"{text} ({found.min():.3g} to {found.max():.3g})"

    table = {h: [cell(m, h) for m in there] for h in heads}
    return pandas.DataFrame(table, index=pandas.Index(there, name="model"))


def blocks(digest: DataFrame, track: str, metric: str, models: Iterable[str]) -> DataFrame:
    """Return a row a data set, a column a model: the mean over seeds, NaN where a cell lacks.

    Differences below a millionth, as of two models that are exact but for rounding, are none.
    """
    part = digest[(digest.track == track) & (digest.metric == metric)]
    part = part[part.model.isin(list(models))]
    table = part.pivot_table(index="data", columns="model", values="value", aggfunc="mean")
    return table.reindex(columns=list(models)).round(6)
