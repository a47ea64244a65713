import numpy as np
import pytest
import torch

from subjunctive.data import raster
from subjunctive.data.scene import EQUATIONS, GRAPH, Scene, render
from subjunctive.data.scene_measure import measure
from subjunctive.graph import Graph

LABELS = ("size", "angle", "slide", "lamp", "warmth", "hue")
RANGES = {
    "size": (0.24, 0.54),
    "angle": (-80.0, 80.0),
    "slide": (0.0, 1.0),
    "lamp": (22.0, 62.0),
    "warmth": (0.0, 1.0),
    "hue": (20.0, 220.0),
}
V = np.array([0.0, np.sin(np.radians(36)), np.cos(np.radians(36))])  # to the viewer


@pytest.fixture(scope="module")
def data() -> Scene:
    return Scene(train=250, valid=20, test=50, cache=False, progress=False)


def scenes(n: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Labels over their whole ranges, each by itself, and noise."""
    draw = torch.Generator().manual_seed(1)
    u = torch.rand(10, n, generator=draw)
    found = {k: a + (b - a) * u[i] for i, (k, (a, b)) in enumerate(RANGES.items())}
    return found | {"material": torch.arange(n) % 3}, u[6:].T.contiguous()


def one(**labels: float) -> dict[str, torch.Tensor]:
    usual = {"material": 1, "size": 0.4, "angle": 0.0, "slide": 0.5, "lamp": 40.0}
    usual |= {"warmth": 0.5, "hue": 120.0}
    return {k: torch.tensor([v]) for k, v in (usual | labels).items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(m, r, g, s, e, w, u) -> dict[str, np.ndarray]:
    """The equations of the docstring; what is given as a number is set."""
    m = (u["material"] >= 0.3) + 0 + (u["material"] >= 0.7) if m is None else m + 0 * u["material"]
    m = m.astype(int)
    r = 0.24 + 0.3 * sigmoid(np.array([1, 0, -1])[m] + 0.6 * u["size"]) if r is None else r
    g = 80 * np.tanh(7 * (r - 0.38) + 0.8 * u["angle"]) if g is None else g
    if s is None:
        mass = np.array([0.4, 1, 3])[m] * (r / 0.38) ** 3
        s = sigmoid(1.6 * np.log(mass) + 0.4 * u["slide"])
    e = u["lamp"] if e is None else e
    w = sigmoid((42 - e) / 7 + 0.6 * u["warmth"]) if w is None else w
    h = 20 + 200 * sigmoid(4 * (0.5 - s) + (42 - e) / 14 + 0.5 * u["hue"])
    found = {"material": m, "size": r, "angle": g, "slide": s, "lamp": e, "warmth": w, "hue": h}
    return {k: v + 0 * u["lamp"] for k, v in found.items()}


@pytest.mark.parametrize(
    "do", [{}, {"material": 2}, {"size": 0.5}, {"slide": 0.9}, {"lamp": 30.0}, {"angle": -60.0}]
)
def test_counterfactuals_are_the_equations_and_a_picture_of_them(data: Scene, do) -> None:
    noise = data.oracle.abduct(data.test)
    answer = data.oracle.predict(noise, do=do)
    u = {k: v.double().numpy() for k, v in noise.items()}
    nodes = ("material", "size", "angle", "slide", "lamp", "warmth")
    expected = by_hand(*(do.get(k) for k in nodes), u)
    for name, value in expected.items():
        np.testing.assert_allclose(answer[name].numpy(), value, rtol=1e-4, atol=1e-4)
    drawn = render(
        {k: torch.tensor(v).float() for k, v in expected.items()}
        | {"material": torch.tensor(expected["material"]).long()},
        noise["image"],
    )
    gap = (drawn - answer["image"]).abs()
    assert float(gap.mean()) < 1e-4  # labels differ in their last digits, a ray may fall beside
    read = data.measure(answer["image"])
    assert torch.equal(read["material"], answer["material"])
    for name in LABELS:
        assert float((read[name] - answer[name]).abs().mean()) < 2 * FLOOR[32][name], name


def test_doing_nothing_gives_the_very_pictures(data: Scene) -> None:
    answer = data.oracle.predict(data.oracle.abduct(data.test))
    for name, value in data.test.values.items():
        assert torch.equal(answer[name], value), name


def test_the_graph_names_what_each_equation_reads() -> None:
    graph, values = Graph.parse(GRAPH), scenes(6)[0]
    for name, equation in EQUATIONS.items():
        read = set()

        class Spy(dict):
            def __getitem__(self, key):
                read.add(key)  # noqa: B023
                return super().__getitem__(key)

        equation(torch.rand(6), Spy(values))
        assert read == set(graph.parents(name)), name


def marched(scene: dict[str, torch.Tensor], start: np.ndarray, way: np.ndarray, far: float):
    """Which thing a point that goes from start along way is in first: 0 none, 1 ball, 2 block."""
    v = {k: float(x[0]) for k, x in scene.items()}
    turn, yaw = np.radians(v["angle"]), np.radians(28)
    centre = np.array([0.2 - 1.25 * np.cos(turn), v["size"], np.sin(turn)])
    block = np.array([v["slide"] - 0.05, 0.3, 0.0])
    axes = np.array([[-np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    found = np.zeros(start.shape[:-1], int)
    for t in np.linspace(1e-3, far, 1500):
        p = start + t * way
        ball = ((p - centre) ** 2).sum(-1) < v["size"] ** 2
        box = (np.abs((p - block) @ axes.T) < [0.27, 0.3, 0.27]).all(-1)
        found = np.where(found == 0, np.where(ball, 1, np.where(box, 2, 0)), found)
    return found


def screen(size: int) -> np.ndarray:
    """The points of the screen's plane at the pixels' middles, `(S, S, 3)`."""
    at = (np.arange(size) + 0.5) * 3.06 / size
    x, y = np.meshgrid(at - 1.66, 3.06 - 1.22 - at)
    return np.stack([x, y * V[2], -y * V[1]], -1)


@pytest.mark.parametrize("labels", [
    {"angle": -80.0, "slide": 0.0, "size": 0.3}, {"angle": 75.0, "slide": 0.1, "size": 0.5},
])  # fmt: skip
def test_nearer_things_hide_farther_ones(labels) -> None:
    scene = one(**labels)
    hit = marched(scene, screen(48) + 4 * V, -V, 8.0)
    data = Scene(size=48, train=2, valid=2, test=2, cache=False, progress=False)
    shown = data.regions(scene)
    trace = raster.trace(arranged(scene), 48)
    for code, name in ((1, "ball"), (2, "block")):
        share = raster.average(getattr(trace, name).float(), 48)[0].numpy()
        assert torch.equal(shown[name][0], torch.tensor(share > 0))
        whole = (share == 0) | (share == 1)
        assert whole.mean() > 0.9
        assert ((share > 0.5) == (hit == code))[whole].mean() > 0.998
        assert abs(share.sum() / (hit == code).sum() - 1) < 0.1
    alone = data.regions(one(**labels | {"slide": 9.0}))["ball"] & shown["block"]
    behind = labels["angle"] < 0
    assert bool((alone & ~shown["ball"]).sum() > 5) == behind  # the block hides part of the ball


def arranged(scene: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from subjunctive.data.scene import arrange

    return arrange(scene, torch.full((1, 4), 0.5))


@pytest.mark.parametrize("lamp", [25.0, 55.0])
def test_shadows_lie_where_the_lamp_is_hidden(lamp: float) -> None:
    scene, size = one(lamp=lamp, angle=-30.0), 48
    e, a = np.radians(lamp), np.radians(42)
    light = np.array([-np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    o = screen(size)
    table = o - (o[..., 1] / V[1])[..., None] * V
    hidden = marched(scene, table, light, 4.0) > 0
    shown = raster.trace(arranged(scene), size)
    things = raster.average((shown.ball | shown.block).float(), size)[0].numpy() > 0
    ground = ~things & (table[..., 2] > -1.5)
    image = render(scene, size=size)[0].square().numpy()
    bare = np.array([0.68, 0.54, 0.40]) * lit(lamp, 0.5)
    direct = (image / bare[:, None, None]).mean(0)
    umbra = (np.array([0.30, 0.33, 0.41]) / lit(lamp, 0.5)).mean()
    dark = direct < (1 + umbra) / 2
    assert hidden[ground].sum() > 20
    assert (dark == hidden)[ground].mean() > 0.96  # but for penumbrae
    assert (dark & hidden)[ground].sum() > 0.7 * (dark | hidden)[ground].sum()
    middle = (ground & hidden)[1:-1, 1:-1]
    for i, j in ((0, 1), (2, 1), (1, 0), (1, 2)):
        middle = middle & hidden[i : i + size - 2, j : j + size - 2]
    assert direct[1:-1, 1:-1][middle].min() > umbra - 0.06  # the ambient light remains


def lit(lamp: float, warmth: float) -> np.ndarray:
    tint = np.array([1 + 0.22 * warmth, 1 - 0.10 * warmth, 1.05 - 0.62 * warmth])
    return np.array([0.30, 0.33, 0.41]) + 1.05 * tint * np.sin(np.radians(lamp))


def test_the_table_shows_the_lamp_and_the_shadow_grows_as_it_sinks() -> None:
    lamps = (25.0, 40.0, 60.0)
    areas = []
    for lamp in lamps:
        image = render(one(lamp=lamp, warmth=0.8), size=64)[0].square().numpy()
        table = np.array([0.68, 0.54, 0.40]) * lit(lamp, 0.8)
        np.testing.assert_allclose(image[:, -3:].mean((1, 2)), table, rtol=0.01)
        shade = image[:, 24:].sum(0) < 0.75 * table.sum()
        things = [render(one(lamp=lamp, warmth=0.8, slide=9.0, angle=180.0, size=0.01), size=64)]
        areas.append(int(shade.sum()))
        assert float(things[0].std()) < 0.2
    assert areas[0] > areas[1] > areas[2]


def test_only_the_block_shows_its_hue(data: Scene) -> None:
    noise = data.oracle.abduct(data.test)
    answer = data.oracle.predict(noise, do={"hue": 30.0})
    moved = (answer["image"] != data.test.values["image"]).any(1)
    shown = data.regions(answer, noise["image"])["block"]
    assert not bool((moved & ~shown).any())
    assert float((moved & shown).sum() / shown.sum()) > 0.9
    for name in set(LABELS) - {"hue"}:
        assert torch.equal(answer[name], data.test.values[name])


def test_noise_is_independent_and_all_of_the_images_is_seen(data: Scene) -> None:
    context = data.train.context
    u = torch.cat([context["u.image"].T, torch.stack([context[f"u.{n}"] for n in EQUATIONS])])
    assert float((torch.corrcoef(u) - torch.eye(len(u))).abs().max()) < 0.25
    shares = data.train.values["material"].bincount() / len(data.train)
    assert float((shares - torch.tensor([0.3, 0.4, 0.3])).abs().max()) < 0.1
    same = {k: v.expand(5) for k, v in one().items()}
    images = render(same, torch.cat([torch.zeros(1, 4), torch.eye(4) / 2]))
    assert bool(((images[1:] - images[:1]).abs().amax((1, 2, 3)) > 0.03).all())


FLOOR = {
    24: {"size": 0.018, "angle": 2.0, "slide": 0.03, "lamp": 0.1, "warmth": 0.005, "hue": 1.2},
    32: {"size": 0.0125, "angle": 1.4, "slide": 0.02, "lamp": 0.1, "warmth": 0.004, "hue": 0.9},
    64: {"size": 0.007, "angle": 0.8, "slide": 0.008, "lamp": 0.06, "warmth": 0.003, "hue": 0.8},
}
MOST = {"size": 0.05, "angle": 6.0, "slide": 0.12, "lamp": 0.6, "warmth": 0.03, "hue": 7.0}


@pytest.mark.parametrize(("size", "rows"), [(24, 150), (32, 300), (64, 130)])
def test_measuring_true_pictures_is_as_exact_as_stated(size: int, rows: int) -> None:
    scene, u = scenes(rows)
    read = measure(render(scene, u, size))
    assert torch.equal(read["material"], scene["material"])
    for name in LABELS:
        gap = (read[name] - scene[name]).abs()
        assert float(gap.mean()) < FLOOR[size][name], name
        assert float(gap.max()) < MOST[name] * (2 if size == 24 else 1), name


def test_pictures_do_not_depend_on_their_batch_and_twice_the_pixels_average_to_them() -> None:
    scene, u = scenes(9)
    images = render(scene, u)
    rows = torch.tensor([8, 1])
    some = render({k: v[rows] for k, v in scene.items()}, u[rows])
    assert float((images[rows] - some).abs().max()) < 1.5 / 255
    fine = torch.nn.functional.avg_pool2d(render(scene, u, 64), 2)
    assert float((fine - images).abs().mean()) < 0.004
    assert torch.equal((255 * images).round() / 255, images)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_what_no_scene_has_is_drawn_and_read_in_numbers() -> None:
    odd = [{"lamp": 0.0}, {"lamp": 90.0}, {"warmth": 4.0}, {"size": 0.0}, {"slide": -9.0}]
    for labels in odd:
        image = render(one(**labels))
        assert bool(image.isfinite().all())
        assert all(bool(v.isfinite().all()) for v in measure(image).values())
    for image in (torch.zeros(1, 3, 24, 24), torch.ones(1, 3, 24, 24)):
        read = measure(image)
        assert all(bool(v.isfinite().all()) for v in read.values())
        assert float(read["slide"]) == 0.5


def test_a_seed_gives_the_same_rows_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (
        Scene(24, train=n, valid=3, test=5, seed=s, cache=False, progress=False)
        for n, s in ((6, 4), (9, 4), (6, 5))
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.test.values["image"], second.test.values["image"])
    assert not torch.equal(first.test.values["lamp"], other.test.values["lamp"])
    splits = [d.values["lamp"] for d in (first.train, first.valid, first.test)]
    assert len(torch.cat(splits).unique()) == 14


def test_variables_are_fitted_on_the_training_rows(data: Scene) -> None:
    for name in LABELS:
        column = data.train.values[name].double()
        assert data.variables[name].loc == pytest.approx(float(column.mean()))
        assert data.variables[name].scale == pytest.approx(float(column.std()))
    assert data.oracle.variables == data.variables
    assert data.variables["image"].shape == tuple(data.train.values["image"].shape[1:])
    assert data.variables["material"].categories == ("paper", "rubber", "steel")


def test_what_is_drawn_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Scene(24, train=4, valid=2, test=2, progress=False)
    assert len(list((tmp_path / "subjunctive").glob("scene-*.npz"))) == 3
    monkeypatch.setattr(raster, "paint", None)  # so that drawing anew would fail
    second = Scene(24, train=4, valid=2, test=2, progress=False)
    for name, value in first.train.values.items():
        assert torch.equal(value, second.train.values[name]), name
        assert value.dtype == second.train.values[name].dtype


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scene(size=16), "size is 16; .* at least 24"),
        (lambda: Scene(train=1), "train is 1"),
        (lambda: Scene(valid=1), "valid is 1"),
        (lambda: Scene(test=0), "test is 0"),
        (lambda: measure(torch.ones(3, 32, 32)), "images have shape"),
        (lambda: measure(torch.ones(2, 1, 32, 32)), "images have shape"),
        (lambda: measure(torch.ones(2, 3, 32, 24)), "images have shape"),
        (lambda: measure(torch.ones(2, 3, 16, 16)), "S >= 24"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
