"""Runs of lm-eval compared: every metric that two runs share, on the documents that both saw.

A pair that can't be compared says why, and all others still are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import exact_sum
from ..errors import ComparisonError
from ..metric import TokenMetric
from .comparison import Comparison, compare, same_documents
from .runs import Run, TaskRun

__all__ = ["RunComparison", "compare_runs"]


@dataclass(frozen=True)
class RunComparison:
    """One metric of one task in two runs: the comparison, or the reason why there is none."""

    task: str
    metric: str
    unit: str
    result: Comparison | None
    reason: str | None = None


def compare_runs(a: Run, b: Run, *, num_resamples: int = 9999) -> list[RunComparison]:
    """Compare B with A, task by task and metric by metric.

    Raises:
        ComparisonError: the runs share no task.
    """
    shared = [name for name in a.tasks if name in b.tasks]
    if not shared:
        raise ComparisonError(
            f"the runs share no task: {a.path.parent} has {', '.join(a.tasks)}; {b.path.parent} has {', '.join(b.tasks)}"
        )
    return [row for name in shared for row in _compare_task(a.tasks[name], b.tasks[name], num_resamples)]


def _compare_task(a: TaskRun, b: TaskRun, num_resamples: int) -> Iterator[RunComparison]:
    for name in a.values:
        metric = a.metrics.get(name)
        unit = metric.value_unit if metric is not None else ""
        try:
            if metric is None:
                raise ComparisonError("not one of xent-metrics': its documents' sums are not in the samples")
            result = compare(metric, *_paired(a, b, name), num_resamples=num_resamples)
        except ComparisonError as error:
            yield RunComparison(a.name, name, unit, None, str(error))
        else:
            yield RunComparison(a.name, name, unit, result)


def _paired(a: TaskRun, b: TaskRun, name: str) -> tuple[Tensor, Tensor]:
    """Both runs' states of the same documents in the same order, or the reason why not."""
    if name not in b.metrics:
        raise ComparisonError("B doesn't have it")
    if a.version != b.version:
        raise ComparisonError(f"the task's versions differ: {a.version} and {b.version}")
    if repr(a.metrics[name]) != repr(b.metrics[name]):
        raise ComparisonError(f"its options differ: {a.metrics[name]!r} and {b.metrics[name]!r}")
    same_documents([sample.key for sample in a.samples], [sample.key for sample in b.samples])
    states = a.states(name), b.states(name)
    if states[0] is None or states[1] is None:
        raise ComparisonError("the documents' sums are not in the samples; evaluate with --log_samples")
    place = {sample.key: i for i, sample in enumerate(b.samples)}
    ordered = states[1][torch.tensor([place[sample.key] for sample in a.samples])]
    _same_tokens(a.metrics[name], states[0], ordered)
    return states[0], ordered


def _same_tokens(metric: TokenMetric, a: Tensor, b: Tensor) -> None:
    """Per-token values of other tokenizers are not of the same thing."""
    counts = [_tokens(metric, states) for states in (a, b)]
    if counts[0] != counts[1]:
        raise ComparisonError(
            f"the same documents are {counts[0]:.0f} tokens in A and {counts[1]:.0f} in B: the tokenizers differ, and "
            "what is per token can't be compared. bits_per_byte can"
        )


def _tokens(metric: TokenMetric, states: Tensor) -> float:
    sums = metric.unpack(exact_sum.to_float(exact_sum.merge(states)))
    return sum(
        float(value.sum()) for name, value in sums.items() if name.rpartition(".")[2] in ("tokens", "denominator")
    )
