"""Integer tables, and streams of symbols against a range coder written in Python's integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.frequencies import PRECISION, frequencies, smoothed
from diffusers_lasers.coding.symbol_streams import (
    CountingStream,
    DrawingStream,
    MeasuringStream,
    ReadingStream,
    Tables,
    WritingStream,
)


def reference_words(symbols):
    """
    Words of a range coder (Martin, 1979) with a state of 64 bits and words of 32, in Python's integers. `symbols` holds
    pairs of the sum of frequencies before a symbol and its own, of 2^24. Carries run through a whole number at the end.
    """
    low, width, shift = 0, 2**64 - 1, 0  # the number is low / 2^(64 + shift)
    for before, own in symbols:
        scale = width >> PRECISION
        low, width = low + scale * before, scale * own
        while width < 2**32:
            low, width, shift = low << 32, width << 32, shift + 32
    if not symbols:
        return []
    size = (64 + shift) // 32
    # one word, if all numbers that continue it are inside, else one more of zeros
    number, words = (low + 2**32 - 1) >> 32, size - 1
    if (low + width) >> 32 == number:
        number, words = number << 32, size
    return [number >> 32 * (words - 1 - place) & 0xFFFFFFFF for place in range(words)]


def tables_of(source, count, alphabet, skew=0.1):
    return frequencies(torch.from_numpy(source.dirichlet(np.full(alphabet, skew), size=count))).numpy()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(any))
def test_frequencies_are_positive_and_sum_to_their_precision(probabilities):
    probabilities = torch.tensor(probabilities, dtype=torch.float64)
    found = frequencies(probabilities)
    assert found.dtype == torch.int32 and int(found.sum()) == 2**PRECISION and int(found.min()) >= 1
    shares = probabilities / probabilities.sum()
    assert float((found / 2**PRECISION - shares).abs().max()) <= 2 * len(shares) / 2**PRECISION


def test_smoothing_is_that_of_witten_and_bell():
    counts, base = torch.tensor([[3, 0, 1], [0, 0, 0]]), torch.tensor([0.5, 0.25, 0.25])
    expected = torch.tensor([[(3 + 2 * 0.5) / 6, 2 * 0.25 / 6, (1 + 2 * 0.25) / 6], [0.5, 0.25, 0.25]])
    torch.testing.assert_close(smoothed(counts, base), expected.double())
    assert smoothed(counts).sum(dim=1).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(smoothed(counts[:1], base, 8.0)[0, 1], torch.tensor(16 * 0.25 / 20).double())


@pytest.mark.parametrize("alphabet", [2, 3, 256, 5000, 70000])
def test_the_bytes_are_those_of_a_range_coder_with_these_frequencies(alphabet):
    source = np.random.default_rng(alphabet)
    tables = tables_of(source, 3, alphabet)
    for count in (0, 1, 2, 200):
        stream = WritingStream(Tables({"bank": tables}))
        table, symbols = source.integers(0, 3, count), source.integers(0, alphabet, count)
        stream.code("bank", table, np.arange(count), symbols)
        order = np.argsort(table, kind="stable")
        sums = tables.astype(object).cumsum(axis=1)
        pairs = [(int(sums[t, s] - tables[t, s]), int(tables[t, s])) for t, s in zip(table[order], symbols[order])]
        assert stream.words().tolist() == reference_words(pairs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5), st.integers(0, 300))
def test_what_is_written_is_read_and_costs_what_is_measured(seed, alphabet, count, length):
    source = np.random.default_rng(seed)
    tables = Tables({"one": tables_of(source, count, alphabet), "other": tables_of(source, 1, 7)})
    table, rows = source.integers(0, count, length), source.integers(0, 4, length)
    symbols, others = source.integers(0, alphabet, length), source.integers(0, 7, length)
    values = source.integers(0, 2**32, length, dtype=np.uint32)
    writing, measuring = WritingStream(tables), MeasuringStream(tables, 2, 2)
    for stream in (writing, measuring):
        stream.code("one", table, rows, symbols)
        stream.code_raw(rows, values)
        stream.code("other", 0, rows, others)
    reading = ReadingStream(tables, writing.words())
    assert np.array_equal(reading.code("one", table, rows), symbols)
    assert np.array_equal(reading.code_raw(rows), values)
    assert np.array_equal(reading.code("other", 0, rows), others)
    reading.check_end()
    expected = -np.log2(tables.banks["one"][table, symbols] / 2**24) - np.log2(
        tables.banks["other"][0, others] / 2**24
    )
    for image in range(2):
        assert measuring.bits[image] == pytest.approx((expected + 32)[rows // 2 == image].sum())
    assert measuring.bits.sum() <= 32 * len(writing.words()) <= measuring.bits.sum() * 1.001 + 64


def test_words_beyond_the_code_and_words_that_nobody_writes_are_refused():
    tables = Tables({"bank": frequencies(torch.tensor([[0.5, 0.5]])).numpy()})
    writing = WritingStream(tables)
    writing.code("bank", 0, np.arange(40), np.ones(40, dtype=np.int64))
    reading = ReadingStream(tables, np.concatenate([writing.words(), np.ones(4, dtype=np.uint32)]))
    reading.code("bank", 0, np.arange(40))
    with pytest.raises(ValueError, match="`data` must end with the code, it goes on."):
        reading.check_end()
    reading = ReadingStream(Tables({"bank": np.array([[2**24 - 1, 1]])}), np.full(4, 2**32 - 1, dtype=np.uint32))
    with pytest.raises(ValueError, match="`data` must hold symbols of this prior, it is changed."):
        reading.code("bank", 0, np.arange(100000))


def test_counts_are_numpys_and_draws_follow_the_tables():
    source = np.random.default_rng(0)
    tables = Tables({"bank": np.concatenate([tables_of(source, 2, 6, 2.0), [[2**24 - 5, 1, 1, 1, 1, 1]]])})
    table, rows = source.integers(0, 3, 60000), np.arange(60000)
    drawn = DrawingStream(tables, torch.Generator().manual_seed(0)).code("bank", table, rows)
    counting = CountingStream({"bank": (3, 6)})
    counting.code("bank", table, rows, drawn)
    counting.code("bank", 1, rows[:2], np.array([5, 5]))
    expected = np.zeros((3, 6))
    np.add.at(expected, (table, drawn), 1)
    expected[1, 5] += 2
    assert np.array_equal(counting.counts["bank"], expected)
    shares = counting.counts["bank"] / counting.counts["bank"].sum(axis=1, keepdims=True)
    assert np.abs(shares - tables.banks["bank"] / 2**24).max() < 0.02
    assert counting.counts["bank"][2, 1:].sum() == 0  # frequency 1 stands for impossible
