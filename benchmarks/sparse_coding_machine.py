"""What the benchmarks ask of the machine: tasks timed in turns, its fastest rates, resident memory, threads and names.

The text of `benchmark_sparse_coding.py` says what is measured and how.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from sparse_coding_peers import Coder, output_bytes
from tqdm import tqdm

from diffusers_lasers.commands.env import environment, package_version
from diffusers_lasers.commands.scripts import commit_of


WARM_SIGNALS = 64
PAUSE = 0.02  # seconds, above the time for which an idle thread of libgomp spins
MIB = 2**20
MEMORY_RESET = Path("/proc/self/clear_refs")  # Linux: writing 5 lowers the high-water mark to what is resident


def interleaved(tasks: dict, rounds: int, bar: tqdm) -> dict[str, list[float]]:
    """
    Times tasks in turns.

    Args:
        tasks (`dict`): Name -> call without arguments, warmed up.
        rounds (`int`): How often each runs; each round starts with another one.
        bar (`tqdm`): Advanced by one at each call.

    Returns:
        `dict[str, list[float]]`: Seconds of each call.
    """
    names, times = list(tasks), {name: [] for name in tasks}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            output = tasks[name]()
            times[name].append(time.perf_counter() - start)
            del output  # outside the measured time
            bar.update()
    return times


def measure_floors(rounds: int) -> dict[str, float]:
    """
    Rates of the machine, the best of the rounds.

    Returns:
        `dict[str, float]`: `gemm_gflops` of a 2048³ float32 product, and copy bandwidth in GB/s, reads and writes
        counted, between two buffers that stay in the cache (`copy_cache`, 256 KiB each) or do not (`copy_memory`,
        256 MiB each).
    """
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    tasks, work = {"gemm_gflops": lambda: left @ right}, {"gemm_gflops": 2 * 2048**3 / 1e9}
    for name, size, repeats in (("copy_cache", 2**18, 400), ("copy_memory", 2**28, 1)):
        source, target = torch.randn(size // 4), torch.empty(size // 4)

        def copies(source=source, target=target, repeats=repeats):
            for _ in range(repeats):
                target.copy_(source)

        tasks[name], work[name] = copies, 2 * size * repeats / 1e9
    for run in tasks.values():
        run()
    with tqdm(total=len(tasks) * max(rounds, 3), desc="floors", leave=False) as bar:
        times = interleaved(tasks, max(rounds, 3), bar)
    return {name: work[name] / min(measured) for name, measured in times.items()}


def lower_bounds(case, floors: dict[str, float]) -> dict[str, float]:
    """Seconds that coding a case takes at least: `gram`, `residual`, `traffic` and the `least` of them."""
    n, features, atoms, sparsity = case.signals, case.features, case.atoms, case.sparsity
    flops = floors["gemm_gflops"] * 1e9
    compare = n * sparsity * atoms / (flops / 2)
    gram = (2 * n * atoms * (features + sparsity * (sparsity - 1) / 2) + 2 * atoms**2 * features) / flops + compare
    residual = 2 * n * sparsity * atoms * features / flops + compare
    traffic = n * (4 * features + 12 * sparsity) / (floors["copy_memory"] * 1e9)
    return {"gram": gram, "residual": residual, "traffic": traffic, "least": max(min(gram, residual), traffic)}


def resident_memory(key: str) -> int:
    """Bytes of this process that are resident (`VmRSS`), or have been at most (`VmHWM`); Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure_memory(coder: Coder, case, threads: int) -> dict[str, float]:
    """
    Extra memory of one call, in this process. scikit-learn should be given one thread, since it starts a process for
    each.

    Returns:
        `dict[str, float]`: `extra_mib`, and `result_mib`, the size of the result.
    """
    signals, dictionary = case.load()
    coder.prepare(signals[:WARM_SIGNALS].clone(), dictionary, case.sparsity, threads)()
    run = coder.prepare(signals, dictionary, case.sparsity, threads)
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    # Without the reset the mark is that of loading the libraries, or even of the process that started this one.
    MEMORY_RESET.write_text("5")
    before = resident_memory("VmRSS")
    output = run()
    result = output_bytes(output)
    return {"extra_mib": (resident_memory("VmHWM") - before - result) / MIB, "result_mib": result / MIB}


def processor() -> str:
    """Model of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def fix_threads(threads: int) -> None:
    """Starts the script again with the threads in the environment, where libraries read them when they are loaded."""
    wanted = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def machine(threads: int) -> dict[str, str]:
    """Processor, threads, date, commit and versions."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    versions = {
        name: package_version(name) for name in ("spams-bin", "orthogonal-matching-pursuit-gpu", "scikit-learn")
    }
    return {
        "cpu": processor(),
        "threads": str(threads),
        "date": date,
        "commit": commit_of(Path(__file__).parent) or "unknown",
        **environment(),
        **versions,
    }
