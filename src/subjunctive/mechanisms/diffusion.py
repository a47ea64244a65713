"""Diffusion as a mechanism: an image from its parents, a code, and what is left.

The noise of an image has a small semantic part, the code `c ~ N(0, I)`, which an encoder reads from
the image, q(c | x), and a part for every pixel. With D(x_t, t; pa, c) = E[x | x_t, pa, c] there are
two ways to spend the latter:

    one evaluation   x = m + s r,  m = D(e, t=1; pa, c)          e, r ~ N(0, I)
    a sampler        x = ODE or ancestral chain of D(. ; pa, c), started at its own noise

In the first, `s r` is the residual of a stated Gaussian likelihood, as in a VAE, and abduction
takes c from the encoder, e from its prior and r = (x - m) / s: the round trip is exact. (One s for
all: a scale that follows the parents carries a thin stroke's old edge, amplified, into a thick
one's picture.) In the second, abduction runs the sampler backward. One denoiser serves both. Its
loss is

    -log N(x; m, s^2)                        rows at t = 1, a share `anchor` of them
    + w_t |x - D(alpha x + sigma e, t; pa, c)|^2 / 2      rows at other times
    + beta KL(q(c | x) || N(0, I)),

in nats an entry of x. The KL makes a code that repeats what the parents say a waste: what they
know is cheaper to take from them, and beta > 1 buys more of this independence for less detail. In a
share `drop` of the rows the parents are declared absent, so that an intervention can be given a
strength at inference: with guidance w the estimate is `D(absent) + w (D(pa) - D(absent))`. So that
nothing tips the balance between code and parents, the code learns from the rows alone that have
both the parents and t = 1, whose terms are an ELBO (with `anchor=0`, from all that have the
parents).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subjunctive.card import Card
from subjunctive.diffusion import Cosine, Denoiser, Sampler, guided_together
from subjunctive.diffusion.denoise import Denoise, column
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior, draw, seeded
from subjunctive.nn import ConvEncoder, UNet
from subjunctive.variable import Batch, Variable, as_matrix


def condition_width(parents: Sequence[Variable], code: int) -> int:
    """Return the width of the condition: the parents, one flag for their presence, and the code.

    >>> condition_width([Variable("t"), Variable("k", kind="categorical", categories="abc")], 16)
    21
    """
    return sum(p.width for p in parents) + 1 + code


def _example() -> tuple[Mechanism, Batch]:
    with seeded(0):
        image, parent = Variable("x", (1, 8, 8)), Variable("t")
        width = condition_width([parent], 4)
        network = UNet(1, condition=width, width=8, multipliers=(1,), size=8)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        encoder = ConvEncoder(1, 8, 8, widths=(8, 8))
        mechanism = Diffusion(image, [parent], Denoiser(network, Cosine()), encoder, code=4)
        parents = {"t": torch.randn(64)}
        x = mechanism(draw(mechanism.prior(), 64), parents).detach()
    return mechanism, Batch({"x": x, **parents})


class Diffusion(Mechanism):
    """A diffusion autoencoder as the mechanism of an observed node.

    Reference: Diffusion Autoencoders: Toward a Meaningful and Decodable Representation (Preechakul
    et al., 2022), https://arxiv.org/abs/2111.15640; as a mechanism: Causal Diffusion Autoencoders
    (Komanduri et al., 2024), https://arxiv.org/abs/2404.17735.

    Args:
        variable: an image `(C, H, W)`, or any continuous node that the denoiser takes.
        parents: any variables.
        denoiser: its network is called with a condition of `condition_width(parents, code)`.
        encoder: x -> `(B, 2 code)`, mean and log-variance of q(code | x); None for no code.
        code: the code's width.
        sampler: how pixels spend their noise; None for one evaluation and a residual.
        guidance: the strength of the parents; 1 is the plain model.
        drop: share of training rows in which the parents are declared absent.
        anchor: share of training rows at t = 1.
        beta: weight of the KL.

    Raises:
        ValueError: if encoder and code do not go together, or a share is none.

    Example:
        >>> with seeded(0):
        ...     network = UNet(1, condition=condition_width([Variable("t")], 4), width=8, size=8)
        ...     encoder = ConvEncoder(1, 8, 8, widths=(8, 8))
        >>> image, denoiser = Variable("x", (1, 8, 8)), Denoiser(network, Cosine())
        >>> mechanism = Diffusion(image, [Variable("t")], denoiser, encoder, code=4)
        >>> x, parents = torch.rand(2, 1, 8, 8), {"t": torch.zeros(2)}
        >>> u = mechanism.abduct(x, parents)
        >>> {name: tuple(part.shape) for name, part in u.items()}
        {'code': (2, 4), 'start': (2, 1, 8, 8), 'residual': (2, 1, 8, 8)}
        >>> torch.allclose(mechanism(u, parents), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        variable: Variable,
        parents: Sequence[Variable],
        denoiser: Denoiser,
        encoder: nn.Module | None = None,
        code: int = 0,
        sampler: Sampler | None = None,
        guidance: float = 1.0,
        drop: float = 0.1,
        anchor: float = 0.5,
        beta: float = 1.0,
    ) -> None:
        super().__init__(variable, parents)
        if (encoder is None) != (code == 0):
            raise ValueError(
                f"{variable.name!r} has code={code} and encoder={type(encoder).__name__}: a code "
                "needs an encoder and 1 number or more, or neither"
            )
        for name, share in (("drop", drop), ("anchor", anchor)):
            if not 0 <= share <= 1:
                raise ValueError(
                    f"{variable.name!r} has {name}={share}; it is a share, from 0 to 1"
                )
        self.denoiser, self.encoder, self.code, self.sampler = denoiser, encoder, code, sampler
        self.guidance, self.drop, self.anchor, self.beta = guidance, drop, anchor, beta
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def prior(self) -> Prior:
        """Return N(0, I) for the code and for every part of the pixels' noise."""
        shape = self.variable.shape
        parts: dict[str, tuple[int, ...]] = {"code": (self.code,)} if self.code else {}
        if self.sampler is None:
            parts |= {"start": shape, "residual": shape}
        else:
            parts |= self.sampler.noise_shape(shape)
        return {name: self.standard_normal(*shape) for name, shape in parts.items()}

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        """Return x `(B, *shape)`: code, then pixels."""
        denoise = self.denoise(parents, u.get("code"), len(u["start"]))
        if self.sampler is not None:
            return self.sampler(denoise, u)
        mean = denoise(u["start"], self._last(u["start"]))
        return mean + self.log_scale.exp() * u["residual"]

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        """Draw the code from the encoder, then explain the pixels."""
        noise = {}
        if self.encoder is not None:
            mean, log_variance = self.posterior(x)
            noise["code"] = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        denoise = self.denoise(parents, noise.get("code"), len(x))
        if self.sampler is not None:
            return noise | self.sampler.invert(denoise, x)
        start = torch.randn_like(x)
        mean = denoise(start, self._last(x))
        return noise | {"start": start, "residual": (x - mean) / self.log_scale.exp()}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(code | x), `(B, code)` each."""
        if self.encoder is None:
            raise ValueError(f"{self.variable.name!r} has no encoder, hence no code")
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-10.0, 4.0)

    def condition(self, parents: Parents, code: Tensor | None, keep: Tensor) -> Tensor:
        """Lay parents, their presence `keep` `(B, 1)` and the code side by side."""
        columns = [as_matrix(parents, self.parents).to(keep) * keep] if self.parents else []
        return torch.cat([*columns, keep, *([] if code is None else [code])], dim=1)

    def denoise(self, parents: Parents, code: Tensor | None, rows: int) -> Denoise:
        """Return `(x_t, t) -> E[x | x_t, parents, code]`, the parents as strong as `guidance`."""
        present = self.origin.new_ones(rows, 1)
        there = self.condition(parents, code, present)
        if self.guidance == 1:
            return lambda x_t, t: self.denoiser(x_t, t, there)
        absent = self.condition(parents, code, 0 * present)
        return guided_together(self.denoiser, there, absent, self.guidance)

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        """Return `nll`, `denoise` and `kl` in nats an entry of x, `(B,)` each."""
        rows, entries = len(x), math.prod(self.variable.shape)
        code, terms = None, {}
        if self.encoder is not None:
            mean, log_variance = self.posterior(x)
            code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
            kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
            terms["kl"] = self.beta * kl / entries
        keep = (torch.rand(rows, 1, device=x.device, dtype=x.dtype) >= self.drop).to(x.dtype)
        strata = (torch.randperm(rows, device=x.device) + torch.rand(rows, device=x.device)) / rows
        last = strata < self.anchor
        t = torch.where(last, 1.0, (strata - self.anchor) / max(1 - self.anchor, 1e-6)).to(x.dtype)
        alpha, sigma = self.denoiser.schedule.alpha(t), self.denoiser.schedule.sigma(t)
        noise = torch.randn_like(x)
        noisy = torch.where(column(last, x), noise, column(alpha, x) * x + column(sigma, x) * noise)
        if code is not None:
            taught = (keep[:, 0] > 0) & (last | (self.anchor == 0))
            code = torch.where(taught[:, None], code, code.detach())
            terms["kl"] = torch.where(taught, terms["kl"], 0.0)
        error = self.denoiser(noisy, t, self.condition(parents, code, keep)) - x
        square = error.square().reshape(rows, -1).mean(1)
        misfit = square * torch.exp(-2 * self.log_scale) / 2
        nll = misfit + self.log_scale + math.log(2 * math.pi) / 2
        zero = torch.zeros_like(square)
        terms["nll"] = torch.where(last, nll, zero)
        terms["denoise"] = torch.where(last, zero, self.denoiser.weight(t) * square / 2)
        return terms

    def _last(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x))

    card = Card(
        name="Diffusion autoencoder mechanism",
        summary="An image from its parents, a semantic code and pixel noise, by a denoiser.",
        title="Diffusion Autoencoders: Toward a Meaningful and Decodable Representation",
        authors="Preechakul, Konpat and Chatthee, Nattanat and Wizadwongsa, Suttisak and "
        "Suwajanakorn, Supasorn",
        year=2022,
        url="https://arxiv.org/abs/2111.15640",
        assumptions=("the code and the pixels' noise are independent of the parents",),
        needs="a continuous node, images above all; its parents' values, some may be missing",
        abduction="approximate",
        tolerance=1e-4,
        example=_example,
    )
