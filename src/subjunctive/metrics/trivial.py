"""Trivial answers, as models: what any table must contain, so that none of them can look good.

All give the *true* values of every node but the image (from the simulator's oracle), and

    copy               x* = x
    copy and rescale   x* = x i* / i,        i the node that only scales the pixels
    retrieval          x* = the training image whose parents lie nearest to the true ones, pa*,

distances in training standard deviations. Copying keeps identity and changes nothing; retrieval
changes all that is asked, and everything else with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from subjunctive.data.oracle import Oracle
from subjunctive.mechanism import Noise
from subjunctive.variable import Batch, as_matrix, known

# What the rows of a table are called that others are compared with: the truth, the trivial answers.
NAMES = ORACLE, COPY, COPY_RESCALE, RETRIEVAL = "oracle", "copy", "copy and rescale", "retrieval"


class Trivial(ABC):
    """A simulator's true model with another equation for some nodes: a `Model`.

    Args:
        data: with `oracle`, `graph`, `variables` and `train`.
        nodes: whose equations are replaced.
    """

    def __init__(self, data: Any, *nodes: str) -> None:
        for node in nodes:
            known(node, data.graph.nodes, type(self).__name__)
        self.data, self.nodes = data, nodes
        self.graph, self.variables = data.graph, data.variables
        true = data.oracle
        self.inner = Oracle(
            true.graph,
            true.variables,
            {**true.equations, **dict.fromkeys(nodes, self.equation)},
            {**true.priors, **{node: partial(self.draw, node) for node in nodes}},
        )

    @abstractmethod
    def remember(self, batch: Batch, node: str) -> Noise:
        """Return what is kept of the factual rows, in place of the node's noise."""

    @abstractmethod
    def equation(self, u: Any, parents: Mapping[str, Tensor]) -> Tensor:
        """Return the node's value from what was kept and the parents' values."""

    def draw(self, node: str, n: int) -> Any:
        """Return what would be kept of n random training rows."""
        return self.remember(self.data.train[torch.randint(len(self.data.train), (n,))], node)

    def noise(self, n: int) -> Noise:
        """Draw the noises of n rows."""
        return self.inner.noise(n)

    def abduct(self, evidence: Batch) -> Noise:
        """Return the true noises, and what is kept of the node."""
        kept = {node: self.remember(evidence, node) for node in self.nodes}
        blank = {f"u.{node}": torch.zeros(len(evidence)) for node in self.nodes}
        true = self.inner.abduct(replace(evidence, context=evidence.context | blank))
        return {**true, **kept}

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Return the true values of all other nodes, and the trivial ones."""
        return self.inner.predict(noise, do)


class Copy(Trivial):
    """The factual values again, whatever was done.

    Args:
        data: with `oracle`, `graph`, `variables` and `train`.
        nodes: what is copied: the image, or every node of a table.

    Example:
        >>> from subjunctive.data.pendulum import Pendulum
        >>> data = Pendulum(size=24, train=8, valid=2, test=4)
        >>> copy = Copy(data, "image")
        >>> answer = copy.predict(copy.abduct(data.test), {"light": 90.0})
        >>> bool((answer["image"] == data.test.values["image"]).all()), answer["light"][:2]
        (True, tensor([90., 90.]))
    """

    def remember(self, batch: Batch, node: str) -> Noise:
        """Return the factual values."""
        return batch.values[node]

    def equation(self, u: Any, parents: Mapping[str, Tensor]) -> Tensor:
        """Return them."""
        value: Tensor = u
        return value


class CopyRescale(Trivial):
    """The factual image, its pixels multiplied by the ratio of an intensity, within their range.

    Args:
        data: with `oracle`, `graph`, `variables` and `train`.
        node: the image.
        by: the parent that only scales the pixels.
    """

    def __init__(self, data: Any, node: str, by: str) -> None:
        super().__init__(data, node)
        known(by, data.graph.parents(node), type(self).__name__)
        self.by = by

    def remember(self, batch: Batch, node: str) -> Noise:
        """Return the factual images and intensities."""
        return {"value": batch.values[node], "by": batch.values[self.by]}

    def equation(self, u: Any, parents: Mapping[str, Tensor]) -> Tensor:
        """Return the images, rescaled."""
        image: Tensor = u["value"]
        factor = (parents[self.by] / u["by"]).to(image)
        own = self.variables[self.nodes[0]]
        return (image * factor.reshape(-1, *[1] * (image.dim() - 1))).clamp(own.low, own.high)


class Retrieval(Trivial):
    """The training image whose parents lie nearest to the counterfactual ones."""

    def __init__(self, data: Any, node: str) -> None:
        super().__init__(data, node)
        self.of = [data.variables[p] for p in data.graph.parents(node)]
        self.keys = self._key(data.train.values)

    def _key(self, values: Mapping[str, Tensor]) -> Tensor:
        return as_matrix({v.name: v.standardise(values[v.name]) for v in self.of}, self.of)

    def remember(self, batch: Batch, node: str) -> Noise:
        """Return nothing of the factual: a row of zeros."""
        return torch.zeros(len(batch))

    def equation(self, u: Any, parents: Mapping[str, Tensor]) -> Tensor:
        """Return the nearest training images."""
        nearest = torch.cdist(self._key(parents).to(self.keys), self.keys).argmin(1)
        image: Tensor = self.data.train.values[self.nodes[0]][nearest]
        return image
