r"""An encoder whose order is not that of the graph: the same law, handed out in another order.

    q(z | x) = prod_i q(z_i | x, z_<i)        for any order of the labels, not the causes' alone

`complete` asks for one label after another, causes first. Where a graph was learned, an encoder
that was built before it may need the effect to read the cause. Then all labels are drawn at once,
in the encoder's order, and are handed out in the graph's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from subjunctive.completion import Encoder, Posterior
from subjunctive.graph import Graph
from subjunctive.mechanism import where


class _Drawn(Distribution):
    """A law that was drawn from already: its sample is that draw."""

    def __init__(self, law: Distribution, value: Tensor) -> None:
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)
        self.law, self.value = law, value
        self.has_rsample = law.has_rsample  # type: ignore[misc]

    @property
    def mean(self) -> Tensor:
        """The law's mean, given the draws before it."""
        return self.law.mean

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the draw, with its gradient."""
        return self.value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return the draw."""
        return self.value.detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the law's log-density."""
        found: Tensor = self.law.log_prob(value)
        return found


class Reordered(Encoder):
    """An encoder that may be asked for its labels in any order; see `fitting`.

    Args:
        encoder: whose labels are in an order of their own; it is shared, not copied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from subjunctive.encoders import Regression
        >>> from subjunctive.variable import Variable
        >>> x, a, b = Variable("x", (2,)), Variable("a"), Variable("b")
        >>> encoder = Reordered(Regression(x, [a, b], nn.Linear(2, 4), 4))
        >>> q = encoder({"x": torch.zeros(3, 2)}, {})
        >>> q("b", {}).sample().shape  # read with a, which has not been asked for yet
        torch.Size([3])
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.nodes, self.inputs, self.beta = encoder.nodes, encoder.inputs, encoder.beta

    def forward(self, values: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Posterior:
        """Return `posterior(label, ...)`; labels that rows saw stand for the draws of them."""
        posterior = self.encoder(values, seen)
        so_far, laws = dict(values), {}
        for name in self.nodes:
            law: Distribution = posterior(name, so_far)
            drawn = law.rsample() if law.has_rsample else law.sample()
            laws[name] = _Drawn(law, drawn)
            known = seen.get(name) if name in values else None
            so_far[name] = drawn if known is None else where(known, values[name], drawn)
        return lambda name, _: laws[name]


def fitting(encoder: Encoder | None, graph: Graph) -> Encoder | None:
    """Return the encoder, `Reordered` if the graph has its labels in another order."""
    if encoder is None or isinstance(encoder, Reordered):
        return encoder
    order = [n for n in graph.order if n in encoder.nodes]
    return encoder if order == [n for n in encoder.nodes if n in order] else Reordered(encoder)
