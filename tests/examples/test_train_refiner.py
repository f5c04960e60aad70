"""Runs examples/train_refiner.py on a few pictures: it learns, the refiner joins a pipeline, the loss is L1 and
SSIM."""

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
            str(tmp_path / "images"), "--pipeline", str(tmp_path / "pipeline"), "--resolution", "16",
            "--max_train_steps",
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("refiner"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(images, max_patches=500, iterations=3, progress=False).save_pretrained(folder / "codec")
    return folder


def go(script, folder, out, *more):
    words = [
        "--codec",
        folder / "codec",
        "--train_data_dir",
        folder / "images",
        "--resolution",
        16,
        "--output_dir",
        out,
    ]
    words += ["--train_batch_size", 3, "--lr_warmup_steps", 1, "--log_steps", 1, *more]
    if "--pretrained_model_name_or_path" not in more:
        words += ["--block_out_channels", 16]
    script.cli([str(word) for word in words])
    return LatentRefiner.from_pretrained(Path(out) / "refiner")


def test_a_resumed_run_is_the_uninterrupted_one(script, folder, tmp_path):
    name = "refiner/diffusion_pytorch_model.safetensors"
    go(script, folder, tmp_path / "whole", "--max_train_steps", 5, "--checkpointing_steps", 2)
    whole = (tmp_path / "whole" / name).read_bytes()
    log = (tmp_path / "whole" / "training_log.jsonl").read_text()
    steps = ("--max_train_steps", 5, "--checkpointing_steps", 0)
    go(script, folder, tmp_path / "other", *steps, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2")
    assert (tmp_path / "other" / name).read_bytes() == whole
    for resume in ("checkpoint-2", "latest"):  # in its own folder
        (tmp_path / "whole" / name).unlink()
        go(script, folder, tmp_path / "whole", *steps, "--resume_from_checkpoint", resume)
        assert (tmp_path / "whole" / name).read_bytes() == whole

    def losses(text):
        return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]

    assert losses((tmp_path / "whole" / "training_log.jsonl").read_text()) == losses(log)
    with pytest.raises(SystemExit, match="belongs to another run, with --noise 0.05 and not 0.1"):
        go(script, folder, tmp_path / "whole", *steps, "--resume_from_checkpoint", "latest", "--noise", 0.1)
    with pytest.raises(SystemExit, match="is not empty.*--overwrite_output_dir"):
        go(script, folder, tmp_path / "whole", *steps)


def test_it_starts_from_trained_weights_with_a_scaled_rate(script, folder, tmp_path):
    steps = ("--max_train_steps", 1, "--lr_scheduler", "constant")
    first = go(script, folder, tmp_path / "first", *steps, "--learning_rate", 1e-3, "--scale_lr")
    log = json.loads((tmp_path / "first" / "training_log.jsonl").read_text().splitlines()[0])
    assert log["lr"] == pytest.approx(3e-3)
    for name in ("", "refiner"):
        still = ("--learning_rate", 0, "--pretrained_model_name_or_path", tmp_path / "first" / name)
        second = go(script, folder, tmp_path / f"second{name}", *steps, *still)
        for key, tensor in second.state_dict().items():
            assert torch.equal(tensor, first.state_dict()[key])
    with pytest.raises(SystemExit) as stopped:
        go(script, folder, tmp_path / "third", *still, "--norm_num_groups", 4)
    assert stopped.value.code == 2
