"""`encode`: images to code files, by a fitted patch codec or an autoencoder with a bottleneck."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import write_bytes
from .batch import about, check_targets, for_each
from .image_io import cost_lines, output_paths, picture_levels, psnr_metric, read_image
from .loading import add_model_arguments, get_device, load_model, load_prior


if TYPE_CHECKING:
    import torch

SUFFIX = ".code"
AS_SAVED = object()
EXAMPLE = """example:
  diffusers-lasers encode photo.png photo.code --model outputs/dl --psnr
  diffusers-lasers encode a.png b.png codes/ --model outputs/dl --sparsity 2
  diffusers-lasers encode photo.png small.code --model outputs/dl --rate_weight 0.002
"""


def bits_argument(text: str) -> int | None:
    """`float` or a number of bits."""
    if text == "float":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or `float`, got {text!r}") from None


class EncodeCommand:
    name = "encode"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "encode",
            help="write the code of images to files",
            description=__doc__,
            epilog=EXAMPLE,
        )
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
        parser.add_argument(
            "target",
            metavar="CODE_FILE",
            help="file to write; for several images a folder, which gets IMAGE.code of each",
        )
        add_model_arguments(parser)
        parser.add_argument(
            "--sparsity", type=int, metavar="S", help="keep the first S atoms of each site, of a dictionary model"
        )
        parser.add_argument(
            "--coefficient_bits",
            type=bits_argument,
            default=AS_SAVED,
            metavar="BITS",
            help="bits of a coefficient, 1 to 16 or `float`, of a dictionary model; default: as it was saved",
        )
        parser.add_argument(
            "--rate_weight",
            type=float,
            metavar="LAMBDA",
            help="take the code of the least error plus LAMBDA a bit of the prior, e.g. 0.001; default: as trained",
        )
        parser.add_argument(
            "--no_prior",
            action="store_true",
            help="write the nominal bits, also where the model has a prior (see `fit-prior`)",
        )
        parser.add_argument("--psnr", action="store_true", help="also print the PSNR of what `decode` will give")
        parser.set_defaults(command=EncodeCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        args = self.args
        paths = output_paths(args.images, args.target, SUFFIX)
        check_targets(paths)
        metric = psnr_metric() if args.psnr else None
        device = get_device(args.device)
        model = load_model(args.model, args.subfolder, args.revision, device)
        self._prepare(model)
        prior = None if args.no_prior else load_prior(args.model, args.subfolder, args.revision, model)

        def encode(pair: tuple[str, Path]) -> None:
            source, path = pair
            with about(source):
                self._encode_file(model, prior, source, path, device, metric)

        for_each(args, zip(args.images, paths), encode, "images")

    def _encode_file(self, model: Any, prior: Any, source: str, path: Path, device: torch.device, metric: Any) -> None:
        """Writes an image's code, and says what it costs."""
        pixels = read_image(source)
        data, sample, nominal = self._encode(model, prior, pixels.to(device), metric is not None)
        write_bytes(path, data)
        lines = [f"{source} -> {path}", *cost_lines(tuple(pixels.shape[-2:]), len(data), nominal)]
        if metric is not None:
            metric.reset()
            metric.update(picture_levels(sample), pixels)
            lines.append(f"  PSNR: {float(metric.compute()):.2f} dB")
        print("\n".join(lines))

    def _prepare(self, model: Any) -> None:
        """Refuses options and models that do not fit, and sets the coefficients' bits."""
        kind = model.config.get("bottleneck_type")
        what = f"{self.args.model} is " + (
            "a patch codec" if kind is None else f"an autoencoder with bottleneck {kind!r}"
        )
        new_bits = self.args.coefficient_bits is not AS_SAVED
        if kind != "dictionary" and (self.args.sparsity is not None or new_bits):
            option = "--coefficient_bits" if new_bits else "--sparsity"
            raise ValueError(f"{option} is for models with a dictionary, {what}.")
        if self.args.sparsity is not None and self.args.rate_weight is not None:
            raise ValueError("--sparsity must be left out with --rate_weight, which chooses the number of atoms.")
        if kind == "none":
            raise ValueError(f"{what}, which makes no code.")
        channels = model.config.get("in_channels", 3)
        if channels != 3:
            raise ValueError(f"{self.args.model} must take RGB images, it takes {channels} channels.")
        if new_bits:
            model.coder.set_coefficient_bits(self.args.coefficient_bits)

    def _encode(
        self, model: Any, prior: Any, pixels: torch.Tensor, decoded: bool
    ) -> tuple[bytes, torch.Tensor | None, float]:
        """Bytes, where wanted the decoded image, and nominal bits."""
        import torch

        with torch.no_grad():
            code = model.encode_to_code(pixels, self.args.rate_weight, prior)
            if self.args.sparsity is not None:
                code = model.coder.truncate(code, self.args.sparsity)
            sample = model.decode_from_code(code).sample if decoded else None
        data = model.pack(code) if prior is None else prior.compress(code)
        return data, sample, model.bits(code)
