"""Causal generative modelling with latent variables: what is, what if, what would have been.

The names that most programs need stand here; each is imported when it is first asked for, so that
`import subjunctive` costs next to nothing. Everything else is found in its room:
`subjunctive.mechanisms`, `subjunctive.data`, `subjunctive.plot` and so on.

Example:
    >>> import subjunctive as sj
    >>> sj.Graph.parse("t -> y").parents("y")
    ('t',)
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subjunctive.card import Card as Card
    from subjunctive.checks import check_mechanism as check_mechanism
    from subjunctive.checks import check_model as check_model
    from subjunctive.citation import cite as cite
    from subjunctive.data.images import Images as Images
    from subjunctive.data.morpho import MorphoDigits as MorphoDigits
    from subjunctive.data.pendulum import Pendulum as Pendulum
    from subjunctive.data.stream import Stream as Stream
    from subjunctive.data.table import Table as Table
    from subjunctive.data.tabular import Linear as Linear
    from subjunctive.data.tabular import Nonlinear as Nonlinear
    from subjunctive.effect import effect as effect
    from subjunctive.effect import mediation as mediation
    from subjunctive.effect import strengths as strengths
    from subjunctive.graph import Graph as Graph
    from subjunctive.hub import from_hub as from_hub
    from subjunctive.hub import push_to_hub as push_to_hub
    from subjunctive.identify import identify as identify
    from subjunctive.intervention import Draw as Draw
    from subjunctive.intervention import Policy as Policy
    from subjunctive.intervention import Replace as Replace
    from subjunctive.intervention import Scale as Scale
    from subjunctive.intervention import Set as Set
    from subjunctive.intervention import Shift as Shift
    from subjunctive.mechanism import Density as Density
    from subjunctive.mechanism import Mechanism as Mechanism
    from subjunctive.mechanism import seeded as seeded
    from subjunctive.metrics.evaluate import evaluate as evaluate
    from subjunctive.models.causal_diffae import CausalDiffAE as CausalDiffAE
    from subjunctive.query import counterfactual as counterfactual
    from subjunctive.query import intervene as intervene
    from subjunctive.query import observe as observe
    from subjunctive.scm import SCM as SCM
    from subjunctive.scm import Model as Model
    from subjunctive.store import load as load
    from subjunctive.store import save as save
    from subjunctive.train import fit as fit
    from subjunctive.unit_effect import unit_mediation as unit_mediation
    from subjunctive.variable import Batch as Batch
    from subjunctive.variable import Variable as Variable

_HOMES = {
    "card": ("Card",),
    "checks": ("check_mechanism", "check_model"),
    "citation": ("cite",),
    "data.images": ("Images",),
    "data.morpho": ("MorphoDigits",),
    "data.pendulum": ("Pendulum",),
    "data.stream": ("Stream",),
    "data.table": ("Table",),
    "data.tabular": ("Linear", "Nonlinear"),
    "effect": ("effect", "mediation", "strengths"),
    "graph": ("Graph",),
    "hub": ("from_hub", "push_to_hub"),
    "identify": ("identify",),
    "intervention": ("Draw", "Policy", "Replace", "Scale", "Set", "Shift"),
    "mechanism": ("Density", "Mechanism", "seeded"),
    "metrics.evaluate": ("evaluate",),
    "models.causal_diffae": ("CausalDiffAE",),
    "query": ("counterfactual", "intervene", "observe"),
    "scm": ("SCM", "Model"),
    "store": ("load", "save"),
    "train": ("fit",),
    "unit_effect": ("unit_mediation",),
    "variable": ("Batch", "Variable"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name, or a room, when it is first asked for."""
    if name in _HOME:
        value: Any = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version(__name__)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        import difflib

        close = difflib.get_close_matches(name, _HOME, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"subjunctive has no public name {name!r}.{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """Keeps `subjunctive.effect` the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
