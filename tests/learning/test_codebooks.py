"""Patches drawn uniformly in one pass; codebooks that faiss fits, the same from the same seed."""

import numpy as np
import pytest
import torch

from diffusers_lasers.functional import decode_product, decode_residual, encode_product, encode_residual, rgb_to_ycbcr
from diffusers_lasers.learning import fit_quantizer
from diffusers_lasers.learning.codebooks import QUANTIZERS
from diffusers_lasers.learning.patch_sampling import sample_patches


def pictures(count=3, size=(9, 12)):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) * 2 - 1 for _ in range(count)]


def test_all_patches_are_the_windows_of_image_and_flip():
    images = pictures(2)
    patches, total = sample_patches(images, 4, stride=2)
    expected = [rgb_to_ycbcr(view) for image in images for view in (image, image.flip(-2))]
    windows = torch.cat(
        [
            v[:, i : i + 4, j : j + 4].reshape(3, 1, 16)
            for v in expected
            for i in range(0, 6, 2)
            for j in range(0, 9, 2)
        ],
        dim=1,
    )
    assert total == windows.shape[1] == 60
    torch.testing.assert_close(patches, windows)


def test_a_sample_is_uniform_without_repetition_and_repeats():
    images = [torch.full((3, 6, 6), value) for value in (-0.5, 0.0, 0.5)]  # 25 windows each
    counts = np.zeros(3)
    for seed in range(60):
        patches, total = sample_patches(images, 2, max_patches=15, flip=False, seed=seed)
        assert patches.shape == (3, 15, 4) and total == 75
        counts += np.histogram(patches[0, :, 0], [-1, -0.25, 0.25, 1])[0]
    assert np.abs(counts / 900 - 1 / 3).max() < 0.05
    first, second = (sample_patches(pictures(), 3, max_patches=20, seed=5)[0] for _ in range(2))
    assert torch.equal(first, second) and len(torch.unique(first[0], dim=0)) == 20


def test_of_one_large_image_no_more_is_copied_than_can_be_kept(monkeypatch):
    from diffusers_lasers.learning import patch_sampling as patches

    held, keep = [], patches._keep

    def watched(parts, keys, count):
        held.append(sum(part.shape[1] for part in parts))
        return keep(parts, keys, count)

    monkeypatch.setattr(patches, "_keep", watched)
    large, total = sample_patches(pictures(2, (200, 300)), 4, max_patches=50)
    assert total == 4 * 197 * 297 and large.shape[1] == 50 and max(held) <= 4 * 50
    every, _ = sample_patches(pictures(2, (200, 300)), 4, max_patches=10**6)
    keys = np.random.default_rng(0).random(total)  # the sample is that of the smallest keys, in the images' order
    torch.testing.assert_close(large, every[:, np.sort(np.argsort(keys)[:50])])


def test_small_images_are_enlarged_and_bad_arguments_named():
    patches, total = sample_patches([torch.zeros(3, 1, 2)], 4, flip=False)
    assert total == 1 and patches.shape == (3, 1, 16)
    with pytest.raises(ValueError, match="at least one image"):
        sample_patches([], 4)
    for name in ("patch_size", "stride", "max_patches"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            sample_patches(pictures(), **{"patch_size": 4, name: 0})


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_codebooks_fit_and_repeat(kind):
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((8, 8))
    signals = (generator.standard_normal((4000, 8)) @ mixing).astype(np.float32)
    slots = 1 if kind == "VQ" else 2
    stages = []
    (books, rotation), (again, _) = (
        fit_quantizer(signals, kind, slots, 4, seed=s, threads=2, iterations=10, report=stages.append) for s in (3, 3)
    )
    np.testing.assert_array_equal(books, again)
    assert books.shape == (slots, 16, 8 if kind in ("VQ", "RQ") else 4) and books.dtype == np.float32
    assert len(stages) == 2 * (slots + (kind == "OPQ"))
    y, book = torch.from_numpy(signals), torch.from_numpy(books)
    if kind == "OPQ":
        turn = torch.from_numpy(rotation)
        torch.testing.assert_close(turn @ turn.t(), torch.eye(8), rtol=0, atol=1e-5)
        y = y @ turn.t()
    else:
        assert rotation is None
    decoded = (
        decode_residual(encode_residual(y, book), book)
        if kind == "RQ"
        else decode_product(encode_product(y, book), book)
    )
    explained = 1 - (decoded - y).square().sum() / (y - y.mean(0)).square().sum()
    assert explained > {"VQ": 0.5, "PQ": 0.6, "OPQ": 0.7, "RQ": 0.7}[kind]


def test_arguments_that_do_not_fit_are_named():
    signals = np.zeros((100, 8), dtype=np.float32)
    for arguments, name in (
        (("VQ", 2, 4), "`slots` must be 1"),
        (("PQ", 3, 4), "`slots` must divide"),
        (("VQ", 1, 8), "`signals` must hold"),
        (("LSQ", 1, 4), "`kind`"),
    ):
        with pytest.raises(ValueError, match=name):
            fit_quantizer(signals, *arguments)
