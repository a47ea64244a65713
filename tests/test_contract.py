"""What strains the walls of the core: time, games, joint models, odd names, mixed rows."""

import math
from itertools import pairwise

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive import seeded
from subjunctive.card import Card
from subjunctive.checks import check_model
from subjunctive.effect import effect, mediation
from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.intervention import act, as_do
from subjunctive.mechanism import Mechanism
from subjunctive.mechanisms import AdditiveNoise, Categorical, LinearGaussian, Ordinal, Tied
from subjunctive.mechanisms.flow import validation_kept
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn.mlp import MLP
from subjunctive.query import counterfactual, intervene, observe
from subjunctive.scm import SCM, Model
from subjunctive.store import load, save
from subjunctive.train import Objective, Player, fit
from subjunctive.variable import Batch, Variable

# Time: two slices that share a transition ---------------------------------------------------------


def slices():
    x = [Variable(f"x[{name}]", loc=1.0, scale=2.0) for name in ("t-2", "t-1", "t")]
    step = LinearGaussian.of(x[1], [x[0]], weights=[0.7], bias=0.2, scale=0.5)
    mechanisms = [LinearGaussian(x[0]), step, Tied(step, x[2], [x[1]])]
    graph = Graph.from_edges([(x[0].name, x[1].name), (x[1].name, x[2].name)])
    return SCM(graph, {v.name: m for v, m in zip(x, mechanisms, strict=True)})


def test_a_shared_transition_learns_from_every_slice():
    model = slices()
    weight = model.mechanisms["x[t-1]"].weight
    assert sum(p is weight for p in model.parameters()) == 1
    terms = model.loss(model.sample(200, seed=0))
    found = [
        torch.autograd.grad(terms[f"{n}.nll"].mean(), weight, retain_graph=True)[0]
        for n in ("x[t-1]", "x[t]")
    ]
    assert all(g.abs() > 0 for g in found)
    total = torch.autograd.grad(sum(v.mean() for v in terms.values()), weight)[0]
    assert torch.allclose(total, found[0] + found[1], rtol=1e-4)


def test_two_slices_teach_a_transition_what_regression_finds():
    data = slices().sample(2000, seed=0)
    model = slices()
    with torch.no_grad():
        model.mechanisms["x[t]"].mechanism.weight.fill_(-1.0)
    fit(model, data, steps=150, batch_size=500, lr=0.05, ema=None, progress=False)
    z = {k: (v - 1) / 2 for k, v in data.items()}
    before, after = (torch.cat([z[a], z[b]]) for a, b in (("x[t-2]", "x[t-1]"), ("x[t-1]", "x[t]")))
    slope = np.polyfit(before.numpy(), after.numpy(), 1)[0]
    assert float(model.mechanisms["x[t-1]"].weight.detach()) == pytest.approx(slope, abs=0.02)


def test_a_shared_transition_is_still_shared_after_loading(tmp_path):
    model = slices()
    model.save(tmp_path / "model")
    other = load(tmp_path / "model")
    assert other.mechanisms["x[t]"].mechanism is other.mechanisms["x[t-1]"]
    assert len(list(other.parameters())) == len(list(model.parameters()))
    data = model.sample(4, seed=0)
    do = {"x[t-2]": 3.0}
    a, b = (counterfactual(m, data, do)["x[t]"] for m in (model, other))
    assert torch.equal(a, b)
    assert torch.allclose(a - data["x[t]"], 0.49 * (3.0 - data["x[t-2]"]), atol=1e-4)


# A game: a bidirectional GAN whose labels are partly missing -----------------------------------


class Implicit(Mechanism):
    """x = G(u, parents), u from E(x, parents); no density: a critic teaches both."""

    card = Card("BiGAN", "A toy.", "Adversarial Feature Learning", "Donahue, Jeff", 2017,
                abduction="approximate", tolerance=1.0)  # fmt: skip

    def __init__(self, variable, parents):
        super().__init__(variable, parents)
        self.generator, self.encoder = MLP(2, 1, (16,)), MLP(2, 1, (16,))

    def prior(self):
        return self.standard_normal()

    def pair(self, network, a, parents):
        return network(torch.stack([a, parents["a"]], 1))[:, 0]

    def forward(self, u, parents):
        return self.pair(self.generator, u, parents)

    def abduct(self, x, parents):
        return self.pair(self.encoder, x, parents)

    def loss(self, x, parents):
        return {}


class Game(Objective):
    """The critic tells (x, E(x), a) from (G(u), u, a); generator and encoder confuse it."""

    def __init__(self):
        super().__init__()
        self.critic = MLP(3, 1, (32,))

    def players(self, model):
        implicit = model.mechanisms["x"]
        labels = [*model.mechanisms["a"].parameters(), *model.encoder.parameters()]
        return [
            Player("labels", labels),
            Player("critic", self.critic.parameters(), betas=(0.5, 0.9)),
            Player("generator", implicit.parameters(), betas=(0.5, 0.9)),
        ]

    def loss(self, model, batch, player, step):
        if player == "labels":
            terms = model.loss(batch)
            return {k: terms[k] for k in ("a.nll", "a.label")}
        x = model.mechanisms["x"]
        values = model.complete(batch).values
        parents = {"a": values["a"].detach()}
        u = x.prior().sample((len(batch),))
        true = torch.stack([values["x"], x.abduct(values["x"], parents), parents["a"]], 1)
        false = torch.stack([x(u, parents), u, parents["a"]], 1)
        said, answered = self.critic(true)[:, 0], self.critic(false)[:, 0]
        if player == "critic":
            return {"true": F.softplus(-said), "false": F.softplus(answered)}
        back = x(x.abduct(values["x"], parents), parents)
        return {
            "confuse": F.softplus(said) + F.softplus(-answered),
            "cycle": (back - values["x"]).square(),
        }


def game():
    a, x = Variable("a"), Variable("x")
    with seeded(0):
        encoder = Regression(x, [a], Column(), 1)
        mechanisms = {"a": LinearGaussian(a), "x": Implicit(x, [a])}
        return SCM(Graph.parse("a -> x"), mechanisms, encoder)


class Column(nn.Module):
    """A scalar as a column of features."""

    def forward(self, x):
        return x[:, None]


def labelled(n=1000, seed=0):
    """x = 1.5 a + 0.7 u, and a third of the labels unseen."""
    with seeded(seed):
        a = torch.randn(n)
        x = 1.5 * a + 0.7 * torch.randn(n)
        seen = torch.rand(n) > 0.33
    return Batch({"a": torch.where(seen, a, torch.nan), "x": x}, {"a": seen})


def test_a_bidirectional_gan_trains_with_labels_missing_and_answers():
    model, data, rules = game(), labelled(), Game()
    players = rules.players(model)
    done = fit(
        model, data, rules, steps=400, batch_size=64, lr=5e-3, ema=None, warmup=1, progress=False
    )
    assert done.steps == 400
    assert len(players) == 3
    found = effect(model, "a", "x", seed=0, draws=2000)
    assert float(found.estimate) == pytest.approx(1.5, abs=0.4)
    rows = data[:200]
    answer = counterfactual(model, rows, {}, draws=4, seed=0)
    seen = rows.mask("a")
    assert torch.allclose(answer["a"][seen], rows.values["a"][seen], atol=1e-5)
    assert answer.draws["a"][:, ~seen].std(0).min() > 0.01
    assert answer.log_weight is None  # x has no density, so that draws of a cannot be weighed
    again = (answer.draws["x"] - rows.values["x"]).abs().mean()
    assert float(again) < 0.3 * float(rows.values["x"].std())
    error = (answer["a"] - rows.values["x"] / 1.5)[~seen].abs().mean()
    assert float(error) < 0.8


def test_no_gradient_leaks_from_one_player_to_another():
    moved = {}
    for chosen in ("labels", "critic", "generator"):

        class Alone(Game):
            def loss(self, model, batch, player, step, chosen=chosen):
                if player == chosen:
                    return super().loss(model, batch, player, step)
                own = next(p.parameters for p in self.players(model) if p.name == player)
                return {"none": 0 * sum(p.sum() for p in own).expand(len(batch))}

        model, rules = game(), Alone()
        both = nn.ModuleDict({"m": model, "g": rules})
        before = {n: p.detach().clone() for n, p in both.named_parameters()}
        fit(model, labelled(64), rules, steps=1, batch_size=64, ema=None, progress=False)
        moved[chosen] = {n for n, p in both.named_parameters() if not torch.equal(p, before[n])}
    everything = {n for n, _ in nn.ModuleDict({"m": game(), "g": Game()}).named_parameters()}
    assert moved["critic"] == {n for n in everything if n.startswith("g.critic")}
    assert moved["generator"] == {n for n in everything if "generator" in n or ".1.encoder" in n}
    assert moved["labels"] == everything - moved["critic"] - moved["generator"]


# A joint flow: a model, but no set of mechanisms ------------------------------------------------


class JointFlow(nn.Module):
    """u = T(x), lower-triangular in topological order; do() solves node after node."""

    card = Card("Causal flow", "A toy.", "Causal Autoregressive Flows", "Khemakhem, Ilyes", 2021)

    def __init__(self, variables, hidden=(16,)):
        super().__init__()
        names = list(variables)
        edges = [(a, b) for i, b in enumerate(names) for a in names[:i]]
        self.graph, self.hidden = Graph.from_edges(edges), tuple(hidden)
        self.variables = dict(variables)
        with validation_kept():
            from zuko.flows import MaskedAutoregressiveTransform
        self.flow = MaskedAutoregressiveTransform(len(names), hidden_features=self.hidden)

    def noise(self, n):
        weight = next(self.parameters())
        return torch.randn(n, len(self.variables), device=weight.device, dtype=weight.dtype)

    def standard(self, evidence):
        values = Batch.of(evidence, list(self.variables.values())).values
        return torch.stack([v.standardise(values[n]) for n, v in self.variables.items()], 1)

    def abduct(self, evidence):
        return self.flow()(self.standard(evidence))

    def predict(self, noise, do=None):
        actions, u, transform = as_do(do or {}, self.variables), noise, self.flow()
        for i, (name, variable) in enumerate(self.variables.items()):
            if name in actions:
                x = transform.inv(u)
                outer = {n: self.variables[n].restore(x[:, j]) for j, n in self.before(i)}
                natural = variable.restore(x[:, i])
                value = act(actions[name], variable, lambda n=natural: n, outer, len(u))
                x = torch.cat([x[:, :i], variable.standardise(value)[:, None], x[:, i + 1 :]], 1)
                u = torch.cat([u[:, :i], transform(x)[:, i : i + 1], u[:, i + 1 :]], 1)
        x = transform.inv(u)
        return {n: v.restore(x[:, i]) for i, (n, v) in enumerate(self.variables.items())}

    def before(self, i):
        return list(enumerate(self.variables))[:i]

    def loss(self, evidence):
        u, stretch = self.flow().call_and_ladj(self.standard(evidence))
        return {"nll": 0.5 * (u.square() + math.log(2 * math.pi)).sum(1) - stretch}


VARIABLES = {
    "t": Variable("t", loc=2.0, scale=0.5),
    "m": Variable("m", loc=-1.0, scale=3.0),
    "y": Variable("y", loc=10.0, scale=4.0),
}
WEIGHTS = {"t": [], "m": [0.9], "y": [-0.4, 0.7]}
SPREAD = {"t": 1.0, "m": 0.6, "y": 0.5}


def linear_pair():
    """The same linear-Gaussian model as a joint flow and as an SCM."""
    flow, slope = JointFlow(VARIABLES, hidden=()), math.log(1e-3)
    layer = flow.flow.hyper[0]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        for i, name in enumerate(VARIABLES):
            spread, log_scale = SPREAD[name], -math.log(SPREAD[name])
            layer.bias[2 * i + 1] = log_scale / (1 - abs(log_scale / slope))
            for j, w in enumerate(WEIGHTS[name]):
                layer.weight[2 * i, j] = -w / spread
    mechanisms = {
        n: LinearGaussian.of(
            v, [VARIABLES[p] for p in flow.graph.parents(n)], weights=WEIGHTS[n], scale=SPREAD[n]
        )
        for n, v in VARIABLES.items()
    }
    return flow, SCM(flow.graph, mechanisms)


def test_a_joint_flow_answers_every_query_as_the_scm_does():
    flow, scm = linear_pair()
    assert isinstance(flow, Model)
    data = scm.sample(50, seed=0)
    assert torch.allclose(flow.loss(data)["nll"], sum(scm.loss(data).values()), atol=1e-4)
    for do in ({}, {"t": 1.0}, {"m": torch.linspace(-3, 3, 50)}, {"t": 3.0, "y": 0.0}):
        a, b = (counterfactual(model, data, do, draws=2) for model in (flow, scm))
        for n in VARIABLES:
            assert torch.allclose(a[n], b[n], atol=1e-4), (n, do)
    for model in (flow, scm):
        found = effect(model, "t", "y", (1.0, 2.0), draws=200, seed=0)
        assert float(found.estimate) == pytest.approx(8 * (-0.4 + 0.9 * 0.7), abs=1e-4)
        table = mediation(model, "t", "y", ["m"], (1.0, 2.0), draws=200, seed=0)["estimate"]
        assert table["NDE"] == pytest.approx(8 * -0.4, abs=1e-4)
        assert table["NIE"] == pytest.approx(8 * 0.63, abs=1e-4)
    sample = intervene(flow, {"m": 5.0}).sample(20000, seed=0)
    assert float(sample["y"].mean()) == pytest.approx(10 + 4 * 0.7 * 2, abs=0.1)
    assert float(sample["t"].mean()) == pytest.approx(2.0, abs=0.02)
    with pytest.raises(ValueError, match="CATE by weighting needs an SCM; JointFlow is none"):
        effect(flow, "t", "y", given={"m": 0.0})
    with pytest.raises(ValueError, match="noise of JointFlow is not kept by node"):
        intervene(flow, {"m": 5.0}).abduct(data)


def test_the_laws_hold_for_a_joint_flow():
    with seeded(1):
        flow = JointFlow(VARIABLES)
        for parameter in flow.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        data = flow.predict(flow.noise(300))
    report = check_model(flow, {k: v.detach() for k, v in data.items()})
    assert {law for law, said in report.items() if said != "holds"} == {
        "nothing_acts_off_the_edges",
        "smaller_questions_agree",
    } - {law for law, said in report.items() if said == "holds"}
    assert report["effects_travel"] == report["rungs_agree"] == "holds"


# Names ----------------------------------------------------------------------------------------

NAMES = ["type", "pH.1", "keys", "a b", "x[t-1]", "weight", "é", "values"]


def named():
    kinds = [Variable(n, loc=1.0, scale=2.0) for n in NAMES[:-1]]
    kinds.append(Variable("values", kind="categorical", categories=("items", "get")))
    graph = Graph.from_edges([(a.name, b.name) for a, b in pairwise(kinds)])
    with seeded(0):
        mechanisms = {
            b.name: (Categorical if b.discrete else LinearGaussian)(b, [a] if a else [])
            for a, b in zip([None, *kinds[:-1]], kinds, strict=True)
        }
        labels = Regression(kinds[1], [kinds[0]], Column(), 1)
        return SCM(graph, mechanisms, labels)


def test_a_column_may_have_any_name(tmp_path):
    model = named()
    frame = pandas.DataFrame({n: v.numpy() for n, v in model.sample(30, seed=0).items()})
    frame["values"] = [("items", "get")[v] for v in frame["values"]]
    frame.loc[:4, "type"] = np.nan
    assert np.isfinite(torch.stack(list(model.loss(frame).values())).detach()).all()
    answer = counterfactual(model, frame, {"pH.1": 3.0, "a b": 0.5}, seed=0)
    assert (answer["pH.1"] == 3.0).all()
    assert list(answer.frame().columns) == NAMES
    fit(model, frame, steps=2, batch_size=10, progress=False)
    save(model, tmp_path / "m")
    other = load(tmp_path / "m", classes=[Column])
    again = counterfactual(other, frame, {"keys": 1.0}, seed=0)
    now = counterfactual(model, frame, {"keys": 1.0}, seed=0)
    assert all(torch.equal(again[n], now[n]) for n in NAMES)
    with pytest.raises(KeyError, match=r"unknown node 'pH\.2'.*Did you mean 'pH\.1'"):
        counterfactual(model, frame, {"pH.2": 1.0})
    smaller = model.ancestral(["keys"])
    assert smaller.graph.nodes == ("type", "pH.1", "keys")


# Mixed rows --------------------------------------------------------------------------------------


def gallery():
    """A scalar, a category, an ordinal, a vector and an image; an encoder reads the image."""
    age = Variable("age", loc=60.0, scale=10.0, unit="years")
    arm = Variable("arm", kind="categorical", categories=("placebo", "drug"))
    stage = Variable("stage", kind="ordinal", categories=("i", "ii", "iii"))
    blood = Variable("blood", shape=(3,), loc=5.0, scale=2.0)
    scan = Variable("scan", shape=(1, 4, 4), loc=0.5, scale=0.2)
    graph = Graph.parse("age -> stage; arm -> stage; stage -> blood; age -> scan; stage -> scan")
    with seeded(0):
        mechanisms = {
            "age": AdditiveNoise(age),
            "arm": Categorical(arm),
            "stage": Ordinal(stage, [age, arm]),
            "blood": AdditiveNoise(blood, [stage], scale="parents"),
            "scan": LinearGaussian(scan, [age, stage]),
        }
        encoder = Regression(scan, [age, arm, stage], nn.Flatten(), 16)
        return SCM(graph, {n: stirred(m, 0.2) for n, m in mechanisms.items()}, encoder)


def gaps(n=60):
    """Rows of the gallery in which each node misses other rows; blood also without a scan."""
    model = gallery()
    data = model.sample(n, seed=1)
    row = torch.arange(n)
    seen = {
        "age": row % 3 != 0,
        "arm": row % 4 != 1,
        "stage": row % 5 != 2,
        "blood": row % 2 == 0,
    }
    values = {k: v.clone() for k, v in data.items()}
    values["age"][~seen["age"]] = torch.nan
    values["blood"][~seen["blood"]] = torch.inf
    values["arm"][~seen["arm"]] = 99
    return model, data, Batch(values, seen)


def test_every_kind_of_value_may_be_missing_in_its_own_rows():
    model, data, batch = gaps()
    answer = observe(model, batch, draws=3, seed=0)
    for name, value in data.items():
        seen = batch.mask(name)
        kept = answer.draws[name][:, seen]
        size = 0 if model.variables[name].discrete else 1e-4 * model.variables[name].scale
        assert ((kept - value[seen]).abs() <= size).all(), name
        assert torch.isfinite(answer.draws[name].double()).all()
        assert kept.shape[2:] == value.shape[1:]
    free = answer.draws["age"][:, ~batch.mask("age")]
    assert free.std(0).min() > 1e-3
    changed = counterfactual(model, batch, {"arm": "drug", "blood": torch.zeros(3)}, seed=0)
    assert (changed["arm"] == 1).all()
    assert (changed["blood"] == 0).all()


def test_mixed_rows_teach_every_part():
    model, _, batch = gaps()
    terms = model.loss(batch)
    assert all(term.shape == (60,) and bool(term.isfinite().all()) for term in terms.values())
    for name in ("age", "arm", "stage"):
        unseen = ~batch.mask(name)
        assert (terms[f"{name}.nll"][unseen] == 0).all()
        assert (terms[f"{name}.kl"][~unseen] == 0).all()
    assert (terms["blood.nll"][~batch.mask("blood")] == 0).all()
    total: Tensor = torch.stack([t.mean() for t in terms.values()]).sum()
    total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_the_laws_hold_with_values_missing_row_by_row():
    model, _, batch = gaps(240)
    report = check_model(model, batch)
    for law in ("composition", "every_parameter_learns", "batch_of_one", "saved_and_loaded"):
        assert report[law] == "holds"
