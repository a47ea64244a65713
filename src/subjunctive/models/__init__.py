"""Models: one published model, one recipe over the rooms before."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.models.bridge import Bridge as Bridge
    from subjunctive.models.causal_diffae import CausalDiffAE as CausalDiffAE
    from subjunctive.models.cycle_diffusion import CycleDiffusion as CycleDiffusion
    from subjunctive.models.cycle_diffusion import with_sampler as with_sampler
    from subjunctive.models.dear import DEAR as DEAR
    from subjunctive.models.dear import game as game
    from subjunctive.models.few_step import distil as distil
    from subjunctive.models.few_step import few as few
    from subjunctive.models.ild import ILD as ILD
    from subjunctive.models.ild import every_domain as every_domain

__getattr__, __dir__, __all__ = lazy(__name__)
