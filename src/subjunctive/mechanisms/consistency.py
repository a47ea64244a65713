r"""A consistency model as a mechanism: the few jumps that a long sampler is distilled into.

The network of a `Diffusion` mechanism is read as the estimate of a jump (`diffusion/jump.py`), and a
node is

    x = J(e, z_1, ...; pa, c) + s r,        e, z, r ~ N(0, I),   c ~ N(0, I)

with J one to four jumps from the noise e, between which noise z is drawn anew, c the semantic code and
s r the residual of a stated Gaussian likelihood. Abduction takes no road backward:

    c ~ q(c | x)            the code's encoder
    e ~ q(e | x, pa, c)     a network that learned to invert J in one evaluation; the prior if none
    z                       such that each later stop is x, noised (`Jumps.explain`)
    r = (x - J) / s         the rest: the round trip is exact

What the first jump misses of x thus enters the next one as noise, which the network sees and makes
fit its parents, other ones in a counterfactual; only what the last jump misses is carried over as it
is.

The inverse is trained against the finished J, whose weights it leaves alone, by the evidence lower
bound of `s r`: `-log N(x; J(e), s^2) + beta KL(q(e | x, pa, c) || N(0, I))`, so that the start it finds
explains as much of x as it can without carrying the parents.

The network may be told more than the denoiser's own was, in numbers between the parents and the code:
where a jump lands (`edges=None`), and how strongly the parents count (`strength`, the embedded guidance
of latent consistency models, which spares the second evaluation that guidance takes).
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from subjunctive.card import Card
from subjunctive.diffusion.consistent import Distance, Grid, PseudoHuber
from subjunctive.diffusion.denoise import Denoiser, column
from subjunctive.diffusion.jump import Estimate, Jumps, edge_below, jump
from subjunctive.diffusion.schedule import EDM, Schedule
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import Timed
from subjunctive.training.objective import alone
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.mechanisms.linear import own_samples, stirred

    with seeded(0):
        x, t = Variable("x", (3,)), Variable("t")
        encoder = nn.Linear(3, 4)
        network = Timed(3, condition_width([t], 2), width=16)
        body = Diffusion(x, [t], Denoiser(network, EDM(), "edm"), encoder, code=2)
        inverse = _Start(3, condition_width([t], 2))
        mechanism = stirred(Consistency(body, stops=(1.0, 0.5), inverse=inverse))
    return mechanism, own_samples(mechanism, rows=256)


@dataclass(frozen=True)
class Told:
    """What a teacher tells: the road from x_t to x_u, and what it was drawn with.

    Args:
        road: `(x_t, t, u) -> x_u`; None for the noise of x_t, kept.
        skip: how many intervals of the grid the road spans.
        strength: of the parents on this road, `(B,)`, for a mechanism that is told it.
        noise: of x_t, where it is chosen to go with x.
    """

    road: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    skip: int = 1
    strength: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Landing:
    """Where jumps landed.

    Args:
        apart: the distance from where they should have, `(B,)`.
        x: the node there, `(B, *shape)`.
        s: the times, `(B,)`.
    """

    apart: Tensor
    x: Tensor
    s: Tensor


class _Start(nn.Module):
    """The least of inverses, of vectors: mean and log-variance of the start, affine in x."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.width, self.condition = width, condition
        self.affine = nn.Linear(width + condition, 2 * width)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        both: Tensor = self.affine(torch.cat([x, condition], dim=1))
        return both


class Consistency(Mechanism):
    """A node from a few jumps of a consistency, phased or trajectory model.

    Train it with one of `objectives.consistency`.

    Reference: Consistency Models (Song, Dhariwal, Chen and Sutskever, 2023),
    https://arxiv.org/abs/2303.01469; the embedded strength: On Distillation of Guided Diffusion
    Models (Meng et al., 2023), https://arxiv.org/abs/2210.03142

    Args:
        diffusion: whose denoiser, encoder and code are read anew; its own sampler and guidance play
            no part. Its network's condition is `condition_width(parents, code)`, and one more for
            `edges=None` and for `strength`, each.
        stops, edges, gamma: see `diffusion.jump.Jumps`.
        strength: of the parents, told to a network that was distilled for a range of them; None for
            a network that is not told.
        inverse: called as `inverse(x, noise, condition)`, with the noise level of clean data; gives
            mean and log-variance of the start, `(B, 2 C, ...)` for an x of `(B, C, ...)`.
        beta: weight of the KL of the inverse.

    Raises:
        ValueError: for stops, edges and gamma that do not go together, or a strength that is not
            positive; when it is called, for an inverse of another shape.

    Example:
        >>> x, t = Variable("x", (2,)), Variable("t")
        >>> denoiser = Denoiser(Timed(2, condition_width([t], 0), width=8), EDM(), "edm")
        >>> mechanism = Consistency(Diffusion(x, [t], denoiser), stops=(1.0, 0.4))
        >>> rows, parents = torch.randn(5, 2), {"t": torch.zeros(5)}
        >>> u = mechanism.abduct(rows, parents)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'start': (5, 2), 'steps': (5, 1, 2), 'residual': (5, 2)}
        >>> torch.allclose(mechanism(u, parents), rows, atol=1e-5)
        True
    """

    def __init__(
        self,
        diffusion: Diffusion,
        stops: Sequence[float] = (1.0,),
        edges: Sequence[float] | None = (0.0,),
        gamma: float = 1.0,
        strength: float | None = None,
        inverse: nn.Module | None = None,
        beta: float = 1.0,
    ) -> None:
        super().__init__(diffusion.variable, diffusion.parents)
        if strength is not None and not 0 < strength < math.inf:
            raise ValueError(f"{self.variable.name!r} has strength={strength}; it is positive")
        self.diffusion, self.stops, self.gamma = diffusion, tuple(stops), gamma
        self.edges = None if edges is None else tuple(edges)
        self.strength, self.inverse, self.beta = strength, inverse, beta
        self.jumps = Jumps(self.schedule, stops, edges, gamma, diffusion.denoiser.sigma_data)

    @property
    def schedule(self) -> Schedule:
        """Return the denoiser's schedule."""
        return self.diffusion.denoiser.schedule

    def prior(self) -> Prior:
        """Return N(0, I) for the code, for every part of the jumps' noise and for the residual."""
        shape = self.variable.shape
        parts: dict[str, tuple[int, ...]] = {}
        if self.diffusion.code:
            parts["code"] = (self.diffusion.code,)
        parts |= self.jumps.noise_shape(shape) | {"residual": shape}
        return {name: self.standard_normal(*shape) for name, shape in parts.items()}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: the jumps, then the residual."""
        return self.landed(u, parents) + self.diffusion.log_scale.exp() * u["residual"]

    def landed(self, u: Noise, parents: Parents) -> Tensor:
        """Return J, `(B, *shape)`: the value without its residual."""
        return self.jumps(self.estimate(parents, u.get("code"), len(u["start"])), u)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw code and start from their encoders, later noises by `explain`; the rest is r."""
        u, landed = self._explain(x, parents)
        return {**u, "residual": (x - landed) / self.diffusion.log_scale.exp()}

    def estimate(
        self, parents: Parents, code: Tensor | None, rows: int,
        strength: Tensor | None = None, keep: Tensor | None = None,
    ) -> Estimate:  # fmt: skip
        """Return `(x_t, t, s) -> g`, the estimate of a jump.

        Args:
            parents, code: of the rows.
            rows: their number.
            strength: `(B,)`, the mechanism's own if not given.
            keep: whether the parents are there, `(B, 1)`; they are if not given.
        """
        there = self.origin.new_ones(rows, 1) if keep is None else keep
        plain = self.diffusion.condition(parents, code, there)
        head, told = condition_width(self.parents, 0), []
        if self.strength is not None:
            known = self.origin.new_full((rows,), self.strength) if strength is None else strength
            told.append(known.log()[:, None])
        denoiser = self.diffusion.denoiser

        def estimate(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            lands = [] if self.edges is not None else [self.schedule.log_snr(s)[:, None] / 4]
            extra = [a.to(plain) for a in (*told, *lands)]
            condition = torch.cat([plain[:, :head], *extra, plain[:, head:]], dim=1)
            g: Tensor = denoiser(x, t, condition)
            return g

        return estimate

    def agreement(
        self,
        x: Tensor,
        parents: Parents,
        code: Tensor | None = None,
        *,
        grid: Grid | None = None,
        distance: Distance | None = None,
        step: int = 0,
        target: Consistency | None = None,
        told: Told | None = None,
        weighted: bool = True,
    ) -> Landing:
        """Say how far the jumps from two points of one road land apart.

        The road is from a noisy x_t back to x_u; both jump to s: 0, the edge below u, or anywhere
        below it, when both are carried on to 0 by the target to be compared there.

        Args:
            x, parents, code: of the rows.
            grid: 64 intervals if not given.
            distance: `PseudoHuber()` if not given.
            step: of training, for the grid.
            target: who jumps from x_u, without learning; the mechanism itself if not given.
            told: the teacher's road; if not given, x_u has the noise of x_t, whose road is right in
                the mean.
            weighted: whether a row counts by one over its interval's width in sigma / alpha.
        """
        grid, distance = grid or Grid(8, 64), distance or PseudoHuber()
        target, skip = target or self, 1 if told is None else told.skip
        t, u = grid.draw(len(x), step, self.schedule, x, skip)
        if self.edges is None:
            s = u * torch.rand_like(u)
        else:
            s = edge_below(self.edges, t)
            u = torch.maximum(u, s)
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        noise = torch.randn_like(x) if told is None or told.noise is None else told.noise
        x_t = column(alpha(t), x) * x + column(sigma(t), x) * noise
        strength = None if told is None else told.strength
        if told is not None and told.road is not None:
            with torch.no_grad():
                x_u = told.road(x_t, t, u)
        else:
            x_u = column(alpha(u), x) * x + column(sigma(u), x) * noise
        own = self.estimate(parents, code, len(x), strength)
        kept = None if code is None else code.detach()
        theirs = target.estimate(parents, kept, len(x), strength)
        landed = jump(own, self.schedule, x_t, t, s)
        with torch.no_grad():
            goal = jump(theirs, self.schedule, x_u, u, s)
        if self.edges is None:
            with torch.no_grad():
                goal = jump(theirs, self.schedule, goal, s, 0 * s)
            with alone([], target.parameters()):
                landed = jump(theirs, self.schedule, landed, s, 0 * s)
            s = 0 * s
        apart = distance(landed - goal, grid.intervals(step))
        if weighted:
            apart = apart / (sigma(t) / alpha(t) - sigma(u) / alpha(u)).clamp(min=1e-6)
        return Landing(apart, landed, s)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `jump` and what `rest` returns, `(B,)` each.

        This is training without a teacher on a grid that does not grow; the objectives know better.
        """
        code, terms = None, {}
        if self.diffusion.encoder is not None:
            mean, log_variance = self.diffusion.posterior(x)
            code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
            kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
            terms["code"] = self.diffusion.beta * kl / self.variable.width
        return {"jump": self.agreement(x, parents, code).apart, **terms, **self.rest(x, parents)}

    def rest(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `nll` of the residual and, with an inverse, `kl`; nats an entry of x, `(B,)`.

        Only the residual's scale and the inverse learn by it; the jumps stand still.
        """
        still = [*self.diffusion.denoiser.parameters()]
        if self.diffusion.encoder is not None:
            still += self.diffusion.encoder.parameters()
        with alone([], still):
            (u, landed), terms = self._explain(x, parents), {}
            square = (x - landed).square().reshape(len(x), -1).mean(1)
            if self.inverse is not None:
                mean, log_variance = self._start(x, parents, u.get("code"))
                kl = (mean.square() + log_variance.exp() - log_variance - 1).reshape(len(x), -1) / 2
                terms["kl"] = self.beta * kl.mean(1)
        log_scale = self.diffusion.log_scale
        nll = square * torch.exp(-2 * log_scale) / 2 + log_scale + math.log(2 * math.pi) / 2
        return {"nll": nll, **terms}

    def _explain(self, x: Tensor, parents: Parents) -> tuple[dict[str, Tensor], Tensor]:
        """Draw all but the residual, and return where it leads, too."""
        u: dict[str, Tensor] = {}
        if self.diffusion.encoder is not None:
            mean, log_variance = self.diffusion.posterior(x)
            u["code"] = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        u["start"] = torch.randn_like(x)
        if self.inverse is not None:
            mean, log_variance = self._start(x, parents, u.get("code"))
            u["start"] = mean + torch.exp(log_variance / 2) * u["start"]
        estimate = self.estimate(parents, u.get("code"), len(x))
        later, landed = self.jumps.explain(estimate, u["start"], x)
        return u | later, landed

    def _start(self, x: Tensor, parents: Parents, code: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(start | x, parents, code), of the shape of x."""
        if self.inverse is None:
            raise ValueError(f"{self.variable.name!r} has no inverse")
        condition = self.diffusion.condition(parents, code, self.origin.new_ones(len(x), 1))
        clean = self.schedule.log_snr(torch.zeros_like(x[:, :1].reshape(len(x), -1)[:, 0])) / 4
        out: Tensor = self.inverse(x, clean, condition)
        if out.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"the inverse of {self.variable.name!r} gave {tuple(out.shape)}; it needs mean and "
                f"log-variance, {(len(x), 2 * x.shape[1], *x.shape[2:])}"
            )
        mean, log_variance = out.to(x.dtype).chunk(2, dim=1)
        return mean, log_variance.clamp(-12.0, 2.0)

    card = Card(
        name="Consistency mechanism",
        summary="A node, images above all, from a few jumps of a distilled or consistency-trained "
        "network; abduction by a learned one-step inverse and a declared residual.",
        title="Consistency Models",
        authors="Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya",
        year=2023,
        url="https://arxiv.org/abs/2303.01469",
        assumptions=("the code, the start and the residual are independent of the parents",),
        needs="a continuous node, images above all; its parents' values; an objective that trains "
        "the jumps",
        abduction="approximate",
        tolerance=1e-4,
        example=_example,
    )
