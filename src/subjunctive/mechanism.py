"""A mechanism computes one node from its parents and its own noise: `x = f(u, parents)`.

Everything is a mechanism, a decoder too. It states the density of its noise (`prior`), computes the
node (`forward`), explains a value that was seen (`abduct`, a draw of `u ~ p(u | x, parents)`) and
says what to minimise (`loss`). Noise is a tensor or a dictionary of noises, batch first; the prior
has the same structure, with one `torch.distributions.Distribution` a part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from subjunctive.variable import Variable

if TYPE_CHECKING:
    from subjunctive.card import Card

Noise: TypeAlias = Any  # Tensor | dict[str, Noise], batch first
Prior: TypeAlias = Any  # Distribution | dict[str, Prior], of the same structure as the noise
Parents: TypeAlias = Mapping[str, Tensor]


class Mechanism(nn.Module, ABC):
    """One arrow of an SCM: a node computed from its parents and its own noise.

    Built from the node's own `Variable` and its parents' `Variable`s. All values are standardised
    (`Variable.standardise`): a scalar node has shape `(B,)`, categories are integer codes. The
    mapping `parents` holds a tensor for every name in `self.parents`. Where the likeliest
    parameters have a closed form, `solve(x, parents)` may set them, in place.
    """

    card: ClassVar[Card]
    origin: Tensor

    def __init__(self, variable: Variable, parents: Sequence[Variable] = ()) -> None:
        super().__init__()
        self.variable, self.parents = variable, tuple(parents)
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def prior(self) -> Prior:
        """Return a density for every part of u, independent of the parents, residual included."""

    @abstractmethod
    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`, deterministic: every draw is in u, every part of u is used."""

    @abstractmethod
    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of `u ~ p(u | x, parents)`."""

    @abstractmethod
    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return named terms to minimise, one number a row `(B,)`, already weighted."""

    def standard_normal(self, *shape: int) -> Distribution:
        """Return N(0, I) of the given event shape, on this module's device and dtype."""
        zero = self.origin.expand(shape)
        return Independent(Normal(zero, torch.ones_like(zero), validate_args=False), len(shape))


class Density(Mechanism):
    """A mechanism whose conditional density is known."""

    @abstractmethod
    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | parents) of the standardised value, `(B,)`, in nats."""


def draw(prior: Prior, n: int) -> Noise:
    """Draw n rows of noise from a prior.

    >>> draw({"a": Normal(0.0, 1.0)}, 3)["a"].shape
    torch.Size([3])
    """
    if isinstance(prior, dict):
        return {k: draw(p, n) for k, p in prior.items()}
    return prior.sample((n,))


def each(function: Callable[..., Tensor], *noises: Noise) -> Noise:
    """Apply a function to corresponding tensors of noises that have the same structure."""
    if isinstance(noises[0], dict):
        return {k: each(function, *(n[k] for n in noises)) for k in noises[0]}
    return function(*noises)


def parts(noise: Noise, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a noise with their dotted names."""
    if isinstance(noise, dict):
        for key, part in noise.items():
            yield from parts(part, f"{name}.{key}" if name else key)
    else:
        yield name, noise


def where(mask: Tensor, a: Noise, b: Noise) -> Noise:
    """Take rows of `a` where the mask `(B,)` is true, rows of `b` elsewhere."""
    return each(lambda s, t: torch.where(mask.reshape(-1, *[1] * (s.dim() - 1)), s, t), a, b)


def prior_log_prob(prior: Prior, noise: Noise) -> Tensor:
    """Return the log-density of every row of a noise under its prior, `(B,)`."""
    if isinstance(prior, dict):
        return torch.stack([prior_log_prob(p, noise[k]) for k, p in prior.items()]).sum(0)
    value = prior.log_prob(noise)
    return value.reshape(len(value), -1).sum(1)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's default generators seeded with `seed`, and restore the user's afterwards.

    With `seed=None` nothing is touched: draws continue the user's stream.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # where there is no accelerator, torch.manual_seed takes longer than a query of a small
        # table: it writes down the stack of calls, for devices that might appear
        there = torch.accelerator.is_available()
        (torch.manual_seed if there else torch.default_generator.manual_seed)(seed)
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a module into evaluation mode, and every part back into its own afterwards."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
