"""Runs of lm-eval compared: every metric that two runs share, on the documents that both saw.

A pair that can't be compared says why, and all others still are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xent_metrics.analysis.comparison import Comparison, compare, same_documents
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.errors import ComparisonError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric

__all__ = ["RunComparison", "compare_runs"]


@dataclass(frozen=True)
class RunComparison:
    """One metric of one task in two runs: its values, and the comparison or the reason why there is none."""

    task: str
    metric: str
    unit: str
    value_a: float
    value_b: float | None  # None where B doesn't have it
    result: Comparison | None
    reason: str | None = None


def compare_runs(a: Run, b: Run, *, num_resamples: int = 9999, shared_documents: bool = False) -> list[RunComparison]:
    """Compare B with A, task by task and metric by metric.

    Args:
        shared_documents: compare on the documents that both runs have, where one has more; otherwise that is a reason not to.

    Raises:
        ComparisonError: the runs share no task.
    """
    shared = [name for name in a.tasks if name in b.tasks]
    if not shared:
        raise ComparisonError(
            f"the runs share no task: {a.path.parent} has {', '.join(a.tasks)}; {b.path.parent} has {', '.join(b.tasks)}"
        )
    pairs = [(a.tasks[name], b.tasks[name]) for name in shared]
    return [row for pair in pairs for row in _compare_task(*pair, num_resamples, shared_documents)]


def _compare_task(a: TaskRun, b: TaskRun, num_resamples: int, shared_documents: bool) -> Iterator[RunComparison]:
    for name, value in a.values.items():
        metric = a.metrics.get(name)
        shown = RunComparison(a.name, name, metric.value_unit if metric else "", value, b.values.get(name), None)
        try:
            if metric is None:
                raise ComparisonError(_no_sums(a))
            result = compare(metric, *_paired(a, b, name, shared_documents), num_resamples=num_resamples)
        except ComparisonError as error:
            yield replace(shown, reason=str(error))
        else:
            yield replace(shown, result=result)


def _no_sums(task: TaskRun) -> str:
    if not task.samples:
        return "there are no samples of it; evaluate with --log_samples"
    return "it is lm-eval's own, and not the mean of what the samples hold"


def _paired(a: TaskRun, b: TaskRun, name: str, shared_documents: bool) -> tuple[Tensor, Tensor]:
    """Both runs' states of the same documents in the same order, or the reason why not."""
    if name not in b.values:
        raise ComparisonError("B doesn't have it")
    if a.version != b.version:
        raise ComparisonError(f"the task's versions differ: {a.version} and {b.version}")
    states = [_states(task, name, called) for task, called in ((a, "A"), (b, "B"))]
    if repr(a.metrics[name]) != repr(b.metrics[name]):
        raise ComparisonError(f"its options differ: {a.metrics[name]!r} and {b.metrics[name]!r}")
    keys = [[sample.key for sample in task.samples] for task in (a, b)]
    if not shared_documents:
        same_documents(*keys)
    places = [{key: place for place, key in enumerate(own)} for own in keys]
    common = [key for key in keys[0] if key in places[1]]
    first, second = (
        own[torch.tensor([at[key] for key in common], dtype=torch.long)] for own, at in zip(states, places, strict=True)
    )
    _same_tokens(a.metrics[name], first, second)
    return first, second


def _states(task: TaskRun, name: str, called: str) -> Tensor:
    states = task.states(name) if name in task.metrics else None
    if states is None:
        why = "evaluate with --log_samples" if not task.samples else "some of its samples lack them"
        raise ComparisonError(f"the sums of {called}'s documents are not in its samples: {why}")
    return states


def _same_tokens(metric: TokenMetric, a: Tensor, b: Tensor) -> None:
    """Per-token values of other tokenizers are not of the same thing, whatever the totals."""
    counts = [_tokens(metric, states) for states in (a, b)]
    differ = int((counts[0] != counts[1]).sum())
    if differ:
        raise ComparisonError(
            f"{differ} of {len(a)} documents are of another number of tokens in B ({int(counts[0].sum())} in A and "
            f"{int(counts[1].sum())} in B in all): the tokenizers differ, and what is per token can't be compared. "
            "bits_per_byte can"
        )


def _tokens(metric: TokenMetric, states: Tensor) -> Tensor:
    """How many tokens each document has, ``(D,)``, by the sums that count them."""
    sums = [metric.unpack(row) for row in exact_sum.to_float(states)]
    names = [name for name in (sums[0] if sums else ()) if name.rpartition(".")[2] in ("tokens", "denominator")]
    return torch.stack([sum((row[name].sum() for name in names), torch.tensor(0.0)) for row in sums])
