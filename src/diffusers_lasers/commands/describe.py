"""What `inspect` says of a loaded model, as a dictionary that JSON can hold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..functional import mutual_coherence, perplexity, score_order, similar_atoms, welch_bound
from ..functional.quantisers.ordering import codebook_order
from ..models.autoencoders.autoencoder_dl import AutoencoderDL
from ..models.bottlenecks import Bottleneck, DictionaryBottleneck
from ..models.codecs import ModelBasedVQCodec


SIMILAR = 0.99  # least inner product of atoms that count as near-duplicates


def model_facts(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """
    Facts on a model of this package.

    Args:
        model (`torch.nn.Module`): The loaded model.
        config (`dict`): What its `config.json` holds.

    Returns:
        `dict[str, Any]`: Class, config, parameters, and what its kind has: rate, dictionary, codebooks.
    """
    facts = {
        "class": type(model).__name__,
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "parameters": sizes(model),
    }
    if isinstance(model, AutoencoderDL):
        facts |= autoencoder_facts(model)
    elif isinstance(model, Bottleneck):
        facts["bottleneck"] = bottleneck_facts(model)
    elif isinstance(model, ModelBasedVQCodec):
        facts["codec"] = codec_facts(model)
    return facts


def sizes(model: nn.Module) -> dict[str, Any]:
    """Numbers of learned parameters, and of buffers, in all and by part."""
    parts = {name: _count(part) for name, part in model.named_children()}
    own = {name: value.numel() for name, value in model.named_parameters(recurse=False)}
    own |= {name: value.numel() for name, value in model.named_buffers(recurse=False)}
    return {"learned": sum(p.numel() for p in model.parameters()), "all": _count(model), "parts": parts | own}


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in (*module.parameters(), *module.buffers()))


def autoencoder_facts(model: AutoencoderDL) -> dict[str, Any]:
    """Geometry and rate of an autoencoder, and its bottleneck."""
    size = model.config.sample_size
    factor, patch = model.downsampling_factor, model.bottleneck.patch_size
    rate = {
        "downsampling_factor": factor,
        "pixels_per_site": f"{factor * patch} × {factor * patch}",
        "sample_size": size,
        "bits_per_pixel": model.bits_per_pixel(size, size),
        "compression_ratio": 24 / model.bits_per_pixel(size, size),
    }
    return {"rate": rate, "bottleneck": {"type": model.config.bottleneck_type} | bottleneck_facts(model.bottleneck)}


def bottleneck_facts(bottleneck: Bottleneck) -> dict[str, Any]:
    """Rate and geometry of a bottleneck, and how its symbols were used in training where it keeps that."""
    facts: dict[str, Any] = {
        "bits_per_site": bottleneck.bits_per_site,
        "site": f"{bottleneck.patch_size} × {bottleneck.patch_size} latent positions",
        "features": bottleneck.patch_size**2 * bottleneck.config.latent_channels,
        "symbols": bottleneck.num_symbols,
    }
    if bottleneck.levels:
        facts["slots"] = len(bottleneck.levels)
    shift, scale = bottleneck.latent_shift, bottleneck.latent_scale
    facts["latent_statistics"] = bool((shift != 0).any() or (scale != 1).any())
    if isinstance(bottleneck, DictionaryBottleneck):
        facts["slots"] = bottleneck.config.sparsity
        facts["coefficient_scale"] = [float(value) for value in bottleneck.coefficient_scale]
        facts["dictionary"] = dictionary_facts(bottleneck.dictionary.detach().float())
    usage = saved_usage(bottleneck)
    if usage is not None:
        facts["usage_in_training"] = {
            "perplexity_of_each_stage": [float(perplexity(row)) for row in usage],
            "smallest_share": float((usage / usage.sum(dim=1, keepdim=True)).min()),
        }
    return facts


def saved_usage(bottleneck: Bottleneck) -> torch.Tensor | None:
    """Running counts `(stages, K)` of a codebook; `None` for other bottlenecks, and before any training."""
    counts = getattr(bottleneck, "counts", None)
    return None if counts is None or bool((counts == counts.flatten()[0]).all()) else counts


def dictionary_facts(dictionary: torch.Tensor) -> dict[str, Any]:
    """Geometry of a dictionary `(features, K)`."""
    features, atoms = dictionary.shape
    norms = dictionary.norm(dim=0)
    return {
        "atoms": atoms,
        "features": features,
        "coherence": float(mutual_coherence(dictionary)),
        "welch_bound": welch_bound(features, atoms),
        "smallest_norm": float(norms.min()),
        "largest_norm": float(norms.max()),
        "near_duplicates": int(similar_atoms(dictionary, SIMILAR).sum()),
        "near_duplicates_from": SIMILAR,
    }


def codec_facts(codec: ModelBasedVQCodec) -> dict[str, Any]:
    """Notation, slots, rate and order of a patch codec."""
    side = codec.config.patch_size
    fitted = bool(codec.fitted.all())
    facts: dict[str, Any] = {
        "notation": codec.notation,
        "fitted": fitted,
        "pixels_per_patch": f"{side} × {side}",
        "slots": len(codec.slot_bits),
        "bits_of_slots": list(codec.slot_bits),
        "bits_per_patch": sum(codec.config.bits),
        "bits_per_pixel": sum(codec.config.bits) / side**2,
        "compression_ratio": codec.compression_ratio,
    }
    if fitted:
        books = [book.float() for book in codec.codebooks.values()]
        facts["order"] = _order([book for stack in books for book in stack])
        scores = [score_order(book).neighbour_distance for book in (stack[0] for stack in books) if len(book) > 1]
        facts["neighbour_distance"] = [score for score in scores if math.isfinite(score)]
    return facts


def _order(books: list[torch.Tensor]) -> str:
    """Which of the orders that are computed at once all sub-codebooks stand in."""
    for kind in ("pca", "norm"):
        if all(torch.equal(codebook_order(book, kind), torch.arange(len(book), device=book.device)) for book in books):
            return kind
    return "another"
