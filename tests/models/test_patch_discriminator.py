"""The PatchGAN: its patch, its sizes, its independence of other images, saving and loading."""

import pytest
import torch

from diffusers_lasers import PatchDiscriminator, PatchDiscriminatorOutput


def small(**config):
    torch.manual_seed(0)
    return PatchDiscriminator(**{"base_channels": 8, "norm_num_groups": 4, **config}).eval()


def images(side=64, count=2):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("num_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(num_layers, field):
    model, image = small(num_layers=num_layers, norm_type="none"), images(160, 1).requires_grad_()
    output = model(image)
    assert isinstance(output, PatchDiscriminatorOutput)
    logits = output.logits
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = (image.grad[0].abs().sum(dim=0) > 0).any(dim=1).nonzero()
    assert rows[-1] - rows[0] + 1 == field == model.receptive_field


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_sizes(num_layers):
    model = small(num_layers=num_layers)
    least = model.smallest_size
    assert model(images(least)).logits.shape == (2, 1, 1, 1)
    assert model(images(50)).logits.shape == (2, 1, 50 // 2**num_layers - 2, 50 // 2**num_layers - 2)
    for wrong in (images(least - 1), images(64)[:, :2], images(64)[0]):
        with pytest.raises(ValueError, match="`images`"):
            model(wrong)


@pytest.mark.parametrize("norm_type, alone", [("group", True), ("none", True), ("batch", False)])
def test_only_batch_norm_mixes_images(norm_type, alone):
    model, batch = small(norm_type=norm_type).train(), images(count=3)
    same = torch.allclose(model(batch).logits[:1], model(batch[:1]).logits, atol=1e-5)
    assert same is alone


@pytest.mark.parametrize("norm_type", ["group", "none", "batch"])
def test_save_and_load(norm_type, tmp_path):
    model = small(norm_type=norm_type)
    model.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path).eval()
    assert loaded.config.norm_type == norm_type and torch.equal(loaded(images()).logits, model(images()).logits)


def test_the_default_is_the_published_size():
    model = PatchDiscriminator(norm_type="batch")
    # convolutions 3→64→128→256→512→1 of 4×4, biases where no batch norm follows, scale and shift of the norms
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert model.num_parameters() == weights + 64 + 1 + 2 * (128 + 256 + 512)
    assert model.layers[2].weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    "config",
    [{"in_channels": 0}, {"base_channels": 2.5}, {"num_layers": True}, {"norm_type": "layer"}, {"norm_num_groups": 3}],
    ids=lambda config: next(iter(config)),
)
def test_bad_arguments(config):
    with pytest.raises(ValueError, match=f"`{next(iter(config))}`"):
        small(**config)
