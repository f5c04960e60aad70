"""The scripts about the patch codec under benchmarks/: its speed beside faiss, and the orders of its codebooks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import ModelBasedVQCodec


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / "picture.png")
    pixels = torch.from_numpy(np.array(Image.open(folder / "picture.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    pixels = (pixels + 0.05 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    for notation in ("VQ-{8-8-8}", "PQ-{16-8-8}", "OPQ-{16-8-8}", "RQ-{16-8-8}"):
        codec = ModelBasedVQCodec.from_notation(notation)
        codec.fit(pixels, max_patches=1000, iterations=5, threads=2, progress=False).save_pretrained(folder / notation)
    codec = ModelBasedVQCodec.from_notation("PQ-{12-6-6}", codebook_bits=6)  # a shorter tour through its codewords
    codec.fit(pixels, max_patches=1000, iterations=5, threads=2, progress=False).save_pretrained(folder / "ordered")
    return folder


def test_files_of_priors_are_timed_beside_packed_ones(folder, tmp_path, here):
    sizes = ("--side", 128, "--rounds", 1)
    threads = torch.get_num_threads()
    code, output, said = here(
        BENCHMARKS / "benchmark_prior_speed.py", folder / "ordered", *sizes, "--output_dir", tmp_path
    )
    torch.set_num_threads(threads)
    assert code == 0, said
    row = json.loads((tmp_path / "prior_speed.json").read_text())["rows"]["ordered"]
    codec = ModelBasedVQCodec.from_pretrained(folder / "ordered")
    packed = len(codec.pack(codec.encode_to_code(torch.zeros(21, 3, 128, 128))))  # 2 × 3 and 3 × 5 tiles
    assert row["nominal"] == 8 * packed / (21 * 128 * 128) and 0 < row["prior"] < row["nominal"]
    assert row["compress_sites"] * 64 == pytest.approx(row["compress_pixels"])
    assert "| ordered |" in output


def test_the_speed_benchmark_compares_the_same_codes(folder, tmp_path, here):
    codecs = [folder / name for name in ("VQ-{8-8-8}", "PQ-{16-8-8}", "OPQ-{16-8-8}", "RQ-{16-8-8}")]
    sizes = ("--side", 64, "--rounds", 3, "--large", 100, 120)
    threads = torch.get_num_threads()
    code, output, said = here(BENCHMARKS / "benchmark_codec_speed.py", *codecs, *sizes, "--output_dir", tmp_path)
    torch.set_num_threads(threads)
    assert code == 0, said
    rows = json.loads((tmp_path / "codec_speed.json").read_text())["rows"]
    assert list(rows) == [path.name for path in codecs]
    for name, row in rows.items():
        assert f"| {name} |" in output
        assert row["large"]["encode_s"] > 0 and row["encode_ratio"] > 0 and row["decode_ratio"] > 0
        if not name.startswith("RQ"):  # ties aside, the very same
            assert row["agree"] > 0.99 and abs(row["excess"]) < 1e-3
        assert row["excess"] < 0.01  # not worse than faiss's beam search


def test_orders_are_judged_by_shifted_codes(folder, tmp_path, here):
    script = BENCHMARKS / "plot_codebook_order.py"
    code, output, _ = here(script, folder / "ordered", folder / "picture.png", "--output", tmp_path / "order.png")
    assert code == 0
    psnr = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in output.splitlines()[4:]}
    assert set(psnr) == {"random", "norm", "pca", "spectral", "salesman"}
    assert psnr["pca"] > psnr["random"] + 2 and psnr["salesman"] > psnr["random"] + 2
    width, height = Image.open(tmp_path / "order.png").size
    assert width > 6 * 68 and height == 68  # six pictures of 64 × 64 in a row, beside their names
