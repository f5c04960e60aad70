#!/usr/bin/env python
"""Shows in a browser what an image's code costs and what it keeps; for a desk or a Hugging Face Space.

    python examples/app.py
    python examples/app.py --model outputs/dl outputs/vq --codec outputs/opq

Upload a picture or take one of scikit-image's, choose a model, and move the sparsity and the bits of a coefficient. The
page then shows the reconstruction, its FLIP map, the atoms of each site, bits a pixel, PSNR and FLIP. The file of a
model with a prior in its folder `prior/` has the prior's bytes, else those of the packed code. A rate-distortion
curve compares all sparsities of the one code with a patch codec and JPEG. A second tab compares the patch codec with
JPEG at the same bytes.

Without --model the autoencoders of `make demo` are taken. If there are none, a small one is trained at the first start,
in minutes, and kept in --cache_dir. Without --codec a patch codec is fitted in the same way. Nothing is sent anywhere:
no analytics, no fonts or scripts of other servers.

This file is the page. app_results.py computes, app_cache.py keeps results, app_models.py loads and makes the models,
app_html.py has the style, and app_guard.py lets visitors' calls name only files that they uploaded.
"""

import os
import signal
import sys
from pathlib import Path

from PIL import Image, ImageOps


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from app_guard import MOST_BYTES, OnlyUploads, read_upload  # noqa: E402
from app_html import CSS, figures, file_table, flip_figure, hint, message, status  # noqa: E402
from app_models import Library  # noqa: E402
from app_results import PictureError, atoms_used, controls, describe, read_picture  # noqa: E402

from diffusers_lasers.commands.batch import printable  # noqa: E402
from diffusers_lasers.commands.scripts import run_script  # noqa: E402
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.image_sources import bundled_photos  # noqa: E402
from diffusers_lasers.utils.import_utils import requires  # noqa: E402
from diffusers_lasers.visualization.image_grids import to_image


def thumbnail(path: str) -> Image.Image:
    """A small square of a photograph's middle."""
    return ImageOps.fit(Image.open(path).convert("RGB"), (112, 112))


def upload_folder() -> str:
    """Where gradio keeps uploads, and the pictures that it serves."""
    requires("gradio", extra="app")
    from gradio.utils import get_upload_folder

    return str(get_upload_folder())


def build(library: Library, max_side: int = 384):
    """The page, a `gradio.Blocks`, of the models and codecs that are there now or come later."""
    gr = requires("gradio", extra="app")
    cached, folder = library.cached, upload_folder()
    photos = [*bundled_photos("validation").paths, *bundled_photos("train").paths]  # held out ones first

    def picture_field(label: str, alt: str, **options):
        return gr.Image(
            label=label,
            alt_text=alt,
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes=["captioned", "result"],
            **options,
        )

    def choices():
        return [(f"{name} ({describe(model).split(',')[0]})", name) for name, model in list(cached.models.items())]

    # What the events do. Each depends on its inputs alone; kept results make that cheap.

    def on_refresh(seen, name, codec):
        offered = (tuple(cached.models), tuple(cached.codecs))
        again = gr.Timer(active=not library.done)
        if offered == seen:
            return status(library), gr.skip(), gr.skip(), again, seen
        name = name if name in cached.models else next(iter(cached.models), None)
        codec = codec if codec in cached.codecs else next(iter(cached.codecs), None)
        models, codecs = gr.Dropdown(choices(), value=name), gr.Dropdown(list(cached.codecs), value=codec)
        return status(library), models, codecs, again, offered

    def on_example(chosen: gr.SelectData):
        number = chosen.index if isinstance(chosen.index, int) and 0 <= chosen.index < len(photos) else 0
        return Image.open(photos[number]).convert("RGB"), gr.Gallery(selected_index=None)

    def on_picture(upload):
        if upload is None:
            return None, message("Choose a picture: upload one, or take an example."), None
        try:
            picture = read_picture(read_upload(upload, folder), max_side, upload.get("orig_name"))
        except PictureError as error:
            return None, message(str(error)), None
        return picture, hint(picture.note), picture.image

    def on_model(name):
        if name not in cached.models:
            return (gr.skip(),) * 4
        model = cached.models[name]
        own = controls(model)
        atoms = own.no_sparsity or f"One code holds all from 1 to {own.sparsity}: fewer atoms are its beginning."
        each = own.no_bits or "Quantised after training; the model is not changed."
        return (
            hint(describe(model)),
            gr.Slider(maximum=max(2, own.sparsity), value=own.sparsity, interactive=not own.no_sparsity, info=atoms),
            gr.Slider(value=own.bits or 16, interactive=not own.no_bits, info=each),
            gr.Checkbox(value=own.bits is None and not own.no_bits, interactive=not own.no_bits),
        )

    def asked(picture, name, sparsity, bits, is_float):
        """What `cached` takes, or `None` where something is missing."""
        if picture is None or name not in cached.models:
            return None
        return picture, name, int(sparsity), None if is_float else int(bits)

    def on_setting(*setting):
        wanted = asked(*setting)
        if wanted is None:
            return "", "", None
        return figures(cached, *wanted), flip_figure(None), to_image(cached.point(*wanted).sample[0])

    def on_flip(*setting):
        wanted = asked(*setting)
        if wanted is None:
            return "", None
        error, heat = cached.flip(*wanted)
        return flip_figure(error), heat

    def on_atoms(*setting):
        wanted = asked(*setting)
        if wanted is None:
            return "", None, None
        sites, tiles, text = atoms_used(cached.models[wanted[1]], cached.point(*wanted).code)
        return hint(text), sites, tiles

    def on_rates(*setting):
        wanted = asked(*setting)
        return None if wanted is None else cached.rates(*wanted)

    def on_codec(picture, codec):
        if picture is None or codec not in cached.codecs:
            return "", None, None, None, None
        (packed, _, packed_heat), (jpeg, _, jpeg_heat) = cached.files(picture, codec).values()
        decoded = (to_image(file.sample[0]) for file in (packed, jpeg))
        return file_table(cached, picture, codec), *decoded, packed_heat, jpeg_heat

    with gr.Blocks(title="What a code costs", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# What a code costs, and what it keeps\n"
            "Choose a picture and a model, and move the sliders: one sparse code holds every smaller sparsity. "
            "Every figure stands beside its bits."
        )
        state, seen = gr.State(None), gr.State(None)
        timer, progress = gr.Timer(1.0, active=not library.done), gr.HTML(status(library), elem_id="progress")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.Image(
                    photos[0],
                    label="Picture: drop, paste or choose a file",
                    alt_text="The picture that was chosen",
                    sources=["upload", "clipboard"],
                    height=240,
                    format="png",
                    buttons=[],
                    elem_id="upload",
                    elem_classes="captioned",
                )
                note = gr.HTML(elem_id="note")
                examples = gr.Gallery(
                    [(thumbnail(path), Path(path).stem.split("_")[0]) for path in photos],
                    label="Examples, from scikit-image",
                    columns=4,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                    elem_classes="captioned",
                )
                model = gr.Dropdown(choices(), value=next(iter(cached.models), None), label="Model and bottleneck")
                about = gr.HTML(elem_id="about")
                sparsity = gr.Slider(
                    1, 2, value=1, step=1, precision=0, label="Sparsity: atoms a site", elem_id="sparsity"
                )
                bits = gr.Slider(1, 16, value=8, step=1, precision=0, label="Bits a coefficient", elem_id="bits")
                is_float = gr.Checkbox(False, label="Float coefficients, 32 bits each", elem_id="float")
            with gr.Column(scale=3, min_width=280), gr.Tabs(overflow_behavior="wrap"):
                with gr.Tab("Sparse code"):
                    with gr.Row():
                        with gr.Column(scale=4, min_width=260):
                            rates = gr.HTML(elem_id="figures")
                        with gr.Column(scale=1, min_width=120):
                            error = gr.HTML(elem_id="flip")
                    with gr.Row():
                        three = {"min_width": 220}
                        original = picture_field(
                            "Original", "The picture as the model sees it", elem_id="original", **three
                        )
                        decoded = picture_field(
                            "Reconstruction", "The picture decoded from its code", elem_id="reconstruction", **three
                        )
                        heat = picture_field(
                            "FLIP map: visible differences",
                            "Visible differences, black: none",
                            elem_id="heat",
                            **three,
                        )
                    with gr.Row():
                        curve = picture_field(
                            "Rate and distortion of this picture",
                            "PSNR over bits a pixel of every sparsity, beside other codecs",
                            elem_id="curve",
                            min_width=280,
                        )
                        tiles = picture_field(
                            "Atoms or codewords by use; orange frame: unused here",
                            "Atoms or codewords as grey tiles",
                            elem_id="tiles",
                            min_width=280,
                        )
                    sites = picture_field(
                        "Atom or codeword of each site: a colour each, one panel a slot, first chosen first",
                        "A coloured map for each slot",
                        elem_id="sites",
                    )
                    used = gr.HTML(elem_id="used")
                with gr.Tab("Patch codec and JPEG"):
                    codec = gr.Dropdown(
                        list(cached.codecs),
                        value=next(iter(cached.codecs), None),
                        label="Codec: its kind, and the bits a patch of Y, Cb and Cr",
                    )
                    table = gr.HTML(elem_id="files")
                    with gr.Row():
                        packed = picture_field(
                            "Patch codec", "The picture decoded from the codec's bytes", min_width=260
                        )
                        jpeg = picture_field("JPEG at the same bytes", "The picture decoded from JPEG", min_width=260)
                    with gr.Row():
                        packed_heat = picture_field("FLIP map, patch codec", "Its visible differences", min_width=260)
                        jpeg_heat = picture_field("FLIP map, JPEG", "Its visible differences", min_width=260)

        # An event that comes while its function runs waits, and only the last of those that wait is run. There is one
        # call at a time: two of different sliders could end in another order, and the page would keep older figures.
        quick = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
        slow = {**quick, "concurrency_id": "slow", "concurrency_limit": 1}
        setting = [state, model, sparsity, bits, is_float]
        refreshed = {
            "fn": on_refresh,
            "inputs": [seen, model, codec],
            "outputs": [progress, model, codec, timer, seen],
        }
        # Without gradio's preprocessing, which opens the file before it can be checked, by any of Pillow's decoders:
        # `read_upload` and `read_picture` do its work, and say what is wrong in a sentence.
        read = {"fn": on_picture, "inputs": upload, "outputs": [state, note, original], "preprocess": False, **quick}
        configured = {"fn": on_model, "inputs": model, "outputs": [about, sparsity, bits, is_float]}
        compared = {
            "fn": on_codec,
            "inputs": [state, codec],
            "outputs": [table, packed, jpeg, packed_heat, jpeg_heat],
        }

        def then_show(event):
            """After an event: first what is asked for, then what takes longer, each with the setting when it starts."""
            event = event.then(on_setting, setting, [rates, error, decoded], concurrency_limit=1, **quick)
            event = event.then(on_flip, setting, [error, heat], **slow)
            event = event.then(on_rates, setting, curve, **slow)
            return event.then(on_atoms, setting, [used, sites, tiles], **slow)

        then_show(page.load(**refreshed, **quick).then(**read).then(**configured, **quick)).then(**compared, **slow)
        then_show(gr.on([upload.upload, upload.clear], **read)).then(**compared, **slow)
        then_show(examples.select(on_example, None, [upload, examples], **quick).then(**read)).then(**compared, **slow)
        then_show(model.change(**configured, **quick))
        then_show(bits.input(None, None, is_float, js="() => false", **quick))  # in the browser, at once
        then_show(gr.on([sparsity.input, is_float.input], None, js="() => []", **quick))
        codec.change(**compared, **slow)
        timer.tick(**refreshed, **quick)
    return page


def launch(page, server_name: str | None = None, server_port: int | None = None, wait: bool = True):
    """
    Serves the page: its own fonts, no links outwards, no history of runs in the browser; calls name uploads alone, and
    what is kept for visitors is bounded.
    """
    gr = requires("gradio", extra="app")
    from starlette.middleware import Middleware

    theme = gr.themes.Default(
        font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"), primary_hue="blue"
    )
    return page.queue(max_size=64).launch(
        server_name=server_name,
        server_port=server_port,
        prevent_thread_lock=not wait,
        theme=theme,
        head=f"<style>{CSS}</style>",  # css= would be narrowed to what lies inside the page's frame
        max_file_size=MOST_BYTES,
        state_session_capacity=256,  # each has a picture: 2 MB at 384 pixels
        app_kwargs={"middleware": [Middleware(OnlyUploads, folder=upload_folder())]},
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        share=False,
        quiet=not wait,
    )


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=[],
        help="Folders or Hub names of AutoencoderDL. Default: the demo's, or a new one.",
    )
    add("--codec", nargs="+", default=[], help="Folders or Hub names of ModelBasedVQCodec. Default: a new one.")
    add("--cache_dir", default="outputs/app", help="Where models that are made are kept.")
    add("--max_side", type=int, default=384, help="Larger pictures are scaled to this longer side, in pixels.")
    add("--server_name", help="Address to listen at; 0.0.0.0: all. Default: this machine only.")
    add("--server_port", type=int, help="Default: the first free one from 7860.")
    args = parser.parse_args(input_args)
    if not 32 <= args.max_side <= 4096:
        parser.error(f"--max_side must be from 32 to 4096, got {args.max_side}")
    return args


def serve(args):
    requires("gradio", extra="app")
    library = Library(args.model, args.codec, args.cache_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also ends the making of models
    library.prepare()
    launch(build(library, args.max_side), args.server_name, args.server_port)


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    with printable():
        run_script(__file__, parse_args, serve, input_args)


if __name__ == "__main__":
    cli()
