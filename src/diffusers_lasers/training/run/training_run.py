"""The state of a training: its networks, optimiser and schedule, and what a checkpoint has to restore.

A checkpoint holds each network once, as a model folder that `from_pretrained` loads, and the same files with and
without sharding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..weights.averaging import ModelAverage
from ..weights.sharding import FullySharded
from .checkpoints import TrainingState
from .run_folder import RunFolder


@dataclass
class TrainingRun:
    """
    Creates the state of a training from its parts.

    Args:
        accelerator (`accelerate.Accelerator`): That of the run.
        folder ([`RunFolder`]): The output folder.
        networks (`dict[str, nn.Module]`): What is trained, not wrapped for distribution; the names are those of the
            model folders in checkpoints, and the first one is the model that the run is for.
        optimizer (`torch.optim.Optimizer`): What steps them, as `accelerator.prepare` gives it.
        schedule (`LRScheduler`): Its learning rates over all steps.
        steps (`int`): Optimiser steps of the whole run.
        batch_size (`int`): Images of an optimiser step, all processes together.
        average ([`ModelAverage`], *optional*): Average of the first network's weights.
        sharded (`dict[str, FullySharded]`, *optional*): The networks that are sharded, by name.
        restored (`dict[str, Any]`, *optional*): What else a checkpoint restores: name → object with `state_dict` and
            `load_state_dict`.
        state ([`TrainingState`], *optional*): The counters; new ones by default.
    """

    accelerator: Accelerator
    folder: RunFolder
    networks: dict[str, nn.Module]
    optimizer: AcceleratedOptimizer
    schedule: LRScheduler
    steps: int
    batch_size: int
    average: ModelAverage | None = None
    sharded: dict[str, FullySharded] = field(default_factory=dict)
    restored: dict[str, Any] = field(default_factory=dict)
    state: TrainingState = field(default_factory=TrainingState)

    @property
    def model(self) -> nn.Module:
        """The first network."""
        return next(iter(self.networks.values()))

    @property
    def end(self) -> int:
        """Samples that all processes together will have had at the end."""
        return self.state.samples_seen + max(0, self.steps - self.state.step) * self.batch_size

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {"lr_scheduler": self.schedule, "state": self.state, "average": self.average, **self.restored}
        return {name: part for name, part in parts.items() if part is not None}

    def resume(self) -> None:
        """
        Has checkpoints hold the networks as model folders, and goes on from the checkpoint of the folder, if there
        is one. Call it once, after `accelerator.prepare`.
        """
        self.accelerator.register_save_state_pre_hook(self._save_networks)
        self.accelerator.register_load_state_pre_hook(self._load_networks)
        self.folder.load(self._parts)

    def _name(self, wrapped: nn.Module) -> str:
        model = self.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        return next(name for name, network in self.networks.items() if network is model)

    def _save_networks(self, models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
        for name in [self._name(model) for model in models]:
            network = self.unsharded(name)
            if self.accelerator.is_main_process:
                network.save_pretrained(os.path.join(output_dir, name))
        weights.clear()

    def _load_networks(self, models: list[nn.Module], input_dir: str) -> None:
        for model in list(models):
            name = self._name(model)
            if not os.path.isdir(os.path.join(input_dir, name)):
                continue  # accelerate loads the weights of a checkpoint without model folders
            models.remove(model)
            saved = type(self.networks[name]).from_pretrained(input_dir, subfolder=name)
            self.sharded.get(name, self.networks[name]).load_state_dict(saved.state_dict())

    def unsharded(self, name: str) -> nn.Module:
        """A network with all its weights. All processes have to call it."""
        return self.sharded[name].unsharded() if name in self.sharded else self.networks[name]

    @contextmanager
    def saved_weights(self) -> Iterator[nn.Module]:
        """In this context the model that would be saved now: averaged, whole, in evaluation mode. For all processes."""
        with self.average.applied(self.model) if self.average is not None else nullcontext():
            try:
                yield self.unsharded(next(iter(self.networks))).eval()
            finally:
                self.model.train()

    def after_step(self) -> None:
        """What follows an optimiser step: the average and the learning rates move, and the step is counted."""
        if self.average is not None:
            self.average.update(self.model)
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.state.step += 1
        self.state.samples_seen += self.batch_size

    def checkpoint(self, total_limit: int | None = None) -> None:
        """Writes a checkpoint."""
        self.folder.save(self.state.step, self._parts, total_limit)
