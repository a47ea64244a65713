"""One clock for both sides of a comparison; the standard library alone, for any interpreter."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Return the median wall and CPU seconds of a call, and what the last one returned."""
    walls, cpus, found = [], [], None
    gc.collect()
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus), found
