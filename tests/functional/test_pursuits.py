"""All pursuits: the properties that define a code, on every edge case and backend; and which of them does well
where."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffusers_lasers.functional import fista, get_pursuit, iht, ols, omp, random_dictionary, set_backend, synthesize
from diffusers_lasers.functional.kernels import get_backend
from diffusers_lasers.functional.pursuit import PURSUITS, correlations


needs_kernels = pytest.mark.skipif(get_backend() != "fused", reason="the compiled kernels were not built")
CODERS = [
    pytest.param((pursuit, backend), id=f"{pursuit}-{backend}", marks=[needs_kernels] if backend == "fused" else [])
    for pursuit, backend in [
        ("omp", "torch"),
        ("omp", "gram"),
        ("omp", "fused"),
        ("ols", "torch"),
        ("ols", "gram"),
        ("ols", "fused"),
        ("iht", "auto"),
        ("fista", "auto"),
    ]
]
GREEDY = (omp, ols)


@pytest.fixture(scope="module", params=CODERS)  # of the module: hypothesis refuses fixtures of a function
def pursuit(request):
    """A pursuit, with its backend chosen."""
    name, backend = request.param
    with pytest.MonkeyPatch.context() as patch:
        # "gram": tensor operations through the Gram matrix, "torch": by products
        patch.setattr(correlations, "_gram_is_faster", lambda *sizes: backend == "gram")
        set_backend("torch" if backend == "gram" else backend)
        yield PURSUITS[name]
    set_backend("auto")


def residuals(signals, dictionary, indices, coefficients):
    """y − Dγ in float64, from the code as it was returned."""
    atoms = dictionary.shape[1]
    dense = torch.zeros(len(indices), atoms + 1, dtype=torch.float64)
    dense.scatter_(1, torch.where(indices < 0, atoms, indices), coefficients.double())
    return signals.double() - dense[:, :atoms] @ dictionary.double().t()


def unit(dictionary):
    dictionary = dictionary.double()
    return dictionary / dictionary.norm(dim=0).clamp_min(1e-300)


def assert_is_code(signals, dictionary, indices, coefficients, sparsity):
    """
    What holds for every code, whatever the signals and atoms; with `dictionary` and `signals` as they were given.

    Returns the norms of the residuals, and the lengths (N,) that rounding is relative to.
    """
    n, atoms = len(signals), dictionary.shape[1]
    assert indices.shape == coefficients.shape == (n, sparsity)
    assert indices.dtype == torch.int64
    assert coefficients.dtype == (torch.float64 if signals.dtype == torch.float64 else torch.float32)
    assert torch.isfinite(coefficients).all()
    assert ((indices >= -1) & (indices < atoms)).all()
    used = indices >= 0
    assert (used.int().diff(dim=1) <= 0).all()  # unused slots come last
    assert (coefficients[~used] == 0).all()
    for row in indices:
        chosen = row[row >= 0].tolist()
        assert len(set(chosen)) == len(chosen)  # no atom twice
        assert (dictionary[:, chosen] != 0).any(dim=0).all()  # no zero atom

    # least squares on the support: the residual is orthogonal to its atoms, up to the rounding of the sum Σ c d
    residual = residuals(signals, dictionary, indices, coefficients)
    lengths = signals.double().norm(dim=1)
    rounding = lengths + (coefficients.double().abs() * dictionary.double().norm(dim=0)[indices.clamp_min(0)]).sum(1)
    correlations = (residual @ unit(dictionary)).abs()
    on_support = torch.where(used, correlations.gather(1, indices.clamp_min(0)), 0.0)
    assert (on_support <= 2e-6 * rounding.unsqueeze(1)).all()
    assert (residual.norm(dim=1) <= lengths + 2e-6 * rounding).all()  # never worse than no atom
    return residual.norm(dim=1), rounding


def assert_no_atom_could_help(signals, dictionary, indices, coefficients, rounding, least_squared_length):
    """A greedy code has unused slots only where no atom can help, but for those that count as dependent."""
    correlations = (residuals(signals, dictionary, indices, coefficients) @ unit(dictionary)).abs()
    for n, row in enumerate(indices):
        if (row < 0).any():
            atoms = unit(dictionary)
            span, _ = torch.linalg.qr(atoms[:, row[row >= 0]])
            outside = (atoms - span @ (span.t() @ atoms)).square().sum(dim=0) > least_squared_length
            assert (correlations[n][outside] <= 1e-5 * rounding[n]).all()


def matrix(data, rows, columns, dtype):
    """Small integers: many ties and dependent atoms, and no others that are nearly dependent."""
    values = data.draw(arrays(np.int8, (rows, columns), elements=st.integers(-3, 3)))
    return torch.from_numpy(values).to(dtype)


EDGES = [
    "any",
    "zero signals",
    "sparser signals",
    "duplicate atoms",
    "opposite atoms",
    "zero atoms",
    "only zero atoms",
    "more slots than features",
    "all atoms",
    "single atom",
    "single feature",
    "no signals",
    "float16",
    "bfloat16",
    "float64",
    "tiny",
    "huge",
    "long atoms",
    "short atoms",
]


def draw_problem(data, edge):
    """Signals, dictionary and sparsity of an edge case."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}.get(edge, torch.float32)
    n = 0 if edge == "no signals" else data.draw(st.integers(1, 4), label="n")
    features = 1 if edge == "single feature" else data.draw(st.integers(1, 5), label="features")
    atoms = 1 if edge == "single atom" else data.draw(st.integers(1, 8), label="atoms")
    if edge == "more slots than features":
        features, atoms = min(features, 3), max(atoms, 4)
    sparsity = data.draw(st.integers(1, atoms), label="sparsity")
    if edge == "all atoms":
        sparsity = atoms
    if edge == "more slots than features":
        sparsity = max(sparsity, features + 1)
    dictionary, signals = matrix(data, features, atoms, dtype), matrix(data, n, features, dtype)
    if edge == "zero signals":
        signals[: data.draw(st.integers(1, n))] = 0
    if edge == "sparser signals":
        signals = dictionary[:, data.draw(st.lists(st.integers(0, atoms - 1), min_size=n, max_size=n))].t() * 2
    if edge in ("duplicate atoms", "opposite atoms"):
        sources = data.draw(st.lists(st.integers(0, atoms - 1), min_size=atoms, max_size=atoms))
        dictionary = torch.cat(
            [dictionary, dictionary[:, sources] * (1 if edge == "duplicate atoms" else -0.5)], dim=1
        )
    if edge == "zero atoms":
        dictionary[:, data.draw(st.lists(st.integers(0, atoms - 1), min_size=1))] = 0
    if edge == "only zero atoms":
        dictionary.zero_()
    signals = signals * {"tiny": 1e-20, "huge": 1e18}.get(edge, 1.0)
    dictionary = dictionary * {"long atoms": 1e18, "short atoms": 1e-18}.get(edge, 1.0)
    return signals, dictionary, sparsity


@pytest.mark.parametrize("edge", EDGES)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_code_on_edge_cases(pursuit, edge, data):
    signals, dictionary, sparsity = draw_problem(data, edge)
    before = signals.clone(), dictionary.clone()
    indices, coefficients = pursuit(signals, dictionary, sparsity)
    assert torch.equal(signals, before[0]) and torch.equal(dictionary, before[1])
    norms, rounding = assert_is_code(signals, dictionary, indices, coefficients, sparsity)
    assert (indices[(signals == 0).all(dim=1)] == -1).all()
    if edge == "only zero atoms":
        assert (indices == -1).all()
    if pursuit not in GREEDY:
        return
    least = 2e-5 if pursuit is ols and signals.dtype != torch.float64 else 2e-10
    assert_no_atom_could_help(signals, dictionary, indices, coefficients, rounding, least)
    if sparsity > 1:
        fewer = data.draw(st.integers(1, sparsity - 1), label="fewer")
        shorter, weights = pursuit(signals, dictionary, fewer)
        assert torch.equal(shorter, indices[:, :fewer])  # nested
        earlier, _ = assert_is_code(signals, dictionary, shorter, weights, fewer)
        assert (norms <= earlier + 2e-6 * rounding).all()  # never worse than fewer atoms


# --- which does well where --------------------------------------------------------------------------------------------


def relative_residual(pursuit, kind, features, atoms, sparsity):
    """Mean of ‖y − Dγ‖ / ‖y‖ over 256 signals; the table in the text of `pursuits.py`."""
    generator = torch.Generator().manual_seed(0)
    dictionary = random_dictionary(features, atoms, generator)
    signals = torch.randn(256, features, generator=generator)
    if kind != "Gaussian":
        support = torch.rand(256, atoms, generator=generator).topk(sparsity).indices
        weights = torch.randn(256, sparsity, generator=generator)
        weights = weights.sign() if kind == "signs" else weights
        signals = synthesize(support, weights, dictionary) + 0.1 * math.sqrt(sparsity / features) * signals
    residual = signals - synthesize(*pursuit(signals, dictionary, sparsity), dictionary)
    return (residual.norm(dim=1) / signals.norm(dim=1)).mean().item()


@pytest.mark.parametrize(
    "features, atoms, sparsity, kind, expected",
    [
        (16, 512, 5, "Gaussian", (0.137, 0.127, 0.239, 0.294)),
        (16, 512, 5, "sparse", (0.100, 0.092, 0.213, 0.230)),
        (64, 1024, 8, "sparse", (0.097, 0.097, 0.109, 0.116)),
        (128, 512, 24, "sparse", (0.087, 0.086, 0.091, 0.107)),
        (128, 512, 24, "signs", (0.256, 0.256, 0.131, 0.095)),
    ],
)
def test_relative_residuals(features, atoms, sparsity, kind, expected):
    measured = [relative_residual(pursuit, kind, features, atoms, sparsity) for pursuit in (omp, ols, iht, fista)]
    assert measured == pytest.approx(expected, abs=0.003)


# --- by name ----------------------------------------------------------------------------------------------------------


def test_pursuits_by_name():
    assert PURSUITS == {"omp": omp, "ols": ols, "iht": iht, "fista": fista}
    for name, function in PURSUITS.items():
        assert get_pursuit(name) is function


@pytest.mark.parametrize("name", ["OMP", "", None])
def test_error_names_the_pursuits(name):
    with pytest.raises(ValueError, match=f"`name` must be one of 'omp', 'ols', 'iht', 'fista', got {name!r}"):
        get_pursuit(name)
