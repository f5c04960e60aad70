"""What the scripts of examples/ share: ends, numbers, names, tables, times, metrics and file formats."""

import argparse
import io
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import DictionaryBottleneck, VectorQuantizerBottleneck
from diffusers_lasers.commands import (
    bottleneck_configurations,
    image_metrics,
    picture_formats,
    scripts,
    timing,
)
from diffusers_lasers.commands.latent_figures import LatentFigures
from diffusers_lasers.models.bottlenecks import IdentityBottleneck
from diffusers_lasers.utils import tables
from diffusers_lasers.utils.command_line import CommandParser, check_at_least


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_of_the_user_is_one_sentence_without_the_token(error):
    def main(args):
        raise error("401 for hf_SECRET")

    with pytest.raises(SystemExit) as stopped:
        scripts.run_script("a/b/fit.py", lambda words: argparse.Namespace(hub_token="hf_SECRET"), main, [])
    assert str(stopped.value) == "fit.py: error: 401 for ***"


def test_what_main_returns_is_returned_and_other_errors_keep_their_traceback():
    def parse_args(words):
        return argparse.Namespace(words=words)

    assert scripts.run_script("x.py", parse_args, lambda args: args.words, ["a"]) == ["a"]
    with pytest.raises(ZeroDivisionError):
        scripts.run_script("x.py", parse_args, lambda args: 1 / 0, [])


def test_small_numbers_are_refused(capsys):
    parser = CommandParser()
    for name, default in (("steps", 0), ("seed", None), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.check(check_at_least, 0, "steps", "seed", "rounds")
    assert parser.parse_args([]).steps == 0
    parser.check(check_at_least, 1, "seed", "rounds", "steps")
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(capsys):
    parser = CommandParser()
    scripts.add_device_flag(parser)
    assert parser.parse_args(["--device", "cpu"]).device == "cpu"
    assert parser.parse_args([]).device == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "cuda:99"])
    assert "--device: cuda:99 cannot be used here" in capsys.readouterr().err


def test_a_folder_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert scripts.commit_of(tmp_path) is None


def test_tables_have_a_dash_for_what_is_missing():
    columns = [("psnr", "PSNR", "{:.1f}"), ("bits", "bits", "{}")]
    text = tables.figure_table("model", columns, [("a", {"psnr": 30.04, "bits": 8}), ("b", {"psnr": None})])
    assert text.splitlines() == [
        "| model | PSNR | bits |",
        "| --- | ---: | ---: |",
        "| a | 30.0 | 8 |",
        "| b | – | – |",
    ]


def test_a_time_is_the_median_of_the_calls_that_count():
    pauses = iter([0.05, 0.05, 0.0, 0.02, 0.0])

    def call():
        pause = next(pauses)
        time.sleep(pause)
        return pause

    value, seconds = timing.median_seconds(call, 3, warm_up=2)
    assert value == 0.05 and seconds < 0.015
    assert sys.platform == "win32" or timing.peak_memory_gib() > 0.01


def test_metrics_that_cannot_be_computed_are_named_and_a_batch_that_does_not_fit_is_too(tmp_path):
    parser = CommandParser()
    image_metrics.add_lpips_flags(parser)
    image_metrics.add_fid_flags(parser)
    args = parser.parse_args(["--lpips_weights", str(tmp_path / "none")])
    args.device = "cpu"
    metrics, missing = image_metrics.image_metrics(["psnr", "ssim", "lpips", "rfid"], args)
    assert list(metrics) == ["psnr", "ssim"] and set(missing) == {"LPIPS", "rFID"}
    images = torch.zeros(2, 3, 8, 8)
    image_metrics.update_metrics(metrics, images + 0.2, images, missing, of="a model")
    assert list(metrics) == ["psnr"] and "SSIM of a model" in missing  # 8 pixels are fewer than its window has
    values = image_metrics.computed(metrics, ["psnr", "ssim"])
    assert values == {"psnr": pytest.approx(20.0, abs=1e-4), "ssim": None}
    args.fid_features = "features.pt"
    _, missing = image_metrics.image_metrics(["fid"], args, num_images=1)
    assert missing == {"FID": "it needs two images or more, got 1."}


@pytest.mark.parametrize("text", ["dictionary:K=8,S=2", "vq:K=8", "rvq:K=4,D=2", "fsq:levels=3,channels=2"])
def test_configurations_make_bottlenecks_whose_cost_is_counted(text):
    torch.manual_seed(0)
    bottleneck = bottleneck_configurations.build(bottleneck_configurations.parse_configuration(text), 4).eval()
    latents = torch.randn(3, 4, 5, 6)
    figures = LatentFigures(bottleneck, "cpu")
    code, decoded = figures.update(latents[:2], (10, 12))
    torch.testing.assert_close(decoded, bottleneck.decode(code))
    figures.update(latents[2:], (10, 12))
    values = figures.compute()
    assert values["nominal_bits_per_pixel"] == pytest.approx(bottleneck.bits_per_site / 4)
    whole = bottleneck(latents).latents.detach().double()
    spread = (latents - latents.mean(dim=(0, 2, 3), keepdim=True)).double().square().sum()
    assert values["latent_nmse"] == pytest.approx(float((whole - latents).square().sum() / spread), rel=1e-4)
    assert values["latent_snr_db"] == pytest.approx(-10 * np.log10(values["latent_nmse"]))
    assert values["entropy_bits_per_pixel"] > 0 and values["perplexity"] >= 1


def test_latents_without_a_code_cost_16_bits_a_value():
    figures = LatentFigures(IdentityBottleneck(4), "cpu")
    code, decoded = figures.update(torch.full((2, 4, 3, 3), 1 / 3) + torch.randn(2, 4, 3, 3), (6, 6))
    values = figures.compute()
    assert code is None and values["nominal_bits_per_pixel"] == 16 * 4 / 4
    assert (values["entropy_bits_per_pixel"], values["perplexity"]) == (None, None)
    assert torch.equal(decoded, decoded.half().float()) and 0 < values["latent_nmse"] < 1e-6


def test_configurations_are_told_in_short():
    label, parse = bottleneck_configurations.label, bottleneck_configurations.parse_configuration
    texts = ["dictionary:K=8,S=3,bits=4", "scalar:bits=4", "float", "klt:step=0.3,p=2", "rvq:D=2"]
    names = ["dictionary K=8 S=3 bits=4", "int4", "float16", "klt step=0.3 p=2", "rvq K=256 D=2"]
    assert [label(parse(text)) for text in texts] == names
    built = [bottleneck_configurations.build(parse(text), 4) for text in ("dictionary", "vq:p=2")]
    assert isinstance(built[0], DictionaryBottleneck) and isinstance(built[1], VectorQuantizerBottleneck)
    assert built[1].patch_size == 2


def test_files_of_every_format_are_no_longer_than_asked():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    found, missing = picture_formats.available_formats(list(picture_formats.FORMATS))
    assert "jpeg" in found and set(found) | set(missing) == set(picture_formats.FORMATS)
    for name in found:
        quality, _, data = picture_formats.best_file(image, name, 2500)
        low, high = picture_formats.FORMATS[name][2]
        assert low <= quality <= high and (len(data) <= 2500 or quality == low)
        assert Image.open(io.BytesIO(data)).size == (48, 48)


def test_colours_are_sampled_in_full_where_that_is_closer():
    """A picture of edges between colours of one luminance loses most of them at half the sides."""
    red, blue = (200, 0, 0), (0, 60, 249)
    stripes = np.array([red, blue], dtype=np.uint8)[np.arange(48) // 3 % 2]
    image = Image.fromarray(np.broadcast_to(stripes, (48, 48, 3)).copy())
    chosen = picture_formats.best_file(image, "jpeg", 4000)
    halved = picture_formats._highest(image, "jpeg", 4000, "4:2:0")
    assert chosen.subsampling == "4:4:4" and len(chosen.data) <= 4000
    errors = [
        np.square(np.asarray(Image.open(io.BytesIO(file.data)).convert("RGB")).astype(int) - np.asarray(image)).sum()
        for file in (chosen, halved)
    ]
    assert errors[0] < errors[1] / 4
