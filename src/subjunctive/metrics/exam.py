"""An evaluation's questions with their true answers, and one method's answers to them.

A method sits the exam once: one abduction of every row, one prediction an intervention, all kept,
so that every metric looks at the same answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from subjunctive.mechanism import Noise
from subjunctive.metrics.discrepancy import thin
from subjunctive.metrics.predictors import Predictor
from subjunctive.metrics.questions import Question
from subjunctive.metrics.worlds import explain, happened, imagine
from subjunctive.scm import Model
from subjunctive.variable import Batch

REFERENCE = 2000  # training images with which realism and minimality compare
Values = dict[str, Tensor]


@dataclass
class Sitting:
    """One method's answers.

    Args:
        kind: `model`, `oracle`, or the name of a trivial answer.
        model: who answers.
        draws: noises a row; the draws of a row lie side by side.
        noise: abducted, `draws` times the rows; None where the answers came another way.
        answers: by question, node -> `(B * draws, *shape)`.
    """

    kind: str
    model: Model
    draws: int
    noise: Noise | None
    answers: list[Values]
    embedded: dict[int, Tensor] = field(default_factory=dict)
    nothing: Values | None = None

    @classmethod
    def of(cls, exam: Exam, kind: str, model: Model, draws: int) -> Sitting:
        """Abduct once, answer everything."""
        noise = explain(model, exam.batch.repeat(draws), exam.batch_size)
        answers = []
        for question in exam.questions:
            do = {question.node: exam.spread(question.targets, draws)}
            answers.append(imagine(model, noise, do, exam.batch_size))
        return cls(kind, model, draws, noise, answers)

    def null(self, exam: Exam) -> Values:
        """Return the answer to doing nothing, computed when it is first asked for."""
        if self.nothing is None:
            self.nothing = imagine(self.model, self.noise, {}, exam.batch_size)
        return self.nothing

    def told(self, exam: Exam) -> Sitting:
        """Answer again, the image's parents set to their true counterfactual values."""
        answers = []
        for truth in exam.truth:
            do = {p: exam.spread(truth[p], self.draws) for p in exam.data.graph.parents(exam.image)}
            with happened():
                answers.append(imagine(self.model, self.noise, do, exam.batch_size))
        return replace(self, noise=None, nothing=None, answers=answers, embedded={})


@dataclass
class Exam:
    """What is asked, of which rows, and how answers are read.

    Args:
        data: the simulator, or data without an oracle.
        batch: the held-out rows.
        image: the image's node, if there is one.
        questions: the interventions.
        read: images -> name -> `(B,)`, what reads attributes from pixels.
        predictor: a network that reads labels and embeds images.
        far: node -> how far a target must lie from the factual.
        few: rows for what asks the model several times.
        seed: of nulls and folds.
        batch_size: rows at once.
    """

    data: Any
    batch: Batch
    image: str | None
    questions: list[Question]
    read: Callable[[Tensor], Values] | None
    predictor: Predictor | None
    far: dict[str, float]
    few: int
    seed: int
    batch_size: int
    sittings: dict[str, Sitting] = field(default_factory=dict)

    @property
    def truth(self) -> list[Values]:
        """The true answers by question; none where there is no oracle."""
        return self.sittings["oracle"].answers if "oracle" in self.sittings else []

    @property
    def baseline(self) -> str | None:
        """The trivial answer that distances are compared with."""
        names = [n for n in ("copy and rescale", "copy") if n in self.sittings]
        return names[0] if names else None

    def spread(self, rows: Tensor, draws: int) -> Tensor:
        """Repeat every row for every draw."""
        return rows.repeat_interleave(draws, dim=0) if draws > 1 else rows

    def average(self, values: Tensor, draws: int) -> Tensor:
        """Average over the draws of a row, `(B * draws,)` -> `(B,)`; NaN draws are left out."""
        return values.double().reshape(-1, draws).nanmean(1)

    def pictures(self, values: Values) -> Tensor:
        """Return images within the range that pixels have: what is seen of an answer."""
        if self.image is None:
            raise ValueError("these data have no image")
        own = self.data.variables[self.image]
        return (
            values[self.image].clamp(own.low, own.high)
            if own.low is not None
            else (values[self.image])
        )

    def far_rows(self, question: Question) -> Tensor:
        """Return which rows are asked to move far, boolean `(B,)`; none for other nodes."""
        if question.node not in self.far:
            return torch.zeros(len(self.batch), dtype=torch.bool)
        moved = (question.targets - self.batch.values[question.node]).abs()
        return moved >= self.far[question.node]

    def embed(self, sitting: Sitting, index: int) -> Tensor:
        """Return the features of a question's answers, one draw a row, `(B, D)`."""
        if index not in sitting.embedded:
            images = self.pictures(sitting.answers[index])[:: sitting.draws]
            sitting.embedded[index] = self.features(images)
        return sitting.embedded[index]

    def features(self, images: Tensor) -> Tensor:
        """Return what the predictor makes of images, in standard deviations of training, `(B, D)`.

        Raises:
            ValueError: if there is no predictor.
        """
        if self.predictor is None:
            raise ValueError("features need a predictor; give one: evaluate(predictor=...)")
        scale = self._raw.std(0).clamp(min=1e-6)
        return (self.predictor.features(images, self.batch_size) - self._raw.mean(0)) / scale

    @cached_property
    def _raw(self) -> Tensor:
        if self.predictor is None:
            raise ValueError("features need a predictor; give one: evaluate(predictor=...)")
        return self.predictor.features(self.pictures(self.reference.values), self.batch_size)

    @cached_property
    def reference(self) -> Batch:
        """Training rows with which realism and minimality compare."""
        rows: Batch = self.data.train[thin(torch.arange(len(self.data.train)), REFERENCE)]
        return rows

    @cached_property
    def expected(self) -> Tensor:
        """Features of the reference rows, `(N, D)`."""
        return self.features(self.pictures(self.reference.values))

    @cached_property
    def factual(self) -> Tensor:
        """Features of the factual images, `(B, D)`."""
        return self.features(self.pictures(self.batch.values))
