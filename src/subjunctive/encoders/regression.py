"""An encoder by regression: q(labels | image), one head a label, in topological order.

    q(z | x) = prod_i q(z_i | h(x), z_<i),     z_<i the labels before i

A continuous label has a Gaussian whose mean and scale are read from the features h(x) and the
labels before it; a categorical or ordinal one has a softmax. Rows that saw a label teach the head
by its likelihood; rows that did not let it draw the label and pay the KL (`SCM.loss`), in nats an
entry of the source, as the source's own loss is: so the likelihood of seen labels, in nats a row,
keeps a label from becoming a free code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from subjunctive.completion import Encoder, Posterior
from subjunctive.variable import Variable, as_matrix


class Regression(Encoder):
    """q(labels | x) by features of one node and a linear head a label.

    Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Mohamed, Rezende and
    Welling, 2014), https://arxiv.org/abs/1406.5298

    Args:
        source: the node that is read, an image or any other.
        labels: the nodes to infer, in topological order.
        network: source -> features `(B, features)`.
        features: their width.

    Example:
        >>> x, t = Variable("x", (1, 8, 8)), Variable("t")
        >>> encoder = Regression(x, [t], nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
        >>> q = encoder({"x": torch.zeros(2, 1, 8, 8)}, {})
        >>> q("t", {}).sample().shape
        torch.Size([2])
    """

    def __init__(
        self, source: Variable, labels: Sequence[Variable], network: nn.Module, features: int
    ) -> None:
        super().__init__()
        self.source, self.labels = source, tuple(labels)
        self.network, self.features = network, features
        self.beta = 1.0 / source.width
        self.inputs, self.nodes = (source.name,), tuple(v.name for v in self.labels)
        before = [features + sum(v.width for v in self.labels[:i]) for i in range(len(self.labels))]
        self.heads = nn.ModuleList(
            nn.Linear(n, v.width if v.discrete else 2 * v.width)
            for n, v in zip(before, self.labels, strict=True)
        )

    def forward(self, values: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Posterior:
        """Return `posterior(label, values so far)`; the source is read once."""
        features = nn.functional.silu(self.network(values[self.source.name]))

        def posterior(name: str, so_far: Mapping[str, Tensor]) -> Distribution:
            i = self.nodes.index(name)
            label, head, before = self.labels[i], self.heads[i], self.labels[:i]
            columns = [as_matrix(so_far, before).to(features)] if before else []
            out = head(torch.cat([features, *columns], dim=1))
            if label.discrete:
                return Categorical(logits=out, validate_args=False)
            mean, log_scale = (o.reshape(-1, *label.shape) for o in out.chunk(2, dim=1))
            scale = log_scale.clamp(-7.0, 3.0).exp()
            return Independent(
                Normal(mean, scale, validate_args=False), len(label.shape), validate_args=False
            )

        return posterior
