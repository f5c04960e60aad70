"""Runs examples/evaluate_generation.py on tiny pipelines: figures against torchmetrics on the same features, floor,
pictures, errors."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiscreteDDIMScheduler
from PIL import Image

from diffusers_lasers import (
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
    UniformD3PMScheduler,
)


SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_generation.py"


class Corners(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_generation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("generation"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 10)):
        (folder / part).mkdir()
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((16, 16), Image.Resampling.BICUBIC).save(folder / part / f"{i:02d}.png")
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    codec.fit(str(folder / "train"), max_patches=1000, iterations=5, progress=False)
    torch.manual_seed(0)
    unet = CategoricalUNet2DModel(
        4, 16, sample_size=4, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8
    )
    pipeline = ModelBasedLatentDiffusionPipeline(codec, unet, CategoricalDDPMScheduler(num_codewords=16))
    pipeline.save_pretrained(folder / "pipeline")
    torch.jit.script(Corners()).save(folder / "features.pt")
    return folder


def test_figures_floor_and_pictures(script, folder, tmp_path):
    script.cli(
        [
            str(folder / "pipeline"), "--data", str(folder / "train"), "--held_out", str(folder / "test"),
            "--features", str(folder / "features.pt"), "--feature_resize", "0", "--num_images", "9",
            "--num_inference_steps", "2", "--temperatures", "0", "1", "--kid_subset_size", "8",
            "--output_dir", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["other real images", "codec floor", "pipeline γ=0", "pipeline γ=1"]
    assert rows["codec floor"]["fid"] < rows["pipeline γ=1"]["fid"]

    def features(part):
        paths = sorted((folder / part).glob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]).permute(0, 3, 1, 2)
        low, high = -1.0, 127 / 128
        return Corners()(low + (high - low) * pixels.float() / 255).double().numpy()

    real, other = features("train"), features("test")
    covariances = np.cov(real.T), np.cov(other.T)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).clip(0)).sum().real
    fid = ((real.mean(0) - other.mean(0)) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * root
    assert rows["other real images"]["fid"] == pytest.approx(fid, rel=1e-3, abs=1e-4)
    assert rows["pipeline γ=1"]["bits_per_pixel"] == 1.0 and results["protocol"]["reference_images"] == 12
    for kind in ("samples", "neighbours"):
        assert Image.open(tmp_path / "out" / f"{kind}-pipeline-temperature-1.png").size[0] == 128


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--features", "nowhere.pt"], "nowhere.pt"),
        (["--num_images", "5"], "--num_images must be at least --kid_subset_size"),
        (["--batch_size", "0"], "--batch_size"),
    ],
)
def test_what_it_refuses_is_one_sentence(script, folder, tmp_path, more, sentence, capsys):
    fixed = ["--data", str(folder / "train"), "--features", str(folder / "features.pt")]
    with pytest.raises(SystemExit) as stopped:
        script.cli([str(folder / "pipeline"), *fixed, "--output_dir", str(tmp_path / "out"), *more])
    assert sentence in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheduler", [UniformD3PMScheduler(num_codewords=16), DiscreteDDIMScheduler()])
def test_uniform_pipelines_are_judged_too(script, folder, tmp_path, scheduler):
    """diffusers' own scheduler does not know how many steps it was trained with."""
    torch.manual_seed(0)
    unet = CategoricalUNet2DModel(
        4, 16, "discrete", sample_size=4, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8
    )
    codec = ModelBasedVQCodec.from_pretrained(folder / "pipeline", subfolder="codec")
    ModelBasedLatentDiffusionPipeline(codec, unet, scheduler).save_pretrained(tmp_path / "uniform")
    words = ["--data", folder / "train", "--features", folder / "features.pt", "--feature_resize", "0"]
    words += ["--num_images", "9", "--num_inference_steps", "2", "--kid_subset_size", "8"]
    script.cli([str(word) for word in (tmp_path / "uniform", *words, "--output_dir", tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["codec floor", "uniform"]
