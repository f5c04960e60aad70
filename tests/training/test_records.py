"""The record of a run: window means, and lines that survive an interruption."""

import json
import math
import time

import pytest
import torch

from diffusers_lasers import IndexCode, SparseCode
from diffusers_lasers.training import TrainingLog
from diffusers_lasers.training.run.records import Window


def code(indices):
    indices = torch.tensor(indices).reshape(1, 1, -1, 2)
    return SparseCode(indices, torch.ones(indices.shape), 8, (1, indices.shape[2]))


def test_means_usage_and_rate_of_a_window():
    window = Window()
    window.add({"loss": torch.tensor(1.0)}, code([0, 1, 2, 3]), images=10)
    window.add({"loss": torch.tensor(2.0)}, code([0, 1, 2, -1]), images=20)
    window.start = time.perf_counter() - 2
    record = window.summary()
    shares = torch.tensor([2, 2, 2, 1]) / 7
    assert record["loss"] == 1.5 and record["dead_atoms"] == 4
    assert record["perplexity"] == pytest.approx(math.exp(-(shares * shares.log()).sum()), abs=1e-3)
    assert record["images_per_second"] == pytest.approx(15, rel=0.05)
    window.add({"loss": torch.tensor(5.0)}, None, images=1)
    assert window.summary()["loss"] == 5 and "perplexity" not in window.summary()


def test_pauses_are_not_counted():
    window = Window()
    with window.paused():
        time.sleep(0.05)
    assert time.perf_counter() - window.start < 0.04


def test_lines_are_appended_and_those_after_the_resume_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1 / step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut by a crash
    TrainingLog(path, resume_step=2).write({"step": 3, "loss": 9})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1, 0.5, 9]
    assert TrainingLog.read(tmp_path / "missing") == []


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "log.jsonl"
    TrainingLog(path).write({"step": 1})
    TrainingLog(path)
    assert path.read_text() == ""


def test_each_codebook_is_counted_on_its_own():
    """Pooled, the collapsed second stage below would hide behind the first."""
    indices = torch.tensor([[[[0, 1]], [[1, 1]], [[2, 1]], [[3, 1]]]])
    code = IndexCode(indices, levels=(4, 3), latent_size=(4, 1))
    assert code.usage_counts().tolist() == [[1, 1, 1, 1], [0, 4, 0, 0]]
    window = Window()
    window.add({}, code, images=1)
    record = window.summary()
    assert record["perplexity"] == pytest.approx(2.0)  # 2 ** ((2 bits + 0 bits) / 2)
