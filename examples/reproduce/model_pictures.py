#!/usr/bin/env python
"""Shows what is inside trained autoencoders: LASERS (2024), Figs. 4 to 8 and both perplexities of Table 5.

    python examples/reproduce/model_pictures.py runs/vq runs/dl --data photos/ --resolution 64 --output_dir pictures

For each model there are pictures of the first principal component of its latents before and after the bottleneck, of
its atoms or codewords as tiles and on a map, of their use and of their coherence. One picture has the curves of all
models from their training_log.jsonl.

results.json has PSNR, bits, the error of the latents, and two perplexities. One is exp H of the atoms' share of support
slots over all images. The other is what the paper's tables show according to the authors' release: the mean over sites
of exp H(softmax γ), with γ the K coefficients of a site. It is close to K whatever the code is: softmax of K - S zeros
and S moderate numbers is nearly uniform.
"""

import math
from pathlib import Path

import torch

from diffusers_lasers import AutoencoderDL, SparseCode
from diffusers_lasers.commands.latent_figures import LatentFigures
from diffusers_lasers.commands.loading import load_model
from diffusers_lasers.commands.scripts import add_device_flag, image_batches, run_script
from diffusers_lasers.metrics import PSNR
from diffusers_lasers.training import ImageDataset, TrainingLog, load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json
from diffusers_lasers.visualization import (
    atom_map,
    atom_tiles,
    coherence_histogram,
    component_grid,
    save_figure,
    training_curves,
    usage_histogram,
)


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("models", nargs="+", type=Path, help="Output folders of train_dlgan.py.")
    add("--data", required=True, help="Held-out images: folder, parquet, or pattern.")
    add("--image_column", default="image")
    add("--resolution", type=int, required=True)
    add("--resize", type=int)
    add("--max_images", type=int)
    add("--batch_size", type=int, default=32)
    add("--map", choices=["umap", "pca"], default="umap", help="How atoms are laid out on the map.")
    add("--no_pictures", action="store_true", help="Only results.json.")
    add("--output_dir", type=Path, default=Path("pictures"))
    add_device_flag(parser)
    parser.check(check_at_least, 1, "resolution", "resize", "max_images", "batch_size")
    return parser.parse_args(input_args)


def softmax_perplexity(code: SparseCode) -> torch.Tensor:
    """exp H(softmax γ) of each site, `(sites,)`; γ has the site's S coefficients and K − S zeros."""
    coefficients = code.coefficients.flatten(0, 2).double()  # (N, S)
    zeros = code.num_atoms - code.sparsity
    # log Σ exp over all K, and Σ p γ, of which the zeros are no part
    total = torch.logsumexp(
        torch.cat([coefficients, coefficients.new_full((len(coefficients), 1), math.log(zeros))], 1), 1
    )
    mean = (torch.exp(coefficients - total[:, None]) * coefficients).sum(1)
    return torch.exp(total - mean)


def vectors(bottleneck):
    """Atoms or codewords as columns `(features, K)`, of residual VQ those of the first stage; None for other kinds."""
    if hasattr(bottleneck, "dictionary"):
        return bottleneck.dictionary.detach().float().cpu()
    book = getattr(bottleneck, "codebook", None)
    if book is None:
        return None
    return (book[0] if book.ndim == 3 else book).detach().float().t().cpu()


@torch.no_grad()
def look(model, dataset, args):
    """Figures of one model; the first images with their latents before and after the bottleneck; uses of symbols."""
    psnr, figures = PSNR().to(args.device), LatentFigures(model.bottleneck, args.device)
    softmax, error, count, shown, counts = [], 0.0, 0, None, 0
    for images in image_batches(dataset, args.batch_size, args.device):
        latents = model.encode(images).latents
        code, decoded = figures.update(latents, images.shape[-2:])
        psnr.update(model.decode_from_code(code).sample.float().clamp(-1, 1), images)
        error += float((decoded - latents).double().square().sum())
        count += latents.numel()
        counts = counts + code.usage_counts()
        if code.coefficients is not None:
            softmax.append(softmax_perplexity(code))
        if shown is None:
            shown = tuple(part[:8].float().cpu() for part in (images, latents, decoded))
    computed = figures.compute()
    row = {
        "psnr": float(psnr.compute()),
        "bits_per_pixel": model.bits_per_pixel(args.resolution, args.resolution),
        "latent_mse": error / count,
        "softmax_perplexity": float(torch.cat(softmax).mean()) if softmax else None,
    }
    row |= {key: value for key, value in computed.items() if key not in ("latent_snr_db", "nominal_bits_per_pixel")}
    return row, shown, counts.cpu()


def draw(model, name, images, counts, args):
    """The pictures of one model."""
    images, before, after = images
    save_image(args.output_dir / f"{name}-components.png", component_grid(before, after, images))
    atoms = vectors(model.bottleneck)
    if atoms is None:
        return
    used = counts[0]
    save_image(args.output_dir / f"{name}-atoms.png", atom_tiles(atoms, usage=used))
    save_figure(atom_map(atoms, usage=used, method=args.map), args.output_dir / f"{name}-map.png")
    save_figure(usage_histogram(used, title=name), args.output_dir / f"{name}-usage.png")
    unit = torch.nn.functional.normalize(atoms, dim=0)
    save_figure(coherence_histogram(unit, title=name), args.output_dir / f"{name}-coherence.png")


def main(args):
    check_output_folder(args.output_dir, overwrite=True)
    for path in args.models:
        AutoencoderDL.load_config(path)
    source = load_image_dataset(
        train_data_dir=args.data, split="validation", image_column=args.image_column, max_samples=args.max_images
    )
    check_held_out_images(source)
    dataset = ImageDataset(source, args.resolution, resize=args.resize, center_crop=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows, logs, judgement = [], {}, Judgement(args.output_dir, saved="The results are")
    for path in args.models:
        model = load_model(str(path), device=args.device, supported=("AutoencoderDL",))
        row, images, counts = look(model, dataset, args)
        rows.append({"name": path.name, **row})
        write_json(args.output_dir / "results.json", {"settings": vars(args), "n": len(dataset), "models": rows})
        print(f"{path.name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items() if value is not None))
        if log := TrainingLog.read(path / "training_log.jsonl"):
            logs[path.name] = log
        if not args.no_pictures:
            with judgement.of(f"the pictures of {path.name}"):
                draw(model, path.name, images, counts, args)
    if logs and not args.no_pictures:
        with judgement.of("the curves"):
            save_figure(training_curves(logs), args.output_dir / "curves.png")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
