"""How well an autoencoder in training reconstructs: metrics over held-out images, and a picture."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from PIL import Image

from ...functional.images.psnr import image_psnr
from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...utils.seeding import seeded_generator
from ...visualization import image_grid
from ..data.degraded_inputs import Degradation
from ..data.image_dataset import ImageDataset
from ..run.records import Window
from ..run.shared_validation import shared_means


def clipped_psnr(sample: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """PSNR of each image after clipping; at most 100 dB, so that one without error leaves a mean finite."""
    return image_psnr(sample.float().clamp(-1, 1), target, mask).clamp_max(100.0)


@torch.no_grad()
def held_out_figures(
    model: AutoencoderDL,
    accelerator: Accelerator,
    held_out: ImageDataset,
    batch_size: int,
    degrade: Degradation,
    perceptual: torch.nn.Module | None = None,
) -> dict[str, float]:
    """
    Figures over held-out images, which the processes share: PSNR; with masks also inside them; with a network LPIPS;
    the rate in bits a pixel where the bottleneck has one; and, if each process had a code, perplexity and unused
    symbols. All processes have to call it.
    """
    window, rated = Window(accelerator.num_processes), model.bottleneck.has_rate

    def sums(indices: range) -> dict[str, torch.Tensor]:
        images = held_out.take(indices).to(accelerator.device)
        inputs, mask = degrade(images, seeded_generator(indices.start))
        with accelerator.autocast():
            output = model(inputs)
        window.add({}, output.code, len(indices))
        found = {"psnr": clipped_psnr(output.sample, images)}
        if mask is not None:
            found["masked_psnr"] = clipped_psnr(output.sample, images, mask)
        if perceptual is not None:
            found["lpips"] = perceptual(output.sample.float().clamp(-1, 1), images).distances
        if rated:
            found["rate"] = output.rate.expand(len(indices))
        return {name: values.double().sum() for name, values in found.items()}

    names = (
        ["psnr"]
        + ["masked_psnr"] * (degrade.task == "inpainting")
        + ["lpips"] * (perceptual is not None)
        + ["rate"] * rated
    )
    figures = shared_means(accelerator, len(held_out), batch_size, sums, names)
    if len(held_out) > batch_size * (accelerator.num_processes - 1):  # each process has a code
        usage = window.summary()
        figures.update({name: usage[name] for name in ("perplexity", "dead_atoms") if name in usage})
    return {f"validation_{name}": value for name, value in figures.items()}


@torch.no_grad()
def reconstruction_picture(
    model: AutoencoderDL, accelerator: Accelerator, images: torch.Tensor, degrade: Degradation
) -> Image.Image:
    """A picture: originals, with a task what the encoder is given, and reconstructions, one above the other."""
    images = images.to(accelerator.device)
    inputs, _ = degrade(images, seeded_generator(0))
    given = [] if degrade.task == "reconstruction" else [inputs]
    with accelerator.autocast():
        sample = model(inputs).sample
    return image_grid([("", row) for row in (images, *given, sample)], cell=1, margin=0)
