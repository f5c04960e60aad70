"""Super-resolution and inpainting by an autoencoder with a bottleneck."""

from .pipeline_dl_restoration import DLRestorationPipeline, DLRestorationPipelineOutput


__all__ = ["DLRestorationPipeline", "DLRestorationPipelineOutput"]
