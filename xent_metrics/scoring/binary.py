"""Binary classification as classification into two classes, so that every metric of classes applies to it.

A logit z becomes the logits (0, z), and a probability p becomes (ln(1 − p), ln p), in float64 (float32 on a device that
has no float64) and without an epsilon. A forecast that is certain and wrong has an infinite loss; one outside of [0, 1] has
nan.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.devices import widest_float

__all__ = ["Binary", "two_classes"]

#: What is given of class 1.
Binary = Literal["logits", "probabilities"]


def two_classes(forecast: Tensor, target: Tensor, given: Binary) -> tuple[Tensor, Tensor]:
    """Logits ``(…, 2)`` and their targets, from one logit or probability of class 1 per row.

    Args:
        forecast: ``(…)``, floats.
        target: ``(…)``: 0, 1 or `ignore_index` in an integer dtype, bools, or floats in [0, 1], the probability of class 1.
        given: "logits" or "probabilities".

    Returns:
        Logits, and class ids ``(…)`` or, for float targets, distributions ``(…, 2)``; all floats are float64, or float32 on a
        device that has no float64.

    Raises:
        InvalidInputError: another `given`, a forecast that isn't of floats, or shapes that differ.

    >>> two_classes(torch.tensor([0.0, 3.0]), torch.tensor([True, False]), "logits")
    (tensor([[0., 0.], [0., 3.]], dtype=torch.float64), tensor([1, 0]))
    """
    if given not in get_args(Binary):
        raise InvalidInputError(f"binary is {' or '.join(map(repr, get_args(Binary)))}; got {given!r}")
    if not forecast.is_floating_point() or forecast.shape != target.shape:
        raise InvalidInputError(
            f"expected binary {given} as floats of the targets' shape {tuple(target.shape)}; got "
            f"{tuple(forecast.shape)} of {forecast.dtype}. Score logits of two classes, (…, 2), without `binary`"
        )
    wide = widest_float(forecast.device)
    forecast = forecast.to(wide)
    if given == "logits":
        logits = torch.stack([torch.zeros_like(forecast), forecast], dim=-1)
    else:
        logits = torch.stack([torch.log1p(-forecast), torch.log(forecast)], dim=-1)
    if target.is_floating_point():
        target = target.to(wide)
        return logits, torch.stack([1 - target, target], dim=-1)
    return logits, target.long() if target.dtype == torch.bool else target
