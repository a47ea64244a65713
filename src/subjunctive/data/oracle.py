"""The true model of a simulator: its equations, its priors, and noises that are remembered.

A simulator draws noise u ~ p(u) and computes each node, `x_k = f_k(u_k, parents_k)`. Because every
row keeps its noises in `batch.context["u.<node>"]`, abduction is a look-up and the counterfactual
`predict(abduct(batch), do)` is the truth to which learned models are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from subjunctive.graph import Graph
from subjunctive.intervention import as_do
from subjunctive.mechanism import Mechanism, Noise, draw
from subjunctive.variable import Batch, Variable

Equation = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


class Oracle:
    """A model whose equations are known and whose noises are read from the batch.

    Args:
        graph: the causal graph.
        variables: node -> Variable.
        equations: node -> `f(u, parents)`, in the user's units.
        priors: node -> `n -> u`, n draws of the node's noise from torch's default generator.

    Raises:
        ValueError: if a node lacks its variable, equation or prior, or one names no node.

    Example:
        >>> from subjunctive.graph import Graph
        >>> model = Oracle(
        ...     Graph.parse("t -> i"),
        ...     {"t": Variable("t"), "i": Variable("i")},
        ...     {"t": lambda u, pa: u, "i": lambda u, pa: 2 * pa["t"] + u},
        ...     {"t": torch.randn, "i": torch.randn},
        ... )
        >>> noise = {"t": torch.tensor([1.0]), "i": torch.tensor([0.5])}
        >>> model.predict(noise)["i"], model.predict(noise, do={"t": 3.0})["i"]
        (tensor([2.5000]), tensor([6.5000]))
    """

    def __init__(
        self,
        graph: Graph,
        variables: Mapping[str, Variable],
        equations: Mapping[str, Equation],
        priors: Mapping[str, Callable[[int], Tensor]],
    ) -> None:
        self.graph, self.variables = graph, dict(variables)
        self.equations, self.priors = dict(equations), dict(priors)
        for what, group in (
            ("variables", self.variables),
            ("equations", self.equations),
            ("priors", self.priors),
        ):
            lack = [n for n in graph.nodes if n not in group]
            extra = [n for n in group if n not in graph.nodes]
            if lack or extra:
                raise ValueError(
                    f"{what} must name the graph's nodes {tuple(graph.nodes)} and no others; "
                    f"missing {lack}, unknown {extra}"
                )

    def noise(self, n: int) -> Noise:
        """Draw the noises of n rows."""
        return {name: self.priors[name](n) for name in self.graph.order}

    def abduct(self, batch: Batch) -> Noise:
        """Return the true noises of the rows, kept in `batch.context["u.<node>"]`.

        Raises:
            KeyError: if a node's noise is not there.
        """
        lack = [f"u.{n}" for n in self.graph.nodes if f"u.{n}" not in batch.context]
        if lack:
            raise KeyError(
                f"the oracle reads true noises from batch.context, which lacks {lack}; it has "
                f"{sorted(batch.context)}. Take rows of the simulator's own train, valid or test"
            )
        return {n: batch.context[f"u.{n}"] for n in self.graph.nodes}

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Return every node's value, in the user's units, under the interventions.

        Args:
            noise: node -> u, batch first.
            do: node -> value or Intervention.
        """
        actions = as_do(do or {}, self.variables)
        rows = len(next(iter(noise.values())))
        values: dict[str, Tensor] = {}
        for name in self.graph.order:
            parents = {p: values[p] for p in self.graph.parents(name)}
            natural = partial(self._natural, name, noise[name], parents)
            action = actions.get(name)
            values[name] = action.apply(natural, parents, rows) if action else natural()
        return {name: values[name] for name in self.graph.nodes}

    def _natural(
        self,
        name: str,
        u: Tensor,
        parents: Mapping[str, Tensor],
        mechanism: Mechanism | None = None,
        keep_noise: bool = True,
    ) -> Tensor:
        if mechanism is None:
            return self.equations[name](u, parents)
        seen = {v.name: v.standardise(parents[v.name]) for v in mechanism.parents}
        with torch.no_grad():
            own = u if keep_noise else draw(mechanism.prior(), len(u))
            return mechanism.variable.restore(mechanism(own, seen))
