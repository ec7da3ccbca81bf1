"""Exact values of lm-eval's groups: those of all documents of their tasks.

lm-eval takes the mean of the tasks' values, weighted by their numbers of documents. For a ratio whose denominator isn't
the number of documents, such as bits per byte, that is another number than the ratio of all documents. So a group's value
and standard error of our metrics are computed from the merged sums of all documents, as if the group were one task. With
`weight_by_size: false` lm-eval's are right: the mean of the tasks' values, and the error of a mean of independent values.

Who syncs: nobody. lm-eval aggregates groups on rank 0, from what it gathered.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from xent_metrics.hosts.lm_eval.documents import TotalValue
from xent_metrics.wrappers.standard_error import standard_error

__all__ = ["with_exact_values"]

log = logging.getLogger(__name__)


def with_exact_values(group: Any, results: dict[str, Any], task_results: Mapping[str, Any]) -> dict[str, Any]:
    """A group's results with the exact values of our metrics.

    Args:
        group: lm-eval's.
        results: the group's, as lm-eval has them: by ``<metric>,<filter>`` and ``<metric>_stderr,<filter>``.
        task_results: the results of every task, by its name.
    """
    names = dict.fromkeys(task.task_name for task in group.get_all_tasks())  # once, if a subgroup has it, too
    tasks = [task_results.get(name, {}) for name in names]
    for entry in group.aggregate_metric_list or ():
        keys = [key for key in results if key.partition(",")[0] == entry.metric]
        if not keys and entry.filter_list is None:  # lm-eval says nothing of these
            log.warning("Group '%s': none of its tasks has the metric %s", group.name, entry.metric)
        for key in keys:
            found = [task[key] for task in tasks if key in task]
            results |= _exact(group.name, key, found, weighted=entry.weight_by_size)
    return results


def _exact(group: str, key: str, found: list[Any], *, weighted: bool) -> Iterator[tuple[str, float]]:
    """The entries of a group's results to replace: none if a task's value isn't ours."""
    ours = [value for value in found if isinstance(value, TotalValue)]
    if not ours:
        return
    meanings = sorted({value.meaning for value in ours} | ({"lm-eval's own"} if len(ours) < len(found) else set()))
    metric, _, filter_name = key.partition(",")
    error_key = f"{metric}_stderr,{filter_name}"
    if len(meanings) > 1:
        log.warning(
            "Group '%s': its tasks mean different things by %s (%s), so it has no value; give one of them another `name: …`",
            *(group, metric, ", ".join(meanings)),
        )
        yield from ((key, math.nan), (error_key, math.nan))
    elif weighted:
        total = TotalValue.of(ours[0].metric, ours[0].meaning, torch.cat([value.states for value in ours]))
        yield from ((key, total), (error_key, standard_error(total.metric, total.states)))
