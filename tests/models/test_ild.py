"""ILD: its three forms, its query, and a case whose counterfactuals the data determine."""

import pytest
import torch

from subjunctive.data import LatentDomains
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import Domains, LatentSCM, LinearGaussian
from subjunctive.models import ILD, CausalDiffAE, every_domain
from subjunctive.nn import Affine, Couplings
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Variable

GRAPH = Graph.parse("domain -> x")
VARIABLES = {
    "domain": Variable("domain", kind="categorical", categories=("cat", "dog", "cow")),
    "x": Variable("x", (4,), loc=1.0, scale=2.0),
}


def test_the_three_forms():
    sparse, dense, independent = (
        ILD(GRAPH, VARIABLES, width=8, couplings=2, **how).mechanisms["x"]
        for how in ({"k": 1}, {"k": None}, {"shared": False})
    )
    assert (sparse.intervened, dense.intervened) == ((3,), (0, 1, 2, 3))
    assert [type(layer) for layer in sparse.layers] == [Affine, Couplings, Affine]
    assert isinstance(independent, Domains)
    assert [type(m) for m in independent.mechanisms] == [LatentSCM] * 3
    own = [p for p in independent.parameters() if p.numel()]
    assert len({p.data_ptr() for p in own}) == len(own)  # nothing is joined
    numbers = [sum(p.numel() for p in m.parameters()) for m in (sparse, dense)]
    assert numbers[1] - numbers[0] == 2 * (0 + 1 + 2 + 2 * 3)  # twice more, for three domains


def test_given_layers_are_copied_for_each_domain():
    start = Affine.of(torch.full((4, 4), 0.1) + torch.eye(4), torch.zeros(4))
    for shared in (True, False):
        node = ILD(GRAPH, VARIABLES, k=2, shared=shared, layers=[start]).mechanisms["x"]
        own = [node] if shared else node.mechanisms
        held = [m.layers[0].unmix for m in own]
        assert all(torch.equal(w, start.unmix) for w in held)
        assert len({w.data_ptr() for w in [*held, start.unmix]}) == len(held) + 1


def test_every_domain_is_asked_from_one_noise():
    model, _ = ILD.card.example()
    seen = model.sample(50, seed=1)
    answers = every_domain(model, seen, seed=0)
    assert list(answers) == ["cat", "dog"]
    for code, (name, answer) in enumerate(answers.items()):
        alone = counterfactual(model, seen, {"domain": name})
        assert torch.equal(answer["x"], alone["x"])
        assert (answer["domain"] == code).all()
        own = seen["domain"] == code
        assert torch.allclose(answer["x"][own], seen["x"][own], atol=1e-4)
        assert (answer["x"][~own] - seen["x"][~own]).abs().mean() > 0.01
    with pytest.raises(KeyError, match=r"unknown node 'domian'; .* Did you mean 'domain'"):
        every_domain(model, seen, "domian")
    with pytest.raises(ValueError, match="'x' is continuous: it names no domains"):
        every_domain(model, seen, "x")


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="ILD needs a graph 'domain -> x'; this one is"):
        ILD(Graph.parse("domain -> x -> y"), VARIABLES)
    with pytest.raises(ValueError, match="k is 5; of 4 latents 1 to 4"):
        ILD(GRAPH, VARIABLES, k=5)
    with pytest.raises(ValueError, match="needs a continuous node"):
        ILD(Graph.parse("x -> domain"), VARIABLES)


@pytest.fixture(scope="module")
def truth():
    return LatentDomains(2, latents=2, intervened=(1,), slope=1.0, train=4000, test=500, seed=4)


@pytest.mark.parametrize("k", [1, None])
def test_one_intervened_latent_of_two_is_found_where_the_dense_form_is_not(truth, k):
    """A Gaussian in two domains: along one line alone do mean and variance stay the same.

    That line is the latent that no domain changes, and so the canonical form has one solution; the
    dense one fits as well, in any basis.
    """
    with seeded(0):
        start = Affine.of(torch.randn(2, 2) + 2 * torch.eye(2), torch.zeros(2))
        model = ILD(truth.graph, truth.variables, k=k, layers=[start])
    fit(model, truth.train.only(truth.graph.nodes), steps=500, batch_size=512, lr=3e-2, seed=0,
        ema=0.98, progress=False)  # fmt: skip
    seen, noise = truth.test.only(truth.graph.nodes), truth.oracle.abduct(truth.test)
    answers = every_domain(model, seen)
    gap = torch.cat(
        [
            (answers[d]["x"] - truth.oracle.predict(noise, {"domain": d})["x"])[
                truth.test.values["domain"] != code
            ]
            for code, d in enumerate(answers)
        ]
    ).abs().mean() / truth.variables["x"].scale  # fmt: skip
    assert gap < 0.03 if k else gap > 0.1


def test_a_mechanism_of_the_users_own_takes_a_place():
    mine = LinearGaussian(VARIABLES["x"], [VARIABLES["domain"]])
    model = ILD(GRAPH, VARIABLES, mechanisms={"x": mine})
    assert isinstance(model, SCM)
    assert model.mechanisms["x"] is mine
    assert ILD.card.of == (1,) != CausalDiffAE.card.of
