"""From codes to signals: dense products, and gradients against float64 autograd through explicit least squares."""

import pytest
import torch

from diffusers_lasers.functional import omp, random_dictionary, synthesize
from diffusers_lasers.functional.pursuit import projection_synthesis


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=7, features=6, atoms=10, sparsity=3, dtype=torch.float64):
    """Signals, a dictionary of unit-norm atoms, and codes with some unused slots, the first row entirely unused."""
    generator = seeded()
    dictionary = random_dictionary(features, atoms, generator, dtype=dtype)
    signals = torch.randn(n, features, generator=generator, dtype=dtype)
    indices = torch.rand(n, atoms, generator=generator).topk(sparsity).indices
    used = torch.randint(0, sparsity + 1, (n, 1), generator=generator)
    used[0] = 0
    indices = torch.where(torch.arange(sparsity) < used, indices, -1)
    return signals, dictionary, indices, least_squares(signals, dictionary, indices)


def least_squares(signals, dictionary, indices):
    """Coefficients of the least-squares fit on each support, in float64."""
    coefficients = torch.zeros(indices.shape, dtype=torch.float64)
    for n, row in enumerate(indices):
        support = row[row >= 0]
        fit = torch.linalg.lstsq(dictionary[:, support].detach().double(), signals[n].detach().double().unsqueeze(1))
        coefficients[n, row >= 0] = fit.solution.squeeze(1)
    return coefficients.to(signals.dtype)


def reference_projection(signals, dictionary, indices):
    """Least-squares reconstructions on the given supports, through which autograd differentiates."""
    rows = []
    for signal, row in zip(signals, indices):
        support = row[row >= 0]
        chosen = dictionary[:, support]
        rows.append(chosen @ torch.linalg.lstsq(chosen, signal.unsqueeze(1)).solution.squeeze(1))
    return torch.stack(rows)


def dense(indices, coefficients, atoms):
    codes = torch.zeros(len(indices), atoms, dtype=coefficients.dtype)
    for slot in range(indices.shape[1]):
        used = indices[:, slot] >= 0
        codes[used, indices[used, slot]] += coefficients[used, slot]
    return codes


# --- synthesize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_synthesis_is_the_dense_product(dtype, tolerance):
    _, dictionary, indices, coefficients = problem(50, 6, 10, 4, dtype=dtype)
    signals = synthesize(indices, coefficients, dictionary)
    assert signals.dtype == dtype and signals.shape == (50, 6)
    torch.testing.assert_close(signals, dense(indices, coefficients, 10) @ dictionary.t(), rtol=0, atol=tolerance)
    # an atom in two slots counts twice, an unused slot not at all, whatever its coefficient
    indices, coefficients = torch.tensor([[2, 2, -1]]), torch.tensor([[1.0, 0.5, 9.0]], dtype=dtype)
    torch.testing.assert_close(synthesize(indices, coefficients, dictionary), 1.5 * dictionary[:, 2:3].t())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_synthesis_in_the_dtype_of_the_dictionary(dtype):
    _, dictionary, indices, coefficients = problem(50, 6, 10, 4, dtype=torch.float32)
    signals = synthesize(indices, coefficients, dictionary.to(dtype))
    assert signals.dtype == dtype
    torch.testing.assert_close(signals.float(), synthesize(indices, coefficients, dictionary), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_synthesis_of_nothing(shape):
    dictionary = torch.randn(6, 10, generator=seeded())
    signals = synthesize(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), dictionary)
    assert torch.equal(signals, torch.zeros(shape[0], 6))


def test_synthesis_gradients():
    _, dictionary, indices, coefficients = problem()
    indices[3] = torch.tensor([4, 4, -1])
    inputs = (coefficients.requires_grad_(), dictionary.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, d: synthesize(indices, c, d), inputs)
    synthesize(indices, *inputs).sum().backward()
    assert (coefficients.grad[indices < 0] == 0).all()
    expected = dense(indices, coefficients.detach(), 10).sum(dim=0).expand(6, 10)
    torch.testing.assert_close(dictionary.grad, expected)


def test_synthesis_refuses_shapes_that_do_not_fit():
    dictionary = torch.randn(6, 10)
    with pytest.raises(ValueError, match=r"`indices` and `coefficients` .* got \(4, 3\) and \(4, 2\)"):
        synthesize(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 2), dictionary)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)"):
        synthesize(torch.zeros(3, dtype=torch.int64), torch.zeros(3), dictionary)


# --- projection_synthesis ---------------------------------------------------------------------------------------------


def test_projection_has_the_value_of_synthesis():
    signals, dictionary, indices, coefficients = problem()
    reconstruction = projection_synthesis(signals, dictionary, indices, coefficients)
    assert torch.equal(reconstruction, synthesize(indices, coefficients, dictionary))
    torch.testing.assert_close(reconstruction, reference_projection(signals, dictionary, indices))


@pytest.mark.parametrize("lengths", ["unit", "any"])
@pytest.mark.parametrize("shape", [(7, 6, 10, 3), (5, 4, 9, 4), (1, 8, 3, 1), (6, 1, 2, 1)])
def test_projection_gradient_against_autograd_through_least_squares(shape, lengths):
    signals, dictionary, indices, coefficients = problem(*shape)
    if lengths == "any":
        dictionary = dictionary * torch.logspace(-2, 2, shape[2], dtype=torch.float64)
        coefficients = least_squares(signals, dictionary, indices)
    weights = torch.randn(shape[:2], generator=seeded(1), dtype=torch.float64)
    inputs = signals.clone().requires_grad_(), dictionary.clone().requires_grad_()
    expected = torch.autograd.grad((reference_projection(*inputs, indices).pow(3) * weights).sum(), inputs)
    reconstruction = projection_synthesis(*inputs, indices, coefficients)
    found = torch.autograd.grad((reconstruction.pow(3) * weights).sum(), inputs)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * max(1.0, other.abs().max().item()))


def test_projection_gradcheck():
    signals, dictionary, indices, _ = problem(5, 5, 7, 3)

    def reconstruct(signals, dictionary):  # the support is fixed, the coefficients follow
        return projection_synthesis(signals, dictionary, indices, least_squares(signals, dictionary, indices))

    assert torch.autograd.gradcheck(reconstruct, (signals.requires_grad_(), dictionary.requires_grad_()))
    assert torch.autograd.gradcheck(lambda y: reconstruct(y, dictionary.detach()), signals)
    assert torch.autograd.gradcheck(lambda d: reconstruct(signals.detach(), d), dictionary)


def test_projection_gradient_to_the_signals_is_the_projector():
    signals, dictionary, indices, coefficients = problem()
    signals.requires_grad_()
    gradient = torch.randn(signals.shape, generator=seeded(1), dtype=torch.float64)
    reconstruction = projection_synthesis(signals, dictionary, indices, coefficients)
    (once,) = torch.autograd.grad(reconstruction, signals, gradient, retain_graph=True)
    (twice,) = torch.autograd.grad(reconstruction, signals, once, retain_graph=True)
    torch.testing.assert_close(once, twice)  # idempotent
    assert (once[0] == 0).all()  # no atoms, no gradient
    (inside,) = torch.autograd.grad(reconstruction, signals, reconstruction.detach())
    torch.testing.assert_close(inside, reconstruction.detach())  # the span is kept


def test_projection_gradient_with_codes_of_omp_in_float32():
    generator = seeded()
    signals, dictionary = torch.randn(200, 16, generator=generator), random_dictionary(16, 64, generator)
    signals[:5] = 0
    signals[5:10] = dictionary[:, :5].t()
    indices, coefficients = omp(signals, dictionary, 5)
    gradient = torch.randn(200, 16, generator=generator)
    inputs = signals.requires_grad_(), dictionary.requires_grad_()
    found = torch.autograd.grad(projection_synthesis(*inputs, indices, coefficients), inputs, gradient)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(reference_projection(*exact, indices), exact, gradient.double())
    for one, other in zip(found, expected):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("features, angle", [(8, 1e-2), (8, 1e-3), (8, 1e-4), (8, 2e-5), (512, 1e-3), (512, 2e-5)])
def test_projection_gradient_with_nearly_dependent_atoms(features, angle):
    # whatever the support, the gradient to the signals is that of a projection: finite, and never longer
    generator = seeded()
    atoms = random_dictionary(features, 16, generator)
    other = random_dictionary(features, 16, generator)
    twins = atoms + angle * other
    dictionary = torch.cat([atoms, twins / twins.norm(dim=0)], dim=1)
    signals = torch.randn(20, features, generator=generator)
    indices = torch.tensor([0, 1, 2, 16, 17, 18]).repeat(20, 1)  # three atoms and their twins
    coefficients = least_squares(signals, dictionary, indices)
    gradient = torch.randn(20, features, generator=generator)
    inputs = signals.requires_grad_(), dictionary.requires_grad_()
    to_signals, to_dictionary = torch.autograd.grad(
        projection_synthesis(*inputs, indices, coefficients), inputs, gradient
    )
    assert torch.isfinite(to_signals).all() and torch.isfinite(to_dictionary).all()
    assert (to_signals.norm(dim=1) <= 1.01 * gradient.norm(dim=1)).all()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_projection_gradient_does_not_depend_on_the_length_of_atoms(scale):
    signals, dictionary, indices, coefficients = problem(dtype=torch.float32)
    gradient = torch.randn(signals.shape, generator=seeded(1))
    signals.requires_grad_()

    def to_signals(dictionary, coefficients):
        reconstruction = projection_synthesis(signals, dictionary, indices, coefficients)
        return torch.autograd.grad(reconstruction, signals, gradient)[0]

    expected = to_signals(dictionary, coefficients)
    torch.testing.assert_close(to_signals(dictionary * scale, coefficients / scale), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_projection_gradient_in_half_precision(dtype):
    signals, dictionary, indices, _ = problem(dtype=torch.float32)
    signals, dictionary = signals.to(dtype), dictionary.to(dtype)
    coefficients = least_squares(signals.float(), dictionary.float(), indices)
    gradient = torch.randn(signals.shape, generator=seeded(1)).to(dtype)
    inputs = signals.requires_grad_(), dictionary.requires_grad_()
    found = torch.autograd.grad(projection_synthesis(*inputs, indices, coefficients), inputs, gradient)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(projection_synthesis(*exact, indices, coefficients), exact, gradient.float())
    for one, other in zip(found, expected):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)


def test_projection_gradient_ignores_autocast():
    signals, dictionary, indices, coefficients = problem(dtype=torch.float32)
    inputs = signals.requires_grad_(), dictionary.requires_grad_()
    expected = torch.autograd.grad(projection_synthesis(*inputs, indices, coefficients).sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(projection_synthesis(*inputs, indices, coefficients).sum(), inputs)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_projection_of_nothing(shape):
    signals = torch.ones(shape[0], 6, requires_grad=True)
    dictionary = torch.randn(6, 10, requires_grad=True)
    indices, coefficients = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    projection_synthesis(signals, dictionary, indices, coefficients).sum().backward()
    assert torch.equal(signals.grad, torch.zeros(shape[0], 6)) and torch.equal(dictionary.grad, torch.zeros(6, 10))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_to_one_graph(backend):
    torch._dynamo.reset()
    signals, dictionary, indices, coefficients = problem(dtype=torch.float32)
    inputs = signals.requires_grad_(), dictionary.requires_grad_()

    def both(signals, dictionary):
        linear = synthesize(indices, coefficients, dictionary)
        return (linear.square() + projection_synthesis(signals, dictionary, indices, coefficients)).sum()

    expected = torch.autograd.grad(both(*inputs), inputs)
    found = torch.autograd.grad(torch.compile(both, fullgraph=True, backend=backend)(*inputs), inputs)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
