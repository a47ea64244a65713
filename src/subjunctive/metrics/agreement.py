"""Do the rungs agree? Counterfactuals averaged over factuals are the interventional distribution.

In a Markovian model with exact abduction, for factuals x drawn from the model itself,

    E_x[ law of f(u; do(t)), u ~ p(u | x) ] = law of f(u; do(t)), u ~ p(u),

because averaging the posterior over the evidence gives the prior back. A model that fails this
contradicts itself; on real rows it shows, besides, how far the model's own u lies from the data's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from subjunctive.mechanism import parts, seeded
from subjunctive.metrics.discrepancy import Discrepancy, energy
from subjunctive.metrics.worlds import explain, imagine
from subjunctive.scm import Model
from subjunctive.variable import Batch, Variable, as_matrix


def compare(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    variables: Mapping[str, Variable],
    nodes: Iterable[str],
    seed: int = 0,
) -> dict[str, Discrepancy]:
    """Return the energy coefficient between two sets of rows, node by node.

    Args:
        a, b: node -> `(N, *shape)`, `(M, *shape)`, in the user's units.
        variables: node -> what it is; categories are compared one-hot.
        nodes: which.
        seed: of the relabellings that give the null.
    """
    found = {}
    for node in nodes:
        own = variables[node]
        left, right = (as_matrix({node: own.standardise(v[node])}, [own]) for v in (a, b))
        found[node] = energy(left, right, seed=seed)
    return found


def own_rows(model: Model, rows: int, batch_size: int = 256) -> Batch:
    """Draw rows from the model; `context` holds their true noises, as a simulator's rows do."""
    noise = model.noise(rows)
    latent = model.graph.of_kind("latent")
    values = {n: v for n, v in imagine(model, noise, {}, batch_size).items() if n not in latent}
    return Batch(values, context={f"u.{name}": u for name, u in parts(noise)})


def agreement(
    model: Model,
    do: Mapping[str, Any],
    evidence: Batch | None = None,
    rows: int = 500,
    *,
    seed: int | None = None,
    batch_size: int = 256,
) -> dict[str, Discrepancy]:
    """Measure by how much counterfactuals and interventions contradict each other.

    Args:
        model: any `Model`.
        do: node -> value or `Intervention`; one value a row if it does not depend on the rows.
        evidence: factual rows; the model's own samples if not given.
        rows: how many rows are sampled, where there is no evidence.
        seed: for draws that do not touch the user's generator.
        batch_size: rows at once; bounds the memory.

    Returns:
        node (not in `do`) -> `Discrepancy`: the energy coefficient, 0 for agreement, with the 95 %
        quantile `null` that chance alone gives.

    Example:
        >>> from subjunctive.data.tabular import Linear
        >>> data = Linear("t -> y", train=50, test=50)
        >>> found = agreement(data.oracle, {"t": 1.0}, rows=200, seed=0)
        >>> list(found), found["y"].value < 0.05
        (['y'], True)
    """
    with seeded(seed):
        factual = own_rows(model, rows, batch_size) if evidence is None else evidence
        imagined = imagine(model, explain(model, factual, batch_size), do, batch_size)
        drawn = imagine(model, model.noise(len(factual)), do, batch_size)
    nodes = [n for n in model.graph.nodes if n not in do]
    return compare(imagined, drawn, model.variables, nodes)
