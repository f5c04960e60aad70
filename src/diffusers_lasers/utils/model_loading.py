"""Loading of models. Missing, unknown and non-finite weights are errors.

If a file lacks tensors of a model or has other ones, diffusers only warns and keeps random values. NaN weights are
loaded without a warning. Here such a model is refused, however it is loaded: alone, in a pipeline, in shards, in half
precision or with a `device_map`.

For a `device_map`, accelerate's `dispatch_model` moves the tensors of a module before the module runs. It does not load
two kinds of tensors from disk: buffers, and parameters of the model itself rather than of a submodule. These would keep
their initial values or none at all. So they are loaded here and stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .hub import LasersHubMixin


__all__ = ["LasersModelMixin"]

_SHOWN = 5  # names in an error


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_finite_weights(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """
    Raises an error for weights that are NaN or infinite.

    Args:
        tensors (`dict[str, torch.Tensor]`): Weights by name.
        where (`str`): The model and its location, for the error.

    Raises:
        ValueError: If a value is not finite.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise ValueError(f"The weights of {where} must be finite, got NaN or infinite values in {_list(bad)}.")


class LasersModelMixin(LasersHubMixin):
    """
    The first base of each model of this package. It adds checks of the loaded weights to [`LasersHubMixin`].
    """

    @classmethod
    def _load_pretrained_model(
        cls, model, state_dict, resolved_model_file, pretrained_model_name_or_path, *args: Any, **kwargs: Any
    ) -> tuple:
        """
        Like the method of diffusers, which `from_pretrained` calls, but raises a `ValueError` if tensors are missing,
        unknown or not finite.
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
                    f"The weights of {where} must be those of its configuration: they {what} {_list(names)}."
                )
        if kwargs.get("dtype") == torch.float16:  # its largest number is 65504
            loaded = {name: tensor for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}
            check_finite_weights(loaded, f"{where}, in half precision,")
        if "disk" in (kwargs.get("device_map") or {}).values():
            _keep_in_memory(model, kwargs["device_map"], kwargs["offload_folder"])
        return result


def _keep_in_memory(model: torch.nn.Module, device_map: Mapping[str, Any], folder: str) -> None:
    """Loads buffers, and parameters of the model itself, from the folder of offloaded weights."""
    from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device
    from diffusers.models.model_loading_utils import _determine_param_device

    names = [name for name, _ in model.named_buffers()] + [name for name, _ in model.named_parameters(recurse=False)]
    offloaded = OffloadedWeightsLoader(save_folder=folder)
    for name in names:
        if name in offloaded and _determine_param_device(name, device_map) == "disk":
            set_module_tensor_to_device(model, name, "cpu", value=offloaded[name].clone())
