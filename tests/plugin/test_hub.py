"""Push and pull through the real Hub client, against a Hub on this machine; and what the model cards say."""

import json

import pytest
from huggingface_hub import ModelCard

from diffusers_lasers.utils import LasersHubMixin
from diffusers_lasers.utils.hub import write_model_card


SCRIPT = """
from diffusers import AutoModel, DiffusionPipeline, LDMSuperResolutionPipeline, DDIMScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import LOADABLE_CLASSES
result["registered before"] = "diffusers_lasers" in LOADABLE_CLASSES
from diffusers_lasers import AutoencoderDL
result["registered"] = "diffusers_lasers" in LOADABLE_CLASSES

model = AutoencoderDL(block_out_channels=(8, 16), latent_channels=4, bottleneck_config={"num_atoms": 16, "sparsity": 2})
model.push_to_hub("someone/model")
model.push_to_hub("someone/model")
model.push_to_hub("someone/half", variant="fp16")
model.push_to_hub("someone/nested", subfolder="vae")
model.push_to_hub("someone/with-card")
model.save_pretrained("saved_and_pushed", push_to_hub=True, repo_id="someone/saved")

sizes = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
unet = UNet2DModel(in_channels=7, out_channels=4, add_attention=False, **sizes, **blocks)
pipeline = LDMSuperResolutionPipeline(vqvae=model, unet=unet, scheduler=DDIMScheduler())
pipeline.push_to_hub("someone/pipeline")

def weight(loaded):
    return float(loaded.bottleneck.dictionary.double().sum() - model.bottleneck.dictionary.double().sum())

result["differences"] = {
    "model": weight(AutoencoderDL.from_pretrained("someone/model")),
    "auto": weight(AutoModel.from_pretrained("someone/model")),
    "variant": weight(AutoencoderDL.from_pretrained("someone/half", variant="fp16")),
    "subfolder": weight(AutoencoderDL.from_pretrained("someone/nested", subfolder="vae")),
    "pipeline": weight(DiffusionPipeline.from_pretrained("someone/pipeline").vqvae),
    "pipeline subfolder": weight(AutoModel.from_pretrained("someone/pipeline", subfolder="vqvae")),
}

# the check that the registration is for: without it the same repository is refused
LOADABLE_CLASSES.pop("diffusers_lasers")
try:
    DiffusionPipeline.from_pretrained("someone/pipeline")
except ValueError as error:
    result["unregistered"] = str(error)
"""

CARD = """---
license: cc-by-4.0
library_name: my_library
tags:
- flowers
---
# My model

My own words.
"""


@pytest.fixture(scope="module")
def pushed(local_hub, fresh, tmp_path_factory):
    (local_hub.root / "someone/with-card").mkdir(parents=True)
    (local_hub.root / "someone/with-card/README.md").write_text(CARD)
    result = fresh(SCRIPT, tmp_path_factory.mktemp("pushing"), **local_hub.environment)
    return result, local_hub.root / "someone"


def test_pushed_files(pushed):
    _, hub = pushed
    files = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in hub.iterdir()}
    weights = "diffusion_pytorch_model.safetensors"
    assert files["model"] == files["saved"] == ["README.md", "config.json", weights]
    assert files["half"] == ["README.md", "config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert files["nested"] == ["vae"]
    assert json.loads((hub / "pipeline/model_index.json").read_text())["vqvae"] == [
        "diffusers_lasers",
        "AutoencoderDL",
    ]


def test_pulled_by_every_way(pushed):
    result, _ = pushed
    assert not result["registered before"] and result["registered"]
    assert result["differences"] == dict.fromkeys(result["differences"], 0.0)


def test_registration_is_what_lets_the_hub_in(pushed):
    assert "is not a module in 'diffusers/pipelines'" in pushed[0]["unregistered"]


@pytest.mark.parametrize("repository", ["model", "saved", "half"])
def test_card_says_how_to_install_and_load(pushed, repository):
    card = ModelCard.load(pushed[1] / repository / "README.md")
    assert card.data.library_name == "diffusers_lasers"
    assert {"diffusers", "diffusers_lasers"} <= set(card.data.tags)
    assert len(card.data.tags) == len(set(card.data.tags))
    assert card.text.count("pip install diffusers_lasers") == 1  # also after two pushes
    assert f'AutoencoderDL.from_pretrained("someone/{repository}")' in card.text
    assert "bits per pixel" in card.text


def test_card_says_that_there_is_no_release_yet(pushed):
    text = ModelCard.load(pushed[1] / "model/README.md").text
    assert "It is not released yet: `pip install .` in a clone" in text and "```bash\npip install" not in text


def test_card_of_a_person_is_kept(pushed):
    card = ModelCard.load(pushed[1] / "with-card/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "my_library"
    assert card.data.tags[0] == "flowers" and "diffusers_lasers" in card.data.tags
    assert card.text.index("My own words.") < card.text.index("pip install diffusers_lasers")


def test_write_model_card(tmp_path):
    folder = tmp_path / "new" / "folder"
    path = write_model_card(
        folder,
        "AutoencoderDL",
        license="mit",
        tags=("flowers",),
        sections={"Training": "100 steps.\n", "Figures": "| dB | bits |\n|---|---|\n| 30 | 1.5 |"},
    )
    assert path == folder / "README.md" and [file.name for file in folder.iterdir()] == ["README.md"]
    card = ModelCard.load(path)
    assert card.data.to_dict() == {
        "license": "mit",
        "library_name": "diffusers_lasers",
        "tags": ["diffusers", "diffusers_lasers", "flowers"],
    }
    headings = [line for line in card.text.splitlines() if line.startswith("#") and "Usage" not in line]
    assert headings == ["# AutoencoderDL", "## Training", "## Figures"]
    assert "from diffusers_lasers import AutoencoderDL" in card.text and "| 30 | 1.5 |" in card.text

    write_model_card(folder, "DictionaryBottleneck")
    card = ModelCard.load(path)
    assert card.data.license is None and "Training" not in card.text and "bits per site" in card.text


def test_every_model_has_the_mixin_first():
    import diffusers_lasers

    classes = [
        getattr(diffusers_lasers, name)
        for module, names in diffusers_lasers._import_structure.items()
        if module.startswith("models")
        for name in names
    ]
    models = [cls for cls in classes if issubclass(cls, diffusers_lasers.ModelMixin)]
    assert len(models) >= 8
    for cls in models:
        order = cls.__mro__
        assert order.index(LasersHubMixin) < order.index(diffusers_lasers.ModelMixin), cls.__name__


def test_tokens_are_hidden_and_folders_pushed(monkeypatch, tmp_path):
    import huggingface_hub

    from diffusers_lasers.utils.command_line import hide_token
    from diffusers_lasers.utils.hub import create_repository, push_folder

    words = ["x.py", "--hub_token", "hf_a", "--hub_token=hf_a", "--hub_tok", "hf_a", "c"]
    assert hide_token(words, "hf_a") == ["x.py", "--hub_token", "***", "--hub_token=***", "--hub_tok", "***", "c"]
    assert hide_token(words, None) == words
    calls = {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, name, exist_ok, repo_type):
            assert exist_ok and repo_type == "model"
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments):
            calls.update(arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "model").mkdir()
    assert push_folder(tmp_path / "model", token="t", ignore_patterns=["*.tmp"]) == "me/model"
    assert calls["token"] == "t" and calls["ignore_patterns"] == ["*.tmp", ".*", "*/.*"]
    assert push_folder(tmp_path / "model", "other") == "me/other"
    assert create_repository(tmp_path / "later") == "me/later" and not (tmp_path / "later").exists()
    with pytest.raises(ValueError, match="no such/name"):
        create_repository(tmp_path, "no such/name")

    class NetworkError(Exception):
        pass

    def refuse(self, name, exist_ok, repo_type):
        raise NetworkError("two\nlines")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(OSError, match="^The repository 'me/model' cannot be made on the Hub: two lines$"):
        create_repository(tmp_path, "me/model")
