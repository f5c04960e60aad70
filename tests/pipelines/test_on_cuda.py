"""Pipelines on a GPU: the CPU's draws, half precision, both kinds of offloading. Skipped without a GPU."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiscreteDDIMScheduler

from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    AutoencoderDL,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    DictionaryBottleneck,
    DLRestorationPipeline,
    LatentDLPipeline,
    LatentRefiner,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
)


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test_cuda")
SCHEDULERS = {
    "categorical": lambda: CategoricalDDPMScheduler(num_codewords=16),
    "continuous": DDPMScheduler,
    "ddim": DDIMScheduler,
    "absorbing": lambda: AbsorbingD3PMScheduler(num_codewords=16),
    "uniform": DiscreteDDIMScheduler,
}


def make(kind):
    torch.manual_seed(0)
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(images, max_patches=500, iterations=5, progress=False)
    network = {"uniform": "discrete", "absorbing": "discrete", "ddim": "continuous"}.get(kind, kind)
    unet = CategoricalUNet2DModel(4, 16, network, True, 4, (8, 16), norm_num_groups=4, attention_head_dim=8).eval()
    refiner = LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4)
    pipeline = ModelBasedLatentDiffusionPipeline(codec, unet, SCHEDULERS[kind](), refiner)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline, device="cuda", **arguments):
    generators = [torch.Generator(device).manual_seed(i) for i in range(2)]
    fixed = {"batch_size": 2, "num_inference_steps": 4, "generator": generators, "output_type": "pt"}
    return pipeline(**{**fixed, **arguments})


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_samples_of_indices(kind):
    pipeline = make(kind)
    on_cpu = sample(pipeline, "cpu")
    pipeline.to("cuda")
    first, second = sample(pipeline), sample(pipeline)
    assert first.images.is_cuda and first.images.isfinite().all() and first.images.shape == (2, 3, 16, 16)
    assert torch.equal(first.codes, second.codes)
    # the CPU's generators draw the same numbers for both; rounding may tip a choice
    assert (sample(pipeline, "cpu").codes.cpu() == on_cpu.codes).float().mean() > 0.95
    for dtype in (torch.float16, torch.bfloat16):
        assert sample(pipeline.to(dtype=dtype)).images.isfinite().all()


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_changes_nothing(offload):
    expected = sample(make("categorical").to("cuda"))
    pipeline = make("categorical")
    getattr(pipeline, offload)()
    output = sample(pipeline)
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.images, expected.images, rtol=1e-3, atol=1e-4)
    assert torch.equal(sample(pipeline).codes, expected.codes)


def make_bottleneck():
    torch.manual_seed(0)
    made = DictionaryBottleneck(4, num_atoms=32, sparsity=2, coefficient_bits=6)
    made.initialize(torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    return made.eval()


def draw(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    # given, and not drawn: a generator draws other numbers in another precision
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    fixed = {"prompt": "a cat", "num_inference_steps": 2, "latents": noise.to(pipeline.unet.dtype)}
    return pipeline(**{**fixed, "output_type": "np", **arguments})


@pytest.mark.parametrize(
    "place", ["cuda", "enable_model_cpu_offload", "enable_sequential_cpu_offload", "float16", "bfloat16"]
)
def test_stable_diffusion_with_coded_latents(stable_diffusion, place):
    expected = draw(LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=make_bottleneck()))
    dtype = getattr(torch, place) if "float" in place else torch.float32
    pipeline = LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=make_bottleneck(), torch_dtype=dtype)
    if place.startswith("enable"):
        getattr(pipeline, place)()
    else:
        pipeline.to("cuda")
    output = draw(pipeline)
    error = np.square(output.images - expected.images).mean() ** 0.5
    assert np.isfinite(output.images).all() and error < (0.1 if "float" in place else 0.02), error
    code = draw(pipeline, output_type="code").images
    again = pipeline.decode(code, output_type="np")
    np.testing.assert_allclose(again, output.images, atol=0.02 if "float" in place else 1e-3)
    encoded = pipeline.encode(again)
    assert np.isfinite(pipeline.decode(encoded, output_type="np")).all()


@pytest.mark.parametrize("offload", [False, True])
def test_restoration(offload):
    torch.manual_seed(0)
    model = AutoencoderDL(
        block_out_channels=(8, 16, 16), residual_channels=8, latent_channels=8,
        bottleneck_config={"num_atoms": 32, "sparsity": 3},
    ).eval()  # fmt: skip
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    pipeline = DLRestorationPipeline(model, task="inpainting")
    expected = pipeline(image, mask_image=mask, output_type="pt").images
    if offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to("cuda")
    got = pipeline(image, mask_image=mask, output_type="pt").images
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0.05)
