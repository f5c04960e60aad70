"""Pictures of images, latents, codes, dictionaries and training runs, as functions of tensors and records."""

from .atom_figures import atom_map, atom_tiles, coherence_histogram, usage_histogram
from .curves import rate_distortion, training_curves
from .figures import save_figure
from .image_grids import image_grid
from .latents import component_grid, support_map


__all__ = [
    "atom_map",
    "atom_tiles",
    "coherence_histogram",
    "component_grid",
    "image_grid",
    "rate_distortion",
    "save_figure",
    "support_map",
    "training_curves",
    "usage_histogram",
]
