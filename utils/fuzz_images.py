"""Attacks the readers of images: damaged files of all formats, each decoded by `to_rgb` and by `ImageDataset`.

    python utils/fuzz_images.py [--count 100000] [--seed 0] [--first 0]

Of each file either an upright RGB picture must come, within Pillow's limit of pixels, or `UnreadableImageError`, and of
both ways the same. Anything else – another exception, a crash, ten seconds without an answer, more than a gibibyte – is
printed with the number that makes the same file again (`--first NUMBER --count 1`). Small pictures in every mode of
every format that Pillow writes, and in eleven that it does not, are damaged: bits flipped, bytes of the header set,
blocks cut, doubled, inserted or exchanged with another file, EXIF data spoilt, PNG chunks changed with their checksums
made right. A process of its own decodes them, and is replaced where it dies. At the end stand the counts of every
format. Exit code 1 where anything failed.
"""

import io
import multiprocessing
import os
import random
import struct
import sys
import time
import warnings
import zlib
from collections import Counter

import numpy as np
from PIL import Image

from diffusers_lasers.training import ImageDataset
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.image_decoding import UnreadableImageError, picture_formats, to_rgb


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
OPTIONS = (
    {},
    {"lossless": True},
    {"progressive": True},
    {"compression": "tiff_lzw"},
    {"compression": "jpeg"},
    {"interlace": 1},
)
MOST_PIXELS = 2**18
SECONDS = 10.0
MEMORY = 2**30
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)


def whole_files():
    """Small files by format: every mode that Pillow writes, with EXIF data, transparency and several frames."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 19, 3), dtype=np.uint8)
    pixels[4:10, 5:15] = (200, 40, 90)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    files = {}
    warnings.simplefilter("ignore")
    Image.init()
    for name in sorted(set(Image.SAVE) & (set(picture_formats()) | {"MPO"}) - {"ICNS"}):
        for mode in MODES:
            image = in_mode(picture, mode)
            for extra in (
                *OPTIONS,
                {"exif": exif},
                {"transparency": 3},
                {"save_all": True, "append_images": [image.copy()]},
            ):
                if extra == {"compression": "jpeg"} and mode not in ("L", "RGB"):
                    continue  # libtiff's own writer breaks memory on other modes
                try:
                    files.setdefault(name, {})[saved(image, name, speed=10, **extra)] = None
                except Exception:  # the format has no such mode or option
                    continue
    return {name: list(kinds) for name, kinds in files.items()} | by_hand(picture)


def by_hand(picture):
    """Files of formats that Pillow reads and does not write, or writes too large."""
    small = picture.resize((16, 16))
    pixels, grey, side = small.tobytes(), small.convert("L").tobytes(), 16
    icon, page = saved(small, "PNG"), saved(small, "PCX")
    colours = [f'"{value:02x} c #{value:02x}{value:02x}00",' for value in range(0, 256, 16)]
    rows = ['"' + "".join(f"{16 * (column + row & 15):02x}" for column in range(side)) + '",' for row in range(side)]
    header = bytearray(1024)
    header[:4], header[416:420], header[424:428] = (
        b"\x80\xe8\0\0",
        struct.pack("<2H", side, side),
        struct.pack("<2H", 14, 2),
    )
    planes = b"".join(pixels[channel::3] for channel in range(3))
    return {
        "CUR": [b"\0\0\2\0" + saved(small, "ICO", bitmap_format="bmp")[4:]],
        "DCX": [struct.pack("<3I", 0x3ADE68B1, 12, 0) + page],
        "FTEX": [b"FTEX" + struct.pack("<8i", 0, side, side, 1, 1, 1, 32, len(pixels)) + pixels],
        "GBR": [struct.pack(">5I", 29, 2, side, side, 1) + b"GIMP" + struct.pack(">I", 1) + b"\0" + grey],
        "ICNS": [b"icns" + struct.pack(">I", 16 + len(icon)) + b"icp4" + struct.pack(">I", 8 + len(icon)) + icon],
        "IMT": [f"width {side}\nheight {side}\npixel n8\n\x0c".encode() + grey],
        "PIXAR": [bytes(header) + pixels],
        "PSD": [b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, side, side, 8, 3, 0, 0, 0, 0) + planes],
        "SUN": [struct.pack(">8I", 0x59A66A95, side, side, 24, len(pixels), 1, 0, 0) + pixels],
        "XPM": ["\n".join(["/* XPM */", f'"{side} {side} 16 2",', *colours, "/* pixels */", *rows, "};"]).encode()],
        "XVThumb": [f"P7 332\n#comment\n{side} {side} 255\n".encode() + grey],
    }


def saved(picture, name, **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def in_mode(picture, mode):
    """The picture in a mode of Pillow's, half of it transparent where the mode can say so."""
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(picture.convert("L"))
        return Image.fromarray(grey / np.float32(255) if mode == "F" else grey * np.uint16(257)).convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, picture.tobytes())
    if mode in ("LA", "RGBA", "PA"):
        picture = picture.copy()
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        return picture if mode == "RGBA" else picture.convert("LA").convert(mode)
    return picture.convert(mode)


def mutate(data, other, draw):
    """Damaged bytes; `other` is a whole file to take blocks from, `draw` a `random.Random`."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        place, length = draw.randrange(len(data)), draw.choice((1, 2, 4, 8, 16, 64, 256))
        kind = draw.randrange(11)
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:  # in the header
            place = draw.randrange(min(64, len(data)))
            data[place] = draw.choice((*BYTES, draw.randrange(256)))
        elif kind == 2:  # a number of the header
            place = draw.randrange(min(128, len(data)))
            value = draw.choice((0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, len(data), draw.randrange(2**32)))
            data[place : place + 4] = struct.pack(draw.choice("<>") + "I", value)
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = draw.randbytes(length)
        elif kind == 6:
            data[place:place] = data[place : place + length]
        elif kind == 7:
            start = draw.randrange(len(other))
            data[place : place + length] = other[start : start + length]
        else:
            data = spoil_part(data, draw)
    return bytes(data)


def spoil_part(data, draw):
    """A byte changed behind the checksum: in a chunk of a PNG, in the EXIF data of another file, or anywhere."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        chunks, place = [], 8
        while place + 12 <= len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            chunks.append((place, length))
            place += 12 + length
        place, length = draw.choice(chunks) if chunks else (8, 0)
        if length and place + 12 + length <= len(data):
            data[place + 8 + draw.randrange(length)] = draw.randrange(256)
            checksum = zlib.crc32(data[place + 4 : place + 8 + length])
            data[place + 8 + length : place + 12 + length] = struct.pack(">I", checksum)
            return data
    start = max(data.find(b"Exif\0\0"), data.find(b"EXIF"), 0)
    data[start + draw.randrange(min(120, len(data) - start))] = draw.choice((*BYTES, draw.randrange(256)))
    return data


class One:
    """A source of one image."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return to_rgb(self.data, "attack")


def decode(data):
    """`"decoded"` or `"refused"`; an AssertionError or whatever came up where the promise is broken."""
    answers = []
    for way in (lambda: to_rgb(data, "attack"), lambda: ImageDataset(One(data), 8)[0]["pixel_values"]):
        try:
            answers.append(way())
        except UnreadableImageError as error:
            assert "\n" not in str(error), "an error of several lines"
            answers.append(None)
    picture, crop = answers
    assert (picture is None) == (crop is None), f"one way decodes it: {picture}, {crop}"
    if picture is None:
        return "refused"
    assert type(picture) is Image.Image and picture.mode == "RGB" and not picture.info, f"no plain RGB: {picture}"
    assert 0 < picture.width * picture.height <= MOST_PIXELS, f"beyond the limit: {picture.size}"
    assert crop.shape == (3, 8, 8) and -1 <= crop.min() and crop.max() <= 1, f"no crop in [-1, 1]: {crop}"
    return "decoded"


def attack(files, seed, first, stop, at, counts):
    """Decodes the damaged files `first` to `stop`, telling which one is at hand, and the counts and failures at the
    end."""
    try:
        import resource

        with open("/proc/self/statm") as status:
            used = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    except (ImportError, OSError):  # not on Linux: without this bound
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libjpeg say there what they make of it
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    for index in range(first, stop):
        at.value = index
        name, data = damaged(files, seed, index)
        try:
            result = decode(data)
        except Exception as error:  # what is looked for
            result = "failed"
            counts.put((index, f"{name}: {type(error).__name__}: {error}"))
        counts.put((name, result))
    counts.close()
    counts.join_thread()


def damaged(files, seed, index):
    """Format and bytes of a damaged file."""
    draw = random.Random(f"{seed} {index}")
    name, other = draw.choice(sorted(files)), draw.choice(sorted(files))
    return name, mutate(draw.choice(files[name]), draw.choice(files[other]), draw)


def run(count, seed, first=0, batch=5000):
    """
    Counts of what came of the files, and what failed.

    Returns:
        `tuple[Counter, dict]`: Files by (format, `"decoded"`, `"refused"` or `"failed"`), and what happened by number.
    """
    files, stop = whole_files(), first + count
    counts, failures = Counter(), {}
    while first < stop:
        end = min(first + batch, stop)
        at, queue = multiprocessing.Value("q", first), multiprocessing.Queue()
        process = multiprocessing.Process(target=attack, args=(files, seed, first, end, at, queue))
        process.start()
        seen, since = first, time.monotonic()
        while process.is_alive():
            drain(queue, counts, failures)
            process.join(0.05)
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            elif time.monotonic() - since > SECONDS:
                process.kill()
                process.join()
        drain(queue, counts, failures)
        if process.exitcode == 0:
            first = end
        else:
            name, _ = damaged(files, seed, at.value)
            failures[at.value] = (
                f"{name}: the process ended with {process.exitcode} (-9: no answer in {SECONDS:.0f} s)"
            )
            counts[name, "failed"] += 1
            first = at.value + 1
    return counts, failures


def drain(queue, counts, failures):
    """Takes what a process has told."""
    while not queue.empty():
        key, value = queue.get()
        if isinstance(key, int):
            failures[key] = value
        else:
            counts[key, value] += 1


def main():
    parser = CommandParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damages")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count must be at least 1, got {args.count}")
    start = time.perf_counter()
    counts, failures = run(args.count, args.seed, args.first)
    seconds = time.perf_counter() - start
    for index, what in sorted(failures.items()):
        print(f"--seed {args.seed} --first {index} --count 1: {what}")
    print("| format | decoded | refused | failed |\n| --- | ---: | ---: | ---: |")
    kinds = ("decoded", "refused", "failed")
    for name in sorted({name for name, _ in counts}):
        print(f"| {name} | " + " | ".join(str(counts[name, kind]) for kind in kinds) + " |")
    totals = {kind: sum(number for (_, found), number in counts.items() if found == kind) for kind in kinds}
    print("| all | " + " | ".join(map(str, totals.values())) + " |")
    print(
        f"\n{sum(totals.values())} files, Pillow {Image.__version__}, seed {args.seed}, {seconds:.0f} s: "
        f"{len(failures)} failures."
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
