"""Times the patch codec beside faiss's `sa_encode` and `sa_decode` with the same codebooks, and on large images.

    python benchmarks/benchmark_codec_speed.py [CODEC …] [--side 512] [--rounds 31] [--large 3000 4000]

CODEC is a folder of a fitted `ModelBasedVQCodec`. Without one, codecs of all four kinds are fitted to random smooth
images first.

Our calls start and end with RGB images: colours, patches, rotation and range check are in their time. "patches" is
decoding without colours and assembly. faiss starts and ends with the patches of the three channels as contiguous
float32, and does none of that work. torch and faiss each have their own threads, which stay awake for a while after a
call and take the cores from the other library's. So they take turns in blocks of calls, of which the first two do not
count. Ratios are those of the medians. `agree` is the share of equal indices, and `excess` our squared error over
faiss's, minus 1. `--large` times one image of that height and width and reports the growth of the process's peak
memory.
"""

import statistics
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from diffusers_lasers import ModelBasedVQCodec
from diffusers_lasers.commands.timing import peak_memory_gib
from diffusers_lasers.functional import latents_to_signals, rgb_to_ycbcr
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.tables import figure_table


# Key in codec_speed.json, heading, format.
COLUMNS = [
    ("encode_ms", "encode ms", "{:.2f}"),
    ("faiss_encode_ms", "faiss ms", "{:.2f}"),
    ("encode_ratio", "ratio", "{:.2f}"),
    ("decode_ms", "decode ms", "{:.2f}"),
    ("decode_patches_ms", "patches ms", "{:.2f}"),
    ("faiss_decode_ms", "faiss ms", "{:.2f}"),
    ("decode_patches_ratio", "patches, ratio", "{:.2f}"),
    ("agree", "agree", "{:.4%}"),
    ("excess", "excess", "{:.1e}"),
]
LARGE_COLUMNS = [
    ("encode_s", "encode s", "{:.2f}"),
    ("decode_s", "decode s", "{:.2f}"),
    ("peak_growth_gib", "growth of peak memory, GiB", "{:.2f}"),
]
BLOCK = 10  # calls of one function in a row
NOTATIONS = ("VQ-{8-8-8}", "PQ-{32-8-8}", "OPQ-{32-8-8}", "RQ-{32-8-8}")


def smooth_images(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Random images `(B, 3, H, W)` in [-1, 1] with detail at several scales."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, height, width)
    for scale in (64, 16, 4, 1):
        coarse = torch.randn(count, 3, -(-height // scale), -(-width // scale), generator=generator)
        image += torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 0.3 * scale**0.25
    return (image / 3).clamp(-1, 1)


def faiss_index(codec: ModelBasedVQCodec, channel: str):
    """A faiss index that codes the patches of one channel with the codec's own codebooks."""
    books = codec.codebooks[channel].numpy()
    slots, codewords, width = books.shape
    bits, features = codewords.bit_length() - 1, codec.config.patch_size**2
    if codec.config.quantizer == "RQ":
        index = faiss.IndexResidualQuantizer(features, slots, bits)
        faiss.copy_array_to_vector(np.ascontiguousarray(books).ravel(), index.rq.codebooks)
        index.rq.is_trained, index.is_trained, index.rq.max_beam_size = True, True, codec.config.beam
        return index
    index = faiss.IndexPQ(features, slots, bits)
    faiss.copy_array_to_vector(np.ascontiguousarray(books).ravel(), index.pq.centroids)
    index.is_trained = True
    rotation = codec.rotation(channel)
    if rotation is None:
        return index
    transform = faiss.LinearTransform(features, features, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rotation.numpy()).ravel(), transform.A)
    transform.is_trained = transform.is_orthonormal = True
    rotated = faiss.IndexPreTransform(transform, index)
    rotated.is_trained = True
    return rotated


def compare(codec: ModelBasedVQCodec, image: torch.Tensor, rounds: int) -> dict:
    """One row: medians, ratios and agreement on one image."""
    side, size = codec.config.patch_size, tuple(image.shape[-2:])
    colours = rgb_to_ycbcr(image)
    signals = [latents_to_signals(colours[:, number : number + 1], side).numpy() for number in range(3)]
    indexes = [faiss_index(codec, channel) for channel in ("y", "cb", "cr")]
    codes = codec.encode(image).codes
    packed = [index.sa_encode(part) for index, part in zip(indexes, signals)]
    functions = {
        "encode": lambda: codec.encode(image),
        "faiss_encode": lambda: [index.sa_encode(part) for index, part in zip(indexes, signals)],
        "decode": lambda: codec.decode(codes, size),
        "decode_patches": lambda: codec._decode_patches(codes),
        "faiss_decode": lambda: [index.sa_decode(part) for index, part in zip(indexes, packed)],
    }
    seconds = {name: [] for name in functions}
    for _ in range(-(-rounds // BLOCK)):
        for name, function in functions.items():
            for call in range(BLOCK + 2):
                start = time.perf_counter()
                function()
                if call > 1:
                    seconds[name].append(time.perf_counter() - start)
    theirs = np.concatenate(packed, axis=1)  # one byte a sub-codebook of 8 bits
    ours = codes.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    decoded = codec.decode(codes, size).sample
    error = float((rgb_to_ycbcr(decoded) - colours).square().sum())
    error_faiss = sum(
        float(((index.sa_decode(part) - signal) ** 2).sum()) for index, part, signal in zip(indexes, packed, signals)
    )
    row = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    for name in ("encode", "decode"):
        row[f"{name}_ratio"] = row[f"{name}_ms"] / row[f"faiss_{name}_ms"]
    row["decode_patches_ratio"] = row["decode_patches_ms"] / row["faiss_decode_ms"]
    one_byte_each = all(bits == 8 for bits in codec.slot_bits)
    row["agree"] = float((ours == theirs).mean()) if one_byte_each else None
    row["excess"] = error / error_faiss - 1
    return row


def time_large(codec: ModelBasedVQCodec, height: int, width: int) -> dict:
    """Seconds and growth of the peak memory of one large image."""
    image = smooth_images(1, height, width, seed=2)
    before = peak_memory_gib()
    start = time.perf_counter()
    output = codec.encode(image)
    middle = time.perf_counter()
    sample = codec.decode(output.codes, output.image_size).sample
    end = time.perf_counter()
    assert sample.shape == image.shape
    growth = None if before is None else peak_memory_gib() - before
    return {"encode_s": middle - start, "decode_s": end - middle, "peak_growth_gib": growth}


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("codecs", nargs="*", help="Folders of fitted codecs. Default: new ones of all kinds.")
    add("--side", type=int, default=512, help="Side of the image in pixels.")
    add("--rounds", type=int, default=50, help="Timed calls of each function, in tens.")
    add("--threads", type=int, default=2, help="Threads of torch and of faiss.")
    add("--large", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Also time an image of this size.")
    add("--output_dir", type=Path, help="Folder that gets codec_speed.json.")
    parser.check(check_at_least, 1, "side", "rounds", "threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.codecs:
        codecs = [ModelBasedVQCodec.from_pretrained(path) for path in args.codecs]
    else:
        images = smooth_images(4, 256, 256, seed=0)
        codecs = [ModelBasedVQCodec.from_notation(name) for name in NOTATIONS]
        for codec in codecs:
            codec.fit(images, max_patches=2**14, iterations=10)
    image = smooth_images(1, args.side, args.side, seed=1)
    rows = {codec.notation: compare(codec, image, args.rounds) for codec in codecs}
    print(f"{args.side}×{args.side}, {args.threads} threads, medians of {args.rounds} calls\n")
    print(figure_table("codec", COLUMNS, rows.items()))
    if args.large:
        large = {codec.notation: time_large(codec, *args.large) for codec in codecs}
        print(f"\n{args.large[0]}×{args.large[1]}\n\n{figure_table('codec', LARGE_COLUMNS, large.items())}")
        for name, figures in large.items():
            rows[name]["large"] = figures
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        write_json(args.output_dir / "codec_speed.json", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
