"""Rates and usage: against enumeration, exact binomials, SciPy's entropy, and the limits that define them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusers_lasers.functional.rates import count_supports, entropy, perplexity, support_bits


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("atoms, sparsity", [(1, 0), (1, 1), (4, 2), (5, 5), (6, 3)])
def test_support_bits_counts_every_support(atoms, sparsity, ordered):
    listing = itertools.permutations if ordered else itertools.combinations
    supports = {support for size in range(sparsity + 1) for support in listing(range(atoms), size)}
    assert support_bits(atoms, sparsity, ordered=ordered) == math.log2(len(supports))


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_support_bits_is_exact(atoms, data):
    sparsity = data.draw(st.integers(0, min(atoms, 60)))
    sets = sum(math.comb(atoms, size) for size in range(sparsity + 1))
    sequences = sum(math.perm(atoms, size) for size in range(sparsity + 1))
    assert support_bits(atoms, sparsity) == math.log2(sets)
    assert support_bits(atoms, sparsity, ordered=True) == math.log2(sequences)
    assert (count_supports(atoms, sparsity), count_supports(atoms, sparsity, ordered=True)) == (sets, sequences)


def test_support_bits_of_known_codes():
    assert support_bits(512, 1) == math.log2(513)  # one of 512 atoms, or none
    assert support_bits(16, 16) == 16.0  # a bit for every atom
    assert support_bits(7, 0) == 0.0
    # beyond the range of floats: 2^20000 subsets less those of more than 10000 atoms, which is just above one half
    assert support_bits(20000, 10000) == pytest.approx(19999.0, abs=0.01)
    # order costs at most log2(S!) bits more
    extra = support_bits(512, 5, ordered=True) - support_bits(512, 5)
    assert 0 < extra < math.log2(math.factorial(5))


@pytest.mark.parametrize(
    "atoms, sparsity, name", [(0, 0, "atoms"), (-3, 1, "atoms"), (4, 5, "sparsity"), (4, -1, "sparsity")]
)
def test_support_bits_refuses(atoms, sparsity, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        support_bits(atoms, sparsity)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any))
def test_entropy_and_perplexity_against_scipy(counts):
    tensor = torch.tensor(counts)
    bits = stats.entropy(counts, base=2)
    torch.testing.assert_close(entropy(tensor), torch.tensor(bits, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(perplexity(tensor), torch.tensor(2.0**bits, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_usage_of_known_codes(dtype):
    uniform = torch.full((64,), 3).to(dtype)
    assert entropy(uniform).item() == pytest.approx(6.0, abs=1e-12)
    assert perplexity(uniform).item() == pytest.approx(64.0, abs=1e-9)
    # a collapsed code that always uses the same 5 atoms once a site scores 5
    collapsed = torch.zeros(512, dtype=dtype)
    collapsed[:5] = 100
    assert perplexity(collapsed).item() == pytest.approx(5.0, abs=1e-9)
    single = torch.zeros(8, dtype=dtype)
    single[3] = 7
    assert entropy(single).item() == 0.0 and not torch.signbit(entropy(single))
    assert perplexity(single).item() == 1.0
    for value in (entropy(uniform), perplexity(uniform)):
        assert value.dtype == torch.float64 and value.shape == ()


def test_usage_of_nothing_is_zero():
    assert entropy(torch.zeros(9)).item() == 0.0
    assert perplexity(torch.zeros(9, dtype=torch.int64)).item() == 0.0
    assert entropy(torch.zeros(0)).item() == 0.0
    assert perplexity(torch.zeros(0)).item() == 0.0


def test_usage_keeps_large_counts_apart():
    # 2^40 + 1 is no float32; the rare symbol must not vanish beside it
    counts = torch.tensor([2**40 + 1, 1])
    assert 0 < entropy(counts).item() < 1e-9


@pytest.mark.parametrize("measure", [entropy, perplexity])
def test_usage_refuses_a_matrix(measure):
    with pytest.raises(ValueError, match=r"`counts` must have the shape \(atoms,\), got \(2, 3\)"):
        measure(torch.ones(2, 3))
