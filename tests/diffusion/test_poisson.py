"""The Poisson kernel: its radius, its density, its Gaussian limit, and where its field leads."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Chi2, MultivariateNormal

from subjunctive.diffusion import DDIM, EDM, Denoiser, Heun, PoissonKernel, RectifiedFlow
from subjunctive.diffusion.denoise import column

POINTS = torch.tensor([[1.5, 0.0, 0.3], [-1.0, 0.8, 0.0], [-0.2, -1.4, -0.5]]).double()
SHARES = torch.tensor([0.2, 0.3, 0.5]).double()


def kernel(n, d):
    return PoissonKernel(torch.zeros(n, dtype=torch.float64), d)


def beta_radius(n, d):
    """The distribution of R^2 / (R^2 + D)."""
    return stats.beta(n / 2, d / 2)


def share(e, d):
    square = e.flatten(1).square().sum(1)
    return (square / (square + d)).numpy()


def on_points(schedule, d):
    """E[y | x_t] for data that are a few points, weighed by the kernel as the paper writes it."""

    def denoise(x, t):
        a, s = (column(f(t.double()), x) for f in (schedule.alpha, schedule.sigma))
        gap = (x.double()[:, None] - a[..., None] * POINTS).square().sum(-1)
        r_square = s.square() * d
        log = -(x.shape[1] + d) / 2 * torch.log(gap + r_square) if math.isfinite(d) else None
        log = -gap / (2 * s.square()) if log is None else log
        return ((SHARES.log() + log).softmax(1) @ POINTS).to(x.dtype)

    return denoise


# The kernel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1.0, 16.0, 2048.0])
@pytest.mark.parametrize("shape", [(), (3,), (1, 8, 8)])
def test_the_radius_has_the_closed_forms_distribution(shape, d):
    zero = torch.zeros(shape, dtype=torch.float64)
    e = PoissonKernel(zero, d).sample((20_000,))
    n = zero.numel()
    assert e.shape == (20_000, *shape)
    found = share(e.reshape(len(e), -1), d)
    assert stats.kstest(found, beta_radius(n, d).cdf).pvalue > 1e-3
    first = e.reshape(len(e), -1)[:, 0]
    assert stats.kstest(first.numpy(), stats.t(d).cdf).pvalue > 1e-3
    if d > 2:
        assert float(first.std()) == pytest.approx(math.sqrt(d / (d - 2)), rel=0.05)


def test_a_radius_without_the_beta_trick_is_rejected():
    """Gaussian noise, a fixed radius, or a gamma drawn for every entry: none is the kernel's."""
    n, d = 64, 16.0
    z = torch.randn(20_000, n, dtype=torch.float64)
    entries = z / (Chi2(torch.full((n,), d).double()).sample((20_000,)) / d).sqrt()
    for twin in (z, z / z.norm(dim=1, keepdim=True) * math.sqrt(n), entries):
        assert stats.kstest(share(twin, d), beta_radius(n, d).cdf).pvalue < 1e-9
    direction = kernel(n, d).sample((20_000,))
    direction = direction / direction.norm(dim=1, keepdim=True)
    assert (direction.T @ direction / 20_000 * n - torch.eye(n)).abs().max() < 0.06


@pytest.mark.parametrize("d", [1.0, 5.5, 128.0])
def test_the_density_is_the_papers_kernel_and_sums_to_one(d):
    e = 3 * torch.randn(50, 4, dtype=torch.float64)
    exact = stats.multivariate_t(torch.zeros(4).numpy(), torch.eye(4).numpy(), df=d)
    found = kernel(4, d).log_prob(e)
    torch.testing.assert_close(found, torch.from_numpy(exact.logpdf(e.numpy())))
    r, sigma = 0.7 * math.sqrt(d), 0.7
    paper = -(4 + d) / 2 * torch.log((sigma * e).square().sum(1) + r**2)
    assert float((found - paper).std()) < 1e-10
    line = kernel(1, d)
    mass, _ = integrate.quad(
        lambda v: math.exp(line.log_prob(torch.tensor([[v]]).double())), -math.inf, math.inf
    )
    assert mass == pytest.approx(1, abs=1e-7)


def test_many_dimensions_are_a_gaussian():
    normal = MultivariateNormal(torch.zeros(9).double(), torch.eye(9).double())
    z = torch.randn(500, 9, dtype=torch.float64)
    gaps = []
    for d in (1e2, 1e4, 1e6, math.inf):
        density = kernel(9, d)
        gaps.append(float((density.log_prob(z) - normal.log_prob(z)).abs().max()))
        assert float((density.spread(z) - z).norm(dim=1).max()) <= 40 / math.sqrt(d)
    assert gaps[0] > 30 * gaps[1] > 900 * gaps[2]
    assert gaps[2] < 1e-3
    assert gaps[3] < 1e-12
    assert kernel(9, math.inf).spread(z) is z


def test_a_wrong_number_of_dimensions_is_named():
    for d in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="number of further dimensions is positive"):
            kernel(2, d)


# Its field ---------------------------------------------------------------------------------------


def test_the_estimate_on_points_minimises_the_denoising_objective():
    """E |D - y|^2 over pairs is least at the kernel's posterior mean, not at the Gaussian one's."""
    schedule, d, n = EDM(), 4.0, 40_000
    t = torch.full((n,), 0.36, dtype=torch.float64)
    y = POINTS[torch.multinomial(SHARES, n, replacement=True)]
    x = y + schedule.sigma(t)[:, None] * kernel(3, d).sample((n,))

    def errors(asked):
        return (on_points(schedule, asked)(x, t) - y).square().sum(1)

    for wrong in (1.0, math.inf):
        gap = errors(wrong) - errors(d)
        assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(n)


@pytest.mark.parametrize("d", [3.0, 64.0])
@pytest.mark.parametrize(("sampler", "steps"), [(Heun, 60), (DDIM, 400)])
def test_the_field_ends_on_the_data_in_their_proportions(d, sampler, steps):
    """What is left beside the points is the last level's noise; Gaussian starts leave another."""
    schedule = EDM(0.002, 80.0)

    def ends(start):
        found = sampler(schedule, steps)(on_points(schedule, d), {"start": start})
        away = found[:, None] - POINTS
        nearest = away.norm(dim=2).argmin(1)
        counts = torch.bincount(nearest, minlength=3).double()
        left = away[torch.arange(3000), nearest] / 0.002
        right = stats.kstest(share(left, d), beta_radius(3, d).cdf).pvalue
        return left, stats.chisquare(counts.numpy(), 3000 * SHARES.numpy()).pvalue, right

    left, proportions, right = ends(kernel(3, d).sample((3000,)))
    assert float((0.002 * left.norm(dim=1) < 0.02).double().mean()) > 0.98
    assert proportions > 1e-3
    assert right > 1e-3
    twin = ends(torch.randn(3000, 3, dtype=torch.float64))[2]
    assert (twin < 1e-6) == (d == 3.0)  # at 64 the two are nearly the same


def test_on_the_way_it_has_the_kernels_marginals():
    """At every level the ODE's x_t is distributed as data plus noise, on another schedule, too."""
    schedule, d = RectifiedFlow(), 3.0
    denoise, seen = on_points(schedule, d), {}

    def noted(x, t):
        seen[float(t[0])] = x
        return denoise(x, t)

    DDIM(schedule, steps=200)(noted, {"start": kernel(3, d).sample((4000,))})
    for time in (0.75, 0.5, 0.25):
        t = min(seen, key=lambda s: abs(s - time))
        y = POINTS[torch.multinomial(SHARES, 4000, replacement=True)]
        a, s = (float(f(torch.tensor(t))) for f in (schedule.alpha, schedule.sigma))
        drawn = a * y + s * kernel(3, d).sample((4000,))
        for way in torch.eye(3, dtype=torch.float64):
            assert stats.ks_2samp((seen[t] @ way).numpy(), (drawn @ way).numpy()).pvalue > 1e-3


def test_many_dimensions_give_the_diffusions_samples():
    schedule = EDM(0.002, 80.0)
    z = torch.randn(400, 3, dtype=torch.float64)
    heun = Heun(schedule, steps=40)
    gaussian = heun(on_points(schedule, math.inf), {"start": z})
    d = 1e7
    poisson = heun(on_points(schedule, d), {"start": kernel(3, d).spread(z)})
    same = (poisson - gaussian).norm(dim=1) < 1e-2
    assert float(same.double().mean()) >= 0.99  # a start beside a border may fall to its other side


def test_a_denoiser_learns_from_the_noise_it_is_given():
    with torch.no_grad():
        denoiser = Denoiser(torch.nn.Identity(), EDM())
    denoiser.forward = lambda x_t, t, condition=None: x_t
    e = kernel(3, 5.0).sample((8,))
    t = torch.rand(8, dtype=torch.float64)
    expected = denoiser.weight(t) * EDM().sigma(t).square() * e.square().mean(1)
    torch.testing.assert_close(denoiser.loss(POINTS[:1].expand(8, 3), t=t, noise=e), expected)
