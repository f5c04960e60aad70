"""Runs examples/train_categorical_ddpm.py as a user does, on a few small pictures: every parameterization, resuming, what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import CategoricalUNet2DModel, ModelBasedLatentDiffusionPipeline, ModelBasedVQCodec


SCRIPT = Path(__file__).parents[2] / "examples" / "train_categorical_ddpm.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_categorical_ddpm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("categorical"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(images, max_patches=500, iterations=5, progress=False).save_pretrained(folder / "codec")
    return folder


def arguments(folder, output, *more):
    fixed = "--resolution 16 --train_batch_size 4 --block_out_channels 32 --num_inference_steps 3 --log_steps 2"
    return [
        *("--codec", folder / "codec", "--train_data_dir", folder / "images", "--output_dir", output),
        *("--codes_dir", folder / "codes", *fixed.split(), "--num_validation_images", "2", *more),
    ]


@pytest.mark.parametrize("parameterization", ["categorical", "continuous", "uniform", "absorbing"])
def test_it_trains_and_saves_a_pipeline(script, folder, tmp_path, parameterization):
    script.cli(
        list(
            map(
                str,
                arguments(
                    folder, tmp_path / "out", "--parameterization", parameterization, "--self_conditioning",
                    "--snr_gamma", 5, "--use_ema", "--max_train_steps", 4, "--validation_data_dir",
                    folder / "images", "--random_flip",
                ),
            )
        )
    )  # fmt: skip
    out = tmp_path / "out"
    pipeline = ModelBasedLatentDiffusionPipeline.from_pretrained(out)
    assert pipeline(num_inference_steps=2, output_type="latent").images.shape == (1, 4, 4, 4)
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4, 4] and log[-1]["validation_loss"] > 0
    card = (out / "README.md").read_text()
    assert "bits per pixel" in card and parameterization in card and "Held-out loss" in card
    settings = json.loads((out / "settings.json").read_text())
    assert settings["codes"] == 12  # six images and their mirror images
    assert Image.open(out / "validation" / "step-0000004.png").size == (32, 16)


@pytest.mark.parametrize("more, expected", [([], True), (["--no-self_conditioning"], False)])
def test_the_preset_decides_about_self_conditioning(script, folder, tmp_path, more, expected):
    words = arguments(folder, tmp_path / "out", "--preset", "paper", "--max_train_steps", 1, *more)
    script.cli([str(word) for word in words])
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["arguments"]["self_conditioning"] is expected
    assert CategoricalUNet2DModel.from_pretrained(tmp_path / "out" / "unet").config.self_conditioning is expected


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    def launch(output, *more):
        command = [sys.executable, str(SCRIPT), *arguments(folder, output, "--lr_warmup_steps", 1, *more)]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    launch(tmp_path / "whole", "--max_train_steps", 4, "--checkpointing_steps", 2, "--use_ema")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert isinstance(CategoricalUNet2DModel.from_pretrained(checkpoint, subfolder="unet"), CategoricalUNet2DModel)
    done = launch(tmp_path / "resumed", "--max_train_steps", 4, "--use_ema", "--resume_from_checkpoint", checkpoint)
    assert "Codes, train" not in done.stderr  # kept from the first run
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_two_processes_train_together(folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    more = (
        "--max_train_steps",
        4,
        "--checkpointing_steps",
        2,
        "--use_ema",
        "--lr_warmup_steps",
        1,
        "--self_conditioning",
        "--mixed_precision",
        "bf16",
    )
    command += arguments(folder, tmp_path / "out", *more)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["total_batch_size"] == 8
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    assert ModelBasedLatentDiffusionPipeline.from_pretrained(tmp_path / "out").unet.config.num_slots == 4
    states = [
        torch.load(path, weights_only=False)
        for path in sorted((tmp_path / "out/checkpoint-2").glob("random_states_*.pkl"))
    ]
    assert len(states) == 2
    generators = [state["torch_manual_seed"] for state in states]
    assert not torch.equal(*generators)  # each rank draws noise of its own


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--train_batch_size", "0"], "--train_batch_size must be at least 1"),
        (["--ema_decay", "1"], "--ema_decay"),
        (["--temperature", "-1"], "--temperature"),
        (["--parameterization", "uniform", "--num_train_timesteps", "10"], "--num_train_timesteps must be 1000"),
        (["--image_weight", "0", "--code_loss", "none"], "nothing to minimise"),
        (["--resume_from_checkpoint", "nowhere"], "--resume_from_checkpoint"),
        (["--codec", "nowhere"], "nowhere"),
    ],
)
def test_what_it_refuses_is_one_sentence(script, folder, tmp_path, more, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.cli([str(part) for part in arguments(folder, tmp_path / "out", *more)])
    assert sentence in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()
