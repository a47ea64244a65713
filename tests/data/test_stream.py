import gc
import math
import pickle
import sys
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from subjunctive.data.stream import SizedStream, Stream, fit_variables, memmap
from subjunctive.graph import Graph
from subjunctive.mechanisms.linear import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.train import Objective, fit
from subjunctive.variable import Batch, Variable

N = 103
T, Y = Variable("t"), Variable("y", (2,))
ARM = Variable("arm", kind="categorical", categories=("placebo", "drug"))
BOTH = [T, ARM]


def row(i: int) -> dict[str, Any]:
    return {"t": float(i), "arm": ("placebo", "drug")[i % 2], "id": f"row {i}"}


class Rows(Dataset):
    """A map-style dataset that knows which of its rows are still held by somebody."""

    class Row(dict):
        pass

    def __init__(self, n: int, make: Callable[[int], dict[str, Any]] = row) -> None:
        self.n, self.make, self.asked = n, make, []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        made = Rows.Row(self.make(i))
        made.__class__.__hash__ = object.__hash__  # dictionaries have none
        self.alive.add(made)
        self.asked.append(i)
        self.most = max(self.most, len(self.alive))
        return made


class Endless(IterableDataset):
    def __init__(self, n: int = N) -> None:
        self.n = n

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(row, range(self.n))

    def __len__(self) -> int:  # of no meaning to a Stream: torch lets it be an estimate
        return self.n


def directory(home: Path, n: int = N) -> Path:
    place = home / "arrays"
    place.mkdir()
    np.save(place / "t.npy", np.arange(n, dtype=float))
    np.save(place / "arm.npy", np.arange(n, dtype=np.uint8) % 2)
    np.save(place / "id.npy", np.arange(n))
    return place


def table(home: Path, name: str = "rows.csv", n: int = N) -> Path:
    pandas.DataFrame([row(i) for i in range(n)]).to_csv(
        home / name, index=False, sep="\t" if ".tsv" in name else ","
    )
    return home / name


def parquet(home: Path, n: int = N) -> Path:
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame([row(i) for i in range(n)], index=np.arange(n) + 5)
    frame.to_parquet(home / "rows.parquet", row_group_size=10)
    return home / "rows.parquet"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "directory": directory,
    "text of the path": lambda home: str(directory(home)),
    "csv": table,
    "tsv.gz": lambda home: table(home, "rows.tsv.gz"),
    "parquet": parquet,
    "dataset": lambda home: Rows(N),
    "list": lambda home: [row(i) for i in range(N)],
    "iterable": lambda home: Endless(),
    "function": lambda home: lambda: map(row, range(N)),
}
UNSIZED = {"csv", "tsv.gz", "iterable", "function"}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return SOURCES[request.param](tmp_path)


def t_of(batches: Any) -> list[int]:
    return [int(v) for batch in batches for v in batch.values["t"]]


# Passes -----------------------------------------------------------------------------------------


def test_every_pass_has_every_row_once_in_an_order_of_its_own(source: Any) -> None:
    ours, theirs = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream = Stream(source, BOTH, batch_size=10, buffer=40, drop_last=False, seed=3)
    passes = [list(stream) for _ in range(3)]
    orders = [t_of(batches) for batches in passes]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for batches in passes:
        assert [len(b) for b in batches] == [10] * 10 + [3]
        for batch in batches:
            assert (batch.values["t"].dtype, batch.values["arm"].dtype) == (
                torch.float32,
                torch.int64,
            )
            assert batch.values["arm"].tolist() == [int(t) % 2 for t in batch.values["t"]]
            assert set(batch) == {"t", "arm"}
            assert not batch.seen
    torch.manual_seed(11)  # before a stream is made, torch's seed is of no effect
    again = Stream(source, BOTH, batch_size=10, buffer=40, drop_last=False, seed=3)
    assert [t_of(again) for _ in range(3)] == orders
    other = Stream(source, BOTH, batch_size=10, buffer=40, drop_last=False, seed=4)
    assert t_of(other) not in orders
    torch.set_rng_state(ours)
    t_of(again)
    assert torch.equal(ours, torch.get_rng_state())
    assert (theirs == np.random.get_state()[1]).all()  # noqa: NPY002


def test_unshuffled_rows_come_as_they_are_and_once_gives_all(source: Any) -> None:
    stream = Stream(source, {"x": T, "y": ARM}, batch_size=20, shuffle=False)
    assert [len(b) for b in stream] == [20] * 5
    assert t_of(stream) == list(range(100))
    shuffled = Stream(source, BOTH, batch_size=20, seed=1)
    assert t_of(shuffled.once()) == list(range(N))
    first = t_of(shuffled)
    assert first == t_of(Stream(source, BOTH, batch_size=20, seed=1))  # once() is no pass
    assert len(first) == 100 == len(set(first))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_length_is_there_where_rows_are_known_and_only_there(kind: str, tmp_path: Path) -> None:
    made = SOURCES[kind](tmp_path)
    for drop_last in (True, False):
        stream = Stream(made, BOTH, batch_size=10, drop_last=drop_last)
        assert isinstance(stream, Sized) == isinstance(stream, SizedStream) == (kind not in UNSIZED)
        if isinstance(stream, SizedStream):
            assert len(stream) == len(list(stream)) == (10 if drop_last else 11)
        else:
            with pytest.raises(TypeError):
                len(stream)  # type: ignore[arg-type]


def test_a_batch_may_have_one_row(source: Any) -> None:
    last = [len(b) for b in Stream(source, BOTH, batch_size=51, shuffle=False, drop_last=False)]
    assert last == [51, 51, 1]
    assert sorted(t_of(Stream(source, BOTH, batch_size=1, buffer=20))) == list(range(N))


def test_rows_are_well_mixed_though_blocks_are_read_in_one_go() -> None:
    data = Rows(2000)
    order = np.array(t_of(Stream(data, BOTH, batch_size=50, buffer=160)))
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.25  # 0.07 from run to run
    steps = np.diff(data.asked)
    assert (steps == 1).mean() >= 0.89  # blocks of ten
    assert sorted(data.asked) == list(range(2000))
    assert abs(np.corrcoef(data.asked, np.arange(2000))[0, 1]) < 0.25
    apart = np.abs(np.diff(order))
    assert np.median(apart) > 300  # of 585 where all orders are as likely
    batches = order.reshape(40, 50)
    assert min(len(set(b // 10)) for b in batches) > 10  # each draws from many blocks
    local = np.array(t_of(Stream(lambda: map(row, range(2000)), BOTH, batch_size=50, buffer=200)))
    assert np.abs(local - np.arange(2000)).max() > 150
    assert (np.sort(local[:50]) < 400).all()  # what is read from the front is mixed as far as that


def test_row_groups_come_in_another_order_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    stream = Stream(parquet(tmp_path), BOTH, batch_size=5, buffer=10)
    firsts = [t_of([next(iter(stream))]) for _ in range(5)]
    assert max(max(rows) for rows in firsts) > 40
    assert len({min(rows) // 10 for rows in firsts}) > 2
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    frame.loc[frame["t"] == 57, "t"] = math.inf
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=10)
    with pytest.raises(ValueError, match=r"row 57 of .* has NaN or infinite values of 't'"):
        list(stream)


def test_every_row_is_as_likely_in_every_batch() -> None:
    stream = Stream(Rows(40), BOTH, batch_size=10, buffer=16)
    counts = Counter(t for _ in range(200) for t in t_of([next(iter(stream))]))
    share = np.array([counts[i] for i in range(40)]) / 200
    assert np.abs(share - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 200)


def test_a_seed_of_torch_stands_for_the_number_of_the_pass() -> None:
    def begun(stream: Stream, *seeds: int) -> list[list[int]]:
        orders = []
        with torch.random.fork_rng(devices=()):
            for seed in seeds:
                torch.default_generator.manual_seed(seed)
                orders.append(t_of(stream))
        return orders

    stream = Stream(Rows(N), BOTH, batch_size=10)
    own = t_of(stream)
    first, second, third = begun(stream, 100, 200, 300)
    assert len({tuple(o) for o in (own, first, second, third)}) == 4
    assert begun(Stream(Rows(N), BOTH, batch_size=10), 200, 300) == [second, third]
    assert begun(stream, 200) == [second]  # whatever was iterated before
    assert len({tuple(o) for o in begun(stream, 7, 7)}) == 2  # seeded once, say, for many passes
    assert t_of(stream) not in (own, first, second, third)


def test_a_stream_sent_to_another_process_goes_on_as_it_would_have(tmp_path: Path) -> None:
    stream = Stream(directory(tmp_path), BOTH, batch_size=10)
    t_of(stream)
    sent = pickle.dumps(stream)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(12)  # as another process finds another seed
        there = pickle.loads(sent)
        assert isinstance(there, SizedStream)
        order = t_of(there)
    assert order == t_of(stream)


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_rows_held_are_bounded_by_the_buffer_and_a_block(sized: bool, shuffle: bool) -> None:
    buffer, batch, n = 64, 8, 960  # ten times what may be held
    data = Rows(n)
    source: Any = data if sized else lambda: (data[i] for i in range(n))
    stream = Stream(source, BOTH, batch_size=batch, buffer=buffer, shuffle=shuffle)
    block = 4 if sized and shuffle else 8
    given, held = 0, []
    for part in stream:
        held.append(len(data.asked) - given)
        given += len(part)
    assert given == n
    assert max(held) < (buffer if shuffle else batch) + block
    assert not shuffle or np.median(held) >= buffer  # and drawn from as many as was said
    gc.collect()
    assert data.most <= block + 1
    assert not data.alive


def test_memory_does_not_grow_with_a_mapped_file(tmp_path: Path) -> None:
    wide, n, buffer = 256, 20_000, 512
    x = Variable("x", (wide,))
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, wide))
    file[:] = np.arange(n, dtype=np.float32)[:, None]
    del file
    bound = (buffer + 6 * buffer // 16 + 2 * 64) * wide * 4  # pool, block in the making, batches
    whole = n * wide * 4
    assert whole > 10 * bound
    stream = Stream(tmp_path, [x], batch_size=64, buffer=buffer)
    tracemalloc.start()
    try:
        total = sum(float(batch.values["x"][:, 0].double().sum()) for batch in stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 0.99 * n * (n - 1) / 2
    assert buffer * wide * 4 < peak < bound


def test_bytes_stay_bytes_until_a_batch_is_given(tmp_path: Path) -> None:
    x = Variable("x", (1, 4, 4), loc=127.5, scale=127.5)
    np.save(tmp_path / "x.npy", np.arange(40 * 16, dtype=np.uint16).reshape(40, 1, 4, 4) % 256)
    wide = Stream(tmp_path, [x], batch_size=8)
    np.save(tmp_path / "x.npy", np.load(tmp_path / "x.npy").astype(np.uint8))
    small = Stream(tmp_path, [x], batch_size=8)
    assert wide._source.form["values"].itemsize == 4 * small._source.form["values"].itemsize
    for a, b in zip(wide.once(), small.once(), strict=True):
        assert a.values["x"].dtype == b.values["x"].dtype == torch.float32
        assert torch.equal(a.values["x"], b.values["x"])


def test_arrays_of_other_byte_orders_and_layouts_are_read(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(12, 2)
    np.save(tmp_path / "y.npy", np.asfortranarray(values).astype(">f8"))
    (batch,) = Stream(tmp_path, [Y], batch_size=12, drop_last=False).once()
    np.testing.assert_array_equal(batch.values["y"], values)


# What is missing --------------------------------------------------------------------------------


def test_what_dictionaries_lack_is_unseen() -> None:
    rows = [
        {"t": None, "arm": "drug", "y": [1, 2]},
        {"t": math.nan, "arm": None, "y": torch.tensor([3, 4])},
        {"t": torch.tensor(2.0), "arm": "drug", "y": None},
        {"t": np.float64(3), "arm": "placebo", "y": np.array([5, 6])},
    ]
    (batch,) = Stream(rows, [T, ARM, Y], batch_size=4).once()
    seen = {n: batch.mask(n).tolist() for n in batch}
    assert seen["t"] == [False, False, True, True]
    assert seen["arm"] == [True, False, True, True]
    assert seen["y"] == [True, True, False, True]
    assert batch.values["t"][2:].tolist() == [2, 3]
    assert batch.values["arm"][[0, 2, 3]].tolist() == [1, 1, 0]
    assert batch.values["y"][[0, 1, 3]].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert all(bool(v.isfinite().all()) for v in batch.values.values())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_gaps_of_tables_are_unseen(kind: str, tmp_path: Path) -> None:
    level = Variable("level", kind="ordinal", categories=("None", "01", "2"))
    frame = pandas.DataFrame(
        {
            "t": [1.5, np.nan, 3.0, np.nan],
            "arm": ["drug", "placebo", None, "drug"],
            "level": ["None", "01", "2", None],
        }
    )
    if kind == "csv":
        frame.to_csv(tmp_path / "x.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / "x.parquet")
    (batch,) = Stream(tmp_path / f"x.{kind}", [T, ARM, level], batch_size=4).once()
    assert batch.mask("t").tolist() == [True, False, True, False]
    assert batch.mask("arm").tolist() == [True, True, False, True]
    assert batch.mask("level").tolist() == [True, True, True, False]
    assert batch.values["t"][[0, 2]].tolist() == [1.5, 3.0]
    assert batch.values["level"][:3].tolist() == [0, 1, 2]


def test_a_column_may_change_its_looks_between_chunks(tmp_path: Path) -> None:
    lines = ["1", "2", "", "", "0.5", "7", "8", "9"]  # whole, missing, fractions, whole
    (tmp_path / "x.csv").write_text("t,arm\n" + "".join(f"{v},drug\n" for v in lines))
    stream = Stream(tmp_path / "x.csv", BOTH, batch_size=2, buffer=1, shuffle=False)
    batches = list(stream)
    assert [b.mask("t").tolist() for b in batches] == [[True] * 2, [False] * 2, *[[True] * 2] * 2]
    assert t_of(batches[:1]) == [1, 2]
    assert batches[2].values["t"].tolist() == [0.5, 7]


def test_masks_hide_whatever_their_rows_hold(tmp_path: Path) -> None:
    place = directory(tmp_path, 6)
    np.save(place / "t.npy", np.array([0, np.nan, 2, 3, np.inf, 5]))
    np.save(place / "t.seen.npy", np.array([True, False, True, True, False, True]))
    np.save(place / "arm.npy", np.array(["drug", "placebo", "?", "drug", "drug", "drug"]))
    np.save(place / "arm.seen.npy", np.array([True, True, False, True, True, True]))
    np.save(place / "id.seen.npy", np.zeros(6, bool))
    for batch in (*Stream(place, BOTH, batch_size=6), *Stream(place, BOTH, batch_size=6).once()):
        for t, seen, arm, told in zip(
            batch.values["t"].tolist(),
            batch.mask("t").tolist(),
            batch.values["arm"].tolist(),
            batch.mask("arm").tolist(),
            strict=True,
        ):
            assert not seen or t in (0, 2, 3, 5)
            assert math.isfinite(t)
            assert told == (t != 2) or not seen
            assert not told or arm == (0 if not seen and arm == 0 else 1)
        assert int(batch.mask("t").sum()) == 4


LEVEL = Variable("level", kind="ordinal", categories=("1", "2", "3"))
WELL = Variable("well", kind="categorical", categories=("True", "False"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_in_a_table_are_labels_where_categories_are_numbers(
    kind: str, tmp_path: Path
) -> None:
    frame = pandas.DataFrame({"level": [1, 2, 1], "well": [True, False, True], "site": [2, 1, 2]})
    frame["half"] = [1.0, None, 2.0]  # as 1 becomes beside a missing entry
    if kind == "csv":
        frame.astype({"half": "Int64"}).to_csv(tmp_path / "x.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / "x.parquet")
    half = LEVEL.rename("half")
    (batch,) = Stream(tmp_path / f"x.{kind}", [LEVEL, WELL, half], batch_size=3).once()
    assert batch.values["level"].tolist() == [0, 1, 0]
    assert batch.values["well"].tolist() == [0, 1, 0]
    assert batch.mask("half").tolist() == [True, False, True]
    assert batch.values["half"][[0, 2]].tolist() == [0, 1]


def test_numbers_of_a_typed_table_are_labels_or_codes_whatever_the_block() -> None:
    site = Variable("site", kind="categorical", categories=("south", "north", "east"))
    read = Stream([{"level": 0, "site": 0}], [LEVEL, site], batch_size=1)._source.from_frame
    for rows in ([1, 2], [2], [1, 2, 3]):
        found = read(0, pandas.DataFrame({"level": rows, "site": rows}) - [0, 1])["values"]
        assert found["level"].tolist() == found["site"].tolist() == [r - 1 for r in rows]
    with pytest.raises(ValueError, match="no category '0'"):
        read(0, pandas.DataFrame({"level": [0, 1], "site": [0, 1]}))


# Training ---------------------------------------------------------------------------------------


class Watched(Objective):
    """The model's own loss, and what every step saw."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, list[int]] = {}

    def loss(self, model: Any, batch: Batch, player: str, step: int) -> dict[str, torch.Tensor]:
        if model.training:
            self.steps[step] = t_of([batch])
        return model.loss(batch)


def chain() -> SCM:
    a, b = Variable("t", loc=20.0, scale=12.0), Variable("w", loc=40.0, scale=25.0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return SCM(Graph.parse("t -> w"), {"t": LinearGaussian(a), "w": LinearGaussian(b, [a])})


def bits(model: SCM) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def pair(i: int) -> dict[str, float]:
    return {"t": float(i), "w": 2.0 * i + (i * 7 % 5)}


@pytest.mark.parametrize(("stop", "sized"), [(7, True), (10, True), (13, False)])
def test_a_resumed_run_sees_the_same_rows_and_ends_in_the_same_bits(
    stop: int, sized: bool, tmp_path: Path
) -> None:
    def stream() -> Stream:
        source: Any = Rows(42, pair) if sized else lambda: map(pair, range(42))
        return Stream(source, chain().variables, batch_size=8, buffer=16, seed=1)

    def run(data: Any, **more: Any) -> tuple[bytes, dict[int, list[int]]]:
        model, watched = chain(), Watched()
        settings = {"steps": 17, "lr": 0.1, "progress": False, "seed": 5} | more
        held_out = Stream(Rows(20, pair), model.variables, batch_size=8, shuffle=False)
        fit(model, data, watched, valid=held_out, valid_every=4, **settings)
        return bits(model), watched.steps

    def stop_at(moment: Any) -> None:
        if moment.step == stop:
            raise KeyboardInterrupt

    whole, seen = run(stream())
    passes = [[t for s in range(p, p + 5) for t in seen[s]] for p in (0, 5, 10)]
    assert all(len(set(rows)) == 40 for rows in passes)
    assert all(a != b for a, b in pairwise(passes))
    begun = stream()
    with pytest.raises(KeyboardInterrupt):
        run(begun, directory=tmp_path, callbacks=[stop_at])
    end, rest = run(stream(), directory=tmp_path, resume=True)
    assert end == whole
    assert {s: rows for s, rows in seen.items() if s >= stop} == rest
    assert run(begun) == (whole, seen)  # a stream that was used goes as well as a new one


def test_epochs_are_passes() -> None:
    stream = Stream(Rows(42, pair), chain().variables, batch_size=8)
    assert fit(chain(), stream, epochs=3, progress=False).steps == 15
    endless = Stream(lambda: map(pair, range(42)), chain().variables, batch_size=8)
    with pytest.raises(ValueError, match="has no length: give steps"):
        fit(chain(), endless, epochs=3, progress=False)


# To write and to fit ----------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            {
                "pH.1": torch.randn(n, generator=make),
                "x": torch.randint(0, 256, (n, 3), generator=make).to(torch.uint8),
            },
            seen={"x": torch.rand(n, generator=make) < 0.5} if n > 3 else {},
            context={"row": torch.arange(n)},
        )
        for n in (3, 5, 4)
    ]
    place = memmap(tmp_path / "deep" / "rows", iter(batches), rows=12)
    assert place == tmp_path / "deep" / "rows"
    names = {"pH.1.npy", "x.npy", "x.seen.npy"}
    assert {p.name for p in place.iterdir()} == names
    assert [p.name for p in place.parent.iterdir()] == ["rows"]
    assert np.load(place / "x.npy", allow_pickle=False).dtype == np.uint8
    nodes = [Variable("pH.1"), Variable("x", (3,))]
    (again,) = Stream(place, nodes, batch_size=12).once()
    assert torch.equal(again.values["pH.1"], torch.cat([b.values["pH.1"] for b in batches]))
    mask = torch.cat([b.mask("x") for b in batches])
    assert torch.equal(again.mask("x"), mask)
    assert torch.equal(
        again.values["x"][mask], torch.cat([b.values["x"] for b in batches])[mask].float()
    )


def test_a_table_becomes_a_directory_one_batch_at_a_time(tmp_path: Path) -> None:
    rows = Stream(table(tmp_path), BOTH, batch_size=10).once()
    (batch,) = Stream(memmap(tmp_path / "x", rows, N), BOTH, batch_size=N).once()
    assert t_of([batch]) == list(range(N))
    assert batch.values["arm"].tolist() == [i % 2 for i in range(N)]


@pytest.mark.parametrize(
    ("batches", "rows", "error", "words"),
    [
        ([{"t": torch.zeros(3)}] * 2, 5, ValueError, "rows is 5, but batch 1 has row 5"),
        ([{"t": torch.zeros(3)}] * 2, 7, ValueError, "the batches have 6; give rows=6"),
        ([], 7, ValueError, "the batches have 0"),
        ([{"t": torch.zeros(3)}], 0, ValueError, "rows must be a whole number of at least 1"),
        ([{"t": np.array(["a"])}], 1, ValueError, "batch 0 holds no numbers .*encode it first"),
        ([{"t": np.array([None])}], 1, ValueError, "batch 0 holds no numbers .*encode it first"),
        (
            [Batch({"t": torch.zeros(1)}, targets={"t": torch.ones(1) > 0})],
            *(1, ValueError, "batch 0 has targets"),
        ),
        (
            [{"thick": torch.zeros(1)}, {"thic": torch.zeros(1)}],
            *(2, KeyError, "batch 1 names unknown node 'thic'.*mean 'thick'"),
        ),
        (
            [{"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(1)}],
            *(2, KeyError, "batch 1 names unknown node 'b'"),
        ),
        (
            [{"a": torch.zeros(1, 2)}, {"a": torch.zeros(1, 3)}],
            *(2, ValueError, r"batch 1 has 'a' as float32 of shape \(3,\), the first .* \(2,\)"),
        ),
        (
            [{"a": torch.zeros(1)}, {"a": torch.zeros(1).double()}],
            *(2, ValueError, "batch 1 has 'a' as float64"),
        ),
        ([{"../a": torch.zeros(1)}], 1, ValueError, "cannot be the name of a file"),
        ([{"a.seen": torch.zeros(1)}], 1, ValueError, "cannot be the name of a file"),
        ([{"a": torch.zeros(1), "b": torch.zeros(2)}], 1, ValueError, "rows do not line up"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    batches: list[Any], rows: int, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        memmap(tmp_path / "x", batches, rows)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(FileExistsError, match="exists already; delete it"):
        memmap(tmp_path / "x", [{"t": torch.zeros(1)}], 1)


def parts(values: torch.Tensor, seen: torch.Tensor, sizes: list[int]) -> list[Batch]:
    return [
        Batch({"x": v}, seen={"x": s})
        for v, s in zip(values.split(sizes), seen.split(sizes), strict=True)
    ]


def test_variables_are_fitted_as_on_the_whole() -> None:
    make = torch.Generator().manual_seed(0)
    for shape in ((), (2, 3)):
        values = 1e6 + 3 * torch.randn(500, *shape, generator=make, dtype=torch.float64)
        seen = torch.rand(500, generator=make) < 0.7
        seen[:9] = False  # a batch of which nothing was seen
        whole = Variable("x", shape, unit="px").fit(values, seen)
        found = fit_variables(parts(values, seen, [9, 1, 90, 400]), [Variable("x", shape)])["x"]
        assert found.loc == pytest.approx(whole.loc, rel=1e-14)
        assert found.scale == pytest.approx(whole.scale, rel=1e-10)
        assert (found.low, found.high) == (whole.low, whole.high)
    kept = fit_variables([{"x": torch.arange(3.0)}], {"x": Variable("x", unit="px")})["x"]
    assert (kept.unit, kept.loc, kept.scale) == ("px", 1.0, 1.0)


def test_a_stream_is_fitted_on_all_rows_and_no_pass_is_spent() -> None:
    stream, twin = (Stream(Rows(N), BOTH, batch_size=100) for _ in range(2))
    fitted = fit_variables(stream, BOTH)
    assert fitted["t"] == T.fit(torch.arange(float(N)))
    assert fitted["arm"] == ARM
    assert t_of(stream) == t_of(twin)


NAN = [{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([math.nan])}]


@pytest.mark.parametrize(
    ("batches", "whole"),
    [
        ([{"x": torch.ones(2)}] * 3, {"values": torch.ones(6)}),
        (NAN, {"values": torch.tensor([1.0, 2.0, math.nan])}),
        (
            parts(torch.ones(4), torch.zeros(4) > 0, [1, 3]),
            {"values": torch.ones(4), "seen": torch.zeros(4) > 0},
        ),
    ],
)
def test_what_cannot_be_fitted_is_said_as_for_the_whole(
    batches: Any, whole: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError) as expected:  # noqa: PT011
        Variable("x").fit(**whole)
    with pytest.raises(ValueError) as found:  # noqa: PT011
        fit_variables(batches, [Variable("x")])
    assert str(found.value) == str(expected.value)


def test_one_category_and_unknown_nodes_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="'arm' has one category in all rows"):
        fit_variables([{"arm": torch.ones(2).long()}] * 2, [ARM])
    with pytest.raises(KeyError, match=r"fit_variables\(\) names unknown node 'arms'.*mean 'arm'"):
        fit_variables(
            Stream(Rows(9), [ARM], batch_size=3),
            [ARM, Variable("arms", kind="ordinal", categories=("a", "b"))],
        )


# What is refused --------------------------------------------------------------------------------


def broken(home: Path, **arrays: Any) -> Path:
    for name, array in arrays.items():
        np.save(home / f"{name}.npy", array, allow_pickle=True)
    return home


def text(home: Path, content: str, name: str = "x.csv") -> Path:
    (home / name).write_text(content)
    return home / name


def damaged(home: Path) -> Path:
    (home / "t.npy").write_bytes(b"\x93NUMPY nothing of the kind")
    return home


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "unlike rows": (
        lambda p: Stream(broken(p, t=np.zeros(3), arm=np.zeros(4)), BOTH, batch_size=1),
        *(ValueError, r"do not line up: {'t.npy': 3, 'arm.npy': 4}"),
    ),
    "unlike mask": (
        lambda p: Stream(broken(p, **{"t": np.zeros(3), "t.seen": np.ones(2) > 0}), [T]),
        *(ValueError, r"do not line up: {'t.npy': 3, 't.seen.npy': 2}"),
    ),
    "mask of numbers": (
        lambda p: Stream(broken(p, **{"t": np.zeros(3), "t.seen": np.ones(3)}), [T]),
        *(ValueError, r"t.seen.npy is float64 of shape \(3,\); a mask is bool"),
    ),
    "mask of nobody": (
        lambda p: Stream(broken(p, **{"thick": np.zeros(3), "thic.seen": np.ones(3) > 0}), [T]),
        *(KeyError, "'thic.seen.npy' .* names unknown node 'thic'.*Did you mean 'thick'"),
    ),
    "objects": (
        lambda p: Stream(broken(p, t=np.array([1.0, None])), [T], batch_size=1),
        *(ValueError, r"t.npy cannot be mapped.*Arrays of objects.*np.save\(path, array.astype"),
    ),
    "damaged": (
        lambda p: Stream(damaged(p), [T], batch_size=1),
        *(ValueError, "t.npy cannot be mapped into memory"),
    ),
    "no file": (
        lambda p: Stream(broken(p, thicknes=np.zeros(3)), [Variable("thickness")]),
        *(FileNotFoundError, "no file 'thickness.npy'; it has 'thicknes.npy'. Did you mean 'thick"),
    ),
    "no file at all": (
        lambda p: Stream(p, [T]),
        *(FileNotFoundError, "no file 't.npy'; it has none"),
    ),
    "shape of a file": (
        lambda p: Stream(broken(p, y=np.zeros((3, 4))), [Y]),
        *(ValueError, r"y.npy has shape \(3, 4\), 'y' needs \(rows, 2\)"),
    ),
    "no axis": (
        lambda p: Stream(broken(p, t=np.zeros(())), [T]),
        *(ValueError, r"t.npy has shape \(\), 't' needs \(rows\)"),
    ),
    "no rows in files": (
        lambda p: Stream(broken(p, t=np.zeros(0)), [T]),
        *(ValueError, "is empty: it gives no row$"),
    ),
    "NaN in a file": (
        lambda p: list(
            Stream(broken(p, t=np.where(np.arange(99) == 70, np.nan, 0)), [T], batch_size=32)
        ),
        *(ValueError, "row 70 of .* has NaN or infinite values of 't'.*t.seen.npy"),
    ),
    "words in a file": (
        lambda p: list(Stream(broken(p, t=np.array(["a", "b"])), [T], batch_size=1)),
        *(ValueError, "rows 0 to 1 of .*'t' is continuous and needs numbers"),
    ),
    "unlike category": (
        lambda p: list(Stream([row(1)] * 5 + [{"t": 1, "arm": "drgu"}], BOTH, batch_size=1)),
        *(ValueError, "of the list: 'arm' has no category 'drgu'.*mean 'drug'"),
    ),
    "no node in a row": (
        lambda p: list(Stream([row(i) for i in range(7)] + [{"arm": 1, "tt": 1}], BOTH).once()),
        *(ValueError, "batch_size is 64, but the list has 8 rows; give batch_size=8 or less"),
    ),
    "no node in row 7": (
        lambda p: list(Stream([*map(row, range(7)), {"arm": 1, "tt": 1}], BOTH, batch_size=8)),
        *(KeyError, "row 7 of the list has no node 't'; it has 'arm', 'tt'. Did you mean 'tt'"),
    ),
    "shape in row 3": (
        lambda p: list(
            Stream(lambda: ({"y": [1, 2] if i != 3 else [1, 2, 3]} for i in range(8)), [Y]).once()
        ),
        *(ValueError, r"row 3 of the function has 'y' of shape \(3,\); the variable has \(2,\)"),
    ),
    "ragged": (
        lambda p: list(Stream([{"y": [[1], [1, 2]]}], [Y], batch_size=1)),
        *(ValueError, "row 0 of the list has no array as 'y'"),
    ),
    "labels and codes": (
        lambda p: list(Stream([row(0), {"t": 1, "arm": 1}], BOTH, batch_size=1)),
        *(ValueError, "rows 0 to 1 of the list have labels and codes of 'arm'; give one of them"),
    ),
    "too large for floats": (
        lambda p: list(Stream([{"t": 1.0}, {"t": 1e300}], [T], batch_size=1)),
        *(ValueError, "row 1 of the list has NaN or infinite values of 't' as float32"),
    ),
    "too fine for floats": (
        lambda p: list(
            Stream(
                [{"t": 1.7e9 + i} for i in range(8)],
                [replace(T, low=1.7e9, high=1.7e9 + 99)],
                batch_size=8,
            )
        ),
        *(
            ValueError,
            "rows 0 to 7 of the list: 't' is rounded by 7 within 99 as float32",
        ),
    ),
    "infinite": (
        lambda p: list(Stream([{"t": 1.0}, {"t": None}, {"t": math.inf}], [T], batch_size=1)),
        *(ValueError, "row 2 of the list has NaN or infinite values of 't'"),
    ),
    "NaN within an array": (
        lambda p: list(Stream([{"y": [1.0, math.nan]}], [Y], batch_size=1)),
        *(ValueError, "row 0 of the list has NaN or infinite values of 'y'"),
    ),
    "no dictionary": (
        lambda p: list(Stream([(1.0, 2.0)], [T], batch_size=1)),
        *(ValueError, "row 0 of the list is a tuple; let it be a dictionary"),
    ),
    "nothing": (lambda p: Stream([], [T]), ValueError, "the list is empty: it gives no row$"),
    "nothing from a function": (
        lambda p: list(Stream(lambda: iter(()), [T])),
        *(ValueError, "the function is empty: .*return a new iterator at every call"),
    ),
    "no iterator": (
        lambda p: list(Stream(lambda: 3, [T])),
        *(ValueError, "the function returns a int; let it return an iterator"),
    ),
    "too few": (
        lambda p: list(Stream(lambda: map(row, range(9)), BOTH, batch_size=10)),
        *(ValueError, "batch_size is 10, but the function has 9 rows; give batch_size=9 or less"),
    ),
    "once only": (
        lambda p: Stream(map(row, range(9)), BOTH),
        *(ValueError, "the map can be iterated once only; give a function"),
    ),
    "in memory": (
        lambda p: Stream(pandas.DataFrame({"t": [1.0]}), [T]),
        *(ValueError, r"the DataFrame is in memory: give it to fit\(\) as it is"),
    ),
    "a batch": (
        lambda p: Stream(Batch({"t": torch.zeros(2)}), [T]),
        *(ValueError, "the Batch is in memory"),
    ),
    "no source": (lambda p: Stream(3, [T]), ValueError, "the int is no source; give a path"),
    "no path": (lambda p: Stream(p / "x.csv", [T]), FileNotFoundError, "there is no data at"),
    "no such file": (
        lambda p: Stream(text(p, "t\n1\n", "x.xlsx"), [T]),
        *(ValueError, "x.xlsx is no directory of .npy files and no .csv"),
    ),
    "no column": (
        lambda p: Stream(text(p, "tt,arm\n1,drug\n"), BOTH),
        *(KeyError, "x.csv has no column 't'; it has 'tt', 'arm'. Did you mean 'tt'"),
    ),
    "a column twice": (
        lambda p: Stream(text(p, "t,t\n1,2\n"), [T]),
        *(ValueError, "x.csv has 2 columns 't'; rename them"),
    ),
    "pictures in a table": (
        lambda p: Stream(text(p, "y\n1\n"), [Y]),
        *(ValueError, r"is a table, .* 'y' has shape \(2,\); write .*memmap\(\)"),
    ),
    "an empty table": (
        lambda p: list(Stream(text(p, "t\n"), [T])),
        *(ValueError, "x.csv is empty: it gives no row$"),
    ),
    "an empty file": (
        lambda p: Stream(text(p, ""), [T]),
        *(ValueError, "x.csv cannot be read: .*a line of names first"),
    ),
    "words in a table": (
        lambda p: list(Stream(text(p, "t\n1\nmany\n"), [T], batch_size=1)),
        *(ValueError, "rows 0 to 1 of .*x.csv: 't' needs numbers: .*'many'"),
    ),
    "a line too long": (
        lambda p: list(Stream(text(p, "t,arm\n1,drug\n2,drug,3\n"), BOTH, batch_size=1)),
        *(ValueError, "x.csv cannot be read: .*as many fields in each line"),
    ),
    "all lines too long": (
        lambda p: list(Stream(text(p, "t,arm\n1,drug,3\n2,drug,3\n"), BOTH, batch_size=1)),
        *(ValueError, "x.csv cannot be read: .*as many fields in each line"),
    ),
    "no text": (
        lambda p: list(Stream(text(p, "t\n1\n", "x.csv.gz"), [T], batch_size=1)),
        *(ValueError, "x.csv.gz cannot be read"),
    ),
    "batch_size": (lambda p: Stream([row(1)], BOTH, batch_size=0), ValueError, "batch_size must"),
    "buffer": (lambda p: Stream([row(1)], BOTH, buffer=1.5), ValueError, "buffer must.*got 1.5"),
    "seed": (lambda p: Stream([row(1)], BOTH, seed=-1), ValueError, "seed must.*at least 0"),
    "no variable": (lambda p: Stream([row(1)], []), ValueError, r"must be Variables.*got \[\]"),
    "names": (lambda p: Stream([row(1)], ["t"]), ValueError, r"must be Variables.*got \['t'\]"),
    "a node twice": (lambda p: Stream([row(1)], [T, T]), ValueError, "'t' twice"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_said(what: str, tmp_path: Path) -> None:
    call, error, words = REFUSED[what]
    with pytest.raises(error, match=words):
        call(tmp_path)


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet needs pyarrow: pip install pyarrow"):
        Stream(text(tmp_path, "", "x.parquet"), [T])


def test_a_damaged_parquet_file_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parquet"):
        Stream(text(tmp_path, "PAR1", "x.parquet"), [T])


def test_a_generator_that_is_given_away_twice_is_said() -> None:
    spent = map(row, range(20))
    stream = Stream(lambda: spent, BOTH, batch_size=5)
    assert len(t_of(stream)) == 20
    with pytest.raises(ValueError, match="return a new iterator at every call"):
        next(iter(stream))
