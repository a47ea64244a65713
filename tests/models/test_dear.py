"""DEAR: the recipe, its super-graph, and an effect that follows an intervention."""

import pytest
import torch
from torch import nn

from subjunctive.encoders import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import GAN, AdditiveNoise, Gated, LinearGaussian, decided
from subjunctive.models import DEAR, game
from subjunctive.nn import MLP, Beside
from subjunctive.objectives import Adversarial
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

SMALL = {"latent": 1, "widths": (8, 16)}


def bars(n=600, size=8, seed=0):
    """Two bars in a picture: a the left one's height, b = a^2 the right one's; c is idle."""
    with seeded(seed):
        a, c = 2 * torch.rand(n) - 1, torch.randn(n)
        b = a.square() + 0.05 * torch.randn(n)
        shade = 0.1 * torch.randn(n)
    heights = torch.stack([2 + 2 * a, 1 + 5 * b, 3 + 0.7 * c], 1)
    level = torch.arange(size)[:, None] + 0.5
    x = torch.zeros(n, 1, size, size) + shade[:, None, None, None]
    for i, columns in enumerate((slice(0, 2), slice(3, 5), slice(6, 8))):
        x[:, 0, :, columns] += (heights[:, i, None, None] - level + 0.5).clamp(0, 1)
    return {"a": a, "b": b, "c": c, "x": x}


def read(x):
    """Return the middle bar's height, as b."""
    shade = x[:, 0, :, [2, 5]].mean((1, 2))
    return ((x[:, 0, :, 3:5].mean(2) - shade[:, None]).sum(1) - 1) / 5


def flat(variables):
    """Return a small model of perceptrons, and its game."""
    causes, x = [variables[n] for n in "abc"], variables["x"]
    coder = Beside(nn.Flatten(), MLP(64 + 3, 2, (32,)))
    gan = GAN(x, causes, 1, MLP(1 + 3, 64, (32, 32)), coder, residual=False)
    reader = Regression(x, causes, nn.Sequential(nn.Flatten(), MLP(64, 32, (32,))), 32)
    graph = Graph.parse("a -> b; a, b -> c; a, b, c -> x")
    model = DEAR(graph, variables, mechanisms={"x": gan}, encoder=reader, kind=AdditiveNoise)
    return model, Adversarial("x", Beside(nn.Flatten(), MLP(64 + 4, 1, (32, 32))), rest=80)


def test_intervening_on_a_cause_moves_its_effect_in_the_picture():
    values = bars()
    variables = {n: Variable(n, tuple(v.shape[1:])).fit(v) for n, v in values.items()}
    with seeded(5):  # not the rows' own numbers
        seen = torch.rand(600) < 0.5
    labels = {n: torch.where(seen, values[n], torch.nan) for n in "abc"}
    data = Batch({**labels, "x": values["x"]}, dict.fromkeys("abc", seen))
    truth = {n: v[:200] for n, v in values.items()}
    with seeded(1):
        model, rules = flat(variables)
    fit(model, data, rules, steps=160, batch_size=50, lr=8e-3, ema=0.95, warmup=10, progress=False)
    model = decided(model)
    assert "a" in model.graph.parents("b")
    roots = {n: LinearGaussian(variables[n]) for n in "abc"} | {"x": model.mechanisms["x"]}
    free = SCM(Graph.parse("a, b, c -> x"), roots, model.encoder)
    do, moved = {"a": truth["a"].roll(1)}, []
    for asked in (model, free):
        done = counterfactual(asked, Batch({"x": truth["x"]}), do, seed=0)
        change = read(done["x"]) - read(truth["x"])
        want = truth["a"].roll(1).square() - truth["a"].square()
        moved.append(float(1 - (change - want).square().mean() / want.square().mean()))
    assert moved[0] > 0.8
    assert moved[1] < 0.3


def test_the_recipe_composes_gates_a_gan_and_a_reader():
    variables = {n: Variable(n) for n in "ab"} | {"x": Variable("x", (1, 8, 8))}
    model = DEAR(Graph.parse("a -> b; a, b -> x"), variables, **SMALL, residual=False)
    assert isinstance(model, SCM)
    assert isinstance(model.mechanisms["b"], Gated)
    assert isinstance(model.mechanisms["x"], GAN)
    assert not model.mechanisms["x"].residual
    assert model.encoder.nodes == ("a", "b")
    own = LinearGaussian(variables["b"], [variables["a"]])
    model = DEAR(Graph.parse("a -> b; a, b -> x"), variables, **SMALL, mechanisms={"b": own},
                 start=1.0, kind=LinearGaussian)  # fmt: skip
    assert model.mechanisms["b"] is own
    assert isinstance(model.mechanisms["a"].mechanism, LinearGaussian)
    assert decided(model).graph == model.graph


def test_what_does_not_fit_is_refused():
    a, x = Variable("a"), Variable("x", (1, 8, 8))
    with pytest.raises(ValueError, match=r"the picture is the one node .* here \[\] are"):
        DEAR(Graph(["a"]), {"a": a})
    with pytest.raises(KeyError, match="unknown node 'y'"):
        DEAR(Graph.parse("a -> x"), {"a": a, "x": x}, image="y")
    with pytest.raises(ValueError, match=r"'x' has children \('a',\); a picture is a leaf"):
        DEAR(Graph.parse("x -> a"), {"a": a, "x": x})
    with pytest.raises(ValueError, match="a game is of one GAN; this model has 0"):
        game(SCM(Graph(["a"]), {"a": LinearGaussian(a)}))
