"""Residual networks: a linear transform that starts at principal components of images, and what is learned beside."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch.nn import functional as F

from diffusers_lasers import AutoencoderDL
from diffusers_lasers.learning.principal_axes import mean_and_covariance, principal_axes


SMALL = {"backbone": "residual", "residual_channels": 8, "layers_per_block": 1}
WIDTHS = {4: (16,), 8: (8, 16), 16: (8, 16, 16)}


def images(batch=16, height=32, width=32, seed=0):
    """Smooth noise, whose patches have a few strong components."""
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="reflect"), 5, stride=1) * 2


def build(factor=4, latents=16, bottleneck_type="none", **kwargs):
    torch.manual_seed(0)
    widths = {"block_out_channels": WIDTHS[factor], "latent_channels": latents}
    return AutoencoderDL(bottleneck_type=bottleneck_type, **{**SMALL, **widths, **kwargs}).eval()


def trained(model, deviation=0.1):
    """Gives what starts at zero some weights, as training does."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=deviation)
    return model


@torch.no_grad()
@pytest.mark.parametrize("factor", [4, 8, 16])
def test_starts_as_the_projection_on_the_principal_components(factor):
    x, model = images(32), build(factor, latents=10)
    model.initialize(x.split(8))
    patches = F.pixel_unshuffle(x, factor).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    reference = PCA(10, svd_solver="full").fit(patches)
    expected = reference.inverse_transform(reference.transform(patches))
    found = F.pixel_unshuffle(model(x).sample, factor).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    assert np.abs(found - expected).max() < 1e-3


@torch.no_grad()
def test_latents_have_mean_0_and_variance_1_and_strong_components_more():
    x, model = images(64), build()
    model.initialize(x)
    latents = model.encode(x).latents
    assert abs(float(latents.mean())) < 1e-4 and abs(float(latents.var(correction=0)) - 1) < 1e-3
    each = latents.var(dim=(0, 2, 3))
    assert (each.diff() < 0).all() and each[0] > 2 * each[-1]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "evenness"), [("vq", 0.0), ("residual_vq", 0.25), ("none", 0.25)])
def test_how_even_the_latents_are_is_the_bottlenecks(kind, evenness):
    config = {"vq": {"num_codewords": 8}, "residual_vq": {"num_codewords": 8, "depth": 2}, "none": None}[kind]
    x, model = images(64), build(latents=12, bottleneck_type=kind, bottleneck_config=config)
    model.initialize(x)
    patches = F.pixel_unshuffle(x, 4).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    variances = PCA(12, svd_solver="full").fit(patches).explained_variance_ ** (1 - evenness)
    found = model.encode(x).latents.double().var(dim=(0, 2, 3)).numpy()
    assert np.allclose(found, variances / variances.mean(), rtol=1e-3)


@torch.no_grad()
def test_more_latents_than_values_of_a_patch_lose_nothing():
    x, model = images(), build(latents=60)  # of 48 values
    model.initialize(x)
    assert (model(x).sample - x).abs().max() < 1e-4
    assert not model.encode(x).latents[:, 48:].any()


@torch.no_grad()
def test_images_without_variation_start_at_their_colour():
    x, model = torch.full((4, 3, 16, 16), 0.25), build()
    model.initialize(x)
    assert (model(x).sample - x).abs().max() < 1e-3 and torch.isfinite(model.encode(images()).latents).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dictionary", "vq"])
def test_the_bottleneck_starts_from_these_latents(kind):
    name = {"dictionary": "num_atoms", "vq": "num_codewords"}[kind]
    x, model = images(64), build(bottleneck_type=kind, bottleneck_config={name: 64})
    before = F.mse_loss(model(x).sample, x)
    model.initialize(x, torch.Generator().manual_seed(0))
    assert F.mse_loss(model(x).sample, x) < before / 2
    again = build(bottleneck_type=kind, bottleneck_config={name: 64})
    again.initialize(list(x.split(64)), torch.Generator().manual_seed(0))
    for one, other in zip(model.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)


def test_light_networks_start_with_their_bottleneck_alone():
    model = AutoencoderDL(bottleneck_config={"num_atoms": 32})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.initialize(images(8))
    changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"bottleneck"}


@pytest.mark.parametrize(
    "wrong, message", [([], "at least one batch"), ([torch.full((1, 3, 8, 8), torch.nan)], "finite")]
)
def test_what_is_no_image_is_refused(wrong, message):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.initialize(wrong)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("factor", [4, 8, 16])
def test_tiles_give_the_same(factor):
    model, x = trained(build(factor), 0.05), images(1, 333, 610)
    latents = model.encode(x).latents
    sample = model.decode(latents).sample
    model.enable_tiling()
    model.tile_sample_min_size = 256 if factor < 16 else 512
    assert (model.encode(x).latents - latents).abs().max() < 1e-5 * latents.abs().max()
    assert (model.decode(latents).sample - sample).abs().max() < 1e-5 * sample.abs().max()


@torch.no_grad()
def test_an_output_depends_on_pixels_beside_its_patch():
    """So tiles that agree prove something: the networks look beyond the patch that a latent stands for."""
    model, x = trained(build()), images(1, 64, 64)
    other = x.clone()
    other[..., 24:28, 24:28] += 0.5
    changed = (model.encode(other).latents - model.encode(x).latents).abs().amax(dim=(0, 1)) > 1e-6
    assert changed[5:8, 5:8].all() and not changed[:, :2].any() and not changed[:2].any()


@pytest.mark.parametrize("widths", [(6, 6), (16, 24), (16, 8), (16, 128)])
def test_widths_that_have_no_shortcut_are_refused(widths):
    with pytest.raises(ValueError, match="`block_out_channels` must be multiples of 4, each 1, 2 or 4 times"):
        AutoencoderDL(**SMALL, block_out_channels=widths)


def test_images_that_can_be_read_once_and_none_are_refused():
    for backbone in ({}, {"backbone": "light", "block_out_channels": (8, 16)}):
        with pytest.raises(ValueError, match="`images` must be readable twice, got an iterator"):
            build(**backbone).initialize(iter([images()]))
        with pytest.raises(ValueError, match="at least one batch"):
            build(**backbone).initialize([])
    with pytest.raises(ValueError, match=r"`in_channels` and `out_channels` must be the same .* got \(3, 1\)"):
        build(out_channels=1).initialize(images())


def test_a_transform_that_is_too_large_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="`block_out_channels`"):
        AutoencoderDL(**SMALL, block_out_channels=(16,) * 12)


def test_presets_name_their_networks():
    assert AutoencoderDL.from_preset("paper").config.backbone == "light"
    assert AutoencoderDL.from_preset("corrected").config.backbone == "residual"
    assert AutoencoderDL.from_preset("corrected", backbone="light").downsampling_factor == 4
    assert AutoencoderDL.from_preset("corrected", block_out_channels=(64, 128)).downsampling_factor == 8
    light, residual = (AutoencoderDL.from_preset(name).downsampling_factor for name in ("paper", "corrected"))
    assert light == residual == 4


@settings(max_examples=25, deadline=None)
@given(features=st.integers(1, 12), rows=st.integers(2, 60), seed=st.integers(0, 99))
def test_axes_are_orthonormal_and_ordered(features, rows, seed):
    signals = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)) * 10
    mean, covariance = mean_and_covariance(signals.split(7))
    assert torch.allclose(mean, signals.double().mean(dim=0)) and torch.allclose(
        covariance, torch.cov(signals.double().t(), correction=0).reshape(features, features), atol=1e-9
    )
    variances, axes = principal_axes(covariance)
    assert (variances.diff() <= 1e-9).all()
    assert torch.allclose(axes.t() @ axes, torch.eye(features).double(), atol=1e-9)
    assert torch.allclose(axes @ variances.diag() @ axes.t(), covariance, atol=1e-9 * float(variances[0] + 1))
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()


def _rank(rank, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = build(bottleneck_type="dictionary", bottleneck_config={"num_atoms": 32})
    model.initialize(images()[rank::2], torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_start_alike_and_as_one_with_all_images(in_two_processes, tmp_path):
    one, two = in_two_processes(_rank, tmp_path)
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    model = build(bottleneck_type="dictionary", bottleneck_config={"num_atoms": 32})
    model.initialize(images())
    for name in ("encoder.shortcut.weight", "decoder.shortcut.weight", "decoder.shortcut.bias"):
        assert torch.allclose(one[name], model.state_dict()[name], atol=1e-4), name
