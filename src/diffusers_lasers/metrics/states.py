r"""A state that keeps our metrics from being merged in a `torchmetrics.MetricCollection`.

Some metrics may have states of the same names and, after the first batch, the same values. A collection then updates
only one of them and gives its states to the others. That is wrong for metrics that sum different things. Two kinds of
PSNR, the LPIPS of two networks or the rates of two bottlenecks may agree on the first batch and differ later. So the
states of each metric have their own names, and one of them is NaN, which never equals itself.
"""

from __future__ import annotations

import torch

from ..utils.import_utils import requires


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


def keep_apart(metric: Metric) -> None:
    """
    Gives a metric a state that is NaN and stays NaN in all sums. torchmetrics never finds it equal to another state.

    Args:
        metric (`torchmetrics.Metric`): The metric, within its constructor.
    """
    name = f"{type(metric).__name__.lower()}_apart"
    metric.add_state(name, torch.tensor(float("nan"), dtype=torch.float64), dist_reduce_fx="sum")
