"""Bottlenecks: what stands between an encoder and a decoder, and what its code costs in bits."""

from .base import Bottleneck, BottleneckOutput
from .dictionary import DictionaryBottleneck
from .fsq import FSQBottleneck
from .identity import IdentityBottleneck
from .index import IndexBottleneck
from .scalar import ScalarQuantizerBottleneck
from .vector_quantizer import ResidualVQBottleneck, VectorQuantizerBottleneck


__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "DictionaryBottleneck",
    "FSQBottleneck",
    "IdentityBottleneck",
    "IndexBottleneck",
    "ResidualVQBottleneck",
    "ScalarQuantizerBottleneck",
    "VectorQuantizerBottleneck",
]
