import doctest

import pytest
import scipy.stats
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import diffusers_lasers.metrics.usage
from diffusers_lasers import IndexCode, SparseCode
from diffusers_lasers.metrics import PSNR, AtomUsage


def sparse_code(indices, num_atoms, coefficients=None):
    coefficients = torch.ones(indices.shape) if coefficients is None else coefficients
    return SparseCode(indices, coefficients, num_atoms, latent_size=tuple(indices.shape[1:3]))


def random_code(num_atoms=32, shape=(3, 4, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(*shape[:3], num_atoms, generator=generator).argsort(dim=-1)[..., : shape[-1]]
    indices[torch.rand(shape, generator=generator) < 0.3] = -1
    return sparse_code(indices, num_atoms, torch.randn(shape, generator=generator))


@pytest.mark.parametrize("sparsity", [1, 2, 5])
def test_collapsed_code_scores_its_sparsity(sparsity):
    # the released perplexity gives 507 of 512 here
    usage = AtomUsage(512)
    for _ in range(3):
        usage.update(sparse_code(torch.arange(7, 7 + sparsity).expand(4, 8, 8, sparsity), 512))
    result = usage.compute()
    assert result["perplexity"].item() == pytest.approx(sparsity, rel=1e-12)
    assert result["energy_perplexity"].item() == pytest.approx(sparsity, rel=1e-12)
    assert result["active"].item() == sparsity / 512


def test_evenly_used_code_scores_its_atoms():
    usage = AtomUsage(16)
    usage.update(sparse_code(torch.arange(16).reshape(1, 2, 2, 4), 16))
    assert usage.compute()["perplexity"].item() == pytest.approx(16, rel=1e-12)
    assert usage.compute()["entropy_bits"].item() == pytest.approx(4, rel=1e-12)
    assert usage.compute()["active"].item() == 1


def test_agrees_with_scipy_and_streams():
    code = random_code()
    counts = torch.bincount(code.indices[code.indices >= 0], minlength=32)
    usage = AtomUsage(32)
    for part in range(code.indices.shape[0]):
        usage.update(sparse_code(code.indices[part : part + 1], 32, code.coefficients[part : part + 1]))
    result = usage.compute()
    assert usage.counts.dtype == torch.int64
    assert torch.equal(usage.counts[0], counts)
    assert result["entropy_bits"].item() == pytest.approx(scipy.stats.entropy(counts.numpy(), base=2), rel=1e-12)
    energy = code.to_dense().double().square().sum(dim=(0, 1, 2)).numpy()
    expected = 2 ** scipy.stats.entropy(energy, base=2)
    assert result["energy_perplexity"].item() == pytest.approx(expected, rel=1e-6)


def test_unused_slots_do_not_count_and_energy_weighs():
    indices = torch.tensor([[[[0, 1], [0, -1]]]])
    usage = AtomUsage(4)
    usage.update(sparse_code(indices, 4, torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])))
    result = usage.compute()
    entropy = scipy.stats.entropy([2 / 3, 1 / 3], base=2)
    assert result["entropy_bits"].item() == pytest.approx(entropy, rel=1e-12)
    usage.reset()
    usage.update(sparse_code(indices, 4, torch.tensor([[[[0.5, 2.0], [0.5, 0.0]]]])))  # energies 0.5 and 4
    expected = 2 ** scipy.stats.entropy([0.5, 4], base=2)
    assert usage.compute()["energy_perplexity"].item() == pytest.approx(expected, rel=1e-12)


def test_empty_support_scores_zero():
    usage = AtomUsage(4)
    usage.update(sparse_code(torch.full((1, 2, 2, 3), -1), 4, torch.zeros(1, 2, 2, 3)))
    assert {name: value.item() for name, value in usage.compute().items()} == {
        "perplexity": 0,
        "active": 0,
        "entropy_bits": 0,
    }


def test_index_code_gives_the_usual_perplexity_for_each_codebook():
    indices = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).reshape(1, 2, 4, 1)
    usage = AtomUsage(8)
    usage.update(IndexCode(indices, levels=(8,), latent_size=(2, 4)))
    assert usage.compute()["perplexity"].item() == pytest.approx(4, rel=1e-12)
    assert usage.compute()["active"].item() == 0.5

    # the second stage has collapsed: 4 and 1 symbols, 2 to the mean of 2 and 0 bits
    stages = torch.cat([indices, torch.full_like(indices, 5)], dim=-1)
    usage = AtomUsage((8, 8))
    usage.update(IndexCode(stages, levels=(8, 8), latent_size=(2, 4)))
    assert usage.compute()["perplexity"].item() == pytest.approx(2, rel=1e-12)
    assert usage.compute()["active"].item() == 5 / 16

    # unequal alphabets, as FSQ has: the active share is of 4 + 8 symbols
    usage = AtomUsage((4, 8))
    usage.update(IndexCode(stages, levels=(4, 8), latent_size=(2, 4)))
    assert usage.compute()["active"].item() == pytest.approx(5 / 12, rel=1e-12)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`num_atoms`"):
        AtomUsage(0)
    with pytest.raises(ValueError, match="`code`.*32"):
        AtomUsage(16).update(random_code(32))
    with pytest.raises(ValueError, match="`code`"):
        AtomUsage(8).update(IndexCode(torch.zeros(1, 1, 1, 2, dtype=torch.int64), levels=(8, 8), latent_size=(1, 1)))


def test_docstring_example():
    assert doctest.testmod(diffusers_lasers.metrics.usage).failed == 0


def _rank(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    usage, psnr = AtomUsage(32), PSNR()
    for seed in range(rank + 1):  # rank 1 sees more than rank 0
        usage.update(random_code(seed=10 * rank + seed))
    psnr.update(torch.full((rank + 1, 3, 8, 8), 0.1 * (rank + 1)), torch.zeros(rank + 1, 3, 8, 8))
    torch.save({**usage.compute(), "psnr": psnr.compute()}, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    # forked where the system can, since starting anew imports everything again
    method = "fork" if "fork" in mp.get_all_start_methods() else "spawn"
    mp.start_processes(_rank, args=(tmp_path / "store", tmp_path), nprocs=2, start_method=method)
    usage = AtomUsage(32)
    for seed in (0, 10, 11):
        usage.update(random_code(seed=seed))
    expected = usage.compute()
    expected["psnr"] = -10 * torch.tensor([0.01, 0.04, 0.04], dtype=torch.float64).div(4).log10().mean()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name
