"""The light encoder and decoder: geometry, widths, bounded reach."""

import pytest
import torch

from diffusers_lasers.models.autoencoders.light import LightDecoder, LightEncoder


SHAPE = {"block_out_channels": (6, 10, 12), "layers_per_block": 2, "residual_channels": 4}


@pytest.mark.parametrize("widths", [(8, 12), (6, 10, 12), (4, 6, 8, 10)])
def test_each_width_but_the_last_halves_the_image(widths):
    encoder = LightEncoder(3, 5, widths, layers_per_block=1, residual_channels=4)
    decoder = LightDecoder(5, 3, widths, layers_per_block=1, residual_channels=4)
    x = torch.randn(2, 3, 32, 16)
    latents = encoder(x)
    factor = 2 ** (len(widths) - 1)
    assert latents.shape == (2, 5, 32 // factor, 16 // factor)
    assert decoder(latents).shape == x.shape


def test_layers_are_those_of_the_paper():
    """Section 5 of LASERS: strided 4×4 convolutions, residual blocks of ReLU, 3×3, ReLU, 1×1."""
    encoder = LightEncoder(3, 16, (64, 128, 128), 2, 32)
    assert [(c.kernel_size, c.stride, c.out_channels) for c in encoder.down] == [
        ((4, 4), (2, 2), 64),
        ((4, 4), (2, 2), 128),
    ]
    assert [(b.conv1.kernel_size, b.conv2.kernel_size) for b in encoder.residual] == [((3, 3), (1, 1))] * 2
    # 4·4·3·64 + 4·4·64·128 + 9·128·128 + 2·(9·128·32 + 32·128) + 128·16 weights, and the biases
    assert sum(p.numel() for p in encoder.parameters()) == 3136 + 131_200 + 147_584 + 2 * (36_896 + 4_224) + 2_064


@torch.no_grad()
def test_a_pixel_reaches_a_bounded_neighbourhood():
    """Tiling drops `layers_per_block + 4` latent positions at inner edges: no network may reach further."""
    encoder, decoder = LightEncoder(3, 5, **SHAPE), LightDecoder(5, 3, **SHAPE)
    x = torch.randn(1, 3, 128, 128)
    changed = x.clone()
    changed[..., 64, 64] += 10.0
    moved = (encoder(changed) - encoder(x)).abs().sum(dim=(0, 1)).nonzero()
    assert moved.numel() and (moved - 16).abs().max() <= SHAPE["layers_per_block"] + 4
    latents = encoder(x)
    changed = latents.clone()
    changed[..., 16, 16] += 10.0
    moved = (decoder(changed) - decoder(latents)).abs().sum(dim=(0, 1)).nonzero()
    assert moved.numel() and ((moved.float() + 0.5) / 4 - 16.5).abs().max() <= SHAPE["layers_per_block"] + 4
