"""Runs examples/fit_latent_bottleneck.py and examples/evaluate_retrofit.py on a tiny autoencoder, and checks their
figures against other computations."""

import gzip
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from diffusers_lasers import DictionaryBottleneck, FactorizedPrior, PerceptualSimilarity


EXAMPLES = Path(__file__).parents[2] / "examples"


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def retrofit():
    return module("evaluate_retrofit")


class Quarters(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, an autoencoder below `vae/`, LPIPS weights and a feature network."""
    folder = tmp_path_factory.mktemp("retrofit")
    for split, count in (("train", 12), ("test", 5)):
        (folder / split).mkdir()
        rng = np.random.default_rng(count)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / split / f"{number}.png")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
    ).save_pretrained(folder / "pipeline" / "vae")  # fmt: skip
    PerceptualSimilarity("squeeze").save_pretrained(folder / "lpips")
    torch.jit.script(Quarters()).save(folder / "features.pt")
    return folder


def sources(folder):
    return [
        "--autoencoder", folder / "pipeline", "--subfolder", "vae", "--train_data_dir", folder / "train",
        "--validation_data_dir", folder / "test", "--resolution", 32, "--batch_size", 3, "--device", "cpu",
    ]  # fmt: skip


def test_fits_a_dictionary_that_loads_and_whose_figures_hold(folder, tmp_path, apart):
    words = ["--num_symbols", 32, "--sparsity", 2, "--passes", 2, "--output_dir", tmp_path / "out"]
    code, output, said = apart(EXAMPLES / "fit_latent_bottleneck.py", *sources(folder), *words)
    assert code == 0, said
    bottleneck = DictionaryBottleneck.from_pretrained(tmp_path / "out").eval()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    figures = settings["validation"]
    vae = AutoencoderKL.from_pretrained(folder / "pipeline", subfolder="vae").eval()
    files = sorted((folder / "test").glob("*.png"))
    images = []
    for file in files:  # short side 36 -> 32, centre crop, by hand
        picture = Image.open(file).resize((round(40 * 32 / 36), 32), Image.Resampling.LANCZOS)
        images.append(np.asarray(picture)[:, 2:34] / 127.5 - 1)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode() * 0.5
        coded = bottleneck(z).latents
        decoded, own = (vae.decode(part / 0.5).sample.clamp(-1, 1).double() for part in (coded, z))
    noise, power = (coded - z).square().sum(), (z - z.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    assert figures["latent_snr_db"] == pytest.approx(10 * math.log10(power / noise), abs=0.02)
    psnr = 10 * torch.log10(4 / (decoded - own).square().flatten(1).mean(dim=1))
    assert figures["psnr_db"] == pytest.approx(psnr.mean().item(), abs=0.02)
    assert figures["images"] == 5 and figures["bits_per_pixel"] == pytest.approx(bottleneck.bits_per_site / 4)
    assert 0 < figures["entropy_bits_per_pixel"] < figures["bits_per_pixel"] * 1.1
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{figures['latent_snr_db']:.2f}" in card and f"{figures['entropy_bits_per_pixel']:.3f}" in card
    assert "latent SNR" in output
    prior = FactorizedPrior.from_pretrained(tmp_path / "out" / "prior")
    code = bottleneck.encode(z)
    assert figures["cross_entropy_bits_per_element"] == pytest.approx(
        float(prior.bits(code).sum()) / z.numel(), rel=1e-3
    )
    assert prior.decompress(prior.compress(code)) == code and prior.bits(code).sum() < bottleneck.bits(code)
    assert f"{figures['cross_entropy_bits_per_element']:.3f} by the prior" in output


@pytest.mark.parametrize(
    "flags",
    [
        ["--bottleneck", "vq", "--num_symbols", 16],
        ["--bottleneck", "residual_vq", "--num_symbols", 16, "--depth", 2],
        ["--bottleneck", "fsq", "--fsq_levels", 5, 5, "--fsq_steps", 200],
        ["--bottleneck", "scalar", "--bits", 6, "--transform", "klt", "--step", 0.3],
    ],
    ids=lambda flags: flags[1],
)
def test_fits_the_other_bottlenecks(folder, tmp_path, flags, monkeypatch):
    script = module("fit_latent_bottleneck")
    uploads = []
    monkeypatch.setattr(script, "create_repository", lambda *arguments: uploads.clear())  # before the work
    monkeypatch.setattr(script, "push_folder", lambda *arguments: uploads.append(arguments))
    words = [*sources(folder), *flags, "--output_dir", tmp_path / "out", "--push_to_hub", "--hub_token", "secret"]
    script.cli([str(word) for word in words])
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["validation"]["latent_snr_db"] > 1
    assert FactorizedPrior.load_config(tmp_path / "out" / "prior")["sparse"] is False
    assert uploads[0][0] == tmp_path / "out" and "secret" not in (tmp_path / "out" / "settings.json").read_text()
    with pytest.raises(SystemExit, match="fit_latent_bottleneck.py: error: "):
        script.cli([str(word) for word in [*words, "--overwrite_output_dir", "--autoencoder", tmp_path / "gone"]])


def test_every_family_is_judged_at_its_rate(folder, tmp_path, apart):
    configurations = "dictionary:K=32,S=1 dictionary:K=32,S=3,pursuit=ols,scale=shared"
    configurations += " dictionary:K=64,S=3,p=2,tolerance=0.3 vq:K=16 rvq:K=16,D=1 rvq:K=16,D=3"
    configurations += " fsq:levels=5,channels=2 scalar:bits=4 scalar:bits=8 klt:step=0.2 klt:step=0.6 float:bits=16"
    command = [*sources(folder), "--grid", "none", "--configurations"]
    command += [*configurations.split(), "--lpips_weights", folder / "lpips", "--fid_features", folder / "features.pt"]
    command += [
        "--fsq_steps",
        100,
        "--iterations",
        5,
        "--passes",
        1,
        "--image_metrics",
        4,
        "--output_dir",
        tmp_path / "out",
    ]
    code, output, said = apart(EXAMPLES / "evaluate_retrofit.py", *command)
    assert code == 0, said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert len(rows) == 12 and not results["missing"]
    for row in rows.values():
        assert set(row) >= {"psnr", "ssim", "flip", "lpips", "fid", "bits_per_pixel", "nominal_bits_per_element"}
        assert row["bits_per_pixel"] == pytest.approx(
            row["bits_per_element"]
        )  # 4 channels at a quarter of the positions
        assert (row["entropy_bits_per_element"] is None) == (row["table_bytes"] is None) == (row["name"] == "float16")
        assert row["bits_per_element"] <= row.get("plain_bits_per_element", 16) and row["xz_bits_per_element"] > 0
    assert rows["float16"]["bits_per_element"] == 16 and rows["float16"]["latent_snr_db"] > 60
    assert rows["int8"]["latent_snr_db"] > rows["int4"]["latent_snr_db"] + 15
    assert (
        rows["rvq K=16 D=3"]["latent_snr_db"]
        > rows["rvq K=16 D=1"]["latent_snr_db"]
        == pytest.approx(rows["vq K=16"]["latent_snr_db"], abs=0.5)
    )
    assert rows["klt step=0.2"]["bits_per_element"] > rows["klt step=0.6"]["bits_per_element"]
    assert rows["vq K=16"]["nominal_bits_per_element"] == 1
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| int4 |" in text and "latent SNR" in output
    for name in ("rate_distortion.png", "grid.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100


def test_padding_costs_bits(folder, retrofit):
    """5 × 5 latents in patches of 2 × 2 are nine sites."""
    vae = AutoencoderKL.from_pretrained(folder / "pipeline", subfolder="vae").eval()
    words = [
        "--taef2",
        "x",
        "--grid",
        "none",
        "--configurations",
        "vq:K=16,p=2",
        "--resolution",
        "10",
        "--device",
        "cpu",
    ]
    arguments = retrofit.parse_args(words)
    latents = [torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))]
    bottleneck = retrofit.fit(arguments.parsed[0], latents, 4, arguments, {})
    priors = retrofit.fit_priors(bottleneck, latents, arguments)
    row, _ = retrofit.judge(bottleneck, priors, arguments.parsed[0], vae, latents, torch.zeros(0), {}, arguments)
    assert row["nominal_bits_per_element"] == pytest.approx(9 * 4 / 100)
    assert row["bits_per_pixel"] == pytest.approx(row["bits_per_element"])


def test_rates_are_those_of_files_and_contexts_pay_for_their_tables(retrofit):
    """Smooth latents, whose neighbours tell much, under 4-bit scalar codes."""
    coarse = torch.randn(24, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    latents = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")
    words = ["--taef2", "x", "--grid", "none", "--configurations", "scalar:bits=4", "--device", "cpu"]
    arguments = retrofit.parse_args([*words, "--prior_images", "16"])
    bottleneck = retrofit.fit(arguments.parsed[0], [latents], 4, arguments, {})
    priors = retrofit.fit_priors(bottleneck, [latents], arguments)
    assert [prior.config.contexts for prior in priors] == [False, True]
    held_out = list(latents[16:].split(3))
    codes = [bottleneck.encode(batch) for batch in held_out]
    elements, found = latents[16:].numel(), {}
    for images in (1, 10**9):  # one cannot pay, a billion can
        arguments.stored_images = images
        found[images] = row = retrofit.stored(bottleneck, priors, codes, held_out, arguments)
        bits = sum(float(priors[images > 1].bits(code).sum()) for code in codes)
        assert bits <= row["bits_per_element"] * elements <= 1.01 * bits + 8 * 64
        assert row["table_bytes"] == (4 * 4 * 16 if images == 1 else 4 * 4 * 16 * (1 + 17 * 6))
    assert found[10**9]["bits_per_element"] < 0.8 * found[1]["bits_per_element"]
    assert found[1]["bits_per_element"] == found[1]["plain_bits_per_element"] < 4
    packed = np.concatenate([code.indices.numpy().ravel() for code in codes])
    packed = (packed[::2] << 4 | packed[1::2]).astype(np.uint8).tobytes()
    assert abs(found[1]["gzip_bits_per_element"] * elements / 8 - len(gzip.compress(packed))) < 200
    floats = retrofit.stored(None, [], [], held_out, arguments)
    assert floats["bits_per_element"] == 16 > floats["xz_bits_per_element"] and floats["table_bytes"] is None


def test_files_need_their_coder(retrofit, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(SystemExit, match=r"`constriction` is not installed.*diffusers_lasers\[entropy\]"):
        retrofit.cli(["--taef2", "x", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_rates_are_interpolated_between_the_codes_that_no_other_beats(retrofit):
    """Never across a code in between: decibels of two codes in turn are not the mean of theirs."""
    points = [(0.4, 2.0), (0.4, 1.0), (0.5, 1.5), (0.6, 5.0), (0.8, 5.5), (1.2, 6.5), (2.0, 12.0), (2.5, 12.0)]
    rows = [{"family": "a", "bits_per_element": x, "snr": y} for x, y in reversed(points)]
    found = retrofit.at_rates(rows, "snr")["a"]
    assert found[:3] == pytest.approx([3.5, 6.0, 12.0]) and found[3:] == [None, None]


def test_taef2_is_an_autoencoder_tiny_with_normed_blocks(retrofit, tmp_path):
    """Random weights under the release's names; the reference runs them layer by layer."""
    torch.manual_seed(0)

    def block(normed):
        layers = {f"conv.{i}": torch.nn.Conv2d(64, 64, 3, padding=1) for i in (0, 2, 4)}
        if normed:
            layers |= {"pool.0": torch.nn.Conv2d(64, 256, 1, bias=False), "pool.1": torch.nn.GroupNorm(4, 256)}
            layers |= {"pool.3": torch.nn.Conv2d(256, 64, 1, bias=False)}
        return layers

    def convolution(a, b, **arguments):
        return {"": torch.nn.Conv2d(a, b, 3, padding=1, **arguments)}

    down = {"stride": 2, "bias": False}
    encoder = [convolution(3, 64), block(False)]
    for stage in range(3):
        encoder += [convolution(64, 64, **down), *(block(stage == 2) for _ in range(3))]
    encoder += [convolution(64, 32)]
    decoder = [
        None,
        convolution(32, 64),
        "relu",
        *(block(True) for _ in range(3)),
        "up",
        convolution(64, 64, bias=False),
    ]
    decoder += [
        *(block(False) for _ in range(3)),
        "up",
        convolution(64, 64, bias=False),
        *(block(False) for _ in range(3)),
    ]
    decoder += ["up", convolution(64, 64, bias=False), block(False), convolution(64, 3)]

    def run(layers, x):
        for layer in layers:
            if layer is None:
                x = torch.tanh(x / 3) * 3
            elif layer == "relu":
                x = x.relu()
            elif layer == "up":
                x = torch.nn.functional.interpolate(x, scale_factor=2)
            elif "" in layer:
                x = layer[""](x)
            else:
                if "pool.0" in layer:
                    x = x + layer["pool.3"](layer["pool.1"](layer["pool.0"](x)).relu())
                y = layer["conv.4"](layer["conv.2"](layer["conv.0"](x).relu()).relu())
                x = (y + x).relu()
        return x

    for name, layers in (("encoder", encoder), ("decoder", decoder)):
        state = {
            ".".join(filter(None, (str(number), key, kind))): value.detach().half()
            for number, layer in enumerate(layers)
            if isinstance(layer, dict)
            for key, part in layer.items()
            for kind, value in part.named_parameters()
        }
        for layer in layers:  # what is stored in half precision is what the reference runs
            for part in layer.values() if isinstance(layer, dict) else ():
                part.half().float()
        save_file(state, tmp_path / f"taef2_{name}.safetensors")
    model = retrofit.load_taef2(tmp_path)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = run(encoder, (x + 1) / 2)
        torch.testing.assert_close(model.encode(x).latents, z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(z).sample, run(decoder, z) * 2 - 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "give --autoencoder or --taef2"),
        (["--taef2", "x", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--taef2", "x", "--grid", "none"], "--configurations must name one"),
        (["--taef2", "x", "--configurations", "jpeg:q=3"], "a configuration must begin with one of"),
        (["--taef2", "x", "--configurations", "vq:S=3"], "a configuration of vq has K, p, got 'S'"),
        (["--taef2", "x", "--configurations", "float:bits=4"], "float has bits=16 and p=1 only"),
        (["--taef2", "x", "--image_metrics", "-1"], "--image_metrics must be at least 0"),
        (["--taef2", "x", "--train_data_dir", "y"], "give both --train_data_dir and --validation_data_dir"),
        (["--taef2", "x", "--configurations", "vq:K=many"], "K must be a number, got 'many'"),
    ],
)
def test_wrong_arguments(retrofit, capsys, words, sentence):
    with pytest.raises(SystemExit):
        retrofit.cli(words)
    assert sentence in capsys.readouterr().err


def test_grids_cover_what_they_say(retrofit):
    paper = [retrofit.parse_configuration(text) for text in retrofit.GRIDS["paper"]]
    dictionaries = [settings for settings in paper if settings["kind"] == "dictionary"]
    assert {(s["K"], s["S"], s["p"], s["pursuit"]) for s in dictionaries} == {
        (k, s, p, pursuit)
        for k in (64, 256, 1024, 4096)
        for s in range(1, 9)
        for p in (1, 2)
        for pursuit in ("omp", "ols")
    }
    names = [retrofit.label(settings) for settings in paper]
    assert len(set(names)) == len(names)
