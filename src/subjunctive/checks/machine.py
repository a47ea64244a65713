"""Laws about programs: shapes, gradients, seeds, precision, batches of one, and the disk.

They hold for a mechanism and for a model alike, through what these answer: `settled` gives the
answers that involve no draw, `drawn` those that do.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subjunctive.checks.law import LawBroken, NotApplicable, claim, clone, demand, gap
from subjunctive.mechanism import Density, Mechanism, Noise, draw, each, parts, seeded
from subjunctive.variable import Batch

Answers = dict[str, Tensor]


def split(mechanism: Mechanism, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a mechanism's own value and its parents' from a batch of standardised values."""
    values = batch.values
    return values[mechanism.variable.name], {p.name: values[p.name] for p in mechanism.parents}


def noise_of(subject: Any, n: int) -> Noise:
    """Draw n rows of a subject's noise."""
    return draw(subject.prior(), n) if isinstance(subject, Mechanism) else subject.noise(n)


def settled(subject: Any, batch: Batch, noise: Noise) -> Answers:
    """Return what a subject answers without drawing."""
    if isinstance(subject, Mechanism):
        x, parents = split(subject, batch)
        found = {"forward": subject(clone(noise), parents)}
        if isinstance(subject, Density):
            found["log_prob"] = subject.log_prob(x, parents)
        return found
    root = subject.graph.order[0]
    factual = subject.predict(clone(noise))
    done = subject.predict(clone(noise), {root: factual[root][:1]})
    return {f"predict()[{n!r}]": v for n, v in factual.items()} | {
        f"predict(do={root!r})[{n!r}]": v for n, v in done.items()
    }


def losses(subject: Any, batch: Batch) -> Mapping[str, Tensor]:
    """Return the terms of a subject's loss, none if it has no `loss`."""
    if isinstance(subject, Mechanism):
        return subject.loss(*split(subject, batch))
    loss = getattr(subject, "loss", None)
    return loss(batch) if loss is not None else {}


def abducted(subject: Any, batch: Batch) -> Answers:
    """Return the parts of the abducted noise, none where abduction is not claimed."""
    if claim(subject)[0] == "none":
        return {}
    alone = isinstance(subject, Mechanism)
    noise = subject.abduct(*split(subject, batch)) if alone else subject.abduct(batch)
    return {f"abduct()[{name!r}]": part for name, part in parts(noise)}


def drawn(subject: Any, batch: Batch) -> Answers:
    """Return what a subject answers with draws."""
    return abducted(subject, batch) | {f"loss[{k!r}]": v for k, v in losses(subject, batch).items()}


def loss_has_rows(subject: Any, batch: Batch) -> None:
    """Every term of the loss is one finite number a row, `(B,)`."""
    terms = losses(subject, batch)
    if not terms:
        raise NotApplicable("it has no loss")
    for name, term in terms.items():
        if tuple(term.shape) != (len(batch),):
            raise LawBroken(f"term {name!r} is {tuple(term.shape)}, not ({len(batch)},)")
        if not bool(torch.isfinite(term).all()):
            raise LawBroken(f"term {name!r} has {int((~term.isfinite()).sum())} infinite rows")


def every_parameter_learns(subject: Any, batch: Batch, steps: int = 5) -> None:
    """Every parameter gets a gradient within a few steps of the loss."""
    if not isinstance(subject, nn.Module) or not any(p.requires_grad for p in subject.parameters()):
        raise NotApplicable("it has no parameters")
    twin = copy.deepcopy(subject).train()
    waiting = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(list(waiting.values()), lr=1e-3)
    for _ in range(steps):
        with torch.enable_grad():
            terms = losses(twin, batch)
            if not terms:
                raise NotApplicable("it has no loss")
            optimiser.zero_grad()
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
        waiting = {n: p for n, p in waiting.items() if p.grad is None or not bool(p.grad.any())}
        optimiser.step()
        if not waiting:
            return
    raise LawBroken(f"no gradient in {steps} steps for {sorted(waiting)}")


def seeds_decide(subject: Any, batch: Batch) -> None:
    """The same seed gives the same answer, and the generator is left to the user."""
    noise = noise_of(subject, len(batch))

    def told(seed: int) -> tuple[Answers, Tensor]:
        with seeded(seed):
            return settled(subject, batch, noise) | drawn(subject, batch), torch.get_rng_state()

    (first, state), (again, _), (_, other) = told(1), told(1), told(2)
    for name, value in first.items():
        if not torch.equal(value, again[name]):
            raise LawBroken(f"{name} differs between two runs from one seed")
    if torch.equal(state, other):
        raise LawBroken("it leaves the generator in one state from two seeds: it seeds it itself")


def single_and_double_precision(subject: Any, batch: Batch) -> None:
    """A copy in double precision answers in double precision, and the same within 1e-3."""
    if not isinstance(subject, nn.Module):
        raise NotApplicable("it is no module")
    noise = noise_of(subject, len(batch))
    wide = each(lambda t: t.double() if t.is_floating_point() else t, noise)
    single = settled(subject, batch, noise)
    try:
        twin, rows = copy.deepcopy(subject).double(), batch.to(torch.float64)
        double, random = settled(twin, rows, wide), drawn(twin, rows)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LawBroken(f"it fails in double precision: {error}") from error
    for name, value in {**double, **random}.items():
        if value.is_floating_point() and value.dtype != torch.float64:
            raise LawBroken(f"{name} is {value.dtype} in a double-precision copy")
    for name, value in double.items():
        size = 1 + float(value.double().abs().max())
        demand(gap(value, single[name]) / size, 1e-3, f"{name} in double precision")


def batch_of_one(subject: Any, batch: Batch) -> None:
    """A row alone gets the answer that it gets among others."""
    noise = noise_of(subject, len(batch))
    many = settled(subject, batch, noise)
    try:
        one = settled(subject, batch[:1], each(lambda t: t[:1], noise))
        random = drawn(subject, batch[:1])
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise LawBroken(f"it fails on a batch of one: {error}") from error
    for name, value in one.items():
        if value.shape != many[name][:1].shape:
            raise LawBroken(f"{name} is {tuple(value.shape)} for a batch of one")
        size = 1 + float(many[name].double().abs().max())
        demand(gap(value, many[name][:1]) / size, 1e-4, f"{name} of a row alone")
    for name, value in random.items():
        if not bool(torch.isfinite(value).all()):
            raise LawBroken(f"{name} is not finite for a batch of one")


def saved_and_loaded(subject: Any, batch: Batch) -> None:
    """A subject that was saved and loaded answers the same to the last bit."""
    from subjunctive.store import StoreError, load, save

    if not isinstance(subject, nn.Module):
        raise NotApplicable("it is no module")
    own = {type(m) for m in subject.modules() if type(m).__module__.split(".")[0] not in _KNOWN}
    with tempfile.TemporaryDirectory() as place:
        try:
            save(subject, f"{place}/model")
            other = load(f"{place}/model", classes=own)
        except StoreError as error:
            raise NotApplicable(f"it cannot be saved: {error}") from error
    noise = noise_of(subject, len(batch))
    with seeded(1):
        before = settled(subject, batch, noise) | drawn(subject, batch)
    with seeded(1):
        after = settled(other, batch, noise) | drawn(other, batch)
    for name, value in before.items():
        if not torch.equal(value, after[name]):
            size = gap(value, after[name])
            raise LawBroken(f"{name} differs by {size:.3g} after loading, tolerance 0")


_KNOWN = ("subjunctive", "torch")
MACHINE_LAWS = (
    loss_has_rows,
    every_parameter_learns,
    seeds_decide,
    single_and_double_precision,
    batch_of_one,
    saved_and_loaded,
)
