"""Triton kernels for GPUs, as a plugin of xent-metrics.

    score_backend                  scores rows of logits in one read of them          rows.py
    linear_cross_entropy_backend   scores hidden states by blocks of rows, or fused   head.py, fused.py
    exact_sums_backend             exact sums by integer atomics                      sums.py

Once the package is installed, they are used automatically for tensors on CUDA (ROCm included); `XENT_METRICS_PLUGINS=`
(empty) switches them off. They return None for what they can't take, and torch computes it. Triton itself is imported when
the first tensor comes that they can take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xent_metrics import hookimpl
from xent_metrics_triton import launch

__all__ = ["exact_sums_backend", "linear_cross_entropy_backend", "score_backend"]

Scores = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]

launch.warn_without_triton()


@hookimpl
def score_backend(logits: Tensor, target: Tensor, extra_scores: Mapping[str, Any]) -> Scores | None:
    """nll, confidence, correct, and those of the extra scores that take no other read, of rows of logits ``(N, V)``."""
    if not (launch.can_run(logits, target) and launch.can_score(logits, target)):
        return None
    from xent_metrics_triton import extras, rows

    wanted = extras.known(extra_scores)
    scores = launch.attempt("score_backend", logits, lambda: rows.score_rows(logits, target, set(wanted.values())))
    return None if scores is None else extras.as_result(scores, wanted)


@hookimpl
def linear_cross_entropy_backend(
    hidden_states: Tensor, head: Any, target: Tensor, extra_scores: Mapping[str, Any]
) -> Scores | None:
    """The same scores of hidden states ``(N, H)`` under an `LMHead`."""
    tensors = [hidden_states, head.weight, target, *([] if head.bias is None else [head.bias])]
    if not (launch.can_run(*tensors) and launch.can_score_hidden(hidden_states, head, target)):
        return None
    from xent_metrics_triton import extras
    from xent_metrics_triton import head as heads

    wanted = extras.known(extra_scores)
    if len(wanted) < len(extra_scores):
        return None
    scores = launch.attempt(
        "linear_cross_entropy_backend",
        hidden_states,
        lambda: heads.score_hidden(hidden_states, head, target, set(wanted.values())),
    )
    return None if scores is None else extras.as_result(scores, wanted)


@hookimpl
def exact_sums_backend(values: Tensor, bins: Tensor | None, num_bins: int) -> Tensor | None:
    """The exact sums of values ``(K, N)`` by bin, ``(K, num_bins, 8)`` int64, as `xent_metrics.sums.exact_sum` defines them."""
    tensors = [values] if bins is None else [values, bins]
    if not (launch.can_run(*tensors) and launch.can_sum(values, bins, num_bins)):
        return None
    from xent_metrics_triton import sums

    return launch.attempt("exact_sums_backend", values, lambda: sums.exact_sums(values, bins, num_bins))
