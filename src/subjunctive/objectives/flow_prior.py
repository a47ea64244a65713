r"""A flow as a prior: latents are pulled to a distribution that a frozen flow model has learned.

A flow model of a target distribution is the velocity v of x_t = alpha_t x + sigma_t e, learned by

    L(x) = E_{t, e} |v(x_t, t) - (alpha_t' x + sigma_t' e)|^2,    e ~ N(0, I),  t uniform

averaged over the target's x. Frozen and read as a function of x, the same loss says how far x is
from what the flow expects, and its gradient pulls a latent x = f(data) to where the target is dense:
the target may be known by samples alone, and no ODE is solved.

**Against the likelihood.** With D(x_t, t) = E[x | x_t], `v = alpha' D + sigma' (x_t - alpha D) / sigma`
and lambda the log-SNR, whose slope is negative,

    L(x)       = E_t [(alpha_t lambda_t' / 2)^2          E_e |D(x_t, t) - x|^2]
    -log p(x)  = E_t [exp(lambda_t) |lambda_t'| / 2      E_e |D(x_t, t) - x|^2] + c

The second holds for the exact D, with c = d/2 log(2 pi e) - d/2 log(1 + exp(lambda_0)) in d dimensions
and the schedule's ends far enough out; for a learned D it is a bound on -log p(x) of the model's own
p. The two weights differ by `sigma_t^2 |lambda_t'| / 2`, t / (1 - t) on the straight line: the flow's
loss is a smoothed -log p, which hears the target's outline more than its grain.

A loss of one row at a time knows nothing of the rows' spread: minimised alone it carries every row to
a mode. Where the latent is drawn from an encoder's q(z | x), the entropy of q is what holds against it:

    E_q[L(z)] - H(q) / d  =  KL(q(z | x) || p) / d        with L the likelihood's reading

and the model is a variational autoencoder whose prior is the flow.
"""  # noqa: E501

from __future__ import annotations

import copy
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.diffusion import Denoiser, RectifiedFlow
from subjunctive.diffusion.denoise import column
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.scm import SCM
from subjunctive.training.objective import ModelLoss, Objective, Player
from subjunctive.variable import Batch, Variable, known, nearest

Reading = Literal["flow", "likelihood"]


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.graph import Graph
    from subjunctive.mechanisms.linear import own_samples
    from subjunctive.mechanisms.vae import VAE
    from subjunctive.nn import Timed
    from subjunctive.train import fit

    with seeded(0):
        prior = FlowPrior(Denoiser(Timed(2, width=8), RectifiedFlow(), "velocity"))
        vae = VAE.of(Variable("x", (4,)), latent=2, widths=(16,), beta=0.0)
        rows = Batch({"x": torch.randn(64, 4)})
    fit(SCM(Graph.parse("x"), {"x": vae}), rows, Aligned(prior, "x"), steps=5, progress=False)
    return vae, own_samples(vae, rows=256)


class FlowPrior(nn.Module):
    """The loss of a frozen flow model as a prior of latents.

    Reference: Aligning Latent Spaces with Flow Priors (Li, Ge, Ge, Shan and Luo, 2025),
    https://arxiv.org/abs/2506.05240; the likelihood by denoising errors: Information-Theoretic
    Diffusion (Kong, Brekelmans and Ver Steeg, 2023), https://arxiv.org/abs/2302.03792.

    Args:
        denoiser: of the target distribution, trained by its own loss; a copy is kept, which nothing
            moves.
        reading: the weight of the times: `flow`, as the velocity's error counts them, or
            `likelihood`, which makes the loss -log p(x).
        draws: times and noises a row.

    Raises:
        ValueError: for an unknown reading, or no draw.

    Example:
        >>> from subjunctive.nn import Timed
        >>> prior = FlowPrior(Denoiser(Timed(2, width=8), RectifiedFlow(), "velocity"), draws=4)
        >>> z = torch.randn(5, 2, requires_grad=True)
        >>> prior.loss(z).mean().backward()
        >>> z.grad.shape, any(p.requires_grad for p in prior.parameters())
        (torch.Size([5, 2]), False)
    """

    def __init__(self, denoiser: Denoiser, reading: Reading = "flow", draws: int = 1) -> None:
        super().__init__()
        if reading not in get_args(Reading):
            options = get_args(Reading)
            raise ValueError(
                f"FlowPrior has reading={reading!r}, not one of {options}."
                f"{nearest(reading, options)}"
            )
        if draws < 1:
            raise ValueError(f"FlowPrior needs draws of at least 1, got {draws}")
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        self.reading, self.draws = reading, draws
        self.train(False)

    def train(self, mode: bool = True) -> FlowPrior:
        """Stay in evaluation mode: a frozen model does not drop activations either."""
        return super().train(False)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of |D - x|^2 at times t, elementwise."""
        schedule = self.denoiser.schedule
        slope = torch.func.jvp(schedule.log_snr, (t,), (torch.ones_like(t),))[1]
        if self.reading == "flow":
            return (schedule.alpha(t) * slope / 2).square()
        return schedule.log_snr(t).exp() * slope.abs() / 2

    def loss(self, x: Tensor) -> Tensor:
        """Return the loss of rows, mean over their entries, `(B,)`; gradients flow to x.

        Args:
            x: `(B, *shape)`, of the shape that the denoiser takes.
        """
        rows, k, schedule = len(x), self.draws, self.denoiser.schedule
        first = (torch.randperm(rows, device=x.device) + torch.rand(rows).to(x)) / rows
        t = ((torch.arange(k, device=x.device) + first[:, None]) / k).reshape(-1)
        many = x.repeat_interleave(k, dim=0)
        noise = torch.randn_like(many)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x_t = column(alpha, many) * many + column(sigma, many) * noise
        error = (self.denoiser(x_t, t) - many).square().reshape(rows * k, -1).mean(1)
        # what the draw of e does to the error of data N(0, I), less its mean: it says nothing of x
        chance = noise.square().reshape(rows * k, -1).mean(1) - 1
        chance = chance * (alpha * sigma / (alpha.square() + sigma.square())).square()
        found = (self.weight(t) * (error - chance)).reshape(rows, k).mean(1)
        if self.reading == "flow":
            return found
        least = schedule.log_snr(t.new_zeros(()))
        return found + (math.log(2 * math.pi) + 1) / 2 - nn.functional.softplus(least) / 2

    card = Card(
        name="Flow prior of a latent",
        summary="Latents pulled to the distribution that a frozen flow model has learned, by the "
        "flow's own loss.",
        title="Aligning Latent Spaces with Flow Priors",
        authors="Li, Yizhuo and Ge, Yuying and Ge, Yixiao and Shan, Ying and Luo, Ping",
        year=2025,
        url="https://arxiv.org/abs/2506.05240",
        assumptions=("the flow model has learned the target distribution",),
        needs="samples of the target distribution, and a mechanism with an encoder",
        abduction="approximate",
        tolerance=2e-6,
        of=(15,),
        example=_example,
    )


class Aligned(Objective):
    """An objective, and beside it the alignment of one node's latent to a flow prior.

    The latent z is drawn from the mechanism's q = `posterior(x, parents)`, as the VAE has it, and
    pays `weight (L(z) + log q(z) / d)`: with the likelihood's reading and the VAE's `beta=0` this
    is the evidence lower bound with the flow as prior, where `weight` is `d / variable.width`,
    because the VAE counts nats an entry of x.

    Args:
        prior: of latents `(B, d)`.
        node: whose mechanism's latent it is; rows that did not see it pay nothing.
        weight: of the alignment.
        entropy: whether log q is counted; without it q shrinks to a point, and the mechanism is an
            autoencoder whose code is aligned.
        objective: what is minimised beside it, whose first player pays; the model's own loss if
            None.

    Raises:
        ValueError: for a negative weight; and, in `loss`, for a mechanism without a posterior.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms import VAE
        >>> from subjunctive.nn import Timed
        >>> prior = FlowPrior(Denoiser(Timed(2, width=8), RectifiedFlow(), "velocity"))
        >>> x = Variable("x", (4,))
        >>> model = SCM(Graph.parse("x"), {"x": VAE(x, latent=2, beta=0.0)})
        >>> terms = Aligned(prior, "x").loss(model, Batch({"x": torch.randn(5, 4)}), "model", 0)
        >>> {name: tuple(term.shape) for name, term in terms.items()}
        {'x.nll': (5,), 'x.kl': (5,), 'x.align': (5,)}
    """

    def __init__(
        self,
        prior: FlowPrior,
        node: str,
        weight: float = 1.0,
        entropy: bool = True,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"Aligned needs a weight of at least 0, got {weight}")
        self.prior, self.node, self.weight, self.entropy = prior, node, weight, entropy
        self.objective = ModelLoss() if objective is None else objective

    def players(self, model: nn.Module) -> list[Player]:
        """Return the players of the objective beside it."""
        return self.objective.players(model)

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, and for the first player `<node>.align`."""
        terms = self.objective.loss(model, batch, player, step)
        if player != self.players(model)[0].name:
            return terms
        q = self.posterior(model, batch)
        z = q.rsample()
        found = self.prior.loss(z)
        found = found + q.log_prob(z) / z.shape[1] if self.entropy else found
        seen = batch.mask(self.node).to(found.device)
        return {**terms, f"{self.node}.align": torch.where(seen, self.weight * found, 0.0)}

    def posterior(self, model: nn.Module, batch: Batch) -> Distribution:
        """Return q(z | x, parents) of the node, of event shape `(d,)`."""
        if not isinstance(model, SCM):
            raise ValueError(
                f"Aligned reads a node's latent in an SCM, not in a {type(model).__name__}; for "
                "another model write an Objective that adds prior.loss(latents)"
            )
        known(self.node, model.graph.nodes, "Aligned")
        mechanism = model.mechanisms[self.node]
        values = model.standard(model.batch(batch))
        posterior = getattr(mechanism, "posterior", None)
        x, parents = values[self.node], {p.name: values[p.name] for p in mechanism.parents}
        q = None if posterior is None else posterior(x, parents)
        if not isinstance(q, Distribution):
            raise ValueError(
                f"{type(mechanism).__name__}, the mechanism of {self.node!r}, has no posterior of "
                "a latent that could be drawn from; take one that has, such as VAE"
            )
        return q
