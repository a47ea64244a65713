import math
import warnings

import numpy as np
import pytest
import torch
from linear_gaussian import GRAPH, TRUTH, UNITS, Exact, rows, scm
from scipy import stats
from torch.distributions import Normal

from subjunctive.graph import Graph
from subjunctive.intervention import Draw, Policy, Replace, Shift
from subjunctive.mechanisms import Categorical, LinearGaussian, Ordinal
from subjunctive.mechanisms.linear import stirred
from subjunctive.query import Answer, NotIdentified, counterfactual, evaluating, intervene, observe
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable


def partial(n=6, seed=0, hide=()):
    """Rows of the model that miss the named nodes, some of them in the first half alone."""
    data = scm().sample(n, seed=seed)
    seen = {k: torch.arange(n) >= n // 2 for k in hide}
    return Batch(dict(data), seen), data


# Intervening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", [{"t": 0.3}, {"z": 8.0, "y": -2.0}])
def test_the_interventional_distribution_is_the_closed_form(do):
    n = 40000
    done = intervene(scm(), do)
    x = rows(done.sample(n, seed=0))
    truth = TRUTH.do(**do)
    spread = truth.covariance.diagonal() ** 0.5
    assert (abs(x.mean(0) - truth.mean) <= 5 * spread / n**0.5 + 1e-5).all()
    assert np.allclose(np.cov(x.T), truth.covariance, atol=0.1 * spread.max() ** 2)
    assert np.allclose(x.std(0), spread, rtol=0.05, atol=1e-4)
    assert all(done.graph.parents(n) == () for n in do)


def test_evidence_collected_under_an_intervention_is_explained():
    done = intervene(scm(), {"t": 0.3})
    data = done.sample(2000, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        noise = done.abduct(data)
        again = done.predict(noise)
    for name in GRAPH.nodes:
        assert torch.allclose(again[name], data[name], atol=1e-5 * UNITS[name][1], rtol=1e-6)
    assert stats.kstest(noise["t"].numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise["t"], noise["z"])[0, 1]) < 0.1
    with pytest.raises(ValueError, match=r"soft intervention on \['t'\]"):
        intervene(scm(), {"t": Shift(1.0)}).abduct(data)


def test_weights_of_evidence_survive_an_intervention():
    wrong = scm(Exact(["z"], ["t", "m", "y", "w"], shift=0.3))
    data = scm().sample(3, seed=0)
    given = {k: v for k, v in data.items() if k != "z"}
    answer = counterfactual(intervene(wrong, {}), given, {"m": 80.0}, draws=50, seed=0)
    assert float(answer.ess.max()) < 49


# Counterfactuals ------------------------------------------------------------------------------


def test_partial_evidence_gives_the_posterior_row_by_row():
    """Rows with and without the encoder's nodes, and a leaf, in one batch.

    y under do(z) is y plus the total effect of moving z; z given m and y is Gaussian.
    """
    model = scm(Exact(["z", "t"], ["m", "y"]))
    batch, data = partial(4, hide=["z", "t", "w"])
    draws = 20000
    answer = counterfactual(model, batch, {"z": 6.0}, draws=draws, seed=0, batch_size=20000)
    x = rows(data)
    exact = TRUTH.do(z=6.0).solve(TRUTH.noise(x))[:, 3]
    effect = TRUTH.inverse[3, 0]
    _, mean, covariance = TRUTH.condition(["m", "y"], x[:, [2, 3]])
    spread = abs(effect) * covariance[0, 0] ** 0.5
    for row in range(4):
        found = answer.draws["y"][:, row].double().numpy()
        if row >= 2:
            assert abs(found - exact[row]).max() < 1e-4
        else:
            expected = x[row, 3] + effect * (6.0 - mean[row, 0])
            assert stats.kstest(found, stats.norm(expected, spread).cdf).pvalue > 1e-3
            assert float(answer["y"][row]) == pytest.approx(expected, abs=6 * spread / draws**0.5)
    assert float(answer.ess.min()) > 0.999 * draws


def test_an_unseen_cause_spreads_the_counterfactual():
    """z unseen, do(z): y's answer is Gaussian with the posterior spread of z."""
    model = scm(Exact(["z"], ["t", "m", "y", "w"]))
    data = scm().sample(1, seed=3)
    given = {k: v for k, v in data.items() if k != "z"}
    draws = 20000
    answer = counterfactual(model, given, {"z": 6.0, "t": 0.0, "m": 90.0}, draws=draws, seed=0,
                            batch_size=draws)  # fmt: skip
    x = rows(data)
    _, mean, covariance = TRUTH.condition(["t", "m", "y", "w"], x[:, 1:])
    b = TRUTH.coefficients[3]
    expected = x[0, 3] + b[0] * (6.0 - mean[0, 0]) + b[1] * (0 - x[0, 1]) + b[2] * (90 - x[0, 2])
    exact = stats.norm(expected, abs(b[0]) * covariance[0, 0] ** 0.5)
    assert stats.kstest(answer.draws["y"][:, 0].double().numpy(), exact.cdf).pvalue > 1e-3
    for level in (0.5, 0.9):
        low, high = answer.interval("y", level)
        error = 0.05 * exact.std()
        assert float(low[0]) == pytest.approx(exact.ppf((1 - level) / 2), abs=error)
        assert float(high[0]) == pytest.approx(exact.ppf((1 + level) / 2), abs=error)


def test_weights_correct_a_wrong_encoder():
    data = scm().sample(3, seed=3)
    given = {k: v for k, v in data.items() if k != "z"}
    exact = TRUTH.condition(["t", "m", "y", "w"], rows(data)[:, 1:])[1][:, 0]
    draws = 8000
    right = observe(scm(Exact(["z"], ["t", "m", "y", "w"])), given, draws=draws, seed=0)
    shifted = Exact(["z"], ["t", "m", "y", "w"], shift=0.3, inflate=1.5)
    wrong = observe(scm(shifted), given, draws=draws, seed=0, batch_size=9999)
    spread = UNITS["z"][1]
    assert abs(right["z"].numpy() - exact).max() < 0.05 * spread
    plain = wrong.draws["z"].mean(0).numpy()
    assert (abs(plain - exact) > 0.25 * spread).all()
    assert abs(wrong["z"].numpy() - exact).max() < 0.05 * spread
    assert (right.ess > 0.99 * draws).all()
    assert (wrong.ess < 0.9 * draws).all()
    assert torch.allclose(wrong.weights.sum(0), torch.ones(3), atol=1e-4)


def test_the_effective_sample_size_is_of_the_weights():
    log_weight = torch.tensor([[0.0, 0.0], [0.0, 100.0], [0.0, 0.0]])
    answer = Answer(
        {"y": torch.tensor([[1.0, 1], [2, 2], [6, 3]])}, {"y": Variable("y")}, log_weight
    )
    assert torch.allclose(answer.ess, torch.tensor([3.0, 1.0]))
    assert torch.allclose(answer["y"], torch.tensor([3.0, 2.0]))
    low, high = answer.interval("y", 0.8)
    assert (low.tolist(), high.tolist()) == ([1.0, 2.0], [6.0, 2.0])


def test_intervals_cover_as_often_as_they_say():
    """Rows drawn from the model: the truth of an unseen cause lies in 80 % of the intervals."""
    data = scm().sample(1500, seed=5)
    given = {k: v for k, v in data.items() if k != "z"}
    model = scm(Exact(["z"], ["t", "m", "y", "w"]))
    answer = observe(model, given, draws=60, seed=0, batch_size=10**6)
    low, high = answer.interval("z", 0.8)
    inside = float(((low <= data["z"]) & (data["z"] <= high)).float().mean())
    assert inside == pytest.approx(0.8, abs=0.05)


def test_many_interventions_on_one_abduction_are_what_each_is_alone():
    batch, _ = partial(7, hide=["w"])
    scale = LinearGaussian.of(
        scm().variables["m"], [scm().variables["t"]], weights=[1.0], scale=0.2
    )
    dos = [
        {},
        {"t": 0.5},
        {"t": Draw(Normal(0.0, 1.0))},
        {"z": 8.0, "m": Replace(scale, keep_noise=False)},
        {"m": Policy(lambda pa: 10 * pa["t"])},
        {"t": torch.linspace(-1, 1, 7)},
    ]
    together = counterfactual(scm(), batch, dos, draws=3, seed=4, batch_size=5)
    for do, answer in zip(dos, together, strict=True):
        alone = counterfactual(scm(), batch, do, draws=3, seed=4, batch_size=5)
        for name in GRAPH.nodes:
            assert torch.equal(answer.draws[name], alone.draws[name]), (name, do)


def test_the_seed_decides_and_the_users_generator_is_left_alone():
    batch, _ = partial(5, hide=["w"])
    model, do = scm(), {"t": Draw(Normal(0.0, 1.0))}
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, again, other = (counterfactual(model, batch, do, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first["w"], again["w"])
    assert not torch.equal(first["w"], other["w"])
    one, next_one = (counterfactual(model, batch, do) for _ in range(2))
    assert not torch.equal(one["w"], next_one["w"])


def test_answers_leave_the_training_mode_and_every_part_of_it_as_it_was():
    model = scm().train()
    model.mechanisms["t"].eval()
    with evaluating(model):
        assert not model.training
        assert not model.mechanisms["y"].training
    assert model.training
    assert model.mechanisms["y"].training
    assert not model.mechanisms["t"].training


# Answers ----------------------------------------------------------------------------------------


def mixed():
    a = Variable("a", kind="categorical", categories=("p", "q"))
    b = Variable("b", kind="ordinal", categories=("lo", "mid", "hi"))
    y = Variable("y")
    mechanisms = {"a": Categorical(a), "b": stirred(Ordinal(b, [a])), "y": LinearGaussian(y, [b])}
    return SCM(Graph.parse("a -> b -> y"), mechanisms)


def test_the_point_answer_for_a_category_is_the_most_frequent():
    draws = {"a": torch.tensor([[0, 1], [1, 1], [1, 0]]), "y": torch.zeros(3, 2)}
    answer = Answer(draws, mixed().variables)
    assert answer["a"].tolist() == [1, 1]
    weighted = Answer(draws, mixed().variables, torch.tensor([[9.0, 9.0], [0, 0], [0, 0]]))
    assert weighted["a"].tolist() == [0, 1]
    assert (len(answer), list(answer)) == (2, ["a", "y"])


def test_an_answer_becomes_a_frame_with_labels():
    answer = observe(mixed(), {"a": ["q", "p"], "b": ["hi", "lo"]}, seed=0)
    frame = answer.frame()
    assert list(frame.columns) == ["a", "b", "y"]
    assert frame["a"].tolist() == ["q", "p"]
    assert frame["b"].tolist() == ["hi", "lo"]
    assert np.allclose(frame["y"], answer["y"])


def test_observing_fills_in_what_a_row_did_not_see():
    answer = observe(mixed(), {"a": ["q"] * 3}, draws=2000, seed=0, batch_size=6000)
    ordinal = mixed().mechanisms["b"]
    p = ordinal.log_prob(torch.arange(3), {"a": torch.ones(3, dtype=torch.long)}).exp().detach()
    found = torch.bincount(answer.draws["b"][:, 0], minlength=3) / 2000
    assert torch.allclose(found, p, atol=5 * 0.5 / 2000**0.5)
    assert (answer["a"] == 1).all()


def test_double_precision_is_kept():
    data = {k: v.double() for k, v in scm().sample(3, seed=0).items()}
    answer = counterfactual(scm().double(), data, {"t": 0.1}, draws=4)
    assert answer["y"].dtype == torch.float64
    assert answer.interval("y")[0].dtype == torch.float64


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_batches_bound_the_memory_and_change_nothing(size):
    data = scm().sample(5, seed=0)
    whole = counterfactual(scm(), data, {"t": 0.1}, draws=2, batch_size=10)
    parts = counterfactual(scm(), data, {"t": 0.1}, draws=2, batch_size=size)
    for name in GRAPH.nodes:
        assert torch.allclose(whole.draws[name], parts.draws[name], rtol=1e-6, atol=1e-5)


# Latent nodes ---------------------------------------------------------------------------------


def confounded(kind="latent"):
    u, t, m, y = (Variable(n) for n in "utmy")
    graph = Graph.parse(f"u [{kind}]; u -> t; u -> y; t -> m; m -> y")
    mechanisms = {
        "u": LinearGaussian(u),
        "t": LinearGaussian.of(t, [u], weights=[1.0]),
        "m": LinearGaussian.of(m, [t], weights=[1.0]),
        "y": LinearGaussian.of(y, [u, m], weights=[1.0, 1.0]),
    }
    return SCM(graph, mechanisms)


def test_an_answer_says_whether_graph_and_observed_nodes_determine_it():
    model = confounded()
    data = model.sample(3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = counterfactual(model, data, {"t": 1.0})
    assert found.identification
    with pytest.warns(NotIdentified, match="scale and sign"):
        observe(model, data)
    graph = Graph.parse("u [latent]; u -> t; u -> y; t -> y")
    t, u, y = (Variable(n) for n in "tuy")
    bow = SCM(
        graph,
        {"u": LinearGaussian(u), "t": LinearGaussian(t, [u]), "y": LinearGaussian(y, [u, t])},
    )
    with pytest.warns(NotIdentified, match=r"do\(t\) is not identified"):
        answer = counterfactual(bow, bow.sample(2, seed=0), {"t": 1.0})
    assert not answer.identification


# Bad input ------------------------------------------------------------------------------------


def test_bad_questions_are_refused():
    data = scm().sample(3, seed=0)
    with pytest.raises(ValueError, match="draws and batch_size must be at least 1"):
        counterfactual(scm(), data, {}, draws=0)
    with pytest.raises(ValueError, match="at least one intervention"):
        counterfactual(scm(), data, [])
    with pytest.raises(KeyError, match=r"do\(\) names unknown node 'tt'.*Did you mean 't'"):
        counterfactual(scm(), data, {"tt": 1.0})
    with pytest.raises(KeyError, match=r"unknown node 'yy'.*Did you mean 'y'"):
        counterfactual(scm(), {"yy": torch.zeros(2)}, {})
    answer = counterfactual(scm(), data, {})
    with pytest.raises(KeyError, match=r"the answer names unknown node 'yy'"):
        answer["yy"]
    with pytest.raises(ValueError, match="an interval needs draws"):
        answer.interval("y")
    assert math.isfinite(float(answer["y"][0]))
