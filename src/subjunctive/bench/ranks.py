r"""Which models differ over data sets: Friedman's test, Nemenyi's critical difference, Wilcoxon.

With r_ij the rank of model j of k on data set i of N, and R_j its mean over data sets,

    chi2 = 12 N / (k (k + 1)) sum_j (R_j - (k + 1) / 2)^2        (ties corrected),
    CD   = q_alpha sqrt(k (k + 1) / (6 N)),

where sqrt(2) q_alpha is the quantile of the studentised range of k means. Two models whose mean
ranks differ by less than CD cannot be told apart. Wilcoxon's signed ranks test each pair by how
much they differ; Holm's step-down keeps the chance of any false difference at alpha.

Reference: Statistical Comparisons of Classifiers over Multiple Data Sets (Demsar, 2006),
https://jmlr.org/papers/v7/demsar06a.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """What data sets say about models.

    Args:
        ranks: model -> mean rank, the best first; 1 is best.
        datasets: N. p_value: of Friedman's test that all are alike; NaN for fewer than three.
        difference: Nemenyi's critical difference of mean ranks.
        alike: models that cannot be told apart, the largest groups, by `difference`.
        pairs: (better, worse) -> Wilcoxon's p-value, adjusted by Holm.
        left_out: models without a result on some data set.
    """

    ranks: dict[str, float]
    datasets: int
    p_value: float
    difference: float
    alike: list[tuple[str, ...]]
    pairs: dict[tuple[str, str], float]
    left_out: tuple[str, ...] = ()


def compare(values: DataFrame, alpha: float = 0.05) -> Comparison:
    """Compare models over data sets.

    Args:
        values: a row a data set, a column a model; smaller is better. A model with a NaN is left
            out, as it may have failed where it is hard.
        alpha: the level.

    Raises:
        ValueError: for fewer than two data sets or models.

    Example:
        >>> import pandas
        >>> table = pandas.DataFrame({"a": [1.0, 2.0, 1.5], "b": [2.0, 3.0, 4.0]})
        >>> found = compare(table)
        >>> found.ranks, round(found.difference, 2)
        ({'a': 1.0, 'b': 2.0}, 1.13)
    """
    import numpy as np
    from scipy.stats import friedmanchisquare

    named = values.rename(columns=str)
    whole = named.loc[:, named.notna().all()]
    left = tuple(m for m in named if m not in whole)
    n, k = whole.shape
    if n < 2 or k < 2:
        raise ValueError(
            f"a comparison needs two data sets and two models with results on all of them, got "
            f"{n} and {k}; left out for lack of results: {', '.join(left) or 'none'}"
        )
    mean = whole.rank(axis=1).mean().sort_values(kind="stable")
    ranks = {m: float(r) for m, r in mean.items()}
    p_value = math.nan
    if k > 2:
        columns = [whole[m].to_numpy() for m in whole]
        tied = all(np.array_equal(c, columns[0]) for c in columns)
        p_value = 1.0 if tied else float(friedmanchisquare(*columns).pvalue)
    difference = studentised(k, alpha) * math.sqrt(k * (k + 1) / (12 * n))
    pairs = _holm(whole, list(ranks))
    return Comparison(ranks, n, p_value, difference, _alike(ranks, difference), pairs, left)


def studentised(k: int, alpha: float) -> float:
    """Return the quantile at 1 - alpha of the range of k standard normals.

        P(range < q) = k int phi(z) (Phi(z) - Phi(z - q))^(k - 1) dz

    >>> round(studentised(4, 0.05) / 2**0.5, 3)
    2.569
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = np.linspace(-9, 9, 4001)

    def below(q: float) -> float:
        inside = norm.pdf(z) * (norm.cdf(z) - norm.cdf(z - q)) ** (k - 1)
        return float(k * inside.sum() * (z[1] - z[0]) - (1 - alpha))  # it is 0 at both ends

    return float(brentq(below, 1e-6, 20.0))


def _alike(ranks: dict[str, float], difference: float) -> list[tuple[str, ...]]:
    """Return the largest groups of models, two or more, within the difference of each other."""
    names = list(ranks)
    groups: list[tuple[str, ...]] = []
    for i, first in enumerate(names):
        group = tuple(n for n in names[i:] if ranks[n] - ranks[first] < difference)
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups


def _holm(values: DataFrame, order: list[str]) -> dict[tuple[str, str], float]:
    """Return every pair's p-value of Wilcoxon's test, adjusted by Holm's step-down."""
    raw = {(a, b): signed_rank((values[a] - values[b]).tolist()) for a, b in combinations(order, 2)}
    adjusted, highest = {}, 0.0
    for i, (pair, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(raw) - i) * p))
        adjusted[pair] = highest
    return {pair: adjusted[pair] for pair in raw}


def signed_rank(gaps: Sequence[float]) -> float:
    """Return the exact two-sided p-value of Wilcoxon's signed ranks, ties among them or not.

    Under no difference every sign is as likely as the other; gaps of zero say nothing.

    >>> signed_rank([1.0, 2.0, 3.0, 4.0])
    0.125
    """
    import numpy as np
    from scipy.stats import rankdata

    given = np.array([g for g in gaps if g])
    doubled = np.round(2 * rankdata(abs(given))).astype(int)  # whole numbers where ranks are tied
    chance = np.zeros(doubled.sum() + 1)
    chance[0] = 1.0
    for rank in doubled:
        moved = np.roll(chance, rank)  # what leaves at the end was zero
        chance = (chance + moved) / 2
    positive = int(doubled[given > 0].sum())
    tail = min(chance[: positive + 1].sum(), chance[positive:].sum())
    return min(1.0, float(2 * tail))
