"""Two lm-eval runs compared: every metric that they share, on the documents that both saw.

Metrics that can't be compared say why; the rest are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.analysis.comparison import Comparison, compare, same_documents
from xent_metrics.analysis.multiplicity import corrected
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Keys, keys_of
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.metric import TokenMetric

__all__ = ["RunComparison", "compare_runs", "correct_together", "paired_sums"]


@dataclass(frozen=True)
class RunComparison:
    """One metric of one task in two runs: its values, and either the comparison or the reason why there is none.

    The values are those in the results, and `value_b` is None if run B doesn't have the metric. If only shared documents
    are compared, the values are of these, and None for a metric that isn't compared.
    """

    task: str
    metric: str
    unit: str
    value_a: float | None
    value_b: float | None
    result: Comparison | None
    reason: str | None = None


def compare_runs(
    a: Run, b: Run, *, num_resamples: int = 9999, shared_documents: bool = False, names: tuple[str, str] = ("A", "B")
) -> list[RunComparison]:
    """Compare run B with run A, task by task and metric by metric; p values are corrected for all of them together.

    Args:
        a: the run to compare with.
        b: the run to judge.
        num_resamples: the number of random swaps of each permutation test.
        shared_documents: compare only the documents that both runs have. By default, runs over different documents aren't
            compared.
        names: what messages call the runs.

    Raises:
        ComparisonError: the runs share no task.
    """
    shared = [name for name in a.tasks if name in b.tasks]
    if not shared:
        raise ComparisonError(
            f"the runs share no task: {a.path.parent} has {', '.join(a.tasks)}; {b.path.parent} has {', '.join(b.tasks)}"
        )
    pairs = [(a.tasks[name], b.tasks[name]) for name in shared]
    rows = [row for pair in pairs for row in _compare_task(*pair, num_resamples, shared_documents, names)]
    return correct_together([_of_shared_documents(row) for row in rows] if shared_documents else rows)


def correct_together(rows: Sequence[RunComparison]) -> list[RunComparison]:
    """The rows as one family: their p values are corrected for how many of them are compared, and so are the verdicts.

    `compare_runs` does so for the tasks and metrics of two runs; do it again for all rows if there are more.
    """
    results = iter(corrected([row.result for row in rows if row.result]))
    return [replace(row, result=next(results)) if row.result else row for row in rows]


def _compare_task(
    a: TaskRun, b: TaskRun, num_resamples: int, shared_documents: bool, names: tuple[str, str]
) -> Iterator[RunComparison]:
    for name, value in a.values.items():
        metric = a.metrics.get(name)
        row = RunComparison(a.name, name, metric.value_unit if metric else "", value, b.values.get(name), None)
        try:
            sums = paired_sums(a, b, name, shared_documents=shared_documents, names=names)
            result = compare(a.metrics[name], *sums, num_resamples=num_resamples)
        except ComparisonError as error:
            yield replace(row, reason=error.message)
        else:
            yield replace(row, result=result)


def _of_shared_documents(row: RunComparison) -> RunComparison:
    values = (row.result.value_a, row.result.value_b) if row.result else (None, None)
    return replace(row, value_a=values[0], value_b=values[1])


def _why_no_metric(task: TaskRun, name: str) -> str:
    if name in task.unusable:
        return task.unusable[name]
    if not task.samples:
        return "the run has no samples of this task; evaluate with --log_samples"
    return "the metric is lm-eval's own and is not the mean of the logged samples"


def paired_sums(
    a: TaskRun, b: TaskRun, name: str, *, shared_documents: bool = False, names: tuple[str, str] = ("A", "B")
) -> tuple[SumsByDocument, SumsByDocument]:
    """Both runs' sums of the same documents, in the order of run A.

    Args:
        a: a task in the run to compare with.
        b: the same task in the run to judge.
        name: the metric's key.
        shared_documents: take the documents that both have.
        names: what messages call the runs.

    Raises:
        ComparisonError: the metric can't be compared; the message says why.
    """
    if name not in a.metrics:
        raise ComparisonError(_why_no_metric(a, name))
    if name not in b.values:
        raise ComparisonError(f"{names[1]} doesn't have this metric")
    if a.version != b.version:
        raise ComparisonError(f"the task versions differ: {a.version} in {names[0]}, {b.version} in {names[1]}")
    keys = [keys_of(task.samples_of(name)) for task in (a, b)]
    if len(keys[0]) and len(keys[1]) and not shared_documents:
        _same_keys(keys[0], keys[1], names)
    sums = [_sums(task, name, run, shared_documents) for task, run in zip((a, b), names, strict=True)]
    if repr(a.metrics[name]) != repr(b.metrics[name]):
        raise ComparisonError(
            f"the metric's options differ: {a.metrics[name]!r} in {names[0]}, {b.metrics[name]!r} in {names[1]}"
        )
    first, second = (own.at(torch.from_numpy(at)) for own, at in zip(sums, shared_places(*keys), strict=True))
    _same_token_counts(a.metrics[name], first.sums, second.sums, names)
    return first, second


def _same_keys(a: Keys, b: Keys, names: tuple[str, str]) -> None:
    if not np.array_equal(np.sort(a), np.sort(b)):
        same_documents(a.tolist(), b.tolist(), names)


def shared_places(a: Keys, b: Keys) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The places in two runs of the documents that both have, in the order of the first."""
    if np.array_equal(a, b):
        return np.arange(len(a)), np.arange(len(b))
    _, first, second = np.intersect1d(a, b, return_indices=True)
    order = np.argsort(first)
    return first[order], second[order]


def _sums(task: TaskRun, name: str, run: str, even_some: bool) -> SumsByDocument:
    sums = task.sums(name, even_some=even_some) if name in task.metrics else None
    if sums is None:
        why = task.why_unusable(name, even_some=even_some) or "some of its samples lack them"
        raise ComparisonError(f"{run} has no logged sums for every document: {why}")
    return sums


def _same_token_counts(metric: TokenMetric, a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Refuse documents with different token counts: per-token values of different tokenizers aren't comparable."""
    counts = [_token_counts(metric, sums) for sums in (a, b)]
    differ = int((counts[0] != counts[1]).sum())
    if differ:
        raise ComparisonError(
            f"{differ} of {len(a)} documents have a different number of tokens in {names[1]} ({counts[0].sum():.0f} tokens "
            f"in {names[0]} and {counts[1].sum():.0f} in {names[1]} in total): the tokenizers differ, and per-token values of "
            "different tokenizers can't be compared. Use bits_per_byte"
        )


def _token_counts(metric: TokenMetric, sums: Tensor) -> Tensor:
    """The number of tokens of each document, ``(D,)``: the metric's sums named `tokens` or `denominator`."""
    by_name = metric.layout.by_name(sums.mT)
    found = [rows.sum(dim=0) for name, rows in by_name.items() if name.rpartition(".")[2] in ("tokens", "denominator")]
    return torch.stack(found).sum(dim=0) if found else torch.zeros(len(sums), dtype=torch.float64)
