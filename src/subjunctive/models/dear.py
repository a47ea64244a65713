r"""DEAR: a picture from causes that have an SCM, by a bidirectional GAN and a few labels.

    causes    z_i = f_i(u_i, g_i o z_pa(i)),     pa(i) candidates in a super-graph, g their gates
    picture   x = G(code, z) + residual,         a `GAN`
    encoder   q(z | x), taught by the labels that rows have, by the critic, and by what G makes

Independent priors cannot hold causes that are related: a generator that has only met independent
causes draws what was never seen, and its encoder must choose between the labels and the prior.
With the SCM as prior, the law of the causes is the data's, and an intervention on one moves what
hangs on it before the picture is drawn.

The graph may be known, or a *super-graph*: an order of the causes, or any DAG that holds the true
one. Gates then learn which of its edges stand (`mechanisms.gated`), and `decided(model)` returns
the ordinary SCM over these. Train it with `game(model)`:

    model = DEAR(graph, variables)
    fit(model, rows, game(model), steps=...)
    model = decided(model)

Where this differs from the paper and its code, on purpose: an equation of the SCM is any density
of a node given its parents' *values*, not one linear map between two elementwise ones, so that the
prior learns by likelihood (`objectives.adversarial`); an edge is a gate, not a small weight; a
label that was seen takes the place of the encoder's draw; what G(E(x)) leaves of x is a declared
residual, there it is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from subjunctive.card import Card
from subjunctive.completion import Encoder
from subjunctive.encoders.regression import Regression
from subjunctive.graph import Graph
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.gan import GAN
from subjunctive.mechanisms.gated import Gated
from subjunctive.nn import MLP, Beside, ConvDecoder, ConvEncoder
from subjunctive.objectives.adversarial import Adversarial, critic
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[SCM, Batch]:
    variables = {
        "t": Variable("t", loc=2.0, scale=0.5, unit="px"),
        "k": Variable("k", kind="categorical", categories=("a", "b", "c")),
        "i": Variable("i", loc=100.0, scale=20.0),
        "x": Variable("x", (1, 8, 8), loc=0.5, scale=0.5),
    }
    with seeded(0):
        graph = Graph.parse("t -> k -> i; t -> i; t, k, i -> x")
        model = DEAR(graph, variables, latent=2, widths=(8, 8), start=0.99)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model, Batch(model.sample(64))


class DEAR:
    """The recipe: calling it returns an `SCM`, to be trained by `game`.

    Reference: Weakly Supervised Disentangled Generative Causal Representation Learning (Shen, Liu,
    Dong, Lian, Chen and Zhang, 2022), https://arxiv.org/abs/2010.02637

    Args:
        graph: a DAG over the causes and the picture that holds every edge that may be; the picture
            is a leaf.
        variables: node -> `Variable`, standardised (`Variable.fit`).
        image: the picture's node; the one node with three dimensions if not given.
        latent: width of the code, what the causes do not say.
        widths: channels of the convolutions of generator and encoders, the finest first.
        shuffle: factor by which pixels are unshuffled before the first convolution, and shuffled
            after the last; more is faster and coarser.
        residual: whether what the encoder leaves of a picture is kept as its noise; see `GAN`.
        start: probability at which gates start; 1 if the graph is known, and no edge is doubted.
        kind: class of the causes' mechanisms behind the gates; see `Gated.of`.
        mechanisms: node -> mechanism, where a node should have another one than these.
        encoder: of the causes from the picture; by a convolutional `Regression` if None.

    Raises:
        KeyError: for an unknown node.
        ValueError: if there is no picture, or it is no leaf.

    Example:
        >>> t, x = Variable("t"), Variable("x", (1, 16, 16))
        >>> model = DEAR(Graph.parse("t -> x"), {"t": t, "x": x}, latent=2, widths=(8, 8))
        >>> model.sample(2, do={"t": 1.0}, seed=0)["x"].shape
        torch.Size([2, 1, 16, 16])
    """

    def __new__(  # type: ignore[misc]
        cls,
        graph: Graph,
        variables: Mapping[str, Variable],
        image: str | None = None,
        latent: int = 4,
        widths: Sequence[int] = (16, 32, 64),
        shuffle: int = 2,
        residual: bool = True,
        start: float = 0.75,
        kind: Any = None,
        mechanisms: Mapping[str, Mechanism] | None = None,
        encoder: Encoder | None = None,
    ) -> SCM:
        """Build the SCM."""
        pictures = [n for n in graph.nodes if len(variables[n].shape) == 3]
        if image is None and len(pictures) != 1:
            raise ValueError(
                f"the picture is the one node of shape (C, H, W); here {pictures} are: name it "
                "with image="
            )
        image = image or pictures[0]
        known(image, graph.nodes, "DEAR(image=)")
        if graph.children(image):
            raise ValueError(
                f"{image!r} has children {graph.children(image)}; a picture is a leaf here"
            )
        built: dict[str, Mechanism] = dict(mechanisms or {})
        for name in graph.nodes:
            if name not in built and name != image:
                above = [variables[p] for p in graph.parents(name)]
                built[name] = Gated.of(variables[name], above, kind, start)
        x, parents = variables[image], [variables[p] for p in graph.parents(image)]
        features, beside = 64, sum(p.width for p in parents)

        def eye() -> nn.Module:
            channels, height, across = x.shape
            return ConvEncoder(channels, (height, across), features, widths, shuffle)

        if image not in built:
            look = nn.Sequential(eye(), nn.SiLU())
            coder = Beside(look, MLP(features + beside, 2 * latent, (features,)))
            size = (x.shape[1], x.shape[2])
            generator = ConvDecoder(latent + beside, x.shape[0], size, widths, shuffle)
            built[image] = GAN(x, parents, latent, generator, coder, residual=residual)
        labels = [variables[n] for n in graph.order if n != image]
        return SCM(graph, built, encoder or Regression(x, labels, eye(), features))

    card = Card(
        name="DEAR",
        summary="Causes of a picture that have an SCM, from a few labels: a bidirectional GAN with "
        "a causal prior, whose edges are learned within a super-graph.",
        title="Weakly Supervised Disentangled Generative Causal Representation Learning",
        authors="Shen, Xinwei and Liu, Furui and Dong, Hanze and Lian, Qing and Chen, Zhitang and "
        "Zhang, Tong",
        year=2022,
        url="https://arxiv.org/abs/2010.02637",
        assumptions=(
            "every true edge is in the super-graph, and no cause is hidden",
            "the code is independent of the causes",
            "abduction is a learned inverse: an answer keeps as its residual what that leaves",
        ),
        needs="pictures, some of them with labels of their causes; an order of the causes",
        abduction="approximate",
        tolerance=1e-4,
        of=(304,),
        example=_example,
    )


def game(
    model: SCM, widths: Sequence[int] = (16, 32, 64), shuffle: int = 2, **options: Any
) -> Adversarial:
    """Return the game that trains a model of `DEAR`, with a plain critic.

    Args:
        model: an SCM with one `GAN`.
        widths, shuffle: of the critic's convolutions.
        options: for `Adversarial`.

    Raises:
        ValueError: if not exactly one node has a GAN.

    Example:
        >>> t, x = Variable("t"), Variable("x", (1, 16, 16))
        >>> model = DEAR(Graph.parse("t -> x"), {"t": t, "x": x}, latent=2, widths=(8, 8))
        >>> game(model, widths=(8, 8)).node
        'x'
    """
    found = [m for m in model.mechanisms.values() if isinstance(m, GAN)]
    if len(found) != 1:
        raise ValueError(
            f"a game is of one GAN; this model has {len(found)}: use Adversarial(node, critic)"
        )
    (gan,) = found
    judge = critic(gan.variable, gan.parents, gan.latent, widths, shuffle)
    return Adversarial(gan.variable.name, judge, **options)
