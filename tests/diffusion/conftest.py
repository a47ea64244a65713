"""Data whose denoiser is known: mixtures of Gaussians with diagonal covariances."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from subjunctive.diffusion import EDM, Cosine, RectifiedFlow, VPLinear
from subjunctive.diffusion.denoise import column


@dataclass(frozen=True)
class Mixture:
    """sum_k weight_k N(mean_k, diag(std_k^2)), float64 within."""

    weight: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def gaussian(cls, mean, std):
        return cls(
            torch.ones(1).double(), torch.tensor([mean]).double(), torch.tensor([std]).double()
        )

    def sample(self, n):
        k = torch.multinomial(self.weight, n, replacement=True)
        return self.mean[k] + self.std[k] * torch.randn(n, self.mean.shape[1], dtype=torch.float64)

    def denoiser(self, schedule):
        """E[x_0 | x_t] by Bayes' rule."""

        def denoise(x, t):
            assert t.shape == x.shape[:1]
            dtype, x = x.dtype, x.double()
            a, s = (column(f(t.double()), x[:, None]) for f in (schedule.alpha, schedule.sigma))
            variance = (a * self.std) ** 2 + s**2
            away = x[:, None] - a * self.mean
            log = self.weight.log() - (away**2 / variance + variance.log()).sum(-1) / 2
            means = self.mean + a * self.std**2 / variance * away
            return (log.softmax(1)[..., None] * means).sum(1).to(dtype)

        return denoise


MIXTURE = Mixture(
    torch.tensor([0.3, 0.3, 0.4]).double(),
    torch.tensor([[1.2, 0.3], [-0.8, 0.9], [-0.4, -1.2]]).double(),
    torch.tensor([[0.4, 0.2], [0.3, 0.3], [0.2, 0.5]]).double(),
)


@pytest.fixture
def mixture():
    return MIXTURE


@pytest.fixture
def gaussian():
    return Mixture.gaussian


@pytest.fixture(
    params=[VPLinear(), Cosine(), RectifiedFlow(), EDM()], ids=lambda s: type(s).__name__
)
def schedule(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
