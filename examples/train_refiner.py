#!/usr/bin/env python
"""Trains a refiner: a small U-Net that repairs images decoded from slightly wrong indices (Scribano et al., 2023,
section 4.2.2).

    accelerate launch examples/train_refiner.py --codec opq --train_data_dir cats/ --validation_data_dir more_cats/ \\
        --resolution 64 --pipeline cats-continuous --output_dir cats-refined

Each image is coded, its indices as numbers in [-1, 1] get Gaussian noise of a standard deviation drawn up to --noise,
and the decoded image is refined towards the original by L1 and 1 − SSIM. OUTPUT_DIR gets the refiner in refiner/, its
card, settings.json and training_log.jsonl; with --pipeline the whole pipeline, with this refiner; and checkpoint-N/ to
resume from. The refiner is saved before it is judged.
"""

import argparse
import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_lasers import LatentRefiner, ModelBasedLatentDiffusionPipeline, ModelBasedVQCodec
from diffusers_lasers.functional import index_to_number, number_to_index
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.training.data import image_flags
from diffusers_lasers.training.data.code_cache import model_fingerprint
from diffusers_lasers.training.data.image_dataset import ImageDataset, take_batch
from diffusers_lasers.training.data.sampling import StreamSampler
from diffusers_lasers.training.run import cards, launch, optimizers, run_flags
from diffusers_lasers.training.run.recorder import Recorder
from diffusers_lasers.training.run.run_folder import open_run_folder
from diffusers_lasers.training.run.training_run import TrainingRun
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.hub import create_repository, write_model_card


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--codec", required=True, help="Folder (or Hub name) of a ModelBasedVQCodec.")
    add("--pipeline", help="Pipeline that gets the refiner.")
    image_flags.add_data_flags(parser)
    add("--resolution", type=int, default=64, help="Side of the square crops.")
    add("--noise", type=float, default=0.05, help="Largest standard deviation of the noise on indices in [-1, 1].")
    add("--pretrained_model_name_or_path", help="Start from this refiner: its folder or Hub name, or a pipeline's.")
    add("--block_out_channels", type=int, nargs="+", help="Channels of its stages. Default: 32 64 96.")
    add("--norm_num_groups", type=int, help="Default: 16.")
    add("--ssim_weight", type=float, default=1.0, help="Weight of 1 − SSIM beside L1.")
    run_flags.add_optimizer_flags(
        parser,
        **{"max_train_steps": 5000, "learning_rate": 3e-4, "lr_scheduler": "cosine", "lr_warmup_steps": 100},
    )
    run_flags.add_run_flags(parser, output_dir="refiner", tracker_project_name="refiner")
    run_flags.add_hub_flags(parser)
    parser.check(check_args)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raises a `ValueError` for the first thing that is wrong with the arguments."""
    run_flags.check_training_flags(args)
    if args.pretrained_model_name_or_path and (args.block_out_channels or args.norm_num_groups):
        raise ValueError("--block_out_channels and --norm_num_groups are those of --pretrained_model_name_or_path.")
    if args.noise <= 0:
        raise ValueError(f"--noise must be positive, got {args.noise}.")


def build_refiner(args: argparse.Namespace) -> LatentRefiner:
    """A new refiner, or a trained one of a pipeline, a checkpoint or a folder of its own."""
    path = args.pretrained_model_name_or_path
    if path is None:
        given = {name: getattr(args, name) for name in ("block_out_channels", "norm_num_groups")}
        return LatentRefiner(**{name: value for name, value in given.items() if value is not None})
    try:
        return LatentRefiner.from_pretrained(path, subfolder="refiner")
    except OSError:
        return LatentRefiner.from_pretrained(path)


@torch.no_grad()
def corrupted(
    codec: ModelBasedVQCodec, images: torch.Tensor, noise: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Images decoded from indices with noise, of a standard deviation of its own for each, up to `noise`."""
    codewords = codec.index_layout[1]
    codes = codec.encode_indices(images)
    spread = noise * torch.rand(len(codes), 1, 1, 1, generator=generator).to(codes.device)
    numbers = index_to_number(codes, codewords)
    numbers = numbers + spread * torch.randn(numbers.shape, generator=generator).to(codes.device)
    return codec.decode_indices(number_to_index(numbers, codewords)).float().clamp(-1, 1)


def refiner_loss(
    output: torch.Tensor, images: torch.Tensor, ssim_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L1 + weight · (1 − SSIM), in [0, 1]; and both."""
    output, images = output.float() / 2 + 0.5, images.float() / 2 + 0.5
    distance = F.l1_loss(output, images)
    similarity = structural_similarity_index_measure(output, images, data_range=1.0)
    return distance + ssim_weight * (1 - similarity), {"l1": distance.detach(), "ssim": similarity.detach()}


@dataclass(kw_only=True)
class RefinerRun(TrainingRun):
    """A training of this script."""

    args: argparse.Namespace
    codec: ModelBasedVQCodec
    pipeline: ModelBasedLatentDiffusionPipeline | None
    images: ImageDataset
    held_out: ImageDataset | None
    wrapped: nn.Module  # the refiner as accelerate wraps it


def prepare(args: argparse.Namespace) -> RefinerRun:
    """Images, refiner and what steps it. What can be wrong fails here, before anything is written."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, "logs")),
    )
    set_seed(args.seed)
    codec = ModelBasedVQCodec.from_pretrained(args.codec).to(accelerator.device).eval()
    batch_size = args.train_batch_size * accelerator.num_processes
    same = {"total_batch_size": batch_size, "codec_weights": model_fingerprint(codec)}
    folder = open_run_folder(accelerator, args, **same)
    pipeline = ModelBasedLatentDiffusionPipeline.from_pretrained(args.pipeline) if args.pipeline else None
    refiner = build_refiner(args).train()
    shape = {"resize": args.resolution, "center_crop": True, "seed": args.seed}
    source = image_flags.open_images(args)
    images = ImageDataset(source, args.resolution, skip_unreadable=args.skip_unreadable, **shape)
    held_out = image_flags.check_held_out_images(
        image_flags.open_images(args, "validation"), accelerator.is_local_main_process, args.skip_unreadable
    )
    rate = optimizers.scaled_learning_rate(args, accelerator.num_processes)
    optimizer = optimizers.adam_optimizer(refiner.parameters(), args, rate)
    schedule = optimizers.learning_rate_schedule(optimizer, args, args.max_train_steps)
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.output_dir, args.hub_model_id, args.hub_token)
    wrapped, optimizer = accelerator.prepare(refiner, optimizer)
    set_seed(args.seed, device_specific=True)  # ranks draw noise of their own
    run = RefinerRun(
        **{"accelerator": accelerator, "folder": folder, "networks": {"refiner": refiner}, "optimizer": optimizer},
        **{"schedule": schedule, "steps": args.max_train_steps, "batch_size": batch_size},
        **{"args": args, "codec": codec, "pipeline": pipeline, "images": images, "wrapped": wrapped},
        held_out=None if held_out is None else ImageDataset(held_out, args.resolution, **shape),
    )
    run.resume()
    return run


def train(run: RefinerRun, recorder: Recorder) -> None:
    """All steps."""
    args, accelerator, model = run.args, run.accelerator, run.wrapped
    loader = DataLoader(
        run.images,
        args.train_batch_size,
        sampler=StreamSampler(len(run.images), run.end, start=run.state.samples_seen, seed=args.seed),
        collate_fn=take_batch,
        generator=torch.Generator(),  # its own, so that a resumed run draws the same global random numbers
    )
    for rows in accelerator.prepare_data_loader(loader):
        images = rows["pixel_values"]
        broken = corrupted(run.codec, images, args.noise)
        with accelerator.accumulate(model):
            loss, parts = refiner_loss(model(broken).sample, images, args.ssim_weight)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        recorder.add({"loss": loss.detach(), **parts}, len(images))
        run.after_step()
        recorder.after_step(lr=run.schedule.get_last_lr()[0])


@torch.no_grad()
def validate(run: RefinerRun) -> dict[str, float]:
    """Mean PSNR of held-out images before and after."""
    args, values = run.args, {"psnr_before": [], "psnr_after": []}
    generator = torch.Generator().manual_seed(args.seed)
    for images in run.held_out.batches(args.train_batch_size):
        images = images.to(run.accelerator.device)
        broken = corrupted(run.codec, images, args.noise, generator)
        refined = run.model(broken).sample.float().clamp(-1, 1)
        for name, sample in (("psnr_before", broken), ("psnr_after", refined)):
            values[name] += image_psnr(sample.double(), images.double()).tolist()
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def write_about(run: RefinerRun, settings: dict, figures: dict[str, float]) -> str:
    """settings.json, and the card of what is saved, with what is known of it; the card's last fact comes back."""
    write_json(run.folder.path / "settings.json", {**settings, "validation": figures})
    lines = [
        f"Images: {len(run.images)}, {run.steps} steps of {run.batch_size}; L1 + {run.args.ssim_weight} (1 − SSIM)",
        f"Codes: {run.codec.notation}, {settings['bits_per_pixel']:.4g} bits per pixel, noise up to {run.args.noise}",
    ]
    if figures:
        lines.append(f"Held-out images: {figures['psnr_before']:.2f} dB before, {figures['psnr_after']:.2f} dB after")
    kind = "LatentRefiner" if run.pipeline is None else "ModelBasedLatentDiffusionPipeline"
    place = run.folder.path / "refiner" if run.pipeline is None else run.folder.path
    write_model_card(place, kind, sections={"Training": cards.training_section(settings, lines)})
    return lines[-1]


def finish(run: RefinerRun, recorder: Recorder) -> None:
    """Saves the refiner, judges it, and uploads it where that is wanted."""
    folder = run.folder.path
    with recorder.validation() as refiner:
        if not run.accelerator.is_main_process:
            return
        refiner.save_pretrained(folder / "refiner")
        if run.pipeline is not None:
            run.pipeline.register_modules(refiner=refiner)
            run.pipeline.save_pretrained(folder)
        said = write_about(run, recorder.settings, {})
        if run.held_out is not None:
            with recorder.judgement.of("the held-out images"):
                said = write_about(run, recorder.settings, validate(run))
    print(said)
    recorder.upload(folder / "refiner" if run.pipeline is None else folder, "logs/*")


def record(run: RefinerRun) -> Recorder:
    """What is written while it trains."""
    rate = run.codec.bits_per_pixel(run.args.resolution, run.args.resolution)
    about = {"images": len(run.images), "bits_per_pixel": rate}
    return Recorder(run, run.args, cards.run_settings(run.accelerator, run.args, run.batch_size, **about))


def cli(argv: list[str] | None = None) -> None:
    """Runs with a command line."""
    launch.carry_out(__file__, parse_args(argv), prepare, record, train, finish)


if __name__ == "__main__":
    cli()
