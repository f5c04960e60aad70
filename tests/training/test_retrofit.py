"""Bottlenecks fitted to the latents of a frozen autoencoder."""

import pytest
import torch
from diffusers import AutoencoderKL

from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.models.autoencoders import encode_latents
from diffusers_lasers.training import ImageDataset, bundled_photos, fit_bottleneck
from diffusers_lasers.training.dictionaries.retrofit import collect_latents, fit_to_latents


def autoencoder():
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
    )


def images(count=24, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


BOTTLENECKS = {
    "dictionary": lambda: DictionaryBottleneck(4, num_atoms=32, sparsity=2, coefficient_bits=6),
    "patches": lambda: DictionaryBottleneck(4, num_atoms=64, sparsity=4, patch_size=2, pursuit="ols"),
    "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=32),
    "residual_vq": lambda: ResidualVQBottleneck(4, num_codewords=16, depth=3, beam_size=4),
    "fsq": lambda: FSQBottleneck(4, levels=(7,) * 3),
    "fsq-wide": lambda: FSQBottleneck(4, levels=(5,) * 6),
    "int4": lambda: ScalarQuantizerBottleneck(4, bits=4),
    "klt": lambda: ScalarQuantizerBottleneck(4, bits=6, transform="klt", step=0.2, patch_size=2),
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_fitting_beats_what_it_started_from_and_leaves_the_autoencoder_alone(name, tmp_path):
    vae = autoencoder().train()
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    torch.manual_seed(1)
    bottleneck = BOTTLENECKS[name]()
    arguments = {"steps": 200} if name.startswith("fsq") else {}
    fitted = fit_bottleneck(vae, images(), bottleneck, batch_size=7, progress=False, **arguments)
    assert fitted is bottleneck and not fitted.training
    assert vae.training and all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())

    with torch.no_grad():
        z = encode_latents(vae.eval(), images())
        variance = (z - z.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
        error = (fitted(z).latents - z).square().mean()
    assert error < 0.5 * variance
    torch.testing.assert_close(fitted.latent_shift, z.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    fitted.save_pretrained(tmp_path)
    loaded = type(fitted).from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(z).indices, fitted.encode(z).indices)
    torch.manual_seed(5)
    again = fit_bottleneck(vae, images(), BOTTLENECKS[name](), batch_size=7, progress=False, **arguments)
    assert torch.equal(again.encode(z).indices, fitted.encode(z).indices)


def test_normalisation(tmp_path):
    vae, x = autoencoder().eval(), images()
    with torch.no_grad():
        z = encode_latents(vae, x)
    deviation = z.std(dim=(0, 2, 3), unbiased=False)
    scales = {}
    for normalize in ("mean", "channel", "none"):
        bottleneck = fit_bottleneck(vae, x, ScalarQuantizerBottleneck(4, bits=8), normalize=normalize, progress=False)
        scales[normalize] = bottleneck.latent_scale
        assert (bottleneck(z).latents - z).abs().max() < 0.05 * deviation.max()
    torch.testing.assert_close(scales["channel"], deviation, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scales["mean"], deviation.square().mean().sqrt().expand(4), rtol=1e-4, atol=1e-6)
    assert torch.equal(scales["none"], torch.ones(4))


def test_images_from_a_data_set_an_iterable_or_of_many_sizes():
    vae = autoencoder()
    data = ImageDataset(bundled_photos("validation"), 16, crops_per_image=5)
    whole = torch.cat(collect_latents(vae, data, batch_size=4, progress=False))
    assert whole.shape == (10, 4, 8, 8) and whole.dtype == torch.float32
    x = data.__getitems__(list(range(10)))["pixel_values"]
    torch.testing.assert_close(
        torch.cat(collect_latents(vae, iter(x.split(3)), progress=False)), whole, rtol=1e-4, atol=1e-5
    )
    mixed = [images(8, 16), images(3, 24)]
    for make in BOTTLENECKS.values():
        bottleneck = make()
        arguments = {"steps": 3} if isinstance(bottleneck, FSQBottleneck) else {}
        fit_bottleneck(vae, mixed, bottleneck, progress=False, **arguments)
        assert bottleneck.encode(torch.randn(1, 4, 8, 8)).latent_size == (8, 8)


def test_errors():
    vae = autoencoder()
    with pytest.raises(ValueError, match="`bottleneck` must have a `fit` method, got IdentityBottleneck"):
        fit_bottleneck(vae, images(), IdentityBottleneck(4))
    with pytest.raises(ValueError, match="`normalize` must be"):
        fit_bottleneck(vae, images(), BOTTLENECKS["vq"](), normalize="all")
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        fit_bottleneck(vae, [], BOTTLENECKS["vq"](), progress=False)
    with pytest.raises(ValueError, match="must give finite latents"):
        fit_bottleneck(vae, torch.full((1, 3, 16, 16), float("nan")), BOTTLENECKS["vq"](), progress=False)
    with pytest.raises(ValueError, match=r"`latents` must have shape \(batch, 5"):
        fit_bottleneck(vae, images(), ScalarQuantizerBottleneck(5), normalize="none", progress=False)
    with pytest.raises(ValueError, match="`num_codewords` must be a power of two"):
        fit_bottleneck(vae, images(), VectorQuantizerBottleneck(4, num_codewords=24), progress=False)
    with pytest.raises(ValueError, match="`latents` must be readable twice"):
        BOTTLENECKS["vq"]().fit(iter([torch.randn(4, 4, 8, 8)]))
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        fit_bottleneck(vae, images(), BOTTLENECKS["vq"](), batch_size=0)


def test_an_fsq_without_projections_gets_its_statistics_and_nothing_else():
    vae, bottleneck = autoencoder(), FSQBottleneck(4, levels=(9,) * 4)
    fit_bottleneck(vae, images(), bottleneck, normalize="channel", progress=False)
    with torch.no_grad():
        z = encode_latents(vae.eval(), images())
    assert (bottleneck(z).latents - z).square().mean() < 0.3 * z.var(dim=(0, 2, 3)).mean()


def test_latents_serve_several_bottlenecks():
    vae = autoencoder().eval()
    latents = collect_latents(vae, images(), batch_size=7, progress=False)
    for name in ("vq", "klt"):
        direct = fit_bottleneck(vae, images(), BOTTLENECKS[name](), batch_size=7, progress=False)
        shared = fit_to_latents(BOTTLENECKS[name](), latents, progress=False)
        assert all(torch.equal(value, shared.state_dict()[key]) for key, value in direct.state_dict().items())
    with pytest.raises(ValueError, match="`normalize` must be"):
        fit_to_latents(BOTTLENECKS["vq"](), latents, normalize="all")
    with pytest.raises(ValueError, match="`bottleneck` must have a `fit` method"):
        fit_to_latents(IdentityBottleneck(4), latents)


def test_modes_of_the_autoencoders_parts_are_kept():
    vae = autoencoder().train()
    vae.encoder.eval()
    collect_latents(vae, images(2), progress=False)
    assert vae.training and vae.decoder.training and not vae.encoder.training


@pytest.mark.parametrize("name", ["dictionary", "vq", "int4", "fsq"])
def test_latents_are_sent_to_the_bottlenecks_device(name, monkeypatch):
    """Kept on the CPU. Without a GPU here: what `signals` is given went through `.to(device of the bottleneck)`."""
    bottleneck = BOTTLENECKS[name]()
    sent, seen, original, signals = [], [], torch.Tensor.to, type(bottleneck).signals

    def to(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if self.ndim == 4 and args and args[0] == bottleneck.latent_shift.device:
            sent.append(result)
        return result

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(type(bottleneck), "signals", lambda self, z: (seen.append(z), signals(self, z))[1])
    arguments = {"steps": 2} if name == "fsq" else {}
    for latents in (torch.randn(16, 4, 8, 8), [torch.randn(16, 4, 8, 8), torch.randn(8, 4, 6, 6)]):
        seen.clear()
        bottleneck.fit(latents, progress=False, **arguments)
        assert seen and all(any(z is item for item in sent) for z in seen)
