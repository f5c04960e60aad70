"""`cache`: the latents of images, coded, as a data set for trainings. `cache-export`: its rows as files of other tools.

`accelerate launch -m diffusers_lasers cache …` shares the images out over processes. A run that was stopped goes on
when the same command runs again; images that are unchanged are not encoded again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..utils.command_line import check_at_least
from .loading import add_device_argument, get_device, load_model, load_prior


CODES = ("klt", "int8", "int4", "dictionary", "residual_vq")
EXAMPLE = """example:
  diffusers-lasers cache photos/ --autoencoder stable-diffusion/ --subfolder vae --resolution 512 --output_dir cache
  accelerate launch -m diffusers_lasers cache photos/ --autoencoder vae/ --max_aspect_ratio 2 --output_dir cache
"""


class CacheCommand:
    name = "cache"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "cache", help="write the latents of images as a small data set", description=__doc__, epilog=EXAMPLE
        )
        add = parser.add_argument
        add("images", metavar="IMAGES", help="folder of images or parquet files, one such file, or a pattern")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument(
            "--autoencoder", metavar="FOLDER_OR_REPO", help="an autoencoder of diffusers, or a pipeline"
        )
        which.add_argument("--taef2", metavar="FOLDER", help="folder of TAEF2's two safetensors files")
        add("--subfolder", metavar="NAME", help="folder of the autoencoder in a pipeline, e.g. vae")
        add("--output_dir", required=True, metavar="FOLDER", help="the cache; one that was begun is gone on with")
        add("--target_snr", type=float, metavar="DB", help="ratio of latents to their error; default 30")
        add("--code", choices=CODES, default="klt", help="default klt, which alone reaches --target_snr")
        add("--bottleneck", metavar="FOLDER", help="a fitted bottleneck to code with, in place of --code")
        add("--fast_reading", action="store_true", help="bit fields instead of an entropy coder: larger, read faster")
        add("--deviation", action="store_true", help="also keep the deviation of the latents' distribution")
        add("--fit_images", type=int, default=256, metavar="N", help="images that the code is fitted to; default 256")
        add("--resolution", type=int, nargs="+", default=[512], metavar="PIXELS", help="one or more; default 512")
        add("--max_aspect_ratio", type=float, default=1.0, metavar="R", help="of buckets; default 1, squares only")
        add("--bucket_multiple", type=int, default=64, metavar="PIXELS", help="of sides of buckets; default 64")
        add("--crops", type=int, default=1, metavar="N", help="windows of each image; default 1, the largest")
        add("--flip", action="store_true", help="also keep each window mirrored")
        add("--image_column", default="image", metavar="NAME", help="column with the images, of parquet files")
        add("--columns", nargs="*", metavar="NAME", help="columns to keep: captions, labels, ids; default all")
        add("--metadata", metavar="FILE", help=".jsonl, .csv or .parquet with `file_name`; default: of the folder")
        add("--max_images", type=int, metavar="N", help="take only the first N images")
        add("--skip_unreadable", action="store_true", help="leave out images that cannot be read, with a warning")
        add("--shard_size", type=int, default=1024, metavar="N", help="images a shard; default 1024")
        add("--batch_size", type=int, default=8, metavar="N", help="images that the autoencoder reads at a time")
        add("--num_workers", type=int, default=4, metavar="N", help="threads that read images; default 4")
        add("--seed", type=int, default=0, help="of places of windows")
        add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the autoencoder")
        add("--push_to_hub", action="store_true", help="upload the cache as a data set")
        add("--hub_dataset_id", metavar="NAME", help="its name on the Hub; default: that of the folder")
        add("--hub_token", help="token of the Hub; default: the one that is logged in")
        add_device_argument(parser)
        parser.set_defaults(command=CacheCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        from accelerate import PartialState

        from ..training.latent_cache.caching import write_latent_cache
        from ..training.latent_cache.image_rows import ImageRows
        from ..training.latent_cache.windows import Windows
        from ..utils.hub import create_repository, push_folder
        from ..utils.image_sources import load_image_dataset

        args = self.args
        check_at_least(args, 1, "max_images")
        if args.target_snr is not None and (args.bottleneck or args.code != "klt"):
            raise ValueError("--target_snr has no meaning with --bottleneck or another --code than klt.")
        windows = Windows(
            tuple(args.resolution), args.max_aspect_ratio, args.bucket_multiple, args.crops, args.flip, args.seed
        )
        state = PartialState(cpu=get_device(args.device).type == "cpu")
        hub = {"token": args.hub_token, "repo_type": "dataset"}
        if args.push_to_hub and state.is_main_process:
            create_repository(args.output_dir, args.hub_dataset_id, **hub)
        with state.main_process_first():  # it prepares what `datasets` keeps, the others read that
            source = load_image_dataset(
                train_data_dir=args.images, image_column=args.image_column, max_samples=args.max_images
            )
        rows = ImageRows(source, args.images, args.metadata, args.columns)
        facts = write_latent_cache(
            args.output_dir,
            self._autoencoder(args.device or state.device),
            rows,
            windows,
            self._code(),
            30.0 if args.target_snr is None else args.target_snr,
            args.fast_reading,
            args.deviation,
            args.fit_images,
            args.shard_size,
            args.batch_size,
            args.num_workers,
            args.skip_unreadable,
        )
        if not state.is_main_process:
            return
        self._say(facts)
        if args.push_to_hub:
            name = push_folder(args.output_dir, args.hub_dataset_id, message="Latent cache", **hub)
            print(f"https://huggingface.co/datasets/{name}")

    def _autoencoder(self, device: Any) -> Any:
        import torch
        from diffusers import AutoModel

        from .taef2 import load_taef2

        args, dtype = self.args, getattr(torch, self.args.dtype)
        if args.taef2:
            return load_taef2(args.taef2).to(device, dtype)
        model = AutoModel.from_pretrained(args.autoencoder, subfolder=args.subfolder, torch_dtype=dtype)
        if not hasattr(model, "encode"):
            raise ValueError(
                f"--autoencoder must name an autoencoder, {args.autoencoder} is a {type(model).__name__}."
            )
        return model.to(device)

    def _code(self) -> Any:
        from ..models import bottlenecks
        from ..training.latent_cache.latent_code import LatentCode

        folder = self.args.bottleneck
        if folder is None:
            return self.args.code
        kinds = tuple(name for name in bottlenecks.__all__ if name.endswith("Bottleneck"))
        bottleneck = load_model(folder, supported=kinds)
        if not bottleneck.levels:
            raise ValueError(f"--bottleneck must name one that makes codes, {folder} makes none.")
        return LatentCode(bottleneck, None if self.args.fast_reading else load_prior(folder, None, None, bottleneck))

    def _say(self, facts: dict[str, Any]) -> None:
        found = facts["measured"]
        if not found["rows"]:
            print(f"{self.args.output_dir}: no rows")
            return
        print(
            f"{self.args.output_dir}: {found['rows']} rows in {len(facts['shards'])} shards, {found['bytes']:,} bytes "
            f"and {found['codec_bytes']:,} of tables\n"
            f"  {found['bits_per_element']:.3f} bits a latent element on the disk, {found['snr_db']:.2f} dB "
            f"({16 / found['bits_per_element']:.1f} times smaller than float16)\n"
            f'  next: load_latent_cache("{self.args.output_dir}") of diffusers_lasers.training, or '
            "diffusers-lasers cache-export"
        )


class CacheExportCommand:
    name = "cache-export"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "cache-export",
            help="write each row of a latent cache as a file of float16",
            description=__doc__,
            epilog="example:\n  diffusers-lasers cache-export cache/ latents/ --format safetensors\n",
        )
        parser.add_argument("cache", metavar="CACHE", help="folder of a cache, or a data set on the Hub")
        parser.add_argument("output_dir", metavar="FOLDER", help="folder of the files")
        parser.add_argument("--format", choices=("npz", "safetensors"), default="npz", help="default npz")
        parser.set_defaults(command=CacheExportCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        from ..training.latent_cache.reading import export_latent_cache

        args = self.args
        if Path(args.output_dir).is_file():
            raise ValueError(f"FOLDER must be a folder or new, {args.output_dir} is a file.")
        print(f"{args.output_dir}: {export_latent_cache(args.cache, args.output_dir, args.format)} files")
