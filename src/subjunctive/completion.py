"""Missing values: who may draw them, and what a draw weighs.

In topological order, a value that a row did not see is drawn from the encoder, q(missing | seen,
mask), where it covers the node and the row saw its inputs; from the node's own mechanism where
nothing below it was seen, which is exact; anything else is refused, because what was seen below
would be ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.mechanism import Density, draw, where
from subjunctive.variable import Batch

if TYPE_CHECKING:
    from subjunctive.scm import SCM

Posterior = Callable[[str, Mapping[str, Tensor]], Distribution]


class Encoder(nn.Module, ABC):
    """What the unseen may have been: q(missing values | seen values, mask).

    `nodes` are the nodes that it covers, `inputs` those that a row must have seen for it; `beta`
    weighs the KL of what it draws, in the unit that the losses of the nodes below are in.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    beta: float = 1.0

    @abstractmethod
    def forward(self, values: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Posterior:
        """Return `posterior(node, values so far)`, called in topological order.

        Args:
            values: standardised values of the seen nodes; rows that are not seen hold zeros.
            seen: node -> boolean mask `(B,)`.
        """


@dataclass(frozen=True)
class Completion:
    """Rows without a gap.

    Args:
        values: standardised, node -> `(B, *shape)`.
        log_weight: log p(values) - log q(drawn values) over the nodes concerned, `(B,)`; None where
            a mechanism on the way has no density; zero where the draw is exact.
        inferred: node -> mask `(B,)` of rows drawn by the encoder.
        log_q: node -> log q of the drawn value or, in rows that saw the node, of the seen one.
        ready: mask `(B,)` of rows that saw all that the encoder reads.
    """

    values: dict[str, Tensor]
    log_weight: Tensor | None
    inferred: dict[str, Tensor]
    log_q: dict[str, Tensor]
    ready: Tensor


def complete(
    scm: SCM, batch: Batch, reparametrised: bool = False, lazy: bool = False
) -> Completion:
    """Draw every missing value of a checked batch.

    Args:
        scm: whose mechanisms and encoder draw.
        batch: rows as `SCM.batch` returns them.
        reparametrised: let gradients pass through the encoder's continuous draws.
        lazy: leave unseen nodes absent that nothing seen hangs on.
    """
    values = scm.standard(batch)
    ready = torch.ones(len(batch), dtype=torch.bool, device=scm.origin.device)
    if scm.encoder is None and not batch.seen and len(values) == len(scm.graph.nodes):
        return Completion(values, scm.origin.repeat(len(batch)), {}, {}, ready)
    seen = {n: batch.mask(n) for n in scm.graph.nodes}
    coverage = _coverage(scm, seen)
    encoder, mechanisms = scm.encoder, scm.mechanisms
    for source in encoder.inputs if encoder is not None else ():
        ready = ready & seen[source]
    use = encoder is not None and bool(ready.any())
    posterior = encoder(values, seen) if encoder is not None and use else None
    inferred: dict[str, Tensor] = {}
    log_q: dict[str, Tensor] = {}
    log_weight: Tensor | None = scm.origin.repeat(len(batch))
    for name in scm.graph.order:
        if encoder is not None and posterior is not None and name in encoder.nodes:
            q = posterior(name, values)
            drawn = q.rsample() if reparametrised and q.has_rsample else q.sample()
            values[name] = where(coverage[name], drawn, values[name]) if name in values else drawn
            log_q[name], inferred[name] = q.log_prob(values[name]), coverage[name]
        rest = ~seen[name] & ~coverage[name]
        if bool(rest.any()) and not lazy:
            parents = {p: values[p] for p in scm.graph.parents(name)}
            fresh = mechanisms[name](draw(mechanisms[name].prior(), len(batch)), parents)
            values[name] = where(rest, fresh, values[name]) if name in values else fresh
        log_weight = _weigh(scm, log_weight, name, values, seen, inferred, log_q)
    return Completion(values, log_weight, inferred, log_q, ready)


def _coverage(scm: SCM, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which rows the encoder draws, a node; raise where nothing can be drawn rightly."""
    encoder, coverage = scm.encoder, {}
    for name in scm.graph.nodes:
        unseen = ~seen[name]
        ready = torch.zeros_like(unseen)
        if encoder is not None and name in encoder.nodes:
            ready = unseen.clone()
            for source in encoder.inputs:
                ready &= seen[source]
        below = torch.zeros_like(unseen)
        for descendant in scm.graph.descendants(name):
            if descendant != name:
                below |= seen[descendant]
        if bool((unseen & ~ready & below).any()):
            raise ValueError(
                f"{int((unseen & ~ready & below).sum())} rows miss {name!r} but saw a node below "
                f"it, which says something about it: give its value, or build the SCM with an "
                f"encoder that covers {name!r}, such as encoders.Regression; CausalDiffAE has one"
                + (f" (the one here needs {encoder.inputs})" if encoder is not None else "")
            )
        coverage[name] = ready
    return coverage


def _weigh(
    scm: SCM,
    log_weight: Tensor | None,
    name: str,
    values: dict[str, Tensor],
    seen: dict[str, Tensor],
    inferred: dict[str, Tensor],
    log_q: dict[str, Tensor],
) -> Tensor | None:
    """Add a node's part to the importance weight of the encoder's draws."""
    touched = inferred.get(name, torch.zeros_like(seen[name]))
    own = touched
    for parent in scm.graph.parents(name):
        if parent in inferred:
            touched = touched | (inferred[parent] & (seen[name] | own))
    if log_weight is None or not bool(touched.any()):
        return log_weight
    mechanism = scm.mechanisms[name]
    if not isinstance(mechanism, Density):
        return None
    term = mechanism.log_prob(values[name], {p: values[p] for p in scm.graph.parents(name)})
    if name in log_q:
        term = term - torch.where(own, log_q[name], torch.zeros_like(log_q[name]))
    return log_weight + torch.where(touched, term, torch.zeros_like(term))
