"""Curves of training runs over their steps, and of quality over rate.

Records can be smoothed by the filter of Savitzky and Golay (1964), a least-squares polynomial in a moving window, as in
LASERS (2024, Fig. 4). The unsmoothed record is then drawn faintly behind the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.import_utils import requires
from .figures import MUTED, new_figure, style


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["rate_distortion", "training_curves"]

_TITLES = {
    "psnr": "PSNR, dB",
    "masked_psnr": "PSNR inside the mask, dB",
    "lpips": "LPIPS",
    "perceptual": "LPIPS",
    "mse": "mean squared error",
    "perplexity": "perplexity of the code",
    "dead_atoms": "symbols never used",
    "loss": "loss",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradient",
    "images_per_second": "images a second",
}
_DEFAULT = ("psnr", "masked_psnr", "lpips", "perplexity", "dead_atoms")
_DEGREE = 2  # of the smoothing polynomials
_COLUMNS = 3


def training_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Sequence[str] | None = None,
    smooth: int | None = None,
    start: int | Sequence[int] | None = None,
    zoom: int | None = None,
) -> Figure:
    """
    Draws values of training runs over their steps, with one panel for each value. Values that are not finite are left
    out.

    Args:
        runs (`Mapping[str, Sequence[Mapping]]`): Label and records of each run, as [`TrainingLog.read`] gives them.
            Each record has a `step`.
        figures (`Sequence[str]`, *optional*): Names of values in the records, one for each panel. Defaults to those of
            PSNR, PSNR inside the mask, LPIPS, perplexity and symbols never used that the records have. Held-out values
            (`validation_…`) are taken if a run has at least two of them, otherwise those of the training batches. If
            there are none of these, the loss is drawn.
        smooth (`int`, *optional*): Number of records in the window of a Savitzky–Golay filter of degree 2, odd and at
            least 3. Curves with fewer records are not smoothed. Needs scipy.
        start (`int` or `Sequence[int]`, *optional*): Steps to mark with a line, such as the discriminator's start.
        zoom (`int`, *optional*): Number of steps to show before the first and after the last `start`; at least 1.
            Defaults to all steps.

    Returns:
        `matplotlib.figure.Figure`: The figure, for [`save_figure`].

    Raises:
        ValueError: If there is no run, if no run has one of the `figures`, if `smooth` is even or below 3, or if `zoom`
            is below 1 or given without `start`.
        ImportError: If matplotlib, or scipy for `smooth`, is missing (`pip install diffusers_lasers[visualization]`).
    """
    if not runs:
        raise ValueError("`runs` must hold at least one run, got none.")
    if smooth is not None and (smooth < 3 or smooth % 2 == 0):
        raise ValueError(f"`smooth` must be an odd number of at least 3, got {smooth}.")
    starts = [] if start is None else [start] if isinstance(start, int) else list(start)
    if zoom is not None and (zoom < 1 or not starts):
        raise ValueError(f"`zoom` must be at least 1 and needs `start`, got {zoom} with `start` {start}.")
    for label, records in runs.items():
        if not all("step" in record for record in records):
            raise ValueError(f"`runs` must have a `step` in each record, got one without it in the run {label!r}.")
    figures = _default_figures(runs) if figures is None else list(figures)
    known = sorted(
        {name for records in runs.values() for record in records for name in record if _points([record], name)}
        - {"step"}
    )
    for name in figures:
        if name not in known:
            raise ValueError(f"`figures` must be names in the records, {known}, got {name!r}.")
    if not figures:
        raise ValueError(f"`figures` must hold at least one name of {known}, got none.")
    columns = min(len(figures), _COLUMNS)
    rows = -(-len(figures) // columns)
    figure, axes = new_figure(rows, columns, 5.5 if columns < 3 else 4.5, 3.6)
    for axis, name in zip(axes, figures):
        inside = []
        for number, (label, records) in enumerate(runs.items()):
            points = _points(records, name)
            _draw_curve(axis, points, label, number, smooth)
            if zoom is not None:
                inside += [value for step, value in points if min(starts) - zoom <= step <= max(starts) + zoom]
        for step in starts:
            axis.axvline(step, color=MUTED, linestyle=":", linewidth=1)
        if zoom is not None:
            axis.set_xlim(min(starts) - zoom, max(starts) + zoom)
            if inside and max(inside) > min(inside):
                margin = 0.05 * (max(inside) - min(inside))
                axis.set_ylim(min(inside) - margin, max(inside) + margin)
        axis.set(xlabel="optimiser step", ylabel=_title(name))
    for axis in axes[len(figures) :]:
        axis.set_visible(False)
    axes[0].legend()
    return figure


def rate_distortion(
    series: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str = "rate, bits a pixel",
    ylabel: str = "PSNR, dB",
    log_rate: bool = False,
    connect: bool = True,
    axis: Axes | None = None,
) -> Figure:
    """
    Draws quality, or distortion, over rate.

    Points that cannot be drawn are left out: infinite PSNR, NaN, and a rate of 0 on a logarithmic axis. The legend
    tells their number.

    Args:
        series (`Mapping[str, Sequence[tuple[float, float]]]`): Label and points (rate, quality) of each codec, in any
            order.
        xlabel (`str`, defaults to `"rate, bits a pixel"`): Name and unit of the rate.
        ylabel (`str`, defaults to `"PSNR, dB"`): Name and unit of the quality.
        log_rate (`bool`, defaults to `False`): Whether the axis of the rate is logarithmic.
        connect (`bool`, defaults to `True`): Whether a line joins the points of a codec in order of their rates. Use
            `False` for unrelated configurations.
        axis (`matplotlib.axes.Axes`, *optional*): Panel of a figure to draw into. Defaults to a new figure.

    Returns:
        `matplotlib.figure.Figure`: The figure, for [`save_figure`].

    Raises:
        ValueError: If there is no point.
        ImportError: If matplotlib is missing.
    """
    if not any(map(len, series.values())):
        raise ValueError("`series` must hold at least one point, got none.")
    if axis is None:
        _, (axis,) = new_figure(width=6.5, height=4.5)
    for number, (label, points) in enumerate(series.items()):
        drawn = sorted((rate, value) for rate, value in points if _has_place(rate, value, log_rate))
        look = style(number) | ({} if connect and len(drawn) > 1 else {"linestyle": "none"})
        label = label if len(drawn) == len(points) else f"{label} ({len(points) - len(drawn)} not drawn)"
        rates, values = ([point[side] for point in drawn] for side in (0, 1))
        axis.plot(rates, values, **look, markersize=5, linewidth=1.4, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log_rate:
        ticker = requires("matplotlib.ticker", extra="visualization")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)  # beside the points, never over one
    return axis.figure


def _has_place(rate: float, value: float, log_rate: bool) -> bool:
    return math.isfinite(rate) and math.isfinite(value) and (rate > 0 or not log_rate)


def _default_figures(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Names of held-out values if a run has a curve of them, else those of the training batches."""
    numbers: dict[str, int] = {}
    for records in runs.values():
        for name in {name for record in records for name in record}:
            numbers[name] = max(numbers.get(name, 0), len(_points(records, name)))
    chosen = []
    for name in _DEFAULT:
        held_out = f"validation_{name}"
        if numbers.get(held_out, 0) > 1 or (numbers.get(held_out, 0) and not numbers.get(name)):
            chosen.append(held_out)
        elif numbers.get(name):
            chosen.append(name)
    return chosen or [name for name in ("loss",) if numbers.get(name)]


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Step and value of all records in which the value is finite."""
    found = [(record["step"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return [(step, float(value)) for step, value in found if math.isfinite(value)]


def _title(name: str) -> str:
    held_out = name.startswith("validation_")
    name = name.removeprefix("validation_")
    return ("held-out " if held_out else "") + _TITLES.get(name, name.replace("_", " "))


def _draw_curve(axis: Axes, points: list[tuple[float, float]], label: str, number: int, smooth: int | None) -> None:
    """Draws the curve of one run. If it is smoothed, the record is drawn faintly behind it."""
    look = style(number) | {"linewidth": 1.4}
    steps, values = ([point[side] for point in points] for side in (0, 1))
    if len(points) > 25:
        look["marker"] = ""
    if smooth is not None and len(points) >= smooth:
        axis.plot(steps, values, **(look | {"linewidth": 0.8, "alpha": 0.3, "marker": ""}))
        values = requires("scipy.signal", extra="visualization").savgol_filter(values, smooth, _DEGREE)
    axis.plot(steps, values, **look, markersize=4, label=label)
