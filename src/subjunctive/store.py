"""A model on disk: safetensors for the weights, JSON for the rest; never pickle.

    directory/
      config.json           the tree of objects (see `config.py`), what shares memory, the dtypes,
                            the package's version, and checksums
      model.safetensors     the state of the model, a shared tensor once

A model that was loaded answers as the one that was saved, to the last bit.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from subjunctive.checkpoint import StoreError as StoreError
from subjunctive.checkpoint import read, write
from subjunctive.config import DTYPES, PARTS, Reader, Writer
from subjunctive.config import from_config as from_config
from subjunctive.config import to_config as to_config
from subjunctive.mechanism import seeded
from subjunctive.variable import nearest

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FLOATS = {name for name, dtype in DTYPES.items() if dtype.is_floating_point}


def save(model: nn.Module, directory: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a model as `config.json` and `model.safetensors`, atomically.

    The model is rebuilt from what would be written before anything is written, so that what can be
    saved can be loaded.

    Args:
        model: an SCM or any module whose constructors keep each argument under its own name.
        directory: where; one that is there makes way only if `overwrite` is true and it holds a
            saved model and nothing else.

    Raises:
        StoreError: if an argument cannot be written, or something is in the way.

    Example:
        >>> import tempfile
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.variable import Variable
        >>> with tempfile.TemporaryDirectory() as place:
        ...     save(LinearGaussian(Variable("t", loc=2.0)), f"{place}/model")
        ...     load(f"{place}/model").variable.loc
        2.0
    """
    if not isinstance(model, nn.Module):
        raise StoreError(f"save() writes an nn.Module, got a {type(model).__name__}")
    _may_write(Path(directory), overwrite)
    tensors: dict[str, Tensor] = {}
    writer = Writer(tensors)
    document = {
        "kind": "model",
        "package": version("subjunctive"),
        "model": writer.write(model, "model"),
        "dtypes": _dtypes(model),
        "aliases": {},
    }
    first: dict[Any, str] = {}
    for name, tensor in _state(model).items():
        known = first.setdefault(_memory(tensor), name)
        if known == name:
            tensors[name] = tensor
        else:
            document["aliases"][name] = known
    _rebuild(document, tensors, writer.outside.values(), f"this {type(model).__name__}")
    write(directory, CONFIG, document, {WEIGHTS: tensors}, replace=overwrite)


def load(directory: str | os.PathLike[str], classes: Iterable[Any] = ()) -> nn.Module:
    """Return the model that `save` wrote, on the CPU and in evaluation mode.

    Args:
        directory: where `save` put it.
        classes: classes and functions from outside this package that the model is made of; those
            of this package, `torch.nn` and `torch.distributions` are known. No code is ever read
            from a file.

    Raises:
        StoreError: if the directory is missing, damaged, foreign or of another version; names the
            file and what to do.
    """
    document, files = read(directory, CONFIG)
    tables = [document.get("dtypes"), document.get("aliases")]
    sound = all(isinstance(t, dict) and all(isinstance(v, str) for v in t.values()) for t in tables)
    sound = sound and {*document["dtypes"].values()} <= _FLOATS and "" in document["dtypes"]
    sound = sound and isinstance(document.get("package"), str)
    if document.get("kind") != "model" or set(files) != {WEIGHTS} or not sound:
        raise StoreError(f"{Path(directory) / CONFIG} does not describe a saved model")
    return _rebuild(document, files[WEIGHTS], classes, str(directory)).eval()


def _may_write(place: Path, overwrite: bool) -> None:
    if not place.exists():
        return
    inside = sorted(p.name for p in place.iterdir()) if place.is_dir() else ["a file"]
    if inside != sorted((CONFIG, WEIGHTS)):
        raise StoreError(
            f"{place} exists and is no saved model (in it: {', '.join(inside[:5]) or 'nothing'}); "
            "it is left alone: choose another directory"
        )
    if not overwrite:
        raise StoreError(f"{place} holds a model already; pass overwrite=True to replace it")


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise StoreError(
                f"{name!r} in the state of {type(model).__name__} is a {type(value).__name__}; "
                "only tensors can be saved: make it an argument of the constructor"
            )
    return state


def _memory(tensor: Tensor) -> Any:
    """Return what all names of one tensor have in common, and of it alone."""
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for named in (model.named_parameters, model.named_buffers):
        yield from ((n, t) for n, t in named(remove_duplicate=False) if t.is_floating_point())


def _dtypes(model: nn.Module) -> dict[str, str]:
    """Return the commonest floating dtype under "", and by name what differs from it."""
    dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in _floats(model)}
    common = Counter(dtypes.values()).most_common(1)[0][0] if dtypes else "float32"
    return {"": common, **{n: d for n, d in dtypes.items() if d != common}}


def _rebuild(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: Iterable[Any], where: str
) -> nn.Module:
    """Build the model of a config and fill in its weights: all of them and no other."""
    with seeded(0):
        model = Reader(classes, tensors, PARTS).root(document.get("model"), "model")
    if not isinstance(model, nn.Module):
        raise StoreError(f"{where} describes a {type(model).__name__}, not a model")
    dtypes = document["dtypes"]
    for name, tensor in _floats(model):
        dtype = DTYPES[dtypes.get(name, dtypes[""])]
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
    given = {n: t for n, t in tensors.items() if not n.startswith("$")}
    given |= {n: given[f] for n, f in document["aliases"].items() if f in given}
    wrong = _differences(given, _state(model))
    if wrong:
        raise StoreError(
            f"the weights of {where} do not fit the model that its config describes: "
            f"{'; '.join(wrong[:8])}; use the version it was saved with ({document['package']}), "
            "and constructors that keep each argument under its own name"
        )
    model.load_state_dict(given)
    return model


def _differences(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> list[str]:
    """Name every tensor that is missing, unknown, or of another shape or dtype than is needed."""
    wrong = [f"{n!r} is missing" for n in needed if n not in given]
    wrong += [f"{n!r} is unknown.{nearest(n, needed)}" for n in given if n not in needed]
    for name, tensor in needed.items():
        other = given.get(name, tensor)
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            have, need = (f"{t.dtype} {tuple(t.shape)}" for t in (other, tensor))
            wrong.append(f"{name!r} is {have}, needs {need}")
    return wrong
