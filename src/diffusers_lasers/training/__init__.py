"""Training: the parts of a training loop, in packages by idea. `examples/train_*.py` use them."""

from ..utils.image_sources import bundled_photos, load_image_dataset
from .data.degraded_inputs import Degradation
from .data.image_dataset import ImageDataset
from .data.sampling import StreamSampler
from .data.streaming import ImageStream
from .dictionaries.block_coordinate import BlockCoordinateUpdate
from .dictionaries.maintenance import DictionaryUpkeep
from .dictionaries.retrofit import fit_bottleneck
from .latent_cache.caching import write_latent_cache
from .latent_cache.image_rows import ImageRows
from .latent_cache.latent_code import LatentCode
from .latent_cache.reading import BucketBatchSampler, export_latent_cache, load_latent_cache, load_latent_code
from .latent_cache.windows import Windows
from .objectives.adversarial import AdversarialObjective, LeCamRegularizer
from .objectives.index_diffusion import IndexDiffusionObjective
from .objectives.reconstruction import ReconstructionLoss
from .run.checkpoints import TrainingState
from .run.records import TrainingLog
from .run.run_folder import RunFolder
from .weights.averaging import ModelAverage
from .weights.sharding import FullySharded


__all__ = [
    "AdversarialObjective",
    "BlockCoordinateUpdate",
    "BucketBatchSampler",
    "Degradation",
    "DictionaryUpkeep",
    "FullySharded",
    "ImageDataset",
    "ImageRows",
    "ImageStream",
    "IndexDiffusionObjective",
    "LatentCode",
    "LeCamRegularizer",
    "ModelAverage",
    "ReconstructionLoss",
    "RunFolder",
    "StreamSampler",
    "TrainingLog",
    "TrainingState",
    "Windows",
    "bundled_photos",
    "export_latent_cache",
    "fit_bottleneck",
    "load_image_dataset",
    "load_latent_cache",
    "load_latent_code",
    "write_latent_cache",
]
