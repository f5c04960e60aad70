"""What a run writes while it goes: settings, log, trackers, pictures, progress bar, checkpoints, and its end.

`settings.json` and `training_log.jsonl` lie in the output folder, pictures in `validation/`. Only the main process
writes; what concerns all processes says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from tqdm.auto import tqdm

from ...coding import Code
from ...utils.distributed import wait_after_collectives
from ...utils.files import save_image, write_json
from ...utils.hub import push_folder
from .judgement import Judgement
from .records import TrainingLog, Window
from .training_run import TrainingRun


def _log_picture(tracker: GeneralTracker, picture: Image.Image, step: int) -> None:
    """Gives a picture to a tracker that takes pictures."""
    if tracker.name == "tensorboard":
        tracker.log_images({"validation": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({"validation": [np.asarray(picture)]}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({"validation": trackio.Image(np.asarray(picture))}, step=step)


class Recorder:
    """
    Creates the records of a run whose folder is taken, and its trackers.

    Args:
        run ([`TrainingRun`]): The run, resumed.
        args (`argparse.Namespace`): With the flags of [`add_run_flags`] and [`add_hub_flags`].
        settings (`dict[str, Any]`): Those of [`run_settings`]; written to `settings.json`.
        shown (`Sequence[str]`, *optional*): Figures beside the progress bar.

    Attributes:
        judgement ([`Judgement`]): Under it is judged what is already saved.

    Raises:
        ValueError: If the trackers of `--report_to` cannot be used.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        run: TrainingRun,
        args: argparse.Namespace,
        settings: dict[str, Any],
        shown: Sequence[str] = ("loss", "psnr", "perplexity"),
    ):
        self.run, self.args, self.settings, self.shown = run, args, settings, shown
        self.judgement = Judgement(run.folder.path, secret=args.hub_token)
        self._window = Window(run.accelerator.num_processes)
        if run.accelerator.is_main_process:
            write_json(run.folder.path / "settings.json", settings)
            self._log = TrainingLog(run.folder.path / "training_log.jsonl", resume_step=run.state.step)
            config = {n: v for n, v in settings["arguments"].items() if isinstance(v, (int, float, str, bool))}
            try:
                run.accelerator.init_trackers(args.tracker_project_name, config=config)
            except Exception as error:  # each tracker has errors of its own
                raise ValueError(f"--report_to {args.report_to} cannot be used: {error}") from error
        local = run.accelerator.is_local_main_process
        self._bar = tqdm(total=run.steps, initial=run.state.step, desc="Steps", disable=not local)

    def add(
        self,
        parts: dict[str, torch.Tensor],
        images: int,
        code: Code | None = None,
        totals: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Adds a micro-batch to the next line of the log. Arguments as in [`Window.add`]."""
        self._window.add(parts, code, images, totals)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a line to the log and the trackers."""
        if self.run.accelerator.is_main_process:
            self._log.write({"step": self.run.state.step, **record})
        self.run.accelerator.log(record, step=self.run.state.step)

    def _due(self, steps: int) -> bool:
        return steps > 0 and self.run.state.step % steps == 0

    def after_step(self, **figures: float) -> None:
        """
        After [`TrainingRun.after_step`], on all processes: where they are due, a line of the log, with the means of
        what was added and these figures, and a checkpoint.
        """
        self._bar.update()
        if self._due(self.args.log_steps) or self.run.state.step == self.run.steps:
            record = {**self._window.summary(), **figures}
            self.run.state.unreadable += record.get("unreadable_images", 0)
            self.write(record)
            self._bar.set_postfix({name: record[name] for name in self.shown if name in record})
        if self._due(self.args.checkpointing_steps):
            with self._window.paused():
                self.run.checkpoint(self.args.checkpoints_total_limit)

    @contextmanager
    def validation(self) -> Iterator[torch.nn.Module]:
        """In this context, for all processes, the model that would be saved now; its time is none of the training."""
        with self._window.paused():
            with self.run.saved_weights() as model:
                yield model
            self.run.accelerator.wait_for_everyone()

    def validation_due(self, steps: int) -> bool:
        """Whether to validate after this step. The last step is none of them: then the run is saved first."""
        return self._due(steps) and self.run.state.step < self.run.steps

    def save_picture(self, picture: Image.Image) -> str:
        """Saves a picture, gives it to the trackers, and returns its place in the folder; for the main process."""
        name = f"validation/step-{self.run.state.step:07d}.png"
        (self.run.folder.path / name).parent.mkdir(exist_ok=True)
        save_image(self.run.folder.path / name, picture)
        for tracker in self.run.accelerator.trackers:
            _log_picture(tracker, picture, self.run.state.step)
        return name

    def upload(self, folder: Path, *left_out: str) -> None:
        """Uploads a folder where `--push_to_hub` asks for it, without checkpoints and what else is named; for all."""
        if self.args.push_to_hub and self.run.accelerator.is_main_process:
            name = self.args.hub_model_id or self.run.folder.path.resolve().name
            with self.judgement.of("the upload"):
                left_out = ["checkpoint-*", "run.json", *left_out]
                push_folder(folder, name, self.args.hub_token, "End of training", left_out)

    def end(self) -> None:
        """Ends the run on all processes, after its result is saved; with exit code 1 if something was not judged."""
        self._bar.close()
        self.run.accelerator.wait_for_everyone()
        wait_after_collectives()
        with self.judgement.of("the trackers"):
            self.run.accelerator.end_training()
        self.run.folder.release()
        self.judgement.end()
