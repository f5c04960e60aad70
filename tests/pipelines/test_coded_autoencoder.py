"""`CodedAutoencoder`: any autoencoder of diffusers with a bottleneck, alone and as `vae` of stock pipelines.

The pipelines are tiny, with random weights and without text encoders: each draws from given embeddings. A builder
returns the pipeline, the arguments of a call, and the number of channels of the latents that denoisers see.
"""

import json

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    AutoModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)

from diffusers_lasers import (
    CodedAutoencoder,
    DictionaryBottleneck,
    FactorizedPrior,
    IdentityBottleneck,
    ScalarQuantizerBottleneck,
)
from diffusers_lasers.training import fit_bottleneck


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def kl(channels, **config):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=channels,
        **config,
    )


def unet(**config):
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        **config,
    )


def sd():
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    pipeline = StableDiffusionPipeline(
        vae=kl(4, scaling_factor=0.2),
        text_encoder=None,
        tokenizer=None,
        unet=unet(down_block_types=down, up_block_types=up),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, {"prompt_embeds": normal(1, 5, 8), "negative_prompt_embeds": normal(1, 5, 8)}, 4


def sdxl():
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    denoiser = unet(
        down_block_types=down,
        up_block_types=up,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 8,
    )
    vae = kl(4, scaling_factor=0.2, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=denoiser,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    embeds, pooled = normal(1, 5, 8), normal(1, 8)
    call = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    return pipeline, call | {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}, 4


def sd3():
    denoiser = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=kl(4, scaling_factor=1.5, shift_factor=0.06),
        **dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        ),
    )
    embeds, pooled = normal(1, 5, 8), normal(1, 8)
    call = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    return pipeline, call | {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}, 4


def flux():
    denoiser = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=kl(4, scaling_factor=0.36, shift_factor=0.1159),
        transformer=denoiser,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    return pipeline, {"prompt_embeds": normal(1, 5, 8), "pooled_prompt_embeds": normal(1, 8)}, 4


def flux2():
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
    )
    vae.bn.running_mean.copy_(normal(16))
    vae.bn.running_var.copy_(normal(16).square() + 0.5)
    denoiser = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=denoiser,
        is_distilled=True,
    )
    return pipeline, {"prompt_embeds": normal(1, 5, 8)}, 16


def qwen_image():
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    denoiser = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, guidance_embeds=False, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None, transformer=denoiser
    )
    return pipeline, {"prompt_embeds": normal(1, 5, 8), "prompt_embeds_mask": torch.ones(1, 5).long()}, 4


def sana():
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )  # fmt: skip
    denoiser = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip
    pipeline = SanaPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=denoiser, scheduler=DPMSolverMultistepScheduler()
    )
    embeds, mask = normal(1, 5, 8), torch.ones(1, 5).long()
    call = {"prompt": None, "negative_prompt": None, "prompt_embeds": embeds, "prompt_attention_mask": mask}
    call |= {"negative_prompt_embeds": embeds, "negative_prompt_attention_mask": mask}
    return pipeline, call | {"use_resolution_binning": False}, 4


def wan():
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=denoiser
    )
    embeds = normal(1, 5, 8)
    return pipeline, {"prompt_embeds": embeds, "negative_prompt_embeds": embeds, "num_frames": 9}, 4


def ltx():
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=1,
        patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    vae.latents_mean.copy_(normal(4))
    denoiser = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=8,
    )  # fmt: skip
    pipeline = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None, transformer=denoiser
    )
    embeds, mask = normal(1, 5, 8), torch.ones(1, 5).long()
    call = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "num_frames": 9}
    return pipeline, call | {"negative_prompt_embeds": embeds, "negative_prompt_attention_mask": mask}, 4


PIPELINES = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "qwen_image": qwen_image,
    "sana": sana,
    "wan": wan,
    "ltx": ltx,
}


def build(name):
    """A pipeline with weights of a seed, its call for 32 × 32 pixels and one step, and the channels of its latents."""
    torch.manual_seed(0)
    pipeline, call, channels = PIPELINES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {"height": 32, "width": 32, "num_inference_steps": 1, **call}, channels


def draw(pipeline, call, **changes):
    """What a call gives, from one seed."""
    return pipeline(**call, generator=torch.Generator().manual_seed(1), return_dict=False, **changes)[0]


def scalar(channels, bits=8):
    torch.manual_seed(0)
    bottleneck = ScalarQuantizerBottleneck(channels, bits=bits)
    bottleneck.fit(2 * torch.randn(4, channels, 16, 16), progress=False)
    return bottleneck.eval()


def tiny():
    torch.manual_seed(0)
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def images(height=24, width=20):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def spied(vae):
    """The autoencoder, which notes what its `decode` gets."""
    seen, decode = [], vae.decode
    vae.decode = lambda z, *args, **kwargs: seen.append((z, args, kwargs)) or decode(z, *args, **kwargs)
    return seen


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_draw_the_same_without_a_code_and_what_its_code_says_with_one(name):
    pipeline, call, channels = build(name)
    inside = pipeline.vae
    before = draw(pipeline, call, output_type="pt")
    pipeline.vae = CodedAutoencoder(inside, IdentityBottleneck(channels)).eval()
    assert torch.equal(torch.as_tensor(draw(pipeline, call, output_type="pt")), torch.as_tensor(before))

    pipeline.vae = coded = CodedAutoencoder(inside, scalar(channels, bits=4)).eval()
    seen = spied(coded)
    drawn = torch.as_tensor(draw(pipeline, call, output_type="pt"))
    assert not torch.equal(drawn, torch.as_tensor(before))
    (z, args, kwargs), *_ = seen
    code = coded.unpack(coded.pack(coded.latents_to_code(z)))
    with torch.no_grad():
        frames = z.shape[2] if z.ndim == 5 else None
        expected = inside.decode(coded.code_to_latents(code, frames), *args, **{**kwargs, "return_dict": False})[0]
        decoded = coded.decode(z, *args, **{**kwargs, "return_dict": False})[0]
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)
    assert code.num_sites == z.numel() // z.shape[1] // (4 if name == "flux2" else 1)


def test_latents_on_the_denoisers_scale_are_what_the_denoiser_gives():
    """Of Flux.2: patches of 2 × 2 with the batch norm's statistics; one of unpatched channels sees the same."""
    from diffusers_lasers.models.autoencoders.diffusers_latents import from_denoiser, to_denoiser

    pipeline, _, _ = build("flux2")
    z = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    scaled = to_denoiser(pipeline.vae, z)
    mean, variance = pipeline.vae.bn.running_mean, pipeline.vae.bn.running_var
    assert scaled.shape == (2, 16, 3, 4)
    feature = 4 * 2 + 2 * 1 + 0  # channel 2, row 1, column 0 of a patch
    expected = (z[:, 2, 1::2, 0::2] - mean[feature]) / (variance[feature] + 1e-4).sqrt()
    torch.testing.assert_close(scaled[:, feature], expected)
    torch.testing.assert_close(from_denoiser(pipeline.vae, scaled), z)
    unpatched = CodedAutoencoder(pipeline.vae, scalar(4))
    assert unpatched.latents_to_code(z).latent_size == (6, 8)
    assert CodedAutoencoder(pipeline.vae, scalar(16)).latents_to_code(z).latent_size == (3, 4)
    assert unpatched.code_to_latents(unpatched.latents_to_code(z)).shape == z.shape


@pytest.mark.parametrize("make", [tiny, lambda: kl(4, scaling_factor=0.2, shift_factor=0.1).eval()])
def test_images_of_any_size_have_a_code(make):
    vae = CodedAutoencoder(make(), scalar(4, bits=12))
    x = images(23, 21)
    code = vae.encode_to_code(x)
    sample = vae.decode_from_code(vae.unpack(vae.pack(code))).sample
    assert code.image_size == (23, 21) and code.latent_size == (12, 11) and sample.shape == x.shape
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(vae(padded).sample[..., :23, :21], sample, rtol=0, atol=1e-5)
    assert vae.bits_per_pixel(23, 21) == pytest.approx(vae.bits(code) / (2 * 23 * 21))


def test_its_bits_are_those_of_its_bottleneck():
    bottleneck = DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4)
    vae = CodedAutoencoder(tiny(), bottleneck)
    code = vae.encode_to_code(images())
    assert vae.bits_per_site == bottleneck.bits_per_site > 2 * 4
    assert vae.bits_per_pixel(24, 20) * 24 * 20 == pytest.approx(vae.bits(code) / 2)
    assert vae.bits(code) <= 8 * len(vae.pack(code))


@torch.no_grad()
def test_a_video_has_a_code_of_its_latent_frames():
    pipeline, _, _ = build("wan")
    vae = CodedAutoencoder(pipeline.vae, scalar(4, bits=12))
    x = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    code = vae.encode_to_code(x)
    frames = vae.encode(x).latent_dist.mode().shape[2]
    assert len(code) == 2 * frames
    sample = vae.decode_from_code(code, frames=frames).sample
    torch.testing.assert_close(sample, vae(x).sample, rtol=0, atol=1e-5)
    for frames in (3, 1.0):
        with pytest.raises(ValueError, match=rf"`frames` must divide the \d+ images of a code of video, got {frames}"):
            vae.decode_from_code(code, frames=frames)


@torch.no_grad()
def test_images_of_an_autoencoder_of_video_are_images():
    pipeline, _, _ = build("qwen_image")
    vae, x = CodedAutoencoder(pipeline.vae, scalar(4, bits=12)), images(24, 20)
    code = vae.encode_to_code(x)
    sample = vae.decode_from_code(code).sample
    assert len(code) == 2 and sample.shape == x.shape
    for row in range(2):
        torch.testing.assert_close(vae.decode_from_code(code[row : row + 1]).sample, sample[row : row + 1])
    torch.testing.assert_close(vae(x).sample, sample, rtol=0, atol=1e-5)


def test_everything_else_is_the_autoencoders():
    inside = kl(4, scaling_factor=0.2).eval()
    vae = CodedAutoencoder(inside, scalar(4))
    assert vae.config is inside.config and vae.config.scaling_factor == 0.2 and vae.dtype == torch.float32
    vae.enable_slicing()
    assert inside.use_slicing and vae.use_slicing and vae.post_quant_conv is inside.post_quant_conv
    x = images(16, 16)
    with torch.no_grad():
        assert torch.equal(vae.encode(x).latent_dist.mode(), inside.encode(x).latent_dist.mode())
    assert set(dict(vae.named_children())) == {"autoencoder", "bottleneck"}
    vae.use_slicing = False
    vae.register_to_config(force_upcast=False)
    assert not inside.use_slicing and not inside.config.force_upcast and not vae.config.force_upcast
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vae.nothing


@pytest.mark.parametrize("name, channels", [("flux2", 4), ("flux2", 16), ("wan", 4)])
def test_its_bottleneck_is_fitted_to_what_it_codes(name, channels):
    pipeline, _, _ = build(name)
    x = torch.rand(4, 3, 1, 32, 32) * 2 - 1 if name == "wan" else images(32, 32).repeat(2, 1, 1, 1)
    bottleneck = fit_bottleneck(
        pipeline.vae, x, ScalarQuantizerBottleneck(channels, bits=8), progress=False, batch_size=4
    )
    vae = CodedAutoencoder(pipeline.vae, bottleneck)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
    error = vae.code_to_latents(vae.latents_to_code(z)) - z
    assert error.square().mean() < 1e-3 * z.var()


class Counted(ModelHook):
    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        Counted.calls += 1
        return args, kwargs


def test_calls_pass_the_hooks_that_offload_it():
    vae, x = CodedAutoencoder(tiny(), scalar(4)), images(16, 16)
    add_hook_to_module(vae, Counted())
    before = Counted.calls
    z = vae.encode(x).latents
    vae.decode(z)
    vae.decode_from_code(vae.encode_to_code(x))
    assert Counted.calls - before == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    vae = CodedAutoencoder(tiny(), scalar(4)).to(dtype)
    with torch.no_grad():
        code = vae.encode_to_code(images(16, 16))
        sample = vae.decode_from_code(code).sample
        z = vae.encode(images(16, 16).to(dtype)).latents
        assert vae.dtype == sample.dtype == dtype and vae.decode(z).sample.dtype == dtype
    assert torch.isfinite(sample).all()


def test_casts_of_the_decoder_leave_bottleneck_and_prior_as_they_are(tmp_path):
    """Stable Diffusion XL casts its autoencoder to float32 and back around each image."""
    pipeline, call, _ = build("sdxl")
    bottleneck = DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4)
    prior = FactorizedPrior.from_coder(bottleneck).fit(bottleneck.encode(torch.randn(4, 4, 8, 8)))
    mark = bottleneck.fingerprint
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.vae = vae = CodedAutoencoder(pipeline.vae, bottleneck, prior).to(torch.float16)
    assert vae.dtype == torch.float16 and bottleneck.dictionary.dtype == torch.float32
    seen = spied(vae)
    drawn = [torch.as_tensor(draw(pipeline, call, output_type="pt")) for _ in range(2)]
    assert torch.equal(*drawn) and bottleneck.fingerprint == mark and len(seen) == 2
    vae.save_pretrained(tmp_path)
    assert CodedAutoencoder.from_pretrained(tmp_path).prior is not None


FRESH = """
import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers_lasers import CodedAutoencoder

NONE = {"text_encoder": None, "tokenizer": None}
x = torch.load("x.pt")
vae = CodedAutoencoder.from_pretrained("vae")
code = vae.encode_to_code(x)
result = [vae.compress(code).hex(), torch.equal(vae.decode_from_code(code).sample, torch.load("sample.pt"))]
result.append(type(AutoModel.from_pretrained("vae")).__name__)

# the Hub, alone and in a pipeline
vae.push_to_hub("someone/coded")
pipeline = DiffusionPipeline.from_pretrained("pipeline", **NONE)
pipeline.push_to_hub("someone/pipeline")
vae.save_pretrained("again", push_to_hub=True, repo_id="someone/again")
loaded = [CodedAutoencoder.from_pretrained("someone/coded"), CodedAutoencoder.from_pretrained("someone/again")]
loaded.append(DiffusionPipeline.from_pretrained("someone/pipeline", **NONE).vae)
result += [torch.equal(part.decode_from_code(code).sample, torch.load("sample.pt")) for part in loaded]
"""


def test_it_loads_in_a_fresh_process_and_from_the_hub_with_its_parts(fresh, local_hub, tmp_path):
    bottleneck = DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4)
    vae = CodedAutoencoder(tiny(), bottleneck)
    code = vae.encode_to_code(images())
    vae.prior = FactorizedPrior.from_coder(bottleneck).fit(code)
    vae.save_pretrained(tmp_path / "vae")
    torch.save(images(), tmp_path / "x.pt")
    torch.save(vae.decode_from_code(code).sample, tmp_path / "sample.pt")
    pipeline, _, _ = build("sd")
    pipeline.vae = vae
    pipeline.save_pretrained(tmp_path / "pipeline")
    result = fresh(FRESH, tmp_path, **local_hub.environment)
    assert result == [vae.compress(code).hex(), True, "CodedAutoencoder", True, True, True]
    assert "CodedAutoencoder" in (local_hub.root / "someone/coded/README.md").read_text()
    assert vae.decompress(vae.compress(code)) == code
    again = CodedAutoencoder.from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16 and again.prior is not None
    assert type(AutoModel.from_pretrained(str(tmp_path), subfolder="vae")) is CodedAutoencoder


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_a_stock_pipeline_keeps_it(name, tmp_path):
    pipeline, call, channels = build(name)
    pipeline.vae = CodedAutoencoder(pipeline.vae, scalar(channels, bits=4)).eval()
    expected = torch.as_tensor(draw(pipeline, call, output_type="pt"))
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers_lasers", "CodedAutoencoder"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipeline) and type(loaded.vae) is CodedAutoencoder
    assert torch.equal(torch.as_tensor(draw(loaded, call, output_type="pt")), expected)


def test_what_does_not_fit_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="`bottleneck` must be made for 4 latent channels .* got 8."):
        CodedAutoencoder(tiny(), scalar(8))
    with pytest.raises(ValueError, match="`bottleneck` must be made for 4 or 16 latent channels .* got 8."):
        CodedAutoencoder(build("flux2")[0].vae, scalar(8))
    with pytest.raises(ValueError, match="`bottleneck` must be a Bottleneck, got NoneType."):
        CodedAutoencoder(tiny(), None)
    with pytest.raises(ValueError, match=r"`shift` and `scale` must have shape \(1,\), got \(4,\)"):
        fit_bottleneck(tiny(), images(), ScalarQuantizerBottleneck(1, bits=4), progress=False)  # 4 are no patches of 1
    one, other = (DictionaryBottleneck(4, num_atoms=atoms, sparsity=2, coefficient_bits=4) for atoms in (8, 16))
    with pytest.raises(ValueError, match="`prior` must be that .* got that of other weights"):
        CodedAutoencoder(tiny(), one, FactorizedPrior.from_coder(other))
    vae = CodedAutoencoder(tiny(), one)
    with pytest.raises(ValueError, match="`prior` must be that .* got None: give"):
        vae.compress(vae.encode_to_code(images()))
    for wrong in (images()[0], images()[:, :, None], "x"):
        with pytest.raises(ValueError, match=r"`x` must be images \(B, 3, H, W\)"):
            vae.encode_to_code(wrong)
    vae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for named in (["os", "system"], ["diffusers", "DDIMScheduler"], ["diffusers", "nothing"], None, "x", 3):
        path.write_text(json.dumps(config | {"autoencoder": named}))
        with pytest.raises(
            ValueError, match="`autoencoder` in config.json must name a class of that kind in diffusers"
        ):
            CodedAutoencoder.from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"bottleneck": ["diffusers", "AutoencoderTiny"]}))
    with pytest.raises(ValueError, match="`bottleneck` in config.json must name a class of that kind"):
        CodedAutoencoder.from_pretrained(tmp_path)
