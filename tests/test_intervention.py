import warnings

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical as Coin
from torch.distributions import Normal

from subjunctive.graph import Graph
from subjunctive.intervention import (
    Draw,
    OutsideSupport,
    Policy,
    Replace,
    Scale,
    Set,
    Shift,
    Then,
    as_do,
)
from subjunctive.mechanisms import Categorical, ConditionalFlow, LinearGaussian
from subjunctive.query import counterfactual, intervene
from subjunctive.scm import SCM
from subjunctive.variable import Variable

T = Variable("t", loc=5.0, scale=2.0, low=1.0, high=9.0)
Y = Variable("y", loc=-3.0, scale=10.0)
ARM = Variable("arm", kind="categorical", categories=("a", "b"))
IMAGE = Variable("x", shape=(1, 2, 2))


def model():
    mechanisms = {
        "arm": Categorical(ARM),
        "t": LinearGaussian.of(T, [ARM], weights=[0.3, -0.3], scale=0.5),
        "y": LinearGaussian.of(Y, [T], weights=[0.7], scale=0.4),
        "x": LinearGaussian.of(IMAGE, [T], weights=torch.ones(4, 1)),
    }
    return SCM(Graph.parse("arm -> t -> y; t -> x"), mechanisms)


def rows(n=6, seed=0):
    return model().sample(n, seed=seed)


def test_soft_interventions_change_what_the_equation_gives():
    data = rows()
    shifted = counterfactual(model(), data, {"t": Shift(2.0)})
    assert torch.allclose(shifted["t"], data["t"] + 2.0, atol=1e-5)
    assert torch.allclose(shifted["y"], data["y"] + 0.7 * 10 * 2.0 / 2, atol=1e-4)
    scaled = counterfactual(model(), data, {"t": Scale(-0.5)})
    assert torch.allclose(scaled["t"], -0.5 * data["t"], atol=1e-5)


def test_each_row_may_have_its_own():
    data = rows(6)
    amount = torch.arange(6.0)
    for do, value in (
        ({"t": Shift(amount)}, data["t"] + amount),
        ({"t": Scale(amount)}, data["t"] * amount),
        ({"t": amount + 2}, amount + 2),
    ):
        found = counterfactual(model(), data, do, draws=3, batch_size=4, seed=0)
        assert torch.allclose(found["t"], value, atol=1e-5)
    image = counterfactual(model(), data, {"x": Shift(amount)})["x"]
    assert torch.allclose(image, data["x"] + amount[:, None, None, None], atol=1e-5)


@pytest.mark.parametrize(
    "what", [torch.full((4,), 5.0), Shift(torch.zeros(4)), Scale(torch.zeros(4))]
)
@pytest.mark.parametrize("n", [1, 3, 6])
def test_as_many_values_as_rows_or_one(what, n):
    with pytest.raises(ValueError, match=f"'t' 4 values for {n} rows of evidence"):
        counterfactual(model(), rows(n), {"t": what})
    with pytest.raises(ValueError, match=r"4 values for 2 rows|amounts of shape \(4,\)"):
        model().predict(model().noise(2), {"t": what})


def test_draws_are_independent_of_the_evidence():
    data = rows(4000)
    torch.manual_seed(0)
    found = counterfactual(model(), data, {"t": Draw(Normal(4.0, 1.0))}, batch_size=4000)
    assert stats.kstest(found["t"].numpy(), stats.norm(4.0, 1.0).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(found["t"], data["t"]).statistic) < 0.06
    assert stats.spearmanr(found["t"], found["y"]).statistic > 0.5
    assert intervene(model(), {"t": Draw(Normal(4.0, 1.0))}).graph.parents("t") == ()


def test_a_policy_reads_the_parents_in_their_units():
    data = rows(8)
    found = counterfactual(model(), data, {"t": Policy(lambda pa: 3.0 + pa["arm"])})
    assert torch.equal(found["t"], 3.0 + data["arm"])
    outcome = counterfactual(model(), data, {"y": Policy(lambda pa: 2 * pa["t"])})
    assert torch.equal(outcome["y"], 2 * data["t"])
    assert (counterfactual(model(), data, {"y": Policy(lambda pa: 1)})["y"] == 1).all()
    assert intervene(model(), {"t": Policy(lambda pa: pa["arm"])}).graph.parents("t") == ("arm",)


def test_a_replaced_mechanism_keeps_the_noise_or_draws_it_anew():
    data = rows(4000)
    other = LinearGaussian.of(T, [ARM], weights=[0.0, 1.0], scale=2.0)
    kept = counterfactual(model(), data, {"t": Replace(other, keep_noise=True)})
    noise = model().abduct(data)["t"].detach()
    expected = 5.0 + 2.0 * (data["arm"] + 2.0 * noise)
    assert torch.allclose(kept["t"], expected, atol=1e-4)
    torch.manual_seed(1)
    fresh = counterfactual(model(), data, {"t": Replace(other, keep_noise=False)})
    residual = ((fresh["t"] - 5.0) / 2.0 - data["arm"]) / 2.0
    assert stats.kstest(residual.numpy(), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(residual, noise).statistic) < 0.06


def test_a_replacement_must_fit_the_node():
    with pytest.raises(ValueError, match="'t' a mechanism built for"):
        intervene(model(), {"t": Replace(LinearGaussian(Variable("t")), True)})
    stranger = LinearGaussian(T, [Y])
    with pytest.raises(ValueError, match=r"reads \['y'\]; its parents are \['arm'\]"):
        counterfactual(model(), rows(), {"t": Replace(stranger, True)})
    reader = Replace(ConditionalFlow(T), keep_noise=False)
    assert counterfactual(model(), rows(), {"t": reader})["t"].shape == (6,)


def test_one_intervention_acts_on_top_of_another():
    data = rows()
    done = intervene(model(), {"t": 4.0})
    for act, value in ((Shift(1.5), 5.5), (Scale(0.5), 2.0), (7.0, 7.0)):
        assert (done.predict(model().noise(3), {"t": act})["t"] == value).all()
        nested = intervene(done, {"t": act})
        assert (nested.predict(model().noise(3))["t"] == value).all()
        assert nested.graph.parents("t") == ()
    twice = intervene(intervene(model(), {"t": Shift(1.0)}), {"t": Shift(2.0)})
    noise = model().abduct(data)
    assert torch.allclose(twice.predict(noise)["t"], data["t"] + 3.0, atol=1e-5)
    assert Then(Set(1.0), Shift(1.0)).hard
    assert not Then(Set(1.0), Policy(lambda pa: pa["arm"])).hard


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        ({"tt": 1.0}, KeyError, "unknown node 'tt'.*Did you mean 't'"),
        ({"t": "high"}, ValueError, "'t'.*needs numbers"),
        ({"t": None}, ValueError, "'t'.*needs numbers|'t'.*not finite"),
        ({"t": float("nan")}, ValueError, "'t' to a value that is not finite"),
        ({"t": torch.zeros(2, 2)}, ValueError, r"'t' a value of shape \(2, 2\)"),
        ({"x": torch.zeros(2, 2)}, ValueError, r"'x' a value of shape"),
        ({"arm": "c"}, ValueError, "no category 'c'"),
        ({"arm": 2}, ValueError, "coded 0 to 1; got 2 to 2"),
        ({"arm": Shift(1.0)}, ValueError, "Shift needs a continuous node; 'arm' is categorical"),
        ({"arm": Scale(1.0)}, ValueError, "Scale needs a continuous node; 'arm' is categorical"),
    ],
)
def test_bad_interventions_are_named(do, error, message):
    with pytest.raises(error, match=message):
        intervene(model(), do)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"t": Policy(lambda pa: torch.zeros(6, 1))}, r"Policy\(\) gives 't' values of shape"),
        ({"x": Policy(lambda pa: pa["t"])}, r"Policy\(\) gives 'x' values of shape \(6,\)"),
        ({"x": Draw(Normal(0.0, 1.0))}, r"Draw\(\) gives 'x' values of shape \(6,\)"),
        ({"arm": Draw(Normal(0.0, 1.0))}, "its codes are integers"),
        ({"arm": Draw(Coin(torch.ones(3)))}, "'arm' has 2 categories"),
        ({"arm": Policy(lambda pa: torch.full((6,), 5))}, "'arm' has 2 categories"),
    ],
)
def test_what_an_intervention_gives_must_fit_the_node(do, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        counterfactual(model(), rows(), do)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (11.0, r"'t' to 11, 0.2 ranges outside the training support \[1, 9\]"),
        (-15.0, "'t' to -15, 2.0 ranges outside"),
        (torch.tensor([-15.0, 9.5]), "'t' to -15, 2.0 ranges outside"),
    ],
)
def test_far_outside_the_support_is_warned_about_and_how_far(value, message):
    with pytest.warns(OutsideSupport, match=message):
        as_do({"t": value}, {"t": T})


def test_one_warning_an_intervention_and_none_inside():
    data = rows(6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counterfactual(model(), data, {"t": 30.0}, draws=5, batch_size=2)
    assert [w.category for w in caught] == [OutsideSupport]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counterfactual(model(), data, {"t": 9.5})
        counterfactual(model(), data, {"arm": "b", "y": 1e6})
