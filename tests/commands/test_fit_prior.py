"""`fit-prior`, and what `encode`, `decode`, `evaluate` and `inspect` do with a prior."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, FactorizedPrior, ModelBasedVQCodec
from diffusers_lasers.models.priors.image_codes import ImageCodes, fit_prior


MODELS = {"dl": AutoencoderDL, "shared": AutoencoderDL, "vq": AutoencoderDL, "codec": ModelBasedVQCodec}


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 127.5 - 1


def copied(name):
    """A copy of a saved model, since a prior is written into its folder; and images to fit to."""
    shutil.copytree(f"saved/{name}", name)
    Path("images").mkdir()
    for image in ("a", "b"):
        shutil.copy(f"saved/{image}.png", "images")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_prior_makes_files_smaller_that_decode_to_the_same_picture(run, name):
    copied(name)
    assert run(f"encode saved/a.png plain.code --model {name}")[0] == 0
    status, output, errors = run(f"fit-prior {name} --data images")
    assert (status, errors) == (0, "")
    model, prior = MODELS[name].from_pretrained(name), FactorizedPrior.from_pretrained(name, subfolder="prior")
    images = [pixels(f"saved/{image}.png") for image in ("a", "b")]
    expected = FactorizedPrior.from_coder(model).fit(ImageCodes(model, images))
    code = model.encode_to_code(images[0])
    assert prior.compress(code) == expected.compress(code)
    size = sum(path.stat().st_size for path in Path(name, "prior").iterdir())
    assert f"fitted to 2 images; {int(prior.site_bits)} bits a site on them" in output
    assert f"{size} bytes of tables" in output

    status, output, errors = run(f"encode saved/a.png small.code --model {name}")
    data = Path("small.code").read_bytes()
    assert (status, errors) == (0, "") and data == prior.compress(code)
    assert f"file: {len(data)} bytes" in output
    assert len(data) < Path("plain.code").stat().st_size
    for file in ("plain", "small"):
        assert run(f"decode {file}.code {file}.png --model {name}")[0] == 0
    assert Path("plain.png").read_bytes() == Path("small.png").read_bytes()
    assert run(f"encode saved/a.png nominal.code --model {name} --no_prior")[0] == 0
    assert Path("nominal.code").read_bytes() == Path("plain.code").read_bytes()


@torch.no_grad()
def test_evaluate_has_a_column_for_it(run):
    copied("vq")
    assert run("fit-prior vq --data images --no_contexts")[0] == 0
    status, output, errors = run("evaluate vq saved/dl --data saved/a.png --json results.json")
    assert status == 0, errors
    rows = json.loads(Path("results.json").read_text())["models"]
    model, prior = AutoencoderDL.from_pretrained("vq"), FactorizedPrior.from_pretrained("vq/prior")
    assert not prior.config.contexts
    bits = float(prior.bits(model.encode_to_code(pixels("saved/a.png"))).sum()) / (31 * 22)
    assert rows[0]["prior_bits_per_pixel"] == pytest.approx(bits) and "prior_bits_per_pixel" not in rows[1]
    assert "bpp prior" in output and f"{bits:.4f}" in output and "–" in output
    status, output, errors = run("evaluate saved/dl --data saved/a.png")
    assert "bpp prior" not in output


@torch.no_grad()
@pytest.mark.parametrize("name", ["dl", "codec"])
def test_one_model_writes_files_of_many_rates(run, name):
    copied(name)
    status, output, errors = run(f"fit-prior {name} --data images --rate_weight 0.01 --no_contexts")
    assert (status, errors) == (0, "")
    model, prior = MODELS[name].from_pretrained(name), FactorizedPrior.from_pretrained(name, subfolder="prior")
    both = [pixels(f"saved/{image}.png") for image in ("a", "b")]
    code = model.encode_to_code(both[0], 0.03, prior)
    assert fit_prior(model, both, 0.01, contexts=False).compress(code) == prior.compress(code)
    sizes = []
    for weight in (0, 0.03, 0.3):
        assert run(f"encode saved/a.png a{weight}.code --model {name} --rate_weight {weight}")[0] == 0
        sizes.append(Path(f"a{weight}.code").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2] and Path("a0.03.code").read_bytes() == prior.compress(code)
    assert run(f"decode a0.03.code a.png --model {name}")[0] == 0
    sample = model.decode_from_code(code).sample.clamp(-1, 1)
    assert (pixels("a.png") - sample).abs().max() < 0.51 / 127.5

    line = f"evaluate {name} saved/none --data saved/a.png --json results.json --rate_weights 0 0.03"
    status, output, errors = run(line)
    assert (status, errors) == (0, "") and "rate weight" in output
    rows = json.loads(Path("results.json").read_text())["models"]
    assert [row.get("rate_weight") for row in rows] == [0, 0.03, None]
    assert rows[1]["prior_bits_per_pixel"] == pytest.approx(float(prior.bits(code).sum()) / (31 * 22))
    assert rows[0]["prior_bits_per_pixel"] > rows[1]["prior_bits_per_pixel"]


def test_inspect_describes_it(run):
    copied("vq")
    assert run("fit-prior vq --data images --output elsewhere")[0] == 0
    status, output, errors = run("inspect elsewhere --json")
    facts = json.loads(output)
    assert (status, errors) == (0, "") and facts["class"] == "FactorizedPrior"
    prior = FactorizedPrior.from_pretrained("elsewhere")
    # two slots of 12 codewords, each with a table, one for each of 17 × 6 contexts, and 6 of repetition
    assert facts["prior"] == {
        "bits_per_site": int(prior.site_bits),
        "tables": 2 * (1 + 17 * 6 + 6),
        "table_bytes": 4 * 2 * (12 * (1 + 17 * 6) + 2 * 6),
    }


def test_what_does_not_fit_is_one_line(run):
    copied("dl")
    assert run("fit-prior dl --data images")[0] == 0
    assert run("encode saved/a.png a.code --model dl")[0] == 0
    # other bits than the prior's: the nominal file
    assert run("encode saved/a.png b.code --model dl --coefficient_bits 4")[0] == 0
    assert Path("b.code").read_bytes()[:4] == b"DLBC" and run("decode b.code b.png --model dl")[0] == 0
    shutil.copytree("saved/shared", "other")
    shutil.copytree("dl/prior", "other/prior")
    for line, message in {
        "decode a.code a.png --model saved/dl": "a.code: it needs the prior that compressed it, in the folder 'prior'",
        "decode a.code a.png --model other": "other/prior is the prior of other weights: run `fit-prior` again",
        "encode saved/a.png c.code --model other": "other/prior is the prior of other weights: run `fit-prior` again",
        "fit-prior saved/none --data images": "`model` must make codes, got IdentityBottleneck, which makes none.",
        "fit-prior dl --data images --max_images 0": "--max_images must be at least 1",
        "fit-prior dl --data images --rate_weight -1": "`rate_weight` must be",
        "encode saved/a.png c.code --model dl --rate_weight -1": "`rate_weight` must be",
        "encode saved/a.png c.code --model dl --rate_weight 0.1 --no_prior": "`prior` must be given with",
        "encode saved/a.png c.code --model saved/codec --rate_weight 0.1": "`prior` must be given with",
        "encode saved/a.png c.code --model dl --rate_weight 0.1 --sparsity 1": "--sparsity must be left out",
        "decode a.code a.png --model dl --max_pixels 300": "more than --max_pixels 300",
    }.items():
        status, output, errors = run(line)
        assert (status, output) == (2, "") and errors.count("\n") == 1 and message in errors, errors
    data = bytearray(Path("a.code").read_bytes())
    data[50] ^= 1
    Path("a.code").write_bytes(bytes(data))
    status, output, errors = run("decode a.code a.png --model dl")
    assert (status, output) == (2, "") and "the data must be whole, it is cut off or changed." in errors
    assert not Path("a.png").exists() and not Path("c.code").exists()
