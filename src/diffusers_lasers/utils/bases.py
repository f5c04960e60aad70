"""The base classes through which diffusers finds the loading method of a class of this library (see `registration`)."""

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin


__all__ = ["DiffusionPipeline", "ModelMixin", "SchedulerMixin"]
