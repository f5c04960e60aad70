r"""Trains an autoencoder with a structured bottleneck on images: the first stage of DL-GAN (LASERS, 2024) and its baselines.

    accelerate launch examples/train_dlgan.py --output_dir dl --max_train_steps 2000
    accelerate launch examples/train_dlgan.py --train_data_dir photos/ --resolution 256 --bottleneck vq --output_dir vq

Each step minimises eq 13: the reconstruction loss of eq 6, η · MSE + (1 − η) · LPIPS, and the bottleneck's own weighted losses.
The dictionary is kept on the sphere and its dead atoms are revived (`DictionaryUpkeep`). Without `--dataset_name` or
`--train_data_dir` the images are random crops of the photographs that scikit-image installs, two of them held out.

The folder `--output_dir` receives the model (`AutoencoderDL.from_pretrained` loads it), its card, `settings.json`,
`training_log.jsonl`, `validation/*.png` and `checkpoint-N/`; each checkpoint holds a loadable model in `autoencoder/` too.
"""

import argparse
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import diffusers_lasers
from diffusers_lasers import AutoencoderDL, PerceptualSimilarity
from diffusers_lasers.training import (
    DictionaryUpkeep,
    ImageDataset,
    ReconstructionLoss,
    StreamSampler,
    TrainingLog,
    TrainingState,
    Window,
    latest_checkpoint,
    load_image_dataset,
    save_checkpoint,
    take_batch,
    verify_checkpoint,
)
from diffusers_lasers.utils.hub import write_model_card


logger = get_logger(__name__)
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

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
        *("log_steps", "checkpoints_total_limit"),
    ),
    0: (
        *("checkpointing_steps", "validation_steps", "lr_warmup_steps", "revive_every", "max_grad_norm", "resize"),
        *("learning_rate", "dictionary_learning_rate", "dataloader_num_workers", "coefficient_bits", "seed"),
    ),
}
# How the presets train: LASERS says nothing of clipping, revival, initialisation or the sphere's tangent.
TRAINING_PRESETS = {
    "paper": {"max_grad_norm": 0.0, "revive_every": 0, "data_initialization": False, "tangent_projection": False},
    "corrected": {"max_grad_norm": 1.0, "revive_every": 100, "data_initialization": True, "tangent_projection": True},
}
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
CROPS_PER_BUNDLED_PHOTO = {"train": 256, "validation": 32}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train an autoencoder with a dictionary, VQ, residual VQ, FSQ or no bottleneck.",
        usage="accelerate launch train_dlgan.py --output_dir FOLDER [flags; --help lists them]",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", help="Data set on the Hub.")
    add("--dataset_config_name", help="Its configuration.")
    add("--train_data_dir", help="Folder of images or parquet files, one such file, or a pattern.")
    add("--image_column", default="image", help="Column with the images.")
    add("--max_train_samples", type=int, help="Take only the first so many images.")
    add("--cache_dir", help="Where `datasets` keeps what it prepares.")
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

    add = parser.add_argument_group("model").add_argument
    add("--preset", choices=list(TRAINING_PRESETS), help="Where the defaults come from. Default: corrected.")
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

    add = parser.add_argument_group("training").add_argument
    add("--train_batch_size", type=int, default=16, help="Images a process and micro-batch.")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--max_train_steps", type=int, help="Optimiser steps; wins over --num_train_epochs.")
    add("--num_train_epochs", type=int, default=100)
    add("--learning_rate", type=float, default=1e-4)
    add("--dictionary_learning_rate", type=float, help="Default: the learning rate.")
    add("--lr_scheduler", choices=SCHEDULES, default="constant")
    add("--lr_warmup_steps", type=int, default=0)
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=0.0, help="Never applied to the dictionary.")
    add("--adam_epsilon", type=float, default=1e-8)
    add("--max_grad_norm", type=float, help="0 does not clip. Default: the preset's, 1 (paper: 0).")
    add("--revive_every", type=int, help="Steps of a window of atom usage; 0: never. Default: 100 (paper: 0).")
    add("--revive_fraction", type=float, default=0.05, help="Largest share of the atoms revived at once.")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: accelerate's configuration.")
    add("--channels_last", action="store_true", help="Memory format of the convolutions.")
    add("--seed", type=int, default=0)

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="dlgan-model")
    add("--logging_dir", default="logs", help="Below --output_dir.")
    add("--report_to", default="tensorboard", help="tensorboard, wandb, comet_ml, all or none.")
    add("--log_steps", type=int, default=50, help="Steps between lines of training_log.jsonl.")
    add("--checkpointing_steps", type=int, default=500, help="0 writes no checkpoints.")
    add("--checkpoints_total_limit", type=int, help="Checkpoints to keep. Default: all.")
    add("--resume_from_checkpoint", help="A checkpoint's path, its name in --output_dir, or `latest`.")
    add("--validation_data_dir", help="Held-out images, like --train_data_dir.")
    add("--validation_split", help="Held-out split of --dataset_name.")
    add("--max_validation_samples", type=int, default=256)
    add("--validation_steps", type=int, default=500, help="0 validates only at the end.")
    add("--num_validation_images", type=int, default=8, help="Images in the pictures.")
    add("--license", help="Licence of the weights, in the Hub's words, for the card. Default: none stated.")
    add("--push_to_hub", action="store_true")
    add("--hub_model_id", help="Default: the name of --output_dir.")
    add("--hub_token")
    args = parser.parse_args(argv)
    sentence = check_args(args)
    if sentence:
        parser.error(sentence)
    return args


def check_args(args: argparse.Namespace) -> str | None:
    """The first thing wrong with the arguments, as a sentence; sets the defaults of --eta and of the preset."""
    for name, value in TRAINING_PRESETS[args.preset or "corrected"].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for least, names in AT_LEAST.items():
        for name in names:
            if getattr(args, name) is not None and getattr(args, name) < least:
                return f"--{name} must be at least {least}, got {getattr(args, name)}."
    if args.dataset_name and args.train_data_dir:
        return "Give --dataset_name or --train_data_dir, not both."
    if args.validation_split and not args.dataset_name:
        return "--validation_split names a split of --dataset_name, which is not given."
    if args.validation_split and args.validation_data_dir:
        return "Give --validation_split or --validation_data_dir, not both."
    if args.perceptual_weights and args.perceptual == "none":
        return "--perceptual_weights needs --perceptual squeeze, alex or vgg."
    if args.eta is None:
        args.eta = 1.0 if args.perceptual == "none" else 0.5
    if not 0 <= args.eta <= 1:
        return f"--eta must lie in [0, 1], got {args.eta}."
    if args.eta < 1 and args.perceptual == "none":
        return f"--eta {args.eta} needs a perceptual network: give --perceptual squeeze, alex or vgg."
    given = sorted({n for names in BOTTLENECK_FLAGS.values() for n in names if getattr(args, n) is not None})
    if args.model_config_name_or_path:
        extra = [name for name in ("preset", "bottleneck", "latent_channels") if getattr(args, name)] + given
        return f"--{extra[0]} cannot be given together with --model_config_name_or_path." if extra else None
    kind = args.bottleneck or "dictionary"
    wrong = [name for name in given if name not in BOTTLENECK_FLAGS[kind]]
    return f"--{wrong[0]} has no meaning for --bottleneck {kind}." if wrong else None


def build_model(args: argparse.Namespace) -> AutoencoderDL:
    """The untrained model that the arguments describe."""
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


def build_data(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset | None]:
    """The training images and the held-out ones; `None` where there are none."""
    shared = {"image_column": args.image_column, "cache_dir": args.cache_dir}
    hub = {"dataset_name": args.dataset_name, "dataset_config_name": args.dataset_config_name}
    bundled = not (args.dataset_name or args.train_data_dir)
    source = load_image_dataset(
        **hub, train_data_dir=args.train_data_dir, max_samples=args.max_train_samples, **shared
    )
    scale = args.resize if args.resize is not None else args.resolution
    dataset = ImageDataset(
        source,
        args.resolution,
        resize=(args.resize if bundled else scale) or None,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        crops_per_image=args.crops_per_image or (CROPS_PER_BUNDLED_PHOTO["train"] if bundled else 1),
        seed=args.seed,
        cache_in_memory=args.cache_in_memory or bundled,
    )
    if args.validation_data_dir or args.validation_split:
        place = {"train_data_dir": args.validation_data_dir} if args.validation_data_dir else hub
        split = args.validation_split or "validation"
        held_out = load_image_dataset(**place, split=split, max_samples=args.max_validation_samples, **shared)
        return dataset, ImageDataset(held_out, args.resolution, resize=scale or None, center_crop=True)
    if bundled:
        crops = CROPS_PER_BUNDLED_PHOTO["validation"]
        photos = load_image_dataset(split="validation")
        return dataset, ImageDataset(
            photos, args.resolution, resize=args.resize or None, crops_per_image=crops, cache_in_memory=True
        )
    return dataset, None


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to resume from; `None` starts from scratch."""
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint == "latest":
        return latest_checkpoint(args.output_dir, report=lambda s: logger.warning(f"{s} Trying the one before."))
    for path in (Path(args.resume_from_checkpoint), Path(args.output_dir) / args.resume_from_checkpoint):
        if path.is_dir():
            wrong = verify_checkpoint(path)
            if wrong:
                raise ValueError(f"--resume_from_checkpoint {args.resume_from_checkpoint!r}: {wrong}")
            return path
    raise ValueError(
        f"--resume_from_checkpoint {args.resume_from_checkpoint!r} is neither a folder nor in --output_dir."
    )


def build_optimizer(model: AutoencoderDL, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam with a group of its own, without weight decay, for the dictionary."""
    dictionary = [parameter for name, parameter in model.named_parameters() if name == "bottleneck.dictionary"]
    others = [parameter for name, parameter in model.named_parameters() if name != "bottleneck.dictionary"]
    groups = [{"params": others}]
    if dictionary:
        rate = args.learning_rate if args.dictionary_learning_rate is None else args.dictionary_learning_rate
        groups.append({"params": dictionary, "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.adam_weight_decay,
    )


@torch.no_grad()
def initialize_from_data(model: AutoencoderDL, dataset: ImageDataset, args: argparse.Namespace) -> None:
    """Initialises the bottleneck with latents of the first images: 16 sites a symbol, at most 8 batches."""
    latents, sites = [], 0
    wanted = 16 * max(model.bottleneck.num_symbols, 1) * model.bottleneck.patch_size**2
    keys = list(StreamSampler(len(dataset), 8 * args.train_batch_size, seed=args.seed))
    for start in range(0, len(keys), args.train_batch_size):
        batch = dataset.__getitems__(keys[start : start + args.train_batch_size])
        latents.append(model.encode(batch["pixel_values"].to(model.device)).latents)
        sites += latents[-1].shape[0] * latents[-1].shape[-2] * latents[-1].shape[-1]
        if sites >= wanted:
            break
    model.bottleneck.initialize(torch.cat(latents), generator=torch.Generator().manual_seed(args.seed))


def training_loss(output, pixel_values: torch.Tensor, criterion: ReconstructionLoss) -> tuple[torch.Tensor, dict]:
    """The autoencoder's loss, eq 13, and its parts (detached) for the log.

    The adversarial term of DL-GAN enters here: λ · g_loss(discriminator(output.sample)), with λ of eq 16 from the gradients of
    `terms.loss` and g_loss at the decoder's last layer. The discriminator's own step (own optimiser, on detached samples)
    belongs right after `optimizer.step()` in `main`.
    """
    terms = criterion(output.sample, pixel_values)
    loss = terms.loss + output.loss
    parts = {"loss": loss, "mse": terms.mse, "commitment": output.commitment_loss, "codebook": output.codebook_loss}
    if terms.perceptual is not None:
        parts["perceptual"] = terms.perceptual
    return loss, {name: value.detach().float() for name, value in parts.items() if value is not None}


def image_psnr(sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the images of the PSNR in dB, range [-1, 1] (peak 2), after clipping the reconstruction."""
    mse = (sample.float().clamp(-1, 1) - target.float()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / mse.clamp_min(1e-10))).mean()


@torch.no_grad()
def validate(
    model: AutoencoderDL, dataset: ImageDataset, args: argparse.Namespace, held_out: bool
) -> tuple[float, Image.Image]:
    """PSNR over the data set (only the pictured images unless held out) and a picture: originals above reconstructions."""
    model.eval()
    count = len(dataset) if held_out else min(len(dataset), args.num_validation_images)
    shown = set(np.linspace(0, count - 1, min(count, args.num_validation_images)).astype(int).tolist())
    total, columns = 0.0, []
    for start in range(0, count, args.train_batch_size):
        indices = range(start, min(start + args.train_batch_size, count))
        images = dataset.__getitems__(indices)["pixel_values"].to(model.device)
        sample = model(images).sample
        total += image_psnr(sample, images).item() * len(indices)
        columns += [torch.cat([images[i - start], sample[i - start].float()], dim=1) for i in indices if i in shown]
    model.train()
    pixels = torch.cat(columns, dim=2).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return total / count, Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def describe(
    args: argparse.Namespace, model: AutoencoderDL, dataset: ImageDataset, run: argparse.Namespace
) -> dict[str, Any]:
    """What `settings.json` records: everything that a repetition needs, but no secret."""
    kept = {name: value for name, value in vars(args).items() if name != "hub_token"}
    side = args.resolution
    return {
        "command": "accelerate launch " + shlex.join(hide_token(sys.argv)),
        "arguments": kept,
        "data": args.dataset_name or args.train_data_dir or "photographs bundled with scikit-image",
        "images": len(dataset.source),
        "samples_per_epoch": len(dataset),
        "total_batch_size": run.batch_size,
        "processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "steps": run.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bits_per_pixel": model.bits_per_pixel(side, side),
        "model": dict(model.config),
        "versions": {
            "diffusers_lasers": diffusers_lasers.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
            "torch": torch.__version__,
        },
    }


def hide_token(argv: list[str]) -> list[str]:
    """The command line without the value of --hub_token."""
    hidden, skip = [], False
    for word in argv:
        hidden.append("***" if skip else "--hub_token=***" if word.startswith("--hub_token=") else word)
        skip = word == "--hub_token"
    return hidden


def card_sections(settings: dict, results: dict) -> dict[str, str]:
    """The model card's account of the training."""
    lines = [
        f"- Data: {settings['data']} ({settings['images']} images, crops of {settings['arguments']['resolution']} pixels)",
        f"- Steps: {results['step']} of {settings['total_batch_size']} images",
        f"- Rate: {settings['bits_per_pixel']:.4g} bits per pixel (nominal, at the training resolution)",
    ]
    if "validation_psnr" in results:
        lines.append(f"- PSNR on {results['validation_images']} held-out crops: {results['validation_psnr']:.2f} dB")
    command = f"```bash\n{settings['command']}\n```"
    return {"Training": "\n".join([*lines, "", command]), "Settings": "See `settings.json` and `training_log.jsonl`."}


def plain(accelerator: Accelerator, model: torch.nn.Module) -> AutoencoderDL:
    """The model without the wrappers of distribution and compilation."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def register_hooks(accelerator: Accelerator) -> None:
    """Checkpoints hold the weights once, as a model folder `autoencoder/`."""

    def save_model_hook(models, weights, output_dir):
        if accelerator.is_main_process:
            for model in models:
                plain(accelerator, model).save_pretrained(os.path.join(output_dir, "autoencoder"))
        weights.clear()

    def load_model_hook(models, input_dir):
        while models:
            saved = AutoencoderDL.from_pretrained(input_dir, subfolder="autoencoder")
            plain(accelerator, models.pop()).load_state_dict(saved.state_dict())

    accelerator.register_save_state_pre_hook(save_model_hook)
    accelerator.register_load_state_pre_hook(load_model_hook)


def build_loader(run: argparse.Namespace, args: argparse.Namespace, state: TrainingState) -> DataLoader:
    """The batches of the remaining steps, shared out over the processes; a resumed run goes on where it stopped."""
    end = state.samples_seen + max(0, run.steps - state.step) * run.batch_size
    loader = DataLoader(
        run.dataset,
        batch_size=args.train_batch_size,
        sampler=StreamSampler(len(run.dataset), end, start=state.samples_seen, seed=args.seed),
        collate_fn=take_batch,
        num_workers=args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that a resumed run draws the same global random numbers
    )
    return run.accelerator.prepare_data_loader(loader)


def checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int) -> None:
    """Writes a checkpoint; ends the run with one sentence where that fails, as on a full disk."""
    try:
        save_checkpoint(
            args.output_dir,
            step,
            accelerator.save_state,
            total_limit=args.checkpoints_total_limit,
            is_main_process=accelerator.is_main_process,
            wait=accelerator.wait_for_everyone,
        )
    except OSError as error:
        last = latest_checkpoint(args.output_dir)
        kept = f"the last whole checkpoint is {last}" if last else "there is no checkpoint before it"
        raise SystemExit(f"train_dlgan.py: error: {error}; {kept}.") from error


def push(args: argparse.Namespace, output_dir: Path) -> None:
    """Uploads the model folder, without its checkpoints."""
    from huggingface_hub import HfApi

    api = HfApi(token=args.hub_token)
    repository = api.create_repo(args.hub_model_id or output_dir.resolve().name, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository,
        folder_path=output_dir,
        commit_message="End of training",
        ignore_patterns=["checkpoint-*", f"{args.logging_dir}/*"],
    )


class Recorder:
    """Writes what happens to `--output_dir` and the trackers, on the main process."""

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace, settings: dict, state: TrainingState):
        self.accelerator, self.args, self.settings, self.state = accelerator, args, settings, state
        self.folder, self.results = Path(args.output_dir), {}
        if accelerator.is_main_process:
            (self.folder / "validation").mkdir(parents=True, exist_ok=True)
            text = json.dumps(settings, indent=2, default=str)
            (self.folder / "settings.json").write_text(text + "\n", encoding="utf-8")
            self.log = TrainingLog(self.folder / "training_log.jsonl", resume_step=state.step)
            plain = {k: v for k, v in settings["arguments"].items() if isinstance(v, (int, float, str, bool))}
            accelerator.init_trackers("train_dlgan", config=plain)

    def write(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.state.step, **record})
        self.accelerator.log(record, step=self.state.step)

    def validate(self, model: AutoencoderDL, dataset: ImageDataset, held_out: ImageDataset | None) -> None:
        if self.accelerator.is_main_process:
            unwrapped = plain(self.accelerator, model)
            psnr, picture = validate(unwrapped, held_out or dataset, self.args, held_out is not None)
            picture.save(self.folder / "validation" / f"step-{self.state.step:07d}.png")
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                if tracker.name in ("tensorboard", "wandb"):
                    tracker.log_images({"validation": np.asarray(picture)[None]}, step=self.state.step, **layout)
            if held_out is not None:
                self.results = {"validation_psnr": psnr, "validation_images": len(held_out)}
                self.write({"validation_psnr": round(psnr, 4)})
        self.accelerator.wait_for_everyone()

    def finish(self, model: AutoencoderDL) -> None:
        if self.accelerator.is_main_process:
            unwrapped = plain(self.accelerator, model).eval()
            unwrapped.save_pretrained(str(self.folder))
            sections = card_sections(self.settings, {"step": self.state.step, **self.results})
            write_model_card(self.folder, type(unwrapped).__name__, license=self.args.license, sections=sections)
            if self.args.push_to_hub:
                push(self.args, self.folder)
        self.accelerator.end_training()


def prepare(args: argparse.Namespace) -> argparse.Namespace:
    """The parts of a run. Everything that can be wrong with the arguments fails here, before anything is written."""
    run = argparse.Namespace()
    run.accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(
            args.output_dir, logging_dir=os.path.join(args.output_dir, args.logging_dir)
        ),
    )
    if run.accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"This script trains in one process or data-parallel, got {run.accelerator.distributed_type.value}: the upkeep of "
            "the dictionary needs it whole."
        )
    set_seed(args.seed)
    run.checkpoint = find_checkpoint(args)
    if run.checkpoint is None and args.resume_from_checkpoint:
        logger.warning(f"There is no checkpoint in {args.output_dir}: starting from scratch.")
    run.model = build_model(args)
    perceptual = None
    if args.perceptual != "none":
        perceptual = PerceptualSimilarity.from_weights(args.perceptual, args.perceptual_weights)
    run.criterion = ReconstructionLoss(args.eta, perceptual).to(run.accelerator.device)
    run.optimizer = build_optimizer(run.model, args)
    run.upkeep = DictionaryUpkeep(
        run.model.bottleneck,
        run.optimizer,
        args.revive_every,
        args.revive_fraction,
        tangent_projection=args.tangent_projection,
        seed=args.seed,
    )
    with run.accelerator.main_process_first():  # it prepares what `datasets` keeps, the others read that
        run.dataset, run.held_out = build_data(args)
    run.batch_size = args.train_batch_size * run.accelerator.num_processes * args.gradient_accumulation_steps
    run.steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(run.dataset) / run.batch_size)
    run.lr_scheduler = get_scheduler(
        args.lr_scheduler, run.optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=run.steps
    )
    return run


def main(args: argparse.Namespace) -> None:
    try:
        run = prepare(args)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"train_dlgan.py: error: {error}") from None
    accelerator, dataset, held_out, steps, upkeep = run.accelerator, run.dataset, run.held_out, run.steps, run.upkeep
    model, optimizer, lr_scheduler = run.model, run.optimizer, run.lr_scheduler

    model.to(accelerator.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if run.checkpoint is None and args.data_initialization:
        initialize_from_data(model, dataset, args)
    settings = describe(args, model, dataset, run)
    state, window = TrainingState(), Window(accelerator.num_processes)
    model.train()
    model, optimizer = accelerator.prepare(model, optimizer)
    register_hooks(accelerator)
    accelerator.register_for_checkpointing(lr_scheduler, upkeep, state)
    if run.checkpoint is not None:
        accelerator.load_state(str(run.checkpoint))
    recorder = Recorder(accelerator, args, settings, state)
    bar = tqdm(total=steps, initial=state.step, desc="Steps", disable=not accelerator.is_local_main_process)

    for batch in build_loader(run, args, state):
        pixel_values = batch["pixel_values"]
        if args.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(model):
            output = model(pixel_values)
            loss, parts = training_loss(output, pixel_values, run.criterion)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                if args.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                upkeep.before_step()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        parts["psnr"] = image_psnr(output.sample.detach(), pixel_values)
        window.add(parts, output.code, pixel_values.shape[0])
        if not accelerator.sync_gradients:
            upkeep.observe(output.code)
            continue

        upkeep.after_step(output.code, output.latents)
        if not accelerator.optimizer_step_was_skipped:
            lr_scheduler.step()
        state.step += 1
        state.samples_seen += run.batch_size
        bar.update()
        if state.step % args.log_steps == 0 or state.step == steps:
            record = {**window.summary(), "lr": lr_scheduler.get_last_lr()[0]}
            recorder.write(record)
            bar.set_postfix({name: record[name] for name in ("loss", "psnr", "perplexity") if name in record})
        with window.paused():
            if args.validation_steps and state.step % args.validation_steps == 0 and state.step < steps:
                recorder.validate(model, dataset, held_out)
            if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
                checkpoint(accelerator, args, state.step)
    bar.close()
    recorder.validate(model, dataset, held_out)
    recorder.finish(model)


if __name__ == "__main__":
    main(parse_args())
