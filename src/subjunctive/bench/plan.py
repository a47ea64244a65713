"""What a benchmark is to do, read from YAML: tracks of models and data sets, and one budget.

    preset: quick                      what follows is laid over it; a null takes an entry away
    seconds: 120                       of training a cell, the choice of its setting included
    grid: {lr: [0.0015, 0.004]}        what is chosen on validation rows, the same for every cell
    seeds: [0, 1, 2]
    classes: [mine.Mine]               your own classes, which are imported because you say so
    tracks:
      images:
        data: {digits: {$class: data.morpho.MorphoDigits}}
        models: {mine: {$class: Mine}}

Every model of a track meets every data set of it. A cell is one model, data set and seed; what all
models need of a data set (the network that reads its pictures, the trivial answers) is a cell, too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from subjunctive.bench.budget import CLOCKS
from subjunctive.bench.entrants import imported
from subjunctive.bench.fitted import hash_of, names
from subjunctive.config import from_config
from subjunctive.experiment import yaml_error, yaml_loader
from subjunctive.metrics.predictors import fit_predictor
from subjunctive.metrics.scores import METRICS
from subjunctive.train import fit
from subjunctive.variable import nearest

PRESETS = Path(__file__).parent
KNOWN = {"graph", "variables", "variable", "parents", "seed", "progress", "jobs"}  # filled in
FIXED = {
    *("model", "data", "objective", "steps", "epochs", "seed", "progress", "callbacks", "valid"),
    *("valid_every", "patience", "directory", "save_every", "resume", "trackers"),
}


@dataclass(frozen=True)
class Cell:
    """One process's work.

    Args:
        track, data, seed: of which.
        model: its name; empty for the cell that all models of a data set need.
        settings: all that its result hangs on, a hash of the code that it needs among them.
        limit: seconds after which it is ended.
        needs: the key of the data set's own cell; empty for that one.
    """

    track: str
    data: str
    seed: int
    model: str
    settings: Mapping[str, Any]
    limit: float
    needs: str = ""

    @property
    def key(self) -> str:
        """A hash of the settings."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def name(self) -> str:
        """What the cell is called in lines for people."""
        return f"{self.model or 'the data'}, {self.data}, seed {self.seed}"


@dataclass(frozen=True)
class Track:
    """Models, the data sets that all of them meet, and what differs from the plan's settings."""

    data: Mapping[str, Any]
    models: Mapping[str, Any]
    budget: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A benchmark's settings.

    Args:
        tracks: name -> models and data sets; a track may have a budget of its own.
        seconds: of training a cell. limit: of a cell in all; four budgets and half an hour if None.
        grid, fit: arguments of `fit` to choose from, and fixed ones. share: of the time, to choose.
        clock: `wall`, or `cpu` on a machine that others use. threads: of each cell.
        seeds: of data, weights and draws, one cell each.
        rows, few, metrics: of `evaluate`. reader: arguments of `fit_predictor`.
        pictures: held-out rows whose counterfactual pictures are kept.
        classes: dotted paths of classes from outside this package.
    """

    tracks: Mapping[str, Track]
    seconds: float = 120.0
    limit: float | None = None
    grid: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {"lr": [1.5e-3, 4e-3]})
    fit: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 64, "ema": 0.99})
    share: float = 0.2
    clock: str = "wall"
    threads: int = 1
    seeds: Sequence[int] = (0,)
    rows: int = 300
    few: int = 100
    metrics: Sequence[str] | None = None
    reader: Mapping[str, Any] = field(default_factory=lambda: {"steps": 1000})
    pictures: int = 4
    classes: Sequence[str] = ()

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, those of the data sets first."""
        shared, own = [], []
        for name, track in self.tracks.items():
            for data, config in track.data.items():
                for seed in self.seeds:
                    first = self._cell(name, data, seed, "", {"data": config})
                    shared.append(first)
                    for model, built in track.models.items():
                        both = {"data": config, "model": built}
                        own.append(self._cell(name, data, seed, model, both, first.key))
        return shared + own

    @property
    def hours(self) -> float:
        """Core-hours of training; judging adds about a minute of a core a cell of pictures."""
        took = [c.settings["seconds"] * self.threads for c in self.cells if c.model]
        return sum(took) / 3600

    def _cell(
        self, track: str, data: str, seed: int, model: str, what: dict[str, Any], needs: str = ""
    ) -> Cell:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own |= self.tracks[track].budget
        kept = ["rows", "few", "metrics", "reader", "threads"]
        if model:
            kept += ["seconds", "grid", "fit", "share", "clock", "pictures"]
        paths = {path.rpartition(".")[2]: path for path in self.classes}
        used = sorted(paths[n] for n in names(what) if n in paths)
        told = what | {n: own[n] for n in kept} | {"seed": seed, "classes": used, "needs": needs}
        told["code"] = hash_of(told, ("bench.cell",))
        limit = own["limit"] or 4 * own["seconds"] + 1800
        return Cell(track, data, seed, model, json.loads(json.dumps(told)), limit, needs)


def read_plan(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    classes: Sequence[str | type] = (),
    **options: Any,
) -> Plan:
    """Return the plan that a YAML file or a mapping describes.

    Args:
        config: the file, or what it would hold; laid over a preset where it names one.
        preset: of this package, `quick` or `full`; `quick` if there is neither.
        classes: from outside this package that may be named: dotted paths, or classes.
        options: settings that come before the file's; None leaves them.

    Raises:
        ValueError: naming the key that is wrong and the nearest right one.

    Example:
        >>> plan = read_plan(preset="quick", seeds=[0, 1])
        >>> len([cell for cell in plan.cells if cell.model])
        12
    """
    given = _yaml(config) if isinstance(config, str | Path) else dict(config or {})
    preset = preset or given.get("preset") or (None if "tracks" in given else "quick")
    base = _preset(preset) if preset else {}
    there = [f.name for f in fields(Plan)]
    for key in given:
        if key not in (*there, "preset"):
            raise ValueError(f"config.{key}: there is no setting {key!r}; there are "
                             f"{', '.join(there)}.{nearest(key, there)}")  # fmt: skip
    whole = base | {k: v for k, v in given.items() if k not in ("tracks", "preset")}
    whole["tracks"] = _laid(base.get("tracks", {}), given.get("tracks", {}), 3)
    whole |= {k: v for k, v in options.items() if v is not None}
    whole["classes"] = [*whole.get("classes", ()), *map(_path, classes)]
    found = imported(whole["classes"])
    _check(whole)
    whole["tracks"] = {n: _track(n, part, found) for n, part in whole["tracks"].items()}
    return Plan(**whole)


def _path(cls: str | type) -> str:
    if isinstance(cls, str):
        return cls
    if cls.__module__ == "__main__" or "." in cls.__qualname__:
        raise ValueError(
            f"{cls.__qualname__} is defined in {cls.__module__}: a cell, which is a process of its "
            "own, cannot import it; put it at the top of a module (a file) of yours"
        )
    return f"{cls.__module__}.{cls.__name__}"


def _yaml(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), yaml_loader())
    except (yaml_error(), UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings; `preset: quick` is the least")
    return found


def _preset(name: str) -> dict[str, Any]:
    there = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    if name not in there:
        raise ValueError(f"config.preset: there is no preset {name!r}; there are "
                         f"{', '.join(there)}.{nearest(str(name), there)}")  # fmt: skip
    return _yaml(PRESETS / f"{name}.yaml")


def _laid(base: Any, above: Any, depth: int) -> Any:
    """Lay one mapping over another, so many levels deep; None takes an entry away."""
    if not depth or not isinstance(base, Mapping) or not isinstance(above, Mapping):
        return above
    both = {k: _laid(base.get(k), above[k], depth - 1) if k in above else base[k]
            for k in (*base, *(k for k in above if k not in base))}  # fmt: skip
    return {k: v for k, v in both.items() if v is not None}


def _check(whole: Mapping[str, Any], at: str = "config") -> None:
    """Refuse numbers out of range, and arguments and metrics that there are not."""
    for name, least in (("seconds", 0), ("limit", 0), ("share", 0), ("rows", 9), ("few", 1),
                        ("threads", 0), ("pictures", -1)):  # fmt: skip
        value = whole.get(name)
        if value is not None and not (isinstance(value, int | float) and value > least):
            raise ValueError(f"{at}.{name}: a number above {least}, got {value!r}")
    if whole.get("share", 0.2) >= 1:
        raise ValueError(f"{at}.share: a part of the time, below 1, got {whole['share']!r}")
    choices = {"clock": [whole.get("clock", "wall")], "metrics": whole.get("metrics") or []}
    for name, there in (("clock", CLOCKS), ("metrics", METRICS)):
        _known(choices[name], there, f"{at}.{name}")
    free = [n for n in inspect.signature(fit).parameters if n not in FIXED]
    for name in ("grid", "fit"):
        _known(whole.get(name, {}), free, f"{at}.{name}")
    takes = [n for n in inspect.signature(fit_predictor).parameters][3:]
    _known(whole.get("reader", {}), takes, f"{at}.reader")
    for name, values in whole.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{at}.grid.{name}: a list of values to choose from, got {values!r}")
    seeds = whole.get("seeds", [0])
    if not isinstance(seeds, Sequence) or not seeds or not all(type(s) is int for s in seeds):
        raise ValueError(f"{at}.seeds: a list of whole numbers, got {seeds!r}")


def _known(names: Any, there: Iterable[str], at: str) -> None:
    there = list(there)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{at}: several are asked for, got {names!r}")
    for name in names:
        if name not in there:
            raise ValueError(f"{at}: there is no {name!r}; there are {', '.join(there)}."
                             f"{nearest(str(name), there)}")  # fmt: skip


def _track(name: str, part: Any, classes: list[Any]) -> Track:
    at = f"config.tracks.{name}"
    parts = ("data", "models", "seconds", "limit", "grid", "fit", "share")
    if not isinstance(part, Mapping) or not part.get("data") or not part.get("models"):
        raise ValueError(f"{at}: a track has `data` and `models`, each name: {{$class: ...}}; "
                         "to add to a preset's, say `preset: quick`, too")  # fmt: skip
    _known(part, parts, at)
    budget = {k: v for k, v in part.items() if k not in ("data", "models")}
    _check(budget, at)
    for kind in ("data", "models"):
        for entry, config in part[kind].items():
            whole = isinstance(config, Mapping) and "$class" in config
            if not whole and not (kind == "models" and _with_objective(config)):
                raise ValueError(f"{at}.{kind}.{entry}: say which class, {{$class: ...}}")
            for key, piece in {"": config}.items() if whole else config.items():
                _check_class(piece, classes, f"{at}.{kind}.{entry}{'.' * bool(key)}{key}")
    return Track(part["data"], part["models"], budget)


def _with_objective(config: Any) -> bool:
    return isinstance(config, Mapping) and set(config) == {"model", "objective"}


def _check_class(config: Any, classes: list[Any], at: str) -> None:
    """Refuse a class that there is not, and arguments that it has not or that it lacks."""
    if isinstance(config, list):
        for i, value in enumerate(config):
            _check_class(value, classes, f"{at}[{i}]")
    if not isinstance(config, Mapping):
        return
    if "$class" in config:
        try:
            cls = from_config({"$name": config["$class"]}, classes)
        except ValueError as error:
            raise ValueError(f"{at}.$class:{str(error).removeprefix('config:')}") from error
        takes = inspect.signature(cls).parameters
        for key in config:
            if not key.startswith("$") and key not in takes:
                raise ValueError(f"{at}.{key}: {cls.__name__} has no argument {key!r}; it has "
                                 f"{', '.join(takes) or 'none'}.{nearest(key, takes)}")  # fmt: skip
        for key, p in takes.items():
            asked = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if asked and key not in config and key not in KNOWN:
                raise ValueError(f"{at}: {cls.__name__} needs the argument {key!r}")
    for key, value in config.items():
        _check_class(value, classes, f"{at}.{key}")
