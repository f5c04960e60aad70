"""Priors over codes: bits are what files cost, files give the same code back, and nothing else is accepted."""

import copy
import itertools
import math
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IdentityBottleneck,
    IndexCode,
    ModelBasedVQCodec,
    PriorOutput,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)


def latents(batch=3, channels=4, height=7, width=10, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def codec():
    model = ModelBasedVQCodec.from_notation("OPQ-{8-4-4}", patch_size=4, codebook_bits=4)
    for name, buffer in model.named_buffers():
        if name.startswith("codebooks"):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)) / 4)
    model.fitted.fill_(True)
    return model


SHARED = {"coefficient_scaling": "shared"}
MAKE = {
    "float": lambda: DictionaryBottleneck(4, 20, 3),
    "float, variable": lambda: DictionaryBottleneck(4, 20, 3, patch_size=2, tolerance=1.5),
    "depth": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=7),
    "depth, variable": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=16, tolerance=1.0),
    "shared": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=7, **SHARED),
    "shared, variable": lambda: DictionaryBottleneck(4, 33, 4, coefficient_bits=1, tolerance=1.0, **SHARED),
    "shared, all atoms": lambda: DictionaryBottleneck(4, 3, 3, coefficient_bits=3, **SHARED),
    "one atom": lambda: DictionaryBottleneck(4, 1, 1, coefficient_bits=3, **SHARED),
    "one atom, ordered": lambda: DictionaryBottleneck(4, 1, 1, coefficient_bits=3),
    "lasso": lambda: DictionaryBottleneck(4, 20, 4, pursuit="fista", coefficient_bits=5),
    "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=50),
    "one codeword": lambda: VectorQuantizerBottleneck(4, num_codewords=1),
    "residual_vq": lambda: ResidualVQBottleneck(4, num_codewords=50, depth=3, patch_size=2),
    "fsq": lambda: FSQBottleneck(4, levels=(7, 5, 5, 3)),
    "lfq": lambda: ExternalQuantizerBottleneck(4, "lfq", {"codebook_size": 16, "num_codebooks": 3}),
    "residual_fsq": lambda: ExternalQuantizerBottleneck(4, "residual_fsq", {"levels": [5, 5, 3]}),
    "scalar": lambda: ScalarQuantizerBottleneck(4, bits=3, transform="klt"),
    "entropy_scalar": lambda: EntropyScalarBottleneck(4, bits=8, rate_weight=1e-2),
    "codec": codec,
}
_BUILT = {}


def build(name):
    """A model, codes that its prior is fitted to, other codes, and the prior."""
    if name not in _BUILT:
        torch.manual_seed(0)
        model = MAKE[name]()
        if name == "codec":
            make = lambda batch, seed: model.encode_to_code(  # noqa: E731
                torch.rand(batch, 3, 27, 39, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            )
        else:
            if name == "scalar":
                model.fit(latents(20, seed=7))
            else:
                model.initialize(latents(20, seed=7), generator=torch.Generator().manual_seed(0))
            model.eval()
            make = lambda batch, seed: replace(model.encode(latents(batch, seed=seed)), image_size=(27, 39))  # noqa: E731
        codes, held = [make(8, 1), make(5, 2)], make(7, 3)
        _BUILT[name] = model, codes, held, FactorizedPrior.from_coder(model).fit(codes)
    return _BUILT[name]


def canonical(model, code):
    """The code with its slots as files of the model give them back."""
    return model.unpack(model.pack(code))


@pytest.mark.parametrize("name", MAKE)
def test_a_file_gives_the_code_back_at_its_bits(name):
    model, _, held, prior = build(name)
    bits, data = prior.bits(held), prior.compress(held)
    assert bits.shape == (len(held),) and bits.dtype == torch.float64 and bool((bits >= 0).all())
    assert prior.decompress(data) == canonical(model, held)
    if getattr(model, "ordered", True):
        assert prior.decompress(data) == held
    assert len(data) <= 1.01 * float(bits.sum()) / 8 + 64
    assert len(data) >= float(bits.sum()) / 8


def test_forward_gives_the_bits():
    _, _, held, prior = build("depth")
    output = prior(held)
    assert isinstance(output, PriorOutput) and torch.equal(output.bits, prior.bits(held))
    assert torch.equal(prior(held, return_dict=False)[0], output.bits)
