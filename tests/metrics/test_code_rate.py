import math

import pytest
import torch

from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    IndexCode,
    ResidualVQBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.functional.rates import support_bits
from diffusers_lasers.metrics import CodeRate


def pairs_of(atoms):
    """Every pair of different atoms once, `(1, 1, pairs, 2)`."""
    return torch.combinations(torch.arange(atoms)).reshape(1, 1, -1, 2)


def sparse_code(indices, coefficients, num_atoms, image_size=(4, 4)):
    return SparseCode(indices, coefficients, num_atoms, tuple(indices.shape[1:3]), image_size)


def test_index_code_costs_the_entropy_of_each_slot():
    rate = CodeRate(ResidualVQBottleneck(4, num_codewords=8, depth=2))
    indices = torch.stack([torch.tensor([0, 1, 2, 3]), torch.tensor([5, 5, 5, 6])], dim=-1).reshape(1, 2, 2, 2)
    rate.update(IndexCode(indices, (8, 8), (2, 2), image_size=(8, 8)))
    bits = 2 + (0.75 * math.log2(4 / 3) + 0.25 * 2)
    result = rate.compute()
    assert result["entropy_bits_per_site"].item() == pytest.approx(bits, rel=1e-12)
    assert result["entropy_bits_per_pixel"].item() == pytest.approx(bits * 4 / 64, rel=1e-12)
    assert result["nominal_bits_per_pixel"].item() == pytest.approx(6 * 4 / 64, rel=1e-12)


def test_support_as_a_set_saves_its_order():
    # all pairs of 8 atoms are equally likely, coefficients float: the bound is 2 log2 8 - log2 2!
    bottleneck = DictionaryBottleneck(4, num_atoms=8, sparsity=2)
    rate = CodeRate(bottleneck)
    indices = pairs_of(8)
    rate.update(sparse_code(indices, torch.ones(indices.shape), 8))
    bits = rate.compute()["entropy_bits_per_site"].item()
    assert bits == pytest.approx(6 - 1 + 2 * 32, rel=1e-12)
    assert bits >= math.log2(28) + 2 * 32
    nominal = (support_bits(8, 2) + 2 * 32) * 28 / 16
    assert rate.compute()["nominal_bits_per_pixel"].item() == pytest.approx(nominal, rel=1e-12)


@pytest.mark.parametrize("scaling", ["depth", "shared"])
def test_quantized_coefficients_cost_the_entropy_of_their_cells(scaling):
    bottleneck = DictionaryBottleneck(4, num_atoms=8, sparsity=2, coefficient_bits=2, coefficient_scaling=scaling)
    rate = CodeRate(bottleneck)
    indices = torch.tensor([[0, 1], [0, 1], [0, 1], [0, -1]]).reshape(1, 1, 4, 2)
    # midpoints of the four cells of [-1, 1], all used once in the first slot; only one cell in the second
    coefficients = torch.tensor([[-0.75, 0.25], [-0.25, 0.25], [0.25, 0.25], [0.75, 0.0]]).reshape(1, 1, 4, 2)
    rate.update(sparse_code(indices, coefficients, 8))
    bits = rate.compute()["entropy_bits_per_site"].item()

    def entropy(*shares):
        return -sum(share * math.log2(share) for share in shares)

    if scaling == "depth":  # index of slot 0: 0 bits; of slot 1: used or not; cells: 2 bits and 0 bits
        assert bits == pytest.approx(entropy(3 / 4, 1 / 4) + 2, rel=1e-12)
    else:  # size, 1.75 indices and cells of one table each, less one bit of order where there are two
        index, cell = entropy(4 / 7, 3 / 7), entropy(1 / 7, 1 / 7, 4 / 7, 1 / 7)
        expected = entropy(3 / 4, 1 / 4) + 7 / 4 * (index + cell) - 3 / 4
        assert bits == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "bottleneck",
    [
        VectorQuantizerBottleneck(4, num_codewords=16),
        ResidualVQBottleneck(4, num_codewords=16, depth=3),
        FSQBottleneck(4, levels=(5, 4, 3)),
        DictionaryBottleneck(4, num_atoms=16, sparsity=2),
        DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4),
        DictionaryBottleneck(4, num_atoms=16, sparsity=2, coefficient_bits=4, coefficient_scaling="shared"),
    ],
    ids=lambda bottleneck: type(bottleneck).__name__,
)
def test_real_codes_cost_about_the_nominal_rate_or_less_in_any_batches(bottleneck):
    latents = torch.randn(6, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    whole, parts = CodeRate(bottleneck), CodeRate(bottleneck)
    whole.update(bottleneck.encode(latents), num_pixels=6 * 20 * 28)
    for part in latents.split(2):
        parts.update(bottleneck.encode(part), num_pixels=2 * 20 * 28)
    for name, value in whole.compute().items():
        assert value.item() == pytest.approx(parts.compute()[name].item(), rel=1e-9), name
    nominal = whole.compute()["nominal_bits_per_pixel"].item()
    assert nominal == pytest.approx(bottleneck.bits(bottleneck.encode(latents[:1])) / (20 * 28), rel=1e-9)
    sparse = isinstance(bottleneck, DictionaryBottleneck)
    excess = 2 / (2 * 16 * math.log(2)) * 35 / (20 * 28) if sparse else 1e-9  # independent atoms, see the docstring
    assert 0 < whole.compute()["entropy_bits_per_pixel"].item() <= nominal + excess


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`model`"):
        CodeRate(IdentityBottleneck(4))
    rate = CodeRate(VectorQuantizerBottleneck(4, num_codewords=16))
    indices = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="`code`"):
        rate.update(IndexCode(indices, (8,), (1, 1), (4, 4)))
    with pytest.raises(ValueError, match="`num_pixels`"):
        rate.update(IndexCode(indices, (16,), (1, 1)))
