"""CategoricalDDPMScheduler: exact steps, what diffusers expects of a scheduler, and its baseline with masks."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    AbsorbingD3PMSchedulerOutput,
    CategoricalDDPMScheduler,
    CategoricalDDPMSchedulerOutput,
)
from diffusers_lasers.functional import index_to_number


K = 16


def one_hot_logits(codes):
    return 100 * torch.nn.functional.one_hot(codes, K).movedim(-1, 2).float()


def some_codes(batch=2):
    return torch.randint(0, K, (batch, 3, 4, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_perfect_predictor_recovers_the_codes_exactly(spacing, steps, eta):
    scheduler = CategoricalDDPMScheduler(num_codewords=K, timestep_spacing=spacing, temperature=0.0, eta=eta)
    scheduler.set_timesteps(steps)
    codes = some_codes()
    sample = torch.randn(codes.shape)
    for timestep in scheduler.timesteps:
        output = scheduler.step(one_hot_logits(codes), timestep, sample)
        sample = output.prev_sample
    assert isinstance(output, CategoricalDDPMSchedulerOutput) and torch.equal(output.pred_original_codes, codes)
    torch.testing.assert_close(sample, index_to_number(codes, K), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_timesteps_are_those_of_diffusers(spacing, steps):
    ours, theirs = CategoricalDDPMScheduler(timestep_spacing=spacing), DDPMScheduler(timestep_spacing=spacing)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert len(ours) == 1000 and ours.num_inference_steps == steps


@pytest.mark.parametrize("steps", [10, 1000])
def test_steps_are_those_of_the_gaussian_schedulers(steps):
    """With z̃_0 given, η = 1 is diffusers' DDPM with prediction_type="sample", and η = 0 its DDIM."""
    codes, sample = some_codes(), torch.randn(2, 3, 4, 5)
    original = index_to_number(codes, K)
    ours = CategoricalDDPMScheduler(num_codewords=K)
    ours.set_timesteps(steps)
    timestep = ours.timesteps[len(ours.timesteps) // 2]
    arguments = {"prediction_type": "sample", "clip_sample": False}
    ddpm, ddim = DDPMScheduler(**arguments), DDIMScheduler(**arguments)
    for other, eta in ((ddpm, 1.0), (ddim, 0.0)):
        other.set_timesteps(steps)
        expected = other.step(original, timestep, sample, generator=torch.Generator().manual_seed(1)).prev_sample
        generator = torch.Generator().manual_seed(1)
        got = ours.step(one_hot_logits(codes), timestep, sample, generator, temperature=0.0, eta=eta).prev_sample
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_add_noise_is_that_of_diffusers():
    codes, noise = some_codes(), torch.randn(2, 3, 4, 5)
    original, timesteps = index_to_number(codes, K), torch.tensor([3, 900])
    expected = DDPMScheduler().add_noise(original, noise, timesteps)
    torch.testing.assert_close(CategoricalDDPMScheduler().add_noise(original, noise, timesteps), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_tuples_and_generators(dtype):
    scheduler = CategoricalDDPMScheduler(num_codewords=K)
    scheduler.set_timesteps(10)
    codes, sample = some_codes(), torch.randn(2, 3, 4, 5).to(dtype)
    logits = one_hot_logits(codes).to(dtype)
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    output = scheduler.step(logits, 500, sample, seeds)
    assert output.prev_sample.dtype == dtype and output.prev_sample.isfinite().all()
    alone = scheduler.step(logits[1:], 500, sample[1:], [torch.Generator().manual_seed(1)], return_dict=False)
    assert torch.equal(alone[0], output.prev_sample[1:])
    assert scheduler.scale_model_input(sample, 3) is sample
    scheduler.step(logits, torch.tensor(500), sample)


def test_it_survives_saving_and_other_configurations(tmp_path):
    scheduler = CategoricalDDPMScheduler(num_codewords=K, temperature=0.7, beta_schedule="squaredcos_cap_v2")
    scheduler.save_pretrained(tmp_path)
    loaded = CategoricalDDPMScheduler.from_pretrained(tmp_path)
    public = [{k: v for k, v in s.config.items() if not k.startswith("_")} for s in (loaded, scheduler)]
    assert public[0] == public[1] and loaded.config.temperature == 0.7
    torch.testing.assert_close(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert scheduler.compatibles == [CategoricalDDPMScheduler]
    betas = [0.1, 0.2, 0.3]
    trained = CategoricalDDPMScheduler(trained_betas=np.array(betas))
    torch.testing.assert_close(trained.betas, torch.tensor(betas))
    assert len(trained) == 3
    trained.save_pretrained(tmp_path)
    again = CategoricalDDPMScheduler.from_pretrained(tmp_path)
    assert len(again) == 3 and torch.equal(again.betas, trained.betas)


def test_custom_timesteps_lead_from_one_to_the_next():
    scheduler = CategoricalDDPMScheduler(num_codewords=K)
    assert scheduler.previous_timestep(7) == 6
    scheduler.set_timesteps(timesteps=[900, 400, 13])
    assert [scheduler.previous_timestep(t) for t in (900, 400, 13)] == [400, 13, -1]


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"num_codewords": 1}, "num_codewords"),
        ({"temperature": -1}, "temperature"),
        ({"eta": 1.5}, "eta"),
        ({"timestep_spacing": "odd"}, "timestep_spacing"),
        ({"beta_schedule": "odd"}, "beta_schedule"),
        ({"trained_betas": [0.1, 2.0]}, "trained_betas"),
        ({"trained_betas": []}, "trained_betas"),
    ],
)
def test_bad_configurations_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        CategoricalDDPMScheduler(**arguments)


def test_bad_calls_are_named():
    scheduler = CategoricalDDPMScheduler(num_codewords=K)
    for arguments in ({}, {"num_inference_steps": 3, "timesteps": [2]}, {"num_inference_steps": 0}):
        with pytest.raises(ValueError, match="num_inference_steps"):
            scheduler.set_timesteps(**arguments)
    for wrong in ([1, 2], [1000], []):
        with pytest.raises(ValueError, match="`timesteps` must"):
            scheduler.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="`model_output` must have shape"):
        scheduler.step(torch.zeros(2, 3, K + 1, 4, 5), 5, torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="`eta`"):
        scheduler.step(torch.zeros(2, 3, K, 4, 5), 5, torch.zeros(2, 3, 4, 5), eta=2.0)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_masks_are_lifted_at_the_rate_of_the_posterior(steps, tmp_path):
    scheduler = AbsorbingD3PMScheduler(num_codewords=K, temperature=0.0)
    scheduler.save_pretrained(tmp_path)
    scheduler = AbsorbingD3PMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(steps)
    assert len(scheduler) == 1000 and scheduler.compatibles == [AbsorbingD3PMScheduler]
    codes = torch.randint(0, K, (1, 2, 50, 50), generator=torch.Generator().manual_seed(0))
    sample, generator = torch.full_like(codes, K), torch.Generator().manual_seed(0)
    for index, timestep in enumerate(scheduler.timesteps):
        before = sample
        output = scheduler.step(one_hot_logits(codes), timestep, sample, generator)
        sample = output.prev_sample
        assert torch.equal(sample[before != K], before[before != K])  # what is shown stays
        if index + 1 == steps // 2:
            assert abs(float((sample == K).float().mean()) - 0.5) < 0.03
    assert isinstance(output, AbsorbingD3PMSchedulerOutput) and torch.equal(sample, codes)


def test_the_masked_forward_process_and_its_errors():
    scheduler = AbsorbingD3PMScheduler(num_codewords=K)
    codes = torch.randint(0, K, (2, 1, 60, 60))
    hidden = scheduler.add_noise(codes, torch.tensor([249, 999]))
    shares = (hidden == K).float().mean(dim=(1, 2, 3))
    assert abs(float(shares[0]) - 0.25) < 0.03 and shares[1] == 1
    for arguments, word in (({"num_codewords": 1}, "num_codewords"), ({"temperature": -1}, "temperature")):
        with pytest.raises(ValueError, match=word):
            AbsorbingD3PMScheduler(**arguments)
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="`model_output` must have shape"):
        scheduler.step(torch.zeros(2, 1, K + 1, 60, 60), 5, codes)
    first = scheduler.step(one_hot_logits(codes), 0, hidden, return_dict=False)[0]  # off a loop: to the step before
    assert torch.equal(first, torch.where(hidden == K, codes, hidden)) and scheduler.scale_model_input(codes) is codes
