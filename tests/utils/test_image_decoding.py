"""Any image as RGB of 8 bits: its values, what is transparent, which way up it stands, and one error for all that is
damaged."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffusers_lasers.utils.image_decoding import UnreadableImageError, picture_formats, to_rgb


RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # every level of 8 bits, at 16


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey(levels):
    return np.repeat(np.asarray(levels, dtype=np.uint8)[..., None], 3, axis=2)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Sixteen bits, integers, floats


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_sixteen_bits_keeps_all_levels(format):
    data = saved(Image.fromarray(RAMP), format)
    np.testing.assert_array_equal(np.asarray(to_rgb(data, "x")), grey(np.arange(256).reshape(16, 16)))


def test_sixteen_bits_are_divided_by_257_and_rounded():
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = grey(np.round(levels / 257))
    for image in (levels, Image.fromarray(levels), saved(Image.fromarray(levels), "TIFF", compression="tiff_lzw")):
        np.testing.assert_array_equal(np.asarray(to_rgb(image, "x")), expected)
    colour = np.stack([levels] * 3, axis=2)
    np.testing.assert_array_equal(np.asarray(to_rgb(colour, "x")), expected)


def tiff(levels, bits, photometric):
    """A plain TIFF of one strip, written by hand."""
    pixels = np.packbits((levels[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).ravel()).tobytes()
    if bits == 16:
        pixels = levels.astype("<u2").tobytes()
    height, width = levels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: height}
    tags[279] = len(pixels)
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def test_tiffs_of_twelve_bits_and_with_zero_for_white():
    levels = (np.arange(16, dtype=np.uint16) * 273).reshape(4, 4)
    np.testing.assert_array_equal(np.asarray(to_rgb(tiff(levels, 12, 1), "x")), grey(np.arange(16).reshape(4, 4) * 17))
    np.testing.assert_array_equal(np.asarray(to_rgb(tiff(RAMP, 16, 1), "x")), grey(RAMP // 257))
    np.testing.assert_array_equal(np.asarray(to_rgb(tiff(RAMP, 16, 0), "x")), grey(255 - RAMP // 257))


@pytest.mark.parametrize("kind", ["array", "picture", "TIFF", "PFM"])
def test_floats_are_from_zero_to_one_or_refused(kind):
    def image(values):
        values = values.astype(np.float32)
        if kind == "array":
            return values
        return (
            Image.fromarray(values)
            if kind == "picture"
            else saved(Image.fromarray(values), kind.replace("PFM", "PPM"))
        )

    np.testing.assert_array_equal(np.asarray(to_rgb(image(RAMP / 65535), "x")), grey(RAMP // 257))
    for wrong in (RAMP * 1.0, RAMP / 65535 - 0.1, RAMP + np.nan):
        with pytest.raises(
            UnreadableImageError, match=r"^The image 'x' cannot be read: its floats must be in \[0, 1\]"
        ):
            to_rgb(image(wrong), "x")


def test_values_without_a_range_are_refused():
    wide = Image.fromarray(RAMP.astype(np.int32))
    for image in (wide, saved(wide, "TIFF")):
        with pytest.raises(UnreadableImageError, match="32 bits have no known range"):
            to_rgb(image, "x")
    for array in (RAMP.astype(np.int64), RAMP.astype(np.int8), RAMP.astype(complex)):
        with pytest.raises(UnreadableImageError, match="must be bool, uint8, uint16 or floats"):
            to_rgb(array, "x")
    for shape in ((3, 4, 5), (4,), (0, 4), (2, 0, 3), (1, 2, 3, 4)):
        with pytest.raises(UnreadableImageError, match="its shape must be"):
            to_rgb(np.zeros(shape, dtype=np.uint8), "x")


def test_arrays_of_every_shape():
    pixels = noise(5, 6, 3)
    np.testing.assert_array_equal(np.asarray(to_rgb(pixels, "x")), pixels)
    np.testing.assert_array_equal(np.asarray(to_rgb(pixels[:, ::-1, ::-1], "x")), pixels[:, ::-1, ::-1])
    for single in (pixels[..., 0], pixels[..., :1]):
        np.testing.assert_array_equal(np.asarray(to_rgb(single, "x")), grey(pixels[..., 0]))
    np.testing.assert_array_equal(np.asarray(to_rgb(pixels[..., 0] > 99, "x")), grey((pixels[..., 0] > 99) * 255))


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "array"])
def test_what_is_transparent_is_white(mode):
    colours = Image.new("RGBA", (3, 1), (200, 40, 90, 255))
    colours.putpixel((1, 0), (200, 40, 90, 0))
    colours.putpixel((2, 0), (200, 40, 90, 51))
    image = np.asarray(colours) if mode == "array" else colours if mode == "RGBA" else colours.convert("LA")
    if mode == "PA":
        image = colours.convert("L").convert("P")
        image.putalpha(colours.getchannel("A"))
    assert mode == "array" or image.mode == mode
    opaque, clear, fifth = np.asarray(to_rgb(image, "x"))[0].astype(int)
    own = np.asarray(colours.convert("RGB") if mode in ("RGBA", "array") else colours.convert("L").convert("RGB"))[
        0, 0
    ]
    np.testing.assert_array_equal(opaque, own)
    np.testing.assert_array_equal(clear, 255)
    assert np.abs(fifth - (0.2 * own + 0.8 * 255)).max() <= 1


def test_a_transparent_entry_or_colour_is_white():
    for mode, key in (("P", 1), ("P", b"\xff\x00\xff"), ("RGB", (1, 1, 1)), ("L", 1), ("I;16", 257)):
        if mode == "P":
            image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
            image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
        else:
            image = Image.fromarray(
                {"RGB": grey([[0, 1, 2]]), "L": np.uint8([[0, 1, 2]])}.get(mode, np.uint16([[0, 257, 514]]))
            )
        data = saved(image, "PNG", transparency=key)
        np.testing.assert_array_equal(np.asarray(to_rgb(data, "x"))[0, :, 0], [0, 255, 2], err_msg=f"{mode} {key}")
    np.testing.assert_array_equal(np.asarray(to_rgb(saved(image.convert("L"), "GIF", transparency=0), "x")).max(), 255)


def test_a_transparent_colour_of_sixteen_bits_is_white():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = b"\0" + struct.pack(">9H", *(level * 257 for level in (0, 0, 0, 9, 9, 9, 20, 20, 20)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0))
    data += (
        chunk(b"tRNS", struct.pack(">3H", *[9 * 257] * 3))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(np.asarray(to_rgb(data, "x"))[0, :, 0], [0, 255, 20])


# EXIF


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stands_upright_once(format, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(9, 14, 3)).resize((140, 90))
    data = saved(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    upright = to_rgb(data, "x")
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
    assert to_rgb(upright, "x").size == upright.size and not upright.info


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it finds damaged
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_refuses_no_picture(format):
    image, read = Image.fromarray(noise(8, 9, 3)), np.zeros(2)
    rich = Image.Exif()
    rich[0x0112], rich[0x010F], rich[0x011A] = 3, "maker", 72.0  # upside down
    rich.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    whole = rich.tobytes()
    draw = np.random.default_rng(1)
    plain = np.asarray(to_rgb(saved(image, format), "x"))
    for _ in range(300):
        damaged = bytearray(whole)
        for place in draw.integers(6, len(whole), 3):
            damaged[place] = draw.integers(256)
        picture = np.asarray(to_rgb(saved(image, format, exif=bytes(damaged)), "x"))
        turned = [np.array_equal(picture, view) for view in (plain[::-1, ::-1], plain)]
        read += np.array(turned)
    assert read[0] > 50 and read.sum() > 250  # in the others the orientation became another


# Errors


def test_whatever_a_reader_raises_is_one_error(monkeypatch):
    data = saved(Image.new("RGB", (4, 4)), "PNG")
    errors = (
        RuntimeError,
        NotImplementedError,
        AttributeError,
        zlib.error,
        KeyError,
        SystemError,
        IndexError,
        OSError,
    )
    for error in (*errors, Image.DecompressionBombError, RecursionError, AssertionError, struct.error):
        for step in ("load", "convert"):
            with monkeypatch.context() as patch:
                patch.setattr(
                    Image.Image if step == "convert" else Image.open(io.BytesIO(data)).__class__, step, raising(error)
                )
                with pytest.raises(UnreadableImageError, match=r"^The image 'x' cannot be read: .*why.*\.$"):
                    to_rgb(data, "x")
    for error in (MemoryError, KeyboardInterrupt):
        with monkeypatch.context() as patch:
            patch.setattr(Image.open(io.BytesIO(data)).__class__, "load", raising(error))
            with pytest.raises(error):
                to_rgb(data, "x")


def raising(error):
    def fail(*args, **kwargs):
        raise error("why\nthat is")

    return fail


def test_a_dds_of_an_unknown_kind_and_broken_avifs_are_unreadable():
    dds = bytearray(saved(Image.new("RGB", (4, 4)), "DDS"))
    dds[76:88] = struct.pack("<II4s", 32, 4, b"ABCD")  # NotImplementedError in Pillow
    for data in (dds, b"", b"text", saved(Image.fromarray(noise(40, 40, 3)), "PNG")[:900]):
        with pytest.raises(UnreadableImageError, match="^The image 'x' cannot be read: "):
            to_rgb(bytes(data), "x")
    avif, causes = saved(Image.fromarray(noise(16, 16, 3)), "AVIF"), set()
    for place in range(len(avif)):
        try:
            assert to_rgb(avif[:place] + b"\0" + avif[place + 1 :], "x").size == (16, 16)
        except UnreadableImageError as error:
            causes.add(type(error.__cause__))
    assert RuntimeError in causes


def test_what_is_no_image_is_said_to_be_none(tmp_path):
    for value in (7, 0.5, [1, 2], object()):
        with pytest.raises(UnreadableImageError, match=f"it is not an image but of type {type(value).__name__}"):
            to_rgb(value, "row 3")
    with pytest.raises(UnreadableImageError, match="it is not a regular file"):
        to_rgb(tmp_path, "x")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(UnreadableImageError, match=r"pipe.png' cannot be read: it is not a regular file"):
            to_rgb(str(tmp_path / "pipe.png"), "x")


def test_documents_are_opened_by_no_other_program(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (4, 4)), "EPS"))
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        to_rgb(tmp_path / "a.png", "x")
    assert "EPS" not in picture_formats() and {"PNG", "JPEG", "AVIF"} <= set(picture_formats())


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    data = saved(Image.new("RGB", (40, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # twice as many are an error of Pillow's
    assert to_rgb(data, "x").size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", raising(AssertionError))
    with pytest.raises(UnreadableImageError, match="1200 pixels"):
        to_rgb(data, "x")


def test_a_picture_in_memory_is_left_as_it_was():
    image = Image.new("P", (3, 2))
    image.info["transparency"] = 0
    assert to_rgb(image, "x").mode == "RGB" and image.mode == "P" and image.info == {"transparency": 0}
