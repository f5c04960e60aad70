"""Losses of diffusion on indices: their parts by other computations, gradients, and a tiny model that learns."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    AutoencoderDL,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    CategoricalUNet2DOutput,
    ModelBasedVQCodec,
    UniformD3PMScheduler,
)
from diffusers_lasers.functional import index_to_number
from diffusers_lasers.functional.diffusion import add_gaussian_noise, make_betas
from diffusers_lasers.functional.diffusion.categorical import absorb, scramble
from diffusers_lasers.training import IndexDiffusionObjective


ALPHAS = (1 - make_betas("linear", 100, 1e-3, 0.1)).cumprod(dim=0).float()
GAUSSIAN = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1}
SCHEDULERS = {
    "categorical": CategoricalDDPMScheduler(num_codewords=16, **GAUSSIAN),
    "continuous": DDPMScheduler(**GAUSSIAN),
    "uniform": UniformD3PMScheduler(100, 16),
    "absorbing": AbsorbingD3PMScheduler(100, 16),
}


@pytest.fixture(scope="module")
def codec():
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return codec.fit(images, max_patches=500, iterations=5, progress=False)


class Oracle:
    """Answers with fixed logits or numbers."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, sample, timesteps, self_condition=None):
        return CategoricalUNet2DOutput(sample=self.answer)


def right_logits(codes, scale=100.0):
    return scale * torch.nn.functional.one_hot(codes, 16).movedim(-1, 2).float()


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_right_answer_costs_nothing(codec, gamma):
    codes = torch.randint(0, 16, (2, 4, 3, 3))
    objective = IndexDiffusionObjective("categorical", 16, SCHEDULERS["categorical"], codec, tau=0.1, snr_gamma=gamma)
    loss, parts = objective(Oracle(right_logits(codes)), codes)
    assert float(loss) < 1e-6 and parts["accuracy"] == 1
    assert set(parts) == {"loss", "image_error", "epsilon_error", "accuracy"}


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_the_weights_of_both_terms(codec, gamma):
    """Confident wrong answers make the soft code a certain one, so that both errors follow from it."""
    generator = torch.Generator().manual_seed(0)
    codes, wrong = torch.randint(0, 16, (2, 3, 4, 3, 3), generator=generator)
    timesteps = torch.tensor([0, 40, 99])
    alphas = ALPHAS[timesteps]
    objective = IndexDiffusionObjective(
        "categorical", 16, SCHEDULERS["categorical"], codec, image_weight=0.5, tau=0.1, snr_gamma=gamma
    )
    loss, _ = objective(Oracle(right_logits(wrong)), codes, timesteps)
    image = (codec.decode(wrong).sample - codec.decode(codes).sample).square().mean(dim=(1, 2, 3))
    snr = alphas / (1 - alphas)
    epsilon = snr * (index_to_number(wrong, 16) - index_to_number(codes, 16)).square().mean(dim=(1, 2, 3))
    weight = torch.ones(3) if gamma is None else snr.clamp_max(gamma)
    expected = (0.5 * weight * image + (weight if gamma is None else weight / snr) * epsilon).mean()
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)


def test_continuous_and_discrete_losses():
    codes = torch.randint(0, 16, (2, 4, 3, 3))
    noise = IndexDiffusionObjective("continuous", 16, SCHEDULERS["continuous"])
    torch.manual_seed(0)
    loss, _ = noise(Oracle(torch.zeros(2, 4, 3, 3)), codes, torch.tensor([3, 90]))
    torch.manual_seed(0)
    torch.testing.assert_close(loss, torch.randn(2, 4, 3, 3).square().mean())
    for kind in ("uniform", "absorbing"):
        objective = IndexDiffusionObjective(kind, 16, SCHEDULERS[kind])
        flat, _ = objective(Oracle(torch.zeros(2, 4, 16, 3, 3)), codes, torch.tensor([99, 99]))  # all hidden or mixed
        torch.testing.assert_close(flat, torch.tensor(16.0).log())
        assert float(objective(Oracle(right_logits(codes)), codes)[0]) < 1e-6
    means = [float(objective(Oracle(torch.zeros(2, 4, 16, 3, 3)), codes)[0]) for _ in range(400)]
    assert abs(sum(means) / 400 - 2.77) < 0.2  # hidden ones over their expected share


def test_cross_entropy_and_self_conditioning(codec):
    codes = torch.randint(0, 16, (2, 4, 3, 3))
    plain = IndexDiffusionObjective("categorical", 16, SCHEDULERS["categorical"], None, 0.0, "cross_entropy")
    loss, parts = plain(Oracle(torch.zeros(2, 4, 16, 3, 3)), codes)
    torch.testing.assert_close(loss, torch.tensor(16.0).log())
    assert "cross_entropy" in parts
    seen = []

    def denoiser(sample, timesteps, self_condition=None):
        seen.append(self_condition)
        return CategoricalUNet2DOutput(sample=right_logits(codes))

    IndexDiffusionObjective("categorical", 16, SCHEDULERS["categorical"], codec, self_conditioning=1.0)(
        denoiser, codes
    )
    assert seen[0] is None
    torch.testing.assert_close(seen[1], index_to_number(codes, 16))
    noisy = torch.tensor([[[[0.5]]]])
    estimate = IndexDiffusionObjective.estimate(torch.tensor([[[[0.1]]]]), noisy, torch.tensor([0.64]))
    torch.testing.assert_close(estimate, (noisy - 0.6 * 0.1) / 0.8)


@pytest.mark.parametrize("kind", ["categorical", "continuous", "uniform", "absorbing"])
def test_a_small_denoiser_learns_two_codes(codec, kind):
    torch.manual_seed(0)
    network = {"uniform": "discrete", "absorbing": "discrete"}.get(kind, kind)
    model = CategoricalUNet2DModel(
        4, 16, network, True, block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=16
    )
    data = torch.randint(0, 16, (2, 4, 2, 2))
    objective = IndexDiffusionObjective(kind, 16, SCHEDULERS[kind], codec, snr_gamma=5.0, self_conditioning=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(120):
        loss, _ = objective(model, data[torch.randint(0, 2, (16,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-15:]) < 0.7 * sum(losses[:15])


def test_gradients_of_soft_decoding_are_finite_differences(codec):
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 16, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 3, 8, 8)

    def value(logits):
        return (codec.decode_soft(logits.softmax(dim=2)).sample - target).double().square().sum()

    (gradient,) = torch.autograd.grad(value(logits), logits)
    direction = torch.randn_like(logits)
    step = 1e-2
    with torch.no_grad():
        difference = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=5e-3, atol=1e-2)


@pytest.mark.parametrize("kind, slots", [("vq", 1), ("residual_vq", 2)])
def test_autoencoders_with_indices_serve_too(kind, slots):
    config = {"num_codewords": 12} | ({"depth": 2} if kind == "residual_vq" else {})
    model = AutoencoderDL(
        bottleneck_type=kind, bottleneck_config=config, block_out_channels=(8, 8), residual_channels=4,
        layers_per_block=1, latent_channels=4,
    ).eval()  # fmt: skip
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert model.index_layout == (slots, 12, 2)
    codes = model.encode_indices(images)
    assert codes.shape == (2, slots, 8, 8)
    torch.testing.assert_close(model.decode_indices(codes), model(images).sample)
    with pytest.raises(ValueError, match="bottleneck_type"):
        AutoencoderDL(block_out_channels=(8, 8), residual_channels=4, layers_per_block=1).index_layout
    with pytest.raises(ValueError, match="as many codewords"):
        ModelBasedVQCodec.from_notation("VQ-{8-4-4}").index_layout


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"kind": "x"}, "kind"),
        ({"kind": "categorical"}, "codec"),
        ({"kind": "categorical", "image_weight": 0.0, "code_loss": "none"}, "nothing to minimise"),
        ({"kind": "continuous", "code_loss": "x"}, "code_loss"),
        ({"kind": "continuous", "tau": 0.0}, "tau"),
        ({"kind": "continuous", "self_conditioning": 2.0}, "self_conditioning"),
        ({"kind": "continuous", "scheduler": AbsorbingD3PMScheduler()}, "`scheduler` must be a DDPMScheduler"),
        ({"kind": "uniform", "scheduler": UniformD3PMScheduler(100, 8)}, "`scheduler` must have 16 codewords.*got 8"),
    ],
)
def test_bad_objectives_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        IndexDiffusionObjective(**{"num_codewords": 16, "scheduler": SCHEDULERS.get(arguments["kind"]), **arguments})


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_noise_is_the_schedulers(kind, monkeypatch):
    """What the denoiser sees is what `add_noise` gave, drawn as before schedulers did it."""
    codes, timesteps = torch.randint(0, 16, (3, 4, 5, 5)), torch.tensor([0, 40, 99])
    scheduler, given, seen = SCHEDULERS[kind], [], []
    own = scheduler.add_noise

    def add_noise(*arguments):
        given.append(own(*arguments))
        return given[-1]

    def denoiser(sample, timesteps):
        seen.append(sample)
        return CategoricalUNet2DOutput(
            sample=torch.zeros_like(sample) if kind == "continuous" else right_logits(codes)
        )

    monkeypatch.setattr(scheduler, "add_noise", add_noise)
    objective = IndexDiffusionObjective(kind, 16, scheduler, image_weight=0.0)
    torch.manual_seed(0)
    objective(denoiser, codes, timesteps)
    assert len(given) == 1 and seen[0] is given[0]
    torch.manual_seed(0)
    alphas = ALPHAS[timesteps] if kind in ("categorical", "continuous") else 1 - (timesteps + 1) / 100
    if kind == "uniform":
        expected = scramble(codes, alphas, 16)
    elif kind == "absorbing":
        expected = absorb(codes, alphas, 16)
    else:
        expected = add_gaussian_noise(index_to_number(codes, 16), torch.randn(codes.shape), alphas)
    if kind == "continuous":  # diffusers keeps its betas in single precision
        torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)
    else:
        assert torch.equal(seen[0], expected)


def test_nothing_but_the_schedulers_knows_the_schedule():
    root = Path(__file__).resolve().parents[2]
    for path in (
        root / "src/diffusers_lasers/training/objectives/index_diffusion.py",
        root / "examples/train_categorical_ddpm.py",
    ):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"make_betas|cumprod\(|arange|absorb\(|scramble\(|add_gaussian_noise", text), path.name
