"""Loading of models: all weights or none.

diffusers warns where a file lacks tensors of a model, or has others, and goes on with random ones; NaN weights load
like others. Here such a model is refused, whichever way it is loaded: alone, in a pipeline, in shards, in half
precision or dispatched to devices.

accelerate's `dispatch_model`, which stands behind `device_map`, moves what hangs on a module before the module runs.
Two things it does not move from disk, which would silently keep the values of `__init__` or none at all: buffers, and
what hangs on the model itself. They stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .hub import LasersHubMixin


__all__ = ["LasersModelMixin"]

_SHOWN = 5  # names in a sentence


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_finite_weights(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """
    Refuses weights that are NaN or infinite.

    Args:
        tensors (`dict[str, torch.Tensor]`): Name → weights.
        where (`str`): The model and its place, for the sentence.

    Raises:
        ValueError: If a value is not finite.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise ValueError(f"The weights of {where} must be finite, NaN or infinite values are in {_list(bad)}.")


class LasersModelMixin(LasersHubMixin):
    """
    The first base of each model of this package: what [`LasersHubMixin`] does, and checks when weights are loaded.
    """

    @classmethod
    def _load_pretrained_model(
        cls, model, state_dict, resolved_model_file, pretrained_model_name_or_path, *args: Any, **kwargs: Any
    ) -> tuple:
        """
        As in diffusers, whose `from_pretrained` calls it; raises a `ValueError` where tensors are missing, unknown or
        not finite.
        """
        from diffusers.models.model_loading_utils import load_state_dict

        where = f"{cls.__name__} at {str(pretrained_model_name_or_path)!r}"
        for part in resolved_model_file if state_dict is None else [state_dict]:
            check_finite_weights(part if isinstance(part, Mapping) else load_state_dict(part), where)
        result = super()._load_pretrained_model(
            model, state_dict, resolved_model_file, pretrained_model_name_or_path, *args, **kwargs
        )
        for what, names in (("lack", result[1]), ("also hold", result[2])):
            if names:
                raise ValueError(
                    f"The weights of {where} must be those of its configuration, they {what} {_list(names)}."
                )
        if kwargs.get("dtype") == torch.float16:  # whose largest number is 65504
            loaded = {name: tensor for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}
            check_finite_weights(loaded, f"{where}, in half precision,")
        if "disk" in (kwargs.get("device_map") or {}).values():
            _keep_in_memory(model, kwargs["device_map"], kwargs["offload_folder"])
        return result


def _keep_in_memory(model: torch.nn.Module, device_map: Mapping[str, Any], folder: str) -> None:
    """Loads buffers, and what hangs on the model itself, from the folder of offloaded weights."""
    from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device
    from diffusers.models.model_loading_utils import _determine_param_device

    names = [name for name, _ in model.named_buffers()] + [name for name, _ in model.named_parameters(recurse=False)]
    offloaded = OffloadedWeightsLoader(save_folder=folder)
    for name in names:
        if name in offloaded and _determine_param_device(name, device_map) == "disk":
            set_module_tensor_to_device(model, name, "cpu", value=offloaded[name].clone())
