"""CausalDiffAE on real digits: the demo, as a newcomer runs it, seed by seed.

Each run is `python -m subjunctive demo`, in a process of its own and with an empty cache, from
rendering to table, with its time and peak memory; the claims are read from the tables it writes.

    python benchmarks/proof/causal_diffae.py --seeds 0 1 2
    python benchmarks/proof/causal_diffae.py --seeds 0 1 2 --missing 0.5
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive import demo  # noqa: F401  (its modules are what the record's hash is of)


def run(seed: int, missing: float, out: Path) -> dict[str, Any]:
    """Run the demo once; return minutes, peak gigabytes and its table."""
    command = [sys.executable, "-m", "subjunctive", "demo", "--seed", str(seed), "--out", str(out)]
    if missing:
        command += ["--missing", str(missing)]
    began = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"XDG_CACHE_HOME": str(out / "cache")})
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the demo failed with status {status}")
    return {
        "minutes": (time.perf_counter() - began) / 60,
        "memory": usage.ru_maxrss / 2**20,
        "table": pandas.read_csv(out / "table.csv"),
    }


def wide(table: pandas.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Return a row an intervention, support and metric, with a column a method."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for r in table.to_dict("records"):
        key = {k: r[k] for k in ("intervention", "support")}
        key["metric"] = f"{r['metric']}: {r['node']}"
        row = found.setdefault(tuple(key.values()), key | {"seed": seed})
        row[r["method"]] = r["value"] if r["value"] == r["value"] else None
    return list(found.values())


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--missing", type=float, default=0.0)
    a = parser.parse_args()
    asked = f" --missing {a.missing:g}" if a.missing else ""
    half = f", {a.missing:.0%} of the labels missing" if a.missing else ""
    record = Record(
        "digits" + ("-missing" if a.missing else ""),
        "MorphoDigits: real digits, the demo" + half,
        "`python -m subjunctive demo` from rendering to table. Held-out digits; `inside`: targets "
        "from the observational marginals; `far`: rows in which thickness moves by 0.7 px or more. "
        "Errors are measured on the pixels of the counterfactual and compared with the true one.",
        "python benchmarks/proof/causal_diffae.py --seeds " + " ".join(map(str, a.seeds)) + asked,
        "digits" + half,
        method=0,
        seeds=a.seeds,
        group=["intervention", "support", "metric"],
    )
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in a.seeds:
            runs.append(run(seed, a.missing, Path(folder) / str(seed)))
            record.rows += wide(runs[-1]["table"], seed)
    record.table = list(runs[0]["table"].method.unique())

    def values(metric: str, node: str, do: str, column: str = "value") -> list[float]:
        found = []
        for r in runs:
            t = r["table"]
            rows = t[
                (t.method == "model")
                & (t.metric == metric)
                & (t.node == node)
                & (t.intervention == do)
                & (t.support.isin(["inside", "observed"]))
            ]
            found.append(float(rows[column].iloc[0]))
        return found

    thick, ink = "do(thickness)", "do(intensity)"
    if not a.missing:
        record.claim("the whole demo, minutes", [r["minutes"] for r in runs], 10)
        record.claim("peak memory of the demo, GB", [r["memory"] for r in runs], 4)
    for what, metric, node, do, bound, unit in (
        ("thickness error after do(thickness)", "effectiveness", "thickness", thick, 0.25, "px"),
        (
            "intensity error after do(thickness): it follows",
            "effectiveness",
            "intensity",
            thick,
            8,
            "of 255",
        ),
        ("intensity error after do(intensity)", "effectiveness", "intensity", ink, 8, "of 255"),
        (
            "thickness error after do(intensity): it stays",
            "effectiveness",
            "thickness",
            ink,
            0.25,
            "px",
        ),
        ("thickness error, far", "effectiveness, far", "thickness", thick, 0.30, "px"),
        (
            "error to the true image over copy-and-rescale's, far",
            "ratio to copy and rescale, far",
            "image",
            thick,
            0.75,
            "",
        ),
    ):
        record.claim(what, values(metric, node, do), bound, unit=unit)
    for do in (thick, ink):
        lost = [
            100 * (f - v)
            for v, f in zip(
                values("identity", "digit", do),
                values("identity", "digit", do, "floor"),
                strict=True,
            )
        ]
        record.claim(
            f"digit accuracy lost against the true counterfactuals, {do}", lost, 2, unit="points"
        )
    record.claim("composition, residual kept", values("composition", "image", "do()"))
    record.save()


if __name__ == "__main__":
    main()
