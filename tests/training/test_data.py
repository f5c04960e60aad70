"""Images from every kind of source, as tensors in [-1, 1], the same in every process and epoch order."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffusers_lasers.training import (
    BUNDLED_PHOTOS,
    ImageDataset,
    StreamSampler,
    bundled_photos,
    load_image_dataset,
    take_batch,
)


def picture(index, size=(20, 16), mode="RGB"):
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, column="image", wrap=True):
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": png(image), "path": None} if wrap else png(image) for image in images]
    parquet.write_table(pyarrow.table({column: cells, "label": list(range(len(cells)))}), path)


def pixels(source):
    return [np.asarray(source[index]) for index in range(len(source))]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


# Sources


def test_bundled_photographs_of_train_and_validation_are_different_scenes():
    names = BUNDLED_PHOTOS["train"] + BUNDLED_PHOTOS["validation"]
    assert len(set(names)) == len(names) == 8 and not any("right" in name for name in names)
    for split, expected in (("train", 6), ("validation", 2)):
        photos = bundled_photos(split)
        assert len(photos) == expected == len(load_image_dataset(split=split))
        assert all(photo.mode == "RGB" and min(photo.size) >= 300 for photo in photos)
    small = [
        np.asarray(photo.convert("L").resize((32, 32)), dtype=float).ravel()
        for split in ("train", "validation")
        for photo in bundled_photos(split)
    ]
    similar = np.corrcoef(small) - np.eye(8)
    assert similar[:6, 6:].max() < 0.8, "a held-out photograph looks like a training photograph"


def test_bundled_photographs_ship_with_scikit_image_itself():
    import skimage

    folder = Path(skimage.__file__).parent
    assert all(Path(path).is_relative_to(folder) for path in bundled_photos("train").paths)


def test_folder_of_images_is_read_recursively_in_order_and_in_rgb(tmp_path):
    (tmp_path / "b").mkdir()
    picture(0).save(tmp_path / "b" / "x.png")
    picture(1, mode="L").save(tmp_path / "a.PNG")
    picture(2, mode="RGBA").save(tmp_path / "c.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("not an image")
    source = load_image_dataset(train_data_dir=str(tmp_path))
    assert [Path(path).name for path in source.paths] == ["a.PNG", "x.png", "c.webp"]
    assert [image.mode for image in source] == ["RGB"] * 3
    np.testing.assert_array_equal(np.asarray(source[1]), np.asarray(picture(0)))
    assert len(load_image_dataset(train_data_dir=str(tmp_path), max_samples=2)) == 2


def test_pictures_stand_upright(tmp_path):
    image, exif = picture(0), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image_dataset(train_data_dir=str(tmp_path))[0].size == (16, 20)


def test_folders_and_names_of_splits_are_kept_apart(tmp_path):
    for split, index in (("train", 0), ("test", 1)):
        (tmp_path / split).mkdir()
        picture(index).save(tmp_path / split / "x.png")
    for split, index in (("train", 0), ("validation", 1)):
        source = load_image_dataset(train_data_dir=str(tmp_path), split=split)
        assert len(source) == 1
        np.testing.assert_array_equal(np.asarray(source[0]), np.asarray(picture(index)))


def test_a_missing_split_is_not_replaced_by_another(tmp_path):
    (tmp_path / "train").mkdir()
    picture(0).save(tmp_path / "train" / "x.png")
    with pytest.raises(ValueError, match="'validation'"):
        load_image_dataset(train_data_dir=str(tmp_path), split="validation")


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_holds_the_same_pictures(tmp_path, wrap, column):
    images = [picture(index) for index in range(5)]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:3], column, wrap)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[3:], column, wrap)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [picture(9)], column, wrap)
    for location in (tmp_path, tmp_path / "train-*.parquet"):
        source = load_image_dataset(train_data_dir=str(location), image_column=column, cache_dir=str(tmp_path / "c"))
        for ours, theirs in zip(pixels(source), images, strict=True):
            np.testing.assert_array_equal(ours, np.asarray(theirs))
    held_out = load_image_dataset(
        train_data_dir=str(tmp_path), split="validation", image_column=column, cache_dir=str(tmp_path / "c")
    )
    np.testing.assert_array_equal(np.asarray(held_out[0]), np.asarray(picture(9)))


def test_a_single_file_and_max_samples(tmp_path):
    write_parquet(tmp_path / "some.parquet", [picture(index) for index in range(4)])
    source = load_image_dataset(
        train_data_dir=str(tmp_path / "some.parquet"), max_samples=3, cache_dir=str(tmp_path / "c")
    )
    assert len(source) == 3


def test_a_named_data_set_is_opened_by_datasets(tmp_path):
    import datasets

    (tmp_path / "repo").mkdir()
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [picture(0), picture(1)]}, features=features)
    table.to_parquet(tmp_path / "repo" / "train-00000-of-00001.parquet")
    source = load_image_dataset(dataset_name=str(tmp_path / "repo"), cache_dir=str(tmp_path / "c"))
    np.testing.assert_array_equal(np.asarray(source[1]), np.asarray(picture(1)))


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        load_image_dataset(dataset_name="a", train_data_dir="b")
    with pytest.raises(ValueError, match="nowhere"):
        load_image_dataset(train_data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="`split`.*'training'"):
        load_image_dataset(split="training")
    with pytest.raises(ValueError, match="`max_samples`"):
        load_image_dataset(max_samples=0)
    write_parquet(tmp_path / "some.parquet", [picture(0)])
    with pytest.raises(ValueError, match="`image_column`.*'label'.*'img'"):
        load_image_dataset(train_data_dir=str(tmp_path), image_column="img", cache_dir=str(tmp_path / "c"))
    picture(0).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="mixes"):
        load_image_dataset(train_data_dir=str(tmp_path))


# Transforms


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
