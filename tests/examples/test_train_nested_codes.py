"""Trainings whose steps draw something in the bottleneck resume to the bit, and go the same way in two processes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_dlgan.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BOTTLENECKS = {
    "residual_vq": {"num_codewords": 16, "depth": 4, "stage_dropout": 1.0},
    "dictionary": {"num_atoms": 16, "sparsity": 4, "sparsity_dropout": 0.7},
    "dictionary, rate": {"num_atoms": 16, "sparsity": 4, "coefficient_bits": 4, "rate_weight": 0.01},
    "vq": {"num_codewords": 16, "rate_weight": 0.01},
    "external": {"quantizer": "cosine_vq", "quantizer_config": {"codebook_size": 16}},
}


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_it_resumes_bitwise(run, bottleneck):
    flags = {"steps": 6, "bottleneck": bottleneck.split(",")[0], "bottleneck_config": BOTTLENECKS[bottleneck]}
    whole = load_file(run(**flags, checkpointing_steps=3) / WEIGHTS)
    resumed = load_file(run(**flags, resume_from_checkpoint="checkpoint-3") / WEIGHTS)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("bottleneck", ["residual_vq", "dictionary"])
def test_two_processes_decode_the_same_slots_as_one(forked, words, data, tmp_path, bottleneck):
    flags = {
        "resolution": 32,
        "max_train_steps": 4,
        "checkpointing_steps": 0,
        "report_to": "none",
        "learning_rate": 1e-4,
    }
    flags |= {"bottleneck": bottleneck, "bottleneck_config": BOTTLENECKS[bottleneck], "lr_warmup_steps": 0}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        line = words(**data, **flags, train_batch_size=4 // processes, output_dir=folder)
        forked(SCRIPT, line, processes)
        found.append(load_file(folder / WEIGHTS))
    one, two = found
    assert torch.equal(one["bottleneck.dropout_steps"], two["bottleneck.dropout_steps"])
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("bottleneck", ["vq", "dictionary"])
def test_two_processes_keep_tables_of_both(forked, words, data, tmp_path, bottleneck):
    """Each starts from as many images as one alone, so that the tables hold twice the sites, in nearly equal shares."""
    flags = {"resolution": 32, "max_train_steps": 4, "checkpointing_steps": 0, "report_to": "none"}
    flags |= {"bottleneck": bottleneck, "rate_weight": 0.01, "lr_warmup_steps": 0, "learning_rate": 1e-4}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        forked(SCRIPT, words(**data, **flags, train_batch_size=4 // processes, output_dir=folder), processes)
        found.append(load_file(folder / WEIGHTS)["bottleneck.tables.symbols"][0])
    one, two = found
    assert float(two.sum()) == pytest.approx(2 * float(one.sum()), rel=0.1)
    assert (one / one.sum() - two / two.sum()).abs().sum() < 0.1
