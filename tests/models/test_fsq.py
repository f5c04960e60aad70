"""Finite scalar quantisation against vector-quantize-pytorch; `test_model_based_vq` loads it without."""

import pytest
import torch
from vector_quantize_pytorch import FSQ

from diffusers_lasers import FSQBottleneck
from diffusers_lasers.functional import latents_to_signals


@pytest.mark.parametrize("levels", [(3, 4, 7, 8), (5, 8, 6), (7,) * 6])
def test_numbers_and_gradients_are_those_of_vector_quantize_pytorch(levels):
    torch.manual_seed(0)
    reference = FSQ(levels=list(levels), dim=4, return_indices=False)
    torch.manual_seed(0)
    bottleneck = FSQBottleneck(4, levels)
    own = {key: value for key, value in bottleneck.state_dict().items() if key.startswith("quantizer.")}
    assert own.keys() == {f"quantizer.{key}" for key in reference.state_dict()}
    for key, value in reference.state_dict().items():  # the same draws, and so the same start of a training
        assert torch.equal(own[f"quantizer.{key}"], value), key

    latents = (3 * torch.randn(2, 4, 5, 6)).requires_grad_()
    output = bottleneck(latents)
    output.latents.square().sum().backward()
    again = latents.detach().requires_grad_()
    signals = latents_to_signals(again, 1)
    expected, _ = reference(signals.view(2, 30, 4))
    expected.square().sum().backward()
    assert torch.equal(latents_to_signals(output.latents, 1), expected.flatten(0, 1))
    torch.testing.assert_close(latents.grad, again.grad, rtol=0, atol=1e-6)
    for key, value in reference.named_parameters():
        parameter = bottleneck.get_parameter(f"quantizer.{key}")
        torch.testing.assert_close(parameter.grad, value.grad, rtol=1e-5, atol=1e-5)
    values = reference.quantize(reference.project_in(signals))
    half = torch.tensor([level // 2 for level in levels])
    indices = (values * half + half).round().long()
    assert torch.equal(output.code.indices.flatten(0, 2), indices)
    assert torch.equal(bottleneck.encode(latents).indices.flatten(0, 2), indices)


def test_projections_start_at_the_principal_axes_and_least_squares():
    torch.manual_seed(0)
    mixing = torch.randn(6, 6) * torch.tensor([4.0, 3.0, 2.0, 0.1, 0.1, 0.1])[:, None]
    latents = torch.einsum("bchw,cd->bdhw", torch.randn(4, 6, 16, 16), mixing) + 1.0
    bottleneck = FSQBottleneck(6, (15, 15, 15))
    error = (bottleneck.decode(bottleneck.encode(latents)) - latents).square().mean()
    bottleneck.initialize(latents)
    decoded = bottleneck.decode(bottleneck.encode(latents))
    started = (decoded - latents).square().mean()
    assert started < 0.1 * latents.var() < 0.2 * error
    # least squares: what is left over is orthogonal to the codes, and its mean is 0
    rest = latents_to_signals(latents - decoded, 1).double()
    codes = bottleneck.encode(latents).indices.flatten(0, 2).double()
    assert rest.mean(dim=0).abs().max() < 1e-4
    assert (codes.t() @ rest).abs().max() / len(rest) < 1e-3
    again = FSQBottleneck(6, (15, 15, 15))
    again.initialize(latents)
    assert torch.equal(again.decode(again.encode(latents)), decoded)  # no randomness
    wide = FSQBottleneck(2, (5, 5, 5))  # more levels than features
    wide.initialize(latents[:, :2], torch.Generator().manual_seed(0))
    assert torch.isfinite(wide.decode(wide.encode(latents[:, :2]))).all()
