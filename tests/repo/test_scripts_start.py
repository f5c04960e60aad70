"""Scripts that the other tests run in a process that has imported everything also start in one that has not."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    *(f"examples/{name}.py" for name in ("fit_codec", "fit_latent_bottleneck", "benchmark_codec")),
    *(f"examples/{name}.py" for name in ("evaluate_retrofit", "evaluate_autoencoder", "evaluate_generation")),
    *("examples/train_refiner.py", "utils/fuzz_codes.py", "benchmarks/benchmark_codec_speed.py"),
)


def test_scripts_start_in_an_interpreter_of_their_own():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, str(ROOT / name), "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in SCRIPTS
    }
    for name, process in started.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and Path(name).name in output, errors
