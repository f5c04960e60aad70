"""Figures and their files: formats, whole files, threads, and what happens without matplotlib."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import diffusers_lasers
from diffusers_lasers.visualization import rate_distortion, save_figure
from diffusers_lasers.visualization.figures import new_figure
from diffusers_lasers.visualization.image_grids import to_image


def test_formats(tmp_path):
    figure, axes = new_figure(2, 3, width=2, height=1)
    assert len(axes) == 6 and tuple(figure.get_size_inches()) == (6, 2)
    for name, start in (("a.png", b"\x89PNG"), ("b.PDF", b"%PDF"), ("c.svg", b"<?xml")):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert Image.open(tmp_path / "a.png").size == (720, 240)
    save_figure(figure, str(tmp_path / "a.png"), dpi=50)
    assert Image.open(tmp_path / "a.png").size == (300, 100)
    save_figure(figure, tmp_path / "d.pdf")
    assert (tmp_path / "d.pdf").read_bytes() == (tmp_path / "b.PDF").read_bytes()  # no date
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.PDF", "c.svg", "d.pdf"]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    figure, _ = new_figure()
    path = tmp_path / "a.png"
    save_figure(figure, path)
    before = path.read_bytes()

    def fail(file, **options):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        save_figure(figure, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_written_are_refused(tmp_path):
    figure, _ = new_figure()
    with pytest.raises(ValueError, match=r"`path` must end with one of \['.pdf', '.png', '.svg'\], got 'a.bmp'"):
        save_figure(figure, tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="`dpi` must be at least 1, got 0"):
        save_figure(figure, tmp_path / "a.png", dpi=0)
    assert not list(tmp_path.iterdir())


def test_threads_draw_their_own_figures(tmp_path):
    def draw(number):
        save_figure(rate_distortion({"a": [(step, number * step) for step in range(5)]}), tmp_path / f"{number}.png")
        return (tmp_path / f"{number}.png").read_bytes()

    alone = [draw(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone
    assert len(set(alone)) == 4


def test_pictures_need_no_matplotlib_and_figures_no_pyplot(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    save_figure(rate_distortion({"a": [(1, 2)]}, log_rate=True), tmp_path / "a.png")
    for name in list(sys.modules):
        if name.startswith("diffusers_lasers.visualization"):
            monkeypatch.delitem(sys.modules, name)
        elif name.split(".")[0] in ("matplotlib", "umap", "scipy"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(diffusers_lasers, "visualization", diffusers_lasers.visualization)  # put back at the end
    fresh = importlib.import_module("diffusers_lasers.visualization")
    assert fresh.image_grids.to_image is not to_image and fresh.image_grids.to_image(torch.zeros(1, 2, 2)).size == (
        2,
        2,
    )
    fresh.atom_tiles(torch.eye(4))


def test_matplotlib_is_missed_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install diffusers_lasers\[visualization\]"):
        new_figure()
