"""A complete, tiny Stable Diffusion checkpoint, made on the spot: real classes, random weights, a real tokenizer."""

import json
import string

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)


def make_tokenizer(folder):
    """A byte-pair tokenizer of CLIP with letters, their ends of words, and one merge."""
    letters = string.ascii_lowercase
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def make_text_encoder(kind, size=16):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=size, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=size,
        hidden_act="gelu",
    )  # fmt: skip
    return kind(config).eval()


def make_vae(**config):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=8, sample_size=32, **config,
    ).eval()  # fmt: skip


def make_unet(**config):
    torch.manual_seed(0)
    arguments = {"cross_attention_dim": 16, **config}
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), **arguments,
    ).eval()  # fmt: skip


def make_scheduler():
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    """Folder of a plain `StableDiffusionPipeline`."""
    folder = tmp_path_factory.mktemp("stable-diffusion")
    (folder / "made").mkdir()
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(CLIPTextModel),
        tokenizer=make_tokenizer(folder / "made"),
        unet=make_unet(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def stable_diffusion_xl(tmp_path_factory):
    """Folder of a plain `StableDiffusionXLPipeline`."""
    folder = tmp_path_factory.mktemp("stable-diffusion-xl")
    (folder / "made").mkdir()
    tokenizer = make_tokenizer(folder / "made")
    pipeline = StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(CLIPTextModel),
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16, transformer_layers_per_block=1,
        ),
        scheduler=make_scheduler(),
        add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
