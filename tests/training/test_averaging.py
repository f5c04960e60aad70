"""The average of a model: its recursion, buffers, the sphere, revived atoms, its state."""

import pytest
import torch

from diffusers_lasers import AutoencoderDL
from diffusers_lasers.training import ModelAverage


def model(kind="dictionary"):
    torch.manual_seed(0)
    sizes = {"num_atoms": 8, "sparsity": 2} if kind == "dictionary" else {"num_codewords": 8}
    shape = {"block_out_channels": (4, 4), "layers_per_block": 1, "residual_channels": 2, "latent_channels": 3}
    return AutoencoderDL(bottleneck_type=kind, bottleneck_config=sizes, **shape)


def move(network, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def test_parameters_and_buffers_follow_the_recursion():
    network = model("vq")
    average = ModelAverage(network, decay=0.5)
    expected = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for step in range(12):
        move(network, step)
        average.update(network)
        decay = min(0.5, (1 + step) / (10 + step))
        now = network.state_dict()
        expected = {name: decay * tensor + (1 - decay) * now[name].double() for name, tensor in expected.items()}
    assert average.updates == 12 and "bottleneck.codebook" in expected
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_atoms_stay_on_the_sphere_and_counters_are_copied():
    network = model()
    average = ModelAverage(network, decay=0.9)
    for step in range(3):
        move(network, step)
        average.update(network)
    norms = average.tensors["bottleneck.dictionary"].norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(8), rtol=1e-5, atol=0)
    assert average.tensors["bottleneck.scale_steps"] == 3


def test_revived_atoms_are_taken_as_they_are():
    network = model()
    average = ModelAverage(network, decay=0.9)
    move(network, 0)
    before = average.tensors["bottleneck.dictionary"].clone()
    columns = torch.arange(8) == 3
    average.reset_columns("bottleneck.dictionary", columns, network)
    after = average.tensors["bottleneck.dictionary"]
    assert torch.equal(after[:, 3], network.bottleneck.dictionary[:, 3])
    assert torch.equal(after[:, ~columns], before[:, ~columns])


def test_the_average_is_applied_and_taken_back():
    network = model()
    average = ModelAverage(network, decay=0.9)
    move(network, 0)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), average.applied(network):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, average.tensors[name])
        raise RuntimeError("inside")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_a_restored_average_goes_on_alike():
    network = model()
    first = ModelAverage(network, decay=0.9)
    move(network, 0)
    first.update(network)
    second = ModelAverage(model(), decay=0.9)
    second.load_state_dict(first.state_dict())
    move(network, 1)
    for average in (first, second):
        average.update(network)
    assert all(torch.equal(first.tensors[name], tensor) for name, tensor in second.tensors.items())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`decay`"):
        ModelAverage(model(), decay=1.0)
    with pytest.raises(ValueError, match="`state`"):
        ModelAverage(model()).load_state_dict(ModelAverage(model("vq")).state_dict())
