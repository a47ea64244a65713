"""Counts against scipy's negative binomial, and the posteriors of their noise in closed form."""

import pytest
import torch
from scipy.stats import nbinom

from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Categorical, NegativeBinomial, ZeroInflated
from subjunctive.mechanisms.counts import log_pmf, quantile, thresholds
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

K = Variable("k")
LIBRARY = Variable("library", loc=1000.0, scale=300.0)
D = torch.float64
PARAMETERS = [(0.01, 0.5), (1.0, 1.0), (7.3, 0.2), (300.0, 2.0), (20.0, 1e4), (1e5, 30.0)]


def root(mean, theta, kind=NegativeBinomial, shape=()):
    """A mechanism without parents, of this mean and dispersion."""
    m = NegativeBinomial(Variable("k", shape))
    with torch.no_grad():
        m.network.row.fill_(torch.tensor(mean).log())
        m.log_theta.fill_(torch.tensor(theta).log())
    return m if kind is NegativeBinomial else ZeroInflated(m)


@pytest.mark.parametrize(("mean", "theta"), PARAMETERS)
def test_probabilities_thresholds_and_quantiles_are_scipys(mean, theta):
    law = nbinom(theta, theta / (theta + mean))
    k = torch.arange(0, int(law.ppf(1 - 1e-9)) + 3, dtype=D)[:2000]
    m, t = torch.full_like(k, mean), torch.full_like(k, theta)
    assert torch.allclose(log_pmf(k, m, t), torch.from_numpy(law.logpmf(k.numpy())), rtol=1e-7)
    logit = torch.from_numpy(law.logcdf(k.numpy()) - law.logsf(k.numpy()))
    sure = logit.abs() < 20
    assert torch.allclose(thresholds(k, m, t)[sure], logit[sure], rtol=1e-6, atol=1e-8)
    v = torch.rand(500, dtype=D)
    found = quantile(v.logit(), torch.full_like(v, mean), torch.full_like(v, theta))
    assert (found.numpy() == law.ppf(v.numpy())).all()


def test_thresholds_go_on_rising_where_probabilities_underflow():
    k = torch.arange(0, 40_000, 7, dtype=D)
    m, t = torch.full_like(k, 2000.0), torch.full_like(k, 500.0)
    c = thresholds(k, m, t)
    assert c[0] < -750  # log F(0) = -500 log 5 = -805
    assert c[-1] > 750
    assert bool((c.diff() > 0).all())
    exact = 500 * torch.tensor(500 / 2500, dtype=D).log()
    assert abs(c[0] - exact) < 0.01 * abs(exact)


@pytest.mark.parametrize("mean", [0.5, 40.0])
def test_draws_have_the_frequencies_of_the_law(mean):
    m = root(mean, 1.5)
    k = m(draw(m.prior(), 20_000), {}).long()
    for value in range(0, int(2 * mean) + 1, max(int(mean / 5), 1)):
        p = nbinom.pmf(value, 1.5, 1.5 / (1.5 + mean))
        assert abs(float((k == value).float().mean()) - p) < 5 * (p / 20_000) ** 0.5


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflated])
def test_probabilities_of_a_scalar_sum_to_one(kind):
    m = root(3.0, 0.7, kind)
    grid = torch.arange(400.0)
    assert float(m.log_prob(grid, {}).detach().double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("mean", "theta"), [*PARAMETERS, (1e-6, 1.0)])
@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflated])
def test_any_count_comes_back_however_unlikely(mean, theta, kind):
    m = root(mean, theta, kind, (6,))
    x = torch.tensor([0.0, 1.0, 2.0, 17.0, 300.0, 20_000.0]).expand(200, 6)
    u = m.abduct(x, {})
    assert torch.equal(m(u, {}), x)


def test_float64_and_standardised_values_come_back_too():
    m = NegativeBinomial(Variable("k", loc=11.7, scale=3.3)).double()
    x = (torch.arange(50, dtype=D) - 11.7) / 3.3
    assert torch.allclose(m(m.abduct(x, {}), {}), x)


def test_the_size_multiplies_the_mean():
    with seeded(0):
        m = NegativeBinomial(K, [LIBRARY, Variable("t")], "library")
    t, raw = torch.zeros(3), torch.tensor([500.0, 1000.0, 2000.0])
    with torch.no_grad():
        mean, theta = m.rates({"library": LIBRARY.standardise(raw), "t": t}, 3)
    assert torch.allclose(mean / mean[0], raw.double() / 500)
    assert torch.equal(theta, theta[:1].expand(3))


def test_means_and_dispersions_are_found_by_likelihood():
    truth = root(4.0, 0.8)
    library = torch.rand(4000) + 0.5
    with torch.no_grad():
        r = draw(truth.prior(), 4000)
        k = quantile(r, 4.0 * library.double(), torch.full((4000,), 0.8, dtype=D)).float()
    model = NegativeBinomial(K, [Variable("library")], "library")
    graph = Graph.parse("library -> k")
    scm = SCM(graph, {"library": NegativeBinomial(Variable("library")), "k": model})
    scm.mechanisms["library"].loss = lambda x, pa: {"none": 0 * x}
    fit(scm, Batch({"library": library, "k": k}), steps=250, batch_size=1000, lr=3e-2, ema=0.9,
        progress=False)  # fmt: skip
    assert model.network.row.exp().tolist() == pytest.approx([4.0], rel=0.1)
    assert model.log_theta.exp().item() == pytest.approx(0.8, rel=0.1)


def test_a_higher_mean_never_lowers_a_count():
    arm = Variable("arm", kind="categorical", categories=("a", "b"))
    counts = NegativeBinomial(K, [arm], network=torch.nn.Linear(2, 1))
    with torch.no_grad():
        counts.network.weight.copy_(torch.tensor([[1.0, 3.0]]))
    model = SCM(Graph.parse("arm -> k"), {"arm": Categorical(arm), "k": counts})
    seen = {"arm": torch.zeros(300, dtype=torch.long), "k": torch.arange(300.0) // 30}
    done = counterfactual(model, seen, {"arm": "b"}, seed=0)["k"]
    assert bool((done >= seen["k"]).all())
    assert float(done.mean()) > 2 * float(seen["k"].mean())
    assert torch.equal(counterfactual(model, seen, {"arm": "a"}, seed=0)["k"], seen["k"])


def test_a_zero_dropped_out_as_often_as_bayes_says():
    m = root(1.0, 1.0, ZeroInflated)  # P(k = 0) = 1/2
    with torch.no_grad():
        m.network.row.fill_(-1.0)
    p = 1 / (1 + torch.tensor(1.0).exp())
    u = m.abduct(torch.zeros(20_000), {})
    dropped = (u["drop"] <= -1.0).float().mean()
    assert float(dropped) == pytest.approx(float(p / (p + (1 - p) / 2)), abs=0.015)
    kept = u["drop"] > -1.0
    assert bool((u["count"][kept] <= 0).all())  # c_0 = logit(1/2)
    free = u["count"][~kept]
    assert float((free > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    said = m.log_prob(torch.tensor([0.0, 2.0]), {}).exp()
    assert torch.allclose(said, torch.stack([p + (1 - p) / 2, (1 - p) / 8]), rtol=1e-5)


def test_mistakes_are_explained():
    m = NegativeBinomial(K)
    with pytest.raises(ValueError, match=r"'k' holds counts.*1 of 2 values are none, 0.5 for one"):
        m.log_prob(torch.tensor([1.0, 0.5]), {})
    with pytest.raises(ValueError, match=r"-2 for one\. Give raw counts"):
        m.abduct(torch.tensor([-2.0]), {})
    with pytest.raises(KeyError, match=r"NegativeBinomial\(size=\) names unknown node 'libary'"):
        NegativeBinomial(K, [LIBRARY], "libary")
    with pytest.raises(ValueError, match="it is to be one number a row"):
        NegativeBinomial(K, [Variable("library", (2,))], "library")
    sized = NegativeBinomial(K, [Variable("library")], "library")
    with pytest.raises(ValueError, match="the size 'library' of 'k' is -1 in a row; it is to be p"):
        sized.abduct(torch.tensor([1.0]), {"library": torch.tensor([-1.0])})
    with pytest.raises(ValueError, match="NegativeBinomial needs a continuous node"):
        NegativeBinomial(Variable("k", kind="ordinal", categories=("a", "b")))
    wrong = NegativeBinomial(K, [Variable("t")], network=torch.nn.Linear(1, 3))
    with pytest.raises(ValueError, match=r"a network of 'k' gave \(2, 3\), not the \(2, 1\)"):
        wrong.log_prob(torch.ones(2), {"t": torch.ones(2)})
