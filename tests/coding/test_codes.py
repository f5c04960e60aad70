"""Codes as values: dense and sparse forms, truncation, counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding import IndexCode, SparseCode
from diffusers_lasers.functional import omp, synthesize


def sparse_code(batch=2, height=3, width=4, sparsity=3, atoms=20, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(batch * height * width, features, generator=generator)
    dictionary = torch.nn.functional.normalize(torch.randn(features, atoms, generator=generator), dim=0)
    indices, coefficients = omp(signals, dictionary, sparsity)
    shape = (batch, height, width, sparsity)
    code = SparseCode(indices.reshape(shape), coefficients.reshape(shape), atoms, (height, width))
    return code, dictionary, signals


def test_dense_code_times_dictionary_is_the_synthesis():
    code, dictionary, _ = sparse_code()
    expected = synthesize(code.indices.flatten(0, 2), code.coefficients.flatten(0, 2), dictionary)
    torch.testing.assert_close(code.to_dense().flatten(0, 2) @ dictionary.t(), expected)


def test_unused_slots_add_nothing():
    indices = torch.tensor([[[[4, -1, -1]]]])
    code = SparseCode(indices, torch.tensor([[[[2.0, 0.0, 0.0]]]]), 5, (1, 1))
    assert code.to_dense().tolist() == [[[[0.0, 0.0, 0.0, 0.0, 2.0]]]]
    assert code.usage_counts().tolist() == [0, 0, 0, 0, 1]


def test_sparse_coo_is_the_dense_code_and_holds_only_used_slots():
    code, _, _ = sparse_code()
    code.indices[0, 0, 0, 2], code.coefficients[0, 0, 0, 2] = -1, 0.0
    coo = code.to_sparse_coo()
    torch.testing.assert_close(coo.to_dense(), code.to_dense())
    assert coo._nnz() == (code.indices >= 0).sum()


@settings(max_examples=25, deadline=None)
@given(kept=st.integers(1, 5), seed=st.integers(0, 1000), features=st.sampled_from([3, 6, 8]))
def test_truncation_equals_the_pursuit_with_fewer_atoms(kept, seed, features):
    code, dictionary, signals = sparse_code(sparsity=5, seed=seed, features=features)
    indices, coefficients = omp(signals, dictionary, kept)
    truncated = code.truncate(kept, dictionary)
    assert torch.equal(truncated.indices.flatten(0, 2), indices)
    # A support that spans the space is ill-conditioned in its coefficients, not in what it decodes to.
    decoded = synthesize(truncated.indices.flatten(0, 2), truncated.coefficients.flatten(0, 2), dictionary)
    torch.testing.assert_close(decoded, synthesize(indices, coefficients, dictionary), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sparsity", [0, 4, -1])
def test_truncation_refuses_a_sparsity_out_of_range(sparsity):
    code, dictionary, _ = sparse_code(sparsity=3)
    with pytest.raises(ValueError, match="`sparsity` must be from 1 to the code's 3"):
        code.truncate(sparsity, dictionary)


def test_usage_counts_count_slots():
    code, _, _ = sparse_code()
    counts = code.usage_counts()
    assert counts.shape == (20,) and counts.dtype == torch.int64
    assert counts.sum() == (code.indices >= 0).sum()
    index_code = IndexCode(torch.tensor([[[[0, 2]], [[2, 2]]]]), (3, 3), (2, 1))
    assert index_code.usage_counts().tolist() == [1, 0, 3]


def test_a_code_moves_between_devices():
    code, _, _ = sparse_code()
    moved = code.to("meta")
    assert moved.indices.device.type == "meta" and moved.coefficients.device.type == "meta"
    assert moved.latent_size == code.latent_size


def test_malformed_codes_are_refused():
    with pytest.raises(ValueError, match="`indices` must be int64"):
        SparseCode(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 4, (1, 1))
    with pytest.raises(ValueError, match="`coefficients` must have the shape of `indices`"):
        SparseCode(torch.zeros(1, 1, 1, 2, dtype=torch.int64), torch.zeros(1, 1, 1, 3), 4, (1, 1))
    with pytest.raises(ValueError, match="`levels` must name 2 slots, got 1"):
        IndexCode(torch.zeros(1, 1, 1, 2, dtype=torch.int64), (4,), (1, 1))
