"""Steps that decode only the first slots of their codes: which slots, the same on every rank, and after a resume."""

import pytest
import torch

from diffusers_lasers import DictionaryBottleneck, IndexCode, ResidualVQBottleneck


MAKE = {
    "residual_vq": lambda share: ResidualVQBottleneck(6, num_codewords=24, depth=4, stage_dropout=share),
    "residual_vq, beam": lambda share: ResidualVQBottleneck(6, 24, 4, beam_size=4, stage_dropout=share),
    "dictionary": lambda share: DictionaryBottleneck(6, num_atoms=24, sparsity=4, sparsity_dropout=share),
    "dictionary, 8 bits": lambda share: DictionaryBottleneck(6, 24, 4, coefficient_bits=8, sparsity_dropout=share),
    "dictionary, projection": lambda share: DictionaryBottleneck(
        6, 24, 4, gradient="projection", sparsity_dropout=share
    ),
}


def latents(batch=3, seed=0):
    return torch.randn(batch, 6, 5, 4, generator=torch.Generator().manual_seed(seed))


def build(name, share=1.0):
    torch.manual_seed(0)
    bottleneck = MAKE[name](share)
    bottleneck.initialize(latents(16, seed=7), torch.Generator().manual_seed(0))
    return bottleneck


def first_slots(bottleneck, code, slots):
    if isinstance(code, IndexCode):
        return IndexCode(code.indices[..., :slots].contiguous(), code.levels[:slots], code.latent_size)
    return bottleneck.truncate(code, slots)


def kept(bottleneck, steps):
    return [bottleneck._kept_slots() for _ in range(steps)]


@pytest.mark.parametrize("name", MAKE)
def test_a_step_decodes_the_first_slots_and_its_code_is_whole(name):
    z, seen = latents(), set()
    for _ in range(8):
        bottleneck = build(name).train()
        for _ in range(len(seen)):
            bottleneck._kept_slots()
        slots = build(name).train()
        slots.load_state_dict(bottleneck.state_dict())
        slots = slots._kept_slots()
        reader = build(name).eval()
        reader.load_state_dict(bottleneck.state_dict())
        x = z.clone().requires_grad_()
        output = bottleneck(x)
        reader.load_state_dict(bottleneck.state_dict() if name.startswith("dictionary") else reader.state_dict())
        whole = reader.encode(z)
        assert torch.equal(output.code.indices, whole.indices)
        if name.startswith("residual"):
            decoded = reader.decode(first_slots(reader, whole, slots))
        else:  # refitted, then quantised: coefficients of the whole code are on the grid already
            exact = build(name).eval()
            exact.load_state_dict(reader.state_dict())
            exact.set_coefficient_bits(None)
            fewer = exact.truncate(exact.encode(z), slots)
            reader_code = reader._quantize(fewer.indices.flatten(0, 2), fewer.coefficients.flatten(0, 2))
            fewer.coefficients.copy_(reader_code.reshape(fewer.coefficients.shape))
            decoded = reader.decode(fewer)
        torch.testing.assert_close(output.latents.detach(), decoded, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.commitment_loss, (decoded - z).square().mean(), rtol=1e-4, atol=1e-5)
        (output.latents.square().sum() + output.loss).backward()
        assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
        seen.add((len(seen), slots))
    assert len({slots for _, slots in seen}) > 1


@pytest.mark.parametrize("name", ["residual_vq", "dictionary"])
def test_numbers_of_slots_are_drawn_at_equal_odds_with_the_stated_probability(name):
    draws = kept(build(name, 0.5).train(), 4000)
    assert abs(draws.count(None) / 4000 - 0.5) < 0.03
    for slots in (1, 2, 3, 4):
        assert abs(draws.count(slots) / 4000 - 0.125) < 0.02
    assert None not in kept(build(name, 1.0).train(), 100)


@pytest.mark.parametrize("name", ["residual_vq", "dictionary"])
def test_draws_follow_the_generator_of_the_start_and_go_on_after_loading(name, tmp_path):
    one, other = build(name).train(), build(name).train()
    assert kept(one, 40) == kept(other, 40)  # as on two ranks, which hold the same state
    one.save_pretrained(tmp_path)
    resumed = type(one).from_pretrained(tmp_path).train()
    torch.manual_seed(5)  # no draw reads the global state
    assert kept(resumed, 40) == kept(other, 40)
    another = MAKE[name](1.0)
    another.initialize(latents(16, seed=7), torch.Generator().manual_seed(1))
    assert kept(another.train(), 40) != kept(build(name).train(), 40)


@pytest.mark.parametrize("name", MAKE)
def test_evaluation_decodes_everything_and_the_default_has_no_state(name):
    bottleneck, z = build(name).eval(), latents()
    before = bottleneck.dropout_steps.clone()
    torch.testing.assert_close(bottleneck(z).latents, bottleneck.decode(bottleneck.encode(z)), rtol=1e-4, atol=1e-5)
    assert torch.equal(bottleneck.dropout_steps, before)
    plain = build(name, 0.0)
    assert "dropout_steps" not in plain.state_dict()  # models that were saved without it load
    data = plain.eval().pack(plain.encode(z))
    bottleneck.load_state_dict(plain.state_dict(), strict=False)
    assert bottleneck.unpack(data) == plain.unpack(data)  # decoding does not read it


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "1"])
def test_what_is_no_probability_is_refused(share):
    with pytest.raises(ValueError, match=r"`stage_dropout` must be a finite number in \[0, 1\]"):
        ResidualVQBottleneck(6, stage_dropout=share)
    with pytest.raises(ValueError, match=r"`sparsity_dropout` must be a finite number in \[0, 1\]"):
        DictionaryBottleneck(6, sparsity_dropout=share)
