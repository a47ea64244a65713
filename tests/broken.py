"""Subjects that break a law, each by one mistake that research code has made; and honest ones."""

import math
from types import MappingProxyType

import torch
from torch import nn
from torch.distributions import Independent, Normal

from subjunctive.card import Card
from subjunctive.graph import Graph
from subjunctive.intervention import as_do
from subjunctive.mechanism import Density, Mechanism
from subjunctive.mechanisms import Categorical, LinearGaussian
from subjunctive.mechanisms.linear import own_samples, stirred
from subjunctive.variable import Batch, Variable


def card(abduction="exact", tolerance=1e-5):
    return Card("Toy", "A toy.", "None", "Nobody, Ann", 2024, abduction=abduction,
                tolerance=tolerance)  # fmt: skip


T = Variable("t")
X = Variable("x")
COLOUR = Variable("x", kind="categorical", categories=("red", "green", "blue"))


# Mechanisms -----------------------------------------------------------------------------------


class Line(Density):
    """x = w t + s u, honest."""

    card = card()

    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)
        self.weight = nn.Parameter(torch.tensor(0.8))
        self.log_scale = nn.Parameter(torch.tensor(-0.5))

    def prior(self):
        return self.standard_normal()

    def mean(self, parents):
        return self.weight * parents["t"]

    def forward(self, u, parents):
        return self.mean(parents) + self.log_scale.exp() * u

    def abduct(self, x, parents):
        return (x - self.mean(parents)) / self.log_scale.exp()

    def log_prob(self, x, parents):
        u = (x - self.mean(parents)) / self.log_scale.exp()
        return -0.5 * u.square() - 0.5 * math.log(2 * math.pi) - self.log_scale

    def loss(self, x, parents):
        return {"nll": -self.log_prob(x, parents)}


class MeanLoss(Line):
    def loss(self, x, parents):
        return {"nll": -self.log_prob(x, parents).mean()}


class NaNLoss(Line):
    def loss(self, x, parents):
        return {"nll": -self.log_prob(x, parents), "log": (x - x + 1 - 1).log()}


class DeadParameter(Line):
    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)
        self.dead = nn.Parameter(torch.zeros(()))


class SeedsItself(Line):
    def abduct(self, x, parents):
        torch.manual_seed(0)
        return super().abduct(x, parents)


class SinglePrecision(Line):
    def forward(self, u, parents):
        return super().forward(u, parents).float()


class Squeezes(Line):
    def forward(self, u, parents):
        return super().forward(u, parents).squeeze()


class NormalisesTheBatch(Line):
    """The density of a row hangs on the other rows."""

    card = card(abduction="none")

    def log_prob(self, x, parents):
        return super().log_prob(x, parents) - 0.01 * x.mean()


class ForgetsWhenSaved(Line):
    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)
        self.offset = float(torch.randn(()))

    def mean(self, parents):
        return super().mean(parents) + self.offset


class OtherShape(Line):
    def forward(self, u, parents):
        return super().forward(u.reshape(len(u)), parents)

    def abduct(self, x, parents):
        return super().abduct(x, parents)[:, None]


class Stochastic(Line):
    def forward(self, u, parents):
        x = super().forward(u, parents)
        return x + 1e-6 * torch.randn_like(x)


class Blurred(Line):
    def abduct(self, x, parents):
        return super().abduct(x, parents) / 1.001


class IgnoresParents(Line):
    """A decoder that has learned to do without its parents."""

    def mean(self, parents):
        return self.weight * torch.ones_like(parents["t"])


class PriorOfTheParents(Mechanism):
    """A prior that follows the parents last met, as in a conditional VAE."""

    card = card()

    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)
        self.last = 0.0

    def prior(self):
        return Normal(self.origin + 0.01 * self.last, 1.0)

    def forward(self, u, parents):
        self.last = float(parents["t"].mean())
        return parents["t"] + u

    def abduct(self, x, parents):
        return x - parents["t"]

    def loss(self, x, parents):
        return {"square": (x - parents["t"]).square()}


class TwoPartsHonest(Mechanism):
    """x = t + (a + e) / sqrt 2: what x leaves open of a and e is drawn."""

    card = card()

    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)

    def prior(self):
        return {"a": self.standard_normal(), "e": self.standard_normal()}

    def forward(self, u, parents):
        return parents["t"] + (u["a"] + u["e"]) / 2**0.5

    def abduct(self, x, parents):
        total = (x - parents["t"]) * 2**0.5
        open_part = self.open(total, parents)
        return {"a": (total + open_part) / 2, "e": (total - open_part) / 2}

    def open(self, total, parents):
        return torch.randn_like(total) * 2**0.5

    def loss(self, x, parents):
        return {"square": (x - parents["t"]).square()}


class ResidualCarriesTheParents(TwoPartsHonest):
    def open(self, total, parents):
        return parents["t"] * 2**0.5


class CodeIgnoresTheValue(TwoPartsHonest):
    """A code drawn from its prior whatever was seen, and a residual that makes up for it."""

    def abduct(self, x, parents):
        code = torch.randn_like(x)
        return {"a": code, "e": (x - parents["t"]) * 2**0.5 - code}


class UnusedNoise(TwoPartsHonest):
    def forward(self, u, parents):
        return parents["t"] + u["a"]

    def abduct(self, x, parents):
        return {"a": x - parents["t"], "e": torch.randn_like(x)}


class UnusedColumn(Mechanism):
    card = card()

    def __init__(self, variable=X, parents=(T,)):
        super().__init__(variable, parents)

    def prior(self):
        return Independent(Normal(self.origin.expand(3), 1.0), 1)

    def forward(self, u, parents):
        return parents["t"] + u[:, 0]

    def abduct(self, x, parents):
        return torch.cat([(x - parents["t"])[:, None], torch.randn_like(x).repeat(2, 1).T], 1)

    def loss(self, x, parents):
        return {"square": (x - parents["t"]).square()}


class NotNormalised(Categorical):
    def log_prob(self, x, parents):
        return super().log_prob(x, parents) + 0.3


class OtherTemperature(Categorical):
    """Samples follow other probabilities than the density says."""

    def log_prob(self, x, parents):
        logits = (2 * self.logits(parents, len(x))).log_softmax(1)
        return logits.gather(1, x[:, None])[:, 0]


class OtherScale(Line):
    """A normalised density, but of another spread than the samples have."""

    def log_prob(self, x, parents):
        return super().log_prob(x / 2, {"t": parents["t"] / 2}) - math.log(2)


class WrongJacobian(LinearGaussian):
    """The sign of the log-determinant is wrong; in two dimensions no integral shows it."""

    def log_prob(self, x, parents):
        return super().log_prob(x, parents) + 2 * self.log_scale.sum()


def mechanism(cls):
    """Build a twin and its batch."""
    made = cls(X, [T]) if issubclass(cls, Line) else None
    if issubclass(cls, Categorical):
        made = stirred(cls(COLOUR, [T]), amount=0.2)
    elif issubclass(cls, LinearGaussian):
        pair = Variable("x", shape=(2,))
        made = cls.of(pair, [T], weights=[[0.5], [-1.0]], scale=[0.5, 0.7])
    elif made is None:
        made = cls()
    return made, own_samples(made)


MECHANISMS = {
    MeanLoss: {"loss_has_rows"},
    NaNLoss: {"loss_has_rows", "batch_of_one"},
    DeadParameter: {"every_parameter_learns"},
    SeedsItself: {"seeds_decide"},
    SinglePrecision: {"single_and_double_precision"},
    Squeezes: {"batch_of_one"},
    NormalisesTheBatch: {"batch_of_one", "density_sums_to_one"},
    ForgetsWhenSaved: {"saved_and_loaded"},
    OtherShape: {"noise_has_one_structure"},
    Stochastic: {"forward_is_deterministic"},
    Blurred: {"round_trip"},
    IgnoresParents: {"parents_are_used"},
    PriorOfTheParents: {"prior_ignores_parents"},
    ResidualCarriesTheParents: {"noise_ignores_the_parents"},
    CodeIgnoresTheValue: {"noise_follows_the_prior"},
    UnusedNoise: {"noise_is_used"},
    UnusedColumn: {"noise_is_used"},
    NotNormalised: {"density_sums_to_one"},
    OtherTemperature: {"density_matches_samples"},
    OtherScale: {"density_matches_samples", "density_changes_variables"},
    WrongJacobian: {"density_changes_variables"},
}


# Models ---------------------------------------------------------------------------------------


class Toy:
    """t -> m -> y <- z, each `sum w parent + 0.5 u` in its unit: honest, and no SCM."""

    card = card(tolerance=1e-4)
    weights = MappingProxyType({"m": {"t": 0.8}, "y": {"m": 0.9, "z": -0.6}})

    def __init__(self, graph=None):
        self.graph = graph or Graph.parse("t -> m -> y; z -> y")
        self.variables = {n: Variable(n, loc=3.0, scale=0.5) for n in self.graph.nodes}

    def noise(self, n):
        return {name: torch.randn(n) for name in self.graph.nodes}

    def pull(self, name, values):
        return sum((w * values[p] for p, w in self.weights.get(name, {}).items()), start=3.0)

    def abduct(self, batch):
        values = batch.values
        return {n: (values[n] - self.pull(n, values)) / 0.5 for n in self.graph.nodes}

    def predict(self, noise, do=None):
        actions, values = as_do(do or {}, self.variables), {}
        for name in self.graph.order:
            values[name] = self.step(name, noise, values, actions)
        return values

    def step(self, name, noise, values, actions):
        rows = len(noise[name])
        if name in actions:
            return actions[name].apply(lambda: None, {}, rows)
        return self.pull(name, values) + 0.5 * noise[name]


class OneHop(Toy):
    """A node reads what was done to its parent, else its parent's factual value."""

    def predict(self, noise, do=None):
        factual, actions = Toy.predict(self, noise), as_do(do or {}, self.variables)
        done = {n: a.apply(lambda: None, {}, len(noise[n])) for n, a in actions.items()}
        return {
            n: done[n] if n in done else self.pull(n, factual | done) + 0.5 * noise[n]
            for n in self.graph.nodes
        }


class PassesNoise(Toy):
    """A node reads its parents' noise where their values belong."""

    def read(self, name, noise, values, actions):
        return {p: values[p] if p in actions else 3.0 + 0.5 * noise[p] for p in values}

    def step(self, name, noise, values, actions):
        return Toy.step(self, name, noise, self.read(name, noise, values, actions), actions)

    def abduct(self, batch):
        noise = {}
        for name in self.graph.order:
            before = {p: 3.0 + 0.5 * u for p, u in noise.items()}
            noise[name] = (batch.values[name] - self.pull(name, before)) / 0.5
        return noise


class ForgetsUnits(Toy):
    """What is done to z reaches y in another unit."""

    card = card(abduction="approximate", tolerance=1e-4)

    def step(self, name, noise, values, actions):
        if name == "y" and "z" in actions and "y" not in actions:
            values = values | {"z": values["z"] + 0.1}
        return Toy.step(self, name, noise, values, actions)


class DeadEdge(Toy):
    """y ignores z, as a decoder may ignore a parent."""

    weights = MappingProxyType({"m": {"t": 0.8}, "y": {"m": 0.9}})


class HiddenEdge(Toy):
    """y reads t directly, which the graph does not say."""

    weights = MappingProxyType({"m": {"t": 0.8}, "y": {"m": 0.9, "z": -0.6, "t": 0.4}})


class IdentityCounterfactual(Toy):
    """Evidence is kept whatever is done; what the model draws itself is right."""

    def noise(self, n):
        never = torch.full((n,), math.inf)
        return {name: {"u": torch.randn(n), "kept": never} for name in self.graph.nodes}

    def abduct(self, batch):
        n = len(batch)
        return {k: {"u": torch.randn(n), "kept": v} for k, v in batch.values.items()}

    def step(self, name, noise, values, actions):
        plain = Toy.step(self, name, {k: v["u"] for k, v in noise.items()}, values, actions)
        kept = noise[name]["kept"]
        return plain if name in actions else torch.where(kept.isinf(), plain, kept)


class Leaks(Toy):
    """What is done to y alone moves its cause z."""

    card = card(abduction="approximate", tolerance=1e-4)

    def predict(self, noise, do=None):
        values = Toy.predict(self, noise, do)
        if set(do or {}) == {"y"}:
            values["z"] = values["z"] + 0.1 * (values["y"] - Toy.predict(self, noise)["y"])
        return values


class Ineffective(Toy):
    card = card(abduction="approximate", tolerance=1e-4)

    def predict(self, noise, do=None):
        values = Toy.predict(self, noise, do)
        return {n: v + 0.01 if n in (do or {}) else v for n, v in values.items()}


class WritesIntoTheNoise(Toy):
    def predict(self, noise, do=None):
        for name in do or {}:
            noise[name] = noise[name] + 1.0
        return Toy.predict(self, noise, do)


class DrawsTheResidualAnew(Toy):
    def abduct(self, batch):
        return Toy.abduct(self, batch) | {"y": torch.randn(len(batch))}


class OtherStructure(Toy):
    def abduct(self, batch):
        return Toy.abduct(self, batch) | {"more": torch.zeros(len(batch))}


class OtherMarginal(Toy):
    """Asked of m alone, it answers by another coefficient."""

    def ancestral(self, nodes):
        keep = {a for n in nodes for a in (n, *self.graph.ancestors(n))}
        small = Toy(self.graph.subgraph([n for n in self.graph.nodes if n in keep]))
        small.weights = {n: {p: 1.01 * w for p, w in ws.items()} for n, ws in self.weights.items()}
        return small


class SharesATotal(Toy):
    """One row's answer hangs on the others."""

    card = card(abduction="approximate", tolerance=1.0)

    def predict(self, noise, do=None):
        values = Toy.predict(self, noise, do)
        return values | {"z": values["z"] + 0.01 * noise["z"].mean()} if not do else values


def model(cls):
    """Build a twin and its batch."""
    made = cls()
    torch.manual_seed(1)
    return made, Batch(Toy.predict(Toy(), Toy.noise(made, 500)))


MODELS = {
    OneHop: {"effects_travel"},
    PassesNoise: {"effects_travel", "doing_what_was_changes_nothing", "reversibility"},
    ForgetsUnits: {"doing_what_was_changes_nothing"},
    DeadEdge: {"edges_act"},
    HiddenEdge: {"nothing_acts_off_the_edges"},
    IdentityCounterfactual: {"rungs_agree"},
    Leaks: {"non_descendants_stay"},
    Ineffective: {"effectiveness"},
    WritesIntoTheNoise: {"reversibility"},
    DrawsTheResidualAnew: {"composition"},
    OtherStructure: {"noise_has_one_structure"},
    OtherMarginal: {"smaller_questions_agree"},
}
