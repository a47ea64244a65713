"""From a folder of pictures and a table of attributes to pictures of what would have been.

python examples/own_images.py                    draws discs in pictures/, and fits a model to them
python examples/own_images.py --folder my --table my.csv --graph "age -> image" --do age=70
"""

import argparse
from pathlib import Path

import numpy as np
import pandas
from PIL import Image

import subjunctive as sj
from subjunctive.evidence import read_do

GRAPH = "radius -> grey; radius, grey -> image"  # the picture is called image


def drawn(folder: Path, rows: int, side: int = 32) -> pandas.DataFrame:
    """Draw discs, the larger the brighter, anywhere; a row tells each one's radius and grey."""
    draw, (y, x) = np.random.default_rng(0), np.mgrid[:side, :side]
    radius = draw.uniform(3, 9, rows)
    grey = 60 + 15 * radius + draw.normal(0, 15, rows)
    centres = draw.uniform(10, side - 10, (rows, 2))
    folder.mkdir(exist_ok=True)
    for i, (r, g, (a, b)) in enumerate(zip(radius, grey, centres, strict=True)):
        inside = np.clip(r + 0.5 - np.hypot(y - a, x - b), 0, 1)  # a soft edge
        pixels = np.clip(g * inside, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    names = [f"{i:04d}.png" for i in range(rows)]
    return pandas.DataFrame({"file": names, "radius": radius, "grey": grey})


def main() -> None:
    """Read, fit, ask, draw."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--folder", type=Path, help="your pictures, all of one size")
    words.add_argument("--table", type=Path, help="a CSV whose column `file` names each picture")
    words.add_argument("--graph", default=GRAPH, help="what causes what")
    words.add_argument("--do", action="append", help="a world each: node=value, node+=amount")
    words.add_argument("--rows", type=int, default=2000, help="discs to draw")
    words.add_argument("--steps", type=int, default=1500, help="training steps")
    words.add_argument("--out", type=Path, default=Path("grid.png"))
    given = words.parse_args()

    folder, table = given.folder or Path("pictures"), given.table or Path("attributes.csv")
    if given.folder is None:
        drawn(folder, given.rows).to_csv(table, index=False)
    data = sj.Images(folder, table, given.graph)
    with sj.seeded(0):  # networks begin at random
        model = sj.CausalDiffAE(data.graph, data.variables)
    size = min(64, len(data.train))
    sj.fit(model, data.train, steps=given.steps, batch_size=size, lr=2e-3, valid=data.valid)
    sj.save(model, given.out.with_suffix(""), overwrite=True)

    worlds = [read_do(do, data.variables) for do in given.do or ["radius=8", "grey*=0.6"]]
    seen = data.test[:6]
    answers = sj.counterfactual(model, seen, worlds, seed=0)
    names = [sj.plot.title(do, data.variables) for do in worlds]
    shown = {name: answer["image"] for name, answer in zip(names, answers, strict=True)}
    sj.plot.grid(seen.values["image"], shown)[0, 0].figure.savefig(given.out, dpi=150)
    print(given.out)


if __name__ == "__main__":
    main()
