import copy

import numpy as np
import pandas
import pytest
import torch
from pandas.testing import assert_frame_equal, assert_series_equal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from subjunctive.data.tabular import Linear
from subjunctive.estimator import TabularSCM
from subjunctive.graph import Graph
from subjunctive.intervention import Shift
from subjunctive.mechanisms import AdditiveNoise, LinearGaussian

QUICK = {"mechanism": "linear", "steps": 100, "lr": 0.08}
WEIGHTS = [[0, 2, 1], [0, 0, -1.5], [0, 0, 0]]
TRUTH = Linear("t -> m -> y; t -> y", WEIGHTS, [0, 1, 5], [1, 0.5, 0.5], train=1500, test=400)


def rows(split: str) -> pandas.DataFrame:
    return pandas.DataFrame(
        {k: v.double().numpy() for k, v in getattr(TRUTH, split).values.items()}
    )


@pytest.fixture(scope="module")
def linear() -> TabularSCM:
    return TabularSCM(TRUTH.graph, **QUICK | {"steps": 300}, outcome="y").fit(rows("train"))


def mixed_rows(n: int = 300) -> pandas.DataFrame:
    draw = np.random.default_rng(0)
    arm = draw.choice([3, 5], n)
    age = draw.normal(60, 10, n)
    stage = np.digitize((age - 60) / 10 + draw.logistic(size=n), [-1, 1])
    stage = pandas.Categorical.from_codes(stage, ["I", "II", "III"], ordered=True)
    y = 2.0 * (arm == 5) - 0.05 * age + 0.3 * draw.normal(size=n)
    well = y + 0.3 * draw.logistic(size=n) > -2
    site = draw.choice(["north", "south"], n)
    columns = {"y": y, "arm": arm, "age": age, "stage": stage, "well": well, "site": site}
    return pandas.DataFrame(columns, index=[f"p{i}" for i in range(n)])


MIXED = "age -> stage; arm -> y; age -> y; y -> well; site -> well"


@pytest.fixture(scope="module")
def mixed() -> TabularSCM:
    return TabularSCM(MIXED, categorical=("arm",), outcome="y", **QUICK).fit(mixed_rows())


# What has a closed form ------------------------------------------------------------------------


def test_linear_nodes_are_least_squares_in_the_rows_that_count_and_the_others_are_trained() -> None:
    X = mixed_rows().assign(age=lambda f: f["age"].where(np.arange(len(f)) % 3 > 0))
    scm = TabularSCM(MIXED, categorical=("arm",), mechanism="linear", steps=3).fit(X)
    whole = X.dropna()
    truth = LinearRegression().fit(
        pandas.get_dummies(whole[["arm", "age"]], columns=["arm"]), whole["y"]
    )
    change = (
        scm.counterfactual(whole, {"age": 70.0})["y"]
        - scm.counterfactual(whole, {"age": 60.0})["y"]
    )
    assert np.allclose(change, 10 * truth.coef_[0], atol=1e-4)
    assert {n.split(".")[0] for n in scm.history_.columns} == {
        *["step", "arm", "stage", "well", "site", "loss"]
    }
    again = TabularSCM(MIXED, categorical=("arm",), mechanism="linear", steps=1, seed=1).fit(X)
    u = scm.transform(whole)["y"]
    assert np.allclose(u, again.transform(whole)["y"], atol=1e-4)  # whatever the steps and the seed
    assert abs(u.std(ddof=0) - 1) < 1e-3


def test_a_table_of_nothing_else_needs_no_steps() -> None:
    scm = TabularSCM("t -> m -> y; t -> y", mechanism="ridge", mechanisms={"t": "linear"})
    assert scm.fit(rows("train")).history_.empty
    truth = TRUTH.log_prob(TRUTH.test.values).mean()
    assert truth - 0.02 < scm.score(rows("test")) < truth + 0.01


# The manners of scikit-learn ------------------------------------------------------------------


def test_the_constructor_keeps_arguments_untouched_and_sets_nothing_else() -> None:
    given = {
        "graph": "a -> b",
        "mechanism": "no such",
        "mechanisms": {"zz": "linear"},
        "categorical": ["a"],
        "ordinal": {"b": ["x", "y"]},
        "units": {"a": "m"},
        "steps": -1,
        "batch_size": "many",
        "lr": None,
        "outcome": "zz",
        "seed": 1.5,
        "progress": None,
    }
    made = TabularSCM(**given)
    assert vars(made).keys() == given.keys() == made.get_params().keys()
    assert all(made.get_params()[name] is value for name, value in given.items())
    with pytest.raises(TypeError):
        TabularSCM("a -> b", "linear")


def test_params_can_be_got_set_cloned_and_shown(linear: TabularSCM) -> None:
    twin = clone(linear)
    assert twin.get_params() == linear.get_params()
    assert not hasattr(twin, "model_")
    again = twin.set_params(mechanism=AdditiveNoise, seed=7)
    assert again is twin
    assert (twin.mechanism, twin.seed, linear.seed) == (AdditiveNoise, 7, 0)
    with pytest.raises(ValueError, match="step_count"):
        twin.set_params(step_count=3)
    assert repr(TabularSCM("a -> b", seed=3)) == "TabularSCM(graph='a -> b', seed=3)"
    assert "Graph.parse" in repr(linear)


def test_fit_overwrites_no_parameter_and_returns_itself() -> None:
    made = TabularSCM("t -> y", units={"t": "s"}, mechanism="additive", steps=np.int64(3))
    before = made.get_params()
    X = rows("test")
    kept = X.copy(deep=True)
    assert made.fit(X) is made
    assert all(made.get_params()[name] is value for name, value in before.items())
    assert_frame_equal(X, kept)
    public = {n for n in vars(made) if n not in before}
    assert all(n.endswith("_") for n in public)
    assert list(made.feature_names_in_) == ["t", "m", "y"]
    assert (made.n_features_in_, len(made.history_), made.outcome_) == (3, 3, None)
    assert list(made.variables_) == list(made.model_.graph.nodes) == ["t", "y"]  # m is left out
    assert made.variables_["t"].unit == "s"


@pytest.mark.parametrize(
    "ask",
    [
        lambda scm, X: scm.score(X),
        lambda scm, X: scm.predict(X),
        lambda scm, X: scm.transform(X),
        lambda scm, X: scm.inverse_transform(X),
        lambda scm, X: scm.get_feature_names_out(),
        lambda scm, X: scm.sample(2),
        lambda scm, X: scm.counterfactual(X, {}),
        lambda scm, X: scm.effect("t", outcome="y"),
    ],
)
def test_what_is_not_fitted_says_so(ask) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        ask(TabularSCM("t -> y"), rows("test"))


def test_same_seed_same_answer_whatever_the_order_of_columns_and_generators_are_left() -> None:
    X, torch_state, numpy_state = rows("test"), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    one, two, other = (
        TabularSCM("t -> m -> y; t -> y", outcome="y", mechanism="additive", steps=20, seed=seed)
        for seed in (1, 1, 2)
    )
    one.fit(X), two.fit(X[["y", "t", "m"]]), other.fit(X)
    assert_frame_equal(one.sample(5), two.sample(5)[["t", "m", "y"]])
    assert_frame_equal(one.sample(5, seed=9), two.sample(5, seed=9)[["t", "m", "y"]])
    assert not one.sample(5).equals(one.sample(5, seed=9))
    assert not one.sample(5).equals(other.sample(5))
    assert one.score(X) == two.score(X[["m", "y", "t"]]) != other.score(X)
    assert_series_equal(one.predict(X), two.predict(X[["m", "t"]]))
    assert_frame_equal(one.transform(X), two.transform(X[["m", "y", "t"]]))
    assert one.effect("t").estimate == two.effect("t").estimate
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002


# The truth -------------------------------------------------------------------------------------


def test_score_is_the_log_likelihood_in_the_users_units(linear: TabularSCM) -> None:
    X = rows("test")
    truth = float(TRUTH.log_prob(TRUTH.test.values).mean())
    assert linear.score(X) == pytest.approx(truth, abs=0.03)
    assert linear.score(X) <= truth + 0.02
    by_model = linear.model_.log_prob(X).detach().double().mean()
    assert linear.score(X) == pytest.approx(float(by_model), abs=1e-5)
    assert linear.score(X[["t", "m"]], X["y"]) == pytest.approx(linear.score(X))
    wide = TabularSCM("t -> y", **QUICK).fit(X.assign(y=100 * X["y"]))
    narrow = TabularSCM("t -> y", **QUICK).fit(X)
    change = wide.score(X.assign(y=100 * X["y"])) - narrow.score(X)
    assert change == pytest.approx(-np.log(100), abs=1e-3)


def test_effects_and_counterfactuals_are_those_of_the_truth(linear: TabularSCM) -> None:
    assert float(linear.effect("t").estimate) == pytest.approx(TRUTH.ate("t", "y"), abs=0.1)
    half = linear.effect("m", values=(0.0, 0.5))
    assert float(half.estimate) == pytest.approx(-0.75, abs=0.05)
    assert float(linear.effect("t", outcome="m").estimate) == pytest.approx(2.0, abs=0.05)
    X = rows("test").set_index(pandas.Index(range(1000, 1400), name="patient"))
    found = linear.counterfactual(X[["y", "t", "m"]], {"t": 0.5})
    assert list(found.columns) == ["y", "t", "m"]
    assert found.index.equals(X.index)
    for name, value in TRUTH.counterfactual(TRUTH.test.values, {"t": 0.5}).items():
        np.testing.assert_allclose(found[name], value, atol=0.35)
        assert abs(found[name] - value.numpy()).mean() < 0.08
    assert_frame_equal(linear.counterfactual(X, {}), X, atol=1e-5)
    drawn = linear.sample(3, {"t": pandas.Series([0.0, 0.5, 1.0])})
    assert list(drawn["t"]) == [0.0, 0.5, 1.0]
    moved = linear.counterfactual(X, {"y": X["t"]})
    np.testing.assert_allclose(moved["y"], X["t"], atol=1e-6)
    shifted = linear.counterfactual(X, {"m": Shift(1.0)})["y"] - X["y"]
    np.testing.assert_allclose(shifted, -1.5, atol=0.05)


def test_predictions_are_the_mean_given_the_parents_a_row_at_a_time(linear: TabularSCM) -> None:
    X = rows("test")
    parts = linear.model_.mechanisms["y"]
    v = linear.variables_
    inner = X[["t", "m"]].sub([v["t"].loc, v["m"].loc]).div([v["t"].scale, v["m"].scale])
    mean = inner.to_numpy() @ parts.weight.detach().numpy()[0] + float(parts.bias.detach())
    found = linear.predict(X)
    np.testing.assert_allclose(found, mean * v["y"].scale + v["y"].loc, atol=1e-4)
    assert found.name == "y"
    assert abs(found - (5 + X["t"] - 1.5 * X["m"])).max() < 0.3
    some = X[["m", "t"]].iloc[[150, 3, 70]]  # another order, without the outcome, another chunk
    assert_series_equal(linear.predict(some), found.iloc[[150, 3, 70]])
    root = clone(linear).set_params(outcome="t", steps=60).fit(X)
    assert root.predict(X.head(3)).nunique() == 1
    assert root.predict(X)[0] == pytest.approx(X["t"].mean(), abs=0.1)


def test_where_parents_are_missing_they_are_drawn(linear: TabularSCM) -> None:
    X = rows("test").head(6)
    X.loc[[1, 4], "m"] = np.nan
    found = linear.predict(X, draws=4000)
    whole = linear.predict(X.drop(index=[1, 4]))
    assert_series_equal(found.drop([1, 4]), whole, atol=1e-5)
    t = X.loc[[1, 4], "t"]
    np.testing.assert_allclose(found[[1, 4]], 5 + t - 1.5 * (1 + 2 * t), atol=0.15)
    middle = copy.copy(linear)
    middle.outcome_ = "m"  # y, which stands below it, tells nothing
    found = middle.predict(X.assign(t=np.nan), draws=4000)
    np.testing.assert_allclose(found, 1.0, atol=0.2)


def test_missing_entries_are_fitted_and_scored_where_node_and_parents_were_seen() -> None:
    X, holes = rows("train"), np.random.default_rng(0).random((1500, 3)) < 0.3
    X = X.mask(pandas.DataFrame(holes, columns=X.columns))
    scm = TabularSCM("t -> m -> y; t -> y", outcome="y", **QUICK | {"steps": 250}).fit(X)
    assert float(scm.effect("t").estimate) == pytest.approx(TRUTH.ate("t", "y"), abs=0.2)
    parts, whole = [], rows("train")
    for node, family in (("t", ["t"]), ("m", ["t", "m"]), ("y", ["t", "m", "y"])):
        saw = X[family].notna().all(axis=1)
        both = scm.model_.ancestral([node]).log_prob(whole.loc[saw, family])
        above = [n for n in family if n != node]
        less = scm.model_.log_prob(whole.loc[saw, above]) if above else torch.zeros(())
        parts.append(float((both - less).detach().double().sum()))
    assert scm.score(X) == pytest.approx(sum(parts) / len(X), abs=1e-4)
    leaf = X[X[["t", "m"]].notna().all(axis=1)]
    assert leaf["y"].isna().any()
    assert scm.score(leaf) == pytest.approx(
        float(scm.model_.log_prob(leaf).detach().mean()), abs=1e-4
    )
    done = scm.counterfactual(leaf, {"m": 0.0})
    assert done.notna().all(axis=None)
    with pytest.raises(ValueError, match="miss 't' but saw a node below"):
        scm.counterfactual(X, {"m": 0.0})


# Units, labels and noise ------------------------------------------------------------------------


def test_labels_and_dtypes_come_back_as_they_were_given(mixed: TabularSCM) -> None:
    X = mixed_rows()
    drawn = mixed.sample(200)
    assert list(drawn.columns) == list(X.columns)
    assert drawn.dtypes.to_dict() == X.dtypes.to_dict()
    assert set(drawn["arm"]) == {3, 5}
    assert set(drawn["site"]) == {"north", "south"}
    assert drawn["stage"].cat.ordered
    for label in (5, "5", np.int64(5), 5.0):
        assert set(mixed.sample(20, do={"arm": label})["arm"]) == {5}
    assert not mixed.sample(20, do={"well": False})["well"].any()
    assert_frame_equal(mixed.counterfactual(X, {}), X, atol=1e-4)
    other = X["arm"].map({3: 5, 5: 3})
    done = mixed.counterfactual(X, {"arm": other})
    assert_series_equal(done["arm"], other)
    np.testing.assert_allclose(abs(done["y"] - X["y"]), 2.0, atol=0.2)
    unlike = mixed.counterfactual(X, {"site": "south", "stage": "III"})
    assert set(unlike["site"]) == {"south"}
    assert set(unlike["stage"]) == {"III"}


def test_effects_of_and_on_labels(mixed: TabularSCM) -> None:
    found = mixed.effect("arm", values=(3, 5))
    assert float(found.estimate) == pytest.approx(2.0, abs=0.15)
    assert float(mixed.effect("arm", (5, 3)).estimate) == pytest.approx(-float(found.estimate))
    assert float(mixed.effect("arm", (3, 5), outcome="well").estimate) > 0.3  # a probability
    flipped = TabularSCM("well -> y", outcome="y", **QUICK).fit(mixed_rows())
    X = mixed_rows()
    naive = X.groupby("well")["y"].mean().diff().iloc[-1]
    assert float(flipped.effect("well").estimate) == pytest.approx(naive, abs=0.1)


def test_a_category_is_predicted_by_its_largest_probability(mixed: TabularSCM) -> None:
    X = mixed_rows()
    well = {"graph": "y -> well; site -> well", "categorical": (), "outcome": "well", "steps": 80}
    asked = clone(mixed).set_params(**well).fit(X)
    found = asked.predict(X.drop(columns="well"))
    assert found.dtype == bool
    assert (found == X["well"]).mean() > 0.8
    y = asked.variables_["y"].standardise(torch.tensor(X["y"].to_numpy())).float()
    given = {"y": y, "site": torch.tensor((X["site"] == "south").to_numpy()).long()}
    logits = asked.model_.mechanisms["well"].logits(given, len(X)).detach()
    assert (logits.argmax(1).bool().numpy() == found).all()
    steps = {"graph": "age -> stage", "outcome": "stage"}
    stage = clone(asked).set_params(**steps).fit(X).predict(X)
    assert stage.dtype == X["stage"].dtype
    assert stage[X["age"].idxmax()] == "III"


def test_noise_goes_to_and_fro(mixed: TabularSCM) -> None:
    X = mixed_rows()
    names = list(mixed.get_feature_names_out())
    assert names[:3] == ["age", "stage", "arm.0"]
    assert sorted(names) == sorted(
        ["age", "stage", "y", "arm.0", "arm.1", "well.0", "well.1", "site.0", "site.1"]
    )
    noise = mixed.transform(X)
    assert list(noise.columns) == names
    assert noise.index.equals(X.index)
    assert abs(noise["y"].mean()) < 0.15
    assert noise["y"].std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(noise["y"], X["age"])[0, 1]) < 0.15
    assert abs(np.corrcoef(X["y"], X["age"])[0, 1]) > 0.3
    assert_frame_equal(mixed.inverse_transform(noise[names[::-1]]), X, atol=1e-4)
    short = clone(mixed).set_params(steps=2)
    wrapped = clone(short).set_output(transform="pandas").fit_transform(X)
    assert_frame_equal(wrapped, short.fit(X).transform(X))
    X = X[["y", "well"]].set_axis(["well.1", "well"], axis=1)
    with pytest.raises(ValueError, match="two noises would have the same name"):
        TabularSCM("well.1 -> well", **QUICK | {"steps": 1}).fit(X).transform(X)


# Among scikit-learn's own -----------------------------------------------------------------------


def curve() -> pandas.DataFrame:
    draw = np.random.default_rng(1)
    t = draw.normal(size=300)
    return pandas.DataFrame({"t": t, "y": np.cos(2 * t) + 0.2 * draw.normal(size=300)})


def test_a_search_finds_the_mechanism_of_a_curved_world() -> None:
    X, scm = curve(), TabularSCM("t -> y", steps=100, lr=0.05)
    search = GridSearchCV(scm, {"mechanism": ["linear", "additive"]}, cv=2, error_score="raise")
    search.fit(X[["t"]], X["y"])
    assert search.best_params_ == {"mechanism": "additive"}
    linear, additive = search.cv_results_["mean_test_score"]
    assert additive > linear + 0.5
    assert not hasattr(scm, "model_")
    middle = X[["t"]][abs(X["t"]) < 1.5]
    assert abs(search.predict(middle) - np.cos(2 * middle["t"])).mean() < 0.15
    assert search.score(X[["t"]], X["y"]) == search.best_estimator_.score(X)
    half = clone(scm).set_params(mechanism="additive").fit(X[150:])  # y may be a column of X
    first = search.cv_results_["split0_test_score"][1]
    assert half.score(X[:150]) == pytest.approx(first, abs=1e-4)


def test_it_is_a_step_of_a_pipeline() -> None:
    X = rows("test")
    double = FunctionTransformer(lambda frame: frame.assign(t=2 * frame["t"]))
    pipe = make_pipeline(double, TabularSCM("t -> m", outcome="m", **QUICK)).fit(X)
    assert pipe.score(X) == pytest.approx(pipe[-1].score(X.assign(t=2 * X["t"])))
    assert float(pipe[-1].effect("t").estimate) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(pipe.predict(X.head(3)), 1 + 2 * X["t"].head(3), atol=0.3)
    columns = ColumnTransformer(
        [("t", FunctionTransformer(), ["t"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    last = make_pipeline(columns, TabularSCM("t -> m", **QUICK)).fit(X)
    assert float(last[-1].effect("t", outcome="m").estimate) == pytest.approx(2.0, abs=0.1)
    noises = make_pipeline(TabularSCM("t -> m; t -> y; m -> y", **QUICK), LinearRegression())
    noises.fit(X[["t", "m"]], X["y"])  # the noises of t and m explain y
    assert list(noises[0].get_feature_names_out()) == ["t", "m"]
    assert noises.score(X[["t", "m"]], X["y"]) > 0.8


def test_y_may_come_apart_and_the_outcome_be_absent() -> None:
    X = rows("train")
    apart = TabularSCM("t -> m -> y; t -> y", **QUICK).fit(X[["m", "t"]], X["y"])
    assert (apart.outcome_, list(apart.feature_names_in_)) == ("y", ["m", "t"])
    array = TabularSCM("t -> m -> y; t -> y", outcome="y", **QUICK).fit(X[["t", "m"]], X["y"].array)
    assert_series_equal(apart.predict(X.head()), array.predict(X.head()[["t", "m"]]))
    assert list(apart.sample(1).columns) == ["m", "t", "y"]
    asked = X.head(8)[["t", "m"]]
    done = apart.counterfactual(asked, {"m": 0.0}, draws=400)
    assert list(done.columns) == ["t", "m", "y"]
    np.testing.assert_allclose(done["y"], 5 + asked["t"], atol=0.25)  # m is 0, the noise averaged
    assert list(apart.transform(asked).columns) == ["t", "m"]
    assert_frame_equal(
        apart.inverse_transform(apart.transform(asked)), asked[["m", "t"]], atol=1e-5
    )


def test_y_goes_by_its_place_where_its_index_is_its_own() -> None:
    X = rows("train")
    named = X[["t", "m"]].set_axis(X.index + 10_000)  # as a step before it may number rows anew
    apart = TabularSCM("t -> m -> y; t -> y", **QUICK).fit(named, X["y"])
    whole = TabularSCM("t -> m -> y; t -> y", outcome="y", **QUICK).fit(X)
    assert apart.score(named, X["y"]) == whole.score(X)
    twice = X.head(3).set_axis([0, 0, 1])
    assert apart.predict(twice[["t", "m"]]).tolist() == whole.predict(X.head(3)).tolist()


def test_a_column_may_have_any_name() -> None:
    X = mixed_rows(60)[["age", "well"]].rename(columns={"age": "data", "well": "self"})
    scm = TabularSCM("data -> self", **QUICK | {"steps": 3})
    for asked in (scm.fit(X[["data"]], X["self"]), scm.set_params(outcome="self").fit(X)):
        assert asked.predict(X).dtype == bool
        assert asked.counterfactual(X, {"data": 60.0})["self"].dtype == bool


def test_mechanisms_are_chosen_by_node() -> None:
    X = mixed_rows(40)[["age", "y", "well"]]
    wide = {"age": lambda v, parents: AdditiveNoise(v, parents, scale="parents"), "y": "additive"}
    scm = TabularSCM("age -> y -> well", mechanism=LinearGaussian, mechanisms=wide, steps=2).fit(X)
    kinds = {n: type(m).__name__ for n, m in scm.model_.mechanisms.items()}
    assert kinds == {"age": "AdditiveNoise", "y": "AdditiveNoise", "well": "Categorical"}
    assert scm.model_.mechanisms["age"].scale == "parents"
    plain = TabularSCM("age -> y", mechanism="flow", steps=1).fit(X)
    assert type(plain.model_.mechanisms["y"]).__name__ == "ConditionalFlow"


def fit(X: object = None, y: object = None, graph: str | Graph = "t -> m -> y", **how: object):
    return TabularSCM(graph, **QUICK | {"steps": 2} | how).fit(rows("test") if X is None else X, y)


GAPS = pandas.DataFrame({"t": [1.0, 2.0, None, None], "m": [None, None, 1.0, 2.0]})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fit(rows("test").to_numpy()), ValueError, "ndarray: give a DataFrame.*set_output"),
        (lambda: fit(rows("test").rename(columns={"m": "mm"})), ValueError, "Did you mean 'mm'"),
        (lambda: fit(rows("test").assign(m=1.0)), ValueError, "'m' is constant"),
        (lambda: fit(graph=["t", "m"]), ValueError, "graph is a list: give a Graph, or its arrows"),
        (
            lambda: fit(rows("test").set_axis([0, 1, 2], axis=1), graph="0 -> 1"),
            *(ValueError, r"X has columns named \[0, 1, 2\], which are no texts: rename"),
        ),
        (
            lambda: fit(rows("test")[["t", "m"]], rows("test")["y"].iloc[::-1]),
            *(ValueError, r"y has the index of X in another order: give y.loc\[X.index\]"),
        ),
        (lambda: fit(GAPS, graph="t -> m"), ValueError, "no row saw 'm' and all its parents"),
        (lambda: fit(mechanism="linaer"), ValueError, "none of linear, .*mean 'linear'"),
        (lambda: fit(mechanism=3), ValueError, "mechanism is 3"),
        (lambda: fit(mechanisms={"t": "flows"}), ValueError, r"mechanisms\['t'\] is.*mean 'flow'"),
        (lambda: fit(mechanisms={"tt": "flow"}), KeyError, "Did you mean 't'"),
        (lambda: fit(mechanism=lambda v, p: v), ValueError, "'t' gave Variable.*no Mechanism"),
        (lambda: fit(graph="t <-> y"), ValueError, "DAG"),
        (lambda: fit(outcome="yy"), KeyError, "Did you mean 'y'"),
        (lambda: fit(steps=0), ValueError, "steps must be a whole number, not below 1: 0"),
        (lambda: fit(batch_size=2.5), ValueError, "batch_size must be a whole number"),
        (lambda: fit(seed=None), ValueError, "seed must be a whole number, not below 0: None"),
        (lambda: fit(lr=-1.0), ValueError, "lr must be positive"),
        (lambda: fit(categorical=("arms",)), ValueError, "categorical names 'arms'"),
        (lambda: fit(y=np.ones(400)), ValueError, "y has no name"),
        (lambda: fit(y=rows("test")["y"]), ValueError, "which X holds already"),
        (lambda: fit(rows("test")[["t", "m"]], [1.0], outcome="y"), ValueError, r"shape \(1,\)"),
        (lambda: fit().predict(rows("test")), ValueError, "needs an outcome, one of.*'m'"),
        (lambda: fit().effect("t"), ValueError, "needs an outcome"),
        (lambda: fit().effect("tt", outcome="y"), KeyError, "Did you mean 't'"),
    ],
)
def test_bad_fits_are_named(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, X: s.score(X.rename(columns={"age": "agge"})), KeyError, "'agge'.*mean 'age'"),
        (lambda s, X: s.score(X.drop(columns="age")), KeyError, "score.X. lacks 'age'"),
        (lambda s, X: s.score(X.head(0)), ValueError, "no rows"),
        (lambda s, X: s.score(X[["age", *X.columns]]), ValueError, "two columns of one name"),
        (lambda s, X: s.score(X.assign(age="old")), ValueError, "'age'.*numbers"),
        (lambda s, X: s.score(X.assign(site="soth")), ValueError, "Did you mean 'south'"),
        (lambda s, X: s.predict(X, draws=0), ValueError, "draws must be"),
        (lambda s, X: s.predict(X.to_numpy()), ValueError, "DataFrame"),
        (lambda s, X: s.transform(X.drop(columns="y")), KeyError, "lacks 'y'"),
        (lambda s, X: s.inverse_transform(X), KeyError, "inverse_transform.X. names unknown"),
        (lambda s, X: s.counterfactual(X, {"agee": 1.0}), KeyError, "Did you mean 'age'"),
        (lambda s, X: s.counterfactual(X, {"arm": 4}), ValueError, "no category '4'"),
        (lambda s, X: s.counterfactual(X, {"arm": None}), ValueError, "'arm'"),
        (lambda s, X: s.counterfactual(X, {"age": [60.0, 61.0]}), ValueError, "2 values for 300"),
        (lambda s, X: s.counterfactual(X, {"age": X["age"][::-1]}), ValueError, "index"),
        (lambda s, X: s.sample(0), ValueError, "n must be a whole number, not below 1: 0"),
        (lambda s, X: s.sample(2.0), ValueError, "n must be a whole number"),
        (lambda s, X: s.sample(2, [("age", 1.0)]), ValueError, "do is a list: give node -> what"),
        (lambda s, X: s.counterfactual(X, None), ValueError, "do is a NoneType: give node"),
        (lambda s, X: s.effect("arm", (3, 5), outcome="sites"), KeyError, "mean 'site'"),
        (lambda s, X: s.effect("arm", (3, 4)), ValueError, "no category '4'"),
    ],
)
def test_bad_questions_are_named(mixed: TabularSCM, call, error, words: str) -> None:
    with pytest.raises(error, match=words):
        call(mixed, mixed_rows())
