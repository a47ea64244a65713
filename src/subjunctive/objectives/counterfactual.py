r"""Counterfactual fine-tuning: answers that show what was done, at no cost in likelihood.

A decoder may ignore a parent that its latents tell it, too: likely pictures, wrong counterfactuals.
An anticausal predictor q(labels | x), fitted to observed rows, hears it. With u ~ p(u | x, pa) and
x* = f(u, pa*) under do(one ancestor := its value in another row of the batch),

    min_theta  E[-log q(pa* | x*)]      subject to   g = E[ELBO_before(x)] - E[ELBO_theta(x)] <= 0.

The modified differential method of multipliers descends in theta and ascends in the multiplier,

    theta: E[-log q] + max(0, lambda + c g) g,      lambda <- max(0, lambda + rate g),

the weight max(0, .) held fixed in theta's gradient. The damping c lets the constraint pull before
lambda has grown, so that the two do not swing about each other. Both bounds are of the same rows
with the same draws, hence g is small and quiet. Only the mechanism learns: the predictor and the
mechanism as it was are copies that do not move, and the parents' counterfactuals reach it as
numbers.

Reference: High Fidelity Image Counterfactuals with Probabilistic Causal Models (De Sousa Ribeiro,
Xia, Monteiro, Pawlowski and Glocker, 2023), https://arxiv.org/abs/2306.15764; Constrained
Differential Optimization (Platt and Barr, 1987),
https://papers.nips.cc/paper/4-constrained-differential-optimization
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from subjunctive.completion import Encoder
from subjunctive.mechanism import Density, Mechanism, Parents, evaluating, seeded
from subjunctive.mechanisms.likelihood import Levels
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player
from subjunctive.variable import Batch, known, nearest


class CounterfactualTuning(Objective):
    """Tune a node's mechanism by the labels that a predictor reads from its counterfactuals.

    Freeze the model's other mechanisms: nobody here moves them.

    Args:
        predictor: fitted, of ancestors of the node: an `Encoder`, such as `Regression`, or a module
            with `labels` and `loss(values, labels)`, such as a `Predictor`. It is copied.
        before: the node's mechanism as it is now, whose bound is kept. It is copied.
        slack: nats a row that the bound may lose.
        damping: c, a nat.
        rate: learning rate of the multiplier.

    Raises:
        ValueError: for a mechanism without `bound` or `log_prob`, or through which no gradient
            passes, negative numbers, a predictor of what is no ancestor, rows that miss a value.

    Example:
        >>> from subjunctive.encoders import Regression
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms import LinearGaussian
        >>> from subjunctive.train import fit
        >>> from subjunctive.variable import Variable
        >>> t, x = Variable("t"), Variable("x", (2,))
        >>> nodes = {"t": LinearGaussian(t), "x": LinearGaussian(x, [t])}
        >>> model = SCM(Graph.parse("t -> x"), nodes)
        >>> predictor = Regression(x, [t], nn.Linear(2, 4), 4)  # fitted, were this no example
        >>> own = model.mechanisms["x"]
        >>> for p in model.mechanisms["t"].parameters():
        ...     p = p.requires_grad_(False)
        >>> tuning = CounterfactualTuning(predictor, own)
        >>> fit(model, Batch(model.sample(64, seed=0)), tuning, steps=2, progress=False).steps
        2
    """

    def __init__(
        self,
        predictor: nn.Module,
        before: Mechanism,
        slack: float = 0.0,
        damping: float = 1.0,
        rate: float = 1e-2,
    ) -> None:
        super().__init__()
        if not (isinstance(before, Density) or callable(getattr(before, "bound", None))):
            raise ValueError(
                f"{type(before).__name__} has neither a bound nor a log_prob to keep; tune a "
                "mechanism that has one, such as HVAE or VAE"
            )
        levels = isinstance(getattr(before, "likelihood", None), Levels)
        if levels and not hasattr(before, "imagine"):
            raise ValueError(
                f"no gradient passes through the levels of {before.variable.name!r}: give its "
                f"{type(before).__name__} a Gaussian() likelihood, or tune an HVAE"
            )
        if not (0 <= slack < math.inf and 0 <= damping < math.inf and rate > 0):
            raise ValueError(
                f"CounterfactualTuning needs slack >= 0, damping >= 0 and rate > 0, got slack="
                f"{slack}, damping={damping} and rate={rate}"
            )
        self.predictor, self.before = _frozen(predictor), _frozen(before)
        self.slack, self.damping, self.rate = slack, damping, rate
        self.node = before.variable.name
        self.multiplier = nn.Parameter(torch.zeros(()))
        self.gap = torch.zeros(())  # g of the last batch, for the multiplier's turn

    def players(self, model: nn.Module) -> list[Player]:
        """Return the mechanism, then the multiplier."""
        own = self._scm(model).mechanisms[self.node].parameters()
        return [Player("mechanism", own), Player("multiplier", [self.multiplier], lr=self.rate)]

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return `predictor` and `bound`, weighted, or what the multiplier ascends, `(B,)` each."""
        if player == "multiplier":
            return {"multiplier": -(self.multiplier * self.gap).expand(len(batch))}
        with torch.no_grad():
            self.multiplier.clamp_(min=0)
        scm = self._scm(model)
        own, batch = scm.mechanisms[self.node], self._whole(scm, batch)
        values = scm.standard(batch)
        x, parents = values[self.node], {p.name: values[p.name] for p in own.parents}
        lost = self._lost(own, x, parents)
        self.gap = lost.detach().mean() - self.slack
        weight = (self.multiplier.detach() + self.damping * self.gap).clamp(min=0)
        return {"predictor": self._read(scm, batch, own, x, parents), "bound": weight * lost}

    def _scm(self, model: nn.Module) -> SCM:
        if not isinstance(model, SCM):
            raise ValueError(f"CounterfactualTuning tunes an SCM, got a {type(model).__name__}")
        known(self.node, model.graph.nodes, "before")
        above = model.graph.ancestors(self.node)
        for label in self._labels():
            if label not in above:
                raise ValueError(
                    f"the predictor reads {label!r} from {self.node!r}, whose ancestors are "
                    f"{sorted(above)}: its counterfactual is not known.{nearest(label, above)}"
                )
        return model

    def _whole(self, model: SCM, batch: Batch) -> Batch:
        """Return the rows, which must have seen the node and its ancestors."""
        for name in (self.node, *model.graph.ancestors(self.node)):
            if name not in batch.values or not bool(batch.mask(name).all()):
                raise ValueError(f"CounterfactualTuning needs rows that saw {name!r}; not all did")
        return model.batch(batch)

    def _labels(self) -> list[str]:
        if isinstance(self.predictor, Encoder):
            return list(self.predictor.nodes)
        return [v.name for v in self.predictor.labels]

    def _lost(self, own: Mechanism, x: Tensor, parents: Parents) -> Tensor:
        """Return by how many nats the bound has fallen, of the same rows and draws, `(B,)`."""
        luck = int(torch.randint(2**62, ()))
        with seeded(luck), torch.no_grad():
            then = _bound(self.before, x, parents)
        with seeded(luck):
            return then - _bound(own, x, parents)

    def _read(
        self, model: SCM, batch: Batch, own: Mechanism, x: Tensor, parents: Parents
    ) -> Tensor:
        """Return -log q(pa* | x*) of counterfactuals of one ancestor, drawn at random, `(B,)`."""
        above = model.ancestral([p.name for p in own.parents])
        nodes, rows = above.graph.nodes, torch.randperm(len(batch))
        name = nodes[int(torch.randint(len(nodes), ()))]
        with torch.no_grad():
            noise = above.abduct(batch.only(nodes))
            done = above.predict(noise, {name: batch.values[name][rows.to(x.device)]})
        other = {n: model.variables[n].standardise(v) for n, v in done.items()}
        answer = _imagined(own, x, parents, other)
        with evaluating(self.predictor):
            if isinstance(self.predictor, Encoder):
                q = self.predictor({self.node: answer}, {})
                return -torch.stack([q(n, other).log_prob(other[n]) for n in self._labels()]).sum(0)
            image = own.variable.restore(answer)
            loss: Tensor = self.predictor.loss(image, done)
            return loss


def _frozen(module: nn.Module) -> Any:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _bound(mechanism: Any, x: Tensor, parents: Parents) -> Tensor:
    """Return log p(x | pa), or a bound on it, in nats, `(B,)`."""
    exact: Any = mechanism.log_prob if isinstance(mechanism, Density) else mechanism.bound
    found: Tensor = exact(x, parents)
    return found


def _imagined(own: Any, x: Tensor, parents: Parents, others: Parents) -> Tensor:
    """Return f(u, pa*), u abducted, as the mechanism itself does so that gradients pass."""
    if hasattr(own, "imagine"):
        found: Tensor = own.imagine(x, parents, others)
    else:
        found = own(own.abduct(x, parents), others)
    return found
