r"""Trains an autoencoder with a structured bottleneck: DL-VAE and DL-GAN (LASERS, 2024), VQ-VAE, VQ-GAN, others.

    accelerate launch examples/train_dlgan.py --output_dir dl --max_train_steps 2000
    accelerate launch examples/train_dlgan.py --train_data_dir photos/ --resolution 256 --bottleneck vq \
        --bottleneck_config num_codewords=1024 --adversarial_loss hinge --output_dir vqgan

Each step minimises eq 13: the reconstruction loss of eq 6, η · MSE + (1 − η) · LPIPS, and the bottleneck's own losses.
With `--adversarial_loss` the generator's loss of eq 15 joins it, with the adaptive weight of eq 16, and a PatchGAN
discriminator learns from `--discriminator_start` on. With `--task super_resolution` or `inpainting` the encoder is
given degraded images, and all losses look at the clean ones (sections 12.1 and 12.2).

`--output_dir` receives the model (`AutoencoderDL.from_pretrained` loads it), the discriminator in `discriminator/`, a
card, `settings.json`, `training_log.jsonl`, pictures in `validation/` and `checkpoint-N/` to resume from; with a task
also a `DLRestorationPipeline` in `pipeline/`, and the prior of its codes in `prior/`. The model is saved before it is
judged.
"""

import argparse
import math
import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn

from diffusers_lasers import DLRestorationPipeline, PerceptualSimilarity
from diffusers_lasers.models.autoencoders import AutoencoderDLOutput
from diffusers_lasers.training import Degradation, DictionaryUpkeep, FullySharded, ModelAverage, ReconstructionLoss
from diffusers_lasers.training.autoencoder import (
    autoencoder_flags,
    card,
    code_prior,
    networks_from_flags,
    reconstruction_figures,
)
from diffusers_lasers.training.data import image_flags
from diffusers_lasers.training.data.training_images import TrainingImages
from diffusers_lasers.training.dictionaries.block_coordinate import BlockCoordinateUpdate
from diffusers_lasers.training.objectives.adversarial import AdversarialObjective, LeCamRegularizer
from diffusers_lasers.training.run import launch, optimizers, run_flags
from diffusers_lasers.training.run.recorder import Recorder
from diffusers_lasers.training.run.run_folder import open_run_folder
from diffusers_lasers.training.run.training_run import TrainingRun
from diffusers_lasers.training.weights.clipping import clip_gradients
from diffusers_lasers.training.weights.sharding import save_optimizer_unsharded
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.hub import create_repository


# How the presets train. LASERS says nothing of clipping, revival, initialisation, the sphere's tangent or averages; its
# discriminator is that of pix2pix, trained in the last 20 of 220 epochs (docs: training guide).
PRESETS = {
    "paper": {
        **{"max_grad_norm": 0.0, "revive_every": 0, "data_initialization": False, "tangent_projection": False},
        **{"bcd_memory": 0, "adversarial_weight": 1.0},
        **{"learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0},
        **{"discriminator_adam_beta1": 0.9, "discriminator_adam_beta2": 0.999},
    },
    "corrected": {
        **{"max_grad_norm": 1.0, "revive_every": 100, "data_initialization": True, "tangent_projection": True},
        **{"bcd_memory": 500, "adversarial_weight": 0.1},
        **{"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 100},
        **{"discriminator_learning_rate": 1e-3, "discriminator_adam_beta1": 0.5, "discriminator_adam_beta2": 0.9},
    },
}
DISCRIMINATOR_NORM = {"paper": "batch", "corrected": "group"}
# Shares of the steps: before the discriminator learns, and until its loss counts in full.
DISCRIMINATOR_STEPS = {"paper": (10 / 11, 0.0), "corrected": (0.5, 0.1)}
INITIAL_PIXELS = 2**22  # of the images that the networks and the bottleneck start from


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description="Train an autoencoder with a dictionary, VQ, residual VQ, FSQ, scalar, external or no bottleneck.",
        usage="accelerate launch train_dlgan.py --output_dir FOLDER [flags; --help lists them]",
    )
    group = parser.add_argument_group("data")
    image_flags.add_data_flags(group, max_validation_samples=256)
    image_flags.add_crop_flags(group)
    autoencoder_flags.add_task_flags(parser.add_argument_group("task"))

    group = parser.add_argument_group("model")
    group.add_argument("--preset", choices=list(PRESETS), help="Where the defaults come from. Default: corrected.")
    autoencoder_flags.add_model_flags(group)
    autoencoder_flags.add_reconstruction_flags(parser.add_argument_group("loss"))
    autoencoder_flags.add_adversarial_flags(parser.add_argument_group("discriminator"))

    group = parser.add_argument_group("training")
    preset = ("max_grad_norm", "learning_rate", "lr_scheduler", "lr_warmup_steps")
    run_flags.add_optimizer_flags(group, **dict.fromkeys(preset))
    run_flags.add_average_flags(group)
    add = group.add_argument
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--num_train_epochs", type=int, default=100, help="Epochs, if --max_train_steps is not given.")
    add("--dictionary_learning_rate", type=float, help="Default: the learning rate.")
    add("--revive_every", type=int, help="Steps between replacing unused atoms. Default: 100 (paper: 0, never).")
    add("--revive_fraction", type=float, default=0.05, help="Largest share of the atoms revived at once.")
    add("--dictionary_update", choices=["gradient", "bcd"], default="gradient", help="bcd: by eqs 23–28.")
    add("--bcd_memory", type=int, help="Steps that bcd remembers; 0: all, as in the paper. Default: 500.")
    add(
        "--no_data_initialization",
        dest="data_initialization",
        action="store_false",
        default=None,
        help="Start networks and bottleneck at random instead of from images, as --preset paper does.",
    )
    add("--gradient_checkpointing", action="store_true", help="Recompute activations; less memory, more time.")
    add("--allow_tf32", action="store_true", help="TF32 on GPUs that have it; sparse coding included.")
    add("--channels_last", action="store_true", help="Memory format of the convolutions.")

    group = parser.add_argument_group("output")
    names = {"output_dir": "dlgan-model", "report_to": "tensorboard", "tracker_project_name": "train_dlgan"}
    run_flags.add_run_flags(group, **names, checkpointing_steps=500)
    add = group.add_argument
    add("--logging_dir", default="logs", help="Trackers' folder, below --output_dir.")
    add("--validation_steps", type=int, default=500, help="0 validates only at the end.")
    add("--num_validation_images", type=int, default=8, help="Images in the pictures.")
    add("--license", help="Licence of the weights, in the Hub's words, for the card. Default: none stated.")
    run_flags.add_hub_flags(group)
    parser.check(set_defaults)
    parser.check(check_args)
    return parser.parse_args(argv)


def set_defaults(args: argparse.Namespace) -> None:
    """Sets what was not given as the preset, or other arguments, say."""
    defaults = dict(PRESETS[args.preset or "corrected"])
    if args.adversarial_loss == "none":
        defaults.pop("discriminator_learning_rate", None)  # given, it would be a mistake
    for name, value in defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.eta is None:
        args.eta = 1.0 if args.perceptual == "none" else 0.5


def check_args(args: argparse.Namespace) -> None:
    """Raises a `ValueError` for the first thing that is wrong with the arguments."""
    run_flags.check_training_flags(args)
    check_at_least(args, 0, "revive_every", "bcd_memory", "dictionary_learning_rate")
    image_flags.check_data_flags(args)
    autoencoder_flags.check_autoencoder_flags(args)
    if args.dictionary_update == "bcd" and args.bottleneck not in (None, "dictionary"):
        raise ValueError(f"--dictionary_update bcd has no meaning for --bottleneck {args.bottleneck}.")


@dataclass(kw_only=True)
class DLGANRun(TrainingRun):
    """A training of this script."""

    args: argparse.Namespace
    images: TrainingImages
    degrade: Degradation
    criterion: ReconstructionLoss
    adversarial: AdversarialObjective | None
    upkeep: DictionaryUpkeep
    wrapped: list[nn.Module]  # the networks as accelerate wraps them


def prepare(args: argparse.Namespace) -> DLGANRun:
    """Data, models, losses and what steps them. What can be wrong fails here, before anything is written."""
    fsdp = launch.launched_fsdp()
    if fsdp is not None:
        os.environ["ACCELERATE_USE_FSDP"] = "false"  # for the Accelerator: this script shards by itself
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, args.logging_dir)),
    )
    if fsdp is not None:
        launch.check_fsdp_flags(args, accelerator.mixed_precision)
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    set_seed(args.seed)
    degrade = Degradation(args.task, args.scale, args.mask, args.mask_fraction)
    batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    folder = open_run_folder(accelerator, args, total_batch_size=batch_size)

    model = networks_from_flags.build_model(args)
    discriminator = networks_from_flags.build_discriminator(args, DISCRIMINATOR_NORM[args.preset or "corrected"])
    networks = {"autoencoder": model, **({} if discriminator is None else {"discriminator": discriminator})}
    bcd = None
    if args.dictionary_update == "bcd":
        if model.config.bottleneck_type != "dictionary":
            raise ValueError("--dictionary_update bcd needs a model with a dictionary.")
        bcd = BlockCoordinateUpdate(model.bottleneck, memory=args.bcd_memory or None)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    for network in networks.values():
        network.to(accelerator.device).train()
        if args.channels_last:
            network.to(memory_format=torch.channels_last)

    named = (args.perceptual, args.perceptual_weights)
    perceptual = None if args.perceptual == "none" else PerceptualSimilarity.from_weights(*named)
    criterion = ReconstructionLoss(args.eta, perceptual).to(accelerator.device)
    images = TrainingImages(args, accelerator)
    if folder.checkpoint is None and args.data_initialization and not args.pretrained_model_name_or_path:
        first = images.first_batches(-(-INITIAL_PIXELS // (args.train_batch_size * args.resolution**2)))
        model.initialize([degrade(batch)[0] for batch in first], torch.Generator().manual_seed(args.seed))
    sharded = {}
    for name, network in networks.items() if fsdp is not None else ():
        # whole: the bottleneck, which the upkeep writes to, and the layer at which λ is taken
        keep = [*model.bottleneck.parameters(), model.last_layer] if network is model else []
        sharded[name] = FullySharded(network, keep, fsdp)
    steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(images.dataset) / batch_size)
    adversarial = delayed = None
    if discriminator is not None:
        names = ("discriminator_start", "discriminator_warmup_steps")
        for name, share in zip(names, DISCRIMINATOR_STEPS[args.preset or "corrected"]):
            if getattr(args, name) is None:
                setattr(args, name, int(share * steps))
        adversarial = AdversarialObjective(
            discriminator,
            args.adversarial_loss,
            args.adversarial_weight,
            adaptive=not args.no_adaptive_weight,
            start=args.discriminator_start,
            warmup=args.discriminator_warmup_steps,
            lecam=LeCamRegularizer() if args.lecam_weight else None,
            lecam_weight=args.lecam_weight,
            structure=sharded["discriminator"].structure if sharded else None,
        )
        own = (args.discriminator_lr_scheduler, args.discriminator_lr_warmup_steps)
        delayed = optimizers.learning_rate_factor(*own, max(1, steps - args.discriminator_start))

    optimizer = networks_from_flags.autoencoder_optimizer(model, discriminator, args, accelerator.num_processes)
    schedule = optimizers.learning_rate_schedule(optimizer, args, steps, delayed, args.discriminator_start or 0)
    if args.task == "inpainting" and args.mask == "random":
        set_seed(args.seed, device_specific=True)  # each rank hides rectangles of its own
    average = ModelAverage(model, args.ema_decay) if args.use_ema else None
    upkeep = DictionaryUpkeep(
        model.bottleneck,
        optimizer,
        args.revive_every,
        args.revive_fraction,
        tangent_projection=args.tangent_projection,
        seed=args.seed,
        block_coordinate=bcd,
        # revived atoms begin anew in the averaged model too
        on_revival=average and (lambda atoms: average.reset_columns("bottleneck.dictionary", atoms, model)),
    )
    if sharded:  # autocast, and no wrapper
        save_optimizer_unsharded(optimizer)
        wrapped = [accelerator.prepare_model(network, evaluation_mode=True) for network in networks.values()]
        optimizer = accelerator.prepare(optimizer)
    else:
        *wrapped, optimizer = accelerator.prepare(*networks.values(), optimizer)
    run = DLGANRun(
        **{"accelerator": accelerator, "folder": folder, "networks": networks, "sharded": sharded},
        **{"optimizer": optimizer, "schedule": schedule, "steps": steps, "batch_size": batch_size},
        **{"average": average, "restored": {"upkeep": upkeep, "lecam": adversarial and adversarial.lecam}},
        **{"args": args, "images": images, "degrade": degrade, "criterion": criterion},
        **{"adversarial": adversarial, "upkeep": upkeep, "wrapped": wrapped},
    )
    run.resume()
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.output_dir, args.hub_model_id, args.hub_token)
    return run


def record(run: DLGANRun) -> Recorder:
    """What is written while it trains."""
    return Recorder(run, run.args, card.autoencoder_settings(run, run.args, run.images))


def training_loss(
    output: AutoencoderDLOutput, pixel_values: torch.Tensor, run: DLGANRun
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The autoencoder's loss, eq 13 or, once the discriminator learns, eq 15, and its parts (detached) for the log."""
    terms = run.criterion(output.sample, pixel_values)
    loss = terms.loss + output.loss
    parts = {"mse": terms.mse, "commitment": output.commitment_loss, "codebook": output.codebook_loss}
    parts["rate"] = output.rate  # bits a pixel; None without running tables or a density
    if terms.perceptual is not None:
        parts["perceptual"] = terms.perceptual
    if run.adversarial is not None and run.adversarial.active(run.state.step):
        with run.accelerator.autocast():
            place = (run.model.last_layer, run.state.step)
            term, adversarial = run.adversarial.generator_term(output.sample, terms.loss, *place)
        loss = loss + term
        parts.update(adversarial)
    parts = {"loss": loss, **parts}
    return loss, {name: value.detach().float() for name, value in parts.items() if value is not None}


def train(run: DLGANRun, recorder: Recorder) -> None:
    """All steps."""
    args, accelerator, adversarial = run.args, run.accelerator, run.adversarial
    model, discriminator = run.wrapped[0], run.wrapped[-1]
    bits_per_pixel = run.model.bits_per_pixel(args.resolution, args.resolution)
    for batch in run.images.batches(run.state.samples_seen, run.end):
        pixel_values = batch["pixel_values"]
        if args.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(*run.wrapped):
            output = model(run.degrade(pixel_values)[0])
            loss, parts = training_loss(output, pixel_values, run)
            accelerator.backward(loss)
            if adversarial is not None and adversarial.active(run.state.step):
                loss, more = adversarial.discriminator_term(pixel_values, output.sample, discriminator)
                accelerator.backward(loss)
                parts.update(more)
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()
                norms = clip_gradients(run.networks, args.max_grad_norm, run.sharded)
                names = {"autoencoder": "gradient_norm", "discriminator": "discriminator_gradient_norm"}
                parts.update({names[name]: norm for name, norm in norms.items()})
                run.upkeep.before_step()
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        parts["psnr"] = reconstruction_figures.clipped_psnr(output.sample.detach(), pixel_values).mean()
        totals = {"unreadable_images": batch["unreadable"]} if "unreadable" in batch else {}
        recorder.add(parts, len(pixel_values), output.code, totals)
        if not accelerator.sync_gradients:
            run.upkeep.observe(output.code, output.latents)
            continue
        run.upkeep.after_step(output.code, output.latents)
        run.after_step()
        rates = run.schedule.get_last_lr()
        figures = {"lr": rates[0], "bits_per_pixel": bits_per_pixel}
        recorder.after_step(**figures, **({"discriminator_lr": rates[-1]} if adversarial is not None else {}))
        if recorder.validation_due(args.validation_steps):
            judge(run, recorder)


def judge(run: DLGANRun, recorder: Recorder) -> tuple[dict[str, float], str]:
    """Figures and a picture of the weights that would be saved now; what fails of them is a warning."""
    args, accelerator, held_out, step = run.args, run.accelerator, run.images.held_out, run.state.step
    figures, picture = {}, ""
    with recorder.validation() as model:
        with recorder.judgement.of(f"the figures of the held-out images after step {step}"):
            if held_out is not None:
                shared = (accelerator, held_out, args.train_batch_size, run.degrade, run.criterion.perceptual)
                found = reconstruction_figures.held_out_figures(model, *shared)
                recorder.write({name: round(value, 4) for name, value in found.items()})
                figures = {**found, "validation_images": len(held_out)}
        with recorder.judgement.of(f"the picture after step {step}"):
            if accelerator.is_main_process:
                images = run.images.some(args.num_validation_images)
                shown = reconstruction_figures.reconstruction_picture(model, accelerator, images, run.degrade)
                picture = recorder.save_picture(shown)
    return figures, picture


def finish(run: DLGANRun, recorder: Recorder) -> None:
    """Saves the model and all that belongs to it, judges what is saved, and uploads it where that is wanted."""
    args, folder, main_process = run.args, run.folder.path, run.accelerator.is_main_process
    with run.saved_weights() as model:
        if main_process:
            model.save_pretrained(folder)
        if main_process and args.task != "reconstruction":
            DLRestorationPipeline(model, task=args.task, scale=args.scale).save_pretrained(folder / "pipeline")
    if "discriminator" in run.networks:
        discriminator = run.unsharded("discriminator")
        if main_process:
            discriminator.save_pretrained(folder / "discriminator")
    card.write_card(run, recorder, {}, "")
    with recorder.validation() as model, recorder.judgement.of("the prior of its codes"):
        images = (run.accelerator, run.images, lambda batch: run.degrade(batch)[0])
        prior = code_prior.fit_code_prior(model, *images)
        if main_process and prior is not None:
            prior.save_pretrained(folder / code_prior.FOLDER)
    figures, picture = judge(run, recorder)
    with recorder.judgement.of("the card"):
        card.write_card(run, recorder, figures, picture)
    recorder.upload(folder, f"{args.logging_dir}/*")


def main(args: argparse.Namespace) -> None:
    launch.carry_out(__file__, args, prepare, record, train, finish)


if __name__ == "__main__":
    main(parse_args())
