"""The stream of samples: every epoch whole, every resume exact, every process its share."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from diffusers_lasers.training import StreamSampler
from diffusers_lasers.utils.seeding import mixed_seed, seeded_generator


SOURCE = Path(__file__).resolve().parents[2] / "src/diffusers_lasers"


def test_each_epoch_visits_everything_once_in_an_order_of_its_own():
    keys = list(StreamSampler(7, 21, seed=0))
    epochs = [[index for epoch, index in keys if epoch == e] for e in range(3)]
    assert [epoch for epoch, _ in keys] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(sorted(order) == list(range(7)) for order in epochs) and len({tuple(order) for order in epochs}) == 3
    assert list(StreamSampler(7, 21, seed=1)) != keys == list(StreamSampler(7, 21, seed=0))


def test_without_shuffling_the_order_is_the_given_one():
    assert [index for _, index in StreamSampler(3, 7, shuffle=False)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20, 21, 30])
def test_a_resumed_stream_is_the_rest_of_the_stream(start):
    whole, rest = list(StreamSampler(7, 21, seed=4)), StreamSampler(7, 21, start=start, seed=4)
    assert list(rest) == whole[start:] and len(rest) == len(whole[start:])


def test_processes_share_the_stream_without_repetition():
    batches = BatchSampler(StreamSampler(5, 24, seed=2), batch_size=3, drop_last=False)
    shares = [list(BatchSamplerShard(batches, num_processes=2, process_index=rank)) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    merged = [key for pair in zip(*shares) for batch in pair for key in batch]
    assert merged == list(StreamSampler(5, 24, seed=2))
    assert max(Counter(merged).values()) == 1


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="`length`"):
        StreamSampler(0, 10)


def test_seeds_differ_in_every_argument():
    seeds = {mixed_seed(*arguments) for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


def test_there_is_one_seeding():
    """The orders and crops of earlier versions, and one generator for whatever is drawn, wherever it is drawn."""
    state = np.random.SeedSequence([3, 1, 2]).generate_state(1, np.uint64)[0]
    assert mixed_seed(3, 1, 2) == int(state >> np.uint64(1))
    first = torch.rand(4, generator=seeded_generator(3, 1, 2))
    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(mixed_seed(3, 1, 2))))
    for path in (SOURCE / "training").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "SeedSequence" not in text and "manual_seed" not in text, path.name
