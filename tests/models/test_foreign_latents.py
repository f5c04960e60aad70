"""Latents of diffusers' own autoencoders on the denoiser's scale."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from diffusers_lasers import AutoencoderDL
from diffusers_lasers.models.autoencoders import decode_latents, encode_latents


BLOCKS = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2


def kl(**config):
    return AutoencoderKL(down_block_types=DOWN, up_block_types=UP, latent_channels=4, **BLOCKS, **config)


AUTOENCODERS = {
    "kl": kl,
    "kl-shift": lambda: kl(shift_factor=0.3, scaling_factor=0.5),
    "kl-statistics": lambda: kl(
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0], scaling_factor=0.5
    ),
    "tiny": lambda: AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    ),
    "vq": lambda: VQModel(down_block_types=DOWN, up_block_types=UP, latent_channels=4, num_vq_embeddings=8, **BLOCKS),
    "dc": lambda: AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), scaling_factor=0.4,
    ),
    "dl": lambda: AutoencoderDL(
        latent_channels=4, block_out_channels=(8, 8), residual_channels=4,
        bottleneck_config={"num_atoms": 8, "sparsity": 2},
    ),
}  # fmt: skip


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=AUTOENCODERS)
def autoencoder(request):
    torch.manual_seed(0)
    return AUTOENCODERS[request.param]().eval()


@torch.no_grad()
def test_decoding_latents_is_the_autoencoder_without_a_bottleneck_of_its_own(autoencoder):
    x = images()
    z = encode_latents(autoencoder, x)
    assert z.shape == (2, 4, 8, 8)
    if isinstance(autoencoder, VQModel):
        expected = autoencoder.decode(autoencoder.encode(x).latents, force_not_quantize=True).sample
    elif isinstance(autoencoder, AutoencoderDL):
        expected = autoencoder.decode(autoencoder.encode(x).latents, force_not_quantize=True).sample
    elif isinstance(autoencoder, AutoencoderDC):
        expected = autoencoder.decode(autoencoder.encode(x).latent).sample
    else:
        output = autoencoder.encode(x)
        expected = autoencoder.decode(
            output.latents if hasattr(output, "latents") else output.latent_dist.mode()
        ).sample
    torch.testing.assert_close(decode_latents(autoencoder, z), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_scale_is_that_of_pipelines():
    torch.manual_seed(0)
    vae, x = AUTOENCODERS["kl-statistics"]().eval(), images()
    raw = vae.encode(x).latent_dist.mode()
    mean, deviation = (
        torch.tensor(part).view(1, 4, 1, 1) for part in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(encode_latents(vae, x), (raw - mean) * 0.5 / deviation)
    vae = AUTOENCODERS["kl-shift"]().eval()
    torch.testing.assert_close(encode_latents(vae, x), (vae.encode(x).latent_dist.mode() - 0.3) * 0.5)


def test_what_is_no_autoencoder_of_images_is_refused():
    class Odd(torch.nn.Module):
        config = {}

        def encode(self, x):
            return {"something": x}

    with pytest.raises(ValueError, match="`autoencoder` must give latents or a distribution"):
        encode_latents(Odd(), images())
    Odd.encode = lambda self, x: x[:, 0]
    with pytest.raises(ValueError, match=r"`autoencoder` must give latents of shape \(B, L, h, w\)"):
        encode_latents(Odd(), images())
