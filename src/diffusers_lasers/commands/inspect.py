"""`inspect`: what a saved model is: configuration, parameters, files, rate, dictionary or codebooks; and pictures of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .loading import CODERS, PIPELINE, add_model_arguments, load_model, read_config


EXAMPLE = """example:
  diffusers-lasers inspect outputs/dl --save pictures/
  diffusers-lasers inspect path/to/pipeline --subfolder vae --json
"""
OTHERS = ("CategoricalUNet2DModel", "LatentRefiner", "PatchDiscriminator", "PerceptualSimilarity")


class InspectCommand:
    name = "inspect"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "inspect",
            help="print what a saved model is",
            description=__doc__,
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_model_arguments(parser, positional=True)
        parser.add_argument(
            "--save",
            metavar="FOLDER",
            help="write pictures of atoms or codewords, coherence and usage; made if it is missing",
        )
        parser.add_argument(
            "--map", choices=["pca", "umap"], default="pca", help="how --save lays atoms out in a plane; default: pca"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(command=InspectCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        args = self.args
        place = (args.model, args.subfolder, args.revision)
        config, folder = read_config(*place)
        if (folder / PIPELINE).is_file() and not (folder / "config.json").is_file():
            if args.save is not None:
                raise ValueError(f"--save is for models, {args.model} is a pipeline: name a part with --subfolder.")
            facts = pipeline_facts(config, folder)
        else:
            from ..models import bottlenecks
            from .describe import model_facts
            from .loading import get_device

            bases = ("Bottleneck", "IndexBottleneck")
            kinds = tuple(name for name in bottlenecks.__all__ if name.endswith("Bottleneck") and name not in bases)
            model = load_model(*place, get_device(args.device), CODERS + kinds + OTHERS)
            facts = model_facts(model, config) | {"files": file_sizes(folder)}
            if args.save is not None:
                from .pictures import save_pictures

                facts["pictures"] = save_pictures(model, Path(args.save), args.map)
        if args.json:
            print(json.dumps(facts, indent=2, default=str))
        else:
            print("\n".join(render(facts)))


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a folder, without its subfolders."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def pipeline_facts(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A pipeline's class and components, each with library, class, and bytes where its folder is on this disk."""
    components = {}
    for name, value in sorted(config.items()):
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_"):
            library, kind = value
            part = folder / name
            size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) if part.is_dir() else None
            components[name] = None if kind is None else {"class": kind, "library": library, "bytes": size}
    return {"class": config["_class_name"], "components": components, "files": file_sizes(folder)}


def render(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Facts as indented lines."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *render(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)
