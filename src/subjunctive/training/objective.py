"""What a model is trained for: players, what each of them minimises, and which parameters move.

    player k:   theta_k <- argmin  mean_rows sum_terms L_k(model, batch),    every n_k-th step

A likelihood has one player, who owns every parameter; an adversarial game has two. In its turn a
player's parameters alone ask for gradients, so that none leaks to another player.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from subjunctive.variable import Batch


@dataclass(frozen=True, eq=False)
class Player:
    """Who updates which parameters, how often and how fast.

    Args:
        name: for the table of losses and for `Objective.loss`.
        parameters: what the player moves; frozen ones are left out.
        every: it updates in every `every`-th step.
        lr: its learning rate; that of `fit` if None.
        betas: its AdamW's decay rates of the two moments.
        shared: whether another player may own some of the same parameters.
    """

    name: str
    parameters: Iterable[nn.Parameter]
    every: int = 1
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    shared: bool = False

    def __post_init__(self) -> None:
        """Keep the parameters as a tuple, each once."""
        unique = {id(p): p for p in self.parameters}
        object.__setattr__(self, "parameters", tuple(unique.values()))
        if self.every < 1:
            raise ValueError(f"player {self.name!r} has every={self.every}; give 1 or more")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"player {self.name!r} has lr={self.lr}; give a positive number")


class Objective(nn.Module, ABC):
    """What `fit` minimises; networks that only training needs (a critic) are its submodules.

    Example:
        >>> class Ridge(Objective):
        ...     def loss(self, model, batch, player, step):
        ...         return {"error": (batch.values["y"] - model(batch.values["x"])).square()}
        >>> [player.name for player in Ridge().players(nn.Linear(1, 1))]
        ['model']
    """

    def players(self, model: nn.Module) -> list[Player]:
        """Return the players in the order of their turns; one who owns everything by default."""
        return [Player("model", [*model.parameters(), *self.parameters()])]

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's named terms to minimise, one number a row `(B,)`, weighted."""


class ModelLoss(Objective):
    """The model's own `loss(batch)`: for an SCM, minus the evidence lower bound."""

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return `model.loss(batch)`."""
        terms: dict[str, Tensor] = model.loss(batch)  # type: ignore[operator]
        return terms


@contextmanager
def alone(own: Iterable[nn.Parameter], everyone: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let `own` ask for gradients and nobody else of `everyone`; restore them afterwards.

    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> with alone(a.parameters(), [*a.parameters(), *b.parameters()]):
    ...     [p.requires_grad for p in b.parameters()]
    [False, False]
    """
    keep = {id(p) for p in own}
    others = [p for p in everyone if p.requires_grad and id(p) not in keep]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


def apart(model: nn.Module, own: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group a player's parameters by the model's `parts`, whose losses do not touch each other.

    A gradient is clipped a group at a time, so that a part whose loss is steep does not slow the
    others down. A model without `parts` is one group.

    Example:
        >>> len(apart(nn.Linear(2, 1), list(nn.Linear(2, 1).parameters())))
        1
    """
    home: dict[int, int] = {}
    for i, part in enumerate(getattr(model, "parts", ())):
        for p in part.parameters():
            home.setdefault(id(p), i)
    groups: dict[int, list[nn.Parameter]] = {}
    for p in own:
        groups.setdefault(home.get(id(p), -1), []).append(p)
    return list(groups.values())


def check_players(
    players: Sequence[Player], model: nn.Module, objective: nn.Module
) -> list[list[nn.Parameter]]:
    """Return the parameters that each player moves, after checking who owns what.

    Raises:
        ValueError: if a parameter has no owner, or two who do not share it, or an owner but no
            home in the model or the objective; if there is nothing to move.
    """
    named = {f"model.{n}": p for n, p in model.named_parameters()}
    named |= {f"objective.{n}": p for n, p in objective.named_parameters()}
    name_of = {id(p): n for n, p in named.items() if p.requires_grad}
    if not name_of:
        raise ValueError("no parameter of the model asks for a gradient: there is nothing to fit")
    names = [player.name for player in players]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"players need distinct names, got {names}")
    owner: dict[int, Player] = {}
    for player in players:
        for p in player.parameters:
            other = owner.setdefault(id(p), player)
            if other is not player and not (other.shared and player.shared):
                raise ValueError(
                    f"players {other.name!r} and {player.name!r} both own "
                    f"{name_of.get(id(p), 'a parameter')!r}; give it to one, or set shared=True "
                    "on both"
                )
    orphans = [n for key, n in name_of.items() if key not in owner]
    if orphans:
        raise ValueError(
            f"no player owns {', '.join(orphans[:8])}; give each to a player, or freeze it "
            "(requires_grad_(False))"
        )
    known = {id(p) for p in named.values()}
    moved = []
    for player in players:
        if any(id(p) not in known for p in player.parameters):
            raise ValueError(
                f"player {player.name!r} owns parameters of a network that is in neither the "
                "model nor the objective; make the network an attribute of the objective"
            )
        moved.append([p for p in player.parameters if p.requires_grad])
        if not moved[-1]:
            raise ValueError(f"player {player.name!r} owns no parameter that asks for a gradient")
    return moved
