"""Codes of bottlenecks as bytes: the same latents to the bit, at the nominal rate, and refused by any other
bottleneck."""

import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
import torch

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    IndexCode,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.coding.container import pack_container, unpack_container
from diffusers_lasers.functional import synthesize


DICTIONARIES = {
    "float": {},
    "depth": {"coefficient_bits": 7},
    "shared": {"coefficient_bits": 7, "coefficient_scaling": "shared"},
    "variable": {"tolerance": 1.5},
    "variable-depth": {"tolerance": 1.5, "coefficient_bits": 16},
    "variable-shared": {"tolerance": 1.5, "coefficient_bits": 1, "coefficient_scaling": "shared"},
    "lasso": {"pursuit": "fista", "coefficient_bits": 5},
    "rate": {"rate_weight": 1e-2, "coefficient_bits": 5},
    "rate-shared": {"rate_weight": 1e-2, "coefficient_bits": 5, "coefficient_scaling": "shared"},
}
MAKE = {
    **{
        name: lambda p, arguments=arguments: DictionaryBottleneck(6, 50, 4, patch_size=p, **arguments)
        for name, arguments in DICTIONARIES.items()
    },
    "vq": lambda p: VectorQuantizerBottleneck(6, num_codewords=50, patch_size=p),
    "residual_vq": lambda p: ResidualVQBottleneck(6, num_codewords=50, depth=3, patch_size=p),
    "residual_vq, rate": lambda p: ResidualVQBottleneck(6, 50, depth=3, patch_size=p, rate_weight=1e-2),
    "fsq": lambda p: FSQBottleneck(6, levels=(7, 5, 5, 3), patch_size=p),
    "lfq": lambda p: ExternalQuantizerBottleneck(6, "lfq", {"codebook_size": 16, "num_codebooks": 3}, patch_size=p),
    "cosine_vq": lambda p: ExternalQuantizerBottleneck(6, "cosine_vq", {"codebook_size": 50}, patch_size=p),
    "residual_fsq": lambda p: ExternalQuantizerBottleneck(6, "residual_fsq", {"levels": [5, 5, 3]}, patch_size=p),
    "scalar": lambda p: ScalarQuantizerBottleneck(6, bits=3, patch_size=p, transform="klt"),
    "entropy_scalar": lambda p: EntropyScalarBottleneck(6, bits=5, patch_size=p, rate_weight=1e-2),
}


def latents(batch=3, channels=6, height=7, width=10, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def build(name, patch_size=1):
    torch.manual_seed(0)
    bottleneck = MAKE[name](patch_size)
    if name == "scalar":
        bottleneck.fit(latents(20, seed=7))
    else:
        bottleneck.initialize(latents(20, seed=7), generator=torch.Generator().manual_seed(0))
    bottleneck.set_latent_statistics(torch.full((6,), 0.1), torch.tensor(1.3))
    return bottleneck.eval()


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("name", MAKE)
def test_an_unpacked_code_decodes_to_the_same_bits_at_the_nominal_rate(name, patch_size):
    bottleneck, z = build(name, patch_size), latents()
    code = replace(bottleneck.encode(z), image_size=(27, 39))
    data = bottleneck.pack(code)
    again = bottleneck.unpack(data)
    assert type(again) is type(code) and again.indices.shape == code.indices.shape
    assert (again.latent_size, again.image_size) == ((7, 10), (27, 39))
    assert torch.equal(bottleneck.decode(again), bottleneck.decode(code))
    assert torch.equal(again.usage_counts(), code.usage_counts())
    nominal = bottleneck.bits(code)
    if isinstance(code, SparseCode):
        unused = int((code.indices < 0).sum())
        assert (unused > 0) >= name.startswith("variable")
        nominal -= unused * (bottleneck.config.coefficient_bits or 32)
    else:
        assert torch.equal(again.indices, code.indices) and again.levels == code.levels == bottleneck.levels
    assert nominal / 8 - 1e-6 <= len(data) - 37 <= nominal / 8 + 2


def test_ordered_codes_come_back_in_their_order_and_sets_by_magnitude():
    code = build("depth").encode(latents())
    again = build("depth").unpack(build("depth").pack(code))
    assert torch.equal(again.indices, code.indices) and torch.equal(again.coefficients, code.coefficients)
    for name in ("float", "variable-shared"):
        again = build(name).unpack(build(name).pack(build(name).encode(latents())))
        assert (again.coefficients.abs().diff(dim=-1) <= 0).all()
        assert ((again.indices[..., 1:] < 0) | (again.indices[..., :-1] >= 0)).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["float", "depth"])
def test_the_order_of_slots_does_not_change_what_is_decoded(name):
    bottleneck = build(name)
    code = bottleneck.encode(latents(8))
    order = torch.rand(code.indices.shape, generator=torch.Generator().manual_seed(1)).argsort(dim=-1)
    shuffled = replace(code, indices=code.indices.gather(-1, order), coefficients=code.coefficients.gather(-1, order))
    assert torch.equal(bottleneck.decode(shuffled), bottleneck.decode(code))
    sums = [
        synthesize(c.indices.flatten(0, 2), c.coefficients.flatten(0, 2), bottleneck.dictionary)
        for c in (code, shuffled)
    ]
    assert not torch.equal(*sums)  # the plain sum does depend on it


@torch.no_grad()
def test_truncated_codes_and_other_coefficient_bits_say_so_themselves():
    bottleneck = build("depth")
    code = bottleneck.truncate(bottleneck.encode(latents()), 2)
    data = bottleneck.pack(code)
    assert len(data) - 37 == pytest.approx(3 * 70 * bottleneck.site_bits(2) / 8, abs=2)
    expected = bottleneck.decode(code)
    for bits in (7, 3, None):  # what the reader is set to makes no difference
        bottleneck.set_coefficient_bits(bits)
        again = bottleneck.unpack(data)
        assert again.sparsity == 2 and torch.equal(bottleneck.decode(again), expected)
    bottleneck.set_coefficient_bits(7)
    floats = code.truncate(2, bottleneck.dictionary)
    with pytest.raises(ValueError, match="points of the quantiser with 7 bits"):
        bottleneck.pack(floats)


@torch.no_grad()
def test_the_first_stages_of_residual_vq_are_a_code():
    bottleneck = build("residual_vq")
    code = bottleneck.encode(latents())
    first = IndexCode(code.indices[..., :2].contiguous(), code.levels[:2], code.latent_size)
    again = bottleneck.unpack(bottleneck.pack(first))
    assert torch.equal(bottleneck.decode(again), bottleneck.decode(first)) and again.image_size is None


def test_an_empty_batch_is_a_code():
    bottleneck = build("depth")
    code = bottleneck.encode(latents())
    none = replace(code, indices=code.indices[:0], coefficients=code.coefficients[:0])
    assert bottleneck.unpack(bottleneck.pack(none)).indices.shape == (0, 7, 10, 4)


@pytest.mark.parametrize("name", MAKE)
def test_only_the_same_weights_read_it(name, tmp_path):
    bottleneck = build(name)
    data = bottleneck.pack(bottleneck.encode(latents()))
    bottleneck.save_pretrained(tmp_path)
    loaded = type(bottleneck).from_pretrained(tmp_path)
    assert torch.equal(loaded.unpack(data).indices, bottleneck.unpack(data).indices)
    for state in ("counts", "sums", "scale_steps"):  # decoding does not read them
        if hasattr(loaded, state):
            getattr(loaded, state).add_(1)
    loaded.unpack(data)
    weight = next(
        (getattr(loaded, key) for key in ("dictionary", "codebook", "points") if hasattr(loaded, key)),
        loaded.latent_shift,
    )
    with torch.no_grad():
        weight.flatten()[-1] += 1e-3
    with pytest.raises(ValueError, match="of one with other weights"):
        loaded.unpack(data)


def test_the_scaling_of_coefficients_is_part_of_the_fingerprint():
    data = build("depth").pack(build("depth").encode(latents()))
    other = build("shared")
    other.load_state_dict(build("depth").state_dict())
    with pytest.raises(ValueError, match="of one with other weights"):
        other.unpack(data)


def test_damaged_bytes_are_refused():
    bottleneck = build("vq")
    data = bottleneck.pack(bottleneck.encode(latents()))
    for wrong in (data[:10], data[:-1], data + b"x", b"PNG" + data, data[:40] + b"\x00" + data[41:]):
        with pytest.raises(ValueError, match="cut off"):
            bottleneck.unpack(wrong)


def test_codes_of_other_bottlenecks_are_not_packed():
    sparse, index = build("float"), build("vq")
    with pytest.raises(ValueError, match="SparseCode of at most 4 out of 50 atoms"):
        sparse.pack(index.encode(latents()))
    with pytest.raises(ValueError, match="`code` must have slots of levels"):
        index.pack(sparse.encode(latents()))
    with pytest.raises(ValueError, match="`code` must have slots of levels"):
        index.pack(build("residual_vq").encode(latents()))
    code = sparse.encode(latents())
    with pytest.raises(ValueError, match="8 × 10 sites"):
        sparse.pack(replace(code, latent_size=(8, 10)))
    with pytest.raises(ValueError, match="got Tensor"):
        sparse.pack(latents())
    wide = SparseCode(torch.arange(5).expand(1, 1, 1, 5), torch.ones(1, 1, 1, 5), 50, (1, 1))
    with pytest.raises(ValueError, match="SparseCode of at most 4 out of 50 atoms"):
        sparse.pack(wide)


def test_no_bottleneck_has_no_bytes():
    for call in (IdentityBottleneck(6).pack, IdentityBottleneck(6).unpack):
        with pytest.raises(ValueError, match="has no code"):
            call(None)
    assert IdentityBottleneck(6).levels == () and DictionaryBottleneck(6, 8, 2).levels == (8, 8)


@torch.no_grad()
def test_images_of_an_autoencoder_come_back(tmp_path):
    torch.manual_seed(0)
    config = {"num_atoms": 40, "sparsity": 3, "coefficient_bits": 6}
    model = AutoencoderDL(block_out_channels=(8, 8), residual_channels=4, layers_per_block=1, bottleneck_config=config)
    images = torch.rand(2, 3, 21, 18) * 2 - 1
    code = model.eval().encode_to_code(images)
    again = model.bottleneck.unpack(model.bottleneck.pack(code))
    sample = model.decode_from_code(again).sample
    assert sample.shape == images.shape and torch.equal(sample, model.decode_from_code(code).sample)
    model.save_pretrained(tmp_path)
    half = AutoencoderDL.from_pretrained(tmp_path, dtype=torch.float16)  # its bottleneck stays in float32
    assert torch.equal(half.bottleneck.unpack(model.bottleneck.pack(code)).indices, code.indices)


def crafted(bottleneck, payload=b"", **changes):
    """A file of this bottleneck whose checksum fits, with a header of anybody's."""
    header = unpack_container(bottleneck.pack(bottleneck.encode(latents(1, height=2, width=3))))[0]
    return pack_container(replace(header, **changes), payload)


def peak_memory(call):
    """Bytes of numpy and Python that a call holds at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MAKE)
def test_a_header_alone_takes_no_memory(name):
    bottleneck = build(name)

    def refuse():
        for size in ((2**15, 2**15), (2**32 - 1, 2**32 - 1), (2000, 2000)):
            for batch in (0, 1, 2**32 - 1):
                if (batch, size) != (0, (2000, 2000)):
                    with pytest.raises(ValueError, match="`data` must have|`data` must hold at most"):
                        bottleneck.unpack(crafted(bottleneck, batch=batch, latent_size=size))

    assert peak_memory(refuse) < 2**20


def test_slots_of_zero_bits_and_one_codeword_are_bounded():
    dictionary, vq, fsq = build("float"), VectorQuantizerBottleneck(6, num_codewords=1), build("fsq")
    for slots in (5, 65535):
        with pytest.raises(ValueError, match=f"`data` must have 1 to 4 slots a site .* names {slots}"):
            dictionary.unpack(crafted(dictionary, slots=slots))
    for slots in (1, 3, 5):  # not even the first slots of its codes are codes
        with pytest.raises(ValueError, match=f"`data` must have 4 slots a site .* names {slots}"):
            fsq.unpack(crafted(fsq, slots=slots))
    data = bytearray(dictionary.pack(dictionary.encode(latents())))
    data[14:22] = struct.pack("<2I", 2**14, 2**14)
    data[30:32] = b"\0\0"
    data[33:37] = struct.pack("<I", zlib.crc32(data[37:], zlib.crc32(data[:33])))
    with pytest.raises(ValueError, match="`slots` must be an integer from 1"):
        dictionary.unpack(bytes(data))
    for size in ((2**15, 2**15), (257, 256)):
        with pytest.raises(ValueError, match="at most 65536 sites, its header names .*: raise `max_sites`"):
            vq.unpack(crafted(vq, latent_size=size))
    with pytest.raises(ValueError, match="at most 16777216 sites, its header names 16781312: raise `max_sites`"):
        build("vq").unpack(crafted(build("vq"), latent_size=(4097, 4096)))
    few = crafted(vq, latent_size=(20, 30))
    assert vq.unpack(few, max_sites=600).indices.shape == (1, 20, 30, 1)  # a code of no bits
    with pytest.raises(ValueError, match="at most 599 sites, its header names 600"):
        vq.unpack(few, max_sites=599)


def test_files_of_the_first_version_are_read():
    bottleneck = build("depth")
    code = bottleneck.encode(latents())
    data = bytearray(bottleneck.pack(code))
    data[4] = 1
    data[33:37] = struct.pack("<I", zlib.crc32(data[37:], zlib.crc32(data[:33])))
    assert bottleneck.unpack(bytes(data)) == code


def test_kinds_are_told_apart():
    bottleneck = build("vq")
    for kind in ("sparse", "patch"):
        with pytest.raises(ValueError, match=f"hold the index code of a VectorQuantizerBottleneck, .* kind '{kind}'"):
            bottleneck.unpack(crafted(bottleneck, kind=kind))


def test_float_coefficients_of_a_file_are_finite():
    bottleneck = build("float")
    code = bottleneck.encode(latents(1, height=1, width=1))
    data = bottleneck.pack(code)
    header, payload = unpack_container(data)
    for value in (float("nan"), float("inf"), float("-inf")):
        wrong = payload[:-4] + struct.pack(">f", value)
        with pytest.raises(ValueError, match="finite coefficients"):
            bottleneck.unpack(pack_container(header, wrong))


@pytest.mark.parametrize("name", MAKE)
def test_what_is_no_code_is_refused_by_every_verb(name):
    bottleneck = build(name)
    for wrong in (torch.zeros(1), None, "code", [1, 2], {"indices": 0}, torch.zeros(1, 2, 2, 1, dtype=torch.int64)):
        for call in (bottleneck.decode, bottleneck.pack):
            with pytest.raises(ValueError, match="`code` must"):
                call(wrong)
    for wrong in (None, torch.zeros(1), "DLBC", 5):
        with pytest.raises(ValueError, match="`data` must be bytes"):
            bottleneck.unpack(wrong)
    if name in DICTIONARIES:
        with pytest.raises(ValueError, match="`code` must be a SparseCode"):
            bottleneck.truncate(torch.zeros(1), 1)


@pytest.mark.parametrize("name", MAKE)
def test_sites_and_values_of_codes_are_checked_by_every_verb(name):
    bottleneck = build(name, 2)
    code = bottleneck.encode(latents())
    cases = [(replace(code, latent_size=(9, 10)), "5 × 5 sites")]
    for value in (bottleneck.num_symbols, 2**40, -2, -(2**40)):
        indices = code.indices.clone()
        indices[-1, 0, 0, 0] = value
        cases.append((replace(code, indices=indices), "indices"))
    if isinstance(code, SparseCode):
        for value in (float("nan"), float("inf")):
            coefficients = code.coefficients.clone()
            coefficients[-1, 0, 0, 0] = value
            cases.append((replace(code, coefficients=coefficients), "finite"))
    for wrong, message in cases:
        for call in (bottleneck.decode, bottleneck.pack):
            with pytest.raises(ValueError, match=message):
                call(wrong)


# the library asks a tensor whether its codebook is set
@pytest.mark.parametrize("name", [name for name in MAKE if name != "cosine_vq"])
def test_coding_compiles_without_graph_breaks(name):
    bottleneck, z = build(name), latents()
    code = bottleneck.encode(z)
    torch._dynamo.reset()
    encode = torch.compile(bottleneck.encode, fullgraph=True, backend="eager")
    decode = torch.compile(bottleneck.decode, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert encode(z) == code
        assert torch.equal(decode(code), bottleneck.decode(code))


def test_an_autoencoder_decodes_to_the_size_that_the_code_says():
    model = AutoencoderDL(
        block_out_channels=(8, 8),
        residual_channels=4,
        layers_per_block=1,
        bottleneck_config={"num_atoms": 8, "sparsity": 2},
    )
    code = model.eval().encode_to_code(torch.rand(1, 3, 21, 18) * 2 - 1)
    for size in ((23, 18), (20, 18), (4000, 4000), (21, 16)):
        with pytest.raises(ValueError, match=r"`code` must have the latents of an image of \(\d+, \d+\)"):
            model.decode_from_code(replace(code, image_size=size))
    for wrong in (torch.zeros(1), None):
        with pytest.raises(ValueError, match="`code` must be a SparseCode"):
            model.decode_from_code(wrong)
