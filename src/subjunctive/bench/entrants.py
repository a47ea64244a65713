"""What a benchmark builds from a line of YAML: a data set, and a model for it.

A class whose constructor takes `variable` and `parents` is a mechanism: of the picture, where the
data have one, and of every number of a table. The other nodes get what they have elsewhere, a
spline flow, Gumbel-max or inverse CDF. A class that takes `graph` and `variables` is a whole model.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from subjunctive.config import from_config, to_config
from subjunctive.mechanisms import Categorical, ConditionalFlow, Ordinal
from subjunctive.scm import SCM
from subjunctive.train import Objective
from subjunctive.variable import nearest

USUAL = {"continuous": ConditionalFlow, "categorical": Categorical, "ordinal": Ordinal}


class Levels:
    """A data set whose pictures, and whose true answers, have so many grey levels.

    Args:
        data: a data set with one picture, from 0 to 1.
        levels: how many; 256 for 8 bits.
    """

    def __init__(self, data: Any, levels: int = 256) -> None:
        self.data, self.levels = data, levels
        image = picture(data)
        if image is None:
            raise ValueError(f"a {type(data).__name__} has no picture whose levels could be few")
        for part in (data.train, data.valid, data.test):
            part.values[image] = self.rounded(part.values[image])
        oracle = getattr(data, "oracle", None)
        if oracle is not None:
            true = oracle.equations[image]
            oracle.equations[image] = lambda u, parents: self.rounded(true(u, parents))

    def rounded(self, pixels: Tensor) -> Tensor:
        """Return pixels on the levels."""
        return (pixels * (self.levels - 1)).round() / (self.levels - 1)

    def __getattr__(self, name: str) -> Any:
        """Return what the data set has."""
        return getattr(self.__dict__["data"], name)


def imported(paths: Iterable[str]) -> list[Any]:
    """Return the classes of dotted paths, which a user has asked to be imported.

    Raises:
        ValueError: if a module or class is not there.
    """
    found = []
    for path in paths:
        module, _, name = str(path).rpartition(".")
        if not module:
            raise ValueError(f"config.classes: {path!r} is no dotted path; say module.{path}")
        try:
            inside = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"config.classes: {path!r} cannot be imported: {error}. Its folder must be on "
                "PYTHONPATH; `python -m subjunctive` looks in the current one, too"
            ) from error
        if not inspect.isclass(getattr(inside, name, None)):
            hint = nearest(name, [k for k, v in vars(inside).items() if inspect.isclass(v)])
            raise ValueError(f"config.classes: {module} has no class {name!r}.{hint}")
        found.append(getattr(inside, name))
    return found


def load(config: Mapping[str, Any], seed: int, classes: Iterable[Any] = ()) -> Any:
    """Return a data set, drawn anew for the seed where its class takes one.

    Raises:
        ValueError: if it has not what a model is fitted to.
    """
    classes, quiet = list(classes), {"seed": seed, "progress": False, "jobs": 1}
    data = from_config({"data": completed(config, quiet, classes)}, classes)["data"]
    lack = [n for n in ("graph", "variables", "train", "valid", "test") if not hasattr(data, n)]
    if lack:
        raise ValueError(f"a {type(data).__name__} has no {lack[0]!r}, so it is no data set")
    return data


def picture(data: Any) -> str | None:
    """Return the node that is a picture, the last if there are several."""
    found = [n for n in data.graph.order if len(data.variables[n].shape) == 3]
    return found[-1] if found else None


def assemble(
    config: Mapping[str, Any], data: Any, classes: Iterable[Any] = ()
) -> tuple[nn.Module, Objective | None]:
    """Return a fresh model of the data's nodes, and what it minimises where that is not its loss.

    Example:
        >>> from subjunctive import Nonlinear
        >>> data = Nonlinear("mixed", train=20)
        >>> model, _ = assemble({"$class": "mechanisms.linear.LinearGaussian"}, data)
        >>> [type(m).__name__ for m in model.mechanisms.values()]
        ['LinearGaussian', 'Categorical', 'Ordinal', 'LinearGaussian', 'LinearGaussian']
    """
    classes = list(classes)
    own = config.get("model", config)
    graph, v = data.graph, data.variables
    takes = inspect.signature(from_config({"$name": own["$class"]}, classes)).parameters
    built: Any
    if {"variable", "parents"} <= set(takes):
        image, mechanisms = picture(data), {}
        for n in graph.nodes:
            parents = [v[p] for p in graph.parents(n)]
            chosen = n == image if image else not v[n].discrete
            given = {"variable": to_config(v[n]), "parents": [to_config(p) for p in parents]}
            mechanisms[n] = (
                from_config(completed(own, given, classes), classes)
                if chosen
                else USUAL[v[n].kind](v[n], parents)
            )
        built = SCM(graph, mechanisms)
    else:
        given = {"graph": {"$graph": str(graph)}}
        given |= {"variables": {n: to_config(x) for n, x in v.items()}}
        built = from_config(completed(own, given, classes), classes)
    if not isinstance(built, nn.Module):
        raise ValueError(f"a {type(built).__name__} is no model: fit trains an nn.Module")
    objective = config.get("objective")
    return built, None if objective is None else from_config(objective, classes)


def completed(config: Any, given: Mapping[str, Any], classes: list[Any]) -> Any:
    """Fill in what the data know, wherever a class takes it and the text leaves it out."""
    if isinstance(config, list):
        return [completed(value, given, classes) for value in config]
    if not isinstance(config, Mapping):
        return config
    whole = {k: completed(value, given, classes) for k, value in config.items()}
    if "$class" in whole:
        takes = inspect.signature(from_config({"$name": whole["$class"]}, classes)).parameters
        whole = {k: value for k, value in given.items() if k in takes} | whole
    return whole
