"""Gradients of several networks, each clipped on its own, whether they are sharded or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .sharding import FullySharded, gradient_norm


def clip_gradients(
    networks: Mapping[str, nn.Module], max_norm: float, sharded: Mapping[str, FullySharded] | None = None
) -> dict[str, torch.Tensor]:
    """Clips the gradients of each network to a norm, after those of sharded ones are averaged over all ranks."""
    for network in (sharded or {}).values():
        network.average_gradients()
    norms = {}
    for name, network in networks.items():
        parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
        if parameters:
            norms[name] = gradient_norm(parameters)
            if max_norm > 0:
                # one product of many gradients takes no mixture of sharded and whole ones
                each = False if sharded else None
                torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norms[name], foreach=each)
    return norms
