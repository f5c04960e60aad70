"""IHT and FISTA: against plain loops and scikit-learn's lasso in float64, what they recover, and their options."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from diffusers_lasers.functional import fista, iht, random_dictionary, synthesize
from diffusers_lasers.functional.pursuit import thresholding
from diffusers_lasers.functional.pursuit.support_fit import SupportFit


both = pytest.mark.parametrize("pursuit", [iht, fista])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, features=12, atoms=40, dtype=torch.float32, seed=0):
    """Gaussian signals and unit atoms."""
    dictionary = random_dictionary(features, atoms, seeded(seed))
    return torch.randn(n, features, generator=seeded(seed + 1), dtype=torch.float64).to(dtype), dictionary.to(dtype)


def planted(n=100, features=128, atoms=256, sparsity=8, dtype=torch.float32):
    """Signals that are sums of `sparsity` atoms with weights from ±1 to ±2, the supports, and the dictionary."""
    dictionary = random_dictionary(features, atoms, seeded()).to(dtype)
    support = torch.rand(n, atoms, generator=seeded(1)).topk(sparsity).indices.sort(dim=1).values
    weights = 1 + torch.rand(n, sparsity, generator=seeded(2), dtype=dtype)
    weights = weights * torch.randn(n, sparsity, generator=seeded(3)).sign()
    return synthesize(support, weights, dictionary), dictionary, support, weights


def residual_norms(signals, dictionary, indices, coefficients):
    reconstruction = synthesize(indices, coefficients.double(), dictionary.double())
    return (signals.double() - reconstruction).norm(dim=1)


def least_squares(signal, dictionary, support):
    return np.linalg.lstsq(dictionary[:, support], signal, rcond=None)[0]


def by_magnitude(code, sparsity):
    """Support of the largest entries, and how far the last of them, or the gap between two of them, is from a tie."""
    order = np.argsort(-np.abs(code), kind="stable")
    support = [k for k in order[:sparsity] if code[k] != 0]
    magnitudes = np.abs(code[order[: sparsity + 1]])
    magnitudes = magnitudes[magnitudes > 0]
    gaps = -np.diff(magnitudes) / magnitudes[0] if len(magnitudes) > 1 else np.ones(1)
    return support, min(gaps.min(), magnitudes[-1] / magnitudes[0])


# --- independent implementations --------------------------------------------------------------------------------------


def plain_iht(signal, dictionary, sparsity, iterations):
    """The code of one signal after so many trials of a step, before the fit."""
    code = np.zeros(dictionary.shape[1])
    while iterations > 0:
        gradient = dictionary.T @ (signal - dictionary @ code)
        support = np.flatnonzero(code) if code.any() else np.argsort(-np.abs(gradient))[:sparsity]
        step = (gradient[support] ** 2).sum() / ((dictionary[:, support] @ gradient[support]) ** 2).sum()
        before = np.linalg.norm(signal - dictionary @ code)
        while iterations > 0:
            iterations -= 1
            moved = code + step * gradient
            moved[np.argsort(-np.abs(moved))[sparsity:]] = 0
            if np.linalg.norm(signal - dictionary @ moved) < before * (1 - 1e-15):
                code = moved
                break
            step /= 2
    return code


@pytest.mark.parametrize("features, atoms, sparsity", [(16, 64, 5), (32, 48, 8), (4, 32, 2), (8, 12, 12)])
@pytest.mark.parametrize("iterations", [1, 5, 30])
def test_iht_agrees_with_a_plain_loop(features, atoms, sparsity, iterations):
    signals, dictionary = problem(40, features, atoms, torch.float64)
    indices, coefficients = iht(signals, dictionary, sparsity, iterations=iterations)
    for signal, row, weights in zip(signals.numpy(), indices.tolist(), coefficients.numpy()):
        code = plain_iht(signal, dictionary.numpy(), sparsity, iterations)
        support, gap = by_magnitude(code, sparsity)
        assert gap > 1e-9
        if sparsity <= features:
            assert row == support
            np.testing.assert_allclose(weights, least_squares(signal, dictionary.numpy(), support), rtol=1e-6)
        else:  # the first atoms span everything
            assert row == support[:features] + [-1] * (sparsity - features)


@pytest.mark.parametrize("features, atoms, sparsity", [(16, 64, 5), (32, 48, 8), (4, 32, 2), (24, 8, 3)])
@pytest.mark.parametrize("penalty", [0.05, 0.3, 0.8])
def test_fista_ends_at_the_lasso_of_scikit_learn(features, atoms, sparsity, penalty):
    signals, dictionary = problem(40, features, atoms, torch.float64)
    indices, coefficients = fista(signals, dictionary, sparsity, penalty=penalty, iterations=20_000)
    y, atoms_of = signals.numpy(), dictionary.numpy()
    compared = 0
    for signal, row, weights in zip(y, indices.tolist(), coefficients.numpy()):
        weight = penalty * np.abs(atoms_of.T @ signal).max()
        lasso = Lasso(weight / features, fit_intercept=False, tol=1e-14, max_iter=100_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where rounding keeps it above the tolerance
            code = lasso.fit(atoms_of, signal).coef_
        support, gap = by_magnitude(code, sparsity)
        if gap > 1e-4:
            compared += 1
            assert row == support + [-1] * (sparsity - len(support))
            expected = least_squares(signal, atoms_of, support)
            np.testing.assert_allclose(weights[: len(support)], expected, rtol=1e-6)
    assert compared >= 36


# --- descent ----------------------------------------------------------------------------------------------------------


def test_residual_of_iht_never_grows():
    signals, dictionary = problem(100, 16, 128)
    norms = [signals.norm(dim=1).double()]
    for iterations in range(1, 40):
        slots, values = thresholding._hard_thresholding(signals, dictionary, 5, iterations)
        norms.append(residual_norms(signals, dictionary, slots, values))
        assert (norms[-1] <= norms[-2] * (1 + 1e-6)).all()
    assert (norms[1] < norms[0]).all() and (norms[-1] < 0.9 * norms[1]).float().mean() > 0.9


def test_objective_of_fista_falls_as_promised():
    signals, dictionary = problem(50, 16, 64, torch.float64)
    contraction = dictionary / torch.linalg.matrix_norm(dictionary, 2)
    penalty = 0.05

    def objective(iterations):
        code = thresholding._lasso(signals, contraction, penalty, iterations)
        return 0.5 * (signals - code @ contraction.t()).square().sum(1) + penalty * code.abs().sum(1), code

    least, code = objective(20_000)
    stationary = (signals - code @ contraction.t()) @ contraction  # in λ times the subdifferential of the ℓ₁ norm
    assert (stationary.abs() <= penalty * (1 + 1e-6)).all()
    torch.testing.assert_close(stationary[code != 0], penalty * code.sign()[code != 0], rtol=1e-6, atol=0)
    for iterations in (1, 3, 10, 30, 100):
        bound = 2 * code.square().sum(1) / (iterations + 1) ** 2  # Beck & Teboulle, 2009, theorem 4.4
        value, _ = objective(iterations)
        assert (value >= least - 1e-9).all() and (value - least <= bound).all()


@pytest.mark.parametrize("features, atoms", [(256, 300), (16, 512), (512, 16), (1, 7), (7, 1)])
@pytest.mark.parametrize("coherent", [False, True])
def test_bound_of_the_spectral_norm(features, atoms, coherent):
    matrix = random_dictionary(features, atoms, seeded()) + (0.3 if coherent else 0)
    exact = torch.linalg.matrix_norm(matrix.double(), 2).square()
    bound = thresholding._spectral_bound(matrix).double()
    assert exact * (1 - 1e-5) <= bound <= 1.05 * exact


# --- recovery ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype, accuracy", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_recovers_planted_supports(pursuit, dtype, accuracy):
    signals, dictionary, support, weights = planted(dtype=dtype)
    indices, coefficients = pursuit(signals, dictionary, 8)
    found, order = indices.sort(dim=1)
    assert torch.equal(found, support)
    torch.testing.assert_close(coefficients.gather(1, order), weights, rtol=accuracy, atol=0)


@both
def test_orthonormal_atoms_give_the_best_code(pursuit):
    signals, _ = problem(50, 16)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=seeded(2)))[0]
    indices, coefficients = pursuit(signals, basis, 4)
    inner = signals @ basis
    assert torch.equal(indices, inner.abs().topk(4).indices)
    torch.testing.assert_close(coefficients, inner.gather(1, indices))


@both
def test_no_more_atoms_than_the_signal_has(pursuit):
    signals, dictionary = problem(30, 32, 48)
    dictionary[:, 5] = 0
    signals[0] = 2.5 * dictionary[:, 9]
    signals[1] = 0
    indices, coefficients = pursuit(signals, dictionary, 6)
    assert indices[:2].tolist() == [[9] + [-1] * 5, [-1] * 6]
    torch.testing.assert_close(coefficients[0], torch.tensor([2.5, 0, 0, 0, 0, 0]))
    assert (indices[2:] >= 0).all() and (indices != 5).all()


# --- options ----------------------------------------------------------------------------------------------------------


@both
def test_one_iteration_takes_the_largest_correlations(pursuit):
    signals, dictionary = problem()
    indices, _ = pursuit(signals, dictionary, 3, iterations=1)
    assert torch.equal(indices, (signals @ dictionary).abs().topk(3).indices)


@both
def test_iterations_shorten_the_residual(pursuit):
    signals, dictionary = problem(200, 16, 128)
    means = [
        residual_norms(signals, dictionary, *pursuit(signals, dictionary, 5, iterations=iterations)).mean()
        for iterations in (1, 10, 50, 200)
    ]
    assert means[0] > means[1] > means[2] >= means[3]


def test_penalty_decides_how_many_atoms_are_left():
    signals, dictionary = problem(200, 16, 128)
    counts = []
    for penalty in (0.1, 0.5, 0.8, 0.999):
        indices, _ = fista(signals, dictionary, 16, penalty=penalty, iterations=300)
        counts.append((indices >= 0).sum(dim=1))
    for more, fewer in zip(counts, counts[1:]):
        assert more.float().mean() > fewer.float().mean() + 1
    assert (counts[-1] >= 1).all() and counts[-1].float().mean() < 1.1
    assert torch.equal(indices[:, 0], (signals @ dictionary).abs().argmax(dim=1))


@both
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 100.0])
def test_tolerance_keeps_the_first_atoms_that_meet_it(pursuit, tolerance):
    signals, dictionary = problem()
    indices, coefficients = pursuit(signals, dictionary, 6, tolerance=tolerance)
    free, _ = pursuit(signals, dictionary, 6)
    for signal, row, weights, support in zip(signals.double().numpy(), indices, coefficients, free.tolist()):
        needed = 0
        while needed < 6 and tolerance > 0:
            chosen = dictionary.double().numpy()[:, support[:needed]]
            best = least_squares(signal, dictionary.double().numpy(), support[:needed])
            if np.linalg.norm(signal - chosen @ best) <= tolerance:
                break
            needed += 1
        needed = needed if tolerance > 0 else 6
        assert row.tolist() == support[:needed] + [-1] * (6 - needed)
        best = least_squares(signal, dictionary.double().numpy(), support[:needed])
        np.testing.assert_allclose(weights[:needed], best, rtol=1e-3, atol=1e-4)
        assert (weights[needed:] == 0).all()


@both
@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_tolerance_is_in_the_units_of_the_signals(pursuit, scale):
    signals, dictionary = problem()
    expected, _ = pursuit(signals, dictionary, 8, tolerance=1.0)
    indices, _ = pursuit(signals * scale, dictionary, 8, tolerance=scale)
    assert torch.equal(indices, expected)
    assert (indices == -1).any() and (indices >= 0).any()


# --- dependent atoms --------------------------------------------------------------------------------------------------


def test_fit_of_a_support_keeps_what_helps_only_together():
    signal, atoms = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.6], [1.0, -1.0, 0.8], [0.0, 0.0, 0.0]])
    fit = SupportFit(signal, atoms, torch.ones(3), 3)
    for slot in range(3):  # the first is orthogonal to the signal, the second depends on it
        fit.add(torch.tensor([slot]), torch.tensor([True]), greedy=False)
    indices, coefficients = fit.code()
    assert indices.tolist() == [[0, -1, 2]]
    torch.testing.assert_close(coefficients, torch.tensor([[-4 / 3, 0.0, 5 / 3]]))


@both
@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
def test_nearly_dependent_atoms(pursuit, angle):
    signals, atoms = problem(100, 8, 16)
    twins = atoms + angle * problem(1, 8, 16, seed=1)[1]
    dictionary = torch.cat([atoms, twins / twins.norm(dim=0)], dim=1)
    lengths = signals.double().norm(dim=1)
    for sparsity in range(1, 13):
        indices, coefficients = pursuit(signals, dictionary, sparsity)
        assert torch.isfinite(coefficients).all()
        if angle <= 1e-4:
            for row in indices.tolist():
                used = [index % 16 for index in row if index >= 0]
                assert len(set(used)) == len(used)  # no atom beside its twin
        assert (residual_norms(signals, dictionary, indices, coefficients) <= lengths * (1 + 1e-6)).all()
