r"""What keeps our metrics apart in a `torchmetrics.MetricCollection`.

A collection updates only one of several metrics whose states have the same names and, after the first batch, the same
values, and gives its states to the others. That is wrong where metrics differ in what they sum up: the PSNR of
another kind, the LPIPS of another network, the rate of another bottleneck agree on a first batch of equal images, and
then no more. So each metric's states have names of their own, and among them is one that never equals itself.
"""

from __future__ import annotations

import torch

from ..utils.import_utils import requires


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


def keep_apart(metric: Metric) -> None:
    """
    Gives a metric a state that is NaN, which torchmetrics' comparison finds equal to nothing, before and after all
    sums.

    Args:
        metric (`torchmetrics.Metric`): A metric whose constructor runs.
    """
    name = f"{type(metric).__name__.lower()}_apart"
    metric.add_state(name, torch.tensor(float("nan"), dtype=torch.float64), dist_reduce_fx="sum")
