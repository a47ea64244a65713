"""Find and read data that the user already has; nothing is ever fetched from the network.

Files are looked for by name in the directory given as `data_dir`, or else in the one that the
environment variable `SUBJUNCTIVE_DATA` names; each may be gzipped and may lie in a subfolder that
bears the data set's name.

IDX, the format of the MNIST files, is big-endian: two zero bytes, a type code (8: unsigned byte),
the number of dimensions, each dimension as a 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

ENVIRONMENT = "SUBJUNCTIVE_DATA"


def places(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the directories in which the data set `name` is looked for, in order."""
    root = os.fspath(data_dir) if data_dir is not None else os.environ.get(ENVIRONMENT, "")
    return [Path(root).expanduser(), Path(root).expanduser() / name] if root else []


def find(
    name: str, files: Sequence[str], data_dir: str | os.PathLike[str] | None = None
) -> dict[str, Path] | None:
    """Return where each file of a data set lies, or None if no directory holds them all.

    Args:
        name: the data set's name, also that of the subfolder looked into.
        files: file names without `.gz`.
        data_dir: the directory; by default what `$SUBJUNCTIVE_DATA` names.

    Example:
        >>> find("mnist", ["train-images-idx3-ubyte"], data_dir="/nowhere") is None
        True
    """
    for place in places(name, data_dir):
        found = {}
        for file in files:
            for path in (place / file, place / f"{file}.gz"):
                if path.is_file():
                    found[file] = path
                    break
        if len(found) == len(files):
            return found
    return None


def missing(
    name: str, files: Sequence[str], data_dir: str | os.PathLike[str] | None, remedy: str
) -> FileNotFoundError:
    """Return an error that lists what was looked for, where, and the remedy."""
    looked = [str(p) for p in places(name, data_dir)] or [f"(${ENVIRONMENT} is not set)"]
    wanted = ", ".join(f"{f}[.gz]" for f in files)
    return FileNotFoundError(
        f"no data found for {name!r}: looked for {wanted} in {', '.join(looked)}. {remedy}"
    )


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes from an IDX file, gzipped or not.

    Raises:
        ValueError: if the file is no IDX file of bytes, is truncated, or holds too much.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); get the file again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path} is no IDX file of bytes: it starts with {raw[:4]!r}, "
            "not with 00 00 08; get the original file"
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path} ends within its header; get the file again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    need = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != need:
        raise ValueError(
            f"{path} has {len(raw)} bytes where its header {shape} asks for {need}; "
            "get the file again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def cache_directory() -> Path:
    """Return `$XDG_CACHE_HOME/subjunctive`, or `~/.cache/subjunctive`."""
    root = os.environ.get("XDG_CACHE_HOME")
    if not root:
        try:
            root = os.fspath(Path.home() / ".cache")
        except RuntimeError:  # an account without a home
            root = tempfile.gettempdir()
    return Path(root) / "subjunctive"


def cached(
    name: str, key: Sequence[Any], make: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return named arrays from the user's cache, or make them and keep them there.

    The file is written beside its place and moved there whole; one that cannot be read is made
    anew, and a cache that cannot be written is only warned about.

    Args:
        name: what the file's name begins with.
        key: what the arrays depend on: bytes, or values whose `repr` tells them apart.
        make: computes the arrays.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with mock.patch.dict(os.environ, XDG_CACHE_HOME=home):
        ...         first = cached("demo", [1], lambda: {"a": np.arange(3)})
        ...         second = cached("demo", [1], lambda: {"a": np.zeros(3)})
        >>> second["a"]
        array([0, 1, 2])
    """
    digest = hashlib.sha256()
    for part in key:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    path = cache_directory() / f"{name}-{digest.hexdigest()[:20]}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {k: held[k] for k in held.files}
    except FileNotFoundError:
        log.debug("%s is not there yet", path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s cannot be read (%s); it is made anew", path, error)
    arrays = make()
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        os.replace(beside, path)
    except OSError as error:
        log.warning("%s cannot be written (%s); this run goes on without it", path, error)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return arrays
