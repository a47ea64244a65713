from collections.abc import Sequence

import pytest
import torch

from subjunctive.metrics.predictors import Predictor, fit_predictor, identity_labels, predictor_for
from subjunctive.variable import Batch, Variable

IMAGE = Variable("x", (1, 12, 10), loc=0.5, scale=0.5)
KIND = Variable("kind", kind="categorical", categories=("bar", "row"))
LEVEL = Variable("level", loc=100.0, scale=30.0, unit="of 255")


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Bars that stand or lie, of some brightness."""
    draw = torch.Generator().manual_seed(seed)
    kind, level = torch.randint(2, (n,), generator=draw), torch.rand(n, generator=draw)
    x = torch.zeros(n, 1, 12, 10)
    x[:, :, 2:10, 4:6] = ((kind == 0) * level)[:, None, None, None]
    x[:, :, 5:7, 1:9] += ((kind == 1) * level)[:, None, None, None]
    return x, {"kind": kind, "level": 255 * level}


def small(*labels: Variable) -> Predictor:
    return Predictor(IMAGE, labels, widths=(8, 16), hidden=16)


@pytest.fixture(scope="module")
def trained() -> Predictor:
    torch.manual_seed(0)
    x, values = rows(400)
    return fit_predictor(small(KIND, LEVEL), x, values, steps=250, seed=0)


def test_labels_of_unseen_images_are_read_in_their_own_units(trained: Predictor) -> None:
    x, values = rows(200, seed=1)
    visible = values["level"] > 30
    read = trained.read(x)
    assert float((read["kind"] == values["kind"])[visible].double().mean()) > 0.97
    assert float((read["level"] - values["level"]).abs().mean()) < 12


def test_batches_do_not_change_what_is_read(trained: Predictor) -> None:
    x, _ = rows(30, seed=2)
    torch.testing.assert_close(trained.features(x, 7), trained.features(x, 30))
    assert trained.features(x).shape == (30, 16)
    assert not trained.features(x).requires_grad


def test_the_same_seed_trains_the_same_and_leaves_the_users_generator() -> None:
    x, values = rows(60)
    torch.manual_seed(5)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        predictor = small(KIND)
        before = torch.random.get_rng_state()
        fit_predictor(predictor, x, values, steps=5, seed=3)
        assert torch.equal(before, torch.random.get_rng_state())
        found.append(predictor.features(x))
    assert torch.equal(*found)


def test_what_a_row_is_comes_from_the_context_and_noise_does_not() -> None:
    context = {"u.x": torch.arange(3), "digit": torch.arange(3), "weight": torch.rand(3)}
    assert list(identity_labels(Batch({"x": torch.zeros(3)}, context=context))) == ["digit"]


class Data:
    def __init__(self, named: Sequence[str]) -> None:
        from subjunctive.graph import Graph

        x, values = rows(40)
        self.graph = Graph.parse("level -> x")
        self.variables = {"level": LEVEL, "x": IMAGE}
        known = {"kind": values["kind"], "row": torch.randperm(40), "same": torch.zeros(40).long()}
        context = {name: known[name] for name in named}
        self.train = Batch({"level": values["level"], "x": x}, context=context)


@pytest.mark.parametrize(
    ("named", "measured", "labels"),
    [
        (["kind"], True, ["kind"]),
        (["kind"], False, ["kind", "level"]),
        ([], True, ["level"]),
        (["row", "same"], True, ["level"]),  # no row shares its number, and all are alike
        (["row", "kind"], True, ["kind"]),
    ],
)
def test_a_predictor_reads_what_the_data_cannot(
    named: list[str], measured: bool, labels: list[str]
) -> None:
    found = predictor_for(Data(named), "x", measured=measured, steps=2)
    assert [v.name for v in found.labels] == labels


def test_labels_must_be_scalars_that_the_rows_have() -> None:
    with pytest.raises(ValueError, match="scalar labels"):
        small(IMAGE)
    x, values = rows(4)
    with pytest.raises(ValueError, match="'kind' needs 4 values"):
        fit_predictor(small(KIND), x, {"level": values["level"]}, steps=1)
