import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from subjunctive.data.images import LARGEST, Images
from subjunctive.data.table import Table
from subjunctive.experiment import read_experiment

ROWS = 12
TINY = {"valid": 0, "test": 0}


def write(folder: Path, name: str, pixels: np.ndarray, mode: str | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(pixels).convert(mode) if mode else Image.fromarray(pixels)).save(path)


def noise(rows: int = ROWS, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, *(shape or (8, 8))), dtype=np.uint8)


def attributes(names: list[str]) -> pd.DataFrame:
    ages = [None, *range(20, 20 + len(names) - 1)]
    return pd.DataFrame({"file": names, "age": ages, "arm": ["drug", "none"] * (len(names) // 2)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve grey pictures, some in a subfolder: 00.png, sub/01.png, 02.png, ..."""
    for i, pixels in enumerate(noise()):
        write(tmp_path / "pictures", f"{'sub/' * (i % 2)}{i:02d}.png", pixels)
    return tmp_path / "pictures"


def by_row(data: Images, node: str = "image") -> torch.Tensor:
    batches = [b for b in (data.train, data.valid, data.test) if b is not None]
    order = torch.cat([b.context["row"] for b in batches]).argsort()
    return torch.cat([b.values[node] for b in batches])[order]


def one(
    folder: Path, picture: Image.Image, suffix: str = "png", **options: object
) -> tuple[np.ndarray, dict[str, int]]:
    """Return the pixels of a picture that lies there twice, and by what rules they were read."""
    folder.mkdir(exist_ok=True)
    for name in "ab":
        picture.save(folder / f"{name}.{suffix}")
    table = pd.DataFrame({"file": ["a", "b"], "t": [0.0, 1.0]})
    data = Images(folder, table, **TINY, **options)
    values = by_row(data)
    assert torch.equal(values[0], values[1])
    return values[0].numpy(), data.rules


def test_each_row_has_its_own_picture_and_attributes(folder: Path) -> None:
    names = [f"{i:02d}.png" for i in range(ROWS)]
    shuffled = [names[i] for i in np.random.default_rng(1).permutation(ROWS)]
    table = attributes(shuffled)
    data = Images(folder, table, valid=0.25, test=0.25, seed=3, units={"age": "years"})
    pixels = noise().astype(np.float32) / np.float32(255)
    for batch, rows in ((data.train, 6), (data.valid, 3), (data.test, 3)):
        assert batch is not None
        assert batch.values["image"].shape == (rows, 1, 8, 8)
        assert batch.values["image"].dtype == torch.float32
        for row, image in zip(batch.context["row"].tolist(), batch.values["image"], strict=True):
            np.testing.assert_array_equal(image[0], pixels[int(shuffled[row][:2])])
            assert Path(data.files[row]).name == shuffled[row]
    assert data.files[shuffled.index("01.png")] == "sub/01.png"
    assert data.unused == []
    own = Table(table, drop=("file",), valid=0.25, test=0.25, seed=3, units={"age": "years"})
    assert {n: data.variables[n] for n in own.variables} == own.variables
    for batch, alone in ((data.train, own.train), (data.valid, own.valid), (data.test, own.test)):
        assert torch.equal(batch.context["row"], alone.context["row"])
        for name in own.variables:
            assert torch.equal(batch.mask(name), alone.mask(name))
            assert torch.equal(batch.values[name], alone.values[name])
    gap = [int((~b.mask("age")).sum()) for b in (data.train, data.valid, data.test)]
    assert sum(gap) == 1
    image = data.variables["image"]
    assert (image.shape, image.loc, image.scale) == ((1, 8, 8), 0.5, 0.5)
    assert (image.low, image.high) == (0.0, 1.0)


def test_names_are_paths_or_bare_with_or_without_suffix(folder: Path) -> None:
    for name in ("twin.png", "sub/twin.png"):
        write(folder, name, noise(1)[0])
    entries = ["00", "01", "./02.png", "sub\\03", " sub/05.png ", Path("04.png"), "twin.png"]
    table = pd.DataFrame({"file": entries, "t": range(7)})
    with pytest.warns(UserWarning, match="7 pictures have no row: 06.png, .* and 2 more"):
        data = Images(folder, table, **TINY)
    found = ["00.png", "sub/01.png", "02.png", "sub/03.png", "sub/05.png", "04.png", "twin.png"]
    assert data.files == found
    assert len(data.unused) == 7
    assert "sub/twin.png" in data.unused


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_a_file_of_text_says_the_same_as_a_frame(folder: Path, suffix: str) -> None:
    (folder / "NA.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "00.png").unlink()
    names = ["NA", *(f"{i:02d}" for i in range(1, ROWS))]  # "01" stays text, "NA" is a name
    table = attributes(names).assign(code=[f"0{i % 2 + 1}" for i in range(ROWS)])
    path = folder.parent / f"table.{suffix}"
    table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    options = {"seed": 1, "categorical": ["code"]}
    read, given = Images(folder, path, **options), Images(str(folder), table, **options)
    assert read.files == given.files
    assert read.files[:2] == ["NA.png", "sub/01.png"]
    assert read.variables == given.variables
    assert read.variables["code"].categories == ("01", "02")
    assert torch.equal(by_row(read), by_row(given))


def pack(folder: Path, suffix: str, extra: dict[str, bytes] | None = None) -> Path:
    files = {f"./{p.relative_to(folder).as_posix()}": p for p in sorted(folder.rglob("*.*"))}
    members = {name: path.read_bytes() for name, path in files.items()} | (extra or {})
    archive = folder.parent / f"pack.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            for name, content in members.items():
                out.writestr(name, content)
        return archive
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return archive


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_an_archive_is_read_as_its_folder_and_nothing_is_written(folder: Path, suffix: str) -> None:
    table = attributes([f"{i:02d}" for i in range(ROWS)])
    hidden = {"__MACOSX/._00.png": b"", ".thumbs/00.png": b"", "read.me": b"text"}
    archive = pack(folder, suffix, hidden)
    before = sorted(folder.parent.rglob("*"))
    packed, plain = Images(archive, table, seed=2), Images(folder, table, seed=2)
    assert sorted(folder.parent.rglob("*")) == before
    assert packed.files == plain.files
    for name, value in plain.train.values.items():
        assert torch.equal(packed.train.values[name].nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "C:\\evil.txt", "a\\..\\b"])
def test_members_that_lead_out_of_an_archive_are_refused_by_name(
    folder: Path, suffix: str, name: str
) -> None:
    archive = pack(folder, suffix, {name: b"evil"})
    named = name.replace("\\", "/")
    with pytest.raises(ValueError, match="1 members lead out of the archive: ") as caught:
        Images(archive, attributes([f"{i:02d}" for i in range(ROWS)]))
    assert f"archive: '{named}'; make it anew" in str(caught.value)


def test_a_link_and_a_damaged_member_are_named(folder: Path) -> None:
    table = attributes([f"{i:02d}" for i in range(ROWS)])
    zipped = pack(folder, "zip")
    content = (folder / "04.png").read_bytes()
    zipped.write_bytes(zipped.read_bytes().replace(content[40:60], bytes(20)))
    with pytest.raises(ValueError, match=r"1 files cannot be read: '04.png' \(in the archive"):
        Images(zipped, table)
    with tarfile.open(folder.parent / "link.tar", "w") as out:
        for path in folder.rglob("*.png"):
            info = tarfile.TarInfo(path.name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            out.addfile(info)
    with pytest.raises(ValueError, match=r"12 files cannot be read: '00.png' \(.* a link"):
        Images(folder.parent / "link.tar", table)


def test_modes_are_read_by_their_rule(tmp_path: Path) -> None:
    colours = noise(1, 8, 8, 4)[0]
    rgb, grey, alpha = colours[..., :3], colours[..., 0], colours[..., 3]
    luma = (rgb * [0.299, 0.587, 0.114]).sum(-1) / 255
    share = alpha[..., None] / 255
    white = share * rgb / 255 + 1 - share
    wide = np.random.default_rng(2).integers(0, 65536, (8, 8), dtype=np.uint16)
    table = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])
    picture = Image.fromarray
    palette, cmyk = picture(grey // 64).convert("P"), picture(colours, "CMYK")
    palette.putpalette(table.ravel().tolist())
    ink = (1 - rgb / 255) * (1 - alpha[..., None] / 255)
    both = Image.merge("LA", [picture(grey), picture(alpha)])
    clear, sixteen = "transparency laid on white", "16 bits divided by 65535"
    colourless = "CMYK made RGB without a colour profile"
    for number, (image, suffix, truth, rule, steps, options) in enumerate(
        [
            (picture(grey), "png", grey / 255, None, 0, {}),
            (picture(rgb), "png", rgb / 255, None, 0, {}),
            (picture(rgb), "bmp", rgb / 255, None, 0, {}),
            (picture(grey > 127), "png", grey > 127, "black and white as 0 and 1", 0, {}),
            (picture(colours), "png", white, clear, 1, {}),
            (both, "png", white[..., :1], clear, 1, {}),
            (palette, "png", table[grey // 64] / 255, "palette as its colours", 0, {}),
            (picture(wide), "png", wide / 65535, sixteen, 0, {}),
            (picture(wide.astype(np.int32)), "tiff", wide / 65535, sixteen, 0, {}),
            (cmyk, "tiff", ink, colourless, 1, {}),
            (picture(rgb), "png", luma, "colour made grey", 1, {"colour": False}),
            (
                picture(grey),
                "png",
                np.stack([grey] * 3, -1) / 255,
                "grey repeated in three channels",
                0,
                {"colour": True},
            ),
        ]
    ):
        found, rules = one(tmp_path / str(number), image, suffix, **options)
        expected = np.moveaxis(np.atleast_3d(truth), 2, 0)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=steps / 255 + 1e-6)
        assert rules == ({rule: 2} if rule else {})


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    for name in "ab":
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
    data = Images(tmp_path, pd.DataFrame({"file": ["a", "b"], "t": [0, 1]}), **TINY)
    assert bool((by_row(data) == 10 / 255).all())
    assert data.rules["the first of several frames"] == 2


def test_a_transparent_colour_is_white_and_one_colour_picture_makes_three_channels(
    tmp_path: Path,
) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.paste(1, (0, 0, 4, 8))
    palette.save(tmp_path / "a.png", transparency=0)
    write(tmp_path, "b.png", noise(1)[0])
    data = Images(tmp_path, pd.DataFrame({"file": ["a", "b"], "t": [0, 1]}), **TINY)
    values = by_row(data)
    assert values.shape == (2, 3, 8, 8)
    assert bool((values[0, :, :, 4:] == 1).all())
    np.testing.assert_allclose(values[0, :, 0, 0], np.array([9, 8, 7]) / 255, atol=1e-7)
    assert torch.equal(values[1, 0], values[1, 2])
    told = data.describe().loc["image"]
    assert told["rules"] == (
        "palette as its colours: 1; transparency laid on white: 1; "
        "grey repeated in three channels: 1"
    )
    assert data.describe().loc["t", "rules"] == ""
    assert data.describe().loc["t", "kind"] == told["kind"] == "continuous"
    assert int(told["missing"]) == 0


def test_resizing_takes_means_of_areas_and_keeps_16_bits(tmp_path: Path) -> None:
    big = noise(1, 16, 32)[0]
    means = big.reshape(8, 2, 8, 4).mean((1, 3)) / 255
    small, rules = one(tmp_path / "byte", Image.fromarray(big), size=8, resize=True)
    np.testing.assert_allclose(small[0], means, atol=1 / 255)
    assert rules == {"resized to (8, 8)": 2}
    wide = Image.fromarray(big.astype(np.uint16) * 3 + 1)
    found, _ = one(tmp_path / "wide", wide, size=(8, 8), resize=True)
    truth = (big * 3.0 + 1).reshape(8, 2, 8, 4).mean((1, 3)) / 65535
    np.testing.assert_allclose(found[0], truth, atol=1e-7)
    ramp = np.repeat(np.arange(0, 256, 32, dtype=np.uint8)[None], 8, 0)
    grown, _ = one(tmp_path / "grow", Image.fromarray(ramp), size=(8, 16), resize=True)
    assert grown.shape == (1, 8, 16)
    assert bool((np.diff(grown[0, 0]) >= 0).all())
    assert len(np.unique(grown)) > 8  # linear, no copies
    exact, _ = one(tmp_path / "exact", Image.fromarray(ramp), size=[8, 8])
    np.testing.assert_allclose(exact[0], ramp / 255, atol=1e-7)


def test_all_problems_stand_in_one_error(folder: Path) -> None:
    table = attributes([f"{i:02d}.png" for i in range(ROWS)])
    table["file"] = table["file"].replace({"00.png": "twin", "02.png": "10.png"})
    more = pd.DataFrame({"file": [f"gone{i}" for i in range(6)] + [None, "08.pgn"], "age": 1.0})
    table = pd.concat([table, more], ignore_index=True).assign(same=1)
    write(folder, "other/twin.png", noise(1)[0])
    write(folder, "sub/twin.png", noise(1)[0])
    write(folder, "04.png", noise(1, 9, 8)[0])
    write(folder, "06.png", noise(1, 8, 7)[0])
    whole = (folder / "sub/07.png").read_bytes()
    (folder / "sub/07.png").write_bytes(whole[:60])  # the header is whole, the pixels are not
    (folder / "08.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match="cannot be used") as caught:
        Images(folder, table, "age -> same -> image")
    lines = str(caught.value).split("\n- ")
    assert lines[0] == f"the pictures of {folder} cannot be used as they are:"
    found = {line.split(":")[0]: line for line in lines[1:]}
    assert "'same' is constant" in lines[1]
    assert "row 12 ('gone0')" in found["8 rows have no picture"]
    assert "and 3 more; correct the names" in found["8 rows have no picture"]
    vague = found["1 rows name several pictures"]
    assert "row 0 (other/twin.png, sub/twin.png); give paths" in vague
    assert "'10.png' (2 rows)" in found["1 pictures belong to several rows"]
    unreadable = found["2 files cannot be read"]
    assert "'sub/07.png' (" in unreadable
    assert "'08.png' (cannot identify image file)" in unreadable
    other = found["2 pictures have another size"]
    assert "'04.png' (9, 8), '06.png' (8, 7); most have (8, 8)" in other
    assert "size=(8, 8), resize=True" in other
    assert "00.png, 02.png; they are left out" in found["2 pictures have no row"]
    assert len(found) == 7


def test_a_wrong_name_is_told_its_nearest_and_an_empty_cell_its_row(folder: Path) -> None:
    table = attributes([f"{i:02d}.png" for i in range(ROWS)])
    table.loc[3, "file"] = "sub/03.pgn"
    with pytest.raises(ValueError, match=r"row 3 \('sub/03.pgn'\) Did you mean 'sub/03.png'\?"):
        Images(folder, table)
    table.loc[3, "file"] = None
    with pytest.raises(ValueError, match=r"1 rows have no picture: row 3 \(''\)"):
        Images(folder, table)


def header(width: int, height: int) -> bytes:
    """A PNG that says it is large and has no pixels."""
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")]
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        made += struct.pack(">I", len(data)) + kind + data
        made += struct.pack(">I", zlib.crc32(kind + data))
    return made


@pytest.mark.parametrize(("side", "words"), [
    (9000, f"81000000 pixels, over {LARGEST}"),
    (12000, "decompression bomb"),
    (40000, "decompression bomb"),
])  # fmt: skip
def test_a_decompression_bomb_is_refused(folder: Path, side: int, words: str) -> None:
    (folder / "00.png").write_bytes(header(side, side))
    with pytest.raises(ValueError, match=r"1 files cannot be read: '00.png'") as caught:
        Images(folder, attributes([f"{i:02d}" for i in range(ROWS)]))
    assert words in str(caught.value)


@pytest.mark.parametrize("way", ["turned", "float", "too wide"])
def test_what_has_no_stated_range_or_lies_on_its_side_is_refused(tmp_path: Path, way: str) -> None:
    pixels = noise(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        if way == "turned":
            Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", exif=exif)
        elif way == "float":
            Image.fromarray(pixels.astype(np.float32)).save(tmp_path / f"{name}.tiff")
        else:
            Image.fromarray(pixels.astype(np.int32) - 200).save(tmp_path / f"{name}.tiff")
    words = {"turned": "EXIF says", "float": "mode F", "too wide": "goes from -"}[way]
    with pytest.raises(ValueError, match=f"2 files cannot be read: 'a.*{words}"):
        Images(tmp_path, pd.DataFrame({"file": ["a", "b"], "t": [0, 1]}))


def test_the_graph_says_which_columns_are_nodes(folder: Path) -> None:
    table = attributes([f"{i:02d}" for i in range(ROWS)]).assign(note=range(ROWS))
    every = Images(folder, table)
    assert str(every.graph) == "age, arm, note, image; age -> image; arm -> image; note -> image"
    assert list(every.variables) == ["age", "arm", "note", "image"]
    assert every.left_out == ()
    some = Images(folder, table, "age -> scan -> arm; age -> arm", node="scan")
    assert some.graph.parents("arm") == ("age", "scan")
    assert set(some.variables) == set(some.train.values) == {"age", "arm", "scan"}
    assert some.left_out == ("note",)
    with pytest.raises(ValueError, match=r"names 'aeg', which is no column. Did you mean 'age'"):
        Images(folder, table, "aeg -> image")


@pytest.mark.parametrize(("options", "words"), [
    ({"graph": "age -> arm"}, r"nodes \('age', 'arm'\); it needs 'image'"),
    ({"graph": "image"}, "and an attribute"),
    ({"file": "fiel"}, r"file='fiel'; it has file, age, arm\. Did you mean 'file'"),
    ({"node": "age"}, "a column 'age'; call the picture otherwise"),
    ({"size": 0}, "size is 0"),
    ({"size": (8, 8, 1)}, r"size is \(8, 8, 1\)"),
    ({"size": 4}, r"12 pictures have another size.*most have \(8, 8\)"),
    ({"workers": 0}, "workers is 0"),
    ({"valid": 0.6, "test": 0.6}, "give shares"),
])  # fmt: skip
def test_wrong_arguments_are_named(folder: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Images(folder, attributes([f"{i:02d}" for i in range(ROWS)]), **options)


def test_wrong_places_are_named(folder: Path) -> None:
    table = attributes([f"{i:02d}" for i in range(ROWS)])
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no folder of pictures at"):
        Images(empty / "none", table)
    with pytest.raises(ValueError, match=r"holds no picture; the formats are .*PNG"):
        Images(empty, table)
    for name in ("bad.zip", "bad.tar.gz", "bad.rar"):
        (empty / name).write_bytes(b"no archive")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            Images(empty / name, table)
    with pytest.raises(FileNotFoundError):
        Images(folder, empty / "none.csv")
    (empty / "bad.csv").write_text("file,age\n00,1,2,3\n")
    with pytest.raises(ValueError, match=r"bad\.csv"):
        Images(folder, empty / "bad.csv")


def test_all_rows_may_be_for_training_and_a_seed_leaves_the_generator_alone(folder: Path) -> None:
    table = attributes([f"{i:02d}" for i in range(ROWS)])
    state = torch.random.get_rng_state()
    data = Images(folder, table, **TINY, workers=1)
    assert (data.valid, data.test) == (None, None)
    assert len(data.train) == ROWS
    first, second = (Images(folder, table, seed=s) for s in (5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first.train.context["row"], second.train.context["row"])
    assert torch.equal(by_row(first), by_row(second))


def test_an_experiment_is_fitted_to_it(folder: Path) -> None:
    table = folder.parent / "table.csv"
    attributes([f"{i:02d}" for i in range(ROWS)]).bfill().to_csv(table, index=False)
    linear = {"$class": "mechanisms.linear.LinearGaussian"}
    config = {
        "data": {
            "$class": "data.images.Images",
            "folder": str(folder),
            "table": str(table),
            "graph": "age -> image",
            "size": [8, 8],
        },
        "model": {"$class": "scm.SCM", "mechanisms": {"age": linear, "image": linear}},
        "fit": {"steps": 2, "batch_size": 4},
    }
    experiment = read_experiment(config)
    assert experiment.run(progress=False).steps == 2
    assert experiment.model.sample(3)["image"].shape == (3, 1, 8, 8)
