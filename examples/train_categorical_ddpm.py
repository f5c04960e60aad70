#!/usr/bin/env python
"""Trains diffusion on the indices of a codec, and saves a pipeline that makes images.

    accelerate launch examples/train_categorical_ddpm.py --codec opq --train_data_dir cats/ --resolution 64 --output_dir cats-categorical
    accelerate launch examples/train_categorical_ddpm.py --codec opq --train_data_dir cats/ --resolution 64 --parameterization continuous …

CODEC is a folder of a fitted `ModelBasedVQCodec` (`examples/fit_codec.py`), or of an `AutoencoderDL` with VQ or
residual VQ. The images are coded once, before the training, and the codes kept in OUTPUT_DIR/codes (or --codes_dir,
which several runs can share, also when they start at once). --parameterization: `categorical` is the paper's reverse
process (eq 24), `continuous` its first one (eq 4), `uniform` and `absorbing` are the D3PM baselines on the same codes.

OUTPUT_DIR gets the pipeline (`ModelBasedLatentDiffusionPipeline.from_pretrained` loads it), a model card, settings.json, training_log.jsonl,
pictures of samples in validation/, and checkpoint-N/ to resume from. The pipeline is saved before it is judged.
"""

import argparse
import math
import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import diffusers_lasers
from diffusers_lasers import (
    AbsorbingD3PMScheduler,
    AutoencoderDL,
    CategoricalDDPMScheduler,
    CategoricalUNet2DModel,
    ModelBasedLatentDiffusionPipeline,
    ModelBasedVQCodec,
    UniformD3PMScheduler,
)
from diffusers_lasers.training import (
    ImageDataset,
    IndexDiffusionObjective,
    Judgement,
    ModelAverage,
    RunFolder,
    StreamSampler,
    TrainingLog,
    TrainingState,
    Window,
    adam_optimizer,
    add_data_flags,
    add_hub_flags,
    cached_codes,
    images_fingerprint,
    model_fingerprint,
    open_images,
    run_identity,
    scaled_learning_rate,
)
from diffusers_lasers.utils.command_line import CommandParser, hide_token, recorded_arguments
from diffusers_lasers.utils.distributed import wait_after_collectives
from diffusers_lasers.utils.files import save_image, write_json
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card
from diffusers_lasers.visualization import image_grid


logger = get_logger(__name__)
NETWORK = {
    "categorical": "categorical",
    "continuous": "continuous",
    "uniform": "discrete",
    "absorbing": "discrete",
}


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--codec", required=True, help="Folder (or Hub name) of a ModelBasedVQCodec or an AutoencoderDL.")
    add("--pretrained_model_name_or_path", help="Start from this denoiser: its folder or Hub name, or a pipeline's.")
    add_data_flags(parser)
    add("--resolution", type=int, default=64, help="Side of the square crops.")
    add("--resize", type=int, help="Short side before cropping. Default: --resolution; 0: keep the size.")
    add("--random_flip", action="store_true", help="Code each image also mirrored.")
    add("--codes_dir", help="Where the codes are kept. Default: OUTPUT_DIR/codes.")
    add("--parameterization", default="categorical", choices=list(NETWORK))
    add(
        "--self_conditioning",
        action=argparse.BooleanOptionalAction,
        help="The last estimate is an input. Default: as the preset; only the paper's has it.",
    )
    add(
        "--snr_gamma",
        type=float,
        help="Min-SNR: the error of the clean code weighs min(snr, this). Default: no weights.",
    )
    add("--tau", type=float, default=1.0, help="Temperature of the Gumbel-softmax in training (eq 20).")
    add("--image_weight", type=float, default=1.0, help="Weight of the image term of eq 24; 0 leaves it out.")
    add("--code_loss", default="epsilon", choices=["epsilon", "cross_entropy", "none"], help="Second term of eq 24.")
    add("--num_train_timesteps", type=int, default=1000)
    add("--beta_schedule", default="linear", choices=["linear", "scaled_linear", "squaredcos_cap_v2"])
    add("--preset", default="small", choices=["small", "paper"], help="Size of the denoiser.")
    add("--block_out_channels", type=int, nargs="+", help="Channels of its stages, instead of the preset's.")
    add("--layers_per_block", type=int)
    add("--dropout", type=float, default=0.0)
    add("--train_batch_size", type=int, default=64, help="Images a process and step.")
    add("--max_train_steps", type=int, default=10000)
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--gradient_checkpointing", action="store_true")
    add("--learning_rate", type=float, default=3e-4)
    add("--scale_lr", action="store_true", help="Times the images of a step.")
    add("--lr_scheduler", default="cosine")
    add("--lr_warmup_steps", type=int, default=200)
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.99)
    add("--adam_weight_decay", type=float, default=0.0)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--use_8bit_adam", action="store_true")
    add("--max_grad_norm", type=float, default=1.0)
    add("--use_ema", action="store_true")
    add("--ema_decay", type=float, default=0.999)
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: what accelerate is configured for.")
    add("--seed", type=int, default=0)
    add("--log_steps", type=int, default=50)
    add("--validation_steps", type=int, default=0, help="Steps between pictures of samples; 0: only at the end.")
    add("--num_validation_images", type=int, default=16)
    add("--num_inference_steps", type=int, default=50, help="Sampling steps of these pictures.")
    add("--temperature", type=float, default=1.0, help="γ of eq 25 in these pictures and the saved scheduler.")
    add("--checkpointing_steps", type=int, default=0, help="0: none.")
    add("--checkpoints_total_limit", type=int)
    add("--resume_from_checkpoint", help="`latest`, a checkpoint's folder, or its name in --output_dir.")
    add("--report_to", default="none", help="tensorboard, wandb, trackio, … or none.")
    add("--tracker_project_name", default="categorical-ddpm")
    add("--output_dir", default="categorical-ddpm")
    add_hub_flags(parser)
    args = parser.parse_args(input_args)
    positive = (
        "resolution train_batch_size max_train_steps gradient_accumulation_steps log_steps num_validation_images"
    )
    for name in [
        *positive.split(),
        "num_inference_steps",
        "max_train_samples",
        "max_validation_samples",
        "checkpoints_total_limit",
    ]:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if not 0 <= args.ema_decay < 1:
        parser.error(f"--ema_decay must lie in [0, 1), got {args.ema_decay}")
    if args.temperature < 0:
        parser.error(f"--temperature must not be negative, got {args.temperature}")
    if NETWORK[args.parameterization] == "discrete" and args.num_train_timesteps != 1000:
        parser.error("--num_train_timesteps must be 1000 for uniform and absorbing")
    if args.num_inference_steps > args.num_train_timesteps:
        parser.error(
            f"--num_inference_steps must be at most --num_train_timesteps, {args.num_train_timesteps}, got {args.num_inference_steps}"
        )
    trackers = ["none", "all", *sorted(str(name) for name in get_available_trackers())]
    if args.report_to not in trackers:
        parser.error(f"--report_to must be one of what is installed, {', '.join(trackers)}, got {args.report_to}")
    if args.pretrained_model_name_or_path and (args.block_out_channels or args.layers_per_block):
        parser.error("--block_out_channels and --layers_per_block are those of --pretrained_model_name_or_path")
    return args


def load_codec(path):
    """A codec or an autoencoder, told apart by its configuration; frozen."""
    kind = AutoencoderDL.load_config(path).get("_class_name")
    if kind not in ("ModelBasedVQCodec", "AutoencoderDL"):
        raise ValueError(f"--codec must be a ModelBasedVQCodec or an AutoencoderDL, got {kind!r} in {path}.")
    model = {"ModelBasedVQCodec": ModelBasedVQCodec, "AutoencoderDL": AutoencoderDL}[kind].from_pretrained(path)
    return model.requires_grad_(False).eval()


def load_denoiser(path, dropout, **given):
    """A trained denoiser of a pipeline, a checkpoint, or a folder of its own; what is given must be its own
    configuration."""
    try:
        model = CategoricalUNet2DModel.from_pretrained(path, subfolder="unet", dropout=dropout)
    except OSError:
        model = CategoricalUNet2DModel.from_pretrained(path, dropout=dropout)
    for name, value in given.items():
        if model.config[name] != value:
            raise ValueError(
                f"--pretrained_model_name_or_path {path} has {name} {model.config[name]!r}, and this run needs {value!r}."
            )
    return model


def coded_dataset(codec, args, split, folder, device):
    """The codes `(N, c̄, h, w)` of all images, from the cache; None where there are no images of the split."""
    source = open_images(args, split)
    if source is None:
        return None
    resize = args.resolution if args.resize is None else args.resize or None
    images = ImageDataset(
        source, args.resolution, resize=resize, center_crop=True, skip_unreadable=args.skip_unreadable
    )
    views = 2 if args.random_flip and split == "train" else 1
    slots, codewords, side = codec.index_layout
    grid = -(-args.resolution // side)

    def make():
        total = math.ceil(len(images) / 64)
        for pixels in tqdm(images.batches(64), total=total, desc=f"Codes, {split}", file=sys.stderr):
            pixels = pixels.to(device)
            for view in (pixels, pixels.flip(-1))[:views]:
                yield codec.encode_indices(view).cpu().numpy()

    key = {
        "images": images_fingerprint(source),
        "codec": model_fingerprint(codec),
        "resolution": args.resolution,
        "resize": resize,
        "views": views,
        "skip_unreadable": args.skip_unreadable,
        "version": diffusers_lasers.__version__,
    }
    return cached_codes(folder, split, key, make, (views * len(images), slots, grid, grid), codewords)


def collate(codes):
    return torch.from_numpy(np.stack(codes).astype(np.int64))


def make_scheduler(args, codewords):
    """What adds the noise in training and samples with a denoiser of this parameterization."""
    shared = {"num_train_timesteps": args.num_train_timesteps, "beta_schedule": args.beta_schedule}
    if args.parameterization == "categorical":
        return CategoricalDDPMScheduler(num_codewords=codewords, temperature=args.temperature, **shared)
    if args.parameterization == "continuous":
        return DDPMScheduler(prediction_type="epsilon", clip_sample=True, **shared)
    if args.parameterization == "absorbing":
        return AbsorbingD3PMScheduler(num_codewords=codewords, temperature=args.temperature)
    return UniformD3PMScheduler(num_codewords=codewords)


def prepare(args):
    """The parts of a run. What can be wrong with the arguments fails here, before anything is written."""
    run = argparse.Namespace()
    run.accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=os.path.join(args.output_dir, "logs")),
    )
    set_seed(args.seed)
    run.codec = load_codec(args.codec)
    run.batch_size = args.train_batch_size * run.accelerator.num_processes * args.gradient_accumulation_steps
    identity = run_identity(args, total_batch_size=run.batch_size, codec_weights=model_fingerprint(run.codec))
    run.folder = RunFolder(
        run.accelerator, args.output_dir, identity, args.resume_from_checkpoint, args.overwrite_output_dir
    )
    slots, codewords, side = run.codec.index_layout
    must = {"num_slots": slots, "num_codewords": codewords, "parameterization": NETWORK[args.parameterization]}
    names = ("block_out_channels", "layers_per_block", "self_conditioning")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.pretrained_model_name_or_path:
        run.model = load_denoiser(args.pretrained_model_name_or_path, args.dropout, **must, **given)
    else:
        size = -(-args.resolution // side)
        run.model = CategoricalUNet2DModel.from_preset(
            args.preset, sample_size=size, dropout=args.dropout, **must, **given
        )
    args.self_conditioning = run.model.config.self_conditioning
    if args.gradient_checkpointing:
        run.model.enable_gradient_checkpointing()
    run.objective = IndexDiffusionObjective(
        args.parameterization,
        codewords,
        make_scheduler(args, codewords),
        run.codec if isinstance(run.codec, ModelBasedVQCodec) else None,
        args.image_weight,
        args.code_loss,
        args.tau,
        args.snr_gamma,
        self_conditioning=0.5 if args.self_conditioning else 0.0,
    )
    device = run.accelerator.device
    run.codec.to(device)
    run.optimizer = adam_optimizer(
        run.model.parameters(), args, scaled_learning_rate(args, run.accelerator.num_processes)
    )
    run.lr_scheduler = get_scheduler(
        args.lr_scheduler,
        run.optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    run.model.to(device).train()
    run.average = ModelAverage(run.model, args.ema_decay) if args.use_ema else None
    run.state = TrainingState()
    parts = {"lr_scheduler": run.lr_scheduler, "state": run.state, "average": run.average}
    run.parts = {name: part for name, part in parts.items() if part is not None}
    if args.push_to_hub and run.accelerator.is_main_process:
        create_repository(args.output_dir, args.hub_model_id, args.hub_token)
    return run


def code_images(run, args):
    """The codes of both splits, held-out ones first: what cannot be read of them is found before the long part."""
    folder = args.codes_dir or os.path.join(args.output_dir, "codes")
    with run.accelerator.main_process_first():
        for name, split in (("held_out", "validation"), ("dataset", "train")):
            setattr(run, name, coded_dataset(run.codec, args, split, folder, run.accelerator.device))


def register_hooks(run):
    """Checkpoints hold the denoiser as a model folder, `unet/`."""
    accelerator = run.accelerator

    def save(models, weights, output_dir):
        if accelerator.is_main_process:
            for model in models:
                accelerator.unwrap_model(model).save_pretrained(os.path.join(output_dir, "unet"))
        weights.clear()

    def load(models, input_dir):
        while models:
            saved = CategoricalUNet2DModel.from_pretrained(input_dir, subfolder="unet")
            accelerator.unwrap_model(models.pop()).load_state_dict(saved.state_dict())

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def make_pipeline(run, args):
    pipeline = ModelBasedLatentDiffusionPipeline(run.codec, run.model, run.objective.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def held_out_loss(run, args):
    """Mean loss of held-out codes, each at the middles of eight equal spans of time, with noise of a seed of its own."""
    if run.held_out is None:
        return {}
    steps, losses = len(run.objective.scheduler), []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for start in range(0, len(run.held_out), args.train_batch_size):
            stop = min(start + args.train_batch_size, len(run.held_out))
            codes = collate([run.held_out[index] for index in range(start, stop)]).to(run.accelerator.device)
            for part in range(8):
                timesteps = torch.full((len(codes),), (2 * part + 1) * steps // 16, device=codes.device)
                loss, _ = run.objective(run.model, codes, timesteps)
                losses.append((float(loss), len(codes)))
    return {"validation_loss": sum(loss * n for loss, n in losses) / sum(n for _, n in losses)}


def validate(run, args, step):
    """Held-out loss and a picture of samples, of the weights that would be saved now; on the main process."""
    with run.average.applied(run.model) if run.average is not None else nullcontext():
        run.model.eval()
        try:
            figures = held_out_loss(run, args)
            images = make_pipeline(run, args)(
                batch_size=args.num_validation_images,
                num_inference_steps=args.num_inference_steps,
                temperature=args.temperature,
                generator=torch.Generator().manual_seed(args.seed),
                output_type="pt",
            ).images
        finally:
            run.model.train()
    rows = images.mul(2).sub(1).split(math.ceil(math.sqrt(len(images))))  # [0, 1] as [-1, 1]
    picture = image_grid([("", row) for row in rows], cell=1, margin=0)
    path = Path(args.output_dir) / "validation" / f"step-{step:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, picture)
    return figures, str(path.relative_to(args.output_dir))


def describe(run, args):
    """What settings.json records: everything that a repetition needs, but no secret."""
    side = args.resolution
    return {
        "command": "accelerate launch " + shlex.join(hide_token(sys.argv, args.hub_token)),
        "arguments": recorded_arguments(args),
        "codes": len(run.dataset),
        "total_batch_size": run.batch_size,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "bits_per_pixel": run.codec.bits_per_pixel(side, side),
        "unet": dict(run.model.config),
        "threads": torch.get_num_threads(),
        "versions": {
            "diffusers_lasers": diffusers_lasers.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
            "torch": torch.__version__,
        },
    }


def write_card(args, settings, figures, picture):
    """The pipeline's card, with what is known of it."""
    arguments = settings["arguments"]
    data = arguments["dataset_name"] or arguments["train_data_dir"] or "photographs bundled with scikit-image"
    lines = [
        f"- Data: {data} ({settings['codes']} codes)",
        f"- Codec: {arguments['codec']}, {settings['bits_per_pixel']:.4g} bits per pixel; no sample can be better than its reconstructions",
        f"- Reverse process: {arguments['parameterization']}, {settings['parameters'] / 1e6:.1f} million parameters",
        f"- Steps: {args.max_train_steps} of {settings['total_batch_size']} codes",
    ]
    lines += [f"- Held-out loss: {value:.4f}" for value in figures.values()]
    sections = {"Training": "\n".join([*lines, "", f"```bash\n{settings['command']}\n```"])}
    if picture is not None:
        sections["Samples"] = f"At {args.num_inference_steps} steps.\n\n![Samples]({picture})"
    tags = ("unconditional-image-generation",)
    write_model_card(args.output_dir, "ModelBasedLatentDiffusionPipeline", tags=tags, sections=sections)


def finish(run, args, settings, log):
    """Saves the pipeline, judges it, and uploads it where that is wanted; on the main process."""
    with run.average.applied(run.model) if run.average is not None else nullcontext():
        make_pipeline(run, args).save_pretrained(args.output_dir)
    write_card(args, settings, {}, None)
    with run.judgement.of("the held-out loss and samples"):
        figures, picture = validate(run, args, run.state.step)
        if figures:
            log.write({"step": run.state.step, **figures})
        write_card(args, settings, figures, picture)
    if args.push_to_hub:
        with run.judgement.of("the upload"):
            ignored = ["checkpoint-*", "logs/*", "codes/*", "run.json"]
            push_folder(args.output_dir, args.hub_model_id, args.hub_token, "End of training", ignored)


def train(run, args, model, log):
    """All steps."""
    accelerator, state = run.accelerator, run.state
    window = Window(accelerator.num_processes)
    end = state.samples_seen + max(0, args.max_train_steps - state.step) * run.batch_size
    sampler = StreamSampler(len(run.dataset), end, start=state.samples_seen, seed=args.seed)
    keyed = KeyedCodes(run.dataset)
    loader = DataLoader(keyed, args.train_batch_size, sampler=sampler, collate_fn=collate, generator=torch.Generator())
    bar = tqdm(
        total=args.max_train_steps, initial=state.step, desc="Steps", disable=not accelerator.is_local_main_process
    )
    for codes in accelerator.prepare_data_loader(loader):
        with accelerator.accumulate(model):
            loss, parts = run.objective(model, codes)  # only the denoiser, which is wrapped, runs in half precision
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                parts["gradient_norm"] = torch.as_tensor(
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                ).detach()
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        window.add(parts, None, len(codes))
        if not accelerator.sync_gradients:
            continue
        if run.average is not None:
            run.average.update(run.model)
        if not accelerator.optimizer_step_was_skipped:
            run.lr_scheduler.step()
        state.step += 1
        state.samples_seen += run.batch_size
        bar.update()
        if state.step % args.log_steps == 0 or state.step == args.max_train_steps:
            record = {**window.summary(), "lr": run.lr_scheduler.get_last_lr()[0]}
            if accelerator.is_main_process:
                log.write({"step": state.step, **record})
            accelerator.log(record, step=state.step)
            bar.set_postfix({name: record[name] for name in ("loss", "accuracy") if name in record})
        with window.paused():
            if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
                run.folder.save(state.step, run.parts, args.checkpoints_total_limit)
            if args.validation_steps and state.step % args.validation_steps == 0 and state.step < args.max_train_steps:
                if accelerator.is_main_process:
                    with run.judgement.of(f"the validation at step {state.step}"):
                        figures, _ = validate(run, args, state.step)
                        if figures:
                            log.write({"step": state.step, **figures})
                accelerator.wait_for_everyone()
    bar.close()


class KeyedCodes(torch.utils.data.Dataset):
    """Codes by the keys (epoch, index) of the stream."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, key):
        return self.table[int(key[1])]


def main(args):
    run = prepare(args)
    for sentence in run.folder.passed_over:
        logger.warning(sentence)
    # before the folder is taken: what cannot be read leaves no run that would have to be overwritten
    code_images(run, args)
    run.folder.claim()
    folder, log, main_process = Path(args.output_dir), None, run.accelerator.is_main_process
    if main_process:
        config = {k: v for k, v in recorded_arguments(args).items() if isinstance(v, (int, float, str, bool))}
        try:
            run.accelerator.init_trackers(args.tracker_project_name, config=config)
        except Exception as error:  # each tracker has errors of its own
            raise ValueError(f"--report_to {args.report_to} cannot be used: {error}") from error
    settings = describe(run, args)
    model, run.optimizer = run.accelerator.prepare(run.model, run.optimizer)
    register_hooks(run)
    set_seed(args.seed, device_specific=True)  # ranks draw noise of their own
    run.folder.load(run.parts)
    run.judgement = Judgement(folder, secret=args.hub_token)  # only the main process judges
    if main_process:
        write_json(folder / "settings.json", settings)
        log = TrainingLog(folder / "training_log.jsonl", resume_step=run.state.step)
    train(run, args, model, log)
    if main_process:
        finish(run, args, settings, log)
    run.accelerator.wait_for_everyone()
    wait_after_collectives()
    run.accelerator.end_training()
    run.folder.release()
    run.judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        main(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(hide_token([f"train_categorical_ddpm.py: error: {error}"], args.hub_token)[0]) from error


if __name__ == "__main__":
    cli()
