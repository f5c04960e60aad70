"""`decode`: code files of `encode` to images, by the same model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import save_image
from .images import cost_lines, output_paths, picture_levels, psnr_metric, read_image
from .loading import add_model_arguments, get_device, load_model


if TYPE_CHECKING:
    import torch

SUFFIX = ".png"
EXAMPLE = """example:
  diffusers-lasers decode photo.code photo.png --model outputs/dl
  diffusers-lasers decode photo.code decoded.png --model outputs/dl --reference photo.png
"""


class DecodeCommand:
    name = "decode"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "decode",
            help="make images of code files",
            description=__doc__,
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("codes", nargs="+", metavar="CODE_FILE", help="files that `encode` wrote")
        parser.add_argument(
            "target",
            metavar="IMAGE",
            help="picture to write, whose suffix says the format; for several codes a folder, which gets CODE_FILE.png of each",
        )
        add_model_arguments(parser)
        parser.add_argument("--reference", metavar="IMAGE", help="also print the PSNR to this image, of one code file")
        parser.set_defaults(command=DecodeCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        from PIL import Image

        from ..visualization import to_image

        args = self.args
        paths = output_paths(args.codes, args.target, SUFFIX)
        if paths[0].suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{paths[0]} must end with the suffix of a picture format, such as .png.")
        if args.reference is not None and len(args.codes) > 1:
            raise ValueError(f"--reference is for one code file, got {len(args.codes)}.")
        reference = None if args.reference is None else read_image(args.reference)
        metric = None if args.reference is None else psnr_metric()
        model = load_model(args.model, args.subfolder, args.revision, get_device(args.device))
        for source, path in zip(args.codes, paths):
            data = Path(source).read_bytes()
            try:
                sample, nominal = self._decode(model, data)
            except ValueError as error:
                raise ValueError(f"{source}: " + str(error).replace("`data`", "the data")) from error
            if metric is not None and sample.shape != reference.shape:
                height, width = reference.shape[-2:]
                raise ValueError(
                    f"{args.reference} must be as large as the coded image, {sample.shape[3]} × {sample.shape[2]} pixels, it is {width} × {height}."
                )
            save_image(path, to_image(sample[0]))
            lines = [f"{source} -> {path}", *cost_lines(tuple(sample.shape[-2:]), len(data), nominal)]
            if metric is not None:
                metric.update(picture_levels(sample), reference)
                lines.append(f"  PSNR: {float(metric.compute()):.2f} dB")
            print("\n".join(lines))

    def _decode(self, model: Any, data: bytes) -> tuple[torch.Tensor, float]:
        """The image `(1, 3, H, W)`, and the nominal bits of its code."""
        import torch

        from ..coding import unpack_container

        with torch.no_grad():
            if not hasattr(model, "bottleneck"):
                output = model.unpack(data)
                height, width = output.image_size
                codes = output.codes.to(model.device)
                _check_single(len(codes))
                sample = model.decode(codes, output.image_size).sample
                return sample, model.bits_per_pixel(height, width) * height * width
            bottleneck = model.bottleneck
            code = bottleneck.unpack(data)
            _check_single(len(code.indices))
            bits_per_site = bottleneck.bits_per_site
            if (
                model.config.bottleneck_type == "dictionary"
            ):  # the file may have fewer atoms and other bits than the model
                bottleneck.set_coefficient_bits(unpack_container(data)[0].coefficient_bits)
                bits_per_site = bottleneck.site_bits(code.sparsity)
            return model.decode_from_code(code).sample, bits_per_site * code.indices[0, ..., 0].numel()


def _check_single(images: int) -> None:
    if images != 1:
        raise ValueError(f"it holds the codes of {images} images: unpack it in Python.")
