"""Calls of the schedulers that nobody means give one sentence, and both have what diffusers' pipelines read."""

import math

import numpy as np
import pytest
import torch

from diffusers_lasers import AbsorbingD3PMScheduler, CategoricalDDPMScheduler


SCHEDULERS = [AbsorbingD3PMScheduler, CategoricalDDPMScheduler]
HOSTILE = [None, "3", True, 2.5, -1, 10**30, math.nan, math.inf, [], {}, [1], torch.ones(2), object()]


def make(cls):
    return cls(num_train_timesteps=20, num_codewords=4)


def sample_of(cls, batch=2):
    return torch.zeros(batch, 1, 3, 3, dtype=torch.int64 if cls is AbsorbingD3PMScheduler else torch.float32)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_what_pipelines_read_is_there(cls):
    scheduler = make(cls)
    assert scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
    assert scheduler.num_inference_steps is None and scheduler.timesteps.tolist() == list(range(19, -1, -1))
    assert len(scheduler) == 20 and scheduler.config.num_train_timesteps == 20
    sample = sample_of(cls)
    assert torch.equal(scheduler.scale_model_input(sample, 3) * scheduler.init_noise_sigma, sample)
    scheduler.set_timesteps(5, device="cpu")
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 5


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_hostile_calls_are_refused_in_one_sentence(cls):
    scheduler, sample = make(cls), sample_of(cls)
    logits = torch.zeros(2, 1, 4, 3, 3)
    forward = (lambda t: scheduler.add_noise(sample, t)) if cls is AbsorbingD3PMScheduler else (
        lambda t: scheduler.add_noise(sample, torch.zeros(2, 1, 3, 3), t)
    )  # fmt: skip
    calls = {
        "num_inference_steps": scheduler.set_timesteps,
        "timestep": lambda value: scheduler.step(logits, value, sample),
        "temperature": lambda value: scheduler.step(logits, 3, sample, temperature=value),
        "timesteps": forward,
    }
    if cls is CategoricalDDPMScheduler:
        calls["eta"] = lambda value: scheduler.step(logits, 3, sample, eta=value)
        calls["timesteps of the loop"] = lambda value: scheduler.set_timesteps(timesteps=value)
    wrong = [[1, "2"], [2.5], [[3]], torch.tensor([0, 20]), torch.tensor([-1, 3]), torch.tensor([0.5, 3])]
    taken = {("temperature", "2.5"), ("temperature", "None"), ("eta", "None"), ("timesteps of the loop", "[1]")}
    for name, call in calls.items():
        for value in HOSTILE + wrong:
            if (name, repr(value)) in taken:
                call(value)
                continue
            with pytest.raises(ValueError) as error:
                call(value)
            assert "\n" not in str(error.value) and name.split()[0] in str(error.value), (name, value)


def test_timesteps_in_other_forms_are_taken():
    for cls in SCHEDULERS:
        scheduler, sample = make(cls), sample_of(cls)
        logits = torch.zeros(2, 1, 4, 3, 3)
        for timestep in (3, torch.tensor(3), torch.tensor([3]), torch.tensor(3.0), np.int64(3)):
            assert scheduler.step(logits, timestep, sample).prev_sample.shape == sample.shape
    scheduler = make(CategoricalDDPMScheduler)
    for timesteps in ([9, 4, 0], (9, 4, 0), np.array([9, 4, 0]), torch.tensor([9, 4, 0])):
        scheduler.set_timesteps(timesteps=timesteps)
        assert scheduler.timesteps.tolist() == [9, 4, 0]


def test_the_forward_process_compiles_as_one_graph():
    sample, timesteps = sample_of(CategoricalDDPMScheduler), torch.tensor([3, 7])
    scheduler, noise = make(CategoricalDDPMScheduler), torch.ones(sample.shape)
    forward = torch.compile(scheduler.add_noise, fullgraph=True, backend="eager")
    assert torch.equal(forward(sample, noise, timesteps), scheduler.add_noise(sample, noise, timesteps))
