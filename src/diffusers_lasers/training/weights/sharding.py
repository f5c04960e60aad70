r"""Fully sharded data parallelism (FSDP2, `torch.distributed.fsdp.fully_shard`) for a model of which some parameters
have to stay whole.

Each rank keeps a part of each sharded parameter, of its gradient and of what the optimiser and an average know of it. A
*unit* of the model, a module, is whole only while it computes. What the upkeep of a dictionary writes by columns, and
the layer at which the adaptive weight of LASERS (2024), eq 16, compares gradients, must not be cut: such parameters are
kept on every rank, and their gradients are averaged by `FullySharded.average_gradients`.

Sharded tensors are `DTensor`s. The functions of this module treat sharded and ordinary tensors alike; what leaves the
training – a saved model, an average, an optimiser's state – is whole, so that a file does not tell how many processes
wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...utils.distributed import all_reduce_sum, broadcast, rank_and_world_size


if dist.is_available():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
else:  # a build of torch without it, where no tensor is sharded
    DTensor = ()


__all__ = ["FullySharded"]


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """
    A tensor with the parts of all ranks, without gradient; one that is not sharded as it is. All ranks have to call it.
    """
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that this rank has of a tensor, possibly none, without gradient; they share its memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _shard_like(value: torch.Tensor, tensor: DTensor) -> DTensor:
    return distribute_tensor(value.to(tensor.device).contiguous(), tensor.device_mesh, tensor.placements)


@torch.no_grad()
def write_full(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """
    Writes a tensor that is not sharded into one of the same shape that may be. All ranks have to call it; a sharded
    tensor gets the value of rank 0. Raises a `ValueError` if the shapes differ.
    """
    if tensor.shape != value.shape:
        raise ValueError(f"`value` must have shape {tuple(tensor.shape)}, got {tuple(value.shape)}.")
    tensor.copy_(_shard_like(value, tensor) if isinstance(tensor, DTensor) else value)


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """
    The Euclidean norm of all gradients together, 0-dim, of parameters that may be sharded; then all ranks have to call
    it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if not isinstance(g, DTensor)])
    parts = [local_part(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
    if not parts:
        return norm
    squares = all_reduce_sum(torch.nn.utils.get_total_norm(parts).square())
    return (squares + norm.to(squares.device).square()).sqrt()


def save_optimizer_unsharded(optimizer: torch.optim.Optimizer) -> None:
    """
    From now on `optimizer.state_dict()` holds whole tensors, what was sharded in host memory, and
    `optimizer.load_state_dict` takes them: such a state is that of a run without sharding. All ranks have to call both.
    Groups with both sharded and whole parameters take their steps parameter by parameter: one operation on many, the
    default on a GPU, takes no mixture.

    Args:
        optimizer (`torch.optim.Optimizer`): An optimiser of parameters of which some are sharded.
    """

    def gather(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        moments = {
            index: {n: full_tensor(v).cpu() if isinstance(v, DTensor) else v for n, v in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": moments}

    def shard(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        indices = chain.from_iterable(group["params"] for group in state["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        moments = dict(state["state"])
        for index, parameter in zip(indices, parameters):
            if index in moments and isinstance(parameter, DTensor):
                moments[index] = {
                    name: _shard_like(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
                    for name, value in moments[index].items()
                }
        return {**state, "state": moments}

    asked: list[tuple[dict, dict]] = []  # groups, and how they are stepped otherwise

    def separate(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for group in optimizer.param_groups:
            if len({isinstance(parameter, DTensor) for parameter in group["params"]}) == 2:
                asked.append((group, {name: group[name] for name in ("foreach", "fused") if name in group}))
                group.update(dict.fromkeys(asked[-1][1], False))

    def restore(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        while asked:
            group, options = asked.pop()
            group.update(options)

    optimizer.register_step_pre_hook(separate)
    optimizer.register_step_post_hook(restore)
    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(shard)


class FullySharded:
    """
    Shards a model in place over all ranks. Rank 0's weights are sent to all first.

    A unit is the largest module that is called as one and has no parameter of `keep`, and, inside it, each block named
    in the model's `_no_split_modules`. Parameters outside all units – those of `keep`, and those that their modules
    have beside them – stay whole. Create the optimiser afterwards, for the parameters are new ones.

    Args:
        model (`torch.nn.Module`): The model, on the device that it computes on, with contiguous parameters. Call it, or
            modules of it, as before.
        keep (`Iterable[nn.Parameter]`, *optional*): Parameters of it that stay whole.
        reshard_after_forward (`bool`, defaults to `True`): Whether a unit gives up the other ranks' parts between
            forward and backward pass: less memory, and one more gather.

    Attributes:
        model (`torch.nn.Module`): The model.
        structure (`torch.nn.Module`): The same model without sharding and without memory, on the device `meta`: for
            `torch.func.functional_call` with whole tensors.

    Raises:
        ValueError: If `torch.distributed` has no process group, or if nothing is left to shard.

    Example:
        ```py
        sharded = FullySharded(model, keep=[*model.bottleneck.parameters(), model.last_layer])
        optimizer = torch.optim.AdamW(model.parameters())
        model(images).sample.square().mean().backward()
        sharded.average_gradients()
        optimizer.step()
        whole = sharded.unsharded()  # on all ranks; then, on one of them, whole.save_pretrained(folder)
        ```
    """

    def __init__(self, model: nn.Module, keep: Iterable[nn.Parameter] = (), reshard_after_forward: bool = True):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("Sharding needs a process group of torch.distributed, and there is none.")
        self.model = model
        self.structure = copy.deepcopy(model).to("meta")
        units = list(_units(model, {id(parameter) for parameter in keep}))
        if not units:
            raise ValueError("`keep` must leave some parameters to shard, it leaves none.")
        for tensor in chain(model.parameters(), model.buffers()):
            broadcast(tensor.detach())
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        blocks = set(getattr(model, "_no_split_modules", None) or ())
        for unit in units:
            for block in (
                module for module in unit.modules() if type(module).__name__ in blocks and module is not unit
            ):
                fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
            fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """
        Averages the gradients of the parameters that stay whole over all ranks; those of units are averaged in the
        backward pass. Call it once an optimiser step, after the last micro-batch and before the gradients are used.
        """
        for parameter in self.model.parameters():
            if not isinstance(parameter, DTensor) and parameter.grad is not None:
                all_reduce_sum(parameter.grad).div_(rank_and_world_size()[1])

    @torch.no_grad()
    def unsharded(self) -> nn.Module:
        """
        The model without sharding, as it is now. All ranks have to call it.

        Returns:
            `torch.nn.Module`: A copy with all weights on this rank's device, in the same mode (training or evaluation).
        """
        copied = copy.deepcopy(self.structure).to_empty(device=next(self.model.parameters()).device)
        now = dict(chain(self.model.named_parameters(), self.model.named_buffers()))
        for name, tensor in chain(copied.named_parameters(), copied.named_buffers()):
            tensor.copy_(full_tensor(now[name]))
        return copied.train(self.model.training)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """
        Loads the weights of a model without sharding. All ranks have to call it.

        Args:
            state (`dict[str, torch.Tensor]`): Its state dict, equal on all ranks.

        Raises:
            ValueError: If the state belongs to another model.
        """
        own = self.model.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
            raise ValueError("`state` must hold the tensors of this model, it holds others or of other shapes.")
        for name, tensor in own.items():
            write_full(tensor, state[name])


def _units(module: nn.Module, keep: set[int]) -> Iterator[nn.Module]:
    """The largest modules below `module` that have parameters, none of `keep`, and a forward pass of their own."""
    for child in module.children():
        parameters = list(child.parameters())
        if not parameters:
            continue
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or any(id(p) in keep for p in parameters):
            yield from _units(child, keep)
        else:
            yield child
