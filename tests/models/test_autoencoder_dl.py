"""AutoencoderDL: every bottleneck and backbone, codes, sizes, memory savers, files, presets."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, LDMPipeline
from torch.nn import functional as F

from diffusers_lasers import (
    AutoencoderDL,
    AutoencoderDLEncoderOutput,
    AutoencoderDLOutput,
    DictionaryBottleneck,
)
from diffusers_lasers.coding import IndexCode, SparseCode


BOTTLENECKS = {
    "dictionary": {"num_atoms": 32, "sparsity": 3},
    "vq": {"num_codewords": 32},
    "residual_vq": {"num_codewords": 32, "depth": 3},
    "fsq": {"levels": (5,) * 8},
    "scalar": {"bits": 6, "rate_weight": 1e-3},
    "none": None,
}
SMALL = {"block_out_channels": (8, 16, 16), "residual_channels": 8, "latent_channels": 8, "norm_num_groups": 4}


def build(bottleneck_type="dictionary", **kwargs):
    torch.manual_seed(0)
    config = kwargs.pop("bottleneck_config", BOTTLENECKS[bottleneck_type])
    model = AutoencoderDL(bottleneck_type=bottleneck_type, bottleneck_config=config, **{**SMALL, **kwargs})
    # An untrained model's output hardly depends on its input: without biases and at unit scale it does.
    x, last = images(8, seed=5), model.decoder.up[-1] if model.config.backbone == "light" else model.decoder.conv_out
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        model.encoder.conv_out.weight.div_(model.encode(x).latents.std())
        model.bottleneck.initialize(model.encode(x).latents, torch.Generator().manual_seed(0))
        last.weight.mul_(0.5 / model.eval()(x).sample.std())
    return model


def images(batch=2, height=32, width=32, seed=0):
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, stride=1) * 1.5


@pytest.fixture(params=sorted(BOTTLENECKS))
def name(request):
    return request.param


@pytest.mark.parametrize("backbone", ["light", "residual", "diffusers"])
@pytest.mark.parametrize("size", [(32, 32), (33, 30), (1, 1)])
def test_reconstructs_any_size(name, backbone, size):
    model, x = build(name, backbone=backbone), images(2, *size) if size != (1, 1) else torch.zeros(1, 3, 1, 1)
    with torch.no_grad():
        output = model(x)
    assert output.sample.shape == x.shape
    factor = model.downsampling_factor
    assert output.latents.shape[-2:] == (-(-size[0] // factor), -(-size[1] // factor))
    assert torch.isfinite(output.sample).all()


@torch.no_grad()
def test_codes_hold_all_that_the_decoder_needs(name):
    model, x = build(name), images(2, 30, 35)
    if name == "none":
        with pytest.raises(ValueError, match="has no code"):
            model.encode_to_code(x)
        return
    code = model.encode_to_code(x)
    assert isinstance(code, SparseCode if name == "dictionary" else IndexCode)
    torch.testing.assert_close(model.decode_from_code(code).sample, model(x).sample, rtol=1e-4, atol=1e-5)
    assert code.image_size == (30, 35)
    assert model.decode_from_code(code, return_dict=False)[0].shape == x.shape


@torch.no_grad()
def test_decode_takes_latents_through_the_bottleneck(name):
    model, x = build(name), images()
    latents = model.encode(x).latents
    torch.testing.assert_close(model.decode(latents).sample, model(x).sample)
    free = model.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(free, model.decoder(latents))
    assert torch.equal(
        model.decode(latents, return_dict=False, generator=torch.Generator())[0], model.decode(latents)[0]
    )
    assert torch.equal(model.encode(x, return_dict=False)[0], latents)


def test_tuple_output_has_the_order_of_the_class(name):
    model, x = build(name), images()
    output, values = model(x), model(x, return_dict=False)
    assert isinstance(output, AutoencoderDLOutput) and isinstance(model.encode(x), AutoencoderDLEncoderOutput)
    assert torch.equal(values[0], output.sample) and len(values) == len(output.to_tuple())


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(name):
    model, x = build(name), images(5)
    together = model(x).sample
    for i in range(5):
        torch.testing.assert_close(model(x[i : i + 1]).sample[0], together[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_slicing_changes_nothing(name):
    model, x = build(name), images(3)
    whole = model(x).sample
    model.enable_slicing()
    torch.testing.assert_close(model(x).sample, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("size", "layers"), [((200, 90), 2), ((64, 300), 2), ((131, 257), 4)])
def test_tiling_of_the_light_networks_is_exact(size, layers):
    model, x = build(layers_per_block=layers), images(1, *size)
    whole = model(x)
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_overlap_factor = 128, 0.6
    tiled = model(x)
    torch.testing.assert_close(tiled.latents, whole.latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiled.sample, whole.sample, rtol=1e-4, atol=1e-4)
    model.disable_tiling()
    assert torch.equal(model(x).sample, whole.sample)


@torch.no_grad()
def test_tiling_of_the_diffusers_networks_is_close():
    model = build("none", backbone="diffusers", mid_block_add_attention=False)
    x = images(1, 160, 160)
    whole = model(x).sample
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_overlap_factor = 128, 0.5
    # Group norm sees a tile's statistics instead of the image's.
    assert (model(x).sample - whole).square().mean() < 0.1 * whole.var()


@torch.no_grad()
def test_an_overlap_that_cannot_be_exact_is_refused():
    model = build()
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_overlap_factor = 52, 0.25
    with pytest.raises(ValueError, match="`tile_sample_min_size` must be more than 52 pixels"):
        model.encode(images(1, 128, 128))


@pytest.mark.parametrize("backbone", ["light", "residual", "diffusers"])
def test_gradient_checkpointing_gives_the_same_gradients(backbone):
    x, gradients = images(), []
    for checkpointed in (False, True):
        model = build(backbone=backbone).train()
        if checkpointed:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        output = model(x)
        (output.sample.square().mean() + output.loss).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-4, atol=1e-6)


def test_training_moves_every_parameter(name):
    """A predecessor's dictionary update never fired: the dictionary must move."""
    model = build(name).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    output = model(images(8))
    ((output.sample - images(8)).square().mean() + output.loss).backward()
    optimizer.step()
    unmoved = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not unmoved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_through_files(name, dtype, tmp_path):
    model, x = build(name), images()
    model.save_pretrained(str(tmp_path))
    loaded = AutoencoderDL.from_pretrained(str(tmp_path), torch_dtype=dtype)
    assert loaded.dtype == dtype
    floating = [v for v in loaded.bottleneck.state_dict().values() if v.is_floating_point()]
    assert all(v.dtype == torch.float32 for v in floating if v.numel())
    with torch.no_grad():
        expected, got = model(x).sample, loaded(x.to(dtype)).sample
    assert got.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(got, expected)
    else:  # a rounding border crossed in half precision changes a codeword: compare in the mean
        assert expected.std(dim=0).square().mean() > 1e-3  # the images differ
        share = {torch.float16: 0.02, torch.bfloat16: 0.05}[dtype]
        assert (got.float() - expected).square().mean() < share * expected.std(dim=0).square().mean()


@torch.no_grad()
def test_layerwise_casting_runs(name):
    model = build(name)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.isfinite(model(images()).sample).all()


@torch.no_grad()
def test_sequential_offload_reaches_every_entrance(name):
    """Hooks run where `forward` or an `apply_forward_hook` method is entered."""
    accelerate = pytest.importorskip("accelerate")
    model, x = build(name), images()
    expected = model(x).sample
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(model(x).sample, expected)
    if name != "none":
        torch.testing.assert_close(
            model.decode_from_code(model.encode_to_code(x)).sample, expected, rtol=1e-4, atol=1e-4
        )


def test_saving_leaves_the_random_state_alone(name, tmp_path):
    model = build(name)
    before = torch.get_rng_state()
    model.save_pretrained(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
@pytest.mark.parametrize("widths", [(4, 8), (4, 8, 8, 8, 8)])
def test_default_tiles_fit_any_downsampling(widths):
    model = AutoencoderDL(
        block_out_channels=widths, residual_channels=4, latent_channels=4, bottleneck_type="none"
    ).eval()
    model.enable_tiling()
    x = images(1, 16, 528)
    tiled = model(x).sample
    model.disable_tiling()
    torch.testing.assert_close(tiled, model(x).sample, rtol=1e-4, atol=1e-4)


def test_a_repeated_cast_to_half_precision_still_works(name):
    model = build(name).half()
    with torch.no_grad():
        assert torch.isfinite(model(images().half()).sample).all()
        if name != "none":
            assert model.decode_from_code(model.encode_to_code(images().half())).sample.dtype == torch.float16


def test_a_changed_bottleneck_is_saved_as_it_is(tmp_path):
    model = build()
    model.bottleneck.set_coefficient_bits(6)
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())["bottleneck_config"]
    assert saved["coefficient_bits"] == 6 and saved["num_atoms"] == 32 and "latent_channels" not in saved
    assert AutoencoderDL.from_pretrained(str(tmp_path)).bottleneck.config.coefficient_bits == 6


def test_rates():
    model = AutoencoderDL(bottleneck_type="vq", bottleneck_config={"num_codewords": 512})
    assert model.bits_per_pixel(32, 32) == 9 * 64 / 1024
    assert model.bits_per_pixel(33, 32) == 9 * 9 * 8 / (33 * 32)  # nine rows of sites
    assert (
        AutoencoderDL(bottleneck_type="none").bits_per_pixel(32, 32) == 16
    )  # 16 channels of 16 bits on 1/16 of the pixels
    patched = AutoencoderDL(bottleneck_config={"patch_size": 2, "num_atoms": 512, "sparsity": 5})
    assert patched.bits_per_pixel(32, 32) == AutoencoderDL().bits_per_pixel(32, 32) / 4


def test_presets():
    paper, corrected = AutoencoderDL.from_preset("paper"), AutoencoderDL.from_preset("corrected")
    assert isinstance(paper.bottleneck, DictionaryBottleneck)
    assert paper.bottleneck.config.coefficient_bits is None and corrected.bottleneck.config.coefficient_bits == 8
    for model in (paper, corrected):
        assert model.bottleneck.dictionary.shape == (16, 512) and model.bottleneck.config.sparsity == 5
    assert paper.bits_per_pixel(32, 32) > 2 * corrected.bits_per_pixel(32, 32)
    other = AutoencoderDL.from_preset("corrected", bottleneck_config={"sparsity": 2}, latent_channels=4)
    assert other.bottleneck.config.sparsity == 2 and other.bottleneck.config.coefficient_bits == 8
    assert AutoencoderDL.from_preset("paper", bottleneck_type="vq").bottleneck.num_symbols == 512
    with pytest.raises(ValueError, match="`name` must be one of"):
        AutoencoderDL.from_preset("best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet"}, "`backbone` must be one of 'diffusers', 'light', 'residual', got 'resnet'"),
        ({"bottleneck_type": "lfq"}, "`bottleneck_type` must be one of"),
        ({"block_out_channels": (8,)}, r"`block_out_channels` must have at least 2 widths .* got \(8,\)"),
        ({"bottleneck_config": {"atoms": 3}}, "`bottleneck_config` must hold arguments of DictionaryBottleneck"),
        ({"bottleneck_config": {"num_atoms": 0}}, "`num_atoms` must be an integer from 1 to .* got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderDL(**arguments)


def test_stands_as_vae_where_pipelines_look():
    """What stock pipelines read of a vae; the whole Stable Diffusion pipeline is run in the plug-in tests."""
    ours, theirs = build(), AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4)
    for key in (
        "block_out_channels",
        "latent_channels",
        "scaling_factor",
        "shift_factor",
        "force_upcast",
        "sample_size",
    ):
        assert key in ours.config and key in theirs.config
    assert 2 ** (len(ours.config.block_out_channels) - 1) == 32 // ours.encode(images()).latents.shape[-1]


@torch.no_grad()
def test_draws_an_image_in_a_stock_latent_diffusion_pipeline():
    from diffusers import DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = LDMPipeline(vqvae=build(), unet=unet.eval(), scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("bottleneck", ["dictionary", "vq"])
def test_compiles_without_graph_breaks(bottleneck):
    model, x = build(bottleneck), images()
    with torch.no_grad():
        compiled = torch.compile(lambda sample: model(sample).sample, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x).sample)
