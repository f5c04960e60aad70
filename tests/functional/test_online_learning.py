"""Online dictionary learning: dense statistics, a transcription of Mairal's Algorithm 2, descent, planted
dictionaries."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from diffusers_lasers.functional.dictionary import (
    accumulate_statistics,
    block_coordinate_update,
    dictionary_from_signals,
    forgetting_factor,
    random_dictionary,
)
from diffusers_lasers.functional.pursuit.greedy import omp
from diffusers_lasers.functional.pursuit.synthesis import synthesize


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_codes(n, features, atoms, sparsity, dtype=torch.float64):
    """Signals, distinct indices with some unused slots, and coefficients that are not 0 in unused slots."""
    generator = seeded(1)
    signals = torch.randn(n, features, generator=generator, dtype=dtype)
    indices = torch.rand(n, atoms, generator=generator).topk(sparsity).indices
    indices = torch.where(torch.rand(n, sparsity, generator=generator) < 0.2, -1, indices)
    return signals, indices, torch.randn(n, sparsity, generator=generator, dtype=dtype)


def dense(indices, coefficients, atoms):
    codes = np.zeros((len(indices), atoms))
    for row, (slots, values) in enumerate(zip(indices.tolist(), coefficients.tolist())):
        for slot, value in zip(slots, values):
            if slot >= 0:
                codes[row, slot] += value
    return codes


def surrogate(dictionary, A, B):
    return (0.5 * torch.trace(dictionary.t() @ dictionary @ A) - torch.trace(dictionary.t() @ B)).item()


# --- eqs 25, 26 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step, batch_size, expected",
    [
        (1, 4, 1 / 5),  # θ = 4
        (3, 4, 9 / 13),  # θ = 12
        (4, 4, 13 / 17),  # t = ξ: θ = 16 by both formulas
        (5, 4, 14 / 18),  # θ = 17
        (100, 4, 109 / 113),  # θ = 112
        (1, 1, 1 / 2),  # a batch of one: θ = t
        (9, 1, 9 / 10),
        (0, 1, 0.0),
        (0, 4, 0.0),  # (0 + 1 − 4) / 1 is negative
    ],
)
def test_forgetting_factor_values(step, batch_size, expected):
    assert forgetting_factor(step, batch_size) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_forgetting_factor_rises_towards_one(batch_size):
    factors = [forgetting_factor(step, batch_size) for step in range(3 * batch_size)]
    assert all(0 <= early < late < 1 for early, late in zip(factors[:-1], factors[1:]))


def test_forgetting_factor_of_large_batches_is_one_less_a_step():
    for step in (1, 10, 1000):
        assert forgetting_factor(step, 65536) == pytest.approx(1 - 1 / step, abs=2e-5)


@pytest.mark.parametrize("arguments, message", [((-1, 4), "`step` .* got -1"), ((2, 0), "`batch_size` .* got 0")])
def test_forgetting_factor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        forgetting_factor(*arguments)


# --- eqs 23, 24 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetting", [1.0, 0.3, 0.0])
def test_statistics_equal_the_dense_sums(forgetting):
    signals, indices, coefficients = random_codes(50, 6, 15, 4)
    generator = seeded(2)
    A, B = torch.randn(15, 15, generator=generator).double(), torch.randn(6, 15, generator=generator).double()
    before = A.clone(), B.clone()
    new_A, new_B = accumulate_statistics(A, B, signals, indices, coefficients, forgetting)
    codes = dense(indices, coefficients, 15)
    np.testing.assert_allclose(new_A.numpy(), forgetting * A.numpy() + codes.T @ codes / 50, atol=1e-12)
    np.testing.assert_allclose(new_B.numpy(), forgetting * B.numpy() + signals.numpy().T @ codes / 50, atol=1e-12)
    assert torch.equal(A, before[0]) and torch.equal(B, before[1])
    assert new_B.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_statistics_are_summed_in_float32(dtype):
    signals, indices, coefficients = (x if x.dtype == torch.int64 else x.to(dtype) for x in random_codes(400, 6, 9, 3))
    A, B = accumulate_statistics(torch.zeros(9, 9), torch.zeros(6, 9), signals, indices, coefficients)
    assert A.dtype == B.dtype == torch.float32
    codes = dense(indices, coefficients, 9)
    np.testing.assert_allclose(A.numpy(), codes.T @ codes / 400, atol=1e-5)
    np.testing.assert_allclose(B.numpy(), signals.double().numpy().T @ codes / 400, atol=1e-5)


def test_statistics_of_unused_slots_and_of_no_signals():
    A, B = torch.eye(5), torch.ones(3, 5)
    unused = torch.full((4, 2), -1)
    for arguments in (
        (torch.ones(4, 3), unused, torch.full((4, 2), 7.0)),
        (torch.ones(4, 3), unused, torch.full((4, 2), float("nan"))),  # whatever an unused slot holds
        (torch.ones(0, 3), unused[:0], torch.ones(0, 2)),
    ):
        new_A, new_B = accumulate_statistics(A, B, *arguments, forgetting=0.5)
        assert torch.equal(new_A, 0.5 * A) and torch.equal(new_B, 0.5 * B)


def test_statistics_do_not_depend_on_the_order_of_slots_or_signals():
    signals, indices, coefficients = random_codes(30, 5, 12, 4)
    zeros = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(5, 12, dtype=torch.float64)
    one = accumulate_statistics(*zeros, signals, indices, coefficients)
    order = torch.randperm(30, generator=seeded(3))
    two = accumulate_statistics(*zeros, signals[order], indices[order].flip(1), coefficients[order].flip(1))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_in_place_with_a_weight(dtype):
    signals, indices, coefficients = random_codes(50, 6, 15, 4, dtype)
    A, rows = torch.randn(15, 15, dtype=dtype), torch.randn(15, 6, dtype=dtype)
    expected = accumulate_statistics(A, rows.t(), signals, indices, coefficients, 0.7)
    same = accumulate_statistics(A, rows.t(), signals, indices, coefficients, 0.7, weight=1 / 50)
    for B in (rows.t(), rows.t().contiguous()):  # the transpose of a contiguous matrix, and a contiguous one
        a, b = A.clone(), B.clone()
        given = accumulate_statistics(a, b, signals, indices, coefficients, 0.7, weight=1 / 50, in_place=True)
        assert given[0] is a and given[1] is b
        for new, old, third in zip((a, b), expected, same):
            torch.testing.assert_close(new, old)
            torch.testing.assert_close(third, old)
    half = accumulate_statistics(0 * A, 0 * rows.t(), signals, indices, coefficients, weight=0.5)
    torch.testing.assert_close(half[0].trace(), 25 * (expected[0] - 0.7 * A).trace())


@pytest.mark.parametrize(
    "A, B",
    [
        (torch.eye(5).half(), torch.ones(3, 5).half()),
        (torch.eye(5), torch.ones(3, 5).double()),
        (torch.ones(5, 10)[:, ::2], torch.ones(3, 5)),
    ],
)
def test_statistics_that_cannot_be_overwritten_are_refused(A, B):
    with pytest.raises(ValueError, match="`in_place` needs a contiguous `A`"):
        accumulate_statistics(A, B, Z, I, C, in_place=True)


Z, I, C = torch.ones(4, 3), torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.eye(4), torch.ones(3, 5), Z, I, C), r"`A` must have the shape .* \(5, 5\), got \(4, 4\)"),
        ((torch.eye(5), torch.ones(2, 5), Z, I, C), r"`signals` must have the shape \(N, 2\)"),
        ((torch.eye(5), torch.ones(3, 5), Z, I, C[:, :1]), "`indices` and `coefficients`"),
        ((torch.eye(5), torch.ones(3, 5), Z, I[:2], C[:2]), r"`indices` and `coefficients` .* \(4, sparsity\)"),
    ],
)
def test_statistics_refuse_shapes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        accumulate_statistics(*arguments)


# --- eqs 27, 28 -------------------------------------------------------------------------------------------------------


def mairal_algorithm_2(dictionary, A, B, iterations):
    """Algorithm 2 of Mairal et al. (2010) in NumPy, with eq 28's norm in place of max(1, norm)."""
    dictionary = dictionary.copy()
    for _ in range(iterations):
        for j in range(dictionary.shape[1]):
            if A[j, j] > 0:
                u = (B[:, j] - dictionary @ A[:, j]) / A[j, j] + dictionary[:, j]
                dictionary[:, j] = u / np.linalg.norm(u)
    return dictionary


def statistics(features, atoms, sparsity, used=None, n=300):
    signals, indices, coefficients = random_codes(n, features, atoms if used is None else used, sparsity)
    zeros = torch.zeros(atoms, atoms, dtype=torch.float64), torch.zeros(features, atoms, dtype=torch.float64)
    return accumulate_statistics(*zeros, signals, indices, coefficients)


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("features, atoms", [(6, 15), (20, 5), (1, 3), (4, 1), (9, 64), (9, 65), (7, 150)])
def test_update_against_mairal(features, atoms, iterations):
    dictionary = random_dictionary(features, atoms, seeded(), dtype=torch.float64)
    A, B = statistics(features, atoms, min(3, atoms))
    updated = block_coordinate_update(dictionary, A, B, iterations)
    reference = mairal_algorithm_2(dictionary.numpy(), A.numpy(), B.numpy(), iterations)
    np.testing.assert_allclose(updated.numpy(), reference, atol=1e-12)
    half = block_coordinate_update(dictionary.float(), A.float(), B.float(), iterations)
    np.testing.assert_allclose(half.numpy(), reference, atol=1e-4)


def test_update_never_raises_the_surrogate():
    dictionary = random_dictionary(8, 20, seeded(), dtype=torch.float64)
    A, B = statistics(8, 20, 4)
    values = [surrogate(dictionary, A, B)]
    for _ in range(15):
        dictionary = block_coordinate_update(dictionary, A, B)
        torch.testing.assert_close(dictionary.norm(dim=0), torch.ones(20, dtype=torch.float64))
        values.append(surrogate(dictionary, A, B))
    assert all(late <= early + 1e-12 for early, late in zip(values[:-1], values[1:]))
    assert values[1] < values[0] - 1e-3


def test_each_updated_atom_is_the_best_on_the_sphere():
    dictionary = random_dictionary(5, 1, seeded(), dtype=torch.float64)
    A, B = statistics(5, 1, 1)
    best = surrogate(block_coordinate_update(dictionary, A, B), A, B)
    others = random_dictionary(5, 500, seeded(1), dtype=torch.float64)
    assert all(best <= surrogate(others[:, k : k + 1], A, B) + 1e-12 for k in range(500))


def test_update_leaves_unused_atoms_and_the_argument_alone():
    dictionary = random_dictionary(6, 12, seeded())
    A, B = (x.float() for x in statistics(6, 12, 3, used=9))
    assert A.diagonal()[9:].abs().max() == 0
    before = dictionary.clone()
    updated = block_coordinate_update(dictionary, A, B, iterations=2)
    assert torch.equal(dictionary, before)
    assert torch.equal(updated[:, 9:], dictionary[:, 9:])
    assert not torch.isclose(updated[:, :9], dictionary[:, :9]).all(dim=0).any()
    assert updated.is_contiguous()
    # nothing used at all, and an atom whose statistics are rounding noise beside the others'
    assert torch.equal(block_coordinate_update(dictionary, torch.zeros(12, 12), torch.zeros(6, 12)), dictionary)
    A[9, 9], B[:, 9] = 1e-14 * A.max(), 1e-9
    assert torch.equal(block_coordinate_update(dictionary, A, B)[:, 9], dictionary[:, 9])


def test_update_across_blocks_with_unused_atoms():
    dictionary = random_dictionary(12, 200, seeded(), dtype=torch.float64)
    A, B = statistics(12, 200, 3, n=900)
    unused = torch.arange(0, 200, 7)
    A[unused], A[:, unused], B[:, unused] = 0, 0, 0
    updated = block_coordinate_update(dictionary, A, B, iterations=2)
    np.testing.assert_allclose(updated, mairal_algorithm_2(dictionary.numpy(), A.numpy(), B.numpy(), 2), atol=1e-11)
    assert torch.equal(updated[:, unused], dictionary[:, unused])


class NoHost(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a value is read on the host or a shape depends on one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"), name
        return function(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host():
    dictionary = random_dictionary(6, 80, seeded(), dtype=torch.float64)
    signals, indices, coefficients = random_codes(50, 6, 80, 4)
    with NoHost():
        zeros = torch.zeros(80, 80).double(), torch.zeros(80, 6).double().t()
        A, B = accumulate_statistics(*zeros, signals, indices, coefficients, 0.9, in_place=True)
        block_coordinate_update(dictionary, A, B)


def test_update_survives_statistics_without_a_direction():
    dictionary = random_dictionary(4, 2, seeded())
    # b_j = D a_j − A_jj d_j: the least-squares atom is 0
    A = torch.eye(2)
    assert torch.equal(block_coordinate_update(dictionary, A, torch.zeros(4, 2)), dictionary)
    broken = torch.full((4, 2), float("nan"))
    assert torch.equal(block_coordinate_update(dictionary, A, broken), dictionary)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e18])
def test_update_does_not_depend_on_the_scale_of_the_statistics(scale):
    dictionary = random_dictionary(6, 10, seeded())
    A, B = (x.float() for x in statistics(6, 10, 3))
    expected = block_coordinate_update(dictionary, A, B)
    torch.testing.assert_close(block_coordinate_update(dictionary, A * scale, B * scale), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_update_of_half_precision_dictionaries_and_under_autocast(dtype):
    dictionary = random_dictionary(6, 10, seeded(), dtype=dtype)
    A, B = (x.float() for x in statistics(6, 10, 3))
    expected = block_coordinate_update(dictionary.float(), A, B)
    assert torch.equal(block_coordinate_update(dictionary, A, B), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block_coordinate_update(dictionary, A, B), expected)


def test_update_refuses():
    dictionary, A, B = torch.eye(3, 4), torch.eye(4), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"`A` and `B` .* \(4, 4\) and \(3, 4\)"):
        block_coordinate_update(dictionary, A[:3], B)
    with pytest.raises(ValueError, match="`A` and `B`"):
        block_coordinate_update(dictionary, A, B[:2])
    with pytest.raises(ValueError, match="`iterations` must not be negative, got -1"):
        block_coordinate_update(dictionary, A, B, iterations=-1)


# --- all together -----------------------------------------------------------------------------------------------------


def test_learning_recovers_a_planted_dictionary():
    # L = 8, K = 12, S = 2: an orthonormal basis and 4 Hadamard columns have coherence 1/√8
    features, atoms, sparsity, batch_size = 8, 12, 2, 300
    generator = seeded(8)
    rotation = torch.linalg.qr(torch.randn(features, features, generator=generator))[0]
    columns = torch.tensor(hadamard(features)[:, [1, 2, 4, 7]]) / features**0.5
    planted = rotation @ torch.cat([torch.eye(features), columns], dim=1)

    def batch():
        indices = torch.rand(batch_size, atoms, generator=generator).topk(sparsity).indices
        coefficients = torch.randn(batch_size, sparsity, generator=generator)
        coefficients = coefficients + 0.5 * coefficients.sign()
        signals = (planted.t()[indices] * coefficients.unsqueeze(-1)).sum(dim=1)
        return signals + 0.01 * torch.randn(signals.shape, generator=generator)

    def learn():
        dictionary = dictionary_from_signals(batch(), atoms, generator=generator)
        A, B = torch.zeros(atoms, atoms), torch.zeros(features, atoms)
        errors = []
        for step in range(1, 81):
            signals = batch()
            indices, coefficients = omp(signals, dictionary, sparsity)
            errors.append((signals - synthesize(indices, coefficients, dictionary)).square().mean().item())
            A, B = accumulate_statistics(A, B, signals, indices, coefficients, forgetting_factor(step, batch_size))
            dictionary = block_coordinate_update(dictionary, A, B)
        assert errors[-1] < 0.5 * errors[0]
        return errors[-1], dictionary

    # the problem is not convex: of a few starts, the first whose error sinks to the noise must be the planted one
    starts = (learn() for _ in range(20))
    dictionary = next(dictionary for error, dictionary in starts if error < 2 * 0.01**2)
    agreement = (planted.t() @ dictionary).abs()
    assert agreement.amax(dim=1).min() > 0.99, agreement.amax(dim=1)
    assert sorted(agreement.argmax(dim=1).tolist()) == list(range(atoms))  # one learned atom for each planted one
