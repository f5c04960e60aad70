"""
diffusers' AutoPipelines know the pipelines with a bottleneck: from files, from each other, whichever package is
imported first, and lazily.
"""

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, StableDiffusionImg2ImgPipeline
from PIL import Image

from diffusers_lasers import (
    DictionaryBottleneck,
    LatentDLImg2ImgPipeline,
    LatentDLPipeline,
    LatentDLPipelineOutput,
    LatentDLXLImg2ImgPipeline,
    LatentDLXLPipeline,
    SparseCode,
)


LEVELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def bottleneck():
    torch.manual_seed(0)
    return DictionaryBottleneck(4, num_atoms=32, sparsity=2, coefficient_bits=6).eval()


def call(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    fixed = {
        "prompt": "a cat",
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }
    return pipeline(**{**fixed, **arguments})


@pytest.fixture
def saved(stable_diffusion, tmp_path):
    pipeline = LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=bottleneck())
    pipeline.save_pretrained(tmp_path / "pipeline")
    return pipeline, tmp_path / "pipeline"


def test_from_files_and_from_each_other(saved):
    pipeline, folder = saved
    text = AutoPipelineForText2Image.from_pretrained(folder)
    assert type(text) is LatentDLPipeline and type(text.bottleneck) is DictionaryBottleneck
    np.testing.assert_array_equal(call(text).images, call(pipeline).images)
    image = AutoPipelineForImage2Image.from_pretrained(folder)
    assert type(image) is LatentDLImg2ImgPipeline and type(image.bottleneck) is DictionaryBottleneck
    turned = AutoPipelineForImage2Image.from_pipe(pipeline)
    assert type(turned) is LatentDLImg2ImgPipeline and turned.bottleneck is pipeline.bottleneck
    back = AutoPipelineForText2Image.from_pipe(turned)
    assert type(back) is LatentDLPipeline and back.unet is pipeline.unet and back.bottleneck is pipeline.bottleneck
    np.testing.assert_array_equal(
        call(image, image=Image.fromarray(LEVELS)).images, call(turned, image=Image.fromarray(LEVELS)).images
    )


def test_image_to_image_is_its_parent_with_a_bottleneck_between(saved):
    pipeline, _ = saved
    turned = AutoPipelineForImage2Image.from_pipe(pipeline)
    arguments = {"image": Image.fromarray(LEVELS), "strength": 0.5}
    parts = {name: part for name, part in turned.components.items() if name not in ("bottleneck", "prior")}
    parent = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    latents = call(parent, **arguments, output_type="latent").images
    output = call(turned, **arguments)
    assert isinstance(output, LatentDLPipelineOutput) and isinstance(output.code, SparseCode)
    torch.testing.assert_close(call(turned, **arguments, output_type="latent").images, latents)
    expected = pipeline.bottleneck.encode(latents)
    assert torch.equal(output.code.indices, expected.indices)
    assert torch.equal(call(turned, **arguments, output_type="code").images.indices, expected.indices)
    np.testing.assert_allclose(output.images, pipeline.decode(output.code, output_type="np"), atol=1e-5)
    plain = LatentDLImg2ImgPipeline(**parts, bottleneck=None, requires_safety_checker=False)
    np.testing.assert_allclose(call(plain, **arguments).images, call(parent, **arguments).images, atol=1e-5)


def test_image_to_image_takes_images_in_every_form(saved):
    turned = AutoPipelineForImage2Image.from_pipe(saved[0])
    expected = call(turned, image=Image.fromarray(LEVELS)).images
    tensor = torch.from_numpy(LEVELS).permute(2, 0, 1)[None]
    for form in (LEVELS, LEVELS / 255, tensor, tensor / 255, tensor / 127.5 - 1, [Image.fromarray(LEVELS)]):
        np.testing.assert_allclose(call(turned, image=form).images, expected, atol=2e-3)
    assert call(turned, image=Image.fromarray(LEVELS).convert("L")).images.shape == expected.shape
    assert call(turned, image=torch.randn(1, 4, 16, 16)).images.shape == expected.shape  # latents
    with pytest.raises(ValueError, match="`image` must have values in"):
        call(turned, image=LEVELS.astype(np.float32))


def test_xl(stable_diffusion_xl, tmp_path):
    pipeline = LatentDLXLPipeline.from_pretrained(stable_diffusion_xl, bottleneck=bottleneck(), add_watermarker=False)
    turned = AutoPipelineForImage2Image.from_pipe(pipeline)
    assert type(turned) is LatentDLXLImg2ImgPipeline and turned.bottleneck is pipeline.bottleneck
    assert type(AutoPipelineForText2Image.from_pipe(turned)) is LatentDLXLPipeline
    output = call(turned, image=LEVELS, strength=0.5)
    assert output.images.shape == (1, 32, 32, 3) and isinstance(output.code, SparseCode)
    turned.save_pretrained(tmp_path)
    loaded = LatentDLXLImg2ImgPipeline.from_pretrained(tmp_path, add_watermarker=False)
    np.testing.assert_array_equal(call(loaded, image=LEVELS, strength=0.5).images, output.images)


SCRIPTS = {
    "ours first": """
        import diffusers_lasers
        names = {"diffusers.pipelines.auto_pipeline", "diffusers_lasers.pipelines.latent_dl"}
        result["lazy"] = not names & set(sys.modules)
        from diffusers.pipelines import auto_pipeline
    """,
    "diffusers first": """
        from diffusers.pipelines import auto_pipeline
        import diffusers_lasers
        result["lazy"] = True
    """,
    "our pipelines first": """
        from diffusers_lasers.pipelines.latent_dl import LatentDLPipeline
        result["lazy"] = "diffusers.pipelines.auto_pipeline" not in sys.modules
        from diffusers.pipelines import auto_pipeline
    """,
}


# A new interpreter has what neither package is and both import, and is forked for each order.
ORDERS = """
import json, os, sys, textwrap, traceback
import torch, transformers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers import CLIPVisionModelWithProjection
result["clean"] = not {"diffusers", "diffusers_lasers"} & set(sys.modules)
results, scripts = result, SCRIPTS
for order, script in scripts.items():
    child = os.fork()
    if child == 0:
        try:
            result = {}
            exec(textwrap.dedent(script))
            tables = (auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING)
            result["names"] = [table[name].__name__ for table in tables for name in ("latent-dl", "latent-dl-xl")]
        except BaseException:
            result = {"raised": traceback.format_exc()}
        with open(order, "w") as file:
            json.dump(result, file)
        os._exit(0)
    os.waitpid(child, 0)
    with open(order) as file:
        results[order] = json.load(file)
result = results
"""


@pytest.fixture(scope="module")
def orders(fresh, tmp_path_factory):
    return fresh(ORDERS.replace("SCRIPTS", repr(SCRIPTS)), tmp_path_factory.mktemp("orders"))


@pytest.mark.parametrize("order", SCRIPTS)
def test_the_tables_are_complete_whichever_package_comes_first(order, orders):
    assert orders["clean"]
    assert orders[order] == {
        "lazy": True,
        "names": ["LatentDLPipeline", "LatentDLXLPipeline", "LatentDLImg2ImgPipeline", "LatentDLXLImg2ImgPipeline"],
    }


def test_without_transformers_diffusers_tables_stay_as_they_are():
    from types import ModuleType

    from diffusers_lasers.utils.registration import add_auto_pipelines

    def missing(name):
        raise ImportError("`transformers` is not installed")

    module = ModuleType("auto_pipeline")
    module.AUTO_TEXT2IMAGE_PIPELINES_MAPPING = {"stable-diffusion": object}
    add_auto_pipelines(module, {"TEXT2IMAGE": {"latent-dl": "LatentDLPipeline"}}, missing)
    assert module.AUTO_TEXT2IMAGE_PIPELINES_MAPPING == {"stable-diffusion": object}
    add_auto_pipelines(module, {"TEXT2IMAGE": {"stable-diffusion": "int", "latent-dl": "int"}}, lambda name: int)
    assert module.AUTO_TEXT2IMAGE_PIPELINES_MAPPING == {"stable-diffusion": object, "latent-dl": int}
