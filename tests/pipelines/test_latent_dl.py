"""LatentDLPipeline on a tiny but complete Stable Diffusion checkpoint: loading, every output, codes, equality with the
parent, errors."""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IdentityBottleneck,
    LatentDLPipeline,
    LatentDLPipelineOutput,
    LatentDLXLPipeline,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)


def latents(count=8):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def dictionary(**arguments):
    torch.manual_seed(0)
    bottleneck = DictionaryBottleneck(4, **{"num_atoms": 32, "sparsity": 2, "coefficient_bits": 6, **arguments})
    bottleneck.initialize(latents())
    return bottleneck.eval()


def scalar():
    bottleneck = ScalarQuantizerBottleneck(4, bits=4)
    bottleneck.fit(latents())
    return bottleneck


BOTTLENECKS = {
    "dictionary": dictionary,
    "dictionary on patches": lambda: dictionary(patch_size=2, num_atoms=64),
    "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=16),
    "residual vq": lambda: ResidualVQBottleneck(4, num_codewords=16, depth=2, beam_size=3),
    "fsq": lambda: FSQBottleneck(4, levels=(7,) * 4),
    "int4": scalar,
}


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline, **arguments):
    fixed = {"prompt": "a cat", "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    return pipeline(**{**fixed, **arguments})


@pytest.fixture
def load(stable_diffusion):
    return lambda bottleneck=None: quiet(LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=bottleneck))


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_without_a_bottleneck_it_is_stable_diffusion(stable_diffusion, load, guidance_scale):
    plain = quiet(StableDiffusionPipeline.from_pretrained(stable_diffusion))
    pipeline = load()
    assert pipeline.bottleneck is None
    for output_type in ("np", "latent"):
        arguments = {"output_type": output_type, "guidance_scale": guidance_scale, "negative_prompt": "dog"}
        ours, theirs = call(pipeline, **arguments), call(plain, **arguments)
        assert np.array_equal(np.asarray(ours.images), np.asarray(theirs.images)), output_type
    assert ours.code is None and ours.nsfw_content_detected is None


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_images_are_those_of_the_coded_latents(load, name):
    bottleneck = BOTTLENECKS[name]()
    pipeline = load(bottleneck)
    z = call(pipeline, output_type="latent").images
    assert z.shape == (1, 4, 16, 16)
    code = call(pipeline, output_type="code").images
    assert torch.equal(code.indices, bottleneck.encode(z).indices) and code.image_size == (32, 32)
    output = call(pipeline, output_type="pt")
    assert isinstance(output, LatentDLPipelineOutput) and torch.equal(output.code.indices, code.indices)
    coded = bottleneck.decode(code)
    with torch.no_grad():
        expected = pipeline.vae.decode(coded / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(output.images, (expected / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(pipeline.decode(code, output_type="pt"), output.images)
    torch.testing.assert_close(pipeline.decode(code, output_type="latent"), coded)
    assert not torch.allclose(coded, z)


def test_output_types_and_tuples(load):
    pipeline = load(dictionary())
    image = call(pipeline).images[0]
    assert isinstance(image, Image.Image) and image.size == (32, 32)
    array = call(pipeline, output_type="np").images
    assert array.shape == (1, 32, 32, 3) and np.abs(np.asarray(image) / 255 - array[0]).max() < 1 / 254
    images, unsafe, code = call(pipeline, output_type="np", return_dict=False)
    assert np.array_equal(images, array) and unsafe is None and isinstance(code, SparseCode)


def test_arguments_of_stable_diffusion(load):
    pipeline = load(dictionary())
    assert inspect.signature(pipeline.__call__) == inspect.signature(StableDiffusionPipeline.__call__).replace(
        parameters=list(inspect.signature(StableDiffusionPipeline.__call__).parameters.values())[1:]
    )
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, tensors["latents"].shape))
        return tensors

    embeds, negative = pipeline.encode_prompt("a cat", "cpu", 1, True)
    first = call(
        pipeline,
        prompt=None,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        output_type="np",
        callback_on_step_end=callback,
    )
    assert [step for step, _ in seen] == [0, 1] and pipeline.guidance_scale == 7.5 and pipeline.num_timesteps == 2
    assert np.array_equal(first.images, call(pipeline, output_type="np").images)
    assert np.array_equal(
        first.images, pipeline("a cat", 32, 32, 2, generator=torch.Generator().manual_seed(0), output_type="np").images
    )
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 0)]
    two = call(pipeline, prompt=["a dog", "a cat"], generator=seeds, output_type="np")
    np.testing.assert_allclose(two.images[1], first.images[0], atol=1e-4)
    many = call(pipeline, num_images_per_prompt=2, height=16, width=48, output_type="code").images
    assert many.indices.shape[:3] == (2, 8, 24) and many.image_size == (16, 48)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers(load, scheduler):
    pipeline = load(dictionary())
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    assert np.isfinite(call(pipeline, output_type="np").images).all()


@pytest.mark.parametrize("side", [(32, 32), (33, 21)])
def test_reconstruct_is_decode_of_encode(load, side):
    pipeline = load(dictionary())
    pixels = np.random.default_rng(0).integers(0, 256, (*side, 3), dtype=np.uint8)
    code = pipeline.encode(Image.fromarray(pixels))
    assert code.image_size == side
    output = pipeline.reconstruct(Image.fromarray(pixels), output_type="np")
    assert output.images.shape == (1, *side, 3) and torch.equal(output.code.indices, code.indices)
    assert np.array_equal(pipeline.decode(code, output_type="np"), output.images)
    assert np.array_equal(
        pipeline.reconstruct(pixels[None] / 255.0, output_type="np", return_dict=False)[0], output.images
    )
    without = load().reconstruct(Image.fromarray(pixels), output_type="np")
    assert without.code is None and without.images.shape == output.images.shape


@pytest.mark.parametrize("name", ["dictionary", "residual vq", "int4"])
def test_saves_and_loads_with_its_bottleneck(load, tmp_path, name):
    pipeline = load(BOTTLENECKS[name]())
    expected = call(pipeline, output_type="np").images
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "LatentDLPipeline"
    assert index["bottleneck"] == ["diffusers_lasers", type(pipeline.bottleneck).__name__]
    for loader in (LatentDLPipeline, DiffusionPipeline):
        loaded = quiet(loader.from_pretrained(tmp_path / "saved"))
        assert type(loaded) is LatentDLPipeline
        assert np.array_equal(call(loaded, output_type="np").images, expected)
    replaced = LatentDLPipeline.from_pretrained(tmp_path / "saved", bottleneck=dictionary(sparsity=1))
    assert replaced.bottleneck.config.sparsity == 1
    assert LatentDLPipeline.from_pretrained(tmp_path / "saved", bottleneck=None).bottleneck is None
    plain = quiet(StableDiffusionPipeline.from_pretrained(tmp_path / "saved"))
    assert not hasattr(plain, "bottleneck")


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Folder of a dictionary with the prior of its codes in `prior`."""
    folder, bottleneck = tmp_path_factory.mktemp("beside"), dictionary()
    bottleneck.save_pretrained(folder)
    FactorizedPrior.from_coder(bottleneck).fit(bottleneck.encode(latents())).save_pretrained(folder / "prior")
    return folder


def test_codes_as_bytes_at_the_rate_of_the_prior_beside_a_bottleneck(load, beside, stable_diffusion, tmp_path):
    bottleneck = DictionaryBottleneck.from_pretrained(beside)
    pipeline = load(bottleneck)
    code = call(pipeline, num_images_per_prompt=2, output_type="code").images
    data = pipeline.compress(code)
    assert pipeline.prior.decompress(data) == code
    expected = pipeline.decode(code, "np")
    for packed in (data, bytearray(data), bottleneck.pack(code)):
        assert np.array_equal(pipeline.decode(packed, "np"), expected)
    pipeline.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["prior"] == [
        "diffusers_lasers", "FactorizedPrior",
    ]  # fmt: skip
    for loader in (LatentDLPipeline, DiffusionPipeline):
        loaded = quiet(loader.from_pretrained(tmp_path / "saved"))
        assert loaded.compress(code) == data and np.array_equal(loaded.decode(data, "np"), expected)
    half = LatentDLPipeline.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert half.compress(code) == data
    # a bottleneck that is handed over takes the saved one's prior away, unless it brings its own
    assert LatentDLPipeline.from_pretrained(tmp_path / "saved", bottleneck=dictionary(sparsity=1)).prior is None
    other = LatentDLPipeline.from_pretrained(tmp_path / "saved", bottleneck=bottleneck)
    assert other.compress(code) == data and other.prior is not loaded.prior
    assert LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=bottleneck, prior=None).prior is None
    plain = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    assert LatentDLPipeline.from_pipe(plain, bottleneck=bottleneck).compress(code) == data
    assert LatentDLPipeline.from_pipe(pipeline).prior is pipeline.prior
    image = AutoPipelineForImage2Image.from_pipe(pipeline)
    assert image.prior is pipeline.prior and np.array_equal(image.decode(data, "np"), expected)


def test_wrong_bytes_and_priors_are_refused_in_a_sentence(load, beside, tmp_path, monkeypatch):
    pipeline = load(DictionaryBottleneck.from_pretrained(beside))
    code = pipeline.encode(Image.new("RGB", (32, 32), "red"))
    data, packed = pipeline.compress(code), pipeline.bottleneck.pack(code)
    for wrong, sentence in (
        (data[:-1], "must be whole"),
        (bytes([*data[:-1], data[-1] ^ 1]), "must be whole"),
        (packed[:-1], "must be whole"),
        (b"", "must be the packed code"),
        (b"no code at all, but long enough for a header", "must be the packed code"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pipeline.decode(wrong)
    monkeypatch.chdir(beside)  # a folder `prior` here is not the prior of a bottleneck that was never saved
    without = load(dictionary(num_atoms=16))
    assert without.prior is None
    with pytest.raises(ValueError, match="`prior` must be that of the codes of `bottleneck`, got None"):
        without.compress(code)
    with pytest.raises(ValueError, match="`prior` must be that of the codes of `bottleneck`, got None"):
        without.decode(data)
    without.register_modules(prior=pipeline.prior)
    for run in (lambda: without.compress(code), lambda: without.decode(data)):
        with pytest.raises(ValueError, match="`prior` must be that of the codes of `bottleneck`, got that of other"):
            run()
    with pytest.raises(ValueError, match="`bottleneck` must be one that makes codes"):
        load().compress(code)


def test_from_pipe_works_both_ways(stable_diffusion):
    plain = quiet(StableDiffusionPipeline.from_pretrained(stable_diffusion))
    pipeline = quiet(LatentDLPipeline.from_pipe(plain, bottleneck=dictionary()))
    assert pipeline.unet is plain.unet and isinstance(pipeline.bottleneck, DictionaryBottleneck)
    back = quiet(StableDiffusionPipeline.from_pipe(pipeline))
    assert np.array_equal(call(back, output_type="np").images, call(plain, output_type="np").images)
    again = LatentDLPipeline.from_pipe(pipeline)
    assert again.bottleneck is pipeline.bottleneck


@pytest.mark.parametrize("kind", [AutoencoderDL, AutoencoderTiny])
def test_other_autoencoders(stable_diffusion, kind):
    torch.manual_seed(0)
    if kind is AutoencoderDL:
        vae = AutoencoderDL(
            latent_channels=4, block_out_channels=(8, 8), residual_channels=4,
            bottleneck_config={"num_atoms": 8, "sparsity": 1},
        )  # fmt: skip
    else:
        vae = AutoencoderTiny(
            latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        )  # fmt: skip
        vae.register_to_config(block_out_channels=(8, 8))
    pipeline = quiet(LatentDLPipeline.from_pretrained(stable_diffusion, vae=vae.eval(), bottleneck=dictionary()))
    assert call(pipeline, output_type="pt").images.shape == (1, 3, 32, 32)
    code = pipeline.encode(Image.new("RGB", (32, 32)))
    assert isinstance(pipeline.decode(code)[0], Image.Image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_codes_in_float32(stable_diffusion, dtype):
    pipeline = LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=dictionary(), dtype=dtype)
    code = pipeline.encode(Image.new("RGB", (32, 32), "red"))
    assert code.coefficients.dtype == torch.float32
    if dtype == torch.bfloat16:  # the CPU has no float16 attention of this size
        output = call(quiet(pipeline), output_type="pt")
        torch.testing.assert_close(pipeline.decode(output.code, output_type="pt"), output.images, rtol=0, atol=0)
    assert torch.isfinite(pipeline.decode(code, output_type="pt")).all()


@pytest.mark.parametrize("unsafe", [True, False])
def test_safety_checker_judges_the_coded_images(load, unsafe):
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    vision = {**tower, "image_size": 30, "patch_size": 6}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    ).eval()
    checker.concept_embeds_weights.data.fill_(-2.0 if unsafe else 2.0)  # thresholds of cosines
    checker.special_care_embeds_weights.data.fill_(2.0)
    expected = call(load(dictionary()), output_type="np").images
    pipeline = load(dictionary())
    processor = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    output = call(pipeline, output_type="np")
    assert output.nsfw_content_detected == [unsafe] and (output.code is None) == unsafe
    assert not output.images.any() if unsafe else np.array_equal(output.images, expected)


def test_errors(load, stable_diffusion):
    with pytest.raises(
        ValueError, match="`bottleneck` must be made for 4 latent channels as the autoencoder has them, got 5"
    ):
        LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=DictionaryBottleneck(5, num_atoms=8, sparsity=1))
    pipeline = load()
    with pytest.raises(ValueError, match="`bottleneck` must be one that makes codes: .* got None"):
        call(pipeline, output_type="code")
    with pytest.raises(ValueError, match="`bottleneck` must be one that makes codes: .* got None"):
        pipeline.encode(Image.new("RGB", (32, 32)))
    pipeline = load(dictionary())
    for run in (
        lambda: call(pipeline, output_type="jpg"),
        lambda: pipeline.reconstruct(Image.new("RGB", (8, 8)), "latent"),
    ):
        with pytest.raises(ValueError, match="`output_type` must be one of"):
            run()
    code = pipeline.encode(Image.new("RGB", (32, 32)))
    with pytest.raises(ValueError, match="`output_type` must be one of"):
        pipeline.decode(code, "code")
    with pytest.raises(ValueError, match="must be one that makes codes: .* got IdentityBottleneck"):
        call(load(IdentityBottleneck(4)), output_type="code")


def test_stable_diffusion_xl(stable_diffusion_xl, tmp_path):
    plain = quiet(StableDiffusionXLPipeline.from_pretrained(stable_diffusion_xl))
    pipeline = quiet(LatentDLXLPipeline.from_pretrained(stable_diffusion_xl, bottleneck=None))
    assert np.array_equal(call(pipeline, output_type="np").images, call(plain, output_type="np").images)
    pipeline = quiet(LatentDLXLPipeline.from_pipe(plain, bottleneck=dictionary()))
    output = call(pipeline, output_type="np")
    assert isinstance(output.code, SparseCode) and output.images.shape == (1, 32, 32, 3)
    pipeline.register_modules(prior=FactorizedPrior.from_coder(pipeline.bottleneck).fit(output.code))
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is LatentDLXLPipeline and loaded.compress(output.code) == pipeline.compress(output.code)
    assert np.array_equal(call(loaded, output_type="np").images, output.images)
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.vae.to(torch.float16)
    seen, encode = [], pipeline.vae.encode
    pipeline.vae.encode = lambda x: (seen.append(x.dtype), encode(x))[1]
    assert np.isfinite(pipeline.reconstruct(Image.new("RGB", (32, 32)), "np").images).all()
    assert seen == [torch.float32] and pipeline.vae.dtype == torch.float16


def test_an_autoencoder_keeps_its_own_bottleneck_unless_another_takes_its_place(stable_diffusion):
    torch.manual_seed(0)
    vae = AutoencoderDL(
        latent_channels=4, block_out_channels=(8, 8), residual_channels=4,
        bottleneck_config={"num_atoms": 8, "sparsity": 1}
    ).eval()  # fmt: skip
    plain = quiet(StableDiffusionPipeline.from_pretrained(stable_diffusion, vae=vae))
    ours = quiet(LatentDLPipeline.from_pretrained(stable_diffusion, vae=vae, bottleneck=None))
    assert np.array_equal(call(ours, output_type="np").images, call(plain, output_type="np").images)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = (vae(x * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours.reconstruct(x, "pt").images, expected, rtol=1e-4, atol=1e-5)


def test_an_identity_is_no_bottleneck(load):
    output = call(load(IdentityBottleneck(4)), output_type="np")
    assert output.code is None and np.array_equal(output.images, call(load(), output_type="np").images)
    image = Image.new("RGB", (32, 32), "blue")
    expected = load().reconstruct(image, "np").images
    assert np.array_equal(load(IdentityBottleneck(4)).reconstruct(image, "np").images, expected)


def test_offload_order_names_every_model_and_calls_can_be_interrupted(load, stable_diffusion_xl):
    xl = LatentDLXLPipeline.from_pretrained(stable_diffusion_xl, bottleneck=dictionary())
    for pipeline in (load(dictionary()), xl):
        models = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        order = set(pipeline.model_cpu_offload_seq.split("->"))
        assert models <= order | set(pipeline._exclude_from_cpu_offload) and "bottleneck" not in order
        # what Stable Diffusion keeps on its device stays there
        parent = StableDiffusionXLPipeline if pipeline is xl else StableDiffusionPipeline
        assert set(parent._exclude_from_cpu_offload) <= set(pipeline._exclude_from_cpu_offload)
        # accelerate's hook looks at a model's first parameter, and a bottleneck may have none
        assert all(list(pipeline.components[name].parameters()) for name in models & order)
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    output = call(load(dictionary()), num_inference_steps=5, callback_on_step_end=stop, output_type="np")
    assert steps == [0] and np.isfinite(output.images).all()


def test_callbacks_see_and_change_every_tensor_that_they_may(load):
    pipeline, seen = load(dictionary()), {}

    def callback(pipe, step, timestep, tensors):
        seen.update(tensors)
        if step == 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    names = pipeline._callback_tensor_inputs
    arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    assert not call(pipeline, output_type="latent", **arguments).images.any()
    assert set(seen) == set(names)
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        call(pipeline, callback_on_step_end_tensor_inputs=["noise"])


def test_components_make_the_same_pipeline(load):
    pipeline = load(dictionary())
    again = quiet(LatentDLPipeline(**pipeline.components, requires_safety_checker=False))
    assert again.components.keys() == pipeline.components.keys() and "bottleneck" in again.components
    assert np.array_equal(call(again, output_type="np").images, call(pipeline, output_type="np").images)


FRESH = """
import diffusers_lasers, numpy, torch
from diffusers import DiffusionPipeline

# a folder that another process saved, with no name of ours in sight
pipeline = DiffusionPipeline.from_pretrained("saved")
images = pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
numpy.save("images.npy", images)

# the Hub
from diffusers_lasers import DictionaryBottleneck, LatentDLPipeline

torch.manual_seed(0)
bottleneck = DictionaryBottleneck(4, num_atoms=32, sparsity=2)
pipeline = LatentDLPipeline.from_pretrained({folder!r}, bottleneck=bottleneck)

def image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images

pipeline.push_to_hub("someone/cats")
bottleneck.push_to_hub("someone/dictionary")
expected = image(pipeline)
loaded = [LatentDLPipeline.from_pretrained("someone/cats"), DiffusionPipeline.from_pretrained("someone/cats")]
other = DictionaryBottleneck.from_pretrained("someone/dictionary")
loaded.append(LatentDLPipeline.from_pretrained({folder!r}, bottleneck=other))
result["classes"] = [type(pipeline).__name__ for pipeline in loaded]
result["same"] = [torch.equal(image(pipeline), expected) for pipeline in loaded]
"""


def test_a_fresh_process_loads_it_pushes_to_and_loads_from_the_hub(load, stable_diffusion, fresh, local_hub, tmp_path):
    pipeline = load(dictionary())
    pipeline.save_pretrained(tmp_path / "saved")
    result = fresh(FRESH.format(folder=str(stable_diffusion)), tmp_path, **local_hub.environment)
    assert np.array_equal(np.load(tmp_path / "images.npy"), call(pipeline, output_type="np").images)
    assert result == {"classes": ["LatentDLPipeline"] * 3, "same": [True] * 3}
    index = json.loads((local_hub.root / "someone/cats/model_index.json").read_text())
    assert index["bottleneck"] == ["diffusers_lasers", "DictionaryBottleneck"]
    assert "LatentDLPipeline" in (local_hub.root / "someone/cats/README.md").read_text()
