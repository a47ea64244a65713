"""Objects as JSON values and back: the schema that saved models and YAML configs share.

Every constructor keeps each argument under its own name, so the tree of objects is read back from
the signatures:

    {"$class": "mechanisms.linear.LinearGaussian", "variable": {...}, ...}   an object
    {"$ref": 3}, where an object before it has "$id": 3                      the same object again
    {"$name": "torch.nn.SiLU"}                                               a class or function
    {"$graph": "t -> i; t -> x"}, {"$tuple": [...]}, {"$dict": [[key, value], ...]},
    {"$tensor": [...], "dtype": "float32"}, {"$array": [...], "dtype": "int64"},
    {"$float": "inf"}, {"$dtype": "float32"}, {"$enum": "module.Class", "value": "MEMBER"}

A name is relative to this package, or is in `torch.nn` or `torch.distributions`, or is that of a
class or function given as `classes=`; whatever a text says, nothing else is imported or called. A
saved model is built from the rooms that models are made of alone: it cannot read data or train.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributions, nn

import subjunctive
from subjunctive.checkpoint import StoreError
from subjunctive.graph import Graph
from subjunctive.variable import nearest

DTYPES: dict[str, torch.dtype] = {
    str(d).removeprefix("torch."): d
    for d in vars(torch).values()
    if isinstance(d, torch.dtype) and not d.is_complex
}
PARTS: tuple[str, ...] = ("completion", "diffusion", "encoders", "graph", "intervention", "scm")
PARTS += ("mechanism", "mechanisms", "models", "nn", "variable")
_FACES = ("__main__", "cli", "app", "plot", "demo", "experiment")
_DISTRIBUTIONS = (
    *("Normal", "Uniform", "Laplace", "Gumbel", "Exponential", "Gamma", "Beta", "LogNormal"),
    *("StudentT", "Poisson", "Bernoulli", "Categorical", "Independent"),
)
_WRONG: tuple[type[Exception], ...] = (TypeError, ValueError, LookupError, ArithmeticError)
_WRONG += (AttributeError, RuntimeError, MemoryError)  # the last by a forged shape
_TAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("$ref", "$name", "$graph", "$tuple", "$dict", "$float", "$dtype"), ()),
    "$tensor": ("dtype", "shape"),
    "$array": ("dtype", "shape"),
    "$enum": ("value",),
    "$class": (),
}
_SHORT = 64  # a longer tensor goes to the weights' file, where there is one


def to_config(value: Any) -> Any:
    """Return the tree of an object as JSON values, to be read by `from_config`.

    Raises:
        StoreError: naming the argument that cannot be written.

    Example:
        >>> from subjunctive.variable import Variable
        >>> config = to_config(Variable("t", unit="px"))
        >>> config["$class"], config["name"], from_config(config) == Variable("t", unit="px")
        ('variable.Variable', 't', True)
    """
    return Writer(None).write(value, "config")


def from_config(config: Any, classes: Iterable[Any] = ()) -> Any:
    """Build what a config describes; only known classes are built, with arguments they have.

    Args:
        config: what `to_config` returned, or what a YAML file of the same schema holds.
        classes: classes and functions from outside this package that may be named.

    Raises:
        StoreError: naming the key that is wrong and the nearest right one.

    Example:
        >>> from_config({"$class": "variable.Variable", "name": "t", "unti": "px"})
        Traceback (most recent call last):
        subjunctive.checkpoint.StoreError: config.unti: Variable has no argument 'unti'; it has ...
    """
    return Reader(classes, {}).root(config, "config")


# Names ------------------------------------------------------------------------------------------


@cache
def _modules() -> frozenset[str]:
    """Return the names of this package's modules, from a walk over its files, faces aside."""
    found = pkgutil.walk_packages(subjunctive.__path__, "subjunctive.")
    return frozenset(m.name for m in found if m.name.split(".")[1] not in _FACES)


def _named(prefix: str) -> dict[str, Any]:
    """Return what names with this prefix may stand for; nothing for a prefix that is unknown."""
    if prefix == "torch.nn":
        return {k: v for k, v in vars(nn).items() if _is_a(v, nn.Module)}
    if prefix == "torch.distributions":
        return {k: getattr(distributions, k) for k in _DISTRIBUTIONS}
    if f"subjunctive.{prefix}" not in _modules():
        return {}
    module = importlib.import_module(f"subjunctive.{prefix}")
    own = (v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__)
    return {v.__name__: v for v in own if isinstance(v, type | FunctionType)}


def _is_a(value: Any, kind: type) -> bool:
    return inspect.isclass(value) and issubclass(value, kind)


def _name_of(value: Any, at: str) -> str:
    """Return the name that a class or function is written under."""
    home, last = str(value.__module__), str(value.__name__)
    for prefix in ("torch.nn", "torch.distributions", home.removeprefix("subjunctive.")):
        if _named(prefix).get(last) is value:
            return f"{prefix}.{last}"
    if home.split(".")[0] in ("torch", "subjunctive", "builtins") or not last.isidentifier():
        raise StoreError(
            f"{at}: {home}.{value.__qualname__} has no name to be found under again; use a class "
            "or function that stands at the top of a module of your own or of subjunctive"
        )
    return last


def _resolve(
    name: Any, classes: Mapping[str, Any], at: str, rooms: tuple[str, ...] | None = None
) -> Any:
    """Return the class or function of a name, from those known alone; of these rooms if given."""
    if not isinstance(name, str):
        raise StoreError(f"{at}: a name is a text, got {name!r}")
    prefix, _, last = name.rpartition(".")
    ours = f"subjunctive.{prefix}" in _modules()
    if ours and rooms is not None and prefix.split(".")[0] not in rooms:
        raise StoreError(
            f"{at}: a saved model may not name {name!r}: it is made of parts of "
            f"{', '.join(rooms)}, torch.nn and torch.distributions, and of your classes=[...]"
        )
    options = _named(prefix) if prefix else classes
    if last in options:
        return options[last]
    full = [f"{prefix}.{k}" if prefix else k for k in options]
    modules = [m.removeprefix("subjunctive.") for m in _modules()]
    hint = nearest(name, full) if full else nearest(prefix or name, modules)
    raise StoreError(
        f"{at}: {name!r} is no class or function of subjunctive, torch.nn or torch.distributions "
        f"that may be named; pass your own as classes=[...].{hint}"
    )


# Writing ----------------------------------------------------------------------------------------


def _arguments(value: Any, at: str) -> dict[str, Any]:
    """Read the constructor's arguments back from the attributes of their names, or `given`."""
    kind, given = type(value), {}
    if kind is nn.Sequential:
        return {"args": list(value)}
    kept = {} if isinstance(value, nn.Module) else getattr(value, "given", {})
    foreign = getattr(kind.__init__, "__module__", "").startswith("torch.")
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError as error:
        raise StoreError(f"{at}: a {kind.__name__} cannot be written by its signature") from error
    for name, parameter in parameters.items():
        if foreign and name in ("device", "dtype", "validate_args"):
            continue
        if foreign and name in ("probs", "logits") and vars(value).get(name) is not value._param:
            continue
        attribute = "base_dist" if foreign and name == "base_distribution" else name
        if name in kept:
            given[name] = kept[name]
        elif hasattr(value, attribute):
            given[name] = getattr(value, attribute)
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise StoreError(
                f"{at}: {kind.__name__} keeps no attribute {name!r}; every constructor must keep "
                "each argument under its own name, or its class have to_config and from_config"
            )
    if foreign and "bias" in given:
        given["bias"] = given["bias"] is not None and given["bias"] is not False
    return given


class Writer:
    """Turns objects into JSON values; an object that is met again becomes a reference.

    Args:
        tensors: where long tensors go, by name; None to write all of them inline.
    """

    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self.tensors = tensors
        self.outside: dict[str, Any] = {}
        self._met: dict[int, tuple[Any, dict[str, Any] | None]] = {}
        self._shared = 0

    def write(self, value: Any, at: str) -> Any:
        """Return the JSON value of `value`, which stands at the key path `at`."""
        if isinstance(value, Enum):
            return {"$enum": self._name(type(value), at), "value": value.name}
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if isinstance(value, float | np.number | np.bool_):
            number = value.item() if isinstance(value, np.generic) else float(value)
            special = isinstance(number, float) and not np.isfinite(number)
            return {"$float": str(number)} if special else number
        if isinstance(value, torch.dtype):
            return {"$dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Tensor | np.ndarray):
            return self._numbers(value, at)
        if isinstance(value, type | FunctionType):
            return {"$name": self._name(value, at)}
        if isinstance(value, dict | nn.ModuleDict):
            return self._mapping(value, at)
        if type(value) in (list, nn.ModuleList):
            return [self.write(v, f"{at}[{i}]") for i, v in enumerate(value)]
        if type(value) in (tuple, torch.Size):
            return {"$tuple": [self.write(v, f"{at}[{i}]") for i, v in enumerate(value)]}
        if isinstance(value, Graph):
            return {"$graph": str(value)}
        return self._object(value, at)

    def _name(self, value: Any, at: str) -> str:
        name = _name_of(value, at)
        if "." not in name and self.outside.setdefault(name, value) is not value:
            raise StoreError(f"{at}: two classes or functions are called {name!r}; rename one")
        return name

    def _mapping(self, value: Any, at: str) -> dict[str, Any]:
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: self.write(v, f"{at}.{k}") for k, v in value.items()}
        pairs = [[self.write(k, at), self.write(v, f"{at}[{k!r}]")] for k, v in value.items()]
        return {"$dict": pairs}

    def _numbers(self, value: Any, at: str) -> dict[str, Any]:
        tag = "$tensor" if isinstance(value, Tensor) else "$array"
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise StoreError(f"{at}: cannot write an array of {dtype}; give numbers")
        value = value.detach().cpu() if isinstance(value, Tensor) else value
        if self.tensors is not None and np.prod(value.shape) > _SHORT:
            self.tensors[f"${at}"] = torch.as_tensor(value)
            return {tag: f"${at}", "dtype": dtype}
        return {tag: self.write(value.tolist(), at), "dtype": dtype, "shape": list(value.shape)}

    def _object(self, value: Any, at: str) -> dict[str, Any]:
        if id(value) in self._met:
            body = self._met[id(value)][1]
            if body is None:
                raise StoreError(f"{at}: this {type(value).__name__} is made of itself")
            if "$id" not in body:
                self._shared += 1
                body["$id"] = self._shared
            return {"$ref": body["$id"]}
        kind = type(value)
        name = self._name(kind, at)
        self._met[id(value)] = value, None  # keeps the object alive, and with it its id
        own = hasattr(kind, "to_config") and hasattr(kind, "from_config")
        given = value.to_config() if own else _arguments(value, at)
        body = {"$class": name} | {k: self.write(v, f"{at}.{k}") for k, v in given.items()}
        self._met[id(value)] = value, body
        return body


# Reading ----------------------------------------------------------------------------------------


class Reader:
    """Turns JSON values into objects of known classes.

    Args:
        classes: classes and functions from outside this package that may be named.
        tensors: the long tensors, by name.
        rooms: the parts of this package that may be named; None for all but its faces.
    """

    def __init__(
        self,
        classes: Iterable[Any],
        tensors: Mapping[str, Tensor],
        rooms: tuple[str, ...] | None = None,
    ) -> None:
        self.classes = {c.__name__: c for c in classes}
        self.tensors, self.rooms = tensors, rooms
        self._shared: dict[Any, Any] = {}

    def root(self, value: Any, at: str) -> Any:
        """Return what a JSON value describes; every error is a `StoreError` that says where."""
        try:
            return self.read(value, at)
        except RecursionError as error:
            raise StoreError(f"{at} is nested too deeply") from error

    def read(self, value: Any, at: str) -> Any:
        """Return what a part describes, which stands at the key path `at`."""
        if isinstance(value, list):
            return [self.read(v, f"{at}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, dict):
            return value
        tags = [k for k in value if isinstance(k, str) and k.startswith("$")]
        if not tags:
            return {k: self.read(v, f"{at}.{k}") for k, v in value.items()}
        tag = next((k for k in tags if k in _TAGS), None)
        wrong = [k for k in tags if k != tag and (k != "$id" or tag != "$class")]
        if tag not in (None, "$class"):
            wrong += [k for k in value if k not in (*tags, *_TAGS[tag])]
        if wrong or tag is None:
            raise StoreError(f"{at}: unknown key {wrong[0]!r}.{nearest(wrong[0], _TAGS)}")
        try:
            return getattr(self, f"_{tag[1:]}")(value, at)
        except (StoreError, RecursionError):
            raise
        except _WRONG as error:
            what = value[tag] if tag == "$class" else f"this {tag}"
            raise StoreError(f"{at}: {what} cannot be built: {error}") from error

    def _resolve(self, name: Any, at: str) -> Any:
        return _resolve(name, self.classes, at, self.rooms)

    def _class(self, value: dict[str, Any], at: str) -> Any:
        cls: Any = self._resolve(value["$class"], at)
        if not inspect.isclass(cls):
            raise StoreError(f"{at}: {value['$class']!r} is a function; name it by '$name'")
        own = hasattr(cls, "to_config") and hasattr(cls, "from_config")
        signature = inspect.signature(cls)
        named = {} if own else signature.parameters
        for key in () if own else set(value) - {"$class", "$id", *named}:
            raise StoreError(
                f"{at}.{key}: {cls.__name__} has no argument {key!r}; it has "
                f"{', '.join(named) or 'none'}.{nearest(key, named)}"
            )
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for name, p in named.items():
            if p.default is p.empty and p.kind not in optional and name not in value:
                raise StoreError(f"{at}: {cls.__name__} needs the argument {name!r}")
        given = {k: self.read(v, f"{at}.{k}") for k, v in value.items() if k[0] != "$"}
        if own:
            made = getattr(cls, "from_config")(given)  # noqa: B009
        else:
            bound = signature.bind_partial()
            bound.arguments.update({k: given[k] for k in named if k in given})
            made = cls(*bound.args, **bound.kwargs)
        if "$id" in value and self._shared.setdefault(value["$id"], made) is not made:
            raise StoreError(f"{at}: two objects have the $id {value['$id']!r}")
        return made

    def _ref(self, value: dict[str, Any], at: str) -> Any:
        if value["$ref"] not in self._shared:
            raise StoreError(f"{at}: no object before this has the $id {value['$ref']!r}")
        return self._shared[value["$ref"]]

    def _name(self, value: dict[str, Any], at: str) -> Any:
        return self._resolve(value["$name"], at)

    def _graph(self, value: dict[str, Any], at: str) -> Graph:
        return Graph.parse(value["$graph"])

    def _tuple(self, value: dict[str, Any], at: str) -> tuple[Any, ...]:
        return tuple(self.read(v, f"{at}[{i}]") for i, v in enumerate(value["$tuple"]))

    def _dict(self, value: dict[str, Any], at: str) -> dict[Any, Any]:
        return {self.read(k, at): self.read(v, f"{at}[{k!r}]") for k, v in value["$dict"]}

    def _tensor(self, value: dict[str, Any], at: str) -> Tensor:
        if isinstance(value["$tensor"], str):
            return self.tensors[value["$tensor"]]
        made = torch.tensor(self.read(value["$tensor"], at), dtype=DTYPES[value["dtype"]])
        return made.reshape(value.get("shape", made.shape))

    def _array(self, value: dict[str, Any], at: str) -> Any:
        if isinstance(value["$array"], str):
            return self.tensors[value["$array"]].numpy()
        DTYPES[value["dtype"]]
        made = np.array(self.read(value["$array"], at), dtype=value["dtype"])
        return made.reshape(value.get("shape", made.shape))

    def _float(self, value: dict[str, Any], at: str) -> float:
        return float(value["$float"])

    def _dtype(self, value: dict[str, Any], at: str) -> torch.dtype:
        return DTYPES[value["$dtype"]]

    def _enum(self, value: dict[str, Any], at: str) -> Enum:
        cls = self._resolve(value["$enum"], at)
        if not _is_a(cls, Enum):
            raise StoreError(f"{at}: {value['$enum']!r} is no enumeration")
        member: Enum = cls[value["value"]]
        return member
