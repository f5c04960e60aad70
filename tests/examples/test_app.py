"""examples/app.py: its results against other computations, its cache against crashes, and the page in a real
browser."""

import copy
import io
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from diffusers_lasers import AutoencoderDL, FactorizedPrior, ModelBasedVQCodec
from diffusers_lasers.metrics import CodeRate, flip_map
from diffusers_lasers.visualization.image_grids import to_image


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # the page's own modules stand beside it

import app  # noqa: E402
import app_cache  # noqa: E402
import app_html  # noqa: E402
import app_models  # noqa: E402
import app_results as results  # noqa: E402


NETWORK = {"block_out_channels": (8, 8, 16), "residual_channels": 8, "latent_channels": 6}
ATOMS, SPARSITY, BITS = 24, 4, 6


def autoencoder(kind="dictionary", seed=0, **config):
    torch.manual_seed(seed)
    if kind == "dictionary":
        config = {"num_atoms": ATOMS, "sparsity": SPARSITY, "coefficient_bits": BITS, **config}
    model = AutoencoderDL(bottleneck_type=kind, bottleneck_config=config, **NETWORK).eval()
    with torch.no_grad():
        model.bottleneck.initialize(model.encode(torch.rand(4, 3, 32, 32) * 2 - 1).latents)
    return model


def trained(model, steps=60):
    """Enough for a picture in which sparsity and bits can be seen."""
    pixels = [torch.from_numpy(np.array(noise(32, 32, seed))).permute(2, 0, 1) / 127.5 - 1 for seed in range(8)]
    pixels, optimizer = torch.stack(pixels), torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        output = model(pixels)
        (torch.nn.functional.mse_loss(output.sample, pixels) + output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.bottleneck.dictionary.div_(model.bottleneck.dictionary.norm(dim=0))
    return model.eval()


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def prior_of(model):
    """The prior of a model's codes of a few pictures."""
    pixels = [torch.from_numpy(np.array(noise(64, 48, seed))).permute(2, 0, 1) / 127.5 - 1 for seed in range(4)]
    return FactorizedPrior.from_coder(model).fit(model.encode_to_code(torch.stack(pixels)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    model = trained(autoencoder())
    model.save_pretrained(folder / "dl")
    prior_of(model).save_pretrained(folder / "dl" / "prior")
    autoencoder("vq", seed=1, num_codewords=16).save_pretrained(folder / "vq")
    pixels = torch.from_numpy(np.array(noise(96, 64))).permute(2, 0, 1)[None] / 127.5 - 1
    codec = ModelBasedVQCodec.from_notation("PQ-{8-4-4}", patch_size=8, codebook_bits=4)
    codec.fit(pixels, max_patches=600, iterations=3, threads=1, progress=False).save_pretrained(folder / "codec")
    noise(90, 61).save(folder / "picture.png")
    return folder


@pytest.fixture
def picture(folder):
    return results.read_picture(str(folder / "picture.png"), 128)


# Pictures


def test_a_picture_is_scaled_to_the_limit_and_says_so(tmp_path):
    noise(300, 120).save(tmp_path / "large.jpg")
    picture = results.read_picture(str(tmp_path / "large.jpg"), 100)
    assert picture.size == (40, 100) and "100 × 40 pixels, scaled from 300 × 120" in picture.note
    assert picture.pixels.shape == (1, 3, 40, 100) and -1 <= picture.pixels.min() < picture.pixels.max() <= 1
    assert to_image(picture.pixels[0]).tobytes() == picture.image.tobytes()
    whole = results.read_picture(str(tmp_path / "large.jpg"), 300)
    assert whole.note == "300 × 120 pixels" and whole.key != picture.key


@pytest.mark.parametrize(
    "name, contents, sentence",
    [
        ("notes.png", b"no picture at all", "“notes.png” cannot be read as a picture"),
        ("empty.jpg", b"", "“empty.jpg” cannot be read as a picture"),
        ("cut.png", None, "“cut.png” cannot be read as a picture"),
        ("tiny.png", (8, 40), "too small: it has 8 × 40 pixels, and each side needs at least 16"),
        ("narrow.png", (400, 20), r"too small: it has 400 × 20 pixels, 128 × 6 after scaling"),
        ("huge.png", (300, 300), "more than the 0 million"),
    ],
)
def test_what_is_no_picture_for_us_is_one_sentence(name, contents, sentence, tmp_path, monkeypatch):
    path = tmp_path / name
    if name == "huge.png":
        monkeypatch.setattr(results, "MOST_PIXELS", 80_000)
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        noise(*(contents or (200, 200))).save(path)
    if contents is None:
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(results.PictureError, match=sentence) as caught:
        results.read_picture(str(path), 128)
    assert str(tmp_path) not in str(caught.value) and str(caught.value).endswith(".")


# Codes


@pytest.mark.parametrize("scaling", ["depth", "shared"])
@pytest.mark.parametrize("bits", [None, 3, BITS])
@pytest.mark.parametrize("sparsity", [1, 3, SPARSITY])
def test_a_setting_is_what_a_model_of_that_sparsity_and_bits_gives(sparsity, bits, scaling, picture):
    model = autoencoder(coefficient_scaling=scaling)
    before = copy.deepcopy(model)
    point = results.reconstruct(model, picture, results.encode(model, picture), sparsity, bits)

    other = AutoencoderDL(
        bottleneck_config={
            **{"num_atoms": ATOMS, "sparsity": sparsity, "coefficient_bits": bits, "coefficient_scaling": scaling}
        },
        **NETWORK,
    ).eval()
    weights = model.state_dict()
    scale = weights["bottleneck.coefficient_scale"]
    if scaling == "shared":  # the largest of all depths serves each
        scale = scale.max().expand_as(scale)
    other.load_state_dict({**weights, "bottleneck.coefficient_scale": scale[:sparsity].clone()})
    code = other.encode_to_code(picture.pixels)
    with torch.no_grad():
        sample = other.decode_from_code(code).sample.clamp(-1, 1)
    assert torch.equal(point.code.indices, code.indices)
    step = 0 if bits is None else float(scale.max()) * 2.0 ** (1 - bits)
    error = (point.code.coefficients - code.coefficients).abs()
    assert (
        error > 1e-4
    ).float().mean() < 0.01 and error.max() < 1.01 * step + 1e-4  # a cell further where rounding ties
    torch.testing.assert_close(point.sample, sample, atol=0.05 if bits else 1e-4, rtol=0)
    assert point.bits_per_pixel == pytest.approx(other.bits_per_pixel(*picture.size))
    assert 0 <= point.size - point.bits_per_pixel * picture.image.width * picture.image.height / 8 <= 40  # the header
    expected = peak_signal_noise_ratio(picture.pixels.numpy(), point.sample.numpy(), data_range=2)
    assert point.psnr == pytest.approx(expected, abs=1e-4)
    rate = CodeRate(other.bottleneck)
    rate.update(point.code)
    assert point.entropy_bits_per_pixel == pytest.approx(float(rate.compute()["entropy_bits_per_pixel"]))

    assert model.bottleneck.config == before.bottleneck.config and model.bottleneck.config.coefficient_bits == BITS
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize(
    "kind, config, text",
    [
        ("vq", {"num_codewords": 16}, "VQ, 16 codewords"),
        ("residual_vq", {"num_codewords": 16, "depth": 3}, "residual VQ, 3 × 16 codewords"),
        ("fsq", {"levels": [5, 5, 7, 5, 5, 5]}, "FSQ, 6 values of 5/7 levels"),
        ("scalar", {"bits": 4, "rate_weight": 0.01}, "scalar, 4 bits a value"),
    ],
)
def test_models_without_dictionary_leave_nothing_to_choose(kind, config, text, picture):
    model = autoencoder(kind, **config)
    assert results.describe(model) == text
    own = results.controls(model)
    assert text.split(",")[0] in own.no_sparsity and "indices alone" in own.no_bits
    point = results.reconstruct(model, picture, results.encode(model, picture), 1, 3)
    code = model.encode_to_code(picture.pixels)
    assert torch.equal(point.code.indices, code.indices)
    assert point.bits_per_pixel == model.bits_per_pixel(*picture.size)
    sites, tiles, said = results.atoms_used(model, point.code)
    assert sites.size[0] > sites.size[1] and (tiles is None) == (kind in ("fsq", "scalar")) and " used" in said


def test_codes_that_are_not_nested_keep_their_sparsity(picture):
    model = autoencoder(pursuit="iht")
    own = results.controls(model)
    assert "not nested" in own.no_sparsity and not own.no_bits
    point = results.reconstruct(model, picture, results.encode(model, picture), 1, BITS)
    assert torch.equal(point.code.indices, model.encode_to_code(picture.pixels).indices)
    assert "one atom" in results.controls(autoencoder(sparsity=1)).no_sparsity


def test_atoms_are_counted_over_the_slots_that_are_shown(picture):
    model = autoencoder()
    point = results.reconstruct(model, picture, results.encode(model, picture), 2, None)
    sites, tiles, said = results.atoms_used(model, point.code)
    numbers = np.bincount(point.code.indices.flatten().numpy(), minlength=ATOMS)
    height, width = point.code.indices.shape[1:3]
    assert f"{(numbers > 0).sum()} of {ATOMS} atoms used; number {numbers.argmax()} the most" in said
    assert f"{height} × {width} sites" in said and f"{numbers.max() / numbers.sum():.1%}" in said
    assert sites.size[0] / sites.size[1] == pytest.approx(2 * width / height, rel=0.1)  # two panels


def test_flip_is_the_packages_own(picture):
    sample = (picture.pixels + 0.3 * torch.randn(picture.pixels.shape, generator=torch.manual_seed(0))).clamp(-1, 1)
    error, heat = results.flip(sample, picture)
    assert error == pytest.approx(float(flip_map(picture.pixels, sample).mean()), abs=1e-6)
    expected = np.asarray(to_image(flip_map(picture.pixels, sample, magma=True)[0]), dtype=int)
    assert np.abs(expected - np.asarray(heat)).max() <= 1 and error > 0.1


# Files


def test_files_are_compared_at_the_codecs_bytes(folder, picture):
    codec = app_models.load_codec(str(folder / "codec"))
    file = results.codec_file(codec, picture)
    output = codec.encode(picture.pixels)
    assert file.size == len(codec.pack(output.codes, output.image_size))
    with torch.no_grad():
        torch.testing.assert_close(file.sample, codec(picture.pixels).sample.clamp(-1, 1))
    jpeg = results.jpeg_file(picture, 1500)
    height, width = picture.size
    assert jpeg.size <= 1500 < len(results.encode_picture(picture.image, "jpeg", jpeg.quality + 1))
    assert jpeg.bits_per_pixel == pytest.approx(8 * jpeg.size / (height * width))
    decoded = np.array(Image.open(io.BytesIO(results.encode_picture(picture.image, "jpeg", jpeg.quality))))
    assert jpeg.psnr == pytest.approx(peak_signal_noise_ratio(np.array(picture.image), decoded), abs=1e-3)
    assert results.jpeg_file(picture, 10).size > 10
    curve = results.jpeg_curve(picture)
    assert curve == sorted(curve) and [psnr for _, psnr in curve] == sorted(psnr for _, psnr in curve)
    assert len(results.JPEG_QUALITIES) // 2 < len(curve) <= 2 * len(results.JPEG_QUALITIES)
    cached = app_cache.CachedResults({}, {"PQ": codec})
    table = app_html.file_table(cached, picture, "PQ")
    assert (
        f"<td>{file.size:,}</td>" in table and "smallest file is longer" in table
    )  # 25 bytes of header and little more


def test_a_prior_writes_the_files_of_its_own_bits(picture):
    for model, bits in ((trained(autoencoder()), BITS), (autoencoder("scalar", bits=5, rate_weight=0.01), None)):
        prior, encoded = prior_of(model), results.encode(model, picture)
        for sparsity in (1, 2, SPARSITY):
            point = results.reconstruct(model, picture, encoded, sparsity, bits, prior)
            data = prior.compress(point.code)
            assert prior.decompress(data) == point.code and point.size == len(data) and point.by_prior
            assert point.rate == pytest.approx(8 * len(data) / (61 * 90))
            packed = results.reconstruct(model, picture, encoded, sparsity, bits)
            assert not packed.by_prior and packed.size > point.size and packed.rate == point.bits_per_pixel
            assert torch.equal(packed.sample, point.sample)
        cached = app_cache.CachedResults({"it": model}, {}, {model: prior})
        shown = app_html.figures(cached, picture, "it", SPARSITY, bits)
        assert "file by its prior" in shown and f"{point.size:,}" in shown and f"{point.rate:.3f}" in shown
        assert f"{point.bits_per_pixel:.3f}" in shown and "packed" not in shown
    model = autoencoder()
    other = results.reconstruct(model, picture, results.encode(model, picture), 2, BITS - 1, prior_of(model))
    assert not other.by_prior
    shown = app_html.figures(app_cache.CachedResults({"it": model}, {}), picture, "it", SPARSITY, BITS)
    assert "packed file" in shown and "rate of the file" not in shown


def test_the_codecs_prior_writes_its_file(folder, picture):
    codec = app_models.load_codec(str(folder / "codec"))
    prior = prior_of(codec)
    file, packed = results.codec_file(codec, picture, prior), results.codec_file(codec, picture)
    assert file.by_prior and file.size == len(prior.compress(codec.encode_to_code(picture.pixels)))
    assert torch.equal(file.sample, packed.sample) and file.nominal_bits_per_pixel == packed.nominal_bits_per_pixel
    assert 0 < packed.bits_per_pixel - packed.nominal_bits_per_pixel <= 8 * 38 / (61 * 90)  # the header
    assert "written by its prior" in app_html.file_table(
        app_cache.CachedResults({}, {"PQ": codec}, {codec: prior}), picture, "PQ"
    )
    assert "it has no prior" in app_html.file_table(app_cache.CachedResults({}, {"PQ": codec}), picture, "PQ")


def test_priors_beside_models_are_found_and_those_of_other_weights_are_not_used(folder, tmp_path):
    library, said = app_models.Library([str(folder / "dl"), str(folder / "vq")], [str(folder / "codec")]), []
    assert list(library.cached.priors) == [library.cached.models["dl"]]
    shutil.copytree(folder / "vq", tmp_path / "vq")
    prior_of(autoencoder("vq", seed=2, num_codewords=16)).save_pretrained(tmp_path / "vq" / "prior")
    other = app_models.Library([str(tmp_path / "vq")], [str(folder / "codec")], report=said.append)
    assert list(other.cached.models) == ["vq"] and not other.cached.priors
    assert len(said) == 1 and "files are packed" in said[0] and "the prior of other weights" in said[0]


# What is remembered, and who shares it


def test_a_picture_is_encoded_once_and_visitors_do_not_meet(picture, monkeypatch):
    model, calls = autoencoder(), []
    original = AutoencoderDL.encode
    monkeypatch.setattr(AutoencoderDL, "encode", lambda *a, **k: calls.append(1) or original(*a, **k))
    cached = app_cache.CachedResults({"dl": model}, {})
    settings = [(sparsity, bits) for sparsity in range(1, SPARSITY + 1) for bits in (None, 2, 8)]
    expected = {}
    for setting in settings:
        expected[setting] = results.reconstruct(model, picture, cached.encoded(picture, "dl"), *setting)
    assert len(calls) == 1

    found, failed = [], []

    def visit(offset):
        try:
            for sparsity, bits in settings[offset:] + settings[:offset]:
                found.append(((sparsity, bits), cached.point(picture, "dl", sparsity, bits)))
        except Exception as error:  # of a thread
            failed.append(error)

    threads = [threading.Thread(target=visit, args=(offset,)) for offset in (0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(found) == 3 * len(settings) and len(calls) == 1
    for setting, point in found:
        assert torch.equal(point.sample, expected[setting].sample)
        assert point.bits_per_pixel == expected[setting].bits_per_pixel
    assert model.bottleneck.config.coefficient_bits == BITS
    assert cached.point(picture, "dl", 99, 2) is cached.point(picture, "dl", SPARSITY, 2)  # what there is


def test_the_curve_holds_every_sparsity(folder, picture):
    library = app_models.Library([str(folder / "dl"), str(folder / "vq")], [str(folder / "codec")])
    curve = library.cached.curve(picture, "dl", 3)
    points = [library.cached.point(picture, "dl", sparsity, 3) for sparsity in range(1, SPARSITY + 1)]
    assert curve == [
        {"nominal": point.bits_per_pixel, "entropy": point.entropy_bits_per_pixel, "psnr": point.psnr}
        for point in points
    ]
    assert [rates["nominal"] for rates in curve] == sorted(rates["nominal"] for rates in curve)
    files = [rates["files by its prior"] for rates in library.cached.curve(picture, "dl", BITS)]
    assert files == sorted(files) and len(files) == SPARSITY
    assert len(library.cached.curve(picture, "vq", 3)) == 1
    drawn = library.cached.rates(picture, "dl", 2, 3)
    assert (
        drawn.size[0] > 600 and drawn.tobytes() != library.cached.rates(picture, "dl", 3, 3).tobytes()
    )  # the ring moved
    assert app_cache.draw_rates({"x": [(1.0, 20.0)]}, (1.0, float("inf"))).size == drawn.size


def test_the_cache_forgets_the_oldest():
    cache, made = app_cache.Cache(2), []
    for key in (1, 2, 1, 3, 1, 2):
        assert cache.get(key, lambda key=key: made.append(key) or -key) == -key
    assert made == [1, 2, 3, 2]


# Models that are found, and those that are made


def test_models_are_told_apart_and_others_refused(folder, tmp_path):
    library = app_models.Library([str(folder / "dl"), str(folder / "vq")], [str(folder / "codec")] * 2)
    assert list(library.cached.models) == ["dl", "vq"] and library.done
    assert list(library.cached.codecs) == ["PQ-{8-4-4}", "PQ-{8-4-4} (2)"]
    assert app_models.names_of(["a/dl", "b/dl"]) == ["a/dl", "b/dl"]
    with pytest.raises(ValueError, match="--model must name an AutoencoderDL, got ModelBasedVQCodec"):
        app_models.Library([str(folder / "codec")])
    with pytest.raises(ValueError, match="--codec must name a ModelBasedVQCodec, got AutoencoderDL"):
        app_models.load_codec(str(folder / "dl"))
    ModelBasedVQCodec().save_pretrained(tmp_path / "unfitted")
    with pytest.raises(ValueError, match="must name a fitted"):
        app_models.load_codec(str(tmp_path / "unfitted"))
    AutoencoderDL(bottleneck_type="none", **NETWORK).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="RGB images with a bottleneck"):
        app_models.load_model(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "no/where/at-all"], "no/where/at-all"),
        (["--model", "CUT"], "app.py: error: "),
        (["--max_side", "8"], "--max_side must be from 32 to 4096, got 8"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(arguments, sentence, folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(folder / "dl", tmp_path / "cut")
    damage(tmp_path / "cut")
    monkeypatch.setattr(app, "launch", lambda *a, **k: pytest.fail("it was served"))
    arguments = [str(tmp_path / "cut") if word == "CUT" else word for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        app.cli([*arguments, "--cache_dir", str(tmp_path / "cache")])
    said = str(stopped.value) + capsys.readouterr().err
    assert sentence in said and not (tmp_path / "cache").exists()


def test_the_command_line_reaches_the_page(folder, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(app, "launch", lambda page, *address: served.append((page, address)))
    monkeypatch.setattr(app.signal, "signal", lambda *a: None)
    flags = ["--model", str(folder / "dl"), "--codec", str(folder / "codec"), "--cache_dir", str(tmp_path / "cache")]
    app.cli([*flags, "--server_name", "0.0.0.0", "--server_port", "7999"])
    (page, address), labels = served[0], []
    for block in page.blocks.values():
        labels += [getattr(block, "label", None)]
    assert address == ("0.0.0.0", 7999) and "Sparsity: atoms a site" in labels and not (tmp_path / "cache").exists()
    assert not list(EXAMPLES.glob("*.pyi"))  # gradio writes one beside a class of components


def damage(folder):
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def finished(library):
    for _ in range(600):
        if library.done:
            return True
        time.sleep(0.02)
    return False


def test_missing_models_are_made_once_and_only_whole_ones_are_kept(folder, tmp_path, monkeypatch):
    made, said = [], []

    def train(target, progress):
        assert target.name.startswith("dl.partial-") and not (tmp_path / "cache" / "dl").exists()
        progress(0.5)
        made.append("dl")
        autoencoder().save_pretrained(target)

    def fit(target):
        made.append("codec")
        shutil.copytree(folder / "codec", target, dirs_exist_ok=True)

    monkeypatch.setattr(app_models, "train", train)
    monkeypatch.setattr(app_models, "fit", fit)
    places = {"cache_dir": str(tmp_path / "cache"), "demo_dir": str(tmp_path / "demo"), "report": said.append}
    library = app_models.Library(**places)
    assert library.done and not library.cached.models  # nothing is made before it is asked for
    library.prepare()
    assert finished(library) and made == ["codec", "dl"] and not library.failures
    assert list(library.cached.models) == ["autoencoder"] and list(library.cached.codecs) == ["PQ-{8-4-4}"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["codec", "dl"]
    assert (tmp_path / "cache" / "dl").stat().st_mode & 0o777 == (tmp_path / "cache").stat().st_mode & 0o777

    again = app_models.Library(**places)
    again.prepare()
    assert again.done and made == ["codec", "dl"] and list(again.cached.models) == ["autoencoder"]

    damage(tmp_path / "cache" / "dl")  # what no rename leaves, but a disk may
    third = app_models.Library(**places)
    assert not third.cached.models and "dl is damaged and is left out" in said[-1]
    monkeypatch.setattr(app_models, "train", lambda target, progress: autoencoder(seed=5).save_pretrained(target))
    third.prepare()
    assert finished(third) and list(third.cached.models) == ["autoencoder"] and not third.failures
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["codec", "dl"]

    shutil.copytree(folder / "vq", tmp_path / "demo" / "vq")  # `make demo` has been run meanwhile
    assert list(app_models.Library(**places).cached.models) == ["vq"]


def test_what_fails_on_the_way_leaves_nothing_and_is_said(folder, tmp_path, monkeypatch):
    def train(target, progress):
        (target / "config.json").write_text("{}")
        raise RuntimeError("no room left")

    monkeypatch.setattr(app_models, "train", train)
    library = app_models.Library(
        [], [str(folder / "codec")], str(tmp_path / "cache"), str(tmp_path), lambda text: None
    )
    library.prepare()
    assert finished(library) and not list((tmp_path / "cache").iterdir())
    assert library.failures == ["Training a small autoencoder on scikit-image's photographs failed: no room left"]
    assert "no room left" in app_html.status(library) and "<progress" not in app_html.status(library)
    library.stage, library.progress = "Training", 0.25
    assert 'value="0.250"' in app_html.status(library) and "25%" in app_html.status(library)


def test_scripts_run_with_the_demos_arguments_and_the_log_is_followed(tmp_path, monkeypatch):
    import fit_codec
    import train_dlgan

    line = app_models.command("train_dlgan.py", tmp_path, app_models.TRAINING)
    parsed = train_dlgan.parse_args(line[2:])
    assert Path(line[1]).samefile(train_dlgan.__file__) and parsed.output_dir == str(tmp_path)
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    assert tuple(re.search(r"DEMO_CODES := (.*)", makefile)[1].split()) == app_models.DEMO
    demo = re.search(r"DEMO_ARGS \?= (.*)", makefile)[1]
    demo = train_dlgan.parse_args([*demo.split(), "--bottleneck", "dictionary", "--output_dir", str(tmp_path)])
    more = {"log_steps", "validation_steps", "mixed_precision"}
    assert {name for name, value in vars(parsed).items() if value != getattr(demo, name)} == more
    fitted = fit_codec.parse_args(app_models.command("fit_codec.py", tmp_path, app_models.FITTING)[2:])
    assert fitted.notation == "OPQ-{32-8-8}" and fitted.train_data_dir is None

    script = "import pathlib, sys, time; log = pathlib.Path(sys.argv[1], 'training_log.jsonl')"
    script += '; log.write_text(\'{"step": 150}\\n{"st\')'
    monkeypatch.setattr(
        app_models, "command", lambda *a: [sys.executable, "-c", f"{script}; time.sleep(0.8)", str(tmp_path)]
    )
    seen = []
    app_models.train(tmp_path, seen.append)
    assert seen[-1] == 0.25
    monkeypatch.setattr(app_models, "command", lambda *a: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="ended with code 3"):
        app_models.fit(tmp_path)


# The page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """The address of the page with two tiny models, and its library."""
    pytest.importorskip("gradio", reason="gradio is not installed (the extra `app`)")
    library = app_models.Library([str(folder / "dl"), str(folder / "vq")], [str(folder / "codec")])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = app.build(library, max_side=96)
    _, address, _ = app.launch(page, "127.0.0.1", port, wait=False)
    yield address, library
    page.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `test`)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A visitor's page, with all that it asked for and complained of."""

    def __init__(self, browser, address, width=1280, height=900):
        self.address, self.requests, self.complaints = address, [], []
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def image(self, name):
        source = self.page.get_attribute(f"#{name} img", "src")
        return Image.open(io.BytesIO(self.page.request.get(source).body()))

    def shows(self, name, image):
        """Waits until a field has a picture."""
        for _ in range(300):
            if self.image(name).tobytes() == image.tobytes():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{name} does not show the expected picture")

    def reads(self, selector, text):
        """Waits until an element has a text."""
        found = "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)"
        self.page.wait_for_function(found, arg=[selector, text])

    def slider(self, name):
        return self.page.locator(f"#{name} input[type=range]")


def agrees(visit, library, picture, name, sparsity, bits):
    """Waits until the page shows what the functions give for a setting, computed anew; returns the rate."""
    model = library.cached.models[name]
    prior = library.cached.priors.get(model)
    point = results.reconstruct(model, picture, results.encode(model, picture), sparsity, bits, prior)
    assert point.by_prior == (name == "dl" and bits == BITS)
    error, heat = results.flip(point.sample, picture)
    rate = f"rate of the file {point.rate:.3f} bits/pixel " if point.by_prior else ""
    expected = (
        f"PSNR {point.psnr:.2f} dB {rate}nominal rate {point.bits_per_pixel:.3f} bits/pixel "
        f"entropy of this image {point.entropy_bits_per_pixel:.3f} bits/pixel "
        f"{'file by its prior' if point.by_prior else 'packed file'} {point.size:,} bytes"
    )
    # figures come before FLIP, and two settings may share a rounded FLIP: wait for both
    visit.page.wait_for_function(
        "text => document.querySelector('#figures dl')?.innerText.trim().replace(/\\s+/g, ' ') === text", arg=expected
    )
    visit.reads("#flip", f"{error:.4f}")
    visit.shows("reconstruction", to_image(point.sample[0]))
    visit.shows("heat", heat)
    return point.bits_per_pixel


@needs_chromium
def test_the_page_shows_an_uploads_results_and_follows_the_keyboard(served, browser, folder):
    address, library = served
    visit, other = Visit(browser, address), Visit(browser, address)
    photos = [results.read_picture(path, 96) for path in app.bundled_photos("validation").paths]
    agrees(visit, library, photos[0], "dl", SPARSITY, BITS)
    assert visit.slider("sparsity").get_attribute("max") == str(SPARSITY)

    visit.page.set_input_files("#upload input[type=file]", str(folder / "picture.png"))
    visit.reads("#note", "90 × 61 pixels")
    picture = results.read_picture(str(folder / "picture.png"), 96)
    first = agrees(visit, library, picture, "dl", SPARSITY, BITS)
    cached = app_cache.CachedResults(library.cached.models, library.cached.codecs, library.cached.priors)

    visit.page.locator("#sparsity input[type=number]").focus()
    for _ in range(2):  # over the button that resets
        visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.type") == "range"
    visit.page.keyboard.press("ArrowLeft")
    visit.page.keyboard.press("ArrowLeft")
    assert agrees(visit, library, picture, "dl", SPARSITY - 2, BITS) < first

    visit.slider("bits").focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    agrees(visit, library, picture, "dl", SPARSITY - 2, BITS - 3)
    visit.page.locator("#float input").focus()
    visit.page.keyboard.press("Space")
    assert agrees(visit, library, picture, "dl", SPARSITY - 2, None) > first
    visit.slider("bits").focus()
    visit.page.keyboard.press("ArrowRight")  # quantised again
    setting = picture, "dl", SPARSITY - 2, BITS - 2
    agrees(visit, library, *setting)
    sites, tiles, said = results.atoms_used(library.cached.models["dl"], cached.point(*setting).code)
    visit.reads("#used p", said)
    for name, image in (("curve", cached.rates(*setting)), ("sites", sites), ("tiles", tiles)):
        visit.shows(name, image)

    agrees(other, library, photos[0], "dl", SPARSITY, BITS)  # the other visitor's page has not moved
    other.page.locator("#examples button.thumbnail-item").nth(1).click()
    other.reads("#note", "scaled from 640 × 427")
    agrees(other, library, photos[1], "dl", SPARSITY, BITS)
    for page in (visit, other):
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith((page.address, "data:", "blob:"))] == []
        page.page.close()


@needs_chromium
def test_the_page_says_what_is_wrong_and_what_cannot_be_chosen(served, browser, folder, tmp_path):
    address, library = served
    visit = Visit(browser, address)
    visit.reads("#used", "atoms used")
    (tmp_path / "notes.png").write_bytes(b"no picture at all")
    noise(9, 9).save(tmp_path / "tiny.png")
    for name, sentence in (("notes.png", "cannot be read as a picture"), ("tiny.png", "is too small")):
        visit.page.set_input_files("#upload input[type=file]", str(tmp_path / name))
        visit.reads("#note", f"“{name}” {sentence}")
        visit.page.wait_for_function("document.querySelector('#figures').innerText.trim() === ''")
        assert "Traceback" not in visit.page.content() and visit.page.locator(".toast-body").count() == 0
        visit.page.get_by_label("Remove Image").click()
        visit.reads("#note", "Choose a picture")
    visit.page.set_input_files("#upload input[type=file]", str(folder / "picture.png"))
    visit.reads("#used", "atoms used")

    visit.page.get_by_label("Model and bottleneck").click()
    visit.page.get_by_role("option", name="vq (VQ)").click()
    visit.reads("#sparsity", "Not for VQ")
    picture = results.read_picture(str(folder / "picture.png"), 96)
    agrees(visit, library, picture, "vq", 1, None)
    assert "without coefficients" in visit.page.inner_text("#bits")
    for name in ("sparsity", "bits"):
        assert visit.slider(name).is_disabled() and visit.slider(name).is_visible()
    assert visit.page.locator("#float input").is_disabled()

    visit.page.get_by_role("tab", name="Patch codec and JPEG").click()
    packed = results.codec_file(library.cached.codecs["PQ-{8-4-4}"], picture)
    visit.reads("#files", f"{packed.size:,}")
    assert f"{packed.psnr:.2f}" in visit.page.inner_text("#files")
    assert visit.complaints == []
    visit.page.close()


@needs_chromium
def test_a_narrow_page_scrolls_down_only(served, browser):
    visit = Visit(browser, served[0], 360, 740)
    page = visit.page
    visit.reads("#used", "atoms used")
    for tab in ("Patch codec and JPEG", "Sparse code"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector("#files table" if tab.startswith("Patch") else "#reconstruction img")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("#sparsity input[type=range]", "#bits input[type=range]", "#float input", "#reconstruction img"):
        page.locator(selector).scroll_into_view_if_needed()
        box = page.locator(selector).bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= 360 and 0 <= box["y"] < 740, selector
    page.locator("#sparsity input[type=range]").click(position={"x": 3, "y": 3})
    page.wait_for_function("document.querySelector('#sparsity input[type=number]').value === '1'")
    agrees(visit, served[1], results.read_picture(app.bundled_photos("validation").paths[0], 96), "dl", 1, BITS)
    assert visit.complaints == []
    page.close()


def test_the_page_without_models_waits_for_them(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed (the extra `app`)")
    library = app_models.Library([], [], str(tmp_path / "cache"), str(tmp_path / "demo"))
    library.stage = "Training"
    page = app.build(library)
    components = {type(block).__name__: block for block in page.blocks.values()}
    assert components["Timer"].active and page.analytics_enabled is False
    refresh = next(block for block in page.fns.values() if block.name == "on_refresh").fn
    waiting = refresh(None, None, None)
    assert "Training" in waiting[0] and waiting[3].active
    library.cached.models["autoencoder"], library.stage = autoencoder(), ""
    found = refresh(((), ()), None, None)
    assert found[1].value == "autoencoder" and not found[3].active and found[0] == ""
    assert refresh(found[4], "autoencoder", None)[1] == app.requires("gradio", "app").skip()
