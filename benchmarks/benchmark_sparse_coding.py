r"""Times sparse coding beside other libraries: speed, memory, exactness, growth, and lower bounds of the machine.

    python benchmarks/benchmark_sparse_coding.py --output_dir outputs/sparse_coding
    python benchmarks/benchmark_sparse_coding.py --cases --signals latents.safetensors --sparsity 5 --skip growth

The implementations stand in `sparse_coding_peers.py`; those that are not installed are skipped with a line
(`pip install diffusers_lasers[benchmark]`). All run on the CPU in float32 unless their name says otherwise. Cases are
Gaussian signals with a random dictionary of unit atoms, or latents and a dictionary from a file. Measured are:

* time: after one call to warm up, rounds in which each implementation runs once, in an order that rotates; medians over
  the rounds. A pause before each call lets the threads of the previous one fall asleep. Conversion of the inputs is
  outside the measured time.
* memory: each implementation in a process of its own. After a call on 64 signals, and the release of what the allocator
  holds, the high-water mark of resident memory is reset. Extra memory is what the mark has risen to after a call on all
  signals, less what was resident before (the inputs among it) and less the result in the implementation's own form.
* exactness: the codes of the first signals beside OMP or OLS in float64, see `judge` in `sparse_coding_peers.py`.
* floors: the rates of a matrix product and of copies, and from them a lower bound of the time of each case,

      Gram form      [2 N K (L + S (S − 1) / 2) + 2 K² L] / GEMM rate + N S K / compare rate
      residual form  2 N S K L / GEMM rate + N S K / compare rate

  A comparison is one vector instruction an element, at the rate at which the product issues its own (GEMM rate / 2). No
  case takes less than reading the signals and writing the codes at the copy rate.

Writes results.json, results.md and figure.png into the folder, the first two after each part that is done.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from sparse_coding_cases import CASES, Case
from sparse_coding_machine import (
    MEMORY_RESET,
    fix_threads,
    interleaved,
    lower_bounds,
    machine,
    measure_floors,
    measure_memory,
)
from sparse_coding_peers import BACKENDS, CODERS, SPAMS, Coder, greedy_reference, judge, sparse_codes
from sparse_coding_report import draw, markdown
from sparse_coding_synthesis import time_synthesis
from tqdm import tqdm

from diffusers_lasers.commands.scripts import check_at_least
from diffusers_lasers.functional import set_backend
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.files import write_json, write_text


PARTS = ("floors", "timing", "memory", "synthesis", "growth", "figure")
GROWTH_BASE = {"signals": 16384, "features": 16, "atoms": 512, "sparsity": 5}
# What is swept, over which values, and what departs from the base.
GROWTH = {
    "signals": ((1024, 4096, 16384, 65536), {}),
    "atoms": ((256, 512, 1024, 2048, 4096), {}),
    "features": ((8, 16, 32, 64, 128, 256), {}),
    "sparsity": ((1, 2, 4, 8, 16), {"features": 64}),
}
GROWTH_CODERS = ("omp, torch", "omp, fused", SPAMS)
CHECKED_SIGNALS = 2048


SYNTHESIS_CASES = ("A", "B", "C", "latents")


def time_coders(case: Case, coders: list[Coder], threads: int, rounds: int, check: bool = True) -> dict[str, dict]:
    """
    Seconds of each implementation on a case, and how good its codes are.

    Returns:
        `dict[str, dict]`: For each name `seconds` (median, scaled to all signals), `times` of the rounds (as measured),
        `timed_signals`, `ratio_to_spams` and what `judge` says; or `error`, where it failed.
    """
    signals, dictionary = case.load()
    checked = signals[:CHECKED_SIGNALS]
    rows, tasks, references = {}, {}, {}
    with tqdm(total=len(coders) * (rounds + 1), desc=f"case {case.name}", leave=False) as bar:
        for coder in coders:
            count = coder.timed_signals(case.signals, case.atoms)
            rows[coder.name] = {"selection": coder.selection, "timed_signals": count}
            try:
                task = coder.prepare(signals[:count], dictionary, case.sparsity, threads)
                output = task()
            except Exception as error:  # a peer that fails is a finding, and no reason to lose the others
                rows[coder.name]["error"] = f"{type(error).__name__}: {str(error)[:200]}"
                tqdm.write(f"{coder.name} failed on case {case.name}, {rows[coder.name]['error']}")
                bar.update(rounds + 1)
                continue
            tasks[coder.name] = task
            if check:
                if coder.selection not in references:
                    references[coder.selection] = greedy_reference(checked, dictionary, case.sparsity, coder.selection)
                codes = sparse_codes(output, case.sparsity, len(checked))
                rows[coder.name].update(judge(codes, references[coder.selection], checked, dictionary))
            del output
            bar.update()
        times = interleaved(tasks, rounds, bar)
    for name, measured in times.items():
        scale = case.signals / rows[name]["timed_signals"]
        rows[name].update(seconds=statistics.median(measured) * scale, times=measured)
    spams = rows.get(SPAMS, {}).get("seconds")
    for row in rows.values():
        row["ratio_to_spams"] = row["seconds"] / spams if spams and "seconds" in row else None
    return rows


def time_growth(coders: list[Coder], threads: int, rounds: int, factor: float) -> dict[str, dict]:
    """
    Seconds over sweeps of N, K, L and S.

    Returns:
        `dict[str, dict]`: For each sweep its `values`, the `fixed` sizes, the medians `seconds` of each name, and the
        log-log `slope` of their last segment.
    """
    sweeps = {}
    for swept, (values, changes) in GROWTH.items():
        fixed = {**GROWTH_BASE, **changes}
        cases: dict[int, Case] = {}
        for value in values:
            case = Case(f"{swept} {value}", **{**fixed, swept: value}).scaled(factor)
            cases[getattr(case, swept)] = case
        measured = [time_coders(case, coders, threads, rounds, check=False) for case in cases.values()]
        sizes = {name: size for name, size in asdict(next(iter(cases.values()))).items() if name in GROWTH_BASE}
        seconds = {coder.name: [rows[coder.name].get("seconds") for rows in measured] for coder in coders}
        sweeps[swept] = {
            "values": list(cases),
            "fixed": {name: size for name, size in sizes.items() if name != swept},
            "seconds": seconds,
            "slope": {name: log_slope(list(cases), column) for name, column in seconds.items()},
        }
    return sweeps


def log_slope(values: list[int], seconds: list[float | None]) -> float | None:
    """Exponent p of time ~ valueᵖ over the last two values."""
    if len(values) < 2 or None in seconds[-2:]:
        return None
    return math.log(seconds[-1] / seconds[-2]) / math.log(values[-1] / values[-2])


def memory_in_child(coder: Coder, case: Case, threads: int) -> dict | None:
    """`measure_memory` in a process of its own; `None` where it fails."""
    threads = 1 if coder.per_signal else threads
    request = json.dumps({"coder": coder.name, "case": asdict(case), "threads": threads})
    process = subprocess.run(
        [sys.executable, __file__, "--threads", str(threads), "--memory_request", request],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        tqdm.write(f"The memory of {coder.name} on case {case.name} was not measured: {process.stderr[-300:]}")
        return None
    return json.loads(process.stdout.splitlines()[-1])


def available_coders(coders: Iterable[Coder]) -> list[Coder]:
    """Those of the implementations that are installed; a line for each other one says what is missing."""
    found = []
    for coder in coders:
        try:
            coder.require()
            found.append(coder)
        except ImportError as error:
            print(f"Skipping {coder.name}: {error}")
    set_backend("auto")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add, names = parser.add_argument, [coder.name for coder in CODERS]
    add("--output_dir", type=Path, default=Path("outputs/sparse_coding"))
    add("--cases", nargs="*", choices=list(CASES), default=list(CASES), help="Random problems. Default: all.")
    add("--signals", metavar="FILE.safetensors", help="One more case: `signals (N, L)`, optional `dictionary (L, K)`.")
    add("--sparsity", type=int, default=5, help="Atoms a signal for --signals. Default: 5.")
    add("--atoms", type=int, default=512, help="Atoms drawn from --signals without a dictionary. Default: 512.")
    add("--rounds", type=int, default=5, help="Timed calls of each implementation. Default: 5.")
    add("--threads", type=int, default=2, help="Threads of every implementation. Default: 2.")
    add("--scale", type=float, default=1.0, help="Factor on the numbers of signals and atoms. Default: 1.")
    add(
        "--coders",
        nargs="+",
        metavar="NAME",
        choices=names,
        help=f"Some of {', '.join(map(repr, names))}. Default: all.",
    )
    add("--skip", nargs="*", choices=PARTS, default=[], help="Parts to leave out.")
    add("--memory_request", help=argparse.SUPPRESS)
    args = parser.parse_args()
    check_at_least(parser, args, 1, "rounds", "threads")
    if not 0 < args.scale <= 1:
        parser.error(f"--scale must be above 0 and at most 1, got {args.scale}")
    return args


def selected_cases(args: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for, with the sizes of what is in the file."""
    cases = [CASES[name].scaled(args.scale) for name in args.cases]
    if args.signals:
        probe = Case("latents", 2**62, 0, args.atoms, args.sparsity, file=args.signals)
        signals, dictionary = probe.load()
        if signals.ndim != 2 or len(dictionary) != signals.shape[1] or not 1 <= args.sparsity <= min(dictionary.shape):
            raise ValueError(
                "--signals must hold `signals (N, L)` and `dictionary (L, K)` with --sparsity from 1 to min(L, K), "
                f"got shapes {tuple(signals.shape)} and {tuple(dictionary.shape)} with sparsity {args.sparsity}."
            )
        count = min(len(signals), max(64, round(len(signals) * args.scale)))
        cases.append(replace(probe, signals=count, features=signals.shape[1], atoms=dictionary.shape[1]))
    return cases


def command(args: argparse.Namespace) -> str:
    """The command of this run, with the name of a file in place of its path."""
    words = ["python", f"benchmarks/{Path(__file__).name}", "--cases", *args.cases]
    if args.signals:
        words += ["--signals", Path(args.signals).name, "--sparsity", str(args.sparsity), "--atoms", str(args.atoms)]
    words += ["--coders", *args.coders] if args.coders else []
    words += ["--rounds", str(args.rounds), "--threads", str(args.threads), "--scale", f"{args.scale:g}"]
    return shlex.join(words + (["--skip", *args.skip] if args.skip else []))


def main() -> int:
    args = parse_arguments()
    fix_threads(args.threads)
    torch.set_num_threads(args.threads)
    if args.memory_request:
        request = json.loads(args.memory_request)
        coder = next(coder for coder in CODERS if coder.name == request["coder"])
        print(json.dumps(measure_memory(coder, Case(**request["case"]), request["threads"])))
        return 0

    wanted = [coder for coder in CODERS if args.coders is None or coder.name in args.coders]
    coders, cases = available_coders(wanted), selected_cases(args)
    if "memory" not in args.skip and not MEMORY_RESET.exists():
        print("Skipping memory: it is measured on Linux only.")
        args.skip.append("memory")
    backends = [name for name in BACKENDS if any(coder.name == f"omp, {name}" for coder in coders)]
    results = {"machine": machine(args.threads), "command": command(args), "cases": {}}
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def save():
        write_json(args.output_dir / "results.json", results)
        write_text(args.output_dir / "results.md", markdown(results))

    if "floors" not in args.skip:
        results["floors"] = measure_floors(args.rounds)
    for case in tqdm(cases, desc="cases"):
        entry = {**asdict(case), "file": case.file and Path(case.file).name, "rows": {}}
        results["cases"][case.name] = entry
        if "floors" in results:
            entry["bounds"] = lower_bounds(case, results["floors"])
        if "timing" not in args.skip:
            entry["rows"] = time_coders(case, coders, args.threads, args.rounds)
            save()
        if "memory" not in args.skip:
            for coder in tqdm(coders, desc=f"memory, case {case.name}", leave=False):
                row = entry["rows"].setdefault(coder.name, {"selection": coder.selection})
                row["memory"] = memory_in_child(coder, case, args.threads)
            save()
        if "synthesis" not in args.skip and case.name in SYNTHESIS_CASES:
            entry["synthesis"] = time_synthesis(case, backends, args.rounds)
            save()
    if "growth" not in args.skip:
        curves = [coder for coder in coders if coder.name in GROWTH_CODERS]
        results["growth"] = time_growth(curves, args.threads, args.rounds, args.scale)
    save()
    if "figure" not in args.skip:
        try:
            draw(results, args.output_dir / "figure.png")
        except ImportError as error:
            print(f"Skipping the figure: {error}")
    print(f"Results are in {args.output_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
