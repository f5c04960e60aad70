"""Models on a GPU: the codes of the CPU, half precision, no wait of the host in a training step. Skipped without a
GPU."""

import pytest
import torch
from torch.nn import functional as F

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    ModelBasedVQCodec,
    PatchDiscriminator,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.training import AdversarialObjective, BlockCoordinateUpdate, DictionaryUpkeep, ModelAverage


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test_cuda")
BOTTLENECKS = {
    "dictionary": lambda: DictionaryBottleneck(6, num_atoms=24, sparsity=3),
    "dictionary, ols": lambda: DictionaryBottleneck(6, num_atoms=24, sparsity=3, pursuit="ols"),
    "dictionary, 8 bits": lambda: DictionaryBottleneck(6, num_atoms=24, sparsity=3, coefficient_bits=8),
    "dictionary, projection": lambda: DictionaryBottleneck(6, num_atoms=24, sparsity=3, gradient="projection"),
    "dictionary, patches": lambda: DictionaryBottleneck(6, num_atoms=48, sparsity=3, patch_size=2),
    "vq": lambda: VectorQuantizerBottleneck(6, num_codewords=24),
    "residual vq": lambda: ResidualVQBottleneck(6, num_codewords=24, depth=3),
    "residual vq, beam": lambda: ResidualVQBottleneck(6, num_codewords=24, depth=3, beam_size=4),
    "fsq": lambda: FSQBottleneck(6, levels=(5,) * 6),
    "entropy scalar": lambda: EntropyScalarBottleneck(6, rate_weight=1e-2),
}
MODELS = {"dictionary": {"num_atoms": 32, "sparsity": 3}, "vq": {"num_codewords": 32}, "fsq": {"levels": (5,) * 8}}


def latents(batch=16, size=8, channels=6):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def images(batch=4, size=32):
    noise = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.avg_pool2d(noise, 3, stride=1, padding=1)


@pytest.fixture(params=sorted(BOTTLENECKS))
def bottleneck(request):
    torch.manual_seed(0)
    made = BOTTLENECKS[request.param]()
    made.initialize(latents(), generator=torch.Generator().manual_seed(0))
    return made.eval()


def test_codes_are_those_of_the_cpu_and_decode_alike(bottleneck):
    z, code = latents(), bottleneck.encode(latents())
    decoded, data = bottleneck.decode(code), bottleneck.pack(code)
    bottleneck.cuda()
    got = bottleneck.encode(z.cuda())
    assert (got.indices.cpu() == code.indices).all(dim=-1).float().mean() > 0.99
    torch.testing.assert_close(bottleneck.decode(code.to("cuda")).cpu(), decoded, rtol=1e-4, atol=1e-5)
    # bytes written on the CPU are read on the GPU
    torch.testing.assert_close(bottleneck.decode(bottleneck.unpack(data)).cpu(), decoded, rtol=1e-4, atol=1e-5)
    again = bottleneck.unpack(bottleneck.pack(got))
    assert again.indices.is_cuda
    torch.testing.assert_close(bottleneck.decode(again), bottleneck.decode(got))


def test_choices_by_a_prior_on_the_cpu_are_those_of_the_cpu(bottleneck):
    if bottleneck.slot_scales is not None and bottleneck.coefficient_bits is None:
        pytest.skip("float coefficients have no choice")
    z = latents()
    prior = FactorizedPrior.from_coder(bottleneck, contexts=False).fit(bottleneck.encode(z))
    code = bottleneck.encode(z, 3e-3, prior)
    got = bottleneck.cuda().encode(z.cuda(), 3e-3, prior)
    assert got.indices.is_cuda and (got.indices.cpu() == code.indices).all(dim=-1).float().mean() > 0.99


def test_first_symbols_are_those_of_the_cpu(bottleneck):
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    bottleneck.cuda().initialize(latents().cuda(), generator=torch.Generator().manual_seed(0))
    error = (bottleneck(latents().cuda()).latents.cpu() - latents()).square().mean()
    bottleneck.cpu().load_state_dict(before)
    torch.testing.assert_close(error, (bottleneck(latents()).latents - latents()).square().mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_host_never_waits_in_training(bottleneck, dtype, never_waiting):
    bottleneck.cuda().train()
    z = latents().cuda().requires_grad_()

    def step():
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            output = bottleneck(z if dtype is None else z.to(dtype))
        (output.latents.float().square().mean() + output.loss).backward()
        return output

    step()
    with never_waiting():
        output = step()
    assert output.latents.isfinite().all() and output.loss.dtype == torch.float32 and z.grad.isfinite().all()
    assert output.latents.dtype == (dtype or torch.float32)


def test_scalar_quantisers_fit_and_code():
    quantizer = ScalarQuantizerBottleneck(6, bits=4, transform="klt").cuda()
    quantizer.fit(latents().cuda())
    on_cpu = ScalarQuantizerBottleneck(6, bits=4, transform="klt")
    on_cpu.fit(latents())
    got, expected = quantizer.eval()(latents().cuda()).latents.cpu(), on_cpu.eval()(latents()).latents
    torch.testing.assert_close((got - latents()).norm(), (expected - latents()).norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_models(name, dtype, tmp_path):
    torch.manual_seed(0)
    model = AutoencoderDL(bottleneck_type=name, bottleneck_config=MODELS[name], latent_channels=8).eval()
    model.bottleneck.initialize(model.encode(images(16)).latents, torch.Generator().manual_seed(0))
    expected = model(images()).sample
    model.save_pretrained(tmp_path)
    model = AutoencoderDL.from_pretrained(tmp_path, torch_dtype=dtype).to("cuda")
    assert {parameter.dtype for parameter in model.bottleneck.parameters()} <= {torch.float32}
    output = model(images().cuda().to(dtype))
    assert output.sample.dtype == dtype and output.sample.isfinite().all()
    error = (output.sample.float().cpu() - expected).square().mean() / expected.var()
    assert error < 0.05
    code = model.encode_to_code(images().cuda().to(dtype))
    assert model.decode_from_code(code).sample.isfinite().all()
    model.enable_tiling()
    assert model(images(1, 64).cuda().to(dtype)).sample.isfinite().all()


@pytest.mark.parametrize("block_coordinate", [False, True])
def test_a_whole_adversarial_step_without_waiting(block_coordinate, never_waiting):
    torch.manual_seed(0)
    model = AutoencoderDL(bottleneck_config={"num_atoms": 32, "sparsity": 3}, latent_channels=8).cuda().train()
    judge = PatchDiscriminator(base_channels=8, num_layers=2, norm_type="batch").cuda().train()
    batch = images(8).cuda()
    with torch.no_grad():
        model.bottleneck.initialize(model.encode(batch).latents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    judges = torch.optim.AdamW(judge.parameters(), lr=1e-4, fused=True)
    update = BlockCoordinateUpdate(model.bottleneck) if block_coordinate else None
    upkeep = DictionaryUpkeep(model.bottleneck, optimizer, revive_every=2, block_coordinate=update)
    objective, average = AdversarialObjective(judge), ModelAverage(model, decay=0.9)

    def step(number):
        with torch.autocast("cuda", torch.bfloat16):
            output = model(batch)
        reconstruction = F.l1_loss(output.sample.float(), batch)
        with torch.autocast("cuda", torch.bfloat16):
            term, _ = objective.generator_term(output.sample, reconstruction, model.last_layer, number)
        (reconstruction + output.loss + term).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=False)
        upkeep.before_step()
        optimizer.step()
        upkeep.after_step(output.code, output.latents)
        optimizer.zero_grad()
        judges.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = objective.discriminator_term(batch, output.sample)
        loss.backward()
        judges.step()
        average.update(model)

    for number in range(3):
        step(number)
    with never_waiting():
        for number in range(3, 7):
            step(number)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    lengths = model.bottleneck.dictionary.norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("notation", ["VQ-{6-4-4}", "PQ-{16-4-4}", "OPQ-{16-4-4}", "RQ-{12-4-4}"])
def test_the_codec(notation):
    codec = ModelBasedVQCodec.from_notation(notation, patch_size=4, codebook_bits=4)
    codec.fit(images(8, 48), max_patches=3000, iterations=8, progress=False)
    expected = codec.encode(images(2, 45))
    decoded = codec.decode(expected.codes, expected.image_size).sample
    codec.cuda()
    output = codec.encode(images(2, 45).cuda())
    assert output.codes.is_cuda and (output.codes.cpu() == expected.codes).float().mean() > 0.995
    torch.testing.assert_close(
        codec.decode(expected.codes.cuda(), expected.image_size).sample.cpu(), decoded, rtol=1e-4, atol=1e-5
    )
    half = codec.half().decode(expected.codes.cuda(), expected.image_size).sample
    torch.testing.assert_close(half.float().cpu(), decoded, rtol=0, atol=0.01)
