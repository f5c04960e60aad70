"""The attack of the image readers: it runs, repeats, and finds what is planted."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


UTILS = Path(__file__).resolve().parents[2] / "utils"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(UTILS))
    import fuzz_images

    yield fuzz_images
    sys.modules.pop("fuzz_images", None)


def test_a_few_hundred_damaged_files_are_decoded_or_refused(fuzz, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz_images.py", "--count", "400", "--seed", "5"])
    assert fuzz.main() == 0
    output = capsys.readouterr().out
    assert "400 files" in output and "0 failures" in output
    decoded, refused, failed = (int(cell) for cell in output.split("| all |")[1].splitlines()[0].split("|")[:3])
    assert decoded > 50 and refused > 50 and failed == 0


def test_whole_files_are_of_all_formats_and_the_same_each_time(fuzz):
    files = fuzz.whole_files()
    assert {"AVIF", "DDS", "GIF", "JPEG", "JPEG2000", "PNG", "PSD", "TIFF", "WEBP", "XPM"} <= set(files)
    for name, kinds in files.items():
        assert "decoded" in {fuzz.decode(data) for data in kinds}, name
    assert [fuzz.damaged(files, 3, n) for n in range(50)] == [fuzz.damaged(files, 3, n) for n in range(50)]


@pytest.mark.parametrize("fault", ["error", "memory", "mode", "crash", "hang"])
def test_what_is_planted_is_found(fuzz, monkeypatch, capsys, fault):
    def to_rgb(data, name):
        if fault == "error":
            raise RuntimeError("not told")
        if fault == "memory":
            np.ones(2**31, dtype=np.uint8)
        if fault == "crash":
            __import__("os")._exit(11)
        while fault == "hang":
            pass
        return Image.new("L", (4, 4))

    monkeypatch.setattr(fuzz, "to_rgb", to_rgb)
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    monkeypatch.setattr(sys, "argv", ["fuzz_images.py", "--count", "2"])
    assert fuzz.main() == 1
    output = capsys.readouterr().out
    assert "--seed 0 --first 1 --count 1: " in output and "2 failures" in output
