"""A backend for CUDA: nll, confidence and correct in one `torch.compile`d graph, for the compiler to fuse.

It traces as one full graph on (fake) CUDA tensors, for any number of rows, and gives the eager route's answers on a
CPU. **No GPU timing has been taken**, so nothing uses it by itself. To opt in, let a package name it as a plugin:

    [project.entry-points.xent_metrics]
    compiled = "xent_metrics.scoring.compiled"

or add it in a program: ``plugins().add(Plugin("compiled", "my-program", "1"), xent_metrics.scoring.compiled)`` with both from
`xent_metrics.plugins`. CPU tensors, and whatever else isn't on CUDA, are left to other backends and to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from xent_metrics.hookspecs import hookimpl

__all__ = ["row_facts", "score_backend"]

Facts = tuple[Tensor, Tensor, Tensor]


def row_facts(logits: Tensor, target: Tensor) -> Facts:
    """nll (nats), confidence and correct of the rows ``(N, V)`` with targets ``(N,)``: what is compiled.

    >>> nll, confidence, correct = row_facts(torch.zeros(1, 4), torch.tensor([0]))     # uniform over 4: ln 4
    >>> nll, confidence, correct
    (tensor([1.3863]), tensor([0.2500]), tensor([True]))
    """
    log_prob = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    top = logits.argmax(-1)
    nll, surprise = (-log_prob.gather(-1, torch.stack([target, top], dim=-1))).unbind(-1)
    return nll, (-surprise).exp(), top == target


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], Facts]:
    return torch.compile(row_facts, fullgraph=True, dynamic=True)


@hookimpl
def score_backend(logits: Tensor, target: Tensor) -> Facts | None:
    """The compiled scores of CUDA rows; None for any other device."""
    return _compiled()(logits, target) if logits.device.type == "cuda" else None
