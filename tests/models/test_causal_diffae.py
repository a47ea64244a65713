"""CausalDiffAE done right: each defect of the reference code has a test."""

import pytest
import torch
from torch import Tensor

from subjunctive.diffusion import Ancestral, Cosine
from subjunctive.effect import effect
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms.linear import LinearGaussian
from subjunctive.models import CausalDiffAE
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

SMALL = {"code": 4, "width": 8, "multipliers": (1, 2)}


def picture(size: int = 8) -> Variable:
    return Variable("x", (1, size, size), loc=0.5, scale=0.5)


def chain(stir: float = 0.2, **options: object) -> SCM:
    """a -> b -> c -> x, weights stirred so that everything acts."""
    variables = {n: Variable(n) for n in "abc"} | {"x": picture()}
    with seeded(0):
        model = CausalDiffAE(Graph.parse("a -> b -> c -> x"), variables, **SMALL, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(stir * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("labels", [1, 2, 3, 5])
def test_any_number_of_labels(labels: int) -> None:
    names = [f"z{i}" for i in range(labels)]
    variables = {n: Variable(n) for n in names} | {"x": picture()}
    graph = Graph.parse("; ".join(f"{n} -> x" for n in names))
    model = CausalDiffAE(graph, variables, **SMALL)
    rows = Batch(model.sample(3, seed=0))
    assert all(t.shape == (3,) and bool(t.isfinite().all()) for t in model.loss(rows).values())


def test_an_effect_travels_along_every_hop_and_do_sets_the_value() -> None:
    model = chain()
    seen = model.sample(16, seed=0)
    moved = counterfactual(model, seen, {"a": 1.5}, seed=0)
    assert bool((moved["a"] == 1.5).all())
    for node in ("b", "c"):
        assert float((moved[node] - seen[node]).abs().mean()) > 1e-3
    middle = counterfactual(model, seen, {"b": 0.7}, seed=0)
    assert torch.equal(middle["b"], torch.full((16,), 0.7))
    assert torch.allclose(middle["a"], seen["a"], atol=1e-5)
    assert float((middle["c"] - seen["c"]).abs().mean()) > 1e-3


@pytest.mark.parametrize("sampler", [None, Ancestral(Cosine(), 6)])
def test_the_image_is_abducted_so_that_doing_nothing_returns_it(sampler: object) -> None:
    model = chain(0.05, sampler=sampler).double()
    seen = model.sample(8, seed=1)
    null = counterfactual(model, seen, {}, seed=2)
    assert float((null["x"] - seen["x"]).abs().max()) < 1e-4
    changed = counterfactual(model, seen, {"c": 2.0}, seed=2)
    assert float((changed["x"] - seen["x"]).abs().mean()) > 1e-3


def test_labels_have_units_and_the_unit_does_not_matter() -> None:
    graph = Graph.parse("t -> i; t -> x; i -> x")

    def build(loc: float, scale: float) -> SCM:
        variables = {"t": Variable("t"), "i": Variable("i", loc=loc, scale=scale), "x": picture()}
        with seeded(3):
            return CausalDiffAE(graph, variables, **SMALL)

    plain, scaled = build(0.0, 1.0), build(150.0, 40.0)
    a, b = plain.sample(6, seed=0), scaled.sample(6, seed=0)
    assert torch.allclose(a["i"] * 40 + 150, b["i"], atol=1e-3)
    assert torch.allclose(a["x"], b["x"], atol=1e-5)
    with seeded(1):
        loss_a = plain.loss(a)
    with seeded(1):
        loss_b = scaled.loss(b)
    for term in loss_a:
        assert torch.allclose(loss_a[term], loss_b[term], atol=1e-3), term


def test_guidance_is_the_strength_of_an_intervention() -> None:
    moved = []
    for guidance in (0.0, 1.0, 3.0):
        model = chain(guidance=guidance)
        seen = chain().sample(16, seed=0)
        with torch.no_grad(), seeded(0):
            noise = model.abduct(seen)
            gap = model.predict(noise, {"c": 2.0})["x"] - model.predict(noise, {"c": -2.0})["x"]
        moved.append(float(gap.abs().mean()))
    assert moved[0] == 0.0
    assert 0 < moved[1] < moved[2]


def bars(n: int, seed: int) -> dict[str, Tensor]:
    """Images of one bright row whose brightness is b = 0.5 t + noise and whose place is free."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(n, generator=generator)
    b = (0.5 + 0.1 * t + 0.05 * torch.randn(n, generator=generator)).clamp(0.1, 1.0)
    row = torch.randint(8, (n,), generator=generator)
    x = torch.zeros(n, 1, 8, 8)
    x[torch.arange(n), 0, row] = b[:, None]
    return {"t": t, "b": b, "x": x}


def test_it_learns_from_half_of_the_labels_and_its_counterfactuals_obey() -> None:
    train, test = bars(512, 0), bars(64, 1)
    generator = torch.Generator().manual_seed(2)
    seen = {n: torch.rand(512, generator=generator) < 0.5 for n in ("t", "b")}
    variables = {n: Variable(n).fit(train[n], seen[n]) for n in ("t", "b")} | {"x": picture()}
    t, b = variables["t"], variables["b"]
    flows = {"t": LinearGaussian(t), "b": LinearGaussian(b, [t])}
    with seeded(0):
        model = CausalDiffAE(
            Graph.parse("t -> b; b -> x"),
            variables,
            code=3,
            width=12,
            multipliers=(1, 2),
            anchor=0.9,
            drop=0.0,
            mechanisms=flows,
        )
    fit(
        model,
        Batch(train, seen),
        steps=400,
        batch_size=64,
        lr=1e-2,
        decay="constant",
        ema=None,
        progress=False,
    )
    inferred = counterfactual(model, Batch({"x": test["x"]}), {}, seed=0)
    assert float((inferred["b"] - test["b"]).abs().mean()) < 0.05
    target = test["b"][torch.randperm(64, generator=generator)]
    answer = counterfactual(model, test, {"b": target}, seed=0)["x"]
    brightness = answer.mean(3).amax(2)[:, 0]
    assert float((brightness - target).abs().mean()) < 0.4 * float(
        (test["b"] - target).abs().mean()
    )
    place = answer.mean(3)[:, 0].argmax(1) == test["x"].mean(3)[:, 0].argmax(1)
    assert float(place.float().mean()) > 0.9
    found = effect(model, "t", "b", (0.0, 1.0), seed=0)
    assert float(found.estimate) == pytest.approx(0.1, abs=0.03)


def test_a_saved_model_answers_the_same(tmp_path: object) -> None:
    model = chain()
    seen = model.sample(4, seed=0)
    model.save(f"{tmp_path}/model")
    again = load(f"{tmp_path}/model")
    first = counterfactual(model, seen, {"a": 1.0}, seed=5)
    second = counterfactual(again, seen, {"a": 1.0}, seed=5)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_bad_images_are_refused() -> None:
    variables = {"t": Variable("t"), "x": picture(), "y": Variable("y")}
    with pytest.raises(ValueError, match="leaf"):
        CausalDiffAE(Graph.parse("t -> x -> y"), variables, **SMALL)
    with pytest.raises(ValueError, match="name it with image="):
        CausalDiffAE(Graph.parse("t -> y"), variables, **SMALL)
    with pytest.raises(ValueError, match="multiples of"):
        CausalDiffAE(Graph.parse("t -> x"), {"t": variables["t"], "x": picture(9)}, **SMALL)
