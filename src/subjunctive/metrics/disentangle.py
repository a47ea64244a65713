"""Is each factor held by one code, and does each code hold one factor?

From the importances R (codes x factors) with which trees predict every factor from all codes,
P_ij = R_ij / sum_j R_ij and Q_ij = R_ij / sum_i R_ij:

    disentanglement   D = sum_i rho_i (1 - H_K(P_i.)),      rho_i = sum_j R_ij / sum_ij R_ij
    completeness      C = sum_j kappa_j (1 - H_D(Q_.j)),    kappa_j = sum_i R_ij / sum_ij R_ij
    informativeness   I_j = R2, or accuracy for categories, on held-out rows,

with entropies in the base of the number of factors K and of codes D. Importances of trees do not
change when a code is rescaled, as the coefficients of a linear probe do.

Reference: A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and
Williams, 2018), https://openreview.net/forum?id=By-7dz-AZ
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DCI:
    """Disentanglement and completeness, from 0 to 1, and what the codes know.

    Args:
        disentanglement, completeness: 1 is perfect.
        informativeness: factor -> R2 (accuracy for categories) on held-out rows.
        importance: `(codes, factors)`, columns sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: dict[str, float]
    importance: Tensor


def concentration(importance: Tensor) -> Tensor:
    """Return `1 - H(p)` of every row of weights, in the base of their number, `(N,)`.

    Example:
        >>> concentration(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([1., 0.])
    """
    p = importance / importance.sum(1, keepdim=True).clamp(min=1e-300)
    entropy = torch.special.entr(p).sum(1) / torch.log(torch.tensor(float(p.shape[1])))
    return 1 - entropy


def dci(
    codes: Tensor,
    factors: Mapping[str, Tensor],
    *,
    trees: int = 50,
    held_out: float = 0.25,
    seed: int = 0,
) -> DCI:
    """Measure disentanglement, completeness and informativeness of codes.

    Args:
        codes: `(N, D)`, at least two columns.
        factors: name -> `(N,)`, at least two; integer tensors are categories.
        trees: in every random forest.
        held_out: share of rows kept for informativeness.
        seed: of the split and the forests; no global generator is touched.

    Raises:
        ValueError: for fewer than two codes or factors, or rows that do not line up.

    Example:
        >>> z = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> found = dci(z, {"a": z[:, 0], "b": -2 * z[:, 1]}, trees=10)
        >>> found.disentanglement > 0.95, found.informativeness["a"] > 0.95
        (True, True)
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    if codes.dim() != 2 or codes.shape[1] < 2 or len(factors) < 2:
        raise ValueError(
            f"dci() has codes {tuple(codes.shape)} and {len(factors)} factors; it needs (N, D) "
            "with at least two columns, and at least two factors"
        )
    off = {k: len(v) for k, v in factors.items() if len(v) != len(codes)}
    if off:
        raise ValueError(f"codes have {len(codes)} rows, factors {off}; give one row each")
    x = codes.detach().double().cpu().numpy()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).numpy()
    cut = max(1, round(held_out * len(x)))
    test, train = order[:cut], order[cut:]
    columns, known = [], {}
    for name, factor in factors.items():
        y = factor.detach().cpu().numpy()
        kind = RandomForestRegressor if factor.is_floating_point() else RandomForestClassifier
        forest = kind(n_estimators=trees, min_samples_leaf=3, random_state=seed, max_features=1.0)
        forest.fit(x[train], y[train])
        known[name] = float(forest.score(x[test], y[test]))
        columns.append(torch.from_numpy(forest.feature_importances_))
    importance = torch.stack(columns, 1)
    whole = importance.sum()
    return DCI(
        float((concentration(importance) * importance.sum(1)).sum() / whole),
        float((concentration(importance.T) * importance.sum(0)).sum() / whole),
        known,
        importance,
    )
