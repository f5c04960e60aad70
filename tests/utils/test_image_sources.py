"""Images from every kind of source, map-style and streamed; what cannot be read is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_lasers.training import bundled_photos, load_image_dataset
from diffusers_lasers.utils.image_decoding import UnreadableImageError
from diffusers_lasers.utils.image_sources import BUNDLED_PHOTOS, open_image_stream, to_rgb


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


# Unreadable images


def test_an_unreadable_file_is_named(tmp_path):
    whole = png(picture(0, size=(64, 64)))
    for name, contents in (("truncated.png", whole[: len(whole) // 2]), ("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(UnreadableImageError, match=f"^The image '.*{name}' cannot be read: .*\\.$"):
            load_image_dataset(train_data_dir=str(tmp_path / name))[0]


def test_an_unreadable_row_is_named(tmp_path):
    import datasets

    cells = [{"bytes": png(picture(0)), "path": None}, {"bytes": b"nothing", "path": None}]
    cells.append({"bytes": b"nothing", "path": "lost.jpg"})
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(tmp_path / "some.parquet")
    source = load_image_dataset(train_data_dir=str(tmp_path), cache_dir=str(tmp_path / "c"))
    np.testing.assert_array_equal(np.asarray(source[0]), np.asarray(picture(0)))
    for index, name in ((1, "row 1"), (2, "lost.jpg")):
        with pytest.raises(UnreadableImageError, match=name):
            source[index]
    with pytest.raises(UnreadableImageError, match="row 7"):
        to_rgb({"bytes": None, "path": None}, "row 7")


# Streams


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_a_stream_holds_the_same_pictures(tmp_path, kind):
    images = [picture(index) for index in range(5)]
    if kind == "parquet":
        write_parquet(tmp_path / "train-0.parquet", images)
    else:
        for index, image in enumerate(images):
            image.save(tmp_path / f"{index}.png")
    rows = list(open_image_stream(train_data_dir=str(tmp_path)))
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(np.asarray(to_rgb(row["image"], "row")), np.asarray(image))
    assert len(list(open_image_stream(train_data_dir=str(tmp_path), max_samples=2))) == 2


def test_what_cannot_be_streamed_is_named(tmp_path):
    with pytest.raises(ValueError, match="one of them"):
        open_image_stream()
    write_parquet(tmp_path / "some.parquet", [picture(0)])
    with pytest.raises(ValueError, match="`image_column`.*'img'"):
        open_image_stream(train_data_dir=str(tmp_path), image_column="img")


# Columns


def columns(tmp_path):
    """A parquet file with images, and with columns that are none."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat"]),
            "caption": datasets.Value("string"),
            "box": datasets.List(datasets.Value("float32")),
            "file": datasets.Value("string"),
        }
    )
    picture(4).save(tmp_path / "four.png")
    row = {
        "image": picture(0),
        "mask": {"bytes": b"damaged", "path": None},
        "label": 0,
        "caption": "a cat",
        "box": [0.5],
    }
    table = datasets.Dataset.from_list([{**row, "file": str(tmp_path / "four.png")}], features=features)
    table.to_parquet(tmp_path / "some.parquet")
    return str(tmp_path / "some.parquet")


@pytest.mark.parametrize("column", ["label", "caption", "box"])
def test_a_column_that_holds_no_images_is_one_sentence(tmp_path, column):
    place = columns(tmp_path)
    for load in (load_image_dataset, open_image_stream):
        with pytest.raises(
            ValueError, match=f"^`image_column` must name a column of images, '{column}' holds [^\n]*$"
        ):
            load(train_data_dir=place, image_column=column)


def test_other_columns_are_not_decoded_and_paths_are_read(tmp_path):
    place = columns(tmp_path)
    source = load_image_dataset(train_data_dir=place, cache_dir=str(tmp_path / "c"))
    np.testing.assert_array_equal(np.asarray(source[0]), np.asarray(picture(0)))
    assert list(next(iter(open_image_stream(train_data_dir=place)))) == ["image"]
    source = load_image_dataset(train_data_dir=place, image_column="file", cache_dir=str(tmp_path / "c"))
    np.testing.assert_array_equal(np.asarray(source[0]), np.asarray(picture(4)))
