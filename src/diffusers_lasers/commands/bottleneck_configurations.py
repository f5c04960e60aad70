"""Bottlenecks from short texts, such as `dictionary:K=1024,S=3,bits=6,pursuit=ols` or `rvq:K=256,D=8`.

K is the number of atoms or codewords, S the atoms a site, D the stages of a residual quantiser, p the side of a site in
latent positions. `klt` quantises principal axes by one step, `float` stores latents in half precision.
"""

from __future__ import annotations

from typing import Any

from ..models.bottlenecks import (
    Bottleneck,
    DictionaryBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)


DEFAULTS = {
    "dictionary": {"K": 1024, "S": 2, "p": 1, "bits": 6, "pursuit": "omp", "scale": "depth", "tolerance": None},
    "vq": {"K": 1024, "p": 1},
    "rvq": {"K": 256, "D": 4, "p": 1, "beam": 8},
    "fsq": {"levels": 5, "channels": 8, "p": 1},
    "scalar": {"bits": 8, "p": 1},
    "klt": {"step": 0.5, "p": 1, "bits": 10},
    "float": {"bits": 16, "p": 1},
}


def parse_configuration(text: str) -> dict[str, Any]:
    """`KIND:NAME=VALUE,…`, with kind and names of `DEFAULTS`, as a dict with `kind` and all of the kind's settings."""
    kind, _, rest = text.partition(":")
    if kind not in DEFAULTS:
        raise ValueError(f"a configuration must begin with one of {', '.join(DEFAULTS)}, got {text!r}")
    settings = {"kind": kind, **DEFAULTS[kind]}
    types = {"pursuit": str, "scale": str, "step": float, "tolerance": float}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if name not in DEFAULTS[kind]:
            raise ValueError(f"a configuration of {kind} has {', '.join(DEFAULTS[kind])}, got {name!r} in {text!r}")
        try:
            settings[name] = types.get(name, int)(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r} in {text!r}") from None
    if kind == "float" and (settings["bits"], settings["p"]) != (16, 1):
        raise ValueError(f"a configuration of float has bits=16 and p=1 only, got {text!r}")
    return settings


def label(settings: dict[str, Any]) -> str:
    """A configuration in short, without what is at its default."""
    kind, default = settings["kind"], DEFAULTS[settings["kind"]]
    if kind in ("scalar", "float"):
        name = f"{'int' if kind == 'scalar' else 'float'}{settings['bits']}"
        return name + (f" p={settings['p']}" if settings["p"] > 1 else "")
    always = ("K", "S", "D", "levels", "channels", "step")
    shown = [name for name in default if name in always or settings[name] != default[name]]
    return kind + "".join(f" {name}={settings[name]}" for name in shown)


def family(settings: dict[str, Any]) -> str:
    """The curve of a rate-distortion figure that a configuration belongs to."""
    return f"dictionary, {settings['pursuit']}" if settings["kind"] == "dictionary" else settings["kind"]


def build(settings: dict[str, Any], channels: int) -> Bottleneck:
    """The bottleneck of a configuration for latents of so many channels, not fitted yet."""
    kind, shared = settings["kind"], {"latent_channels": channels, "patch_size": settings["p"]}
    if kind == "float":
        return IdentityBottleneck(channels)
    if kind == "dictionary":
        return DictionaryBottleneck(
            num_atoms=settings["K"],
            sparsity=settings["S"],
            coefficient_bits=settings["bits"] or None,
            coefficient_scaling=settings["scale"],
            pursuit=settings["pursuit"],
            tolerance=settings["tolerance"],
            **shared,
        )
    if kind == "vq":
        return VectorQuantizerBottleneck(num_codewords=settings["K"], **shared)
    if kind == "rvq":
        sizes = {"num_codewords": settings["K"], "depth": settings["D"], "beam_size": settings["beam"]}
        return ResidualVQBottleneck(**sizes, **shared)
    if kind == "fsq":
        return FSQBottleneck(levels=(settings["levels"],) * settings["channels"], **shared)
    transform, step = ("klt", settings["step"]) if kind == "klt" else (None, None)
    return ScalarQuantizerBottleneck(bits=settings["bits"], transform=transform, step=step, **shared)
