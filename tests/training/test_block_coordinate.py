"""The dictionary's update without a learning rate, in training: against float64 algebra, over ranks, resumed."""

import os

import pytest
import torch

from diffusers_lasers import DictionaryBottleneck
from diffusers_lasers.functional.dictionary import forgetting_factor
from diffusers_lasers.training import BlockCoordinateUpdate, DictionaryUpkeep


CHANNELS, ATOMS, SPARSITY = 5, 12, 2


def make(memory=500, **arguments):
    torch.manual_seed(0)
    bottleneck = DictionaryBottleneck(CHANNELS, num_atoms=ATOMS, sparsity=SPARSITY).train()
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    update = BlockCoordinateUpdate(bottleneck, memory=memory)
    return bottleneck, DictionaryUpkeep(bottleneck, optimizer, block_coordinate=update, revive_every=0, **arguments)


def latents_of(step, batch=6):
    return torch.randn(batch, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(step))


def take_step(bottleneck, upkeep, latents):
    output = bottleneck(latents)
    upkeep.before_step()
    upkeep.after_step(output.code, latents)
    return output


@pytest.mark.parametrize("memory", [None, 3])
def test_statistics_and_atoms_follow_the_equations(memory):
    bottleneck, upkeep = make(memory=memory)
    A = torch.zeros(ATOMS, ATOMS, dtype=torch.float64)
    B = torch.zeros(CHANNELS, ATOMS, dtype=torch.float64)
    for step in range(1, 7):
        latents = latents_of(step)
        dictionary = bottleneck.dictionary.detach().double()
        code = take_step(bottleneck, upkeep, latents).code
        z = latents.permute(0, 2, 3, 1).reshape(-1, CHANNELS).double()
        gamma = torch.zeros(len(z), ATOMS, dtype=torch.float64)
        gamma.scatter_add_(1, code.indices.flatten(0, 2).clamp(min=0), code.coefficients.flatten(0, 2).double())
        beta = forgetting_factor(min(step, memory or step), len(z)) if step > 1 else 0.0
        A, B = beta * A + gamma.T @ gamma / len(z), beta * B + z.T @ gamma / len(z)
        for j in range(ATOMS):  # eqs 27, 28
            if A[j, j] > 0:
                atom = (B[:, j] - dictionary @ A[:, j]) / A[j, j] + dictionary[:, j]
                dictionary[:, j] = atom / atom.norm()
        torch.testing.assert_close(bottleneck.dictionary.double(), dictionary, rtol=0, atol=2e-5)


def test_it_learns_faster_than_it_forgets():
    bottleneck, upkeep = make()
    torch.manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(CHANNELS, 4), dim=0)  # signals of four atoms

    def signals(seed):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(8, 4, 4, 4, generator=generator) * (torch.rand(8, 4, 4, 4, generator=generator) < 0.3)
        return torch.einsum("fk,bkhw->bfhw", planted, weights)

    losses = [float(take_step(bottleneck, upkeep, signals(step)).codebook_loss) for step in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    assert bottleneck.dictionary.grad is None and not bottleneck.dictionary.requires_grad


def test_micro_batches_count_as_one_batch():
    (whole, first), (split, second) = make(), make()
    latents = latents_of(0, batch=8)
    take_step(whole, first, latents)
    halves = latents.chunk(2)
    codes = [split(half).code for half in halves]
    second.observe(codes[0], halves[0])
    second.after_step(codes[1], halves[1])
    torch.testing.assert_close(split.dictionary, whole.dictionary, rtol=1e-5, atol=1e-6)


def test_revived_atoms_lose_their_statistics():
    bottleneck, upkeep = make()
    upkeep.revive_every = 2
    masks = []
    upkeep.on_revival = masks.append
    dead = torch.tensor([3, 8])
    for step in range(2):
        with torch.no_grad():
            bottleneck.dictionary[:, dead] = 0.0
        take_step(bottleneck, upkeep, latents_of(step))
    assert masks[0].sum() == 1 and masks[0][dead].any()
    statistics = upkeep.block_coordinate.statistics
    revived = int(masks[0].nonzero())
    assert statistics.A[revived].abs().sum() == statistics.A[:, revived].abs().sum() == 0
    assert statistics.B[:, revived].abs().sum() == 0 and statistics.A.abs().sum() > 0
    assert bottleneck.dictionary[:, revived].norm().item() == pytest.approx(1, abs=1e-5)


def test_a_resumed_run_is_bitwise_the_same():
    (whole, first), (resumed, second) = make(), make()
    for step in range(4):
        take_step(whole, first, latents_of(step))
    for step in range(2):
        take_step(resumed, second, latents_of(step))
    other, third = make()
    other.load_state_dict(resumed.state_dict())
    third.load_state_dict(second.state_dict())
    for step in range(2, 4):
        take_step(other, third, latents_of(step))
    assert torch.equal(other.dictionary, whole.dictionary)


def test_a_state_of_the_other_kind_is_refused():
    bottleneck, upkeep = make()
    plain = DictionaryUpkeep(bottleneck, torch.optim.Adam([torch.zeros(1, requires_grad=True)]))
    with pytest.raises(ValueError, match="same kind of update"):
        upkeep.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="`memory`"):
        BlockCoordinateUpdate(bottleneck, memory=0)


def _rank(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    bottleneck, upkeep = make()
    for step in range(3):
        take_step(bottleneck, upkeep, latents_of(step, batch=8).chunk(2)[rank])
    torch.save(bottleneck.dictionary, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_half_the_batch_equal_one_with_the_whole(in_two_processes, tmp_path):
    first, second = in_two_processes(_rank, tmp_path)
    bottleneck, upkeep = make()
    for step in range(3):
        take_step(bottleneck, upkeep, latents_of(step, batch=8))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, bottleneck.dictionary, rtol=1e-4, atol=1e-5)
