from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
import torch

from subjunctive.data.pendulum import Pendulum
from subjunctive.data.tabular import Linear
from subjunctive.mechanisms import LinearGaussian
from subjunctive.metrics import evaluate, table
from subjunctive.metrics.predictors import Predictor, fit_predictor
from subjunctive.metrics.trivial import Copy
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

SKY = Variable("sky", kind="categorical", categories=("red", "blue"))
PARENTS = ("angle", "light", "length", "position")


def named(batch: Batch) -> Batch:
    """Give every row an identity, the tint of its own sky, which no intervention changes."""
    blue = (batch.context["u.image"][:, 0] > batch.context["u.image"][:, 2]).long()
    return replace(batch, context=batch.context | {"sky": blue})


@pytest.fixture(scope="module")
def data() -> SimpleNamespace:
    real = Pendulum(size=24, train=400, valid=2, test=80)
    parts = {k: getattr(real, k) for k in ("graph", "variables", "oracle", "measure", "regions")}
    return SimpleNamespace(**parts, train=named(real.train), test=named(real.test))


@pytest.fixture(scope="module")
def predictor(data: SimpleNamespace) -> Predictor:
    torch.manual_seed(0)
    small = Predictor(data.variables["image"], [SKY], widths=(8, 16), hidden=16)
    images = data.train.values["image"]
    return fit_predictor(small, images, data.train.context, steps=250, seed=0)


@pytest.fixture(scope="module")
def frame(data: SimpleNamespace, predictor: Predictor) -> pandas.DataFrame:
    model = Copy(data, "image")  # an identity counterfactual, entered as if it were a model
    return evaluate(
        model, data, rows=80, do=["angle", "length"], predictor=predictor, progress=False, few=40
    )


def value(frame: pandas.DataFrame, metric: str, **where: str) -> float:
    found = frame[frame.metric == metric]
    for key, wanted in where.items():
        found = found[found[key] == wanted]
    assert len(found) == 1, found
    return float(found.value.iloc[0])


ASKED = {"intervention": "do(angle)", "support": "inside"}


def test_every_table_has_the_oracle_and_the_trivial_rows(frame: pandas.DataFrame) -> None:
    assert list(dict.fromkeys(frame.method)) == ["model", "oracle", "copy", "retrieval"]
    assert set(frame.support) == {"inside", "outside", "observed"}
    assert not frame[["value", "standard_error"]].isna().to_numpy().any()
    keys = ["method", "intervention", "support", "metric", "node"]
    assert not frame.duplicated(keys).any()


def test_the_oracle_is_at_no_distance_and_its_readings_are_the_floors(
    frame: pandas.DataFrame,
) -> None:
    oracle = frame[frame.method == "oracle"]
    still = oracle[oracle.metric.str.startswith(("distance", "composition", "reversibility"))]
    assert float(still.value.abs().max()) == 0
    read = frame[frame.metric == "effectiveness"]
    floors = read.set_index(["method", "intervention", "support", "node"]).floor
    own = oracle[oracle.metric == "effectiveness"].set_index(["intervention", "support", "node"])
    for method in ("model", "retrieval"):
        pandas.testing.assert_series_equal(
            floors[method].sort_index(), own.value.sort_index(), check_names=False
        )


def test_an_identity_counterfactual_is_caught(
    frame: pandas.DataFrame, data: SimpleNamespace
) -> None:
    model, oracle = ({"method": m} for m in ("model", "oracle"))
    assert value(frame, "composition", node="image", **model) == 0
    assert value(frame, "reversibility", node="image", **ASKED, **model) == 0
    assert value(frame, "ratio to copy", **ASKED, **model) == 1
    missed = value(frame, "effectiveness", node="angle", **ASKED, **model)
    floor = value(frame, "effectiveness", node="angle", **ASKED, **oracle)
    assert missed > 50 * floor
    angles = data.train.values["angle"]
    spread = float((angles[:, None] - angles).abs().mean())
    assert missed == pytest.approx(spread, rel=0.25)  # of two independent draws
    leak = frame[(frame.metric == "exogeneity, R2 of angle") & (frame.method == "model")]
    assert bool((leak.value > leak.floor + 0.3).all())


def test_a_retrieved_image_obeys_and_forgets_who_it_was(frame: pandas.DataFrame) -> None:
    retrieval, copy, oracle = ({"method": m} for m in ("retrieval", "copy", "oracle"))
    ask = {"node": "angle", **ASKED}
    assert value(frame, "effectiveness", **ask, **retrieval) < value(
        frame, "effectiveness", **ask, **copy
    )
    assert value(frame, "identity", **ASKED, **oracle) > 0.85
    assert value(frame, "identity", **ASKED, **copy) > 0.85
    assert value(frame, "identity gap", **ASKED, **retrieval) < -0.2
    assert value(frame, "minimality", **ASKED, **retrieval) > value(
        frame, "minimality", **ASKED, **oracle
    )


def test_errors_are_counted_where_pixels_change_and_where_targets_are_far(
    frame: pandas.DataFrame,
) -> None:
    copy = {"method": "copy", **ASKED}
    everywhere, there = (
        value(frame, m, node="image", **copy) for m in ("distance", "distance, changed")
    )
    assert there > 2 * everywhere > 0
    moved = frame[(frame.metric == "distance, far") & (frame.method == "copy")]
    assert bool((moved.n < 80).all())
    shadow = {"method": "copy", "intervention": "do(length)", "support": "inside"}
    assert value(frame, "distance, changed shadow", **shadow) > 0
    regions = frame[
        (frame.intervention == "do(length)") & frame.metric.str.startswith("distance, ")
    ]
    assert "distance, changed sun" not in set(regions.metric)  # the sun does not move


def test_the_same_seed_gives_the_same_table_and_leaves_the_users_generator(
    data: SimpleNamespace, predictor: Predictor
) -> None:
    options = {
        "rows": 30, "do": ["light"], "predictor": predictor, "progress": False, "few": 20,
        "metrics": ["effectiveness", "distance", "exogeneity", "agreement", "realism"],
    }  # fmt: skip
    before = torch.random.get_rng_state()
    model = Copy(data, "image")
    first, again = (evaluate(model, data, **options) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    pandas.testing.assert_frame_equal(first, again)
    small = evaluate(model, data, **options, batch_size=7)  # type: ignore[arg-type]
    certain = ["effectiveness", "distance"]
    pandas.testing.assert_frame_equal(
        first[first.metric.isin(certain)], small[small.metric.isin(certain)], check_exact=False
    )


def linear(data: Linear, change: float = 0.0) -> SCM:
    """The data's own equations in standardised units, the weight of a -> b changed."""
    mechanisms = {}
    for name in data.graph.order:
        own = data.variables[name]
        parents = [data.variables[p] for p in data.graph.parents(name)]
        j = data.graph.nodes.index(name)
        w = [float(data.weights[data.graph.nodes.index(p.name), j]) for p in parents]
        w = [v + change * (name == "b") for v in w]
        bias = float(data.bias[j]) + sum(v * p.loc for v, p in zip(w, parents, strict=True))
        mechanisms[name] = LinearGaussian.of(
            own,
            parents,
            [v * p.scale / own.scale for v, p in zip(w, parents, strict=True)],
            (bias - own.loc) / own.scale,
            float(data.scale[j]) / own.scale,
        )
    return SCM(data.graph, mechanisms)


@pytest.fixture(scope="module")
def tables() -> Linear:
    return Linear("a -> b -> c; a -> c", train=300, valid=2, test=100, seed=3)


def test_tables_are_judged_node_by_node_against_the_closed_form(tables: Linear) -> None:
    models = {"right": linear(tables), "wrong": linear(tables, 0.5)}
    frame = evaluate(models, tables, do=["a"], rows=100, progress=False, few=100)
    assert list(dict.fromkeys(frame.method)) == ["right", "wrong", "oracle", "copy"]
    exact = frame[(frame.method == "right") & (frame.metric == "distance")]
    assert len(exact) == 4
    assert float(exact.value.max()) < 1e-4
    assert not frame.metric.str.contains("realism|identity|minimality|effectiveness|ratio").any()
    ask = {"metric": "distance", "support": "inside", "intervention": "do(a)"}
    wrong, copied = (
        {n: value(frame, node=n, method=m, **ask) for n in "bc"} for m in ("wrong", "copy")
    )
    i, j, k = (tables.graph.nodes.index(n) for n in "abc")
    total = float(tables.weights[i, j] * tables.weights[j, k] + tables.weights[i, k])
    move = copied["b"] / abs(float(tables.weights[i, j]))  # mean |a* - a|
    assert copied["c"] == pytest.approx(abs(total) * move, rel=1e-4)
    assert wrong["b"] == pytest.approx(0.5 * move, rel=1e-3)
    assert wrong["c"] == pytest.approx(0.5 * abs(float(tables.weights[j, k])) * move, rel=1e-3)


def test_noise_and_rungs_are_judged_beside_what_chance_gives(tables: Linear) -> None:
    models = {"right": linear(tables), "wrong": linear(tables, 1.5)}
    frame = evaluate(
        models, tables, do=["a"], rows=100, metrics=["exogeneity", "agreement"], progress=False
    )
    leak = {"metric": "exogeneity, R2 of a", "node": "b"}
    assert value(frame, method="right", **leak) < 0.1
    assert value(frame, method="wrong", **leak) > 0.15
    gap = {"metric": "agreement, own samples", "node": "b"}
    found = frame[(frame.method == "wrong") & (frame.metric == gap["metric"])]
    assert bool((found.value < found.floor + 0.03).all())  # wrong, but coherent


def test_draws_are_averaged_within_a_row(tables: Linear) -> None:
    options = {"do": {"a": 1.0}, "rows": 20, "metrics": ["distance"], "progress": False}
    one, many = (evaluate(linear(tables), tables, draws=d, **options) for d in (1, 3))  # type: ignore[arg-type]
    assert set(many.n) == {20}
    assert set(many[many.method == "model"].support) == {"given"}
    pandas.testing.assert_frame_equal(one, many, atol=1e-5)


def test_true_parents_show_what_the_graph_part_costs(data: SimpleNamespace) -> None:
    class Drifting(Copy):
        """Its shadow is a unit too long; its image is drawn from what it believes."""

        def equation(self, u: torch.Tensor, parents: dict[str, torch.Tensor]) -> torch.Tensor:
            if u.dim() > 1:
                return data.oracle.equations["image"](u, parents)
            return data.oracle.equations["length"](u, parents) + 1

        def remember(self, batch: Batch, node: str) -> torch.Tensor:
            return batch.context[f"u.{node}"]

    frame = evaluate(
        Drifting(data, "image", "length"),
        data,
        rows=20,
        do=["angle"],
        metrics=["distance"],
        true_parents=True,
        progress=False,
    )
    off = {m: value(frame, "distance", node="image", method=m, **ASKED) for m in
           ("model", "model, true parents")}  # fmt: skip
    assert off["model"] > 0.001
    assert off["model, true parents"] == 0
    assert value(frame, "distance", node="length", method="model", **ASKED) == pytest.approx(
        1, rel=1e-4
    )


def test_data_without_an_oracle_are_read_by_a_network(data: SimpleNamespace) -> None:
    torch.manual_seed(0)
    labels = [data.variables[p] for p in PARENTS]
    reader = Predictor(data.variables["image"], labels, widths=(8,), hidden=8)
    poor = SimpleNamespace(
        graph=data.graph, variables=data.variables, train=data.train, test=data.test
    )
    frame = evaluate(
        Copy(data, "image"), poor, rows=30, do=["angle"], predictor=reader, progress=False, few=20
    )
    assert set(frame.method) == {"model"}
    found = frame[(frame.metric == "effectiveness") & (frame.support == "inside")]
    assert set(found.node) == set(PARENTS)
    assert bool(found.floor.isna().all())
    assert not frame.metric.str.contains("distance|ratio").any()


def test_the_wide_table_shows_every_value_once(frame: pandas.DataFrame) -> None:
    part = frame[frame.metric.isin(["effectiveness", "distance"]) & (frame.support == "inside")]
    wide = table(part)
    assert wide.index.names == ["intervention", "support", "method"]
    assert (wide != "").to_numpy().sum() == len(part)
    one = part[
        (part.method == "copy") & (part.node == "angle") & (part.metric == "effectiveness")
    ].iloc[0]
    cell = wide.loc[("do(angle)", "inside", "copy"), "effectiveness: angle [degrees]"]
    assert cell == f"{one.value:.3g} ± {one.standard_error:.1g}"
    assert "±" not in "".join(table(part, errors=False).to_numpy().ravel())


def test_what_cannot_be_asked_is_refused_with_the_remedy(
    data: SimpleNamespace, tables: Linear
) -> None:
    with pytest.raises(ValueError, match="Did you mean 'distance'"):
        evaluate(data.oracle, data, metrics=["distanse"])
    with pytest.raises(KeyError, match="Did you mean 'angle'"):
        evaluate(data.oracle, data, do=["angel"], metrics=["distance"])
    with pytest.raises(ValueError, match="rename"):
        evaluate({"copy": data.oracle}, data, metrics=["distance"])
    with pytest.raises(ValueError, match="measure is"):
        evaluate(data.oracle, data, measure="eye", metrics=["effectiveness"])  # type: ignore[arg-type]
