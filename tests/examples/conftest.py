"""The training scripts on small pictures: in this process, and in processes that are forked from it.

A script that a test starts anew spends more time on its imports than on its few steps. What a test proves about several
processes, about SIGKILL or about resuming needs processes, but not new interpreters: `forked` runs a script in one
thread in children of this process, which has imported torch already. Where the way of starting is what is proven, tests
launch the script as a user does.
"""

import importlib.util
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_dlgan.py"


def pictures(folder, count, first):
    folder.mkdir()
    for index in range(count):
        generator = np.random.default_rng(first + index)
        image = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image.resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "train_data_dir": pictures(folder / "photos", 10, 0),
        "validation_data_dir": pictures(folder / "held-out", 5, 100),
    }


def command_line(**flags):
    """The flags as a command line; a dictionary is one of NAME=VALUE, a tuple one of several words."""
    line = []
    for name, value in flags.items():
        words = [] if value is None else value if isinstance(value, tuple) else [value]
        if isinstance(value, dict):
            words = [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in value.items()]
        line += [f"--{name}", *map(str, words)]
    return line


@pytest.fixture(scope="session")
def words():
    return command_line


@pytest.fixture(scope="module")
def script():
    """examples/train_dlgan.py as a module."""
    specification = importlib.util.spec_from_file_location("train_dlgan", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def forget_the_last_run():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def run(script, data, tmp_path):
    """Runs the script in this process with a few steps; gives the output folder."""

    def start(steps=2, **flags):
        forget_the_last_run()
        base = {"resolution": 32, "train_batch_size": 4, "log_steps": 1, "checkpointing_steps": 0, "report_to": "none"}
        if not {"model_config_name_or_path", "pretrained_model_name_or_path", "bottleneck"} & set(flags):
            base["bottleneck_config"] = {"num_atoms": 16, "sparsity": 2}
        if "resume_from_checkpoint" not in flags:
            base["overwrite_output_dir"] = None  # many tests train twice
        arguments = {**data, **base, "max_train_steps": steps, "output_dir": tmp_path / "out", **flags}
        script.main(script.parse_args(command_line(**{k: v for k, v in arguments.items() if v is not False})))
        return tmp_path / "out"

    yield start
    forget_the_last_run()


def child(rank, processes, port, here, script, line, environment):
    """One rank: the environment that `accelerate launch` sets, one thread, and the script as `python SCRIPT LINE…`."""
    os.environ.update(environment, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    if processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    forget_the_last_run()
    code, out, err = here(script, *line)
    if code:
        raise RuntimeError(f"{script.name} ended with {code}:\n{out}{err}")


class Forked:
    """Children that run a script: `wait` raises what went wrong in one of them, `kill` sends them SIGKILL."""

    def __init__(self, processes, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.children = torch.multiprocessing.start_processes(
            child, args=(processes, port, *arguments), nprocs=processes, join=False, start_method="fork"
        )

    def wait(self):
        while not self.children.join():
            pass

    @property
    def running(self):
        return all(process.is_alive() for process in self.children.processes)

    def kill(self):
        """Kills those that still run; the exit codes come back."""
        for process in self.children.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.children.processes]


@pytest.fixture(scope="session")
def fork(here):
    """Starts `script LINE…` in one or several forked processes, with `environment` added to theirs."""

    def start(script, line, processes=1, environment=()):
        return Forked(processes, here, Path(script), list(line), dict(environment))

    return start


@pytest.fixture(scope="session")
def forked(fork):
    """The same, run to its end."""
    return lambda *arguments, **named: fork(*arguments, **named).wait()
