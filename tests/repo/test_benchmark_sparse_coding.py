"""The benchmark of sparse coding runs as a user runs it, and what judges its rows is right."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_lasers.functional import omp, random_dictionary


ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # saves the script a restart
MODULES = ("benchmark_sparse_coding", "sparse_coding_cases", "sparse_coding_machine", "sparse_coding_peers")
MODULES += ("sparse_coding_report", "sparse_coding_synthesis")


def run(*arguments, **environment):
    """Exit code and output of the script."""
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks/benchmark_sparse_coding.py", "--threads", "1", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def modules(monkeypatch):
    """The script's modules by name, without a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield lambda name: importlib.import_module(name)
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def easy():
    """Signals of three atoms each, with coefficients 4, 2 and 1, a little noise, and their dictionary."""
    generator = torch.Generator().manual_seed(0)
    dictionary = random_dictionary(64, 96, generator)
    chosen = torch.rand(200, 96, generator=generator).topk(3, dim=1).indices
    noise = 0.01 * torch.randn(200, 64, generator=generator)
    return (dictionary.t()[chosen] * torch.tensor([4.0, 2.0, 1.0]).view(1, 3, 1)).sum(dim=1) + noise, dictionary


@pytest.fixture(scope="session")
def quick(apart):
    """The same in a forked process."""

    def start(*arguments):
        code, out, err = apart(
            ROOT / "benchmarks/benchmark_sparse_coding.py", "--threads", 1, *arguments, **ONE_THREAD
        )
        return code, out + err

    return start


@pytest.fixture(scope="module")
def results(quick, tmp_path_factory):
    """A small run with two random cases and one from a file: its folder and its results.json."""
    folder = tmp_path_factory.mktemp("benchmark")
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(80, 8, generator=generator, dtype=torch.float64)
    dictionary = 3 * random_dictionary(8, 24, generator)
    save_file({"signals": signals, "dictionary": dictionary}, folder / "latents.safetensors")
    source = ("--signals", folder / "latents.safetensors", "--sparsity", 3)
    options = ("--scale", 0.002, "--rounds", 2, "--skip", "memory", "--output_dir", folder / "out")
    code, output = quick("--cases", "A", "D", *source, *options)
    assert code == 0, output
    return folder / "out", json.loads((folder / "out/results.json").read_text())


def test_outputs(results):
    folder, written = results
    assert set(written["cases"]) == {"A", "D", "latents"}
    sizes = [written["cases"]["latents"][name] for name in ("signals", "features", "atoms", "sparsity")]
    assert sizes == [64, 8, 24, 3]  # at least 64 signals remain, and all atoms of the file
    text = (folder / "results.md").read_text()
    for words in ("## Case A", "## Floors", "## Growth", "`synthesize`, torch", "bits a signal", written["command"]):
        assert words in text
    assert str(folder.parent) not in text + json.dumps(written)  # names of files, and no paths
    assert {"cpu", "threads", "date", "commit", "torch"} <= set(written["machine"])
    assert not list(folder.glob("*.part"))


def test_figure(results):
    pytest.importorskip("matplotlib")
    assert (results[0] / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_rows(results):
    for entry in results[1]["cases"].values():
        assert "omp, torch" in entry["rows"] and "Batch-OMP, Algorithm 1" in entry["rows"]
        assert min(entry["bounds"].values()) > 0
        for name, row in entry["rows"].items():
            assert "error" not in row, row
            assert len(row["times"]) == 2 and row["seconds"] > 0
            assert row["not_finite"] == 0 and row["checked"] > 0
            assert row["support_agreement"] > 0.97, name  # float32 may differ at a tie
            assert row["excess_mean"] < 1e-2 and 0 < row["relative_residual"] < 1


def test_ratios_to_spams(results):
    pytest.importorskip("spams")
    for entry in results[1]["cases"].values():
        spams = entry["rows"]["SPAMS"]
        assert spams["selection"] == "ols" and spams["ratio_to_spams"] == 1
        for row in entry["rows"].values():
            assert row["ratio_to_spams"] == pytest.approx(row["seconds"] / spams["seconds"])


def test_synthesis_and_growth(results):
    synthesis = results[1]["cases"]["A"]["synthesis"]
    assert {"torch", "F.embedding_bag"} <= set(synthesis) and "synthesis" not in results[1]["cases"]["D"]
    assert all(set(row) == {"forward", "dictionary", "both", "omp"} for row in synthesis.values())
    assert set(results[1]["growth"]) == {"signals", "atoms", "features", "sparsity"}
    for sweep in results[1]["growth"].values():
        assert sweep["values"] == sorted(set(sweep["values"]))
        assert all(len(column) == len(sweep["values"]) for column in sweep["seconds"].values())


def test_missing_peers_are_skipped_with_the_extra_that_brings_them(tmp_path):
    for name in ("spams", "sklearn", "orthogonal_matching_pursuit_gpu", "matplotlib"):
        text = f"raise ModuleNotFoundError('no {name}', name='{name}')\n"
        (tmp_path / f"{name}.py").write_text(text)
    parts = ("floors", "memory", "synthesis", "growth")
    arguments = ("--cases", "D", "--scale", 0.001, "--rounds", 1, "--output_dir", tmp_path / "out", "--skip", *parts)
    code, output = run(*arguments, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert code == 0, output
    lines = [
        line for line in output.splitlines() if line.startswith("Skipping") and "diffusers_lasers[benchmark]" in line
    ]
    names = ("SPAMS", "omp-gpu naive", "omp-gpu v0_blas, float64", "scikit-learn", "the figure")
    assert [line.split(":")[0] for line in lines] == [f"Skipping {name}" for name in names]
    rows = json.loads((tmp_path / "out/results.json").read_text())["cases"]["D"]["rows"]
    assert "SPAMS" not in rows and rows["omp, torch"]["ratio_to_spams"] is None


def test_only_the_named_implementations_run(quick, tmp_path):
    parts = ("floors", "memory", "synthesis", "growth", "figure")
    arguments = (
        "--cases",
        "D",
        "--scale",
        0.001,
        "--rounds",
        1,
        "--output_dir",
        tmp_path,
        "--coders",
        "ols, torch",
        "omp, torch",
    )
    code, output = quick(*arguments, "--skip", *parts)
    assert code == 0, output
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written["cases"]["D"]["rows"]) == {"omp, torch", "ols, torch"}
    assert "--coders 'ols, torch' 'omp, torch'" in written["command"]


@pytest.mark.parametrize(
    "arguments", [("--rounds", "0"), ("--scale", "2"), ("--skip", "all"), ("--cases", "E"), ("--coders", "omp")]
)
def test_arguments_out_of_range(modules, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match="2"):
        modules("benchmark_sparse_coding").parse_arguments()
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("sparsity, shape", [("9", (8, 24)), ("0", (8, 24)), ("3", (7, 24))])
def test_signals_that_do_not_fit(modules, monkeypatch, tmp_path, sparsity, shape):
    save_file({"signals": torch.ones(80, 8), "dictionary": torch.ones(shape)}, tmp_path / "latents.safetensors")
    arguments = ["--cases", "--signals", str(tmp_path / "latents.safetensors"), "--sparsity", sparsity]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark = modules("benchmark_sparse_coding")
    with pytest.raises(ValueError, match="from 1 to min"):
        benchmark.selected_cases(benchmark.parse_arguments())


def test_dictionary_is_taken_from_the_signals(modules, tmp_path):
    save_file({"signals": torch.randn(90, 8)}, tmp_path / "latents.safetensors")
    case = modules("benchmark_sparse_coding").Case("", 70, 8, 40, 2, file=str(tmp_path / "latents.safetensors"))
    signals, dictionary = case.load()
    assert signals.shape == (70, 8) and dictionary.shape == (8, 40)
    torch.testing.assert_close(dictionary.norm(dim=0), torch.ones(40))


on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")


KNOWN_CALL = """
import sys
sys.path.insert(0, sys.argv[0])
import torch
from benchmark_sparse_coding import Case
from sparse_coding_machine import measure_memory
from sparse_coding_peers import Coder

def prepare(signals, dictionary, sparsity, threads):
    def call():
        torch.ones(2**24).sum()  # 64 MiB, gone before the 8 MiB of the result are there
        return torch.ones(2**21)

    return call

coder = Coder("", "omp", prepare, lambda: None)
result["memory"] = measure_memory(coder, Case("", signals=100, features=8, atoms=32, sparsity=4), threads=1)
"""


@on_linux
def test_memory_of_a_known_call(fresh, tmp_path):
    # in a process of its own: threads and freed blocks of other tests would be counted too
    script = KNOWN_CALL.replace("sys.argv[0]", repr(str(ROOT / "benchmarks")))
    memory = fresh(script, tmp_path, MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")["memory"]
    assert memory["result_mib"] == 8
    assert memory["extra_mib"] == pytest.approx(64 - 8, abs=3)


@on_linux
def test_memory_in_a_process_of_its_own(modules, monkeypatch):
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    benchmark = modules("benchmark_sparse_coding")
    coder = next(coder for coder in benchmark.CODERS if coder.name == "Batch-OMP, Algorithm 1")
    memory = benchmark.memory_in_child(coder, benchmark.Case("", 4096, 8, 512, 4), threads=1)
    assert memory["result_mib"] == 8
    # The correlations, before and after, and the gathered rows of the Gram matrix are N K (2 + S) floats.
    assert 48 - 8 <= memory["extra_mib"] <= 3 * 48


def test_textbook_batch_omp_finds_the_supports_of_omp(modules, easy):
    peers = modules("sparse_coding_peers")
    indices, coefficients = peers.sparse_codes(peers.batch_omp(*easy, 3), 3, 200)
    expected = omp(*easy, 3)
    ours = torch.zeros(200, 96).scatter_(1, *expected)
    assert torch.equal(indices.sort(dim=1).values, expected[0].sort(dim=1).values)
    theirs = torch.zeros(200, 96, dtype=torch.float64).scatter_(1, indices, coefficients)
    torch.testing.assert_close(theirs.float(), ours, atol=1e-5, rtol=1e-5)


def test_reference_is_scikit_learns_omp(modules):
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(2)
    signals, dictionary = torch.randn(50, 16, generator=generator), random_dictionary(16, 40, generator)
    supports, residual = modules("sparse_coding_peers").greedy_reference(signals, dictionary, 5, "omp")
    dense = linear_model.orthogonal_mp(dictionary.double().numpy(), signals.double().numpy().T, n_nonzero_coefs=5)
    dense = torch.from_numpy(dense).T
    assert torch.equal(supports.sort(dim=1).values, dense.abs().topk(5, dim=1).indices.sort(dim=1).values)
    torch.testing.assert_close((signals.double() - dense @ dictionary.t().double()).norm(dim=1), residual)


def test_reference_of_ols_takes_the_atom_that_leaves_least(modules):
    generator = torch.Generator().manual_seed(3)
    signals, dictionary = torch.randn(20, 5, generator=generator), random_dictionary(5, 12, generator)
    supports, residual = modules("sparse_coding_peers").greedy_reference(signals, dictionary, 3, "ols")

    def left(signal, support):
        atoms = dictionary[:, support].double()
        return (signal - atoms @ torch.linalg.lstsq(atoms, signal).solution).norm().item()

    for signal, support, norm in zip(signals.double(), supports.tolist(), residual):
        chosen = []
        for _ in range(3):
            chosen.append(min(set(range(12)) - set(chosen), key=lambda atom: left(signal, [*chosen, atom])))
        assert support == chosen
        assert norm.item() == pytest.approx(left(signal, chosen))


def test_judge(modules):
    signals = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    peers = modules("sparse_coding_peers")
    reference = peers.greedy_reference(signals, torch.eye(2), 1, "omp")
    assert reference[0][:4].flatten().tolist() == [1, 1, 1, 1]
    codes = (torch.tensor([[1], [0], [1], [1], [-1]]), torch.tensor([[4.0], [3.0], [float("nan")], [2.0], [0.0]]))
    verdict = peers.judge(codes, reference, signals, torch.eye(2))
    assert verdict["checked"] == 3 and verdict["not_finite"] == 1  # the last two are coded exactly
    assert verdict["support_agreement"] == pytest.approx(1 / 3)
    assert verdict["excess_max"] == pytest.approx(4 / 3 - 1) and verdict["excess_mean"] == pytest.approx(1 / 6)
    assert verdict["relative_residual"] == pytest.approx((3 / 5 + 4 / 5) / 2)


def test_codes_of_every_form_agree(modules):
    sparse = pytest.importorskip("scipy.sparse")
    peers = modules("sparse_coding_peers")
    dense = torch.tensor([[0.0, 2.0, -3.0], [1.0, 0.0, 0.0]])
    for output in (dense, dense.numpy(), sparse.csc_matrix(dense.numpy().T)):
        indices, coefficients = peers.sparse_codes(output, 2, 2)
        assert indices.tolist() == [[2, 1], [0, -1]] and coefficients.tolist() == [[-3, 2], [1, 0]]
    assert peers.sparse_codes((indices, coefficients), 2, 1)[0].tolist() == [[2, 1]]
    assert peers.output_bytes(dense) == 24 and peers.output_bytes((indices, coefficients)) == 64


def test_rounds_take_turns(modules):
    calls = []
    tasks = {name: lambda name=name: calls.append(name) for name in "abc"}
    machine = modules("sparse_coding_machine")
    times = machine.interleaved(tasks, 3, machine.tqdm(disable=True))
    assert "".join(calls) == "abcbcacab"
    assert all(len(column) == 3 for column in times.values())


def test_lower_bounds(modules):
    benchmark, machine = modules("benchmark_sparse_coding"), modules("sparse_coding_machine")
    floors = {"gemm_gflops": 1e-9, "copy_memory": 1e-9}  # one operation and one byte a second
    bounds = machine.lower_bounds(benchmark.Case("", signals=10, features=4, atoms=6, sparsity=3), floors)
    compare = 2 * 10 * 3 * 6
    assert bounds["gram"] == pytest.approx(2 * 10 * 6 * (4 + 3) + 2 * 36 * 4 + compare)
    assert bounds["residual"] == pytest.approx(2 * 10 * 3 * 6 * 4 + compare)
    assert bounds["traffic"] == pytest.approx(10 * (16 + 36))
    assert bounds["least"] == pytest.approx(min(bounds["gram"], bounds["residual"]))


def test_log_slope(modules):
    slope = modules("benchmark_sparse_coding").log_slope
    assert slope([1, 10, 20], [5.0, 1.0, 4.0]) == pytest.approx(2)
    assert slope([1], [5.0]) is None and slope([1, 2], [1.0, None]) is None


@pytest.mark.parametrize(
    "value, text", [(None, "–"), (0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1234"), (2e-9, "2.0e-09")]
)
def test_number(modules, value, text):
    assert modules("sparse_coding_report").number(value) == text


def test_colors_differ(modules):
    report = modules("sparse_coding_report")
    assert all(
        report.COLORS[first] != report.COLORS[second] for first, second in itertools.combinations(report.COLORS, 2)
    )
    assert set(report.COLORS) == {coder.name for coder in report.CODERS}


def test_the_benchmark_on_a_gpu_needs_one(apart):
    code, _, said = apart(ROOT / "benchmarks/benchmark_sparse_coding_gpu.py", "--cases", "A", CUDA_VISIBLE_DEVICES="")
    assert code == 2 and "needs a CUDA device" in said


def test_the_step_benchmark_knows_what_runs_on_a_gpu(apart):
    words = ("--device", "cuda", "--variants", "omp, fused")
    code, _, said = apart(ROOT / "benchmarks/benchmark_training_step.py", *words)
    assert code == 2 and "the kernels run on the CPU only; on cuda --variants takes vq" in said
