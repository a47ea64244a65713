r"""What an autoencoder's latents should be like, so that a second mechanism learns them with ease.

**Equivariant.** A transformation t of pictures, a smaller size or turns by 90 degrees, has its twin
on the latent's grid. Decoding the transformed latent should give the transformed picture,

    L = L_autoencoder(x) + w E_t[-log N(t x; decode(t z), s^2)],     z ~ q(z | x),

so that the grid is a picture too, and what lies next to what is told alike everywhere on it.

**Represented.** Features F(x) of a frozen network that knows what pictures are about should be read
from the latent by a small projection h, at every position of the features' grid, or of their mean,

    L = L_autoencoder(x) + w (1 - cos(h(z), F(x))),

so that what matters to F lies near the surface of the latent. h is thrown away after training.

Both are objectives around another one, the model's own loss or each other: their terms add up.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.autoencoder import Autoencoder
from subjunctive.scm import SCM
from subjunctive.training.objective import ModelLoss, Objective, Player
from subjunctive.variable import Batch, Variable, known


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Average pictures over the boxes that each new pixel covers, fractions of pixels included.

    Args:
        x: `(B, C, H, W)`.
        height, width: the new size, at most the old one.

    Example:
        >>> resize(torch.tensor([[[[0.0, 3.0, 6.0]]]]), 1, 2)
        tensor([[[[1., 5.]]]])
    """
    return _boxes(x, height, x.shape[2]) @ x @ _boxes(x, width, x.shape[3]).mT


def _boxes(x: Tensor, new: int, old: int) -> Tensor:
    """Return the averages' weights, `(new, old)`: how much of each box each pixel covers."""
    edges = torch.arange(new + 1, device=x.device, dtype=x.dtype) * (old / new)
    pixels = torch.arange(old, device=x.device, dtype=x.dtype)
    right = torch.minimum(edges[1:, None], pixels + 1)
    left = torch.maximum(edges[:-1, None], pixels)
    return (right - left).clamp(min=0) * (new / old)


def transform(x: Tensor, turns: int, height: int, width: int) -> Tensor:
    """Resize pictures to `height` x `width`, then turn them by `turns` times 90 degrees."""
    return resize(x, height, width).rot90(turns, (2, 3))


def equivariance(autoencoder: Autoencoder, x: Tensor, turns: int, height: int) -> Tensor:
    """Return the mean squared error of decode(t encode(x)) against t x, a row, `(B,)`.

    Args:
        autoencoder: convolutional throughout.
        x: standardised images `(B, C, H, W)`.
        turns: of 90 degrees.
        height: of the latent after t; that of the image follows.

    Example:
        >>> autoencoder = Autoencoder.of(Variable("x", (1, 8, 8)), widths=(8, 8))
        >>> equivariance(autoencoder, torch.randn(3, 1, 8, 8), turns=1, height=1).shape
        torch.Size([3])
    """
    made, truth = _moved(autoencoder, x, autoencoder.encode(x), turns, height)
    return (made - truth).square().reshape(len(x), -1).mean(1)


def _moved(
    autoencoder: Autoencoder, x: Tensor, z: Tensor, turns: int, height: int
) -> tuple[Tensor, Tensor]:
    """Return decode(t z) and t x."""
    tall, wide = z.shape[2:]
    width = max(round(wide * height / tall), 1)
    by = x.shape[2] // tall, x.shape[3] // wide
    moved = transform(x, turns, height * by[0], width * by[1])
    return autoencoder.decode(transform(z, turns, height, width)), moved


def first_stage(model: nn.Module, batch: Batch, node: str, who: str) -> tuple[Autoencoder, Tensor]:
    """Return the autoencoder of a node, and its standardised images.

    Raises:
        ValueError: if the model is no SCM, or the node's mechanism has no latent grid.
    """
    if not isinstance(model, SCM):
        raise ValueError(f"{who} reads the latents of an SCM's node, got a {type(model).__name__}")
    known(node, model.graph.nodes, who)
    mechanism: Mechanism = model.mechanisms[node]
    found = getattr(mechanism, "autoencoder", mechanism)
    if not isinstance(found, Autoencoder):
        raise ValueError(
            f"{type(mechanism).__name__}, the mechanism of {node!r}, is no Autoencoder and has "
            f"none; {who} shapes the latents of one"
        )
    return found, model.standard(model.batch(batch))[node]


def _checked(who: str, weight: float) -> float:
    if not 0 <= weight < math.inf:
        raise ValueError(f"{who} needs a weight of at least 0, got {weight}")
    return weight


def _added(terms: dict[str, Tensor], name: str, paid: Tensor) -> dict[str, Tensor]:
    """Return the terms with another one; what an objective within paid by this name is kept."""
    return {**terms, name: terms[name] + paid if name in terms else paid}


def _fitted(of: str) -> tuple[Mechanism, Batch]:
    from subjunctive.graph import Graph
    from subjunctive.mechanisms.linear import own_samples, stirred
    from subjunctive.train import fit

    with seeded(0):
        x = Variable("x", (1, 8, 8))
        autoencoder = Autoencoder.of(x, channels=2, widths=(6, 8))
        rows = Batch({"x": torch.randn(64, 1, 8, 8)})
        features = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        projection = Projection(2, 3, width=8)
    shaped = Represented(features, projection, "x") if of == "features" else Equivariant("x")
    model = SCM(Graph.parse("x"), {"x": stirred(autoencoder)})
    fit(model, rows, shaped, steps=5, progress=False)
    return autoencoder, own_samples(autoencoder, rows=256)


class Equivariant(Objective):
    """An objective, and beside it that decoding a transformed latent transforms the picture.

    Reference: EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image Modeling
    (Kouzelis, Kakogeorgiou, Gidaris and Komodakis, 2025), https://arxiv.org/abs/2502.09509. There a
    step is either a plain or a transformed one; here every step pays both, some rows the second.

    Args:
        node: whose `Autoencoder`, or first stage of a `Latent`, it is.
        low: the least size after a transformation, as a share of the whole; 1 for turns alone.
        share: of the rows of a step that are transformed, all alike.
        weight: of their term, which is in nats an entry as the autoencoder's own.
        objective: what is minimised beside it, whose first player pays; the model's own loss if
            None.

    Raises:
        ValueError: for a share or a size that is none, a negative weight; and, in `loss`, for a
            node without an autoencoder.

    Example:
        >>> from subjunctive.graph import Graph
        >>> autoencoder = Autoencoder.of(Variable("x", (1, 16, 16)), widths=(8, 8))
        >>> model, rows = SCM(Graph.parse("x"), {"x": autoencoder}), torch.randn(6, 1, 16, 16)
        >>> terms = Equivariant("x").loss(model, Batch({"x": rows}), "model", 0)
        >>> {name: tuple(term.shape) for name, term in terms.items()}
        {'x.nll': (6,), 'x.kl': (6,), 'x.equivariance': (6,)}
    """

    def __init__(
        self,
        node: str,
        low: float = 0.5,
        share: float = 0.5,
        weight: float = 1.0,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("low", low), ("share", share)):
            if not 0 < value <= 1:
                raise ValueError(f"Equivariant has {name}={value}; give a share above 0, up to 1")
        self.node, self.low, self.share = node, low, share
        self.weight = _checked("Equivariant", weight)
        self.objective = ModelLoss() if objective is None else objective

    def players(self, model: nn.Module) -> list[Player]:
        """Return the players of the objective beside it."""
        return self.objective.players(model)

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, and for the first player `<node>.equivariance`."""
        terms = self.objective.loss(model, batch, player, step)
        if player != self.players(model)[0].name:
            return terms
        autoencoder, x = first_stage(model, batch, self.node, "Equivariant")
        count = max(round(self.share * len(x)), 1)  # the first rows: their order is random
        z = autoencoder.posterior(x[:count]).rsample()
        tall = z.shape[2]
        height = int(torch.randint(math.ceil(self.low * tall), tall + 1, ()))
        made, truth = _moved(autoencoder, x[:count], z, int(torch.randint(4, ())), height)
        paid = self.weight * autoencoder.nll(truth, made)
        paid = torch.cat([paid, paid.new_zeros(len(x) - count)])
        seen = batch.mask(self.node).to(paid.device)
        return _added(terms, f"{self.node}.equivariance", torch.where(seen, paid, 0.0))

    card = Card(
        name="EQ-VAE: an equivariant latent",
        summary="An autoencoder whose latents, made smaller or turned, decode to the picture made "
        "smaller or turned.",
        title="EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image "
        "Modeling",
        authors="Kouzelis, Theodoros and Kakogeorgiou, Ioannis and Gidaris, Spyros and "
        "Komodakis, Nikos",
        year=2025,
        url="https://arxiv.org/abs/2502.09509",
        assumptions=("what a picture shows does not depend on its size or its turn",),
        needs="images, and an autoencoder that is convolutional throughout",
        abduction="approximate",
        tolerance=1e-5,
        of=(161,),
        example=lambda: _fitted("turns"),
    )


class Projection(nn.Module):
    """A small network from a latent to features, position by position with its neighbours.

    Args:
        channels: of the latent.
        outputs: channels of the features.
        width: of the layer between.

    Example:
        >>> Projection(4, 10)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 10, 8, 8])
    """

    def __init__(self, channels: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.channels, self.outputs, self.width = channels, outputs, width
        first, last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, outputs, 1)
        self.layers = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(B, channels, h, w)` to `(B, outputs, h, w)`."""
        y: Tensor = self.layers(z)
        return y


class Represented(Objective):
    """An objective, and beside it that a frozen network's features are read from the latent.

    Reference: Exploring Representation-Aligned Latent Space for Better Generation (Xu, Yue, Wang,
    Teng, Zhang, Liu, Zhou, Ouyang and Bai, 2025), https://arxiv.org/abs/2502.00359

    Args:
        features: called with standardised images `(B, C, H, W)`; gives `(B, D)`, or a grid
            `(B, D, h', w')`. A copy is kept, which nothing moves.
        projection: from latents to `(B, D, h, w)`, averaged over what the features have no
            positions for; or to the features' own shape. It learns with the model.
        node: whose `Autoencoder`, or first stage of a `Latent`, it is.
        weight: of one less the cosine.
        objective: what is minimised beside it, whose first player pays; the model's own loss if
            None.

    Raises:
        ValueError: for a negative weight; in `loss`, for a node without an autoencoder, or a
            projection that does not fit the features.

    Example:
        >>> from subjunctive.graph import Graph
        >>> autoencoder = Autoencoder.of(Variable("x", (1, 16, 16)), widths=(8, 8))
        >>> model, rows = SCM(Graph.parse("x"), {"x": autoencoder}), torch.randn(6, 1, 16, 16)
        >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        >>> aligned = Represented(teacher, Projection(4, 10), "x")
        >>> sorted(aligned.loss(model, Batch({"x": rows}), "model", 0))
        ['x.kl', 'x.nll', 'x.represented']
    """

    def __init__(
        self,
        features: nn.Module,
        projection: nn.Module,
        node: str,
        weight: float = 1.0,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.features = copy.deepcopy(features).requires_grad_(False).eval()
        self.projection, self.node = projection, node
        self.weight = _checked("Represented", weight)
        self.objective = ModelLoss() if objective is None else objective

    def train(self, mode: bool = True) -> Represented:
        """Leave the features in evaluation mode: what is frozen drops no activations either."""
        super().train(mode)
        self.features.eval()
        return self

    def players(self, model: nn.Module) -> list[Player]:
        """Return the players of the objective beside it; the first one moves the projection."""
        first, *others = self.objective.players(model)
        own = (*first.parameters, *self.projection.parameters())
        return [dataclasses.replace(first, parameters=own), *others]

    def cosine(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the mean cosine of projected latents and features, a row, `(B,)`."""
        with torch.no_grad():
            target = self.features(x)
        found = self.projection(z)
        if found.dim() == 4:
            size = target.shape[2:] if target.dim() == 4 else (1, 1)
            found = F.adaptive_avg_pool2d(found, size).reshape(*found.shape[:2], *target.shape[2:])
        if found.shape != target.shape:
            raise ValueError(
                f"the projection of Represented gives {tuple(found.shape)}, the features are "
                f"{tuple(target.shape)}; give it {target.shape[1]} outputs"
            )
        return F.cosine_similarity(found, target, dim=1).reshape(len(x), -1).mean(1)

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, and for the first player `<node>.represented`."""
        terms = self.objective.loss(model, batch, player, step)
        if player != self.players(model)[0].name:
            return terms
        autoencoder, x = first_stage(model, batch, self.node, "Represented")
        paid = self.weight * (1 - self.cosine(x, autoencoder.posterior(x).rsample()))
        seen = batch.mask(self.node).to(paid.device)
        return _added(terms, f"{self.node}.represented", torch.where(seen, paid, 0.0))

    card = Card(
        name="ReaLS: a latent aligned to features",
        summary="An autoencoder from whose latents a small projection reads the features of a "
        "frozen network.",
        title="Exploring Representation-Aligned Latent Space for Better Generation",
        authors="Xu, Wanghan and Yue, Xiaoyu and Wang, Zidong and Teng, Yao and Zhang, Wenlong and "
        "Liu, Xihui and Zhou, Luping and Ouyang, Wanli and Bai, Lei",
        year=2025,
        url="https://arxiv.org/abs/2502.00359",
        assumptions=("the features tell what matters in a picture",),
        needs="images, and a network that gives features of them",
        abduction="approximate",
        tolerance=1e-5,
        of=(291,),
        example=lambda: _fitted("features"),
    )
