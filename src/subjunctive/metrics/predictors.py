"""Reading labels from pixels, against the arrow of cause: anticausal predictors.

    p(label | x),     trained on observed rows alone,

by one convolutional network with a head a label: cross-entropy for categories, squared error in
standard deviations otherwise. Its last hidden layer is the feature space of the realism metrics.
A predictor errs on real images too: what it says of the true counterfactuals is the noise floor
that any table must print beside what it says of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subjunctive.mechanism import seeded
from subjunctive.nn import ConvEncoder
from subjunctive.variable import Batch, Variable


class Predictor(nn.Module):
    """Labels read from an image by a small convolutional network.

    Args:
        image: the image's variable, of shape `(C, H, W)`.
        labels: what is read, scalars of any kind.
        widths: channels of each stage.
        unshuffle: factor of the pixel-unshuffle stem.
        hidden: width of the last hidden layer, which `features` returns.

    Raises:
        ValueError: if the image has another shape, or there is no label.

    Example:
        >>> image = Variable("x", (1, 28, 28), loc=0.5, scale=0.5)
        >>> digit = Variable("digit", kind="categorical", categories=tuple("0123456789"))
        >>> predictor = Predictor(image, [digit, Variable("t", unit="px")])
        >>> {name: v.shape for name, v in predictor.read(torch.rand(3, 1, 28, 28)).items()}
        {'digit': torch.Size([3]), 't': torch.Size([3])}
    """

    def __init__(
        self,
        image: Variable,
        labels: Sequence[Variable],
        widths: Sequence[int] = (16, 32, 64),
        unshuffle: int = 2,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if len(image.shape) != 3 or not labels or any(v.shape for v in labels):
            raise ValueError(
                f"a Predictor reads scalar labels from an image (C, H, W); {image.name!r} has "
                f"shape {image.shape}, the labels are {[v.name for v in labels]}"
            )
        self.image, self.labels = image, tuple(labels)
        self.widths, self.unshuffle, self.hidden = tuple(widths), unshuffle, hidden
        channels, height, width = image.shape
        factor = unshuffle * 2 ** (len(self.widths) - 1)
        self.padding = (0, -width % factor, 0, -height % factor)
        size = (height + self.padding[3], width + self.padding[1])
        self.encoder = ConvEncoder(channels, size, hidden, self.widths, unshuffle)
        self.head = nn.Linear(hidden, sum(v.width for v in self.labels))

    def embed(self, images: Tensor) -> Tensor:
        """Return the last hidden layer of images in their own units, `(B, hidden)`."""
        hidden: Tensor = self.encoder(F.pad(self.image.standardise(images), self.padding))
        return F.silu(hidden)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits `(B, categories)`, or standardised values `(B,)`, by label."""
        outputs = self.head(self.embed(images)).split([v.width for v in self.labels], dim=1)
        return {
            v.name: o if v.discrete else o[:, 0] for v, o in zip(self.labels, outputs, strict=True)
        }

    def loss(self, images: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the summed loss of all labels a row, `(B,)`."""
        found, terms = self(images), []
        for v in self.labels:
            target = v.standardise(values[v.name])
            if v.discrete:
                terms.append(F.cross_entropy(found[v.name], target, reduction="none"))
            else:
                terms.append((found[v.name] - target.to(found[v.name])).square())
        return torch.stack(terms).sum(0)

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 256) -> dict[str, Tensor]:
        """Return the labels in their own units: the likeliest category, or the mean, `(B,)`."""
        chunks = [self(self._here(part)) for part in images.split(batch_size)]
        found = {v.name: torch.cat([c[v.name] for c in chunks]).cpu() for v in self.labels}
        return {
            v.name: found[v.name].argmax(1) if v.discrete else v.restore(found[v.name])
            for v in self.labels
        }

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Return the last hidden layer, `(B, hidden)`, a batch at a time, on the CPU."""
        return torch.cat([self.embed(self._here(part)).cpu() for part in images.split(batch_size)])

    def _here(self, images: Tensor) -> Tensor:
        return images.to(self.head.weight)


def fit_predictor(
    predictor: Predictor,
    images: Tensor,
    values: Mapping[str, Tensor],
    *,
    steps: int = 1000,
    batch_size: int = 64,
    rate: float = 3e-3,
    shift: int = 2,
    seed: int | None = None,
    progress: bool = False,
) -> Predictor:
    """Train a predictor on observed rows, in place, and return it.

    AdamW under one cycle of the learning rate (Super-Convergence, Smith and Topin, 2019).

    Args:
        predictor: what is trained.
        images: `(N, C, H, W)`, in their own units.
        values: label -> `(N,)`, in its unit; integer codes for categories.
        steps: batches.
        batch_size: rows a step.
        rate: the highest learning rate.
        shift: pixels by which a batch is moved at random, for categories, which do not depend on
            the place; ignored if any label is a number.
        seed: of the batches; the user's generator is left alone.
        progress: show a bar where it takes over two seconds.

    Raises:
        ValueError: if a label has no values, or rows do not line up.
    """
    from tqdm import trange

    for v in predictor.labels:
        if v.name not in values or len(values[v.name]) != len(images):
            raise ValueError(
                f"label {v.name!r} needs {len(images)} values, one an image; values has "
                f"{ {k: len(t) for k, t in values.items()} }"
            )
    shift = shift if all(v.discrete for v in predictor.labels) else 0
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    predictor.train()
    with seeded(seed):
        for _ in trange(steps, desc="predictor", delay=2, disable=not progress):
            rows = torch.randint(len(images), (min(batch_size, len(images)),))
            offset = torch.randint(-shift, shift + 1, (2,)).tolist()
            part = predictor._here(images[rows]).roll(offset, (2, 3))
            loss = predictor.loss(part, {k: t[rows].to(part.device) for k, t in values.items()})
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    return predictor.eval()


def identity_labels(batch: Batch) -> dict[str, Tensor]:
    """Return the context's integer columns that are no noise: what a row *is*, such as its class.

    A number of its own for every row is among them; `predictor_for` leaves it out, as it sees
    whether any training row shares it.

    Example:
        >>> identity_labels(Batch({"x": torch.zeros(2)}, context={"digit": torch.tensor([3, 7]),
        ...                                                      "u.x": torch.tensor([0, 1])}))
        {'digit': tensor([3, 7])}
    """
    return {
        name: value
        for name, value in batch.context.items()
        if not name.startswith("u.") and value.dim() == 1 and value.dtype == torch.int64
    }


def predictor_for(
    data: Any, image: str, *, measured: bool = True, seed: int = 0, **options: Any
) -> Predictor:
    """Train the predictor that an evaluation of a data set needs, on its training rows.

    It reads the identity labels (`identity_labels`) that training rows share, as a row's own number
    says nothing of another row; and the image's parents, too, where the data cannot measure them or
    there is no identity to read.

    Args:
        data: with `train` and `variables`.
        image: the node that holds images.
        measured: whether the data can measure the image's parents.
        seed: of the weights and the batches.
        options: of `fit_predictor`.
    """
    found = identity_labels(data.train).items()
    values = {k: v for k, v in found if int(v.max()) > 0 and len(v.unique()) < len(v)}
    labels = [
        Variable(k, kind="categorical", categories=tuple(map(str, range(int(v.max()) + 1))))
        for k, v in values.items()
    ]
    if not (measured and labels):
        for node in data.graph.parents(image):
            if not data.variables[node].shape:
                labels.append(data.variables[node])
                values[node] = data.train.values[node]
    seen = torch.stack([data.train.mask(n) for n in (image, *values) if n in data.train]).all(0)
    with seeded(seed):
        predictor = Predictor(data.variables[image], labels)
    images = data.train.values[image][seen]
    rows = {v.name: values[v.name][seen] for v in labels}
    return fit_predictor(predictor, images, rows, seed=seed, **options)
