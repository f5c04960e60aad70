"""Sharding, in two gloo processes and compared with one: what is cut and what stays whole, steps, states; and the same
functions without it."""

import copy
import functools
import math
import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from diffusers_lasers import AutoencoderDL, PatchDiscriminator
from diffusers_lasers.training import (
    AdversarialObjective,
    FullySharded,
    ModelAverage,
    gradient_norm,
    local_part,
    save_optimizer_whole,
    whole_tensor,
    write_whole,
)


STEPS = 3


def autoencoder(seed=0, backbone="light"):
    torch.manual_seed(seed)
    shape = {"block_out_channels": (8, 8), "layers_per_block": 1, "residual_channels": 3, "latent_channels": 3}
    if backbone == "diffusers":
        shape.update(norm_num_groups=4)
    return AutoencoderDL(
        backbone=backbone, bottleneck_type="dictionary", bottleneck_config={"num_atoms": 8, "sparsity": 2}, **shape
    ).train()


def discriminator(seed=1):
    torch.manual_seed(seed)
    return PatchDiscriminator(base_channels=4, num_layers=1, norm_type="batch").train()


def images(step, rows=slice(None)):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))[rows]


def train(network, sharded=None, rows=slice(None), steps=range(STEPS), optimizer=None, average=None):
    """Steps on two micro-batches each; gives the optimiser, the average and the gradients' norms."""
    if optimizer is None:
        # one operation on many parameters is the default on a GPU; asked for here, on a mixture of sharded and whole
        # ones
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3, foreach=True)
        average = ModelAverage(network, decay=0.5)
        if sharded is not None:
            save_optimizer_whole(optimizer)
    norms = []
    for step in steps:
        for micro_batch in (0, 100):
            batch = images(step + micro_batch, rows)
            output = network(batch)
            ((output.sample - batch).square().mean() + output.loss).div(2).backward()
        if sharded is not None:
            sharded.average_gradients()
        norms.append(gradient_norm(network.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        average.update(network)
    return optimizer, average, torch.stack(norms)


def keep(network):
    return [*network.bottleneck.parameters(), network.last_layer]


def cut(network):
    """Names of the sharded parameters, each with the numbers of its elements on this rank and in all."""
    named = network.named_parameters()
    return {name: (local_part(p).numel(), p.numel()) for name, p in named if isinstance(p, DTensor)}


def generator_term(model, structure=None):
    """The term, its weight, the sample's gradient, and the gradients that the discriminator got: none."""
    objective = AdversarialObjective(model, adaptive=True, structure=structure)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 1)
    sample = layer(images(50))
    sample.retain_grad()
    term, parts = objective.generator_term(sample, (sample - images(51)).square().mean(), layer.weight, 1)
    term.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {"term": term.detach(), "gradient": sample.grad, "weight": parts["adversarial_weight"], "leaked": gradients}


def worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    rows = slice(2 * rank, 2 * rank + 2)
    for backbone in ("light", "diffusers"):
        network = autoencoder(seed=rank, backbone=backbone)  # rank 1 begins elsewhere, and gets rank 0's weights
        sharded = FullySharded(network, keep(network), reshard_after_forward=backbone == "light")
        start = sharded.whole()
        optimizer, average, norms = train(network, sharded, rows)
        state = {"model": {n: t.clone() for n, t in sharded.whole().state_dict().items()}}
        state.update(copy.deepcopy({"optimizer": optimizer.state_dict(), "average": average.state_dict()}))
        moment = next(v for values in optimizer.state.values() for v in values.values() if isinstance(v, DTensor))
        with average.applied(network):
            averaged = sharded.whole().state_dict()
        back = sharded.whole().state_dict()
        train(network, sharded, rows, range(STEPS, STEPS + 2), optimizer, average)
        once = sharded.whole().state_dict()
        sharded.load_state_dict(state["model"])
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it keeps some of the tensors
        average.load_state_dict(state["average"])
        resumed = sharded.whole().state_dict()
        train(network, sharded, rows, range(STEPS, STEPS + 2), optimizer, average)
        found[backbone] = {
            **state,
            **{"start": start.state_dict(), "cut": cut(network), "norms": norms, "averaged": averaged, "back": back},
            **{"once": once, "resumed": resumed, "again": sharded.whole().state_dict()},
            "mode": sharded.whole().training,
            "moment": (local_part(moment).numel(), moment.numel()),
        }
        try:
            sharded.load_state_dict({"x": torch.zeros(1)})
        except ValueError as error:
            found[backbone]["error"] = str(error)
    model = discriminator()
    sharded = FullySharded(model)
    found["discriminator"] = {"cut": cut(model), **generator_term(model, sharded.structure)}
    found["discriminator"]["buffers"] = dict(model.named_buffers())
    try:
        network = autoencoder()
        FullySharded(network, network.parameters())
    except ValueError as error:
        found["nothing left"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, in_two_processes):
    return in_two_processes(worker, tmp_path_factory.mktemp("ranks"))


@functools.cache
def single(backbone):
    """The same steps in this process: network, optimiser, average, norms."""
    network = autoencoder(backbone=backbone)
    return (network, *train(network))


def assert_equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda text: f"{name}: {text}", **tolerance)


EXACT = {"rtol": 0, "atol": 0}
ROUNDING = {"rtol": 1e-4, "atol": 2e-6}
BACKBONES = pytest.mark.parametrize("backbone", ["light", "diffusers"])


@BACKBONES
def test_all_but_the_bottleneck_and_the_last_layer_is_cut(ranks, backbone):
    network = autoencoder(backbone=backbone)
    shares = [found[backbone]["cut"] for found in ranks]
    last = "decoder.up.0" if backbone == "light" else "decoder.conv_out"
    names = {name for name, _ in network.named_parameters()}
    assert names - set(shares[0]) == {"bottleneck.dictionary", f"{last}.weight", f"{last}.bias"}
    assert getattr(network.get_submodule(last), "weight") is network.last_layer
    for name, (here, total) in shares[0].items():
        there = shares[1][name][0]
        assert here + there == total and (here < total or network.get_parameter(name).shape[0] == 1), name
    for found in ranks:
        assert 0 < found[backbone]["moment"][0] < found[backbone]["moment"][1]


@BACKBONES
def test_steps_on_half_the_batch_equal_those_of_one_process_on_the_whole(ranks, backbone):
    for found in ranks:
        assert_equal(found[backbone]["start"], autoencoder(backbone=backbone).state_dict(), **EXACT)
        assert found[backbone]["mode"] is True
    network, _, average, norms = single(backbone)
    for found in ranks:
        torch.testing.assert_close(found[backbone]["norms"], norms, rtol=1e-5, atol=0)
        assert_equal(found[backbone]["model"], network.state_dict(), **ROUNDING)
        assert_equal(found[backbone]["average"]["tensors"], average.tensors, **ROUNDING)
        assert_equal(found[backbone]["averaged"], average.tensors, **ROUNDING)
        assert_equal(found[backbone]["back"], found[backbone]["model"], **EXACT)


@BACKBONES
def test_states_are_whole_and_repeat_the_steps_that_follow(ranks, backbone):
    expected = single(backbone)[1].state_dict()
    for found in ranks:
        state = found[backbone]["optimizer"]
        assert state["param_groups"] == expected["param_groups"] and state["state"].keys() == expected["state"].keys()
        for index, moments in expected["state"].items():
            assert not any(isinstance(value, DTensor) for value in state["state"][index].values())
            assert_equal(state["state"][index], moments, **ROUNDING)
        assert_equal(found[backbone]["resumed"], found[backbone]["model"], **EXACT)
        assert_equal(found[backbone]["again"], found[backbone]["once"], **EXACT)
        moved = (
            found[backbone]["once"]["encoder.conv_out.weight"] - found[backbone]["model"]["encoder.conv_out.weight"]
        )
        assert moved.abs().max() > 1e-4
        assert found[backbone]["error"].startswith("`state` must hold the tensors of this model")


def test_a_state_of_two_processes_goes_on_in_one(ranks):
    network, found = autoencoder(), ranks[0]["light"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)
    network.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    train(network, steps=range(STEPS, STEPS + 2), optimizer=optimizer, average=ModelAverage(network))
    assert_equal(network.state_dict(), found["once"], **ROUNDING)


def test_the_generator_sees_the_whole_discriminator_as_a_constant(ranks):
    model = discriminator()
    expected = generator_term(model)
    for found in (found["discriminator"] for found in ranks):
        assert set(found["cut"]) == {name for name, _ in model.named_parameters()}
        assert found["leaked"] == expected["leaked"] == []
        for name in ("term", "gradient", "weight"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
        assert_equal(found["buffers"], dict(model.named_buffers()), rtol=1e-5, atol=1e-7)


def test_what_cannot_be_sharded_is_refused(ranks):
    assert all(found["nothing left"].startswith("`keep` must leave some parameters") for found in ranks)
    with pytest.raises(ValueError, match="process group"):
        FullySharded(autoencoder())


def test_without_sharding_tensors_are_treated_as_they_are():
    parameter = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
    other = torch.nn.Parameter(torch.tensor([[2.0]]))
    parameter.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    assert gradient_norm([parameter, other, torch.nn.Parameter(torch.zeros(1))]).item() == math.sqrt(25.0)
    for function in (whole_tensor, local_part):
        assert function(parameter).data_ptr() == parameter.data_ptr() and not function(parameter).requires_grad
    write_whole(parameter, torch.tensor([5.0, 6.0]))
    assert parameter.tolist() == [5.0, 6.0]
    with pytest.raises(ValueError, match=r"`value` must have shape \(2,\), got \(1,\)"):
        write_whole(parameter, torch.zeros(1))
