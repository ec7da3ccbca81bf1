"""Binary targets as two classes, so that every metric of classes is one of them too.

A logit z stands for the logits (0, z), a probability p for (ln(1 − p), ln p): log space, in float64, without an epsilon.
A certain forecast that is wrong has an infinite loss, and one that is no probability a nan.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError

__all__ = ["Binary", "two_classes"]

#: What is given of the class 1.
Binary = Literal["logits", "probabilities"]


def two_classes(forecast: Tensor, target: Tensor, given: Binary) -> tuple[Tensor, Tensor]:
    """Logits ``(…, 2)`` and the targets that go with them, of a logit or a probability of the class 1 a row.

    Args:
        forecast: ``(…)``, floats.
        target: ``(…)``: 0, 1 or `ignore_index` in an integer dtype, bools, or floats in [0, 1], the chance of the class 1.

    >>> two_classes(torch.tensor([0.0, 3.0]), torch.tensor([True, False]), "logits")
    (tensor([[0., 0.], [0., 3.]], dtype=torch.float64), tensor([1, 0]))
    """
    if given not in get_args(Binary):
        raise InvalidInputError(f"binary is {' or '.join(map(repr, get_args(Binary)))}; got {given!r}")
    if not forecast.is_floating_point() or forecast.shape != target.shape:
        raise InvalidInputError(
            f"binary scores take one of the {given} a target, floats of its shape {tuple(target.shape)}; got "
            f"{tuple(forecast.shape)} of {forecast.dtype}. Logits of two classes, (…, 2), are scored without `binary`"
        )
    forecast = forecast.double()
    if given == "logits":
        logits = torch.stack([torch.zeros_like(forecast), forecast], dim=-1)
    else:
        logits = torch.stack([torch.log1p(-forecast), torch.log(forecast)], dim=-1)
    if target.is_floating_point():
        target = target.double()
        return logits, torch.stack([1 - target, target], dim=-1)
    return logits, target.long() if target.dtype == torch.bool else target
