r"""An invertible latent domain model (ILD): one observation function, one latent SCM a domain.

    z_i = sum_{j<i} A_d[i, j] z_j + b_d[i] + s_d[i] u_i,    u ~ N(0, I)    the SCM of domain d, f_d
    x   = g(z)                                      the same g, invertible, in every domain

    log p(x | d) = log N(u; 0, I) - sum_i log s_d[i] + log |det dg^-1/dx|,   u = f_d^-1(g^-1(x))

What x would have been in domain e is `g(f_e(f_d^-1(g^-1(x))))`: abduction, action, prediction. The
domains differ in the mechanisms of the set I of latents alone; the others' are shared.

**Nothing but the size of I matters.** (1) For invertible h and an h' that leaves N(0, I) as it is,
g' = g h^-1 and f'_d = h f_d h' give the same counterfactuals and the same distributions:

    g' f'_e f'_d^-1 g'^-1 = g h^-1 h f_e h' h'^-1 f_d^-1 h^-1 h g^-1 = g f_e f_d^-1 g^-1.

(2) f_1^-1 f_d leaves every latent outside I as it is, as there it undoes the very mechanism that
f_d has done, and latent i in I depends on u_1, ..., u_i alone. So let P put I last, each part in
its order, h = P f_1^-1 and h' = P^-1. Then f'_d = P f_1^-1 f_d P^-1 is a latent SCM whose last |I|
mechanisms differ by domain, z_i = u_i for all others and in domain 1 for all: the *canonical* form
(`canonical_form`). A model whose last k mechanisms differ (`last(size, k)`) thus loses nothing if
|I| <= k, and has fewer ways to be wrong than the dense one, in which all differ.

What data do not tell: the likelihood of f_d is that of N(c_d, F_d F_d'), whatever basis z has, and
counterfactuals differ between bases. Fewer intervened latents, non-linear g and more domains leave
less freedom. With no parent there is one domain, and this is a plain flow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, seeded
from subjunctive.mechanisms.linear import (
    check,
    check_parents,
    continuous,
    own_samples,
    stirred,
)
from subjunctive.nn.invertible import Affine, Couplings, Leaky
from subjunctive.variable import Batch, Variable


def _example() -> tuple[Mechanism, Batch]:
    site = Variable("site", kind="categorical", categories=("a", "b", "c"))
    with seeded(0):
        layers = [Affine(4), Leaky(0.5), Affine(4), Couplings(4, 2, 8)]
        mechanism = LatentSCM(Variable("x", (4,)), [site], layers, last(4, 2))
    return stirred(mechanism), own_samples(mechanism)


def last(size: int, k: int) -> tuple[int, ...]:
    """Return the last k of so many latents, the intervened set of the canonical form.

    Raises:
        ValueError: for a k below one or above the size.

    Example:
        >>> last(6, 2)
        (4, 5)
    """
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; of {size} latents 1 to {size} may differ by domain")
    return tuple(range(size - k, size))


class LatentSCM(Density):
    """A node that is an invertible function of latents whose linear SCM its domain chooses.

    Reference: Towards Characterizing Domain Counterfactuals For Invertible Latent Causal Models
    (Zhou, Bai, Kulinski, Kocaoglu and Inouye, 2024), https://arxiv.org/abs/2306.11281

    Args:
        variable: the node, continuous, of m numbers.
        parents: the domain, categorical; none for a single domain.
        layers: the observation function from z to x, invertible (`nn.invertible`); none for x = z.
        intervened: which latents, of 0 to m - 1, have a mechanism a domain; all if not given.

    Raises:
        ValueError: for parents that are no domain, or latents that there are not.

    Example:
        >>> d = Variable("d", kind="categorical", categories=("cat", "dog"))
        >>> model = LatentSCM(Variable("x", (3,)), [d], [Affine(3)], intervened=[2])
        >>> _ = stirred(model)
        >>> x, cat = torch.randn(5, 3), {"d": torch.zeros(5, dtype=torch.long)}
        >>> u = model.abduct(x, cat)
        >>> bool((model(u, cat) - x).abs().max() < 1e-5)
        True
    """

    own_at: Tensor
    shared_at: Tensor
    layers: Sequence[nn.Module]
    card: ClassVar[Card] = Card(
        name="Latent SCM by domain",
        summary="An invertible function of latents, of which some have a mechanism a domain.",
        title="Towards Characterizing Domain Counterfactuals For Invertible Latent Causal Models",
        authors="Zhou, Zeyu and Bai, Ruqi and Kulinski, Sean and Kocaoglu, Murat and "
        "Inouye, David I.",
        year=2024,
        url="https://arxiv.org/abs/2306.11281",
        assumptions=(
            "x is an invertible function, the same in every domain, of as many latents",
            "in a basis that can be learned, the latents' SCMs are linear and few mechanisms "
            "differ by domain",
        ),
        needs="rows of every domain, without pairs",
        example=_example,
    )

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable] = (),
        layers: Sequence[nn.Module] = (),
        intervened: Sequence[int] | None = None,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        m = variable.width
        self.intervened = tuple(range(m)) if intervened is None else tuple(intervened)
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        kinds = [(p.name, p.kind) for p in self.parents]
        if len(kinds) > 1 or any(kind != "categorical" for _, kind in kinds):
            raise ValueError(
                f"the one parent of {variable.name!r} is its domain, categorical; got {kinds}"
            )
        if not set(self.intervened) <= set(range(m)) or len({*self.intervened}) < len(
            self.intervened
        ):
            raise ValueError(
                f"intervened is {self.intervened}; {variable.name!r} has latents 0 to {m - 1}, "
                "each to be named once"
            )
        # a row of the table is a latent's mechanism: weights of those before it, bias, log-scale
        used = torch.cat([torch.ones(m, m).tril(-1), torch.ones(m, 2)], 1).bool()
        differs = torch.zeros(m, dtype=torch.bool)
        differs[list(self.intervened)] = True
        for name, rows in (("own_at", differs), ("shared_at", ~differs)):
            at = (used & rows[:, None]).flatten().nonzero()[:, 0]
            self.register_buffer(name, at, persistent=False)
        domains = self.parents[0].width if self.parents else 1
        self.own = nn.Parameter(torch.zeros(domains, len(self.own_at)))
        self.shared = nn.Parameter(torch.zeros(len(self.shared_at)))

    def equations(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return A `(domains, m, m)`, b and log s `(domains, m)`."""
        n, m = len(self.own), self.variable.width
        table = self.own.new_zeros(n, m * (m + 2)).index_copy(1, self.own_at, self.own)
        table = table.index_copy(1, self.shared_at, self.shared.expand(n, -1)).view(n, m, m + 2)
        return table[:, :, :m], table[:, :, m], table[:, :, m + 1]

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `g(f_d(u))`, `(B, *shape)`."""
        check(u, self.variable)
        weights, bias, log_scale = self.equations()
        code = self._code(len(u), parents)
        right = u.reshape(len(u), -1) * log_scale.exp()[code] + bias[code]
        z = torch.empty_like(right)
        lower = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - weights
        for domain in code.unique().tolist():
            rows = (code == domain).nonzero()[:, 0]
            z[rows] = torch.linalg.solve_triangular(
                lower[domain], right[rows].T, upper=False, unitriangular=True
            ).T
        for layer in self.layers:
            z = layer.inverse(z)  # type: ignore[operator]
        return z.reshape(u.shape)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = g^-1(x), `(B, m)`, and log |det dz/dx|, `(B,)`."""
        check(x, self.variable)
        z = x.reshape(len(x), -1).to(self.origin.dtype)
        total = z.new_zeros(len(x))
        for layer in reversed(self.layers):
            z, volume = layer(z)
            total = total + volume
        return z, total

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `f_d^-1(g^-1(x))`, the only noise that explains x, `(B, *shape)`."""
        return self._explain(x, parents)[0]

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | d), `(B,)`, in nats."""
        u, volume = self._explain(x, parents)
        return self.prior().log_prob(u) + volume

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}

    def _explain(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        z, total = self.latents(x)
        weights, bias, log_scale = self.equations()
        code = self._code(len(x), parents)
        told = (z @ weights.mT).transpose(0, 1)[torch.arange(len(z)), code]
        u = (z - told - bias[code]) * torch.exp(-log_scale[code])
        return u.reshape(x.shape), total - log_scale.sum(1)[code]

    def _code(self, rows: int, parents: Parents) -> Tensor:
        check_parents(self, parents, rows)
        if self.parents:
            return parents[self.parents[0].name]
        return torch.zeros(rows, dtype=torch.long, device=self.origin.device)


@torch.no_grad()
def canonical_form(mechanism: LatentSCM) -> LatentSCM:
    """Return the canonical form: the same densities and counterfactuals, its last |I| intervened.

    Its noise is the mechanism's own in another order; the first domain's SCM is the identity.

    Example:
        >>> d = Variable("d", kind="categorical", categories=("cat", "dog"))
        >>> model = stirred(LatentSCM(Variable("x", (3,)), [d], intervened=[0]))
        >>> form, x = canonical_form(model), torch.randn(4, 3)
        >>> form.intervened, {k: bool((form.own[0] == 0).all()) for k in ("cat",)}
        ((2,), {'cat': True})
        >>> dog = {"d": torch.ones(4, dtype=torch.long)}
        >>> torch.allclose(form.log_prob(x, dog), model.log_prob(x, dog), atol=1e-5)
        True
    """
    m, k = mechanism.variable.width, len(mechanism.intervened)
    kind = mechanism.own.dtype
    weights, bias, log_scale = (t.double() for t in mechanism.equations())
    lower = torch.eye(m, dtype=torch.float64, device=bias.device) - weights
    map_, offset = (
        torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        for right in (torch.diag_embed(log_scale.exp()), bias[:, :, None])
    )  # z = map_ u + offset
    order = [i for i in range(m) if i not in mechanism.intervened]
    order += sorted(mechanism.intervened)
    inverse = torch.diag_embed(torch.exp(-log_scale[0])) @ lower[0]
    both = (inverse @ map_)[:, order][:, :, order]
    move = (inverse @ (offset - offset[0]))[:, order]
    scale = both.diagonal(dim1=1, dim2=2)
    undo = torch.diag_embed(scale) @ torch.linalg.inv(both)
    eye = torch.eye(m, dtype=torch.float64, device=bias.device)
    table = torch.cat([eye - undo, undo @ move, scale.log()[:, :, None]], 2)
    mix = Affine.of(map_[0][:, order], offset[0, :, 0]).to(kind)
    layers = [mix, *copy.deepcopy(list(mechanism.layers))]
    form = LatentSCM(mechanism.variable, mechanism.parents, layers, last(m, k) if k else ())
    form = form.to(bias.device, kind)
    form.own.copy_(table.flatten(1)[:, form.own_at])
    return form
