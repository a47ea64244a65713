"""Judge counterfactuals on held-out rows, against the truth where a simulator knows it.

Every method gets the same rows and the same interventions, and abducts once for all of them. Beside
the models stand the true one (*oracle*) and the trivial ones (*copy*, *copy and rescale*,
*retrieval* of a training image), whose other nodes are true, so that no trivial answer can look
good. The `floor` is what the same metric says of the true counterfactuals: an error of reading, not
of answering. For the exogeneity and the agreement it is what chance alone gives (95 %).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from subjunctive.mechanism import seeded
from subjunctive.metrics.exam import Exam, Sitting
from subjunctive.metrics.predictors import Predictor, predictor_for
from subjunctive.metrics.questions import Question, questions
from subjunctive.metrics.scores import METRICS, Score
from subjunctive.metrics.trivial import (
    COPY,
    COPY_RESCALE,
    ORACLE,
    RETRIEVAL,
    Copy,
    CopyRescale,
    Retrieval,
)
from subjunctive.scm import Model
from subjunctive.variable import nearest

if TYPE_CHECKING:
    import pandas

APART = 1_000_003  # added to the seed, so that draws are not those that made a simulator's rows
KEYS = ["intervention", "support", "metric", "node"]
READ_BY_NETWORK = {"identity", "minimality", "realism"}


def evaluate(
    model: Model | Mapping[str, Model],
    data: Any,
    *,
    rows: int = 500,
    do: Sequence[str] | Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = 1,
    baselines: bool = True,
    true_parents: bool = False,
    measure: Literal["auto", "predictor"] | Callable[[Tensor], dict[str, Tensor]] = "auto",
    predictor: Predictor | None = None,
    far: Mapping[str, float] | None = None,
    few: int = 200,
    batch_size: int = 256,
    progress: bool = True,
) -> pandas.DataFrame:
    """Measure how sound a model's counterfactuals are.

    Args:
        model: any `Model`, or name -> `Model` to compare several on the same questions.
        data: a simulator (`train`, `test`, `graph`, `variables`, `oracle`; `measure`, `regions`,
            `rescale_node`, `far` if it has them), or data without an oracle, where only what needs
            no truth is measured.
        rows: held-out rows, drawn without replacement.
        do: nodes to set (see `questions`), or node -> targets; all of the image's ancestors if not
            given.
        metrics: which of `METRICS`; all that apply if not given.
        seed: of rows, targets, draws and predictor; the user's generator is left alone.
        draws: noises a row; errors are averaged over them.
        baselines: whether the trivial answers have rows of their own.
        true_parents: add a row where the model's image is given its true counterfactual parents,
            which shows what the rest of the graph costs.
        measure: how attributes are read from pixels: `auto`, by the data where they can;
            `predictor`, by a network; or a function, images -> name -> `(B,)`.
        predictor: a fitted `Predictor`; trained on the training rows where one is needed.
        far: node -> how far its target must lie from the factual value for the metrics "far"; the
            data's own `far`, else one training standard deviation.
        few: rows for reversibility and agreement, which ask the model several times.
        batch_size: rows at once; bounds the memory.
        progress: show bars where it takes over two seconds.

    Returns:
        one row a method, intervention, support, metric and node, with `value`, `standard_error`
        (rows taken as independent), `n`, `floor` (NaN where nothing is known) and `unit`. What does
        not apply has no row. `attrs` says what was asked.

    Raises:
        ValueError: for an unknown metric, with the nearest name.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> m -> y", train=200, test=50)
        >>> frame = evaluate(data.oracle, data, rows=50, metrics=["distance"], baselines=False)
        >>> float(frame.value.max())
        0.0
    """
    wanted, seed = _wanted(metrics), seed + APART
    with seeded(seed):
        index = torch.randperm(len(data.test))[:rows]
    batch = data.test[index]
    image = _image(data)
    asked = questions(data, do, image, len(batch), seed)
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    oracle = getattr(data, "oracle", None)
    read, predictor = _reader(data, image, measure, predictor, wanted, seed, progress)
    few = min(few, len(batch))
    exam = Exam(data, batch, image, asked, read, predictor, _far(data, far), few, seed, batch_size)
    entrants = _entrants(models, data, image, oracle, baselines or "ratio" in wanted)
    from tqdm import tqdm

    def bar(names: Iterable[str], what: str) -> Iterable[str]:
        return tqdm(list(names), desc=what, delay=2, disable=not progress)

    for name in bar(entrants, "answer"):
        own = name in models
        with seeded(seed):
            kind = "model" if own else name
            sitting = Sitting.of(exam, kind, entrants[name], draws if own else 1)
            exam.sittings[name] = sitting
            if true_parents and own and exam.truth and image is not None:
                exam.sittings[f"{name}, true parents"] = sitting.told(exam)
    scores = []
    for name in bar(exam.sittings, "score"):
        if baselines or exam.sittings[name].kind in ("model", "oracle"):
            with seeded(seed):
                found = _scores(exam, exam.sittings[name], wanted)
                scores += [_row(name, score) for score in found]
    return _frame(scores, exam)


def _wanted(metrics: Sequence[str] | None) -> list[str]:
    for name in metrics or ():
        if name not in METRICS:
            raise ValueError(
                f"unknown metric {name!r}; there are {tuple(METRICS)}.{nearest(name, METRICS)}"
            )
    return list(metrics) if metrics is not None else list(METRICS)


def _image(data: Any) -> str | None:
    pictures = [n for n in data.graph.order if len(data.variables[n].shape) == 3]
    return pictures[-1] if pictures else None


def _far(data: Any, far: Mapping[str, float] | None) -> dict[str, float]:
    spread = {n: v.scale for n, v in data.variables.items() if not v.discrete and not v.shape}
    return {**spread, **getattr(data, "far", {}), **(far or {})}


def _reader(
    data: Any,
    image: str | None,
    measure: Any,
    predictor: Predictor | None,
    wanted: Sequence[str],
    seed: int,
    progress: bool,
) -> tuple[Callable[[Tensor], dict[str, Tensor]] | None, Predictor | None]:
    """Return what reads attributes from pixels, and the network, trained where it is needed."""
    if image is None:
        return None, None
    measured = getattr(data, "measure", None) if measure == "auto" else None
    measured = measure if callable(measure) else measured
    if measure not in ("auto", "predictor") and not callable(measure):
        raise ValueError(f"measure is {measure!r}; give 'auto', 'predictor' or a function")
    needed = bool(READ_BY_NETWORK & set(wanted)) or (measured is None and "effectiveness" in wanted)
    if predictor is None and needed:
        predictor = predictor_for(
            data, image, measured=measured is not None, seed=seed, progress=progress
        )
    return measured or (predictor.read if predictor is not None else None), predictor


def _entrants(
    models: Mapping[str, Model], data: Any, image: str | None, oracle: Any, baselines: bool
) -> dict[str, Model]:
    """Return the methods by name, those first that others are compared with."""
    if oracle is None:
        return dict(models)
    entrants: dict[str, Model] = {ORACLE: oracle}
    if baselines:
        if image is None:
            return {**entrants, COPY: Copy(data, *data.graph.nodes), **models}
        entrants[COPY] = Copy(data, image)
        rescale = getattr(data, "rescale_node", "intensity")
        if rescale in data.graph.parents(image):
            entrants[COPY_RESCALE] = CopyRescale(data, image, rescale)
        entrants[RETRIEVAL] = Retrieval(data, image)
    taken = sorted(set(entrants) & set(models))
    if taken:
        raise ValueError(f"models are called {taken}, which the table's own rows are; rename them")
    return {**entrants, **models}


def _scores(exam: Exam, sitting: Sitting, wanted: Sequence[str]) -> Iterator[Score]:
    for name, function in METRICS.items():
        if name in wanted:
            yield from function(exam, sitting)


def _row(method: str, score: Score) -> dict[str, Any]:
    question: Question | None = score.question
    return {
        "method": method,
        "intervention": question.name if question else "do()",
        "support": question.support if question else "observed",
        "metric": score.metric,
        "node": score.node,
        "value": score.estimate.value,
        "standard_error": score.estimate.standard_error,
        "n": score.estimate.n,
        "floor": score.floor,
        "unit": score.estimate.unit,
    }


def _frame(scores: list[dict[str, Any]], exam: Exam) -> pandas.DataFrame:
    """Lay the scores out, models first, the oracle's values as floors."""
    import pandas

    columns = ["method", *KEYS, "value", "standard_error", "n", "floor", "unit"]
    frame = pandas.DataFrame(scores, columns=columns).astype({"floor": float})
    true = frame[frame.method == ORACLE].set_index(KEYS).value
    keys = pandas.MultiIndex.from_frame(frame[KEYS])
    frame["floor"] = frame.floor.fillna(pandas.Series(true.reindex(keys).to_numpy()))
    own = [m for m, s in exam.sittings.items() if s.kind == "model"]
    order = {m: i for i, m in enumerate(dict.fromkeys([*own, *exam.sittings]))}
    frame = frame.sort_values(
        "method", key=lambda c: c.map(order), kind="stable", ignore_index=True
    )
    frame.attrs = {
        "rows": len(exam.batch),
        "seed": exam.seed - APART,
        "far": {q.node: exam.far[q.node] for q in exam.questions if q.node in exam.far},
        "inside": "targets from the training marginal",
        "outside": "targets between the extreme and the 1 % or 99 % quantile of training",
    }
    return frame


def table(frame: pandas.DataFrame, digits: int = 3, errors: bool = True) -> pandas.DataFrame:
    """Return an evaluation as a wide table of text, `value ± standard error`.

    Args:
        frame: what `evaluate` returned, or rows of it.
        digits: significant digits of the values.
        errors: whether standard errors are shown.

    Returns:
        a row an intervention, support and method; a column a metric, node and unit.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> y", train=200, test=50)
        >>> wide = table(evaluate(data.oracle, data, metrics=["composition"]))
        >>> print(wide.loc[("do()", "observed")].to_string())
                composition: t composition: y
        method
        model            0 ± 0          0 ± 0
        oracle           0 ± 0          0 ± 0
        copy             0 ± 0          0 ± 0
    """
    import pandas

    def text(value: float, error: float) -> str:
        shown = f"{value:.{digits}g}"
        return f"{shown} ± {float(f'{error:.1g}'):g}" if errors and error == error else shown

    cells = [text(v, e) for v, e in zip(frame.value, frame.standard_error, strict=True)]
    units = [f" [{u}]" if u else "" for u in frame.unit]
    names = [f"{m}: {n}{u}" for m, n, u in zip(frame.metric, frame.node, units, strict=True)]
    rows = ["intervention", "support", "method"]
    tidy = frame[rows].assign(column=names, cell=cells)
    for key in (*rows, "column"):
        tidy[key] = pandas.Categorical(tidy[key], list(dict.fromkeys(tidy[key])), ordered=True)
    wide = tidy.pivot(index=rows, columns="column", values="cell").sort_index()
    wide.columns = [str(c) for c in wide.columns]
    return wide.fillna("")
