"""The laws: mathematics that every mechanism and every model obeys, for users' own ones too.

`check_mechanism` and `check_model` run all that apply and raise `LawBroken` with the law's name,
the numbers and the tolerance. Laws prove coherence, not quality.
"""

from __future__ import annotations

from typing import Any

from subjunctive.checks.law import Law as Law
from subjunctive.checks.law import LawBroken as LawBroken
from subjunctive.checks.law import NotApplicable as NotApplicable
from subjunctive.checks.law import run as run
from subjunctive.checks.machine import MACHINE_LAWS
from subjunctive.checks.mechanism import DENSITY_LAWS, NOISE_LAWS
from subjunctive.checks.model import STRUCTURE_LAWS
from subjunctive.mechanism import Mechanism
from subjunctive.scm import Model
from subjunctive.variable import Batch

MECHANISM_LAWS: tuple[Law, ...] = (*NOISE_LAWS, *DENSITY_LAWS, *MACHINE_LAWS)
MODEL_LAWS: tuple[Law, ...] = (*STRUCTURE_LAWS, *MACHINE_LAWS)


def check_mechanism(mechanism: Mechanism, batch: Batch) -> dict[str, str]:
    """Run every law of mechanisms that applies.

    Args:
        mechanism: it is left as it is; its `card` says what it claims of its abduction.
        batch: standardised values of the node and its parents; some 500 rows give the laws about
            distributions their power.

    Returns:
        law -> "holds" or "not applicable: why".

    Raises:
        LawBroken: naming every broken law, the numbers and the tolerance.

    Example:
        >>> from subjunctive.mechanisms.linear import LinearGaussian, own_samples
        >>> from subjunctive.variable import Variable
        >>> mechanism = LinearGaussian(Variable("x"), [Variable("t")])
        >>> check_mechanism(mechanism, own_samples(mechanism))["round_trip"]
        'holds'
    """
    return run(MECHANISM_LAWS, mechanism, batch)


def check_model(model: Model, batch: Any) -> dict[str, str]:
    """Run every law of models that applies.

    Args:
        model: an SCM or anything else that is a `Model`; it is left as it is.
        batch: evidence in the user's units, some of it missing if the model can do with that.

    Returns:
        law -> "holds" or "not applicable: why".

    Raises:
        LawBroken: naming every broken law, the numbers and the tolerance.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.scm import SCM
        >>> from subjunctive.variable import Variable
        >>> t, y = Variable("t"), Variable("y")
        >>> model = SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t),
        ...                                     "y": LinearGaussian(y, [t])})
        >>> check_model(model, model.sample(300, seed=0))["effects_travel"]
        'not applicable: its graph has no path of two edges'
    """
    return run(MODEL_LAWS, model, Batch.of(batch, list(model.variables.values())))
