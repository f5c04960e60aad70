"""Schedulers of diffusion on codebook indices."""

from .scheduling_absorbing import AbsorbingD3PMScheduler, AbsorbingD3PMSchedulerOutput
from .scheduling_categorical_ddpm import CategoricalDDPMScheduler, CategoricalDDPMSchedulerOutput
from .scheduling_uniform import UniformD3PMScheduler


__all__ = [
    "AbsorbingD3PMScheduler",
    "AbsorbingD3PMSchedulerOutput",
    "CategoricalDDPMScheduler",
    "CategoricalDDPMSchedulerOutput",
    "UniformD3PMScheduler",
]
