"""`encode` and `decode`: what Python would do, the printed figures, and errors that leave files alone."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, ModelBasedVQCodec
from diffusers_lasers.metrics import PSNR


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]


def as_picture(sample):
    return ((sample.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def psnr(first, second):
    metric = PSNR()
    metric.update(first, second)
    return f"{float(metric.compute()):.2f}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["dl", "shared", "vq"])
def test_files_are_those_of_the_model(run, name):
    model = AutoencoderDL.from_pretrained(f"saved/{name}").eval()
    code = model.encode_to_code(pixels("saved/a.png").float() / 127.5 - 1)
    status, output, errors = run(f"encode saved/a.png a.code --model saved/{name} --psnr")
    assert (status, errors) == (0, "")
    data = Path("a.code").read_bytes()
    assert data == model.bottleneck.pack(code)

    expected = as_picture(model.decode_from_code(code).sample)
    status, decoded, errors = run(f"decode a.code back.png --model saved/{name} --reference saved/a.png")
    assert (status, errors) == (0, "")
    assert torch.equal(pixels("back.png"), expected)

    nominal = model.bits(code)  # 22 × 31 pixels, two a latent position
    assert model.bits_per_pixel(22, 31) == pytest.approx(nominal / (22 * 31))
    for text in (output, decoded):
        assert f"{len(data)} bytes, {8 * len(data) / 682:.4f} bits a pixel" in text
        assert f"nominal: {nominal:.0f} bits, {nominal / 682:.4f} bits a pixel" in text
        assert f"compression: {24 * 682 / (8 * len(data)):.2f} times" in text
        assert f"PSNR: {psnr(expected, pixels('saved/a.png'))} dB" in text
    assert sorted(path.name for path in Path().iterdir()) == ["a.code", "back.png", "saved"]


def test_images_of_every_kind_come_in(run):
    """Grey of 16 bits as that of 8, what is transparent as white; a reader's own error is one line."""
    levels = np.linspace(0, 255, 31 * 22).astype(np.uint8).reshape(22, 31)
    Image.fromarray(levels).save("plain.png")
    Image.fromarray(levels * np.uint16(257)).save("deep.png")
    Image.new("RGB", (31, 22), "white").save("white.png")
    Image.new("RGBA", (31, 22), (200, 0, 0, 0)).save("clear.png")
    Path("codes").mkdir()
    assert run("encode plain.png deep.png white.png clear.png codes --model saved/dl")[0] == 0
    for first, second in (("plain", "deep"), ("white", "clear")):
        assert Path(f"codes/{first}.code").read_bytes() == Path(f"codes/{second}.code").read_bytes()
    dds = bytearray(124 + 4)
    dds[:4], dds[4], dds[12], dds[16], dds[76], dds[80], dds[84:88] = b"DDS ", 124, 4, 4, 32, 4, b"ABCD"
    Path("x.dds").write_bytes(dds)
    for line in ("encode x.dds x.code --model saved/dl", "evaluate saved/dl --data x.dds"):
        code, output, errors = run(line)
        assert (code, output) == (2, "") and errors.count("\n") == 1 and "The image 'x.dds' cannot be read: " in errors


@torch.no_grad()
def test_a_codec_writes_its_own_format(run):
    codec = ModelBasedVQCodec.from_pretrained("saved/codec")
    assert run("encode saved/a.png a.code --model saved/codec")[0] == 0
    output = codec.encode(pixels("saved/a.png").float() / 127.5 - 1)
    assert Path("a.code").read_bytes() == codec.pack(output.codes, output.image_size)
    assert run("decode a.code back.png --model saved/codec")[0] == 0
    assert torch.equal(pixels("back.png"), as_picture(codec.decode(output.codes, output.image_size).sample))


@torch.no_grad()
def test_sparsity_and_bits_are_in_the_file(run):
    model = AutoencoderDL.from_pretrained("saved/dl").eval()
    model.bottleneck.set_coefficient_bits(4)
    code = model.bottleneck.truncate(model.encode_to_code(pixels("saved/a.png").float() / 127.5 - 1), 2)
    nominal = f"nominal: {model.bottleneck.site_bits(2) * 11 * 16:.0f} bits"
    assert nominal in run("encode saved/a.png a.code --model saved/dl --sparsity 2 --coefficient_bits 4")[1]
    assert Path("a.code").read_bytes() == model.bottleneck.pack(code)
    assert nominal in run("decode a.code back.png --model saved/dl")[1]
    assert torch.equal(pixels("back.png"), as_picture(model.decode_from_code(code).sample))

    assert run("encode saved/a.png float.code --model saved/dl --coefficient_bits float")[0] == 0
    assert Path("float.code").stat().st_size > 3 * 11 * 16 * 4
    assert run("decode float.code back.png --model saved/dl")[0] == 0


def test_several_files_and_parts_of_pipelines(run):
    Path("codes").mkdir()
    status, output, _ = run("encode saved/a.png saved/b.png codes --model saved/pipeline --subfolder vae")
    assert status == 0 and output.count("->") == 2
    assert run("encode saved/b.png b.code --model saved/dl")[0] == 0
    assert Path("codes/b.code").read_bytes() == Path("b.code").read_bytes()
    assert run("decode codes/a.code codes/b.code codes --model saved/dl --device cpu")[0] == 0
    assert Image.open("codes/a.png").size == (31, 22) and Image.open("codes/b.png").size == (24, 40)


ENCODE = [
    ("nothing.png x.code --model saved/dl", "There is no file nothing.png"),
    ("saved/dl/config.json x.code --model saved/dl", "'saved/dl/config.json' cannot be read"),
    ("saved/a.png no/x.code --model saved/dl", "There is no folder no"),
    ("saved/a.png saved/b.png x.code --model saved/dl", "x.code must be a folder that is there for 2 files"),
    (
        "saved/a.png saved/a.png saved/empty --model saved/dl",
        "Two of the files would be written to saved/empty/a.code",
    ),
    ("saved/a.png saved/a.png --model saved/dl", "saved/a.png would be overwritten"),
    ("saved/a.png x.code --model no/such/folder", "There is no folder 'no/such/folder'"),
    ("saved/a.png x.code --model saved/a.png", "saved/a.png is a file"),
    ("saved/a.png x.code --model saved/empty", "saved/empty holds neither config.json nor model_index.json"),
    ("saved/a.png x.code --model saved/dl --subfolder vae", "saved/dl has no subfolder 'vae'"),
    ("saved/a.png x.code --model saved/unet", "class UNet2DModel, supported are AutoencoderDL, ModelBasedVQCodec."),
    ("saved/a.png x.code --model saved/pipeline", "; --subfolder vae names its part."),
    ("saved/a.png x.code --model saved/truncated", "saved/truncated cannot be loaded: "),
    ("saved/a.png x.code --model saved/unfitted", "codec is not fitted"),
    ("saved/a.png x.code --model saved/none", "which makes no code"),
    ("saved/a.png x.code --model saved/vq --sparsity 1", "--sparsity is for models with a dictionary"),
    (
        "saved/a.png x.code --model saved/codec --coefficient_bits 4",
        "--coefficient_bits is for models with a dictionary",
    ),
    ("saved/a.png x.code --model saved/dl --sparsity 4", "must be from 1 to the code's 3, got 4"),
    ("saved/a.png x.code --model saved/dl --coefficient_bits 17", "from 1 to 16 or None, got 17"),
    ("saved/a.png x.code --model saved/dl --device abacus", "--device abacus cannot be used here"),
]
DECODE = [
    ("nothing.code x.png --model saved/dl", "There is no file nothing.code"),
    ("good.code x.png --model saved/shared", "good.code: the data must be packed by this DictionaryBottleneck"),
    ("good.code x.png --model saved/codec", "good.code: the data must be packed codes of a ModelBasedVQCodec"),
    ("cut.code x.png --model saved/dl", "cut.code: the data must be whole"),
    ("changed.code x.png --model saved/dl", "changed.code: the data must be whole"),
    ("saved/a.png x.png --model saved/dl", "saved/a.png: the data must be the packed code of a bottleneck"),
    ("good.code x.xyz --model saved/dl", "x.xyz must end with the suffix of a picture format"),
    ("good.code x.png --model saved/dl --reference saved/b.png", "31 × 22 pixels, it is 24 × 40"),
    ("good.code cut.code saved/empty --model saved/dl --reference saved/a.png", "--reference is for one code file"),
    ("two.code x.png --model saved/dl", "two.code: it holds the codes of 2 images"),
]


@pytest.mark.parametrize("line, message", ENCODE, ids=[line for line, _ in ENCODE])
def test_errors_of_encode_are_one_line_and_write_nothing(run, line, message):
    check_error(run(f"encode {line}"), message)


@pytest.mark.parametrize("line, message", DECODE, ids=[line for line, _ in DECODE])
def test_errors_of_decode_are_one_line_and_write_nothing(run, line, message):
    model = AutoencoderDL.from_pretrained("saved/dl").eval()
    image = pixels("saved/a.png").float() / 127.5 - 1
    data = model.bottleneck.pack(model.encode_to_code(image))
    Path("good.code").write_bytes(data)
    Path("cut.code").write_bytes(data[:-1])
    Path("changed.code").write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    Path("two.code").write_bytes(model.bottleneck.pack(model.encode_to_code(image.repeat(2, 1, 1, 1))))
    Path("x.png").write_bytes(b"old")
    check_error(run(f"decode {line}"), message)
    assert Path("x.png").read_bytes() == b"old"


def check_error(result, message):
    code, output, errors = result
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors
    assert re.match(r"diffusers-lasers (en|de)code: error: ", errors)
    left = {path.name for path in (*Path().iterdir(), *Path("saved/empty").iterdir())}
    assert left <= {"saved", "good.code", "cut.code", "changed.code", "two.code", "x.png"}


def test_a_write_that_fails_leaves_the_old_file(run, monkeypatch):
    Path("a.code").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, output, errors = run("encode saved/a.png a.code --model saved/dl")
    assert (code, output) == (2, "") and "No space left on device" in errors
    assert Path("a.code").read_bytes() == b"old"
    assert sorted(path.name for path in Path().iterdir()) == ["a.code", "saved"]
