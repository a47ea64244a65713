"""Populations compared: closed forms, scipy, and what a mean cannot see."""

import pytest
import torch
from scipy.stats import wasserstein_distance

from subjunctive.metrics.population import (
    bimodality,
    change_r2,
    changed_most,
    e_distance,
    gaussian_mmd,
    wasserstein,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_e_distance_and_mmd_are_their_definitions():
    a, b = normal(40, 3), normal(30, 3, seed=1) + 0.5
    between = torch.cdist(a.double(), b.double()).mean()
    within = [torch.cdist(x.double(), x.double()).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    assert e_distance(a, b).value == pytest.approx(float(2 * between - sum(within)), rel=1e-6)
    square = torch.cdist(b.double(), b.double()).square()
    middle = square[~torch.eye(30, dtype=torch.bool)].median()

    def kernel(x, y):
        s = torch.cdist(x.double(), y.double()).square()
        return sum(torch.exp(-s / (2 * w**2 * middle)) for w in (0.5, 1.0, 2.0)) / 3

    def same(x):
        return (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))

    expected = same(a) + same(b) - 2 * kernel(a, b).mean()
    assert gaussian_mmd(a, b).value == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("metric", [e_distance, gaussian_mmd])
def test_equal_populations_are_within_chance_and_unequal_ones_beyond(metric):
    a, b = normal(150, 4), normal(150, 4, seed=1)
    same, moved = metric(a, b, permutations=100), metric(a, b + 0.5, permutations=100)
    assert same.value < same.null
    assert moved.value > moved.null
    assert moved.p_value < 0.02
    spread = metric(a, 2 * b, permutations=100)  # equal means
    assert spread.value > spread.null


def test_wasserstein_is_scipys_gene_by_gene():
    a, b = normal(37, 4), 2 * normal(53, 4, seed=1) + 0.3
    a[:20, 2] = 0.0  # ties
    expected = [wasserstein_distance(a[:, g].numpy(), b[:, g].numpy()) for g in range(4)]
    assert wasserstein(a, b).tolist() == pytest.approx(expected, rel=1e-5)


def test_bimodality_of_known_shapes():
    x = torch.stack([normal(20_000), torch.rand(20_000), normal(20_000) + 8 * (torch.arange(20_000) % 4 > 0), torch.ones(20_000)], 1)  # noqa: E501 # fmt: skip
    found = bimodality(x).tolist()
    assert found[0] == pytest.approx(2 / torch.pi, abs=0.02)
    assert found[1] == pytest.approx(0.75, abs=0.02)
    assert found[2] == pytest.approx(12 / 13, abs=0.02)  # p (1 - p) 8^2 over that and 1
    assert found[3] == 0


def test_means_alone_do_not_see_heterogeneity():
    half = torch.tensor([0.0, 2.0]).repeat(50)[:, None] + 0.01 * normal(100, 1)
    middle = torch.ones(100, 1) + 0.01 * normal(100, 1, seed=1)
    control = torch.zeros(100, 1) + 0.01 * normal(100, 1, seed=2)
    assert change_r2(middle, half, control).value > 0.99
    assert float(wasserstein(middle, half)) > 0.9
    assert e_distance(middle, half).value > 0.5
    assert float(bimodality(half)) > 0.99
    assert float(bimodality(middle)) < 0.8


def test_the_largest_changes_are_those_explained():
    control, truth = torch.zeros(6, 4), torch.zeros(6, 4) + torch.tensor([0.1, -3.0, 0.0, 1.0])
    assert changed_most(control, truth, 2).tolist() == [1, 3]
    answer = truth.clone()
    answer[:, 0] = 9.0  # not among the two
    assert change_r2(answer, truth, control, most=2).value == 1
    assert change_r2(control, truth, control).value == 0
    assert change_r2(-truth, truth, control, most=2).value == pytest.approx(-3)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"populations have shapes \(3, 2\) and \(3, 1\)"):
        wasserstein(torch.ones(3, 2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="no gene's mean changes"):
        change_r2(torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
