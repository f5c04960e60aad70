"""The picture of training curves from logs, and the figures beside it."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image


SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "plot_training_curves.py"


def write(folder, start):
    folder.mkdir()
    settings = {"arguments": {"discriminator_start": start}, "discriminator": {} if start else None}
    (folder / "settings.json").write_text(json.dumps(settings))
    lines = [
        {"step": step, "validation_psnr": 20 + step / 100 - (step == 60), "validation_lpips": 0.5 - step / 1000}
        for step in range(10, 101, 10)
    ]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def plot(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_the_picture_and_the_figures_across_the_start(tmp_path):
    runs = [write(tmp_path / "vae", None), write(tmp_path / "gan", 50)]
    result = plot(
        *runs, "--labels", "VAE", "GAN", "--zoom", "30", "--output", str(tmp_path / "pictures" / "curves.png")
    )
    assert result.returncode == 0, result.stderr
    assert "GAN: PSNR, dB 20.5000 before step 50, then 19.6000; worst 19.6000" in result.stdout
    assert (
        "GAN: LPIPS 0.4500 before step 50, then 0.4400; worst 0.4400" in result.stdout and "VAE" not in result.stdout
    )
    assert min(Image.open(tmp_path / "pictures" / "curves.png").size) > 300


def test_what_cannot_be_drawn_is_named(tmp_path):
    run = write(tmp_path / "vae", None)
    assert "--labels must be as many as the runs, 1, got 2" in plot(run, "--labels", "a", "b").stderr
    assert "holds no training_log.jsonl" in plot(str(tmp_path)).stderr
