"""Runs examples/evaluate_autoencoder.py on two tiny saved models and checks it against other computations."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffusers_lasers import AutoencoderDL, FactorizedPrior, PerceptualSimilarity
from diffusers_lasers.training import ImageDataset


SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_autoencoder.py"
NETWORK = {"block_out_channels": (8, 8), "residual_channels": 4, "layers_per_block": 1, "latent_channels": 4}


class Quarters(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_autoencoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images, a dictionary and a VQ model, random LPIPS weights and a feature network."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "images" / "nested").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / ("nested" if i % 2 else ".") / f"{i}.png")
    settings = {"dictionary": {"num_atoms": 12, "sparsity": 2}, "vq": {"num_codewords": 12}}
    for kind, config in settings.items():
        torch.manual_seed(0)
        model = AutoencoderDL(bottleneck_type=kind, bottleneck_config=config, sample_size=32, **NETWORK)
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        model.bottleneck.initialize(model.encode(images).latents.detach())
        model.train()(images)  # a step of the running coefficient scale
        model.save_pretrained(folder / kind)
    torch.manual_seed(0)
    PerceptualSimilarity("squeeze").save_pretrained(folder / "lpips")
    torch.jit.script(Quarters()).save(folder / "features.pt")
    return folder


@pytest.fixture(scope="module")
def run(folder, apart):
    command = [str(folder / "dictionary"), str(folder / "vq")]
    command += ["--data", str(folder / "images"), "--batch_size", "4", "--coefficient_bits", "8", "--grid_images", "3"]
    command += ["--lpips_weights", str(folder / "lpips"), "--fid_features", str(folder / "features.pt")]
    command += ["--fid_resize", "0", "--output_dir", str(folder / "out"), "--device", "cpu"]
    code, output, said = apart(SCRIPT, *command)
    assert code == 0, said
    return output, json.loads((folder / "out" / "results.json").read_text())


def reconstructions(folder, name):
    """Reconstructions and originals as uint8-valued floats, computed here."""
    model = AutoencoderDL.from_pretrained(folder / name).eval()
    files = sorted((folder / "images").rglob("*.png"))
    originals = np.stack([np.asarray(Image.open(file)) for file in files])
    images = torch.from_numpy(originals).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        output = model(images)
    return output, images, originals, model


def test_one_row_a_model_and_variant(run):
    _, results = run
    assert [row["name"] for row in results["models"]] == ["dictionary (float)", "dictionary (8-bit)", "vq"]
    assert results["unavailable"] == {}
    assert results["data"]["n"] == 6
    assert results["data"]["resolution"] == 32  # the models' sample_size
    assert set(results["protocols"]) == {"psnr", "ssim", "lpips", "flip", "rfid"}
    assert all(card["n"] == 6 for card in results["protocols"].values())
    assert results["versions"]["torch"] == torch.__version__
    assert results["settings"]["coefficient_bits"] == [8]


@pytest.mark.parametrize(("name", "row"), [("dictionary", 0), ("vq", 2)])
def test_values_agree_with_other_computations(folder, run, name, row):
    row = run[1]["models"][row]
    output, images, originals, model = reconstructions(folder, name)
    sample = output.sample.clamp(-1, 1)
    each = [
        peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=2) for x, y in zip(images, sample)
    ]
    assert row["psnr"] == pytest.approx(np.mean(each), abs=1e-4)
    # the uint8 originals against the float reconstructions give the same value
    bytes_ = ((sample + 1) * 127.5).double().permute(0, 2, 3, 1).numpy()
    each = [peak_signal_noise_ratio(x.astype(np.float64), y, data_range=255) for x, y in zip(originals, bytes_)]
    assert row["psnr"] == pytest.approx(np.mean(each), abs=1e-4)

    lpips = PerceptualSimilarity.from_pretrained(folder / "lpips")
    assert row["lpips"] == pytest.approx(lpips(images, sample).distances.mean().item(), rel=1e-4)
    variance = output.latents.double().var(dim=(0, 2, 3), correction=0).mean()
    nmse = (output.latents - output.quantized_latents).double().square().mean() / variance
    assert row["latent_nmse"] == pytest.approx(nmse.item(), rel=1e-4)
    counts = output.code.usage_counts()[0].double()
    shares = counts[counts > 0] / counts.sum()
    assert row["perplexity"] == pytest.approx((-shares * shares.log()).sum().exp().item(), rel=1e-6)
    assert row["active"] == pytest.approx((counts > 0).double().mean().item())
    assert row["bits_per_pixel"] == model.bits_per_pixel(32, 32)
    assert row["rfid"] > 0
    assert row["encode_images_per_second"] > 0
    assert row["decode_images_per_second"] > 0


def test_quantized_coefficients_cost_less(run):
    floats, quantized, vq = run[1]["models"]
    assert quantized["bits_per_pixel"] < floats["bits_per_pixel"] - 2 * 20 / 4  # 24 bits a coefficient, f = 2
    assert quantized["latent_nmse"] >= floats["latent_nmse"]
    assert quantized["bottleneck"]["coefficient_bits"] == 8
    assert vq["coherence"] is None
    assert 0 < floats["coherence"] <= 1.0001
    assert 0 < vq["entropy_bits_per_pixel"] <= vq["bits_per_pixel"] + 1e-9


def test_table_and_pictures(folder, run):
    stdout, results = run
    written = (folder / "out" / "results.md").read_text()
    assert written in stdout
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results["models"])
    assert len({line.count("|") for line in table}) == 1
    assert f"{results['models'][0]['psnr']:.2f}" in table[2]
    assert str(folder / "out" / "grid.png") in stdout
    grid = Image.open(folder / "out" / "grid.png")
    assert (
        grid.height == (1 + 2 * 3) * 100
    )  # original, then reconstruction and heat map of each; 32 pixels shown as 96
    assert grid.width > 3 * 100
    assert not list((folder / "out").glob("*tmp*"))


def test_the_metrics_asked_for_and_curves_of_a_code_at_two_rates(script, folder, tmp_path, capsys):
    arguments = [str(folder / "dictionary"), "--data", str(folder / "images"), "--max_images", "2", "--device", "cpu"]
    arguments += ["--output_dir", str(tmp_path), "--resolution", "16", "--grid_images", "0"]
    arguments += ["--metrics", "psnr", "ssim"]
    script.main(script.parse_args(arguments))
    assert not (tmp_path / "rate_distortion.png").exists()  # one rate
    script.main(script.parse_args([*arguments, "--coefficient_bits", "8"]))
    results, table = json.loads((tmp_path / "results.json").read_text()), capsys.readouterr().out
    assert results["unavailable"] == {} and set(results["protocols"]) == {"psnr", "ssim"}
    assert "LPIPS" not in table and "rFID" not in table and "SSIM" in table
    with Image.open(tmp_path / "rate_distortion.png") as picture:
        assert picture.width > picture.height
    later = [str(folder / "vq"), *arguments[1:7], "--output_dir", str(tmp_path / "later"), *arguments[9:]]
    script.main(script.parse_args([*later, "--earlier", str(tmp_path)]))
    both = json.loads((tmp_path / "later" / "results.json").read_text())
    assert both["models"][:2] == results["models"] and [row["name"] for row in both["models"]][2:] == ["vq"]
    assert (
        capsys.readouterr().out.count("| dictionary") == 2 and (tmp_path / "later" / "rate_distortion.png").is_file()
    )
    again = [*later[1:], "--earlier", str(tmp_path / "later"), str(tmp_path)]  # no model, and each name once
    script.main(script.parse_args(again))
    assert json.loads((tmp_path / "later" / "results.json").read_text())["models"] == both["models"]
    with pytest.raises(ValueError, match="--earlier must be of the same images"):
        script.main(script.parse_args([*later, "--earlier", str(tmp_path), "--crops_per_image", "2"]))
    with pytest.raises(SystemExit):
        script.parse_args([*arguments, "--metrics", "fid"])


def test_the_cross_entropy_is_that_of_tables_of_other_images(script, folder, tmp_path, capsys):
    half = folder / "images" / "nested"
    arguments = [str(folder / "dictionary"), str(folder / "vq"), "--data", str(folder / "images"), "--device", "cpu"]
    arguments += ["--output_dir", str(tmp_path), "--grid_images", "0", "--metrics", "psnr", "--batch_size", "4"]
    script.main(script.parse_args([*arguments, "--coefficient_bits", "8", "--rate_data", str(half)]))
    floats, _, vq = json.loads((tmp_path / "results.json").read_text())["models"]
    assert "bpp cross-entropy" in capsys.readouterr().out
    model = AutoencoderDL.from_pretrained(folder / "vq").eval()
    dataset = ImageDataset([Image.open(path) for path in sorted(half.glob("*.png"))], 32, center_crop=True)
    others = ImageDataset([Image.open(p) for p in sorted((folder / "images").rglob("*.png"))], 32, center_crop=True)
    with torch.no_grad():
        prior = FactorizedPrior.from_coder(model).fit([model.encode_to_code(dataset.take(range(3)))])
        bits = prior.bits(model.encode_to_code(others.take(range(6))))
    assert vq["cross_entropy_bits_per_pixel"] == pytest.approx(float(bits.mean()) / 32**2, rel=1e-9)
    assert floats["cross_entropy_bits_per_pixel"] > 2 * 32 / 4 / 2  # 32 bits a coefficient, f = 2


def test_missing_parts_are_dashes_with_a_reason(script, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    arguments = [str(folder / "dictionary"), "--data", str(folder / "images"), "--max_images", "2", "--device", "cpu"]
    arguments += ["--lpips_weights", str(tmp_path / "nothing"), "--output_dir", str(tmp_path), "--resolution", "16"]
    arguments += ["--grid_images", "0"]
    script.main(script.parse_args(arguments))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["unavailable"]) == {"LPIPS", "FLIP", "rFID"}
    row = results["models"][0]
    assert (row["lpips"], row["flip"], row["rfid"]) == (None, None, None)
    assert row["ssim"] is not None
    table = capsys.readouterr().out
    assert table.count("| – ") == 3
    for reason in ("LPIPS is missing: `path`", "FLIP is missing: `flip_evaluator`", "rFID is missing: no feature"):
        assert reason in table
    assert not (tmp_path / "grid.png").exists()


def test_a_model_without_code_and_a_diverged_one(script, folder, tmp_path):
    torch.manual_seed(0)
    AutoencoderDL(bottleneck_type="none", **NETWORK).save_pretrained(tmp_path / "none")
    broken = AutoencoderDL.from_pretrained(folder / "vq")
    for parameter in broken.decoder.parameters():  # finite, as weights have to be, and NaN after a layer or two
        torch.nn.init.normal_(parameter, std=1e30)
    broken.save_pretrained(tmp_path / "broken")
    arguments = [str(tmp_path / "broken"), str(tmp_path / "none"), "--data", str(folder / "images"), "--device", "cpu"]
    arguments += ["--output_dir", str(tmp_path), "--grid_images", "2", "--crops_per_image", "2", "--resolution", "16"]
    script.main(script.parse_args(arguments + ["--lpips_weights", str(tmp_path / "no")]))
    results = json.loads((tmp_path / "results.json").read_text())
    broken, none = results["models"]
    assert broken["psnr"] is None
    assert "nan" in results["unavailable"]["PSNR of broken"]
    assert none["psnr"] > 0
    assert 0 < none["latent_nmse"] < 1e-5  # latents rounded to float16, as its bits say
    assert (none["perplexity"], none["entropy_bits_per_pixel"]) == (None, None)
    assert none["bits_per_pixel"] == 16 * 4 / 4
    assert results["data"]["n"] == 12
    assert Image.open(tmp_path / "grid.png").height == (1 + 1 + 2) * 100  # no heat map of a diverged model


def test_bundled_photographs_are_the_default(script, folder, tmp_path):
    arguments = script.parse_args([str(folder / "vq"), "--resolution", "16", "--max_images", "1"])
    dataset, about = script.load_data(arguments, 16)
    assert len(dataset) == about["n"] == 32
    assert dataset.__getitems__([0, 31])["pixel_values"].shape == (2, 3, 16, 16)


def test_names_tell_models_apart(script):
    assert script.names_of(["runs/a", "runs/b/"]) == ["a", "b"]
    assert script.names_of(["one/model", "two/model"]) == ["one/model", "two/model"]
    assert script.names_of(["same", "same"]) == ["same #1", "same #2"]
    assert script.names_of([]) == []


@pytest.mark.parametrize("arguments", [["--coefficient_bits", "0"], ["--batch_size", "0"], ["--resolution", "-1"]])
def test_wrong_arguments_are_refused(script, arguments, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["model", *arguments])
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("task", ["super_resolution", "inpainting"])
def test_restoration_beside_its_input(folder, script, tmp_path, task):
    arguments = [
        folder / "dictionary",
        "--data",
        folder / "images",
        "--batch_size",
        4,
        "--task",
        task,
        "--device",
        "cpu",
    ]
    arguments += ["--lpips_weights", folder / "lpips", "--output_dir", tmp_path]
    script.main(script.parse_args([str(word) for word in arguments]))
    results = json.loads((tmp_path / "results.json").read_text())
    inputs, restored = results["models"]
    assert inputs["name"] == "degraded input" and results["data"]["task"] == task
    files = sorted((folder / "images").rglob("*.png"))
    x = (
        torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2).double()
        / 127.5
        - 1
    )
    model = AutoencoderDL.from_pretrained(folder / "dictionary").eval()
    if task == "inpainting":
        given, inside = x.clone(), slice(12, 20)
        given[..., inside, inside] = 0
    else:
        given = torch.nn.functional.interpolate(x, size=8, mode="bicubic", antialias=True)
        given = torch.nn.functional.interpolate(given.clamp(-1, 1), size=32, mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        sample = model(given.float()).sample.clamp(-1, 1).double()
    for row, images in ((inputs, given), (restored, sample)):
        errors = (images - x).square()
        assert row["psnr"] == pytest.approx(
            (10 * torch.log10(4 / errors.flatten(1).mean(dim=1))).mean().item(), abs=0.01
        )
        if task == "inpainting":
            masked = errors[..., inside, inside].flatten(1).mean(dim=1)
            assert row["masked_psnr"] == pytest.approx((10 * torch.log10(4 / masked)).mean().item(), abs=0.01)
        else:
            assert row["masked_psnr"] is None
    text = (tmp_path / "results.md").read_text()
    assert ("PSNR masked" in text) == (task == "inpainting") and f"Task: {task}" in text


@pytest.mark.parametrize(
    "flags, sentence", [(["--scale", "5"], "`scale` must divide"), (["--scale", "0"], "`scale` must be a positive")]
)
def test_a_degradation_that_does_not_fit_is_refused_at_once(folder, script, tmp_path, flags, sentence):
    arguments = [
        str(folder / "dictionary"),
        "--task",
        "super_resolution",
        "--output_dir",
        str(tmp_path / "out"),
        *flags,
    ]
    with pytest.raises(SystemExit, match=sentence):
        script.cli(arguments)


def test_the_encoder_reads_each_batch_once(folder, script, tmp_path):
    words = [folder / "dictionary", "--data", folder / "images", "--batch_size", "4", "--device", "cpu"]
    args = script.parse_args([str(word) for word in words])
    dataset, _ = script.load_data(args, 32)
    for name in ("dictionary", "vq"):
        model, read = AutoencoderDL.from_pretrained(folder / name).eval(), []
        model.encoder.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
        script.evaluate(name, model, dataset, {}, {}, args)
        assert read[:2] == [4, 2] and read[2:] == [4] * 6  # all images; then the speed of one batch
