"""Tiny models in folders, pictures, and a call of the command line in this process."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from diffusers_lasers import AutoencoderDL, DLRestorationPipeline, ModelBasedVQCodec
from diffusers_lasers.commands import main


def autoencoder(kind, **config):
    torch.manual_seed(0)
    model = AutoencoderDL(
        block_out_channels=(8, 8),
        residual_channels=4,
        layers_per_block=1,
        latent_channels=4,
        bottleneck_type=kind,
        bottleneck_config=config,
    )
    with torch.no_grad():
        model.bottleneck.initialize(model.encode(torch.rand(8, 3, 32, 32) * 2 - 1).latents)
    return model.eval()


def picture(width, height, seed=0):
    """Smooth colours with some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Models `dl`, `shared`, `vq`, `none`, `codec`, `unfitted`, `bottleneck`, `unet`, a `pipeline`, and pictures
    `a.png` and `b.png`."""
    folder = tmp_path_factory.mktemp("saved")
    model = autoencoder("dictionary", num_atoms=20, sparsity=3, coefficient_bits=6)
    model.save_pretrained(folder / "dl")
    model.bottleneck.save_pretrained(folder / "bottleneck")
    DLRestorationPipeline(model).save_pretrained(folder / "pipeline")
    autoencoder(
        "dictionary", num_atoms=20, sparsity=3, coefficient_bits=6, coefficient_scaling="shared"
    ).save_pretrained(folder / "shared")
    autoencoder("residual_vq", num_codewords=12, depth=2).save_pretrained(folder / "vq")
    autoencoder("none").save_pretrained(folder / "none")
    codec = ModelBasedVQCodec.from_notation("OPQ-{8-4-4}", patch_size=4, codebook_bits=4)
    codec.save_pretrained(folder / "unfitted")
    codec.fit(torch.rand(2, 3, 32, 32) * 2 - 1, iterations=3, progress=False).save_pretrained(folder / "codec")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")
    shutil.copytree(folder / "dl", folder / "truncated")
    weights = folder / "truncated/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "empty").mkdir()
    picture(31, 22).save(folder / "a.png")
    picture(24, 40, seed=1).save(folder / "b.png")
    return folder


@pytest.fixture
def run(capsys, monkeypatch, saved, tmp_path):
    """Runs a command line in an empty folder in which `saved` is a link; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").symlink_to(saved, target_is_directory=True)

    def call(line):
        capsys.readouterr()
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call
