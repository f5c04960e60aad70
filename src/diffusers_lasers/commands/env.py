"""`env`: what a bug report or a timing needs: versions, device, threads."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform


PACKAGES = (
    "diffusers_lasers",
    "diffusers",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "Pillow",
    "scikit-image",
    "torchmetrics",
    "flip-evaluator",
    "vector-quantize-pytorch",
    "faiss-cpu",
)


def package_version(name: str) -> str:
    """Version of an installed distribution, or `"not installed"`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """
    Versions, device and threads, as text.

    Returns:
        `dict[str, str]`: In the order of printing.
    """
    import torch

    facts = {"platform": platform.platform(), "python": platform.python_version()}
    facts.update({name: package_version(name) for name in PACKAGES})
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        facts["device"] = f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    elif torch.backends.mps.is_available():
        facts["device"] = "mps"
    else:
        facts["device"] = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
    facts["cpu cores"] = str(os.cpu_count())
    facts["torch threads"] = f"{torch.get_num_threads()} (between operators {torch.get_num_interop_threads()})"
    facts["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "not set")
    return facts


class EnvironmentCommand:
    name = "env"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "env",
            help="print versions, device and threads",
            description=__doc__,
            epilog="example: diffusers-lasers env --json > environment.json",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(command=EnvironmentCommand)

    def __init__(self, args: argparse.Namespace):
        self.json = args.json

    def run(self) -> None:
        facts = environment()
        lines = (f"{name}: {value}" for name, value in facts.items())
        print(json.dumps(facts, indent=2) if self.json else "\n".join(lines))
