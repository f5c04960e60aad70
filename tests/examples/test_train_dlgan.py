"""The options of examples/train_dlgan.py, in this process; test_train_dlgan_processes.py launches it."""

import inspect
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_lasers import (
    AutoencoderDL,
    DLRestorationPipeline,
    FactorizedPrior,
    PatchDiscriminator,
    PerceptualSimilarity,
)
from diffusers_lasers.functional.images import center_mask, hide, reduce_bicubic, upscale_bicubic
from diffusers_lasers.models.autoencoders.autoencoder_dl import BOTTLENECKS
from diffusers_lasers.training import TrainingLog
from diffusers_lasers.training.autoencoder import networks_from_flags
from diffusers_lasers.training.autoencoder.autoencoder_flags import REPLACED
from diffusers_lasers.training.run.launch import launched_fsdp


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train_dlgan.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    "name, processes, machines",
    [("single_gpu", 1, 1), ("multi_gpu", 8, 1), ("multi_node", 16, 2), ("fsdp", 8, 1), ("zero2", 8, 1)],
)
def test_the_launch_configurations_are_accelerates(name, processes, machines):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(SCRIPT.parent / "accelerate_configs" / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == "bf16" and not config.use_cpu


# Its options, one by one


@pytest.mark.parametrize(
    "flags",
    [
        {"bottleneck": "vq", "bottleneck_config": {"num_codewords": 16}},
        {"bottleneck": "fsq", "bottleneck_config": {"levels": 5}},
        {"bottleneck": "residual_vq", "bottleneck_config": {"depth": 2, "num_codewords": 8, "patch_size": 2}},
        {"bottleneck": "scalar", "bottleneck_config": {"bits": 6, "rate_weight": 0.01}},
        {"bottleneck": "residual_vq", "bottleneck_config": {"depth": 2, "num_codewords": 8}, "rate_weight": 0.01},
        {"rate_weight": 0.01, "use_ema": None, "dictionary_update": "bcd", "revive_every": 1},
        {"bottleneck": "none", "channels_last": None},
        {
            **{"preset": "paper", "latent_channels": 4},
            "bottleneck_config": {
                **{"num_atoms": 16, "sparsity": 2, "gradient": "projection", "pursuit": "ols", "patch_size": 2}
            },
        },
        {"mixed_precision": "bf16", "adam_weight_decay": 0.1, "max_grad_norm": 0},
        {"dataloader_num_workers": 1, "cache_in_memory": None, "center_crop": None, "crops_per_image": 2},
        {"dictionary_update": "bcd", "use_ema": None, "revive_every": 1, "revive_fraction": 0.5},
        {
            **{"adversarial_loss": "vanilla", "preset": "paper", "discriminator_start": 0},
            "discriminator_config": {"base_channels": 8},
        },
        {
            "adversarial_loss": "hinge",
            "discriminator_config": {"norm_type": "none", "base_channels": 8},
            "channels_last": None,
        },
        {
            "no_adaptive_weight": None,
            "adversarial_loss": "hinge",
            "discriminator_config": {"base_channels": 8},
            "mixed_precision": "bf16",
        },
    ],
    ids=lambda flags: next(iter(flags.values())) or next(iter(flags)),
)
def test_variants_train_and_load(run, flags):
    folder = Path(run(**flags))
    model = AutoencoderDL.from_pretrained(folder).eval()
    with torch.no_grad():
        assert model(images()).sample.isfinite().all()
        if not model.levels:
            assert not (folder / "prior").exists()
            return
        # its prior was fitted to the codes of the weights that are saved
        prior, code = FactorizedPrior.from_pretrained(folder, subfolder="prior"), model.encode_to_code(images())
        assert int(prior.coder_fingerprint) == model.fingerprint and 0 < int(prior.site_bits) <= model.bits_per_site
        assert prior.decompress(prior.compress(code)) == model.unpack(model.pack(code))


def test_networks_start_from_images_unless_told_otherwise(run):
    def shortcut(**flags):
        model = AutoencoderDL.from_pretrained(run(learning_rate=0.0, steps=1, **flags))
        weight = model.encoder.shortcut.weight.detach().flatten(1)
        return torch.nn.functional.normalize(weight, dim=1)

    started, at_random = shortcut(), shortcut(no_data_initialization=None)
    identity = torch.eye(len(started))
    assert (started @ started.t() - identity).abs().max() < 1e-4  # principal axes
    assert (at_random @ at_random.t() - identity).abs().max() > 0.05


def test_flags_reach_the_model(run):
    folder = run(
        preset="paper",
        latent_channels=4,
        bottleneck_config={"num_atoms": 8, "sparsity": 3, "patch_size": 2, "coefficient_bits": 6, "pursuit": "ols"},
    )
    model = AutoencoderDL.from_pretrained(folder)
    config = model.config.bottleneck_config
    assert model.config.latent_channels == 4 and model.bottleneck.dictionary.shape == (16, 8)
    assert (config["sparsity"], config["coefficient_bits"], config["pursuit"]) == (3, 6, "ols")
    floats = AutoencoderDL.from_pretrained(run(bottleneck_config={"coefficient_bits": None}))
    assert floats.bottleneck.config.coefficient_bits is None


@pytest.mark.parametrize("widths, factor", [((16,), 4), ((16, 32), 8), ((8, 8, 16), 16)])
def test_the_number_of_widths_says_how_often_the_sides_are_halved(run, widths, factor):
    model = AutoencoderDL.from_pretrained(run(block_out_channels=widths, latent_channels=8, steps=1))
    assert tuple(model.config.block_out_channels) == widths and model.config.backbone == "residual"
    assert model.encode(images()).latents.shape == (2, 8, 32 // factor, 32 // factor)


def test_without_widths_the_networks_are_the_presets(script, words):
    for preset, factor in (("paper", 4), ("corrected", 4)):
        args = script.parse_args(words(preset=preset))
        model = networks_from_flags.build_model(args)
        assert model.config.block_out_channels == AutoencoderDL.from_preset(preset).config.block_out_channels
        assert model.downsampling_factor == factor
    args = script.parse_args(words(preset="paper", block_out_channels=(8, 16, 16, 24)))
    model = networks_from_flags.build_model(args)
    assert model.config.backbone == "light" and model.downsampling_factor == 8


@pytest.mark.parametrize("bottleneck", ["vq", "dictionary", "scalar"])
def test_the_rate_is_logged_in_bits_a_pixel(run, data, bottleneck):
    folder = run(bottleneck=bottleneck, rate_weight=0.02, train_batch_size=2)
    model = AutoencoderDL.from_pretrained(folder).eval()
    assert model.bottleneck.config.rate_weight == model.config.bottleneck_config["rate_weight"] == 0.02
    pictures = [Image.open(path) for path in sorted(Path(data["validation_data_dir"]).iterdir())]
    pixels = torch.stack([torch.tensor(np.asarray(picture))[:, 4:36] for picture in pictures])
    code = model.encode_to_code(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    expected = model.bottleneck.rate(code).sum().item() / (5 * 32 * 32)
    log = TrainingLog.read(folder / "training_log.jsonl")
    assert log[-1]["validation_rate"] == pytest.approx(expected, abs=1e-3) and 0.01 < expected < 24
    assert all(0.01 < line["rate"] < 24 for line in log if "loss" in line)
    written = re.search(r"cross-entropy *\| *([\d.]+)", (folder / "README.md").read_text())
    assert float(written[1]) == pytest.approx(expected, abs=1e-3)
    assert not any("rate" in line for line in TrainingLog.read(run(bottleneck="fsq") / "training_log.jsonl"))


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

        def create_repo(self, name, exist_ok, repo_type):
            calls["name"] = name
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments):
            calls.update(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(sys, "argv", ["train_dlgan.py", "--hub_token", "hf_secret", "--hub_token=hf_secret"])
    flags = {"adversarial_loss": "hinge", "discriminator_config": {"base_channels": 8}, "use_ema": None}
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
    flags = {
        "validation_data_dir": held_out,
        "adversarial_loss": "hinge",
        "discriminator_config": {"base_channels": 8},
    }
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
    whole, validate, calls = load_file(run(**flags) / WEIGHTS), script.reconstruction_figures.held_out_figures, []

    def fail_twice(*arguments):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("no room on the device")
        return validate(*arguments)

    monkeypatch.setattr(script.reconstruction_figures, "held_out_figures", fail_twice)
    stopped(run, **flags)
    weights, card = load_file(tmp_path / "out" / WEIGHTS), (tmp_path / "out" / "README.md").read_text()
    assert all(torch.equal(whole[name], weights[name]) for name in whole)  # it is back in training mode
    assert "| PSNR |" in card and card.count("no room on the device") == 2
    log = TrainingLog.read(tmp_path / "out" / "training_log.jsonl")
    assert [line["step"] for line in log if "validation_psnr" in line] == [3]


@pytest.mark.parametrize(
    "bottleneck",
    [{}, {"bottleneck": "scalar", "bottleneck_config": {"rate_weight": 0.01, "quantization": "noise"}}],
    ids=["dictionary", "noise"],
)
def test_the_checkpoint_comes_before_the_validation_and_resumes_bitwise(
    run, script, tmp_path, monkeypatch, bottleneck
):
    flags = {"steps": 4, "checkpointing_steps": 2, "validation_steps": 2, **bottleneck}
    whole, validate = load_file(run(**flags) / WEIGHTS), script.reconstruction_figures.held_out_figures

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.reconstruction_figures, "held_out_figures", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(**flags)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")]
    monkeypatch.setattr(script.reconstruction_figures, "held_out_figures", validate)
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
    folder = run(adversarial_loss="hinge", discriminator_config={"base_channels": 8}, checkpointing_steps=1)
    before = contents(folder)
    for flags in (
        {"overwrite_output_dir": False},
        {"resume_from_checkpoint": "latest", "bottleneck_config": {"num_atoms": 8}},
    ):
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
        (
            {"bottleneck_config": {"num_atoms": 8}},
            "--bottleneck_config {'num_atoms': 16, 'sparsity': 2} and not {'num_atoms': 8}",
        ),
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


# Configurations as NAME=VALUE, and the flags that they replace


def test_assignments_are_json_or_text_and_the_last_one_counts(script, words):
    line = words(bottleneck_config={"num_atoms": 8, "pursuit": "ols", "coefficient_bits": None})
    args = script.parse_args([*line, "--bottleneck_config", "num_atoms=16", "tolerance=0.5"])
    assert args.bottleneck_config == {"num_atoms": 16, "pursuit": "ols", "coefficient_bits": None, "tolerance": 0.5}
    args = script.parse_args(words(bottleneck="fsq", bottleneck_config={"levels": [8, 8, 5]}))
    assert list(script.networks_from_flags.build_model(args).bottleneck.config.levels) == [8, 8, 5]


@pytest.mark.parametrize("name", REPLACED)
def test_a_flag_that_is_replaced_says_by_what(script, capsys, name):
    for line in ([f"--{name}", "8"], [f"--{name}=8"], [f"--{name}", "8", "8"]):
        with pytest.raises(SystemExit) as stop:
            script.parse_args(line)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and f"error: --{name} is replaced by --" in said
    flag, assignment = REPLACED[name].split()[:2]
    kinds = [PatchDiscriminator] if flag == "--discriminator_config" else BOTTLENECKS.values()
    assert any(assignment.split("=")[0] in inspect.signature(kind.__init__).parameters for kind in kinds)


def test_help_and_the_training_page_have_an_example_for_each_bottleneck(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs/source/en/training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--bottleneck (\w+)` \| `--bottleneck_config ([^`]*)`", page, re.MULTILINE))
    for kind in set(BOTTLENECKS) - {"none"}:
        example = re.search(rf"{kind}: ([^;]*?)(;|\. )", said)[1]
        for words in (example.split(" or ")[0].split(), rows[kind].split()):
            script.parse_args(["--bottleneck", kind, "--bottleneck_config", *words])


def test_the_page_has_the_defaults_of_the_bottlenecks(script):
    page = (ROOT / "docs/source/en/training.md").read_text(encoding="utf-8")
    table = re.search(r"^\| argument \| bottleneck \| paper \| corrected \|.*\n\|.*((?:\n\|.*)+)", page, re.MULTILINE)[
        1
    ]
    compared = set()
    for line in table.strip().splitlines():
        name, kind, *cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")][:4]
        for preset, cell in zip(("paper", "corrected"), cells):
            config = script.networks_from_flags.build_model(
                script.parse_args(["--preset", preset, "--bottleneck", kind])
            ).bottleneck.config
            value = config[name][0] if name == "levels" else config[name]
            assert cell == ("floats" if value is None else str(value)), (name, preset)
        compared.add((name, kind))
    assert len(compared) >= 11


def test_a_checkpoint_with_the_flags_of_before_is_refused_and_its_weights_are_a_start(run, tmp_path):
    """The checkpoint was written by commit 0ddabd6, with 8 atoms of 4 channels."""
    old = Path(__file__).parent / "checkpoint_of_0ddabd6"
    with pytest.raises(SystemExit, match="other flags .--num_atoms, --sparsity, --depth, ….*--pretrained_model_name"):
        run(resume_from_checkpoint=old)
    assert not (tmp_path / "out").exists()
    folder = run(steps=1, pretrained_model_name_or_path=old, learning_rate=0)
    ours, theirs = load_file(folder / WEIGHTS), load_file(old / "autoencoder" / WEIGHTS)
    for name in set(theirs) - {"bottleneck.coefficient_scale", "bottleneck.scale_steps"}:  # moved by every batch
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


# Trained weights to start from, and the optimiser


@pytest.mark.parametrize("place", ["model", "checkpoint"])
def test_training_starts_from_trained_weights(run, tmp_path, place):
    flags = {"adversarial_loss": "hinge", "discriminator_start": 0, "revive_every": 0}
    folder = run(steps=2, checkpointing_steps=2, discriminator_config={"base_channels": 8}, **flags)
    source = shutil.copytree(folder if place == "model" else folder / "checkpoint-2", tmp_path / "source")
    still = {"learning_rate": 0, "discriminator_learning_rate": 0, "discriminator_lr_scheduler": "constant"}
    folder = run(steps=1, pretrained_model_name_or_path=source, **still, **flags)
    old = load_file(source / ("autoencoder" if place == "checkpoint" else ".") / WEIGHTS)
    new = load_file(folder / WEIGHTS)
    for name in set(old) - {"bottleneck.coefficient_scale", "bottleneck.scale_steps"}:  # moved by every batch
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
    ours, theirs = (load_file(path / "discriminator" / WEIGHTS) for path in (folder, source))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert AutoencoderDL.from_pretrained(folder).bottleneck.dictionary.shape == (16, 16)
    # another discriminator is asked for, or none comes with the model
    other = run(steps=1, pretrained_model_name_or_path=source, discriminator_config={"base_channels": 16}, **flags)
    assert PatchDiscriminator.from_pretrained(other / "discriminator").config.base_channels == 16
    shutil.rmtree(source / "discriminator")
    other = run(steps=1, pretrained_model_name_or_path=source, **flags)
    assert PatchDiscriminator.from_pretrained(other / "discriminator").config.base_channels == 64


@pytest.mark.parametrize("preset, weight, rate", [("corrected", 0.1, 1e-3), ("paper", 1, 5e-4)])
def test_the_discriminator_has_defaults_of_its_own(run, preset, weight, rate):
    flags = {"adversarial_loss": "hinge", "discriminator_config": {"base_channels": 8}, "discriminator_start": 0}
    folder = run(preset=preset, learning_rate=5e-4, no_adaptive_weight=None, discriminator_warmup_steps=0, **flags)
    line = next(line for line in TrainingLog.read(folder / "training_log.jsonl") if "loss" in line)
    assert line["adversarial_weight"] == pytest.approx(weight) and line["discriminator_lr"] == pytest.approx(rate)


def test_learning_rates_are_scaled_by_the_images_of_a_step(run):
    flags = {"learning_rate": 1e-4, "adversarial_loss": "hinge", "discriminator_config": {"base_channels": 8}}
    flags |= {"gradient_accumulation_steps": 2, "discriminator_learning_rate": 2e-4, "lr_scheduler": "constant"}
    folder = run(steps=1, scale_lr=None, lr_warmup_steps=0, **flags)
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
    flags = {
        "use_8bit_adam": None,
        "bottleneck_config": {"num_atoms": 512, "sparsity": 2},
        "revive_every": 1,
        "dictionary_update": update,
    }
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

        def create_repo(self, name, exist_ok, repo_type):
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
        (
            {"bottleneck": "vq", "bottleneck_config": {"sparsity": 2}},
            "--bottleneck_config of --bottleneck vq takes num_codewords, patch_size, decay, commitment_weight, "
            "revive_threshold, rate_weight, got sparsity.",
        ),
        (
            {"bottleneck_config": {"depth": 2}},
            "--bottleneck_config of --bottleneck dictionary takes num_atoms, sparsity,",
        ),
        ({"bottleneck": "none", "bottleneck_config": {"depth": 2}}, "of --bottleneck none takes no names, got depth."),
        ({"bottleneck_config": "sparsity"}, "argument --bottleneck_config: must be NAME=VALUE, got 'sparsity'."),
        (
            {"pretrained_model_name_or_path": "x", "bottleneck_config": {"num_atoms": 8}},
            "--bottleneck_config cannot be given together with --pretrained",
        ),
        (
            {"pretrained_model_name_or_path": "x", "model_config_name_or_path": "y"},
            "--model_config_name_or_path cannot be given together with --pretrained_model_name_or_path.",
        ),
        (
            {
                **{"discriminator_config_name_or_path": "x", "adversarial_loss": "hinge"},
                "discriminator_config": {"num_layers": 2},
            },
            "--discriminator_config cannot be given together with --discriminator_config_name_or_path.",
        ),
        (
            {"model_config_name_or_path": "x", "preset": "paper"},
            "--preset cannot be given together with --model_config_name_or_path.",
        ),
        (
            {"model_config_name_or_path": "x", "block_out_channels": (8, 8)},
            "--block_out_channels cannot be given together with --model_config_name_or_path.",
        ),
        (
            {"pretrained_model_name_or_path": "x", "block_out_channels": (8, 8)},
            "--block_out_channels cannot be given together with --pretrained_model_name_or_path.",
        ),
        ({"block_out_channels": ()}, "argument --block_out_channels: expected at least one argument"),
        ({"bottleneck": "lasers"}, "invalid choice: 'lasers'"),
        ({"lr_scheduler": "steep"}, "invalid choice: 'steep'"),
        ({"learning_rate": -1}, "--learning_rate must be at least 0, got -1.0."),
        ({"streaming": None}, "--streaming needs --dataset_name or --train_data_dir."),
        ({"streaming": None, "train_data_dir": "a"}, "--streaming needs --max_train_steps"),
        (
            {"streaming": None, "train_data_dir": "a", "max_train_steps": 1, "cache_in_memory": None},
            "--cache_in_memory has no meaning with --streaming.",
        ),
        (
            {"bottleneck": "fsq", "rate_weight": 0.1},
            "--rate_weight needs --bottleneck dictionary, vq, residual_vq, scalar, got fsq.",
        ),
        (
            {"rate_weight": 0.1, "bottleneck_config": {"rate_weight": 0.1}},
            "--rate_weight cannot be given together with --bottleneck_config rate_weight.",
        ),
        (
            {"rate_weight": 0.1, "model_config_name_or_path": "x"},
            "--rate_weight cannot be given together with --model_config_name_or_path.",
        ),
        ({"discriminator_start": 3}, "--discriminator_start needs --adversarial_loss hinge or vanilla."),
        ({"lecam_weight": 0.1}, "--lecam_weight needs --adversarial_loss hinge or vanilla."),
        ({"discriminator_warmup_steps": 5}, "--discriminator_warmup_steps needs --adversarial_loss hinge or vanilla."),
        ({"ema_decay": 1}, "--ema_decay must lie in [0, 1), got 1.0."),
        ({"bottleneck": "vq", "dictionary_update": "bcd"}, "--dictionary_update bcd has no meaning for"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("-") else None,
)
def test_bad_arguments(script, words, capsys, tmp_path, flags, sentence):
    with pytest.raises(SystemExit) as stop:
        script.parse_args(words(output_dir=tmp_path / "out", **flags))
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"train_data_dir": "nowhere"}, "found at 'nowhere'"),
        ({"validation_data_dir": "nowhere"}, "found at 'nowhere'"),
        ({"bottleneck_config": {"num_atoms": 16, "sparsity": 20}}, "`sparsity`"),
        ({"bottleneck_config": {"sparsity": "many"}}, "`sparsity`"),
        ({"resize": 8}, "`resize`"),
        ({"block_out_channels": (0,)}, "`block_out_channels`"),
        ({"block_out_channels": (8, 24)}, "`block_out_channels` must be multiples of 4, each 1, 2 or 4 times the one"),
        ({"preset": "paper", "block_out_channels": (8,)}, "`block_out_channels` must have at least 2 widths"),
        ({"revive_fraction": 2}, "`revive_fraction`"),
        ({"latent_channels": 4, "bottleneck": "fsq", "bottleneck_config": {"levels": 1}}, "`levels`"),
        (
            {"resume_from_checkpoint": "checkpoint-9"},
            "--resume_from_checkpoint must be `latest`, a folder, or the name",
        ),
        ({"perceptual": "squeeze", "perceptual_weights": "nowhere"}, "'nowhere' does not exist"),
        ({"pretrained_model_name_or_path": "./nowhere"}, "nowhere"),
        ({"push_to_hub": None, "hub_model_id": "no such/name"}, "Repo id must"),
        ({"push_to_hub": None, "hub_token": "hf_secret"}, "The repository 'out' cannot be made on the Hub"),
        ({"model_config_name_or_path": "./nowhere.json"}, "nowhere"),
        ({"adversarial_loss": "hinge", "discriminator_config": {"num_layers": 4}}, "--resolution must be at least 48"),
        ({"adversarial_loss": "hinge", "discriminator_config_name_or_path": "./gone.json"}, "gone"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_prepared(run, tmp_path, flags, sentence):
    with pytest.raises(SystemExit, match="train_dlgan.py: error: ") as stop:
        run(**flags)
    assert sentence in stop.value.code and not (tmp_path / "out").exists()


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
def test_the_configuration_says_whether_weights_are_given_up_between_the_passes(
    run, script, monkeypatch, name, reshard
):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(SCRIPT.parent / "accelerate_configs" / f"{name}.yaml")).fsdp_config
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key, value in config.items():  # as `accelerate launch` hands it over
        monkeypatch.setenv(key.upper(), str(value).lower())
    assert launched_fsdp() is reshard
    given = []

    def shards(network, keep, reshard_after_forward):
        given.append(reshard_after_forward)
        raise ValueError("it was seen")

    monkeypatch.setattr(script, "FullySharded", shards)
    with pytest.raises(SystemExit, match="it was seen"):
        run()
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
    run(
        steps=2,
        report_to="tensorboard",
        adversarial_loss="hinge",
        discriminator_config={"base_channels": 8},
        discriminator_start=0,
    )
    figures = {name for _, values in calls["figures"] for name in values}
    assert figures >= {
        *("loss", "mse", "psnr", "perplexity", "dead_atoms", "bits_per_pixel", "images_per_second", "gradient_norm"),
        *("adversarial_weight", "discriminator_loss", "discriminator_gradient_norm", "validation_psnr", "lr"),
    }
    assert calls["pictures"][0][0] == 2 and calls["pictures"][0][1]["validation"].shape == (1, 64, 5 * 32, 3)


def test_a_tracker_that_is_not_installed_is_named(script, words, capsys):
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
def test_wrong_arguments_of_tasks(script, words, capsys, flags, sentence):
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
