"""Effects for given units: closed forms, renderers that know the truth, and twins that do not."""

import warnings

import numpy as np
import pytest
import torch
from linear_gaussian import TRUTH, rows, scm
from test_contract import linear_pair

from subjunctive import plot
from subjunctive.data import morpho
from subjunctive.data.morpho import MorphoDigits
from subjunctive.data.pendulum import Pendulum
from subjunctive.effect import mediation
from subjunctive.graph import Graph
from subjunctive.intervention import Draw, OutsideSupport, Shift
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import Categorical, Known, LinearGaussian
from subjunctive.query import NotIdentified, counterfactual, intervene
from subjunctive.scm import SCM
from subjunctive.unit_effect import EFFECTS, WORLDS, unit_mediation
from subjunctive.variable import Batch, Variable

I = {n: i for i, n in enumerate(TRUTH.nodes)}  # noqa: E741
GRAPH = Graph.parse("t -> m; t -> x; m -> x")


# Closed forms -----------------------------------------------------------------------------------


def picture(through=1.5):
    """m = 0.3 + through t + 0.5 u, and four pixels D t + M m + C + 0.7 u."""
    t, m, x = Variable("t", loc=1.0, scale=2.0), Variable("m"), Variable("x", (1, 2, 2))
    weights = torch.tensor([[1.0, -2.0], [0.0, 3.0], [4.0, 0.0], [0.5, 0.5]])
    return SCM(
        GRAPH,
        {
            "t": LinearGaussian.of(t),
            "m": LinearGaussian.of(m, [t], weights=[through], bias=0.3, scale=0.5),
            "x": LinearGaussian.of(x, [t, m], weights=weights, bias=0.2, scale=0.7),
        },
    )


DIRECT = torch.tensor([1.0, 0.0, 4.0, 0.5]).reshape(1, 2, 2) / 2  # a unit of t is half a deviation
THROUGH = torch.tensor([-2.0, 3.0, 0.0, 0.5]).reshape(1, 2, 2) * 1.5 / 2


@pytest.mark.parametrize("baseline", [None, torch.linspace(0, 2, 6)])
def test_effects_on_a_picture_are_the_closed_form_unit_by_unit(baseline):
    model = picture()
    seen, b = model.sample(6, seed=0), torch.linspace(-1, 3, 6)
    found = unit_mediation(model, seen, "t", "x", "m", b, baseline=baseline)
    step = (b - (seen["t"] if baseline is None else baseline)).reshape(6, 1, 1, 1)
    for name, exact in {
        "TE": step * (DIRECT + THROUGH),
        "NDE": step * DIRECT,
        "NIE": step * THROUGH,
        "NIE reversed": -step * THROUGH,
    }.items():
        assert torch.allclose(found[name], exact, atol=1e-5), name
    start = seen["x"]
    if baseline is not None:
        start = start + (baseline - seen["t"]).reshape(6, 1, 1, 1) * (DIRECT + THROUGH)
    assert torch.allclose(found["factual"], start, atol=1e-5)
    assert torch.allclose(found["direct"], start + step * DIRECT, atol=1e-5)


def test_units_of_a_chain_with_confounder_and_several_units_of_measure():
    """y's own noise, its parent z and the arrow m -> y held, from matrix algebra."""
    seen = scm().sample(8, seed=1)
    u, b = TRUTH.noise(rows(seen)), np.linspace(-2, 0, 8)
    found = unit_mediation(scm(), seen, "t", "y", ["m"], torch.tensor(b))
    before, after = rows(seen), np.stack(
        [TRUTH.do(t=v).solve(u[i]) for i, v in enumerate(b)]
    )  # fmt: skip
    y, t, m = (TRUTH.coefficients[I["y"]], I["t"], I["m"])
    direct = y[t] * (b - before[:, t])
    through = y[m] * (after[:, m] - before[:, m])
    assert np.allclose(found["NDE"], direct, atol=1e-5)
    assert np.allclose(found["NIE"], through, atol=1e-5)
    assert np.allclose(found["treated"], after[:, I["y"]], atol=1e-5)
    frame = found.frame()
    assert list(frame) == [*WORLDS, *EFFECTS]
    assert np.allclose(frame["TE"], direct + through, atol=1e-5)


def interacting(through=1.0):
    """m = t + u_m and y = t m + m + u_y."""
    t, m, y = (Variable(n) for n in "tmy")
    mechanisms = {
        "t": LinearGaussian.of(t),
        "m": LinearGaussian.of(m, [t], weights=[through]),
        "y": Known(
            y,
            [t, m],
            lambda u, p: p["t"] * p["m"] + p["m"] + u,
            lambda x, p: x - p["t"] * p["m"] - p["m"],
        ),
    }
    return SCM(Graph.parse("t -> m -> y; t -> y"), mechanisms)


def test_where_treatment_and_mediator_interact_the_parts_do_not_add_up_but_the_identity_holds():
    model = interacting()
    seen = model.sample(200, seed=0)
    a, b, m = seen["t"], 2.0, seen["m"]
    found = unit_mediation(model, seen, "t", "y", "m", b)
    moved = m + b - a  # what the mediator would have been
    assert torch.allclose(found["NDE"], (b - a) * m, atol=1e-5)
    assert torch.allclose(found["NIE"], (a + 1) * (b - a), atol=1e-5)
    assert torch.allclose(found["TE"], (b + 1) * moved - (a + 1) * m, atol=1e-5)
    assert torch.allclose(found["NIE reversed"], -(b + 1) * (b - a), atol=1e-5)
    assert torch.allclose(found["TE"], found["NDE"] - found["NIE reversed"], atol=1e-5)
    assert (found["TE"] - found["NDE"] - found["NIE"]).abs().mean() > 1
    # the other way round: what was b -> a is now a -> b
    turned = unit_mediation(model, seen, "t", "y", "m", a, baseline=b)
    assert torch.allclose(turned["NIE"], found["NIE reversed"], atol=1e-5)
    assert torch.allclose(turned["TE"], -found["TE"], atol=1e-5)


def test_their_mean_over_units_is_the_effect_in_the_population():
    model = interacting()
    seen = model.sample(4000, seed=0)
    found = unit_mediation(model, seen, "t", "y", "m", 1.0, baseline=0.0)
    table = mediation(model, "t", "y", "m", (0.0, 1.0), draws=4000, seed=1)
    for name in EFFECTS:
        error = 2**0.5 * table["standard_error"][name]
        assert float(found[name].mean()) == pytest.approx(
            table["estimate"][name], abs=5 * error + 1e-5
        )


def test_a_model_that_ignores_the_mediator_is_told_apart():
    """The arrow treatment -> mediator is cut: right on the direct effect, blind to the rest."""
    seen = picture().sample(50, seed=0)
    truth, twin = (unit_mediation(m, seen, "t", "x", "m", 2.0) for m in (picture(), picture(0.0)))
    assert torch.allclose(twin["NDE"], truth["NDE"], atol=1e-5)
    assert torch.allclose(twin["NIE"], torch.zeros(()), atol=1e-5)
    assert (truth["NIE"] - twin["NIE"]).abs().mean() > 1
    cut = {n: m for n, m in picture().mechanisms.items() if n != "m"}
    cut["m"] = LinearGaussian.of(picture().variables["m"])
    with pytest.raises(ValueError, match=r"\['m'\] lie on no path from 't' to 'x'; .* are \[\]"):
        unit_mediation(SCM(Graph.parse("t -> x; m -> x"), cut), seen, "t", "x", "m", 2.0)


# The renderers know the truth -------------------------------------------------------------------


@pytest.mark.parametrize("treatment", ["angle", "light"])
def test_on_the_pendulum_shadow_and_what_casts_it_move_apart(treatment):
    data = Pendulum(train=50, valid=2, test=12)
    seen = data.test
    b = data.train.values[treatment][:12]
    found = unit_mediation(data.oracle, seen, treatment, "image", ["length", "position"], b)
    treated = data.oracle.predict(data.oracle.abduct(seen), {treatment: b})
    assert torch.equal(found["factual"], seen.values["image"])
    assert torch.equal(found["treated"], treated["image"])
    noise = seen.context["u.image"]
    own = "ball" if treatment == "angle" else "sun"
    before, after = data.regions(seen.values, noise), data.regions(treated, noise)
    shadow, thing = (before[k] | after[k] for k in ("shadow", own))
    thing = thing | before["rod"] | after["rod"]
    moved = {k: found[k].abs().amax(1) > 0 for k in EFFECTS}
    assert not (moved["NDE"] & ~thing).any()
    assert not (moved["NIE"] & ~shadow).any()
    assert (moved["NDE"] & thing).flatten(1).any(1).all()
    assert (moved["NIE"] & shadow).flatten(1).any(1).float().mean() > 0.9
    # no pixel is both, so that here the parts do add up
    assert torch.allclose(found["TE"], found["NDE"] + found["NIE"], atol=1e-6)


@pytest.fixture
def strokes(monkeypatch):
    """Bars in the place of real digits, which take seconds to read."""
    images = np.zeros((30, 28, 28), np.uint8)
    for i in range(30):
        images[i, 6:22, 12 : 14 + i % 3] = 255
        images[i, 20:22, 8:20] = 255
    classes = np.arange(30) % 10
    monkeypatch.setattr(morpho, "read_digits", lambda *_: (images, classes))


@pytest.mark.usefixtures("strokes")
def test_on_digits_ink_follows_thickness_and_nothing_else_does():
    data = MorphoDigits(digits=30, copies=1, cache=False, jobs=1)
    seen = data.test[torch.arange(5)]
    b = torch.full((5,), 3.0)
    found = unit_mediation(data.oracle, seen, "thickness", "image", "intensity", b)
    brighter = data.oracle.predict(data.oracle.abduct(seen), {"thickness": b})["intensity"]
    factor = (brighter / seen.values["intensity"]).reshape(-1, 1, 1, 1)
    assert torch.allclose(found["indirect"], found["factual"] * factor, atol=1e-5)
    assert torch.allclose(found["treated"], found["direct"] * factor, atol=1e-5)
    direct = data.measure(found["direct"])
    assert torch.allclose(direct["intensity"], seen.values["intensity"], atol=0.5)
    assert torch.allclose(direct["thickness"], b, atol=0.1)
    # light and shape interact: the identity holds and the sum does not
    assert torch.allclose(found["TE"], found["NDE"] - found["NIE reversed"], atol=1e-6)
    assert (found["TE"] - found["NDE"] - found["NIE"]).abs().max() > 0.1


def test_a_joint_model_answers_as_the_scm_does():
    flow, model = linear_pair()
    seen = model.sample(20, seed=0)
    for a in (None, 1.0):
        x, y = (
            unit_mediation(each, seen, "t", "y", ["m"], 2.5, baseline=a) for each in (flow, model)
        )
        step = 2.5 - (seen["t"] if a is None else torch.ones(()))
        for name in (*WORLDS, *EFFECTS):
            assert torch.allclose(x[name], y[name], atol=1e-4), name
        assert torch.allclose(x["NDE"], 8 * -0.4 * step, atol=1e-4)
        assert torch.allclose(x["NIE"], 8 * 0.63 * step, atol=1e-4)


# The mediator within a mechanism ------------------------------------------------------------------


class TwoStage(Mechanism):
    """z = 2 t + u_z, x = z (1, 1, 0) + t (0, 1, 1) + residual: the latent follows the parents."""

    def prior(self):
        return {"z": self.standard_normal(), "residual": self.standard_normal(3)}

    def latents(self, u, parents):
        return [2 * parents["t"] + u["z"]]

    def decode(self, z, parents, residual):
        return (
            z[0][:, None] * torch.tensor([1.0, 1, 0])
            + parents["t"][:, None] * torch.tensor([0.0, 1, 1])
            + residual
        )

    def forward(self, u, parents):
        return self.decode(self.latents(u, parents), parents, u["residual"])

    def abduct(self, x, parents):
        z = x[:, 0]
        residual = x - self.decode([z], parents, 0.0)
        return {"z": z - 2 * parents["t"], "residual": residual}

    def loss(self, x, parents):
        return {}


def staged():
    s, t, x = Variable("s"), Variable("t", loc=1.0, scale=2.0), Variable("x", (3,))
    mechanisms = {
        "s": LinearGaussian.of(s),
        "t": LinearGaussian.of(t, [s], weights=[1.0], scale=0.5),
        "x": TwoStage(x, [t]),
    }
    return SCM(Graph.parse("s -> t -> x"), mechanisms)


@pytest.mark.parametrize("baseline", [None, 0.5])
def test_latents_of_the_outcomes_own_mechanism_mediate(baseline):
    model = staged()
    seen, b = model.sample(7, seed=0), torch.linspace(-1, 3, 7)
    found = unit_mediation(
        model, seen, "t", "x", "x.latents", b, baseline=baseline, batch_size=3, draws=2
    )
    step = ((b - (seen["t"] if baseline is None else baseline)) / 2)[:, None]
    assert torch.allclose(found["NDE"], step * torch.tensor([0.0, 1, 1]), atol=1e-5)
    assert torch.allclose(found["NIE"], step * torch.tensor([2.0, 2, 0]), atol=1e-5)
    assert torch.allclose(found["TE"], step * torch.tensor([2.0, 3, 1]), atol=1e-5)
    if baseline is None:
        assert torch.allclose(found["factual"], seen["x"], atol=1e-6)


def test_latents_and_nodes_mediate_together():
    """With t held too, nothing of s's effect is direct; through latents alone, t's own part is."""
    model = staged()
    seen = model.sample(5, seed=0)
    both = unit_mediation(model, seen, "s", "x", ["x.latents", "t"], 2.0)
    assert both["NDE"].abs().max() < 1e-5
    assert torch.allclose(both["NIE"], both["TE"], atol=1e-5)
    found = unit_mediation(model, seen, "s", "x", ["x.latents"], 2.0)
    step = (2.0 - seen["s"])[:, None]  # of t, standardised
    assert torch.allclose(found["NDE"], step * torch.tensor([0.0, 1, 1]), atol=1e-5)
    assert torch.allclose(found["NIE"], step * torch.tensor([2.0, 2, 0]), atol=1e-5)


def test_a_node_may_have_the_name_of_another_ones_latents():
    t, m, y = Variable("t"), Variable("y.latents"), Variable("y")
    mechanisms = {
        "t": LinearGaussian.of(t),
        "y.latents": LinearGaussian.of(m, [t], weights=[2.0]),
        "y": LinearGaussian.of(y, [m], weights=[3.0]),
    }
    model = SCM(Graph.from_edges([("t", "y.latents"), ("y.latents", "y")]), mechanisms)
    seen = model.sample(3, seed=0)
    found = unit_mediation(model, seen, "t", "y", "y.latents", 1.0)
    assert torch.allclose(found["NIE"], 6 * (1 - seen["t"]), atol=1e-5)
    assert found["NDE"].abs().max() < 1e-5


# How it is asked ----------------------------------------------------------------------------------


def test_worlds_share_one_abduction_whatever_the_batch():
    class Counting:
        def __init__(self, model):
            self.model, self.graph, self.variables = model, model.graph, model.variables
            self.noise, self.predict, self.rows = model.noise, model.predict, []

        def abduct(self, evidence):
            self.rows.append(len(evidence))
            return self.model.abduct(evidence)

    model = Counting(interacting())
    seen = model.model.sample(10, seed=0)
    small = unit_mediation(model, seen, "t", "y", "m", 1.0, batch_size=4)
    assert model.rows == [4, 4, 2]
    large = unit_mediation(model, seen, "t", "y", "m", 1.0)
    assert all(torch.allclose(small[n], large[n], atol=1e-6) for n in large)


def test_draws_are_of_the_noise_and_the_identity_holds_for_each():
    """The unit's m was not seen: it differs from draw to draw, alike in all worlds."""
    model = interacting()
    seen = Batch({"t": torch.zeros(3)})
    found = unit_mediation(model, seen, "t", "y", "m", 1.0, draws=300, seed=0)
    assert found.draws["NDE"].shape == (300, 3)
    assert torch.allclose(
        found.draws["TE"], found.draws["NDE"] - found.draws["NIE reversed"], atol=1e-5
    )
    assert found.draws["NDE"].std(0).min() > 0.5  # it is m's own noise
    assert torch.allclose(found.draws["NIE"], torch.ones(()), atol=1e-5)
    assert torch.allclose(found["NDE"], found.draws["NDE"].mean(0), atol=1e-5)
    low, high = found.interval("NDE", 0.9)
    assert bool(((low < -1) & (high > 1)).all())


def test_same_seed_same_answer_and_the_users_generator_is_left_alone():
    model, seen = interacting(), Batch({"t": torch.zeros(3)})
    state = torch.get_rng_state()
    draw = Draw(torch.distributions.Normal(0.0, 1.0))
    first, second = (unit_mediation(model, seen, "t", "y", "m", draw, seed=3) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    other = unit_mediation(model, seen, "t", "y", "m", draw, seed=4)
    assert not torch.equal(first["TE"], other["TE"])
    assert torch.equal(state, torch.get_rng_state())
    # a stochastic treatment has one draw in both worlds of b: M(b) - M(a) is its value
    moved = first["treated"] - first["direct"] - first["NIE"]
    assert torch.allclose(moved, first["NIE"].square(), atol=1e-5)


def test_a_shift_is_a_treatment_and_a_model_under_an_intervention_a_model():
    model = scm()
    seen = model.sample(6, seed=0)
    shifted = unit_mediation(model, seen, "t", "y", "m", Shift(0.5))
    b = TRUTH.coefficients[I["y"], I["t"]]
    assert np.allclose(shifted["NDE"], 0.5 * b, atol=1e-5)
    done = intervene(model, {"z": 3.0})
    answer = unit_mediation(done, done.sample(6, seed=0), "t", "y", "m", Shift(0.5))
    assert torch.allclose(answer["NDE"], shifted["NDE"], atol=1e-5)
    with pytest.raises(ValueError, match=r"\['m'\] lie on no path"):
        unit_mediation(intervene(model, {"m": 3.0}), seen, "t", "y", "m", 1.0)


def test_effects_on_categories_are_differences_of_their_codes():
    t, m = Variable("t"), Variable("m")
    b = Variable("b", kind="categorical", categories=("no", "yes"))
    with seeded(0):
        own = Categorical(b, [t, m])
    model = SCM(
        Graph.parse("t -> m -> b; t -> b"),
        {"t": LinearGaussian.of(t), "m": LinearGaussian.of(m, [t], weights=[1.0]), "b": own},
    )
    seen = model.sample(50, seed=0)
    found = unit_mediation(model, seen, "t", "b", "m", 5.0, draws=20, seed=0)
    assert found["treated"].dtype == torch.long
    treated = counterfactual(model, seen, {"t": 5.0}, draws=20, seed=0).draws["b"]
    assert torch.equal(found.draws["treated"], treated)
    change = (treated - seen["b"]).float()
    assert torch.equal(found.draws["TE"], change)
    assert 0 < float(change.abs().mean()) < 1


def test_a_mediator_is_set_without_a_warning_and_a_far_treatment_warns_once():
    t, m, y = Variable("t", low=-3.0, high=3.0), Variable("m", low=-0.1, high=0.1), Variable("y")
    mechanisms = {
        "t": LinearGaussian.of(t),
        "m": LinearGaussian.of(m, [t], weights=[1.0]),
        "y": LinearGaussian.of(y, [t, m], weights=[1.0, 1.0]),
    }
    model = SCM(Graph.parse("t -> m -> y; t -> y"), mechanisms)
    seen = model.sample(5, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit_mediation(model, seen, "t", "y", "m", 2.0)
    with pytest.warns(OutsideSupport) as caught:
        unit_mediation(model, seen, "t", "y", "m", 9.0)
    assert len(caught) == 1


def test_a_latent_confounder_is_warned_of():
    names = {n: Variable(n) for n in "utmy"}
    graph = Graph.parse("u [latent]; u -> m; u -> y; t -> m; t -> y; m -> y")
    mechanisms = {
        n: LinearGaussian.of(
            v, [names[p] for p in graph.parents(n)], weights=[1.0] * len(graph.parents(n))
        )
        for n, v in names.items()
    }
    model = SCM(graph, mechanisms)
    seen = model.sample(5, seed=0)
    with pytest.warns(NotIdentified, match=r"do\(t, m\) is not identified"):
        found = unit_mediation(model, seen, "t", "y", "m", 1.0, baseline=0.0)
    assert found.identification is not None
    assert not found.identification


# Pictures -----------------------------------------------------------------------------------------


def test_the_picture_shows_each_effect_where_it_belongs():
    def answer(*values):
        return {
            w: np.full((2, 1, 4, 4), v, np.float32) for w, v in zip(WORLDS, values, strict=True)
        }

    found, truth = answer(0.5, 0.9, 0.7, 0.6), answer(0.5, 0.8, 0.6, 0.4)
    axes = plot.unit_mediation(found)
    means = [float(np.mean(ax.images[0].get_array())) for ax in axes[1]]
    assert np.allclose(means, [0.5, 0.9, 0.4, 0.7, 0.2, 0.6, 0.1])
    axes = plot.unit_mediation(found, truth)
    means = [float(np.mean(ax.images[0].get_array())) for ax in axes[1]]
    effects = [0.4, 0.3, 0.2, 0.1, 0.1, -0.1]
    assert np.allclose(means[2::2], effects)
    groups = [t.get_text() for ax in axes[0] for t in ax.texts if t.get_text()]
    assert [g.replace("\n", " ") for g in groups[-2:]] == [
        "indirect effect", "indirect effect, truth",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"truth has no \['indirect'\]; it has"):
        plot.unit_mediation(found, {w: found[w] for w in WORLDS[:3]})


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind", "said"),
    [
        (("t", "x", "z"), KeyError, r"unit_mediation\(\) names unknown node 'z'"),
        (("tt", "x", "m"), KeyError, "unknown node 'tt'; .* Did you mean 't'"),
        (("t", "xx", "m"), KeyError, "unknown node 'xx'; .* Did you mean 'x'"),
        (("t", "x", []), ValueError, "at least one mediator"),
        (("t", "x", "t"), ValueError, "must be different nodes"),
        (("t", "x", ["m", "x"]), ValueError, "must be different nodes"),
        (("t", "t", "m"), ValueError, "must be different nodes"),
        (("m", "x", "t"), ValueError, r"\['t'\] lie on no path from 'm' to 'x'.* are \[\]"),
        (("x", "t", "m"), ValueError, r"\['m'\] lie on no path from 'x' to 't'"),
        (("t", "m", "x.latents"), ValueError, r"\['x.latents'\] lie on no path from 't' to 'm'"),
        (("t", "x", "x.latents"), ValueError, "'x.latents' asks .* which LinearGaussian lacks"),
        (("t", "x", "y.latents"), KeyError, "unknown node 'y'"),
    ],
)
def test_bad_questions_are_named(question, kind, said):
    model = picture()
    with pytest.raises(kind, match=said):
        unit_mediation(model, model.sample(2, seed=0), *question, 1.0)


@pytest.mark.parametrize(
    ("value", "more", "said"),
    [
        (torch.zeros(3), {}, "gives 't' 3 values for 2 rows of evidence"),
        (1.0, {"baseline": torch.zeros(3)}, "gives 't' 3 values for 2 rows of evidence"),
        (torch.zeros(2, 4), {}, r"gives 't' a value of shape \(2, 4\)"),
        (float("nan"), {}, "not finite"),
        (1.0, {"draws": 0}, "draws and batch_size must be at least 1"),
        (1.0, {"batch_size": 0}, "draws and batch_size must be at least 1"),
    ],
)
def test_bad_values_are_named(value, more, said):
    model = picture()
    with pytest.raises(ValueError, match=said):
        unit_mediation(model, model.sample(2, seed=0), "t", "x", "m", value, **more)


def test_evidence_that_does_not_fit_and_noise_that_is_missing_are_named():
    model = picture()
    seen = model.sample(2, seed=0)
    with pytest.raises(ValueError, match=r"evidence gives 'x' values of shape \(1, 2, 3\)"):
        unit_mediation(model, seen | {"x": torch.zeros(2, 1, 2, 3)}, "t", "x", "m", 1.0)
    data = Pendulum(train=2, valid=2, test=2)
    rows = data.test.only(data.graph.nodes)
    b = data.train.values["angle"]
    bare = Batch(rows.values)
    with pytest.raises(KeyError, match="the oracle reads true noises"):
        unit_mediation(data.oracle, bare, "angle", "image", "length", b)
    flow, _ = linear_pair()
    seen = flow.predict(flow.noise(2))
    with pytest.raises(ValueError, match=r"'y.latents' asks .* which JointFlow lacks"):
        unit_mediation(flow, seen, "t", "y", "y.latents", 2.0)


def test_unordered_categories_have_no_difference():
    t, m = Variable("t"), Variable("m")
    b = Variable("b", kind="categorical", categories=("x", "y", "z"))
    model = SCM(
        Graph.parse("t -> m -> b"),
        {"t": LinearGaussian(t), "m": LinearGaussian(m, [t]), "b": Categorical(b, [m])},
    )
    with pytest.raises(ValueError, match="'b' has 3 unordered categories"):
        unit_mediation(model, model.sample(2, seed=0), "t", "b", "m", 1.0)
