"""`inspect`: facts against the models themselves, pictures, pipelines."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_lasers import AutoencoderDL, DictionaryBottleneck, ModelBasedVQCodec
from diffusers_lasers.functional import mutual_coherence, perplexity


def facts(run, line):
    code, output, errors = run(f"inspect {line} --json")
    assert (code, errors) == (0, "")
    return json.loads(output)


def test_an_autoencoder(run):
    found, model = facts(run, "saved/dl"), AutoencoderDL.from_pretrained("saved/dl")
    assert found["class"] == "AutoencoderDL" and found["config"]["bottleneck_config"]["sparsity"] == 3
    assert found["parameters"]["learned"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["all"] == sum(found["parameters"]["parts"].values()) > found["parameters"]["learned"]
    assert set(found["parameters"]["parts"]) == {"encoder", "decoder", "bottleneck"}
    assert found["rate"]["downsampling_factor"] == 2 and found["rate"]["pixels_per_site"] == "2 × 2"
    assert found["rate"]["bits_per_pixel"] == model.bits_per_pixel(32, 32)
    assert found["bottleneck"]["bits_per_site"] == model.bottleneck.bits_per_site
    assert found["files"] == {path.name: path.stat().st_size for path in Path("saved/dl").iterdir()}


def test_a_dictionary(run):
    found, dictionary = facts(run, "saved/bottleneck"), AutoencoderDL.from_pretrained("saved/dl").bottleneck.dictionary
    geometry = found["bottleneck"]["dictionary"]
    assert geometry["coherence"] == pytest.approx(float(mutual_coherence(dictionary)))
    assert geometry["welch_bound"] == pytest.approx((16 / (4 * 19)) ** 0.5)
    assert geometry["smallest_norm"] == pytest.approx(1) == geometry["largest_norm"]
    assert found["bottleneck"]["slots"] == 3 and len(found["bottleneck"]["coefficient_scale"]) == 3


def test_near_duplicates_are_counted(run):
    bottleneck = DictionaryBottleneck(8, 8, 2)
    for number in (0, 2):
        with torch.no_grad():
            bottleneck.dictionary.copy_(torch.eye(8))
            bottleneck.dictionary[:, 5] = -bottleneck.dictionary[:, 1] if number else bottleneck.dictionary[:, 5]
        bottleneck.save_pretrained("dictionary")
        assert facts(run, "dictionary")["bottleneck"]["dictionary"]["near_duplicates"] == number


def test_codebooks_with_running_means_say_how_they_were_used(run):
    bottleneck = AutoencoderDL.from_pretrained("saved/vq").bottleneck
    usage = facts(run, "saved/vq")["bottleneck"]["usage_in_training"]
    assert usage["perplexity_of_each_stage"] == pytest.approx([float(perplexity(row)) for row in bottleneck.counts])
    bottleneck.counts.fill_(1.0)
    assert bottleneck.usage is None  # nothing was counted yet


def test_a_codec(run):
    found, codec = facts(run, "saved/codec")["codec"], ModelBasedVQCodec.from_pretrained("saved/codec")
    assert (found["notation"], found["slots"], found["bits_per_patch"]) == ("OPQ-{8-4-4}", 4, 16)
    assert found["compression_ratio"] == codec.compression_ratio == 24 / found["bits_per_pixel"]
    assert found["fitted"] is True and found["order"] == "pca" and len(found["neighbour_distance"]) == 3
    codec.reorder("norm").save_pretrained("norm")
    assert facts(run, "norm")["codec"]["order"] == "norm"
    codec.reorder("random", torch.Generator().manual_seed(0)).save_pretrained("random")
    assert facts(run, "random")["codec"]["order"] == "another"
    assert facts(run, "saved/unfitted")["codec"]["fitted"] is False


def test_a_pipeline_lists_its_components(run):
    found = facts(run, "saved/pipeline")
    size = sum(path.stat().st_size for path in Path("saved/pipeline/vae").iterdir())
    assert found["class"] == "DLRestorationPipeline"
    assert found["components"] == {"vae": {"class": "AutoencoderDL", "library": "diffusers_lasers", "bytes": size}}
    assert facts(run, "saved/pipeline --subfolder vae")["rate"]["downsampling_factor"] == 2


def test_text_holds_what_json_holds(run):
    code, output, _ = run("inspect saved/dl")
    assert code == 0 and "\nrate:\n  downsampling_factor: 2\n" in output
    assert f"config.json: {Path('saved/dl/config.json').stat().st_size}" in output.replace(",", "")
    assert "    sparsity: 3\n" in output and "    tolerance: none\n" in output and "force_upcast: no" in output


def test_pictures(run):
    found = facts(run, "saved/dl --save pictures/dl")
    assert found["pictures"] == [f"pictures/dl/{name}.png" for name in ("atoms", "coherence", "atom_map")]
    found["pictures"] += facts(run, "saved/vq --save pictures/vq")["pictures"]
    found["pictures"] += facts(run, "saved/codec --save pictures/codec")["pictures"]
    assert {Path(path).name for path in found["pictures"]} >= {"usage_1.png", "codeword_map_2.png", "codewords_cb.png"}
    for path in found["pictures"]:
        assert min(Image.open(path).size) > 20
    assert sorted(map(str, Path("pictures").rglob("*.png"))) == sorted(found["pictures"])


@torch.no_grad()
def test_codeword_patches_add_up_to_the_decoded_patch(run):
    codec = ModelBasedVQCodec.from_pretrained("saved/codec")
    codes = torch.tensor([3, 7, 1, 15]).view(1, 4, 1, 1)
    patches = codec.codeword_patches()
    parts = codec._decode_patches(codes)  # (3, 1, 16)
    torch.testing.assert_close(patches["y"][:, 3] + patches["y"][:, 16 + 7], parts[0][0])
    torch.testing.assert_close(patches["cr"][:, 15], parts[2][0])


@pytest.mark.parametrize(
    "line, message",
    [
        ("saved/unet", "class UNet2DModel, supported are AutoencoderDL, ModelBasedVQCodec, DictionaryBottleneck"),
        ("saved/empty", "it is no saved model"),
        ("saved/none --save pictures", "no dictionary and no codebook"),
        ("saved/pipeline --save pictures", "name a part with --subfolder"),
        ("no/such/folder", "There is no folder"),
        ("saved/truncated", "cannot be loaded"),
    ],
)
def test_errors_are_one_line(run, line, message):
    code, output, errors = run(f"inspect {line}")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors
    assert not Path("pictures").exists()


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, errors = run("inspect saved/dl --save pictures")
    assert code == 2 and "diffusers_lasers[visualization]" in errors and errors.count("\n") == 1


def test_a_damaged_configuration_is_one_line(run):
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{", encoding="utf-8")
    assert "is no JSON" in run("inspect broken")[2]
    Path("broken/config.json").write_text('{"hidden_size": 3}', encoding="utf-8")
    assert "names no `_class_name`" in run("inspect broken")[2]
