"""Consistency training: the members of the family that learn from data alone.

    plain   the original: root grid 2 to 150, |v|^2, averaged target; with a teacher, 18 intervals
            that a Heun step walks
    ICT     no average: pseudo-Huber, log-normal noise, a grid that doubles, weighted
    SLCT    ICT with a Cauchy distance, early denoising, coupled noise; norms without a scale

Each is a recipe: calling it returns the objective for `fit`. `distilled.py` has those with a teacher.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from subjunctive.card import Card
from subjunctive.diffusion import EDM, Denoiser
from subjunctive.diffusion.consistent import Cauchy, Grid, PseudoHuber, Squared
from subjunctive.mechanism import Mechanism, seeded
from subjunctive.mechanisms.consistency import Consistency
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.nn import Timed
from subjunctive.objectives.consistency import Alone, ConsistencyTraining, Teacher
from subjunctive.variable import Batch, Variable


def small(told: int = 0, seed: int = 0) -> Diffusion:
    """Return a small diffusion mechanism of three numbers and one parent, for examples.

    Args:
        told: how much wider the network's condition is than the mechanism's own.
        seed: of its weights.
    """
    with seeded(seed):
        x, t = Variable("x", (3,)), Variable("t")
        network = Timed(3, condition_width([t], 0) + told, width=16)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        return Diffusion(x, [t], Denoiser(network, EDM(), "edm"))


def example_of(
    make: Callable[[Consistency], ConsistencyTraining], **jumps: Any
) -> Callable[[], tuple[Mechanism, Batch]]:
    """Return a card's example: a small mechanism, trained for five steps.

    Args:
        make: the objective for a mechanism.
        jumps: of the mechanism, but for its `diffusion`.
    """

    def example() -> tuple[Mechanism, Batch]:
        from subjunctive.mechanisms.linear import own_samples
        from subjunctive.train import fit

        told = ("strength" in jumps) + (jumps.get("edges", 0) is None)
        own = Consistency(small(told), **jumps)
        fit(Alone(own), own_samples(own, 64), make(own), steps=5, batch_size=32, progress=False)
        return own, own_samples(own, 256)

    return example


def plain(own: Consistency, steps: int, teacher: Diffusion | None = None) -> ConsistencyTraining:
    """Return the original consistency training or, with a teacher, distillation.

    Reference: Consistency Models (Song, Dhariwal, Chen and Sutskever, 2023),
    https://arxiv.org/abs/2303.01469; LPIPS, a distance of natural images, is left to the caller.

    Args:
        own: the mechanism that will be trained.
        steps: of training.
        teacher: a trained mechanism.

    Example:
        >>> plain(Consistency(small()), 100).grid.intervals(99)
        149
    """
    if teacher is None:
        grid = Grid(2, 150, steps, noise=None, root=True)
        return ConsistencyTraining(grid, Squared(), target=own, decay=0.9, weighted=False)
    grid = Grid(18, 18, noise=None)
    return ConsistencyTraining(
        grid, Squared(), Teacher(teacher, heun=True), target=own, weighted=False
    )


class ICT:
    """Improved consistency training: no teacher, no average of weights.

    Reference: Improved Techniques for Training Consistency Models (Song and Dhariwal, 2024),
    https://arxiv.org/abs/2310.14189

    Args:
        steps: of training, over which the intervals double.
        options: of `ConsistencyTraining`, in place of the method's.

    Example:
        >>> ICT(800).grid.intervals(100)
        20
    """

    def __new__(cls, steps: int, **options: Any) -> ConsistencyTraining:  # type: ignore[misc]
        """Return the objective."""
        return ConsistencyTraining(
            **{"grid": Grid(10, 1280, steps), "distance": PseudoHuber(), **options}
        )

    card = Card(
        name="Improved consistency training (iCT)",
        summary="One- and two-step generation learned from data alone: pseudo-Huber distance, "
        "log-normal noise levels, a grid that doubles, no averaged target.",
        title="Improved Techniques for Training Consistency Models",
        authors="Song, Yang and Dhariwal, Prafulla",
        year=2024,
        url="https://arxiv.org/abs/2310.14189",
        assumptions=("the network is a function of the noise level as smooth as the road",),
        needs="a `Consistency` mechanism, at random or from a denoiser's weights, and data",
        abduction="approximate",
        tolerance=1e-4,
        of=(63,),
        example=example_of(lambda own: ICT(5), stops=(1.0, 0.5)),
    )


class SLCT:
    """Latent consistency training that withstands outliers.

    The four ingredients: a Cauchy distance whose scale shrinks as the grid gets finer, the data's
    loss at early times, noise dealt to rows by optimal transport, and norms without a scale
    (`scaleless`, called on the network before training).

    Reference: Improved Training Technique for Latent Consistency Models (Dao, Doan, Liu, Le and
    Metaxas, 2025), https://arxiv.org/abs/2502.01441

    Args:
        own: the mechanism that will be trained.
        steps: of training.
        early: share of the grid with the data's loss.
        options: of `ConsistencyTraining`, in place of the method's. Noise is coupled where the node
            has neither parents nor code.

    Example:
        >>> SLCT(Consistency(small()), 800).early
        0.25
    """

    def __new__(  # type: ignore[misc]
        cls, own: Consistency, steps: int, early: float = 0.25, **options: Any
    ) -> ConsistencyTraining:
        """Return the objective."""
        rest = {"grid": Grid(10, 1280, steps), "distance": Cauchy(), **options}
        rest.setdefault("couple", not own.parents and not own.diffusion.code)
        return ConsistencyTraining(early=early, **rest)

    card = Card(
        name="Robust latent consistency training (sLCT)",
        summary="Consistency training of latents with outliers: Cauchy distance, early denoising, "
        "coupled noise, norms without a scale.",
        title="Improved Training Technique for Latent Consistency Models",
        authors="Dao, Quan and Doan, Khanh and Liu, Di and Le, Trung and Metaxas, Dimitris",
        year=2025,
        url="https://arxiv.org/abs/2502.01441",
        assumptions=("outliers of a latent carry nothing that must be kept",),
        needs="a `Consistency` mechanism of a latent, and data",
        abduction="approximate",
        tolerance=1e-4,
        of=(7,),
        example=example_of(lambda own: SLCT(own, 5)),
    )


def scaleless(network: nn.Module) -> nn.Module:
    """Fix the scale of every norm of a network at one, in place, and return it.

    A scale that grows lets outliers through. Only the norms' shifts learn on.

    >>> norm = scaleless(nn.Sequential(nn.LayerNorm(3)))[0]
    >>> norm.weight.requires_grad, norm.bias.requires_grad
    (False, True)
    """
    for part in network.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm) and part.weight is not None:
            nn.init.ones_(part.weight).requires_grad_(False)
    return network
