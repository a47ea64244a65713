"""Domains: rows go to their own mechanism, and translation is a counterfactual."""

import pytest
import torch

from subjunctive.checks import check_model
from subjunctive.checks.law import claim
from subjunctive.diffusion import DDIM, Cosine, Denoiser
from subjunctive.graph import Graph
from subjunctive.mechanisms import AdditiveNoise, Categorical, Domains, LinearGaussian, translate
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn import UNet
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.variable import Variable

X, T = Variable("x", loc=5.0, scale=2.0), Variable("t")
SITE = Variable("site", kind="categorical", categories=("a", "b", "c"))


def three():
    every = [LinearGaussian.of(X, [T], [w], b, s) for w, b, s in
             ((1.0, 0.0, 1.0), (-1.0, 2.0, 0.5), (0.0, -3.0, 2.0))]  # fmt: skip
    return Domains(X, [T, SITE], "site", every)


def test_each_row_is_made_and_explained_by_its_own_domain():
    both, t, u = three(), torch.randn(50), torch.randn(50)
    site = torch.randint(3, (50,))
    x = both(u, {"t": t, "site": site})
    expected = torch.stack([t + u, -t + 2 + u / 2, -3 + 2 * u])[site, torch.arange(50)]
    assert torch.allclose(x, expected, atol=1e-6)
    assert torch.allclose(both.abduct(x, {"t": t, "site": site}), u, atol=1e-5)
    loss = both.loss(x, {"t": t, "site": site})
    assert loss.keys() == {"nll"}
    for k, mechanism in enumerate(both.mechanisms):
        mine = site == k
        own = mechanism.loss(x[mine], {"t": t[mine]})
        assert torch.allclose(loss["nll"][mine], own["nll"], atol=1e-5)


def test_a_term_that_a_mechanism_lacks_is_zero_in_its_rows():
    class Named(LinearGaussian):
        def loss(self, x, parents):
            return {"other": 1 + 0 * x, **super().loss(x, parents)}

    both = Domains(X, [SITE], "site", [LinearGaussian(X), Named(X), LinearGaussian(X)])
    loss = both.loss(torch.randn(4), {"site": torch.tensor([0, 1, 2, 1])})
    assert loss["other"].tolist() == [0, 1, 0, 1]
    assert bool((loss["nll"] > 0).all())


def test_translation_is_the_counterfactual_of_the_domain():
    mechanism = three()
    model = SCM(
        Graph.parse("t -> x; site -> x"),
        {"t": LinearGaussian(T), "site": stirred(Categorical(SITE), 0.5), "x": mechanism},
    )
    seen = model.sample(200, seed=0)
    assert check_model(model, seen)["rungs_agree"] == "holds"
    answer = counterfactual(model, seen, {"site": "b"})["x"]
    for k, source in enumerate(mechanism.mechanisms):
        mine = seen["site"] == k
        inner = X.standardise(seen["x"][mine])
        other = translate(source, mechanism.mechanisms[1], inner, {"t": seen["t"][mine]})
        assert torch.allclose(X.restore(other), answer[mine], atol=1e-4)


def test_it_is_as_exact_as_its_least_exact_mechanism():
    denoiser = Denoiser(UNet(1, condition=1, width=8, size=8), Cosine())
    x = Variable("x", (1, 8, 8))
    blurred = Diffusion(x, [], denoiser, sampler=DDIM(Cosine(), 3, eta=1.0))
    site = Variable("site", kind="categorical", categories=("a", "b"))
    assert claim(Domains(x, [site], "site", [blurred, blurred]))[0] == "approximate"
    assert claim(three())[0] == Domains.card.abduction == "exact"


def test_mechanisms_of_different_classes_share_noise():
    both = Domains(X, [SITE], "site", [LinearGaussian(X), AdditiveNoise(X), LinearGaussian(X)])
    assert both.loss(torch.randn(6), {"site": torch.arange(6) % 3})["nll"].shape == (6,)


def test_what_does_not_fit_is_told():
    a = LinearGaussian(X)
    with pytest.raises(KeyError, match=r"unknown node 'sit'; .* Did you mean 'site'"):
        Domains(X, [SITE], "sit", [a, a, a])
    with pytest.raises(ValueError, match="it is categorical with 3 categories, and there are 2"):
        Domains(X, [SITE], "site", [a, a])
    with pytest.raises(ValueError, match="it is continuous with 0 categories, and there are 1"):
        Domains(X, [T], "t", [a])
    other = LinearGaussian(Variable("x", loc=4.0, scale=2.0))
    with pytest.raises(ValueError, match=r"site='b' is built for .*loc=4.0.* one Variable for all"):
        Domains(X, [SITE], "site", [a, other, a])
    with pytest.raises(KeyError, match="unknown node 't'"):
        Domains(X, [SITE], "site", [a, LinearGaussian(X, [T]), a])
    with pytest.raises(KeyError, match="needs its parent 'site'"):
        Domains(X, [SITE], "site", [a, a, a])(torch.zeros(2), {})


@pytest.mark.parametrize(
    "change", [{"start": 0.5}, {"schedule": Cosine(0.01)}, {"sigma_data": 2.0}]
)
def test_noise_of_other_times_is_refused(change):
    x = Variable("x", (1, 8, 8))
    options = {"schedule": Cosine(), "steps": 4, "eta": 1.0}
    a, b = (
        Diffusion(x, [], Denoiser(UNet(1, condition=1, width=8), Cosine()), sampler=DDIM(**o))
        for o in (options, options | change)
    )
    with pytest.raises(ValueError, match="of other times than that of the second"):
        translate(a, b, torch.zeros(1, 1, 8, 8))
    fewer = Diffusion(x, [], a.denoiser, sampler=DDIM(Cosine(), 3, eta=1.0))
    with pytest.raises(ValueError, match=r"'steps': \(4, 1, 8, 8\).*'steps': \(3, 1, 8, 8\)"):
        translate(a, fewer, torch.zeros(1, 1, 8, 8))


def test_translation_in_batches_with_a_seed_leaves_the_generator():
    x = Variable("x", (1, 8, 8))
    denoiser = Denoiser(UNet(1, condition=1, width=8, size=8), Cosine())
    cat, dog = (Diffusion(x, [], denoiser, sampler=DDIM(Cosine(), 3, eta=1.0)) for _ in "ab")
    dog.train()
    images, state = torch.rand(5, 1, 8, 8), torch.get_rng_state()
    first = translate(cat, dog, images, seed=3, batch_size=2)
    assert torch.equal(first, translate(cat, dog, images, seed=3, batch_size=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first - images).abs().max() < 1e-4  # the same denoiser: nothing changes
    assert dog.training
    assert not first.requires_grad
