"""
Images as people hand them to pipelines: every form of one picture gives one tensor, and what has no known range is
refused.
"""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    DLRestorationPipeline,
    LatentDLPipeline,
    ModelBasedVQCodec,
)
from diffusers_lasers.utils.image_inputs import preprocess_images, preprocess_masks


LEVELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
GREY = LEVELS[..., 0]
EXPECTED = torch.from_numpy(LEVELS).permute(2, 0, 1)[None] / 127.5 - 1
FORMS = {
    "picture": Image.fromarray(LEVELS),
    "list": [Image.fromarray(LEVELS)],
    "uint8 array": LEVELS,
    "uint8 batch": LEVELS[None],
    "float array": LEVELS / 255,
    "float32 batch": (LEVELS[None] / 255).astype(np.float32),
    "uint16 array": LEVELS.astype(np.uint16) * 257,
    "uint8 tensor": torch.from_numpy(LEVELS).permute(2, 0, 1),
    "uint8 batch of tensors": torch.from_numpy(LEVELS).permute(2, 0, 1)[None],
    "float tensor": torch.from_numpy(LEVELS).permute(2, 0, 1) / 255,
    "signed tensor": EXPECTED,
    "signed half": EXPECTED.double(),
    "list of tensors": [EXPECTED[0]],
    "opaque": Image.fromarray(np.dstack([LEVELS, np.full_like(GREY, 255)]), "RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_is_one_tensor(form):
    found = preprocess_images(FORMS[form])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, EXPECTED, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "form", ["picture", "list", "float array", "float32 batch", "float tensor", "list of tensors"]
)
def test_where_diffusers_processor_is_right_it_gives_the_same(form):
    given = FORMS[form]
    if form == "list of tensors":
        given = [(one + 1) / 2 for one in given]
    reference = VaeImageProcessor(do_resize=False).preprocess(given)
    torch.testing.assert_close(preprocess_images(given), reference.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_of_a_picture_becomes_rgb(mode):
    from diffusers_lasers.utils.image_sources import to_rgb

    picture = Image.fromarray(LEVELS)
    picture = Image.merge("LAB", picture.split()) if mode == "LAB" else picture.convert(mode)
    found = preprocess_images(picture)
    reference = torch.from_numpy(np.array(to_rgb(picture, "a picture"))).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-6)
    assert preprocess_images(picture, channels=1).shape == (1, 1, 16, 24)


def test_grey_forms_are_grey_in_all_channels():
    expected = (torch.from_numpy(GREY) / 127.5 - 1).expand(1, 3, -1, -1)
    for form in (
        Image.fromarray(GREY),
        GREY,
        GREY[..., None],
        GREY / 255,
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
    ):
        torch.testing.assert_close(preprocess_images(form), expected, rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (LEVELS.astype(np.float32), r"`image` must have values in \[0, 1\] .* got 0 to 255"),
        (torch.from_numpy(LEVELS).permute(2, 0, 1).float(), r"`image` must have values in \[0, 1\] .* got 0 to 255"),
        (LEVELS.astype(np.int64), "got int64"),
        (torch.from_numpy(LEVELS).permute(2, 0, 1).long(), "got torch.int64"),
        (EXPECTED * 1.5, "to 1.5"),
        (EXPECTED * float("nan"), "got nan"),
        (EXPECTED[:, :2], r"of 3 channels or grey, got shape \(1, 2, 16, 24\)"),
        (EXPECTED[:, [0, 1, 2, 0]], "of 3 channels or grey"),
        (np.zeros((2, 2, 2, 2, 3)), "got shape"),
        (np.zeros((0, 3, 3)), "got shape"),
        ([], "at least one image"),
        ([EXPECTED, EXPECTED[..., :8]], "must be of one size, got 16 × 8, 16 × 24"),
        ("a.png", "got str"),
        (None, "got NoneType"),
        (np.array([["a"]]), "`image`"),
    ],
)
def test_what_has_no_known_range_or_shape_is_refused_in_one_sentence(image, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        preprocess_images(image)
    assert "\n" not in str(error.value)


def test_masks():
    mask = GREY > 100
    expected = torch.from_numpy(mask).float()[None, None]
    levels = mask.astype(np.uint8) * 255
    for form in (
        *(mask, levels, levels / 255, levels[None], levels[..., None], torch.from_numpy(levels), expected, expected[0],
            Image.fromarray(levels)),
        *(Image.fromarray(levels).convert(mode) for mode in ("1", "RGB", "P")),
    ):  # fmt: skip
        assert torch.equal(preprocess_masks(form), expected)
    with pytest.raises(ValueError, match="`mask_image` must have values in"):
        preprocess_masks(levels.astype(np.float32))
    with pytest.raises(ValueError, match="`mask_image`"):
        preprocess_masks(-expected)


def latent_pipeline():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "scheduler"))
    bottleneck = DictionaryBottleneck(4, num_atoms=16, sparsity=4).eval()
    return LatentDLPipeline(vae=vae, unet=unet, bottleneck=bottleneck, requires_safety_checker=False, **absent)


def test_pipelines_take_every_form_alike():
    """
    An array of uint8 gave reconstructions of mean error 0.42, and a picture of mode L or RGBA a convolution's error.
    """
    torch.manual_seed(0)
    vae = AutoencoderDL(
        block_out_channels=(8, 8), residual_channels=4, latent_channels=4, bottleneck_config={"num_atoms": 16}
    )
    restore, latent = DLRestorationPipeline(vae.eval()), latent_pipeline()
    calls = (
        lambda image: restore(image, output_type="pt").images,
        lambda image: latent.reconstruct(image, output_type="pt").images,
        lambda image: latent.decode(latent.encode(image), output_type="pt"),
    )
    for call in calls:
        expected = call(EXPECTED)
        for form, given in FORMS.items():
            torch.testing.assert_close(call(given), expected, rtol=1e-3, atol=1e-4, msg=form)
        for mode in ("L", "LA", "P", "1"):
            assert call(Image.fromarray(LEVELS).convert(mode)).shape == expected.shape
        with pytest.raises(ValueError, match="`image` must have values"):
            call(LEVELS.astype(np.float32))


def test_a_grey_autoencoder_restores_grey_pictures():
    vae = AutoencoderDL(
        1, 1, block_out_channels=(8, 8), residual_channels=4, latent_channels=4, bottleneck_config={"num_atoms": 16}
    )
    restore = DLRestorationPipeline(vae.eval())
    for form in (Image.fromarray(LEVELS), Image.fromarray(GREY), GREY, torch.from_numpy(GREY)):
        assert restore(form, output_type="pt").images.shape == (1, 1, 16, 24)


def test_a_codec_is_fitted_to_every_form_alike_and_to_what_it_encodes():
    pytest.importorskip("faiss")

    def fit(images):
        codec = ModelBasedVQCodec("PQ", bits=(4, 4, 4), patch_size=2, codebook_bits=4)
        return codec.fit(images, iterations=2, threads=1, progress=False)

    expected = fit(EXPECTED)
    forms = (
        [Image.fromarray(LEVELS)],
        Image.fromarray(LEVELS),
        LEVELS[None],
        [LEVELS / 255],
        torch.from_numpy(LEVELS).permute(2, 0, 1)[None],
    )
    for form in forms:  # fmt: skip
        found = fit(form)
        for one, other in zip(found.codebooks.values(), expected.codebooks.values()):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    codec = ModelBasedVQCodec("PQ", bits=(4, 4, 4), patch_size=2, codebook_bits=4)
    for images in (
        (EXPECTED + 1) * 127.5,
        [(EXPECTED[0] + 1) * 127.5],
        [LEVELS.astype(np.float32)],
        [EXPECTED[0].permute(1, 2, 0).numpy()],
    ):
        with pytest.raises(ValueError, match="`images` must"):  # fmt: skip
            codec.fit(images, progress=False)
        assert not codec.fitted.any()
