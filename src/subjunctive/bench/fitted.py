"""A cell's trained model, kept by itself: other questions or metrics do not train it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from subjunctive.bench.budget import tuned
from subjunctive.bench.code import code_hash, source
from subjunctive.bench.entrants import assemble
from subjunctive.bench.kept import CONFIG, MODEL, WEIGHTS, Kept
from subjunctive.checkpoint import read, write
from subjunctive.mechanism import seeded

HANGS_ON = (
    *("data", "model", "seed", "classes", "seconds", "grid", "fit", "share", "clock"),
    "threads",
)


def hash_of(settings: Mapping[str, Any], modules: Iterable[str]) -> str:
    """Return a hash of the code of some modules, and of all that the settings name.

    Args:
        settings: with `data`, `model` if it is one's, and `classes`, dotted paths.
        modules: of this package.
    """
    named = {n for what in ("data", "model") for n in names(settings.get(what))}
    homes = {n.rpartition(".")[0] for n in named if "." in n and not n.startswith("torch.")}
    files = sorted({source(path.rpartition(".")[0]) for path in settings["classes"]})
    return code_hash([*modules, *sorted(homes)], files)


def names(config: Any) -> set[str]:
    """Return the names of classes and functions that a config mentions."""
    if isinstance(config, Mapping):
        own = {config[k] for k in ("$class", "$name", "$enum") if isinstance(config.get(k), str)}
        return own.union(*map(names, config.values()))
    return set().union(*map(names, config)) if isinstance(config, list) else set()


def trained(
    settings: Mapping[str, Any], kept: Kept, data: Any, classes: list[Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model, trained now or before, and how its training went."""

    def build() -> Any:
        return assemble(settings["model"], data, classes)

    own = {name: settings[name] for name in HANGS_ON}
    text = json.dumps(own | {"code": hash_of(own, ("bench.fitted",))}, sort_keys=True)
    key = "train-" + hashlib.sha256(text.encode()).hexdigest()[:20]
    place, before = kept.find(key), kept.document(key)
    if place is not None and before is not None:
        with seeded(settings["seed"]):
            model, _ = build()
        model.load_state_dict(read(place / MODEL, CONFIG)[1][WEIGHTS])
        return model.eval(), before["training"]
    how = {k: own[k] for k in ("seed", "share", "clock")} | {"how": own["fit"]}
    done = tuned(build, data.train, data.valid, own["seconds"], own["grid"], **how)
    about = {k: getattr(done, k) for k in ("chosen", "steps", "cut", "seconds", "cpu")}
    about["tried"] = [t | {"valid": str(t["valid"])} for t in done.tried]  # infinite is no JSON
    about["parameters"] = sum(p.numel() for p in done.model.parameters())
    model = done.model.cpu()
    weights = {k: w.clone() for k, w in model.state_dict().items()}  # which may share memory

    def files(place: Path) -> None:
        write(place / MODEL, CONFIG, {"built": settings["model"]}, {WEIGHTS: weights})

    kept.put(key, {"training": about}, files)
    return model.eval(), about
