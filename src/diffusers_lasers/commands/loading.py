"""What the subcommands share about models: where a configuration is, which class it names, and the loaded model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


CONFIG, PIPELINE, PRIOR = "config.json", "model_index.json", "prior"
CODERS = ("AutoencoderDL", "ModelBasedVQCodec")


def add_model_arguments(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """The model, as option or as first word, and where in it and on what it is loaded."""
    kind = {"metavar": "FOLDER_OR_REPO", "help": "folder of a saved model, or a repository on the Hub"}
    if positional:
        parser.add_argument("model", **kind)
    else:
        parser.add_argument("--model", required=True, **kind)
    parser.add_argument(
        "--subfolder", metavar="NAME", help="folder of the model inside it, such as a pipeline's `vae`"
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a repository on the Hub")
    add_device_argument(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: cuda where there is one, else cpu")


def get_device(name: str | None) -> torch.device:
    """
    A device that is there.

    Raises:
        ValueError: If it is not.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here: {_first_line(error)}") from error
    return device


def read_config(model: str, subfolder: str | None = None, revision: str | None = None) -> tuple[dict[str, Any], Path]:
    """
    The configuration of a model or the index of a pipeline, and the folder that holds it.

    Args:
        model (`str`): A folder, or a repository on the Hub.
        subfolder (`str`, *optional*): Folder in it.
        revision (`str`, *optional*): Branch, tag or commit of a repository.

    Returns:
        `tuple[dict[str, Any], Path]`: What the file holds, and its folder.

    Raises:
        ValueError: If there is no such folder or repository, or no such file in it.
    """
    if Path(model).is_dir():
        folder = Path(model) / (subfolder or "")
        if not folder.is_dir():
            raise ValueError(f"{model} has no subfolder {subfolder!r}.")
        path = next((folder / name for name in (CONFIG, PIPELINE) if (folder / name).is_file()), None)
        if path is None:
            raise ValueError(f"{folder} holds neither {CONFIG} nor {PIPELINE}: it is no saved model.")
    elif Path(model).exists():
        raise ValueError(f"{model} is a file: give the folder of a saved model, or a repository on the Hub.")
    else:
        path = _download(model, subfolder, revision)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{path} names no `_class_name`: it is no model of diffusers.")
    return config, path.parent


def _download(model: str, subfolder: str | None, revision: str | None) -> Path:
    """The configuration file of a repository, in the cache of the Hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    for name in (CONFIG, PIPELINE):
        try:
            return Path(hf_hub_download(model, name, subfolder=subfolder, revision=revision))
        except RemoteEntryNotFoundError:
            continue
        except HFValidationError as error:
            raise ValueError(f"There is no folder {model!r}, and no repository can have that name.") from error
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"There is no folder {model!r}, and the Hub, which may have such a repository, cannot be reached."
            ) from error
        except Exception as error:  # whatever else the network or the Hub answers
            raise ValueError(
                f"There is no folder {model!r}, and the Hub gave no such repository: {_first_line(error)}"
            ) from error
    where = f"its folder {subfolder!r}" if subfolder else "it"
    raise ValueError(f"The repository {model!r} is no saved model: {where} holds neither {CONFIG} nor {PIPELINE}.")


def load_model(
    model: str,
    subfolder: str | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    supported: tuple[str, ...] = CODERS,
) -> Any:
    """
    A saved model of one of the supported classes, for inference.

    Args:
        model (`str`): A folder, or a repository on the Hub.
        subfolder (`str`, *optional*): Folder in it.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        device (`torch.device` or `str`, *optional*): Where it shall live.
        supported (`tuple[str, ...]`): Public classes of this package that the caller can use.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is none, it is of another class, or it cannot be loaded. ImportError: If a package is
            missing.
    """
    import diffusers

    config, _ = read_config(model, subfolder, revision)
    name = config["_class_name"]
    where = f"{model}/{subfolder}" if subfolder else model
    if name not in supported:
        hint = ""
        if name.endswith("Pipeline"):
            parts = [part for part, value in config.items() if isinstance(value, list) and value[-1] in supported]
            hint = f"; --subfolder {parts[0]} names its part" if parts else ", and none of its parts is one"
        raise ValueError(f"{where} is of class {name}, supported are {', '.join(supported)}{hint}.")
    places = {key: value for key, value in (("subfolder", subfolder), ("revision", revision)) if value}
    try:
        # diffusers answers the names of our classes too, see utils/registration.py
        loaded = getattr(diffusers, name).from_pretrained(model, **places)
    except ImportError:
        raise
    except Exception as error:  # truncated weights, missing files, another configuration: each library has its own
        raise ValueError(f"{where} cannot be loaded: {_first_line(error)}") from error
    return loaded.to(device).eval() if device is not None else loaded.eval()


def load_prior(model: str, subfolder: str | None, revision: str | None, coder: Any) -> Any:
    """
    The prior that lies beside a saved model.

    Args:
        model (`str`): A folder, or a repository on the Hub.
        subfolder (`str`, *optional*): Folder of the model in it.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        coder ([`Coder`]): The loaded model.

    Returns:
        [`FactorizedPrior`] or `None`: The prior; `None` where none is found, or the model's coefficients have other
        bits than the prior's.

    Raises:
        ValueError: If it cannot be loaded, or is of other weights.
    """
    where = "/".join(part for part in (subfolder, PRIOR) if part)
    try:
        read_config(model, where, revision)
    except ValueError:  # no such folder, here, on the Hub or in its cache
        return None
    prior = load_model(model, where, revision, supported=("FactorizedPrior",))
    if int(prior.coder_fingerprint) != coder.fingerprint:
        raise ValueError(f"{model}/{where} is the prior of other weights: run `fit-prior` again, or use --no_prior.")
    return prior if prior.config.coefficient_bits == coder.coder.coefficient_bits else None


def _first_line(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
