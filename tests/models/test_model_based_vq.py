"""The patch codec: against faiss, its rates, its order, round trips, sizes, and what it refuses."""

import copy
import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import (
    AutoencoderDL,
    FSQBottleneck,
    IndexCode,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
    ModelBasedVQCodecOutput,
)
from diffusers_lasers.coding.container import pack_container, unpack_container
from diffusers_lasers.functional import codebook_order, latents_to_signals, rgb_to_ycbcr
from diffusers_lasers.utils.image_decoding import UnreadableImageError


NOTATIONS = ["VQ-{6-4-4}", "PQ-{16-4-4}", "OPQ-{16-4-4}", "RQ-{12-4-4}"]


def photos(count=2, size=(40, 44)):
    """Smooth pictures with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return (smooth + 0.1 * torch.randn(count, 3, *size, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def codecs():
    made = {}
    for notation in NOTATIONS:
        made[notation] = ModelBasedVQCodec.from_notation(notation, patch_size=4, codebook_bits=4)
        made[notation].fit(photos(), max_patches=3000, iterations=8, threads=2, progress=False)
    return made


@pytest.fixture(params=NOTATIONS)
def codec(request, codecs):
    return codecs[request.param]


def psnr(first, second):
    return -10 * float(torch.log10(((first - second) / 2).square().mean()))


def test_codes_and_reconstruction(codec):
    images = photos()
    output = codec.encode(images)
    assert output.codes.shape == (2, len(codec.slot_bits), 10, 11) and output.image_size == (40, 44)
    sample = codec.decode(output.codes, output.image_size).sample
    assert sample.shape == images.shape and psnr(sample, images) > 19
    torch.testing.assert_close(codec(images).sample, sample)
    assert torch.equal(codec.encode(images[1:]).codes, output.codes[1:])  # nothing of the batch enters


@pytest.mark.parametrize("notation", NOTATIONS[:3])
def test_codes_decode_to_what_faiss_decodes(codecs, notation):
    codec, images = codecs[notation], photos()
    codes = codec.encode(images).codes.permute(0, 2, 3, 1).flatten(0, 2)
    signals, first = rgb_to_ycbcr(images), 0
    for number, channel in enumerate(("y", "cb", "cr")):
        book = getattr(codec, f"codebooks_{channel}")
        y = latents_to_signals(signals[:, number : number + 1], 4)
        if hasattr(codec, f"rotation_{channel}"):
            y = y @ getattr(codec, f"rotation_{channel}").t()
        slots, words, width = book.shape
        for slot in range(slots):
            flat = faiss.IndexFlatL2(width)
            flat.add(book[slot].numpy())
            part = np.ascontiguousarray(y[:, slot * width : (slot + 1) * width].numpy())
            distances, nearest = flat.search(part, 1)
            ours = book[slot][codes[:, first + slot]].numpy()
            np.testing.assert_allclose(np.square(ours - part).sum(1), distances[:, 0], rtol=1e-3, atol=1e-4)
            assert (codes[:, first + slot].numpy() == nearest[:, 0]).mean() > 0.999
        first += slots


def test_codebooks_stand_in_the_order_of_their_principal_component(codec):
    for channel in ("y", "cb", "cr"):
        for book in getattr(codec, f"codebooks_{channel}"):
            assert torch.equal(codebook_order(book), torch.arange(len(book)))


def test_soft_decoding_of_one_hot_is_decoding_and_is_differentiable(codec):
    output = codec.encode(photos())
    hot = torch.nn.functional.one_hot(output.codes, codec.num_codewords).movedim(-1, 2).float().requires_grad_()
    soft = codec.decode_soft(hot, output.image_size).sample
    torch.testing.assert_close(soft, codec.decode(output.codes, output.image_size).sample, rtol=0, atol=1e-5)
    direction = torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
    (soft * direction).sum().backward()
    with torch.no_grad():
        step = torch.randn(hot.shape, generator=torch.Generator().manual_seed(2))
        change = codec.decode_soft(hot + step, output.image_size).sample - soft  # it is linear
    expected, ours = (change * direction).sum(), (hot.grad * step).sum()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-2)


def test_indices_and_numbers(codec):
    codes = codec.encode(photos()).codes
    latents = codec.codes_to_latents(codes)
    assert latents.min() >= -1 and latents.max() <= 1
    assert torch.equal(codec.latents_to_codes(latents), codes)
    assert torch.equal(
        codec.latents_to_codes(torch.full_like(latents, 7.0))[0, :, 0, 0], 2 ** torch.tensor(codec.slot_bits) - 1
    )
    assert (codec.latents_to_codes(torch.full_like(latents, -7.0)) == 0).all()


def test_rates():
    codec = ModelBasedVQCodec.from_notation("OPQ-{32-8-8}")
    assert codec.slot_bits == (8,) * 6 and codec.num_codewords == 256 and codec.notation == "OPQ-{32-8-8}"
    assert codec.compression_ratio == 32 and codec.bits_per_pixel(512, 512) == 0.75
    assert ModelBasedVQCodec.from_notation("VQ-{8-8-8}").compression_ratio == 64
    assert codec.bits_per_pixel(9, 9) == 4 * 48 / 81
    codes = torch.zeros(1, 6, 2, 2, dtype=torch.int64)
    assert codec.entropy_bits_per_pixel(codes) == 0
    codes[0, 0] = torch.tensor([[0, 1], [2, 3]])
    assert codec.entropy_bits_per_pixel(codes) == pytest.approx(2 / 64)


def test_bytes(codec):
    output = codec.encode(photos())
    assert isinstance(output, ModelBasedVQCodecOutput)
    data = codec.pack(output.codes, output.image_size)
    assert len(data) == 37 + -(-2 * 110 * sum(codec.config.bits) // 8)
    back = codec.unpack(data)
    assert isinstance(back, IndexCode) and torch.equal(back.indices.permute(0, 3, 1, 2), output.codes)
    assert back.image_size == (40, 44)
    changed = bytearray(data)
    changed[40] ^= 1
    for wrong in (data[:-1], data[:10], bytes(changed), b"", data + b"x"):
        with pytest.raises(ValueError, match="`data`"):
            codec.unpack(wrong)
    with pytest.raises(ValueError, match="of another"):
        ModelBasedVQCodec.from_notation("VQ-{8-8-8}").unpack(data)
    other = copy.deepcopy(codec)
    assert other.half().unpack(data) == back
    other.codebooks_cb[0, :2] = other.codebooks_cb[0, :2].flip(0)  # the same codewords in another order
    with pytest.raises(ValueError, match="of another"):
        other.unpack(data)
    with pytest.raises(ValueError, match="`image_size`"):
        codec.pack(output.codes, (400, 44))


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 8), (33, 2)])
def test_any_size(codec, size):
    images = photos(1)[..., : size[0], : size[1]]
    output = codec.encode(images)
    assert codec.decode(output.codes, output.image_size).sample.shape == images.shape


def test_codec_and_fsq_load_without_the_packages_that_fit_or_check_them(codecs, tmp_path):
    FSQBottleneck(4, (5, 4, 7)).save_pretrained(tmp_path / "fsq")
    codec = codecs["OPQ-{16-4-4}"]
    codec.save_pretrained(tmp_path / "codec")
    torch.save(
        {"images": photos(), "codes": codec.encode(photos()).codes, "sample": codec(photos()).sample},
        tmp_path / "x.pt",
    )
    script = f"""
import sys, torch
sys.modules["faiss"] = sys.modules["vector_quantize_pytorch"] = None
from diffusers_lasers import FSQBottleneck, ModelBasedVQCodec
codec, saved = ModelBasedVQCodec.from_pretrained({str(tmp_path / "codec")!r}), torch.load({str(tmp_path / "x.pt")!r})
assert torch.equal(codec.encode(saved["images"]).codes, saved["codes"])
torch.testing.assert_close(codec(saved["images"]).sample, saved["sample"], rtol=0, atol=1e-6)
half = ModelBasedVQCodec.from_pretrained({str(tmp_path / "codec")!r}, torch_dtype=torch.bfloat16)
assert half(saved["images"].bfloat16()).sample.dtype == torch.bfloat16
fsq = FSQBottleneck.from_pretrained({str(tmp_path / "fsq")!r})
assert fsq.encode(torch.zeros(1, 4, 2, 2)).levels == (5, 4, 7)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_half_precision_is_close(codecs):
    codec = codecs["PQ-{16-4-4}"]
    other = ModelBasedVQCodec.from_config(codec.config)
    other.load_state_dict(codec.state_dict())
    assert psnr(other.half()(photos()).sample.float(), photos()) == pytest.approx(
        psnr(codec(photos()).sample, photos()), abs=0.05
    )


def test_an_unfitted_codec_is_built_saved_and_loaded_and_says_so(tmp_path):
    ModelBasedVQCodec.from_notation("RQ-{32-8-8}").save_pretrained(tmp_path)
    codec = ModelBasedVQCodec.from_pretrained(tmp_path)
    for call in (lambda: codec.encode(photos()), lambda: codec.decode(torch.zeros(1, 6, 1, 1, dtype=torch.int64))):
        with pytest.raises(ValueError, match=r"RQ-\{32-8-8\} codec is not fitted: call `fit`"):
            call()
    codec.fitted[1:] = True
    with pytest.raises(ValueError, match="fitted in part, y missing"):
        codec.encode(photos())


def test_fitting_takes_folders_pictures_and_data_sets(tmp_path):
    import datasets

    arrays = ((photos().permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    pictures = [Image.fromarray(array) for array in arrays]
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": pictures}, features=features)
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
    books = []
    for images in (str(tmp_path), tmp_path, pictures, list(arrays), table, tensors):
        codec = ModelBasedVQCodec.from_notation("VQ-{4-2-2}", patch_size=4)
        books.append(codec.fit(images, stride=3, iterations=4, threads=1, progress=False).codebooks_y)
    assert all(torch.equal(book, books[0]) for book in books)


def test_a_damaged_cell_of_a_data_set_is_named_and_other_columns_are_left_alone():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    whole, broken = Image.new("RGB", (16, 16)), {"bytes": b"damaged", "path": None}
    table = datasets.Dataset.from_dict({"image": [whole, broken], "mask": [broken, whole]}, features=features)
    codec = ModelBasedVQCodec.from_notation("VQ-{4-2-2}", patch_size=4)
    with pytest.raises(UnreadableImageError, match="'image 1' cannot be read"):
        codec.fit(table, progress=False)


def test_a_failed_fit_changes_nothing(codecs):
    codec = ModelBasedVQCodec.from_notation("VQ-{4-4-16}", patch_size=4)
    with pytest.raises(ValueError, match="at least one signal for each of 65536"):
        codec.fit(photos(1), progress=False)
    assert not codec.fitted.any() and codec.codebooks_y.abs().sum() == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"quantizer": "LSQ"}, "`quantizer` must be one of"),
        ({"bits": (8, 8)}, "`bits` must be a list of 3 integers from 1"),
        ({"bits": (8, 8, 0)}, "`bits` must be a list of 3 integers from 1"),
        ({"bits": (12, 8, 8)}, "`bits` must be multiples of `codebook_bits`, 8"),
        ({"bits": (24, 8, 8)}, "must divide the 64 pixels"),
        ({"quantizer": "VQ", "bits": (17, 8, 8)}, "`bits` must be at most 16"),
        ({"patch_size": 0}, "`patch_size`"),
        ({"codebook_bits": 13}, "`codebook_bits`"),
        ({"beam": 0}, "`beam`"),
    ],
)
def test_what_is_no_codec_is_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelBasedVQCodec(**arguments)


def test_what_is_no_notation_is_named():
    for wrong in ("OPQ-32-8-8", "LSQ-{8-8-8}", "OPQ-{32-8}"):
        with pytest.raises(ValueError, match="`notation` must look like"):
            ModelBasedVQCodec.from_notation(wrong)


def test_bad_images_and_codes_are_named(codecs):
    codec = codecs["OPQ-{16-4-4}"]
    for wrong in (torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="`pixel_values` must be floating point"):
            codec.encode(wrong)
    for value in (float("nan"), float("inf"), 2.0):
        with pytest.raises(ValueError, match=r"`pixel_values` must lie in \[-1, 1\]"):
            codec.encode(torch.full((1, 3, 8, 8), value))
    for wrong in (torch.zeros(1, 5, 2, 2, dtype=torch.int64), torch.zeros(1, 6, 2, 2)):
        with pytest.raises(ValueError, match="`codes` must be int64"):
            codec.decode(wrong)
    for value in (-1, 16):
        with pytest.raises(ValueError, match="`codes` must be from 0"):
            codec.decode(torch.full((1, 6, 2, 2), value))
    with pytest.raises(ValueError, match="`probabilities`"):
        codec.decode_soft(torch.zeros(1, 6, 9, 2, 2))
    with pytest.raises(ValueError, match="`image_size`"):
        codec.decode(torch.zeros(1, 6, 2, 2, dtype=torch.int64), (90, 8))


@pytest.mark.parametrize("kind", ["random", "norm", "spectral", "salesman", "pca"])
def test_reordering_renames_codes_and_changes_no_image(codecs, kind, tmp_path):
    codecs["PQ-{16-4-4}"].save_pretrained(tmp_path)
    codec = ModelBasedVQCodec.from_pretrained(tmp_path)
    before, sample = codec.encode(photos()).codes, codec(photos()).sample
    assert codec.reorder(kind, torch.Generator().manual_seed(0)) is codec
    after = codec.encode(photos()).codes
    torch.testing.assert_close(codec(photos()).sample, sample)
    assert torch.equal(before, after) == (kind == "pca")  # what fit left
    with pytest.raises(ValueError, match="`kind` must be one of"):
        codec.reorder("alphabetical")
    with pytest.raises(ValueError, match="not fitted"):
        ModelBasedVQCodec.from_notation("VQ-{4-4-4}").reorder()


@pytest.mark.parametrize("notation", ["VQ-{6-4-4}", "OPQ-{16-4-4}", "RQ-{12-4-4}"])
def test_a_photograph_of_twelve_megapixels(codecs, notation):
    codec = codecs[notation]
    tile = photos(1, (500, 400))
    image = tile.repeat(1, 1, 8, 8)[..., :3999, :3001]  # patches of four pixels: the tiles repeat exactly
    output = codec.encode(image)
    assert output.codes.shape[-2:] == (1000, 751)
    once = codec.encode(tile).codes
    assert (output.codes[..., :125, :100] == once).float().mean() > 0.9999  # ties of sums in other blocks
    sample = codec.decode(output.codes, output.image_size).sample
    assert sample.shape == image.shape
    assert abs(psnr(sample[..., :500, :400], tile) - psnr(codec(tile).sample, tile)) < 0.01
    unpacked = codec.unpack(codec.pack(output.codes, output.image_size))
    assert torch.equal(unpacked.indices.permute(0, 3, 1, 2), output.codes) and unpacked.image_size == (3999, 3001)


def test_soft_decoding_is_a_float32_island(codecs):
    codec = codecs["OPQ-{16-4-4}"]
    soft = torch.randn(1, 6, 16, 3, 3).softmax(dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = codec.decode_soft(soft).sample, codec.decode(soft.argmax(dim=2)).sample
    torch.testing.assert_close(inside[0], codec.decode_soft(soft).sample, atol=0, rtol=0)
    torch.testing.assert_close(inside[1], codec.decode(soft.argmax(dim=2)).sample, atol=0, rtol=0)


def test_no_changed_byte_of_a_file_is_taken(codec):
    output = codec.encode(photos(1, size=(9, 14)))
    data = codec.pack(output.codes, output.image_size)
    for position in range(len(data)):
        for difference in (1, 2, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= difference
            with pytest.raises(ValueError, match="`data` must be"):
                codec.unpack(bytes(changed))


def test_crafted_files_are_refused_before_memory_is_taken(codec):
    output = codec.encode(photos(1, size=(9, 14)))
    data = codec.pack(output.codes, output.image_size)
    header, payload = unpack_container(data)
    assert header.kind == "patch" and header.latent_size == (3, 4) and header.image_size == (9, 14)
    for change, message in [
        ({"kind": "index"}, "it holds those of a bottleneck"),
        ({"slots": header.slots + 1}, "its header names"),
        ({"image_size": (8, 14)}, "as many patches as its image needs"),
        ({"image_size": (4000, 4000)}, "as many patches as its image needs"),
        ({"image_size": None}, "as many patches as its image needs"),
        ({"batch": 2}, "`data` must have"),
        ({"batch": 0}, "`data` must have 0 bytes"),
        ({"batch": 2**32 - 1}, "at most 268435456 pixels, its header names .*: raise `max_pixels`"),
        ({"latent_size": (2**30, 2**30), "image_size": (2**32 - 1, 2**32 - 1)}, "at most 268435456 pixels"),
        (
            {"batch": 0, "latent_size": (2**30, 2**30), "image_size": (2**32 - 1, 2**32 - 1)},
            "at most 268435456 pixels",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            codec.unpack(pack_container(replace(header, **change), payload))
    with pytest.raises(ValueError, match="at most 191 pixels, its header names 192"):
        codec.unpack(data, max_pixels=191)
    assert torch.equal(codec.unpack(data, max_pixels=192).indices.permute(0, 3, 1, 2), output.codes)
    with pytest.raises(ValueError, match="MBVQ1 of older patch codecs has none"):
        codec.unpack(b"MBVQ1" + data)
    for wrong in (None, "DLBC", torch.zeros(1)):
        with pytest.raises(ValueError, match="`data` must be bytes"):
            codec.unpack(wrong)


def test_what_is_no_code_or_no_size_is_refused(codec):
    codes = codec.encode(photos(1)).codes
    wrong = [None, [1], torch.zeros(1), codes.int(), codes[0], codes[:, :1], codes[..., :0], codes.unsqueeze(0)]
    wrong += [codes + 2**40, codes - 2**40]
    for value in wrong:
        for call in (codec.decode, codec.pack, codec.codes_to_latents, codec.entropy_bits_per_pixel):
            with pytest.raises(ValueError, match="`codes` must be"):
                call(value)
    for size in ((0, 0), (40, 45), (39.5, 44), "ab", 40, (40, 44, 3), (40, None), torch.zeros(2)):
        for call in (codec.decode, codec.pack):
            with pytest.raises(ValueError, match="`image_size` must be one that"):
                call(codes, size)


def test_indices_of_models_that_have_none_and_codes_that_are_none_are_refused(codec):
    with pytest.raises(ValueError, match="`codec` must be a ModelBasedVQCodec or an AutoencoderDL.*, got Linear"):
        ModelBasedLatentDiffusionPipeline(torch.nn.Linear(1, 1), None, None)
    shape = {"block_out_channels": (8, 8), "residual_channels": 4, "layers_per_block": 1}
    model = AutoencoderDL(**shape)
    for call in (lambda: model.index_layout, lambda: model.encode_indices(photos(1)), lambda: model.decode_indices(0)):
        with pytest.raises(ValueError, match="`bottleneck_type` must be 'vq' or 'residual_vq'.*, got 'dictionary'"):
            call()
    model = AutoencoderDL(
        **shape, bottleneck_type="residual_vq", bottleneck_config={"num_codewords": 8, "depth": 2}
    ).eval()
    codes = model.encode_indices(photos(1))
    assert model.decode_indices(codes).shape == (1, 3, 40, 44)
    for wrong in (None, torch.zeros(1), codes[0], codes[:, :1], codes.float()):
        with pytest.raises(ValueError, match=r"`codes` must be int64 of shape \(batch, 2, h, w\)"):
            model.decode_indices(wrong)
    with pytest.raises(ValueError, match="`code` must have indices from 0 to below its 8 symbols, got .* to 8"):
        model.decode_indices(torch.where(codes == codes.max(), 8, codes))


def test_coding_compiles_without_graph_breaks(codecs):
    for codec in map(copy.deepcopy, codecs.values()):
        codec._ready = False  # as just loaded
        images = photos()
        torch._dynamo.reset()
        encode = torch.compile(lambda x: codec.encode(x).codes, fullgraph=True, backend="eager")
        decode = torch.compile(lambda x: codec.decode(x, (40, 44)).sample, fullgraph=True, backend="eager")
        soft = torch.compile(lambda x: codec.decode_soft(x).sample, fullgraph=True, backend="eager")
        forward = torch.compile(lambda x: codec(x).sample, fullgraph=True, backend="eager")
        codes = encode(images)
        assert torch.equal(codes, codec.encode(images).codes)
        assert torch.equal(decode(codes), codec.decode(codes, (40, 44)).sample)
        assert torch.equal(forward(images), codec(images).sample)
        probabilities = torch.nn.functional.one_hot(codes, codec.num_codewords).movedim(-1, 2).float()
        torch.testing.assert_close(soft(probabilities), codec.decode(codes).sample)
