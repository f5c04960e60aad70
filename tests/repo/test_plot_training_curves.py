"""The picture of training curves from logs, and the figures beside it."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "plot_training_curves.py"


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


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("plot_training_curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_picture_and_the_figures_across_the_start(plot, tmp_path, capsys):
    runs = [write(tmp_path / "vae", None), write(tmp_path / "gan", 50)]
    picture = tmp_path / "pictures" / "curves.png"
    plot([*runs, "--labels", "VAE", "GAN", "--zoom", "30", "--output", str(picture)])
    stdout = capsys.readouterr().out
    assert "GAN: PSNR, dB 20.5000 before step 50, then 19.6000; worst 19.6000" in stdout
    assert "GAN: LPIPS 0.4500 before step 50, then 0.4400; worst 0.4400" in stdout and "VAE" not in stdout
    assert min(Image.open(picture).size) > 300
    plot(
        [runs[0], "--figures", "validation_lpips", "--smooth", "5", "--zoom", "9", "--output", str(tmp_path / "a.pdf")]
    )
    assert capsys.readouterr().out == "" and (tmp_path / "a.pdf").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--labels", "a", "b"], "--labels must be as many as the runs, 1, got 2"),
        (["RUN"], "--labels must tell the runs apart, got vae vae"),
        ([".."], "holds no training_log.jsonl"),
        (["--smooth", "4"], "`smooth` must be an odd number of at least 3, got 4"),
        (["--figures", "lpips"], "`figures` must be names in the records"),
        (["--output", "a.bmp"], "`path` must end with one of"),
    ],
)
def test_what_cannot_be_drawn_is_named(plot, tmp_path, capsys, monkeypatch, arguments, sentence):
    run = write(tmp_path / "vae", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        plot([run, *(run if argument == "RUN" else argument for argument in arguments)])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
