"""Real digits, thicker and brighter than they are, beside the truth; `pip install '.[demo]'` first.

python examples/digits.py --steps 1500
"""

import argparse
from pathlib import Path

import subjunctive as sj

DO = [{"thickness": 4.0}, {"intensity": 120.0}, {"thickness": sj.Shift(-0.6)}]


def main() -> None:
    """Fit, ask, draw the answers beside the truth, measure them."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--digits", type=int, default=2000, help="real digits to use")
    words.add_argument("--steps", type=int, default=1500, help="training steps")
    words.add_argument("--out", type=Path, default=Path("digits.png"))
    given = words.parse_args()

    # Each digit's thickness and intensity follow a known SCM: the true counterfactuals are known.
    data = sj.MorphoDigits(digits=given.digits, progress=True)
    print(data.graph)
    with sj.seeded(0):  # networks begin at random
        model = sj.CausalDiffAE(data.graph, data.variables)
    size = min(64, len(data.train))
    sj.fit(model, data.train, steps=given.steps, batch_size=size, lr=2e-3, valid=data.valid)

    seen = data.test[:6]
    noise = data.oracle.abduct(seen)
    names = [sj.plot.title(do, data.variables) for do in DO]
    answers = sj.counterfactual(model, seen, DO, seed=0)
    truths = [data.oracle.predict(noise, do) for do in DO]
    shown = {name: answer["image"] for name, answer in zip(names, answers, strict=True)}
    true = {name: truth["image"] for name, truth in zip(names, truths, strict=True)}
    axes = sj.plot.grid(seen.values["image"], shown, true)
    axes[0, 0].figure.savefig(given.out, dpi=150)
    print(given.out)

    frame = sj.evaluate(model, data, rows=min(200, len(data.test)), metrics=["effectiveness"])
    for name, part in sj.plot.sections(frame[frame.support == "inside"]):
        print(f"\n{name}\n{part.to_string()}")


if __name__ == "__main__":
    main()
