"""Numbers of supports: a bijection with all of them, in both countings."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.supports import rank_supports, unrank_supports
from diffusers_lasers.functional.rates import count_supports


def every_support(atoms, sparsity, ordered):
    listing = itertools.permutations if ordered else itertools.combinations
    rows = [
        [*support, *[-1] * (sparsity - size)]
        for size in range(sparsity + 1)
        for support in listing(range(atoms), size)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), sparsity)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("atoms, sparsity", [(1, 0), (1, 1), (5, 2), (4, 4), (6, 3)])
def test_the_numbers_are_those_below_the_count_each_once(atoms, sparsity, ordered):
    supports = every_support(atoms, sparsity, ordered)
    numbers = rank_supports(supports, atoms, ordered)
    assert sorted(numbers.tolist()) == list(range(count_supports(atoms, sparsity, ordered)))
    assert np.array_equal(unrank_supports(numbers, atoms, sparsity, ordered), supports)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.booleans(), st.integers(0, 2**31), st.data())
def test_round_trip_of_large_dictionaries(atoms, ordered, seed, data):
    """With a dozen atoms there are more supports than int64 holds."""
    sparsity = data.draw(st.integers(0, min(atoms, 12)))
    generator = np.random.default_rng(seed)
    supports = np.full((7, sparsity), -1, dtype=np.int64)
    for row in supports:
        size = generator.integers(0, sparsity + 1)
        row[:size] = generator.permutation(atoms)[:size]
    numbers = rank_supports(supports, atoms, ordered)
    assert all(0 <= number < count_supports(atoms, sparsity, ordered) for number in numbers.tolist())
    found = unrank_supports(numbers, atoms, sparsity, ordered)
    expected = supports if ordered else np.where(supports < 0, atoms, supports)
    if not ordered:
        expected = np.sort(expected, axis=1)
        expected[expected == atoms] = -1
    assert np.array_equal(found, expected)


def test_the_order_of_a_set_changes_nothing():
    supports = np.array([[4, 0, -1], [-1, 0, 4], [0, -1, 4]])
    assert len(set(rank_supports(supports, 6).tolist())) == 1
    assert len(set(rank_supports(np.array([[4, 0], [0, 4]]), 6, ordered=True).tolist())) == 2


def test_what_is_no_support_is_refused():
    with pytest.raises(ValueError, match="an atom stands twice"):
        rank_supports(np.array([[1, 1]]), 4)
    with pytest.raises(ValueError, match="unused slots"):
        rank_supports(np.array([[-1, 1]]), 4, ordered=True)
    for wrong in (-2, 4):
        with pytest.raises(ValueError, match="must be from -1 to 3"):
            rank_supports(np.array([[0, wrong]]), 4)
    with pytest.raises(ValueError, match="S at most 1"):
        rank_supports(np.array([[0, 1]]), 1)


@pytest.mark.parametrize("ordered", [False, True])
def test_numbers_beyond_the_last_support_are_refused(ordered):
    supports = count_supports(6, 2, ordered)
    assert unrank_supports(np.array([supports - 1]), 6, 2, ordered).shape == (1, 2)
    for number in (supports, -1):
        with pytest.raises(ValueError, match=f"`numbers` must be from 0 to {supports - 1}"):
            unrank_supports(np.array([number]), 6, 2, ordered)
