"""Damages packed codes of all decoders, and checks that each damaged file is refused with a sentence, or is a code.

    python utils/fuzz_codes.py [--count 1000000] [--seed 0] [--seconds 0.5] [--mebibytes 256]

Files of small bottlenecks of all kinds, and of the patch codec's four, are changed in their bits and bytes, cut,
lengthened, given another's header or hostile numbers. Half of them are sealed again: fingerprint and checksum are made
to fit, so that the checks behind those are met. Each file must end as

* refused: a `ValueError` of one sentence; nothing else may be raised;
* undamaged: it happens to be a whole file again, of this decoder or another, and is taken or refused as such;
* a code, and only of a sealed file: within the limit on its size, with indices and coefficients that its decoder
  takes, and packing to bytes that unpack to the same.

No file may take more than `--seconds`, or need more than `--mebibytes` beyond what the process has when it starts
(`RLIMIT_AS`, where the system has it). Prints counts; each failure with its case and bytes, which `--first CASE
--count 1` repeats. Exit code 0: all held; 1: some did not.
"""

import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch

from diffusers_lasers import (
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ModelBasedVQCodec,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.utils.command_line import CommandParser


HEADER = 37
LIMIT = 4096  # sites, or pixels, that a reader takes
PATIENCE = 20  # seconds after which a file is given up
FIELDS = [(4, "B"), (5, "B"), (10, "I"), (14, "I"), (18, "I"), (22, "I"), (26, "I"), (30, "H"), (32, "B")]
NUMBERS = [0, 1, 2, 3, 7, 8, 16, 17, 255, 256, 4096, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]


class TooSlow(Exception):
    """Raised by the timer."""


class Decoder:
    """A small model, some of its files, and what its codes have to satisfy."""

    def __init__(self, name: str, model: torch.nn.Module, codes: list):
        self.name, self.model = name, model
        self.limit = "max_pixels" if isinstance(model, ModelBasedVQCodec) else "max_sites"
        self.files = [model.pack(code) for code in codes]
        self.mark = self.files[0][6:10] if self.files else bytes(4)

    def read(self, data: bytes) -> None:
        """
        Unpacks, decodes, and packs again; raises an `AssertionError` where an accepted file is no code within bounds.
        """
        found = self.model.unpack(data, **{self.limit: LIMIT})
        if self.limit == "max_pixels":
            sample = self.model.decode_from_code(found).sample
            assert sample.shape == (len(found), 3, *found.image_size), "the image has another size"
            pixels = sample.shape[0] * sample.shape[2] * sample.shape[3]
        else:
            sample = self.model.decode(found)
            assert sample.shape[2:] == found.latent_size, "the latents have another size"
            pixels = found.num_sites
            bits = struct.unpack_from("<B", data, 32)[0] or None
            if hasattr(self.model, "set_coefficient_bits"):  # the file says how its coefficients are quantised
                self.model.set_coefficient_bits(bits)
        same = self.model.unpack(self.model.pack(found), **{self.limit: LIMIT}) == found
        assert pixels <= LIMIT, "the code is larger than the limit"
        assert bool(torch.isfinite(sample).all()), "it decodes to NaN or infinity"
        assert same, "it does not pack to bytes that unpack to the same"


def build_decoders() -> list[Decoder]:
    """All kinds of bottlenecks and quantisers, each with files of two sizes."""
    torch.manual_seed(0)
    latents = [torch.randn(1, 4, 3, 5), torch.randn(2, 4, 4, 2)]
    bottlenecks = {
        "dictionary, float": DictionaryBottleneck(4, 20, 3),
        "dictionary, float, patches": DictionaryBottleneck(4, 12, 2, patch_size=2, tolerance=1.5),
        "dictionary, depth": DictionaryBottleneck(4, 20, 3, coefficient_bits=5, tolerance=1.0),
        "dictionary, shared": DictionaryBottleneck(4, 20, 3, coefficient_bits=6, coefficient_scaling="shared"),
        "dictionary, many supports": DictionaryBottleneck(4, 400, 12, coefficient_bits=2),
        "dictionary, one atom": DictionaryBottleneck(4, 1, 1),
        "vq": VectorQuantizerBottleneck(4, 20),
        "vq, one codeword": VectorQuantizerBottleneck(4, 1),
        "residual_vq": ResidualVQBottleneck(4, 20, depth=3, patch_size=2),
        "fsq": FSQBottleneck(4, levels=(5, 3, 7, 4)),
        "entropy scalar": EntropyScalarBottleneck(4, bits=5),
        "residual_fsq": ExternalQuantizerBottleneck(4, "residual_fsq", {"levels": [3, 3], "num_quantizers": 2}),
        "scalar": ScalarQuantizerBottleneck(4, bits=3),
    }
    decoders = [Decoder("identity", IdentityBottleneck(4), [])]
    for name, bottleneck in bottlenecks.items():
        if name == "scalar":
            bottleneck.fit(latents, progress=False)
        bottleneck.eval()
        codes = [bottleneck.encode(part) for part in latents]
        codes[0] = replace(codes[0], image_size=(11, 18))
        if isinstance(bottleneck, DictionaryBottleneck) and bottleneck.config.sparsity > 1:
            codes.append(bottleneck.truncate(codes[0], 1))
        decoders.append(Decoder(name, bottleneck, codes))
    for notation in ("VQ-{6-3-4}", "PQ-{8-4-4}", "OPQ-{8-4-4}", "RQ-{8-4-4}"):
        codec = ModelBasedVQCodec.from_notation(notation, patch_size=4, codebook_bits=4)
        for name, buffer in codec.named_buffers():
            if name.startswith("codebooks"):
                buffer.normal_()
        codec.fitted.fill_(True)
        images = [torch.rand(1, 3, 9, 14) * 2 - 1, torch.rand(2, 3, 4, 4) * 2 - 1]
        decoders.append(Decoder(notation, codec, [codec.encode_to_code(part) for part in images]))
    return decoders


# Damage: each takes a file, another file and a source of randomness.


def flip_bits(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    for _ in range(source.randint(1, 8)):
        position = source.randrange(8 * len(data))
        data[position // 8] ^= 1 << position % 8
    return data


def change_byte(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    """Every position in turn, then every position by another difference."""
    data[case % len(data)] ^= 1 + case // len(data) % 255
    return data


def cut(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    return data[: source.randrange(len(data))]


def lengthen(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    position = source.choice([len(data), source.randrange(len(data))])
    data[position:position] = source.randbytes(source.randint(1, 64))
    return data


def splice(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    """The header of one file before the payload of another, or one file up to anywhere and then the other."""
    position = source.choice([HEADER, source.randrange(len(data))])
    return data[:position] + other[position:]


def write_numbers(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    """Hostile numbers in fields of the header; often with an empty payload."""
    for _ in range(source.randint(1, 3)):
        offset, kind = source.choice(FIELDS)
        number = source.choice(NUMBERS) % 256 ** struct.calcsize(kind)
        struct.pack_into("<" + kind, data, offset, number)
    return data[:HEADER] if source.random() < 0.3 else data


def write_payload(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    return data[:HEADER] + source.randbytes(len(data) - HEADER)


def write_noise(data: bytearray, other: bytes, case: int, source: random.Random) -> bytearray:
    return data[: source.choice([0, 4, 5, 10])] + source.randbytes(source.randrange(2 * len(data)))


DAMAGE: list[Callable] = [
    flip_bits,
    change_byte,
    cut,
    lengthen,
    splice,
    write_numbers,
    write_payload,
    write_noise,
]


def seal(data: bytearray, mark: bytes, source: random.Random) -> bytes:
    """The file with a checksum that fits, mostly also with magic, version and fingerprint of the decoder."""
    if len(data) < HEADER:
        return bytes(data)
    if source.random() < 0.9:
        data[:5], data[6:10] = b"DLBC" + bytes([source.choice([1, 2, 2, 2])]), mark
    crc = zlib.crc32(data[HEADER:], zlib.crc32(data[: HEADER - 4]))
    data[HEADER - 4 : HEADER] = struct.pack("<I", crc)
    return bytes(data)


def make_case(number: int, seed: int, decoders: list[Decoder], valid: list[bytes]) -> tuple[Decoder, str, bool, bytes]:
    """Decoder, kind of damage, whether it was sealed, and the file; a function of `number` and `seed` alone."""
    source = random.Random(seed * 1_000_003 + number)
    sealed, rest = number % 2 == 1, number // 2
    decoder, rest = decoders[rest % len(decoders)], rest // len(decoders)
    damage, rest = DAMAGE[rest % len(DAMAGE)], rest // len(DAMAGE)
    files = decoder.files or valid
    file, rest = files[rest % len(files)], rest // len(files)
    others = valid if source.random() < 0.5 else files
    data = damage(bytearray(file), source.choice(others), rest, source)
    return decoder, damage.__name__, sealed, seal(data, decoder.mark, source) if sealed else bytes(data)


def judge(decoder: Decoder, data: bytes, genuine: bool, sealed: bool, seconds: float) -> tuple[str, str | None, float]:
    """
    What became of a file, what was wrong with that, and the time that it took: the least of three where it took too
    long, since a machine has other work.
    """
    end, fault, taken = attempt(decoder, data, genuine, sealed)
    for _ in range(2):
        if taken > seconds:
            taken = min(taken, attempt(decoder, data, genuine, sealed)[2])
    return end, f"it takes {taken:.3g} s" if taken > seconds and fault is None else fault, taken


def attempt(decoder: Decoder, data: bytes, genuine: bool, sealed: bool) -> tuple[str, str | None, float]:
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        decoder.read(data)
        end, fault = "a code", None if sealed or genuine else "it was damaged, and is taken"
        end = "undamaged" if genuine and not sealed else end
    except ValueError as error:
        sentence = str(error)
        fits = sentence.endswith(".") and "\n" not in sentence and type(error) is ValueError
        end, fault = "refused", None if fits else f"refused by {type(error).__name__}: {sentence!r}"
        fault = "it is whole, and is refused" if data in decoder.files else fault
    except TooSlow:
        end, fault = "too slow", f"it does not end within {PATIENCE} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a file can make a decoder raise is what this looks for
        end, fault = type(error).__name__, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return end, fault, time.perf_counter() - start


def _stop(*_) -> None:
    raise TooSlow


def _bound_memory(mebibytes: int) -> None:
    """
    Lets the process have so much address space beyond what it has now; more raises a `MemoryError` or a torch error.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time a file (default: %(default)s)")
    parser.add_argument("--mebibytes", type=int, default=256, help="memory beyond the start (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    decoders = build_decoders()
    valid = [file for decoder in decoders for file in decoder.files]
    for decoder in decoders:
        for file in decoder.files:
            decoder.read(file)
    bounded = sys.platform == "linux"
    if bounded:
        _bound_memory(args.mebibytes)
    signal.signal(signal.SIGALRM, _stop)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    known, counts, faults, slowest = set(valid), Counter(), 0, 0.0
    for number in range(args.first, args.first + args.count):
        decoder, damage, sealed, data = make_case(number, args.seed, decoders, valid)
        end, fault, taken = judge(decoder, data, data in known, sealed, args.seconds)
        counts[("sealed" if sealed else "as they are", damage, end)] += 1
        slowest = max(slowest, taken)
        if fault is not None:
            faults += 1
            if faults <= 20:
                print(f"case {number}, {decoder.name}, {damage}: {fault}\n  {data.hex()}", flush=True)
    wall, grown = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for (kind, damage, end), count in sorted(counts.items()):
        print(f"{kind:12} {damage:14} {end:12} {count:>9,}")
    print(
        f"{args.count:,} damaged files of {len(decoders)} decoders: {faults:,} faults; "
        f"the slowest took {1e3 * slowest:.1f} ms, memory grew by {grown / 1024:.0f} MiB"
        f"{f' of {args.mebibytes} allowed' if bounded else ''}; {wall:.0f} s."
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
