import warnings

import numpy as np
import pytest
import torch
from linear_gaussian import EDGES, TRUTH, scm
from scipy import stats

from subjunctive.effect import Effect, effect, mediation, strengths
from subjunctive.graph import Graph
from subjunctive.intervention import OutsideSupport
from subjunctive.mechanisms import Categorical, Known, LinearGaussian, Ordinal
from subjunctive.query import intervene
from subjunctive.scm import SCM
from subjunctive.variable import Variable

LOW, HIGH = -1.5, 0.5
I = {n: i for i, n in enumerate(TRUTH.nodes)}  # noqa: E741


def slope(cause, outcome):
    """Total effect of one unit, by the paths: derivative of the mean under do."""
    a, b = (TRUTH.do(**{cause: v}).mean[I[outcome]] for v in (0.0, 1.0))
    return b - a


@pytest.mark.parametrize(("cause", "outcome"), [("t", "y"), ("z", "w"), ("m", "w"), ("y", "z")])
def test_the_average_effect_is_the_closed_form(cause, outcome):
    found = effect(scm(), cause, outcome, (LOW, HIGH), seed=0)
    assert found.kind == "ATE"
    exact = (HIGH - LOW) * slope(cause, outcome)
    assert float(found.estimate) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert found.ess == pytest.approx(10_000)
    assert float(found.standard_error) < 1e-4


def interacting():
    """y = t (1 + c) + 0.5 c + u, c -> t: effects that differ from unit to unit."""
    c, t, y = Variable("c"), Variable("t"), Variable("y", loc=2.0, scale=3.0)
    mechanisms = {
        "c": LinearGaussian.of(c),
        "t": LinearGaussian.of(t, [c], weights=[0.8], scale=0.6),
        "y": Known(
            y,
            [c, t],
            lambda u, p: p["t"] * (1 + p["c"]) + 0.5 * p["c"] + u,
            lambda x, p: x - p["t"] * (1 + p["c"]) - 0.5 * p["c"],
        ),
    }
    return SCM(Graph.parse("c -> t; c -> y; t -> y"), mechanisms)


def test_effects_in_a_subpopulation():
    """E[Y_1 - Y_0 | .] = 3 (1 + E[c | .]); given t, c is Gaussian with mean 0.8 t (unit spread)."""
    model = interacting()
    average = effect(model, "t", "y", seed=0)
    conditional = effect(model, "t", "y", given={"c": 0.7}, seed=0)
    treated = effect(model, "t", "y", treated=1.2, seed=0)
    for found, kind, exact in (
        (average, "ATE", 3.0),
        (conditional, "CATE", 3 * 1.7),
        (treated, "ETT", 3 * (1 + 0.8 * 1.2)),
    ):
        assert found.kind == kind
        error = float(found.standard_error)
        assert float(found.estimate) == pytest.approx(exact, abs=5 * error + 1e-4)
        assert error < 0.1
    assert treated.ess < 0.9 * 10_000


def test_conditions_below_the_treatment_are_met_by_weights():
    """CATE given y = 6: c given y by quadrature over c and t."""
    found = effect(interacting(), "t", "y", given={"y": 6.0}, draws=40_000, seed=0)
    c, t = np.meshgrid(np.linspace(-6, 6, 601), np.linspace(-6, 6, 601), indexing="ij")
    standard = (6.0 - 2.0) / 3.0
    weight = (
        stats.norm.pdf(c)
        * stats.norm(0.8 * c, 0.6).pdf(t)
        * stats.norm(t * (1 + c) + 0.5 * c, 1).pdf(standard)
    )
    exact = 3 * (1 + (c * weight).sum() / weight.sum())
    assert float(found.estimate) == pytest.approx(exact, abs=5 * float(found.standard_error))


def test_the_standard_error_is_the_spread_over_repetitions():
    model = interacting()
    found = [effect(model, "t", "y", treated=1.0, draws=500, seed=s) for s in range(60)]
    spread = np.std([float(f.estimate) for f in found], ddof=1)
    said = np.mean([float(f.standard_error) for f in found])
    assert said == pytest.approx(spread, rel=0.35)
    truth = 3 * 1.8
    inside = [bool(f.interval(0.9)[0] <= truth <= f.interval(0.9)[1]) for f in found]
    assert 0.75 <= np.mean(inside) <= 1.0
    low, high = Effect("ATE", torch.tensor(1.0), torch.tensor(2.0), 10.0).interval(0.95)
    assert (float(low), float(high)) == pytest.approx((1 - 3.92, 1 + 3.92), abs=1e-2)


def test_the_effect_on_a_category_is_a_difference_of_probabilities():
    t = Variable("t")
    b = Variable("b", kind="categorical", categories=("no", "yes"))
    network = torch.nn.Linear(1, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0], [1.5]]))
        network.bias.copy_(torch.tensor([0.0, -0.3]))
    model = SCM(Graph.parse("t -> b"), {"t": LinearGaussian(t), "b": Categorical(b, [t], network)})
    found = effect(model, "t", "b", (0.0, 1.0), draws=40_000, seed=0)
    exact = 1 / (1 + np.exp(-1.2)) - 1 / (1 + np.exp(0.3))
    assert float(found.estimate) == pytest.approx(exact, abs=5 * float(found.standard_error))


def test_effects_on_images_have_their_shape():
    t, x = Variable("t"), Variable("x", shape=(1, 2, 2))
    picture = LinearGaussian.of(x, [t], weights=torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(t), "x": picture})
    found = effect(model, "t", "x", seed=0, draws=100)
    assert torch.allclose(
        found.estimate.flatten(), torch.tensor([1.0, 2, 3, 4]).double(), atol=1e-5
    )


# Mediation ------------------------------------------------------------------------------------


def test_mediation_is_the_closed_form_and_adds_up():
    found = mediation(scm(), "t", "y", ["m"], (LOW, HIGH), seed=0)["estimate"]
    b = TRUTH.coefficients
    step = HIGH - LOW
    direct, through = b[I["y"], I["t"]] * step, b[I["y"], I["m"]] * b[I["m"], I["t"]] * step
    assert found["TE"] == pytest.approx(direct + through, rel=1e-4)
    assert found["NDE"] == pytest.approx(direct, rel=1e-4)
    assert found["NIE"] == pytest.approx(through, rel=1e-4)
    assert found["TE"] == pytest.approx(found["NDE"] - found["NIE reversed"], abs=1e-9)


def test_mediation_with_interaction():
    """m = t + u_m, y = t m + m + u: NDE = 1 E[m_0] = 0, NIE = 1, TE = E[2 m_1] - E[m_0] = 2."""
    t, m, y = (Variable(n) for n in "tmy")
    mechanisms = {
        "t": LinearGaussian.of(t),
        "m": LinearGaussian.of(m, [t], weights=[1.0]),
        "y": Known(y, [t, m], lambda u, p: p["t"] * p["m"] + p["m"] + u),
    }
    model = SCM(Graph.parse("t -> m -> y; t -> y"), mechanisms)
    table = mediation(model, "t", "y", "m", (0.0, 1.0), draws=40_000, seed=0)
    for name, exact in {"TE": 2.0, "NDE": 0.0, "NIE": 1.0, "NIE reversed": -2.0}.items():
        error = table["standard_error"][name]
        assert table["estimate"][name] == pytest.approx(exact, abs=5 * error + 1e-4), name
    found = table["estimate"]
    assert found["TE"] == pytest.approx(found["NDE"] - found["NIE reversed"], abs=1e-6)
    assert table["standard_error"]["NDE"] == pytest.approx(1 / 200, rel=0.1)


def test_mediators_are_set_without_a_warning_and_the_treatment_is_not():
    """The mediator's own tail lies far outside of what training saw, but nobody asked for it."""
    t, y = Variable("t", low=-1.0, high=1.0), Variable("y")
    m = Variable("m", low=-0.1, high=0.1)
    model = SCM(
        Graph.parse("t -> m -> y; t -> y"),
        {
            "t": LinearGaussian.of(t),
            "m": LinearGaussian.of(m, [t], weights=[1.0]),
            "y": LinearGaussian.of(y, [t, m], weights=[1.0, 1.0]),
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideSupport)
        found = mediation(model, "t", "y", ["m"], draws=50, seed=0)
    assert found.estimate["NIE"] == pytest.approx(1.0, abs=1e-5)
    with pytest.warns(OutsideSupport) as caught:
        mediation(model, "t", "y", ["m"], (0.0, 9.0), draws=50, seed=0)
    assert ["'t' to 9" in str(w.message) for w in caught] == [True]


# Strengths ------------------------------------------------------------------------------------


def test_linear_strengths_are_the_standardised_coefficients():
    found = strengths(scm(), n=20_000, seed=5)
    spread = np.sqrt(np.diag(TRUTH.covariance))
    assert list(found) == [(a, b) for a, _, b in scm().graph.edges]
    for a, b in EDGES:
        exact = TRUTH.coefficients[I[b], I[a]] * spread[I[a]] / spread[I[b]]
        assert found[a, b].value == pytest.approx(exact, rel=0.03)
        assert found[a, b].signed


def test_a_strength_is_of_the_childs_own_mechanism_with_the_rest_held():
    t, z, y = Variable("t", loc=3.0), Variable("z"), Variable("y", scale=2.0)
    mechanisms = {
        "t": LinearGaussian.of(t),
        "z": LinearGaussian.of(z, [t], weights=[1.0], bias=2.0),
        "y": Known(y, [t, z], lambda u, pa: pa["z"] * pa["t"] ** 3 + u),
    }
    model = SCM(Graph.parse("t -> z; t -> y; z -> y"), mechanisms)
    found = strengths(model, n=300, seed=0)
    seen = {n: v.double().numpy() for n, v in model.sample(300, seed=0).items()}
    u_t, z_, y_ = seen["t"] - 3, seen["z"], seen["y"] / 2
    half, own = u_t.std(ddof=1) / 2, y_.std(ddof=1)
    expected = (z_ * ((u_t + half) ** 3 - (u_t - half) ** 3)).mean() / own
    assert found["t", "y"].value == pytest.approx(expected, rel=1e-4)
    expected = (u_t**3).mean() * z_.std(ddof=1) / own
    assert found["z", "y"].value == pytest.approx(expected, rel=1e-4)


def test_strengths_of_pictures_and_categories_have_no_sign():
    t, x, y = Variable("t"), Variable("x", (1, 2, 2)), Variable("y")
    arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
    blood = Variable("blood", kind="categorical", categories=("A", "B", "AB"))
    stage = Variable("stage", kind="ordinal", categories=("I", "II", "III"))
    ramp, normal = torch.tensor([[[0.0, 1.0], [-2.0, 3.0]]]), torch.distributions.Normal(0.0, 1.0)
    equations = {
        stage: ([t], lambda u, pa: (pa["t"] > -1).long() + (pa["t"] > 1).long()),
        arm: ([], lambda u, pa: (u > 0.5).long()),
        blood: ([arm], lambda u, pa: (u > 0).long() + pa["arm"]),
        y: ([blood, arm], lambda u, pa: 2.0 * (pa["blood"] == 1) - 3.0 * pa["arm"] + u),
    }
    mechanisms = {v.name: Known(v, pa, fn, None, normal) for v, (pa, fn) in equations.items()}
    mechanisms["t"] = LinearGaussian.of(t)
    mechanisms["x"] = Known(x, [t], lambda u, pa: u + pa["t"][:, None, None, None] * ramp)
    graph = Graph.parse("t -> x; t -> stage; blood -> y; arm -> y; arm -> blood")
    model = SCM(graph, mechanisms)
    found = strengths(model, n=4000, seed=0)
    seen = {n: v.double().numpy() for n, v in model.sample(4000, seed=0).items()}
    spread = {n: v.std(0, ddof=1) for n, v in seen.items()}
    assert {edge for edge, s in found.items() if s.signed} == {("arm", "y")}
    step, own = spread["t"], np.sqrt((spread["x"] ** 2).mean())
    rms = np.sqrt((ramp.numpy() ** 2).mean()) * step
    assert found["t", "x"].value == pytest.approx(rms / own, rel=1e-4)
    low, high = seen["t"] - step / 2, seen["t"] + step / 2
    moved = ((low <= 1) & (high > 1)) | ((low <= -1) & (high > -1))
    assert found["t", "stage"].value == pytest.approx(moved.mean(), abs=1e-3)
    # a code of two moves by one, times the standard deviation of the codes
    exact = -3 * spread["arm"] / spread["y"]
    assert found["arm", "y"].value == pytest.approx(exact, rel=1e-4)
    assert found["arm", "blood"].value == 1  # every row changes its category
    # of three unordered ones, half the mean square change between two rows is the variance
    exact = 2 * (seen["blood"] == 1).std() / spread["y"]
    assert found["blood", "y"].value == pytest.approx(exact, rel=0.05)


def test_strengths_leave_the_users_generator_alone_and_teach():
    model, state = scm(), torch.get_rng_state()
    assert strengths(model, n=10, seed=1) == strengths(model, n=10, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="asks every node's mechanism, which Intervened has not"):
        strengths(intervene(model, {"z": 1.0}))
    with pytest.raises(ValueError, match="at least 2 rows, got n=1"):
        strengths(model, n=1)


# Bad input ------------------------------------------------------------------------------------


def test_bad_questions_are_named():
    model = scm()
    with pytest.raises(KeyError, match=r"effect\(\) names unknown node 'tt'.*Did you mean 't'"):
        effect(model, "tt", "y")
    with pytest.raises(KeyError, match=r"unknown node 'zz'"):
        effect(model, "t", "y", given={"zz": 1.0})
    with pytest.raises(ValueError, match="at least 2 draws"):
        effect(model, "t", "y", draws=1)
    with pytest.raises(ValueError, match="by weighting needs an SCM; Intervened is none"):
        effect(intervene(model, {"z": 1.0}), "t", "y", given={"z": 1.0})
    with pytest.raises(ValueError, match=r"\['z'\] lie on no path from 't' to 'y'"):
        mediation(model, "t", "y", ["z"])
    with pytest.raises(ValueError, match="at least one mediator"):
        mediation(model, "t", "y", [])
    with pytest.raises(ValueError, match="at least 2 draws"):
        mediation(model, "t", "y", ["m"], draws=1)
    with pytest.raises(KeyError, match=r"mediation\(\) names unknown node 'n'"):
        mediation(model, "t", "y", "n")
    with pytest.raises(ValueError, match="'t' is set to both"):
        effect(model, "t", "y", given={"t": 1.0}, treated=0.0)
    with pytest.raises(ValueError, match="one value a node, got 2 rows"):
        effect(model, "t", "y", given={"z": torch.zeros(2)})


def test_a_condition_without_weight_is_named():
    t, y = Variable("t"), Variable("y")
    mechanisms = {"t": LinearGaussian.of(t), "y": LinearGaussian.of(y, [t], weights=[1.0])}
    model = SCM(Graph.parse("t -> y"), mechanisms)
    with pytest.raises(ValueError, match="no draw meets the condition"):
        effect(model, "t", "y", given={"y": 1e25})


def test_unordered_categories_have_no_mean():
    t = Variable("t")
    b = Variable("b", kind="categorical", categories=("x", "y", "z"))
    s = Variable("s", kind="ordinal", categories=("x", "y", "z"))
    model = SCM(
        Graph.parse("t -> b; t -> s"),
        {"t": LinearGaussian(t), "b": Categorical(b, [t]), "s": Ordinal(s, [t])},
    )
    with pytest.raises(ValueError, match="'b' has 3 unordered categories"):
        effect(model, "t", "b")
    assert effect(model, "t", "s", draws=10).estimate.shape == ()


def test_an_effect_works_on_an_intervened_model():
    done = intervene(scm(), {"m": 100.0})
    found = effect(done, "t", "y", (LOW, HIGH), seed=0)
    exact = TRUTH.coefficients[I["y"], I["t"]] * (HIGH - LOW)
    assert float(found.estimate) == pytest.approx(exact, rel=1e-4)
