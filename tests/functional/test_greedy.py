"""Greedy pursuits, on both backends: against scikit-learn and brute force in float64, and invariances; edge cases are
in test_pursuits.py."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lasers.functional import ols, omp, set_backend
from diffusers_lasers.functional.kernels import operators as kernels
from diffusers_lasers.functional.pursuit import correlations, greedy_torch


@pytest.fixture(params=["torch", "gram", "fused"], autouse=True)
def backend(request, monkeypatch):
    """Every test of this file runs on tensor operations, by products and by the Gram matrix, and on the compiled
    kernels."""
    if request.param == "fused" and kernels._kernels is None:
        pytest.skip("the compiled kernels were not built")
    monkeypatch.setattr(correlations, "_gram_is_faster", lambda *sizes: request.param == "gram")
    set_backend("torch" if request.param == "gram" else request.param)
    yield request.param
    set_backend("auto")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=64, features=16, atoms=64, kind="gaussian", seed=0, dtype=torch.float32):
    """Signals and a dictionary of unit-norm atoms."""
    generator = seeded(seed)
    dictionary = torch.randn(features, atoms, generator=generator, dtype=torch.float64)
    if kind == "coherent":  # all atoms within a cone
        dictionary = dictionary + 3 * torch.randn(features, 1, generator=generator, dtype=torch.float64)
    dictionary = dictionary / dictionary.norm(dim=0)
    signals = torch.randn(n, features, generator=generator, dtype=torch.float64)
    if kind == "sparse":
        support = torch.rand(n, atoms, generator=generator).topk(3).indices
        signals = (dictionary.t()[support] * torch.randn(n, 3, 1, generator=generator)).sum(dim=1) + 0.05 * signals
    return signals.to(dtype), dictionary.to(dtype)


def to_dense(indices, coefficients, atoms):
    dense = torch.zeros(len(indices), atoms + 1, dtype=torch.float64)
    dense.scatter_(1, torch.where(indices < 0, atoms, indices), coefficients.double())
    return dense[:, :atoms]


def residuals(signals, dictionary, indices, coefficients):
    """y − Dγ in float64, from the code as it was returned."""
    return signals.double() - to_dense(indices, coefficients, dictionary.shape[1]) @ dictionary.double().t()


def residual_norms(signals, dictionary, indices, coefficients):
    """Norms of y − Dγ, without overflow or underflow of their squares."""
    residual = residuals(signals, dictionary, indices, coefficients)
    return torch.linalg.vector_norm(residual, dim=1)


# --- an independent implementation ------------------------------------------------------------------------------------


def scikit_learn(signals, dictionary, sparsity):
    """Codes `(N, atoms)` of scikit-learn in float64."""
    signals, dictionary = signals.double().numpy(), dictionary.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of dependent atoms
        codes = orthogonal_mp_gram(dictionary.T @ dictionary, dictionary.T @ signals.T, n_nonzero_coefs=sparsity)
    return torch.from_numpy(np.asarray(codes).reshape(dictionary.shape[1], -1).T.copy())


def tie_margins(signals, dictionary, sparsity):
    """Smallest lead of the best atom over the second best among the steps, relative to the signal, in float64."""
    signals, dictionary = signals.double().numpy(), dictionary.double().numpy()
    margins = []
    for signal in signals:
        residual, support, margin = signal, [], math.inf
        for _ in range(sparsity):
            correlation = np.abs(dictionary.T @ residual)
            correlation[support] = -1.0
            second, best = np.sort(correlation)[-2:]
            margin = min(margin, (best - second) / np.linalg.norm(signal))
            support.append(int(correlation.argmax()))
            chosen = dictionary[:, support]
            residual = signal - chosen @ np.linalg.lstsq(chosen, signal, rcond=None)[0]
        margins.append(margin)
    return torch.tensor(margins)


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "coherent"])
@pytest.mark.parametrize(
    "features, atoms, sparsity", [(16, 512, 5), (16, 512, 1), (64, 256, 8), (4, 64, 2), (8, 12, 4), (256, 512, 3)]
)
@pytest.mark.parametrize("dtype, resolution, accuracy", [(torch.float32, 1e-5, 1e-5), (torch.float64, 1e-12, 1e-10)])
def test_agrees_with_scikit_learn(features, atoms, sparsity, kind, dtype, resolution, accuracy):
    signals, dictionary = problem(100, features, atoms, kind, dtype=dtype)
    indices, coefficients = omp(signals, dictionary, sparsity)
    reference = scikit_learn(signals, dictionary, sparsity)
    clear = tie_margins(signals, dictionary, sparsity) > resolution
    assert clear.float().mean() > 0.9  # the comparison means something
    codes = to_dense(indices, coefficients, atoms)
    assert ((codes != 0) == (reference != 0)).all(dim=1)[clear].all()
    expected = (signals.double() - reference @ dictionary.double().t()).norm(dim=1)
    torch.testing.assert_close(
        residual_norms(signals, dictionary, indices, coefficients)[clear], expected[clear], rtol=accuracy, atol=0
    )
    scale = reference.abs().amax(dim=1, keepdim=True)
    conditioning = 1e3 if kind == "coherent" else 10
    assert ((codes - reference).abs() <= conditioning * accuracy * scale)[clear].all()


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "coherent"])
def test_each_step_takes_a_best_atom(kind):
    signals, dictionary = problem(200, 16, 128, kind)
    signals[:50] = (signals[:50] * 2).round()  # integers: ties
    indices, _ = omp(signals, dictionary, 6)
    for signal, support in zip(signals.double().numpy(), indices.tolist()):
        residual = signal
        for step, slot in enumerate(support):
            correlation = np.abs(dictionary.double().numpy().T @ residual)
            correlation[support[:step]] = 0.0
            assert correlation[slot] >= correlation.max() - 1e-5 * np.linalg.norm(signal)
            chosen = dictionary.double().numpy()[:, support[: step + 1]]
            residual = signal - chosen @ np.linalg.lstsq(chosen, signal, rcond=None)[0]


@functools.cache
def distances(kind, features, atoms, number, chosen):
    """Distances of a signal to the span of `chosen` and each other atom; shared by the backends, which choose alike."""
    signals, dictionary = problem(60, features, atoms, kind)
    signal, exact = signals[number].double().numpy(), dictionary.double().numpy()
    trials = {k: [*chosen, k] for k in range(atoms) if k not in chosen}
    return {
        k: np.linalg.norm(signal - exact[:, t] @ np.linalg.lstsq(exact[:, t], signal)[0]) for k, t in trials.items()
    }


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "coherent"])
@pytest.mark.parametrize("features, atoms, sparsity", [(16, 80, 5), (24, 40, 9), (4, 64, 2)])
def test_ols_leaves_the_shortest_residual_of_each_step(features, atoms, sparsity, kind):
    signals, dictionary = problem(60, features, atoms, kind)
    indices, coefficients = ols(signals, dictionary, sparsity)
    exact = dictionary.double().numpy()
    exact_signals = signals.double().numpy()
    for number, (support, weights) in enumerate(zip(indices.tolist(), coefficients.double().numpy())):
        signal = exact_signals[number]
        for step in range(sparsity):
            errors = distances(kind, features, atoms, number, tuple(support[:step]))
            error = errors[support[step]]
            assert error**2 <= min(errors.values()) ** 2 + 1e-5 * np.linalg.norm(signal) ** 2
        fit = np.linalg.lstsq(exact[:, support], signal)[0]
        np.testing.assert_allclose(weights, fit, rtol=1e-3, atol=1e-4 * np.abs(fit).max())


def test_ols_beats_omp_where_features_are_few():
    signals, dictionary = problem(2000, 4, 64)
    shares = []
    for pursuit in (omp, ols):
        code = pursuit(signals, dictionary, 2)
        shares.append((residual_norms(signals, dictionary, *code) / signals.norm(dim=1)).mean())
    assert shares[1] < 0.85 * shares[0]
    assert torch.equal(ols(signals, dictionary, 1)[0], omp(signals, dictionary, 1)[0])


@pytest.mark.parametrize("pursuit", [omp, ols])
def test_one_atom_is_the_best_one_of_all(pursuit):
    signals, dictionary = problem(50, 8, 40)
    indices, coefficients = pursuit(signals, dictionary, 1)
    inner = signals @ dictionary
    errors = signals.square().sum(dim=1, keepdim=True) - inner.square()  # of every single atom
    torch.testing.assert_close(
        residual_norms(signals, dictionary, indices, coefficients).float(), errors.amin(1).sqrt()
    )
    torch.testing.assert_close(coefficients, inner.gather(1, indices))


# --- precision and edges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    signals, dictionary = (x.to(dtype) for x in problem())
    indices, coefficients = omp(signals, dictionary, 4)
    expected = omp(signals.float(), dictionary.float(), 4)
    assert coefficients.dtype == torch.float32
    assert torch.equal(indices, expected[0]) and torch.equal(coefficients, expected[1])


def test_signals_set_the_precision():
    signals, dictionary = problem()
    assert omp(signals.double(), dictionary, 2)[1].dtype == torch.float64
    assert omp(signals, dictionary.double(), 2)[1].dtype == torch.float32


def test_no_more_atoms_than_the_signal_has():
    signals, dictionary = problem(30, 32, 48)
    dictionary[:, 5] = 0
    support = torch.tensor([[0, 7], [3, 40], [11, 12]])
    signals[:3] = dictionary.t()[support].sum(dim=1)
    signals[3] = 2.5 * dictionary[:, 9]
    signals[4] = 0
    indices, coefficients = omp(signals, dictionary, 6)
    for row, expected in enumerate([[0, 7], [3, 40], [11, 12], [9], []]):
        assert sorted(indices[row][indices[row] >= 0].tolist()) == expected
    torch.testing.assert_close(coefficients[3], torch.tensor([2.5, 0, 0, 0, 0, 0]))
    assert (indices[5:] >= 0).all() and (indices != 5).all()


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7])
def test_nearly_dependent_atoms(angle):
    # every atom has a twin at this angle; the float64 code may use both, the float32 one where it is worth it
    signals, atoms = problem(100, 8, 16)
    twins = atoms + angle * problem(1, 8, 16, seed=1)[1]
    dictionary = torch.cat([atoms, twins / twins.norm(dim=0)], dim=1)
    norms = [signals.norm(dim=1).double()]
    for sparsity in range(1, 13):
        indices, coefficients = omp(signals, dictionary, sparsity)
        assert torch.isfinite(coefficients).all()
        norms.append(residual_norms(signals, dictionary, indices, coefficients))
        # what is lost to large opposite coefficients is never more than the atom gained
        assert (norms[-1] <= norms[-2] + 1e-6 * norms[0]).all()
    assert (norms[8] < 0.3 * norms[0]).all()


# --- invariances ------------------------------------------------------------------------------------------------------


def test_slots_are_nested():
    signals, dictionary = problem(200, 16, 128)
    indices, _ = omp(signals, dictionary, 10)
    for sparsity in range(1, 10):
        assert torch.equal(omp(signals, dictionary, sparsity)[0], indices[:, :sparsity])


def test_code_does_not_depend_on_the_batch():
    signals, dictionary = problem(40, 16, 256)
    signals[::7] *= 1e6  # loud neighbours
    indices, coefficients = omp(signals, dictionary, 5)
    for n in range(len(signals)):
        alone, weights = omp(signals[n : n + 1], dictionary, 5)
        assert torch.equal(alone[0], indices[n])
        assert (weights[0] - coefficients[n]).abs().max() <= 1e-6 * coefficients[n].abs().max()


@pytest.mark.parametrize("pursuit", [omp, ols])
@pytest.mark.parametrize(
    "block_elements, basis_elements", [(1, 1), (64, 2**20), (2**20, 96 * 7), (1000, 96 * 40), (64 * 37, 96 * 99)]
)
def test_code_does_not_depend_on_the_chunks(monkeypatch, pursuit, block_elements, basis_elements):
    signals, dictionary = problem(100, 16, 64)
    indices, coefficients = pursuit(signals, dictionary, 5)
    monkeypatch.setitem(greedy_torch.BLOCK_ELEMENTS, "cpu", block_elements)
    monkeypatch.setitem(greedy_torch._BASIS_ELEMENTS, "cpu", basis_elements)
    monkeypatch.setitem(greedy_torch._STATE_ELEMENTS, "cpu", 3 * block_elements)
    chunked, weights = pursuit(signals, dictionary, 5)
    assert torch.equal(chunked, indices)
    assert ((weights - coefficients).abs() <= 1e-6 * coefficients.abs().amax(dim=1, keepdim=True)).all()
    assert pursuit(signals[:0], dictionary, 5)[0].shape == (0, 5)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(tensor, torch.Tensor):
                continue
            # the dictionary that oneDNN has reordered shows no storage
            if tensor.layout != torch.strided or tensor.untyped_storage().data_ptr() not in self.given:
                self.elements = max(self.elements, tensor.numel())
        return out

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}


def test_memory_does_not_grow_with_signals_times_atoms(monkeypatch, backend):
    for limit in (greedy_torch.BLOCK_ELEMENTS, greedy_torch._BASIS_ELEMENTS, greedy_torch._STATE_ELEMENTS):
        assert limit["cpu"] * 4 <= 16 * 2**20
        monkeypatch.setitem(limit, "cpu", 2**14)
    correlations._has_onednn()  # asks for a large block of memory, once, and does not touch it
    largest = {}
    for n in (400, 1600):
        signals, dictionary = problem(n, 8, 512)
        with LargestTensor(signals, dictionary) as record:
            omp(signals, dictionary, 3)
            ols(signals, dictionary, 3)
        largest[n] = record.elements
    gram = 512**2 if backend == "gram" else 0  # with correlations of the signals at hand below it
    assert largest[400] <= gram + 2**14 and largest[1600] <= gram + 2**14  # N × K is 50 times that


def test_scale_sign_and_order():
    signals, dictionary = problem(60, 12, 40)
    indices, coefficients = omp(signals, dictionary, 4)
    # powers of two are exact
    for power in (2.0**-60, 2.0**60):
        scaled, weights = omp(signals * power, dictionary, 4)
        assert torch.equal(scaled, indices) and torch.equal(weights, coefficients * power)
        scaled, weights = omp(signals, dictionary * power, 4)
        assert torch.equal(scaled, indices) and torch.equal(weights, coefficients / power)
    same, weights = omp(-signals, dictionary, 4)
    assert torch.equal(same, indices) and torch.equal(weights, -coefficients)
    signs = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    same, weights = omp(signals, dictionary * signs, 4)
    assert torch.equal(same, indices)
    torch.testing.assert_close(weights, coefficients * signs[indices])
    order = torch.randperm(40, generator=seeded(1))
    permuted, weights = omp(signals, dictionary[:, order], 4)
    assert torch.equal(order[permuted], indices)
    torch.testing.assert_close(weights, coefficients)


def test_atoms_of_any_length():
    signals, dictionary = problem(60, 12, 40)
    lengths = torch.logspace(-6, 6, 40)
    indices, coefficients = omp(signals, dictionary * lengths, 4)
    expected = omp(signals, dictionary, 4)
    assert torch.equal(indices, expected[0])  # the choice is by direction
    torch.testing.assert_close(coefficients * lengths[indices], expected[1], rtol=1e-4, atol=1e-5)


def test_memory_layout_of_the_arguments():
    signals, dictionary = problem(60, 12, 40)
    expected = omp(signals, dictionary, 4)
    padded, wide = torch.zeros(120, 24), torch.zeros(40, 30)
    padded[::2, ::2], wide[:, 3:15] = signals, dictionary.t()
    for layout in (signals.t().contiguous().t(), padded[::2, ::2]):
        for atoms in (dictionary, dictionary.t().contiguous().t(), wide[:, 3:15].t()):
            indices, coefficients = omp(layout, atoms, 4)
            assert torch.equal(indices, expected[0])
            torch.testing.assert_close(coefficients, expected[1])
    indices, _ = omp(signals[:1].expand(5, 12), dictionary, 4)
    assert torch.equal(indices, expected[0][:1].expand(5, 4))


def test_autocast_and_gradients_leave_the_code_alone():
    signals, dictionary = problem(60, 12, 40)
    expected = omp(signals, dictionary, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = omp(signals, dictionary, 4)
    assert torch.equal(under[0], expected[0]) and torch.equal(under[1], expected[1])
    indices, coefficients = omp(signals.requires_grad_(), dictionary.requires_grad_(), 4)
    assert torch.equal(indices, expected[0]) and torch.equal(coefficients, expected[1])
    assert not coefficients.requires_grad


# --- the tolerance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.5, 3.0, 100.0])
def test_tolerance_takes_the_fewest_atoms_that_meet_it(tolerance):
    signals, dictionary = problem(30, 12, 60)
    signals[3] = 0
    sparsity = 8
    indices, coefficients = omp(signals, dictionary, sparsity, tolerance=tolerance)
    free, _ = omp(signals, dictionary, sparsity)
    norms = torch.stack(
        [signals.double().norm(dim=1)]
        + [residual_norms(signals, dictionary, *omp(signals, dictionary, s)) for s in range(1, sparsity + 1)]
    )
    assert (norms - tolerance).abs().min() > 1e-6 or tolerance == 0  # no signal ends on the boundary
    needed = (norms > tolerance).int().cumprod(dim=0)[:sparsity].sum(dim=0)
    if tolerance == 0:
        needed = (free >= 0).sum(dim=1)
    assert torch.equal((indices >= 0).sum(dim=1), needed)
    within = torch.arange(sparsity) < needed.unsqueeze(1)
    assert torch.equal(indices, torch.where(within, free, -1))
    assert (coefficients[~within] == 0).all()
    for n, count in enumerate(needed.tolist()):
        if count:  # the coefficients are those of that many atoms
            torch.testing.assert_close(coefficients[n, :count], omp(signals[n : n + 1], dictionary, count)[1][0])


def test_tolerance_against_scikit_learn():
    signals, dictionary = problem(60, 12, 40, dtype=torch.float64)
    indices, coefficients = omp(signals, dictionary, 12, tolerance=1.2)
    reference = orthogonal_mp_gram(
        (dictionary.t() @ dictionary).numpy(),
        (dictionary.t() @ signals.t()).numpy(),
        tol=1.2**2,
        norms_squared=signals.square().sum(dim=1).numpy(),
    )
    np.testing.assert_allclose(to_dense(indices, coefficients, 40).numpy(), reference.T, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_tolerance_is_in_the_units_of_the_signals(scale):
    signals, dictionary = problem(60, 12, 40)
    expected, _ = omp(signals, dictionary, 8, tolerance=1.0)
    indices, _ = omp(signals * scale, dictionary, 8, tolerance=scale)
    assert torch.equal(indices, expected)
    assert (indices == -1).any() and (indices >= 0).any()


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tolerance", [None, 1.0])
@pytest.mark.parametrize("pursuit", [omp, ols])
def test_compiles_to_one_graph(pursuit, compiler, tolerance):
    torch._dynamo.reset()
    signals, dictionary = problem(50, 12, 40)
    signals[:5] = 0
    compiled = torch.compile(pursuit, fullgraph=True, backend=compiler)
    indices, coefficients = compiled(signals, dictionary, 4, tolerance=tolerance)
    expected = pursuit(signals, dictionary, 4, tolerance=tolerance)
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(coefficients, expected[1])
    signals[7, 3] = math.nan  # the check is in the graph
    with torch.enable_grad():  # restores the mode if the refusal should leave it off
        with pytest.raises(RuntimeError, match="`signals` must be finite"):
            compiled(signals, dictionary, 4, tolerance=tolerance)
        assert torch.is_grad_enabled()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["signals", "dictionary"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_refuses_non_finite_input(name, value, dtype):
    arguments = dict(zip(("signals", "dictionary"), problem(5, 4, 6, dtype=dtype)))
    arguments[name][2, 1] = value
    with pytest.raises(ValueError, match=f"`{name}` must be finite"):
        omp(**arguments, sparsity=2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unchecked_non_finite_signals_spoil_only_their_own_codes(value):
    signals, dictionary = problem(6, 8, 20)
    indices, coefficients = omp(signals, dictionary, 3)
    signals[2, 1] = value
    unchecked, weights = omp(signals, dictionary, 3, check_finite=False)
    assert (unchecked[2] == -1).all() and weights[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(unchecked[others], indices[others]) and torch.equal(weights[others], coefficients[others])


Y, D = torch.ones(3, 4), torch.eye(4, 6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((Y, D, 7), r"`sparsity` must be an integer from 1 to the number of atoms \(6\), got 7"),
        ((Y, D, 0), "`sparsity` .* got 0"),
        ((Y, D, -1), "`sparsity` .* got -1"),
        ((Y, D, 2.0), r"`sparsity` .* got 2\.0"),
        ((Y, D, True), "`sparsity` .* got True"),
        ((Y, D[:, :0], 1), r"`sparsity` .* \(0\), got 1"),
        ((Y, D, 2, -0.1), "`tolerance` .* got -0.1"),
        ((Y, D, 2, math.nan), "`tolerance` .* got nan"),
        ((Y[0], D, 2), r"`signals` .* shape \(4,\)"),
        ((Y.unsqueeze(0), D, 2), r"`signals` .* shape \(1, 3, 4\)"),
        ((Y.long(), D, 2), "`signals` .* got torch.int64"),
        ((Y, D.long(), 2), "`dictionary` .* got torch.int64"),
        ((Y, D.t(), 2), r"`dictionary` .* features = 4 .* shape \(6, 4\)"),
        ((Y, D[0], 2), r"`dictionary` .* shape \(6,\)"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        omp(*arguments)
