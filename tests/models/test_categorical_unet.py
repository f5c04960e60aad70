"""The denoiser of indices and the refiner: shapes, inputs, gradient checkpointing, saving, presets."""

import pytest
import torch

from diffusers_lasers import CategoricalUNet2DModel, CategoricalUNet2DOutput, LatentRefiner
from diffusers_lasers.functional import index_to_number


TINY = {
    "num_slots": 3,
    "num_codewords": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


@pytest.mark.parametrize("parameterization", ["categorical", "continuous", "discrete"])
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 1)])
def test_shapes_and_saving(parameterization, size, tmp_path):
    torch.manual_seed(0)
    model = CategoricalUNet2DModel(parameterization=parameterization, self_conditioning=True, **TINY).eval()
    codes = torch.randint(0, 8, (2, 3, *size))
    sample = codes if parameterization == "discrete" else torch.randn(2, 3, *size)
    output = model(sample, torch.tensor([3, 900]), torch.zeros(2, 3, *size))
    assert isinstance(output, CategoricalUNet2DOutput)
    assert output.sample.shape == ((2, 3, *size) if parameterization == "continuous" else (2, 3, 8, *size))
    torch.testing.assert_close(output.sample, model(sample, torch.tensor([3, 900]), return_dict=False)[0])
    model.save_pretrained(tmp_path)
    loaded = CategoricalUNet2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(sample, 3).sample, model(sample, 3).sample)


def test_indices_count_as_their_numbers():
    model, codes = CategoricalUNet2DModel(**TINY).eval(), torch.randint(0, 8, (2, 3, 4, 4))
    torch.testing.assert_close(model(codes, 5).sample, model(index_to_number(codes, 8), 5).sample)


def test_the_mask_and_the_condition_matter():
    model = CategoricalUNet2DModel(parameterization="discrete", self_conditioning=True, **TINY).eval()
    codes = torch.zeros(1, 3, 4, 4, dtype=torch.int64)
    assert not torch.equal(model(codes, 5).sample, model(torch.full_like(codes, 8), 5).sample)
    assert not torch.equal(model(codes, 5).sample, model(codes, 5, torch.ones(1, 3, 4, 4)).sample)


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = CategoricalUNet2DModel(**TINY).train()
    sample, gradients = torch.randn(2, 3, 4, 4), []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(sample, 5).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)


def test_presets_have_the_sizes_that_they_are_named_for():
    with torch.device("meta"):
        paper = CategoricalUNet2DModel.from_preset("paper")
        refiner = LatentRefiner()
    assert abs(sum(p.numel() for p in paper.parameters()) / 1e6 - 50) < 1
    assert abs(sum(p.numel() for p in refiner.parameters()) / 1e6 - 1.7) < 0.1
    assert CategoricalUNet2DModel.from_preset("small", **TINY).config.num_slots == 3
    with pytest.raises(ValueError, match="`preset`"):
        CategoricalUNet2DModel.from_preset("huge")


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"num_slots": 0}, "num_slots"),
        ({"num_codewords": 1}, "num_codewords"),
        ({"parameterization": "x"}, "parameterization"),
        ({"attention": "x"}, "attention"),
        ({"norm_num_groups": 5}, "norm_num_groups"),
    ],
)
def test_bad_configurations_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        CategoricalUNet2DModel(**{**TINY, **arguments})


def test_bad_inputs_are_named():
    model = CategoricalUNet2DModel(**TINY)
    with pytest.raises(ValueError, match="`sample` must have shape"):
        model(torch.zeros(1, 2, 4, 4), 1)
    with pytest.raises(ValueError, match="`self_condition`"):
        model(torch.zeros(1, 3, 4, 4), 1, torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="must be int64 indices"):
        CategoricalUNet2DModel(parameterization="discrete", **TINY)(torch.zeros(1, 3, 4, 4), 1)


def test_an_untrained_refiner_changes_nothing(tmp_path):
    refiner = LatentRefiner(block_out_channels=(8, 16), norm_num_groups=4)
    images = torch.rand(2, 3, 13, 18) * 2 - 1
    assert torch.equal(refiner(images).sample, images)
    refiner.save_pretrained(tmp_path)
    assert torch.equal(LatentRefiner.from_pretrained(tmp_path)(images, return_dict=False)[0], images)
    with pytest.raises(ValueError, match="`sample`"):
        refiner(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="norm_num_groups"):
        LatentRefiner(norm_num_groups=7)
