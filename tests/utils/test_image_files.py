"""What counts as an image file, which split it is of, and what is said about the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.utils.image_decoding import picture_formats
from diffusers_lasers.utils.image_files import ImageFiles, find_image_files
from diffusers_lasers.utils.image_sources import open_image_stream


def put(folder, *names):
    """Pictures of one colour each, at these paths."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (number, 0, 0)).save(path, "PNG")


def names(location, split="train"):
    source = load_image_dataset(train_data_dir=str(location), split=split)
    root = location if os.path.isdir(location) else os.path.dirname(location)
    return [Path(os.path.relpath(path, root)).as_posix() for path in source.paths]


def write_parquet(path, value):
    import io

    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": [{"bytes": buffer.getvalue(), "path": None}]}), path)


# Names


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_brackets_in_names_are_no_pattern(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for value, folder in ((1, "set[12]"), (2, "set1")):
        if kind == "images":
            (tmp_path / folder).mkdir()
            Image.new("RGB", (6, 5), (value, 0, 0)).save(tmp_path / folder / "a[1].png")
        else:
            write_parquet(tmp_path / folder / "a[1].parquet", value)
            write_parquet(tmp_path / folder / "a1.parquet", 9)
    place = str(tmp_path / "set[12]")
    source = load_image_dataset(train_data_dir=place, cache_dir=str(tmp_path / "c"))
    assert sorted(image.getpixel((0, 0))[0] for image in source) == ([1] if kind == "images" else [1, 9])
    rows = list(open_image_stream(train_data_dir=place))
    assert len(rows) == len(source)
    if kind == "images":
        assert rows[0]["image"]["path"] == source.paths[0]


@pytest.mark.parametrize("pattern", ["set[12]/*.png", "set[12]/**", "./set[12]/sub?/*", "set[12]/sub1"])
def test_brackets_before_a_pattern_are_a_name_where_there_is_such_a_folder(tmp_path, monkeypatch, pattern):
    put(tmp_path, "set[12]/a.png", "set[12]/sub1/b.png", "set1/a.png", "set1/sub1/b.png")
    monkeypatch.chdir(tmp_path)
    for place in (pattern, str(tmp_path / pattern)):
        found = find_image_files(place, "train").paths
        assert found and all("set[12]" in Path(path).parts for path in found)


def test_a_folder_given_to_datasets_by_name_must_be_no_pattern(tmp_path):
    write_parquet(tmp_path / "a[1]" / "train-00000-of-00001.parquet", 1)
    for load in (load_image_dataset, open_image_stream):
        with pytest.raises(ValueError, match="`dataset_name`.*`train_data_dir`"):
            load(dataset_name=str(tmp_path / "a[1]"))


def test_names_of_photographs_are_no_splits(tmp_path):
    photographs = ["test_drive.jpg", "train_station.jpg", *(f"{number}.jpg" for number in range(8))]
    put(tmp_path, *photographs)
    for split in ("train", "validation"):
        assert names(tmp_path, split) == sorted(photographs)


def test_a_class_of_trains_hides_no_other(tmp_path):
    put(tmp_path, "car/a.png", "plane/b.png", "train/c.png", "d.png")
    for split in ("train", "validation"):
        assert names(tmp_path, split) == ["car/a.png", "d.png", "plane/b.png", "train/c.png"]


@pytest.mark.parametrize(
    "folders, split, chosen",
    [
        (("train", "validation", "test"), "validation", "validation"),
        (("train", "validation", "test"), "test", "test"),
        (("train", "val"), "validation", "val"),
        (("Train", "Test"), "validation", "Test"),
        (("train", "test", "extra"), "train", "train"),
        (("train",), "train", "train"),
    ],
)
def test_folders_of_splits(tmp_path, folders, split, chosen):
    put(tmp_path, *(f"{folder}/class/x.png" for folder in folders))
    assert names(tmp_path, split) == [f"{chosen}/class/x.png"]
    said = str(find_image_files(str(tmp_path), split))
    assert f"split {split!r}, folder {chosen.lower()}/" in said
    assert ("of no split" in said) == ("extra" in folders)


def test_a_split_that_is_missing_is_named_with_the_way_out(tmp_path):
    put(tmp_path, "train/a.png", "test/b.png")
    with pytest.raises(ValueError, match=r"has splits \(test, train\) and not split 'other'.*\*'"):
        find_image_files(str(tmp_path), "other")
    assert names(tmp_path / "*", "other") == ["test/b.png", "train/a.png"]


def test_shards_are_of_the_split_that_their_names_begin_with(tmp_path):
    shards = ["train-00000-of-00002.parquet", "train-00001-of-00002-0a1b.PARQUET", "test-0.parquet", "notes.parquet"]
    for number, name in enumerate(shards):
        write_parquet(tmp_path / "data" / name, number)
    for split, chosen in (("train", shards[:2]), ("validation", shards[2:3])):
        files = find_image_files(str(tmp_path), split)
        assert [Path(path).name for path in files.paths] == sorted(chosen) and files.are_parquet
        assert "1 of no split" in str(files)
    others = tmp_path / "others"
    for name in ("train_station.parquet", "testing.parquet"):
        write_parquet(others / name, 0)
    assert len(find_image_files(str(others), "train").paths) == 2


# What is an image file


def test_every_suffix_that_pillow_reads_is_found(tmp_path):
    suffixes = (".jfif", ".avif", ".pgm", ".tga", ".jp2", ".JPG", ".gif", ".apng", ".mpo", ".qoi", ".ico")
    put(tmp_path, *(f"a{suffix}" for suffix in suffixes))
    for other in ("a.pdf", "a.eps", "a.mpg", "a.h5", "a.wmf", "a.txt", "a", "a.fits"):
        (tmp_path / other).write_bytes(b"")
    files = find_image_files(str(tmp_path), "train")
    assert {Path(path).suffix for path in files.paths} == set(suffixes)
    assert "11 images found (all, no splits)" in str(files) and "1 not images (.txt)" in str(files)
    assert "1 not images (without a suffix)" in str(files)
    assert {suffix.lower() for suffix in suffixes} <= set().union(*picture_formats().values())
    assert not {"EPS", "PDF", "MPEG", "HDF5"} & set(picture_formats())


def test_capital_parquet_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_parquet(tmp_path / "data" / "SOME.PARQUET", 7)
    for place in (tmp_path / "data", tmp_path / "data" / "SOME.PARQUET"):
        source = load_image_dataset(train_data_dir=str(place), cache_dir=str(tmp_path / "c"))
        assert [image.getpixel((0, 0)) for image in source] == [(7, 0, 0)]


def test_hidden_files_are_left_out_and_counted(tmp_path, caplog):
    put(
        tmp_path,
        "a.png",
        "._a.png",
        "__MACOSX/._a.png",
        "b/.ipynb_checkpoints/a.png",
        ".cache/a.png",
        "b/@eaDir/a.png",
    )
    assert names(tmp_path) == ["a.png"] == names(tmp_path / "**") == names(tmp_path / "*.png")
    assert "1 image found (all, no splits), left out: 5 hidden." in caplog.text
    put(tmp_path, ".mine/c.png")
    assert names(tmp_path / ".mine") == ["c.png"]  # asked for by name


def test_linked_folders_are_followed_once_and_cycles_end(tmp_path):
    put(tmp_path / "far", "x.png", "deep/y.png")
    put(tmp_path / "here", "a.png", "in/b.png")
    here = tmp_path / "here"
    try:
        (here / "linked").symlink_to(tmp_path / "far", target_is_directory=True)
        (here / "in" / "up").symlink_to(here, target_is_directory=True)
        (here / "in" / "again").symlink_to(here / "in", target_is_directory=True)
        (here / "file.png").symlink_to(tmp_path / "far" / "x.png")
        (here / "lost.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("no links on this system")
    expected = ["a.png", "file.png", "in/b.png", "linked/deep/y.png", "linked/x.png"]
    assert names(here) == expected
    assert names(here / "**") == expected
    said = str(find_image_files(str(here), "train"))
    assert "2 folders that were already read" in said and "1 broken links" in said


def test_patterns_with_any_number_of_folders(tmp_path):
    put(tmp_path, "a.png", "b/c.png", "b/d/e.png", "b/d/f.gif")
    for pattern, expected in {
        "**/*.png": ["a.png", "b/c.png", "b/d/e.png"],
        "b/**/*.png": ["c.png", "d/e.png"],
        "**/d/*": ["b/d/e.png", "b/d/f.gif"],
        "**": ["a.png", "b/c.png", "b/d/e.png", "b/d/f.gif"],
        "*": ["a.png", "b/c.png", "b/d/e.png", "b/d/f.gif"],  # a folder that matches is searched
        "?.png": ["a.png"],
    }.items():
        root = tmp_path / "b" if pattern.startswith("b/") else tmp_path
        files = find_image_files(str(tmp_path / pattern), "train")
        assert [Path(os.path.relpath(path, root)).as_posix() for path in files.paths] == expected, pattern


def test_what_is_no_regular_file_is_left_out(tmp_path):
    put(tmp_path, "a.png")
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes on this system")
    os.mkfifo(tmp_path / "b.png")
    assert names(tmp_path) == ["a.png"]
    assert "1 not regular files" in str(find_image_files(str(tmp_path), "train"))


# What is said


def test_the_user_is_told_once_what_was_found(tmp_path, caplog, capsys):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "notes.txt").write_text("")
    load_image_dataset(train_data_dir=str(tmp_path))
    open_image_stream(train_data_dir=str(tmp_path))
    said = [record.message for record in caplog.records]
    assert said == [f"{str(tmp_path)!r}: 2 images found (all, no splits), left out: 1 not images (.txt)."] * 2
    assert isinstance(find_image_files(str(tmp_path), "train"), ImageFiles)
    with pytest.raises(
        ValueError, match=r"No image or parquet file of split 'train'.*left out: 1 not images \(.txt\)"
    ):
        load_image_dataset(train_data_dir=str(tmp_path / "*.txt"))
    caplog.clear()
    load_image_dataset()
    assert "6 images taken" in caplog.text


def test_scripts_and_command_line_say_it_on_stderr(tmp_path, fresh):
    put(tmp_path / "photos", "a.png", "._a.png")
    script = """
import contextlib, io, sys
sys.stderr = io.StringIO()
from diffusers_lasers.training import load_image_dataset
load_image_dataset(train_data_dir="photos")
result["said"] = sys.stderr.getvalue()
"""
    assert "'photos': 1 image found (all, no splits), left out: 1 hidden.\n" in fresh(script, tmp_path)["said"]


def test_a_stream_of_files_reads_what_the_folder_has(tmp_path):
    put(tmp_path, "a.pgm", "b.jfif", "c[1].qoi", ".hidden.png")
    stream = open_image_stream(train_data_dir=str(tmp_path), image_column="photo", max_samples=5)
    rows = [row["photo"]["path"] for row in stream]
    assert rows == load_image_dataset(train_data_dir=str(tmp_path)).paths and len(rows) == 3
    np.testing.assert_array_equal(
        sorted(row["photo"]["path"] for row in stream.shuffle(seed=1, buffer_size=2)), sorted(rows)
    )


def test_a_stream_of_many_files_has_few_shards_and_every_file(tmp_path, monkeypatch):
    from diffusers_lasers.utils import image_sources

    put(tmp_path, *(f"{number // 10}/{number}.png" for number in range(30)))
    monkeypatch.setattr(image_sources, "_MOST_SHARDS", 8)
    stream = open_image_stream(train_data_dir=str(tmp_path))
    assert stream.num_shards == 8
    paths = [row["image"]["path"] for row in stream]
    assert sorted(paths) == load_image_dataset(train_data_dir=str(tmp_path)).paths
    assert len({Path(path).parent for path in paths[:4]}) == 3  # of every class from the start
