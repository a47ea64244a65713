"""Your own pictures, in a folder or an archive, beside a table of their attributes.

A column of the table names each row's picture. The other columns are typed by `Table`; the picture
becomes one more node, `(C, H, W)` with values in [0, 1]. What can go wrong in a folder of pictures
is collected and told in one error: nothing is dropped, cropped, resized or guessed in silence.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from subjunctive.data.pictures import LARGEST as LARGEST
from subjunctive.data.pictures import WIDE, Opener, Size, find, look_at, opened, pixels_of
from subjunctive.data.table import SEPARATORS, Table
from subjunctive.graph import Graph
from subjunctive.variable import Batch, Variable, nearest

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

Found = dict[str, list[str]]  # what is wrong -> with whom
Task = Callable[[str, Any], Any]  # of a picture's name and the picture
REMEDIES = {
    "rows have no picture": "correct the names, add the pictures, or take the rows out",
    "rows name several pictures": "give paths in the folder, with suffixes",
    "pictures belong to several rows": "leave each picture one row",
    "members lead out of the archive": "make it anew, without absolute names and '..'",
    "files cannot be read": "get them again or save them anew, or take their rows out",
    "pictures have another size": "most have {most}: crop or pad, or say size={most}, resize=True",
    "pictures have no row": "they are left out; give them rows, or take them away",
}


class Images:
    """Pictures with a table of their attributes, as data for a model.

    Bytes are divided by 255. What else a file needs is a rule, counted in `rules`: palettes, CMYK
    and black and white are converted by Pillow, 16 bits are divided by 65535, transparency is laid
    on white, the first of several frames is taken. All pictures are held in memory, 4 bytes a
    value, and an archive's files while they are read. A file of more than 2^26 pixels is refused.

    Args:
        folder: a directory, searched with its subfolders, or an archive (.zip, .tar, .tar.gz), of
            which nothing is written to disk; hidden files and `__MACOSX` are passed over.
        table: text (.csv, .tsv, also with .gz) or a DataFrame, one row a picture.
        graph: a Graph or arrows over the attributes and `node`; columns that it does not name are
            left out. None: every attribute is a cause of the picture.
        file: the column that names each picture: by its path in the folder, or by its bare name
            where only one picture has it; with or without the suffix.
        node: the picture's name in the graph.
        size: `(H, W)`, or one number for both; None: the size that all pictures have.
        colour: whether there are three channels; None: if a file's mode has colour. Colour is made
            grey as ITU-R 601 says, grey is repeated.
        resize: whether pictures of another size than `size` are resized: by the mean over areas
            where they shrink, linearly where they grow. Proportions are not kept.
        categorical, ordinal, units, missing, valid, test, seed: of the attributes, as in `Table`.
        workers, progress: threads that read, -1: one a processor; whether bars are shown.

    Attributes:
        graph, variables: the causal graph, and its variables; the picture comes last.
        train, valid, test: batches; `context["row"]` is each row's number in the table.
        files, unused: each row's picture by name; pictures that no row names, warned about.
        left_out, rules: columns not in the graph; what was done to pictures -> to how many.

    Raises:
        FileNotFoundError: if there is no folder or table.
        ValueError: for a wrong argument; else once for all rows, names, files, sizes, attributes.

    Example:
        >>> import pandas, tempfile, PIL.Image
        >>> table = pandas.DataFrame({"file": range(10), "light": range(10)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(10):
        ...         PIL.Image.new("L", (8, 6), 20 * i).save(f"{folder}/{i}.png")
        ...     data = Images(folder, table, units={"light": "lux"})
        >>> print(data.graph, data.variables["image"].shape, data.files[:2])
        light -> image (1, 6, 8) ['0.png', '1.png']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        table: str | os.PathLike[str] | DataFrame,
        graph: Graph | str | None = None,
        *,
        file: str = "file",
        node: str = "image",
        size: int | Sequence[int] | None = None,
        colour: bool | None = None,
        resize: bool = False,
        categorical: Sequence[str] = (),
        ordinal: Mapping[str, Sequence[str]] | None = None,
        units: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
        valid: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int = 2,
        progress: bool = False,
    ) -> None:
        self.folder, self.table, self.file, self.node = folder, table, file, node
        self.size, self.colour, self.resize = size, colour, resize
        self.categorical, self.ordinal, self.units = categorical, ordinal, units
        self.missing, self.seed, self.workers, self.progress = missing, seed, workers, progress
        self.shares = {"valid": valid, "test": test}  # the attributes `valid`, `test` are batches
        self.given = {"graph": graph, **self.shares}  # to write the configuration
        if workers == 0:
            raise ValueError("workers is 0; give a number of threads, or -1 for one a processor")
        asked, entries = _as_size(size), _entries(table, file, node)
        drawn = Graph.parse(graph) if isinstance(graph, str) else graph
        if drawn is not None and (node not in drawn or len(drawn) < 2):
            need = f"{node!r}, the picture (is it called otherwise? node=...), and an attribute"
            raise ValueError(f"the graph has the nodes {drawn.nodes}; it needs {need}")
        rest = None if drawn is None else drawn.subgraph([n for n in drawn if n != node])
        how: dict[str, Any] = {"categorical": categorical, "ordinal": ordinal, "units": units}
        how |= {"missing": missing, "drop": (file,), "seed": seed, **self.shares}
        problems = []
        try:
            self._attributes = Table(table, rest, **how)
        except ValueError as error:
            problems.append(str(error))
        names, unsafe, opener = find(Path(folder).expanduser())
        self.files, self.unused, found = _match(entries, names)
        pixels, faults, most = self._read(opener, asked)
        found |= {"members lead out of the archive": unsafe, **faults}
        problems += [_told(what, whom, most) for what, whom in found.items() if whom]
        unused = _told("pictures have no row", self.unused)
        if problems:
            lines = [f"the pictures of {folder} cannot be used as they are:", *problems]
            raise ValueError("\n- ".join(lines + [unused] * bool(self.unused)))
        if self.unused:
            warnings.warn(f"{folder}: {unused}", stacklevel=2)
        self._join(drawn, pixels)

    def _read(self, opener: Opener, asked: Size | None) -> tuple[NDArray[Any], Found, Size]:
        """Return pixels `(rows, C, H, W)`, 0 to 255, what is wrong, and the commonest size."""
        names = list(dict.fromkeys(n for n in self.files if n))
        good, faults = self._each(opener, names, lambda _, image: look_at(image))
        looks = good.values()
        [(most, _)] = Counter(look.size for look in looks).most_common(1) or [((1, 1), 0)]
        size = asked or most
        other = [n for n, look in good.items() if look.size != size]
        refused = [] if self.resize and asked else other
        colour = any(look.colour for look in looks) if self.colour is None else self.colour
        done = Counter(rule for look in looks for rule in look.rules)
        # What will be refused is decoded too, that the report be whole, but needs no room.
        whole = len(good) == len(self.files) and not refused
        shape = (len(self.files) if whole else 0, 3 if colour else 1, *size)
        pixels = np.zeros(shape, np.float32 if WIDE in done else np.uint8)
        row = {name: i for i, name in enumerate(self.files)}

        def decode(name: str, image: Image) -> None:
            found = pixels_of(image, shape[1], size if whole else None)
            if whole:
                pixels[row[name]] = found

        faults |= self._each(opener, list(good), decode)[1]
        done[f"resized to {size}"] = len(other)
        changed = sum(look.colour != colour for look in looks)
        done["grey repeated in three channels" if colour else "colour made grey"] = changed
        self.rules = {rule: n for rule, n in done.items() if n}
        found = {"files cannot be read": [f"{n!r} ({why})" for n, why in faults.items()]}
        found["pictures have another size"] = [f"{n!r} {good[n].size}" for n in refused]
        return pixels, found, most

    def _each(self, opener: Opener, names: Sequence[str], task: Task) -> tuple[dict[str, Any], ...]:
        """Return what the task makes of each picture, and why the others cannot be read."""
        from joblib import Parallel, delayed
        from tqdm import tqdm

        def attempt(name: str) -> Any:
            try:
                with opener(name) as file, opened(file) as image:
                    return task(name, image)
            except (ValueError, OSError) as error:
                return str(error)

        # Threads, as Pillow decodes without the interpreter's lock and the pixels are shared.
        run = Parallel(n_jobs=self.workers, require="sharedmem", return_as="generator")
        results, hide = run(delayed(attempt)(name) for name in names), not self.progress
        bar = tqdm(results, "read", len(names), unit="picture", delay=2, disable=hide)
        found = dict(zip(names, bar, strict=True))
        faults = {n: why for n, why in found.items() if isinstance(why, str)}
        return {n: one for n, one in found.items() if n not in faults}, faults

    def _join(self, drawn: Graph | None, pixels: NDArray[Any]) -> None:
        """Set the graph, the variables and the splits: pictures beside their attributes."""
        table, node = self._attributes, self.node
        names, shape = list(table.variables), pixels.shape[1:]
        self.graph = drawn or Graph.from_edges([(n, node) for n in names], [*names, node])
        self.left_out, self.variables = table.left_out, dict(table.variables)
        self.variables[node] = Variable(node, shape, loc=0.5, scale=0.5, low=0.0, high=1.0)

        def joined(batch: Batch) -> Batch:
            taken = torch.from_numpy(pixels[batch.context["row"].numpy()]).float().div_(255)
            return Batch({**batch.values, node: taken}, batch.seen, batch.targets, batch.context)

        self.train = joined(table.train)
        self.valid, self.test = (b if b is None else joined(b) for b in (table.valid, table.test))

    def describe(self) -> DataFrame:
        """Return what `Table` says of each attribute, and by what rules pictures were read."""
        import pandas

        frame, done = self._attributes.describe(), [f"{r}: {n}" for r, n in self.rules.items()]
        own = {"kind": "continuous", "unit": "", "categories": (), "low": 0.0, "high": 1.0}
        own |= {"missing": 0, "missing share": 0.0, "rules": "; ".join(done) or "as they are"}
        rows = [row | {"rules": ""} for row in frame.to_dict("records")]
        return pandas.DataFrame([*rows, own], index=[*frame.index, self.node])


def _as_size(size: Any) -> Size | None:
    pair = (size, size) if size is None or isinstance(size, int) else tuple(size)
    if size is not None and (len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair)):
        raise ValueError(f"size is {size!r}; give (height, width) in pixels, or one number")
    return None if size is None else (pair[0], pair[1])


def _entries(table: Any, file: str, node: str) -> list[str]:
    """Return what each row calls its picture; an empty text where it says nothing."""
    frame = table if hasattr(table, "iloc") else _read_text(Path(table).expanduser())
    columns = [str(c) for c in frame.columns]
    if columns.count(file) != 1:
        has = f"it has {_few(columns, 20)}.{nearest(file, columns)}"
        raise ValueError(f"the table needs one column that names pictures, file={file!r}; {has}")
    if node in columns:
        raise ValueError(f"the table has a column {node!r}; call the picture otherwise: node=...")
    column = frame.iloc[:, columns.index(file)].astype(object)
    texts = [str(cell).strip().replace("\\", "/") for cell in column.where(column.notna(), "")]
    return [str(PurePosixPath(text)) if text else "" for text in texts]


def _read_text(path: Path) -> DataFrame:
    """Return the cells of a file as text; its rows are those that `Table` counts."""
    import pandas

    sep = SEPARATORS.get(Path(path.name.lower().removesuffix(".gz")).suffix, ",")
    how: dict[str, Any] = {"skipinitialspace": True, "keep_default_na": False, "dtype": str}
    try:
        cells = pandas.read_csv(path, sep=sep, header=None, index_col=False, **how)
    except ValueError as error:  # pandas' errors are among them
        raise ValueError(f"{path} is no .csv or .tsv ({error}); give the DataFrame") from error
    return cells.iloc[1:].set_axis([str(c).strip() for c in cells.iloc[0]], axis=1)


def _match(entries: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str], Found]:
    """Return each row's picture or an empty text, pictures without a row, and what is wrong."""
    tiers: list[Found] = [defaultdict(list) for _ in range(4)]
    for name in names:
        path = PurePosixPath(name)
        keys = name, str(path.with_suffix("")), path.name, path.stem
        for tier, key in zip(tiers, keys, strict=True):
            tier[key].append(name)
    hits = [next((t[entry] for t in tiers if entry in t), []) for entry in entries]
    files = [hit[0] if len(hit) == 1 else "" for hit in hits]
    lost = [f"row {i} ({entries[i]!r})" for i, hit in enumerate(hits) if not hit]
    if lost:
        lost[0] += nearest(entries[hits.index([])], names[:1000])
    vague = [f"row {i} ({_few(hit)})" for i, hit in enumerate(hits) if len(hit) > 1]
    twice = [f"{n!r} ({k} rows)" for n, k in Counter(files).items() if n and k > 1]
    found = {"rows have no picture": lost, "rows name several pictures": vague}
    found["pictures belong to several rows"] = twice
    used = {name for hit in hits for name in hit}
    return files, [n for n in names if n not in used], found


def _told(what: str, whom: Sequence[str], most: Size = (1, 1)) -> str:
    return f"{len(whom)} {what}: {_few(whom)}; {REMEDIES[what].format(most=most)}"


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
