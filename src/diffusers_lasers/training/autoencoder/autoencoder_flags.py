"""The flags of a DL-GAN (LASERS, 2024) and its baselines: task, model, reconstruction loss, adversarial terms.

Which arguments a bottleneck has, its class says: a new bottleneck needs no new flag.
"""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from ...models.autoencoders.autoencoder_dl import BOTTLENECKS
from ...models.patch_discriminator import PatchDiscriminator
from ...utils.command_line import check_at_least
from ..run.config_flags import add_config_flag, add_replaced_flags, check_config
from ..run.run_flags import LEARNING_RATE_SCHEDULES, check_share


REPLACED = {
    "num_atoms": "--bottleneck_config num_atoms=VALUE (vq and residual_vq: num_codewords=VALUE)",
    "fsq_levels": "--bottleneck_config levels=VALUE",
    "coefficient_bits": "--bottleneck_config coefficient_bits=VALUE (null: floats)",
    **{
        name: f"--bottleneck_config {name}=VALUE"
        for name in ("sparsity", "depth", "patch_size", "pursuit", "gradient", "coefficient_scaling")
    },
    "discriminator_channels": "--discriminator_config base_channels=VALUE",
    "discriminator_layers": "--discriminator_config num_layers=VALUE",
    "discriminator_norm": "--discriminator_config norm_type=VALUE",
}


def add_model_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of [`AutoencoderDL`], and those that they replace, which end the program with a sentence."""
    add = parser.add_argument
    add("--pretrained_model_name_or_path", help="An AutoencoderDL to start from, instead of the other flags here.")
    add("--model_config_name_or_path", help="A config of AutoencoderDL, instead of the other flags of this group.")
    add("--bottleneck", choices=list(BOTTLENECKS), help="Default: dictionary.")
    add_config_flag(
        parser,
        "bottleneck_config",
        "Arguments of the bottleneck's class. dictionary: num_atoms=512 sparsity=5 coefficient_bits=8; vq: "
        "num_codewords=512; residual_vq: num_codewords=512 depth=5; fsq: levels=7 or levels=[8,8,5]; scalar: bits=8; "
        "external: quantizer=lfq.",
    )
    add("--latent_channels", type=int, help="Channels of the latents. Default: 16.")
    widths = "Widths of the networks, fine to coarse: 128 128 is f = 8. Default: 128, f = 4 (paper: 64 128 128)."
    add("--block_out_channels", type=int, nargs="+", help=widths)
    add("--rate_weight", type=float, help="λ: loss of one bit a latent value, in --bottleneck_config. Default: 0.")
    add_replaced_flags(parser, REPLACED)


def add_task_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of [`Degradation`]: what the autoencoder is given in place of an image."""
    add = parser.add_argument
    add("--task", choices=["reconstruction", "super_resolution", "inpainting"], default="reconstruction")
    add("--scale", type=int, default=4, help="Factor of super-resolution.")
    add("--mask", choices=["center", "random"], default="center", help="What inpainting hides.")
    add("--mask_fraction", type=float, default=0.25, help="Side of the central mask, as a share of the image's.")


def add_reconstruction_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of [`ReconstructionLoss`]."""
    add = parser.add_argument
    add("--eta", type=float, help="Weight of MSE, 1 - ETA of LPIPS. Default: 0.5 with --perceptual, else 1.")
    add("--perceptual", choices=["squeeze", "alex", "vgg", "none"], default="none", help="Network of LPIPS.")
    add("--perceptual_weights", help="Folder with its weights. Default: torchvision's, which are downloaded.")


def add_adversarial_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of [`AdversarialObjective`] and of the discriminator, its learning rate included."""
    add = parser.add_argument
    add("--adversarial_loss", choices=["hinge", "vanilla", "none"], default="none", help="Adds a discriminator.")
    add("--adversarial_weight", type=float, help="Factor on the adaptive weight. Default: 0.1 (paper: 1).")
    add("--no_adaptive_weight", action="store_true", help="Use 1 instead of the adaptive weight of eq 16.")
    add("--discriminator_start", type=int, help="Steps before it learns. Default: half of them (paper: 10/11).")
    add("--discriminator_warmup_steps", type=int, help="Steps until it counts in full. Default: a tenth (paper: 0).")
    add("--discriminator_learning_rate", type=float, help="Default: 1e-3 (paper: the learning rate).")
    add("--discriminator_lr_scheduler", choices=LEARNING_RATE_SCHEDULES, default="constant", help="From its start on.")
    add("--discriminator_lr_warmup_steps", type=int, default=0)
    add("--discriminator_adam_beta1", type=float, help="Default: 0.5 (paper: 0.9).")
    add("--discriminator_adam_beta2", type=float, help="Default: 0.9 (paper: 0.999).")
    add_config_flag(
        parser,
        "discriminator_config",
        "Arguments of PatchDiscriminator: base_channels=64 num_layers=3 norm_type=group (paper: norm_type=batch).",
    )
    add("--discriminator_config_name_or_path", help="A config of PatchDiscriminator, instead of the flag above.")
    add("--lecam_weight", type=float, default=0.0, help="Weight of LeCam regularisation; 0: none.")


def check_autoencoder_flags(args: argparse.Namespace) -> None:
    """Checks that the flags of this module are in their ranges and do not contradict each other."""
    check_at_least(args, 1, "scale")
    if args.task == "super_resolution" and args.resolution % args.scale:
        raise ValueError(f"--scale must divide --resolution {args.resolution}, got {args.scale}.")
    if not 0 < args.mask_fraction <= 1:
        raise ValueError(f"--mask_fraction must lie in (0, 1], got {args.mask_fraction}.")
    if args.perceptual_weights and args.perceptual == "none":
        raise ValueError("--perceptual_weights needs --perceptual squeeze, alex or vgg.")
    if not 0 <= args.eta <= 1:
        raise ValueError(f"--eta must lie in [0, 1], got {args.eta}.")
    if args.eta < 1 and args.perceptual == "none":
        raise ValueError(f"--eta {args.eta} needs a perceptual network: give --perceptual squeeze, alex or vgg.")
    own = [f"discriminator_{word}" for word in ("learning_rate", "start", "warmup_steps")]
    check_at_least(args, 0, *own, "discriminator_lr_warmup_steps", "adversarial_weight", "lecam_weight")
    check_share(args, "discriminator_adam_beta1", "discriminator_adam_beta2")
    if args.adversarial_loss == "none":
        for name in (*own, "discriminator_config", "discriminator_config_name_or_path", "lecam_weight"):
            if getattr(args, name):
                raise ValueError(f"--{name} needs --adversarial_loss hinge or vanilla.")
    described = ("preset", "bottleneck", "latent_channels", "block_out_channels", "bottleneck_config", "rate_weight")
    for name, others in (
        ("pretrained_model_name_or_path", ("model_config_name_or_path", *described)),
        ("model_config_name_or_path", described),
        ("discriminator_config_name_or_path", ("discriminator_config",)),
    ):
        for other in others:
            if getattr(args, name) and getattr(args, other) is not None:
                raise ValueError(f"--{other} cannot be given together with --{name}.")
    kind = args.bottleneck or "dictionary"
    check_config("--bottleneck_config", args.bottleneck_config, BOTTLENECKS[kind], f" of --bottleneck {kind}")
    if args.rate_weight is not None:
        rated = [name for name, made in BOTTLENECKS.items() if "rate_weight" in inspect.signature(made).parameters]
        if kind not in rated:
            raise ValueError(f"--rate_weight needs --bottleneck {', '.join(rated)}, got {kind}.")
        if "rate_weight" in (args.bottleneck_config or {}):
            raise ValueError("--rate_weight cannot be given together with --bottleneck_config rate_weight.")
    check_config("--discriminator_config", args.discriminator_config, PatchDiscriminator)
