"""`inspect`: a saved model's configuration, parameters, files, rate, dictionary or codebooks; and pictures of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loading import CODERS, PIPELINE, add_model_arguments, load_model, read_config


if TYPE_CHECKING:
    from torch import nn

EXAMPLE = """example:
  diffusers-lasers inspect outputs/dl --save pictures/
  diffusers-lasers inspect path/to/pipeline --subfolder vae --json
"""
OTHERS = ("CategoricalUNet2DModel", "FactorizedPrior", "LatentRefiner", "PatchDiscriminator", "PerceptualSimilarity")


class InspectCommand:
    name = "inspect"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "inspect",
            help="print what a saved model is",
            description=__doc__,
            epilog=EXAMPLE,
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
            from .loading import get_device

            bases = ("Bottleneck", "IndexBottleneck")
            kinds = tuple(name for name in bottlenecks.__all__ if name.endswith("Bottleneck") and name not in bases)
            model = load_model(*place, get_device(args.device), CODERS + kinds + OTHERS)
            facts = {
                "class": type(model).__name__,
                "config": {name: value for name, value in config.items() if not name.startswith("_")},
                "parameters": sizes(model),
                **(model.summary() if hasattr(model, "summary") else {}),
                "files": file_sizes(folder),
            }
            if args.save is not None:
                facts["pictures"] = save_pictures(model, Path(args.save), args.map)
        if args.json:
            print(json.dumps(facts, indent=2, default=str))
        else:
            print("\n".join(render(facts)))


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a folder, without its subfolders."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def sizes(model: nn.Module) -> dict[str, Any]:
    """Numbers of learned parameters, and of these and buffers, in all and by part."""
    parts = {name: _count(part) for name, part in model.named_children()}
    own = {name: value.numel() for name, value in model.named_parameters(recurse=False)}
    own |= {name: value.numel() for name, value in model.named_buffers(recurse=False)}
    return {"learned": sum(p.numel() for p in model.parameters()), "all": _count(model), "parts": parts | own}


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in (*module.parameters(), *module.buffers()))


def save_pictures(model: nn.Module, folder: Path, method: str) -> list[str]:
    """
    Writes the pictures that a model makes of itself.

    Args:
        model (`torch.nn.Module`): The model.
        folder (`Path`): Where to; made if it is missing.
        method (`str`): `"pca"` or `"umap"`: how atoms are laid out.

    Returns:
        `list[str]`: The files.

    Raises:
        ValueError: If the model makes none. ImportError: If matplotlib or umap-learn is missing.
    """
    from PIL import Image

    from ..utils.files import save_image
    from ..visualization import save_figure

    pictures = model.pictures(method) if hasattr(model, "pictures") else {}
    if not pictures:
        raise ValueError(f"This {type(model).__name__} has no dictionary and no codebook to make pictures of.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if isinstance(picture, Image.Image):
            save_image(folder / name, picture)
        else:
            save_figure(picture, folder / name)
    return [str(folder / name) for name in pictures]


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
