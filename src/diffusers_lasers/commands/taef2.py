"""TAEF2, a tiny autoencoder for FLUX.2's latents, as an `AutoencoderTiny` of diffusers with middle blocks added."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import load_file
from torch import nn


class NormedTinyBlock(AutoencoderTinyBlock):
    """A block of TAEF2's middle: its input plus a normalised 1 × 1 branch, then the plain block."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, "relu")
        wide = 4 * channels
        self.pool = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.pool(x))


def load_taef2(folder: str | os.PathLike) -> AutoencoderTiny:
    """TAEF2 with 32 latent channels from a folder with taef2_encoder.safetensors and taef2_decoder.safetensors."""
    model = AutoencoderTiny(latent_channels=32)
    for part, network, shift in (("encoder", model.encoder, 0), ("decoder", model.decoder, 1)):
        state = load_file(Path(folder) / f"taef2_{part}.safetensors")
        # the release counts the clamp before its decoder as a layer
        state = {
            f"{int(name.split('.')[0]) - shift}.{name.split('.', 1)[1]}": value.float()
            for name, value in state.items()
        }
        for index in {int(name.split(".")[0]) for name in state if ".pool." in name}:
            network.layers[index] = NormedTinyBlock(network.layers[index].conv[0].in_channels)
        network.layers.load_state_dict(state)
    return model.eval()
