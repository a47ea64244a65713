"""The interpolant against fields that have a closed form, and on pictures with missing parts."""

import pytest
import torch
from torch import nn

from subjunctive.checks import LawBroken, check_mechanism
from subjunctive.checks.law import same_law, unpredictable
from subjunctive.diffusion import Cosine, Denoiser, Heun, RectifiedFlow
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Corrupted, Interpolant, LinearGaussian, Regressed
from subjunctive.mechanisms.interpolant import Stacked
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.nn import MLP, Timed
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

C, X = Variable("c"), Variable("x")


# A field in closed form: x = c + k + 0.3 e, k = -1 or 1 -------------------------------------------


class Affine(nn.Module):
    """The base m = slope c, s."""

    def __init__(self, slope=0.0, s=1.0):
        super().__init__()
        self.slope, self.s = slope, s

    def forward(self, parents, rows):
        c = parents["c"]
        return self.slope * c, torch.full_like(c, self.s)


class Exact(nn.Module):
    """E[r | r_t, c] of r = (x - m) / s by Bayes' rule; `base` is what it was made for."""

    def __init__(self, schedule, base):
        super().__init__()
        self.schedule, self.base, self.sigma_data = schedule, base, 1.0

    def forward(self, r_t, t, condition):
        c = condition[:, 0]
        m, s = self.base({"c": c}, len(c))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        mean = (c[:, None] + torch.tensor([-1.0, 1.0]) - m[:, None]) / s[:, None]
        variance = (0.3 / s[:, None]) ** 2
        total = alpha[:, None] ** 2 * variance + sigma[:, None] ** 2
        away = r_t[:, None] - alpha[:, None] * mean
        weight = (-(away**2) / total / 2).softmax(1)
        return (weight * (mean + alpha[:, None] * variance / total * away)).sum(1)


def exact(slope, s, steps, schedule=None, made_for=None):
    schedule, base = schedule or RectifiedFlow(floor=1e-3), Affine(slope, s)
    denoiser = Exact(schedule, made_for or base)
    return Interpolant(X, [C], denoiser, base, Heun(schedule, steps, tolerance=1e-8, refine=15))


def truth(rows, seed=0):
    with seeded(seed):
        c = 3 * torch.randn(rows)
        return c + torch.randn(rows).sign() + 0.3 * torch.randn(rows), {"c": c}


BASES = {"independent": (0.0, 1.0), "coupled": (1.0, 1.0), "tight": (1.0, 0.5), "off": (-0.5, 2.0)}


@pytest.mark.parametrize(
    ("base", "schedule"),
    [*((b, None) for b in BASES), ("tight", Cosine(1e-3))],
    ids=[*BASES, "tight, cosine"],
)
def test_the_closed_form_field_carries_every_base_to_the_target(base, schedule):
    x, parents = truth(1000)
    model = exact(*BASES[base], steps=40, schedule=schedule)
    drawn = model(draw(model.prior(), 1000), parents)
    same_law({"x - c": (drawn - parents["c"], x - parents["c"])})
    u = model.abduct(x, parents)["start"]
    assert (model({"start": u}, parents) - x).abs().max() < 1e-4
    same_law({"u": (u, torch.randn(1000))})
    unpredictable("u", u, parents["c"][:, None])


def test_a_perfect_model_gives_one_answer_whatever_the_base():
    _, parents = truth(500)
    u = {"start": torch.randn(500)}
    answers = {b: exact(*BASES[b], steps=200)(u, parents) for b in BASES}
    for base in BASES:
        assert (answers[base] - answers["coupled"]).abs().quantile(0.99) < 0.02, base
    few = {b: exact(*BASES[b], steps=4)(u, parents) for b in BASES}
    lost = {b: (few[b] - answers["coupled"]).abs().mean() for b in BASES}
    assert (few["coupled"] - few["independent"]).abs().mean() < 0.1 * lost["independent"]
    assert lost["tight"] < 0.6 * lost["coupled"] < 0.6 * lost["off"]


def test_the_broken_twin_an_independent_coupling_declared_coupled_is_found():
    x, parents = truth(1000)
    coupled = exact(1.0, 0.5, steps=20)
    twin = exact(1.0, 0.5, steps=20, made_for=Affine(0.0, 1.0))  # of rows drawn with x_0 ~ N(0, 1)

    def judge(model):
        u = model.abduct(x, parents)["start"]
        unpredictable("u", u, parents["c"][:, None])
        same_law({"u": (u, torch.randn(1000))})

    judge(coupled)
    with pytest.raises(LawBroken, match="the parents predict 'u'"):
        judge(twin)
    # and before any training: a coupling is nearer to its own rows than to others
    other = {"c": parents["c"].roll(1)}
    assert coupled.transport(x, parents).mean() < coupled.transport(x, other).mean() / 5
    independent = exact(0.0, 1.0, steps=1)
    assert torch.equal(independent.transport(x, parents), independent.transport(x, other))


# The loss ----------------------------------------------------------------------------------------


def test_the_loss_is_the_squared_error_of_the_velocity_in_units_of_x():
    y, mask = Variable("y", (2,)), Variable("mask", (2,))
    x, base = Variable("x", (2,)), Corrupted(Variable("x", (2,)), y, mask, scale=0.7, kept=0.2)
    model = stirred(Interpolant.of(x, [y, mask], base, width=8), 0.3)
    floor = model.denoiser.schedule.floor
    values, parents = torch.randn(64, 2), {"y": torch.randn(64, 2)}
    parents["mask"] = (torch.rand(64, 2) > 0.5).float()
    with seeded(3):
        found = model.loss(values, parents)
    assert set(found) == {"denoise"}
    with seeded(3):
        noise = torch.randn_like(values)
        t = ((torch.randperm(64) + torch.rand(64)) / 64)[:, None]
    m, s = model.at(parents, 64)
    assert torch.equal(m, parents["y"] * parents["mask"])
    assert torch.allclose(s, torch.where(parents["mask"] > 0.5, 0.2, base.log_scale.exp()))
    start = m + s * noise
    alpha, sigma = 1 - (1 - floor) * t, floor + (1 - floor) * t
    x_t, velocity = alpha * values + sigma * start, (1 - floor) * (start - values)
    r_t = (x_t - (alpha + sigma) * m) / s
    r = model.denoise(parents, m)(r_t, t[:, 0])
    guess = (1 - floor) * (m + s * (r_t - alpha * r) / sigma - (m + s * r))
    error = (velocity - guess).square().mean(1)
    scale = s.square().mean(1) * (1 - floor**2) ** 2 / (alpha**2 + sigma**2)[:, 0]
    assert torch.allclose(found["denoise"], error / scale, rtol=1e-3)


def test_a_learned_base_is_the_likeliest_gaussian_and_the_denoiser_leaves_it_alone():
    parents = {"c": torch.randn(500)}
    x = torch.stack([2 * parents["c"] + 0.5 * torch.randn(500), torch.randn(500)], 1)
    pair = Variable("x", (2,))
    base = Regressed(pair, [C], MLP(1, 2, hidden=()))
    model = stirred(Interpolant.of(pair, [C], base, width=8), 0.1)
    terms = model.loss(x, parents)
    terms["denoise"].mean().backward(retain_graph=True)
    assert all(p.grad is None for p in base.parameters())
    assert all(p.grad is not None for p in model.denoiser.parameters())
    model.zero_grad()
    terms["base"].mean().backward()
    assert all(p.grad is None for p in model.denoiser.parameters())
    m, s = model.at(parents, 500)
    normal = torch.distributions.Normal(m, s)
    constant = torch.tensor(2 * torch.pi).log() / 2
    assert torch.allclose(terms["base"] + constant, -normal.log_prob(x).mean(1), atol=1e-4)


def test_the_transport_is_that_of_draws_and_least_for_the_mean_given_the_parents():
    x, parents = truth(4000)
    model = exact(0.7, 0.5, steps=1)
    m, s = model.at(parents, 4000)
    drawn = torch.stack([(x - m - s * torch.randn(4000)).square() for _ in range(300)]).mean(0)
    assert torch.allclose(model.transport(x, parents).mean(), drawn.mean(), rtol=0.02)
    costs = [exact(a, 0.5, 1).transport(x, parents).mean() for a in (0.8, 0.9, 1.0, 1.1, 1.2)]
    assert costs.index(min(costs)) == 2
    assert costs[2] == pytest.approx(1 + 0.3**2 + 0.5**2, rel=0.05)


def test_it_learns_a_linear_gaussian_model():
    pair = Variable("x", (2,))
    weights, spread = torch.tensor([1.5, -1.0]), torch.tensor([[0.5, 0.0], [0.8, 0.3]])
    rows = 2000
    c = torch.randn(rows)
    data = Batch({"c": c, "x": c[:, None] * weights + 1 + torch.randn(rows, 2) @ spread.T})
    base = Regressed(pair, [C], MLP(1, 2, hidden=()))
    model = SCM(
        Graph.parse("c -> x"),
        {"c": LinearGaussian(C), "x": Interpolant.of(pair, [C], base, width=16, steps=8)},
    )
    fit(model, data, steps=300, batch_size=256, lr=0.02, warmup=20, ema=0.95, progress=False)
    drawn = model.sample(4000, do={"c": torch.ones(4000)}, seed=1)["x"]
    assert torch.allclose(drawn.mean(0), 1 + weights, atol=0.1)
    assert torch.allclose(drawn.T.cov(), spread @ spread.T, atol=0.1)
    assert torch.allclose(base.log_scale.exp(), spread.square().sum(1).sqrt(), rtol=0.1)


# Pictures ----------------------------------------------------------------------------------------


FINE = Variable("x", (1, 8, 8), loc=0.5, scale=0.25)
MASKED, MASK = Variable("y", (1, 8, 8)), Variable("mask", (1, 8, 8))
COARSE = Variable("y", (1, 2, 2), loc=1.0, scale=0.1)


def test_the_base_is_the_kept_part_in_the_units_of_the_node():
    pixels = torch.rand(5, 1, 8, 8)
    mask = (torch.rand(5, 1, 8, 8) > 0.5).float()
    base = Corrupted(FINE, MASKED, MASK, scale=0.8, kept=0.1)
    m, s = base({"y": pixels * mask + 9 * (1 - mask), "mask": mask}, 5)
    assert torch.allclose(m, (pixels - 0.5) / 0.25 * mask, atol=1e-6)
    assert torch.allclose(s, 0.8 - 0.7 * mask, atol=1e-6)
    blocks = torch.rand(5, 1, 2, 2)
    m, s = Corrupted(FINE, COARSE, scale=0.5)({"y": COARSE.standardise(blocks)}, 5)
    assert m.shape == (5, 1, 8, 8)
    assert torch.allclose(FINE.restore(m).mean((2, 3)), blocks.mean((2, 3)), atol=1e-5)
    assert torch.allclose(FINE.restore(m)[:, :, 0, 0], blocks[:, :, 0, 0], atol=1e-5)
    assert s.item() == pytest.approx(0.5)


def test_images_among_the_parents_are_channels_and_the_rest_a_vector():
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    base = Corrupted(FINE, COARSE, scale=0.5)
    model = Interpolant.of(FINE, [C, COARSE, kind], base, width=8, multipliers=(1,))
    parents = {"c": torch.randn(3), "y": torch.randn(3, 1, 2, 2), "k": torch.tensor([0, 1, 1])}
    m, _ = model.at(parents, 3)
    vector, channels = model.condition(parents, m)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(vector, torch.cat([parents["c"][:, None], expected], 1))
    assert channels.shape == (3, 2, 8, 8)
    assert torch.equal(channels[:, :1], m)
    assert torch.allclose(channels[:, 1:].mean((2, 3)), parents["y"].mean((2, 3)), atol=1e-5)
    alone = Interpolant.of(FINE, (), None, width=8, multipliers=(1,))
    vector, channels = alone.condition({}, torch.zeros(3, 1, 8, 8))
    assert vector is None
    assert channels.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("build", ["root", "vector", "scalar"])
def test_the_laws_hold_for_other_nodes(build):
    with seeded(0):
        model = {
            "root": lambda: Interpolant.of(Variable("x", (2, 2)), width=8, steps=4),
            "vector": lambda: Interpolant.of(
                Variable("x", (3,)), [C], Regressed(Variable("x", (3,)), [C]), width=8, steps=4
            ),
            "scalar": lambda: Interpolant.of(X, [C, Variable("pair", (2,))], None, 8, steps=4),
        }[build]()
    report = check_mechanism(stirred(model), own_samples(model, rows=48))
    laws = ("round_trip", "noise_follows_the_prior", "every_parameter_learns", "saved_and_loaded")
    assert {report[law] for law in laws} == {"holds"}


def test_doing_nothing_returns_the_picture_and_another_mask_another_one(tmp_path):
    with seeded(0):
        base = Corrupted(FINE, MASKED, MASK, scale=0.8)
        inpainter = stirred(Interpolant.of(FINE, [MASKED, MASK], base, 8, (1,), steps=4))
    roots = {"y": LinearGaussian(MASKED), "mask": LinearGaussian(MASK)}
    model = SCM(Graph.parse("y -> x; mask -> x"), {**roots, "x": inpainter}).eval()
    pixels, mask = torch.rand(8, 1, 8, 8), (torch.rand(8, 1, 8, 8) > 0.5).float()
    seen = {"x": pixels, "y": pixels * mask, "mask": mask}
    same = counterfactual(model, seen, {}, seed=0)
    assert (same["x"] - pixels).abs().max() < 1e-4
    other = counterfactual(model, seen, {"mask": 1 - mask}, seed=0)["x"]
    assert (other - pixels).abs().max() > 0.05
    model.save(tmp_path / "m")
    again = counterfactual(load(tmp_path / "m"), seen, {"mask": 1 - mask}, seed=0)["x"]
    assert torch.equal(again, other)


# Mistakes ----------------------------------------------------------------------------------------


def test_wrong_settings_are_named():
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    with pytest.raises(ValueError, match="needs a continuous node; 'k' is categorical"):
        Interpolant.of(kind)
    with pytest.raises(ValueError, match=r"'c' of shape \(\) is no picture of 'x' of shape \(1, 8"):
        Corrupted(FINE, C)
    with pytest.raises(ValueError, match=r"'y' of shape \(2, 8, 8\) is no picture of 'x'"):
        Corrupted(FINE, Variable("y", (2, 8, 8)))
    with pytest.raises(ValueError, match=r"mask 'mask' has shape \(1, 4, 4\); 'x' needs \(1, 8"):
        Corrupted(FINE, MASKED, Variable("mask", (1, 4, 4)))
    with pytest.raises(ValueError, match=r"base of 'x' has kept=0\.0; it must be positive"):
        Corrupted(FINE, MASKED, MASK, kept=0.0)
    with pytest.raises(ValueError, match=r"base of 'x' has scale=-1\.0; it must be positive"):
        Corrupted(FINE, MASKED, scale=-1.0)
    with pytest.raises(ValueError, match="'x' has no parents to be regressed on"):
        Regressed(X, [])
    model = exact(1.0, 0.5, steps=2)
    with pytest.raises(KeyError, match="'x' needs its parent 'c'"):
        model.abduct(torch.zeros(3), {})
    with pytest.raises(ValueError, match=r"'x' needs values of shape \(B,\), got \(3, 1\)"):
        model.loss(torch.zeros(3, 1), {"c": torch.zeros(3)})


def test_a_base_of_another_shape_is_named():
    class Wrong(nn.Module):
        def forward(self, parents, rows):
            return torch.zeros(rows, 2), torch.ones(3)

    denoiser = Denoiser(Timed(3, condition=4), RectifiedFlow())
    model = Interpolant(Variable("x", (3,)), [C], denoiser, Wrong())
    with pytest.raises(ValueError, match=r"gave m of shape \(5, 2\) and s of shape \(3,\); both"):
        model(draw(model.prior(), 5), {"c": torch.zeros(5)})
    stacked = Interpolant.of(FINE, width=8, multipliers=(1,)).denoiser.network
    assert isinstance(stacked, Stacked)
