"""What a law is: a small function `law(subject, batch)` that raises `LawBroken`, or holds.

A law that does not apply raises `NotApplicable` and says why. Laws draw from torch's default
generator; `run` seeds it for each of them, so that a report is the same every time, and restores
the user's. Random laws reject a right subject with a chance of about 1 in 10,000.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from subjunctive.card import Abduction
from subjunctive.intervention import OutsideSupport
from subjunctive.mechanism import Noise, each, parts, seeded
from subjunctive.query import NotIdentified, evaluating
from subjunctive.variable import Batch, Variable

Law: TypeAlias = Callable[[Any, Batch], None]
LEVEL = 1e-4
SEED = 718_281_828  # far from users' 0, 1, 2: the batch must not repeat the laws' own draws


class LawBroken(AssertionError):
    """A law does not hold; `laws` names all that were broken."""

    def __init__(self, message: str, laws: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.laws = tuple(laws)


class NotApplicable(Exception):
    """A law says nothing about this subject; the message says why."""


def run(laws: Iterable[Law], subject: Any, batch: Batch) -> dict[str, str]:
    """Run laws on a subject in evaluation mode and report on each.

    Returns:
        law -> "holds" or "not applicable: why".

    Raises:
        LawBroken: with one line for every law that does not hold.
    """
    report, broken = {}, {}
    for law in laws:
        with warnings.catch_warnings(), seeded(SEED), evaluating(subject), torch.no_grad():
            for expected in (OutsideSupport, NotIdentified):
                warnings.simplefilter("ignore", expected)
            try:
                law(subject, batch)
                report[law.__name__] = "holds"
            except NotApplicable as why:
                report[law.__name__] = f"not applicable: {why}"
            except LawBroken as error:
                broken[law.__name__] = f"{type(subject).__name__} breaks {law.__name__}: {error}"
    if broken:
        raise LawBroken("\n".join(broken.values()), list(broken))
    return report


def claim(subject: Any) -> tuple[Abduction, float]:
    """Return how exact a subject says that its abduction is, and to which tolerance.

    Its card says so; an SCM is as exact as its least exact mechanism, and ten times coarser, for
    errors add up along paths. Without a card, exactness to 1e-4 is expected.
    """
    card, mechanisms = getattr(subject, "card", None), getattr(subject, "mechanisms", None)
    if card is not None:
        return card.abduction, card.tolerance
    if not isinstance(mechanisms, Mapping) or not mechanisms:
        return "exact", 1e-4
    ranks: tuple[Abduction, ...] = ("none", "approximate", "convention", "exact")
    claims = [claim(m) for m in mechanisms.values()]
    return min((c[0] for c in claims), key=ranks.index), 10 * max(c[1] for c in claims)


def abduction_needed(subject: Any, exact: bool = False) -> float:
    """Return the tolerance, or raise `NotApplicable` where abduction is not claimed (exact)."""
    abduction, tolerance = claim(subject)
    if abduction == "none" or (exact and abduction == "approximate"):
        raise NotApplicable(f"its abduction is {abduction!r}")
    return tolerance


def gap(a: Tensor, b: Tensor, variable: Variable | None = None) -> float:
    """Return the largest difference, in the variable's standard deviations; 0 or 1 for codes."""
    if variable is not None and variable.discrete:
        return float((a != b).any())
    scale = 1.0 if variable is None else variable.scale
    return float((a.double() - b.double()).abs().max() / scale) if a.numel() else 0.0


def demand(size: float, tolerance: float, what: str) -> None:
    """Raise `LawBroken` unless a difference is within its tolerance; NaN never is."""
    if not size <= tolerance:
        raise LawBroken(f"{what} differs by {size:.3g}, tolerance {tolerance:.3g}")


def shapes(noise: Noise) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shape and dtype of every part of a noise."""
    return {name: (tuple(part.shape), part.dtype) for name, part in parts(noise)}


def columns(value: Tensor, most: int = 16) -> Tensor:
    """Flatten rows to at most `most` columns, by fixed random projections where there are more."""
    flat = value.reshape(len(value), -1).double()
    if flat.shape[1] <= most:
        return flat
    generator = torch.Generator().manual_seed(0)
    onto = torch.randn(flat.shape[1], most, generator=generator, dtype=torch.float64)
    return flat @ (onto / flat.shape[1] ** 0.5).to(flat.device)


def same_law(samples: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Demand that pairs of samples come from one distribution: Kolmogorov-Smirnov by column.

    The level is `LEVEL` over all columns of all pairs (Bonferroni).
    """
    from scipy.stats import ks_2samp

    found = []
    for name, (a, b) in samples.items():
        for left, right in zip(columns(a).T, columns(b).T, strict=True):
            test = ks_2samp(left.cpu().numpy(), right.cpu().numpy(), method="asymp")
            found.append((float(test.pvalue), float(test.statistic), name))
    if found and not min(found)[0] * len(found) >= LEVEL:
        p, statistic, name = min(found)
        raise LawBroken(
            f"{name!r} has another distribution than it should: Kolmogorov-Smirnov distance "
            f"{statistic:.3f}, p = {p:.1g} of {len(found)} tests, level {LEVEL:g}"
        )


def unpredictable(name: str, target: Tensor, features: Tensor) -> None:
    """Demand that features `(B, P)` predict no column of a target beyond a permutation null.

    R2 of linear regression on the features and their squares, largest over the columns; broken 8
    standard deviations above the mean of 99 permutations of the rows.
    """
    x = columns(features, most=8)
    x = torch.cat([x, x.square()], dim=1)
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    least = 1e-6 * basis.S.max().clamp(min=1e-12)
    frame = basis.U[:, least < basis.S]
    y = columns(target)
    y = (y - y.mean(0)) / y.std(0).clamp(min=1e-12) / (len(y) - 1) ** 0.5
    rows = [torch.arange(len(y)), *(torch.randperm(len(y)) for _ in range(99))]
    found = torch.stack([(frame.T @ y[r.to(y.device)]).square().sum(0).max() for r in rows])
    mean, spread = float(found[1:].mean()), float(found[1:].std())
    if float(found[0]) > mean + 8 * spread + 1e-6:
        raise LawBroken(
            f"the parents predict {name!r}: R2 {float(found[0]):.3f}, against {mean:.3f} +- "
            f"{spread:.3f} for permuted rows"
        )


def clone(noise: Noise) -> Noise:
    """Copy a noise, so that a model that writes into what it is given harms nobody else."""
    return each(torch.clone, noise)
