import math

import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from subjunctive.graph import Graph
from subjunctive.mechanism import draw
from subjunctive.mechanisms import Categorical, LinearGaussian, RealNVP
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Variable

T = Variable("t")
ARM = Variable("arm", kind="categorical", categories=("a", "b", "c"))
SMALL = {"steps": 2, "width": 8}
KINDS = {
    "pair": ((2,), {}),
    "vector": ((5,), {"steps": 3}),
    "one level": ((3, 2, 2), {}),
    "two levels": ((1, 4, 8), {"levels": 2}),
    "three levels": ((1, 8, 8), {"levels": 3, "blocks": 2}),
    "logit": ((1, 4, 4), {"levels": 2, "alpha": 0.05}),
    "NICE": ((1, 4, 4), {"levels": 2, "affine": False}),
}


def build(kind, parents=(T, ARM), amount=0.1):
    shape, more = KINDS[kind]
    x = Variable("x", shape, loc=0.4, scale=0.3, low=0.0, high=1.0)
    return stirred(RealNVP(x, parents, **SMALL | more), amount)


def rows(flow, n):
    values = own_samples(flow, n, seed=3).values
    return values.pop("x"), values


@pytest.mark.parametrize("parents", [(), (T, ARM)], ids=["root", "parents"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_the_noises_over_the_jacobian_of_the_whole_map(kind, parents):
    flow = build(kind, parents).double()
    x, values = rows(flow, 3)
    size = x[0].numel()
    for i in range(3):
        row = {k: v[i : i + 1] for k, v in values.items()}
        jacobian = torch.autograd.functional.jacobian(
            lambda a, row=row: flow.abduct(a[None], row)[0], x[i], vectorize=True
        )
        stretch = torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
        u = flow.abduct(x[i : i + 1], row).detach().numpy()
        expected = norm.logpdf(u).sum() + float(stretch)
        log_p = flow.log_prob(x[i : i + 1], row).detach()
        assert float(log_p) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_hold_both_ways(kind):
    flow = build(kind, amount=0.05)
    x, values = rows(flow, 256)
    with torch.no_grad():
        u = draw(flow.prior(), 256)
        far = x if kind == "logit" else x + 3 * torch.randn_like(x)
        pairs = [(flow(flow.abduct(v, values), values), v) for v in (x, far)]
        pairs += [(flow.abduct(flow(u, values), values), u)]
    for again, before in pairs:
        assert ((again - before).abs() / (1 + before.abs())).max() < 1e-5


def test_it_starts_as_the_identity_or_the_logit():
    x = torch.rand(4, 1, 4, 4)
    assert torch.equal(RealNVP(Variable("x", (1, 4, 4)), levels=2).abduct(x, {}), x)
    assert torch.equal(RealNVP(Variable("x", (3,))).abduct(x[:, 0, 0, :3], {}), x[:, 0, 0, :3])
    pixel = Variable("x", (1, 4, 4), loc=0.4, scale=0.3, low=-1.0, high=3.0)
    flow = RealNVP(pixel, levels=2, alpha=0.1).double()
    v = 4 * x.double() - 1
    u = flow.abduct(pixel.standardise(v), {}).detach().numpy()
    assert u == pytest.approx(logit(0.1 + 0.8 * x.double().numpy()), abs=1e-9)


def moved(flow, index):
    """Return which pixels of u a stir of one coupling moves."""
    x = torch.randn(8, *flow.variable.shape)
    before = flow.abduct(x, {})
    stirred(flow.chain[index])
    return (flow.abduct(x, {}) != before).any(0)


def test_couplings_move_the_halves_that_the_paper_says():
    shape, i = (2, 8, 8), torch.arange(8)
    odd = ((i[:, None] + i) % 2 == 1).expand(shape)
    low = (i[:, None] % 2 == 1).expand(8, 8).expand(shape)
    image = Variable("x", shape)
    halves = [moved(RealNVP(image, **SMALL, levels=2), k) for k in range(8)]
    for half, expected in zip(halves[:4], [odd, ~odd, low, ~low], strict=True):
        assert torch.equal(half, expected)
    left, right = halves[4:6]  # the second level works on what the first did not factor out
    assert torch.equal(left | right, ~odd)
    assert torch.equal(halves[6] | halves[7], ~odd)
    assert not (left & right).any()
    assert left.sum() == right.sum() == odd.sum() / 2
    assert not torch.equal(left, halves[6])
    vector = [moved(RealNVP(Variable("x", (5,)), **SMALL), k).int().tolist() for k in range(4)]
    assert vector == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]


def test_additive_couplings_stretch_nothing_but_the_last_layer():
    flow = build("NICE")
    x, values = rows(flow, 64)
    with torch.no_grad():
        u = flow.abduct(x, values)
        stretch = flow.log_prob(x, values) - flow.prior().log_prob(u)
    assert stretch.std() < 1e-4
    assert float(stretch[0]) == pytest.approx(4 * float(flow.log_stretch.detach().sum()), abs=1e-3)


def crescents(n):
    """Two numbers that depend on t and on each other, bent and of uneven spread."""
    t, (a, b) = torch.randn(n), torch.randn(2, n)
    first = a + 0.5 * t
    return torch.stack([first, first.square() / 2 + b * torch.exp(0.5 * t - 0.5)], 1), {"t": t}


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_a_fitted_density_of_two_numbers_integrates_to_one(alpha):
    x, t = crescents(1000)
    low, high = (float(e) for e in x.aminmax())
    flow = RealNVP(Variable("x", (2,), low=low, high=high), [T], width=16, alpha=alpha)
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        losses.append(flow.loss(x, t)["nll"].mean())
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.5
    room = (high - low) * (0.125 if alpha else 1.0)
    lines = torch.linspace(low - room, high + room, 301)[:-1]
    lines = lines + (lines[1] - lines[0]) / 2
    grid = torch.cartesian_prod(lines, lines)
    for value in (-1.0, 1.0):
        with torch.no_grad():
            p = flow.log_prob(grid, {"t": torch.full((len(grid),), value)}).double().exp()
        assert float(p.sum() * (lines[1] - lines[0]) ** 2) == pytest.approx(1, abs=2e-3)


def test_it_is_inverted_after_training_and_answers_in_an_scm(tmp_path):
    x = Variable("x", (1, 4, 4), loc=0.5, scale=0.2, low=0.0, high=1.0)
    flow = RealNVP(x, [T, ARM], levels=2, **SMALL, alpha=0.05)
    model = SCM(
        Graph.parse("t -> x; arm -> x"),
        {"t": LinearGaussian(T), "arm": Categorical(ARM), "x": flow},
    )
    t, arm = torch.randn(200), torch.randint(3, (200,))
    seen = torch.sigmoid(torch.randn(200, 1, 4, 4) + t[:, None, None, None])
    data = {"t": t, "arm": arm, "x": seen}
    before = model.log_prob(data).mean()
    fit(model, data, steps=20, batch_size=50, lr=0.01, ema=None, progress=False)
    assert model.log_prob(data).mean() > before + 1
    answer = counterfactual(model, data, {"t": t})
    assert (answer["x"] - seen).abs().max() < 1e-5
    changed = counterfactual(model, data, {"t": t + 1})["x"] - seen
    assert changed.mean() > 0.02
    model.save(tmp_path / "model")
    other = load(tmp_path / "model")
    assert torch.equal(counterfactual(other, data, {"t": t + 1})["x"] - seen, changed)
    assert torch.equal(other.log_prob(data), model.log_prob(data))


def test_a_row_is_the_same_whatever_stands_beside_it_and_in_training_mode():
    flow = build("two levels").train()
    x, values = rows(flow, 64)
    other = torch.cat([x[:1], 5 + 10 * x[1:]])
    alone = flow.log_prob(x[:1], {k: v[:1] for k, v in values.items()})
    for beside in (x, other):
        assert torch.allclose(flow.log_prob(beside, values)[:1], alone, rtol=1e-5)


IMAGE = Variable("x", (1, 6, 6))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RealNVP(Variable("x", (1, 5, 6))), "multiples of 2, got 5x6; pad to 6x6"),
        (
            lambda: RealNVP(IMAGE, levels=2),
            "levels=2 needs .* multiples of 4, got 6x6; .*fewer lev",
        ),
        (lambda: RealNVP(Variable("x")), r"'x' has shape \(\): use ConditionalFlow"),
        (lambda: RealNVP(Variable("x", (1,))), "a vector of two numbers or more"),
        (lambda: RealNVP(Variable("x", (4, 4))), r"an image \(C, H, W\)"),
        (lambda: RealNVP(Variable("x", (4,)), levels=2), "is a vector, which has levels=1; got 2"),
        (lambda: RealNVP(ARM), "needs a continuous node; 'arm' is categorical"),
        (lambda: RealNVP(IMAGE, steps=1), "needs steps >= 2 and levels, width, blocks >= 1, got 1"),
        (lambda: RealNVP(IMAGE, blocks=0), "blocks >= 1, got 3 and 1, 32, 0"),
        (lambda: RealNVP(IMAGE, alpha=0.05), "low < high, got 0.05 and None, None"),
        (lambda: RealNVP(Variable("x", (2,), low=0, high=1), alpha=0.5), "0 < alpha < 0.5"),
    ],
)
def test_wrong_settings_are_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_wrong_values_are_named():
    flow = build("logit")
    x, values = rows(flow, 4)
    with pytest.raises(ValueError, match=r"'x' has values beyond its low 0.0 .* by over 0.0556"):
        flow.abduct(x + 4, values)
    with pytest.raises(ValueError, match=r"needs values of shape \(B, 1, 4, 4\)"):
        flow.log_prob(x[:, 0], values)
    with pytest.raises(KeyError, match="'x' needs its parent 'arm'"):
        flow(x, {"t": values["t"]})


def test_bits_of_the_logit_model_do_not_depend_on_units():
    x = torch.rand(5, 3)
    found = []
    for loc, scale in ((0.0, 1.0), (0.3, 0.2)):
        v = Variable("x", (3,), loc=loc, scale=scale, low=0.0, high=1.0)
        density = RealNVP(v, alpha=0.05).log_prob(v.standardise(x), {})
        found.append(density - 3 * math.log(scale))
    assert torch.allclose(*found, atol=1e-4)
