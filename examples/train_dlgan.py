r"""Trains an autoencoder with a structured bottleneck on images: DL-VAE and DL-GAN (LASERS, 2024), VQ-VAE and VQ-GAN, and their peers.

    accelerate launch examples/train_dlgan.py --output_dir dl --max_train_steps 2000
    accelerate launch examples/train_dlgan.py --train_data_dir photos/ --resolution 256 --bottleneck vq --adversarial_loss hinge --output_dir vqgan
    accelerate launch examples/train_dlgan.py --train_data_dir photos/ --resolution 128 --task super_resolution --scale 4 --output_dir sharp

Each step minimises eq 13: the reconstruction loss of eq 6, η · MSE + (1 − η) · LPIPS, and the bottleneck's own weighted losses; with
`--adversarial_loss` also the generator's loss of eq 15 with the adaptive weight of eq 16, and the loss of a PatchGAN discriminator
that learns from `--discriminator_start` on. Dictionary, autoencoder and discriminator are groups of one optimiser with learning rates of their
own. The dictionary is kept on the sphere and its dead atoms are revived (`DictionaryUpkeep`). Without `--dataset_name` or
`--train_data_dir` the images are random crops of the photographs that scikit-image installs, two of them held out.
With `--task super_resolution` or `inpainting` the encoder is given degraded images and all losses look at the clean ones (sections 12.1, 12.2);
`pipeline/` is then a `DLRestorationPipeline`.

The folder `--output_dir` receives the model (`AutoencoderDL.from_pretrained` loads it; with `--use_ema` the averaged one), the discriminator
in `discriminator/`, a card, `settings.json`, `training_log.jsonl`, `validation/*.png` and `checkpoint-N/`; each checkpoint holds loadable
models in `autoencoder/` and `discriminator/` too. What can be wrong is looked for before anything is written. A checkpoint is saved before a validation, and the model
before the last one: figures that fail are warnings, and exit code 1 at the end.
"""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import ProjectConfiguration, parse_flag_from_env, set_seed
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

import diffusers_lasers
from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    DLRestorationPipeline,
    PatchDiscriminator,
    PerceptualSimilarity,
)
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.models.autoencoders import AutoencoderDLOutput
from diffusers_lasers.training import (
    AdversarialObjective,
    BlockCoordinateUpdate,
    Degradation,
    DictionaryUpkeep,
    FullySharded,
    ImageDataset,
    ImageStream,
    Judgement,
    LeCamRegularizer,
    ModelAverage,
    ReconstructionLoss,
    RunFolder,
    StreamSampler,
    TrainingLog,
    TrainingState,
    UnreadableImageError,
    Window,
    adam_optimizer,
    add_data_flags,
    add_hub_flags,
    check_data_flags,
    check_held_out_images,
    gradient_norm,
    latest_checkpoint,
    open_image_stream,
    open_images,
    run_identity,
    save_optimizer_whole,
    scaled_learning_rate,
    take_batch,
)
from diffusers_lasers.utils.command_line import CommandParser, hide_token, recorded_arguments
from diffusers_lasers.utils.distributed import wait_after_collectives
from diffusers_lasers.utils.files import save_image, write_json
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card
from diffusers_lasers.utils.image_sources import to_rgb
from diffusers_lasers.visualization import image_grid


logger = get_logger(__name__)

# The flags of each bottleneck; those that its class names otherwise are in RENAMED.
BOTTLENECK_FLAGS = {
    "dictionary": (
        *("num_atoms", "sparsity", "patch_size", "pursuit", "gradient", "coefficient_bits", "coefficient_scaling"),
    ),
    "vq": ("num_atoms", "patch_size"),
    "residual_vq": ("num_atoms", "patch_size", "depth"),
    "fsq": ("fsq_levels",),
    "none": (),
}
RENAMED = {
    "vq": {"num_atoms": "num_codewords"},
    "residual_vq": {"num_atoms": "num_codewords"},
    "fsq": {"fsq_levels": "levels"},
}
# Smallest value of the flags that count something.
AT_LEAST = {
    1: (
        *("resolution", "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps"),
        *("max_train_samples", "crops_per_image", "max_validation_samples", "num_validation_images"),
        *("log_steps", "checkpoints_total_limit", "discriminator_channels", "discriminator_layers", "scale"),
    ),
    0: (
        *("adversarial_weight", "discriminator_learning_rate", "discriminator_start", "discriminator_warmup_steps"),
        *("discriminator_lr_warmup_steps", "lecam_weight", "bcd_memory", "shuffle_buffer_size"),
        *("checkpointing_steps", "validation_steps", "lr_warmup_steps", "revive_every", "max_grad_norm", "resize"),
        *("learning_rate", "dictionary_learning_rate", "dataloader_num_workers", "coefficient_bits", "seed"),
    ),
}
# How the presets train. LASERS says nothing of clipping, revival, initialisation, the sphere's tangent or averages; its discriminator is that
# of pix2pix, trained in the last 20 of 220 epochs (docs: training guide).
TRAINING_PRESETS = {
    "paper": {
        **{"max_grad_norm": 0.0, "revive_every": 0, "data_initialization": False, "tangent_projection": False},
        **{"bcd_memory": 0, "adversarial_weight": 1.0},
        **{"discriminator_channels": 64, "discriminator_layers": 3, "discriminator_norm": "batch"},
        **{"discriminator_adam_beta1": 0.9, "discriminator_adam_beta2": 0.999},
    },
    "corrected": {
        **{"max_grad_norm": 1.0, "revive_every": 100, "data_initialization": True, "tangent_projection": True},
        **{"bcd_memory": 500, "adversarial_weight": 0.75},
        **{"discriminator_channels": 64, "discriminator_layers": 3, "discriminator_norm": "group"},
        **{"discriminator_adam_beta1": 0.5, "discriminator_adam_beta2": 0.9},
    },
}
# Shares of the steps: before the discriminator learns, and until its loss counts in full.
DISCRIMINATOR_PRESETS = {"paper": (10 / 11, 0.0), "corrected": (0.5, 0.1)}
DISCRIMINATOR_FLAGS = ("discriminator_channels", "discriminator_layers", "discriminator_norm")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
CROPS_PER_BUNDLED_PHOTO = {"train": 256, "validation": 32}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description="Train an autoencoder with a dictionary, VQ, residual VQ, FSQ or no bottleneck.",
        usage="accelerate launch train_dlgan.py --output_dir FOLDER [flags; --help lists them]",
    )
    group = parser.add_argument_group("data")
    add_data_flags(group, max_validation_samples=256)
    add = group.add_argument
    add("--cache_in_memory", action="store_true", help="Decode all images once (uint8) before training.")
    add("--resolution", type=int, default=64, help="Side of the training crops in pixels.")
    add(
        "--resize",
        type=int,
        help="Short side before cropping; 0: as it is. Default: resolution, 0 for bundled photos.",
    )
    add("--center_crop", action="store_true", help="Crop at the centre instead of at random.")
    add("--random_flip", action="store_true", help="Mirror half of the crops.")
    add("--crops_per_image", type=int, help="Crops an epoch. Default: 1, 256 for the bundled photographs.")
    add("--dataloader_num_workers", type=int, default=0)
    add("--streaming", action="store_true", help="Read the data as a stream; nothing is prepared or held.")
    add("--shuffle_buffer_size", type=int, default=1000, help="Rows that a stream is shuffled among.")

    add = parser.add_argument_group("task").add_argument
    add("--task", choices=["reconstruction", "super_resolution", "inpainting"], default="reconstruction")
    add("--scale", type=int, default=4, help="Factor of super-resolution.")
    add("--mask", choices=["center", "random"], default="center", help="What inpainting hides.")
    add("--mask_fraction", type=float, default=0.25, help="Sides of the central mask as a share of the image's.")

    add = parser.add_argument_group("model").add_argument
    add("--preset", choices=list(TRAINING_PRESETS), help="Where the defaults come from. Default: corrected.")
    add("--pretrained_model_name_or_path", help="An AutoencoderDL to start from, instead of the other flags here.")
    add("--model_config_name_or_path", help="A config of AutoencoderDL, instead of the other flags of this group.")
    add("--bottleneck", choices=list(BOTTLENECK_FLAGS), help="Default: dictionary.")
    add("--num_atoms", type=int, help="Atoms or codewords. Default: 512.")
    add("--sparsity", type=int, help="Atoms a site. Default: 5.")
    add("--depth", type=int, help="Stages of residual VQ. Default: 5.")
    add("--fsq_levels", type=int, nargs="+", help="Levels of each latent channel, or one for all.")
    add("--latent_channels", type=int, help="Channels of the latents. Default: 16.")
    add("--patch_size", type=int, help="Side of a site in latent positions. Default: 1.")
    add("--pursuit", choices=["omp", "ols", "iht", "fista"], help="How sites are coded. Default: omp.")
    add("--gradient", choices=["straight_through", "projection"], help="Gradient through the dictionary.")
    add("--coefficient_bits", type=int, help="Bits of a coefficient; 0: floats. Default: the preset's.")
    add("--coefficient_scaling", choices=["depth", "shared"], help="Ranges of quantised coefficients. Default: depth.")

    add = parser.add_argument_group("loss").add_argument
    add("--eta", type=float, help="Weight of MSE in eq 6. Default: 0.5 with a perceptual network, else 1.")
    add("--perceptual", choices=["squeeze", "alex", "vgg", "none"], default="none", help="Network of LPIPS.")
    add("--perceptual_weights", help="Folder with its weights. Default: torchvision's, which are downloaded.")

    add = parser.add_argument_group("discriminator").add_argument
    add("--adversarial_loss", choices=["hinge", "vanilla", "none"], default="none", help="DL-GAN, VQ-GAN: hinge.")
    add("--adversarial_weight", type=float, help="Beside the adaptive weight. Default: the preset's, 0.75 (paper: 1).")
    add("--no_adaptive_weight", action="store_true", help="1 in the place of the adaptive weight of eq 16.")
    add("--discriminator_start", type=int, help="Steps before it learns. Default: half of them (paper: 10/11).")
    add("--discriminator_warmup_steps", type=int, help="Until its loss counts in full. Default: a tenth (paper: 0).")
    add("--discriminator_learning_rate", type=float, help="Default: the learning rate.")
    add("--discriminator_lr_scheduler", choices=SCHEDULES, default="constant", help="From its start to the end.")
    add("--discriminator_lr_warmup_steps", type=int, default=0)
    add("--discriminator_adam_beta1", type=float, help="Default: 0.5 (paper: 0.9).")
    add("--discriminator_adam_beta2", type=float, help="Default: 0.9 (paper: 0.999).")
    add("--discriminator_channels", type=int, help="Of its first layer. Default: 64.")
    add("--discriminator_layers", type=int, help="Strided layers. Default: 3, the 70 × 70 PatchGAN.")
    add("--discriminator_norm", choices=["group", "batch", "none"], help="Default: group (paper: batch).")
    add("--discriminator_config_name_or_path", help="A config of PatchDiscriminator, instead of the last three.")
    add("--lecam_weight", type=float, default=0.0, help="Weight of LeCam regularisation; 0: none.")

    add = parser.add_argument_group("training").add_argument
    add("--train_batch_size", type=int, default=16, help="Images a process and micro-batch.")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--max_train_steps", type=int, help="Optimiser steps; wins over --num_train_epochs.")
    add("--num_train_epochs", type=int, default=100)
    add("--learning_rate", type=float, default=1e-4)
    add("--dictionary_learning_rate", type=float, help="Default: the learning rate.")
    add("--scale_lr", action="store_true", help="Multiply the learning rates by the images of a step.")
    add("--lr_scheduler", choices=SCHEDULES, default="constant")
    add("--lr_warmup_steps", type=int, default=0)
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=0.0, help="Never applied to the dictionary.")
    add("--adam_epsilon", type=float, default=1e-8)
    add(
        "--use_8bit_adam", action="store_true", help="Moments in 8 bits, but for the dictionary's; needs bitsandbytes."
    )
    add("--max_grad_norm", type=float, help="0 does not clip. Default: the preset's, 1 (paper: 0).")
    add("--revive_every", type=int, help="Steps of a window of atom usage; 0: never. Default: 100 (paper: 0).")
    add("--revive_fraction", type=float, default=0.05, help="Largest share of the atoms revived at once.")
    add(
        "--dictionary_update",
        choices=["gradient", "bcd"],
        default="gradient",
        help="bcd: eqs 23–28, no learning rate.",
    )
    add(
        "--bcd_memory",
        type=int,
        help="Steps that bcd remembers; 0: the paper's growing memory. Default: 500 (paper: 0).",
    )
    add("--use_ema", action="store_true", help="Validate, save and push averaged weights.")
    add("--ema_decay", type=float, default=0.999)
    add("--gradient_checkpointing", action="store_true", help="Recompute activations; less memory, more time.")
    add("--allow_tf32", action="store_true", help="TF32 on GPUs that have it; sparse coding included.")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: accelerate's configuration.")
    add("--channels_last", action="store_true", help="Memory format of the convolutions.")
    add("--seed", type=int, default=0)

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", default="dlgan-model")
    add("--logging_dir", default="logs", help="Below --output_dir.")
    add("--report_to", default="tensorboard", help="tensorboard, wandb, trackio, …, all or none.")
    add("--tracker_project_name", default="train_dlgan")
    add("--log_steps", type=int, default=50, help="Steps between lines of training_log.jsonl.")
    add("--checkpointing_steps", type=int, default=500, help="0 writes no checkpoints.")
    add("--checkpoints_total_limit", type=int, help="Checkpoints to keep. Default: all.")
    add("--resume_from_checkpoint", help="A checkpoint's path, its name in --output_dir, or `latest`.")
    add("--validation_steps", type=int, default=500, help="0 validates only at the end.")
    add("--num_validation_images", type=int, default=8, help="Images in the pictures.")
    add("--license", help="Licence of the weights, in the Hub's words, for the card. Default: none stated.")
    add_hub_flags(group)
    args = parser.parse_args(argv)
    sentence = check_args(args)
    if sentence:
        parser.error(sentence)
    return args


def check_args(args: argparse.Namespace) -> str | None:
    """The first thing wrong with the arguments, as a sentence; sets the defaults of --eta and of the preset."""
    described = [name for name in DISCRIMINATOR_FLAGS if getattr(args, name) is not None]
    if described and args.discriminator_config_name_or_path:
        return f"--{described[0]} cannot be given together with --discriminator_config_name_or_path."
    # not described: the discriminator that comes with a pretrained model, if there is one
    left = DISCRIMINATOR_FLAGS if args.pretrained_model_name_or_path and not described else ()
    set_defaults(args, [name for name in TRAINING_PRESETS["corrected"] if name not in left])
    for least, names in AT_LEAST.items():
        for name in names:
            if getattr(args, name) is not None and getattr(args, name) < least:
                return f"--{name} must be at least {least}, got {getattr(args, name)}."
    try:
        check_data_flags(args)
    except ValueError as error:
        return str(error)
    if args.streaming and not (args.dataset_name or args.train_data_dir):
        return "--streaming needs --dataset_name or --train_data_dir."
    if args.streaming and not args.max_train_steps:
        return "--streaming needs --max_train_steps, since the length of a stream is not known."
    for name in ("cache_in_memory", "crops_per_image"):
        if args.streaming and getattr(args, name):
            return f"--{name} has no meaning with --streaming."
    if args.adversarial_loss == "none":
        own = ("start", "warmup_steps", "learning_rate", "config_name_or_path")
        for name in (*(f"discriminator_{word}" for word in own), "lecam_weight"):
            if getattr(args, name):
                return f"--{name} needs --adversarial_loss hinge or vanilla."
    for name in ("ema_decay", "discriminator_adam_beta1", "discriminator_adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            return f"--{name} must lie in [0, 1), got {getattr(args, name)}."
    if args.report_to not in ("all", "none"):
        available = sorted(str(name) for name in get_available_trackers())
        if args.report_to not in available:
            return f"--report_to {args.report_to} is not installed; installed: {', '.join(available) or 'none'}."
    if args.perceptual_weights and args.perceptual == "none":
        return "--perceptual_weights needs --perceptual squeeze, alex or vgg."
    if args.task == "super_resolution" and args.resolution % args.scale:
        return f"--scale must divide --resolution {args.resolution}, got {args.scale}."
    if not 0 < args.mask_fraction <= 1:
        return f"--mask_fraction must lie in (0, 1], got {args.mask_fraction}."
    if args.eta is None:
        args.eta = 1.0 if args.perceptual == "none" else 0.5
    if not 0 <= args.eta <= 1:
        return f"--eta must lie in [0, 1], got {args.eta}."
    if args.eta < 1 and args.perceptual == "none":
        return f"--eta {args.eta} needs a perceptual network: give --perceptual squeeze, alex or vgg."
    given = sorted({n for names in BOTTLENECK_FLAGS.values() for n in names if getattr(args, n) is not None})
    for source in ("pretrained_model_name_or_path", "model_config_name_or_path"):
        if getattr(args, source):
            others = ["model_config_name_or_path", "preset", "bottleneck", "latent_channels", *given]
            extra = [name for name in others if name != source and getattr(args, name) is not None]
            return f"--{extra[0]} cannot be given together with --{source}." if extra else None
    kind = args.bottleneck or "dictionary"
    wrong = [name for name in given if name not in BOTTLENECK_FLAGS[kind]]
    if args.dictionary_update == "bcd" and kind != "dictionary":
        wrong = ["dictionary_update bcd"]
    return f"--{wrong[0]} has no meaning for --bottleneck {kind}." if wrong else None


def set_defaults(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Sets those of the arguments that were not given as the preset says."""
    for name in names:
        if getattr(args, name, None) is None:
            setattr(args, name, TRAINING_PRESETS[args.preset or "corrected"][name])


def build_model(args: argparse.Namespace) -> AutoencoderDL:
    """The model that the arguments describe, untrained unless they name a trained one."""
    place = args.pretrained_model_name_or_path
    if place:  # a model, or a checkpoint of this script
        subfolder = "autoencoder" if os.path.isdir(os.path.join(place, "autoencoder")) else None
        return AutoencoderDL.from_pretrained(place, subfolder=subfolder)
    if args.model_config_name_or_path:
        return AutoencoderDL.from_config(AutoencoderDL.load_config(args.model_config_name_or_path))
    kind, channels = args.bottleneck or "dictionary", args.latent_channels or 16
    config = {
        RENAMED.get(kind, {}).get(name, name): getattr(args, name)
        for name in BOTTLENECK_FLAGS[kind]
        if getattr(args, name) is not None
    }
    if config.get("coefficient_bits") == 0:
        config["coefficient_bits"] = None
    if kind == "fsq":
        levels = config.get("levels", [7])
        config["levels"] = levels * channels if len(levels) == 1 else levels
    return AutoencoderDL.from_preset(
        args.preset or "corrected",
        latent_channels=channels,
        bottleneck_type=kind,
        bottleneck_config=config,
        sample_size=args.resolution,
    )


def pretrained_discriminator(args: argparse.Namespace) -> PatchDiscriminator | None:
    """The one that comes with the model to start from, or `None`: there is none, or another is described."""
    place = args.pretrained_model_name_or_path
    if not place or args.discriminator_config_name_or_path or args.discriminator_channels is not None:
        return None
    try:
        return PatchDiscriminator.from_pretrained(place, subfolder="discriminator")
    except OSError:
        logger.info(f"{place} has no discriminator: it begins anew.")
        return None


def build_discriminator(args: argparse.Namespace) -> PatchDiscriminator | None:
    """The discriminator, untrained unless it comes with a trained model, or `None`."""
    if args.adversarial_loss == "none":
        return None
    discriminator = pretrained_discriminator(args)
    set_defaults(args, DISCRIMINATOR_FLAGS)
    if discriminator is None and args.discriminator_config_name_or_path:
        config = PatchDiscriminator.load_config(args.discriminator_config_name_or_path)
        discriminator = PatchDiscriminator.from_config(config)
    elif discriminator is None:
        discriminator = PatchDiscriminator(
            base_channels=args.discriminator_channels,
            num_layers=args.discriminator_layers,
            norm_type=args.discriminator_norm,
            norm_num_groups=math.gcd(32, args.discriminator_channels),
        )
    if args.resolution < discriminator.smallest_size:
        raise ValueError(
            f"--resolution must be at least {discriminator.smallest_size} for a discriminator of "
            f"{discriminator.config.num_layers} layers, got {args.resolution}."
        )
    return discriminator


def build_data(args: argparse.Namespace) -> tuple[Any, ImageDataset | None]:
    """The training images, an `ImageDataset` or a stream of rows, and the held-out ones; `None` where there are none."""
    place = {"image_column": args.image_column}
    hub = {"dataset_name": args.dataset_name, "dataset_config_name": args.dataset_config_name}
    bundled = not (args.dataset_name or args.train_data_dir)
    scale = args.resize if args.resize is not None else args.resolution
    shown = {"resize": scale or None, "center_crop": True, "skip_unreadable": args.skip_unreadable}
    if args.streaming:
        train = {**hub, "train_data_dir": args.train_data_dir}
        dataset = open_image_stream(**train, **place, max_samples=args.max_train_samples)
    else:
        dataset = ImageDataset(
            open_images(args),
            args.resolution,
            resize=(args.resize if bundled else scale) or None,
            center_crop=args.center_crop,
            random_flip=args.random_flip,
            crops_per_image=args.crops_per_image or (CROPS_PER_BUNDLED_PHOTO["train"] if bundled else 1),
            seed=args.seed,
            cache_in_memory=args.cache_in_memory or bundled,
            skip_unreadable=args.skip_unreadable,
        )
    if args.streaming and (args.validation_data_dir or args.validation_split):
        where = {"train_data_dir": args.validation_data_dir} if args.validation_data_dir else hub
        where = {**where, "split": args.validation_split or "validation", "max_samples": args.max_validation_samples}
        rows = open_image_stream(**where, **place).iter(batch_size=1)
        held_out = StreamedSource([row[args.image_column][0] for row in rows])
    else:
        held_out = open_images(args, "validation")
    if held_out is None:
        return dataset, None
    if bundled and not args.validation_data_dir:
        crops = CROPS_PER_BUNDLED_PHOTO["validation"]
        shown = {"resize": args.resize or None, "crops_per_image": crops, "cache_in_memory": True}
    return dataset, ImageDataset(held_out, args.resolution, **shown)


class StreamedSource(list):
    """Held-out cells of a stream, decoded when they are asked for."""

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(super().__getitem__(index), f"row {index} of the held-out images")


def check_held_out(run: argparse.Namespace, args: argparse.Namespace) -> None:
    """Reads the held-out images once, this process its share of them, before hours are spent."""
    if run.held_out is None:
        return
    if args.skip_unreadable:
        run.held_out[0]  # there is one that can be read
        return
    source = run.held_out.source
    share = range(run.accelerator.process_index, len(source), run.accelerator.num_processes)
    if share:
        check_held_out_images(Subset(source, share), progress=run.accelerator.is_main_process)


def build_optimizer(
    model: AutoencoderDL, discriminator: PatchDiscriminator | None, args: argparse.Namespace, num_processes: int
) -> torch.optim.Optimizer:
    """Adam with groups of their own for the dictionary, without weight decay, and for the discriminator.

    One optimiser and not two: they would share one gradient scaler, which each `step` of accelerate updates.
    """

    def rate(own: float | None = None) -> float:
        return scaled_learning_rate(args, num_processes, own)

    dictionary = [p for name, p in model.named_parameters() if name == "bottleneck.dictionary" and p.requires_grad]
    groups = [{"params": [p for name, p in model.named_parameters() if name != "bottleneck.dictionary"]}]
    if dictionary:
        groups.append({"params": dictionary, "lr": rate(args.dictionary_learning_rate), "weight_decay": 0.0})
    if discriminator is not None:
        betas = (args.discriminator_adam_beta1, args.discriminator_adam_beta2)
        groups.append({"params": list(discriminator.parameters()), "lr": rate(args.discriminator_learning_rate)})
        groups[-1]["betas"] = betas
    return adam_optimizer(groups, args, rate(), full_precision=dictionary)


def build_schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace, steps: int) -> LambdaLR:
    """The learning rates over the real number of steps; the discriminator's begins when it does."""

    def factor(name: str, warmup: int, length: int):
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_scheduler(name, stand_in, num_warmup_steps=warmup, num_training_steps=length)
        return schedule.lr_lambdas[0]

    factors = [factor(args.lr_scheduler, args.lr_warmup_steps, steps)] * len(optimizer.param_groups)
    if args.adversarial_loss != "none":
        start = args.discriminator_start
        name, warmup = args.discriminator_lr_scheduler, args.discriminator_lr_warmup_steps
        own = factor(name, warmup, max(1, steps - start))
        factors[-1] = lambda step: own(max(0, step - start))
    return LambdaLR(optimizer, factors)


@torch.no_grad()
def initialize_from_data(model: AutoencoderDL, run: argparse.Namespace, args: argparse.Namespace) -> None:
    """Initialises the bottleneck with latents of the first images: 16 sites a symbol, at most 8 batches."""
    latents, sites = [], 0
    wanted = 16 * max(model.bottleneck.num_symbols, 1) * model.bottleneck.patch_size**2
    for pixel_values in first_batches(run, args, 8):
        latents.append(model.encode(run.degrade(pixel_values.to(model.device))[0]).latents)
        sites += latents[-1].shape[0] * latents[-1].shape[-2] * latents[-1].shape[-1]
        if sites >= wanted:
            break
    model.bottleneck.initialize(torch.cat(latents), generator=torch.Generator().manual_seed(args.seed))


def first_batches(run: argparse.Namespace, args: argparse.Namespace, count: int) -> Iterator[torch.Tensor]:
    """Up to `count` batches of training images, without moving the training on."""
    if args.streaming:
        yield from (batch["pixel_values"] for batch in image_stream(run, args, 0, count))
        return
    keys = list(StreamSampler(len(run.dataset), count * args.train_batch_size, seed=args.seed))
    yield from run.dataset.batches(args.train_batch_size, keys)


def training_loss(
    output: AutoencoderDLOutput, pixel_values: torch.Tensor, run: argparse.Namespace, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The autoencoder's loss, eq 13 or, once the discriminator learns, eq 15, and its parts (detached) for the log."""
    terms = run.criterion(output.sample, pixel_values)
    loss = terms.loss + output.loss
    parts = {"mse": terms.mse, "commitment": output.commitment_loss, "codebook": output.codebook_loss}
    if terms.perceptual is not None:
        parts["perceptual"] = terms.perceptual
    if run.adversarial is not None and run.adversarial.active(step):
        with run.accelerator.autocast():
            term, adversarial = run.adversarial.generator_term(output.sample, terms.loss, run.model.last_layer, step)
        loss = loss + term
        parts.update(adversarial)
    parts = {"loss": loss, **parts}
    return loss, {name: value.detach().float() for name, value in parts.items() if value is not None}


def clip_gradients(run: argparse.Namespace, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Unscales the gradients once, clips those of each network on its own, and gives their norms."""
    run.accelerator.unscale_gradients()
    for sharded in run.sharded.values():
        sharded.average_gradients()
    norms = {}
    for name, module in (("gradient_norm", run.model), ("discriminator_gradient_norm", run.discriminator)):
        parameters = [p for p in module.parameters() if p.grad is not None] if module is not None else []
        if parameters:
            norms[name] = gradient_norm(parameters)
            if args.max_grad_norm > 0:
                # one product of many gradients takes no mixture of sharded and whole ones
                each = False if run.sharded else None
                torch.nn.utils.clip_grads_with_norm_(parameters, args.max_grad_norm, norms[name], foreach=each)
    return norms


def clipped_psnr(sample: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """PSNR of each image after clipping the reconstruction; at most 100 dB, so that a white image leaves a mean finite."""
    return image_psnr(sample.float().clamp(-1, 1), target, mask).clamp_max(100.0)


@torch.no_grad()
def validate(model: AutoencoderDL, run: argparse.Namespace, args: argparse.Namespace) -> dict[str, float]:
    """Figures over the held-out images, which the processes share; where one of them fails, all do."""
    perceptual, window, total = run.criterion.perceptual, Window(run.accelerator.num_processes), {}
    starts, failure = range(0, len(run.held_out), args.train_batch_size), None
    try:
        for start in starts[run.accelerator.process_index :: run.accelerator.num_processes]:
            indices = range(start, min(start + args.train_batch_size, len(run.held_out)))
            images = run.held_out.take(indices).to(run.accelerator.device)
            inputs, mask = run.degrade(images, torch.Generator().manual_seed(start))
            with run.accelerator.autocast():
                output = model(inputs)
            sums = {"psnr": clipped_psnr(output.sample, images).double().sum()}
            if mask is not None:
                sums["masked_psnr"] = clipped_psnr(output.sample, images, mask).double().sum()
            if perceptual is not None:
                sums["lpips"] = perceptual(output.sample.float().clamp(-1, 1), images).distances.double().sum()
            total = {name: total.get(name, 0) + value for name, value in sums.items()}
            window.add({}, output.code, len(indices))
    except Exception as error:  # whatever it is: the other processes would wait for this one's share
        failure = error
    names = ["psnr"] + ["masked_psnr"] * (args.task == "inpainting") + ["lpips"] * (perceptual is not None)
    zero = torch.zeros((), dtype=torch.float64, device=run.accelerator.device)
    shares = [zero + (failure is not None), *(total.get(name, zero) for name in names)]
    failed, *values = run.accelerator.reduce(torch.stack(shares), reduction="sum").tolist()
    if failed:
        raise failure or ValueError("another process could not judge its share of the held-out images.")
    figures = {f"validation_{name}": value / len(run.held_out) for name, value in zip(names, values)}
    usage = window.summary() if len(starts) >= run.accelerator.num_processes else {}  # each process needs a code
    return {**figures, **{f"validation_{n}": usage[n] for n in ("perplexity", "dead_atoms") if n in usage}}


@torch.no_grad()
def draw(model: AutoencoderDL, run: argparse.Namespace, args: argparse.Namespace) -> Image.Image:
    """A picture: originals, with a task what is given, and reconstructions, one above the other."""
    count = args.num_validation_images
    if run.held_out is not None or not args.streaming:
        shown = run.held_out or run.dataset
        indices = np.linspace(0, len(shown) - 1, min(len(shown), count)).astype(int).tolist()
        images = shown.take(indices)
    else:
        batches = first_batches(run, args, -(-count // args.train_batch_size))
        images = torch.cat(list(batches))[:count]
    images = images.to(run.accelerator.device)
    inputs, _ = run.degrade(images, torch.Generator().manual_seed(0))
    given = [] if args.task == "reconstruction" else [inputs]
    with run.accelerator.autocast():
        sample = model(inputs).sample
    return image_grid([("", row) for row in (images, *given, sample)], cell=1, margin=0)


def describe(args: argparse.Namespace, run: argparse.Namespace) -> dict[str, Any]:
    """What `settings.json` records: everything that a repetition needs, but no secret."""
    model, discriminator = run.model, run.discriminator
    kept = recorded_arguments(args)
    side = args.resolution
    return {
        "command": "accelerate launch " + shlex.join(hide_token(sys.argv, args.hub_token)),
        "arguments": kept,
        "data": args.dataset_name or args.train_data_dir or "photographs bundled with scikit-image",
        "images": None if args.streaming else len(run.dataset.source),
        "samples_per_epoch": None if args.streaming else len(run.dataset),
        "total_batch_size": run.batch_size,
        "processes": run.accelerator.num_processes,
        "sharded": bool(run.sharded),
        "mixed_precision": run.accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "steps": run.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bits_per_pixel": model.bits_per_pixel(side, side),
        "model": dict(model.config),
        "discriminator": None if discriminator is None else dict(discriminator.config),
        "discriminator_patch": None if discriminator is None else discriminator.receptive_field,
        "versions": {
            "diffusers_lasers": diffusers_lasers.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
            "torch": torch.__version__,
        },
    }


def card_sections(settings: dict, results: dict, picture: str, failures: list[str]) -> dict[str, str]:
    """The model card's account of the training and its figures, each with its bits, and of what could not be done."""
    arguments = settings["arguments"]
    images = "a stream" if settings["images"] is None else f"{settings['images']} images"
    lines = [
        f"- Data: {settings['data']} ({images}, crops of {arguments['resolution']} pixels)",
        f"- Steps: {results['step']} of {settings['total_batch_size']} images",
        f"- Rate: {settings['bits_per_pixel']:.4g} bits per pixel (nominal, at the training resolution)",
    ]
    if arguments["task"] != "reconstruction":
        detail = f"× {arguments['scale']}" if arguments["task"] == "super_resolution" else f"{arguments['mask']} mask"
        lines.append(f"- Task: {arguments['task']} ({detail}); `pipeline/` is a `DLRestorationPipeline`")
    if settings["discriminator"] is not None:
        lines.append(
            f"- Discriminator: {arguments['adversarial_loss']} loss, from step {arguments['discriminator_start']} on, "
            f"patches of {settings['discriminator_patch']} pixels; in `discriminator/`"
        )
    if arguments["use_ema"]:
        lines.append(f"- Weights: exponential moving average, decay {arguments['ema_decay']}")
    if results["unreadable"]:
        lines.append(f"- Unreadable images skipped: {results['unreadable']} samples")
    sections = {"Training": "\n".join([*lines, "", f"```bash\n{settings['command']}\n```"])}
    rows = [("bits per pixel, nominal", f"{settings['bits_per_pixel']:.4g}")]
    for name, title, form in (
        ("validation_psnr", "PSNR", "{:.2f} dB"),
        ("validation_masked_psnr", "PSNR inside the mask", "{:.2f} dB"),
        ("validation_lpips", f"LPIPS ({arguments['perceptual']})", "{:.4f}"),
        ("validation_perplexity", "perplexity", "{:.1f}"),
        ("validation_dead_atoms", "symbols never used", "{:d}"),
    ):
        if name in results:
            rows.append((title, form.format(results[name])))
    if "validation_psnr" in results:
        body = "\n".join(f"| {title} | {value} |" for title, value in rows)
        held_out = f"{results['validation_images']} held-out crops of {arguments['resolution']} pixels."
        sections["Evaluation"] = f"On {held_out}\n\n| figure | value |\n| --- | ---: |\n{body}"
    if failures:
        sections["Missing"] = "\n".join(f"- {failure}" for failure in failures)
    if picture:
        above = "Originals" if arguments["task"] == "reconstruction" else "Originals and what is given"
        sections["Reconstructions"] = f"{above} above, reconstructions below.\n\n![Reconstructions]({picture})"
    return {**sections, "Settings": "See `settings.json` and `training_log.jsonl`."}


def plain(accelerator: Accelerator, model: torch.nn.Module) -> AutoencoderDL:
    """The model without the wrappers of distribution and compilation."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def shard(run: argparse.Namespace, reshard_after_forward: bool) -> None:
    """Shards both networks; the bottleneck, which the upkeep writes to, and the layer at which λ is taken stay whole."""
    keep = {"model": [*run.model.bottleneck.parameters(), run.model.last_layer], "discriminator": []}
    for name, network in (("model", run.model), ("discriminator", run.discriminator)):
        if network is not None:
            network.to(run.accelerator.device)
            run.sharded[type(network)] = FullySharded(network, keep[name], reshard_after_forward)


def whole(run: argparse.Namespace, model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, or, if it is sharded, a copy with all weights; all processes have to call it."""
    return run.sharded[type(model)].whole() if type(model) in run.sharded else model


FOLDERS = {AutoencoderDL: "autoencoder", PatchDiscriminator: "discriminator"}


def register_hooks(run: argparse.Namespace) -> None:
    """Checkpoints hold the weights once, as model folders."""
    accelerator = run.accelerator

    def save_model_hook(models, weights, output_dir):
        for model in (whole(run, plain(accelerator, model)) for model in models):
            if accelerator.is_main_process:
                model.save_pretrained(os.path.join(output_dir, FOLDERS[type(model)]))
        weights.clear()

    def load_model_hook(models, input_dir):
        while models:
            model = plain(accelerator, models.pop())
            saved = type(model).from_pretrained(input_dir, subfolder=FOLDERS[type(model)])
            run.sharded.get(type(model), model).load_state_dict(saved.state_dict())

    accelerator.register_save_state_pre_hook(save_model_hook)
    accelerator.register_load_state_pre_hook(load_model_hook)


def image_stream(run: argparse.Namespace, args: argparse.Namespace, start: int, stop: int) -> ImageStream:
    """Batches `start` to `stop` of this process's share of the stream."""
    return ImageStream(
        run.dataset,
        args.image_column,
        args.resolution,
        args.train_batch_size,
        stop,
        start=start,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        resize=(args.resolution if args.resize is None else args.resize) or None,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        shuffle_buffer=args.shuffle_buffer_size,
        seed=args.seed,
        skip_unreadable=args.skip_unreadable,
    )


def training_batches(
    run: argparse.Namespace, args: argparse.Namespace, state: TrainingState
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of the remaining steps, shared out over the processes; a resumed run goes on where it stopped."""
    shared = {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # its own, so that a resumed run draws the same global random numbers
    }
    end = state.samples_seen + max(0, run.steps - state.step) * run.batch_size
    if args.streaming:
        each = args.train_batch_size * run.accelerator.num_processes
        loader = DataLoader(
            image_stream(run, args, state.samples_seen // each, end // each), batch_size=None, **shared
        )
        for batch in loader:
            yield {n: tensor.to(run.accelerator.device, non_blocking=True) for n, tensor in batch.items()}
        return
    sampler = StreamSampler(len(run.dataset), end, start=state.samples_seen, seed=args.seed)
    loader = DataLoader(
        run.dataset, batch_size=args.train_batch_size, sampler=sampler, collate_fn=take_batch, **shared
    )
    yield from run.accelerator.prepare_data_loader(loader)


class Recorder:
    """Writes what happens to `--output_dir` and the trackers, on the main process; validates on all. Making it takes the folder for this run."""

    def __init__(self, run: argparse.Namespace, args: argparse.Namespace, settings: dict, state: TrainingState):
        self.accelerator, self.run, self.args, self.settings, self.state = run.accelerator, run, args, settings, state
        self.folder, self.results, self.picture = run.folder.path, {}, ""
        self.judgement = Judgement(self.folder, secret=args.hub_token)  # `validate` lets no process wait for another
        run.folder.claim()
        if not self.accelerator.is_main_process:
            return
        (self.folder / "validation").mkdir(exist_ok=True)
        write_json(self.folder / "settings.json", settings)
        self.log = TrainingLog(self.folder / "training_log.jsonl", resume_step=state.step)
        config = {k: v for k, v in settings["arguments"].items() if isinstance(v, (int, float, str, bool))}
        try:
            self.accelerator.init_trackers(args.tracker_project_name, config=config)
        except Exception as error:  # each tracker has errors of its own
            raise ValueError(f"--report_to {args.report_to} cannot be used: {error}") from error

    def write(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.state.step, **record})
        self.accelerator.log(record, step=self.state.step)

    def checkpoint(self) -> None:
        self.run.folder.save(self.state.step, self.run.parts, self.args.checkpoints_total_limit)

    @contextmanager
    def saved_weights(self) -> Iterator[torch.nn.Module]:
        """In this context the model that would be saved now: averaged, whole, in evaluation mode."""
        run = self.run
        with run.average.applied(run.model) if run.average is not None else nullcontext():
            try:
                yield whole(run, run.model).eval()
            finally:
                run.model.train()

    def validate(self) -> None:
        """Figures and a picture of the weights that would be saved now; what fails of them is a warning, and the run goes on."""
        run, args, step = self.run, self.args, self.state.step
        self.results, self.picture = {}, ""
        with self.saved_weights() as model:
            with self.judgement.of(f"the figures of the held-out images after step {step}"):
                if run.held_out is not None:
                    figures = validate(model, run, args)
                    self.results = {**figures, "validation_images": len(run.held_out)}
                    self.write({name: round(value, 4) for name, value in figures.items()})
            with self.judgement.of(f"the picture after step {step}"):
                if self.accelerator.is_main_process:
                    picture, name = draw(model, run, args), f"validation/step-{step:07d}.png"
                    save_image(self.folder / name, picture)
                    self.picture = name
                    for tracker in self.accelerator.trackers:
                        log_picture(tracker, picture, step)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """The model and all that belongs to it."""
        with self.saved_weights() as model:
            if self.accelerator.is_main_process:
                model.save_pretrained(self.folder)
                if self.args.task != "reconstruction":
                    pipeline = DLRestorationPipeline(model, task=self.args.task, scale=self.args.scale)
                    pipeline.save_pretrained(self.folder / "pipeline")
        if self.run.discriminator is not None:
            discriminator = whole(self.run, self.run.discriminator)
            if self.accelerator.is_main_process:
                discriminator.save_pretrained(self.folder / "discriminator")
        self.write_card()

    def write_card(self) -> None:
        if self.accelerator.is_main_process:
            results = {"step": self.state.step, "unreadable": self.state.unreadable, **self.results}
            sections = card_sections(self.settings, results, self.picture, self.judgement.failures)
            write_model_card(self.folder, "AutoencoderDL", license=self.args.license, sections=sections)

    def finish(self) -> None:
        """Saves, then judges what is saved; what fails then is a warning, and `judgement.end` gives exit code 1."""
        self.results, self.picture = {}, ""
        self.save()
        self.validate()
        with self.judgement.of("the card"):
            self.write_card()
        if self.args.push_to_hub and self.accelerator.is_main_process:
            stays = ["checkpoint-*", "run.json", f"{self.args.logging_dir}/*"]
            with self.judgement.of("the upload"):
                push_folder(self.folder, self.args.hub_model_id, self.args.hub_token, "End of training", stays)
        self.accelerator.wait_for_everyone()
        wait_after_collectives()
        with self.judgement.of("the trackers"):
            self.accelerator.end_training()


def log_picture(tracker: GeneralTracker, picture: Image.Image, step: int) -> None:
    """Gives a picture to a tracker that takes pictures."""
    if tracker.name == "tensorboard":
        tracker.log_images({"validation": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({"validation": [np.asarray(picture)]}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({"validation": trackio.Image(np.asarray(picture))}, step=step)


def launched_fsdp() -> bool | None:
    """Whether the launch asks for FSDP, and then whether units give up the parts of others after the forward pass; `None`: it does not.

    The script shards by itself and tells accelerate nothing of it: accelerate's FSDP takes one model, and does not exist on a CPU.
    """
    for name, flag, reason in (
        ("DeepSpeed", "DEEPSPEED", "its copies of the weights undo what the upkeep of the dictionary writes"),
        ("Megatron-LM", "MEGATRON_LM", "it splits layers of transformers, and there are none"),
    ):
        if parse_flag_from_env(f"ACCELERATE_USE_{flag}"):
            raise ValueError(f"This script trains in one process, data-parallel or with FSDP, got {name}: {reason}.")
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"`fsdp_version` must be 2, got {version}.")
    for name, instead in (
        ("FSDP_OFFLOAD_PARAMS", "it is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "give --gradient_checkpointing"),
    ):
        if parse_flag_from_env(name):
            raise ValueError(f"`{name.lower()}` must be false: {instead}.")
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise ValueError(f"`fsdp_reshard_after_forward` must be true or false, got {reshard}.")
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return reshard == "true"


def prepare(args: argparse.Namespace) -> argparse.Namespace:
    """The parts of a run. Everything that can be wrong with the arguments fails here, before anything is written."""
    run = argparse.Namespace()
    fsdp = launched_fsdp()
    run.accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(
            args.output_dir, logging_dir=os.path.join(args.output_dir, args.logging_dir)
        ),
    )
    if fsdp is not None and run.accelerator.mixed_precision == "fp16":
        raise ValueError(
            "FSDP needs --mixed_precision no or bf16, got fp16: its scaler does not take sharded gradients."
        )
    if fsdp is not None and args.channels_last:
        raise ValueError("--channels_last cannot be given together with FSDP, which shards contiguous weights only.")
    if fsdp is not None and args.use_8bit_adam:
        raise ValueError("--use_8bit_adam cannot be given together with FSDP, whose shards its moments do not follow.")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    set_seed(args.seed)
    run.degrade = Degradation(args.task, args.scale, args.mask, args.mask_fraction)
    run.batch_size = args.train_batch_size * run.accelerator.num_processes * args.gradient_accumulation_steps
    identity = run_identity(args, total_batch_size=run.batch_size)
    run.folder = RunFolder(
        run.accelerator, args.output_dir, identity, args.resume_from_checkpoint, args.overwrite_output_dir
    )
    for sentence in run.folder.passed_over:
        logger.warning(f"{sentence} Trying the one before.")
    if run.folder.checkpoint is None and args.resume_from_checkpoint:
        logger.warning(f"There is no checkpoint in {args.output_dir}: starting from scratch.")
    run.model, run.discriminator = build_model(args), build_discriminator(args)
    if args.dictionary_update == "bcd" and not isinstance(run.model.bottleneck, DictionaryBottleneck):
        raise ValueError("--dictionary_update bcd needs a model with a dictionary.")
    if args.gradient_checkpointing:
        run.model.enable_gradient_checkpointing()
    run.sharded = {}
    if fsdp is not None:
        shard(run, reshard_after_forward=fsdp)
    perceptual = None
    if args.perceptual != "none":
        perceptual = PerceptualSimilarity.from_weights(args.perceptual, args.perceptual_weights)
    run.criterion = ReconstructionLoss(args.eta, perceptual).to(run.accelerator.device)
    with run.accelerator.main_process_first():  # it prepares what `datasets` keeps, the others read that
        run.dataset, run.held_out = build_data(args)
    check_held_out(run, args)
    run.steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(run.dataset) / run.batch_size)
    run.adversarial = build_adversarial(run, args)
    bcd = None
    if args.dictionary_update == "bcd":
        bcd = BlockCoordinateUpdate(run.model.bottleneck, memory=args.bcd_memory or None)
    run.optimizer = build_optimizer(run.model, run.discriminator, args, run.accelerator.num_processes)
    if run.sharded:
        save_optimizer_whole(run.optimizer)
    run.lr_scheduler = build_schedule(run.optimizer, args, run.steps)
    run.average = None
    run.upkeep = DictionaryUpkeep(
        run.model.bottleneck,
        run.optimizer,
        args.revive_every,
        args.revive_fraction,
        tangent_projection=args.tangent_projection,
        seed=args.seed,
        block_coordinate=bcd,
        on_revival=lambda atoms: reset_average(run, atoms),
    )
    return run


def build_adversarial(run: argparse.Namespace, args: argparse.Namespace) -> AdversarialObjective | None:
    """The adversarial terms, with start and warm-up by the preset where they are not given."""
    if run.discriminator is None:
        return None
    start, warmup = (int(share * run.steps) for share in DISCRIMINATOR_PRESETS[args.preset or "corrected"])
    args.discriminator_start = start if args.discriminator_start is None else args.discriminator_start
    if args.discriminator_warmup_steps is None:
        args.discriminator_warmup_steps = warmup
    return AdversarialObjective(
        run.discriminator,
        args.adversarial_loss,
        args.adversarial_weight,
        adaptive=not args.no_adaptive_weight,
        start=args.discriminator_start,
        warmup=args.discriminator_warmup_steps,
        lecam=LeCamRegularizer() if args.lecam_weight else None,
        lecam_weight=args.lecam_weight,
        structure=run.sharded[PatchDiscriminator].structure if run.sharded else None,
    )


def reset_average(run: argparse.Namespace, atoms: torch.Tensor) -> None:
    """Revived atoms begin anew in the averaged model too."""
    if run.average is not None:
        run.average.reset_columns("bottleneck.dictionary", atoms, run.model)


def set_up(run: argparse.Namespace, args: argparse.Namespace) -> tuple[Any, Any, TrainingState, dict]:
    """Places, initialises, wraps and, where a checkpoint is given, restores what `prepare` built."""
    accelerator, model, discriminator = run.accelerator, run.model, run.discriminator
    networks = [network for network in (model, discriminator) if network is not None]
    for network in networks:
        if not run.sharded:
            network.to(accelerator.device)
        if args.channels_last:
            network.to(memory_format=torch.channels_last)
        network.train()
    if run.folder.checkpoint is None and args.data_initialization and not args.pretrained_model_name_or_path:
        initialize_from_data(model, run, args)
    if args.task == "inpainting" and args.mask == "random":
        set_seed(args.seed, device_specific=True)  # each rank hides rectangles of its own
    settings, state = describe(args, run), TrainingState()
    if args.use_ema:
        run.average = ModelAverage(model, args.ema_decay)
    if run.sharded:  # autocast, and no wrapper
        wrapped = [accelerator.prepare_model(network, evaluation_mode=True) for network in networks]
        run.optimizer = accelerator.prepare(run.optimizer)
    else:
        *wrapped, run.optimizer = accelerator.prepare(*networks, run.optimizer)
    register_hooks(run)
    parts = {"lr_scheduler": run.lr_scheduler, "upkeep": run.upkeep, "state": state, "average": run.average}
    parts["lecam"] = run.adversarial and run.adversarial.lecam
    run.parts = {name: part for name, part in parts.items() if part is not None}
    run.folder.load(run.parts)
    return wrapped[0], wrapped[1] if discriminator is not None else None, state, settings


@contextmanager
def one_sentence(args: argparse.Namespace, *kinds: type[Exception], training: bool = False) -> Iterator[None]:
    """Errors of these kinds end the program with one sentence."""
    try:
        yield
    except kinds as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnreadableImageError):
            # a data loader's worker puts its traceback before the sentence, and the error's name
            sentence = sentence.split("UnreadableImageError: ")[-1] + " --skip_unreadable leaves such images out."
        if training:
            last = latest_checkpoint(args.output_dir)
            sentence = sentence.rstrip(".") + (
                f"; the last whole checkpoint is {last}." if last else "; there is no checkpoint."
            )
        raise SystemExit(f"train_dlgan.py: error: {hide_token([sentence], args.hub_token)[0]}") from None


def main(args: argparse.Namespace) -> None:
    with one_sentence(args, ImportError, OSError, ValueError):
        run = prepare(args)
        model, discriminator, state, settings = set_up(run, args)
        if args.push_to_hub and run.accelerator.is_main_process:
            create_repository(args.output_dir, args.hub_model_id, args.hub_token)
    try:
        with one_sentence(args, OSError, ValueError):
            recorder = Recorder(run, args, settings, state)
        with one_sentence(args, OSError, UnreadableImageError, training=True):
            train(run, args, model, discriminator, state, recorder)
            recorder.finish()
        recorder.judgement.end()
    finally:
        run.folder.release()


def train(
    run: argparse.Namespace,
    args: argparse.Namespace,
    model: torch.nn.Module,
    discriminator: torch.nn.Module | None,
    state: TrainingState,
    recorder: Recorder,
) -> None:
    """All steps; `model` and `discriminator` as they are wrapped for distribution."""
    accelerator, optimizer, upkeep, adversarial = run.accelerator, run.optimizer, run.upkeep, run.adversarial
    window = Window(accelerator.num_processes)
    networks = [network for network in (model, discriminator) if network is not None]
    bits_per_pixel = run.model.bits_per_pixel(args.resolution, args.resolution)
    bar = tqdm(total=run.steps, initial=state.step, desc="Steps", disable=not accelerator.is_local_main_process)
    for batch in training_batches(run, args, state):
        pixel_values = batch["pixel_values"]
        if args.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(*networks):
            output = model(run.degrade(pixel_values)[0])
            loss, parts = training_loss(output, pixel_values, run, state.step)
            accelerator.backward(loss)
            if adversarial is not None and adversarial.active(state.step):
                loss, more = adversarial.discriminator_term(pixel_values, output.sample, discriminator)
                accelerator.backward(loss)
                parts.update(more)
            if accelerator.sync_gradients:
                parts.update(clip_gradients(run, args))
                upkeep.before_step()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        parts["psnr"] = clipped_psnr(output.sample.detach(), pixel_values).mean()
        totals = {"unreadable_images": batch["unreadable"]} if "unreadable" in batch else {}
        window.add(parts, output.code, pixel_values.shape[0], totals)
        if not accelerator.sync_gradients:
            upkeep.observe(output.code, output.latents)
            continue

        upkeep.after_step(output.code, output.latents)
        if run.average is not None:
            run.average.update(run.model)
        if not accelerator.optimizer_step_was_skipped:
            run.lr_scheduler.step()
        state.step += 1
        state.samples_seen += run.batch_size
        bar.update()
        if state.step % args.log_steps == 0 or state.step == run.steps:
            rates = run.lr_scheduler.get_last_lr()
            record = {**window.summary(), "lr": rates[0], "bits_per_pixel": bits_per_pixel}
            if adversarial is not None:
                record["discriminator_lr"] = rates[-1]
            state.unreadable += record.get("unreadable_images", 0)
            recorder.write(record)
            bar.set_postfix({name: record[name] for name in ("loss", "psnr", "perplexity") if name in record})
        with window.paused():
            if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
                recorder.checkpoint()
            if args.validation_steps and state.step % args.validation_steps == 0 and state.step < run.steps:
                recorder.validate()
    bar.close()


if __name__ == "__main__":
    main(parse_args())
