"""The pictures of `inspect --save`: atoms or codewords as tiles, how alike they are, where they lie, how they were used."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..models.bottlenecks import DictionaryBottleneck
from ..models.codecs import ModelBasedVQCodec
from ..utils.files import save_image
from ..visualization import atom_map, atom_tiles, coherence_histogram, save_figure, usage_histogram
from .describe import saved_usage


def save_pictures(model: nn.Module, folder: Path, method: str) -> list[str]:
    """
    Writes what can be seen of a model.

    Args:
        model (`torch.nn.Module`): An autoencoder, a bottleneck or a codec.
        folder (`Path`): Where to; made if it is missing.
        method (`str`): `"pca"` or `"umap"`: how atoms are laid out.

    Returns:
        `list[str]`: The files.

    Raises:
        ValueError: If there is nothing to see. ImportError: If matplotlib or umap-learn is missing.
    """
    images, figures = {}, {}
    if isinstance(model, ModelBasedVQCodec):
        for channel, words in codeword_patches(model).items():
            side = model.config.patch_size
            images[f"codewords_{channel}.png"] = atom_tiles(words, (side, side))
    else:
        bottleneck = getattr(model, "bottleneck", model)
        if isinstance(bottleneck, DictionaryBottleneck):
            dictionary = bottleneck.dictionary.detach().float()
            images["atoms.png"] = atom_tiles(dictionary)
            if dictionary.shape[1] > 1:
                figures["coherence.png"] = coherence_histogram(dictionary)
            if dictionary.shape[1] > 3:
                figures["atom_map.png"] = atom_map(dictionary, method=method)
        elif hasattr(bottleneck, "codebook"):
            usage = saved_usage(bottleneck)
            for stage, book in enumerate(bottleneck.codebook.float(), 1):
                counts = None if usage is None else usage[stage - 1]
                images[f"codewords_{stage}.png"] = atom_tiles(book.t(), usage=counts)
                if len(book) > 3:
                    figures[f"codeword_map_{stage}.png"] = atom_map(book.t(), counts, method)
                if counts is not None:
                    figures[f"usage_{stage}.png"] = usage_histogram(counts)
    if not images:
        raise ValueError(f"This {type(model).__name__} has no dictionary and no codebook to make pictures of.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in images.items():
        save_image(folder / name, picture)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [str(folder / name) for name in (*images, *figures)]


def codeword_patches(codec: ModelBasedVQCodec) -> dict[str, torch.Tensor]:
    """All codewords of a channel as what they add to a patch, `(s², slots · K)`: product quantisers' pieces in their places and turned back."""
    features, patches = codec.config.patch_size**2, {}
    for channel, book in codec.codebooks.items():
        slots, codewords, width = book.shape
        full = book.new_zeros(slots, codewords, features, dtype=torch.float32)
        for slot in range(slots):
            start = 0 if width == features else slot * width
            full[slot, :, start : start + width] = book[slot]
        rotation = codec.rotation(channel)
        full = full if rotation is None else full @ rotation
        patches[channel] = full.flatten(0, 1).t()
    return patches
