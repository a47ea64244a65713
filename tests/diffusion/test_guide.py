import pytest
import torch
from torch.distributions import Normal

from subjunctive.diffusion import Cosine, guided, guided_together

ABSENT = torch.zeros(1, dtype=torch.float64)


def denoiser(x_t, t, condition):
    """E[x_0 | x_t, c] where x_0 ~ N(0, 1) and c = x_0 + N(0, 0.5^2); c = 0 says absent."""
    a, s = (f(t)[:, None] for f in (Cosine().alpha, Cosine().sigma))
    seen = (condition != 0).to(x_t)
    return (a * x_t / s**2 + seen * condition / 0.25) / (1 + a**2 / s**2 + seen / 0.25)


@pytest.mark.parametrize("weight", [0, 1, 0.3, 4.0, torch.tensor([0.0, 1.0, 2.5]).double()])
def test_guidance_is_the_score_of_the_tempered_density(weight):
    c = torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    x = torch.randn(3, 1, dtype=torch.float64).requires_grad_()
    a, s = Cosine().alpha(t)[:, None], Cosine().sigma(t)[:, None]
    marginal = Normal(0, (a**2 + s**2).sqrt()).log_prob(x)
    gain = a / (a**2 + s**2)  # c | x_t
    likelihood = Normal(gain * x, (1.25 - gain * a).sqrt()).log_prob(c)
    w = weight[:, None] if isinstance(weight, torch.Tensor) else weight
    (score,) = torch.autograd.grad((marginal + w * likelihood).sum(), x)
    exact = (x + s**2 * score) / a  # Tweedie

    two = guided(
        lambda x, t: denoiser(x, t, c), lambda x, t: denoiser(x, t, ABSENT.expand(3, 1)), weight
    )
    one = guided_together(denoiser, c, ABSENT, weight)
    torch.testing.assert_close(two(x, t), exact)
    torch.testing.assert_close(one(x, t), exact)


@pytest.mark.parametrize(("weight", "rows"), [(0, [3]), (1.0, [3]), (2.0, [6])])
def test_one_pass_and_no_more_rows_than_needed(weight, rows):
    seen = []

    def counting(x, t, condition):
        assert len(x) == len(t) == len(condition)
        seen.append(len(x))
        return x

    guided_together(counting, torch.ones(3, 1), torch.zeros(1), weight)(
        torch.zeros(3, 2), torch.full((3,), 0.5)
    )
    assert seen == rows


def test_at_the_ends_the_other_denoiser_rests():
    def refuse(x, t):
        raise RuntimeError("not needed")

    x, t = torch.ones(2, 1), torch.zeros(2)
    assert torch.equal(guided(torch.add, refuse, 1)(x, t[:, None]), x)
    assert torch.equal(guided(refuse, torch.add, 0.0)(x, t[:, None]), x)
