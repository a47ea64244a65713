"""What sound counterfactuals obey, measured on held-out rows.

With u ~ p(u | x) and f the model's equations:

- composition: doing nothing returns the factual, `f(u) = x`; repeated k times, x_k ~ x_0;
- reversibility: done and undone returns it, where the counterfactual is taken as new evidence,
  `f(u'; do(x_T)) = x` with u' ~ p(u | x*), x* = f(u; do(t));
- effectiveness: what was done is read from the answer, `measure(x*) = t`;
- minimality: nothing else changes: x* lies nearer to x than other rows of its kind.

Errors are mean absolute differences in the node's own unit, averaged over its entries; for
categories the share of rows that differ. A residual carried over makes composition perfect without
any skill: hence the same with the residual drawn anew.

Reference: Measuring axiomatic soundness of counterfactual image models (Monteiro, Ribeiro,
Pawlowski, Castro and Glocker, 2023), https://arxiv.org/abs/2303.01274; Benchmarking Counterfactual
Image Generation (Melistas, Spyrou, Gkouti, Sanchez, Vlontzos, Panagakis, Papanastasiou and
Tsaftaris, 2024), https://arxiv.org/abs/2403.20287
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from subjunctive.mechanism import seeded
from subjunctive.metrics.distance import mae, wrong
from subjunctive.metrics.estimate import Estimate
from subjunctive.metrics.worlds import as_evidence, explain, happened, imagine, redraw
from subjunctive.scm import Model
from subjunctive.variable import Batch, Variable, known


def differences(
    answer: Mapping[str, Tensor],
    batch: Batch,
    nodes: Sequence[str],
    variables: Mapping[str, Variable],
) -> dict[str, Tensor]:
    """Return mean absolute differences a row from what a batch saw, node -> `(B,)`, NaN unseen."""
    found = {}
    for node in nodes:
        value, seen = batch.values[node].cpu(), batch.mask(node).cpu()
        rows = (wrong if variables[node].discrete else mae)(answer[node], value)
        found[node] = torch.where(seen, rows.double(), torch.nan)
    return found


def _nodes(model: Model, batch: Batch, nodes: Sequence[str] | None, where: str) -> list[str]:
    for node in nodes or ():
        known(node, model.graph.nodes, where)
        if not bool(batch.mask(node).any()):
            raise ValueError(f"{where} compares {node!r} with the factual, which no row saw")
    return [n for n in (nodes or model.graph.nodes) if bool(batch.mask(n).any())]


def _estimates(
    rows: Mapping[str, Tensor], variables: Mapping[str, Variable]
) -> dict[str, Estimate]:
    return {n: Estimate.of(v, _unit(variables[n])) for n, v in rows.items()}


def _unit(variable: Variable) -> str:
    return "share" if variable.discrete else variable.unit


def composition(
    model: Model,
    batch: Batch,
    nodes: Sequence[str] | None = None,
    times: int = 1,
    redrawn: Sequence[str] = (),
    *,
    seed: int | None = None,
    batch_size: int = 256,
) -> dict[str, Estimate]:
    """Measure by how much doing nothing changes the factual, E|x_k - x_0|.

    Args:
        model: any `Model`.
        batch: rows in the user's units.
        nodes: which to compare; all that the batch saw if not given.
        times: k: every answer is the evidence for the next.
        redrawn: parts of the noise that are drawn anew each time, by whole steps of their dotted
            names ("residual" for every residual, "image.residual" for one).
        seed: for draws that do not touch the user's generator.
        batch_size: rows at once; bounds the memory.

    Returns:
        node -> `Estimate`.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> y", train=50, test=20)
        >>> composition(data.oracle, data.test)["y"].value
        0.0
    """
    names = _nodes(model, batch, nodes, "composition()")
    if times < 1:
        raise ValueError(f"composition() needs times of at least 1, got {times}")
    now = batch
    with seeded(seed):
        for _ in range(times):
            noise = explain(model, now, batch_size)
            answer = imagine(model, redraw(model, noise, redrawn), {}, batch_size)
            now = as_evidence(answer, batch)
    return _estimates(differences(answer, batch, names, model.variables), model.variables)


def reversibility(
    model: Model,
    batch: Batch,
    do: Mapping[str, Any],
    cycles: int = 1,
    nodes: Sequence[str] | None = None,
    *,
    seed: int | None = None,
    batch_size: int = 256,
) -> dict[str, Estimate]:
    """Measure how far from the factual one lands by doing and undoing, E|x'' - x|.

    The counterfactual under `do` is explained as new evidence, and the nodes are set back to their
    factual values. Chance enters where abduction draws.

    Args:
        model: any `Model`.
        batch: rows in the user's units that saw the nodes in `do`.
        do: node -> value, one for all or one a row, or `Intervention`.
        cycles: how often it is done and undone.
        nodes: which to compare; all seen ones that are not in `do` if not given.
        seed: for draws that do not touch the user's generator.
        batch_size: rows at once; bounds the memory.

    Returns:
        node -> `Estimate`.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> y", train=50, test=20)
        >>> reversibility(data.oracle, data.test, {"t": 0.5})["y"].value
        0.0
    """
    names = _nodes(model, batch, nodes, "reversibility()")
    names = names if nodes else [n for n in names if n not in do]
    for node in do:
        known(node, model.graph.nodes, "do()")
        if not bool(batch.mask(node).all()):
            raise ValueError(f"reversibility() sets {node!r} back, which not every row saw")
    back, now = {n: batch.values[n] for n in do}, batch
    with seeded(seed):
        for _ in range(cycles):
            for action, quiet in ((do, nullcontext()), (back, happened())):
                noise = explain(model, now, batch_size)
                with quiet:
                    answer = imagine(model, noise, action, batch_size)
                now = as_evidence(answer, batch)
    return _estimates(differences(answer, batch, names, model.variables), model.variables)


def effectiveness(measured: Tensor, target: Tensor, variable: Variable) -> Estimate:
    """Measure how far what is read from answers lies from what it should be.

    Args:
        measured: `(B,)`, read from the answers' pixels.
        target: `(B,)`, the true counterfactual value: what was set, and what follows from it.
        variable: continuous gives the mean absolute error, in its unit; else the accuracy.

    Example:
        >>> effectiveness(torch.tensor([2.0, 3.0]), torch.tensor([2.5, 3.5]), Variable("t"))
        Estimate(value=0.5, standard_error=0.0, n=2, unit='')
    """
    if variable.discrete:
        return Estimate.of(1 - wrong(measured, target), "accuracy")
    return Estimate.of(mae(measured, target), variable.unit)


Divergence = Callable[[Tensor, Tensor], Tensor]


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances between embeddings `(N, D)` and `(M, D)`, `(N, M)`."""
    return torch.cdist(a, b)


def gaussian_kl(a: Tensor, b: Tensor) -> Tensor:
    """Return KL(a_i || b_j) of diagonal Gaussians, `(N, M)`, in nats a dimension.

    Args:
        a, b: `(N, 2, D)` and `(M, 2, D)`: the mean, then the logarithm of the scale.

    Example:
        >>> one = torch.tensor([[[0.0], [0.0]]])
        >>> gaussian_kl(one, torch.tensor([[[2.0], [0.0]]]))  # 2^2 / 2
        tensor([[2.]])
    """
    (mean_a, log_a), (mean_b, log_b) = a.unbind(1), b.unbind(1)
    precision = (-2 * log_b).exp()
    square = (mean_a.square() + (2 * log_a).exp()) @ precision.T
    square = square - 2 * mean_a @ (mean_b * precision).T + (mean_b.square() * precision).sum(1)
    logs = log_b.sum(1) - log_a.sum(1)[:, None]
    return (logs + square / 2) / a.shape[-1] - 0.5


def minimality(
    factual: Tensor,
    counterfactual: Tensor,
    reference: Tensor,
    kinds: tuple[Tensor, Tensor, Tensor],
    divergence: Divergence = euclidean,
    weights: tuple[float, float] = (0.8, 0.2),
) -> Estimate:
    """Measure how little changed, by counterfactual latent divergence (lower is better).

        d = D(x*, x),   S_x = {D(s, x): s of x's kind},   S_x* = {D(s, x): s of x*'s kind},
        CLD = log(w_1 exp P(S_x* <= d) + w_2 exp P(S_x >= d)),

    where s runs over observed rows and a kind is a bin of the intervened node. The least, with
    the default weights, is 0.295; the most, 0.865. A copy of the factual is minimal: read it beside
    effectiveness. Rows without a reference row of both kinds are left out.

    Args:
        factual, counterfactual: embeddings `(B, ...)`, as `divergence` takes them.
        reference: embeddings of observed rows, `(N, ...)`, the factuals not among them.
        kinds: bins of the factuals `(B,)`, the counterfactuals `(B,)` and the reference `(N,)`.
        divergence: `(N, ...)`, `(M, ...)` -> `(N, M)`: `euclidean` for points, `gaussian_kl` for
            posteriors (mean, log-scale).
        weights: (w_1, w_2).

    Reference: Diffusion Causal Models for Counterfactual Estimation (Sanchez and Tsaftaris, 2022),
    https://arxiv.org/abs/2202.10166; weights of Melistas et al., 2024.

    Example:
        >>> x, rows = torch.zeros(2, 3), torch.randn(9, 3)
        >>> kinds = torch.zeros(2), torch.ones(2), torch.arange(9) % 2
        >>> round(minimality(x, x, rows, kinds).value, 3)
        0.295
    """
    own = divergence(counterfactual, factual).diagonal()
    others = divergence(reference, factual)
    of_factual, of_counterfactual, of_reference = kinds
    near, far = others <= own, others >= own

    def share(event: Tensor, kind: Tensor) -> Tensor:
        among = of_reference[:, None] == kind
        return (event & among).sum(0).double() / among.sum(0)

    p_near, p_far = share(near, of_counterfactual), share(far, of_factual)
    return Estimate.of((weights[0] * p_near.exp() + weights[1] * p_far.exp()).log())
