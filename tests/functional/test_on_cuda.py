"""Pursuits, synthesis and codewords on a GPU: the results of the CPU in float64, no wait of the host, one compiled
graph. Skipped without a GPU."""

import pytest
import torch

from diffusers_lasers.functional import (
    codebook_order,
    get_pursuit,
    gumbel_softmax,
    kmeans,
    mutual_coherence,
    nearest_codewords,
    normalize_atoms,
    random_dictionary,
    synthesize,
)
from diffusers_lasers.functional.dictionary import (
    accumulate_statistics,
    block_coordinate_update,
    dictionary_from_signals,
    project_to_tangent,
    revive_atoms,
)
from diffusers_lasers.functional.diffusion import sample_categorical
from diffusers_lasers.functional.pursuit import projection_synthesis


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test_cuda")
PURSUITS = ["omp", "ols", "iht", "fista"]


def problem(n=2000, features=16, atoms=200, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    dictionary = random_dictionary(features, atoms, generator, dtype=dtype)
    return torch.randn(n, features, generator=generator, dtype=dtype), dictionary


def residual_norms(signals, dictionary, indices, coefficients):
    signals, dictionary, coefficients = (part.double().cpu() for part in (signals, dictionary, coefficients))
    return (signals - synthesize(indices.cpu(), coefficients, dictionary)).norm(dim=1)


@pytest.mark.parametrize("name", PURSUITS)
@pytest.mark.parametrize("tolerance", [None, 1.5])
def test_codes_are_those_of_the_cpu(name, tolerance):
    signals, dictionary = problem()
    expected, values = get_pursuit(name)(signals, dictionary, 5, tolerance)
    indices, coefficients = get_pursuit(name)(signals.cuda(), dictionary.cuda(), 5, tolerance)
    assert indices.is_cuda and coefficients.is_cuda
    same = (indices.cpu() == expected).all(dim=1)
    assert same.double().mean() > 0.999  # float64: only ties may fall otherwise
    torch.testing.assert_close(coefficients.cpu()[same], values[same], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", PURSUITS)
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_leaves_the_residuals_of_float64(name, tf32):
    """With TF32 a choice between nearly equal atoms may differ; coefficients are still those of least squares."""
    signals, dictionary = problem(dtype=torch.float32)
    reference = residual_norms(signals, dictionary, *get_pursuit(name)(signals.double(), dictionary.double(), 5))
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        indices, coefficients = get_pursuit(name)(signals.cuda(), dictionary.cuda(), 5)
    finally:
        torch.set_float32_matmul_precision("highest")
    norms = residual_norms(signals, dictionary, indices, coefficients)
    torch.testing.assert_close(norms.mean(), reference.mean(), rtol=5e-3, atol=0)
    used = (indices >= 0).cpu()
    left = signals.double() - synthesize(indices.cpu(), coefficients.double().cpu(), dictionary.double())
    correlations = torch.einsum("nl,nsl->ns", left, dictionary.double().t()[indices.cpu().clamp_min(0)])
    assert correlations[used].abs().max() < 1e-4


@pytest.mark.parametrize("name", PURSUITS)
def test_the_host_never_waits(name, never_waiting):
    signals, dictionary = (part.cuda() for part in problem(dtype=torch.float32))
    dictionary.requires_grad_()

    def step():
        indices, coefficients = get_pursuit(name)(signals, dictionary.detach(), 4, check_finite=False)
        exact = signals.clone().requires_grad_()
        output = synthesize(indices, coefficients, dictionary)
        output = output + projection_synthesis(exact, dictionary, indices, coefficients)
        return torch.autograd.grad(output.square().sum(), [dictionary, exact])

    step()
    with never_waiting():
        gradients = step()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", PURSUITS)
def test_a_captured_graph_codes_new_signals(name):
    """What captures can be replayed: no allocation, shape or branch depends on a value."""
    signals, dictionary = (part.cuda() for part in problem(512, dtype=torch.float32))
    pursuit = get_pursuit(name)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        pursuit(signals, dictionary, 4, check_finite=False)
    stream.synchronize()
    graph, place = torch.cuda.CUDAGraph(), signals.clone()
    with torch.cuda.graph(graph):
        indices, coefficients = pursuit(place, dictionary, 4, check_finite=False)
    place.copy_(signals.flip(0))
    graph.replay()
    expected, values = pursuit(signals.flip(0), dictionary, 4, check_finite=False)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(coefficients, values)


@pytest.mark.parametrize("name", PURSUITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(name, dtype):
    signals, dictionary = (part.cuda() for part in problem(dtype=torch.float32))
    expected = get_pursuit(name)(signals, dictionary, 4)
    with torch.autocast("cuda", dtype):
        got = get_pursuit(name)(signals, dictionary, 4)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("name", PURSUITS)
def test_bad_values(name):
    signals, dictionary = (part.cuda() for part in problem(20, dtype=torch.float32))
    signals[3], signals[5, 2] = 0.0, float("nan")
    with pytest.raises(ValueError, match="`signals`"):
        get_pursuit(name)(signals, dictionary, 3)
    indices, coefficients = get_pursuit(name)(signals, dictionary, 3, check_finite=False)
    assert (indices[3] == -1).all() and (coefficients[3] == 0).all()
    assert (indices[5] == -1).all() and coefficients[5].isnan().all()
    rest = torch.arange(20, device="cuda")
    rest = rest[(rest != 5) & (rest != 3)]
    alone = get_pursuit(name)(signals[rest], dictionary, 3)
    assert torch.equal(indices[rest], alone[0])


@pytest.mark.parametrize("name", ["omp", "ols"])
def test_several_blocks_are_one(name, monkeypatch):
    from diffusers_lasers.functional.pursuit import greedy_torch

    signals, dictionary = (part.cuda() for part in problem(dtype=torch.float32))
    expected = get_pursuit(name)(signals, dictionary, 4)
    monkeypatch.setitem(greedy_torch.BLOCK_ELEMENTS, "accelerator", 256 * 300)
    monkeypatch.setitem(greedy_torch._BASIS_ELEMENTS, "accelerator", 70000)
    got = get_pursuit(name)(signals, dictionary, 4)
    assert (got[0] == expected[0]).all(dim=1).float().mean() > 0.995
    torch.testing.assert_close(
        residual_norms(signals, dictionary, *got).mean(), residual_norms(signals, dictionary, *expected).mean()
    )


def test_compiles_to_one_graph():
    signals, dictionary = (part.cuda() for part in problem(dtype=torch.float32))
    dictionary.requires_grad_()

    def step(signals):
        indices, coefficients = get_pursuit("omp")(signals, dictionary, 3, check_finite=False)
        return synthesize(indices, coefficients, dictionary)

    output = torch.compile(step, fullgraph=True)(signals)
    expected = step(signals)
    same = (output - expected).norm(dim=1) < 1e-4
    assert same.float().mean() > 0.995
    output.square().sum().backward()
    assert dictionary.grad.isfinite().all() and dictionary.grad.abs().sum() > 0


@pytest.mark.parametrize("projection", [False, True])
def test_gradients_are_those_of_the_cpu(projection):
    signals, dictionary = problem(300)
    indices, coefficients = get_pursuit("omp")(signals, dictionary, 4)
    upstream = torch.randn(signals.shape, dtype=signals.dtype, generator=torch.Generator().manual_seed(1))
    gradients = []
    for device in ("cpu", "cuda"):
        leaves = [part.detach().to(device).requires_grad_() for part in (signals, dictionary, coefficients)]
        if projection:
            output = projection_synthesis(leaves[0], leaves[1], indices.to(device), leaves[2].detach())
            wanted = leaves[:2]
        else:
            output, wanted = synthesize(indices.to(device), leaves[2], leaves[1]), leaves[1:]
        gradients.append(torch.autograd.grad(output, wanted, upstream.to(device)))
    for expected, got in zip(*gradients):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-10)


def test_codewords_and_their_fit():
    generator = torch.Generator().manual_seed(0)
    signals, codebook = torch.randn(4000, 6, generator=generator), torch.randn(64, 6, generator=generator)
    nearest = nearest_codewords(signals.cuda(), codebook.cuda())
    distances = torch.cdist(signals.double(), codebook.double())
    taken = distances.gather(1, nearest.cpu()[:, None])[:, 0]
    torch.testing.assert_close(taken, distances.amin(dim=1), rtol=1e-5, atol=1e-5)
    centres, counts = kmeans(signals.cuda(), 32, generator=torch.Generator().manual_seed(0))
    assert centres.is_cuda and counts.sum() == 4000
    on_cpu, _ = kmeans(signals, 32, generator=torch.Generator().manual_seed(0))
    within, expected = (torch.cdist(signals, books.cpu()).amin(dim=1).square().mean() for books in (centres, on_cpu))
    torch.testing.assert_close(within, expected, rtol=0.02, atol=0)
    assert torch.equal(codebook_order(codebook.cuda()).cpu(), codebook_order(codebook))


def test_first_atoms_from_a_cpu_generator():
    signals, _ = problem(500, dtype=torch.float32)
    atoms = dictionary_from_signals(signals.cuda(), 32, generator=torch.Generator().manual_seed(0))
    expected = dictionary_from_signals(signals, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(atoms.cpu(), expected)


def test_the_host_never_waits_for_a_dictionary(never_waiting):
    generator = torch.Generator().manual_seed(0)  # one on the CPU serves a GPU
    dictionary = random_dictionary(8, 12, generator, device="cuda")
    assert torch.equal(dictionary.cpu(), random_dictionary(8, 12, torch.Generator().manual_seed(0)))
    signals, coefficients = torch.randn(30, 8, device="cuda"), torch.randn(30, 3, device="cuda")
    indices, dead = torch.randint(-1, 12, (30, 3), device="cuda"), torch.arange(12, device="cuda") % 2 == 0

    def step():
        normalize_atoms(project_to_tangent(torch.ones_like(dictionary), dictionary))
        mutual_coherence(dictionary)
        statistics = torch.zeros(12, 12, device="cuda"), torch.zeros(8, 12, device="cuda")
        statistics = accumulate_statistics(*statistics, signals, indices, coefficients, 0.5)
        block_coordinate_update(dictionary, *statistics)
        revive_atoms(dictionary, dead, signals, generator=generator)

    step()
    with never_waiting():
        step()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_categorical_draws_do_not_depend_on_where_the_logits_are(device):
    """A CPU generator draws the same for both; a GPU's own generator works too."""
    logits = torch.randn(2, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator(device).manual_seed(1)
    drawn = sample_categorical(logits.cuda(), 1.0, generator)
    soft = gumbel_softmax(logits.cuda(), 0.7, generator)
    assert drawn.is_cuda and soft.is_cuda
    torch.testing.assert_close(soft.sum(dim=2), torch.ones(2, 3, 4, 4, device="cuda"))
    if device == "cpu":
        again = torch.Generator().manual_seed(1)
        assert torch.equal(sample_categorical(logits, 1.0, again), drawn.cpu())
        torch.testing.assert_close(gumbel_softmax(logits, 0.7, again), soft.cpu(), rtol=1e-4, atol=1e-5)
