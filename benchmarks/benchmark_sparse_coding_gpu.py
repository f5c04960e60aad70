"""Times sparse coding on a GPU beside other libraries there, and beside SPAMS and our kernel on the CPU.

    python benchmarks/benchmark_sparse_coding_gpu.py --output_dir outputs/sparse_coding_gpu [--cases A B C D]

Cases, implementations and the float64 reference are those of `benchmark_sparse_coding.py`. Inputs and results are on
the device. A call is timed from an idle device to an idle device, after two calls to warm up; the median of the rounds
is given. `omp, graph` is the same call captured as a CUDA graph and replayed. Extra memory is the peak of what the
allocator gave out in a call, less what it had given out before and less the result. Implementations that fail or are
not installed are named, with the reason. Writes results.json and results.md into the folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from benchmark_sparse_coding import CHECKED_SIGNALS, available_coders
from sparse_coding_cases import CASES, Case
from sparse_coding_machine import MIB, machine
from sparse_coding_peers import CODERS, SPAMS, Coder, greedy_reference, judge, output_bytes, sparse_codes
from sparse_coding_report import number, share, sizes
from tqdm import tqdm

from diffusers_lasers.commands.scripts import check_at_least
from diffusers_lasers.commands.tables import markdown_table
from diffusers_lasers.commands.timing import median_seconds
from diffusers_lasers.functional import ols, omp
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.files import write_json, write_text
from diffusers_lasers.utils.import_utils import requires


ON_DEVICE = ("omp, torch", "ols, torch", "omp-gpu naive", "omp-gpu v0", "Batch-OMP, Algorithm 1")
ON_CPU = (SPAMS, "omp, fused", "ols, fused")
GRAPHS = {"omp, graph": omp, "ols, graph": ols}


def _batched_v0(signals, dictionary, sparsity, threads):
    from orthogonal_matching_pursuit_gpu import run_omp

    return lambda: run_omp(dictionary, signals, sparsity, normalize=False, fit_intercept=False, alg="v0")


# The package's default, which its authors recommend on a GPU; on the CPU its variant `v0_blas` takes its place.
V0 = Coder("omp-gpu v0", "omp", _batched_v0, lambda: requires("orthogonal_matching_pursuit_gpu", "benchmark"))


def captured(function: Callable, signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int) -> Callable:
    """The call as a CUDA graph: what it returns replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(signals, dictionary, sparsity, check_finite=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(signals, dictionary, sparsity, check_finite=False)

    def replay():
        graph.replay()
        return result

    return replay


def extra_memory(run: Callable) -> float:
    """MiB that a call takes on the device beyond inputs and result."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - output_bytes(output)) / MIB


def time_case(case: Case, coders: list[Coder], device: torch.device, threads: int, rounds: int) -> dict[str, dict]:
    """
    Rows of one case.

    Returns:
        `dict[str, dict]`: For each name `where`, `seconds`, `extra_mib` (device only), `ratio_to_spams` and what
        `judge` says, or `error`.
    """
    signals, dictionary = case.load()
    checked, references, rows = signals[:CHECKED_SIGNALS], {}, {}
    tasks = [(coder.name, coder.selection, coder.prepare, coder.name in ON_DEVICE) for coder in coders]
    tasks += [
        (name, name[:3], lambda *inputs, f=function: captured(f, *inputs[:3]), True)
        for name, function in GRAPHS.items()
    ]
    for name, selection, prepare, on_device in tqdm(tasks, desc=f"case {case.name}", leave=False):
        row = rows[name] = {"where": device.type if on_device else "cpu", "selection": selection}
        place = device if on_device else torch.device("cpu")
        try:
            run = prepare(signals.to(place), dictionary.to(place), case.sparsity, threads)
            output, row["seconds"] = median_seconds(run, rounds, place, warm_up=2)
            if on_device and name not in GRAPHS:
                row["extra_mib"] = extra_memory(run)
            if isinstance(output, torch.Tensor):
                output = output.cpu()
            elif isinstance(output, tuple):
                output = tuple(part.cpu() for part in output)
        except Exception as error:  # a peer that fails is a finding, and no reason to lose the others
            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            tqdm.write(f"{name} failed on case {case.name}, {row['error']}")
            continue
        if selection not in references:
            references[selection] = greedy_reference(checked, dictionary, case.sparsity, selection)
        row.update(
            judge(sparse_codes(output, case.sparsity, len(checked)), references[selection], checked, dictionary)
        )
        del run, output
        torch.cuda.empty_cache()
    spams = rows.get(SPAMS, {}).get("seconds")
    for row in rows.values():
        row["ratio_to_spams"] = row["seconds"] / spams if spams and "seconds" in row else None
    return rows


def markdown(results: dict) -> str:
    """The rows as tables, one a case."""
    lines = [f"{results['device']}; CPU: {results['machine']['cpu']}, {results['machine']['threads']} threads", ""]
    for name, entry in results["cases"].items():
        lines += [f"### {name}: {sizes(entry)}", ""]
        body = [
            [
                label + (f" (failed: {row['error'].split(':')[0]})" if "error" in row else ""),
                row["where"],
                number(row["seconds"] * 1e3 if "seconds" in row else None),
                number(row.get("ratio_to_spams")),
                number(row.get("extra_mib")),
                share(row.get("support_agreement")),
                number(row.get("excess_mean")),
            ]
            for label, row in entry["rows"].items()
        ]
        heads = ["", "on", "time, ms", "of SPAMS", "extra memory, MiB", "supports", "excess, mean"]
        lines += [markdown_table(heads, body), ""]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/sparse_coding_gpu"))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=10, help="Timed calls of each implementation. Default: 10.")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="Threads of the rows on the CPU. Default: all."
    )
    args = parser.parse_args()
    check_at_least(parser, args, 1, "rounds", "threads")
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device; benchmark_sparse_coding.py measures the CPU.")
    torch.set_num_threads(args.threads)
    coders = available_coders(coder for coder in (*CODERS, V0) if coder.name in (*ON_DEVICE, *ON_CPU))
    device = torch.device("cuda")
    results = {
        "machine": machine(args.threads),
        "device": torch.cuda.get_device_name(),
        "command": f"python benchmarks/{Path(__file__).name} --cases {' '.join(args.cases)} "
        f"--rounds {args.rounds} --threads {args.threads}",
        "cases": {},
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.cases:
        rows = time_case(CASES[name], coders, device, args.threads, args.rounds)
        results["cases"][name] = {**asdict(CASES[name]), "rows": rows}
        write_json(args.output_dir / "results.json", results)
        write_text(args.output_dir / "results.md", markdown(results))
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
