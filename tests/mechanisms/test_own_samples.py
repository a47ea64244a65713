"""What holds for every mechanism of this room, on samples that it drew itself."""

import copy
import re

import pytest
import torch
from scipy import stats

from subjunctive.mechanism import Density, draw, each, parts, seeded
from subjunctive.mechanisms import (
    AdditiveNoise,
    Categorical,
    ConditionalFlow,
    Known,
    LinearGaussian,
    Ordinal,
    Tied,
)
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.variable import Variable

CLASSES = [Known, LinearGaussian, AdditiveNoise, ConditionalFlow, Categorical, Ordinal, Tied]


def made(cls, rows=None):
    mechanism, batch = cls.card.example()
    values = {k: v[:rows] for k, v in batch.values.items()}
    return mechanism, values.pop(mechanism.variable.name), values


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("rows", [1, 300])
def test_forward_undoes_abduct(cls, rows):
    mechanism, x, parents = made(cls, rows)
    again = mechanism(mechanism.abduct(x, parents), parents)
    assert again.shape == x.shape
    assert again.dtype == x.dtype
    assert (again - x).abs().max() <= cls.card.tolerance
    assert mechanism.log_prob(x, parents).shape == (rows,)
    assert all(term.shape == (rows,) for term in mechanism.loss(x, parents).values())


@pytest.mark.parametrize("cls", CLASSES)
def test_double_precision_agrees_with_single(cls):
    mechanism, x, parents = made(cls)
    twin = copy.deepcopy(mechanism).double()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in parents.items()}
    y = x.double() if x.is_floating_point() else x
    u = twin.abduct(y, wide)
    assert all(part.dtype == torch.float64 for _, part in parts(u))
    assert (twin(u, wide) - y).abs().max() < 1e-10
    assert torch.allclose(
        mechanism.log_prob(x, parents).double(), twin.log_prob(y, wide), atol=1e-4
    )
    assert draw(twin.prior(), 2).dtype == torch.float64


@pytest.mark.parametrize("cls", CLASSES)
def test_abducted_noise_follows_the_prior_and_not_the_parents(cls):
    mechanism, _, _ = made(cls)
    batch = own_samples(mechanism, rows=4000, seed=3).values
    x = batch.pop(mechanism.variable.name)
    with torch.no_grad():
        u = each(lambda t: t.reshape(len(t), -1), mechanism.abduct(x, batch))
        prior = draw(mechanism.prior(), 4000).reshape(4000, -1)
    for column, reference in zip(u.T, prior.T, strict=True):
        assert stats.ks_2samp(column, reference).pvalue > 1e-4
        for parent in batch.values():
            assert stats.spearmanr(column, parent).pvalue > 1e-4


@pytest.mark.parametrize("cls", CLASSES)
def test_every_parameter_gets_a_gradient_and_the_parents_matter(cls):
    mechanism, x, parents = made(cls)
    terms = mechanism.loss(x, parents)
    if list(mechanism.parameters()):
        sum(term.mean() for term in terms.values()).backward()
    for name, parameter in mechanism.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    u = draw(mechanism.prior(), len(x))
    for name in parents:
        moved = {**parents, name: parents[name].flip(0)}
        assert (mechanism(u, moved) != mechanism(u, parents)).any(), name


ROOT = Variable("x", shape=(2,))
STAGE = Variable("x", kind="ordinal", categories=("a", "b", "c"))
with seeded(0):
    ROOTS = [
        LinearGaussian(ROOT),
        AdditiveNoise(ROOT, scale="parents"),
        ConditionalFlow(ROOT),
        ConditionalFlow(Variable("x")),
        Categorical(STAGE),
        Ordinal(STAGE),
        Known(ROOT, [], lambda u, _: u.exp(), lambda x, _: x.log()),
    ]


@pytest.mark.parametrize("mechanism", ROOTS, ids=lambda m: type(m).__name__)
def test_roots_need_no_parents(mechanism):
    stirred(mechanism)
    x = own_samples(mechanism, rows=1).values["x"]
    assert (mechanism(mechanism.abduct(x, {}), {}) - x).abs().max() < 1e-5
    loss = mechanism.loss(x, {})["nll"]
    assert loss.shape == (1,)
    if loss.requires_grad:
        loss.sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in mechanism.parameters())


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_values_are_named(cls):
    mechanism, x, parents = made(cls, 4)
    name = mechanism.variable.name
    with pytest.raises(ValueError, match="needs values of shape"):
        mechanism.log_prob(x.reshape(1, 1, -1), parents)
    with pytest.raises(ValueError, match=r"give (integer codes|floating-point values), not"):
        mechanism.log_prob(x.float() if mechanism.variable.discrete else x.long(), parents)
    first = next(iter(parents))
    with pytest.raises(KeyError, match=re.escape(f"{name!r} needs its parent {first!r}")):
        mechanism.log_prob(x, {k: v for k, v in parents.items() if k != first})
    with pytest.raises(ValueError, match="line them up"):
        mechanism.log_prob(x, {**parents, first: parents[first][:2]})
    assert isinstance(mechanism, Density)


with seeded(0):
    CONTINUOUS = [
        LinearGaussian(Variable("x"), [Variable("t")]),
        AdditiveNoise(Variable("x"), [Variable("t")]),
        AdditiveNoise(Variable("x"), [Variable("t")], scale="parents"),
        ConditionalFlow(Variable("x"), [Variable("t")]),
        ConditionalFlow(Variable("x"), [Variable("t")], kind="affine", transforms=2),
        Known(
            Variable("x"),
            [Variable("t")],
            lambda u, p: torch.sinh(u) + p["t"],
            lambda x, p: torch.asinh(x - p["t"]),
        ),
    ]


@pytest.mark.parametrize("mechanism", CONTINUOUS, ids=lambda m: type(m).__name__)
def test_scalar_densities_integrate_to_one(mechanism):
    stirred(mechanism).double()
    grid = torch.linspace(-400, 400, 80001, dtype=torch.float64)
    parents = {"t": torch.full_like(grid, 0.7)}
    with torch.no_grad():
        mass = torch.trapezoid(mechanism.log_prob(grid, parents).exp(), grid)
    assert abs(mass - 1) < 1e-4  # the trapezoids, at the kinks of a spline


with seeded(0):
    SQUARE = [
        LinearGaussian(Variable("x", shape=(2, 2)), [Variable("t")]),
        AdditiveNoise(Variable("x", shape=(2, 2)), [Variable("t")], scale="parents"),
        ConditionalFlow(Variable("x", shape=(2, 2)), [Variable("t")]),
        ConditionalFlow(Variable("x", shape=(2, 2)), [Variable("t")], "affine", 2),
    ]


@pytest.mark.parametrize("mechanism", SQUARE, ids=lambda m: type(m).__name__)
def test_log_prob_is_the_change_of_variables(mechanism):
    stirred(mechanism).double()
    batch = own_samples(mechanism, rows=3).values
    for row in range(3):
        parents = {"t": batch["t"][row : row + 1]}

        def explain(x, parents=parents):
            return mechanism.abduct(x.reshape(1, 2, 2), parents).reshape(-1)

        x = batch["x"][row].reshape(-1)
        jacobian = torch.autograd.functional.jacobian(explain, x)
        expected = stats.norm.logpdf(explain(x).detach()).sum() + jacobian.slogdet().logabsdet
        found = mechanism.log_prob(x.reshape(1, 2, 2), parents)[0]
        assert abs(found - expected) < 1e-9
