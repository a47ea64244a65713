"""How a cell's model is judged: by `evaluate`, by its pictures, and by what an answer costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subjunctive.bench.entrants import picture
from subjunctive.bench.kept import CONFIG, WEIGHTS
from subjunctive.checkpoint import read
from subjunctive.config import from_config
from subjunctive.mechanism import evaluating
from subjunctive.metrics.evaluate import evaluate
from subjunctive.metrics.predictors import Predictor, predictor_for
from subjunctive.metrics.questions import intervenable
from subjunctive.query import counterfactual
from subjunctive.variable import Batch

ASKED = 64  # rows whose counterfactuals are timed


def learned(data: Any, settings: Mapping[str, Any]) -> Predictor | None:
    """Return the network that reads a data set's pictures, trained now; None for a table."""
    image = picture(data)
    if image is None:
        return None
    measured = getattr(data, "measure", None) is not None
    how = {"seed": settings["seed"], **settings["reader"]}
    return predictor_for(data, image, measured=measured, **how)


def restored(place: Path) -> Predictor | None:
    """Return the network that the data set's cell kept, if there was something to read."""
    if not place.is_dir():
        return None
    document, files = read(place, CONFIG)
    reader: Predictor = from_config(document["reader"])
    reader.load_state_dict(files[WEIGHTS])
    return reader.eval()


def judged(
    models: Any, data: Any, settings: Mapping[str, Any], reader: Any, baselines: bool
) -> Any:
    """Return an evaluation, and by what a node's errors are made comparable: `scale`."""
    frame = evaluate(
        models,
        data,
        rows=settings["rows"],
        few=settings["few"],
        metrics=settings["metrics"],
        seed=settings["seed"],
        predictor=reader,
        baselines=baselines,
        progress=False,
    )
    scales = {n: v.scale for n, v in data.variables.items() if not v.discrete and not v.shape}
    frame["scale"] = frame.node.map(scales).astype(float).fillna(1.0)
    frame["image"] = picture(data) or ""
    frame.attrs = {}
    return frame


def cost(model: Any, data: Any) -> dict[str, float]:
    """Return what a counterfactual takes, CPU milliseconds a row, and the process's megabytes."""
    import resource

    some = data.test[torch.arange(min(ASKED, len(data.test)))].only(model.graph.nodes)
    node = intervenable(data, picture(data))[0]
    do = {node: data.train.values[node][: len(some)]}
    counterfactual(model, some[:2], {n: v[:2] for n, v in do.items()}, seed=0)
    began = time.process_time()
    counterfactual(model, some, do, seed=0)
    spent = time.process_time() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"milliseconds": 1e3 * spent / len(some), "MB": most / 1024}


def pictures(model: Any, data: Any, rows: int) -> dict[str, Any]:
    """Return the first held-out pictures, and what they would have been, answered and true.

    Each label in turn is set to its 10 % or 90 % quantile in training, whichever is further.
    """
    image, some = picture(data), data.test[torch.arange(min(rows, len(data.test)))]
    if image is None or not rows:
        return {}
    found: dict[str, Any] = {"factual": some.values[image].numpy()}
    truth = getattr(data, "oracle", None)
    for node in intervenable(data, image):
        do = {node: _targets(data, node, some)}
        with evaluating(model):
            answer = counterfactual(model, some.only(model.graph.nodes), do, seed=0)[image]
        found[f"do({node})"] = answer.detach().cpu().numpy()
        found[f"to {node}"] = do[node].numpy()
        if truth is not None:
            found[f"truth of do({node})"] = truth.predict(truth.abduct(some), do)[image].numpy()
    return {k: v.astype(np.float32) for k, v in found.items()}


def _targets(data: Any, node: str, some: Batch) -> Tensor:
    values = data.train.values[node]
    if data.variables[node].discrete:
        return (some.values[node] + 1) % len(data.variables[node].categories)
    low, high = (values.quantile(q) for q in (0.1, 0.9))
    own = some.values[node]
    return torch.where(own - low > high - own, low, high)
