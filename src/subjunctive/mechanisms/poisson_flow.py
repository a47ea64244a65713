"""PFGM++: a diffusion mechanism whose noise is a Poisson kernel's; see `diffusion/poisson.py`.

    x_t = alpha_t x + sigma_t e,    p(e) propto (1 + |e|^2 / D)^(-(N + D) / 2)

Schedule, denoiser and sampler stay as they are, with r = sigma sqrt(D). Two things change: the
noise that the denoiser learns from, and the density of the noise that the ODE starts at. It is the
same e, for at the noisiest level the data are nothing beside sigma e. D = infinity is the mechanism
itself.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from subjunctive.card import Card
from subjunctive.diffusion.denoise import Denoiser
from subjunctive.diffusion.multistep import Multistep
from subjunctive.diffusion.poisson import PoissonKernel
from subjunctive.diffusion.sample import DDIM, Heun
from subjunctive.diffusion.schedule import EDM
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.nn import UNet
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    with seeded(0):
        image, t, schedule = Variable("x", (1, 8, 8)), Variable("t"), EDM(0.05, 20.0)
        network = UNet(1, condition=condition_width([t], 0), width=8, multipliers=(1,))
        denoiser = Denoiser(network, schedule, "edm")
        inner = Diffusion(image, [t], denoiser, sampler=Heun(schedule, 6), drop=0.0)
        stirred(inner)
    mechanism = PoissonFlow(inner, augmented=16.0)
    return mechanism, own_samples(mechanism, rows=128)


class PoissonFlow(Mechanism):
    """A diffusion mechanism that learns from a Poisson kernel's noise, and starts at it.

    Reference: PFGM++: Unlocking the Potential of Physics-Inspired Generative Models (Xu, Liu, Tian,
    Tong, Tegmark and Jaakkola, 2023), https://arxiv.org/abs/2302.04265.

    Args:
        mechanism: without a code, with a deterministic sampler; its weights are shared, its
            `guidance` and `drop` obeyed, and its residual's scale, which no sampler uses, frozen.
        augmented: D, the number of further dimensions: small is robust to an estimate's errors,
            large is easy to learn, infinite is the mechanism itself.

    Raises:
        ValueError: for another mechanism or sampler, or a D that is not positive.

    Example:
        >>> from subjunctive.mechanism import draw
        >>> mechanism, batch = PoissonFlow.card.example()
        >>> u = draw(mechanism.prior(), 128)
        >>> again = mechanism.abduct(mechanism(u, batch.values), batch.values)
        >>> torch.allclose(again["start"], u["start"], atol=1e-3)
        True
    """

    card: ClassVar[Card] = Card(
        name="PFGM++: Poisson flow",
        summary="A diffusion mechanism whose noise has heavier tails, by a number of further "
        "dimensions: between Poisson flows and diffusion.",
        title="PFGM++: Unlocking the Potential of Physics-Inspired Generative Models",
        authors="Xu, Yilun and Liu, Ziming and Tian, Yonglong and Tong, Shangyuan and "
        "Tegmark, Max and Jaakkola, Tommi",
        year=2023,
        url="https://arxiv.org/abs/2302.04265",
        assumptions=("the pixels' noise is independent of the parents",),
        needs="a continuous node, images above all; its parents' values, some may be missing",
        tolerance=1e-4,
        of=(268,),
        example=_example,
    )

    def __init__(self, mechanism: Diffusion, augmented: float = 2048.0) -> None:
        super().__init__(mechanism.variable, mechanism.parents)
        self.mechanism, self.augmented = mechanism, augmented
        sampler, code = (getattr(mechanism, name, None) for name in ("sampler", "code"))
        straight = isinstance(sampler, DDIM | Heun | Multistep) and not getattr(sampler, "eta", 0)
        if not isinstance(mechanism, Diffusion) or code or not straight:
            raise ValueError(
                f"{type(mechanism).__name__} of {self.variable.name!r} has code={code} and the "
                f"sampler {type(sampler).__name__}, eta={getattr(sampler, 'eta', 0)}; a Poisson "
                "flow is a Diffusion without a code, carried by an ODE: DDIM with eta=0, Heun or "
                "Multistep. Steps that draw their own noise are right for Gaussian noise alone"
            )
        self._kernel()
        mechanism.log_scale.requires_grad_(False)

    def prior(self) -> Prior:
        """Return the kernel's density for `start`."""
        return {"start": self._kernel()}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: the noise, carried by the ODE."""
        x: Tensor = self.mechanism(u, parents)
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return the noise that is carried to x."""
        return self.mechanism.abduct(x, parents)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `denoise`, as the mechanism does, `(B,)`, from the kernel's noise."""
        inner, rows = self.mechanism, len(x)
        keep = (torch.rand(rows, 1, device=x.device, dtype=x.dtype) >= inner.drop).to(x.dtype)
        strata = torch.randperm(rows, device=x.device) + torch.rand(rows, device=x.device)
        noise = PoissonKernel(torch.zeros_like(x[0]), self.augmented).sample((rows,))
        condition = inner.condition(parents, None, keep)
        return {"denoise": inner.denoiser.loss(x, condition, strata / rows, noise) / 2}

    def _kernel(self) -> PoissonKernel:
        return PoissonKernel(self.origin.expand(self.variable.shape), self.augmented)
