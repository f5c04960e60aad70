"""Reductions over ranks, alone and in two gloo processes; bottlenecks whose statistics they reduce."""

import os

import pytest
import torch
import torch.distributed as dist

from diffusers_lasers import DictionaryBottleneck, ResidualVQBottleneck
from diffusers_lasers.utils import distributed
from diffusers_lasers.utils.distributed import (
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    broadcast,
    rank_and_world_size,
)


def latents(seed):
    return torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(seed))


def build():
    torch.manual_seed(0)
    return {
        "dictionary": DictionaryBottleneck(6, num_atoms=24, sparsity=3),
        "residual_vq": ResidualVQBottleneck(6, num_codewords=12, depth=2, decay=0.5, revive_threshold=0.0),
    }


def worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    summed = all_reduce_sum(torch.tensor([1.0 + rank]))
    sent = broadcast(torch.tensor([10.0 * rank]), src=1)
    largest = all_reduce_max(torch.tensor([1 - rank, rank * 7]))
    gathered = all_gather(torch.tensor([[rank, 5], [rank, 6]]))
    states = {"gathered": gathered, "summed": summed, "sent": sent, "largest": largest, "rank": rank_and_world_size()}
    for name, bottleneck in build().items():
        bottleneck.initialize(latents(seed=100 + rank), generator=torch.Generator().manual_seed(rank))
        states[f"{name} initial"] = {k: v.clone() for k, v in bottleneck.state_dict().items()}
        bottleneck.train()(latents(seed=rank))
        states[name] = bottleneck.state_dict()
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, in_two_processes):
    return in_two_processes(worker, tmp_path_factory.mktemp("ranks"))


def test_without_a_process_group_nothing_changes():
    tensor = torch.tensor([3.0])
    assert all_reduce_sum(tensor) is tensor and broadcast(tensor) is tensor and tensor.item() == 3.0
    assert all_gather(tensor) is tensor
    assert all_reduce_max(tensor) is tensor and tensor.item() == 3.0 and rank_and_world_size() == (0, 1)


def test_sum_maximum_and_broadcast(ranks):
    for states in ranks:
        assert states["summed"].item() == 3.0 and states["sent"].item() == 10.0
        assert states["largest"].tolist() == [1, 7]
        assert states["gathered"].tolist() == [[0, 5], [0, 6], [1, 5], [1, 6]]
    assert [states["rank"] for states in ranks] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("name", ["dictionary initial", "residual_vq initial", "dictionary", "residual_vq"])
def test_ranks_agree(ranks, name):
    for key, value in ranks[0][name].items():
        torch.testing.assert_close(value, ranks[1][name][key], rtol=0, atol=0, msg=key)


def test_two_ranks_equal_one_process_with_both_batches(ranks):
    both = torch.cat([latents(seed=0), latents(seed=1)])
    alone = build()["residual_vq"]
    alone.load_state_dict(ranks[0]["residual_vq initial"])
    alone.train()(both)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(value, ranks[0]["residual_vq"][key], rtol=1e-5, atol=1e-5, msg=key)


def test_the_coefficient_scale_is_that_of_both_batches(ranks):
    alone = build()["dictionary"]
    alone.load_state_dict(ranks[0]["dictionary initial"])
    alone.train()(torch.cat([latents(seed=0), latents(seed=1)]))
    assert torch.equal(alone.coefficient_scale, ranks[0]["dictionary"]["coefficient_scale"])
    assert not torch.equal(alone.coefficient_scale, ranks[0]["dictionary initial"]["coefficient_scale"])


def test_settling_lets_other_threads_run_and_costs_one_process_nothing(monkeypatch):
    slept = []
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    distributed.wait_after_collectives(0.3)
    assert slept == []
    monkeypatch.setattr(distributed, "_active", lambda: True)
    distributed.wait_after_collectives(0.3)
    assert slept == [0.3]
