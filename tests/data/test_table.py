import datetime
import gzip
import json
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from subjunctive.data.table import Table
from subjunctive.experiment import read_data
from subjunctive.graph import Graph
from subjunctive.mechanisms.discrete import Categorical
from subjunctive.mechanisms.linear import LinearGaussian
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import StoreError, from_config, to_config
from subjunctive.variable import Batch

N = 40
ROW = np.arange(N)


@pytest.fixture
def study() -> pandas.DataFrame:
    """Forty rows with a gap in every fifth age and every eighth arm."""
    rng = np.random.default_rng(0)
    stage = pandas.Categorical(
        rng.choice(["I", "II", "III"], N), categories=["I", "II", "III"], ordered=True
    )
    return pandas.DataFrame(
        {
            "age": np.where(ROW % 5 == 0, np.nan, rng.normal(60, 8, N)),
            "visits": rng.integers(0, 9, N),
            "arm": np.where(ROW % 8 == 0, None, np.where(ROW % 3 == 0, "placebo", "drug")),
            "smoker": rng.random(N) < 0.5,
            "stage": stage,
            "note": ["nothing"] * N,
        }
    )


ARROWS = "age, arm -> visits; smoker -> stage -> visits"


def rows_of(table: Table) -> dict[str, np.ndarray]:
    parts = {n: getattr(table, n) for n in ("train", "valid", "test")}
    return {n: b.context["row"].numpy() for n, b in parts.items() if b is not None}


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Table(*args, **options)
    return str(caught.value)


# What a table holds -----------------------------------------------------------------------------


def test_kinds_are_inferred_and_stated(study) -> None:
    table = Table(study, ARROWS, units={"age": "years"})
    stated = {n: (v.kind, v.categories, v.unit) for n, v in table.variables.items()}
    assert stated == {
        "age": ("continuous", (), "years"),
        "arm": ("categorical", ("drug", "placebo"), ""),
        "visits": ("continuous", (), ""),
        "smoker": ("categorical", ("False", "True"), ""),
        "stage": ("ordinal", ("I", "II", "III"), ""),
    }
    assert table.graph == Graph.parse(ARROWS)
    assert table.left_out == ("note",)
    for name, tensor in table.train.values.items():
        assert tensor.dtype == (torch.int64 if table.variables[name].discrete else torch.float32)


@pytest.mark.parametrize(
    ("column", "kind", "categories"),
    [
        (ROW, "continuous", ()),
        (ROW % 2, "continuous", ()),  # two numbers are numbers still
        (pandas.array([None, *ROW[1:]], dtype="Int64"), "continuous", ()),
        (pandas.array([None, *(ROW[1:] % 2 == 0)], dtype="boolean"), "categorical", "False True"),
        (np.array([None, *(ROW[1:] % 2 == 0)], object), "categorical", "False True"),
        (np.array([None, *map(int, ROW[1:])], object), "continuous", ()),
        ([Decimal(int(r)) / 4 for r in ROW], "continuous", ()),
        (pandas.arrays.SparseArray(ROW * 1.0), "continuous", ()),
        (np.array([1, "b", 2.0, "1"] * 10, object), "categorical", "1 2 b"),
        (pandas.Categorical([2, 1] * 20, categories=[2, 1, 5]), "categorical", "2 1 5"),
        (pandas.Categorical(["b", "a"] * 20, ["b", "a"], ordered=True), "ordinal", "b a"),
    ],
)
def test_a_column_of_every_dtype_has_its_kind(column, kind: str, categories) -> None:
    table = Table(pandas.DataFrame({"x": column}))
    found = table.variables["x"]
    assert found.kind == kind
    assert found.categories == (tuple(categories.split()) if categories else ())


def test_numbers_are_categories_where_they_are_named_so() -> None:
    frame = pandas.DataFrame({"site": [10.0, 2.0, 1.0, None] * 10, "grade": [3, 1, 2, 2] * 10})
    table = Table(frame, categorical="site", ordinal={"grade": (3, 2, 1)})
    assert table.variables["site"].categories == ("1", "2", "10")  # in the order of numbers
    assert table.variables["site"].kind == "categorical"
    assert table.variables["grade"].categories == ("3", "2", "1")
    assert table.variables["grade"].kind == "ordinal"
    row = table.train.context["row"].numpy()
    expected = np.array([2, 1, 0, -1])[row % 4]
    seen = table.train.mask("site").numpy()
    assert np.array_equal(seen, expected >= 0)
    assert np.array_equal(table.train.values["site"].numpy()[seen], expected[seen])


def test_every_row_stands_in_one_part_with_its_number_and_its_values(study) -> None:
    table = Table(study, ARROWS, valid=0.2, test=0.25, seed=3)
    rows = rows_of(table)
    assert {n: len(r) for n, r in rows.items()} == {"train": 22, "valid": 8, "test": 10}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(N))
    for name, row in rows.items():
        batch = getattr(table, name)
        assert list(row) != sorted(row)
        for column in ("age", "visits"):
            seen = study[column].notna().to_numpy()[row]
            assert np.array_equal(batch.mask(column).numpy(), seen)
            held = batch.values[column].numpy()
            assert np.isfinite(held).all()  # a gap is a mask, not a NaN
            np.testing.assert_allclose(held[seen], study[column].to_numpy()[row][seen], rtol=1e-6)


def test_a_seed_gives_the_same_split_and_leaves_the_generator_alone(study) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (Table(study, ARROWS, seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    for name, row in rows_of(first).items():
        assert np.array_equal(row, rows_of(again)[name])
        assert not np.array_equal(row, rows_of(other)[name])


def test_variables_know_the_seen_training_rows_alone(study) -> None:
    study.loc[::5, "visits"] = 1000  # an outlier a fifth row: some are held out
    table = Table(study, ARROWS, valid=0.3, test=0.3)
    train = study.iloc[rows_of(table)["train"]]
    for name in ("age", "visits"):
        found, column = table.variables[name], train[name].dropna()
        assert found.loc == pytest.approx(column.mean(), rel=1e-6)
        assert found.scale == pytest.approx(column.std(), rel=1e-6)
        assert (found.low, found.high) == pytest.approx((column.min(), column.max()), rel=1e-6)
    assert table.variables["age"].loc != pytest.approx(study["age"].mean(), rel=1e-6)


def test_a_category_outside_the_training_rows_is_a_category(study) -> None:
    held_out = rows_of(Table(study, "age"))["test"][0]
    study.loc[held_out, "arm"] = "surgery"
    table = Table(study, "arm")
    assert table.variables["arm"].categories == ("drug", "placebo", "surgery")
    assert 2 not in table.train.values["arm"]
    assert table.test.values["arm"][0] == 2


def test_a_share_of_nothing_leaves_none_and_no_graph_no_arrow(study) -> None:
    table = Table(study, drop=("note", "stage"), valid=0, test=0)
    assert table.valid is None
    assert table.test is None
    assert len(table.train) == N
    assert table.graph == Graph(["age", "visits", "arm", "smoker"])
    assert table.left_out == ()


def test_doubles_are_kept_where_they_are_the_default(study) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        table = Table(study, ARROWS)
    finally:
        torch.set_default_dtype(torch.float32)
    row, seen = rows_of(table)["train"], table.train.mask("age").numpy()
    assert np.array_equal(table.train.values["age"].numpy()[seen], study["age"][row].dropna())


def test_the_users_frame_is_left_as_it_was(study) -> None:
    study.index = study.index[::-1]  # an index of one's own plays no part
    before = study.copy()
    table = Table(study, ARROWS, missing=("III",))
    pandas.testing.assert_frame_equal(study, before)
    visits = study["visits"].to_numpy()[rows_of(table)["train"]]
    assert np.array_equal(table.train.values["visits"].numpy(), visits)


# Missing entries --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [object, "str", "string"])
def test_further_texts_and_numbers_may_stand_for_a_gap(dtype) -> None:
    texts = pandas.Series([*map(str, range(N - 2)), "?", None], dtype=dtype)
    frame = pandas.DataFrame(
        {
            "text": texts,
            "word": pandas.Series(["a", "b", "?", None] * 10, dtype=dtype),
            "number": [-999, *range(N - 1)],
            "kept": pandas.Categorical(["a", "?", "b", None] * 10),
            "yes": np.array([True, False, "?", None] * 10, object),
        }
    )
    table = Table(frame, missing=("?", -999))
    assert table.describe()["missing"].to_dict() == {
        "text": 2, "word": 20, "number": 1, "kept": 20, "yes": 20,
    }  # fmt: skip
    assert table.variables["text"].kind == "continuous"  # what was text by its "?" alone
    assert table.variables["kept"].categories == ("a", "b")
    assert table.variables["yes"].categories == ("False", "True")
    assert table.variables["number"].low > -1


def test_the_description_counts_gaps_over_all_rows(study) -> None:
    table = Table(study, ARROWS, units={"age": "years"})
    found = table.describe()
    assert list(found.index) == list(table.graph.nodes)
    assert found.loc["age", "missing"] == 8
    assert found.loc["age", "missing share"] == pytest.approx(0.2)
    assert found.loc["arm", "missing"] == 5
    assert found.loc["visits", "missing"] == 0
    assert found.loc["age", "unit"] == "years"
    assert found.loc["age", "low"] == table.variables["age"].low
    assert found.loc["stage", "categories"] == ("I", "II", "III")
    assert found.loc["stage", "kind"] == "ordinal"


# Back to a DataFrame ----------------------------------------------------------------------------


def test_a_batch_becomes_the_rows_that_it_came_from(study) -> None:
    table = Table(study, ARROWS)
    for name, row in rows_of(table).items():
        found = table.frame(getattr(table, name))
        given = study.iloc[row].reset_index(drop=True)
        assert list(found) == list(table.graph.nodes)
        np.testing.assert_allclose(found["age"], given["age"], rtol=1e-6)
        assert found["arm"].isna().equals(given["arm"].isna())
        assert found["arm"].dropna().tolist() == given["arm"].dropna().tolist()
        assert found["smoker"].tolist() == [str(s) for s in given["smoker"]]
        assert found["stage"].tolist() == given["stage"].tolist()
        assert (found["stage"] >= "II").equals(given["stage"] >= "II")  # still ordered
    again = Table(table.frame(table.train), ARROWS)
    assert {n: v.categories for n, v in again.variables.items()} == {
        n: v.categories for n, v in table.variables.items()
    }


def test_codes_of_gaps_are_not_looked_at_and_a_nan_is_a_gap(study) -> None:
    table = Table(study, ARROWS)
    seen = torch.tensor([True, False])
    batch = Batch({"arm": torch.tensor([1, 99])}, seen={"arm": seen})
    found = table.frame(batch)["arm"]
    assert found[0] == "placebo"
    assert found.isna().tolist() == [False, True]
    assert table.frame({"age": torch.tensor([1.5, torch.nan])})["age"].isna().tolist() == [0, 1]


def test_answers_of_a_model_become_rows(study) -> None:
    table = Table(study.dropna(), "age -> visits; arm -> visits")
    v = table.variables
    mechanisms = {
        "age": LinearGaussian(v["age"]),
        "arm": Categorical(v["arm"]),
        "visits": LinearGaussian(v["visits"], [v["age"], v["arm"]]),
    }
    model = SCM(table.graph, mechanisms)
    found = table.frame(counterfactual(model, table.test, {"arm": "placebo"}, seed=0))
    assert (found["arm"] == "placebo").all()
    np.testing.assert_allclose(found["age"], table.test.values["age"], rtol=1e-4)
    assert np.isfinite(found["visits"]).all()


def test_what_is_no_row_of_the_table_is_refused(study) -> None:
    table = Table(study, ARROWS)
    with pytest.raises(KeyError, match=r"unknown node 'agee'.*Did you mean 'age'"):
        table.frame({"agee": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'age' has shape \(5, 2\)"):
        table.frame({"age": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match="'arm' has 2 categories"):
        table.frame({"arm": torch.tensor([2])})


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["study.csv", "study.CSV", "study.csv.gz", "study.tsv"])
def test_a_file_reads_as_the_frame_that_was_written(study, tmp_path, name: str) -> None:
    path = tmp_path / name
    study.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    order = {"stage": ("I", "II", "III")}
    read, given = (Table(s, ARROWS, ordinal=order) for s in (path, study))
    assert read.variables == given.variables
    for column, values in given.test.values.items():
        seen = given.test.mask(column)
        assert torch.equal(seen, read.test.mask(column))
        assert torch.equal(values[seen], read.test.values[column][seen])


def test_text_keeps_codes_as_written_and_a_category_called_none(tmp_path) -> None:
    path = tmp_path / "x.csv"
    lines = ["01, None, ?", "1, Mild, 2.5", "2, NA, 3", "10, Mild, "]
    path.write_text("\ufeffzip, pain , dose\n\n" + "\n".join(lines * 10), encoding="utf-8")
    table = Table(str(path), categorical=["zip"], ordinal={"pain": ["None", "Mild"]}, missing="?")
    assert table.variables["zip"].categories == ("01", "1", "2", "10")
    assert table.variables["pain"].categories == ("None", "Mild")
    assert table.describe()["missing"].to_dict() == {"zip": 0, "pain": 10, "dose": 20}
    assert table.variables["dose"].kind == "continuous"


def test_a_late_text_leaves_no_early_number_behind(tmp_path) -> None:
    path = tmp_path / "x.csv"
    early, late = "01,1\n02,2\n" * 135_000, "A1,3\nB1,4\n" * 20_000  # pandas' chunk: 262144 lines
    path.write_text("code,y\n" + early + late)
    assert Table(path, "code -> y").variables["code"].categories == ("01", "02", "A1", "B1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"a,b\n", "has no rows"),
        (b"a,b\n" + b"1,2\n" * 9 + b"1,2,3\n", "Expected 2 fields in line 11, saw 3"),
        (b"a,b\n" + b"1,2,3\n" * 9, "does not match length of data"),
        (b"a;b\n1,5;2\n", r"have ';' between its fields.*sep=';'"),
        (b"a\tb\n1\t2\n", "between its fields"),
        (b"a,b\n\xe9,2\n", "UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, content: bytes, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        Table(path)
    assert str(path) in str(caught.value)


def test_files_that_are_missing_damaged_or_foreign_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no table at .*none\.csv"):
        Table(tmp_path / "none.csv")
    broken = tmp_path / "x.csv.gz"
    broken.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 99)[:-9])
    assert f"{broken} cannot be read" in refusal(broken)
    (tmp_path / "x.xlsx").write_bytes(b"")
    assert "is no .csv" in refusal(tmp_path / "x.xlsx")
    assert "source is a path or a DataFrame, not a dict" in refusal({"a": [1]})
    parquet = tmp_path / "x.parquet"
    parquet.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        Table(parquet)


def test_parquet_is_read_where_pyarrow_is(study, tmp_path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    study.to_parquet(path)
    assert Table(path, ARROWS).variables == Table(study, ARROWS).variables
    path.write_bytes(b"PAR1")
    assert "cannot be read as Parquet" in refusal(path)


# Errors -----------------------------------------------------------------------------------------

UNFIT = {
    "fixed": (np.ones(N), "is constant (all are 1): leave it out"),
    "word": (["x"] * N, "is constant (all are 'x')"),
    "one": (pandas.Categorical(["a"] * N, ["a", "b"]), "is constant (all are 'a')"),
    "gap": ([None] * N, "has no entry that is not missing"),
    "endless": (np.where(ROW > 36, -np.inf, ROW), "has 3 infinite entries, the first in row 37"),
    "when": (pandas.date_range("2020", periods=N), "holds datetime64"),
    "day": ([datetime.date(2020, 1, 1)] * N, "holds date (object)"),
    "span": (pandas.to_timedelta(ROW, unit="D"), "(column - column.min()).dt.days does dates"),
    "bytes": ([b"x"] * N, "holds bytes"),
    "lists": ([[1]] * N, "entries that are no labels (unhashable type: 'list')"),
    "almost": (
        [*map(str, ROW[:-3]), "?", None, "n.d."],
        "correct '?' in row 37, 'n.d.' in row 39, or missing=['?', 'n.d.'], or name it in",
    ),
    "written": ([*map(str, ROW)], "is text that pandas.to_numeric reads: convert it"),
    "commas": ([f"{r},5" for r in ROW], "is numbers written for people ('0,5'): convert them, as"),
    "thousands": ([f"{r % 9},{r:03d}.5" for r in ROW], "is numbers written for people"),
    "shares": ([f"{r % 5} %" for r in ROW], "is numbers written for people ('0 %')"),
    "empty": (
        ["", "a", " ", "b"] * 10,
        "has '' (first in row 0), which files have for a gap: say missing=('',), or",
    ),
    "blank": (["a", "b", " ", "b"] * 10, "has ' ' (first in row 2), which files have for a gap"),
    "nan": (["a", "nan", "b", "b"] * 10, "has 'nan' (first in row 1), which files have for a gap"),
    "dates": ([f"2020-{r % 12 + 1:02d}-01" for r in ROW], "is dates written as text"),
    "clock": (1.7e9 + ROW * 1e-3, "as torch.float32: subtract its mean"),
    "huge": (ROW * 1e300, "is rounded by inf"),
}


def test_all_columns_with_a_problem_are_told_at_once(study) -> None:
    frame = study.assign(**{n: column for n, (column, _) in UNFIT.items()})
    told = refusal(
        frame,
        categorical=("arms", "visits"),
        ordinal={"arm": ("drug", "control"), "visits": (1, 2), "smoker": ("True",), "sex": ("f",)},
        units={"agee": "years"},
        drop=("note", "nothing at all"),
    )
    lines = told.splitlines()
    assert lines[0] == "the DataFrame cannot be used as it is:"
    for name, (_, words) in UNFIT.items():
        (line,) = [x for x in lines if x.startswith(f"  - {name!r} ")]
        assert words in line
    for words in (
        "categorical names 'arms', which is no column. Did you mean 'arm'?",
        "ordinal names 'sex', which is no column.",
        "units names 'agee', which is no column. Did you mean 'age'?",
        "drop names 'nothing at all', which is no column.",
        "'visits' stands in categorical and in ordinal",
        "'arm' holds ['placebo'] (first in row 3), which ordinal=['drug', 'control'] lacks",
        "'smoker' has ordinal=['True']: list two categories or more",
    ):
        assert words in told
    assert not [x for x in lines if x.startswith("  - 'age'")]


@pytest.mark.parametrize(
    "texts",
    [
        ["1.2.3", "1.2.4"],  # versions
        ["0-9", "10-19"],
        ["10.0.0.1", "10.0.0.2"],
        ["5 kg", "6 kg"],
        ["1,5", "few", "many", "none"],
    ],
)
def test_words_with_digits_are_words(texts: list[str]) -> None:
    frame = pandas.DataFrame({"x": (texts * N)[:N]})
    assert Table(frame).variables["x"].categories == tuple(sorted(texts))


def test_numbers_written_for_people_may_be_named_categories_and_gaps_said() -> None:
    frame = pandas.DataFrame({"dose": ["0,5", "1,0"] * 20, "arm": ["", "a", "b", " "] * 10})
    table = Table(frame, categorical=("dose",), missing=("", " "))
    assert table.variables["dose"].categories == ("0,5", "1,0")
    assert table.variables["arm"].categories == ("a", "b")
    assert table.describe()["missing"].to_dict() == {"dose": 0, "arm": 20}


def test_an_order_may_be_given_in_the_columns_own_values() -> None:
    given = {"grade": [1.0, 2.0, None, 3.0] * 10, "well": [True, False] * 20}
    table = Table(
        pandas.DataFrame(given), ordinal={"grade": [3.0, 2.0, 1.0], "well": [True, False]}
    )
    assert table.variables["grade"].categories == ("3", "2", "1")
    assert table.variables["well"].categories == ("True", "False")
    row, seen = table.train.context["row"].numpy(), table.train.mask("grade").numpy()
    expected = np.array([2, 1, -1, 0])[row % 4]
    assert np.array_equal(table.train.values["grade"].numpy()[seen], expected[seen])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"graph": ["age"]}, "graph is a list: give a Graph, or its arrows"),
        ({"valid": "0.1"}, "valid='0.1', test=0.1: give shares"),
        ({"test": None}, "valid=0.1, test=None: give shares"),
        ({"valid": float("nan")}, "valid=nan"),
        ({"seed": None}, "seed=None: give a whole number"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"ordinal": ["stage"]}, r"ordinal=['stage']: give a mapping"),
        ({"units": "years"}, "units='years': give a mapping"),
        ({"categorical": 3}, "categorical names 3, which is no column"),
        ({"ordinal": {"stage": 3}}, "'stage' has ordinal=['3']: list two categories"),
    ],
)
def test_arguments_of_a_wrong_kind_are_told(study, options, words: str) -> None:
    assert words in refusal(study, **options)


def test_one_number_may_stand_for_a_gap_as_one_text_does() -> None:
    frame = pandas.DataFrame({"x": [-999, *range(N - 1)]})
    assert Table(frame, missing=-999).describe().loc["x", "missing"] == 1
    assert Table(frame, missing=None).describe().loc["x", "missing"] == 0


def test_a_name_is_no_category_unless_it_is_said_to_be() -> None:
    frame = pandas.DataFrame({"id": [f"p{r}" for r in range(120)]})
    assert "has 120 different texts in 120 rows, such as 'p0'" in refusal(frame)
    assert len(Table(frame, categorical="id").variables["id"].categories) == 120


def test_more_than_nine_tenths_of_the_entries_must_be_numbers_to_be_meant_so() -> None:
    numbers = [str(r) for r in range(9)]
    frame = pandas.DataFrame({"x": [*numbers, "many", *[None] * 30]})  # nine tenths, not more
    assert len(Table(frame).variables["x"].categories) == 10
    frame = pandas.DataFrame({"x": [*numbers, "10", "many", *[None] * 29]})
    assert "correct 'many' in row 10" in refusal(frame)


def test_names_that_are_no_column_of_the_graph_are_told(study) -> None:
    told = refusal(study, "agee -> visits; u [latent] -> visits; arm -> visits", drop="arm")
    assert "the graph names 'agee', which is no column. Did you mean 'age'?" in told
    assert "the graph names 'u', which is no column." in told
    assert "no latent nodes: give it graph.latent_projection([its columns])" in told
    assert "'arm' stands in the graph and in drop" in told
    assert "no column is left" in refusal(study, drop=list(study))
    assert "no column is left" in refusal(study, Graph([]))


def test_two_columns_of_one_name_and_one_without_are_told(study, tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,a,,b\n" + "".join(f"{r},{r},{r},{r}\n" for r in ROW))
    twice = pandas.concat([study[["age", "age"]], study[["visits"]]], axis=1)
    for source, name in ((path, "a"), (path, ""), (twice, "age")):
        assert f"{name!r} names no single column: rename it, or drop=({name!r},)" in refusal(source)
    assert Table(path, drop=("a", "")).graph.nodes == ("b",)
    assert Table(path, "b").left_out == ("a", "")


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (0, {}, "has no rows"),
        (4, {}, "4 rows are too few: 0 for test, where 1 must be, 0 for valid"),
        (4, {"valid": 0}, "0 for test"),
        (4, {"valid": 0.4, "test": 0.4}, "0 for train, where 2 must be"),
        (1, {"valid": 0, "test": 0}, "1 for train"),
        (40, {"valid": 0.5, "test": 0.5}, "together less than 1"),
        (40, {"valid": -0.1}, "valid=-0.1"),
    ],
)
def test_too_few_rows_are_told(study, rows: int, options, words: str) -> None:
    assert words in refusal(study.iloc[:rows], "visits", **options)


def test_what_is_constant_in_training_alone_is_told(study) -> None:
    held_out = rows_of(Table(study, "age"))["valid"][0]
    frame = study.assign(rare=np.where(held_out == ROW, 1.0, 0.0))
    frame["seldom"] = np.where(held_out == ROW, "yes", "no")
    told = refusal(frame, "rare -> seldom")
    assert "in the 32 training rows, 'rare' is constant" in told
    assert "in the 32 training rows, 'seldom' has one category" in told
    assert "change the seed" in told


# Configurations ---------------------------------------------------------------------------------


def test_a_table_of_a_file_is_written_and_read_again(study, tmp_path) -> None:
    path = tmp_path / "study.csv"
    study.to_csv(path, index=False)
    table = Table(
        path, ARROWS, ordinal={"stage": ("I", "II", "III")}, units={"age": "y"},
        missing=("?",), valid=0.2, test=0.3, seed=4,
    )  # fmt: skip
    again = from_config(json.loads(json.dumps(to_config(table))))
    assert again.variables == table.variables
    assert again.graph == table.graph
    assert rows_of(again).keys() == rows_of(table).keys()
    for name, row in rows_of(table).items():
        assert np.array_equal(row, rows_of(again)[name])
    short = {"$class": "data.table.Table", "source": str(path), "graph": "age -> visits"}
    assert read_data({"data": short}).graph.nodes == ("age", "visits")
    with pytest.raises(StoreError, match=r"no argument 'gaph'.*Did you mean 'graph'"):
        from_config({"$class": "data.table.Table", "source": str(path), "gaph": "age"})


def test_a_table_of_a_frame_is_kept_but_not_written(study) -> None:
    table = Table(study, ARROWS)
    assert table.source is study
    with pytest.raises(StoreError, match=r"to_csv\(path, index=False\)"):
        to_config(table)
