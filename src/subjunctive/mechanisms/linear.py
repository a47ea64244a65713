r"""The linear-Gaussian mechanism, and how a mechanism reads its parents as a matrix.

    x = W m(pa) + b + s u,   u ~ N(0, I),   s = exp(log_s) > 0

`m(pa)` lays the parents side by side (categories one-hot, ordinal codes as thermometers). All is
closed: `u = (x - W m(pa) - b) / s` and `log p(x | pa) = sum_d [log N(u_d; 0, 1) - log s_d]`, and
so is the maximum of the likelihood: least squares, and the residuals' root mean square for s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from subjunctive.card import Card
from subjunctive.mechanism import Density, Mechanism, Parents, draw, seeded
from subjunctive.variable import Batch, Variable, as_matrix, nearest


def check(value: Tensor, variable: Variable, rows: int | None = None) -> Tensor:
    """Return a standardised value after checking that the variable can hold it.

    Args:
        value: what should be `(B, *variable.shape)`: integer codes or floating-point numbers.
        variable: what the value is of.
        rows: the batch size that it must have; any if None.

    Raises:
        ValueError: for another shape or dtype.

    Example:
        >>> check(torch.zeros(2, 3), Variable("t"))
        Traceback (most recent call last):
        ValueError: 't' needs values of shape (B,), got (2, 3)
    """
    if value.dim() < 1 or tuple(value.shape[1:]) != variable.shape:
        need = ", ".join(str(n) for n in variable.shape)
        raise ValueError(
            f"{variable.name!r} needs values of shape (B,{' ' + need if need else ''}), "
            f"got {tuple(value.shape)}"
        )
    if rows is not None and len(value) != rows:
        raise ValueError(f"{variable.name!r} has {len(value)} rows beside {rows}; line them up")
    if value.is_floating_point() == variable.discrete:
        what = "integer codes" if variable.discrete else "floating-point values"
        raise ValueError(f"{variable.name!r} is {variable.kind}: give {what}, not {value.dtype}")
    return value


def check_parents(mechanism: Mechanism, parents: Parents, rows: int) -> None:
    """Check that the values of all of a mechanism's parents are there.

    Raises:
        KeyError: if a parent is missing.
        ValueError: if a parent has the wrong shape, dtype or number of rows.
    """
    for parent in mechanism.parents:
        if parent.name not in parents:
            hint = nearest(parent.name, parents)
            raise KeyError(f"{mechanism.variable.name!r} needs its parent {parent.name!r}.{hint}")
        check(parents[parent.name], parent, rows)


def context(mechanism: Mechanism, parents: Parents, rows: int) -> Tensor:
    """Return a mechanism's parents as a matrix `(rows, width)` of its own dtype.

    A node without parents gets a matrix without columns.

    Raises:
        KeyError, ValueError: as `check_parents`.

    Example:
        >>> m = LinearGaussian(Variable("x"), [Variable("t")])
        >>> context(m, {"t": torch.tensor([1.0, 2.0])}, 2)
        tensor([[1.],
                [2.]])
    """
    check_parents(mechanism, parents, rows)
    if not mechanism.parents:
        return mechanism.origin.new_zeros(rows, 0)
    return as_matrix(parents, mechanism.parents).to(mechanism.origin.dtype)


def own_samples(mechanism: Mechanism, rows: int = 512, seed: int = 0) -> Batch:
    """Draw parents at random and the node by the mechanism itself: standardised values.

    Continuous parents are standard normal, codes uniform.

    Example:
        >>> batch = own_samples(LinearGaussian(Variable("x"), [Variable("t")]), rows=8)
        >>> sorted(batch), len(batch)
        (['t', 'x'], 8)
    """
    with seeded(seed), torch.no_grad():
        origin = mechanism.origin
        values = {
            p.name: torch.randint(p.width, (rows,), device=origin.device)
            if p.discrete
            else torch.randn(rows, *p.shape, dtype=origin.dtype, device=origin.device)
            for p in mechanism.parents
        }
        x = mechanism(draw(mechanism.prior(), rows), values)
    return Batch({**values, mechanism.variable.name: x})


def stirred(mechanism: Mechanism, amount: float = 0.1, seed: int = 0) -> Mechanism:
    """Add Gaussian noise to every parameter in place, so that no part of a mechanism is idle."""
    with seeded(seed), torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return mechanism


def _example() -> tuple[Mechanism, Batch]:
    arm = Variable("arm", kind="categorical", categories=("placebo", "low", "high"))
    weights = torch.tensor([[0.8, -0.5, 0.2, 1.0], [-0.3, 0.6, 0.9, -1.1]])
    bias, scale = torch.tensor([0.3, -0.2]), torch.tensor([0.5, 1.5])
    mechanism = LinearGaussian.of(
        Variable("x", shape=(2,)), [Variable("t"), arm], weights, bias, scale
    )
    return mechanism, own_samples(mechanism)


class LinearGaussian(Density):
    r"""A node that is linear in its parents with Gaussian noise: `x = W m(pa) + b + s u`.

    Reference:
        Elements of Causal Inference, section 4.1 and 6 (Peters, Janzing and Schölkopf, 2017),
        https://mitpress.mit.edu/9780262037310

    Args:
        variable: the node, continuous, of any shape (the noise of its entries is independent).
        parents: the parents' variables.

    Raises:
        ValueError: for a discrete node.

    Example:
        >>> m = LinearGaussian.of(Variable("x"), [Variable("t")], weights=[2.0], scale=0.5)
        >>> m.abduct(torch.tensor([3.0]), {"t": torch.tensor([1.0])}).tolist()
        [2.0]
    """

    card: ClassVar[Card] = Card(
        name="Linear-Gaussian mechanism",
        summary="A node is a weighted sum of its parents plus Gaussian noise; all in closed form.",
        title="Elements of Causal Inference: Foundations and Learning Algorithms",
        authors="Peters, Jonas and Janzing, Dominik and Schölkopf, Bernhard",
        year=2017,
        url="https://mitpress.mit.edu/9780262037310",
        assumptions=("linear effects without interactions", "Gaussian noise of constant variance"),
        needs="rows of the node and its parents",
        example=_example,
    )

    def __init__(self, variable: Variable, parents: Sequence[Variable] = ()) -> None:
        super().__init__(variable, parents)
        continuous(self)
        width = sum(p.width for p in self.parents)
        self.weight = (
            nn.Parameter(torch.randn(variable.width, width) / width**0.5) if width else None
        )
        self.bias = nn.Parameter(torch.zeros(variable.width))
        self.log_scale = nn.Parameter(torch.zeros(variable.width))

    @classmethod
    def of(
        cls,
        variable: Variable,
        parents: Sequence[Variable] = (),
        weights: Any = (),
        bias: Any = 0.0,
        scale: Any = 1.0,
    ) -> LinearGaussian:
        """Build the mechanism from known numbers, in standardised units.

        Args:
            variable, parents: as for the class.
            weights: `(D, columns of the parents)`, or `(columns,)` for a scalar node.
            bias, scale: `(D,)` or one number; the scale is positive.

        Raises:
            ValueError: for weights that do not fit, or a scale that is not positive.
        """
        self = cls(variable, parents)
        given = torch.as_tensor(weights, dtype=self.origin.dtype)
        scales = torch.as_tensor(scale, dtype=self.origin.dtype)
        need = (variable.width, sum(p.width for p in self.parents))
        if given.numel() != need[0] * need[1]:
            raise ValueError(
                f"{variable.name!r} needs weights of shape {need}, got {tuple(given.shape)}"
            )
        if not bool((scales > 0).all()):
            raise ValueError(f"{variable.name!r} needs a positive scale, got {scale}")
        with torch.no_grad():
            if self.weight is not None:
                self.weight.copy_(given.reshape(need))
            self.bias.copy_(torch.as_tensor(bias))
            self.log_scale.copy_(scales.log())
        return self

    def _mean(self, parents: Parents, rows: int) -> Tensor:
        flat = self.bias.expand(rows, -1)
        if self.weight is not None:
            flat = nn.functional.linear(context(self, parents, rows), self.weight, self.bias)
        return flat.reshape(rows, *self.variable.shape)

    @property
    def scale(self) -> Tensor:
        """The standard deviation s of the noise, of the variable's shape."""
        return self.log_scale.exp().reshape(self.variable.shape)

    @torch.no_grad()
    def solve(self, x: Tensor, parents: Parents) -> None:
        """Set the parameters that make rows most likely: least squares, of the smallest weights.

        Args:
            x: standardised values `(B, *shape)`.
            parents: theirs, `(B, ...)` each.

        Example:
            >>> m, t = LinearGaussian(Variable("x"), [Variable("t")]), torch.linspace(-1, 1, 50)
            >>> m.solve(2 * t + 1, {"t": t})
            >>> [round(p.item(), 4) for p in (m.weight, m.bias)]
            [2.0, 1.0]
        """
        y, n = check(x, self.variable).reshape(len(x), -1).double(), len(x)
        mean = y.mean(0)
        left = y.square().sum(0) - n * mean.square()
        if self.weight is not None:
            c = context(self, parents, n).double()
            middle = c.mean(0)
            scatter = c.T @ c - n * torch.outer(middle, middle)
            product = c.T @ y - n * torch.outer(middle, mean)
            # a category's columns sum to one: of all solutions the pseudo-inverse's is the smallest
            weight = torch.linalg.pinv(scatter, rtol=1e-10, hermitian=True) @ product
            left -= (weight * product).sum(0)
            mean -= middle @ weight
            self.weight.copy_(weight.T)
        self.bias.copy_(mean)
        self.log_scale.copy_((left / n).clamp(min=1e-12).log() / 2)  # never zero

    def prior(self) -> Distribution:
        """Return N(0, I) of the variable's shape."""
        return self.standard_normal(*self.variable.shape)

    def forward(self, u: Tensor, parents: Parents) -> Tensor:
        """Return `W m(pa) + b + s u`, `(B, *shape)`."""
        check(u, self.variable)
        return self._mean(parents, len(u)) + self.scale * u

    def abduct(self, x: Tensor, parents: Parents) -> Tensor:
        """Return `(x - W m(pa) - b) / s`, `(B, *shape)`."""
        check(x, self.variable)
        return (x - self._mean(parents, len(x))) / self.scale

    def log_prob(self, x: Tensor, parents: Parents) -> Tensor:
        """Return log p(x | pa), `(B,)`, in nats."""
        return self.prior().log_prob(self.abduct(x, parents)) - self.log_scale.sum()

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return the negative log-likelihood, `{"nll": (B,)}`."""
        return {"nll": -self.log_prob(x, parents)}


def continuous(mechanism: Mechanism) -> None:
    """Raise a `ValueError` if the mechanism's node holds codes of categories."""
    variable = mechanism.variable
    if variable.discrete:
        raise ValueError(
            f"{type(mechanism).__name__} needs a continuous node; {variable.name!r} is "
            f"{variable.kind}: use Categorical or Ordinal"
        )
