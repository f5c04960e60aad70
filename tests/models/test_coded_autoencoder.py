"""`CodedAutoencoder`: any autoencoder of diffusers with a bottleneck, alone and as `vae` of stock pipelines."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderTiny, AutoModel, DiffusionPipeline

from diffusers_lasers import (
    CodedAutoencoder,
    DictionaryBottleneck,
    FactorizedPrior,
    IdentityBottleneck,
    ScalarQuantizerBottleneck,
)


sys.path.append(str(Path(__file__).resolve().parents[1] / "pipelines"))

from tiny_pipelines import PIPELINES, build, draw, kl  # noqa: E402


VIDEO = ("wan", "ltx", "qwen_image")


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
        expected = inside.decode(coded.code_to_latents(code), *args, **{**kwargs, "return_dict": False})[0]
        decoded = coded.decode(z, *args, **{**kwargs, "return_dict": False})[0]
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)
    assert code.num_sites == z.numel() // z.shape[1] // (4 if name == "flux2" else 1)


def test_latents_on_the_denoisers_scale_are_what_the_denoiser_gives():
    """Of Flux.2: patches of 2 × 2 with the batch norm's statistics; a bottleneck of unpatched channels sees the same."""
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
    with pytest.raises(ValueError, match=r"`frames` must divide the \d+ images of the code, got 3."):
        vae.decode_from_code(code, frames=3)


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
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vae.nothing


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


FRESH = """
import torch
from diffusers import AutoModel
from diffusers_lasers import CodedAutoencoder

x = torch.load("x.pt")
vae = CodedAutoencoder.from_pretrained("vae")
code = vae.encode_to_code(x)
result = [vae.compress(code).hex(), torch.equal(vae.decode_from_code(code).sample, torch.load("sample.pt"))]
result.append(type(AutoModel.from_pretrained("vae")).__name__)
"""


def test_it_loads_in_a_fresh_process_with_its_parts(fresh, tmp_path):
    bottleneck = DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4)
    vae = CodedAutoencoder(tiny(), bottleneck)
    code = vae.encode_to_code(images())
    vae.prior = FactorizedPrior.from_coder(bottleneck).fit(code)
    vae.save_pretrained(tmp_path / "vae")
    torch.save(images(), tmp_path / "x.pt")
    torch.save(vae.decode_from_code(code).sample, tmp_path / "sample.pt")
    assert fresh(FRESH, tmp_path) == [vae.compress(code).hex(), True, "CodedAutoencoder"]
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
    one, other = (DictionaryBottleneck(4, num_atoms=atoms, sparsity=2, coefficient_bits=4) for atoms in (8, 16))
    with pytest.raises(ValueError, match="`prior` must be fitted to codes of `bottleneck`"):
        CodedAutoencoder(tiny(), one, FactorizedPrior.from_coder(other))
    vae = CodedAutoencoder(tiny(), one)
    with pytest.raises(ValueError, match="`prior` must be there to compress codes, got None"):
        vae.compress(vae.encode_to_code(images()))
    vae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for named in (["os", "system"], ["diffusers", "DDIMScheduler"], ["diffusers", "nothing"], None, "x", 3):
        path.write_text(json.dumps(config | {"autoencoder": named}))
        with pytest.raises(ValueError, match="`autoencoder` in config.json must be a model of diffusers"):
            CodedAutoencoder.from_pretrained(tmp_path)
