"""
What every model class does: `return_dict`, `device_map` on CPU and disk, and all weights or none when it is loaded, by
each way of loading.
"""

import dataclasses
import json

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers.utils import BaseOutput
from safetensors.torch import load_file, save_file

from diffusers_lasers import (
    AutoencoderDL,
    Bottleneck,
    CategoricalUNet2DModel,
    DictionaryBottleneck,
    DLRestorationPipeline,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IdentityBottleneck,
    IndexBottleneck,
    LatentRefiner,
    ModelBasedVQCodec,
    PatchDiscriminator,
    PerceptualSimilarity,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)


WEIGHTS = "diffusion_pytorch_model.safetensors"
NETWORK = {"block_out_channels": (8, 16), "residual_channels": 8, "latent_channels": 4}


def autoencoder(kind="dictionary", **config):
    torch.manual_seed(0)
    backbone = {"backbone": "diffusers", "norm_num_groups": 4} if config.pop("deep", False) else {}
    return AutoencoderDL(**NETWORK, **backbone, bottleneck_type=kind, bottleneck_config=config).eval()


def fitted(bottleneck):
    torch.manual_seed(0)
    fill = getattr(bottleneck, "fit", None)
    if isinstance(bottleneck, ScalarQuantizerBottleneck):
        fill(torch.randn(4, 4, 8, 8))
    return bottleneck.eval()


def codec():
    model = ModelBasedVQCodec("PQ", bits=(4, 4, 4), patch_size=2, codebook_bits=4)
    for book in model.codebooks.values():
        book.copy_(torch.rand(book.shape, generator=torch.Generator().manual_seed(0)))
    model.fitted.fill_(True)
    return model


def dictionary():
    torch.manual_seed(0)
    return DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4)


image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
indices = torch.randint(4, (2, 2, 8, 8), generator=torch.Generator().manual_seed(0))
sparse_code = dictionary().encode(latents)
MODELS = {
    "dictionary autoencoder": (lambda: autoencoder(num_atoms=16, sparsity=2), (image,)),
    "vq autoencoder": (lambda: autoencoder("vq", num_codewords=8), (image,)),
    "residual vq autoencoder": (lambda: autoencoder("residual_vq", num_codewords=8, depth=2), (image,)),
    "fsq autoencoder": (lambda: autoencoder("fsq", levels=(5, 5)), (image,)),
    "scalar autoencoder": (lambda: autoencoder("scalar", rate_weight=1e-2), (image,)),
    "dictionary autoencoder with a rate": (
        lambda: autoencoder(num_atoms=16, sparsity=2, coefficient_bits=4, rate_weight=1e-2),
        (image,),
    ),
    "plain autoencoder": (lambda: autoencoder("none"), (image,)),
    "deep autoencoder": (lambda: autoencoder(num_atoms=16, sparsity=2, deep=True), (image,)),
    "dictionary": (lambda: DictionaryBottleneck(4, num_atoms=16, sparsity=2), (latents,)),
    "vq": (lambda: VectorQuantizerBottleneck(4, num_codewords=8), (latents,)),
    "vq with a rate": (lambda: VectorQuantizerBottleneck(4, num_codewords=8, rate_weight=1e-2), (latents,)),
    "residual vq": (lambda: ResidualVQBottleneck(4, num_codewords=8, depth=2), (latents,)),
    "cosine vq": (lambda: ExternalQuantizerBottleneck(4, "cosine_vq"), (latents,)),
    "residual lfq": (lambda: ExternalQuantizerBottleneck(4, "residual_lfq"), (latents,)),
    "sim vq autoencoder": (lambda: autoencoder("external", quantizer="sim_vq"), (image,)),
    "fsq": (lambda: FSQBottleneck(4, levels=(5, 5)), (latents,)),
    "scalar": (lambda: fitted(ScalarQuantizerBottleneck(4, bits=3)), (latents,)),
    "entropy scalar": (lambda: EntropyScalarBottleneck(4, rate_weight=1e-2), (latents,)),
    "identity": (lambda: IdentityBottleneck(4), (latents,)),
    "prior": (lambda: FactorizedPrior.from_coder(dictionary()).fit(sparse_code), (sparse_code,)),
    "denoiser": (
        lambda: CategoricalUNet2DModel(2, 4, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8),
        (indices, 3),
    ),
    "refiner": (lambda: LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4), (image,)),
    "discriminator": (lambda: PatchDiscriminator(base_channels=8, norm_num_groups=4), (image,)),
    "perceptual": (PerceptualSimilarity, (image, image.flip(0))),
    "codec": (codec, (image,)),
}


def outputs(model, inputs):
    """The tensors that a model gives."""
    with torch.no_grad():
        output = model(*inputs)
    return [value for value in output.values() if torch.is_tensor(value)]


def test_all_models_are_here():
    """Every subclass of ours is loaded in this file."""
    kinds = {type(make()) for make, _ in MODELS.values()}
    from diffusers_lasers.utils.model_loading import LasersModelMixin

    bases = (LasersModelMixin, Bottleneck, IndexBottleneck)
    ours = {cls for base in bases for cls in base.__subclasses__() if cls not in bases}
    ours |= {VectorQuantizerBottleneck, ResidualVQBottleneck}
    assert kinds == {cls for cls in ours if not cls.__name__.startswith("_")}
    assert all(isinstance(cls._no_split_modules, list) for cls in kinds)


@pytest.mark.parametrize("name", MODELS)
def test_return_dict_gives_the_fields_of_the_output_class_in_their_order(name):
    make, inputs = MODELS[name]
    model = make().eval()
    with torch.no_grad():
        output, plain = model(*inputs), model(*inputs, return_dict=False)
    assert isinstance(output, BaseOutput) and isinstance(plain, tuple)
    names = [field.name for field in dataclasses.fields(output) if getattr(output, field.name) is not None]
    assert list(output) == names and len(plain) == len(names) > 0
    for name, value in zip(names, plain):
        if torch.is_tensor(value):
            torch.testing.assert_close(value, output[name], rtol=0, atol=0)
        else:
            assert type(value) is type(output[name])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_dispatched_to_cpu_and_disk_a_model_gives_the_same(name, share, tmp_path):
    """
    0: next to nothing stays in memory; 1/2: half does; 1: everything, which is `device_map="auto"` as most call it.
    """
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "model")
    expected = outputs(model, inputs)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    memory = {} if share == 1 else {"max_memory": {"cpu": max(64, int(share * size))}}
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map="auto", offload_folder=tmp_path / "offloaded", **memory
    )
    if share == 0 and any(list(module.parameters()) for module in loaded.children()):
        assert any(parameter.is_meta for parameter in loaded.parameters())  # they are on disk
    found = outputs(loaded, inputs)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(outputs(loaded, inputs), expected):  # weights come from disk each time
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def damaged(folder, how):
    """Changes a saved model's weights; returns the name of the tensor."""
    tensors = load_file(folder / WEIGHTS)
    name = "bottleneck.dictionary"
    if how == "missing":
        del tensors[name]
    elif how == "unknown":
        tensors["bottleneck.extra"], name = torch.zeros(2), "bottleneck.extra"
    else:
        tensors[name][0, 0] = float(how)
    save_file(tensors, folder / WEIGHTS)
    return name


@pytest.mark.parametrize("how", ["missing", "unknown", "nan", "inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"torch_dtype": torch.float16},
        {"dtype": torch.bfloat16},
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"low_cpu_mem_usage": True},
    ],
    ids=str,
)
def test_a_model_with_other_tensors_than_its_own_is_refused(tmp_path, how, arguments):
    autoencoder(num_atoms=16, sparsity=2).save_pretrained(tmp_path)
    name = damaged(tmp_path, how)
    with pytest.raises(ValueError, match=f"The weights of AutoencoderDL at .* must be .*{name}"):
        AutoencoderDL.from_pretrained(tmp_path, **arguments)


@pytest.mark.parametrize("how", ["missing", "nan"])
def test_so_it_is_by_the_other_ways_of_loading(tmp_path, how):
    pipeline = DLRestorationPipeline(autoencoder(num_atoms=16, sparsity=2))
    pipeline.save_pretrained(tmp_path)
    damaged(tmp_path / "vae", how)
    for load in (
        lambda: DLRestorationPipeline.from_pretrained(tmp_path),
        lambda: DiffusionPipeline.from_pretrained(tmp_path),
        lambda: AutoModel.from_pretrained(tmp_path, subfolder="vae"),
        lambda: AutoencoderDL.from_pretrained(tmp_path, subfolder="vae"),
    ):
        with pytest.raises(ValueError, match="The weights of AutoencoderDL"):
            load()


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("how", ["missing", "nan"])
def test_without_and_with_low_memory(tmp_path, how, low_cpu_mem_usage):
    """`AutoencoderDL` keeps its bottleneck in float32, for which diffusers asks for low memory; this one does not."""
    model = LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    if how == "nan":
        tensors["unet.conv_in.weight"].fill_(torch.nan)
    else:
        del tensors["unet.conv_in.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"The weights of LatentRefiner .*unet\.conv_in\.weight"):
        LatentRefiner.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("how", ["missing", "nan", "whole"])
def test_shards_and_variants(tmp_path, how):
    model = autoencoder(num_atoms=16, sparsity=2)
    model.save_pretrained(tmp_path, max_shard_size="4KB", variant="fp16")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
    table = json.loads(index.read_text())
    shard = tmp_path / table["weight_map"]["bottleneck.dictionary"]
    tensors = load_file(shard)
    if how == "whole":
        loaded = AutoencoderDL.from_pretrained(tmp_path, variant="fp16")
        torch.testing.assert_close(loaded.bottleneck.dictionary, model.bottleneck.dictionary, rtol=0, atol=0)
        return
    if how == "nan":
        tensors["bottleneck.dictionary"].fill_(torch.nan)
    else:
        del tensors["bottleneck.dictionary"], table["weight_map"]["bottleneck.dictionary"]
        index.write_text(json.dumps(table))
    save_file(tensors, shard)
    with pytest.raises(ValueError, match=r"The weights of AutoencoderDL .*bottleneck\.dictionary"):
        AutoencoderDL.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_weights_that_overflow_in_half_precision_are_refused_there(tmp_path, low_cpu_mem_usage):
    model = LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4)
    with torch.no_grad():
        model.unet.conv_in.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    shared = {"low_cpu_mem_usage": low_cpu_mem_usage}
    assert LatentRefiner.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, **shared).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"The weights of LatentRefiner .*half precision.*unet\.conv_in\.weight"):
        LatentRefiner.from_pretrained(tmp_path, torch_dtype=torch.float16, **shared)


def test_what_stays_in_single_precision_may_be_large(tmp_path):
    model = autoencoder(num_atoms=16, sparsity=2)
    model.bottleneck.latent_shift.fill_(1e6)
    model.save_pretrained(tmp_path)
    assert AutoencoderDL.from_pretrained(tmp_path, torch_dtype=torch.float16).bottleneck.latent_shift.max() == 1e6
