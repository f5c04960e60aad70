"""Runs examples/reproduce/run.py on configurations of its own, and checks that the real ones name runs, scripts and
flags that exist."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, SparseCode
from diffusers_lasers.metrics import PSNR
from diffusers_lasers.training import ImageDataset


EXAMPLES = Path(__file__).parents[2] / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses of a script look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runner():
    return load(EXAMPLES / "reproduce" / "run.py")


@pytest.mark.parametrize(("book", "scale"), [("papers", "cpu"), ("papers", "paper"), ("codes", "cpu")])
def test_the_real_configurations_name_what_exists(runner, book, scale, tmp_path):
    words = ["--book", book, "--scale", scale, "--data", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    args = runner.parse_args(words)
    configs, runs = runner.load_configs(book), runner.load_runs(book, scale)
    for config in configs.values():
        assert config["title"] and config["about"] and set(config["comparable"]) == {"rate", "metric", "data"}
        titles = {column["title"] for column in config["columns"]}
        for row in config["rows"]:
            assert set(row.get("printed", {})) <= titles
        assert (
            not config["rows"]
            or any(column["key"].startswith("bits_per_") for column in config["columns"])
            or ("bits a pixel" in config["about"])
        )
    order = runner.in_order([name for config in configs.values() for name in runner.wanted(config)], runs)
    assert set(order) == set(runs)  # none is left over
    parsers, parsed = {}, 0
    for name in order:
        words, folder = runner.command(name, runs[name], args)
        script = Path(words[1]).resolve()
        assert script.is_file() and not [
            word for word in words if "{run:" in word or "{data}" in word or "{out}" in word
        ]
        assert any(word.startswith(str(folder)) for word in words[2:])
        if script not in parsers:
            parsers[script] = getattr(load(script), "parse_args", None)
        if parsers[script] is not None:
            result = parsers[script](words[2:])
            parsed += 1
        if name == "retrofit":  # its rows are found by the names of its configurations
            labels = {sys.modules["evaluate_retrofit"].label(settings) for settings in result.parsed}
            assert labels.issuperset(row["where"]["name"] for row in configs["lasers_table_8"]["rows"] if "run" in row)
    assert parsed >= len(order) - 1  # plot_codebook_order.py has no parser of its own name


SCRIPT = """
import json, sys, pathlib
folder, value, *others = sys.argv[1:]
if value == "fail":
    sys.exit("no luck")
values = [json.loads((pathlib.Path(o) / "results.json").read_text())["models"][0]["psnr"] for o in others]
with open(pathlib.Path(folder) / "calls", "a") as calls:
    calls.write("x")
results = {"models": [{"name": "a", "psnr": float(value) + sum(values)}]}
(pathlib.Path(folder) / "results.json").write_text(json.dumps(results))
from PIL import Image
Image.new("RGB", (2000, 20), "red").save(pathlib.Path(folder) / "grid.png")
"""
RUNS = """
page: {title: A page, about: All of it., cpu: Small.}
templates:
  script: {script: script.py, arguments: "{out}"}
runs:
  first: {templates: [script], cpu: "1", paper: "10"}
  second: {templates: [script], cpu: "2 {run:first}", paper: "20 {run:first}"}
  broken: {templates: [script], arguments: fail}
  after: {templates: [script], arguments: "3 {run:broken}"}
"""
TABLE = """
title: A table
about: Something.
columns: [{title: dB, key: psnr, format: .1f, times: 2}, {title: bits a pixel, key: bits_per_pixel}]
rows:
  - {label: one, run: second, path: [models], where: {name: a}, printed: {dB: 7.25}}
  - {label: two, printed: {bits a pixel: more}}
pictures: [{file: "{run:second}/grid.png", caption: Red}]
comparable: {rate: no, metric: 'yes', data: none}
"""


@pytest.fixture
def house(runner, tmp_path, monkeypatch):
    """A house of its own for the runner: fake scripts and configurations."""
    here = tmp_path / "examples" / "reproduce"
    book = here / "papers"
    (book / "configs").mkdir(parents=True)
    (here / "script.py").write_text(SCRIPT)
    (book / "runs.yaml").write_text(RUNS)
    (book / "configs" / "table.yaml").write_text(TABLE.replace("rate: no", "rate: 'no'"))
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(runner, "HERE", here)

    def run(*words):
        return runner.cli(["--data", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), *words])

    return run, book, tmp_path / "out"


def test_a_table_is_made_of_its_runs_and_a_second_start_runs_nothing(house, capsys):
    run, _, out = house
    assert run() == 0
    page = (out / "page" / "results.md").read_text()
    assert "| one | 7.2 | 6.0 | – |" in page.replace("| 7.25 |", "| 7.2 |")  # (2 + 1) · 2
    assert "| two | – | – | more |" in page and "dB, printed | dB, ours | bits a pixel, printed |" in page
    assert "![Red](second-grid.png)" in page and "- Rate: no" in page
    with Image.open(out / "page" / "second-grid.png") as picture:
        assert picture.width == 1200
    about = json.loads((out / "runs" / "second.json").read_text())
    assert about["command"].endswith("script.py reproduce/runs/second 2 reproduce/runs/first")
    assert {"commit", "versions", "seconds", "threads"} <= set(about)
    results = json.loads((out / "page" / "results.json").read_text())
    assert results["tables"]["table"]["rows"][0]["cells"]["dB"] == [7.25, 6.0]
    assert run() == 0 and (out / "runs" / "first" / "calls").read_text() == "x"


def test_a_page_stands_beside_an_earlier_one(house, tmp_path):
    run, book, out = house
    (book / "configs" / "gone.yaml").write_text((book / "configs" / "table.yaml").read_text())
    assert run() == 0
    earlier = tmp_path / "earlier"
    (out / "page").rename(earlier)
    results = json.loads((earlier / "results.json").read_text())
    results["tables"]["table"]["rows"][0]["cells"]["dB"][1] = 5.5
    results["runs"]["third"] = results["runs"]["second"] | {"seconds": 7.0, "commit": "before"}
    (earlier / "third-grid.png").write_bytes((earlier / "second-grid.png").read_bytes())
    (earlier / "results.json").write_text(json.dumps(results))
    # one table's runs are there, those of the other are not
    (book / "runs.yaml").write_text(RUNS + '  third: {templates: [script], cpu: "4"}\n')
    gone = book / "configs" / "gone.yaml"
    gone.write_text(gone.read_text().replace("run: second", "run: third").replace("{run:second}", "{run:third}"))
    words = ("--page_only", "--earlier", str(earlier / "results.json"), "--earlier_title", "old")
    assert run(*words) == 0
    page = (out / "page" / "results.md").read_text()
    assert page.startswith("# A page\n") and "All of it." in page and "\nSmall.\n" in page
    assert "dB, printed | dB, old | dB, ours |" in page and "| 5.5 | 6.0 |" in page
    assert "| dB, printed | dB, ours |" in page and "![Red](third-grid.png)" in page
    assert page.count("No run behind this was repeated since the page before (old).") == 1
    assert "- `third`: 7 s on" in page and "commit `before`" in page
    found = json.loads((out / "page" / "results.json").read_text())
    assert found["tables"]["gone"]["rows"][0]["cells"]["dB"] == [7.25, 6.0]
    assert found["tables"]["table"]["rows"][0]["cells"]["dB"] == [7.25, 6.0, 5.5]
    with pytest.raises(SystemExit):
        run("--earlier", str(tmp_path / "none.json"))
    with pytest.raises(SystemExit):
        run("--book", "none")


def test_a_page_can_be_without_pictures_of_the_data(house):
    run, book, out = house
    path = book / "configs" / "table.yaml"
    path.write_text(path.read_text().replace("{file: ", "{data: true, file: "))
    assert run("--no_data_pictures") == 0 and not list((out / "page").glob("*.png"))
    assert run("--page_only") == 0 and (out / "page" / "second-grid.png").is_file()


def test_another_command_is_not_taken_for_the_same_run(house, capsys):
    run, book, _ = house
    assert run() == 0
    assert run("--scale", "paper") == 2
    assert "was made by another command" in capsys.readouterr().err
    (book / "runs.yaml").write_text(RUNS.replace('cpu: "1"', 'cpu: "5"'))
    assert run() == 2


def test_what_fails_is_named_and_the_rest_is_made(house, capsys):
    run, book, out = house
    (book / "configs" / "other.yaml").write_text(
        "title: Other\nabout: x\ncolumns: [{title: dB, key: psnr}]\n"
        "rows: [{label: late, run: after, path: [models], where: {name: a}, printed: {dB: 1.0}}]\n"
        "comparable: {rate: a, metric: b, data: c}\n"
    )
    assert run("--jobs", "2") == 1
    captured = capsys.readouterr().err
    assert "broken failed with exit code 1" in captured and "after is left out" in captured
    assert "no luck" in (out / "runs" / "broken.log").read_text()
    page = (out / "page" / "results.md").read_text()
    assert "- `broken` is missing." in page and "| late | 1.00 |" in page and "| one |" in page
    assert not (out / "runs" / "broken.json").exists()


def test_runs_of_one_level_go_side_by_side(runner, house, monkeypatch):
    run, book, _ = house
    (book.parent / "script.py").write_text("import time; time.sleep(0.5)\n" + SCRIPT)
    (book / "runs.yaml").write_text(RUNS + '  third: {templates: [script], cpu: "4"}\n')
    (book / "configs" / "third.yaml").write_text(TABLE.replace("second", "third").replace("rate: no", "rate: 'no'"))
    marks, execute = [], runner.execute

    def timed(name, *words):
        marks.append((name, time.perf_counter(), None))
        result = execute(name, *words)
        marks.append((name, None, time.perf_counter()))
        return result

    monkeypatch.setattr(runner, "execute", timed)
    assert run("--jobs", "2") == 0
    begin = {name: start for name, start, _ in marks if start}
    end = {name: stop for name, _, stop in marks if stop}
    assert begin["third"] < end["first"] and begin["second"] >= end["first"]


def test_mistakes_are_one_sentence(house, runner, capsys, tmp_path):
    run, book, _ = house
    with pytest.raises(SystemExit):
        run("--only", "nothing")
    assert "--only must be among table, got 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        runner.parse_args([])
    with pytest.raises(SystemExit):
        runner.parse_args(["--data", str(tmp_path / "none")])
    (book / "configs" / "table.yaml").write_text(
        TABLE.replace("run: second", "run: nowhere").replace("rate: no", "rate: x")
    )
    assert run() == 2
    assert "runs.yaml must have the run 'nowhere'" in capsys.readouterr().err
    (book / "runs.yaml").write_text(RUNS.replace('"1"', '"1 {run:second}"'))
    (book / "configs" / "table.yaml").write_text(TABLE.replace("rate: no", "rate: x"))
    assert run() == 2
    assert "no circle" in capsys.readouterr().err
    (book / "runs.yaml").write_text(RUNS)
    (book / "configs" / "table.yaml").write_text(TABLE.replace("name: a}", "name: b}").replace("rate: no", "rate: x"))
    assert run() == 2
    assert "must be one entry of second, it is 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures():
    return load(EXAMPLES / "reproduce" / "model_pictures.py")


def test_the_softmax_perplexity_is_that_of_dense_coefficients(pictures):
    generator = torch.Generator().manual_seed(0)
    indices = torch.rand(2, 3, 3, 32, generator=generator).topk(4).indices
    code = SparseCode(indices, 3 * torch.randn(2, 3, 3, 4, generator=generator), 32, (3, 3))
    dense = torch.distributions.Categorical(logits=code.to_dense().double())
    torch.testing.assert_close(pictures.softmax_perplexity(code), dense.entropy().exp().flatten())
    one = SparseCode(torch.zeros_like(indices[..., :1]), torch.ones(2, 3, 3, 1), 512, (3, 3))
    assert (pictures.softmax_perplexity(one) > 510).all()  # one and the same atom everywhere, and "all in use"


def test_models_are_looked_into(pictures, tmp_path):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = (torch.rand(32, 32, 3, generator=generator) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    models = {}
    for kind, config in (("dictionary", {"num_atoms": 16, "sparsity": 2}), ("vq", {"num_codewords": 16})):
        torch.manual_seed(0)
        models[kind] = AutoencoderDL(
            bottleneck_type=kind,
            bottleneck_config=config,
            latent_channels=4,
            block_out_channels=(8, 8),
            sample_size=32,
        ).eval()
        models[kind].save_pretrained(tmp_path / kind)
    (tmp_path / "vq" / "training_log.jsonl").write_text('{"step": 1, "psnr": 10.0}\n{"step": 2, "psnr": 11.0}\n')
    words = [str(tmp_path / kind) for kind in models] + ["--data", str(tmp_path / "images"), "--resolution", "32"]
    pictures.main(pictures.parse_args([*words, "--map", "pca", "--output_dir", str(tmp_path / "out")]))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    images = torch.stack(
        [torch.tensor(list(Image.open(tmp_path / "images" / f"{n}.png").tobytes())).view(32, 32, 3) for n in range(3)]
    ).permute(0, 3, 1, 2) / 127.5 - 1  # fmt: skip
    for row, (kind, model) in zip(rows, models.items()):
        with torch.no_grad():
            latents, code = model.encode(images).latents, model.encode_to_code(images)
            error = (model.bottleneck.decode(code) - latents).square().mean()
            psnr = PSNR()
            psnr.update(model.decode_from_code(code).sample.clamp(-1, 1), images)
        assert row["name"] == kind and row["bits_per_pixel"] == model.bits_per_pixel(32, 32)
        assert row["latent_mse"] == pytest.approx(float(error), rel=1e-4)
        assert row["psnr"] == pytest.approx(float(psnr.compute()), rel=1e-4)
        assert (row["softmax_perplexity"] is None) == (kind == "vq")
        for part in ("components", "atoms", "map", "usage", "coherence"):
            with Image.open(tmp_path / "out" / f"{kind}-{part}.png") as picture:
                picture.load()
    assert (tmp_path / "out" / "curves.png").is_file()


@pytest.mark.parametrize(("book", "scale"), [("papers", "cpu"), ("papers", "paper"), ("codes", "cpu")])
def test_a_run_that_was_interrupted_can_begin_again(runner, book, scale):
    """Every script that refuses a folder which holds something is told that it may write over it."""
    guarded = [p.name for p in EXAMPLES.glob("*.py") if "add_hub_flags(" in p.read_text(encoding="utf-8")]
    assert {"train_dlgan.py", "train_categorical_ddpm.py", "train_refiner.py", "fit_codec.py"} <= set(guarded)
    for name, run in runner.load_runs(book, scale).items():
        assert run["script"] not in guarded or "--overwrite_output_dir" in run["arguments"], name


def test_a_script_finds_its_folder_as_it_left_it(house):
    """The runner's own files are beside it, so that a script which refuses a folder with something in it begins at
    all."""
    run, book, out = house
    guard = "import os, sys\nassert not os.listdir(sys.argv[1]), os.listdir(sys.argv[1])\n"
    (book.parent / "script.py").write_text(guard + SCRIPT)
    assert run() == 0
    assert sorted(path.name for path in (out / "runs").iterdir()) == [
        *("first", "first.json", "first.log", "second", "second.json", "second.log")
    ]


def test_pictures_run_the_encoder_once(pictures):
    torch.manual_seed(0)
    model, read = AutoencoderDL(block_out_channels=(8, 8), latent_channels=4, sample_size=16).eval(), []
    model.encoder.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    images = [Image.new("RGB", (16, 16), (40 * n, 9, 80)) for n in range(3)]
    args = pictures.parse_args(["x", "--data", "x", "--resolution", "16", "--batch_size", "2", "--device", "cpu"])
    pictures.look(model, ImageDataset(images, 16), args)
    assert read == [2, 1]
