"""From a table with gaps to what would have been for one row, and to the effect of a treatment.

python examples/own_table.py                     makes patients.csv, and fits a model to it
python examples/own_table.py --csv my.csv        your own: change the graph and the names below
"""

import argparse
from pathlib import Path

import numpy as np
import pandas

import subjunctive as sj
from subjunctive.mechanisms import Categorical, ConditionalFlow, Ordinal

GRAPH = "age -> dose; age -> site; age, dose, site -> pressure"
UNITS = {"age": "years", "dose": "mg", "pressure": "mmHg"}
ORDERED: dict[str, list[str]] = {}  # a column -> its categories, from the lowest to the highest
TREATMENT, OUTCOME, BEFORE, AFTER = "dose", "pressure", 8.0, 16.0
KINDS = {"continuous": ConditionalFlow, "categorical": Categorical, "ordinal": Ordinal}


def made_up(path: Path, rows: int = 2000) -> Path:
    """Write patients, whose dose lowers the pressure by 1.5 mmHg a mg; one in twelve has a gap."""
    draw = np.random.default_rng(0)
    age = draw.normal(60, 10, rows)
    dose = 0.2 * age + draw.normal(0, 3, rows)
    site = np.where(draw.random(rows) < 1 / (1 + np.exp((60 - age) / 10)), "north", "south")
    pressure = 90 + 0.9 * age - 1.5 * dose + 4 * (site == "north") + draw.normal(0, 4, rows)
    frame = pandas.DataFrame({"age": age, "dose": dose, "site": site, "pressure": pressure})
    frame.loc[::12, "pressure"] = None
    frame.round(1).to_csv(path, index=False)
    return path


def main() -> None:
    """Read, fit, ask."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--csv", type=Path, help="a table of your own")
    words.add_argument("--steps", type=int, default=1000, help="training steps")
    given = words.parse_args()

    source = given.csv or made_up(Path("patients.csv"))
    table = sj.Table(source, GRAPH, units=UNITS, ordinal=ORDERED)
    print(table.describe()[["kind", "unit", "missing"]], "\n")
    v = table.variables
    with sj.seeded(0):  # networks begin at random
        nodes = {n: KINDS[v[n].kind](v[n], [v[p] for p in table.graph.parents(n)]) for n in v}
        model = sj.SCM(table.graph, nodes)
    sj.fit(model, table.train, steps=given.steps, batch_size=128, lr=5e-3, valid=table.valid)

    one = table.test[table.test.mask(OUTCOME)][:1]
    would = sj.counterfactual(model, one, {TREATMENT: AFTER}, draws=200, seed=0)
    both = pandas.concat([table.frame(one), table.frame(would)])
    both = both.set_axis(["was", f"had {TREATMENT} been {AFTER:g}"])
    print(both.to_string(float_format="%.1f"), "\n")

    print(sj.identify(table.graph, OUTCOME, TREATMENT))
    found = sj.effect(model, TREATMENT, OUTCOME, (BEFORE, AFTER), seed=0)
    unit, change = v[OUTCOME].unit, float(found.estimate)
    print(f"{TREATMENT} from {BEFORE:g} to {AFTER:g} changes {OUTCOME} by {change:.1f} {unit}")


if __name__ == "__main__":
    main()
