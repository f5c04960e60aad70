#!/usr/bin/env python
"""Trains diffusion on the indices of a codec, and saves a pipeline that makes images.

    accelerate launch examples/train_categorical_ddpm.py --codec opq --train_data_dir cats/ --output_dir cats
    accelerate launch examples/train_categorical_ddpm.py --codec opq --train_data_dir cats/ \\
        --parameterization continuous --output_dir cats-continuous

CODEC is a folder of a fitted `ModelBasedVQCodec` (`examples/fit_codec.py`), or of an `AutoencoderDL` with VQ or
residual VQ. The images are coded once, before the training, and the codes kept in OUTPUT_DIR/codes (or --codes_dir,
which several runs can share, also when they start at once). --parameterization: `categorical` is the paper's reverse
process (eq 24), `continuous` its first one (eq 4), `uniform` and `absorbing` are the D3PM baselines on the same codes.

OUTPUT_DIR gets the pipeline (`ModelBasedLatentDiffusionPipeline.from_pretrained` loads it), a card, settings.json,
training_log.jsonl, pictures of samples in validation/, and checkpoint-N/ to resume from. The pipeline is saved before
it is evaluated.
"""

import argparse
import math
import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMScheduler
from torch import nn
from torch.utils.data import DataLoader

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
from diffusers_lasers.training.data import image_flags
from diffusers_lasers.training.data.code_cache import model_fingerprint
from diffusers_lasers.training.data.coded_images import CodedImages, load_codec
from diffusers_lasers.training.data.sampling import StreamSampler
from diffusers_lasers.training.objectives.index_diffusion import IndexDiffusionObjective
from diffusers_lasers.training.run import cards, launch, optimizers, run_flags
from diffusers_lasers.training.run.recorder import Recorder
from diffusers_lasers.training.run.run_folder import open_run_folder
from diffusers_lasers.training.run.training_run import TrainingRun
from diffusers_lasers.training.weights.averaging import ModelAverage
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card
from diffusers_lasers.utils.image_decoding import UnreadableImageError
from diffusers_lasers.visualization import image_grid


NETWORK = {  # what the denoiser is for each process
    **{"categorical": "categorical", "continuous": "continuous"},
    **{"uniform": "discrete", "absorbing": "discrete"},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--codec", required=True, help="Folder (or Hub name) of a ModelBasedVQCodec or an AutoencoderDL.")
    image_flags.add_data_flags(parser)
    add("--resolution", type=int, default=64, help="Side of the square crops.")
    add("--resize", type=int, help="Short side before cropping. Default: --resolution; 0: keep the size.")
    add("--random_flip", action="store_true", help="Code each image also mirrored.")
    add("--codes_dir", help="Where the codes are kept. Default: OUTPUT_DIR/codes.")

    add("--pretrained_model_name_or_path", help="Start from this denoiser: its folder or Hub name, or a pipeline's.")
    add("--preset", default="small", choices=["small", "paper"], help="Size of the denoiser.")
    add("--block_out_channels", type=int, nargs="+", help="Channels of its stages, instead of the preset's.")
    add("--layers_per_block", type=int)
    add("--dropout", type=float, default=0.0)
    add(
        "--self_conditioning",
        action=argparse.BooleanOptionalAction,
        help="The last estimate is an input. Default: as the preset; only the paper's has it.",
    )
    add("--gradient_checkpointing", action="store_true")

    add("--parameterization", default="categorical", choices=list(NETWORK))
    add("--num_train_timesteps", type=int, default=1000)
    add("--beta_schedule", default="linear", choices=["linear", "scaled_linear", "squaredcos_cap_v2"])
    add("--snr_gamma", type=float, help="Min-SNR: the clean code's error weighs min(snr, this). Default: no weights.")
    add("--tau", type=float, default=1.0, help="Temperature of the Gumbel-softmax in training (eq 20).")
    add("--image_weight", type=float, default=1.0, help="Weight of the image term of eq 24; 0 leaves it out.")
    add("--code_loss", default="epsilon", choices=["epsilon", "cross_entropy", "none"], help="Second term of eq 24.")

    run_flags.add_optimizer_flags(
        parser,
        **{"train_batch_size": 64, "max_train_steps": 10000, "learning_rate": 3e-4, "adam_beta2": 0.99},
        **{"lr_scheduler": "cosine", "lr_warmup_steps": 200},
    )
    run_flags.add_average_flags(parser)
    add("--gradient_accumulation_steps", type=int, default=1)
    run_flags.add_run_flags(parser, output_dir="categorical-ddpm", tracker_project_name="categorical-ddpm")
    add("--validation_steps", type=int, default=0, help="Steps between pictures of samples; 0: only at the end.")
    add("--num_validation_images", type=int, default=16)
    add("--num_inference_steps", type=int, default=50, help="Sampling steps of these pictures.")
    add("--temperature", type=float, default=1.0, help="γ of eq 25 in these pictures and the saved scheduler.")
    run_flags.add_hub_flags(parser)
    args = parser.parse_args(argv)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises a `ValueError` for the first thing that is wrong with the arguments."""
    run_flags.check_training_flags(args)
    run_flags.check_at_least(args, 0, "temperature")
    if NETWORK[args.parameterization] == "discrete" and args.num_train_timesteps != 1000:
        raise ValueError("--num_train_timesteps must be 1000 for uniform and absorbing.")
    if args.num_inference_steps > args.num_train_timesteps:
        most = f"--num_train_timesteps, {args.num_train_timesteps}"
        raise ValueError(f"--num_inference_steps must be at most {most}, got {args.num_inference_steps}.")
    if args.pretrained_model_name_or_path and (args.block_out_channels or args.layers_per_block):
        raise ValueError("--block_out_channels and --layers_per_block are those of --pretrained_model_name_or_path.")


def build_denoiser(args: argparse.Namespace, codec: ModelBasedVQCodec | AutoencoderDL) -> CategoricalUNet2DModel:
    """The network for the codes of a codec, new or trained; a trained one has to fit what the arguments ask for."""
    slots, codewords, side = codec.index_layout
    wanted = {"num_slots": slots, "num_codewords": codewords, "parameterization": NETWORK[args.parameterization]}
    for name in ("block_out_channels", "layers_per_block", "self_conditioning"):
        if getattr(args, name) is not None:
            wanted[name] = getattr(args, name)
    place = args.pretrained_model_name_or_path
    if not place:
        size = -(-args.resolution // side)
        return CategoricalUNet2DModel.from_preset(args.preset, sample_size=size, dropout=args.dropout, **wanted)
    try:
        model = CategoricalUNet2DModel.from_pretrained(place, subfolder="unet", dropout=args.dropout)
    except OSError:
        model = CategoricalUNet2DModel.from_pretrained(place, dropout=args.dropout)
    for name, value in wanted.items():
        if model.config[name] != value:
            has = f"has {name} {model.config[name]!r}, and this run needs {value!r}"
            raise ValueError(f"--pretrained_model_name_or_path {place} {has}.")
    return model


def build_scheduler(args: argparse.Namespace, codewords: int):
    """What adds the noise in training and samples with a denoiser of this parameterization."""
    shared = {"num_train_timesteps": args.num_train_timesteps, "beta_schedule": args.beta_schedule}
    if args.parameterization == "categorical":
        return CategoricalDDPMScheduler(num_codewords=codewords, temperature=args.temperature, **shared)
    if args.parameterization == "continuous":
        return DDPMScheduler(prediction_type="epsilon", clip_sample=True, **shared)
    if args.parameterization == "absorbing":
        return AbsorbingD3PMScheduler(num_codewords=codewords, temperature=args.temperature)
    return UniformD3PMScheduler(num_codewords=codewords)


@dataclass(kw_only=True)
class DiffusionRun(TrainingRun):
    """A training of this script."""

    args: argparse.Namespace
    codec: ModelBasedVQCodec | AutoencoderDL
    codes: CodedImages
    held_out: CodedImages
    objective: IndexDiffusionObjective
    wrapped: nn.Module  # the denoiser as accelerate wraps it


def prepare(args: argparse.Namespace) -> DiffusionRun:
    """Codes, denoiser, loss and what steps it. What can be wrong fails here, before the output folder is taken."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, "logs")),
    )
    set_seed(args.seed)
    codec = load_codec(args.codec)
    batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    same = {"total_batch_size": batch_size, "codec_weights": model_fingerprint(codec)}
    folder = open_run_folder(accelerator, args, **same)

    model = build_denoiser(args, codec)
    args.self_conditioning = model.config.self_conditioning
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    codewords = codec.index_layout[1]
    objective = IndexDiffusionObjective(
        args.parameterization,
        codewords,
        build_scheduler(args, codewords),
        codec if hasattr(codec, "decode_soft") else None,
        args.image_weight,
        args.code_loss,
        args.tau,
        args.snr_gamma,
        self_conditioning=0.5 if args.self_conditioning else 0.0,
    )
    rate = optimizers.scaled_learning_rate(args, accelerator.num_processes)
    optimizer = optimizers.adam_optimizer(model.parameters(), args, rate)
    schedule = optimizers.learning_rate_schedule(optimizer, args, args.max_train_steps)
    codec.to(accelerator.device)
    model.to(accelerator.device).train()
    average = ModelAverage(model, args.ema_decay) if args.use_ema else None
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.output_dir, args.hub_model_id, args.hub_token)

    place = (args.codes_dir or os.path.join(args.output_dir, "codes"),)
    with accelerator.main_process_first():  # held-out images first: what cannot be read is found before the long part
        held_out = CodedImages(codec, args, *place, "validation", diffusers_lasers.__version__)
        codes = CodedImages(codec, args, *place, "train", diffusers_lasers.__version__)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    set_seed(args.seed, device_specific=True)  # ranks draw noise of their own
    run = DiffusionRun(
        **{"accelerator": accelerator, "folder": folder, "networks": {"unet": model}, "optimizer": optimizer},
        **{"schedule": schedule, "steps": args.max_train_steps, "batch_size": batch_size, "average": average},
        **{"args": args, "codec": codec, "codes": codes, "held_out": held_out, "objective": objective},
        wrapped=wrapped,
    )
    run.resume()
    return run


def train(run: DiffusionRun, recorder: Recorder) -> None:
    """All steps."""
    args, accelerator, model = run.args, run.accelerator, run.wrapped
    loader = DataLoader(
        run.codes,
        args.train_batch_size,
        sampler=StreamSampler(len(run.codes), run.end, start=run.state.samples_seen, seed=args.seed),
        collate_fn=CodedImages.collate,
        generator=torch.Generator(),  # its own, so that a resumed run draws the same global random numbers
    )
    for codes in accelerator.prepare_data_loader(loader):
        with accelerator.accumulate(model):
            loss, parts = run.objective(model, codes)  # only the denoiser, which is wrapped, runs in half precision
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
                parts["gradient_norm"] = torch.as_tensor(norm).detach()
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        recorder.add(parts, len(codes))
        if not accelerator.sync_gradients:
            continue
        run.after_step()
        recorder.after_step(lr=run.schedule.get_last_lr()[0])
        if recorder.validation_due(args.validation_steps):
            judge(run, recorder)


def make_pipeline(run: DiffusionRun) -> ModelBasedLatentDiffusionPipeline:
    """The pipeline of the denoiser as it is now."""
    pipeline = ModelBasedLatentDiffusionPipeline(run.codec, run.model, run.objective.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def held_out_loss(run: DiffusionRun) -> dict[str, float]:
    """Mean loss of held-out codes, each at the middles of eight equal spans of time, with the same noise each time."""
    if len(run.held_out) == 0:
        return {}
    steps, losses = len(run.objective.scheduler), []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for codes in run.held_out.batches(run.args.train_batch_size):
            codes = codes.to(run.accelerator.device)
            for part in range(8):
                timesteps = torch.full((len(codes),), (2 * part + 1) * steps // 16, device=codes.device)
                loss, _ = run.objective(run.model, codes, timesteps)
                losses.append((float(loss), len(codes)))
    return {"validation_loss": sum(loss * n for loss, n in losses) / sum(n for _, n in losses)}


def validate(run: DiffusionRun, recorder: Recorder) -> tuple[dict[str, float], str]:
    """Held-out loss and a picture of samples; on the main process."""
    figures = held_out_loss(run)
    images = make_pipeline(run)(
        batch_size=run.args.num_validation_images,
        num_inference_steps=run.args.num_inference_steps,
        temperature=run.args.temperature,
        generator=torch.Generator().manual_seed(run.args.seed),
        output_type="pt",
    ).images
    rows = images.mul(2).sub(1).split(math.ceil(math.sqrt(len(images))))  # [0, 1] as [-1, 1]
    return figures, recorder.save_picture(image_grid([("", row) for row in rows], cell=1, margin=0))


def judge(run: DiffusionRun, recorder: Recorder) -> tuple[dict[str, float], str]:
    """The validation of the weights that would be saved now; what fails of it is a warning."""
    figures, picture = {}, ""
    with recorder.validation(), recorder.judgement.of(f"the validation at step {run.state.step}"):
        if run.accelerator.is_main_process:
            figures, picture = validate(run, recorder)
            if figures:
                recorder.write(figures)
    return figures, picture


def write_card(run: DiffusionRun, settings: dict, figures: dict[str, float], picture: str) -> None:
    """The pipeline's card, with what is known of it."""
    bits = f"{settings['bits_per_pixel']:.4g} bits per pixel"
    lines = [
        f"Data: {settings['data']} ({settings['codes']} codes)",
        f"Codec: {run.args.codec}, {bits}; no sample can be better than its reconstructions",
        f"Reverse process: {run.args.parameterization}, {settings['parameters'] / 1e6:.1f} million parameters",
        f"Steps: {run.steps} of {run.batch_size} codes",
        *(f"Held-out loss: {value:.4f}" for value in figures.values()),
    ]
    sections = {"Training": cards.training_section(settings, lines)}
    if picture:
        sections["Samples"] = f"At {run.args.num_inference_steps} steps.\n\n![Samples]({picture})"
    tags = ("unconditional-image-generation",)
    write_model_card(run.folder.path, "ModelBasedLatentDiffusionPipeline", tags=tags, sections=sections)


def finish(run: DiffusionRun, recorder: Recorder) -> None:
    """Saves the pipeline, judges it, and uploads it where that is wanted."""
    args, main_process = run.args, run.accelerator.is_main_process
    if main_process:
        pipeline = make_pipeline(run)
        with run.saved_weights():
            pipeline.save_pretrained(run.folder.path)
        write_card(run, recorder.settings, {}, "")
    figures, picture = judge(run, recorder)
    if main_process:
        with recorder.judgement.of("the card"):
            write_card(run, recorder.settings, figures, picture)
        if args.push_to_hub:
            stays = ["checkpoint-*", "logs/*", "codes/*", "run.json"]
            with recorder.judgement.of("the upload"):
                push_folder(run.folder.path, args.hub_model_id, args.hub_token, "End of training", stays)


def main(args: argparse.Namespace) -> None:
    with launch.one_sentence(__file__, args):
        run = prepare(args)
    try:
        with launch.one_sentence(__file__, args):
            run.folder.claim()
            about = {
                "codes": len(run.codes),
                "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
                "bits_per_pixel": run.codec.bits_per_pixel(args.resolution, args.resolution),
                "unet": dict(run.model.config),
            }
            settings = cards.run_settings(run.accelerator, args, run.batch_size, **about)
            recorder = Recorder(run, args, settings, shown=("loss", "accuracy"))
        with launch.one_sentence(__file__, args, OSError, UnreadableImageError, training=True):
            train(run, recorder)
            finish(run, recorder)
        recorder.end()
    finally:
        run.folder.release()


def cli(argv: list[str] | None = None) -> None:
    """Runs with a command line."""
    main(parse_args(argv))


if __name__ == "__main__":
    cli()
