"""A question that a family cannot answer is refused, and a family that can is named."""

import pytest
import torch

from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import VAE, ConditionalFlow, Known, LinearGaussian, RealNVP
from subjunctive.models import CausalDiffAE
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.unit_effect import unit_mediation
from subjunctive.variable import Batch, Variable

T, X, Y = Variable("t"), Variable("x", (1, 8, 8), loc=0.5, scale=0.5), Variable("y")
ROWS = {"t": torch.zeros(3), "x": torch.full((3, 1, 8, 8), 0.5)}


def scm(image):
    return SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": image})


def test_a_likelihood_that_a_vae_has_not_is_refused_and_a_flow_gives_it():
    with seeded(0):
        vae, flow = VAE.of(X, [T], latent=2, widths=(8, 8)), RealNVP(X, [T], levels=1, width=4)
    with pytest.raises(ValueError, match=r"'x' is a VAE, which has none: .*RealNVP"):
        scm(vae).log_prob(Batch(ROWS))
    assert scm(flow).log_prob(Batch(ROWS)).isfinite().all()
    one = {"x": ROWS["x"][:1]}
    with pytest.raises(ValueError, match=r"'x' needs its density, which VAE has not.*RealNVP"):
        scm(vae).condition(one, 2)
    assert scm(flow).condition(one, 2)[1].isfinite().all()


def test_an_unseen_cause_of_what_was_seen_needs_an_encoder_which_causal_diffae_has():
    with seeded(0):
        vae = VAE.of(X, [T], latent=2, widths=(8, 8))
        model = CausalDiffAE(
            Graph.parse("t -> x"), {"t": T, "x": X}, width=8, multipliers=(1,), code=2
        )
    with pytest.raises(ValueError, match=r"miss 't'.*encoders.Regression; CausalDiffAE has one"):
        counterfactual(scm(vae), {"x": ROWS["x"]}, {"t": 1.0}, seed=0)
    answer = counterfactual(model, {"x": ROWS["x"]}, {"t": 1.0}, seed=0)
    assert answer["x"].isfinite().all()


def test_a_formula_without_inverse_is_refused_and_a_flow_abducts():
    rows, graph = {"t": torch.randn(3), "y": torch.randn(3)}, Graph.parse("t -> y")
    formula = Known(Y, [T], fn=lambda u, parents: parents["t"] + u)
    with pytest.raises(ValueError, match=r"'y' cannot be abducted.*inverse=g.*ConditionalFlow"):
        counterfactual(SCM(graph, {"t": LinearGaussian(T), "y": formula}), rows, {"t": 1.0})
    fitted = SCM(graph, {"t": LinearGaussian(T), "y": ConditionalFlow(Y, [T])})
    assert counterfactual(fitted, rows, {"t": 1.0})["y"].isfinite().all()


def test_latents_that_a_vae_has_not_mediate_nothing_and_the_hvae_has_them():
    with seeded(0):
        vae = VAE.of(X, [T], latent=2, widths=(8, 8))
    with pytest.raises(ValueError, match=r"first stage of 'x', which VAE lacks.*such as HVAE"):
        unit_mediation(scm(vae), Batch(ROWS), "t", "x", "x.latents", 1.0)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_code_without_numbers_is_told_from_no_code():
    with pytest.raises(ValueError, match=r"code=0 and encoder=ConvEncoder: a code needs"):
        CausalDiffAE(Graph.parse("t -> x"), {"t": T, "x": X}, width=8, multipliers=(1,), code=0)
