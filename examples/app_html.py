"""The style of examples/app.py's page, and its tables and sentences as HTML."""

import html
import math

from app_cache import CachedResults
from app_models import Library
from app_results import Picture


CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
.gradio-container * { --body-text-color-subdued: #52525b; --block-info-text-color: #52525b; }
.dark .gradio-container * { --body-text-color-subdued: #c4c4cc; --block-info-text-color: #c4c4cc; }
body .html-container { padding: 0 !important; }
.gradio-container .tabitem { padding: 12px 0; }
body .captioned > label[data-testid="block-label"] { position: static; display: block; border: none;
    background: none; padding: 4px 40px 4px 8px; font-size: 13px; box-shadow: none; }
body .captioned > label[data-testid="block-label"] span { display: none; }
.result img { width: 100%; }
#sites img { max-height: 300px; object-fit: contain; }
#upload .image-container { height: calc(100% - 30px); }
#examples .grid-wrap { height: auto !important; max-height: none !important; min-height: 0 !important;
    padding: 0 8px 8px; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important;
    grid-template-rows: none !important; gap: 6px; padding: 0 !important; }
#examples .thumbnail-item { min-width: 0; width: 100%; }
#examples .caption-label { left: 0; right: 0; max-width: none; padding: 1px 2px; font-size: 10px;
    border-radius: 0; text-align: center; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 8px; margin: 0; }
.figures > div { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 4px 10px; }
.figures dt { font-size: 12px; color: var(--body-text-color-subdued); }
.figures dd { margin: 0; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures dd small { font-size: 12px; font-weight: 400; color: var(--body-text-color-subdued); }
.message { margin: 0; padding: 8px 12px; border-radius: 8px; border: 1px solid var(--border-color-primary);
    border-left: 4px solid #b45309; }
.message progress { width: 100%; accent-color: #0072B2; }
.hint { font-size: 13px; color: var(--body-text-color-subdued); margin: 0; overflow-wrap: anywhere; }
table.files { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.files th, table.files td { padding: 6px 8px; text-align: right;
    border-bottom: 1px solid var(--border-color-primary); }
table.files th:first-child { text-align: left; }
@media (max-width: 700px) {
  .gradio-container .main.app { padding: 8px 12px !important; }
  #original { order: 3; }
  table.files th, table.files td { padding: 6px 4px; font-size: 13px; }
}
"""


def card(title: str, value: str, unit: str = "") -> str:
    """One figure."""
    return f"<div><dt>{title}</dt><dd>{value} <small>{unit}</small></dd></div>"


def decibels(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"


def figures(cached: CachedResults, picture: Picture, name: str, sparsity: int, bits: int | None) -> str:
    """The rate and PSNR of a setting as HTML."""
    point = cached.point(picture, name, sparsity, bits)
    cards = [card("PSNR", decibels(point.psnr), "dB")]
    if point.by_prior:
        cards += [card("rate of the file", f"{point.rate:.3f}", "bits/pixel")]
    cards += [
        card("nominal rate", f"{point.bits_per_pixel:.3f}", "bits/pixel"),
        card("entropy of this image", f"{point.entropy_bits_per_pixel:.3f}", "bits/pixel"),
        card("file by its prior" if point.by_prior else "packed file", f"{point.size:,}", "bytes"),
    ]
    return f'<dl class="figures">{"".join(cards)}</dl>'


def flip_figure(value: float | None) -> str:
    """The mean FLIP error as HTML; `None` while it is computed."""
    text = "…" if value is None else f"{value:.4f}"
    return f'<dl class="figures">{card("FLIP, mean", text)}</dl>'


def file_table(cached: CachedResults, picture: Picture, codec: str) -> str:
    """The patch codec's file and JPEG's as an HTML table, and a sentence about them."""
    files = cached.files(picture, codec)
    packed, jpeg = files["codec"][0], files["jpeg"][0]
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", codec, f"JPEG, quality {jpeg.quality}"))
    rows = {
        "bytes": [f"{file.size:,}" for file, *_ in files.values()],
        "bits/pixel": [f"{file.bits_per_pixel:.3f}" for file, *_ in files.values()],
        "nominal bits/pixel": [f"{packed.nominal_bits_per_pixel:.3f}", "–"],
        "PSNR, dB": [decibels(file.psnr) for file, *_ in files.values()],
        "FLIP, mean": [f"{error:.4f}" for _, error, _ in files.values()],
    }
    body = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for title, cells in rows.items()
    )
    table = f'<table class="files"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    if jpeg.size > packed.size:
        said = (
            f"Even JPEG's smallest file is longer than the codec's {packed.size:,} bytes: "
            "it stands here with the bytes that it takes."
        )
    else:
        said = (
            f"JPEG has the highest quality whose file is not longer than the codec's {packed.size:,} bytes; "
            "headers count."
        )
    written = "written by its prior." if packed.by_prior else "packed: it has no prior."
    return table + hint(f"{said} The codec's file is {written}")


def hint(text: str) -> str:
    return f'<p class="hint">{html.escape(text)}</p>'


def message(text: str) -> str:
    return f'<p class="message" role="alert">{html.escape(text)}</p>' if text else ""


def status(library: Library) -> str:
    """What is being prepared, and what failed, as HTML."""
    parts = [message(text) for text in library.failures]
    if not library.done:
        share = "" if library.progress is None else f' value="{library.progress:.3f}"'
        percent = "" if library.progress is None else f" {library.progress:.0%},"
        text = f"{library.stage}, once:{percent} {library.seconds} s so far. The page fills when it is done."
        bar = f'<progress{share} aria-label="{library.stage}"></progress>'
        parts.append(f'<div class="message" role="status">{text}<br>{bar}</div>')
    return "".join(parts)
