"""The compiled kernels: every instruction set and form against tensor operations, threads, forks, workers, and torch's
compilers."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_lasers.functional import (
    encode_product,
    get_backend,
    nearest_codewords,
    ols,
    omp,
    random_dictionary,
    set_backend,
    synthesize,
)
from diffusers_lasers.functional.dictionary import accumulate_statistics, block_coordinate_update
from diffusers_lasers.functional.kernels import operators as kernels
from diffusers_lasers.functional.kernels.threads import openmp_entry


ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(kernels._kernels is None, reason="the compiled kernels were not built")


@pytest.fixture(autouse=True)
def restored():
    threads = torch.get_num_threads()
    yield
    set_backend("auto")
    torch.set_num_threads(threads)
    if kernels._kernels is not None:
        kernels._kernels.instruction_set(2)


def problem(n=300, features=16, atoms=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator), random_dictionary(features, atoms, generator)


def on_torch(pursuit, *arguments, **options):
    set_backend("torch")
    result = pursuit(*arguments, **options)
    set_backend("auto")
    return result


def coherent(n, features, atoms):
    """Atoms in a cone, some of them twins at a small angle: the recursion of the Gram form is ill-conditioned."""
    signals, dictionary = problem(n, features, atoms)
    dictionary = dictionary + 3 * random_dictionary(features, 1, torch.Generator().manual_seed(5))
    dictionary = dictionary / dictionary.norm(dim=0)
    twins = dictionary[:, : atoms // 4] + 1e-3 * problem(1, features, atoms // 4, seed=6)[1]
    return signals, torch.cat([dictionary, twins / twins.norm(dim=0)], dim=1)


# --- forms and instruction sets ---------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("level, name", [(2, "_avx512"), (1, "_avx2"), (0, "_generic")])
@pytest.mark.parametrize("form", ["lanes", "gram"])
@pytest.mark.parametrize("pursuit", [omp, ols])
@pytest.mark.parametrize(
    "features, atoms, sparsity", [(16, 200, 5), (1, 3, 2), (3, 130, 2), (33, 77, 9), (70, 64, 12)]
)
def test_every_instruction_set_and_form(monkeypatch, level, name, form, pursuit, features, atoms, sparsity):
    if kernels._kernels.instruction_set(level) != name:
        pytest.skip(f"this processor has no {name[1:]}")
    monkeypatch.setattr(kernels, "_GRAM_FROM", 0 if form == "gram" else 2**40)
    signals, dictionary = problem(301, features, atoms)
    signals[5] = 0
    signals[7] = dictionary[:, 1] * 3
    for tolerance in (None, 0.7):
        indices, coefficients = pursuit(signals, dictionary, sparsity, tolerance)
        expected, weights = on_torch(pursuit, signals, dictionary, sparsity, tolerance)
        same = (indices == expected).all(dim=1)
        assert same.float().mean() > 0.9  # the others chose between atoms whose gains are equal to rounding
        torch.testing.assert_close(coefficients[same], weights[same], rtol=1e-3, atol=1e-4)
        ours, theirs = (
            signals - synthesize(i, c, dictionary) for i, c in ((indices, coefficients), (expected, weights))
        )
        difference = ours.square().sum(dim=1) - theirs.square().sum(dim=1)
        assert (difference.abs() <= 2e-6 * signals.square().sum(dim=1)).all()


@built
@pytest.mark.parametrize("pursuit", [omp, ols])
@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_gram_form_on_coherent_atoms(monkeypatch, pursuit, backend):
    # where the recursion loses digits, both implementations fall back on products with the atoms themselves
    monkeypatch.setattr(kernels, "_GRAM_FROM", 0)
    signals, dictionary = coherent(400, 24, 96)
    if pursuit is ols:  # for which a twin at 1e-3 is a dependent atom in float32
        dictionary = dictionary[:, :96]
    set_backend(backend)
    indices, coefficients = pursuit(signals, dictionary, 12)
    exact, weights = pursuit(signals.double(), dictionary.double(), 12)
    same = (indices == exact).all(dim=1)
    assert same.float().mean() > 0.97  # the others chose between atoms that are equal to 1e-5

    def residual(i, c):
        return (signals.double() - synthesize(i, c.double(), dictionary.double())).norm(dim=1)

    ratio = residual(indices, coefficients) / residual(exact, weights)
    assert ratio[same].max() < 1 + 1e-4 and ratio.mean() < 1 + 1e-3


@built
def test_short_residual_is_followed_directly(monkeypatch):
    # signals of three atoms and a trace of a fourth: α of the recursion is rounding once the three are found
    monkeypatch.setattr(kernels, "_GRAM_FROM", 0)
    signals, dictionary = problem(200, 32, 64)
    support = torch.rand(200, 64, generator=torch.Generator().manual_seed(1)).topk(4).indices
    scale = torch.tensor([1.0, 1.0, 1.0, 3e-5])
    signals = (dictionary.t()[support].double() * scale.double().view(1, 4, 1)).sum(dim=1).float()
    indices, coefficients = omp(signals, dictionary, 4)
    exact, _ = omp(signals.double(), dictionary.double(), 4)
    assert torch.equal(indices[:, :3].sort(dim=1).values, exact[:, :3].sort(dim=1).values)
    assert (indices == exact).all(dim=1).float().mean() > 0.95


@built
def test_memory_of_a_thread_is_bounded(monkeypatch):
    signals, dictionary = problem(40, 600, 80)
    monkeypatch.setattr(kernels, "_MAX_WORKSPACE", 1)
    assert torch.equal(omp(signals, dictionary, 20)[0], on_torch(omp, signals, dictionary, 20)[0])


# --- threads, forks, workers ------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("shape", [(3000, 16, 256, 5), (2000, 64, 256, 8)])
def test_bits_do_not_depend_on_the_threads(shape):
    n, features, atoms, sparsity = shape
    signals, dictionary = problem(n, features, atoms)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(omp(signals, dictionary, sparsity))
    for indices, coefficients in results[1:]:
        assert torch.equal(indices, results[0][0]) and torch.equal(coefficients, results[0][1])


@built
def test_concurrent_callers():
    problems = [problem(500, 16, 128, seed) for seed in range(8)]
    alone = [omp(*arguments, 5) for arguments in problems]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda arguments: omp(*arguments, 5), problems))
            for (a, b), (c, d) in zip(together, alone):
                assert torch.equal(a, c) and torch.equal(b, d)


def _code_in_child(connection, signals, dictionary):
    torch.set_num_threads(1)  # as in a data loader's workers: torch's own pool hangs in a forked child
    torch.get_num_threads = lambda: 2  # but the kernels are to start a thread of theirs
    connection.send([x.numpy() for x in omp(signals, dictionary, 5)])


@built
def test_after_a_fork():
    signals, dictionary = problem(1500, 16, 256)
    torch.set_num_threads(2)
    expected = omp(signals, dictionary, 5)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_code_in_child, args=(theirs, signals, dictionary), daemon=True)
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        indices, coefficients = ours.recv()
    finally:
        child.kill()
    assert (indices == expected[0].numpy()).all() and (coefficients == expected[1].numpy()).all()


SCRIPT_AFTER_A_FORK = """
import os, time
import torch
from diffusers_lasers.functional import *
from diffusers_lasers.functional.dictionary import accumulate_statistics, block_coordinate_update
from diffusers_lasers.functional.pursuit import projection_synthesis
from diffusers_lasers.functional.quantisers import decode_channels
from diffusers_lasers import OnlineDictionaryLearner

signals, dictionary = torch.randn(4000, 16), random_dictionary(16, 256)
books = torch.randn(2, 64, 8)

def work():
    indices, coefficients = omp(signals, dictionary, 5)
    atoms, weights = dictionary.clone().requires_grad_(), coefficients.clone().requires_grad_()
    synthesize(indices, weights, atoms).square().sum().backward()
    projection_synthesis(signals, atoms, indices, coefficients).square().sum().backward()
    A, B = accumulate_statistics(torch.zeros(256, 256), torch.zeros(16, 256), signals, indices, coefficients)
    found = encode_product(signals, books)
    results = [
        indices, coefficients, atoms.grad, weights.grad, A, B, found, *ols(signals, dictionary, 5),
        block_coordinate_update(dictionary, A, B), nearest_codewords(signals, dictionary.t()),
        decode_channels(found, [books], 16), decode_product(found, books), kmeans(signals, 8, 2)[1] * 0,
        encode_residual(signals, torch.nn.functional.pad(books, (0, 8)), 2),
        *(x.isfinite() for pursuit in (iht, fista) for x in pursuit(signals, dictionary, 3)),
        OnlineDictionaryLearner(64, 3).fit(signals, progress=False).dictionary.isfinite(),
        omp(signals.double(), dictionary.double(), 3)[0],
    ]
    set_backend("torch")
    results += [*omp(signals, dictionary, 5), *ols(signals, dictionary, 5), nearest_codewords(signals, dictionary.t())]
    set_backend("auto")
    return results

torch.set_num_threads(2)
expected = work()  # torch's pool is awake
child = os.fork()
if child == 0:
    threads = torch.get_num_threads()
    close = [torch.allclose(a.double(), b.double(), atol=1e-3) for a, b in zip(work(), expected)]
    os._exit(3 if threads != 1 else 0 if sum(close) > len(close) - 3 else 4)
for _ in range(900):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        result["status"] = os.waitstatus_to_exitcode(status)
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    result["status"] = "hangs"
result["threads"] = torch.get_num_threads()
"""


def test_every_operator_after_a_fork(fresh, tmp_path):
    # 4,000 signals: torch itself would take more than one thread for their maximum, and GNU's pool is gone in a child.
    # Threads that wait do not spin: that costs more than the work.
    result = fresh(SCRIPT_AFTER_A_FORK, tmp_path, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
    assert result == {"status": 0, "threads": 2}


class Codes(torch.utils.data.Dataset):
    signals, dictionary = problem(64, 16, 128)

    def __len__(self):
        return 8

    def __getitem__(self, item):
        return omp(self.signals[item * 8 : item * 8 + 8], self.dictionary, 4)[0]


@built
def test_in_workers_of_a_data_loader():
    expected = omp(Codes.signals, Codes.dictionary, 4)[0]
    loaded = list(torch.utils.data.DataLoader(Codes(), batch_size=None, num_workers=2))
    assert torch.equal(torch.cat(loaded), expected)


# --- torch's compilers ------------------------------------------------------------------------------------------------


class Coder(torch.nn.Module):
    def __init__(self, dictionary):
        super().__init__()
        self.dictionary = torch.nn.Parameter(dictionary)

    def forward(self, signals):
        indices, coefficients = omp(signals, self.dictionary.detach(), 4)
        return synthesize(indices, coefficients, self.dictionary)


@built
def test_operators_satisfy_the_rules_of_torch():
    signals, dictionary = problem(20, 6, 30)
    torch.library.opcheck(kernels._greedy_pursuit, (signals, dictionary, 3, -1.0, True))
    indices, coefficients = omp(signals, dictionary, 3)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            kernels._synthesis_gradients, (signals, indices, coefficients, dictionary.contiguous(), *wanted)
        )


@built
def test_compiled_training_step():
    torch._dynamo.reset()
    signals, dictionary = problem(50, 6, 30)
    results = []
    for compiled in (False, True):
        coder = Coder(dictionary.clone())
        step = torch.compile(coder, fullgraph=True, backend="aot_eager") if compiled else coder
        (step(signals) - signals).square().sum().backward()
        results.append(coder.dictionary.grad)
    assert torch.equal(*results)


@built
def test_export_keeps_one_node():
    signals, dictionary = problem(50, 6, 30)
    program = torch.export.export(Coder(dictionary), (signals,))
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes]
    assert targets.count(torch.ops.diffusers_lasers.greedy_pursuit.default) == 1
    torch.testing.assert_close(program.module()(signals), Coder(dictionary)(signals))


# --- one signal and many ----------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("pursuit", [omp, ols])
@given(
    features=st.integers(1, 80),
    atoms=st.integers(1, 150),
    sparsity=st.integers(1, 12),
    n=st.integers(1, 200),
    twins=st.booleans(),
    tolerance=st.sampled_from([None, 0.3]),
    level=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_code_does_not_depend_on_the_batch_and_is_nested(
    pursuit, features, atoms, sparsity, n, twins, tolerance, level, seed
):
    kernels._kernels.instruction_set(level)
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(features, atoms, generator=generator)
    if twins:  # choices between nearly equal atoms: the last bit decides
        dictionary[:, atoms // 2 :] = dictionary[:, : atoms - atoms // 2] * (1 + 1e-7)
        dictionary = dictionary + 1e-4 * torch.randn(features, atoms, generator=generator)
    signals = torch.randn(n, features, generator=generator)
    sparsity = min(sparsity, atoms)
    indices, coefficients = pursuit(signals, dictionary, sparsity, tolerance)
    for part in (slice(0, 1), slice(n // 2, n // 2 + 1), slice(n // 3, n)):
        alone = pursuit(signals[part], dictionary, sparsity, tolerance)
        assert torch.equal(alone[0], indices[part]) and torch.equal(alone[1], coefficients[part])
    fewer = pursuit(signals, dictionary, max(1, sparsity // 2), tolerance)[0]
    assert torch.equal(fewer, indices[:, : fewer.shape[1]])


# --- choice of the backend --------------------------------------------------------------------------------------------


def test_backend_is_chosen(monkeypatch):
    signals, dictionary = problem(20)
    calls = []
    original = kernels.fused_greedy_pursuit
    monkeypatch.setattr(
        sys.modules["diffusers_lasers.functional.pursuit.greedy"],
        "fused_greedy_pursuit",
        lambda *arguments: calls.append(1) or original(*arguments),
    )
    if kernels._kernels is not None:
        assert get_backend() == "fused"
        omp(signals, dictionary, 2)
        assert len(calls) == 1
    omp(signals.double(), dictionary, 2)  # float64 has no kernel
    set_backend("torch")
    assert get_backend() == "torch"
    omp(signals, dictionary, 2)
    assert len(calls) == (kernels._kernels is not None)
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'torch', 'fused', got 'cuda'"):
        set_backend("cuda")
    assert get_backend() == "torch"  # a refusal changes nothing


def test_without_the_extension(monkeypatch):
    signals, dictionary = problem(20)
    expected = on_torch(omp, signals, dictionary, 3)
    monkeypatch.setattr(kernels, "_kernels", None)
    assert get_backend() == "torch"
    with pytest.raises(ImportError, match="built when the package is installed"):
        set_backend("fused")
    assert torch.equal(omp(signals, dictionary, 3)[0], expected[0])


def unoptimised_compiler(folder):
    """Optimisation takes most of the time of a build, and decides neither whether it succeeds nor a wheel's name."""
    compiler = folder / "compiler"
    compiler.write_text(
        '#!/bin/sh\nfor word; do shift; [ "$word" = -O3 ] || set -- "$@" "$word"; done\n'
        f'exec {sysconfig.get_config_var("CC") or "cc"} "$@"\n'
    )
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize("free_threaded", [False, True])
def test_wheels_for_pythons_with_and_without_the_stable_abi(tmp_path, free_threaded):
    # what setup.py and setuptools ask of a free-threaded Python: its stable ABI, and hence the tag cp310-abi3, does
    # not exist
    fake = f"""
import runpy, sys, sysconfig
ask = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: {int(free_threaded)} if name == "Py_GIL_DISABLED" else ask(name)
sys.argv = ["setup.py", "-q", "build", "--build-base", {str(tmp_path / "build")!r}, "bdist_wheel"]
sys.argv += ["--bdist-dir", {str(tmp_path / "wheel")!r}, "--dist-dir", {str(tmp_path)!r}]
runpy.run_path("setup.py", run_name="__main__")
"""
    environment = {**os.environ, "CC": unoptimised_compiler(tmp_path)}
    run = subprocess.run([sys.executable, "-c", fake], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert ("cp310-abi3" in wheel.name) == (not free_threaded)
    with zipfile.ZipFile(wheel) as archive:
        (extension,) = [name for name in archive.namelist() if "_kernels" in name and name.endswith(".so")]
    assert extension.endswith(".abi3.so") == (not free_threaded)


@pytest.mark.parametrize("there", [False, True])
def test_extension_is_optional(tmp_path, there):
    environment = {**os.environ, "CC": unoptimised_compiler(tmp_path) if there else "false"}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        tmp_path / "lib",
        "--build-temp",
        tmp_path / "temp",
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert bool(list((tmp_path / "lib").rglob("_kernels*.so"))) == there


# --- gradients of synthesis -------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("level", [2, 1, 0])
@pytest.mark.parametrize("features", [1, 3, 16, 17, 70, 130])
def test_gradients_of_synthesis(level, features):
    kernels._kernels.instruction_set(level)
    generator = torch.Generator().manual_seed(0)
    dictionary = random_dictionary(features, 37, generator)
    indices = torch.randint(-1, 37, (600, 4), generator=generator)
    coefficients = torch.randn(600, 4, generator=generator)
    gradient = torch.randn(600, features, generator=generator)
    arguments = gradient, indices, coefficients * (indices >= 0), dictionary
    to_coefficients, to_dictionary = kernels.fused_synthesis_gradients(*arguments, True, True)
    dense = torch.zeros(600, 38, dtype=torch.float64)
    dense.scatter_add_(1, torch.where(indices < 0, 37, indices), coefficients.double())
    torch.testing.assert_close(to_dictionary.double(), gradient.double().t() @ dense[:, :37], rtol=1e-5, atol=1e-4)
    inner = gradient.double() @ dictionary.double()
    expected = torch.where(indices < 0, 0.0, inner.gather(1, indices.clamp_min(0)))
    torch.testing.assert_close(to_coefficients.double(), expected, rtol=1e-5, atol=1e-5)
    assert kernels.fused_synthesis_gradients(*arguments, False, True)[0] is None
    assert kernels.fused_synthesis_gradients(*arguments, True, False)[1] is None


@built
def test_indices_are_looked_at_before_the_kernel_writes():
    signals, dictionary = problem(20, 6, 30)
    indices, coefficients = omp(signals, dictionary, 3)
    narrow = kernels.fused_synthesis_gradients(signals, indices.int(), coefficients, dictionary, True, True)
    for ours, expected in zip(
        narrow, kernels.fused_synthesis_gradients(signals, indices, coefficients, dictionary, True, True)
    ):
        assert torch.equal(ours, expected)
    indices[3, 1] = 30
    with pytest.raises(ValueError, match=r"`indices` must be below the number of atoms \(30\), got 30"):
        kernels.fused_synthesis_gradients(signals, indices, coefficients, dictionary, True, True)
    with pytest.raises(ValueError, match="`indices`"):
        accumulate_statistics(torch.zeros(30, 30), torch.zeros(6, 30), signals, indices, coefficients)


@built
def test_gradient_bits_do_not_depend_on_the_threads():
    signals, dictionary = problem(20000, 16, 64)
    indices, coefficients = omp(signals, dictionary, 5)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(kernels.fused_synthesis_gradients(signals, indices, coefficients, dictionary, True, True))
    for to_coefficients, to_dictionary in results[1:]:
        assert torch.equal(to_coefficients, results[0][0]) and torch.equal(to_dictionary, results[0][1])


# --- block-coordinate descent -----------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("level", [2, 1, 0])
@pytest.mark.parametrize("features, atoms", [(1, 5), (7, 40), (16, 200), (50, 130)])
def test_block_coordinate_update(level, features, atoms):
    kernels._kernels.instruction_set(level)
    signals, dictionary = problem(500, features, atoms)
    indices, coefficients = omp(signals, dictionary, min(3, atoms))
    A, B = accumulate_statistics(
        torch.zeros(atoms, atoms), torch.zeros(features, atoms), signals, indices, coefficients
    )
    A[2], A[:, 2], B[:, 2] = 0, 0, 0  # an atom without statistics stays
    fused = block_coordinate_update(dictionary, A, B, iterations=2)
    set_backend("torch")
    expected = block_coordinate_update(dictionary, A, B, iterations=2)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=2e-5)
    assert torch.equal(fused[:, 2], dictionary[:, 2])
    assert not torch.equal(fused, dictionary) or features == 1


# --- nearest codewords ------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("level, name", [(2, "_avx512"), (1, "_avx2"), (0, "_generic")])
@pytest.mark.parametrize(
    "n, slots, features, codewords", [(300, 4, 16, 256), (1, 1, 1, 1), (7, 2, 3, 5), (65, 1, 64, 33), (9, 3, 5, 4097)]
)
def test_nearest_codewords_of_every_instruction_set(level, name, n, slots, features, codewords):
    if kernels._kernels.instruction_set(level) != name:
        pytest.skip(f"this processor has no {name[1:]}")
    generator = torch.Generator().manual_seed(0)
    signals = torch.randn(n, slots * features, generator=generator)
    books = torch.randn(slots, codewords, features, generator=generator)
    parts = signals.double().view(n, slots, features).transpose(0, 1)
    expected = torch.cdist(parts, books.double()).argmin(dim=2).t()
    assert torch.equal(encode_product(signals, books), expected)
    assert torch.equal(encode_product(signals.t().contiguous().t(), books), expected)  # other strides
    assert torch.equal(nearest_codewords(signals[:, :features], books[0]), expected[:, 0])


@built
def test_nearest_codewords_on_ties_and_without_numbers():
    book = torch.randn(70, 8, generator=torch.Generator().manual_seed(0)).repeat(3, 1)  # every codeword three times
    assert torch.equal(nearest_codewords(book, book), torch.arange(70).repeat(3))
    assert nearest_codewords(torch.full((5, 8), float("nan")), book).tolist() == [0] * 5
    assert nearest_codewords(torch.zeros(0, 8), book).shape == (0,)


@built
def test_nearest_codewords_do_not_depend_on_threads_and_backend_and_compile():
    signals, book = torch.randn(5000, 24), torch.randn(100, 24)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(nearest_codewords(signals, book))
    results.append(torch.compile(nearest_codewords, fullgraph=True)(signals, book))
    results.append(on_torch(nearest_codewords, signals, book))
    assert all(torch.equal(result, results[0]) for result in results)


@built
@pytest.mark.parametrize("team", [True, False])
def test_results_are_the_same_with_and_without_the_threads_of_torch(team):
    signals, dictionary = problem(3000, 16, 256)
    expected = omp(signals, dictionary, 5)
    try:
        kernels._kernels.use_team(openmp_entry() if team else 0)
        torch.set_num_threads(2)
        for ours, reference in zip(omp(signals, dictionary, 5), expected):
            assert torch.equal(ours, reference)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: nearest_codewords(signals, dictionary.t().contiguous()), range(8)))
        assert all(torch.equal(one, found[0]) for one in found)
    finally:
        kernels._kernels.use_team(openmp_entry())
