"""Diffusion: a schedule, a denoiser, and a sampler that can also run backward."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.diffusion.consistent import Cauchy as Cauchy
    from subjunctive.diffusion.consistent import Grid as Grid
    from subjunctive.diffusion.consistent import PseudoHuber as PseudoHuber
    from subjunctive.diffusion.consistent import Squared as Squared
    from subjunctive.diffusion.denoise import Denoise as Denoise
    from subjunctive.diffusion.denoise import Denoiser as Denoiser
    from subjunctive.diffusion.energy import Guided as Guided
    from subjunctive.diffusion.energy import energy_guided as energy_guided
    from subjunctive.diffusion.gaussian import GaussianData as GaussianData
    from subjunctive.diffusion.gaussian import HeadStart as HeadStart
    from subjunctive.diffusion.gaussian import plane as plane
    from subjunctive.diffusion.guide import guided as guided
    from subjunctive.diffusion.guide import guided_together as guided_together
    from subjunctive.diffusion.jump import Jumps as Jumps
    from subjunctive.diffusion.multistep import Multistep as Multistep
    from subjunctive.diffusion.poisson import PoissonKernel as PoissonKernel
    from subjunctive.diffusion.sample import DDIM as DDIM
    from subjunctive.diffusion.sample import Ancestral as Ancestral
    from subjunctive.diffusion.sample import Heun as Heun
    from subjunctive.diffusion.sample import Sampler as Sampler
    from subjunctive.diffusion.schedule import EDM as EDM
    from subjunctive.diffusion.schedule import Cosine as Cosine
    from subjunctive.diffusion.schedule import RectifiedFlow as RectifiedFlow
    from subjunctive.diffusion.schedule import Schedule as Schedule
    from subjunctive.diffusion.schedule import VPLinear as VPLinear

__getattr__, __dir__, __all__ = lazy(__name__)
