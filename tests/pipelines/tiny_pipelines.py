"""Tiny pipelines of diffusers with random weights, without text encoders: each draws from given embeddings.

A builder returns the pipeline, the arguments of a call, and the number of channels of the latents that denoisers see.
"""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
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
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
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
