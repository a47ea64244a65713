r"""One mechanism's value refined by another: a blurred picture first, then what it lacks.

    v ~ p(v),  x_hat = E[x | v, pa]             the first stage, a VAE say, without its residual
    w ~ p(w),  x = g(w; x_hat, pa)              the refiner, a diffusion, that sees x_hat, or
               x = x_hat + g(w; x_hat, pa)      one that makes what x_hat lacks

The noise of x is (v, w). Abduction takes v from the first stage and w from the refiner, given v.
With q(v | x, pa) that of the first stage, x_hat at its draws, and the refiner's own bound L_g,

    log p(x | pa) >= E_q L_g(x; x_hat, pa) - KL(q(v | x, pa) || p(v)).

Refiner and first stage are trained one after the other, or together; then the first stage keeps its
own bound, which holds the KL, and the gradient of L_g ends at x_hat.

**Two formulations** of a diffusion under x_hat. The forward process is the plain one, and the
denoiser sees x_hat (`conditioned`):

    q(x_t | x) = N(alpha_t x, sigma_t^2),                                  x_1 ~ N(0, I),

or every step also pulls towards x_hat (`residual`), x_t = a x_s + (1 - a) x_hat + b e, a and b the
plain one's. Take x_hat off both sides: x_t - x_hat = a (x_s - x_hat) + b e. That is the plain
diffusion of the residual y = x - x_hat, with a denoiser that sees x_hat; in x again,

    q(x_t | x, x_hat) = N(alpha_t x + (1 - alpha_t) x_hat, sigma_t^2),     x_1 ~ N(x_hat, I),

hence no code of its own. The paper's second formulation has these steps too, but its first one goes
from x to a x + x_hat, so that x_t = alpha_t x + x_hat + sigma_t e: x_hat stays to the end, where it
is taken off. Take it off everywhere, and the first formulation is left: the same diffusion of x,
whose network sees x_t + x_hat instead of x_t, which the first layer of one that sees x_hat undoes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from subjunctive.card import Card
from subjunctive.diffusion import DDIM, Cosine, Denoiser, Sampler, Schedule
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, each, parts, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.mechanisms.vae import VAE
from subjunctive.nn import UNet
from subjunctive.variable import Batch, Variable, nearest

Formulation = Literal["conditioned", "residual"]
RESIDUAL = "residual"  # the part of the noise that a first stage leaves to the refiner


def infer(mechanism: Any, x: Tensor, parents: Parents) -> Noise:
    """Return a draw of a mechanism's noise given x, but for its residual.

    By the mechanism's own `infer(x, parents)` if it has one.
    """
    if hasattr(mechanism, "infer"):
        return mechanism.infer(x, parents)
    if isinstance(mechanism, VAE):
        return {"z": mechanism.posterior(x, parents).rsample()}
    return {k: u for k, u in mechanism.abduct(x, parents).items() if k != RESIDUAL}


def expect(mechanism: Any, u: Noise, parents: Parents, rows: int) -> Tensor:
    """Return a mechanism's value without its residual, `(rows, *shape)`.

    By the mechanism's own `expect(u, parents)` if it has one; where it has none, and is no VAE, its
    value at a residual of zero.

    Example:
        >>> vae = VAE.of(Variable("x", (2,)), latent=1)
        >>> u = {"z": torch.zeros(3, 1), "residual": torch.zeros(3, 2)}
        >>> torch.equal(expect(vae, {"z": u["z"]}, {}, 3), vae(u, {}))
        True
    """
    if hasattr(mechanism, "expect"):
        return mechanism.expect(u, parents)  # type: ignore[no-any-return]
    if isinstance(mechanism, VAE):
        return mechanism.likelihood.mean(mechanism.decode(u["z"], parents))
    zero = mechanism.origin.new_zeros(rows, *mechanism.variable.shape)
    return mechanism({**u, RESIDUAL: zero}, parents)  # type: ignore[no-any-return]


class Overlay(nn.Module):
    """A network that sees a part of its condition as channels beside its input.

    Args:
        network: called with channels, noise level and what is left of the condition.
        shape: of the part, `(C, H, W)`, or `(D,)` for a network of vectors.
        start: the column of the condition at which it begins.

    Example:
        >>> overlay = Overlay(UNet(2, outputs=1, condition=3, width=8), (1, 8, 8), start=2)
        >>> overlay(torch.zeros(5, 1, 8, 8), torch.zeros(5), torch.zeros(5, 2 + 64 + 1)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], start: int) -> None:
        super().__init__()
        self.network, self.shape, self.start = network, tuple(shape), start

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """Map x `(B, C, H, W)`, the noise level `(B,)` and the whole condition `(B, F)`."""
        width = math.prod(self.shape)
        before, shown, after = condition.split(
            [self.start, width, condition.shape[1] - self.start - width], dim=1
        )
        seen = torch.cat([x, shown.reshape(-1, *self.shape).to(x)], dim=1)
        y: Tensor = self.network(seen, noise, torch.cat([before, after], dim=1))
        return y


def _example() -> tuple[Mechanism, Batch]:
    with seeded(0):
        first = VAE.of(Variable("x", (1, 8, 8)), [Variable("t")], latent=3, widths=(8, 8))
        sampler = DDIM(Cosine(), steps=3, eta=0.5)
        mechanism = Refined.of(first, sampler, width=8, multipliers=(1,))
    return stirred(mechanism), own_samples(mechanism, rows=128)


class Refined(Mechanism):
    """A first stage, blurred as VAEs are, and a refiner of what it expects, as one mechanism.

    Reference: DiffuseVAE: Efficient, Controllable and High-Fidelity Generation from Low-Dimensional
    Latents (Pandey, Mukherjee, Rai and Kumar, 2022), https://arxiv.org/abs/2201.00308

    To train in two stages, fit the first one alone, freeze it (`first.requires_grad_(False)`) and
    fit this: a frozen first stage adds no terms to the loss. What is not frozen learns together.

    Args:
        first: the node's first mechanism. It has `infer(x, parents)` and `expect(u, parents)`: its
            noise without the residual, and the value that this stands for; or is a `VAE`; or its
            noise has a part `residual` that is zero at the value it expects.
        refiner: the same node's second mechanism, a `Diffusion` above all. Its parents are the
            first one's, and last a continuous one of the node's own shape, which x_hat is given to.
        formulation: whether the refiner makes x under x_hat, `conditioned`, or `residual`, what x
            has beyond it.
        jitter: standard deviation of noise on the x_hat that the refiner sees in training, against
            faults of the first stage that its reconstructions of data do not show.
        through: whether the refiner's loss also teaches the first stage.

    Raises:
        ValueError: for a first stage whose noise is all residual or has none, a refiner of another
            node or other parents, an unknown formulation, or a negative jitter.

    Example:
        >>> vae = VAE.of(Variable("x", (1, 8, 8)), [Variable("t")], latent=4, widths=(8, 8))
        >>> refined = Refined.of(vae, DDIM(Cosine(), steps=10, eta=1.0), width=8, multipliers=(1,))
        >>> x, parents = torch.rand(2, 1, 8, 8), {"t": torch.zeros(2)}
        >>> u = refined.abduct(x, parents)
        >>> {stage: {name: tuple(part.shape) for name, part in v.items()} for stage, v in u.items()}
        {'first': {'z': (2, 4)}, 'refiner': {'start': (2, 1, 8, 8), 'steps': (2, 10, 1, 8, 8)}}
        >>> torch.allclose(refined(u, parents), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        first: Mechanism,
        refiner: Mechanism,
        formulation: Formulation = "residual",
        jitter: float = 0.0,
        through: bool = False,
    ) -> None:
        super().__init__(first.variable, first.parents)
        if formulation not in get_args(Formulation):
            hint = nearest(formulation, get_args(Formulation))
            raise ValueError(
                f"{self.variable.name!r} has formulation={formulation!r}, not one of "
                f"{get_args(Formulation)}.{hint}"
            )
        if not 0 <= jitter < math.inf:
            raise ValueError(
                f"{self.variable.name!r} has jitter={jitter}; a standard deviation is 0 or more"
            )
        self.first, self.refiner, self.formulation = first, refiner, formulation
        self.jitter, self.through = jitter, through
        self._check()

    @classmethod
    def of(
        cls,
        first: Mechanism,
        sampler: Sampler | None = None,
        formulation: Formulation = "residual",
        width: int = 24,
        multipliers: Sequence[int] = (1, 2, 2),
        schedule: Schedule | None = None,
        sigma_data: float = 1.0,
        anchor: float = 0.1,
        jitter: float = 0.0,
    ) -> Refined:
        """Build the mechanism of an image with a diffusion of a plain U-Net.

        Args:
            first, formulation, jitter: as for the class.
            sampler: of the refiner; None for one evaluation and a residual of its own.
            width, multipliers: of the U-Net; see `nn.UNet`.
            schedule: of the diffusion; the sampler's by default, `Cosine()` if there is none.
            sigma_data: standard deviation of what the refiner makes.
            anchor: share of training rows at t = 1; see `Diffusion`.
        """
        x = first.variable
        if len(x.shape) != 3:
            raise ValueError(
                f"Refined.of makes images (C, H, W); {x.name!r} has shape {x.shape}: give the "
                "class a refiner of your own"
            )
        guide = Variable(f"expected {x.name}", x.shape)
        parents = [*first.parents, guide]
        columns = sum(p.width for p in first.parents)
        channels, height, across = x.shape
        network = UNet(
            2 * channels,
            outputs=channels,
            condition=condition_width(first.parents, 0),
            width=width,
            multipliers=multipliers,
            size=(height, across),
        )
        schedule = schedule or (Cosine() if sampler is None else sampler.schedule)
        overlay = Overlay(network, x.shape, columns)
        denoiser = Denoiser(overlay, schedule, sigma_data=sigma_data)
        refiner = Diffusion(x, parents, denoiser, sampler=sampler, drop=0.0, anchor=anchor)
        return cls(first, refiner, formulation, jitter)

    def _check(self) -> None:
        first, refiner, x = self.first, self.refiner, self.variable
        own, (*others, guide) = self.parents, refiner.parents or (x,)
        if refiner.variable.shape != x.shape or refiner.variable.discrete or x.discrete:
            raise ValueError(
                f"the refiner makes {refiner.variable.name!r} of shape {refiner.variable.shape}; "
                f"{x.name!r} has {x.shape}, and both must be continuous"
            )
        names = [p.name for p in own]
        if tuple(others) != own or guide.shape != x.shape or guide.discrete or guide.name in names:
            raise ValueError(
                f"the refiner of {x.name!r} has the parents {[p.name for p in refiner.parents]}; it"
                f" needs the first stage's, {names}, and then one of shape {x.shape} and a new "
                "name, for what the first stage expects"
            )
        noise = first.prior()
        named = noise if isinstance(noise, dict) else {}
        if set(named) <= {RESIDUAL} or not (hasattr(first, "expect") or RESIDUAL in named):
            raise ValueError(
                f"{type(first).__name__} has the noise {sorted(named) or 'of one part'}: the first "
                f"stage of {x.name!r} needs a latent part, and a {RESIDUAL!r} or methods infer and "
                "expect to do without it; VAE has both"
            )

    def prior(self) -> Prior:
        """Return the densities of the first stage's noise without residual, and the refiner's."""
        noise = {k: p for k, p in self.first.prior().items() if k != RESIDUAL}
        return {"first": noise, "refiner": self.refiner.prior()}

    def x_hat(self, u: Noise, parents: Parents) -> Tensor:
        """Return x_hat `(B, *shape)`, what the first stage makes of its noise `u["first"]`."""
        rows = len(next(part for _, part in parts(u["first"])))
        return expect(self.first, u["first"], parents, rows)

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: what the first stage expects, refined."""
        x_hat = self.x_hat(u, parents)
        x: Tensor = self.refiner(u["refiner"], self._told(parents, x_hat))
        return x_hat + x if self.formulation == "residual" else x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw the first stage's noise but for its residual, then explain the rest by the refiner.

        As exact as the refiner's own abduction.
        """
        noise = {"first": each(torch.Tensor.detach, infer(self.first, x, parents))}
        x_hat = self.x_hat(noise, parents)
        made = self.refiner.abduct(self._left(x, x_hat), self._told(parents, x_hat))
        return noise | {"refiner": made}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the refiner's terms, and the first stage's unless it is frozen, `(B,)` each."""
        terms = {}
        if any(p.requires_grad for p in self.first.parameters()):
            terms = {f"first.{k}": v for k, v in self.first.loss(x, parents).items()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.through):
            x_hat = self.x_hat({"first": infer(self.first, x, parents)}, parents)
        if self.jitter:
            x_hat = x_hat + self.jitter * torch.randn_like(x_hat)
        made = self.refiner.loss(self._left(x, x_hat), self._told(parents, x_hat))
        return terms | {f"refiner.{k}": v for k, v in made.items()}

    def _left(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return x - x_hat if self.formulation == "residual" else x

    def _told(self, parents: Parents, x_hat: Tensor) -> dict[str, Tensor]:
        return {**parents, self.refiner.parents[-1].name: x_hat}

    card = Card(
        name="DiffuseVAE: a likelihood mechanism refined by a diffusion",
        summary="A node from what a first mechanism expects of it, a VAE's blurred picture say, "
        "refined by a second one that sees it, a diffusion above all.",
        title="DiffuseVAE: Efficient, Controllable and High-Fidelity Generation from "
        "Low-Dimensional Latents",
        authors="Pandey, Kushagra and Mukherjee, Avideep and Rai, Piyush and Kumar, Abhishek",
        year=2022,
        url="https://arxiv.org/abs/2201.00308",
        assumptions=("the noise of both stages is independent of the parents",),
        needs="a continuous node, images above all, and its parents' values",
        abduction="approximate",
        tolerance=1e-4,
        of=(59,),
        example=_example,
    )
