r"""Values that are silent, exactly zero, or else continuous: a mask over a continuous mechanism.

    y = f(u, pa),    m_g = 1 if v_g > -l_g(y, pa) else 0,    x_g = m_g max(y_g, 0),    v logistic

A diffusion cannot make exact zeros; it smears them. So f makes y, in which a silent gene is a draw
N(0, s^2) about zero, and the mask decides from all of y which genes are silent: given y, with
probability sigmoid(l_g(y, pa)) a gene is expressed. Genes that fall silent together do so because y
says it; v is what is left to chance.

**Fit.** y is known but for the draws, hence f's own loss at y, and the cross-entropy of m at y blurred
by N(0, s^2): the mask is to tell zeros from what f nearly makes of them.

**Abduction.** y_g = x_g where a gene is expressed, a draw N(0, s^2) where it is silent; u from f; and
v_g logistic, above -l_g or below it. Given y, v follows its posterior exactly; y at the silent genes
is drawn without regard to the others, hence the abduction is approximate.
"""  # noqa: E501

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.linear import LinearGaussian, check, context, own_samples, stirred
from subjunctive.mechanisms.truncated import LogisticNoise
from subjunctive.nn.propagate import Expressed
from subjunctive.variable import Batch, Variable

NOISE = LogisticNoise()
LEAST = 1e-3  # an expressed gene's least value; and how far a drawn v keeps from the threshold


def _example() -> tuple[Mechanism, Batch]:
    with seeded(0):
        inner = LinearGaussian.of(Variable("x", (3,)), [Variable("t")], [1.0, -1.0, 0.5], 0.5)
        mechanism = Silent(inner, Expressed(3, width=8))
    return stirred(mechanism), own_samples(mechanism)


class Silent(Mechanism):
    """A continuous mechanism whose values may be silent: exactly zero, in the user's units.

    Reference: Unlasting: Unpaired Single-Cell Multi-Perturbation Estimation by Dual Conditional
    Diffusion Implicit Bridges (Chi et al., 2025), https://arxiv.org/abs/2506.21107, whose mask
    model reads a draw of control cells; this one reads the cell itself.

    Args:
        mechanism: of the values before the mask; the node is a vector `(G,)` that is never
            negative.
        network: `(y - zero (B, G), parents (B, F)) -> logits (B, G)` of being expressed.
        jitter: standard deviation, standardised, of what stands at silent genes, and of the blur
            under which the network learns.

    Raises:
        ValueError: for a node that is no vector of numbers, a jitter that is not positive, or
            values below zero.

    Example:
        >>> node = Variable("x", (2,))
        >>> silent = Silent(LinearGaussian.of(node, bias=1.0), Expressed(2))
        >>> x = torch.tensor([[0.0, 1.5], [2.0, 0.0]])
        >>> silent(silent.abduct(x, {}), {}).tolist()
        [[0.0, 1.5], [2.0, 0.0]]
    """

    card: ClassVar[Card] = Card(
        name="Silent genes",
        summary="A continuous mechanism under a mask: values are exactly zero or as it makes them.",
        title="Unlasting: Unpaired Single-Cell Multi-Perturbation Estimation by Dual Conditional "
        "Diffusion Implicit Bridges",
        authors="Chi, Changxi and Xia, Jun and Huang, Yufei and Zhou, Jingbo and Li, Siyuan and "
        "Liu, Yunfan and Yu, Chang and Li, Stan Z.",
        year=2025,
        url="https://arxiv.org/abs/2506.21107",
        assumptions=("given the other values, what silences a gene is its own chance",),
        needs="vectors of numbers, none below zero, many of them zero, and the parents' values",
        abduction="approximate",
        tolerance=1e-4,
        example=_example,
    )

    def __init__(self, mechanism: Mechanism, network: nn.Module, jitter: float = 0.2) -> None:
        super().__init__(mechanism.variable, mechanism.parents)
        v = self.variable
        if v.discrete or len(v.shape) != 1:
            raise ValueError(f"Silent needs a vector of numbers; {v.name!r} is {v.kind} {v.shape}")
        if not jitter > 0:
            raise ValueError(f"Silent has jitter={jitter}; a standard deviation is positive")
        self.mechanism, self.network, self.jitter = mechanism, network, jitter
        self.zero = (0.0 - v.loc) / v.scale

    @property
    def sampler(self) -> Any:
        """The sampler of the mechanism under the mask, by which `alike` compares two of them."""
        return getattr(self.mechanism, "sampler", None)

    def prior(self) -> Prior:
        """Return the mechanism's prior, and independent logistics for the mask."""
        mask = NOISE.prior(self.origin.expand(self.variable.shape))
        return {"values": self.mechanism.prior(), "mask": mask}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, G)`: zero, in the user's units, where the mask is below its threshold."""
        y = self.mechanism(u["values"], parents)
        up = u["mask"] > -self.logits(y, parents)
        return torch.where(up, y.clamp(min=self.zero + LEAST), self.zero)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return the values' noise at a draw of y, and the mask's within its side of -l."""
        y, up = self._filled(x)
        cut = -self.logits(y, parents)
        low = torch.where(up, cut + LEAST, -torch.inf)
        high = torch.where(up, torch.inf, cut - LEAST)
        return {"values": self.mechanism.abduct(y, parents), "mask": NOISE.between(low, high)}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the mechanism's terms, and `mask`, the cross-entropy, in nats an entry."""
        y, up = self._filled(x)
        blurred = y + self.jitter * torch.randn_like(y)
        entropy = -F.logsigmoid(torch.where(up, 1.0, -1.0) * self.logits(blurred, parents))
        return self.mechanism.loss(y, parents) | {"mask": entropy.mean(1)}

    def logits(self, y: Tensor, parents: Parents) -> Tensor:
        """Return the logits of being expressed, `(B, G)`, given the values before the mask."""
        logits: Tensor = self.network(y - self.zero, context(self, parents, len(y)))
        return logits

    def _filled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw of the values before the mask, and which of them are expressed."""
        above = check(x, self.variable) - self.zero
        if bool((above < -1e-6).any()):
            raise ValueError(
                f"{self.variable.name!r} has values below zero, {float(above.min()):.3g} "
                "standardised for one; a silent gene is zero and an expressed one above it"
            )
        up = above > 1e-6
        return torch.where(up, x, self.zero + self.jitter * torch.randn_like(x)), up
