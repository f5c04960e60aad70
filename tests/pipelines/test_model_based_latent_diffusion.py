"""ModelBasedLatentDiffusionPipeline: every parameterization, saving and a fresh process, outputs, callbacks, errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DiscreteDDIMScheduler

from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    LatentRefiner,
    ModelBasedLatentDiffusionOutput,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
    UniformD3PMScheduler,
)


SCHEDULERS = {
    "categorical": lambda: CategoricalDDPMScheduler(num_codewords=16),
    "continuous": DDPMScheduler,
    "ddim": DDIMScheduler,
    "absorbing": lambda: AbsorbingD3PMScheduler(num_codewords=16),
    "uniform": lambda: UniformD3PMScheduler(num_codewords=16),
    "diffusers' uniform": DiscreteDDIMScheduler,
}


def make(kind="categorical", refiner=False, self_conditioning=True):
    torch.manual_seed(0)
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(images, max_patches=500, iterations=5, progress=False)
    network = {
        "uniform": "discrete",
        "diffusers' uniform": "discrete",
        "absorbing": "discrete",
        "ddim": "continuous",
    }.get(kind, kind)
    unet = CategoricalUNet2DModel(
        4, 16, network, self_conditioning, 4, (8, 16), norm_num_groups=4, attention_head_dim=8
    ).eval()
    parts = LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4) if refiner else None
    pipeline = ModelBasedLatentDiffusionPipeline(codec, unet, SCHEDULERS[kind](), parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(count=2):
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("self_conditioning", [False, True])
def test_every_parameterization_samples_and_items_are_independent(kind, self_conditioning):
    pipeline = make(kind, self_conditioning=self_conditioning)
    output = pipeline(batch_size=2, num_inference_steps=5, generator=seeds(), output_type="pt")
    assert isinstance(output, ModelBasedLatentDiffusionOutput)
    assert output.images.shape == (2, 3, 16, 16) and output.codes.shape == (2, 4, 4, 4)
    assert output.codes.dtype == torch.int64 and 0 <= output.codes.min() and output.codes.max() < 16
    decoded = (pipeline.codec.decode(output.codes).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(output.images, decoded)
    alone = pipeline(num_inference_steps=5, generator=seeds()[1:], output_type="code")
    assert torch.equal(alone.images, output.codes[1:]) and pipeline.num_timesteps == 5


def test_a_fresh_process_samples_the_same(tmp_path):
    for kind in ("categorical", "absorbing"):
        pipeline = make(kind, refiner=True)
        pipeline.save_pretrained(tmp_path / kind)
        index = json.loads((tmp_path / kind / "model_index.json").read_text())
        assert index["unet"] == ["diffusers_lasers", "CategoricalUNet2DModel"]
        expected = pipeline(batch_size=2, num_inference_steps=4, generator=seeds(), output_type="pt")
        torch.save({"images": expected.images, "codes": expected.codes}, tmp_path / f"{kind}.pt")
    script = f"""
import sys, torch
import diffusers_lasers
from diffusers import DiffusionPipeline
for kind in ("categorical", "absorbing"):
    pipeline = DiffusionPipeline.from_pretrained(rf"{tmp_path}/{{kind}}")
    assert type(pipeline).__name__ == "ModelBasedLatentDiffusionPipeline", type(pipeline)
    assert "faiss" not in sys.modules
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    output = pipeline(batch_size=2, num_inference_steps=4, generator=generators, output_type="pt")
    expected = torch.load(rf"{tmp_path}/{{kind}}.pt")
    assert torch.equal(output.codes, expected["codes"]), kind
    torch.testing.assert_close(output.images, expected["images"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_output_types_sizes_and_tuples():
    pipeline = make()
    pictures, codes = pipeline(num_inference_steps=2, height=24, width=8, return_dict=False)
    assert pictures[0].size == (8, 24) and codes.shape == (1, 4, 6, 2)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    start = torch.randn(1, 4, 4, 4)
    same = [pipeline(num_inference_steps=3, latents=start, generator=seeds(1), output_type="np").images for _ in "ab"]
    np.testing.assert_array_equal(*same)


def test_temperature_zero_and_no_eta_leave_nothing_to_chance():
    pipeline, start = make(), torch.randn(1, 4, 4, 4)
    arguments = {"num_inference_steps": 3, "latents": start, "temperature": 0.0, "eta": 0.0, "output_type": "latent"}
    assert torch.equal(pipeline(**arguments).images, pipeline(**arguments).images)


def test_the_refiner_can_be_left_out():
    pipeline = make(refiner=True)
    torch.nn.init.constant_(pipeline.refiner.unet.conv_out.bias, 0.3)
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    refined = pipeline(generator=seeds(1), **arguments).images
    plain = pipeline(generator=seeds(1), use_refiner=False, **arguments).images
    inside = (plain > 0.01) & (plain < 0.8)
    torch.testing.assert_close(refined[inside], plain[inside] + 0.15, atol=1e-5, rtol=0)


def test_callbacks_see_and_change_and_stop_the_loop():
    pipeline, steps = make(), []

    def stop(pipe, index, timestep, tensors):
        steps.append((index, int(timestep)))
        pipe._interrupt = index == 1
        return {"latents": torch.ones_like(tensors["latents"])}

    output = pipeline(num_inference_steps=5, callback_on_step_end=stop, output_type="latent")
    assert len(steps) == 2 and pipeline.interrupt and (output.codes == 15).all()


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_latents_are_those_of_the_loop_and_codes_are_codes(kind):
    pipeline, seen = make(kind), []

    def keep(pipe, index, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    arguments = {"num_inference_steps": 3, "callback_on_step_end": keep}
    output = pipeline(**arguments, generator=seeds(1), output_type="latent")
    assert torch.equal(output.images, seen[-1]) and output.images.shape == (1, 4, 4, 4)
    assert output.images.is_floating_point() == (kind in ("categorical", "continuous", "ddim"))
    codes = pipeline(**arguments, generator=seeds(1), output_type="code", return_dict=False)
    assert len(codes) == 2 and torch.equal(codes[0], codes[1]) and torch.equal(codes[0], output.codes)
    assert codes[0].dtype == torch.int64


def test_half_precision_and_offload_hooks():
    pipeline = make(refiner=True).to(dtype=torch.bfloat16)
    assert pipeline(num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert pipeline.model_cpu_offload_seq == "unet->refiner" and pipeline._exclude_from_cpu_offload == ["codec"]
    offloaded = [pipeline.components[name] for name in pipeline.model_cpu_offload_seq.split("->")]
    assert all(list(model.parameters()) for model in offloaded)  # accelerate's hook looks at the first one


def test_parts_that_do_not_fit_are_named():
    good = make()
    with pytest.raises(ValueError, match="CategoricalDDPMScheduler for a categorical"):
        ModelBasedLatentDiffusionPipeline(good.codec, good.unet, DDPMScheduler())
    with pytest.raises(ValueError, match="for a discrete denoiser"):
        ModelBasedLatentDiffusionPipeline(good.codec, make("absorbing").unet, DDPMScheduler())
    for wrong in (DiscreteDDIMScheduler(), good.scheduler):
        with pytest.raises(ValueError, match="Gaussian one"):
            ModelBasedLatentDiffusionPipeline(good.codec, make("continuous").unet, wrong)
    other = CategoricalUNet2DModel(3, 16, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8)
    with pytest.raises(ValueError, match="4 slots of 16 codewords"):
        ModelBasedLatentDiffusionPipeline(good.codec, other, good.scheduler)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"height": 10}, "height"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "generator"),
        ({"height": 16.0}, "height"),
        ({"width": "16"}, "width"),
        ({"latents": torch.zeros(1, 4, 3, 3)}, "latents"),
        ({"latents": "noise"}, "latents"),
        ({"num_inference_steps": "5"}, "num_inference_steps"),
        ({"temperature": "1", "num_inference_steps": 1}, "temperature"),
        ({"eta": float("nan"), "num_inference_steps": 1}, "eta"),
        ({"output_type": "jpg"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_calls_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"`{word}`"):
        make()(**arguments)


def test_the_generic_loader_finds_it(tmp_path):
    make().save_pretrained(tmp_path)
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path), ModelBasedLatentDiffusionPipeline)
