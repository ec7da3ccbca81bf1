"""Running sums that are deterministic on every device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["running_sum"]


def running_sum(values: Tensor) -> Tensor:
    """The sums of the first 1, 2, … of `values`, ``(N,)``, as `torch.cumsum` gives them on a CPU.

    On a GPU torch's cumsum of floats isn't deterministic, and raises under `torch.use_deterministic_algorithms(True)`. There
    the sums of 1, 2, 4, … neighbours are added, which is exact for counts.

    >>> running_sum(torch.tensor([1.0, 2.0, 4.0]))
    tensor([1., 3., 7.])
    """
    if values.device.type == "cpu":
        return values.cumsum(0)
    span = 1
    while span < len(values):
        values = torch.cat([values[:span], values[span:] + values[:-span]])
        span *= 2
    return values
