"""Latent SCMs by domain: closed forms, the canonical form, and what data do not tell."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Categorical, LatentSCM, canonical_form
from subjunctive.mechanisms.canonical import last
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn import Affine, Couplings, Leaky
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.variable import Variable

D = Variable("d", kind="categorical", categories=("a", "b", "c"))
X = Variable("x", (5,))


def model(intervened, *layers, stir=0.5):
    return stirred(LatentSCM(X, [D], layers, intervened), stir).double()


def bent():
    with seeded(1):
        mix = Affine.of(torch.randn(5, 5), torch.randn(5))
    return mix, Leaky(0.5), Affine(5), Couplings(5, steps=2, width=8)


def codes(k, rows):
    return {"d": torch.full((rows,), k)}


def maps(mechanism):
    """F_d and c_d of z = F_d u + c_d, by inverting matrices."""
    weights, bias, log_scale = (t.detach() for t in mechanism.equations())
    inverse = torch.linalg.inv(torch.eye(5).double() - weights)
    return inverse @ torch.diag_embed(log_scale.exp()), (inverse @ bias[:, :, None])[:, :, 0]


def test_a_linear_model_has_the_density_and_the_counterfactuals_of_its_closed_form():
    with seeded(0):
        mix, shift = torch.randn(5, 5).double(), torch.randn(5).double()
        x = torch.randn(20, 5).double()
    found = model((0, 3), Affine.of(mix, shift), stir=0.0)
    with seeded(2), torch.no_grad():
        found.own.normal_(std=0.5)
        found.shared.normal_(std=0.5)
    forward, offset = maps(found)
    for a in range(3):
        whole = mix @ forward[a]
        mean = mix @ offset[a] + shift
        expected = MultivariateNormal(mean, whole @ whole.T).log_prob(x)
        assert torch.allclose(found.log_prob(x, codes(a, 20)), expected, atol=1e-8)
        assert torch.equal(found.loss(x, codes(a, 20))["nll"], -found.log_prob(x, codes(a, 20)))
        u = found.abduct(x, codes(a, 20))
        assert torch.allclose(u, (x - mean) @ torch.linalg.inv(whole).T, atol=1e-8)
        for b in range(3):
            other = mix @ offset[b] + shift + u @ (mix @ forward[b]).T
            assert torch.allclose(found(u, codes(b, 20)), other, atol=1e-8)


@pytest.mark.parametrize("intervened", [(0, 1), (1, 3), (2,), (4, 0, 2), (3, 4), range(5)])
def test_the_canonical_form_is_the_same_model(intervened):
    first = model(intervened, *bent())
    form, k, x = canonical_form(first), len(intervened), torch.randn(30, 5).double()
    assert form.intervened == last(5, k)
    order = [i for i in range(5) if i not in intervened] + sorted(intervened)
    for a in range(3):
        given = codes(a, 30)
        assert torch.allclose(form.log_prob(x, given), first.log_prob(x, given), atol=1e-8)
        u, v = first.abduct(x, given), form.abduct(x, given)
        assert torch.allclose(v, u[:, order], atol=1e-8)
        for b in range(3):
            there = codes(b, 30)
            assert torch.allclose(form(v, there), first(u, there), atol=1e-7)
    weights, bias, log_scale = form.equations()
    for table in (weights, bias, log_scale):
        assert table[0].abs().max() < 1e-12  # the first domain's SCM is the identity,
        assert (table[:, : 5 - k].abs() < 1e-12).all()  # and everywhere that of the others
    assert weights[1:, 5 - k :].abs().sum() + log_scale[1:, 5 - k :].abs().sum() > 0.1


def test_the_canonical_form_is_its_own_and_shares_nothing():
    first = canonical_form(model((1, 3), *bent()))
    again, x = canonical_form(first), torch.randn(4, 5).double()
    assert torch.allclose(again.own, first.own, atol=1e-12)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert torch.allclose(first.log_prob(x, codes(1, 4)), first.log_prob(x, codes(1, 4)))
    assert not torch.equal(first.layers[1 - 1].shift, again.layers[1].shift)


def test_latents_outside_the_set_have_one_mechanism_whatever_is_learned():
    """Also after training on rows that differ between domains in every number."""
    sparse, dense = model((3, 4), *bent()), model(None, *bent())
    with seeded(0):
        x, site = torch.randn(300, 5).double(), torch.randint(3, (300,))
        x = x * (1 + site)[:, None] + site[:, None]
    for mechanism in (sparse, dense):
        optimiser = torch.optim.Adam(mechanism.parameters(), 0.05)
        for _ in range(10):
            optimiser.zero_grad()
            mechanism.loss(x, {"d": site})["nll"].mean().backward()
            optimiser.step()
    u = torch.randn(40, 5).double()
    sparse_z, dense_z = (
        torch.stack([m.latents(m(u, codes(a, 40)))[0] for a in range(3)]) for m in (sparse, dense)
    )
    assert torch.allclose(sparse_z[0, :, :3], sparse_z[2, :, :3], atol=1e-8)
    assert ((sparse_z[0, :, 3:] - sparse_z[2, :, 3:]).abs().mean(0) > 0.01).all()
    assert ((dense_z[0] - dense_z[2]).abs().mean(0) > 0.01).all()
    assert sparse.own.shape == (3, 3 + 4 + 2 * 2)  # weights of those before, biases, scales
    assert sparse.shared.shape == (0 + 1 + 2 + 2 * 3,)
    assert dense.own.shape == (3, 10 + 2 * 5)


def test_data_do_not_tell_the_basis_in_which_all_mechanisms_differ():
    """Two dense models with the same densities, whose counterfactuals are not the same."""
    first = model(None, Affine(5), stir=0.0)
    with seeded(3), torch.no_grad():
        first.own.normal_(std=0.7)
        turn = torch.linalg.qr(torch.randn(5, 5).double()).Q
    forward, offset = maps(first)
    other = model(None, Affine.of(turn.T, torch.zeros(5).double()), stir=0.0)
    turned = torch.linalg.cholesky(turn @ forward @ forward.mT @ turn.T)
    scale = turned.diagonal(dim1=1, dim2=2)
    undo = torch.diag_embed(scale) @ torch.linalg.inv(turned)
    bias = undo @ turn @ offset[:, :, None]
    table = torch.cat([torch.eye(5).double() - undo, bias, scale.log()[:, :, None]], 2)
    with torch.no_grad():
        other.own.copy_(table.flatten(1)[:, other.own_at])
    x, gaps = torch.randn(50, 5).double(), []
    for a in range(3):
        here = codes(a, 50)
        assert torch.allclose(first.log_prob(x, here), other.log_prob(x, here), atol=1e-7)
        y, z = (m(m.abduct(x, here), codes((a + 1) % 3, 50)) for m in (first, other))
        gaps.append((y - z).abs().mean().item())
    assert min(gaps) > 0.1


def test_a_domain_counterfactual_is_asked_of_the_model_and_saved(tmp_path):
    mechanism = model((1, 3), *bent()).float()
    scm = SCM(Graph.parse("d -> x"), {"d": Categorical(D), "x": mechanism})
    seen = scm.sample(60, seed=0)
    answer = counterfactual(scm, seen, {"d": "c"})["x"]
    assert torch.allclose(answer[seen["d"] == 2], seen["x"][seen["d"] == 2], atol=1e-4)
    u = mechanism.abduct(seen["x"], {"d": seen["d"]})
    assert torch.allclose(answer, mechanism(u, codes(2, 60)), atol=1e-5)
    save(canonical_form(mechanism), tmp_path / "form")
    again = load(tmp_path / "form")
    assert again.intervened == (3, 4)
    assert torch.equal(again.own, canonical_form(mechanism).own)


def test_without_a_domain_it_is_a_plain_flow_of_any_shape():
    picture = Variable("p", (1, 2, 2))
    plain = stirred(LatentSCM(picture, (), [Affine(4)]), 0.3)
    x = torch.randn(7, 1, 2, 2)
    u = plain.abduct(x, {})
    assert u.shape == x.shape
    assert torch.allclose(plain(u, {}), x, atol=1e-5)
    assert plain.own.shape[0] == 1


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"is its domain, categorical; got .*'t', 'continuous'"):
        LatentSCM(X, [Variable("t")])
    with pytest.raises(ValueError, match=r"is its domain, categorical; got .*'d'.*'e'"):
        LatentSCM(X, [D, D.rename("e")])
    for wrong in ((5,), (-1,), (2, 2)):
        with pytest.raises(ValueError, match="has latents 0 to 4, each to be named once"):
            LatentSCM(X, [D], intervened=wrong)
    with pytest.raises(ValueError, match="k is 6; of 5 latents 1 to 5 may differ"):
        last(5, 6)
    with pytest.raises(ValueError, match="needs a continuous node"):
        LatentSCM(D, [])
    with pytest.raises(KeyError, match="needs its parent 'd'"):
        model((1,)).abduct(torch.zeros(2, 5).double(), {})
