"""The benchmark of online dictionary learning runs as a user runs it, and its peers are called as its text says."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers.functional import ols, synthesize
from diffusers_lasers.functional.dictionary import dictionary_from_signals


ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # saves the script a restart
SMALL = "--threads 1 --patches 400 --held_out 100 --patch_size 5 --atoms 24 --sparsity 2 --batch_size 40".split()
MODULES = ("benchmark_dictionary_learning", "dictionary_learning_peers", "sparse_coding_machine")
MODULES += ("sparse_coding_peers", "sparse_coding_report")


SCRIPT = ROOT / "benchmarks/benchmark_dictionary_learning.py"


@pytest.fixture
def run(apart):
    """Exit code and output of the script, on small problems, in a process of its own."""

    def start(*arguments):
        code, out, err = apart(SCRIPT, *SMALL, *arguments, **ONE_THREAD)
        return code, out + err

    return start


@pytest.fixture
def quick(here, monkeypatch):
    """The same in this process."""
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()

    def run(*arguments):
        code, out, err = here(SCRIPT, *SMALL, *arguments)
        return code, out + err

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def modules(monkeypatch):
    """The script's modules by name, without a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def task(modules):
    signals = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, 12)
    start = dictionary_from_signals(signals, 30, generator=torch.Generator().manual_seed(1))
    return modules("dictionary_learning_peers").Task(signals, start, 3, 50, 1, 0)


def test_it_runs_beside_its_peers(run, tmp_path):
    for package in ("spams", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    code, output = run("--points", 2, "--rounds", 2, "--passes", 1, "--output_dir", tmp_path / "out")
    assert code == 0, output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["steps"] == [5, 10] and str(tmp_path) not in json.dumps(results)
    assert set(results["learners"]) == {
        *("omp", "ols", "omp, own start", "SPAMS, float64", "SPAMS, float32", "scikit-learn")
    }
    for name, row in results["learners"].items():
        assert [len(values) for values in row["seconds"]] == [len(values) for values in row["objective"]] == [2, 2]
        assert all(0 < value < 1 for values in row["objective"] for value in values), name
    pair = [results["learners"][f"SPAMS, {dtype}"]["objective"] for dtype in ("float32", "float64")]
    np.testing.assert_allclose(*pair, rtol=0.05)
    text = (tmp_path / "out" / "results.md").read_text()
    assert all(f"| {name} |" in text for name in results["learners"]) and "400 patches of 6 images, 100 of 2" in text
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "results.md", "figure.png"}
    with Image.open(tmp_path / "out" / "figure.png") as figure:
        assert figure.size[0] > 500


def test_variants_of_ones_own_images(tmp_path, quick):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in range(3):
        pixels = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    arguments = [
        "--images",
        tmp_path / "photos",
        "--color",
        "--keep_mean",
        "--rounds",
        1,
        "--points",
        1,
        "--passes",
        0.5,
    ]
    code, output = quick(*arguments, "--variants", "--output_dir", tmp_path / "out")
    assert code == 0, output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "L = 75" in results["data"] and "400 patches of 2 images, 100 of 1 others" in results["data"]
    assert "--images=photos" in results["command"] and str(tmp_path) not in json.dumps(results)
    assert len(results["learners"]) == 10 and "SPAMS, float64" not in results["learners"]
    with pytest.raises(ValueError, match="at least two images, got 1"):
        quick("--images", tmp_path / "photos" / "0.png", "--output_dir", tmp_path / "out")


def test_a_slow_learner_skips_points(tmp_path, quick):
    arguments = ["--learners", "omp", "--time_limit", 0, "--points", 3, "--rounds", 1, "--output_dir", tmp_path]
    code, output = quick(*arguments)
    assert code == 0, output
    row = json.loads((tmp_path / "results.json").read_text())["learners"]["omp"]
    assert [len(values) for values in row["seconds"]] == [1, 0, 0]
    assert "| – | – |" in (tmp_path / "results.md").read_text()


def test_bad_arguments_are_named(quick):
    for arguments, message in ((["--rounds", 0], "--rounds must be at least 1, got 0"), (["--passes", 0], "--passes")):
        code, output = quick(*arguments)
        assert code == 2 and message in output


def test_spams_is_called_in_its_sparse_mode(modules, task):
    pytest.importorskip("spams")
    peers = modules("dictionary_learning_peers")
    start = task.start.clone()
    pair = [peers.LEARNERS[f"SPAMS, {dtype}"](task)(8) for dtype in ("float32", "float64")]
    torch.testing.assert_close(pair[0], pair[1].float(), rtol=0, atol=1e-3)
    assert torch.equal(task.start, start)  # it may overwrite what it is given

    def error(dictionary):
        codes = ols(task.signals, dictionary.float().contiguous(), 3)
        return (task.signals - synthesize(*codes, dictionary.float())).square().sum().item()

    ours = peers.LEARNERS["ols"](task)(8)
    assert error(pair[0]) < 0.9 * error(start)
    assert error(ours) == pytest.approx(error(pair[0]), rel=0.1)


def test_the_penalty_codes_with_as_many_atoms(modules, task):
    decomposition = pytest.importorskip("sklearn.decomposition")
    peers = modules("dictionary_learning_peers")
    alpha, atoms = peers.lasso_penalty(task), np.ascontiguousarray(task.start.numpy().T)
    with peers.unconverged_ignored():
        codes = decomposition.sparse_encode(task.signals.numpy(), atoms, algorithm="lasso_cd", alpha=alpha)
    assert (codes != 0).sum(axis=1).mean() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("count", [7, 100])
def test_patches_come_from_all_images(modules, count):
    script = modules("benchmark_dictionary_learning")
    images = [Image.new("RGB", (9, 7), (shade, shade, shade)) for shade in (51, 102, 204)]
    args = type("Arguments", (), {"patch_size": 4, "color": False, "keep_mean": True})
    signals = script.patches(images, count, args, 0)
    assert signals.shape == (count, 16) and signals.dtype == torch.float32
    shades, counts = (signals[:, 0] * 255).round().unique(return_counts=True)
    assert shades.tolist() == [51, 102, 204] and counts.max() - counts.min() <= 1
    args.keep_mean = False
    assert script.patches(images, count, args, 0).abs().max() < 1e-6
