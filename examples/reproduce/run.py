#!/usr/bin/env python
"""Makes pages of results: the papers' tables and figures run again, and our comparison of codes.

    python examples/reproduce/run.py --list
    python examples/reproduce/run.py --scale cpu --data data/ --output_dir outputs/reproduce
    python examples/reproduce/run.py --book codes --data data/ --output_dir outputs/codes --jobs 2

A book is a folder beside this script: `papers` or `codes`. Its `configs/` has one file for each table or figure: what a
paper prints, where our figure comes from, and whether rate, metric and data can be compared. Its `runs.yaml` has the
trainings, fits and evaluations behind them, with the arguments of both scales. `paper` has the papers' sizes and needs
their data sets and GPUs; `cpu` takes two cores about three hours a book. README.md beside this file says what the
folder DATA holds.

OUTPUT_DIR/runs/NAME is the folder of a run and belongs to its script. NAME.json beside it appears when the run has
ended well, with its command, commit, versions and seconds. Started again, the runner keeps finished runs, training
scripts go on from their last checkpoint, and others begin again. OUTPUT_DIR/page gets results.md, results.json and the
pictures. With --no_data_pictures the page shows none of the data sets' images, whose licences may not allow it.

With --earlier FILE, the results.json of an earlier page, a table of which no run is there is taken from it, and the
others show its figures beside the new ones, under the heading --earlier_title.

Exit code 0: all that was asked for is there. 1: a run failed; NAME.log says why, and all that does not need it is still
made. 2: a mistake in the command.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from importlib import metadata
from pathlib import Path

import yaml
from PIL import Image
from tqdm.auto import tqdm

from diffusers_lasers.commands.scripts import commit_of
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json, write_text
from diffusers_lasers.utils.tables import MISSING, markdown_table


HERE = Path(__file__).resolve().parent
SCALES = ("cpu", "paper")
RUN = re.compile(r"\{run:([\w.-]+)\}")


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--book", default="papers", help="Folder beside this script. Default: papers.")
    add("--scale", choices=SCALES, default="cpu")
    add("--data", type=Path, help="Folder with the data sets.")
    add("--only", nargs="+", metavar="NAME", help="Tables and figures, see --list. Default: all.")
    add("--jobs", type=int, default=1, help="Runs at a time, each on its share of the cores.")
    add("--output_dir", type=Path, default=Path("outputs/reproduce"))
    add("--list", action="store_true", help="List the tables and figures, and stop.")
    add("--dry_run", action="store_true", help="Print the commands, and run nothing.")
    add("--page_only", action="store_true", help="Run nothing; write the page from the runs that are there.")
    add("--earlier", type=Path, help="results.json of an earlier page of the book.")
    add("--earlier_title", default="the page before", help="How its figures are called.")
    add("--no_data_pictures", action="store_true", help="Leave out pictures that show images of the data sets.")
    parser.check(check_at_least, 1, "jobs")
    args = parser.parse_args(input_args)
    books = sorted(path.parent.name for path in HERE.glob("*/runs.yaml"))
    if args.book not in books:
        parser.error(f"--book must be among {', '.join(books)}, got {args.book!r}")
    if args.earlier and not args.earlier.is_file():
        parser.error(f"--earlier must be a file, {str(args.earlier)!r} is none")
    known = set(load_configs(args.book))
    if unknown := [name for name in args.only or () if name not in known]:
        parser.error(f"--only must be among {', '.join(sorted(known))}, got {unknown[0]!r}")
    if not (args.list or args.page_only):
        if args.data is None:
            parser.error("--data is needed: the folder with the data sets that README.md beside this script describes")
        if not args.data.is_dir():
            parser.error(f"--data must be a folder, {str(args.data)!r} is none")
    return args


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_configs(book, names=None):
    """Tables and figures of a book by name."""
    found = {path.stem: load(path) for path in sorted((HERE / book / "configs").glob("*.yaml"))}
    return {name: config for name, config in found.items() if names is None or name in names}


def load_runs(book, scale):
    """Each run's script and arguments: those of its templates, then its own, then the same of the scale."""
    book = load(HERE / book / "runs.yaml")
    runs = {}
    for name, run in book["runs"].items():
        parts = [book["templates"][template] for template in run.get("templates", [])] + [run]
        script = next(part["script"] for part in reversed(parts) if "script" in part)
        words = [part.get(key, "") for key in ("arguments", scale) for part in parts]
        runs[name] = {"script": script, "arguments": shlex.split(" ".join(words))}
    return runs


def needs(run):
    """Runs whose folders a run reads."""
    return [name for word in run["arguments"] for name in RUN.findall(word)]


def wanted(config):
    """Runs whose results or pictures a table or figure shows."""
    found = [row["run"] for row in config.get("rows", []) if "run" in row]
    return list(dict.fromkeys(found + [RUN.match(picture["file"])[1] for picture in config.get("pictures", [])]))


def in_order(names, runs):
    """The runs and all that they need, each after what it needs."""
    order = []

    def visit(name, path=()):
        if name not in runs:
            raise ValueError(f"runs.yaml must have the run {name!r}; it has {', '.join(sorted(runs))}.")
        if name in path:
            raise ValueError(f"runs.yaml must have no circle, {' → '.join((*path, name))} is one.")
        for other in needs(runs[name]):
            visit(other, (*path, name))
        if name not in order:
            order.append(name)

    for name in names:
        visit(name)
    return order


def command(name, run, args):
    """The command line of a run, and the folder that it writes."""
    folder = args.output_dir / "runs" / name

    def fill(word):
        word = word.replace("{data}", str(args.data)).replace("{out}", str(folder))
        word = word.replace("{book}", os.path.relpath(HERE / args.book))
        return RUN.sub(lambda match: str(args.output_dir / "runs" / match[1]), word)

    script = run["script"]
    where = HERE / script if (HERE / script).is_file() else HERE.parent / script
    return [sys.executable, str(where), *map(fill, run["arguments"])], folder


def shown(words):
    """A command as the page shows it: independent of the machine."""
    return " ".join(
        ["python", os.path.relpath(words[1], HERE.parents[1]).replace(os.sep, "/"), *map(shlex.quote, words[2:])]
    )


def record(folder):
    """What the record of a finished run says, or None. It stands beside the run's folder, which is the script's
    alone."""
    path = folder.with_name(f"{folder.name}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def execute(name, run, args):
    """Runs one command into its folder. True if it ended well, or had before."""
    words, folder = command(name, run, args)
    # where data and results lie is no part of what was run
    plain = shown(words).replace(str(args.data), "data").replace(str(args.output_dir), "reproduce")
    before = record(folder)
    if before is not None:
        if before["command"] != plain or before["scale"] != args.scale:
            raise ValueError(
                f"{folder} was made by another command than runs.yaml has now; remove it and {name}.json to run anew: "
                f"{before['command']}"
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    about = {"command": plain, "scale": args.scale, "commit": commit_of(HERE, ":/src", ":/examples")}
    start = time.perf_counter()
    log_file = folder.with_name(f"{name}.log")
    with open(log_file, "a", encoding="utf-8") as log:
        log.write(f"$ {plain}\n")
        log.flush()
        code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        tqdm.write(f"{name} failed with exit code {code}: see {log_file}", file=sys.stderr)
        return False
    about |= {
        "seconds": round(time.perf_counter() - start, 1),
        "threads": int(environment["OMP_NUM_THREADS"]),
        "versions": {package: metadata.version(package) for package in ("diffusers_lasers", "diffusers", "torch")},
        "python": platform.python_version(),
    }
    write_json(folder.with_name(f"{name}.json"), about)
    return True


def execute_all(order, runs, args):
    """Runs everything, `--jobs` at a time, each after what it needs. Names of runs that failed, or whose needs did."""
    done, failed, running, left = set(), [], {}, list(order)
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(order), desc="Runs") as bar:
        while left or running:
            for name in list(left):
                if any(other in failed for other in needs(runs[name])):
                    tqdm.write(f"{name} is left out: it needs a run that failed", file=sys.stderr)
                    failed.append(name)
                    left.remove(name)
                    bar.update()
                elif len(running) < args.jobs and done.issuperset(needs(runs[name])):
                    running[pool.submit(execute, name, runs[name], args)] = name
                    left.remove(name)
            bar.set_postfix_str(", ".join(running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                name = running.pop(future)
                if future.result():
                    done.add(name)
                else:
                    failed.append(name)
                bar.update()
    return failed


def find_row(row, runs_folder):
    """Our entry for a row of a table, or None where its run is missing."""
    folder = runs_folder / row["run"]
    if record(folder) is None:
        return None
    entry = json.loads((folder / row.get("file", "results.json")).read_text(encoding="utf-8"))
    for key in row.get("path", []):
        entry = entry[key]
    if "where" in row:
        found = [item for item in entry if all(item.get(key) == value for key, value in row["where"].items())]
        if len(found) != 1:
            raise ValueError(
                f"{row['label']!r}: {row['where']} must be one entry of {row['run']}, it is {len(found)}."
            )
        entry = found[0]
    return entry


def table(config, runs_folder):
    """Entries of a table: (label, {column: (printed, ours)})."""
    rows = []
    for row in config.get("rows", []):
        entry = find_row(row, runs_folder) if "run" in row else None
        cells = {}
        for column in config["columns"]:
            value = None if entry is None else entry.get(column["key"])
            if value is not None:
                value = value * column.get("times", 1)
            cells[column["title"]] = [row.get("printed", {}).get(column["title"]), value]
        rows.append({"label": row["label"], "cells": cells, "run": row.get("run")})
    return rows


def add_earlier(rows, earlier, missing):
    """Puts an earlier page's figures beside those of a table's rows, or in their place where its runs are missing."""
    before = {row["label"]: row["cells"] for row in earlier}
    for row in rows:
        for title, cell in row["cells"].items():
            value = before.get(row["label"], {}).get(title, [None, None])[1]
            if missing:
                cell[1] = value
            else:
                cell.append(value)


def config_table(config, rows, earlier_title):
    """The Markdown table of a configuration: of each column the printed, earlier and new figures where there are."""
    formats = {column["title"]: column.get("format", ".2f") for column in config["columns"]}
    heads = []
    for title in formats:
        cells = [row["cells"][title] for row in rows]
        printed, ours, earlier = (
            any(len(cell) > which and cell[which] is not None for cell in cells) for which in range(3)
        )
        if printed:
            heads.append((title, 0, f"{title}, printed"))
        if earlier and any(len(cell) > 2 and cell[2] != cell[1] for cell in cells):
            heads.append((title, 2, f"{title}, {earlier_title}"))
        if ours or not printed:
            heads.append((title, 1, f"{title}, ours" if printed else title))

    def cell(value, title):
        return MISSING if value is None else value if isinstance(value, str) else format(value, formats[title])

    cells = [[row["label"], *(cell(row["cells"][title][which], title) for title, which, _ in heads)] for row in rows]
    return markdown_table(["", *(head for _, _, head in heads)], cells)


def copy_picture(source, target, limit=1200):
    """A picture of the page, at most `limit` pixels wide, in 256 colours: the page is committed."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
    if picture.width > limit:
        picture = picture.resize((limit, round(picture.height * limit / picture.width)), Image.Resampling.LANCZOS)
    save_image(target, picture.quantize(256))


def write_page(configs, args):
    """results.md, results.json and the pictures of all that is there."""
    folder, runs_folder = args.output_dir / "page", args.output_dir / "runs"
    earlier = json.loads(args.earlier.read_text(encoding="utf-8")) if args.earlier else {"tables": {}, "runs": {}}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page = load(HERE / args.book / "runs.yaml")["page"]
    script = "python examples/reproduce/run.py" + (f" --book {args.book}" if args.book != "papers" else "")
    lines = [
        f"# {page['title']}",
        "",
        f"Made by `{script} --scale {args.scale} --data data/`; no figure here was typed. {page['about'].strip()}",
    ]
    if args.scale in page:
        lines += ["", page[args.scale].strip()]
    results, used, taken = {}, {}, set()
    for name, config in configs.items():
        rows = table(config, runs_folder)
        kept = name in earlier["tables"] and not any(record(runs_folder / run) for run in wanted(config))
        if name in earlier["tables"]:
            add_earlier(rows, earlier["tables"][name]["rows"], kept)
        lines += ["", f"## {config['title']}", "", config["about"].strip()]
        if rows:
            lines += ["", config_table(config, rows, args.earlier_title)]
        if kept:
            lines += ["", f"No run behind this was repeated since the page before ({args.earlier_title})."]
        comparable = config["comparable"]
        lines += [""] + [f"- {what.capitalize()}: {comparable[what].strip()}" for what in ("rate", "metric", "data")]
        for picture in config.get("pictures", []):
            if args.no_data_pictures and picture.get("data"):
                continue
            run = RUN.match(picture["file"])[1]
            source = runs_folder / run / RUN.sub("", picture["file"]).lstrip("/")
            target = f"{run}-{source.stem}.png"
            found = source.is_file() and record(runs_folder / run) is not None
            if found:
                copy_picture(source, folder / target)
            elif kept and (picture_before := args.earlier.with_name(target)).is_file():
                found = True
                shutil.copyfile(picture_before, folder / target)
            if found:
                lines += ["", f"![{picture['caption']}]({target})", "", f"*{picture['caption']}*"]
        if config.get("missing"):
            lines += ["", f"Not reproduced: {config['missing'].strip()}"]
        results[name] = {"title": config["title"], "comparable": comparable, "rows": rows}
        for run in wanted(config):
            used[run] = record(runs_folder / run)
            taken |= {run} if kept else set()
    lines += ["", "## Runs", ""]
    runs = load_runs(args.book, args.scale)
    taken = set(in_order(list(taken), runs))
    for name in in_order(list(used), runs):
        about = record(runs_folder / name)
        if about is None and name in taken:
            about = earlier["runs"].get(name)
        used[name] = about
        if about is None:
            lines.append(f"- `{name}` is missing.")
            continue
        took = f"{about['seconds']:.0f} s on {about['threads']} thread(s), commit `{about['commit']}`"
        lines.append(f"- `{name}`: {took}: `{about['command']}`")
    write_text(folder / "results.md", "\n".join(lines) + "\n")
    write_json(folder / "results.json", {"scale": args.scale, "tables": results, "runs": used})
    return folder


def main(args):
    configs = load_configs(args.book, args.only)
    if args.list:
        for name, config in configs.items():
            print(f"{name}: {config['title']}")
        return 0
    runs = load_runs(args.book, args.scale)
    order = in_order([run for config in configs.values() for run in wanted(config)], runs)
    if args.dry_run:
        for name in order:
            print(f"{name}: {shown(command(name, runs[name], args)[0])}")
        return 0
    failed = [] if args.page_only else execute_all(order, runs, args)
    print(f"Page: {write_page(configs, args) / 'results.md'}")
    return 1 if failed else 0


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        return main(args)
    except (ValueError, ImportError, OSError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(cli())
