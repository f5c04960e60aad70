"""Training: losses, adversarial terms, averages, dictionary upkeep, image data and checkpoints, for `examples/` and for loops of one's own."""

from ..utils.image_sources import (
    BUNDLED_PHOTOS,
    UnreadableImageError,
    bundled_photos,
    load_image_dataset,
    open_image_stream,
)
from .adversarial import (
    AdversarialObjective,
    LeCamRegularizer,
    adaptive_weight,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)
from .block_coordinate import BlockCoordinateUpdate
from .checkpoints import TrainingState, latest_checkpoint, list_checkpoints, save_checkpoint, verify_checkpoint
from .code_cache import cached_codes, images_fingerprint, model_fingerprint
from .data import ImageDataset, take_batch
from .degraded_inputs import Degradation
from .dictionary_maintenance import DictionaryUpkeep
from .ema import ModelAverage
from .index_diffusion import IndexDiffusionObjective
from .judgement import Judgement
from .losses import ReconstructionLoss, ReconstructionTerms
from .records import TrainingLog, Window
from .retrofit import collect_latents, fit_bottleneck, fit_to_latents
from .run_folder import RunFolder, check_output_folder, run_identity
from .sampling import StreamSampler
from .script_flags import (
    adam_optimizer,
    add_data_flags,
    add_hub_flags,
    check_data_flags,
    check_held_out_images,
    open_images,
    scaled_learning_rate,
)
from .sharding import FullySharded, gradient_norm, local_part, save_optimizer_whole, whole_tensor, write_whole
from .streaming import ImageStream


__all__ = [
    "AdversarialObjective",
    "BUNDLED_PHOTOS",
    "BlockCoordinateUpdate",
    "Degradation",
    "DictionaryUpkeep",
    "FullySharded",
    "ImageDataset",
    "ImageStream",
    "IndexDiffusionObjective",
    "Judgement",
    "LeCamRegularizer",
    "ModelAverage",
    "ReconstructionLoss",
    "ReconstructionTerms",
    "RunFolder",
    "StreamSampler",
    "TrainingLog",
    "TrainingState",
    "UnreadableImageError",
    "Window",
    "adam_optimizer",
    "adaptive_weight",
    "add_data_flags",
    "add_hub_flags",
    "adversarial_factor",
    "bundled_photos",
    "cached_codes",
    "check_data_flags",
    "check_held_out_images",
    "check_output_folder",
    "collect_latents",
    "discriminator_loss",
    "fit_bottleneck",
    "fit_to_latents",
    "generator_loss",
    "gradient_norm",
    "images_fingerprint",
    "latest_checkpoint",
    "list_checkpoints",
    "load_image_dataset",
    "local_part",
    "model_fingerprint",
    "open_image_stream",
    "open_images",
    "run_identity",
    "save_checkpoint",
    "save_optimizer_whole",
    "scaled_learning_rate",
    "take_batch",
    "verify_checkpoint",
    "whole_tensor",
    "write_whole",
]
