import math

import numpy as np
import pytest
import torch
from linear_gaussian import GRAPH, TRUTH, UNITS, Exact, mechanism, rows, scm, variables
from scipy import stats

from subjunctive.graph import Graph
from subjunctive.mechanisms import Categorical, LinearGaussian, Ordinal
from subjunctive.mechanisms.linear import stirred
from subjunctive.query import counterfactual
from subjunctive.scm import SCM, Model
from subjunctive.variable import Batch, Variable


@pytest.fixture
def model():
    return scm()


def evidence(n=64, seed=0):
    return scm().sample(n, seed=seed)


def without(data, name, missing):
    seen = torch.ones(len(data[name]), dtype=torch.bool)
    seen[missing] = False
    return Batch(dict(data), {name: seen})


# Sampling, abduction, prediction -------------------------------------------------------------


def test_samples_have_the_moments_of_the_closed_form(model):
    n = 40000
    x = rows(model.sample(n, seed=1))
    error = TRUTH.covariance.diagonal() ** 0.5 / n**0.5
    assert (abs(x.mean(0) - TRUTH.mean) < 5 * error).all()
    assert np.allclose(np.cov(x.T) / TRUTH.covariance, 1, atol=0.1)


def test_abducted_noise_is_the_closed_form(model):
    data = evidence()
    noise = model.abduct(data)
    assert abs(rows(noise) - TRUTH.noise(rows(data))).max() < 1e-4
    again = model.predict(noise)
    for name in GRAPH.nodes:
        assert torch.allclose(again[name], data[name], atol=1e-5 * UNITS[name][1], rtol=1e-6)


@pytest.mark.parametrize("do", [{"t": 0.5}, {"z": 9.0}, {"m": 80.0, "z": 2.0}, {"w": 1.0}])
def test_counterfactuals_are_the_closed_form(do):
    model = scm().double()
    data = {k: v.double() for k, v in evidence().items()}
    found = rows(counterfactual(model, data, do))
    expected = TRUTH.do(**do).solve(TRUTH.noise(rows(data)))
    scales = np.array([UNITS[n][1] for n in GRAPH.nodes])
    assert (abs(found - expected) / scales).max() < 1e-6
    single = rows(counterfactual(scm(), evidence(), do))
    assert (abs(single - expected) / scales).max() < 1e-5


def test_an_scm_is_a_model(model):
    assert isinstance(model, Model)
    assert list(model.mechanisms) == list(GRAPH.nodes)


# Missing values ----------------------------------------------------------------------------------


def test_an_unseen_leaf_keeps_its_prior_and_the_rest_is_explained(model):
    data = evidence(4000)
    missing = torch.arange(4000) % 2 == 0
    torch.manual_seed(3)
    with torch.no_grad():
        noise = model.abduct(without(data, "w", missing))
    exact = TRUTH.noise(rows(data))
    w = GRAPH.nodes.index("w")
    assert abs(noise["w"][~missing].numpy() - exact[~missing.numpy(), w]).max() < 1e-4
    assert stats.kstest(noise["w"][missing].numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise["w"][missing].numpy(), exact[missing.numpy(), w])[0, 1]) < 0.1
    others = [i for i in range(len(GRAPH.nodes)) if i != w]
    assert abs(rows(noise)[:, others] - exact[:, others]).max() < 1e-4


def test_an_unseen_leaf_with_an_expensive_mechanism_is_not_computed_for_its_noise():
    class Counted(LinearGaussian):
        calls = 0

        def forward(self, u, parents):
            Counted.calls += 1
            return super().forward(u, parents)

    t, y = Variable("t"), Variable("y")
    model = SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t), "y": Counted(y, [t])})
    model.abduct({"t": torch.randn(3)})
    assert Counted.calls == 0


def test_what_was_seen_below_cannot_be_ignored(model):
    data = evidence(6)
    with pytest.raises(ValueError, match=r"2 rows miss 'z' but saw a node below.*encoder"):
        model.abduct(without(data, "z", [1, 4]))
    with pytest.raises(ValueError, match=r"6 rows miss 'm'"):
        model.abduct({k: v for k, v in data.items() if k != "m"})


def test_the_exact_encoder_gives_the_exact_posterior_and_constant_weights():
    model = scm(Exact(["z", "t"], ["m", "y"]))
    data = evidence(1)
    given = {k: data[k].expand(20000) for k in ("m", "y")}
    with torch.no_grad():
        torch.manual_seed(0)
        completion = model.complete(given)
    weight = completion.log_weight
    assert float(weight.max() - weight.min()) < 1e-3
    marginal = stats.multivariate_normal(
        TRUTH.mean[[2, 3]], TRUTH.covariance[np.ix_([2, 3], [2, 3])]
    ).logpdf([float(data["m"][0]), float(data["y"][0])])
    standard = marginal + math.log(UNITS["m"][1] * UNITS["y"][1])
    assert float(weight.mean()) == pytest.approx(standard, abs=1e-3)
    rest, mean, covariance = TRUTH.condition(["m", "y"], rows(given, ["m", "y"])[:1])
    for name in ("z", "t"):
        i = rest.index(GRAPH.nodes.index(name))
        loc, scale = UNITS[name]
        drawn = completion.values[name].numpy() * scale + loc
        exact = stats.norm(mean[0, i], covariance[i, i] ** 0.5)
        assert stats.kstest(drawn, exact.cdf).pvalue > 1e-3
    assert completion.inferred["z"].all()
    assert "w" in completion.values


def test_the_encoder_serves_only_the_rows_that_need_it():
    model = scm(Exact(["z"], ["t", "m", "y"]))
    data = evidence(5)
    batch = without(data, "z", [0, 3])
    completion = model.complete(batch)
    standard = (data["z"] - UNITS["z"][0]) / UNITS["z"][1]
    assert torch.equal(completion.values["z"][[1, 2, 4]], standard[[1, 2, 4]])
    assert completion.inferred["z"].tolist() == [True, False, False, True, False]
    assert completion.log_weight[[1, 2, 4]].tolist() == [0, 0, 0]
    batch = Batch(dict(data), {"z": batch.seen["z"], "t": batch.seen["z"]})
    with pytest.raises(ValueError, match=r"2 rows miss 'z'.*the one here needs \('t', 'm', 'y'\)"):
        model.complete(batch)


# Log-likelihood --------------------------------------------------------------------------------


def test_log_prob_is_the_multivariate_normal_in_the_users_units(model):
    data = evidence()
    exact = stats.multivariate_normal(TRUTH.mean, TRUTH.covariance).logpdf(rows(data))
    assert np.allclose(model.log_prob(data).detach().numpy(), exact, atol=1e-3)


@pytest.mark.parametrize("seen", [["z"], ["z", "t"], ["z", "t", "m", "y"]])
def test_log_prob_of_some_nodes_is_their_marginal(model, seen):
    data = evidence()
    index = [GRAPH.nodes.index(n) for n in seen]
    exact = stats.multivariate_normal(
        TRUTH.mean[index], TRUTH.covariance[np.ix_(index, index)]
    ).logpdf(rows(data)[:, index])
    found = model.log_prob({n: data[n] for n in seen}).detach().numpy()
    assert np.allclose(found, exact, atol=1e-3)


def test_log_prob_with_an_unseen_cause_needs_one_exact_draw_or_many_others():
    data = evidence(16)
    seen = ["t", "m", "y", "w"]
    index = [GRAPH.nodes.index(n) for n in seen]
    exact = stats.multivariate_normal(
        TRUTH.mean[index], TRUTH.covariance[np.ix_(index, index)]
    ).logpdf(rows(data)[:, index])
    given = {n: data[n] for n in seen}
    inputs = ["t", "m", "y", "w"]
    found = scm(Exact(["z"], inputs)).log_prob(given).detach().numpy()
    assert np.allclose(found, exact, atol=1e-3)
    wrong = scm(Exact(["z"], inputs, shift=0.3, inflate=1.3))
    torch.manual_seed(0)
    once, often = (wrong.log_prob(given, draws=k).detach().numpy() for k in (1, 200))
    assert abs(often - exact).max() < 0.15 < abs(once - exact).max()
    rows_mixed = without(data, "z", [0, 1])
    mixed = scm(Exact(["z"], inputs)).log_prob(rows_mixed).detach().numpy()
    full = scm().log_prob(data).detach().numpy()
    assert np.allclose(mixed, np.concatenate([exact[:2], full[2:]]), atol=1e-3)


def test_log_prob_sums_to_one_over_categories():
    a = Variable("a", kind="categorical", categories=("p", "q"))
    b = Variable("b", kind="ordinal", categories=("0", "1", "2"))
    model = SCM(
        Graph.parse("a -> b"), {"a": stirred(Categorical(a)), "b": stirred(Ordinal(b, [a]))}
    )
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    total = model.log_prob({"a": grid[:, 0], "b": grid[:, 1]}).exp().sum()
    assert float(total.detach()) == pytest.approx(1.0, abs=1e-5)


# Loss -----------------------------------------------------------------------------------------


def test_seen_rows_pay_the_likelihood(model):
    data = evidence()
    total = torch.stack(list(model.loss(data).values())).sum(0)
    jacobian = sum(math.log(scale) for _, scale in UNITS.values())
    assert torch.allclose(-total - jacobian, model.log_prob(data), atol=1e-3)


def test_unseen_rows_pay_the_kl_never_both():
    encoder = Exact(["z"], ["t", "m", "y", "w"])
    data = evidence(8)
    batch = without(data, "z", [2, 5])
    torch.manual_seed(0)
    terms = {k: v.detach() for k, v in scm(encoder).loss(batch).items()}
    unseen = ~batch.mask("z")
    assert (terms["z.nll"][unseen] == 0).all()
    assert (terms["z.kl"][~unseen] == 0).all()
    assert (terms["z.label"][unseen] == 0).all()
    assert (terms["z.nll"][~unseen] != 0).all()
    bound = sum(v for k, v in terms.items() if k != "z.label")
    index = [1, 2, 3, 4]
    exact = stats.multivariate_normal(
        TRUTH.mean[index], TRUTH.covariance[np.ix_(index, index)]
    ).logpdf(rows(data)[:, index])
    jacobian = sum(math.log(UNITS[GRAPH.nodes[i]][1]) for i in index)
    found = -bound[unseen].numpy() - jacobian  # the bound is tight: the encoder is exact
    assert np.allclose(found, exact[unseen.numpy()], atol=1e-3)


def test_the_label_term_is_the_encoders_likelihood():
    encoder = Exact(["z"], ["t", "m", "y", "w"])
    data = evidence(8)
    label = scm(encoder).loss(data)["z.label"].detach().numpy()
    rest, mean, covariance = TRUTH.condition(["t", "m", "y", "w"], rows(data)[:, 1:])
    _, scale = UNITS["z"]
    exact = stats.norm(mean[:, 0], covariance[0, 0] ** 0.5).logpdf(data["z"].numpy())
    assert rest == [0]
    assert np.allclose(label, -exact - math.log(scale), atol=1e-3)


class CoinEncoder(Exact):
    """q(a | x) of a coin, one logit for all rows."""

    def __init__(self):
        super().__init__([], [])
        self.nodes, self.inputs = ("a",), ("x",)
        self.logit = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, values, seen):
        n = len(values["x"])
        logits = torch.stack([torch.zeros(n), self.logit.expand(n)], 1)
        return lambda name, so_far: torch.distributions.Categorical(logits=logits)


def test_the_score_of_drawn_categories_is_the_gradient_of_the_bound():
    a, x = Variable("a", kind="categorical", categories=("0", "1")), Variable("x")
    encoder = CoinEncoder()
    model = SCM(
        Graph.parse("a -> x"),
        {"a": Categorical(a), "x": LinearGaussian.of(x, [a], weights=[-1.0, 1.0])},
        encoder,
    )
    value = torch.full((40000,), 0.7)
    torch.manual_seed(0)
    terms = model.loss({"x": value})
    assert (terms["a.score"] == 0).all()
    total = torch.stack(list(terms.values())).sum(0).mean()
    found = float(torch.autograd.grad(total, encoder.logit)[0])
    logit = encoder.logit.detach().clone().requires_grad_()
    q = torch.stack([torch.zeros(()), logit]).log_softmax(0)
    log_x = torch.stack([stats_log(0.7 - m) for m in (-1.0, 1.0)])
    exact = (q.exp() * (q - math.log(0.5) - log_x)).sum()
    expected = float(torch.autograd.grad(exact, logit)[0])
    assert found == pytest.approx(expected, abs=0.01)


def stats_log(residual):
    return torch.tensor(-0.5 * residual**2 - 0.5 * math.log(2 * math.pi))


def test_one_drawn_category_still_teaches_the_encoder():
    a, x = Variable("a", kind="categorical", categories=("0", "1")), Variable("x")
    encoder = CoinEncoder()
    mechanisms = {"a": Categorical(a), "x": LinearGaussian.of(x, [a], weights=[-1.0, 1.0])}
    model = SCM(Graph.parse("a -> x"), mechanisms, encoder)
    score = model.loss({"x": torch.tensor([0.7])})["a.score"]
    assert float(torch.autograd.grad(score.sum(), encoder.logit)[0]) != 0


# Conditions, ancestors -----------------------------------------------------------------------


def test_conditioning_by_weights_is_the_conditional_normal(model):
    noise, log_weight = model.condition({"y": 4.0, "t": -0.5}, 40000)
    values = rows(model.predict(noise))
    weight = log_weight.detach().double().softmax(0).numpy()
    assert abs(values[:, 3] - 4.0).max() < 1e-3
    rest, mean, covariance = TRUTH.condition(["t", "y"], np.array([[-0.5, 4.0]]))
    for k, i in enumerate(rest):
        tolerance = 8 * (covariance[k, k] * (weight**2).sum()) ** 0.5
        assert abs(weight @ values[:, i] - mean[0, k]) < tolerance
    with pytest.raises(ValueError, match="one value a node, got 2 rows"):
        model.condition({"y": torch.zeros(2)}, 5)


def test_the_ancestral_model_is_the_marginal_and_shares_its_mechanisms(model):
    small = model.ancestral(["m"])
    assert small.graph.nodes == ("z", "t", "m")
    assert small.mechanisms["m"] is model.mechanisms["m"]
    noise = model.noise(8)
    large = model.predict(noise, {"z": 3.0})
    assert torch.equal(small.predict(noise, {"z": 3.0})["m"], large["m"])


# Bad input ------------------------------------------------------------------------------------


def test_graph_and_mechanisms_must_fit():
    kinds = variables()
    given = {n: mechanism(n, kinds) for n in GRAPH.nodes}
    with pytest.raises(ValueError, match=r"no mechanism for \['w'\]"):
        SCM(GRAPH, {n: m for n, m in given.items() if n != "w"})
    with pytest.raises(ValueError, match=r"no node for \['q'\]"):
        SCM(GRAPH, {**given, "q": given["w"]})
    with pytest.raises(ValueError, match=r"'w' is built for 'y'"):
        SCM(GRAPH, {**given, "w": given["y"]})
    with pytest.raises(ValueError, match=r"'w' has parents \[\], the graph says \['y'\]"):
        SCM(GRAPH, {**given, "w": LinearGaussian(kinds["w"])})
    with pytest.raises(ValueError, match=r"another 'y' than the graph's own"):
        SCM(GRAPH, {**given, "w": LinearGaussian(kinds["w"], [Variable("y")])})
    with pytest.raises(ValueError, match="needs a DAG"):
        SCM(Graph.parse("z -> t; z <-> t"), {"z": given["z"], "t": given["t"]})
    with pytest.raises(KeyError, match="the encoder names unknown node 'zz'"):
        SCM(GRAPH, given, Exact([], ["zz"]))


def test_a_cycle_is_refused_by_name():
    with pytest.raises(ValueError, match="a -> b -> c -> a"):
        Graph.parse("a -> b -> c -> a")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"zz": torch.zeros(3)}, KeyError, "unknown node 'zz'.*Did you mean 'z'"),
        ({"z": torch.zeros(3, 1)}, ValueError, r"'z' values of shape \(1,\); it has \(\)"),
        ({"z": torch.tensor([0.0, math.nan, 1])}, ValueError, "'z' has NaN or infinite values"),
        ({"z": torch.tensor([0.0, math.inf, 1])}, ValueError, "'z' has NaN or infinite values"),
        ({"z": torch.zeros(3), "t": torch.zeros(2)}, ValueError, "rows do not line up"),
        ({"z": ["a", "b", "c"]}, ValueError, "'z' is continuous and needs numbers"),
    ],
)
def test_bad_evidence_is_named(model, values, error, message):
    with pytest.raises(error, match=message):
        model.abduct(values)
    if all(isinstance(v, torch.Tensor) for v in values.values()):
        with pytest.raises(error, match=message):
            model.abduct(Batch(values))


def test_nan_in_rows_declared_missing_is_no_error_and_leaks_nowhere(model):
    data = evidence(4)
    data["w"] = torch.tensor([math.nan, 7.0, 7.1, math.inf])
    batch = Batch(data, {"w": torch.tensor([False, True, True, False])})
    model.requires_grad_(True)
    total = torch.stack(list(model.loss(batch).values())).sum()
    total.backward()
    assert math.isfinite(float(total.detach()))
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert torch.isfinite(model.abduct(batch)["w"]).all()


def test_categories_unseen_in_training_are_named():
    arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
    model = SCM(Graph(["arm"]), {"arm": Categorical(arm)})
    with pytest.raises(ValueError, match=r"no category 'drugs'.*Did you mean 'drug'"):
        model.abduct({"arm": ["placebo", "drugs"]})
    with pytest.raises(ValueError, match="coded 0 to 1; got 0 to 2"):
        model.abduct({"arm": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        model.sample(0)


def test_draws_follow_the_seed_and_leave_the_users_generator(model):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a, b, c = (model.sample(5, seed=s)["w"] for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
