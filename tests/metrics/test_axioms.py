import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from subjunctive.graph import Graph
from subjunctive.mechanisms import Known, LinearGaussian
from subjunctive.metrics.axioms import (
    composition,
    effectiveness,
    euclidean,
    gaussian_kl,
    minimality,
    reversibility,
)
from subjunctive.metrics.worlds import pixel_parts, redraw
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

T, X = Variable("t", loc=2.0, scale=0.5), Variable("x", (1, 2, 2), loc=1.0, scale=3.0)
NORMAL = Independent(Normal(torch.zeros(1, 2, 2), 1.0), 3)
SCALE = 0.4


def image(u: dict[str, Tensor], parents: dict[str, Tensor]) -> Tensor:
    return parents["t"][:, None, None, None] + u["code"] + SCALE * u["residual"]


def model(bias: float = 0.0) -> SCM:
    """x = t + c + 0.4 r; abduction explains a quarter by c, the rest, plus a bias, by r."""

    def explain(x: Tensor, parents: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = x - parents["t"][:, None, None, None]
        return {"code": rest / 4, "residual": (0.75 * rest + bias) / SCALE}

    prior = {"code": NORMAL, "residual": NORMAL}
    return SCM(
        Graph.parse("t -> x"),
        {"t": LinearGaussian(T), "x": Known(X, [T], image, explain, prior)},
    )


@pytest.fixture
def batch() -> Batch:
    return Batch(model().sample(400, seed=0))


def test_composition_is_zero_where_abduction_is_exact(batch: Batch) -> None:
    found = composition(model(), batch, times=3, seed=0)
    assert found["x"].value < 1e-5
    assert found["t"].value == 0


def test_composition_adds_up_over_repetitions_in_the_nodes_unit(batch: Batch) -> None:
    biased = model(bias=0.1)  # 0.1 standardised is 0.3
    for times in (1, 4):
        found = composition(biased, batch, ["x"], times, seed=0)["x"]
        assert found.value == pytest.approx(0.3 * times, rel=1e-3)
        assert found.n == 400


def test_a_residual_drawn_anew_costs_what_it_carried(batch: Batch) -> None:
    found = composition(model(), batch, ["x"], redrawn=["residual"], seed=1)["x"]
    rest = (batch.values["x"] - 1) / 3 - ((batch.values["t"] - 2) / 0.5)[:, None, None, None]
    kept = 0.75 * rest.flatten()
    draws = SCALE * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    expected = 3 * float((kept - draws).abs().mean())
    assert found.value == pytest.approx(expected, rel=0.05)


def test_only_the_named_parts_are_drawn_anew(batch: Batch) -> None:
    scm = model()
    noise = scm.abduct(batch)
    again = redraw(scm, noise, pixel_parts(noise, "x"))
    assert pixel_parts(noise, "x") == ("x.residual",)
    assert torch.equal(again["x"]["code"], noise["x"]["code"])
    assert torch.equal(again["t"], noise["t"])
    assert not bool((again["x"]["residual"] == noise["x"]["residual"]).any())
    assert not bool((redraw(scm, noise, ["t"])["t"] == noise["t"]).any())
    with pytest.raises(KeyError, match="Did you mean 'residual'"):
        redraw(scm, noise, ["residul"])


def test_reversibility_sees_what_abduction_adds_each_way(batch: Batch) -> None:
    do = {"t": torch.full((400,), 3.0)}
    assert reversibility(model(), batch, do)["x"].value < 1e-5
    assert list(reversibility(model(), batch, do)) == ["x"]
    twice = reversibility(model(bias=0.1), batch, do, cycles=2)["x"].value
    assert twice == pytest.approx(4 * 0.3, rel=1e-3)


def test_unseen_rows_say_nothing(batch: Batch) -> None:
    seen = torch.arange(400) < 100
    part = Batch(batch.values, {"x": seen})
    assert composition(model(), part, seed=0)["x"].n == 100
    with pytest.raises(ValueError, match="not every row saw"):
        reversibility(model(), Batch(batch.values, {"t": seen, "x": seen}), {"t": 1.0})
    with pytest.raises(KeyError, match="unknown node 'y'"):
        composition(model(), batch, ["y"])


def test_effectiveness_is_an_error_for_numbers_and_an_accuracy_for_categories() -> None:
    read, target = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 2.0])
    assert effectiveness(read, target, T).value == pytest.approx(1.0)
    kind = Variable("k", kind="categorical", categories=("a", "b"))
    found = effectiveness(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]), kind)
    assert (found.value, found.unit) == (0.75, "accuracy")


def test_the_divergence_of_gaussians_uses_the_scale_and_not_the_mean_twice() -> None:
    parts = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    a, b = parts.unbind(0)
    found = gaussian_kl(a, b)
    for i in range(6):
        for j in range(6):
            p, q = (Normal(v[0], v[1].exp()) for v in (a[i], b[j]))
            expected = float(kl_divergence(p, q).mean())
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-9)


def test_minimality_is_its_definition_row_by_row() -> None:
    draw = torch.Generator().manual_seed(1)
    x, answer = torch.randn(2, 8, 4, generator=draw).unbind(0)
    others = torch.randn(50, 4, generator=draw)
    kinds = tuple(torch.randint(3, (n,), generator=draw) for n in (8, 8, 50))
    scores = []
    for i in range(8):
        d = float((answer[i] - x[i]).norm())
        spread = (others - x[i]).norm(dim=1)
        near = float((spread[kinds[2] == kinds[1][i]] <= d).double().mean())
        far = float((spread[kinds[2] == kinds[0][i]] >= d).double().mean())
        scores.append(np.log(0.8 * np.exp(near) + 0.2 * np.exp(far)))
    found = minimality(x, answer, others, kinds)  # type: ignore[arg-type]
    assert found.value == pytest.approx(np.mean(scores), rel=1e-6)


def test_minimality_has_the_stated_ends() -> None:
    draw = torch.Generator().manual_seed(2)
    x, others = torch.randn(20, 3, generator=draw), torch.randn(60, 3, generator=draw)
    kinds = torch.zeros(20), torch.ones(20), torch.arange(60) % 2
    same, away = (minimality(x, x + s, others, kinds, euclidean) for s in (0.0, 1e3))
    assert same.value == pytest.approx(np.log(0.8 + 0.2 * np.e), rel=1e-6)
    assert away.value == pytest.approx(np.log(0.8 * np.e + 0.2), rel=1e-6)
