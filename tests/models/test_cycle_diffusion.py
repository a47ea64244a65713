"""CycleDiffusion: what is encoded comes back, and translation follows laws that are known."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from subjunctive.checks import check_model
from subjunctive.diffusion import DDIM, Ancestral, Cosine, Denoiser, Heun
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Categorical, Domains, translate
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.models import CycleDiffusion, with_sampler
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

DOMAIN = Variable("domain", kind="categorical", categories=("cat", "dog"))
IMAGE = Variable("x", (1, 8, 8), loc=0.5, scale=0.5)
GRAPH = Graph.parse("domain -> x")


def small(stir=0.1, **options):
    """A model of 8 x 8 images, weights stirred so that everything acts."""
    with seeded(0):
        variables = {"domain": DOMAIN, "x": IMAGE}
        model = CycleDiffusion(GRAPH, variables, width=8, multipliers=(1,), **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(stir * torch.randn_like(parameter))
    return model.eval()


# Encoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 200},
        {"steps": 30, "eta": 0.1, "start": 0.6},
        {"steps": 30, "shared": True, "guidance": 6.0},
    ],
    ids=["many steps", "from later on", "guided"],
)
def test_doing_nothing_returns_the_image_in_single_precision(options):
    model = small(0.2, **options)
    seen = {"domain": torch.arange(6) % 2, "x": torch.rand(6, 1, 8, 8)}
    again = counterfactual(model, seen, {"domain": seen["domain"]}, draws=2, seed=0)
    assert float((again.draws["x"] - seen["x"]).abs().max()) < 1e-4 * IMAGE.scale
    other = counterfactual(model, seen, {"domain": 1 - seen["domain"]}, seed=0)
    assert float((other["x"] - seen["x"]).abs().mean()) > 1e-3


def test_a_later_start_keeps_more_of_the_image():
    cat, dog = small(0.3, steps=20).mechanisms["x"].mechanisms
    x, moved = torch.randn(8, 1, 8, 8), []
    for start in (0.05, 0.4, 1.0):
        sampler = DDIM(Cosine(), 20, 1.0, start, 0.7)
        y = translate(with_sampler(cat, sampler), with_sampler(dog, sampler), x, seed=0)
        moved.append(float((y - x).abs().mean()))
    assert moved[0] < 0.2 * moved[1] < 0.2 * moved[2]


def test_another_sampler_or_guidance_shares_the_weights():
    model = small(0.3, steps=5, shared=True)
    plain = model.mechanisms["x"]
    strong = with_sampler(plain, Ancestral(Cosine(), 7), 3.0)
    assert (plain.sampler.steps, plain.guidance) == (5, 1.0)
    assert (strong.sampler.steps, strong.guidance) == (7, 3.0)
    assert strong.denoiser is plain.denoiser
    same = with_sampler(strong, guidance=2.0)
    assert (same.sampler, same.guidance) == (strong.sampler, 2.0)
    with torch.no_grad():
        plain.log_scale.fill_(-3.0)
    assert float(strong.log_scale.detach()) == -3.0


# Translation --------------------------------------------------------------------------------------


class Exact(nn.Module):
    """The denoiser of N(mean, variance) under a schedule of unit variance, no condition."""

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x, noise, condition):
        alpha2 = torch.sigmoid(4 * noise)[:, None]
        gain = alpha2.sqrt() * self.variance / (alpha2 * self.variance + 1 - alpha2)
        return self.mean + gain * (x - alpha2.sqrt() * self.mean)


def gaussian(mean, variance, sampler):
    network = Exact(mean, variance)
    denoiser = Denoiser(network, sampler.schedule)
    return Diffusion(Variable("x", (1,)), [], denoiser, sampler=sampler).double()


def line(mechanism):
    """A sampler of a Gaussian is linear in its noise: its constant and its slopes."""
    u = {k: torch.zeros(1, *d.event_shape, requires_grad=True, dtype=torch.float64)
         for k, d in mechanism.prior().items()}  # fmt: skip
    x = mechanism(u, {})
    return float(x.detach()), torch.cat(
        [g.flatten() for g in torch.autograd.grad(x, [*u.values()])]
    )


def test_deterministic_translation_of_gaussians_is_the_monotone_map():
    sampler = Heun(Cosine(1e-3), 200)
    cat, dog = gaussian(1.0, 0.25, sampler), gaussian(-2.0, 1.0, sampler)
    x = torch.linspace(-1, 3, 9).double()[:, None]
    assert torch.allclose(translate(cat, dog, x), -2 + (x - 1) / 0.5, atol=0.01)


def test_stochastic_translation_gives_the_target_and_couples_as_the_noise_says():
    """Given x the noise is Gaussian about its slope: y has slope a.b / a.a, and y's own law."""
    n, sampler = 3000, Ancestral(Cosine(), 150)
    cat, dog = gaussian(1.0, 0.25, sampler), gaussian(-2.0, 1.0, sampler)
    (_, a), (_, b) = line(cat), line(dog)
    with seeded(0):
        x = 1 + 0.5 * torch.randn(n, 1, dtype=torch.float64)
    y = translate(cat, dog, x, seed=1, batch_size=n)
    assert stats.kstest(y[:, 0].numpy(), stats.norm(-2, 1).cdf).pvalue > 1e-3
    slope = float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
    assert slope == pytest.approx(float(a @ b / (a @ a)), abs=5 * 2 / math.sqrt(n))
    assert slope > 0.5


class Points(nn.Module):
    """A denoiser of vectors."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(3 + width, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2)
        )

    def forward(self, x, noise, condition):
        return self.layers(torch.cat([x, noise[:, None], condition], 1))


def test_two_domains_learned_apart_are_joined_by_their_noise():
    """Domain b is domain a moved by (1.5, -1): nothing pairs rows, and the noise finds it."""
    x, shift = Variable("x", (2,)), torch.tensor([1.5, -1.0])
    with seeded(0):
        domain = torch.arange(1000) % 2
        points = torch.stack([torch.randn(1000), 0.3 * torch.randn(1000)], 1)
        points = points + torch.where(domain[:, None] == 1, shift, torch.zeros(2))
        models = [
            Diffusion(x, [], Denoiser(Points(condition_width([], 0)), Cosine(), "velocity"),
                      sampler=DDIM(Cosine(), 20, eta=0.5), anchor=0.05)
            for _ in "ab"
        ]  # fmt: skip
    both = Domains(x, [DOMAIN], "domain", models)
    model = SCM(GRAPH, {"domain": Categorical(DOMAIN), "x": both})
    data = {"domain": domain, "x": points}
    fit(model, data, steps=300, batch_size=128, lr=1e-2, ema=0.98, progress=False)
    seen = {"domain": torch.zeros(300).long(), "x": points[domain == 0][:300]}
    answer = counterfactual(model, seen, {"domain": "dog"}, seed=0)["x"]
    moved = answer - seen["x"]
    assert (moved.mean(0) - shift).abs().max() < 0.2
    assert torch.corrcoef(torch.stack([answer[:, 0], seen["x"][:, 0]]))[0, 1] > 0.9


# The recipe ---------------------------------------------------------------------------------------


def test_one_network_or_one_a_domain():
    apart, shared = small(steps=3), small(steps=3, shared=True)
    assert isinstance(apart.mechanisms["x"], Domains)
    assert isinstance(shared.mechanisms["x"], Diffusion)
    weights = [{id(p) for p in m.parameters()} for m in apart.mechanisms["x"].mechanisms]
    assert not weights[0] & weights[1]
    report = check_model(shared, Batch(shared.sample(32, seed=0)))
    assert report["composition"] == report["saved_and_loaded"] == "holds"


def test_labels_are_kept_and_every_node_has_a_mechanism(tmp_path):
    variables = {"domain": DOMAIN, "t": Variable("t", loc=2.0), "x": IMAGE}
    graph = Graph.parse("domain -> t; domain -> x; t -> x")
    model = CycleDiffusion(graph, variables, steps=3, width=8, multipliers=(1,))
    seen = model.sample(4, seed=0)
    assert [p.name for p in model.mechanisms["x"].mechanisms[0].parents] == ["t"]
    model.save(tmp_path / "model")
    first, second = (
        counterfactual(m, seen, {"domain": "dog"}, seed=1)
        for m in (model, load(tmp_path / "model"))
    )
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    ("graph", "options", "error", "said"),
    [
        ("domain -> x", {"eta": 0.0}, ValueError, r"eta=0.0; it must lie in \(0, 1\]"),
        ("domain -> x", {"domain": "domian"}, KeyError, "Did you mean 'domain'"),
        ("domain -> x", {"image": "y"}, KeyError, "unknown node 'y'"),
        ("x -> domain", {}, ValueError, "needs 'domain' among its parents, and no children"),
        ("domain -> t", {}, ValueError, "name it with image="),
    ],
)
def test_what_does_not_fit_is_told(graph, options, error, said):
    variables = {"domain": DOMAIN, "x": IMAGE, "t": Variable("t")}
    with pytest.raises(error, match=said):
        CycleDiffusion(Graph.parse(graph), variables, **options)
