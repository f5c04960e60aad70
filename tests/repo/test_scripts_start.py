"""Scripts that the other tests run in a process that has imported everything also start in one that has not.

Each starts in a process of its own, forked from a new interpreter that has imported the package's models, as all of
them do, and nothing else.
"""

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
HELP = """
import os, runpy, sys
from pathlib import Path
from diffusers_lasers import AutoencoderDL

children = []
for script in map(Path, sys.argv[1:]):
    children.append(os.fork())
    if not children[-1]:
        for stream in (1, 2):
            os.dup2(os.open(script.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv, sys.path[0] = [str(script), "--help"], str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
        sys.exit("no help")
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_scripts_start_in_an_interpreter_of_their_own(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", HELP, *(str(ROOT / name) for name in SCRIPTS)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    for name in SCRIPTS:
        output = (tmp_path / Path(name).name).read_text()
        assert f"usage: {Path(name).name}" in output, output[-600:]
    assert done.returncode == 0, done.stderr[-600:]
