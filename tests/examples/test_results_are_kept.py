"""What is the same of all small scripts: a result is on the disk before it is judged, what is wrong is found before the
work, no token is written."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from diffusers_lasers import (
    AutoencoderDL,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    DictionaryBottleneck,
    LatentRefiner,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
)
from diffusers_lasers.training.run import recorder


EXAMPLES = Path(__file__).parents[2] / "examples"
MAKERS = {
    "fit_codec": "--notation PQ-{8-4-4} --patch_size 4 --codebook_bits 4 --max_patches 500 --iterations 2",
    "fit_latent_bottleneck": "--autoencoder {at}/vae --resolution 16 --num_symbols 8 --sparsity 2 --passes 1 "
    "--device cpu",
    "train_refiner": "--codec {at}/codec --resolution 16 --train_batch_size 4 --max_train_steps 2 "
    "--block_out_channels 16",
    "train_categorical_ddpm": "--codec {at}/codec --resolution 16 --train_batch_size 4 --max_train_steps 2 "
    "--block_out_channels 32 --num_inference_steps 2 --num_validation_images 2",
}
SAVED = {
    "fit_codec": (ModelBasedVQCodec, "."),
    "fit_latent_bottleneck": (DictionaryBottleneck, "."),
    "train_refiner": (LatentRefiner, "refiner"),
    "train_categorical_ddpm": (CategoricalUNet2DModel, "unet"),
}
JUDGES = {
    "evaluate_generation": "{at}/pipeline --data {at}/photos --features {at}/features.pt --feature_resize 0 "
    "--num_images 4 --kid_subset_size 3 --num_inference_steps 2 --device cpu",
    "evaluate_autoencoder": "{at}/dl {at}/dl2 --data {at}/photos --resolution 16 --lpips_weights {at}/none "
    "--device cpu",
    "benchmark_codec": "{at}/codec --data {at}/photos --formats jpeg --repeats 1 --lpips_weights {at}/none "
    "--device cpu",
    "evaluate_retrofit": "--autoencoder {at}/vae --train_data_dir {at}/photos --validation_data_dir {at}/photos "
    "--resolution 16 --grid none --configurations scalar:bits=4 scalar:bits=6 --image_metrics 2 "
    "--lpips_weights {at}/none --device cpu",
    "reproduce/model_pictures": "{at}/dl {at}/dl2 --data {at}/photos --resolution 16 --map pca --device cpu",
}


def module(name):
    spec = importlib.util.spec_from_file_location(Path(name).name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Quarters(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Photos, a damaged one among others, and a tiny model of each kind."""
    at, rng = tmp_path_factory.mktemp("house"), np.random.default_rng(0)
    for name in ("photos", "damaged"):
        (at / name).mkdir()
        for number in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((16, 16), Image.Resampling.BICUBIC).save(at / name / f"{number}.png")
    broken = at / "damaged" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    torch.manual_seed(0)
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    codec.fit(torch.rand(8, 3, 16, 16) * 2 - 1, max_patches=500, iterations=2, progress=False)
    codec.save_pretrained(at / "codec")
    unet = CategoricalUNet2DModel(
        4, 16, sample_size=4, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8
    )
    ModelBasedLatentDiffusionPipeline(codec, unet, CategoricalDDPMScheduler(num_codewords=16)).save_pretrained(
        at / "pipeline"
    )
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(at / "vae")
    for name in ("dl", "dl2"):
        AutoencoderDL(
            block_out_channels=(8, 8), latent_channels=4, bottleneck_config={"num_atoms": 12, "sparsity": 2}
        ).save_pretrained(at / name)
    torch.jit.script(Quarters()).save(at / "features.pt")
    return at


def words(line, at, *more):
    return [*(word.replace("{at}", str(at)) for word in line.split()), *map(str, more)]


def making(name, at, out, *more, held_out="photos"):
    places = ("--train_data_dir", at / "photos", "--validation_data_dir", at / held_out, "--output_dir", out)
    return words(MAKERS[name], at, *places, *more)


def fail(*arguments, **named):
    raise RuntimeError("no luck at all")


@pytest.mark.parametrize("name", MAKERS)
def test_a_judgement_that_fails_costs_no_model(name, at, tmp_path, monkeypatch, caplog):
    script = module(name)
    monkeypatch.setattr(script, "judge" if name.startswith("fit") else "validate", fail)
    with pytest.raises(SystemExit) as stopped:
        script.cli(making(name, at, tmp_path / "out"))
    assert stopped.value.code == 1 and "no luck at all" in caplog.text and str(tmp_path / "out") in caplog.text
    kind, place = SAVED[name]
    kind.from_pretrained(tmp_path / "out" / place)
    card = tmp_path / "out" / ("refiner" if name == "train_refiner" else "") / "README.md"
    assert "bit" in card.read_text() and (tmp_path / "out" / "settings.json").is_file()


@pytest.mark.parametrize("name", MAKERS)
def test_an_upload_that_fails_costs_no_model(name, at, tmp_path, monkeypatch, caplog):
    script = module(name)
    monkeypatch.setattr(script, "create_repository", lambda *arguments: None)
    monkeypatch.setattr(recorder if name.startswith("train") else script, "push_folder", fail)
    with pytest.raises(SystemExit) as stopped:
        script.cli(making(name, at, tmp_path / "out", "--push_to_hub"))
    assert stopped.value.code == 1 and "the upload: no luck at all" in caplog.text
    kind, place = SAVED[name]
    kind.from_pretrained(tmp_path / "out" / place)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_wrong_is_found_before_the_work(name, at, tmp_path, monkeypatch):
    script, work = module(name), []
    monkeypatch.setattr(ModelBasedVQCodec, "fit", lambda *arguments, **named: work.append("fit"))
    for part in ("train", "collect_latents"):
        if hasattr(script, part):
            monkeypatch.setattr(script, part, lambda *arguments, **named: work.append("work"))
    monkeypatch.setattr(script, "create_repository", fail_to_create)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    cases = [
        (making(name, at, tmp_path / "out", held_out="damaged"), "3.png"),
        (making(name, at, tmp_path / "out", "--push_to_hub"), "the Hub refuses"),
        (making(name, at, tmp_path / "file"), "--output_dir must be a folder"),
        (making(name, at, tmp_path / "full"), "--overwrite_output_dir"),
    ]
    for line, sentence in cases:
        with pytest.raises(SystemExit, match=sentence):
            script.cli(line)
        made = [path.name for path in (tmp_path / "out").glob("*")]
        assert not work and made in ([], ["codes"]), sentence
    assert (tmp_path / "file").read_text() == "mine" and len(list((tmp_path / "full").iterdir())) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_no_error_shows_the_token(name, at, tmp_path, monkeypatch, caplog):
    def tells(*arguments):
        raise OSError("401 for hf_SECRET")

    script = module(name)
    more = ["--push_to_hub", "--hub_token", "hf_SECRET"]
    monkeypatch.setattr(script, "create_repository", tells)
    with pytest.raises(SystemExit) as stopped:
        script.cli(making(name, at, tmp_path / "out", *more))
    assert "401 for ***" in str(stopped.value) and "hf_SECRET" not in str(stopped.value)
    monkeypatch.setattr(script, "create_repository", lambda *arguments: None)
    monkeypatch.setattr(recorder if name.startswith("train") else script, "push_folder", tells)
    with pytest.raises(SystemExit):
        script.cli(making(name, at, tmp_path / "out", *more))
    assert "401 for ***" in caplog.text and "hf_SECRET" not in caplog.text


def fail_to_create(*arguments):
    raise OSError("the Hub refuses that name")


@pytest.mark.parametrize("name", MAKERS)
def test_unreadable_images_can_be_skipped(name, at, tmp_path, caplog):
    line = making(name, at, tmp_path / "out", "--skip_unreadable", held_out="damaged")
    line[line.index("--train_data_dir") + 1] = str(at / "damaged")
    module(name).cli(line)
    kind, place = SAVED[name]
    kind.from_pretrained(tmp_path / "out" / place)
    assert "3.png" in caplog.text and "It is skipped" in caplog.text


class Api:
    """Stands for the Hub: what it would get is kept."""

    uploads = []

    def __init__(self, token=None):
        assert token == "hf_SECRET"

    def create_repo(self, name, exist_ok, repo_type):
        return type("Url", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, **arguments):
        self.uploads.append(Path(arguments["folder_path"]))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("form", [["--hub_token", "hf_SECRET"], ["--hub_token=hf_SECRET"]], ids=["two", "one"])
def test_no_file_and_no_output_has_the_token(name, form, at, tmp_path, monkeypatch, here, caplog, capfd):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    more = [*form, "--push_to_hub"]
    if name == "train_categorical_ddpm":
        more += ["--report_to", "tensorboard", "--checkpointing_steps", 1, "--validation_steps", 1]
    caplog.set_level(logging.INFO)
    code, out, err = here(EXAMPLES / f"{name}.py", *making(name, at, tmp_path / "out", *more))
    assert code == 0, err
    assert Api.uploads.pop() in (tmp_path / "out", tmp_path / "out" / "refiner")
    said = "".join([out, err, caplog.text, *capfd.readouterr()])
    assert "hf_SECRET" not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if b"hf_SECRET" in path.read_bytes()]
    assert "***" in next((tmp_path / "out").rglob("settings.json")).read_text()


@pytest.mark.parametrize("name", [*MAKERS, *JUDGES])
def test_an_abbreviated_flag_is_refused(name, at, tmp_path, capsys):
    line = making(name, at, tmp_path / "out") if name in MAKERS else words(JUDGES[name], at)
    flag = "--hub_tok" if name in MAKERS else "--output_di"
    with pytest.raises(SystemExit) as stopped:
        module(name).cli([*line, flag, "hf_SECRET"])
    assert stopped.value.code == 2 and flag in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", JUDGES)
def test_figures_are_written_before_pictures(name, at, tmp_path, monkeypatch, caplog):
    script = module(name)
    monkeypatch.setattr(script, "save_image", fail)
    with pytest.raises(SystemExit) as stopped:
        script.cli(words(JUDGES[name], at, "--output_dir", tmp_path / "out"))
    assert stopped.value.code == 1
    assert "no luck at all" in caplog.text and "The results are in" in caplog.text
    assert (tmp_path / "out" / "results.json").is_file()


MIDDLE = {  # what makes a row, and a figure that the first row has
    "evaluate_generation": ("samples", "codec floor"),
    "evaluate_autoencoder": ("evaluate", '"dl"'),
    "benchmark_codec": ("judge_model", "0.png"),
    "evaluate_retrofit": ("judge", "int4"),
    "reproduce/model_pictures": ("look", '"dl"'),
}


@pytest.mark.parametrize("name", JUDGES)
def test_figures_are_kept_where_a_later_one_fails(name, at, tmp_path, monkeypatch):
    script, calls = module(name), [1] if name == "evaluate_generation" else []
    work, first = MIDDLE[name]
    own = getattr(script, work)

    def second_fails(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no luck at all")
        return own(*arguments)

    monkeypatch.setattr(script, work, second_fails)
    with pytest.raises(SystemExit, match="error: no luck at all"):
        script.cli(words(JUDGES[name], at, "--output_dir", tmp_path / "out"))
    assert first in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.parametrize("name", JUDGES)
def test_an_output_that_is_a_file_is_refused_before_the_work(name, at, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit, match="--output_dir must be a folder"):
        module(name).cli(words(JUDGES[name], at, "--output_dir", tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_more_steps_than_were_trained_are_refused_at_once(at, tmp_path):
    line = words(JUDGES["evaluate_generation"], at, "--output_dir", tmp_path / "out")
    line[line.index("--num_inference_steps") + 1] = "2000"
    with pytest.raises(SystemExit, match="--num_inference_steps must be at most the 1000"):
        module("evaluate_generation").cli(line)
    assert not (tmp_path / "out").exists()


def test_a_fit_may_write_over_another_and_leaves_no_picture_of_it(at, tmp_path):
    script, out = module("fit_codec"), tmp_path / "out"
    script.cli(making("fit_codec", at, out))
    assert (out / "reconstructions.png").is_file()
    line = words(MAKERS["fit_codec"], at, "--train_data_dir", at / "photos", "--output_dir", out)
    script.cli([*line, "--overwrite_output_dir"])
    assert not (out / "reconstructions.png").exists() and "reconstructions" not in (out / "README.md").read_text()
