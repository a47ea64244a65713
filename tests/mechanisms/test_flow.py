import sys

import pytest
import torch
from scipy import stats
from torch.distributions import Distribution

from subjunctive.mechanisms import ConditionalFlow
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.variable import Variable

T = Variable("t")
ARM = Variable("arm", kind="categorical", categories=("a", "b", "c"))


@pytest.mark.parametrize("default", [True, False])
def test_torchs_validation_default_survives_the_first_import_of_zuko(monkeypatch, default):
    before = Distribution._validate_args
    for name in [n for n in sys.modules if n.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        Distribution.set_default_validate_args(default)
        flow = ConditionalFlow(Variable("x"), [T])
        flow.log_prob(torch.zeros(2), {"t": torch.zeros(2)})
        assert "zuko" in sys.modules
        assert Distribution._validate_args is default
    finally:
        Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("parents", [[], [T, ARM]])
def test_round_trips_hold_at_eight_standard_deviations(kind, shape, parents):
    flow = stirred(ConditionalFlow(Variable("x", shape=shape), parents, kind, transforms=2))
    values = own_samples(flow, rows=2001).values
    values.pop("x")
    u = torch.linspace(-8, 8, 2001)
    if shape:
        u = torch.stack([u, u[torch.randperm(2001)], u[torch.randperm(2001)]], dim=1)
    with torch.no_grad():
        x = flow(u, values)
        explained = flow.abduct(x, values)
        assert ((flow(explained, values) - x).abs() / (1 + x.abs())).max() < 1e-5
        assert ((explained - u).abs() / (1 + u.abs())).max() < 1e-5


def test_splines_are_continuous_at_their_ends():
    flow = ConditionalFlow(Variable("x"), transforms=3)
    with torch.no_grad():
        for phi in flow.chain[0].phi:
            phi.zero_()
    ends = torch.tensor([-5.0, 5.0])
    u = torch.cat([ends, torch.nextafter(ends, 9 * ends), torch.nextafter(ends, 0 * ends)])
    x = flow(u, {})
    assert (x - u).abs().max() < 1e-5
    assert (flow.abduct(x, {}) - u).abs().max() < 1e-5
    assert torch.equal(flow(2 * u, {}), 2 * u)


def test_scalar_flows_are_increasing_and_affine_ones_are_gaussian():
    flow = stirred(ConditionalFlow(Variable("x"), [T])).double()
    t = torch.full((500,), 0.3, dtype=torch.float64)
    assert (flow(torch.linspace(-7, 7, 500, dtype=torch.float64), {"t": t}).diff() > 0).all()
    affine = stirred(ConditionalFlow(Variable("x"), [T], "affine")).double()
    x0, x1 = affine(torch.tensor([0.0, 1.0]).double(), {"t": t[:2]}).tolist()
    x = torch.linspace(-2, 2, 500, dtype=torch.float64)
    expected = torch.as_tensor(stats.norm.logpdf(x, x0, x1 - x0))
    assert torch.allclose(affine.log_prob(x, {"t": t}), expected)


def test_log_prob_is_zukos_own():
    from zuko.distributions import DiagNormal, NormalizingFlow
    from zuko.transforms import ComposedTransform

    flow = stirred(ConditionalFlow(Variable("x", shape=(2,)), [T], transforms=2))
    x, t = torch.randn(10, 2), torch.randn(10)
    chain = ComposedTransform(*(layer(t[:, None]) for layer in flow.chain))
    theirs = NormalizingFlow(chain, DiagNormal(torch.zeros(2), torch.ones(2)))
    assert torch.allclose(flow.log_prob(x, {"t": t}), theirs.log_prob(x), atol=1e-5)


def test_fitting_finds_a_skewed_density_and_its_counterfactuals():
    t, u = torch.randn(2, 3000)
    skewed = lambda u: torch.exp(0.8 * u)  # noqa: E731
    x = 0.7 * skewed(u) - 1 + 0.5 * t
    flow = ConditionalFlow(Variable("x"), [T], hidden=(32,))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        flow.loss(x, {"t": t})["nll"].mean().backward()
        optimiser.step()
    truth = stats.lognorm.logpdf((x + 1 - 0.5 * t) / 0.7, s=0.8) - torch.tensor(0.7).log().item()
    with torch.no_grad():
        excess = -flow.log_prob(x, {"t": t}).mean() + truth.mean()
        moved = flow(flow.abduct(x, {"t": t}), {"t": t + 1}) - x
    assert excess < 0.1
    assert (moved - 0.5).abs().median() < 0.1


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"'splin'.*Did you mean 'spline'"):
        ConditionalFlow(Variable("x"), kind="splin")
    with pytest.raises(ValueError, match="transforms >= 1"):
        ConditionalFlow(Variable("x"), transforms=0)
    with pytest.raises(ValueError, match="needs a continuous node; 'arm' is categorical"):
        ConditionalFlow(ARM)
