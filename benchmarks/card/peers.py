"""Other libraries' losses of the same rows, each where it is installed. None gives confidence and correct.

The names were read in liger-kernel 0.8.5, quack-kernels 0.6.5 and cut-cross-entropy 25.1.1, and weren't run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from card.device import Card, describe_error

Loss = Callable[..., Any]


def imported(name: str, missing: dict[str, str], make: Callable[[Any], Loss]) -> Loss | None:
    """The loss made of a module, or None, with the reason in `missing`."""
    try:
        return make(importlib.import_module(name))
    except (Exception, SystemExit) as error:  # a peer that can't be imported here is a peer that isn't installed
        missing[name] = describe_error(error)
        return None


def row_losses(card: Card, missing: dict[str, str]) -> dict[str, Loss]:
    """Losses as functions of logits ``(N, V)`` and targets ``(N,)``."""
    compiled = torch.compile(_cross_entropy, fullgraph=True, dynamic=False, backend=card.compiler)
    found: dict[str, Loss | None] = {
        "torch F.cross_entropy": lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
        "torch F.cross_entropy of .float()": _cross_entropy,
        "torch.compile of that": compiled,
        "torchmetrics Perplexity": imported("torchmetrics.text", missing, lambda m: _perplexity(m, card)),
        "Liger": imported("liger_kernel.transformers.functional", missing, _liger),
        "quack": imported("quack.cross_entropy", missing, _quack),
    }
    return {name: loss for name, loss in found.items() if loss is not None}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, reduction="none")


def _perplexity(module: Any, card: Card) -> Loss:
    metric = module.Perplexity().to(card.device)

    def update(logits: Tensor, target: Tensor) -> None:
        metric.update(logits[None], target[None])

    return update


def _liger(module: Any) -> Loss:
    # Without requires_grad it doesn't write gradients over the logits.
    return lambda logits, target: module.liger_cross_entropy(logits, target, reduction="none")


def _quack(module: Any) -> Loss:
    return lambda logits, target: module.cross_entropy(logits, target, reduction="none")


def head_losses(card: Card, missing: dict[str, str]) -> dict[str, Loss]:
    """Losses as functions of hidden states ``(N, H)``, weight ``(V, H)`` and targets ``(N,)``."""
    found: dict[str, Loss | None] = {
        "F.linear, F.cross_entropy": lambda hidden, weight, target: _cross_entropy(F.linear(hidden, weight), target),
        "F.linear_cross_entropy": imported("torch.nn", missing, _torch_linear),
        "F.linear_cross_entropy by chunks": imported("torch.nn", missing, _torch_linear_by_chunks),
        "Liger fused linear": imported("liger_kernel.transformers.functional", missing, _liger_linear),
        "Liger fused linear scaled": imported("liger_kernel.ops", missing, _liger_scaled),
        "cut-cross-entropy": imported("cut_cross_entropy", missing, _cut),
    }
    return {name: loss for name, loss in found.items() if loss is not None}


def _torch_linear(nn: Any) -> Loss:
    loss = nn.functional.linear_cross_entropy  # torch ≥ 2.13
    return lambda hidden, weight, target: loss(hidden, weight, target, reduction="none")


def _torch_linear_by_chunks(nn: Any) -> Loss:
    loss, options = nn.functional.linear_cross_entropy, nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, target: loss(hidden, weight, target, reduction="none", options=options)


def _liger_linear(module: Any) -> Loss:
    loss = module.liger_fused_linear_cross_entropy
    return lambda hidden, weight, target: loss(hidden, weight, target, reduction="none")


def _liger_scaled(module: Any) -> Loss:
    function = module.LigerFusedLinearScaledCrossEntropyFunction

    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found = function.apply(hidden, weight, target)
        return found[0] if isinstance(found, tuple) else found

    return loss


def _cut(module: Any) -> Loss:
    return lambda hidden, weight, target: module.linear_cross_entropy(hidden, weight, target, reduction="none")
