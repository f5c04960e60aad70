"""Checkpoints are whole or absent; old ones go only after the new one is there."""

from pathlib import Path

import pytest

from diffusers_lasers.training import TrainingState
from diffusers_lasers.training.run.checkpoints import (
    latest_checkpoint,
    list_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)


def write(text):
    return lambda folder: Path(folder, "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_there_may_be_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-7.tmp").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert list_checkpoints(tmp_path) == []


def test_the_latest_is_by_number_not_by_name(tmp_path):
    for step in (9, 100, 20):
        save_checkpoint(tmp_path, step, write(str(step)))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"


def test_an_interrupted_save_leaves_no_checkpoint_and_deletes_none(tmp_path):
    save_checkpoint(tmp_path, 1, write("one"), total_limit=1)

    def interrupted(folder):
        write("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, interrupted, total_limit=1)
    assert latest_checkpoint(tmp_path).name == "checkpoint-1"
    save_checkpoint(tmp_path, 2, write("two"), total_limit=1)  # over what the interruption left
    assert names(tmp_path) == ["checkpoint-2"] and (tmp_path / "checkpoint-2" / "weights").read_text() == "two"


def test_old_ones_are_there_until_the_new_one_is_whole(tmp_path):
    seen = []
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, lambda folder: seen.append(len(list_checkpoints(tmp_path))), total_limit=2)
    assert seen == [0, 1, 2, 2] and names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_a_limit_removes_several(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, write("x"))
    save_checkpoint(tmp_path, 4, write("x"), total_limit=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_the_new_one_is_never_removed_and_replaces_its_namesake(tmp_path):
    for step in (5, 6):
        save_checkpoint(tmp_path, step, write("old"))
    assert save_checkpoint(tmp_path, 5, write("new"), total_limit=1) == tmp_path / "checkpoint-5"
    assert names(tmp_path) == ["checkpoint-5"] and (tmp_path / "checkpoint-5" / "weights").read_text() == "new"


def test_only_the_main_process_renames(tmp_path):
    calls = []
    (tmp_path / "checkpoint-1.tmp").mkdir()
    save_checkpoint(tmp_path, 1, write("x"), is_main_process=False, wait=lambda: calls.append("wait"))
    assert names(tmp_path) == ["checkpoint-1.tmp"] and len(calls) == 3


def test_a_limit_keeps_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="`total_limit`"):
        save_checkpoint(tmp_path, 1, write("x"), total_limit=0)
    assert names(tmp_path) == []


def test_counters_round_trip():
    state = TrainingState()
    state.load_state_dict(TrainingState(step=3, samples_seen=48).state_dict())
    assert (state.step, state.samples_seen) == (3, 48)


def delete(file):
    file.unlink()


def truncate(file):
    file.write_bytes(file.read_bytes()[:-2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["weights", "manifest.json"])
@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, name):
    for step in (1, 2):
        assert verify_checkpoint(save_checkpoint(tmp_path, step, write(f"step {step}"))) is None
    damage(tmp_path / "checkpoint-2" / name)
    said = []
    assert latest_checkpoint(tmp_path, report=said.append).name == "checkpoint-1"
    assert len(said) == 1 and "checkpoint-2" in said[0] and name in said[0]


def test_without_a_whole_one_there_is_none(tmp_path):
    save_checkpoint(tmp_path, 1, write("one"))
    (tmp_path / "checkpoint-1" / "manifest.json").write_text("[]")
    assert latest_checkpoint(tmp_path) is None


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path, 1, write("one"), total_limit=1)

    def full(folder):
        write("half")(folder)
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    with pytest.raises(OSError, match="checkpoint-2 could not be written.*No space left"):
        save_checkpoint(tmp_path, 2, full, total_limit=1)
    assert names(tmp_path) == ["checkpoint-1"] and latest_checkpoint(tmp_path) is not None
