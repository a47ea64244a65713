"""What the library's models are measured against: rivals written to the same contracts.

They are no part of the package: each is as strong as its paper allows at this size, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subjunctive.graph import Graph
from subjunctive.intervention import act, as_do
from subjunctive.mechanism import Mechanism, Noise, Parents, Prior
from subjunctive.nn import MLP, ConvEncoder
from subjunctive.variable import Batch, Variable, as_matrix


def decoder(inputs: int, channels: int, side: int, width: int) -> nn.Module:
    """Return a network `(B, inputs)` -> `(B, channels, side, side)`: three convolutions up."""
    flat, up = (4 * width, side // 8, side // 8), nn.Upsample(scale_factor=2)
    return nn.Sequential(
        nn.Linear(inputs, flat[0] * flat[1] * flat[2]),
        nn.Unflatten(1, flat),
        nn.SiLU(),
        up,
        nn.Conv2d(4 * width, 2 * width, 3, padding=1),
        nn.SiLU(),
        up,
        nn.Conv2d(2 * width, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 4 * channels, 3, padding=1),
        nn.PixelShuffle(2),
    )


def normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)), summed over a row, `(B,)`."""
    return (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1) / 2


class ConditionalVAE(Mechanism):
    """q(z | x, pa), p(x | z, pa) = N(mean, s^2), s learned; the residual is abducted."""

    def __init__(
        self, variable: Variable, parents: Sequence[Variable], latent: int = 16, width: int = 28
    ) -> None:
        super().__init__(variable, parents)
        channels, side, _ = variable.shape
        self.latent, self.width = latent, width
        labels = sum(p.width for p in parents)
        self.encoder = ConvEncoder(channels, side, 128, widths=(width, 2 * width, 4 * width))
        self.posterior = nn.Sequential(nn.SiLU(), nn.Linear(128 + labels, 2 * latent))
        self.decoder = decoder(latent + labels, channels, side, width)
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def prior(self) -> Prior:
        return {
            "code": self.standard_normal(self.latent),
            "residual": self.standard_normal(*self.variable.shape),
        }

    def mean(self, z: Tensor, parents: Parents) -> Tensor:
        return self.decoder(torch.cat([z, as_matrix(parents, self.parents)], 1))

    def draw(self, x: Tensor, parents: Parents) -> tuple[Tensor, Tensor]:
        features = torch.cat([self.encoder(x), as_matrix(parents, self.parents)], 1)
        mean, log_variance = self.posterior(features).chunk(2, 1)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return z, normal_kl(mean, log_variance)

    def forward(self, u: Noise, parents: Parents) -> Tensor:
        return self.mean(u["code"], parents) + self.log_scale.exp() * u["residual"]

    def abduct(self, x: Tensor, parents: Parents) -> Noise:
        z, _ = self.draw(x, parents)
        return {"code": z, "residual": (x - self.mean(z, parents)) / self.log_scale.exp()}

    def loss(self, x: Tensor, parents: Parents) -> dict[str, Tensor]:
        z, kl = self.draw(x, parents)
        square = (x - self.mean(z, parents)).square().flatten(1).mean(1)
        nll = square * torch.exp(-2 * self.log_scale) / 2 + self.log_scale
        return {"nll": nll, "kl": kl / x[0].numel()}


class CausalVAE(nn.Module):
    """A VAE whose latent is a linear SCM over concepts, tied to their labels.

        eps ~ q(eps | x),   z = A^T z + eps,   s_i = g_i(A_i o z) + eps_i,   x ~ N(decode(s), s^2)

    with a block of `block` numbers a concept, A on the given graph's arrows, KL(q(eps) || N(0, I)),
    KL(q(z) || N(label, I)), and |y - A^T y|^2 and |z - g(A o z)|^2 as its paper has them; labels
    are standardised. Under do, a block is the value and what lies below is computed anew from the
    abducted eps; what the decoder left of the factual picture is added, which its paper does not.

    Reference: CausalVAE: Disentangled Representation Learning via Neural Structural Causal Models
    (Yang, Liu, Chen, Shen, Hao and Wang, 2021), https://arxiv.org/abs/2004.08697
    """

    def __init__(
        self, graph: Graph, variables: Mapping[str, Variable], block: int = 4, width: int = 28
    ) -> None:
        super().__init__()
        self.graph, self.variables, self.block = graph, dict(variables), block
        (self.image,) = (n for n in graph.nodes if len(variables[n].shape) == 3)
        self.labels = [n for n in graph.order if n != self.image]
        channels, side, _ = variables[self.image].shape
        n = len(self.labels)
        arrows = [[float(a in graph.parents(b)) for b in self.labels] for a in self.labels]
        self.register_buffer("arrows", torch.tensor(arrows))
        self.weights = nn.Parameter(torch.full((n, n), 0.1))
        self.encoder = ConvEncoder(
            channels, side, 2 * n * block, widths=(width, 2 * width, 4 * width)
        )
        self.maps = nn.ModuleList(MLP(n * block, block, hidden=(32, 32)) for _ in self.labels)
        self.decoder = decoder(n * block, channels, side, width)
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(eps | x), `(B, concepts, block)` each."""
        parts = self.encoder(x).unflatten(1, (2, len(self.labels), self.block))
        return parts[:, 0], parts[:, 1].clamp(-10, 4)

    def latent(self, eps: Tensor, do: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return z and s, `(B, concepts, block)` each, under do(concept = standardised value)."""
        a, z, s = self.weights * self.arrows, [], []
        blank = eps.new_zeros(len(eps), self.block)
        for j, name in enumerate(self.labels):
            before = torch.stack([*z, *[blank] * (len(self.labels) - j)], 1)
            if do and name in do:
                value = do[name][:, None].expand(-1, self.block)
                z.append(value)
                s.append(value)
                continue
            weighted = before * a[:, j, None]
            z.append(weighted.sum(1) + eps[:, j])
            mapped = self.maps[j](weighted.flatten(1)) if self.arrows[:, j].any() else 0.0
            s.append(mapped + eps[:, j])
        return torch.stack(z, 1), torch.stack(s, 1)

    def noise(self, n: int) -> Noise:
        shape = self.variables[self.image].shape
        return {
            "eps": torch.randn(n, len(self.labels), self.block),
            "residual": torch.randn(n, *shape),
        }

    def abduct(self, evidence: Any) -> Noise:
        batch = Batch.of(evidence, list(self.variables.values()))
        x = self.variables[self.image].standardise(batch.values[self.image])
        eps, _ = self.code(x)
        residual = (x - self.decoder(self.latent(eps)[1].flatten(1))) / self.log_scale.exp()
        return {"eps": eps, "residual": residual}

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        rows, given = len(noise["eps"]), {}
        for name, asked in as_do(do or {}, self.variables).items():
            value = act(asked, self.variables[name], lambda *_: None, {}, rows)
            given[name] = self.variables[name].standardise(value)
        z, s = self.latent(noise["eps"], given)
        x = self.decoder(s.flatten(1)) + self.log_scale.exp() * noise["residual"]
        found = {n: self.variables[n].restore(z[:, j].mean(1)) for j, n in enumerate(self.labels)}
        return found | {self.image: self.variables[self.image].restore(x)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        std = {n: self.variables[n].standardise(v) for n, v in batch.values.items()}
        x, y = std[self.image], torch.stack([std[n] for n in self.labels], 1)
        mean, log_variance = self.code(x)
        eps = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        z, s = self.latent(eps)
        square = (x - self.decoder(s.flatten(1))).square().flatten(1).mean(1)
        nll = square * torch.exp(-2 * self.log_scale) / 2 + self.log_scale
        children = self.arrows.any(0)
        linear = (y - y @ (self.weights * self.arrows))[:, children].square().sum(1)
        mapped = (s - eps - z)[:, children].square().mean(2).sum(1)
        return {
            "nll": nll,
            "kl": normal_kl(mean, log_variance) / x[0].numel(),
            "labels": (z - y[:, :, None]).square().mean(2).sum(1) / 2,
            "linear": linear,
            "mask": mapped,
        }
