"""examples/train_dlgan.py in processes: launched as a user does it, killed, resumed, and as several that train as one.

Launched for real, a new interpreter each: `accelerate launch` to train and to resume, with the configuration of one GPU
and with that of FSDP, and `torchrun`. Every other process is forked (see conftest.py), and runs that are compared with
one run share it.
"""

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
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from diffusers_lasers import AutoencoderDL, PatchDiscriminator, SparseCode
from diffusers_lasers.training import Degradation, TrainingLog
from diffusers_lasers.training.autoencoder.reconstruction_figures import held_out_figures


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train_dlgan.py"
CONFIGURATIONS = SCRIPT.parent / "accelerate_configs"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE_PROCESS = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu".split()
# Small enough for seconds, and with everything on that a checkpoint has to restore.
FLAGS = {
    "resolution": 32,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "random_flip": None,
    "bottleneck_config": {"num_atoms": 32, "sparsity": 2},
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
    "discriminator_config": {"base_channels": 8},
    "discriminator_start": 2,
    "discriminator_warmup_steps": 3,
    "discriminator_learning_rate": 1e-3,
    "discriminator_lr_scheduler": "linear",
    "lecam_weight": 0.01,
    "use_ema": None,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def launch(words):
    """Runs `python -m LAUNCHER… train_dlgan.py --FLAGS…` to its end, as the README says."""

    def start(*launcher, cpu=None, **flags):
        path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            **({"ACCELERATE_USE_CPU": "true"} if cpu else {}),
        }
        command = [sys.executable, "-m", *map(str, launcher), str(SCRIPT), *words(**flags)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert result.returncode == 0, result.stderr
        return result

    return start


@pytest.fixture(scope="module")
def train(forked, words):
    """Trains in forked processes to the end."""

    def start(processes=1, environment=(), **flags):
        forked(SCRIPT, words(**flags), processes, environment)

    return start


@pytest.fixture(scope="module")
def trained(launch, data, tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    launch("accelerate.commands.launch", *ONE_PROCESS, **data, **FLAGS, output_dir=folder)
    return folder


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def assert_same(first, second, folders=(".", "discriminator")):
    """Two runs have the same weights to the bit."""
    for folder in folders:
        ours, theirs = (load_file(run / folder / WEIGHTS) for run in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), folder


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


def test_checkpoints_hold_no_pickle_of_ours(trained):
    names = {path.name for path in (trained / "checkpoint-6").iterdir()}
    assert names == {
        *("autoencoder", "discriminator", "manifest.json", "optimizer.bin", "random_states_0.pkl"),
        *("run.json", "run_state.safetensors"),
    }
    states = load_file(trained / "checkpoint-6" / "run_state.safetensors")
    assert {name.split("/")[0] for name in states} == {"average", "lecam", "upkeep"}


def optimizer_moments(folder):
    return torch.load(folder / "checkpoint-6" / "optimizer.bin")["state"]


def test_a_resumed_run_passes_over_a_damaged_checkpoint_and_equals_an_uninterrupted_one(
    trained, launch, data, tmp_path
):
    folder = tmp_path / "model"
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.copytree(trained / name, folder / name)
    shutil.copy(trained / "training_log.jsonl", folder)
    damaged = folder / "checkpoint-6" / "optimizer.bin"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    flags = {**data, **FLAGS, "output_dir": folder, "resume_from_checkpoint": "latest"}
    result = launch("accelerate.commands.launch", *ONE_PROCESS, **flags)
    assert "checkpoint-6 is damaged: optimizer.bin" in result.stderr + result.stdout
    assert_same(folder, trained)
    assert damaged.stat().st_size > 0
    assert damaged.read_bytes() == (trained / "checkpoint-6" / "optimizer.bin").read_bytes()
    resumed = optimizer_moments(folder)
    for index, state in optimizer_moments(trained).items():
        for name, value in state.items():
            assert torch.equal(value, resumed[index][name])
    logs = [
        [
            {name: value for name, value in line.items() if name != "images_per_second"}
            for line in TrainingLog.read(place / "training_log.jsonl")
        ]
        for place in (trained, folder)
    ]
    assert logs[0] == logs[1]


def test_vq_is_trained_by_the_same_command_and_with_the_configuration_of_one_gpu(launch, data, tmp_path):
    launcher = ("accelerate.commands.launch", "--config_file", CONFIGURATIONS / "single_gpu.yaml", "--cpu")
    small = {
        "bottleneck": "vq",
        "bottleneck_config": {"num_codewords": 16},
        "resolution": 32,
        "train_batch_size": 4,
        "max_train_steps": 2,
    }
    launch(*launcher, **data, **small, output_dir=tmp_path / "m")
    model = AutoencoderDL.from_pretrained(tmp_path / "m").eval()
    assert model.config.bottleneck_type == "vq" and model.bits_per_pixel(32, 32) == pytest.approx(4 / 16)
    assert list((tmp_path / "m" / "logs").rglob("events.out.tfevents.*"))  # tensorboard is the default
    assert json.loads((tmp_path / "m" / "settings.json").read_text())["mixed_precision"] == "bf16"


def test_a_run_that_is_killed_ends_in_the_same_weights(trained, fork, train, words, data, tmp_path):
    """Once a while after a step, and once while a checkpoint is being written."""
    folder = tmp_path / "killed"
    flags = {**data, **FLAGS, "checkpointing_steps": 1, "output_dir": folder, "resume_from_checkpoint": "latest"}
    for goal, writing in ((1, False), (3, True)):
        run = fork(SCRIPT, words(**flags))
        while run.running:
            done = len([line for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line])
            if done >= goal:
                if not writing:
                    time.sleep(np.random.default_rng(0).uniform(0, 0.03))
                elif not any(folder.glob("checkpoint-*.tmp")):
                    continue
                break
            time.sleep(0.002)
        assert run.kill() == [-signal.SIGKILL] and done >= goal  # it had not ended by itself
        assert not (folder / "checkpoint-6").exists()
    train(**flags)
    assert_same(folder, trained)
    states = [optimizer_moments(place) for place in (folder, trained)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    steps = [line["step"] for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line]
    assert steps == list(range(1, 7))


# Two processes


def judge_on_two_ranks(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()

    class HeldOut:
        broken = rank == 1

        def __len__(self):
            return 2

        def take(self, indices):
            if self.broken:
                raise ValueError("one of mine is broken")
            return torch.zeros(1, 3, 32, 32)

    accelerator, held_out, said = Accelerator(cpu=True), HeldOut(), []
    model = AutoencoderDL(bottleneck_config={"num_atoms": 16, "sparsity": 2}).eval()
    try:
        held_out_figures(model, accelerator, held_out, 1, Degradation())
    except ValueError as error:
        said.append(str(error))
    held_out.broken = False
    figures = held_out_figures(model, accelerator, held_out, 1, Degradation())
    torch.save({"said": said, "psnr": figures["validation_psnr"]}, f"{folder}/{rank}.pt")
    accelerator.wait_for_everyone()


def test_no_process_waits_for_one_that_cannot_judge_its_share(in_two_processes, tmp_path):
    first, second = in_two_processes(judge_on_two_ranks, tmp_path)
    assert first["said"] == ["another process could not judge its share of the held-out images."]
    assert second["said"] == ["one of mine is broken"] and first["psnr"] == second["psnr"]


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


# Adam divides by the gradient's size: a larger ε keeps it from blowing up the rounding of vanishing gradients. Revival
# draws from rank 0's
# signals, and a coefficient on the border of two cells of the quantiser may fall into either.
FLOATS = {"num_atoms": 32, "sparsity": 2, "coefficient_bits": None}
COMPARABLE = {"revive_every": 0, "bottleneck_config": FLOATS, "adam_epsilon": 1e-3}
# The flags of two processes that train as one with the whole batch.
HALVES = {name: value for name, value in {**FLAGS, **COMPARABLE}.items() if name != "gradient_accumulation_steps"}
TORCHRUN = "torch.distributed.run --standalone --nproc_per_node 2".split()


@pytest.fixture(scope="module")
def whole_batch(train, data, tmp_path_factory):
    """One process that has the batch of two."""
    folder = tmp_path_factory.mktemp("whole") / "one"
    train(**data, **{**HALVES, "train_batch_size": 4}, output_dir=folder)
    return folder


def test_two_processes_with_half_the_batch_equal_one_with_the_whole(launch, whole_batch, data, tmp_path):
    launch(*TORCHRUN, cpu=True, **data, **HALVES, output_dir=tmp_path / "two")
    assert_alike(whole_batch, tmp_path / "two", folders=(".", "discriminator"))
    start = AutoencoderDL.from_pretrained(whole_batch / "checkpoint-4", subfolder="autoencoder").state_dict()
    end = AutoencoderDL.from_pretrained(whole_batch / "checkpoint-6", subfolder="autoencoder").state_dict()
    assert not torch.equal(start["bottleneck.dictionary"], end["bottleneck.dictionary"])
    assert len(list((tmp_path / "two" / "checkpoint-6").glob("random_states_*.pkl"))) == 2


def test_two_processes_train_as_one_that_accumulates(train, data, tmp_path):
    # without a discriminator: λ is a ratio of a micro-batch's gradients, which is not the mean of such ratios
    own = ("adversarial", "discriminator", "lecam", "use_ema", "ema")
    flags = {**data, **{name: value for name, value in HALVES.items() if not name.startswith(own)}}
    train(**flags, gradient_accumulation_steps=2, output_dir=tmp_path / "one")
    train(2, **flags, output_dir=tmp_path / "two")
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


def test_two_processes_share_the_sums_of_block_coordinate_descent(train, data, tmp_path):
    # Three steps. Eq 27 divides by diagonal entries that are 1e-4 of the largest, so that sums which agree to 3e-7 give
    # atoms that agree to 2e-6. The
    # first atom takes nearly all of a site's energy here, and what is left is small enough for a support to flip by
    # that in a later step.
    flags = {**data, **HALVES, "dictionary_update": "bcd", "max_train_steps": 3, "checkpointing_steps": 1}
    del flags["checkpoints_total_limit"]
    train(**{**flags, "train_batch_size": 4}, output_dir=tmp_path / "one")
    train(2, **flags, output_dir=tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two", folders=(".", "discriminator"))
    for step in (1, 2, 3):
        sums = [load_file(tmp_path / n / f"checkpoint-{step}" / "run_state.safetensors") for n in ("one", "two")]
        for name in ("code_statistics", "signal_statistics"):
            one, two = (state[f"upkeep/block_coordinate/statistics/{name}"] for state in sums)
            torch.testing.assert_close(two, one, rtol=0, atol=2e-6 * float(one.abs().max()))


def test_two_processes_resume_bitwise(train, data, tmp_path):
    flags = {**data, **FLAGS, "output_dir": tmp_path / "m"}
    train(2, **flags)
    whole = load_file(tmp_path / "m" / WEIGHTS)
    shutil.rmtree(tmp_path / "m" / "checkpoint-6")
    train(2, **flags, resume_from_checkpoint="latest")
    resumed = load_file(tmp_path / "m" / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_share_a_stream(train, data, tmp_path):
    flags = {**data, "resolution": 32, "train_batch_size": 1, "report_to": "none"}
    flags["bottleneck_config"] = {"num_atoms": 16, "sparsity": 2}
    train(2, **flags, streaming=None, max_train_steps=3, output_dir=tmp_path / "m")
    AutoencoderDL.from_pretrained(tmp_path / "m")


# Two processes with FSDP


def fsdp_launcher(name="fsdp"):
    configuration = CONFIGURATIONS / f"{name}.yaml"
    return (
        "accelerate.commands.launch",
        "--config_file",
        configuration,
        "--num_processes",
        2,
        "--main_process_port",
        0,
    )


def fsdp_environment(name="fsdp"):
    """What `accelerate launch` adds to the environment of the processes that it starts, by its own functions."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = [str(word) for word in (*fsdp_launcher(name)[1:], SCRIPT)]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    given = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in given.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.mark.parametrize("name", ["fsdp", "zero2"])
def test_two_processes_with_fsdp_equal_one_with_the_whole_batch(train, whole_batch, data, tmp_path, name):
    flags = {**data, **HALVES, "mixed_precision": "no"}
    environment = fsdp_environment(name)
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == {"fsdp": "true", "zero2": "false"}[name]
    train(2, environment, **flags, output_dir=tmp_path / "two")
    assert json.loads((tmp_path / "two" / "settings.json").read_text())["sharded"] is True
    assert_alike(whole_batch, tmp_path / "two", folders=(".", "discriminator"))
    # a checkpoint is whole: one process without FSDP takes the last steps of the two
    shutil.copytree(tmp_path / "two", tmp_path / "on")
    shutil.rmtree(tmp_path / "on" / "checkpoint-6")
    alone = {**flags, "train_batch_size": 4, "resume_from_checkpoint": "checkpoint-4"}
    train(**alone, output_dir=tmp_path / "on")
    assert_alike(whole_batch, tmp_path / "on", folders=(".", "discriminator"))


def test_two_processes_with_fsdp_resume_bitwise(launch, train, data, tmp_path):
    # with revival, coefficients of 8 bits, two micro-batches and bfloat16
    flags = {**data, **FLAGS, "output_dir": tmp_path / "m"}
    launch(*fsdp_launcher(), cpu=True, **flags)
    whole = {folder: load_file(tmp_path / "m" / folder / WEIGHTS) for folder in (".", "discriminator")}
    assert json.loads((tmp_path / "m" / "settings.json").read_text())["mixed_precision"] == "bf16"
    shutil.rmtree(tmp_path / "m" / "checkpoint-6")
    train(2, fsdp_environment(), **flags, resume_from_checkpoint="latest")
    for folder, weights in whole.items():
        resumed = load_file(tmp_path / "m" / folder / WEIGHTS)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights), folder
