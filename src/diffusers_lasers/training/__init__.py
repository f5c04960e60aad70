"""Training: losses, adversarial terms, dictionary upkeep, image data and checkpoints, for `examples/` and for loops of one's own."""

from .adversarial import (
    LeCamRegularizer,
    adaptive_weight,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)
from .checkpoints import TrainingState, latest_checkpoint, list_checkpoints, save_checkpoint, verify_checkpoint
from .data import BUNDLED_PHOTOS, ImageDataset, bundled_photos, load_image_dataset, take_batch
from .losses import ReconstructionLoss, ReconstructionTerms
from .records import TrainingLog, Window
from .sampling import StreamSampler
from .upkeep import DictionaryUpkeep


__all__ = [
    "BUNDLED_PHOTOS",
    "DictionaryUpkeep",
    "ImageDataset",
    "LeCamRegularizer",
    "ReconstructionLoss",
    "ReconstructionTerms",
    "StreamSampler",
    "TrainingLog",
    "TrainingState",
    "Window",
    "adaptive_weight",
    "adversarial_factor",
    "bundled_photos",
    "discriminator_loss",
    "generator_loss",
    "latest_checkpoint",
    "list_checkpoints",
    "load_image_dataset",
    "save_checkpoint",
    "take_batch",
    "verify_checkpoint",
]
