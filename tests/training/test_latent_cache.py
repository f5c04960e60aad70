"""Latent caches: what comes back is the autoencoder's latents at the asked ratio, whatever happened while writing."""

import importlib
import json
import os
import shutil
import signal
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors import safe_open

from diffusers_lasers import ScalarQuantizerBottleneck
from diffusers_lasers.commands import main
from diffusers_lasers.models.autoencoders import encode_latents
from diffusers_lasers.training import (
    BucketBatchSampler,
    ImageRows,
    LatentCode,
    Windows,
    export_latent_cache,
    load_image_dataset,
    load_latent_cache,
    load_latent_code,
    write_latent_cache,
)
from diffusers_lasers.training.latent_cache.latent_code import fit_latent_code, signal_to_noise
from diffusers_lasers.utils.distributed import wait_after_collectives


def picture(width, height, seed):
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


SIZES = [(64, 64), (96, 64), (64, 96), (80, 80), (64, 64), (130, 64), (64, 64), (96, 64), (72, 64), (64, 64), (64, 64)]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for number, size in enumerate(SIZES):
        picture(*size, number).save(folder / f"{number:02d}.png")
        lines.append({"file_name": f"{number:02d}.png", "caption": f"picture {number}", "label": number % 3})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.3,
        shift_factor=0.1,
    ).save_pretrained(folder)
    return folder


def rows_of(photos, **arguments):
    return ImageRows(load_image_dataset(train_data_dir=str(photos)), str(photos), **arguments)


def load(vae):
    return AutoencoderKL.from_pretrained(vae).eval()


def write(folder, photos, vae, windows=None, **arguments):
    shared = {"shard_size": 3, "batch_size": 2, "workers": 2, "fit_images": 6, "progress": False}
    windows = windows or Windows((64,), 2.0, 16)
    return write_latent_cache(folder, load(vae), rows_of(photos), windows, **shared | arguments)


def table(folder):
    return pyarrow.parquet.read_table(folder / "data").to_pylist()


@pytest.fixture(scope="session")
def cache(photos, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    write(folder, photos, vae)
    return folder


def expected_latents(photos, vae, windows):
    """Latents and sizes by the plain way: cut, scale, encode, one at a time."""
    model, found = load(vae), []
    for path in sorted(photos.glob("*.png")):
        image = Image.open(path).convert("RGB")
        for window in windows.of(image.size):
            pixels = torch.from_numpy(window.pixels(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                found.append((encode_latents(model, pixels)[0], window))
    return found


def test_rows_decode_to_the_latents_at_the_asked_ratio(cache, photos, vae, tmp_path):
    rows = load_latent_cache(cache, cache_dir=str(tmp_path))
    wanted = expected_latents(photos, vae, Windows((64,), 2.0, 16))
    assert len(rows) == len(wanted) == len(SIZES)
    noise = sum(float((row["latents"] - z).square().sum()) for row, (z, _) in zip(rows, wanted))
    mean = load_latent_code(cache).bottleneck.latent_shift[:, None, None]
    power = sum(float((z - mean).square().sum()) for z, _ in wanted)
    facts = json.loads((cache / "cache.json").read_text())
    assert 10 * np.log10(power / noise) == pytest.approx(facts["measured"]["snr_db"], abs=0.01)
    assert 29 < facts["measured"]["snr_db"] < 33
    elements = sum(z.numel() for z, _ in wanted)
    size = sum(path.stat().st_size for path in (cache / "data").iterdir())
    assert facts["measured"]["bits_per_element"] == pytest.approx(8 * size / elements)
    for number, (row, (z, window)) in enumerate(zip(rows, wanted)):
        assert (row["height"], row["width"]) == window.size and row["latents"].shape == z.shape
        assert (row["original_width"], row["original_height"]) == SIZES[number]
        assert row["caption"] == f"picture {number}" and row["label"] == number % 3
        assert row["file_name"] == f"{number:02d}.png"
    assert rows[-1]["caption"] == "picture 10"  # random access
    assert len({row["height"] / row["width"] for row in rows}) > 2


def test_streamed_packed_and_in_batches_they_are_the_same(cache, tmp_path):
    rows = load_latent_cache(cache, cache_dir=str(tmp_path))
    streamed = list(load_latent_cache(cache, streaming=True))
    packed = load_latent_cache(cache, decode=False, columns=["label"], cache_dir=str(tmp_path))
    assert set(packed.column_names) == {"code", "label"}
    decoded = load_latent_code(cache).decode(packed[:]["code"])
    for row, other, latents in zip(rows, streamed, decoded, strict=True):
        assert torch.equal(row["latents"], other["latents"]) and row["caption"] == other["caption"]
        assert torch.equal(row["latents"], latents)


def test_batches_have_one_size_and_ranks_share_them(cache, tmp_path):
    rows = load_latent_cache(cache, cache_dir=str(tmp_path))
    sampler = BucketBatchSampler(rows, 2, seed=3)
    loader = torch.utils.data.DataLoader(
        rows, batch_sampler=sampler, num_workers=1, collate_fn=lambda batch: torch.stack([r["latents"] for r in batch])
    )
    assert sum(len(batch) for batch in loader) == len(rows) and len(loader) == len(sampler)
    again = BucketBatchSampler(rows, 2, seed=3)
    first, second = list(again), list(again)
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(len(rows)))
    shares = [list(BucketBatchSampler(rows, 2, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(first) // 2
    assert all(batch in first for share in shares for batch in share)
    assert all(len(batch) == 2 for batch in BucketBatchSampler(rows, 2, drop_last=True))
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "rank": 2, "world_size": 2}):
        with pytest.raises(ValueError, match="must be"):
            BucketBatchSampler(rows, **arguments)


def test_crops_and_flips(photos, vae, tmp_path):
    windows = Windows((64,), crops=2, flip=True)
    write(tmp_path / "cache", photos, vae, windows)
    rows = table(tmp_path / "cache")
    assert len(rows) == 4 * len(SIZES) and len({row["key"] for row in rows}) == len(rows)
    wanted = expected_latents(photos, vae, windows)
    decoded = load_latent_code(tmp_path / "cache").decode([row["code"] for row in rows])
    for row, latents, (z, window) in zip(rows, decoded, wanted, strict=True):
        assert (row["crop"], row["flip"]) == (window.crop, window.flip)
        box = (row["crop_left"], row["crop_top"], row["crop_width"], row["crop_height"])
        assert box == window.box
        assert float((latents - z).square().mean()) < 0.01 * float(z.var())


def test_unchanged_images_are_not_encoded_again(cache, photos, vae, tmp_path, monkeypatch):
    folder, more = tmp_path / "cache", tmp_path / "photos"
    shutil.copytree(cache, folder)
    shutil.copytree(photos, more)
    encoded = []
    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    stamps = {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}
    write(folder, photos, vae)
    assert not encoded and stamps == {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}
    picture(64, 64, 99).save(more / "005.png")  # between the others
    text = (more / "metadata.jsonl").read_text() + json.dumps({"file_name": "005.png", "caption": "new", "label": 9})
    (more / "metadata.jsonl").write_text(text)
    (more / "03.png").unlink()
    write(folder, more, vae)
    assert sum(encoded) == 1
    before, after = ({row["caption"]: row for row in table(place)} for place in (cache, folder))
    assert set(after) == set(before) - {"picture 3"} | {"new"}
    assert all(after[name] == before[name] for name in set(after) & set(before))


def test_a_damaged_shard_is_named_and_mended(cache, photos, vae, tmp_path, caplog):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    path = sorted((folder / "data").iterdir())[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1  # in the codes
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load_latent_cache(folder, verify=True)
    path.write_bytes(data[:-7])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load_latent_cache(folder)
    path.write_bytes(data)
    write(folder, photos, vae)
    assert path.name in caplog.text and table(folder) == table(cache)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        load_latent_cache(folder)


def command(photos, vae, folder):
    words = ["cache", str(photos), "--autoencoder", str(vae), "--output_dir", str(folder), "--device", "cpu"]
    words += "--resolution 64 --max_aspect_ratio 2 --bucket_multiple 16 --shard_size 3 --batch_size 2".split()
    return [*words, "--num_workers", "2", "--fit_images", "6"]


ROOM = "diffusers_lasers.training.latent_cache."
MOMENTS = [
    (ROOM + "latent_code", "LatentCode", 1),  # the sample is read
    (ROOM + "caching", "write_json", 1),  # the code is there, its settings are not
    (ROOM + "writing", "write_shard", 1),
    (ROOM + "writing", "write_shard", 3),
    ("os", "fsync", 5),  # in the middle of files
    ("os", "fsync", 8),
    ("os", "replace", 5),
    ("os", "replace", 8),
    (ROOM + "caching", "finish_cache", 1),
    (ROOM + "cache_folder", "write_json", 1),
]


def run_and_kill(words, module, name, number):
    """Runs a command in a fork that kills itself when a function is called for the so-manyth time."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        torch.set_num_threads(1)
        count, function = 0, getattr(importlib.import_module(module), name)

        def killed(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(importlib.import_module(module), name, killed)
        os._exit(main(words))
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("module, name, number", MOMENTS)
def test_a_killed_run_goes_on(cache, photos, vae, tmp_path, module, name, number):
    words = command(photos, vae, tmp_path / "cache")
    assert run_and_kill(words, module, name, number) == signal.SIGKILL
    with pytest.raises(ValueError, match="must be whole|no cache.json"):
        load_latent_cache(tmp_path / "cache")
    assert main(words) == 0
    assert table(tmp_path / "cache") == table(cache)
    names = [sorted(os.listdir(place / "data")) for place in (cache, tmp_path / "cache")]
    assert names[0] == names[1]


def _rank(rank, port, folder):
    PartialState._reset_state()
    words = json.loads(os.environ["CACHE_COMMAND"])
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    torch.set_num_threads(1)
    code = main(words)
    wait_after_collectives()
    torch.save({"code": code}, f"{folder}/{rank}.pt")


def test_two_processes_write_what_one_writes(cache, photos, vae, tmp_path, in_two_processes, monkeypatch):
    monkeypatch.setenv("CACHE_COMMAND", json.dumps(command(photos, vae, tmp_path / "cache")))
    assert in_two_processes(_rank, tmp_path) == [{"code": 0}] * 2
    assert table(tmp_path / "cache") == table(cache)
    assert (tmp_path / "cache" / "cache.json").read_text() == (cache / "cache.json").read_text()


def test_deviation_fast_reading_and_tables(photos, vae, tmp_path):
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": None}, "text": path.name, "kind": number % 2}
        for number, path in enumerate(photos.glob("*.png"))
    ]
    kinds = {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["a", "b"]),
    }
    saved = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    saved.to_parquet(tmp_path / "photos.parquet")
    source = load_image_dataset(train_data_dir=str(tmp_path / "photos.parquet"), cache_dir=str(tmp_path))
    arguments = {"deviation": True, "fast_reading": True, "target_snr": 25.0, "progress": False}
    facts = write_latent_cache(tmp_path / "cache", load(vae), ImageRows(source), Windows((64,)), **arguments)
    assert facts["measured"]["snr_db"] > 24
    code = load_latent_code(tmp_path / "cache")
    assert code.prior is None and len(set(code.bottleneck.levels)) > 1
    found = load_latent_cache(tmp_path / "cache", cache_dir=str(tmp_path))
    assert found.features["kind"].names == ["a", "b"]
    for row, cell in zip(found, rows, strict=True):
        assert (row["text"], row["kind"]) == (cell["text"], cell["kind"])
        image = Image.open(photos / row["text"]).convert("RGB")
        pixels = torch.from_numpy(Windows((64,)).of(image.size)[0].pixels(image).copy()).permute(2, 0, 1)[None]
        spread = load(vae).encode(pixels / 127.5 - 1).latent_dist.std[0].detach() * 0.3
        assert row["deviation"].shape == spread.shape
        assert float((row["deviation"] / spread).log().abs().max()) < 0.2


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_export(cache, tmp_path, kind):
    assert main(["cache-export", str(cache), str(tmp_path / "out"), "--format", kind]) == 0
    rows = list(load_latent_cache(cache, streaming=True))
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == len(rows)
    for path, row in zip(files, rows):
        if kind == "npz":
            with np.load(path) as found:
                latents, columns = torch.from_numpy(found["latents"]), json.loads(str(found["columns"]))
        else:
            with safe_open(path, "pt") as found:
                latents, columns = found.get_tensor("latents"), json.loads(found.metadata()["columns"])
        assert torch.equal(latents, torch.as_tensor(row["latents"]).half())
        assert columns["caption"] == row["caption"]
    with pytest.raises(ValueError, match="`kind` must be"):
        export_latent_cache(cache, tmp_path, "zip")


@pytest.mark.parametrize("target", [12.0, 20.0, 30.0, 40.0])
@pytest.mark.parametrize("fast", [False, True])
def test_a_code_reaches_its_target_and_no_more(target, fast):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    spread = torch.tensor([8.0, 4, 2, 1, 0.5, 0.25])[:, None, None]
    latents = [
        torch.einsum("ij,bjhw->bihw", mixing, torch.randn(1, 6, 16, 12, generator=generator) * spread) + 3
        for _ in range(40)
    ]
    code = fit_latent_code(latents, "klt", target, fast)
    assert target - 0.01 <= signal_to_noise(code, latents[4::5]) < target + (2.0 if fast else 0.3)
    data, decoded = code.encode(torch.cat(latents[:3]))
    assert all(torch.equal(one, other) for one, other in zip(code.decode(data), decoded))
    # Shannon's bound of Gaussian axes, by water-filling, in float64
    variances = torch.linalg.eigvalsh(torch.cov(torch.cat(latents).double().transpose(0, 1).flatten(1)))
    low, high = 0.0, float(variances.max())
    for _ in range(60):
        level = (low + high) / 2
        reached = float(variances.clamp_max(level).sum() / variances.sum()) <= 10 ** (-target / 10)
        low, high = (level, high) if reached else (low, level)
    bound = float((variances / low).clamp_min(1).log2().sum()) / 2 / 6
    bits = 8 * sum(len(part) - 37 for part in data) / (3 * latents[0].numel())  # but for headers
    assert bound < bits < bound + (1.7 if fast else 0.5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"code": "jpeg"}, "`kind` must be one of"),
        ({"target_snr": 90.0}, "`target_snr` must be above 0 and at most 60"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"deviation": True, "autoencoder": "tiny"}, "`deviation` must be False for AutoencoderTiny"),
        ({"windows": Windows((65,))}, "`resolutions` must be multiples of"),
    ],
)
def test_bad_arguments_are_one_sentence(photos, vae, tmp_path, arguments, words):
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    model = tiny if arguments.pop("autoencoder", None) else load(vae)
    windows = arguments.pop("windows", Windows((64,)))
    with pytest.raises(ValueError, match=words) as caught:
        write_latent_cache(tmp_path / "cache", model, rows_of(photos), windows, progress=False, **arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache" / "cache.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../elsewhere.parquet"},
        {"name": "/etc/passwd"},
        {"name": 3},
        {"bytes": "many"},
        {"bytes": True},
        {"sha256": None},
    ],
)
def test_a_strangers_list_of_shards_leads_nowhere_else(cache, tmp_path, change):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    facts = json.loads((folder / "cache.json").read_text())
    facts["shards"][0] |= change
    (folder / "cache.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="is damaged: its shards must have a name such as 00000-"):
        load_latent_cache(folder)


def test_bad_folders_and_columns_are_one_sentence(cache, photos, vae, tmp_path, capsys):
    with pytest.raises(ValueError, match="has `target_snr` 30.0, got 20.0"):
        write(cache, photos, vae, target_snr=20.0)
    with pytest.raises(ValueError, match="`columns` must be some of"):
        rows_of(photos, columns=["captions"])
    with pytest.raises(ValueError, match="`columns` must be some of"):
        load_latent_cache(cache, columns=["captions"], cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="must be a latent cache"):
        load_latent_cache(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,flip\n00.png,1\n")
    with pytest.raises(ValueError, match="must name every image"):
        rows_of(photos, metadata=str(tmp_path / "metadata.csv"))
    lines = [f"{photos}/{number:02d}.png,{number}" for number in range(len(SIZES))]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,flip", *lines]))
    with pytest.raises(ValueError, match="must not have names of the cache's own, got 'flip'"):
        write_latent_cache(
            tmp_path, load(vae), rows_of(photos, metadata=str(tmp_path / "metadata.csv")), Windows((64,))
        )
    for fields in ({"resolutions": ()}, {"resolutions": (64,), "max_aspect_ratio": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            Windows(**fields)
    assert (
        main(["cache", str(photos), "--autoencoder", str(tmp_path / "no"), "--output_dir", str(tmp_path / "x")]) == 2
    )
    assert capsys.readouterr().err.count("\n") <= 3


def test_unreadable_images_are_named_or_left_out(photos, vae, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "04.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="04.png"):
        write(tmp_path / "cache", tmp_path / "photos", vae)
    facts = write(tmp_path / "cache", tmp_path / "photos", vae, skip_unreadable=True)
    assert facts["measured"]["rows"] == len(SIZES) - 1
    assert [row["label"] for row in table(tmp_path / "cache")] == [n % 3 for n in range(len(SIZES)) if n != 4]


def test_a_bottleneck_of_ones_own(photos, vae, tmp_path):
    latents = [z[None] for z, _ in expected_latents(photos, vae, Windows((64,)))]
    bottleneck = ScalarQuantizerBottleneck(4, bits=5)
    bottleneck.fit(torch.cat(latents))
    facts = write(tmp_path / "cache", photos, vae, Windows((64,)), code=LatentCode(bottleneck))
    found = load_latent_code(tmp_path / "cache")
    assert found.prior is not None and found.bottleneck.fingerprint == bottleneck.fingerprint
    assert facts["measured"]["bits_per_element"] < 16


def test_windows_lie_in_the_image_and_have_its_shape():
    windows = Windows((64, 128), 2.0, 16, crops=3, flip=True)
    for size in [(64, 64), (1000, 100), (100, 1000), (127, 129), (300, 200), (17, 17)]:
        found = windows.of(size)
        assert len(found) == windows.per_image == 6
        for window in found:
            left, top, width, height = window.box
            assert 0 <= left <= left + width <= size[0] and 0 <= top <= top + height <= size[1]
            assert window.size[0] * window.size[1] <= 128**2
            ratio = (width / height) / (window.size[1] / window.size[0])
            assert 1 - 1.1 / min(width, height) < ratio < 1 + 1.1 / min(width, height)
    assert windows.bucket((300, 200))[1] > windows.bucket((300, 200))[0]
    assert windows.bucket((64, 64)) == (64, 64) and windows.bucket((200, 200)) == (128, 128)
    flipped, plain = (
        window.pixels(picture(80, 80, 0)) for window in (windows.of((80, 80))[1], windows.of((80, 80))[0])
    )
    assert np.array_equal(flipped, plain[:, ::-1])


def test_pushed_and_loaded_from_the_hub(cache, photos, vae, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, name, exist_ok, repo_type):
            calls.append(repo_type)
            return SimpleNamespace(repo_id=f"user/{name}")

        def upload_folder(self, repo_id, repo_type, folder_path, commit_message, ignore_patterns):
            calls.append((repo_id, repo_type))
            shutil.copytree(folder_path, tmp_path / "hub", ignore=shutil.ignore_patterns(".*"))

    def download(repo, repo_type, revision, token, allow_patterns):
        assert (repo, repo_type, revision, token) == ("user/x", "dataset", None, None)
        return tmp_path / "hub"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    shutil.copytree(cache, tmp_path / "cache")
    words = [
        *command(photos, vae, tmp_path / "cache"),
        "--push_to_hub",
        "--hub_dataset_id",
        "x",
        "--hub_token",
        "hf_1",
    ]
    assert main(words) == 0
    assert ("user/x", "dataset") in calls and "dataset" in calls and set(calls) & {"hf_1"}
    rows = load_latent_cache("user/x", cache_dir=str(tmp_path))
    assert [row["caption"] for row in rows] == [row["caption"] for row in table(cache)]
    card = huggingface_hub.DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.configs[0]["data_files"] == "data/*.parquet"
    assert not list((tmp_path / "hub").rglob(".*"))
