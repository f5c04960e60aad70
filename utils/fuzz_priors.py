#!/usr/bin/env python
"""Damages files of priors, half of them with a checksum that fits, and reports each that is neither refused nor a code.

    python utils/fuzz_priors.py --count 100000

As `utils/fuzz_codes.py`, whose damage it uses, for what `FactorizedPrior.compress` writes: a file that is damaged and
whose checksum does not fit must be refused; one whose checksum fits must be refused or be a code that is no larger than
the limit and compresses to a file of the same code. All within --seconds and --mebibytes. Exit code 1 on a fault.
"""

import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter

import fuzz_codes
import torch

from diffusers_lasers import (
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    FactorizedPrior,
    ResidualVQBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.utils.command_line import CommandParser


HEADER, LIMIT = 43, 2**12  # bytes; most sites
FIELDS = [*range(5, 33, 4), 35]  # numbers of 32 bits
NUMBERS = (0, 1, 2, 3, 7, 2**8, 2**12, 2**16, 2**20, 2**24, 2**31, 2**32 - 1)


class Decoder:
    """A prior, and files that it wrote."""

    def __init__(self, name: str, prior: FactorizedPrior, codes: list):
        self.name, self.prior = name, prior
        self.files = [prior.compress(code) for code in codes]

    def read(self, data: bytes) -> None:
        """Decompresses and compresses again; raises an `AssertionError` where what is accepted is no code."""
        found = self.prior.decompress(data, max_sites=LIMIT)
        assert max(len(found), 1) * found.grid[0] * found.grid[1] <= LIMIT, "the code is larger than the limit"
        again = self.prior.decompress(self.prior.compress(found), max_sites=LIMIT)
        assert again == found, "it does not compress to bytes that decompress to the same"
        assert bool(torch.isfinite(self.prior.bits(found)).all()), "it has no price"


def build_decoders() -> list[Decoder]:
    """Priors of all kinds of codes, each with files of two sizes."""
    torch.manual_seed(0)
    shared = {"coefficient_scaling": "shared", "tolerance": 1.0}
    bottlenecks = {
        "sequences": (DictionaryBottleneck(4, 20, 3, coefficient_bits=5, tolerance=1.0), {}),
        "sets": (DictionaryBottleneck(4, 20, 3, coefficient_bits=6, **shared), {}),
        "sets, no contexts": (DictionaryBottleneck(4, 33, 4, coefficient_bits=2, **shared), {"contexts": False}),
        "floats": (DictionaryBottleneck(4, 12, 2, patch_size=2, tolerance=1.5), {}),
        "one atom": (DictionaryBottleneck(4, 1, 1, coefficient_bits=1), {}),
        "vq": (VectorQuantizerBottleneck(4, 20), {}),
        "one codeword": (VectorQuantizerBottleneck(4, 1), {}),
        "residual_vq": (ResidualVQBottleneck(4, 20, depth=3, patch_size=2), {"contexts": False}),
        "scalar": (EntropyScalarBottleneck(4, bits=5), {}),
    }
    decoders = []
    for name, (bottleneck, arguments) in bottlenecks.items():
        bottleneck.initialize(torch.randn(8, 4, 8, 8))
        codes = [bottleneck.eval().encode(torch.randn(size)) for size in ((1, 4, 3, 5), (2, 4, 4, 2))]
        prior = FactorizedPrior.from_coder(bottleneck, **arguments).fit(bottleneck.encode(torch.randn(8, 4, 8, 8)))
        decoders.append(Decoder(name, prior, codes))
    return decoders


def splice(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    position = source.choice([HEADER, source.randrange(len(data))])
    return data[:position] + other[position:]


def write_numbers(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    for _ in range(source.randint(1, 3)):
        struct.pack_into("<I", data, source.choice(FIELDS), source.choice(NUMBERS))
    if source.random() < 0.5:
        struct.pack_into("<H", data, 33, source.choice([0, 1, 2, 3, 65535]))
    return data[:HEADER] if source.random() < 0.3 else data


def write_payload(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    """Words at random, of the same lengths or of others."""
    start = HEADER + source.randint(0, 2)
    return data[:start] + source.randbytes(source.choice([max(0, len(data) - start), 4 * source.randrange(40)]))


DAMAGE = [
    fuzz_codes.flip_bits,
    fuzz_codes.change_byte,
    fuzz_codes.cut,
    fuzz_codes.lengthen,
    fuzz_codes.write_noise,
    splice,
    write_numbers,
    write_payload,
]


def seal(data: bytearray, file: bytes, source: random.Random) -> bytes:
    """The file with a checksum that fits, mostly also with magic, version and fingerprints of the decoder."""
    if len(data) < HEADER:
        return bytes(data)
    if source.random() < 0.9:
        data[:13] = file[:13]
    crc = zlib.crc32(data[HEADER:], zlib.crc32(data[: HEADER - 4]))
    data[HEADER - 4 : HEADER] = struct.pack("<I", crc)
    return bytes(data)


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time a file (default: %(default)s)")
    parser.add_argument("--mebibytes", type=int, default=256, help="memory beyond the start (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoders = build_decoders()
    known = {file for decoder in decoders for file in decoder.files}
    for decoder in decoders:
        for file in decoder.files:
            decoder.read(file)
    if sys.platform == "linux":
        fuzz_codes._bound_memory(args.mebibytes)
    signal.signal(signal.SIGALRM, fuzz_codes._stop)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, faults, slowest = Counter(), 0, 0.0
    for number in range(args.count):
        source = random.Random(args.seed * 1_000_003 + number)
        decoder, damage, sealed = source.choice(decoders), source.choice(DAMAGE), number % 2 == 1
        file, other = source.choice(decoder.files), source.choice(source.choice(decoders).files)
        data = damage(bytearray(file), other, number, source)
        data = seal(data, file, source) if sealed else bytes(data)
        end, fault, taken = fuzz_codes.judge(decoder, data, data in known, sealed, args.seconds)
        counts[("sealed" if sealed else "as they are", damage.__name__, end)] += 1
        slowest = max(slowest, taken)
        if fault is not None:
            faults += 1
            if faults <= 20:
                print(f"case {number}, {decoder.name}, {damage.__name__}: {fault}\n  {data.hex()}", flush=True)
    for (kind, damage, end), count in sorted(counts.items()):
        print(f"{kind:12} {damage:14} {end:12} {count:>9,}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{args.count:,} damaged files of {len(decoders)} priors: {faults:,} faults; the slowest took "
        f"{1e3 * slowest:.1f} ms, memory grew by {grown:.0f} MiB; {time.perf_counter() - start:.0f} s."
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
