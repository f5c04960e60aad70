"""What makes codes has the same verbs, whatever it is; and what reads codes asks them, not what they are."""

import json
import re
from pathlib import Path

import pytest
import torch

import diffusers_lasers
from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ModelBasedVQCodec,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.coding import Code, Coder
from diffusers_lasers.metrics import AtomUsage, CodeRate
from diffusers_lasers.models.bottlenecks import IndexBottleneck


def scalar():
    bottleneck = ScalarQuantizerBottleneck(4, bits=3)
    bottleneck.fit(torch.randn(4, 4, 6, 6))
    return bottleneck


def autoencoder(kind, **config):
    shape = {"block_out_channels": (8, 8), "residual_channels": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderDL(**shape, bottleneck_type=kind, bottleneck_config=config)


def codec():
    made = ModelBasedVQCodec("RQ", (8, 4, 4), patch_size=4, codebook_bits=4)
    for book in made.codebooks.values():
        book.normal_()
    made.fitted.fill_(True)
    return made


MAKE = {
    "dictionary": lambda: DictionaryBottleneck(4, 20, 3, coefficient_bits=6),
    "dictionary, floats": lambda: DictionaryBottleneck(4, 20, 3, patch_size=2),
    "vq": lambda: VectorQuantizerBottleneck(4, 20, patch_size=2),
    "residual vq": lambda: ResidualVQBottleneck(4, 16, depth=3, beam_size=2),
    "fsq": lambda: FSQBottleneck(4, (5, 4, 7)),
    "scalar": scalar,
    "entropy scalar": lambda: EntropyScalarBottleneck(4, bits=4),
    "autoencoder, dictionary": lambda: autoencoder("dictionary", num_atoms=16, sparsity=2, coefficient_bits=5),
    "autoencoder, vq": lambda: autoencoder("vq", num_codewords=16),
    "codec": codec,
}


@torch.no_grad()
@pytest.mark.parametrize("name", MAKE)
def test_all_makers_of_codes_have_the_same_verbs(name):
    torch.manual_seed(0)
    model = MAKE[name]().eval()
    values = torch.rand(3, 3, 13, 18) * 2 - 1 if "codec" in name or "autoencoder" in name else torch.randn(3, 4, 7, 9)
    decode = getattr(model, "decode_from_code")

    def decoded(code):
        output = decode(code)
        return output if torch.is_tensor(output) else output.sample

    code = model.encode_to_code(values)
    assert isinstance(model, Coder) and isinstance(code, Code) and len(code) == 3
    assert code.levels == model.levels == model.coder.levels and code.slots == len(model.levels)
    data = model.pack(code)
    again = model.unpack(data)
    assert torch.equal(decoded(again), decoded(code)) and again.image_size == code.image_size
    assert model.bits(code) == pytest.approx(code.num_sites * model.bits_per_site)
    assert 0 <= 8 * (len(data) - 37) - model.bits(code) <= 16

    rate, usage = CodeRate(model), AtomUsage(code.codebook_sizes)
    rate.update(code, num_pixels=100)
    usage.update(code)
    assert rate.compute()["nominal_bits_per_pixel"].item() == pytest.approx(model.bits(code) / 100)
    assert usage.counts.sum() == code.usage_counts().sum() == (code.indices >= 0).sum()

    part = code[1:]
    assert type(part) is type(code) and len(part) == 2 and part.image_size == code.image_size
    torch.testing.assert_close(decoded(part), decoded(code)[1:])
    assert model.bits(part) == pytest.approx(model.bits(code) * 2 / 3)
    assert code[:] == code and part != code and code[3:].num_sites == 0


def test_a_codec_has_one_code_in_two_layouts():
    model, images = codec(), torch.rand(2, 3, 9, 14) * 2 - 1
    output, code = model.encode(images), model.encode_to_code(images)
    assert torch.equal(code.indices.permute(0, 3, 1, 2), output.codes) and code.image_size == (9, 14)
    assert torch.equal(model.decode_from_code(code).sample, model.decode(output.codes, output.image_size).sample)
    assert model.pack(code) == model.pack(output.codes, output.image_size)
    rate = CodeRate(model)
    rate.update(code)
    expected = model.entropy_bits_per_pixel(output.codes, output.image_size)
    assert rate.compute()["entropy_bits_per_pixel"].item() == pytest.approx(expected)
    other = VectorQuantizerBottleneck(4, 16).encode(torch.randn(2, 4, 3, 4))
    for call in (model.decode_from_code, model.pack):
        with pytest.raises(ValueError, match="`code` must have slots of levels"):
            call(other)


def test_what_has_no_code_says_so():
    for model in (IdentityBottleneck(4), autoencoder("none")):
        assert model.levels == ()
        for call in (model.encode_to_code, model.decode_from_code, model.bits, model.pack, model.unpack):
            with pytest.raises(ValueError, match="has no code"):
                call(torch.zeros(1, 4, 2, 2) if isinstance(model, IdentityBottleneck) else torch.zeros(1, 3, 4, 4))


def test_a_batch_is_cut_by_slices_alone():
    code = VectorQuantizerBottleneck(4, 16).encode(torch.randn(2, 4, 3, 4))
    for images in (0, [0, 1], torch.tensor([0])):
        with pytest.raises(ValueError, match="must be cut by a slice of images"):
            code[images]


def test_each_index_bottleneck_has_its_own_float32_tensors():
    """And gives only how signals become indices and back: all else stands in the base."""
    for name in ("vq", "residual vq", "fsq", "scalar"):
        torch.manual_seed(0)
        model = MAKE[name]()
        if "tables" in model._keep_in_fp32_modules:  # which only a weight of the rate registers
            config = {key: model.config[key] for key in ("latent_channels", "num_codewords")}
            model = type(model)(**config, rate_weight=0.1)
        kinds = [
            kind for kind in type(model).__mro__ if kind is not IndexBottleneck and issubclass(kind, IndexBottleneck)
        ]
        assert kinds, name
        shared = {"encode", "decode", "forward", "pack", "unpack", "bits", "bits_per_site", "_code", "_check_kind"}
        assert not any(shared & set(vars(kind)) for kind in kinds), name
        floats = {key.split(".")[0] for key, value in model.state_dict().items() if value.is_floating_point()}
        assert set(model._keep_in_fp32_modules) == floats, name


def test_nothing_outside_coding_asks_which_kind_a_code_is():
    root = Path(diffusers_lasers.__file__).parent
    asks = re.compile(
        r"isinstance\([^()]*\b(Code|SparseCode|IndexCode)\b"
        r"|hasattr\(model, \"bottleneck\"|getattr\(code, \"(num_atoms|levels)"
    )
    private = re.compile(r"\b(model|codec|bottleneck|coder|autoencoder)\._[a-z]")
    for path in root.rglob("*.py"):
        floor, text = path.relative_to(root).parts[0], path.read_text(encoding="utf-8")
        assert floor == "coding" or not asks.search(text), path
        assert floor not in ("metrics", "commands", "visualization") or not private.search(text), path


def test_what_stands_above_models_asks_none_which_one_it_is():
    """A model describes itself, and has the verbs that its readers need; so they work for models to come."""
    root = Path(diffusers_lasers.__file__).parent
    models = r"(AutoencoderDL|ModelBasedVQCodec|ImageCoder|Coder|\w*Bottleneck)\b"
    asks = re.compile(
        rf"isinstance\([^()]*\(?[^()]*\b{models}|type\(\w+\) (is|==|in) |"
        rf"hasattr\([^()]*\"(bottleneck|codebooks?|dictionary)"
    )
    assert asks.search("isinstance(model, (Other, DictionaryBottleneck))") and not asks.search("isinstance(x, Figure)")
    for floor in ("metrics", "commands", "visualization", "pipelines", "training"):
        for path in (root / floor).rglob("*.py"):
            assert not asks.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", MAKE)
def test_a_coder_describes_itself(name):
    model = MAKE[name]().eval()
    assert json.loads(json.dumps(model.summary())).keys() <= {"rate", "bottleneck", "codec"}
    assert bool(model.pictures()) == any(kind in name for kind in ("dictionary", "vq", "codec"))
