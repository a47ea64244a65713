"""The metrics of an evaluation, each a function of the exam and one method's answers.

A metric yields a `Score` for every question and node to which it applies, and nothing else: what
does not apply has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from subjunctive.mechanism import each
from subjunctive.metrics.agreement import compare, own_rows
from subjunctive.metrics.axioms import differences, minimality
from subjunctive.metrics.discrepancy import Discrepancy
from subjunctive.metrics.distance import changed, mae, wrong
from subjunctive.metrics.estimate import Estimate, ratio
from subjunctive.metrics.exam import Exam, Sitting
from subjunctive.metrics.exogeneity import Leak, exogeneity, residual_share
from subjunctive.metrics.predictors import identity_labels
from subjunctive.metrics.questions import Question
from subjunctive.metrics.realism import frechet, kernel_distance
from subjunctive.metrics.worlds import as_evidence, explain, happened, imagine, pixel_parts, redraw
from subjunctive.variable import Variable, as_matrix

BINS = 10  # of a continuous node, by which minimality tells kinds of rows
LEVEL = 0.5 / 255  # a pixel error below which a trivial answer is the truth


class Score(NamedTuple):
    """One number of a table.

    `question` is None where nothing was done; `floor` None where the oracle's value is the floor.
    """

    question: Question | None
    metric: str
    node: str
    estimate: Estimate
    floor: float | None = None


def _unit(variable: Variable) -> str:
    return "share" if variable.discrete else variable.unit


def _errors(exam: Exam, sitting: Sitting, node: str, answer: Tensor, truth: Tensor) -> Tensor:
    """Return errors a row, averaged over draws, `(B,)`."""
    error = wrong if exam.data.variables[node].discrete else mae
    return exam.average(error(answer, exam.spread(truth, sitting.draws)), sitting.draws)


def effectiveness(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """What is read from the image, against the true counterfactual value."""
    if exam.image is None or exam.read is None:
        return
    for k, (question, answer) in enumerate(zip(exam.questions, sitting.answers, strict=True)):
        read = exam.read(exam.pictures(answer))
        far = exam.far_rows(question)
        for node in exam.data.graph.parents(exam.image):
            if node not in read:
                continue
            if exam.truth:
                target = exam.truth[k][node]
            else:
                target = question.targets if node == question.node else answer[node]
                target = target[:: len(target) // len(exam.batch)]
            rows = _errors(exam, sitting, node, read[node], target)
            discrete = exam.data.variables[node].discrete
            rows = 1 - rows if discrete else rows
            unit = "accuracy" if discrete else exam.data.variables[node].unit
            yield Score(question, "effectiveness", node, Estimate.of(rows, unit))
            if bool(far.any()):
                yield Score(question, "effectiveness, far", node, Estimate.of(rows[far], unit))


def _pixel_errors(exam: Exam, sitting: Sitting, k: int, mask: Tensor | None = None) -> Tensor:
    """Return mean absolute pixel errors a row, `(B,)`."""
    truth = exam.spread(exam.pictures(exam.truth[k]), sitting.draws)
    mask = None if mask is None else exam.spread(mask, sitting.draws)
    return exam.average(mae(exam.pictures(sitting.answers[k]), truth, mask), sitting.draws)


def distance(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """How far every node lies from its true counterfactual; the image also where it changes."""
    for k, (question, truth) in enumerate(zip(exam.questions, exam.truth, strict=False)):
        for node, variable in exam.data.variables.items():
            if node in (question.node, exam.image) or node not in sitting.answers[k]:
                continue
            rows = _errors(exam, sitting, node, sitting.answers[k][node], truth[node])
            yield Score(question, "distance", node, Estimate.of(rows, _unit(variable)))
        if exam.image is None:
            continue
        rows = _pixel_errors(exam, sitting, k)
        masks = _masks(exam, k)
        found = {"distance": rows, "distance, far": rows[exam.far_rows(question)]}
        found |= {f"distance, {n}": _pixel_errors(exam, sitting, k, m) for n, m in masks.items()}
        for name, errors in found.items():
            if bool((~errors.isnan()).any()):
                yield Score(question, name, exam.image, Estimate.of(errors))


def _masks(exam: Exam, k: int) -> dict[str, Tensor]:
    """Return the pixels that truly change, and those of them in each region of the data."""
    truth = exam.truth[k]
    moved = changed(exam.pictures(truth), exam.pictures(exam.batch.values))
    masks = {"changed": moved}
    regions = getattr(exam.data, "regions", None)
    if regions is not None:
        noise = exam.batch.context.get(f"u.{exam.image}")
        before, after = (regions(v, noise) for v in (exam.batch.values, truth))
        masks |= {f"changed {n}": moved & (before[n] | after[n]) for n in before}
    return masks


def compared(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """The distance to the truth as a multiple of a trivial answer's, unless that is the truth."""
    if exam.image is None or exam.baseline is None:
        return
    for k, question in enumerate(exam.questions):
        masks = {"": None, ", changed": _masks(exam, k)["changed"]}
        for name, mask in masks.items():
            own = _pixel_errors(exam, sitting, k, mask)
            theirs = _pixel_errors(exam, exam.sittings[exam.baseline], k, mask)
            subsets = {name: slice(None)} | ({", far": exam.far_rows(question)} if not name else {})
            for subset, rows in subsets.items():
                if bool((~theirs[rows].isnan()).any()) and theirs[rows].nanmean() > LEVEL:
                    metric = f"ratio to {exam.baseline}{subset}"
                    yield Score(question, metric, exam.image, ratio(own[rows], theirs[rows]))


def identity(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """How often a classifier still sees what the row is, and how much less often than in truth."""
    if exam.image is None or exam.predictor is None:
        return
    readable = {v.name for v in exam.predictor.labels}
    for k, question in enumerate(exam.questions):
        for name, label in identity_labels(exam.batch).items():
            if name not in readable:
                continue
            kept = _recognised(exam, sitting, k, name, label)
            yield Score(question, "identity", name, Estimate.of(kept, "accuracy"))
            if exam.truth:
                gap = kept - _recognised(exam, exam.sittings["oracle"], k, name, label)
                yield Score(question, "identity gap", name, Estimate.of(gap, "accuracy"))


def _recognised(exam: Exam, sitting: Sitting, k: int, name: str, label: Tensor) -> Tensor:
    if exam.predictor is None:
        return torch.full((len(exam.batch),), torch.nan)
    read = exam.predictor.read(exam.pictures(sitting.answers[k]), exam.batch_size)[name]
    right = 1 - wrong(read, exam.spread(label, sitting.draws))
    return exam.average(right, sitting.draws)


def composition(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """What doing nothing changes: with all noise kept, and with the pixels' noise drawn anew."""
    if sitting.noise is None:
        return
    null = sitting.null(exam)
    answers = {"composition": (null, list(null))}
    again = _redrawn(exam, sitting)
    if again is not None and exam.image is not None:
        answers["composition, redrawn"] = (again, [exam.image])
    many = exam.batch.repeat(sitting.draws)
    for name, (answer, nodes) in answers.items():
        seen = [n for n in nodes if n in many and bool(many.mask(n).any())]
        for node, rows in differences(answer, many, seen, exam.data.variables).items():
            unit = _unit(exam.data.variables[node])
            rows = exam.average(rows, sitting.draws)
            yield Score(None, name, node, Estimate.of(rows, unit))


def _redrawn(exam: Exam, sitting: Sitting) -> dict[str, Tensor] | None:
    """Return the answer to doing nothing with the pixels' noise drawn anew, if it is divided."""
    names = pixel_parts(sitting.noise, exam.image) if exam.image is not None else ()
    if not names or sitting.kind not in ("model", "oracle"):
        return None
    noise = redraw(sitting.model, sitting.noise, names)
    return imagine(sitting.model, noise, {}, exam.batch_size)


def reversibility(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """How far from the factual one lands by doing and undoing, the answer taken as evidence."""
    if sitting.noise is None:
        return
    few = exam.batch[: exam.few]
    for question, answer in zip(exam.questions, sitting.answers, strict=True):
        if question.support == "outside" or not bool(few.mask(question.node).all()):
            continue
        first = {n: v[:: sitting.draws][: exam.few] for n, v in answer.items()}
        noise = explain(sitting.model, as_evidence(first, few), exam.batch_size)
        back = {question.node: few.values[question.node]}
        with happened():
            undone = imagine(sitting.model, noise, back, exam.batch_size)
        nodes = [n for n in few if n != question.node and bool(few.mask(n).any())]
        for node, rows in differences(undone, few, nodes, exam.data.variables).items():
            unit = _unit(exam.data.variables[node])
            yield Score(question, "reversibility", node, Estimate.of(rows, unit))


def minimal(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """Counterfactual latent divergence in the predictor's features."""
    if exam.image is None or exam.predictor is None:
        return
    for k, question in enumerate(exam.questions):
        values = exam.reference.values[question.node]
        if values.dim() > 1:
            continue
        if not exam.data.variables[question.node].discrete:
            edges = values.double().quantile(torch.linspace(0, 1, BINS + 1).double()[1:-1])
        else:
            edges = torch.arange(int(values.max())) + 0.5

        def kind(v: Tensor, edges: Tensor = edges) -> Tensor:
            return torch.bucketize(v.double(), edges.double())

        kinds = kind(exam.batch.values[question.node]), kind(question.targets), kind(values)
        found = minimality(exam.factual, exam.embed(sitting, k), exam.expected, kinds)
        yield Score(question, "minimality", exam.image, found)


def realism(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """Frechet and kernel distance of the answers' features to those of training images."""
    if exam.image is None or exam.predictor is None:
        return
    reference = exam.expected
    for k, question in enumerate(exam.questions):
        features = exam.embed(sitting, k)
        yield Score(question, "realism, Frechet", exam.image, frechet(features, reference))
        yield Score(question, "realism, kernel", exam.image, kernel_distance(features, reference))


def exogenous(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """Whether abducted noise predicts the parents, follows its prior, and carries the image."""
    if not isinstance(sitting.noise, dict) or sitting.kind == "retrieval":
        return
    first = each(lambda t: t[:: sitting.draws], sitting.noise)
    fresh = sitting.model.noise(len(exam.batch))
    copied = getattr(sitting.model, "nodes", exam.data.graph.nodes)
    for node in exam.data.graph.nodes:
        if node not in first or node not in copied:
            continue
        parents = {p: _matrix(exam, p) for p in exam.data.graph.parents(node) if _whole(exam, p)}
        pair = {node: first[node]}, parents, {node: fresh[node]}
        for part, found in exogeneity(*pair, seed=exam.seed).items():
            for parent, leak in found.leaks.items():
                yield _by_chance(None, f"exogeneity, R2 of {parent}", part, leak)
            if found.fit is not None:
                yield _by_chance(None, "exogeneity, misfit", part, found.fit)
    again = _redrawn(exam, sitting)
    if again is not None and exam.image is not None:
        share = residual_share(sitting.null(exam)[exam.image], again[exam.image])
        yield Score(None, "exogeneity, residual share", exam.image, share, float("nan"))


def _whole(exam: Exam, node: str) -> bool:
    return bool(exam.batch.mask(node).all())


def _matrix(exam: Exam, node: str) -> Tensor:
    own = exam.data.variables[node]
    return as_matrix({node: own.standardise(exam.batch.values[node])}, [own])


def _by_chance(
    question: Question | None, metric: str, node: str, found: Discrepancy | Leak
) -> Score:
    return Score(question, metric, node, found, found.null)


def agreement(exam: Exam, sitting: Sitting) -> Iterator[Score]:
    """Counterfactuals averaged over factuals, against interventions: on data, on own samples."""
    if sitting.kind != "model" or sitting.noise is None:
        return
    model, size = sitting.model, exam.batch_size
    own = explain(model, own_rows(model, exam.few, size), size)
    fresh = model.noise(exam.few)
    for question, answer in zip(exam.questions, sitting.answers, strict=True):
        if question.support == "outside":
            continue
        do = {question.node: question.targets[: exam.few]}
        drawn = imagine(model, fresh, do, size)
        worlds = {
            "agreement": {n: v[:: sitting.draws][: exam.few] for n, v in answer.items()},
            "agreement, own samples": imagine(model, own, do, size),
        }
        nodes = [n for n in model.graph.nodes if n != question.node]
        for name, imagined in worlds.items():
            found = compare(imagined, drawn, model.variables, nodes, exam.seed)
            for node, gap in found.items():
                yield _by_chance(question, name, node, gap)


METRICS: dict[str, Callable[[Exam, Sitting], Iterator[Score]]] = {
    "effectiveness": effectiveness,
    "distance": distance,
    "ratio": compared,
    "identity": identity,
    "composition": composition,
    "reversibility": reversibility,
    "minimality": minimal,
    "realism": realism,
    "exogeneity": exogenous,
    "agreement": agreement,
}
