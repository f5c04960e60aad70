"""Runs examples/train_refiner.py on a few pictures: it learns, the refiner joins a pipeline, the loss is L1 and SSIM."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_lasers import (
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    LatentRefiner,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
)


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "examples" / "train_refiner.py"
    spec = importlib.util.spec_from_file_location("train_refiner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_and_joins_a_pipeline(script, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{i}.png")
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    codec.fit(str(tmp_path / "images"), max_patches=1000, iterations=5, progress=False)
    codec.save_pretrained(tmp_path / "codec")
    unet = CategoricalUNet2DModel(
        4, 16, sample_size=4, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8
    )
    pipeline = ModelBasedLatentDiffusionPipeline(codec, unet, CategoricalDDPMScheduler(num_codewords=16))
    pipeline.save_pretrained(tmp_path / "pipeline")
    script.cli(
        [
            "--codec", str(tmp_path / "codec"), "--train_data_dir", str(tmp_path / "images"), "--validation_data_dir",
            str(tmp_path / "images"), "--pipeline", str(tmp_path / "pipeline"), "--resolution", "16", "--max_train_steps",
            "60", "--learning_rate", "2e-3", "--lr_warmup_steps", "5", "--block_out_channels", "16", "32",
            "--train_batch_size", "6", "--output_dir", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    figures = settings["validation"]
    assert figures["psnr_after"] > figures["psnr_before"] + 0.3
    whole = ModelBasedLatentDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(whole.refiner, LatentRefiner) and pipeline.refiner is None
    assert whole(num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{figures['psnr_after']:.2f} dB after" in card and "bits per pixel" in card


def test_the_loss_and_the_corruption(script):
    first, second = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    loss, parts = script.refiner_loss(first, second, 0.5)
    similarity = structural_similarity_index_measure(first / 2 + 0.5, second / 2 + 0.5, data_range=1.0)
    torch.testing.assert_close(loss, (first - second).abs().mean() / 2 + 0.5 * (1 - similarity))
    assert script.refiner_loss(first, first, 1.0)[0] < 1e-5
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    codec.fit(first.repeat(4, 1, 1, 1), max_patches=500, iterations=3, progress=False)
    clean = codec(first).sample.clamp(-1, 1)
    torch.testing.assert_close(script.corrupted(codec, first, 1e-6), clean)
    assert not torch.equal(script.corrupted(codec, first, 1.0), clean)


def test_what_it_refuses_is_one_sentence(script, tmp_path, capsys):
    for more, sentence in ((["--noise", "0"], "--noise must be positive"), ([], "nowhere")):
        with pytest.raises(SystemExit) as stopped:
            script.cli(["--codec", "nowhere", "--output_dir", str(tmp_path / "out"), *more])
        assert sentence in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()
