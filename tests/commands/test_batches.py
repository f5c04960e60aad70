"""Several files, and files as people have them: one that fails, names that no terminal can print, links, pipes, formats
that nothing writes, codes of strangers.
"""

import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from diffusers_lasers import AutoencoderDL, ModelBasedVQCodec, VectorQuantizerBottleneck
from diffusers_lasers.commands import decode, encode, main


ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes and modes of POSIX")


def start(*words, folder, **variables):
    """Runs a command line in a process of its own; words and outputs are bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "diffusers_lasers", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, timeout=300)


# Several files


def test_one_unreadable_image_does_not_stop_the_others(run):
    Path("codes").mkdir()
    Path("bad.png").write_bytes(Path("saved/a.png").read_bytes()[:200])
    code, output, errors = run("encode saved/a.png bad.png saved/b.png codes --model saved/dl")
    lines = errors.splitlines()
    assert code == 2 and output.count("->") == 2 and len(lines) == 2
    assert lines[0].startswith("diffusers-lasers encode: error: ") and "bad.png" in lines[0]
    assert lines[1] == "diffusers-lasers encode: error: 1 of 3 images failed."
    assert sorted(path.name for path in Path("codes").iterdir()) == ["a.code", "b.code"]


def test_one_damaged_code_does_not_stop_the_others(run):
    Path("codes").mkdir()
    assert run("encode saved/a.png saved/b.png codes --model saved/dl")[0] == 0
    Path("codes/aa.code").write_bytes(Path("codes/a.code").read_bytes()[:-1])
    code, output, errors = run("decode codes/a.code codes/aa.code codes/b.code codes --model saved/dl")
    assert code == 2 and output.count("->") == 2 and "codes/aa.code: the data must be whole" in errors
    assert errors.endswith("error: 1 of 3 code files failed.\n") and Path("codes/b.png").exists()


def test_debug_shows_where_each_error_comes_from(run):
    Path("codes").mkdir()
    Path("bad.png").write_bytes(b"no picture")
    code, _, errors = run("encode bad.png saved/b.png codes --model saved/dl --debug")
    assert code == 2 and errors.count("Traceback") >= 2 and Path("codes/b.code").exists()


def test_evaluate_leaves_out_what_cannot_be_read_and_says_so(run):
    Path("photos").mkdir()
    shutil.copy("saved/a.png", "photos")
    shutil.copy("saved/b.png", "photos/c.png")
    Path("photos/b.png").write_bytes(Path("saved/a.png").read_bytes()[:200])
    code, output, errors = run("evaluate saved/dl saved/vq --data photos --json results.json")
    assert (
        code == 2 and "2 whole images of photos; means over images. 1 that could not be read were left out." in output
    )
    assert len(errors.splitlines()) == 2 and "photos/b.png" in errors and "1 of 3 images could not be read" in errors
    results = json.loads(Path("results.json").read_text(encoding="utf-8"))
    assert results["data"]["images"] == 2 and "photos/b.png" in results["data"]["unreadable"][0]
    assert len(results["models"]) == 2 and results["protocols"]["psnr"]["n"] == 2
    Path("photos/b.png").unlink()
    assert run("evaluate saved/dl saved/vq --data photos --json again.json")[0] == 0
    assert json.loads(Path("again.json").read_text(encoding="utf-8"))["models"] == results["models"]


def test_evaluate_prints_the_models_that_could_be_judged(run):
    code, output, errors = run("evaluate saved/dl saved/truncated saved/vq --data saved/a.png --json results.json")
    assert code == 2 and "| saved/dl " in output and "| saved/vq " in output and "| saved/truncated" not in output
    assert "saved/truncated cannot be loaded" in errors and errors.endswith("error: 1 of 3 models failed.\n")
    assert len(json.loads(Path("results.json").read_text(encoding="utf-8"))["models"]) == 2


# Names


NAMES = [b"pic\xff", "naïve 写真".encode()]


@pytest.fixture
def unprintable(saved, tmp_path):
    """A folder with pictures, a model and an empty folder of names that ASCII or no encoding has."""
    folder = os.fsencode(tmp_path)
    for name in NAMES:
        shutil.copy(os.fsencode(saved / "a.png"), os.path.join(folder, name + b".png"))
    for name in ("modèle".encode(), b"model\xff"):
        shutil.copytree(os.fsencode(saved / "dl"), os.path.join(folder, name))
    os.mkdir(os.path.join(folder, b"out\xff"))
    return tmp_path


@posix
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_no_terminal_prints_stop_nothing(unprintable, monkeypatch, encoding):
    monkeypatch.chdir(unprintable)

    def call(*words):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors) for errors in ("strict", "backslashreplace")]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        try:
            code = main([os.fsdecode(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        finally:
            monkeypatch.setattr(sys, "stdout", sys.__stdout__)
            monkeypatch.setattr(sys, "stderr", sys.__stderr__)
        for stream in streams:
            stream.flush()
        return code, *(stream.buffer.getvalue() for stream in streams)

    model, out = (b"--model", "modèle".encode()), b"out\xff"
    code, output, errors = call(b"encode", *(name + b".png" for name in NAMES), out, *model)
    assert (code, errors) == (0, b"") and output.count(b"->") == 2
    codes = [os.path.join(out, name + b".code") for name in NAMES]
    assert call(b"decode", *codes, out, *model)[::2] == (0, b"")
    assert set(os.listdir(out)) == {name + suffix for name in NAMES for suffix in (b".code", b".png")}

    with open(codes[0], "r+b") as file:
        file.truncate(50)
    code, output, errors = call(b"decode", *codes, out, *model)
    assert code == 2 and output.count(b"->") == 1 and b"pic\\udcff.code: the data must be whole" in errors

    words = (b"evaluate", model[1], b"--data", b"pic\xff.png", b"--json", b"result\xff.json")
    code, output, _ = call(*words)
    assert code == 0 and b"images of pic\\udcff.png" in output
    with open(b"result\xff.json", encoding="utf-8") as file:
        assert json.load(file)["data"]["source"] == "pic\udcff.png"

    code, output, _ = call(b"inspect", model[1], b"--json")
    assert code == 0 and json.loads(output)["rate"]["pixels_per_site"] == "2 × 2"
    assert call(b"inspect", model[1])[0] == 0 and call(b"decode", b"--help")[0] == 0
    code, output, errors = call(b"inspect", b"model\xff")  # safetensors opens UTF-8 alone
    assert (code, output) == (2, b"") and errors.count(b"\n") == 1 and b"model\\udcff cannot be loaded" in errors


@posix
def test_nor_in_a_process_of_the_c_locale(unprintable):
    words = [b"encode", *(name + b".png" for name in NAMES), b"out\xff", b"--model", "modèle".encode()]
    process = start(*words, folder=unprintable, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (process.returncode, process.stderr) == (0, b"") and process.stdout.count(b"->") == 2


def test_the_streams_are_as_before(run):
    before = sys.stdout.errors, sys.stderr.errors
    run("env")
    run("encode nothing.png x.code --model saved/dl")
    assert (sys.stdout.errors, sys.stderr.errors) == before


# Where to


LINES = {
    "code": "encode saved/a.png {} --model saved/dl",
    "png": "decode good.code {} --model saved/dl",
    "json": "evaluate saved/dl --data saved/a.png --json {}",
}


@posix
@pytest.mark.parametrize("suffix, line", LINES.items())
def test_links_are_followed_and_modes_kept(run, suffix, line):
    assert run("encode saved/a.png good.code --model saved/dl")[0] == 0
    Path("private").mkdir()
    target = Path(f"private/target.{suffix}")
    target.write_bytes(b"old")
    target.chmod(0o600)
    Path(f"link.{suffix}").symlink_to(target)
    assert run(line.format(f"link.{suffix}"))[0] == 0
    assert Path(f"link.{suffix}").is_symlink() and target.read_bytes() not in (b"", b"old")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600 and list(Path("private").iterdir()) == [target]
    Path(f"new.{suffix}").symlink_to(f"private/new.{suffix}")  # to nothing yet
    assert run(line.format(f"new.{suffix}"))[0] == 0 and Path(f"private/new.{suffix}").is_file()


@posix
@pytest.mark.parametrize("suffix, line", LINES.items())
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_before_any_work(run, monkeypatch, suffix, line, kind):
    assert run("encode saved/a.png good.code --model saved/dl")[0] == 0
    target = Path(f"target.{suffix}")
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "device":
        target.symlink_to("/dev/null")
    elif suffix == "json":
        target.mkdir()
    else:
        pytest.skip("a folder is where several go")
    for module in (encode, decode):
        monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    before = target.stat()
    code, output, errors = run(line.format(target))
    assert (code, output) == (2, "") and errors.count("\n") == 1
    assert f"{target} must be a regular file or new" in errors and target.stat().st_mode == before.st_mode


@posix
def test_pipes_as_inputs_stop_nothing(run):
    os.mkfifo("a.png")
    os.mkfifo("a.code")
    assert "There is no file a.png" in run("encode a.png x.code --model saved/dl")[2]
    assert "There is no file a.code" in run("decode a.code x.png --model saved/dl")[2]


@pytest.mark.parametrize("suffix", ["psd", "xbm", "palm", "grib", "h5", "mpg", "fits", "xyz", ""])
def test_formats_that_cannot_be_written_are_refused_before_any_work(run, monkeypatch, suffix):
    assert run("encode saved/a.png good.code --model saved/dl")[0] == 0
    monkeypatch.setattr(decode, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    code, output, errors = run(f"decode good.code x.{suffix} --model saved/dl")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and not Path(f"x.{suffix}").exists()
    assert "must end with the suffix of a picture format that Pillow can write" in errors


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "JPEG", "pdf", "ppm", "tga", "tif", "webp", "ico"])
def test_formats_that_can_be_written_are(run, suffix):
    assert run("encode saved/a.png good.code --model saved/dl")[0] == 0
    assert run(f"decode good.code x.{suffix} --model saved/dl")[0] == 0 and Path(f"x.{suffix}").stat().st_size > 60


# Options


@pytest.mark.parametrize(
    "line",
    [
        "encode saved/a.png x.code --mod saved/dl",
        "encode saved/a.png x.code --model saved/dl --spars 1",
        "decode a.code x.png --model saved/dl --ref saved/a.png",
        "evaluate saved/dl --max 1",
        "inspect saved/dl --js",
        "env --js",
    ],
)
def test_abbreviations_are_refused(run, line):
    code, output, errors = run(line)
    assert (code, output) == (2, "") and errors.count("\n") == 1 and not Path("x.code").exists()


def test_what_is_not_known_is_named_without_its_value(run):
    assert "unrecognized arguments: --hub_token; see" in run("env --hub_token hf_a")[2]
    assert "hf_a" not in run("inspect saved/dl --hub_token=hf_a")[2]


# Codes of strangers


def sealed(data, **fields):
    """A packed code with other numbers in its header, and the checksum of those."""
    offsets = {"batch": (10, "I"), "latent_height": (14, "I"), "latent_width": (18, "I"), "height": (22, "I")}
    offsets |= {"width": (26, "I"), "slots": (30, "H"), "bits": (32, "B")}
    data = bytearray(data)
    for name, value in fields.items():
        struct.pack_into("<" + offsets[name][1], data, offsets[name][0], value)
    data[33:37] = struct.pack("<I", zlib.crc32(data[37:], zlib.crc32(data[:33])))
    return bytes(data)


LARGE = {"latent_height": 2**16, "latent_width": 2**16, "height": 2**17, "width": 2**17}


def test_a_header_cannot_ask_for_more_than_is_allowed(run):
    """A codebook of one word costs no bits, so that 37 bytes may name an image of any size."""
    model = AutoencoderDL(
        block_out_channels=(8, 8), residual_channels=4, layers_per_block=1, latent_channels=4,
        bottleneck_type="vq", bottleneck_config={"num_codewords": 1},
    )  # fmt: skip
    assert isinstance(model.bottleneck, VectorQuantizerBottleneck)
    model.save_pretrained("one")
    assert run("encode saved/a.png a.code --model one")[0] == 0
    data = Path("a.code").read_bytes()
    assert len(data) == 37
    start = time.monotonic()
    Path("bomb.code").write_bytes(sealed(data, **LARGE))
    code, output, errors = run("decode bomb.code x.png --model one")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and time.monotonic() - start < 20
    assert "it names an image of 17179869184 pixels, more than --max_pixels 33554432" in errors
    Path("free.code").write_bytes(sealed(data, latent_height=2**8, latent_width=2**9, height=2**9, width=2**10))
    assert "raise --max_pixels where you trust it" in run("decode free.code x.png --model one")[2]
    assert run("decode free.code x.png --model one --max_pixels 1000000")[0] == 0
    assert run("decode a.code x.png --model one --max_pixels 703")[0] == 2  # 22 × 32 pixels are decoded
    assert run("decode a.code x.png --model one --max_pixels 704")[0] == 0
    assert "--max_pixels must be at least 1, got 0" in run("decode a.code x.png --model one --max_pixels 0")[2]
    Path("long.code").write_bytes(data + bytes(10_000))
    assert "long.code must have at most 8064 bytes" in run("decode long.code x.png --model one --max_pixels 1000")[2]


@pytest.mark.parametrize("name", ["dl", "shared", "vq", "codec"])
def test_every_damage_of_a_code_file_is_one_line(run, name):
    """Numbers and bytes of headers and payloads, most of them with a checksum that fits."""
    assert run(f"encode saved/a.png good.code --model saved/{name}")[0] == 0
    data, source = Path("good.code").read_bytes(), random.Random(0)
    Path("bad").mkdir()
    Path("out").mkdir()
    edges = [0, 1, 2, 3, 7, 2**15, 2**16 - 1, 2**31, 2**32 - 1]
    cases = [sealed(data, **LARGE), sealed(data, slots=0), sealed(data, batch=0), b"", data[:36], data[:37]]
    for _ in range(80):
        field = source.choice(["batch", "latent_height", "latent_width", "height", "width", "slots", "bits"])
        most = {"slots": 2**16 - 1, "bits": 255}.get(field, 2**32 - 1)
        cases.append(sealed(data, **{field: min(source.choice(edges), most)}))
        changed = bytearray(data)
        changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
        cases += [bytes(changed), sealed(changed), sealed(changed[: source.randrange(37, len(changed))])]
    for number, case in enumerate(cases):
        Path(f"bad/{number:03}.code").write_bytes(case)
    words = " ".join(f"bad/{number:03}.code" for number in range(len(cases)))
    code, output, errors = run(f"decode {words} out --model saved/{name}")
    lines = errors.splitlines()
    assert code == 2 and len(lines) + output.count("->") == len(cases) + 1 and len(lines) > 150
    assert all(line.startswith("diffusers-lasers decode: error: ") for line in lines)
    assert len(list(Path("out").iterdir())) == output.count("->")
    assert all(Image.open(path).size[0] * Image.open(path).size[1] < 2**20 for path in Path("out").iterdir())


def test_codecs_take_the_limit_too(run):
    codec = ModelBasedVQCodec.from_pretrained("saved/codec")
    assert run("encode saved/a.png a.code --model saved/codec")[0] == 0
    side = codec.config.patch_size
    Path("bomb.code").write_bytes(
        sealed(
            Path("a.code").read_bytes(),
            latent_height=2**14,
            latent_width=2**14,
            height=side * 2**14,
            width=side * 2**14,
        )
    )
    code, output, errors = run("decode bomb.code x.png --model saved/codec")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and "--max_pixels 33554432" in errors
