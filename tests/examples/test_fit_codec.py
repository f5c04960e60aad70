"""Runs examples/fit_codec.py and examples/benchmark_codec.py as a user does, on small pictures, and checks their
figures against other computations."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffusers_lasers import FactorizedPrior, ModelBasedVQCodec, PerceptualSimilarity


EXAMPLES = Path(__file__).parents[2] / "examples"


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(48, 64), (40, 52), (33, 47)]):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(pictures, tmp_path_factory, here):
    folder = tmp_path_factory.mktemp("fit") / "pq"
    code, out, err = here(
        EXAMPLES / "fit_codec.py", "--train_data_dir", pictures, "--validation_data_dir", pictures, "--notation",
        "PQ-{16-4-4}",
        "--codebook_bits", 4, "--patch_size", 4, "--max_patches", 2000, "--iterations", 5, "--output_dir", folder,
    )  # fmt: skip
    assert code == 0, err
    return folder, out, err


def test_the_folder_loads_and_its_card_has_the_rate(fitted, pictures):
    folder, out, err = fitted
    codec = ModelBasedVQCodec.from_pretrained(folder)
    assert codec.notation == "PQ-{16-4-4}"
    prior, code = FactorizedPrior.from_pretrained(folder / "prior"), codec.encode_to_code(torch.zeros(1, 3, 33, 47))
    assert int(prior.coder_fingerprint) == codec.fingerprint and prior.decompress(prior.compress(code)) == code
    settings = json.loads((folder / "settings.json").read_text())
    psnr = []
    for path in sorted(pictures.glob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 127.5 - 1
        sample = codec(pixels).sample.clamp(-1, 1)
        psnr.append(peak_signal_noise_ratio(pixels.numpy(), sample.numpy(), data_range=2))
    assert settings["validation"]["psnr_db"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert settings["validation"]["bits_per_pixel"] > settings["bits_per_pixel"] == 1.5  # 33 × 47 is padded
    card = (folder / "README.md").read_text()
    assert "1.5 bits per pixel" in card and f"{np.mean(psnr):.2f}" in card and "model.pack" in card
    assert Image.open(folder / "reconstructions.png").size[1] >= 80
    assert "Codebooks: 100%" in err and "peak memory" in out


def test_the_same_seed_fits_the_same_codec(fitted, pictures, tmp_path, here):
    code, _, said = here(
        EXAMPLES / "fit_codec.py", "--train_data_dir", pictures, "--notation", "PQ-{16-4-4}", "--codebook_bits", 4,
        "--patch_size", 4, "--max_patches", 2000, "--iterations", 5, "--output_dir", tmp_path / "again",
    )  # fmt: skip
    assert code == 0, said
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (fitted[0] / name).read_bytes()
    assert not (tmp_path / "again" / "reconstructions.png").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--notation", "PQ-32"], "`notation` must look like"),
        (["--stride", "0"], "--stride must be at least 1"),
        (["--train_data_dir", "nowhere"], "nowhere"),
        (["--max_patches", "9", "--notation", "VQ-{4-4-4}"], "at least one signal for each"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence_and_leaves_nothing(arguments, sentence, pictures, tmp_path, capsys):
    if "--train_data_dir" not in arguments:
        arguments = [*arguments, "--train_data_dir", str(pictures)]
    with pytest.raises(SystemExit) as stopped:
        module("fit_codec").cli([*arguments, "--output_dir", str(tmp_path / "out")])
    said = str(stopped.value) + capsys.readouterr().err
    assert sentence in said and not (tmp_path / "out").exists()


def test_the_hub_gets_the_codec_and_no_token(pictures, tmp_path, monkeypatch):
    import huggingface_hub

    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, name, exist_ok, repo_type):
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments):
            calls.update(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(sys, "argv", ["fit_codec.py", "--hub_token", "hf_secret", "--hub_token=hf_secret"])
    flags = "--notation VQ-{4-4-4} --patch_size 4 --max_patches 500 --iterations 2 --push_to_hub --hub_token hf_secret"
    folder = tmp_path / "vq"
    module("fit_codec").cli([*flags.split(), "--train_data_dir", str(pictures), "--output_dir", str(folder)])
    assert (calls["token"], calls["repo_id"], Path(calls["folder_path"])) == ("hf_secret", "me/vq", folder)
    assert (folder / "README.md").is_file() and (folder / "diffusion_pytorch_model.safetensors").is_file()
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes(), path


@pytest.fixture(scope="module")
def benchmark(fitted, pictures, tmp_path_factory, apart):
    folder = tmp_path_factory.mktemp("benchmark")
    torch.manual_seed(0)
    PerceptualSimilarity("squeeze").save_pretrained(folder / "lpips")
    code, output, said = apart(
        EXAMPLES / "benchmark_codec.py", fitted[0], "--data", pictures, "--lpips_weights", folder / "lpips",
        "--wrapped_uint8",
        "--per_image", "--repeats", 1, "--grid_crop", 40, "--output_dir", folder / "out",
    )  # fmt: skip
    assert code == 0, said
    return folder / "out", output


def test_every_format_stands_beside_the_codec_at_its_bytes(benchmark, fitted, pictures):
    folder, said = benchmark
    results = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["PQ-{16-4-4}"] + [f"{name} ≤ PQ-{{16-4-4}}" for name in ("jpeg", "webp", "avif", "jxl")]
    codec = ModelBasedVQCodec.from_pretrained(fitted[0])
    prior = FactorizedPrior.from_pretrained(fitted[0], subfolder="prior")
    entries = results["images"]["PQ-{16-4-4}"]
    for entry, path in zip(entries, sorted(pictures.glob("*.png"))):
        image = Image.open(path)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        output = codec.encode(pixels)
        assert entry["image"] == path.name
        assert entry["bytes"] == len(prior.compress(codec.encode_to_code(pixels)))
        assert entry["bytes"] < len(codec.pack(output.codes, output.image_size))
        sample = codec.decode(output.codes, output.image_size).sample.clamp(-1, 1)
        expected = peak_signal_noise_ratio(pixels.numpy(), sample.numpy(), data_range=2)
        assert entry["psnr"] == pytest.approx(expected, abs=1e-4)
    for name, kept in results["images"].items():
        for entry, limit in zip(kept, entries):
            assert entry["bytes"] <= limit["bytes"] or entry["longer_than_allowed"], name
    mean = np.mean([8 * e["bytes"] / (w * h) for e, (h, w) in zip(entries, [(48, 64), (40, 52), (33, 47)])])
    assert rows["PQ-{16-4-4}"]["bits_per_pixel"] == pytest.approx(mean)
    assert all(row["wrapped_psnr"] > 27 for row in rows.values())
    text = (folder / "results.md").read_text()
    assert text in said and "2.png" in text and "wrapped PSNR" in text
    assert Image.open(folder / "rate.png").size[0] > 300 and Image.open(folder / "grid.png").size[1] == 6 * 44


def test_an_autoencoders_bytes_are_those_of_its_packed_code():
    from diffusers_lasers import AutoencoderDL, FactorizedPrior

    torch.manual_seed(0)
    config = {"num_atoms": 24, "sparsity": 2, "coefficient_bits": 6}
    model = AutoencoderDL(block_out_channels=(8, 8), latent_channels=4, bottleneck_config=config).eval()
    pixels = torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    judge = type("Judge", (), {"__call__": lambda self, sample, pixels: {}})()
    args = type("Arguments", (), {"repeats": 1, "device": "cpu"})
    figures, sample = module("benchmark_codec").judge_model(model, None, pixels, judge, args)
    prior = FactorizedPrior.from_coder(model).fit(model.encode_to_code(pixels))
    smaller, _ = module("benchmark_codec").judge_model(model, prior, pixels, judge, args)
    assert smaller["bytes"] == len(prior.compress(model.encode_to_code(pixels))) < figures["bytes"]
    with torch.no_grad():
        data = model.bottleneck.pack(model.encode_to_code(pixels))
        torch.testing.assert_close(
            model.decode_from_code(model.bottleneck.unpack(data)).sample, sample, rtol=0, atol=0
        )
    assert figures["bytes"] == len(data) and figures["bits_per_pixel"] == 8 * len(data) / (21 * 30)
    assert len(data) - 37 <= figures["nominal_bits_per_pixel"] * 21 * 30 / 8 + 2


def test_the_wrapped_figure_is_the_fault_and_the_floor_of_the_paper():
    script, rng = module("benchmark_codec"), np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 300, 300, 3), dtype=np.uint8)
    squares = ((first.astype(int) - second) % 256) ** 2 % 256
    assert script.wrapped_psnr(first, second) == pytest.approx(10 * np.log10(255**2 / squares.mean()))
    assert script.wrapped_psnr(first, second) == pytest.approx(27.9, abs=0.1)  # two unrelated images
    small = np.clip(first, 0, 245) + 3
    assert script.wrapped_psnr(np.clip(first, 0, 245), small) == pytest.approx(10 * np.log10(255**2 / 9))


def test_the_best_file_is_the_longest_that_fits():
    script, rng = module("benchmark_codec"), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    quality, subsampling, data = script.best_file(image, "jpeg", 3000)
    assert len(data) <= 3000 < len(script.encode_picture(image, "jpeg", quality + 1, subsampling))
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    quality, _, data = script.best_file(image, "jpeg", 10)
    assert quality == 1 and len(data) > 10
    assert script.best_file(image, "jpeg", 10**6)[0] == 100


def test_what_cannot_be_judged_is_one_sentence(pictures, fitted, tmp_path, here):
    PerceptualSimilarity("squeeze").save_pretrained(tmp_path / "other")
    arguments = ["--data", str(pictures), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="supported are AutoencoderDL, ModelBasedVQCodec"):
        module("benchmark_codec").cli([str(tmp_path / "other"), *arguments])
    code, _, said = here(EXAMPLES / "benchmark_codec.py", "nowhere", *arguments)
    assert code != 0 and "benchmark_codec.py: error: " in said and "nowhere" in said
    assert not (tmp_path / "out").exists()
