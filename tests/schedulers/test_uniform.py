"""UniformD3PMScheduler: its forward process against exact D3PM algebra, its posterior by Bayes' rule, its files and
errors."""

import json

import pytest
import torch
from diffusers import DiscreteDDIMScheduler

from diffusers_lasers import UniformD3PMScheduler


K = 4


def test_the_forward_process_is_the_product_of_its_steps():
    """Q_t = (1 − β_t) I + β_t / K with β_t = 1 / (T − t + 1), multiplied up, is ᾱ_t I + (1 − ᾱ_t) / K."""
    total, matrix = 10, torch.eye(K, dtype=torch.float64)
    scheduler = UniformD3PMScheduler(total, K)
    assert len(scheduler) == total and scheduler.survival(torch.tensor(-1)) == 1
    for t in range(total):
        beta = 1 / (total - t)
        matrix = matrix @ ((1 - beta) * torch.eye(K, dtype=torch.float64) + beta / K)
        survival = scheduler.survival(torch.tensor([t])).double()
        expected = survival * torch.eye(K, dtype=torch.float64) + (1 - survival) / K
        torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=0)
    codes = torch.zeros(1, 1, 300, 300, dtype=torch.int64)
    noisy = scheduler.add_noise(codes, torch.tensor([4]), torch.Generator().manual_seed(0))
    shares = noisy.flatten().bincount(minlength=K) / noisy.numel()
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.125, 0.125, 0.125]), atol=0.01, rtol=0)


def test_training_and_sampling_meet():
    """Noised at the time of the middle step, and denoised with the true codes, ends in the codes; the share of own
    indices on the way is that of the forward process."""
    scheduler = UniformD3PMScheduler(1000, K)
    scheduler.set_timesteps(10)
    codes = torch.randint(0, K, (1, 100 * 100), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    sample = scheduler.add_noise(codes, torch.tensor([999]), generator)  # all anew
    logits = 100.0 * torch.nn.functional.one_hot(codes, K).float()
    for index in range(10):
        sample = scheduler.step(logits, index, sample, generator=generator).prev_sample
        survival = float(scheduler.survival(torch.tensor(1000 * (1 - (index + 1) / 10) - 1)))
        share = float((sample == codes).float().mean())
        assert share == pytest.approx(survival + (1 - survival) / K, abs=0.02)
    assert torch.equal(sample, codes)


def test_files_and_errors(tmp_path):
    UniformD3PMScheduler(20, K, corrector_steps=2).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["num_train_timesteps"] == 20 and saved["corrector_steps"] == 2
    scheduler = UniformD3PMScheduler.from_pretrained(tmp_path)
    assert scheduler.config.num_codewords == K and scheduler.compatibles == [UniformD3PMScheduler]
    other = UniformD3PMScheduler.from_config(DiscreteDDIMScheduler(corrector_k=3).config, num_codewords=K)
    assert other.config.corrector_k == 3 and len(other) == 1000
    for arguments, word in (({"num_codewords": 1}, "num_codewords"), ({"corrector_selection": "x"}, "corrector")):
        with pytest.raises(ValueError, match=word):
            UniformD3PMScheduler(**arguments)
    codes = torch.zeros(2, 1, 3, 3, dtype=torch.int64)
    for wrong in (torch.tensor([0, 20]), torch.tensor([-1, 3]), torch.tensor([0.5, 3]), [1, 2], None):
        with pytest.raises(ValueError, match="`timesteps` must"):
            scheduler.add_noise(codes, wrong)
