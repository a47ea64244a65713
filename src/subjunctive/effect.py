"""Effects and their paths, by Monte Carlo, both worlds on the same noise.

    ATE   E[Y(b) - Y(a)]
    CATE  E[Y(b) - Y(a) | C = c]
    ETT   E[Y(b) - Y(a) | T = t]

Conditions are met by likelihood weighting: clamped nodes weigh p(value | parents), so that no draw
is thrown away. The standard error is of the draws; it does not know the model's own error. Arrow
by arrow, `strengths` says how much each child answers to each of its parents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from subjunctive.intervention import OutsideSupport
from subjunctive.mechanism import Mechanism, Noise, each, evaluating, seeded
from subjunctive.scm import SCM, Model
from subjunctive.variable import Variable, known

if TYPE_CHECKING:
    import pandas

ROWS = 256  # computed at once by `strengths`, which bounds the memory of pictures


@contextmanager
def happened() -> Iterator[None]:
    """Let nodes be set to values that happened, or truly would have, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideSupport)
        yield


@dataclass(frozen=True)
class Effect:
    """A causal effect with its Monte-Carlo uncertainty, in the outcome's unit.

    Args:
        kind: `ATE`, `CATE` or `ETT`.
        estimate: E[Y_b - Y_a] in the sub-population, `(*shape)`.
        standard_error: of the estimate, from the draws; it does not know the model's own error.
        ess: effective number of draws.
    """

    kind: str
    estimate: Tensor
    standard_error: Tensor
    ess: float

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the normal interval of the estimate."""
        half = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.estimate - half, self.estimate + half


@torch.no_grad()
def effect(
    model: Model,
    treatment: str,
    outcome: str,
    values: tuple[Any, Any] = (0.0, 1.0),
    *,
    given: Mapping[str, Any] | None = None,
    treated: Any = None,
    draws: int = 10_000,
    seed: int | None = None,
) -> Effect:
    """Estimate E[Y(b) - Y(a)] by Monte Carlo, both worlds on the same noise.

    Args:
        model: any `Model`; `given` and `treated` need an SCM with densities at those nodes.
        treatment, outcome: nodes.
        values: (a, b), what the treatment is set to.
        given: node -> value, for the conditional effect (CATE); weighted by likelihood.
        treated: a value of the treatment, for the effect on units that had it (ETT).
        draws: Monte-Carlo draws.
        seed: for draws that do not touch the user's generator.

    Raises:
        KeyError: for an unknown node. ValueError: if a condition leaves no weight on any draw, or
            the outcome has unordered categories.
    """
    for name in (treatment, outcome, *(given or {})):
        known(name, model.variables, "effect()")
    if draws < 2:
        raise ValueError(f"effect() needs at least 2 draws, got {draws}")
    condition = dict(given or {})
    if treated is not None and treatment in condition:
        raise ValueError(f"{treatment!r} is set to both; name it once")
    if model.variables[outcome].kind == "categorical" and model.variables[outcome].width > 2:
        raise ValueError(
            f"{outcome!r} has {model.variables[outcome].width} unordered categories, whose codes "
            "have no mean; compare their frequencies in intervene(model, do).sample(n)"
        )
    if treated is not None:
        condition[treatment] = treated
    kind = "ETT" if treated is not None else "CATE" if given else "ATE"
    if isinstance(model, SCM):
        model = model.ancestral([treatment, outcome, *condition])
    elif condition:
        raise ValueError(
            f"{kind} by weighting needs an SCM; {type(model).__name__} is none: average "
            "counterfactual(model, rows, do) over rows that meet the condition"
        )
    with seeded(seed), evaluating(model):
        if condition and isinstance(model, SCM):
            noise, log_weight = model.condition(condition, draws)
        else:
            noise, log_weight = model.noise(draws), None
        low, high = (model.predict(noise, {treatment: v})[outcome] for v in values)
        if log_weight is None:
            log_weight = torch.zeros(draws, device=low.device)
    if not bool(torch.isfinite(log_weight).any()):
        raise ValueError(
            f"no draw meets the condition {condition}; it has no density under the model"
        )
    difference = high.double() - low.double()
    weight = log_weight.double().softmax(0).reshape(-1, *[1] * (difference.dim() - 1))
    estimate = (weight * difference).sum(0)
    error = (weight.square() * (difference - estimate).square()).sum(0).sqrt()
    return Effect(kind, estimate, error, float(1 / weight.square().sum()))


@torch.no_grad()
def mediation(
    model: Model,
    treatment: str,
    outcome: str,
    mediators: Sequence[str],
    values: tuple[Any, Any] = (0.0, 1.0),
    *,
    draws: int = 10_000,
    seed: int | None = None,
) -> pandas.DataFrame:
    """Split the effect of a treatment into what goes through the mediators and what does not.

        TE(a->b) = E[Y(b) - Y(a)]
        NDE(a->b) = E[Y(b, M(a)) - Y(a)]
        NIE(a->b) = E[Y(a, M(b)) - Y(a)]

    so that TE(a->b) = NDE(a->b) - NIE(b->a).

    Returns:
        rows `TE`, `NDE`, `NIE`, `NIE reversed` (b->a) with `estimate` and `standard_error`.

    Reference: Direct and indirect effects (Pearl, 2001), https://arxiv.org/abs/1301.2300
    """
    import pandas

    if isinstance(mediators, str):
        mediators = [mediators]
    for name in (treatment, outcome, *mediators):
        known(name, model.variables, "mediation()")
    if not mediators or draws < 2:
        raise ValueError(
            f"mediation() needs at least one mediator and at least 2 draws, got "
            f"{list(mediators)} and {draws}"
        )
    if model.variables[outcome].shape:
        raise ValueError(
            f"mediation() needs a scalar outcome; {outcome!r} has shape "
            f"{model.variables[outcome].shape}"
        )
    between = set(model.graph.descendants(treatment)) & set(model.graph.ancestors(outcome))
    off = [m for m in mediators if m not in between]
    if off:
        raise ValueError(
            f"{off} lie on no path from {treatment!r} to {outcome!r}; the mediators that "
            f"do are {sorted(between - {treatment, outcome})}"
        )
    if isinstance(model, SCM):
        model = model.ancestral([outcome])
    a, b = values
    with seeded(seed), evaluating(model):
        noise = model.noise(draws)
        under_a, under_b = (model.predict(noise, {treatment: v}) for v in (a, b))
        with happened():  # the mediators do what they would; the treatment was warned of above
            y_b_m_a, y_a_m_b = (
                model.predict(noise, {treatment: v} | {m: world[m] for m in mediators})[
                    outcome
                ].double()
                for v, world in ((b, under_a), (a, under_b))
            )
    y_a, y_b = under_a[outcome].double(), under_b[outcome].double()
    rows = {
        "TE": y_b - y_a,
        "NDE": y_b_m_a - y_a,
        "NIE": y_a_m_b - y_a,
        "NIE reversed": y_b_m_a - y_b,
    }
    return pandas.DataFrame(
        {
            "estimate": {k: float(v.mean()) for k, v in rows.items()},
            "standard_error": {k: float(v.std() / draws**0.5) for k, v in rows.items()},
        }
    )


class Strength(NamedTuple):
    """How much a child answers to a parent, and whether the number has a sign."""

    value: float
    signed: bool


@torch.no_grad()
def strengths(
    model: Model, *, n: int = 1000, seed: int | None = None
) -> dict[tuple[str, str], Strength]:
    """Measure, arrow by arrow, how much a child answers to a parent, in standard deviations.

    The strength is a finite difference of the child's own mechanism, averaged over n rows of the
    model's own samples, the child's noise and its other parents held,

        s = E[f(u, pa_k + sd_k / 2, rest) - f(u, pa_k - sd_k / 2, rest)] / sd(child).

    A parent of ordered or of two categories goes up one code, and the change is multiplied by the
    standard deviation of its codes. A parent of more, unordered categories, or of several numbers,
    takes the value of another row, and s = sqrt(E[change^2] / 2) / sd(child) has no sign. Where the
    child is linear in its parents, each a number, s is the standardised coefficient. A child of
    several numbers (a picture) has the root-mean-square change over rows and numbers, in the
    root-mean-square standard deviation of its numbers, without a sign. A child of categories has
    the share of rows whose category changes, for the same moves of the parent.

    Args:
        model: an SCM.
        n: rows of its own samples.
        seed: for draws that do not touch the user's generator.

    Returns:
        (parent, child) -> `Strength`, in the order of the graph's edges.

    Raises:
        ValueError: for a model without a mechanism a node, or fewer than 2 rows.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> t, y = Variable("t"), Variable("y")
        >>> equation = LinearGaussian.of(y, [t], weights=[-3.0], scale=4.0)
        >>> model = SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t), "y": equation})
        >>> round(strengths(model, seed=0)["t", "y"].value, 1)  # -3 / 5
        -0.6
    """
    if not isinstance(model, SCM):
        raise ValueError(
            f"strengths() asks every node's mechanism, which {type(model).__name__} has not; give "
            "an SCM, or ask effect(model, treatment, outcome)"
        )
    if n < 2:
        raise ValueError(f"strengths() needs at least 2 rows, got n={n}")
    found = {}
    with seeded(seed), evaluating(model):
        noise, order = model.noise(n), torch.randperm(n)
        worlds = [model.predict(_rows(noise, i)) for i in torch.arange(n).split(ROWS)]
        inner = {
            name: variable.standardise(torch.cat([world[name] for world in worlds]))
            for name, variable in model.variables.items()
        }
        for parent, _, child in model.graph.edges:
            own = {p.name: inner[p.name] for p in model.mechanisms[child].parents}
            low, high, factor, signed = _moves(model.variables[parent], inner[parent], order)
            before, after = (
                _computed(model.mechanisms[child], noise[child], own | {parent: value})
                for value in (low, high)
            )
            signed = signed and not model.variables[child].shape
            found[parent, child] = _answer(before, after, inner[child], factor, signed)
    return found


def _rows(noise: Noise, index: Tensor) -> Noise:
    return each(lambda part: part[index], noise)


def _computed(mechanism: Mechanism, noise: Noise, parents: dict[str, Tensor]) -> Tensor:
    """Return the mechanism's node, a few rows at a time."""
    pieces = torch.arange(len(next(iter(parents.values())))).split(ROWS)
    return torch.cat([mechanism(_rows(noise, i), _rows(parents, i)) for i in pieces])


def _moves(variable: Variable, value: Tensor, order: Tensor) -> tuple[Tensor, Tensor, float, bool]:
    """Return a parent's values before and after, what makes it a standard deviation, and if signed.

    E[(v' - v)^2] of two independent rows is twice the variance, hence the root of a half.
    """
    if variable.shape or (variable.kind == "categorical" and variable.width > 2):
        return value, value[order], 0.5**0.5, False
    if variable.discrete:
        low = value.clamp(max=variable.width - 2)
        return low, low + 1, float(value.double().std()), True
    half = value.std() / 2
    return value - half, value + half, 1.0, True


def _answer(before: Tensor, after: Tensor, own: Tensor, factor: float, signed: bool) -> Strength:
    if not own.is_floating_point():
        return Strength(float((before != after).double().mean()), False)
    spread = float(own.double().var(0).mean().sqrt())
    change = after.double() - before.double()
    size = float(change.mean() if signed else change.square().mean().sqrt())
    return Strength(size * factor / spread if spread > 0 else 0.0, signed)
