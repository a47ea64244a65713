r"""A stochastic interpolant whose base is a guess at the node, made from its parents.

    x_t = alpha_t x + sigma_t x_0,    x_0 = m(pa) + s(pa) z,    z ~ N(0, I),    t from 1 to 0

An ODE whose velocity is E[dx_t/dt | x_t, pa] carries the base x_0 to the node x given its parents,
and back again: z is the noise. Where a parent is a corrupted x (masked, coarse), x_0 is that picture
with noise in what is missing, and the way from it is short: E|x - x_0|^2 = E|x - m|^2 + s^2 an entry, least
for m = E[x | pa].

**As a diffusion.** The network sees the parents, hence m and s. With the residual r = (x - m) / s,

    x_t = s r_t + (alpha_t + sigma_t) m,    r_t = alpha_t r + sigma_t z,

so that x_t says what r_t says, the velocity is `s dr_t/dt + (alpha_t' + sigma_t') m`, and all that is
left to learn is D(r_t, t; pa) = E[r | r_t, pa]: a diffusion of what the base leaves open. Schedules,
denoisers, samplers and their inversion are those of `diffusion/`. (A further noise gamma_t z' in x_t
is the same with a wider sigma_t: another schedule.)

**What the base buys.** With D exact and s one number, the map from z to x is the same for every base:
r has the probability-flow ODE of x in other coordinates, and at the noisy end m is lost. Nor does m
change how well few steps follow it, because the samplers here are exact in the part of D that does
not change along the way. So a good base does not change the answer of a perfect model. It spares the
network what the parents say plainly, and s, where it is as small as what the parents leave open,
spends the steps where something is still to be decided.

A base may be learned: m and s then are the Gaussian guess that makes x likeliest,
`(x - m)^2 / (2 s^2) + log s`, and the denoiser's loss leaves them alone. The velocity's squared error
is counted in units of x, that of D times s^2: where the base is certain there is nothing to learn.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.card import Card
from subjunctive.diffusion import Denoiser, Heun, RectifiedFlow, Sampler
from subjunctive.diffusion.denoise import Denoise, column
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, seeded
from subjunctive.mechanisms.linear import check, check_parents, continuous, own_samples, stirred
from subjunctive.nn import MLP, ConvDecoder, Timed, UNet
from subjunctive.variable import Batch, Variable, as_matrix


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return images `(B, C, H, W)` at another height and width, as they are if it is theirs."""
    if image.shape[2:] == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bilinear", align_corners=False)


class Corrupted(nn.Module):
    """The base that a corrupted picture of the node gives, which is one of its parents.

    Without a mask, m is the parent, enlarged to the node's size where it is coarser, and s is
    `scale`. With one, m is the parent where it was kept and the node's mean elsewhere, whatever
    stands there, and s is `kept` and `scale`.

    Args:
        variable: the node.
        parent: its corrupted picture, in the units of the node: of its shape, or an image of as
            many channels and another size.
        mask: another parent, above 0.5 (as the user gives it) where the parent was kept; of the
            node's shape, or of one channel for an image.
        scale: of the base's noise, in standard deviations of the node; None to learn it.
        kept: the same where the mask says that the parent was kept; small, not zero.

    Raises:
        ValueError: for shapes that do not fit, or scales that are not positive.

    Example:
        >>> fine, coarse = Variable("x", (1, 4, 4)), Variable("y", (1, 2, 2))
        >>> m, s = Corrupted(fine, coarse, scale=0.5)({"y": torch.ones(3, 1, 2, 2)}, 3)
        >>> m.shape, m.unique(), s
        (torch.Size([3, 1, 4, 4]), tensor([1.]), tensor(0.5000))
    """

    def __init__(
        self,
        variable: Variable,
        parent: Variable,
        mask: Variable | None = None,
        scale: float | None = None,
        kept: float = 0.05,
    ) -> None:
        super().__init__()
        self.variable, self.parent, self.mask = variable, parent, mask
        self.scale, self.kept = scale, kept
        images = len(variable.shape) == len(parent.shape) == 3
        resized = images and variable.shape[0] == parent.shape[0]
        if parent.shape != variable.shape and not resized:
            raise ValueError(
                f"{parent.name!r} of shape {parent.shape} is no picture of {variable.name!r} of "
                f"shape {variable.shape}; give one of its shape, or a coarser image"
            )
        if mask is not None and mask.shape not in (variable.shape, (1, *variable.shape[1:])):
            raise ValueError(
                f"the mask {mask.name!r} has shape {mask.shape}; {variable.name!r} needs "
                f"{variable.shape}"
            )
        for name, value in (("scale", 1.0 if scale is None else scale), ("kept", kept)):
            if not 0 < value < math.inf:
                raise ValueError(
                    f"the base of {variable.name!r} has {name}={value}; it must be positive, so "
                    "that every entry's noise can be abducted"
                )
        log_scale = torch.tensor(math.log(1.0 if scale is None else scale))
        self.log_scale = nn.Parameter(log_scale, requires_grad=scale is None)

    def forward(self, parents: Parents, rows: int) -> tuple[Tensor, Tensor]:
        """Return m and s, `(rows, *shape)` or what spreads to it."""
        picture = self.parent.restore(parents[self.parent.name])
        m, s = self.variable.standardise(picture), self.log_scale.exp()
        m = m if m.shape[1:] == self.variable.shape else resized(m, self.variable.shape[1:])
        if self.mask is None:
            return m, s
        there = self.mask.restore(parents[self.mask.name]) > 0.5
        return torch.where(there, m, torch.zeros_like(m)), torch.where(there, self.kept, s)


class Regressed(nn.Module):
    """The base that a regression on the parents gives: m is a network's, s learned, one an entry.

    Args:
        variable: the node.
        parents: all its parents, at least one.
        network: from the parents' matrix `(B, C)` to as many numbers as the node has; by default a
            convolutional decoder for images, a perceptron otherwise.

    Example:
        >>> base = Regressed(Variable("x", (2,)), [Variable("t")])
        >>> [part.shape for part in base({"t": torch.zeros(3)}, 3)]
        [torch.Size([3, 2]), torch.Size([2])]
    """

    def __init__(
        self, variable: Variable, parents: Sequence[Variable], network: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.variable, self.parents = variable, tuple(parents)
        if not self.parents:
            raise ValueError(f"{variable.name!r} has no parents to be regressed on; give base=None")
        inputs, shape = sum(p.width for p in self.parents), variable.shape
        if network is None and len(shape) == 3:
            network = ConvDecoder(inputs, shape[0], shape[1:], widths=(16, 32))
        self.network = MLP(inputs, variable.width) if network is None else network
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, parents: Parents, rows: int) -> tuple[Tensor, Tensor]:
        """Return m `(rows, *shape)` and s `shape`."""
        m: Tensor = self.network(as_matrix(parents, self.parents).to(self.log_scale))
        return m.reshape(rows, *self.variable.shape), self.log_scale.exp()


class Stacked(nn.Module):
    """A network of images whose condition is a vector and further channels, laid under its input.

    Args:
        network: called as `network(x, noise, vector)` with x `(B, channels, H, W)`.

    Example:
        >>> network = Stacked(UNet(3, outputs=1, width=8))
        >>> x, beneath = torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8)
        >>> network(x, torch.zeros(2), (None, beneath)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, noise: Tensor, condition: tuple[Tensor | None, Tensor]) -> Tensor:
        """Map images, a noise level `(B,)` and the condition to images."""
        vector, channels = condition
        y: Tensor = self.network(torch.cat([x, channels.to(x)], dim=1), noise, vector)
        return y


def _example() -> tuple[Mechanism, Batch]:
    fine, mask = Variable("x", (1, 8, 8)), Variable("mask", (1, 8, 8))
    parents = [Variable("y", (1, 4, 4), loc=0.5, scale=0.5), mask, Variable("t")]
    with seeded(0):
        base = Corrupted(fine, parents[0], mask, kept=0.2)
        mechanism = Interpolant.of(fine, parents, base, width=8, multipliers=(1,), steps=4)
    return stirred(mechanism), own_samples(mechanism, rows=128)


class Interpolant(Mechanism):
    """A node carried by an ODE from a base that its parents give; images from corrupted images.

    Reference: Stochastic Interpolants with Data-Dependent Couplings (Albergo, Goldstein, Boffi,
    Ranganath and Vanden-Eijnden, 2023), https://arxiv.org/abs/2310.03725; after Stochastic
    Interpolants: A Unifying Framework for Flows and Diffusions (Albergo, Boffi and Vanden-Eijnden,
    2023), https://arxiv.org/abs/2303.08797.

    Args:
        variable: a continuous node, an image `(C, H, W)` above all.
        parents: any variables; for an image node, images among them are resized to its height and
            width and become channels.
        denoiser: of the residual r, with its standard deviation as `sigma_data`. For an image node
            its network is called with the condition `(vector, channels)`: the matrix of the parents
            that are no images (None without), and m and the images beside each other (`Stacked`
            takes that). Otherwise with the matrix of all parents and m.
        base: a module called with the parents and the number of rows that returns m and s; None for
            m = 0 and s = 1, the coupling of an ordinary diffusion.
        sampler: how it is carried; ten steps of `Heun` if None.

    Raises:
        ValueError: for a discrete node.

    Example:
        >>> fine, coarse = Variable("x", (1, 8, 8)), Variable("y", (1, 2, 2))
        >>> base = Corrupted(fine, coarse, scale=0.5)
        >>> mechanism = Interpolant.of(fine, [coarse], base, width=8, multipliers=(1,))
        >>> x, parents = torch.rand(2, 1, 8, 8), {"y": torch.rand(2, 1, 2, 2)}
        >>> u = mechanism.abduct(x, parents)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'start': (2, 1, 8, 8)}
        >>> torch.allclose(mechanism(u, parents), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable],
        denoiser: Denoiser,
        base: nn.Module | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(variable, parents)
        continuous(self)
        self.denoiser, self.base = denoiser, base
        if sampler is None:
            sampler = Heun(denoiser.schedule, 10, sigma_data=denoiser.sigma_data, refine=30)
        self.sampler = sampler
        image = len(variable.shape) == 3
        self.pictures = tuple(p for p in self.parents if image and len(p.shape) == 3)
        self.flat = tuple(p for p in self.parents if p not in self.pictures)

    @classmethod
    def of(
        cls,
        variable: Variable,
        parents: Sequence[Variable] = (),
        base: nn.Module | None = None,
        width: int = 24,
        multipliers: Sequence[int] = (1, 2, 2),
        steps: int = 10,
        sigma_data: float = 1.0,
    ) -> Interpolant:
        """Build the mechanism with a plain network, straight paths and `Heun`.

        Args:
            variable, parents, base: as for the class.
            width: of the U-Net, or of the residual network of vectors.
            multipliers: of the U-Net's width, one a level.
            steps: of the sampler.
            sigma_data: the standard deviation of the residual (x - m) / s; 1 where s is learned.
        """
        network: nn.Module
        if len(variable.shape) == 3:
            pictures = [p for p in parents if len(p.shape) == 3]
            vector = sum(p.width for p in parents if p not in pictures)
            channels = sum(p.shape[0] for p in pictures) + 2 * variable.shape[0]
            network = Stacked(
                UNet(
                    channels,
                    outputs=variable.shape[0],
                    condition=vector,
                    width=width,
                    multipliers=multipliers,
                    size=variable.shape[1:],
                )
            )
        else:
            beside = sum(p.width for p in parents) + variable.width
            network = Timed(variable.width, condition=beside, width=width)
        schedule = RectifiedFlow()
        denoiser = Denoiser(network, schedule, "velocity", sigma_data, "uniform")
        sampler = Heun(schedule, steps, sigma_data=sigma_data, refine=30)
        return cls(variable, parents, denoiser, base, sampler)

    def prior(self) -> Prior:
        """Return N(0, I) for every part of the sampler's noise."""
        shapes = self.sampler.noise_shape(self.variable.shape)
        return {name: self.standard_normal(*shape) for name, shape in shapes.items()}

    def at(self, parents: Parents, rows: int) -> tuple[Tensor, Tensor]:
        """Return the base's m and s, `(rows, *shape)` each.

        Raises:
            ValueError: if the base gives another shape; KeyError: if a parent is missing.
        """
        check_parents(self, parents, rows)
        shape = (rows, *self.variable.shape)
        if self.base is None:
            return self.origin.expand(shape), torch.ones_like(self.origin).expand(shape)
        m, s = self.base(parents, rows)
        try:
            return m.to(self.origin.dtype).expand(shape), s.to(self.origin.dtype).expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"the base of {self.variable.name!r} gave m of shape {tuple(m.shape)} and s of "
                f"shape {tuple(s.shape)}; both must spread to {shape}"
            ) from error

    def condition(self, parents: Parents, m: Tensor) -> Any:
        """Return what the denoiser's network is conditioned on; see the class."""
        flat = [as_matrix(parents, self.flat).to(m)] if self.flat else []
        if len(self.variable.shape) != 3:
            return torch.cat([*flat, m.reshape(len(m), -1)], dim=1)
        pictures = [resized(parents[p.name].to(m), self.variable.shape[1:]) for p in self.pictures]
        return (flat[0] if flat else None), torch.cat([m, *pictures], dim=1)

    def denoise(self, parents: Parents, m: Tensor) -> Denoise:
        """Return `(r_t, t) -> E[r | r_t, parents]`."""
        condition = self.condition(parents, m)
        return lambda r_t, t: self.denoiser(r_t, t, condition)

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: the base, carried by the ODE."""
        m, s = self.at(parents, len(u["start"]))
        return m + s * self.sampler(self.denoise(parents, m), u)

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Return the noise that is carried to x."""
        m, s = self.at(parents, len(check(x, self.variable)))
        return self.sampler.invert(self.denoise(parents, m), (x - m) / s)

    def transport(self, x: Tensor, parents: Parents) -> Tensor:
        """Return how far the base is from x, `E_z |x - x_0|^2`, mean over its entries, `(B,)`."""
        m, s = self.at(parents, len(check(x, self.variable)))
        return ((x - m).square() + s.square()).reshape(len(x), -1).mean(1)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `denoise`, and `base` where the base learns, means over the entries, `(B,)`."""
        rows, terms = len(check(x, self.variable)), {}
        m, s = self.at(parents, rows)
        if m.requires_grad or s.requires_grad:
            nll = ((x - m) / s).square() / 2 + s.log()
            terms["base"] = nll.reshape(rows, -1).mean(1)
            m, s = m.detach(), s.detach()
        r, noise, schedule = (x - m) / s, torch.randn_like(x), self.denoiser.schedule
        t = (torch.randperm(rows, device=x.device) + torch.rand(rows).to(x)) / rows
        alpha, sigma = (column(f(t), x) for f in (schedule.alpha, schedule.sigma))
        error = self.denoise(parents, m)(alpha * r + sigma * noise, t) - r
        share = s.square().reshape(rows, -1)
        share = share / share.mean(1, keepdim=True)
        square = (share * error.square().reshape(rows, -1)).mean(1)
        return {**terms, "denoise": self.denoiser.weight(t) * square}

    card = Card(
        name="Interpolant with a data-dependent base",
        summary="A node, images above all, carried by an ODE from a guess that its parents give.",
        title="Stochastic Interpolants with Data-Dependent Couplings",
        authors="Albergo, Michael S. and Goldstein, Mark and Boffi, Nicholas M. and Ranganath, "
        "Rajesh and Vanden-Eijnden, Eric",
        year=2023,
        url="https://arxiv.org/abs/2310.03725",
        assumptions=(
            "given the parents, the base's noise is all that tells one value from another",
        ),
        needs="a continuous node and its parents' values, a corrupted picture of it among them",
        tolerance=1e-4,
        of=(305,),
        example=_example,
    )
