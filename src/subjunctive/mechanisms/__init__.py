"""Mechanisms: ways to compute a node from its parents and its own noise."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.mechanisms.additive import AdditiveNoise as AdditiveNoise
    from subjunctive.mechanisms.autoencoder import Autoencoder as Autoencoder
    from subjunctive.mechanisms.canonical import LatentSCM as LatentSCM
    from subjunctive.mechanisms.canonical import canonical_form as canonical_form
    from subjunctive.mechanisms.consistency import Consistency as Consistency
    from subjunctive.mechanisms.counts import NegativeBinomial as NegativeBinomial
    from subjunctive.mechanisms.counts import ZeroInflated as ZeroInflated
    from subjunctive.mechanisms.discrete import Categorical as Categorical
    from subjunctive.mechanisms.discrete import Ordinal as Ordinal
    from subjunctive.mechanisms.domains import Domains as Domains
    from subjunctive.mechanisms.domains import translate as translate
    from subjunctive.mechanisms.flow import ConditionalFlow as ConditionalFlow
    from subjunctive.mechanisms.freed import Freed as Freed
    from subjunctive.mechanisms.gan import GAN as GAN
    from subjunctive.mechanisms.gated import Gated as Gated
    from subjunctive.mechanisms.gated import decided as decided
    from subjunctive.mechanisms.hvae import HVAE as HVAE
    from subjunctive.mechanisms.interpolant import Corrupted as Corrupted
    from subjunctive.mechanisms.interpolant import Interpolant as Interpolant
    from subjunctive.mechanisms.interpolant import Regressed as Regressed
    from subjunctive.mechanisms.known import Known as Known
    from subjunctive.mechanisms.latent_diffusion import Latent as Latent
    from subjunctive.mechanisms.latent_mixture import LatentMixture as LatentMixture
    from subjunctive.mechanisms.likelihood import Bernoulli as Bernoulli
    from subjunctive.mechanisms.likelihood import DiscretisedGaussian as DiscretisedGaussian
    from subjunctive.mechanisms.likelihood import DiscretisedLogistic as DiscretisedLogistic
    from subjunctive.mechanisms.likelihood import Gaussian as Gaussian
    from subjunctive.mechanisms.likelihood import Likelihood as Likelihood
    from subjunctive.mechanisms.linear import LinearGaussian as LinearGaussian
    from subjunctive.mechanisms.poisson_flow import PoissonFlow as PoissonFlow
    from subjunctive.mechanisms.quantised import Quantised as Quantised
    from subjunctive.mechanisms.realnvp import RealNVP as RealNVP
    from subjunctive.mechanisms.refined import Refined as Refined
    from subjunctive.mechanisms.reused import Reused as Reused
    from subjunctive.mechanisms.ridge import Ridge as Ridge
    from subjunctive.mechanisms.silent import Silent as Silent
    from subjunctive.mechanisms.tied import Tied as Tied
    from subjunctive.mechanisms.vae import VAE as VAE
    from subjunctive.mechanisms.vae import GaussianMixture as GaussianMixture

__getattr__, __dir__, __all__ = lazy(__name__)
