"""Penalties against all graphs of four nodes, closed forms, and what is refused."""

import itertools

import numpy as np
import pytest
import torch

from subjunctive.mechanism import seeded
from subjunctive.objectives import dagma, notears, strongest

# Penalties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [notears, dagma])
def test_a_penalty_is_zero_exactly_where_no_cycle_stands(penalty):
    cells = [(i, j) for i in range(4) for j in range(4) if i != j]
    with seeded(0):
        weights = 0.2 + 0.8 * torch.rand(4, 4, dtype=torch.float64)
    for chosen in itertools.product([0.0, 1.0], repeat=len(cells)):
        mask = torch.zeros(4, 4, dtype=torch.float64)
        mask[tuple(zip(*cells, strict=True))] = torch.tensor(chosen, dtype=torch.float64)
        found = float(penalty(mask * weights))
        if bool((torch.linalg.matrix_power(mask, 4) == 0).all()):  # nilpotent: no closed walk
            assert abs(found) < 1e-12
        else:
            assert found > 1e-5


def test_a_penalty_is_its_sum_over_closed_walks():
    with seeded(1):
        a = 0.3 * torch.rand(5, 5, dtype=torch.float64)
    traces = [float(torch.linalg.matrix_power(a, k).trace()) for k in range(1, 40)]
    series = sum(t / torch.arange(1.0, k + 1).prod() for k, t in enumerate(traces, 1))
    assert float(notears(a)) == pytest.approx(float(series), rel=1e-6)
    for s in (2.0, 5.0):
        series = sum(t / (k * s**k) for k, t in enumerate(traces, 1))
        assert float(dagma(a, s)) == pytest.approx(series, rel=1e-6)
    assert float(dagma(a)) == pytest.approx(float(dagma(a, 5.0)))


@pytest.mark.parametrize("penalty", [notears, dagma])
def test_its_gradient_agrees_with_finite_differences(penalty):
    with seeded(2):
        w = (0.4 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: penalty(w.square()), (w,))


def test_the_gradients_are_those_of_the_papers():
    with seeded(3):
        a = torch.rand(4, 4, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(notears(a), a)
    assert torch.allclose(slope, torch.matrix_exp(a).T)
    (slope,) = torch.autograd.grad(dagma(a, 6.0), a)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(slope, torch.linalg.inv(6 * eye - a).T)


def test_a_penalty_refuses_what_is_no_matrix_of_strengths():
    for penalty in (notears, dagma):
        with pytest.raises(ValueError, match=r"square matrix, got \(2, 3\)"):
            penalty(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="not negative: give probabilities, or weights sq"):
            penalty(-torch.eye(2))
    with pytest.raises(ValueError, match="below s=1, the largest is 2: give a larger s"):
        dagma(torch.ones(2, 2), 1.0)


# From strengths to a graph ------------------------------------------------------------------------


def test_the_strongest_edges_are_acyclic_whatever_the_strengths():
    with seeded(4):
        for _ in range(50):
            strengths = torch.rand(6, 6)
            graph = strongest(strengths, [f"x{i}" for i in range(6)], 0.3)
            assert graph.is_dag
            kept = torch.tensor(graph.adjacency.copy())
            left = (strengths > 0.3) & ~kept & ~torch.eye(6, dtype=torch.bool)
            reach = torch.tensor(np.linalg.matrix_power(np.eye(6) + kept.numpy(), 6) > 0)
            assert bool(reach.T[left].all())  # what was left out would close a cycle
            for i, j in left.nonzero().tolist():  # of edges that are all stronger
                strong = np.where(strengths.numpy() > float(strengths[i, j]), kept.numpy(), False)
                assert np.linalg.matrix_power(np.eye(6) + strong, 6)[j, i] > 0


def test_strengths_need_their_names():
    with pytest.raises(ValueError, match=r"2 names need strengths of shape \(2, 2\)"):
        strongest(torch.zeros(3, 3), ["a", "b"])
    with pytest.raises(ValueError, match="without NaN"):
        strongest(torch.full((2, 2), torch.nan), ["a", "b"])
