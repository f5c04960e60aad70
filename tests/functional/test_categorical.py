"""Categorical sampling: frequencies by χ², limits of the temperatures, numbers and indices, the discrete forward
processes."""

import pytest
import torch
from scipy.stats import chisquare, kstest

from diffusers_lasers.functional import gumbel_softmax, index_to_number, number_to_index
from diffusers_lasers.functional.diffusion import (
    absorb,
    expected_number,
    gumbel_noise,
    sample_categorical,
    scramble,
    uniform_noise,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 2.0])
    count = 20000
    drawn = sample_categorical(logits.view(1, 1, 5, 1).expand(1, 1, 5, count), temperature, seeded())
    observed = torch.bincount(drawn.flatten(), minlength=5).numpy()
    expected = count * (logits.double() / temperature).softmax(dim=0).numpy()
    assert chisquare(observed, expected).pvalue > 1e-3
    wrong = count * (logits.double() / (1.3 * temperature)).softmax(dim=0).numpy()
    assert chisquare(observed, wrong).pvalue < 1e-6  # the test can tell


def test_zero_temperature_is_the_largest_logit():
    logits = torch.randn(2, 3, 7, 4, 4)
    assert torch.equal(sample_categorical(logits, 0.0), logits.argmax(dim=2))


def test_noise_is_what_it_is_called_and_finite():
    assert kstest(uniform_noise((2, 20000), seeded()).flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(gumbel_noise((2, 20000), seeded()).flatten().numpy(), "gumbel_r").pvalue > 1e-3
    assert gumbel_noise((1000, 1000)).isfinite().all()


def test_a_list_of_generators_gives_each_item_its_own():
    logits = torch.randn(3, 2, 5, 4)
    together = sample_categorical(logits, 1.0, [seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(together[i : i + 1], sample_categorical(logits[i : i + 1], 1.0, [seeded(i)]))


def test_gumbel_softmax_nears_a_sample_and_is_differentiable():
    logits = torch.randn(2, 3, 6, 4, dtype=torch.float32, requires_grad=True)
    soft = gumbel_softmax(logits, 0.7, seeded())
    torch.testing.assert_close(soft.sum(dim=2), torch.ones(2, 3, 4))
    sharp = gumbel_softmax(logits, 1e-4, seeded())
    assert torch.equal(sharp.argmax(dim=2), sample_categorical(logits, 1.0, seeded()))
    torch.testing.assert_close(sharp.amax(dim=2), torch.ones(2, 3, 4))
    expected_number(soft).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert gumbel_softmax(torch.randn(2, 3, 6, 4).half(), 1.0).isfinite().all()


@pytest.mark.parametrize("codewords", [2, 16, 256, 4096])
def test_numbers_and_indices(codewords):
    indices = torch.arange(codewords)
    numbers = index_to_number(indices, codewords)
    assert numbers[0] == -1 and numbers[-1] == 1
    assert torch.equal(number_to_index(numbers, codewords), indices)
    assert number_to_index(torch.tensor([-3.0, 9.0]), codewords).tolist() == [0, codewords - 1]
    one_hot = torch.nn.functional.one_hot(indices, codewords).float().t().view(1, 1, codewords, codewords)
    torch.testing.assert_close(expected_number(one_hot)[0, 0], numbers)


def test_forward_processes_keep_their_share():
    codes = torch.randint(0, 8, (2, 1, 100, 100), generator=seeded())
    survival = torch.tensor([0.3, 1.0])
    hidden = absorb(codes, survival, 8, seeded())
    assert abs(float((hidden[0] == 8).float().mean()) - 0.7) < 0.02 and torch.equal(hidden[1], codes[1])
    mixed = scramble(codes, survival, 8, seeded())
    assert torch.equal(mixed[1], codes[1])
    assert abs(float((mixed[0] == codes[0]).float().mean()) - (0.3 + 0.7 / 8)) < 0.02
    changed = torch.bincount(mixed[0][mixed[0] != codes[0]].flatten(), minlength=8)
    assert chisquare(changed.numpy()).pvalue > 1e-3
    assert (absorb(codes, 0.0, 8) == 8).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`tau` must be positive"):
        gumbel_softmax(torch.zeros(1, 1, 2), 0.0)
    with pytest.raises(ValueError, match="`temperature` must be zero or positive"):
        sample_categorical(torch.zeros(1, 1, 2), -1.0)
    with pytest.raises(ValueError, match="`logits` must be floating point"):
        sample_categorical(torch.zeros(1, 2, dtype=torch.int64))
