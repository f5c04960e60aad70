"""The blocks of codes, alone and among blocks of diffusers."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.z_image.decoders import ZImageVaeDecoderStep

from diffusers_lasers import CodedAutoencoder, CodeRoundTrip, DecodeFromCode, EncodeToCode, ScalarQuantizerBottleneck


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    bottleneck = ScalarQuantizerBottleneck(4, bits=4)
    bottleneck.fit(torch.randn(4, 4, 16, 16), progress=False)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.2, shift_factor=0.1,
    )  # fmt: skip
    return vae.eval(), bottleneck.eval()


def sequence(**blocks):
    return SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()


def test_a_code_stands_between_a_denoiser_and_diffusers_own_decoder(parts):
    vae, bottleneck = parts
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline = sequence(code=CodeRoundTrip(), decode=ZImageVaeDecoderStep())
    pipeline.update_components(vae=vae, bottleneck=bottleneck)
    state = pipeline(latents=latents, output_type="pt")
    with torch.no_grad():
        coded = CodedAutoencoder(vae, bottleneck).decode(latents / 0.2 + 0.1).sample
    torch.testing.assert_close(state.get("images"), (coded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert state.get("code") == bottleneck.encode(latents)
    video = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = sequence(code=CodeRoundTrip())
    alone.update_components(bottleneck=bottleneck)
    coded = alone(latents=video, output="latents")
    assert torch.equal(coded[1, :, 2], bottleneck.decode(bottleneck.encode(video[1:, :, 2]))[0])
    with pytest.raises(ValueError, match=r"`latents` must be of shape .* got \(2, 16, 16\): put the block after"):
        alone(latents=torch.zeros(2, 16, 16))


def test_images_become_codes_and_come_back(parts):
    vae = CodedAutoencoder(*parts)
    pictures = np.random.default_rng(0).random((2, 15, 18, 3), dtype=np.float32)
    encoder, decoder = sequence(encode=EncodeToCode()), sequence(decode=DecodeFromCode())
    for pipeline in (encoder, decoder):
        pipeline.update_components(vae=vae)
    code = encoder(image=pictures, output="code")
    expected = vae.encode_to_code(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)
    assert code == expected and code.image_size == (15, 18)
    decoded = decoder(code=vae.unpack(vae.pack(code)), output_type="np", output="images")
    whole = sequence(encode=EncodeToCode(), decode=DecodeFromCode())
    whole.update_components(vae=vae)
    assert decoded.shape == pictures.shape
    np.testing.assert_array_equal(whole(image=pictures, output_type="np", output="images"), decoded)
    assert decoder(code=code, output="images")[0].size == (18, 15)
    with pytest.raises(ValueError, match="`output_type` must be one of .* got 'latent'"):
        decoder(code=code, output_type="latent")
