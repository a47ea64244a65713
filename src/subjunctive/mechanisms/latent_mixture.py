r"""The density of a latent, fitted to what an encoder makes of data once it is trained.

A VAE's latents of data follow the aggregate posterior q(z) = mean over rows of q(z | x), and its
decoder knows nothing else. What N(0, I) draws beyond it becomes a picture of nothing. A mixture of
Gaussians fitted to draws of q(z) closes that gap, whatever the decoder, and its noise of data fits
its prior.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
)

RIDGE = 1e-4  # of the covariances, in the latents' own variances


class LatentMixture(nn.Module):
    """A mixture of Gaussians with full covariances, fitted to draws of a latent.

    Reference: From Variational to Deterministic Autoencoders (Ghosh, Sajjadi, Vergari, Black and
    Schoelkopf, 2020), https://arxiv.org/abs/1903.12436, whose section 4 fits the density of a
    latent after training.

    Args:
        width: of the latent.
        components: how many Gaussians. Before it is fitted, all are N(0, I).

    Raises:
        ValueError: for a width or a number of components below one.

    Example:
        >>> from subjunctive.mechanisms import VAE
        >>> from subjunctive.variable import Variable
        >>> vae, x = VAE.of(Variable("x", (5,)), latent=2), torch.randn(200, 5)
        >>> vae.base = LatentMixture.fit(vae.abduct(x, {})["z"], components=[1, 3])
        >>> vae.prior()["z"].sample((4,)).shape
        torch.Size([4, 2])
    """

    weight: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(self, width: int, components: int = 10) -> None:
        super().__init__()
        if width < 1 or components < 1:
            raise ValueError(
                f"LatentMixture needs width and components of at least 1, got {width}, {components}"
            )
        self.width, self.components = width, components
        self.register_buffer("weight", torch.full((components,), 1 / components))
        self.register_buffer("mean", torch.zeros(components, width))
        self.register_buffer("factor", torch.eye(width).repeat(components, 1, 1))

    @classmethod
    def fit(
        cls,
        z: Tensor,
        components: Sequence[int] = (5, 10, 25, 50),
        share: float = 0.2,
        seed: int = 0,
    ) -> LatentMixture:
        """Return the mixture that makes held-out latents likeliest, fitted anew to all.

        Args:
            z: latents of data, draws of an encoder, `(N, width)`.
            components: numbers of Gaussians to choose from.
            share: of the rows, drawn at random, that are held out for the choice.
            seed: of the rows that are held out and of the starts.

        Raises:
            ValueError: for latents that are no finite matrix, or no number of components that the
                rows can be fitted with.
        """
        if z.dim() != 2 or not bool(torch.isfinite(z).all()):
            raise ValueError(
                f"z has shape {tuple(z.shape)}; LatentMixture.fit takes finite latents (N, width)"
            )
        rows = z.detach().double().cpu()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        out = order[: max(1, int(share * len(rows)))]
        kept = order[len(out) :]
        able = [k for k in components if 1 <= k <= len(kept)]
        if not able:
            raise ValueError(
                f"components={tuple(components)} of {len(rows)} latents, {len(out)} of them held "
                "out: give numbers from 1 to as many as are left, or more latents"
            )
        said = {k: _fitted(rows[kept], k, seed).score(rows[out].numpy()) for k in able}
        best = _fitted(rows, max(said, key=lambda k: said[k]), seed)
        found = cls(z.shape[1], len(best.weights_)).to(z)
        for name in ("weight", "mean"):
            getattr(found, name).copy_(torch.from_numpy(getattr(best, f"{name}s_")))
        found.factor.copy_(torch.linalg.cholesky(torch.from_numpy(best.covariances_)))
        return found

    def distribution(self) -> Distribution:
        """Return the mixture, of event shape `(width,)`."""
        parts = MultivariateNormal(self.mean, scale_tril=self.factor, validate_args=False)
        weights = Categorical(self.weight, validate_args=False)
        return MixtureSameFamily(weights, parts, validate_args=False)


def _fitted(rows: Tensor, components: int, seed: int):  # type: ignore[no-untyped-def]
    from sklearn.mixture import GaussianMixture

    ridge = RIDGE * float(rows.var(0, correction=0).mean()) + 1e-12
    return GaussianMixture(components, reg_covar=ridge, random_state=seed).fit(rows.numpy())
