"""Consistency distillation: the members of the family whose road a trained denoiser walks.

    LCM     a DDIM teacher that skips, guided with a strength that the network is told
    SCott   a teacher that takes several noisy steps, and a critic
    PCM     jumps from edge to edge, and a critic
    CTM     jumps anywhere, the denoiser's loss, and a critic if one is given

Each is a recipe: calling it returns the objective for `fit`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from subjunctive.card import Card
from subjunctive.diffusion.consistent import Grid, PseudoHuber
from subjunctive.mechanisms.consistency import Consistency
from subjunctive.mechanisms.diffusion import Diffusion
from subjunctive.nn import MLP, Beside
from subjunctive.objectives.consistency import ConsistencyTraining, Teacher
from subjunctive.objectives.undistilled import example_of, small


def even(intervals: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of distillation: a grid that does not grow, each interval as often."""
    grid = Grid(intervals, intervals, noise=None)
    return {"grid": grid, "distance": PseudoHuber(), "weighted": False, **options}


def _critic() -> nn.Module:
    return Beside(nn.Flatten(), MLP(5, 1, (16,)))


class LCM:
    """Latent consistency distillation, told how strongly the parents count.

    The mechanism has a `strength`, and its network one number more in its condition. Fine-tuning on
    data of one's own without a teacher (LCF) is `ConsistencyTraining(Grid(50, 50), target=own)`.

    Reference: Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference
    (Luo, Tan, Huang, Li and Zhao, 2023), https://arxiv.org/abs/2310.04378

    Args:
        own: the mechanism that will be trained.
        teacher: the trained mechanism, with parents declared absent in some rows of its training.
        strengths: the range of the parents' strength; a strength is the paper's `w + 1`.
        intervals, skip: of the teacher's sampler, and how many of them a road spans.
        options: of `ConsistencyTraining`, in place of the method's.

    Example:
        >>> LCM(Consistency(small(1), strength=1.0), small()).teacher.skip
        4
    """  # noqa: E501

    def __new__(  # type: ignore[misc]
        cls,
        own: Consistency,
        teacher: Diffusion,
        strengths: tuple[float, float] = (1.0, 4.0),
        intervals: int = 200,
        skip: int = 4,
        **options: Any,
    ) -> ConsistencyTraining:
        """Return the objective."""
        if own.strength is None:
            raise ValueError(
                f"LCM tells the network of {own.variable.name!r} the parents' strength; build its "
                "Consistency with strength=1.0 and a condition one wider"
            )
        told = Teacher(teacher, skip=skip, strengths=strengths)
        rest = {
            "grid": Grid(intervals, intervals, noise=None),
            "distance": PseudoHuber(),
            **options,
        }
        return ConsistencyTraining(teacher=told, target=own, **rest)

    card = Card(
        name="Latent consistency model (LCM)",
        summary="A guided diffusion model distilled into a few jumps that are told the strength of "
        "guidance, by a teacher that skips steps.",
        title="Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step "
        "Inference",
        authors="Luo, Simian and Tan, Yiqin and Huang, Longbo and Li, Jian and Zhao, Hang",
        year=2023,
        url="https://arxiv.org/abs/2310.04378",
        assumptions=("the teacher's guided denoiser is right",),
        needs="a trained diffusion mechanism and its data, of latents or as they are",
        abduction="approximate",
        tolerance=1e-4,
        of=(182,),
        example=example_of(lambda own: LCM(own, small()), strength=1.0),
    )


class SCott:
    """Stochastic consistency distillation: the teacher's road is a piece of its SDE.

    Reference: SCott: Accelerating Diffusion Models with Stochastic Consistency Distillation (Liu et
    al., 2024), https://arxiv.org/abs/2403.01505

    Args:
        own: the mechanism that will be trained.
        teacher: the trained mechanism.
        critic: see `ConsistencyTraining`; None for none.
        noise: eta of the teacher's steps, which controls how noisy the road is.
        parts: steps of the teacher a road.
        intervals: of the grid.
        options: of `ConsistencyTraining`, in place of the method's.

    Example:
        >>> SCott(Consistency(small()), small()).teacher.noise
        0.5
    """

    def __new__(  # type: ignore[misc]
        cls,
        own: Consistency,
        teacher: Diffusion,
        critic: nn.Module | None = None,
        noise: float = 0.5,
        parts: int = 2,
        intervals: int = 50,
        **options: Any,
    ) -> ConsistencyTraining:
        """Return the objective."""
        told = Teacher(teacher, parts=parts, noise=noise)
        rest = {
            "grid": Grid(intervals, intervals, noise=None),
            "distance": PseudoHuber(),
            **options,
        }
        return ConsistencyTraining(teacher=told, target=own, critic=critic, **rest)

    card = Card(
        name="Stochastic consistency distillation (SCott)",
        summary="A diffusion model distilled into a few jumps by a teacher that walks its SDE with "
        "controlled noise, several steps a road, beside a critic.",
        title="SCott: Accelerating Diffusion Models with Stochastic Consistency Distillation",
        authors="Liu, Hongjian and Xie, Qingsong and Deng, Zhijie and Chen, Chen and "
        "Tang, Shixiang and Fu, Xueyang and Zha, Zheng-jun and Lu, Haonan",
        year=2024,
        url="https://arxiv.org/abs/2403.01505",
        assumptions=("the noise of the teacher's road averages out",),
        needs="a trained diffusion mechanism and its data",
        abduction="approximate",
        tolerance=1e-4,
        of=(77,),
        example=example_of(lambda own: SCott(own, small(), _critic()), stops=(1.0, 0.5)),
    )


class PCM:
    """Phased consistency: a jump goes to the next edge, and all of them make the road.

    The mechanism has `edges`; from edge to edge nothing is drawn, so that more phases follow the
    teacher's road more closely.

    Reference: Phased Consistency Models (Wang et al., 2024),
    https://arxiv.org/abs/2405.18407

    Args:
        own: the mechanism that will be trained.
        teacher: the trained mechanism.
        critic: see `ConsistencyTraining`: it compares at the edges; None for none.
        intervals: of the grid.
        options: of `ConsistencyTraining`, in place of the method's.

    Example:
        >>> PCM(Consistency(small(), edges=(0.0, 0.5)), small()).grid.last
        64
    """

    def __new__(  # type: ignore[misc]
        cls,
        own: Consistency,
        teacher: Diffusion,
        critic: nn.Module | None = None,
        intervals: int = 64,
        **options: Any,
    ) -> ConsistencyTraining:
        """Return the objective."""
        if own.edges is None:
            raise ValueError(
                f"PCM jumps to edges; build the Consistency of {own.variable.name!r} with "
                "edges=(0.0, 0.25, 0.5, 0.75), say"
            )
        rest = {
            "grid": Grid(intervals, intervals, noise=None),
            "distance": PseudoHuber(),
            **options,
        }
        return ConsistencyTraining(teacher=Teacher(teacher), target=own, critic=critic, **rest)

    card = Card(
        name="Phased consistency model (PCM)",
        summary="A diffusion model distilled phase by phase: deterministic jumps from edge to edge "
        "of its road, beside a critic.",
        title="Phased Consistency Models",
        authors="Wang, Fu-Yun and Huang, Zhaoyang and Bergman, Alexander William and "
        "Shen, Dazhong and Gao, Peng and Lingelbach, Michael and Sun, Keqiang and Bian, Weikang "
        "and Song, Guanglu and Liu, Yu and Wang, Xiaogang and Li, Hongsheng",
        year=2024,
        url="https://arxiv.org/abs/2405.18407",
        assumptions=("the teacher's denoiser is right",),
        needs="a trained diffusion mechanism and its data",
        abduction="approximate",
        tolerance=1e-4,
        of=(386,),
        example=example_of(lambda own: PCM(own, small(), _critic()), edges=(0.0, 0.5)),
    )


class CTM:
    """A consistency trajectory model: jumps from any time to any earlier one.

    The mechanism has `edges=None`, and its network one number more in its condition. Its sampler's
    `gamma` says how much noise is drawn anew at later stops; at 0 more stops follow the road more
    closely. The jump of no length is the denoiser, hence the score.

    Reference: Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion (Kim
    et al., 2024), https://arxiv.org/abs/2310.02279

    Args:
        own: the mechanism that will be trained.
        teacher: the trained mechanism.
        critic: see `ConsistencyTraining`; None for none.
        intervals, skip: of the grid, and how many of them a road spans, a step of the teacher each.
        denoise: weight of the denoiser's loss.
        options: of `ConsistencyTraining`, in place of the method's.

    Example:
        >>> CTM(Consistency(small(1), edges=None), small()).denoise
        1.0
    """  # noqa: E501

    def __new__(  # type: ignore[misc]
        cls,
        own: Consistency,
        teacher: Diffusion,
        critic: nn.Module | None = None,
        intervals: int = 18,
        skip: int = 1,
        denoise: float = 1.0,
        **options: Any,
    ) -> ConsistencyTraining:
        """Return the objective."""
        if own.edges is not None:
            raise ValueError(
                f"CTM jumps anywhere; build the Consistency of {own.variable.name!r} with edges="
                "None and a condition one wider"
            )
        told = Teacher(teacher, parts=skip, heun=True, skip=skip)
        rest = {
            "grid": Grid(intervals, intervals, noise=None),
            "distance": PseudoHuber(),
            **options,
        }
        return ConsistencyTraining(teacher=told, target=own, critic=critic, denoise=denoise, **rest)

    card = Card(
        name="Consistency trajectory model (CTM)",
        summary="A diffusion model distilled into jumps from any time to any earlier one, which "
        "is its denoiser, too, where they have no length.",
        title="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of "
        "Diffusion",
        authors="Kim, Dongjun and Lai, Chieh-Hsin and Liao, Wei-Hsiang and Murata, Naoki and "
        "Takida, Yuhta and Uesaka, Toshimitsu and He, Yutong and Mitsufuji, Yuki and "
        "Ermon, Stefano",
        year=2024,
        url="https://arxiv.org/abs/2310.02279",
        assumptions=("the teacher's denoiser is right",),
        needs="a trained diffusion mechanism and its data",
        abduction="approximate",
        tolerance=1e-4,
        of=(78,),
        example=example_of(lambda own: CTM(own, small()), edges=None, stops=(1.0, 0.5), gamma=0.0),
    )
