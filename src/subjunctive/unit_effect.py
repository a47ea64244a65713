"""Direct, indirect and total effects for given units, on an outcome of any shape: an image.

With Y(t, m) the outcome under do(treatment = t, mediators = m), M(t) the mediators under
do(treatment = t), and Y(t) = Y(t, M(t)), all of one unit's own noise,

    TE(a->b)  = Y(b) - Y(a)
    NDE(a->b) = Y(b, M(a)) - Y(a)
    NIE(a->b) = Y(a, M(b)) - Y(a)
    NIE(b->a) = Y(b, M(a)) - Y(b)

so that TE(a->b) = NDE(a->b) - NIE(b->a), whatever the model is worth. `effect.mediation` has their
means over the population. Here the noise is abducted, once for all four worlds, from what was seen
of the unit, and a is what its treatment was, if nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, get_default_dtype

from subjunctive.intervention import Checked, Intervention, as_do
from subjunctive.mechanism import Noise, Parents, evaluating
from subjunctive.query import Answer, counterfactual
from subjunctive.scm import Model
from subjunctive.variable import Variable, known

WORLDS = ("factual", "treated", "direct", "indirect")
EFFECTS = {
    "TE": ("treated", "factual"),
    "NDE": ("direct", "factual"),
    "NIE": ("indirect", "factual"),
    "NIE reversed": ("direct", "treated"),
}
LATENTS = ".latents"  # what follows the name of a node whose mechanism holds the mediator


def unit_mediation(
    model: Model,
    evidence: Any,
    treatment: str,
    outcome: str,
    mediators: str | Sequence[str],
    value: Any,
    *,
    baseline: Any = None,
    draws: int = 1,
    seed: int | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Answer:
    """Split each unit's effect of a treatment into what goes through the mediators and what not.

    A mediator may lie within the mechanism of a node of an SCM, as the latents z of a hierarchical
    VAE whose prior follows the parents: "image.latents" names them, for a mechanism that computes
    its node in two stages, z = `latents(u, parents)` and `decode(z, parents, u["residual"])`.

    Args:
        model: any `Model`.
        evidence: the units: what was seen, `(B, ...)` a node, in the user's units; missing values
            by mask.
        treatment, outcome: nodes.
        mediators: nodes on a path from treatment to outcome, or latents of such a node or of the
            outcome.
        value: b, what the treatment is set to: a number, a label, one a row, or an `Intervention`.
        baseline: a, likewise; each row's own treatment if None.
        draws, seed, batch_size, progress: as for `counterfactual`; the worlds of `batch_size` rows
            times draws are computed at once.

    Returns:
        an `Answer` whose names are the outcome's worlds, `factual` Y(a), `treated` Y(b), `direct`
        Y(b, M(a)) and `indirect` Y(a, M(b)), and the effects, `TE`, `NDE`, `NIE` and `NIE reversed`
        (b->a), in the outcome's unit. `["NDE"]` is the mean over draws, `.draws["NDE"]` has all.

    Raises:
        KeyError: for an unknown node. ValueError: for a mediator on no path from treatment to
            outcome, latents that a mechanism has not, an outcome of unordered categories, and
            values that the treatment cannot take.

    Reference: Direct and indirect effects (Pearl, 2001), https://arxiv.org/abs/1301.2300; on images
    and through latents: High Fidelity Image Counterfactuals with Probabilistic Causal Models
    (De Sousa Ribeiro, Xia, Monteiro, Pawlowski and Glocker, 2023), https://arxiv.org/abs/2306.15764

    Example:
        >>> from subjunctive.data.pendulum import Pendulum
        >>> data = Pendulum(train=100, valid=2, test=4)
        >>> found = unit_mediation(data.oracle, data.test, "light", "image", ["length", "position"],
        ...                        90.0)
        >>> found["NDE"].shape  # the sun moves and the shadow stays
        torch.Size([4, 3, 32, 32])
        >>> float(found["NDE"][:, :, -1].abs().max())  # the ground
        0.0
    """
    names = [mediators] if isinstance(mediators, str) else list(dict.fromkeys(mediators))
    _check(model, treatment, outcome, names)
    a = as_do({} if baseline is None else {treatment: baseline}, model.variables)
    b = as_do({treatment: value}, model.variables)
    nodes = [n for n in names if n in model.variables]
    worlds = _Worlds(model, outcome, nodes)
    kept: list[dict[str, Intervention]] = [{}, {}]
    held: list[dict[str, Intervention]] = [{}, {}]
    for name in set(names) - set(nodes):
        node = name.removesuffix(LATENTS)
        for i in (0, 1):
            stage = _Latents(_mechanism(model, node))
            kept[i][node], held[i][node] = stage, _Latents(stage.mechanism, stage)
    for i in (0, 1):
        held[i] |= {n: _AsIn(worlds, i, n) for n in nodes}
    dos = [Checked(do) for do in (a | kept[0], b | kept[1], b | held[0], a | held[1])]
    with evaluating(model):
        answers = counterfactual(
            worlds, evidence, dos, draws=draws, seed=seed, batch_size=batch_size, progress=progress
        )
    return _named(answers, model.variables[outcome])


def _named(answers: Sequence[Answer], variable: Variable) -> Answer:
    """Return the worlds and their differences as one answer."""
    draws = {
        name: answer.draws[variable.name] for name, answer in zip(WORLDS, answers, strict=True)
    }
    number = {n: v.to(get_default_dtype()) if variable.discrete else v for n, v in draws.items()}
    draws |= {name: number[x] - number[y] for name, (x, y) in EFFECTS.items()}
    variables = {name: variable.rename(name) for name in WORLDS}
    variables |= {name: Variable(name, variable.shape, unit=variable.unit) for name in EFFECTS}
    said = [a.identification for a in answers if a.identification is not None]
    verdict = min(said, key=bool, default=None)  # one that is not identified, if there is one
    return Answer(draws, variables, answers[0].log_weight, verdict)


class _Worlds:
    """A model of the outcome that remembers what the nodes did in each world of a batch."""

    def __init__(self, model: Model, outcome: str, nodes: Sequence[str]) -> None:
        self.model, self.outcome, self.nodes = model, outcome, nodes
        self.graph, self.variables, self.noise = model.graph, model.variables, model.noise
        self.past: list[dict[str, Tensor]] = []

    def abduct(self, evidence: Any) -> Noise:
        return self.explain(evidence)[0]

    def explain(self, evidence: Any) -> tuple[Noise, Tensor | None]:
        """Explain a batch; the worlds that are predicted next are of its noise."""
        self.past.clear()
        explain = getattr(self.model, "explain", None)
        return explain(evidence) if explain else (self.model.abduct(evidence), None)

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        world = self.model.predict(noise, do)
        self.past.append({n: world[n] for n in self.nodes})
        return {self.outcome: world[self.outcome]}


@dataclass(frozen=True)
class _AsIn(Intervention):
    """The node does what it did in an earlier world; it truly would, hence no warning."""

    worlds: _Worlds
    index: int
    node: str

    @property
    def hard(self) -> bool:
        return True

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        return self.worlds.past[self.index][self.node]


class _Latents(Intervention):
    """The node's own mechanism in its two stages, the first kept, or taken from another world."""

    def __init__(self, mechanism: Any, source: _Latents | None = None) -> None:
        self.mechanism, self.source, self.parents = mechanism, source, mechanism.parents
        self.z: Any = None

    def apply(self, natural: Callable[..., Tensor], parents: Parents, rows: int) -> Tensor:
        return natural(mechanism=self)

    def __call__(self, u: Any, parents: Parents) -> Tensor:
        """Stand in for the mechanism, as `Replace` lets another do."""
        self.z = self.source.z if self.source else self.mechanism.latents(u, parents)
        x: Tensor = self.mechanism.decode(self.z, parents, u["residual"])
        return x


def _mechanism(model: Model, node: str) -> Any:
    """Return the node's mechanism, which has latents of its own, or say that it has not."""
    mechanism = getattr(model, "mechanisms", {}).get(node)
    if not callable(getattr(mechanism, "latents", None)):
        kind = type(model if mechanism is None else mechanism).__name__
        raise ValueError(
            f"{node + LATENTS!r} asks for a first stage of {node!r}, which {kind} lacks; it "
            "takes an SCM and a mechanism with latents(u, parents) and decode(z, parents, "
            "residual), such as HVAE: or name nodes between treatment and outcome"
        )
    return mechanism


def _check(model: Model, treatment: str, outcome: str, mediators: Sequence[str]) -> None:
    """Refuse what is no question of mediation."""
    ends = [m if m in model.variables else m.removesuffix(LATENTS) for m in mediators]
    for name in (treatment, outcome, *ends):
        known(name, model.variables, "unit_mediation()")
    variable = model.variables[outcome]
    if variable.kind == "categorical" and variable.width > 2:
        raise ValueError(
            f"{outcome!r} has {variable.width} unordered categories, whose codes have no "
            "difference; compare the answers of counterfactual()"
        )
    if not mediators:
        raise ValueError(
            "unit_mediation() needs at least one mediator; a total effect is the difference of "
            "two answers of counterfactual()"
        )
    if treatment == outcome or {treatment, outcome} & set(mediators):
        raise ValueError(
            f"treatment {treatment!r}, outcome {outcome!r} and mediators {list(mediators)} must "
            "be different nodes"
        )
    after = set(model.graph.descendants(treatment)) - {treatment}
    between = after & set(model.graph.ancestors(outcome)) - {outcome}
    fitting = between | ({outcome} & after)
    off = [m for m, e in zip(mediators, ends, strict=True) if e not in fitting]
    if off:
        raise ValueError(
            f"{off} lie on no path from {treatment!r} to {outcome!r}; the mediators that do are "
            f"{sorted(between)}"
        )
