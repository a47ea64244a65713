"""Objectives: what a model is trained for beyond its own loss, and who moves which parameters."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.objectives.counterfactual import CounterfactualTuning as CounterfactualTuning
    from subjunctive.objectives.flow_prior import Aligned as Aligned
    from subjunctive.objectives.flow_prior import FlowPrior as FlowPrior

__getattr__, __dir__, __all__ = lazy(__name__)
