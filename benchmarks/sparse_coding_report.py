"""Tables and figure of `benchmark_sparse_coding.py`, from the dictionary that it writes to results.json."""

from __future__ import annotations

from pathlib import Path

from sparse_coding_peers import CODERS, SPAMS

from diffusers_lasers.functional import support_bits
from diffusers_lasers.utils.import_utils import requires
from diffusers_lasers.utils.tables import MISSING, markdown_table
from diffusers_lasers.visualization import save_figure


LETTERS = {"signals": "N", "features": "L", "atoms": "K", "sparsity": "S"}
MACHINE = ("cpu", "threads", "torch", "spams-bin", "orthogonal-matching-pursuit-gpu", "scikit-learn", "date", "commit")
COLORS = {
    "omp, torch": "#7fb3d5",
    "omp, fused": "#1f618d",
    "ols, torch": "#82cfa3",
    "ols, fused": "#1e8449",
    SPAMS: "#d35400",
    "omp-gpu naive": "#d7bde2",
    "omp-gpu v0_blas, float64": "#af7ac5",
    "Batch-OMP, Algorithm 1": "#aab7b8",
    "scikit-learn": "#566573",
}
NOTES = """\
* **time**: median of the rounds of this run, in which the implementations take turns; **of SPAMS**: divided by SPAMS'
  median.
* **bound**: time divided by the least time of the case on this machine, the smaller of the Gram and the residual form's
  (floors). It is that of OMP, in the rows of OLS too.
* **extra memory**: high-water mark of a call in a process of its own, less the inputs and less the result; **result**:
  its size in the implementation's own form, dense for some. scikit-learn's is that of one process.
* **supports**: signals whose set of atoms is that of a float64 reference, OMP or OLS as the row's *selects*;
  **excess**: of its ‖y − Dγ‖ over the reference's, mean and largest; **residual**: mean ‖y − Dγ‖ / ‖y‖. Signals that
  the reference codes exactly are left out.
* SPAMS' `omp` computes OLS; its peer is `ols`. OLS does not choose as OMP does, and its residual is lower where L is
  small."""


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent where one is not needed; a dash for what was not measured."""
    if value is None:
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        places = 0 if abs(value) >= 100 else digits - len(str(int(abs(value)))) + (abs(value) < 1)
        places += (0 < abs(value) < 0.1) + (0 < abs(value) < 0.01)
        return f"{value:.{max(places, 0)}f}" if value else "0"
    return f"{value:.1e}"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f} %"


def table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    return [markdown_table(headers, rows), ""]


def sizes(entry: dict) -> str:
    return ", ".join(f"{letter} = {entry[name]}" for name, letter in LETTERS.items() if name in entry)


def coder_row(name: str, row: dict, entry: dict) -> list[str]:
    seconds, memory = row.get("seconds"), row.get("memory") or {}
    least = entry.get("bounds", {}).get("least")
    label = f"**{name}**" if name.startswith(("omp, ", "ols, ")) else name
    if "error" in row:
        label += f" (failed: {row['error'].split(':')[0]})"
    if seconds is not None and row["timed_signals"] < entry["signals"]:
        label += f" (scaled from {row['timed_signals']} signals)"
    if row.get("not_finite"):
        label += f" ({row['not_finite']} of {row['checked']} not finite)"
    return [
        label,
        row["selection"].upper(),
        number(None if seconds is None else seconds * 1e3),
        number(row.get("ratio_to_spams")),
        number(seconds / least if seconds and least else None),
        number(memory.get("extra_mib")),
        number(memory.get("result_mib")),
        share(row.get("support_agreement")),
        number(row.get("excess_mean")),
        number(row.get("excess_max")),
        number(row.get("relative_residual")),
    ]


def case_section(name: str, entry: dict) -> list[str]:
    bits = support_bits(entry["atoms"], entry["sparsity"]) + 32 * entry["sparsity"]
    source = f" of `{entry['file']}`" if entry["file"] else ""
    lines = [
        f"## Case {name}: {sizes(entry)}",
        "",
        f"Codes{source} with float32 coefficients: {bits:.0f} bits a signal.",
        "",
    ]
    if entry["rows"]:
        headers = ["implementation", "selects", "time, ms", "of SPAMS", "bound", "extra memory, MiB", "result, MiB"]
        headers += ["supports", "mean excess", "largest excess", "residual"]
        lines += table(headers, [coder_row(coder, row, entry) for coder, row in entry["rows"].items()])
    if "synthesis" in entry:
        lines += ["Synthesis, ms (and share of the time of `omp`, of the same backend):", ""]
        steps = {"forward": "forward", "dictionary": "with gradient to D", "both": "with gradients to D and γ"}
        rows = [
            [f"`synthesize`, {row}" if row != "F.embedding_bag" else "`F.embedding_bag`"]
            + [f"{number(times[step] * 1e3)} ({number(times[step] / times['omp'])})" for step in steps]
            for row, times in entry["synthesis"].items()
        ]
        lines += table(["implementation", *steps.values()], rows)
    return lines


def floor_section(results: dict) -> list[str]:
    floors = results["floors"]
    lines = ["## Floors of the machine", ""]
    lines += [
        f"Matrix product {number(floors['gemm_gflops'])} GFLOP/s; copies {number(floors['copy_cache'])} GB/s in the "
        f"cache and {number(floors['copy_memory'])} GB/s in memory (reads and writes counted). "
        "Lower bounds of the time, ms:",
        "",
    ]
    kinds = {"gram": "Gram form", "residual": "residual form", "traffic": "signals in, codes out", "least": "least"}
    bounds = {name: entry["bounds"] for name, entry in results["cases"].items() if "bounds" in entry}
    return lines + table(
        ["case", *kinds.values()], [[n, *(number(b[k] * 1e3) for k in kinds)] for n, b in bounds.items()]
    )


def growth_section(growth: dict) -> list[str]:
    lines = ["## Growth", "", "Time in ms; last column: exponent p of time ~ sizeᵖ over the last two sizes.", ""]
    for swept, sweep in growth.items():
        letter = LETTERS[swept]
        lines += [f"{letter} varies; {sizes(sweep['fixed'])}:", ""]
        rows = [
            [name, *(number(None if s is None else s * 1e3) for s in column), number(sweep["slope"][name])]
            for name, column in sweep["seconds"].items()
        ]
        lines += table(["implementation", *(f"{letter} = {value}" for value in sweep["values"]), "p"], rows)
    return lines


def markdown(results: dict) -> str:
    """
    The tables.

    Args:
        results (`dict`): What `benchmark_sparse_coding.py` has measured so far.

    Returns:
        `str`: Text of results.md.
    """
    facts = [f"{name} {results['machine'][name]}" for name in MACHINE]
    lines = [
        "# Sparse coding on the CPU",
        "",
        "; ".join(facts) + ".",
        "",
        "```bash",
        results["command"],
        "```",
        "",
        NOTES,
        "",
    ]
    if "floors" in results:
        lines += floor_section(results)
    for name, entry in results["cases"].items():
        lines += case_section(name, entry)
    if "growth" in results:
        lines += growth_section(results["growth"])
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """
    The figure: time of each implementation divided by SPAMS' (seconds if SPAMS is not installed), and growth.

    Args:
        results (`dict`): What `benchmark_sparse_coding.py` has measured.
        path (`Path`): Where the PNG goes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    growth = results.get("growth", {})
    figure = requires("matplotlib.figure", "benchmark").Figure(
        figsize=(13, 8 if growth else 4.5), layout="constrained"
    )
    grid = figure.add_gridspec(2 if growth else 1, max(len(growth), 1))
    axes = figure.add_subplot(grid[0, :])
    cases = {name: entry["rows"] for name, entry in results["cases"].items()}
    relative = any(row.get("ratio_to_spams") for rows in cases.values() for row in rows.values())
    key = "ratio_to_spams" if relative else "seconds"
    names = [coder.name for coder in CODERS if any(coder.name in rows for rows in cases.values())]
    width = 0.85 / max(len(names), 1)
    for position, name in enumerate(names):
        places = [n + (position - (len(names) - 1) / 2) * width for n in range(len(cases))]
        heights = [rows.get(name, {}).get(key) or float("nan") for rows in cases.values()]
        bars = axes.bar(places, heights, width, label=name, color=COLORS[name])
        axes.bar_label(bars, [number(height, 2) if height == height else "" for height in heights], fontsize=7)
    axes.set_xticks(
        range(len(cases)), [f"{name}: {sizes(entry)}" for name, entry in results["cases"].items()], fontsize=8
    )
    axes.set_ylabel("time / time of SPAMS" if relative else "time, s")
    if names:
        axes.set_yscale("log")
        axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.2), frameon=False)
    if relative:
        axes.axhline(1, color=COLORS[SPAMS], linewidth=0.8)
    for position, (swept, sweep) in enumerate(growth.items()):
        axes = figure.add_subplot(grid[1, position])
        for name, column in sweep["seconds"].items():
            heights = [float("nan") if seconds is None else seconds * 1e3 for seconds in column]
            axes.loglog(sweep["values"], heights, marker="o", markersize=4, label=name, color=COLORS[name])
        axes.set_xticks(sweep["values"], [str(value) for value in sweep["values"]], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{LETTERS[swept]} ({sizes(sweep['fixed'])})", fontsize=9)
        axes.grid(alpha=0.3)
        if position == 0:
            axes.set_ylabel("time, ms")
            axes.legend(fontsize=8)
    figure.suptitle(
        f"Sparse coding, {results['machine']['cpu']}, {results['machine']['threads']} threads", fontsize=10
    )
    save_figure(figure, path, dpi=150)
