"""Comparisons over data sets, against the worked example of Demsar (2006) and by hand."""

import math

import numpy as np
import pandas
import pytest

from subjunctive.bench import compare
from subjunctive.plot import ranks

# Areas under the curve of four variants of C4.5 on fourteen data sets: Demsar (2006), table 6.
NAMES = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
AREAS = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.975, 0.973],
        [0.957, 0.978, 0.946, 0.970],
    ]
)
TABLE = pandas.DataFrame(1 - AREAS, columns=NAMES)


def test_the_worked_example_comes_out():
    found = compare(TABLE)
    expected = {"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert list(found.ranks) == list(expected)
    for name, rank in expected.items():
        assert found.ranks[name] == pytest.approx(rank, abs=5e-4)
    assert found.difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=2e-3)
    assert found.datasets == 14
    # Nemenyi's test is too weak here to tell any two apart that differ by less than 1.25 ranks.
    assert found.alike == [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]


def test_friedman_is_the_formula_where_there_are_no_ties():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 4)) + np.array([0, 0.5, 1, 1.5])
    ordered = values.argsort(1).argsort(1) + 1
    n, k = values.shape
    chi2 = 12 * n / (k * (k + 1)) * ((ordered.mean(0) - (k + 1) / 2) ** 2).sum()
    from scipy.stats import chi2 as law

    assert compare(pandas.DataFrame(values)).p_value == pytest.approx(law.sf(chi2, k - 1))


def test_holm_steps_down_from_the_exact_signed_rank_probabilities():
    # c is worst everywhere; a and b differ in sign. All differences of a pair are distinct.
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    b = a + np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.65])
    c = a + np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    found = compare(pandas.DataFrame({"a": a, "b": b, "c": c})).pairs
    least = 2 / 2**6  # all signs alike
    assert found["a", "c"] == pytest.approx(3 * least)
    assert found["b", "c"] == pytest.approx(3 * least)  # not less than the one before it
    assert found["a", "b"] > 0.5


def test_signed_ranks_are_those_of_scipy_and_by_enumeration_where_there_are_ties():
    from itertools import product

    from scipy.stats import rankdata, wilcoxon

    from subjunctive.bench.ranks import signed_rank

    gaps = np.random.default_rng(1).normal(0.4, 1, 11)
    assert signed_rank(gaps) == pytest.approx(wilcoxon(gaps, method="exact").pvalue)
    tied = np.array([1.0, -1.0, 2.0, 2.0, 2.0, -3.0, 0.0])
    ranks = rankdata(abs(tied[:-1]))
    sums = np.array([ranks @ np.array(signs) for signs in product([0, 1], repeat=6)])
    seen = ranks @ (tied[:-1] > 0)
    expected = 2 * min((sums <= seen).mean(), (sums >= seen).mean())
    assert signed_rank(tied) == pytest.approx(min(1.0, expected))
    assert signed_rank([0.0, 0.0]) == 1.0


def test_groups_are_the_largest_and_none_lies_within_another():
    from subjunctive.bench.ranks import _alike

    ranks = {"a": 1.0, "b": 1.9, "c": 2.5, "d": 4.0}
    assert _alike(ranks, 1.0) == [("a", "b"), ("b", "c")]
    assert _alike(ranks, 2.0) == [("a", "b", "c"), ("c", "d")]
    assert _alike(ranks, 0.5) == []


def test_a_model_that_failed_somewhere_is_left_out_and_named():
    table = TABLE.assign(brittle=0.0)
    table.loc[3, "brittle"] = np.nan
    found = compare(table)
    assert found.left_out == ("brittle",)
    assert set(found.ranks) == set(NAMES)


def test_equal_models_are_alike_and_too_little_is_refused():
    same = pandas.DataFrame({n: [1.0, 2.0, 3.0] for n in "abc"})
    found = compare(same)
    assert found.p_value == 1.0
    assert set(found.pairs.values()) == {1.0}
    with pytest.raises(ValueError, match=r"two data sets and two models.* got 1 and 3"):
        compare(same[:1])
    with pytest.raises(ValueError, match="left out for lack of results: b"):
        compare(pandas.DataFrame({"a": [1.0, 2.0], "b": [1.0, None]}))


def test_the_diagram_puts_names_ranks_and_bars_where_they_belong():
    found = {"a": 1.2, "b": 2.0, "c": 3.4, "d": 3.4}
    ax = ranks(found, 1.1, [("a", "b"), ("c", "d")])
    texts = {t.get_text().strip(): t for t in ax.texts}
    assert texts["a  1.20"].get_ha() == "right"  # the better half on the left, out of the axis
    assert texts["3.40  d"].get_ha() == "left"
    assert "critical difference 1.10" in texts
    bars = [line for line in ax.lines if line.get_linewidth() == 3.5]
    for bar, ends in zip(bars, [(1.2, 2.0), (3.4, 3.4)], strict=True):
        low, high = bar.get_xdata()
        assert low < ends[0] <= ends[1] < high
    scale = next(line for line in ax.lines if line.get_marker() == "|")
    assert np.ptp(scale.get_xdata()) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="two models or more"):
        ranks({"a": 1.0})
