"""Curves: the values that were drawn, smoothing against a least-squares fit, ranges and labels."""

import math

import numpy as np
import pytest

from diffusers_lasers.visualization import rate_distortion, training_curves
from diffusers_lasers.visualization.figures import new_figure


def run(offset=0.0, steps=40, **more):
    records = []
    for index in range(1, steps + 1):
        records.append(
            {"step": 10 * index, "loss": 1 / index, "psnr": offset + math.sin(index) + 20, "perplexity": 5.0, **more}
        )
        if index % 10 == 0:
            records.append({"step": 10 * index, "validation_psnr": offset + 18 + index / 10})
    return records


def data(axis):
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.get_lines()}


def test_held_out_figures_stand_in_for_those_of_the_training_batches():
    figure = training_curves({"a": run(), "b": run(1.0)})
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_visible()] == [
        "held-out PSNR, dB",
        "perplexity of the code",
    ]
    assert data(figure.axes[0])["a"] == ([100, 200, 300, 400], [19, 20, 21, 22])
    assert data(figure.axes[0])["b"][1] == [20, 21, 22, 23]
    assert all(axis.get_xlabel() == "optimiser step" for axis in figure.axes)
    single = training_curves({"a": run(steps=10)})  # one validation is no curve
    assert single.axes[0].get_ylabel() == "PSNR, dB" and len(data(single.axes[0])["a"][0]) == 10
    loss = training_curves({"a": [{"step": 1, "loss": 2.0, "validation_loss": 3.0}]})
    assert [axis.get_ylabel() for axis in loss.axes] == ["loss"]


def test_a_run_without_a_figure_keeps_the_others_colours():
    runs = {"a": run(), "b": [{"step": 5, "psnr": 3.0}]}
    figure = training_curves(runs, ["loss", "psnr"])
    colours = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in figure.axes]
    assert colours[0] == colours[1] and colours[0]["a"] != colours[0]["b"]
    assert data(figure.axes[0])["b"] == ([], []) and data(figure.axes[1])["b"] == ([5], [3.0])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_values_that_are_no_numbers_are_left_out():
    records = [
        {"step": step, "loss": value} for step, value in enumerate([1.0, math.nan, 3.0, "nan", math.inf, None, 4])
    ]
    assert data(training_curves({"a": records}).axes[0])["a"] == ([0, 2, 6], [1.0, 3.0, 4])


def test_smoothing_is_the_least_squares_parabola_of_the_window():
    values = np.random.default_rng(0).normal(size=30)
    records = [{"step": 3 * index, "loss": float(value)} for index, value in enumerate(values)]
    (axis,) = training_curves({"a": records}, smooth=7).axes
    faint, smooth = axis.get_lines()
    assert np.allclose(faint.get_ydata(), values) and faint.get_alpha() < 0.5 and smooth.get_label() == "a"
    for index in range(3, 27):
        fit = np.polynomial.Polynomial.fit(np.arange(-3, 4), values[index - 3 : index + 4], 2)
        assert smooth.get_ydata()[index] == pytest.approx(fit(0))
    (axis,) = training_curves({"a": records[:6]}, smooth=7).axes  # too short
    assert len(axis.get_lines()) == 1 and np.allclose(axis.get_lines()[0].get_ydata(), values[:6])


def test_the_start_is_marked_and_zoomed_to():
    (axis,) = training_curves({"a": run()}, ["loss"], start=[150, 200], zoom=60).axes
    assert axis.get_xlim() == (90, 260)
    low, high = axis.get_ylim()
    assert 0 < low < 1 / 26 < 1 / 9 < high < 0.2  # of the steps shown, with a little room
    marks = [line.get_xdata()[0] for line in axis.get_lines() if line.get_label() != "a"]
    assert marks == [150, 200]
    (axis,) = training_curves({"a": run()}, ["loss"], start=150).axes
    assert axis.get_xlim()[1] > 390 and len(axis.get_lines()) == 2


@pytest.mark.parametrize(
    "runs, options, sentence",
    [
        ({}, {}, "`runs` must hold at least one run"),
        ({"a": []}, {}, "`figures` must hold at least one name"),
        ({"a": [{"loss": 1.0}]}, {}, "`runs` must have a `step` in each record, got one without it in the run 'a'"),
        (
            {"a": run()},
            {"figures": ["psnr", "ssim"]},
            "`figures` must be names in the records, .*'loss'.*, got 'ssim'",
        ),
        ({"a": run()}, {"smooth": 4}, "`smooth` must be an odd number of at least 3, got 4"),
        ({"a": run()}, {"smooth": 1}, "`smooth` must be an odd number of at least 3, got 1"),
        ({"a": run()}, {"zoom": 5}, "`zoom` must be at least 1 and needs `start`"),
        ({"a": run()}, {"zoom": 0, "start": 5}, "`zoom` must be at least 1"),
    ],
)
def test_runs_that_cannot_be_drawn_are_refused(runs, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        training_curves(runs, **options)


def test_points_are_joined_by_their_rates():
    series = {"a": [(2.0, 30.0), (1.0, 20.0), (4.0, 35.0)], "b": [(1.5, 28.0)]}
    (axis,) = rate_distortion(series).axes
    assert data(axis) == {"a": ([1, 2, 4], [20, 30, 35]), "b": ([1.5], [28])}
    first, second = axis.get_lines()
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "None")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("rate, bits a pixel", "PSNR, dB")
    (axis,) = rate_distortion(series, "x", "y", connect=False).axes
    assert [line.get_linestyle() for line in axis.get_lines()] == ["None", "None"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("x", "y", "linear")


def test_many_series_look_different():
    lines = rate_distortion({str(n): [(1, n), (2, n)] for n in range(20)}).axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


def test_points_without_a_place_are_counted():
    series = {"a": [(0.0, 30.0), (1.0, math.inf), (2.0, 40.0)], "b": [(math.nan, 1.0)]}
    assert list(data(rate_distortion(series).axes[0])) == ["a (1 not drawn)", "b (1 not drawn)"]
    (axis,) = rate_distortion(series, log_rate=True).axes
    assert data(axis)["a (2 not drawn)"] == ([2.0], [40.0]) and axis.get_xscale() == "log"
    with pytest.raises(ValueError, match="`series` must hold at least one point, got none"):
        rate_distortion({"a": []})


def test_logarithmic_rates_have_plain_numbers():
    (axis,) = rate_distortion({"a": [(0.3, 1.0), (30.0, 2.0)]}, log_rate=True).axes
    axis.figure.draw_without_rendering()
    shown = [tick.get_text() for tick in axis.get_xticklabels()]
    assert {"0.5", "1", "2", "5", "10"} <= set(shown)


def test_panels_of_one_figure():
    figure, axes = new_figure(columns=2)
    assert rate_distortion({"a": [(1, 2)]}, axis=axes[1]) is figure
    assert not axes[0].get_lines() and data(axes[1]) == {"a": ([1], [2])}
