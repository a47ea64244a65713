r"""Consistency training and distillation: jumps from all points of a road land together.

With G the mechanism's jump (`diffusion/jump.py`), x_u the point to which the road from x_t leads, and
G' the target, which does not learn,

    minimise  E lambda(t) d( G(x_t, t, s), G'(x_u, u, s) ),    s <= u < t,

says that G is the same along a road, and G(x_s, s, s) = x_s where it ends: G is the road's own map. The
families differ in who knows the road, in s, in the grid of times and in d:

    training       x_u has the noise of x_t: unbiased as u -> t, no teacher
    distillation   a teacher's sampler takes a step, or several, deterministic or with noise of its own
    s              0; the edge below u (phased); any (trajectory), compared after both went on to 0

Beside this may stand the denoiser's loss of g(x_t, t, t), and a critic who tells what landed at s from
data noised to s: both draw on data, so that what the teacher or the grid gets wrong is mended.

`undistilled.py` and `distilled.py` name the published members of the family.
"""  # noqa: E501

from __future__ import annotations

import copy

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.diffusion.consistent import Distance, Grid, PseudoHuber
from subjunctive.diffusion.denoise import column
from subjunctive.diffusion.guide import guided_together
from subjunctive.diffusion.jump import carry, jump
from subjunctive.diffusion.schedule import Schedule
from subjunctive.mechanism import Parents
from subjunctive.mechanisms.consistency import Consistency, Landing, Told
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.scm import SCM
from subjunctive.training.objective import Objective, Player
from subjunctive.variable import Batch, as_matrix


class Teacher(nn.Module):
    """A trained diffusion mechanism that walks the road from x_t to x_u.

    Args:
        mechanism: it is copied, and does not learn.
        parts: steps of its sampler a road.
        heun: whether they are of second order, two evaluations each.
        noise: eta of these steps: 0 walks the ODE, 1 the SDE.
        skip: how many intervals of the grid a road spans.
        strengths: the range from which the strength of the parents is drawn for each row, evenly in
            its logarithm; None for the mechanism's own guidance.

    Raises:
        ValueError: for numbers below 1, an eta that is no share, a range that is none.

    Example:
        >>> from subjunctive.mechanisms.diffusion import Diffusion
        >>> Teacher(Diffusion.card.example()[0], parts=2).parts
        2
    """

    def __init__(
        self,
        mechanism: Diffusion,
        parts: int = 1,
        heun: bool = False,
        noise: float = 0.0,
        skip: int = 1,
        strengths: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if parts < 1 or skip < 1 or not 0 <= noise <= 1 or (heun and noise):
            raise ValueError(
                f"a teacher takes 1 step or more over 1 interval or more, with eta from 0 to 1, "
                f"and 0 for heun; got parts={parts}, skip={skip}, noise={noise}, heun={heun}"
            )
        if strengths is not None and not 0 < strengths[0] <= strengths[1]:
            raise ValueError(f"strengths are a range of positive numbers, got {strengths}")
        self.mechanism = copy.deepcopy(mechanism).requires_grad_(False)
        self.parts, self.heun, self.noise, self.skip = parts, heun, noise, skip
        self.strengths = strengths

    def tell(self, x: Tensor, parents: Parents, code: Tensor | None) -> Told:
        """Return the roads of these rows."""
        strength, own = None, self.mechanism
        if self.strengths is None:
            denoise = own.denoise(parents, code, len(x))
        else:
            low, high = self.strengths
            strength = low * (high / low) ** torch.rand(len(x), dtype=x.dtype, device=x.device)
            there = own.condition(parents, code, x.new_ones(len(x), 1))
            absent = own.condition(parents, code, x.new_zeros(len(x), 1))
            denoise = guided_together(own.denoiser, there, absent, strength)

        def road(x_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
            schedule = own.denoiser.schedule
            return carry(denoise, schedule, x_t, t, u, self.parts, self.heun, self.noise)

        return Told(road, self.skip, strength)


class ConsistencyTraining(Objective):
    """Train the jumps of the one `Consistency` mechanism of an SCM.

    Freeze what else the model has: nobody here moves it. What the mechanism needs beside its jumps,
    the residual's scale and the inverse, learns in every `lazy`-th step.

    Reference: Consistency Models (Song, Dhariwal, Chen and Sutskever, 2023),
    https://arxiv.org/abs/2303.01469

    Args:
        grid, distance: see `diffusion.consistent`.
        teacher: who knows the road; None for training without one.
        target: the mechanism at the start, of which the jumps' goals are an average of the weights;
            it is copied. None: the goals are the mechanism's own.
        decay: of that average, `decay^(grid.first / N)` at N intervals.
        weighted: whether a row counts by one over its interval's width.
        denoise: weight of the loss of the denoiser g(x_t, t, t).
        early: share of the grid, from clean data on, in which jumps to 0 also answer for the data,
            `|G(x_t, t, 0) - x_0|^2`.
        couple: whether noise is dealt to the rows of a batch so that both are closest in all, the
            optimal transport of the batch. It would tie noise to parents and code: for nodes that
            have none.
        critic: called with x at s, and beside it the parents' matrix, the code and a quarter of the
            log-SNR at s; gives `(B, 1)`. See `adversarial.critic`, with a latent one wider than the
            code.
        game: weight of what the jumps owe the critic.
        lazy: how often the rest learns.

    Raises:
        ValueError: for shares and weights that are none, and, in training, for a model without one
            consistency mechanism, or rows that miss its node.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.train import fit
        >>> own, batch = Consistency.card.example()
        >>> other = copy.deepcopy(own)
        >>> done = fit(Alone(own), batch, ConsistencyTraining(), steps=2, progress=False)
        >>> torch.equal(own.diffusion.denoiser.network.embed[0].weight,
        ...             other.diffusion.denoiser.network.embed[0].weight)
        False
    """

    def __init__(
        self,
        grid: Grid | None = None,
        distance: Distance | None = None,
        teacher: Teacher | None = None,
        target: Consistency | None = None,
        decay: float = 0.95,
        weighted: bool = True,
        denoise: float = 0.0,
        early: float = 0.0,
        couple: bool = False,
        critic: nn.Module | None = None,
        game: float = 0.1,
        lazy: int = 4,
    ) -> None:
        super().__init__()
        for name, share in (("decay", decay), ("early", early)):
            if not 0 <= share <= 1:
                raise ValueError(f"ConsistencyTraining has {name}={share}; a share is from 0 to 1")
        if denoise < 0 or game < 0 or lazy < 1:
            raise ValueError(
                f"ConsistencyTraining has denoise={denoise}, game={game} and lazy={lazy}; weights "
                "are 0 or more, lazy is 1 or more"
            )
        self.grid, self.distance = grid or Grid(8, 64), distance or PseudoHuber()
        self.teacher, self.critic, self.game, self.lazy = teacher, critic, game, lazy
        self.target = None if target is None else copy.deepcopy(target).requires_grad_(False)
        self.decay, self.weighted, self.denoise = decay, weighted, denoise
        self.early, self.couple = early, couple

    def players(self, model: nn.Module) -> list[Player]:
        """Return the critic, if there is one, the jumps, and the rest."""
        own = consistency(model)
        moving = [*own.diffusion.denoiser.parameters()]
        if own.diffusion.encoder is not None:
            moving += own.diffusion.encoder.parameters()
        ids = {id(p) for p in moving}
        rest = [p for p in own.parameters() if id(p) not in ids]
        players = [Player("jumps", moving), Player("rest", rest, every=self.lazy)]
        if self.critic is not None:
            players.insert(0, Player("critic", self.critic.parameters(), betas=(0.5, 0.99)))
        return players

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, `(B,)` each."""
        own = consistency(model)
        x, parents = seen(model, own, batch)
        if player == "rest":
            return own.rest(x, parents)
        if player == "critic":
            with torch.no_grad():
                code, landing = self._land(own, x, parents, step)
            true, false = self._judge(own, x, parents, code, landing)
            return {"true": F.relu(1 - true), "false": F.relu(1 + false)}
        if self.target is not None and self.training:
            self._follow(own, step)
        code, landing = self._land(own, x, parents, step)
        terms = {"jump": landing.apart}
        encoder = own.diffusion.encoder
        if code is not None and encoder is not None and _learns(encoder):
            mean, log_variance = own.diffusion.posterior(x)
            kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
            terms["code"] = own.diffusion.beta * kl / own.variable.width
        if self.denoise or self.early:
            terms["denoise"] = self._denoise(own, x, parents, code)
        if self.critic is not None:
            _, false = self._judge(own, x, parents, code, landing)
            terms["game"] = -self.game * false
        return terms

    def _land(
        self, own: Consistency, x: Tensor, parents: Parents, step: int
    ) -> tuple[Tensor | None, Landing]:
        code = None
        if own.diffusion.encoder is not None:
            mean, log_variance = own.diffusion.posterior(x)
            code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        if self.couple and (own.parents or code is not None):
            raise ValueError(
                f"couple=True would tie the noise of {own.variable.name!r} to its parents or its "
                "code, of which it must be independent; leave it out"
            )
        told = Told(noise=coupled(x) if self.couple else None)
        if self.teacher is not None:
            told = self.teacher.tell(x, parents, code)
        landing = own.agreement(
            *(x, parents, code), grid=self.grid, distance=self.distance, step=step,
            target=self.target, told=told, weighted=self.weighted,
        )  # fmt: skip
        return code, landing

    def _denoise(
        self, own: Consistency, x: Tensor, parents: Parents, code: Tensor | None
    ) -> Tensor:
        """Return the loss of g(x_t, t, t) over all times, or of the jumps to 0 at early ones."""
        share = self.early or 1.0
        t = share * torch.rand(len(x), dtype=x.dtype, device=x.device)
        schedule = own.schedule
        noisy = column(schedule.alpha(t), x) * x + column(schedule.sigma(t), x) * torch.randn_like(
            x
        )
        estimate = own.estimate(parents, code, len(x))
        if self.early:
            return (jump(estimate, schedule, noisy, t, 0 * t) - x).square().reshape(
                len(x), -1).sum(1)  # fmt: skip
        square = (estimate(noisy, t, t) - x).square().reshape(len(x), -1).sum(1)
        return self.denoise * own.diffusion.denoiser.weight(t) * square

    def _judge(
        self, own: Consistency, x: Tensor, parents: Parents, code: Tensor | None, landing: Landing
    ) -> tuple[Tensor, Tensor]:
        """Return what the critic says of data noised to s and of what landed there, `(B,)`."""
        if self.critic is None:
            raise ValueError("there is no critic to ask")
        schedule, s = own.schedule, landing.s
        real = noised(x, s, schedule)
        matrix = [as_matrix(parents, own.parents).to(x)] if own.parents else []
        beside = [*matrix, *([] if code is None else [code.detach()])]
        aside = torch.cat([*beside, schedule.log_snr(s)[:, None].to(x) / 4], dim=1)
        true, false = (self.critic(v, aside).reshape(-1).float() for v in (real, landing.x))
        return true, false

    @torch.no_grad()
    def _follow(self, own: Consistency, step: int) -> None:
        """Let the target follow the mechanism."""
        decay = self.decay ** (self.grid.first / self.grid.intervals(step)) if step else 0.0
        if self.target is not None:
            for kept, new in zip(self.target.parameters(), own.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)


class Alone(nn.Module):
    """A consistency mechanism as a model, to train it where there is no SCM.

    Args:
        mechanism: a `Consistency`.
    """

    def __init__(self, mechanism: Consistency) -> None:
        super().__init__()
        self.mechanism = mechanism


def consistency(model: nn.Module) -> Consistency:
    """Return the one consistency mechanism of an SCM, or of `Alone`.

    Raises:
        ValueError: if there is none, or more than one.
    """
    if isinstance(model, Alone):
        return model.mechanism
    among = model.mechanisms if isinstance(model, SCM) else {}
    found = {name: own for name, own in among.items() if isinstance(own, Consistency)}
    if len(found) != 1:
        raise ValueError(
            f"consistency training needs an SCM with one Consistency mechanism; this "
            f"{type(model).__name__} has {sorted(found) or 'none'}"
        )
    return next(iter(found.values()))


def seen(model: nn.Module, own: Consistency, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the node's standardised rows and their parents', completed where they are missing.

    Raises:
        ValueError: for rows that miss the node.
    """
    name = own.variable.name
    if isinstance(model, SCM):
        batch = model.batch(batch)
        if name not in batch.values or not bool(batch.mask(name).all()):
            raise ValueError(f"consistency training needs rows that saw {name!r}; not all did")
        with torch.no_grad():
            values = model.complete(batch).values
    else:
        values = batch.values
    return values[name], {p.name: values[p.name] for p in own.parents}


def noised(x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return rows x noised to times t, `(B,)`."""
    return column(schedule.alpha(t), x) * x + column(schedule.sigma(t), x) * torch.randn_like(x)


def coupled(x: Tensor) -> Tensor:
    """Return noise for the rows x, dealt to them so that the sum of squared distances is least.

    >>> rows = torch.tensor([[3.0], [-3.0]])
    >>> noise = coupled(rows)
    >>> bool(noise[0] >= noise[1])
    True
    """
    noise = torch.randn_like(x)
    close = x.detach().reshape(len(x), -1).float() @ noise.reshape(len(x), -1).float().T
    _, dealt = linear_sum_assignment(close.cpu().numpy(), maximize=True)
    return noise[torch.as_tensor(dealt, device=x.device)]


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
