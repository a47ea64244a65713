"""A first stage refined: what each stage is told, what each learns, and what is refused."""

import pytest
import torch

from subjunctive.diffusion import DDIM, Cosine
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import VAE, LinearGaussian, Refined
from subjunctive.mechanisms.linear import stirred
from subjunctive.variable import Variable

X, T = Variable("x", (1, 8, 8)), Variable("t")


def build(formulation="residual", sampler=None, **changed):
    with seeded(0):
        first = VAE.of(X, [T], latent=3, widths=(8, 8))
        refined = Refined.of(first, sampler, formulation, width=8, multipliers=(1,))
    refined = stirred(refined)
    for name, value in changed.items():
        setattr(refined, name, value)
    return refined


@pytest.fixture
def rows():
    with seeded(1):
        return torch.randn(6, 1, 8, 8), {"t": torch.randn(6)}


@pytest.mark.parametrize("formulation", ["residual", "conditioned"])
def test_the_refiner_makes_what_the_formulation_says(formulation, rows):
    refined, (_, parents) = build(formulation, DDIM(Cosine(), 3)), rows
    u = draw(refined.prior(), 6)
    vae = refined.first
    x_hat = vae.likelihood.mean(vae.decode(u["first"]["z"], parents))
    made = refined.refiner(u["refiner"], {**parents, "expected x": x_hat})
    expected = made + x_hat if formulation == "residual" else made
    torch.testing.assert_close(refined(u, parents), expected)
    assert not torch.allclose(
        made, refined.refiner(u["refiner"], {**parents, "expected x": 0 * x_hat})
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_abduction_is_as_exact_as_the_samplers(eta, rows):
    refined, (x, parents) = build(sampler=DDIM(Cosine(), 12, eta=eta, refine=60)), rows
    u = refined.abduct(x, parents)
    assert "residual" not in u["first"]
    torch.testing.assert_close(refined(u, parents), x, atol=1e-4, rtol=0)


def moved(refined, rows):
    """Names of the stages that a step of the loss would move."""
    refined.zero_grad()
    terms = refined.loss(*rows)
    torch.stack(list(terms.values())).sum().backward()
    stages = {"first": refined.first, "refiner": refined.refiner}
    told = {k for k, m in stages.items() if any(p.grad is not None for p in m.parameters())}
    return told, {k.split(".")[0] for k in terms}


def test_a_frozen_first_stage_has_no_terms_and_does_not_move(rows):
    refined = build()
    assert moved(refined, rows) == ({"first", "refiner"}, {"first", "refiner"})
    refined.first.requires_grad_(False)
    assert moved(refined, rows) == ({"refiner"}, {"refiner"})


def test_the_refiners_loss_teaches_the_first_stage_only_if_asked(rows):
    for through in (False, True):
        refined = build(through=through)
        terms = refined.loss(*rows)
        own = sum(t.sum() for k, t in terms.items() if k.startswith("refiner."))
        weight = next(refined.first.decoder.parameters())
        (slope,) = torch.autograd.grad(own, weight, allow_unused=True)
        assert (slope is not None and bool(slope.abs().sum() > 0)) == through


def test_jitter_blurs_what_the_refiner_sees_in_training_alone(rows):
    x, parents = rows
    refined = build(jitter=5.0)
    told = []
    refined.refiner.register_forward_pre_hook(lambda _, args: told.append(args[1]["expected x"]))
    u = draw(refined.prior(), 6)
    refined(u, parents)
    torch.testing.assert_close(told[0], refined.x_hat(u, parents))
    with seeded(3):
        plain = build(jitter=0.0).loss(x, parents)
    with seeded(3):
        assert not torch.allclose(refined.loss(x, parents)["refiner.nll"], plain["refiner.nll"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Refined.of(LinearGaussian(X, [T])), "needs a latent part"),
        (lambda: Refined.of(VAE(Variable("y", (3,)))), "Refined.of makes images"),
        (lambda: build("residul"), "Did you mean 'residual'"),
        (lambda: Refined(build().first, build().refiner, jitter=-1.0), "jitter=-1.0"),
        (lambda: Refined(build().first, build().first), "needs the first stage's"),
        (lambda: Refined(build().first, LinearGaussian(Variable("z", (2,)))), "refiner makes 'z'"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_first_stage_of_another_kind_says_what_it_expects(rows):
    _, parents = rows

    own = VAE.of(X, [T], latent=3, widths=(8, 8))
    own.infer = lambda x, pa: {"z": own.posterior(x, pa).mean}
    own.expect = lambda u, pa: torch.full((len(u["z"]), *X.shape), 0.25)
    refined = Refined.of(own, DDIM(Cosine(), 2), "conditioned", width=8, multipliers=(1,))
    u = draw(refined.prior(), 6)
    assert torch.equal(refined.x_hat(u, parents), torch.full((6, 1, 8, 8), 0.25))
