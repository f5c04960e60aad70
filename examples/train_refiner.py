#!/usr/bin/env python
"""Trains a refiner: a small U-Net that repairs images decoded from slightly wrong indices (Scribano et al., 2023, section 4.2.2).

    accelerate launch examples/train_refiner.py --codec opq --train_data_dir cats/ --validation_data_dir more_cats/ --resolution 64 \\
        --pipeline cats-continuous --output_dir cats-refined

Each image is coded, its indices as numbers in [-1, 1] get Gaussian noise of a standard deviation drawn up to --noise,
and the decoded image is refined towards the original by L1 and 1 − SSIM. OUTPUT_DIR gets the refiner in refiner/, its
card, settings.json and training_log.jsonl; with --pipeline the whole pipeline, with this refiner; and checkpoint-N/ to
resume from. The refiner is saved before it is judged.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm.auto import tqdm

from diffusers_lasers import LatentRefiner, ModelBasedLatentDiffusionPipeline, ModelBasedVQCodec
from diffusers_lasers.functional import index_to_number, number_to_index
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.training import (
    ImageDataset,
    Judgement,
    RunFolder,
    StreamSampler,
    TrainingLog,
    TrainingState,
    Window,
    adam_optimizer,
    add_data_flags,
    add_hub_flags,
    check_held_out_images,
    model_fingerprint,
    open_images,
    run_identity,
    scaled_learning_rate,
    take_batch,
)
from diffusers_lasers.utils.command_line import CommandParser, hide_token, recorded_arguments
from diffusers_lasers.utils.distributed import wait_after_collectives
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card


logger = get_logger(__name__)


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--codec", required=True, help="Folder (or Hub name) of a ModelBasedVQCodec.")
    add("--pipeline", help="Pipeline that gets the refiner.")
    add("--pretrained_model_name_or_path", help="Start from this refiner: its folder or Hub name, or a pipeline's.")
    add_data_flags(parser)
    add("--resolution", type=int, default=64, help="Side of the square crops.")
    add("--noise", type=float, default=0.05, help="Largest standard deviation of the noise on indices in [-1, 1].")
    add("--ssim_weight", type=float, default=1.0, help="Weight of 1 − SSIM beside L1.")
    add("--block_out_channels", type=int, nargs="+", help="Channels of its stages. Default: 32 64 96.")
    add("--norm_num_groups", type=int, help="Default: 16.")
    add("--train_batch_size", type=int, default=16)
    add("--max_train_steps", type=int, default=5000)
    add("--learning_rate", type=float, default=3e-4)
    add("--scale_lr", action="store_true", help="Times the images of a step.")
    add("--lr_scheduler", default="cosine")
    add("--lr_warmup_steps", type=int, default=100)
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=0.0)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--use_8bit_adam", action="store_true")
    add("--max_grad_norm", type=float, default=1.0)
    add("--mixed_precision", choices=["no", "fp16", "bf16"])
    add("--seed", type=int, default=0)
    add("--log_steps", type=int, default=50)
    add("--checkpointing_steps", type=int, default=0, help="0: none.")
    add("--checkpoints_total_limit", type=int)
    add("--resume_from_checkpoint", help="`latest`, a checkpoint's folder, or its name in --output_dir.")
    add("--output_dir", default="refiner")
    add_hub_flags(parser)
    args = parser.parse_args(input_args)
    positive = "resolution train_batch_size max_train_steps log_steps max_train_samples max_validation_samples"
    for name in [*positive.split(), "checkpoints_total_limit"]:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.pretrained_model_name_or_path and (args.block_out_channels or args.norm_num_groups):
        parser.error("--block_out_channels and --norm_num_groups are those of --pretrained_model_name_or_path")
    if args.noise <= 0:
        parser.error(f"--noise must be positive, got {args.noise}")
    return args


@torch.no_grad()
def corrupted(codec, images, noise, generator=None):
    """Images decoded from indices with noise, of a standard deviation of its own for each, up to `noise`."""
    codewords = codec.index_layout[1]
    codes = codec.encode_indices(images)
    spread = noise * torch.rand(len(codes), 1, 1, 1, generator=generator).to(codes.device)
    numbers = index_to_number(codes, codewords)
    numbers = numbers + spread * torch.randn(numbers.shape, generator=generator).to(codes.device)
    return codec.decode_indices(number_to_index(numbers, codewords)).float().clamp(-1, 1)


def refiner_loss(output, images, ssim_weight):
    """L1 + weight · (1 − SSIM), in [0, 1]; and both."""
    output, images = output.float() / 2 + 0.5, images.float() / 2 + 0.5
    distance = F.l1_loss(output, images)
    similarity = structural_similarity_index_measure(output, images, data_range=1.0)
    return distance + ssim_weight * (1 - similarity), {"l1": distance.detach(), "ssim": similarity.detach()}


@torch.no_grad()
def validate(codec, refiner, dataset, args):
    """Mean PSNR of held-out images before and after."""
    generator, values = torch.Generator().manual_seed(args.seed), {"psnr_before": [], "psnr_after": []}
    device = next(refiner.parameters()).device
    refiner.eval()
    for images in dataset.batches(args.train_batch_size):
        images = images.to(device)
        broken = corrupted(codec, images, args.noise, generator)
        for name, sample in (("psnr_before", broken), ("psnr_after", refiner(broken).sample.float().clamp(-1, 1))):
            values[name] += image_psnr(sample.double(), images.double()).tolist()
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def make_refiner(args):
    """A new refiner, or a trained one of a pipeline or a folder of its own."""
    path = args.pretrained_model_name_or_path
    if path is None:
        given = {name: getattr(args, name) for name in ("block_out_channels", "norm_num_groups")}
        return LatentRefiner(**{name: value for name, value in given.items() if value is not None})
    try:
        return LatentRefiner.from_pretrained(path, subfolder="refiner")
    except OSError:
        return LatentRefiner.from_pretrained(path)


def prepare(args):
    """The parts of a run. What can be wrong with the arguments and held-out images fails here, before anything is
    written."""
    run = Namespace(accelerator=Accelerator(mixed_precision=args.mixed_precision))
    accelerator = run.accelerator
    set_seed(args.seed)
    run.codec = ModelBasedVQCodec.from_pretrained(args.codec).to(accelerator.device).eval()
    run.batch_size = args.train_batch_size * accelerator.num_processes
    identity = run_identity(args, total_batch_size=run.batch_size, codec_weights=model_fingerprint(run.codec))
    run.folder = RunFolder(
        accelerator, args.output_dir, identity, args.resume_from_checkpoint, args.overwrite_output_dir
    )
    run.pipeline = ModelBasedLatentDiffusionPipeline.from_pretrained(args.pipeline) if args.pipeline else None
    run.refiner = make_refiner(args).train()
    shape = {"resize": args.resolution, "center_crop": True, "seed": args.seed}
    run.dataset = ImageDataset(open_images(args), args.resolution, skip_unreadable=args.skip_unreadable, **shape)
    held_out = check_held_out_images(
        open_images(args, "validation"), accelerator.is_local_main_process, args.skip_unreadable
    )
    run.held_out = None if held_out is None else ImageDataset(held_out, args.resolution, **shape)
    run.optimizer = adam_optimizer(
        run.refiner.parameters(), args, scaled_learning_rate(args, accelerator.num_processes)
    )
    run.schedule = get_scheduler(
        args.lr_scheduler,
        run.optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    run.state = TrainingState()
    run.parts = {"schedule": run.schedule, "state": run.state}
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.output_dir, args.hub_model_id, args.hub_token)
    return run


def train(run, args, model, optimizer, log):
    """All steps."""
    accelerator, state = run.accelerator, run.state
    window = Window(accelerator.num_processes)
    end = state.samples_seen + max(0, args.max_train_steps - state.step) * run.batch_size
    sampler = StreamSampler(len(run.dataset), end, start=state.samples_seen, seed=args.seed)
    loader = DataLoader(
        run.dataset, args.train_batch_size, sampler=sampler, collate_fn=take_batch, generator=torch.Generator()
    )
    bar = tqdm(
        total=args.max_train_steps, initial=state.step, desc="Steps", disable=not accelerator.is_local_main_process
    )
    for rows in accelerator.prepare_data_loader(loader):
        images = rows["pixel_values"]
        broken = corrupted(run.codec, images, args.noise)
        output = model(broken).sample
        loss, parts = refiner_loss(output, images, args.ssim_weight)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not accelerator.optimizer_step_was_skipped:
            run.schedule.step()
        state.step += 1
        state.samples_seen += run.batch_size
        bar.update()
        window.add({"loss": loss.detach(), **parts}, None, len(images))
        if state.step % args.log_steps == 0 or state.step == args.max_train_steps:
            record = {**window.summary(), "lr": run.schedule.get_last_lr()[0]}
            if accelerator.is_main_process:
                log.write({"step": state.step, **record})
        if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
            with window.paused():
                run.folder.save(state.step, run.parts, args.checkpoints_total_limit)
    bar.close()


def write_about(run, args, saved, figures):
    """settings.json, and the card of what is saved, with what is known of it; the card's last line comes back."""
    command = "accelerate launch " + shlex.join(hide_token(sys.argv, args.hub_token))
    settings = {"command": command, "arguments": recorded_arguments(args), "images": len(run.dataset)}
    write_json(Path(args.output_dir) / "settings.json", {**settings, "validation": figures})
    rate = run.codec.bits_per_pixel(args.resolution, args.resolution)
    lines = [
        f"- Images: {len(run.dataset)}, {args.max_train_steps} steps of {run.batch_size}; L1 + {args.ssim_weight} (1 − SSIM)",
        f"- Codes: {run.codec.notation}, {rate:.4g} bits per pixel, noise up to {args.noise}",
    ]
    if figures:
        lines.append(
            f"- Held-out images: {figures['psnr_before']:.2f} dB before, {figures['psnr_after']:.2f} dB after"
        )
    sections = {"Training": "\n".join([*lines, "", f"```bash\n{command}\n```"])}
    kind = "LatentRefiner" if run.pipeline is None else "ModelBasedLatentDiffusionPipeline"
    write_model_card(saved, kind, sections=sections)
    return lines[-1].removeprefix("- ")


def finish(run, args):
    """Saves the refiner, judges it, and uploads it where that is wanted; on the main process."""
    folder, judgement = Path(args.output_dir), Judgement(args.output_dir, secret=args.hub_token)
    run.refiner.save_pretrained(folder / "refiner")
    if run.pipeline is not None:
        run.pipeline.register_modules(refiner=run.refiner)
        run.pipeline.save_pretrained(folder)
    saved = folder / "refiner" if run.pipeline is None else folder
    said = write_about(run, args, saved, {})
    if run.held_out is not None:
        with judgement.of("the held-out images"):
            said = write_about(run, args, saved, validate(run.codec, run.refiner, run.held_out, args))
    print(said)
    if args.push_to_hub:
        with judgement.of("the upload"):
            name = args.hub_model_id or folder.resolve().name
            ignored = ["checkpoint-*", "run.json"]
            push_folder(saved, name, args.hub_token, "End of training", ignored)
    return judgement


def main(args):
    run = prepare(args)
    for sentence in run.folder.passed_over:
        logger.warning(sentence)
    run.folder.claim()
    model, optimizer = run.accelerator.prepare(run.refiner, run.optimizer)
    set_seed(args.seed, device_specific=True)  # ranks draw noise of their own
    run.folder.load(run.parts)
    judgement, log = Judgement(args.output_dir), None
    if run.accelerator.is_main_process:
        log = TrainingLog(Path(args.output_dir) / "training_log.jsonl", resume_step=run.state.step)
    train(run, args, model, optimizer, log)
    if run.accelerator.is_main_process:
        judgement = finish(run, args)
    run.accelerator.wait_for_everyone()
    wait_after_collectives()
    run.accelerator.end_training()
    run.folder.release()
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        main(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(hide_token([f"train_refiner.py: error: {error}"], args.hub_token)[0]) from error


if __name__ == "__main__":
    cli()
