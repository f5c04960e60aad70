"""IHT and FISTA: invariances, precision, memory, compilation and errors."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lasers.functional import fista, iht, random_dictionary
from diffusers_lasers.functional.pursuit import thresholding


both = pytest.mark.parametrize("pursuit", [iht, fista])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, features=12, atoms=40, dtype=torch.float32):
    """Gaussian signals and unit atoms."""
    dictionary = random_dictionary(features, atoms, seeded())
    return torch.randn(n, features, generator=seeded(1), dtype=torch.float64).to(dtype), dictionary.to(dtype)


@both
def test_code_does_not_depend_on_the_batch(pursuit):
    signals, dictionary = problem(40, 16, 256)
    signals[::7] *= 1e6  # loud neighbours
    indices, coefficients = pursuit(signals, dictionary, 5)
    for n in range(len(signals)):
        alone, weights = pursuit(signals[n : n + 1], dictionary, 5)
        assert torch.equal(alone[0], indices[n])
        assert (weights[0] - coefficients[n]).abs().max() <= 1e-6 * coefficients[n].abs().max()


@both
@pytest.mark.parametrize("block_elements", [1, 64, 64 * 37])
def test_code_does_not_depend_on_the_chunks(pursuit, monkeypatch, block_elements):
    signals, dictionary = problem(50, 16, 64)
    indices, coefficients = pursuit(signals, dictionary, 5)
    monkeypatch.setitem(thresholding._BLOCK_ELEMENTS, "cpu", block_elements)
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
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.elements = max(self.elements, tensor.numel())
        return out

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}


@both
@pytest.mark.parametrize("features, atoms, sparsity", [(8, 512, 3), (64, 256, 16), (8, 256, 20)])
def test_memory_does_not_grow_with_signals_times_atoms(pursuit, features, atoms, sparsity, monkeypatch):
    assert thresholding._BLOCK_ELEMENTS["cpu"] * 8 * 6 <= 64 * 2**20  # six arrays in float64
    monkeypatch.setitem(thresholding._BLOCK_ELEMENTS, "cpu", 2**15)
    signals, dictionary = problem(800, features, atoms)
    with LargestTensor(signals, dictionary) as record:
        pursuit(signals, dictionary, sparsity, iterations=2)
    assert record.elements <= max(2**15, 800 * features)  # N × K is four times that, at least


@both
def test_scale_sign_and_order(pursuit):
    signals, dictionary = problem()
    indices, coefficients = pursuit(signals, dictionary, 4)
    for power in (2.0**-60, 2.0**60):  # powers of two are exact
        scaled, weights = pursuit(signals * power, dictionary, 4)
        assert torch.equal(scaled, indices) and torch.equal(weights, coefficients * power)
        scaled, weights = pursuit(signals, dictionary * power, 4)
        assert torch.equal(scaled, indices) and torch.equal(weights, coefficients / power)
    same, weights = pursuit(-signals, dictionary, 4)
    assert torch.equal(same, indices) and torch.equal(weights, -coefficients)
    signs = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    same, weights = pursuit(signals, dictionary * signs, 4)
    assert torch.equal(same, indices)
    torch.testing.assert_close(weights, coefficients * signs[indices])
    order = torch.randperm(40, generator=seeded(1))
    permuted, weights = pursuit(signals, dictionary[:, order], 4)
    assert torch.equal(order[permuted], indices)
    torch.testing.assert_close(weights, coefficients)


@both
def test_atoms_of_any_length(pursuit):
    signals, dictionary = problem()
    lengths = torch.logspace(-6, 6, 40)
    indices, coefficients = pursuit(signals, dictionary * lengths, 4)
    expected = pursuit(signals, dictionary, 4)
    assert torch.equal(indices, expected[0])  # the choice is by direction
    torch.testing.assert_close(coefficients * lengths[indices], expected[1], rtol=1e-4, atol=1e-5)


@both
def test_memory_layout_of_the_arguments(pursuit):
    signals, dictionary = problem()
    expected = pursuit(signals, dictionary, 4)
    padded = torch.zeros(120, 24)
    padded[::2, ::2] = signals
    for layout in (signals.t().contiguous().t(), padded[::2, ::2]):
        indices, coefficients = pursuit(layout, dictionary.t().contiguous().t(), 4)
        assert torch.equal(indices, expected[0])
        torch.testing.assert_close(coefficients, expected[1])


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(pursuit, dtype):
    signals, dictionary = (x.to(dtype) for x in problem())
    indices, coefficients = pursuit(signals, dictionary, 4)
    expected = pursuit(signals.float(), dictionary.float(), 4)
    assert coefficients.dtype == torch.float32
    assert torch.equal(indices, expected[0]) and torch.equal(coefficients, expected[1])
    assert pursuit(signals.double(), dictionary, 4)[1].dtype == torch.float64


@both
def test_autocast_and_gradients_leave_the_code_alone(pursuit):
    signals, dictionary = problem()
    expected = pursuit(signals, dictionary, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = pursuit(signals, dictionary, 4)
    assert torch.equal(under[0], expected[0]) and torch.equal(under[1], expected[1])
    indices, coefficients = pursuit(signals.requires_grad_(), dictionary.requires_grad_(), 4)
    assert torch.equal(indices, expected[0]) and torch.equal(coefficients, expected[1])
    assert not coefficients.requires_grad


@both
@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_compiles_to_one_graph(pursuit, tolerance):
    torch._dynamo.reset()
    signals, dictionary = problem(50, 12, 40)
    signals[:5] = 0
    compiled = torch.compile(pursuit, fullgraph=True, backend="eager")
    indices, coefficients = compiled(signals, dictionary, 4, tolerance=tolerance, iterations=10)
    expected = pursuit(signals, dictionary, 4, tolerance=tolerance, iterations=10)
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(coefficients, expected[1])
    signals[7, 3] = math.nan  # the check is in the graph
    with torch.enable_grad():  # restores the mode if the refusal should leave it off
        with pytest.raises(RuntimeError, match="`signals` must be finite"):
            compiled(signals, dictionary, 4, tolerance=tolerance, iterations=10)
        assert torch.is_grad_enabled()


# --- errors -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["signals", "dictionary"])
def test_non_finite_input(pursuit, name, value):
    arguments = dict(zip(("signals", "dictionary"), problem(6, 8, 20)))
    expected = pursuit(**arguments, sparsity=3)
    arguments[name][2, 1] = value
    with pytest.raises(ValueError, match=f"`{name}` must be finite"):
        pursuit(**arguments, sparsity=3)
    indices, coefficients = pursuit(**arguments, sparsity=3, check_finite=False)
    spoilt = [2] if name == "signals" else range(6)
    for n in range(6):
        if n in spoilt:
            assert (indices[n] == -1).all() and coefficients[n].isnan().all()
        else:
            assert torch.equal(indices[n], expected[0][n]) and torch.equal(coefficients[n], expected[1][n])


Y, D = torch.ones(3, 4), torch.eye(4, 6)


@both
@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((Y, D, 7), {}, r"`sparsity` must be an integer from 1 to the number of atoms \(6\), got 7"),
        ((Y, D, 2, -0.1), {}, "`tolerance` .* got -0.1"),
        ((Y[0], D, 2), {}, r"`signals` .* shape \(4,\)"),
        ((Y, D.t(), 2), {}, r"`dictionary` .* features = 4 .* shape \(6, 4\)"),
        ((Y, D, 2), {"iterations": 0}, "`iterations` must be an integer of at least 1, got 0"),
        ((Y, D, 2), {"iterations": 2.0}, r"`iterations` .* got 2\.0"),
        ((Y, D, 2), {"iterations": True}, "`iterations` .* got True"),
    ],
)
def test_errors_name_the_argument(pursuit, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pursuit(*arguments, **options)


@pytest.mark.parametrize("penalty", [0, 1, -0.1, 1.5, math.nan])
def test_error_of_the_penalty(penalty):
    with pytest.raises(ValueError, match=f"`penalty` must be between 0 and 1, both excluded, got {penalty}"):
        fista(Y, D, 2, penalty=penalty)
