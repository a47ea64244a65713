"""One mechanism a domain, and one noise for all: translation without pairs is a counterfactual.

Let x have a parent d, its domain (cats or dogs, one scanner or another), and let each domain have a
mechanism of its own, fitted to that domain's rows alone,

    x = f_d(u, pa),    u ~ p(u), the same whatever d is.

To translate x from domain a to b is then to ask what x would have been, had it come from b:
abduction under f_a, action do(d = b), prediction under f_b. Two flows, two diffusion models or two
decoders with a residual will do, if they have noise of one kind. What the domains have in common
must stand at the same place of their noise: for diffusion models that is observed, not proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from subjunctive.card import Card
from subjunctive.checks.law import claim
from subjunctive.mechanism import (
    Mechanism,
    Noise,
    Parents,
    Prior,
    each,
    evaluating,
    parts,
    seeded,
)
from subjunctive.mechanisms.additive import AdditiveNoise
from subjunctive.mechanisms.linear import (
    LinearGaussian,
    check,
    check_parents,
    own_samples,
    stirred,
)
from subjunctive.variable import Batch, Variable, known


def _example() -> tuple[Mechanism, Batch]:
    x, t = Variable("x", shape=(2,)), Variable("t")
    site = Variable("site", kind="categorical", categories=("here", "there"))
    with seeded(0):
        here, there = LinearGaussian(x, [t]), AdditiveNoise(x, [t])
    mechanism = Domains(x, [site, t], "site", [here, there])
    return stirred(mechanism), own_samples(mechanism)


RANKS = ("none", "approximate", "convention", "exact")
Part: TypeAlias = tuple[Mechanism, Tensor, Parents]  # mechanism, rows, its parents there


class Domains(Mechanism):
    """A node whose mechanism is chosen by a parent, its domain, and whose noise is not.

    Reference: Dual Diffusion Implicit Bridges for Image-to-Image Translation (Su, Song, Meng and
    Ermon, 2022), https://arxiv.org/abs/2203.08382, with deterministic samplers; with stochastic
    ones, Unifying Diffusion Models' Latent Space, with Applications to CycleDiffusion and Guidance
    (Wu and De la Torre, 2022), https://arxiv.org/abs/2210.05559.

    Args:
        variable: the node.
        parents: any variables, the domain among them.
        by: the name of the domain, a categorical parent.
        mechanisms: one for every category, in their order, built for this node and some of its
            other parents.

    Raises:
        KeyError, ValueError: if the domain is no categorical parent, a mechanism is built for
            something else, or two of them differ in their noise.

    Example:
        >>> x, d = Variable("x"), Variable("d", kind="categorical", categories=("cat", "dog"))
        >>> cat, dog = LinearGaussian.of(x, scale=2.0), LinearGaussian.of(x, bias=1.0)
        >>> both = Domains(x, [d], "d", [cat, dog])
        >>> u = both.abduct(torch.tensor([4.0]), {"d": torch.tensor([0])})
        >>> both(u, {"d": torch.tensor([1])}).tolist()
        [3.0]
    """

    mechanisms: Sequence[Mechanism]
    card = Card(
        name="One mechanism a domain",
        summary="A node's mechanism is chosen by its domain and shares its noise with the others: "
        "unpaired translation as a counterfactual.",
        title="Dual Diffusion Implicit Bridges for Image-to-Image Translation",
        authors="Su, Xuan and Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
        year=2022,
        url="https://arxiv.org/abs/2203.08382",
        assumptions=("the same noise means the same in every domain",),
        needs="rows of every domain, without pairs; or mechanisms that were fitted apart",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable],
        by: str,
        mechanisms: Sequence[Mechanism],
    ) -> None:
        super().__init__(variable, parents)
        self.by = by
        self.mechanisms = nn.ModuleList(mechanisms)  # type: ignore[assignment]
        named = {p.name: p for p in self.parents}
        known(by, named, "Domains(by=)")
        kinds = named[by].categories
        if named[by].kind != "categorical" or len(mechanisms) != len(kinds):
            raise ValueError(
                f"{variable.name!r} needs a mechanism for every category of {by!r}: it is "
                f"{named[by].kind} with {len(kinds)} categories, and there are {len(mechanisms)}"
            )
        for kind, mechanism in zip(kinds, mechanisms, strict=True):
            for have, need in ((mechanism.variable, variable), *_pairs(mechanism, named)):
                if have != need:
                    raise ValueError(
                        f"the mechanism of {by}={kind!r} is built for {have}; here it would have "
                        f"{need}: use one Variable for all domains"
                    )
            alike(mechanisms[0], mechanism)
        claims = [claim(m) for m in mechanisms]  # as exact as the least exact of them
        abduction = min((c[0] for c in claims), key=RANKS.index)
        tolerance = max(c[1] for c in claims)
        self.card = replace(self.card, abduction=abduction, tolerance=tolerance)  # type: ignore[misc]

    def prior(self) -> Prior:
        """Return the density of the noise, the same in every domain."""
        return self.mechanisms[0].prior()

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`, each row by its domain's mechanism."""
        split = self._split(len(next(parts(u))[1]), parents)
        x: Tensor = _join(split, [m(each(lambda t, i=i: t[i], u), pa) for m, i, pa in split])
        return x

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return a draw of the noise, each row's by its domain's mechanism."""
        split = self._split(len(check(x, self.variable)), parents)
        return _join(split, [m.abduct(x[i], pa) for m, i, pa in split])

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the mechanisms' terms; zero in rows whose mechanism has no such term."""
        split = self._split(len(check(x, self.variable)), parents)
        terms = [m.loss(x[i], pa) for m, i, pa in split]
        every = {name: term for found in terms for name, term in found.items()}
        filled = [
            {k: found.get(k, t.new_zeros(len(i))) for k, t in every.items()}
            for found, (_, i, _) in zip(terms, split, strict=True)
        ]
        return _join(split, filled)  # type: ignore[no-any-return]

    def _split(self, rows: int, parents: Parents) -> list[Part]:
        """Return each domain's mechanism, the rows that it makes, and its parents in these."""
        check_parents(self, parents, rows)
        found: list[Part] = []
        which: dict[Mechanism, list[int]] = {}
        for code, mechanism in enumerate(self.mechanisms):
            which.setdefault(mechanism, []).append(code)
        for mechanism, codes in which.items():  # one that many categories share is run once
            index = torch.isin(parents[self.by], parents[self.by].new_tensor(codes)).nonzero()[:, 0]
            if len(index):
                given = {p.name: parents[p.name][index] for p in mechanism.parents}
                found.append((mechanism, index, given))
        return found


def _join(split: list[Part], pieces: list[Any]) -> Any:
    """Put what the mechanisms gave back into the order of the rows."""
    back = torch.cat([index for _, index, _ in split]).argsort()
    return each(lambda *t: torch.cat(t)[back], *pieces)


def _pairs(mechanism: Mechanism, named: Mapping[str, Variable]) -> list[tuple[Variable, Variable]]:
    for parent in mechanism.parents:
        known(parent.name, named, "a domain's mechanism")
    return [(parent, named[parent.name]) for parent in mechanism.parents]


def alike(source: Mechanism, target: Mechanism) -> None:
    """Raise a `ValueError` unless two mechanisms take noise of the same parts, shapes and times.

    Example:
        >>> alike(LinearGaussian(Variable("x")), LinearGaussian(Variable("y", (2,))))
        Traceback (most recent call last):
        ValueError: the noise of 'x' is {'': ()}, that of 'y' {'': (2,)}; noise of one ...
    """
    densities: list[dict[str, Any]] = [dict(parts(m.prior())) for m in (source, target)]
    first, second = (
        {name: tuple(d.batch_shape + d.event_shape) for name, d in prior.items()}
        for prior in densities
    )
    times = [getattr(m, "sampler", None) for m in (source, target)]
    a, b = (s and (s.numbers(), s.sigma_data) for s in times)
    if first != second or a != b:
        what = f"{first}, that of {target.variable.name!r} {second}"
        what = what if first != second else "of other times than that of the second"
        raise ValueError(
            f"the noise of {source.variable.name!r} is {what}; noise of one can be replayed by the "
            "other if both have the same parts, and samplers the same schedule, steps and start"
        )


@torch.no_grad()
def translate(
    source: Mechanism,
    target: Mechanism,
    x: Tensor,
    parents: Parents | None = None,
    into: Parents | None = None,
    *,
    seed: int | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Return what x would have been under another mechanism: abduct by one, replay by the other.

    Args:
        source: what made x.
        target: what would make it instead: fitted to another domain, or the same mechanism with
            another sampler or guidance. Its noise has the source's parts.
        x: standardised values `(B, *shape)`.
        parents: standardised values of the source's parents, if it has any.
        into: of the target's parents; the same values if not given.
        seed: for draws that do not touch the user's generator.
        batch_size: rows computed at once; bounds the memory.

    Raises:
        ValueError: if the noise of one means nothing to the other.

    Example:
        >>> cat = LinearGaussian.of(Variable("x"), scale=2.0)
        >>> dog = LinearGaussian.of(Variable("x"), bias=1.0)
        >>> translate(cat, dog, torch.tensor([4.0, -2.0])).tolist()
        [3.0, 0.0]
    """
    alike(source, target)
    given, done = parents or {}, (parents or {}) if into is None else into
    pieces = []
    with seeded(seed), evaluating(source), evaluating(target):
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            u = source.abduct(x[rows], {k: v[rows] for k, v in given.items()})
            pieces.append(target(u, {k: v[rows] for k, v in done.items()}))
    return torch.cat(pieces)
