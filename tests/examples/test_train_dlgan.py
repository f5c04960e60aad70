"""examples/train_dlgan.py as a user runs it: `accelerate launch` on a folder of small pictures; and its options in this process."""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_lasers import AutoencoderDL, DLRestorationPipeline, PatchDiscriminator, PerceptualSimilarity, SparseCode
from diffusers_lasers.functional import center_mask, hide, reduce_bicubic, upscale_bicubic
from diffusers_lasers.training import TrainingLog


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train_dlgan.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Small enough for seconds, and with everything on that a checkpoint has to restore.
FLAGS = {
    "resolution": 32,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "random_flip": None,
    "num_atoms": 32,
    "sparsity": 2,
    "learning_rate": 1e-3,
    "dictionary_learning_rate": 5e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 1,
    "revive_every": 1,
    "revive_fraction": 0.5,
    "max_train_steps": 6,
    "log_steps": 1,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 2,
    "validation_steps": 3,
    "num_validation_images": 3,
    "report_to": "none",
    "adversarial_loss": "hinge",
    "discriminator_channels": 8,
    "discriminator_start": 2,
    "discriminator_warmup_steps": 3,
    "discriminator_learning_rate": 1e-3,
    "discriminator_lr_scheduler": "linear",
    "lecam_weight": 0.01,
    "use_ema": None,
    "ema_decay": 0.9,
}


def pictures(folder, count, first):
    folder.mkdir()
    for index in range(count):
        generator = np.random.default_rng(first + index)
        image = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image.resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "train_data_dir": pictures(folder / "photos", 10, 0),
        "validation_data_dir": pictures(folder / "held-out", 5, 100),
    }


def words(**flags):
    """The flags as a command line."""
    line = []
    for name, value in flags.items():
        line += [f"--{name}"] + ([] if value is None else [str(value)])
    return line


def start(**flags):
    """Starts the script in processes of its own, as the README says."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--cpu", str(SCRIPT), *words(**flags)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def launch(**flags):
    """Runs the script to its end."""
    process = start(**flags)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    result = launch(**data, **FLAGS, output_dir=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("train_dlgan", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, data, tmp_path):
    """Runs the script in this process with a few steps; gives the output folder."""

    def start(steps=2, **flags):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        base = {"resolution": 32, "train_batch_size": 4, "log_steps": 1, "checkpointing_steps": 0, "report_to": "none"}
        if not {"model_config_name_or_path", "pretrained_model_name_or_path", "bottleneck"} & set(flags):
            base.update(num_atoms=16, sparsity=2)
        if "resume_from_checkpoint" not in flags:
            base["overwrite_output_dir"] = None  # many tests train twice
        arguments = {**data, **base, "max_train_steps": steps, "output_dir": tmp_path / "out", **flags}
        script.main(script.parse_args(words(**{k: v for k, v in arguments.items() if v is not False})))
        return tmp_path / "out"

    yield start
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


# As a user runs it


def test_the_model_folder_loads_and_reconstructs(trained):
    model = AutoencoderDL.from_pretrained(trained).eval()
    assert isinstance(model.encode_to_code(images()), SparseCode)
    assert model.config.bottleneck_config["num_atoms"] == 32 and model.config.sample_size == 32
    norms = model.bottleneck.dictionary.detach().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(32), atol=1e-5, rtol=0)
    with torch.no_grad():
        assert model(images()).sample.shape == (2, 3, 32, 32)


def test_the_card_the_settings_and_the_log_say_what_was_done(trained, data):
    card, settings = (trained / "README.md").read_text(), json.loads((trained / "settings.json").read_text())
    log = TrainingLog.read(trained / "training_log.jsonl")
    bits = AutoencoderDL.from_pretrained(trained).bits_per_pixel(32, 32)
    assert settings["bits_per_pixel"] == pytest.approx(bits) and settings["steps"] == 6
    assert settings["images"] == 10 and settings["total_batch_size"] == 4
    assert settings["arguments"]["learning_rate"] == 1e-3 and settings["versions"]["torch"] == torch.__version__
    steps = [line for line in log if "loss" in line]
    held_out = [line for line in log if "validation_psnr" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6] and [line["step"] for line in held_out] == [3, 6]
    for name in ("mse", "commitment", "codebook", "psnr", "perplexity", "dead_atoms", "lr", "images_per_second"):
        assert all(np.isfinite(line[name]) for line in steps), name
    assert steps[0]["lr"] == pytest.approx(1e-3) and steps[-1]["lr"] == pytest.approx(0)
    for text in ("accelerate launch", "train_dlgan.py", "photos", f"{bits:.4g} bits per pixel", "6 of 4 images"):
        assert text in card
    assert f"| PSNR | {held_out[-1]['validation_psnr']:.2f} dB |" in card and "5 held-out" in card
    assert f"| bits per pixel, nominal | {bits:.4g} |" in card and "(validation/step-0000006.png)" in card
    assert "hinge loss, from step 2 on, patches of 70 pixels" in card and "moving average, decay 0.9" in card


def test_the_discriminator_starts_when_it_should_and_is_saved(trained):
    steps = [line for line in TrainingLog.read(trained / "training_log.jsonl") if "loss" in line]
    names = ("discriminator_loss", "generator_loss", "adversarial_weight", "discriminator_gradient_norm")
    for line in steps:
        assert [name in line for name in names] == [line["step"] > 2] * 4, line["step"]
    weights = [line["adversarial_weight"] for line in steps[2:]]
    assert weights[0] == 0 and min(weights[1:]) > 0  # it learns one step before it counts
    assert [line["discriminator_lr"] for line in steps] == pytest.approx([1e-3] * 2 + [7.5e-4, 5e-4, 2.5e-4, 0])
    discriminator = PatchDiscriminator.from_pretrained(trained, subfolder="discriminator")
    untrained = PatchDiscriminator(base_channels=8, norm_num_groups=8)
    assert discriminator.config.base_channels == 8
    moved = discriminator.layers[0].weight - untrained.layers[0].weight
    assert moved.abs().max() > 0 and discriminator(images()).logits.isfinite().all()


def test_the_saved_weights_are_the_average(trained):
    raw = AutoencoderDL.from_pretrained(trained / "checkpoint-6", subfolder="autoencoder").state_dict()
    averaged = AutoencoderDL.from_pretrained(trained).state_dict()
    tensors = load_file(trained / "checkpoint-6" / "run_state.safetensors")
    for name, tensor in averaged.items():
        assert torch.equal(tensor, tensors[f"average/tensors/{name}"]), name
    assert not torch.equal(raw["encoder.conv_out.weight"], averaged["encoder.conv_out.weight"])


def test_validation_pictures_show_originals_above_reconstructions(trained, data):
    assert sorted(path.name for path in (trained / "validation").iterdir()) == ["step-0000003.png", "step-0000006.png"]
    picture = Image.open(trained / "validation" / "step-0000006.png")
    assert picture.size == (3 * 32, 2 * 32)
    original = Image.open(Path(data["validation_data_dir"]) / "0.png").crop((4, 0, 36, 32))
    np.testing.assert_allclose(np.asarray(picture)[:32, :32], np.asarray(original), atol=1)


def test_the_logged_psnr_is_that_of_the_saved_model(trained, data):
    model, values = AutoencoderDL.from_pretrained(trained).eval(), []
    for index in range(5):
        image = Image.open(Path(data["validation_data_dir"]) / f"{index}.png").crop((4, 0, 36, 32))
        pixels = np.asarray(image, dtype=np.float64) / 255
        with torch.no_grad():
            sample = model(torch.from_numpy(pixels * 2 - 1).float().permute(2, 0, 1)[None]).sample[0].permute(1, 2, 0)
        mse = ((sample.double().clamp(-1, 1).numpy() + 1) / 2 - pixels) ** 2
        values.append(-10 * np.log10(mse.mean()))
    logged = [line for line in TrainingLog.read(trained / "training_log.jsonl") if "validation_psnr" in line]
    assert logged[-1]["validation_psnr"] == pytest.approx(np.mean(values), abs=1e-3)


def test_checkpoints_are_limited_and_hold_a_model(trained):
    checkpoints = sorted(path.name for path in trained.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-4", "checkpoint-6"]
    last = AutoencoderDL.from_pretrained(trained / "checkpoint-6", subfolder="autoencoder")
    assert last.bottleneck.dictionary.shape == (16, 32)
    PatchDiscriminator.from_pretrained(trained / "checkpoint-6", subfolder="discriminator")


def test_a_resumed_run_equals_an_uninterrupted_one(trained, data, tmp_path):
    shutil.copytree(trained / "checkpoint-4", tmp_path / "model" / "checkpoint-4")
    shutil.copy(trained / "training_log.jsonl", tmp_path / "model")
    result = launch(**data, **FLAGS, output_dir=tmp_path / "model", resume_from_checkpoint="latest")
    assert result.returncode == 0, result.stderr
    for name in (WEIGHTS, f"discriminator/{WEIGHTS}"):
        ours, theirs = load_file(tmp_path / "model" / name), load_file(trained / name)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def optimizer(folder):
        return torch.load(folder / "checkpoint-6" / "optimizer.bin")["state"]

    for index, state in optimizer(trained).items():
        for name, value in state.items():
            assert torch.equal(value, optimizer(tmp_path / "model")[index][name])
    logs = [
        [
            {name: value for name, value in line.items() if name != "images_per_second"}
            for line in TrainingLog.read(folder / "training_log.jsonl")
        ]
        for folder in (trained, tmp_path / "model")
    ]
    assert logs[0] == logs[1]


def test_vq_is_trained_by_the_same_command(data, tmp_path):
    result = launch(
        **data,
        bottleneck="vq",
        num_atoms=16,
        resolution=32,
        train_batch_size=4,
        max_train_steps=2,
        output_dir=tmp_path / "m",
    )
    assert result.returncode == 0, result.stderr
    model = AutoencoderDL.from_pretrained(tmp_path / "m").eval()
    assert model.config.bottleneck_type == "vq" and model.bits_per_pixel(32, 32) == pytest.approx(4 / 16)
    assert list((tmp_path / "m" / "logs").rglob("events.out.tfevents.*"))  # tensorboard is the default


@pytest.mark.parametrize(
    "name, processes, machines",
    [("single_gpu", 1, 1), ("multi_gpu", 8, 1), ("multi_node", 16, 2), ("fsdp", 8, 1), ("zero2", 8, 1)],
)
def test_the_launch_configurations_are_accelerates(name, processes, machines):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(SCRIPT.parent / "accelerate_configs" / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == "bf16" and not config.use_cpu


def test_the_configuration_of_one_gpu_also_trains_on_the_cpu(data, tmp_path):
    configuration = SCRIPT.parent / "accelerate_configs" / "single_gpu.yaml"
    flags = {**data, "resolution": 32, "num_atoms": 16, "sparsity": 2, "train_batch_size": 2, "report_to": "none"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration), "--cpu"]
    command += [str(SCRIPT), *words(**flags, max_train_steps=1, output_dir=tmp_path / "m")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "m" / "settings.json").read_text())["mixed_precision"] == "bf16"


# Its options, in this process


@pytest.mark.parametrize(
    "flags",
    [
        {"bottleneck": "fsq", "fsq_levels": 5},
        {"bottleneck": "residual_vq", "depth": 2, "num_atoms": 8, "patch_size": 2},
        {"bottleneck": "none", "channels_last": None},
        {"preset": "paper", "gradient": "projection", "pursuit": "ols", "patch_size": 2, "latent_channels": 4},
        {"mixed_precision": "bf16", "adam_weight_decay": 0.1, "max_grad_norm": 0},
        {"dataloader_num_workers": 1, "cache_in_memory": None, "center_crop": None, "crops_per_image": 2},
        {"dictionary_update": "bcd", "use_ema": None, "revive_every": 1, "revive_fraction": 0.5},
        {"adversarial_loss": "vanilla", "discriminator_channels": 8, "preset": "paper", "discriminator_start": 0},
        {
            "discriminator_norm": "none",
            "discriminator_channels": 8,
            "adversarial_loss": "hinge",
            "channels_last": None,
        },
        {
            "no_adaptive_weight": None,
            "adversarial_loss": "hinge",
            "discriminator_channels": 8,
            "mixed_precision": "bf16",
        },
    ],
    ids=lambda flags: next(iter(flags.values())) or next(iter(flags)),
)
def test_variants_train_and_load(run, flags):
    model = AutoencoderDL.from_pretrained(run(**flags)).eval()
    with torch.no_grad():
        assert model(images()).sample.isfinite().all()


def test_flags_reach_the_model(run):
    folder = run(
        preset="paper", latent_channels=4, num_atoms=8, sparsity=3, patch_size=2, coefficient_bits=6, pursuit="ols"
    )
    model = AutoencoderDL.from_pretrained(folder)
    config = model.config.bottleneck_config
    assert model.config.latent_channels == 4 and model.bottleneck.dictionary.shape == (16, 8)
    assert (config["sparsity"], config["coefficient_bits"], config["pursuit"]) == (3, 6, "ols")
    floats = AutoencoderDL.from_pretrained(run(coefficient_bits=0))
    assert floats.bottleneck.config.coefficient_bits is None


def test_a_config_file_replaces_the_model_flags(run, tmp_path):
    AutoencoderDL(latent_channels=3, bottleneck_config={"num_atoms": 12, "sparsity": 1}).save_config(tmp_path / "c")
    model = AutoencoderDL.from_pretrained(run(model_config_name_or_path=tmp_path / "c" / "config.json"))
    assert model.bottleneck.dictionary.shape == (3, 12)


def test_the_bundled_photographs_are_the_default(run):
    folder = run(train_data_dir=False, validation_data_dir=False, max_train_steps=1)
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["images"], settings["samples_per_epoch"]) == (6, 6 * 256)
    log = TrainingLog.read(folder / "training_log.jsonl")
    assert log[-1]["step"] == 1 and "validation_psnr" in log[-1]
    assert "64 held-out" in (folder / "README.md").read_text()


def test_a_named_data_set_and_its_held_out_split(run, data, tmp_path):
    import datasets

    (tmp_path / "set").mkdir()
    features = datasets.Features({"img": datasets.Image()})
    for split, folder in (("train", "train_data_dir"), ("test", "validation_data_dir")):
        files = sorted(str(path) for path in Path(data[folder]).iterdir())
        table = datasets.Dataset.from_dict({"img": files}, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    named = {"dataset_name": tmp_path / "set", "image_column": "img", "validation_split": "test"}
    folder = run(train_data_dir=False, validation_data_dir=False, cache_dir=tmp_path / "cache", **named)
    assert json.loads((folder / "settings.json").read_text())["images"] == 10
    ours = TrainingLog.read(folder / "training_log.jsonl")
    theirs = TrainingLog.read(run() / "training_log.jsonl")
    assert ours[-1] == theirs[-1] and "validation_psnr" in ours[-1]  # the pictures of the folder, in another place


def test_without_held_out_images_no_figure_is_claimed(run):
    folder = run(validation_data_dir=False)
    assert not any("validation_psnr" in line for line in TrainingLog.read(folder / "training_log.jsonl"))
    assert "held-out" not in (folder / "README.md").read_text() and list((folder / "validation").iterdir())


def test_epochs_become_steps(run):
    folder = run(max_train_steps=False, num_train_epochs=2)
    assert TrainingLog.read(folder / "training_log.jsonl")[-1]["step"] == 5  # 2 · 10 images in batches of 4


def test_the_perceptual_loss_is_part_of_the_loss(run, tmp_path):
    torch.manual_seed(0)
    features = PerceptualSimilarity("squeeze").features.state_dict()
    save_file({f"features.{name}": value for name, value in features.items()}, tmp_path / "squeezenet1_1.safetensors")
    folder = run(steps=1, perceptual="squeeze", perceptual_weights=tmp_path)
    line = TrainingLog.read(folder / "training_log.jsonl")[0]
    expected = 0.5 * line["mse"] + 0.5 * line["perceptual"] + line["codebook"] + 0.25 * line["commitment"]
    assert line["perceptual"] > 0 and line["loss"] == pytest.approx(expected, abs=1e-6)


def test_latest_without_a_checkpoint_starts_from_scratch(run):
    assert TrainingLog.read(run(steps=1, resume_from_checkpoint="latest") / "training_log.jsonl")[0]["step"] == 1


def test_runs_that_are_killed_end_in_the_same_weights(data, tmp_path):
    flags = {**data, **FLAGS, "max_train_steps": 14, "checkpointing_steps": 1, "validation_steps": 0}
    flags["discriminator_start"] = 5
    whole = launch(**flags, output_dir=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder, generator, stopped_at = tmp_path / "killed", np.random.default_rng(0), []
    for kill in range(5):
        # two of them while a checkpoint is being written, the others a while after a step
        goal, delay = 2 * (kill + 1), generator.uniform(0, 0.15)
        process = start(**flags, output_dir=folder, resume_from_checkpoint="latest")
        while process.poll() is None:
            done = len(TrainingLog.read(folder / "training_log.jsonl"))
            if done >= goal:
                if kill % 2 == 0:
                    time.sleep(delay)
                elif not any(folder.glob("checkpoint-*.tmp")):
                    continue
                break
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        stopped_at.append(done)
    assert stopped_at[-1] < 14
    last = launch(**flags, output_dir=folder, resume_from_checkpoint="latest")
    assert last.returncode == 0, last.stderr
    for name in (WEIGHTS, f"discriminator/{WEIGHTS}"):
        ours, theirs = load_file(folder / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [torch.load(path / "checkpoint-14" / "optimizer.bin")["state"] for path in (folder, tmp_path / "whole")]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    steps = [line["step"] for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line]
    assert steps == list(range(1, 15))


def test_a_damaged_newest_checkpoint_is_passed_over(trained, data, tmp_path):
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.copytree(trained / name, tmp_path / "model" / name)
    damaged = tmp_path / "model" / "checkpoint-6" / "optimizer.bin"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    result = launch(**data, **FLAGS, output_dir=tmp_path / "model", resume_from_checkpoint="latest")
    assert result.returncode == 0, result.stderr
    assert "checkpoint-6 is damaged: optimizer.bin" in result.stderr + result.stdout
    ours, theirs = load_file(tmp_path / "model" / WEIGHTS), load_file(trained / WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (
        not (damaged.stat().st_size == 0)
        and damaged.read_bytes() == (trained / damaged.relative_to(tmp_path / "model")).read_bytes()
    )


def test_a_damaged_checkpoint_that_was_named_is_refused(run):
    folder = run(checkpointing_steps=2)
    (folder / "checkpoint-2" / "optimizer.bin").unlink()
    with pytest.raises(SystemExit, match="lacks the file optimizer.bin"):
        run(resume_from_checkpoint="checkpoint-2")


def test_a_full_disk_ends_the_run_with_a_sentence(run, tmp_path, monkeypatch):
    from accelerate import Accelerator

    whole, calls = Accelerator.save_state, []

    def full(self, output_dir):
        calls.append(output_dir)
        whole(self, output_dir)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(
        SystemExit, match="checkpoint-2 could not be written.*No space left.*whole checkpoint is .*checkpoint-1"
    ):
        run(steps=3, checkpointing_steps=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1"]


def test_a_finished_run_is_only_saved_again(run):
    first = load_file(run(checkpointing_steps=2) / WEIGHTS)
    folder = run(checkpointing_steps=2, resume_from_checkpoint="checkpoint-2")
    again = load_file(folder / WEIGHTS)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert "Steps: 2 of" in (folder / "README.md").read_text()


def test_the_hub_gets_the_model_without_checkpoints_or_token(run, monkeypatch):
    import huggingface_hub

    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, name, exist_ok):
            calls["name"] = name
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments):
            calls.update(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(sys, "argv", ["train_dlgan.py", "--hub_token", "hf_secret", "--hub_token=hf_secret"])
    flags = {"adversarial_loss": "hinge", "discriminator_channels": 8, "use_ema": None}
    folder = run(push_to_hub=None, hub_token="hf_secret", **flags)
    assert (calls["token"], calls["repo_id"], Path(calls["folder_path"])) == ("hf_secret", "me/out", folder)
    assert "checkpoint-*" in calls["ignore_patterns"]
    uploaded = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    assert {"config.json", WEIGHTS, "README.md", f"discriminator/{WEIGHTS}"} <= set(uploaded)
    assert any(name.startswith("validation/step-") for name in uploaded)
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes(), path


# A run that is finished is never lost


def stopped(run, **flags):
    """Runs the script, which has to end with exit code 1."""
    with pytest.raises(SystemExit) as stop:
        run(**flags)
    assert stop.value.code == 1


def test_a_held_out_image_that_breaks_during_the_run_costs_no_model(run, script, data, tmp_path, monkeypatch, caplog):
    held_out, train = Path(shutil.copytree(data["validation_data_dir"], tmp_path / "held-out")), script.train

    def break_and_train(*arguments):
        (held_out / "2.png").write_bytes((held_out / "2.png").read_bytes()[:60])
        train(*arguments)

    monkeypatch.setattr(script, "train", break_and_train)
    flags = {"validation_data_dir": held_out, "adversarial_loss": "hinge", "discriminator_channels": 8}
    stopped(run, **flags, task="super_resolution", scale=2, checkpointing_steps=2)
    folder = tmp_path / "out"
    assert AutoencoderDL.from_pretrained(folder).decoder is not None
    PatchDiscriminator.from_pretrained(folder, subfolder="discriminator")
    DLRestorationPipeline.from_pretrained(folder / "pipeline")
    card = (folder / "README.md").read_text()
    assert "## Evaluation" not in card and "The image" in card.split("## Missing")[1] and "2.png" in caplog.text
    assert (folder / "settings.json").is_file() and (folder / "checkpoint-2").is_dir()
    assert not any("validation_psnr" in line for line in TrainingLog.read(folder / "training_log.jsonl"))


def test_a_validation_that_fails_on_the_way_changes_nothing_but_the_exit_code(run, script, tmp_path, monkeypatch):
    flags = {"steps": 3, "checkpointing_steps": 1, "validation_steps": 1, "use_ema": None}
    whole, validate, calls = load_file(run(**flags) / WEIGHTS), script.validate, []

    def fail_twice(*arguments):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("no room on the device")
        return validate(*arguments)

    monkeypatch.setattr(script, "validate", fail_twice)
    stopped(run, **flags)
    weights, card = load_file(tmp_path / "out" / WEIGHTS), (tmp_path / "out" / "README.md").read_text()
    assert all(torch.equal(whole[name], weights[name]) for name in whole)  # it is back in training mode
    assert "| PSNR |" in card and card.count("no room on the device") == 2
    log = TrainingLog.read(tmp_path / "out" / "training_log.jsonl")
    assert [line["step"] for line in log if "validation_psnr" in line] == [3]


def test_the_checkpoint_comes_before_the_validation_and_resumes_bitwise(run, script, tmp_path, monkeypatch):
    flags = {"steps": 4, "checkpointing_steps": 2, "validation_steps": 2}
    whole, validate = load_file(run(**flags) / WEIGHTS), script.validate

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(**flags)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")]
    monkeypatch.setattr(script, "validate", validate)
    resumed = load_file(run(**flags, resume_from_checkpoint="latest") / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_full_disk_in_the_last_picture_costs_no_model(run, tmp_path, monkeypatch, caplog):
    def full(self, *arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    stopped(run)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the picture after step 2: [Errno 28] No space left on device" in caplog.text
    assert "| PSNR |" in card and "![" not in card and AutoencoderDL.from_pretrained(tmp_path / "out")


def test_a_full_disk_in_the_log_or_the_model_is_one_sentence(run, script, tmp_path, monkeypatch):
    save = AutoencoderDL.save_pretrained

    def full(*arguments):
        if "checkpoint" not in str(arguments[1]):
            raise OSError(28, "No space left on device", "model")
        save(*arguments)

    for place, name in ((AutoencoderDL, "save_pretrained"), (TrainingLog, "write")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(
                SystemExit, match=r"error: \[Errno 28\] No space left.*; the last whole .*checkpoint-[12]\.$"
            ):
                run(steps=2, checkpointing_steps=1, log_steps=2)


def judge_on_two_ranks(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    specification = importlib.util.spec_from_file_location("train_dlgan", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    class HeldOut:
        broken = rank == 1

        def __len__(self):
            return 2

        def take(self, indices):
            if self.broken:
                raise ValueError("one of mine is broken")
            return torch.zeros(1, 3, 32, 32)

    accelerator, held_out, said = script.Accelerator(cpu=True), HeldOut(), []
    run = argparse.Namespace(accelerator=accelerator, held_out=held_out, degrade=lambda images, _: (images, None))
    run.criterion = argparse.Namespace(perceptual=None)
    model = AutoencoderDL(bottleneck_config={"num_atoms": 16, "sparsity": 2}).eval()
    args = argparse.Namespace(train_batch_size=1, task="reconstruction")
    try:
        script.validate(model, run, args)
    except ValueError as error:
        said.append(str(error))
    held_out.broken = False
    figures = script.validate(model, run, args)
    torch.save({"said": said, "psnr": figures["validation_psnr"]}, f"{folder}/{rank}.pt")
    accelerator.wait_for_everyone()


def test_no_process_waits_for_one_that_cannot_judge_its_share(in_two_processes, tmp_path):
    first, second = in_two_processes(judge_on_two_ranks, tmp_path)
    assert first["said"] == ["another process could not judge its share of the held-out images."]
    assert second["said"] == ["one of mine is broken"] and first["psnr"] == second["psnr"]


def test_trackers_that_cannot_be_used_end_the_run_before_its_first_step(run, tmp_path, monkeypatch):
    from accelerate import Accelerator

    def refuse(self, *arguments, **named):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(SystemExit, match="error: --report_to tensorboard cannot be used: not logged in"):
        run(report_to="tensorboard")
    assert TrainingLog.read(tmp_path / "out" / "training_log.jsonl") == []


# A folder belongs to one run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_a_run_is_kept_unless_overwriting_is_asked_for(run):
    folder = run(adversarial_loss="hinge", discriminator_channels=8, checkpointing_steps=1)
    before = contents(folder)
    for flags in ({"overwrite_output_dir": False}, {"resume_from_checkpoint": "latest", "num_atoms": 8}):
        with pytest.raises(SystemExit, match="error: .*(is not empty: give another one|belongs to another run)"):
            run(**flags)
        assert contents(folder) == before
    run(overwrite_output_dir=None)
    assert not list(folder.glob("checkpoint-*")) and not (folder / "discriminator").exists()


def test_only_damaged_checkpoints_end_latest_with_a_sentence(run):
    folder = run(checkpointing_steps=2)
    (folder / "checkpoint-2" / "optimizer.bin").write_bytes(b"")
    before = contents(folder)
    with pytest.raises(
        SystemExit, match=r"No checkpoint in .* is whole .*: restore one, or give --overwrite_output_dir"
    ):
        run(resume_from_checkpoint="latest")
    assert contents(folder) == before
    run(resume_from_checkpoint="latest", overwrite_output_dir=None)
    assert TrainingLog.read(folder / "training_log.jsonl")[0]["step"] == 1 and not list(folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"num_atoms": 8}, "--num_atoms 16 and not 8"),
        ({"latent_channels": 4}, "--latent_channels None and not 4"),
        ({"use_ema": None}, "--use_ema False and not True"),
        ({"train_batch_size": 2}, "--total_batch_size 4 and not 2"),
        ({"train_data_dir": "validation"}, "held-out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("resume", ["latest", "checkpoint-1"])
def test_another_runs_checkpoint_is_refused(finished, flags, sentence, resume):
    run, data = finished
    flags = {name: data["validation_data_dir"] if name == "train_data_dir" else value for name, value in flags.items()}
    with pytest.raises(SystemExit, match="error: .* belongs to another run, with ") as stop:
        run(resume_from_checkpoint=resume, **flags)
    assert sentence in stop.value.code


@pytest.fixture
def finished(run, data):
    """A run with one checkpoint."""
    run(steps=1, checkpointing_steps=1)
    return run, data


def test_more_steps_and_another_layout_of_the_batch_go_on(finished):
    run, _ = finished
    flags = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "validation_data_dir": False}
    folder = run(steps=2, resume_from_checkpoint="latest", **flags)
    assert [line["step"] for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line] == [1, 2]


def test_one_run_at_a_time_writes_into_a_folder(run, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".run.lock"):
        before = contents(tmp_path)
        with pytest.raises(
            SystemExit, match=r"error: --output_dir '.*out' is in use by another run: give another one\."
        ):
            run()
        assert contents(tmp_path) == before
    run()


@pytest.mark.parametrize("kind", ["file", "below a file", "read-only"])
def test_an_output_folder_that_cannot_be_one_is_one_sentence(run, tmp_path, kind):
    place = {"file": "mine", "below a file": "mine/out", "read-only": "closed/out"}[kind]
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o500)
    if kind == "read-only" and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(SystemExit, match="train_dlgan.py: error: --output_dir .*(must be a folder|cannot be written)"):
        run(output_dir=tmp_path / place)
    assert (tmp_path / "mine").read_text() == "mine" and not list((tmp_path / "closed").iterdir())


def test_checkpoints_hold_no_pickle_of_ours(trained):
    names = {path.name for path in (trained / "checkpoint-6").iterdir()}
    assert names == {
        *("autoencoder", "discriminator", "manifest.json", "optimizer.bin", "random_states_0.pkl"),
        *("run.json", "run_state.safetensors"),
    }
    states = load_file(trained / "checkpoint-6" / "run_state.safetensors")
    assert {name.split("/")[0] for name in states} == {"average", "lecam", "upkeep"}


# Trained weights to start from, and the optimiser


@pytest.mark.parametrize("place", ["model", "checkpoint"])
def test_training_starts_from_trained_weights(run, tmp_path, place):
    flags = {"adversarial_loss": "hinge", "discriminator_start": 0, "revive_every": 0}
    folder = run(steps=2, checkpointing_steps=2, discriminator_channels=8, **flags)
    source = shutil.copytree(folder if place == "model" else folder / "checkpoint-2", tmp_path / "source")
    folder = run(
        steps=1, pretrained_model_name_or_path=source, learning_rate=0, discriminator_lr_scheduler="constant", **flags
    )
    old = load_file(source / ("autoencoder" if place == "checkpoint" else ".") / WEIGHTS)
    new = load_file(folder / WEIGHTS)
    for name in set(old) - {"bottleneck.coefficient_scale", "bottleneck.scale_steps"}:  # moved by every batch
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
    ours, theirs = (load_file(path / "discriminator" / WEIGHTS) for path in (folder, source))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert AutoencoderDL.from_pretrained(folder).bottleneck.dictionary.shape == (16, 16)
    # another discriminator is asked for, or none comes with the model
    other = run(steps=1, pretrained_model_name_or_path=source, discriminator_channels=16, **flags)
    assert PatchDiscriminator.from_pretrained(other / "discriminator").config.base_channels == 16
    shutil.rmtree(source / "discriminator")
    other = run(steps=1, pretrained_model_name_or_path=source, **flags)
    assert PatchDiscriminator.from_pretrained(other / "discriminator").config.base_channels == 64


def test_learning_rates_are_scaled_by_the_images_of_a_step(run):
    flags = {"learning_rate": 1e-4, "adversarial_loss": "hinge", "discriminator_channels": 8}
    folder = run(steps=1, scale_lr=None, gradient_accumulation_steps=2, discriminator_learning_rate=2e-4, **flags)
    line = TrainingLog.read(folder / "training_log.jsonl")[0]
    assert line["lr"] == pytest.approx(8e-4) and line["discriminator_lr"] == pytest.approx(16e-4)


def test_8_bit_adam_needs_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SystemExit, match=r"error: .*diffusers_lasers\[8bit\]"):
        run(use_8bit_adam=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("update", ["gradient", "bcd"])
def test_8_bit_adam_trains_and_resumes_with_the_dictionarys_moments_as_floats(run, update):
    pytest.importorskip("bitsandbytes")
    flags = {"use_8bit_adam": None, "num_atoms": 512, "revive_every": 1, "dictionary_update": update}
    folder = run(steps=4, checkpointing_steps=2, **flags)
    state = torch.load(folder / "checkpoint-4" / "optimizer.bin")["state"]

    moments = [
        next(value["state1"] for value in [entry, *entry.values()] if isinstance(value, dict) and "state1" in value)
        for entry in state.values()
    ]
    kinds = {moment.shape: moment.dtype for moment in moments}
    assert torch.uint8 in kinds.values()
    assert kinds.get((16, 512)) == (torch.float32 if update == "gradient" else None)
    whole = load_file(folder / WEIGHTS)
    resumed = load_file(run(steps=4, resume_from_checkpoint="checkpoint-2", **flags) / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# Secrets


def test_the_token_is_nowhere(run, monkeypatch, capfd, caplog, tmp_path):
    import huggingface_hub

    class Api:
        def __init__(self, token=None):
            assert token == "hf_secret"

        def create_repo(self, name, exist_ok):
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments):
            uploaded.append(arguments["ignore_patterns"])
            raise OSError("hf_secret may not write here")

    uploaded = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    secrets = ["--hub_token", "hf_secret", "--hub_token=hf_secret", "--tracker_project_name", "of-hf_secret"]
    monkeypatch.setattr(sys, "argv", ["train_dlgan.py", *secrets])
    flags = {"push_to_hub": None, "hub_token": "hf_secret", "report_to": "tensorboard", "checkpointing_steps": 1}
    stopped(run, **flags)  # the upload failed
    assert "the upload: *** may not write here" in caplog.text and "run.json" in uploaded[0]
    files = contents(tmp_path / "out")
    assert any("tfevents" in path.name for path in files) and any(path.name == "optimizer.bin" for path in files)
    assert not [path for path, data in files.items() if b"hf_secret" in data]
    with pytest.raises(SystemExit):
        run(hub_tok="hf_secret")
    said = capfd.readouterr()
    assert "unrecognized arguments: --hub_tok" in said.err
    assert "hf_secret" not in said.out + said.err + caplog.text


# What is wrong is said in one sentence, before anything is written


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"train_batch_size": 0}, "--train_batch_size must be at least 1, got 0."),
        ({"max_train_steps": 0}, "--max_train_steps must be at least 1, got 0."),
        ({"revive_every": -1}, "--revive_every must be at least 0, got -1."),
        ({"num_validation_images": 0}, "--num_validation_images must be at least 1, got 0."),
        ({"dataset_name": "a", "train_data_dir": "b"}, "Give --dataset_name or --train_data_dir, not both."),
        ({"validation_split": "test"}, "--validation_split names a split of --dataset_name, which is not given."),
        ({"eta": 0.5}, "--eta 0.5 needs a perceptual network: give --perceptual squeeze, alex or vgg."),
        ({"eta": 2}, r"--eta must lie in [0, 1], got 2.0."),
        ({"perceptual_weights": "x"}, "--perceptual_weights needs --perceptual squeeze, alex or vgg."),
        ({"bottleneck": "vq", "sparsity": 2}, "--sparsity has no meaning for --bottleneck vq."),
        ({"depth": 2}, "--depth has no meaning for --bottleneck dictionary."),
        (
            {"pretrained_model_name_or_path": "x", "num_atoms": 8},
            "--num_atoms cannot be given together with --pretrained",
        ),
        (
            {"pretrained_model_name_or_path": "x", "model_config_name_or_path": "y"},
            "--model_config_name_or_path cannot be given together with --pretrained_model_name_or_path.",
        ),
        (
            {"discriminator_config_name_or_path": "x", "discriminator_layers": 2, "adversarial_loss": "hinge"},
            "--discriminator_layers cannot be given together with --discriminator_config_name_or_path.",
        ),
        (
            {"model_config_name_or_path": "x", "preset": "paper"},
            "--preset cannot be given together with --model_config_name_or_path.",
        ),
        ({"bottleneck": "lasers"}, "invalid choice: 'lasers'"),
        ({"lr_scheduler": "steep"}, "invalid choice: 'steep'"),
        ({"learning_rate": -1}, "--learning_rate must be at least 0, got -1.0."),
        ({"streaming": None}, "--streaming needs --dataset_name or --train_data_dir."),
        ({"streaming": None, "train_data_dir": "a"}, "--streaming needs --max_train_steps"),
        (
            {"streaming": None, "train_data_dir": "a", "max_train_steps": 1, "cache_in_memory": None},
            "--cache_in_memory has no meaning with --streaming.",
        ),
        ({"discriminator_start": 3}, "--discriminator_start needs --adversarial_loss hinge or vanilla."),
        ({"lecam_weight": 0.1}, "--lecam_weight needs --adversarial_loss hinge or vanilla."),
        ({"discriminator_warmup_steps": 5}, "--discriminator_warmup_steps needs --adversarial_loss hinge or vanilla."),
        ({"ema_decay": 1}, "--ema_decay must lie in [0, 1), got 1.0."),
        ({"bottleneck": "vq", "dictionary_update": "bcd"}, "--dictionary_update bcd has no meaning for"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("-") else None,
)
def test_bad_arguments(script, capsys, tmp_path, flags, sentence):
    with pytest.raises(SystemExit) as stop:
        script.parse_args(words(output_dir=tmp_path / "out", **flags))
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"train_data_dir": "nowhere"}, "found at 'nowhere'"),
        ({"validation_data_dir": "nowhere"}, "found at 'nowhere'"),
        ({"sparsity": 20}, "`sparsity`"),
        ({"resize": 8}, "`resize`"),
        ({"revive_fraction": 2}, "`revive_fraction`"),
        ({"latent_channels": 4, "bottleneck": "fsq", "fsq_levels": 1}, "`levels`"),
        (
            {"resume_from_checkpoint": "checkpoint-9"},
            "--resume_from_checkpoint must be `latest`, a folder, or the name",
        ),
        ({"perceptual": "squeeze", "perceptual_weights": "nowhere"}, "'nowhere' does not exist"),
        ({"pretrained_model_name_or_path": "./nowhere"}, "nowhere"),
        ({"push_to_hub": None, "hub_model_id": "no such/name"}, "Repo id must"),
        ({"push_to_hub": None, "hub_token": "hf_secret"}, "The repository 'out' cannot be made on the Hub"),
        ({"model_config_name_or_path": "./nowhere.json"}, "nowhere"),
        ({"adversarial_loss": "hinge", "discriminator_layers": 4}, "--resolution must be at least 48"),
        ({"adversarial_loss": "hinge", "discriminator_config_name_or_path": "./gone.json"}, "gone"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_prepared(run, tmp_path, flags, sentence):
    with pytest.raises(SystemExit, match="train_dlgan.py: error: ") as stop:
        run(**flags)
    assert sentence in stop.value.code and not (tmp_path / "out").exists()


def launch_two(**flags):
    """Runs the script in two gloo processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command + words(**flags), capture_output=True, text=True, env=environment, timeout=600)


def assert_alike(first, second, folders=(".",)):
    """The logs and weights of two runs agree within the rounding of sums."""
    ours, theirs = (TrainingLog.read(folder / "training_log.jsonl") for folder in (first, second))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=2e-6)
    for one, two in zip(ours, theirs, strict=True):
        for name in set(one) - {"images_per_second"}:
            # a norm of sums that nearly cancel; and a support may flip between atoms that fit alike
            precision = 1e-2 if name.endswith(("gradient_norm", "perplexity")) else 2e-3
            assert two[name] == pytest.approx(one[name], rel=precision, abs=2e-5), (one["step"], name)
    for folder in folders:
        one, two = (load_file(run / folder / WEIGHTS) for run in (first, second))
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")


# Adam divides by the gradient's size: a larger ε keeps it from blowing up the rounding of vanishing gradients. Revival draws from rank 0's
# signals, and a coefficient on the border of two cells of the quantiser may fall into either.
COMPARABLE = {"revive_every": 0, "coefficient_bits": 0, "adam_epsilon": 1e-3}


def test_two_processes_with_half_the_batch_equal_one_with_the_whole(data, tmp_path):
    flags = {name: value for name, value in {**FLAGS, **COMPARABLE}.items() if name != "gradient_accumulation_steps"}
    single = launch(**data, **{**flags, "train_batch_size": 4}, output_dir=tmp_path / "one")
    double = launch_two(**data, **flags, output_dir=tmp_path / "two")
    assert single.returncode == double.returncode == 0, single.stderr + double.stderr
    assert_alike(tmp_path / "one", tmp_path / "two", folders=(".", "discriminator"))
    start = AutoencoderDL.from_pretrained(tmp_path / "one" / "checkpoint-4", subfolder="autoencoder").state_dict()
    end = AutoencoderDL.from_pretrained(tmp_path / "one" / "checkpoint-6", subfolder="autoencoder").state_dict()
    assert not torch.equal(start["bottleneck.dictionary"], end["bottleneck.dictionary"])
    assert len(list((tmp_path / "two" / "checkpoint-6").glob("random_states_*.pkl"))) == 2


def test_two_processes_train_as_one_that_accumulates(data, tmp_path):
    # without a discriminator: λ is a ratio of a micro-batch's gradients, which is not the mean of such ratios
    own = ("adversarial", "discriminator", "lecam", "use_ema", "ema")
    flags = {name: value for name, value in {**FLAGS, **COMPARABLE}.items() if not name.startswith(own)}
    del flags["gradient_accumulation_steps"]
    single = launch(**data, **flags, gradient_accumulation_steps=2, output_dir=tmp_path / "one")
    double = launch_two(**data, **flags, output_dir=tmp_path / "two")
    assert single.returncode == double.returncode == 0, single.stderr + double.stderr
    ours, theirs = (TrainingLog.read(tmp_path / name / "training_log.jsonl") for name in ("one", "two"))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=2e-6)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    one, two = (AutoencoderDL.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    start = AutoencoderDL.from_pretrained(tmp_path / "one" / "checkpoint-4", subfolder="autoencoder").state_dict()
    for name in set(one) - {"bottleneck.coefficient_scale", "bottleneck.scale_steps"}:  # moved each micro-batch
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")
    assert not torch.equal(start["bottleneck.dictionary"], one["bottleneck.dictionary"])
    assert len(list((tmp_path / "two" / "checkpoint-6").glob("random_states_*.pkl"))) == 2
    last = AutoencoderDL.from_pretrained(tmp_path / "one" / "checkpoint-6", subfolder="autoencoder").state_dict()
    assert all(torch.equal(value, last[name]) for name, value in one.items())  # no average: the same weights


def test_two_processes_share_the_sums_of_block_coordinate_descent(data, tmp_path):
    # Three steps. Eq 27 divides by diagonal entries that are 1e-4 of the largest, so that sums which agree to 3e-7 give atoms that agree to 2e-6. The
    # first atom takes nearly all of a site's energy here, and what is left is small enough for a support to flip by that in a later step.
    flags = {**FLAGS, **COMPARABLE, "dictionary_update": "bcd", "max_train_steps": 3, "checkpointing_steps": 1}
    del flags["gradient_accumulation_steps"], flags["checkpoints_total_limit"]
    single = launch(**data, **{**flags, "train_batch_size": 4}, output_dir=tmp_path / "one")
    double = launch_two(**data, **flags, output_dir=tmp_path / "two")
    assert single.returncode == double.returncode == 0, single.stderr + double.stderr
    assert_alike(tmp_path / "one", tmp_path / "two", folders=(".", "discriminator"))
    for step in (1, 2, 3):
        sums = [load_file(tmp_path / n / f"checkpoint-{step}" / "run_state.safetensors") for n in ("one", "two")]
        for name in ("code_statistics", "signal_statistics"):
            one, two = (state[f"upkeep/block_coordinate/statistics/{name}"] for state in sums)
            torch.testing.assert_close(two, one, rtol=0, atol=2e-6 * float(one.abs().max()))


def test_two_processes_resume_bitwise(data, tmp_path):
    flags = {**data, **FLAGS, "output_dir": tmp_path / "m"}
    assert launch_two(**flags).returncode == 0
    whole = load_file(tmp_path / "m" / WEIGHTS)
    shutil.rmtree(tmp_path / "m" / "checkpoint-6")
    result = launch_two(**flags, resume_from_checkpoint="latest")
    assert result.returncode == 0, result.stderr
    resumed = load_file(tmp_path / "m" / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def launch_fsdp(name="fsdp", **flags):
    """Runs the script in two gloo processes with a configuration file for FSDP."""
    configuration = SCRIPT.parent / "accelerate_configs" / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    command += ["--num_processes", "2", "--main_process_port", "0", str(SCRIPT), *words(**flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.parametrize("name", ["fsdp", "zero2"])
def test_two_processes_with_fsdp_equal_one_with_the_whole_batch(data, tmp_path, name):
    flags = {name: value for name, value in {**FLAGS, **COMPARABLE}.items() if name != "gradient_accumulation_steps"}
    flags.update(data, mixed_precision="no")
    single = launch(**{**flags, "train_batch_size": 4}, output_dir=tmp_path / "one")
    double = launch_fsdp(name, **flags, output_dir=tmp_path / "two")
    assert single.returncode == double.returncode == 0, single.stderr + double.stderr
    assert json.loads((tmp_path / "two" / "settings.json").read_text())["sharded"] is True
    assert_alike(tmp_path / "one", tmp_path / "two", folders=(".", "discriminator"))
    # a checkpoint is whole: one process without FSDP takes the last steps of the two
    shutil.copytree(tmp_path / "two", tmp_path / "on")
    shutil.rmtree(tmp_path / "on" / "checkpoint-6")
    alone = {**flags, "train_batch_size": 4, "resume_from_checkpoint": "checkpoint-4"}
    result = launch(**alone, output_dir=tmp_path / "on")
    assert result.returncode == 0, result.stderr
    assert_alike(tmp_path / "one", tmp_path / "on", folders=(".", "discriminator"))


def test_two_processes_with_fsdp_resume_bitwise(data, tmp_path):
    # with revival, coefficients of 8 bits, two micro-batches and bfloat16
    flags = {**data, **FLAGS, "output_dir": tmp_path / "m"}
    result = launch_fsdp(**flags)
    assert result.returncode == 0, result.stderr
    whole = {folder: load_file(tmp_path / "m" / folder / WEIGHTS) for folder in (".", "discriminator")}
    assert json.loads((tmp_path / "m" / "settings.json").read_text())["mixed_precision"] == "bf16"
    shutil.rmtree(tmp_path / "m" / "checkpoint-6")
    result = launch_fsdp(**flags, resume_from_checkpoint="latest")
    assert result.returncode == 0, result.stderr
    for folder, weights in whole.items():
        resumed = load_file(tmp_path / "m" / folder / WEIGHTS)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights), folder


@pytest.mark.parametrize(
    "environment, flags, sentence",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "got DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "got Megatron-LM"),
        ({"FSDP_VERSION": "1"}, {}, "`fsdp_version` must be 2, got 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "`fsdp_offload_params` must be false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "give --gradient_checkpointing"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, {}, "`fsdp_reshard_after_forward` must be true or false"),
        ({}, {"channels_last": None}, "--channels_last cannot be given together with FSDP"),
        ({}, {"mixed_precision": "fp16"}, "FSDP needs --mixed_precision no or bf16, got fp16"),
        ({}, {}, "needs a process group"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_sharded(run, monkeypatch, tmp_path, environment, flags, sentence):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="train_dlgan.py: error: ") as stop:
        run(**flags)
    assert sentence in stop.value.code and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, reshard", [("fsdp", True), ("zero2", False)])
def test_the_configuration_says_whether_weights_are_given_up_between_the_passes(script, monkeypatch, name, reshard):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(SCRIPT.parent / "accelerate_configs" / f"{name}.yaml")).fsdp_config
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key, value in config.items():  # as `accelerate launch` hands it over
        monkeypatch.setenv(key.upper(), str(value).lower())
    assert script.launched_fsdp() is reshard
    given = []
    monkeypatch.setattr(script, "FullySharded", lambda network, keep, reshard: given.append(reshard))
    network = AutoencoderDL(bottleneck_config={"num_atoms": 16, "sparsity": 2})
    accelerator = argparse.Namespace(device=torch.device("cpu"))
    run = argparse.Namespace(model=network, discriminator=None, accelerator=accelerator, sharded={})
    script.shard(run, reshard_after_forward=reshard)
    assert given == [reshard]


# The options of a run, one by one


def test_gradient_checkpointing_changes_nothing_but_memory(run):
    plain = load_file(run(steps=2) / WEIGHTS)
    again = load_file(run(steps=2, gradient_checkpointing=None) / WEIGHTS)
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], rtol=1e-5, atol=1e-6)


def test_block_coordinate_descent_moves_the_dictionary_without_the_optimiser(run):
    folder = run(steps=3, dictionary_update="bcd", checkpointing_steps=2, dictionary_learning_rate=0)
    first = AutoencoderDL.from_pretrained(folder / "checkpoint-2", subfolder="autoencoder").bottleneck.dictionary
    last = AutoencoderDL.from_pretrained(folder).bottleneck.dictionary
    assert (first - last).abs().max() > 1e-4
    resumed = run(steps=3, dictionary_update="bcd", dictionary_learning_rate=0, resume_from_checkpoint="checkpoint-2")
    assert torch.equal(AutoencoderDL.from_pretrained(resumed).bottleneck.dictionary, last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_trains_and_resumes_bitwise(run, workers):
    flags = {"streaming": None, "shuffle_buffer_size": 4, "random_flip": None, "dataloader_num_workers": workers}
    folder = run(steps=5, checkpointing_steps=3, **flags)
    whole = load_file(folder / WEIGHTS)
    assert json.loads((folder / "settings.json").read_text())["images"] is None
    assert "a stream, crops of 32 pixels" in (folder / "README.md").read_text()
    assert any("validation_psnr" in line for line in TrainingLog.read(folder / "training_log.jsonl"))
    resumed = load_file(run(steps=5, resume_from_checkpoint="checkpoint-3", **flags) / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_share_a_stream(data, tmp_path):
    flags = {**data, "resolution": 32, "num_atoms": 16, "sparsity": 2, "train_batch_size": 1, "report_to": "none"}
    result = launch_two(**flags, streaming=None, max_train_steps=3, output_dir=tmp_path / "m")
    assert result.returncode == 0, result.stderr
    AutoencoderDL.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("place", ["map", "workers", "stream"])
def test_an_unreadable_image_stops_the_run_with_its_name(run, data, tmp_path, place):
    photos = shutil.copytree(data["train_data_dir"], tmp_path / "photos")
    whole = (photos / "4.png").read_bytes()
    (photos / "4.png").write_bytes(whole[: len(whole) // 2])
    flags = {"map": {}, "workers": {"dataloader_num_workers": 1}, "stream": {"streaming": None}}[place]
    flags = {**flags, "train_data_dir": photos, "steps": 6}
    with pytest.raises(SystemExit, match=r"^train_dlgan.py: error: The image '.*4.png' cannot be read: .*leaves such"):
        run(**flags)
    folder = run(**flags, skip_unreadable=None)
    log = [line for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line]
    count = sum(line["unreadable_images"] for line in log)
    assert count >= 2 and f"Unreadable images skipped: {count} samples" in (folder / "README.md").read_text()


@pytest.mark.parametrize("streaming", [{}, {"streaming": None}], ids=["map", "stream"])
def test_an_unreadable_held_out_image_is_named_or_left_out(run, data, tmp_path, streaming):
    held_out = shutil.copytree(data["validation_data_dir"], tmp_path / "held-out")
    (held_out / "3.png").write_bytes(b"nothing")
    flags = {**streaming, "validation_data_dir": held_out, "steps": 1}
    with pytest.raises(SystemExit, match=r"^train_dlgan.py: error: The image '.*3.png' cannot be read: .*leaves such"):
        run(**flags)
    assert "validation_psnr" in TrainingLog.read(run(**flags, skip_unreadable=None) / "training_log.jsonl")[-1]


def test_the_perceptual_figure_of_the_held_out_images_is_logged(run, tmp_path):
    torch.manual_seed(0)
    network = PerceptualSimilarity("squeeze")
    features = {f"features.{name}": value for name, value in network.features.state_dict().items()}
    save_file(features, tmp_path / "squeezenet1_1.safetensors")
    folder = run(steps=1, perceptual="squeeze", perceptual_weights=tmp_path)
    line = TrainingLog.read(folder / "training_log.jsonl")[-1]
    assert (
        line["validation_lpips"] > 0
        and f"| LPIPS (squeeze) | {line['validation_lpips']:.4f} |" in (folder / "README.md").read_text()
    )


def test_trackers_get_figures_and_pictures(run, monkeypatch):
    import accelerate.tracking

    calls = {"figures": [], "pictures": []}
    tracker = accelerate.tracking.TensorBoardTracker
    monkeypatch.setattr(tracker, "log", lambda self, values, step, **_: calls["figures"].append((step, values)))
    monkeypatch.setattr(tracker, "log_images", lambda self, v, step, **_: calls["pictures"].append((step, v)))
    run(steps=2, report_to="tensorboard", adversarial_loss="hinge", discriminator_channels=8, discriminator_start=0)
    figures = {name for _, values in calls["figures"] for name in values}
    assert figures >= {
        *("loss", "mse", "psnr", "perplexity", "dead_atoms", "bits_per_pixel", "images_per_second", "gradient_norm"),
        *("adversarial_weight", "discriminator_loss", "discriminator_gradient_norm", "validation_psnr", "lr"),
    }
    assert calls["pictures"][0][0] == 2 and calls["pictures"][0][1]["validation"].shape == (1, 64, 5 * 32, 3)


def test_a_tracker_that_is_not_installed_is_named(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(words(report_to="mlflow"))
    assert "--report_to mlflow is not installed; installed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [{"task": "super_resolution", "scale": 2}, {"task": "inpainting"}, {"task": "inpainting", "mask": "random"}],
    ids=["super-resolution", "center", "random"],
)
def test_restoration_saves_a_pipeline_and_its_figures(run, script, flags, monkeypatch):
    targets, loss = [], script.training_loss
    monkeypatch.setattr(
        script, "training_loss", lambda output, x, *rest: (targets.append(x), loss(output, x, *rest))[1]
    )
    out = run(steps=2, validation_steps=0, num_validation_images=2, **flags)
    x = targets[0][:1]
    assert x[..., 12:20, 12:20].any()  # losses look at clean images
    pipeline = DLRestorationPipeline.from_pretrained(out / "pipeline")
    assert pipeline.config.task == flags["task"]
    model = AutoencoderDL.from_pretrained(out)
    with torch.no_grad():
        if flags["task"] == "super_resolution":
            low = reduce_bicubic(x, 2)
            restored = pipeline(low / 2 + 0.5, output_type="pt").images
            expected = model(upscale_bicubic(low, 2)).sample
        else:
            mask = center_mask(32, 32)
            restored = pipeline(x / 2 + 0.5, mask, paste_known=False, output_type="pt").images
            expected = model(hide(x, mask)).sample
    torch.testing.assert_close(restored, (expected.clamp(-1, 1) + 1) / 2, rtol=1e-3, atol=1e-4)
    log = TrainingLog.read(out / "training_log.jsonl")
    assert "validation_psnr" in log[-1] and ("validation_masked_psnr" in log[-1]) == (flags["task"] == "inpainting")
    picture = Image.open(next((out / "validation").glob("*.png")))
    assert picture.size[1] == 3 * 32
    assert flags["task"] in (out / "README.md").read_text()


def test_random_masks_go_on_where_they_stopped(run, tmp_path):
    flags = {"task": "inpainting", "mask": "random", "checkpointing_steps": 2, "validation_steps": 0}
    whole = load_file(run(steps=4, **flags) / WEIGHTS)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = load_file(run(steps=4, resume_from_checkpoint="latest", **flags) / WEIGHTS)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    other = load_file(
        run(steps=4, output_dir=tmp_path / "other", **{**flags, "mask": "center"}).parent / "other" / WEIGHTS
    )
    assert not all(torch.equal(value, whole[name]) for name, value in other.items())


def test_the_encoder_is_given_the_degraded_image(run, script, monkeypatch):
    inputs, forward = [], AutoencoderDL.forward
    monkeypatch.setattr(
        AutoencoderDL,
        "forward",
        lambda self, x, *rest, **named: (inputs.append(x.detach().clone()), forward(self, x, *rest, **named))[1],
    )
    run(steps=1, task="inpainting")
    assert not inputs[0][..., 12:20, 12:20].any() and inputs[0][..., :8, :8].any()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"task": "super_resolution", "scale": 5}, "--scale must divide --resolution 32, got 5."),
        ({"task": "inpainting", "mask_fraction": 0}, "--mask_fraction must lie in (0, 1], got 0.0."),
        ({"scale": 0}, "--scale must be at least 1, got 0."),
    ],
)
def test_wrong_arguments_of_tasks(script, capsys, flags, sentence):
    with pytest.raises(SystemExit):
        script.parse_args(words(output_dir="x", resolution=32, **flags))
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("task, wanted", [("reconstruction", False), ("inpainting", True)])
def test_ranks_get_seeds_of_their_own_only_where_they_hide_rectangles(run, script, monkeypatch, task, wanted):
    seeded, set_seed = [], script.set_seed
    monkeypatch.setattr(
        script, "set_seed", lambda seed, device_specific=False: (seeded.append(device_specific), set_seed(seed))[1]
    )
    run(steps=1, task=task, mask="random", validation_steps=0)
    assert any(seeded) is wanted
