"""One cell, in a process of its own: `python -c "from subjunctive.bench.cell import main; main()"`.

The task comes as a line of JSON on standard input, which then stays open: when it closes, whoever
waits for the cell is gone, and the cell ends. Results go to the folder of finished work; what goes
wrong is a traceback on standard error and an exit code.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subjunctive.bench.code import modules
from subjunctive.bench.entrants import imported, load
from subjunctive.bench.fitted import trained
from subjunctive.bench.judge import cost, judged, learned, pictures, restored
from subjunctive.bench.kept import CONFIG, PICTURES, READER, SCORES, WEIGHTS, Kept
from subjunctive.checkpoint import write
from subjunctive.config import to_config

Settings = Mapping[str, Any]


def main() -> None:
    """Do the task that standard input holds."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave, daemon=True).start()
    modules()  # the code as it is imported now
    torch.set_num_threads(task["settings"]["threads"])
    work(task["key"], task["settings"], Kept(task["folder"]))


def _leave() -> None:
    """End this process when whoever started it is gone."""
    while os.read(0, 1):
        pass
    os._exit(3)


def work(key: str, settings: Settings, kept: Kept) -> None:
    """Do a cell and keep its result."""
    classes = imported(settings["classes"])
    data = load(settings["data"], settings["seed"], classes)
    if "model" not in settings:
        _shared(key, settings, kept, data)
        return
    model, about = trained(settings, kept, data, classes)
    reader = restored(kept.folder / settings["needs"] / READER)
    frame = judged({"model": model}, data, settings, reader, baselines=False)
    about |= cost(model, data)
    images = pictures(model, data, settings["pictures"])

    def files(place: Path) -> None:
        frame[frame.method == "model"].to_parquet(place / SCORES)
        if images:
            np.savez_compressed(place / PICTURES, **images)  # type: ignore[arg-type]

    kept.put(key, about, files)


def _shared(key: str, settings: Settings, kept: Kept, data: Any) -> None:
    """Do what all models of a data set need: the network that reads pictures, trivial answers."""
    reader = learned(data, settings)
    frame = judged({}, data, settings, reader, baselines=True)

    def files(place: Path) -> None:
        frame.to_parquet(place / SCORES)
        if reader is not None:
            config = {"reader": to_config(reader)}
            write(place / READER, CONFIG, config, {WEIGHTS: reader.state_dict()})

    kept.put(key, {}, files)
