import math

import numpy as np
import pandas
import pytest
import torch

from subjunctive.variable import Batch, Variable, as_matrix, known

ARM = Variable("arm", kind="categorical", categories=("placebo", "low", "high"))
STAGE = Variable("stage", kind="ordinal", categories=("i", "ii", "iii"))
DOSE = Variable("dose", loc=10.0, scale=4.0, unit="mg")


def test_restore_undoes_standardise():
    value = torch.tensor([2.0, 10.0, 18.0])
    assert DOSE.standardise(value).tolist() == [-2, 0, 2]
    assert torch.equal(DOSE.restore(DOSE.standardise(value)), value)
    codes = torch.tensor([0, 2])
    assert torch.equal(ARM.restore(ARM.standardise(codes)), codes)


def test_fit_takes_the_moments_of_what_was_seen():
    values = torch.tensor([1.0, 2.0, 6.0, 1e9])
    seen = torch.tensor([True, True, True, False])
    fitted = Variable("a").fit(values, seen)
    assert fitted.loc == pytest.approx(3.0)
    assert fitted.scale == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert (fitted.low, fitted.high) == (1.0, 6.0)


@pytest.mark.parametrize(
    ("variable", "values", "seen", "message"),
    [
        (DOSE, [3.0, 3.0], [True, True], "'dose' is constant"),
        (DOSE, [3.0, 4.0], [False, False], "'dose' has no seen value"),
        (DOSE, [3.0, math.nan], [True, True], "'dose' has NaN or infinite values"),
        (DOSE, [3.0, math.inf], [True, True], "'dose' has NaN or infinite values"),
        (ARM, [1, 1], [True, True], "'arm' has one category in all rows"),
        (ARM, [1, 7], [True, True], "'arm' has 3 categories, coded 0 to 2; got 1 to 7"),
    ],
)
def test_columns_that_cannot_be_fitted_are_named(variable, values, seen, message):
    with pytest.raises(ValueError, match=message):
        variable.fit(torch.tensor(values), torch.tensor(seen))


def test_labels_and_codes_are_encoded():
    assert ARM.encode(["high", "placebo"]).tolist() == [2, 0]
    assert ARM.encode(np.array([1.0, 2.0])).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"no category 'hihg'.*Did you mean 'high'"):
        ARM.encode("hihg")
    with pytest.raises(ValueError, match="codes are integers"):
        ARM.encode(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="got -1 to 0"):
        ARM.encode([-1, 0])


@pytest.mark.parametrize("value", [["a", "b"], [None, "b"], [[1.0], [1.0, 2.0]], [1j]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"'dose'.* needs numbers"):
        DOSE.encode(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "non-empty name"),
        ({"name": "a", "kind": "catgorical"}, "Did you mean 'categorical'"),
        ({"name": "a", "scale": 0.0}, "constant column"),
        ({"name": "a", "scale": math.nan}, "constant column"),
        ({"name": "a", "kind": "ordinal", "categories": ("x",)}, "at least two categories"),
        (
            {"name": "a", "kind": "ordinal", "categories": ("x", "y"), "shape": (2,)},
            "use one node each",
        ),
    ],
)
def test_what_no_node_can_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Variable(**arguments)


def test_known_offers_the_nearest_name():
    known("a", ["a"], "do()")
    with pytest.raises(KeyError, match="Did you mean 'intensity'"):
        known("intenstiy", ["thickness", "intensity"], "do()")


# Matrices ------------------------------------------------------------------------------------


def test_parents_lie_side_by_side():
    image = Variable("x", shape=(1, 2, 2))
    values = {
        "dose": torch.tensor([0.5, -1.0]),
        "arm": torch.tensor([2, 0]),
        "stage": torch.tensor([1, 2]),
        "x": torch.arange(8.0).reshape(2, 1, 2, 2),
    }
    variables = [STAGE, DOSE, ARM, image]
    matrix = as_matrix(values, variables)
    assert matrix.tolist() == [
        [1, 1, 0, 0.5, 0, 0, 1, 0, 1, 2, 3],
        [1, 1, 1, -1.0, 1, 0, 0, 4, 5, 6, 7],
    ]
    assert matrix.shape[1] == sum(v.width for v in variables)
    assert as_matrix(
        {"dose": values["dose"].double(), "arm": values["arm"]}, [ARM, DOSE]
    ).dtype == (torch.float64)


# Batches --------------------------------------------------------------------------------------


def test_a_frame_becomes_codes_and_masks():
    frame = pandas.DataFrame(
        {
            "dose": [1.0, None, 3.0],
            "arm": pandas.Categorical(["low", None, "high"], categories=["low", "high", "placebo"]),
            "stage": pandas.array([0, 2, None], dtype="Int64"),
        }
    )
    batch = Batch.of(frame, [DOSE, ARM, STAGE])
    assert batch.values["arm"][batch.mask("arm")].tolist() == [1, 2]
    assert batch.mask("dose").tolist() == [True, False, True]
    assert batch.values["stage"][:2].tolist() == [0, 2]
    assert batch.mask("stage").tolist() == [True, True, False]
    assert batch.values["dose"].dtype == torch.get_default_dtype()
    assert len(batch) == 3


def test_codes_with_gaps_and_columns_without_a_value_are_read():
    frame = pandas.DataFrame(
        {"stage": [2.0, None, 0.0], "arm": [None, None, None], "dose": [math.nan] * 3}
    )
    batch = Batch.of(frame, [STAGE, ARM, DOSE])
    assert batch.values["stage"][[0, 2]].tolist() == [2, 0]
    assert batch.mask("stage").tolist() == [True, False, True]
    assert not batch.mask("arm").any()
    assert not batch.mask("dose").any()
    assert ARM.encode(np.array([1, 2], dtype=object)).tolist() == [1, 2]


def test_integers_with_gaps_are_numbers_too():
    frame = pandas.DataFrame({"dose": pandas.array([3, None], dtype="Int64")})
    batch = Batch.of(frame, [DOSE])
    assert batch.values["dose"][0] == 3
    assert batch.mask("dose").tolist() == [True, False]


def test_a_frame_of_text_for_a_number_names_the_column():
    with pytest.raises(ValueError, match=r"'dose'.*needs numbers"):
        Batch.of(pandas.DataFrame({"dose": ["3 mg", "4 mg"]}), [DOSE])
    with pytest.raises(KeyError, match=r"unknown node 'dsoe'.*Did you mean 'dose'"):
        Batch.of(pandas.DataFrame({"dsoe": [3.0]}), [DOSE])
    with pytest.raises(ValueError, match=r"no category 'lwo'.*Did you mean 'low'"):
        Batch.of(pandas.DataFrame({"arm": ["lwo"]}), [ARM])


def test_numbers_become_one_row():
    batch = Batch.of({"dose": 3, "arm": "low"}, [DOSE, ARM])
    assert (len(batch), batch.values["arm"].tolist()) == (1, [1])


def test_a_frame_that_may_not_be_written_is_read_without_a_warning():
    column = np.array([1.0, 2.0])
    column.flags.writeable = False
    assert Batch.of({"dose": column}, [DOSE]).values["dose"].tolist() == [1, 2]


def test_rows_are_taken_and_repeated_everywhere():
    batch = Batch(
        {"dose": torch.arange(3.0)},
        {"dose": torch.tensor([True, False, True])},
        targets={"dose": torch.tensor([False, True, False])},
        context={"env": torch.tensor([7, 8, 9])},
    )
    twice = batch[torch.tensor([2, 1])].repeat(2)
    assert twice.values["dose"].tolist() == [2, 2, 1, 1]
    assert twice.mask("dose").tolist() == [True, True, False, False]
    assert twice.targets["dose"].tolist() == [False, False, True, True]
    assert twice.context["env"].tolist() == [9, 9, 8, 8]
    assert batch.mask("elsewhere").tolist() == [False] * 3
    assert batch.to(torch.float64).values["dose"].dtype == torch.float64
    assert batch.to(torch.float64).context["env"].dtype == torch.int64
    assert list(batch.only([])) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([{}], "at least one node"),
        ([{"a": torch.zeros(2), "b": torch.zeros(3)}], "rows do not line up"),
        ([{"a": torch.zeros(())}], "batch first"),
        ([{"a": [1.0]}], "got list; use Batch.of"),
        ([{"alpha": torch.zeros(2)}, {"alpa": torch.ones(2).bool()}], "Did you mean 'alpha'"),
        ([{"a": torch.zeros(2)}, {"a": torch.ones(2)}], "must be boolean"),
        ([{"a": torch.zeros(2)}, {"a": torch.ones(2, 1).bool()}], r"\(2, 1\)"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batch(*arguments)
