"""The ladder of causation as functions: what is, what if, what would have been.

    observe         p(missing | evidence)                          rung 1
    intervene       the model under do(.)                          rung 2
    counterfactual  abduction, action, prediction                  rung 3

They ask a `Model` for its noise, and nothing else: an SCM, a joint flow and a simulator answer
alike. Effects and mediation are averages of these answers (`effect.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from subjunctive.graph import Graph
from subjunctive.intervention import Checked, Intervention, Then, as_do
from subjunctive.mechanism import Noise, evaluating, seeded
from subjunctive.scm import Model
from subjunctive.variable import Batch, Variable, known

if TYPE_CHECKING:
    import pandas

    from subjunctive.identify import Identification


class NotIdentified(UserWarning):
    """The graph and the observed nodes do not determine the answer; the model's form does."""


@dataclass(frozen=True)
class Answer(Mapping[str, Tensor]):
    """What a query found, node by node, in the user's units.

    `answer["y"]` has shape `(B, *shape)`: the draw, where there is one; the mean over draws (the
    most frequent category) where there are more.

    Args:
        draws: node -> `(draws, B, *shape)`.
        variables: node -> what it is.
        log_weight: `(draws, B)` log importance weights where abduction is approximate and weights
            are known; else None.
        identification: whether graph and observed nodes alone determine the answer.
    """

    draws: dict[str, Tensor]
    variables: Mapping[str, Variable]
    log_weight: Tensor | None = None
    identification: Identification | None = None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the nodes."""
        return iter(self.draws)

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.draws)

    @property
    def weights(self) -> Tensor:
        """Normalised weights of the draws `(draws, B)`; equal ones where none are known."""
        first = next(iter(self.draws.values()))
        if self.log_weight is None:
            return torch.full(first.shape[:2], 1.0 / len(first), device=first.device)
        return self.log_weight.softmax(0)

    @property
    def ess(self) -> Tensor:
        """Effective number of draws a row, `(B,)`."""
        return 1.0 / self.weights.square().sum(0)

    def __getitem__(self, node: str) -> Tensor:
        """Return the node's point answer `(B, *shape)`."""
        known(node, self.draws, "the answer")
        draws = self.draws[node]
        if len(draws) == 1:
            return draws[0]
        variable, weights = self.variables[node], self.weights.to(draws.device)
        if variable.discrete:
            one_hot = nn.functional.one_hot(draws, variable.width)
            return (one_hot * weights[..., None]).sum(0).argmax(-1)
        return (draws * weights.reshape(*weights.shape, *[1] * (draws.dim() - 2))).sum(0)

    def interval(self, node: str, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Return the central interval over draws, lower and upper `(B, *shape)` each."""
        known(node, self.draws, "the answer")
        draws = self.draws[node]
        if len(draws) < 2:
            raise ValueError("an interval needs draws: ask counterfactual(..., draws=100)")
        number = draws if draws.is_floating_point() else draws.to(torch.get_default_dtype())
        value, order = number.sort(0)
        weights = self.weights.to(draws.device)
        weights = weights.reshape(*weights.shape, *[1] * (draws.dim() - 2)).expand_as(value)
        mass = weights.gather(0, order).cumsum(0)
        tails = ((1 - level) / 2, (1 + level) / 2)
        last = len(draws) - 1
        picks = [(mass < tail).sum(0, keepdim=True).clamp(max=last) for tail in tails]
        return value.gather(0, picks[0])[0], value.gather(0, picks[1])[0]

    def frame(self) -> pandas.DataFrame:
        """Return the point answers of the scalar nodes as a DataFrame, labels for categories."""
        import pandas

        columns = {}
        for node, variable in self.variables.items():
            if variable.shape == () and node in self.draws:
                values = self[node].cpu().numpy()
                columns[node] = (
                    [variable.categories[v] for v in values] if variable.discrete else values
                )
        return pandas.DataFrame(columns)


class Intervened:
    """A model under an intervention: itself a `Model`."""

    def __init__(self, model: Model, do: Mapping[str, Any]) -> None:
        self.model, self.do = model, as_do(do, model.variables)
        self.variables = model.variables
        self.graph: Graph = model.graph.do([n for n, i in self.do.items() if i.hard])

    def noise(self, n: int) -> Noise:
        """Draw n rows of exogenous noise."""
        return self.model.noise(n)

    def abduct(self, evidence: Any) -> Noise:
        """Explain evidence that was collected under the intervention: `explain` without weights."""
        return self.explain(evidence)[0]

    def explain(self, evidence: Any) -> tuple[Noise, Tensor | None]:
        """Explain evidence that was collected under the intervention, with the draws' log-weights.

        Raises:
            ValueError: for a soft intervention, whose inverse is not stated.
        """
        soft = [n for n, i in self.do.items() if not i.hard]
        if soft:
            raise ValueError(
                f"evidence under a soft intervention on {soft} cannot be explained; abduct "
                "with the model itself, or build an SCM with the changed mechanism"
            )
        explain = getattr(self.model, "explain", None)
        noise, weight = explain(evidence) if explain else (self.model.abduct(evidence), None)
        if self.do and not (isinstance(noise, dict) and set(self.do) <= set(noise)):
            raise ValueError(
                f"the noise of {type(self.model).__name__} is not kept by node, so that evidence "
                "under an intervention cannot be explained; abduct with the model itself"
            )
        if not self.do:
            return noise, weight
        fresh = self.model.noise(len(Batch.of(evidence, list(self.variables.values()))))
        return noise | {n: fresh[n] for n in self.do}, weight

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Compute every node; a further `do` acts on top of this one."""
        further = as_do(do or {}, self.variables)
        both = {n: Then(self.do[n], i) if n in self.do else i for n, i in further.items()}
        return self.model.predict(noise, Checked({**self.do, **both}))

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draw n rows from the interventional distribution."""
        with seeded(seed), evaluating(self.model):
            return self.predict(self.noise(n))


def intervene(model: Model, do: Mapping[str, Any]) -> Intervened:
    """Return the model under an intervention.

    Args:
        model: any `Model`.
        do: node -> a number, label or tensor (hard), or an `Intervention` (soft or stochastic).

    Raises:
        KeyError: for an unknown node. ValueError: for a value that the node cannot take.
    """
    return Intervened(model, do)


def observe(
    model: Model,
    evidence: Any,
    *,
    draws: int = 1,
    seed: int | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Answer:
    """Ask what is: draw everything that a row did not see, given what it saw.

    Args:
        model: any `Model`.
        evidence: a Batch, dict or DataFrame in the user's units; missing values by mask.
        draws: how many draws a row.
        seed: for draws that do not touch the user's generator.
        batch_size: rows times draws computed at once; bounds the memory.
        progress: show a bar where it takes over two seconds.
    """
    return _answer(model, evidence, [{}], draws, seed, batch_size, progress)[0]


@overload
def counterfactual(
    model: Model,
    evidence: Any,
    do: Mapping[str, Any],
    *,
    draws: int = ...,
    seed: int | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> Answer: ...
@overload
def counterfactual(
    model: Model,
    evidence: Any,
    do: Sequence[Mapping[str, Any]],
    *,
    draws: int = ...,
    seed: int | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> list[Answer]: ...
def counterfactual(
    model: Model,
    evidence: Any,
    do: Any,
    *,
    draws: int = 1,
    seed: int | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Answer | list[Answer]:
    """Ask what would have been: abduction, action, prediction.

    Args:
        model: any `Model`.
        evidence: what was seen, `(B, ...)` a node, in the user's units; missing values by mask.
        do: what is done instead, one mapping; or a list of mappings, all answered from the *same*
            abducted noise, so that answers differ by the intervention alone.
        draws: how many draws of the noise a row; intervals are over these.
        seed: for draws that do not touch the user's generator.
        batch_size: rows times draws computed at once; bounds the memory.
        progress: show a bar where it takes over two seconds.

    Returns:
        an `Answer`, or a list of them.

    Reference: Causality (Pearl, 2009), theorem 7.1.7.

    Example:
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> from subjunctive.scm import SCM
        >>> t = Variable("t")
        >>> model = SCM(Graph.parse("t -> y"), {"t": LinearGaussian(t),
        ...                                     "y": LinearGaussian(Variable("y"), [t])})
        >>> seen = model.sample(4, seed=0)
        >>> bool((counterfactual(model, seen, {"t": 1.0})["t"] == 1).all())
        True
    """
    many = not isinstance(do, Mapping)
    answers = _answer(
        model, evidence, list(do) if many else [do], draws, seed, batch_size, progress
    )
    return answers if many else answers[0]


@torch.no_grad()
def _answer(
    model: Model,
    evidence: Any,
    dos: list[Mapping[str, Any]],
    draws: int,
    seed: int | None,
    batch_size: int,
    progress: bool,
) -> list[Answer]:
    from tqdm import tqdm

    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size must be at least 1, got {draws} and {batch_size}")
    if not dos:
        raise ValueError("counterfactual() needs at least one intervention; use {} for none")
    batch = Batch.of(evidence, list(model.variables.values()))
    checked = [as_do(do, model.variables) for do in dos]
    for name, act in ((n, i) for do in checked for n, i in do.items()):
        if act.length not in (None, len(batch)):
            raise ValueError(
                f"do() gives {name!r} {act.length} values for {len(batch)} rows of evidence; "
                "give one, or one a row"
            )
    found = [_identified(model, do) for do in checked]
    rows = torch.arange(len(batch)).repeat_interleave(draws)
    pieces: list[list[dict[str, Tensor]]] = [[] for _ in checked]
    weights: list[Tensor | None] = []
    explain = getattr(model, "explain", None)
    with seeded(seed), evaluating(model):
        for index in tqdm(rows.split(batch_size), delay=2, disable=not progress, unit="batch"):
            part = batch[index]
            noise, weight = explain(part) if explain else (model.abduct(part), None)
            weights.append(weight)
            luck = int(torch.randint(2**62, ()))  # stochastic interventions draw alike in each do
            for piece, do in zip(pieces, checked, strict=True):
                with seeded(luck):
                    own = Checked({n: i.rows(index) for n, i in do.items()})
                    piece.append(model.predict(noise, own))
    known_weights = [w for w in weights if w is not None]
    log_weight = None
    if len(known_weights) == len(weights) and any(bool(w.any()) for w in known_weights):
        log_weight = torch.cat(known_weights).reshape(-1, draws).T
    answers = []
    for piece, identification in zip(pieces, found, strict=True):
        values = {n: torch.cat([p[n] for p in piece]) for n in piece[0]}
        shaped = {n: v.reshape(-1, draws, *v.shape[1:]).transpose(0, 1) for n, v in values.items()}
        answers.append(Answer(shaped, model.variables, log_weight, identification))
    return answers


def _identified(model: Model, do: Mapping[str, Intervention]) -> Identification | None:
    """Say, and warn, where latent nodes leave an answer to the model's functional form."""
    graph = model.graph
    latent = set(graph.of_kind("latent"))
    if not latent:
        return None
    from subjunctive.identify import identify

    if not do:
        warnings.warn(
            f"latent {sorted(latent)}: observed data do not determine their scale and sign; "
            "values are the model's own",
            NotIdentified,
            stacklevel=4,
        )
        return None
    observed = [n for n in graph.nodes if n not in latent]
    below = {d for n in do for d in graph.descendants(n)} - set(do) - latent
    if not below or set(do) & latent:
        return None
    found = identify(graph, [n for n in observed if n in below], list(do), observed=observed)
    if not found:
        warnings.warn(
            f"do({', '.join(do)}) is not identified from this graph with latent "
            f"{sorted(latent)}: {found.reason}; the answer rests on the model's functional "
            "form",
            NotIdentified,
            stacklevel=4,
        )
    return found
