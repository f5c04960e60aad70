"""Prints what a bug report or a timing needs: versions, device, threads.

python utils/print_env.py [--json]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys


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
    "constriction",
)


def package_version(name: str) -> str:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    facts = environment()
    print(json.dumps(facts, indent=2) if as_json else "\n".join(f"{name}: {value}" for name, value in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
