"""`evaluate`: figures of the metrics themselves, several kinds of models, what is missing."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, ModelBasedVQCodec
from diffusers_lasers.functional import entropy
from diffusers_lasers.metrics import FLIP, PSNR, SSIM, CodeRate
from diffusers_lasers.utils.image_sources import load_image_dataset


@pytest.fixture
def photos(run):
    """Two pictures of different sizes, in the order in which they are read."""
    Path("photos").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(f"saved/{name}", "photos")
    images = load_image_dataset(train_data_dir="photos", split="validation")
    arrays = (torch.tensor(list(image.getdata())).view(image.height, image.width, 3) for image in images)
    return [array.permute(2, 0, 1)[None].float() / 127.5 - 1 for array in arrays]


@torch.no_grad()
def test_figures_are_those_of_the_metrics_on_whole_images(run, photos):
    code, output, errors = run("evaluate saved/dl saved/none saved/codec --data photos --json results.json")
    assert (code, errors) == (0, "")
    results = json.loads(Path("results.json").read_text(encoding="utf-8"))
    rows = {row["model"]: row for row in results["models"]}
    pixels = sum(image[0, 0].numel() for image in photos)

    model, codec = AutoencoderDL.from_pretrained("saved/dl").eval(), ModelBasedVQCodec.from_pretrained("saved/codec")
    none = AutoencoderDL.from_pretrained("saved/none").eval()
    rate, counts = CodeRate(model.bottleneck), torch.zeros(4, 16)
    made = {"saved/dl": [], "saved/codec": [], "saved/none": []}
    for image in photos:
        sparse = model.encode_to_code(image)
        rate.update(sparse)
        made["saved/dl"].append(model.decode_from_code(sparse).sample)
        codes = codec.encode(image).codes
        counts += torch.stack([torch.bincount(slot.flatten(), minlength=16) for slot in codes[0]])
        made["saved/codec"].append(codec.decode(codes, tuple(image.shape[-2:])).sample)
        stored = none.encode(image).latents.half().float()
        made["saved/none"].append(
            none.decode(stored, force_not_quantize=True).sample[..., : image.shape[2], : image.shape[3]]
        )
    for name, samples in made.items():
        for key, metric in (("psnr", PSNR()), ("ssim", SSIM()), ("flip", FLIP())):
            for sample, image in zip(samples, photos):
                metric.update(sample.clamp(-1, 1), image)
            assert rows[name][key] == pytest.approx(float(metric.compute()), rel=1e-5), (name, key)
            assert results["protocols"][key]["n"] == 2
    assert rows["saved/dl"]["entropy_bits_per_pixel"] == pytest.approx(float(rate.compute()["entropy_bits_per_pixel"]))
    assert rows["saved/dl"]["bits_per_pixel"] == pytest.approx(float(rate.compute()["nominal_bits_per_pixel"]))
    patches = 6 * 8 + 10 * 6
    assert rows["saved/codec"]["bits_per_pixel"] == pytest.approx(16 * patches / pixels)
    bits = sum(float(entropy(slot)) for slot in counts)
    assert rows["saved/codec"]["entropy_bits_per_pixel"] == pytest.approx(bits * patches / pixels)
    assert rows["saved/none"]["entropy_bits_per_pixel"] is None
    assert rows["saved/none"]["bits_per_pixel"] == pytest.approx(64 * (11 * 16 + 20 * 12) / pixels)

    lines = output.splitlines()
    assert [line.count("|") for line in lines[:5]] == [7] * 5 and len({len(line) for line in lines[:5]}) == 1
    assert f"{rows['saved/dl']['psnr']:.2f}" in lines[2] and "| " + "–".rjust(11) in lines[3]
    assert "2 whole images of photos" in output and "A model without a bottleneck has no code" in output


def test_what_is_missing_is_named(run, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    Image.new("RGB", (9, 9)).save("photos/small.png")
    code, output, errors = run("evaluate saved/dl --data photos --json results.json")
    assert (code, errors) == (0, "")
    results = json.loads(Path("results.json").read_text(encoding="utf-8"))
    assert set(results["unavailable"]) == {"FLIP", "SSIM of saved/dl"}
    assert "- FLIP is missing: `flip_evaluator` is not installed" in output and "diffusers_lasers[metrics]" in output
    assert "- SSIM of saved/dl is missing: " in output
    row = results["models"][0]
    assert row["flip"] is row["ssim"] is None and row["psnr"] > 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("saved/dl --data nothing", "No image or parquet file"),
        ("saved/unet --data saved/a.png", "class UNet2DModel, supported are AutoencoderDL, ModelBasedVQCodec"),
        ("saved/unfitted --data saved/a.png", "not fitted"),
        ("saved/dl --data saved/dl/config.json", "cannot be read"),
        ("saved/dl --data saved/a.png --max_images 0", "`max_samples` must be at least 1"),
        ("saved/dl --data saved/a.png --json no/x.json", "There is no folder no"),
    ],
)
def test_errors_are_one_line(run, line, message):
    code, output, errors = run(f"evaluate {line}")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors
