import networkx as nx
import numpy as np
import pytest
import torch
from scipy import stats

from subjunctive.data.systems import SYSTEMS, Node, System
from subjunctive.data.tabular import Linear, Nonlinear
from subjunctive.graph import Graph
from subjunctive.intervention import Shift

FEW = {"train": 50, "valid": 2, "test": 40}


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear(nodes=6, degree=3.5, seed=3, **FEW)


def column(values: dict[str, torch.Tensor], names: tuple[str, ...]) -> np.ndarray:
    return torch.stack([values[n] for n in names], 1).double().numpy()


def test_total_effects_are_sums_over_paths_of_products_of_weights(linear: Linear) -> None:
    at = {n: i for i, n in enumerate(linear.graph.nodes)}
    drawn = nx.DiGraph()
    drawn.add_nodes_from(at)
    for a, _, b in linear.graph.edges:
        drawn.add_edge(a, b, weight=float(linear.weights[at[a], at[b]]))
    longest = 0
    for a in at:
        for b in set(at) - {a}:
            paths = list(nx.all_simple_edge_paths(drawn, a, b))
            total = sum(np.prod([drawn.edges[e]["weight"] for e in path]) for path in paths)
            assert linear.ate(a, b) == pytest.approx(total, abs=1e-12)
            assert linear.ate(a, b, treated=5, control=3) == pytest.approx(2 * total, abs=1e-12)
            longest = max([longest, *map(len, paths)])
    assert longest >= 3


@pytest.mark.filterwarnings("ignore::subjunctive.intervention.OutsideSupport")
def test_effects_agree_with_the_oracle_worlds(linear: Linear) -> None:
    noise = linear.oracle.noise(7)
    for a in linear.graph.nodes:
        no, yes = (linear.oracle.predict(noise, {a: v}) for v in (0.0, 1.0))
        for b in set(linear.graph.nodes) - {a}:
            torch.testing.assert_close(
                yes[b] - no[b], torch.full((7,), linear.ate(a, b)), atol=1e-4, rtol=1e-4
            )
            others = {n: v for n, v in no.items() if n not in (a, b)}
            nested = linear.oracle.predict(noise, {a: 1.0} | others)[b]  # mediators as untreated
            torch.testing.assert_close(
                nested - no[b], torch.full((7,), linear.direct_effect(a, b)), atol=1e-4, rtol=1e-4
            )
            back = linear.oracle.predict(noise, {a: 0.0} | {n: yes[n] for n in others})[b]
            torch.testing.assert_close(
                back - no[b], torch.full((7,), linear.indirect_effect(a, b)), atol=1e-4, rtol=1e-4
            )


def test_moments_agree_with_numpy_and_with_draws(linear: Linear) -> None:
    names, w = linear.graph.nodes, linear.weights.numpy()
    inverse = np.linalg.inv(np.eye(6) - w.T)  # the textbook's columns: x = W' x + b + e
    covariance = inverse @ np.diag(linear.scale.numpy() ** 2) @ inverse.T
    np.testing.assert_allclose(linear.covariance(), covariance, atol=1e-10)
    mean = np.array(list(linear.mean().values()))
    np.testing.assert_allclose(mean, inverse @ linear.bias.numpy(), atol=1e-10)
    middle = names[3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = linear.oracle.noise(40_000)
    for do in ({}, {middle: 0.5}):
        rows = column(linear.oracle.predict(noise, do), names)
        spread = rows.std(0) + 1e-9
        expected = np.array(list(linear.mean(do).values()))
        assert (np.abs(rows.mean(0) - expected) < 4.5 * spread / 200 + 1e-6).all()
        gap = np.abs(np.cov(rows.T) - linear.covariance(do).numpy())
        assert (gap < 0.05 * np.outer(spread, spread) + 1e-9).all()


def test_densities_are_those_of_scipy_and_of_the_chain_rule(linear: Linear) -> None:
    names, values = linear.graph.nodes, linear.test.values
    mean, covariance = np.array(list(linear.mean().values())), linear.covariance().numpy()
    joint = stats.multivariate_normal(mean, covariance)
    np.testing.assert_allclose(linear.log_prob(values), joint.logpdf(column(values, names)))
    noise = torch.stack([linear.test.context[f"u.{n}"] for n in names], 1).double().numpy()
    chain = (stats.norm.logpdf(noise) - np.log(linear.scale.numpy())).sum(1)
    np.testing.assert_allclose(linear.log_prob(values), chain, atol=1e-4)
    two = (names[4], names[1])  # others integrated out, in the order given
    marginal = stats.multivariate_normal(mean[[4, 1]], covariance[[4, 1]][:, [4, 1]])
    found = linear.log_prob({n: values[n] for n in two})
    np.testing.assert_allclose(found, marginal.logpdf(column(values, two)))


@pytest.mark.filterwarnings("ignore::subjunctive.intervention.OutsideSupport")
def test_counterfactuals_of_whole_rows_are_those_of_the_oracle(linear: Linear) -> None:
    names, noise = linear.graph.order, linear.oracle.abduct(linear.test)
    per_row = linear.test.values[names[2]].flip(0)
    for do in ({}, {names[0]: 1.0}, {names[1]: -0.5, names[2]: per_row}):
        truth, found = (
            linear.oracle.predict(noise, do),
            linear.counterfactual(linear.test.values, do),
        )
        for name in names:
            torch.testing.assert_close(found[name], truth[name], atol=2e-5, rtol=1e-5)
    nothing = linear.counterfactual_covariance(names, [names[0]])
    assert float(nothing.abs().max()) < 1e-9


def test_counterfactuals_of_part_of_a_row_are_the_regression_on_what_was_seen(
    linear: Linear,
) -> None:
    order = linear.graph.order
    seen, do = (order[1], order[4]), {order[2]: 0.7}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = linear.oracle.noise(60_000)
    factual, other = linear.oracle.predict(noise), linear.oracle.predict(noise, do)
    rows = np.column_stack([np.ones(60_000), column(factual, seen)])
    target = column(other, linear.graph.nodes)
    weights, *_ = np.linalg.lstsq(rows, target, rcond=None)
    ask = {seen[0]: torch.tensor([0.0, 1.0, 0.0]), seen[1]: torch.tensor([0.0, 0.0, 1.0])}
    found = column(linear.counterfactual(ask, do), linear.graph.nodes)
    at = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(found, at @ weights, atol=0.05)
    residual = np.cov((target - rows @ weights).T)
    np.testing.assert_allclose(linear.counterfactual_covariance(seen, do), residual, atol=0.1)
    assert residual.max() > 0.2


def test_random_graphs_are_dags_in_any_order_with_the_asked_degree() -> None:
    tiny = {"train": 2, "valid": 2, "test": 2}
    graphs = [Linear(nodes=12, degree=3.0, seed=s, **tiny) for s in range(20)]
    assert all(data.graph.is_dag for data in graphs)
    degree = np.mean([2 * len(data.graph.edges) / 12 for data in graphs])
    assert degree == pytest.approx(3.0, abs=0.4)
    assert any(data.graph.order != data.graph.nodes for data in graphs)
    for data in graphs:
        edges = torch.from_numpy(data.graph.adjacency.copy())
        sizes = data.weights[edges].abs()
        assert bool((data.weights[~edges] == 0).all())
        assert bool(((sizes >= 0.5) & (sizes <= 1.5)).all())


def test_given_parameters_are_kept_and_name_the_graph() -> None:
    data = Linear(weights=np.array([[0.0, 0.0], [2.0, 0.0]]), bias=[1, 2], scale=[3, 4], **FEW)
    assert data.graph == Graph.from_adjacency([[0, 0], [1, 0]])
    row = {"x0": torch.tensor([1.0]), "x1": torch.tensor([0.5])}
    assert data.oracle.predict(row)["x1"].tolist() == [4.0]  # 2 + 4 * 0.5
    assert data.oracle.predict(row)["x0"].tolist() == [12.0]  # 1 + 2 * 4 + 3 * 1
    for name, value in data.train.values.items():
        assert data.variables[name].loc == pytest.approx(float(value.double().mean()))
        assert data.oracle.variables[name].scale == data.variables[name].scale


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Linear("a -> b", [[0, 0], [1, 0]]), ValueError, "'b' -> 'a'"),
        (lambda: Linear("a -> b", [[0, 1]]), ValueError, r"weights has shape \(1, 2\)"),
        (lambda: Linear("a -> b", scale=[1, -1]), ValueError, "scale must be positive"),
        (lambda: Linear("a <-> b"), ValueError, "needs a DAG"),
        (lambda: Linear(nodes=1), ValueError, "has 1 nodes"),
        (lambda: Linear("a -> b", test=0), ValueError, "test is 0"),
        (lambda: Linear("cause -> b", **FEW).ate("caus", "b"), KeyError, "Did you mean 'cause'"),
        (lambda: Linear("a -> b", **FEW).mean({"a": Shift(1.0)}), ValueError, "hard"),
        (lambda: Linear("a -> b", **FEW).counterfactual({}, {"a": 0.0}), ValueError, "evidence"),
        (lambda: Nonlinear("triangel"), KeyError, "Did you mean 'triangle'"),
        (lambda: Nonlinear("mixed", **FEW).ate("age", "site"), ValueError, "categorical"),
        (lambda: Nonlinear(**FEW).ate("x1", "y"), KeyError, "unknown node 'y'"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_do_nothing_exactly_and_invert_their_noise(name: str) -> None:
    data = Nonlinear(name, train=200, valid=2, test=200, seed=1)
    noise = data.oracle.abduct(data.test)
    again = data.oracle.predict(noise)
    for node, value in data.test.values.items():
        assert torch.equal(again[node], value)
    found = data.invert(data.test.values)
    discrete = {n for n, v in data.variables.items() if v.discrete}
    assert set(found) == set(data.graph.nodes) - discrete
    for node, u in found.items():
        # float32: a noise behind a flat tanh or a large mean keeps fewer digits
        torch.testing.assert_close(u, noise[node], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_arrow_carries_an_effect(name: str) -> None:
    data = Nonlinear(name, train=300, valid=2, test=2, seed=1)
    noise = data.oracle.abduct(data.train)
    for node in data.graph.nodes:
        parents = data.graph.parents(node)
        held = {p: data.train.values[p] for p in parents}
        for parent in parents:
            other = held | {parent: held[parent].roll(1)}
            changed = data.oracle.predict(noise, other)[node] != data.train.values[node]
            assert float(changed.float().mean()) > 0.02, (parent, node)


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


PUBLISHED = {
    "chain": lambda u1, u2, u3: (
        u1,
        x2 := np.exp(u1 / 2) + u2 / 4,
        (x2 - 5) ** 3 / 15 + u3,
    ),
    "triangle": lambda u1, u2, u3: (
        u1,
        x2 := 2 * u1**2 + u2,
        20 / (1 + np.exp(-(x2**2) + u1)) + u3,
    ),
    "fork": lambda u1, u2, u3, u4: (
        u1,
        u2,
        x3 := 4 / (1 + np.exp(-u1 - u2)) - u2**2 + u3 / 2,
        20 / (1 + np.exp(x3**2 / 2 - x3)) + u4,
    ),
    "simpson": lambda u1, u2, u3, u4: (
        u1,
        x2 := np.log1p(np.exp(1 - u1)) + np.sqrt(3 / 20) * u2,
        x3 := np.tanh(2 * x2) + 3 / 2 * u1 - 1 + np.tanh(u3),
        (x3 - 4) / 5 + 3 + u4 / np.sqrt(10),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_systems_of_the_literature_have_their_equations(name: str) -> None:
    data = Nonlinear(name, **FEW)
    noise = [data.test.context[f"u.{n}"].double().numpy() for n in data.graph.nodes]
    with np.errstate(over="ignore"):
        expected = PUBLISHED[name](*noise)
    for node, value in zip(data.graph.nodes, expected, strict=True):
        np.testing.assert_allclose(data.test.values[node], value, rtol=2e-4, atol=2e-4)


def close(truth: dict[str, float], value: float) -> bool:
    return abs(truth["ate"] - value) < 4.5 * truth["error"] + 1e-5


def test_simulated_effects_agree_with_integrals() -> None:
    chain = Nonlinear("chain", **FEW)
    assert close(chain.ate("x1", "x2"), np.exp(0.5) - 1)

    def third(x1: float) -> float:  # E[(m + u / 4)^3] = m^3 + 3 m / 16
        m = np.exp(x1 / 2) - 5
        return (m**3 + 3 * m / 16) / 15

    two_hops = chain.ate("x1", "x3", treated=1.0, control=-1.0)
    assert two_hops["error"] < 0.01
    assert close(two_hops, third(1.0) - third(-1.0))
    diamond = Nonlinear("diamond", **FEW)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    softplus = (np.log1p(np.exp(nodes)) * weights).sum() / weights.sum()
    truth = diamond.ate("c", "d")  # E[b], of a log-normal factor with spread 1/2
    assert truth["error"] < 0.01
    assert close(truth, softplus * np.exp(0.125))


def test_the_standard_error_is_the_spread_over_seeds() -> None:
    data = Nonlinear("chain", **FEW)
    runs = [data.ate("x1", "x3", draws=500, seed=s) for s in range(60)]
    spread = np.std([r["ate"] for r in runs])
    assert np.mean([r["error"] for r in runs]) == pytest.approx(spread, rel=0.35)


def test_mixed_categories_have_the_stated_probabilities() -> None:
    data = Nonlinear("mixed", **FEW)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = data.oracle.noise(20_000)
    done = data.oracle.predict(noise, {"age": 68.0})
    logits = np.array([0.64, 0.0, -0.64])
    share = np.bincount(done["site"].numpy(), minlength=3) / 20_000
    np.testing.assert_allclose(share, np.exp(logits) / np.exp(logits).sum(), atol=0.015)
    south = data.oracle.predict(noise, {"age": 68.0, "site": "south"})
    cdf = sigmoid(np.array([-1.5, 0.0, 1.5]) - (0.8 - 1.0))
    share = np.bincount(south["stage"].numpy(), minlength=4) / 20_000
    np.testing.assert_allclose(share, np.diff([0, *cdf, 1]), atol=0.015)
    u = noise["stage"].argsort()
    assert bool((south["stage"][u].diff() >= 0).all())  # monotone in its noise
    assert data.ate("stage", "outcome", treated="IV", control="I", draws=2000)["ate"] < -2
    assert bool((data.train.values["dose"] > 0).all())


def test_a_system_of_ones_own_is_simulated() -> None:
    double = Node(lambda u, pa: 2 * pa["pH.1"] + u, inverse=lambda y, pa: y - 2 * pa["pH.1"])
    data = Nonlinear(System("pH.1 -> type", {"pH.1": Node(lambda u, pa: u), "type": double}), **FEW)
    assert close(data.ate("pH.1", "type"), 2.0)
    found = data.invert(data.test.values)
    torch.testing.assert_close(found["type"], data.test.context["u.type"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [Linear, Nonlinear])
def test_a_seed_gives_the_same_rows_and_leaves_the_global_generator_alone(make) -> None:
    state = torch.random.get_rng_state()
    first, second = (make(train=n, valid=3, test=5, seed=4) for n in (6, 9))
    other = make(train=6, valid=3, test=5, seed=5)
    if make is Nonlinear:
        first.ate("x1", "x2", draws=10)
    assert torch.equal(state, torch.random.get_rng_state())
    name = first.graph.nodes[-1]
    assert torch.equal(first.test.values[name], second.test.values[name])
    assert not torch.equal(first.test.values[name], other.test.values[name])
