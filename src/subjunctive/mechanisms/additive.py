r"""Additive and location-scale noise: a non-linear mean with noise of a stated spread.

    x = f(pa) + s u        (additive noise, s > 0 learned)
    x = f(pa) + s(pa) u    (location-scale noise)          u ~ N(0, I)

Both invert in closed form, `u = (x - f) / s`, and `log p(x | pa) = sum_d [log N(u_d; 0, 1) -
log s_d]`. Given by parents, `log s = 7 tanh(r / 7)` keeps s within e^-7 and e^7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.linear import check, context, continuous, own_samples, stirred
from subjunctive.nn.mlp import MLP
from subjunctive.variable import Batch, Variable, nearest

Spread = Literal["constant", "parents"]


class Constant(nn.Module):
    """A learned row, which stands in for a network at a node without parents.

    Args:
        outputs: how many numbers the row has.

    Example:
        >>> Constant(2)(torch.zeros(3, 0)).shape
        torch.Size([3, 2])
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.row = nn.Parameter(torch.zeros(outputs))

    def forward(self, c: Tensor) -> Tensor:
        """Return the row for every row of c, `(B, outputs)`."""
        return self.row.expand(len(c), -1)


def predictor(parents: Sequence[Variable], outputs: int) -> nn.Module:
    """Return the network that a mechanism gets by default: an MLP, or a constant at a root."""
    width = sum(p.width for p in parents)
    return MLP(width, outputs) if width else Constant(outputs)


def outcome(
    mechanism: Mechanism, network: nn.Module, parents: Parents, shape: Sequence[int]
) -> Tensor:
    """Run a mechanism's network on its parents and check what comes out.

    Args:
        shape: `(rows, outputs)` that the network must give.

    Raises:
        ValueError: if it gives another shape.
    """
    out: Tensor = network(context(mechanism, parents, shape[0]))
    if tuple(out.shape) != tuple(shape):
        raise ValueError(
            f"the network of {mechanism.variable.name!r} gave {tuple(out.shape)}, not the "
            f"{tuple(shape)} that {type(mechanism).__name__} needs; change its outputs"
        )
    return out


def _example() -> tuple[Mechanism, Batch]:
    site = Variable("site", kind="ordinal", categories=("low", "mid", "high"))
    with seeded(0):
        mechanism = AdditiveNoise(
            Variable("x", shape=(2,)), [Variable("dose"), site], scale="parents"
        )
    return stirred(mechanism), own_samples(mechanism)


class AdditiveNoise(Density):
    r"""A node that is any function of its parents plus Gaussian noise: `x = f(pa) + s u`.

    Reference:
        Nonlinear causal discovery with additive noise models (Hoyer et al., 2008),
        https://papers.nips.cc/paper/3548; location-scale noise: On the Identifiability and
        Estimation of Causal Location-Scale Noise Models (Immer et al., 2023),
        https://arxiv.org/abs/2210.09054

    Args:
        variable: the node, continuous, of any shape; D numbers.
        parents: the parents' variables.
        network: maps the parents' matrix `(B, width)` to `(B, D)`, or `(B, 2 D)` if the scale
            follows the parents (mean, then raw log-scale); an MLP if None.
        scale: `constant`, or `parents` for location-scale noise.

    Raises:
        ValueError: for a discrete node or an unknown scale.

    Example:
        >>> m = AdditiveNoise(Variable("x"), [Variable("t")])
        >>> x, t = torch.randn(4), {"t": torch.randn(4)}
        >>> bool((m(m.abduct(x, t), t) - x).abs().max() < 1e-5)
        True
    """

    card: ClassVar[Card] = Card(
        name="Additive noise mechanism",
        summary="A node is a network of its parents plus Gaussian noise, whose spread may vary.",
        title="Nonlinear causal discovery with additive noise models",
        authors="Hoyer, Patrik O. and Janzing, Dominik and Mooij, Joris and Peters, Jonas and "
        "Schölkopf, Bernhard",
        year=2008,
        url="https://papers.nips.cc/paper/3548",
        assumptions=(
            "the noise is added to, or scales about, a function of the parents",
            "Gaussian noise",
        ),
        needs="rows of the node and its parents",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        network: nn.Module | None = None,
        scale: Spread = "constant",
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        if scale not in get_args(Spread):
            hint = nearest(scale, get_args(Spread))
            raise ValueError(
                f"scale of {variable.name!r} is {scale!r}, not one of {get_args(Spread)}.{hint}"
            )
        self.scale = scale
        outputs = variable.width * (2 if scale == "parents" else 1)
        self.network = predictor(self.parents, outputs) if network is None else network
        self.log_scale = nn.Parameter(torch.zeros(variable.width)) if scale == "constant" else None

    def _mean_log_scale(self, parents: Parents, rows: int) -> tuple[Tensor, Tensor]:
        width = self.variable.width
        shape = (rows, *self.variable.shape)
        if self.log_scale is not None:
            mean = outcome(self, self.network, parents, (rows, width))
            return mean.reshape(shape), self.log_scale.expand(rows, -1).reshape(shape)
        mean, raw = outcome(self, self.network, parents, (rows, 2 * width)).split(width, dim=1)
        return mean.reshape(shape), (7 * torch.tanh(raw / 7)).reshape(shape)

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `f(pa) + s u`, `(B, *shape)`."""
        check(u, self.variable)
        mean, log_scale = self._mean_log_scale(parents, len(u))
        return mean + log_scale.exp() * u

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `(x - f(pa)) / s`, `(B, *shape)`."""
        check(x, self.variable)
        mean, log_scale = self._mean_log_scale(parents, len(x))
        return (x - mean) / log_scale.exp()

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        check(x, self.variable)
        mean, log_scale = self._mean_log_scale(parents, len(x))
        u = (x - mean) * (-log_scale).exp()
        return self.prior().log_prob(u) - log_scale.reshape(len(x), -1).sum(1)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}
