"""The consistency mechanism: what it abducts, what agreement measures, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn

from subjunctive.diffusion import EDM, Cosine, Denoiser, Squared
from subjunctive.diffusion.consistent import Grid
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Consistency, LinearGaussian
from subjunctive.mechanisms.consistency import Told
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import MLP, Timed
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.train import fit
from subjunctive.training.objective import Objective, Player
from subjunctive.variable import Variable

X, T = Variable("x", (2,)), Variable("t")
PULL = 1.0


class Road(nn.Module):
    """A denoiser whose jumps to zero are the flow of N(t, 0.5^2), in closed form.

    `wrong` makes it the denoiser of those data instead, which is no consistency function.
    """

    scale = 0.5

    def __init__(self, wrong=False):
        super().__init__()
        self.schedule, self.sigma_data, self.wrong = EDM(), 1.0, wrong
        self.idle = nn.Parameter(torch.ones(()))

    def forward(self, x, t, condition):
        m, s = PULL * condition[:, :1], self.schedule.sigma(t)[:, None]
        if self.wrong:
            return m + self.scale**2 / (self.scale**2 + s**2) * (x - m)
        low = self.schedule.sigma(0 * t)[:, None]
        there = m + (x - m) * torch.hypot(low, torch.full_like(s, self.scale)) / torch.hypot(
            s, torch.full_like(s, self.scale)
        )
        return self.idle * (there - low / s * x) / (1 - low / s).clamp(min=1e-9)


def known(wrong=False, **options):
    return Consistency(Diffusion(X, [T], Road(wrong)), **options).double()


def data(rows=256):
    with seeded(0):
        t = torch.randn(rows).double()
        return PULL * t[:, None] + 0.5 * torch.randn(rows, 2).double(), {"t": t}


def road(x, t, u, parents):
    m, s = PULL * parents["t"][:, None], EDM().sigma
    return m + (x - m) * (torch.hypot(s(u), Road.scale * torch.ones_like(u)) /
                          torch.hypot(s(t), Road.scale * torch.ones_like(t)))[:, None]  # fmt: skip


def test_agreement_is_zero_for_the_flow_along_its_road_and_not_for_the_denoiser():
    x, parents = data()
    told = Told(lambda a, t, u: road(a, t, u, parents))
    grid = Grid(32, 32, noise=None)
    found = [
        float(
            m.agreement(x, parents, grid=grid, distance=Squared(), told=told).apart.detach().mean()
        )
        for m in (known(), known(wrong=True))
    ]
    assert found[0] < 1e-12
    assert found[1] > 1e-3


def test_without_a_teacher_the_road_is_right_in_the_mean_as_the_grid_gets_finer():
    x, parents = data(20_000)
    apart = []
    for n in (16, 64):
        told, grid = Told(), Grid(n, n, noise=None)
        with seeded(1):
            landing = known().agreement(
                x, parents, grid=grid, distance=Squared(), told=told, weighted=False
            )
        apart.append(float(landing.apart.detach().mean()))
    assert apart[1] < apart[0] / 4


def test_answers_move_with_the_parents_and_noise_is_kept():
    x, parents = data()
    mechanism = known()
    u = mechanism.abduct(x, parents)
    torch.testing.assert_close(mechanism(u, parents), x)
    moved = mechanism(u, {"t": parents["t"] + 1})
    kept = math.hypot(0.002, 0.5) / math.hypot(80, 0.5)  # the start is no more about the mean
    torch.testing.assert_close(moved, x + PULL * (1 - kept), atol=1e-6, rtol=1e-6)


def test_the_inverse_finds_the_start_and_leaves_the_jumps_alone():
    """Without it the start is drawn anew, and the residual has to carry what differs."""

    class Rest(Objective):
        def players(self, model):
            return [Player("rest", [*model.inverse.parameters(), model.diffusion.log_scale])]

        def loss(self, model, batch, player, step):
            return model.rest(batch.values["x"], {"t": batch.values["t"]})

    x, parents = data()
    with seeded(0):
        inverse = _Inverse()
    mechanism, blind = known(inverse=inverse).float(), known().float()
    mechanism.diffusion.denoiser.requires_grad_(False)
    before = copy.deepcopy(mechanism.diffusion.denoiser.state_dict())
    batch = {"x": x.float(), "t": parents["t"].float()}
    fit(mechanism, batch, Rest(), steps=500, lr=3e-2, batch_size=128, progress=False)
    for name, value in mechanism.diffusion.denoiser.state_dict().items():
        assert torch.equal(value, before[name])
    given = {"t": batch["t"]}
    left = [
        float((batch["x"] - m.landed(m.abduct(batch["x"], given), given)).detach().std())
        for m in (mechanism, blind)
    ]
    assert left[0] < 0.65 * left[1]
    start = mechanism.abduct(batch["x"], given)["start"].detach()
    assert abs(float(start.std()) - 1) < 0.15  # and it follows the prior
    wanted = (batch["x"] - PULL * given["t"][:, None]) / 0.5
    pair = torch.stack([start.reshape(-1), wanted.reshape(-1)])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.8


class _Inverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine = nn.Linear(4, 4)

    def forward(self, x, noise, condition):
        return self.affine(torch.cat([x, condition], 1))


def model(**jumps):
    with seeded(0):
        told = (jumps.get("edges", ()) is None) + ("strength" in jumps)
        network = Timed(2, condition_width([T], 3) + told, width=16)
        body = Diffusion(X, [T], Denoiser(network, Cosine()), MLP(2, 6, (8,)), code=3)
        mechanisms = {"t": LinearGaussian(T), "x": Consistency(body, **jumps)}
        scm = SCM(Graph.parse("t -> x"), mechanisms)
        with torch.no_grad():
            for parameter in scm.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return scm


KINDS = [
    {},
    {"stops": (1.0, 0.5)},
    {"edges": (0.0, 0.5)},
    {"edges": None, "stops": (1.0, 0.6), "gamma": 0.3},
    {"strength": 1.5},
]


@pytest.mark.parametrize("jumps", KINDS, ids=str)
def test_doing_nothing_changes_nothing_and_a_saved_model_answers_the_same(jumps, tmp_path):
    scm = model(**jumps)
    rows = scm.sample(16, seed=1)
    same = counterfactual(scm, rows, {"t": rows["t"]}, seed=2)
    torch.testing.assert_close(same["x"], rows["x"], atol=1e-5, rtol=1e-5)
    asked = counterfactual(scm, rows, {"t": 2.0}, seed=2)["x"]
    assert float((asked - rows["x"]).abs().mean()) > 1e-4
    again = load(save(scm, tmp_path / "model") or tmp_path / "model")
    assert torch.equal(counterfactual(again, rows, {"t": 2.0}, seed=2)["x"], asked)


@pytest.mark.parametrize("jumps", KINDS, ids=str)
def test_its_own_loss_teaches_every_parameter(jumps):
    own = model(**jumps).mechanisms["x"]
    x, parents = torch.randn(32, 2), {"t": torch.randn(32)}
    sum(term.sum() for term in own.loss(x, parents).values()).backward()
    assert all(p.grad is not None for p in own.parameters())


def test_the_strength_is_heard():
    own = model(strength=1.0).mechanisms["x"]
    louder = copy.deepcopy(own)
    louder.strength = 3.0
    u, parents = draw(own.prior(), 8), {"t": torch.ones(8)}
    assert float((own(u, parents) - louder(u, parents)).detach().abs().max()) > 1e-4


def test_what_cannot_be_is_refused():
    body = Diffusion(X, [T], Denoiser(Timed(2, condition_width([T], 0), width=8), EDM()))
    with pytest.raises(ValueError, match="strength=0"):
        Consistency(body, strength=0)
    with pytest.raises(ValueError, match="rise from 0"):
        Consistency(body, edges=(0.2,))
    rows, parents = torch.randn(4, 2), {"t": torch.zeros(4)}
    thin = Consistency(body, inverse=_Thin())
    with pytest.raises(ValueError, match=r"inverse of 'x' gave \(4, 2\)"):
        thin.abduct(rows, parents)
    with pytest.raises(ValueError, match="condition=2"):  # a network that was not told where
        Consistency(body, edges=None).abduct(rows, parents)


class _Thin(nn.Module):
    def forward(self, x, noise, condition):
        return x


def test_the_residual_scale_is_the_likeliest():
    x, parents = data()
    mechanism = known()
    with torch.no_grad():
        best = min(
            (float(mechanism.rest(x, parents)["nll"].mean().detach()), s)
            for s in torch.linspace(-2, 1, 31).tolist()
            if mechanism.diffusion.log_scale.fill_(s) is not None
        )[1]
    assert best == pytest.approx(math.log(0.5 * math.sqrt(2)), abs=0.1)
