r"""Trains a small denoiser on cached and on raw latents, with the same seeds: does a cache change what it learns?

    python benchmarks/train_on_cached_latents.py --taef2 weights/ --train_data_dir photos/train \
        --validation_data_dir photos/test --output_dir outputs/cached

The latents of the training images are coded at each signal-to-noise ratio as `diffusers-lasers cache` does it, and
decoded. A UNet learns flow matching on each, and is judged by the loss on raw latents of held-out images, with fixed
noise and times. Runs of one seed have the same weights at the start and see the same images, noise and times in the
same order. The spread is that of the seeds. OUTPUT_DIR gets results.json and results.md, as the runs end.
"""

import itertools
import statistics
from pathlib import Path

import torch
from diffusers import AutoModel, UNet2DModel
from tqdm.auto import tqdm

from diffusers_lasers.commands.taef2 import load_taef2
from diffusers_lasers.training import ImageDataset, load_image_dataset
from diffusers_lasers.training.dictionaries.retrofit import collect_latents
from diffusers_lasers.training.latent_cache.latent_code import fit_latent_code, signal_to_noise
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json, write_text
from diffusers_lasers.utils.tables import figure_table


RAW = "raw"
COLUMNS = [
    ("snr", "SNR dB", "{:.1f}"),
    ("bits", "bits a latent element", "{:.2f}"),
    ("loss", "held-out loss", "{:.4f}"),
    ("spread", "spread of seeds", "{:.4f}"),
    ("difference", "less raw, same seed", "{:+.4f}"),
]


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", help="Folder (or Hub name) of an autoencoder of diffusers, or of a pipeline.")
    add("--subfolder", help="Folder of the autoencoder in a pipeline, e.g. vae.")
    add("--taef2", help="Folder of taef2_encoder.safetensors and taef2_decoder.safetensors, instead of --autoencoder.")
    add("--train_data_dir", required=True, help="Folder of images (recursive), parquet, or pattern.")
    add("--validation_data_dir", required=True, help="Held-out images.")
    add("--resolution", type=int, default=128, help="Side of the square crops.")
    add("--target_snr", type=float, nargs="+", default=[20.0, 30.0, 40.0], help="Ratios of the caches, in dB.")
    add("--max_train_steps", type=int, default=400)
    add("--train_batch_size", type=int, default=32)
    add("--seeds", type=int, default=3, help="Runs of each, with seeds 0, 1, …")
    add("--output_dir", type=Path, default=Path("outputs/cached"))
    parser.check(check_at_least, 1, "resolution", "max_train_steps", "train_batch_size")
    parser.check(check_at_least, 2, "seeds")
    args = parser.parse_args(input_args)
    if bool(args.autoencoder) == bool(args.taef2):
        parser.error("give --autoencoder or --taef2")
    return args


def read_latents(autoencoder, folder, split, resolution):
    """Latents of whole images, scaled to their centre crop, `(N, L, h, w)`."""
    images = load_image_dataset(train_data_dir=folder, split=split)
    return torch.cat(collect_latents(autoencoder, ImageDataset(images, resolution, resolution, center_crop=True)))


def build_denoiser(latents, seed):
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=latents.shape[-1],
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def flow_loss(denoiser, latents, generator):
    """Flow matching: the squared error of the velocity at a random time on the line to noise."""
    noise = torch.randn(latents.shape, generator=generator)
    time = torch.rand(len(latents), 1, 1, 1, generator=generator)
    velocity = denoiser((1 - time) * latents + time * noise, 1000 * time.flatten()).sample
    return (velocity - (noise - latents)).square().mean()


@torch.no_grad()
def judge(denoiser, latents):
    denoiser.eval()
    losses = [
        float(flow_loss(denoiser, part, torch.Generator().manual_seed(7 + number)))
        for number, part in itertools.product(range(4), latents.split(64))
    ]
    return statistics.fmean(losses)


def train(latents, held_out, args, seed):
    """Held-out loss after training on some latents."""
    denoiser, generator = build_denoiser(latents, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_train_steps)
    for _ in range(args.max_train_steps):
        rows = torch.randint(len(latents), (args.train_batch_size,), generator=generator)
        optimizer.zero_grad()
        flow_loss(denoiser, latents[rows], generator).backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return judge(denoiser, held_out)


def main(args):
    autoencoder = (
        load_taef2(args.taef2)
        if args.taef2
        else AutoModel.from_pretrained(args.autoencoder, subfolder=args.subfolder or "")
    )
    train_latents = read_latents(autoencoder, args.train_data_dir, "train", args.resolution)
    held_out = read_latents(autoencoder, args.validation_data_dir, "validation", args.resolution)
    mean, deviation = train_latents.mean(dim=(0, 2, 3), keepdim=True), train_latents.std()
    sources, rows = {RAW: (train_latents, {"snr": None, "bits": 16.0})}, {}
    for ratio in args.target_snr:
        code = fit_latent_code(train_latents.split(1), target_snr=ratio)
        data, decoded = code.encode(train_latents)
        bits = 8 * sum(map(len, data)) / train_latents.numel()
        sources[f"cache, {ratio:g} dB"] = decoded, {"snr": signal_to_noise(code, train_latents.split(1)), "bits": bits}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    losses = {name: [] for name in sources}
    for seed, name in tqdm(list(itertools.product(range(args.seeds), sources)), desc="Trainings"):
        coded, facts = sources[name]
        losses[name].append(train((coded - mean) / deviation, (held_out - mean) / deviation, args, seed))
        differences = [own - raw for own, raw in zip(losses[name], losses[RAW])]
        rows[name] = facts | {"loss": statistics.fmean(losses[name]), "losses": losses[name]}
        rows[name]["spread"] = statistics.stdev(losses[name]) if seed else None
        rows[name]["difference"] = None if name == RAW else statistics.fmean(differences)
        write_json(args.output_dir / "results.json", {"settings": settings, "rows": rows})
    text = figure_table("latents", COLUMNS, rows.items())
    text += f"\n\n{len(train_latents)} training and {len(held_out)} held-out images, {args.seeds} seeds.\n"
    write_text(args.output_dir / "results.md", text)
    print(text)


if __name__ == "__main__":
    main(parse_args())
