"""A rival that has an interpreter of its own: tables go to it, answers and words come back."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def environment() -> dict[str, str]:
    """Return this process's environment without what is meant for its own Python; one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OPENBLAS_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def ask(
    python: str, script: Path, tables: Mapping[str, np.ndarray], *options: object
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run `python script tables.npz answers.npz options`.

    Returns:
        The JSON of the last line that it printed, and the arrays that it saved.

    Raises:
        SystemExit: if it fails, with the end of its errors.
    """
    with tempfile.TemporaryDirectory() as place:
        here, there = Path(place, "tables.npz"), Path(place, "answers.npz")
        np.savez(here, **dict(tables))
        done = subprocess.run(
            [python, str(script), str(here), str(there), *map(str, options)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{python} could not run {script.name}:\n{done.stderr[-2000:]}")
        with np.load(there) as found:
            return json.loads(done.stdout.splitlines()[-1]), dict(found)
