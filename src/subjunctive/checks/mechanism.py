"""Laws of a mechanism, `x = f(u, parents)`, on standardised values.

round trip    f(abduct(x, pa), pa) = x
exogeneity    u = abduct(f(u', pa), pa), u' ~ prior, follows the prior and is independent of pa
density       integral p(x | pa) dx = 1;   p(f(u, pa) | pa) = p(u) / |det df / du|;
              f(u, pa), u ~ prior, follows p(. | pa): doing all parents is conditioning on them
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from subjunctive.checks.law import (
    LEVEL,
    LawBroken,
    NotApplicable,
    abduction_needed,
    claim,
    demand,
    gap,
    same_law,
    shapes,
    unpredictable,
)
from subjunctive.checks.machine import split
from subjunctive.mechanism import (
    Density,
    Mechanism,
    Noise,
    draw,
    each,
    parts,
    prior_log_prob,
    seeded,
)
from subjunctive.variable import Batch, as_matrix


def noise_has_one_structure(mechanism: Mechanism, batch: Batch) -> None:
    """Abducted noise has the parts, shapes and dtypes of the prior's."""
    abduction_needed(mechanism)
    prior = shapes(draw(mechanism.prior(), len(batch)))
    found = shapes(mechanism.abduct(*split(mechanism, batch)))
    if prior != found:
        raise LawBroken(f"the prior draws {prior}, abduct gives {found}")


def forward_is_deterministic(mechanism: Mechanism, batch: Batch) -> None:
    """The same noise and parents give the same value, to the last bit."""
    _, parents = split(mechanism, batch)
    u = draw(mechanism.prior(), len(batch))
    first, again = mechanism(u, parents), mechanism(u, parents)
    if not torch.equal(first, again):
        raise LawBroken(f"two calls differ by {gap(first, again):.3g}: every draw belongs in u")


def noise_is_used(mechanism: Mechanism, batch: Batch, most: int = 8) -> None:
    """Drawing a column of a part of the noise anew, or far out, moves some value."""
    _, parents = split(mechanism, batch)
    u, fresh = (draw(mechanism.prior(), len(batch)) for _ in range(2))
    far = each(lambda t: 30 * t if t.is_floating_point() else t, fresh)
    x = mechanism(u, parents)
    for i, (name, part) in enumerate(parts(u)):
        width = part[0].numel()
        for j in torch.linspace(0, width - 1, min(width, most)).round().long().tolist():
            tries = (mechanism(_swapped(u, new, i, j), parents) for new in (fresh, far))
            if all(torch.equal(x, moved) for moved in tries):
                raise LawBroken(f"column {j} of noise {name!r} moves no value of {len(x)} rows")


def _swapped(u: Noise, fresh: Noise, index: int, column: int) -> Noise:
    """Return the noise with one column of one part taken from another draw."""
    left = [index]

    def pick(old: Tensor, new: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] != -1:
            return old
        flat = old.reshape(len(old), -1).clone()
        flat[:, column] = new.reshape(len(new), -1)[:, column]
        return flat.reshape(old.shape)

    return each(pick, u, fresh)


def parents_are_used(mechanism: Mechanism, batch: Batch) -> None:
    """Every parent moves some value: what the graph draws, the mechanism reads."""
    if not mechanism.parents:
        raise NotApplicable("it has no parents")
    _, parents = split(mechanism, batch)
    u = draw(mechanism.prior(), len(batch))
    x = mechanism(u, parents)
    for name, value in parents.items():
        if torch.equal(x, mechanism(u, {**parents, name: value.roll(1, 0)})):
            raise LawBroken(f"parent {name!r} moves no value of {len(x)} rows")


def prior_ignores_parents(mechanism: Mechanism, batch: Batch) -> None:
    """The prior is the same whatever parents the mechanism has met."""
    if not mechanism.parents:
        raise NotApplicable("it has no parents")
    x, parents = split(mechanism, batch)
    found = []
    for rows in (slice(None), slice(0, 1), slice(1, 2)):
        given = {k: v[rows] for k, v in parents.items()}
        mechanism(draw(mechanism.prior(), len(x[rows])), given)
        if claim(mechanism)[0] != "none":
            mechanism.abduct(x[rows], given)
        with seeded(1):
            noise = draw(mechanism.prior(), 4)
        density = prior_log_prob(mechanism.prior(), noise)
        found.append([*(part for _, part in parts(noise)), density])
    for other in found[1:]:
        if not all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)):
            raise LawBroken("the prior changed after the mechanism met other parents")


def round_trip(mechanism: Mechanism, batch: Batch) -> None:
    """What is abducted from x gives x again, within the card's tolerance."""
    tolerance = abduction_needed(mechanism)
    x, parents = split(mechanism, batch)
    again = mechanism(mechanism.abduct(x, parents), parents)
    if (again.shape, again.dtype) != (x.shape, x.dtype):
        raise LawBroken(f"{tuple(x.shape)} {x.dtype} became {tuple(again.shape)} {again.dtype}")
    demand(gap(again, x), tolerance, "forward(abduct(x))")


def _own(mechanism: Mechanism, batch: Batch) -> tuple[Noise, Noise, dict[str, Tensor]]:
    """Return fresh prior noise, noise abducted from own samples, and the parents."""
    abduction_needed(mechanism, exact=True)
    _, parents = split(mechanism, batch)
    x = mechanism(draw(mechanism.prior(), len(batch)), parents)
    return draw(mechanism.prior(), len(batch)), mechanism.abduct(x, parents), parents


def noise_follows_the_prior(mechanism: Mechanism, batch: Batch) -> None:
    """Noise abducted from a mechanism's own samples is distributed as its prior."""
    prior, found, _ = _own(mechanism, batch)
    pairs = zip(parts(found), parts(prior), strict=True)
    same_law({name: (u, v) for (name, u), (_, v) in pairs})


def noise_ignores_the_parents(mechanism: Mechanism, batch: Batch) -> None:
    """Noise abducted from a mechanism's own samples is not predicted by the parents."""
    if not mechanism.parents:
        raise NotApplicable("it has no parents")
    _, found, parents = _own(mechanism, batch)
    features = as_matrix(parents, mechanism.parents)
    for name, u in parts(found):
        unpredictable(name, u, features)


def _density(mechanism: Mechanism) -> Density:
    if not isinstance(mechanism, Density):
        raise NotApplicable("it has no density")
    return mechanism


def _fixed(parents: Mapping[str, Tensor], row: int, times: int) -> dict[str, Tensor]:
    return {k: v[row : row + 1].expand(times, *v.shape[1:]) for k, v in parents.items()}


def _mass(density: Density, parents: Mapping[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """Return points and the probability up to each, for one row of parents; codes or numbers."""
    if density.variable.discrete:
        codes = torch.arange(density.variable.width, device=density.origin.device)
        p = density.log_prob(codes, _fixed(parents, row, len(codes))).double().exp()
        return codes, p.cumsum(0)
    n = 10_000
    x = density(draw(density.prior(), n), _fixed(parents, row, n)).double().sort().values
    reach = (x[-1] - x[0]) * torch.linspace(1 / 500, 1, 500, dtype=x.dtype, device=x.device)
    grid = torch.cat([x[0] - reach.flip(0), x, x[-1] + reach]).to(density.origin.dtype)
    p = density.log_prob(grid, _fixed(parents, row, len(grid))).double().exp().nan_to_num(0.0)
    at = grid.double()
    mass = ((p[1:] + p[:-1]) / 2 * at.diff()).cumsum(0)
    return at, torch.cat([mass.new_zeros(1), mass])


def _scalar(mechanism: Mechanism, batch: Batch) -> tuple[Density, dict[str, Tensor], range]:
    density, parents = _density(mechanism), split(mechanism, batch)[1]
    if density.variable.shape:
        raise NotApplicable("its value is no scalar")
    return density, parents, range(min(3, len(batch)) if parents else 1)


def density_sums_to_one(mechanism: Mechanism, batch: Batch) -> None:
    """The density of a scalar integrates to one; category probabilities sum to one."""
    density, parents, rows = _scalar(mechanism, batch)
    for row in rows:
        total = float(_mass(density, parents, row)[1][-1])
        demand(abs(total - 1), 1e-3, f"the probability of all values, {total:.5g}, from 1,")


def density_matches_samples(mechanism: Mechanism, batch: Batch) -> None:
    """Samples with the parents set follow the density given these parents."""
    density, parents, rows = _scalar(mechanism, batch)
    n = 2000
    for row in rows:
        at, below = _mass(density, parents, row)
        x = density(draw(density.prior(), n), _fixed(parents, row, n))
        below = below / below[-1]
        if density.variable.discrete:
            p = below.diff(prepend=below.new_zeros(1))
            count = torch.bincount(x.long(), minlength=len(p)).double()
            z = float(((count - n * p).abs() / (n * p * (1 - p) + 1).sqrt()).max())
            demand(z, 5.0, "the frequency of a category, in standard errors,")
        else:
            _follows(x.double(), at, below, len(rows))


def _follows(x: Tensor, at: Tensor, below: Tensor, tests: int) -> None:
    """Demand that samples have the cumulative distribution given on a grid."""
    from scipy.stats import kstest

    j = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    part = ((x - at[j - 1]) / (at[j] - at[j - 1]).clamp(min=1e-12)).clamp(0, 1)
    v = below[j - 1] + part * (below[j] - below[j - 1])
    test = kstest(v.cpu().numpy(), "uniform", method="asymp")
    if not float(test.pvalue) * tests >= LEVEL:
        raise LawBroken(
            f"samples stray from the density: Kolmogorov-Smirnov distance {test.statistic:.3f}, "
            f"p = {test.pvalue:.1g} of {tests} tests, level {LEVEL:g}"
        )


def density_changes_variables(mechanism: Mechanism, batch: Batch, most: int = 8) -> None:
    """The density is the prior's over the stretch of `forward`, where that is invertible."""
    density, (_, parents) = _density(mechanism), split(mechanism, batch)
    u = draw(density.prior(), len(batch))
    if density.variable.discrete or claim(density)[0] != "exact":
        raise NotApplicable("it is not inverted exactly")
    if isinstance(u, dict) or u[0].numel() != density.variable.width or u[0].numel() > most:
        raise NotApplicable(f"noise and value are not of one size of at most {most}")
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        x = density(u, parents)
        if not x.requires_grad:
            raise NotApplicable("forward cannot be differentiated")
        entries = x.reshape(len(x), -1).unbind(1)
        found = [torch.autograd.grad(e.sum(), u, retain_graph=True)[0] for e in entries]
    stretch = torch.stack([g.reshape(len(g), -1) for g in found], 1).double().slogdet().logabsdet
    expected = prior_log_prob(density.prior(), u.detach()).double() - stretch
    error = (density.log_prob(x.detach(), parents).double() - expected).abs()
    worst = float((error / (1 + expected.abs())).max())
    demand(worst, 1e-3, "log_prob, from the prior's over the stretch of forward,")


NOISE_LAWS = (
    noise_has_one_structure,
    forward_is_deterministic,
    noise_is_used,
    parents_are_used,
    prior_ignores_parents,
    round_trip,
    noise_follows_the_prior,
    noise_ignores_the_parents,
)
DENSITY_LAWS = (density_sums_to_one, density_matches_samples, density_changes_variables)
