"""Model cards, which tell how to install this package and how to use a class, and repositories on the Hub.

On a push, diffusers writes its own card with `library_name: diffusers`, which does not mention the plug-in. All pushes
(`push_to_hub`, `save_pretrained(..., push_to_hub=True)`) call `_upload_folder`. There, [`LasersHubMixin`] completes the
card. The generated part stands between two marks and is replaced by the next push. The text around it and all other
fields of the metadata are kept.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import one_line
from .config_checks import Field, check_fields
from .files import fill_folder, write_bytes, write_text


if TYPE_CHECKING:
    from huggingface_hub import ModelCard


__all__ = ["LasersHubMixin", "create_repository", "push_folder", "write_model_card"]

LIBRARY_NAME = "diffusers_lasers"
CARD_NAME = "README.md"
DEFAULT_TAGS = ("diffusers", LIBRARY_NAME)
USAGE_START = "<!-- diffusers_lasers: usage, generated -->"
USAGE_END = "<!-- diffusers_lasers: end of usage -->"
_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "create_pr", "token")  # of `save_pretrained`, for a push
PLACEHOLDER_REPOSITORY = "path/to/folder-or-repository"

_EXAMPLES = {
    "Codec": """
code = model.encode_to_code(images)  # images (B, 3, H, W) in [-1, 1]; code.indices (B, h, w, slots)
sample = model.decode_from_code(code).sample
data = model.pack(code)
print(model.bits_per_pixel(*images.shape[-2:]), "bits per pixel")
""",
    "Autoencoder": """
with torch.no_grad():
    output = model(images)  # images (B, 3, H, W) in [-1, 1]; gives output.sample, and output.code with a bottleneck
print(model.bits_per_pixel(*images.shape[-2:]), "bits per pixel")
""",
    "Bottleneck": """
with torch.no_grad():
    code = model.encode(latents)  # latents (B, latent_channels, H, W)
    quantized_latents = model.decode(code)
print(model.bits_per_site, "bits per site")
""",
}


def usage_section(class_name: str, repository: str = PLACEHOLDER_REPOSITORY, subfolder: str | None = None) -> str:
    """
    The part of a model card that tells how to install this package and how to load and use a class of it.

    Args:
        class_name (`str`): Public class of `diffusers_lasers` in the repository.
        repository (`str`): Repository id or folder for the snippet.
        subfolder (`str`, *optional*): Folder of the class in the repository.

    Returns:
        `str`: Markdown between two marks.
    """
    example = next((text for word, text in _EXAMPLES.items() if word in class_name), "")
    imports = ("import torch\n" if example else "") + f"from {LIBRARY_NAME} import {class_name}"
    arguments = f'"{repository}"' + (f', subfolder="{subfolder}"' if subfolder else "")
    return (
        f"{USAGE_START}\n## Usage\n\n"
        f"The weights belong to `{class_name}` of the diffusers plug-in `{LIBRARY_NAME}`:\n\n"
        "It is not released yet: `pip install .` in a clone of its repository installs it;\n"
        f"`pip install {LIBRARY_NAME}` will once it is.\n\n"
        f"```python\n{imports}\n\nmodel = {class_name}.from_pretrained({arguments})\n{example}```\n{USAGE_END}"
    )


def complete_model_card(
    card: ModelCard, class_name: str, repository: str = PLACEHOLDER_REPOSITORY, tags: tuple[str, ...] = ()
) -> ModelCard:
    """
    Adds library, tags and usage to a card, unless it has them already.

    Args:
        card (`ModelCard`): The card, which is changed in place. A `library_name` other than diffusers' default is kept.
        class_name (`str`): Public class of `diffusers_lasers` in the repository.
        repository (`str`): Repository id or folder for the snippet.
        tags (`tuple[str, ...]`): Tags in addition to `DEFAULT_TAGS`.

    Returns:
        `ModelCard`: The same card.
    """
    if card.data.library_name in (None, "diffusers"):
        card.data.library_name = LIBRARY_NAME
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *DEFAULT_TAGS, *tags]))

    usage = usage_section(class_name, repository)
    marked = re.compile(f"{re.escape(USAGE_START)}.*?{re.escape(USAGE_END)}", flags=re.DOTALL)
    if marked.search(card.text):
        card.text = marked.sub(lambda _: usage, card.text)
    else:
        card.text = f"{card.text.rstrip()}\n\n{usage}\n"
    return card


def write_model_card(
    folder: str | os.PathLike,
    class_name: str,
    *,
    license: str | None = None,
    tags: tuple[str, ...] = (),
    sections: dict[str, str] | None = None,
) -> Path:
    """
    Writes the card (`README.md`) of a saved model into its folder. An existing card is replaced.

    Args:
        folder (`str` or `os.PathLike`): Folder of the saved model. It is made if it is missing.
        class_name (`str`): Public class of `diffusers_lasers` in the folder.
        license (`str`, *optional*): Licence of the *weights*, as the Hub names it. Defaults to `None`: the card states
            none.
        tags (`tuple[str, ...]`): Tags in addition to `DEFAULT_TAGS`.
        sections (`dict[str, str]`, *optional*): Heading and Markdown of further sections, in this order, such as the
            training arguments and the results with their bits.

    Returns:
        `Path`: The written file.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    metadata = ModelCardData(license=license, library_name=LIBRARY_NAME)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {class_name}\n")
    complete_model_card(card, class_name, tags=tuple(tags))
    for heading, text in (sections or {}).items():
        card.text = f"{card.text.rstrip()}\n\n## {heading}\n\n{text.strip()}\n"

    folder.mkdir(parents=True, exist_ok=True)
    return _save_card(card, folder / CARD_NAME)


def create_repository(
    folder: str | os.PathLike,
    repository: str | None = None,
    token: str | None = None,
    repo_type: str = "model",
) -> str:
    """
    Makes the repository of a folder on the Hub if it is missing. Called before a long run, it finds a wrong name or
    token early.

    Args:
        folder (`str` or `os.PathLike`): The folder that will be uploaded. It need not exist yet.
        repository (`str`, *optional*): Repository id. Defaults to the folder's name, under the user of the token.
        token (`str`, *optional*): The token. Defaults to the one that is logged in.
        repo_type (`str`, defaults to `"model"`): `"model"` or `"dataset"`.

    Returns:
        `str`: Repository id.

    Raises:
        ValueError: If the name is not valid on the Hub.
        OSError: If the Hub refuses to make the repository or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    name = repository or Path(folder).resolve().name
    validate_repo_id(name)
    try:
        return HfApi(token=token).create_repo(name, exist_ok=True, repo_type=repo_type).repo_id
    except Exception as error:  # errors of the network are those of huggingface_hub's HTTP library, which may change
        raise OSError(f"The repository {name!r} cannot be made on the Hub: {one_line(error)}") from error


def push_folder(
    folder: str | os.PathLike,
    repository: str | None = None,
    token: str | None = None,
    message: str = "Upload",
    ignore_patterns: list[str] | None = None,
    repo_type: str = "model",
) -> str:
    """
    Uploads a folder to the Hub without changing it. The repository is made if it is missing.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repository (`str`, *optional*): Repository id. Defaults to the folder's name, under the user of the token.
        token (`str`, *optional*): The token. Defaults to the one that is logged in.
        message (`str`, defaults to `"Upload"`): Message of the commit.
        ignore_patterns (`list[str]`, *optional*): Files that are not uploaded, such as `["checkpoint-*"]`. Hidden files
            never are.
        repo_type (`str`, defaults to `"model"`): `"model"` or `"dataset"`.

    Returns:
        `str`: Repository id.
    """
    from huggingface_hub import HfApi

    repository = create_repository(folder, repository, token, repo_type)
    ignored = [*(ignore_patterns or []), ".*", "*/.*"]
    HfApi(token=token).upload_folder(
        repo_id=repository,
        repo_type=repo_type,
        folder_path=folder,
        commit_message=message,
        ignore_patterns=ignored,
    )
    return repository


def _save_card(card: ModelCard, path: Path) -> Path:
    write_text(path, str(card))
    return path


class LasersHubMixin:
    """
    The first base of each model, scheduler and pipeline of this package.

    It completes the model card on every push to the Hub, checks configurations, and saves files completely or not at
    all. Class attributes: `_model_card_tags` (`tuple[str, ...]`) are tags of the class in addition to `DEFAULT_TAGS`.
    `_config_fields` (`dict[str, Field]`) are the allowed values of each argument of the configuration; see
    `config_checks`.
    """

    _model_card_tags: tuple[str, ...] = ()
    _config_fields: Mapping[str, Field] = {}

    def register_to_config(self, **kwargs: Any) -> None:
        """
        Like the method of diffusers, but values that `_config_fields` does not allow are refused. diffusers calls it
        before the body of `__init__`.

        Raises:
            ValueError: If a value is not allowed. The error names the argument, the value and what is allowed.
        """
        check_fields(self._config_fields, kwargs)
        super().register_to_config(**kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file, *args, **kwargs):
        config = super()._dict_from_json_file(json_file, *args, **kwargs)
        if not isinstance(config, dict):
            raise ValueError(f"{json_file} must hold a JSON object of arguments, got a {type(config).__name__}.")
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path=None, *args, **kwargs):
        """
        Like the method of diffusers, but with a `subfolder` of a local folder, only that subfolder is read. If the
        outer folder holds a model too, diffusers would load the weights of that one.

        Raises:
            OSError: If a local folder does not have the subfolder.
        """
        folder, subfolder = pretrained_model_name_or_path, kwargs.get("subfolder")
        if folder is not None and subfolder and os.path.isdir(folder):
            if not os.path.isdir(os.path.join(folder, subfolder)):
                raise OSError(f"{folder} has no subfolder {subfolder!r}.")
            pretrained_model_name_or_path = os.path.join(folder, subfolder)
            kwargs["subfolder"] = None
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """
        Like the method of diffusers, but a process that is killed, or a full disk, leaves the old model or the new one.

        Raises:
            OSError: If something cannot be written. The folder is then unchanged.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        fill_folder(
            save_directory, lambda folder: super(LasersHubMixin, self).save_pretrained(folder, *args, **kwargs)
        )
        if push_to_hub:  # from a copy, since diffusers writes the folder that it uploads
            hub.setdefault("repo_id", Path(save_directory).name)
            with tempfile.TemporaryDirectory() as copy:
                super().save_pretrained(copy, *args, push_to_hub=True, **hub, **kwargs)
                if (Path(copy) / CARD_NAME).is_file():
                    write_bytes(Path(save_directory) / CARD_NAME, (Path(copy) / CARD_NAME).read_bytes())

    def _upload_folder(self, working_dir, repo_id, *args, **kwargs):
        path = Path(working_dir) / CARD_NAME
        if path.is_file():  # there is no card in a push into a subfolder
            from huggingface_hub import ModelCard

            card = complete_model_card(
                ModelCard.load(path), type(self).__name__, repository=repo_id, tags=self._model_card_tags
            )
            _save_card(card, path)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)
