"""The laws over everything: each method's example, mixed models, and the simulators' oracles."""

import pytest
import torch

from subjunctive import seeded
from subjunctive.card import walk
from subjunctive.checks import MODEL_LAWS, check_mechanism, check_model, run
from subjunctive.data import Oracle
from subjunctive.graph import Graph
from subjunctive.intervention import Shift
from subjunctive.mechanism import Mechanism
from subjunctive.mechanisms import (
    AdditiveNoise,
    Categorical,
    ConditionalFlow,
    LinearGaussian,
    Ordinal,
)
from subjunctive.mechanisms.linear import stirred
from subjunctive.query import intervene
from subjunctive.scm import SCM, Model
from subjunctive.variable import Batch, Variable

METHODS = walk()


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_the_laws_hold_for(cls):
    subject, batch = METHODS[cls].example()
    assert isinstance(subject, Mechanism | Model), f"no laws are known for {type(subject)}"
    check = check_mechanism if isinstance(subject, Mechanism) else check_model
    report = check(subject, batch)
    assert sum(said == "holds" for said in report.values()) > len(report) // 2
    assert report["seeds_decide"] == "holds"


def test_the_walk_finds_every_mechanism():
    found = {cls for cls in METHODS if issubclass(cls, Mechanism)}
    assert {AdditiveNoise, Categorical, ConditionalFlow, LinearGaussian, Ordinal} <= found
    for card in METHODS.values():
        assert card.summary.endswith(".")
        assert card.bibtex().startswith("@")


def mixed(cause):
    """Every kind of node in one model, in several units; `cause` is the class of t's mechanism."""
    arm = Variable("arm", kind="categorical", categories=("a", "b", "c"))
    t = Variable("t", loc=-4.0, scale=3.0)
    stage = Variable("stage", kind="ordinal", categories=("i", "ii", "iii"))
    pair = Variable("pair", shape=(2,), loc=10.0, scale=0.1)
    x = Variable("x", shape=(1, 4, 4), loc=0.5, scale=0.25)
    with seeded(0):
        mechanisms = {
            "arm": Categorical(arm),
            "t": cause(t, [arm]),
            "stage": Ordinal(stage, [t]),
            "pair": AdditiveNoise(pair, [t, stage], scale="parents"),
            "x": LinearGaussian(x, [pair, arm]),
        }
    graph = Graph.parse("arm -> t -> stage -> pair -> x; t -> pair; arm -> x")
    for mechanism in mechanisms.values():
        stirred(mechanism, 0.2)
    return SCM(graph, mechanisms)


@pytest.mark.parametrize("cause", [LinearGaussian, AdditiveNoise, ConditionalFlow])
def test_the_laws_hold_for_a_model_of_every_kind_of_node(cause):
    model = mixed(cause)
    data = model.sample(400, seed=3)
    report = check_model(model, data)
    refused = {law for law, said in report.items() if said != "holds"}
    assert not refused
    hide = torch.arange(400) % 3 == 0
    values = data | {"x": torch.where(hide[:, None, None, None], torch.nan, data["x"])}
    assert check_model(model, Batch(values, {"x": ~hide}))["composition"] == "holds"


def test_the_laws_of_prediction_hold_under_an_intervention():
    model = mixed(LinearGaussian)
    for do in ({"t": -3.0}, {"t": Shift(2.0)}):
        done = intervene(model, do)
        laws = [law for law in MODEL_LAWS if law.__name__ in PREDICTION]
        report = run(laws, done, Batch(done.predict(done.noise(200))))
        assert len(report) == len(PREDICTION)
        assert set(report.values()) == {"holds"}


PREDICTION = (
    "effectiveness",
    "non_descendants_stay",
    "doing_what_was_changes_nothing",
    "effects_travel",
    "nothing_acts_off_the_edges",
)


def linear_oracle():
    graph = Graph.parse("t -> m -> y; t -> y")
    return Oracle(
        graph,
        {n: Variable(n, loc=2.0, scale=3.0) for n in graph.nodes},
        {
            "t": lambda u, pa: u,
            "m": lambda u, pa: torch.sinh(pa["t"]) + u,
            "y": lambda u, pa: pa["m"] * pa["t"] + u.exp(),
        },
        {n: torch.randn for n in graph.nodes},
    )


def test_the_laws_of_prediction_hold_for_an_oracle():
    oracle = linear_oracle()
    laws = [law for law in MODEL_LAWS if law.__name__ in (*PREDICTION, "edges_act")]
    with seeded(0):
        noise = oracle.noise(200)
    context = {f"u.{k}": u for k, u in noise.items()}
    report = run(laws, oracle, Batch(oracle.predict(noise), context=context))
    assert len(report) == len(laws)
    assert set(report.values()) == {"holds"}
