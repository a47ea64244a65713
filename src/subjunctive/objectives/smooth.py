r"""Smooth diffusion: equal moves of the noise move the picture by equal amounts.

One evaluation of a diffusion model shows the data that it expects as a function of the noise,

    x0(e) = D(alpha_t x + sigma_t e, t),    J = dx0/de = sigma_t D'(x_t, t).

Seen along a direction y of unit norm in the space of pictures, the noise moves it by |J^T y|; over y
drawn evenly, E|J^T y|^2 = |J|_F^2 / d, the mean square of J's singular values in d dimensions. Where
this differs from row to row, direction to direction and time to time, a walk at constant speed
through the noise is one that stands still and leaps through the pictures. Hence the price

    R = E_{x, e, t, y} (|J^T y| - a)^2,    a <- decay a + (1 - decay) E|J^T y|,

whose a is no target but the running mean: it asks for evenness, not for a size. `J^T y` is one
backward pass, `grad_e <x0(e), y>`, differentiated once more when the network learns.

**What it costs.** For the exact denoiser J is no free choice, `D' = alpha / sigma^2 Cov(x | x_t)`: for
data N(0, I) it has |J^T y| = alpha sigma / (alpha^2 + sigma^2) whatever y, nought at both ends of
time. A single a for all times, the paper's, asks for what no denoiser can give. With `levels` above
one each equal share of time has an a of its own, and only what varies within it is priced.

Reference: Smooth Diffusion: Crafting Smooth Latent Spaces in Diffusion Models (Guo et al., 2024),
https://arxiv.org/abs/2312.04410; the running mean: Analyzing and Improving the Image Quality of
StyleGAN (Karras, Laine, Aittala, Hellsten, Lehtinen and Aila, 2020), https://arxiv.org/abs/1912.04958
"""  # noqa: E501

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from subjunctive.card import Card
from subjunctive.diffusion import Cosine, Denoiser
from subjunctive.diffusion.denoise import Denoise, column
from subjunctive.diffusion.schedule import Schedule
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.scm import SCM
from subjunctive.training.objective import ModelLoss, Objective, Player
from subjunctive.variable import Batch, Variable, known


def variation(
    denoise: Denoise, schedule: Schedule, x: Tensor, t: Tensor, noise: Tensor, direction: Tensor
) -> Tensor:
    """Return |J^T y| of every row, `(B,)`, J the estimate's Jacobian in the noise.

    Gradients flow on to the denoiser's parameters where they are asked for.

    Args:
        denoise: `(x_t, t) -> E[x | x_t]`; rows do not act on each other.
        schedule: alpha and sigma as functions of time.
        x: clean data `(B, *shape)`.
        t: times `(B,)`.
        noise: e, of the shape of x.
        direction: y, of the shape of x; taken at unit norm a row.

    Example:
        >>> from subjunctive.diffusion import Cosine
        >>> x, y = torch.zeros(2, 3), torch.eye(3)[:2]
        >>> half = lambda x_t, t: x_t / 2  # J = sigma / 2, and sigma^2 = 1/2
        >>> variation(half, Cosine(), x, torch.full((2,), 0.5), torch.randn(2, 3), y)
        tensor([0.3536, 0.3536])
    """
    learns = torch.is_grad_enabled()
    y = nn.functional.normalize(direction.reshape(len(x), -1), dim=1).reshape(x.shape)
    # attention's fused kernels cannot be differentiated twice
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        e = noise.detach().requires_grad_(True)
        x_t = column(schedule.alpha(t), x) * x + column(schedule.sigma(t), x) * e
        along = (denoise(x_t, t) * y).sum()
        back = torch.autograd.grad(along, e, create_graph=learns)[0]
    return torch.linalg.vector_norm(back.reshape(len(x), -1), dim=1)


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.graph import Graph
    from subjunctive.mechanisms.linear import LinearGaussian, own_samples
    from subjunctive.nn import UNet
    from subjunctive.train import fit

    image, parent = Variable("x", (1, 8, 8)), Variable("t")
    with seeded(0):
        width = condition_width([parent], 0)
        network = UNet(1, condition=width, width=8, multipliers=(1,), size=8)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        mechanism = Diffusion(image, [parent], Denoiser(network, Cosine()))
        nodes = {"t": LinearGaussian(parent), "x": mechanism}
        rows = Batch({"t": torch.randn(64), "x": torch.randn(64, 1, 8, 8)})
    model = SCM(Graph.parse("t -> x"), nodes)
    fit(model, rows, Smooth("x", weight=1.0), steps=3, progress=False)
    return mechanism, own_samples(mechanism, rows=64)


class Smooth(Objective):
    """An objective, and beside it the step-wise variation regularisation of one diffusion node.

    Times are uniform and stratified over the batch; parents are present; a code, where the
    mechanism has one, is drawn and held, so that the denoiser alone pays. Among several processes
    each keeps the running mean of its own rows.

    Reference: Smooth Diffusion: Crafting Smooth Latent Spaces in Diffusion Models (Guo, Xu, Pu, Ni,
    Wang, Vasu, Song, Huang and Shi, 2024), https://arxiv.org/abs/2312.04410

    Args:
        node: whose mechanism is a `Diffusion`; rows that did not see it pay nothing.
        weight: of (|J^T y| - a)^2, in nats an entry of x, as `Diffusion` counts its loss.
        decay: of the running mean a, which starts as the plain mean of what has been seen.
        levels: equal shares of time with an a of their own; 1 is the paper's.
        lazy: it is paid in every `lazy`-th step, `lazy` times over.
        objective: what is minimised beside it, whose first player pays; the model's own loss if
            None.

    Raises:
        ValueError: for a negative weight, a decay outside [0, 1), levels or lazy below 1; and, in
            `loss`, for a model that is no SCM or a node whose mechanism is no `Diffusion`.
        KeyError: in `loss`, for a node that the model has not.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.nn import UNet
        >>> x = Variable("x", (1, 8, 8))
        >>> network = UNet(1, condition=condition_width([], 0), width=8, size=8)
        >>> mechanism = Diffusion(x, [], Denoiser(network, Cosine()), anchor=0.0)
        >>> model = SCM(Graph.parse("x"), {"x": mechanism})
        >>> terms = Smooth("x").loss(model, Batch({"x": torch.randn(5, 1, 8, 8)}), "model", 0)
        >>> {name: tuple(term.shape) for name, term in terms.items()}
        {'x.nll': (5,), 'x.denoise': (5,), 'x.smooth': (5,)}
    """

    mean: Tensor
    seen: Tensor

    def __init__(
        self,
        node: str,
        weight: float = 1.0,
        decay: float = 0.99,
        levels: int = 1,
        lazy: int = 1,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        if not (0 <= weight < math.inf and 0 <= decay < 1 and levels >= 1 and lazy >= 1):
            raise ValueError(
                "Smooth needs weight >= 0, decay in [0, 1), levels >= 1 and lazy >= 1, got weight="
                f"{weight}, decay={decay}, levels={levels} and lazy={lazy}"
            )
        self.node, self.weight, self.decay = node, weight, decay
        self.levels, self.lazy = levels, lazy
        self.objective = ModelLoss() if objective is None else objective
        self.register_buffer("mean", torch.zeros(levels))
        self.register_buffer("seen", torch.zeros(levels))  # batches that a level has had rows of

    def players(self, model: nn.Module) -> list[Player]:
        """Return the players of the objective beside it."""
        return self.objective.players(model)

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, and for the first player, when due, `<node>.smooth`."""
        terms = self.objective.loss(model, batch, player, step)
        often = self.lazy if self.training else 1
        if step % often or player != self.players(model)[0].name:
            return terms
        found, t = self.measure(model, batch)
        level = (t * self.levels).long().clamp(max=self.levels - 1)
        there = batch.mask(self.node).to(found.device)
        if self.training:
            self.follow(found.detach()[there], level[there])
        price = (found - self.mean.to(found)[level]).square()
        price = torch.where(there, often * self.weight * price, 0.0)
        return {**terms, f"{self.node}.smooth": price}

    def measure(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return |J^T y| of rows at times, noises and directions drawn anew, and the times."""
        mechanism = self._mechanism(model)
        values = model.standard(model.batch(batch))  # type: ignore[operator]
        x, parents = values[self.node], {p.name: values[p.name] for p in mechanism.parents}
        rows, code = len(x), None
        if mechanism.encoder is not None:
            with torch.no_grad():
                centre, log_variance = mechanism.posterior(x)
                code = centre + torch.exp(log_variance / 2) * torch.randn_like(centre)
        there = mechanism.condition(parents, code, x.new_ones(rows, 1))
        t = (torch.randperm(rows, device=x.device) + torch.rand(rows, device=x.device)) / rows
        t = t.to(x)
        found = variation(
            lambda x_t, at: mechanism.denoiser(x_t, at, there),
            mechanism.denoiser.schedule,
            *(x, t, torch.randn_like(x), torch.randn_like(x)),
        )
        return found, t

    @torch.no_grad()
    def follow(self, found: Tensor, level: Tensor) -> None:
        """Let the running mean of each level follow that of the rows `(B,)` that are in it."""
        rows = torch.bincount(level, minlength=self.levels)
        total = torch.zeros_like(self.mean).index_add_(0, level, found.to(self.mean))
        had = (rows > 0).to(self.mean)
        self.seen += had
        rate = had * (1 / self.seen.clamp(min=1)).clamp(min=1 - self.decay)
        self.mean += rate * (total / rows.clamp(min=1) - self.mean)

    def _mechanism(self, model: nn.Module) -> Diffusion:
        if not isinstance(model, SCM):
            raise ValueError(
                f"Smooth regularises a node of an SCM, got a {type(model).__name__}; for another "
                "model write an Objective that adds (variation(...) - its mean)^2"
            )
        known(self.node, model.graph.nodes, "Smooth")
        mechanism = model.mechanisms[self.node]
        if not isinstance(mechanism, Diffusion):
            raise ValueError(
                f"Smooth regularises a Diffusion at {self.node!r}, which has a "
                f"{type(mechanism).__name__}"
            )
        return mechanism

    card = Card(
        name="Smooth diffusion",
        summary="A diffusion mechanism whose picture moves evenly with its noise, by a price on "
        "the variation of the denoiser's Jacobian.",
        title="Smooth Diffusion: Crafting Smooth Latent Spaces in Diffusion Models",
        authors="Guo, Jiayi and Xu, Xingqian and Pu, Yifan and Ni, Zanlin and Wang, Chaofei and "
        "Vasu, Manushree and Song, Shiji and Huang, Gao and Shi, Humphrey",
        year=2024,
        url="https://arxiv.org/abs/2312.04410",
        assumptions=("equal moves of the noise should move the data equally",),
        needs="a diffusion mechanism and the rows that it learns from",
        abduction="approximate",
        tolerance=1e-4,
        of=(60,),
        example=_example,
    )
