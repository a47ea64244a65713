"""Consistency training and distillation against the flow of data whose denoiser is known."""

import itertools

import pytest
import torch
from torch import nn

from subjunctive.diffusion import EDM, Denoiser
from subjunctive.diffusion.consistent import Grid
from subjunctive.diffusion.jump import jump
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Consistency, LinearGaussian
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import MLP, Beside, Timed
from subjunctive.objectives import (
    CTM,
    ICT,
    LCM,
    PCM,
    SLCT,
    ConsistencyTraining,
    SCott,
    Teacher,
    plain,
    scaleless,
)
from subjunctive.objectives.consistency import Alone, coupled
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, T, SCALE = Variable("x", (1,)), Variable("t"), 0.4
NEAR = EDM(0.01, 10.0)  # a short road, for short training


class Known(nn.Module):
    """The denoiser of N(t, 0.4^2); told that t is absent, that of N(0, 1 + 0.4^2)."""

    def __init__(self):
        super().__init__()
        self.schedule, self.sigma_data = NEAR, 1.0

    def forward(self, x, t, condition):
        value, there = condition[:, :1], condition[:, 1:2]
        s = self.schedule.sigma(t)[:, None]
        variance = SCALE**2 + (1 - there)
        return value + variance / (variance + s**2) * (x - value)


def teacher(guidance=1.0):
    return Diffusion(X, [T], Known(), guidance=guidance)


def flow(x, t, s, mean):
    a, b = (torch.hypot(NEAR.sigma(v), torch.full_like(v, SCALE))[:, None] for v in (s, t))
    return mean + (x - mean) * a / b


def student(**jumps):
    told = (jumps.get("edges", ()) is None) + ("strength" in jumps)
    with seeded(0):
        network = Timed(1, condition_width([T], 0) + told, width=32)
        return Consistency(Diffusion(X, [T], Denoiser(network, NEAR, "edm")), **jumps)


def rows(n=4096):
    with seeded(0):
        t = torch.randn(n)
        return Batch({"t": t, "x": t[:, None] + SCALE * torch.randn(n, 1)})


def learn(own, objective, steps=400):
    fit(Alone(own), rows(), objective, steps=steps, batch_size=256, lr=5e-3, progress=False)
    return own


@torch.no_grad()
def missed(own, mean=1.0, alone=False):
    """The root mean squared distance of answers from the flow's, in the data's deviations."""
    with seeded(3):
        u, parents = draw(own.prior(), 2000), {"t": torch.full((2000,), mean)}
    start = u["start"] * (1 + 10.0**2) ** 0.5
    one = torch.ones(2000)
    wanted = flow(start, one, 0 * one, mean)
    return float((own.landed(u, parents) - wanted).square().mean().sqrt()) / SCALE


DISTILLED = {
    "plain": (lambda own: plain(own, 400, teacher()), {}),
    "phased": (lambda own: PCM(own, teacher(), intervals=32), {"edges": (0.0, 0.4, 0.7)}),
    "trajectory": (
        lambda own: CTM(own, teacher()),
        {"edges": None, "stops": (1.0, 0.6), "gamma": 0.0},
    ),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_jumps_follow_the_teachers_road(name):
    make, jumps = DISTILLED[name]
    own = student(**jumps)
    before = missed(own)
    assert missed(learn(own, make(own))) < min(0.3, before / 3)


def test_a_trajectory_model_jumps_anywhere_and_is_the_denoiser_where_it_stays():
    own = student(edges=None)
    learn(own, CTM(own, teacher()))
    with seeded(5), torch.no_grad():
        t = 0.3 + 0.6 * torch.rand(2000)
        s, parents = t * torch.rand(2000), {"t": torch.zeros(2000)}
        x = torch.hypot(NEAR.sigma(t), torch.full_like(t, SCALE))[:, None] * torch.randn(2000, 1)
        estimate = own.estimate(parents, None, 2000)
        there = jump(estimate, NEAR, x, t, s)
        scale = flow(x, t, s, 0.0).std()
        assert float((there - flow(x, t, s, 0.0)).std() / scale) < 0.2
        wanted = Known()(x, t, torch.tensor([[0.0, 1.0]]).expand(2000, 2))
        assert float((estimate(x, t, t) - wanted).std() / SCALE) < 0.15
        # the broken twin takes the jump to zero for the denoiser
        assert float((estimate(x, t, 0 * t) - wanted).std() / SCALE) > 0.2


@pytest.mark.parametrize("recipe", [lambda own, n, **o: ICT(n, **o), SLCT], ids=["ICT", "SLCT"])
def test_trained_without_a_teacher_one_jump_draws_what_the_data_are(recipe):
    own = student()
    learn(own, recipe(own, 800, grid=Grid(10, 40, 800, noise=(0.5, 1.5))), steps=800)
    with seeded(4), torch.no_grad():
        for mean in (-1.0, 1.5):
            u = draw(own.prior(), 4000)
            x = own.landed(u, {"t": torch.full((4000,), mean)})
            assert abs(float(x.mean()) - mean) < 0.15
            assert float(x.std()) == pytest.approx(SCALE, rel=0.3)


def test_the_strength_that_is_told_is_the_strength_of_the_guided_teacher():
    own = student(strength=1.0)
    learn(own, LCM(own, teacher(), strengths=(0.5, 3.0), intervals=32, skip=2), steps=600)
    means = {}
    with torch.no_grad():
        for strength in (1.0, 2.5):
            own.strength = strength
            with seeded(3):
                u, parents = draw(own.prior(), 2000), {"t": torch.full((2000,), 1.0)}
            guided = teacher(guidance=strength)
            x = u["start"] * (1 + 10.0**2) ** 0.5
            road = Teacher(guided, parts=64).tell(x, parents, None).road
            wanted = road(x, torch.ones(2000), torch.zeros(2000))
            found = own.landed(u, parents)
            means[strength] = float(found.mean()), float(wanted.mean())
    for found, wanted in means.values():
        assert abs(found - wanted) < 0.15
    assert means[2.5][0] - means[1.0][0] > 0.1  # and it matters


def test_a_noisy_road_with_a_critic_draws_what_the_data_are():
    own = student()
    critic = Beside(nn.Flatten(), MLP(3, 1, (32,)))
    learn(own, SCott(own, teacher(), critic, intervals=24))
    with seeded(4), torch.no_grad():
        x = own.landed(draw(own.prior(), 4000), {"t": torch.full((4000,), 0.5)})
    assert abs(float(x.mean()) - 0.5) < 0.15
    assert float(x.std()) == pytest.approx(SCALE, rel=0.4)


def test_players_do_not_touch_each_other_and_the_target_follows():
    own = student(stops=(1.0, 0.5))
    critic = Beside(nn.Flatten(), MLP(3, 1, (8,)))
    objective = ConsistencyTraining(critic=critic, target=own, decay=0.5, grid=Grid(8, 8))
    first = [p.clone() for p in objective.target.parameters()]
    objective.train()
    players = {p.name: p for p in objective.players(Alone(own))}
    assert list(players) == ["critic", "jumps", "rest"]
    batch = rows(32)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(1.0)
    objective.loss(Alone(own), batch, "jumps", 5)
    for old, kept, new in zip(first, objective.target.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(kept, (old + new) / 2)
        assert not kept.requires_grad


def test_noise_is_dealt_as_closely_as_can_be():
    with seeded(0):
        x = torch.randn(5, 3)
    with seeded(1):
        noise = coupled(x)
    with seeded(1):
        plain_noise = torch.randn(5, 3)
    assert torch.equal(noise.sort(0).values, plain_noise.sort(0).values)
    least = min(
        float((x - plain_noise[list(order)]).square().sum())
        for order in itertools.permutations(range(5))
    )
    assert float((x - noise).square().sum()) == pytest.approx(least)
    assert float((x - plain_noise).square().sum()) > least


def test_scaleless_norms_shift_but_do_not_scale():
    network = scaleless(MLP(2, 2, (4,), norm=True))
    with torch.no_grad():
        network.layers[1].bias.add_(1.0)
    network(torch.randn(3, 2)).sum().backward()
    assert network.layers[1].weight.grad is None
    assert network.layers[1].bias.grad is not None


def test_a_whole_model_is_trained_at_its_one_consistency_node():
    own = student()
    graph, t = Graph.parse("t -> x"), LinearGaussian(T).requires_grad_(False)
    scm = SCM(graph, {"t": t, "x": own})
    before = t.state_dict()["bias"].clone() if "bias" in t.state_dict() else None
    fit(scm, rows(64), ICT(3), steps=3, progress=False)
    assert before is None or torch.equal(t.state_dict()["bias"], before)
    loose = SCM(graph, {"t": LinearGaussian(T), "x": student()})
    with pytest.raises(ValueError, match="freeze it"):
        fit(loose, rows(64), ICT(3), steps=3, progress=False)


def test_what_cannot_be_is_refused():
    own, whole = student(), student(edges=None)
    with pytest.raises(ValueError, match=r"strength=1\.0"):
        LCM(own, teacher())
    with pytest.raises(ValueError, match="edges=None"):
        CTM(own, teacher())
    with pytest.raises(ValueError, match="jumps to edges"):
        PCM(whole, teacher())
    with pytest.raises(ValueError, match="eta"):
        Teacher(teacher(), noise=0.5, heun=True)
    with pytest.raises(ValueError, match="range"):
        Teacher(teacher(), strengths=(2.0, 1.0))
    with pytest.raises(ValueError, match="decay=2"):
        ConsistencyTraining(decay=2)
    with pytest.raises(ValueError, match="one Consistency mechanism"):
        ConsistencyTraining().players(SCM(Graph.parse("t"), {"t": LinearGaussian(T)}))
    scm = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T).requires_grad_(False), "x": own})
    blind = Batch(rows(8).values, seen={"x": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(ValueError, match="saw 'x'"):
        fit(scm, blind, ICT(3), steps=3, batch_size=8, progress=False)
    with pytest.raises(ValueError, match="would tie the noise"):
        fit(scm, rows(8), ConsistencyTraining(couple=True), steps=3, batch_size=8, progress=False)
