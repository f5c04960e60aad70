"""The training scripts and the command line on a GPU, as a user runs them: mixed precision, resumption, NCCL. Skipped
without a GPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, ModelBasedLatentDiffusionPipeline, ModelBasedVQCodec
from diffusers_lasers.commands.cli import main


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test_cuda")
ROOT = Path(__file__).resolve().parents[2]
DLGAN = {
    "resolution": 32, "train_batch_size": 4, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3, "revive_every": 2, "max_train_steps": 8, "log_steps": 1, "checkpointing_steps": 4,
    "validation_steps": 4, "num_validation_images": 3, "report_to": "none", "adversarial_loss": "hinge",
    "bottleneck_config": "num_atoms=32 sparsity=2", "discriminator_config": "base_channels=8",
    "discriminator_start": 2, "discriminator_warmup_steps": 2, "lecam_weight": 0.01, "use_ema": None,
}  # fmt: skip


def pictures(folder, count, size):
    folder.mkdir()
    for index in range(count):
        coarse = np.random.default_rng(index).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "photos", 12, (40, 32))


def launch(script, words, *launcher):
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(ROOT / "examples" / script), *words]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def one_gpu(precision):
    return ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", precision, "--dynamo_backend", "no")


def words(**flags):
    line = []
    for name, value in flags.items():
        line += [f"--{name}"] + ([] if value is None else str(value).split())
    return line


def finite_log(folder, precision="no"):
    """The log's lines, all finite but for the norms of the steps with which the scaler of float16 finds its scale."""
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        wrong = {name: v for name, v in line.items() if isinstance(v, float) and not math.isfinite(v)}
        assert not wrong or (precision == "fp16" and all("norm" in name for name in wrong)), wrong
    return lines


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("update", ["gradient", "bcd"])
def test_dlgan_trains_and_resumes(photos, tmp_path, precision, update):
    flags = {**DLGAN, "train_data_dir": photos, "validation_data_dir": photos, "dictionary_update": update}
    launch("train_dlgan.py", words(**flags, output_dir=tmp_path / "model"), *one_gpu(precision))
    finite_log(tmp_path / "model", precision)
    model = AutoencoderDL.from_pretrained(tmp_path / "model")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    lengths = model.bottleneck.dictionary.norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    flags.update(max_train_steps=10, resume_from_checkpoint="latest")
    result = launch("train_dlgan.py", words(**flags, output_dir=tmp_path / "model"), *one_gpu(precision))
    assert "8/10" in result.stderr  # it goes on where the first run ended
    assert finite_log(tmp_path / "model", precision)[-1]["step"] == 10


@pytest.mark.parametrize("config", ["multi_gpu.yaml", "fsdp.yaml"])
def test_dlgan_over_nccl(photos, tmp_path, config):
    """One process with NCCL: what the configuration files start, on the one GPU that there is."""
    flags = {**DLGAN, "train_data_dir": photos, "validation_data_dir": photos, "output_dir": tmp_path / "model"}
    file = ROOT / "examples" / "accelerate_configs" / config
    precision = ("--mixed_precision", "bf16", "--num_processes", "1")
    launch("train_dlgan.py", words(**flags), "--config_file", str(file), *precision)
    finite_log(tmp_path / "model")
    assert AutoencoderDL.from_pretrained(tmp_path / "model").bottleneck.dictionary.isfinite().all()


def test_runs_on_the_gpu_and_on_the_cpu_start_alike(photos, tmp_path):
    """The same seed gives the same weights and batches on both: the first loss is the same up to TF32 in
    convolutions."""
    flags = {**DLGAN, "train_data_dir": photos, "validation_data_dir": photos, "max_train_steps": 1, "log_steps": 1}
    for name, place in (("gpu", ()), ("cpu", ("--cpu",))):
        launch("train_dlgan.py", words(**flags, output_dir=tmp_path / name), *one_gpu("no"), *place)
    gpu, cpu = (finite_log(tmp_path / name)[0] for name in ("gpu", "cpu"))
    assert gpu["step"] == cpu["step"] == 1
    assert gpu["mse"] == pytest.approx(cpu["mse"], rel=5e-3)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    made.fit(images, max_patches=500, iterations=5, progress=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("parameterization", ["categorical", "continuous", "uniform", "absorbing"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_diffusion_on_indices(photos, codec, tmp_path, parameterization, precision):
    out = tmp_path / "out"
    flags = {
        "codec": codec, "train_data_dir": photos, "validation_data_dir": photos, "output_dir": out,
        "codes_dir": tmp_path / "codes",
        "resolution": 16, "train_batch_size": 4, "block_out_channels": 32, "num_inference_steps": 3, "log_steps": 1,
        "num_validation_images": 2, "parameterization": parameterization, "self_conditioning": None, "snr_gamma": 5,
        "use_ema": None,
        "max_train_steps": 6, "report_to": "none",
    }  # fmt: skip
    launch("train_categorical_ddpm.py", words(**flags), *one_gpu(precision))
    finite_log(out, precision)
    pipeline = ModelBasedLatentDiffusionPipeline.from_pretrained(out).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_files_written_on_one_device_are_read_on_the_other(photos, tmp_path, device):
    torch.manual_seed(0)
    model = AutoencoderDL(
        block_out_channels=(8, 16, 16), residual_channels=8, latent_channels=8,
        bottleneck_config={"num_atoms": 32, "sparsity": 3},
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    other = "cpu" if device == "cuda" else "cuda"
    picture, code, name = str(photos / "0.png"), str(tmp_path / "0.code"), str(tmp_path / "model")
    assert main(["encode", picture, code, "--model", name, "--device", device]) in (0, None)
    for place in (device, other):
        to = str(tmp_path / f"{place}.png")
        assert main(["decode", code, to, "--model", name, "--device", place]) in (0, None)
    first, second = (np.asarray(Image.open(tmp_path / f"{place}.png")).astype(int) for place in (device, other))
    assert np.abs(first - second).max() <= 2
