"""What is saved comes back to the last bit, and nothing else ever comes back."""

import enum
import json
import pickle
import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from linear_gaussian import GRAPH, scm
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, Uniform

from subjunctive.card import walk
from subjunctive.checkpoint import _checksum
from subjunctive.diffusion import DDIM, Cosine
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms import Known, LinearGaussian, Tied
from subjunctive.nn import MLP
from subjunctive.scm import SCM
from subjunctive.store import StoreError, from_config, load, save, to_config
from subjunctive.variable import Batch, Variable


def same(a, b):
    """Whether two answers are the same to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a.dtype == b.dtype and torch.equal(a, b)


def answers(model):
    """Noise, samples, abduction and loss of a model or a mechanism, with fixed draws."""
    with seeded(0), torch.no_grad():
        if isinstance(model, SCM):
            noise = model.noise(5)
            values = model.predict(noise)
            return {"u": noise, "x": values, "again": model.abduct(Batch(values))}
        return {n: t.clone() for n, t in model.state_dict().items()}


# Round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", walk(), ids=lambda cls: cls.__name__)
def test_every_method_comes_back_to_the_last_bit(cls, tmp_path):
    with seeded(1):
        model, batch = walk()[cls].example()
    if any(isinstance(m, Known) for m in model.modules()):
        return  # made of functions: see below
    model = model.eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert same(dict(model.state_dict()), dict(again.state_dict()))
    with seeded(0):
        expected = model.loss(batch) if isinstance(model, SCM) else None
    with seeded(0):
        assert expected is None or same(expected, again.loss(batch))
    if isinstance(model, Mechanism):
        values = batch.values  # standardised: it is a mechanism's example
        for m in (model, again):
            with seeded(0):
                u = m.abduct(values[model.variable.name], values)
            expected = u if m is model else expected
            assert same(u, expected)
        assert same(model(u, values), again(u, values))


def test_a_whole_scm_answers_alike_and_its_graph_is_kept(tmp_path):
    model = scm().eval()
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert same(answers(model), answers(again))
    assert again.graph == GRAPH
    assert again.variables == model.variables
    assert not again.training


def test_columns_may_be_called_anything(tmp_path):
    a, b = Variable("type"), Variable("pH.1", kind="ordinal", categories=("$id", "$class"))
    c = Variable("$ref", unit="°C", low=-np.inf, high=3.5)
    model = SCM(
        Graph(["$ref", "type"], kinds={"$ref": "latent"}),
        {"type": LinearGaussian(a), "$ref": LinearGaussian(c)},
    )
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.variables == model.variables
    assert again.graph == model.graph
    assert from_config(to_config({"x.y": b, "$class": c})) == {"x.y": b, "$class": c}


def test_dtypes_are_kept_wherever_they_differ(tmp_path):
    model = scm().double()
    model.mechanisms["y"].to(torch.float16)
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    before = {n: t.dtype for n, t in [*model.named_parameters(), *model.named_buffers()]}
    after = {n: t.dtype for n, t in [*again.named_parameters(), *again.named_buffers()]}
    assert before == after
    assert {torch.float64, torch.float16} <= set(before.values())
    assert after["origin"] == torch.float64  # a buffer that is not in the state
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_shared_parts_are_written_once_and_stay_shared(tmp_path):
    zero, one, two = (Variable(f"x[{t}]") for t in range(3))
    step = LinearGaussian(one, [zero])
    mechanisms = {
        "x[0]": LinearGaussian(zero),
        "x[1]": step,
        "x[2]": Tied(step, two, [one]),
    }
    model = SCM(Graph.parse("x[0] -> x[1] -> x[2]"), mechanisms)
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.mechanisms["x[2]"].mechanism is again.mechanisms["x[1]"]
    assert again.mechanisms["x[1]"].parents[0] is again.mechanisms["x[0]"].variable
    stored = read_tensors((tmp_path / "m" / "model.safetensors").read_bytes())
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters())
    assert same(answers(model.eval()), answers(again))


class Tower(nn.Module):
    """A user's own module, of everything that a constructor may take."""

    def __init__(self, net, act, scale, *layers, table=None, fn=None, **more):
        super().__init__()
        self.net, self.act, self.scale, self.layers = net, act, scale, nn.ModuleList(layers)
        self.table, self.fn, self.more = table, fn, more
        self.register_buffer("copy", None if table is None else table.clone())


class Colour(enum.Enum):
    """A user's own enumeration."""

    RED = "r"
    BLUE = "b"


@dataclass(frozen=True)
class Options:
    """A user's own dataclass."""

    colour: Colour
    pair: tuple[int, float]
    by_number: dict


def square(x):
    return x * x


def tower(**more):
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.SiLU(), nn.Conv2d(1, 1, 3, padding="same"))
    return Tower(net, nn.GELU, -np.inf, MLP(2, 2), nn.Identity(), fn=square, **more)


OURS = (Tower, Colour, Options, square)


def test_a_users_own_classes_come_back_when_they_are_named(tmp_path):
    options = Options(Colour.BLUE, (3, np.float32(0.5)), {1: "a", None: [np.int64(4), True]})
    table = torch.arange(300, dtype=torch.int16).reshape(3, 100)
    short = torch.tensor([[0.1, torch.nan], [-torch.inf, 2.0]], dtype=torch.bfloat16)
    array, empty = np.linspace(0, 1, 5, dtype=np.float64), torch.zeros(0, 3)
    more = {"options": options, "short": short, "array": array, "empty": empty}
    model = tower(table=table, **more, dtype=torch.float16)
    save(model, tmp_path / "m")
    with pytest.raises(StoreError, match=r"model: 'Tower' is no class.*classes="):
        load(tmp_path / "m")
    again = load(tmp_path / "m", classes=OURS)
    assert again.more["options"] == options
    assert type(again.more["options"].pair) is tuple
    assert torch.equal(again.table, table)
    assert again.table.dtype == torch.int16
    assert again.more["short"].dtype == torch.bfloat16
    assert torch.equal(again.more["short"].isnan(), short.isnan())
    assert torch.equal(again.more["short"].nan_to_num(), short.nan_to_num())
    np.testing.assert_array_equal(again.more["array"], array)
    assert again.more["array"].dtype == np.float64
    assert again.more["empty"].shape == (0, 3)
    assert (again.act, again.fn, again.scale) == (nn.GELU, square, -np.inf)
    assert again.more["dtype"] is torch.float16
    assert [type(m) for m in again.net] == [nn.Linear, nn.SiLU, nn.Conv2d]
    assert again.net[0].bias is None
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def linear(u, parents):
    return 2 * u + parents["t"]


def unlinear(x, parents):
    return (x - parents["t"]) / 2


@pytest.mark.parametrize(
    "noise",
    [
        Normal(0.3, 2.0),
        Uniform(torch.tensor(-1.0), torch.tensor(2.0)),
        {"a": Bernoulli(logits=torch.tensor(0.2)), "b": Categorical(torch.tensor([0.25, 0.75]))},
        Independent(Normal(torch.zeros(3), torch.ones(3)), 1),
    ],
)
def test_known_formulas_keep_their_functions_and_their_noise(tmp_path, noise):
    model = Known(Variable("x"), [Variable("t")], linear, unlinear, noise)
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", classes=[linear, unlinear])
    assert (again.fn, again.inverse) == (linear, unlinear)
    pairs = [(noise, again.noise)]
    if isinstance(noise, dict):
        pairs = [(noise[k], again.noise[k]) for k in noise]
    for a, b in pairs:
        with seeded(0):
            x = a.sample((4,))
        with seeded(0):
            assert torch.equal(x, b.sample((4,)))
        assert torch.equal(a.log_prob(x), b.log_prob(x))


def test_loading_and_saving_leave_the_generator_alone(tmp_path):
    model = scm()
    before = torch.get_rng_state()
    save(model, tmp_path / "m")
    load(tmp_path / "m")
    assert torch.equal(before, torch.get_rng_state())


# Configs ------------------------------------------------------------------------------------------


def test_a_yaml_config_builds_a_recipe():
    text = """
    $class: models.causal_diffae.CausalDiffAE
    graph: {$graph: t -> x}
    variables:
      t: {$class: variable.Variable, name: t, loc: 2.0}
      x: {$class: variable.Variable, name: x, shape: [1, 8, 8]}
    code: 4
    width: 8
    multipliers: [1, 2]
    sampler:
      $class: diffusion.sample.DDIM
      schedule: {$class: diffusion.schedule.Cosine}
      steps: 3
    """
    model = from_config(yaml.safe_load(text))
    assert isinstance(model, SCM)
    assert model.variables["t"].loc == 2.0
    assert model.mechanisms["x"].sampler.steps == 3


def test_a_config_survives_json_and_builds_twice():
    sampler = DDIM(Cosine(0.01), steps=7, eta=0.5)
    config = json.loads(json.dumps(to_config(sampler)))
    assert config["$class"] == "diffusion.sample.DDIM"
    assert config["schedule"] == {"$class": "diffusion.schedule.Cosine", "floor": 0.01}
    a, b = from_config(config), from_config(config)
    assert a is not b
    assert to_config(a) == to_config(b) == config


class Point:
    """Writes itself."""

    def __init__(self, polar):
        self.x = polar[0] * np.cos(polar[1])

    def to_config(self):
        return {"x": self.x}

    @classmethod
    def from_config(cls, config):
        made = cls((0, 0))
        made.x = config["x"]
        return made


def test_a_class_may_write_itself():
    point = Point((2.0, 0.5))
    config = to_config([point, point])
    assert config[1] == {"$ref": 1}
    a, b = from_config(config, classes=[Point])
    assert a is b
    assert a.x == point.x


VARIABLE = {"$class": "variable.Variable", "name": "t"}
TOO_DEEP: list = []
for _ in range(100_000):
    TOO_DEEP = [TOO_DEEP]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**VARIABLE, "unti": "px"}, r"config\.unti: Variable has no argument 'unti'.*'unit'"),
        ({"$class": "variable.Variable"}, "config: Variable needs the argument 'name'"),
        ({"$class": "variable.Variabel", "name": "t"}, "Did you mean 'variable.Variable'"),
        ({"$class": "variabel.Variable", "name": "t"}, "Did you mean 'variable'"),
        ({"a": [1, {**VARIABLE, "kind": "odd"}]}, r"config\.a\[1\]: .*kind 'odd'"),
        ({**VARIABLE, "loc": {"$flaot": "inf"}}, r"config\.loc: unknown key '\$flaot'.*\$float"),
        ({"$graph": "a -> b -> a"}, "a directed cycle: b -> a -> b"),
        ({"$graph": 3}, r"this \$graph cannot be built"),
        ({"$ref": 1}, r"no object before this has the \$id 1"),
        ([{**VARIABLE, "$id": 1}, {**VARIABLE, "$id": 1}], "two objects have the"),
        ({"$id": 1}, r"unknown key '\$id'"),
        ({"$class": "os.system", "command": "true"}, "'os.system' is no class"),
        ({"$name": "builtins.eval"}, "'builtins.eval' is no class"),
        ({"$name": "eval"}, "'eval' is no class"),
        ({"$name": "cli.app"}, "'cli.app' is no class"),
        ({"$name": "store.importlib"}, "no class"),
        ({"$name": "torch.nn.init"}, "no class"),
        ({"$name": "torch.load"}, "no class"),
        ({"$name": 4}, "a name is a text, got 4"),
        ({"$name": "..os.system"}, "no class"),
        ({"$class": "mechanism.draw"}, "is a function"),
        ({"$class": "mechanism.Mechanism", "variable": VARIABLE}, "abstract"),
        ({"$class": "torch.nn.Linear", "in_features": -2, "out_features": 1}, "cannot be built"),
        ({"$enum": "variable.Variable", "value": "x"}, "is no enumeration"),
        ({"$tensor": [[1, 2], [3]], "dtype": "int64"}, "cannot be built"),
        ({"$tensor": [1], "dtype": "complex64"}, "cannot be built"),
        ({"$tensor": [1], "dtpye": "int64"}, r"unknown key 'dtpye'"),
        ({"$array": ["a"], "dtype": "float32"}, "cannot be built"),
        ({"$dict": [[[1], 2]]}, "cannot be built"),
        (TOO_DEEP, "nested too deeply"),
    ],
)
def test_errors_name_the_key_path_and_nothing_unknown_is_touched(config, says):
    with pytest.raises(StoreError, match=says):
        from_config(config)


def test_a_constructor_inherited_from_torch_is_read_as_torchs(tmp_path):
    save(Wide(2, 3, bias=False), tmp_path / "m")
    assert load(tmp_path / "m", classes=[Wide]).bias is None


class Forgetful(nn.Module):
    def __init__(self, width):
        super().__init__()


class Wide(nn.Linear):
    """Inherits torch's constructor, whose `bias` is a question and not the parameter."""


class Changed(nn.Module):
    """Keeps an argument, but another one than it was given."""

    def __init__(self, width):
        super().__init__()
        self.width, self.line = width + 1, nn.Linear(width, 1)


class Stateful(nn.Module):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


class Loop:
    def __init__(self, inside):
        self.inside = self


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Forgetful(3), "model: Forgetful keeps no attribute 'width'"),
        (lambda: Changed(3), r"'line.weight' is torch.float32 \(1, 3\), needs .* \(1, 4\)"),
        (lambda: Stateful(), "'_extra_state' in the state of Stateful is a dict"),
        (lambda: tower(fn2=lambda x: x), r"model\.more\.fn2: .*<lambda> has no name"),
        (lambda: tower(o=Loop(0)), r"model\.more\.o\.inside: this Loop is made of itself"),
        (lambda: tower(o={1, 2}), r"model\.more\.o: builtins.set has no name"),
        (lambda: tower(o=partial(square, 2)), r"model\.more\.o: .*partial.* its signature"),
        (lambda: tower(o=np.array(["a"])), "cannot write an array of"),
        (lambda: tower(o=type("Tower", (), {})), "two classes or functions are called 'Tower'"),
        (lambda: "no module", "writes an nn.Module, got a str"),
    ],
)
def test_what_cannot_come_back_is_refused_before_anything_is_written(tmp_path, model, says):
    with pytest.raises(StoreError, match=says):
        save(model(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# Directories --------------------------------------------------------------------------------------


def test_only_a_model_is_ever_overwritten(tmp_path):
    first, second = LinearGaussian(Variable("a")), LinearGaussian(Variable("b"))
    place = tmp_path / "deep" / "model"
    save(first, place)
    with pytest.raises(StoreError, match="overwrite=True"):
        save(second, place)
    assert load(place).variable.name == "a"
    save(second, place, overwrite=True)
    assert load(place).variable.name == "b"
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"no saved model .*thesis\.tex"):
        save(first, place, overwrite=True)
    with pytest.raises(StoreError, match="a file"):
        save(first, place / "thesis.tex", overwrite=True)
    assert (place / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in place.parent.iterdir()] == ["model"]


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    from subjunctive import checkpoint

    place = tmp_path / "m"
    save(LinearGaussian(Variable("a")), place)
    replace = checkpoint.os.replace

    def fail(source, target):
        if str(target) == str(place) and ".old" not in str(source):
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        save(LinearGaussian(Variable("b")), place, overwrite=True)
    assert load(place).variable.name == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    place = tmp_path_factory.mktemp("store") / "model"
    t = Variable("t", loc=2.0)
    mechanisms = {"t": LinearGaussian(t), "y": LinearGaussian(Variable("y"), [t])}
    save(SCM(Graph.parse("t -> y"), mechanisms), place)
    return place


def copy(stored, tmp_path):
    place = tmp_path / "copy"
    place.mkdir(exist_ok=True)
    for path in stored.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def drop(place, name):
    (place / name).unlink()


def cut(place, name, size):
    path = place / name
    path.write_bytes(path.read_bytes()[:size])


def put(place, name, data):
    (place / name).write_bytes(data)


def edit(place, **changes):
    path = place / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: drop(p, "config.json"), r"config\.json is missing; .*model\.safetensors"),
        (lambda p: drop(p, "model.safetensors"), r"model\.safetensors is missing"),
        (lambda p: cut(p, "model.safetensors", 40), r"model\.safetensors .*SHA-256 differs"),
        (lambda p: cut(p, "model.safetensors", 0), r"model\.safetensors .*truncated"),
        (lambda p: cut(p, "config.json", 90), r"config\.json is not JSON"),
        (lambda p: put(p, "config.json", b"[]"), "was not written by subjunctive"),
        (lambda p: put(p, "config.json", b"\xff\xfe"), "is not JSON"),
        (lambda p: put(p, "config.json", b"[" * 100_000), "is not JSON"),
        (lambda p: put(p, "config.json", b'{"schema": NaN}'), "NaN is no JSON number"),
        (lambda p: put(p, "model.safetensors", pickle.dumps(Trap())), "looks like a pickle"),
        (lambda p: put(p, "config.json", pickle.dumps(Trap())), "is not JSON"),
        (lambda p: edit(p, schema=2), "has schema 2, this version reads 1; install"),
        (lambda p: edit(p, package="9.9"), "changed after it was written"),
        (lambda p: edit(p, checksum=None), "changed after it was written"),
        (lambda p: edit(p, files={}), "changed after it was written"),
    ],
)
def test_damage_is_named_with_the_remedy(stored, tmp_path, spoil, says):
    place = copy(stored, tmp_path)
    spoil(place)
    with pytest.raises(StoreError, match=says):
        load(place)


def test_foreign_files_are_named_and_never_opened(tmp_path):
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StoreError, match=r"model\.pt is a file that looks like a pickle"):
        load(pickled)
    torch.save({"w": torch.ones(2)}, pickled)
    with pytest.raises(StoreError, match="looks like a pickle"):
        load(pickled)
    with pytest.raises(StoreError, match=r"the directory holds model\.pt"):
        load(tmp_path)
    with pytest.raises(StoreError, match="is missing; give a directory"):
        load(tmp_path / "nothing")


def forge(place, change, tensors=None):
    """Change a saved model as one would who knows the format, checksums included."""
    import hashlib

    document = json.loads((place / "config.json").read_text())
    document.pop("checksum")
    if tensors is not None:
        data = write_tensors(tensors)
        put(place, "model.safetensors", data)
        document["files"]["model.safetensors"] = hashlib.sha256(data).hexdigest()
    change(document)
    put(place, "config.json", json.dumps({**document, "checksum": _checksum(document)}).encode())


def test_weights_that_do_not_fit_are_listed(stored, tmp_path):
    place = copy(stored, tmp_path)
    tensors = read_tensors((place / "model.safetensors").read_bytes())
    a, b, c = sorted(name for name in tensors if name.endswith(("bias", "log_scale")))[:3]
    tensors[f"{a}s"] = tensors.pop(a)
    tensors[b] = tensors[b].double()
    tensors[c] = torch.zeros(7)
    forge(place, lambda d: None, tensors)
    with pytest.raises(StoreError) as error:
        load(place)
    text = str(error.value)
    assert f"{a!r} is missing" in text
    assert f"{a + 's'!r} is unknown. Did you mean {a!r}?" in text
    assert f"{b!r} is torch.float64 (1,), needs torch.float32 (1,)" in text
    assert f"{c!r} is torch.float32 (7,), needs torch.float32 (1,)" in text


def test_a_forged_config_still_runs_no_code(stored, tmp_path):
    marks = tmp_path / "mark"
    for attack in (
        {"$class": "os.system", "command": f"touch {marks}"},
        {"$class": "subprocess.Popen", "args": ["touch", str(marks)]},
        {"$class": "builtins.exec", "source": f"open({str(marks)!r}, 'w')"},
    ):
        place = copy(stored, tmp_path)
        forge(place, lambda d, attack=attack: d["model"]["mechanisms"].update(t=attack))
        with pytest.raises(StoreError, match=r"model\.mechanisms\.t: .* is no class"):
            load(place)
    assert not marks.exists()
    place = copy(stored, tmp_path)
    forge(place, lambda d: d["files"].update({"../copy/model.safetensors": "0"}))
    with pytest.raises(StoreError, match="is no file's name"):
        load(place)
    place = copy(stored, tmp_path)
    forge(place, lambda d: d["model"].update(encoder={"$name": "hub.from_hub"}))
    with pytest.raises(StoreError, match=r"may not name 'hub.from_hub': it is made of parts"):
        load(place)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_byte_is_found_or_means_nothing(stored, tmp_path, name):
    place, dice = copy(stored, tmp_path), random.Random(0)
    data = (place / name).read_bytes()
    expected = answers(load(stored))
    refused = 0
    for _ in range(150):
        at, kind = dice.randrange(len(data)), dice.randrange(4)
        byte = bytes([dice.randrange(256)])
        changed = [
            data[:at] + byte + data[at + 1 :],
            data[:at] + byte + data[at:],
            data[:at] + data[at + 1 :],
            data[:at] + data[dice.randrange(len(data)) :],
        ][kind]
        (place / name).write_bytes(changed)
        try:
            found = answers(load(place))
        except StoreError as error:
            refused += str(place) in str(error)
        else:
            refused += 0 if same(found, expected) else -1000
    assert refused > 75


def leaves(tree, path=()):
    """Yield the path to every value in a tree of JSON values."""
    yield path
    pairs = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree) if isinstance(tree, list) else pairs:
        yield from leaves(value, (*path, key))


def test_a_forged_tree_builds_a_model_or_is_refused(stored, tmp_path):
    place, dice = copy(stored, tmp_path), random.Random(1)
    document = json.loads((stored / "config.json").read_text())
    tree = {k: document[k] for k in ("model", "dtypes", "aliases")}
    paths = list(leaves(tree))[1:]
    values = [None, -1, 2.5, "t", [], {}, [1], True, {"$ref": 1}, {"a": 1}, 10**30, "y -> t", "nan"]
    refused = 0
    for _ in range(200):
        changed = json.loads(json.dumps(tree))
        *way, last = dice.choice(paths)
        spot = changed
        for key in way:
            spot = spot[key]
        if isinstance(spot, dict) and dice.random() < 0.3:
            del spot[last]
        else:
            spot[last] = dice.choice(values)
        copy(stored, tmp_path)
        forge(place, lambda d, changed=changed: (d.pop("model"), d.update(changed)))
        try:
            assert isinstance(load(place), nn.Module)
        except StoreError:
            refused += 1
    assert refused > 100
