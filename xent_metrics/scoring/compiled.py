"""A scoring backend for CUDA: nll, confidence and correct in one `torch.compile`d graph, which the compiler can fuse.

It compiles as one full graph for any number of rows, and on a CPU its results equal those of the eager code. It has not
been timed on a GPU, so nothing uses it by default. To use it, name it as a plugin of your package:

    [project.entry-points.xent_metrics]
    compiled = "xent_metrics.scoring.compiled"

or, in a program, call ``plugins().add(Plugin("compiled", "my-program", "1"), xent_metrics.scoring.compiled)`` with both
names from `xent_metrics.plugins`. It declines tensors that aren't on CUDA; other backends or torch score these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from xent_metrics.hookspecs import hookimpl

__all__ = ["row_scores", "score_backend"]

Scores = tuple[Tensor, Tensor, Tensor]


def row_scores(logits: Tensor, target: Tensor) -> Scores:
    """Nll (nats), confidence and correct of the rows ``(N, V)`` with targets ``(N,)``: the function that is compiled.

    >>> nll, confidence, correct = row_scores(torch.zeros(1, 4), torch.tensor([0]))     # uniform over 4: ln 4
    >>> nll, confidence, correct
    (tensor([1.3863]), tensor([0.2500]), tensor([True]))
    """
    log_prob = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    top = logits.argmax(-1)
    nll, top_nll = (-log_prob.gather(-1, torch.stack([target, top], dim=-1))).unbind(-1)
    return nll, (-top_nll).exp(), top == target


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], Scores]:
    return torch.compile(row_scores, fullgraph=True, dynamic=True)


@hookimpl
def score_backend(logits: Tensor, target: Tensor) -> Scores | None:
    """The compiled scores of rows on CUDA; None on any other device."""
    return _compiled()(logits, target) if logits.device.type == "cuda" else None
