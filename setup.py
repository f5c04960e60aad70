"""Packaging of diffusers_lasers.

Every dependency stands once, with its bounds, in `_deps`; the extras below name packages only.
`requirements/constraints.txt` holds the exact versions that the tests were run with.
"""

import re
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup


ROOT = Path(__file__).parent

_deps = [
    "accelerate>=1.0",
    "bitsandbytes>=0.45",
    "constriction>=0.4",
    "datasets>=3.0",
    "diffusers>=0.42,<0.43",  # LOADABLE_CLASSES is not public API, see utils/registration.py
    "faiss-cpu>=1.8",
    "filelock>=3.13",
    "flip-evaluator>=1.4",
    "gradio>=6.0",
    "hf-doc-builder>=0.5.0",
    "huggingface_hub>=1.32,<3.0",
    "hypothesis>=6.100",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "orthogonal-matching-pursuit-gpu>=0.1.3",
    "Pillow>=11.3",  # AVIF
    "pillow-jxl-plugin>=1.3",
    "playwright>=1.50",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "safetensors>=0.8",
    "scikit-image>=0.22",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "spams-bin>=2.6.14",
    "tensorboard>=2.15",
    "torch>=2.6",
    "torchmetrics>=1.4",
    "tqdm>=4.60",
    "transformers>=4.50",
    "umap-learn>=0.5.6",
    "vector-quantize-pytorch>=1.32",
]

# name -> requirement, e.g. "torch" -> "torch>=2.6"
deps = {re.match(r"[A-Za-z0-9_.-]+", requirement)[0]: requirement for requirement in _deps}


def deps_list(*names):
    return [deps[name] for name in names]


extras = {
    "8bit": deps_list("bitsandbytes"),
    "training": deps_list("datasets", "scikit-image", "tensorboard", "tqdm"),
    "metrics": deps_list("datasets", "flip-evaluator", "scikit-image", "torchmetrics", "tqdm"),
    "codec": deps_list("faiss-cpu", "tqdm"),
    "entropy": deps_list("constriction"),
    "quantizers": deps_list("vector-quantize-pytorch"),
    "benchmark": deps_list(
        "matplotlib",
        "orthogonal-matching-pursuit-gpu",
        "pillow-jxl-plugin",
        "scikit-image",
        "scikit-learn",
        "spams-bin",
        "tqdm",
    ),
    "stable-diffusion": deps_list("transformers"),
    "visualization": deps_list("matplotlib", "scipy", "umap-learn"),
    # what `make demo` needs, and no development tool
    "demo": deps_list("constriction", "datasets", "matplotlib", "scikit-image", "torchmetrics", "tqdm"),
    "docs": deps_list("hf-doc-builder"),
    "quality": deps_list("ruff"),
}
extras["app"] = [
    *deps_list("gradio"),
    *extras["training"],
    *extras["metrics"],
    *extras["codec"],
    *extras["entropy"],
    *extras["visualization"],
]
extras["test"] = [
    *deps_list("gradio", "hypothesis", "playwright", "pytest", "pytest-xdist", "scikit-learn", "scipy"),
    *extras["quantizers"],
    *extras["entropy"],
    *extras["training"],
    *extras["metrics"],
    *extras["codec"],
    *extras["benchmark"],
    *extras["stable-diffusion"],
    *extras["visualization"],
]
extras["dev"] = [*extras["test"], *extras["quality"], *extras["docs"]]

init = (ROOT / "src/diffusers_lasers/__init__.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)[1]

# Sparse coding on the CPU, in plain C. Optional: without a compiler the package installs and computes with torch alone.
# One build serves every Python from 3.10 on by the stable ABI, which free-threaded ones (3.13t, 3.14t) do not have:
# they get builds of their own.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
CSRC = "src/diffusers_lasers/csrc"
kernels = Extension(
    "diffusers_lasers.functional.kernels._kernels",
    sources=[f"{CSRC}/kernels.c"],
    depends=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CSRC).glob("*.h")),
    extra_compile_args=["-O3", "-pthread"],
    extra_link_args=["-pthread"],
    define_macros=[("Py_LIMITED_API", "0x030A0000")] if STABLE_ABI else [],
    py_limited_api=STABLE_ABI,
    optional=True,
)

setup(
    name="diffusers_lasers",
    version=version,
    description="Structured latent codes for diffusers: dictionary codes and the codes to compare them with, "
    "with the bits they cost",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords="diffusers autoencoder latent dictionary-learning sparse-coding vector-quantization compression",
    license="Apache-2.0",
    license_files=["LICENSE"],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"diffusers_lasers": ["py.typed"]},
    entry_points={"console_scripts": ["diffusers-lasers=diffusers_lasers.commands.cli:main"]},
    ext_modules=[kernels],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
    include_package_data=True,
    python_requires=">=3.10.0",
    # accelerate: without it diffusers loads no model that keeps modules in float32, as ours do
    install_requires=deps_list(
        "torch", "diffusers", "accelerate", "filelock", "huggingface_hub", "safetensors", "numpy", "Pillow"
    ),
    extras_require=extras,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
