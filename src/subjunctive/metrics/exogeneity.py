"""Is abducted noise exogenous: does it follow its prior, and say nothing about the parents?

If the model is right, u ~ p(u | x, pa) averaged over the data is p(u), independent of pa. A decoder
that ignores its parents and keeps the factual in a residual passes composition and fails this.

**Leak.** The parents are predicted from u by kernel ridge regression, out of fold, with the best of
three kernels (linear in u; linear in u^2, for scales; Gaussian) and four penalties:

    R2 = 1 - sum (y - yhat)^2 / sum (y - ybar)^2.

The same search over permuted parents gives the null, which pays for the choice. A dependence that
leaves the parent's mean given u as it is stays unseen.

**Fit.** The energy coefficient between u and draws of the prior, with the mean and variance of u.

**Share.** How much of x's variance hangs on a part r of the noise, the Sobol total index,

    S = E[Var(x | all but r)] / Var(x) = E (f(r, .) - f(r', .))^2 / (2 Var x),      r' ~ p(r).

Reference: Variance based sensitivity analysis of model output (Saltelli et al., 2010),
https://doi.org/10.1016/j.cpc.2009.09.018 (Jansen's estimator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subjunctive.mechanism import Noise, parts
from subjunctive.metrics.discrepancy import Discrepancy, energy, thin
from subjunctive.metrics.estimate import Estimate, ratio

PENALTIES = (0.01, 0.1, 1.0, 10.0)  # times the mean eigenvalue of the kernel's matrix


@dataclass(frozen=True)
class Leak(Estimate):
    """The R2 with which noise predicts a parent, out of fold.

    Args:
        null: 95 % quantile of the same over permuted parents.
        p_value: share of permutations that do at least as well.
    """

    null: float = float("nan")
    p_value: float = float("nan")


@dataclass(frozen=True)
class Exogeneity:
    """What one part of an abducted noise says.

    Args:
        leaks: parent -> how well the part predicts it.
        fit: energy coefficient to draws of the prior; None where there are none.
        mean, variance: of all entries of the part, after the prior's draws are standardised to 0
            and 1; as they are where there are no draws.
    """

    leaks: dict[str, Leak] = field(default_factory=dict)
    fit: Discrepancy | None = None
    mean: float = float("nan")
    variance: float = float("nan")


def exogeneity(
    noise: Noise,
    parents: Mapping[str, Tensor],
    prior: Noise | None = None,
    *,
    folds: int = 5,
    permutations: int = 100,
    seed: int = 0,
    most: int = 500,
) -> dict[str, Exogeneity]:
    """Measure whether abducted noise follows its prior and is silent about the parents.

    Args:
        noise: abducted, `(B, ...)` a part; parts that are not numbers (integers) are left out.
        parents: name -> values `(B,)` or `(B, W)`, categories one-hot.
        prior: draws of the prior, of the same structure; any number of rows.
        folds: of the cross-validation.
        permutations: of the parents and of the labels of the energy test, for the nulls.
        seed: of folds and permutations; the global generator is left alone.
        most: rows used, evenly spread.

    Returns:
        dotted part name -> `Exogeneity`.

    Raises:
        ValueError: for fewer than 4 rows a fold, or a constant parent.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> t, u = torch.randn(2, 300, generator=draw)
        >>> found = exogeneity({"clean": u, "leaking": u + t}, {"t": t})
        >>> clean, leaking = (found[k].leaks["t"] for k in ("clean", "leaking"))
        >>> clean.value < clean.null, leaking.value > 0.4, leaking.p_value < 0.05
        (True, True, True)
    """
    drawn = dict(parts(prior)) if prior is not None else {}
    columns = {p: _columns(p, v, most) for p, v in parents.items()}
    found = {}
    for name, part in parts(noise):
        if not part.is_floating_point():
            continue
        u = thin(part.detach().reshape(len(part), -1), most).double().cpu()
        leaks = _leaks(u, columns, folds, permutations, seed) if columns else {}
        fit, centre, scale = None, torch.zeros(()), torch.ones(())
        if name in drawn:
            fresh = thin(drawn[name].detach().reshape(len(drawn[name]), -1), most).double().cpu()
            fit = energy(u, fresh, permutations=permutations, seed=seed)
            centre, scale = fresh.mean(), fresh.std().clamp(min=1e-12)
        z = (u - centre) / scale
        found[name] = Exogeneity(leaks, fit, float(z.mean()), float(z.var()))
    return found


def _columns(name: str, values: Tensor, most: int) -> Tensor:
    y = thin(values.detach().reshape(len(values), -1), most).double().cpu()
    if float(y.var(0).sum()) == 0:
        raise ValueError(f"parent {name!r} is constant: nothing can be predicted; leave it out")
    return y


def _kernels(u: Tensor) -> list[Tensor]:
    """Return the matrices of the three kernels, `(n, n)` each, about unit diagonal."""

    def linear(columns: Tensor) -> Tensor:
        columns = (columns - columns.mean(0)) / columns.std(0).clamp(min=1e-12)
        return columns @ columns.T / columns.shape[1]

    z = (u - u.mean(0)) / u.std(0).clamp(min=1e-12)
    square = torch.cdist(z, z).square()
    width = square[~torch.eye(len(u), dtype=torch.bool)].median().clamp(min=1e-12)
    return [linear(z), linear(z.square()), torch.exp(-square / width)]


def _leaks(
    u: Tensor, parents: Mapping[str, Tensor], folds: int, permutations: int, seed: int
) -> dict[str, Leak]:
    n = len(u)
    if n < 4 * folds:
        raise ValueError(f"{n} rows cannot be cut into {folds} folds of at least 4; give more rows")
    draw = torch.Generator().manual_seed(seed)
    fold = torch.randperm(n, generator=draw) % folds
    orders = torch.rand(permutations, n, generator=draw).argsort(1)
    orders = torch.cat([torch.arange(n)[None], orders])  # the true order first
    targets = {p: y[orders].permute(1, 0, 2) for p, y in parents.items()}  # (n, 1 + P, W)
    stacked = torch.cat(list(targets.values()), dim=2)
    widths = [y.shape[2] for y in targets.values()]
    centre = torch.zeros_like(stacked)
    for k in range(folds):
        centre[fold == k] = stacked[fold != k].mean(0)
    total = (stacked - centre).square().split(widths, dim=2)
    best: dict[str, tuple[Tensor, Tensor]] = {}
    for kernel in _kernels(u):
        for guess in _out_of_fold(kernel, stacked, centre, fold):
            error = (stacked - guess).square().split(widths, dim=2)
            for p, e, s in zip(parents, error, total, strict=True):
                r2 = 1 - e.sum((0, 2)) / s.sum((0, 2))
                rows = e[:, 0].sum(1)
                if p in best:
                    old, old_rows = best[p]
                    rows = rows if r2[0] > old[0] else old_rows
                    r2 = torch.maximum(r2, old)
                best[p] = (r2, rows)
    found = {}
    for p, s in zip(parents, total, strict=True):
        r2, rows = best[p]
        error_share = ratio(rows, s[:, 0].sum(1))
        null = float(r2[1:].quantile(0.95)) if permutations else float("nan")
        p_value = (1 + int((r2[1:] >= r2[0]).sum())) / (1 + permutations)
        found[p] = Leak(float(r2[0]), error_share.standard_error, n, "", null, p_value)
    return found


def _out_of_fold(kernel: Tensor, y: Tensor, centre: Tensor, fold: Tensor) -> list[Tensor]:
    """Return out-of-fold predictions of kernel ridge regression, one a penalty, as y's shape."""
    guesses = [centre.clone() for _ in PENALTIES]
    for k in range(int(fold.max()) + 1):
        held, kept = fold == k, fold != k
        values, vectors = torch.linalg.eigh(kernel[kept][:, kept])
        values = values.clamp(min=0)
        inner = vectors.T @ (y[kept] - y[kept].mean(0)).flatten(1)
        outer = kernel[held][:, kept] @ vectors
        for guess, penalty in zip(guesses, PENALTIES, strict=True):
            solved = inner / (values + penalty * values.mean() + 1e-12)[:, None]
            guess[held] += (outer @ solved).reshape(guess[held].shape)
    return guesses


def residual_share(kept: Tensor, redrawn: Tensor) -> Estimate:
    """Measure how much of x's variance hangs on a part of its noise, from 0 to 1.

    The Sobol total index by Jansen's estimator, all entries of x together; above 1 where the part's
    prior is wider than what was abducted.

    Args:
        kept: x with all its abducted noise, `(B, *shape)`.
        redrawn: x with that part of the noise drawn anew from its prior, the rest kept.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> signal, r, other = torch.randn(3, 20_000, generator=draw)
        >>> share = residual_share(3 * signal + r, 3 * signal + other)
        >>> abs(share.value - 0.1) < 0.005
        True
    """
    a, b = (v.detach().double().reshape(len(v), -1) for v in (kept, redrawn))
    half = (a - b).square().sum(1) / 2
    return ratio(half, (a - a.mean(0)).square().sum(1))
