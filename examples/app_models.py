"""The models and codecs that examples/app.py offers: those of its command line, those of `make demo`, or new ones.

A new model is made in a folder beside the final one, which gets the final name when it is complete; so the cache never
holds half a model. A folder that is found is loaded before it is offered; one with a damaged file is reported, left out
and made anew. train_dlgan.py, as in `make demo`, and fit_codec.py make autoencoder and codec from scikit-image's
photographs, in processes of their own. training_log.jsonl tells how far the training is.
"""

import atexit
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from app_cache import CachedResults

from diffusers_lasers import AutoencoderDL, FactorizedPrior, ModelBasedVQCodec
from diffusers_lasers.commands.loading import load_prior
from diffusers_lasers.commands.scripts import names_of
from diffusers_lasers.training import TrainingLog
from diffusers_lasers.utils.command_line import one_line


DEMO = ("dictionary", "residual_vq", "scalar", "vq")  # folders of `make demo`
TRAINING = {
    **{"bottleneck": "dictionary", "resolution": 64, "max_train_steps": 600, "seed": 0},
    **{"log_steps": 10, "checkpointing_steps": 0, "validation_steps": 0, "report_to": "none", "mixed_precision": "no"},
}  # `make demo`'s, with more lines in the log
FITTING = {"notation": "OPQ-{32-8-8}", "max_patches": 2**16, "iterations": 25}


def load_model(path: str) -> AutoencoderDL:
    """An autoencoder with a code, from a folder or the Hub."""
    kind = AutoencoderDL.load_config(path).get("_class_name")
    if kind != "AutoencoderDL":
        raise ValueError(f"--model must name an AutoencoderDL, got {kind} in {path}.")
    model = AutoencoderDL.from_pretrained(path).eval()
    if model.config.bottleneck_type == "none" or (model.config.in_channels, model.config.out_channels) != (3, 3):
        raise ValueError(f"--model must name an AutoencoderDL of RGB images with a bottleneck, {path} is another.")
    return model


def load_codec(path: str) -> ModelBasedVQCodec:
    """A fitted patch codec, from a folder or the Hub."""
    kind = ModelBasedVQCodec.load_config(path).get("_class_name")
    if kind != "ModelBasedVQCodec":
        raise ValueError(f"--codec must name a ModelBasedVQCodec, got {kind} in {path}.")
    codec = ModelBasedVQCodec.from_pretrained(path).eval()
    if not codec.fitted.all():
        raise ValueError(f"--codec must name a fitted ModelBasedVQCodec, {path} is not.")
    return codec


def find_prior(
    path: str, model: AutoencoderDL | ModelBasedVQCodec, report: Callable[[str], None]
) -> FactorizedPrior | None:
    """The prior beside a model; `None`, with a report, where there is one that cannot be used."""
    try:
        return load_prior(path, None, None, model)
    except Exception as error:  # a damaged file, or other weights
        report(f"The prior beside {path} is left out, files are packed: {one_line(error)}")
        return None


def load_if_complete(path: Path, load: Callable, report: Callable[[str], None]):
    """What a folder holds, or `None`, with a report, where it is there and cannot be loaded."""
    if not (path / "config.json").is_file():
        return None
    try:
        return load(str(path))
    except Exception as error:  # whatever a damaged file makes the loaders raise
        report(f"{path} is damaged and is left out: {one_line(error)}")
        return None


def make_folder(path: Path, make: Callable[[Path], None]) -> None:
    """Lets `make` fill a folder, which gets the name `path` only when that is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    old = scratch.with_name(f"{scratch.name}.old")

    def clean():
        for rest in (scratch, old):
            shutil.rmtree(rest, ignore_errors=True)

    scratch.mkdir()
    atexit.register(clean)  # a thread ends without its `finally`
    try:
        make(scratch)
        if path.exists():  # damaged, or another process was faster with the same
            path.rename(old)
        scratch.rename(path)
    finally:
        clean()
        atexit.unregister(clean)


def command(script: str, folder: Path, arguments: dict) -> list[str]:
    """The command line of a script beside this one that writes to a folder."""
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(Path(__file__).with_name(script)), "--output_dir", str(folder), *flags]


def run(line: list[str], follow: Callable[[], None]) -> None:
    """Runs a command and calls `follow` twice a second. Its bar shows in the terminal. It ends with this process."""
    process = subprocess.Popen(line)
    atexit.register(process.kill)
    try:
        while process.poll() is None:
            follow()
            time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
        atexit.unregister(process.kill)
    if process.returncode:
        raise RuntimeError(f"{Path(line[1]).name} ended with code {process.returncode}; see the terminal.")


def train(folder: Path, progress: Callable[[float], None]) -> None:
    """Trains an autoencoder into a folder; `progress` gets the share of the steps that are done."""

    def follow():
        records = TrainingLog.read(folder / "training_log.jsonl")
        progress((records[-1]["step"] if records else 0) / TRAINING["max_train_steps"])

    run(command("train_dlgan.py", folder, TRAINING), follow)


def fit(folder: Path) -> None:
    """Fits a patch codec into a folder."""
    run(command("fit_codec.py", folder, FITTING), lambda: None)


class Library:
    """
    Holds the models and codecs that the page offers, in `cached`, with the priors beside them, and makes those that
    are missing. `stage`, `progress`
    (0 to 1, `None` where it is not known) and `failures` tell how far that is.

    Args:
        models: Folders or repositories of AutoencoderDL; none: the demo's or a new one.
        codecs: Folders or repositories of ModelBasedVQCodec; none: a new one.
        cache_dir: Where new ones are kept.
        demo_dir: Where `make demo` leaves its models.
        report: Takes sentences for the terminal.

    Raises:
        ValueError, OSError or what a damaged file raises: If a model or codec that was named cannot be loaded.
    """

    def __init__(
        self,
        models: list[str] = (),
        codecs: list[str] = (),
        cache_dir: str = "outputs/app",
        demo_dir: str = "outputs/demo",
        report: Callable[[str], None] = print,
    ):
        self.cache_dir, self.report, self.failures = Path(cache_dir), report, []
        self.stage, self.progress, self.since = "", None, time.monotonic()
        self.cached = CachedResults({}, {})
        for name, path in zip(names_of(models), models):
            self._offer(self.cached.models, name, path, load_model(path))
        if not models:
            places = {name: Path(demo_dir) / name for name in DEMO} | {"autoencoder": self.cache_dir / "dl"}
            for name, path in places.items():
                if name != "autoencoder" or not self.cached.models:
                    model = load_if_complete(path, load_model, report)
                    if model is not None:
                        self._offer(self.cached.models, name, path, model)
        given = self.cached.codecs
        for path in codecs:
            codec = load_codec(path)
            label = codec.notation
            self._offer(given, label if label not in given else f"{label} ({len(given) + 1})", path, codec)
        path = self.cache_dir / "codec"
        if not codecs and (codec := load_if_complete(path, load_codec, report)) is not None:
            self._offer(given, codec.notation, path, codec)

    def _offer(self, among: dict[str, Any], name: str, path: str | Path, model: Any) -> None:
        """Gives a model, and the prior beside it, to the page."""
        prior = find_prior(str(path), model, self.report)
        if prior is not None:
            self.cached.priors[model] = prior
        among[name] = model

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return not self.stage

    @property
    def seconds(self) -> int:
        """How long this stage has taken."""
        return int(time.monotonic() - self.since)

    def prepare(self) -> None:
        """Makes in a thread what is missing; returns at once."""
        if not (self.cached.codecs and self.cached.models):
            self.stage = "Starting"
            threading.Thread(target=self._prepare, daemon=True).start()

    def _prepare(self) -> None:
        if not self.cached.codecs:  # seconds; the other takes minutes
            self._begin("Fitting a patch codec to scikit-image's photographs")
            if codec := self._make("codec", fit, load_codec):
                self._offer(self.cached.codecs, codec.notation, self.cache_dir / "codec", codec)
        if not self.cached.models:
            self._begin("Training a small autoencoder on scikit-image's photographs")
            if model := self._make("dl", lambda folder: train(folder, partial(setattr, self, "progress")), load_model):
                self._offer(self.cached.models, "autoencoder", self.cache_dir / "dl", model)
        self.stage = ""

    def _make(self, name: str, make: Callable[[Path], None], load: Callable) -> Any:
        path = self.cache_dir / name
        try:
            make_folder(path, make)
            made = load(str(path))
            self.report(f"Kept for the next start: {path}")
            return made
        except Exception as error:  # of a thread: the page says it
            self.failures.append(f"{self.stage} failed: {one_line(error)}")
            self.report(self.failures[-1])

    def _begin(self, stage: str) -> None:
        self.stage, self.progress, self.since = stage, None, time.monotonic()
        self.report(f"{stage}.")
