"""Codes as values: dense and sparse forms, truncation, counts."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

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
    assert code.usage_counts().tolist() == [[0, 0, 0, 0, 1]]


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
    assert counts.shape == (1, 20) and counts.dtype == torch.int64
    assert counts.sum() == (code.indices >= 0).sum()
    index_code = IndexCode(torch.tensor([[[[0, 2]], [[2, 2]]]]), (3, 3), (2, 1))
    assert index_code.usage_counts().tolist() == [[1, 0, 1], [0, 0, 2]]


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


def index_code(**changes):
    return replace(IndexCode(torch.tensor([[[[0, 2]], [[2, 1]]]]), (3, 4), (2, 1), (9, 4)), **changes)


@pytest.mark.parametrize("make", [lambda: sparse_code()[0], index_code])
def test_codes_are_nodes_of_a_tree(make):
    code = make()
    leaves, spec = pytree.tree_flatten({"code": [code, torch.ones(2)]})
    names = ["indices", "coefficients"] if isinstance(code, SparseCode) else ["indices"]
    assert len(leaves) == len(names) + 1 and all(map(torch.is_tensor, leaves))
    assert pytree.tree_unflatten(leaves, spec)["code"][0] == code
    spec = pytree.tree_structure(code)
    again = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert again == spec and pytree.tree_unflatten(pytree.tree_leaves(code), again) == code
    paths = [path for path, _ in pytree.tree_flatten_with_path(code)[0]]
    assert [pytree.keystr(path) for path in paths] == [f".{name}" for name in names]
    shapes = pytree.tree_map(lambda tensor: tuple(tensor.shape), code)  # what stands there need be no tensor
    assert shapes.indices == tuple(code.indices.shape) and shapes.latent_size == code.latent_size


@pytest.mark.parametrize("make", [lambda: sparse_code()[0], index_code])
def test_codes_move_as_tensors_do(make):
    code = make()
    assert code.device == torch.device("cpu") == code.to("cpu").device
    assert code.to(device="meta", non_blocking=True).device.type == "meta"
    assert send_to_device({"codes": [code]}, "meta")["codes"][0].device.type == "meta"
    assert code.to(torch.float64).indices.dtype == code.to("cpu", torch.float64).indices.dtype == torch.int64
    assert code.to() == code and code.to(torch.float32) == code
    if isinstance(code, SparseCode):
        assert code.to(torch.float64).coefficients.dtype == torch.float64
        with pytest.raises(ValueError, match="`coefficients` must be floating point"):
            code.to(torch.int64)


def test_ddp_finds_the_tensors_of_a_code_that_a_module_returns():
    class Coder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, code):
            return replace(code, coefficients=code.coefficients * self.weight)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        coder = torch.nn.parallel.DistributedDataParallel(Coder(), static_graph=True)
        code, _, _ = sparse_code()
        output = coder(code)
        assert type(output.coefficients.grad_fn).__name__ == "_DDPSinkBackward"
        output.coefficients.sum().backward()
        torch.testing.assert_close(coder.module.weight.grad, code.coefficients.sum(dim=(0, 1, 2)))
    finally:
        dist.destroy_process_group()


def test_codes_compare_by_content():
    code, other = sparse_code()[0], index_code()
    for same in (copy.deepcopy(code), pickle.loads(pickle.dumps(code)), replace(code, latent_size=[3, 4])):
        assert same == code and not same != code
    assert index_code() == other and code != other and code != "code"
    changed = code.coefficients.clone()
    changed[0, 0, 0, 0] += 1
    for change in ({"coefficients": changed}, {"coefficients": code.coefficients.double()}, {"num_atoms": 21}):
        assert replace(code, **change) != code
    for change in ({"indices": other.indices.flip(1)}, {"levels": (4, 4)}, {"image_size": None}):
        assert replace(other, **change) != other
    assert code.to("meta") != code
    with pytest.raises(TypeError, match="unhashable"):
        hash(code)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"latent_size": (0, 4)}, "latent_size"),
        ({"latent_size": (3.0, 4)}, "latent_size"),
        ({"latent_size": None}, "latent_size"),
        ({"image_size": 12}, "image_size"),
        ({"image_size": (True, 4)}, "image_size"),
        ({"image_size": (4,)}, "image_size"),
    ],
)
def test_codes_with_other_sizes_are_refused(change, name):
    for code in (sparse_code()[0], index_code()):
        with pytest.raises(ValueError, match=f"`{name}` must be two positive integers"):
            replace(code, **change)


def test_codes_with_other_parts_are_refused():
    code, other = sparse_code()[0], index_code()
    wrong = [{"coefficients": code.indices}, {"coefficients": code.coefficients.to("meta")}, {"coefficients": None}]
    for change in wrong:
        with pytest.raises(ValueError, match="`coefficients` must"):
            replace(code, **change)
    for atoms in (0, 2.5, None):
        with pytest.raises(ValueError, match="`num_atoms` must be a positive integer"):
            replace(code, num_atoms=atoms)
    for indices in (None, [[1]], other.indices.int(), other.indices[0]):
        with pytest.raises(ValueError, match="`indices` must be int64"):
            replace(other, indices=indices)
    for levels in (None, (3, 0), (3, 2.0), 5):
        with pytest.raises(ValueError, match="`levels` must be positive integers"):
            replace(other, levels=levels)
