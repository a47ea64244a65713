"""Evidence from files is read as the data that a model is fitted to."""

import gzip

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from subjunctive.data import pictures
from subjunctive.data.images import Images
from subjunctive.data.table import GAPS, Table
from subjunctive.evidence import read_evidence
from subjunctive.variable import Variable

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
GREY, RGB = COLOURS[..., 0], COLOURS[..., :3]


def palette():
    picture = Image.fromarray(GREY // 128).convert("P")
    picture.putpalette([0, 0, 0, 9, 80, 7])
    return picture


@pytest.mark.parametrize(("picture", "suffix", "options"), [
    (Image.fromarray(COLOURS), "png", {}),
    (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(COLOURS[..., 3])]), "png", {}),
    (palette(), "png", {"transparency": 0}),
    (Image.fromarray(COLOURS, "CMYK"), "tiff", {}),
    (Image.fromarray(GREY > 127), "png", {}),
    (Image.fromarray(GREY.astype(np.uint16) * 200), "png", {}),
    (Image.fromarray(RGB), "webp", {"lossless": True}),
])  # fmt: skip
@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_is_read_as_in_training(tmp_path, picture, suffix, options, colour):
    names = [f"{name}.{suffix}" for name in "ab"]
    for name in names:
        picture.save(tmp_path / name, **options)
    table = pandas.DataFrame({"file": names, "t": [0.0, 1.0]})
    data = Images(tmp_path, table, colour=colour, valid=0, test=0, workers=1)
    found = read_evidence([tmp_path / n for n in names], data.variables).values["image"]
    assert found.shape == (2, 3 if colour else 1, 6, 5)
    assert torch.equal(found, data.train.values["image"])


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("LA", (5, 6), (0, 51)).save(tmp_path / "a.png")
    found = read_evidence([tmp_path / "a.png"], {"x": Variable("x", (1, 6, 5))})
    assert torch.allclose(found.values["x"], torch.full((1, 1, 6, 5), 0.8))


def test_a_picture_that_training_would_refuse_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(GREY.astype(np.int32) - 200).save(tmp_path / "low.tiff")
    Image.fromarray(GREY).save(tmp_path / "half.png")
    whole = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:50])
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n")
    Image.new("1", (31, 1)).save(tmp_path / "large.png")
    for name, words in {
        "turned.jpg": "EXIF says that it is to be turned",
        "float.tiff": "mode F has no greatest value",
        "low.tiff": "goes from -",
        "half.png": "",
        "page.eps": "cannot identify image file",
        "large.png": "31 pixels, over 30",
    }.items():
        with pytest.raises(ValueError, match=f"{name} is no picture that can be read: .*{words}"):
            read_evidence([tmp_path / name], {"x": Variable("x", (1, 6, 5))})


def test_a_cell_is_missing_as_in_training(tmp_path):
    gaps = sorted(GAPS - {"None", ""})
    rows = [f"{i}, {'drug' if i % 2 else 'None'}" for i in range(4)]
    rows += [f"{gap},{gap}" for gap in gaps] + ["5,"]
    (tmp_path / "t.csv").write_text("\n".join(["t,arm", *rows]))
    orders = {"arm": ["None", "drug"]}
    table = Table(tmp_path / "t.csv", ordinal=orders, valid=0, test=0)
    batch = read_evidence([tmp_path / "t.csv"], table.variables)
    order = table.train.context["row"].argsort()
    for name in ("t", "arm"):
        seen = table.train.mask(name)[order]
        assert torch.equal(batch.mask(name), seen)
        assert torch.equal(batch.values[name][seen], table.train.values[name][order][seen])
    assert batch.mask("t").sum() == 5
    assert batch.mask("arm").sum() == 4


@pytest.mark.parametrize("name", ["t.tsv", "t.CSV", "t.tsv.gz", "t.csv.gz"])
def test_tables_of_every_suffix_are_read(tmp_path, name):
    arm = Variable("arm", kind="categorical", categories=("01", "1"))
    between = "\t" if "tsv" in name else ","
    text = "\n".join(between.join(row) for row in (["t", "arm"], ["1.5", "01"], ["2", "1"]))
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    batch = read_evidence([tmp_path / name], {"t": Variable("t"), "arm": arm})
    assert batch.values["t"].tolist() == [1.5, 2.0]
    assert batch.values["arm"].tolist() == [0, 1]


def test_what_is_no_table_is_named(tmp_path):
    for name, content in {
        "long.csv": b"t\n1,2\n",  # pandas would take the first for an index
        "ragged.csv": b"t\n1\n1,2\n",
        "latin.csv": b"t\n\xe9\n",
        "bad.csv.gz": b"no archive",
        "cut.csv.gz": gzip.compress(b"t\n" + bytes(range(48, 58)) * 99)[:30],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no table"):
            read_evidence([tmp_path / name], {"t": Variable("t")})
