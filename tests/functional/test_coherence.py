"""Welch's bound against dictionaries that reach it, near-duplicates against the whole Gram matrix."""

import math

import pytest
import torch

from diffusers_lasers.functional import mutual_coherence, random_dictionary, welch_bound
from diffusers_lasers.functional.dictionary import coherence, similar_atoms


def test_equiangular_frames_reach_the_bound():
    """Three atoms at 120° in the plane, and L + 1 corners of a simplex."""
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    assert mutual_coherence(torch.stack([angles.cos(), angles.sin()])).item() == pytest.approx(welch_bound(2, 3))
    simplex = torch.linalg.qr(torch.ones(5, 1, dtype=torch.float64), mode="complete").Q[:, 1:].t()  # (4, 5)
    assert mutual_coherence(simplex).item() == pytest.approx(welch_bound(4, 5)) == 0.25


@pytest.mark.parametrize("features, atoms", [(4, 5), (8, 64), (16, 512)])
def test_no_dictionary_is_below_the_bound(features, atoms):
    dictionary = random_dictionary(features, atoms, torch.Generator().manual_seed(0))
    assert mutual_coherence(dictionary) >= welch_bound(features, atoms) > 0


def test_orthogonal_atoms_are_possible_up_to_the_dimension():
    assert welch_bound(4, 4) == welch_bound(4, 1) == welch_bound(1, 1) == 0
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        welch_bound(0, 3)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_similar_atoms_are_those_of_the_gram_matrix(monkeypatch, threshold):
    monkeypatch.setattr(coherence, "_BLOCK", 7)  # several blocks
    dictionary = random_dictionary(6, 40, torch.Generator().manual_seed(1), dtype=torch.float64)
    dictionary[:, 33] = -3 * dictionary[:, 2]  # of another length and sign
    atoms = dictionary / dictionary.norm(dim=0)
    gram = (atoms.t() @ atoms).abs().fill_diagonal_(0)
    gram[2, 33] = gram[33, 2] = 1.0
    found = similar_atoms(dictionary, threshold - 1e-12)
    assert torch.equal(found, gram.amax(dim=1) >= threshold - 1e-12)
    assert found[2] and found[33] and (found.sum() == 2) == (threshold == 1.0)


def test_a_threshold_out_of_range_is_refused():
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="`threshold` must be above 0"):
            similar_atoms(torch.eye(3), wrong)
