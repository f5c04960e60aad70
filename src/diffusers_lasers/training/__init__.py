"""Training: losses, adversarial terms, averages, dictionary upkeep, image data and checkpoints, for `examples/` and for loops of one's own."""

from ..utils.image_sources import (
    BUNDLED_PHOTOS,
    UnreadableImageError,
    bundled_photos,
    load_image_dataset,
    open_image_stream,
)
from .data.code_cache import cached_codes, images_fingerprint, model_fingerprint
from .data.degraded_inputs import Degradation
from .data.image_dataset import ImageDataset, take_batch
from .data.image_flags import add_data_flags, check_data_flags, check_held_out_images, open_images
from .data.sampling import StreamSampler
from .data.streaming import ImageStream
from .dictionary.block_coordinate import BlockCoordinateUpdate
from .dictionary.maintenance import DictionaryUpkeep
from .dictionary.retrofit import collect_latents, fit_bottleneck, fit_to_latents
from .objectives.adversarial import (
    AdversarialObjective,
    LeCamRegularizer,
    adaptive_weight,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)
from .objectives.index_diffusion import IndexDiffusionObjective
from .objectives.reconstruction import ReconstructionLoss, ReconstructionTerms
from .run.checkpoints import TrainingState, latest_checkpoint, list_checkpoints, save_checkpoint, verify_checkpoint
from .run.judgement import Judgement
from .run.optimizers import adam_optimizer, scaled_learning_rate
from .run.records import TrainingLog, Window
from .run.run_flags import add_hub_flags
from .run.run_folder import RunFolder, check_output_folder, run_identity
from .weights.averaging import ModelAverage
from .weights.sharding import FullySharded, gradient_norm, local_part, save_optimizer_whole, whole_tensor, write_whole


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
