"""A directory that is whole or absent: tensors as safetensors, everything else as JSON.

    directory/
      config.json           a document; the SHA-256 of every other file; its own checksum
      model.safetensors     tensors by name

It is written beside its place, synced to the disk and renamed, and renamed before it is deleted, so
that whatever bears its name is whole, at whichever instant the process is killed. Reading checks
every byte against the checksums before it interprets one; nothing is ever unpickled. The checksums
reveal damage and careless edits; they prove no author.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SCHEMA, STATE = 1, "state.json"
Tensors = Mapping[str, Tensor]


class StoreError(ValueError):
    """A saved directory cannot be written, or is not what it should be."""


def write(
    directory: str | os.PathLike[str],
    name: str,
    document: Mapping[str, Any],
    files: Mapping[str, Tensors],
    replace: bool = False,
) -> None:
    """Write a directory atomically: the document as `name`, each file as safetensors.

    Args:
        directory: where; its parents are made.
        name: the document's file name; says what kind of directory this is.
        document: JSON values alone.
        files: file name -> tensors by name; no two may share memory.
        replace: whether a directory that stands there makes way.

    Raises:
        StoreError: if something stands there and `replace` is false.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write(f"{place}/a", "state.json", {"step": 3}, {"w": {"x": torch.ones(2)}})
        ...     document, files = read(f"{place}/a", "state.json")
        >>> document["step"], files["w"]["x"]
        (3, tensor([1., 1.]))
    """
    from safetensors.torch import save

    place = Path(os.path.abspath(directory))
    if place.exists() and not replace:
        raise StoreError(f"{place} exists already; choose another directory, or replace it")
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    fresh.mkdir()
    try:
        sums = {}
        for file, tensors in files.items():
            data = save({k: _plain(t) for k, t in tensors.items()})
            sums[file] = hashlib.sha256(data).hexdigest()
            _put(fresh / file, data)
        whole = {"schema": SCHEMA, **document, "files": sums}
        text = json.dumps({**whole, "checksum": _checksum(whole)}, indent=1, allow_nan=False)
        _put(fresh / name, text.encode())
        _sync(fresh)
        _swap(fresh, place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read(
    directory: str | os.PathLike[str], name: str
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the document and the tensors of every file of a directory that `write` made.

    Raises:
        StoreError: if anything is missing, damaged or foreign; names the file and the remedy.
    """
    place = Path(directory)
    document = _document(place, name)
    files = {}
    for file, expected in document["files"].items():
        path = place / file
        if Path(file).name != file:
            raise StoreError(f"{place / name} names {file!r}, which is no file's name")
        try:
            data = path.read_bytes()
        except OSError as error:
            why = (
                "is missing"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read ({error})"
            )
            raise StoreError(f"{path} {why}; copy the whole directory again") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise StoreError(
                f"{path} {_kind(data)}: its SHA-256 differs from the one in {name}; "
                "copy the whole directory again"
            )
        files[file] = _tensors(path, data)
    return document, files


def _document(place: Path, name: str) -> dict[str, Any]:
    path = place / name
    if place.is_file():
        raise StoreError(
            f"{place} is a file that {_kind(place.read_bytes())}, not a directory that subjunctive "
            "wrote; pickles run code when opened and are not read here: rebuild the model, "
            "load_state_dict its weights, and save it"
        )
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in place.iterdir())[:8]) if place.is_dir() else ""
        left = sorted(place.parent.glob(f".{place.name}.*.old")) if place.name else []
        raise StoreError(
            f"{path} is missing"
            + (f"; the directory holds {found or 'nothing'}" if place.is_dir() else "")
            + (f"; {left[-1]} is what stood there when it was replaced: rename it" if left else "")
            + "; give a directory that subjunctive wrote"
        )
    try:
        document = json.loads(path.read_bytes().decode(), parse_constant=_refuse)
        told = document.pop("checksum", None) if isinstance(document, dict) else None
        true = _checksum(document)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON ({error}); copy the whole directory again") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise StoreError(f"{path} was not written by subjunctive: it has no 'schema'")
    if document["schema"] != SCHEMA:
        raise StoreError(
            f"{path} has schema {document['schema']!r}, this version reads {SCHEMA}; "
            "install the version of subjunctive that wrote it"
        )
    if told != true or not isinstance(document.get("files"), dict):
        raise StoreError(
            f"{path} was changed after it was written (its checksum differs); copy it again, or "
            "build the edited model with from_config and save that"
        )
    return document


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path} is not a valid safetensors file ({error})") from error


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _kind(data: bytes) -> str:
    pickled = data[:2] in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
    return "looks like a pickle" if pickled else "is foreign, truncated or damaged"


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _put(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    if os.name == "posix":  # elsewhere a directory cannot be opened
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _swap(fresh: Path, place: Path) -> None:
    """Rename `fresh` to `place`; what stood there is put back if that fails."""
    old = place.with_name(f"{fresh.name}.old")
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(fresh, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(place: Path) -> None:
    """Delete a directory; it loses its name first, so that no half of it is ever found by name."""
    hidden = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    with suppress(OSError):  # it may be gone, or be held open by a reader
        os.replace(place, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


# A run in training --------------------------------------------------------------------------------


def steps(directory: Path, kind: str = "step") -> dict[int, Path]:
    """Return the checkpoints in a directory, step -> path, oldest first."""
    found = directory.glob(f"{kind}-[0-9]*") if directory.is_dir() else ()
    return dict(sorted((int(p.name.split("-")[1]), p) for p in found if p.is_dir()))


def put(
    directory: Path,
    step: int,
    document: Mapping[str, Any],
    files: Mapping[str, Tensors],
    kind: str = "step",
) -> Path:
    """Write the checkpoint of a step; a new "step" drops all but the last two and the last best."""
    path = directory / f"{kind}-{step:09d}"
    if not path.exists():
        write(path, STATE, {"kind": "training", "step": step, **document}, files)
    if kind != "step":
        return path
    keep = {*list(steps(directory).values())[-2:], *list(steps(directory, "best").values())[-1:]}
    for old in directory.iterdir():
        ours = old.name.lstrip(".").startswith(("step-", "best-"))
        if old.is_dir() and ours and old not in keep:
            _remove(old)
    return path


def forget(directory: Path, after: int) -> None:
    """Drop the best of steps after one that a run goes back to."""
    for step, path in steps(directory, "best").items():
        if step > after:
            _remove(path)


@contextmanager
def claimed(directory: Path | None) -> Iterator[None]:
    """Keep a run's directory to this run; the system lets go of it when the process ends.

    Raises:
        StoreError: if another run, in this process or in another, writes there.
    """
    if directory is None or os.name != "posix":
        yield
        return
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    number = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another run is writing to {directory}; wait for it, or give another directory"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(number)


def moments(optimiser: Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state, by `parameter.name`."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, part in state.items() for k, v in part.items()}


def restore_moments(optimiser: Optimizer, tensors: Tensors) -> None:
    """Put back what `moments` returned.

    Raises:
        StoreError: if a moment is not of its parameter's shape.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        if int(index) >= len(parameters) or value.shape not in ((), parameters[int(index)].shape):
            raise StoreError(f"the optimiser's {name} is of another model's parameters")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
