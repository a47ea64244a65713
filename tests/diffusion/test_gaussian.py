"""Gaussian data: the closed forms against Bayes' rule, integration and a dense covariance."""

import pytest
import torch

from subjunctive.diffusion import DDIM, EDM, Cosine, GaussianData, HeadStart, Heun, Multistep, plane
from subjunctive.mechanism import seeded
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.store import load, save

by_name = {"ids": lambda s: type(s).__name__}


@pytest.fixture
def data():
    with seeded(0):
        basis = torch.linalg.qr(torch.randn(6, 2).double()).Q.T
        return GaussianData(torch.randn(6).double(), basis, torch.tensor([2.0, 0.7]).double(), 0.1)


def covariance(data):
    b = data.basis.flatten(1)
    rest = torch.eye(b.shape[1]).double() - b.T @ b
    return b.T @ torch.diag(data.variance) @ b + data.rest * rest


def test_the_denoiser_is_bayes_rule_with_the_whole_covariance(data, schedule):
    x, t = torch.randn(9, 6).double(), torch.rand(9).double()
    found = data.denoise(schedule)(x, t)
    c, eye = covariance(data), torch.eye(6).double()
    for row, at, d in zip(x, t, found, strict=True):
        a, s = schedule.alpha(at), schedule.sigma(at)
        gain = a * c @ torch.linalg.inv(a**2 * c + s**2 * eye)
        torch.testing.assert_close(d, data.mean + gain @ (row - a * data.mean))


@pytest.mark.parametrize("schedule", [Cosine(0.05), EDM(0.05, 20.0)], **by_name)
def test_the_closed_form_is_what_integration_of_the_ode_gives(data, schedule):
    sampler = Heun(schedule, 1, start=0.9)
    noise = {"start": torch.randn(20, 6).double()}
    (first, last) = sampler.levels()
    exact = data.carry(first.scale * noise["start"], first, last) / last.alpha
    integrated = Multistep(schedule, 800, start=0.9)(data.denoise(schedule), noise)
    assert (integrated - exact).abs().max() < 1e-4
    x = exact * last.alpha
    back = data.carry(x, last, first) / first.scale
    torch.testing.assert_close(back, noise["start"], rtol=0, atol=1e-6)


def test_the_flow_carries_one_marginal_to_the_other(data, schedule):
    """A linear map A with A S_t A^T = S_s, read off its action on a basis."""
    t, s = DDIM(schedule, 1, start=0.6).levels()
    eye = torch.eye(6).double()
    moved = data.carry(eye + t.alpha * data.mean, t, s) - s.alpha * data.mean
    before, after = (q.alpha**2 * covariance(data) + q.sigma**2 * eye for q in (t, s))
    torch.testing.assert_close(moved.T @ before @ moved, after)


@pytest.mark.parametrize("rank", [0, 2, 5, None])
def test_fitted_rows_are_probabilistic_pca(rank):
    x = torch.randn(200, 2, 3).double() @ torch.randn(3, 3).double() + 1
    data = GaussianData.of(x, rank)
    assert data.basis.shape == (6 if rank is None else rank, 2, 3)
    flat = x.flatten(1)
    torch.testing.assert_close(data.mean.flatten(), flat.mean(0))
    whole, c = torch.cov(flat.T, correction=0), covariance(data)
    torch.testing.assert_close(c.trace(), whole.trace())
    kept = data.basis.flatten(1)
    torch.testing.assert_close(kept @ c @ kept.T, kept @ whole @ kept.T)
    if rank is None:
        torch.testing.assert_close(c, whole)


def test_fewer_rows_than_numbers_leave_the_other_directions_bare():
    data = GaussianData.of(torch.randn(5, 1, 4, 4))
    assert data.basis.shape == (4, 1, 4, 4)
    assert data.rest == pytest.approx(0, abs=1e-9)


def test_a_head_start_is_the_whole_way_of_gaussian_data(data):
    denoise, noise = data.denoise(Cosine()), {"start": torch.randn(20, 6).double()}
    whole = Multistep(Cosine(), 600)(denoise, noise)
    calls = []

    def counted(x, t):
        calls.append(float(t[0]))
        return denoise(x, t)

    short = HeadStart(Multistep(Cosine(), 300, start=0.3), data)(counted, noise)
    assert (short - whole).abs().max() < 1e-3
    assert len(calls) == 300
    assert max(calls) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "build",
    [
        lambda **how: DDIM(Cosine(), 8, refine=30, **how),
        lambda **how: DDIM(Cosine(), 8, eta=0.5, **how),
        lambda **how: Multistep(Cosine(), 8, refine=20, sweeps=20, **how),
    ],
    ids=["DDIM", "stochastic", "multistep"],
)
def test_it_is_undone_whatever_the_data_are(build, data, mixture):
    plain = GaussianData(torch.tensor([0.3, -0.2]), torch.eye(2), torch.tensor([0.5, 0.7]), 0.0)
    sampler, denoise = HeadStart(build(start=0.6), plain), mixture.denoiser(Cosine())
    x = mixture.sample(50).float()
    noise = sampler.invert(denoise, x)
    assert {k: v.shape[1:] for k, v in noise.items()} == sampler.noise_shape((2,))
    assert (sampler(denoise, noise) - x).abs().max() < 1e-4


def test_the_plane_of_a_path_is_that_of_its_ends():
    data = GaussianData(torch.zeros(5), torch.eye(5)[:1], torch.tensor([1.0]), 0.0)
    levels = DDIM(Cosine(), 20).levels()
    x = levels[0].scale * torch.randn(4, 5)
    path = torch.stack([data.carry(x, levels[0], level) for level in levels])
    assert plane(path).min() > 0.9999
    assert plane(torch.randn(20, 4, 5)).max() < 0.9


def test_it_is_saved_with_its_data(tmp_path):
    model, batch = HeadStart.card.example()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert isinstance(again, Diffusion)
    assert torch.equal(again.sampler.data.basis, model.sampler.data.basis)
    assert again.sampler.sampler.start == model.sampler.sampler.start
    parents = {"t": batch.values["t"]}
    u = model.abduct(batch.values["x"], parents)
    assert torch.equal(again(u, parents), model(u, parents))


def test_what_does_not_fit_is_named(data):
    with pytest.raises(ValueError, match=r"a basis of shape \(2, 6\) and variances of shape \(1,"):
        GaussianData(data.mean, data.basis, data.variance[:1], 0.1)
    with pytest.raises(ValueError, match="orthonormal directions"):
        GaussianData(data.mean, 2 * data.basis, data.variance, 0.1)
    with pytest.raises(ValueError, match=r"rest=-1.0; a variance is 0 or more"):
        GaussianData(data.mean, data.basis, data.variance, -1.0)
    with pytest.raises(ValueError, match="5 rows of 3 numbers and rank=4"):
        GaussianData.of(torch.randn(5, 3), rank=4)
    with pytest.raises(ValueError, match=r"begins at 1.0 and its sampler at start=1.0"):
        HeadStart(DDIM(Cosine()), data)
    with pytest.raises(ValueError, match=r"path of shape \(2, 3, 4\)"):
        plane(torch.zeros(2, 3, 4))
