"""Model cards: a repository of one of our classes says how to install this package and how to use the class.

diffusers writes its own card on a push, with `library_name: diffusers` and nothing else, from which nobody learns that
a plug-in is needed. All pushes (`push_to_hub`, `save_pretrained(..., push_to_hub=True)`) end in `_upload_folder`, so
that is where [`LasersHubMixin`] completes the card. The part that is written here stands between two marks and is
replaced on the next push; everything that a person wrote around it, and every other field of the metadata, is kept.
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
_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "create_pr", "token")  # of `save_pretrained`, when it pushes
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
    The part of a model card that says how to install this package and how to load and use a class of it.

    Args:
        class_name (`str`): Public class of `diffusers_lasers` that the repository holds.
        repository (`str`): Repository id or folder in the snippet.
        subfolder (`str`, *optional*): Folder in the repository that holds the class.

    Returns:
        `str`: Markdown between two marks, by which it is found again.
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
    Adds library, tags and usage to a card; what is there already is not added twice.

    Args:
        card (`ModelCard`): Changed in place. A `library_name` other than diffusers' default is kept.
        class_name (`str`): Public class of `diffusers_lasers` that the repository holds.
        repository (`str`): Repository id or folder in the snippet.
        tags (`tuple[str, ...]`): Tags beside `DEFAULT_TAGS`.

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
    Writes the card (`README.md`) of a saved model into its folder, in the place of one that may be there.

    Args:
        folder (`str` or `os.PathLike`): Folder that `save_pretrained` filled; made if it is missing.
        class_name (`str`): Public class of `diffusers_lasers` that the folder holds.
        license (`str`, *optional*): Licence of the *weights*, in the Hub's words. Defaults to `None`: none is stated.
        tags (`tuple[str, ...]`): Tags beside `DEFAULT_TAGS`.
        sections (`dict[str, str]`, *optional*): Heading → markdown, written after the usage in this order, e.g. the
            training arguments and the figures with their bits.

    Returns:
        `Path`: The written file, whole or not there.
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


def create_repository(folder: str | os.PathLike, repository: str | None = None, token: str | None = None) -> str:
    """
    Makes the repository of a folder on the Hub if it is missing; so a wrong name or token shows before hours are spent.

    Args:
        folder (`str` or `os.PathLike`): The folder that will be uploaded; it need not exist.
        repository (`str`, *optional*): Repository id. Defaults to the folder's name, under the user of the token.
        token (`str`, *optional*): The token. Defaults to the one that is logged in.

    Returns:
        `str`: Repository id.

    Raises:
        ValueError: If the name is none that the Hub takes. OSError: If the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    name = repository or Path(folder).resolve().name
    validate_repo_id(name)
    try:
        return HfApi(token=token).create_repo(name, exist_ok=True).repo_id
    except Exception as error:  # those of a network come from the HTTP library that huggingface_hub has at the time
        raise OSError(f"The repository {name!r} cannot be made on the Hub: {one_line(error)}") from error


def push_folder(
    folder: str | os.PathLike,
    repository: str | None = None,
    token: str | None = None,
    message: str = "Upload",
    ignore_patterns: list[str] | None = None,
) -> str:
    """
    Uploads a folder to the Hub as it is; the repository is made if it is missing.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repository (`str`, *optional*): Repository id. Defaults to the folder's name, under the user of the token.
        token (`str`, *optional*): The token. Defaults to the one that is logged in.
        message (`str`, defaults to `"Upload"`): Message of the commit.
        ignore_patterns (`list[str]`, *optional*): What stays here, e.g. `["checkpoint-*"]`; hidden files always do.

    Returns:
        `str`: Repository id.
    """
    from huggingface_hub import HfApi

    repository = create_repository(folder, repository, token)
    ignored = [*(ignore_patterns or []), ".*", "*/.*"]
    HfApi(token=token).upload_folder(
        repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=ignored
    )
    return repository


def _save_card(card: ModelCard, path: Path) -> Path:
    write_text(path, str(card))
    return path


class LasersHubMixin:
    """
    Completes the model card on every push to the Hub, checks configurations, and saves whole files only; the first
    base of each model, scheduler and pipeline of this package.

    Class attributes: `_model_card_tags` (`tuple[str, ...]`): tags of the class beside `DEFAULT_TAGS`; `_config_fields`
    (`dict[str, Field]`): what each argument of the configuration may be, see `config_checks`.
    """

    _model_card_tags: tuple[str, ...] = ()
    _config_fields: Mapping[str, Field] = {}

    def register_to_config(self, **kwargs: Any) -> None:
        """
        As in diffusers, but values that `_config_fields` does not allow are refused. diffusers calls it before the
        body of `__init__`.

        Raises:
            ValueError: If a value does not fit; the sentence names the argument, the value and what is allowed.
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
        As in diffusers, but a `subfolder` of a local folder is found also where the folder itself holds a model, and
        missed where it is not there: diffusers would take the weights of the outer one in both cases.

        Raises:
            OSError: If a local folder lacks the subfolder.
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
        As in diffusers, but a process that is killed or finds no room leaves the model that was there, or the new one.

        Raises:
            OSError: If something cannot be written; the folder is then as it was.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        fill_folder(
            save_directory, lambda folder: super(LasersHubMixin, self).save_pretrained(folder, *args, **kwargs)
        )
        if push_to_hub:  # from a copy: diffusers writes as it uploads
            hub.setdefault("repo_id", Path(save_directory).name)
            with tempfile.TemporaryDirectory() as copy:
                super().save_pretrained(copy, *args, push_to_hub=True, **hub, **kwargs)
                if (Path(copy) / CARD_NAME).is_file():
                    write_bytes(Path(save_directory) / CARD_NAME, (Path(copy) / CARD_NAME).read_bytes())

    def _upload_folder(self, working_dir, repo_id, *args, **kwargs):
        path = Path(working_dir) / CARD_NAME
        if path.is_file():  # a push into a subfolder brings no card
            from huggingface_hub import ModelCard

            card = complete_model_card(
                ModelCard.load(path), type(self).__name__, repository=repo_id, tags=self._model_card_tags
            )
            _save_card(card, path)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)
