"""Bottlenecks: what stands between an encoder and a decoder, and what its code costs in bits."""

from .bottleneck import Bottleneck, BottleneckOutput
from .dictionary_bottleneck import DictionaryBottleneck
from .entropy_scalar import EntropyScalarBottleneck
from .external_quantizer import ExternalQuantizerBottleneck
from .fsq import FSQBottleneck
from .identity import IdentityBottleneck
from .index_bottleneck import IndexBottleneck
from .scalar import ScalarQuantizerBottleneck
from .vector_quantizer import ResidualVQBottleneck, VectorQuantizerBottleneck


__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "DictionaryBottleneck",
    "EntropyScalarBottleneck",
    "ExternalQuantizerBottleneck",
    "FSQBottleneck",
    "IdentityBottleneck",
    "IndexBottleneck",
    "ResidualVQBottleneck",
    "ScalarQuantizerBottleneck",
    "VectorQuantizerBottleneck",
]
