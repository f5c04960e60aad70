"""What examples/app.py shows, computed without a page: pictures and figures of an image, a model, a sparsity and bits.

A model encodes a picture once, to its latents and to the code of the model's own sparsity with float coefficients. A
sparsity s and n bits a coefficient are then a truncation and a quantisation of that code, because greedy codes are
nested. Nothing here changes a model: n bits are set in a shallow copy of the bottleneck, which shares the weights and
has a configuration of its own, so that visitors do not change each other's bits. Figures compare reconstructions
clamped to [-1, 1], not rounded, with the picture.
"""

import copy
import hashlib
import io
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from diffusers_lasers import AutoencoderDL, ModelBasedVQCodec
from diffusers_lasers.coding import Code
from diffusers_lasers.commands.image_io import to_tensor
from diffusers_lasers.commands.picture_formats import best_file, encode_picture
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.metrics import CodeRate, flip_map
from diffusers_lasers.models.bottlenecks import Bottleneck
from diffusers_lasers.models.priors import FactorizedPrior
from diffusers_lasers.utils.image_sources import UnreadableImageError, to_rgb
from diffusers_lasers.visualization import atom_tiles, support_map


SMALLEST_SIDE = 16
MOST_PIXELS = 50_000_000  # of an upload, before it is scaled
MOST_SCANS = 100  # of a JPEG: each is a pass over all pixels, and a few bytes may hold one
FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow's other decoders are not for files of strangers
GREEDY = ("omp", "ols")  # pursuits whose codes are nested
JPEG_QUALITIES = (1, 3, 6, 10, 15, 25, 40, 55, 70, 80, 90, 95)


class PictureError(ValueError):
    """What is wrong with an upload, in a sentence for its owner."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upload as the models see it; `key` names its pixels, `note` says what was done to it."""

    image: Image.Image
    pixels: torch.Tensor  # (1, 3, H, W) in [-1, 1]
    key: str
    note: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.pixels.shape[-2:])


def read_picture(source: str | bytes, max_side: int, name: str | None = None) -> Picture:
    """
    A picture, scaled so that its longer side is at most `max_side`.

    Args:
        source (`str` or `bytes`): A PNG, JPEG or WebP file of ours, or what an upload holds.
        max_side (`int`): In pixels.
        name (`str`, *optional*): How errors call it.

    Raises:
        PictureError: If it is no such picture, too small, or takes too much to decode.
    """
    name = name or ("The picture" if isinstance(source, bytes) else Path(source).name)
    name = name if len(name) <= 80 else name[:79] + "…"
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                most = MOST_PIXELS // 10**6
                raise PictureError(
                    f"“{name}” has {width} × {height} pixels, more than the {most} million that are read here."
                )
            if opened.format in ("JPEG", "MPO") and jpeg_scans(data) > MOST_SCANS:
                raise PictureError(f"“{name}” is a JPEG of more than the {MOST_SCANS} scans that are decoded here.")
            image = to_rgb(opened, name)
    except PictureError:
        raise
    except (UnreadableImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"“{name}” cannot be read as a picture: give a PNG, JPEG or WebP file.") from error
    width, height = image.size
    scale = min(1.0, max_side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if min(size) < SMALLEST_SIDE:
        scaled = f", {size[0]} × {size[1]} after scaling to a side of {max_side}" if scale < 1 else ""
        raise PictureError(
            f"“{name}” is too small: it has {width} × {height} pixels{scaled}, and each side needs at least "
            f"{SMALLEST_SIDE}."
        )
    note = f"{width} × {height} pixels"
    if scale < 1:
        image = image.resize(size, Image.Resampling.LANCZOS)
        note = (
            f"{size[0]} × {size[1]} pixels, scaled from {width} × {height}: the longer side is at most {max_side} here"
        )
    array = np.array(image)
    key = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    return Picture(image, to_tensor(image), key, note)


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG file has, until they are too many: marker after marker, to the end of its first image."""
    scans, at = 0, 2
    while scans <= MOST_SCANS and 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker <= 1 or 0xD0 <= marker <= 0xD8:  # of the coded data
            at += 2
        else:
            scans += marker == 0xDA
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


# Codes of autoencoders


@dataclass(frozen=True)
class Controls:
    """What a model's code leaves to choose. A reason stands where there is no choice."""

    sparsity: int  # the model's own; 1 where it has none
    bits: int | None  # its own, `None` for floats
    no_sparsity: str = ""
    no_bits: str = ""


def describe(model: AutoencoderDL) -> str:
    """The bottleneck in a few words."""
    config, kind = model.bottleneck.config, model.config.bottleneck_type
    if kind == "dictionary":
        bits = config.coefficient_bits
        kind_of_bits = "float" if bits is None else f"{bits}-bit"
        return f"dictionary, {config.sparsity} of {config.num_atoms} atoms, {kind_of_bits} coefficients"
    if kind == "fsq":
        return f"FSQ, {len(config.levels)} values of {'/'.join(map(str, sorted(set(config.levels))))} levels"
    if kind == "scalar":
        return f"scalar, {config.bits} bits a value"
    if kind == "residual_vq":
        return f"residual VQ, {model.bottleneck.depth} × {config.num_codewords} codewords"
    return f"VQ, {config.num_codewords} codewords"


def controls(model: AutoencoderDL) -> Controls:
    """What can be chosen for a model's code without training it again."""
    bottleneck, kind = model.bottleneck, describe(model).split(",")[0]
    if bottleneck.slot_scales is None:  # no coefficients
        return Controls(
            1,
            None,
            f"Not for {kind}: only a dictionary's code has a number of atoms a site that can be lowered.",
            f"Not for {kind}: its code is indices alone, without coefficients.",
        )
    config, reason = bottleneck.config, ""
    if config.pursuit not in GREEDY:
        reason = (
            f"Not for this model: its codes, made by {config.pursuit}, are not nested as those of a greedy pursuit."
        )
    elif config.sparsity == 1:
        reason = "Not for this model: it has one atom a site."
    return Controls(config.sparsity, config.coefficient_bits, reason)


def at_bits(bottleneck: Bottleneck, bits: int | None) -> Bottleneck:
    """The same bottleneck, weights shared, with coefficients of so many bits; the given one is not changed."""
    view = copy.copy(bottleneck)
    view.set_coefficient_bits(bits)
    return view


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture's latents, and its code at the model's sparsity with float coefficients."""

    latents: torch.Tensor
    code: Code


@torch.no_grad()
def encode(model: AutoencoderDL, picture: Picture) -> Encoded:
    """Encodes a picture, whatever sparsity and bits are asked for later."""
    latents = model.encode(picture.pixels.to(model.device, model.dtype)).latents
    bottleneck = model.bottleneck
    if bottleneck.slot_scales is not None:
        bottleneck = at_bits(bottleneck, None)
    return Encoded(latents, replace(bottleneck.encode(latents), image_size=picture.size))


@dataclass(frozen=True, eq=False)
class Point:
    """One reconstruction, with what it costs and how near it is."""

    code: Code
    sample: torch.Tensor  # (1, 3, H, W) in [-1, 1], on the CPU
    bits_per_pixel: float
    entropy_bits_per_pixel: float
    psnr: float
    size: int  # bytes of the file, header and all
    by_prior: bool  # whether the file is at the rate of the model's prior, or packed

    @property
    def rate(self) -> float:
        """Bits a pixel: of the file where a prior wrote it, else nominal."""
        return 8 * self.size / math.prod(self.sample.shape[-2:]) if self.by_prior else self.bits_per_pixel


@torch.no_grad()
def reconstruct(
    model: AutoencoderDL,
    picture: Picture,
    encoded: Encoded,
    sparsity: int | None = None,
    bits: int | None = None,
    prior: FactorizedPrior | None = None,
) -> Point:
    """
    Decodes a picture's code with the first `sparsity` atoms of each site and coefficients of `bits` (`None`: floats).
    A model without dictionary uses neither, and one whose codes are not nested uses `bits` alone. A prior writes the
    file where it is one of coefficients of these bits.
    """
    bottleneck, code = model.bottleneck, encoded.code
    counted, nominal = code, model.bits_per_pixel(*picture.size)
    if code.coefficients is not None:
        bottleneck = at_bits(bottleneck, bits)
        own = controls(model)
        if own.no_sparsity:
            code, sparsity = replace(bottleneck.encode(encoded.latents), image_size=picture.size), own.sparsity
        else:
            code = bottleneck.truncate(code, sparsity)
        nominal = bottleneck.bits(code) / (picture.size[0] * picture.size[1])
        # `CodeRate` counts as many slots as the model has; unused ones carry no bits
        missing = (0, own.sparsity - sparsity)
        indices, coefficients = F.pad(code.indices, missing, value=-1), F.pad(code.coefficients, missing)
        counted = replace(code, indices=indices, coefficients=coefficients)
    rate = CodeRate(bottleneck)
    rate.update(counted.to("cpu"))
    sample = model.decode_from_code(code).sample.float().clamp(-1, 1).cpu()
    entropy = float(rate.compute()["entropy_bits_per_pixel"])
    by_prior = prior is not None and prior.config.coefficient_bits == bottleneck.coefficient_bits
    data = prior.compress(code) if by_prior else bottleneck.pack(code)
    return Point(code.to("cpu"), sample, nominal, entropy, psnr(sample, picture), len(data), by_prior)


def psnr(sample: torch.Tensor, picture: Picture) -> float:
    """PSNR in dB."""
    return float(image_psnr(sample.double(), picture.pixels.double()))


def flip(sample: torch.Tensor, picture: Picture) -> tuple[float, Image.Image]:
    """Mean FLIP error, and its map in the colours of `flip_map(…, magma=True)`."""
    errors = flip_map(picture.pixels, sample)[0]
    colours = matplotlib.colormaps["magma"](errors.clamp(0, 1).mul(255).round().byte().numpy())[..., :3]
    return float(errors.double().mean()), Image.fromarray(np.round(255 * colours).astype(np.uint8))


def atoms_used(model: AutoencoderDL, code: Code) -> tuple[Image.Image, Image.Image | None, str]:
    """
    The symbols of each site, the atoms or codewords sorted by use, and a sentence. Of a residual code they are those of
    its first stage; FSQ and scalar quantisation have none.
    """
    indices = code.indices[0]
    height, width, slots = indices.shape
    alphabet, counts = max(code.levels), code.usage_counts()[0]
    sites = support_map(indices, alphabet, cell=max(1, min(8, 1600 // (min(slots, 8) * (width + 1)))))
    if code.coefficients is not None:
        atoms, what = model.bottleneck.dictionary, "atoms"
    elif model.config.bottleneck_type in ("fsq", "scalar"):
        used = sum(len(slot.unique()) for slot in indices.flatten(0, 1).t())
        return sites, None, f"{used} of {sum(code.levels)} levels used; {height} × {width} sites."
    else:
        atoms, what = model.bottleneck.codebook[0].t(), "codewords" + (" of the first stage" if slots > 1 else "")
    most = counts.argmax()
    share = float(counts[most] / counts.sum().clamp_min(1))
    text = (
        f"{int((counts > 0).sum())} of {alphabet} {what} used; number {int(most)} the most, in {share:.1%} of the "
        f"slots; {height} × {width} sites."
    )
    return sites, atom_tiles(atoms, usage=counts, columns=math.ceil(math.sqrt(1.6 * alphabet))), text


# Files of whole bytes


@dataclass(frozen=True, eq=False)
class File:
    """A picture as bytes, and what they decode to."""

    size: int
    bits_per_pixel: float
    sample: torch.Tensor
    psnr: float
    quality: int | None = None  # of JPEG
    nominal_bits_per_pixel: float | None = None  # of a codec
    by_prior: bool = False  # whether the codec's prior wrote it


def _file(data: bytes, sample: torch.Tensor, picture: Picture, **facts) -> File:
    height, width = picture.size
    return File(len(data), 8 * len(data) / (height * width), sample, psnr(sample, picture), **facts)


@torch.no_grad()
def codec_file(codec: ModelBasedVQCodec, picture: Picture, prior: FactorizedPrior | None = None) -> File:
    """A picture as a patch codec's bytes, by its prior where there is one or packed, and decoded from the bytes."""
    code = codec.encode_to_code(picture.pixels.to(codec.device))
    data = codec.pack(code) if prior is None else prior.compress(code)
    read = codec.unpack(data) if prior is None else prior.decompress(data).to(codec.device)
    sample, nominal = codec.decode_from_code(read).sample.float().clamp(-1, 1).cpu(), codec.bits(code)
    facts = {"nominal_bits_per_pixel": nominal / math.prod(picture.size), "by_prior": prior is not None}
    return _file(data, sample, picture, **facts)


def _decoded(data: bytes) -> torch.Tensor:
    return to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))


def jpeg_file(picture: Picture, limit: int) -> File:
    """The JPEG of the highest quality of at most `limit` bytes; the smallest where none is so short."""
    found = best_file(picture.image, "jpeg", limit)
    return _file(found.data, _decoded(found.data), picture, quality=found.quality)


def jpeg_curve(picture: Picture) -> list[tuple[float, float]]:
    """Bits a pixel and PSNR of JPEG files over the qualities, without those that another one beats in both."""
    points, best = [], []
    for quality, subsampling in itertools.product(JPEG_QUALITIES, ("4:2:0", "4:4:4")):
        data = encode_picture(picture.image, "jpeg", quality, subsampling)
        file = _file(data, _decoded(data), picture)
        points.append((file.bits_per_pixel, file.psnr))
    for rate, quality in sorted(points):
        if not best or quality > best[-1][1]:
            best.append((rate, quality))
    return best
