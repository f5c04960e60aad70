"""Codes that earlier versions packed are read, and packed again to the same payload; their models' weights keep their
names.

Weights and codes are plain numbers, so that the bytes are the same on all machines. The bottlenecks' are of version 1
of the container (commit 41e16a0), the codec's of version 2 (commit 2bb280c); older codecs' are refused.
"""

import pytest
import torch

from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    IndexCode,
    ModelBasedVQCodec,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.coding.coefficients import dequantize_coefficients


FILES = {
    "vq": "444c4243010147c47260020000000200000003000000090000000b000000010000f53a6a54c45b9360",
    "residual_vq": "444c424301012b946832020000000200000003000000090000000b000000020000ed83b59dd3638f24ea3c06f4",
    "fsq": "444c42430101d11f11a7020000000200000003000000090000000b000000030000b1fdb8344e4e4ee91c88acfe74",
    "fsq_projections": "444c42430101de27ae7c020000000200000003000000090000000b0000000200008ab763b44e4e4ec45b9360",
    "scalar": "444c4243010157f05228020000000200000003000000090000000b0000000300004218697a1b1b1b1b1b1b1b1b1b",
    "dictionary": (
        "444c424301007d13bf72020000000200000003000000090000000b0000000200003148f215a056616b94aba00cbf0000"
        "003ec000003f000000bec00000be8000003f200000be0000003f400000000000003f6000003e0000003f8000003e8000"
        "00bf0000003ec00000bec000003f000000be800000be0000003f2000003f400000000000003f6000003e000000"
    ),
    "dictionary_depth": (
        "444c424301007d13bf72020000000200000003000000090000000b000000020004636d26381efea1e2f075c32c840001"
        "7067564534231201706756"
    ),
    "dictionary_shared": (
        "444c4243010092fc5c84020000000200000003000000090000000b000000020004026c9b99a056616b94aba00c010767"
        "564534231201076756"
    ),
}
CODEC_FILE = "444c424302020483d54f0200000002000000030000000300000006000000040000355347711bc6b16c1bc6b16c1bc6b16c"
OLD_CODEC_FILE = "4d425651310483d54f020000000300000006000000afae883c1bc6b16c1bc6b16c1bc6b16c"

MAKE = {
    "vq": lambda: VectorQuantizerBottleneck(3, 5),
    "residual_vq": lambda: ResidualVQBottleneck(3, 6, depth=2),
    "fsq": lambda: FSQBottleneck(3, (3, 4, 5)),
    "fsq_projections": lambda: FSQBottleneck(3, (5, 4)),
    "scalar": lambda: ScalarQuantizerBottleneck(3, bits=2, transform="klt"),
    "dictionary": lambda: DictionaryBottleneck(3, 8, 2),
    "dictionary_depth": lambda: DictionaryBottleneck(3, 8, 2, coefficient_bits=4),
    "dictionary_shared": lambda: DictionaryBottleneck(3, 8, 2, coefficient_bits=4, coefficient_scaling="shared"),
}
WEIGHTS = {
    "vq": {"codebook", "counts", "sums"},
    "residual_vq": {"codebook", "counts", "sums"},
    "fsq": {"half_widths"},
    "fsq_projections": {
        "half_widths",
        *(f"quantizer.project_{side}.{name}" for side in ("in", "out") for name in ("weight", "bias")),
    },
    "scalar": {"mean", "basis", "low", "steps", "points"},
    **dict.fromkeys(
        ("dictionary", "dictionary_depth", "dictionary_shared"), {"dictionary", "coefficient_scale", "scale_steps"}
    ),
}


def numbers(shape, period):
    return ((torch.arange(torch.Size(shape).numel()) * 7 % period) / 8 - 0.5).reshape(shape)


def fill(model):
    for index, (_, value) in enumerate(sorted(model.state_dict().items())):
        if value.is_floating_point():
            value.copy_(numbers(value.shape, 11 + index))
    return model.eval()


def indices(levels):
    """Of two images of 2 × 3 sites."""
    flat = torch.arange(12).reshape(2, 2, 3, 1) * 7 + torch.arange(len(levels))
    return flat % torch.tensor(levels)


def build(name):
    """A model of plain numbers, and a code of it."""
    model = fill(MAKE[name]())
    model.latent_scale.fill_(2.0)
    if "dictionary" not in name:
        return model, IndexCode(indices(model.levels), model.levels, (2, 3), (9, 11))
    model.coefficient_scale.copy_(torch.tensor([2.0, 1.0]))
    found = indices((8, 8))
    coefficients = numbers((2, 2, 3, 2), 13)
    if name != "dictionary":
        scales = model.coefficient_scale if name == "dictionary_depth" else torch.full((2,), 2.0)
        coefficients = dequantize_coefficients(found % 16, scales, 4)
    return model, SparseCode(found, coefficients, 8, (2, 3), (9, 11))


@torch.no_grad()
@pytest.mark.parametrize("name", FILES)
def test_packed_codes_are_read_and_written_as_before(name):
    (model, code), data = build(name), bytes.fromhex(FILES[name])
    again = model.unpack(data)
    assert torch.equal(model.decode(again), model.decode(code)) and again.image_size == (9, 11)
    if name in ("dictionary", "dictionary_shared"):  # a set, whose slots come back in another order
        assert torch.equal(again.to_dense(), code.to_dense())
    else:
        assert again == code
    packed = model.pack(code)  # the same but for the version and the checksum
    assert (packed[:4], packed[5:33], packed[37:]) == (data[:4], data[5:33], data[37:])


@pytest.mark.parametrize("name", FILES)
def test_weights_keep_their_names(name):
    assert set(MAKE[name]().state_dict()) == WEIGHTS[name] | {"latent_shift", "latent_scale"}


def test_files_of_a_patch_codec():
    codec = fill(ModelBasedVQCodec("OPQ", (4, 2, 2), patch_size=2, codebook_bits=2))
    codec.fitted.fill_(True)
    code = IndexCode(indices((4, 4, 4, 4)), (4, 4, 4, 4), (2, 3), (3, 6))
    assert codec.unpack(bytes.fromhex(CODEC_FILE)) == code
    codes = code.indices.permute(0, 3, 1, 2)
    assert codec.pack(code).hex() == codec.pack(codes, (3, 6)).hex() == CODEC_FILE
    with pytest.raises(ValueError, match="MBVQ1 of older patch codecs has none: encode the image again"):
        codec.unpack(bytes.fromhex(OLD_CODEC_FILE))
