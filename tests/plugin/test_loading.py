"""A model saved by one process loads in another, by every way that diffusers has, and reconstructs the same image."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffusers_lasers import AutoencoderDL, DictionaryBottleneck, PatchDiscriminator


BOTTLENECKS = {
    "dictionary": {"num_atoms": 16, "sparsity": 2, "coefficient_bits": 8},
    "vq": {"num_codewords": 8},
    "residual_vq": {"num_codewords": 8, "depth": 2},
    "fsq": {"levels": (5,) * 4},
    "scalar": {"rate_weight": 1e-2},
    "none": {},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SCRIPT = """
import diffusers_lasers
from diffusers import AutoModel, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import LOADABLE_CLASSES
result["registered"] = "diffusers_lasers" in LOADABLE_CLASSES
import torch
from safetensors.torch import load_file, save_file
from diffusers_lasers import AutoencoderDL, DictionaryBottleneck

inputs, outputs, classes = load_file("inputs.safetensors"), {}, {}

def keep(name, model):
    classes[name] = f"{type(model).__module__.split('.')[0]}.{type(model).__name__}"
    with torch.no_grad():
        outputs[name] = model(inputs["image"].to(model.dtype)).sample

dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
for kind in ("dictionary", "vq", "residual_vq", "fsq", "scalar", "none"):
    for name, dtype in dtypes.items():
        keep(f"{kind} {name}", AutoencoderDL.from_pretrained(kind, dtype=dtype))
result["dictionary dtypes"] = {}
for name, dtype in dtypes.items():
    model = AutoModel.from_pretrained("dictionary", dtype=dtype)
    result["dictionary dtypes"][name] = str(model.bottleneck.dictionary.dtype)
    keep(f"auto {name}", model)
    keep(f"auto subfolder {name}", AutoModel.from_pretrained("pipeline", subfolder="vae", dtype=dtype))
    pipeline = DiffusionPipeline.from_pretrained("pipeline", text_encoder=None, tokenizer=None, dtype=dtype)
    keep(f"component {name}", pipeline.vae)
result["pipeline"] = type(pipeline).__name__

keep("sharded", AutoencoderDL.from_pretrained("sharded"))
keep("variant fp16", AutoencoderDL.from_pretrained("variant", variant="fp16", dtype=torch.float16))
try:
    AutoencoderDL.from_pretrained("variant")
except OSError as error:
    result["without variant"] = str(error)

bottleneck = DictionaryBottleneck.from_pretrained("dictionary_alone")
with torch.no_grad():
    outputs["bottleneck"] = bottleneck.decode(bottleneck.encode(inputs["latents"]))
save_file({name: output.contiguous() for name, output in outputs.items()}, "outputs.safetensors")
result["classes"] = classes
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of saved models and pipelines, and what the saving process reconstructed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the fresh process: the order of summation, to compare bit by bit
    torch.manual_seed(0)
    folder, expected = tmp_path_factory.mktemp("saved"), {}
    # an odd size, so that padding and cropping are part of the comparison
    image, latents = torch.rand(2, 3, 37, 30) * 2 - 1, torch.randn(2, 4, 5, 5)
    save_file({"image": image, "latents": latents}, folder / "inputs.safetensors")

    for kind, config in BOTTLENECKS.items():
        model = AutoencoderDL(
            block_out_channels=(8, 8, 16),
            residual_channels=8,
            latent_channels=4,
            bottleneck_type=kind,
            bottleneck_config=config,
        ).eval()
        with torch.no_grad():  # an initialised model: latents of unit size, atoms and codewords from data
            model.encoder.conv_out.weight.mul_(20)
            model.bottleneck.initialize(model.encode(torch.rand(8, 3, 32, 32) * 2 - 1).latents)
        model.save_pretrained(folder / kind)
        if kind == "dictionary":
            model.save_pretrained(folder / "sharded", max_shard_size="4KB")
            model.bottleneck.save_pretrained(folder / "dictionary_alone")
            with torch.no_grad():
                expected["bottleneck"] = model.bottleneck.decode(model.bottleneck.encode(latents))
            stable_diffusion(model).save_pretrained(folder / "pipeline")
        for name, dtype in DTYPES.items():
            if dtype is not torch.float32:  # not `.to(dtype)`, which casts the bottleneck too
                model = AutoencoderDL.from_pretrained(folder / kind, dtype=dtype)
            with torch.no_grad():
                expected[f"{kind} {name}"] = model(image.to(dtype)).sample
        if kind == "dictionary":
            model.save_pretrained(folder / "variant", variant="fp16")
    torch.set_num_threads(threads)
    return folder, expected


def stable_diffusion(vae):
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler, requires_safety_checker=False, **absent)


@pytest.fixture(scope="module")
def loaded(saved, fresh):
    folder, _ = saved
    result = fresh(SCRIPT, folder)
    return result, load_file(folder / "outputs.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [*BOTTLENECKS, "auto", "auto subfolder", "component"])
def test_same_image_in_a_fresh_process(saved, loaded, way, dtype):
    result, outputs = loaded
    expected = saved[1][f"{way if way in BOTTLENECKS else 'dictionary'} {dtype}"]
    assert result["classes"][f"{way} {dtype}"] == "diffusers_lasers.AutoencoderDL"
    assert outputs[f"{way} {dtype}"].dtype is DTYPES[dtype]
    assert torch.isfinite(expected).all()
    assert torch.equal(outputs[f"{way} {dtype}"], expected)


@pytest.mark.parametrize("way", ["sharded", "variant fp16"])
def test_shards_and_variants(saved, loaded, way):
    folder, expected = saved
    result, outputs = loaded
    assert torch.equal(outputs[way], expected["dictionary fp16" if "fp16" in way else "dictionary fp32"])
    files = sorted(path.name for path in (folder / way.split()[0]).glob("*.safetensors"))
    if way == "sharded":
        assert len(files) > 1 and (folder / "sharded/diffusion_pytorch_model.safetensors.index.json").is_file()
    else:
        assert files == ["diffusion_pytorch_model.fp16.safetensors"]
        assert "diffusion_pytorch_model" in result["without variant"]


@pytest.mark.parametrize("kind", BOTTLENECKS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_close(saved, kind, dtype):
    _, expected = saved
    reference = expected[f"{kind} fp32"]
    error = (expected[f"{kind} {dtype}"].float() - reference).square().mean() / reference.var()
    if kind == "none":
        assert error < {"fp16": 5e-6, "bf16": 2e-4}[dtype]
    else:  # rounding may tip the choice of an atom here and there
        assert error < {"fp16": 2e-3, "bf16": 1e-2}[dtype]


def test_dictionary_stays_in_full_precision(loaded):
    result, _ = loaded
    assert result["dictionary dtypes"] == dict.fromkeys(("fp32", "bf16", "fp16"), "torch.float32")


def test_bottleneck_alone(saved, loaded):
    assert torch.equal(loaded[1]["bottleneck"], saved[1]["bottleneck"])


def test_model_index_names_the_package(saved, loaded):
    folder, _ = saved
    index = StableDiffusionPipeline.load_config(folder / "pipeline")
    assert index["vae"] == ["diffusers_lasers", "AutoencoderDL"]
    assert loaded[0]["pipeline"] == "StableDiffusionPipeline"
    assert loaded[0]["registered"]


def test_stock_pipeline_generates():
    vae = AutoencoderDL(
        block_out_channels=(8, 8, 16), latent_channels=4, bottleneck_config={"num_atoms": 16, "sparsity": 2}
    )
    pipeline = stable_diffusion(vae)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae_scale_factor == vae.downsampling_factor == 4
    embeddings = torch.randn(1, 4, 8, generator=torch.manual_seed(0))
    images = pipeline(
        prompt_embeds=embeddings, guidance_scale=1.0, num_inference_steps=2, height=32, width=32, output_type="pt"
    ).images
    assert images.shape == (1, 3, 32, 32) and torch.isfinite(images).all()


def test_alone_bottleneck_class_is_known_to_diffusers():
    import diffusers

    assert diffusers.DictionaryBottleneck is DictionaryBottleneck


def test_a_model_inside_the_folder_of_another_is_found(tmp_path):
    # diffusers alone would take the outer weights, with a warning that none of them fit
    outer = AutoencoderDL(latent_channels=3, bottleneck_config={"num_atoms": 12, "sparsity": 1})
    inner = PatchDiscriminator(base_channels=8, num_layers=2, norm_num_groups=4)
    outer.save_pretrained(tmp_path)
    inner.save_pretrained(tmp_path / "discriminator")
    loaded = PatchDiscriminator.from_pretrained(tmp_path, subfolder="discriminator")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in inner.state_dict().items())
    assert AutoencoderDL.from_pretrained(tmp_path).bottleneck.dictionary.shape == (3, 12)
    with pytest.raises(OSError, match="has no subfolder 'nowhere'"):
        PatchDiscriminator.from_pretrained(tmp_path, subfolder="nowhere")
