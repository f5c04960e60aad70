"""The networks that the flags of an autoencoder describe, and the optimiser of both."""

from __future__ import annotations

import argparse
import logging
import math
import os

import torch

from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...models.patch_discriminator import PatchDiscriminator
from ..run.optimizers import adam_optimizer, scaled_learning_rate


_logger = logging.getLogger(__name__)


def build_model(args: argparse.Namespace) -> AutoencoderDL:
    """The model that the arguments describe, untrained unless they name a trained one."""
    place = args.pretrained_model_name_or_path
    if place:  # a model, or a checkpoint
        subfolder = "autoencoder" if os.path.isdir(os.path.join(place, "autoencoder")) else None
        return AutoencoderDL.from_pretrained(place, subfolder=subfolder)
    if args.model_config_name_or_path:
        return AutoencoderDL.from_config(AutoencoderDL.load_config(args.model_config_name_or_path))
    kind, channels, config = args.bottleneck or "dictionary", args.latent_channels or 16, args.bottleneck_config or {}
    if kind == "fsq" and isinstance(config.get("levels", 7), int):  # one number for all channels
        config = {**config, "levels": [config.get("levels", 7)] * channels}
    widths = {} if args.block_out_channels is None else {"block_out_channels": tuple(args.block_out_channels)}
    if args.rate_weight is not None:
        config = {**config, "rate_weight": args.rate_weight}
    return AutoencoderDL.from_preset(
        args.preset or "corrected",
        **widths,
        latent_channels=channels,
        bottleneck_type=kind,
        bottleneck_config=config,
        sample_size=args.resolution,
    )


def build_discriminator(args: argparse.Namespace, norm_type: str = "group") -> PatchDiscriminator | None:
    """The discriminator, untrained unless it comes with a trained model and no other is described."""
    if args.adversarial_loss == "none":
        return None
    place, file = args.pretrained_model_name_or_path, args.discriminator_config_name_or_path
    discriminator = None
    if place and not (file or args.discriminator_config):
        try:
            discriminator = PatchDiscriminator.from_pretrained(place, subfolder="discriminator")
        except OSError:
            _logger.info(f"{place} has no discriminator: it begins anew.")
    if discriminator is None and file:
        discriminator = PatchDiscriminator.from_config(PatchDiscriminator.load_config(file))
    elif discriminator is None:
        config = {"norm_type": norm_type, **(args.discriminator_config or {})}
        channels = config.get("base_channels", 64)
        if isinstance(channels, int):
            config.setdefault("norm_num_groups", math.gcd(32, channels))
        discriminator = PatchDiscriminator(**config)
    if args.resolution < discriminator.smallest_size:
        raise ValueError(
            f"--resolution must be at least {discriminator.smallest_size} for a discriminator of "
            f"{discriminator.config.num_layers} layers, got {args.resolution}."
        )
    return discriminator


def autoencoder_optimizer(
    model: AutoencoderDL, discriminator: PatchDiscriminator | None, args: argparse.Namespace, num_processes: int
) -> torch.optim.Optimizer:
    """
    Adam with groups of their own for the dictionary, without weight decay, and last for the discriminator.

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
        own = {"lr": rate(args.discriminator_learning_rate), "betas": betas}
        groups.append({"params": list(discriminator.parameters()), **own})
    return adam_optimizer(groups, args, rate(), full_precision=dictionary)
