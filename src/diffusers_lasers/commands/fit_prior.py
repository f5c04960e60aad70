"""`fit-prior`: tables by which a saved model's codes are as small as their entropy, fitted to images.

They are written beside the model, to its folder `prior`, where `encode`, `decode` and `evaluate` find them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..utils.command_line import check_at_least
from .image_io import Pictures
from .loading import PRIOR, add_model_arguments, get_device, load_model


EXAMPLE = """example:
  diffusers-lasers fit-prior outputs/dl --data photos/
  diffusers-lasers encode photo.png photo.code --model outputs/dl
  diffusers-lasers fit-prior outputs/dl --data photos/ --rate_weight 0.002
"""


class FitPriorCommand:
    name = "fit-prior"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "fit-prior",
            help="fit a model's prior to images, by which its files become smaller",
            description=__doc__,
            epilog=EXAMPLE,
        )
        add_model_arguments(parser, positional=True)
        parser.add_argument(
            "--data",
            help="folder of images, one image, parquet, or a pattern; default: scikit-image's training photographs",
        )
        parser.add_argument("--max_images", type=int, metavar="N", help="take only the first N images")
        parser.add_argument("--output", metavar="FOLDER", help=f"where to; default: the folder {PRIOR!r} of the model")
        parser.add_argument(
            "--no_contexts", action="store_true", help="probabilities that do not depend on neighbours: smaller tables"
        )
        parser.add_argument(
            "--rate_weight",
            type=float,
            metavar="LAMBDA",
            help="fit it to codes of the least error plus LAMBDA a bit, for `encode --rate_weight` about as large; "
            "default: to codes as the model was trained to make them",
        )
        parser.set_defaults(command=FitPriorCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        from ..models.priors.image_codes import fit_prior
        from ..utils.image_sources import load_image_dataset

        args = self.args
        check_at_least(args, 1, "max_images")
        folder = Path(args.model) / (args.subfolder or "")
        if args.output is None and not folder.is_dir():
            raise ValueError(
                f"--output must name a folder for the prior of {args.model}, which is none on this machine."
            )
        target = folder / PRIOR if args.output is None else Path(args.output)
        model = load_model(args.model, args.subfolder, args.revision, get_device(args.device))
        source = load_image_dataset(train_data_dir=args.data, split="train", max_samples=args.max_images)
        arguments = {"contexts": False} if args.no_contexts else {}
        prior = fit_prior(model, Pictures(source), args.rate_weight, **arguments)
        prior.save_pretrained(target)
        size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
        site, nominal = int(prior.site_bits), model.coder.bits_per_site
        print(
            f"{target}: fitted to {len(source)} images; {site} bits a site on them, nominal {nominal:.1f}; "
            f"{size} bytes of tables"
        )
