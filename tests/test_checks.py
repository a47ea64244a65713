import re
import warnings

import broken
import numpy as np
import pytest
import torch

from subjunctive.checks import (
    MECHANISM_LAWS,
    MODEL_LAWS,
    LawBroken,
    check_mechanism,
    check_model,
    run,
)
from subjunctive.checks.law import claim, gap, same_law, unpredictable
from subjunctive.checks.machine import MACHINE_LAWS
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import AdditiveNoise, Categorical, LinearGaussian
from subjunctive.mechanisms.linear import own_samples
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable


def rejected(laws, subject, batch):
    """The names of the laws that a subject breaks."""
    try:
        run(laws, subject, batch)
    except LawBroken as error:
        return set(error.laws)
    return set()


# Every law and the subjects that break it -------------------------------------------------------


@pytest.mark.parametrize("cls", [broken.Line, broken.TwoPartsHonest], ids=lambda c: c.__name__)
def test_honest_mechanisms_pass(cls):
    report = check_mechanism(*broken.mechanism(cls))
    assert set(report) == {law.__name__ for law in MECHANISM_LAWS}
    assert all(said == "holds" or said.startswith("not applicable: ") for said in report.values())


def test_an_honest_model_passes():
    report = check_model(*broken.model(broken.Toy))
    assert set(report) == {law.__name__ for law in MODEL_LAWS}
    for law in ("composition", "effects_travel", "rungs_agree", "reversibility", "edges_act"):
        assert report[law] == "holds"
    assert report["loss_has_rows"] == "not applicable: it has no loss"


@pytest.mark.parametrize("cls", broken.MECHANISMS, ids=lambda c: c.__name__)
def test_a_broken_mechanism_is_rejected_by_these_laws_and_no_other(cls):
    with seeded(2):
        subject, batch = broken.mechanism(cls)
    assert rejected(MECHANISM_LAWS, subject, batch) == broken.MECHANISMS[cls]


@pytest.mark.parametrize("cls", broken.MODELS, ids=lambda c: c.__name__)
def test_a_broken_model_is_rejected_by_these_laws_and_no_other(cls):
    with seeded(2):
        subject, batch = broken.model(cls)
    assert rejected(MODEL_LAWS, subject, batch) == broken.MODELS[cls]


def test_every_law_alone_rejects_some_subject():
    alone = {
        next(iter(laws))
        for table in (broken.MECHANISMS, broken.MODELS)
        for laws in table.values()
        if len(laws) == 1
    }
    assert alone == {law.__name__ for law in (*MECHANISM_LAWS, *MODEL_LAWS)}


def scm_with(step):
    t = Variable("t", loc=2.0, scale=0.5)
    return SCM(Graph.parse("t -> x"), {"t": LinearGaussian(t), "x": step(broken.X, [t])})


@pytest.mark.parametrize(
    "cls",
    [c for c, laws in broken.MECHANISMS.items() if laws <= {law.__name__ for law in MACHINE_LAWS}
     and c is not broken.NormalisesTheBatch],
    ids=lambda c: c.__name__,
)  # fmt: skip
def test_what_breaks_a_law_of_programs_breaks_it_inside_a_model_too(cls):
    with seeded(2):
        model = scm_with(cls)
        batch = Batch({k: v.reshape(300) for k, v in model.sample(300).items()})
    assert rejected(MACHINE_LAWS, model, batch) == broken.MECHANISMS[cls]


def test_a_model_whose_rows_hang_together_is_rejected():
    assert rejected(MODEL_LAWS, *broken.model(broken.SharesATotal)) >= {"batch_of_one"}


# What a report says ----------------------------------------------------------------------------


def test_a_broken_law_names_itself_the_numbers_and_the_tolerance():
    with pytest.raises(LawBroken) as caught:
        check_mechanism(*broken.mechanism(broken.Blurred))
    found = str(caught.value)
    assert "Blurred breaks round_trip" in found
    size, tolerance = map(float, re.search(r"by (\S+), tolerance (\S+)", found).groups())
    subject, batch = broken.mechanism(broken.Blurred)
    x, parents = batch.values["x"], {"t": batch.values["t"]}
    exact = float((subject(subject.abduct(x, parents), parents) - x).abs().max().detach())
    assert size == pytest.approx(exact, rel=1e-2)
    assert tolerance == 1e-5
    assert isinstance(caught.value, AssertionError)


def test_checking_leaves_the_subject_the_generator_and_the_warnings_alone():
    model = scm_with(broken.Line).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    state, filters = torch.get_rng_state(), list(warnings.filters)
    data = model.sample(300, seed=0)
    first, again = check_model(model, data), check_model(model, data)
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert filters == list(warnings.filters)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_claims_what_its_least_exact_mechanism_does():
    t, k = Variable("t"), Variable("k", kind="ordinal", categories=("a", "b"))
    model = SCM(Graph.parse("t; k"), {"t": LinearGaussian(t), "k": Categorical(k)})
    assert claim(model) == ("convention", 1e-4)
    assert claim(broken.Toy()) == ("exact", 1e-4)
    assert claim(object()) == ("exact", 1e-4)


# The statistics behind the laws --------------------------------------------------------------


def test_the_same_law_is_kept_and_another_is_found():
    with seeded(0):
        a, b = torch.randn(2, 500, 3)
        image = torch.randn(2, 500, 1, 8, 8)
        same_law({"u": (a, b), "x": (image[0], image[1])})
        with pytest.raises(LawBroken, match=r"'u' has another distribution"):
            same_law({"u": (a, b * torch.tensor([1, 1, 2.2]))})
        with pytest.raises(LawBroken, match=r"'x' has another distribution"):
            same_law({"x": (image[0], image[1] * 2.2)})


def test_the_laws_about_distributions_hardly_ever_reject_the_right():
    with seeded(1):
        for _ in range(30):
            unpredictable("u", torch.randn(300, 2), torch.randn(300, 5))
            same_law({"u": (torch.randn(300, 4), torch.randn(300, 4))})


@pytest.mark.parametrize("strength", [0.35, 1.0])
def test_what_the_parents_predict_is_found_in_the_mean_and_in_the_square(strength):
    with seeded(0):
        t, noise = torch.randn(2, 500)
        features = torch.stack([t, torch.randn(500)], 1)
        unpredictable("u", noise, features)
        for signal in (t, t.square() / 2**0.5):
            with pytest.raises(LawBroken, match=r"the parents predict 'u': R2 0\.\d+"):
                unpredictable("u", strength * signal + noise, features)
        constant = torch.ones(500, 2)
        unpredictable("u", noise, constant)


def test_gaps_are_in_standard_deviations():
    kind = Variable("a", scale=4.0)
    assert gap(torch.tensor([1.0, 9.0]), torch.tensor([1.0, 1.0]), kind) == 2.0
    codes = Variable("a", kind="ordinal", categories=("x", "y", "z"))
    assert gap(torch.tensor([0, 2]), torch.tensor([0, 1]), codes) == 1.0
    assert np.isnan(gap(torch.tensor([np.nan]), torch.tensor([1.0])))


def test_a_law_needs_no_parents_and_no_luck_of_the_seed():
    for seed in range(3):
        root = AdditiveNoise(Variable("x"))
        report = check_mechanism(root, own_samples(root, seed=seed))
        assert report["parents_are_used"] == "not applicable: it has no parents"
        assert report["noise_follows_the_prior"] == "holds"
