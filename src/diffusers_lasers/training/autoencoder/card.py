"""What is written about a trained autoencoder: its settings, and a card with its metrics and their bits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ...utils.hub import write_model_card
from ...utils.tables import markdown_table
from ..data.training_images import TrainingImages
from ..run.cards import run_settings, training_section
from ..run.recorder import Recorder
from ..run.training_run import TrainingRun


def autoencoder_settings(run: TrainingRun, args: argparse.Namespace, images: TrainingImages) -> dict[str, Any]:
    """What `settings.json` records of the training of an autoencoder."""
    discriminator = run.networks.get("discriminator")
    return run_settings(
        run.accelerator,
        args,
        run.batch_size,
        images=None if args.streaming else len(images.dataset.source),
        samples_per_epoch=None if args.streaming else len(images.dataset),
        sharded=bool(run.sharded),
        steps=run.steps,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        bits_per_pixel=run.model.bits_per_pixel(args.resolution, args.resolution),
        model=dict(run.model.config),
        discriminator=None if discriminator is None else dict(discriminator.config),
        discriminator_patch=None if discriminator is None else discriminator.receptive_field,
    )


def write_card(run: TrainingRun, recorder: Recorder, figures: dict[str, float], picture: str) -> None:
    """The card of an autoencoder whose script has the flag `--license`, with what is known of it; for all processes."""
    if run.accelerator.is_main_process:
        sections = _sections(run, recorder.args, recorder.settings, figures, picture, recorder.judgement.failures)
        write_model_card(run.folder.path, "AutoencoderDL", license=recorder.args.license, sections=sections)


def _sections(
    run: TrainingRun,
    args: argparse.Namespace,
    settings: dict[str, Any],
    figures: dict[str, float],
    picture: str,
    failures: Sequence[str],
) -> dict[str, str]:
    bits = f"{settings['bits_per_pixel']:.4g}"
    images = "a stream" if settings["images"] is None else f"{settings['images']} images"
    lines = [
        f"Data: {settings['data']} ({images}, crops of {args.resolution} pixels)",
        f"Steps: {run.state.step} of {run.batch_size} images",
        f"Rate: {bits} bits per pixel (nominal, at the training resolution)",
    ]
    if args.task != "reconstruction":
        detail = f"× {args.scale}" if args.task == "super_resolution" else f"{args.mask} mask"
        lines.append(f"Task: {args.task} ({detail}); `pipeline/` is a `DLRestorationPipeline`")
    if settings["discriminator"] is not None:
        lines.append(
            f"Discriminator: {args.adversarial_loss} loss, from step {args.discriminator_start} on, "
            f"patches of {settings['discriminator_patch']} pixels; in `discriminator/`"
        )
    if args.use_ema:
        lines.append(f"Weights: exponential moving average, decay {args.ema_decay}")
    if run.state.unreadable:
        lines.append(f"Unreadable images skipped: {run.state.unreadable} samples")
    sections = {"Training": training_section(settings, lines)}
    rows = [("bits per pixel, nominal", bits)]
    for name, title, form in (
        ("validation_psnr", "PSNR", "{:.2f} dB"),
        ("validation_masked_psnr", "PSNR inside the mask", "{:.2f} dB"),
        ("validation_lpips", f"LPIPS ({args.perceptual})", "{:.4f}"),
        ("validation_rate", "bits per pixel, cross-entropy", "{:.4g}"),
        ("validation_perplexity", "perplexity", "{:.1f}"),
        ("validation_dead_atoms", "symbols never used", "{:d}"),
    ):
        if name in figures:
            rows.append((title, form.format(figures[name])))
    if figures:
        held_out = f"On {figures['validation_images']} held-out crops of {args.resolution} pixels."
        sections["Evaluation"] = f"{held_out}\n\n{markdown_table(['figure', 'value'], rows)}"
    if failures:
        sections["Missing"] = "\n".join(f"- {failure}" for failure in failures)
    if picture:
        above = "Originals" if args.task == "reconstruction" else "Originals and what is given"
        sections["Reconstructions"] = f"{above} above, reconstructions below.\n\n![Reconstructions]({picture})"
    return {**sections, "Settings": "See `settings.json` and `training_log.jsonl`."}
