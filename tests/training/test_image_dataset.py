"""Images as tensors in [-1, 1], the same in every process and epoch order."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffusers_lasers.training import ImageDataset, StreamSampler
from diffusers_lasers.training.data.image_dataset import take_batch
from diffusers_lasers.utils.image_decoding import UnreadableImageError


def picture(index, size=(20, 16), mode="RGB"):
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def source():
    return [picture(index, size=(20 + index, 16)) for index in range(6)]


def test_values_are_those_of_diffusers_image_processor(source):
    from diffusers.image_processor import VaeImageProcessor

    ours = ImageDataset([source[0].crop((0, 0, 16, 16))], 16)[0]["pixel_values"]
    reference = VaeImageProcessor(vae_scale_factor=1).preprocess(source[0].crop((0, 0, 16, 16)))[0]
    assert ours.dtype == torch.float32 and ours.shape == (3, 16, 16)
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)
    extremes = ImageDataset([Image.new("RGB", (4, 4), (0, 255, 0))], 4)[0]["pixel_values"]
    assert extremes[0].unique() == -1 and extremes[1].unique() == 1


def test_crops_are_windows_of_the_image(source):
    dataset = ImageDataset(source, 8, seed=3)
    corners = set()
    for epoch in range(20):
        crop = ((dataset[(epoch, 2)]["pixel_values"] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(source[2]), (8, 8, 3))[:, :, 0]
        found = np.argwhere((windows == crop).all(axis=(2, 3, 4)))
        assert len(found) == 1
        corners.add(tuple(found[0]))
    assert len(corners) > 10 and all(0 <= top <= 8 and 0 <= left <= 14 for top, left in corners)


def test_every_corner_is_reached():
    dataset = ImageDataset([picture(0, size=(4, 3))] * 200, 2)
    crops = {dataset[index]["pixel_values"].numpy().tobytes() for index in range(200)}
    assert len(crops) == 2 * 3


def test_center_crop_and_flip():
    image = picture(0, size=(10, 6))
    dataset = ImageDataset([image] * 50, 4, center_crop=True, random_flip=True)
    centre = torch.from_numpy(np.asarray(image)[1:5, 3:7].copy()).permute(2, 0, 1) / 127.5 - 1
    straight = [torch.allclose(dataset[index]["pixel_values"], centre, atol=1e-6) for index in range(50)]
    mirrored = [torch.allclose(dataset[index]["pixel_values"], centre.flip(-1), atol=1e-6) for index in range(50)]
    assert 10 < sum(straight) < 40 and sum(straight) + sum(mirrored) == 50


@pytest.mark.parametrize("resize, short", [(None, 6), (8, 8)])
def test_short_side_is_resized(resize, short):
    dataset = ImageDataset([Image.new("RGB", (12, 6))], 6, resize=resize)
    assert min(dataset._pixels(0)[0].shape[:2]) == short and max(dataset._pixels(0)[0].shape[:2]) == 2 * short


def test_small_images_grow_to_the_crop():
    assert ImageDataset([picture(0, size=(5, 9))], 8)[0]["pixel_values"].shape == (3, 8, 8)


def test_the_same_key_gives_the_same_sample(source):
    first, second = (ImageDataset(source, 8, random_flip=True, seed=5, cache_in_memory=c) for c in (False, True))
    keys = [(epoch, index) for epoch in (4, 0, 1) for index in range(6)]
    torch.testing.assert_close(
        first.__getitems__(keys)["pixel_values"], second.__getitems__(keys)["pixel_values"], atol=0, rtol=0
    )
    assert torch.equal(first[(1, 3)]["pixel_values"], second.__getitems__(keys)["pixel_values"][15])
    assert not torch.equal(first[(0, 3)]["pixel_values"], first[(1, 3)]["pixel_values"])
    other = ImageDataset(source, 8, random_flip=True, seed=6)
    assert not torch.equal(first.__getitems__(keys)["pixel_values"], other.__getitems__(keys)["pixel_values"])


def test_crops_per_image(source):
    dataset = ImageDataset(source, 8, crops_per_image=3)
    assert len(dataset) == 18 and not torch.equal(dataset[1]["pixel_values"], dataset[7]["pixel_values"])


def test_the_cache_decodes_once(source):
    class Counting(list):
        opened = 0

        def __getitem__(self, index):
            Counting.opened += 1
            return super().__getitem__(index)

    dataset = ImageDataset(Counting(source), 8, cache_in_memory=True)
    for epoch in range(3):
        dataset.__getitems__([(epoch, index) for index in range(6)])
    assert Counting.opened == 6


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"resolution": 0}, "resolution"),
        ({"resolution": 8, "resize": 4}, "resize"),
        ({"resolution": 8, "crops_per_image": 0}, "crops_per_image"),
        ({"resolution": 8, "source": []}, "source"),
    ],
)
def test_bad_arguments_are_named(source, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ImageDataset(**{"source": source, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_stream_with_any_number_of_workers(source, workers):
    dataset = ImageDataset(source, 8, random_flip=True)
    sampler = StreamSampler(len(dataset), 16, seed=1)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=take_batch, num_workers=workers)
    batches = torch.cat([batch["pixel_values"] for batch in loader])
    assert torch.equal(batches, dataset.__getitems__(list(sampler))["pixel_values"])


class Damaged(list):
    """A source some of whose images cannot be read."""

    lost = (1, 2, 5)

    def __getitem__(self, index):
        if index in self.lost:
            raise UnreadableImageError(f"The image 'number {index}' cannot be read: damaged.")
        return super().__getitem__(index)


def test_an_unreadable_image_stops_by_default(source):
    with pytest.raises(UnreadableImageError, match="number 2"):
        ImageDataset(Damaged(source), 8)[2]


@pytest.mark.parametrize("cache", [False, True])
def test_the_next_readable_image_takes_its_place_and_is_counted(source, caplog, cache):
    dataset = ImageDataset(Damaged(source), 8, center_crop=True, skip_unreadable=True, cache_in_memory=cache)
    batch = dataset.__getitems__([(0, index) for index in range(6)] + [(1, 1)])
    expected = ImageDataset(source, 8, center_crop=True).__getitems__([0, 3, 3, 3, 4, 0, 3])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"]) and batch["unreadable"] == 4
    assert sorted(dataset.unreadable) == [1, 2, 5]
    assert sorted(record.message.split("'")[1] for record in caplog.records) == ["number 1", "number 2", "number 5"]


def test_a_source_without_any_readable_image_is_an_error(source):
    class Lost(Damaged):
        lost = range(6)

    with pytest.raises(UnreadableImageError, match="None of the images"):
        ImageDataset(Lost(source), 8, skip_unreadable=True)[0]


# Very long pictures, and pictures of other modes


@pytest.mark.parametrize("size", [(1, 5000), (20000, 2), (3, 600)])
@pytest.mark.parametrize("arguments", [{}, {"resize": 256}, {"resize": 300, "cache_in_memory": True}])
def test_very_long_pictures_are_cut_before_they_are_enlarged(monkeypatch, size, arguments):
    resize, largest = Image.Image.resize, []

    def watched(image, size, *others, **more):
        largest.append(size[0] * size[1])
        return resize(image, size, *others, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    dataset = ImageDataset([picture(0, size=size)], 256, center_crop=False, **arguments)
    assert dataset[(3, 0)]["pixel_values"].shape == (3, 256, 256)
    assert 0 < max(largest) <= 17 * 300**2


def test_the_pieces_reach_both_ends_and_the_middle():
    ramp = np.linspace(0, 255, 4000).round().astype(np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(ramp[None, :, None], 4, axis=0), 3, axis=2))  # 4000 × 4
    crops = ImageDataset([image] * 400, 16).__getitems__(range(400))["pixel_values"]
    places = ((crops.mean(dim=(1, 2, 3)) + 1) / 2).numpy()
    assert places.min() < 0.02 and places.max() > 0.98 and abs(places.mean() - 0.5) < 0.05
    assert np.abs(np.histogram(places, 4, (0, 1))[0] / 400 - 0.25).max() < 0.08
    middle = ImageDataset([image], 16, center_crop=True)[0]["pixel_values"]
    assert abs(((middle.mean() + 1) / 2).item() - 0.5) < 0.01


def test_pictures_up_to_sixteen_times_as_long_as_wide_are_enlarged_as_a_whole():
    image = picture(0, size=(48, 3))
    crop = ImageDataset([image], 8, center_crop=True)[0]["pixel_values"]
    whole = np.asarray(image.resize((128, 8), Image.Resampling.LANCZOS))[:, 60:68]
    torch.testing.assert_close(crop, torch.from_numpy(whole.copy()).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_sources_of_any_mode_come_out_as_rgb(mode):
    from diffusers_lasers.utils.image_decoding import to_rgb

    image = (
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
        if mode == "I;16"
        else picture(1, (8, 8), mode)
    )
    expected = torch.from_numpy(np.array(to_rgb(image, "x"))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ImageDataset([image], 8)[0]["pixel_values"], expected)
    wide = Image.fromarray(np.full((8, 8), 70000, dtype=np.int32))
    dataset = ImageDataset([image, wide], 8, skip_unreadable=True)
    assert dataset.__getitems__([0, 1])["unreadable"] == 1


def test_batches_are_all_images_in_their_order(source):
    dataset = ImageDataset(source, 8, seed=5)
    whole = dataset.take(range(len(dataset)))
    for size in (1, 4, 6, 100):
        batches = list(dataset.batches(size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert torch.equal(torch.cat(batches), whole)
    keys = [(3, index) for index in (4, 0, 1)]
    assert torch.equal(torch.cat(list(dataset.batches(2, keys))), dataset.__getitems__(keys)["pixel_values"])
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got"):
            dataset.batches(wrong)


def test_nobody_calls_the_data_loaders_protocol_by_name():
    root = Path(__file__).resolve().parents[2]
    texts = {path: path.read_text(encoding="utf-8") for part in ("src", "examples", "docs") for path in
             (root / part).rglob("*") if path.suffix in (".py", ".md")}  # fmt: skip
    callers = [path.name for path, text in texts.items() if re.search(r"(?<!self)\.__getitems__", text)]
    assert len(texts) > 100 and callers == []
