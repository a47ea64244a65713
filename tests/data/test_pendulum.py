import numpy as np
import pytest
import torch

from subjunctive.data.pendulum import Pendulum, covers, measure, render, shadow, sun

SCENE = ("angle", "light", "length", "position")


@pytest.fixture(scope="module")
def data() -> Pendulum:
    return Pendulum(train=400, valid=50, test=200)


def scenes(n: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    a, b, c, d = torch.rand(4, n, generator=draw)
    scene = {"angle": -36 + 74.7 * a, "light": 54 + 78.3 * b}
    return scene | {"length": 3 + 8 * c, "position": 6 + 8 * d}


def crossing(point: np.ndarray, light: float, height: float) -> float:
    """Where the ray of light through a point meets a horizontal line: two lines intersected."""
    ray = np.array([np.cos(np.radians(light)), np.sin(np.radians(light))])
    system = np.column_stack([ray, [-1.0, 0.0]])  # point + s ray = (0, height) + t (1, 0)
    return float(np.linalg.solve(system, np.array([0.0, height]) - point)[1])


def test_shadow_and_sun_lie_on_the_rays_of_light() -> None:
    scene = scenes(60)
    length, position = shadow(scene["angle"].double(), scene["light"].double())
    for k in range(60):
        angle, light = float(scene["angle"][k]), float(scene["light"][k])
        pivot = np.array([10.0, 10.5])
        turn = np.radians(angle)
        tip = pivot + 9.5 * np.array([np.sin(turn), -np.cos(turn)])
        a, b = crossing(pivot, light, -0.5), crossing(tip, light, -0.5)
        assert float(position[k]) == pytest.approx((a + b) / 2, abs=1e-9)
        assert float(length[k]) == pytest.approx(max(3.0, abs(a - b)), abs=1e-9)
        assert float(sun(scene["light"].double())[k]) == pytest.approx(
            crossing(pivot, light, 20.5), abs=1e-9
        )


def test_coverage_agrees_with_counting_points_inside_each_shape() -> None:
    scene, fine, size = scenes(6), 24, 32
    noise = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    at = (np.arange(size * fine) + 0.5) * 22 / (size * fine) - 1
    x, y = at[None, None], (20 - at)[None, :, None]  # the top row is at 21, the lowest at -1
    v = {k: t.numpy()[:, None, None] for k, t in scene.items()}
    turn = np.radians(v["angle"])
    ball_x, ball_y = 10 + 8 * np.sin(turn), 10.5 - 8 * np.cos(turn)
    radius = 1.5 * (1 + 0.2 * noise[:, 4].numpy()[:, None, None])
    light_x = np.array([crossing(np.array([10, 10.5]), a, 20.5) for a in scene["light"].tolist()])
    ends = np.stack([ball_x - 10, ball_y - 10.5])
    along = ((x - 10) * ends[0] + (y - 10.5) * ends[1]) / 8
    across = np.abs((x - 10) * ends[1] - (y - 10.5) * ends[0]) / 8
    soil = (y < 0) & np.ones((6, 1, size * fine), bool)
    inside = {
        "ball": (x - ball_x) ** 2 + (y - ball_y) ** 2 < radius**2,
        "sun": (x - light_x[:, None, None]) ** 2 + (y - 20.5) ** 2 < 9,
        "rod": (along > 0) & (along < 8) & (across < 0.54),
        "ground": soil,
        "shadow": soil & (np.abs(x - v["position"]) < v["length"] / 2),
    }
    found = covers(scene, noise, size)
    bounds = {"ball": (0.1, 0.05), "sun": (0.1, 0.02), "rod": (0.2, 0.1)}  # by signed distance
    for shape, mask in inside.items():
        share = mask.reshape(6, size, fine, size, fine).mean((2, 4))
        gap = np.abs(share - found[shape].numpy())
        most, whole = bounds.get(shape, (0.05, 0.02))  # within the points' own coarseness
        assert gap.max() < most, shape
        assert (gap.sum((1, 2)) < whole * share.sum((1, 2))).all(), shape


def test_doing_nothing_gives_the_very_pictures(data: Pendulum) -> None:
    answer = data.oracle.predict(data.oracle.abduct(data.test))
    for name, value in data.test.values.items():
        assert torch.equal(answer[name], value)


def test_swinging_the_pendulum_moves_the_shadow_as_the_rays_say(data: Pendulum) -> None:
    answer = data.oracle.predict(data.oracle.abduct(data.test), do={"angle": 25.0})
    light, u = data.test.values["light"], data.test.context
    length, position = shadow(torch.full_like(light, 25.0), light)
    length, position = length * torch.exp(0.1 * u["u.length"]), position + 0.5 * u["u.position"]
    torch.testing.assert_close(answer["length"], length)
    torch.testing.assert_close(answer["position"], position)
    assert torch.equal(answer["light"], light)
    inside = (position - length / 2 > -1) & (position + length / 2 < 21)
    read = data.measure(answer["image"])
    assert float((read["length"] - length)[inside].abs().max()) < 0.15
    assert float((read["position"] - position)[inside].abs().max()) < 0.1
    assert float((read["angle"] - 25).abs().max()) < 0.5


def test_setting_the_length_changes_nothing_but_the_shadow(data: Pendulum) -> None:
    noise = data.oracle.abduct(data.test)
    answer = data.oracle.predict(noise, do={"length": 6.0})
    for name in ("angle", "light", "position"):
        assert torch.equal(answer[name], data.test.values[name])
    moved = (answer["image"] - data.test.values["image"]).abs().amax(1) > 1e-6
    before, after = data.regions(data.test.values), data.regions(answer)
    assert not bool((moved & ~(before["shadow"] | after["shadow"])).any())
    assert float(moved.float().sum((1, 2)).median()) > 2
    assert not bool(moved[:, :30].any())  # the ground is 1 unit of 22: the last two rows of 32


def test_pixels_change_only_in_the_regions(data: Pendulum) -> None:
    noise = data.oracle.abduct(data.test)
    answer = data.oracle.predict(noise, do={"angle": -10.0})
    moved = (answer["image"] - data.test.values["image"]).abs().amax(1) > 1e-6
    both = [data.regions(v, noise["image"]) for v in (data.test.values, answer)]
    swing = torch.stack([r[k] for r in both for k in ("rod", "ball")]).any(0)
    assert not bool((moved & ~(swing | both[0]["shadow"] | both[1]["shadow"])).any())
    assert not bool((swing & (both[0]["shadow"] | both[1]["shadow"])).any())


def test_noise_is_recovered_from_the_values_and_independent_of_the_causes() -> None:
    data = Pendulum(size=24, train=4000, valid=2, test=2)
    values, context = data.train.values, data.train.context
    length, position = shadow(values["angle"], values["light"])
    torch.testing.assert_close(
        (values["length"] / length).log() / 0.1, context["u.length"], atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        (values["position"] - position) / 0.5, context["u.position"], atol=2e-5, rtol=0
    )
    assert bool((values["length"] > 0).all())
    u = torch.stack([context["u.length"], context["u.position"], values["angle"], values["light"]])
    assert float((torch.corrcoef(u) - torch.eye(4)).abs().max()) < 0.07
    assert bool(((u[:2].std(1) - 1).abs() < 0.05).all())


def test_every_part_of_the_image_noise_is_seen() -> None:
    scene = {k: v[:1].expand(6) for k, v in scenes(1).items()}
    u = torch.cat([torch.zeros(1, 5), torch.eye(5)])
    images = render(scene, u)
    assert float(images[0].amax((1, 2)).min()) == 1  # the original's white sky
    assert bool(((images[1:] - images[:1]).abs().amax((1, 2, 3)) > 0.1).all())


@pytest.mark.parametrize("colour", [True, False])
def test_twice_the_resolution_averages_to_the_picture(colour: bool) -> None:
    scene, u = scenes(50), torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    coarse, fine = render(scene, u, 32, colour), render(scene, u, 64, colour)
    gap = (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs()
    assert coarse.shape == (50, 3 if colour else 1, 32, 32)
    assert float(gap.mean()) < 0.002
    assert float(gap.max()) < 0.2
    assert float(coarse.min()) >= 0
    assert float(coarse.max()) <= 1


def test_pictures_do_not_depend_on_their_batch() -> None:
    scene, u = scenes(600), torch.rand(600, 5)  # more than one chunk at 32 px
    images = render(scene, u)
    rows = torch.tensor([0, 255, 256, 599])
    torch.testing.assert_close(
        images[rows], render({k: v[rows] for k, v in scene.items()}, u[rows])
    )


FLOOR = {"angle": 0.08, "light": 0.04, "length": 0.015, "position": 0.015}
GREY = {"angle": 0.09, "light": 0.13, "length": 0.015, "position": 0.015}


@pytest.mark.parametrize(("size", "colour"), [(32, True), (32, False), (64, True)])
def test_measuring_true_pictures_is_as_exact_as_stated(size: int, colour: bool) -> None:
    scene, u = scenes(1000), torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    read = measure(render(scene, u, size, colour))
    for name in SCENE:
        gap = (read[name] - scene[name]).abs()
        assert float(gap.mean()) < (FLOOR if colour else GREY)[name], name
        assert float(gap.max()) < 0.5, name


def test_measuring_an_empty_picture_gives_numbers() -> None:
    read = measure(torch.ones(2, 3, 32, 32))
    assert read["length"].tolist() == [0, 0]
    assert bool(torch.isfinite(torch.stack(list(read.values()))).all())
    assert float((read["light"] - 90).abs().max()) < 1e-3


def test_the_original_has_its_grid_its_split_and_no_noise() -> None:
    data = Pendulum(size=24, grid=True, noise=False, valid=2)
    assert (len(data.train), len(data.test)) == (5482, 1826)
    both = {k: torch.cat([data.train.values[k], data.test.values[k]]) for k in SCENE}
    pairs = torch.stack([both["angle"], both["light"]], 1).mul(1 / 0.9).round()
    assert len(pairs.unique(dim=0)) == 84 * 87
    assert not bool((pairs[:, 1] == 100).any())
    assert float((both["length"] == 3).float().mean()) == pytest.approx(0.396, abs=5e-4)
    length, position = shadow(both["angle"], both["light"])
    assert torch.equal(both["length"], length)
    assert torch.equal(both["position"], position)
    first = data.test.values["angle"][0], data.test.values["light"][0]
    assert [float(v) for v in first] == pytest.approx([-36.0, 64 * 0.9])  # the fifth picture
    assert bool((data.train.values["image"].amax((2, 3)) == 1).all())
    noise = data.oracle.noise(3)
    assert all(bool((noise[k] == 0).all()) for k in ("length", "position", "image"))


def test_variables_are_fitted_on_the_training_rows(data: Pendulum) -> None:
    for name in SCENE:
        column = data.train.values[name].double()
        assert data.variables[name].loc == pytest.approx(float(column.mean()))
        assert data.variables[name].scale == pytest.approx(float(column.std()))
        assert data.oracle.variables[name] == data.variables[name]
    assert data.variables["image"].shape == tuple(data.train.values["image"].shape[1:])


def test_a_seed_gives_the_same_rows_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (Pendulum(size=24, train=n, valid=3, test=5, seed=4) for n in (6, 9))
    other = Pendulum(size=24, train=6, valid=3, test=5, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.test.values["image"], second.test.values["image"])
    assert not torch.equal(first.test.values["angle"], other.test.values["angle"])
    splits = [d.values["angle"] for d in (first.train, first.valid, first.test)]
    assert len(torch.cat(splits).unique()) == 14


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Pendulum(size=16), "at least 24"),
        (lambda: Pendulum(valid=1), "valid is 1"),
        (lambda: measure(torch.ones(3, 32, 32)), "images have shape"),
        (lambda: measure(torch.ones(2, 4, 32, 32)), "images have shape"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
