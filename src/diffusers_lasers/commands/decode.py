"""`decode`: code files of `encode` to images, by the same model."""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command_line import check_at_least
from ..utils.files import image_format, save_image
from .batch import about, check_targets, for_each
from .image_io import cost_lines, output_paths, picture_levels, psnr_metric, read_image
from .loading import PRIOR, add_model_arguments, get_device, load_model, load_prior


if TYPE_CHECKING:
    import torch

SUFFIX = ".png"
MAX_PIXELS = 2**25  # 5792 × 5792
MOST_BYTES_A_PIXEL = 8
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
        )
        parser.add_argument("codes", nargs="+", metavar="CODE_FILE", help="files that `encode` wrote")
        parser.add_argument(
            "target",
            metavar="IMAGE",
            help="picture to write, whose suffix says the format; for several codes a folder, which gets CODE_FILE.png "
            "of each",
        )
        add_model_arguments(parser)
        parser.add_argument(
            "--max_pixels",
            type=int,
            metavar="N",
            help=f"refuse files that name a larger image; default: {MAX_PIXELS}, and the limits of the model's "
            "`unpack`",
        )
        parser.add_argument("--reference", metavar="IMAGE", help="also print the PSNR to this image, of one code file")
        parser.set_defaults(command=DecodeCommand)

    def __init__(self, args: argparse.Namespace):
        self.args, self.prior = args, None

    def run(self) -> None:
        args = self.args
        check_at_least(args, 1, "max_pixels")
        paths = output_paths(args.codes, args.target, SUFFIX)
        check_targets(paths)
        check_writable(paths[0])
        if args.reference is not None and len(args.codes) > 1:
            raise ValueError(f"--reference is for one code file, got {len(args.codes)}.")
        reference = None if args.reference is None else read_image(args.reference)
        metric = None if args.reference is None else psnr_metric()
        model = load_model(args.model, args.subfolder, args.revision, get_device(args.device))

        def decode(pair: tuple[str, Path]) -> None:
            source, path = pair
            with about(source):
                self._decode_file(model, source, path, reference, metric)

        for_each(args, zip(args.codes, paths), decode, "code files")

    def _decode_file(self, model: Any, source: str, path: Path, reference: torch.Tensor | None, metric: Any) -> None:
        """Writes a code's picture, and says what it cost."""
        from ..visualization.image_grids import to_image

        data = self._read(source)
        try:
            sample, nominal = self._decode(model, data)
        except ValueError as error:
            what = str(error).replace("`data`", "the data").replace("`max_sites`", "--max_pixels")
            raise ValueError(f"{source}: {what}") from error
        if metric is not None and sample.shape != reference.shape:
            height, width = reference.shape[-2:]
            raise ValueError(
                f"{self.args.reference} must be as large as the coded image, {sample.shape[3]} × {sample.shape[2]} "
                f"pixels, it is {width} × {height}."
            )
        save_image(path, to_image(sample[0]))
        lines = [f"{source} -> {path}", *cost_lines(tuple(sample.shape[-2:]), len(data), nominal)]
        if metric is not None:
            metric.update(picture_levels(sample), reference)
            lines.append(f"  PSNR: {float(metric.compute()):.2f} dB")
        print("\n".join(lines))

    def _read(self, source: str) -> bytes:
        """A code file, no longer than the code of an image of `--max_pixels` may be."""
        limit = self.args.max_pixels or MAX_PIXELS
        most = MOST_BYTES_A_PIXEL * limit + 64
        with open(source, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(
                f"{source} must have at most {most} bytes for --max_pixels {limit}: raise it for a file you trust."
            )
        return data

    def _decode(self, model: Any, data: bytes) -> tuple[torch.Tensor, float]:
        """
        The image `(1, 3, H, W)`, and the nominal bits of its code. What the header names is checked before anything
        is made of it.
        """
        import torch

        from ..coding.container import unpack_container
        from ..coding.streams import is_stream, unpack_streams

        compressed, wanted = is_stream(data), self.args.max_pixels
        header = (unpack_streams if compressed else unpack_container)(data)[0]
        limit = wanted or MAX_PIXELS
        if header.batch != 1:
            raise ValueError(f"it holds the codes of {header.batch} images: unpack it in Python.")
        pixels = math.prod(header.latent_size) * model.downsampling_factor**2
        if pixels > limit:
            raise ValueError(
                f"it names an image of {pixels} pixels, more than --max_pixels {limit}: raise it for a file you trust."
            )
        with torch.no_grad():
            if compressed:
                code = self._prior(model).decompress(data, max_sites=wanted)
            else:
                code = model.unpack(data, wanted)
                if code.coefficients is not None:  # the file may have other bits than the model
                    model.coder.set_coefficient_bits(header.coefficient_bits)
            return model.decode_from_code(code).sample, model.bits(code)

    def _prior(self, model: Any) -> Any:
        """The prior of the model, loaded when a file first needs it."""
        args = self.args
        if self.prior is None:
            self.prior = load_prior(args.model, args.subfolder, args.revision, model)
        if self.prior is None:
            raise ValueError(f"it needs the prior that compressed it, in the folder {PRIOR!r} of {args.model}.")
        return self.prior


def check_writable(path: Path) -> None:
    """
    Refuses, before any work, a picture's format that cannot be written here.

    Raises:
        ValueError: If Pillow has no writer for the suffix, or one that does not write RGB pictures.
    """
    from PIL import Image

    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=image_format(path))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:  # as each of its writers has it
        raise ValueError(
            f"{path} must end with the suffix of a picture format that Pillow can write, such as .png."
        ) from error
