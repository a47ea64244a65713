import pytest
import torch

from subjunctive.data.tabular import Nonlinear
from subjunctive.graph import Graph
from subjunctive.metrics.questions import inside, intervenable, outside, questions
from subjunctive.variable import Batch, Variable


class Data:
    def __init__(self) -> None:
        self.graph = Graph.parse("t -> i -> x; k -> x; x -> after")
        self.variables = {
            "t": Variable("t"),
            "i": Variable("i"),
            "k": Variable("k", kind="categorical", categories=("a", "b")),
            "x": Variable("x", (1, 4, 4)),
            "after": Variable("after"),
        }
        draw = torch.Generator().manual_seed(0)
        seen = torch.arange(1000) < 900
        t = torch.where(seen, torch.rand(1000, generator=draw), 99.0)
        self.train = Batch(
            {
                "t": t,
                "i": torch.randn(1000, generator=draw),
                "k": torch.randint(2, (1000,), generator=draw),
            },
            seen={"t": seen},
        )


def test_the_ancestors_of_the_image_are_asked_in_order() -> None:
    assert set(intervenable(Data(), "x")) == {"t", "i", "k"}
    assert intervenable(Data(), "x").index("t") < intervenable(Data(), "x").index("i")
    assert set(intervenable(Data(), None)) == {"t", "i", "k", "x"}


def test_inside_targets_are_training_values_that_were_seen() -> None:
    data = Data()
    found = inside(data, "t", 500)
    assert bool(torch.isin(found, data.train.values["t"][:900]).all())


def test_outside_targets_lie_in_the_outermost_hundredths_half_on_each_side() -> None:
    data = Data()
    found = outside(data, "i", 400)
    values = data.train.values["i"]
    assert found is not None
    first, last = values.quantile(torch.tensor([0.01, 0.99]))
    low, high = found <= first + 1e-6, found >= last - 1e-6
    assert bool((low ^ high).all())
    assert int(low.sum()) == 200
    assert float(found.min()) >= float(values.min())
    assert float(found.max()) <= float(values.max())
    assert outside(data, "k", 4) is None


def test_the_seed_decides_the_questions_and_the_users_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (questions(Data(), None, "x", 10, s) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert {(q.node, q.support) for q in first} == {
        ("t", "inside"), ("t", "outside"), ("i", "inside"), ("i", "outside"), ("k", "inside"),
    }  # fmt: skip
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].targets, other[0].targets)


def test_targets_of_the_users_are_checked_and_spread_over_the_rows() -> None:
    (asked,) = questions(Data(), {"k": "b"}, "x", 3, 0)
    assert (asked.support, asked.targets.tolist(), asked.name) == ("given", [1, 1, 1], "do(k)")
    with pytest.raises(KeyError, match="unknown node 'tt'"):
        questions(Data(), ["tt"], "x", 3, 0)
    with pytest.raises(ValueError, match="'c'"):
        questions(Data(), {"k": "c"}, "x", 3, 0)


def test_a_table_asks_for_every_node_that_has_children() -> None:
    data = Nonlinear("triangle", train=50, valid=2, test=5)
    assert {q.node for q in questions(data, None, None, 5, 0)} == {"x1", "x2"}
