"""Objectives: what a model is trained for beyond its own loss, and who moves which parameters."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.objectives.acyclicity import dagma as dagma
    from subjunctive.objectives.acyclicity import notears as notears
    from subjunctive.objectives.acyclicity import strongest as strongest
    from subjunctive.objectives.adversarial import Adversarial as Adversarial
    from subjunctive.objectives.adversarial import critic as critic
    from subjunctive.objectives.consistency import ConsistencyTraining as ConsistencyTraining
    from subjunctive.objectives.consistency import Teacher as Teacher
    from subjunctive.objectives.counterfactual import CounterfactualTuning as CounterfactualTuning
    from subjunctive.objectives.distilled import CTM as CTM
    from subjunctive.objectives.distilled import LCM as LCM
    from subjunctive.objectives.distilled import PCM as PCM
    from subjunctive.objectives.distilled import SCott as SCott
    from subjunctive.objectives.flow_prior import Aligned as Aligned
    from subjunctive.objectives.flow_prior import FlowPrior as FlowPrior
    from subjunctive.objectives.latent_space import Equivariant as Equivariant
    from subjunctive.objectives.latent_space import Projection as Projection
    from subjunctive.objectives.latent_space import Represented as Represented
    from subjunctive.objectives.latent_space import equivariance as equivariance
    from subjunctive.objectives.learned_graph import LearnedGraph as LearnedGraph
    from subjunctive.objectives.learned_graph import candidates as candidates
    from subjunctive.objectives.smooth import Smooth as Smooth
    from subjunctive.objectives.smooth import variation as variation
    from subjunctive.objectives.undistilled import ICT as ICT
    from subjunctive.objectives.undistilled import SLCT as SLCT
    from subjunctive.objectives.undistilled import plain as plain
    from subjunctive.objectives.undistilled import scaleless as scaleless

__getattr__, __dir__, __all__ = lazy(__name__)
