"""DLRestorationPipeline: tasks, masks, known pixels, saving, errors."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_lasers import AutoencoderDL, DLRestorationPipeline, DLRestorationPipelineOutput
from diffusers_lasers.functional.images import hide, upscale_bicubic


def pipeline(task, **arguments):
    torch.manual_seed(0)
    vae = AutoencoderDL(
        block_out_channels=(8, 8), residual_channels=4, latent_channels=4,
        bottleneck_config={"num_atoms": 16, "sparsity": 2}
    ).eval()  # fmt: skip
    return DLRestorationPipeline(vae, task=task, **arguments)


def pixels(side=(16, 16), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*side, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


def test_super_resolution_is_the_autoencoder_of_the_enlarged_image():
    restore = pipeline("super_resolution", scale=4)
    output = restore(Image.fromarray(pixels((7, 9))), output_type="pt")
    assert isinstance(output, DLRestorationPipelineOutput) and output.images.shape == (1, 3, 28, 36)
    with torch.no_grad():
        expected = restore.vae(upscale_bicubic(as_tensor(pixels((7, 9))), 4))
    torch.testing.assert_close(output.images, (expected.sample.clamp(-1, 1) + 1) / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.code.indices, expected.code.indices) and output.code.image_size == (28, 36)


def test_inpainting_keeps_known_pixels_exactly_when_asked():
    restore, image = pipeline("inpainting"), pixels()
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[3:9, 4:12] = 255
    pasted = np.asarray(restore(Image.fromarray(image), Image.fromarray(mask)).images[0])
    assert np.array_equal(pasted[mask == 0], image[mask == 0])
    assert not np.array_equal(pasted[mask > 0], image[mask > 0])
    whole = np.asarray(restore(Image.fromarray(image), Image.fromarray(mask), paste_known=False).images[0])
    assert not np.array_equal(whole[mask == 0], image[mask == 0])
    assert np.array_equal(whole[mask > 0], pasted[mask > 0])
    with torch.no_grad():
        hidden = hide(as_tensor(image), torch.from_numpy(mask / 255.0)[None, None])
        expected = (restore.vae(hidden).sample.clamp(-1, 1) + 1) / 2
    assert np.abs(whole / 255 - expected[0].permute(1, 2, 0).numpy()).max() < 0.003
    changed = image.copy()
    changed[mask > 0] = 0  # hidden pixels have no influence
    again = np.asarray(restore(Image.fromarray(changed), Image.fromarray(mask)).images[0])
    assert np.array_equal(again, pasted)


def test_batches_and_one_mask_for_all():
    restore = pipeline("inpainting")
    images = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    mask = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 6))
    together = restore(images, mask, output_type="np").images
    assert together.shape == (3, 16, 16, 3)
    for number, image in enumerate(images):
        np.testing.assert_allclose(restore(image, mask, output_type="np").images[0], together[number], atol=1e-5)
    np.testing.assert_allclose(restore(images, [mask] * 3, output_type="np", return_dict=False)[0], together)


@pytest.mark.parametrize("task", ["reconstruction", "super_resolution", "inpainting"])
def test_saves_and_loads_with_its_task(task, tmp_path):
    restore = pipeline(task, scale=2)
    restore.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers_lasers", "AutoencoderDL"]
    mask = Image.fromarray(np.eye(16, dtype=np.uint8) * 255) if task == "inpainting" else None
    expected = restore(Image.fromarray(pixels()), mask, output_type="np").images
    for loader in (DLRestorationPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert loaded.config.task == task and loaded.config.scale == 2
        assert np.array_equal(loaded(Image.fromarray(pixels()), mask, output_type="np").images, expected)


def test_errors():
    image, mask = Image.fromarray(pixels()), Image.fromarray(pixels()[..., 0])
    with pytest.raises(ValueError, match="`mask_image` must be given for the task 'inpainting'"):
        pipeline("inpainting")(image)
    with pytest.raises(ValueError, match="`mask_image` must be None for the task 'super_resolution'"):
        pipeline("super_resolution")(image, mask)
    with pytest.raises(ValueError, match=r"of \(16, 16\) pixels, got shape \(1, 1, 8, 8\)"):
        pipeline("inpainting")(image, mask.resize((8, 8)))
    with pytest.raises(ValueError, match=r"`mask_image` must be .* grey, of 1 channel, got shape \(1, 3, 16, 16\)"):
        pipeline("inpainting")(image, torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="`output_type` must be"):
        pipeline("reconstruction")(image, output_type="latent")
    with pytest.raises(ValueError, match="`task` must be one of"):
        pipeline("colorization")
    with pytest.raises(ValueError, match="`scale` must be"):
        pipeline("super_resolution", scale=0)
