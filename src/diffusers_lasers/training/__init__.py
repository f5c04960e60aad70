"""Training: the parts of a training loop, in packages by idea. `examples/train_*.py` use them."""

from ..utils.image_sources import bundled_photos, load_image_dataset
from .data.degraded_inputs import Degradation
from .data.image_dataset import ImageDataset
from .data.sampling import StreamSampler
from .data.streaming import ImageStream
from .dictionaries.block_coordinate import BlockCoordinateUpdate
from .dictionaries.maintenance import DictionaryUpkeep
from .dictionaries.retrofit import fit_bottleneck
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
    "Degradation",
    "DictionaryUpkeep",
    "FullySharded",
    "ImageDataset",
    "ImageStream",
    "IndexDiffusionObjective",
    "LeCamRegularizer",
    "ModelAverage",
    "ReconstructionLoss",
    "RunFolder",
    "StreamSampler",
    "TrainingLog",
    "TrainingState",
    "bundled_photos",
    "fit_bottleneck",
    "load_image_dataset",
]
