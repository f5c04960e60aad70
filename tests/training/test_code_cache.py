"""Cached codes are those of the images and the model that are asked for, whoever makes some too, whatever is killed."""

import multiprocessing
import os
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import ModelBasedVQCodec
from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.training.data.code_cache import cached_codes, images_fingerprint, model_fingerprint


CODES = np.arange(24).reshape(6, 2, 2, 1) % 16


def make(calls=None, wait=0.0):
    def blocks():
        if calls is not None:
            calls.append(1)
        for start in (0, 4):
            time.sleep(wait)
            yield CODES[start : start + 4]

    return blocks


def cached(folder, key=None, blocks=None, shape=CODES.shape, symbols=16):
    return cached_codes(folder, "train", key or {"images": "a"}, blocks or make(), shape, symbols)


@pytest.fixture(scope="module")
def codec():
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=4, codebook_bits=4)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return codec.fit(images, max_patches=500, iterations=5, progress=False)


def photos(folder, count=3, start=0):
    folder.mkdir(exist_ok=True)
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def of(folder, **more):
    return images_fingerprint(load_image_dataset(train_data_dir=str(folder), **more))


def test_codes_are_made_once_and_in_the_smallest_type(tmp_path):
    calls = []
    for _ in range(2):
        codes = cached(tmp_path / "codes", blocks=make(calls))
        assert codes.dtype == np.uint8 and np.array_equal(codes, CODES) and not codes.flags.writeable
    assert calls == [1]
    assert cached(tmp_path / "codes", symbols=300).dtype == np.uint16
    assert len(list((tmp_path / "codes").glob("train-*.npy"))) == 2
    assert not list((tmp_path / "codes").glob(".*.tmp"))


@pytest.mark.parametrize("block", [np.full((6, 2, 2, 1), 16), np.full((6, 2, 2, 1), -1), CODES[:5], CODES[:, :1]])
def test_wrong_codes_are_refused_and_leave_nothing(tmp_path, block):
    with pytest.raises(ValueError, match="`make` must give"):
        cached(tmp_path, blocks=lambda: [block])
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*.tmp"))
    assert np.array_equal(cached(tmp_path), CODES)


def test_the_same_words_in_another_folder_are_other_images(tmp_path, monkeypatch):
    for name, start in (("a", 0), ("b", 10)):
        (tmp_path / name).mkdir()
        photos(tmp_path / name / "photos", start=start)
    found = []
    for name in ("a", "b", "a"):
        monkeypatch.chdir(tmp_path / name)
        found.append(of("photos"))
    assert found[0] == found[2] != found[1]
    monkeypatch.chdir("/")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "photos")
    assert of(tmp_path / "link") == of(tmp_path / "a" / "photos") == found[0]


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "changed", "changed with its old time", "fewer"])
def test_changed_images_are_other_images(tmp_path, change):
    folder = photos(tmp_path / "photos")
    before, first = of(folder), folder / "0.png"
    assert of(folder) == before
    if change == "added":
        photos(folder, 6, start=3)
    elif change == "removed":
        first.unlink()
    elif change == "renamed":
        first.rename(folder / "9.png")
    elif change == "fewer":
        assert of(folder, max_samples=2) != before
        return
    else:
        old, data = first.stat(), bytearray(first.read_bytes())
        data[-20] ^= 1  # of the same size
        time.sleep(0.02)
        first.write_bytes(data)
        if change.endswith("time"):
            os.utime(first, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert of(folder) != before


def test_data_sets_count_by_their_fingerprint(tmp_path):
    def write(count):
        rows = {"image": [{"bytes": path.read_bytes()} for path in sorted(photos(tmp_path / "p").iterdir())[:count]]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train.parquet")

    (tmp_path / "data").mkdir()
    write(3)
    place = {"cache_dir": str(tmp_path / "cache")}
    before = of(tmp_path / "data", **place)
    assert of(tmp_path / "data", **place) == before != of(tmp_path / "data", max_samples=2, **place)
    time.sleep(0.02)
    write(2)
    assert of(tmp_path / "data", **place) != before


def test_other_sequences_count_by_their_pixels():
    pictures = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert images_fingerprint(pictures) == images_fingerprint([picture.copy() for picture in pictures])
    assert images_fingerprint(pictures) != images_fingerprint(pictures[::-1])


def test_a_copied_codec_is_the_same_codec(codec, tmp_path):
    for name in ("one", "two"):
        codec.save_pretrained(tmp_path / name)
    first, second = (ModelBasedVQCodec.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert model_fingerprint(first) == model_fingerprint(second) == model_fingerprint(codec)
    first.reorder("random")
    assert model_fingerprint(first) != model_fingerprint(second)


def test_a_damaged_file_is_made_anew(tmp_path, caplog):
    cached(tmp_path)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(cached(tmp_path), CODES)
    assert "is damaged" in caplog.text


def worker(folder, barrier, answers):
    calls = []
    barrier.wait()
    codes = cached(folder, blocks=make(calls, wait=0.3))
    answers.put((len(calls), bool(np.array_equal(codes, CODES))))


def test_processes_that_start_at_once_share_one_making(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=worker, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == [(0, True), (0, True), (0, True), (1, True)]


KILLED = """
codes = np.arange(24).reshape(6, 2, 2, 1) % 16
def get(folder):
    blocks = lambda: [codes[:4], codes[4:]]
    return cached_codes(folder / "codes", "train", {"a": 1}, blocks, codes.shape, 16)
def prepare(folder): pass
def write(folder): get(folder)
def check(folder, ended):
    assert np.array_equal(get(folder), codes)
    assert not list((folder / "codes").glob(".*.tmp"))
"""


def test_a_kill_at_any_system_call_leaves_a_whole_cache_or_none(killed_everywhere, tmp_path):
    imports = "import numpy as np\nfrom diffusers_lasers.training.data.code_cache import cached_codes"
    # what is left of a killed writer is cleared by the next one; where it was killed just after the rename, nothing is
    assert killed_everywhere(imports, KILLED, tmp_path) > 10
