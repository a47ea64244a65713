"""Energy-guided sampling: noise that is likely, and makes what has a low energy.

Whatever a mechanism is, its noise has a known prior and `x = f(u)` is deterministic. Guidance by an
energy E of x (a classifier's -log p(c | x), a distance, a rule) is therefore Bayes' rule in the
noise space, and asks for no training,

    p(u | E) = p(u) exp(-w E(f(u))) / Z.

Parts that are N(0, I) move by Langevin dynamics. With g = w grad E(f(u)) and xi ~ N(0, I),

    u' = r u - (1 - r) g + sqrt(1 - r^2) xi,    r = 1 - step_size,

is the Crank-Nicolson step of `du = -(u + g) dt + sqrt(2) dW`: the prior's pull is integrated
exactly, and without an energy N(0, I) is kept by any step in any dimension. (The explicit step
`u' = u - h (u + g) + sqrt(2 h) xi` widens N(0, I) by h / 2 an entry, so that its acceptance dies
with the number of entries, hundreds of thousands for a stochastic sampler's noise.) Of other parts
(Gumbel, uniform, codes) each entry is drawn anew from its prior with probability `step_size`, which
keeps any prior. Of the odds of going u -> u' and back only these remain,

    log a = w E(u) - w E(u') + k(u', u) - k(u, u'),
    k(u, u') = -(<u' - r u, g(u)> + (1 - r) |g(u)|^2 / 2) / (1 + r),

and to move with probability min(1, a), else to stay, makes p(u | E) exactly the law that the chain
settles to. An energy without a gradient is left with g = 0, which is exact, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.utils.checkpoint import checkpoint

from subjunctive.diffusion.denoise import Denoiser
from subjunctive.intervention import Checked, as_do
from subjunctive.mechanism import (
    Mechanism,
    Noise,
    Prior,
    draw,
    each,
    evaluating,
    parts,
    seeded,
    where,
)

Energy = Callable[[Any, Tensor], Tensor]  # (what the noise makes, which chains) -> (B,)
RATE = 0.574  # of acceptance, at which Langevin proposals travel fastest (Roberts and Rosenthal)


@dataclass(frozen=True)
class Guided:
    """Where the chains ended.

    Args:
        noise: a noise a chain, of the structure of the prior.
        values: what it makes: x `(n, *shape)` for a mechanism, node -> value for an SCM.
        energy: of these values, `(n,)`.
        trace: mean energy of all chains before every step, `(steps,)`.
        accepted: share of the proposals that were accepted after the warm-up.
        step_size: what it was in the end.
    """

    noise: Noise
    values: Any
    energy: Tensor
    trace: Tensor
    accepted: float
    step_size: float


def energy_guided(
    model: Mechanism | nn.Module,
    energy: Energy,
    do: Mapping[str, Any] | None = None,
    n: int = 1,
    *,
    steps: int = 200,
    step_size: float = 0.1,
    weight: float = 1.0,
    warmup: int | None = None,
    adjust: bool = True,
    start: Noise | None = None,
    batch_size: int = 64,
    checkpointing: bool = True,
    seed: int | None = None,
    progress: bool = False,
) -> Guided:
    """Draw noise from its prior times exp(-weight energy), a chain a row.

    Reference: Unifying Diffusion Models' Latent Space, with Applications to CycleDiffusion and
    Guidance (Wu and De la Torre, 2022), https://arxiv.org/abs/2210.05559; the step: MCMC Methods
    for Functions: Modifying Old Algorithms to Make Them Faster (Cotter, Roberts, Stuart and White,
    2013), https://arxiv.org/abs/1202.0709.

    Args:
        model: a mechanism, in standardised values, or an SCM, in the user's units.
        energy: maps x `(B, *shape)` (an SCM's: node -> value) and the numbers of their chains
            `(B,)`, by which each may have a target of its own, to one number a row, `(B,)`. Rows
            must not see each other. Infinite where a value is forbidden.
        do: for an SCM, interventions; for a mechanism, its parents' values, `(n, ...)` each.
        n: how many chains.
        steps: how many proposals a chain.
        step_size: `1 - r`, the share of the old noise that a proposal forgets, in (0, 1].
        weight: of the energy.
        warmup: steps in which the step size is adapted to an acceptance of 0.57, and which are no
            draws of the law; half of all by default.
        adjust: whether proposals may be refused; without, the law is right for small steps only.
        start: noise to begin at, such as what was abducted from an image; the prior's if None.
        batch_size: chains computed at once, which bounds the memory.
        checkpointing: whether denoisers are computed again for the gradient, so that the memory
            does not grow with what the network keeps at each step of a sampler.
        seed: for draws that do not touch the user's generator.
        progress: show a bar where it takes over two seconds.

    Raises:
        TypeError: for a model whose noise has no known prior.
        ValueError: for numbers out of range, or an energy that is not one number a row.

    Example:
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.variable import Variable
        >>> x = LinearGaussian.of(Variable("x"), scale=2.0)
        >>> found = energy_guided(x, lambda x, i: (x - 3).square() / 2, n=4000, seed=0)
        >>> exact = 3 * 4 / (4 + 1)  # x ~ N(0, 4), seen as 3 with an error of variance 1
        >>> abs(float(found.values.mean()) - exact) < 0.05
        True
    """
    from tqdm import tqdm

    warmup = steps // 2 if warmup is None else warmup
    counts = min(n, steps, batch_size) >= 1 and 0 <= warmup <= steps
    if not (counts and 0 < step_size <= 1 and 0 < weight < math.inf):
        raise ValueError(
            "energy_guided() needs n, steps and batch_size of at least 1, a step_size in (0, 1], a "
            f"positive weight and a warmup of at most steps; got n={n}, steps={steps}, "
            f"batch_size={batch_size}, step_size={step_size}, weight={weight}, warmup={warmup}"
        )
    trace, kept = [], []
    with seeded(seed), evaluating(model), _checkpointed(model, checkpointing), torch.no_grad():
        prior, run = _generator(model, do or {}, n)
        look = partial(_look, prior, run, energy, weight, batch_size)
        u = each(_standard, prior, draw(prior, n) if start is None else start)
        level, slope, values = look(u)
        for step in tqdm(range(steps), delay=2, disable=not progress, unit="step"):
            trace.append(level.mean() / weight)
            r = 1 - step_size
            other = each(partial(_propose, r), prior, u, slope)
            there, back, made = look(other)
            odds = _odds(r, prior, other, u, back) - _odds(r, prior, u, other, slope)
            gap = torch.where(level == there, 0.0, level - there)  # infinite both: on, by the prior
            chance = (gap + odds).nan_to_num(nan=-math.inf).exp().clamp(max=1.0)
            yes = torch.rand_like(chance) < chance if adjust else chance >= 0
            u, slope = where(yes, other, u), where(yes, back, slope)
            values, level = where(yes, made, values), torch.where(yes, there, level)
            if step >= warmup:
                kept.append(yes.float().mean())
            elif adjust:
                gain = float(chance.mean() - RATE) / (1 + step) ** 0.5
                step_size = min(max(step_size * math.exp(gain), 1e-6), 1.0)
    accepted = float(torch.stack(kept).mean()) if kept else math.nan
    noise, found = each(_restore, prior, u), level / weight
    return Guided(noise, values, found, torch.stack(trace), accepted, step_size)


def _generator(
    model: Any, do: Mapping[str, Any], n: int
) -> tuple[Prior, Callable[[Noise, Tensor], Any]]:
    """Return the prior of the noise, and what some rows of noise make."""
    if isinstance(model, Mechanism):
        for name, value in do.items():
            if len(value) != n:
                raise ValueError(f"{n} chains need {n} values of {name!r}, got {len(value)}")
        return model.prior(), lambda u, rows: model(u, {k: v[rows] for k, v in do.items()})
    mechanisms = getattr(model, "mechanisms", None)
    if not isinstance(mechanisms, Mapping):
        raise TypeError(
            f"energy_guided() needs a mechanism or an SCM, whose noise has a known prior; got "
            f"{type(model).__name__}"
        )
    checked = as_do(do, model.variables)
    for name, act in checked.items():
        if act.length not in (None, n):
            raise ValueError(f"{n} chains need one value of {name!r} or {n}, got {act.length}")
    luck = int(torch.randint(2**62, ()))  # a stochastic intervention is one draw a chain

    def predict(u: Noise, rows: Tensor) -> Any:
        with seeded(luck + int(rows[0])):
            return model.predict(u, Checked({k: act.rows(rows) for k, act in checked.items()}))

    return {name: m.prior() for name, m in mechanisms.items()}, predict


def _base(prior: Distribution) -> Distribution:
    """Return the density of the entries that are drawn independently."""
    while isinstance(prior, Independent):
        prior = prior.base_dist
    return prior


def _standard(prior: Distribution, u: Tensor) -> Tensor:
    base = _base(prior)
    return (u - base.loc) / base.scale if isinstance(base, Normal) else u


def _restore(prior: Distribution, u: Tensor) -> Tensor:
    base = _base(prior)
    return base.loc + base.scale * u if isinstance(base, Normal) else u


def _propose(r: float, prior: Distribution, u: Tensor, slope: Tensor) -> Tensor:
    base = _base(prior)
    if isinstance(base, Normal):
        return r * u - (1 - r) * slope + math.sqrt(1 - r**2) * torch.randn_like(u)
    anew = torch.rand((len(u), *base.batch_shape), device=u.device) >= r
    anew = anew.reshape(*anew.shape, *[1] * (u.dim() - anew.dim()))
    return torch.where(anew, prior.sample((len(u),)), u)


def _odds(r: float, prior: Prior, u: Noise, other: Noise, slope: Noise) -> Tensor:
    """Return k(u, u'), what the slope adds to the log-odds of proposing u' at u, `(n,)`."""

    def term(prior: Distribution, u: Tensor, other: Tensor, slope: Tensor) -> Tensor:
        if not isinstance(_base(prior), Normal):
            return torch.zeros(len(slope), device=slope.device)
        inner = ((other - r * u) * slope + (1 - r) / 2 * slope.square()).reshape(len(u), -1)
        return -inner.sum(1) / (1 + r)

    return torch.stack([t for _, t in parts(each(term, prior, u, other, slope))]).sum(0)


def _look(
    prior: Prior, run: Callable[..., Any], energy: Energy, weight: float, size: int, u: Noise
) -> tuple[Tensor, Noise, Any]:
    """Return the weighted energy `(n,)`, its slope in the noise, and the values."""
    rows = torch.arange(len(next(parts(u))[1]))
    found = [_look_at(prior, run, energy, weight, part, u) for part in rows.split(size)]
    levels, slopes, values = zip(*found, strict=True)
    join = partial(each, lambda *t: torch.cat(t))
    return torch.cat(levels), join(*slopes), join(*values)


@torch.enable_grad()
def _look_at(
    prior: Prior, run: Callable[..., Any], energy: Energy, weight: float, rows: Tensor, u: Noise
) -> tuple[Tensor, Noise, Any]:
    def leaf(prior: Distribution, t: Tensor) -> Tensor:
        return t[rows.to(t.device)].detach().requires_grad_(isinstance(_base(prior), Normal))

    own = each(leaf, prior, u)
    values = run(each(_restore, prior, own), rows)
    level = energy(values, rows)
    if tuple(level.shape) != (len(rows),):
        raise ValueError(
            f"the energy of {len(rows)} rows has shape {tuple(level.shape)}; it must be one number "
            f"a row, ({len(rows)},): sum over the entries of a row"
        )
    level = weight * level.nan_to_num(nan=math.inf, posinf=math.inf)
    leaves = [t for _, t in parts(own) if t.requires_grad]
    slopes: list[Tensor | None] = [None] * len(leaves)
    if level.requires_grad and leaves:
        slopes = list(torch.autograd.grad(level.sum(), leaves, allow_unused=True))
    by_leaf = dict(zip(map(id, leaves), slopes, strict=True))

    def slope(t: Tensor) -> Tensor:
        g = by_leaf.get(id(t))
        return torch.zeros_like(t) if g is None else g.nan_to_num(0.0, 0.0, 0.0)

    found = each(slope, own)
    return level.detach(), each(torch.Tensor.detach, found), each(torch.Tensor.detach, values)


@contextmanager
def _checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Let the denoisers of a model keep their inputs alone for the gradient."""
    every = model.modules() if wanted and isinstance(model, nn.Module) else ()
    found = [m for m in every if isinstance(m, Denoiser)]
    try:
        for module in found:
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for module in found:
            del module.forward
