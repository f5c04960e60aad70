"""Training: losses, dictionary upkeep, image data and checkpoints, for `examples/` and for loops of one's own."""

from .checkpoints import TrainingState, latest_checkpoint, list_checkpoints, save_checkpoint
from .data import BUNDLED_PHOTOS, ImageDataset, bundled_photos, load_image_dataset, take_batch
from .losses import ReconstructionLoss, ReconstructionTerms
from .records import TrainingLog, Window
from .sampling import StreamSampler
from .upkeep import DictionaryUpkeep


__all__ = [
    "BUNDLED_PHOTOS",
    "DictionaryUpkeep",
    "ImageDataset",
    "ReconstructionLoss",
    "ReconstructionTerms",
    "StreamSampler",
    "TrainingLog",
    "TrainingState",
    "Window",
    "bundled_photos",
    "latest_checkpoint",
    "list_checkpoints",
    "load_image_dataset",
    "save_checkpoint",
    "take_batch",
]
