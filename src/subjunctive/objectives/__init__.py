"""Objectives: what a model is trained for beyond its own loss, and who moves which parameters."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.objectives.acyclicity import dagma as dagma
    from subjunctive.objectives.acyclicity import notears as notears
    from subjunctive.objectives.acyclicity import strongest as strongest
    from subjunctive.objectives.adversarial import Adversarial as Adversarial
    from subjunctive.objectives.adversarial import critic as critic
    from subjunctive.objectives.counterfactual import CounterfactualTuning as CounterfactualTuning
    from subjunctive.objectives.flow_prior import Aligned as Aligned
    from subjunctive.objectives.flow_prior import FlowPrior as FlowPrior
    from subjunctive.objectives.learned_graph import LearnedGraph as LearnedGraph
    from subjunctive.objectives.learned_graph import candidates as candidates

__getattr__, __dir__, __all__ = lazy(__name__)
