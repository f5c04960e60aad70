"""Files that are whole or the old ones."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffusers_lasers.utils import save_image, write_bytes, write_json, write_text


def test_contents_come_back_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a.md", "ᾱ\n")
    write_json(tmp_path / "b.json", {"inf": float("inf"), "list": [1, float("nan")], "path": Path("x"), "c̄": 1.5})
    save_image(tmp_path / "c.png", Image.new("RGB", (3, 2), "red"))
    write_bytes(tmp_path / "d.code", b"\x00\r\n")
    assert (tmp_path / "d.code").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "ᾱ\n"
    expected = {"inf": "inf", "list": [1, "nan"], "path": "x", "c̄": 1.5}
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == expected
    assert Image.open(tmp_path / "c.png").getpixel((2, 1)) == (255, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "b.json", "c.png", "d.code"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {(1, 2): "a key that JSON has not"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
