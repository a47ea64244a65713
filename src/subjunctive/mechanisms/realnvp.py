r"""Real NVP: a multi-scale chain of affine couplings that the parents condition.

A coupling keeps one half of the numbers, h_a, and moves the other,

    h_b <- h_b exp(s) + t,    (r, t) = network(h_a, m(pa)),    s = g tanh(r),    g learned,

which is undone by `(h_b - t) exp(-s)` whatever the network is; its log-determinant is the sum of s.
On the way from x to u, a level of an image is

    squeeze         (C, H, W) -> (4C, H/2, W/2): the four pixels of a square side by side
    2n couplings    n with the halves of a checkerboard, then n with a square's rows as halves
    factor out      one half of the checkerboard is done, the other goes on to the next level

Each number is at last shifted and stretched on its own and laid where its pixel was: u has the
shape of x, `u ~ N(0, I)`, and

    log p(x | pa) = log N(u; 0, I) + sum of all s + sum of the log-stretches.

A vector has one level without a squeeze; the halves are its even and odd places, then its front and
back. Last layers start at zero, so that the chain starts as the identity.

Where this differs from the paper: an image is squeezed before the checkerboard couplings: their
halves are the same pixels, and networks run at half the resolution. There is no batch norm, whose
statistics would make a row's density depend on the rows beside it; the shift and stretch stand in
for it. With `affine=False` all s are zero: the additive couplings of NICE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.nn.conv import check_size
from subjunctive.nn.residual import Residual
from subjunctive.variable import Batch, Variable

GAIN = 4.0  # of shifts and stretches, which have farther to go than weights at one learning rate


def _example() -> tuple[Mechanism, Batch]:
    arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
    with seeded(0):
        mechanism = RealNVP(Variable("x", (1, 2, 4)), [Variable("t"), arm], steps=2, width=8)
    return stirred(mechanism), own_samples(mechanism)


class Coupling(nn.Module):
    """Moves one half of the channels by a map that the other half and the parents give."""

    kept: Tensor
    moved: Tensor
    back: Tensor

    def __init__(
        self, keep: Tensor, condition: int, width: int, blocks: int, image: bool, affine: bool
    ) -> None:
        super().__init__()
        kept, moved = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("back", torch.cat([kept, moved]).argsort(), persistent=False)
        outputs = len(moved) * (2 if affine else 1)
        self.network = Residual(len(kept), outputs, condition, width, blocks, image)
        self.most = nn.Parameter(torch.ones(len(moved), *[1, 1] * image)) if affine else None

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the half that is kept and the half that is moved."""
        return h[:, self.kept], h[:, self.moved]

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Put two halves back in place."""
        return torch.cat([kept, moved], 1)[:, self.back]

    def _map(self, kept: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(kept, c).to(kept.dtype)  # lower under autocast
        if self.most is None:
            return torch.zeros_like(out), out
        raw, shift = out.chunk(2, 1)
        return self.most * raw.tanh(), shift

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return h on its way to u, and the log-determinant, `(B,)`."""
        kept, moved = self.split(h)
        s, t = self._map(kept, c)
        return self.join(kept, moved * s.exp() + t), s.flatten(1).sum(1)

    def inverse(self, h: Tensor, c: Tensor) -> Tensor:
        """Return h on its way to x."""
        kept, moved = self.split(h)
        s, t = self._map(kept, c)
        return self.join(kept, (moved - t) * torch.exp(-s))


def _halves(channels: int, image: bool) -> tuple[Tensor, Tensor]:
    """Return the two ways to halve the channels, as masks of what is kept.

    >>> [mask.int().tolist() for mask in _halves(4, image=True)]  # of a square: 0 1 over 2 3
    [[1, 0, 0, 1], [1, 1, 0, 0]]
    """
    place = torch.arange(channels)
    if image:
        return (place % 4 == 0) | (place % 4 == 3), place % 4 < 2
    return place % 2 == 0, place < (channels + 1) // 2


class RealNVP(Density):
    r"""An image or a vector with any density, inverted exactly: affine couplings, scale by scale.

    Reference: Density Estimation Using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017),
    https://arxiv.org/abs/1605.08803; additive: NICE (Dinh, Krueger and Bengio, 2015),
    https://arxiv.org/abs/1410.8516; as an image's mechanism: Deep Structural Causal Models for
    Tractable Counterfactual Inference (Pawlowski et al., 2020), https://arxiv.org/abs/2006.06485

    Args:
        variable: an image `(C, H, W)`, or a vector of two numbers or more. Pixels of few bits have
            no density: wrap the mechanism in `Quantised`.
        parents: the parents' variables.
        levels: of an image; each halves the resolution, and half of the numbers leave in between.
        steps: couplings of each kind a level, 2 or more, so that every number is moved.
        width: channels of the networks. blocks: residual blocks of each.
        affine: whether couplings stretch; False for NICE.
        alpha: 0.05 in the paper: couplings work on the logit of `alpha + (1 - 2 alpha) r`, where r
            is 0 at the variable's `low` and 1 at its `high`; x goes beyond these by less than
            `alpha / (1 - 2 alpha)` of the range. None for no logit.

    Raises:
        ValueError: for another shape, a size that does not halve `levels` times, counts too small,
            or an `alpha` without a range or outside 0 to 0.5; for a value outside the range.

    Example:
        >>> flow = RealNVP(Variable("x", (1, 8, 8)), [Variable("t")], levels=2, width=8)
        >>> x, t = torch.randn(3, 1, 8, 8), {"t": torch.randn(3)}
        >>> u = flow.abduct(x, t)
        >>> u.shape, bool((flow(u, t) - x).abs().max() < 1e-5)
        (torch.Size([3, 1, 8, 8]), True)
    """

    card: ClassVar[Card] = Card(
        name="Real NVP",
        summary="An image by affine couplings, scale by scale: exact density, exact inverse.",
        title="Density Estimation Using Real NVP",
        authors="Dinh, Laurent and Sohl-Dickstein, Jascha and Bengio, Samy",
        year=2017,
        url="https://arxiv.org/abs/1605.08803",
        assumptions=(
            "x is a smooth, invertible map of as many numbers of noise, which the data do not tell "
            "from other such maps: counterfactuals of several numbers rest on the one learned",
        ),
        needs="an image of even sides or a vector, continuous, and its parents' values",
        of=(349,),
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        levels: int = 1,
        steps: int = 3,
        width: int = 32,
        blocks: int = 1,
        affine: bool = True,
        alpha: float | None = None,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        self.levels, self.steps, self.width, self.blocks = levels, steps, width, blocks
        self.affine, self.alpha = affine, alpha
        self.image = len(variable.shape) == 3
        self._check()
        self.shift = nn.Parameter(torch.zeros(variable.shape))
        self.log_stretch = nn.Parameter(torch.zeros(variable.shape))
        condition = sum(p.width for p in self.parents)
        channels, chain = variable.shape[0], []
        for _ in range(levels):
            size = 4 * channels if self.image else channels
            masks = [half ^ bool(i % 2) for half in _halves(size, self.image) for i in range(steps)]
            inside = condition, width, blocks, self.image, affine
            chain += [Coupling(mask, *inside) for mask in masks]
            channels *= 2  # four times as many, and half of them go on
        self.chain = nn.ModuleList(chain)

    def _check(self) -> None:
        name, shape = self.variable.name, self.variable.shape
        if not self.image and (len(shape) != 1 or shape[0] < 2):
            raise ValueError(
                f"RealNVP needs an image (C, H, W) or a vector of two numbers or more; {name!r} "
                f"has shape {shape}: use ConditionalFlow for one number"
            )
        if self.steps < 2 or min(self.levels, self.width, self.blocks) < 1:
            raise ValueError(
                f"the RealNVP of {name!r} needs steps >= 2 and levels, width, blocks >= 1, got "
                f"{self.steps} and {self.levels}, {self.width}, {self.blocks}"
            )
        if self.image:
            who = f"the RealNVP of {name!r} with levels={self.levels}"
            check_size(shape[1:], 2**self.levels, who, "use fewer levels")
        elif self.levels > 1:
            raise ValueError(f"{name!r} is a vector, which has levels=1; got {self.levels}")
        v, alpha = self.variable, self.alpha
        if alpha is None:
            return
        if v.low is None or v.high is None or not (v.low < v.high and 0 < alpha < 0.5):
            raise ValueError(
                f"the logit of {name!r} needs 0 < alpha < 0.5 and the variable's low < high, got "
                f"{alpha} and {v.low}, {v.high}: set them, or alpha=None"
            )
        steep = (1 - 2 * alpha) / (v.high - v.low)
        self.line = alpha + steep * (v.loc - v.low), steep * v.scale  # of x -> alpha + ... r

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`, one pass through every coupling."""
        check(u, self.variable)
        c = context(self, parents, len(u))
        h = u.to(self.origin.dtype) * torch.exp(-GAIN * self.log_stretch) + GAIN * self.shift
        return self._unlogit(self._build(h, c, 0))

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return the only noise that explains x, `(B, *shape)`."""
        return self._explain(x, parents)[0]

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        u, ladj = self._explain(x, parents)
        return self.prior().log_prob(u) + ladj

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}

    def _explain(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        check(x, self.variable)
        c = context(self, parents, len(x))
        h, first = self._logit(x.to(self.origin.dtype))
        h, ladj = self._part(h, c, 0)
        u = (h - GAIN * self.shift) * torch.exp(GAIN * self.log_stretch)
        return u, ladj + first + GAIN * self.log_stretch.sum()

    def _part(self, h: Tensor, c: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Run a level and those below it from x to u."""
        couplings, total = self._level(level), self.origin
        h = F.pixel_unshuffle(h, 2) if self.image else h
        for coupling in couplings:
            h, ladj = coupling(h, c)
            total = total + ladj
        if level + 1 < self.levels:
            on, done = couplings[0].split(h)
            on, ladj = self._part(on, c, level + 1)
            h, total = couplings[0].join(on, done), total + ladj
        return F.pixel_shuffle(h, 2) if self.image else h, total

    def _build(self, h: Tensor, c: Tensor, level: int) -> Tensor:
        """Undo `_part`."""
        couplings = self._level(level)
        h = F.pixel_unshuffle(h, 2) if self.image else h
        if level + 1 < self.levels:
            on, done = couplings[0].split(h)
            h = couplings[0].join(self._build(on, c, level + 1), done)
        for coupling in reversed(couplings):
            h = coupling.inverse(h, c)
        return F.pixel_shuffle(h, 2) if self.image else h

    def _level(self, level: int) -> list[Coupling]:
        return cast("list[Coupling]", list(self.chain))[2 * level * self.steps :][: 2 * self.steps]

    def _logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of x and its log-determinant, where `alpha` asks for it."""
        if self.alpha is None:
            return x, self.origin
        first, steep = self.line
        share = first + steep * x
        if not bool(((share > -1e-4) & (share < 1 + 1e-4)).all()):
            reach = self.alpha / (1 - 2 * self.alpha)
            raise ValueError(
                f"{self.variable.name!r} has values beyond its low {self.variable.low} or high "
                f"{self.variable.high} by over {reach:.3g} of the range, where its logit ends: "
                "correct low and high, or take a larger alpha, or None"
            )
        share = share.clamp(eps := torch.finfo(x.dtype).eps, 1 - eps)
        inner = share.log() + torch.log1p(-share)
        return share.logit(), self.variable.width * math.log(steep) - inner.flatten(1).sum(1)

    def _unlogit(self, h: Tensor) -> Tensor:
        """Undo `_logit`."""
        if self.alpha is None:
            return h
        return (h.sigmoid() - self.line[0]) / self.line[1]
