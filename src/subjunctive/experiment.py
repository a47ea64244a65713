"""An experiment as a text: which data, which model, how it is fitted.

    data:
      $class: data.morpho.MorphoDigits
      digits: 1000
    model:
      $class: models.causal_diffae.CausalDiffAE
      code: 16
    fit:
      steps: 1000

The schema is that of a saved model (`config.py`): `$class` names a class, the other keys are its
arguments. What the data already say need not be said twice: `graph` and `variables` of a model, and
`variable` and `parents` of its mechanisms, are the data's where they are left out.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import subjunctive.data
from subjunctive.config import from_config, to_config
from subjunctive.mechanism import seeded
from subjunctive.train import Fit, fit
from subjunctive.variable import known, nearest

SECTIONS = ("data", "model", "fit")


@dataclass(frozen=True)
class Experiment:
    """Data, a fresh model, and the arguments of `fit`."""

    data: Any
    model: nn.Module
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, **options: Any) -> Fit:
        """Fit the model in place; `options` come before those of the text."""
        given: dict[str, Any] = {"valid": getattr(self.data, "valid", None)}
        return fit(self.model, self.data.train, **(given | self.options | options))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the sections of an experiment's file.

    Raises:
        ValueError: if it is no YAML, or has a section that is none, with the nearest name.
    """
    import yaml

    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), yaml_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no sections; give {', '.join(SECTIONS)}")
    for section, content in config.items():
        if section not in SECTIONS:
            hint = nearest(section, SECTIONS)
            raise ValueError(f"{path}: unknown section {section!r}; there are {SECTIONS}.{hint}")
        if not isinstance(content, dict):
            raise ValueError(f"{path}: the section {section!r} holds no keys")
    return config


def yaml_loader() -> Any:
    """Return a YAML loader that builds plain values, and reads `1e-3` as a number."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `1e-3` as a number, as JSON and people do."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def lines(text: str) -> dict[str, int]:
    """Return the line of every key of a YAML text, `config.section.key` -> 1, 2, ...

    Example:
        >>> lines("fit:\\n  steps: 3\\n")
        {'config.fit': 1, 'config.fit.steps': 2}
    """
    import yaml

    found: dict[str, int] = {}

    def visit(node: Any, at: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = f"{at}.{key.value}"
                found.setdefault(place, key.start_mark.line + 1)
                visit(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                found.setdefault(f"{at}[{i}]", value.start_mark.line + 1)
                visit(value, f"{at}[{i}]")

    visit(yaml.compose(text, yaml_loader()), "config")
    return found


@contextmanager
def located(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error about a key of a YAML file name the line that the key stands on."""
    try:
        yield
    except (ValueError, KeyError) as error:
        text = str(error.args[0]) if error.args else ""
        try:
            where = lines(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml_error()):
            raise error from None
        line = _line(text, where)
        if line is None or f"{path}, line" in text:
            raise
        raise type(error)(f"{path}, line {line}: {text.removeprefix(f'{path}: ')}") from error


def yaml_error() -> type[Exception]:
    """Return what YAML raises for a text that is none."""
    import yaml

    return yaml.YAMLError


def _line(text: str, where: Mapping[str, int]) -> int | None:
    """Return the line of the deepest key that a message names, by its path or quoted within it."""
    named = re.match(r"config[^\s:]*", text)
    at = named[0] if named else "config"
    while at not in where and "." in at:
        at = at[: max(at.rfind("."), at.rfind("["))]
    quoted = [f"{at}.{word}" for word in re.findall(r"'([^']+)'", text)]
    return next((where[q] for q in quoted if q in where), where.get(at))


def read_data(config: Mapping[str, Any], classes: Iterable[Any] = ()) -> Any:
    """Return the data that a config's section `data` describes.

    Raises:
        ValueError: if there is none, or it has not what a model is fitted to.
    """
    if "data" not in config:
        raise ValueError("config: the section 'data' is missing; say `data: {$class: ...}`")
    data = from_config({"data": config["data"]}, classes)["data"]
    lack = [name for name in ("graph", "variables", "train") if not hasattr(data, name)]
    if lack:
        raise ValueError(f"config.data: a {type(data).__name__} has no {lack[0]!r}, so it is none")
    return data


def read_experiment(config: Mapping[str, Any], classes: Iterable[Any] = ()) -> Experiment:
    """Return what a config describes, the model's weights drawn from the seed of `fit`.

    Args:
        config: the sections `data`, `model` and `fit`, as `read_yaml` returns them.
        classes: classes from outside this package that may be named.

    Raises:
        ValueError: naming the key that is wrong and the nearest right one.

    Example:
        >>> mechanism = {"$class": "mechanisms.linear.LinearGaussian"}
        >>> experiment = read_experiment({
        ...     "data": {"$class": "data.tabular.Linear", "graph": "t -> y", "train": 100},
        ...     "model": {"$class": "scm.SCM", "mechanisms": {"t": mechanism, "y": mechanism}},
        ...     "fit": {"steps": 10},
        ... })
        >>> experiment.model.graph.parents("y"), experiment.run(progress=False).steps
        (('t',), 10)
    """
    classes = list(classes)
    options = config.get("fit", {})
    takes = dict(inspect.signature(fit).parameters)
    allowed = [name for name in takes if name not in ("model", "data")]
    for key in options:
        if key not in allowed:
            raise ValueError(
                f"config.fit.{key}: fit has no argument {key!r}; it has "
                f"{', '.join(allowed)}.{nearest(key, allowed)}"
            )
        number = re.search(r"\b(int|float)\b", str(takes[key].annotation))
        if number and isinstance(options[key], str | list | dict):
            raise ValueError(f"config.fit.{key}: {options[key]!r} is no number")
    if "model" not in config:
        raise ValueError("config: the section 'model' is missing; say `model: {$class: ...}`")
    options = from_config({"fit": options}, classes)["fit"]
    data = read_data(config, classes)
    with seeded(options.get("seed", 0)):
        model = from_config({"model": _completed(config["model"], data, classes)}, classes)["model"]
    if not isinstance(model, nn.Module):
        raise ValueError(f"config.model: a {type(model).__name__} is no model")
    return Experiment(data, model, options)


def _completed(model: Mapping[str, Any], data: Any, classes: list[Any]) -> dict[str, Any]:
    """Add what the data know: the graph, the variables, and each mechanism's own and parents."""
    made = dict(model)
    if "$class" not in made:
        raise ValueError("config.model: '$class' is missing; it names the model's class")
    takes = inspect.signature(from_config({"$name": made["$class"]}, classes)).parameters
    variables = {name: to_config(v) for name, v in data.variables.items()}
    if "graph" in takes:
        made.setdefault("graph", {"$graph": str(data.graph)})
    if "variables" in takes:
        made.setdefault("variables", variables)
    mechanisms = made.get("mechanisms")
    if isinstance(mechanisms, dict):
        made["mechanisms"] = whole = {}
        for name, mechanism in mechanisms.items():
            known(name, data.graph.nodes, "config.model.mechanisms")
            own = {"variable": variables[name]}
            own["parents"] = [variables[p] for p in data.graph.parents(name)]
            whole[name] = own | mechanism if isinstance(mechanism, dict) else mechanism
    return made


def named_data(name: str) -> Any:
    """Return the simulator of this name as it comes: "morpho" for `MorphoDigits`.

    Raises:
        ValueError: for a name that begins none's, with those that there are.

    Example:
        >>> type(named_data("linear")).__name__
        'Linear'
    """
    found = {cls.__name__.lower(): cls for cls in _simulators()}
    fits = [key for key in found if key.startswith(name.lower())] if name else []
    key = name.lower() if name.lower() in found else fits[0] if len(fits) == 1 else None
    if key is None:
        hint = nearest(name.lower(), found)
        raise ValueError(f"no data are called {name!r}; there are {', '.join(found)}.{hint}")
    return found[key]()


def _simulators() -> Iterator[type[Any]]:
    """Yield the classes of the room `data` that draw from a seed and need no argument."""
    for info in pkgutil.iter_modules(subjunctive.data.__path__):
        module = importlib.import_module(f"subjunctive.data.{info.name}")
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                takes = inspect.signature(cls).parameters
                if "seed" in takes and all(p.default is not p.empty for p in takes.values()):
                    yield cls
