"""Files of pictures: where they lie, what they say, and their values by stated rules.

A picture is data and nothing else: formats that have another program run are not opened, a file of
more than 2^26 pixels is refused, and of an archive nothing is written to disk.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Opener = Callable[[str], IO[bytes]]
Size = tuple[int, int]  # height, width
LARGEST = 2**26  # pixels of a picture, as 8192 x 8192: a small file may unpack to any number
LARGEST_FILE = 8 * LARGEST  # bytes of a file in an archive: four channels of 16 bits
# Not EPS, as Pillow has another program run it, nor what has no pixels.
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"}
GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"}
CLEAR = {"LA", "La", "PA", "RGBA", "RGBa"}
WIDE = "16 bits divided by 65535"
RULES = {"1": "black and white as 0 and 1", "P": "palette as its colours"}
RULES |= {"CMYK": "CMYK made RGB without a colour profile"}
# What damaged files make Pillow and the readers of archives raise.
DAMAGED: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, LookupError)
DAMAGED += (TypeError, ArithmeticError, RuntimeError, struct.error, zlib.error)
DAMAGED += (zipfile.BadZipFile, tarfile.TarError)


class Look(NamedTuple):
    """What a picture's header says: its size, whether it has colour, by what rules it is read."""

    size: Size
    colour: bool
    rules: list[str]


def find(folder: Path) -> tuple[list[str], list[str], Opener]:
    """Return the pictures' names, those that lead out of an archive, and what opens a picture."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder of pictures at {folder}")
    try:
        names, held = _unpacked(folder)
    except DAMAGED as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    pictures = sorted(filter(_is_picture, names))
    if not pictures:
        raise ValueError(f"{folder} holds no picture; the formats are {', '.join(sorted(FORMATS))}")
    members = [PureWindowsPath(n) for n in names if held is not None]
    unsafe = [repr(p.as_posix()) for p in members if p.anchor or ".." in p.parts]

    def opener(name: str) -> IO[bytes]:
        if held is None:
            return (folder / name).open("rb")
        if name not in held:
            raise ValueError(f"in the archive it is a link, damaged, or over {LARGEST_FILE} bytes")
        return io.BytesIO(held[name])

    return pictures, unsafe, opener


def _unpacked(folder: Path) -> tuple[list[str], dict[str, bytes] | None]:
    """Read an archive's pictures at once, as going back in a gzipped one is starting again."""
    if folder.is_dir():
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], None
    names, held, zipped = [], {}, folder.name.lower().endswith(".zip")
    if not zipped and not folder.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        raise ValueError("it is no directory and no .zip, .tar or .tar.gz")
    with zipfile.ZipFile(folder) if zipped else tarfile.open(folder) as either:
        archive: Any = either
        for member in archive.infolist() if zipped else archive:
            path = (member.filename if zipped else member.name).replace("\\", "/")
            names.append(name := str(PurePosixPath(path)))
            plain = zipped or member.isreg()
            small = (member.file_size if zipped else member.size) <= LARGEST_FILE
            if plain and small and _is_picture(name):
                with suppress(*DAMAGED):
                    held[name] = (archive.open if zipped else archive.extractfile)(member).read()
    return names, held


def _is_picture(name: str) -> bool:
    from PIL import Image

    path = PurePosixPath(name)
    hidden = any(p != ".." and p.startswith((".", "__MACOSX")) for p in path.parts)
    return not hidden and Image.registered_extensions().get(path.suffix.lower()) in FORMATS


@contextmanager
def opened(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image]:
    """Open a picture.

    Args:
        file: a path, or the bytes.

    Raises:
        ValueError: for what is no picture, too large, or damaged; also where that shows but while
            its pixels are read.
    """
    from PIL import Image

    Image.init()
    formats = sorted(FORMATS & Image.OPEN.keys())
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width * image.height} pixels, over {LARGEST}")
            yield image
    except (*DAMAGED, Warning, Image.DecompressionBombError) as error:  # type: ignore[misc]
        why = " ".join(str(error).split("<")[0].split()) or type(error).__name__
        raise ValueError(why) from error


def look_at(image: Image) -> Look:
    """Return what a picture's header says.

    Raises:
        ValueError: for a photograph that is to be turned.
    """
    if image.format in ("JPEG", "MPO") and image.getexif().get(0x0112, 1) != 1:
        raise ValueError("its EXIF says that it is to be turned; turn it, and save it without")
    wide = image.mode.startswith("I")
    clear = not wide and (image.mode in CLEAR or "transparency" in image.info)
    rules = [WIDE] * wide + [r for mode, r in RULES.items() if mode == image.mode]
    rules += ["transparency laid on white"] * clear
    rules += ["the first of several frames"] * getattr(image, "is_animated", False)
    return Look((image.height, image.width), image.mode not in GREY, rules)


def pixels_of(picture: Image, channels: int, size: Size | None = None) -> NDArray[Any]:
    """Return a picture's values, 0 to 255, `(channels, H, W)`.

    They are bytes, but fractions where there were 16 bits, which have no colour: `(1, H, W)` then.

    Args:
        picture: an open file.
        channels: 1 for grey, 3 for colour.
        size: (height, width) to resize to: by the mean over areas where it shrinks, linearly where
            it grows; None leaves it as it is.

    Raises:
        ValueError: for values without a stated range.

    Example:
        >>> from PIL import Image
        >>> clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        >>> pixels_of(clear, 1).tolist()  # transparency is laid on white
        [[[255, 255]]]
    """
    from PIL import Image

    image: Any = picture
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"it goes from {values.min():.0f} to {values.max():.0f}, not to 65535")
        image = Image.fromarray(values / 257)
    elif image.mode == "F":
        raise ValueError("its mode F has no greatest value; save it with 8 or 16 bits")
    else:
        if image.mode in CLEAR or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
    if size and (image.height, image.width) != size:
        shrinks = image.height >= size[0] and image.width >= size[1]
        way = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        image = image.resize(size[::-1], way)
    return np.moveaxis(np.atleast_3d(np.asarray(image)), 2, 0)
