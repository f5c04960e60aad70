"""Runs examples/train_categorical_ddpm.py as a user does, on a few small pictures: every parameterization, resuming,
what it refuses."""

import importlib.util
import json
import os
import shutil
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


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path, forked):
    """Trained in one process and resumed in another, which a user starts."""

    def launch(output, *more):
        command = [sys.executable, str(SCRIPT), *arguments(folder, output, "--lr_warmup_steps", 1, *more)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done

    more = ("--lr_warmup_steps", 1, "--max_train_steps", 4, "--checkpointing_steps", 2, "--use_ema")
    forked(SCRIPT, arguments(folder, tmp_path / "whole", *more))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert isinstance(CategoricalUNet2DModel.from_pretrained(checkpoint, subfolder="unet"), CategoricalUNet2DModel)
    done = launch(tmp_path / "resumed", "--max_train_steps", 4, "--use_ema", "--resume_from_checkpoint", checkpoint)
    assert "Codes, train" not in done.stderr  # kept from the first run
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_two_processes_train_together(folder, tmp_path, forked):
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
    forked(SCRIPT, arguments(folder, tmp_path / "out", *more), 2)
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
        (["--num_inference_steps", "1001"], "--num_inference_steps must be at most --num_train_timesteps, 1000"),
        (["--report_to", "nothing"], "--report_to must be one of what is installed"),
        (["--pretrained_model_name_or_path", "x", "--layers_per_block", "1"], "are those of --pretrained_model"),
    ],
)
def test_what_it_refuses_is_one_sentence(script, folder, tmp_path, more, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.cli([str(part) for part in arguments(folder, tmp_path / "out", *more)])
    assert sentence in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def here_or_there(script, folder, output, *more):
    script.cli([str(word) for word in arguments(folder, output, "--max_train_steps", 1, *more)])
    return json.loads((Path(output) / "settings.json").read_text())["codes"]


def test_codes_are_those_of_the_images_that_are_there_now(script, folder, tmp_path, monkeypatch):
    """The same relative path in another working directory, and images that are added, are other images."""
    monkeypatch.setattr(script, "validate", lambda *arguments: ({}, None))
    pictures = sorted((folder / "images").iterdir())
    for name, count in (("one", 3), ("two", 2)):
        (tmp_path / name / "pictures").mkdir(parents=True)
        for path in pictures[:count]:
            shutil.copy(path, tmp_path / name / "pictures")
    data, codes = ("--train_data_dir", "pictures"), ("--codes_dir", tmp_path / "codes")
    found = []
    for number, name in enumerate(("one", "two", "one")):
        monkeypatch.chdir(tmp_path / name)
        found.append(here_or_there(script, folder, tmp_path / f"out{number}", *data, *codes))
    shutil.copy(pictures[5], tmp_path / "one" / "pictures")
    found.append(here_or_there(script, folder, tmp_path / "out3", *data, *codes))
    assert found == [3, 2, 3, 4] and len(list((tmp_path / "codes").glob("train-*.npy"))) == 3
    other = ModelBasedVQCodec.from_pretrained(folder / "codec")
    other.reorder("random")
    other.save_pretrained(tmp_path / "codec")
    here_or_there(script, folder, tmp_path / "out4", *data, *codes, "--codec", tmp_path / "codec")
    assert len(list((tmp_path / "codes").glob("train-*.npy"))) == 4


def test_a_validation_that_fails_ends_no_training(script, folder, tmp_path, monkeypatch, caplog):
    out, own, seen, modes = tmp_path / "out", script.make_pipeline, [], []

    def refuses(run, args):
        if run.state.step < args.max_train_steps:
            seen.append((out / f"checkpoint-{run.state.step}").is_dir())
            raise RuntimeError("no luck at all")
        modes.append(run.model.training)
        return own(run, args)

    monkeypatch.setattr(script, "make_pipeline", refuses)
    more = ("--max_train_steps", 4, "--checkpointing_steps", 2, "--validation_steps", 2)
    with pytest.raises(SystemExit) as stopped:
        script.cli([str(word) for word in arguments(folder, out, *more)])
    assert stopped.value.code == 1 and seen == [True]  # the checkpoint comes first
    assert modes == [True, False]  # what failed has left the model as it was
    assert "the validation at step 2: no luck at all" in caplog.text
    assert ModelBasedLatentDiffusionPipeline.from_pretrained(out).unet.config.num_slots == 4
    assert (out / "validation" / "step-0000004.png").is_file()


def test_a_run_goes_on_from_the_name_of_a_checkpoint_and_only_as_itself(script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "validate", lambda *arguments: ({}, None))
    out, name = tmp_path / "out", "unet/diffusion_pytorch_model.safetensors"

    def go(*more):
        words = arguments(folder, out, "--lr_warmup_steps", 1, "--max_train_steps", 4, "--checkpointing_steps", 2)
        script.cli([str(word) for word in (*words, *more)])

    go("--use_ema")
    assert not list(out.rglob("custom_checkpoint*"))
    whole = (out / name).read_bytes()
    (out / name).unlink()
    go("--use_ema", "--resume_from_checkpoint", "checkpoint-2")
    assert (out / name).read_bytes() == whole
    log = [json.loads(line)["step"] for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert log == [2, 4]
    with pytest.raises(SystemExit, match="is not empty.*--overwrite_output_dir"):
        go("--use_ema")
    with pytest.raises(SystemExit, match="belongs to another run, with --use_ema True and not False"):
        go("--resume_from_checkpoint", "latest")
    other = ModelBasedVQCodec.from_pretrained(folder / "codec")
    other.reorder("random")
    other.save_pretrained(tmp_path / "codec")
    with pytest.raises(SystemExit, match="belongs to another run, with --codec"):
        go("--use_ema", "--resume_from_checkpoint", "latest", "--codec", tmp_path / "codec")
    go("--overwrite_output_dir", "--seed", "5")
    assert (out / name).read_bytes() != whole


def test_it_starts_from_trained_weights_with_a_scaled_rate(script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "validate", lambda *arguments: ({}, None))

    def go(name, *more):
        words = [*arguments(folder, tmp_path / name), "--max_train_steps", 1, "--log_steps", 1, *more]
        if "--pretrained_model_name_or_path" in more:
            del words[words.index("--block_out_channels") : words.index("--block_out_channels") + 2]
        script.cli([str(word) for word in words])
        return CategoricalUNet2DModel.from_pretrained(tmp_path / name / "unet")

    first = go(
        "first", "--learning_rate", 1e-3, "--scale_lr", "--lr_scheduler", "constant", "--checkpointing_steps", 1
    )
    log = json.loads((tmp_path / "first" / "training_log.jsonl").read_text().splitlines()[0])
    assert log["lr"] == pytest.approx(4e-3)
    still = ("--learning_rate", 0, "--pretrained_model_name_or_path")
    for number, place in enumerate(("", "unet", "checkpoint-1")):
        second = go(f"second{number}", *still, tmp_path / "first" / place)
        for name, tensor in second.state_dict().items():
            assert torch.equal(tensor, first.state_dict()[name])
    with pytest.raises(SystemExit, match="has parameterization 'categorical', and this run needs 'continuous'"):
        go("third", *still, tmp_path / "first", "--parameterization", "continuous")
    assert not (tmp_path / "third").exists()
