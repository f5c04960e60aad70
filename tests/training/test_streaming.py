"""Streams of images: every row once an epoch, in whatever shards; resumed exactly; unreadable rows left out."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffusers_lasers.training import ImageStream
from diffusers_lasers.utils.image_decoding import UnreadableImageError


COUNT = 24


def cell(index):
    """A picture of one colour, from which its number can be read."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (10 * index, 255 - 10 * index, 7)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(shards, cells=None):
    cells = cells or [cell(index) for index in range(COUNT)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": cells}, features=features).to_iterable_dataset(num_shards=shards)


def stream(shards=1, **arguments):
    arguments = {"resolution": 4, "batch_size": 3, "stop": 16, "shuffle_buffer": 10, **arguments}
    return ImageStream(table(shards), "image", **arguments)


def numbers(batches):
    """The pictures' numbers, batch by batch."""
    return [((batch["pixel_values"][:, 0, 0, 0] + 1) * 12.75).round().int().tolist() for batch in batches]


def load(dataset, workers=0):
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_row_is_seen_once_an_epoch(shards, world_size):
    epochs = 2
    stop = COUNT * epochs // 3 // world_size
    ranks = [numbers(load(stream(shards, rank=r, world_size=world_size, stop=stop))) for r in range(world_size)]
    for epoch in range(epochs):
        part = slice(epoch * stop // epochs, (epoch + 1) * stop // epochs)
        seen = [number for rank in ranks for batch in rank[part] for number in batch]
        assert sorted(seen) == list(range(COUNT)), epoch
        assert seen != sorted(seen)
    assert ranks[0][: stop // 2] != ranks[0][stop // 2 :]  # another order in each epoch


def test_workers_share_a_rank_and_lose_nothing():
    batches = numbers(load(stream(4, stop=COUNT // 3), workers=2))
    assert sorted(number for batch in batches for number in batch) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5, 8, 11])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(workers, start):
    arguments = {"resolution": 3, "random_flip": True, "seed": 3}
    whole, rest = (load(stream(2, start=s, **arguments), workers=workers) for s in (0, start))
    assert len(rest) == 16 - start == len(stream(start=start))
    for ours, theirs in zip(rest, whole[start:], strict=True):
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_without_a_buffer_the_order_is_that_of_the_rows():
    assert numbers(load(stream(stop=8, shuffle_buffer=0))) == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)]


def test_crops_are_drawn_anew_in_each_epoch():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    rows = table(1, [{"bytes": buffer.getvalue(), "path": None}])
    crops = load(ImageStream(rows, "image", 8, batch_size=1, stop=4, shuffle_buffer=0))
    assert len({crop["pixel_values"].numpy().tobytes() for crop in crops}) == 4


@pytest.mark.parametrize("start", [0, 2])
def test_unreadable_rows_are_left_out_and_counted(start, caplog):
    cells = [cell(index) for index in range(6)]
    cells[2]["bytes"] = cells[2]["bytes"][:40]
    arguments = {"resolution": 4, "batch_size": 2, "shuffle_buffer": 0, "stop": 5, "start": start}
    with pytest.raises(UnreadableImageError, match="row 2 of rank and worker 0"):
        load(ImageStream(table(1, cells), "image", **arguments))
    batches = load(ImageStream(table(1, cells), "image", skip_unreadable=True, **arguments))
    assert numbers(batches) == [[0, 1], [3, 4], [5, 0], [1, 3], [4, 5]][start:]
    assert [int(batch["unreadable"]) for batch in batches] == [0, 1, 0, 1, 0][start:]
    assert "row 2" in caplog.text


def test_what_is_wrong_is_named():
    for arguments in ({"resolution": 0}, {"batch_size": 0}, {"shuffle_buffer": -1}, {"resize": 2}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            stream(**arguments)
    with pytest.raises(ValueError, match="at least one image for each of 30"):
        load(stream(rank=29, world_size=30))


def test_image_cells_are_decoded_here_alone(caplog):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5), 20 * 257, dtype=np.uint16)).save(buffer, "PNG")
    cells = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": b"damaged", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": cells, "mask": cells[::-1]}, features=features).to_iterable_dataset()
    arguments = {"resolution": 4, "batch_size": 2, "stop": 1, "shuffle_buffer": 0}
    batch = next(iter(ImageStream(rows, "image", skip_unreadable=True, **arguments)))
    torch.testing.assert_close(batch["pixel_values"], torch.full((2, 3, 4, 4), 20 / 127.5 - 1))
    with pytest.raises(UnreadableImageError, match="row 1"):
        next(iter(ImageStream(rows, "image", **arguments)))


def test_very_long_pictures_stay_small(monkeypatch):
    resize, largest = Image.Image.resize, []

    def watched(image, size, *others, **more):
        largest.append(size[0] * size[1])
        return resize(image, size, *others, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    buffer = io.BytesIO()
    Image.new("RGB", (1, 5000)).save(buffer, "PNG")
    rows = table(1, [{"bytes": buffer.getvalue(), "path": None}])
    batch = load(ImageStream(rows, "image", 256, batch_size=2, stop=1, resize=256))[0]
    assert batch["pixel_values"].shape == (2, 3, 256, 256) and max(largest) <= 17 * 256**2
