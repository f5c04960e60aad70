"""
Configurations that nobody means: each value of each argument of each class gives a working object or one sentence, at
once and in little memory.
"""

import inspect
import json
import math
import resource
import time

import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from hypothesis import given, settings
from hypothesis import strategies as st

import diffusers_lasers
from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    AutoencoderDL,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    DictionaryBottleneck,
    DLRestorationPipeline,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IdentityBottleneck,
    LatentRefiner,
    ModelBasedVQCodec,
    PatchDiscriminator,
    PerceptualSimilarity,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    UniformD3PMScheduler,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.models.bottlenecks.external_quantizer import QUANTIZERS
from diffusers_lasers.utils import config_checks


SMALL = {
    AutoencoderDL: {"block_out_channels": (4, 4), "residual_channels": 2, "bottleneck_config": {"num_atoms": 8}},
    CategoricalUNet2DModel: {
        "block_out_channels": (8, 8),
        "norm_num_groups": 2,
        "num_codewords": 4,
        "attention_head_dim": 4,
    },
    LatentRefiner: {"block_out_channels": (4, 4), "norm_num_groups": 2},
    PatchDiscriminator: {"base_channels": 4, "norm_num_groups": 2},
    PerceptualSimilarity: {},
    ModelBasedVQCodec: {},
    DictionaryBottleneck: {},
    VectorQuantizerBottleneck: {},
    ResidualVQBottleneck: {},
    EntropyScalarBottleneck: {},
    ExternalQuantizerBottleneck: {},
    FSQBottleneck: {},
    ScalarQuantizerBottleneck: {},
    IdentityBottleneck: {},
    FactorizedPrior: {},
    AbsorbingD3PMScheduler: {},
    CategoricalDDPMScheduler: {},
    UniformD3PMScheduler: {},
}
HOSTILE = [
    *(None, True, False, "", "8", "omp", "NaN", b"8", 0, -1, -(2**63), 2**31, 2**63, 10**30, 10**5000, 0.0, -0.5, 0.5,
        1.5, 8.0),
    *(1e308, 1e-320, math.nan, math.inf, -math.inf, 1j, [], {}, (), set(), [None], ["8"], [8, "8"], [8, -8],
        [2**31, 2**31], [math.nan]),
    *([[8], [8]], {"8": 8}, {8: 8}, {"num_atoms": "8"}, {"num_atoms": 2**31}, {"tolerance": math.nan}, {"self": 1},
        {"latent_channels": 3}),
    *(object(), torch.ones(2), torch.ones(()), torch.float32, [8] * 10**5, range(3), "x" * 10**6),
]  # fmt: skip
CASES = [(cls, name) for cls in SMALL for name in cls._config_fields]


RUN = {
    AutoencoderDL: lambda model: (
        model.config.in_channels <= 64 and model(torch.zeros(1, model.config.in_channels, 16, 16))
    ),
    CategoricalUNet2DModel: lambda model: model(
        torch.zeros(
            *(1, model.config.num_slots, 4, 4),
            dtype=torch.int64 if model.token_embedding is not None else torch.float32,
        ),
        0,
    ),
    LatentRefiner: lambda model: (
        model.config.in_channels <= 64 and model(torch.zeros(1, model.config.in_channels, 8, 8))
    ),
    PatchDiscriminator: lambda model: (
        model.config.num_layers <= 3 and model(torch.zeros(1, model.config.in_channels, 32, 32))
    ),
}


def build(cls, **arguments):
    """The object, or `None` where it was refused in one sentence; anything else is an error."""
    start = time.perf_counter()
    try:
        made = cls(**{**SMALL[cls], **arguments})
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 900, message[:200]
        return None
    finally:
        assert time.perf_counter() - start < 20
    RUN.get(cls, lambda model: None)(made)  # what is taken works
    return made


def test_every_class_with_a_configuration_says_what_its_arguments_may_be():
    names = [name for module in diffusers_lasers._import_structure.values() for name in module]
    classes = [getattr(diffusers_lasers, name) for name in names]
    ours = [
        cls
        for cls in classes
        if isinstance(cls, type)
        and hasattr(cls, "from_config")
        and cls.__module__.startswith("diffusers_lasers.")
        and cls.__name__ not in ("Bottleneck", "IndexBottleneck", "CodedAutoencoder")  # the last has parts
        and not issubclass(cls, ModularPipelineBlocks)
        and not cls.__name__.endswith("Pipeline")
    ]
    assert set(ours) == set(SMALL)
    for cls in ours:
        arguments = list(inspect.signature(cls.__init__).parameters)[1:]
        assert sorted(cls._config_fields) == sorted(arguments), cls


@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_hostile_value_is_refused_in_one_sentence_or_works(cls, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for value in HOSTILE:
        build(cls, **{name: value})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * 2**20  # KiB


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**24, 2**70), st.floats(), st.text(max_size=8),
    st.binary(max_size=4)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_value_is_refused_in_one_sentence_or_works(data):
    cls, name = data.draw(st.sampled_from(CASES))
    value = data.draw(values)
    if isinstance(value, int) and 2**10 < value < 2**24:
        value += 2**24  # a large model that is meant is not what is tested here
    made = build(cls, **{name: value})
    if made is not None:
        again = cls.from_config(json.loads(made.to_json_string()))
        assert type(again) is cls


def test_what_was_seen():
    for cls, arguments, sentence in (
        (AutoencoderDL, {"layers_per_block": 2**31},
            "`layers_per_block` must be an integer from 0 to 128, got 2147483648"),
        (AutoencoderDL, {"layers_per_block": "2"}, "`layers_per_block` must be an integer from 0 to 128, got '2'"),
        (AutoencoderDL, {"bottleneck_config": {"tolerance": "8"}},
            "`tolerance` must be a finite number of at least 0 or None, got '8'"),
        (DictionaryBottleneck, {"tolerance": math.nan}, "`tolerance` must be a finite number"),
        (CategoricalDDPMScheduler, {"temperature": "1"},
         "`temperature` must be a finite number of at least 0, got '1'"),
        (VectorQuantizerBottleneck, {"commitment_weight": math.inf}, "`commitment_weight` must be"),
        (CategoricalUNet2DModel, {"attention_head_dim": 16},
            "`attention_head_dim` must be at most the last of `block_out_channels`, 8, got 16"),
        (AutoencoderDL, {"backbone": "diffusers", "norm_num_groups": 3}, "`norm_num_groups` must divide all"),
        (AutoencoderDL, {"backbone": "diffusers", "norm_num_groups": 2, "layers_per_block": 0},
            "`layers_per_block` must be at least 1"),
        (ModelBasedVQCodec, {"codebook_bits": True}, "`codebook_bits` must be an integer from 1 to 12, got True"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            cls(**{**SMALL[cls], **arguments})


@pytest.mark.parametrize(
    ("cls", "arguments", "word"),
    [
        (DictionaryBottleneck, {"num_atoms": 2**20, "latent_channels": 2**16}, "num_atoms"),
        (VectorQuantizerBottleneck, {"num_codewords": 2**24, "latent_channels": 2**16}, "num_codewords"),
        (ScalarQuantizerBottleneck, {"patch_size": 2**10}, "patch_size"),
        (ExternalQuantizerBottleneck, {"quantizer": "sim_vq", "patch_size": 2**10}, "patch_size"),
        (FSQBottleneck, {"latent_channels": 2**16, "levels": [3] * 2**14}, "levels"),
        (ModelBasedVQCodec, {"patch_size": 2**10}, "patch_size"),
        (AutoencoderDL, {"block_out_channels": (2**16, 2**16)}, "block_out_channels"),
        (CategoricalUNet2DModel, {"num_slots": 4096, "num_codewords": 2**20}, "num_codewords"),
        (LatentRefiner, {"block_out_channels": (2**16,)}, "block_out_channels"),
        (PatchDiscriminator, {"base_channels": 2**13}, "base_channels"),
    ],
)
def test_a_model_beyond_all_memory_is_refused_before_it_takes_any(cls, arguments, word):
    with pytest.raises(ValueError, match=f"`{word}`.* at most {config_checks.MAX_VALUES} values"):
        cls(**{**SMALL[cls], **arguments})


def test_a_later_change_of_a_configuration_passes_the_same_gate():
    bottleneck = DictionaryBottleneck(4, num_atoms=8)
    with pytest.raises(ValueError, match="`tolerance`"):
        bottleneck.register_to_config(tolerance="8")
    assert bottleneck.config.tolerance is None
    with pytest.raises(ValueError, match="`scale` must be an integer from 1 to 64, got 2.5"):
        DLRestorationPipeline(AutoencoderDL(**SMALL[AutoencoderDL]), task="super_resolution", scale=2.5)


@pytest.mark.parametrize("text", ["[]", "3", '"AutoencoderDL"', "null"])
def test_a_configuration_file_that_holds_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="must hold a JSON object"):
        AutoencoderDL.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("value", [0, 2**31, True, 1.0])
def test_a_number_out_of_range_is_refused_with_the_range(value):
    bottleneck, latents = FSQBottleneck(4, (3,) * 4), torch.zeros(1, 4, 2, 2)
    bottleneck.fit(latents, steps=1, batch_size=2**31 - 1)  # nothing to learn
    with pytest.raises(ValueError, match=r"`steps` must be an integer from 1 to 2147483647, got"):
        bottleneck.fit(latents, steps=value)


@pytest.mark.parametrize(
    ("quantizer", "name"), [(name, argument) for name, recipe in QUANTIZERS.items() for argument in recipe.arguments]
)
def test_a_hostile_argument_of_an_external_quantiser_is_refused_in_one_sentence_or_works(quantizer, name):
    for value in HOSTILE:
        made = build(ExternalQuantizerBottleneck, quantizer=quantizer, quantizer_config={name: value})
        if made is not None:
            made.eval()(torch.zeros(1, 16, 2, 2))
            again = ExternalQuantizerBottleneck.from_config(json.loads(made.to_json_string()))
            assert again.config.quantizer_config == made.config.quantizer_config
