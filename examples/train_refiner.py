#!/usr/bin/env python
"""Trains a refiner: a small U-Net that repairs images decoded from slightly wrong indices (Scribano et al., 2023, section 4.2.2).

    accelerate launch examples/train_refiner.py --codec opq --train_data_dir cats/ --validation_data_dir more_cats/ --resolution 64 \\
        --pipeline cats-continuous --output_dir cats-refined

Each image is coded, its indices as numbers in [-1, 1] get Gaussian noise of a standard deviation drawn up to --noise, and the decoded image is refined towards the
original by L1 and 1 − SSIM. OUTPUT_DIR gets the refiner in refiner/, its card and settings.json; with --pipeline the whole pipeline, with this refiner.
"""

import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm.auto import tqdm

from diffusers_lasers import LatentRefiner, ModelBasedLatentDiffusionPipeline, ModelBasedVQCodec
from diffusers_lasers.functional import index_to_number, number_to_index
from diffusers_lasers.models.codecs import decode_indices, encode_indices, index_layout
from diffusers_lasers.training import ImageDataset, StreamSampler, TrainingLog, Window, load_image_dataset, take_batch
from diffusers_lasers.utils import (
    CommandParser,
    hide_token,
    push_folder,
    recorded_arguments,
    write_json,
    write_model_card,
)


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--codec", required=True, help="Folder (or Hub name) of a ModelBasedVQCodec.")
    add("--pipeline", help="Pipeline that gets the refiner.")
    add("--train_data_dir", help="Folder of images (recursive), parquet, or pattern. Default: scikit-image's photos.")
    add("--validation_data_dir", help="Held-out images: PSNR before and after go into the card.")
    add("--image_column", default="image")
    add("--resolution", type=int, default=64, help="Side of the square crops.")
    add("--noise", type=float, default=0.05, help="Largest standard deviation of the noise on indices in [-1, 1].")
    add("--ssim_weight", type=float, default=1.0, help="Weight of 1 − SSIM beside L1.")
    add("--block_out_channels", type=int, nargs="+", default=(32, 64, 96))
    add("--norm_num_groups", type=int, default=16)
    add("--train_batch_size", type=int, default=16)
    add("--max_train_steps", type=int, default=5000)
    add("--learning_rate", type=float, default=3e-4)
    add("--lr_warmup_steps", type=int, default=100)
    add("--max_grad_norm", type=float, default=1.0)
    add("--mixed_precision", choices=["no", "fp16", "bf16"])
    add("--seed", type=int, default=0)
    add("--log_steps", type=int, default=50)
    add("--output_dir", default="refiner")
    add("--push_to_hub", action="store_true", help="Upload the refiner, or with --pipeline the pipeline.")
    add("--hub_model_id", help="Default: the name of --output_dir.")
    add("--hub_token")
    args = parser.parse_args(input_args)
    for name in ("resolution", "train_batch_size", "max_train_steps", "log_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.noise <= 0:
        parser.error(f"--noise must be positive, got {args.noise}")
    return args


@torch.no_grad()
def corrupted(codec, images, noise, generator=None):
    """Images decoded from indices with noise, of a standard deviation of its own for each, up to `noise`."""
    codewords = index_layout(codec)[1]
    codes = encode_indices(codec, images)
    spread = noise * torch.rand(len(codes), 1, 1, 1, generator=generator).to(codes.device)
    numbers = index_to_number(codes, codewords)
    numbers = numbers + spread * torch.randn(numbers.shape, generator=generator).to(codes.device)
    return decode_indices(codec, number_to_index(numbers, codewords)).float().clamp(-1, 1)


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
    for start in range(0, len(dataset), args.train_batch_size):
        indices = list(range(start, min(start + args.train_batch_size, len(dataset))))
        images = dataset.__getitems__(indices)["pixel_values"].to(device)
        broken = corrupted(codec, images, args.noise, generator)
        for name, sample in (("psnr_before", broken), ("psnr_after", refiner(broken).sample.float().clamp(-1, 1))):
            errors = ((sample - images) / 2).double().square().mean(dim=(1, 2, 3))
            values[name] += (-10 * errors.log10()).tolist()
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def main(args):
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    codec = ModelBasedVQCodec.from_pretrained(args.codec).to(accelerator.device).eval()
    pipeline = ModelBasedLatentDiffusionPipeline.from_pretrained(args.pipeline) if args.pipeline else None
    refiner = LatentRefiner(
        block_out_channels=tuple(args.block_out_channels), norm_num_groups=args.norm_num_groups
    ).train()
    source = load_image_dataset(train_data_dir=args.train_data_dir, image_column=args.image_column)
    shape = {"resize": args.resolution, "center_crop": True, "seed": args.seed}
    dataset, held_out = ImageDataset(source, args.resolution, **shape), None
    if args.validation_data_dir:
        source = load_image_dataset(
            train_data_dir=args.validation_data_dir, split="validation", image_column=args.image_column
        )
        held_out = ImageDataset(source, args.resolution, **shape)
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=args.learning_rate, weight_decay=0.0)
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    batch = args.train_batch_size * accelerator.num_processes
    sampler = StreamSampler(len(dataset), batch * args.max_train_steps, seed=args.seed)
    loader = DataLoader(dataset, args.train_batch_size, sampler=sampler, collate_fn=take_batch)
    model, optimizer = accelerator.prepare(refiner, optimizer)
    set_seed(args.seed, device_specific=True)  # ranks draw noise of their own
    folder, log = Path(args.output_dir), None
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        log = TrainingLog(folder / "training_log.jsonl")
    window = Window(accelerator.num_processes)
    batches = tqdm(
        accelerator.prepare_data_loader(loader), desc="Steps", disable=not accelerator.is_local_main_process
    )
    for step, rows in enumerate(batches, start=1):
        images = rows["pixel_values"]
        broken = corrupted(codec, images, args.noise)
        output = model(broken).sample
        loss, parts = refiner_loss(output, images, args.ssim_weight)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
        window.add({"loss": loss.detach(), **parts}, None, len(images))
        if step % args.log_steps == 0 or step == args.max_train_steps:
            record = window.summary()
            if accelerator.is_main_process:
                log.write({"step": step, **record})
    if accelerator.is_main_process:
        figures = validate(codec, refiner, held_out, args) if held_out is not None else {}
        command = "accelerate launch " + shlex.join(hide_token(sys.argv, args.hub_token))
        refiner.save_pretrained(folder / "refiner")
        if pipeline is not None:
            pipeline.register_modules(refiner=refiner)
            pipeline.save_pretrained(folder)
        arguments = recorded_arguments(args)
        settings = {"command": command, "arguments": arguments, "images": len(dataset), "validation": figures}
        write_json(folder / "settings.json", settings)
        lines = [
            f"- Images: {len(dataset)}, {args.max_train_steps} steps of {batch}; L1 + {args.ssim_weight} (1 − SSIM)",
            f"- Codes: {codec.notation}, {codec.bits_per_pixel(args.resolution, args.resolution):.4g} bits per pixel, noise up to {args.noise}",
        ]
        if figures:
            lines.append(
                f"- Held-out images: {figures['psnr_before']:.2f} dB before, {figures['psnr_after']:.2f} dB after"
            )
        sections = {"Training": "\n".join([*lines, "", f"```bash\n{command}\n```"])}
        kind = "LatentRefiner" if pipeline is None else "ModelBasedLatentDiffusionPipeline"
        saved = folder / "refiner" if pipeline is None else folder
        write_model_card(saved, kind, sections=sections)
        print(lines[-1].removeprefix("- "))
        if args.push_to_hub:
            push_folder(saved, args.hub_model_id or folder.resolve().name, args.hub_token, "End of training")
    accelerator.wait_for_everyone()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        main(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"train_refiner.py: error: {error}") from error


if __name__ == "__main__":
    cli()
