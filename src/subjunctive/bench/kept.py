"""Finished work in a folder: a directory a key, which hangs on settings and on code.

A result is written beside its place and moved there in one step, so that what is found is whole,
whatever was killed when.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCUMENT = "cell.json"
SCORES, PICTURES, MODEL, READER = "scores.parquet", "pictures.npz", "model", "reader"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
VERSIONS = ("subjunctive", "torch", "numpy", "zuko", "scipy", "scikit-image")


class Kept:
    """A folder of finished work.

    Args:
        folder: where; made when something is put there.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     kept = Kept(Path(place))
        ...     found = kept.find("a")
        ...     path = kept.put("a", {"loss": 1.0}, lambda path: None)
        ...     found, kept.document("a")["loss"]
        (None, 1.0)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def find(self, key: str) -> Path | None:
        """Return where a result is, if it is there."""
        return None if self.document(key) is None else self.folder / key

    def document(self, key: str) -> dict[str, Any] | None:
        """Return what was noted of a result; None if there is none."""
        path = self.folder / key / DOCUMENT
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def put(self, key: str, document: dict[str, Any], write: Callable[[Path], Any]) -> Path:
        """Keep a result, with versions and the date.

        Args:
            key: of the result; one that is there makes way.
            document: JSON values.
            write: puts further files into the directory it is given.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self.folder))
        try:
            write(new)
            about: dict[str, Any] = {"versions": {v: version(v) for v in VERSIONS}}
            about |= {"date": datetime.now(UTC).isoformat(timespec="seconds")}
            about |= {"process": time.process_time()}
            text = json.dumps(document | about, indent=1)
            (new / DOCUMENT).write_text(text + "\n", encoding="utf-8")
            place = self.folder / key
            shutil.rmtree(place, ignore_errors=True)
            os.replace(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)  # there only if something went wrong
        return place
