"""A run's folder belongs to one run at a time, and a checkpoint to the run that wrote it."""

import argparse
import json
import os
import pickle
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from diffusers_lasers.training import RunFolder, TrainingLog, TrainingState
from diffusers_lasers.training.run.checkpoints import _write_manifest, list_checkpoints
from diffusers_lasers.training.run.run_identity import run_identity
from diffusers_lasers.utils.files import write_json


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def parts(accelerator, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    accelerator._models.clear()
    accelerator._optimizers.clear()
    return accelerator.prepare(model, optimizer), {"schedule": schedule, "state": TrainingState(1, 16)}


def claim(accelerator, folder, identity, **more):
    run = RunFolder(accelerator, folder, identity, **more)
    run.claim()
    return run


@pytest.fixture
def saved(accelerator, tmp_path):
    """A run with one checkpoint, ended; its folder."""
    run = claim(accelerator, tmp_path / "run", {"learning_rate": 0.1})
    _, kept = parts(accelerator)
    TrainingLog(run.path / "training_log.jsonl").write({"step": 1})
    run.save(1, kept)
    run.release()
    return run.path


def test_a_state_comes_back_without_a_pickle_of_ours(accelerator, saved):
    assert not [path for path in (saved / "checkpoint-1").iterdir() if path.name.startswith("custom_checkpoint")]
    run = RunFolder(accelerator, saved, {"learning_rate": 0.1}, resume="latest")
    (model, _), kept = parts(accelerator, seed=1)
    kept["schedule"].step()
    kept["state"].step = 9
    run.load(kept)
    reference = parts(accelerator)
    assert torch.equal(model.weight, reference[0][0].weight)
    assert kept["state"].state_dict() == {"step": 1, "samples_seen": 16, "unreadable": 0}
    assert kept["schedule"].state_dict() == reference[1]["schedule"].state_dict()


def seal(checkpoint):
    (checkpoint / "manifest.json").unlink()
    _write_manifest(checkpoint)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_in_a_checkpoint_runs_no_code(accelerator, saved, tmp_path, monkeypatch, name, writer):
    monkeypatch.chdir(tmp_path)
    checkpoint = saved / "checkpoint-1"
    if writer == "torch":
        torch.save({"step": Payload()}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(pickle.dumps(Payload()))
    seal(checkpoint)
    run = RunFolder(accelerator, saved, {"learning_rate": 0.1}, resume="latest")
    _, kept = parts(accelerator)
    with pytest.raises(ValueError, match="cannot be resumed from: [^\n]*$"):
        run.load(kept)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"learning_rate": None}])
@pytest.mark.parametrize("resume", ["latest", "checkpoint-1"])
def test_a_checkpoint_of_other_arguments_is_refused(accelerator, saved, change, resume):
    with pytest.raises(ValueError, match="belongs to another run, with --learning_rate 0.1 and not"):
        RunFolder(accelerator, saved, change, resume=resume)


def test_a_checkpoint_of_unknown_origin_is_refused(accelerator, saved):
    (saved / "checkpoint-1" / "run.json").unlink()
    seal(saved / "checkpoint-1")
    with pytest.raises(ValueError, match="not written by this version"):
        RunFolder(accelerator, saved, {"learning_rate": 0.1}, resume="latest")


def test_a_folder_with_a_run_is_not_overwritten_unless_asked(accelerator, saved):
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="is not empty.*--overwrite_output_dir"):
        RunFolder(accelerator, saved, {"learning_rate": 0.1})
    assert before == {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    run = claim(accelerator, saved, {"learning_rate": 0.3}, overwrite=True)
    assert list_checkpoints(saved) == [] and not (saved / "training_log.jsonl").exists()
    assert json.loads((saved / "run.json").read_text())["identity"] == {"learning_rate": 0.3}
    run.release()


def test_overwriting_deletes_the_results_of_a_run_and_nothing_of_another_folder(accelerator, saved, tmp_path):
    for folder in (saved, tmp_path / "photos"):
        for name in ("validation", "discriminator"):
            (folder / name).mkdir(parents=True)
            (folder / name / "1.png").write_text("x")
        write_json(folder / "config.json", {})
        (folder / "mine.txt").write_text("x")
    claim(accelerator, saved, {"learning_rate": 0.1}, overwrite=True).release()
    assert sorted(path.name for path in saved.iterdir() if path.name[0] != ".") == ["mine.txt", "run.json"]
    claim(accelerator, saved, {"learning_rate": 0.1}, resume="latest", overwrite=True).release()
    claim(accelerator, tmp_path / "photos", {}, overwrite=True).release()
    assert (tmp_path / "photos" / "validation" / "1.png").is_file() and (tmp_path / "photos" / "config.json").is_file()


def test_only_damaged_checkpoints_stop_the_run_and_lose_nothing(accelerator, saved):
    weights = next((saved / "checkpoint-1").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    log = (saved / "training_log.jsonl").read_text()
    with pytest.raises(ValueError, match="No checkpoint in .* is whole .*: restore one"):
        RunFolder(accelerator, saved, {"learning_rate": 0.1}, resume="latest")
    assert (saved / "training_log.jsonl").read_text() == log and log
    run = claim(accelerator, saved, {"learning_rate": 0.1}, resume="latest", overwrite=True)
    assert run.checkpoint is None and list_checkpoints(saved) == []
    run.release()


def test_latest_goes_on_with_a_run_that_was_killed_before_its_first_checkpoint_only(accelerator, tmp_path):
    claim(accelerator, tmp_path / "run", {"seed": 0}).release()
    TrainingLog(tmp_path / "run" / "training_log.jsonl").write({"step": 1})
    run = claim(accelerator, tmp_path / "run", {"seed": 0}, resume="latest")
    assert run.checkpoint is None
    run.release()
    with pytest.raises(ValueError, match="belongs to another run, with --seed 0 and not 1"):
        RunFolder(accelerator, tmp_path / "run", {"seed": 1}, resume="latest")
    write_json(tmp_path / "run" / "config.json", {})  # it has ended
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder(accelerator, tmp_path / "run", {"seed": 0}, resume="latest")


def test_a_folder_takes_one_run_at_a_time(accelerator, tmp_path):
    first = claim(accelerator, tmp_path / "run", {})
    with pytest.raises(ValueError, match="is in use by another run"):
        claim(accelerator, tmp_path / "run", {}, resume="latest")
    first.release()
    claim(accelerator, tmp_path / "run", {}, resume="latest").release()


@pytest.mark.parametrize("kind", ["a file", "below a file", "a link to a file"])
def test_an_output_folder_that_cannot_be_one(accelerator, tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    place = tmp_path / {"a file": "file", "below a file": "file/run", "a link to a file": "link"}[kind]
    with pytest.raises(ValueError, match="--output_dir must be a folder"):
        RunFolder(accelerator, place, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_checkpoint_is_named(accelerator, tmp_path):
    with pytest.raises(ValueError, match="--resume_from_checkpoint must be `latest`, a folder, .*'nowhere'"):
        RunFolder(accelerator, tmp_path / "run", {}, resume="nowhere")
    assert not (tmp_path / "run").exists()


def test_an_identity_knows_places_and_forgets_what_may_change(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    first = argparse.Namespace(train_data_dir="photos", max_train_steps=5, seed=0, hub_token="hf_a", output_dir="a")
    second = argparse.Namespace(train_data_dir="./photos/", max_train_steps=9, seed=0, hub_token=None, output_dir="b")
    assert run_identity(first, total_batch_size=4) == run_identity(second, total_batch_size=4)
    assert "hf_a" not in json.dumps(run_identity(first))
    assert run_identity(first, total_batch_size=4) != run_identity(first, total_batch_size=8)


def ranks(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    AcceleratorState._reset_state(True)  # that of the process before the fork
    GradientState._reset_state()
    accelerator, said = Accelerator(cpu=True), []
    assert accelerator.num_processes == 2
    run = claim(accelerator, f"{folder}/run", {"seed": 0})
    _, kept = parts(accelerator)
    run.save(1, kept)
    other = RunFolder(accelerator, f"{folder}/run", {"seed": 0}, resume="latest")
    try:
        other.claim()  # in use: all ranks have to hear of it
    except ValueError as error:
        said.append(str(error))
    torch.save({"said": said, "checkpoint": str(other.checkpoint)}, f"{folder}/{rank}.pt")
    accelerator.wait_for_everyone()


def test_all_ranks_hear_that_a_folder_cannot_be_taken(in_two_processes, tmp_path):
    for result in in_two_processes(ranks, tmp_path):
        assert len(result["said"]) == 1 and re.search("in use by another run", result["said"][0])
        assert result["checkpoint"].endswith("checkpoint-1")


KILLED = {
    "log": """
def prepare(folder):
    (folder / "log.jsonl").write_text("".join(json.dumps({{"step": n}}) + "\\n" for n in range(1, 200)))
def write(folder): TrainingLog(folder / "log.jsonl", resume_step=150).write({{"step": 151}})
def check(folder, ended):
    steps = [line["step"] for line in TrainingLog.read(folder / "log.jsonl")]
    assert steps[:150] == list(range(1, 151)) and (steps[150:] == [151] or not ended)
""".replace("{{", "{").replace("}}", "}"),
    "checkpoint": """
def fill(text):
    return lambda place: Path(place, "weights").write_text(text * 1000)
def prepare(folder):
    save_checkpoint(folder, 1, fill("a"))
    save_checkpoint(folder, 2, fill("b"))
def write(folder): save_checkpoint(folder, 2, fill("c"), total_limit=2)
def check(folder, ended):
    assert [int(path.name.split("-")[1].split(".")[0]) for path in list_checkpoints(folder)] == [1, 2]
    assert all(verify_checkpoint(path) is None for path in list_checkpoints(folder))
    text = (list_checkpoints(folder)[-1] / "weights").read_text()
    assert text == "c" * 1000 if ended else text in ("b" * 1000, "c" * 1000)
""",
}


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_at_any_system_call_loses_no_line_and_no_checkpoint(killed_everywhere, tmp_path, name):
    imports = (
        "import json\nfrom diffusers_lasers.training.run.records import TrainingLog\n"
        "from diffusers_lasers.training.run.checkpoints import list_checkpoints, save_checkpoint, verify_checkpoint"
    )
    assert killed_everywhere(imports, KILLED[name], tmp_path) > 10


def test_a_checkpoint_of_a_version_with_other_flags_is_refused(accelerator, saved):
    with pytest.raises(ValueError, match="with other flags .--learning_rate., .*--pretrained_model_name_or_path"):
        RunFolder(accelerator, saved, {"rate": 0.1}, resume="latest")
