"""What the tables of results show: all runs by task, a run, a task, and the differences from a chosen run.

Each function returns what a template of the same name needs. Only differences read samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xent_metrics.errors import ComparisonError
from xent_metrics.view.charts import compact
from xent_metrics.view.folder import RESAMPLES, RunFolder, Snapshot
from xent_metrics.view.links import INDEX, page_name, slug
from xent_metrics.view.summaries import Reported, RunSummary, TaskSummary

if TYPE_CHECKING:  # what reads samples takes torch, and is imported when it is needed
    from xent_metrics.analysis.comparison import Comparison
    from xent_metrics.analysis.run_comparison import RunComparison

__all__ = ["OTHERS_PER_PAGE", "all_runs", "all_tasks", "differences", "number", "one_run", "one_task", "run_cells"]

#: How many runs a page shows beside the chosen one.
OTHERS_PER_PAGE = 25


def number(value: float) -> str:
    """A value as it is shown.

    >>> number(2.5), number(float("nan"))
    ('2.5', '—')
    """
    return "—" if math.isnan(value) else f"{value:.5g}"


def run_cells(run: RunSummary) -> dict[str, Any]:
    """What every table says of a run."""
    training = run.training
    return {
        "name": run.name,
        "href": page_name("run", run.slug),
        "model": run.model,
        "step": "" if training.step is None else compact(training.step),
        "tokens": "" if training.tokens is None else compact(training.tokens),
        "exact_step": training.step,
        "exact_tokens": training.tokens,
        "date": run.date,
    }


def _value(reported: Reported | None) -> tuple[str, str]:
    if reported is None:
        return "", ""
    return number(reported.value), "" if math.isnan(reported.error) else f"± {reported.error:.2g}"


def all_runs(snapshot: Snapshot, metric: str | None) -> dict[str, Any]:
    """One metric of every run, by task and group."""
    first = snapshot.metrics[0] if snapshot.metrics else None
    metric = metric or first
    names = [name for name, runs in snapshot.tasks.items() if any(metric in run.tasks[name].values for run in runs)]
    groups = {name for name in names if any(run.tasks[name].is_group for run in snapshot.tasks[name])}
    names.sort(key=lambda name: name not in groups)  # groups first
    return {
        "metric": metric,
        "metrics": [
            {"name": name, "href": INDEX if name == first else page_name("metric", slug(name)), "chosen": name == metric}
            for name in snapshot.metrics
        ],
        "tasks": [
            {"name": name, "href": page_name("task", slug(name)), "chart": page_name("chart", slug(name), slug(metric or "")),
             "is_group": name in groups}
            for name in names
        ],
        "rows": [run_cells(run) | {"cells": [_cell(run, name, metric) for name in names]} for run in snapshot.runs],
        "problems": snapshot.problems,
        "notes": snapshot.notes,
    }  # fmt: skip


def _cell(run: RunSummary, task: str, metric: str | None) -> tuple[str, str]:
    found = run.tasks.get(task)
    return _value(found.values.get(metric or "")) if found else ("", "")


def all_tasks(snapshot: Snapshot) -> dict[str, Any]:
    """Every task and group with the number of its runs."""
    rows = []
    for name, runs in snapshot.tasks.items():
        tasks = [run.tasks[name] for run in runs]
        metrics = dict.fromkeys(metric for task in tasks for metric in task.values)
        rows.append(
            {"name": name, "href": page_name("task", slug(name)), "is_group": any(task.is_group for task in tasks),
             "runs": len(runs), "metrics": [(each, page_name("chart", slug(name), slug(each))) for each in metrics]}
        )  # fmt: skip
    return {"rows": sorted(rows, key=lambda row: not row["is_group"])}


def one_run(snapshot: Snapshot, run: RunSummary, *, as_baseline: bool) -> dict[str, Any]:
    """All values of a run. `as_baseline` links to the differences from it."""
    return {
        "run": run_cells(run) | {"path": run.path, "facts": run.facts, "problems": run.problems},
        "tasks": [_task_of_run(run, task, as_baseline) for task in run.tasks.values()],
    }


def _task_of_run(run: RunSummary, task: TaskSummary, as_baseline: bool) -> dict[str, Any]:
    own = slug(task.name)
    return {
        "name": task.name,
        "href": page_name("task", own),
        "is_group": task.is_group,
        "documents": task.documents or "",
        "documents_href": "" if task.is_group else page_name("documents", run.slug, own),
        "against_href": page_name("against", run.slug, own) if as_baseline and not task.is_group else "",
        "rows": [
            {"metric": metric, "chart": page_name("chart", own, slug(metric)), "value": _value(reported)}
            for metric, reported in task.values.items()
        ],
    }


def one_task(snapshot: Snapshot, name: str, baselines: Collection[str]) -> dict[str, Any]:
    """All metrics of a task in every run; of a group, also its tasks. Differences are linked to of runs in `baselines`, slugs."""
    runs, own = snapshot.tasks[name], slug(name)
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.tasks[name].values))
    is_group = any(run.tasks[name].is_group for run in runs)
    inside = dict.fromkeys(part for run in runs for part in run.tasks[name].subtasks if part in snapshot.tasks)
    return {
        "name": name,
        "is_group": is_group,
        "subtasks": [(part, page_name("task", slug(part))) for part in inside],
        "metrics": [(metric, page_name("chart", own, slug(metric))) for metric in metrics],
        "rows": [
            run_cells(run) | {
                "cells": [_cell(run, name, metric) for metric in metrics],
                "documents": run.tasks[name].documents or "",
                "documents_href": "" if run.tasks[name].is_group else page_name("documents", run.slug, own),
                "against_href": page_name("against", run.slug, own) if run.slug in baselines and not is_group else "",
            }
            for run in runs
        ],
    }  # fmt: skip


def differences(folder: RunFolder, snapshot: Snapshot, run: RunSummary, task: str, page: int) -> dict[str, Any]:
    """Paired differences of other runs from a chosen one, `OTHERS_PER_PAGE` of them on each page, from 1 on.

    All metrics of the task in all other runs are one family, so a p value doesn't depend on the page that it is on.
    """
    others = [other for other in snapshot.tasks[task] if other.slug != run.slug]
    start = (page - 1) * OTHERS_PER_PAGE
    pages = max(1, math.ceil(len(others) / OTHERS_PER_PAGE))
    shown = {other.slug: run_cells(other) | {"pairs": page_name("pairs", run.slug, other.slug, slug(task))}
             for other in others[start : start + OTHERS_PER_PAGE]}  # fmt: skip
    family = _family(folder, run, others, task)
    results = [row.result for _, row in family if row.result]
    return {
        "run": run_cells(run),
        "task": (task, page_name("task", slug(task))),
        "rows": [shown[other.slug] | _difference(row) for other, row in family if other.slug in shown],
        "others": len(others),
        "tests": len(results),
        "resamples": RESAMPLES if _too_few_resamples(results) else None,
        "pages": [(each, _page_of_differences(run, task, each)) for each in range(1, pages + 1)],
        "page": page,
    }


def _page_of_differences(run: RunSummary, task: str, page: int) -> str:
    return page_name("against", run.slug, slug(task), *([str(page)] if page > 1 else []))


def _family(
    folder: RunFolder, run: RunSummary, others: Iterable[RunSummary], task: str
) -> list[tuple[RunSummary, RunComparison]]:
    """The comparisons with all other runs, on whichever page they are, corrected together."""
    from xent_metrics.analysis.run_comparison import correct_together

    found = [(other, row) for other in others for row in _compared(folder, run, other, task)]
    together = correct_together([row for _, row in found])
    return [(other, row) for (other, _), row in zip(found, together, strict=True)]


def _compared(folder: RunFolder, run: RunSummary, other: RunSummary, task: str) -> list[RunComparison]:
    from xent_metrics.analysis.run_comparison import RunComparison

    try:
        return folder.compare(run, other, task)
    except ComparisonError as error:
        return [RunComparison(task, "all", "", None, None, None, error.message)]


def _too_few_resamples(results: Sequence[Comparison]) -> bool:
    """Whether not even the smallest p value of a permutation test is significant after the correction."""
    from xent_metrics.analysis.multiplicity import resamples_needed

    return resamples_needed(len(results)) > RESAMPLES and any(each.test == "permutation" for each in results)


def _difference(row: RunComparison) -> dict[str, Any]:
    result = row.result
    if result is None:
        return {"metric": row.metric, "reason": row.reason}
    needed = f"{result.documents_needed:,.0f}" if math.isfinite(result.documents_needed) else "∞"
    return {
        "metric": row.metric,
        "unit": row.unit,
        "reason": None,
        "both": (number(result.value_a), number(result.value_b)),
        "difference": result.shown(result.difference, 4),
        "exact": result.difference,
        "interval": f"{result.shown(result.low)} … {result.shown(result.high)}",
        "p": f"{result.p_value:.3g}",
        "p_holm": f"{result.p_holm:.3g}",
        "p_bh": f"{result.p_bh:.3g}",
        "documents": f"{result.documents:,}",
        "needed": needed,
        "better": {"A": "chosen run", "B": "this run"}.get(result.better or "", "—"),
    }
