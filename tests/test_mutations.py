"""A thousand damaged or forged copies of a model: the same answers, or one clear error; never code.

`config.json` carries its own checksum and that of the weights, so that damage is found before a
byte is interpreted. Who knows the format can forge the checksums; then what is built must still be
a model of known parts, whose answers differ only where a number did that a model may have.
"""

import hashlib
import json
import pickle
import random
import sys
from contextlib import contextmanager

import pytest
import torch

from subjunctive.checkpoint import _checksum
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import LinearGaussian
from subjunctive.scm import SCM
from subjunctive.store import CONFIG, WEIGHTS, StoreError, load, save
from subjunctive.variable import Variable

ALIKE = ("unit", "low", "high", "package")  # free, and of no weight in a sample
FREE = ("loc", "scale")  # free, and seen in a sample; so is a shape of as many numbers

# What runs ----------------------------------------------------------------------------------------

CODE = {"exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
CODE |= {"pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect"}
SEEN: list[str] = []
WATCHING: list[bool] = []  # an audit hook can never be taken away, so it sleeps while this is empty


def hook(event, args):
    if WATCHING and (event in CODE or (event == "open" and set(str(args[1])) & set("wax+"))):
        SEEN.append(event)


@contextmanager
def watching():
    """Note whatever runs code, opens a pickle, writes a file or calls out."""
    WATCHING.append(True)
    try:
        yield SEEN
    finally:
        WATCHING.clear()


class Trap:
    """Calls a function if it is ever unpickled."""

    def __reduce__(self):
        return len, ("trap",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of both files of a small model, its answers, and a directory to spoil."""
    place = tmp_path_factory.mktemp("mutations") / "model"
    with seeded(0):
        t = Variable("t", loc=2.0, scale=0.5, unit="px", low=0.5, high=3.5)
        y = Variable("y", loc=-1.0, scale=3.0)
        mechanisms = {"t": LinearGaussian(t), "y": LinearGaussian(y, [t])}
        save(SCM(Graph.parse("t -> y"), mechanisms), place)
    files = {name: (place / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    expected = load(place).sample(4, seed=0)
    sys.addaudithook(hook)
    return place, files, expected


def test_the_watch_would_see_code(tmp_path):
    sys.addaudithook(hook)
    with watching() as seen:
        exec("1 + 1")
        pickle.loads(pickle.dumps(Trap()))
        (tmp_path / "file").write_text("x")
    assert {"exec", "pickle.find_class", "open"} <= set(seen)
    seen.clear()
    exec("1 + 1")
    assert not seen


# What became of a copy ----------------------------------------------------------------------------


def same(a, b):
    """Whether two answers have the same bits, those of NaN too."""
    assert a.keys() == b.keys()
    return all(torch.equal(a[k].view(torch.int32), b[k].view(torch.int32)) for k in a)


def verdict(saved, files):
    """Write these files, load them; return "refused", "same" or "other", all else is a failure."""
    place, _, expected = saved
    for name, data in files.items():
        (place / name).write_bytes(data)
    SEEN.clear()
    try:
        with watching():
            model = load(place)
    except StoreError as error:
        text = str(error)
        assert str(place) in text or text.startswith("model"), text
        assert 20 < len(text) < 1500, text
        found = "refused"
    else:
        assert type(model) is SCM
        assert model.graph == Graph.parse("t -> y")
        answers = model.sample(4, seed=0)
        for name, value in answers.items():
            assert value.dtype == torch.float32
            assert value.shape == (4, *model.variables[name].shape)
        found = "same" if same(answers, expected) else "other"
    assert SEEN == []
    return found


def hurt(data, dice):
    """Return the bytes with a bit flipped, bytes set, cut out, put in, copied, or cut off."""
    at, span = dice.randrange(len(data)), dice.randrange(1, 9)
    noise = dice.randbytes(span)
    return [
        lambda: data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + noise + data[at + span :],
        lambda: data[:at] + data[at + span :],
        lambda: data[:at] + noise + data[at:],
        lambda: data[: at + span] + data[at:],
        lambda: data[:at],
    ][dice.randrange(6)]()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_bytes_that_changed_are_found_or_mean_nothing(saved, name):
    files, dice = saved[1], random.Random(name)
    found = []
    for _ in range(225):
        data = hurt(files[name], dice)
        found.append(verdict(saved, {**files, name: data}))
        assert found[-1] != "other"
        assert found[-1] == "refused" or name == CONFIG or data == files[name]
    assert found.count("refused") > 180


# Trees --------------------------------------------------------------------------------------------


def spots(tree):
    """Yield every container of a tree of JSON values with each of its keys."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        yield tree, key
        if isinstance(value, dict | list):
            yield from spots(value)


def leaves(tree, path=()):
    """Return path -> value of a tree's leaves."""
    if not isinstance(tree, dict | list) or not tree:
        return {path: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {p: v for key, value in pairs for p, v in leaves(value, (*path, key)).items()}


def nested(depth):
    tree = []
    for _ in range(depth):
        tree = [tree]
    return tree


VALUES = [None, True, -1, 0, 2.5, -0.0, 1e308, 5e-324, 2**63, 10**30, 10**400, "", "t", "px", "nan"]
VALUES += ["t -> y", "y -> t", "float64", [], {}, [1], {"a": 1}, {"$ref": 1}, {"$ref": 9}]
VALUES += [{"$float": "nan"}, {"$float": "inf"}, {"$tuple": [10**30]}, {"$tuple": [-1]}]
VALUES += [{"$class": "os.system", "command": "true"}, {"$name": "builtins.exec"}, nested(40)]
VALUES += [{"$class": "subprocess.Popen", "args": ["true"]}, {"$class": "builtins.eval"}]
VALUES += [{"$name": "torch.load"}, {"$class": "torch.nn.Identity"}, {"$tensor": [1], "dtype": "x"}]


def bent(tree, dice):
    """Return the tree with values or keys swapped, one of them changed, or one gone."""
    tree = json.loads(json.dumps(tree))
    all_spots = list(spots(tree))
    (into, key), (other, last) = dice.sample(all_spots, 2)
    kind = dice.randrange(6)
    if kind == 0:
        one, two = json.dumps(into[key]), json.dumps(other[last])  # a part may hold the other
        into[key], other[last] = json.loads(two), json.loads(one)
    elif kind == 1 and isinstance(into, dict):
        second = dice.choice(list(into))
        swap = {key: second, second: key}
        pairs = [(swap.get(k, k), v) for k, v in into.items()]
        into.clear()
        into.update(pairs)
    elif kind == 2:
        del into[key]
    elif kind == 3 and isinstance(into, dict):
        into[dice.choice(["unti", "$id", "$class", "x", "", "\ud800"])] = into.pop(key)
    else:
        into[key] = dice.choice(VALUES)
    return tree


def test_swapped_values_and_keys_are_found_by_the_checksum(saved):
    files, dice = saved[1], random.Random(0)
    document = json.loads(files[CONFIG])
    found = []
    for _ in range(150):
        data = json.dumps(bent(document, dice)).encode()
        found.append(verdict(saved, {**files, CONFIG: data}))
        assert found[-1] == ("same" if json.loads(data) == document else "refused")
    assert found.count("refused") > 130


def forged(document):
    """Return the bytes of a config with the checksum that belongs to it."""
    rest = {k: v for k, v in document.items() if k != "checksum"}
    return json.dumps({**rest, "checksum": _checksum(rest)}).encode()


def test_a_forged_tree_answers_otherwise_only_where_a_number_may_differ(saved):
    files, dice = saved[1], random.Random(1)
    document = json.loads(files[CONFIG])
    del document["checksum"]
    before, found = leaves(document), []
    for _ in range(300):
        changed = bent(document, dice)
        found.append(verdict(saved, {**files, CONFIG: forged(changed)}))
        after = leaves(changed)
        paths = {p for p in {*before, *after} if before.get(p, p) != after.get(p, p)}
        if found[-1] == "other":
            assert all({*p} & {*FREE, *ALIKE, "shape"} for p in paths), paths
            assert any({*p} & {*FREE, "shape"} for p in paths)
    assert {"refused", "same", "other"} == set(found)
    assert found.count("refused") > 150


@pytest.mark.parametrize("key", ALIKE + FREE)
def test_a_forged_number_that_a_model_may_have_is_taken_as_it_stands(saved, key):
    files = saved[1]
    document = json.loads(files[CONFIG])
    value = {"unit": "mm", "package": "9.9"}.get(key, 3.25)
    where = document if key == "package" else document["model"]["mechanisms"]["t"]["variable"]
    where[key] = value
    assert verdict(saved, {**files, CONFIG: forged(document)}) == (
        "other" if key in FREE else "same"
    )
    if key != "package":
        assert getattr(load(saved[0]).variables["t"], key) == value


def test_forged_weights_are_numbers_of_the_same_model_or_refused(saved):
    files, dice = saved[1], random.Random(2)
    document = json.loads(files[CONFIG])
    head = 8 + int.from_bytes(files[WEIGHTS][:8], "little")
    found = []
    for i in range(100):
        data = files[WEIGHTS]
        if i % 2:
            data = hurt(data, dice)
        else:  # the header stays: numbers alone are hurt
            at = dice.randrange(head, len(data))
            data = data[:at] + dice.randbytes(1) + data[at + 1 :]
        document["files"][WEIGHTS] = hashlib.sha256(data).hexdigest()
        found.append(verdict(saved, {CONFIG: forged(document), WEIGHTS: data}))
        assert i % 2 or found[-1] != "refused"
    assert {"refused", "other"} <= set(found)


# Extremes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["loc", "scale", "low", "$id", "unit"])
@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "9" * 5000, "1" + "0" * 400, "1e-999", "NaN"]
)
def test_huge_numbers_are_refused_or_mean_nothing(saved, key, number):
    files = saved[1]
    document = json.loads(files[CONFIG])
    document["model"]["mechanisms"]["t"]["variable"][key] = "@"
    data = json.dumps(document).replace('"@"', number).encode()
    assert verdict(saved, {**files, CONFIG: data}) == "refused"  # by the checksum
    try:
        data = forged(json.loads(data))
    except ValueError:
        return  # no checksum belongs to a number that cannot be read
    found = verdict(saved, {**files, CONFIG: data})
    assert found == "refused" or key in ALIKE or (key, number) == ("loc", "1e-999")


@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize("marks", ["[]", '{"a":}'])
def test_deep_trees_are_refused(saved, depth, marks):
    files = saved[1]
    opening, closing = (marks[:-1], marks[-1]) if marks != "[]" else ("[", "]")
    deep = opening * depth + "1" + closing * depth
    for spot in (b'"px"', b'"t -> y"'):
        data = files[CONFIG].replace(spot, deep.encode(), 1)
        assert verdict(saved, {**files, CONFIG: data}) == "refused"
    assert verdict(saved, {**files, CONFIG: deep.encode()}) == "refused"


# Forgeries ----------------------------------------------------------------------------------------


def test_trees_of_every_depth_are_refused(saved):
    files = saved[1]
    for depth in range(850, 1000):  # where the reader's own recursion ends
        data = files[CONFIG].replace(b'"px"', b"[" * depth + b"]" * depth)
        assert verdict(saved, {**files, CONFIG: data}) == "refused"


def whole_dtype(document, place):
    document["dtypes"][""] = "int64"


def no_package(document, place):
    del document["package"]


def long_name(document, place):
    document["files"] = {"x" * 300: "0"}


def outside(document, place):
    document["files"] = {f"../{place.name}/{WEIGHTS}": document["files"][WEIGHTS]}


def data_set(document, place):
    folder = {"source": "mnist", "data_dir": str(place)}
    document["model"]["encoder"] = {"$class": "data.morpho.MorphoDigits", **folder}


def another_room(document, place):
    document["model"]["encoder"] = {"$name": "hub.from_hub"}


def text_for_number(document, place):
    document["model"]["mechanisms"]["t"]["variable"]["low"] = "0.5"


def a_huge_shape(document, place):
    document["model"]["mechanisms"]["t"]["variable"]["shape"] = [2**48]


FORGERIES = [whole_dtype, no_package, long_name, outside, data_set, another_room]


@pytest.mark.parametrize("forge", [*FORGERIES, text_for_number, a_huge_shape])
def test_forgeries_are_refused_by_the_one_error(saved, forge):
    files = saved[1]
    document = json.loads(files[CONFIG])
    forge(document, saved[0])
    assert verdict(saved, {**files, CONFIG: forged(document)}) == "refused"
