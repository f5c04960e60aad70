"""The dictionary around an optimiser step: sphere, revival, resumption, ranks."""

import math

import pytest
import torch

from diffusers_lasers import DictionaryBottleneck, IdentityBottleneck, VectorQuantizerBottleneck
from diffusers_lasers.training import DictionaryUpkeep


CHANNELS, ATOMS, SPARSITY = 6, 16, 2


def make(seed=0, **arguments):
    """A bottleneck in training, its optimiser after one step that filled the moments, and the upkeep."""
    torch.manual_seed(seed)
    bottleneck = DictionaryBottleneck(latent_channels=CHANNELS, num_atoms=ATOMS, sparsity=SPARSITY).train()
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=0.05)
    return bottleneck, optimizer, DictionaryUpkeep(bottleneck, optimizer, **arguments)


def latents_of(step, batch=4, rank=0):
    return torch.randn(batch, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(7000 + 1000 * rank + step))


def take_step(bottleneck, optimizer, upkeep, latents):
    output = bottleneck(latents)
    output.loss.backward()
    upkeep.before_step()
    optimizer.step()
    upkeep.after_step(output.code, latents)
    optimizer.zero_grad()
    return output


def bury(bottleneck, dead):
    """Makes atoms that no pursuit can choose."""
    with torch.no_grad():
        bottleneck.dictionary[:, dead] = 0.0


def test_gradient_is_projected_on_the_tangent_space():
    bottleneck, _, upkeep = make()
    gradient = torch.randn_like(bottleneck.dictionary)
    bottleneck.dictionary.grad = gradient.clone()
    upkeep.before_step()
    projected, atoms = bottleneck.dictionary.grad, bottleneck.dictionary.detach()
    torch.testing.assert_close((projected * atoms).sum(dim=0), torch.zeros(ATOMS), atol=1e-6, rtol=0)
    removed = gradient - projected  # parallel to the atom
    torch.testing.assert_close(removed, atoms * (atoms * gradient).sum(dim=0), atol=1e-6, rtol=0)


def test_the_dictionary_moves_and_stays_on_the_sphere():
    bottleneck, optimizer, upkeep = make()
    before = bottleneck.dictionary.detach().clone()
    for step in range(5):
        take_step(bottleneck, optimizer, upkeep, latents_of(step))
        norms = bottleneck.dictionary.detach().norm(dim=0)
        torch.testing.assert_close(norms, torch.ones(ATOMS), atol=1e-6, rtol=0)
    used = upkeep.counts > 0
    assert used.any() and ((bottleneck.dictionary - before).norm(dim=0)[used] > 1e-3).all()


def test_counts_are_those_of_the_codes():
    bottleneck, optimizer, upkeep = make()
    expected = torch.zeros(ATOMS, dtype=torch.int64)
    for step in range(3):
        expected += take_step(bottleneck, optimizer, upkeep, latents_of(step)).code.usage_counts()[0]
    code = bottleneck.encode(latents_of(9))
    upkeep.observe(code, latents_of(9))
    assert torch.equal(upkeep.counts, expected + code.usage_counts()[0])


def test_dead_atoms_are_revived_with_clean_moments():
    bottleneck, optimizer, upkeep = make(revive_every=3, revive_fraction=0.2, jitter=0.0)
    dead = torch.tensor([3, 8])
    for step in range(3):
        bury(bottleneck, dead)
        if step == 2:
            before = bottleneck.dictionary.detach().clone()
            for name in ("exp_avg", "exp_avg_sq"):
                assert (optimizer.state[bottleneck.dictionary][name].abs().sum(dim=0) > 0).any()
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[bottleneck.dictionary][name][:, dead] = 1.0
        used = upkeep.counts.clone()
        take_step(bottleneck, optimizer, upkeep, latents_of(step))
    assert (used[dead] == 0).all() and (used.sum() > 0)
    atoms = bottleneck.dictionary.detach()
    signals = torch.nn.functional.normalize(bottleneck.signals(latents_of(2)), dim=1)
    similarity = (signals @ atoms[:, dead]).amax(dim=0)
    torch.testing.assert_close(similarity, torch.ones(2), atol=1e-5, rtol=0)  # each is a signal of that batch
    assert not torch.allclose(atoms[:, 3], atoms[:, 8])
    assert (before[:, dead] == 0).all() and upkeep.revived == 2 and (upkeep.counts == 0).all()
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[bottleneck.dictionary][name]
        alive = [k for k in range(ATOMS) if k not in dead]
        assert (moment[:, dead] == 0).all() and (moment[:, alive] != 0).any()


def test_moments_of_8_bits_are_refused_and_not_set_to_their_lowest_number():
    bottleneck, optimizer, upkeep = make(revive_every=1)
    take_step(bottleneck, optimizer, upkeep, latents_of(0))
    state = optimizer.state[bottleneck.dictionary]
    state["state1"] = torch.full_like(bottleneck.dictionary, 127, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must keep the dictionary's moments as floats, got torch.uint8"):
        upkeep.after_step(bottleneck.encode(latents_of(1)), latents_of(1))
    assert (state["state1"] == 127).all()


def test_an_event_revives_at_most_its_share():
    bottleneck, optimizer, upkeep = make(revive_every=1, revive_fraction=0.25)
    dead = torch.arange(4, ATOMS)
    bury(bottleneck, dead)
    take_step(bottleneck, optimizer, upkeep, latents_of(0))
    revived = bottleneck.dictionary.detach().norm(dim=0)[dead] > 0.5
    assert revived.sum() == 4 == upkeep.revived


@pytest.mark.parametrize("arguments", [{"revive_every": 0}, {"revive_every": 1, "revive_fraction": 0.0}])
def test_revival_can_be_turned_off(arguments):
    bottleneck, optimizer, upkeep = make(**arguments)
    bury(bottleneck, torch.tensor([5]))
    take_step(bottleneck, optimizer, upkeep, latents_of(0))
    assert bottleneck.dictionary.detach()[:, 5].norm() == 0 and upkeep.revived == 0


def test_signals_that_the_dictionary_explains_badly_come_first():
    bottleneck, optimizer, upkeep = make(revive_every=1, revive_fraction=1 / ATOMS, jitter=0.0)
    with torch.no_grad():  # the dictionary spans the first five axes, one site lies on the sixth
        bottleneck.dictionary.zero_()
        bottleneck.dictionary[:5, :5] = torch.eye(5)
    latents = torch.zeros(1, CHANNELS, 4, 4)
    latents[0, 0] = 1.0
    latents[0, :, 2, 1] = torch.tensor([0.0, 0, 0, 0, 0, 1])
    upkeep.after_step(bottleneck.encode(latents), latents)
    assert upkeep.revived == 1
    torch.testing.assert_close(bottleneck.dictionary.detach()[5].abs().amax(), torch.tensor(1.0))


def test_state_round_trip_continues_exactly():
    runs = []
    for stop in (None, 3):
        bottleneck, optimizer, upkeep = make(revive_every=2, revive_fraction=0.5)
        for step in range(6):
            if step == stop:
                saved = bottleneck.state_dict(), optimizer.state_dict(), upkeep.state_dict()
                bottleneck, optimizer, upkeep = make(seed=1, revive_every=2, revive_fraction=0.5)
                for part, state in zip((bottleneck, optimizer, upkeep), saved):
                    part.load_state_dict(state)
            bury(bottleneck, torch.tensor([step]))
            take_step(bottleneck, optimizer, upkeep, latents_of(step, batch=1))
        runs.append((bottleneck.dictionary.detach().clone(), upkeep.counts, upkeep.step, upkeep.revived))
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*runs)) and runs[0][3] > 0


def test_a_state_of_another_dictionary_is_refused():
    _, _, upkeep = make()
    with pytest.raises(ValueError, match="16 atoms"):
        upkeep.load_state_dict({"step": 1, "counts": torch.zeros(3), "revived": torch.zeros(())})


@pytest.mark.parametrize("kind", [VectorQuantizerBottleneck, IdentityBottleneck, DictionaryBottleneck])
def test_without_a_trainable_dictionary_nothing_happens(kind):
    bottleneck = kind(latent_channels=CHANNELS).train().requires_grad_(False)
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    upkeep = DictionaryUpkeep(bottleneck, torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), revive_every=1)
    bottleneck.eval()
    latents = latents_of(0)
    upkeep.before_step()
    upkeep.after_step(bottleneck(latents).code, latents)
    upkeep.load_state_dict(upkeep.state_dict())
    assert not upkeep.active and all(torch.equal(before[n], value) for n, value in bottleneck.state_dict().items())


@pytest.mark.parametrize("arguments", [{"revive_every": -1}, {"revive_fraction": 1.5}, {"revive_fraction": -0.1}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        make(**arguments)


class _NoHost(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a value is read on the host or a shape depends on one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"), name
        return function(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host():
    bottleneck, optimizer, upkeep = make(revive_every=1)
    latents = latents_of(0)
    output = bottleneck(latents)
    output.loss.backward()
    with _NoHost():
        upkeep.before_step()
        upkeep.after_step(output.code, latents)
    assert upkeep.step == 1


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    bottleneck, optimizer, upkeep = make(revive_every=2, revive_fraction=0.5)
    for step in range(4):
        bury(bottleneck, torch.tensor([step, step + 8]))
        latents = latents_of(step, batch=4, rank=rank)
        output = bottleneck(latents)
        output.loss.backward()
        torch.distributed.all_reduce(bottleneck.dictionary.grad)  # what DDP does
        bottleneck.dictionary.grad /= 2
        upkeep.before_step()
        optimizer.step()
        upkeep.after_step(output.code, latents)
        optimizer.zero_grad()
        if step == 0:
            first = upkeep.counts.clone()
    moments = optimizer.state[bottleneck.dictionary]
    torch.save(
        {
            "dictionary": bottleneck.dictionary.detach(),
            "moments": (moments["exp_avg"], moments["exp_avg_sq"]),
            "first": first,
            "total": math.prod(latents_of(0).shape) // CHANNELS * SPARSITY * 2,
            "revived": upkeep.revived,
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_same_dictionary(in_two_processes, tmp_path):
    ranks = in_two_processes(_rank, tmp_path)
    assert torch.equal(ranks[0]["dictionary"], ranks[1]["dictionary"]) and ranks[0]["revived"] > 0
    for ours, theirs in zip(ranks[0]["moments"], ranks[1]["moments"]):
        assert torch.equal(ours, theirs)
    assert torch.equal(ranks[0]["first"], ranks[1]["first"]) and ranks[0]["first"].sum() == ranks[0]["total"]
