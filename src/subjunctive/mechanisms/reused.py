"""A diffusion mechanism whose U-Net's encoder runs at key steps alone; see `diffusion/reuse.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from subjunctive.card import Card
from subjunctive.diffusion.denoise import Denoiser
from subjunctive.diffusion.reuse import Backward, Run, evaluated, indices
from subjunctive.diffusion.sample import DDIM, Ancestral, Heun
from subjunctive.diffusion.schedule import Cosine
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.nn import UNet
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    from subjunctive.mechanisms.diffusion import Diffusion, condition_width
    from subjunctive.mechanisms.linear import own_samples, stirred

    with seeded(0):
        image, t = Variable("x", (1, 8, 8)), Variable("t")
        network = UNet(1, condition=condition_width([t], 0), width=8, multipliers=(1,))
        sampler = DDIM(Cosine(), 6, eta=0.5)
        inner = Diffusion(image, [t], Denoiser(network, Cosine()), sampler=sampler, drop=0.0)
    mechanism = Reused(stirred(inner), keys=2)
    return mechanism, own_samples(mechanism, rows=128)


class Reused(Mechanism):
    """A trained diffusion mechanism whose U-Net's encoder runs at key steps alone.

    Reference: Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models (Li, Hu,
    Khan, Li, Yang, Wang, Cheng and Yang, 2023), https://arxiv.org/abs/2312.09608

    Args:
        mechanism: with a `denoiser` of a `UNet` and a `sampler`, a `Diffusion` above all; its
            weights are shared.
        keys: the numbers of the levels at which the encoder runs, 0 the first; or how many levels a
            key serves, its own among them: with 1, nothing is reused. A sampler evaluates its
            denoiser at the start of every step, Heun at the end of the last one, too.

    Raises:
        ValueError: for a mechanism without such a denoiser or sampler, or keys that are none.

    Example:
        >>> import torch
        >>> from subjunctive.mechanism import draw
        >>> mechanism, batch = Reused.card.example()
        >>> u = draw(mechanism.prior(), 128)
        >>> whole, parents = mechanism.mechanism, batch.values
        >>> torch.equal(Reused(whole, keys=1)(u, parents), whole(u, parents))
        True
    """

    def __init__(self, mechanism: Mechanism, keys: int | Sequence[int] = 3) -> None:
        super().__init__(mechanism.variable, mechanism.parents)
        self.mechanism = mechanism
        self.keys = keys if isinstance(keys, int) else tuple(keys)
        denoiser, sampler = (getattr(mechanism, n, None) for n in ("denoiser", "sampler"))
        network = getattr(denoiser, "network", None)
        if not isinstance(network, UNet) or not isinstance(sampler, DDIM | Ancestral | Heun):
            raise ValueError(
                f"{type(mechanism).__name__} has the network {type(network).__name__} and the "
                f"sampler {type(sampler).__name__}; reuse needs a denoiser of a UNet, and DDIM, "
                "Ancestral or Heun"
            )
        indices(keys, evaluated(sampler))

    def prior(self) -> Prior:
        """Return the mechanism's own prior."""
        return self.mechanism.prior()

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`, the encoder run at key steps."""
        x: Tensor = self._once()(u, parents)
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw the noise that `forward` turns into x."""
        noise: Noise = self._once().abduct(x, parents)
        return noise

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the mechanism's own terms: nothing is reused in training."""
        return self.mechanism.loss(x, parents)

    def _once(self) -> Mechanism:
        """Return the mechanism with a memory for one run, so that no two runs share theirs."""
        once = copy.copy(self.mechanism)
        sampler: Any = self.mechanism.sampler
        keys = indices(self.keys, evaluated(sampler))
        times = [level.t for level in sampler.levels()]
        once.__dict__["denoiser"] = Run(self.mechanism.denoiser, times, keys)  # type: ignore[arg-type]
        if isinstance(sampler, Heun) or getattr(sampler, "eta", 1.0) == 0:
            once.__dict__["sampler"] = sampler = copy.copy(sampler)
            sampler.invert = Backward(sampler, keys).invert
        return once

    card = Card(
        name="Faster Diffusion: encoder features reused",
        summary="A trained diffusion mechanism that samples faster: its U-Net's encoder runs at "
        "key steps, its decoder at all.",
        title="Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models",
        authors="Li, Senmao and Hu, Taihang and Khan, Fahad Shahbaz and Li, Linxuan and "
        "Yang, Shiqi and Wang, Yaxing and Cheng, Ming-Ming and Yang, Jian",
        year=2023,
        url="https://arxiv.org/abs/2312.09608",
        assumptions=("the encoder's features change little from one key step to the next",),
        needs="a diffusion mechanism of a U-Net that is trained",
        abduction="approximate",
        tolerance=1e-4,
        of=(235,),
        example=_example,
    )
