"""Quantisers of vector-quantize-pytorch as bottlenecks: what the library gives when it is called directly."""

import copy
import subprocess
import sys

import pytest
import torch
import vector_quantize_pytorch
from torch.nn import functional as F

from diffusers_lasers import AutoencoderDL, ExternalQuantizerBottleneck, IndexCode
from diffusers_lasers.functional import latents_to_signals
from diffusers_lasers.models.bottlenecks.external_quantizer import QUANTIZERS


BINARY = {"codebook_size": 16, "num_codebooks": 2}
STAGES = {"codebook_size": 16, "num_quantizers": 3}
SMALL = {
    "lfq": BINARY,
    "bsq": BINARY,
    "sim_vq": {"codebook_size": 24},
    "cosine_vq": {"codebook_size": 24, "codebook_dim": 4},
    "residual_fsq": {"levels": [3, 3, 2], "num_quantizers": 3},
    "residual_lfq": STAGES,
    "residual_sim_vq": STAGES,
}
NESTED = [name for name in SMALL if name.startswith("residual")]


def latents(batch=4, seed=0):
    z = torch.randn(batch, 6, 5, 7, generator=torch.Generator().manual_seed(seed))
    return z * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1])[:, None, None] + 0.3


def build(name, **config):
    torch.manual_seed(0)
    bottleneck = ExternalQuantizerBottleneck(6, name, SMALL[name] | config)
    bottleneck.initialize(latents(32, seed=7), torch.Generator().manual_seed(0))
    return bottleneck


def library(bottleneck):
    """The library's own module with the same arguments and weights."""
    recipe = QUANTIZERS[bottleneck.config.quantizer]
    module = getattr(vector_quantize_pytorch, recipe.kind)(dim=6, **recipe.fixed, **bottleneck.config.quantizer_config)
    module.load_state_dict(bottleneck.inner.state_dict())
    return module


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_and_what_they_decode_to_are_the_librarys(name):
    bottleneck, z = build(name).eval(), latents()
    quantized, indices, *_ = library(bottleneck).eval()(latents_to_signals(z).unsqueeze(0))
    code = bottleneck.encode(z)
    assert torch.equal(code.indices.flatten(0, 2), indices.reshape(4 * 5 * 7, -1).long())
    assert code.indices.max() < max(code.levels) and code.levels == bottleneck.levels
    torch.testing.assert_close(latents_to_signals(bottleneck.decode(code)), quantized[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_training_step_is_the_librarys_with_its_losses_and_gradients(name):
    bottleneck = build(name).train()
    module = library(bottleneck).train()
    z, weight = latents().requires_grad_(), torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(1))
    signals = latents_to_signals(z.detach()).unsqueeze(0).requires_grad_()
    torch.manual_seed(3)  # dead codewords restart at random signals
    output = bottleneck(z)
    torch.manual_seed(3)
    quantized, _, *loss = module(signals)
    loss = loss[0].sum() if loss else torch.zeros(())
    torch.testing.assert_close(output.loss, loss.float())
    assert (float(output.loss.detach()) != 0) == (name != "residual_fsq")
    ((output.latents * weight).sum() + output.loss).backward()
    ((quantized[0] * latents_to_signals(weight)).sum() + loss).backward()
    torch.testing.assert_close(latents_to_signals(z.grad), signals.grad[0], rtol=1e-4, atol=1e-4)
    assert z.grad.abs().sum() > 0
    for (key, ours), theirs in zip(bottleneck.inner.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=key)
    for key, value in module.state_dict().items():  # moving averages
        torch.testing.assert_close(bottleneck.inner.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_coding_in_training_mode_changes_nothing(name):
    bottleneck, z = build(name).train(), latents()
    before = {key: value.clone() for key, value in bottleneck.state_dict().items()}
    code = bottleneck.encode(z)
    assert torch.equal(code.indices, bottleneck.eval().encode(z).indices)
    assert all(torch.equal(value, before[key]) for key, value in bottleneck.state_dict().items())
    bottleneck.train()(z)
    moved = [key for key, value in bottleneck.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(moved) == (name == "cosine_vq")


@torch.no_grad()
@pytest.mark.parametrize("name", QUANTIZERS)
def test_it_starts_from_data(name):
    z, errors = latents(32, seed=7), []
    torch.manual_seed(0)
    for bottleneck in (ExternalQuantizerBottleneck(6, name, SMALL[name]).eval(), build(name).eval()):
        errors.append(float((bottleneck(z).latents - z).square().mean() / z.var()))
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.6


@torch.no_grad()
@pytest.mark.parametrize("name", NESTED)
def test_the_first_stages_are_a_code(name):
    bottleneck, z = build(name).eval(), latents(32)
    code, errors = bottleneck.encode(z), []
    stages = bottleneck.inner.get_codes_from_indices(code.indices.flatten(0, 2).unsqueeze(0))
    out = getattr(bottleneck.inner, "project_out", torch.nn.Identity())
    for count in (1, 2, 3):
        first = IndexCode(code.indices[..., :count].contiguous(), code.levels[:count], code.latent_size)
        again = bottleneck.unpack(bottleneck.pack(first))
        decoded = bottleneck.decode(again)
        expected = out(stages[:count].sum(dim=0)).squeeze(0)
        torch.testing.assert_close(latents_to_signals(decoded), expected, rtol=1e-5, atol=1e-5)
        errors.append(float((decoded - z).square().mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in NESTED])
def test_others_are_not_nested(name):
    bottleneck = build(name).eval()
    code = bottleneck.encode(latents())
    wrong = IndexCode(code.indices[..., :0], (), code.latent_size) if code.slots == 1 else None
    wrong = wrong or IndexCode(code.indices[..., :1].contiguous(), code.levels[:1], code.latent_size)
    with pytest.raises(ValueError, match="`code` must have slots of levels"):
        bottleneck.decode(wrong)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_configuration_holds_every_argument(name, tmp_path):
    bottleneck = build(name)
    assert set(bottleneck.config.quantizer_config) == set(QUANTIZERS[name].arguments)
    bottleneck.save_pretrained(tmp_path)
    again = ExternalQuantizerBottleneck.from_pretrained(tmp_path)
    for key in ("latent_channels", "quantizer", "quantizer_config", "patch_size"):
        assert again.config[key] == bottleneck.config[key]
    assert again.summary()["bottleneck"]["quantizer"] == name
    z = latents()
    assert again.unpack(bottleneck.eval().pack(bottleneck.encode(z))) == again.encode(z)


def test_other_settings_that_decoding_reads_are_another_decoder():
    one, other = build("lfq").eval(), build("bsq").eval()
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="of one with other weights"):
        other.unpack(one.pack(one.encode(latents())))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_it_stays_in_float32(name):
    bottleneck = build(name).half().eval()
    floating = [part.dtype for part in bottleneck.inner.state_dict().values() if part.is_floating_point()]
    assert set(floating) <= {torch.float32}
    z = latents().half()
    assert bottleneck(z).latents.dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck(z).code.indices, bottleneck.encode(z.float()).indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_model_that_is_loaded_in_half_precision_has_the_same_codes(name, tmp_path):
    torch.manual_seed(0)
    config = {"quantizer": name, "quantizer_config": SMALL[name]}
    network = {"block_out_channels": (8, 8), "residual_channels": 4, "latent_channels": 6}
    model = AutoencoderDL(**network, bottleneck_type="external", bottleneck_config=config).eval()
    model.save_pretrained(tmp_path)
    z = latents()
    code = model.bottleneck.encode(z)
    for arguments in ({"dtype": torch.float16}, {"dtype": torch.bfloat16}, {}):
        loaded = AutoencoderDL.from_pretrained(tmp_path, **arguments).bottleneck
        assert loaded.encode(z) == code
        assert torch.equal(loaded.decode(code), model.bottleneck.decode(code))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("random_projection", {}, "one that can decode, got 'random_projection': RandomProjectionQuantizer gives"),
        ("latent_quantize", {}, "one that can decode, got 'latent_quantize': the indices of LatentQuantize"),
        ("ema", {}, "`quantizer` must be one of 'lfq', 'bsq'"),
        ("lfq", {"codebook_size": 500}, "`codebook_size` of 'lfq' must be a power of two, got 500"),
        ("lfq", {"dim": 8}, "`quantizer_config` of 'lfq' must hold some of codebook_size, .* got 'dim'"),
        ("sim_vq", {"codebook_size": "8"}, "`codebook_size` must be an integer from 2 to 65536, got '8'"),
        ("residual_fsq", {"levels": [2] * 16 + [2]}, "`levels` must be one or more integers"),
        ("residual_fsq", {"levels": [1024, 1024]}, "`levels` must have a product of at most 65536"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name, config, message):
    with pytest.raises(ValueError, match=message):
        ExternalQuantizerBottleneck(6, name, config)


def test_an_autoencoder_takes_it_by_name_and_learns(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderDL(
        backbone="residual",
        block_out_channels=(16,),
        bottleneck_type="external",
        bottleneck_config={"quantizer": "residual_lfq", "quantizer_config": {"num_quantizers": 3}},
    )
    noise = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(noise, scale_factor=4.0, mode="bilinear") * 2 - 1
    model.initialize(images)
    optimizer, errors = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(20):
        output = model.train()(images)
        error = F.mse_loss(output.sample, images)
        (error + output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(error.detach()))
    assert errors[-1] < errors[0]
    model.eval().save_pretrained(tmp_path)
    again = AutoencoderDL.from_pretrained(tmp_path)
    code = model.encode_to_code(images)
    assert code.levels == (512,) * 3 and again.bottleneck.unpack(model.bottleneck.pack(code)) == code


def test_without_the_library_only_this_bottleneck_is_missing():
    script = (
        "import sys; sys.modules['vector_quantize_pytorch'] = None\n"
        "from diffusers_lasers import ExternalQuantizerBottleneck, FSQBottleneck, ResidualVQBottleneck\n"
        "FSQBottleneck(6, (5,) * 6), ResidualVQBottleneck(6)\n"
        "try:\n    ExternalQuantizerBottleneck(6)\n"
        "except ImportError as error:\n    assert 'diffusers_lasers[quantizers]' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("quantizer", ["lfq", "bsq"])
@pytest.mark.parametrize("side", [1, 5])  # one site, and some
def test_without_an_entropy_loss_its_entropies_are_left_out(quantizer, side):
    torch.manual_seed(0)
    bottleneck = ExternalQuantizerBottleneck(4, quantizer, {"codebook_size": 16, "num_codebooks": 2}).train()
    assert bottleneck.config.quantizer_config["entropy_loss_weight"] == 0.0
    latents = torch.randn(1, 4, side, side).requires_grad_()
    output = bottleneck(latents)
    (gradient,) = torch.autograd.grad(output.loss + output.latents.square().sum(), latents)
    whole = copy.deepcopy(bottleneck.inner).train()
    whole.frac_per_sample_entropy = 1.0
    signals = latents.flatten(2).transpose(1, 2)
    quantized, _, loss = whole(signals)
    (expected,) = torch.autograd.grad(loss + quantized.square().sum(), latents)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(gradient, expected)
    assert loss > 0
